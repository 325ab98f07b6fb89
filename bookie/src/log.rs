//! The log of one directory: write once, sort later.
//!
//! Owns segments, manifest, index and fences of one [`Device`], behind [`Log`]. The decisions are
//! in [`state::LogState`], which does no I/O; this file and `keeper`, `reader`, `replay` perform
//! them, in any thread: [`Log::write_group`] is one turn of a log thread, [`Log::run_chore`] one
//! of the keeper. So tests and simulations turn the same code by hand that `crew` runs in threads.

use std::sync::Arc;
use std::time::Duration;

use geminga_proto::env::{Env, Monotonic};
use geminga_proto::id::{LedgerId, SegmentId};
use geminga_proto::storage::{AppendRequest, BookieError, FenceRequest, ScrubProgress};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::config::{BookieConfig, Limits};
#[cfg(any(test, feature = "simulation"))]
use crate::defect::Defect;
use crate::device::{Device, DeviceError};
use crate::done::{self, Answer, AppendDone};
use crate::error::OpenError;
use crate::gc::Kept;

mod background;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod by_hand;
mod chore;
mod codec;
pub(crate) mod crew;
mod damaged;
mod deleted;
mod files;
mod footer;
mod group;
mod index;
mod keeper;
mod manifest;
mod missing;
mod read_cache;
mod reader;
mod reclaim;
mod record;
mod replay;
mod rewrite;
mod scan;
mod scrub;
mod segment;
pub(crate) mod state;
mod table;
mod writer;

pub use damaged::DamagedRange;
pub(crate) use read_cache::Piece;
pub use replay::OpenReport;
pub(crate) use replay::manifest_names;

use background::Background;
use files::Files;
use group::GroupBuffer;
use keeper::Chored;
use manifest::Copies;
use read_cache::ReadCache;
pub(crate) use reader::NotRead;
use reader::PageCache;
use state::{FenceAdmission, LogState};
use writer::{NotOpened, OpenGroup};

/// A log thread copies this much at a time without looking whether the disk is free.
const CHUNK_BYTES: u64 = 256 * 1024;

/// What is read ahead is this part of the memory for it, so that several readers find room.
const PIECES: u64 = 8;

/// One directory's log.
#[derive(Debug)]
pub(crate) struct Log {
    state: Mutex<LogState>,
    /// Log threads without a turn wait here for records.
    work: Condvar,
    /// The thread that builds a group waits here for the disk.
    encoder: Condvar,
    /// The keeper waits here for chores.
    keeper: Condvar,
    /// Whoever needs a chore done waits here.
    settled: Condvar,
    device: Arc<dyn Device>,
    copies: Copies,
    files: Files,
    pages: PageCache,
    cache: Arc<ReadCache>,
    env: Env,
    instance: u64,
    read_limits: ReadLimits,
    idle_close: Duration,
    background: Mutex<Background>,
    rewrite_buffer_bytes: u64,
    /// There are no threads: whoever needs a chore done does it.
    by_hand: bool,
}

/// Which log is opened, and what is known of it from elsewhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    /// Of its cookie.
    pub instance: u64,
    /// It has had a manifest before.
    pub initialized: bool,
    /// No younger ledger can be in it, if that is known.
    pub youngest_ledger: Option<LedgerId>,
}

/// Limits of one read.
#[derive(Debug, Clone, Copy)]
struct ReadLimits {
    max_entries: u32,
    max_bytes: u64,
    /// Of a piece that is read ahead.
    ahead_bytes: u64,
}

/// What a log thread has in hand. It outlives a panic of the turn, so that whoever waits for the
/// group is answered all the same.
#[derive(Debug, Default)]
pub(crate) struct Hand {
    buffer: GroupBuffer,
    group: Option<OpenGroup>,
}

/// What a turn of a log thread came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// A group was written, or records were answered otherwise.
    Progress,
    /// There is nothing to write.
    Idle,
    /// The keeper must prepare or seal a segment first.
    Blocked,
}

impl Log {
    /// Opens the log of `origin` on `device`.
    pub(crate) fn open(
        config: &BookieConfig,
        limits: Limits,
        origin: Origin,
        device: Arc<dyn Device>,
        env: Env,
    ) -> Result<(Self, OpenReport), OpenError> {
        let accept = config.accept_damage;
        let opened = replay::open(device.as_ref(), limits, origin, accept, &env)?;
        let replay::Opened { state, copies, report } = opened;
        let log = Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            encoder: Condvar::new(),
            keeper: Condvar::new(),
            settled: Condvar::new(),
            files: Files::new(device.clone(), config.max_open_files),
            device,
            copies,
            pages: PageCache::new(config.index_cache_bytes),
            cache: ReadCache::new(config.read_cache_bytes, config.read_ahead_bytes),
            env,
            instance: origin.instance,
            read_limits: ReadLimits {
                max_entries: config.max_read_entries,
                max_bytes: config.max_read_bytes,
                ahead_bytes: (config.read_ahead_bytes / PIECES).max(1),
            },
            idle_close: config.idle_close,
            background: Mutex::new(Background::new(config.background_bytes_per_s)),
            rewrite_buffer_bytes: config.reclaim_buffer_bytes,
            by_hand: false,
        };
        Ok((log, report))
    }

    /// The state, for figures.
    pub(crate) fn with_state<T>(&self, look: impl FnOnce(&LogState) -> T) -> T {
        look(&self.state.lock())
    }

    pub(crate) fn now(&self) -> Monotonic {
        self.env.clock.monotonic()
    }

    pub(crate) fn device(&self) -> &dyn Device {
        self.device.as_ref()
    }

    /// Takes an append; see [`crate::bookie::Bookie::append`].
    pub(crate) fn append(
        &self,
        request: AppendRequest,
        waiter: &Arc<dyn AppendDone>,
        tag: u64,
    ) -> Result<(), BookieError> {
        let now = self.now();
        let mut state = self.state.lock();
        state.now = now;
        state.admit_append(request, waiter, tag)?;
        self.wake(&state);
        Ok(())
    }

    /// Takes a fence.
    pub(crate) fn fence(&self, request: FenceRequest) -> Result<FenceAdmission, BookieError> {
        let now = self.now();
        let mut state = self.state.lock();
        state.now = now;
        let admission = state.admit_fence(request)?;
        self.wake(&state);
        Ok(admission)
    }

    /// Wakes whoever can do something with a new record; nobody, if somebody is at it already.
    fn wake(&self, state: &LogState) {
        if !state.turns.encoding {
            self.work.notify_one();
        } else if state.turns.encoder_takes && state.queue_bytes >= CHUNK_BYTES {
            self.encoder.notify_one();
        }
    }

    /// Wants everything that is sealed to be verified now.
    pub(crate) fn ask_for_scrub(&self) -> ScrubProgress {
        let mut state = self.state.lock();
        state.ask_for_scrub();
        self.call_keeper(&mut state);
        state.scrub_progress()
    }

    /// Takes in which is the oldest ledger that the cluster has.
    pub(crate) fn note_lowest_ledger(&self, lowest: LedgerId) {
        let mut state = self.state.lock();
        state.lowest_ledger = Some(lowest);
        self.call_keeper(&mut state);
    }

    /// Drops copies that aren't among those to keep, from segments below `complete`.
    pub(crate) fn keep_only(&self, complete: SegmentId, kept: &[Kept]) {
        let mut state = self.state.lock();
        if state.keep_only(complete, kept) > 0 {
            self.call_keeper(&mut state);
        }
    }

    /// For tests that need damage.
    #[cfg(test)]
    pub(crate) fn damage(&self, change: impl FnOnce(&mut damaged::Damaged)) {
        change(&mut self.state.lock().damaged);
    }

    /// All ledgers, sorted.
    pub(crate) fn ledgers(&self) -> Vec<LedgerId> {
        let mut ids: Vec<LedgerId> = self.state.lock().table.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn call_keeper(&self, state: &mut LogState) {
        // Log threads call again and again while they need a segment; it comes by itself.
        if self.env.clock.monotonic() < state.turns.keeper_pauses_until {
            return;
        }
        state.turns.keeper_called = true;
        self.keeper.notify_one();
    }

    /// One turn of a log thread: builds a group while another thread may be writing one, waits
    /// for the disk, writes, and answers. The caller has found no other thread building.
    pub(crate) fn write_group(
        &self,
        state: MutexGuard<'_, LogState>,
        hand: &mut Hand,
        closing: bool,
    ) -> Turn {
        let mut state = state;
        let group = match state.open_group(std::mem::take(&mut hand.buffer), closing) {
            Ok(group) => hand.group.insert(group),
            Err(NotOpened::Nothing(unused)) => {
                hand.buffer = unused;
                return Turn::Idle;
            }
            Err(NotOpened::NeedsSegment(unused)) => {
                hand.buffer = unused;
                return self.without_segment(state);
            }
        };
        state.turns.encoding = true;
        if state.next.is_none() {
            self.call_keeper(&mut state);
        }
        self.build(&mut state, group);
        state.turns.encoding = false;
        let answers = match state.submit(group) {
            Err(answers) => {
                drop(state);
                answers
            }
            Ok(()) => self.write_submitted(state, group),
        };
        if let Some(group) = hand.group.take() {
            hand.buffer = group.buffer;
        }
        done::deliver(answers);
        Turn::Progress
    }

    fn write_submitted(
        &self,
        mut state: MutexGuard<'_, LogState>,
        group: &mut OpenGroup,
    ) -> Vec<Answer> {
        state.turns.writing = true;
        if state.has_work() {
            self.work.notify_one();
        } else if state.turns.stopping {
            // There is no more to come that would wake them.
            self.work.notify_all();
        }
        drop(state);
        let written = self.perform(group);
        let mut state = self.state.lock();
        state.turns.writing = false;
        let answers = state.complete(group, written);
        if state.turns.encoder_waits {
            self.encoder.notify_one();
        }
        if !state.sealing.is_empty() {
            self.call_keeper(&mut state);
        }
        answers
    }

    #[cfg(not(any(test, feature = "simulation")))]
    fn perform(&self, group: &OpenGroup) -> Result<(), DeviceError> {
        write(group)
    }

    /// Writes the group, unless a defect is planted here.
    #[cfg(any(test, feature = "simulation"))]
    fn perform(&self, group: &OpenGroup) -> Result<(), DeviceError> {
        match self.with_state(|state| state.limits.planted) {
            Some(Defect::AckBeforeSync) => write_only(group),
            Some(Defect::FailedSyncIsDone) => {
                drop(write(group));
                Ok(())
            }
            _ => write(group),
        }
    }

    /// Fills the group until the disk is free.
    fn build(&self, state: &mut MutexGuard<'_, LogState>, group: &mut OpenGroup) {
        loop {
            state.fill(group, CHUNK_BYTES);
            if group.has_staged() {
                MutexGuard::unlocked(state, || group.encode_staged());
                if !state.turns.writing {
                    return;
                }
            } else if state.turns.writing {
                state.turns.encoder_waits = true;
                // A full group waits for the disk alone.
                state.turns.encoder_takes = !group.is_full();
                self.encoder.wait(state);
                (state.turns.encoder_waits, state.turns.encoder_takes) = (false, false);
            } else {
                return;
            }
        }
    }

    /// The first record needs a segment that isn't there yet.
    fn without_segment(&self, mut state: MutexGuard<'_, LogState>) -> Turn {
        if state.poisoned.is_some() {
            let refused = state.refuse_queue(BookieError::ReadOnly);
            drop(state);
            done::deliver(refused);
            return Turn::Progress;
        }
        if state.next.is_none() && state.no_space {
            let refused = state.refuse_first(BookieError::DiskFull);
            drop(state);
            done::deliver(refused.into_iter().collect());
            return Turn::Progress;
        }
        self.call_keeper(&mut state);
        Turn::Blocked
    }

    /// Makes the manifest know a revision of the metadata store and that these ledgers are gone at
    /// it, and forgets them. Returns how many of them there were, when all that is durable.
    pub(crate) fn forget(&self, revision: u64, gone: &[LedgerId]) -> Result<u64, BookieError> {
        let mut state = self.state.lock();
        let mine = state.doom(revision, gone);
        self.call_keeper(&mut state);
        while state.manifest.metadata_revision < revision
            || mine.iter().any(|id| state.doomed.contains(id))
        {
            self.await_chore(&mut state)?;
        }
        Ok(mine.len() as u64)
    }

    /// Makes a revision of the metadata store the one that the manifest knows, even if it is lower
    /// than the present one; returns when that is durable.
    pub(crate) fn set_revision(&self, revision: u64) -> Result<(), BookieError> {
        let mut state = self.state.lock();
        state.wanted_revision = revision;
        self.call_keeper(&mut state);
        while state.manifest.metadata_revision != state.wanted_revision {
            self.await_chore(&mut state)?;
        }
        Ok(())
    }

    /// Returns when a chore was done, by the keeper or, without one, here.
    fn await_chore(&self, state: &mut MutexGuard<'_, LogState>) -> Result<(), BookieError> {
        if state.poisoned.is_some() || state.turns.keeper_ended {
            return Err(BookieError::ReadOnly);
        }
        if !self.by_hand {
            self.settled.wait(state);
            return Ok(());
        }
        match MutexGuard::unlocked(state, || self.run_chore()) {
            Chored::Done => Ok(()),
            Chored::Nothing | Chored::Later(_) | Chored::Starved(_) => Err(BookieError::ReadOnly),
        }
    }
}

fn write(group: &OpenGroup) -> Result<(), DeviceError> {
    let missing = || DeviceError::NotFound { name: group.home.segment.to_string() };
    let file = group.file.as_ref().ok_or_else(missing)?;
    file.write_at(group.offset, group.buffer.as_slice())?;
    file.sync()
}

/// As [`write`], with the sync forgotten.
#[cfg(any(test, feature = "simulation"))]
fn write_only(group: &OpenGroup) -> Result<(), DeviceError> {
    match group.file.as_ref() {
        Some(file) => file.write_at(group.offset, group.buffer.as_slice()),
        None => Ok(()),
    }
}

/// Name of a segment's file, for tests that spoil it.
#[cfg(test)]
pub(crate) fn segment_file(slot: u32) -> String {
    segment::file_name(slot)
}

#[cfg(test)]
mod tests;
