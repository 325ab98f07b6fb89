//! [`Namespaces`]: the namespaces in use here, with their policies and bundles.
//!
//! Records are read when a namespace is first used, and followed by a watch; a watch that was
//! lost ends in reading all of them again, never in a stale one.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use geminga_meta::bundle::{BundleId, HashRange};
use geminga_meta::keys::{self, Key};
use geminga_meta::read::read;
use geminga_meta::record::{NamespacePolicies, NamespaceRecord, Record, Stored};
use geminga_meta::store::{Revision, Watch, WatchError, WatchEvent};
use geminga_proto::topic_name::{NamespaceName, TopicName};
use parking_lot::Mutex;

use crate::core::api::TopicError;
use crate::core::bundle::{Bundle, BundleSlot};
use crate::core::context::{Context, unavailable};
use crate::core::managed_ledger::list::Retention;
use crate::core::watched;

/// Namespaces read at a time.
const READ_AT_ONCE: usize = 16;
/// Wait before a lost watch is set up again.
const RETRY: Duration = Duration::from_secs(1);

/// A namespace in use.
#[derive(Debug)]
pub struct Namespace {
    /// Its name.
    pub name: NamespaceName,
    /// Written by the watch, and by whoever reads the record anew.
    record: Mutex<(NamespaceRecord, Revision)>,
    bundles: Mutex<BTreeMap<HashRange, Arc<BundleSlot>>>,
}

impl Namespace {
    fn new(name: NamespaceName, stored: Stored<NamespaceRecord>) -> Self {
        let record = Mutex::new((stored.record, stored.revision));
        Self { name, record, bundles: Mutex::default() }
    }

    /// Its policies.
    #[must_use]
    pub fn policies(&self) -> NamespacePolicies {
        self.record.lock().0.policies
    }

    /// The bundle that a topic belongs to.
    #[must_use]
    pub fn bundle_of(&self, topic: &TopicName) -> BundleId {
        let range = self.record.lock().0.bundle_of(topic.hash());
        BundleId { namespace: self.name.clone(), range }
    }

    /// All its bundles.
    #[must_use]
    pub fn bundle_ranges(&self) -> Vec<HashRange> {
        self.record.lock().0.bundles()
    }

    /// Where bundles are that somebody here has asked for.
    #[must_use]
    pub fn slots(&self) -> Vec<(BundleId, Arc<BundleSlot>)> {
        let bundles = self.bundles.lock();
        let named = |(range, slot): (&HashRange, &Arc<BundleSlot>)| {
            (BundleId { namespace: self.name.clone(), range: *range }, Arc::clone(slot))
        };
        bundles.iter().map(named).collect()
    }

    /// Where the bundle is.
    #[must_use]
    pub fn slot(&self, bundle: &BundleId) -> Arc<BundleSlot> {
        Arc::clone(self.bundles.lock().entry(bundle.range).or_default())
    }

    /// The bundles that this broker owns.
    #[must_use]
    pub fn owned_bundles(&self) -> Vec<Arc<Bundle>> {
        self.bundles.lock().values().filter_map(|slot| slot.owned()).collect()
    }

    /// Forgets all bundles and answers those that were owned.
    pub fn take_bundles(&self) -> Vec<Arc<Bundle>> {
        let slots: Vec<_> = self.bundles.lock().values().cloned().collect();
        slots.iter().filter_map(|slot| slot.take()).collect()
    }

    /// How long data is kept: what a topic's subscriptions have consumed, or (if it never had
    /// one) all of it.
    #[must_use]
    pub fn retention(&self, context: &Context, subscribed: bool) -> Retention {
        if !subscribed {
            let age_ms = context.config.unsubscribed_retention.as_millis();
            let age_ms = u64::try_from(age_ms).unwrap_or(u64::MAX);
            return Retention { age_ms, bytes: context.config.unsubscribed_retention_bytes };
        }
        let policies = self.policies();
        if policies.retention_ms.is_none() && policies.retention_bytes.is_none() {
            let age_ms = u64::try_from(context.config.retention.as_millis()).unwrap_or(u64::MAX);
            return Retention { age_ms, bytes: context.config.retention_bytes };
        }
        // One limit alone is the only one.
        Retention {
            age_ms: policies.retention_ms.unwrap_or(u64::MAX),
            bytes: policies.retention_bytes.unwrap_or(u64::MAX),
        }
    }

    /// When the record that is known was written.
    fn revision(&self) -> Revision {
        self.record.lock().1
    }

    fn update(&self, record: NamespaceRecord, revision: Revision) {
        let mut current = self.record.lock();
        if revision > current.1 {
            *current = (record, revision);
        }
    }
}

/// Told of bundles whose namespace was deleted.
type OnDeleted = Box<dyn Fn(&Arc<Bundle>) + Send + Sync>;

/// The namespaces in use.
pub struct Namespaces {
    context: Arc<Context>,
    known: Mutex<BTreeMap<NamespaceName, Arc<Namespace>>>,
    deleted: OnDeleted,
}

impl fmt::Debug for Namespaces {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Namespaces").field("known", &self.known).finish_non_exhaustive()
    }
}

impl Namespaces {
    /// Follows the metadata's namespaces from now on. `deleted` is told of each owned bundle of a
    /// namespace that was deleted.
    #[must_use]
    pub fn start(
        context: &Arc<Context>,
        deleted: impl Fn(&Arc<Bundle>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let (context, known) = (Arc::clone(context), Mutex::default());
        let namespaces = Arc::new(Self { context, known, deleted: Box::new(deleted) });
        let context = &namespaces.context;
        let weak = Arc::downgrade(&namespaces);
        let following = move || follow(Weak::clone(&weak));
        context.runtime.spawn(watched::again("following namespaces", following));
        namespaces
    }

    /// A namespace.
    ///
    /// # Errors
    /// [`TopicError::NamespaceNotFound`], or why the metadata can't be read.
    pub async fn get(&self, name: &NamespaceName) -> Result<Arc<Namespace>, TopicError> {
        if let Some(known) = self.known.lock().get(name) {
            return Ok(Arc::clone(known));
        }
        let missing = || TopicError::NamespaceNotFound(name.to_string());
        let stored = self.read(name).await?.ok_or_else(missing)?;
        let new = Arc::new(Namespace::new(name.clone(), stored));
        let namespace = Arc::clone(self.known.lock().entry(name.clone()).or_insert(new));
        // The watch skips namespaces that aren't known yet, so what happened between reading and
        // becoming known is read once more.
        match self.read(name).await? {
            Some(stored) => namespace.update(stored.record, stored.revision),
            None => {
                self.forget_this(&namespace);
                return Err(missing());
            }
        }
        Ok(namespace)
    }

    async fn read(
        &self,
        name: &NamespaceName,
    ) -> Result<Option<Stored<NamespaceRecord>>, TopicError> {
        read(&*self.context.meta, &keys::namespace(name)).await.map_err(unavailable)
    }

    /// Forgets a namespace that was deleted; its bundles end.
    pub fn forget(&self, name: &NamespaceName) {
        self.forget_if(name, |_| true);
    }

    /// Forgets this one, unless another of that name has taken its place.
    fn forget_this(&self, namespace: &Arc<Namespace>) {
        self.forget_if(&namespace.name, |known| Arc::ptr_eq(known, namespace));
    }

    fn forget_if(&self, name: &NamespaceName, is: impl FnOnce(&Arc<Namespace>) -> bool) {
        let namespace = {
            let mut known = self.known.lock();
            if !known.get(name).is_some_and(is) {
                return;
            }
            known.remove(name)
        };
        let Some(namespace) = namespace else { return };
        namespace.take_bundles().iter().for_each(|bundle| (self.deleted)(bundle));
    }

    /// One in use.
    #[must_use]
    pub fn known(&self, name: &NamespaceName) -> Option<Arc<Namespace>> {
        self.known.lock().get(name).cloned()
    }

    /// All in use.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Namespace>> {
        self.known.lock().values().cloned().collect()
    }

    fn apply(&self, event: &WatchEvent) {
        let Some(Key::Namespace(name)) = Key::parse(&event.key) else { return };
        let Some(namespace) = self.known.lock().get(&name).cloned() else { return };
        match &event.value {
            // News that come late may be of one that another of that name has followed.
            None if event.revision < namespace.revision() => {}
            None => self.forget_this(&namespace),
            Some(value) => match NamespaceRecord::decode(value) {
                Ok((record, _)) => namespace.update(record, event.revision),
                Err(error) => tracing::error!(%name, %error, "namespace record can't be read"),
            },
        }
    }

    /// Reads all known namespaces anew.
    async fn refresh(&self) -> Result<(), TopicError> {
        let read = |namespace: Arc<Namespace>| async move {
            self.read(&namespace.name).await.map(|stored| (namespace, stored))
        };
        let reading: Vec<_> = self.all().into_iter().map(read).collect();
        let mut reading = stream::iter(reading).buffer_unordered(READ_AT_ONCE);
        while let Some((namespace, stored)) = reading.try_next().await? {
            match stored {
                Some(stored) => namespace.update(stored.record, stored.revision),
                None => self.forget_this(&namespace),
            }
        }
        Ok(())
    }
}

/// Follows changes until the broker is gone.
async fn follow(namespaces: Weak<Namespaces>) {
    let mut failures = 0_u32;
    loop {
        let Some(strong) = namespaces.upgrade() else { return };
        match watch(&strong).await {
            Ok(mut watch) => {
                failures = 0;
                drop(strong);
                match apply_all(&namespaces, &mut *watch).await {
                    Some(error) => tracing::debug!(%error, "the watch of namespaces was lost"),
                    None => return,
                }
            }
            Err(error) => {
                failures += 1;
                // An outage of the whole store is logged once, by whoever keeps the lease.
                if failures.is_power_of_two() && failures > 2 && !strong.context.health.is_away() {
                    tracing::warn!(%error, failures, "namespaces can't be watched");
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Starts a watch, and reads what it may have missed. The watch starts before the records are read,
/// so no change is between the two.
async fn watch(namespaces: &Namespaces) -> Result<Box<dyn Watch>, TopicError> {
    let meta = &namespaces.context.meta;
    let page = meta.range(keys::NAMESPACES, None, 1).await.map_err(unavailable)?;
    let watch = meta.watch(keys::NAMESPACES, page.revision).await.map_err(unavailable)?;
    namespaces.refresh().await?;
    Ok(watch)
}

/// Applies changes until the watch is lost; `None`: the broker is gone.
async fn apply_all(namespaces: &Weak<Namespaces>, watch: &mut dyn Watch) -> Option<WatchError> {
    loop {
        match watch.next().await {
            Ok(events) => {
                let strong = namespaces.upgrade()?;
                events.iter().for_each(|event| strong.apply(event));
            }
            Err(error) => return Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Cluster;
    use geminga_meta::record::Nonce;
    use geminga_meta::store::{MetadataStore, Txn, TxnOutcome};

    fn name() -> NamespaceName {
        "acme/prod".parse().expect("valid")
    }

    fn start(cluster: &Cluster) -> Arc<Namespaces> {
        let (env, meta) = (cluster.env(), Arc::clone(&cluster.meta) as _);
        let context = Context::new(Cluster::config(), env, meta, cluster.ledgers());
        Namespaces::start(&context, |_| {})
    }

    async fn write(cluster: &Cluster, txn: Txn) -> Revision {
        match cluster.meta.txn(txn).await.expect("applied") {
            TxnOutcome::Applied(revision) => revision,
            TxnOutcome::Conflict(_) => panic!("it has no conditions"),
        }
    }

    async fn create(cluster: &Cluster) -> Revision {
        let record = NamespaceRecord {
            created_ms: 1,
            bundle_bounds: NamespaceRecord::even_bounds(1),
            policies: NamespacePolicies::default(),
        };
        let value = record.encode(Nonce::new(&*cluster.env().random)).expect("valid");
        write(cluster, Txn::default().put(keys::namespace(&name()), value)).await
    }

    fn deleted_at(revision: Revision) -> WatchEvent {
        WatchEvent { revision, key: keys::namespace(&name()), value: None }
    }

    #[tokio::test]
    async fn news_of_a_deletion_that_come_late_leave_the_next_namespace_of_that_name_alone() {
        let cluster = Cluster::new();
        let namespaces = start(&cluster);
        create(&cluster).await;
        let deleted = write(&cluster, Txn::default().delete(keys::namespace(&name()))).await;
        let created = create(&cluster).await;
        let known = namespaces.get(&name()).await.expect("there");
        namespaces.apply(&deleted_at(deleted));
        assert!(Arc::ptr_eq(&namespaces.known(&name()).expect("still there"), &known));
        namespaces.apply(&deleted_at(Revision(created.0 + 1)));
        assert!(namespaces.known(&name()).is_none());
    }

    #[tokio::test]
    async fn only_the_namespace_that_was_looked_at_is_forgotten() {
        let cluster = Cluster::new();
        let namespaces = start(&cluster);
        create(&cluster).await;
        let first = namespaces.get(&name()).await.expect("there");
        namespaces.forget(&name());
        let second = namespaces.get(&name()).await.expect("there");
        namespaces.forget_this(&first);
        assert!(Arc::ptr_eq(&namespaces.known(&name()).expect("still there"), &second));
        namespaces.forget_this(&second);
        assert!(namespaces.known(&name()).is_none());
    }
}
