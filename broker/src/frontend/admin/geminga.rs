//! `/admin/v2/geminga`: what Pulsar's paths have no place for. Fields are snake_case, as in the
//! command line's JSON.

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use geminga_meta::dump;
use geminga_proto::id::LedgerId;
use geminga_proto::storage::SyncMode;
use geminga_proto::topic_name::TopicName;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::core::admin::AdminError;
use crate::core::stats::{LedgerInfo, LedgerStats, QueueStats};
use crate::frontend::admin::AdminState;
use crate::frontend::admin::error::ApiError;
use crate::frontend::admin::extract::{Options, PathParams};
use crate::frontend::admin::{redirect, repair};

const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: usize = 1_000;

/// Options of a list of ledgers.
#[derive(Debug, Deserialize)]
pub struct LedgersOptions {
    topic: Option<String>,
    after: Option<u64>,
    limit: Option<usize>,
}

/// Options of a dump.
#[derive(Debug, Deserialize)]
pub struct DumpOptions {
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    limit: Option<usize>,
}

/// How many things one page has.
pub(super) fn page_size(limit: Option<usize>) -> Result<usize, ApiError> {
    match limit.unwrap_or(DEFAULT_PAGE) {
        0 => Err(ApiError::malformed("limit is at least 1")),
        limit => Ok(limit.min(MAX_PAGE)),
    }
}

/// A page of the ledgers, all or of one topic, in order.
pub async fn ledgers(
    State(state): State<AdminState>,
    Options(options): Options<LedgersOptions>,
    uri: Uri,
) -> Result<Json<Value>, ApiError> {
    let limit = page_size(options.limit)?;
    let after = options.after.map(LedgerId);
    if let Some(topic) = options.topic {
        let topic: TopicName = topic.parse()?;
        redirect::unless_served(&state, &topic, &uri).await?;
        return ledgers_of(&state, &topic, after, limit).await.map(Json);
    }
    let infos = state.broker.list_ledgers(after, limit).await?;
    let next = infos.last().filter(|_| infos.len() >= limit).map(|info| info.ledger.0);
    let ledgers: Vec<Value> = infos.iter().map(ledger_json).collect();
    Ok(Json(json!({ "ledgers": ledgers, "next": next })))
}

/// A page of a topic's ledgers. One that was trimmed since the topic listed it is left out.
async fn ledgers_of(
    state: &AdminState,
    topic: &TopicName,
    after: Option<LedgerId>,
    limit: usize,
) -> Result<Value, ApiError> {
    let stats = state.broker.topic_internal_stats(topic).await?;
    let mut listed = stats.ledgers.iter().filter(|one| after.is_none_or(|at| one.ledger > at));
    let page: Vec<&LedgerStats> = listed.by_ref().take(limit).collect();
    let next = page.last().filter(|_| listed.next().is_some()).map(|one| one.ledger.0);
    let mut ledgers = Vec::with_capacity(page.len());
    for one in page {
        match state.broker.ledger(one.ledger).await {
            Ok(info) => {
                let mut json = ledger_json(&info);
                json["entries"] = json!(one.entries);
                json["bytes"] = json!(one.bytes);
                ledgers.push(json);
            }
            Err(AdminError::LedgerNotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(json!({ "ledgers": ledgers, "next": next }))
}

/// One ledger, with what is to be repaired of it.
pub async fn ledger(
    State(state): State<AdminState>,
    params: PathParams,
) -> Result<Json<Value>, ApiError> {
    let id: LedgerId = params.get("ledger")?.parse()?;
    let mut json = ledger_json(&state.broker.ledger(id).await?);
    json["repair"] = json!(state.broker.repair_of(id).await?.as_ref().map(repair::task_json));
    Ok(Json(json))
}

fn ledger_json(info: &LedgerInfo) -> Value {
    let fragments: Vec<Value> = info
        .fragments
        .iter()
        .map(|(first, bookies)| json!({ "first_entry": first, "bookies": bookies }))
        .collect();
    // The record of a ledger that isn't closed doesn't know its size yet.
    let bytes = (info.state == "closed").then_some(info.bytes);
    json!({
        "ledger_id": info.ledger.0,
        "state": info.state,
        "write_quorum": info.write_quorum,
        "ack_quorum": info.ack_quorum,
        "last_entry": info.last_entry,
        "bytes": bytes,
        "created_ms": info.created_ms,
        "state_log": info.state_log,
        "under_replicated": info.under_replicated,
        "fragments": fragments,
    })
}

/// A page of all metadata records.
pub async fn meta(
    State(state): State<AdminState>,
    Options(options): Options<DumpOptions>,
) -> Result<Json<Value>, ApiError> {
    let limit = page_size(options.limit)?;
    let store = state.broker.metadata().as_ref();
    let page = dump::page(store, &options.prefix, options.after.as_deref(), limit).await?;
    Ok(Json(json!({ "entries": page.entries, "next": page.next })))
}

/// How durable a receipt is, and who says so.
pub async fn durability(State(state): State<AdminState>) -> Json<Value> {
    let durability = state.broker.durability().await;
    let bookies: Vec<Value> = durability
        .bookies
        .iter()
        .map(|(bookie, mode)| json!({ "bookie": bookie, "sync_mode": mode.as_str() }))
        .collect();
    let modes: Vec<SyncMode> = durability.bookies.iter().map(|(_, mode)| *mode).collect();
    let identity = &state.identity;
    Json(json!({
        "write_quorum": durability.write_quorum,
        "ack_quorum": durability.ack_quorum,
        "sync_mode": common_mode(&modes),
        "bookies": bookies,
        "protocol": { "min": identity.protocol.start(), "max": identity.protocol.end() },
        "release": identity.release,
        "cluster": identity.name,
        "cluster_id": identity.id.as_str(),
    }))
}

/// One word for all bookies; none if none was reached.
fn common_mode(modes: &[SyncMode]) -> Option<&'static str> {
    let first = modes.first()?;
    let same = modes.iter().all(|mode| mode == first);
    Some(if same { first.as_str() } else { "mixed" })
}

/// The queues with their bytes and caps.
pub async fn queues(State(state): State<AdminState>) -> Json<Value> {
    let queues = state.other_queues.with_those_of(&state.broker);
    let queues: Vec<Value> = queues.iter().map(queue_json).collect();
    Json(json!({ "queues": queues }))
}

fn queue_json(queue: &QueueStats) -> Value {
    json!({
        "name": queue.name,
        "bytes": queue.bytes,
        "capacity_bytes": queue.capacity_bytes,
        "waiting": queue.waiting,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bookies_that_differ_have_no_common_sync_mode() {
        use SyncMode::{DirectDsync, Fdatasync};
        assert_eq!(common_mode(&[]), None);
        assert_eq!(common_mode(&[DirectDsync, DirectDsync]), Some("direct-dsync"));
        assert_eq!(common_mode(&[DirectDsync, Fdatasync]), Some("mixed"));
    }

    #[test]
    fn a_page_has_a_size_within_limits() {
        assert_eq!(page_size(None), Ok(DEFAULT_PAGE));
        assert_eq!(page_size(Some(usize::MAX)), Ok(MAX_PAGE));
        assert!(page_size(Some(0)).is_err());
    }

    #[test]
    fn a_ledger_is_shown_with_its_fragments() {
        let info = LedgerInfo {
            ledger: LedgerId(7),
            state: "closed",
            write_quorum: 3,
            ack_quorum: 2,
            last_entry: Some(41),
            bytes: 1000,
            created_ms: 5,
            state_log: false,
            under_replicated: true,
            fragments: vec![(0, vec!["a".to_owned(), "b".to_owned()])],
        };
        let expected = json!({
            "ledger_id": 7, "state": "closed", "write_quorum": 3, "ack_quorum": 2,
            "last_entry": 41, "bytes": 1000, "created_ms": 5, "state_log": false,
            "under_replicated": true, "fragments": [{ "first_entry": 0, "bookies": ["a", "b"] }],
        });
        assert_eq!(ledger_json(&info), expected);
    }
}
