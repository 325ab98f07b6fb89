//! Gives bundles away: one at an administrator's wish, all when the broker stops.
//!
//! A bundle's topics take no more publishes and finish what is under way, their ledgers and the
//! state log are closed, the ownership record goes, and only then producers and consumers hear of
//! it: whoever they ask then knows the next owner, which has nothing to recover. What can't be
//! closed in time is left to recovery.
//!
//! Invariant: while a bundle is handed over, nobody loads a topic of it here: who wants to, waits
//! for the slot's turn, and finds it elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use geminga_meta::bundle::{BundleId, HashRange};
use geminga_proto::topic_name::NamespaceName;
use tokio::time::Instant;

use super::{Broker, keeper};
use crate::core::admin::AdminError;
use crate::core::api::{Lookup, TopicError};
use crate::core::bundle::BundleSlot;
use crate::core::context::unavailable;
use crate::core::ownership::Holder;
use crate::core::topic::Topic;
use crate::core::topic_map::TopicMap;

/// Bundles handed over at a time.
const BUNDLES_AT_ONCE: usize = 8;
/// Topics of a bundle that are closed at a time.
const TOPICS_AT_ONCE: usize = 64;
/// How long a bundle's topics and its state log may take to close; the rest is left to recovery.
const BUNDLE_TIME: Duration = Duration::from_secs(3);
/// How much of it the topics may take.
const TOPICS_TIME: Duration = Duration::from_millis(2_500);
/// How long the metadata may take for one step.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);

/// What unloading a namespace has left to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unloaded {
    /// Bundles that were handed over by this broker.
    pub bundles: usize,
    /// The other brokers that own bundles of it, each once.
    pub others: Vec<Lookup>,
}

impl Broker {
    /// Hands a bundle over to the broker that is to have it, which may be this one again.
    ///
    /// # Errors
    /// [`TopicError::NotOwner`] if another broker owns it, [`AdminError::NamespaceNotFound`], or
    /// [`AdminError::Invalid`] if the namespace has no such bundle, or [`TopicError::Unavailable`]
    /// while the metadata is away. A bundle that nobody owns is unloaded already.
    pub async fn unload_bundle(&self, id: &BundleId) -> Result<(), AdminError> {
        self.refuse_stopping()?;
        self.refuse_away()?;
        let ranges = self.namespace_ranges(&id.namespace).await?;
        if !ranges.contains(&id.range) {
            return Err(AdminError::Invalid(format!("{id} is not a bundle of the namespace")));
        }
        match self.inner.ownership.holder(id).map_err(unavailable)? {
            Holder::Here => self.unload(id).await,
            Holder::Other(_) => Err(TopicError::NotOwner.into()),
            Holder::Nobody => Ok(()),
        }
    }

    /// Hands over the bundles of a namespace that this broker owns, and says who owns others.
    ///
    /// # Errors
    /// [`AdminError::NamespaceNotFound`], or why the metadata can't be read.
    pub async fn unload_namespace(&self, name: &NamespaceName) -> Result<Unloaded, AdminError> {
        self.refuse_stopping()?;
        self.refuse_away()?;
        let mut unloaded = Unloaded { bundles: 0, others: Vec::new() };
        for range in self.namespace_ranges(name).await? {
            let id = BundleId { namespace: name.clone(), range };
            match self.inner.ownership.holder(&id).map_err(unavailable)? {
                Holder::Here => {
                    self.unload(&id).await?;
                    unloaded.bundles += 1;
                }
                Holder::Other(_) => {
                    let owner = self.inner.ownership.lookup(&id).map_err(unavailable)?;
                    if !unloaded.others.contains(&owner) {
                        unloaded.others.push(owner);
                    }
                }
                Holder::Nobody => {}
            }
        }
        Ok(unloaded)
    }

    /// Without the metadata nobody else could take a bundle, and not even this broker again.
    fn refuse_away(&self) -> Result<(), TopicError> {
        if self.inner.context.health.is_away() {
            return Err(unavailable("the metadata store doesn't answer: nothing is handed over"));
        }
        Ok(())
    }

    async fn namespace_ranges(&self, name: &NamespaceName) -> Result<Vec<HashRange>, AdminError> {
        let namespace = self.inner.namespaces.get(name).await;
        Ok(namespace.map_err(AdminError::from_topic)?.bundle_ranges())
    }

    async fn unload(&self, id: &BundleId) -> Result<(), AdminError> {
        let namespace = self.inner.namespaces.get(&id.namespace).await;
        let slot = namespace.map_err(AdminError::from_topic)?.slot(id);
        // It goes on without its caller: half of it can't be taken back.
        let (broker, id) = (self.clone(), id.clone());
        let unloading = async move {
            broker.hand_over(&id, &slot, &TopicError::NotOwner, &Answers::default()).await;
        };
        let done = self.inner.context.runtime.spawn(unloading).await;
        done.map_err(|error| AdminError::Topic(unavailable(error)))
    }

    /// Gives away what is in the slot. `error` is what its producers and consumers hear.
    async fn hand_over(
        &self,
        id: &BundleId,
        slot: &BundleSlot,
        error: &TopicError,
        meta: &Answers,
    ) {
        let _turn = slot.turn().await;
        let inner = &self.inner;
        let Some(bundle) = slot.take().filter(|bundle| bundle.end()) else {
            // It was given up, or could never be served; but its record may be there.
            self.let_go(id, meta).await;
            return;
        };
        let topics = inner.topics.all().into_iter();
        let topics = topics.filter(|topic| Arc::ptr_eq(&topic.bundle, &bundle)).collect();
        // Dismisses them when this ends, however it does.
        let held = Held { topics, map: &inner.topics, error };
        let begun = Instant::now();
        let close = |topic: &Arc<Topic>| {
            let (topic, error) = (Arc::clone(topic), error.clone());
            async move { close_quietly(&topic, error, begun + TOPICS_TIME).await }
        };
        let closing: Vec<_> = held.topics.iter().map(close).collect();
        stream::iter(closing).for_each_concurrent(TOPICS_AT_ONCE, |closing| closing).await;
        match tokio::time::timeout_at(begun + BUNDLE_TIME, bundle.log.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(bundle = %bundle.id, %error, "the state log is left to recovery");
            }
            Err(_) => {
                tracing::warn!(bundle = %bundle.id, "the state log takes too long; left to recovery");
            }
        }
        self.let_go(id, meta).await;
        tracing::info!(bundle = %bundle.id, topics = held.topics.len(), "bundle handed over");
    }

    async fn let_go(&self, bundle: &BundleId, meta: &Answers) {
        if meta.are_missing() {
            return;
        }
        let ownership = &self.inner.ownership;
        match tokio::time::timeout(METADATA_TIMEOUT, ownership.release(bundle)).await {
            Ok(Ok(())) => ownership.released(bundle).await,
            Ok(Err(error)) => {
                tracing::warn!(%bundle, %error, "ownership ends with the lease");
            }
            Err(_) => {
                meta.missing();
                tracing::warn!(%bundle, "ownership ends with the lease");
            }
        }
    }

    /// Hands all bundles over, closes producers and consumers with [`TopicError::ShuttingDown`],
    /// and ends the session. Front-ends should serve meanwhile, so that clients hear of it.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        if inner.stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        let drained = inner.ownership.session.drain();
        match tokio::time::timeout(METADATA_TIMEOUT, drained).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "other brokers don't know of the shutdown"),
            Err(_) => tracing::warn!("other brokers don't know of the shutdown"),
        }
        let meta = Answers::default();
        let give = |(id, slot): (BundleId, Arc<BundleSlot>)| {
            let meta = &meta;
            async move { self.hand_over(&id, &slot, &TopicError::ShuttingDown, meta).await }
        };
        stream::iter(self.given_away()).for_each_concurrent(BUNDLES_AT_ONCE, give).await;
        // Topics whose bundles were given up at that moment.
        inner.topics.all().iter().for_each(|topic| topic.fail(&TopicError::ShuttingDown));
        match tokio::time::timeout(METADATA_TIMEOUT, inner.ownership.session.release()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the session ends with its lease"),
            Err(_) => tracing::warn!("the session ends with its lease"),
        }
    }

    /// Stops at once and gives everything up, without the metadata, which can never be used again:
    /// nothing is confirmed any more, and what others may make of the ledgers is left to recovery.
    pub fn abandon(&self) {
        let inner = &self.inner;
        if !inner.stopping.swap(true, Ordering::AcqRel) {
            keeper::give_up(&inner.topics, &inner.namespaces, &TopicError::ShuttingDown);
        }
    }

    /// The slots that may hold something to give away, those in service first. The others were
    /// only ever asked for.
    fn given_away(&self) -> Vec<(BundleId, Arc<BundleSlot>)> {
        let inner = &self.inner;
        let mut slots: Vec<_> =
            inner.namespaces.all().iter().flat_map(|name| name.slots()).collect();
        let is_here = |id: &BundleId| inner.ownership.holder(id) == Ok(Holder::Here);
        slots.retain(|(id, slot)| !slot.is_idle() || is_here(id));
        slots.sort_by_key(|(_, slot)| slot.owned().is_none());
        slots
    }
}

/// Whether the metadata have let somebody wait in vain: then nobody else waits for them.
#[derive(Debug, Default)]
struct Answers(AtomicBool);

impl Answers {
    fn are_missing(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn missing(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Topics whose producers and consumers are yet to hear that they were handed over.
struct Held<'a> {
    topics: Vec<Arc<Topic>>,
    map: &'a TopicMap,
    error: &'a TopicError,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        for topic in &self.topics {
            // Unless something failed, it has closed.
            topic.fail(self.error);
            topic.dismiss(self.error);
            self.map.remove(topic);
        }
    }
}

async fn close_quietly(topic: &Topic, error: TopicError, deadline: Instant) {
    if let Some(retired) = topic.drain_quietly(error.clone()) {
        keeper::await_closed(topic, retired, &error, deadline).await;
    }
}
