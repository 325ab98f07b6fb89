//! Several brokers: who is asked, and who answers.

use super::*;
use crate::core::api::Lookup;
use crate::testing::{eventually, topic};
use serde_json::json;

/// Two brokers that see each other; the first owns the topic's bundle.
async fn two() -> (Cluster, Api, Api, String) {
    let cluster = Cluster::new();
    let a = Api::over(&cluster, Cluster::config_of("a")).await;
    let mut producer = a.producer("orders").await;
    producer.publish("x").await;
    let b = Api::over(&cluster, Cluster::config_of("b")).await;
    eventually("brokers see each other", async || {
        a.broker.brokers().len() == 2 && b.broker.lookup(&topic("orders")).await != Ok(Lookup::Here)
    })
    .await;
    let bundles = a.get("/admin/v2/geminga/namespaces/public/default/bundles").await;
    let owned =
        bundles["bundles"].as_array().expect("a list").iter().find(|one| one["owner"] == "a");
    let bundle = owned.expect("one")["bundle"].as_str().expect("text").to_owned();
    (cluster, a, b, bundle)
}

impl Api {
    async fn location(&self, line: &str) -> String {
        let answer = self.ask(line, "").await;
        assert_eq!(answer.refusal(), 307, "{line}: {}", answer.text);
        answer.headers["location"].to_str().expect("text").to_owned()
    }
}

#[tokio::test]
async fn what_only_the_owner_can_answer_is_sent_there_once() {
    let (_cluster, a, b, bundle) = two().await;
    let stats = format!("{TOPICS}/orders/stats");
    let expected = format!("http://a:8080{stats}?authoritative=true");
    assert_eq!(b.location(&format!("GET {stats}")).await, expected);
    assert_eq!(a.ask(&format!("GET {stats}"), "").await.status, StatusCode::OK);
    for line in [
        "PUT /orders",
        "DELETE /orders?force=true",
        "PUT /orders/unload",
        "GET /orders/internalStats",
        "GET /orders/lastMessageId",
        "GET /orders/subscriptions",
        "PUT /orders/subscription/s",
        "DELETE /orders/subscription/s",
        "POST /orders/subscription/s/skip_all",
    ] {
        let (method, path) = line.split_once(' ').expect("both");
        let sent = b.location(&format!("{method} {TOPICS}{path}")).await;
        assert!(sent.starts_with(&format!("http://a:8080{TOPICS}/orders")), "{sent}");
        assert!(sent.ends_with("authoritative=true"), "{sent}");
    }
    let sent = b.location("GET /admin/v2/geminga/ledgers?topic=orders").await;
    let expected = "http://a:8080/admin/v2/geminga/ledgers?topic=orders&authoritative=true";
    assert_eq!(sent, expected);
    // Sent on already: whoever gets it says that it can't answer.
    b.refused(&format!("GET {stats}?authoritative=true"), "", 503).await;
    let path = format!("/admin/v2/namespaces/public/default/{bundle}/unload");
    let expected = format!("http://a:8080{path}?authoritative=true");
    assert_eq!(b.location(&format!("PUT {path}")).await, expected);
    let lookup = b.get("/lookup/v2/topic/persistent/public/default/orders").await;
    assert_eq!(lookup, json!({ "httpUrl": "http://a:8080", "gemingaUrl": "http://a:6660" }));
}

#[tokio::test]
async fn bundles_are_unloaded_by_name_and_a_namespace_by_each_of_its_owners() {
    let (_cluster, a, b, bundle) = two().await;
    let namespace = "/admin/v2/namespaces/public/default";
    a.done(&format!("PUT {namespace}/{bundle}/unload"), "").await;
    eventually("an owner", async || {
        let bundles = a.get("/admin/v2/geminga/namespaces/public/default/bundles").await;
        let bundles = bundles["bundles"].as_array().expect("a list").clone();
        bundles.iter().any(|one| one["bundle"] == *bundle && !one["owner"].is_null())
    })
    .await;
    a.refused(&format!("PUT {namespace}/00000000-00000001/unload"), "", 412).await;
    a.refused(&format!("PUT {namespace}/all/unload"), "", 412).await;
    a.refused("PUT /admin/v2/namespaces/public/nothing/unload", "", 404).await;
    // Whichever owns it: the one that doesn't sends on, and both together are done.
    let mut done = false;
    for (api, other) in [(&a, &b), (&b, &a)] {
        let answer = api.ask(&format!("PUT {namespace}/unload"), "").await;
        if answer.status == StatusCode::TEMPORARY_REDIRECT {
            let location = answer.headers["location"].to_str().expect("text").to_owned();
            let path = location.split_once(":8080").expect("a port").1;
            other.done(&format!("PUT {path}"), "").await;
            done = true;
        }
    }
    assert!(done, "one of them had nothing of it");
}

#[tokio::test]
async fn the_cluster_is_shown_with_its_brokers_and_none_of_them_leads() {
    let (_cluster, a, b, _) = two().await;
    let brokers = b.get("/admin/v2/geminga/brokers").await;
    let brokers = brokers["brokers"].as_array().expect("a list");
    let named: Vec<_> = brokers.iter().map(|one| (&one["broker_id"], &one["state"])).collect();
    let serving = json!("serving");
    assert_eq!(named, [(&json!("a"), &serving), (&json!("b"), &serving)]);
    assert_eq!(brokers[0]["bundles"], 1);
    assert_eq!(b.get("/admin/v2/brokers").await, json!(["a:8080", "b:8080"]));
    b.refused("GET /admin/v2/brokers/leaderBroker", "", 404).await;
    let bookies = b.get("/admin/v2/geminga/bookies").await;
    assert_eq!(bookies["bookies"][0]["state"], "writable");
    assert_eq!(b.get("/admin/v2/bookies/all").await["bookies"][0]["bookieId"], "bookie-0");
    let status = b.get("/admin/v2/geminga/cluster").await;
    assert_eq!((&status["status"], &status["problems"]), (&json!("healthy"), &json!([])));
    assert_eq!((&status["asked"], &status["brokers"]), (&json!("b"), &json!(2)));
    a.broker.shutdown().await;
    eventually("one broker", async || b.get("/admin/v2/geminga/cluster").await["brokers"] == 1)
        .await;
}

#[tokio::test]
async fn a_cluster_without_its_metadata_is_degraded_since_then() {
    let (cluster, a, _b, _) = two().await;
    cluster.meta.faults().set_down(true);
    cluster.meta.lose_watches();
    eventually("the outage", async || {
        let status = a.get("/admin/v2/geminga/cluster").await;
        let problems = status["problems"].as_array().expect("a list").clone();
        problems.iter().any(|one| one["what"] == "metadata" && one["since_ms"].is_u64())
    })
    .await;
    let status = a.get("/admin/v2/geminga/cluster").await;
    assert_eq!((&status["status"], &status["brokers"]), (&json!("degraded"), &json!(2)));
    cluster.meta.faults().set_down(false);
    eventually("the end of the outage", async || {
        a.get("/admin/v2/geminga/cluster").await["status"] == "healthy"
    })
    .await;
}
