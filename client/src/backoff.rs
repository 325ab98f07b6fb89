//! [`Backoff`]: how long to wait before the next attempt. Doubles up to a limit; half of each
//! wait is random, so that the clients of a broker that went away don't all return at once.

use std::time::Duration;

use geminga_proto::env::Random;

const FIRST: Duration = Duration::from_millis(20);

/// Waits between attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Backoff {
    /// No wait is longer. An owner that is killed is replaced within seconds, and one that is
    /// killed again and again is up for moments only: longer waits would miss them for so long
    /// that messages time out.
    pub(crate) const LONGEST: Duration = Duration::from_secs(1);

    pub(crate) fn new() -> Self {
        Self { next: FIRST }
    }

    /// The wait before the next attempt.
    pub(crate) fn wait(&mut self, random: &dyn Random) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(Self::LONGEST);
        let half_us = u64::try_from(whole.as_micros() / 2).unwrap_or(u64::MAX - 1);
        Duration::from_micros(half_us + random.below(half_us + 1))
    }

    /// Starts over, after a success.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_proto::env::SeededRandom;

    #[test]
    fn waits_double_up_to_a_limit_and_at_least_half_of_each_is_kept() {
        let random = SeededRandom::new(1);
        let mut backoff = Backoff::new();
        let mut whole = FIRST;
        for _ in 0..20 {
            let wait = backoff.wait(&random);
            assert!(wait >= whole / 2 && wait <= whole, "{wait:?} of {whole:?}");
            whole = (whole * 2).min(Backoff::LONGEST);
        }
        assert_eq!(whole, Backoff::LONGEST);
        backoff.reset();
        assert!(backoff.wait(&random) <= FIRST);
    }
}
