//! [`MetadataStore`]: what every backend promises, and the plain types it speaks.
//!
//! Promises, held by `store::contract` for each backend:
//! - Linearizable: a read that starts after a transaction was answered sees it.
//! - One revision counter for the whole store, rising by one with each transaction that wrote;
//!   transactions that are asked for at the same time, and have no key in common that one of them
//!   writes, may share one.
//! - A transaction applies as a whole or not at all.
//! - A watch delivers every change of its prefix after its start revision, in revision order,
//!   without gaps, or ends with [`WatchError`]; it never skips silently.
//! - When a lease ends, its keys go in one transaction.
//! - [`StoreError::Unknown`] means exactly that: applied or not. Every value carries its
//!   writer's nonce (`record::Stamp`), so the caller can re-read and compare.

mod apply;
mod change_log;
#[cfg(any(test, feature = "contract"))]
pub mod contract;
pub mod embedded;
pub mod etcd;
#[cfg(test)]
pub(crate) mod front;
mod lease;
mod limits;
pub mod memory;

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use change_log::HistoryLimits;
pub use embedded::{EmbeddedConfig, EmbeddedStore};
pub use etcd::{EtcdConfig, EtcdStore};
pub use limits::MAX_KEY_BYTES;
pub use memory::MemoryStore;

/// Most compares, and most operations, in one transaction: etcd's default.
pub const MAX_TXN_OPS: usize = 128;
/// Largest transaction in bytes, keys and values together: etcd's default request limit of
/// 1.5 MiB, less what its protocol and a prefix put around the most operations there can be.
pub const MAX_TXN_BYTES: usize = (1_536 - 64) * 1024;
/// Largest number of pairs that one [`MetadataStore::range`] answers.
pub const MAX_RANGE: usize = 1_000;

/// A moment in the store's history.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// A lease's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, below the store's prefix.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// Revision of the transaction that last wrote it.
    pub modified: Revision,
    /// The lease it is bound to.
    pub lease: Option<LeaseId>,
}

/// What must hold for a transaction to apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key doesn't exist.
    Absent(String),
    /// The key exists.
    Present(String),
    /// The key exists and was last written at this revision.
    Unchanged(String, Revision),
}

/// One write of a transaction. A key appears at most once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a value.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
        /// Deletes the key when this lease ends.
        lease: Option<LeaseId>,
    },
    /// Deletes a key, which need not exist.
    Delete(String),
}

/// All of `ops` if all of `compares` hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// Conditions.
    pub compares: Vec<Compare>,
    /// Writes.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds a write.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: None });
        self
    }

    /// Adds a write that goes with a lease.
    #[must_use]
    pub fn put_leased(
        mut self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: Some(lease) });
        self
    }

    /// Adds a deletion.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete(key.into()));
        self
    }

    /// Adds another transaction's conditions and writes.
    pub fn merge(&mut self, other: Txn) {
        self.compares.extend(other.compares);
        self.ops.extend(other.ops);
    }
}

/// What came of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxnOutcome {
    /// Applied, at this revision.
    Applied(Revision),
    /// A condition didn't hold; nothing was written. The store's revision then.
    Conflict(Revision),
}

/// Answer of a range read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangePage {
    /// Pairs in key order.
    pub pairs: Vec<KeyValue>,
    /// The store's revision when it was read.
    pub revision: Revision,
    /// True if there are more pairs; go on after the last key.
    pub more: bool,
}

/// One change that a watch saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchEvent {
    /// Revision of the change.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// Its new value; `None` when it was deleted.
    pub value: Option<Bytes>,
}

/// Why a store couldn't answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Certainly not done; try again later.
    #[error("the metadata store is unavailable: {0}")]
    Unavailable(String),
    /// Done or not: re-read and compare nonces.
    #[error("the metadata store did not answer, the outcome is unknown: {0}")]
    Unknown(String),
    /// More than the store's limits allow; never sent.
    #[error("the metadata request is too large: {0}")]
    TooLarge(String),
    /// The request makes no sense, for example one key written twice.
    #[error("the metadata request is invalid: {0}")]
    Invalid(String),
    /// The lease has ended or never was.
    #[error("the lease has ended")]
    LeaseLost,
    /// No space is left for metadata. Nothing was done. (Of a lease: nothing that lasts.)
    #[error("the metadata store is full: {0}")]
    Full(String),
    /// The stored data can't be read.
    #[error("the metadata store is damaged: {0}")]
    Corrupt(String),
    /// The store doesn't let this process in, or not at this key. Nothing was done.
    #[error("the metadata store refuses access: {0}")]
    Denied(String),
    /// The store isn't the one that this process has known: another one answers at its address, or
    /// it was set back to an older state. Final: this wasn't done, and nothing is sent to it any
    /// more.
    #[error("the metadata store was replaced or set back: {0}")]
    Replaced(String),
}

/// Why a watch ended. Re-read, then watch from the revision of what was read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// Changes after the start revision are no longer kept.
    #[error("the watched revision is compacted")]
    Compacted,
    /// The connection or the store was lost, or this watcher fell too far behind.
    #[error("the watch was lost: {0}")]
    Lost(String),
}

/// A running watch. Dropping it ends it.
#[async_trait]
pub trait Watch: Send + Debug {
    /// The next changes: all of one revision or of several, in order. Waits until there are some.
    async fn next(&mut self) -> Result<Vec<WatchEvent>, WatchError>;
}

/// The store. Keys are text without a leading `/`; the backend adds its own prefix.
#[async_trait]
pub trait MetadataStore: Send + Sync + Debug + 'static {
    /// Reads one key, linearizably.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError>;

    /// Reads the keys that start with `prefix` and sort after `after`, in order, at most
    /// `limit` (capped at [`MAX_RANGE`]), at one revision.
    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RangePage, StoreError>;

    /// Applies a transaction.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;

    /// Watches the keys that start with `prefix`, from the change after `after` on.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Starts a lease that ends `ttl` after its last keep-alive.
    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Keeps a lease alive for another `ttl`.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease now; its keys go.
    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError>;
}
