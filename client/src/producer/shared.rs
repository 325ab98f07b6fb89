//! What a producer's handles, its driver and its link's reading task share.
//!
//! A message is added under one short lock. Whoever fills a batch encodes it, outside the lock,
//! into a slot that keeps its place; entries leave in the order of their slots.
//!
//! Invariants: every message that was taken is resolved exactly once; room in flight is given
//! back exactly when it is; nothing is resolved or called while the lock is held; an entry leaves
//! the queue, its one-way failure is noted and its outcome counts as untold under one lock, so
//! that nobody takes an outcome that is still being told for none.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use geminga_proto::env::Monotonic;
use geminga_proto::topic_name::TopicName;
use geminga_proto::v1;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::ProducerConfig;
use crate::batch::{BatchBuilder, EntryHead, SealedBatch};
use crate::client::ClientInner;
use crate::completion::{Callback, Completion, Outcome, SendFuture};
use crate::compression::Compression;
use crate::error::{ClientError, SendError};
use crate::link::Produce;
use crate::message::Message;
use crate::resend::{ResendQueue, SlotId};
use crate::session;

/// Room that an entry's own metadata may need beyond its messages: names and fixed fields.
const ENTRY_OVERHEAD_BYTES: usize = 1024;

/// How a message's sender hears of its outcome.
pub(crate) enum Reply {
    Future,
    Callback(Callback),
    None,
}

/// An entry's messages, as long as they have no outcome.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) completion: Arc<Completion>,
    pub(super) messages: u32,
    /// Room in flight that they hold.
    bytes: usize,
    pub(super) first_sequence: u64,
}

/// Entries that have left the queue, whose messages are yet to be told.
#[must_use = "their messages would never hear their outcome"]
pub(super) struct Leaving {
    ticket: u64,
    done: Vec<(Pending, Outcome)>,
}

pub(super) type Session = session::Session<Produce>;

pub(super) fn close_frame(producer_id: u64) -> v1::produce_frame::Frame {
    v1::produce_frame::Frame::Close(v1::CloseProducer { producer_id })
}

pub(super) struct State {
    pub(super) batch: BatchBuilder,
    batch_completion: Arc<Completion>,
    batch_bytes: usize,
    /// When the first message of the batch was given: its time runs from then.
    batch_since: Monotonic,
    /// When the batch must leave, if a delay is set and it isn't empty.
    pub(super) batch_deadline: Option<Monotonic>,
    /// A batch waits for the driver to seal it.
    pub(super) seal_due: bool,
    pub(super) queue: ResendQueue<Pending>,
    pub(super) session: Session,
    next_sequence: u64,
    pub(super) name: Arc<str>,
    /// The broker has answered for an entry. The driver takes it.
    pub(super) progress: bool,
    /// The driver has a timer for the oldest entry.
    pub(super) timer_armed: bool,
    pub(super) closing: bool,
    /// Set once: nothing is taken any more. `Closed` if it was closed and is done.
    pub(super) end: Option<ClientError>,
    /// Why the last session ended that was open. The driver takes it.
    pub(super) ended: Option<ClientError>,
    /// What went wrong last, with no receipt since.
    pub(super) last_error: Option<ClientError>,
    /// Everything has its outcome and the session is left.
    pub(super) done: bool,
    one_way_failure: Option<SendError>,
    in_flight_messages: u32,
    /// Tickets of outcomes that are being told.
    telling: BTreeSet<u64>,
    next_ticket: u64,
}

impl State {
    /// Takes entries out of the order, with their outcomes. To be called under the lock under
    /// which they left the queue.
    pub(super) fn leave(&mut self, done: Vec<(Pending, Outcome)>) -> Option<Leaving> {
        if done.is_empty() {
            return None;
        }
        for (pending, outcome) in &done {
            if let Err(error) = outcome
                && pending.completion.has_one_way()
            {
                self.one_way_failure.get_or_insert_with(|| error.clone());
            }
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.telling.insert(ticket);
        Some(Leaving { ticket, done })
    }

    /// True if every message that was taken has heard its outcome.
    pub(super) fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.batch.is_empty() && self.telling.is_empty()
    }
}

/// Entries whose messages are being told. Dropped when they are, even if telling them panics: who
/// flushes or closes waits for it, and senders for the room.
struct Told<'a> {
    shared: &'a Shared,
    ticket: u64,
    messages: u32,
    bytes: usize,
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let Self { shared, ticket, messages, bytes } = *self;
        {
            let mut state = shared.state.lock();
            state.in_flight_messages = state.in_flight_messages.saturating_sub(messages);
            state.telling.remove(&ticket);
            if state.closing && state.is_settled() {
                shared.wake.notify_one();
            }
        }
        shared.told.notify_waiters();
        shared.give_room_back(messages, bytes);
    }
}

pub(crate) struct Shared {
    pub(super) client: Arc<ClientInner>,
    pub(crate) topic: TopicName,
    pub(super) config: ProducerConfig,
    pub(super) state: Mutex<State>,
    /// The broker's limit, known from the first session on. Written with each new session.
    pub(super) max_message_bytes: AtomicUsize,
    /// Wakes the driver.
    pub(super) wake: Notify,
    /// Closed when the producer is.
    pub(super) room_messages: Semaphore,
    pub(super) room_bytes: Semaphore,
    /// Outcomes were told, or the producer is done.
    pub(super) told: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        out.debug_struct("Producer")
            .field("topic", &self.topic.to_string())
            .field("name", &state.name)
            .field("in_flight_messages", &state.in_flight_messages)
            .field("end", &state.end)
            .finish_non_exhaustive()
    }
}

/// A sealed batch with its place in the order.
pub(super) struct Job {
    slot: SlotId,
    sealed: SealedBatch,
    pub(super) first_sequence: u64,
}

impl Shared {
    pub(crate) fn new(
        client: Arc<ClientInner>,
        topic: TopicName,
        config: ProducerConfig,
    ) -> Arc<Self> {
        let state = State {
            batch: BatchBuilder::new(config.limits),
            batch_completion: Arc::default(),
            batch_bytes: 0,
            batch_since: Monotonic::ZERO,
            batch_deadline: None,
            seal_due: false,
            queue: ResendQueue::new(),
            session: Session::None,
            next_sequence: 0,
            name: config.name.as_str().into(),
            progress: false,
            timer_armed: false,
            closing: false,
            end: None,
            ended: None,
            last_error: None,
            done: false,
            one_way_failure: None,
            in_flight_messages: 0,
            telling: BTreeSet::new(),
            next_ticket: 0,
        };
        Arc::new(Self {
            room_messages: Semaphore::new(config.max_in_flight_messages as usize),
            room_bytes: Semaphore::new(config.max_in_flight_bytes as usize),
            client,
            topic,
            config,
            state: Mutex::new(state),
            max_message_bytes: AtomicUsize::new(usize::MAX),
            wake: Notify::new(),
            told: Notify::new(),
        })
    }

    pub(crate) fn name(&self) -> Arc<str> {
        Arc::clone(&self.state.lock().name)
    }

    pub(crate) fn in_flight_messages(&self) -> u32 {
        self.state.lock().in_flight_messages
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.state.lock().session.is_open()
    }

    // ---- room in flight

    fn check_size(&self, message: &Message) -> Result<usize, SendError> {
        let cost = message.cost_bytes();
        let limit = self.max_message_bytes.load(Ordering::Relaxed);
        let room = limit.saturating_sub(ENTRY_OVERHEAD_BYTES);
        if cost > room {
            let bytes = message.payload.len();
            let limit = room.saturating_sub(cost - bytes);
            return Err(SendError::TooLarge { bytes: bytes as u64, limit: limit as u64 });
        }
        Ok(cost)
    }

    /// What is larger than all the room could never get it, so it takes all there is.
    fn permits(&self, cost: usize) -> u32 {
        u32::try_from(cost).unwrap_or(u32::MAX).min(self.config.max_in_flight_bytes)
    }

    fn end_error(&self) -> SendError {
        self.state.lock().end.clone().map_or(SendError::Closed, send_error)
    }

    /// Waits for room for a message, in the order of the calls; answers what it costs.
    pub(crate) async fn room(&self, message: &Message) -> Result<usize, SendError> {
        let cost = self.check_size(message)?;
        let one = self.room_messages.acquire().await.map_err(|_| self.end_error())?;
        let bytes = self.room_bytes.acquire_many(self.permits(cost));
        bytes.await.map_err(|_| self.end_error())?.forget();
        one.forget();
        Ok(cost)
    }

    pub(crate) fn try_room(&self, message: &Message) -> Result<usize, SendError> {
        let cost = self.check_size(message)?;
        let refused = |error| match error {
            tokio::sync::TryAcquireError::Closed => self.end_error(),
            tokio::sync::TryAcquireError::NoPermits => SendError::QueueFull,
        };
        let one = self.room_messages.try_acquire().map_err(refused)?;
        let bytes = self.room_bytes.try_acquire_many(self.permits(cost)).map_err(refused)?;
        bytes.forget();
        one.forget();
        Ok(cost)
    }

    fn give_room_back(&self, messages: u32, bytes: usize) {
        self.room_messages.add_permits(messages as usize);
        self.room_bytes.add_permits(bytes);
    }

    // ---- gathering and sending

    /// Adds a message that has its room. Answers its entry's completion and its place there.
    pub(crate) fn add(
        &self,
        message: Message,
        cost: usize,
        reply: Reply,
    ) -> Result<(Arc<Completion>, u32), SendError> {
        let mut before = None;
        let mut after = None;
        let mut state = self.state.lock();
        if state.closing || state.end.is_some() {
            let error = state.end.clone().map_or(SendError::Closed, send_error);
            drop(state);
            self.give_room_back(1, self.permits(cost) as usize);
            return Err(error);
        }
        if !state.batch.fits(cost) {
            before = self.seal(&mut state);
        }
        let fresh = state.batch.is_empty();
        let at = state.batch.push(message, cost);
        state.batch_bytes += self.permits(cost) as usize;
        state.in_flight_messages += 1;
        let completion = Arc::clone(&state.batch_completion);
        match reply {
            Reply::Future => {}
            Reply::Callback(callback) => completion.call(at, callback),
            Reply::None => completion.one_way(),
        }
        let alone = !self.config.batching || cost >= self.config.limits.max_bytes;
        let idle = self.config.max_batch_delay.is_none() && state.queue.is_empty();
        if fresh {
            state.batch_since = self.client.env.clock.monotonic();
        }
        if alone || idle || state.batch.is_full() {
            after = self.seal(&mut state);
        } else if fresh && let Some(delay) = self.config.max_batch_delay {
            state.batch_deadline = Some(state.batch_since + delay);
            self.wake.notify_one();
        }
        drop(state);
        self.encode(before);
        self.encode(after);
        Ok((completion, at))
    }

    /// Gives what is gathered its place in the order.
    pub(super) fn seal(&self, state: &mut State) -> Option<Job> {
        let sealed = state.batch.seal()?;
        state.batch_deadline = None;
        state.seal_due = false;
        let first_sequence = state.next_sequence;
        state.next_sequence += u64::from(sealed.messages());
        let pending = Pending {
            completion: std::mem::take(&mut state.batch_completion),
            messages: sealed.messages(),
            bytes: std::mem::take(&mut state.batch_bytes),
            first_sequence,
        };
        let deadline = self.config.send_timeout.map(|timeout| state.batch_since + timeout);
        let slot = state.queue.reserve(first_sequence, deadline, pending);
        if deadline.is_some() && !state.timer_armed {
            state.timer_armed = true;
            self.wake.notify_one();
        }
        Some(Job { slot, sealed, first_sequence })
    }

    /// Encodes a sealed batch and sends what can be sent.
    pub(super) fn encode(&self, mut job: Option<Job>) {
        while let Some(Job { slot, sealed, first_sequence }) = job {
            let entry = self.encode_entry(sealed, first_sequence);
            let mut state = self.state.lock();
            match entry {
                Ok(entry) => {
                    state.queue.fill(slot, entry);
                    Self::pump(&mut state);
                    job = None;
                }
                Err(error) => {
                    let pending = state.queue.give_up(slot);
                    let failed = pending.into_iter().map(|pending| (pending, Err(error.clone())));
                    let leaving = state.leave(failed.collect());
                    Self::pump(&mut state);
                    job = self.seal_if_idle(&mut state);
                    drop(state);
                    self.resolve(leaving);
                }
            }
        }
    }

    fn encode_entry(&self, sealed: SealedBatch, first_sequence: u64) -> Result<Bytes, SendError> {
        let name = self.name();
        let head = EntryHead {
            producer_name: &name,
            first_sequence,
            publish_time_ms: self.client.env.clock.wall_ms(),
            compression: self.config.compression,
        };
        let limit = self.max_message_bytes.load(Ordering::Relaxed);
        let entry = sealed.encode(&head)?;
        // Compression can make incompressible bytes larger.
        if entry.len() > limit {
            let (bytes, limit) = (entry.len() as u64, limit as u64);
            return Err(SendError::TooLarge { bytes, limit });
        }
        Ok(entry)
    }

    /// Sends what order and credit allow.
    pub(super) fn pump(state: &mut State) {
        let Session::Open { id, link, .. } = &state.session else {
            return;
        };
        while let Some((sequence_id, entry)) = state.queue.next_to_send() {
            let send = v1::SendEntry { producer_id: *id, sequence_id, entry };
            link.push(v1::produce_frame::Frame::Send(send));
        }
    }

    /// Tells messages their outcome and gives their room back.
    pub(super) fn resolve(&self, leaving: Option<Leaving>) {
        let Some(Leaving { ticket, done }) = leaving else {
            return;
        };
        let told = Told {
            shared: self,
            ticket,
            messages: done.iter().map(|(pending, _)| pending.messages).sum(),
            bytes: done.iter().map(|(pending, _)| pending.bytes).sum(),
        };
        for (pending, outcome) in done {
            pending.completion.resolve(&outcome);
        }
        drop(told);
    }

    /// Sends what is gathered now, if there is something.
    fn seal_now(&self) {
        let job = self.seal(&mut self.state.lock());
        self.encode(job);
    }

    pub(crate) async fn flush(&self) -> Result<(), SendError> {
        self.seal_now();
        let target = self.state.lock().next_sequence;
        // Set once all entries before the target have left the queue.
        let mut tickets = None;
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            let last = {
                let mut state = self.state.lock();
                let pending = state.queue.last_waiting(|it: &Pending| it.first_sequence < target);
                let last = pending.map(|pending| Arc::clone(&pending.completion));
                if last.is_none() {
                    let tickets = *tickets.get_or_insert(state.next_ticket);
                    if state.telling.first().is_none_or(|ticket| *ticket >= tickets) {
                        return state.one_way_failure.take().map_or(Ok(()), Err);
                    }
                }
                last
            };
            match last {
                // What became of it is its own sender's business.
                Some(completion) => drop(SendFuture::new(completion, 0).await),
                None => told.await,
            }
        }
    }

    // ---- closing

    pub(crate) fn start_close(&self) {
        let mut state = self.state.lock();
        if state.closing {
            return;
        }
        state.closing = true;
        let job = self.seal(&mut state);
        drop(state);
        self.encode(job);
        self.wake.notify_one();
    }

    /// Waits until the driver is done.
    pub(crate) async fn closed(&self) -> Result<(), SendError> {
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            {
                let mut state = self.state.lock();
                if state.done && state.telling.is_empty() {
                    let failed = state.end.clone().filter(|end| *end != ClientError::Closed);
                    let error = state.one_way_failure.take().or(failed.map(send_error));
                    return error.map_or(Ok(()), Err);
                }
            }
            told.await;
        }
    }

    /// Leaves the link; the broker is told.
    pub(super) fn end_session(&self) {
        let session = {
            let mut state = self.state.lock();
            state.queue.session_ended();
            std::mem::replace(&mut state.session, Session::None)
        };
        session.leave(close_frame);
    }

    /// True if a batch gathered behind others that are gone: what comes later may never come, and
    /// without a slot it has no time limit either.
    pub(super) fn is_stranded(&self, state: &State) -> bool {
        self.config.max_batch_delay.is_none() && !state.batch.is_empty() && state.queue.is_empty()
    }

    /// Sends a batch that gathered while others were in flight, now that none is. To be called
    /// whenever an entry has left the queue, for whatever reason.
    pub(super) fn seal_if_idle(&self, state: &mut State) -> Option<Job> {
        if !self.is_stranded(state) {
            return None;
        }
        if self.config.compression == Compression::None {
            return self.seal(state);
        }
        // Compressing takes too long for the task that reads the connection.
        state.seal_due = true;
        self.wake.notify_one();
        None
    }
}

pub(super) fn send_error(end: ClientError) -> SendError {
    match end {
        ClientError::Closed => SendError::Closed,
        error => SendError::Failed(error),
    }
}
