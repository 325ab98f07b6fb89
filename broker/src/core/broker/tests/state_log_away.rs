//! A bundle whose state log can't be opened for a while, and which many want.

use std::sync::Arc;
use std::time::{Duration, Instant};

use geminga_meta::record::BrokerRecord;

use super::support::{eventually, receipts, together};
use crate::core::api::{OpenProducerError, TopicError};
use crate::core::broker::Broker;
use crate::core::cluster_info::Concern;
use crate::core::config::BrokerConfig;
use crate::testing::{Cluster, Door, Ear, consumer, open, producer, publish, texts};

async fn is_in_trouble(broker: &Broker) -> bool {
    let found = broker.cluster_status().await;
    found.problems.iter().any(|problem| problem.concern == Concern::Bundle)
}

/// A broker that has lost its session, and the next one, which can't open the state log of the
/// topic's bundle: no bookie is up. With the next one's door.
async fn stuck(cluster: &Cluster) -> (Broker, Broker, Arc<Door>) {
    let (a, a_door) = cluster.broker_behind_door(Cluster::config_of("a")).await;
    let (first, ear) = producer(&a, "orders").await;
    let (_worker, _) = consumer(&a, "orders", "work").await;
    publish(&a, &first, 0, &texts("m", 1)).await;
    receipts(&ear, 1).await;
    let (b, door) = cluster.broker_behind_door(Cluster::config_of("b")).await;
    (0..3).for_each(|index| cluster.set_up(index, false));
    a_door.set_open(false);
    cluster.end_session("a").await;
    eventually("the trouble", async || {
        let opened = b.open_producer(open("orders"), Arc::new(Ear::default()) as _).await;
        matches!(opened, Err(OpenProducerError::Topic(TopicError::Unavailable(_))))
    })
    .await;
    assert!(is_in_trouble(&b).await);
    (a, b, door)
}

#[tokio::test]
async fn a_state_log_that_cannot_be_opened_is_tried_ever_less_often_however_many_want_it() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let (a, b, door) = stuck(&cluster).await;
    let read = || door.requests().iter().filter(|one| one.contains("bundles/")).count();
    let (before, began) = (read(), Instant::now());
    let wanting: Vec<_> = (0..20)
        .map(|_| {
            let b = b.clone();
            tokio::spawn(async move {
                let mut refused = 0;
                while began.elapsed() < Duration::from_secs(1) {
                    let opened = b.open_producer(open("orders"), Arc::new(Ear::default()));
                    match opened.await {
                        Err(OpenProducerError::Topic(TopicError::Unavailable(_))) => refused += 1,
                        other => panic!("without its state log: {other:?}"),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                refused
            })
        })
        .collect();
    let mut refused = 0;
    for wanting in wanting {
        refused += wanting.await.expect("no panic");
    }
    // An attempt reads the bundle's record, and again after it has failed.
    let attempts = (read() - before) / 2;
    assert!(refused > 100 && attempts <= 8, "{refused} refused after {attempts} attempts");
    (0..3).for_each(|index| cluster.set_up(index, true));
    let mut opened = None;
    eventually("service", async || {
        let ear = Arc::new(Ear::default());
        opened = b.open_producer(open("orders"), Arc::clone(&ear) as _).await.ok();
        opened.is_some()
    })
    .await;
    assert!(!is_in_trouble(&b).await);
    drop(opened);
    b.shutdown().await;
    drop(a);
}

#[tokio::test]
async fn a_bundle_that_another_broker_serves_is_no_problem_of_the_one_that_could_not() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let (a, b, _) = stuck(&cluster).await;
    // One that gets nearly all bundles once they are nobody's.
    let weight = BrokerRecord::MAX_WEIGHT;
    let c = cluster.broker(BrokerConfig { weight, ..Cluster::config_of("c") }).await;
    together(&[&b, &c]).await;
    (0..3).for_each(|index| cluster.set_up(index, true));
    cluster.end_session("b").await;
    eventually("service", async || {
        c.open_producer(open("orders"), Arc::new(Ear::default()) as _).await.is_ok()
    })
    .await;
    eventually("the end of the trouble", async || !is_in_trouble(&b).await).await;
    b.shutdown().await;
    c.shutdown().await;
    drop(a);
}
