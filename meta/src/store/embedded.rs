//! [`EmbeddedStore`]: the metadata of a standalone in one redb file; a restart, a SIGKILL or a
//! power loss keeps everything that was answered.
//!
//! - **Group commit.** One thread takes all waiting transactions, applies them in their order in
//!   one redb transaction, and answers them after its durable commit. There is no timer: what
//!   arrives meanwhile forms the next group.
//! - **Reads** come from redb's committed snapshot, so a read that starts after a transaction was
//!   answered sees it. They run on the caller's thread: the pages are few and mostly cached.
//! - **Leases** live in this process. A key that hung on a lease of a former process is deleted
//!   when the store is opened: whoever kept that lease alive is gone.
//! - **Failure.** The first failed write, failed sync or panic poisons the store: what was under
//!   way is answered as unknown, everything later is refused until the process starts again.
//!
//! Beside `metadata.redb` lies `metadata.lock`, locked by the process that has the store open.

mod device;
mod directory;
mod file;
mod writer;

use std::fmt;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use geminga_proto::env::Env;
use redb::{ReadOnlyTable, ReadableDatabase, StorageBackend};

use self::device::ZeroedFile;
use self::file::{OpenedFile, PAIRS, STORE, decode_row};
use self::writer::{Request, Shared, Writer};
use super::limits::{check_key, check_prefix, check_txn};
use super::{
    HistoryLimits, KeyValue, LeaseId, MAX_RANGE, MetadataStore, RangePage, Revision, StoreError,
    Txn, TxnOutcome, Watch,
};

pub use directory::{make_dir, sync_above};
pub use file::{FORMAT_VERSION, OpenError};

/// Tells how many bytes the disk has left; replaced in tests.
type FreeBytes = Arc<dyn Fn() -> std::io::Result<u64> + Send + Sync>;

/// Settings of an [`EmbeddedStore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmbeddedConfig {
    /// Directory of the store's files; created if it is missing.
    pub dir: PathBuf,
    /// Memory for pages of the file.
    pub cache_bytes: usize,
    /// How much history is kept for watches.
    pub history: HistoryLimits,
    /// How often leases are looked at while there are any.
    pub lease_check: Duration,
    /// While the disk has less than this left, transactions that add keys, other than ones that go
    /// with a lease, and delete none are refused.
    pub min_free_bytes: u64,
    /// While it has less than this left, everything but deletions is refused.
    pub last_free_bytes: u64,
}

impl EmbeddedConfig {
    /// The usual settings.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            cache_bytes: 4 << 20,
            history: HistoryLimits::default(),
            lease_check: Duration::from_secs(1),
            min_free_bytes: 16 << 20,
            last_free_bytes: 4 << 20,
        }
    }
}

/// A store in one file. Dropping it waits for what is under way and releases the file.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    writer: Option<JoinHandle<()>>,
    // Dropped after the database.
    _lock: std::fs::File,
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("EmbeddedStore").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl EmbeddedStore {
    /// Opens the store, or makes it. Blocks while it reads the file, which after a crash is all
    /// of it.
    ///
    /// # Errors
    /// [`OpenError`] says what is in the way and what to do.
    pub fn open(config: &EmbeddedConfig, env: &Env) -> Result<Self, OpenError> {
        let dir = config.dir.clone();
        let free_bytes = move || {
            let stat = rustix::fs::statvfs(&dir)?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        };
        Self::open_with(config, env, Arc::new(free_bytes), ZeroedFile::new)
    }

    fn open_with<D: StorageBackend>(
        config: &EmbeddedConfig,
        env: &Env,
        free_bytes: FreeBytes,
        device: impl Fn(std::fs::File) -> D,
    ) -> Result<Self, OpenError> {
        let OpenedFile { lock, database, revision } = file::open(config, device)?;
        let shared = Arc::new(Shared::new(database, revision, config.history));
        let writer = Writer::new(Arc::clone(&shared), revision, config, env, free_bytes);
        let spawned = std::thread::Builder::new().name("metadata".to_owned());
        let writer = spawned.spawn(move || writer.run()).map_err(|source| OpenError::Io {
            what: "starting the metadata thread",
            path: config.dir.clone(),
            source,
        })?;
        Ok(Self { shared, writer: Some(writer), _lock: lock })
    }

    /// Reads from the committed snapshot.
    fn read<T>(
        &self,
        read: impl FnOnce(&ReadOnlyTable<&str, &[u8]>, Revision) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.shared.check_alive()?;
        file::guarded(|| {
            let snapshot = self.shared.database.begin_read().map_err(file::store_error)?;
            let pairs = snapshot.open_table(PAIRS).map_err(file::store_error)?;
            let store = snapshot.open_table(STORE).map_err(file::store_error)?;
            read(&pairs, file::read_revision(&store)?)
        })
    }

    async fn request<T>(
        &self,
        bytes: usize,
        make: impl FnOnce(tokio::sync::oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let (sender, answer) = tokio::sync::oneshot::channel();
        self.shared.enqueue(bytes, make(sender)).await?;
        // The writer answers everything it takes; a lost answer means that it broke down.
        let lost = || StoreError::Unknown("the metadata thread broke down".to_owned());
        answer.await.unwrap_or_else(|_| Err(lost()))
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the metadata thread ended with a panic");
        }
    }
}

fn key_value(key: &str, row: &[u8]) -> Result<KeyValue, StoreError> {
    let row = decode_row(key, row)?;
    Ok(KeyValue {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(row.value),
        modified: row.modified,
        lease: row.lease,
    })
}

#[async_trait]
impl MetadataStore for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        check_key(key)?;
        self.read(|pairs, _| match pairs.get(key).map_err(file::store_error)? {
            None => Ok(None),
            Some(row) => key_value(key, row.value()).map(Some),
        })
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RangePage, StoreError> {
        check_prefix(prefix)?;
        let limit = limit.min(MAX_RANGE);
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.read(|pairs, revision| {
            let bounds = (start, Bound::Unbounded);
            let mut found = Vec::new();
            let mut more = false;
            for row in pairs.range::<&str>(bounds).map_err(file::store_error)? {
                let (key, row) = row.map_err(file::store_error)?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                if found.len() == limit {
                    more = true;
                    break;
                }
                found.push(key_value(key.value(), row.value())?);
            }
            Ok(RangePage { pairs: found, revision, more })
        })
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        check_txn(&txn)?;
        let bytes = writer::txn_bytes(&txn);
        self.request(bytes, |answer| Request::Txn { txn, answer }).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        check_prefix(prefix)?;
        self.shared.check_alive()?;
        Ok(self.shared.changes.watch(prefix, after))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.request(0, |answer| Request::Grant { ttl, answer }).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.request(0, |answer| Request::KeepAlive { lease, answer }).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.request(0, |answer| Request::Revoke { lease, answer }).await
    }
}

#[cfg(test)]
mod tests;
