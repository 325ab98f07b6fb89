//! Deletes a namespace: its bundles' state logs, then its record.
//!
//! Whoever deletes puts a mark first, with which no topic and no state log of the namespace can
//! come to be; only then what it looks at stays as it is. The mark hangs on a lease of its own that
//! nobody keeps alive, so that a deletion which was cut short holds nothing up for long.
//!
//! A state log needn't be readable: a bundle's damaged record is deleted with the ledgers whose own
//! records name the bundle.
//!
//! Invariant: a record goes with the last of what it lists, and the namespace's last and only while
//! the mark is there, so deleting again goes on where a crash ended it.

use std::collections::BTreeSet;
use std::sync::Arc;

use geminga_ledger::error::DeleteError;
use geminga_meta::bundle::BundleId;
use geminga_meta::keys::{self, Key};
use geminga_meta::record::{BundleRecord, LedgerOwner, NamespaceRecord, Nonce, Record, Stored};
use geminga_meta::store::{Compare, LeaseId, Revision, StoreError, Txn, TxnOutcome};
use geminga_meta::update_loop::{RetryPolicy, Witness, commit};
use geminga_proto::id::{Epoch, LedgerId};
use geminga_proto::topic_name::NamespaceName;

use super::Broker;
use crate::core::admin::AdminError;
use crate::core::api::TopicError;
use crate::core::context::unavailable;

/// Ledgers deleted in one transaction, whose operations are limited.
const LEDGERS_AT_ONCE: usize = 60;
/// Attempts at a bundle's record while an owner still writes it.
const ATTEMPTS: u32 = 16;

/// The mark of a namespace that is being deleted.
struct Mark {
    key: String,
    revision: Revision,
    lease: LeaseId,
}

impl Mark {
    fn holds(&self) -> Compare {
        Compare::Unchanged(self.key.clone(), self.revision)
    }
}

impl Broker {
    /// Deletes a namespace that has no topics, with its bundles.
    ///
    /// # Errors
    /// [`AdminError::NamespaceNotFound`] or [`AdminError::NamespaceNotEmpty`], or why it can't be
    /// deleted; deleting it again goes on.
    pub async fn delete_namespace(&self, name: &NamespaceName) -> Result<(), AdminError> {
        let (broker, name) = (self.clone(), name.clone());
        // It goes on without its caller, so that the mark is always taken away.
        let deleting = self.inner.context.runtime.spawn(async move {
            let stored = broker.stored_namespace(&name).await?;
            broker.refuse_used(&name).await?;
            let mark = broker.mark(&name, &stored).await?;
            let deleted = broker.delete_marked(&name, &stored, &mark).await;
            if let Err(error) = broker.metadata().revoke_lease(mark.lease).await {
                tracing::debug!(namespace = %name, %error, "a deletion's lease ends by itself");
            }
            deleted
        });
        deleting.await.map_err(|error| AdminError::Topic(unavailable(error)))?
    }

    async fn refuse_used(&self, name: &NamespaceName) -> Result<(), AdminError> {
        if self.is_empty(&keys::topics_of(name)).await? {
            return Ok(());
        }
        Err(AdminError::NamespaceNotEmpty(name.to_string()))
    }

    /// Puts the mark, unless the namespace has changed or has one.
    async fn mark(
        &self,
        name: &NamespaceName,
        stored: &Stored<NamespaceRecord>,
    ) -> Result<Mark, AdminError> {
        let (context, ownership) = (&self.inner.context, &self.inner.ownership);
        let record = ownership.own_record(ownership.session.id());
        let key = keys::deletion(name);
        let nonce = Nonce::new(&*context.env.random);
        let value =
            record.encode(nonce).map_err(|error| AdminError::Record(format!("{key}: {error}")))?;
        let lease = context.meta.grant_lease(context.config.lease_ttl).await?;
        let txn = Txn::default()
            .when(stored.unchanged())
            .when(Compare::Absent(key.clone()))
            .put_leased(key.clone(), value, lease);
        let (policy, witness) = (RetryPolicy::default(), Witness::new(key.clone(), nonce));
        match commit(&*context.meta, &context.env, policy, txn, &witness).await? {
            TxnOutcome::Applied(revision) => Ok(Mark { key, revision, lease }),
            TxnOutcome::Conflict(_) => {
                let why = format!("namespace {name} is being changed or deleted by somebody else");
                Err(StoreError::Unavailable(why).into())
            }
        }
    }

    async fn delete_marked(
        &self,
        name: &NamespaceName,
        stored: &Stored<NamespaceRecord>,
        mark: &Mark,
    ) -> Result<(), AdminError> {
        // Nothing comes to be any more: what is there now is all.
        self.refuse_used(name).await?;
        let ended = unavailable(format!("namespace {name} is being deleted"));
        for bundle in self.owned_bundles(name) {
            self.inner.topics.end_bundle(&bundle, &ended);
        }
        for bundle in self.bundles_with_state(name).await? {
            self.delete_bundle(&bundle, mark).await?;
        }
        let txn = Txn::default().when(mark.holds()).when(stored.unchanged());
        let txn = txn.delete(stored.key.clone()).delete(mark.key.clone());
        match self.metadata().txn(txn).await {
            Ok(TxnOutcome::Applied(_)) => {}
            Ok(TxnOutcome::Conflict(_)) => {
                let why = format!("namespace {name} was changed, or deleting it took too long");
                return Err(StoreError::Unavailable(why).into());
            }
            // Deleting leaves no nonce: look whether it is gone.
            Err(error @ StoreError::Unknown(_)) => {
                if self.metadata().get(&stored.key).await?.is_some() {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
        self.inner.namespaces.forget(name);
        Ok(())
    }

    fn owned_bundles(&self, name: &NamespaceName) -> Vec<Arc<crate::core::bundle::Bundle>> {
        let known = self.inner.namespaces.known(name);
        known.map(|namespace| namespace.take_bundles()).unwrap_or_default()
    }

    async fn bundles_with_state(&self, name: &NamespaceName) -> Result<Vec<BundleId>, AdminError> {
        let mut bundles = Vec::new();
        self.each(&keys::bundles_of(name), |pair| {
            bundles.push(match Key::parse(&pair.key) {
                Some(Key::Bundle(bundle)) => Ok(bundle),
                _ => Err(AdminError::Record(format!("{:?} is no bundle", pair.key))),
            });
        })
        .await?;
        bundles.into_iter().collect()
    }

    /// Deletes a bundle's state log: its record with its ledgers. Whoever has it open is fenced.
    async fn delete_bundle(&self, bundle: &BundleId, mark: &Mark) -> Result<(), AdminError> {
        let key = keys::bundle(bundle);
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            let Some(pair) = self.metadata().get(&key).await? else { return Ok(()) };
            let unchanged = Compare::Unchanged(key.clone(), pair.modified);
            let guard = Txn::default().when(mark.holds()).when(unchanged);
            let (gone, txn) = match Stored::<BundleRecord>::from_pair(pair) {
                Ok(stored) => self.shorten(bundle, stored.record, guard)?,
                Err(error) => {
                    tracing::warn!(%bundle, %error, "a damaged state log is deleted");
                    let owner = LedgerOwner::StateLog(bundle.clone());
                    let mut ledgers = self.ledgers_of(&owner, &BTreeSet::new()).await?;
                    match ledgers.len().checked_sub(LEDGERS_AT_ONCE) {
                        Some(rest) if rest > 0 => (ledgers.split_off(rest), guard),
                        _ => (ledgers, without(bundle, guard)),
                    }
                }
            };
            match self.inner.context.ledgers.delete(&gone, txn).await {
                Ok(()) => {}
                // Perhaps an owner wrote it at that moment. If the mark is gone, it stays so.
                Err(DeleteError::Conflict) => attempts += 1,
                Err(DeleteError::Metadata(error)) => return Err(error.into()),
            }
        }
        let why = format!("the state log of bundle {bundle} keeps changing");
        Err(AdminError::Topic(TopicError::Unavailable(why)))
    }

    /// What is to be deleted next of a bundle, and the transaction for it: as many ledgers as go
    /// with one, and the record with the last of them.
    ///
    /// What is left in between can still be replayed: first goes what lies before the snapshot,
    /// then the end. No topic has a cursor in it any more.
    fn shorten(
        &self,
        bundle: &BundleId,
        mut record: BundleRecord,
        guard: Txn,
    ) -> Result<(Vec<LedgerId>, Txn), AdminError> {
        let chain = &mut record.state_ledgers;
        let Some(rest) = chain.len().checked_sub(LEDGERS_AT_ONCE).filter(|rest| *rest > 0) else {
            return Ok((record.state_ledgers, without(bundle, guard)));
        };
        let snapshot = record.snapshot.map(|at| at.ledger);
        let obsolete = chain.partition_point(|ledger| snapshot.is_some_and(|at| *ledger < at));
        let gone = match obsolete {
            0 => chain.split_off(rest),
            _ => chain.drain(..obsolete.min(LEDGERS_AT_ONCE)).collect(),
        };
        record.epoch = Epoch(record.epoch.0 + 1);
        let key = keys::bundle(bundle);
        let value = record.encode(Nonce::new(&*self.env().random));
        let value = value.map_err(|error| AdminError::Record(format!("{key}: {error}")))?;
        Ok((gone, guard.put(key, value)))
    }
}

/// Deletes the bundle's own records as well.
fn without(bundle: &BundleId, txn: Txn) -> Txn {
    txn.delete(keys::bundle(bundle)).delete(keys::ownership(bundle))
}
