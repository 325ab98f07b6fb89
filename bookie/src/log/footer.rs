//! The sorted, checksummed index at the end of a sealed segment.
//!
//! ```text
//! [header block][directory: one 56-byte row a ledger, whole blocks][pages: 255 entries each]
//! ```
//! The directory is read at start, the pages on demand. Rows and entries are sorted, so a lookup
//! is a binary search. Every part is checksummed from the segment's id, so the footer of another
//! segment can't pass. Decoders never panic.

use geminga_proto::id::{EntryId, Lac, LedgerId, LedgerToken};

use super::codec::{Home, get_lac, get_u16, get_u32, get_u64, put_lac, put_u16, put_u32, put_u64};
use crate::device::{AlignedBuffer, BLOCK_BYTES, whole_blocks};

/// Entries in one page.
pub(crate) const PAGE_ENTRIES: u32 = 255;

const MAGIC: u32 = 0x4749_5347;
const VERSION: u16 = 2;
/// Rows didn't say how many bytes their entries have.
const VERSION_WITHOUT_BYTES: u16 = 1;
const HEADER_BYTES: usize = 56;
const ROW_BYTES: usize = 56;
const PAGE_HEADER_BYTES: usize = 8;
const PAGE_ROW_BYTES: usize = 16;
const FLAG_FENCED: u32 = 1;
/// Offsets in pages count these.
const OFFSET_UNIT: u64 = super::record::ALIGN_BYTES as u64;

/// Where a record lies in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Offset of the record's header, in units of 8 bytes.
    unit: u32,
    pub payload_bytes: u32,
}

impl Place {
    /// A place; `offset` is a multiple of 8 within the largest segment.
    pub(crate) fn new(offset: u64, payload_bytes: u32) -> Self {
        let unit = u32::try_from(offset / OFFSET_UNIT);
        Self { unit: unit.expect("segments are limited to 16 GiB"), payload_bytes }
    }

    pub(crate) fn offset(self) -> u64 {
        u64::from(self.unit) * OFFSET_UNIT
    }

    /// What the record takes, its header included.
    pub(crate) fn stored_bytes(self) -> u64 {
        super::record::stored_bytes(self.payload_bytes as usize) as u64
    }

    /// Where the block begins in which the record does.
    pub(crate) fn block(self) -> u64 {
        self.offset() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64
    }

    /// Bytes of the whole blocks in which the record lies.
    pub(crate) fn blocks_len(self) -> u64 {
        self.end().next_multiple_of(BLOCK_BYTES as u64) - self.block()
    }

    /// Where the record behind it may begin.
    pub(crate) fn end(self) -> u64 {
        self.offset() + self.stored_bytes()
    }
}

/// What a segment holds of one ledger, and the ledger's state when the segment was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub ledger: LedgerId,
    pub token: LedgerToken,
    pub lac: Lac,
    pub fenced: bool,
    /// Position of the ledger's first entry among the segment's entries.
    pub first_index: u32,
    /// Entries; 0 for a ledger of which the segment only has a fence or state.
    pub count: u32,
    pub first_entry: EntryId,
    pub last_entry: EntryId,
    /// What the entries take, headers included, in bytes: a multiple of 8.
    pub stored_bytes: u64,
}

/// The footer's first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FooterHeader {
    pub ledgers: u32,
    pub entries: u32,
    pub data_end: u64,
    directory_crc: u32,
    version: u16,
}

/// Blocks that a footer takes.
pub(crate) fn footer_bytes(ledgers: u64, entries: u64) -> u64 {
    let directory = (ledgers * ROW_BYTES as u64).next_multiple_of(BLOCK_BYTES as u64);
    BLOCK_BYTES as u64 + directory + entries.div_ceil(PAGE_ENTRIES.into()) * BLOCK_BYTES as u64
}

/// Bytes of header and directory together, whole blocks.
pub(crate) fn directory_bytes(ledgers: u32) -> u64 {
    footer_bytes(ledgers.into(), 0)
}

/// Encodes a footer that will lie at `offset` of `home`. `rows` and `entries` are sorted alike.
pub(crate) fn encode(
    home: Home,
    offset: u64,
    data_end: u64,
    rows: &[Row],
    entries: &[(EntryId, Place)],
) -> AlignedBuffer {
    let total = footer_bytes(rows.len() as u64, entries.len() as u64);
    let mut buffer = AlignedBuffer::new(usize::try_from(total).unwrap_or(usize::MAX));
    let out = buffer.as_mut_slice();
    let directory_end = BLOCK_BYTES + whole_blocks(rows.len() * ROW_BYTES);
    for (row, out) in rows.iter().zip(out[BLOCK_BYTES..].chunks_exact_mut(ROW_BYTES)) {
        row.encode(out);
    }
    let pages = entries.chunks(PAGE_ENTRIES as usize);
    for (index, page) in pages.enumerate() {
        let at = directory_end + index * BLOCK_BYTES;
        encode_page(&mut out[at..at + BLOCK_BYTES], home, offset + at as u64, page);
    }
    let directory_crc = crc32c::crc32c_append(home.seed(offset), &out[BLOCK_BYTES..directory_end]);
    put_u32(out, 4, MAGIC);
    put_u16(out, 8, VERSION);
    put_u32(out, 12, u32::try_from(rows.len()).unwrap_or(u32::MAX));
    put_u64(out, 16, home.segment.0);
    put_u64(out, 24, offset);
    put_u64(out, 32, data_end);
    put_u32(out, 40, u32::try_from(entries.len()).unwrap_or(u32::MAX));
    put_u32(out, 44, directory_crc);
    let crc = crc32c::crc32c_append(home.seed(offset), &out[4..HEADER_BYTES]);
    put_u32(out, 0, crc);
    buffer
}

impl Row {
    fn encode(&self, out: &mut [u8]) {
        put_u64(out, 0, self.ledger.0);
        put_u64(out, 8, self.token.0);
        put_lac(out, 16, self.lac);
        put_u64(out, 24, self.first_entry.0);
        put_u64(out, 32, self.last_entry.0);
        put_u32(out, 40, self.first_index);
        put_u32(out, 44, self.count);
        put_u32(out, 48, if self.fenced { FLAG_FENCED } else { 0 });
        put_u32(out, 52, u32::try_from(self.stored_bytes / OFFSET_UNIT).unwrap_or(u32::MAX));
    }

    /// `None` for what no log would write.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let row = Self {
            ledger: LedgerId(get_u64(bytes, 0)),
            token: LedgerToken(get_u64(bytes, 8)),
            lac: get_lac(bytes, 16),
            fenced: get_u32(bytes, 48) & FLAG_FENCED != 0,
            first_index: get_u32(bytes, 40),
            count: get_u32(bytes, 44),
            first_entry: EntryId(get_u64(bytes, 24)),
            last_entry: EntryId(get_u64(bytes, 32)),
            stored_bytes: u64::from(get_u32(bytes, 52)) * OFFSET_UNIT,
        };
        let sensible = row.ledger <= LedgerId::MAX
            && row.token != LedgerToken(0)
            && row.first_entry <= row.last_entry
            && row.last_entry <= EntryId::MAX
            && u64::from(row.count) <= row.last_entry.0 - row.first_entry.0 + 1;
        sensible.then_some(row)
    }
}

impl FooterHeader {
    /// Reads the block at `offset` of `home`; `None` if it isn't an intact footer header.
    pub(crate) fn decode(bytes: &[u8], home: Home, offset: u64) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let crc = crc32c::crc32c_append(home.seed(offset), &bytes[4..HEADER_BYTES]);
        let version = get_u16(bytes, 8);
        let intact = get_u32(bytes, 4) == MAGIC
            && matches!(version, VERSION | VERSION_WITHOUT_BYTES)
            && get_u64(bytes, 16) == home.segment.0
            && get_u64(bytes, 24) == offset
            && get_u32(bytes, 0) == crc;
        intact.then(|| Self {
            ledgers: get_u32(bytes, 12),
            entries: get_u32(bytes, 40),
            data_end: get_u64(bytes, 32),
            directory_crc: get_u32(bytes, 44),
            version,
        })
    }

    /// Reads the directory that follows the header; `None` if it is damaged.
    pub(crate) fn rows(&self, directory: &[u8], home: Home, offset: u64) -> Option<Vec<Row>> {
        let bytes = (self.ledgers as usize).checked_mul(ROW_BYTES)?;
        let directory = directory.get(..whole_blocks(bytes))?;
        if crc32c::crc32c_append(home.seed(offset), directory) != self.directory_crc {
            return None;
        }
        let rows = directory[..bytes].chunks_exact(ROW_BYTES).map(Row::decode);
        let mut rows = rows.collect::<Option<Vec<Row>>>()?;
        if self.version == VERSION_WITHOUT_BYTES {
            self.estimate_bytes(&mut rows);
        }
        let sorted = rows.windows(2).all(|pair| pair[0].ledger < pair[1].ledger);
        let mut next = 0;
        for row in &rows {
            if row.first_index != next {
                return None;
            }
            next = row.first_index.checked_add(row.count)?;
        }
        (sorted && next == self.entries).then_some(rows)
    }

    /// An older footer doesn't tell how the segment's bytes are shared: evenly among its entries.
    fn estimate_bytes(&self, rows: &mut [Row]) {
        let data = self.data_end.saturating_sub(super::segment::DATA_START);
        let each = data / u64::from(self.entries.max(1));
        for row in rows {
            row.stored_bytes = u64::from(row.count) * each / OFFSET_UNIT * OFFSET_UNIT;
        }
    }

    /// Offset in the segment of the page that holds the entry at `index`.
    pub(crate) fn page_offset(ledgers: u32, footer_offset: u64, page: u32) -> u64 {
        footer_offset + directory_bytes(ledgers) + u64::from(page) * BLOCK_BYTES as u64
    }
}

fn encode_page(out: &mut [u8], home: Home, offset: u64, page: &[(EntryId, Place)]) {
    for (index, (entry, place)) in page.iter().enumerate() {
        let at = PAGE_HEADER_BYTES + index * PAGE_ROW_BYTES;
        put_u64(out, at, entry.0);
        put_u32(out, at + 8, place.unit);
        put_u32(out, at + 12, place.payload_bytes);
    }
    put_u32(out, 4, u32::try_from(page.len()).unwrap_or(u32::MAX));
    let crc = crc32c::crc32c_append(home.seed(offset), &out[4..BLOCK_BYTES]);
    put_u32(out, 0, crc);
}

/// A page of entries that passed its checksum.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    bytes: AlignedPage,
    count: usize,
}

/// A page's bytes behind one shared pointer.
type AlignedPage = std::sync::Arc<[u8]>;

impl Page {
    /// Takes the block at `offset` of `home`; `None` if it isn't an intact page.
    pub(crate) fn decode(bytes: &[u8], home: Home, offset: u64) -> Option<Self> {
        let bytes = bytes.get(..BLOCK_BYTES)?;
        let crc = crc32c::crc32c_append(home.seed(offset), &bytes[4..]);
        let count = get_u32(bytes, 4);
        (crc == get_u32(bytes, 0) && count <= PAGE_ENTRIES)
            .then(|| Self { bytes: bytes.into(), count: count as usize })
    }

    /// The entry at `index` of this page.
    pub(crate) fn get(&self, index: usize) -> Option<(EntryId, Place)> {
        if index >= self.count {
            return None;
        }
        let at = PAGE_HEADER_BYTES + index * PAGE_ROW_BYTES;
        let place = Place {
            unit: get_u32(&self.bytes, at + 8),
            payload_bytes: get_u32(&self.bytes, at + 12),
        };
        Some((EntryId(get_u64(&self.bytes, at)), place))
    }
}

#[cfg(test)]
mod tests {
    use geminga_proto::id::SegmentId;
    use proptest::prelude::*;

    use super::*;

    const HOME: Home = Home { instance: 42, segment: SegmentId(9) };
    const OFFSET: u64 = 40_960;

    fn sample(per_ledger: u32) -> (Vec<Row>, Vec<(EntryId, Place)>) {
        let row = |ledger: u32| Row {
            ledger: LedgerId(u64::from(ledger) + 10),
            token: LedgerToken(5),
            lac: Lac(Some(EntryId(1))),
            fenced: ledger == 1,
            first_index: ledger * per_ledger,
            count: per_ledger,
            first_entry: EntryId(0),
            last_entry: EntryId(u64::from(per_ledger) - 1),
            stored_bytes: u64::from(per_ledger) * 64,
        };
        let rows = vec![row(0), row(1), Row { count: 0, stored_bytes: 0, ..row(2) }];
        let entries = (0..2 * per_ledger)
            .map(|at| (EntryId((at % per_ledger).into()), Place::new(4096 + u64::from(at) * 64, 9)))
            .collect();
        (rows, entries)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn golden_bytes() {
        let (rows, entries) = sample(1);
        let footer = encode(HOME, OFFSET, 36_864, &rows, &entries);
        let bytes = footer.as_slice();
        assert_eq!(bytes.len(), 3 * BLOCK_BYTES);
        let parts = [&bytes[..56], &bytes[4096..4096 + 3 * 56], &bytes[8192..8192 + 40]];
        assert_eq!(parts.map(hex).join("\n"), include_str!("golden/footer.hex").trim());
    }

    #[test]
    fn a_footer_of_version_1_is_read_with_its_bytes_shared_evenly() {
        let block = |hex: &str| {
            let digits = (0..hex.len()).step_by(2).map(|at| &hex[at..at + 2]);
            let bytes = digits.map(|two| u8::from_str_radix(two, 16).expect("digits"));
            let mut bytes: Vec<u8> = bytes.collect();
            bytes.resize(BLOCK_BYTES, 0);
            bytes
        };
        let bytes: Vec<u8> = include_str!("golden/footer-1.hex").lines().flat_map(block).collect();
        let header = FooterHeader::decode(&bytes, HOME, OFFSET).expect("intact");
        let rows = header.rows(&bytes[BLOCK_BYTES..], HOME, OFFSET).expect("intact");
        let each = (36_864 - super::super::segment::DATA_START) / 2;
        let (mut expected, _) = sample(1);
        expected[..2].iter_mut().for_each(|row| row.stored_bytes = each);
        assert_eq!(rows, expected);
    }

    #[test]
    fn rows_and_pages_are_read_back() {
        let (rows, entries) = sample(200);
        let footer = encode(HOME, OFFSET, 36_864, &rows, &entries);
        let bytes = footer.as_slice();
        assert_eq!(bytes.len() as u64, footer_bytes(3, 400));
        let header = FooterHeader::decode(bytes, HOME, OFFSET).expect("intact");
        assert_eq!((header.data_end, header.entries), (36_864, 400));
        assert_eq!(header.rows(&bytes[BLOCK_BYTES..], HOME, OFFSET), Some(rows));
        let read: Vec<_> = (0..2)
            .flat_map(|page| {
                let at = FooterHeader::page_offset(3, OFFSET, page);
                let start = usize::try_from(at - OFFSET).expect("small");
                let page = Page::decode(&bytes[start..], HOME, at).expect("intact");
                (0..256).map_while(move |index| page.get(index)).collect::<Vec<_>>()
            })
            .collect();
        assert_eq!(read, entries);
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_found(at in 0usize..3 * BLOCK_BYTES, bit in 0u32..8) {
            let (rows, entries) = sample(1);
            let footer = encode(HOME, OFFSET, 36_864, &rows, &entries);
            let mut bytes = footer.as_slice().to_vec();
            bytes[at] ^= 1 << bit;
            let page_at = FooterHeader::page_offset(3, OFFSET, 0);
            let header = FooterHeader::decode(&bytes, HOME, OFFSET);
            let read = header.and_then(|header| {
                let rows = header.rows(&bytes[BLOCK_BYTES..], HOME, OFFSET)?;
                Page::decode(&bytes[2 * BLOCK_BYTES..], HOME, page_at)?;
                Some(rows)
            });
            // The rest of the header's block is padding that nothing reads.
            let padding = (HEADER_BYTES..BLOCK_BYTES).contains(&at);
            prop_assert_eq!(read.is_some(), padding);
        }

        #[test]
        fn hostile_fields_under_right_checksums_are_sensible_or_refused(
            fields in proptest::collection::vec((0usize..56, any::<u8>()), 0..4),
            rows in proptest::collection::vec((0usize..3 * 56, any::<u8>()), 0..4),
            counts in (0u32..5, 0u32..5),
        ) {
            let (sampled, entries) = sample(1);
            let footer = encode(HOME, OFFSET, 36_864, &sampled, &entries);
            let mut bytes = footer.as_slice().to_vec();
            rows.iter().for_each(|(at, byte)| bytes[BLOCK_BYTES + at] = *byte);
            let directory = HOME.seed(OFFSET);
            let directory = crc32c::crc32c_append(directory, &bytes[BLOCK_BYTES..2 * BLOCK_BYTES]);
            put_u32(&mut bytes, 12, counts.0);
            put_u32(&mut bytes, 40, counts.1);
            put_u32(&mut bytes, 44, directory);
            // Beyond what identifies it.
            let loose = fields.iter().filter(|(at, _)| (32..40).contains(at) || *at >= 48);
            loose.for_each(|(at, byte)| bytes[*at] = *byte);
            let crc = crc32c::crc32c_append(HOME.seed(OFFSET), &bytes[4..HEADER_BYTES]);
            put_u32(&mut bytes, 0, crc);
            let header = FooterHeader::decode(&bytes, HOME, OFFSET).expect("its checksum is right");
            if let Some(rows) = header.rows(&bytes[BLOCK_BYTES..], HOME, OFFSET) {
                prop_assert_eq!(rows.len(), counts.0 as usize);
                for row in rows {
                    prop_assert!(row.first_entry <= row.last_entry);
                    prop_assert!(row.ledger <= LedgerId::MAX && row.token != LedgerToken(0));
                    prop_assert!(row.first_index + row.count <= counts.1);
                }
            }
        }

        #[test]
        fn a_page_with_a_right_checksum_and_any_count_never_panics(
            mut bytes in proptest::collection::vec(any::<u8>(), BLOCK_BYTES), count in 0u32..600,
        ) {
            put_u32(&mut bytes, 4, count);
            let crc = crc32c::crc32c_append(HOME.seed(OFFSET), &bytes[4..]);
            put_u32(&mut bytes, 0, crc);
            let page = Page::decode(&bytes, HOME, OFFSET);
            prop_assert_eq!(page.is_some(), count <= PAGE_ENTRIES);
            if let Some(page) = page {
                let found = (0..600).filter(|index| page.get(*index).is_some()).count();
                prop_assert_eq!(found, count as usize);
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            prop_assert!(FooterHeader::decode(&bytes, HOME, OFFSET).is_none());
            prop_assert!(Page::decode(&bytes, HOME, OFFSET).is_none());
            let (ledgers, entries) = (u32::MAX, 1);
            let (data_end, directory_crc, version) = (0, 0, VERSION);
            let header = FooterHeader { ledgers, entries, data_end, directory_crc, version };
            prop_assert!(header.rows(&bytes, HOME, OFFSET).is_none());
        }
    }
}
