//! Plain data that goes in and out of dispatch.

use geminga_proto::id::{EntryId, LedgerId, Position};
use geminga_proto::payload::Payload;

use crate::core::budget::EntryPermit;
use crate::core::cursor::EntrySpan;

/// An entry with its bytes, read or just confirmed.
#[derive(Debug, Clone)]
pub struct ReadyEntry {
    /// Where it is and which messages it holds.
    pub span: EntrySpan,
    /// Its bytes.
    pub payload: Payload,
    /// Goes with each delivery of it.
    pub permit: EntryPermit,
}

/// A consumer of one subscription; the subscription gives the numbers, rising, never twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerKey(pub u64);

/// Names a read; an answer to any but the newest is ignored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadToken(pub u64);

/// Entries of one ledger, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRun {
    /// The ledger.
    pub ledger: LedgerId,
    /// The first entry.
    pub first: EntryId,
    /// How many; at least 1.
    pub entries: u32,
}

/// Which entries to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadTarget {
    /// The confirmed entries at and after a position, over ledger boundaries. The position itself
    /// may lie one past its ledger's end.
    From(Position),
    /// Exactly these, in order.
    Runs(Vec<EntryRun>),
}

/// A read that the topic has to do. It answers with `read_done`, once: at least one entry, in
/// order, without gaps; fewer than asked for is fine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest {
    /// Goes back with the answer.
    pub token: ReadToken,
    /// What to read.
    pub target: ReadTarget,
    /// At most so many entries.
    pub max_entries: u32,
    /// Beyond the first entry, at most so many bytes.
    pub max_bytes: u64,
}

/// Limits of one subscription's dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DispatchLimits {
    /// Messages that one consumer of a shared subscription may hold unacknowledged. The one
    /// active consumer of the other types is limited by the subscription's limit only.
    pub max_unacked_per_consumer: u64,
    /// Messages that all consumers of a subscription together may hold unacknowledged.
    pub max_unacked_per_subscription: u64,
    /// Entries asked for in one read.
    pub max_read_entries: u32,
    /// Bytes asked for in one read.
    pub max_read_bytes: u64,
}

impl Default for DispatchLimits {
    fn default() -> Self {
        Self {
            max_unacked_per_consumer: 50_000,
            max_unacked_per_subscription: 200_000,
            max_read_entries: 1_000,
            max_read_bytes: 4 * 1024 * 1024,
        }
    }
}

/// Why a subscription isn't handing out anything right now.
#[derive(Debug, Clone, Default, PartialEq, Eq, thiserror::Error)]
pub enum NotMoving {
    /// Nobody is connected.
    #[default]
    #[error("no consumer is connected")]
    NoConsumer,
    /// Everything confirmed has been handed out.
    #[error("caught up: everything confirmed was handed out")]
    CaughtUp,
    /// No consumer has credit in messages.
    #[error("no consumer has credit for messages")]
    NoMessageCredit,
    /// No consumer that has credit in messages has credit in bytes.
    #[error("no consumer has credit for bytes")]
    NoByteCredit,
    /// Every consumer with credit holds too many unacknowledged messages.
    #[error("{held} messages are unacknowledged by a consumer, the limit is {limit}")]
    ConsumerUnacked {
        /// Held by the consumer that holds the fewest of those with credit.
        held: u64,
        /// The limit.
        limit: u64,
    },
    /// All consumers together hold too many unacknowledged messages.
    #[error("{held} messages are unacknowledged in the subscription, the limit is {limit}")]
    SubscriptionUnacked {
        /// Held.
        held: u64,
        /// The limit.
        limit: u64,
    },
    /// Entries are being read.
    #[error("waiting for entries to be read")]
    Reading,
    /// Reading failed; the topic tries again.
    #[error("reading failed: {0}")]
    ReadFailed(String),
}
