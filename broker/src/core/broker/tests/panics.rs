//! A defect that panics in a background task: it is noticed, and what the task worked for comes
//! back. The metadata store's script is where the panics come from.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use geminga_meta::store::Op;
use geminga_meta::store::memory::{Fault, Request};
use geminga_proto::env::{Clock, ManualClock, Monotonic};
use geminga_proto::id::ProducerId;

use super::{ALL, eventually, positions};
use crate::core::api::{ProducerSink, PublishError, Receipt, TopicError};
use crate::core::config::BrokerConfig;
use crate::core::state_log::StateLogConfig;
use crate::testing::{Cluster, Ear, Heard, ack, consumer, open, producer, publish, texts, topic};

fn puts(request: Request<'_>, prefix: &str) -> bool {
    let Request::Txn(txn) = request else { return false };
    txn.ops.iter().any(|op| matches!(op, Op::Put { key, .. } if key.starts_with(prefix)))
}

/// The first request that `is` meant panics where it is made.
fn panic_once(cluster: &Cluster, is: impl Fn(Request<'_>) -> bool + Send + 'static) {
    let mut left = 1;
    cluster.meta.faults().set_script(move |request| {
        if left > 0 && is(request) {
            left -= 1;
            panic!("a defect");
        }
        Fault::None
    });
}

fn given_up(heard: &Heard) -> bool {
    matches!(&heard.closed[..], [TopicError::Unavailable(why)] if why.contains("inside the broker"))
}

#[tokio::test]
async fn a_panic_in_maintenance_gives_the_topic_up_and_it_comes_back() {
    let cluster = Cluster::new();
    let config = BrokerConfig { ledger_max_bytes: 400, ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let (first, ear) = producer(&broker, "orders").await;
    publish(&broker, &first, 0, &texts("m", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    panic_once(&cluster, |request| puts(request, "managed-ledgers/"));
    publish(&broker, &first, 1, &["x".repeat(500)]).await;
    ear.until("the end", given_up).await;
    let (second, ear) = producer(&broker, "orders").await;
    publish(&broker, &second, 0, &texts("n", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    broker.shutdown().await;
}

#[tokio::test]
async fn a_panic_in_a_read_gives_the_topic_up_and_it_comes_back() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (first, ear) = producer(&broker, "orders").await;
    publish(&broker, &first, 0, &texts("m", 3)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 3).await;
    cluster.clock.advance(Duration::from_secs(120));
    let name = topic("orders");
    eventually("closing", async || {
        broker.topic_internal_stats(&name).await.is_ok_and(|stats| stats.state == "closed")
    })
    .await;
    let (worker, consumed) = consumer(&broker, "orders", "work").await;
    panic_once(
        &cluster,
        |request| matches!(request, Request::Get(key) if key.starts_with("ledgers/")),
    );
    worker.flow(10, ALL);
    consumed.until("the end", given_up).await;
    let (worker, consumed) = consumer(&broker, "orders", "work").await;
    worker.flow(10, ALL);
    consumed.until("messages", |heard| heard.deliveries.len() == 3).await;
    broker.shutdown().await;
}

#[tokio::test]
async fn a_panic_in_a_state_logs_keeper_ends_the_bundle_and_it_comes_back() {
    let cluster = Cluster::new();
    let state_log = StateLogConfig { ledger_max_bytes: 200, ..StateLogConfig::default() };
    let config = BrokerConfig { state_log, ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let (first, _) = producer(&broker, "orders").await;
    let (worker, consumed) = consumer(&broker, "orders", "work").await;
    worker.flow(100, ALL);
    panic_once(&cluster, |request| puts(request, "bundles/"));
    publish(&broker, &first, 0, &texts("m", 50)).await;
    consumed.until("messages", |heard| heard.deliveries.len() == 50).await;
    for (request_id, position) in (1..).zip(positions(&consumed)) {
        ack(&worker, request_id, &[position]).await;
    }
    consumed.until("the end", given_up).await;
    let (worker, _) = consumer(&broker, "orders", "work").await;
    assert!(worker.position().backlog_messages < 50);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_panic_in_the_sweep_or_the_watch_of_namespaces_starts_it_again() {
    let cluster = Cluster::new();
    let config =
        BrokerConfig { retention_sweep_interval: Duration::from_millis(10), ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let counted = Arc::clone(&counts);
    cluster.meta.faults().set_script(move |request| {
        let which = match request {
            Request::Range(prefix) if prefix.starts_with("managed-ledgers/") => 0,
            Request::Watch(_) => 1,
            _ => return Fault::None,
        };
        assert!(counted[which].fetch_add(1, Ordering::AcqRel) > 0, "a defect");
        Fault::None
    });
    cluster.meta.lose_watches();
    eventually("both again", async || counts.iter().all(|count| count.load(Ordering::Acquire) > 1))
        .await;
    broker.shutdown().await;
}

/// A clock that panics when it is told to.
#[derive(Debug)]
struct Broken {
    clock: Arc<ManualClock>,
    broken: AtomicBool,
}

impl Clock for Broken {
    fn wall_ms(&self) -> u64 {
        assert!(!self.broken.load(Ordering::Acquire), "a defect");
        self.clock.wall_ms()
    }
    fn monotonic(&self) -> Monotonic {
        self.clock.monotonic()
    }
}

#[tokio::test]
async fn a_panic_in_housekeeping_gives_up_each_topic_in_which_it_happens_and_no_more() {
    let cluster = Cluster::new();
    let names = ["orders", "bills"];
    let broker = cluster.broker(Cluster::config()).await;
    for name in names {
        let (first, ear) = producer(&broker, name).await;
        publish(&broker, &first, 0, &texts("m", 1)).await;
        ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    }
    broker.shutdown().await;
    let clock = Arc::new(Broken { clock: Arc::clone(&cluster.clock), broken: false.into() });
    let broker = cluster.broker_with_clock(Cluster::config(), Arc::clone(&clock) as _).await;
    let (_first, first) = producer(&broker, names[0]).await;
    let (_second, second) = producer(&broker, names[1]).await;
    // New, so there is nothing to trim, for which alone the time would be asked.
    let (_third, third) = producer(&broker, "new").await;
    clock.broken.store(true, Ordering::Release);
    first.until("the end", given_up).await;
    second.until("the end", given_up).await;
    clock.broken.store(false, Ordering::Release);
    third.look(|heard| assert_eq!(heard.closed, []));
    for name in names {
        let (first, ear) = producer(&broker, name).await;
        publish(&broker, &first, 0, &texts("n", 1)).await;
        ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    }
    broker.shutdown().await;
}

/// A producer whose connection has a defect.
#[derive(Debug, Default)]
struct Panicky(Ear);

impl ProducerSink for Panicky {
    fn receipts(&self, _: ProducerId, _: &[Receipt]) {
        panic!("a defect");
    }
    fn refused(&self, id: ProducerId, sequence_id: u64, error: &PublishError) {
        self.0.refused(id, sequence_id, error);
    }
    fn delayed(&self, id: ProducerId, why: &TopicError) {
        self.0.delayed(id, why);
    }
    fn closed(&self, id: ProducerId, error: &TopicError) {
        ProducerSink::closed(&self.0, id, error);
    }
}

#[tokio::test]
async fn a_panic_at_a_confirmation_gives_the_topic_up_and_it_comes_back() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let sink = Arc::new(Panicky::default());
    let opened = broker.open_producer(open("orders"), Arc::clone(&sink) as _).await;
    let (first, _) = opened.expect("opens");
    let (_second, ear) = producer(&broker, "orders").await;
    publish(&broker, &first, 0, &texts("m", 1)).await;
    ear.until("the end", given_up).await;
    let (second, ear) = producer(&broker, "orders").await;
    publish(&broker, &second, 0, &texts("n", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    broker.shutdown().await;
}
