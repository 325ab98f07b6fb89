//! What a front-end and the core say to each other: plain data, and the sinks through which the
//! core pushes.
//!
//! A sink is called while the core holds a topic's lock: it puts the event into its connection's
//! queue, whose room the credit has already granted, and returns at once.

use std::fmt::Debug;

use bytes::Bytes;
use geminga_proto::id::{ConsumerId, MessageIndex, Position, ProducerId};
use geminga_proto::payload::Payload;
use geminga_proto::topic_name::{NameError, TopicName};

use crate::core::budget::EntryPermit;

/// Where a topic is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// By this broker.
    Here,
    /// By another.
    Elsewhere {
        /// Its name.
        broker_id: String,
        /// Where clients connect.
        service_url: String,
        /// Where administration connects.
        admin_url: String,
    },
}

/// Opens a producer.
#[derive(Debug, Clone)]
pub struct OpenProducer {
    /// Chosen by the client; unique in its stream.
    pub producer_id: ProducerId,
    /// The topic.
    pub topic: TopicName,
    /// Empty: the broker makes one.
    pub name: String,
    /// Shown in statistics.
    pub properties: Vec<(String, String)>,
}

/// What a front-end learns when its producer is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerOpened {
    /// The producer's name, unique on the topic.
    pub name: String,
    /// Bytes of entries that it may have outstanding.
    pub credit_bytes: u64,
}

/// An entry is stored: a quorum has it on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// As the producer sent it.
    pub sequence_id: u64,
    /// Where it is.
    pub position: Position,
    /// Index of its first message.
    pub first_index: MessageIndex,
}

/// Where the core pushes what a producer must hear.
pub trait ProducerSink: Send + Sync + Debug + 'static {
    /// Entries are stored; in the order in which they were published.
    fn receipts(&self, producer: ProducerId, receipts: &[Receipt]);
    /// An entry is refused and not stored; the producer stays open.
    fn refused(&self, producer: ProducerId, sequence_id: u64, error: &PublishError);
    /// Entries that were published wait for what `why` says: there is nothing to be done.
    fn delayed(&self, producer: ProducerId, why: &TopicError);
    /// The producer is closed by the broker. Entries without a receipt have an unknown outcome.
    fn closed(&self, producer: ProducerId, error: &TopicError);
}

/// How a subscription hands out messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SubscriptionType {
    /// One consumer; another is refused.
    Exclusive,
    /// One consumer is active, the others wait.
    Failover,
    /// Round robin over the consumers.
    Shared,
}

/// Where a subscription begins that doesn't exist yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum InitialPosition {
    /// After the last message.
    #[default]
    Latest,
    /// At the first message that is kept.
    Earliest,
}

/// Attaches a consumer to a subscription.
#[derive(Debug, Clone)]
pub struct Subscribe {
    /// Chosen by the client; unique in its stream.
    pub consumer_id: ConsumerId,
    /// The topic.
    pub topic: TopicName,
    /// The subscription's name.
    pub subscription: String,
    /// Its type.
    pub subscription_type: SubscriptionType,
    /// Empty: the broker makes one.
    pub consumer_name: String,
    /// Lower is served first.
    pub priority: i32,
    /// Used if the subscription doesn't exist yet.
    pub initial_position: InitialPosition,
    /// Whether to create the subscription.
    pub create: bool,
    /// Shown in statistics.
    pub properties: Vec<(String, String)>,
}

/// One entry for a consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Where it is.
    pub position: Position,
    /// How often it was handed out before.
    pub redelivery_count: u32,
    /// Batch indexes already acknowledged: bit i of byte i/8, lowest first. Empty: none.
    pub acked_indexes: Bytes,
    /// Undelivered messages that it took from the consumer's credit in messages; from the credit
    /// in bytes it took the payload's length.
    pub messages: u32,
    /// Broker header (`head`) and the producer's entry (`body`).
    pub payload: Payload,
    /// Keeps the entry's bytes in the broker-wide budget: drop it when they are written to the
    /// socket.
    pub permit: EntryPermit,
}

/// Where the core pushes what a consumer must hear.
pub trait ConsumerSink: Send + Sync + Debug + 'static {
    /// Entries, within the credit that the consumer has granted.
    fn deliver(&self, consumer: ConsumerId, deliveries: Vec<Delivery>);
    /// An acknowledgement is durable, or failed.
    fn ack_receipt(&self, consumer: ConsumerId, request_id: u64, result: Result<(), AckError>);
    /// The consumer of a failover subscription became active or not.
    fn active_changed(&self, consumer: ConsumerId, active: bool);
    /// The consumer is closed by the broker.
    fn closed(&self, consumer: ConsumerId, error: &TopicError);
}

/// What is acknowledged of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AckPosition {
    /// The entry.
    pub position: Position,
    /// Batch indexes, as in [`Delivery::acked_indexes`]. Empty: all of it.
    pub acked_indexes: Bytes,
}

/// An acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// Not 0: send an ack receipt with this number once it is durable.
    pub request_id: u64,
    /// Everything up to and including the one position.
    pub cumulative: bool,
    /// What is acknowledged.
    pub positions: Vec<AckPosition>,
}

/// Where a subscription stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscriptionPosition {
    /// The topic's last confirmed entry; `None` while it is empty.
    pub last_confirmed: Option<Position>,
    /// Everything up to here is durably acknowledged; `None`: nothing yet.
    pub mark_delete: Option<Position>,
    /// Messages after the mark-delete position that are not acknowledged.
    pub backlog_messages: u64,
}

/// Why a topic can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// The name is malformed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It doesn't exist and isn't created automatically.
    #[error(
        "topic {0} does not exist and automatic creation is off; create it with \
         `geminga admin topics create` or PUT /admin/v2/persistent/{{tenant}}/{{ns}}/{{topic}}"
    )]
    NotFound(String),
    /// Its namespace doesn't exist.
    #[error("namespace {0} does not exist")]
    NamespaceNotFound(String),
    /// Another broker owns it: look it up again.
    #[error("this broker does not own the topic; look it up again")]
    NotOwner,
    /// A quorum, the metadata or the cursors' state can't be reached: try again later.
    #[error("unavailable at the moment: {0}; try again later")]
    Unavailable(String),
    /// Another broker took over.
    #[error("another broker took the topic over; the outcome of pending requests is unknown")]
    Fenced,
    /// Stored data is damaged.
    #[error("the topic's stored data is damaged: {0}")]
    Corrupt(String),
    /// It is being deleted, or was.
    #[error("the topic was deleted")]
    Deleted,
    /// The broker is shutting down, or has given up what it served for good.
    #[error("the broker serves nothing any more")]
    ShuttingDown,
    /// What was asked for isn't built.
    #[error("{0} is not supported")]
    Unsupported(String),
}

/// Why a producer can't be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenProducerError {
    /// The topic can't be used.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// A producer of that name is connected.
    #[error("a producer named {0:?} is connected to the topic already")]
    Busy(String),
}

/// Why an entry is refused. It is not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The topic can't be used.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The bytes are not an entry, its checksum is wrong, or its message count can't be true.
    #[error(transparent)]
    Entry(#[from] geminga_proto::entry::EntryError),
    /// Larger than allowed.
    #[error("the entry has {bytes} bytes, more than max_message_size ({limit})")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The bookies' disks are full.
    #[error("storage is full; publishing resumes when space is freed")]
    StorageFull,
    /// More bytes outstanding than the producer's credit.
    #[error("the producer sent beyond its credit of {credit} bytes")]
    Credit {
        /// The credit.
        credit: u64,
    },
}

/// Why a consumer can't be attached.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// The topic can't be used.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The subscription's name is malformed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The exclusive consumer is there already.
    #[error("the exclusive subscription {0:?} has a consumer already")]
    Busy(String),
    /// It is in use with another type.
    #[error("subscription {name:?} is in use as {in_use:?}")]
    WrongType {
        /// The subscription.
        name: String,
        /// Its type while it has consumers.
        in_use: SubscriptionType,
    },
    /// It doesn't exist and wasn't to be created.
    #[error("subscription {0:?} does not exist")]
    NotFound(String),
}

/// Why an acknowledgement failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AckError {
    /// The topic can't be used, or the outcome is unknown.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The request makes no sense.
    #[error("the acknowledgement is invalid: {0}")]
    Invalid(&'static str),
}
