//! What owning a bundle allows, and giving bundles away: stale owners, records that have gone,
//! unloading and stopping while others ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use geminga_meta::keys;
use geminga_meta::store::memory::{Fault, Request};
use geminga_meta::store::{Op, Txn};

use super::support::{
    ALL, apply, eventually, names, positions, published, read_all, receipts, records, rolled,
    together,
};
use crate::core::api::{Lookup, TopicError};
use crate::core::broker::Broker;
use crate::core::cluster_info::Concern;
use crate::core::config::BrokerConfig;
use crate::core::topic::{Create, Topic};
use crate::testing::{Cluster, Ear, ack, consumer, open, producer, publish, texts, topic};

async fn is_away(broker: &Broker) {
    eventually("the outage", async || broker.inner.context.health.is_away()).await;
}

#[tokio::test]
async fn an_owner_that_was_replaced_loads_no_topic_and_changes_nothing_of_it() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (_first, _ear) = published(&broker, "orders", &texts("m", 1)).await;
    let name = topic("orders");
    // As a process has it that stood still while others went on.
    let stale = broker.home(&name).await.expect("owned");
    broker.unload_bundle(&stale.bundle.id).await.expect("handed over");
    let (second, ear) = producer(&broker, "orders").await;
    let before = records(&cluster, "managed-ledgers/").await;
    assert!(!before.is_empty());
    for create in [Create::Never, Create::Always] {
        let refused = Topic::load(&name, &stale, create).await.err();
        assert_eq!(refused, Some(TopicError::NotOwner));
    }
    let refused = Topic::load(&topic("new"), &stale, Create::Always).await.err();
    assert_eq!(refused, Some(TopicError::NotOwner));
    assert_eq!(records(&cluster, "managed-ledgers/").await, before);
    publish(&broker, &second, 0, &texts("n", 1)).await;
    receipts(&ear, 1).await;
    broker.shutdown().await;
}

#[tokio::test]
async fn what_is_not_owned_any_more_is_not_trimmed() {
    let cluster = Cluster::new();
    let config = BrokerConfig { ledger_max_bytes: 400, ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let name = topic("orders");
    let (producer, _) = producer(&broker, "orders").await;
    let (worker, consumed) = consumer(&broker, "orders", "work").await;
    worker.flow(100, ALL);
    publish(&broker, &producer, 0, &["x".repeat(500)]).await;
    rolled(&broker, "orders").await;
    consumed.until("a message", |heard| heard.deliveries.len() == 1).await;
    let owner = records(&cluster, keys::OWNERSHIP).await.remove(0);
    let lease = owner.lease.expect("leased");
    apply(&cluster, Txn::default().put_leased(owner.key, owner.value, lease)).await;
    let before = records(&cluster, "ledgers/").await;
    cluster.meta.faults().set_script(|request| match request {
        // Whoever owns it next would trim it as well.
        Request::Get(key) if key.starts_with("topics/") => Fault::Unavailable,
        _ => Fault::None,
    });
    ack(&worker, 1, &positions(&consumed)).await;
    consumed.until("the end", |heard| heard.closed == [TopicError::Fenced]).await;
    assert_eq!(records(&cluster, "ledgers/").await.len(), before.len());
    eventually("the bundle's end", async || broker.inner.topics.all().is_empty()).await;
    cluster.meta.faults().clear();
    // Taken again, it is this broker's as the record has it.
    eventually("the trimming", async || {
        broker.topic_internal_stats(&name).await.is_ok_and(|stats| stats.entries == 0)
    })
    .await;
    broker.shutdown().await;
}

#[tokio::test]
async fn an_abandoned_broker_tells_its_clients_at_once_and_writes_no_metadata() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (first, ear) = producer(&broker, "orders").await;
    publish(&broker, &first, 0, &texts("m", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    cluster.meta.faults().set_script(move |request| {
        counted.fetch_add(usize::from(matches!(request, Request::Txn(_))), Ordering::Relaxed);
        Fault::Unavailable
    });
    broker.abandon();
    ear.look(|heard| assert_eq!(heard.closed, [TopicError::ShuttingDown]));
    broker.inner.context.health.failed(&cluster.env(), true, &"set back");
    let found = broker.cluster_status().await;
    let metadata = found.problems.iter().find(|one| one.concern == Concern::Metadata);
    assert!(metadata.is_some_and(|one| one.why.contains("serves nothing")), "{metadata:?}");
    broker.shutdown().await;
    assert_eq!(asked.load(Ordering::Relaxed), 0);
    let refused = broker.open_producer(open("orders"), Arc::new(Ear::default()) as _).await;
    assert!(refused.is_err());
}

#[tokio::test]
async fn without_the_metadata_idle_topics_stay_open_and_nothing_is_unloaded() {
    let cluster = Cluster::new();
    let config = BrokerConfig {
        ledger_idle_close: Duration::from_secs(1),
        topic_idle_unload: Duration::from_secs(2),
        ..Cluster::config_of("a")
    };
    let broker = cluster.broker(config).await;
    let (first, ear) = producer(&broker, "orders").await;
    let (other, _) = producer(&broker, "unused").await;
    publish(&broker, &first, 0, &texts("m", 1)).await;
    receipts(&ear, 1).await;
    drop(other);
    cluster.meta.faults().set_down(true);
    is_away(&broker).await;
    cluster.clock.advance(Duration::from_secs(60));
    // Time for housekeeping, twenty times over, to do what it must not.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(broker.stats().topics, 2);
    publish(&broker, &first, 1, &texts("m", 1)).await;
    receipts(&ear, 2).await;
    ear.look(|heard| assert_eq!(heard.closed, []));
    let bundle = broker.home(&topic("orders")).await.expect("owned").bundle.id.clone();
    let refused = broker.unload_bundle(&bundle).await.expect_err("refused").to_string();
    assert!(refused.contains("doesn't answer"), "{refused}");
    let refused = broker.unload_namespace(&bundle.namespace).await.expect_err("refused");
    assert!(refused.to_string().contains("doesn't answer"), "{refused}");
    publish(&broker, &first, 2, &texts("m", 1)).await;
    receipts(&ear, 3).await;
}

#[tokio::test]
async fn a_store_that_keeps_leases_and_does_nothing_else_is_away() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config_of("a")).await;
    cluster.meta.faults().set_script(|request| match request {
        Request::Lease => Fault::None,
        _ => Fault::Unavailable,
    });
    broker.inner.context.health.suspect(&"slow");
    is_away(&broker).await;
    let why = broker.inner.context.health.outage().map(|outage| outage.why);
    assert!(why.is_some_and(|why| why.contains("leases are kept")));
    cluster.meta.faults().clear();
    eventually("the end of the outage", async || !broker.inner.context.health.is_away()).await;
}

#[tokio::test]
async fn a_bundle_whose_record_has_gone_is_given_up_and_taken_again() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config_of("a")).await;
    let (_first, ear) = published(&broker, "orders", &texts("m", 1)).await;
    eventually("the record in the view", async || broker.brokers()[0].bundles == 1).await;
    let owner = records(&cluster, keys::OWNERSHIP).await.remove(0);
    apply(&cluster, Txn::default().delete(owner.key)).await;
    ear.until("the end", |heard| heard.closed == [TopicError::NotOwner]).await;
    // Before a client asks.
    eventually("the next record", async || {
        records(&cluster, keys::OWNERSHIP).await.iter().any(|next| next.modified > owner.modified)
    })
    .await;
    assert_eq!(read_all(&broker, "orders", "check", 1).await, texts("m", 1));
    broker.shutdown().await;
}

#[tokio::test]
async fn who_asks_while_a_bundle_is_handed_over_is_sent_on_and_does_not_bring_it_back() {
    let cluster = Cluster::new();
    let (a, a_door) = cluster.broker_behind_door(Cluster::config_of("a")).await;
    let names = names(30);
    for name in &names {
        drop(producer(&a, name).await);
    }
    let (b, b_door) = cluster.broker_behind_door(Cluster::config_of("b")).await;
    together(&[&a, &b]).await;
    let is_of_b = |name: &&String| {
        let namespace = a.inner.namespaces.known(topic(name).namespace()).expect("in use");
        let bundle = namespace.bundle_of(&topic(name));
        a.inner.ownership.chosen(&bundle).is_some().then_some(bundle)
    };
    let (name, bundle) =
        names.iter().find_map(|name| Some((name, is_of_b(&name)?))).expect("one of them");
    // The next owner hears of it late, and this one not at once.
    a_door.set_lag(Duration::from_millis(40));
    b_door.set_lag(Duration::from_millis(400));
    let unloading = async { a.unload_bundle(&bundle).await.expect("handed over") };
    let asking = async {
        tokio::task::yield_now().await;
        a.open_producer(open(name), Arc::<Ear>::default()).await.err()
    };
    let ((), asked) = tokio::join!(unloading, asking);
    assert!(asked.is_some(), "it came back");
    let sent = a.lookup(&topic(name)).await;
    assert!(
        matches!(&sent, Ok(Lookup::Elsewhere { broker_id, .. }) if broker_id == "b"),
        "{sent:?}"
    );
    eventually("the next owner", async || {
        records(&cluster, &keys::ownership(&bundle)).await.len() == 1
    })
    .await;
    assert_eq!(b.lookup(&topic(name)).await, Ok(Lookup::Here));
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test]
async fn a_broker_that_stops_takes_nothing_and_asks_for_nothing_that_it_never_had() {
    let cluster = Cluster::new();
    let (broker, door) = cluster.broker_behind_door(Cluster::config_of("a")).await;
    for name in names(50) {
        broker.lookup(&topic(&name)).await.expect("here");
    }
    assert!(broker.inner.namespaces.all().iter().flat_map(|name| name.slots()).count() > 1);
    let before = door.requests().len();
    broker.shutdown().await;
    // Its record, read and written.
    let requests = door.requests();
    assert_eq!(requests.len() - before, 2, "{:#?}", &requests[before..]);
    let refused = broker.home(&topic("orders")).await.err();
    assert_eq!(refused, Some(TopicError::ShuttingDown));
    assert_eq!(records(&cluster, keys::OWNERSHIP).await, []);
}

#[tokio::test]
async fn when_handing_over_fails_inside_the_broker_clients_hear_of_it_all_the_same() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let (_producer, ear) = producer(&broker, "orders").await;
    let bundle = broker.home(&topic("orders")).await.expect("owned").bundle.id.clone();
    let mut left = 1;
    cluster.meta.faults().set_script(move |request| match request {
        Request::Txn(txn) if left > 0 && deletes(txn, keys::OWNERSHIP) => {
            left -= 1;
            panic!("a defect");
        }
        _ => Fault::None,
    });
    assert!(broker.unload_bundle(&bundle).await.is_err());
    ear.until("the end", |heard| heard.closed == [TopicError::NotOwner]).await;
    assert_eq!(broker.stats().topics, 0);
    let (_again, _ear) = published(&broker, "orders", &texts("m", 1)).await;
    broker.shutdown().await;
}

fn deletes(txn: &Txn, prefix: &str) -> bool {
    txn.ops.iter().any(|op| matches!(op, Op::Delete(key) if key.starts_with(prefix)))
}

#[tokio::test]
async fn a_topic_that_waits_to_be_loaded_again_keeps_no_other_waiting() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    for name in ["stuck", "free"] {
        drop(producer(&broker, name).await);
        broker.unload_topic(&topic(name)).await.expect("loaded");
    }
    let mut lists = records(&cluster, "managed-ledgers/").await;
    let stuck = lists.remove(0).key;
    apply(&cluster, Txn::default().delete(stuck)).await;
    let loads = &broker.inner.context.loads;
    let others = u32::try_from(loads.available_permits() - 1).expect("small");
    let _others = loads.acquire_many(others).await.expect("open");
    let (asking, tries) = (broker.clone(), Arc::<AtomicUsize>::default());
    let counted = Arc::clone(&tries);
    cluster.meta.faults().set_script(move |request| {
        if matches!(request, Request::Get(key) if key.starts_with("managed-ledgers/")) {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        Fault::None
    });
    let stuck = tokio::spawn(async move {
        asking.open_producer(open("stuck"), Arc::<Ear>::default()).await.err()
    });
    eventually("the first try", async || tries.load(Ordering::Relaxed) > 0).await;
    let (_producer, _) = producer(&broker, "free").await;
    assert!(!stuck.is_finished(), "the others' wait is over");
    assert!(stuck.await.expect("ends").is_some());
    broker.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn handing_a_bundle_over_takes_no_longer_for_more_topics_that_cannot_be_closed() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config()).await;
    let bundle = broker.home(&topic("orders")).await.expect("owned").bundle.id.clone();
    let namespace = broker.inner.namespaces.known(&bundle.namespace).expect("in use");
    let names = names(100_000).into_iter();
    let names = names.filter(|name| namespace.bundle_of(&topic(name)) == bundle).take(130);
    let mut clients = Vec::new();
    for name in names {
        clients.push(producer(&broker, &name).await);
    }
    cluster.set_hung(true);
    for (producer, _) in &clients {
        publish(&broker, producer, 0, &texts("m", 1)).await;
    }
    let begun = tokio::time::Instant::now();
    broker.unload_bundle(&bundle).await.expect("handed over");
    assert!(begun.elapsed() < Duration::from_millis(3_500), "{:?}", begun.elapsed());
    for (_, ear) in &clients {
        assert_eq!(ear.look(|heard| heard.closed.clone()), [TopicError::NotOwner]);
    }
}
