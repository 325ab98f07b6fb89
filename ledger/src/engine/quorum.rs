//! Quorum arithmetic: which bookies get an entry, who has answered, and when a fence or a set of
//! *no such entry* answers is complete.
//!
//! Geminga keeps the ensemble as large as the write quorum, where `Qw - Qa + 1` answers cover.
//! The general formula for `E >= Qw` is kept and tested against brute force, because this is
//! where implementations of the protocol have lost data.

use crate::config::MAX_WRITE_QUORUM;

/// A set of positions in an ensemble.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SlotSet(u32);

impl SlotSet {
    /// No position.
    pub const EMPTY: Self = Self(0);

    /// The positions below `count`.
    ///
    /// # Panics
    /// If `count` is above [`MAX_WRITE_QUORUM`], which validated settings never are.
    #[must_use]
    pub fn first(count: u32) -> Self {
        assert!(count <= MAX_WRITE_QUORUM, "an ensemble is limited");
        Self((1 << count) - 1)
    }

    /// Adds a position; true if it was not there.
    pub fn insert(&mut self, slot: usize) -> bool {
        let before = self.0;
        self.0 |= 1 << slot;
        self.0 != before
    }

    /// Removes a position; true if it was there.
    pub fn remove(&mut self, slot: usize) -> bool {
        let before = self.0;
        self.0 &= !(1 << slot);
        self.0 != before
    }

    /// Whether a position is there.
    #[must_use]
    pub fn contains(self, slot: usize) -> bool {
        self.0 & (1 << slot) != 0
    }

    /// How many there are.
    #[must_use]
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The positions that are here and not there.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The positions, rising.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..u32::BITS as usize).filter(move |slot| self.contains(*slot))
    }
}

/// Which positions of an ensemble get an entry: the `write_quorum` that start at the entry's
/// number modulo the ensemble's size, wrapping around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DistributionSchedule {
    /// E.
    pub ensemble: u32,
    /// Qw.
    pub write_quorum: u32,
}

impl DistributionSchedule {
    /// The write set of an entry.
    #[must_use]
    pub fn write_set(self, entry: u64) -> SlotSet {
        let size = u64::from(self.ensemble);
        let mut set = SlotSet::EMPTY;
        for offset in 0..u64::from(self.write_quorum) {
            // The remainder is below `ensemble`, so it fits.
            set.insert(((entry % size + offset) % size) as usize);
        }
        set
    }
}

/// Collects positions until no ack quorum can be formed without one of them: who was fenced, or
/// who said *no such entry*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuorumCoverage {
    schedule: DistributionSchedule,
    ack_quorum: u32,
    covered: SlotSet,
}

impl QuorumCoverage {
    /// Nobody yet.
    #[must_use]
    pub fn new(schedule: DistributionSchedule, ack_quorum: u32) -> Self {
        Self { schedule, ack_quorum, covered: SlotSet::EMPTY }
    }

    /// One more.
    pub fn add(&mut self, slot: usize) {
        self.covered.insert(slot);
    }

    /// Who is in.
    #[must_use]
    pub fn covered(&self) -> SlotSet {
        self.covered
    }

    /// Whether an ack quorum for *any* entry needs somebody who is covered: every write set has
    /// fewer than Qa others left.
    #[must_use]
    pub fn complete(&self) -> bool {
        (0..u64::from(self.schedule.ensemble)).all(|entry| self.complete_for(entry))
    }

    /// Whether an ack quorum for this entry needs somebody who is covered.
    #[must_use]
    pub fn complete_for(&self, entry: u64) -> bool {
        self.schedule.write_set(entry).without(self.covered).len() < self.ack_quorum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every (E, Qw, Qa) up to 6, every subset of covered bookies, every entry: some Qa of the
    /// write set avoid the covered ones, by trying them all.
    fn brute_force(ensemble: u32, write_quorum: u32, ack_quorum: u32, covered: u32) -> Vec<bool> {
        (0..ensemble)
            .map(|entry| {
                let members: Vec<u32> =
                    (0..write_quorum).map(|offset| (entry + offset) % ensemble).collect();
                let escapes = (0..1u32 << write_quorum)
                    .filter(|choice| choice.count_ones() == ack_quorum)
                    .any(|choice| {
                        (0..write_quorum)
                            .filter(|index| choice & (1 << index) != 0)
                            .all(|index| covered & (1 << members[index as usize]) == 0)
                    });
                !escapes
            })
            .collect()
    }

    #[test]
    fn coverage_agrees_with_brute_force_for_every_small_ensemble() {
        let mut compared = 0;
        for ensemble in 1..=6 {
            for write_quorum in 1..=ensemble {
                for ack_quorum in 1..=write_quorum {
                    for covered in 0..1u32 << ensemble {
                        let schedule = DistributionSchedule { ensemble, write_quorum };
                        let mut coverage = QuorumCoverage::new(schedule, ack_quorum);
                        SlotSet(covered).iter().for_each(|slot| coverage.add(slot));
                        let truth = brute_force(ensemble, write_quorum, ack_quorum, covered);
                        let shape = (ensemble, write_quorum, ack_quorum, covered);
                        assert_eq!(coverage.complete(), truth.iter().all(|ok| *ok), "{shape:?}");
                        for (entry, ok) in truth.iter().enumerate() {
                            assert_eq!(coverage.complete_for(entry as u64), *ok, "{shape:?}");
                        }
                        compared += 1;
                    }
                }
            }
        }
        assert_eq!(compared, 2 + 12 + 48 + 160 + 480 + 1344);
    }

    #[test]
    fn with_a_full_ensemble_coverage_is_write_quorum_minus_ack_quorum_plus_one() {
        for write_quorum in 1..=8 {
            for ack_quorum in 1..=write_quorum {
                let schedule = DistributionSchedule { ensemble: write_quorum, write_quorum };
                let mut coverage = QuorumCoverage::new(schedule, ack_quorum);
                let mut needed = 0;
                while !coverage.complete() {
                    coverage.add(needed as usize);
                    needed += 1;
                }
                assert_eq!(needed, write_quorum - ack_quorum + 1);
            }
        }
    }

    #[test]
    fn ensemble_minus_ack_quorum_plus_one_answers_always_cover() {
        for ensemble in 1..=6 {
            for write_quorum in 1..=ensemble {
                for ack_quorum in 1..=write_quorum {
                    for covered in 0..1u32 << ensemble {
                        if covered.count_ones() < ensemble - ack_quorum + 1 {
                            continue;
                        }
                        let schedule = DistributionSchedule { ensemble, write_quorum };
                        let mut coverage = QuorumCoverage::new(schedule, ack_quorum);
                        SlotSet(covered).iter().for_each(|slot| coverage.add(slot));
                        assert!(coverage.complete());
                    }
                }
            }
        }
    }

    #[test]
    fn an_entry_goes_to_the_write_quorum_that_starts_at_its_number() {
        let schedule = DistributionSchedule { ensemble: 5, write_quorum: 3 };
        assert_eq!(schedule.write_set(0).iter().collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(schedule.write_set(9).iter().collect::<Vec<_>>(), [0, 1, 4]);
        let whole = DistributionSchedule { ensemble: 3, write_quorum: 3 };
        assert_eq!(whole.write_set(7), SlotSet::first(3));
    }
}
