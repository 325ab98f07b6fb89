//! Plain data that goes in and out of a subscription.

use geminga_proto::id::{MessageIndex, Position};

use crate::core::api::{Delivery, SubscriptionType};
use crate::core::cursor::{CursorChange, Frontier};
use crate::core::dispatch::{ConsumerKey, NotMoving, ReadRequest};

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
    /// Read entries and answer with [`super::Subscription::read_done`].
    Read(ReadRequest),
    /// Hand a change to the state log. `None`: nothing changed, but the receipt has to wait until
    /// what was handed over before is durable. When it is durable: send the receipt, then call
    /// [`super::Subscription::persisted`].
    Persist {
        /// What changed.
        change: Option<CursorChange>,
        /// Goes to [`super::Subscription::persisted`].
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
    /// Why nothing is being handed out just now.
    pub not_moving: NotMoving,
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
