//! The entry layout against hostile bytes, and its golden form.

use super::*;
use proptest::prelude::*;

fn metadata(messages: Option<i32>) -> MessageMetadata {
    MessageMetadata {
        producer_name: "p".to_owned(),
        sequence_id: 7,
        publish_time: 1_700_000_000_000,
        num_messages_in_batch: messages,
        ..MessageMetadata::default()
    }
}

#[test]
fn the_layout_is_pulsars_byte_for_byte() {
    let entry = encode_entry(&metadata(None), b"hi");
    let hex: String = entry.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, GOLDEN_ENTRY);
    let header = encode_broker_header(BrokerHeader { timestamp_ms: 1, last_index: 2 });
    assert_eq!(&header[..], [0x0e, 0x02, 0, 0, 0, 4, 8, 1, 16, 2]);
}

const GOLDEN_ENTRY: &str = "0e012037e6350000000c0a017010071880d095ffbc316869";

#[test]
fn the_checksum_survives_the_brokers_header() {
    let entry = encode_entry(&metadata(None), b"payload");
    let header = BrokerHeader { timestamp_ms: 5, last_index: 9 };
    let stored = stored_entry(header, entry.clone()).into_bytes();
    assert_eq!(split_stored(&stored), Ok((header, entry.clone())));
    assert_eq!(decode_entry(&entry).map(|entry| entry.payload), Ok(Bytes::from_static(b"payload")));
}

#[test]
fn every_flipped_bit_is_an_error() {
    let entry = encode_entry(&metadata(Some(1)), b"payload");
    for bit in 0..entry.len() * 8 {
        let mut damaged = entry.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(inspect_entry(&damaged, 100).is_err(), "bit {bit}");
    }
}

#[test]
fn a_message_count_that_cannot_be_true_is_refused() {
    let count = |messages, payload: &[u8]| {
        inspect_entry(&encode_entry(&metadata(messages), payload), 100).map(|it| it.messages)
    };
    assert_eq!(count(None, b""), Ok(1));
    assert_eq!(count(Some(1), b""), Ok(1));
    assert_eq!(count(Some(3), b"abc"), Ok(3));
    for (messages, payload) in [(0, &b"abc"[..]), (-1, b"abc"), (4, b"abc"), (101, &[0; 200])] {
        let refused = count(Some(messages), payload);
        assert!(matches!(refused, Err(EntryError::MessageCount { .. })), "{messages}: {refused:?}");
    }
}

#[test]
fn a_compressed_batch_is_judged_by_its_uncompressed_size() {
    let mut metadata = metadata(Some(50));
    metadata.set_compression(CompressionType::Lz4);
    metadata.uncompressed_size = Some(50);
    assert!(inspect_entry(&encode_entry(&metadata, b"x"), 100).is_ok());
    metadata.uncompressed_size = Some(49);
    assert!(inspect_entry(&encode_entry(&metadata, b"x"), 100).is_err());
}

#[test]
fn messages_come_out_of_a_batch_as_they_went_in() {
    let mut payload = BytesMut::new();
    for message in [&b"one"[..], b"", b"three"] {
        put_batched_message(&mut payload, &mut SingleMessageMetadata::default(), message);
    }
    let mut payload = payload.freeze();
    let mut taken = Vec::new();
    while !payload.is_empty() {
        taken.push(take_batched_message(&mut payload).expect("a message").1);
    }
    assert_eq!(taken, [&b"one"[..], b"", b"three"]);
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let bytes = Bytes::from(bytes);
        let _ = inspect_entry(&bytes, 10);
        let _ = decode_entry(&bytes);
        let _ = split_stored(&bytes);
        let mut batch = bytes.clone();
        while take_batched_message(&mut batch).is_ok() {}
        prop_assert!(batch.len() <= bytes.len());
    }

    #[test]
    fn a_truncated_entry_is_an_error(cut in 0_usize..100) {
        let entry = encode_entry(&metadata(Some(1)), &[b'x'; 60]);
        let cut = cut.min(entry.len() - 1);
        prop_assert!(inspect_entry(&entry[..cut], 10).is_err());
    }
}

#[test]
fn an_entry_encoded_in_place_is_the_same_entry() {
    for name_bytes in [1, ENTRY_HEADROOM_BYTES - 40, ENTRY_HEADROOM_BYTES * 3] {
        for payload in [&b""[..], b"payload"] {
            let metadata =
                MessageMetadata { producer_name: "p".repeat(name_bytes), ..metadata(None) };
            let mut buffer = BytesMut::zeroed(ENTRY_HEADROOM_BYTES);
            buffer.extend_from_slice(payload);
            let entry = encode_entry_in_place(&metadata, buffer);
            assert_eq!(entry, encode_entry(&metadata, payload), "{name_bytes}");
        }
    }
    let empty = encode_entry_in_place(&metadata(None), BytesMut::new());
    assert_eq!(empty, encode_entry(&metadata(None), b""), "a buffer without its room");
}
