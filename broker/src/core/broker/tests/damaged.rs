//! What is deleted although records of it are damaged.

use geminga_meta::keys;
use geminga_meta::store::{MetadataStore, Txn};
use geminga_proto::topic_name::NamespaceName;

use crate::core::admin::{AdminError, NamespacePolicies};
use crate::core::api::TopicError;
use crate::core::broker::Broker;
use crate::testing::{Cluster, consumer, producer, publish, texts, topic};

async fn garble(cluster: &Cluster, key: String) {
    cluster.meta.txn(Txn::default().put(key, "no record at all")).await.expect("put");
}

async fn keys_below(cluster: &Cluster, prefix: &str) -> Vec<String> {
    let page = cluster.meta.range(prefix, None, 1_000).await.expect("readable");
    page.pairs.into_iter().map(|pair| pair.key).collect()
}

/// A namespace with a single bundle.
async fn namespace(broker: &Broker) -> NamespaceName {
    let name: NamespaceName = "acme/prod".parse().expect("valid");
    broker.create_tenant("acme").await.expect("new");
    broker.create_namespace(&name, NamespacePolicies::default(), Some(1)).await.expect("new");
    name
}

async fn is_corrupt(broker: &Broker, name: &str) -> bool {
    let refused = broker.delete_topic(&topic(name), false).await;
    matches!(refused, Err(AdminError::Topic(TopicError::Corrupt(_))))
}

#[tokio::test]
async fn a_damaged_bundle_holds_up_neither_forced_deletion_nor_that_of_its_namespace() {
    for damaged in ["its record", "a ledger of its state log"] {
        let cluster = Cluster::new();
        let broker = cluster.broker(Cluster::config()).await;
        let name = namespace(&broker).await;
        let (first, ear) = producer(&broker, "acme/prod/kept").await;
        let (worker, _) = consumer(&broker, "acme/prod/kept", "work").await;
        publish(&broker, &first, 0, &texts("m", 3)).await;
        ear.until("receipts", |heard| heard.receipts.len() == 3).await;
        let ledgers = broker.list_ledgers(None, 100).await.expect("readable");
        let state = ledgers.iter().find(|ledger| ledger.state_log).expect("one").ledger;
        broker.shutdown().await;
        drop((first, worker, broker));
        let key = match damaged {
            "its record" => keys_below(&cluster, &keys::bundles_of(&name)).await.remove(0),
            _ => keys::ledger(state),
        };
        garble(&cluster, key).await;
        let broker = cluster.broker(Cluster::config()).await;
        assert!(is_corrupt(&broker, "acme/prod/kept").await, "{damaged}");
        broker.delete_topic(&topic("acme/prod/kept"), true).await.expect(damaged);
        broker.delete_namespace(&name).await.expect(damaged);
        for prefix in [keys::bundles_of(&name).as_str(), keys::LEDGERS, keys::MANAGED_LEDGERS] {
            assert_eq!(keys_below(&cluster, prefix).await, Vec::<String>::new(), "{damaged}");
        }
        // A namespace of that name begins anew.
        broker.create_namespace(&name, NamespacePolicies::default(), Some(1)).await.expect("new");
        let (_again, _) = producer(&broker, "acme/prod/kept").await;
        let subscriptions = broker.list_subscriptions(&topic("acme/prod/kept")).await;
        assert_eq!(subscriptions, Ok(Vec::new()), "{damaged}");
        broker.shutdown().await;
    }
}

#[tokio::test]
async fn a_topic_whose_open_ledgers_record_is_damaged_is_deleted_with_that_ledger() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (first, ear) = producer(&broker, "orders").await;
    publish(&broker, &first, 0, &texts("m", 3)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 3).await;
    let ledgers = broker.list_ledgers(None, 100).await.expect("readable");
    let open = ledgers.iter().find(|ledger| !ledger.state_log).expect("one").ledger;
    // As after a crash: the ledger stays open.
    drop((first, broker));
    garble(&cluster, keys::ledger(open)).await;
    let broker = cluster.broker(Cluster::config()).await;
    assert!(is_corrupt(&broker, "orders").await);
    broker.delete_topic(&topic("orders"), true).await.expect("deletes");
    assert_eq!(cluster.meta.get(&keys::ledger(open)).await, Ok(None));
    let ledgers = broker.list_ledgers(None, 100).await.expect("readable");
    assert!(ledgers.iter().all(|ledger| ledger.state_log), "{ledgers:?}");
    broker.shutdown().await;
}
