//! Tables of what repair does.

use std::io;

use serde_json::{Value, json};

use crate::command::admin::show::{bytes, count, items, text};
use crate::output::{line, pairs, table};

/// How far a bookie is that is to be taken away, or is lost.
pub(super) fn drain(info: &Value) -> io::Result<()> {
    pairs(&[
        ("bookie", text(&info["bookie_id"])),
        ("kind", text(&info["kind"])),
        ("state", text(&info["state"])),
        ("ledgers left", count(&info["ledgers"])),
        ("of them open", count(&info["open_ledgers"])),
        ("bytes left", bytes(&info["bytes"])),
    ])?;
    if items(&info["trouble"]).next().is_none() {
        return Ok(());
    }
    let row = |one: &Value| vec![text(&one["ledger_id"]), text(&one["why"])];
    let rows: Vec<Vec<String>> = items(&info["trouble"]).map(row).collect();
    line("")?;
    table(&["ledger", "what is in the way"], &rows)
}

/// How far a bookie is with verifying what it has.
pub(super) fn scrub(progress: &Value) -> io::Result<()> {
    pairs(&[
        ("state", text(&json!(if progress["running"] == true { "running" } else { "done" }))),
        ("verified", bytes(&progress["done_bytes"])),
        ("of", bytes(&progress["total_bytes"])),
        ("damaged entries", count(&progress["damaged_entries"])),
    ])
}

/// What waits for repair.
pub(super) fn repairs(tasks: &Value) -> io::Result<()> {
    let row = |one: &Value| {
        let reasons: Vec<String> = items(&one["reasons"]).map(text).collect();
        vec![
            text(&one["ledger_id"]),
            reasons.join("; "),
            text(&one["worker"]),
            count(&one["attempts"]),
            text(&one["last_error"]),
        ]
    };
    let rows: Vec<Vec<String>> = items(tasks).map(row).collect();
    table(&["ledger", "why", "worker", "attempts", "last error"], &rows)
}

/// How every copy of a ledger is.
pub(super) fn check(check: &Value) -> io::Result<()> {
    pairs(&[
        ("ledger", text(&check["ledger_id"])),
        ("state", text(&check["state"])),
        ("entries compared", count(&check["entries"])),
        ("without a good copy", count(&check["lost"])),
    ])?;
    let row = |one: &Value| {
        vec![
            text(&one["bookie"]),
            count(&one["good"]),
            count(&one["missing"]),
            count(&one["damaged"]),
            count(&one["differing"]),
            count(&one["unknown"]),
            text(&one["first_bad"]),
        ]
    };
    let rows: Vec<Vec<String>> = items(&check["bookies"]).map(row).collect();
    line("")?;
    let header = ["bookie", "good", "missing", "damaged", "differing", "unknown", "first bad"];
    table(&header, &rows)
}
