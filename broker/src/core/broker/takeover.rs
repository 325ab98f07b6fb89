//! Takes over what other brokers leave behind: a bundle whose owner has gone is acquired by the
//! broker that rendezvous hashing picks, at once and without a client asking, so that clients find
//! it served; and what another broker has taken from this one ends.
//!
//! Topics aren't loaded ahead. Which of them are in use is known to their clients alone, who are
//! waiting and ask at once; a bundle's idle topics may be thousands of times as many, and loading
//! those first would only keep the others waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use geminga_meta::bundle::BundleId;
use geminga_meta::record::{OwnershipRecord, SessionId, Stored};
use geminga_meta::store::Revision;
use tokio::task::JoinSet;

use super::{Broker, Inner};
use crate::core::api::TopicError;
use crate::core::bundle::Bundle;

/// Wait before a bundle that couldn't be taken over is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// Bundles taken over at a time.
const AT_ONCE: usize = 16;

/// The owned bundles, as a view has them: with the owner's session and the record's revision.
type Owned = BTreeMap<BundleId, (SessionId, Revision)>;

/// Which bundles have lost their owner. No I/O.
#[derive(Debug, Default)]
struct Orphans {
    seen: Owned,
    orphans: BTreeSet<BundleId>,
}

impl Orphans {
    /// Compares with what was seen before.
    fn see(&mut self, now: Owned) {
        let gone = self.seen.keys().filter(|bundle| !now.contains_key(bundle));
        self.orphans.extend(gone.cloned());
        self.seen = now;
    }

    /// What this broker is to take. An orphan stays one until somebody else owns it, or until it
    /// is served here: owning alone is not enough.
    fn wanted(
        &mut self,
        own: SessionId,
        is_served: impl Fn(&BundleId) -> bool,
        is_chosen: impl Fn(&BundleId) -> bool,
    ) -> Vec<BundleId> {
        let seen = &self.seen;
        self.orphans.retain(|bundle| match seen.get(bundle) {
            Some((session, _)) => *session == own && !is_served(bundle),
            None => true,
        });
        let wanted = |bundle: &&BundleId| seen.contains_key(bundle) || is_chosen(bundle);
        self.orphans.iter().filter(wanted).cloned().collect()
    }
}

/// Whether another session has taken a bundle that this broker serves.
fn is_taken(bundle: &Bundle, own: SessionId, seen: &Owned) -> bool {
    let older = own != SessionId(0) && bundle.grip.session != own;
    let other = seen.get(&bundle.id).is_some_and(|(session, revision)| {
        *session != bundle.grip.session && *revision > bundle.grip.revision
    });
    older || other
}

/// Watches owners until the broker is gone.
pub async fn run(broker: Weak<Inner>) {
    let Some(inner) = broker.upgrade() else { return };
    let (mut brokers, mut owners) = inner.ownership.changes();
    drop(inner);
    let mut orphans = Orphans::default();
    let mut busy = BTreeSet::new();
    let mut taking = JoinSet::new();
    loop {
        let Some(inner) = broker.upgrade() else { return };
        if inner.stopping.load(Ordering::Acquire) {
            return;
        }
        if inner.ownership.is_current() {
            let broker = Broker { inner };
            for bundle in broker.look(&mut orphans) {
                if busy.len() < AT_ONCE && busy.insert(bundle.clone()) {
                    taking.spawn(take(broker.clone(), bundle));
                }
            }
        }
        tokio::select! {
            changed = brokers.changed() => if changed.is_err() { return },
            changed = owners.changed() => if changed.is_err() { return },
            Some(done) = taking.join_next() => match done {
                Ok((bundle, is_gone)) => {
                    busy.remove(&bundle);
                    if is_gone {
                        orphans.orphans.remove(&bundle);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "taking a bundle over failed inside the broker");
                    // Whichever it was: all begin anew.
                    taking = JoinSet::new();
                    busy.clear();
                    tokio::time::sleep(RETRY).await;
                }
            },
        }
    }
}

/// Takes a bundle over, or ends after a pause, to be tried again. Answers the bundle, and whether
/// there is no such bundle any more.
async fn take(broker: Broker, bundle: BundleId) -> (BundleId, bool) {
    let is_gone = match broker.take_over(&bundle).await {
        Ok(()) => false,
        Err(TopicError::NamespaceNotFound(_)) => true,
        Err(error) => {
            tracing::debug!(%bundle, %error, "not taken over yet");
            drop(broker);
            tokio::time::sleep(RETRY).await;
            false
        }
    };
    (bundle, is_gone)
}

impl Broker {
    /// Ends what was taken from this broker, and answers what it has to take.
    fn look(&self, orphans: &mut Orphans) -> Vec<BundleId> {
        let inner = &self.inner;
        let ownership = &inner.ownership;
        let own = ownership.session.id();
        let owners = ownership.owners();
        let known =
            |stored: &Arc<Stored<OwnershipRecord>>| (stored.record.session, stored.revision);
        orphans.see(owners.iter().map(|(id, stored)| (id.clone(), known(stored))).collect());
        for bundle in inner.namespaces.all().iter().flat_map(|name| name.owned_bundles()) {
            if is_taken(&bundle, own, &orphans.seen) {
                tracing::warn!(bundle = %bundle.id, "another broker has taken the bundle");
                inner.topics.end_bundle(&bundle, &TopicError::NotOwner);
            }
        }
        self.learn_namespaces(owners.keys());
        let is_served = |bundle: &BundleId| {
            let namespace = inner.namespaces.known(&bundle.namespace);
            namespace.is_some_and(|namespace| namespace.slot(bundle).owned().is_some())
        };
        orphans.wanted(own, is_served, |bundle| ownership.is_chosen(bundle))
    }

    /// Lookups have to be answered while the metadata is away, so the namespaces that somebody
    /// serves are known to all.
    fn learn_namespaces<'a>(&self, bundles: impl Iterator<Item = &'a BundleId>) {
        let inner = &self.inner;
        let names: BTreeSet<_> = bundles.map(|bundle| &bundle.namespace).collect();
        for name in names.into_iter().filter(|name| inner.namespaces.known(name).is_none()) {
            let (inner, name) = (Arc::clone(inner), name.clone());
            self.inner.context.runtime.spawn(async move {
                if let Err(error) = inner.namespaces.get(&name).await {
                    tracing::debug!(namespace = %name, %error, "not known yet");
                }
            });
        }
    }

    async fn take_over(&self, id: &BundleId) -> Result<(), TopicError> {
        let namespace = self.inner.namespaces.get(&id.namespace).await?;
        if !namespace.bundle_ranges().contains(&id.range) {
            return Err(TopicError::NamespaceNotFound(id.to_string()));
        }
        self.own(&namespace, id).await.map(drop)
    }
}

#[cfg(test)]
mod tests;
