//! `/admin/v2/persistent/{tenant}/{namespace}`: topics, and what is known of them.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::frontend::admin::error::ApiError;
use crate::frontend::admin::extract::{NamespacePath, Options, TopicPath, is_unset, json_body};
use crate::frontend::admin::not_built::PARTITIONS;
use crate::frontend::admin::redirect::ServedTopic;
use crate::frontend::admin::{AdminState, message_id, stats};

/// Options of a list.
#[derive(Debug, Deserialize)]
pub struct ListOptions {
    bundle: Option<String>,
}

/// Options of a deletion.
#[derive(Debug, Deserialize)]
pub struct DeleteOptions {
    #[serde(default)]
    force: bool,
}

/// A namespace's topics, by full name.
pub async fn list(
    State(state): State<AdminState>,
    NamespacePath(namespace): NamespacePath,
    Options(options): Options<ListOptions>,
) -> Result<Json<Vec<String>>, ApiError> {
    if options.bundle.is_some() {
        return Err(ApiError::not_built("listing the topics of one bundle"));
    }
    let topics = state.broker.list_topics(&namespace).await?;
    Ok(Json(topics.iter().map(ToString::to_string).collect()))
}

/// A namespace's partitioned topics: there are none.
pub async fn list_partitioned(
    State(state): State<AdminState>,
    NamespacePath(namespace): NamespacePath,
) -> Result<Json<Vec<String>>, ApiError> {
    state.broker.namespace(&namespace).await?;
    Ok(Json(Vec::new()))
}

/// Creates a topic. The body may hold properties, which aren't built.
pub async fn create(
    State(state): State<AdminState>,
    ServedTopic(topic): ServedTopic,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let properties = json_body::<BTreeMap<String, Value>>(&body)?.unwrap_or_default();
    if !properties.values().all(is_unset) {
        return Err(ApiError::not_built("properties of a topic"));
    }
    state.broker.create_topic(&topic).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes a topic.
pub async fn delete(
    State(state): State<AdminState>,
    ServedTopic(topic): ServedTopic,
    Options(options): Options<DeleteOptions>,
) -> Result<StatusCode, ApiError> {
    state.broker.delete_topic(&topic, options.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes a topic out of the memory.
pub async fn unload(
    State(state): State<AdminState>,
    ServedTopic(topic): ServedTopic,
) -> Result<StatusCode, ApiError> {
    state.broker.unload_topic(&topic).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// How many partitions a topic has: 0 says that it isn't partitioned. Clients ask this before
/// they create a topic by using it, so the topic need not exist, but its namespace must.
pub async fn partitions(
    State(state): State<AdminState>,
    TopicPath(topic): TopicPath,
) -> Result<Json<Value>, ApiError> {
    state.broker.namespace(topic.namespace()).await?;
    Ok(Json(json!({ "partitions": 0 })))
}

/// Creates, changes or deletes a partitioned topic.
pub async fn change_partitions(TopicPath(_topic): TopicPath) -> ApiError {
    ApiError::not_built(PARTITIONS)
}

/// Statistics.
pub async fn stats(
    State(state): State<AdminState>,
    ServedTopic(topic): ServedTopic,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(stats::topic(&state.broker.topic_stats(&topic).await?)))
}

/// How a topic is stored.
pub async fn internal_stats(
    State(state): State<AdminState>,
    ServedTopic(topic): ServedTopic,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(stats::internal(&state.broker.topic_internal_stats(&topic).await?)))
}

/// Id of the last message that is stored by a quorum: its entry, without a batch index.
pub async fn last_message_id(
    State(state): State<AdminState>,
    ServedTopic(topic): ServedTopic,
) -> Result<Json<Value>, ApiError> {
    let last = state.broker.topic_internal_stats(&topic).await?.last_confirmed;
    Ok(Json(message_id::write(last, topic.partition())))
}
