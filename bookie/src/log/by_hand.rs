//! [`Turner`]: turns a log without threads, one step at a time, as its `crew` would. For
//! simulations, which decide themselves when a group is written and when the keeper works.

use std::sync::Arc;

use geminga_proto::env::Monotonic;

use super::keeper::Chored;
use super::state::LogState;
use super::writer::NotOpened;
use super::{Hand, Log, Turn};
use crate::done;

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

    /// Opens a group with what waits, or an empty one that closes an idle log, and fills it: from
    /// here on it is in flight. Tells whether there is one; [`Self::finish`] it before the next.
    pub fn begin(&mut self) -> bool {
        let log = Arc::clone(&self.log);
        let mut state = log.state.lock();
        if self.hand.group.is_some() {
            return true;
        }
        let closing = !state.has_work() && self.is_to_close(&state);
        let buffer = std::mem::take(&mut self.hand.buffer);
        let group = match state.open_group(buffer, closing) {
            Ok(group) => self.hand.group.insert(group),
            Err(NotOpened::Nothing(unused)) => {
                self.hand.buffer = unused;
                return false;
            }
            Err(NotOpened::NeedsSegment(unused)) => {
                self.hand.buffer = unused;
                log.without_segment(state);
                return false;
            }
        };
        self.quiet_since = None;
        log.build(&mut state, group);
        let Err(refused) = state.submit(group) else { return true };
        drop(state);
        self.put_back();
        done::deliver(refused);
        false
    }

    /// Writes and syncs the group in flight, and answers.
    pub fn finish(&mut self) {
        let Some(group) = &mut self.hand.group else { return };
        let written = self.log.perform(group);
        let answers = self.log.state.lock().complete(group, written);
        self.put_back();
        done::deliver(answers);
    }

    fn put_back(&mut self) {
        if let Some(group) = self.hand.group.take() {
            self.hand.buffer = group.buffer;
        }
    }

    /// Whether the last group has waited for long enough to be proven by an empty one.
    fn is_to_close(&mut self, state: &LogState) -> bool {
        if !state.unproven || state.poisoned.is_some() {
            self.quiet_since = None;
            return false;
        }
        let now = self.log.env.clock.monotonic();
        let since = *self.quiet_since.get_or_insert(now);
        now.saturating_sub(since) >= self.log.idle_close
    }

    /// Does the most urgent chore. Tells whether there was one.
    pub fn keep(&mut self) -> bool {
        self.log.run_chore() == Chored::Done
    }

    /// Asks the disk what it has left, as the keeper does from time to time.
    pub fn look_at_space(&self) {
        self.log.refresh_space();
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
