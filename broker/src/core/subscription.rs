//! [`Subscription`]: one subscription of a loaded topic: its cursor and its dispatch, composed. A
//! state machine without I/O, clock or randomness. The topic calls it under its lock and executes
//! the [`Command`]s it appends to `out`, in order, before it lets go of the lock.
//!
//! How a topic uses it:
//! - load: [`Subscription::new`] with what the state log has, and where the topic ends;
//! - entries are confirmed: if [`Subscription::wants_tail`], [`Subscription::tail`] with the
//!   entries, else [`Subscription::confirmed`], which is cheap;
//! - [`Command::Read`]: read, then [`Subscription::read_done`]; after a failure wait a little and
//!   call [`Subscription::retry_read`];
//! - an ack comes: [`Subscription::unknown_positions`]; look those up (cache or storage); then
//!   [`Subscription::ack`];
//! - [`Command::Persist`]: hand the change to the state log; when it is durable, send the receipt
//!   and call [`Subscription::persisted`].
//!
//! Invariant: a receipt is never sent before every change made until then is durable.

use std::collections::VecDeque;
use std::sync::Arc;

use geminga_proto::id::{MessageIndex, Position};

use crate::core::api::{Ack, AckError, Delivery, SubscribeError, SubscriptionType};
use crate::core::cursor::{CursorChange, CursorState, EntrySpan, Frontier};
use crate::core::dispatch::{
    ConsumerKey, DispatchLimits, NotMoving, ReadRequest, ReadToken, ReadyEntry,
};

/// Numbers the changes of one loaded subscription.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChangeSeq(pub u64);

/// Which acknowledgement waits for a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiptFor {
    /// Who acknowledged.
    pub consumer: ConsumerKey,
    /// The number it gave.
    pub request_id: u64,
}

/// What the topic has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Push entries to a consumer; its credit is taken already.
    Deliver {
        /// To whom.
        consumer: ConsumerKey,
        /// In order.
        deliveries: Vec<Delivery>,
    },
    /// Read entries and answer with [`Subscription::read_done`].
    Read(ReadRequest),
    /// Hand a change to the state log. `None`: nothing changed, but the receipt has to wait until
    /// what was handed over before is durable. When it is durable: send the receipt, then call
    /// [`Subscription::persisted`].
    Persist {
        /// What changed.
        change: Option<CursorChange>,
        /// Goes to [`Subscription::persisted`].
        seq: ChangeSeq,
        /// The receipt to send.
        receipt: Option<ReceiptFor>,
    },
    /// Send a receipt now: all is durable already.
    AckReceipt(ReceiptFor),
    /// Tell a consumer of a failover subscription whether it is active.
    ActiveChanged {
        /// Whom.
        consumer: ConsumerKey,
        /// Whether it is.
        active: bool,
    },
}

/// A consumer to attach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerSpec {
    /// Its name, for statistics.
    pub name: String,
    /// Lower is served first.
    pub priority: i32,
    /// How it wants to share.
    pub subscription_type: SubscriptionType,
}

/// Where the topic ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TopicEnd {
    /// The last confirmed entry; `None`: the topic is empty.
    pub last_confirmed: Option<Position>,
    /// Index of the message after it.
    pub next_index: MessageIndex,
}

/// Numbers of a subscription, for people and metrics. Counters start at the topic's load.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscriptionNumbers {
    /// Its type; `None` until the first consumer.
    pub subscription_type: Option<SubscriptionType>,
    /// Messages not acknowledged.
    pub backlog_messages: u64,
    /// Messages acknowledged beyond the first that is not.
    pub acked_beyond: u64,
    /// Messages handed out and not acknowledged.
    pub unacked_messages: u64,
    /// Entries that wait to be handed out again.
    pub replay_entries: u64,
    /// Messages handed out.
    pub delivered_messages: u64,
    /// Bytes handed out.
    pub delivered_bytes: u64,
    /// Messages handed out again.
    pub redelivered_messages: u64,
    /// Everything before is durably acknowledged.
    pub durable: Frontier,
    /// The next entry to read.
    pub read_from: Position,
    /// The active consumer of an exclusive or failover subscription.
    pub active: Option<ConsumerKey>,
    /// Why nothing is being handed out just now; `None`: something is.
    pub not_moving: Option<NotMoving>,
    /// Consumers, in the order in which they are served.
    pub consumers: Vec<ConsumerNumbers>,
}

/// Numbers of a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerNumbers {
    /// The consumer.
    pub consumer: ConsumerKey,
    /// Its name.
    pub name: String,
    /// Lower is served first.
    pub priority: i32,
    /// Credit left in messages; below 0 when the last entry overdrew it.
    pub credit_messages: i64,
    /// Credit left in bytes.
    pub credit_bytes: i64,
    /// Messages it holds unacknowledged.
    pub unacked_messages: u64,
    /// Messages handed to it.
    pub delivered_messages: u64,
    /// Bytes handed to it.
    pub delivered_bytes: u64,
}

/// A subscription of a loaded topic.
#[derive(Debug)]
pub struct Subscription {
    name: Arc<str>,
    pending: VecDeque<(ChangeSeq, Frontier)>,
}

impl Subscription {
    /// A subscription whose cursor goes on where `cursor` stands. Nothing is handed out yet.
    #[must_use]
    pub fn new(name: &str, cursor: CursorState, end: TopicEnd, limits: DispatchLimits) -> Self {
        let _ = (cursor, end, limits);
        Self { name: name.into(), pending: VecDeque::new() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Attaches a consumer; it has no credit yet.
    ///
    /// # Errors
    /// [`SubscribeError::Busy`] or [`SubscribeError::WrongType`].
    pub fn add_consumer(
        &mut self,
        spec: ConsumerSpec,
        out: &mut Vec<Command>,
    ) -> Result<ConsumerKey, SubscribeError> {
        let _ = (spec, out);
        todo!()
    }

    /// Detaches a consumer: what it holds unacknowledged is handed out again, to others or to
    /// whoever comes.
    pub fn remove_consumer(&mut self, consumer: ConsumerKey, out: &mut Vec<Command>) {
        let _ = (consumer, out);
        todo!()
    }

    /// The attached consumers.
    pub fn consumers(&self) -> impl Iterator<Item = ConsumerKey> + '_ {
        std::iter::empty()
    }

    /// Adds credit.
    pub fn flow(
        &mut self,
        consumer: ConsumerKey,
        messages: u32,
        bytes: u64,
        out: &mut Vec<Command>,
    ) {
        let _ = (consumer, messages, bytes, out);
        todo!()
    }

    /// Positions in `ack` whose spans have to be looked up and passed to [`Subscription::ack`]:
    /// not handed out since the topic was loaded, and not known to be acknowledged. Usually none.
    #[must_use]
    pub fn unknown_positions(&self, ack: &Ack) -> Vec<Position> {
        let _ = ack;
        todo!()
    }

    /// Acknowledges, all or (on an error) nothing. `looked_up`: the spans of what
    /// [`Subscription::unknown_positions`] named; those that don't exist are left out.
    ///
    /// # Errors
    /// [`AckError::Invalid`] says why nothing was acknowledged.
    pub fn ack(
        &mut self,
        consumer: ConsumerKey,
        ack: &Ack,
        looked_up: &[EntrySpan],
        out: &mut Vec<Command>,
    ) -> Result<(), AckError> {
        let _ = (consumer, ack, looked_up, out);
        todo!()
    }

    /// Hands entries out again: those of `positions` that this consumer holds unacknowledged, or
    /// all it holds if there are none named.
    pub fn redeliver(
        &mut self,
        consumer: ConsumerKey,
        positions: &[Position],
        out: &mut Vec<Command>,
    ) {
        let _ = (consumer, positions, out);
        todo!()
    }

    /// True if entries that are being confirmed could be handed out at once: pass them to
    /// [`Subscription::tail`]. Cheap.
    #[must_use]
    pub fn wants_tail(&self) -> bool {
        todo!()
    }

    /// Entries were confirmed: all of them since the last call, in order.
    pub fn tail(&mut self, entries: &[ReadyEntry], end: TopicEnd, out: &mut Vec<Command>) {
        let _ = (entries, end, out);
        todo!()
    }

    /// Entries were confirmed and their bytes aren't at hand (or aren't wanted).
    pub fn confirmed(&mut self, end: TopicEnd, out: &mut Vec<Command>) {
        let _ = (end, out);
        todo!()
    }

    /// The answer to [`Command::Read`]. After an error nothing is read until
    /// [`Subscription::retry_read`].
    pub fn read_done(
        &mut self,
        token: ReadToken,
        result: Result<&[ReadyEntry], String>,
        out: &mut Vec<Command>,
    ) {
        let _ = (token, result, out);
        todo!()
    }

    /// True after a failed read, until [`Subscription::retry_read`].
    #[must_use]
    pub fn read_has_failed(&self) -> bool {
        todo!()
    }

    /// Goes on after a failed read.
    pub fn retry_read(&mut self, out: &mut Vec<Command>) {
        let _ = out;
        todo!()
    }

    /// Every change up to `seq` is durable.
    pub fn persisted(&mut self, seq: ChangeSeq) {
        let _ = seq;
        todo!()
    }

    /// Moves the cursor. Answers the consumers, which are detached: close them, so that they come
    /// back without entries of before.
    pub fn reset(&mut self, to: Frontier, out: &mut Vec<Command>) -> Vec<ConsumerKey> {
        let _ = (to, out);
        todo!()
    }

    /// Acknowledges everything before `to`, because its data is gone.
    pub fn skip_to(&mut self, to: Frontier, out: &mut Vec<Command>) {
        let _ = (to, out);
        todo!()
    }

    /// Everything before is durably acknowledged; what trimming goes by. The mark-delete position
    /// is the entry before `position`: the topic knows it if that is a ledger's first.
    #[must_use]
    pub fn durable(&self) -> Frontier {
        todo!()
    }

    /// What is acknowledged, durable or not yet.
    #[must_use]
    pub fn cursor(&self) -> &CursorState {
        todo!()
    }

    /// Messages that are not acknowledged.
    #[must_use]
    pub fn backlog_messages(&self) -> u64 {
        todo!()
    }

    /// Why nothing is being handed out just now; `None`: something is.
    #[must_use]
    pub fn why_not_moving(&self) -> Option<NotMoving> {
        todo!()
    }

    /// True if it can leave the memory without losing anything: no consumer, nothing to persist.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        todo!()
    }

    /// Its numbers.
    #[must_use]
    pub fn numbers(&self) -> SubscriptionNumbers {
        todo!()
    }
}
