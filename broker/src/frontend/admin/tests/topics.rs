//! Topics and subscriptions.

use super::*;
use serde_json::json;

#[tokio::test]
async fn topics_are_created_listed_and_deleted() {
    let api = Api::start().await;
    assert_eq!(api.get(TOPICS).await, json!([]));
    api.done(&format!("PUT {TOPICS}/b"), "").await;
    api.done(&format!("PUT {TOPICS}/a/"), "{}").await;
    let both = json!(["persistent://public/default/a", "persistent://public/default/b"]);
    assert_eq!(api.get(TOPICS).await, both);
    api.refused(&format!("PUT {TOPICS}/a"), "", 409).await;
    let reason = api.refused(&format!("PUT {TOPICS}/c"), r#"{"owner":"me"}"#, 501).await;
    assert!(reason.contains("properties"), "{reason}");
    api.refused("PUT /admin/v2/persistent/public/nowhere/a", "", 404).await;
    api.refused("GET /admin/v2/persistent/public/nowhere", "", 404).await;
    api.done(&format!("DELETE {TOPICS}/a"), "").await;
    api.refused(&format!("DELETE {TOPICS}/a"), "", 404).await;
    api.refused(&format!("DELETE {TOPICS}/a?force=true"), "", 404).await;
    api.refused(&format!("DELETE {TOPICS}/b?force=maybe"), "", 400).await;
    assert_eq!(api.get(TOPICS).await, json!(["persistent://public/default/b"]));
}

#[tokio::test]
async fn a_topic_in_use_is_deleted_only_by_force() {
    let api = Api::start().await;
    let _producer = api.producer("t").await;
    let _consumer = api.consumer("t", "s").await;
    let reason = api.refused(&format!("DELETE {TOPICS}/t"), "", 412).await;
    assert!(reason.contains("force"), "{reason}");
    let reason = api.refused(&format!("DELETE {TOPICS}/t/subscription/s"), "", 412).await;
    assert!(reason.contains("consumers"), "{reason}");
    api.done(&format!("DELETE {TOPICS}/t/subscription/s?force=true"), "").await;
    api.done(&format!("DELETE {TOPICS}/t?force=true"), "").await;
    assert_eq!(api.get(TOPICS).await, json!([]));
}

#[tokio::test]
async fn partitioned_topics_are_said_not_to_be_built_and_no_topic_has_partitions() {
    let api = Api::start().await;
    assert_eq!(api.get(&format!("{TOPICS}/t/partitions")).await, json!({ "partitions": 0 }));
    assert_eq!(api.get(&format!("{TOPICS}/partitioned")).await, json!([]));
    for (method, body) in [("PUT", "3"), ("POST", "\"3\""), ("DELETE", "")] {
        let reason = api.refused(&format!("{method} {TOPICS}/t/partitions"), body, 501).await;
        assert!(reason.contains("partitioned topics"), "{reason}");
    }
    api.refused(&format!("GET {TOPICS}/t/partitioned-stats"), "", 501).await;
    api.refused("GET /admin/v2/persistent/public/nowhere/t/partitions", "", 404).await;
    assert_eq!(api.get(TOPICS).await, json!([]));
}

#[tokio::test]
async fn statistics_show_what_was_published_and_who_is_connected() {
    let api = Api::start().await;
    let mut producer = api.producer("t").await;
    let first = producer.publish("one").await;
    let last = producer.publish("two").await;
    let _consumer = api.consumer("t", "s").await;
    let stats = api.get(&format!("{TOPICS}/t/stats")).await;
    assert_eq!(stats["msgInCounter"], 2);
    assert_eq!(stats["publishers"][0]["producerName"], "p");
    assert_eq!(stats["publishers"][0]["metadata"]["host"], "a");
    let subscription = &stats["subscriptions"]["s"];
    assert_eq!(subscription["msgBacklog"], 2);
    assert_eq!(subscription["type"], "Shared");
    assert_eq!(subscription["consumers"][0]["consumerName"], "c");
    let internal = api.get(&format!("{TOPICS}/t/internalStats")).await;
    assert_eq!(internal["numberOfEntries"], 2);
    assert_eq!(internal["lastConfirmedEntry"], last.position.to_string());
    assert_eq!(internal["state"], "LedgerOpened");
    assert_eq!(internal["ledgers"][0]["ledgerId"], first.position.ledger.0);
    assert_eq!(internal["geminga"]["nextIndex"], 2);
    assert!(internal["cursors"]["s"].is_object(), "{internal}");
    let id = api.get(&format!("{TOPICS}/t/lastMessageId")).await;
    let (ledger, entry) = (last.position.ledger.0, last.position.entry.0);
    assert_eq!(id, json!({ "ledgerId": ledger, "entryId": entry, "partitionIndex": -1 }));
    for path in ["stats", "internalStats", "lastMessageId", "subscriptions"] {
        api.refused(&format!("GET {TOPICS}/nothing/{path}"), "", 404).await;
    }
}

async fn backlog(api: &Api, subscription: &str) -> Value {
    let stats = api.get(&format!("{TOPICS}/t/stats")).await;
    stats["subscriptions"][subscription]["msgBacklog"].clone()
}

#[tokio::test]
async fn subscriptions_are_created_at_either_end_or_in_between() {
    let api = Api::start().await;
    let mut producer = api.producer("t").await;
    producer.publish("one").await;
    let second = producer.publish("two").await;
    producer.publish("three").await;
    let path = format!("{TOPICS}/t/subscription");
    let (ledger, entry) = (second.position.ledger.0, second.position.entry.0);
    let between = json!({ "ledgerId": ledger, "entryId": entry, "partitionIndex": -1 });
    api.done(&format!("PUT {path}/plain"), "").await;
    api.done(&format!("PUT {path}/latest"), "\"latest\"").await;
    let earliest = r#"{"ledgerId":-1,"entryId":-1,"partitionIndex":-1}"#;
    api.done(&format!("PUT {path}/earliest?replicated=false"), earliest).await;
    api.done(&format!("PUT {path}/between"), &between.to_string()).await;
    let names = json!(["between", "earliest", "latest", "plain"]);
    assert_eq!(api.get(&format!("{TOPICS}/t/subscriptions")).await, names);
    for (name, messages) in [("plain", 0), ("latest", 0), ("earliest", 3), ("between", 2)] {
        assert_eq!(backlog(&api, name).await, messages, "{name}");
    }
    api.refused(&format!("PUT {path}/plain"), "", 409).await;
    api.refused(&format!("PUT {path}/x?replicated=true"), "", 501).await;
    api.refused(&format!("PUT {path}/x"), r#"{"ledgerId":999999,"entryId":0}"#, 412).await;
    api.refused(&format!("PUT {path}/x"), "7", 400).await;
    api.done(&format!("DELETE {path}/plain"), "").await;
    api.refused(&format!("DELETE {path}/plain"), "", 404).await;
    let left = json!(["between", "earliest", "latest"]);
    assert_eq!(api.get(&format!("{TOPICS}/t/subscriptions")).await, left);
}

#[tokio::test]
async fn a_subscription_is_moved_to_a_message_id_and_past_everything() {
    let api = Api::start().await;
    let mut producer = api.producer("t").await;
    for payload in ["1", "2", "3", "4"] {
        producer.publish(payload).await;
    }
    let last = producer.publish("5").await;
    let path = format!("{TOPICS}/t/subscription/s");
    api.done(&format!("PUT {path}"), "\"earliest\"").await;
    assert_eq!(backlog(&api, "s").await, 5);
    api.done(&format!("POST {path}/skip_all"), "").await;
    assert_eq!(backlog(&api, "s").await, 0);
    let (ledger, entry) = (last.position.ledger.0, last.position.entry.0);
    let id = json!({ "ledgerId": ledger, "entryId": entry - 1 }).to_string();
    api.done(&format!("POST {path}/resetcursor"), &id).await;
    assert_eq!(backlog(&api, "s").await, 2);
    api.done(&format!("POST {path}/resetcursor"), "\"earliest\"").await;
    assert_eq!(backlog(&api, "s").await, 5);
    let latest = json!({ "ledgerId": i64::MAX, "entryId": i64::MAX }).to_string();
    api.done(&format!("POST {path}/resetcursor"), &latest).await;
    assert_eq!(backlog(&api, "s").await, 0);
    let reason = api.refused(&format!("POST {path}/resetcursor/1700000000000"), "", 501).await;
    assert!(reason.contains("to a time"), "{reason}");
    api.refused(&format!("POST {path}/resetcursor"), "", 400).await;
    let nowhere = r#"{"ledgerId":999999,"entryId":0}"#;
    api.refused(&format!("POST {path}/resetcursor"), nowhere, 412).await;
    let other = format!("{TOPICS}/t/subscription/nobody");
    api.refused(&format!("POST {other}/resetcursor"), "\"earliest\"", 404).await;
    api.refused(&format!("POST {other}/skip_all"), "", 404).await;
}

#[tokio::test]
async fn a_topic_is_unloaded_and_what_it_holds_is_still_there() {
    let api = Api::start().await;
    let mut producer = api.producer("t").await;
    producer.publish("one").await;
    api.done(&format!("PUT {TOPICS}/t/subscription/s"), "\"earliest\"").await;
    api.done(&format!("PUT {TOPICS}/t/unload"), "").await;
    assert_eq!(backlog(&api, "s").await, 1);
    api.refused(&format!("PUT {TOPICS}/nothing/unload"), "", 404).await;
}

#[tokio::test]
async fn a_name_is_decoded_once() {
    let api = Api::start().await;
    api.done(&format!("PUT {TOPICS}/a%2Bb%253A"), "").await;
    assert_eq!(api.get(TOPICS).await, json!(["persistent://public/default/a+b%3A"]));
    api.done(&format!("DELETE {TOPICS}/a+b%253A"), "").await;
    assert_eq!(api.get(TOPICS).await, json!([]));
}
