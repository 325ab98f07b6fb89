//! Reads consecutive entries, each verified by its checksums before it is handed out.
//!
//! What is where is looked up under the state's lock for unsealed segments, and in cached index
//! pages for sealed ones; neighbours on the disk are read together. A segment may be recycled
//! between lookup and read: its checksums, which start from the segment's id, then fail, and the
//! lookup is repeated.

use std::collections::BTreeMap;

use bytes::Bytes;
use geminga_proto::id::{EntryId, LedgerId, SegmentId};
use geminga_proto::storage::{BookieError, ReadRequest, StoredEntry};

use super::Log;
use super::codec::Home;
use super::footer::{FooterHeader, PAGE_ENTRIES, Page, Place};
use super::read_cache::Piece;
use super::record;
use super::state::{LogState, SealedSegment};
use super::table::SegmentRef;
#[cfg(any(test, feature = "simulation"))]
use crate::defect::Defect;
use crate::device::{AlignedBuffer, BLOCK_BYTES, DeviceError};

/// Records farther apart are read separately.
const MAX_GAP_BYTES: u64 = 32 * 1024;
/// Most bytes of one read from the disk, unless one record is larger.
const MAX_SPAN_BYTES: u64 = 4 * 1024 * 1024;
/// How often a read that met a recycled segment is repeated.
const ATTEMPTS: u32 = 3;
/// What a cached page costs beside its bytes.
const PAGE_OVERHEAD_BYTES: u32 = 256;

/// Index pages of sealed segments, bounded in bytes.
#[derive(Debug)]
pub(crate) struct PageCache(moka::sync::Cache<(SegmentId, u32), Page>);

impl PageCache {
    /// Forgets a page that can't be read any more.
    pub(super) fn forget(&self, segment: SegmentId, page: u32) {
        self.0.invalidate(&(segment, page));
    }

    pub(crate) fn new(max_bytes: u64) -> Self {
        let page_bytes = u32::try_from(BLOCK_BYTES).unwrap_or(u32::MAX) + PAGE_OVERHEAD_BYTES;
        let builder = moka::sync::Cache::builder().max_capacity(max_bytes);
        Self(builder.weigher(move |_, _| page_bytes).build())
    }
}

/// Where an entry is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Located {
    pub entry: EntryId,
    pub segment: SegmentId,
    pub slot: u32,
    pub place: Place,
}

/// What the state says about a ledger's entries.
struct Plan {
    /// False: nothing was ever stored of it.
    known: bool,
    /// In unsealed segments.
    recent: BTreeMap<EntryId, Located>,
    /// Sealed segments that may hold some, newest first.
    sealed: Vec<(SegmentRef, SealedSegment)>,
    /// The answer if the first entry is nowhere.
    absence: BookieError,
    /// Some of the entries are known to be damaged.
    damaged: bool,
}

impl LogState {
    fn plan(&self, ledger: LedgerId, first: EntryId, max_entries: u32) -> Plan {
        let absence = self.absence(ledger, first);
        let last = EntryId(first.0.saturating_add(u64::from(max_entries) - 1));
        let damaged = self.damaged.any_of(ledger, first..=last);
        let (recent, sealed) = (BTreeMap::new(), Vec::new());
        let mut plan = Plan { known: false, recent, sealed, absence, damaged };
        let Some(known) = self.table.get(&ledger) else { return plan };
        plan.known = true;
        // Oldest first, so that a newer copy of an entry replaces an older one.
        for unsealed in self.sealing.iter().chain([&self.active]) {
            let range = unsealed.entries.range((ledger, first)..=(ledger, last));
            for ((_, entry), place) in range {
                let (segment, slot) = (unsealed.segment, unsealed.slot);
                let located = Located { entry: *entry, segment, slot, place: *place };
                plan.recent.insert(*entry, located);
            }
        }
        let holds = |held: &&SegmentRef| {
            held.count > 0 && held.first_entry <= last && first <= held.last_entry
        };
        for held in known.refs.iter().rev().filter(holds) {
            if let Some(sealed) = self.sealed.get(&held.segment) {
                plan.sealed.push((*held, *sealed));
            }
        }
        plan
    }

    pub(super) fn still_holds(&self, segment: SegmentId) -> bool {
        self.active.segment == segment
            || self.sealing.iter().any(|unsealed| unsealed.segment == segment)
            || self.sealed.contains_key(&segment)
    }
}

/// Why one record could not be had.
enum Failure {
    /// The segment was recycled meanwhile.
    Recycled,
    Failed(BookieError),
    /// The first entry has so many bytes, more than whoever asks has room for.
    Larger(u64),
}

impl From<BookieError> for Failure {
    fn from(error: BookieError) -> Self {
        Self::Failed(error)
    }
}

/// Why nothing was read within the room there was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotRead {
    /// The first entry needs so many bytes; they were not read.
    Larger(u64),
    Failed(BookieError),
}

impl From<BookieError> for NotRead {
    fn from(error: BookieError) -> Self {
        Self::Failed(error)
    }
}

impl Log {
    /// Reads entries; see [`geminga_proto::storage::ReadResult`]. Blocks on the disk. A first entry
    /// above `room` bytes is not read.
    pub(crate) fn read(
        &self,
        request: &ReadRequest,
        room: u64,
    ) -> Result<Vec<StoredEntry>, NotRead> {
        if request.max_entries == 0
            || request.ledger > LedgerId::MAX
            || request.first > EntryId::MAX
        {
            return Err(BookieError::Invalid.into());
        }
        self.cache.wait(request.ledger, request.first);
        for _ in 0..ATTEMPTS {
            match self.try_read(request, room) {
                Ok(entries) => return Ok(entries),
                Err(Failure::Recycled) => {}
                Err(Failure::Failed(error)) => return Err(error.into()),
                Err(Failure::Larger(bytes)) => return Err(NotRead::Larger(bytes)),
            }
        }
        // Only a ledger that is being deleted under the reader comes here.
        Err(BookieError::UnknownEntry.into())
    }

    fn try_read(&self, request: &ReadRequest, room: u64) -> Result<Vec<StoredEntry>, Failure> {
        let max_entries = request.max_entries.min(self.read_limits.max_entries);
        let max_bytes = request.max_bytes.min(self.read_limits.max_bytes);
        let plan = self.state.lock().plan(request.ledger, request.first, max_entries);
        let mut entries =
            if plan.known { self.cache.get(request, max_entries, max_bytes) } else { Vec::new() };
        let Some((first, last)) = entries.first().zip(entries.last()) else {
            return self.read_stored(&plan, request, (max_entries, max_bytes), room);
        };
        let first_bytes = first.payload.len() as u64;
        if first_bytes > room {
            return Err(Failure::Larger(first_bytes));
        }
        let sent: u64 = entries.iter().map(|entry| entry.payload.len() as u64).sum();
        let left_entries = max_entries - u32::try_from(entries.len()).unwrap_or(max_entries);
        let left_bytes = max_bytes.saturating_sub(sent);
        if left_entries > 0 && left_bytes > 0 {
            let rest = ReadRequest { first: last.entry.next(), ..*request };
            let limits = (left_entries, left_bytes);
            // What is wrong with the rest, the next read says.
            let more = self.read_stored(&plan, &rest, limits, left_bytes);
            entries.extend(more.unwrap_or_default());
        }
        Ok(entries)
    }

    /// As `try_read`, but for the cache: from the disk, at most so many entries and bytes.
    fn read_stored(
        &self,
        plan: &Plan,
        request: &ReadRequest,
        (max_entries, max_bytes): (u32, u64),
        room: u64,
    ) -> Result<Vec<StoredEntry>, Failure> {
        let located = self.locate(plan, request.first, max_entries, max_bytes)?;
        let first_bytes = located.first().map_or(0, |first| u64::from(first.place.payload_bytes));
        if first_bytes > room {
            return Err(Failure::Larger(first_bytes));
        }
        let mut entries = Vec::with_capacity(located.len());
        while let Some(rest) = located.get(entries.len()..).filter(|rest| !rest.is_empty()) {
            let run = &rest[..run_length(rest)];
            let read = match self.read_run(request.ledger, run, &mut entries) {
                Err(Failure::Failed(error)) => {
                    let bad = located.get(entries.len());
                    self.read_older(plan, request.ledger, bad, error, &mut entries)
                }
                read => read,
            };
            match read {
                Ok(()) => {}
                // What was read before is worth sending; the next read says what is wrong.
                Err(_) if !entries.is_empty() => break,
                Err(failure) => return Err(failure),
            }
        }
        if plan.damaged {
            // Of these there is a whole copy, after all or by now.
            let mut state = self.state.lock();
            for (read, located) in entries.iter().zip(&located) {
                state.read_whole(request.ledger, read.entry, located.segment);
            }
        }
        for entry in entries.iter().filter(|entry| plan.recent.contains_key(&entry.entry)) {
            self.cache.keep_tail(request.ledger, entry);
        }
        Ok(entries)
    }

    /// One entry as the disk has it, from whatever segment has it whole: what is in memory proves
    /// nothing about that.
    pub(super) fn read_from_disk(&self, request: &ReadRequest) -> Option<StoredEntry> {
        for _ in 0..ATTEMPTS {
            let plan = self.state.lock().plan(request.ledger, request.first, 1);
            match self.read_stored(&plan, request, (1, u64::MAX), u64::MAX) {
                Ok(mut entries) => return entries.pop(),
                Err(Failure::Recycled) => {}
                Err(Failure::Failed(_) | Failure::Larger(_)) => return None,
            }
        }
        None
    }

    /// Whether the newest copy of an entry is another one by now than the located one, and whole.
    pub(super) fn has_newer(&self, ledger: LedgerId, located: &Located) -> bool {
        let entry = located.entry;
        let plan = self.state.lock().plan(ledger, entry, 1);
        let newest = match plan.recent.get(&entry) {
            Some(found) => Some(*found),
            None => self.locate_sealed(&plan, entry, None).ok().flatten(),
        };
        let place = |of: &Located| (of.segment, of.place);
        newest
            .filter(|newest| place(newest) != place(located))
            .is_some_and(|newest| self.read_run(ledger, &[newest], &mut Vec::new()).is_ok())
    }

    /// Entries were sent to whoever asked for them. The piece to read ahead, if any.
    pub(crate) fn sent(&self, request: &ReadRequest, entries: &[StoredEntry]) -> Option<Piece> {
        let last = entries.last()?;
        self.cache.sent(request.ledger, request.first, last.entry)
    }

    /// Reads a piece that will be asked for next. Blocks on the disk.
    pub(crate) fn read_ahead(&self, piece: &Piece) {
        let Piece { ledger, first, .. } = *piece;
        let (max_entries, max_bytes) = (u32::MAX, self.read_limits.ahead_bytes);
        let request = ReadRequest { ledger, first, max_entries, max_bytes, fence: None };
        // Whoever asks for it hears what is wrong with it.
        piece.keep(self.try_read(&request, u64::MAX).unwrap_or_default());
    }

    /// The newest copy of an entry is damaged: an older segment may have it whole. `error` is the
    /// answer if none has.
    fn read_older(
        &self,
        plan: &Plan,
        ledger: LedgerId,
        bad: Option<&Located>,
        error: BookieError,
        entries: &mut Vec<StoredEntry>,
    ) -> Result<(), Failure> {
        let Some(bad) = bad else { return Err(Failure::Failed(error)) };
        let mut before = bad.segment;
        while let Ok(Some(older)) = self.locate_sealed(plan, bad.entry, Some(before)) {
            if self.read_run(ledger, &[older], entries).is_ok() {
                return Ok(());
            }
            before = older.segment;
        }
        if error == BookieError::CorruptEntry {
            self.note_damage(ledger, bad);
        }
        Err(Failure::Failed(error))
    }

    /// Finds consecutive entries from `first` on: at least one, or why not.
    fn locate(
        &self,
        plan: &Plan,
        first: EntryId,
        max_entries: u32,
        max_bytes: u64,
    ) -> Result<Vec<Located>, Failure> {
        let mut located = Vec::new();
        let (mut entry, mut bytes) = (first, 0);
        while located.len() < max_entries as usize {
            let found = match plan.recent.get(&entry) {
                Some(found) => Ok(Some(*found)),
                None => self.locate_sealed(plan, entry, None),
            };
            let found = match found {
                Ok(Some(found)) => found,
                Ok(None) if located.is_empty() => return Err(Failure::Failed(plan.absence)),
                Err(failure) if located.is_empty() => return Err(failure),
                Ok(None) | Err(_) => break,
            };
            bytes += u64::from(found.place.payload_bytes);
            if bytes > max_bytes && !located.is_empty() {
                break;
            }
            located.push(found);
            entry = entry.next();
        }
        Ok(located)
    }

    /// Looks into the sealed segments that may hold `entry`, or into those older than `before`,
    /// newest first.
    fn locate_sealed(
        &self,
        plan: &Plan,
        entry: EntryId,
        before: Option<SegmentId>,
    ) -> Result<Option<Located>, Failure> {
        let mut failure = None;
        for (held, sealed) in &plan.sealed {
            let too_new = before.is_some_and(|before| held.segment >= before);
            if too_new || entry < held.first_entry || held.last_entry < entry {
                continue;
            }
            match self.search(held, sealed, entry) {
                Ok(Some(place)) => {
                    let (segment, slot) = (held.segment, sealed.slot);
                    return Ok(Some(Located { entry, segment, slot, place }));
                }
                Ok(None) => {}
                // An older segment may still have it.
                Err(failed) => failure = Some(failed),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Searches one segment's index.
    fn search(
        &self,
        held: &SegmentRef,
        sealed: &SealedSegment,
        entry: EntryId,
    ) -> Result<Option<Place>, Failure> {
        let (mut low, mut high) = (held.first_index, held.first_index + held.count);
        let distance = entry.0 - held.first_entry.0;
        if held.last_entry.0 - held.first_entry.0 + 1 == u64::from(held.count) {
            // No gaps: the place in the index follows.
            low += u32::try_from(distance).unwrap_or(u32::MAX);
            high = low + 1;
        }
        while low < high {
            let middle = low + (high - low) / 2;
            let (found, place) = self.at(held.segment, sealed, middle)?;
            match found.cmp(&entry) {
                std::cmp::Ordering::Equal => return Ok(Some(place)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// What a segment's index lists at a position.
    fn at(
        &self,
        segment: SegmentId,
        sealed: &SealedSegment,
        position: u32,
    ) -> Result<(EntryId, Place), Failure> {
        let page = self.page(segment, sealed, position / PAGE_ENTRIES)?;
        let unreadable = Failure::Failed(BookieError::UnknownEntry);
        page.get((position % PAGE_ENTRIES) as usize).ok_or(unreadable)
    }

    /// As there, for whoever needs no reason.
    pub(super) fn listed_at(
        &self,
        segment: SegmentId,
        sealed: &SealedSegment,
        position: u32,
    ) -> Option<(EntryId, Place)> {
        self.at(segment, sealed, position).ok()
    }

    fn page(
        &self,
        segment: SegmentId,
        sealed: &SealedSegment,
        number: u32,
    ) -> Result<Page, Failure> {
        if let Some(page) = self.pages.0.get(&(segment, number)) {
            return Ok(page);
        }
        let offset = FooterHeader::page_offset(sealed.directory_rows, sealed.data_end, number);
        let mut block = AlignedBuffer::new(BLOCK_BYTES);
        let read = self.read_disk(sealed.slot, offset, &mut block);
        read.map_err(|error| {
            self.suspect(segment);
            self.unreadable(segment, error)
        })?;
        match Page::decode(block.as_slice(), self.home(segment), offset) {
            Some(page) => {
                self.pages.0.insert((segment, number), page.clone());
                Ok(page)
            }
            None => {
                self.suspect(segment);
                Err(self.unverified(segment, BookieError::UnknownEntry))
            }
        }
    }

    /// Has a segment verified soon, in which something was found damaged that nobody has noted.
    pub(super) fn suspect(&self, segment: SegmentId) {
        let mut state = self.state.lock();
        if state.sealed.contains_key(&segment) && state.suspects.insert(segment) {
            self.call_keeper(&mut state);
        }
    }

    pub(super) fn home(&self, segment: SegmentId) -> Home {
        Home { instance: self.instance, segment }
    }

    /// Reads neighbours with one read and verifies each.
    fn read_run(
        &self,
        ledger: LedgerId,
        run: &[Located],
        entries: &mut Vec<StoredEntry>,
    ) -> Result<(), Failure> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(()) };
        let block = BLOCK_BYTES as u64;
        let start = first.place.offset() / block * block;
        let len = last.place.end().next_multiple_of(block) - start;
        let mut buffer = AlignedBuffer::new(usize::try_from(len).unwrap_or(usize::MAX));
        let read = self.read_disk(first.slot, start, &mut buffer);
        read.map_err(|error| self.unreadable(first.segment, error))?;
        let bytes = buffer.into_bytes();
        for located in run {
            let at = usize::try_from(located.place.offset() - start).unwrap_or(usize::MAX);
            let entry = verified(&bytes, at, self.home(located.segment), ledger, located);
            let corrupt = || self.unverified(located.segment, BookieError::CorruptEntry);
            #[cfg(any(test, feature = "simulation"))]
            let corrupt = || {
                let planted = self.with_state(|state| state.limits.planted);
                match planted {
                    Some(Defect::CorruptIsNoSuchEntry) => Failure::Failed(BookieError::NoSuchEntry),
                    _ => corrupt(),
                }
            };
            entries.push(entry.ok_or_else(corrupt)?);
        }
        Ok(())
    }

    pub(super) fn read_disk(
        &self,
        slot: u32,
        offset: u64,
        buffer: &mut AlignedBuffer,
    ) -> Result<(), BookieError> {
        let read =
            self.files.get(slot).and_then(|file| file.read_at(offset, buffer.as_mut_slice()));
        read.map_err(|error| {
            tracing::warn!(%error, "a segment can't be read");
            match error {
                DeviceError::Short { .. } | DeviceError::NotFound { .. } => {
                    BookieError::UnknownEntry
                }
                _ => BookieError::Io,
            }
        })
    }

    /// A file that can't be read may have been removed, or cut, because its segment was freed.
    fn unreadable(&self, segment: SegmentId, error: BookieError) -> Failure {
        if self.state.lock().still_holds(segment) {
            Failure::Failed(error)
        } else {
            Failure::Recycled
        }
    }

    /// Bytes that don't verify are damage, unless the segment is no longer what was looked up.
    fn unverified(&self, segment: SegmentId, error: BookieError) -> Failure {
        if !self.state.lock().still_holds(segment) {
            return Failure::Recycled;
        }
        tracing::warn!(%segment, %error, "stored bytes don't verify");
        Failure::Failed(error)
    }
}

/// How many of the first entries can be read together.
fn run_length(located: &[Located]) -> usize {
    let Some(first) = located.first() else { return 0 };
    let neighbours = located.windows(2).take_while(|pair| {
        let (one, next) = (&pair[0], &pair[1]);
        next.segment == first.segment
            && next.place.offset() >= one.place.end()
            && next.place.offset() - one.place.end() <= MAX_GAP_BYTES
            && next.place.end() - first.place.offset() <= MAX_SPAN_BYTES
    });
    1 + neighbours.count()
}

/// The record at `at` of `bytes`, if it is the one that was located there, intact.
pub(super) fn verified(
    bytes: &Bytes,
    at: usize,
    home: Home,
    ledger: LedgerId,
    located: &Located,
) -> Option<StoredEntry> {
    let stored = record::decode(bytes.get(at..)?, home, located.place.offset())?;
    let start = at + record::HEADER_BYTES;
    let end = start + located.place.payload_bytes as usize;
    let matches = stored.record.ledger == ledger
        && stored.record.entry == located.entry
        && stored.record.kind == record::RecordKind::Entry
        && stored.verifies(bytes.get(start..end)?);
    matches.then(|| StoredEntry {
        entry: located.entry,
        lac: stored.record.lac,
        payload: bytes.slice(start..end),
    })
}
