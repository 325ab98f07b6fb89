//! [`Bookie`]: the storage node's core, below every service and transport.
//!
//! Owns the log and its threads, and the hints about deleted ledgers. All per-directory state is
//! in the log, so a node with several directories is several logs behind this one interface; a
//! ledger then lives where its first record went. Clones share the node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use geminga_proto::env::Env;
use geminga_proto::id::LedgerId;
use geminga_proto::storage::{
    AppendRequest, BookieError, BookieInfo, FenceRequest, FenceResult, ReadRequest, ReadResult,
    ScrubProgress, StoredEntry,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::config::BookieConfig;
use crate::cookie::{self, Identity};
use crate::device::Device;
use crate::done::AppendDone;
use crate::error::{CloseError, OpenError};
pub use crate::log::DamagedRange;
use crate::log::crew::Crew;
use crate::log::state::{FenceAdmission, LogState};
use crate::log::{Log, NotRead, OpenReport, Origin, Piece};

/// Hints that wait for a look; more turn into a census of everything.
const MAX_HINTS: usize = 100_000;
/// For so long after an append its owner is thought to go on.
const WRITTEN_TO: Duration = Duration::from_millis(100);

/// A running storage node. Clones share it.
#[derive(Debug, Clone)]
pub struct Bookie {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    log: Arc<Log>,
    /// `None`: the log is turned by hand, and nothing here uses a thread.
    crew: Option<Crew>,
    identity: Identity,
    config: BookieConfig,
    reads: Arc<Semaphore>,
    hints: Mutex<Hints>,
    hinted: Notify,
}

/// Ledgers that may be gone from the metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hints {
    pub ledgers: BTreeSet<LedgerId>,
    /// There were more hints than are kept: look at everything.
    pub overflown: bool,
}

/// Figures for an operator. Counts are since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BookieMetrics {
    /// Entries made durable.
    pub appended_entries: u64,
    /// Their payload, in bytes.
    pub appended_bytes: u64,
    /// Writes of the log.
    pub groups: u64,
    /// Bytes of these, padding and headers included.
    pub written_bytes: u64,
    /// Fences made durable.
    pub fences: u64,
    /// Appends refused at once.
    pub refused_appends: u64,
    /// Bytes waiting for the disk, and their cap.
    pub pending_bytes: u64,
    /// The cap of `pending_bytes`.
    pub max_pending_bytes: u64,
    /// Segments sealed.
    pub sealed_segments: u64,
    /// Segments freed.
    pub recycled_segments: u64,
    /// Segments freed by rewriting what counts of them.
    pub rewritten_segments: u64,
    /// Bytes written for that, padding and headers included.
    pub rewritten_bytes: u64,
    /// 1 while segments are being rewritten.
    pub rewriting: u64,
    /// Ledgers deleted.
    pub deleted_ledgers: u64,
    /// Copies dropped that are another bookie's by now.
    pub surplus_entries: u64,
    /// Bytes read again and verified.
    pub scrubbed_bytes: u64,
    /// How long ago the sealed segment was verified that has waited longest; 0: there is none.
    pub unverified_seconds: u64,
    /// Entries that were found damaged.
    pub damaged_entries: u64,
    /// Of these, how many haven't been mended.
    pub damaged_now: u64,
    /// 1 once the log is read-only for good.
    pub poisoned: u64,
}

impl Bookie {
    /// Opens the log on `device` under the identity that [`cookie::claim`] gave, and starts its
    /// threads.
    ///
    /// # Errors
    /// Any [`OpenError`]; nothing runs then.
    pub fn open(
        config: BookieConfig,
        identity: Identity,
        device: Arc<dyn Device>,
        env: Env,
    ) -> Result<(Self, OpenReport), OpenError> {
        let (log, report) = Self::open_log(&config, &identity, device, env)?;
        let log = Arc::new(log);
        let crew = Crew::start(log.clone())?;
        Ok((Self::of(config, identity, log, Some(crew)), report))
    }

    /// As [`Self::open`], but starts no thread: the log does what the [`Turner`] is told to, and
    /// what would wait on a thread for the disk is done at once. So a simulation has every turn in
    /// its hands.
    ///
    /// # Errors
    /// As [`Self::open`].
    #[cfg(any(test, feature = "simulation"))]
    pub fn open_by_hand(
        config: BookieConfig,
        identity: Identity,
        device: Arc<dyn Device>,
        env: Env,
    ) -> Result<(Self, crate::log::by_hand::Turner, OpenReport), OpenError> {
        let (log, report) = Self::open_log(&config, &identity, device, env)?;
        let log = Arc::new(log.by_hand());
        let turner = crate::log::by_hand::Turner::new(log.clone());
        Ok((Self::of(config, identity, log, None), turner, report))
    }

    fn of(config: BookieConfig, identity: Identity, log: Arc<Log>, crew: Option<Crew>) -> Self {
        let reads = Arc::new(Semaphore::new(config.max_concurrent_reads as usize));
        let hints = Mutex::default();
        let hinted = Notify::new();
        let inner = Inner { log, crew, identity, config, reads, hints, hinted };
        Self { inner: Arc::new(inner) }
    }

    fn open_log(
        config: &BookieConfig,
        identity: &Identity,
        device: Arc<dyn Device>,
        env: Env,
    ) -> Result<(Log, OpenReport), OpenError> {
        let limits = config.validate()?;
        let origin = Origin {
            instance: identity.instance,
            initialized: identity.begun,
            youngest_ledger: identity.youngest_ledger,
        };
        let (log, report) = Log::open(config, limits, origin, device, env)?;
        cookie::mark_begun(log.device(), identity)?;
        tracing::info!(
            directory = log.device().describe(),
            sync_mode = report.sync_mode.as_str(),
            ledgers = report.ledgers,
            segments = report.segments,
            replayed_groups = report.replayed_groups,
            "the log is open"
        );
        for damage in &report.damage {
            tracing::error!(%damage, "served in spite of damage");
        }
        if log.with_state(LogState::lost_ledgers) {
            tracing::warn!(
                known = %log.with_state(LogState::known_ledger),
                "lost segments may have held ledgers of higher ids than are known"
            );
        }
        Ok((log, report))
    }

    /// Does what may wait for the disk, where that holds up nobody else. `None`: it panicked.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        if self.inner.crew.is_none() {
            return Some(work(self));
        }
        let bookie = self.clone();
        tokio::task::spawn_blocking(move || work(&bookie)).await.ok()
    }

    /// Takes an entry. `Ok`: `done` will be told what came of it, exactly once, in a batch with
    /// the other appends of its group that share `done`. `Err`: refused, `done` is not called.
    /// Costs a lock and a push; never blocks on the disk.
    ///
    /// # Errors
    /// Why the entry is refused.
    pub fn append(
        &self,
        request: AppendRequest,
        done: &Arc<dyn AppendDone>,
        tag: u64,
    ) -> Result<(), BookieError> {
        self.inner.log.append(request, done, tag)
    }

    /// Reads consecutive entries, after fencing the ledger if asked to.
    ///
    /// # Errors
    /// Why the first entry can't be sent.
    pub async fn read(&self, request: ReadRequest) -> ReadResult {
        self.read_within(request, u64::MAX).await.map_err(|not_read| match not_read {
            NotRead::Failed(error) => error,
            NotRead::Larger(_) => BookieError::TooLarge,
        })
    }

    /// As [`Self::read`], but a first entry above `room` bytes is not read.
    pub(crate) async fn read_within(
        &self,
        request: ReadRequest,
        room: u64,
    ) -> Result<Vec<StoredEntry>, NotRead> {
        if let Some(token) = request.fence {
            self.fence(FenceRequest { ledger: request.ledger, token }).await?;
        }
        // The semaphore is never closed; were it, reading unbounded would be the lesser evil.
        let permit = self.inner.reads.clone().acquire_owned().await;
        // Whoever asked may never look at the answer: permit and piece don't wait for that.
        let read = self.aside(move |bookie| {
            let read = bookie.log().read(&request, room);
            let piece = read.as_ref().ok().and_then(|entries| bookie.log().sent(&request, entries));
            drop(permit);
            if let Some(piece) = piece {
                bookie.read_ahead(piece);
            }
            read
        });
        read.await.ok_or(BookieError::Io)?
    }

    /// Reads what will be asked for next, unless others have more urgent reads under way.
    fn read_ahead(&self, piece: Piece) {
        let Ok(permit) = self.inner.reads.clone().try_acquire_owned() else { return };
        if self.inner.crew.is_none() {
            return self.inner.log.read_ahead(&piece);
        }
        let log = self.inner.log.clone();
        // Whoever waits for the piece is told by its end, however that comes.
        drop(tokio::task::spawn_blocking(move || {
            log.read_ahead(&piece);
            drop((piece, permit));
        }));
    }

    /// Fences a ledger. Answers once the fence and all adds accepted before it are durable.
    ///
    /// # Errors
    /// Why it could not be fenced.
    pub async fn fence(&self, request: FenceRequest) -> FenceResult {
        match self.inner.log.fence(request)? {
            FenceAdmission::Done(result) => result,
            FenceAdmission::Queued(receiver) => receiver.await.unwrap_or(Err(BookieError::Io)),
        }
    }

    /// Whether each of these ledgers takes no ordinary adds under its token any more. Changes
    /// nothing, and doesn't wait for the disk.
    #[must_use]
    pub fn fenced(&self, ledgers: &[FenceRequest]) -> Vec<bool> {
        let log = &self.inner.log;
        log.with_state(|state| ledgers.iter().map(|asked| state.is_fenced(*asked)).collect())
    }

    /// Notes that these ledgers may be gone from the metadata. Deletes nothing by itself.
    pub fn delete_hint(&self, ledgers: &[LedgerId]) {
        let mut hints = self.inner.hints.lock();
        for ledger in ledgers {
            if hints.ledgers.len() < MAX_HINTS {
                hints.ledgers.insert(*ledger);
            } else {
                hints.overflown = true;
            }
        }
        drop(hints);
        self.inner.hinted.notify_one();
    }

    /// What the bookie says of itself.
    #[must_use]
    pub fn info(&self) -> BookieInfo {
        let log = &self.inner.log;
        let (sync_mode, now) = (log.device().sync_mode(), log.now());
        log.with_state(|state| BookieInfo {
            sync_mode,
            total_bytes: state.total_bytes(),
            free_bytes: state.ordinary_free_bytes(),
            writable: state.is_writable(),
            ledgers: state.table.len() as u64,
            segments: state.sealed.len() as u64 + state.sealing.len() as u64 + 1,
            lag: state.lag(now),
        })
    }

    /// No ledger that this bookie has ever stored anything of has a higher id, as far as it knows:
    /// those that only a lost segment told of are left out. 0: it knows of none.
    #[must_use]
    pub fn highest_ledger(&self) -> LedgerId {
        let highest = self.inner.log.with_state(LogState::known_ledger);
        // A record takes no id above.
        highest.min(LedgerId(LedgerId::MAX.0 - 1))
    }

    /// Whether owners of ledgers append here these days: what can wait stands back for them.
    #[must_use]
    pub fn is_written_to(&self) -> bool {
        let now = self.inner.log.now();
        let last = self.inner.log.with_state(|state| state.owned_append);
        last.is_some_and(|last| now.saturating_sub(last) < WRITTEN_TO)
    }

    /// Figures for an operator.
    #[must_use]
    pub fn metrics(&self) -> BookieMetrics {
        let now_ms = self.inner.log.wall_ms();
        self.inner.log.with_state(|state| BookieMetrics {
            unverified_seconds: state.unverified_ms(now_ms) / 1_000,
            appended_entries: state.counters.appended_entries,
            appended_bytes: state.counters.appended_bytes,
            groups: state.counters.groups,
            written_bytes: state.counters.written_bytes,
            fences: state.counters.fences,
            refused_appends: state.counters.refused,
            pending_bytes: state.pending_bytes,
            max_pending_bytes: state.limits.max_pending_bytes,
            sealed_segments: state.counters.sealed_segments,
            recycled_segments: state.counters.recycled_segments,
            rewritten_segments: state.counters.rewritten_segments,
            rewritten_bytes: state.counters.rewritten_bytes,
            rewriting: u64::from(state.rewrite.is_some()),
            deleted_ledgers: state.counters.deleted_ledgers,
            surplus_entries: state.counters.surplus_entries,
            scrubbed_bytes: state.counters.scrubbed_bytes,
            damaged_entries: state.counters.damaged_entries,
            damaged_now: state.damaged.len(),
            poisoned: u64::from(state.poisoned.is_some()),
        })
    }

    /// Begins, or begins anew, to verify everything that is sealed now. It goes on in the
    /// background.
    pub fn scrub(&self) -> ScrubProgress {
        self.inner.log.ask_for_scrub()
    }

    /// How far the scrub is that was asked for last.
    #[must_use]
    pub fn scrub_progress(&self) -> ScrubProgress {
        self.inner.log.with_state(LogState::scrub_progress)
    }

    /// Rises whenever what [`Self::damaged`] answers changes.
    #[must_use]
    pub fn damage_version(&self) -> u64 {
        self.inner.log.with_state(|state| state.damaged.version())
    }

    /// Entries that are known to be damaged here, as at most so many runs.
    #[must_use]
    pub fn damaged(&self, most: usize) -> Vec<DamagedRange> {
        self.inner.log.with_state(|state| state.damaged.ranges(most))
    }

    /// Why the bookie takes no writes any more, if so.
    #[must_use]
    pub fn poisoned(&self) -> Option<String> {
        self.inner.log.with_state(|state| state.poisoned.clone())
    }

    /// The highest revision of the metadata store that the disk knows.
    #[cfg(any(test, feature = "simulation"))]
    #[must_use]
    pub fn seen_revision(&self) -> u64 {
        self.inner.log.with_state(|state| state.manifest.metadata_revision)
    }

    /// Who this is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &BookieConfig {
        &self.inner.config
    }

    /// Writes and answers everything that was accepted, ends the threads, and leaves the log so
    /// that the next start has nothing to replay. Appends and fences are refused from now on.
    ///
    /// # Errors
    /// [`CloseError`]: the next start will replay.
    pub async fn close(&self) -> Result<(), CloseError> {
        self.aside(Self::close_now).await.unwrap_or(Err(CloseError::Panicked))
    }

    /// As [`Bookie::close`], blocking.
    ///
    /// # Errors
    /// As [`Bookie::close`].
    pub fn close_now(&self) -> Result<(), CloseError> {
        match &self.inner.crew {
            Some(crew) => crew.stop()?,
            #[cfg(any(test, feature = "simulation"))]
            None => self.inner.log.finish_by_hand(),
            #[cfg(not(any(test, feature = "simulation")))]
            None => {}
        }
        Ok(self.inner.log.seal_all()?)
    }

    pub(crate) fn log(&self) -> &Arc<Log> {
        &self.inner.log
    }

    /// Takes the hints that have come since the last call.
    pub(crate) fn take_hints(&self) -> Hints {
        std::mem::take(&mut *self.inner.hints.lock())
    }

    /// Puts hints back for the next look, without calling for it.
    pub(crate) fn keep_hints(&self, ledgers: &[LedgerId]) {
        let mut hints = self.inner.hints.lock();
        let room = MAX_HINTS.saturating_sub(hints.ledgers.len());
        hints.overflown |= ledgers.len() > room;
        hints.ledgers.extend(ledgers.iter().take(room));
    }

    /// Waits until there may be hints.
    pub(crate) async fn hinted(&self) {
        self.inner.hinted.notified().await;
    }
}

#[cfg(test)]
mod tests;
