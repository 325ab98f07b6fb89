//! [`TopicMap`]: the loaded topics, each loaded once for all who ask, and never twice at a time.
//!
//! Who loads, unloads or deletes a topic holds its slot's lock meanwhile; everybody else who
//! wants it waits there and finds the outcome. The map's own lock is held for moments; only a
//! slot's is taken under it.

use std::collections::BTreeMap;
use std::sync::Arc;

use geminga_proto::topic_name::TopicName;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::core::api::TopicError;
use crate::core::bundle::Bundle;
use crate::core::metrics::Metrics;
use crate::core::topic::Topic;

/// Proof of being the one who may load, unload or delete a topic. The flag under it says that
/// the slot has left the map: whoever finds it set has to look again.
type Turn = OwnedMutexGuard<bool>;

#[derive(Debug, Default)]
struct Slot {
    topic: Mutex<Option<Arc<Topic>>>,
    turn: Arc<tokio::sync::Mutex<bool>>,
}

/// The right to change what a name stands for.
#[derive(Debug)]
pub struct Claim {
    name: TopicName,
    slot: Arc<Slot>,
    turn: Turn,
}

/// The loaded topics.
#[derive(Debug)]
pub struct TopicMap {
    slots: Mutex<BTreeMap<TopicName, Arc<Slot>>>,
    metrics: Arc<Metrics>,
}

impl TopicMap {
    /// No topics.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { slots: Mutex::default(), metrics })
    }

    /// A topic that is loaded and serves.
    #[must_use]
    pub fn get(&self, name: &TopicName) -> Option<Arc<Topic>> {
        let slot = self.slots.lock().get(name).cloned()?;
        let topic = slot.topic.lock().clone();
        topic.filter(|topic| topic.is_serving())
    }

    /// All loaded topics.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Topic>> {
        let slots: Vec<_> = self.slots.lock().values().cloned().collect();
        slots.iter().filter_map(|slot| slot.topic.lock().clone()).collect()
    }

    /// Gives up a bundle and all its topics, and closes its state log. If that is fenced, there is
    /// nothing to close; else whoever owns the bundle next recovers what can't be closed.
    pub fn end_bundle(&self, bundle: &Arc<Bundle>, error: &TopicError) {
        if bundle.end() {
            bundle.close_log();
        }
        let lost = self.all().into_iter().filter(|topic| Arc::ptr_eq(&topic.bundle, bundle));
        lost.for_each(|topic| topic.fail(error));
    }

    /// Waits for the right to load, unload or delete the topic.
    pub async fn claim(&self, name: &TopicName) -> Claim {
        loop {
            let slot = Arc::clone(self.slots.lock().entry(name.clone()).or_default());
            let turn = Arc::clone(&slot.turn).lock_owned().await;
            if !*turn {
                return Claim { name: name.clone(), slot, turn };
            }
        }
    }

    /// The right to unload a topic, if nobody else has it now.
    #[must_use]
    pub fn try_claim(&self, name: &TopicName) -> Option<Claim> {
        let slot = self.slots.lock().get(name).cloned()?;
        let turn = Arc::clone(&slot.turn).try_lock_owned().ok()?;
        (!*turn).then(|| Claim { name: name.clone(), slot, turn })
    }

    /// Gives a claim back; a name that stands for nothing leaves the map.
    pub fn release(&self, mut claim: Claim) {
        let mut slots = self.slots.lock();
        if claim.slot.topic.lock().is_none() {
            *claim.turn = true;
            slots.remove(&claim.name);
        }
    }

    /// Lists a topic that its claimant has loaded.
    pub fn insert(&self, claim: &Claim, topic: Arc<Topic>) {
        if claim.slot.topic.lock().replace(topic).is_none() {
            self.metrics.topics.inc();
        }
    }

    /// Takes out a topic that has closed. Its slot stays for whoever claims it.
    pub fn remove(&self, topic: &Arc<Topic>) {
        let Some(slot) = self.slots.lock().get(&topic.name).cloned() else { return };
        let mut listed = slot.topic.lock();
        if listed.as_ref().is_some_and(|listed| Arc::ptr_eq(listed, topic)) {
            *listed = None;
            self.metrics.topics.dec();
        }
    }
}

impl Claim {
    /// What the name stands for now.
    #[must_use]
    pub fn topic(&self) -> Option<Arc<Topic>> {
        self.slot.topic.lock().clone()
    }
}
