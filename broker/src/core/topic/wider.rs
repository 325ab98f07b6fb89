//! How a topic whose ledger has too few bookies gets one that has them all: housekeeping asks for a
//! turn, and once that has come, maintenance opens the next ledger.
//!
//! Publishing and confirming ask for nothing of this.

use geminga_proto::env::Monotonic;

use crate::core::topic::log::{Log, Wider};
use crate::core::topic::{State, Topic};
use crate::core::widening::Widening;

impl Topic {
    /// Whether a ledger with too few bookies could be followed by one that gets them all. Asks
    /// placement: not for each publish.
    pub(super) fn could_be_wider(&self, log: &Log, now: Monotonic) -> bool {
        let Some(current) = &log.current else { return false };
        let (context, age) = (&self.context, now.saturating_sub(current.opened));
        (log.may_roll() && log.failed.is_none() && current.entries > 0)
            && Widening::is_old_enough(age)
            && !context.health.is_away()
            && context.ledgers.could_be_wider(&current.writer)
    }

    /// Takes a turn at getting a wider ledger, if there is one to be had.
    pub(super) fn ask_for_wider(&self, state: &mut State, now: Monotonic) {
        if state.log.wider != Wider::No || !self.could_be_wider(&state.log, now) {
            return;
        }
        let Some(wait) = self.context.widening.turn(now) else { return };
        state.log.wider = Wider::Waits;
        let topic = self.me.clone();
        self.spawn_watched("its widening", async move {
            tokio::time::sleep(wait).await;
            let Some(topic) = topic.upgrade() else { return };
            let now = topic.context.env.clock.monotonic();
            let mut state = topic.state.lock();
            state.log.wider = Wider::Due;
            topic.maintain(&mut state, now);
        });
    }
}
