//! Which sealed segments are worth writing anew: the part of [`LogState`] that decides it.
//!
//! A segment none of whose ledgers lives is recycled without being read (`chore`). One of which
//! only a part counts is rewritten, with others like it, into one *sorted* segment: ledger by
//! ledger, so that what is deleted next leaves whole runs. `rewrite` does it.
//!
//! Invariants:
//! - Sources stay until the copy and its index are durable and the manifest names it; one change
//!   of the manifest brings it in and lets them go.
//! - The copy's id is used up in the durable manifest before its first byte is written, so nothing
//!   of an unfinished one can pass for a segment.
//! - A source with a record that can't be read whole, and that is nowhere else, is not let go.
//! - Adds leave space for one copy, and the log's next segment does too, so that a full disk
//!   can't stop what makes room on it.

use geminga_proto::id::{EntryId, LedgerId, SegmentId};

use super::chore::Preparation;
use super::footer::{self, Row};
use super::group;
use super::manifest::{Manifest, Slot, SlotState};
use super::segment::DATA_START;
use super::state::{LogState, Mark, SealedSegment};
use super::table::SegmentRef;
use super::writer::MAX_SEGMENT_ENTRIES;
use crate::config::Limits;
use crate::device::BLOCK_BYTES;
use crate::gc::Kept;

/// Most segments that one copy is made from.
const MAX_SOURCES: usize = 64;
/// The live share below which a segment is rewritten when the disk is nearly full.
const PRESSED_LIVE_PERCENT: u64 = 90;

/// A rewrite that is under way, as far as others must know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rewrite {
    /// The file that is written to. It is free in the manifest.
    pub slot: u32,
    /// Segments that are read.
    pub sources: Vec<SegmentId>,
}

/// What to rewrite, and into what.
#[derive(Debug, Clone)]
pub(crate) struct RewritePlan {
    pub sources: Vec<(SegmentId, SealedSegment)>,
    pub target: Preparation,
}

/// A segment that might be rewritten.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    segment: SegmentId,
    live_bytes: u64,
    entries: u64,
    ledgers: u64,
    /// What its file takes.
    capacity_bytes: u64,
    /// Its header or index is damaged.
    faulty: bool,
}

impl Candidate {
    /// Live bytes in thousandths of what it holds, so that candidates can be compared. What is
    /// faulty comes first.
    fn share(&self) -> u64 {
        if self.faulty {
            return 0;
        }
        self.live_bytes.saturating_mul(1_000) / self.capacity_bytes.max(1)
    }
}

/// What copies of some candidates take together.
#[derive(Debug, Clone, Copy, Default)]
struct Needed {
    live_bytes: u64,
    entries: u64,
    ledgers: u64,
}

impl Needed {
    fn with(self, candidate: &Candidate) -> Self {
        Self {
            live_bytes: self.live_bytes + candidate.live_bytes,
            entries: self.entries + candidate.entries,
            ledgers: self.ledgers + candidate.ledgers,
        }
    }

    /// Size of a file for it: header, groups with their padding, index.
    fn file_bytes(&self, limits: &Limits) -> u64 {
        let block = BLOCK_BYTES as u64;
        // A group ends when the next record doesn't fit, which is half full at worst, or holds one
        // record that is larger.
        let half = (u64::from(limits.max_group_bytes) / 2).max(1);
        // So does what is read into memory at a time: its last group is written as it is then.
        let batches = self.live_bytes / (limits.reclaim_buffer_bytes / 2).max(1) + 2;
        let groups = (self.live_bytes / half + batches).min(self.entries + 1);
        let around = groups * (group::HEADER_BYTES as u64 + block);
        let footer = footer::footer_bytes(self.ledgers, self.entries);
        (DATA_START + self.live_bytes + around).next_multiple_of(block) + footer
    }
}

impl LogState {
    /// What is worth rewriting now, if anything.
    pub(crate) fn rewrite_plan(&self) -> Option<RewritePlan> {
        if self.closing || self.poisoned.is_some() || self.rewrite.is_some() {
            return None;
        }
        let pressed = self.is_pressed();
        let mut candidates = self.candidates(pressed);
        candidates.sort_unstable_by_key(|candidate| (candidate.share(), candidate.segment));
        let largest = self.largest_target();
        let (mut needed, mut freed_bytes, mut faulty) = (Needed::default(), 0, false);
        let mut sources = Vec::new();
        for candidate in &candidates {
            let more = needed.with(candidate);
            let fits = more.file_bytes(&self.limits) <= largest
                && more.entries <= MAX_SEGMENT_ENTRIES
                && sources.len() < MAX_SOURCES;
            if fits {
                needed = more;
                freed_bytes += candidate.capacity_bytes;
                faulty |= candidate.faulty;
                sources.push(candidate.segment);
            }
        }
        let file_bytes = needed.file_bytes(&self.limits).max(self.limits.least_segment_bytes);
        // A copy that frees little costs more than it brings, unless there is nothing else.
        let least = self.limits.least_segment_bytes;
        let least_gain = if pressed { least } else { least.max(self.limits.segment_bytes / 4) };
        let gains = faulty || freed_bytes >= file_bytes + least_gain;
        if sources.is_empty() || !gains {
            return None;
        }
        let target = self.target(file_bytes)?;
        let known = |segment: &SegmentId| Some((*segment, *self.sealed.get(segment)?));
        Some(RewritePlan { sources: sources.iter().filter_map(known).collect(), target })
    }

    /// Little is left for ordinary adds.
    pub(crate) fn is_pressed(&self) -> bool {
        self.no_space || self.ordinary_free_bytes() < self.limits.segment_bytes * 2
    }

    fn candidates(&self, pressed: bool) -> Vec<Candidate> {
        let percent = if pressed {
            PRESSED_LIVE_PERCENT
        } else {
            u64::from(self.limits.reclaim_live_percent)
        };
        let slots = self.manifest.slots.iter();
        let candidates = slots.filter_map(|slot| {
            let SlotState::Sealed(sealed) = slot.state else { return None };
            let known = self.sealed.get(&sealed.segment)?;
            let whole = known.readable && !known.damaged && !known.blocked && !known.carrying;
            let whole = whole && !self.damaged.has(sealed.segment);
            // One without entries is recycled, or has its states carried.
            let mixed = whole && known.live_with_entries > 0;
            let sparse =
                known.live_bytes.saturating_mul(100) < slot.capacity_bytes.saturating_mul(percent);
            (mixed && (sparse || known.faulty)).then_some(Candidate {
                segment: sealed.segment,
                live_bytes: known.live_bytes,
                entries: known.live_entries,
                ledgers: known.live.into(),
                capacity_bytes: slot.capacity_bytes,
                faulty: known.faulty,
            })
        });
        candidates.collect()
    }

    /// A whole copy of an entry is durable.
    pub(super) fn mended(&mut self, ledger: LedgerId, entry: EntryId) {
        if let Some(segment) = self.damaged.mended(ledger, entry)
            && let Some(sealed) = self.sealed.get_mut(&segment)
        {
            sealed.blocked = false;
        }
    }

    /// An entry was read whole from `segment`. If that is the copy that was said to be damaged, it
    /// can be read for now, but is nowhere else.
    pub(super) fn read_whole(&mut self, ledger: LedgerId, entry: EntryId, segment: SegmentId) {
        if self.damaged.noted_in(ledger, entry) == Some(segment) {
            self.damaged.forget_pages(segment);
        }
        self.mended(ledger, entry);
    }

    /// Does what may be the end of damage: segments that it has blocked are blocked no longer.
    pub(super) fn unblocking<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> T {
        let sealed = self.sealed.iter().filter(|(_, sealed)| sealed.blocked);
        let of_damage = sealed.map(|(id, _)| *id).filter(|id| self.damaged.has(*id));
        let of_damage: Vec<SegmentId> = of_damage.collect();
        let changed = change(self);
        for segment in of_damage.into_iter().filter(|segment| !self.damaged.has(*segment)) {
            if let Some(sealed) = self.sealed.get_mut(&segment) {
                sealed.blocked = false;
            }
        }
        changed
    }

    /// Files of these segments that are of no further use: what can't be read there now, can't be
    /// trusted later.
    pub(super) fn useless_files(&self, segments: &[SegmentId]) -> Vec<u32> {
        let known = segments.iter().filter_map(|segment| self.sealed.get(segment));
        let useless = known.filter(|sealed| !sealed.readable || sealed.faulty);
        useless.map(|sealed| sealed.slot).collect()
    }

    /// Bytes of a segment that could be made now.
    fn largest_target(&self) -> u64 {
        let spare = self.spare_slots().map(|slot| slot.capacity_bytes).max().unwrap_or(0);
        spare.max(self.unmade_bytes()).min(self.limits.segment_bytes)
    }

    /// Where a copy of so many bytes can go: a spare file, the smallest that is large enough, or a
    /// new one.
    fn target(&self, file_bytes: u64) -> Option<Preparation> {
        let fitting = self.spare_slots().filter(|slot| slot.capacity_bytes >= file_bytes);
        if let Some(slot) = fitting.min_by_key(|slot| (slot.capacity_bytes, slot.number)) {
            return Some(Preparation::Reuse(*slot));
        }
        let room = self.unmade_bytes() >= file_bytes;
        room.then_some(Preparation::Create { capacity_bytes: file_bytes })
    }

    /// Free files that nobody writes to.
    pub(super) fn spare_slots(&self) -> impl Iterator<Item = &Slot> {
        let taken = self.rewrite.as_ref().map(|rewrite| rewrite.slot);
        let slots = self.manifest.slots.iter();
        slots.filter(move |slot| slot.state == SlotState::Free && Some(slot.number) != taken)
    }

    /// Bytes of the disk that no file has, in whole blocks.
    pub(super) fn unmade_bytes(&self) -> u64 {
        let block = BLOCK_BYTES as u64;
        self.total_bytes().saturating_sub(self.allocated_bytes) / block * block
    }

    /// True if a rewrite reads this segment.
    pub(super) fn is_source(&self, segment: SegmentId) -> bool {
        self.rewrite.as_ref().is_some_and(|rewrite| rewrite.sources.contains(&segment))
    }

    /// Whether a rewrite could begin even after so much of what is free has gone.
    pub(super) fn leaves_a_target(&self, slot: Option<u32>, unmade_bytes: u64) -> bool {
        // Smaller ones would have room for next to nothing.
        let least = self.limits.least_segment_bytes.max(self.limits.segment_bytes / 2);
        self.rewrite.is_some()
            || self.unmade_bytes().saturating_sub(unmade_bytes) >= least
            || self
                .spare_slots()
                .any(|spare| Some(spare.number) != slot && spare.capacity_bytes >= least)
    }

    /// The manifest knows the copy's id as used: it can be written.
    pub(crate) fn rewrite_begun(&mut self, manifest: Manifest, rewrite: Rewrite) {
        self.install(manifest);
        self.rewrite = Some(rewrite);
    }

    /// Everything that is in segments below was sent before now.
    pub(crate) fn complete_before(&self) -> SegmentId {
        self.active.segment
    }

    /// Whether entries of this ledger count in this segment.
    pub(super) fn counts(&self, ledger: LedgerId, segment: SegmentId) -> bool {
        self.table.get(&ledger).is_some_and(|known| {
            known.refs.iter().any(|held| held.segment == segment && held.count > 0)
        })
    }

    /// Drops what segments below `complete` have of these ledgers besides what is to be kept: as
    /// far as a segment has nothing else of that ledger. Its row stays, with token, fence and
    /// last-add-confirmed. Returns how many entries that were.
    pub(crate) fn keep_only(&mut self, complete: SegmentId, kept: &[Kept]) -> u64 {
        let dropped = self.unblocking(|state| state.drop_surplus(complete, kept));
        self.counters.surplus_entries += dropped;
        dropped
    }

    fn drop_surplus(&mut self, complete: SegmentId, kept: &[Kept]) -> u64 {
        let mut dropped = 0;
        for Kept { ledger: id, token, entries } in kept {
            let Some(ledger) = self.table.get_mut(id).filter(|known| known.token == *token) else {
                continue;
            };
            let is_kept = |held: &SegmentRef| {
                entries.iter().any(|range| {
                    *range.start() <= held.last_entry && held.first_entry <= *range.end()
                })
            };
            let surplus = |held: &&mut SegmentRef| {
                held.count > 0 && held.segment < complete && !is_kept(held)
            };
            for held in ledger.refs.iter_mut().filter(surplus) {
                if let Some(sealed) = self.sealed.get_mut(&held.segment) {
                    sealed.live_with_entries = sealed.live_with_entries.saturating_sub(1);
                    sealed.live_entries = sealed.live_entries.saturating_sub(held.count.into());
                    sealed.live_bytes = sealed.live_bytes.saturating_sub(held.stored_bytes);
                }
                dropped += u64::from(held.count);
                (held.count, held.stored_bytes) = (0, 0);
                self.damaged.forget_in(*id, held.segment);
            }
            self.damaged.keep_only(*id, complete, entries);
        }
        dropped
    }

    /// Gives a rewrite up. `blocked`: a source that can't be let go before it is mended.
    pub(crate) fn rewrite_ended(&mut self, blocked: Option<SegmentId>) {
        self.rewrite = None;
        if let Some(blocked) = blocked.and_then(|segment| self.sealed.get_mut(&segment)) {
            blocked.blocked = true;
        }
    }

    /// The copy with its index, and the manifest that has it in place of its sources, are durable.
    /// `ledgers`: whose records the sources had.
    pub(crate) fn rewritten(
        &mut self,
        manifest: Manifest,
        target: SegmentId,
        rows: &[Row],
        ledgers: &[LedgerId],
    ) {
        let Some(Rewrite { sources, .. }) = self.rewrite.take() else { return };
        self.install(manifest);
        for id in ledgers {
            if let Some(ledger) = self.table.get_mut(id) {
                ledger.refs.retain(|held| !sources.contains(&held.segment));
            }
        }
        self.sealed.retain(|segment, _| !sources.contains(segment));
        for source in &sources {
            // All that counted in it is in the copy, or was whole elsewhere.
            self.damaged.forget_segment(*source);
            self.suspects.remove(source);
        }
        self.counters.rewritten_segments += sources.len() as u64;
        self.no_space = false;
        let Some(slot) = self.manifest.slot_of(target).copied() else { return };
        if let SlotState::Sealed(sealed) = slot.state {
            self.attach(&slot, &sealed, rows, true);
        }
    }

    /// What adds under `mark` leave alone at least, in bytes: one copy's room, as long as there is
    /// any that somebody else on the disk hasn't taken, and some for what segments waste at their
    /// ends. The log's next segment doesn't take that room either.
    pub(super) fn least_reserve(&self, mark: Mark) -> u64 {
        let segment = self.limits.segment_bytes;
        let target = self.largest_target();
        let privileged =
            if target >= self.limits.least_segment_bytes { target + segment / 2 } else { segment };
        match mark {
            Mark::Ordinary => privileged + segment,
            Mark::Privileged => privileged,
        }
    }

    /// How much of the room that a start finds for its first segment it takes: a small part of
    /// what is left, if that is the last, so that a rewrite has room for a copy.
    pub(super) fn first_share(&self, preparation: Preparation) -> u64 {
        let (bytes, leaves_a_target) = match preparation {
            Preparation::Reuse(slot) => {
                (slot.capacity_bytes, self.leaves_a_target(Some(slot.number), 0))
            }
            Preparation::Create { capacity_bytes } => {
                (capacity_bytes, self.leaves_a_target(None, capacity_bytes))
            }
        };
        let least = self.limits.least_segment_bytes;
        let part = (bytes / 8).next_multiple_of(BLOCK_BYTES as u64).max(least);
        let splits = !leaves_a_target && bytes >= part + least;
        if splits { part } else { bytes }
    }
}
