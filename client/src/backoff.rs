//! [`Backoff`]: how long to wait before the next attempt.
//!
//! Waits grow by half each, so the wait before an attempt is about a third of all the time before
//! it: an outage is never made much longer than it was, and a long one isn't asked about often.
//! Half of each wait is random, so that clients of a broker that went away don't return at once.
//!
//! Invariants: the first attempt after an orderly end comes at once, and only that one; no wait is
//! longer than [`Backoff::LONGEST`], since longer ones miss short windows of service; a crowd's
//! attempts are spread so that together they stay below a rate.

use std::time::Duration;

use geminga_proto::env::Random;

const FIRST: Duration = Duration::from_millis(5);
/// Added to the least wait for each of a client's producers and consumers that is trying: together
/// they make at most 4,000 attempts a second, however many they are.
const CROWD_STEP: Duration = Duration::from_micros(500);

/// Waits between attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    fresh: bool,
}

impl Backoff {
    /// No wait is longer.
    pub(crate) const LONGEST: Duration = Duration::from_secs(1);

    pub(crate) fn new() -> Self {
        Self { next: FIRST, fresh: true }
    }

    /// The wait before the next attempt. `crowd`: how many others of this client try as well;
    /// `orderly`: a broker said that somebody else is to be asked.
    pub(crate) fn wait(&mut self, random: &dyn Random, crowd: usize, orderly: bool) -> Duration {
        if std::mem::take(&mut self.fresh) && orderly {
            return Duration::ZERO;
        }
        let spread = CROWD_STEP * u32::try_from(crowd).unwrap_or(u32::MAX >> 8).min(1 << 16);
        // The first attempt isn't held back by a crowd: for all of it, it is the hand-over.
        let least = if self.next == FIRST { Duration::ZERO } else { spread };
        let whole = self.next.max(least).min(Self::LONGEST);
        self.next = (self.next * 3 / 2).min(Self::LONGEST);
        let half_us = u64::try_from(whole.as_micros() / 2).unwrap_or(u64::MAX - 1);
        Duration::from_micros(half_us + random.below(half_us + 1))
    }

    /// Starts over, after a success.
    pub(crate) fn reset(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_proto::env::SeededRandom;

    #[test]
    fn waits_grow_by_half_up_to_a_limit_and_at_least_half_of_each_is_kept() {
        let random = SeededRandom::new(1);
        let mut backoff = Backoff::new();
        let mut whole = FIRST;
        for _ in 0..30 {
            let wait = backoff.wait(&random, 0, false);
            assert!(wait >= whole / 2 - Duration::from_micros(1) && wait <= whole, "{wait:?}");
            whole = (whole * 3 / 2).min(Backoff::LONGEST);
        }
        assert_eq!(whole, Backoff::LONGEST);
        backoff.reset();
        assert!(backoff.wait(&random, 0, false) <= FIRST);
    }

    #[test]
    fn only_the_first_attempt_after_an_orderly_end_comes_at_once() {
        let random = SeededRandom::new(2);
        let mut backoff = Backoff::new();
        assert_eq!(backoff.wait(&random, 1000, true), Duration::ZERO);
        for _ in 0..5 {
            assert!(backoff.wait(&random, 0, true) >= FIRST / 2);
        }
        backoff.reset();
        assert_eq!(backoff.wait(&random, 0, true), Duration::ZERO);
    }

    #[test]
    fn an_outage_is_made_little_longer_than_it_was() {
        let random = SeededRandom::new(3);
        for outage_ms in [30_u64, 200, 1200, 3000] {
            let outage = Duration::from_millis(outage_ms);
            let mut late = Duration::ZERO;
            for _ in 0..100 {
                let mut backoff = Backoff::new();
                let (mut at, mut attempts) = (Duration::ZERO, 0);
                while at < outage {
                    at += backoff.wait(&random, 1, false);
                    attempts += 1;
                }
                assert!(at <= outage * 2, "{:?} after {outage:?}", at - outage);
                assert!(attempts <= 20, "{attempts} attempts in {outage:?}");
                late += at - outage;
            }
            assert!(late / 100 <= outage / 3, "{:?} on average after {outage:?}", late / 100);
        }
    }

    #[test]
    fn a_crowd_spreads_its_attempts_after_the_first() {
        let random = SeededRandom::new(4);
        let mut backoff = Backoff::new();
        assert!(backoff.wait(&random, 1000, false) <= FIRST);
        for _ in 0..20 {
            let wait = backoff.wait(&random, 1000, false);
            assert!(wait >= Duration::from_millis(250) && wait <= Backoff::LONGEST, "{wait:?}");
        }
        assert!(backoff.wait(&random, usize::MAX, false) <= Backoff::LONGEST);
    }
}
