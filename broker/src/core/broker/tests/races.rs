//! Several things at a time: full disks and rolling, outages right after a roll, trimming and new
//! subscriptions, a read that is answered after its subscription has gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use geminga_ledger::harness::bookie::Fullness;
use geminga_meta::store::Op;
use geminga_meta::store::memory::{Fault, Request};

use super::support::{ALL, cut_a_roll_short, eventually, positions, published, receipts, rolled};
use crate::core::admin::{AdminError, ResetTo};
use crate::core::api::{AckError, TopicError};
use crate::core::config::BrokerConfig;
use crate::testing::{Cluster, ack, consumer, producer, publish, texts, topic};

#[tokio::test]
async fn full_disks_while_a_roll_is_due_are_freed_by_consuming() {
    let cluster = Cluster::new();
    let config = BrokerConfig { ledger_max_bytes: 400, ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let (producer, ear) = producer(&broker, "orders").await;
    let (worker, consumed) = consumer(&broker, "orders", "work").await;
    publish(&broker, &producer, 0, &texts("m", 2)).await;
    receipts(&ear, 2).await;
    cluster.set_full(Fullness::FirstMark);
    // The stalled entry takes the ledger above its size, so that a roll is due.
    publish(&broker, &producer, 2, &["stalled".repeat(100)]).await;
    let name = topic("orders");
    eventually("the stall", async || {
        broker.topic_stats(&name).await.is_ok_and(|stats| stats.storage_full)
    })
    .await;
    // Time for the roll to be tried on full disks; it must do no harm then or later.
    tokio::time::sleep(Duration::from_millis(50)).await;
    worker.flow(1_000, ALL);
    consumed.until("messages", |heard| heard.deliveries.len() == 2).await;
    let held = positions(&consumed);
    ack(&worker, 1, &held).await;
    consumed.until("the ack receipt", |heard| heard.acked == [(1, Ok(()))]).await;
    eventually("the consumed ledger's end", async || {
        broker.ledger(held[0].ledger).await == Err(AdminError::LedgerNotFound(held[0].ledger))
    })
    .await;
    cluster.set_full(Fullness::Free);
    ear.until("the stalled receipt", |heard| heard.receipts.len() == 3).await;
    eventually("room", async || {
        broker.topic_stats(&name).await.is_ok_and(|stats| !stats.storage_full)
    })
    .await;
    publish(&broker, &producer, 3, &texts("n", 1)).await;
    receipts(&ear, 4).await;
    assert!(ear.look(|heard| heard.closed.is_empty()));
    broker.shutdown().await;
}

#[tokio::test]
async fn a_late_answer_to_a_deleted_subscriptions_read_skips_nothing_of_its_successor() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (_producer, ear) = published(&broker, "orders", &texts("m", 10)).await;
    let sixth = ear.look(|heard| heard.receipts[5].position);
    let name = topic("orders");
    let from = ResetTo::Position(sixth);
    broker.create_subscription(&name, "work", from).await.expect("creates");
    // Reads wait for memory, so they are answered when the test says so.
    let all = broker.budget().egress().capacity_bytes;
    let hog = broker.budget().acquire_egress(all).await;
    let (first, _) = consumer(&broker, "orders", "work").await;
    first.flow(100, ALL);
    first.unsubscribe().await.expect("alone");
    let (second, consumed) = consumer(&broker, "orders", "work").await;
    second.flow(100, ALL);
    eventually("two reads wait", async || broker.budget().egress().waiting == 2).await;
    drop(hog);
    consumed.until("messages", |heard| heard.deliveries.len() >= 10).await;
    assert_eq!(consumed.payloads(), texts("m", 10));
    broker.shutdown().await;
}

#[tokio::test]
async fn an_outage_right_after_a_roll_is_not_taken_for_damage() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let config = BrokerConfig { ledger_max_bytes: 400, ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let (producer, ear) = published(&broker, "orders", &texts("m", 1)).await;
    let sequence_id = cut_a_roll_short(&cluster, &broker, &producer, &ear).await;
    let name = topic("orders");
    let stored = usize::try_from(sequence_id).expect("small");
    cluster.set_up(0, false);
    cluster.set_up(1, false);
    publish(&broker, &producer, sequence_id, &texts("late", 5)).await;
    eventually("the quorum's loss", async || {
        broker.topic_internal_stats(&name).await.is_ok_and(|stats| stats.state == "recovering")
    })
    .await;
    // Time for receipts, which must not come.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(ear.look(|heard| heard.receipts.len()), stored);
    cluster.set_up(0, true);
    cluster.set_up(1, true);
    cluster.meta.faults().clear();
    ear.until("all receipts", |heard| heard.receipts.len() == stored + 5).await;
    ear.look(|heard| {
        assert!(heard.closed.is_empty(), "{:?}", heard.closed);
        let indexes = heard.receipts.iter().map(|receipt| receipt.first_index.0);
        assert!(indexes.eq(0..stored as u64 + 5));
    });
    broker.shutdown().await;
}

#[tokio::test]
async fn a_subscription_made_while_its_first_ledger_is_trimmed_has_no_backlog_of_it() {
    let cluster = Cluster::new();
    let config = BrokerConfig { ledger_max_bytes: 400, ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let name = topic("orders");
    let (producer, ear) = producer(&broker, "orders").await;
    let (worker, consumed) = consumer(&broker, "orders", "work").await;
    worker.flow(100, ALL);
    publish(&broker, &producer, 0, &["x".repeat(500)]).await;
    rolled(&broker, "orders").await;
    publish(&broker, &producer, 1, &texts("n", 2)).await;
    receipts(&ear, 3).await;
    consumed.until("messages", |heard| heard.deliveries.len() == 3).await;
    let held = positions(&consumed);
    let trimming = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&trimming);
    cluster.meta.faults().set_script(move |request| {
        if let Request::Txn(txn) = request
            && txn.ops.iter().any(|op| matches!(op, Op::Delete(key) if key.starts_with("ledgers/")))
        {
            seen.store(true, Ordering::Release);
        }
        Fault::None
    });
    // Less than a request may take.
    cluster.meta.faults().set_delay(Duration::from_millis(200));
    ack(&worker, 1, &held[..1]).await;
    eventually("trimming", async || trimming.load(Ordering::Acquire)).await;
    cluster.meta.faults().set_delay(Duration::ZERO);
    broker.create_subscription(&name, "late", ResetTo::Earliest).await.expect("creates");
    broker.reset_subscription(&name, "work", ResetTo::Earliest).await.expect("moves");
    eventually("the ledger's end", async || {
        broker.topic_internal_stats(&name).await.expect("loaded").entries == 2
    })
    .await;
    cluster.meta.faults().clear();
    let subscriptions = broker.list_subscriptions(&name).await.expect("loaded");
    let backlogs: Vec<_> =
        subscriptions.iter().map(|(name, it)| (&**name, it.msg_backlog)).collect();
    assert_eq!(backlogs, [("late", 2), ("work", 2)]);
    // It is so after a restart, too.
    broker.shutdown().await;
    let broker = cluster.broker(Cluster::config()).await;
    let subscriptions = broker.list_subscriptions(&name).await.expect("loaded");
    assert!(subscriptions.iter().all(|(_, it)| it.msg_backlog == 2), "{subscriptions:?}");
    broker.shutdown().await;
}

#[tokio::test]
async fn acknowledging_a_damaged_entry_says_that_it_is_damaged() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (_producer, ear) = published(&broker, "orders", &texts("m", 3)).await;
    let second = ear.look(|heard| heard.receipts[1].position);
    cluster.damage(second, true);
    let (worker, consumed) = consumer(&broker, "orders", "work").await;
    ack(&worker, 7, &[second]).await;
    consumed.until("the refusal", |heard| heard.acked.len() == 1).await;
    consumed.look(|heard| {
        let refused = &heard.acked[0].1;
        assert!(matches!(refused, Err(AckError::Topic(TopicError::Corrupt(_)))), "{refused:?}");
    });
    broker.shutdown().await;
}

#[tokio::test]
async fn what_was_read_ahead_gives_way_to_whoever_waits_to_deliver() {
    let cluster = Cluster::new();
    let config = BrokerConfig {
        memory_budget_bytes: 32 << 20,
        tail_cache_bytes: 64 << 10,
        read_ahead_bytes: 64 << 10,
        housekeeping_interval: Duration::from_secs(3_600),
        ..Cluster::config()
    };
    let broker = cluster.broker(config).await;
    let (producer, ear) = producer(&broker, "orders").await;
    publish(&broker, &producer, 0, &vec!["x".repeat(1_000); 300]).await;
    receipts(&ear, 300).await;
    let (stopped, consumed) = consumer(&broker, "orders", "work").await;
    stopped.flow(10, ALL);
    consumed.until("messages", |heard| heard.deliveries.len() >= 10).await;
    consumed.look(|heard| heard.deliveries.clear());
    let budget = broker.budget().clone();
    eventually("reading ahead", async || budget.egress().used_bytes >= 30_000).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let free = budget.egress().capacity_bytes - budget.egress().used_bytes;
    let _hog = budget.acquire_egress(free).await;
    let waiting = tokio::time::timeout(Duration::from_secs(5), budget.acquire_egress(20_000));
    assert!(waiting.await.is_ok(), "read-ahead is kept while others wait");
    // It is read again when it is asked for.
    stopped.flow(20, ALL);
    drop(_hog);
    consumed.until("more messages", |heard| heard.deliveries.len() >= 20).await;
    broker.shutdown().await;
}
