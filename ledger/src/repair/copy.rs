//! [`Copier`]: executes one run of a plan: reads entries from whoever has them, sends them, and
//! reads them back.
//!
//! Invariants: an entry that no source can read is an error, never skipped; nothing counts as
//! copied before it was read back from its new place and found the same; nothing is sent once the
//! worker's lease may have ended.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geminga_meta::lease_keeper::LeaseKeeper;
use geminga_proto::id::{BookieId, EntryId, LedgerId};
use geminga_proto::storage::{
    AddKind, AppendRequest, AppendResult, BookieError, FenceRequest, ReadRequest, StoredEntry,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metadata::{LedgerMetadata, LedgerState};
use crate::reader::read_one;
use crate::repair::RepairMetrics;
#[cfg(any(test, feature = "harness"))]
use crate::repair::defect::Defect;
use crate::repair::plan::{CopyRun, How};
use crate::repair::throttle::Throttle;
use crate::store::StoreShared;
use crate::transport::AppendSink;

/// Entries that are copied at a time.
const CHUNK_ENTRIES: u32 = 256;
/// Bytes that are copied at a time, unless one entry has more. What a producer sends to that bookie
/// meanwhile waits for no more than that.
const CHUNK_BYTES: u64 = 256 * 1024;
/// Entries that are sent again when one of them is found missing.
const MISSING_ENTRIES: u32 = 32;
/// Times that a bookie may say that it has too much to do.
const OVERLOADED: u32 = 20;

/// Why entries could not be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// No bookie could send an entry.
    #[error("entry {entry} can't be read from any of its bookies: {error}")]
    NoCopy {
        /// The entry.
        entry: EntryId,
        /// The most telling answer.
        error: BookieError,
    },
    /// The bookie that was to have them failed.
    #[error("bookie {bookie} can't take entry {entry}: {error}")]
    Target {
        /// The bookie.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
        /// Its answer.
        error: BookieError,
    },
    /// What was read back differs from what was sent.
    #[error("bookie {bookie} has something else as entry {entry} than was sent to it")]
    Differs {
        /// The bookie.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
    },
    /// The worker's lease may have ended: another one may be at it.
    #[error("the worker's lease has ended")]
    LeaseLost,
}

/// Some neighbours of a run, done with.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// The entry after them.
    next: EntryId,
    /// Bytes that were sent for them.
    sent: u64,
    /// How long the throttle has held it up.
    waited: Duration,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Copier<'a> {
    pub store: &'a StoreShared,
    pub metadata: &'a LedgerMetadata,
    pub throttle: &'a Throttle,
    pub metrics: &'a RepairMetrics,
    pub lease: &'a LeaseKeeper,
    /// What the simulation has planted.
    #[cfg(any(test, feature = "harness"))]
    pub planted: Option<Defect>,
}

impl Copier<'_> {
    /// Makes a bookie that gets copies of a closed ledger refuse ordinary adds to it, as the others
    /// do. One of an open ledger may be its owner's, who must not be fenced.
    pub(super) async fn fence(&self, bookie: &BookieId) -> Result<(), CopyError> {
        if self.metadata.state != LedgerState::Closed {
            return Ok(());
        }
        self.check_lease()?;
        let request = FenceRequest { ledger: self.metadata.id, token: self.metadata.token };
        let asked = self.store.transport.fence(bookie, request);
        let answer = tokio::time::timeout(self.store.request_timeout, asked).await;
        match answer.unwrap_or(Err(BookieError::Unreachable)) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.target(bookie, EntryId(0), error)),
        }
    }

    /// Copies a run; answers the bytes that were sent.
    pub(super) async fn copy(&self, run: &CopyRun) -> Result<u64, CopyError> {
        let (mut next, mut sent) = (run.first, 0);
        while next <= run.last {
            let began = self.store.env.clock.monotonic();
            let piece = self.piece(run, next).await?;
            (next, sent) = (piece.next, sent + piece.sent);
            self.throttle.stand_back(began, piece.waited).await;
        }
        Ok(sent)
    }

    async fn piece(&self, run: &CopyRun, first: EntryId) -> Result<Piece, CopyError> {
        self.check_lease()?;
        if run.how == How::Missing
            && let Some(there) = self.is_there(run, first).await?
        {
            return Ok(there);
        }
        let read = self.read(run, first).await;
        if run.how == How::Damaged
            && let Err(CopyError::NoCopy { .. }) = read
            && let Some(there) = self.is_there(run, first).await?
        {
            return Ok(there);
        }
        let entries = read?;
        let bytes: u64 = entries.iter().map(|stored| stored.payload.len() as u64).sum();
        let waited = self.throttle.take(bytes).await;
        self.check_lease()?;
        let piece = Piece { next: EntryId(first.0 + entries.len() as u64), sent: bytes, waited };
        #[cfg(any(test, feature = "harness"))]
        if self.planted == Some(Defect::CopyNotAwaited) {
            self.send_unheard(&run.to, &entries);
            return Ok(piece);
        }
        self.send(&run.to, &entries).await?;
        self.verify(&run.to, &entries).await?;
        self.metrics.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(piece)
    }

    fn check_lease(&self) -> Result<(), CopyError> {
        if self.lease.is_held() { Ok(()) } else { Err(CopyError::LeaseLost) }
    }

    fn target(&self, bookie: &BookieId, entry: EntryId, error: BookieError) -> CopyError {
        self.store.placement.failed(bookie, error);
        CopyError::Target { bookie: bookie.clone(), entry, error }
    }

    fn request(&self, first: EntryId, last: EntryId, most: u32) -> ReadRequest {
        let left = u32::try_from(last.0 - first.0 + 1).unwrap_or(u32::MAX);
        ReadRequest {
            ledger: self.metadata.id,
            first,
            max_entries: left.min(most),
            max_bytes: CHUNK_BYTES,
            fence: None,
        }
    }

    /// Those that the bookie reads well from `next` on; `None` if it can't read that one.
    async fn is_there(&self, run: &CopyRun, next: EntryId) -> Result<Option<Piece>, CopyError> {
        let request = self.request(next, run.last, CHUNK_ENTRIES);
        match read_one(self.store, &run.to, request).await {
            Ok(entries) => {
                let bytes = entries.iter().map(|stored| stored.payload.len() as u64).sum();
                let waited = self.throttle.take(bytes).await;
                let next = EntryId(next.0 + entries.len() as u64);
                Ok(Some(Piece { next, sent: 0, waited }))
            }
            Err(
                BookieError::NoSuchEntry | BookieError::UnknownEntry | BookieError::CorruptEntry,
            ) => Ok(None),
            Err(error) => Err(self.target(&run.to, next, error)),
        }
    }

    /// Entries from `first` on, from the first source that has that one.
    async fn read(&self, run: &CopyRun, first: EntryId) -> Result<Vec<StoredEntry>, CopyError> {
        let most = if run.how == How::Missing { MISSING_ENTRIES } else { CHUNK_ENTRIES };
        let request = self.request(first, run.last, most);
        let mut worst = BookieError::NoSuchEntry;
        for source in &run.from {
            match read_one(self.store, source, request).await {
                Ok(entries) => return Ok(entries),
                Err(error) => {
                    let ledger = self.metadata.id;
                    tracing::debug!(%ledger, %first, %source, %error, "a copy can't be read");
                    worst = if worst == BookieError::NoSuchEntry { error } else { worst };
                }
            }
        }
        Err(CopyError::NoCopy { entry: first, error: worst })
    }

    /// Sends entries, and waits until all of them are stored.
    async fn send(&self, to: &BookieId, entries: &[StoredEntry]) -> Result<(), CopyError> {
        let pause = Duration::from_millis(self.store.config.retry_interval_ms);
        let mut left: Vec<&StoredEntry> = entries.iter().collect();
        for _ in 0..OVERLOADED {
            let answers = self.send_once(to, &left).await;
            let mut again = Vec::new();
            for stored in left {
                let answer = answers.iter().find(|(entry, _)| *entry == stored.entry);
                match answer.map_or(Err(BookieError::Unreachable), |(_, result)| *result) {
                    Ok(()) => {}
                    Err(BookieError::Overloaded) => again.push(stored),
                    Err(error) => return Err(self.target(to, stored.entry, error)),
                }
            }
            if again.is_empty() {
                return Ok(());
            }
            left = again;
            tokio::time::sleep(pause).await;
        }
        let entry = left.first().map_or(EntryId(0), |stored| stored.entry);
        Err(self.target(to, entry, BookieError::Overloaded))
    }

    /// Sends entries once each; answers that come too late are none.
    async fn send_once(
        &self,
        to: &BookieId,
        entries: &[&StoredEntry],
    ) -> Vec<(EntryId, AppendResult)> {
        let answers = Arc::new(Answers { ledger: self.metadata.id, ..Answers::default() });
        self.append(to, entries, &answers);
        let patience = Duration::from_millis(self.store.config.append_timeout_ms);
        let deadline = Instant::now() + patience;
        while answers.got.lock().len() < entries.len() {
            let arrived = answers.arrived.notified();
            if tokio::time::timeout_at(deadline, arrived).await.is_err() {
                break;
            }
        }
        std::mem::take(&mut *answers.got.lock())
    }

    /// Sends entries to whom it doesn't matter what comes of it.
    #[cfg(any(test, feature = "harness"))]
    fn send_unheard(&self, to: &BookieId, entries: &[StoredEntry]) {
        let entries: Vec<&StoredEntry> = entries.iter().collect();
        self.append(to, &entries, &Arc::default());
    }

    fn append(&self, to: &BookieId, entries: &[&StoredEntry], answers: &Arc<Answers>) {
        let sink: Arc<dyn AppendSink> = Arc::clone(answers) as _;
        for stored in entries {
            let request = AppendRequest {
                ledger: self.metadata.id,
                entry: stored.entry,
                token: self.metadata.token,
                // What it was stored with: no more was known then, and no less is told now.
                lac: stored.lac,
                kind: AddKind::Recovery,
                payload: stored.payload.clone().into(),
            };
            self.store.transport.append(to, request, &sink);
        }
    }

    /// Reads back what was sent.
    async fn verify(&self, to: &BookieId, entries: &[StoredEntry]) -> Result<(), CopyError> {
        let mut left = entries;
        while let (Some(first), Some(last)) = (left.first(), left.last()) {
            let request = self.request(first.entry, last.entry, CHUNK_ENTRIES);
            let found = read_one(self.store, to, request).await;
            let found = found.map_err(|error| self.target(to, first.entry, error))?;
            for (found, sent) in found.iter().zip(left) {
                if found.payload != sent.payload {
                    let (bookie, entry) = (to.clone(), sent.entry);
                    return Err(CopyError::Differs { bookie, entry });
                }
            }
            left = left.get(found.len()..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Answers to adds; bounded by the adds that are sent.
#[derive(Debug, Default)]
struct Answers {
    ledger: LedgerId,
    got: Mutex<Vec<(EntryId, AppendResult)>>,
    arrived: Notify,
}

impl AppendSink for Answers {
    fn append_done(&self, bookie: &BookieId, entry: EntryId, result: AppendResult) {
        if let Err(error) = result {
            tracing::debug!(ledger = %self.ledger, %entry, %bookie, %error, "a copy isn't taken");
        }
        self.got.lock().push((entry, result));
        self.arrived.notify_one();
    }
}
