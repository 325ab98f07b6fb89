//! Takes a delivered entry apart into messages. Everything is checked before the first message is
//! handed out: an entry is read as a whole or reported as a whole.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use geminga_proto::entry::{decode_entry, split_stored, take_batched_message};
use geminga_proto::id::{EntryId, LedgerId, MessageIndex, Position};
use geminga_proto::pulsar::proto::{KeyValue, MessageMetadata};
use geminga_proto::v1;

use crate::compression::decompress;
use crate::error::DecodeError;
use crate::message::{MessageId, ReceivedMessage};

/// Where the broker put an entry.
pub(crate) fn position_of(entry: &v1::DeliveredEntry) -> Position {
    Position::new(LedgerId(entry.ledger_id), EntryId(entry.entry_id))
}

fn is_acked(acked_indexes: &[u8], index: u32) -> bool {
    acked_indexes.get(index as usize / 8).is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

fn pairs(properties: Vec<KeyValue>) -> Vec<(String, String)> {
    properties.into_iter().map(|pair| (pair.key, pair.value)).collect()
}

/// What the messages of an entry have in common.
struct Common {
    position: Position,
    batch_size: u32,
    publish_time_ms: u64,
    broker_time_ms: u64,
    first_index: u64,
    producer_name: Arc<str>,
    first_sequence: u64,
    redelivery_count: u32,
}

/// The messages of an entry that are not acknowledged.
pub(crate) fn open_entry(
    delivered: &v1::DeliveredEntry,
    limit: u64,
) -> Result<VecDeque<ReceivedMessage>, DecodeError> {
    let position = position_of(delivered);
    let (header, _) = split_stored(&delivered.broker_header)?;
    let entry = decode_entry(&delivered.entry)?;
    let mut metadata = entry.metadata;
    if !metadata.encryption_keys.is_empty() || metadata.encryption_algo.is_some() {
        return Err(DecodeError::Unsupported("end-to-end encryption"));
    }
    if metadata.num_chunks_from_msg() > 1 {
        return Err(DecodeError::Unsupported("chunked messages"));
    }
    let payload = decompress(&metadata, entry.payload, limit)?;
    let stated = i64::from(metadata.num_messages_in_batch());
    let batch_size = match u32::try_from(stated) {
        Ok(size) if size >= 1 => size,
        _ => return Err(DecodeError::Count { stated, found: 0 }),
    };
    let common = Common {
        position,
        batch_size,
        publish_time_ms: metadata.publish_time,
        broker_time_ms: header.timestamp_ms,
        first_index: header.last_index.saturating_sub(u64::from(batch_size) - 1),
        producer_name: std::mem::take(&mut metadata.producer_name).into(),
        first_sequence: metadata.sequence_id,
        redelivery_count: delivered.redelivery_count,
    };
    if metadata.num_messages_in_batch.is_none() {
        return Ok(VecDeque::from([single(&common, metadata, payload)]));
    }
    batch(&common, payload, &delivered.acked_indexes)
}

fn single(common: &Common, metadata: MessageMetadata, payload: Bytes) -> ReceivedMessage {
    ReceivedMessage {
        id: MessageId::entry(common.position),
        payload,
        key: metadata.partition_key,
        ordering_key: metadata.ordering_key,
        properties: pairs(metadata.properties),
        event_time_ms: metadata.event_time.filter(|time| *time > 0),
        publish_time_ms: common.publish_time_ms,
        broker_time_ms: common.broker_time_ms,
        index: MessageIndex(common.first_index),
        producer_name: Arc::clone(&common.producer_name),
        sequence_id: common.first_sequence,
        redelivery_count: common.redelivery_count,
    }
}

fn batch(
    common: &Common,
    mut payload: Bytes,
    acked_indexes: &[u8],
) -> Result<VecDeque<ReceivedMessage>, DecodeError> {
    // The count is the producer's word; what really comes decides how much is allocated.
    let mut messages = VecDeque::with_capacity((common.batch_size as usize).min(payload.len() / 4));
    for index in 0..common.batch_size {
        if payload.is_empty() {
            let stated = i64::from(common.batch_size);
            return Err(DecodeError::Count { stated, found: u64::from(index) });
        }
        let (metadata, bytes) = take_batched_message(&mut payload)?;
        if is_acked(acked_indexes, index) || metadata.compacted_out() {
            continue;
        }
        let batch_index = Some(index);
        let id =
            MessageId { position: common.position, batch_index, batch_size: common.batch_size };
        let implied = common.first_sequence.saturating_add(u64::from(index));
        messages.push_back(ReceivedMessage {
            id,
            payload: bytes,
            key: metadata.partition_key,
            ordering_key: metadata.ordering_key,
            properties: pairs(metadata.properties),
            event_time_ms: metadata.event_time.filter(|time| *time > 0),
            publish_time_ms: common.publish_time_ms,
            broker_time_ms: common.broker_time_ms,
            index: MessageIndex(common.first_index.saturating_add(u64::from(index))),
            producer_name: Arc::clone(&common.producer_name),
            sequence_id: metadata.sequence_id.unwrap_or(implied),
            redelivery_count: common.redelivery_count,
        });
    }
    if !payload.is_empty() {
        return Err(DecodeError::TrailingBytes(payload.len()));
    }
    Ok(messages)
}

#[cfg(test)]
mod tests;
