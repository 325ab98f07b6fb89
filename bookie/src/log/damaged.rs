//! [`Damaged`]: entries that are known to be damaged here, until they are written anew or deleted.
//!
//! Kept in memory alone: what a start doesn't know, the next read or scrub finds again. Bounded:
//! beyond [`MAX_ENTRIES`] more is left for a later scrub, which finds it again.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use geminga_proto::id::{EntryId, LedgerId, SegmentId};

/// Most entries that are kept.
const MAX_ENTRIES: usize = 1 << 16;

/// A run of damaged entries of one ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRange {
    /// The ledger.
    pub ledger: LedgerId,
    /// Its entries.
    pub entries: RangeInclusive<EntryId>,
}

/// What is damaged.
#[derive(Debug, Default)]
pub(crate) struct Damaged {
    /// In which segment the copy lies.
    entries: BTreeMap<(LedgerId, EntryId), SegmentId>,
}

impl Damaged {
    /// Notes a damaged entry; true if it is news.
    pub fn note(&mut self, ledger: LedgerId, entry: EntryId, segment: SegmentId) -> bool {
        if self.is_full() && !self.entries.contains_key(&(ledger, entry)) {
            return false;
        }
        self.entries.insert((ledger, entry), segment).is_none()
    }

    /// A whole copy is durable.
    pub fn mended(&mut self, ledger: LedgerId, entry: EntryId) {
        if !self.entries.is_empty() {
            self.entries.remove(&(ledger, entry));
        }
    }

    /// A ledger is gone.
    pub fn forget(&mut self, ledger: LedgerId) {
        if !self.entries.is_empty() {
            self.entries.retain(|(of, _), _| *of != ledger);
        }
    }

    /// What a segment has of a ledger counts no more.
    pub fn forget_in(&mut self, ledger: LedgerId, segment: SegmentId) {
        if !self.entries.is_empty() {
            self.entries.retain(|(of, _), at| *of != ledger || *at != segment);
        }
    }

    /// True if no more can be noted.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= MAX_ENTRIES
    }

    pub fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Segments with a damaged entry that is nowhere else.
    pub fn segments(&self) -> BTreeSet<SegmentId> {
        self.entries.values().copied().collect()
    }

    /// All of it as runs, at most so many.
    pub fn ranges(&self, most: usize) -> Vec<DamagedRange> {
        let mut ranges: Vec<DamagedRange> = Vec::new();
        for (ledger, entry) in self.entries.keys() {
            let joins = ranges
                .last_mut()
                .filter(|last| last.ledger == *ledger && last.entries.end().next() == *entry);
            if let Some(last) = joins {
                last.entries = *last.entries.start()..=*entry;
            } else if ranges.len() < most {
                ranges.push(DamagedRange { ledger: *ledger, entries: *entry..=*entry });
            } else {
                break;
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(entries: &[(u64, u64)]) -> Damaged {
        let mut damaged = Damaged::default();
        for (ledger, entry) in entries {
            assert!(damaged.note(LedgerId(*ledger), EntryId(*entry), SegmentId(ledger + 10)));
        }
        damaged
    }

    #[test]
    fn neighbours_are_one_run() {
        let damaged = noted(&[(1, 3), (1, 5), (1, 4), (2, 6), (2, 8)]);
        let ranges: Vec<_> = damaged
            .ranges(10)
            .into_iter()
            .map(|range| (range.ledger.0, range.entries.start().0, range.entries.end().0))
            .collect();
        assert_eq!(ranges, [(1, 3, 5), (2, 6, 6), (2, 8, 8)]);
        assert_eq!(damaged.ranges(1).len(), 1);
        assert_eq!(damaged.segments(), BTreeSet::from([SegmentId(11), SegmentId(12)]));
    }

    #[test]
    fn what_is_mended_or_deleted_is_not_damaged_any_more() {
        let mut damaged = noted(&[(1, 3), (1, 5), (2, 6)]);
        assert!(!damaged.note(LedgerId(1), EntryId(3), SegmentId(9)), "it is known");
        damaged.mended(LedgerId(1), EntryId(3));
        damaged.forget(LedgerId(2));
        assert_eq!(damaged.len(), 1);
    }

    #[test]
    fn no_more_than_can_be_kept_is_noted() {
        let mut damaged = Damaged::default();
        for entry in 0..=MAX_ENTRIES as u64 {
            damaged.note(LedgerId(1), EntryId(entry), SegmentId(1));
        }
        assert_eq!(damaged.len(), MAX_ENTRIES as u64);
        damaged.mended(LedgerId(1), EntryId(0));
        assert!(damaged.note(LedgerId(1), EntryId(MAX_ENTRIES as u64), SegmentId(1)));
    }
}
