//! Golden shapes: what Pulsar's tools find in an answer, field by field.

use super::*;
use geminga_proto::id::{ConsumerId, EntryId, LedgerId, MessageIndex, Position, ProducerId};

fn at(ledger: u64, entry: u64) -> Option<Position> {
    Some(Position::new(LedgerId(ledger), EntryId(entry)))
}

fn properties() -> Vec<(String, String)> {
    vec![("host".to_owned(), "a".to_owned())]
}

fn one_subscription() -> SubscriptionStats {
    SubscriptionStats {
        subscription_type: Some(SubscriptionType::Failover),
        msg_backlog: 5,
        backlog_bytes: 500,
        unacked_messages: 2,
        msg_out_counter: 7,
        bytes_out_counter: 700,
        msg_redelivered_counter: 1,
        mark_delete: at(3, 4),
        read_position: at(3, 6),
        individually_acked_messages: 1,
        active_consumer: Some("c".to_owned()),
        blocked_on: "no credit".to_owned(),
        consumers: vec![ConsumerStats {
            consumer_id: ConsumerId(2),
            name: "c".to_owned(),
            priority: -1,
            available_permits: i64::from(i32::MAX) + 5,
            available_bytes: -10,
            unacked_messages: 2,
            msg_out_counter: 7,
            bytes_out_counter: 700,
            connected_since_ms: 951_782_400_001,
            properties: properties(),
        }],
    }
}

#[test]
fn a_topics_statistics_have_pulsars_shape() {
    let stats = TopicStats {
        msg_in_counter: 10,
        bytes_in_counter: 1000,
        msg_rate_in: 2.0,
        msg_throughput_in: 200.0,
        storage_bytes: 1234,
        backlog_bytes: 500,
        pending_bytes: 9,
        publishers: vec![PublisherStats {
            producer_id: ProducerId(1),
            name: "p".to_owned(),
            msg_in_counter: 10,
            bytes_in_counter: 1000,
            pending_bytes: 9,
            credit_bytes: 99,
            connected_since_ms: 0,
            properties: properties(),
        }],
        subscriptions: vec![("sub".to_owned(), one_subscription())],
        ..TopicStats::default()
    };
    let expected = json!({
        "msgRateIn": 2.0, "msgThroughputIn": 200.0, "msgRateOut": 0.0, "msgThroughputOut": 0.0,
        "bytesInCounter": 1000, "msgInCounter": 10, "bytesOutCounter": 0, "msgOutCounter": 0,
        "averageMsgSize": 100.0, "storageSize": 1234, "backlogSize": 500,
        "publishers": [{
            "producerId": 1, "producerName": "p", "accessMode": "Shared",
            "connectedSince": "1970-01-01T00:00:00.000Z", "metadata": { "host": "a" },
            "geminga": {
                "msgInCounter": 10, "bytesInCounter": 1000, "pendingBytes": 9, "creditBytes": 99,
            },
        }],
        "subscriptions": { "sub": {
            "bytesOutCounter": 700, "msgOutCounter": 7, "msgBacklog": 5, "backlogSize": 500,
            "unackedMessages": 2, "type": "Failover", "activeConsumerName": "c",
            "consumers": [{
                "consumerName": "c", "availablePermits": i32::MAX, "unackedMessages": 2,
                "bytesOutCounter": 700, "msgOutCounter": 7,
                "connectedSince": "2000-02-29T00:00:00.001Z", "metadata": { "host": "a" },
                "geminga": { "consumerId": 2, "priority": -1, "availableBytes": -10 },
            }],
            "isDurable": true, "isReplicated": false,
            "geminga": {
                "msgRedeliveredCounter": 1, "markDeletePosition": "3:4", "readPosition": "3:6",
                "individuallyAckedMessages": 1, "blockedOn": "no credit",
            },
        }},
        "replication": {}, "deduplicationStatus": "Disabled",
        "geminga": { "pendingBytes": 9, "storageFull": false },
    });
    assert_eq!(topic(&stats), expected);
}

#[test]
fn a_topics_internal_statistics_have_pulsars_shape() {
    let stats = TopicInternalStats {
        entries: 12,
        total_bytes: 1200,
        current_ledger_entries: 2,
        current_ledger_bytes: 200,
        last_confirmed: at(4, 1),
        next_index: MessageIndex(40),
        state: "open",
        ledgers: vec![LedgerStats { ledger: LedgerId(3), entries: 10, bytes: 1000, closed: true }],
        cursors: vec![("sub".to_owned(), CursorStats::default())],
    };
    let expected = json!({
        "numberOfEntries": 12, "totalSize": 1200, "currentLedgerEntries": 2,
        "currentLedgerSize": 200, "lastConfirmedEntry": "4:1", "state": "LedgerOpened",
        "ledgers": [{
            "ledgerId": 3, "entries": 10, "size": 1000, "offloaded": false,
            "geminga": { "closed": true },
        }],
        "cursors": { "sub": {
            "markDeletePosition": "-1:-1", "readPosition": "-1:-1",
            "geminga": { "individuallyAckedMessages": 0 },
        }},
        "schemaLedgers": [],
        "geminga": { "nextIndex": 40 },
    });
    assert_eq!(internal(&stats), expected);
}

#[test]
fn a_topic_that_nobody_publishes_to_has_no_average_size() {
    assert_eq!(topic(&TopicStats::default())["averageMsgSize"], json!(0.0));
}

#[test]
fn every_type_of_subscription_has_pulsars_name() {
    let name = |kind| subscription_type(kind);
    assert_eq!(name(None), "None");
    assert_eq!(name(Some(SubscriptionType::Exclusive)), "Exclusive");
    assert_eq!(name(Some(SubscriptionType::Shared)), "Shared");
}

#[test]
fn times_are_written_as_iso_8601() {
    for (ms, text) in [
        (0, "1970-01-01T00:00:00.000Z"),
        (68_169_600_000, "1972-02-29T00:00:00.000Z"),
        (951_868_799_999, "2000-02-29T23:59:59.999Z"),
        (951_868_800_000, "2000-03-01T00:00:00.000Z"),
        (1_795_258_772_125, "2026-11-21T10:59:32.125Z"),
        (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        (u64::MAX, "9999-12-31T23:59:59.999Z"),
    ] {
        assert_eq!(iso_8601(ms), text, "{ms}");
    }
}
