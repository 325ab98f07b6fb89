//! Every message comes out of the batches once, in order, within the limits.

use super::*;
use geminga_proto::entry::{decode_entry, inspect_entry, take_batched_message};
use proptest::prelude::*;

const LIMITS: BatchLimits = BatchLimits { max_messages: 8, max_bytes: 600 };

fn head(compression: Compression) -> EntryHead<'static> {
    EntryHead { producer_name: "p", first_sequence: 100, publish_time_ms: 7, compression }
}

fn message() -> impl Strategy<Value = Message> {
    let key = proptest::option::of("[a-z]{0,6}");
    let properties = proptest::collection::vec(("[a-z]{1,4}", "[a-z]{0,4}"), 0..3);
    let ordering = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..6));
    let payload = proptest::collection::vec(any::<u8>(), 0..300);
    let event_time_ms = proptest::option::of(1..u64::MAX / 2);
    (payload, key, ordering, properties, event_time_ms).prop_map(
        |(payload, key, ordering, properties, event_time_ms)| Message {
            payload: payload.into(),
            key,
            ordering_key: ordering.map(Bytes::from),
            properties,
            event_time_ms,
        },
    )
}

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![Just(Compression::None), Just(Compression::Lz4), Just(Compression::Zstd)]
}

fn pairs(properties: Vec<KeyValue>) -> Vec<(String, String)> {
    properties.into_iter().map(|pair| (pair.key, pair.value)).collect()
}

/// Reads an entry back by the format's own rules.
fn read(entry: &Bytes) -> Vec<Message> {
    let decoded = decode_entry(entry).expect("an entry");
    let metadata = decoded.metadata;
    let mut payload =
        crate::compression::decompress(&metadata, decoded.payload, 1 << 20).expect("decompresses");
    if metadata.num_messages_in_batch.is_none() {
        return vec![Message {
            payload,
            key: metadata.partition_key,
            ordering_key: metadata.ordering_key,
            properties: pairs(metadata.properties),
            event_time_ms: metadata.event_time,
        }];
    }
    let mut messages = Vec::new();
    while !payload.is_empty() {
        let (single, bytes) = take_batched_message(&mut payload).expect("a message");
        messages.push(Message {
            payload: bytes,
            key: single.partition_key,
            ordering_key: single.ordering_key,
            properties: pairs(single.properties),
            event_time_ms: single.event_time,
        });
    }
    messages
}

proptest! {
    #[test]
    fn every_message_comes_out_once_in_order_and_within_the_limits(
        messages in proptest::collection::vec(message(), 1..40),
        compression in compression(),
    ) {
        let mut builder = BatchBuilder::new(LIMITS);
        let mut sealed = Vec::new();
        for message in &messages {
            let cost = message.cost_bytes();
            if !builder.fits(cost) {
                sealed.extend(builder.seal());
            }
            let at = builder.push(message.clone(), cost);
            prop_assert_eq!(at + 1, builder.messages());
            if builder.is_full() {
                sealed.extend(builder.seal());
            }
        }
        sealed.extend(builder.seal());
        prop_assert!(builder.is_empty());
        let mut read_back = Vec::new();
        for batch in sealed {
            let count = batch.messages();
            let entry = batch.encode(&head(compression)).expect("encodes");
            let plain: usize = read(&entry).iter().map(|message| message.payload.len()).sum();
            prop_assert!(count == 1 || plain <= LIMITS.max_bytes);
            prop_assert!(count <= LIMITS.max_messages);
            let summary = inspect_entry(&entry, LIMITS.max_messages).expect("the broker takes it");
            prop_assert_eq!(summary.messages, count);
            prop_assert_eq!(summary.highest_sequence_id, 100 + u64::from(count) - 1);
            read_back.extend(read(&entry));
        }
        prop_assert_eq!(read_back, messages);
    }

    #[test]
    fn a_message_never_takes_more_than_its_cost(message in message()) {
        let cost = message.cost_bytes();
        let mut payload = BytesMut::new();
        put(&mut payload, message);
        prop_assert!(payload.len() <= cost, "{} > {cost}", payload.len());
    }
}

#[test]
fn a_lone_message_is_not_a_batch() {
    let mut builder = BatchBuilder::new(LIMITS);
    builder.push(Message::new("hi").key("k"), 50);
    let entry = builder.seal().expect("one").encode(&head(Compression::None)).expect("encodes");
    let metadata = decode_entry(&entry).expect("an entry").metadata;
    assert_eq!(metadata.num_messages_in_batch, None);
    assert_eq!(metadata.partition_key.as_deref(), Some("k"));
    assert_eq!((metadata.sequence_id, metadata.publish_time), (100, 7));
}

#[test]
fn a_message_above_the_limit_goes_alone() {
    let mut builder = BatchBuilder::new(LIMITS);
    let large = Message::new(vec![1; 10_000]);
    assert!(builder.fits(large.cost_bytes()));
    let cost = large.cost_bytes();
    builder.push(large, cost);
    assert!(builder.is_full());
    assert!(!builder.fits(1));
}
