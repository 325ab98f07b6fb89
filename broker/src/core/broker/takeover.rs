//! Takes over what other brokers leave behind: a bundle whose owner has gone is acquired by the
//! broker that rendezvous hashing picks, at once and without a client asking, so that clients find
//! it served; and what another broker has taken from this one ends.
//!
//! Topics aren't loaded ahead. Which of them are in use is known to their clients alone, who are
//! waiting and ask at once; a bundle's idle topics may be thousands of times as many, and loading
//! those first would only keep the others waiting.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use geminga_meta::bundle::BundleId;
use geminga_meta::record::{OwnershipRecord, SessionId, Stored};
use geminga_meta::store::Revision;
use geminga_proto::topic_name::NamespaceName;
use tokio::task::{JoinError, JoinSet};

use super::{Broker, Inner};
use crate::core::api::TopicError;
use crate::core::ownership::Grip;

/// Least wait before a bundle that couldn't be taken over is tried again; its state log may not be
/// for longer.
const RETRY: Duration = Duration::from_millis(250);
/// Bundles taken over at a time.
const AT_ONCE: usize = 16;
/// Namespaces read at a time.
const LEARNT_AT_ONCE: usize = 16;
/// Wait before a namespace that couldn't be read is tried again.
const LEARN_RETRY: Duration = Duration::from_secs(1);

/// The owned bundles, as a view has them: with the owner's session and the record's revision.
type Owned = BTreeMap<BundleId, (SessionId, Revision)>;

/// Which bundles have lost their owner. No I/O.
#[derive(Debug, Default)]
struct Orphans {
    seen: Owned,
    /// With the revision of the record that has gone.
    orphans: BTreeMap<BundleId, Revision>,
    /// Of which it was said that their record can't be read.
    unreadable: BTreeSet<BundleId>,
}

impl Orphans {
    /// Compares with what was seen before. A record that can't be read is there, whosever it is: it
    /// stays what it was, or somebody else's.
    fn see(&mut self, mut now: Owned, unreadable: impl Iterator<Item = BundleId>) {
        for bundle in unreadable {
            let before = self.seen.get(&bundle).copied();
            now.insert(bundle, before.unwrap_or((SessionId(0), Revision(0))));
        }
        let gone = self.seen.iter().filter(|(bundle, _)| !now.contains_key(bundle));
        self.orphans.extend(gone.map(|(bundle, (_, revision))| (bundle.clone(), *revision)));
        self.seen = now;
    }

    /// Whether another session has taken a bundle that this broker serves, or the record by which
    /// it is this broker's was seen and has gone. A record that wasn't seen yet is one that was
    /// just written.
    fn is_lost(&self, bundle: &BundleId, grip: Grip, own: SessionId) -> bool {
        let older = own != SessionId(0) && grip.session != own;
        let gone_or_other = match self.seen.get(bundle) {
            Some((session, revision)) => *session != grip.session && *revision > grip.revision,
            None => self.orphans.get(bundle).is_some_and(|gone| *gone >= grip.revision),
        };
        older || gone_or_other
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
        self.orphans.retain(|bundle, _| match seen.get(bundle) {
            Some((session, _)) => *session == own && !is_served(bundle),
            None => true,
        });
        // One that is served, but not in the view, was taken a moment ago.
        let wanted = |bundle: &&BundleId| {
            seen.contains_key(bundle) || (!is_served(bundle) && is_chosen(bundle))
        };
        self.orphans.keys().filter(wanted).cloned().collect()
    }
}

/// The namespaces that are being read, or are to be. Lookups have to be answered while the metadata
/// is away, so those that somebody serves are known to all.
#[derive(Debug, Default)]
struct Learning {
    names: BTreeSet<NamespaceName>,
    /// Those of them that are not being read yet.
    waiting: VecDeque<NamespaceName>,
    /// Answer the name, and whether it was read.
    tasks: JoinSet<(NamespaceName, bool)>,
}

impl Learning {
    /// Takes names in; those that it has already are being looked after.
    fn add(&mut self, unknown: impl Iterator<Item = NamespaceName>) {
        let new = unknown.filter(|name| self.names.insert(name.clone()));
        self.waiting.extend(new);
    }

    /// Begins to read as many as may be read at a time.
    fn go_on(&mut self, inner: &Arc<Inner>) {
        while self.tasks.len() < LEARNT_AT_ONCE
            && let Some(name) = self.waiting.pop_front()
        {
            let inner = Arc::clone(inner);
            self.tasks.spawn(async move {
                let read = inner.namespaces.get(&name).await;
                drop(inner);
                if let Err(error) = &read {
                    tracing::debug!(namespace = %name, %error, "not known yet");
                    tokio::time::sleep(LEARN_RETRY).await;
                }
                (name, read.is_ok())
            });
        }
    }

    /// A task has ended. Answers false if names have to be taken in again.
    async fn done(&mut self, ended: Result<(NamespaceName, bool), JoinError>) -> bool {
        match ended {
            Ok((name, is_read)) => {
                self.names.remove(&name);
                is_read
            }
            Err(error) => {
                tracing::error!(%error, "reading a namespace failed inside the broker");
                // Whichever it was: all begin anew.
                *self = Self::default();
                tokio::time::sleep(RETRY).await;
                false
            }
        }
    }
}

/// Watches owners until the broker is gone.
pub async fn run(broker: Weak<Inner>) {
    let Some(inner) = broker.upgrade() else { return };
    let (mut brokers, mut owners) = inner.ownership.changes();
    drop(inner);
    let mut orphans = Orphans::default();
    let mut busy = BTreeSet::new();
    let mut taking = JoinSet::new();
    let mut learning = Learning::default();
    let mut has_changed = true;
    loop {
        let Some(inner) = broker.upgrade() else { return };
        if inner.stopping.load(Ordering::Acquire) {
            return;
        }
        if has_changed && inner.ownership.is_current() {
            let broker = Broker { inner: Arc::clone(&inner) };
            for bundle in broker.look(&mut orphans, &mut learning) {
                if busy.len() < AT_ONCE && busy.insert(bundle.clone()) {
                    taking.spawn(take(broker.clone(), bundle));
                }
            }
        }
        learning.go_on(&inner);
        drop(inner);
        has_changed = tokio::select! {
            biased;
            changed = brokers.changed() => if changed.is_err() { return } else { true },
            changed = owners.changed() => if changed.is_err() { return } else { true },
            Some(ended) = learning.tasks.join_next() => !learning.done(ended).await,
            Some(done) = taking.join_next() => match done {
                Ok((bundle, is_gone)) => {
                    busy.remove(&bundle);
                    if is_gone {
                        orphans.orphans.remove(&bundle);
                    }
                    true
                }
                Err(error) => {
                    tracing::error!(%error, "taking a bundle over failed inside the broker");
                    // Whichever it was: all begin anew.
                    taking = JoinSet::new();
                    busy.clear();
                    tokio::time::sleep(RETRY).await;
                    true
                }
            },
        }
    }
}

/// Takes a bundle over, or ends after a pause, to be tried again. Answers the bundle, and whether
/// there is no such bundle any more.
async fn take(broker: Broker, bundle: BundleId) -> (BundleId, bool) {
    let is_gone = match broker.take_over(&bundle).await {
        Ok(true) => false,
        // Whatever the views say, there is nothing to do: don't look again at once.
        Ok(false) => {
            drop(broker);
            tokio::time::sleep(RETRY).await;
            false
        }
        Err(TopicError::NamespaceNotFound(_)) => true,
        Err(error) => {
            let pause = broker.pause_before(&bundle);
            tracing::debug!(%bundle, %error, ?pause, "not taken over yet");
            drop(broker);
            tokio::time::sleep(pause).await;
            false
        }
    };
    (bundle, is_gone)
}

impl Broker {
    /// Ends what was taken from this broker, and answers what it has to take.
    fn look(&self, orphans: &mut Orphans, learning: &mut Learning) -> Vec<BundleId> {
        let inner = &self.inner;
        let ownership = &inner.ownership;
        let own = ownership.session.id();
        let (owners, unreadable) = ownership.owned();
        for (bundle, why) in &unreadable {
            if !orphans.unreadable.contains(bundle) {
                tracing::error!(%bundle, why, "nobody can tell who owns the bundle");
            }
        }
        orphans.unreadable = unreadable.keys().cloned().collect();
        let known =
            |stored: &Arc<Stored<OwnershipRecord>>| (stored.record.session, stored.revision);
        let seen = owners.iter().map(|(id, stored)| (id.clone(), known(stored))).collect();
        orphans.see(seen, unreadable.into_keys());
        for bundle in inner.namespaces.all().iter().flat_map(|name| name.owned_bundles()) {
            if orphans.is_lost(&bundle.id, bundle.grip, own) {
                tracing::warn!(bundle = %bundle.id, "the bundle is not this broker's any more");
                inner.topics.end_bundle(&bundle, &TopicError::NotOwner);
                // Perhaps all that hangs on the lease is gone.
                ownership.session.check_now();
            }
        }
        let named = owners.keys().map(|bundle| &bundle.namespace);
        let unknown = named.filter(|name| inner.namespaces.known(name).is_none());
        learning.add(unknown.cloned());
        let is_served = |bundle: &BundleId| {
            let namespace = inner.namespaces.known(&bundle.namespace);
            namespace.is_some_and(|namespace| namespace.slot(bundle).owned().is_some())
        };
        orphans.wanted(own, is_served, |bundle| ownership.is_chosen(bundle))
    }

    /// How long a bundle that couldn't be taken over is left alone.
    fn pause_before(&self, id: &BundleId) -> Duration {
        let namespace = self.inner.namespaces.known(&id.namespace);
        namespace.map_or(RETRY, |namespace| namespace.slot(id).again_in().max(RETRY))
    }

    /// Answers whether the bundle wasn't served here before.
    async fn take_over(&self, id: &BundleId) -> Result<bool, TopicError> {
        let namespace = self.inner.namespaces.get(&id.namespace).await?;
        if !namespace.bundle_ranges().contains(&id.range) {
            return Err(TopicError::NamespaceNotFound(id.to_string()));
        }
        let was_served = namespace.slot(id).owned().is_some();
        self.own(&namespace, id).await.map(|_| !was_served)
    }
}

#[cfg(test)]
mod tests;
