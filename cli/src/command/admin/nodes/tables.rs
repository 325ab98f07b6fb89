//! Tables of nodes and bundles, and the cluster's status in lines.

use std::io;

use geminga_proto::env::Env;
use serde_json::Value;

use super::show::{bytes, count, items, text};
use crate::config::units::show_bytes;
use crate::output::{line, pairs, table};

/// The brokers.
pub(super) fn brokers(answer: &Value) -> io::Result<()> {
    let row = |one: &Value| {
        vec![
            text(&one["broker_id"]),
            text(&one["state"]),
            count(&one["bundles"]),
            count(&one["weight"]),
            text(&one["service_url"]),
            text(&one["admin_url"]),
            text(&one["release"]),
        ]
    };
    let rows: Vec<Vec<String>> = items(&answer["brokers"]).map(row).collect();
    table(&["broker", "state", "bundles", "weight", "service url", "admin url", "release"], &rows)
}

/// How far a bookie's log is behind.
fn lag(bookie: &Value) -> String {
    match (bookie["lag_ms"].as_u64(), bookie["lag_bytes"].as_u64()) {
        (Some(oldest_ms), Some(waiting)) => format!("{oldest_ms} ms, {}", show_bytes(waiting)),
        _ if bookie["address"].is_null() => "-".to_owned(),
        _ => "no answer".to_owned(),
    }
}

/// The bookies.
pub(super) fn bookies(answer: &Value) -> io::Result<()> {
    let row = |one: &Value| {
        let state = match one["draining"].as_str() {
            Some("lost") => "lost".to_owned(),
            Some(_) => format!("{}, draining", text(&one["state"])),
            None => text(&one["state"]),
        };
        vec![
            text(&one["bookie_id"]),
            state,
            text(&one["zone"]),
            bytes(&one["free_bytes"]),
            bytes(&one["total_bytes"]),
            lag(one),
            count(&one["ledgers"]),
            count(&one["under_replicated"]),
            count(&one["to_repair"]),
            text(&one["address"]),
        ]
    };
    let rows: Vec<Vec<String>> = items(&answer["bookies"]).map(row).collect();
    let header = [
        "bookie",
        "state",
        "zone",
        "free",
        "of",
        "lag",
        "ledgers",
        "under-replicated",
        "to repair",
        "address",
    ];
    table(&header, &rows)
}

/// The bundles of a namespace.
pub(super) fn bundles(answer: &Value) -> io::Result<()> {
    let row =
        |one: &Value| vec![text(&one["bundle"]), text(&one["owner"]), text(&one["service_url"])];
    let rows: Vec<Vec<String>> = items(&answer["bundles"]).map(row).collect();
    table(&["bundle", "owner", "service url"], &rows)
}

/// How the cluster is.
pub(super) fn cluster(answer: &Value) -> io::Result<()> {
    pairs(&[
        ("cluster", format!("{} ({})", text(&answer["cluster"]), text(&answer["cluster_id"]))),
        ("status", text(&answer["status"])),
        ("asked", text(&answer["asked"])),
        ("brokers", count(&answer["brokers"])),
        ("bookies", count(&answer["bookies"])),
        ("quorum", format!("{}/{}", text(&answer["write_quorum"]), text(&answer["ack_quorum"]))),
    ])?;
    if items(&answer["problems"]).next().is_none() {
        return Ok(());
    }
    let now_ms = Env::system().clock.wall_ms();
    let row = |one: &Value| {
        vec![
            text(&one["what"]),
            text(&one["subject"]),
            since(one["since_ms"].as_u64(), now_ms),
            text(&one["why"]),
        ]
    };
    let rows: Vec<Vec<String>> = items(&answer["problems"]).map(row).collect();
    line("")?;
    table(&["problem", "of", "for", "why"], &rows)
}

/// How long ago a moment was, to the second.
fn since(then_ms: Option<u64>, now_ms: u64) -> String {
    let Some(then_ms) = then_ms else { return "-".to_owned() };
    let seconds = now_ms.saturating_sub(then_ms) / 1_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_something_lasts_is_told_in_one_unit() {
        let ago = |seconds: u64| since(Some(1_000_000_000), 1_000_000_000 + seconds * 1_000);
        assert_eq!((ago(0), ago(119), ago(120)), ("0s".into(), "119s".into(), "2m".into()));
        assert_eq!((ago(7_200), ago(172_800)), ("2h".into(), "2d".into()));
        // Clocks of two machines differ.
        assert_eq!(since(Some(5_000), 1_000), "0s");
        assert_eq!(since(None, 1_000), "-");
    }
}
