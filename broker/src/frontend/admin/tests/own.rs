//! `/admin/v2/geminga` and `/metrics`.

use super::*;
use serde_json::json;

const OWN: &str = "/admin/v2/geminga";

#[tokio::test]
async fn ledgers_are_listed_in_pages_and_by_topic() {
    let api = Api::start().await;
    let mut one = api.producer("one").await;
    let mine = one.publish("payload").await.position.ledger.0;
    let mut two = api.producer("two").await;
    two.publish("payload").await;
    let all = api.get(&format!("{OWN}/ledgers")).await;
    assert_eq!(all["next"], Value::Null);
    let ids: Vec<u64> =
        all["ledgers"].as_array().expect("a list").iter().filter_map(id_of).collect();
    assert!(ids.len() > 2 && ids.is_sorted() && ids.contains(&mine), "{ids:?}");
    let (mut after, mut paged) = (String::new(), Vec::new());
    loop {
        let page = api.get(&format!("{OWN}/ledgers?limit=1{after}")).await;
        paged.extend(page["ledgers"].as_array().expect("a list").iter().filter_map(id_of));
        let Some(next) = page["next"].as_u64() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(paged, ids);
    let of_topic = api.get(&format!("{OWN}/ledgers?topic=one")).await;
    assert_eq!(of_topic["ledgers"].as_array().map(Vec::len), Some(1));
    let ledger = &of_topic["ledgers"][0];
    assert_eq!((&ledger["ledger_id"], &ledger["entries"]), (&json!(mine), &json!(1)));
    assert_eq!((&ledger["state"], &ledger["state_log"]), (&json!("open"), &json!(false)));
    let bookies = json!([{ "first_entry": 0, "bookies": ["bookie-0"] }]);
    assert_eq!(ledger["fragments"], bookies);
    let single = api.get(&format!("{OWN}/ledgers/{mine}")).await;
    assert_eq!((&single["ledger_id"], &single["write_quorum"]), (&json!(mine), &json!(1)));
    let full = "persistent%3A%2F%2Fpublic%2Fdefault%2Fone";
    let same = api.get(&format!("{OWN}/ledgers?topic={full}&limit=5&after=0")).await;
    assert_eq!(same["ledgers"][0]["ledger_id"], mine);
}

fn id_of(ledger: &Value) -> Option<u64> {
    ledger["ledger_id"].as_u64()
}

#[tokio::test]
async fn a_ledger_that_is_not_there_or_not_a_number_is_refused() {
    let api = Api::start().await;
    api.refused(&format!("GET {OWN}/ledgers/999999"), "", 404).await;
    for id in ["x", "-1", "1.5", "9223372036854775808", "%00"] {
        api.refused(&format!("GET {OWN}/ledgers/{id}"), "", 400).await;
    }
    api.refused(&format!("GET {OWN}/ledgers?limit=0"), "", 400).await;
    api.refused(&format!("GET {OWN}/ledgers?after=x"), "", 400).await;
    api.refused(&format!("GET {OWN}/ledgers?topic=nothing"), "", 404).await;
    api.refused(&format!("GET {OWN}/ledgers?topic=a%2Fb"), "", 412).await;
}

#[tokio::test]
async fn the_metadata_is_dumped_in_pages() {
    let api = Api::start().await;
    let tenants = api.get(&format!("{OWN}/meta?prefix=tenants/")).await;
    assert_eq!(tenants["entries"][0]["key"], "tenants/public");
    assert_eq!(
        (&tenants["entries"][0]["kind"], &tenants["next"]),
        (&json!("tenant"), &json!(null))
    );
    let (mut after, mut keys) = (String::new(), Vec::new());
    loop {
        let page = api.get(&format!("{OWN}/meta?limit=2{after}")).await;
        let entries = page["entries"].as_array().expect("a list");
        keys.extend(entries.iter().filter_map(|entry| entry["key"].as_str().map(str::to_owned)));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={}", next.replace('/', "%2F"));
    }
    let strictly = keys.is_sorted_by(|left, right| left < right);
    assert!(strictly && keys.len() > 2, "{keys:?}");
}

#[tokio::test]
async fn durability_is_what_the_bookies_say() {
    let api = Api::start().await;
    let durability = api.get(&format!("{OWN}/durability")).await;
    assert_eq!((&durability["write_quorum"], &durability["ack_quorum"]), (&json!(1), &json!(1)));
    assert_eq!(durability["bookies"][0]["bookie"], "bookie-0");
    assert_eq!(durability["bookies"][0]["sync_mode"], durability["sync_mode"]);
    assert_eq!(durability["protocol"], json!({ "min": 1, "max": 2 }));
    assert_eq!(durability["release"], "1.2.3");
    assert_eq!(
        (&durability["cluster"], &durability["cluster_id"]),
        (&json!("standalone"), &json!("c0ffee"))
    );
}

#[tokio::test]
async fn every_queue_shows_its_bytes_and_its_cap() {
    let api = Api::start().await;
    let queues = api.get(&format!("{OWN}/queues")).await;
    let queues = queues["queues"].as_array().expect("a list");
    assert!(queues.len() >= 3, "{queues:?}");
    for queue in queues {
        let capacity = queue["capacity_bytes"].as_u64().expect("a number");
        assert!(capacity > 0 && queue["bytes"].as_u64().is_some_and(|bytes| bytes <= capacity));
        assert!(queue["name"].is_string() && queue["waiting"].is_u64(), "{queue}");
    }
}

#[tokio::test]
async fn metrics_count_what_was_published_and_name_no_topic() {
    let api = Api::start().await;
    let mut producer = api.producer("secret-name").await;
    producer.publish("one").await;
    let answer = api.ask("GET /metrics", "").await;
    assert_eq!(answer.status, StatusCode::OK);
    let kind = answer.headers["content-type"].to_str().expect("ASCII");
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    for line in ["geminga_broker_messages_in_total 1", "geminga_broker_topics 1", "# EOF"] {
        assert!(answer.text.lines().any(|found| found == line), "{line}:\n{}", answer.text);
    }
    assert!(!answer.text.contains("secret-name") && !answer.text.contains("public"));
}
