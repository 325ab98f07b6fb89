//! [`MetaAccess`]: a host's way to the metadata store that all hosts share.
//!
//! Every request crosses the network twice. Its sender waits for so long and no longer: a write
//! without an answer has an unknown outcome, and may be done much later. Watches tell what they
//! see after the way that it takes, and are lost when nothing passes for long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use geminga_meta::keys;
use geminga_meta::store::memory::MemoryStore;
use geminga_meta::store::{
    KeyValue, LeaseId, MAX_RANGE, MetadataStore, Op, RangePage, Revision, StoreError, Txn,
    TxnOutcome, Watch, WatchError, WatchEvent,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::network::{HostId, Network, Place};
use crate::trace::Trace;

/// Where the metadata store is.
pub const META: HostId = HostId(0);
/// How long a request waits for its answer.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// How long a watch may hear nothing over a blocked way.
const SILENCE: Duration = Duration::from_secs(2);

/// A way to the store.
#[derive(Debug)]
pub struct MetaAccess {
    network: Arc<Network>,
    place: Place,
    store: Arc<MemoryStore>,
    stale: Arc<Stale>,
    trace: Trace,
}

/// The keys that a bookie compares with, as they were once.
#[derive(Debug)]
pub struct Snapshot {
    pairs: Vec<KeyValue>,
    revision: Revision,
}

/// Hosts that reach an old copy of the store instead.
#[derive(Debug, Default)]
pub struct Stale(Mutex<BTreeMap<HostId, Arc<Snapshot>>>);

impl Stale {
    /// From now on a host reads from an old copy, or from the store again.
    pub(crate) fn set(&self, host: HostId, snapshot: Option<Arc<Snapshot>>) {
        match snapshot {
            Some(snapshot) => self.0.lock().insert(host, snapshot),
            None => self.0.lock().remove(&host),
        };
    }

    fn of(&self, host: HostId) -> Option<Arc<Snapshot>> {
        self.0.lock().get(&host).cloned()
    }
}

impl Snapshot {
    /// As it is now.
    pub(crate) fn take(store: &MemoryStore) -> Self {
        let prefixes = [keys::CLUSTER, keys::COOKIES, keys::LEDGERS];
        let read = |prefix: &str| store.range(prefix, None, MAX_RANGE).now_or_never()?.ok();
        let pages = prefixes.into_iter().filter_map(read);
        let pairs = pages.flat_map(|page| page.pairs).collect();
        Self { pairs, revision: store.revision() }
    }

    /// Which moment it shows.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.0
    }

    fn range(&self, prefix: &str, after: Option<&str>, limit: usize) -> RangePage {
        let wanted = |pair: &&KeyValue| {
            pair.key.starts_with(prefix) && after.is_none_or(|after| pair.key.as_str() > after)
        };
        let mut pairs: Vec<KeyValue> = self.pairs.iter().filter(wanted).cloned().collect();
        pairs.sort_by(|one, other| one.key.cmp(&other.key));
        let more = pairs.len() > limit;
        pairs.truncate(limit);
        RangePage { pairs, revision: self.revision, more }
    }
}

impl MetaAccess {
    /// The way from `place`.
    #[must_use]
    pub fn new(
        network: Arc<Network>,
        place: Place,
        store: Arc<MemoryStore>,
        stale: Arc<Stale>,
        trace: Trace,
    ) -> Self {
        Self { network, place, store, stale, trace }
    }

    /// Sends a request and waits. `None`: there is no answer in time.
    async fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(Arc<MemoryStore>) -> BoxFuture<'static, Result<T, StoreError>>
        + Send
        + 'static,
    ) -> Option<Result<T, StoreError>> {
        let (answer, answered) = oneshot::channel();
        let (network, store, place) =
            (Arc::clone(&self.network), Arc::clone(&self.store), self.place);
        let arrive = move || {
            // A store in memory answers at once, or never.
            let Some(result) = request(store).now_or_never() else { return };
            let Some(meta) = network.place(META) else { return };
            // Whoever asked may have given up.
            network.post(meta, place.host, Box::new(move || drop(answer.send(result))));
        };
        self.network.post(self.place, META, Box::new(arrive));
        let waiting = async {
            match answered.await {
                Ok(result) => result,
                // Nobody hears that a request was lost.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.ok()
    }

    async fn read<T: Send + 'static>(
        &self,
        request: impl FnOnce(Arc<MemoryStore>) -> BoxFuture<'static, Result<T, StoreError>>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        let unanswered = || StoreError::Unavailable("there is no answer in time".to_owned());
        self.ask(request).await.unwrap_or_else(|| Err(unanswered()))
    }

    async fn write<T: Send + 'static>(
        &self,
        request: impl FnOnce(Arc<MemoryStore>) -> BoxFuture<'static, Result<T, StoreError>>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        let unanswered = || StoreError::Unknown("there is no answer in time".to_owned());
        self.ask(request).await.unwrap_or_else(|| Err(unanswered()))
    }

    /// Notes what a write came to.
    fn note(&self, what: &str, detail: impl std::fmt::Debug) {
        self.trace.note(format_args!("{} {what} {detail:?}", self.place));
    }
}

#[async_trait]
impl MetadataStore for MetaAccess {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let key = key.to_owned();
        self.read(move |store| Box::pin(async move { store.get(&key).await })).await
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RangePage, StoreError> {
        if let Some(old) = self.stale.of(self.place.host) {
            return Ok(old.range(prefix, after, limit));
        }
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        let range = move |store: Arc<MemoryStore>| -> BoxFuture<'static, _> {
            Box::pin(async move { store.range(&prefix, after.as_deref(), limit).await })
        };
        self.read(range).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let first = txn.ops.first().map(|op| match op {
            Op::Put { key, .. } | Op::Delete(key) => key.clone(),
        });
        let request = move |store: Arc<MemoryStore>| -> BoxFuture<'static, _> {
            Box::pin(async move { store.txn(txn).await })
        };
        let outcome = self.write(request).await;
        self.note("wrote", (first.unwrap_or_default(), &outcome));
        outcome
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let prefix = prefix.to_owned();
        let watch = move |store: Arc<MemoryStore>| -> BoxFuture<'static, _> {
            Box::pin(async move { store.watch(&prefix, after).await })
        };
        let inner = self.read(watch).await?;
        let (network, place) = (Arc::clone(&self.network), self.place);
        Ok(Box::new(FarWatch { inner, network, place, seen: None }))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.write(move |store| Box::pin(async move { store.grant_lease(ttl).await })).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let kept =
            self.write(move |store| Box::pin(async move { store.keep_alive(lease).await })).await;
        if kept.is_err() {
            self.note("lease not kept", &kept);
        }
        kept
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.write(move |store| Box::pin(async move { store.revoke_lease(lease).await })).await
    }
}

/// A watch whose news travel.
#[derive(Debug)]
struct FarWatch {
    inner: Box<dyn Watch>,
    network: Arc<Network>,
    place: Place,
    /// What has been seen and is on its way; it outlives a caller that gives up.
    seen: Option<Vec<WatchEvent>>,
}

#[async_trait]
impl Watch for FarWatch {
    async fn next(&mut self) -> Result<Vec<WatchEvent>, WatchError> {
        if self.seen.is_none() {
            self.seen = Some(self.inner.next().await?);
        }
        tokio::time::sleep(self.network.delay(META, self.place.host)).await;
        let mut waited = Duration::ZERO;
        while !self.network.passes(META, self.place.host) {
            const PAUSE: Duration = Duration::from_millis(20);
            tokio::time::sleep(PAUSE).await;
            waited += PAUSE;
            if waited >= SILENCE {
                return Err(WatchError::Lost("nothing passes".to_owned()));
            }
        }
        Ok(self.seen.take().unwrap_or_default())
    }
}
