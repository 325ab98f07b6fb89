//! The header that opens each group, and the buffer in which a group is built.
//!
//! A group is one write: header, records, padding to whole blocks. Headers chain: each names the
//! group before it by segment, offset, sequence and checksum. So an intact group proves that
//! everything before it was durable, and a bad one before it is damage and not a torn tail.

use geminga_proto::id::{LedgerId, SegmentId};
use geminga_proto::payload::Payload;

use super::codec::{Home, get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};
use super::record::{self, Record};
use crate::device::{AlignedBuffer, whole_blocks};

/// Bytes before the first record.
pub(crate) const HEADER_BYTES: usize = 88;

const MAGIC: u32 = 0x4752_4d47;
const VERSION: u16 = 1;

/// Names a group. The default, with sequence 0, is the place before the first group of a log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub segment: SegmentId,
    pub offset: u64,
    pub sequence: u64,
    /// Checksum of the group's header, which covers a digest of its records.
    pub crc: u32,
}

/// A group header that passed its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    pub link: Link,
    pub previous: Link,
    pub records: u32,
    /// Bytes of all records.
    pub body_bytes: u32,
    /// Checksum over the payload checksums of all records in order.
    pub digest: u32,
    /// No ledger with a higher id had been stored when this was written.
    pub highest_ledger: LedgerId,
}

impl GroupHeader {
    /// Bytes of the whole group on disk.
    pub(crate) fn total_bytes(&self) -> u64 {
        whole_blocks(HEADER_BYTES + self.body_bytes as usize) as u64
    }

    /// Writes the header and fills in its checksum.
    fn encode(&mut self, instance: u64, out: &mut [u8]) {
        out[..HEADER_BYTES].fill(0);
        put_u32(out, 4, MAGIC);
        put_u16(out, 8, VERSION);
        put_u32(out, 12, self.records);
        put_u64(out, 16, self.link.segment.0);
        put_u64(out, 24, self.link.offset);
        put_u64(out, 32, self.link.sequence);
        put_u64(out, 40, self.previous.segment.0);
        put_u64(out, 48, self.previous.offset);
        put_u64(out, 56, self.previous.sequence);
        put_u32(out, 64, self.previous.crc);
        put_u32(out, 68, self.body_bytes);
        put_u32(out, 72, self.digest);
        put_u64(out, 80, self.highest_ledger.0);
        let home = Home { instance, segment: self.link.segment };
        self.link.crc = crc32c::crc32c_append(home.seed(self.link.offset), &out[4..HEADER_BYTES]);
        put_u32(out, 0, self.link.crc);
    }

    /// Reads the header at `offset` of `home`; `None` if there is no intact one.
    pub(crate) fn decode(bytes: &[u8], home: Home, offset: u64) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        // The magic first: a scan looks at very many blocks that hold no header.
        if get_u32(bytes, 4) != MAGIC || get_u16(bytes, 8) != VERSION {
            return None;
        }
        let crc = crc32c::crc32c_append(home.seed(offset), &bytes[4..HEADER_BYTES]);
        if crc != get_u32(bytes, 0)
            || get_u64(bytes, 16) != home.segment.0
            || get_u64(bytes, 24) != offset
        {
            return None;
        }
        Some(Self {
            link: Link { segment: home.segment, offset, sequence: get_u64(bytes, 32), crc },
            previous: Link {
                segment: SegmentId(get_u64(bytes, 40)),
                offset: get_u64(bytes, 48),
                sequence: get_u64(bytes, 56),
                crc: get_u32(bytes, 64),
            },
            records: get_u32(bytes, 12),
            body_bytes: get_u32(bytes, 68),
            digest: get_u32(bytes, 72),
            highest_ledger: LedgerId(get_u64(bytes, 80)),
        })
    }
}

/// Adds one record's payload checksum to a group's digest.
pub(crate) fn fold_digest(digest: u32, payload_crc: u32) -> u32 {
    crc32c::crc32c_append(digest, &payload_crc.to_le_bytes())
}

/// Builds groups in memory that is used again and again.
#[derive(Debug, Default)]
pub(crate) struct GroupBuffer {
    memory: AlignedBuffer,
    /// End of the last record.
    len: usize,
    records: u32,
    digest: u32,
}

impl GroupBuffer {
    /// Starts an empty group.
    pub(crate) fn clear(&mut self) {
        (self.len, self.records, self.digest) = (HEADER_BYTES, 0, 0);
    }

    /// Bytes so far: where the next record goes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// True if it has no record.
    pub(crate) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Appends a record to the group that begins at `offset` of `home`.
    pub(crate) fn push(&mut self, home: Home, offset: u64, record: &Record, payload: &Payload) {
        let end = self.len + record::stored_bytes(payload.len());
        self.memory.grow(whole_blocks(end));
        let out = &mut self.memory.as_mut_slice()[self.len..end];
        let payload_crc = record::encode(out, home, offset + self.len as u64, record, payload);
        self.digest = fold_digest(self.digest, payload_crc);
        self.records += 1;
        self.len = end;
    }

    /// Completes the group: header in front, zeros behind. Returns its name.
    pub(crate) fn seal(
        &mut self,
        home: Home,
        offset: u64,
        previous: Link,
        highest_ledger: LedgerId,
    ) -> Link {
        let end = whole_blocks(self.len);
        self.memory.grow(end);
        let mut header = GroupHeader {
            link: Link { segment: home.segment, offset, sequence: previous.sequence + 1, crc: 0 },
            previous,
            records: self.records,
            // A group is far below 4 GiB: its records were counted against its limit.
            body_bytes: u32::try_from(self.len - HEADER_BYTES).unwrap_or(u32::MAX),
            digest: self.digest,
            highest_ledger,
        };
        let out = self.memory.as_mut_slice();
        out[self.len..end].fill(0);
        header.encode(home.instance, out);
        header.link
    }

    /// What to write, in whole blocks.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.memory.as_slice()[..whole_blocks(self.len)]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const PREVIOUS: Link = Link { segment: SegmentId(6), offset: 8192, sequence: 9, crc: 11 };

    const HOME: Home = Home { instance: 42, segment: SegmentId(7) };

    fn sealed() -> GroupBuffer {
        let mut buffer = GroupBuffer::default();
        buffer.clear();
        buffer.seal(HOME, 4096, PREVIOUS, LedgerId(5));
        buffer
    }

    /// Writes a header that nobody would write, with its checksum right.
    pub(crate) fn hostile(
        out: &mut [u8],
        home: Home,
        offset: u64,
        records: u32,
        sequence: u64,
        body: u32,
    ) {
        put_u32(out, 4, MAGIC);
        put_u16(out, 8, VERSION);
        put_u32(out, 12, records);
        put_u64(out, 16, home.segment.0);
        put_u64(out, 24, offset);
        put_u64(out, 32, sequence);
        put_u32(out, 68, body);
        let crc = crc32c::crc32c_append(home.seed(offset), &out[4..HEADER_BYTES]);
        put_u32(out, 0, crc);
    }

    #[test]
    fn golden_bytes() {
        let hex: String =
            sealed().as_slice()[..HEADER_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/group.hex").trim());
    }

    #[test]
    fn a_group_names_itself_and_the_one_before() {
        let group = sealed();
        let header = GroupHeader::decode(group.as_slice(), HOME, 4096).expect("intact");
        assert_eq!((header.previous, header.link.sequence), (PREVIOUS, 10));
        assert_eq!((header.records, header.total_bytes()), (0, 4096));
        assert_eq!(header.highest_ledger, LedgerId(5));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_another_log_segment_or_place_never_passes(
            at in 0..HEADER_BYTES, bit in 0u32..8,
        ) {
            let mut bytes = sealed().as_slice().to_vec();
            let other = Home { segment: SegmentId(8), ..HOME };
            prop_assert!(GroupHeader::decode(&bytes, other, 4096).is_none());
            let other = Home { instance: 43, ..HOME };
            prop_assert!(GroupHeader::decode(&bytes, other, 4096).is_none());
            prop_assert!(GroupHeader::decode(&bytes, HOME, 8192).is_none());
            bytes[at] ^= 1 << bit;
            prop_assert!(GroupHeader::decode(&bytes, HOME, 4096).is_none());
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(GroupHeader::decode(&bytes, HOME, 4096).is_none());
        }
    }
}
