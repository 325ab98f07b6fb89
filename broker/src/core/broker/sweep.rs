//! Retention of topics that are not in memory: now and then their records are looked at, and those
//! that have something to trim, or a ledger that a crash left open, are loaded. Housekeeping does
//! the rest, and they leave the memory again.
//!
//! Refuses: to trim by itself. Only a loaded topic, which owns its managed ledger, does that.

use std::sync::Weak;
use std::sync::atomic::Ordering;

use geminga_meta::keys::{self, Key};
use geminga_meta::read::read;
use geminga_meta::record::{ManagedLedgerChunk, ManagedLedgerRecord, Stored, TopicRecord};
use geminga_meta::store::{KeyValue, MAX_RANGE, StoreError};
use geminga_proto::id::{ManagedLedgerId, MessageIndex};

use super::{Broker, Inner};
use crate::core::api::{Lookup, TopicError};
use crate::core::context::read_error;
use crate::core::managed_ledger::ManagedLedger;
use crate::core::topic::Create;

/// Sweeps until the broker is gone.
pub async fn run(broker: Weak<Inner>) {
    loop {
        let Some(interval) = broker.upgrade().map(|inner| {
            let config = &inner.context.config;
            config.retention_sweep_interval
        }) else {
            return;
        };
        tokio::time::sleep(interval).await;
        let Some(inner) = broker.upgrade() else { return };
        if inner.stopping.load(Ordering::Acquire) {
            return;
        }
        let broker = Broker { inner };
        if let Err(error) = broker.sweep().await {
            tracing::warn!(%error, "retention could not be checked; the next sweep tries again");
        }
    }
}

impl Broker {
    async fn sweep(&self) -> Result<(), StoreError> {
        let mut after: Option<String> = None;
        loop {
            let meta = self.metadata();
            let page = meta.range(keys::MANAGED_LEDGERS, after.as_deref(), MAX_RANGE).await?;
            after = page.pairs.last().map(|pair| pair.key.clone());
            for pair in page.pairs {
                let Some(Key::ManagedLedger(id)) = Key::parse(&pair.key) else { continue };
                if self.inner.stopping.load(Ordering::Acquire) {
                    return Ok(());
                }
                if let Err(error) = self.sweep_topic(id, pair).await {
                    tracing::warn!(managed_ledger = %id, %error, "retention is not checked");
                }
            }
            if !page.more || after.is_none() {
                return Ok(());
            }
        }
    }

    /// Loads the topic if that would trim or close something.
    async fn sweep_topic(&self, id: ManagedLedgerId, head: KeyValue) -> Result<(), TopicError> {
        let corrupt = |error: String| TopicError::Corrupt(error);
        let head: Stored<ManagedLedgerRecord> =
            Stored::from_pair(head).map_err(|error| corrupt(error.to_string()))?;
        let name = head.record.topic.clone();
        let nothing = head.record.ledgers.is_empty() && head.record.chunks.is_empty();
        if nothing || self.inner.topics.get(&name).is_some() {
            return Ok(());
        }
        if self.lookup(&name).await? != Lookup::Here {
            return Ok(());
        }
        let home = self.home(&name).await?;
        let key = keys::topic(&name);
        let record = read::<TopicRecord>(&**self.metadata(), &key).await.map_err(read_error)?;
        let Some(record) = record else { return Ok(()) };
        let mut chunks = Vec::new();
        for link in &head.record.chunks {
            let key = keys::managed_ledger_chunk(id, link.number);
            let chunk = read::<ManagedLedgerChunk>(&**self.metadata(), &key).await;
            // Trimmed meanwhile: somebody is looking after it.
            let Some(chunk) = chunk.map_err(read_error)? else { return Ok(()) };
            chunks.push((link.number, chunk.record));
        }
        let ledgers = ManagedLedger::load(id, &head, &chunks);
        let ledgers = ledgers.map_err(|error| corrupt(error.to_string()))?;
        let cursors = home.bundle.log.subscriptions(record.record.incarnation);
        let subscribed = ledgers.had_subscription || !cursors.is_empty();
        let consumed = cursors.iter().map(|stored| stored.cursor.next_unacked).min();
        let consumed = consumed.unwrap_or(MessageIndex::MAX);
        let retention = home.namespace.retention(&home.context, subscribed);
        let now_ms = home.context.env.clock.wall_ms();
        let trimmable = ledgers.list.trimmable(consumed, retention, now_ms, 0);
        if trimmable > 0 || !ledgers.open.is_empty() {
            self.topic(&name, Create::Never).await?;
        }
        Ok(())
    }
}
