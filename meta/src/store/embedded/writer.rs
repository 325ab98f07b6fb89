//! The one thread that writes: takes everything that waits, applies it in its order within one
//! redb transaction, commits durably, tells the watchers, answers.
//!
//! Invariants: nothing is answered as done before the commit that holds it returned; the lease
//! table is touched by this thread only; when the thread ends, however it ends, everything that
//! waits is answered and later requests are refused.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_proto::env::{Clock, Env};
use parking_lot::{Condvar, Mutex};
use redb::{Database, ReadableTable, Table as RedbTable, WriteTransaction};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::file::{LEASED, PAIRS, REVISION, Row, STORE, decode_row, encode_row, store_error};
use super::{EmbeddedConfig, FreeBytes};
use crate::store::apply::{Applied, Table, apply, end_lease};
use crate::store::change_log::ChangeLog;
use crate::store::lease::LeaseTable;
use crate::store::{
    Compare, HistoryLimits, LeaseId, Op, Revision, StoreError, Txn, TxnOutcome, WatchEvent,
};

/// Most requests in one group, so that the first of them doesn't wait for ever.
const MAX_GROUP: usize = 1_024;
/// Most KiB that wait, every request counting as at least one.
const QUEUE_KIB: u32 = 8 * 1024;

pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the writer is asked.
#[derive(Debug)]
pub(super) enum Request {
    /// Apply a checked transaction.
    Txn { txn: Txn, answer: Answer<TxnOutcome> },
    /// Start a lease.
    Grant { ttl: Duration, answer: Answer<LeaseId> },
    /// Keep a lease alive.
    KeepAlive { lease: LeaseId, answer: Answer<()> },
    /// End a lease.
    Revoke { lease: LeaseId, answer: Answer<()> },
}

impl Request {
    fn fail(self, error: StoreError) {
        Outcome::failed(self, error).send();
    }
}

/// Bytes of a transaction's keys and values.
pub(super) fn txn_bytes(txn: &Txn) -> usize {
    let compared = txn.compares.iter().map(|compare| match compare {
        Compare::Absent(key) | Compare::Present(key) | Compare::Unchanged(key, _) => key.len(),
    });
    let written = txn.ops.iter().map(|op| match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete(key) => key.len(),
    });
    compared.chain(written).sum()
}

#[derive(Debug, Default)]
struct Queue {
    requests: VecDeque<(Request, OwnedSemaphorePermit)>,
    /// The store is being dropped.
    stop: bool,
    /// Why nothing is taken any more.
    broken: Option<StoreError>,
}

/// What the store's handle and its writer share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The database. Written by the writer only.
    pub database: Database,
    /// Recent changes, for watches. Appended to by the writer only.
    pub changes: ChangeLog,
    queue: Mutex<Queue>,
    ready: Condvar,
    room: Arc<Semaphore>,
}

impl Shared {
    pub(super) fn new(database: Database, revision: Revision, history: HistoryLimits) -> Self {
        Self {
            database,
            changes: ChangeLog::new(revision, history),
            queue: Mutex::default(),
            ready: Condvar::new(),
            room: Arc::new(Semaphore::new(QUEUE_KIB as usize)),
        }
    }

    /// Refuses once the store is broken.
    pub(super) fn check_alive(&self) -> Result<(), StoreError> {
        match &self.queue.lock().broken {
            None => Ok(()),
            Some(error) => Err(error.clone()),
        }
    }

    /// Waits for room, then queues a request of so many bytes.
    pub(super) async fn enqueue(&self, bytes: usize, request: Request) -> Result<(), StoreError> {
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(QUEUE_KIB).min(QUEUE_KIB);
        let closed = |_| StoreError::Unavailable("the store is closed".to_owned());
        let room = Arc::clone(&self.room).acquire_many_owned(kib).await.map_err(closed)?;
        {
            let mut queue = self.queue.lock();
            if let Some(error) = &queue.broken {
                return Err(error.clone());
            }
            queue.requests.push_back((request, room));
        }
        self.ready.notify_one();
        Ok(())
    }

    /// Ends the writer after what waits.
    pub(super) fn stop(&self) {
        self.queue.lock().stop = true;
        self.ready.notify_one();
    }

    /// Refuses everything from now on and answers what waits.
    fn break_down(&self, error: &StoreError) {
        let waiting = {
            let mut queue = self.queue.lock();
            queue.broken.get_or_insert_with(|| error.clone());
            std::mem::take(&mut queue.requests)
        };
        self.changes.close(&error.to_string());
        for (request, _room) in waiting {
            request.fail(error.clone());
        }
    }
}

/// A request with what came of it.
#[derive(Debug)]
enum Outcome {
    Txn(Answer<TxnOutcome>, Result<TxnOutcome, StoreError>),
    Grant(Answer<LeaseId>, Result<LeaseId, StoreError>),
    Lease(Answer<()>, Result<(), StoreError>),
}

impl Outcome {
    fn failed(request: Request, error: StoreError) -> Self {
        match request {
            Request::Txn { answer, .. } => Self::Txn(answer, Err(error)),
            Request::Grant { answer, .. } => Self::Grant(answer, Err(error)),
            Request::KeepAlive { answer, .. } | Request::Revoke { answer, .. } => {
                Self::Lease(answer, Err(error))
            }
        }
    }

    /// Replaces an outcome that was to be a success.
    fn doubt(self, error: &StoreError) -> Self {
        match self {
            Self::Txn(answer, Ok(_)) => Self::Txn(answer, Err(error.clone())),
            Self::Grant(answer, Ok(_)) => Self::Grant(answer, Err(error.clone())),
            Self::Lease(answer, Ok(())) => Self::Lease(answer, Err(error.clone())),
            refused => refused,
        }
    }

    /// Whoever asked may have gone; then nobody needs the answer.
    fn send(self) {
        let _gone = match self {
            Self::Txn(answer, result) => answer.send(result).is_err(),
            Self::Grant(answer, result) => answer.send(result).is_err(),
            Self::Lease(answer, result) => answer.send(result).is_err(),
        };
    }
}

/// What a group has come to before its commit.
#[derive(Debug, Default)]
struct Group {
    outcomes: Vec<Outcome>,
    changes: Vec<(Revision, Vec<WatchEvent>)>,
}

/// The writer's own state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    leases: LeaseTable,
    lease_check: Duration,
    revision: Revision,
    free_bytes: FreeBytes,
    min_free_bytes: u64,
    last_free_bytes: u64,
}

impl Writer {
    pub(super) fn new(
        shared: Arc<Shared>,
        revision: Revision,
        config: &EmbeddedConfig,
        env: &Env,
        free_bytes: FreeBytes,
    ) -> Self {
        Self {
            shared,
            clock: Arc::clone(&env.clock),
            // Random, so that a lease of a former process is not taken for a new one.
            leases: LeaseTable::new((env.random.next_u64() >> 2).max(1)),
            lease_check: config.lease_check,
            revision,
            free_bytes,
            min_free_bytes: config.min_free_bytes,
            last_free_bytes: config.last_free_bytes,
        }
    }

    /// Serves until the store is dropped or breaks down.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
        let error = match served {
            Ok(Ok(())) => StoreError::Unavailable("the store is closed".to_owned()),
            Ok(Err(why)) => {
                tracing::error!(%why, "the metadata store failed and takes no more requests");
                StoreError::Unavailable(format!("it failed before, restart the process: {why}"))
            }
            Err(_) => {
                tracing::error!("the metadata thread panicked and takes no more requests");
                StoreError::Unavailable("it panicked before, restart the process".to_owned())
            }
        };
        shared.break_down(&error);
    }

    fn serve(&mut self) -> Result<(), StoreError> {
        while let Some(requests) = self.wait() {
            let due = !self.leases.expired(self.clock.monotonic()).is_empty();
            if due || !requests.is_empty() {
                self.serve_group(requests)?;
            }
        }
        Ok(())
    }

    /// What waits, as soon as there is some, or nothing when it is time to look at the leases;
    /// `None` at the end.
    fn wait(&self) -> Option<Vec<(Request, OwnedSemaphorePermit)>> {
        let mut queue = self.shared.queue.lock();
        if queue.requests.is_empty() && !queue.stop {
            match self.leases.next_deadline() {
                None => self.shared.ready.wait(&mut queue),
                Some(deadline) => {
                    // The clock is injected and may run at another pace than the system's.
                    let left = deadline.saturating_sub(self.clock.monotonic());
                    self.shared.ready.wait_for(&mut queue, left.min(self.lease_check));
                }
            }
        }
        if queue.requests.is_empty() && queue.stop {
            return None;
        }
        let group = queue.requests.len().min(MAX_GROUP);
        Some(queue.requests.drain(..group).collect())
    }

    fn serve_group(
        &mut self,
        requests: Vec<(Request, OwnedSemaphorePermit)>,
    ) -> Result<(), StoreError> {
        let (requests, _room): (Vec<_>, Vec<_>) = requests.into_iter().unzip();
        let shared = Arc::clone(&self.shared);
        let write = match shared.database.begin_write() {
            Ok(write) => write,
            Err(error) => return refuse(requests, store_error(error)),
        };
        let mut group = Group::default();
        let mut requests = VecDeque::from(requests);
        if let Err(error) = self.apply_group(&write, &mut requests, &mut group) {
            // Not committed, so certainly not done.
            for outcome in group.outcomes.drain(..) {
                outcome.doubt(&error).send();
            }
            return refuse(requests, error);
        }
        if group.changes.is_empty() {
            write.abort().map_err(store_error)?;
        } else if let Err(error) = write.commit() {
            let error = store_error(error);
            let unknown = StoreError::Unknown(format!("the commit failed: {error}"));
            for outcome in group.outcomes.drain(..) {
                outcome.doubt(&unknown).send();
            }
            return Err(error);
        }
        for (revision, events) in group.changes {
            self.revision = revision;
            shared.changes.append(revision, events);
        }
        for outcome in group.outcomes {
            outcome.send();
        }
        Ok(())
    }

    /// Applies expired leases, then the requests in their order. On an error the requests that
    /// were not yet looked at are left in `requests`.
    fn apply_group(
        &mut self,
        write: &WriteTransaction,
        requests: &mut VecDeque<Request>,
        group: &mut Group,
    ) -> Result<(), StoreError> {
        let mut tables = Tables::open(write)?;
        let space = self.check_space();
        for lease in self.leases.expired(self.clock.monotonic()) {
            self.end_lease(&mut tables, lease, group)?;
        }
        while let Some(request) = requests.pop_front() {
            let outcome = match request {
                Request::Txn { txn, answer } => {
                    match self.apply_txn(&mut tables, &txn, &space, group) {
                        Ok(outcome) => Outcome::Txn(answer, outcome),
                        Err(error) => {
                            Outcome::Txn(answer, Err(error.clone())).send();
                            return Err(error);
                        }
                    }
                }
                Request::Grant { ttl, answer } => {
                    Outcome::Grant(answer, self.leases.grant(ttl, self.clock.monotonic()))
                }
                Request::KeepAlive { lease, answer } => {
                    Outcome::Lease(answer, self.leases.keep_alive(lease, self.clock.monotonic()))
                }
                Request::Revoke { lease, answer } if self.leases.is_alive(lease) => {
                    let ended = self.end_lease(&mut tables, lease, group);
                    let failed = ended.clone().err();
                    group.outcomes.push(Outcome::Lease(answer, ended));
                    match failed {
                        Some(error) => return Err(error),
                        None => continue,
                    }
                }
                Request::Revoke { answer, .. } => {
                    Outcome::Lease(answer, Err(StoreError::LeaseLost))
                }
            };
            group.outcomes.push(outcome);
        }
        match group.changes.last() {
            Some((revision, _)) => tables.set_revision(*revision),
            None => Ok(()),
        }
    }

    fn current(&self, group: &Group) -> Revision {
        group.changes.last().map_or(self.revision, |(revision, _)| *revision)
    }

    fn end_lease(
        &mut self,
        tables: &mut Tables<'_>,
        lease: LeaseId,
        group: &mut Group,
    ) -> Result<(), StoreError> {
        let next = Revision(self.current(group).0 + 1);
        let events = end_lease(tables, &mut self.leases, lease, next)?;
        if !events.is_empty() {
            group.changes.push((next, events));
        }
        Ok(())
    }

    /// The outer error is the store's, the inner one the transaction's.
    fn apply_txn(
        &mut self,
        tables: &mut Tables<'_>,
        txn: &Txn,
        space: &Space,
        group: &mut Group,
    ) -> Result<Result<TxnOutcome, StoreError>, StoreError> {
        if let Err(refused) = space.check(tables, txn) {
            return Ok(Err(refused));
        }
        let current = self.current(group);
        let next = Revision(current.0 + 1);
        Ok(match apply(tables, &mut self.leases, txn, next)? {
            Applied::Conflict => Ok(TxnOutcome::Conflict(current)),
            Applied::Refused(error) => Err(error),
            Applied::Written(events) if events.is_empty() => Ok(TxnOutcome::Applied(current)),
            Applied::Written(events) => {
                group.changes.push((next, events));
                Ok(TxnOutcome::Applied(next))
            }
        })
    }

    /// Refusing writes in time keeps redb from meeting the end of the disk in the middle of a
    /// commit, after which it could only be opened anew.
    fn check_space(&self) -> Space {
        let full = |free: u64, wanted: u64| {
            let why = format!("{free} bytes are left on its disk and {wanted} must be");
            StoreError::Full(format!("{why}; free some space"))
        };
        match (self.free_bytes)() {
            Ok(free) if free < self.last_free_bytes => {
                Space::None(full(free, self.last_free_bytes))
            }
            Ok(free) if free < self.min_free_bytes => {
                Space::Little(full(free, self.min_free_bytes))
            }
            Ok(_) => Space::Enough,
            // The commit will say so if the disk is really out of reach.
            Err(error) => {
                tracing::warn!(%error, "the free space of the metadata's disk is unknown");
                Space::Enough
            }
        }
    }
}

/// What the disk has left for metadata.
#[derive(Debug)]
enum Space {
    Enough,
    /// For what doesn't make the store grow for good: what frees space writes keys, too.
    Little(StoreError),
    /// For deletions.
    None(StoreError),
}

impl Space {
    /// Refuses a transaction that there is no space for.
    fn check(&self, tables: &Tables<'_>, txn: &Txn) -> Result<(), StoreError> {
        let puts = txn.ops.iter().any(|op| matches!(op, Op::Put { .. }));
        match self {
            Self::Enough => Ok(()),
            _ if !puts => Ok(()),
            Self::None(full) => Err(full.clone()),
            Self::Little(full) => {
                let (mut adds, mut deletes) = (false, false);
                for op in &txn.ops {
                    match op {
                        // Few, small, and gone with whoever holds the lease. Without them a broker
                        // that starts again could not own what has to be consumed and trimmed.
                        Op::Put { lease: Some(_), .. } => {}
                        Op::Put { key, lease: None, .. } => adds |= tables.modified(key)?.is_none(),
                        Op::Delete(key) => deletes |= tables.modified(key)?.is_some(),
                    }
                }
                if adds && !deletes { Err(full.clone()) } else { Ok(()) }
            }
        }
    }
}

fn refuse(
    requests: impl IntoIterator<Item = Request>,
    error: StoreError,
) -> Result<(), StoreError> {
    for request in requests {
        request.fail(error.clone());
    }
    Err(error)
}

/// The tables of one redb transaction.
struct Tables<'txn> {
    pairs: RedbTable<'txn, &'static str, &'static [u8]>,
    leased: RedbTable<'txn, &'static str, u64>,
    store: RedbTable<'txn, &'static str, u64>,
}

impl<'txn> Tables<'txn> {
    fn open(write: &'txn WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            pairs: write.open_table(PAIRS).map_err(store_error)?,
            leased: write.open_table(LEASED).map_err(store_error)?,
            store: write.open_table(STORE).map_err(store_error)?,
        })
    }

    fn set_revision(&mut self, revision: Revision) -> Result<(), StoreError> {
        self.store.insert(REVISION, revision.0).map_err(store_error)?;
        Ok(())
    }
}

impl Table for Tables<'_> {
    fn modified(&self, key: &str) -> Result<Option<Revision>, StoreError> {
        match self.pairs.get(key).map_err(store_error)? {
            None => Ok(None),
            Some(row) => decode_row(key, row.value()).map(|row| Some(row.modified)),
        }
    }

    fn put(
        &mut self,
        key: &str,
        value: &Bytes,
        revision: Revision,
        lease: Option<LeaseId>,
    ) -> Result<(), StoreError> {
        let row = encode_row(key, &Row { modified: revision, lease, value });
        self.pairs.insert(key, row.as_slice()).map_err(store_error)?;
        match lease {
            Some(lease) => self.leased.insert(key, lease.0).map_err(store_error)?,
            None => self.leased.remove(key).map_err(store_error)?,
        };
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Result<(), StoreError> {
        self.pairs.remove(key).map_err(store_error)?;
        self.leased.remove(key).map_err(store_error)?;
        Ok(())
    }
}
