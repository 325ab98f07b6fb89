//! What the keeper does when nothing else is to be done: work that can wait, in small steps.
//!
//! Owns its limits. A step is over in milliseconds, so that a chore never waits for long; its
//! bytes count against `background_bytes_per_s`; and while the log itself writes, a step is
//! followed by a pause of several times what it took. Only when the disk is nearly full, and the
//! work makes room, does it not stand back.

use std::time::Duration;

use geminga_proto::env::Monotonic;

use super::Log;
use super::keeper::{Chored, KEEPER_INTERVAL};
use super::rewrite::Rewriter;
use super::scrub::Scrubber;
use crate::device::DeviceError;

/// While the log writes, a step is followed by a pause of so many times what it took.
const STAND_BACK: u32 = 4;

/// Work that can wait. One thread at a time, the keeper's, does it.
#[derive(Debug)]
pub(super) struct Background {
    pace: Pace,
    rewriter: Option<Rewriter>,
    scrubber: Option<Scrubber>,
    /// The last step was the scrub's turn: neither holds the other up.
    scrubs: bool,
}

/// How fast it may go.
#[derive(Debug)]
struct Pace {
    bytes_per_s: u64,
    /// Nothing is begun before.
    next: Monotonic,
}

impl Pace {
    /// Takes in a step that began at `began` and moved so many bytes.
    fn moved(&mut self, began: Monotonic, now: Monotonic, bytes: u64, stands_back: bool) {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s.max(1));
        let share = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let took = now.saturating_sub(began);
        let pause = if stands_back { took.saturating_mul(STAND_BACK) } else { Duration::ZERO };
        self.next = began.saturating_add(share).max(now.saturating_add(pause));
    }
}

impl Background {
    pub(super) fn new(bytes_per_s: u64) -> Self {
        let pace = Pace { bytes_per_s, next: Monotonic::ZERO };
        Self { pace, rewriter: None, scrubber: None, scrubs: false }
    }
}

/// What came of a step.
pub(super) enum Step {
    /// It read and wrote so many bytes.
    Moved(u64),
    /// There is nothing to do.
    Nothing,
    /// What was to be done can't be done now.
    Rest,
}

impl Log {
    /// Does a step of what can wait, if it may be done now.
    pub(super) fn run_background(&self) -> Chored {
        let mut background = self.background.lock();
        let began = self.env.clock.monotonic();
        if began < background.pace.next {
            return Chored::Later(background.pace.next);
        }
        if self.with_state(|state| state.closing || state.poisoned.is_some()) {
            (background.rewriter, background.scrubber) = (None, None);
            return Chored::Nothing;
        }
        match self.step_in_turn(&mut background) {
            Ok(Step::Nothing) => Chored::Nothing,
            Ok(Step::Rest) => {
                background.pace.next = began.saturating_add(KEEPER_INTERVAL);
                Chored::Later(background.pace.next)
            }
            Ok(Step::Moved(bytes)) => {
                let busy = self.with_state(|state| {
                    (state.in_flight.is_some() || state.has_work()) && !state.no_space
                });
                let now = self.env.clock.monotonic();
                background.pace.moved(began, now, bytes, busy);
                Chored::Done
            }
            Err(error @ DeviceError::TooManyFiles { .. }) => Chored::Starved(error),
            Err(error) => {
                (background.rewriter, background.scrubber) = (None, None);
                self.poison(&error);
                Chored::Done
            }
        }
    }

    /// Rewrites and scrub take turns, as long as both have something to do.
    fn step_in_turn(&self, background: &mut Background) -> Result<Step, DeviceError> {
        let Background { rewriter, scrubber, scrubs, .. } = background;
        // Whoever waits for room waits for nothing else.
        *scrubs = !*scrubs && self.with_state(|state| !state.is_pressed());
        let turned =
            if *scrubs { self.scrub_step(scrubber)? } else { self.rewrite_step(rewriter)? };
        match turned {
            Step::Nothing if *scrubs => self.rewrite_step(rewriter),
            Step::Nothing => self.scrub_step(scrubber),
            turned => Ok(turned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace { bytes_per_s: 1_000, next: Monotonic::ZERO }
    }

    #[test]
    fn bytes_take_their_share_of_a_second() {
        let mut pace = pace();
        let (began, now) = (Duration::from_secs(5), Duration::from_millis(5_010));
        pace.moved(began, now, 500, false);
        assert_eq!(pace.next, Duration::from_millis(5_500));
        // What has taken longer than its share owes nothing.
        pace.moved(began, now, 1, false);
        assert_eq!(pace.next, now);
    }

    #[test]
    fn a_log_that_writes_is_left_most_of_the_time() {
        let mut pace = pace();
        pace.moved(Duration::ZERO, Duration::from_millis(10), 1, true);
        assert_eq!(pace.next, Duration::from_millis(50));
        pace.moved(Duration::ZERO, Duration::from_millis(10), u64::MAX, true);
        assert!(pace.next > Duration::from_secs(1 << 30), "an overflow is no shorter pause");
    }
}
