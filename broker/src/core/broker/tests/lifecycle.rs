//! Topics, subscriptions, namespaces and tenants: created, unloaded, moved, deleted.

use std::sync::Arc;
use std::time::Duration;

use geminga_proto::id::{MessageIndex, Position};

use super::{ALL, eventually, positions, read_all};
use crate::core::admin::{AdminError, ResetTo};
use crate::core::api::{OpenProducerError, TopicError};
use crate::core::config::BrokerConfig;
use crate::testing::{Cluster, Ear, ack, consumer, open, producer, publish, shared, texts, topic};

#[tokio::test]
async fn a_producers_name_is_its_own_while_it_is_connected() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let mut named = open("orders");
    named.name = "mine".to_owned();
    let ear: Arc<Ear> = Arc::default();
    let first = broker.open_producer(named.clone(), Arc::clone(&ear) as _).await.expect("free");
    let second = broker.open_producer(named.clone(), Arc::clone(&ear) as _).await;
    assert!(matches!(second, Err(OpenProducerError::Busy(name)) if name == "mine"));
    drop(first);
    assert!(broker.open_producer(named, ear).await.is_ok());
}

#[tokio::test]
async fn without_automatic_creation_an_unknown_topic_is_refused_by_name() {
    let cluster = Cluster::new();
    let config = BrokerConfig { auto_topic_creation: false, ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let ear: Arc<Ear> = Arc::default();
    let refused = broker.open_producer(open("orders"), Arc::clone(&ear) as _).await.err();
    let missing = TopicError::NotFound("persistent://public/default/orders".to_owned());
    assert_eq!(refused, Some(OpenProducerError::Topic(missing)));
    broker.create_topic(&topic("orders")).await.expect("creates");
    let exists = AdminError::TopicExists(topic("orders").to_string());
    assert_eq!(broker.create_topic(&topic("orders")).await, Err(exists));
    assert!(broker.open_producer(open("orders"), ear).await.is_ok());
    assert_eq!(broker.list_topics(topic("orders").namespace()).await, Ok(vec![topic("orders")]));
}

#[tokio::test]
async fn an_idle_topic_leaves_the_memory_and_comes_back_whole() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (first, ear) = producer(&broker, "orders").await;
    publish(&broker, &first, 0, &texts("m", 3)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 3).await;
    broker.create_subscription(&topic("orders"), "work", ResetTo::Earliest).await.expect("creates");
    drop(first);
    assert_eq!(broker.stats().topics, 1);
    cluster.clock.advance(Duration::from_secs(600));
    eventually("unloading", async || broker.stats().topics == 0).await;
    assert_eq!(read_all(&broker, "orders", "work", 3).await, texts("m", 3));
    assert_eq!(broker.stats().topics, 1);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_deleted_topic_is_gone_with_its_ledgers_and_cursors() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, ear) = producer(&broker, "orders").await;
    let (worker, worker_ear) = consumer(&broker, "orders", "work").await;
    worker.flow(10, ALL);
    publish(&broker, &producer, 0, &texts("m", 3)).await;
    worker_ear.until("messages", |heard| heard.deliveries.len() == 3).await;
    let name = topic("orders");
    let in_use = broker.delete_topic(&name, false).await;
    assert!(matches!(in_use, Err(AdminError::TopicInUse { .. })), "{in_use:?}");
    broker.delete_topic(&name, true).await.expect("deletes");
    ear.until("the end", |heard| heard.closed == [TopicError::Deleted]).await;
    worker_ear.until("the end", |heard| heard.closed == [TopicError::Deleted]).await;
    let missing = AdminError::TopicNotFound(name.to_string());
    assert_eq!(broker.delete_topic(&name, true).await, Err(missing.clone()));
    assert_eq!(broker.topic_stats(&name).await, Err(missing));
    let ledgers = broker.list_ledgers(None, 100).await.expect("readable");
    assert!(ledgers.iter().all(|ledger| ledger.state_log), "{ledgers:?}");

    let (again, ear) = crate::testing::producer(&broker, "orders").await;
    publish(&broker, &again, 0, &texts("n", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    assert_eq!(ear.look(|heard| heard.receipts[0].first_index), MessageIndex(0));
    assert_eq!(read_all(&broker, "orders", "work", 1).await, texts("n", 1));
    broker.shutdown().await;
}

#[tokio::test]
async fn a_cursor_is_moved_and_its_consumers_come_back_to_it() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (producer, _) = producer(&broker, "orders").await;
    let (worker, ear) = consumer(&broker, "orders", "work").await;
    worker.flow(100, ALL);
    publish(&broker, &producer, 0, &texts("m", 6)).await;
    ear.until("messages", |heard| heard.deliveries.len() == 6).await;
    let held = positions(&ear);
    ack(&worker, 1, &held).await;
    ear.until("the ack receipt", |heard| heard.acked.len() == 1).await;
    let name = topic("orders");
    for (to, expected) in
        [(ResetTo::Position(held[4]), 2), (ResetTo::Latest, 0), (ResetTo::Earliest, 6)]
    {
        broker.reset_subscription(&name, "work", to).await.expect("moves");
        let subscriptions = broker.list_subscriptions(&name).await.expect("loaded");
        assert_eq!(subscriptions[0].1.msg_backlog, expected, "{to:?}");
    }
    ear.look(|heard| assert_eq!(heard.closed.len(), 1));
    let elsewhere = Position { ledger: held[0].ledger, entry: geminga_proto::id::EntryId(99) };
    let invalid = broker.reset_subscription(&name, "work", ResetTo::Position(elsewhere)).await;
    assert_eq!(invalid, Err(AdminError::InvalidPosition(elsewhere)));
    assert_eq!(read_all(&broker, "orders", "work", 6).await, texts("m", 6));
    broker.delete_subscription(&name, "work", true).await.expect("deletes");
    let missing = AdminError::SubscriptionNotFound("work".to_owned());
    assert_eq!(broker.delete_subscription(&name, "work", true).await, Err(missing));
    broker.shutdown().await;
}

#[tokio::test]
async fn an_unsubscribed_consumer_leaves_no_subscription_behind() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (worker, _) = consumer(&broker, "orders", "work").await;
    let (other, _) = consumer(&broker, "orders", "work").await;
    assert!(worker.unsubscribe().await.is_err(), "another consumer is attached");
    drop(other);
    worker.unsubscribe().await.expect("alone");
    drop(worker);
    let mut subscribe = shared("orders", "work");
    subscribe.create = false;
    let ear: Arc<Ear> = Arc::default();
    assert!(broker.subscribe(subscribe, ear).await.is_err());
    assert_eq!(broker.list_subscriptions(&topic("orders")).await, Ok(Vec::new()));
    broker.shutdown().await;
}

#[tokio::test]
async fn many_first_uses_cost_one_transaction_each() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (warm, _) = producer(&broker, "warm-up").await;
    let before = cluster.meta.revision().0;
    let opened = (0..200).map(|number| {
        let broker = broker.clone();
        tokio::spawn(async move {
            let (producer, ear) = producer(&broker, &format!("t-{number}")).await;
            publish(&broker, &producer, 0, &texts("m", 1)).await;
            ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
            producer
        })
    });
    let opened: Vec<_> = opened.collect();
    for opening in opened {
        opening.await.expect("opens");
    }
    let transactions = cluster.meta.revision().0 - before;
    // Blocks of ids, and the state logs of the other bundles, come on top.
    assert!(transactions <= 200 + 20, "{transactions} transactions for 200 topics");
    drop(warm);
}

#[tokio::test]
async fn namespaces_and_tenants_are_created_listed_and_deleted_when_empty() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    assert_eq!(broker.list_tenants().await, Ok(vec!["public".to_owned()]));
    broker.create_tenant("acme").await.expect("new");
    let name = "acme/prod".parse().expect("valid");
    broker
        .create_namespace(&name, crate::core::admin::NamespacePolicies::default(), Some(2))
        .await
        .expect("new");
    assert_eq!(broker.list_namespaces("acme").await, Ok(vec![name.clone()]));
    let busy = AdminError::TenantNotEmpty("acme".to_owned());
    assert_eq!(broker.delete_tenant("acme").await, Err(busy));
    broker
        .update_namespace_policies(&name, |policies| policies.retention_ms = Some(5))
        .await
        .expect("there");
    let info = broker.namespace(&name).await.expect("there");
    assert_eq!((info.policies.retention_ms, info.bundle_bounds.len()), (Some(5), 2));
    let missing = broker.open_producer(open("nobody/nowhere/t"), Arc::<Ear>::default()).await.err();
    let none = TopicError::NamespaceNotFound("nobody/nowhere".to_owned());
    assert_eq!(missing, Some(OpenProducerError::Topic(none)));
    let (producer, _) = producer(&broker, "acme/prod/t").await;
    assert_eq!(
        broker.delete_namespace(&name).await,
        Err(AdminError::NamespaceNotEmpty(name.to_string()))
    );
    drop(producer);
    broker.delete_topic(&topic("acme/prod/t"), false).await.expect("unused");
    broker.delete_namespace(&name).await.expect("empty");
    broker.delete_tenant("acme").await.expect("empty");
    assert_eq!(broker.list_tenants().await, Ok(vec!["public".to_owned()]));
    broker.shutdown().await;
}

#[tokio::test]
async fn data_of_a_topic_that_is_not_in_memory_goes_when_its_time_has_come() {
    for clean in [true, false] {
        let cluster = Cluster::new();
        let broker = cluster.broker(Cluster::config()).await;
        let (first, ear) = producer(&broker, "orders").await;
        publish(&broker, &first, 0, &texts("m", 3)).await;
        ear.until("receipts", |heard| heard.receipts.len() == 3).await;
        let ledger = ear.look(|heard| heard.receipts[0].position.ledger);
        if clean {
            broker.shutdown().await;
        }
        drop((first, broker));
        let sweeping = BrokerConfig {
            retention_sweep_interval: Duration::from_millis(20),
            ..Cluster::config()
        };
        let broker = cluster.broker(sweeping).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(broker.ledger(ledger).await.is_ok(), "it is too young");
        cluster.clock.advance(Duration::from_secs(25 * 3_600));
        eventually("trimming", async || {
            broker.ledger(ledger).await == Err(AdminError::LedgerNotFound(ledger))
        })
        .await;
        let loaded = broker.stats().topics_loaded;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(broker.stats().topics_loaded, loaded, "it is left alone then");
        broker.shutdown().await;
    }
}
