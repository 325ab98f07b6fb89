//! The SDK's errors: one enum per operation. Each says what happened, what became of the message,
//! and whether trying again can help. They are cloneable, because one failed batch fails many
//! messages.

use std::fmt;
use std::time::Duration;

pub use geminga_proto::v1::ErrorCode;

use geminga_proto::entry::EntryError;
use geminga_proto::id::Position;
use geminga_proto::topic_name::NameError;
use geminga_proto::v1;

/// What a broker answered instead of doing what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} [{}]", code.as_str_name())]
pub struct BrokerError {
    /// Decide by this.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
}

impl BrokerError {
    pub(crate) fn from_wire(error: v1::Error) -> Self {
        // A code of a newer broker is unknown here: final, since nothing can be promised of it.
        let code = ErrorCode::try_from(error.code).unwrap_or(ErrorCode::Unspecified);
        Self { code, message: error.message }
    }

    /// True if the same request can succeed later, or at another broker.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self.code {
            ErrorCode::NotOwner
            | ErrorCode::Unavailable
            | ErrorCode::ProducerBusy
            | ErrorCode::ConsumerBusy
            | ErrorCode::Fenced
            | ErrorCode::StorageFull
            | ErrorCode::ShuttingDown => true,
            ErrorCode::Unspecified
            | ErrorCode::InvalidTopicName
            | ErrorCode::TopicNotFound
            | ErrorCode::InvalidRequest
            | ErrorCode::Unsupported
            | ErrorCode::ProtocolVersion
            | ErrorCode::WrongCluster
            | ErrorCode::MessageTooLarge
            | ErrorCode::ChecksumMismatch
            | ErrorCode::InvalidBatch
            | ErrorCode::SubscriptionType
            | ErrorCode::SubscriptionNotFound
            | ErrorCode::StorageCorrupt
            | ErrorCode::Internal
            | ErrorCode::FlowControl
            | ErrorCode::NamespaceNotFound => false,
        }
    }

    /// True if this says something of the broker that was asked and nothing of what was asked
    /// for: another address may lead to a broker that does it.
    fn is_of_this_broker(&self) -> bool {
        matches!(self.code, ErrorCode::WrongCluster | ErrorCode::ProtocolVersion)
    }

    /// True if the topic must be looked up again: this broker no longer serves it, or can't now.
    pub(crate) fn ends_session(&self) -> bool {
        matches!(
            self.code,
            ErrorCode::NotOwner
                | ErrorCode::Unavailable
                | ErrorCode::Fenced
                | ErrorCode::ShuttingDown
        )
    }
}

/// What came of one of several addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UrlFailure {
    /// The address.
    pub url: String,
    /// Why it didn't do.
    pub error: ClientError,
}

impl fmt::Display for UrlFailure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, error } = self;
        match error {
            ClientError::Connect { why, url: at } if at == url => write!(out, "{url}: {why}"),
            ClientError::Disconnected { why, url: at } if at == url => {
                write!(out, "{url}: the connection was lost: {why}")
            }
            ClientError::NotABroker { why, url: at } if at == url => {
                write!(out, "{url}: not a Geminga broker's gRPC port (by default 6660): {why}")
            }
            other => write!(out, "{url}: {other}"),
        }
    }
}

fn list(tried: &[UrlFailure]) -> String {
    let tried: Vec<String> = tried.iter().map(ToString::to_string).collect();
    tried.join("; ")
}

/// Why a client can't be built or connect, or a producer or consumer can't be opened.
///
/// What is worth another attempt is tried again by the client itself: when something is opened,
/// until the operation timeout; once it is open, for as long as it is wanted. So this is what an
/// application sees:
///
/// | error | opening | later | why |
/// | --- | --- | --- | --- |
/// | [`Config`], [`Name`], [`TooMany`] | yes | no | the call is wrong; nothing was sent |
/// | [`Connect`], [`Disconnected`] | no¹ | no | tried again, elsewhere first |
/// | [`NoneAnswered`] | yes² | yes² | every address was tried |
/// | [`NotABroker`] | yes | no | a wrong port; later one that is reused for a while |
/// | [`Protocol`], `PROTOCOL_VERSION` | yes | yes | one side must be upgraded |
/// | `WRONG_CLUSTER` | yes | yes | another cluster has other topics |
/// | `NOT_OWNER`, `FENCED`, `SHUTTING_DOWN` | no | no | another broker serves it, or will |
/// | `UNAVAILABLE` | no | no | the broker, or storage behind it, comes back |
/// | `STORAGE_FULL` | no | no | one message hears it as [`SendError::Refused`] |
/// | `PRODUCER_BUSY`, `CONSUMER_BUSY` | yes | no³ | later it is our own old session |
/// | `TOPIC_NOT_FOUND`, `NAMESPACE_NOT_FOUND` | yes | yes | there is none, or it was deleted |
/// | `SUBSCRIPTION_NOT_FOUND`, `SUBSCRIPTION_TYPE` | yes | yes | likewise |
/// | `STORAGE_CORRUPT`, `INTERNAL` | yes | yes | somebody must look at the cluster |
/// | any other code | yes | yes | broker and client disagree about the protocol |
/// | [`TimedOut`] | yes | no | the operation timeout passed; it tells the last error |
/// | [`Closed`] | yes | yes | the application closed it |
///
/// ¹ Yes from `Client::connect`, which tries once. ² If none of its errors can pass, and from
/// `Client::connect`. ³ Yes if `redeliver_unacknowledged` gave an exclusive place up and somebody
/// took it. Later errors come as `Failed`, of the producer's and consumer's own errors.
///
/// [`Config`]: Self::Config
/// [`Name`]: Self::Name
/// [`TooMany`]: Self::TooMany
/// [`Connect`]: Self::Connect
/// [`Disconnected`]: Self::Disconnected
/// [`NoneAnswered`]: Self::NoneAnswered
/// [`NotABroker`]: Self::NotABroker
/// [`Protocol`]: Self::Protocol
/// [`TimedOut`]: Self::TimedOut
/// [`Closed`]: Self::Closed
///
/// A message's own time-out is the producer's `send_timeout`: see [`SendError::Timeout`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// A setting makes no sense; nothing was sent.
    #[error("invalid setting {setting}: {why}")]
    Config {
        /// The setting.
        setting: &'static str,
        /// What is wrong and what is allowed.
        why: String,
    },
    /// The topic's or subscription's name is malformed; nothing was sent.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No connection to the broker.
    #[error(
        "can't connect to {url}: {why}; is a broker running there (gRPC, by default port 6660)?"
    )]
    Connect {
        /// The broker's address.
        url: String,
        /// The cause.
        why: String,
    },
    /// Something answered that is not a Geminga broker.
    #[error("{url} is not a Geminga broker's gRPC port (by default 6660): {why}")]
    NotABroker {
        /// The address.
        url: String,
        /// How it answered.
        why: String,
    },
    /// The connection was lost before there was an answer.
    #[error("the connection to {url} was lost: {why}")]
    Disconnected {
        /// The broker's address.
        url: String,
        /// The cause.
        why: String,
    },
    /// Several addresses were tried, and none led to a broker that could answer.
    #[error("no broker answered: {}", list(tried))]
    NoneAnswered {
        /// Each address with its error.
        tried: Vec<UrlFailure>,
    },
    /// The broker speaks no protocol version that this client speaks.
    #[error(
        "the broker chose protocol {chosen}, this client speaks {min} to {max}; \
         upgrade the older one"
    )]
    Protocol {
        /// Version that the broker chose.
        chosen: u32,
        /// Lowest version here.
        min: u32,
        /// Highest version here.
        max: u32,
    },
    /// The broker refused.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// No success within the operation timeout.
    #[error("gave up after {after:?}; the last error was: {last}")]
    TimedOut {
        /// How long it was tried.
        after: Duration,
        /// Why the last attempt failed.
        last: String,
    },
    /// A limit of this client is reached.
    #[error("this client has {limit} {what} already; close some or use another client")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

impl ClientError {
    /// True if trying again later can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Disconnected { .. } | Self::TimedOut { .. } => true,
            Self::Broker(error) => error.is_retryable(),
            Self::NoneAnswered { tried } => tried.iter().any(|it| it.error.is_retryable()),
            Self::Config { .. }
            | Self::Name(_)
            | Self::NotABroker { .. }
            | Self::Protocol { .. }
            | Self::TooMany { .. }
            | Self::Closed => false,
        }
    }

    /// True if what worked once can work again. Then a port that is no broker's may become one
    /// again.
    pub(crate) fn can_pass(&self) -> bool {
        match self {
            Self::NotABroker { .. } => true,
            Self::NoneAnswered { tried } => tried.iter().any(|it| it.error.can_pass()),
            other => other.is_retryable(),
        }
    }

    /// True if another address may lead to a broker that does what was asked.
    pub(crate) fn may_do_elsewhere(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::NotABroker { .. }
            | Self::Disconnected { .. }
            | Self::NoneAnswered { .. }
            | Self::Protocol { .. }
            | Self::TimedOut { .. } => true,
            Self::Broker(error) => error.is_retryable() || error.is_of_this_broker(),
            Self::Config { .. } | Self::Name(_) | Self::TooMany { .. } | Self::Closed => false,
        }
    }

    /// True if a broker gave its place up, in order: whoever has it now can be asked at once.
    pub(crate) fn is_orderly(&self) -> bool {
        let orderly = [ErrorCode::NotOwner, ErrorCode::ShuttingDown, ErrorCode::Fenced];
        self.code().is_some_and(|code| orderly.contains(&code))
    }

    /// All of these were tried; the one error, if there was only one.
    pub(crate) fn none_answered(mut tried: Vec<UrlFailure>) -> Self {
        match tried.pop() {
            Some(only) if tried.is_empty() => only.error,
            Some(last) => {
                tried.push(last);
                Self::NoneAnswered { tried }
            }
            None => Self::NoneAnswered { tried },
        }
    }

    /// The broker's error code, if the broker refused.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Broker(error) => Some(error.code),
            Self::NoneAnswered { tried } => tried.iter().find_map(|it| it.error.code()),
            _ => None,
        }
    }
}

/// Why a message was not acknowledged by the broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Too large; it was not sent.
    #[error(
        "the message has {bytes} bytes, more than the {limit} that the broker's max_message_size \
         leaves it; split it, or raise broker.max_message_bytes"
    )]
    TooLarge {
        /// Its payload's size, before compression.
        bytes: u64,
        /// What the broker's limit leaves of it to the payload, beside key and properties.
        limit: u64,
    },
    /// It can't be encoded; it was not sent.
    #[error("the message can't be encoded: {0}")]
    Encoding(String),
    /// `try_enqueue` found no room; it was not sent.
    #[error("the producer has its maximum of messages or bytes in flight")]
    QueueFull,
    /// The broker refused it; it is not stored.
    #[error("the broker refused the message: {0}")]
    Refused(#[source] BrokerError),
    /// No receipt within the send timeout: it may or may not be stored.
    #[error(
        "no receipt within {after:?}; the message may or may not be stored{}",
        last.as_ref().map_or_else(String::new, |last| format!("; the last error was: {last}"))
    )]
    Timeout {
        /// The send timeout.
        after: Duration,
        /// Why there was no session, why the last one ended, or what the broker waits for; if
        /// there was no receipt since.
        last: Option<String>,
    },
    /// The producer was closed before there was a receipt; it may or may not be stored.
    #[error("the producer is closed")]
    Closed,
    /// The producer can't go on; messages without a receipt may or may not be stored.
    #[error("the producer failed: {0}")]
    Failed(#[source] ClientError),
}

impl SendError {
    /// True if sending the message again can help. If its outcome is unknown (see the variants),
    /// it may then be stored twice.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::QueueFull | Self::Timeout { .. } => true,
            Self::Refused(error) => error.is_retryable(),
            Self::TooLarge { .. } | Self::Encoding(_) | Self::Closed | Self::Failed(_) => false,
        }
    }
}

/// Why a delivered entry can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Its layout or checksum is wrong.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// It holds another number of messages than it states.
    #[error("the batch states {stated} messages and holds {found}")]
    Count {
        /// Messages that its metadata states.
        stated: i64,
        /// Messages that were found.
        found: u64,
    },
    /// Bytes follow the last message.
    #[error("the batch has {0} bytes after its last message")]
    TrailingBytes(usize),
    /// It can't be decompressed.
    #[error("the entry can't be decompressed as {codec}: {why}")]
    Decompress {
        /// The compression it states.
        codec: &'static str,
        /// What went wrong.
        why: String,
    },
    /// It is larger than this consumer takes.
    #[error("the entry has {bytes} bytes uncompressed, more than the consumer's limit of {limit}")]
    TooLarge {
        /// Its uncompressed size.
        bytes: u64,
        /// The consumer's `max_entry_bytes`.
        limit: u64,
    },
    /// It uses what this client can't read.
    #[error("the entry uses {0}, which this client does not support")]
    Unsupported(&'static str),
}

/// Why no message can be received.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// An entry can't be read. It stays unacknowledged and will be redelivered after the nack
    /// delay; acknowledge `position` to give it up. The consumer goes on.
    #[error("the entry at {position} can't be read: {why}")]
    CorruptEntry {
        /// The entry.
        position: Position,
        /// What is wrong with it.
        why: DecodeError,
    },
    /// The consumer was closed.
    #[error("the consumer is closed")]
    Closed,
    /// The consumer can't go on.
    #[error("the consumer failed: {0}")]
    Failed(#[source] ClientError),
}

impl ReceiveError {
    /// True if the consumer still works: receive again.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::CorruptEntry { .. })
    }
}

/// Why an acknowledgement, or another request of a consumer, failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsumerError {
    /// A shared subscription has no order that could be acknowledged up to.
    #[error("cumulative acknowledgement needs an exclusive or failover subscription")]
    CumulativeOnShared,
    /// The broker refused it.
    #[error("the broker refused the request: {0}")]
    Refused(#[source] BrokerError),
    /// The connection was lost before there was an answer.
    #[error("the connection was lost before the broker answered; try again")]
    Disconnected,
    /// No answer within the operation timeout.
    #[error("no answer within {after:?}")]
    Timeout {
        /// The operation timeout.
        after: Duration,
    },
    /// The consumer was closed.
    #[error("the consumer is closed")]
    Closed,
    /// The consumer can't go on.
    #[error("the consumer failed: {0}")]
    Failed(#[source] ClientError),
}

impl ConsumerError {
    /// True if trying again can help.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Disconnected | Self::Timeout { .. } => true,
            Self::Refused(error) => error.is_retryable(),
            Self::CumulativeOnShared | Self::Closed | Self::Failed(_) => false,
        }
    }
}
