//! `/lookup/v2/topic`: which broker serves a topic.
//!
//! Pulsar's answer names a `brokerUrl` for its binary protocol. That port isn't open here, so the
//! field is missing rather than pointing at something that speaks another protocol; `gemingaUrl`
//! is where messages go.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::core::api::Lookup;
use crate::frontend::admin::AdminState;
use crate::frontend::admin::error::ApiError;
use crate::frontend::admin::extract::TopicPath;

/// Looks a topic up.
pub async fn topic(
    State(state): State<AdminState>,
    TopicPath(topic): TopicPath,
) -> Result<Json<Value>, ApiError> {
    let config = state.broker.config();
    let (http, geminga) = match state.broker.lookup(&topic).await? {
        Lookup::Here => (config.admin_url.clone(), config.service_url.clone()),
        Lookup::Elsewhere { admin_url, service_url, .. } => (admin_url, service_url),
    };
    Ok(Json(json!({ "httpUrl": http, "gemingaUrl": geminga })))
}
