//! [`Turner`]: turns a log without threads, one step at a time, as its `crew` would. For
//! simulations, which decide themselves when a group is written and when the keeper works.

use std::sync::Arc;
use std::time::Duration;

use geminga_proto::env::Monotonic;

use super::keeper::Chored;
use super::{Hand, Log, Turn};

/// What the log threads and the keeper have in hand.
#[derive(Debug)]
pub struct Turner {
    log: Arc<Log>,
    hand: Hand,
    /// Since when nothing was written, if the last group still wants to be proven.
    quiet_since: Option<Monotonic>,
}

impl Turner {
    pub(crate) fn new(log: Arc<Log>) -> Self {
        Self { log, hand: Hand::default(), quiet_since: None }
    }

    /// Writes one group, if there is anything to write or an idle log to close. Tells whether it
    /// did something.
    pub fn write(&mut self) -> bool {
        let state = self.log.state.lock();
        if state.has_work() {
            self.quiet_since = None;
            return self.log.write_group(state, &mut self.hand, false) == Turn::Progress;
        }
        if !state.unproven || state.poisoned.is_some() {
            self.quiet_since = None;
            return false;
        }
        let now = self.log.env.clock.monotonic();
        let since = *self.quiet_since.get_or_insert(now);
        if now.saturating_sub(since) < self.idle_close() {
            return false;
        }
        self.quiet_since = None;
        self.log.write_group(state, &mut self.hand, true) == Turn::Progress
    }

    /// Does the most urgent chore. Tells whether there was one.
    pub fn keep(&mut self) -> bool {
        self.log.run_chore() == Chored::Done
    }

    /// Asks the disk what it has left, as the keeper does from time to time.
    pub fn look_at_space(&self) {
        self.log.refresh_space();
    }

    fn idle_close(&self) -> Duration {
        self.log.idle_close
    }
}

impl Log {
    /// The log without threads: who needs a chore done does it.
    pub(crate) fn by_hand(self) -> Self {
        Self { by_hand: true, ..self }
    }

    /// Writes and answers what was accepted, and takes nothing more.
    pub(crate) fn finish_by_hand(&self) {
        let mut hand = Hand::default();
        loop {
            let mut state = self.state.lock();
            state.closing = true;
            if !state.has_work() {
                return;
            }
            if self.write_group(state, &mut hand, false) == Turn::Blocked
                && self.run_chore() != Chored::Done
            {
                return;
            }
        }
    }
}
