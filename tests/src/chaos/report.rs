//! What a run has done and found, as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::plan::Kind;
use crate::load::Summary;

/// What a run has done and found.
#[derive(Debug, Default)]
pub struct Report {
    /// What its faults were drawn from.
    pub seed: u64,
    /// Faults of each kind, and the longest time without a receipt on any one topic, from their
    /// beginning until the next one.
    faults: BTreeMap<Kind, (u64, Duration)>,
    /// How often which fault came while which other one was held.
    overlaps: BTreeMap<String, u64>,
    /// Faults that weren't done, and why.
    skipped: BTreeMap<&'static str, String>,
    /// How packets were lost.
    pub network: &'static str,
    summary: Summary,
    /// Messages with a receipt that aren't there.
    pub lost: u64,
    /// Whether everything could be read at the end.
    pub is_read_back: bool,
    /// Whether `cluster status` was healthy at the end, and nothing waited for repair.
    pub replication_restored: bool,
    /// Closed ledgers of which every copy was read and compared at the end.
    pub ledgers_checked: u64,
    /// Those of them that aren't whole.
    pub ledgers_broken: u64,
    /// Panics in the logs.
    pub panics: u64,
    /// What went wrong, in words.
    broken: Vec<String>,
}

impl Report {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Says so at once, and again in the report.
    pub(super) fn skip(&mut self, fault: &'static str, why: &str) {
        eprintln!("chaos: SKIPPED, not tested: {fault}: {why}");
        self.skipped.insert(fault, why.to_owned());
    }

    pub(super) fn is_skipped(&self, fault: &str) -> bool {
        self.skipped.contains_key(fault)
    }

    pub(super) fn done(&mut self, kind: Kind, gap: Duration) {
        let (count, longest) = self.faults.entry(kind).or_default();
        *count += 1;
        *longest = gap.max(*longest);
    }

    pub(super) fn overlapped(&mut self, first: Kind, second: Kind) {
        let pair = format!("{} + {}", first.name(), second.name());
        *self.overlaps.entry(pair).or_default() += 1;
    }

    pub(super) fn note(&mut self, ended: Result<(), String>) {
        if let Err(why) = ended {
            eprintln!("chaos: BROKEN: {why}");
            self.broken.push(why);
        }
    }

    pub(super) fn count(&mut self, summary: &Summary) {
        self.summary = *summary;
        self.lost = summary.lost;
    }

    /// How many faults of a kind were done.
    #[must_use]
    pub fn faults_of(&self, kind: Kind) -> u64 {
        self.faults.get(&kind).map_or(0, |(count, _)| *count)
    }

    /// Messages with a receipt.
    #[must_use]
    pub fn stored(&self) -> usize {
        self.summary.stored
    }

    /// Whether every promise was kept, and something was done that might have broken one.
    #[must_use]
    pub fn is_good(&self) -> bool {
        let counted = [self.lost, self.summary.came_again, self.summary.out_of_order, self.panics];
        counted == [0; 4]
            && self.is_read_back
            && self.replication_restored
            && self.broken.is_empty()
            && !self.faults.is_empty()
            && self.ledgers_checked > 0
    }

    /// For people and programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let ms = |time: Duration| time.as_millis() as u64;
        let faults: BTreeMap<&str, Value> = self
            .faults
            .iter()
            .map(|(kind, (count, gap))| {
                (kind.name(), json!({ "count": count, "longest_gap_ms": ms(*gap) }))
            })
            .collect();
        let longest_gap = self.faults.values().map(|(_, gap)| ms(*gap)).max();
        json!({
            "seed": self.seed,
            "faults": faults,
            "overlaps": self.overlaps,
            "skipped": self.skipped,
            "network": self.network,
            "messages": {
                "stored": self.summary.stored,
                "acknowledged": self.summary.acknowledged,
                "lost": self.lost,
                "redelivered": self.summary.redelivered,
                "redelivered_after_receipt": self.summary.came_again,
                "out_of_order": self.summary.out_of_order,
            },
            "longest_gap_ms": longest_gap,
            "longest_wait_ms": ms(self.summary.longest_wait),
            "read_back": self.is_read_back,
            "replication_restored": self.replication_restored,
            "ledgers": { "checked": self.ledgers_checked, "broken": self.ledgers_broken },
            "panics": self.panics,
            "broken": self.broken,
            "good": self.is_good(),
        })
    }
}
