//! Two processes with one id, and what a session that ends takes with it.

use std::sync::Arc;
use std::time::Duration;

use geminga_meta::store::memory::{Fault, Request};
use geminga_meta::store::{MemoryStore, MetadataStore};
use geminga_proto::env::{Env, ManualClock};

use super::eventually;
use crate::core::broker::{Broker, StartError};
use crate::core::config::BrokerConfig;
use crate::core::ownership::OwnershipError;
use crate::testing::Cluster;

/// A broker of a cluster: nothing says that it is alone.
fn config(url: &str) -> BrokerConfig {
    let config = Cluster::config_of("b1");
    let (service_url, place) = (url.to_owned(), format!("place of {url}"));
    BrokerConfig { alone: false, service_url, place, ..config }
}

async fn start(cluster: &Cluster, config: BrokerConfig) -> Result<Broker, StartError> {
    // A clock that stands still, so that leases end only when a test ends them.
    let env = Env { clock: Arc::new(ManualClock::default()), ..cluster.env() };
    let meta = Arc::clone(&cluster.meta) as Arc<dyn MetadataStore>;
    Broker::start(config, env, meta, cluster.ledgers()).await
}

/// Ends all leases that are held now.
fn end_leases(clock: &ManualClock, store: &MemoryStore) {
    clock.advance(Duration::from_secs(60 * 24 * 3_600));
    store.expire_leases();
}

#[tokio::test(start_paused = true)]
async fn a_second_broker_of_one_id_is_refused_and_the_first_goes_on() {
    let cluster = Cluster::new();
    let first = start(&cluster, config("http://one:6660")).await.expect("starts");
    let session = first.brokers()[0].session.clone();
    let refused = start(&cluster, config("http://two:6660")).await.err();
    let service_url = "http://one:6660".to_owned();
    let duplicate = OwnershipError::Duplicate { broker_id: "b1".to_owned(), service_url };
    assert!(matches!(&refused, Some(StartError::Ownership(e)) if *e == duplicate), "{refused:?}");
    let text = refused.expect("refused").to_string();
    assert!(text.contains("b1") && text.contains("http://one:6660"), "{text}");
    assert!(text.contains("choose another broker_id"), "{text}");
    assert_eq!(first.brokers()[0].session, session);
    first.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_at_the_place_of_the_former_one_follows_it_at_once() {
    let cluster = Cluster::new();
    let first = start(&cluster, config("http://one:6660")).await.expect("starts");
    let former = first.brokers()[0].session.clone();
    let started = tokio::time::Instant::now();
    let second = start(&cluster, config("http://one:6660")).await.expect("starts");
    assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
    assert_ne!(second.brokers()[0].session, former);
    second.shutdown().await;
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn two_processes_behind_one_address_do_not_end_each_others_sessions() {
    let cluster = Cluster::new();
    let first = start(&cluster, config("http://all:6660")).await.expect("starts");
    let session = first.brokers()[0].session.clone();
    // Of another machine, or of a release or system that can't tell.
    for place in ["elsewhere", ""] {
        let second = BrokerConfig { place: place.to_owned(), ..config("http://all:6660") };
        let refused = start(&cluster, second).await.err();
        let duplicate =
            matches!(&refused, Some(StartError::Ownership(OwnershipError::Duplicate { .. })));
        assert!(duplicate, "{refused:?}");
        assert_eq!(first.brokers()[0].session, session);
    }
    first.shutdown().await;
    let nowhere = || BrokerConfig { place: String::new(), ..config("http://all:6660") };
    let first = start(&cluster, nowhere()).await.expect("starts");
    let refused = start(&cluster, nowhere()).await.err();
    assert!(refused.is_some(), "two that can't tell where they are are not at one place");
    first.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_waits_until_the_lease_of_the_former_one_has_ended() {
    let cluster = Cluster::new();
    let first = start(&cluster, config("http://one:6660")).await.expect("starts");
    drop(first);
    let ending = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        // It holds no lease meanwhile, which it could lose.
        cluster.end_session("b1").await;
        end_leases(&cluster.clock, &cluster.meta);
    };
    let (second, ()) = tokio::join!(start(&cluster, config("http://two:6660")), ending);
    let second = second.expect("starts");
    assert_eq!(second.brokers()[0].service_url, "http://two:6660");
    second.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_before_the_record_is_written_is_followed_by_another() {
    let cluster = Cluster::new();
    let (clock, store, mut slow) = (Arc::clone(&cluster.clock), Arc::clone(&cluster.meta), 1);
    cluster.meta.faults().set_script(move |request| {
        if slow > 0 && matches!(request, Request::Txn(_)) {
            slow -= 1;
            end_leases(&clock, &store);
        }
        Fault::None
    });
    let broker = start(&cluster, config("http://one:6660")).await.expect("starts");
    assert_eq!(broker.brokers().len(), 1);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_session_that_has_ended_is_followed_by_another_under_the_same_id() {
    let cluster = Cluster::new();
    let broker = cluster.broker(Cluster::config_of("b1")).await;
    let former = broker.brokers()[0].session.clone();
    cluster.end_session("b1").await;
    eventually("the next session", async || {
        broker.brokers().first().is_some_and(|found| found.session != former)
    })
    .await;
    broker.shutdown().await;
    assert!(cluster.meta.range("brokers/", None, 10).await.expect("readable").pairs.is_empty());
    assert!(cluster.meta.range("ownership/", None, 10).await.expect("readable").pairs.is_empty());
}
