//! [`Rewriter`]: writes what still counts of some segments into a new, sorted one.
//!
//! `reclaim` decides which, and has the invariants. The work is done in steps, one read or one
//! write each: the sources' indexes are read and sorted; then, as much as fits into memory at a
//! time, records are read in the order in which they lie, and written in the order of ledgers.
//! Every record is verified before it is copied.

use std::sync::Arc;

use bytes::Bytes;
use geminga_proto::id::{EntryId, Lac, LedgerId, LedgerToken, SegmentId};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{ReadRequest, StoredEntry};

use super::Log;
use super::background::Step;
use super::chore::Preparation;
use super::codec::Home;
use super::footer::{self, Place, Row};
use super::group::{GroupBuffer, Link};
use super::index::{Index, Salvaged};
use super::keeper;
use super::manifest::{Sealed, SlotState};
use super::reader::{Located, verified};
use super::reclaim::{Rewrite, RewritePlan};
use super::record::{Record, RecordKind};
use super::segment::{self, DATA_START};
use super::state::{LogState, SealedSegment};
use super::table::Fence;
use crate::device::{DeviceError, DeviceFile};

/// Most bytes that one step reads, unless one record is larger.
const SPAN_BYTES: u64 = 1 << 20;
/// Records farther apart are read separately.
const MAX_GAP_BYTES: u64 = 32 << 10;

/// A rewrite under way.
#[derive(Debug)]
pub(super) struct Rewriter {
    home: Home,
    file: Arc<dyn DeviceFile>,
    capacity_bytes: u64,
    /// Whose records the sources have, sorted.
    ledgers: Vec<(LedgerId, LedgerToken)>,
    /// By ledger and entry. Those before `copied` have their new places.
    items: Vec<Item>,
    copied: usize,
    batch: Option<Batch>,
    /// End of the last group.
    tail: u64,
    last_group: Link,
    buffer: GroupBuffer,
    /// What the simulation has planted.
    #[cfg(any(test, feature = "simulation"))]
    planted: Option<crate::defect::Defect>,
}

/// An entry that is copied.
#[derive(Debug, Clone, Copy)]
struct Item {
    ledger: LedgerId,
    /// Where it is: in a source, or in the copy once it is `copied`.
    located: Located,
    copied: bool,
}

/// What is read and written at a time.
#[derive(Debug)]
struct Batch {
    /// Behind the last item of it.
    end: usize,
    /// Items of each read that is still to be done, by place.
    spans: Vec<Vec<usize>>,
    /// What was read, by item from `copied` on; `None`: not yet, or its ledger is gone.
    records: Vec<Option<(Lac, Bytes)>>,
}

/// Why a rewrite can't go on.
enum Stop {
    /// A record of this segment can't be had.
    Blocked(SegmentId),
    /// The copy takes more than was planned for it.
    TooLarge,
    Device(DeviceError),
}

impl From<DeviceError> for Stop {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

impl Log {
    /// Begins a rewrite, if one is worth it, or does a step of the one that is under way.
    pub(super) fn rewrite_step(
        &self,
        rewriter: &mut Option<Rewriter>,
    ) -> Result<Step, DeviceError> {
        let stepped = match rewriter {
            Some(under_way) => match self.advance(under_way) {
                Ok(Some(moved)) => return Ok(Step::Moved(moved)),
                Ok(None) => self.finish(under_way),
                // It goes on where it was.
                Err(Stop::Device(error @ DeviceError::TooManyFiles { .. })) => return Err(error),
                Err(stop) => Err(stop),
            },
            None => {
                let plan = self.with_state(LogState::rewrite_plan);
                let Some(plan) = plan else { return Ok(Step::Nothing) };
                match self.begin(&plan) {
                    Ok((begun, moved)) => {
                        *rewriter = Some(begun);
                        return Ok(Step::Moved(moved));
                    }
                    Err(stop) => Err(stop),
                }
            }
        };
        *rewriter = None;
        match stepped {
            Ok(moved) => Ok(Step::Moved(moved)),
            Err(Stop::Blocked(segment)) => {
                tracing::warn!(%segment, "a segment can't be rewritten before it is mended");
                self.suspect(segment);
                self.state.lock().rewrite_ended(Some(segment));
                Ok(Step::Moved(0))
            }
            Err(Stop::TooLarge) => {
                tracing::error!("a rewrite doesn't fit into its file; it was planned wrongly");
                let mut state = self.state.lock();
                let source = state.rewrite.as_ref().and_then(|it| it.sources.first().copied());
                // Else it would be planned again as it was.
                state.rewrite_ended(source);
                Ok(Step::Nothing)
            }
            // Somebody else has filled the disk meanwhile.
            Err(Stop::Device(DeviceError::Full { name })) => {
                tracing::info!(name, "no space to rewrite segments");
                self.state.lock().rewrite_ended(None);
                Ok(Step::Rest)
            }
            Err(Stop::Device(error)) => {
                self.state.lock().rewrite_ended(None);
                Err(error)
            }
        }
    }

    /// Uses an id and a file up, and reads the sources' indexes: a disk that is full by now is met
    /// before that has cost anything.
    fn begin(&self, plan: &RewritePlan) -> Result<(Rewriter, u64), Stop> {
        for (_, sealed) in &plan.sources {
            self.can_open(sealed.slot)?;
        }
        let sources = plan.sources.iter().map(|(segment, _)| *segment).collect();
        let (home, slot, capacity_bytes, file) = self.claim_target(plan.target, sources)?;
        let (mut ledgers, mut items, mut moved) = (Vec::new(), Vec::new(), 0);
        for (segment, sealed) in &plan.sources {
            let index = self.index(*segment, sealed).ok();
            let index = index.or_else(|| self.salvaged(*segment, sealed));
            let index = index.ok_or(Stop::Blocked(*segment))?;
            moved += index.bytes;
            ledgers.extend(index.rows.iter().map(|row| (row.ledger, row.token)));
            let counts = |row: &Row| self.with_state(|state| state.counts(row.ledger, *segment));
            for (row, entries) in index.by_ledger().filter(|(row, _)| counts(row)) {
                let (ledger, slot) = (row.ledger, sealed.slot);
                items.extend(entries.iter().map(|(entry, place)| {
                    let located = Located { entry: *entry, segment: *segment, slot, place: *place };
                    Item { ledger, located, copied: false }
                }));
            }
        }
        ledgers.sort_unstable();
        ledgers.dedup();
        self.with_state(|state| {
            ledgers.retain(|(id, _)| state.table.contains_key(id));
            items.retain(|item| state.table.contains_key(&item.ledger));
        });
        // Of several copies the newest comes first, and stays.
        items.sort_unstable_by_key(|item| {
            let located = &item.located;
            (
                item.ledger,
                located.entry,
                std::cmp::Reverse((located.segment, located.place.offset())),
            )
        });
        items.dedup_by_key(|item| (item.ledger, item.located.entry));
        tracing::debug!(segment = %home.segment, slot, entries = items.len(), "rewriting segments");
        let rewriter = Rewriter {
            home,
            file,
            capacity_bytes,
            ledgers,
            items,
            copied: 0,
            batch: None,
            tail: DATA_START,
            last_group: Link::default(),
            buffer: GroupBuffer::default(),
            #[cfg(any(test, feature = "simulation"))]
            planted: self.with_state(|state| state.limits.planted),
        };
        Ok((rewriter, moved))
    }

    /// A damaged index without what it has lost, if that is known and nothing of it is still
    /// damaged: then all that counts of it is whole elsewhere. What isn't known yet is noted.
    fn salvaged(&self, segment: SegmentId, sealed: &SealedSegment) -> Option<Index> {
        let Salvaged { index, pages, lost } = self.salvage(segment, sealed);
        let looked = |state: &LogState| {
            (state.damaged.knows_pages(segment, &pages), state.damaged.has(segment))
        };
        let (known, has_damage) = self.with_state(looked);
        if !known {
            self.lose_index(segment, pages, &lost);
        }
        (known && !has_damage).then_some(index)
    }

    /// Makes the manifest know the copy's id as used, and gives it a file with a header.
    fn claim_target(
        &self,
        target: Preparation,
        sources: Vec<SegmentId>,
    ) -> Result<(Home, u32, u64, Arc<dyn DeviceFile>), DeviceError> {
        let device = self.device.as_ref();
        let mut manifest = self.with_state(|state| state.manifest.clone());
        let (slot, file) = match target {
            Preparation::Reuse(slot) => (slot, device.open(&segment::file_name(slot.number))?),
            Preparation::Create { capacity_bytes } => {
                keeper::create_slot(device, &self.copies, &mut manifest, capacity_bytes)?
            }
        };
        let id = manifest.next_segment;
        manifest.next_segment = id.next();
        manifest.store(&self.copies)?;
        self.state.lock().rewrite_begun(manifest, Rewrite { slot: slot.number, sources });
        let header = segment::encode_header(id, self.instance, slot.capacity_bytes);
        file.write_at(0, header.as_slice())?;
        let home = Home { instance: self.instance, segment: id };
        Ok((home, slot.number, slot.capacity_bytes, file))
    }

    /// Reads or writes a piece; how many bytes, or `None` once everything is copied.
    fn advance(&self, rewriter: &mut Rewriter) -> Result<Option<u64>, Stop> {
        if rewriter.batch.is_none() {
            if rewriter.copied == rewriter.items.len() {
                return Ok(None);
            }
            let batch = self.with_state(|state| {
                rewriter.plan_batch(self.rewrite_buffer_bytes, |ledger| {
                    state.table.contains_key(&ledger)
                })
            });
            rewriter.batch = Some(batch);
        }
        let Some(batch) = &mut rewriter.batch else { return Ok(None) };
        let next = batch.spans.last().and_then(|span| rewriter.items.get(*span.first()?));
        if let Some(item) = next {
            self.can_open(item.located.slot)?;
        }
        if let Some(span) = batch.spans.pop() {
            return self.read_span(&rewriter.items, rewriter.copied, batch, &span).map(Some);
        }
        let max_group_bytes = self.with_state(|state| state.limits.max_group_bytes);
        Ok(Some(rewriter.write_group(max_group_bytes)?))
    }

    /// Reads neighbours and verifies each.
    fn read_span(
        &self,
        items: &[Item],
        first: usize,
        batch: &mut Batch,
        span: &[usize],
    ) -> Result<u64, Stop> {
        let (Some(start), Some(end)) = (span.first(), span.last()) else { return Ok(0) };
        let (start, end) = (items[*start].located, items[*end].located);
        let block = crate::device::BLOCK_BYTES as u64;
        let from = start.place.offset() / block * block;
        let len = end.place.end().next_multiple_of(block) - from;
        let bytes = self.read_blocks(start.slot, from, len);
        for index in span {
            let Item { ledger, located, .. } = items[*index];
            let at = usize::try_from(located.place.offset() - from).unwrap_or(usize::MAX);
            let home = self.home(located.segment);
            let read = bytes.as_ref().ok();
            let read = read.and_then(|bytes| verified(bytes, at, home, ledger, &located));
            // Damaged here; another copy may be whole.
            let read = read.or_else(|| self.read_anywhere(ledger, located.entry));
            // Its place in the copy is planned by its length.
            let fits =
                |read: &StoredEntry| read.payload.len() == located.place.payload_bytes as usize;
            let Some(stored) = read.filter(fits) else {
                // What counts no more since then is left out like what was deleted.
                if self.with_state(|state| !state.counts(ledger, located.segment)) {
                    continue;
                }
                return Err(Stop::Blocked(located.segment));
            };
            // Without what lies between the records, which would be kept along with them.
            let payload = Bytes::copy_from_slice(&stored.payload);
            batch.records[*index - first] = Some((stored.lac, payload));
        }
        Ok(len)
    }

    /// An entry from whatever segment has it whole.
    pub(super) fn read_anywhere(&self, ledger: LedgerId, entry: EntryId) -> Option<StoredEntry> {
        let (max_entries, max_bytes, fence) = (1, u64::MAX, None);
        let request = ReadRequest { ledger, first: entry, max_entries, max_bytes, fence };
        self.read_from_disk(&request)
    }

    /// Writes the copy's index, then the manifest that has it in place of its sources.
    fn finish(&self, rewriter: &Rewriter) -> Result<u64, Stop> {
        let (rows, places) = self.with_state(|state| {
            rewriter.index(|id| {
                let ledger = state.table.get(&id)?;
                Some((ledger.lac(), ledger.fence != Fence::None))
            })
        });
        let Rewriter { home, file, tail, .. } = rewriter;
        let mut manifest = self.with_state(|state| state.manifest.clone());
        let Some(rewrite) = self.with_state(|state| state.rewrite.clone()) else { return Ok(0) };
        let useless = self.with_state(|state| state.useless_files(&rewrite.sources));
        for source in &rewrite.sources {
            if let Some(slot) = manifest.slot_of_mut(*source) {
                slot.free();
            }
        }
        manifest.slots.retain(|slot| !useless.contains(&slot.number));
        let index = footer::encode(*home, *tail, *tail, &rows, &places);
        let end = tail + index.as_slice().len() as u64;
        let mut shrunk = false;
        if end > rewriter.capacity_bytes {
            return Err(Stop::TooLarge);
        }
        // What nobody lives in any more needs no copy.
        if !rows.is_empty() {
            file.write_at(*tail, index.as_slice())?;
            rewriter.sync()?;
            // As `reclaim` has planned it: what isn't given back is less than a copy must gain.
            let least = self.with_state(|state| state.limits.least_segment_bytes);
            shrunk = end + least / 2 <= rewriter.capacity_bytes;
            let slots = manifest.slots.iter_mut();
            for slot in slots.filter(|slot| slot.number == rewrite.slot) {
                slot.state = SlotState::Sealed(Sealed {
                    segment: home.segment,
                    data_end: *tail,
                    ledgers: u32::try_from(rows.len()).unwrap_or(u32::MAX),
                    entries: u32::try_from(places.len()).unwrap_or(u32::MAX),
                    highest_ledger: rows.last().map_or(LedgerId(0), |row| row.ledger),
                    damaged: false,
                    sorted: true,
                    verified_ms: self.env.clock.wall_ms(),
                });
                slot.capacity_bytes = if shrunk { end } else { slot.capacity_bytes };
            }
        }
        manifest.store(&self.copies)?;
        if shrunk {
            file.truncate(end)?;
            file.sync_length()?;
        }
        let ledgers: Vec<LedgerId> = rewriter.ledgers.iter().map(|(id, _)| *id).collect();
        let mut state = self.state.lock();
        state.rewritten(manifest, home.segment, &rows, &ledgers);
        rewriter.tell_mended(&mut state, &rows);
        state.counters.rewritten_bytes += if rows.is_empty() { *tail } else { end };
        drop(state);
        self.remove_files(&useless)?;
        self.wake_all();
        tracing::debug!(segment = %home.segment, sources = rewrite.sources.len(), "rewritten");
        Ok(end - tail)
    }
}

impl Rewriter {
    /// As many of the next items as memory is for, and the reads that bring them.
    fn plan_batch(&self, buffer_bytes: u64, lives: impl Fn(LedgerId) -> bool) -> Batch {
        let (mut end, mut bytes) = (self.copied, 0);
        let mut wanted = Vec::new();
        while let Some(item) = self.items.get(end) {
            let stored = item.located.place.stored_bytes();
            if bytes + stored > buffer_bytes && end > self.copied {
                break;
            }
            if lives(item.ledger) {
                bytes += stored;
                wanted.push(end);
            }
            end += 1;
        }
        let located = |index: &usize| self.items[*index].located;
        wanted
            .sort_unstable_by_key(|index| (located(index).segment, located(index).place.offset()));
        let mut spans: Vec<Vec<usize>> = Vec::new();
        for index in wanted {
            let next = located(&index);
            let joins = spans.last().and_then(|span| Some((span.first()?, span.last()?)));
            let joins = joins.is_some_and(|(first, last)| {
                let (first, last) = (located(first), located(last));
                first.segment == next.segment
                    && next.place.offset() <= last.place.end() + MAX_GAP_BYTES
                    && next.place.end() <= first.place.offset() + SPAN_BYTES
            });
            match spans.last_mut().filter(|_| joins) {
                Some(span) => span.push(index),
                None => spans.push(vec![index]),
            }
        }
        // They are taken from the end.
        spans.reverse();
        Batch { end, spans, records: vec![None; end - self.copied] }
    }

    /// Writes the next records that were read as one group; how many bytes.
    fn write_group(&mut self, max_group_bytes: u32) -> Result<u64, Stop> {
        let Some(batch) = &mut self.batch else { return Ok(0) };
        let first = batch.end - batch.records.len();
        self.buffer.clear();
        let mut highest = LedgerId(0);
        while self.copied < batch.end {
            let item = &mut self.items[self.copied];
            if let Some((lac, payload)) = &batch.records[self.copied - first] {
                let before = self.buffer.len() as u64;
                let end = before + item.located.place.stored_bytes();
                if !self.buffer.is_empty() && end > u64::from(max_group_bytes) {
                    break;
                }
                let record = Record {
                    kind: RecordKind::Entry,
                    ledger: item.ledger,
                    entry: item.located.entry,
                    token: token_in(&self.ledgers, item.ledger),
                    lac: *lac,
                    payload_bytes: item.located.place.payload_bytes,
                };
                let place = Place::new(self.tail + before, record.payload_bytes);
                self.buffer.push(self.home, self.tail, &record, &Payload::from(payload.clone()));
                highest = item.ledger;
                item.located.place = place;
            }
            // From here on the place is the new one, or nobody's.
            item.copied = batch.records[self.copied - first].take().is_some();
            self.copied += 1;
        }
        if self.copied == batch.end {
            self.batch = None;
        }
        if self.buffer.is_empty() {
            return Ok(0);
        }
        self.last_group = self.buffer.seal(self.home, self.tail, self.last_group, highest);
        let group = self.buffer.as_slice();
        if self.tail + group.len() as u64 > self.capacity_bytes {
            return Err(Stop::TooLarge);
        }
        self.file.write_at(self.tail, group)?;
        self.sync()?;
        self.tail += group.len() as u64;
        Ok(group.len() as u64)
    }

    /// What was copied is whole in the copy, whatever was damaged before.
    fn tell_mended(&self, state: &mut LogState, rows: &[Row]) {
        for row in rows {
            if !state.damaged.any_of(row.ledger, row.first_entry..=row.last_entry) {
                continue;
            }
            let first = self.items.partition_point(|item| item.ledger < row.ledger);
            let items = self.items.iter().skip(first).take_while(|item| item.ledger == row.ledger);
            for item in items.filter(|item| item.copied) {
                state.mended(item.ledger, item.located.entry);
            }
        }
    }

    /// Makes what was written of the copy durable.
    fn sync(&self) -> Result<(), DeviceError> {
        #[cfg(any(test, feature = "simulation"))]
        if self.planted == Some(crate::defect::Defect::ReclaimBeforeSync) {
            return Ok(());
        }
        self.file.sync()
    }

    /// Rows of the ledgers that `known` knows, and the entries that were copied of them.
    fn index(
        &self,
        known: impl Fn(LedgerId) -> Option<(Lac, bool)>,
    ) -> (Vec<Row>, Vec<(EntryId, Place)>) {
        let mut places: Vec<(EntryId, Place)> = Vec::with_capacity(self.items.len());
        let mut rows = Vec::with_capacity(self.ledgers.len());
        let mut items = self.items.iter().peekable();
        for (ledger, token) in &self.ledgers {
            let state = known(*ledger);
            let mut row = Row {
                ledger: *ledger,
                token: *token,
                lac: state.map_or(Lac::NONE, |(lac, _)| lac),
                fenced: state.is_some_and(|(_, fenced)| fenced),
                first_index: u32::try_from(places.len()).unwrap_or(u32::MAX),
                count: 0,
                first_entry: EntryId(0),
                last_entry: EntryId(0),
                stored_bytes: 0,
            };
            while let Some(item) = items.next_if(|item| item.ledger <= *ledger) {
                if state.is_none() || !item.copied {
                    continue;
                }
                let Located { entry, place, .. } = item.located;
                row.first_entry = if row.count == 0 { entry } else { row.first_entry };
                row.last_entry = entry;
                row.count += 1;
                row.stored_bytes += place.stored_bytes();
                places.push((entry, place));
            }
            if state.is_some() {
                rows.push(row);
            }
        }
        (rows, places)
    }
}

fn token_in(ledgers: &[(LedgerId, LedgerToken)], id: LedgerId) -> LedgerToken {
    let at = ledgers.binary_search_by_key(&id, |(ledger, _)| *ledger);
    // Items are of ledgers that are listed.
    at.ok().and_then(|at| ledgers.get(at)).map_or(LedgerToken(0), |(_, token)| *token)
}
