//! What the scenarios have in common: waiting, and how far a topic or a cluster has got.

use std::sync::Arc;

use geminga_meta::store::memory::{Fault, Request};
use geminga_meta::store::{KeyValue, MetadataStore, Op, Txn};
use geminga_proto::id::{LedgerId, Position};

use crate::core::api::Lookup;
use crate::core::broker::{Broker, Producer};
pub use crate::testing::eventually;
use crate::testing::{Cluster, Ear, consumer, producer, publish, texts, topic};

/// More bytes of credit than a test uses.
pub const ALL: u64 = u64::MAX / 4;

pub fn positions(ear: &Ear) -> Vec<Position> {
    ear.look(|heard| heard.deliveries.iter().map(|delivery| delivery.position).collect())
}

/// Waits until so many receipts have come.
pub async fn receipts(ear: &Ear, count: usize) {
    ear.until("receipts", |heard| heard.receipts.len() == count).await;
}

/// A producer that has published these and has their receipts.
pub async fn published(broker: &Broker, name: &str, messages: &[String]) -> (Producer, Arc<Ear>) {
    let (producer, ear) = producer(broker, name).await;
    publish(broker, &producer, 0, messages).await;
    receipts(&ear, messages.len()).await;
    (producer, ear)
}

/// Reads a topic from its beginning with a new subscription.
pub async fn read_all(
    broker: &Broker,
    name: &str,
    subscription: &str,
    count: usize,
) -> Vec<String> {
    let (consumer, ear) = consumer(broker, name, subscription).await;
    consumer.flow(u32::MAX, ALL);
    ear.until("all messages", |heard| heard.deliveries.len() >= count).await;
    ear.payloads()
}

/// Waits until the topic's first ledger is closed and another has followed it.
pub async fn rolled(broker: &Broker, name: &str) {
    eventually("a roll", async || {
        let stats = broker.topic_internal_stats(&topic(name)).await.expect("loaded");
        stats.ledgers.len() == 2 && stats.ledgers[0].closed
    })
    .await;
}

fn last_ledger(ear: &Ear) -> Option<LedgerId> {
    ear.look(|heard| heard.receipts.last().map(|receipt| receipt.position.ledger))
}

/// Lets a topic, to which the producer has published one message, begin its next ledger, and takes
/// the metadata away in that moment, so that the ledger before can't be closed. Answers how many
/// messages there are now, all of which have their receipts. The topic's ledgers must have a
/// limit of less than 500 bytes.
pub async fn cut_a_roll_short(
    cluster: &Cluster,
    broker: &Broker,
    producer: &Producer,
    ear: &Ear,
) -> u64 {
    let mut rolled = false;
    cluster.meta.faults().set_script(move |request| match request {
        _ if rolled => Fault::Unavailable,
        Request::Txn(txn) => {
            let rolls = |op: &Op| matches!(op, Op::Put { key, .. } if key.starts_with("managed-"));
            rolled = txn.ops.iter().any(rolls);
            Fault::None
        }
        _ => Fault::None,
    });
    let first = last_ledger(ear);
    publish(broker, producer, 1, &["x".repeat(500)]).await;
    receipts(ear, 2).await;
    let mut count = 2;
    while last_ledger(ear) == first {
        publish(broker, producer, count, &texts("n", 1)).await;
        count += 1;
        receipts(ear, usize::try_from(count).expect("small")).await;
    }
    count
}

/// Whether the broker says that it serves the topic.
pub async fn is_here(broker: &Broker, name: &str) -> bool {
    broker.lookup(&topic(name)).await == Ok(Lookup::Here)
}

/// Waits until all of these brokers see each other, and nobody else.
pub async fn together(brokers: &[&Broker]) {
    eventually("brokers see each other", async || {
        brokers.iter().all(|broker| broker.brokers().len() == brokers.len())
    })
    .await;
}

/// The names of so many topics, which are in several bundles.
pub fn names(count: usize) -> Vec<String> {
    texts("topic", count)
}

/// All records whose keys begin so.
pub async fn records(cluster: &Cluster, prefix: &str) -> Vec<KeyValue> {
    cluster.meta.range(prefix, None, 1_000).await.expect("readable").pairs
}

pub async fn apply(cluster: &Cluster, txn: Txn) {
    cluster.meta.txn(txn).await.expect("applied");
}
