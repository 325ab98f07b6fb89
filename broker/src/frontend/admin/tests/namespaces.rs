//! Namespaces and their policies.

use super::*;
use serde_json::json;

const NS: &str = "/admin/v2/namespaces/public";

#[tokio::test]
async fn namespaces_are_created_listed_and_deleted() {
    let api = Api::start().await;
    assert_eq!(api.get(NS).await, json!(["public/default"]));
    api.done(&format!("PUT {NS}/a"), "").await;
    api.done(&format!("PUT {NS}/b"), r#"{"bundles":{"numBundles":2}}"#).await;
    assert_eq!(api.get(NS).await, json!(["public/a", "public/b", "public/default"]));
    let bundles =
        json!({ "boundaries": ["0x00000000", "0x80000000", "0xffffffff"], "numBundles": 2 });
    assert_eq!(api.get(&format!("{NS}/b/bundles")).await, bundles);
    let shown = api.get(&format!("{NS}/b")).await;
    assert_eq!(shown["bundles"], bundles);
    assert_eq!(shown["replication_clusters"], json!(["standalone"]));
    api.refused(&format!("PUT {NS}/a"), "", 409).await;
    api.refused("PUT /admin/v2/namespaces/nobody/a", "", 404).await;
    api.refused("GET /admin/v2/namespaces/nobody", "", 404).await;
    api.refused(&format!("GET {NS}/nowhere"), "", 404).await;
    api.refused(&format!("GET {NS}/nowhere/topics"), "", 404).await;
    api.refused(&format!("DELETE {NS}/a?force=true"), "", 405).await;
    api.done(&format!("DELETE {NS}/a"), "").await;
    api.refused(&format!("DELETE {NS}/a"), "", 404).await;
    api.done(&format!("PUT {TOPICS}/t"), "").await;
    api.refused(&format!("DELETE {NS}/default"), "", 409).await;
}

#[tokio::test]
async fn a_namespaces_body_may_be_written_out_with_all_of_pulsars_defaults() {
    let api = Api::start().await;
    let body = json!({
        "auth_policies": { "namespace_auth": {}, "destination_auth": {} },
        "replication_clusters": ["standalone"], "bundles": { "boundaries": [], "numBundles": 4 },
        "backlog_quota_map": {}, "message_ttl_in_seconds": 0, "deleted": false,
        "offload_threshold": -1, "schema_auto_update_compatibility_strategy": "Full",
        "schema_compatibility_strategy": "UNDEFINED", "subscription_auth_mode": "None",
        "retention_policies": { "retentionTimeInMinutes": 5, "retentionSizeInMB": -1 },
        "autoTopicCreationOverride": { "allowAutoTopicCreation": false },
    });
    api.done(&format!("PUT {NS}/a"), &body.to_string()).await;
    let shown = api.get(&format!("{NS}/a")).await;
    assert_eq!(shown["bundles"]["numBundles"], 4);
    let retention = json!({ "retentionTimeInMinutes": 5, "retentionSizeInMB": -1 });
    assert_eq!(shown["retention_policies"], retention);
    assert_eq!(shown["autoTopicCreationOverride"]["allowAutoTopicCreation"], false);
}

#[tokio::test]
async fn a_namespace_that_asks_for_what_is_not_built_is_refused_by_name_and_not_created() {
    let api = Api::start().await;
    for (body, status, named) in [
        (json!({ "message_ttl_in_seconds": 5 }), 501, "message_ttl_in_seconds"),
        (json!({ "auth_policies": { "namespace_auth": { "x": ["produce"] } } }), 501, "auth"),
        (json!({ "bundles": { "boundaries": ["0x0", "0xff"] } }), 501, "boundaries"),
        (json!({ "replication_clusters": ["standalone", "b"] }), 412, "\"b\""),
        (json!({ "bundles": { "numBundles": 5_000_000 } }), 412, "bundles"),
        (json!({ "bundles": { "numBundles": -1 } }), 400, "bundles"),
        (json!({ "retention_policies": { "retentionTimeInMinutes": 1 } }), 400, "retention"),
        (json!(["a"]), 400, "body"),
    ] {
        let reason = api.refused(&format!("PUT {NS}/a"), &body.to_string(), status).await;
        assert!(reason.contains(named), "{body}: {reason}");
    }
    assert_eq!(api.get(NS).await, json!(["public/default"]));
}

#[tokio::test]
async fn retention_is_set_shown_and_taken_back() {
    let api = Api::start().await;
    let path = format!("{NS}/default/retention");
    api.done(&format!("GET {path}"), "").await;
    let body = json!({ "retentionTimeInMinutes": 10, "retentionSizeInMB": 512 });
    api.done(&format!("POST {path}"), &body.to_string()).await;
    assert_eq!(api.get(&path).await, body);
    let wrong = r#"{"retentionTimeInMinutes":0,"retentionSizeInMB":1}"#;
    api.refused(&format!("POST {path}"), wrong, 412).await;
    api.refused(&format!("POST {path}"), "", 400).await;
    assert_eq!(api.get(&path).await, body);
    api.done(&format!("DELETE {path}"), "").await;
    api.done(&format!("GET {path}"), "").await;
    api.refused(&format!("POST {NS}/nowhere/retention"), &body.to_string(), 404).await;
}

#[tokio::test]
async fn policies_that_are_set_at_the_same_time_are_all_kept() {
    let api = Api::start().await;
    let retention = r#"{"retentionTimeInMinutes":10,"retentionSizeInMB":512}"#;
    let creation = r#"{"allowAutoTopicCreation":false}"#;
    let lines =
        [format!("POST {NS}/default/retention"), format!("POST {NS}/default/autoTopicCreation")];
    tokio::join!(api.done(&lines[0], retention), api.done(&lines[1], creation));
    let shown = api.get(&format!("{NS}/default")).await;
    assert_eq!(shown["retention_policies"]["retentionSizeInMB"], 512);
    assert_eq!(shown["autoTopicCreationOverride"]["allowAutoTopicCreation"], false);
}

#[tokio::test]
async fn topics_are_listed_by_mode() {
    let api = Api::start().await;
    api.done(&format!("PUT {TOPICS}/t"), "").await;
    let all = json!(["persistent://public/default/t"]);
    for query in ["", "?mode=PERSISTENT", "?mode=ALL"] {
        assert_eq!(api.get(&format!("{NS}/default/topics{query}")).await, all, "{query}");
    }
    let none = api.get(&format!("{NS}/default/topics?mode=NON_PERSISTENT")).await;
    assert_eq!(none, json!([]));
    api.refused(&format!("GET {NS}/default/topics?mode=SOME"), "", 400).await;
}
