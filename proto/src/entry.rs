//! The layout of a stored entry, which is Apache Pulsar's own:
//!
//! ```text
//! [0x0e02][u32 size][BrokerEntryMetadata]                     written by the broker
//! [0x0e01][u32 crc32c][u32 metadata size][MessageMetadata][payload]   as the producer sent it
//! ```
//!
//! All integers are big-endian. The checksum covers the metadata size, the metadata and the
//! payload, so it survives the broker's header being put in front. A batch's payload repeats
//! `[u32 size][SingleMessageMetadata][bytes]` and is compressed as one unit; only clients look
//! inside. Nothing here panics on any input.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

use crate::payload::Payload;
use crate::pulsar::proto::{
    BrokerEntryMetadata, CompressionType, MessageMetadata, SingleMessageMetadata,
};

/// Announces the checksum and metadata of a producer's entry.
pub const MAGIC_ENTRY: u16 = 0x0e01;
/// Announces the broker's metadata.
pub const MAGIC_BROKER: u16 = 0x0e02;
/// Default limit of one entry as the producer sends it, in bytes.
pub const DEFAULT_MAX_MESSAGE_BYTES: u32 = 5 * 1024 * 1024;
/// Bytes of the fixed part in front of a producer's metadata.
pub const ENTRY_PREFIX_BYTES: usize = 2 + 4 + 4;
/// Room in front of a payload that [`encode_entry_in_place`] turns into an entry.
pub const ENTRY_HEADROOM_BYTES: usize = 512;

/// Why bytes are not an entry, or not one that may be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Shorter than its own lengths say.
    #[error("the entry is truncated: {0}")]
    Truncated(&'static str),
    /// Doesn't start with the magic number.
    #[error("the entry starts with {found:#06x} instead of {expected:#06x}")]
    Magic {
        /// What it starts with.
        found: u16,
        /// What it should start with.
        expected: u16,
    },
    /// The bytes were changed on the way.
    #[error("the entry's checksum is {found:#010x}, its bytes give {computed:#010x}")]
    Checksum {
        /// Checksum that the entry states.
        found: u32,
        /// Checksum of its bytes.
        computed: u32,
    },
    /// The metadata isn't a message.
    #[error("the {what} can't be decoded: {why}")]
    Metadata {
        /// Which metadata.
        what: &'static str,
        /// The decoder's words.
        why: String,
    },
    /// A count of messages that can't be true.
    #[error("a batch of {count} messages in {bytes} bytes is refused (limit {limit})")]
    MessageCount {
        /// Messages it claims.
        count: i64,
        /// Uncompressed bytes it claims.
        bytes: u64,
        /// Limit in force.
        limit: u32,
    },
}

/// What the broker needs to know of an entry, read without touching the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntrySummary {
    /// Messages in the entry; at least 1.
    pub messages: u32,
    /// Sequence id of the first message.
    pub sequence_id: u64,
    /// Sequence id of the last message.
    pub highest_sequence_id: u64,
}

/// A producer's entry, taken apart. The parts share the entry's bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Describes the entry.
    pub metadata: MessageMetadata,
    /// One message, or a batch; possibly compressed.
    pub payload: Bytes,
}

/// What the broker writes in front of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BrokerHeader {
    /// When the broker took the entry, in ms since the Unix epoch. Never goes back in a topic.
    pub timestamp_ms: u64,
    /// Index of the entry's *last* message from the topic's start, as Pulsar defines it.
    pub last_index: u64,
}

/// Encodes a producer's entry.
#[must_use]
pub fn encode_entry(metadata: &MessageMetadata, payload: &[u8]) -> Bytes {
    let metadata_bytes = metadata.encoded_len();
    let mut out = BytesMut::with_capacity(ENTRY_PREFIX_BYTES + metadata_bytes + payload.len());
    out.put_u16(MAGIC_ENTRY);
    out.put_u32(0);
    out.put_u32(len_u32(metadata_bytes));
    metadata.encode_raw(&mut out);
    out.put_slice(payload);
    let crc = out.get(6..).map_or(0, crc32c::crc32c);
    if let Some(slot) = out.get_mut(2..6) {
        slot.copy_from_slice(&crc.to_be_bytes());
    }
    out.freeze()
}

/// Encodes a producer's entry in the buffer in which its payload was gathered, behind
/// [`ENTRY_HEADROOM_BYTES`] of room. The payload is copied only if the metadata needs more.
#[must_use]
pub fn encode_entry_in_place(metadata: &MessageMetadata, mut buffer: BytesMut) -> Bytes {
    let metadata_bytes = metadata.encoded_len();
    let Some(start) = ENTRY_HEADROOM_BYTES.checked_sub(ENTRY_PREFIX_BYTES + metadata_bytes) else {
        return encode_entry(metadata, buffer.get(ENTRY_HEADROOM_BYTES..).unwrap_or_default());
    };
    let Some(mut head) = buffer.get_mut(start..ENTRY_HEADROOM_BYTES) else {
        return encode_entry(metadata, &[]);
    };
    head.put_u16(MAGIC_ENTRY);
    head.put_u32(0);
    head.put_u32(len_u32(metadata_bytes));
    metadata.encode_raw(&mut head);
    let crc = buffer.get(start + 6..).map_or(0, crc32c::crc32c);
    if let Some(slot) = buffer.get_mut(start + 2..start + 6) {
        slot.copy_from_slice(&crc.to_be_bytes());
    }
    buffer.freeze().slice(start..)
}

/// Lengths are limited by the frame they came in, far below 4 GiB.
fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("entries are limited to far less than 4 GiB before they are encoded")
}

struct Parts<'a> {
    metadata: &'a [u8],
    payload_offset: usize,
}

fn split_entry(bytes: &[u8], verify: bool) -> Result<Parts<'_>, EntryError> {
    let mut head = bytes;
    if head.len() < ENTRY_PREFIX_BYTES {
        return Err(EntryError::Truncated("no room for its prefix"));
    }
    let found = head.get_u16();
    if found != MAGIC_ENTRY {
        return Err(EntryError::Magic { found, expected: MAGIC_ENTRY });
    }
    let stated = head.get_u32();
    if verify {
        let computed = crc32c::crc32c(head);
        if computed != stated {
            return Err(EntryError::Checksum { found: stated, computed });
        }
    }
    let metadata_len = head.get_u32() as usize;
    let metadata = head.get(..metadata_len).ok_or(EntryError::Truncated("in its metadata"))?;
    Ok(Parts { metadata, payload_offset: ENTRY_PREFIX_BYTES + metadata_len })
}

fn decode<M: Message + Default>(what: &'static str, bytes: &[u8]) -> Result<M, EntryError> {
    M::decode(bytes).map_err(|error| EntryError::Metadata { what, why: error.to_string() })
}

/// Takes a producer's entry apart, after its checksum was verified.
///
/// # Errors
/// Any [`EntryError`] but `MessageCount`.
pub fn decode_entry(bytes: &Bytes) -> Result<Entry, EntryError> {
    let parts = split_entry(bytes, true)?;
    let metadata = decode("message metadata", parts.metadata)?;
    Ok(Entry { metadata, payload: bytes.slice(parts.payload_offset..) })
}

/// Checks what the broker must check before it stores an entry: checksum, metadata, and a
/// message count that can be true (1 to `max_messages`, and not above the uncompressed size).
///
/// # Errors
/// Any [`EntryError`].
pub fn inspect_entry(bytes: &[u8], max_messages: u32) -> Result<EntrySummary, EntryError> {
    let parts = split_entry(bytes, true)?;
    let metadata: MessageMetadata = decode("message metadata", parts.metadata)?;
    let payload_bytes = bytes.len().saturating_sub(parts.payload_offset) as u64;
    let compressed = metadata.compression() != CompressionType::None;
    let uncompressed =
        if compressed { u64::from(metadata.uncompressed_size()) } else { payload_bytes };
    let count = i64::from(metadata.num_messages_in_batch());
    // A message in a batch takes at least its size field; a single message may be empty.
    let batched = metadata.num_messages_in_batch.is_some();
    let too_many = batched && count > 1 && count as u64 > uncompressed;
    if count < 1 || count > i64::from(max_messages) || too_many {
        return Err(EntryError::MessageCount { count, bytes: uncompressed, limit: max_messages });
    }
    let messages = u32::try_from(count).unwrap_or(1);
    let sequence_id = metadata.sequence_id;
    let highest_sequence_id = metadata.highest_sequence_id().max(sequence_id);
    Ok(EntrySummary { messages, sequence_id, highest_sequence_id })
}

/// How many messages a stored entry holds. Its checksum and count were checked when it was
/// published, and are not again.
///
/// # Errors
/// Any [`EntryError`] but `Checksum`.
pub fn message_count(bytes: &[u8]) -> Result<u32, EntryError> {
    let parts = split_entry(bytes, false)?;
    let metadata: MessageMetadata = decode("message metadata", parts.metadata)?;
    let count = i64::from(metadata.num_messages_in_batch());
    u32::try_from(count).ok().filter(|count| *count > 0).ok_or(EntryError::MessageCount {
        count,
        bytes: bytes.len() as u64,
        limit: u32::MAX,
    })
}

/// Encodes the broker's header, to be stored in front of a producer's entry.
#[must_use]
pub fn encode_broker_header(header: BrokerHeader) -> Bytes {
    let metadata = BrokerEntryMetadata {
        broker_timestamp: Some(header.timestamp_ms),
        index: Some(header.last_index),
    };
    let mut out = BytesMut::with_capacity(6 + metadata.encoded_len());
    out.put_u16(MAGIC_BROKER);
    out.put_u32(len_u32(metadata.encoded_len()));
    metadata.encode_raw(&mut out);
    out.freeze()
}

/// Splits a stored entry into the broker's header and the producer's entry.
///
/// # Errors
/// [`EntryError::Truncated`], `Magic` or `Metadata`.
pub fn split_stored(bytes: &Bytes) -> Result<(BrokerHeader, Bytes), EntryError> {
    let mut head = &bytes[..];
    if head.len() < 6 {
        return Err(EntryError::Truncated("no room for the broker's header"));
    }
    let found = head.get_u16();
    if found != MAGIC_BROKER {
        return Err(EntryError::Magic { found, expected: MAGIC_BROKER });
    }
    let len = head.get_u32() as usize;
    let metadata = head.get(..len).ok_or(EntryError::Truncated("in the broker's header"))?;
    let metadata: BrokerEntryMetadata = decode("broker metadata", metadata)?;
    let (Some(timestamp_ms), Some(last_index)) = (metadata.broker_timestamp, metadata.index) else {
        let why = "timestamp or index is missing".to_owned();
        return Err(EntryError::Metadata { what: "broker metadata", why });
    };
    Ok((BrokerHeader { timestamp_ms, last_index }, bytes.slice(6 + len..)))
}

/// The stored form: the broker's header in front of the producer's entry, which is not copied.
#[must_use]
pub fn stored_entry(header: BrokerHeader, entry: Bytes) -> Payload {
    Payload::new(encode_broker_header(header), entry)
}

/// Appends one message to the payload of a batch that is being built.
pub fn put_batched_message(
    out: &mut BytesMut,
    metadata: &mut SingleMessageMetadata,
    message: &[u8],
) {
    metadata.payload_size = i32::try_from(message.len()).unwrap_or(i32::MAX);
    let len = metadata.encoded_len();
    out.reserve(4 + len + message.len());
    out.put_u32(len_u32(len));
    metadata.encode_raw(out);
    out.put_slice(message);
}

/// Takes the next message off an uncompressed batch payload.
///
/// # Errors
/// [`EntryError::Truncated`] or `Metadata` when the payload doesn't hold one.
pub fn take_batched_message(
    payload: &mut Bytes,
) -> Result<(SingleMessageMetadata, Bytes), EntryError> {
    if payload.len() < 4 {
        return Err(EntryError::Truncated("in a batch, before a message's metadata size"));
    }
    let len = payload.get_u32() as usize;
    if payload.len() < len {
        return Err(EntryError::Truncated("in a batch, in a message's metadata"));
    }
    let metadata = payload.split_to(len);
    let metadata: SingleMessageMetadata = decode("single message metadata", &metadata)?;
    match usize::try_from(metadata.payload_size) {
        Ok(size) if size <= payload.len() => {
            let message = payload.split_to(size);
            Ok((metadata, message))
        }
        _ => Err(EntryError::Truncated("in a batch, in a message's bytes")),
    }
}

#[cfg(test)]
mod tests;
