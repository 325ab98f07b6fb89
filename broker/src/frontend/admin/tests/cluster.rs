//! Brokers, clusters, tenants, and what orchestrators ask.

use super::*;
use serde_json::json;

#[tokio::test]
async fn a_broker_is_live_at_once_and_ready_and_healthy_when_it_is_said_so() {
    let api = Api::start().await;
    assert_eq!(api.ask("GET /livez", "").await.text, "ok");
    api.refused("GET /readyz", "", 503).await;
    api.refused("GET /admin/v2/brokers/ready", "", 503).await;
    api.refused("GET /admin/v2/brokers/health", "", 503).await;
    api.readiness.set(true);
    for path in ["/readyz", "/admin/v2/brokers/ready", "/admin/v2/brokers/health"] {
        let answer = api.ask(&format!("GET {path}"), "").await;
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "ok"), "{path}");
    }
}

#[tokio::test]
async fn the_brokers_and_the_cluster_are_listed_as_pulsars_tools_expect() {
    let api = Api::start().await;
    assert_eq!(api.get("/admin/v2/brokers").await, json!(["localhost:8080"]));
    assert_eq!(api.get("/admin/v2/brokers/standalone").await, json!(["localhost:8080"]));
    let leader = json!({ "brokerId": "broker-1", "serviceUrl": "http://localhost:8080" });
    assert_eq!(api.get("/admin/v2/brokers/leaderBroker").await, leader);
    assert_eq!(api.get("/admin/v2/clusters").await, json!(["standalone"]));
    let cluster =
        json!({ "serviceUrl": "http://localhost:8080", "gemingaUrl": "http://localhost:6660" });
    assert_eq!(api.get("/admin/v2/clusters/standalone").await, cluster);
    api.refused("GET /admin/v2/clusters/other", "", 404).await;
    api.refused("GET /admin/v2/brokers/other", "", 404).await;
    api.refused("PUT /admin/v2/clusters/standalone", "{}", 409).await;
    let reason = api.refused("PUT /admin/v2/clusters/other", "{}", 501).await;
    assert!(reason.contains("geo-replication"), "{reason}");
    api.refused("DELETE /admin/v2/clusters/standalone", "", 501).await;
}

#[tokio::test]
async fn settings_are_shown_and_none_is_dynamic() {
    let api = Api::start_with(|config| config.max_message_bytes = 4321).await;
    assert_eq!(api.get("/admin/v2/brokers/configuration").await, json!([]));
    assert_eq!(api.get("/admin/v2/brokers/configuration/values").await, json!({}));
    let runtime = api.get("/admin/v2/brokers/configuration/runtime").await;
    assert_eq!(runtime["max_message_bytes"], "4321");
    let path = "/admin/v2/brokers/configuration/max_message_bytes";
    let reason = api.refused(&format!("POST {path}/5"), "", 412).await;
    assert!(reason.contains("max_message_bytes"), "{reason}");
    api.refused(&format!("DELETE {path}"), "", 412).await;
}

#[tokio::test]
async fn tenants_are_created_listed_and_deleted() {
    let api = Api::start().await;
    assert_eq!(api.get("/admin/v2/tenants").await, json!(["public"]));
    let body = r#"{"adminRoles":[],"allowedClusters":["standalone"]}"#;
    api.done("PUT /admin/v2/tenants/acme", body).await;
    api.done("PUT /admin/v2/tenants/bare", "").await;
    assert_eq!(api.get("/admin/v2/tenants").await, json!(["acme", "bare", "public"]));
    let info = json!({ "adminRoles": [], "allowedClusters": ["standalone"] });
    assert_eq!(api.get("/admin/v2/tenants/acme").await, info);
    api.refused("PUT /admin/v2/tenants/acme", body, 409).await;
    api.done("POST /admin/v2/tenants/acme", body).await;
    api.refused("POST /admin/v2/tenants/nobody", body, 404).await;
    api.refused("GET /admin/v2/tenants/nobody", "", 404).await;
    api.refused("DELETE /admin/v2/tenants/acme?force=true", "", 405).await;
    api.done("DELETE /admin/v2/tenants/acme", "").await;
    api.refused("DELETE /admin/v2/tenants/acme", "", 404).await;
    api.refused("DELETE /admin/v2/tenants/public", "", 409).await;
}

#[tokio::test]
async fn a_tenant_that_asks_for_what_is_not_there_is_refused_and_not_created() {
    let api = Api::start().await;
    for (body, status) in [
        (r#"{"adminRoles":["root"],"allowedClusters":["standalone"]}"#, 501),
        (r#"{"adminRoles":[],"allowedClusters":[]}"#, 412),
        (r#"{"allowedClusters":["standalone","elsewhere"]}"#, 412),
        (r#"{"allowedClusters":["standalone"],"admins":[]}"#, 400),
        (r#"{"allowedClusters":"standalone"}"#, 400),
        ("{", 400),
    ] {
        api.refused("PUT /admin/v2/tenants/acme", body, status).await;
    }
    assert_eq!(api.get("/admin/v2/tenants").await, json!(["public"]));
}

#[tokio::test]
async fn a_lookup_names_both_ports_and_no_port_that_is_not_open() {
    let api = Api::start().await;
    let found = api.get("/lookup/v2/topic/persistent/public/default/t").await;
    let expected =
        json!({ "httpUrl": "http://localhost:8080", "gemingaUrl": "http://localhost:6660" });
    assert_eq!(found, expected);
    api.refused("GET /lookup/v2/topic/persistent/public/nowhere/t", "", 404).await;
    api.refused("GET /lookup/v2/topic/non-persistent/public/default/t", "", 501).await;
}
