//! [`Widening`]: when a ledger that was created with fewer bookies than it should have is followed
//! by one that gets them all.
//!
//! Such a ledger has fewer copies for as long as it is written to, so it shouldn't be the current
//! one for long once the bookies are there again. But bookies that come and go must not make a
//! ledger each time, and the return of one must not make thousands of topics roll at once: each of
//! these costs the metadata three transactions. So each topic that housekeeping finds gets a turn;
//! those for which there is none within [`LONGEST_WAIT`] ask again at the next housekeeping.
//!
//! Invariant: no lock is taken; and a topic whose ledger has all its bookies asks for nothing.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use geminga_proto::env::Monotonic;

/// Least age of a ledger that is followed for this reason.
const LEAST_AGE: Duration = Duration::from_secs(10);
/// Least time between two of them, of all topics.
const PACE: Duration = Duration::from_millis(20);
/// How long a topic waits for its turn at most: as long as housekeeping usually pauses, so that
/// turns follow each other at [`PACE`] without a gap.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The pace of the whole broker.
#[derive(Debug, Default)]
pub struct Widening {
    /// When the next turn is, on the monotonic clock, in nanoseconds.
    next: AtomicU64,
}

impl Widening {
    /// Whether an open ledger of this age may be followed by a wider one.
    #[must_use]
    pub fn is_old_enough(age: Duration) -> bool {
        age >= LEAST_AGE
    }

    /// Takes a turn: how long it is until then. `None`: too many have one already.
    #[must_use]
    pub fn turn(&self, now: Monotonic) -> Option<Duration> {
        let now = nanos(now.saturating_sub(Monotonic::default()));
        let after = |next: u64| {
            let at = next.max(now);
            (at - now < nanos(LONGEST_WAIT)).then(|| at.saturating_add(nanos(PACE)))
        };
        let taken = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after).ok()?;
        Some(Duration::from_nanos(taken.saturating_sub(now)))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic::default().saturating_add(Duration::from_millis(ms))
    }

    #[test]
    fn many_topics_at_once_get_turns_at_the_pace_and_the_rest_asks_again() {
        let widening = Widening::default();
        // Thousands of topics ask at each housekeeping.
        let mut turns = Vec::new();
        for sweep in [60_000, 65_000, 70_000] {
            let waits = (0..2_000).filter_map(|_| widening.turn(at(sweep)));
            turns.extend(waits.map(|wait| at(sweep).saturating_add(wait)));
        }
        assert_eq!(turns.len(), 750);
        assert_eq!(turns[0], at(60_000));
        assert!(turns.windows(2).all(|two| two[1].saturating_sub(two[0]) == PACE));
        // After a pause the next one has its turn at once.
        assert_eq!(widening.turn(at(200_000)), Some(Duration::ZERO));
        assert_eq!(widening.turn(at(200_001)), Some(PACE - Duration::from_millis(1)));
    }

    #[test]
    fn a_young_ledger_waits() {
        assert!(!Widening::is_old_enough(LEAST_AGE - Duration::from_millis(1)));
        assert!(Widening::is_old_enough(LEAST_AGE));
    }
}
