//! What a topic says about itself, and what housekeeping does with it.

use std::time::Duration;

use geminga_proto::env::Monotonic;
use tokio::sync::oneshot;

use crate::core::api::TopicError;
use crate::core::metrics::Metrics;
use crate::core::stats::{LedgerStats, SubscriptionStats, TopicInternalStats, TopicStats};
use crate::core::topic::log::OpenLedger;
use crate::core::topic::{Retired, Sample, State, Status, Topic, Traffic};

/// What a topic has in use that would keep it from being deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Users {
    /// Producers connected.
    pub producers: usize,
    /// Consumers attached.
    pub consumers: usize,
    /// Subscriptions.
    pub subscriptions: usize,
}

impl Traffic {
    fn totals(&self) -> [u64; 4] {
        [self.messages_in, self.bytes_in, self.messages_out, self.bytes_out]
    }

    /// Computes the rates since the last call. Topics without traffic keep nothing.
    fn sample(&mut self, now: Monotonic) {
        let totals = self.totals();
        if totals == [0; 4] {
            return;
        }
        let last = self.sampled.as_deref().copied().unwrap_or_default();
        let seconds = now.saturating_sub(last.at).as_secs_f64().max(0.001);
        let mut rates = [0.0; 4];
        for ((rate, total), before) in rates.iter_mut().zip(totals).zip(last.totals) {
            *rate = (total - before) as f64 / seconds;
        }
        if self.sampled.is_none() {
            rates = [0.0; 4];
        }
        self.sampled = Some(Box::new(Sample { at: now, totals, rates }));
    }
}

impl Topic {
    /// The broker's counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.context.metrics
    }

    /// Who uses it.
    pub(super) fn users(state: &State) -> Users {
        Users {
            producers: state.producers.len(),
            consumers: state.subscriptions.consumers(),
            subscriptions: state.subscriptions.slots.len(),
        }
    }

    /// Statistics for people.
    ///
    /// # Errors
    /// [`TopicError`] if it has closed.
    pub fn stats(&self) -> Result<TopicStats, TopicError> {
        let state = self.state.lock();
        Self::refusal(&state)?;
        let subscriptions = self.subscription_stats(&state);
        let State { log, producers, traffic, .. } = &*state;
        let rates = traffic.sampled.as_ref().map(|sample| sample.rates).unwrap_or_default();
        let backlog = subscriptions.iter().map(|(_, stats)| stats.backlog_bytes).max();
        Ok(TopicStats {
            msg_in_counter: traffic.messages_in,
            bytes_in_counter: traffic.bytes_in,
            msg_out_counter: traffic.messages_out,
            bytes_out_counter: traffic.bytes_out,
            msg_rate_in: rates[0],
            msg_throughput_in: rates[1],
            msg_rate_out: rates[2],
            msg_throughput_out: rates[3],
            storage_bytes: log.bytes(),
            backlog_bytes: backlog.unwrap_or_default(),
            pending_bytes: log.queue.pending_bytes(),
            storage_full: log.storage_full,
            publishers: producers.stats(self.context.config.producer_credit_bytes),
            subscriptions,
        })
    }

    fn subscription_stats(&self, state: &State) -> Vec<(String, SubscriptionStats)> {
        let slots = state.subscriptions.slots.iter();
        slots.map(|(name, slot)| (name.to_string(), slot.stats(&state.log))).collect()
    }

    /// Subscriptions with their statistics.
    ///
    /// # Errors
    /// [`TopicError`] if it has closed.
    pub fn subscriptions(&self) -> Result<Vec<(String, SubscriptionStats)>, TopicError> {
        let state = self.state.lock();
        Self::refusal(&state)?;
        Ok(self.subscription_stats(&state))
    }

    /// How it is stored.
    ///
    /// # Errors
    /// [`TopicError`] if it has closed.
    pub fn internal_stats(&self) -> Result<TopicInternalStats, TopicError> {
        let state = self.state.lock();
        Self::refusal(&state)?;
        let log = &state.log;
        let closed = log.ledgers.list.iter().map(|ledger| LedgerStats {
            ledger: ledger.ledger,
            entries: ledger.entries,
            bytes: ledger.bytes,
            closed: true,
        });
        let open = |ledger: &OpenLedger| LedgerStats {
            ledger: ledger.id,
            entries: ledger.entries,
            bytes: ledger.bytes,
            closed: false,
        };
        let own = [&log.closing, &log.current, &log.next].into_iter().flatten();
        let current = log.current.as_deref();
        let cursors = state.subscriptions.slots.iter();
        Ok(TopicInternalStats {
            entries: log.ledgers.list.entries()
                + log.closing.iter().chain(&log.current).map(|ledger| ledger.entries).sum::<u64>(),
            total_bytes: log.bytes(),
            current_ledger_entries: current.map_or(0, |ledger| ledger.entries),
            current_ledger_bytes: current.map_or(0, |ledger| ledger.bytes),
            last_confirmed: log.last_confirmed,
            next_index: log.end().next_index,
            state: log.state(),
            ledgers: closed.chain(own.map(|ledger| open(ledger))).collect(),
            cursors: cursors
                .map(|(name, slot)| (name.to_string(), slot.cursor_stats(log)))
                .collect(),
        })
    }

    /// Looks after ledgers and memory. Answers true if nobody has used the topic for long; never
    /// while the metadata is away, without which it couldn't be loaded again.
    pub fn keep_house(&self, now: Monotonic, unload_after: Duration) -> bool {
        let mut state = self.state.lock();
        if !matches!(state.status, Status::Serving) {
            return false;
        }
        if !state.maintaining && (self.has_work(&state, now) || self.trimmable(&state) > 0) {
            self.start_maintenance(&mut state);
        }
        self.ask_for_wider(&mut state, now);
        state.traffic.sample(now);
        state.log.queue.shrink();
        state.producers.shrink();
        for slot in state.subscriptions.slots.values_mut() {
            match &mut slot.ahead {
                Some(ahead) if ahead.stale => slot.ahead = None,
                Some(ahead) => ahead.stale = true,
                None => {}
            }
        }
        let idle = now.saturating_sub(state.last_used) > unload_after && Self::unused(&state);
        idle && !self.context.health.is_away()
    }

    fn unused(state: &State) -> bool {
        matches!(state.status, Status::Serving)
            && !state.maintaining
            && state.producers.is_empty()
            && state.log.queue.is_empty()
            && state.subscriptions.are_idle()
    }

    /// True if nobody uses it and nothing is under way.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        Self::unused(&self.state.lock())
    }

    /// Takes no more requests; what is under way is finished, ledgers are closed, and then the
    /// topic closes with `error`. `None`: it is closing or has closed already.
    pub fn drain(&self, error: TopicError) -> Option<oneshot::Receiver<Retired>> {
        self.begin_draining(error, false)
    }

    /// As [`Self::drain`], but producers and consumers hear nothing until [`Self::dismiss`], which
    /// has to follow whatever this answers.
    pub fn drain_quietly(&self, error: TopicError) -> Option<oneshot::Receiver<Retired>> {
        self.begin_draining(error, true)
    }

    fn begin_draining(&self, error: TopicError, held: bool) -> Option<oneshot::Receiver<Retired>> {
        let mut state = self.state.lock();
        if !matches!(state.status, Status::Serving) {
            return None;
        }
        state.held = held;
        let (sender, receiver) = oneshot::channel();
        state.status = Status::Draining(error, Some(sender));
        if state.log.queue.is_empty() {
            self.close_clients(&mut state);
        }
        if !state.maintaining {
            self.start_maintenance(&mut state);
        }
        Some(receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fixed part of what an idle topic costs; its names, list of ledgers and subscriptions
    /// come on top.
    #[test]
    fn an_idle_topic_is_small() {
        assert!(size_of::<Topic>() <= 1_024, "{} bytes", size_of::<Topic>());
    }
}
