//! Several brokers over one metadata store: who serves what, hand-over, take-over, zombies, and a
//! metadata store that is away.

use std::sync::Arc;
use std::time::Duration;

use geminga_meta::keys;
use geminga_meta::read::read_all as read_all_records;
use geminga_meta::record::OwnershipRecord;
use geminga_proto::id::MessageIndex;

use super::support::{
    ALL, cut_a_roll_short, eventually, is_here, names, positions, published, read_all, receipts,
    together,
};
use crate::core::api::{Lookup, TopicError};
use crate::core::broker::Broker;
use crate::core::cluster_info::Concern;
use crate::core::config::BrokerConfig;
use crate::testing::{Cluster, Ear, ack, consumer, open, producer, publish, texts, topic};

/// A topic that the broker is to serve, though nobody owns its bundle yet.
async fn topic_of(broker: &Broker) -> String {
    for name in names(1_000) {
        if is_here(broker, &name).await {
            return name;
        }
    }
    panic!("no bundle goes to this broker");
}

#[tokio::test]
async fn an_unowned_bundle_is_served_by_the_broker_that_all_send_clients_to() {
    let cluster = Cluster::new();
    let a = cluster.broker(Cluster::config_of("a")).await;
    let b = cluster.broker(Cluster::config_of("b")).await;
    together(&[&a, &b]).await;
    let (mut at_a, mut at_b) = (0, 0);
    for name in names(40) {
        let (here, there) = match (is_here(&a, &name).await, is_here(&b, &name).await) {
            (true, false) => (&a, &b),
            (false, true) => (&b, &a),
            both => panic!("{name}: {both:?}"),
        };
        if Arc::ptr_eq(&here.inner, &a.inner) {
            at_a += 1;
        } else {
            at_b += 1;
        }
        let sent = Lookup::Elsewhere {
            broker_id: here.config().broker_id.to_string(),
            service_url: here.config().service_url.clone(),
            admin_url: here.config().admin_url.clone(),
        };
        assert_eq!(there.lookup(&topic(&name)).await, Ok(sent));
        let refused = there.open_producer(open(&name), Arc::<Ear>::default()).await.err();
        assert_eq!(refused, Some(TopicError::NotOwner.into()));
        let (_producer, _) = producer(here, &name).await;
    }
    assert!(at_a > 0 && at_b > 0, "{at_a} {at_b}");
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test]
async fn a_bundle_whose_owner_has_died_is_taken_over_before_a_client_asks() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let (a, door) = cluster.broker_behind_door(Cluster::config_of("a")).await;
    let (first, ear) = producer(&a, "orders").await;
    let (worker, consumed) = consumer(&a, "orders", "work").await;
    worker.flow(1_000, ALL);
    publish(&a, &first, 0, &texts("m", 20)).await;
    receipts(&ear, 20).await;
    consumed.until("messages", |heard| heard.deliveries.len() == 20).await;
    let held = positions(&consumed);
    let odd: Vec<_> = held.iter().skip(1).step_by(2).copied().collect();
    ack(&worker, 1, &odd).await;
    consumed.until("the ack receipt", |heard| heard.acked == [(1, Ok(()))]).await;
    let b = cluster.broker(Cluster::config_of("b")).await;
    together(&[&b, &a]).await;
    assert!(!is_here(&b, "orders").await);
    door.set_open(false);
    cluster.end_session("a").await;
    eventually("the take-over", async || b.brokers().iter().any(|found| found.bundles == 1)).await;
    let (second, ear) = producer(&b, "orders").await;
    publish(&b, &second, 0, &texts("n", 1)).await;
    receipts(&ear, 1).await;
    assert_eq!(ear.look(|heard| heard.receipts[0].first_index), MessageIndex(20));
    // What has an ack receipt is not seen again, what hasn't is.
    let (worker, consumed) = consumer(&b, "orders", "work").await;
    worker.flow(1_000, ALL);
    consumed.until("the rest", |heard| heard.deliveries.len() == 11).await;
    let even = texts("m", 20).into_iter().step_by(2).chain(texts("n", 1));
    assert_eq!(consumed.payloads(), even.collect::<Vec<_>>());
    b.shutdown().await;
    drop(a);
}

#[tokio::test]
async fn an_owner_that_is_cut_off_from_the_metadata_finds_out_without_traffic() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let (zombie, door) = cluster.broker_behind_door(Cluster::config_of("a")).await;
    let (old, old_ear) = producer(&zombie, "orders").await;
    let (stale, stale_ear) = consumer(&zombie, "orders", "work").await;
    stale.flow(1_000, ALL);
    publish(&zombie, &old, 0, &texts("m", 4)).await;
    stale_ear.until("messages", |heard| heard.deliveries.len() == 4).await;
    let b = cluster.broker(Cluster::config_of("b")).await;
    together(&[&b, &zombie]).await;
    door.set_open(false);
    eventually("the outage", async || !zombie.cluster_status().await.problems.is_empty()).await;
    // Nobody has taken anything yet: the cut-off owner goes on.
    publish(&zombie, &old, 4, &texts("late", 1)).await;
    receipts(&old_ear, 5).await;
    cluster.end_session("a").await;
    eventually("the take-over", async || is_here(&b, "orders").await).await;
    old_ear.until("the end", |heard| heard.closed == [TopicError::Fenced]).await;
    stale_ear.until("the end", |heard| heard.closed == [TopicError::Fenced]).await;
    // It doesn't say any more that it serves the topic, and acknowledges nothing.
    assert!(matches!(zombie.lookup(&topic("orders")).await, Err(TopicError::Unavailable(_))));
    publish(&zombie, &old, 5, &texts("lost", 1)).await;
    ack(&stale, 9, &positions(&stale_ear)).await;
    let (new, new_ear) = producer(&b, "orders").await;
    publish(&b, &new, 0, &texts("n", 2)).await;
    receipts(&new_ear, 2).await;
    stale_ear.until("the answer to the request", |heard| !heard.acked.is_empty()).await;
    stale_ear.look(|heard| assert_eq!(heard.acked, [(9, Err(TopicError::Fenced.into()))]));
    assert_eq!(old_ear.look(|heard| heard.receipts.len()), 5);
    let expected: Vec<_> =
        texts("m", 4).into_iter().chain(texts("late", 1)).chain(texts("n", 2)).collect();
    assert_eq!(read_all(&b, "orders", "check", 7).await, expected);
    // Back again, it begins another session and sends clients to the new owner.
    door.set_open(true);
    eventually("the next session", async || {
        matches!(zombie.lookup(&topic("orders")).await,
            Ok(Lookup::Elsewhere { broker_id, .. }) if broker_id == "b")
    })
    .await;
    zombie.shutdown().await;
    b.shutdown().await;
}

#[tokio::test]
async fn while_the_metadata_is_away_owners_go_on_and_lookups_are_answered_from_the_last_view() {
    let cluster = Cluster::new();
    let config = BrokerConfig { ledger_max_bytes: 300, ..Cluster::config_of("a") };
    let a = cluster.broker(config).await;
    let (producer, ear) = published(&a, "orders", &texts("m", 2)).await;
    let b = cluster.broker(Cluster::config_of("b")).await;
    together(&[&a, &b]).await;
    let owner = b.lookup(&topic("orders")).await;
    assert!(matches!(&owner, Ok(Lookup::Elsewhere { broker_id, .. }) if broker_id == "a"));
    // It learns of the namespace from the owners, since nobody has used it here.
    eventually("the namespace", async || {
        b.inner.namespaces.known(topic("orders").namespace()).is_some()
    })
    .await;
    cluster.meta.faults().set_down(true);
    cluster.meta.lose_watches();
    eventually("the outage", async || {
        let found = b.cluster_status().await;
        found.problems.iter().any(|problem| problem.concern == Concern::Metadata)
    })
    .await;
    assert_eq!(b.lookup(&topic("orders")).await, owner);
    assert!(is_here(&a, "orders").await);
    publish(&a, &producer, 2, &texts("m", 40)).await;
    receipts(&ear, 42).await;
    // Its bookie is asked whether somebody has fenced the state log. The second of two questions
    // is asked once the first one's answer has been judged.
    let asked = cluster.probes();
    eventually("the next questions", async || cluster.probes() >= asked + 2).await;
    cluster.meta.faults().set_down(false);
    eventually("the end of the outage", async || {
        let found = a.cluster_status().await;
        !found.problems.iter().any(|problem| problem.concern == Concern::Metadata)
    })
    .await;
    publish(&a, &producer, 42, &texts("n", 1)).await;
    receipts(&ear, 43).await;
    assert!(ear.look(|heard| heard.closed.is_empty()));
    assert_eq!(b.lookup(&topic("orders")).await, owner);
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test]
async fn a_broker_that_stops_hands_its_bundles_over_and_then_tells_its_clients() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let a = cluster.broker(Cluster::config_of("a")).await;
    let (first, ear) = producer(&a, "orders").await;
    let (worker, consumed) = consumer(&a, "orders", "work").await;
    worker.flow(1_000, ALL);
    let b = cluster.broker(Cluster::config_of("b")).await;
    together(&[&a, &b]).await;
    publish(&a, &first, 0, &texts("m", 20)).await;
    consumed.until("messages", |heard| heard.deliveries.len() == 20).await;
    ack(&worker, 1, &positions(&consumed)).await;
    let stopping = a.clone();
    let stopped = tokio::spawn(async move { stopping.shutdown().await });
    ear.until("the end", |heard| heard.closed == [TopicError::ShuttingDown]).await;
    // Whoever is told finds nobody, or the next owner: never the one that is stopping.
    let owners = read_all_records::<OwnershipRecord>(&*cluster.meta, keys::OWNERSHIP).await;
    let owners = owners.expect("readable").into_iter().map(|owner| owner.record.broker_id);
    assert!(owners.into_iter().all(|owner| owner.as_str() == "b"));
    ear.look(|heard| assert_eq!(heard.receipts.len(), 20, "what was under way is finished"));
    consumed.look(|heard| assert_eq!(heard.acked, [(1, Ok(()))]));
    eventually("the next owner", async || is_here(&b, "orders").await).await;
    let (second, ear) = producer(&b, "orders").await;
    publish(&b, &second, 0, &texts("n", 1)).await;
    receipts(&ear, 1).await;
    assert_eq!(ear.look(|heard| heard.receipts[0].first_index), MessageIndex(20));
    assert_eq!(read_all(&b, "orders", "work", 1).await, texts("n", 1));
    stopped.await.expect("stops");
    assert_eq!(b.brokers().len(), 1);
    b.shutdown().await;
}

#[tokio::test]
async fn an_unloaded_bundle_goes_to_the_broker_that_hashing_picks() {
    let cluster = Cluster::new();
    let a = cluster.broker(Cluster::config_of("a")).await;
    // Alone, it takes everything.
    let names = names(30);
    let mut ears = Vec::new();
    for name in &names {
        ears.push(producer(&a, name).await);
    }
    let b = cluster.broker(Cluster::config_of("b")).await;
    together(&[&a, &b]).await;
    let namespace = topic("x").namespace().clone();
    for bundle in a.bundles(&namespace).await.expect("there") {
        assert_eq!(bundle.owner.map(|owner| owner.broker_id).as_deref(), Some("a"));
        a.unload_bundle(&bundle.bundle).await.expect("handed over");
    }
    eventually("an owner of each bundle", async || {
        let bundles = a.bundles(&namespace).await.expect("there");
        bundles.iter().all(|bundle| bundle.owner.is_some())
    })
    .await;
    for (_, ear) in &ears {
        assert_eq!(ear.look(|heard| heard.closed.clone()), [TopicError::NotOwner]);
    }
    let owners: Vec<u64> = b.brokers().iter().map(|broker| broker.bundles).collect();
    assert!(owners.iter().all(|bundles| *bundles > 0), "{owners:?}");
    let mine = a.bundles(&namespace).await.expect("there");
    let of_b = mine
        .into_iter()
        .find(|bundle| bundle.owner.as_ref().is_some_and(|owner| owner.broker_id == "b"));
    let refused = a.unload_bundle(&of_b.expect("one").bundle).await;
    assert_eq!(refused, Err(TopicError::NotOwner.into()));
    for name in &names {
        let owner = if is_here(&a, name).await { &a } else { &b };
        let (_producer, _) = producer(owner, name).await;
    }
    a.shutdown().await;
    b.shutdown().await;
}

#[tokio::test]
async fn a_topic_in_use_is_taken_over_in_six_requests_and_messages_cost_none() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let (a, a_door) = cluster.broker_behind_door(Cluster::config_of("a")).await;
    let (b, b_door) = cluster.broker_behind_door(Cluster::config_of("b")).await;
    together(&[&a, &b]).await;
    // Both have their blocks of ids.
    let (of_a, of_b) = (topic_of(&a).await, topic_of(&b).await);
    let (_other, _) = producer(&b, &of_b).await;
    let (first, ear) = producer(&a, &of_a).await;
    let (worker, consumed) = consumer(&a, &of_a, "work").await;
    worker.flow(1_000, ALL);
    publish(&a, &first, 0, &texts("m", 1)).await;
    consumed.until("a message", |heard| heard.deliveries.len() == 1).await;
    let before = a_door.writes();
    publish(&a, &first, 1, &texts("m", 50)).await;
    receipts(&ear, 51).await;
    consumed.until("messages", |heard| heard.deliveries.len() == 51).await;
    // Without the first of them, nothing can be trimmed while requests are counted.
    for (number, position) in (1..).zip(positions(&consumed)).skip(1) {
        ack(&worker, number, &[position]).await;
    }
    consumed.until("ack receipts", |heard| heard.acked.len() == 50).await;
    assert_eq!(a_door.writes(), before, "metadata writes for messages or acknowledgements");
    a_door.set_open(false);
    cluster.end_session("a").await;
    eventually("the take-over", async || is_here(&b, &of_a).await).await;
    eventually("service", async || {
        let found = b.brokers();
        found.iter().any(|broker| broker.broker_id == "b" && broker.bundles == 2)
            && b.inner.namespaces.all().iter().flat_map(|name| name.owned_bundles()).count() == 2
    })
    .await;
    let before = b_door.requests().len();
    let (second, ear) = producer(&b, &of_a).await;
    publish(&b, &second, 0, &texts("n", 1)).await;
    receipts(&ear, 1).await;
    assert_eq!(ear.look(|heard| heard.receipts[0].first_index), MessageIndex(51));
    // Topic, managed ledger, ledger; in recovery, closed, list with the next ledger.
    let requests = b_door.requests();
    assert_eq!(requests.len() - before, 6, "{:#?}", &requests[before..]);
    b.shutdown().await;
    drop(a);
}

#[tokio::test]
async fn a_roll_that_was_cut_short_leaves_two_open_ledgers_and_both_are_recovered() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let config = BrokerConfig { ledger_max_bytes: 400, ..Cluster::config_of("a") };
    let (a, door) = cluster.broker_behind_door(config).await;
    let (first, ear) = published(&a, "orders", &texts("m", 1)).await;
    let count = cut_a_roll_short(&cluster, &a, &first, &ear).await;
    door.set_open(false);
    cluster.meta.faults().clear();
    let b = cluster.broker(Cluster::config_of("b")).await;
    cluster.end_session("a").await;
    eventually("the take-over", async || is_here(&b, "orders").await).await;
    let all = usize::try_from(count).expect("small");
    assert_eq!(read_all(&b, "orders", "check", all).await.len(), all);
    let stats = b.topic_internal_stats(&topic("orders")).await.expect("loaded");
    let closed = stats.ledgers.iter().filter(|ledger| ledger.closed).count();
    assert!(closed >= 2, "{:?}", stats.ledgers);
    b.shutdown().await;
    drop(a);
}

#[tokio::test]
async fn with_too_few_bookies_producers_hear_how_many_are_missing_until_one_returns() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let config = BrokerConfig { ledger_idle_close: Duration::from_secs(1), ..Cluster::config() };
    let broker = cluster.broker(config).await;
    let (first, ear) = published(&broker, "orders", &texts("m", 1)).await;
    cluster.clock.advance(Duration::from_millis(1_500));
    let name = topic("orders");
    eventually("the idle ledger's end", async || {
        broker.topic_internal_stats(&name).await.is_ok_and(|stats| stats.state == "closed")
    })
    .await;
    cluster.set_registered(1);
    publish(&broker, &first, 1, &texts("n", 2)).await;
    ear.until("the reason", |heard| !heard.closed.is_empty()).await;
    let why = ear.look(|heard| heard.closed[0].to_string());
    assert!(why.contains("2 bookies") && why.contains("1 are up"), "{why}");
    assert_eq!(broker.budget().ingest().used_bytes, 0);
    let (again, ear) = producer(&broker, "orders").await;
    publish(&broker, &again, 1, &texts("n", 2)).await;
    cluster.set_registered(2);
    receipts(&ear, 2).await;
    let indexes =
        ear.look(|heard| heard.receipts.iter().map(|r| r.first_index.0).collect::<Vec<_>>());
    assert_eq!(indexes, [1, 2], "what was refused left no gap");
    broker.shutdown().await;
}
