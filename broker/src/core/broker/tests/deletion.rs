//! Namespaces that are deleted while they are used, topics that are too damaged to be loaded, and
//! what both leave behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use geminga_meta::keys;
use geminga_meta::store::memory::{Fault, Request};
use geminga_meta::store::{MetadataStore, Op, Txn};
use geminga_proto::topic_name::NamespaceName;

use super::eventually;
use crate::core::admin::{AdminError, NamespacePolicies};
use crate::core::api::TopicError;
use crate::core::broker::Broker;
use crate::testing::{Cluster, Ear, consumer, open, producer, publish, texts, topic};

fn deletes(request: Request<'_>, prefix: &str) -> bool {
    let Request::Txn(txn) = request else { return false };
    txn.ops.iter().any(|op| matches!(op, Op::Delete(key) if key.starts_with(prefix)))
}

/// A namespace whose bundle is in use, without topics.
async fn used_namespace(broker: &Broker) -> NamespaceName {
    let name: NamespaceName = "acme/prod".parse().expect("valid");
    broker.create_tenant("acme").await.expect("new");
    broker.create_namespace(&name, NamespacePolicies::default(), Some(1)).await.expect("new");
    let (first, ear) = producer(broker, "acme/prod/first").await;
    publish(broker, &first, 0, &texts("m", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    drop(first);
    broker.delete_topic(&topic("acme/prod/first"), true).await.expect("deletes");
    name
}

#[tokio::test]
async fn a_topic_that_is_created_while_its_namespace_is_deleted_is_not_orphaned() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let name = used_namespace(&broker).await;
    let deleting = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&deleting);
    cluster.meta.faults().set_script(move |request| {
        if deletes(request, "namespaces/") {
            seen.store(true, Ordering::Release);
        }
        Fault::None
    });
    cluster.meta.faults().set_delay(Duration::from_millis(300));
    let deletion = {
        let (broker, name) = (broker.clone(), name.clone());
        tokio::spawn(async move { broker.delete_namespace(&name).await })
    };
    eventually("the deletion", async || deleting.load(Ordering::Acquire)).await;
    cluster.meta.faults().set_delay(Duration::ZERO);
    let created = broker.open_producer(open("acme/prod/late"), Arc::<Ear>::default()).await;
    let deleted = deletion.await.expect("no panic");
    cluster.meta.faults().clear();
    assert_eq!(deleted, Ok(()));
    assert!(created.is_err(), "it is in no namespace");
    let topics = cluster.meta.range(&keys::topics_of(&name), None, 10).await.expect("readable");
    assert_eq!(topics.pairs, []);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_deletion_that_failed_or_was_cut_short_holds_up_creation_no_longer_than_its_lease() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let name = used_namespace(&broker).await;
    cluster.meta.faults().set_script(|request| {
        if deletes(request, "namespaces/") { Fault::Unavailable } else { Fault::None }
    });
    assert!(broker.delete_namespace(&name).await.is_err());
    cluster.meta.faults().clear();
    let (kept, _) = producer(&broker, "acme/prod/kept").await;
    drop(kept);
    broker.delete_topic(&topic("acme/prod/kept"), true).await.expect("deletes");
    // The mark of a broker that has gone.
    let lease = cluster.meta.grant_lease(Duration::from_secs(30)).await.expect("granted");
    let mark = Txn::default().put_leased(keys::deletion(&name), "anything", lease);
    cluster.meta.txn(mark).await.expect("put");
    let held_up = broker.open_producer(open("acme/prod/late"), Arc::<Ear>::default()).await;
    assert!(held_up.is_err());
    let held_up = broker.delete_namespace(&name).await;
    assert!(matches!(held_up, Err(AdminError::Metadata(_))), "{held_up:?}");
    cluster.clock.advance(Duration::from_secs(31));
    let (_late, _) = producer(&broker, "acme/prod/late").await;
    let used = AdminError::NamespaceNotEmpty(name.to_string());
    assert_eq!(broker.delete_namespace(&name).await, Err(used));
    broker.shutdown().await;
}

#[tokio::test]
async fn a_deleted_namespace_leaves_no_state_log_record_ledger_or_task_behind() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let ledgers = async || broker.list_ledgers(None, 100).await.expect("readable").len();
    let before = ledgers().await;
    let name = used_namespace(&broker).await;
    let namespace = broker.inner.namespaces.get(&name).await.expect("there");
    let bundles = namespace.owned_bundles();
    assert_eq!(bundles.len(), 1);
    let bundle = Arc::downgrade(&bundles[0]);
    drop((bundles, namespace));
    assert!(ledgers().await > before);
    broker.delete_namespace(&name).await.expect("empty");
    eventually("the bundle's end", async || bundle.strong_count() == 0).await;
    assert_eq!(ledgers().await, before);
    for prefix in [keys::bundles_of(&name), keys::ownership_of(&name), keys::deletion(&name)] {
        let left = cluster.meta.range(&prefix, None, 10).await.expect("readable");
        assert_eq!(left.pairs, []);
    }
    // A namespace of that name begins anew.
    broker.create_namespace(&name, NamespacePolicies::default(), Some(1)).await.expect("new");
    let (again, ear) = producer(&broker, "acme/prod/first").await;
    publish(&broker, &again, 0, &texts("n", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    broker.shutdown().await;
}

#[tokio::test]
async fn a_namespace_that_another_broker_deletes_ends_its_bundles_here() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let name = used_namespace(&broker).await;
    let bundles = broker.inner.namespaces.get(&name).await.expect("there").owned_bundles();
    let bundle = Arc::downgrade(&bundles[0]);
    drop(bundles);
    let other = crate::core::config::BrokerConfig {
        broker_id: geminga_proto::id::BrokerId::new("other").expect("valid"),
        ..Cluster::config()
    };
    let other = cluster.broker(other).await;
    other.delete_namespace(&name).await.expect("empty");
    eventually("the bundle's end", async || bundle.strong_count() == 0).await;
    broker.shutdown().await;
    other.shutdown().await;
}

#[tokio::test]
async fn a_topic_with_damaged_records_is_deleted_by_force_and_leaves_no_ledger() {
    for damaged in ["managed-ledgers/", "topics/"] {
        let cluster = Cluster::new();
        let broker = cluster.broker(Cluster::config()).await;
        let (first, ear) = producer(&broker, "orders").await;
        let (worker, _) = consumer(&broker, "orders", "work").await;
        publish(&broker, &first, 0, &texts("m", 3)).await;
        ear.until("receipts", |heard| heard.receipts.len() == 3).await;
        broker.shutdown().await;
        drop((first, worker, broker));
        let pair = cluster.meta.range(damaged, None, 1).await.expect("readable").pairs.remove(0);
        let garbage = Txn::default().put(pair.key, "no record at all");
        cluster.meta.txn(garbage).await.expect("put");
        let broker = cluster.broker(Cluster::config()).await;
        let name = topic("orders");
        let refused = broker.delete_topic(&name, false).await;
        let corrupt = matches!(refused, Err(AdminError::Topic(TopicError::Corrupt(_))));
        assert!(corrupt, "{damaged}: {refused:?}");
        broker.delete_topic(&name, true).await.expect("deletes");
        let ledgers = broker.list_ledgers(None, 100).await.expect("readable");
        assert!(ledgers.iter().all(|ledger| ledger.state_log), "{damaged}: {ledgers:?}");
        assert_eq!(broker.list_topics(name.namespace()).await, Ok(Vec::new()));
        let left = cluster.meta.range("managed-ledgers/", None, 10).await.expect("readable");
        assert_eq!(left.pairs, []);
        let (_again, _) = producer(&broker, "orders").await;
        assert_eq!(broker.list_subscriptions(&name).await, Ok(Vec::new()));
        broker.shutdown().await;
    }
}
