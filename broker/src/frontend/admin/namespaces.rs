//! `/admin/v2/namespaces`: namespaces, their bundles, and the policies that exist.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use geminga_proto::topic_name::NamespaceName;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::core::admin::{NamespaceInfo, NamespacePolicies};
use crate::frontend::admin::AdminState;
use crate::frontend::admin::brokers::check_clusters;
use crate::frontend::admin::error::ApiError;
use crate::frontend::admin::extract::{NamespacePath, Options, TenantPath, is_unset, json_body};
use crate::frontend::admin::not_built::PARTITIONS;

const MS_PER_MINUTE: u64 = 60_000;
const BYTES_PER_MB: u64 = 1 << 20;

/// Values with which Pulsar's libraries write out policies that nobody has set.
const DEFAULTS: &[(&str, &str)] = &[
    ("schema_auto_update_compatibility_strategy", "Full"),
    ("schema_compatibility_strategy", "UNDEFINED"),
    ("subscription_auth_mode", "None"),
];

/// Options of a deletion.
#[derive(Debug, Deserialize)]
pub struct DeleteOptions {
    #[serde(default)]
    force: bool,
}

/// Options of a list of topics.
#[derive(Debug, Deserialize)]
pub struct TopicsOptions {
    mode: Option<String>,
}

/// Pulsar's retention policy. Minus one: without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Retention {
    retention_time_in_minutes: i64,
    #[serde(rename = "retentionSizeInMB")]
    retention_size_in_mb: i64,
}

impl Retention {
    /// Its limits in milliseconds and bytes, if Pulsar takes them.
    fn limits(self) -> Result<(u64, u64), ApiError> {
        let (time, size) = (self.retention_time_in_minutes, self.retention_size_in_mb);
        if time < -1 || size < -1 {
            let reason = "Invalid retention policy: limits are at least -1 (without limit)";
            return Err(ApiError::refused(reason));
        }
        if (time == 0) != (size == 0) {
            let reason = "Invalid retention policy: 0 for one limit only; use -1 for a limit \
                          that shall not count, and 0 for both to keep nothing";
            return Err(ApiError::refused(reason));
        }
        Ok((scaled(time, MS_PER_MINUTE), scaled(size, BYTES_PER_MB)))
    }

    /// Reads it from a namespace's policies.
    fn of(policies: &NamespacePolicies) -> Option<Value> {
        if policies.retention_ms.is_none() && policies.retention_bytes.is_none() {
            return None;
        }
        Some(json!({
            "retentionTimeInMinutes": unscaled(policies.retention_ms, MS_PER_MINUTE),
            "retentionSizeInMB": unscaled(policies.retention_bytes, BYTES_PER_MB),
        }))
    }
}

/// Negative: without limit.
fn scaled(value: i64, unit: u64) -> u64 {
    u64::try_from(value).map_or(u64::MAX, |value| value.saturating_mul(unit))
}

/// A limit that isn't set doesn't count, like one without limit.
fn unscaled(value: Option<u64>, unit: u64) -> i64 {
    match value {
        None | Some(u64::MAX) => -1,
        Some(value) => i64::try_from(value / unit).unwrap_or(i64::MAX),
    }
}

/// Pulsar's policy for automatic creation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AutoTopicCreation {
    allow_auto_topic_creation: bool,
    topic_type: Option<String>,
    default_num_partitions: Option<i64>,
}

impl AutoTopicCreation {
    /// Whether topics are created, if the rest of it is built.
    fn allowed(&self) -> Result<bool, ApiError> {
        match self.topic_type.as_deref() {
            None | Some("non-partitioned") => {}
            Some("partitioned") => return Err(ApiError::not_built(PARTITIONS)),
            Some(_) => {
                let reason = "Invalid configuration for autoTopicCreationOverride: the topicType \
                              is non-partitioned";
                return Err(ApiError::refused(reason));
            }
        }
        if self.default_num_partitions.is_some_and(|partitions| partitions > 0) {
            return Err(ApiError::not_built(PARTITIONS));
        }
        Ok(self.allow_auto_topic_creation)
    }

    fn of(policies: &NamespacePolicies) -> Option<Value> {
        policies
            .auto_topic_creation
            .map(|allow| json!({ "allowAutoTopicCreation": allow, "topicType": "non-partitioned" }))
    }
}

/// A tenant's namespaces, sorted.
pub async fn list(
    State(state): State<AdminState>,
    TenantPath(tenant): TenantPath,
) -> Result<Json<Vec<String>>, ApiError> {
    let namespaces = state.broker.list_namespaces(tenant.as_str()).await?;
    Ok(Json(namespaces.iter().map(ToString::to_string).collect()))
}

/// A namespace's policies.
pub async fn get(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
) -> Result<Json<Value>, ApiError> {
    let info = state.broker.namespace(&name).await?;
    Ok(Json(policies_json(&info, &state.identity.name)))
}

fn policies_json(info: &NamespaceInfo, cluster: &str) -> Value {
    let mut policies = Map::new();
    policies.insert("bundles".to_owned(), bundles_json(&info.bundle_bounds));
    policies.insert("replication_clusters".to_owned(), json!([cluster]));
    policies.insert("deleted".to_owned(), json!(false));
    if let Some(retention) = Retention::of(&info.policies) {
        policies.insert("retention_policies".to_owned(), retention);
    }
    if let Some(creation) = AutoTopicCreation::of(&info.policies) {
        policies.insert("autoTopicCreationOverride".to_owned(), creation);
    }
    policies.insert("geminga".to_owned(), json!({ "createdMs": info.created_ms }));
    Value::Object(policies)
}

/// The bounds of all bundles: one more than there are bundles.
fn bundles_json(lower_bounds: &[u32]) -> Value {
    let hex = |bound: &u32| format!("0x{bound:08x}");
    let boundaries: Vec<String> = lower_bounds.iter().chain([&u32::MAX]).map(hex).collect();
    json!({ "boundaries": boundaries, "numBundles": lower_bounds.len() })
}

/// Creates a namespace.
pub async fn create(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let fields = json_body::<Map<String, Value>>(&body)?.unwrap_or_default();
    let (policies, bundles) = new_namespace(&state, fields)?;
    state.broker.create_namespace(&name, policies, bundles).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a creation's body asks for. Tools write out all policies they know, so what isn't built
/// is refused only if it asks for something.
fn new_namespace(
    state: &AdminState,
    fields: Map<String, Value>,
) -> Result<(NamespacePolicies, Option<u32>), ApiError> {
    fn read<T: serde::de::DeserializeOwned>(name: &str, value: Value) -> Result<T, ApiError> {
        serde_json::from_value(value)
            .map_err(|error| ApiError::malformed(format!("body: {name}: {error}")))
    }
    let (mut policies, mut bundles) = (NamespacePolicies::default(), None);
    for (name, value) in fields {
        match name.as_str() {
            _ if value.is_null() => {}
            "replication_clusters" => {
                check_clusters(state, &read::<Vec<String>>(&name, value)?)?;
            }
            "bundles" => bundles = read_bundles(read(&name, value)?)?,
            "retention_policies" => {
                let (ms, bytes) = read::<Retention>(&name, value)?.limits()?;
                (policies.retention_ms, policies.retention_bytes) = (Some(ms), Some(bytes));
            }
            "autoTopicCreationOverride" => {
                let allowed = read::<AutoTopicCreation>(&name, value)?.allowed()?;
                policies.auto_topic_creation = Some(allowed);
            }
            _ if is_unset(&value) => {}
            _ if DEFAULTS.contains(&(&name, value.as_str().unwrap_or_default())) => {}
            _ => {
                let name: String = name.chars().take(80).collect();
                return Err(ApiError::not_built(&format!("the policy {name:?}")));
            }
        }
    }
    Ok((policies, bundles))
}

/// Pulsar's bodies give a number of bundles, bounds, or both.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bundles {
    #[serde(default)]
    boundaries: Option<Vec<String>>,
    #[serde(default)]
    num_bundles: Option<u32>,
}

fn read_bundles(bundles: Bundles) -> Result<Option<u32>, ApiError> {
    if bundles.boundaries.is_some_and(|boundaries| !boundaries.is_empty()) {
        return Err(ApiError::not_built("a namespace with given bundle boundaries"));
    }
    Ok(bundles.num_bundles.filter(|number| *number > 0))
}

/// Deletes a namespace without topics.
pub async fn delete(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
    Options(options): Options<DeleteOptions>,
) -> Result<StatusCode, ApiError> {
    if options.force {
        let reason = "Broker doesn't allow forced deletion of namespaces; delete its topics first";
        return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, reason));
    }
    state.broker.delete_namespace(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A namespace's topics, by full name.
pub async fn topics(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
    Options(options): Options<TopicsOptions>,
) -> Result<Json<Vec<String>>, ApiError> {
    let topics = state.broker.list_topics(&name).await?;
    match options.mode.as_deref() {
        None | Some("PERSISTENT" | "ALL") => {
            Ok(Json(topics.iter().map(ToString::to_string).collect()))
        }
        Some("NON_PERSISTENT") => Ok(Json(Vec::new())),
        Some(_) => {
            let reason = "mode is one of PERSISTENT, NON_PERSISTENT and ALL";
            Err(ApiError::malformed(reason))
        }
    }
}

/// A namespace's bundles.
pub async fn bundles(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
) -> Result<Json<Value>, ApiError> {
    let info = state.broker.namespace(&name).await?;
    Ok(Json(bundles_json(&info.bundle_bounds)))
}

/// 204 if the policy isn't set, as Pulsar does.
fn policy(value: Option<Value>) -> Response {
    value
        .map_or_else(|| StatusCode::NO_CONTENT.into_response(), |value| Json(value).into_response())
}

/// How long consumed data is kept.
pub async fn get_retention(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
) -> Result<Response, ApiError> {
    Ok(policy(Retention::of(&state.broker.namespace(&name).await?.policies)))
}

/// Sets how long consumed data is kept.
pub async fn set_retention(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let (ms, bytes) = required::<Retention>(&body)?.limits()?;
    change(&state, &name, |policies| {
        (policies.retention_ms, policies.retention_bytes) = (Some(ms), Some(bytes));
    })
    .await
}

/// Goes back to the broker's default.
pub async fn delete_retention(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
) -> Result<StatusCode, ApiError> {
    change(&state, &name, |policies| {
        (policies.retention_ms, policies.retention_bytes) = (None, None);
    })
    .await
}

/// Whether topics are created by their first use.
pub async fn get_auto_topic_creation(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
) -> Result<Response, ApiError> {
    Ok(policy(AutoTopicCreation::of(&state.broker.namespace(&name).await?.policies)))
}

/// Sets whether topics are created by their first use.
pub async fn set_auto_topic_creation(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let allowed = required::<AutoTopicCreation>(&body)?.allowed()?;
    change(&state, &name, |policies| policies.auto_topic_creation = Some(allowed)).await
}

/// Goes back to the broker's default.
pub async fn delete_auto_topic_creation(
    State(state): State<AdminState>,
    NamespacePath(name): NamespacePath,
) -> Result<StatusCode, ApiError> {
    change(&state, &name, |policies| policies.auto_topic_creation = None).await
}

fn required<T: serde::de::DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    json_body(body)?.ok_or_else(|| ApiError::malformed("body: the policy is missing"))
}

async fn change(
    state: &AdminState,
    name: &NamespaceName,
    change: impl FnMut(&mut NamespacePolicies) + Send,
) -> Result<StatusCode, ApiError> {
    state.broker.update_namespace_policies(name, change).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests;
