//! An ownership record that can't be read: somebody has the bundle, and nobody knows who.

use geminga_meta::bundle::BundleId;
use geminga_meta::keys;
use geminga_meta::store::{MetadataStore, Txn};

use super::support::eventually;
use crate::core::api::{Lookup, TopicError};
use crate::core::broker::Broker;
use crate::core::cluster_info::Concern;
use crate::testing::{Cluster, producer, publish, texts, topic};

fn bundle(broker: &Broker) -> BundleId {
    let name = topic("orders");
    let namespace = broker.inner.namespaces.known(name.namespace()).expect("in use");
    namespace.bundle_of(&name)
}

#[tokio::test]
async fn a_bundle_whose_owner_cannot_be_read_is_shown_and_left_alone_until_the_record_goes() {
    let cluster = Cluster::with_bookies(3, 3, 2);
    let a = cluster.broker(Cluster::config_of("a")).await;
    let (first, ear) = producer(&a, "orders").await;
    publish(&a, &first, 0, &texts("m", 1)).await;
    let b = cluster.broker(Cluster::config_of("b")).await;
    let owner = async || b.lookup(&topic("orders")).await;
    eventually("the owner", async || matches!(owner().await, Ok(Lookup::Elsewhere { .. }))).await;
    let key = keys::ownership(&bundle(&a));
    let rubbish = Txn::default().put(key.clone(), "rubbish");
    cluster.meta.txn(rubbish).await.expect("written");
    eventually("the problem", async || {
        let problems = b.cluster_status().await.problems;
        problems.iter().any(|problem| problem.why.contains(&key))
    })
    .await;
    for broker in [&a, &b] {
        let problems = broker.cluster_status().await.problems;
        let shown = problems.iter().find(|problem| problem.subject == bundle(&a).to_string());
        let why = &shown.expect("shown").why;
        assert!(why.contains("nobody can tell who owns it") && why.contains("delete"), "{why}");
    }
    // Neither who is asked takes it, nor whoever was picked for what nobody has.
    assert!(matches!(owner().await, Err(TopicError::Unavailable(_))));
    let refused = b.open_producer(crate::testing::open("orders"), ear.clone() as _).await;
    assert!(refused.is_err());
    let found = cluster.meta.get(&key).await.expect("readable").expect("there");
    assert_eq!(found.value, "rubbish");
    // Who has it goes on.
    publish(&a, &first, 1, &texts("n", 1)).await;
    ear.until("receipts", |heard| heard.receipts.len() == 2).await;
    assert!(ear.look(|heard| heard.closed.is_empty()));
    cluster.meta.txn(Txn::default().delete(key.clone())).await.expect("deleted");
    eventually("an owner", async || {
        let problems = b.cluster_status().await.problems;
        problems.iter().all(|problem| problem.concern != Concern::Bundle)
            && cluster.meta.get(&key).await.expect("readable").is_some()
    })
    .await;
    a.shutdown().await;
    b.shutdown().await;
}
