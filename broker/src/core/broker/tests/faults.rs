//! What goes wrong: lost answers, an unreachable metadata store, lost leases, failing quorums.

use std::time::Duration;

use geminga_meta::store::memory::{Fault, Request};
use geminga_meta::store::{Op, Txn};
use geminga_proto::id::MessageIndex;
use geminga_proto::storage::BookieError;

use super::{ALL, eventually, positions, read_all};
use crate::core::api::{Lookup, TopicError};
use crate::core::config::BrokerConfig;
use crate::testing::{Cluster, ack, consumer, producer, publish, texts, topic};

fn writes(txn: &Txn, prefix: &str) -> bool {
    txn.ops.iter().any(|op| matches!(op, Op::Put { key, .. } if key.starts_with(prefix)))
}

#[tokio::test]
async fn a_topic_whose_creation_was_answered_by_silence_is_created_once() {
    for fault in [Fault::AnswerLost, Fault::RequestLost] {
        let cluster = Cluster::new();
        let broker = cluster.broker(Cluster::config()).await;
        let mut left = 1;
        cluster.meta.faults().set_script(move |request| match request {
            Request::Txn(txn) if left > 0 && writes(txn, "topics/") => {
                left -= 1;
                fault
            }
            _ => Fault::None,
        });
        let (producer, ear) = producer(&broker, "orders").await;
        publish(&broker, &producer, 0, &texts("m", 3)).await;
        ear.until("receipts", |heard| heard.receipts.len() == 3).await;
        assert_eq!(read_all(&broker, "orders", "check", 3).await, texts("m", 3));
        let topics = broker.list_topics(topic("orders").namespace()).await.expect("readable");
        assert_eq!(topics, [topic("orders")], "{fault:?}");
        broker.shutdown().await;
    }
}

#[tokio::test]
async fn lost_answers_while_ledgers_roll_lose_and_repeat_nothing() {
    let cluster = Cluster::new();
    let config = BrokerConfig { ledger_max_bytes: 400, ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let (producer, ear) = producer(&broker, "orders").await;
    let mut number = 0_u32;
    cluster.meta.faults().set_script(move |request| match request {
        Request::Txn(txn) if writes(txn, "managed-ledgers/") => {
            number += 1;
            [Fault::AnswerLost, Fault::None, Fault::RequestLost, Fault::Unavailable, Fault::None]
                [number as usize % 5]
        }
        _ => Fault::None,
    });
    let name = topic("orders");
    let mut count = 0;
    eventually("six ledgers", async || {
        publish(&broker, &producer, count, &texts("m", 4)).await;
        count += 4;
        let all = usize::try_from(count).expect("small");
        ear.until("receipts", |heard| heard.receipts.len() == all).await;
        broker.topic_internal_stats(&name).await.expect("loaded").ledgers.len() >= 6
    })
    .await;
    cluster.meta.faults().clear();
    ear.look(|heard| {
        assert!(heard.closed.is_empty(), "{:?}", heard.closed);
        let indexes: Vec<u64> = heard.receipts.iter().map(|r| r.first_index.0).collect();
        assert_eq!(indexes, (0..count).collect::<Vec<_>>());
    });
    let all = usize::try_from(count).expect("small");
    assert_eq!(read_all(&broker, "orders", "check", all).await.len(), all);
    broker.shutdown().await;
}

#[tokio::test]
async fn an_open_ledger_goes_on_while_the_metadata_is_unreachable() {
    let cluster = Cluster::new();
    let config = BrokerConfig { ledger_max_bytes: 300, ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let (producer, ear) = producer(&broker, "orders").await;
    let (worker, consumed) = consumer(&broker, "orders", "work").await;
    worker.flow(1_000, ALL);
    publish(&broker, &producer, 0, &texts("m", 2)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 2).await;
    cluster.meta.faults().set_down(true);
    publish(&broker, &producer, 2, &texts("m", 30)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 32).await;
    consumed.until("messages", |heard| heard.deliveries.len() == 32).await;
    ack(&worker, 1, &positions(&consumed)).await;
    consumed.until("the ack receipt", |heard| heard.acked == [(1, Ok(()))]).await;
    let ledger = ear.look(|heard| heard.receipts[31].position.ledger);
    assert_eq!(ear.look(|heard| heard.receipts[0].position.ledger), ledger, "it can't roll");
    cluster.meta.faults().set_down(false);
    eventually("rolling", async || {
        let stats = broker.topic_internal_stats(&topic("orders")).await.expect("loaded");
        stats.ledgers.last().is_some_and(|last| last.ledger > ledger)
    })
    .await;
    assert!(ear.look(|heard| heard.closed.is_empty()));
    broker.shutdown().await;
}

#[tokio::test]
async fn a_lost_lease_ends_service_and_a_new_one_begins_it_again() {
    let cluster = Cluster::new();
    let config = BrokerConfig { lease_ttl: Duration::from_secs(1), ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let (first, ear) = producer(&broker, "orders").await;
    publish(&broker, &first, 0, &texts("m", 2)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 2).await;
    assert_eq!(broker.lookup(&topic("orders")).await, Ok(Lookup::Here));
    cluster.clock.advance(Duration::from_secs(5));
    cluster.meta.expire_leases();
    ear.until("the end", |heard| heard.closed == [TopicError::NotOwner]).await;
    let (second, ear) = producer(&broker, "orders").await;
    publish(&broker, &second, 0, &texts("n", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    assert_eq!(ear.look(|heard| heard.receipts[0].first_index), MessageIndex(2));
    broker.shutdown().await;
}

#[tokio::test]
async fn a_bundle_of_another_broker_is_not_served_here() {
    let cluster = Cluster::new();
    let first = cluster.broker(Cluster::config()).await;
    let (_producer, _) = producer(&first, "orders").await;
    let other = BrokerConfig {
        broker_id: geminga_proto::id::BrokerId::new("other").expect("valid"),
        ..Cluster::config()
    };
    let other = cluster.broker(other).await;
    let elsewhere = Lookup::Elsewhere {
        broker_id: "broker".to_owned(),
        service_url: first.config().service_url.clone(),
        admin_url: first.config().admin_url.clone(),
    };
    assert_eq!(other.lookup(&topic("orders")).await, Ok(elsewhere));
    let ear = std::sync::Arc::<crate::testing::Ear>::default();
    let refused = other.open_producer(crate::testing::open("orders"), ear).await.err();
    assert_eq!(refused, Some(TopicError::NotOwner.into()));
    first.shutdown().await;
    let name = topic("orders");
    eventually("the move", async || other.lookup(&name).await == Ok(Lookup::Here)).await;
    let (producer, ear) = producer(&other, "orders").await;
    publish(&other, &producer, 0, &texts("m", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    other.shutdown().await;
}

#[tokio::test]
async fn a_damaged_entry_stops_its_subscription_and_says_so() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, ear) = producer(&broker, "orders").await;
    publish(&broker, &producer, 0, &texts("m", 3)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 3).await;
    let damaged = ear.look(|heard| heard.receipts[1].position);
    cluster.damage(damaged, true);
    let (worker, consumed) = consumer(&broker, "orders", "work").await;
    worker.flow(10, ALL);
    let name = topic("orders");
    eventually("the reason", async || {
        let stats = broker.topic_stats(&name).await.expect("loaded");
        stats.subscriptions[0].1.blocked_on.contains(&BookieError::CorruptEntry.to_string())
    })
    .await;
    assert_eq!(consumed.payloads(), ["m-0"]);
    cluster.damage(damaged, false);
    consumed.until("the rest", |heard| heard.deliveries.len() == 3).await;
    broker.shutdown().await;
}
