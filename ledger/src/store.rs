//! Creates, recovers, opens and deletes ledgers.

use std::sync::Arc;

use geminga_meta::store::{MetadataStore, Txn};
use geminga_proto::env::Env;
use geminga_proto::id::LedgerId;

pub use crate::config::{ConfigError, LedgerStoreConfig};
use crate::error::{CreateError, DeleteError, OpenError, RecoverError};
use crate::metadata::{LedgerKind, LedgerMetadata};
use crate::observer::LedgerObserver;
use crate::placement::Placement;
use crate::reader::{ClosedLedger, LedgerReader};
use crate::transport::BookieTransport;
use crate::writer::LedgerWriter;

/// All ledgers of a cluster, as seen by one process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LedgerStore {}

impl LedgerStore {
    /// A store over `meta` and the bookies that `transport` reaches. Must be called inside a
    /// tokio runtime, on which the store's tasks run.
    ///
    /// # Errors
    /// [`ConfigError`] if a setting can't be used.
    pub fn new(
        config: LedgerStoreConfig,
        env: Env,
        meta: Arc<dyn MetadataStore>,
        transport: Arc<dyn BookieTransport>,
        placement: Arc<dyn Placement>,
    ) -> Result<Self, ConfigError> {
        let _ = (config, env, meta, transport, placement);
        todo!()
    }

    /// Takes an id, picks an ensemble, and creates the ledger's record in one transaction with
    /// the conditions and writes that `link` makes for that id.
    ///
    /// # Errors
    /// [`CreateError`]; nothing is created, except as [`CreateError::Metadata`] says.
    pub async fn create(
        &self,
        kind: LedgerKind,
        link: impl FnOnce(LedgerId) -> Txn + Send,
        observer: Arc<dyn LedgerObserver>,
    ) -> Result<LedgerWriter, CreateError> {
        let _ = (kind, link, observer);
        todo!()
    }

    /// Fences the ledger, finds its end and closes it there. A closed ledger is answered at once.
    ///
    /// # Errors
    /// [`RecoverError`] if its end can't be told now; nothing is guessed.
    pub async fn recover(&self, id: LedgerId) -> Result<ClosedLedger, RecoverError> {
        let _ = id;
        todo!()
    }

    /// Opens a closed ledger for reading.
    ///
    /// # Errors
    /// [`OpenError`] if there is none, or it isn't closed.
    pub async fn open(&self, id: LedgerId) -> Result<LedgerReader, OpenError> {
        let _ = id;
        todo!()
    }

    /// Deletes the records of `ids` in one transaction with `unlink`, then hints it to bookies.
    /// At most 64 ledgers at a time, since transactions are limited.
    ///
    /// # Errors
    /// [`DeleteError`]; nothing is deleted, except as [`DeleteError::Metadata`] says.
    pub async fn delete(&self, ids: &[LedgerId], unlink: Txn) -> Result<(), DeleteError> {
        let _ = (ids, unlink);
        todo!()
    }

    /// A ledger's metadata, for administration.
    ///
    /// # Errors
    /// [`OpenError`] if there is none.
    pub async fn describe(&self, id: LedgerId) -> Result<LedgerMetadata, OpenError> {
        let _ = id;
        todo!()
    }
}
