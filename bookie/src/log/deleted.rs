//! [`Deleted`]: which ledgers are gone for good, as ranges of ids.
//!
//! Kept in the manifest: sealed segments still have rows of deleted ledgers, and their former
//! owners may still send adds. Ids are handed out in order and never again, so what is deleted
//! grows together into few ranges. Bounded all the same: beyond [`MAX_RANGES`] the ranges with the
//! lowest ids are forgotten. Their ledgers are then as unknown as ones that were never seen.

use std::collections::BTreeMap;

use geminga_proto::id::LedgerId;

/// Most ranges that are kept: 1 MiB of each copy of the manifest.
pub(crate) const MAX_RANGES: usize = 1 << 16;

/// Ids of deleted ledgers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Deleted {
    /// Last id by first id; neither overlapping nor adjacent.
    ranges: BTreeMap<u64, u64>,
}

impl Deleted {
    /// Takes ranges that were stored; `None` unless they are sorted, apart and sensible.
    pub(crate) fn from_ranges(ranges: impl Iterator<Item = (u64, u64)>) -> Option<Self> {
        let mut deleted = Self::default();
        let mut least = 0;
        for (first, last) in ranges {
            if first < least || last < first || last > LedgerId::MAX.0 {
                return None;
            }
            // One id at least lies between two ranges.
            least = last + 2;
            deleted.ranges.insert(first, last);
        }
        Some(deleted)
    }

    pub(crate) fn ranges(&self) -> impl ExactSizeIterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(first, last)| (*first, *last))
    }

    pub(crate) fn contains(&self, ledger: LedgerId) -> bool {
        let below = self.ranges.range(..=ledger.0).next_back();
        below.is_some_and(|(_, last)| ledger.0 <= *last)
    }

    /// The highest of them.
    pub(crate) fn highest(&self) -> Option<LedgerId> {
        self.ranges.last_key_value().map(|(_, last)| LedgerId(*last))
    }

    pub(crate) fn insert(&mut self, ledger: LedgerId) {
        if self.contains(ledger) {
            return;
        }
        let (mut first, mut last) = (ledger.0, ledger.0);
        if let Some((before, end)) = self.ranges.range(..first).next_back()
            && end + 1 == first
        {
            first = *before;
        }
        if let Some(end) = self.ranges.remove(&(last + 1)) {
            last = end;
        }
        self.ranges.insert(first, last);
    }

    /// Forgets the lowest ids beyond `most` ranges.
    pub(crate) fn keep_highest(&mut self, most: usize) {
        while self.ranges.len() > most {
            self.ranges.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_agree_with_a_plain_set_and_are_read_back(
            ids in proptest::collection::vec(0u64..60, 0..80),
        ) {
            let mut deleted = Deleted::default();
            for id in &ids {
                deleted.insert(LedgerId(*id));
            }
            let plain: BTreeSet<u64> = ids.into_iter().collect();
            prop_assert_eq!(deleted.highest(), plain.last().copied().map(LedgerId));
            for id in 0..62 {
                prop_assert_eq!(deleted.contains(LedgerId(id)), plain.contains(&id));
            }
            prop_assert_eq!(Deleted::from_ranges(deleted.ranges()), Some(deleted.clone()));
            let before = deleted.clone();
            deleted.keep_highest(2);
            prop_assert!(deleted.ranges().len() <= 2);
            prop_assert!(deleted.ranges().all(|range| before.ranges().any(|old| old == range)));
        }
    }

    #[test]
    fn ids_in_a_row_are_one_range_in_whatever_order_they_come() {
        let mut deleted = Deleted::default();
        for id in [5, 3, 4, 1, 2, LedgerId::MAX.0] {
            deleted.insert(LedgerId(id));
        }
        let ranges: Vec<_> = deleted.ranges().collect();
        assert_eq!(ranges, [(1, 5), (LedgerId::MAX.0, LedgerId::MAX.0)]);
    }

    #[test]
    fn ranges_out_of_order_or_touching_are_refused() {
        for bad in [[(5, 6), (1, 2)], [(1, 2), (3, 4)], [(2, 1), (5, 6)], [(1, 5), (5, 6)]] {
            assert_eq!(Deleted::from_ranges(bad.into_iter()), None);
        }
        assert_eq!(Deleted::from_ranges([(0, u64::MAX)].into_iter()), None);
    }
}
