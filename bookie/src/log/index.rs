//! [`Index`]: all that a sealed segment's footer says, read and verified at once.
//!
//! For whoever goes through a whole segment; a read of single entries uses cached pages (`reader`).
//! Of one that is damaged, [`Salvaged`] is what can still be had: what its directory said of live
//! ledgers is in memory, and each page stands for itself.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use geminga_proto::id::{EntryId, Lac, LedgerId, SegmentId};
use geminga_proto::storage::BookieError;

use super::Log;
use super::footer::{self, FooterHeader, PAGE_ENTRIES, Page, Place, Row};
use super::state::{LogState, SealedSegment};
use super::table::SegmentRef;
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

/// What is left of a footer that is damaged.
#[derive(Debug)]
pub(super) struct Salvaged {
    /// Of ledgers that live, without what the lost pages list.
    pub index: Index,
    /// Pages that can't be read.
    pub pages: BTreeSet<u32>,
    /// Among these entries are all that the lost pages list. Where a ledger has gaps there, others
    /// are, too.
    pub lost: Vec<(LedgerId, RangeInclusive<EntryId>)>,
}

impl LogState {
    /// What live ledgers have in a segment, sorted, without its entries.
    fn rows_in(&self, segment: SegmentId) -> Vec<Row> {
        let row = |(id, ledger): (&LedgerId, &super::table::Ledger)| {
            let held = ledger.refs.iter().find(|held| held.segment == segment)?;
            let SegmentRef { first_entry, last_entry, first_index, count, stored_bytes, .. } =
                *held;
            Some(Row {
                ledger: *id,
                token: ledger.token,
                lac: Lac::NONE,
                fenced: false,
                first_index,
                count,
                first_entry,
                last_entry,
                stored_bytes,
            })
        };
        let mut rows: Vec<Row> = self.table.iter().filter_map(row).collect();
        rows.sort_unstable_by_key(|row| row.ledger);
        rows
    }
}

impl Log {
    /// What can be had of an index that can't be read as a whole.
    pub(super) fn salvage(&self, segment: SegmentId, sealed: &SealedSegment) -> Salvaged {
        let mut rows = self.with_state(|state| state.rows_in(segment));
        let (mut entries, mut pages) = (Vec::new(), BTreeSet::new());
        let (mut lost, mut bytes) = (Vec::new(), 0);
        // Rows follow each other in the pages, too.
        let mut open: Option<u32> = None;
        for row in &mut rows {
            let at = row.first_index..row.first_index.saturating_add(row.count);
            row.first_index = u32::try_from(entries.len()).unwrap_or(u32::MAX);
            row.count = 0;
            // From where on entries are lost.
            let (mut from, mut missing) = (row.first_entry, false);
            for position in at {
                let number = position / PAGE_ENTRIES;
                if open.replace(number) != Some(number) {
                    bytes += BLOCK_BYTES as u64;
                }
                let found = Some(position).filter(|_| !pages.contains(&number));
                let found = found.and_then(|at| self.listed_at(segment, sealed, at));
                let Some((entry, place)) = found else {
                    pages.insert(number);
                    missing = true;
                    continue;
                };
                if missing && let Some(before) = entry.previous() {
                    lost.push((row.ledger, from..=before));
                }
                (from, missing) = (entry.next(), false);
                row.count += 1;
                entries.push((entry, place));
            }
            if missing {
                lost.push((row.ledger, from..=row.last_entry));
            }
        }
        Salvaged { index: Index { rows, entries, bytes }, pages, lost }
    }

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
