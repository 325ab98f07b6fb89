//! `…/{topic}/subscriptions` and `…/{topic}/subscription/{subscription}`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::core::admin::ResetTo;
use crate::frontend::admin::error::ApiError;
use crate::frontend::admin::extract::{Options, json_body};
use crate::frontend::admin::redirect::{ServedSubscription, ServedTopic};
use crate::frontend::admin::{AdminState, message_id};

/// Options of a creation.
#[derive(Debug, Deserialize)]
pub struct CreateOptions {
    #[serde(default)]
    replicated: bool,
}

/// Options of a deletion.
#[derive(Debug, Deserialize)]
pub struct DeleteOptions {
    #[serde(default)]
    force: bool,
}

/// Names of a topic's subscriptions, sorted.
pub async fn list(
    State(state): State<AdminState>,
    ServedTopic(topic): ServedTopic,
) -> Result<Json<Vec<String>>, ApiError> {
    let subscriptions = state.broker.list_subscriptions(&topic).await?;
    Ok(Json(subscriptions.into_iter().map(|(name, _)| name).collect()))
}

/// Creates a subscription at a message id; without a body, after the last message.
pub async fn create(
    State(state): State<AdminState>,
    path: ServedSubscription,
    Options(options): Options<CreateOptions>,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    if options.replicated {
        return Err(ApiError::not_built("replicated subscriptions"));
    }
    let from = json_body::<Value>(&body)?.map(message_id::read).transpose()?;
    let from = from.unwrap_or(ResetTo::Latest);
    state.broker.create_subscription(&path.topic, &path.subscription, from).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes a subscription.
pub async fn delete(
    State(state): State<AdminState>,
    path: ServedSubscription,
    Options(options): Options<DeleteOptions>,
) -> Result<StatusCode, ApiError> {
    state.broker.delete_subscription(&path.topic, &path.subscription, options.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Moves a subscription to a message id.
pub async fn reset(
    State(state): State<AdminState>,
    path: ServedSubscription,
    body: Bytes,
) -> Result<StatusCode, ApiError> {
    let missing = || ApiError::malformed("body: the message id is missing");
    let to = message_id::read(json_body::<Value>(&body)?.ok_or_else(missing)?)?;
    state.broker.reset_subscription(&path.topic, &path.subscription, to).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Moves a subscription after the last message.
pub async fn skip_all(
    State(state): State<AdminState>,
    path: ServedSubscription,
) -> Result<StatusCode, ApiError> {
    state.broker.reset_subscription(&path.topic, &path.subscription, ResetTo::Latest).await?;
    Ok(StatusCode::NO_CONTENT)
}
