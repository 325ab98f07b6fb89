//! [`Identity`]: is the etcd that answers the one that this process has known? If not, it is
//! never used again.
//!
//! Three things are looked at: etcd's cluster id, which is in every answer; the revision of a
//! linearizable answer, which is never below one that was seen before the request was sent; and
//! the revision at which our cluster's record was created, which tells two etcd clusters with the
//! same members and names, and so the same cluster id, apart.
//!
//! Invariant: once replaced, always replaced. Whoever restores an etcd restarts the processes,
//! which look at it afresh.

use etcd_client::KeyValue;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::request::revision;
use crate::store::{Revision, StoreError};

/// What is looked at in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sender {
    /// etcd's cluster id.
    pub(super) cluster: u64,
    /// The revision.
    pub(super) revision: Revision,
}

#[derive(Debug, Default)]
struct Known {
    cluster: Option<u64>,
    /// Revision that created our cluster's record.
    record: Option<Revision>,
    highest: Revision,
}

/// Which etcd is known.
#[derive(Debug, Default)]
pub(super) struct Identity {
    known: Mutex<Known>,
    replaced: watch::Sender<Option<String>>,
}

impl Identity {
    /// The highest revision seen. What is sent from now on, linearizably, is answered at no lower
    /// one.
    pub(super) fn highest(&self) -> Revision {
        self.known.lock().highest
    }

    /// Refuses once another etcd has answered.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let replaced = self.replaced.borrow().clone();
        replaced.map_or(Ok(()), |why| Err(StoreError::Replaced(why)))
    }

    /// Hears when another etcd has answered.
    pub(super) fn replaced(&self) -> watch::Receiver<Option<String>> {
        self.replaced.subscribe()
    }

    /// A linearizable answer to what was sent when `floor` was the highest revision.
    pub(super) fn linearizable(&self, sender: Sender, floor: Revision) -> Result<(), StoreError> {
        self.any(sender)?;
        if sender.revision < floor {
            let (now, floor) = (sender.revision.0, floor.0);
            return self.refuse(&format!(
                "it is at revision {now}, but was at {floor} before: it lost data, or was \
                 restored from an older backup"
            ));
        }
        self.saw(sender.revision);
        Ok(())
    }

    /// An answer that may come from a member that lags behind.
    pub(super) fn any(&self, sender: Sender) -> Result<(), StoreError> {
        self.check()?;
        let known = *self.known.lock().cluster.get_or_insert(sender.cluster);
        if known == sender.cluster {
            return Ok(());
        }
        let found = sender.cluster;
        self.refuse(&format!("etcd's cluster id is {found:x}, but was {known:x} before"))
    }

    /// A revision that a change had.
    pub(super) fn saw(&self, revision: Revision) {
        let mut known = self.known.lock();
        known.highest = known.highest.max(revision);
    }

    /// A linearizable read found this under the key of our cluster's record.
    pub(super) fn record_found(&self, found: Option<&KeyValue>) -> Result<(), StoreError> {
        self.record_created(found.map(|pair| revision(pair.create_revision())))
    }

    /// The record was created then; `None`: there is none.
    fn record_created(&self, found: Option<Revision>) -> Result<(), StoreError> {
        let mut known = self.known.lock();
        if known.record.is_none() {
            known.record = found;
        }
        let before = known.record;
        drop(known);
        if found == before {
            return Ok(());
        }
        let what = if found.is_some() { "another record of the cluster" } else { "no cluster" };
        self.refuse(&format!("it holds {what} below the prefix now"))
    }

    fn refuse(&self, why: &str) -> Result<(), StoreError> {
        let first = self.replaced.send_if_modified(|replaced| {
            let first = replaced.is_none();
            replaced.get_or_insert_with(|| why.to_owned());
            first
        });
        if first {
            tracing::error!(
                why,
                "the metadata store was replaced or set back; this process uses it no more"
            );
        }
        self.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(cluster: u64, revision: u64) -> Sender {
        Sender { cluster, revision: Revision(revision) }
    }

    fn assert_replaced(identity: &Identity, answer: &Result<(), StoreError>, word: &str) {
        let Err(StoreError::Replaced(why)) = answer else { panic!("not refused: {answer:?}") };
        assert!(why.contains(word), "{why}");
        assert_eq!(identity.check(), *answer);
        // For ever, and for the first reason.
        let good = identity.linearizable(sender(7, u64::MAX), Revision(0));
        assert_eq!(good, *answer);
        assert_eq!(identity.any(sender(7, 1)), *answer);
        assert!(identity.replaced().borrow().is_some());
    }

    #[test]
    fn the_first_etcd_that_answers_is_the_one_that_is_known() {
        let identity = Identity::default();
        assert_eq!(identity.linearizable(sender(7, 10), Revision(0)), Ok(()));
        assert_eq!(identity.highest(), Revision(10));
        // Answers overtake each other: what counts is what was known when it was sent.
        assert_eq!(identity.linearizable(sender(7, 9), Revision(8)), Ok(()));
        assert_eq!(identity.highest(), Revision(10));
        // A watch's or keep-alive's answer may be behind.
        assert_eq!(identity.any(sender(7, 2)), Ok(()));
        let foreign = identity.any(sender(8, 20));
        assert_replaced(&identity, &foreign, "cluster id");
    }

    #[test]
    fn a_revision_that_goes_back_is_refused() {
        let identity = Identity::default();
        assert_eq!(identity.linearizable(sender(7, 10), Revision(0)), Ok(()));
        identity.saw(Revision(12));
        let floor = identity.highest();
        assert_eq!(floor, Revision(12));
        let back = identity.linearizable(sender(7, 11), floor);
        assert_replaced(&identity, &back, "revision 11");
    }

    #[test]
    fn the_clusters_record_is_the_one_that_was_found_first() {
        let identity = Identity::default();
        assert_eq!(identity.record_created(None), Ok(()));
        assert_eq!(identity.record_created(Some(Revision(2))), Ok(()), "it was initialised");
        assert_eq!(identity.record_created(Some(Revision(2))), Ok(()));
        let wiped = identity.record_created(None);
        assert_replaced(&identity, &wiped, "no cluster");
        let identity = Identity::default();
        assert_eq!(identity.record_created(Some(Revision(2))), Ok(()));
        let other = identity.record_created(Some(Revision(3)));
        assert_replaced(&identity, &other, "another record");
    }
}
