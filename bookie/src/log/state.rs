//! [`LogState`]: the log's state machine. Records in, write plans and chores out, completions
//! back in; no I/O, clock or randomness.
//!
//! This file owns the state and admission (who may add what, now). `writer` turns the queue into
//! groups, `chore` decides what the keeper does: preparing, sealing, recycling.
//!
//! Invariants:
//! - All adds and fences of a ledger pass one queue, in order. A fence refuses adds from the
//!   moment it is queued.
//! - An entry is in an index only once its group is durable.
//! - Exactly one segment is active; at most one is next; those in `sealing` get no more groups.
//! - After `poisoned` is set no group is submitted and no chore is begun.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use geminga_proto::env::Monotonic;
use geminga_proto::id::{EntryId, Lac, LedgerId, LedgerToken, SegmentId};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{AddKind, AppendRequest, BookieError, FenceRequest, FenceResult, Lag};
use tokio::sync::oneshot;

use super::codec::Home;
use super::damaged::Damaged;
use super::footer::Place;
use super::group::Link;
use super::manifest::{Manifest, SlotState};
use super::reclaim::Rewrite;
use super::record::{self, Record, RecordKind};
use super::scrub::Asked;
use super::segment::DATA_START;
use super::table::{Fence, IdSet, Ledger, LedgerTable};
use crate::config::Limits;
#[cfg(any(test, feature = "simulation"))]
use crate::defect::Defect;
use crate::device::{DeviceFile, Space};
use crate::done::{AppendDone, Done};

/// A segment that takes groups, will take them, or waits to be sealed.
#[derive(Debug)]
pub(crate) struct Unsealed {
    pub segment: SegmentId,
    pub slot: u32,
    /// Held open, so that a write never lacks a file descriptor. None: takes no groups.
    pub file: Option<Arc<dyn DeviceFile>>,
    pub capacity_bytes: u64,
    /// End of the last group that was submitted.
    pub tail: u64,
    /// Durable entries. Shared with the seal job, which starts when it no longer changes.
    pub entries: Arc<BTreeMap<(LedgerId, EntryId), Place>>,
    /// Ledgers with any record, submitted or in the open group.
    pub ledgers: IdSet<LedgerId>,
    /// Entries, submitted or in the open group; duplicates count.
    pub entry_records: u64,
    /// Its last group.
    pub last_group: Link,
}

impl Unsealed {
    pub(crate) fn new(segment: SegmentId, slot: u32, capacity_bytes: u64) -> Self {
        Self {
            segment,
            slot,
            file: None,
            capacity_bytes,
            tail: DATA_START,
            entries: Arc::default(),
            ledgers: IdSet::default(),
            entry_records: 0,
            last_group: Link::default(),
        }
    }
}

/// A sealed segment, as far as memory knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SealedSegment {
    pub slot: u32,
    /// Where the footer begins.
    pub data_end: u64,
    /// Rows in the footer's directory.
    pub directory_rows: u32,
    /// Ledgers that still live and have any record here.
    pub live: u32,
    /// Of these, how many have entries here.
    pub live_with_entries: u32,
    /// The entries of these ledgers here.
    pub live_entries: u64,
    /// What they take, in bytes.
    pub live_bytes: u64,
    /// False if file, header or footer can't be read: what it held is unknown.
    pub readable: bool,
    /// Its index may lack entries.
    pub damaged: bool,
    /// No ledger with a higher id is in it.
    pub highest_ledger: LedgerId,
    /// The states of its ledgers without entries are on their way into the active segment.
    pub carrying: bool,
    /// A record of it couldn't be read whole, so it isn't rewritten before that is mended, or it
    /// was found intact.
    pub blocked: bool,
    /// Its header or its index is damaged: it is rewritten once nothing is damaged of which it has
    /// the only copy.
    pub faulty: bool,
    /// When it was last read through in this run.
    pub scrubbed: Option<Monotonic>,
}

/// A record that waits for its group.
#[derive(Debug)]
pub(crate) struct Pending {
    pub record: Record,
    pub payload: Payload,
    pub done: Done,
    /// When it was taken.
    pub since: Monotonic,
}

impl Pending {
    pub(crate) fn stored_bytes(&self) -> u64 {
        record::stored_bytes(self.payload.len()) as u64
    }
}

/// Which reserve an add must leave alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    Ordinary,
    Privileged,
}

/// Whether a fence must be waited for.
#[derive(Debug)]
pub(crate) enum FenceAdmission {
    /// Durable already.
    Done(FenceResult),
    /// Queued: the answer comes here.
    Queued(oneshot::Receiver<FenceResult>),
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub appended_entries: u64,
    pub appended_bytes: u64,
    pub groups: u64,
    pub written_bytes: u64,
    pub fences: u64,
    pub refused: u64,
    pub sealed_segments: u64,
    pub recycled_segments: u64,
    pub rewritten_segments: u64,
    pub rewritten_bytes: u64,
    pub deleted_ledgers: u64,
    pub surplus_entries: u64,
    pub scrubbed_bytes: u64,
    pub damaged_entries: u64,
}

/// Who is at what. Only the threads' runtime reads and writes this.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Turns {
    /// A thread is building a group.
    pub encoding: bool,
    /// That thread waits for the disk.
    pub encoder_waits: bool,
    /// It takes more records meanwhile.
    pub encoder_takes: bool,
    /// A thread is writing a group.
    pub writing: bool,
    /// Log threads end when the queue is empty.
    pub stopping: bool,
    /// There may be a chore that the keeper hasn't seen.
    pub keeper_called: bool,
    /// It had no file descriptor: until then nobody calls it.
    pub keeper_pauses_until: Monotonic,
    /// The keeper ends when there is no chore.
    pub keeper_stopping: bool,
    pub keeper_ended: bool,
}

/// The log's state. One mutex guards it; nothing that blocks runs under it.
#[derive(Debug)]
pub(crate) struct LogState {
    pub limits: Limits,
    pub table: LedgerTable,
    pub queue: VecDeque<Pending>,
    /// Bytes in the queue.
    pub queue_bytes: u64,
    /// Bytes in the queue and in groups that are not durable yet.
    pub pending_bytes: u64,
    /// Of these, what no submitted group covers yet.
    pub unplaced_bytes: u64,
    pub active: Unsealed,
    pub next: Option<Unsealed>,
    /// Full segments, oldest first.
    pub sealing: VecDeque<Unsealed>,
    pub sealed: BTreeMap<SegmentId, SealedSegment>,
    pub manifest: Manifest,
    /// The last group that was submitted.
    pub chain: Link,
    /// Segment of the group that is being written.
    pub in_flight: Option<SegmentId>,
    /// The last durable group has records and nothing follows it yet.
    pub unproven: bool,
    pub highest_ledger: LedgerId,
    /// The highest id that was seen. The bound above may be higher, where segments were lost.
    pub known_ledger: LedgerId,
    /// Ledgers up to this id may have records in segments that are lost or damaged.
    pub limbo_up_to: Option<LedgerId>,
    /// The oldest ledger that the cluster has, as of the last census.
    pub lowest_ledger: Option<LedgerId>,
    /// Why nothing is written any more.
    pub poisoned: Option<String>,
    pub closing: bool,
    /// What the disk had left, and what the log had of it, when it was last asked.
    pub disk_bytes: u64,
    /// Bytes of all segment files, and of the free ones: sums over the manifest.
    pub allocated_bytes: u64,
    pub spare_bytes: u64,
    /// No segment could be prepared for want of space, and none has come back since.
    pub no_space: bool,
    /// A revision that the manifest should know.
    pub wanted_revision: u64,
    /// What reclaim is at.
    pub rewrite: Option<Rewrite>,
    /// When whoever takes records last looked at the clock.
    pub now: Monotonic,
    /// The oldest record of the open group, and of the one in flight.
    pub open_since: Option<Monotonic>,
    pub in_flight_since: Option<Monotonic>,
    /// When an owner last appended.
    pub owned_append: Option<Monotonic>,
    /// What is known to be damaged.
    pub damaged: Damaged,
    /// A scrub that somebody has asked for.
    pub asked: Asked,
    /// Segments whose turn it is before the interval is over: somebody has met damage there.
    pub suspects: BTreeSet<SegmentId>,
    /// Ledgers that are gone at that revision, not deleted yet.
    pub doomed: BTreeSet<LedgerId>,
    pub counters: Counters,
    pub turns: Turns,
}

impl LogState {
    /// Takes an append into the queue.
    pub(crate) fn admit_append(
        &mut self,
        request: AppendRequest,
        waiter: &Arc<dyn AppendDone>,
        tag: u64,
    ) -> Result<(), BookieError> {
        let admitted = self.check_append(&request);
        if let Err(error) = admitted {
            self.counters.refused += 1;
            return Err(error);
        }
        let payload_bytes = u32::try_from(request.payload.len()).unwrap_or(u32::MAX);
        let record = Record {
            kind: RecordKind::Entry,
            ledger: request.ledger,
            entry: request.entry,
            token: request.token,
            lac: request.lac,
            payload_bytes,
        };
        if request.kind != AddKind::Recovery {
            self.owned_append = Some(self.now);
        }
        let ledger = self.ledger_mut(request.ledger, request.token);
        ledger.raise_lac(request.lac);
        let done = Done::Append { waiter: waiter.clone(), tag };
        self.enqueue(record, request.payload, done);
        Ok(())
    }

    /// Why an append can't be taken: sense, then state of the node, token, fence, then room.
    fn check_append(&self, request: &AppendRequest) -> Result<(), BookieError> {
        let sensible = request.ledger <= LedgerId::MAX
            && request.entry <= EntryId::MAX
            && request.token != LedgerToken(0)
            // An add comes before its own confirmation.
            && request.lac.0.is_none_or(|lac| lac < request.entry);
        if !sensible {
            return Err(BookieError::Invalid);
        }
        if request.payload.len() > self.limits.max_entry_bytes as usize {
            return Err(BookieError::TooLarge);
        }
        if self.poisoned.is_some() || self.closing {
            return Err(BookieError::ReadOnly);
        }
        // Whoever still writes to it or recovers it has missed that its owner changed and that it
        // was deleted: what is stored here now would be nowhere.
        if self.is_deleted(request.ledger) {
            return Err(BookieError::Fenced);
        }
        if let Some(ledger) = self.table.get(&request.ledger) {
            if ledger.token != request.token {
                return Err(BookieError::WrongToken);
            }
            if ledger.fence != Fence::None && request.kind != AddKind::Recovery {
                return Err(BookieError::Fenced);
            }
        }
        // A fence of this ledger may be among what was lost; only a recovery, which has fenced
        // it anew, may go on writing.
        if request.kind != AddKind::Recovery && self.is_in_limbo(request.ledger) {
            return Err(BookieError::ReadOnly);
        }
        let bytes = record::stored_bytes(request.payload.len()) as u64;
        let mark = match request.kind {
            AddKind::Ordinary => Mark::Ordinary,
            AddKind::StateLog | AddKind::Recovery => Mark::Privileged,
        };
        self.check_room(mark, bytes)
    }

    fn check_room(&self, mark: Mark, bytes: u64) -> Result<(), BookieError> {
        if !self.has_room(mark, bytes) {
            return Err(BookieError::DiskFull);
        }
        // One entry is always taken, however small the cap.
        if self.pending_bytes > 0 && self.pending_bytes + bytes > self.limits.max_pending_bytes {
            return Err(BookieError::Overloaded);
        }
        Ok(())
    }

    /// Takes a fence into the queue, unless the ledger is durably fenced already.
    pub(crate) fn admit_fence(
        &mut self,
        request: FenceRequest,
    ) -> Result<FenceAdmission, BookieError> {
        if request.ledger > LedgerId::MAX || request.token == LedgerToken(0) {
            return Err(BookieError::Invalid);
        }
        // It takes no adds any more, and that is durable.
        if self.is_deleted(request.ledger) {
            return Ok(FenceAdmission::Done(Ok(Lac::NONE)));
        }
        if let Some(ledger) = self.table.get(&request.ledger) {
            if ledger.token != request.token {
                return Err(BookieError::WrongToken);
            }
            if ledger.fence == Fence::Durable {
                return Ok(FenceAdmission::Done(Ok(ledger.lac())));
            }
        }
        if self.poisoned.is_some() || self.closing {
            return Err(BookieError::ReadOnly);
        }
        self.check_room(Mark::Privileged, record::stored_bytes(0) as u64)?;
        #[cfg(any(test, feature = "simulation"))]
        if self.limits.planted == Some(Defect::FenceNotWritten) {
            let ledger = self.ledger_mut(request.ledger, request.token);
            ledger.raise_fence(Fence::Durable);
            return Ok(FenceAdmission::Done(Ok(ledger.lac())));
        }
        #[cfg(any(test, feature = "simulation"))]
        let pending = match self.limits.planted {
            Some(Defect::FencedAfterSync) => Fence::None,
            _ => Fence::Pending,
        };
        #[cfg(not(any(test, feature = "simulation")))]
        let pending = Fence::Pending;
        let ledger = self.ledger_mut(request.ledger, request.token);
        ledger.raise_fence(pending);
        let record = Record {
            kind: RecordKind::Fence,
            ledger: request.ledger,
            entry: EntryId(0),
            token: request.token,
            lac: ledger.lac(),
            payload_bytes: 0,
        };
        let (sender, receiver) = oneshot::channel();
        self.enqueue(record, Payload::default(), Done::Fence(sender));
        Ok(FenceAdmission::Queued(receiver))
    }

    /// Whether ordinary adds of a ledger under this token are refused for good. A fence counts from
    /// when it is taken, as it does for adds.
    pub(crate) fn is_fenced(&self, asked: FenceRequest) -> bool {
        self.is_deleted(asked.ledger)
            || self
                .table
                .get(&asked.ledger)
                .is_some_and(|ledger| ledger.fence != Fence::None || ledger.token != asked.token)
    }

    pub(super) fn enqueue(&mut self, record: Record, payload: Payload, done: Done) {
        let pending = Pending { record, payload, done, since: self.now };
        let bytes = pending.stored_bytes();
        self.pending_bytes += bytes;
        self.unplaced_bytes += bytes;
        self.queue_bytes += bytes;
        self.queue.push_back(pending);
    }

    /// How far the log is behind those who append.
    pub(crate) fn lag(&self, now: Monotonic) -> Lag {
        let queued = self.queue.front().map(|pending| pending.since);
        let waiting = [queued, self.open_since, self.in_flight_since];
        let oldest = waiting.into_iter().flatten().min();
        let waited = oldest.map_or(Monotonic::ZERO, |since| now.saturating_sub(since));
        let oldest_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
        Lag { oldest_ms, bytes: self.pending_bytes }
    }

    fn ledger_mut(&mut self, id: LedgerId, token: LedgerToken) -> &mut Ledger {
        self.highest_ledger = self.highest_ledger.max(id);
        self.known_ledger = self.known_ledger.max(id);
        self.table.entry(id).or_insert_with(|| Ledger::new(token))
    }

    /// The highest id of a ledger that has anything in the log, had it once, or was deleted; as far
    /// as it can be told: ids of which only a lost segment told are left out.
    pub(crate) fn known_ledger(&self) -> LedgerId {
        let deleted = self.manifest.deleted.highest().unwrap_or(LedgerId(0));
        self.known_ledger.max(deleted)
    }

    /// Whether ids above the known ones may have been in what was lost.
    pub(crate) fn lost_ledgers(&self) -> bool {
        self.highest_ledger >= LedgerId::MAX
            || self.limbo_up_to.is_some_and(|limbo| limbo >= LedgerId::MAX)
    }

    /// True if the ledger is known to be gone for good.
    pub(crate) fn is_deleted(&self, ledger: LedgerId) -> bool {
        self.manifest.deleted.contains(ledger)
    }

    /// True if records of this ledger may have been lost.
    pub(crate) fn is_in_limbo(&self, ledger: LedgerId) -> bool {
        self.limbo_up_to.is_some_and(|highest| ledger <= highest)
    }

    /// What checksums in a segment of this log start from.
    pub(super) fn home(&self, segment: SegmentId) -> Home {
        Home { instance: self.manifest.instance, segment }
    }

    /// Replaces the manifest by one that is durable.
    pub(crate) fn install(&mut self, manifest: Manifest) {
        let sum = |only_free: bool| -> u64 {
            let slots = manifest.slots.iter();
            let counted = slots.filter(|slot| !only_free || slot.state == SlotState::Free);
            counted.map(|slot| slot.capacity_bytes).sum()
        };
        (self.allocated_bytes, self.spare_bytes) = (sum(false), sum(true));
        self.manifest = manifest;
    }

    /// Takes in what the disk has left now.
    pub(crate) fn note_space(&mut self, space: Space) {
        let available = space.available_bytes.saturating_sub(self.limits.keep_free_bytes);
        self.disk_bytes = available.saturating_add(self.allocated_bytes);
    }

    /// Bytes that the log may take in all.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.disk_bytes.min(self.limits.max_bytes.unwrap_or(u64::MAX))
    }

    /// Bytes that records can still take: rest of the active segment, next, free and unmade files.
    pub(crate) fn free_bytes(&self) -> u64 {
        let active = self.active.capacity_bytes.saturating_sub(self.active.tail);
        let next = self.next.as_ref().map_or(0, |next| next.capacity_bytes);
        let unmade = self.limits.usable(self.total_bytes().saturating_sub(self.allocated_bytes));
        active + next + self.spare_bytes + unmade
    }

    /// Bytes that adds under `mark` leave alone.
    pub(crate) fn reserve_bytes(&self, mark: Mark) -> u64 {
        let percent = match mark {
            Mark::Ordinary => self.limits.ordinary_reserve_percent,
            Mark::Privileged => self.limits.reclaim_reserve_percent,
        };
        let share = self.total_bytes() / 100 * u64::from(percent);
        share.max(self.least_reserve(mark))
    }

    fn has_room(&self, mark: Mark, bytes: u64) -> bool {
        let taken = self.unplaced_bytes + bytes + self.reserve_bytes(mark);
        self.free_bytes() >= taken
    }

    /// What ordinary adds can still take.
    pub(crate) fn ordinary_free_bytes(&self) -> u64 {
        let taken = self.unplaced_bytes + self.reserve_bytes(Mark::Ordinary);
        self.free_bytes().saturating_sub(taken)
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.poisoned.is_none() && !self.closing && self.ordinary_free_bytes() > 0
    }

    /// What to answer for an entry that is in no index: *no such entry* only if that is certain.
    pub(crate) fn absence(&self, ledger: LedgerId, entry: EntryId) -> BookieError {
        #[cfg(any(test, feature = "simulation"))]
        if self.limits.planted == Some(Defect::UnknownIsNoSuchEntry) {
            return BookieError::NoSuchEntry;
        }
        // What failed to be written may be on the disk in whole or in part.
        if self.poisoned.is_some() {
            return BookieError::UnknownEntry;
        }
        if !self.is_in_limbo(ledger) {
            return BookieError::NoSuchEntry;
        }
        let damaged_only = self.sealed.values().all(|segment| segment.readable);
        let confirmed = self.table.get(&ledger).is_some_and(|known| known.lac().covers(entry));
        if damaged_only && confirmed {
            BookieError::CorruptEntry
        } else {
            BookieError::UnknownEntry
        }
    }

    /// Wants the manifest to know that these ledgers are gone at `revision`. Returns those that are
    /// here.
    pub(crate) fn doom(&mut self, revision: u64, gone: &[LedgerId]) -> Vec<LedgerId> {
        self.wanted_revision = self.wanted_revision.max(revision);
        let here = gone.iter().copied().filter(|id| self.table.contains_key(id));
        let here: Vec<LedgerId> = here.collect();
        self.doomed.extend(&here);
        here
    }

    /// Forgets ledgers whose deletion the manifest has noted. Segments that held nothing else can
    /// be recycled from then on.
    pub(crate) fn delete(&mut self, ledgers: &[LedgerId]) {
        self.unblocking(|state| {
            for id in ledgers {
                state.doomed.remove(id);
                let Some(ledger) = state.table.remove(id) else { continue };
                state.counters.deleted_ledgers += 1;
                state.damaged.forget(*id);
                for held in &ledger.refs {
                    state.release(held.segment, held.count, held.stored_bytes);
                }
            }
        });
    }

    /// One live ledger less in a sealed segment, with so many entries there.
    pub(super) fn release(&mut self, segment: SegmentId, entries: u32, stored_bytes: u64) {
        if let Some(sealed) = self.sealed.get_mut(&segment) {
            sealed.live = sealed.live.saturating_sub(1);
            let with_entries = u32::from(entries > 0);
            sealed.live_with_entries = sealed.live_with_entries.saturating_sub(with_entries);
            sealed.live_entries = sealed.live_entries.saturating_sub(entries.into());
            sealed.live_bytes = sealed.live_bytes.saturating_sub(stored_bytes);
        }
    }
}
