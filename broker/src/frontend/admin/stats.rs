//! Statistics in the shape that Pulsar's tools read. Fields of Pulsar's that nothing here
//! measures are left out rather than answered with a made-up value; what only Geminga has is in
//! an object `geminga` of its own, so that it can't collide with a field of Pulsar's.

use serde_json::{Map, Value, json};

use crate::core::api::SubscriptionType;
use crate::core::stats::{
    ConsumerStats, CursorStats, LedgerStats, PublisherStats, SubscriptionStats, TopicInternalStats,
    TopicStats,
};
use crate::frontend::admin::message_id;

/// Pulsar's `TopicStats`.
pub fn topic(stats: &TopicStats) -> Value {
    let subscriptions: Map<String, Value> =
        stats.subscriptions.iter().map(|(name, one)| (name.clone(), subscription(one))).collect();
    json!({
        "msgRateIn": stats.msg_rate_in,
        "msgThroughputIn": stats.msg_throughput_in,
        "msgRateOut": stats.msg_rate_out,
        "msgThroughputOut": stats.msg_throughput_out,
        "bytesInCounter": stats.bytes_in_counter,
        "msgInCounter": stats.msg_in_counter,
        "bytesOutCounter": stats.bytes_out_counter,
        "msgOutCounter": stats.msg_out_counter,
        "averageMsgSize": average(stats.msg_throughput_in, stats.msg_rate_in),
        "storageSize": stats.storage_bytes,
        "backlogSize": stats.backlog_bytes,
        "publishers": stats.publishers.iter().map(publisher).collect::<Vec<_>>(),
        "subscriptions": subscriptions,
        "replication": {},
        "deduplicationStatus": "Disabled",
        "geminga": {
            "pendingBytes": stats.pending_bytes,
            "storageFull": stats.storage_full,
        },
    })
}

fn average(bytes_per_s: f64, messages_per_s: f64) -> f64 {
    if messages_per_s > 0.0 { bytes_per_s / messages_per_s } else { 0.0 }
}

fn publisher(stats: &PublisherStats) -> Value {
    json!({
        "producerId": stats.producer_id.0,
        "producerName": stats.name,
        "accessMode": "Shared",
        "connectedSince": iso_8601(stats.connected_since_ms),
        "metadata": metadata(&stats.properties),
        "geminga": {
            "msgInCounter": stats.msg_in_counter,
            "bytesInCounter": stats.bytes_in_counter,
            "pendingBytes": stats.pending_bytes,
            "creditBytes": stats.credit_bytes,
        },
    })
}

fn subscription(stats: &SubscriptionStats) -> Value {
    json!({
        "bytesOutCounter": stats.bytes_out_counter,
        "msgOutCounter": stats.msg_out_counter,
        "msgBacklog": stats.msg_backlog,
        "backlogSize": stats.backlog_bytes,
        "unackedMessages": stats.unacked_messages,
        "type": subscription_type(stats.subscription_type),
        "activeConsumerName": stats.active_consumer,
        "consumers": stats.consumers.iter().map(consumer).collect::<Vec<_>>(),
        "isDurable": true,
        "isReplicated": false,
        "geminga": {
            "msgRedeliveredCounter": stats.msg_redelivered_counter,
            "markDeletePosition": message_id::text(stats.mark_delete),
            "readPosition": message_id::text(stats.read_position),
            "individuallyAckedMessages": stats.individually_acked_messages,
            "blockedOn": stats.blocked_on,
        },
    })
}

fn subscription_type(kind: Option<SubscriptionType>) -> &'static str {
    match kind {
        None => "None",
        Some(SubscriptionType::Exclusive) => "Exclusive",
        Some(SubscriptionType::Failover) => "Failover",
        Some(SubscriptionType::Shared) => "Shared",
    }
}

fn consumer(stats: &ConsumerStats) -> Value {
    // Pulsar's tools read a 32-bit number and fail on a larger one.
    let permits = stats.available_permits.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
    json!({
        "consumerName": stats.name,
        "availablePermits": permits,
        "unackedMessages": stats.unacked_messages,
        "bytesOutCounter": stats.bytes_out_counter,
        "msgOutCounter": stats.msg_out_counter,
        "connectedSince": iso_8601(stats.connected_since_ms),
        "metadata": metadata(&stats.properties),
        "geminga": {
            "consumerId": stats.consumer_id.0,
            "priority": stats.priority,
            "availableBytes": stats.available_bytes,
        },
    })
}

fn metadata(properties: &[(String, String)]) -> Map<String, Value> {
    properties.iter().map(|(key, value)| (key.clone(), json!(value))).collect()
}

/// Pulsar's `PersistentTopicInternalStats`.
pub fn internal(stats: &TopicInternalStats) -> Value {
    let cursors: Map<String, Value> =
        stats.cursors.iter().map(|(name, one)| (name.clone(), cursor(one))).collect();
    json!({
        "numberOfEntries": stats.entries,
        "totalSize": stats.total_bytes,
        "currentLedgerEntries": stats.current_ledger_entries,
        "currentLedgerSize": stats.current_ledger_bytes,
        "lastConfirmedEntry": message_id::text(stats.last_confirmed),
        "state": state(stats.state),
        "ledgers": stats.ledgers.iter().map(ledger).collect::<Vec<_>>(),
        "cursors": cursors,
        "schemaLedgers": [],
        "geminga": { "nextIndex": stats.next_index.0 },
    })
}

/// Pulsar's names where it has the state.
fn state(name: &'static str) -> &'static str {
    match name {
        "open" => "LedgerOpened",
        "closed" => "ClosedLedger",
        "rolling" => "CreatingLedger",
        "recovering" => "WriteFailed",
        other => other,
    }
}

fn ledger(stats: &LedgerStats) -> Value {
    json!({
        "ledgerId": stats.ledger.0,
        "entries": stats.entries,
        "size": stats.bytes,
        "offloaded": false,
        "geminga": { "closed": stats.closed },
    })
}

fn cursor(stats: &CursorStats) -> Value {
    json!({
        "markDeletePosition": message_id::text(stats.mark_delete),
        "readPosition": message_id::text(stats.read_position),
        "geminga": { "individuallyAckedMessages": stats.individually_acked_messages },
    })
}

/// Milliseconds since 1970 as `2026-11-21T10:59:32.125Z`. The conversion from days is Howard
/// Hinnant's `civil_from_days` ("chrono-Compatible Low-Level Date Algorithms").
fn iso_8601(ms: u64) -> String {
    const MS_PER_DAY: u64 = 86_400_000;
    // The year 9999 is the last one with four digits.
    let ms = ms.min(253_402_300_799_999);
    let (days, in_day) = (ms / MS_PER_DAY, ms % MS_PER_DAY);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (in_day / 3_600_000, in_day / 60_000 % 60);
    let (second, millisecond) = (in_day / 1_000 % 60, in_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millisecond:03}Z")
}

#[cfg(test)]
mod tests;
