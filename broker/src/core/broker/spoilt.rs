//! Which open ledgers have a damaged copy. Repair leaves the last fragment of an open ledger alone,
//! so what is damaged there is mended only when the ledger is closed: its owner follows it with
//! another one, as it does with a ledger that has too few bookies.
//!
//! Looks at what waits for repair a page at a time, so a long queue is looked at slowly, and what
//! is remembered of it is bounded.

use std::collections::BTreeSet;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geminga_meta::keys::{self, Key};
use geminga_meta::record::{Record, RepairReason, RepairRecord};
use geminga_meta::store::{KeyValue, MAX_RANGE};
use geminga_proto::id::LedgerId;

use super::Inner;

/// Pause between two pages.
const PAUSE: Duration = Duration::from_secs(10);
/// Ledgers that are remembered: the newest, since these are the ones that may be open.
const MOST: usize = 10_000;

/// Looks until the broker is gone.
pub async fn run(broker: Weak<Inner>) {
    let mut sweep = Sweep::default();
    loop {
        tokio::time::sleep(PAUSE).await;
        let Some(inner) = broker.upgrade() else { return };
        if inner.stopping.load(Ordering::Acquire) {
            return;
        }
        if inner.context.health.is_away() {
            continue;
        }
        let (context, after) = (&inner.context, sweep.after.as_deref());
        match context.meta.range(keys::REPAIRS, after, MAX_RANGE).await {
            Ok(page) => {
                if let Some(spoilt) = sweep.take(&page.pairs) {
                    context.ledgers.set_spoilt(spoilt);
                }
            }
            Err(error) => tracing::debug!(%error, "what waits for repair can't be read now"),
        }
    }
}

/// One look at the whole queue.
#[derive(Debug, Default)]
struct Sweep {
    /// The last key that was seen.
    after: Option<String>,
    found: BTreeSet<LedgerId>,
}

impl Sweep {
    /// Takes in a page; answers what was found once it was the last one.
    fn take(&mut self, page: &[KeyValue]) -> Option<BTreeSet<LedgerId>> {
        self.found.extend(page.iter().filter_map(spoilt));
        while self.found.len() > MOST {
            self.found.pop_first();
        }
        self.after = page.last().map(|pair| pair.key.clone());
        if page.len() >= MAX_RANGE {
            return None;
        }
        self.after = None;
        Some(std::mem::take(&mut self.found))
    }
}

/// The ledger of a task, if a copy of it is damaged. What can't be read is told elsewhere.
fn spoilt(pair: &KeyValue) -> Option<LedgerId> {
    let Some(Key::Repair(ledger)) = Key::parse(&pair.key) else { return None };
    let (record, _) = RepairRecord::decode(&pair.value).ok()?;
    let damaged = |reason: &RepairReason| matches!(reason, RepairReason::Damaged { .. });
    record.reasons.iter().any(damaged).then_some(ledger)
}

#[cfg(test)]
mod tests {
    use geminga_meta::record::Nonce;
    use geminga_meta::store::Revision;
    use geminga_proto::env::Env;
    use geminga_proto::id::{BookieId, EntryId};

    use super::*;

    fn page(ledgers: std::ops::Range<u64>) -> Vec<KeyValue> {
        let bookie = BookieId::new("bookie-1").expect("valid");
        let pair = |ledger: u64| {
            // Every other one only lacks copies.
            let reason = match ledger % 2 {
                0 => {
                    let (bookie, first, last) = (bookie.clone(), EntryId(0), EntryId(1));
                    RepairReason::Damaged { bookie, first, last }
                }
                _ => RepairReason::AckQuorumOnly,
            };
            let record = RepairRecord::new(&[reason], 0);
            let value = record.encode(Nonce::new(&*Env::system().random)).expect("valid");
            let key = keys::repair(LedgerId(ledger));
            KeyValue { key, value, modified: Revision(1), lease: None }
        };
        ledgers.map(pair).collect()
    }

    #[test]
    fn a_long_queue_is_taken_in_by_pages_and_told_as_a_whole() {
        let (first, all) = (MAX_RANGE as u64, MAX_RANGE as u64 + 7);
        let mut sweep = Sweep::default();
        for _ in 0..2 {
            assert_eq!(sweep.take(&page(0..first)), None);
            assert_eq!(sweep.after, Some(keys::repair(LedgerId(first - 1))));
            let found = sweep.take(&page(first..all)).expect("that was the last page");
            assert!(found.into_iter().eq((0..all).step_by(2).map(LedgerId)));
            assert_eq!(sweep.after, None, "the next one begins anew");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_is_the_newest() {
        let mut sweep = Sweep::default();
        let (pages, len) = (25, MAX_RANGE as u64);
        for number in 0..pages {
            assert_eq!(sweep.take(&page(number * len..(number + 1) * len)), None);
        }
        let found = sweep.take(&[]).expect("that was the last page");
        assert_eq!(found.len(), MOST);
        assert_eq!(found.last(), Some(&LedgerId(pages * len - 2)));
    }
}
