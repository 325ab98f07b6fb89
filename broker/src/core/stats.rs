//! What the core says about itself: plain data for the admin front-end and for metrics. Sizes
//! are bytes, times are milliseconds, counters start at the topic's load.

use geminga_proto::id::{ConsumerId, LedgerId, MessageIndex, Position, ProducerId};
use geminga_proto::storage::SyncMode;

use crate::core::api::SubscriptionType;

/// A loaded topic.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TopicStats {
    /// Messages published.
    pub msg_in_counter: u64,
    /// Bytes published, as the producers sent them.
    pub bytes_in_counter: u64,
    /// Messages handed to consumers, repeated ones too.
    pub msg_out_counter: u64,
    /// Bytes handed to consumers.
    pub bytes_out_counter: u64,
    /// Messages a second, over the last housekeeping interval.
    pub msg_rate_in: f64,
    /// Bytes a second, over the last housekeeping interval.
    pub msg_throughput_in: f64,
    /// Messages a second, over the last housekeeping interval.
    pub msg_rate_out: f64,
    /// Bytes a second, over the last housekeeping interval.
    pub msg_throughput_out: f64,
    /// Bytes of one copy of what is kept.
    pub storage_bytes: u64,
    /// Bytes that the subscription that is furthest behind has still to consume.
    pub backlog_bytes: u64,
    /// Bytes published and not yet stored by a quorum.
    pub pending_bytes: u64,
    /// True while the bookies are full and publishing is refused.
    pub storage_full: bool,
    /// Producers connected.
    pub publishers: Vec<PublisherStats>,
    /// Subscriptions, by name.
    pub subscriptions: Vec<(String, SubscriptionStats)>,
}

/// A connected producer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// The client's number for it.
    pub producer_id: ProducerId,
    /// Its name.
    pub name: String,
    /// Messages stored.
    pub msg_in_counter: u64,
    /// Bytes stored.
    pub bytes_in_counter: u64,
    /// Bytes of credit in use.
    pub pending_bytes: u64,
    /// Bytes of credit.
    pub credit_bytes: u64,
    /// When it connected.
    pub connected_since_ms: u64,
    /// As its client gave them.
    pub properties: Vec<(String, String)>,
}

/// A subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubscriptionStats {
    /// Its type; `None` until the first consumer.
    pub subscription_type: Option<SubscriptionType>,
    /// Messages not acknowledged.
    pub msg_backlog: u64,
    /// Bytes after the mark-delete position, whole entries.
    pub backlog_bytes: u64,
    /// Messages handed out and not acknowledged.
    pub unacked_messages: u64,
    /// Messages handed out.
    pub msg_out_counter: u64,
    /// Bytes handed out.
    pub bytes_out_counter: u64,
    /// Messages handed out again.
    pub msg_redelivered_counter: u64,
    /// Everything up to here is durably acknowledged.
    pub mark_delete: Option<Position>,
    /// The next entry to read.
    pub read_position: Option<Position>,
    /// Messages acknowledged beyond the first that is not.
    pub individually_acked_messages: u64,
    /// The active consumer of an exclusive or failover subscription.
    pub active_consumer: Option<String>,
    /// What the next message to be handed out waits for.
    pub blocked_on: String,
    /// Consumers connected.
    pub consumers: Vec<ConsumerStats>,
}

/// A connected consumer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConsumerStats {
    /// The client's number for it.
    pub consumer_id: ConsumerId,
    /// Its name.
    pub name: String,
    /// Lower is served first.
    pub priority: i32,
    /// Messages of credit left; below 0 when the last entry overdrew it.
    pub available_permits: i64,
    /// Bytes of credit left.
    pub available_bytes: i64,
    /// Messages handed out and not acknowledged.
    pub unacked_messages: u64,
    /// Messages handed out.
    pub msg_out_counter: u64,
    /// Bytes handed out.
    pub bytes_out_counter: u64,
    /// When it connected.
    pub connected_since_ms: u64,
    /// As its client gave them.
    pub properties: Vec<(String, String)>,
}

/// How a topic is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TopicInternalStats {
    /// Entries kept.
    pub entries: u64,
    /// Bytes of one copy of what is kept.
    pub total_bytes: u64,
    /// Entries in the open ledger.
    pub current_ledger_entries: u64,
    /// Bytes in the open ledger.
    pub current_ledger_bytes: u64,
    /// The last confirmed entry.
    pub last_confirmed: Option<Position>,
    /// Index of the next message.
    pub next_index: MessageIndex,
    /// `open`, `closed` (the next publish opens a ledger), `rolling` or `recovering`.
    pub state: &'static str,
    /// The ledgers kept, oldest first.
    pub ledgers: Vec<LedgerStats>,
    /// The cursors, by subscription.
    pub cursors: Vec<(String, CursorStats)>,
}

/// A ledger of a topic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LedgerStats {
    /// The ledger.
    pub ledger: LedgerId,
    /// Its entries.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// False for the one that is being written.
    pub closed: bool,
}

/// A subscription's cursor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CursorStats {
    /// Everything up to here is durably acknowledged.
    pub mark_delete: Option<Position>,
    /// The next entry to read.
    pub read_position: Option<Position>,
    /// Messages acknowledged beyond the first that is not.
    pub individually_acked_messages: u64,
}

/// What a queue holds and may hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStats {
    /// Which queue.
    pub name: String,
    /// Bytes in it.
    pub bytes: u64,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Callers that wait for room.
    pub waiting: u64,
}

/// How durable a receipt is, as it is in force and not as it is wished for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durability {
    /// Copies written of each entry.
    pub write_quorum: u32,
    /// Copies synced before a receipt.
    pub ack_quorum: u32,
    /// How each bookie makes a write durable.
    pub bookies: Vec<(String, SyncMode)>,
}

/// A ledger, as the metadata has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerInfo {
    /// The ledger.
    pub ledger: LedgerId,
    /// `open`, `in-recovery` or `closed`.
    pub state: &'static str,
    /// Copies written of each entry.
    pub write_quorum: u32,
    /// Copies synced before an add is acknowledged.
    pub ack_quorum: u32,
    /// Last entry of a closed ledger; `None` if it is empty or not closed.
    pub last_entry: Option<u64>,
    /// Bytes of a closed ledger.
    pub bytes: u64,
    /// When it was created.
    pub created_ms: u64,
    /// True for a bundle's state log.
    pub state_log: bool,
    /// True if it has fewer copies than wanted.
    pub under_replicated: bool,
    /// First entry and bookies of each fragment.
    pub fragments: Vec<(u64, Vec<String>)>,
}

/// The whole broker: counters since its start, and what is in use now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BrokerStats {
    /// Messages stored.
    pub messages_in: u64,
    /// Entries stored.
    pub entries_in: u64,
    /// Bytes stored, as the producers sent them.
    pub bytes_in: u64,
    /// Entries refused.
    pub entries_refused: u64,
    /// Messages handed to consumers, repeated ones too.
    pub messages_out: u64,
    /// Entries handed to consumers, repeated ones too.
    pub entries_out: u64,
    /// Bytes handed to consumers.
    pub bytes_out: u64,
    /// Acknowledgements taken.
    pub acks: u64,
    /// Entries read from the tail cache.
    pub cache_hits: u64,
    /// Entries read from bookies.
    pub cache_misses: u64,
    /// Topics created.
    pub topics_created: u64,
    /// Topics loaded.
    pub topics_loaded: u64,
    /// Topics given up because of an error.
    pub topics_failed: u64,
    /// Ledgers opened for topics.
    pub ledgers_opened: u64,
    /// Ledgers trimmed off topics.
    pub ledgers_trimmed: u64,
    /// Topics in memory now.
    pub topics: u64,
    /// Producers connected now.
    pub producers: u64,
    /// Consumers connected now.
    pub consumers: u64,
}
