//! [`EtcdStore`]: the store of a cluster.

mod config;

use std::time::Duration;

use async_trait::async_trait;
use geminga_proto::env::Env;

use super::{
    KeyValue, LeaseId, MetadataStore, RangePage, Revision, StoreError, Txn, TxnOutcome, Watch,
};

pub use config::{
    EtcdConfig, EtcdConfigError, EtcdCredentials, EtcdIdentity, EtcdTls, MAX_ENDPOINTS,
    MAX_PREFIX_BYTES,
};

/// Why a store could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// A setting makes no sense.
    #[error(transparent)]
    Config(#[from] EtcdConfigError),
    /// etcd doesn't answer, refuses, or isn't the one that is wanted.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The metadata in etcd.
#[derive(Debug)]
pub struct EtcdStore {}

impl EtcdStore {
    /// Connects to the first endpoint that answers and checks that it is the right etcd. Tries
    /// each endpoint once.
    ///
    /// # Errors
    /// [`ConnectError`]; it names the endpoints and what each of them said.
    pub async fn connect(config: EtcdConfig, env: Env) -> Result<Self, ConnectError> {
        Self::connect_within(config, env, Duration::ZERO).await
    }

    /// The same, but tries again with back-off while etcd is out of reach, until `patience` has
    /// passed. The first failure is logged.
    ///
    /// # Errors
    /// [`ConnectError`]; at once for what trying again doesn't mend.
    pub async fn connect_within(
        config: EtcdConfig,
        _env: Env,
        _patience: Duration,
    ) -> Result<Self, ConnectError> {
        config.validate()?;
        Err(unbuilt().into())
    }

    /// The highest revision that etcd has shown.
    #[must_use]
    pub fn last_revision(&self) -> Revision {
        Revision(0)
    }
}

fn unbuilt() -> StoreError {
    StoreError::Unavailable("the etcd backend of this build has no requests yet".to_owned())
}

#[async_trait]
impl MetadataStore for EtcdStore {
    async fn get(&self, _key: &str) -> Result<Option<KeyValue>, StoreError> {
        Err(unbuilt())
    }

    async fn range(
        &self,
        _prefix: &str,
        _after: Option<&str>,
        _limit: usize,
    ) -> Result<RangePage, StoreError> {
        Err(unbuilt())
    }

    async fn txn(&self, _txn: Txn) -> Result<TxnOutcome, StoreError> {
        Err(unbuilt())
    }

    async fn watch(&self, _prefix: &str, _after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        Err(unbuilt())
    }

    async fn grant_lease(&self, _ttl: Duration) -> Result<LeaseId, StoreError> {
        Err(unbuilt())
    }

    async fn keep_alive(&self, _lease: LeaseId) -> Result<(), StoreError> {
        Err(unbuilt())
    }

    async fn revoke_lease(&self, _lease: LeaseId) -> Result<(), StoreError> {
        Err(unbuilt())
    }
}
