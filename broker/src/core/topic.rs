//! [`Topic`]: one loaded topic. It takes what producers and consumers want, drives the state
//! machines that decide (`PublishQueue`, `Subscription`), and executes what they ask for.
//!
//! One lock guards a topic's state; it is held for moments and never across an await. Order of
//! locks: topic, then a ledger's writer or the state log, then the tail cache and the budget.
//! Ledger observers and the state log's callbacks come without a lock of theirs and take the
//! topic's. Sinks are called under it.
//!
//! No task runs for an idle topic. What needs waiting (opening, closing, recovering and deleting
//! ledgers) is done by one maintenance task that lives as long as there is something to do.
//!
//! Invariants: receipts are sent in publish order and only for what is under its ledger's LAC; a
//! topic that was closed sends nothing more and never comes back: loading makes another one.

mod consumers;
mod delete;
mod dispatch;
mod load;
mod log;
mod maintenance;
mod observer;
mod producers;
mod read;
mod report;
mod subscriptions;
mod wider;

use std::sync::{Arc, Weak};

use bytes::Bytes;
use geminga_ledger::observer::{StallReason, WriterFailure};
use geminga_proto::entry::inspect_entry;
use geminga_proto::env::Monotonic;
use geminga_proto::id::{EntryId, LedgerId, Position, TopicIncarnation};
use geminga_proto::topic_name::TopicName;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::core::api::{
    OpenProducer, OpenProducerError, ProducerOpened, ProducerSink, PublishError, TopicError,
};
use crate::core::budget::{BytePermit, EntryPermit};
use crate::core::bundle::Bundle;
use crate::core::cache::CachedEntry;
use crate::core::context::{Context, unavailable};
use crate::core::cursor::EntrySpan;
use crate::core::dispatch::ReadyEntry;
use crate::core::managed_ledger::queue::{NewEntry, PendingEntry};
use crate::core::namespace::Namespace;
use crate::core::producer::Producer;
use crate::core::topic::log::{Generation, Log};
use crate::core::topic::producers::{Overdrawn, Producers};
use crate::core::topic::subscriptions::Subscriptions;
use crate::core::topic_map::TopicMap;
use crate::core::watched;

pub use consumers::ConsumerRef;
pub use delete::forget_cursors;
pub use load::{Create, Home};
pub use maintenance::Retired;

/// How far a topic is in its life.
#[derive(Debug)]
enum Status {
    /// In service.
    Serving,
    /// Takes no more; what is under way is finished, ledgers are closed, then it closes with
    /// this. The sender hears how it went.
    Draining(TopicError, Option<oneshot::Sender<Retired>>),
    /// Over.
    Closed(TopicError),
}

/// Counters since the topic was loaded, and rates over the last interval.
#[derive(Debug, Default)]
struct Traffic {
    messages_in: u64,
    bytes_in: u64,
    messages_out: u64,
    bytes_out: u64,
    sampled: Option<Box<Sample>>,
}

/// Counters at the last housekeeping, and the rates since the one before.
#[derive(Debug, Default, Clone, Copy)]
struct Sample {
    at: Monotonic,
    totals: [u64; 4],
    rates: [f64; 4],
}

#[derive(Debug)]
struct State {
    status: Status,
    log: Log,
    producers: Producers,
    subscriptions: Subscriptions,
    /// True while the maintenance task lives.
    maintaining: bool,
    /// True while whoever hands the bundle over keeps from producers and consumers that the topic
    /// has closed: they are to hear of it when the next owner can serve them.
    held: bool,
    /// When somebody last used it.
    last_used: Monotonic,
    traffic: Traffic,
}

/// A loaded topic.
#[derive(Debug)]
pub struct Topic {
    /// Its name.
    pub name: TopicName,
    /// This life of it.
    pub incarnation: TopicIncarnation,
    /// Its namespace.
    pub namespace: Arc<Namespace>,
    /// Its bundle.
    pub bundle: Arc<Bundle>,
    context: Arc<Context>,
    map: Weak<TopicMap>,
    me: Weak<Topic>,
    state: Mutex<State>,
}

impl Topic {
    /// True if it takes requests.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.state.lock().status, Status::Serving) && !self.bundle.has_ended()
    }

    /// Why it takes no requests.
    fn refusal(state: &State) -> Result<(), TopicError> {
        match &state.status {
            Status::Serving => Ok(()),
            Status::Draining(error, _) | Status::Closed(error) => Err(error.clone()),
        }
    }

    /// Why it takes no acknowledgements: while it is handed over, they go on for as long as its
    /// ledgers are being closed.
    fn ack_refusal(state: &State) -> Result<(), TopicError> {
        match &state.status {
            Status::Draining(..) if state.held => Ok(()),
            _ => Self::refusal(state),
        }
    }

    /// Connects a producer.
    ///
    /// # Errors
    /// [`OpenProducerError`] if the name is taken or the topic can't be used.
    pub fn open_producer(
        &self,
        open: OpenProducer,
        sink: Arc<dyn ProducerSink>,
    ) -> Result<(Producer, ProducerOpened), OpenProducerError> {
        let Some(topic) = self.me.upgrade() else { return Err(TopicError::ShuttingDown.into()) };
        let context = &self.context;
        let config = &context.config;
        let name: Arc<str> = if open.name.is_empty() {
            format!("{}-{:016x}", config.broker_id, context.env.random.next_u64()).into()
        } else {
            open.name.as_str().into()
        };
        let (id, now_ms) = (open.producer_id, context.env.clock.wall_ms());
        let mut state = self.state.lock();
        Self::refusal(&state)?;
        if state.producers.is_taken(&name) {
            return Err(OpenProducerError::Busy(name.to_string()));
        }
        if state.producers.len() >= config.max_producers_per_topic {
            let limit = config.max_producers_per_topic;
            return Err(unavailable(format!("it has {limit} producers, which is the limit")).into());
        }
        state.last_used = context.env.clock.monotonic();
        let number = state.producers.add(open, Arc::clone(&name), Arc::clone(&sink), now_ms);
        drop(state);
        context.metrics.producers.inc();
        let opened =
            ProducerOpened { name: name.to_string(), credit_bytes: config.producer_credit_bytes };
        Ok((Producer::new(topic, number, id, sink), opened))
    }

    /// Disconnects a producer.
    pub fn close_producer(&self, number: u64) {
        let mut state = self.state.lock();
        state.last_used = self.context.env.clock.monotonic();
        if state.producers.remove(number) {
            self.context.metrics.producers.dec();
        }
    }

    /// Tells when all entries of a producer have their outcome; `None`: they have it.
    pub fn when_producer_idle(&self, number: u64) -> Option<oneshot::Receiver<()>> {
        self.state.lock().producers.when_idle(number)
    }

    /// Publishes an entry for a producer.
    ///
    /// # Errors
    /// [`PublishError`] if it is refused, for the sink. `Ok` also if the topic has closed: the
    /// sink was told that then.
    pub fn publish(
        &self,
        producer: u64,
        sequence_id: u64,
        entry: Bytes,
        permit: BytePermit,
    ) -> Result<(), PublishError> {
        let config = &self.context.config;
        let (bytes, limit) = (entry.len() as u64, u64::from(config.max_message_bytes));
        if bytes > limit {
            return Err(PublishError::TooLarge { bytes, limit });
        }
        let summary = inspect_entry(&entry, config.max_messages_per_batch)?;
        let clock = &self.context.env.clock;
        let (now_ms, now) = (clock.wall_ms(), clock.monotonic());
        let mut state = self.state.lock();
        if Self::refusal(&state).is_err() {
            return Ok(());
        }
        if state.log.storage_full {
            return Err(PublishError::StorageFull);
        }
        let credit = config.producer_credit_bytes;
        match state.producers.charge(producer, bytes, credit) {
            Ok(()) => {}
            Err(Overdrawn::Gone) => return Ok(()),
            Err(Overdrawn::Credit) => return Err(PublishError::Credit { credit }),
        }
        let messages = summary.messages;
        let new = NewEntry { producer, sequence_id, messages, entry, permit };
        state.log.queue.push(new, now_ms);
        state.last_used = now;
        state.log.pump(now);
        self.maintain(&mut state, now);
        Ok(())
    }

    /// Every entry of a ledger up to `lac` is durable.
    fn confirmed(&self, generation: Generation, lac: EntryId) {
        let now = self.context.env.clock.monotonic();
        let mut state = self.state.lock();
        if !state.log.is_current(generation) || matches!(state.status, Status::Closed(_)) {
            return;
        }
        let Some(ledger) = state.log.current.as_ref().map(|current| current.id) else { return };
        self.confirm_up_to(&mut state, ledger, lac);
        state.log.pump(now);
        self.maintain(&mut state, now);
    }

    /// Sends receipts for what is confirmed, wakes subscriptions and fills the cache.
    fn confirm_up_to(&self, state: &mut State, ledger: LedgerId, lac: EntryId) {
        let State { log, producers, subscriptions, traffic, .. } = state;
        let wanted = subscriptions.has_consumers();
        let (mut messages, mut bytes, mut stored_bytes, mut entries) = (0_u64, 0_u64, 0_u64, 0);
        let mut fresh = Vec::new();
        let mut last = None;
        for (entry, pending) in log.queue.confirm(lac) {
            let position = Position::new(ledger, entry);
            producers.confirmed(&pending, position);
            messages += u64::from(pending.messages);
            bytes += u64::from(pending.entry_bytes);
            entries += 1;
            last = Some(position);
            if wanted {
                stored_bytes += pending.payload.len() as u64;
                let PendingEntry { first_index, messages, payload, permit, .. } = pending;
                fresh.push((entry, CachedEntry { payload, first_index, messages }, permit));
            }
        }
        let Some(last) = last else { return };
        log.last_confirmed = Some(last);
        producers.flush();
        traffic.messages_in += messages;
        traffic.bytes_in += bytes;
        let metrics = &self.context.metrics;
        metrics.messages_in.inc_by(messages);
        metrics.bytes_in.inc_by(bytes);
        metrics.entries_in.inc_by(entries);
        let at_once =
            wanted && subscriptions.slots.values().any(|slot| slot.subscription.wants_tail());
        // Without room in the egress budget, subscriptions read when there is some.
        let room = at_once.then(|| self.context.budget.try_acquire_egress(stored_bytes)).flatten();
        let ready = room.map(|mut room| {
            let ready = |(entry, cached, _): &(EntryId, CachedEntry, BytePermit)| ReadyEntry {
                span: EntrySpan {
                    position: Position::new(ledger, *entry),
                    first_index: cached.first_index,
                    messages: cached.messages,
                },
                permit: EntryPermit::from(room.split(cached.payload.len() as u64)),
                payload: cached.payload.clone(),
            };
            fresh.iter().map(ready).collect::<Vec<_>>()
        });
        self.wake(state, &ready.unwrap_or_default());
        self.cache_unread(state, ledger, fresh);
        if matches!(state.status, Status::Draining(..)) && state.log.queue.is_empty() {
            self.close_clients(state);
        }
    }

    /// Keeps what some consumer has still to read, and lets go of what all have read.
    fn cache_unread(
        &self,
        state: &mut State,
        ledger: LedgerId,
        mut fresh: Vec<(EntryId, CachedEntry, BytePermit)>,
    ) {
        let State { log, subscriptions, .. } = state;
        if let Some(lowest) = subscriptions.lowest_read() {
            fresh.retain(|(entry, ..)| Position::new(ledger, *entry) >= lowest);
            if let (Some(first), Some(last)) = (fresh.first(), fresh.last()) {
                log.cached(ledger, first.0, last.0);
                self.context.cache.insert(ledger, fresh);
            }
        }
        self.forget_read(log, subscriptions);
    }

    /// Lets the cache go of what all consumers have read.
    fn forget_read(&self, log: &mut Log, subscriptions: &Subscriptions) {
        if log.has_cached()
            && let Some((ledger, end)) = log.forget_cached(subscriptions.lowest_read())
        {
            self.context.cache.forget_before(ledger, end);
        }
    }

    /// Tells all subscriptions where the topic ends, with the entries that came last if they are
    /// at hand.
    fn wake(&self, state: &mut State, ready: &[ReadyEntry]) {
        let State { log, subscriptions, traffic, .. } = state;
        let end = log.end();
        let mut commands = Vec::new();
        for slot in subscriptions.slots.values_mut() {
            if !ready.is_empty() && slot.subscription.wants_tail() {
                slot.subscription.tail(ready, end, &mut commands);
            } else {
                slot.subscription.confirmed(end, &mut commands);
            }
            if !commands.is_empty() {
                self.execute(log, slot, traffic, &mut commands, None);
            }
        }
    }

    /// The ledger that takes appends has failed.
    fn ledger_failed(&self, generation: Generation, failure: WriterFailure) {
        if failure == WriterFailure::Panicked {
            // Whichever it was: what the topic made of the news may be half done.
            self.fail_inside("what writes or hears of a ledger");
            return;
        }
        let mut state = self.state.lock();
        if !state.log.is_current(generation) || matches!(failure, WriterFailure::Closed) {
            return;
        }
        match failure {
            WriterFailure::Fenced | WriterFailure::Deleted => {
                drop(state);
                self.fail(&TopicError::Fenced);
            }
            WriterFailure::QuorumLost
            | WriterFailure::Diverged
            | WriterFailure::Panicked
            | WriterFailure::Closed => {
                state.log.failed = Some(failure);
                self.maintain(&mut state, self.context.env.clock.monotonic());
            }
        }
    }

    /// The open ledger stands still: tells producers why.
    fn delayed(&self, generation: Generation, reason: StallReason) {
        let state = self.state.lock();
        if state.log.is_current(generation) {
            state.producers.delayed(&unavailable(reason));
        }
    }

    /// Producers whose entries wait for the end of a failed ledger, or for a first one, hear why.
    fn tell_waiting(&self, holds_up: bool, failures: u32, why: &str) {
        let state = self.state.lock();
        let log = &state.log;
        if holds_up && failures > 1 && (log.failed.is_some() || log.current.is_none()) {
            state.producers.delayed(&unavailable(why));
        }
    }

    /// The bookies are full, or have space again.
    fn storage_full(&self, generation: Generation, full: bool) {
        let now = self.context.env.clock.monotonic();
        let mut state = self.state.lock();
        if !state.log.is_current(generation) || state.log.storage_full == full {
            return;
        }
        tracing::warn!(topic = %self.name, full, "the storage's fill has passed its mark");
        state.log.storage_full = full;
        state.log.pump(now);
        self.maintain(&mut state, now);
    }

    /// Gives the topic up at once: producers and consumers are closed with `error`, and ledgers
    /// are left to the recovery of whoever loads it next.
    pub fn fail(&self, error: &TopicError) {
        let mut state = self.state.lock();
        if matches!(state.status, Status::Closed(_)) {
            return;
        }
        tracing::warn!(topic = %self.name, %error, "topic given up");
        self.context.metrics.topics_failed.inc();
        self.close_state(&mut state, error);
        drop(state);
        let (Some(map), Some(me)) = (self.map.upgrade(), self.me.upgrade()) else { return };
        map.remove(&me);
        if *error == TopicError::Fenced && !self.bundle.has_ended() {
            // Whoever took the topic over has probably taken the bundle: a zombie that only
            // loaded its topics again would take them back and forth.
            let bundle = Arc::clone(&self.bundle);
            self.context.runtime.spawn(async move {
                if bundle.is_lost().await {
                    map.end_bundle(&bundle, &TopicError::NotOwner);
                }
            });
        }
    }

    /// Closes producers and consumers and lets go of everything.
    fn close_state(&self, state: &mut State, error: &TopicError) {
        let status = std::mem::replace(&mut state.status, Status::Closed(error.clone()));
        self.close_with(state, error);
        state.log.queue.drain().for_each(drop);
        for ledger in [&mut state.log.current, &mut state.log.next, &mut state.log.closing] {
            if let Some(ledger) = ledger.take() {
                self.context.cache.forget(ledger.id);
            }
        }
        if let Status::Draining(_, Some(done)) = status {
            // Nobody listens if the caller was dropped meanwhile.
            let _ = done.send(Retired::Abandoned);
        }
    }

    /// Closes producers and consumers of a topic that is draining.
    fn close_clients(&self, state: &mut State) {
        if let Err(error) = Self::refusal(state) {
            self.close_with(state, &error);
        }
    }

    /// Tells producers and consumers that the topic, which was handed over, has closed.
    pub fn dismiss(&self, error: &TopicError) {
        let mut state = self.state.lock();
        state.held = false;
        self.close_with(&mut state, error);
    }

    fn close_with(&self, state: &mut State, error: &TopicError) {
        if state.held {
            return;
        }
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let metrics = &self.context.metrics;
        metrics.producers.dec_by(gauge(state.producers.close(error)));
        metrics.consumers.dec_by(gauge(state.subscriptions.close(error)));
    }

    /// Starts the maintenance task if there is something to do and none lives.
    fn maintain(&self, state: &mut State, now: Monotonic) {
        if !state.maintaining && self.has_work(state, now) {
            self.start_maintenance(state);
        }
    }

    fn start_maintenance(&self, state: &mut State) {
        let Some(topic) = self.me.upgrade() else { return };
        state.maintaining = true;
        let failing = Arc::clone(&topic);
        let panicked = move || {
            failing.fail_inside("its maintenance");
            failing.state.lock().maintaining = false;
        };
        watched::spawn(&self.context.runtime, "maintenance", maintenance::run(topic), panicked);
    }

    /// Gives the topic up because something of it panicked: loading it again begins anew.
    pub fn fail_inside(&self, what: &str) {
        self.fail(&unavailable(format!("{what} failed inside the broker")));
    }

    /// Runs a task of the topic; should it panic, the topic is given up.
    fn spawn_watched(&self, what: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let topic = self.me.clone();
        let panicked = move || {
            if let Some(topic) = topic.upgrade() {
                topic.fail_inside(what);
            }
        };
        watched::spawn(&self.context.runtime, what, task, panicked);
    }
}
