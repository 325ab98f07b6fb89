//! What is wanted here and isn't, since segments were lost: noted like damage, so that repair
//! brings it back.
//!
//! What a lost segment held isn't known here. But the metadata say which entries of closed ledgers
//! this bookie is to have, and what of these is in no index was lost. So each census notes it
//! anew, as long as anything is lost.
//!
//! Invariant: an entry that is listed here is never noted, though it may turn out to be damaged:
//! that is the scrub's to find.

use std::ops::RangeInclusive;

use geminga_proto::id::{EntryId, LedgerId, SegmentId};

use super::Log;
use super::state::{LogState, SealedSegment};
use super::table::SegmentRef;
use crate::gc::Kept;

/// Stands for the segments that are lost: no segment has this id.
const LOST: SegmentId = SegmentId(0);

/// What is known of a ledger's entries without reading an index.
#[derive(Debug, Default)]
struct Listed {
    /// In any order; they may overlap.
    runs: Vec<RangeInclusive<EntryId>>,
    /// Segments that have some of the entries between the first and the last.
    gapped: Vec<(SegmentRef, SealedSegment)>,
}

impl LogState {
    /// Up to which ledger something was lost here, if anything was.
    pub(crate) fn lost_up_to(&self) -> Option<LedgerId> {
        self.limbo_up_to
    }

    /// `None`: another ledger has that id here.
    fn listed(&self, wanted: &Kept) -> Option<Listed> {
        let mut listed = Listed::default();
        let Some(known) = self.table.get(&wanted.ledger) else { return Some(listed) };
        if known.token != wanted.token {
            return None;
        }
        for held in known.refs.iter().filter(|held| held.count > 0) {
            let gapless = held.last_entry.0 - held.first_entry.0 + 1 == u64::from(held.count);
            match self.sealed.get(&held.segment) {
                Some(_) if gapless => listed.runs.push(held.first_entry..=held.last_entry),
                Some(sealed) => listed.gapped.push((*held, *sealed)),
                None => {}
            }
        }
        listed.runs.extend(self.unsealed_runs(wanted.ledger));
        Some(listed)
    }

    /// What a ledger has in segments that aren't sealed.
    fn unsealed_runs(&self, ledger: LedgerId) -> Vec<RangeInclusive<EntryId>> {
        let all = (ledger, EntryId(0))..=(ledger, EntryId(u64::MAX));
        let unsealed = self.sealing.iter().chain([&self.active]);
        let entries = unsealed.flat_map(|unsealed| unsealed.entries.range(all.clone()));
        let mut runs = Vec::new();
        entries.for_each(|((_, entry), _)| push(&mut runs, *entry));
        runs
    }
}

/// Adds an entry to runs, joining it to the last one if it follows.
fn push(runs: &mut Vec<RangeInclusive<EntryId>>, entry: EntryId) {
    match runs.last_mut() {
        Some(last) if last.end().next() == entry => *last = *last.start()..=entry,
        _ => runs.push(entry..=entry),
    }
}

/// What `wanted`, rising and apart, has that none of `listed` has.
fn without(
    wanted: &[RangeInclusive<EntryId>],
    mut listed: Vec<RangeInclusive<EntryId>>,
) -> Vec<RangeInclusive<EntryId>> {
    listed.sort_unstable_by_key(|run| *run.start());
    let mut listed = listed.into_iter().peekable();
    // What is listed so far ends before.
    let mut listed_to = EntryId(0);
    let mut missing = Vec::new();
    for run in wanted {
        let (mut from, last) = ((*run.start()).max(listed_to), *run.end());
        while let Some(there) = listed.next_if(|there| *there.start() <= last) {
            if let Some(before) = there.start().previous().filter(|before| *before >= from) {
                missing.push(from..=before);
            }
            listed_to = listed_to.max(there.end().next());
            from = from.max(listed_to);
        }
        if from <= last {
            missing.push(from..=last);
        }
    }
    missing
}

impl Log {
    /// Notes what of these closed ledgers is in no index here. Reads indexes.
    pub(crate) fn note_missing(&self, wanted: &[Kept]) {
        let mut found = Vec::new();
        for kept in wanted {
            let Some(listed) = self.with_state(|state| state.listed(kept)) else { continue };
            let Listed { mut runs, gapped } = listed;
            for (held, sealed) in &gapped {
                runs.extend(self.runs_of(held, sealed));
            }
            found.push((kept.ledger, without(&kept.entries, runs)));
        }
        let mut state = self.state.lock();
        let before = state.damaged.len();
        state.damaged.forget_segment(LOST);
        for (ledger, missing) in found.iter().filter(|(_, missing)| !missing.is_empty()) {
            for run in missing {
                // What is damaged besides has a segment of its own, which keeps it from being let
                // go.
                for run in state.damaged.others(*ledger, run, LOST) {
                    state.damaged.note(*ledger, run, LOST);
                }
            }
            // It may have come meanwhile.
            for run in state.unsealed_runs(*ledger) {
                state.damaged.forget_entries(*ledger, run, LOST);
            }
        }
        let news = state.damaged.len().saturating_sub(before);
        state.counters.damaged_entries += news;
        drop(state);
        if news > 0 {
            tracing::error!(entries = news, "entries of lost segments are missing here");
        }
    }

    /// Which entries a segment's index lists for a ledger. What can't be read isn't missing but
    /// damaged: all of it, as far as it is known, is taken for listed.
    fn runs_of(&self, held: &SegmentRef, sealed: &SealedSegment) -> Vec<RangeInclusive<EntryId>> {
        let mut runs = Vec::new();
        for position in held.first_index..held.first_index.saturating_add(held.count) {
            match self.listed_at(held.segment, sealed, position) {
                Some((entry, _)) => push(&mut runs, entry),
                None => return vec![held.first_entry..=held.last_entry],
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, last: u64) -> RangeInclusive<EntryId> {
        EntryId(first)..=EntryId(last)
    }

    #[test]
    fn what_is_listed_nowhere_is_missing() {
        let wanted = [run(0, 9), run(20, 29)];
        assert_eq!(without(&wanted, vec![]), wanted);
        assert_eq!(without(&wanted, vec![run(0, 100)]), []);
        let listed = vec![run(25, 40), run(3, 4), run(8, 21), run(3, 3), run(0, 0)];
        assert_eq!(without(&wanted, listed), [run(1, 2), run(5, 7), run(22, 24)]);
        assert_eq!(without(&wanted, vec![run(0, 25), run(2, 3)]), [run(26, 29)]);
    }
}
