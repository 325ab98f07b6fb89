//! What is deleted although records of it are damaged, and deletions that are cut short.

use geminga_meta::bundle::BundleId;
use geminga_meta::keys;
use geminga_meta::record::{
    BundleRecord, Fragment, LedgerOwner, LedgerRecord, LedgerState, Nonce, Record,
};
use geminga_meta::store::memory::{Fault, Request};
use geminga_meta::store::{MetadataStore, Op, Txn};
use geminga_proto::id::{BookieId, EntryId, Epoch, LedgerId, LedgerToken, Position};
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

/// Records of a state log with so many ledgers, of which nothing is stored anywhere.
async fn long_chain(cluster: &Cluster, bundle: &BundleId, ledgers: std::ops::Range<u64>) {
    let state_ledgers: Vec<LedgerId> = ledgers.map(LedgerId).collect();
    for ledger in &state_ledgers {
        let bookie = BookieId::new("bookie-0").expect("valid");
        let record = LedgerRecord {
            token: LedgerToken(1),
            state: LedgerState::Closed { last_entry: None, bytes: 0 },
            write_quorum: 1,
            ack_quorum: 1,
            fragments: vec![Fragment { first_entry: EntryId(0), bookies: vec![bookie] }],
            created_ms: 1,
            under_replicated: false,
            owner: LedgerOwner::StateLog(bundle.clone()),
        };
        let value = record.encode(Nonce::new(&*cluster.env().random)).expect("valid");
        let put = Txn::default().put(keys::ledger(*ledger), value);
        cluster.meta.txn(put).await.expect("put");
    }
    let snapshot = state_ledgers.get(30).map(|ledger| Position::new(*ledger, EntryId(0)));
    let record = BundleRecord { epoch: Epoch(1), state_ledgers, snapshot };
    let value = record.encode(Nonce::new(&*cluster.env().random)).expect("valid");
    cluster.meta.txn(Txn::default().put(keys::bundle(bundle), value)).await.expect("put");
}

#[tokio::test]
async fn deleting_a_long_state_log_goes_on_where_a_crash_ended_it() {
    for cut_at in 1..=4 {
        let cluster = Cluster::new();
        let broker = cluster.broker(Cluster::config()).await;
        let name = namespace(&broker).await;
        let used = broker.inner.namespaces.get(&name).await.expect("there");
        let bundle = used.bundle_of(&topic("acme/prod/any"));
        long_chain(&cluster, &bundle, 1_000..1_200).await;
        let mut left = cut_at;
        cluster.meta.faults().set_script(move |request| {
            let Request::Txn(txn) = request else { return Fault::None };
            let deletes = |op: &Op| matches!(op, Op::Delete(key) if key.starts_with(keys::LEDGERS));
            if txn.ops.iter().any(deletes) {
                left -= 1;
            }
            if left > 0 { Fault::None } else { Fault::Unavailable }
        });
        assert!(broker.delete_namespace(&name).await.is_err());
        cluster.meta.faults().clear();
        let stored = cluster.meta.get(&keys::bundle(&bundle)).await.expect("readable");
        let (record, _) =
            BundleRecord::decode(&stored.expect("it goes last").value).expect("valid");
        let listed: Vec<_> = record.state_ledgers.into_iter().map(keys::ledger).collect();
        assert_eq!(listed, keys_below(&cluster, keys::LEDGERS).await);
        cluster.clock.advance(std::time::Duration::from_secs(60));
        broker.delete_namespace(&name).await.expect("goes on");
        assert_eq!(keys_below(&cluster, keys::LEDGERS).await, Vec::<String>::new());
        assert_eq!(keys_below(&cluster, &keys::bundles_of(&name)).await, Vec::<String>::new());
        broker.shutdown().await;
    }
}
