//! The broker as a front-end sees it, over model bookies and the memory metadata store.

mod damaged;
mod deletion;
mod dispatching;
mod faults;
mod lifecycle;
mod narrow;
mod owning;
mod panics;
mod races;
mod sessions;
mod several;
mod state_log_away;
pub(super) mod support;
mod unreadable_owner;

use std::time::Duration;

use geminga_ledger::harness::bookie::Fullness;
use geminga_proto::id::{MessageIndex, Position};

use crate::core::admin::AdminError;
use crate::core::api::{PublishError, TopicError};
use crate::core::config::BrokerConfig;
use crate::testing::{
    Cluster, ack, batch, consumer, entry, payload, producer, publish, texts, topic,
};

use support::{ALL, eventually, positions, read_all};

#[tokio::test]
async fn receipts_come_in_publish_order_with_exact_indexes() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, ear) = producer(&broker, "orders").await;
    for sequence_id in 0..50 {
        let entry = batch("0123456789", 3);
        let permit = broker.budget().acquire(entry.len() as u64).await;
        producer.publish(sequence_id, entry, permit);
    }
    ear.until("all receipts", |heard| heard.receipts.len() == 50).await;
    ear.look(|heard| {
        for (number, receipt) in (0..).zip(&heard.receipts) {
            assert_eq!(receipt.sequence_id, number);
            assert_eq!(receipt.position.entry.0, number);
            assert_eq!(receipt.first_index, MessageIndex(number * 3));
        }
        assert!(heard.refused.is_empty() && heard.closed.is_empty());
    });
    // Nobody consumes, so nothing stays in memory.
    assert_eq!(broker.budget().ingest().used_bytes, 0);
    broker.shutdown().await;
    ear.until("the end", |heard| heard.closed == [TopicError::ShuttingDown]).await;
}

#[tokio::test]
async fn what_is_published_is_consumed_in_order_acknowledged_and_not_seen_again() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, produced) = producer(&broker, "orders").await;
    let (worker, ear) = consumer(&broker, "orders", "work").await;
    worker.flow(1_000, ALL);
    publish(&broker, &producer, 0, &texts("m", 20)).await;
    ear.until("all messages", |heard| heard.deliveries.len() == 20).await;
    assert_eq!(ear.payloads(), texts("m", 20));
    produced.until("all receipts", |heard| heard.receipts.len() == 20).await;
    let held = positions(&ear);
    ack(&worker, 7, &held).await;
    ear.until("the ack receipt", |heard| heard.acked == [(7, Ok(()))]).await;
    let position = worker.position();
    assert_eq!((position.mark_delete, position.backlog_messages), (held.last().copied(), 0));
    assert_eq!(position.last_confirmed, held.last().copied());
    worker.close().await;
    let (_again, ear) = consumer(&broker, "orders", "work").await;
    _again.flow(1_000, ALL);
    publish(&broker, &producer, 20, &texts("n", 1)).await;
    ear.until("the next message", |heard| !heard.deliveries.is_empty()).await;
    assert_eq!(ear.payloads(), texts("n", 1));
    broker.shutdown().await;
}

#[tokio::test]
async fn a_restart_loses_nothing_that_has_a_receipt_and_repeats_nothing_acknowledged() {
    for clean in [true, false] {
        let cluster = Cluster::new();
        let broker = cluster.broker(Cluster::config()).await;
        let (first, produced) = producer(&broker, "orders").await;
        let (worker, ear) = consumer(&broker, "orders", "work").await;
        worker.flow(1_000, ALL);
        publish(&broker, &first, 0, &texts("m", 30)).await;
        produced.until("all receipts", |heard| heard.receipts.len() == 30).await;
        ear.until("all messages", |heard| heard.deliveries.len() == 30).await;
        // Holes: every other message stays.
        let held = positions(&ear);
        let odd: Vec<Position> = held.iter().skip(1).step_by(2).copied().collect();
        ack(&worker, 1, &odd).await;
        ear.until("the ack receipt", |heard| heard.acked == [(1, Ok(()))]).await;
        if clean {
            broker.shutdown().await;
        }
        drop((worker, first, broker));

        let broker = cluster.broker(Cluster::config()).await;
        let (worker, ear) = consumer(&broker, "orders", "work").await;
        worker.flow(1_000, ALL);
        let (second, produced) = producer(&broker, "orders").await;
        publish(&broker, &second, 0, &texts("n", 2)).await;
        ear.until("what is left", |heard| heard.deliveries.len() >= 17).await;
        let mut expected: Vec<String> = texts("m", 30).into_iter().step_by(2).collect();
        expected.extend(texts("n", 2));
        assert_eq!(ear.payloads(), expected, "clean: {clean}");
        produced.until("receipts", |heard| heard.receipts.len() == 2).await;
        let first_index = produced.look(|heard| heard.receipts[0].first_index);
        assert_eq!(first_index, MessageIndex(30), "indexes go on across ledgers");
        broker.shutdown().await;
    }
}

#[tokio::test]
async fn ledgers_roll_by_size_and_consumed_ones_are_trimmed() {
    let cluster = Cluster::new();
    let config = BrokerConfig { ledger_max_bytes: 1_000, ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let (producer, produced) = producer(&broker, "orders").await;
    for round in 0..10 {
        publish(&broker, &producer, round * 10, &texts("m", 10)).await;
        let count = usize::try_from(round + 1).expect("small") * 10;
        produced.until("receipts", |heard| heard.receipts.len() == count).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let rolled = produced.look(|heard| {
        assert!(heard.receipts.is_sorted_by_key(|receipt| receipt.position));
        assert!(heard.receipts.is_sorted_by_key(|receipt| receipt.first_index));
        let mut ledgers: Vec<_> = heard.receipts.iter().map(|r| r.position.ledger).collect();
        ledgers.dedup();
        ledgers.len()
    });
    assert!(rolled >= 3, "{rolled} ledgers");
    let name = topic("orders");
    // Nobody has subscribed yet: everything is kept.
    let kept = broker.topic_internal_stats(&name).await.expect("loaded").entries;
    assert_eq!(kept, 100);

    let (worker, ear) = consumer(&broker, "orders", "work").await;
    worker.flow(1_000, ALL);
    ear.until("all messages", |heard| heard.deliveries.len() == 100).await;
    assert_eq!(ear.look(|heard| heard.deliveries.len()), 100);
    let held = positions(&ear);
    ack(&worker, 1, &held[..95]).await;
    ear.until("the ack receipt", |heard| heard.acked.len() == 1).await;
    eventually("trimming", async || {
        let stats = broker.topic_internal_stats(&name).await.expect("loaded");
        stats.ledgers.first().is_some_and(|first| first.ledger >= held[95].ledger)
    })
    .await;
    // What isn't acknowledged is still there, after a restart too.
    let first_kept = held[95];
    drop((worker, producer));
    drop(broker);
    let broker = cluster.broker(Cluster::config()).await;
    let (worker, ear) = consumer(&broker, "orders", "work").await;
    worker.flow(1_000, ALL);
    ear.until("what is left", |heard| heard.deliveries.len() == 5).await;
    assert_eq!(positions(&ear).first(), Some(&first_kept));
    broker.shutdown().await;
}

#[tokio::test]
async fn data_that_nobody_subscribed_to_is_kept_for_the_default_retention() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, produced) = producer(&broker, "orders").await;
    publish(&broker, &producer, 0, &texts("m", 10)).await;
    produced.until("receipts", |heard| heard.receipts.len() == 10).await;
    let name = topic("orders");
    // Idle: the open ledger is closed without a successor.
    cluster.clock.advance(Duration::from_secs(3_600));
    eventually("closing", async || {
        broker.topic_internal_stats(&name).await.is_ok_and(|stats| stats.state == "closed")
    })
    .await;
    let stats = broker.topic_internal_stats(&name).await.expect("loaded");
    assert_eq!((stats.entries, stats.ledgers.len()), (10, 1));
    cluster.clock.advance(Duration::from_secs(23 * 3_600 + 60));
    cluster.clock.advance(Duration::from_secs(3_600));
    eventually("trimming", async || {
        broker.topic_internal_stats(&name).await.is_ok_and(|stats| stats.entries == 0)
    })
    .await;
    // Indexes survive it.
    publish(&broker, &producer, 10, &texts("n", 1)).await;
    produced.until("a receipt", |heard| heard.receipts.len() == 11).await;
    assert_eq!(produced.look(|heard| heard.receipts[10].first_index), MessageIndex(10));
    assert_eq!(read_all(&broker, "orders", "late", 1).await, texts("n", 1));
    broker.shutdown().await;
}

#[tokio::test]
async fn a_zombie_owner_can_neither_publish_nor_acknowledge() {
    let cluster = Cluster::new();
    let (zombie, door) = cluster.broker_behind_door(Cluster::config()).await;
    let (old, old_ear) = producer(&zombie, "orders").await;
    let (stale, stale_ear) = consumer(&zombie, "orders", "work").await;
    stale.flow(1_000, ALL);
    publish(&zombie, &old, 0, &texts("m", 4)).await;
    stale_ear.until("messages", |heard| heard.deliveries.len() == 4).await;
    // The same broker id: a restart that the old process can't know of.
    door.set_open(false);
    let broker = cluster.broker(Cluster::config()).await;
    let (new, new_ear) = producer(&broker, "orders").await;
    publish(&broker, &new, 0, &texts("n", 2)).await;
    new_ear.until("receipts", |heard| heard.receipts.len() == 2).await;
    publish(&zombie, &old, 4, &texts("lost", 1)).await;
    ack(&stale, 9, &positions(&stale_ear)).await;
    old_ear.until("the end", |heard| !heard.closed.is_empty()).await;
    stale_ear.until("the failed ack", |heard| !heard.acked.is_empty()).await;
    stale_ear.look(|heard| assert!(heard.acked[0].1.is_err(), "{:?}", heard.acked));
    assert_eq!(old_ear.look(|heard| heard.receipts.len()), 4);
    old_ear.look(|heard| assert_eq!(heard.closed, [TopicError::Fenced]));

    let (worker, ear) = consumer(&broker, "orders", "work").await;
    worker.flow(1_000, ALL);
    ear.until("all messages", |heard| heard.deliveries.len() == 6).await;
    let mut expected = texts("m", 4);
    expected.extend(texts("n", 2));
    assert_eq!(ear.payloads(), expected);
    broker.shutdown().await;
}

#[tokio::test]
async fn full_disks_refuse_publishes_until_consumers_have_freed_space() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, ear) = producer(&broker, "orders").await;
    let (worker, consumed) = consumer(&broker, "orders", "work").await;
    publish(&broker, &producer, 0, &texts("m", 3)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 3).await;
    cluster.set_full(Fullness::FirstMark);
    publish(&broker, &producer, 3, &texts("stalled", 1)).await;
    let name = topic("orders");
    eventually("the stall", async || {
        broker.topic_stats(&name).await.is_ok_and(|stats| stats.storage_full)
    })
    .await;
    publish(&broker, &producer, 4, &texts("refused", 1)).await;
    ear.look(|heard| assert_eq!(heard.refused, [(4, PublishError::StorageFull)]));
    // Draining: acknowledgements go on, and the consumed ledger is given back.
    worker.flow(1_000, ALL);
    consumed.until("messages", |heard| heard.deliveries.len() == 3).await;
    let held = positions(&consumed);
    ack(&worker, 1, &held).await;
    consumed.until("the ack receipt", |heard| heard.acked == [(1, Ok(()))]).await;
    eventually("the old ledger's end", async || {
        broker.ledger(held[0].ledger).await == Err(AdminError::LedgerNotFound(held[0].ledger))
    })
    .await;
    cluster.set_full(Fullness::Free);
    ear.until("the stalled receipt", |heard| heard.receipts.len() == 4).await;
    publish(&broker, &producer, 5, &texts("n", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 5).await;
    consumed.until("the rest", |heard| heard.deliveries.len() == 5).await;
    assert_eq!(&consumed.payloads()[3..], ["stalled-0", "n-0"]);
    broker.shutdown().await;
}

#[tokio::test]
async fn when_a_quorum_is_lost_the_rest_goes_in_order_into_the_next_ledger() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, ear) = producer(&broker, "orders").await;
    publish(&broker, &producer, 0, &texts("m", 5)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 5).await;
    cluster.set_up(0, false);
    cluster.set_up(1, false);
    publish(&broker, &producer, 5, &texts("m", 5)).await;
    // It hears why it waits: first of the ledger, then of what ends the ledger.
    let says = |why: &TopicError, words| why.to_string().contains(words);
    ear.until("why the ledger waits", |heard| {
        heard.delayed.iter().any(|why| says(why, "too few bookies can take writes"))
    })
    .await;
    ear.until("why its end waits", |heard| {
        heard.delayed.iter().any(|why| says(why, "can't be fenced"))
    })
    .await;
    assert_eq!(ear.look(|heard| heard.receipts.len()), 5);
    cluster.set_up(0, true);
    cluster.set_up(1, true);
    ear.until("all receipts", |heard| heard.receipts.len() == 10).await;
    ear.look(|heard| {
        let ids: Vec<u64> = heard.receipts.iter().map(|receipt| receipt.sequence_id).collect();
        assert_eq!(ids, (0..10).collect::<Vec<_>>());
        assert!(heard.receipts.is_sorted_by_key(|receipt| receipt.position));
        let indexes: Vec<u64> = heard.receipts.iter().map(|r| r.first_index.0).collect();
        assert_eq!(indexes, (0..10).collect::<Vec<_>>());
        assert!(heard.closed.is_empty());
    });
    assert_eq!(read_all(&broker, "orders", "check", 10).await.len(), 10);
    broker.shutdown().await;
}

#[tokio::test]
async fn the_timestamp_never_goes_back_even_across_restarts() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (first, ear) = producer(&broker, "orders").await;
    publish(&broker, &first, 0, &texts("m", 1)).await;
    cluster.clock.set_wall_ms(1_600_000_000_000);
    publish(&broker, &first, 1, &texts("m", 1)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 2).await;
    broker.shutdown().await;
    drop((first, broker));
    let broker = cluster.broker(Cluster::config()).await;
    let (second, ear) = producer(&broker, "orders").await;
    publish(&broker, &second, 0, &texts("m", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    let (worker, ear) = consumer(&broker, "orders", "check").await;
    worker.flow(10, ALL);
    ear.until("messages", |heard| heard.deliveries.len() == 3).await;
    let stamps: Vec<u64> = ear.look(|heard| {
        let stamp = |delivery: &crate::core::api::Delivery| {
            let stored = delivery.payload.clone().into_bytes();
            geminga_proto::entry::split_stored(&stored).expect("stored").0.timestamp_ms
        };
        heard.deliveries.iter().map(stamp).collect()
    });
    assert_eq!(stamps, [1_700_000_000_000; 3]);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_stalled_consumer_holds_no_more_than_its_credit() {
    let cluster = Cluster::new();
    let config = BrokerConfig {
        memory_budget_bytes: 32 << 20,
        tail_cache_bytes: 64 << 10,
        ..Cluster::config()
    };
    let broker = cluster.broker(config).await;
    let (producer, produced) = producer(&broker, "orders").await;
    let (stalled, stalled_ear) = consumer(&broker, "orders", "stalled").await;
    stalled.flow(5, ALL);
    let text = "x".repeat(1_000);
    for sequence_id in 0..500 {
        let entry = entry(&text);
        let permit = broker.budget().acquire(entry.len() as u64).await;
        producer.publish(sequence_id, entry, permit);
    }
    produced.until("receipts", |heard| heard.receipts.len() == 500).await;
    assert_eq!(stalled_ear.look(|heard| heard.deliveries.len()), 5);
    assert!(broker.budget().ingest().used_bytes <= 64 << 10);
    // What it holds is in the budget until it is written to the socket.
    assert!(broker.budget().egress().used_bytes >= 5_000);
    stalled.flow(1_000, ALL);
    stalled_ear.until("the rest", |heard| heard.deliveries.len() == 500).await;
    stalled_ear.look(|heard| {
        assert!(heard.deliveries.is_sorted_by_key(|delivery| delivery.position));
        heard.deliveries.clear();
    });
    drop(stalled);
    eventually("bytes given back", async || broker.budget().egress().used_bytes == 0).await;
    broker.shutdown().await;
}

#[tokio::test]
async fn at_the_budgets_limit_publishing_waits_and_goes_on() {
    let cluster = Cluster::new();
    let config = BrokerConfig {
        memory_budget_bytes: 4 << 20,
        max_message_bytes: 1 << 20,
        producer_credit_bytes: 64 << 20,
        tail_cache_bytes: 3 << 20,
        ..Cluster::config()
    };
    let broker = cluster.broker(config).await;
    let (producer, ear) = producer(&broker, "orders").await;
    // With a consumer attached, what is stored goes into the cache, which has to give way.
    let (_idle, _) = consumer(&broker, "orders", "idle").await;
    let text = "x".repeat(500_000);
    for sequence_id in 0..40 {
        let entry = entry(&text);
        let permit = broker.budget().acquire(entry.len() as u64).await;
        let usage = broker.budget().ingest();
        assert!(usage.used_bytes <= usage.capacity_bytes);
        producer.publish(sequence_id, entry, permit);
    }
    ear.until("receipts", |heard| heard.receipts.len() == 40).await;
    broker.shutdown().await;
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_the_producer_stays() {
    let cluster = Cluster::new();
    let config = BrokerConfig {
        max_message_bytes: 2_048,
        max_messages_per_batch: 10,
        producer_credit_bytes: 4_096,
        ..Cluster::config()
    };
    let broker = cluster.broker(config).await;
    let (producer, ear) = producer(&broker, "orders").await;
    let send = async |sequence_id, entry: bytes::Bytes| {
        let permit = broker.budget().acquire(entry.len() as u64).await;
        producer.publish(sequence_id, entry, permit);
    };
    send(0, entry(&"x".repeat(3_000))).await;
    send(1, batch("0123456789abcdef", 11)).await;
    let mut corrupt = entry("hello").to_vec();
    *corrupt.last_mut().expect("not empty") ^= 1;
    send(2, corrupt.into()).await;
    send(3, bytes::Bytes::from_static(b"nonsense")).await;
    send(4, entry("fine")).await;
    ear.until("the receipt", |heard| heard.receipts.len() == 1).await;
    cluster.set_up(0, false);
    for sequence_id in 5..9 {
        send(sequence_id, entry(&"x".repeat(1_500))).await;
    }
    ear.look(|heard| {
        let refused: Vec<u64> = heard.refused.iter().map(|(id, _)| *id).collect();
        assert_eq!(refused, [0, 1, 2, 3, 7, 8]);
        let error = |index: usize| &heard.refused[index].1;
        assert!(matches!(error(0), PublishError::TooLarge { limit: 2_048, .. }));
        assert!(matches!(error(1), PublishError::Entry(_)));
        assert!(matches!(error(2), PublishError::Entry(_)));
        assert!(matches!(error(3), PublishError::Entry(_)));
        assert_eq!(*error(4), PublishError::Credit { credit: 4_096 });
        assert!(heard.closed.is_empty());
        assert_eq!(heard.receipts[0].sequence_id, 4);
    });
}

#[tokio::test]
async fn a_delivery_shows_what_the_producer_sent_byte_for_byte() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, _) = producer(&broker, "orders").await;
    let (worker, ear) = consumer(&broker, "orders", "work").await;
    worker.flow(10, ALL);
    let sent = entry("hello");
    let permit = broker.budget().acquire(sent.len() as u64).await;
    producer.publish(0, sent.clone(), permit);
    ear.until("the message", |heard| heard.deliveries.len() == 1).await;
    ear.look(|heard| {
        assert_eq!(heard.deliveries[0].payload.body, sent);
        assert_eq!(payload(&heard.deliveries[0]), "hello");
    });
    broker.shutdown().await;
}
