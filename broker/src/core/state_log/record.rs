//! The state log's entries: a checksummed list of records (docs/FORMATS.md has the tables).
//!
//! Nothing here panics on any bytes. A record that is read was valid when it was written, or the
//! entry is refused as a whole.

use std::sync::Arc;

use bytes::Bytes;
use geminga_proto::id::{EntryId, LedgerId, MessageIndex, Position, TopicIncarnation};

use super::CursorId;
use crate::core::ack_set::{AckSetPiece, IndexRange};
use crate::core::cursor::{CursorChange, CursorDelta, Frontier};

/// `GSL` and the version.
const MAGIC: [u8; 3] = *b"GSL";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 8;
/// Longest subscription name, as `topic_name::check_subscription` allows.
const MAX_NAME_BYTES: usize = 512;
/// Message ranges in one record; a larger change is written as several.
pub(super) const MAX_RANGES: usize = 16 * 1024;

/// One record.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Record {
    Create {
        id: CursorId,
        topic: TopicIncarnation,
        name: Arc<str>,
        at: Frontier,
    },
    Delete {
        id: CursorId,
    },
    DeleteTopic {
        topic: TopicIncarnation,
    },
    Change {
        id: CursorId,
        change: CursorChange,
    },
    /// A snapshot round begins: what follows up to its end rebuilds every cursor.
    SnapshotBegin {
        round: u64,
        next_id: CursorId,
    },
    SnapshotCursor(SnapshotCursor),
    SnapshotPiece {
        id: CursorId,
        piece: AckSetPiece,
    },
    SnapshotEnd {
        round: u64,
    },
}

/// A cursor without the set of messages acknowledged out of order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SnapshotCursor {
    pub id: CursorId,
    pub topic: TopicIncarnation,
    pub name: Arc<str>,
    pub frontier: Frontier,
    pub next_unacked: MessageIndex,
}

const CREATE: u8 = 1;
const DELETE: u8 = 2;
const DELETE_TOPIC: u8 = 3;
const ACK: u8 = 4;
const RESET: u8 = 5;
const SNAPSHOT_BEGIN: u8 = 6;
const SNAPSHOT_CURSOR: u8 = 7;
const SNAPSHOT_PIECE: u8 = 8;
const SNAPSHOT_END: u8 = 9;

const HAS_FRONTIER: u8 = 1;
const HAS_UPTO: u8 = 2;

/// Why bytes are not an entry of a state log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    #[error("an entry doesn't start as one of a state log does")]
    Magic,
    #[error("an entry has version {0}, this release reads version 1; use a newer release")]
    Version(u8),
    #[error("an entry's checksum doesn't fit")]
    Checksum,
    #[error("a record is malformed: {0}")]
    Malformed(&'static str),
}

/// Collects records into an entry.
#[derive(Debug)]
pub(super) struct EntryBuilder {
    out: Vec<u8>,
}

impl EntryBuilder {
    pub fn new() -> Self {
        Self { out: vec![0; HEADER_BYTES] }
    }

    pub fn is_empty(&self) -> bool {
        self.out.len() == HEADER_BYTES
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    pub fn push(&mut self, record: &Record) {
        match record {
            Record::Create { id, topic, name, at } => {
                self.head(CREATE, id.0);
                self.varint(topic.0);
                self.name(name);
                self.frontier(*at);
            }
            Record::Delete { id } => self.head(DELETE, id.0),
            Record::DeleteTopic { topic } => self.head(DELETE_TOPIC, topic.0),
            Record::Change { id, change: CursorChange::Ack(delta) } => {
                self.head(ACK, id.0);
                self.delta(delta);
            }
            Record::Change { id, change: CursorChange::Reset(to) } => {
                self.head(RESET, id.0);
                self.frontier(*to);
            }
            Record::SnapshotBegin { round, next_id } => {
                self.head(SNAPSHOT_BEGIN, *round);
                self.varint(next_id.0);
            }
            Record::SnapshotCursor(cursor) => {
                self.head(SNAPSHOT_CURSOR, cursor.id.0);
                self.varint(cursor.topic.0);
                self.name(&cursor.name);
                self.frontier(cursor.frontier);
                self.varint(cursor.next_unacked.0);
            }
            Record::SnapshotPiece { id, piece } => {
                self.head(SNAPSHOT_PIECE, id.0);
                let bytes = piece.encode();
                self.varint(bytes.len() as u64);
                self.out.extend_from_slice(&bytes);
            }
            Record::SnapshotEnd { round } => self.head(SNAPSHOT_END, *round),
        }
    }

    fn head(&mut self, kind: u8, number: u64) {
        self.out.push(kind);
        self.varint(number);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    fn name(&mut self, name: &str) {
        self.varint(name.len() as u64);
        self.out.extend_from_slice(name.as_bytes());
    }

    fn frontier(&mut self, frontier: Frontier) {
        self.varint(frontier.index.0);
        self.varint(frontier.position.ledger.0);
        self.varint(frontier.position.entry.0);
    }

    fn delta(&mut self, delta: &CursorDelta) {
        let frontier = if delta.frontier.is_some() { HAS_FRONTIER } else { 0 };
        let upto = if delta.upto.is_some() { HAS_UPTO } else { 0 };
        self.out.push(frontier | upto);
        if let Some(frontier) = delta.frontier {
            self.frontier(frontier);
        }
        if let Some(upto) = delta.upto {
            self.varint(upto.0);
        }
        self.varint(delta.acked.len() as u64);
        let mut previous = 0_u64;
        for range in &delta.acked {
            // Ranges mostly follow each other closely, but not always upwards.
            let step = range.start.0.cast_signed().wrapping_sub(previous.cast_signed());
            self.varint((step << 1 ^ step >> 63).cast_unsigned());
            self.varint(range.len());
            previous = range.end.0;
        }
    }

    /// The entry.
    pub fn finish(mut self) -> Bytes {
        let crc = crc32c_of(&self.out);
        if let Some(header) = self.out.first_chunk_mut::<HEADER_BYTES>() {
            let [m0, m1, m2] = MAGIC;
            let [c0, c1, c2, c3] = crc.to_le_bytes();
            *header = [m0, m1, m2, VERSION, c0, c1, c2, c3];
        }
        self.out.into()
    }
}

/// Of everything after the header.
fn crc32c_of(entry: &[u8]) -> u32 {
    crc32c::crc32c(entry.get(HEADER_BYTES..).unwrap_or_default())
}

/// Reads an entry.
///
/// # Errors
/// [`RecordError`]; then nothing of the entry may be used.
pub(super) fn decode_entry(entry: &[u8]) -> Result<Vec<Record>, RecordError> {
    let Some(([m0, m1, m2, version, crc @ ..], records)) = entry.split_first_chunk::<8>() else {
        return Err(RecordError::Magic);
    };
    if [*m0, *m1, *m2] != MAGIC {
        return Err(RecordError::Magic);
    }
    if *version != VERSION {
        return Err(RecordError::Version(*version));
    }
    if u32::from_le_bytes(*crc) != crc32c_of(entry) {
        return Err(RecordError::Checksum);
    }
    let mut reader = Reader { rest: records };
    let mut found = Vec::new();
    while !reader.rest.is_empty() {
        found.push(reader.record()?);
    }
    Ok(found)
}

struct Reader<'a> {
    rest: &'a [u8],
}

const fn malformed<T>(why: &'static str) -> Result<T, RecordError> {
    Err(RecordError::Malformed(why))
}

impl<'a> Reader<'a> {
    fn byte(&mut self) -> Result<u8, RecordError> {
        let Some((first, rest)) = self.rest.split_first() else { return malformed("it is cut") };
        self.rest = rest;
        Ok(*first)
    }

    fn raw(&mut self) -> Result<u64, RecordError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return malformed("a number is too large");
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                // The shortest form only: a record has exactly one encoding.
                return if byte == 0 && shift > 0 {
                    malformed("a number is padded")
                } else {
                    Ok(value)
                };
            }
        }
        malformed("a number is too long")
    }

    /// An id, offset or index.
    fn number(&mut self) -> Result<u64, RecordError> {
        match self.raw()? {
            value if value <= MessageIndex::MAX.0 => Ok(value),
            _ => malformed("a number is beyond 2^63-1"),
        }
    }

    fn bytes(&mut self, limit: usize) -> Result<&'a [u8], RecordError> {
        let len = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        match self.rest.split_at_checked(len) {
            Some((bytes, rest)) if len <= limit => {
                self.rest = rest;
                Ok(bytes)
            }
            _ => malformed("a length is wrong"),
        }
    }

    fn name(&mut self) -> Result<Arc<str>, RecordError> {
        match std::str::from_utf8(self.bytes(MAX_NAME_BYTES)?) {
            Ok(name) if !name.is_empty() => Ok(name.into()),
            _ => malformed("a name is empty or not text"),
        }
    }

    fn frontier(&mut self) -> Result<Frontier, RecordError> {
        let index = MessageIndex(self.number()?);
        let ledger = LedgerId(self.number()?);
        let entry = EntryId(self.number()?);
        Ok(Frontier { index, position: Position::new(ledger, entry) })
    }

    fn delta(&mut self) -> Result<CursorDelta, RecordError> {
        let flags = self.byte()?;
        if flags & !(HAS_FRONTIER | HAS_UPTO) != 0 {
            return malformed("an unknown flag");
        }
        let frontier = if flags & HAS_FRONTIER == 0 { None } else { Some(self.frontier()?) };
        let upto = if flags & HAS_UPTO == 0 { None } else { Some(MessageIndex(self.number()?)) };
        let count = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        // Each range takes at least two bytes: nothing is reserved on a lie.
        if count > MAX_RANGES || count > self.rest.len() / 2 {
            return malformed("too many ranges");
        }
        let mut acked = Vec::with_capacity(count);
        let mut previous = 0_u64;
        for _ in 0..count {
            let step = self.raw()?;
            let step = (step >> 1).cast_signed() ^ -(step & 1).cast_signed();
            let len = self.number()?;
            let start = previous.checked_add_signed(step);
            let end = start.and_then(|start| start.checked_add(len));
            let (Some(start), Some(end)) = (start, end) else { return malformed("a range") };
            if len == 0 || len > u64::from(u32::MAX) || end > MessageIndex::MAX.0 {
                return malformed("a range");
            }
            acked.push(IndexRange::new(start, end));
            previous = end;
        }
        Ok(CursorDelta { frontier, upto, acked })
    }

    fn record(&mut self) -> Result<Record, RecordError> {
        let kind = self.byte()?;
        let number = self.number()?;
        let id = CursorId(number);
        Ok(match kind {
            CREATE => {
                let topic = TopicIncarnation(self.number()?);
                Record::Create { id, topic, name: self.name()?, at: self.frontier()? }
            }
            DELETE => Record::Delete { id },
            DELETE_TOPIC => Record::DeleteTopic { topic: TopicIncarnation(number) },
            ACK => Record::Change { id, change: CursorChange::Ack(self.delta()?) },
            RESET => Record::Change { id, change: CursorChange::Reset(self.frontier()?) },
            SNAPSHOT_BEGIN => {
                Record::SnapshotBegin { round: number, next_id: CursorId(self.number()?) }
            }
            SNAPSHOT_CURSOR => self.cursor(id)?,
            SNAPSHOT_PIECE => {
                let bytes = self.bytes(usize::MAX)?;
                let piece = AckSetPiece::decode(bytes);
                let piece = piece.map_err(|_| RecordError::Malformed("a bitmap"))?;
                Record::SnapshotPiece { id, piece }
            }
            SNAPSHOT_END => Record::SnapshotEnd { round: number },
            _ => return malformed("an unknown kind of record"),
        })
    }

    fn cursor(&mut self, id: CursorId) -> Result<Record, RecordError> {
        let topic = TopicIncarnation(self.number()?);
        let name = self.name()?;
        let frontier = self.frontier()?;
        let next_unacked = MessageIndex(self.number()?);
        if next_unacked < frontier.index {
            return malformed("a frontier beyond the first unacknowledged message");
        }
        let cursor = SnapshotCursor { id, topic, name, frontier, next_unacked };
        Ok(Record::SnapshotCursor(cursor))
    }
}

#[cfg(test)]
mod tests;
