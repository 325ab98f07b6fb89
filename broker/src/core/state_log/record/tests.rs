//! The format: round trips, golden bytes, and bytes that are no entry.

use super::*;
use crate::core::ack_set::AckSet;
use proptest::prelude::*;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0_u64..300, 0_u64..=MessageIndex::MAX.0]
}

fn frontier() -> impl Strategy<Value = Frontier> {
    (number(), number(), number()).prop_map(|(index, ledger, entry)| Frontier {
        index: MessageIndex(index),
        position: Position::new(LedgerId(ledger), EntryId(entry)),
    })
}

fn delta() -> impl Strategy<Value = CursorDelta> {
    let range = (0..MessageIndex::MAX.0 >> 1, 1_u64..5000)
        .prop_map(|(start, len)| IndexRange::new(start, start + len));
    let acked = prop::collection::vec(range, 0..20);
    (prop::option::of(frontier()), prop::option::of(number()), acked).prop_map(
        |(frontier, upto, acked)| CursorDelta { frontier, upto: upto.map(MessageIndex), acked },
    )
}

fn piece() -> impl Strategy<Value = AckSetPiece> {
    let ranges = prop::collection::vec((0_u64..4_000_000, 1_u64..3000), 1..20);
    ranges.prop_map(|ranges| {
        let mut set = AckSet::default();
        for (start, len) in ranges {
            set.insert(IndexRange::new(start, start + len));
        }
        let first = set.pieces().next();
        first.expect("it isn't empty")
    })
}

fn record() -> impl Strategy<Value = Record> {
    let id = || number().prop_map(CursorId);
    let topic = || number().prop_map(TopicIncarnation);
    let name = || "[a-zä-ö/]{1,40}".prop_map(Arc::<str>::from);
    prop_oneof![
        (id(), topic(), name(), frontier()).prop_map(|(id, topic, name, at)| Record::Create {
            id,
            topic,
            name,
            at
        }),
        id().prop_map(|id| Record::Delete { id }),
        topic().prop_map(|topic| Record::DeleteTopic { topic }),
        (id(), delta())
            .prop_map(|(id, delta)| Record::Change { id, change: CursorChange::Ack(delta) }),
        (id(), frontier())
            .prop_map(|(id, to)| { Record::Change { id, change: CursorChange::Reset(to) } }),
        (number(), id()).prop_map(|(round, next_id)| Record::SnapshotBegin { round, next_id }),
        (id(), topic(), name(), frontier(), 0_u64..1000).prop_map(
            |(id, topic, name, frontier, ahead)| {
                let next_unacked =
                    MessageIndex((frontier.index.0 + ahead).min(MessageIndex::MAX.0));
                let cursor = SnapshotCursor { id, topic, name, frontier, next_unacked };
                Record::SnapshotCursor(cursor)
            }
        ),
        (id(), piece()).prop_map(|(id, piece)| Record::SnapshotPiece { id, piece }),
        number().prop_map(|round| Record::SnapshotEnd { round }),
    ]
}

fn encode(records: &[Record]) -> Bytes {
    let mut entry = EntryBuilder::new();
    records.iter().for_each(|record| entry.push(record));
    entry.finish()
}

/// An entry with these bytes for records and a checksum that fits.
fn forged(records: &[u8]) -> Vec<u8> {
    let mut entry = b"GSL\x01".to_vec();
    entry.extend_from_slice(&crc32c::crc32c(records).to_le_bytes());
    entry.extend_from_slice(records);
    entry
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(records in prop::collection::vec(record(), 0..12)) {
        prop_assert_eq!(decode_entry(&encode(&records)), Ok(records));
    }

    #[test]
    fn an_entry_with_a_changed_bit_or_a_cut_end_is_refused(
        records in prop::collection::vec(record(), 1..4),
        at in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let entry = encode(&records);
        let mut changed = entry.to_vec();
        let at = at.index(changed.len());
        changed[at] ^= 1 << bit;
        prop_assert!(decode_entry(&changed).is_err());
        prop_assert!(decode_entry(&entry[..at]).is_err());
    }

    #[test]
    fn bytes_behind_a_true_checksum_never_panic(
        noise in prop::collection::vec(any::<u8>(), 0..60),
        records in prop::collection::vec(record(), 0..3),
        at in any::<prop::sample::Index>(),
        change in any::<u8>(),
    ) {
        let _ = decode_entry(&noise);
        let _ = decode_entry(&forged(&noise));
        let entry = encode(&records);
        let mut body = entry[HEADER_BYTES..].to_vec();
        if !body.is_empty() {
            let at = at.index(body.len());
            body[at] = change;
        }
        // What is read has one encoding only: the one it was read from.
        if let Ok(found) = decode_entry(&forged(&body)) {
            let pieces = found.iter().any(|one| matches!(one, Record::SnapshotPiece { .. }));
            prop_assert!(pieces || encode(&found) == forged(&body));
        }
    }
}

#[test]
fn golden_bytes() {
    let at =
        Frontier { index: MessageIndex(300), position: Position::new(LedgerId(7), EntryId(2)) };
    let delta = CursorDelta {
        frontier: Some(at),
        upto: Some(MessageIndex(301)),
        acked: vec![IndexRange::new(310, 312), IndexRange::new(305, 306)],
    };
    let mut set = AckSet::default();
    set.insert(IndexRange::new(5, 9));
    let piece = set.pieces().next().expect("one");
    let records = [
        Record::Create { id: CursorId(1), topic: TopicIncarnation(9), name: "sub".into(), at },
        Record::Change { id: CursorId(1), change: CursorChange::Ack(delta) },
        Record::Change { id: CursorId(1), change: CursorChange::Reset(at) },
        Record::Delete { id: CursorId(1) },
        Record::DeleteTopic { topic: TopicIncarnation(9) },
        Record::SnapshotBegin { round: 1, next_id: CursorId(2) },
        Record::SnapshotCursor(SnapshotCursor {
            id: CursorId(1),
            topic: TopicIncarnation(9),
            name: "sub".into(),
            frontier: at,
            next_unacked: MessageIndex(301),
        }),
        Record::SnapshotPiece { id: CursorId(1), piece },
        Record::SnapshotEnd { round: 1 },
    ];
    let hex: String = encode(&records).iter().map(|byte| format!("{byte:02x}")).collect();
    let golden = concat!(
        "47534c01",
        "5905dc04",
        "0101",
        "09",
        "03737562",
        "ac020702",
        "0401",
        "03",
        "ac020702",
        "ad02",
        "02",
        "ec0402",
        "0d01",
        "0501",
        "ac020702",
        "0201",
        "0309",
        "060102",
        "0701",
        "09",
        "03737562",
        "ac020702",
        "ad02",
        "0801",
        "13000000003b3000000100000300010005000300",
        "0901",
    );
    assert_eq!(hex, golden);
}

#[test]
fn a_newer_version_is_named() {
    let mut entry = encode(&[Record::Delete { id: CursorId(1) }]).to_vec();
    entry[3] = 2;
    assert_eq!(decode_entry(&entry), Err(RecordError::Version(2)));
}
