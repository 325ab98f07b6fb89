//! [`Fronted`]: a store in front of another one, for tests. What a [`Front`] doesn't change is
//! passed on.

use std::fmt::Debug;
use std::time::Duration;

use async_trait::async_trait;

use super::{
    KeyValue, LeaseId, MemoryStore, MetadataStore, RangePage, Revision, StoreError, Txn,
    TxnOutcome, Watch,
};

/// What is different from the store behind.
#[async_trait]
pub(crate) trait Front: Send + Sync + Debug + 'static {
    /// The store behind.
    fn behind(&self) -> &MemoryStore;

    /// See [`MetadataStore::range`].
    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RangePage, StoreError> {
        self.behind().range(prefix, after, limit).await
    }

    /// See [`MetadataStore::txn`].
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.behind().txn(txn).await
    }

    /// See [`MetadataStore::watch`].
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.behind().watch(prefix, after).await
    }
}

/// The store that a [`Front`] makes of the one behind.
#[derive(Debug)]
pub(crate) struct Fronted<F>(pub F);

#[async_trait]
impl<F: Front> MetadataStore for Fronted<F> {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.0.behind().get(key).await
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RangePage, StoreError> {
        self.0.range(prefix, after, limit).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.0.txn(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.0.watch(prefix, after).await
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.0.behind().grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.behind().keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.0.behind().revoke_lease(lease).await
    }
}
