//! What nobody should send.

use super::*;

#[tokio::test]
async fn malformed_and_hostile_names_are_refused_and_create_nothing() {
    let api = Api::start().await;
    let long = "x".repeat(600);
    for (name, status) in [
        ("..", 412),
        ("%2e%2e", 412),
        ("%2E%2e%2F%2e%2e", 412),
        ("a%2Fb", 412),
        ("a%5Cb", 412),
        ("a%00b", 412),
        ("a%0Ab", 412),
        ("a%20b", 412),
        ("a%3Fb", 412),
        ("a%23b", 412),
        ("%EF%BB%BFt", 412),
        ("t-partition-007", 412),
        (long.as_str(), 412),
        ("%ff%fe", 400),
        ("a%zzb", 400),
        ("a%2", 400),
    ] {
        api.refused(&format!("PUT {TOPICS}/{name}"), "", status).await;
        let subscription = format!("PUT {TOPICS}/t/subscription/{name}");
        if name != "t-partition-007" {
            api.refused(&subscription, "", status).await;
        }
    }
    for (tenant, status) in
        [("a%2Fb", 412), ("..", 412), ("t%C3%A4", 412), ("%", 400), ("a%00", 412), ("a%25", 412)]
    {
        api.refused(&format!("PUT /admin/v2/tenants/{tenant}"), "", status).await;
        api.refused(&format!("PUT /admin/v2/namespaces/{tenant}/n"), "", status).await;
        api.refused(&format!("PUT /admin/v2/namespaces/public/{tenant}"), "", status).await;
        let topic = format!("PUT /admin/v2/persistent/public/{tenant}/t");
        api.refused(&topic, "", status).await;
    }
    assert_eq!(api.get(TOPICS).await, serde_json::json!([]));
    assert_eq!(api.get("/admin/v2/tenants").await, serde_json::json!(["public"]));
}

#[tokio::test]
async fn a_path_that_nobody_knows_is_404_and_says_so_in_json() {
    let api = Api::start().await;
    for path in ["/admin/v2", "/admin/v2/nothing", "/admin/v2/persistent/a", "/admin/", "/admin"] {
        api.refused(&format!("GET {path}"), "", 404).await;
    }
    let reason = api.refused("POST /admin/v2/persistent/a/b/c/d/e/f/g", "", 404).await;
    assert!(reason.contains("not built"), "{reason}");
    let reason = api.refused("GET /", "", 404).await;
    assert!(reason.contains("/admin/v2"), "{reason}");
    api.refused("GET //admin/v2/tenants", "", 404).await;
    api.refused("GET /admin/v2/../v2/tenants", "", 404).await;
}

#[tokio::test]
async fn a_wrong_method_is_405_in_json_with_the_methods_that_there_are() {
    let api = Api::start().await;
    for (line, allowed) in [
        ("PATCH /admin/v2/tenants", "GET,HEAD"),
        ("POST /admin/v2/persistent/public/default/t", "PUT,DELETE"),
        ("GET /admin/v2/persistent/public/default/t", "PUT,DELETE"),
        ("DELETE /metrics", "GET,HEAD"),
        ("OPTIONS /admin/v2/geminga/queues", "GET,HEAD"),
    ] {
        let answer = api.ask(line, "").await;
        assert_eq!(answer.refusal(), 405, "{line}");
        assert_eq!(answer.headers["allow"], allowed, "{line}");
    }
    let head = api.ask("HEAD /admin/v2/tenants", "").await;
    assert_eq!((head.status, head.text.as_str()), (StatusCode::OK, ""));
}

#[tokio::test]
async fn what_pulsar_has_and_geminga_has_not_is_501_and_named() {
    let api = Api::start().await;
    for (line, named) in [
        ("POST /admin/v2/namespaces/public/default/messageTTL", "message expiry"),
        ("GET /admin/v2/namespaces/public/default/permissions/me", "permissions"),
        ("POST /admin/v2/namespaces/public/default/backlogQuota", "backlog quotas"),
        ("POST /admin/v2/persistent/public/default/t/terminate", "termination"),
        ("GET /admin/v2/persistent/public/default/t/retention", "policies of one topic"),
        ("PUT /admin/v2/persistent/public/default/t/compaction", "compaction"),
        ("POST /admin/v2/persistent/public/default/t/subscription/s/skip/5", "skipping"),
        ("GET /admin/v2/persistent/public/default/t/subscription/s/position/1", "REST"),
        ("GET /admin/v2/schemas/public/default/t/schema", "schemas"),
        ("PUT /admin/v2/non-persistent/public/default/t", "non-persistent"),
        ("GET /admin/v3/transactions/coordinatorStats", "transactions"),
    ] {
        let reason = api.refused(line, "", 501).await;
        assert!(reason.contains(named), "{line}: {reason}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_413_before_anything_is_done() {
    let api = Api::start().await;
    let body = format!("{{\"a\":\"{}\"}}", "x".repeat(AdminConfig::default().max_body_bytes));
    api.refused(&format!("PUT {TOPICS}/t"), &body, 413).await;
    assert_eq!(api.get(TOPICS).await, serde_json::json!([]));
}

#[tokio::test]
async fn a_broker_that_shuts_down_says_so() {
    let api = Api::start().await;
    api.done(&format!("PUT {TOPICS}/t"), "").await;
    api.broker.shutdown().await;
    let reason = api.refused(&format!("GET {TOPICS}/t/stats"), "", 503).await;
    assert!(reason.contains("serves nothing any more"), "{reason}");
}
