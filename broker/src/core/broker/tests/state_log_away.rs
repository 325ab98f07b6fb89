//! A bundle whose state log can't be opened for a while, and which many want.

use std::time::{Duration, Instant};

use super::support::eventually;
use crate::core::api::{OpenProducerError, TopicError};
use crate::core::cluster_info::Concern;
use crate::testing::{Cluster, Ear, consumer, open, producer, publish, texts};

#[tokio::test]
async fn a_state_log_that_cannot_be_opened_is_tried_ever_less_often_however_many_want_it() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let (a, a_door) = cluster.broker_behind_door(Cluster::config_of("a")).await;
    let (first, ear) = producer(&a, "orders").await;
    let (_worker, _) = consumer(&a, "orders", "work").await;
    publish(&a, &first, 0, &texts("m", 1)).await;
    ear.until("a receipt", |heard| heard.receipts.len() == 1).await;
    let (b, door) = cluster.broker_behind_door(Cluster::config_of("b")).await;
    (0..3).for_each(|index| cluster.set_up(index, false));
    a_door.set_open(false);
    cluster.end_session("a").await;
    eventually("the trouble", async || {
        let found = b.cluster_status().await;
        found.problems.iter().any(|problem| problem.concern == Concern::Bundle)
    })
    .await;
    let read = || door.requests().iter().filter(|one| one.contains("bundles/")).count();
    let (before, began) = (read(), Instant::now());
    let wanting: Vec<_> = (0..20)
        .map(|_| {
            let b = b.clone();
            tokio::spawn(async move {
                let mut refused = 0;
                while began.elapsed() < Duration::from_secs(1) {
                    let opened =
                        b.open_producer(open("orders"), std::sync::Arc::new(Ear::default()));
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
        let ear = std::sync::Arc::new(Ear::default());
        opened = b.open_producer(open("orders"), std::sync::Arc::clone(&ear) as _).await.ok();
        opened.is_some()
    })
    .await;
    assert!(b.cluster_status().await.problems.iter().all(|one| one.concern != Concern::Bundle));
    drop(opened);
    b.shutdown().await;
    drop(a);
}
