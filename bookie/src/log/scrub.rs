//! Scrub: reads all that counts in sealed segments again and again, so that damage is found while
//! other bookies still have what it spoilt.
//!
//! A segment is verified by its index: the header block, the footer, and every entry of a ledger
//! that lives, in the order in which they lie. That is all that a reader depends on. When it was
//! last found intact is in the manifest, so a restart goes on where the last run was.
//!
//! Invariant: a segment counts as verified only if nothing that counts in it was damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use geminga_proto::env::Monotonic;
use geminga_proto::id::{EntryId, LedgerId, SegmentId};
use geminga_proto::storage::ScrubProgress;

use super::Log;
use super::background::Step;
use super::index::Salvaged;
use super::manifest::SlotState;
use super::reader::{Located, verified};
use super::segment;
use super::state::{LogState, SealedSegment};
use crate::device::{BLOCK_BYTES, DeviceError};

/// Most bytes that one step reads, unless one record is larger.
const SPAN_BYTES: u64 = 1 << 20;
/// How often a segment is verified at most because somebody has met damage there.
const SUSPECT_PAUSE: Duration = Duration::from_secs(60);

/// A scrub that somebody has asked for.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Segments to verify, and how many bytes each has.
    left: BTreeMap<SegmentId, u64>,
    total_bytes: u64,
}

/// A segment that is being verified.
#[derive(Debug)]
pub(super) struct Scrubber {
    segment: SegmentId,
    slot: u32,
    /// By place.
    entries: Vec<(LedgerId, Located)>,
    next: usize,
    damaged: u64,
}

impl LogState {
    /// Wants everything that is sealed now to be verified soon.
    pub(crate) fn ask_for_scrub(&mut self) {
        let sealed = self.sealed.iter().filter(|(_, sealed)| sealed.readable);
        self.asked.left = sealed.map(|(segment, sealed)| (*segment, sealed.data_end)).collect();
        self.asked.total_bytes = self.asked.left.values().sum();
    }

    pub(crate) fn scrub_progress(&self) -> ScrubProgress {
        // What was freed or rewritten meanwhile needs no look: its copy is verified.
        let left = self.asked.left.iter().filter(|(segment, _)| self.sealed.contains_key(segment));
        let left_bytes: u64 = left.map(|(_, bytes)| *bytes).sum();
        ScrubProgress {
            total_bytes: self.asked.total_bytes,
            done_bytes: self.asked.total_bytes.saturating_sub(left_bytes),
            running: left_bytes > 0,
            damaged_entries: self.damaged.len(),
        }
    }

    /// Which segment is to be verified now: one where somebody has met damage, or that was asked
    /// for, else the one that is due for
    /// longest.
    fn due(&self, now_ms: u64, now: Monotonic) -> Option<(SegmentId, SealedSegment)> {
        let interval = self.limits.scrub_interval;
        let interval_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        // What is being rewritten is verified record by record, and goes.
        let known = |segment: SegmentId| {
            let sealed = *self.sealed.get(&segment)?;
            (!self.is_source(segment)).then_some((segment, sealed))
        };
        let rests_since = |segment: &SegmentId, least: Duration| {
            let scrubbed = self.sealed.get(segment).and_then(|sealed| sealed.scrubbed);
            scrubbed.is_none_or(|at| now.saturating_sub(at) >= least)
        };
        let suspects = self.suspects.iter();
        let mut suspects = suspects.filter(|segment| rests_since(segment, SUSPECT_PAUSE));
        let suspect = suspects.find_map(|segment| known(*segment));
        let asked = self.asked.left.keys().find_map(|segment| known(*segment));
        let slots = self.manifest.slots.iter().filter_map(|slot| match slot.state {
            SlotState::Sealed(sealed) => Some((sealed.verified_ms, sealed.segment)),
            SlotState::Free | SlotState::Unsealed { .. } => None,
        });
        // A clock that was set back by more than it takes to get round makes no time of
        // verification last for ever.
        let is_over = |verified_ms: u64| {
            now_ms.saturating_sub(verified_ms) >= interval_ms
                || verified_ms.saturating_sub(now_ms) >= interval_ms
        };
        let due = slots.filter(|(verified_ms, _)| is_over(*verified_ms));
        // One that was found damaged keeps its time, and must not be read without end.
        let due = due.filter_map(|(verified_ms, segment)| {
            let (segment, sealed) = known(segment)?;
            let rests = sealed.scrubbed.is_some_and(|at| now.saturating_sub(at) < interval);
            (sealed.readable && !rests).then_some((verified_ms, segment, sealed))
        });
        let longest = due.min_by_key(|(verified_ms, segment, _)| (*verified_ms, *segment));
        suspect.or(asked).or(longest.map(|(_, segment, sealed)| (segment, sealed)))
    }

    /// How long ago the sealed segment was found intact that has waited longest for it.
    pub(crate) fn unverified_ms(&self, now_ms: u64) -> u64 {
        let verified = self.manifest.slots.iter().filter_map(|slot| match slot.state {
            SlotState::Sealed(sealed) => Some(sealed.verified_ms),
            SlotState::Free | SlotState::Unsealed { .. } => None,
        });
        // An older release has left 0, which is no time.
        let verified = verified.filter(|verified_ms| *verified_ms > 0);
        verified.min().map_or(0, |verified_ms| now_ms.saturating_sub(verified_ms))
    }

    /// A segment has been read; what is damaged in it was noted.
    fn scrubbed(&mut self, segment: SegmentId, now: Monotonic, intact: bool) {
        self.asked.left.remove(&segment);
        self.suspects.remove(&segment);
        let damaged = self.damaged.has(segment);
        if let Some(sealed) = self.sealed.get_mut(&segment) {
            sealed.scrubbed = Some(now);
            sealed.blocked &= !intact && damaged;
        }
    }
}

impl Log {
    /// The time of day, which verifications are noted by.
    pub(crate) fn wall_ms(&self) -> u64 {
        self.env.clock.wall_ms()
    }

    /// Verifies a piece of a segment, if one is due.
    pub(super) fn scrub_step(&self, scrubber: &mut Option<Scrubber>) -> Result<Step, DeviceError> {
        let Some(under_way) = scrubber else {
            let (now_ms, now) = (self.wall_ms(), self.env.clock.monotonic());
            let due = self.with_state(|state| state.due(now_ms, now));
            let Some((segment, sealed)) = due else { return Ok(Step::Nothing) };
            self.can_open(sealed.slot)?;
            return self.begin_scrub(segment, &sealed, scrubber);
        };
        let gone = self.with_state(|state| !state.sealed.contains_key(&under_way.segment));
        if !gone && under_way.next < under_way.entries.len() {
            self.can_open(under_way.slot)?;
            let bytes = self.verify_span(under_way);
            self.state.lock().counters.scrubbed_bytes += bytes;
            return Ok(Step::Moved(bytes));
        }
        let (segment, intact) = (under_way.segment, under_way.damaged == 0);
        *scrubber = None;
        self.conclude_scrub(segment, intact)?;
        Ok(Step::Moved(0))
    }

    /// Fails if a file can't be opened for want of a descriptor, which is no damage.
    pub(super) fn can_open(&self, slot: u32) -> Result<(), DeviceError> {
        match self.files.get(slot) {
            Err(error @ DeviceError::TooManyFiles { .. }) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn begin_scrub(
        &self,
        segment: SegmentId,
        sealed: &SealedSegment,
        scrubber: &mut Option<Scrubber>,
    ) -> Result<Step, DeviceError> {
        let slot = sealed.slot;
        let header = self.read_blocks(slot, 0, BLOCK_BYTES as u64);
        let header = header
            .ok()
            .and_then(|block| segment::check_header(&block, segment, self.instance).ok());
        let (index, damaged) = match (header, self.index(segment, sealed)) {
            (Some(()), Ok(index)) => (index, 0),
            (None, Ok(index)) => {
                self.lose_index(segment, BTreeSet::new(), &[]);
                (index, 1)
            }
            (_, Err(_)) => {
                let Salvaged { index, pages, lost } = self.salvage(segment, sealed);
                self.lose_index(segment, pages, &lost);
                (index, 1)
            }
        };
        let mut entries = Vec::new();
        self.with_state(|state| {
            let rows = index.by_ledger();
            for (row, places) in rows.filter(|(row, _)| state.counts(row.ledger, segment)) {
                entries.extend(places.iter().map(|(entry, place)| {
                    (row.ledger, Located { entry: *entry, segment, slot, place: *place })
                }));
            }
        });
        entries.sort_unstable_by_key(|(_, located)| located.place.offset());
        *scrubber = Some(Scrubber { segment, slot, entries, next: 0, damaged });
        Ok(Step::Moved(index.bytes))
    }

    /// Reads neighbours and verifies each; how many bytes.
    fn verify_span(&self, scrubber: &mut Scrubber) -> u64 {
        let rest = scrubber.entries.get(scrubber.next..).unwrap_or_default();
        let Some((_, first)) = rest.first() else { return 0 };
        let block = BLOCK_BYTES as u64;
        let start = first.place.offset() / block * block;
        let fits = |(_, located): &&(LedgerId, Located)| located.place.end() <= start + SPAN_BYTES;
        let span = &rest[..rest.iter().take_while(fits).count().max(1)];
        let end = span.iter().map(|(_, located)| located.place.end()).max().unwrap_or(start);
        let len = end.next_multiple_of(block) - start;
        let bytes = self.read_blocks(scrubber.slot, start, len).ok();
        let home = self.home(scrubber.segment);
        let is_whole = |(ledger, located): &&(LedgerId, Located)| {
            let place = located.place;
            let holds = |bytes: &Bytes, from: u64| {
                let at = usize::try_from(place.offset() - from).unwrap_or(usize::MAX);
                verified(bytes, at, home, *ledger, located).is_some()
            };
            match &bytes {
                Some(bytes) => holds(bytes, start),
                // Neighbours are no worse for one block that can't be read.
                None => self
                    .read_blocks(scrubber.slot, place.block(), place.blocks_len())
                    .is_ok_and(|bytes| holds(&bytes, place.block())),
            }
        };
        let bad: Vec<(LedgerId, Located)> =
            span.iter().filter(|entry| !is_whole(entry)).copied().collect();
        scrubber.next += span.len();
        for (ledger, located) in bad {
            let elsewhere = self.read_anywhere(ledger, located.entry).is_some();
            scrubber.damaged += u64::from(!elsewhere && self.note_damage(ledger, &located));
        }
        len
    }

    /// Notes that no copy of an entry is whole. `located`: the newest, as it was when it was looked
    /// up. True if it counts as damage: it doesn't any more if its ledger or its segment has gone
    /// meanwhile, or if a whole copy has come.
    pub(super) fn note_damage(&self, ledger: LedgerId, located: &Located) -> bool {
        let Located { entry, segment, .. } = *located;
        let news = {
            let mut state = self.state.lock();
            if !state.still_holds(segment) || !state.table.contains_key(&ledger) {
                return false;
            }
            state.damaged.note(ledger, entry..=entry, segment) > 0
        };
        // A copy that comes from now on takes the note away; one that has come since it was looked
        // up is found.
        if self.has_newer(ledger, located) {
            self.state.lock().mended(ledger, entry);
            return false;
        }
        if news {
            self.state.lock().counters.damaged_entries += 1;
            tracing::error!(%ledger, %entry, %segment, "a stored entry is damaged");
        }
        true
    }

    /// Header or index of a segment is damaged. Notes which entries can't be found for it, and that
    /// the segment is to be rewritten.
    pub(super) fn lose_index(
        &self,
        segment: SegmentId,
        pages: BTreeSet<u32>,
        lost: &[(LedgerId, RangeInclusive<EntryId>)],
    ) {
        for page in &pages {
            self.pages.forget(segment, *page);
        }
        let mut state = self.state.lock();
        let Some(sealed) = state.sealed.get_mut(&segment) else { return };
        sealed.faulty = true;
        for (ledger, entries) in lost {
            if state.counts(*ledger, segment) {
                let news = state.damaged.note(*ledger, entries.clone(), segment);
                state.counters.damaged_entries += news;
            }
        }
        state.damaged.note_pages(segment, pages);
        drop(state);
        tracing::error!(%segment, "the index of a segment is damaged");
    }

    /// Notes, durably if it is intact, that a segment has been read.
    fn conclude_scrub(&self, segment: SegmentId, intact: bool) -> Result<(), DeviceError> {
        let mut manifest = self.with_state(|state| state.manifest.clone());
        if intact
            && let Some(slot) = manifest.slot_of_mut(segment)
            && let SlotState::Sealed(sealed) = &mut slot.state
        {
            sealed.verified_ms = self.wall_ms();
            manifest.store(&self.copies)?;
            self.state.lock().install(manifest);
        }
        let now = self.env.clock.monotonic();
        self.state.lock().scrubbed(segment, now, intact);
        Ok(())
    }
}
