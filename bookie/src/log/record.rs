//! One record of the log: an entry, a fence, or a ledger's state carried over from a segment
//! that is about to be recycled.
//!
//! Layout, little-endian, 8-byte aligned (docs/FORMATS.md has the table): a 48-byte header with
//! its own checksum, then the payload, whose checksum goes on from the header's. Two checksums,
//! so that damage to a payload leaves the entry known, and answers *corrupt*. Never panics on
//! any input.

use geminga_proto::id::{EntryId, Lac, LedgerId, LedgerToken};
use geminga_proto::payload::Payload;

use super::codec::{Home, get_lac, get_u16, get_u32, get_u64, put_lac, put_u16, put_u32, put_u64};

/// Bytes before the payload.
pub(crate) const HEADER_BYTES: usize = 48;
/// Records start at multiples of this.
pub(crate) const ALIGN_BYTES: usize = 8;

const MAGIC: u16 = 0x5247;
const FLAG_FENCED: u8 = 1;

/// What a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    Entry,
    Fence,
    /// Token, last-add-confirmed and fence of a ledger, re-logged.
    State {
        fenced: bool,
    },
}

/// The fields of a record without its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub kind: RecordKind,
    pub ledger: LedgerId,
    /// 0 unless an entry.
    pub entry: EntryId,
    pub token: LedgerToken,
    pub lac: Lac,
    pub payload_bytes: u32,
}

/// A record header that passed its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredRecord {
    pub record: Record,
    header_crc: u32,
    pub payload_crc: u32,
}

/// Bytes that a record with such a payload takes in the log.
pub(crate) const fn stored_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(ALIGN_BYTES)
}

/// Writes a record to the start of `out`, which begins at `offset` of `home`, and returns the
/// payload's checksum. This is the one copy and the one checksum pass that a payload gets.
pub(crate) fn encode(
    out: &mut [u8],
    home: Home,
    offset: u64,
    record: &Record,
    payload: &Payload,
) -> u32 {
    debug_assert_eq!(record.payload_bytes as usize, payload.len());
    let (kind, flags) = match record.kind {
        RecordKind::Entry => (1, 0),
        RecordKind::Fence => (2, 0),
        RecordKind::State { fenced } => (3, if fenced { FLAG_FENCED } else { 0 }),
    };
    let (header, rest) = out.split_at_mut(HEADER_BYTES);
    header[4] = kind;
    header[5] = flags;
    put_u16(header, 6, MAGIC);
    put_u64(header, 8, record.ledger.0);
    put_u64(header, 16, record.entry.0);
    put_u64(header, 24, record.token.0);
    put_lac(header, 32, record.lac);
    put_u32(header, 40, record.payload_bytes);
    let header_crc = crc32c::crc32c_append(home.seed(offset), &header[4..44]);
    put_u32(header, 0, header_crc);
    let mut payload_crc = header_crc;
    let mut at = 0;
    for part in [&payload.head, &payload.body] {
        rest[at..at + part.len()].copy_from_slice(part);
        payload_crc = crc32c::crc32c_append(payload_crc, part);
        at += part.len();
    }
    rest[at..stored_bytes(payload.len()) - HEADER_BYTES].fill(0);
    put_u32(header, 44, payload_crc);
    payload_crc
}

/// Reads the header at the start of `bytes`, which begin at `offset` of `home`. `None` if
/// there is no intact one.
pub(crate) fn decode(bytes: &[u8], home: Home, offset: u64) -> Option<StoredRecord> {
    let header = bytes.get(..HEADER_BYTES)?;
    if get_u16(header, 6) != MAGIC {
        return None;
    }
    let header_crc = crc32c::crc32c_append(home.seed(offset), &header[4..44]);
    if header_crc != get_u32(header, 0) {
        return None;
    }
    let kind = match (header[4], header[5]) {
        (1, 0) => RecordKind::Entry,
        (2, 0) => RecordKind::Fence,
        (3, flags) if flags & !FLAG_FENCED == 0 => {
            RecordKind::State { fenced: flags & FLAG_FENCED != 0 }
        }
        _ => return None,
    };
    let record = Record {
        kind,
        ledger: LedgerId(get_u64(header, 8)),
        entry: EntryId(get_u64(header, 16)),
        token: LedgerToken(get_u64(header, 24)),
        lac: get_lac(header, 32),
        payload_bytes: get_u32(header, 40),
    };
    let sensible = record.ledger <= LedgerId::MAX
        && record.entry <= EntryId::MAX
        && record.token != LedgerToken(0);
    sensible.then(|| StoredRecord { record, header_crc, payload_crc: get_u32(header, 44) })
}

impl StoredRecord {
    /// True if `payload` is what was written.
    pub(crate) fn verifies(&self, payload: &[u8]) -> bool {
        payload.len() == self.record.payload_bytes as usize
            && crc32c::crc32c_append(self.header_crc, payload) == self.payload_crc
    }

    /// Bytes that this record takes in the log.
    pub(crate) fn stored_bytes(&self) -> usize {
        stored_bytes(self.record.payload_bytes as usize)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use geminga_proto::id::SegmentId;
    use proptest::prelude::*;

    use super::*;

    const HOME: Home = Home { instance: 42, segment: SegmentId(7) };

    fn entry(payload: &Payload) -> Record {
        Record {
            kind: RecordKind::Entry,
            ledger: LedgerId(0x0102),
            entry: EntryId(3),
            token: LedgerToken(4),
            lac: Lac(Some(EntryId(2))),
            payload_bytes: u32::try_from(payload.len()).expect("small"),
        }
    }

    fn encoded(record: &Record, payload: &Payload) -> Vec<u8> {
        let mut bytes = vec![0xee; stored_bytes(payload.len())];
        encode(&mut bytes, HOME, 4096, record, payload);
        bytes
    }

    #[test]
    fn golden_bytes() {
        let payload = Payload::from(Bytes::from_static(b"abc"));
        let hex: String =
            encoded(&entry(&payload), &payload).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/record.hex").trim());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            head in proptest::collection::vec(any::<u8>(), 0..40),
            body in proptest::collection::vec(any::<u8>(), 0..40),
            kind in prop_oneof![
                Just(RecordKind::Entry), Just(RecordKind::Fence),
                Just(RecordKind::State { fenced: true }), Just(RecordKind::State { fenced: false })
            ],
        ) {
            let payload = Payload::new(head.into(), body.into());
            let record = Record { kind, ..entry(&payload) };
            let bytes = encoded(&record, &payload);
            let stored = decode(&bytes, HOME, 4096).expect("intact");
            prop_assert_eq!(stored.record, record);
            prop_assert!(stored.verifies(&bytes[HEADER_BYTES..HEADER_BYTES + payload.len()]));
        }

        #[test]
        fn a_flipped_bit_another_log_segment_or_place_never_passes(
            at in 0usize..48 + 16, bit in 0u32..8,
        ) {
            let payload = Payload::from(Bytes::from_static(b"0123456789abcdef"));
            let mut bytes = encoded(&entry(&payload), &payload);
            let other = Home { segment: SegmentId(8), ..HOME };
            prop_assert!(decode(&bytes, other, 4096).is_none());
            let other = Home { instance: 43, ..HOME };
            prop_assert!(decode(&bytes, other, 4096).is_none());
            prop_assert!(decode(&bytes, HOME, 8192).is_none());
            bytes[at] ^= 1 << bit;
            let passes = decode(&bytes, HOME, 4096)
                .is_some_and(|stored| stored.verifies(&bytes[HEADER_BYTES..]));
            prop_assert!(!passes);
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode(&bytes, HOME, 4096).is_none());
        }

        #[test]
        fn hostile_fields_under_a_right_checksum_are_sensible_or_refused(
            mut bytes in proptest::collection::vec(any::<u8>(), HEADER_BYTES..200),
            kind in 0u8..5, small in any::<bool>(),
        ) {
            bytes[4..6].copy_from_slice(&[kind, kind & 1]);
            put_u16(&mut bytes, 6, MAGIC);
            if small {
                for at in [15, 23] {
                    bytes[at] &= 0x7f;
                }
            }
            let crc = crc32c::crc32c_append(HOME.seed(4096), &bytes[4..44]);
            put_u32(&mut bytes, 0, crc);
            if let Some(stored) = decode(&bytes, HOME, 4096) {
                let record = stored.record;
                prop_assert!(record.ledger <= LedgerId::MAX && record.entry <= EntryId::MAX);
                prop_assert!(record.token != LedgerToken(0));
                prop_assert!(stored.stored_bytes() >= HEADER_BYTES);
                prop_assert!(!stored.verifies(&bytes[HEADER_BYTES..]) || bytes.len() == 48);
            }
        }
    }
}
