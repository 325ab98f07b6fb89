//! `/admin/v2/brokers` and `/admin/v2/clusters`: who serves, and with which settings.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use geminga_meta::keys;
use serde_json::{Value, json};

use crate::frontend::admin::AdminState;
use crate::frontend::admin::error::ApiError;
use crate::frontend::admin::extract::PathParams;

/// How long the metadata may take to answer a health check.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// `host:port` of each broker's admin port, as this one sees them.
pub async fn list(State(state): State<AdminState>) -> Json<Vec<String>> {
    let address = |url: &str| {
        let after = url.split_once("://").map_or(url, |(_, rest)| rest);
        after.trim_end_matches('/').to_owned()
    };
    Json(state.broker.brokers().iter().map(|broker| address(&broker.admin_url)).collect())
}

/// The same for one cluster: there is only this one.
pub async fn list_of_cluster(
    state: State<AdminState>,
    params: PathParams,
) -> Result<Json<Vec<String>>, ApiError> {
    check_cluster(&state, params.get("cluster")?)?;
    Ok(list(state).await)
}

/// `ok` if this broker serves and its metadata answers.
pub async fn health(State(state): State<AdminState>) -> Result<&'static str, ApiError> {
    let sick = |reason: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, reason);
    if !state.readiness.get() {
        return Err(sick("the broker is not ready".to_owned()));
    }
    let probe = state.broker.metadata().get(keys::CLUSTER);
    match tokio::time::timeout(HEALTH_TIMEOUT, probe).await {
        Ok(Ok(_)) => Ok("ok"),
        Ok(Err(error)) => Err(sick(error.to_string())),
        Err(_elapsed) => Err(sick("the metadata store does not answer".to_owned())),
    }
}

/// A broker that is alone leads. Several have no leader: each decides from what all see.
pub async fn leader(State(state): State<AdminState>) -> Result<Json<Value>, ApiError> {
    match state.broker.brokers().as_slice() {
        [only] => Ok(Json(json!({ "brokerId": only.broker_id, "serviceUrl": only.admin_url }))),
        brokers => {
            let count = brokers.len();
            let reason = format!("none of the {count} brokers is a leader: Geminga has none");
            Err(ApiError::not_found(reason))
        }
    }
}

/// Names of the settings that can be changed while the broker runs.
pub async fn dynamic_names() -> Json<Vec<String>> {
    Json(Vec::new())
}

/// Their values.
pub async fn dynamic_values() -> Json<BTreeMap<String, String>> {
    Json(BTreeMap::new())
}

/// Changes one of them: none can be.
pub async fn change_dynamic(params: PathParams) -> Result<(), ApiError> {
    let name: String = params.get("name")?.chars().take(80).collect();
    let reason = format!("{name:?} is not a dynamic setting: settings change with a restart");
    Err(ApiError::refused(reason))
}

/// The settings in force, as texts.
pub async fn runtime(State(state): State<AdminState>) -> Json<BTreeMap<&'static str, String>> {
    let config = state.broker.config();
    let ms = |time: Duration| time.as_millis().to_string();
    Json(BTreeMap::from([
        ("admin_url", config.admin_url.clone()),
        ("auto_topic_creation", config.auto_topic_creation.to_string()),
        ("broker_id", config.broker_id.to_string()),
        ("bundles_per_namespace", config.bundles_per_namespace.to_string()),
        ("housekeeping_interval_ms", ms(config.housekeeping_interval)),
        ("lease_ttl_ms", ms(config.lease_ttl)),
        ("ledger_idle_close_ms", ms(config.ledger_idle_close)),
        ("ledger_max_age_ms", ms(config.ledger_max_age)),
        ("ledger_max_bytes", config.ledger_max_bytes.to_string()),
        ("max_consumers_per_subscription", config.max_consumers_per_subscription.to_string()),
        ("max_message_bytes", config.max_message_bytes.to_string()),
        ("max_messages_per_batch", config.max_messages_per_batch.to_string()),
        ("max_producers_per_topic", config.max_producers_per_topic.to_string()),
        ("max_subscriptions_per_topic", config.max_subscriptions_per_topic.to_string()),
        ("memory_budget_bytes", config.memory_budget_bytes.to_string()),
        ("producer_credit_bytes", config.producer_credit_bytes.to_string()),
        ("retention_bytes", config.retention_bytes.to_string()),
        ("retention_ms", ms(config.retention)),
        ("service_url", config.service_url.clone()),
        ("tail_cache_bytes", config.tail_cache_bytes.to_string()),
        ("topic_idle_unload_ms", ms(config.topic_idle_unload)),
        ("weight", config.weight.to_string()),
        ("unsubscribed_retention_bytes", config.unsubscribed_retention_bytes.to_string()),
        ("unsubscribed_retention_ms", ms(config.unsubscribed_retention)),
    ]))
}

/// The clusters: this one.
pub async fn clusters(State(state): State<AdminState>) -> Json<Vec<String>> {
    Json(vec![state.identity.name.clone()])
}

/// How a cluster is reached. There is no `brokerServiceUrl`, since Pulsar's port isn't open.
pub async fn cluster(
    State(state): State<AdminState>,
    params: PathParams,
) -> Result<Json<Value>, ApiError> {
    check_cluster(&state, params.get("cluster")?)?;
    let config = state.broker.config();
    Ok(Json(json!({ "serviceUrl": config.admin_url, "gemingaUrl": config.service_url })))
}

/// Creates, changes or deletes a cluster's record: that would be another cluster, or this one.
pub async fn change_cluster(
    State(state): State<AdminState>,
    method: Method,
    params: PathParams,
) -> Result<(), ApiError> {
    if method == Method::PUT && params.get("cluster")? == state.identity.name {
        return Err(ApiError::new(StatusCode::CONFLICT, "Cluster already exists"));
    }
    Err(ApiError::not_built("registering other clusters (geo-replication)"))
}

/// Refuses the names of other clusters.
///
/// # Errors
/// 404.
pub fn check_cluster(state: &AdminState, cluster: &str) -> Result<(), ApiError> {
    if cluster == state.identity.name {
        return Ok(());
    }
    let name: String = cluster.chars().take(80).collect();
    Err(ApiError::not_found(format!("Cluster {name:?} does not exist")))
}

/// Refuses lists of clusters other than this one.
///
/// # Errors
/// 412, as Pulsar does.
pub fn check_clusters(state: &AdminState, clusters: &[String]) -> Result<(), ApiError> {
    match clusters.iter().find(|cluster| **cluster != state.identity.name) {
        None => Ok(()),
        Some(other) => {
            let other: String = other.chars().take(80).collect();
            let own = &state.identity.name;
            let reason = format!("Clusters do not exist: {other:?}; this is {own:?}");
            Err(ApiError::refused(reason))
        }
    }
}
