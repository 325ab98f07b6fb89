//! [`Metrics`]: counters of the whole broker. `Broker::stats` shows them; the admin front-end
//! gives them their names. Nothing here names a tenant or a topic.

use std::sync::atomic::AtomicI64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;

/// Counters since the broker's start, and gauges.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Messages stored.
    pub messages_in: Counter,
    /// Entries stored.
    pub entries_in: Counter,
    /// Bytes stored, as the producers sent them.
    pub bytes_in: Counter,
    /// Entries refused.
    pub entries_refused: Counter,
    /// Messages handed to consumers.
    pub messages_out: Counter,
    /// Entries handed to consumers.
    pub entries_out: Counter,
    /// Bytes handed to consumers.
    pub bytes_out: Counter,
    /// Acknowledgements taken.
    pub acks: Counter,
    /// Entries that were read from the tail cache.
    pub cache_hits: Counter,
    /// Entries that were read from bookies.
    pub cache_misses: Counter,
    /// Topics created.
    pub topics_created: Counter,
    /// Topics loaded.
    pub topics_loaded: Counter,
    /// Ledgers opened for topics.
    pub ledgers_opened: Counter,
    /// Ledgers trimmed off topics.
    pub ledgers_trimmed: Counter,
    /// Topics given up because of an error.
    pub topics_failed: Counter,
    /// Topics in memory.
    pub topics: Gauge<i64, AtomicI64>,
    /// Producers connected.
    pub producers: Gauge<i64, AtomicI64>,
    /// Consumers connected.
    pub consumers: Gauge<i64, AtomicI64>,
}
