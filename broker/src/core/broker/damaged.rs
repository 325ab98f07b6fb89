//! Deletes a topic that is too damaged to be loaded, from whatever of its records can be read: its
//! ledgers are found by their own records, which name the managed ledger that they belong to; those
//! whose record is damaged, by the managed ledger's.
//!
//! The bundle's state log may be damaged too. Its cursors of the topic stay then, for as long as
//! the log does; they are nobody's, since no topic ever gets the same incarnation again.
//!
//! Invariant: the topic's record goes last, so deleting again goes on where a crash ended it; and
//! only as long as nobody writes the records meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;

use geminga_ledger::error::DeleteError;
use geminga_meta::keys::{self, Key};
use geminga_meta::record::{
    LedgerOwner, LedgerRecord, ManagedLedgerChunk, ManagedLedgerRecord, Record, Stored, TopicRecord,
};
use geminga_meta::store::{Compare, KeyValue, MAX_RANGE, Txn, TxnOutcome};
use geminga_proto::id::{LedgerId, ManagedLedgerId};
use geminga_proto::topic_name::TopicName;

use super::Broker;
use crate::core::admin::AdminError;
use crate::core::api::TopicError;
use crate::core::bundle::Bundle;
use crate::core::context::unavailable;
use crate::core::ownership::Taken;
use crate::core::topic::forget_cursors;

/// Ledgers, or chunks of a managed ledger, deleted in one transaction.
const AT_ONCE: usize = 32;

fn unchanged(pair: &KeyValue) -> Compare {
    Compare::Unchanged(pair.key.clone(), pair.modified)
}

impl Broker {
    /// Deletes a topic that can't be loaded. The caller has its claim.
    ///
    /// # Errors
    /// Why not all of it could be deleted; deleting it again goes on.
    pub(super) async fn delete_damaged(
        &self,
        name: &TopicName,
        why: &str,
    ) -> Result<(), AdminError> {
        tracing::warn!(topic = %name, why, "a damaged topic is deleted from its records");
        let bundle = self.owned_bundle(name).await?;
        let missing = || AdminError::TopicNotFound(name.to_string());
        let topic = self.metadata().get(&keys::topic(name)).await?.ok_or_else(missing)?;
        let managed_ledgers = match Stored::<TopicRecord>::from_pair(topic.clone()) {
            Ok(stored) => {
                if let Some(bundle) = bundle {
                    forget_cursors(&bundle, stored.record.incarnation).await?;
                }
                let shards = stored.record.shards.iter();
                shards.map(|shard| shard.managed_ledger).collect()
            }
            Err(error) => {
                tracing::warn!(topic = %name, %error, "its cursors stay: nothing says which");
                self.managed_ledgers_of(name).await?
            }
        };
        for id in managed_ledgers {
            self.delete_managed_ledger(id, &topic).await?;
        }
        let txn = Txn::default().when(unchanged(&topic)).delete(topic.key.clone());
        self.apply(txn).await
    }

    /// The bundle, owned, which keeps other brokers from loading the topic. `None` if its state log
    /// is damaged: then nobody can load it.
    async fn owned_bundle(&self, name: &TopicName) -> Result<Option<Arc<Bundle>>, AdminError> {
        match self.home(name).await {
            Ok(home) => Ok(Some(home.bundle)),
            Err(TopicError::Corrupt(why)) => {
                tracing::warn!(topic = %name, why, "its cursors stay: the state log is damaged");
                let namespace = self.inner.namespaces.get(name.namespace()).await?;
                let bundle = namespace.bundle_of(name);
                match self.inner.ownership.acquire(&bundle).await.map_err(unavailable)? {
                    Taken::Here(_) => Ok(None),
                    Taken::Elsewhere(_) => Err(TopicError::NotOwner.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn apply(&self, txn: Txn) -> Result<(), AdminError> {
        match self.metadata().txn(txn).await? {
            TxnOutcome::Applied(_) => Ok(()),
            TxnOutcome::Conflict(_) => Err(TopicError::Fenced.into()),
        }
    }

    async fn delete_managed_ledger(
        &self,
        id: ManagedLedgerId,
        topic: &KeyValue,
    ) -> Result<(), AdminError> {
        let key = keys::managed_ledger(id);
        let head = self.metadata().get(&key).await?;
        let guard = || {
            let txn = Txn::default().when(unchanged(topic));
            match &head {
                Some(head) => txn.when(unchanged(head)),
                None => txn.when(Compare::Absent(key.clone())),
            }
        };
        let context = &self.inner.context;
        let (links, chunks) = self.linked(id, head.as_ref()).await?;
        let owner = LedgerOwner::ManagedLedger(id);
        for gone in self.ledgers_of(&owner, &links).await?.chunks(AT_ONCE) {
            let deleted = context.ledgers.delete(gone, guard()).await;
            deleted.map_err(|error| match error {
                DeleteError::Conflict => AdminError::Topic(TopicError::Fenced),
                DeleteError::Metadata(error) => AdminError::Metadata(error),
            })?;
            gone.iter().for_each(|ledger| context.readers.invalidate(ledger));
        }
        for gone in chunks.chunks(AT_ONCE) {
            let txn = gone.iter().fold(guard(), |txn, chunk| txn.delete(chunk.clone()));
            self.apply(txn).await?;
        }
        self.apply(guard().delete(key.clone())).await
    }

    /// The ledgers that a managed ledger's head and chunks list, as far as these can be read, and
    /// the keys of its chunks.
    async fn linked(
        &self,
        id: ManagedLedgerId,
        head: Option<&KeyValue>,
    ) -> Result<(BTreeSet<LedgerId>, Vec<String>), AdminError> {
        let mut links = BTreeSet::new();
        match head.map(|head| ManagedLedgerRecord::decode(&head.value)) {
            Some(Ok((record, _))) => links.extend(record.ledgers.iter().map(|link| link.ledger)),
            Some(Err(error)) => tracing::warn!(managed_ledger = %id, %error, "its head is damaged"),
            None => {}
        }
        let mut chunks = Vec::new();
        self.each(&keys::managed_ledger_chunks_of(id), |pair| {
            match ManagedLedgerChunk::decode(&pair.value) {
                Ok((chunk, _)) => links.extend(chunk.ledgers.iter().map(|link| link.ledger)),
                Err(error) => tracing::warn!(key = pair.key, %error, "a damaged chunk goes"),
            }
            chunks.push(pair.key);
        })
        .await?;
        Ok((links, chunks))
    }

    /// The ledgers whose records say that they are its; of those whose record says nothing that can
    /// be read, those that are linked.
    pub(super) async fn ledgers_of(
        &self,
        owner: &LedgerOwner,
        links: &BTreeSet<LedgerId>,
    ) -> Result<Vec<LedgerId>, AdminError> {
        let mut found = Vec::new();
        self.each(keys::LEDGERS, |pair| {
            let Some(Key::Ledger(ledger)) = Key::parse(&pair.key) else { return };
            match LedgerRecord::decode(&pair.value) {
                Ok((record, _)) if record.owner == *owner => found.push(ledger),
                Ok(_) => {}
                Err(_) if links.contains(&ledger) => found.push(ledger),
                Err(error) => tracing::warn!(key = pair.key, %error, "whose it is is unknown"),
            }
        })
        .await?;
        Ok(found)
    }

    /// The managed ledgers whose records say that they are the topic's.
    async fn managed_ledgers_of(
        &self,
        name: &TopicName,
    ) -> Result<Vec<ManagedLedgerId>, AdminError> {
        let mut found = Vec::new();
        self.each(keys::MANAGED_LEDGERS, |pair| {
            let Some(Key::ManagedLedger(id)) = Key::parse(&pair.key) else { return };
            match ManagedLedgerRecord::decode(&pair.value) {
                Ok((record, _)) if record.topic == *name => found.push(id),
                Ok(_) => {}
                Err(error) => tracing::warn!(key = pair.key, %error, "whose it is is unknown"),
            }
        })
        .await?;
        Ok(found)
    }

    /// Shows every pair below a prefix.
    pub(super) async fn each(
        &self,
        prefix: &str,
        mut show: impl FnMut(KeyValue),
    ) -> Result<(), AdminError> {
        let mut after: Option<String> = None;
        loop {
            let page = self.metadata().range(prefix, after.as_deref(), MAX_RANGE).await?;
            after = page.pairs.last().map(|pair| pair.key.clone());
            page.pairs.into_iter().for_each(&mut show);
            if !page.more || after.is_none() {
                return Ok(());
            }
        }
    }
}
