//! [`NackTracker`]: entries that were handed back and wait out their delay. No I/O, no clock.
//!
//! Invariants: an entry waits once, until the earliest moment it was given; at its limit the
//! entries that have waited longest go early rather than being forgotten.

use std::collections::{BTreeSet, HashMap};

use geminga_proto::env::Monotonic;
use geminga_proto::id::Position;

/// Entries that wait.
const MAX_WAITING: usize = 100_000;

/// Entries that were handed back.
#[derive(Debug, Default)]
pub(super) struct NackTracker {
    by_time: BTreeSet<(Monotonic, Position)>,
    due_at: HashMap<Position, Monotonic>,
}

impl NackTracker {
    /// Hands an entry back at `at`.
    pub(super) fn add(&mut self, position: Position, at: Monotonic) {
        if let Some(known) = self.due_at.get(&position) {
            if *known <= at {
                return;
            }
            self.by_time.remove(&(*known, position));
        }
        self.due_at.insert(position, at);
        self.by_time.insert((at, position));
    }

    /// When the next entry is due; at once if there are too many.
    pub(super) fn next_due(&self) -> Option<Monotonic> {
        if self.by_time.len() > MAX_WAITING {
            return Some(Monotonic::ZERO);
        }
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the entries that are due.
    pub(super) fn take_due(&mut self, now: Monotonic) -> Vec<Position> {
        let mut due = Vec::new();
        while let Some((at, _)) = self.by_time.first()
            && (*at <= now || self.by_time.len() > MAX_WAITING)
        {
            if let Some((_, position)) = self.by_time.pop_first() {
                self.due_at.remove(&position);
                due.push(position);
            }
        }
        due
    }

    /// Forgets everything: a new session delivers it again anyway.
    pub(super) fn clear(&mut self) {
        self.by_time.clear();
        self.due_at.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_proto::id::{EntryId, LedgerId};
    use std::time::Duration;

    fn at(entry: u64) -> Position {
        Position::new(LedgerId(1), EntryId(entry))
    }

    #[test]
    fn an_entry_waits_once_until_its_earliest_moment() {
        let mut nacks = NackTracker::default();
        nacks.add(at(1), Duration::from_secs(5));
        nacks.add(at(1), Duration::from_secs(9));
        nacks.add(at(2), Duration::from_secs(7));
        nacks.add(at(2), Duration::from_secs(4));
        assert_eq!(nacks.next_due(), Some(Duration::from_secs(4)));
        assert_eq!(nacks.take_due(Duration::from_secs(3)), []);
        assert_eq!(nacks.take_due(Duration::from_secs(5)), [at(2), at(1)]);
        assert_eq!(nacks.next_due(), None);
    }

    #[test]
    fn beyond_the_limit_the_oldest_go_early() {
        let mut nacks = NackTracker::default();
        let late = Duration::from_secs(60);
        for entry in 0..=MAX_WAITING as u64 {
            nacks.add(at(entry), late + Duration::from_micros(entry));
        }
        assert_eq!(nacks.next_due(), Some(Duration::ZERO));
        assert_eq!(nacks.take_due(Duration::ZERO), [at(0)]);
        assert!(nacks.next_due() >= Some(late));
    }
}
