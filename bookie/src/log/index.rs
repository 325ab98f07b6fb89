//! [`Index`]: all that a sealed segment's footer says, read and verified at once.
//!
//! For whoever goes through a whole segment; a read of single entries uses cached pages (`reader`).

use geminga_proto::id::{EntryId, SegmentId};
use geminga_proto::storage::BookieError;

use super::Log;
use super::footer::{self, FooterHeader, PAGE_ENTRIES, Page, Place, Row};
use super::state::SealedSegment;
use crate::device::{AlignedBuffer, BLOCK_BYTES};

/// A footer, decoded.
#[derive(Debug)]
pub(super) struct Index {
    /// Sorted by ledger.
    pub rows: Vec<Row>,
    /// Entries of the first row, then of the next one, and so on.
    entries: Vec<(EntryId, Place)>,
    /// What was read for it.
    pub bytes: u64,
}

impl Index {
    /// Each row with its entries.
    pub fn by_ledger(&self) -> impl Iterator<Item = (&Row, &[(EntryId, Place)])> {
        self.rows.iter().map(|row| {
            let first = row.first_index as usize;
            let range = first..first + row.count as usize;
            (row, self.entries.get(range).unwrap_or_default())
        })
    }
}

impl Log {
    /// Reads the whole index of a sealed segment. *Unknown*: it is damaged.
    pub(super) fn index(
        &self,
        segment: SegmentId,
        sealed: &SealedSegment,
    ) -> Result<Index, BookieError> {
        let home = self.home(segment);
        let at = sealed.data_end;
        let bytes = footer::directory_bytes(sealed.directory_rows);
        let directory = self.read_blocks(sealed.slot, at, bytes)?;
        let header = FooterHeader::decode(&directory, home, at);
        let header = header.filter(|header| header.ledgers == sealed.directory_rows);
        let header = header.ok_or(BookieError::UnknownEntry)?;
        let rows = header.rows(&directory[BLOCK_BYTES..], home, at);
        let rows = rows.ok_or(BookieError::UnknownEntry)?;
        let whole = footer::footer_bytes(header.ledgers.into(), header.entries.into());
        let pages = self.read_blocks(sealed.slot, at + bytes, whole - bytes)?;
        let mut entries = Vec::with_capacity(header.entries as usize);
        for (number, block) in pages.chunks(BLOCK_BYTES).enumerate() {
            let offset = at + bytes + (number * BLOCK_BYTES) as u64;
            let page = Page::decode(block, home, offset).ok_or(BookieError::UnknownEntry)?;
            entries.extend((0..PAGE_ENTRIES as usize).map_while(|index| page.get(index)));
        }
        if entries.len() != header.entries as usize {
            return Err(BookieError::UnknownEntry);
        }
        Ok(Index { rows, entries, bytes: whole })
    }

    /// Reads whole blocks of a segment's file.
    pub(super) fn read_blocks(
        &self,
        slot: u32,
        offset: u64,
        bytes: u64,
    ) -> Result<bytes::Bytes, BookieError> {
        let mut buffer = AlignedBuffer::new(usize::try_from(bytes).unwrap_or(usize::MAX));
        self.read_disk(slot, offset, &mut buffer)?;
        Ok(buffer.into_bytes())
    }
}
