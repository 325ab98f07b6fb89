//! The figures of the bookie, and of what it repairs, for `/metrics`: at its own port, or in a
//! standalone at the admin port. The bookie itself knows nothing of metrics' formats.

use std::fmt;
use std::sync::Arc;

use geminga_bookie::bookie::{Bookie, BookieMetrics};
use geminga_ledger::repair::RepairMetrics;
use geminga_proto::storage::BookieInfo;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Name without the prefix, help text, and how to read it.
type Metric<T> = (&'static str, &'static str, fn(&T) -> u64);

const COUNTERS: &[Metric<BookieMetrics>] = &[
    ("appended_entries", "Entries made durable", |of| of.appended_entries),
    ("appended_bytes", "Bytes of entries made durable", |of| of.appended_bytes),
    ("writes", "Synchronous writes of the log", |of| of.groups),
    ("written_bytes", "Bytes of these, with headers and padding", |of| of.written_bytes),
    ("fences", "Fences made durable", |of| of.fences),
    ("refused_appends", "Appends refused at once", |of| of.refused_appends),
    ("sealed_segments", "Segments sealed", |of| of.sealed_segments),
    ("recycled_segments", "Segments freed", |of| of.recycled_segments),
    ("rewritten_segments", "Segments freed by rewriting what counts of them", |of| {
        of.rewritten_segments
    }),
    ("rewritten_bytes", "Bytes written for that, with headers and padding", |of| {
        of.rewritten_bytes
    }),
    ("deleted_ledgers", "Ledgers deleted", |of| of.deleted_ledgers),
    ("surplus_entries", "Copies dropped that are another bookie's by now", |of| of.surplus_entries),
    ("scrubbed_bytes", "Bytes read again and verified", |of| of.scrubbed_bytes),
    ("damaged_entries", "Entries that were found damaged", |of| of.damaged_entries),
];

const GAUGES: &[Metric<BookieMetrics>] = &[
    ("pending_bytes", "Bytes waiting for the disk", |of| of.pending_bytes),
    ("max_pending_bytes", "Bytes that may wait for the disk", |of| of.max_pending_bytes),
    ("unverified_seconds", "Age of the oldest verification of sealed data", |of| {
        of.unverified_seconds
    }),
    ("rewriting", "1 while segments are being rewritten", |of| of.rewriting),
    ("damaged_now", "Entries that are damaged and not mended yet", |of| of.damaged_now),
    ("poisoned", "1 once a write has failed and the log is read-only", |of| of.poisoned),
];

const STORAGE_GAUGES: &[Metric<BookieInfo>] = &[
    ("storage_bytes", "Size of the storage", |of| of.total_bytes),
    ("free_bytes", "Bytes that messages can still take", |of| of.free_bytes),
    ("writable", "1 if messages are taken", |of| u64::from(of.writable)),
    ("ledgers", "Ledgers with an entry or fence", |of| of.ledgers),
    ("segments", "Segment files in use", |of| of.segments),
];

const REPAIR: &[Metric<RepairMetrics>] = &[
    ("ledgers", "Ledgers repaired here", RepairMetrics::ledgers),
    ("bytes", "Bytes of entries copied for that from here, and read back", RepairMetrics::bytes),
    ("failures", "Attempts that failed, and are made again", RepairMetrics::failures),
];

/// Adds the bookie's figures to a registry. They are asked for at each scrape.
pub(super) fn register(registry: &mut Registry, bookie: Bookie) {
    registry.register_collector(Box::new(Scrape { bookie }));
}

/// Adds what a process repairs.
pub(super) fn register_repair(registry: &mut Registry, metrics: Arc<RepairMetrics>) {
    registry.register_collector(Box::new(RepairScrape { metrics }));
}

#[derive(Debug)]
struct RepairScrape {
    metrics: Arc<RepairMetrics>,
}

impl Collector for RepairScrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        counters("repair", REPAIR, &self.metrics, &mut encoder)
    }
}

#[derive(Debug)]
struct Scrape {
    bookie: Bookie,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let metrics = self.bookie.metrics();
        counters("bookie", COUNTERS, &metrics, &mut encoder)?;
        gauges(GAUGES, &metrics, &mut encoder)?;
        gauges(STORAGE_GAUGES, &self.bookie.info(), &mut encoder)
    }
}

fn counters<T>(
    of_what: &str,
    list: &[Metric<T>],
    of: &T,
    encoder: &mut DescriptorEncoder,
) -> Result<(), fmt::Error> {
    for (name, help, read) in list {
        let counter = ConstCounter::new(read(of));
        let (name, kind) = (format!("geminga_{of_what}_{name}"), counter.metric_type());
        counter.encode(encoder.encode_descriptor(&name, help, None, kind)?)?;
    }
    Ok(())
}

fn gauges<T>(
    list: &[Metric<T>],
    of: &T,
    encoder: &mut DescriptorEncoder,
) -> Result<(), fmt::Error> {
    for (name, help, read) in list {
        let gauge = ConstGauge::new(i64::try_from(read(of)).unwrap_or(i64::MAX));
        let (name, kind) = (format!("geminga_bookie_{name}"), gauge.metric_type());
        gauge.encode(encoder.encode_descriptor(&name, help, None, kind)?)?;
    }
    Ok(())
}
