//! Ledgers that were created while bookies were missing.

use std::time::Duration;

use geminga_meta::keys;
use geminga_meta::read::read_all as read_all_records;
use geminga_meta::record::BundleRecord;
use geminga_meta::repair::report_damage;
use geminga_proto::env::Env;
use geminga_proto::id::{BookieId, EntryId, LedgerId};

use super::support::{eventually, read_all};
use crate::core::broker::Broker;
use crate::testing::{Cluster, producer, publish, texts, topic};

/// The ledgers that the topic has, oldest first, with their write quorums.
async fn ledgers(cluster: &Cluster, broker: &Broker) -> Vec<(LedgerId, u32)> {
    let stats = broker.topic_internal_stats(&topic("orders")).await.expect("loaded");
    let store = cluster.ledgers();
    let mut found = Vec::new();
    for ledger in stats.ledgers {
        let record = store.describe(ledger.ledger).await.expect("there");
        found.push((ledger.ledger, record.write_quorum));
    }
    found
}

#[tokio::test]
async fn a_ledger_with_too_few_bookies_is_followed_by_a_full_one_soon_after_they_are_back() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    cluster.set_registered(2);
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, ear) = producer(&broker, "orders").await;
    publish(&broker, &producer, 0, &texts("m", 3)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 3).await;
    let narrow = ledgers(&cluster, &broker).await;
    assert_eq!(narrow.iter().map(|(_, quorum)| *quorum).collect::<Vec<_>>(), [2]);
    // Its time has come, but there is no third bookie.
    cluster.clock.advance(Duration::from_secs(11));
    publish(&broker, &producer, 3, &texts("n", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 4).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ledgers(&cluster, &broker).await, narrow);

    cluster.set_registered(3);
    eventually("a full one follows", async || {
        let now = ledgers(&cluster, &broker).await;
        now.len() == 2 && now[0] == narrow[0] && now[1].1 == 3
    })
    .await;
    let full = ledgers(&cluster, &broker).await;
    cluster.clock.advance(Duration::from_secs(11));
    publish(&broker, &producer, 4, &texts("o", 2)).await;
    ear.until("all receipts", |heard| heard.receipts.len() == 6).await;
    ear.look(|heard| {
        assert!(heard.closed.is_empty() && heard.refused.is_empty(), "nobody noticed: {heard:?}");
        let of = |at: usize| heard.receipts[at].position.ledger;
        assert_eq!((of(3), of(4), of(5)), (full[0].0, full[1].0, full[1].0));
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(ledgers(&cluster, &broker).await, full, "that one stays");
    assert_eq!(read_all(&broker, "orders", "check", 6).await.len(), 6);
    broker.shutdown().await;
}

/// The write quorums of the ledgers of the state logs, oldest first.
async fn state_logs(cluster: &Cluster) -> Vec<u32> {
    let bundles = read_all_records::<BundleRecord>(&*cluster.meta, keys::BUNDLES).await;
    let (store, mut found) = (cluster.ledgers(), Vec::new());
    for bundle in bundles.expect("readable") {
        for ledger in bundle.record.state_ledgers {
            found.push(store.describe(ledger).await.expect("there").write_quorum);
        }
    }
    found
}

#[tokio::test(start_paused = true)]
async fn a_state_log_with_too_few_bookies_goes_on_with_all_soon_after_they_are_back() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    cluster.set_registered(2);
    let broker = cluster.broker(Cluster::config()).await;
    let (_producer, _ear) = producer(&broker, "orders").await;
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(state_logs(&cluster).await, [2], "there is no third bookie");
    cluster.set_registered(3);
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(state_logs(&cluster).await.last(), Some(&3));
    let rolled = state_logs(&cluster).await.len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(state_logs(&cluster).await.len(), rolled, "once is enough");
    broker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_ledger_with_a_damaged_copy_is_followed_once_so_that_it_can_be_mended() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, ear) = producer(&broker, "orders").await;
    publish(&broker, &producer, 0, &texts("m", 3)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 3).await;
    cluster.clock.advance(Duration::from_secs(11));
    tokio::time::sleep(Duration::from_secs(25)).await;
    let before = ledgers(&cluster, &broker).await;
    let logs = state_logs(&cluster).await.len();
    assert_eq!(before.len(), 1, "nothing is damaged");
    let bundles = read_all_records::<BundleRecord>(&*cluster.meta, keys::BUNDLES).await;
    let bundles = bundles.expect("readable");
    let state_log = bundles[0].record.state_ledgers.last().copied().expect("it has one");
    for ledger in [before[0].0, state_log] {
        let (bookie, entries) =
            (BookieId::new("bookie-1").expect("valid"), EntryId(0)..=EntryId(0));
        let told = report_damage(&*cluster.meta, &Env::system(), ledger, &bookie, entries).await;
        told.expect("told");
    }
    tokio::time::sleep(Duration::from_secs(25)).await;
    let after = ledgers(&cluster, &broker).await;
    assert_eq!((after.len(), after[0]), (2, before[0]));
    assert_eq!(state_logs(&cluster).await.len(), logs + 1);
    // Nobody has mended it yet; the ledgers that followed are well.
    cluster.clock.advance(Duration::from_secs(11));
    publish(&broker, &producer, 3, &texts("n", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 4).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(ledgers(&cluster, &broker).await, after);
    assert_eq!(state_logs(&cluster).await.len(), logs + 1, "once is enough");
    broker.shutdown().await;
}

#[tokio::test]
async fn all_idle_topics_get_wider_ledgers_though_they_are_found_at_once() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    cluster.set_registered(2);
    let broker = cluster.broker(Cluster::config()).await;
    let names = ["one", "two", "three", "four"];
    for name in names {
        let (producer, ear) = producer(&broker, name).await;
        publish(&broker, &producer, 0, &texts("m", 1)).await;
        ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    }
    cluster.clock.advance(Duration::from_secs(11));
    cluster.set_registered(3);
    // For the broker no time passes any more: a topic that has no turn now has none later.
    eventually("all have two ledgers", async || {
        for name in names {
            let stats = broker.topic_internal_stats(&topic(name)).await.expect("loaded");
            if stats.ledgers.len() != 2 {
                return false;
            }
        }
        true
    })
    .await;
    broker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_state_log_with_a_long_chain_is_shortened_and_then_goes_on_with_all_bookies() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    cluster.set_registered(2);
    // Each owner adds a ledger to the chain.
    for _ in 0..2 {
        let broker = cluster.broker(Cluster::config()).await;
        drop(producer(&broker, "orders").await);
        broker.shutdown().await;
    }
    let broker = cluster.broker(Cluster::config()).await;
    let (_producer, _ear) = producer(&broker, "orders").await;
    assert_eq!(state_logs(&cluster).await, [2, 2, 2]);
    cluster.set_registered(3);
    tokio::time::sleep(Duration::from_secs(45)).await;
    let widths = state_logs(&cluster).await;
    assert_eq!(widths.last(), Some(&3), "{widths:?}");
    assert!(widths.len() < 3, "{widths:?}");
    broker.shutdown().await;
}
