//! Tables for people, out of the server's JSON. A field that is missing (an older or newer
//! server) shows as `-`.

use std::io;

use serde_json::Value;

use crate::config::units::{show_bytes, show_count};
use crate::output::{pairs, table};

/// A field as text.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn count(value: &Value) -> String {
    value.as_u64().map_or_else(|| text(value), show_count)
}

pub(super) fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| text(value), show_bytes)
}

/// A number a second.
fn rate(value: &Value) -> String {
    value.as_f64().map_or_else(|| text(value), |rate| format!("{rate:.1}"))
}

fn byte_rate(value: &Value) -> String {
    let whole = |rate: f64| show_bytes(rate.max(0.0) as u64) + "/s";
    value.as_f64().map_or_else(|| text(value), whole)
}

pub(super) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// An array of names.
pub(super) fn names(header: &str, names: &Value) -> io::Result<()> {
    let rows: Vec<Vec<String>> = items(names).map(|name| vec![text(name)]).collect();
    table(&[header], &rows)
}

/// A topic's statistics.
pub(super) fn topic_stats(stats: &Value) -> io::Result<()> {
    pairs(&[
        (
            "messages in",
            format!("{} ({})", count(&stats["msgInCounter"]), bytes(&stats["bytesInCounter"])),
        ),
        (
            "messages out",
            format!("{} ({})", count(&stats["msgOutCounter"]), bytes(&stats["bytesOutCounter"])),
        ),
        (
            "rate in",
            format!("{}/s ({})", rate(&stats["msgRateIn"]), byte_rate(&stats["msgThroughputIn"])),
        ),
        (
            "rate out",
            format!("{}/s ({})", rate(&stats["msgRateOut"]), byte_rate(&stats["msgThroughputOut"])),
        ),
        ("stored", bytes(&stats["storageSize"])),
        ("backlog", bytes(&stats["backlogSize"])),
        ("storage full", text(&stats["geminga"]["storageFull"])),
    ])?;
    if items(&stats["publishers"]).next().is_some() {
        let publisher = |one: &Value| {
            let own = &one["geminga"];
            vec![
                text(&one["producerName"]),
                count(&own["msgInCounter"]),
                bytes(&own["pendingBytes"]),
                text(&one["connectedSince"]),
            ]
        };
        let rows: Vec<Vec<String>> = items(&stats["publishers"]).map(publisher).collect();
        crate::output::line("")?;
        table(&["producer", "messages", "pending", "since"], &rows)?;
    }
    crate::output::line("")?;
    subscriptions(&stats["subscriptions"])
}

/// Subscriptions by name.
pub(super) fn subscriptions(subscriptions: &Value) -> io::Result<()> {
    let rows: Vec<Vec<String>> = subscriptions
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, one)| {
            let consumers = one["consumers"].as_array().map_or(0, Vec::len);
            vec![
                name.clone(),
                text(&one["type"]),
                count(&one["msgBacklog"]),
                count(&one["unackedMessages"]),
                consumers.to_string(),
                text(&one["geminga"]["markDeletePosition"]),
                text(&one["geminga"]["blockedOn"]),
            ]
        })
        .collect();
    let header =
        ["subscription", "type", "backlog", "unacked", "consumers", "acked to", "waits for"];
    table(&header, &rows)
}

/// How a topic is stored.
pub(super) fn internal_stats(stats: &Value) -> io::Result<()> {
    pairs(&[
        ("state", text(&stats["state"])),
        ("entries", count(&stats["numberOfEntries"])),
        ("stored", bytes(&stats["totalSize"])),
        ("last confirmed", text(&stats["lastConfirmedEntry"])),
        ("next index", count(&stats["geminga"]["nextIndex"])),
    ])?;
    let ledger = |one: &Value| {
        let closed = one["geminga"]["closed"].as_bool();
        let state = closed.map_or("-", |closed| if closed { "closed" } else { "open" });
        vec![text(&one["ledgerId"]), state.to_owned(), count(&one["entries"]), bytes(&one["size"])]
    };
    let rows: Vec<Vec<String>> = items(&stats["ledgers"]).map(ledger).collect();
    crate::output::line("")?;
    table(&["ledger", "state", "entries", "size"], &rows)?;
    let cursor = |(name, one): (&String, &Value)| {
        vec![
            name.clone(),
            text(&one["markDeletePosition"]),
            text(&one["readPosition"]),
            count(&one["geminga"]["individuallyAckedMessages"]),
        ]
    };
    let rows: Vec<Vec<String>> =
        stats["cursors"].as_object().into_iter().flatten().map(cursor).collect();
    crate::output::line("")?;
    table(&["cursor", "acked to", "reads at", "acked beyond"], &rows)
}

fn bookies(ledger: &Value) -> String {
    let last = ledger["fragments"].as_array().and_then(|fragments| fragments.last());
    let names = last.map(|fragment| items(&fragment["bookies"]).map(text).collect::<Vec<_>>());
    names.unwrap_or_default().join(", ")
}

fn owner(ledger: &Value) -> &'static str {
    if ledger["state_log"].as_bool() == Some(true) { "state log" } else { "topic" }
}

/// A list of ledgers.
pub(super) fn ledgers(ledgers: &Value) -> io::Result<()> {
    let row = |one: &Value| {
        vec![
            text(&one["ledger_id"]),
            owner(one).to_owned(),
            text(&one["state"]),
            format!("{}/{}", text(&one["write_quorum"]), text(&one["ack_quorum"])),
            text(&one["last_entry"]),
            bytes(&one["bytes"]),
            bookies(one),
        ]
    };
    let rows: Vec<Vec<String>> = items(ledgers).map(row).collect();
    table(&["ledger", "of", "state", "Qw/Qa", "last entry", "size", "bookies"], &rows)
}

/// Why a ledger waits for repair, and what is in the way.
fn to_repair(task: &Value) -> String {
    if task.is_null() {
        return "-".to_owned();
    }
    let reasons: Vec<String> = items(&task["reasons"]).map(text).collect();
    let mut said = reasons.join("; ");
    match (task["worker"].as_str(), task["last_error"].as_str()) {
        (Some(worker), _) => said.push_str(&format!(" ({worker} is at it)")),
        (None, Some(error)) if !error.is_empty() => said.push_str(&format!(" ({error})")),
        (None, _) => {}
    }
    said
}

/// One ledger.
pub(super) fn ledger(one: &Value) -> io::Result<()> {
    pairs(&[
        ("ledger", text(&one["ledger_id"])),
        ("of", owner(one).to_owned()),
        ("state", text(&one["state"])),
        ("write quorum", text(&one["write_quorum"])),
        ("ack quorum", text(&one["ack_quorum"])),
        ("last entry", text(&one["last_entry"])),
        ("size", bytes(&one["bytes"])),
        ("under-replicated", text(&one["under_replicated"])),
        ("to be repaired", to_repair(&one["repair"])),
    ])?;
    let fragment = |fragment: &Value| {
        let names: Vec<String> = items(&fragment["bookies"]).map(text).collect();
        vec![text(&fragment["first_entry"]), names.join(", ")]
    };
    let rows: Vec<Vec<String>> = items(&one["fragments"]).map(fragment).collect();
    crate::output::line("")?;
    table(&["from entry", "bookies"], &rows)
}

/// How durable a receipt is.
pub(super) fn durability(durability: &Value) -> io::Result<()> {
    pairs(&[
        ("write quorum", text(&durability["write_quorum"])),
        ("ack quorum", text(&durability["ack_quorum"])),
        ("sync mode", text(&durability["sync_mode"])),
        ("release", text(&durability["release"])),
        ("cluster", text(&durability["cluster"])),
        ("cluster id", text(&durability["cluster_id"])),
    ])
}

/// The broker's queues.
pub(super) fn queues(queues: &Value) -> io::Result<()> {
    let row = |one: &Value| {
        vec![
            text(&one["name"]),
            bytes(&one["bytes"]),
            bytes(&one["capacity_bytes"]),
            count(&one["waiting"]),
        ]
    };
    let rows: Vec<Vec<String>> = items(queues).map(row).collect();
    table(&["queue", "holds", "may hold", "waiting"], &rows)
}
