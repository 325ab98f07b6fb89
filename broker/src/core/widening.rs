//! [`Widening`]: when a ledger that was created with fewer bookies than it should have is followed
//! by one that gets them all.
//!
//! Such a ledger has fewer copies for as long as it is written to, so it shouldn't be the current
//! one for long once the bookies are there again. But bookies that come and go must not make a
//! ledger each time, and the return of one must not make thousands of topics roll at once: each of
//! these costs the metadata three transactions.

use std::time::Duration;

use geminga_ledger::store::LedgerStore;
use geminga_ledger::writer::LedgerWriter;
use geminga_proto::env::Monotonic;
use parking_lot::Mutex;

/// Least age of a ledger that is followed for this reason.
const LEAST_AGE: Duration = Duration::from_secs(10);
/// Least time between two of them, of all topics.
const PACE: Duration = Duration::from_millis(20);

/// The pace of the whole broker.
#[derive(Debug, Default)]
pub struct Widening {
    /// When the next one may begin.
    next: Mutex<Monotonic>,
}

impl Widening {
    /// Whether an open ledger of this age is to be followed by a wider one now.
    #[must_use]
    pub fn is_due(
        &self,
        ledgers: &LedgerStore,
        current: &LedgerWriter,
        age: Duration,
        now: Monotonic,
    ) -> bool {
        self.has_turn(age, now) && ledgers.could_be_wider(current)
    }

    fn has_turn(&self, age: Duration, now: Monotonic) -> bool {
        age >= LEAST_AGE && now >= *self.next.lock()
    }

    /// One begins.
    pub fn begins(&self, now: Monotonic) {
        *self.next.lock() = now.saturating_add(PACE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_young_ledger_waits_and_so_does_one_right_after_another() {
        let widening = Widening::default();
        let at = |ms| Monotonic::default().saturating_add(Duration::from_millis(ms));
        assert!(!widening.has_turn(LEAST_AGE - Duration::from_millis(1), at(60_000)));
        assert!(widening.has_turn(LEAST_AGE, at(60_000)));
        widening.begins(at(60_000));
        assert!(!widening.has_turn(LEAST_AGE, at(60_019)));
        assert!(widening.has_turn(LEAST_AGE, at(60_020)));
    }
}
