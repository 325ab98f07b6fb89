//! Entries are taken apart to the messages that the producer put in, or reported.

use super::*;
use crate::batch::{BatchBuilder, BatchLimits, EntryHead};
use crate::compression::Compression;
use crate::message::Message;
use geminga_proto::entry::{BrokerHeader, EntryError, encode_broker_header, encode_entry};
use proptest::prelude::*;

const LIMIT: u64 = 1 << 20;

fn delivered(entry: Bytes, messages: u32, acked_indexes: &[u8]) -> v1::DeliveredEntry {
    let header = BrokerHeader { timestamp_ms: 9, last_index: 99 + u64::from(messages) };
    v1::DeliveredEntry {
        ledger_id: 3,
        entry_id: 4,
        redelivery_count: 1,
        acked_indexes: Bytes::copy_from_slice(acked_indexes),
        broker_header: encode_broker_header(header),
        entry,
        credit_messages: messages,
    }
}

fn batch_of(texts: &[&'static str], compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new(BatchLimits { max_messages: 100, max_bytes: 1 << 20 });
    for text in texts {
        builder.push(Message::new(*text), 10);
    }
    let head =
        EntryHead { producer_name: "p", first_sequence: 10, publish_time_ms: 1, compression };
    builder.seal().expect("messages").encode(&head).expect("encodes")
}

fn metadata(messages: Option<i32>) -> MessageMetadata {
    MessageMetadata {
        producer_name: "p".to_owned(),
        num_messages_in_batch: messages,
        ..MessageMetadata::default()
    }
}

#[test]
fn acknowledged_messages_of_a_batch_are_skipped_and_the_others_keep_their_numbers() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let entry = batch_of(&["a", "b", "c"], compression);
        let messages = open_entry(&delivered(entry, 3, &[0b010]), LIMIT).expect("opens");
        let seen: Vec<_> = messages
            .iter()
            .map(|it| (&it.payload[..], it.id.batch_index, it.index.0, it.sequence_id))
            .collect();
        assert_eq!(seen, [(&b"a"[..], Some(0), 100, 10), (&b"c"[..], Some(2), 102, 12)]);
        assert_eq!((messages[0].broker_time_ms, messages[0].redelivery_count), (9, 1));
    }
}

#[test]
fn a_single_message_has_no_place_in_a_batch() {
    let entry = encode_entry(&metadata(None), b"hi");
    let messages = open_entry(&delivered(entry, 1, &[]), LIMIT).expect("opens");
    assert_eq!((messages.len(), messages[0].id.batch_index), (1, None));
    assert_eq!((&messages[0].payload[..], messages[0].index.0), (&b"hi"[..], 100));
}

#[test]
fn a_batch_of_one_is_still_a_batch() {
    let batch = Bytes::from_static(&[0, 0, 0, 2, 0x18, 1, b'x']);
    let entry = encode_entry(&metadata(Some(1)), &batch);
    let messages = open_entry(&delivered(entry, 1, &[]), LIMIT).expect("opens");
    assert_eq!((messages[0].id.batch_index, &messages[0].payload[..]), (Some(0), &b"x"[..]));
}

#[test]
fn a_batch_with_fewer_or_more_messages_than_stated_is_reported() {
    let batch = [0, 0, 0, 2, 0x18, 1, b'x', 0, 0, 0, 2, 0x18, 1, b'y'];
    let fewer = encode_entry(&metadata(Some(3)), &batch);
    let error = open_entry(&delivered(fewer, 3, &[]), LIMIT);
    assert_eq!(error, Err(DecodeError::Count { stated: 3, found: 2 }));
    let more = encode_entry(&metadata(Some(1)), &batch);
    let error = open_entry(&delivered(more, 1, &[]), LIMIT);
    assert_eq!(error, Err(DecodeError::TrailingBytes(7)));
    for count in [0, -1] {
        let error =
            open_entry(&delivered(encode_entry(&metadata(Some(count)), &batch), 1, &[]), LIMIT);
        assert_eq!(error, Err(DecodeError::Count { stated: count.into(), found: 0 }));
    }
}

#[test]
fn a_flipped_bit_is_reported() {
    let entry = batch_of(&["a", "b"], Compression::None);
    for bit in 0..entry.len() * 8 {
        let mut damaged = entry.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let result = open_entry(&delivered(damaged.into(), 2, &[]), LIMIT);
        assert!(matches!(result, Err(DecodeError::Entry(_))), "bit {bit}: {result:?}");
    }
}

#[test]
fn a_stated_size_is_checked_before_and_after_decompression() {
    let payload = zstd::bulk::compress(&[7; 1000], 3).expect("compresses");
    let with_size = |size| {
        let mut metadata = metadata(None);
        metadata.compression = Some(2 + 1);
        metadata.uncompressed_size = Some(size);
        open_entry(&delivered(encode_entry(&metadata, &payload), 1, &[]), LIMIT)
    };
    assert_eq!(with_size(1000).expect("opens")[0].payload.len(), 1000);
    let huge = with_size(u32::MAX);
    assert_eq!(huge, Err(DecodeError::TooLarge { bytes: u64::from(u32::MAX), limit: LIMIT }));
    for size in [0, 999, 1001] {
        let result = with_size(size);
        assert!(matches!(result, Err(DecodeError::Decompress { codec: "zstd", .. })), "{size}");
    }
}

#[test]
fn what_is_not_supported_is_named() {
    for (compression, name) in [(2, "zlib"), (4, "snappy"), (77, "unknown")] {
        let mut metadata = metadata(None);
        metadata.compression = Some(compression);
        let result = open_entry(&delivered(encode_entry(&metadata, b"x"), 1, &[]), LIMIT);
        let Err(DecodeError::Unsupported(what)) = result else { panic!("{result:?}") };
        assert!(what.contains(name), "{what}");
    }
}

#[test]
fn a_missing_broker_header_is_reported() {
    let mut entry = delivered(encode_entry(&metadata(None), b"x"), 1, &[]);
    entry.broker_header = Bytes::new();
    let result = open_entry(&entry, LIMIT);
    assert!(matches!(result, Err(DecodeError::Entry(EntryError::Truncated(_)))), "{result:?}");
}

proptest! {
    #[test]
    fn bytes_from_the_network_never_panic(
        payload in proptest::collection::vec(any::<u8>(), 0..200),
        count in proptest::option::of(-2..300_i32),
        compression in proptest::option::of(0..6_i32),
        size in proptest::option::of(0..400_u32),
        acked in proptest::collection::vec(any::<u8>(), 0..8),
    ) {
        let mut metadata = metadata(count);
        metadata.compression = compression;
        metadata.uncompressed_size = size;
        let entry = encode_entry(&metadata, &payload);
        if let Ok(messages) = open_entry(&delivered(entry, 1, &acked), LIMIT) {
            prop_assert!(messages.len() as i64 <= i64::from(count.unwrap_or(1)));
        }
        // The same bytes as if they were the whole entry, checksum and all.
        prop_assert!(open_entry(&delivered(payload.into(), 1, &acked), LIMIT).is_err());
    }
}
