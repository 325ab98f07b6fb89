//! [`MemoryStore`]: the store for tests and simulations. It keeps nothing, runs no task, and does
//! what its [`Faults`] say.
//!
//! Leases go by the injected clock. Since nothing runs in the background, a lease that is over
//! its deadline ends with the next request, or with [`MemoryStore::expire_leases`].

mod faults;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use geminga_proto::env::Clock;
use parking_lot::Mutex;

use super::apply::{Applied, Table, apply, end_lease};
use super::change_log::{ChangeLog, HistoryLimits};
use super::lease::LeaseTable;
use super::limits::{check_key, check_prefix, check_txn};
use super::{
    KeyValue, LeaseId, MAX_RANGE, MetadataStore, RangePage, Revision, StoreError, Txn, TxnOutcome,
    Watch,
};

pub use faults::{Fault, Faults, Request};

#[derive(Debug)]
struct Row {
    value: Bytes,
    modified: Revision,
    lease: Option<LeaseId>,
}

#[derive(Debug, Default)]
struct Rows(BTreeMap<String, Row>);

impl Table for Rows {
    fn modified(&self, key: &str) -> Result<Option<Revision>, StoreError> {
        Ok(self.0.get(key).map(|row| row.modified))
    }

    fn put(
        &mut self,
        key: &str,
        value: &Bytes,
        revision: Revision,
        lease: Option<LeaseId>,
    ) -> Result<(), StoreError> {
        let row = Row { value: value.clone(), modified: revision, lease };
        self.0.insert(key.to_owned(), row);
        Ok(())
    }

    fn delete(&mut self, key: &str) -> Result<(), StoreError> {
        self.0.remove(key);
        Ok(())
    }
}

#[derive(Debug)]
struct State {
    rows: Rows,
    revision: Revision,
    leases: LeaseTable,
}

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    clock: Arc<dyn Clock>,
    faults: Faults,
    changes: ChangeLog,
    state: Mutex<State>,
}

impl MemoryStore {
    /// An empty store without faults.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::with_history(clock, HistoryLimits::default())
    }

    /// An empty store that keeps so much history for watches.
    #[must_use]
    pub fn with_history(clock: Arc<dyn Clock>, history: HistoryLimits) -> Self {
        let (rows, revision, leases) = (Rows::default(), Revision(0), LeaseTable::new(1));
        Self {
            clock,
            faults: Faults::default(),
            changes: ChangeLog::new(revision, history),
            state: Mutex::new(State { rows, revision, leases }),
        }
    }

    /// What goes wrong.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Ends the leases that are over their deadline.
    pub fn expire_leases(&self) {
        // Nothing in memory fails; the table's signature is that of a disk's.
        if let Err(error) = self.sweep(&mut self.state.lock()) {
            tracing::error!(%error, "leases could not be ended");
        }
    }

    /// Ends every watch with `WatchError::Lost`.
    pub fn lose_watches(&self) {
        self.changes.lose_watches();
    }

    /// Forgets the history: watches that have not seen it end, and later ones can't start
    /// before now.
    pub fn compact(&self) {
        self.changes.compact();
    }

    /// The store's revision.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.state.lock().revision
    }

    fn sweep(&self, state: &mut State) -> Result<(), StoreError> {
        for lease in state.leases.expired(self.clock.monotonic()) {
            self.end(state, lease)?;
        }
        Ok(())
    }

    fn end(&self, state: &mut State, lease: LeaseId) -> Result<(), StoreError> {
        let next = Revision(state.revision.0 + 1);
        let events = end_lease(&mut state.rows, &mut state.leases, lease, next)?;
        if !events.is_empty() {
            state.revision = next;
            self.changes.append(next, events);
        }
        Ok(())
    }

    fn apply(&self, txn: &Txn) -> Result<TxnOutcome, StoreError> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        self.sweep(state)?;
        let next = Revision(state.revision.0 + 1);
        match apply(&mut state.rows, &mut state.leases, txn, next)? {
            Applied::Conflict => Ok(TxnOutcome::Conflict(state.revision)),
            Applied::Refused(error) => Err(error),
            Applied::Written(events) if events.is_empty() => {
                Ok(TxnOutcome::Applied(state.revision))
            }
            Applied::Written(events) => {
                state.revision = next;
                self.changes.append(next, events);
                Ok(TxnOutcome::Applied(next))
            }
        }
    }

    fn read_range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RangePage, StoreError> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        self.sweep(state)?;
        let limit = limit.min(MAX_RANGE);
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let in_prefix = |(key, _): &(&String, &Row)| key.starts_with(prefix);
        let rows = state.rows.0.range::<str, _>((start, Bound::Unbounded)).take_while(in_prefix);
        let mut pairs: Vec<KeyValue> =
            rows.take(limit + 1).map(|(key, row)| pair(key, row)).collect();
        let more = pairs.len() > limit;
        pairs.truncate(limit);
        Ok(RangePage { pairs, revision: state.revision, more })
    }
}

fn pair(key: &str, row: &Row) -> KeyValue {
    let value = row.value.clone();
    KeyValue { key: key.to_owned(), value, modified: row.modified, lease: row.lease }
}

#[async_trait]
impl MetadataStore for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        check_key(key)?;
        self.faults.read(Request::Get(key)).await?;
        let mut guard = self.state.lock();
        self.sweep(&mut guard)?;
        Ok(guard.rows.0.get_key_value(key).map(|(key, row)| pair(key, row)))
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RangePage, StoreError> {
        check_prefix(prefix)?;
        self.faults.read(Request::Range(prefix)).await?;
        self.read_range(prefix, after, limit)
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        check_txn(&txn)?;
        self.faults.write(Request::Txn(&txn), || self.apply(&txn)).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        check_prefix(prefix)?;
        self.faults.read(Request::Watch(prefix)).await?;
        Ok(self.changes.watch(prefix, after))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let grant = || self.state.lock().leases.grant(ttl, self.clock.monotonic());
        self.faults.write(Request::Lease, grant).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let keep = || {
            let mut guard = self.state.lock();
            self.sweep(&mut guard)?;
            guard.leases.keep_alive(lease, self.clock.monotonic())
        };
        self.faults.write(Request::Lease, keep).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        let revoke = || {
            let mut guard = self.state.lock();
            self.sweep(&mut guard)?;
            if !guard.leases.is_alive(lease) {
                return Err(StoreError::LeaseLost);
            }
            self.end(&mut guard, lease)
        };
        self.faults.write(Request::Lease, revoke).await
    }
}

#[cfg(test)]
mod tests;
