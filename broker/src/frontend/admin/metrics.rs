//! `/metrics`: OpenMetrics text, which Prometheus scrapes as it is. The broker is asked at each
//! scrape, so that nothing has to be kept up to date in between; the composition root may
//! register more.
//!
//! No label names a tenant, a namespace or a topic, so names don't leak and the number of series
//! is bounded.

use std::collections::BTreeMap;
use std::fmt;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::core::broker::Broker;
use crate::core::stats::{BrokerStats, QueueStats};
use crate::frontend::admin::AdminState;
use crate::frontend::admin::error::ApiError;
use crate::frontend::admin::queues::OtherQueues;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Name without the prefix, help text, and how to read it. OpenMetrics adds `_total` to counters.
type Metric<T> = (&'static str, &'static str, fn(&T) -> u64);

const COUNTERS: &[Metric<BrokerStats>] = &[
    ("messages_in", "Messages stored", |stats| stats.messages_in),
    ("entries_in", "Entries stored", |stats| stats.entries_in),
    ("bytes_in", "Bytes stored, as the producers sent them", |stats| stats.bytes_in),
    ("entries_refused", "Entries refused", |stats| stats.entries_refused),
    ("messages_out", "Messages handed to consumers", |stats| stats.messages_out),
    ("entries_out", "Entries handed to consumers", |stats| stats.entries_out),
    ("bytes_out", "Bytes handed to consumers", |stats| stats.bytes_out),
    ("acks", "Acknowledgements taken", |stats| stats.acks),
    ("cache_hits", "Entries read from the tail cache", |stats| stats.cache_hits),
    ("cache_misses", "Entries read from bookies", |stats| stats.cache_misses),
    ("topics_created", "Topics created", |stats| stats.topics_created),
    ("topics_loaded", "Topics loaded", |stats| stats.topics_loaded),
    ("topics_failed", "Topics given up because of an error", |stats| stats.topics_failed),
    ("ledgers_opened", "Ledgers opened for topics", |stats| stats.ledgers_opened),
    ("ledgers_trimmed", "Ledgers trimmed off topics", |stats| stats.ledgers_trimmed),
];

const GAUGES: &[Metric<BrokerStats>] = &[
    ("topics", "Topics in memory", |stats| stats.topics),
    ("producers", "Producers connected", |stats| stats.producers),
    ("consumers", "Consumers connected", |stats| stats.consumers),
];

const QUEUE_GAUGES: &[Metric<QueueSum>] = &[
    ("bytes", "Bytes in queues of this kind", |sum| sum.bytes),
    ("capacity_bytes", "Bytes that queues of this kind may hold", |sum| sum.capacity_bytes),
    ("waiting", "Callers waiting for room in queues of this kind", |sum| sum.waiting),
];

/// Adds the broker's metrics to a registry.
pub fn register(registry: &mut Registry, broker: Broker, other_queues: OtherQueues) {
    registry.register_collector(Box::new(Scrape { broker, other_queues }));
}

#[derive(Debug)]
struct Scrape {
    broker: Broker,
    other_queues: OtherQueues,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        encode_broker(&self.broker.stats(), &mut encoder)?;
        encode_queues(&self.other_queues.with_those_of(&self.broker), &mut encoder)
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn encode_broker(stats: &BrokerStats, encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
    for (name, help, read) in COUNTERS {
        let (name, counter) = (format!("geminga_broker_{name}"), ConstCounter::new(read(stats)));
        counter.encode(encoder.encode_descriptor(&name, help, None, counter.metric_type())?)?;
    }
    for (name, help, read) in GAUGES {
        let (name, gauge) =
            (format!("geminga_broker_{name}"), ConstGauge::new(signed(read(stats))));
        gauge.encode(encoder.encode_descriptor(&name, help, None, gauge.metric_type())?)?;
    }
    Ok(())
}

/// The queues of one kind together.
#[derive(Debug, Default)]
struct QueueSum {
    bytes: u64,
    capacity_bytes: u64,
    waiting: u64,
}

/// The kind that a queue's name begins with: there is one state log a bundle, called `state log of
/// …`, one queue a stream, called `grpc consume stream of …`, and `grpc: … more streams`.
fn kind(name: &str) -> &str {
    let ends = [name.find(" of "), name.find(':')];
    let end = ends.into_iter().flatten().min().unwrap_or(name.len());
    name.get(..end).unwrap_or(name)
}

fn by_kind(queues: &[QueueStats]) -> BTreeMap<&str, QueueSum> {
    let mut kinds: BTreeMap<&str, QueueSum> = BTreeMap::new();
    for queue in queues {
        let sum = kinds.entry(kind(&queue.name)).or_default();
        sum.bytes = sum.bytes.saturating_add(queue.bytes);
        sum.capacity_bytes = sum.capacity_bytes.saturating_add(queue.capacity_bytes);
        sum.waiting = sum.waiting.saturating_add(queue.waiting);
    }
    kinds
}

fn encode_queues(queues: &[QueueStats], encoder: &mut DescriptorEncoder) -> Result<(), fmt::Error> {
    let kinds = by_kind(queues);
    for (name, help, read) in QUEUE_GAUGES {
        let name = format!("geminga_queue_{name}");
        let kind = ConstGauge::new(0_i64).metric_type();
        let mut family = encoder.encode_descriptor(&name, help, None, kind)?;
        for (kind, sum) in &kinds {
            let labels = [("queue", *kind)];
            ConstGauge::new(signed(read(sum))).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// Answers a scrape.
pub async fn scrape(State(state): State<AdminState>) -> Result<Response, ApiError> {
    let mut text = String::new();
    encode(&mut text, &state.registry).map_err(|error| {
        tracing::error!(%error, "metrics can't be encoded");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the metrics can't be encoded")
    })?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed(BrokerStats, Vec<QueueStats>);

    impl Collector for Fixed {
        fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
            encode_broker(&self.0, &mut encoder)?;
            encode_queues(&self.1, &mut encoder)
        }
    }

    fn text(stats: BrokerStats, queues: Vec<QueueStats>) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Fixed(stats, queues)));
        let mut text = String::new();
        encode(&mut text, &registry).expect("strings take everything");
        text
    }

    fn assert_lines(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "{line:?} is missing:\n{text}");
        }
    }

    #[test]
    fn the_brokers_counters_and_gauges_are_named_and_typed() {
        let stats = BrokerStats { messages_in: 7, topics: 3, ..BrokerStats::default() };
        let lines = [
            "# TYPE geminga_broker_messages_in counter",
            "geminga_broker_messages_in_total 7",
            "geminga_broker_acks_total 0",
            "# TYPE geminga_broker_topics gauge",
            "geminga_broker_topics 3",
            "# EOF",
        ];
        assert_lines(&text(stats, Vec::new()), &lines);
    }

    #[test]
    fn queues_of_a_kind_are_summed_up_so_that_no_label_names_a_namespace_or_counts_streams() {
        let queue = |name: &str, bytes| QueueStats {
            name: name.to_owned(),
            bytes,
            capacity_bytes: 10,
            waiting: 1,
        };
        let text = text(
            BrokerStats::default(),
            vec![
                queue("ingest budget", 3),
                queue("state log of acme/secret/0", 4),
                queue("state log of acme/secret/1", u64::MAX),
                queue("grpc produce stream of 10.0.0.1:5000", 1),
                queue("grpc produce stream of 10.0.0.1:5001", 2),
                queue("grpc: 7 more streams", 3),
            ],
        );
        let lines = [
            "# TYPE geminga_queue_bytes gauge",
            "geminga_queue_bytes{queue=\"ingest budget\"} 3",
            "geminga_queue_bytes{queue=\"state log\"} 9223372036854775807",
            "geminga_queue_capacity_bytes{queue=\"state log\"} 20",
            "geminga_queue_waiting{queue=\"state log\"} 2",
            "geminga_queue_bytes{queue=\"grpc\"} 3",
        ];
        assert_lines(&text, &lines);
        assert_eq!(text.matches("geminga_queue_bytes{").count(), 4, "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}
