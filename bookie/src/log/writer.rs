//! From the queue to groups and back: the part of [`LogState`] that the log threads drive.
//!
//! A group is opened, filled from the queue while the disk is busy, submitted when the disk is
//! free, and completed. One group is open and one is in flight at most; so the place of an open
//! group is known as soon as it is opened: right behind the submitted one. No timer: what has
//! arrived while the disk was busy is the next group.

use std::sync::Arc;

use geminga_proto::id::{EntryId, Lac, LedgerId, SegmentId};
use geminga_proto::payload::Payload;
use geminga_proto::storage::BookieError;

use super::codec::Home;
use super::footer::{self, Place};
use super::group::{self, GroupBuffer, Link};
use super::record::{Record, RecordKind};
use super::state::{LogState, Pending, Unsealed};
use super::table::{Fence, Ledger};
use crate::device::{BLOCK_BYTES, DeviceFile, whole_blocks};
use crate::done::{Answer, Done};

/// Entries after which a segment is sealed even if it has room: bounds the index in memory.
pub(super) const MAX_SEGMENT_ENTRIES: u64 = 1 << 20;
/// Full segments that may wait for their footer.
const MAX_SEALING: usize = 2;

/// A record that has its place.
#[derive(Debug)]
struct Placed {
    kind: RecordKind,
    ledger: LedgerId,
    entry: EntryId,
    place: Place,
    done: Done,
}

/// A group that is being built or written.
#[derive(Debug)]
pub(crate) struct OpenGroup {
    pub home: Home,
    pub file: Option<Arc<dyn DeviceFile>>,
    pub offset: u64,
    /// Bytes so far: header and records, those still staged too.
    bytes: u64,
    /// Bytes of records, which count as pending.
    record_bytes: u64,
    placed: Vec<Placed>,
    /// Taken from the queue, not copied into the buffer yet.
    staged: Vec<(Record, Payload)>,
    pub buffer: GroupBuffer,
    full: bool,
}

/// Why no group could be opened.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// There is nothing to write.
    Nothing(GroupBuffer),
    /// The next segment isn't prepared yet, or too many wait to be sealed.
    NeedsSegment(GroupBuffer),
}

impl OpenGroup {
    /// Copies what is staged into the buffer. Called without the state's lock.
    pub(crate) fn encode_staged(&mut self) {
        for (record, payload) in self.staged.drain(..) {
            self.buffer.push(self.home, self.offset, &record, &payload);
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.full
    }

    pub(crate) fn has_staged(&self) -> bool {
        !self.staged.is_empty()
    }
}

impl Unsealed {
    /// True if a group that would end at `end` leaves room for the footer, with one ledger and
    /// one entry more than now, and for one empty group that closes the log when it is idle.
    fn fits(&self, end: u64) -> bool {
        let footer = footer::footer_bytes(self.ledgers.len() as u64 + 1, self.entry_records + 1);
        self.entry_records < MAX_SEGMENT_ENTRIES
            && end + BLOCK_BYTES as u64 + footer <= self.capacity_bytes
    }
}

impl LogState {
    /// True if there is something to write.
    pub(crate) fn has_work(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Opens a group behind the last one, in the next segment if the active one is full. A
    /// `closing` group stays empty and proves the one before it.
    pub(crate) fn open_group(
        &mut self,
        mut buffer: GroupBuffer,
        closing: bool,
    ) -> Result<OpenGroup, NotOpened> {
        let first = match self.queue.front() {
            Some(pending) => pending.stored_bytes(),
            None if closing => 0,
            None => return Err(NotOpened::Nothing(buffer)),
        };
        let bytes = group::HEADER_BYTES as u64 + first;
        if !self.active.fits(self.active.tail + whole(bytes)) && first > 0 && !self.roll() {
            return Err(NotOpened::NeedsSegment(buffer));
        }
        buffer.clear();
        self.open_since = self.queue.front().map(|pending| pending.since);
        Ok(OpenGroup {
            home: self.home(self.active.segment),
            file: self.active.file.clone(),
            offset: self.active.tail,
            bytes: group::HEADER_BYTES as u64,
            record_bytes: 0,
            placed: Vec::new(),
            staged: Vec::new(),
            buffer,
            full: false,
        })
    }

    /// Makes the next segment the active one.
    fn roll(&mut self) -> bool {
        if self.sealing.len() >= MAX_SEALING {
            return false;
        }
        let Some(next) = self.next.take() else { return false };
        let full = std::mem::replace(&mut self.active, next);
        self.sealing.push_back(full);
        true
    }

    /// Moves records from the queue into the group, up to about `chunk_bytes` of them.
    pub(crate) fn fill(&mut self, group: &mut OpenGroup, chunk_bytes: u64) {
        let mut taken = 0;
        while taken < chunk_bytes && !group.full {
            let Some(front) = self.queue.front() else { return };
            let bytes = front.stored_bytes();
            let end = group.bytes + bytes;
            let too_long = end > u64::from(self.limits.max_group_bytes) && !group.placed.is_empty();
            if too_long || !self.active.fits(group.offset + whole(end)) {
                group.full = true;
                return;
            }
            let Some(pending) = self.queue.pop_front() else { return };
            let Pending { record, payload, done, .. } = pending;
            self.queue_bytes = self.queue_bytes.saturating_sub(bytes);
            self.active.ledgers.insert(record.ledger);
            self.active.entry_records += u64::from(record.kind == RecordKind::Entry);
            group.placed.push(Placed {
                kind: record.kind,
                ledger: record.ledger,
                entry: record.entry,
                place: Place::new(group.offset + group.bytes, record.payload_bytes),
                done,
            });
            group.bytes = end;
            group.record_bytes += bytes;
            taken += bytes;
            group.staged.push((record, payload));
        }
    }

    /// Completes the group in memory: from here on it is in flight, and the next one can be
    /// opened. Refused, with everybody's answers, once the log is poisoned.
    pub(crate) fn submit(&mut self, group: &mut OpenGroup) -> Result<(), Vec<Answer>> {
        assert!(
            group.staged.is_empty(),
            "staged records are encoded before the group is submitted"
        );
        self.unplaced_bytes = self.unplaced_bytes.saturating_sub(group.record_bytes);
        let since = self.open_since.take();
        if self.poisoned.is_some() {
            return Err(self.answer(group, Err(BookieError::ReadOnly)));
        }
        assert!(self.in_flight.is_none(), "one group is in flight");
        let previous = self.chain;
        let highest = self.highest_ledger;
        let link: Link = group.buffer.seal(group.home, group.offset, previous, highest);
        self.chain = link;
        // A group is opened in the active segment, which only opening another one replaces.
        self.active.tail = group.offset + group.buffer.as_slice().len() as u64;
        self.active.last_group = link;
        (self.in_flight, self.in_flight_since) = (Some(group.home.segment), since);
        Ok(())
    }

    /// Takes in what came of the write: entries become visible, fences hold, everybody gets an
    /// answer. The first failure poisons the log.
    pub(crate) fn complete(
        &mut self,
        group: &mut OpenGroup,
        written: Result<(), crate::device::DeviceError>,
    ) -> Vec<Answer> {
        (self.in_flight, self.in_flight_since) = (None, None);
        if let Err(error) = written {
            self.poison(&error.to_string());
            let mut answers = self.answer(group, Err(BookieError::Io));
            answers.extend(self.refuse_queue(BookieError::ReadOnly));
            return answers;
        }
        self.counters.groups += 1;
        self.counters.written_bytes += group.buffer.as_slice().len() as u64;
        self.unproven = !group.placed.is_empty();
        for placed in &group.placed {
            self.publish(group.home.segment, placed);
        }
        self.answer(group, Ok(()))
    }

    /// The thread that had `group` in hand has panicked: nothing is known of what became of it.
    pub(crate) fn abandon(&mut self, group: Option<OpenGroup>, why: &str) -> Vec<Answer> {
        self.poison(why);
        // Of two threads the other one may still have its group in hand, and answers it.
        (self.open_since, self.in_flight_since) = (None, None);
        let group = group.map(|mut group| self.answer(&mut group, Err(BookieError::Io)));
        let mut answers = group.unwrap_or_default();
        answers.extend(self.refuse_queue(BookieError::ReadOnly));
        answers
    }

    /// Makes one durable record count.
    fn publish(&mut self, segment: SegmentId, placed: &Placed) {
        if placed.kind == RecordKind::Entry {
            self.mended(placed.ledger, placed.entry);
        }
        // A ledger that was deleted meanwhile has nobody who could ask for it.
        let Some(ledger) = self.table.get_mut(&placed.ledger) else { return };
        match placed.kind {
            RecordKind::Entry => {
                self.counters.appended_entries += 1;
                self.counters.appended_bytes += u64::from(placed.place.payload_bytes);
                let unsealed = if self.active.segment == segment {
                    Some(&mut self.active)
                } else {
                    self.sealing.iter_mut().find(|unsealed| unsealed.segment == segment)
                };
                if let Some(unsealed) = unsealed {
                    let entries = std::sync::Arc::make_mut(&mut unsealed.entries);
                    entries.insert((placed.ledger, placed.entry), placed.place);
                }
            }
            RecordKind::Fence => {
                ledger.raise_fence(Fence::Durable);
                self.counters.fences += 1;
            }
            RecordKind::State { .. } => self.carried(placed.ledger),
        }
    }

    fn answer(&mut self, group: &mut OpenGroup, result: Result<(), BookieError>) -> Vec<Answer> {
        self.pending_bytes = self.pending_bytes.saturating_sub(group.record_bytes);
        group.record_bytes = 0;
        let (table, deleted) = (&self.table, &self.manifest.deleted);
        let answers = group.placed.drain(..).map(|placed| {
            let lac = || match placed.kind {
                RecordKind::Fence => table.get(&placed.ledger).map_or(Lac::NONE, Ledger::lac),
                RecordKind::Entry | RecordKind::State { .. } => Lac::NONE,
            };
            // It was deleted while the add was on its way: nobody will ever read it.
            let late = placed.kind == RecordKind::Entry && deleted.contains(placed.ledger);
            let result = if late { Err(BookieError::Fenced) } else { result.map(|()| lac()) };
            Answer { done: placed.done, ledger: placed.ledger, entry: placed.entry, result }
        });
        answers.collect()
    }

    /// Stops all writing, for good.
    pub(crate) fn poison(&mut self, why: &str) {
        if self.poisoned.is_none() {
            tracing::error!(why, "the log is read-only from now on: a write or sync failed");
            self.poisoned = Some(why.to_owned());
        }
    }

    /// Answers everything that waits in the queue.
    pub(crate) fn refuse_queue(&mut self, error: BookieError) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(self.queue.len());
        while let Some(answer) = self.refuse_first(error) {
            answers.push(answer);
        }
        answers
    }

    /// Answers the first record of the queue: it needs a segment that can't be had.
    pub(crate) fn refuse_first(&mut self, error: BookieError) -> Option<Answer> {
        let pending = self.queue.pop_front()?;
        let bytes = pending.stored_bytes();
        self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
        self.unplaced_bytes = self.unplaced_bytes.saturating_sub(bytes);
        self.queue_bytes = self.queue_bytes.saturating_sub(bytes);
        if matches!(pending.record.kind, RecordKind::State { .. }) {
            // The segment that this state is carried from stays; it is tried again later.
            self.sealed.values_mut().for_each(|sealed| sealed.carrying = false);
        }
        let (ledger, entry) = (pending.record.ledger, pending.record.entry);
        Some(Answer { done: pending.done, ledger, entry, result: Err(error) })
    }
}

fn whole(bytes: u64) -> u64 {
    whole_blocks(usize::try_from(bytes).unwrap_or(usize::MAX)) as u64
}
