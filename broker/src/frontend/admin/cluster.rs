//! `/admin/v2/geminga/{brokers,bookies,cluster}` and `/admin/v2/bookies`: what the cluster is made
//! of, and what is degraded.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::core::cluster_info::{BookieNow, BrokerInfo, Problem};
use crate::core::repair_info::OnBookie;
use crate::frontend::admin::AdminState;
use crate::frontend::admin::error::ApiError;

/// The brokers that are up.
pub async fn brokers(State(state): State<AdminState>) -> Json<Value> {
    let brokers: Vec<Value> = state.broker.brokers().iter().map(broker_json).collect();
    Json(json!({ "brokers": brokers }))
}

fn broker_json(broker: &BrokerInfo) -> Value {
    json!({
        "broker_id": broker.broker_id,
        "service_url": broker.service_url,
        "admin_url": broker.admin_url,
        "release": broker.release,
        "started_ms": broker.started_ms,
        "session": broker.session,
        "state": if broker.draining { "draining" } else { "serving" },
        "weight": broker.weight,
        "bundles": broker.bundles,
    })
}

/// The bookies that are up, and those that are missing, with what is on them.
pub async fn bookies(State(state): State<AdminState>) -> Result<Json<Value>, ApiError> {
    let bookies = state.broker.bookies_now().await?;
    let on = state.broker.on_bookies().await?;
    let row = |bookie: &BookieNow| {
        bookie_json(bookie, on.get(&bookie.info.bookie_id).copied().unwrap_or_default())
    };
    let bookies: Vec<Value> = bookies.iter().map(row).collect();
    Ok(Json(json!({ "bookies": bookies })))
}

fn bookie_json(BookieNow { info: bookie, lag }: &BookieNow, on: OnBookie) -> Value {
    let up = bookie.up.as_ref();
    json!({
        "bookie_id": bookie.bookie_id,
        "address": up.map(|up| &up.address),
        "zone": up.map(|up| &up.zone),
        "state": bookie.state(),
        "total_bytes": up.map(|up| up.total_bytes),
        "free_bytes": up.map(|up| up.free_bytes),
        "lag_ms": lag.map(|lag| lag.oldest_ms),
        "lag_bytes": lag.map(|lag| lag.bytes),
        "draining": bookie.draining,
        "ledgers": on.ledgers,
        "under_replicated": on.under_replicated,
        "to_repair": on.to_repair,
    })
}

/// The bookies that are up, as Pulsar lists them.
pub async fn bookies_as_pulsar(State(state): State<AdminState>) -> Result<Json<Value>, ApiError> {
    let bookies = state.broker.bookies().await?;
    let up = bookies.iter().filter(|bookie| bookie.up.is_some());
    let up: Vec<Value> = up.map(|bookie| json!({ "bookieId": bookie.bookie_id })).collect();
    Ok(Json(json!({ "bookies": up })))
}

/// How the cluster does, as this broker sees it.
pub async fn status(State(state): State<AdminState>) -> Json<Value> {
    let status = state.broker.cluster_status().await;
    let problems: Vec<Value> = status.problems.iter().map(problem_json).collect();
    Json(json!({
        "cluster": state.identity.name,
        "cluster_id": state.identity.id.as_str(),
        "asked": state.broker.config().broker_id.as_str(),
        "status": if problems.is_empty() { "healthy" } else { "degraded" },
        "problems": problems,
        "brokers": status.brokers,
        "bookies": status.bookies,
        "write_quorum": status.write_quorum,
        "ack_quorum": status.ack_quorum,
    }))
}

fn problem_json(problem: &Problem) -> Value {
    json!({
        "what": problem.concern.as_str(),
        "subject": problem.subject,
        "why": problem.why,
        "since_ms": problem.since_ms,
    })
}
