//! What a consumer's handles, its session's task and its link's reading task share.
//!
//! The reading task only appends entries to the inbox, whose room the credit granted; receiving
//! opens them (checksum, decompression, batch) on the application's own thread. Locks are taken in
//! the order `open`, `acks`, `inbox`, and none is held while waiting.
//!
//! Invariants: what was delivered in a session that is over is never handed out; credit is given
//! back exactly once, when an entry has been handed out or dropped in its own session; deliveries
//! beyond the credit end the session.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use geminga_proto::env::Monotonic;
use geminga_proto::topic_name::TopicName;
use geminga_proto::v1;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use v1::consume_frame::Frame;

use super::acks::AckTracker;
use super::nacks::NackTracker;
use super::{ConsumerConfig, Queued, SubscriptionPosition};
use crate::client::ClientInner;
use crate::decode::{open_entry, position_of};
use crate::error::{ClientError, ConsumerError, ReceiveError};
use crate::link::Consume;
use crate::message::ReceivedMessage;
use crate::session;

pub(super) type Session = session::Session<Consume>;
pub(super) type AckReply = oneshot::Sender<Result<(), ConsumerError>>;
pub(super) type PositionReply = oneshot::Sender<Result<SubscriptionPosition, ConsumerError>>;

/// How a consumer is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closing {
    No,
    /// Acknowledgements go first.
    Asked {
        unsubscribe: bool,
    },
    /// The broker was asked and has not answered.
    Sent,
    Done,
}

/// What the broker has delivered and said.
pub(super) struct Inbox {
    pub(super) session: Session,
    entries: VecDeque<v1::DeliveredEntry>,
    queued: Queued,
    /// What the broker may still send.
    credit_messages: i64,
    credit_bytes: i64,
    /// What was taken out and is not granted again yet.
    freed: Queued,
    /// The broker has delivered something, or taken an acknowledgement. The driver takes it.
    pub(super) progress: bool,
    /// Acknowledgements were sent again in this session, and none has its receipt yet: until then
    /// a delivery is no progress, since they may be what ends every session.
    pub(super) owed_receipt: bool,
    /// The last session was left of one's own accord.
    pub(super) left: bool,
    pub(super) name: String,
    pub(super) active: bool,
    pub(super) positions: HashMap<u64, PositionReply>,
    pub(super) next_request: u64,
    pub(super) closing: Closing,
    /// Closing means deleting the subscription.
    pub(super) unsubscribing: bool,
    /// When closing is given up.
    pub(super) close_deadline: Option<Monotonic>,
    /// Set once: nothing is received any more. `Closed` if it was closed.
    pub(super) end: Option<ClientError>,
    /// Why the last session ended that was open. The driver takes it.
    pub(super) ended: Option<ClientError>,
    pub(super) done: bool,
    /// Told to who closes: the broker refused to unsubscribe, or to acknowledge.
    pub(super) failure: Option<ConsumerError>,
}

/// The entry that is being handed out.
#[derive(Default)]
pub(super) struct Opened {
    session_id: Option<u64>,
    messages: VecDeque<ReceivedMessage>,
    /// Given back once the last message is out.
    credit: Queued,
    /// Found while gathering for a call that had messages to return.
    untold: Option<ReceiveError>,
}

pub(super) struct Acks {
    pub(super) tracker: AckTracker<AckReply>,
    pub(super) nacks: NackTracker,
    /// When what waits must be sent.
    pub(super) deadline: Option<Monotonic>,
}

pub(super) struct Shared {
    pub(super) client: Arc<ClientInner>,
    pub(super) topic: TopicName,
    pub(super) config: ConsumerConfig,
    pub(super) open: Mutex<Opened>,
    pub(super) acks: Mutex<Acks>,
    pub(super) inbox: Mutex<Inbox>,
    /// Wakes the session's task.
    pub(super) wake: Notify,
    /// Something arrived, or the end did. One permit is passed on from receiver to receiver.
    pub(super) arrived: Notify,
    /// Acknowledgements have room again, or the end came.
    pub(super) ack_room: Notify,
    /// The session opened, or the end came.
    pub(super) changed: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inbox = self.inbox.lock();
        out.debug_struct("Consumer")
            .field("topic", &self.topic.to_string())
            .field("subscription", &self.config.subscription)
            .field("queued", &inbox.queued)
            .field("end", &inbox.end)
            .finish_non_exhaustive()
    }
}

pub(super) fn consumer_error(end: ClientError) -> ConsumerError {
    match end {
        ClientError::Closed => ConsumerError::Closed,
        error => ConsumerError::Failed(error),
    }
}

fn receive_error(end: ClientError) -> ReceiveError {
    match end {
        ClientError::Closed => ReceiveError::Closed,
        error => ReceiveError::Failed(error),
    }
}

fn entry_bytes(entry: &v1::DeliveredEntry) -> u64 {
    (entry.broker_header.len() + entry.entry.len()) as u64
}

impl Inbox {
    fn new(name: String) -> Self {
        Self {
            session: Session::None,
            entries: VecDeque::new(),
            queued: Queued::default(),
            credit_messages: 0,
            credit_bytes: 0,
            freed: Queued::default(),
            progress: false,
            owed_receipt: false,
            left: false,
            name,
            active: true,
            positions: HashMap::new(),
            next_request: 1,
            closing: Closing::No,
            unsubscribing: false,
            close_deadline: None,
            end: None,
            ended: None,
            done: false,
            failure: None,
        }
    }

    /// A session begins: everything may be granted anew.
    pub(super) fn grant_all(&mut self, config: &ConsumerConfig) {
        self.credit_messages = 0;
        self.credit_bytes = 0;
        let (messages, bytes) = (config.receiver_queue_messages, config.receiver_queue_bytes);
        self.freed = Queued { messages, bytes };
        self.grant(config);
    }

    /// Grants what was freed, once that is worth a frame.
    fn grant(&mut self, config: &ConsumerConfig) {
        let freed = self.freed;
        let worth = freed.messages.saturating_mul(2) >= config.receiver_queue_messages
            || freed.bytes.saturating_mul(2) >= config.receiver_queue_bytes
            || (self.entries.is_empty() && freed.messages > 0);
        if !worth {
            return;
        }
        let Queued { messages, bytes } = freed;
        let granted =
            self.session.push(|consumer_id| Frame::Flow(v1::Flow { consumer_id, messages, bytes }));
        if granted {
            self.freed = Queued::default();
            self.credit_messages += i64::from(messages);
            self.credit_bytes += i64::try_from(bytes).unwrap_or(i64::MAX);
        }
    }

    pub(super) fn free(&mut self, credit: Queued, config: &ConsumerConfig) {
        self.freed.messages = self.freed.messages.saturating_add(credit.messages);
        self.freed.bytes = self.freed.bytes.saturating_add(credit.bytes);
        self.grant(config);
    }

    /// Takes a delivery in. False if it is beyond the credit.
    pub(super) fn deliver(&mut self, entries: Vec<v1::DeliveredEntry>) -> bool {
        for entry in entries {
            if self.credit_messages <= 0 || self.credit_bytes <= 0 {
                return false;
            }
            let bytes = entry_bytes(&entry);
            self.credit_messages -= i64::from(entry.credit_messages);
            self.credit_bytes -= i64::try_from(bytes).unwrap_or(i64::MAX);
            self.queued.messages = self.queued.messages.saturating_add(entry.credit_messages);
            self.queued.bytes += bytes;
            self.entries.push_back(entry);
        }
        self.progress |= !self.owed_receipt;
        true
    }

    fn pop(&mut self) -> Option<(v1::DeliveredEntry, Queued)> {
        let entry = self.entries.pop_front()?;
        let credit = Queued { messages: entry.credit_messages, bytes: entry_bytes(&entry) };
        self.queued.messages = self.queued.messages.saturating_sub(credit.messages);
        self.queued.bytes = self.queued.bytes.saturating_sub(credit.bytes);
        Some((entry, credit))
    }

    /// Drops what waits. The broker delivers it again.
    pub(super) fn clear(&mut self) -> Queued {
        self.entries.clear();
        std::mem::take(&mut self.queued)
    }
}

impl Shared {
    pub(super) fn new(
        client: Arc<ClientInner>,
        topic: TopicName,
        config: ConsumerConfig,
    ) -> Arc<Self> {
        let acks =
            Acks { tracker: AckTracker::new(), nacks: NackTracker::default(), deadline: None };
        Arc::new(Self {
            client,
            topic,
            open: Mutex::default(),
            acks: Mutex::new(acks),
            inbox: Mutex::new(Inbox::new(config.name.clone())),
            config,
            wake: Notify::new(),
            arrived: Notify::new(),
            ack_room: Notify::new(),
            changed: Notify::new(),
        })
    }

    pub(super) fn name(&self) -> String {
        self.inbox.lock().name.clone()
    }

    pub(super) fn is_active(&self) -> bool {
        self.inbox.lock().active
    }

    pub(super) fn is_connected(&self) -> bool {
        self.inbox.lock().session.is_open()
    }

    pub(super) fn session_id(&self) -> Option<u64> {
        self.inbox.lock().session.id()
    }

    pub(super) fn queued(&self) -> Queued {
        self.inbox.lock().queued
    }

    pub(super) fn now(&self) -> Monotonic {
        self.client.env.clock.monotonic()
    }

    // ---- receiving

    pub(super) fn try_receive(&self) -> Result<Option<ReceivedMessage>, ReceiveError> {
        let mut open = self.open.lock();
        if !self.fill(&mut open)? {
            return Ok(None);
        }
        let message = open.messages.pop_front();
        self.release_if_empty(&mut open);
        Ok(message)
    }

    /// Makes sure that `open` holds a message of the current session. False: there is none.
    fn fill(&self, open: &mut Opened) -> Result<bool, ReceiveError> {
        if let Some(error) = open.untold.take() {
            return Err(error);
        }
        loop {
            let (entry, credit, session_id) = {
                let mut inbox = self.inbox.lock();
                if let Some(end) = &inbox.end {
                    return Err(receive_error(end.clone()));
                }
                let session_id = inbox.session.id();
                if open.session_id == session_id && !open.messages.is_empty() {
                    return Ok(true);
                }
                let Some((entry, credit)) = inbox.pop() else {
                    return Ok(false);
                };
                (entry, credit, session_id)
            };
            let position = position_of(&entry);
            *open = Opened { session_id, credit, ..Opened::default() };
            match open_entry(&entry, self.config.max_entry_bytes) {
                Ok(messages) => open.messages = messages,
                Err(why) => {
                    tracing::debug!(topic = %self.topic, %position, %why, "an entry can't be read");
                    self.nack(position);
                    self.release_if_empty(open);
                    return Err(ReceiveError::CorruptEntry { position, why });
                }
            }
            self.release_if_empty(open);
        }
    }

    /// Drops the entry that is being handed out, and what waits behind it, and has them back as
    /// credit.
    pub(super) fn drop_received(&self, open: &mut Opened, inbox: &mut Inbox) {
        let opened = std::mem::take(open);
        let dropped = inbox.clear();
        if opened.session_id == inbox.session.id() {
            inbox.free(opened.credit, &self.config);
        }
        inbox.free(dropped, &self.config);
    }

    /// Gives an entry's credit back once its last message is out.
    fn release_if_empty(&self, open: &mut Opened) {
        if !open.messages.is_empty() {
            return;
        }
        let credit = std::mem::take(&mut open.credit);
        let mut inbox = self.inbox.lock();
        if inbox.session.id() == open.session_id {
            inbox.free(credit, &self.config);
        }
    }

    pub(super) async fn receive(&self) -> Result<ReceivedMessage, ReceiveError> {
        if let Some(message) = self.try_receive()? {
            return Ok(message);
        }
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            arrived.as_mut().enable();
            let result = self.try_receive();
            if !matches!(result, Ok(None)) {
                self.pass_on();
            }
            if let Some(message) = result? {
                return Ok(message);
            }
            arrived.await;
        }
    }

    pub(super) async fn receive_many(
        &self,
        messages: &mut Vec<ReceivedMessage>,
        max: usize,
    ) -> Result<usize, ReceiveError> {
        if max == 0 {
            return Ok(0);
        }
        messages.push(self.receive().await?);
        let mut count = 1;
        let mut open = self.open.lock();
        while count < max {
            match self.fill(&mut open) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    // Told by the next call, which may be the only one to tell it.
                    open.untold = Some(error);
                    break;
                }
            }
            let take = open.messages.len().min(max - count);
            messages.extend(open.messages.drain(..take));
            count += take;
            self.release_if_empty(&mut open);
        }
        Ok(count)
    }

    /// Wakes the next receiver if there is more: an arrival wakes only one.
    fn pass_on(&self) {
        let more = {
            let inbox = self.inbox.lock();
            !inbox.entries.is_empty() || inbox.end.is_some()
        };
        if more || self.open.try_lock().is_none_or(|open| !open.messages.is_empty()) {
            self.arrived.notify_one();
        }
    }
}
