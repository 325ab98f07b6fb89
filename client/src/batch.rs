//! [`BatchBuilder`]: gathers messages until the producer seals them, and turns what is sealed
//! into an entry. No I/O, no clock.
//!
//! Invariants: messages keep their order; a sealed batch of one message becomes a single-message
//! entry, whose payload is copied once, into the entry; nothing sealed is larger than
//! `max_bytes` unless it is one message.

use bytes::{BufMut, Bytes, BytesMut};
use geminga_proto::entry::{
    ENTRY_HEADROOM_BYTES, encode_entry, encode_entry_in_place, put_batched_message,
};
use geminga_proto::pulsar::proto::{KeyValue, MessageMetadata, SingleMessageMetadata};

use crate::compression::Compression;
use crate::error::SendError;
use crate::message::Message;

/// Limits of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchLimits {
    pub max_messages: u32,
    pub max_bytes: usize,
}

/// What the first message lends to the whole batch.
#[derive(Debug, Clone, Default, PartialEq)]
struct Keys {
    key: Option<String>,
    ordering_key: Option<Bytes>,
    event_time_ms: Option<u64>,
}

#[derive(Debug)]
enum Gathered {
    Nothing,
    /// Not encoded yet: it may stay alone.
    One(Message),
    Many {
        payload: BytesMut,
        keys: Keys,
        messages: u32,
    },
}

/// Messages that will be one entry.
#[derive(Debug)]
pub(crate) struct BatchBuilder {
    limits: BatchLimits,
    gathered: Gathered,
    /// Upper bound of the payload's size.
    bytes: usize,
}

/// Messages that are one entry, not encoded yet.
#[derive(Debug)]
pub(crate) struct SealedBatch {
    content: Content,
}

#[derive(Debug)]
enum Content {
    One(Message),
    Many { payload: BytesMut, keys: Keys, messages: u32 },
}

/// What an entry's metadata needs besides the messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EntryHead<'a> {
    pub producer_name: &'a str,
    pub first_sequence: u64,
    pub publish_time_ms: u64,
    pub compression: Compression,
}

impl BatchBuilder {
    pub(crate) fn new(limits: BatchLimits) -> Self {
        Self { limits, gathered: Gathered::Nothing, bytes: 0 }
    }

    pub(crate) fn messages(&self) -> u32 {
        match &self.gathered {
            Gathered::Nothing => 0,
            Gathered::One(_) => 1,
            Gathered::Many { messages, .. } => *messages,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.gathered, Gathered::Nothing)
    }

    /// True if the message can join those that are here. An empty batch takes any message.
    pub(crate) fn fits(&self, cost_bytes: usize) -> bool {
        self.is_empty()
            || (self.messages() < self.limits.max_messages
                && self.bytes.saturating_add(cost_bytes) <= self.limits.max_bytes)
    }

    /// True if waiting for more messages is of no use.
    pub(crate) fn is_full(&self) -> bool {
        self.messages() >= self.limits.max_messages || self.bytes >= self.limits.max_bytes
    }

    /// Adds a message that fits; answers its place, from 0.
    pub(crate) fn push(&mut self, message: Message, cost_bytes: usize) -> u32 {
        let at = self.messages();
        self.bytes = self.bytes.saturating_add(cost_bytes);
        self.gathered = match std::mem::replace(&mut self.gathered, Gathered::Nothing) {
            Gathered::Nothing => Gathered::One(message),
            Gathered::One(first) => {
                // One allocation for the batch's life, unless it will be a small one anyway.
                let room = self.limits.max_bytes.min(INITIAL_BYTES) + ENTRY_HEADROOM_BYTES;
                let mut payload = BytesMut::with_capacity(room);
                payload.put_bytes(0, ENTRY_HEADROOM_BYTES);
                let keys = Keys {
                    key: first.key.clone(),
                    ordering_key: first.ordering_key.clone(),
                    event_time_ms: first.event_time_ms,
                };
                put(&mut payload, first);
                put(&mut payload, message);
                Gathered::Many { payload, keys, messages: 2 }
            }
            Gathered::Many { mut payload, keys, messages } => {
                put(&mut payload, message);
                Gathered::Many { payload, keys, messages: messages + 1 }
            }
        };
        at
    }

    /// Takes what is here; the builder is empty afterwards.
    pub(crate) fn seal(&mut self) -> Option<SealedBatch> {
        self.bytes = 0;
        let content = match std::mem::replace(&mut self.gathered, Gathered::Nothing) {
            Gathered::Nothing => return None,
            Gathered::One(message) => Content::One(message),
            Gathered::Many { payload, keys, messages } => Content::Many { payload, keys, messages },
        };
        Some(SealedBatch { content })
    }
}

/// First allocation of a batch's payload: large enough that growing is rare, small enough that
/// a slow producer doesn't hold much.
const INITIAL_BYTES: usize = 128 * 1024 + 8 * 1024;

fn put(payload: &mut BytesMut, message: Message) {
    let mut metadata = SingleMessageMetadata {
        properties: key_values(message.properties),
        partition_key: message.key,
        ordering_key: message.ordering_key,
        event_time: message.event_time_ms,
        ..SingleMessageMetadata::default()
    };
    put_batched_message(payload, &mut metadata, &message.payload);
}

fn key_values(properties: Vec<(String, String)>) -> Vec<KeyValue> {
    properties.into_iter().map(|(key, value)| KeyValue { key, value }).collect()
}

impl SealedBatch {
    pub(crate) fn messages(&self) -> u32 {
        match &self.content {
            Content::One(_) => 1,
            Content::Many { messages, .. } => *messages,
        }
    }

    /// The entry as it goes to the broker.
    pub(crate) fn encode(self, head: &EntryHead<'_>) -> Result<Bytes, SendError> {
        let mut metadata = MessageMetadata {
            producer_name: head.producer_name.to_owned(),
            sequence_id: head.first_sequence,
            publish_time: head.publish_time_ms,
            ..MessageMetadata::default()
        };
        match self.content {
            Content::One(message) => {
                metadata.properties = key_values(message.properties);
                metadata.partition_key = message.key;
                metadata.ordering_key = message.ordering_key;
                metadata.event_time = message.event_time_ms;
                let plain = &message.payload;
                Ok(match compress(&mut metadata, head.compression, plain)? {
                    Some(compressed) => encode_entry(&metadata, &compressed),
                    None => encode_entry(&metadata, plain),
                })
            }
            Content::Many { payload, keys, messages } => {
                let count = i32::try_from(messages)
                    .map_err(|_| SendError::Encoding("too many messages in a batch".to_owned()))?;
                metadata.num_messages_in_batch = Some(count);
                metadata.highest_sequence_id = Some(head.first_sequence + u64::from(messages) - 1);
                metadata.partition_key = keys.key;
                metadata.ordering_key = keys.ordering_key;
                metadata.event_time = keys.event_time_ms;
                let plain = payload.get(ENTRY_HEADROOM_BYTES..).unwrap_or_default();
                Ok(match compress(&mut metadata, head.compression, plain)? {
                    Some(compressed) => encode_entry(&metadata, &compressed),
                    None => encode_entry_in_place(&metadata, payload),
                })
            }
        }
    }
}

/// Compresses a payload and says so in the metadata, if it is to be compressed.
fn compress(
    metadata: &mut MessageMetadata,
    compression: Compression,
    plain: &[u8],
) -> Result<Option<Vec<u8>>, SendError> {
    let compressed = compression.compress(plain)?;
    if compressed.is_some() {
        let size = u32::try_from(plain.len())
            .map_err(|_| SendError::Encoding("4 GiB or more in an entry".to_owned()))?;
        metadata.compression = compression.to_wire().map(Into::into);
        metadata.uncompressed_size = Some(size);
    }
    Ok(compressed)
}

#[cfg(test)]
mod tests;
