//! What the keeper does beside the log: the part of [`LogState`] that decides it.
//!
//! Chores change the manifest, one at a time: preparing the next segment, sealing full ones,
//! recycling those without a live ledger, removing surplus files, deleting ledgers.
//! The decisions are here and pure; `keeper` performs them.
//!
//! Reclaim's rule: a sealed segment is freed only when no live ledger has any record in it. A
//! segment whose live ledgers have nothing but fences or states there gets these *carried*: they
//! are logged again, and only when that is durable is the old segment let go. So token, fence and
//! last-add-confirmed of a ledger live as long as the ledger does.

use std::collections::BTreeMap;
use std::sync::Arc;

use geminga_proto::id::{EntryId, LedgerId, SegmentId};
use geminga_proto::payload::Payload;

use super::footer::{Place, Row};
use super::group::Link;
use super::manifest::{Manifest, Sealed, Slot, SlotState};
use super::record::{Record, RecordKind};
use super::state::{LogState, SealedSegment, Unsealed};
use super::table::Fence;
use crate::device::{BLOCK_BYTES, DeviceFile};
use crate::done::Done;

/// Something for the keeper to do.
#[derive(Debug)]
pub(crate) enum Chore {
    Prepare(Preparation),
    Seal(SealJob),
    /// Frees segments without a live ledger.
    Recycle(Vec<SegmentId>),
    /// Removes free files beyond the spare ones, or too small to be of use.
    Trim(Vec<u32>),
    /// Notes the revision of the metadata at which these ledgers were gone, and deletes them.
    Forget {
        revision: u64,
        ledgers: Vec<LedgerId>,
    },
}

/// Where the next segment comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Preparation {
    Reuse(Slot),
    Create { capacity_bytes: u64 },
}

/// A segment that gets no more groups, with all that its footer says.
#[derive(Debug)]
pub(crate) struct SealJob {
    pub segment: SegmentId,
    pub slot: u32,
    /// If it is open anyway.
    pub file: Option<Arc<dyn DeviceFile>>,
    pub data_end: u64,
    pub last_group: Link,
    pub highest_ledger: LedgerId,
    pub damaged: bool,
    /// Gives unused space back: the segment ends long before its file.
    pub shrink: bool,
    /// One row for each live ledger, sorted; places are filled in from the entries.
    rows: Vec<Row>,
    entries: Arc<BTreeMap<(LedgerId, EntryId), Place>>,
}

impl SealJob {
    /// The footer's rows and entries. Entries of ledgers that are gone are left out.
    pub(crate) fn index(&self) -> (Vec<Row>, Vec<(EntryId, Place)>) {
        let mut rows = self.rows.clone();
        let mut places = Vec::with_capacity(self.entries.len());
        for row in &mut rows {
            row.first_index = u32::try_from(places.len()).unwrap_or(u32::MAX);
            let range = (row.ledger, EntryId(0))..=(row.ledger, EntryId(u64::MAX));
            for ((_, entry), place) in self.entries.range(range) {
                if row.count == 0 {
                    row.first_entry = *entry;
                }
                row.last_entry = *entry;
                row.count += 1;
                row.stored_bytes += place.stored_bytes();
                places.push((*entry, *place));
            }
        }
        (rows, places)
    }
}

impl LogState {
    /// The most urgent thing to do, if any.
    pub(crate) fn next_chore(&mut self) -> Option<Chore> {
        if self.poisoned.is_some() {
            return None;
        }
        // A close writes what was accepted, which may take more than the active segment has. On a
        // full disk, what is left is rather reclaim's until somebody needs it.
        let ahead = !self.closing && self.ordinary_free_bytes() > 0;
        if self.next.is_none()
            && (ahead || self.has_work())
            && let Some(preparation) = self.preparation()
        {
            return Some(Chore::Prepare(preparation));
        }
        if let Some(full) = self.sealing.front()
            && self.in_flight != Some(full.segment)
        {
            let job = self.seal_job(full, false, false);
            return Some(Chore::Seal(job));
        }
        let dead: Vec<SegmentId> = self
            .sealed
            .iter()
            .filter(|(segment, sealed)| self.is_dead(sealed) && !self.is_source(**segment))
            .map(|(segment, _)| *segment)
            .collect();
        if !dead.is_empty() {
            return Some(Chore::Recycle(dead));
        }
        self.carry_states();
        let surplus = self.surplus();
        if !surplus.is_empty() {
            return Some(Chore::Trim(surplus));
        }
        let news =
            self.wanted_revision != self.manifest.metadata_revision || !self.doomed.is_empty();
        news.then(|| Chore::Forget {
            revision: self.wanted_revision,
            ledgers: self.doomed.iter().copied().collect(),
        })
    }

    /// True if no live ledger can have a record in the segment. What a damaged or unreadable one
    /// holds isn't known; but ids rise, so it is over once every ledger that exists is younger.
    fn is_dead(&self, sealed: &SealedSegment) -> bool {
        if sealed.readable && !sealed.damaged {
            return sealed.live == 0;
        }
        sealed.live == 0 && self.lowest_ledger.is_some_and(|lowest| sealed.highest_ledger < lowest)
    }

    /// Where the next segment can come from. Notes it if there is no space for one but for what
    /// reclaim needs.
    pub(crate) fn preparation(&mut self) -> Option<Preparation> {
        if self.no_space {
            return None;
        }
        let preparation = self.first_preparation().filter(|preparation| match preparation {
            Preparation::Reuse(slot) => self.leaves_a_target(Some(slot.number), 0),
            Preparation::Create { capacity_bytes } => self.leaves_a_target(None, *capacity_bytes),
        });
        self.no_space = preparation.is_none();
        preparation
    }

    /// Where the first segment of a start can come from, which may be the last space that there is.
    pub(crate) fn first_preparation(&self) -> Option<Preparation> {
        let least = self.limits.least_segment_bytes;
        let free = self.spare_slots().filter(|slot| slot.capacity_bytes >= least);
        // Blocks that were written before are faster to write, and larger files roll less often.
        if let Some(slot) = free.max_by_key(|slot| (slot.written, slot.capacity_bytes)) {
            return Some(Preparation::Reuse(*slot));
        }
        let unmade = self.unmade_bytes();
        let block = BLOCK_BYTES as u64;
        // Doubling: a small installation keeps small files, a busy one soon has full-grown ones.
        let grown = self.allocated_bytes.max(self.limits.first_segment_bytes);
        let capacity_bytes = (grown / block * block).min(self.limits.segment_bytes).min(unmade);
        (capacity_bytes >= least).then_some(Preparation::Create { capacity_bytes })
    }

    /// All that sealing `unsealed` needs.
    pub(crate) fn seal_job(&self, unsealed: &Unsealed, damaged: bool, shrink: bool) -> SealJob {
        let mut rows: Vec<Row> = unsealed
            .ledgers
            .iter()
            .filter_map(|id| {
                let ledger = self.table.get(id)?;
                Some(Row {
                    ledger: *id,
                    token: ledger.token,
                    lac: ledger.lac(),
                    fenced: ledger.fence != Fence::None,
                    first_index: 0,
                    count: 0,
                    first_entry: EntryId(0),
                    last_entry: EntryId(0),
                    stored_bytes: 0,
                })
            })
            .collect();
        rows.sort_unstable_by_key(|row| row.ledger);
        let entries = Arc::clone(&unsealed.entries);
        #[cfg(any(test, feature = "simulation"))]
        let entries = match self.limits.planted {
            Some(crate::defect::Defect::IndexLacksLast) => {
                let mut entries = (*entries).clone();
                entries.pop_last();
                Arc::new(entries)
            }
            _ => entries,
        };
        SealJob {
            segment: unsealed.segment,
            slot: unsealed.slot,
            file: unsealed.file.clone(),
            data_end: unsealed.tail,
            last_group: unsealed.last_group,
            highest_ledger: self.highest_ledger,
            damaged,
            shrink,
            rows,
            entries,
        }
    }

    /// The manifest names a new segment: it can take groups.
    pub(crate) fn prepared(&mut self, manifest: Manifest, next: Unsealed) {
        self.install(manifest);
        self.next = Some(next);
    }

    /// The segment's footer and the manifest that says so are durable.
    pub(crate) fn sealed(&mut self, manifest: Manifest, segment: SegmentId, rows: &[Row]) {
        self.install(manifest);
        self.sealing.retain(|unsealed| unsealed.segment != segment);
        self.counters.sealed_segments += 1;
        let Some(slot) = self.manifest.slot_of(segment).copied() else { return };
        let SlotState::Sealed(sealed) = slot.state else { return };
        self.attach(&slot, &sealed, rows, true);
    }

    /// Takes a sealed segment with its ledgers into memory.
    pub(crate) fn attach(&mut self, slot: &Slot, sealed: &Sealed, rows: &[Row], readable: bool) {
        let (mut live, mut live_with_entries) = (0, 0);
        let (mut live_entries, mut live_bytes) = (0, 0);
        for row in rows {
            // Deleted while the footer was being written.
            let Some(ledger) = self.table.get_mut(&row.ledger) else { continue };
            ledger.insert_ref(sealed.segment, row);
            live += 1;
            live_with_entries += u32::from(row.count > 0);
            live_entries += u64::from(row.count);
            live_bytes += row.stored_bytes;
        }
        let segment = SealedSegment {
            slot: slot.number,
            data_end: sealed.data_end,
            directory_rows: sealed.ledgers,
            live,
            live_with_entries,
            live_entries,
            live_bytes,
            readable,
            damaged: sealed.damaged,
            highest_ledger: sealed.highest_ledger,
            carrying: false,
            blocked: false,
            faulty: false,
            scrubbed: None,
        };
        self.sealed.insert(sealed.segment, segment);
    }

    /// The manifest no longer names these segments.
    pub(crate) fn recycled(&mut self, manifest: Manifest, segments: &[SegmentId]) {
        self.install(manifest);
        for segment in segments {
            self.sealed.remove(segment);
            self.damaged.forget_segment(*segment);
            self.suspects.remove(segment);
        }
        let unsure = self.sealed.values().filter(|sealed| !sealed.readable || sealed.damaged);
        self.limbo_up_to = unsure.map(|sealed| sealed.highest_ledger).max();
        self.counters.recycled_segments += segments.len() as u64;
        self.no_space = false;
    }

    /// Free files that are too small, or more than are kept for re-use. On a full disk also those
    /// that are smaller than others: together they may make one that is large enough for a copy.
    fn surplus(&self) -> Vec<u32> {
        let mut free: Vec<&Slot> = self.spare_slots().collect();
        free.sort_unstable_by_key(|slot| std::cmp::Reverse((slot.capacity_bytes, slot.number)));
        let kept = self.limits.max_spare_segments as usize;
        let least = if self.is_pressed() {
            self.limits.segment_bytes
        } else {
            self.limits.least_segment_bytes
        };
        let surplus = free.iter().enumerate();
        surplus
            .filter(|(rank, slot)| *rank >= kept || slot.capacity_bytes < least)
            .map(|(_, slot)| slot.number)
            .collect()
    }

    /// Logs again what one segment alone knows of ledgers of which it has no entry.
    fn carry_states(&mut self) {
        if self.closing || self.sealed.values().any(|sealed| sealed.carrying) {
            return;
        }
        let candidate = self.sealed.iter().find(|(segment, sealed)| {
            let whole = sealed.readable && !sealed.damaged && !self.is_source(**segment);
            whole && sealed.live > 0 && sealed.live_with_entries == 0
        });
        let Some(segment) = candidate.map(|(segment, _)| *segment) else { return };
        if let Some(sealed) = self.sealed.get_mut(&segment) {
            sealed.carrying = true;
        }
        let mut held: Vec<LedgerId> = self
            .table
            .iter()
            .filter(|(_, ledger)| ledger.refs.iter().any(|held| held.segment == segment))
            .map(|(id, _)| *id)
            .collect();
        held.sort_unstable();
        for id in held {
            let Some(ledger) = self.table.get(&id) else { continue };
            let record = Record {
                kind: RecordKind::State { fenced: ledger.fence != Fence::None },
                ledger: id,
                entry: EntryId(0),
                token: ledger.token,
                lac: ledger.lac(),
                payload_bytes: 0,
            };
            self.enqueue(record, Payload::default(), Done::Nobody);
        }
    }

    /// A ledger's state is durable in a newer segment: the one it is carried from lets it go.
    pub(super) fn carried(&mut self, id: LedgerId) {
        let Some(ledger) = self.table.get_mut(&id) else { return };
        let sealed = &self.sealed;
        let is_source = |segment: SegmentId, count: u32| {
            count == 0 && sealed.get(&segment).is_some_and(|sealed| sealed.carrying)
        };
        let sources: Vec<SegmentId> = ledger
            .refs
            .iter()
            .filter(|held| is_source(held.segment, held.count))
            .map(|held| held.segment)
            .collect();
        ledger.refs.retain(|held| !sources.contains(&held.segment));
        for segment in sources {
            self.release(segment, 0, 0);
        }
    }
}
