//! `/admin/v2/geminga/bookies/{bookie}/…`, `/repairs` and `/ledgers/{ledger}/check`: taking bookies
//! away, and what repair does.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use geminga_ledger::check::{CopiesAt, LedgerCheck};
use geminga_ledger::metadata::LedgerState;
use geminga_proto::id::{BookieId, EntryId, LedgerId};
use geminga_proto::storage::ScrubProgress;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::core::repair_info::{DrainInfo, RepairTask};
use crate::frontend::admin::AdminState;
use crate::frontend::admin::error::ApiError;
use crate::frontend::admin::extract::{Options, PathParams};
use crate::frontend::admin::geminga::page_size;

/// Entries that one request compares, unless it asks for fewer.
const CHECKED_ENTRIES: u64 = 2_000;

/// Options of a list of tasks.
#[derive(Debug, Deserialize)]
pub struct RepairsOptions {
    after: Option<u64>,
    limit: Option<usize>,
}

/// Options of a check.
#[derive(Debug, Deserialize)]
pub struct CheckOptions {
    from: Option<u64>,
    limit: Option<u64>,
}

fn bookie(params: &PathParams) -> Result<BookieId, ApiError> {
    Ok(params.get("bookie")?.parse()?)
}

/// Has a bookie's copies moved, so that it can be taken away.
pub async fn decommission(
    State(state): State<AdminState>,
    params: PathParams,
) -> Result<StatusCode, ApiError> {
    state.broker.decommission(&bookie(&params)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has a lost bookie's copies made anew.
pub async fn recover(
    State(state): State<AdminState>,
    params: PathParams,
) -> Result<StatusCode, ApiError> {
    state.broker.recover_bookie(&bookie(&params)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has a bookie verify all that it has.
pub async fn start_scrub(
    State(state): State<AdminState>,
    params: PathParams,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(scrub_json(state.broker.scrub_bookie(&bookie(&params)?, true).await?)))
}

/// How far it is with that.
pub async fn scrub(
    State(state): State<AdminState>,
    params: PathParams,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(scrub_json(state.broker.scrub_bookie(&bookie(&params)?, false).await?)))
}

fn scrub_json(progress: ScrubProgress) -> Value {
    json!({
        "running": progress.running,
        "total_bytes": progress.total_bytes,
        "done_bytes": progress.done_bytes,
        "damaged_entries": progress.damaged_entries,
    })
}

/// How far that is.
pub async fn drain(
    State(state): State<AdminState>,
    params: PathParams,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(drain_json(&state.broker.drain_info(&bookie(&params)?).await?)))
}

/// Calls it off.
pub async fn cancel(
    State(state): State<AdminState>,
    params: PathParams,
) -> Result<StatusCode, ApiError> {
    state.broker.cancel_drain(&bookie(&params)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn drain_json(info: &DrainInfo) -> Value {
    let trouble: Vec<Value> = info
        .trouble
        .iter()
        .map(|(ledger, why)| json!({ "ledger_id": ledger.0, "why": why }))
        .collect();
    json!({
        "bookie_id": info.bookie_id,
        "kind": info.kind,
        "state": if info.ledgers == 0 { "drained" } else { "draining" },
        "started_ms": info.started_ms,
        "up": info.up,
        "ledgers": info.ledgers,
        "open_ledgers": info.open_ledgers,
        "bytes": info.bytes,
        "trouble": trouble,
    })
}

/// A page of what waits for repair.
pub async fn repairs(
    State(state): State<AdminState>,
    Options(options): Options<RepairsOptions>,
) -> Result<Json<Value>, ApiError> {
    let limit = page_size(options.limit)?;
    let tasks = state.broker.repairs(options.after.map(LedgerId), limit).await?;
    let next = tasks.last().filter(|_| tasks.len() >= limit).map(|task| task.ledger.0);
    let tasks: Vec<Value> = tasks.iter().map(task_json).collect();
    Ok(Json(json!({ "repairs": tasks, "next": next })))
}

/// A ledger's task.
pub(super) fn task_json(task: &RepairTask) -> Value {
    json!({
        "ledger_id": task.ledger.0,
        "reasons": task.reasons,
        "queued_ms": task.queued_ms,
        "attempts": task.attempts,
        "last_error": task.last_error,
        "worker": task.worker,
        "targets": task.targets,
    })
}

/// Reads and compares every copy of some of a ledger's entries.
pub async fn check(
    State(state): State<AdminState>,
    params: PathParams,
    Options(options): Options<CheckOptions>,
) -> Result<Json<Value>, ApiError> {
    let ledger: LedgerId = params.get("ledger")?.parse()?;
    let most = match options.limit.unwrap_or(CHECKED_ENTRIES) {
        0 => return Err(ApiError::malformed("limit is at least 1")),
        limit => limit.min(CHECKED_ENTRIES),
    };
    let from = EntryId(options.from.unwrap_or(0));
    if from > EntryId::MAX {
        return Err(ApiError::malformed("from is beyond 2^63-1"));
    }
    Ok(Json(check_json(&state.broker.check_ledger(ledger, from, most).await?)))
}

fn check_json(check: &LedgerCheck) -> Value {
    let copies = |at: &CopiesAt| {
        json!({
            "bookie": at.bookie.as_str(),
            "good": at.good,
            "missing": at.missing,
            "damaged": at.damaged,
            "differing": at.differing,
            "unknown": at.unknown,
            "first_bad": at.first_bad.map(|entry| entry.0),
        })
    };
    json!({
        "ledger_id": check.ledger.0,
        "state": match check.state {
            LedgerState::Open => "open",
            LedgerState::InRecovery => "in-recovery",
            LedgerState::Closed => "closed",
        },
        "last_entry": check.last_entry.0.map(|entry| entry.0),
        "entries": check.entries,
        "lost": check.lost,
        "bookies": check.bookies.iter().map(copies).collect::<Vec<_>>(),
        "next": check.next.map(|entry| entry.0),
    })
}
