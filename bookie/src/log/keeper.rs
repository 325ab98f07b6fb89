//! Performs the chores that [`LogState`] decides on: everything that changes the manifest.
//!
//! One thread runs this, so changes of the manifest never race: each starts from the current
//! one, is stored durably, and only then becomes what the state knows. A failed write poisons the
//! log; a disk without room does not.

use std::sync::Arc;
use std::time::Duration;

use geminga_proto::env::Monotonic;
use geminga_proto::id::{LedgerId, SegmentId};
use geminga_proto::storage::{BookieError, SyncMode};

use super::chore::{Chore, Preparation, SealJob};
use super::codec::Home;
use super::footer::{self, Row};
use super::manifest::{Copies, Manifest, Sealed, Slot, SlotState};
use super::state::{LogState, Unsealed};
use super::{Log, segment};
use crate::device::{AlignedBuffer, Device, DeviceError, DeviceFile};
use crate::done;

/// New files are written once in pieces of this size: small, since the log's own write may have
/// to wait for one.
const PREWRITE_BYTES: usize = 128 << 10;
/// While the log writes, a piece is followed by a pause of so many times what it took. Large
/// groups gain little from blocks that were written before, so they must not pay for them.
const PREWRITE_PAUSE: u32 = 8;
/// How long the first start may spend on writing its first segment once.
const FIRST_PREWRITE: Duration = Duration::from_millis(10);
/// How often the keeper asks the disk what it has left, and how long it waits before it tries again
/// what it had no file descriptor for.
pub(super) const KEEPER_INTERVAL: Duration = Duration::from_secs(1);

/// What came of the most urgent chore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Chored {
    Done,
    /// There is none.
    Nothing,
    /// There is none but for work that waits, which goes on at this time.
    Later(Monotonic),
    /// There is one, which waits for a file descriptor.
    Starved(DeviceError),
}

impl Log {
    /// Does the most urgent chore.
    pub(crate) fn run_chore(&self) -> Chored {
        let (chore, manifest) = {
            let mut state = self.state.lock();
            state.now = self.env.clock.monotonic();
            let had_work = state.has_work();
            let Some(chore) = state.next_chore() else {
                // Carried states may have come into the queue.
                if state.has_work() && !had_work {
                    self.work.notify_one();
                }
                drop(state);
                return self.run_background();
            };
            (chore, state.manifest.clone())
        };
        let outcome = match chore {
            Chore::Prepare(preparation) => self.prepare_next(manifest, preparation),
            Chore::Seal(job) => self.seal(manifest, &job),
            Chore::Recycle(segments) => self.recycle(manifest, &segments),
            Chore::Trim(slots) => self.trim(manifest, &slots),
            Chore::Forget { revision, ledgers } => self.forget_now(manifest, revision, &ledgers),
        };
        if let Err(error @ DeviceError::TooManyFiles { .. }) = outcome {
            // A file is opened before anything is written, so all is as it was.
            tracing::warn!(%error, "the log's housekeeping waits");
            let pause_until = self.env.clock.monotonic().saturating_add(KEEPER_INTERVAL);
            self.state.lock().turns.keeper_pauses_until = pause_until;
            return Chored::Starved(error);
        }
        if let Err(error) = outcome {
            self.poison(&error);
        }
        self.refresh_space();
        self.wake_all();
        Chored::Done
    }

    /// Takes no writes any more: what waits for a segment that can't be had now would wait for
    /// ever.
    pub(super) fn poison(&self, error: &DeviceError) {
        let refused = {
            let mut state = self.state.lock();
            state.poison(&error.to_string());
            state.refuse_queue(BookieError::ReadOnly)
        };
        done::deliver(refused);
        self.wake_all();
    }

    /// Whoever waits for a segment, for an end, or for a revision looks again.
    pub(super) fn wake_all(&self) {
        self.work.notify_all();
        self.encoder.notify_all();
        self.settled.notify_all();
    }

    /// Asks the disk what it has left.
    pub(crate) fn refresh_space(&self) {
        match self.device.space() {
            Ok(space) => {
                let mut state = self.state.lock();
                let before = state.total_bytes();
                state.note_space(space);
                if state.total_bytes() > before {
                    state.no_space = false;
                }
            }
            Err(error) => tracing::warn!(%error, "the disk doesn't say what it has left"),
        }
    }

    fn prepare_next(
        &self,
        manifest: Manifest,
        preparation: Preparation,
    ) -> Result<(), DeviceError> {
        let device = self.device.as_ref();
        let throttle = |file: &dyn DeviceFile, bytes: u64| self.prewrite(file, bytes);
        match prepare(device, &self.copies, manifest, preparation, throttle) {
            Ok((manifest, next)) => {
                self.state.lock().prepared(manifest, next);
                Ok(())
            }
            Err(DeviceError::Full { name }) => {
                tracing::warn!(name, "no space for another segment");
                self.state.lock().no_space = true;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a new file once, gently: as long as the log itself writes, for a small part of the
    /// time, and not when the segment is needed soon. Returns how far it came.
    fn prewrite(&self, file: &dyn DeviceFile, bytes: u64) -> Result<u64, DeviceError> {
        if self.device.sync_mode() != SyncMode::DirectDsync {
            return Ok(0);
        }
        let zeros = AlignedBuffer::new(PREWRITE_BYTES);
        let mut at = 0;
        while at < bytes {
            let started = self.env.clock.monotonic();
            let piece = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(zeros.len());
            file.write_at(at, &zeros.as_slice()[..piece])?;
            at += piece as u64;
            let took = self.env.clock.monotonic().saturating_sub(started);
            let mut state = self.state.lock();
            let left = state.active.capacity_bytes.saturating_sub(state.active.tail);
            if state.closing || left < state.active.capacity_bytes / 4 {
                break;
            }
            if state.in_flight.is_some() || state.has_work() {
                self.keeper.wait_for(&mut state, took * PREWRITE_PAUSE);
            }
        }
        file.sync()?;
        Ok(at)
    }

    fn seal(&self, manifest: Manifest, job: &SealJob) -> Result<(), DeviceError> {
        let now_ms = self.env.clock.wall_ms();
        let (manifest, rows) = seal(self.device.as_ref(), &self.copies, manifest, job, now_ms)?;
        self.state.lock().sealed(manifest, job.segment, &rows);
        Ok(())
    }

    fn recycle(&self, mut manifest: Manifest, segments: &[SegmentId]) -> Result<(), DeviceError> {
        let useless = self.with_state(|state| state.useless_files(segments));
        for segment in segments {
            if let Some(slot) = manifest.slot_of_mut(*segment) {
                slot.free();
            }
        }
        manifest.slots.retain(|slot| !useless.contains(&slot.number));
        manifest.store(&self.copies)?;
        self.remove_files(&useless)?;
        self.state.lock().recycled(manifest, segments);
        tracing::debug!(count = segments.len(), "segments without a live ledger were recycled");
        Ok(())
    }

    /// Removes segment files that the manifest doesn't name any more, if they exist.
    pub(super) fn remove_files(&self, slots: &[u32]) -> Result<(), DeviceError> {
        for slot in slots {
            self.files.forget(*slot);
            match self.device.remove(&segment::file_name(*slot)) {
                Ok(()) | Err(DeviceError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn trim(&self, mut manifest: Manifest, slots: &[u32]) -> Result<(), DeviceError> {
        manifest.slots.retain(|slot| !slots.contains(&slot.number));
        manifest.store(&self.copies)?;
        for slot in slots {
            self.files.forget(*slot);
            self.device.remove(&segment::file_name(*slot))?;
        }
        self.device.sync_dir()?;
        let mut state = self.state.lock();
        state.install(manifest);
        state.no_space = false;
        Ok(())
    }

    fn forget_now(
        &self,
        mut manifest: Manifest,
        revision: u64,
        ledgers: &[LedgerId],
    ) -> Result<(), DeviceError> {
        manifest.metadata_revision = revision;
        manifest.note_deleted(&self.copies, ledgers)?;
        manifest.store(&self.copies)?;
        let mut state = self.state.lock();
        state.install(manifest);
        state.delete(ledgers);
        Ok(())
    }

    /// Takes what is left of the active segment and of the next one out of use, so that the next
    /// start has nothing to replay. Called after the log threads have ended.
    pub(crate) fn seal_all(&self) -> Result<(), DeviceError> {
        loop {
            match self.run_chore() {
                Chored::Done => {}
                // Work that can wait isn't begun any more.
                Chored::Nothing | Chored::Later(_) => break,
                Chored::Starved(error) => return Err(error),
            }
        }
        let (mut manifest, job, next) = {
            let state = self.state.lock();
            if let Some(why) = &state.poisoned {
                return Err(DeviceError::Io {
                    operation: "an earlier write",
                    name: self.device.describe(),
                    why: why.clone(),
                });
            }
            let job = state.seal_job(&state.active, false, true);
            (state.manifest.clone(), job, state.next.as_ref().map(|next| next.segment))
        };
        if let Some(slot) = next.and_then(|next| manifest.slot_of_mut(next)) {
            slot.free();
        }
        let now_ms = self.env.clock.wall_ms();
        seal(self.device.as_ref(), &self.copies, manifest, &job, now_ms)?;
        Ok(())
    }
}

impl Slot {
    /// Takes the segment out of its file.
    pub(crate) fn free(&mut self) {
        if let SlotState::Sealed(sealed) = self.state {
            self.written |= sealed.data_end >= self.capacity_bytes / 4 * 3;
        }
        self.state = SlotState::Free;
    }
}

/// Gives a new segment a file, its header and its place in the manifest, all durable.
pub(crate) fn prepare(
    device: &dyn Device,
    copies: &Copies,
    mut manifest: Manifest,
    preparation: Preparation,
    prewrite: impl Fn(&dyn DeviceFile, u64) -> Result<u64, DeviceError>,
) -> Result<(Manifest, Unsealed), DeviceError> {
    let (mut slot, file) = match preparation {
        Preparation::Reuse(slot) => (slot, device.open(&segment::file_name(slot.number))?),
        Preparation::Create { capacity_bytes } => {
            create_slot(device, copies, &mut manifest, capacity_bytes)?
        }
    };
    if !slot.written {
        slot.written = prewrite(file.as_ref(), slot.capacity_bytes)? >= slot.capacity_bytes;
    }
    let id = manifest.next_segment;
    manifest.next_segment = id.next();
    // The file is free in the durable manifest, so its old header may go before the new
    // manifest is there.
    let header = segment::encode_header(id, manifest.instance, slot.capacity_bytes);
    file.write_at(0, header.as_slice())?;
    file.sync()?;
    slot.state = SlotState::Unsealed { segment: id, lost_up_to: None };
    for known in &mut manifest.slots {
        if known.number == slot.number {
            *known = slot;
        }
    }
    manifest.store(copies)?;
    let mut unsealed = Unsealed::new(id, slot.number, slot.capacity_bytes);
    unsealed.file = Some(file);
    Ok((manifest, unsealed))
}

/// Makes another file, durably. It counts, free, once the manifest is stored.
pub(super) fn create_slot(
    device: &dyn Device,
    copies: &Copies,
    manifest: &mut Manifest,
    capacity_bytes: u64,
) -> Result<(Slot, Arc<dyn DeviceFile>), DeviceError> {
    manifest.reserve(copies, manifest.slots.len() + 1)?;
    let number = manifest.next_slot;
    let name = segment::file_name(number);
    let file = device.create(&name)?;
    if let Err(error) = file.preallocate(capacity_bytes) {
        // What was reserved of it is wanted elsewhere on a full disk.
        device.remove(&name)?;
        return Err(error);
    }
    file.sync_length()?;
    // Makes the manifest's name durable, too, when this is the first start.
    device.sync_dir()?;
    manifest.next_slot += 1;
    let slot = Slot { number, written: false, capacity_bytes, state: SlotState::Free };
    manifest.slots.push(slot);
    Ok((slot, file))
}

/// Writes a segment's footer and the manifest that names it. A segment in which no live ledger
/// has a record is freed instead, unless it is damaged.
pub(crate) fn seal(
    device: &dyn Device,
    copies: &Copies,
    mut manifest: Manifest,
    job: &SealJob,
    now_ms: u64,
) -> Result<(Manifest, Vec<Row>), DeviceError> {
    if job.last_group.sequence > manifest.last_group.sequence {
        manifest.last_group = job.last_group;
    }
    let (rows, places) = job.index();
    let instance = manifest.instance;
    let Some(slot) = manifest.slot_of_mut(job.segment) else {
        manifest.store(copies)?;
        return Ok((manifest, rows));
    };
    if rows.is_empty() && !job.damaged {
        slot.free();
        manifest.store(copies)?;
        return Ok((manifest, rows));
    }
    let file = match &job.file {
        Some(file) => file.clone(),
        None => device.open(&segment::file_name(job.slot))?,
    };
    let home = Home { instance, segment: job.segment };
    let bytes = footer::encode(home, job.data_end, job.data_end, &rows, &places);
    file.write_at(job.data_end, bytes.as_slice())?;
    file.sync()?;
    let end = job.data_end + bytes.len() as u64;
    let shrink = job.shrink && end <= slot.capacity_bytes / 2;
    if shrink {
        slot.capacity_bytes = end;
    }
    slot.state = SlotState::Sealed(Sealed {
        segment: job.segment,
        data_end: job.data_end,
        ledgers: u32::try_from(rows.len()).unwrap_or(u32::MAX),
        entries: u32::try_from(places.len()).unwrap_or(u32::MAX),
        highest_ledger: job.highest_ledger,
        damaged: job.damaged,
        sorted: false,
        verified_ms: now_ms,
    });
    manifest.store(copies)?;
    if shrink {
        file.truncate(end)?;
        // The manifest no longer counts what was cut off: it must not come back after a crash.
        file.sync_length()?;
    }
    Ok((manifest, rows))
}

/// Writes the first segment of a new log once, as far as the time allows: a newcomer's first
/// messages are then as fast as later ones.
pub(crate) fn prewrite_first(
    device: &dyn Device,
    clock: &dyn geminga_proto::env::Clock,
    file: &dyn DeviceFile,
    bytes: u64,
) -> Result<u64, DeviceError> {
    if device.sync_mode() != SyncMode::DirectDsync {
        return Ok(0);
    }
    let zeros = AlignedBuffer::new(PREWRITE_BYTES);
    let end = clock.monotonic() + FIRST_PREWRITE;
    let mut at = 0;
    while at < bytes && clock.monotonic() < end {
        let piece = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(zeros.len());
        file.write_at(at, &zeros.as_slice()[..piece])?;
        at += piece as u64;
    }
    file.sync()?;
    Ok(at)
}

/// Cuts files off where the manifest counts no more of them: a crash came before that was done.
pub(crate) fn give_back(device: &dyn Device, state: &LogState) -> Result<(), DeviceError> {
    for slot in &state.manifest.slots {
        // What is lost may be needed as it is, by somebody who tries to save it.
        let used = slot.segment().and_then(|segment| state.sealed.get(&segment));
        if used.is_none_or(|sealed| !sealed.readable) {
            continue;
        }
        let file = device.open(&segment::file_name(slot.number))?;
        if file.len()? > slot.capacity_bytes {
            tracing::info!(slot = slot.number, "a segment file is cut to what is counted of it");
            file.truncate(slot.capacity_bytes)?;
            file.sync_length()?;
        }
    }
    Ok(())
}
