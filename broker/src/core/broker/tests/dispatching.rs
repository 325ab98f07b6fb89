//! What consumers see: catching up over ledgers, redelivery, partial acknowledgement.

use bytes::Bytes;
use geminga_proto::id::EntryId;

use super::{ALL, positions};
use crate::core::api::{Ack, AckPosition, SubscribeError, SubscriptionType};
use crate::core::config::BrokerConfig;
use crate::testing::{Cluster, Ear, ack, batch, consumer, producer, publish, shared, texts, topic};

#[tokio::test]
async fn catching_up_reads_all_ledgers_in_order_in_small_steps() {
    let cluster = Cluster::new();
    let config =
        BrokerConfig { ledger_max_bytes: 8_000, read_ahead_bytes: 3_000, ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let (producer, ear) = producer(&broker, "orders").await;
    let all = texts("m", 1_000);
    for (round, part) in (0_u64..).zip(all.chunks(50)) {
        publish(&broker, &producer, round * 50, part).await;
        let count = (usize::try_from(round).expect("small") + 1) * 50;
        ear.until("receipts", |heard| heard.receipts.len() == count).await;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let (worker, consumed) = consumer(&broker, "orders", "work").await;
    for step in 1..=100 {
        worker.flow(10, 700);
        // The byte credit of a step is less than its ten messages need: some come later.
        if step % 10 == 0 {
            tokio::task::yield_now().await;
        }
    }
    worker.flow(0, ALL);
    consumed.until("all messages", |heard| heard.deliveries.len() == 1_000).await;
    assert_eq!(consumed.payloads(), all);
    let stats = broker.stats();
    assert!(stats.cache_misses >= 1_000, "{stats:?}");
    let ledgers = broker.topic_internal_stats(&topic("orders")).await.expect("loaded").ledgers;
    assert!(ledgers.len() >= 5, "{ledgers:?}");
    broker.shutdown().await;
}

#[tokio::test]
async fn a_tail_consumer_costs_no_read_from_a_bookie() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, ear) = producer(&broker, "orders").await;
    let (quick, quick_ear) = consumer(&broker, "orders", "quick").await;
    let (slow, slow_ear) = consumer(&broker, "orders", "slow").await;
    quick.flow(10_000, ALL);
    for round in 0..20 {
        publish(&broker, &producer, round * 10, &texts("m", 10)).await;
        // The slow one is always a little behind.
        slow.flow(9, ALL / 100);
    }
    ear.until("receipts", |heard| heard.receipts.len() == 200).await;
    slow.flow(1_000, ALL / 100);
    for ear in [&quick_ear, &slow_ear] {
        ear.until("all messages", |heard| heard.deliveries.len() == 200).await;
        ear.look(|heard| {
            assert!(heard.deliveries.is_sorted_by_key(|delivery| delivery.position));
        });
    }
    assert_eq!(broker.stats().cache_misses, 0);
    // Everybody has read everything: nothing of it stays in memory.
    assert_eq!(broker.budget().ingest().used_bytes, 0);
    broker.shutdown().await;
}

#[tokio::test]
async fn what_a_consumer_leaves_behind_goes_to_the_next_with_its_count() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, _) = producer(&broker, "orders").await;
    let (first, first_ear) = consumer(&broker, "orders", "work").await;
    first.flow(100, ALL);
    publish(&broker, &producer, 0, &texts("m", 5)).await;
    first_ear.until("messages", |heard| heard.deliveries.len() == 5).await;
    let held = positions(&first_ear);
    ack(&first, 1, &[held[0], held[3]]).await;
    first_ear.until("the ack receipt", |heard| heard.acked.len() == 1).await;
    drop(first);
    let (second, second_ear) = consumer(&broker, "orders", "work").await;
    second.flow(100, ALL);
    second_ear.until("the rest", |heard| heard.deliveries.len() == 3).await;
    assert_eq!(second_ear.payloads(), ["m-1", "m-2", "m-4"]);
    second_ear.look(|heard| {
        assert!(heard.deliveries.iter().all(|delivery| delivery.redelivery_count == 1));
    });
    second.redeliver(&[held[2]]);
    second_ear.until("it again", |heard| heard.deliveries.len() == 4).await;
    assert_eq!(second_ear.payloads()[3], "m-2");
    broker.shutdown().await;
}

#[tokio::test]
async fn half_a_batch_acknowledged_stays_acknowledged_after_a_crash() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (first, _) = producer(&broker, "orders").await;
    let (worker, ear) = consumer(&broker, "orders", "work").await;
    worker.flow(100, ALL);
    let entry = batch("0123456789", 10);
    let permit = broker.budget().acquire(entry.len() as u64).await;
    first.publish(0, entry, permit);
    ear.until("the batch", |heard| heard.deliveries.len() == 1).await;
    assert_eq!(ear.look(|heard| heard.deliveries[0].messages), 10);
    let position = positions(&ear)[0];
    let acked_indexes = Bytes::from_static(&[0b0101_1111, 0b10]);
    let positions = vec![AckPosition { position, acked_indexes }];
    worker.ack(Ack { request_id: 3, cumulative: false, positions }).await;
    ear.until("the ack receipt", |heard| heard.acked == [(3, Ok(()))]).await;
    drop((worker, first, broker));
    let broker = cluster.broker(Cluster::config()).await;
    let (worker, ear) = consumer(&broker, "orders", "work").await;
    worker.flow(100, ALL);
    ear.until("the batch", |heard| heard.deliveries.len() == 1).await;
    ear.look(|heard| {
        assert_eq!(heard.deliveries[0].acked_indexes, &[0b0101_1111, 0b10][..]);
        assert_eq!(heard.deliveries[0].messages, 3);
    });
    assert_eq!(worker.position().backlog_messages, 3);
    broker.shutdown().await;
}

#[tokio::test]
async fn acknowledging_what_was_never_handed_out_looks_it_up() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, ear) = producer(&broker, "orders").await;
    publish(&broker, &producer, 0, &texts("m", 10)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 10).await;
    let mut exclusive = shared("orders", "work");
    exclusive.subscription_type = SubscriptionType::Exclusive;
    let consumed = std::sync::Arc::<Ear>::default();
    let worker = broker.subscribe(exclusive, consumed.clone()).await.expect("free");
    let fourth = ear.look(|heard| heard.receipts[3].position);
    let positions = vec![AckPosition { position: fourth, acked_indexes: Bytes::new() }];
    worker.ack(Ack { request_id: 5, cumulative: true, positions }).await;
    consumed.until("the ack receipt", |heard| heard.acked == [(5, Ok(()))]).await;
    assert_eq!(worker.position().backlog_messages, 6);
    let mut nowhere = fourth;
    nowhere.entry = EntryId(1_000);
    ack(&worker, 6, &[nowhere]).await;
    consumed.until("the refusal", |heard| heard.acked.len() == 2).await;
    consumed.look(|heard| assert!(heard.acked[1].1.is_err(), "{:?}", heard.acked));
    broker.shutdown().await;
}

#[tokio::test]
async fn an_exclusive_subscription_has_one_consumer_and_one_type() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let mut exclusive = shared("orders", "work");
    exclusive.subscription_type = SubscriptionType::Exclusive;
    let ear = std::sync::Arc::<Ear>::default();
    let first = broker.subscribe(exclusive.clone(), ear.clone()).await.expect("free");
    let busy = broker.subscribe(exclusive, ear.clone()).await.err();
    assert_eq!(busy, Some(SubscribeError::Busy("work".to_owned())));
    let wrong = broker.subscribe(shared("orders", "work"), ear.clone()).await.err();
    assert!(matches!(wrong, Some(SubscribeError::WrongType { .. })), "{wrong:?}");
    assert!(!first.name().is_empty());
    drop(first);
    assert!(broker.subscribe(shared("orders", "work"), ear).await.is_ok());
    broker.shutdown().await;
}

#[tokio::test]
async fn a_producer_that_closes_has_all_its_receipts() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, ear) = producer(&broker, "orders").await;
    publish(&broker, &producer, 0, &texts("m", 200)).await;
    producer.close().await;
    assert_eq!(ear.look(|heard| heard.receipts.len()), 200);
    assert_eq!(broker.stats().producers, 0);
    broker.shutdown().await;
}
