//! [`Door`]: one broker's way to the metadata store that all of them use. Shut, the store is out of
//! reach for that broker alone.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use geminga_meta::store::memory::MemoryStore;
use geminga_meta::store::{
    KeyValue, LeaseId, MetadataStore, Op, RangePage, Revision, StoreError, Txn, TxnOutcome, Watch,
    WatchError, WatchEvent,
};
use parking_lot::Mutex;
use tokio::sync::watch;

/// A way to a store.
#[derive(Debug)]
pub struct Door {
    store: Arc<MemoryStore>,
    open: watch::Sender<bool>,
    lag: Arc<Mutex<Duration>>,
    /// What went through it, in words.
    requests: Mutex<Vec<String>>,
}

impl Door {
    /// An open one.
    pub fn to(store: &Arc<MemoryStore>) -> Arc<Self> {
        let (open, lag) = (watch::Sender::new(true), Arc::default());
        Arc::new(Self { store: Arc::clone(store), open, lag, requests: Mutex::default() })
    }

    /// Lets watches tell what they see so much later.
    pub fn set_lag(&self, lag: Duration) {
        *self.lag.lock() = lag;
    }

    /// Shuts or opens it. Watches through a shut one are lost.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Reads and transactions that went through it, in words. What keeps leases and watches isn't
    /// among them.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().clone()
    }

    /// How many of them were transactions.
    pub fn writes(&self) -> usize {
        self.requests.lock().iter().filter(|request| request.starts_with("write")).count()
    }

    fn pass(&self) -> Result<&MemoryStore, StoreError> {
        if *self.open.borrow() {
            return Ok(&self.store);
        }
        Err(StoreError::Unavailable("the door is shut".to_owned()))
    }

    fn note(&self, request: String) -> Result<&MemoryStore, StoreError> {
        self.requests.lock().push(request);
        self.pass()
    }
}

#[derive(Debug)]
struct Watched {
    inner: Box<dyn Watch>,
    open: watch::Receiver<bool>,
    lag: Arc<Mutex<Duration>>,
}

#[async_trait]
impl Watch for Watched {
    async fn next(&mut self) -> Result<Vec<WatchEvent>, WatchError> {
        let events = tokio::select! {
            biased;
            shut = self.open.wait_for(|open| !open) => {
                drop(shut);
                Err(WatchError::Lost("the door is shut".to_owned()))
            }
            events = self.inner.next() => events,
        };
        let lag = *self.lag.lock();
        tokio::time::sleep(lag).await;
        events
    }
}

#[async_trait]
impl MetadataStore for Door {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.note(format!("read {key}"))?.get(key).await
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RangePage, StoreError> {
        self.note(format!("list {prefix}"))?.range(prefix, after, limit).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let key = |op: &Op| match op {
            Op::Put { key, .. } | Op::Delete(key) => key.clone(),
        };
        let keys: Vec<String> = txn.ops.iter().map(key).collect();
        self.note(format!("write {}", keys.join(", ")))?.txn(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let inner = self.pass()?.watch(prefix, after).await?;
        let lag = Arc::clone(&self.lag);
        Ok(Box::new(Watched { inner, open: self.open.subscribe(), lag }))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.pass()?.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.pass()?.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.pass()?.revoke_lease(lease).await
    }
}
