//! What the broker says about ledgers, queues, durability and itself.

use geminga_meta::keys::{self, Key};
use geminga_meta::record::{LedgerOwner, LedgerRecord, LedgerState, Record};
use geminga_meta::store::MAX_RANGE;
use geminga_proto::id::{BookieId, LedgerId};
use geminga_proto::storage::{BookieError, BookieInfo};

use super::Broker;
use crate::core::admin::AdminError;
use crate::core::stats::{BrokerStats, Durability, LedgerInfo, QueueStats};

impl Broker {
    /// Ledgers after `after`, at most `limit`, in order of their ids.
    ///
    /// # Errors
    /// Why the metadata can't be read.
    pub async fn list_ledgers(
        &self,
        after: Option<LedgerId>,
        limit: usize,
    ) -> Result<Vec<LedgerInfo>, AdminError> {
        let after = after.map(keys::ledger);
        let limit = limit.min(MAX_RANGE);
        let page = self.metadata().range(keys::LEDGERS, after.as_deref(), limit).await?;
        let info = |pair: &geminga_meta::store::KeyValue| {
            let Some(Key::Ledger(ledger)) = Key::parse(&pair.key) else {
                return Err(AdminError::Record(format!("{:?} is no ledger", pair.key)));
            };
            let record = |error| AdminError::Record(format!("{}: {error}", pair.key));
            let (record, _) = LedgerRecord::decode(&pair.value).map_err(record)?;
            Ok(ledger_info(ledger, &record))
        };
        page.pairs.iter().map(info).collect()
    }

    /// One ledger.
    ///
    /// # Errors
    /// [`AdminError::LedgerNotFound`], or why the metadata can't be read.
    pub async fn ledger(&self, ledger: LedgerId) -> Result<LedgerInfo, AdminError> {
        let key = keys::ledger(ledger);
        let missing = AdminError::LedgerNotFound(ledger);
        let pair = self.metadata().get(&key).await?.ok_or(missing)?;
        let record = |error| AdminError::Record(format!("{key}: {error}"));
        let (record, _) = LedgerRecord::decode(&pair.value).map_err(record)?;
        Ok(ledger_info(ledger, &record))
    }

    /// What the broker's queues hold, and their caps.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueStats> {
        let context = &self.inner.context;
        let (ingest, egress) = (context.budget.ingest(), context.budget.egress());
        let (cached, cache_capacity) = context.cache.usage();
        let queue = |name: &str, bytes, capacity_bytes, waiting| QueueStats {
            name: name.to_owned(),
            bytes,
            capacity_bytes,
            waiting,
        };
        let mut queues = vec![
            queue("ingest budget", ingest.used_bytes, ingest.capacity_bytes, ingest.waiting),
            queue("egress budget", egress.used_bytes, egress.capacity_bytes, egress.waiting),
            queue("tail cache", cached, cache_capacity, 0),
        ];
        for bundle in self.inner.namespaces.all().iter().flat_map(|name| name.owned_bundles()) {
            let numbers = bundle.log.numbers();
            let name = format!("state log of {}", bundle.id);
            queues.push(queue(&name, numbers.pending_bytes, numbers.max_pending_bytes, 0));
        }
        queues
    }

    /// How durable a receipt is. Bookies that don't answer are left out.
    pub async fn durability(&self) -> Durability {
        let ledgers = &self.inner.context.ledgers;
        let bookies = ledgers.bookies().await.into_iter();
        let mode = |(bookie, info): (BookieId, Result<BookieInfo, BookieError>)| {
            Some((bookie.to_string(), info.ok()?.sync_mode))
        };
        Durability {
            write_quorum: ledgers.config().write_quorum,
            ack_quorum: ledgers.config().ack_quorum,
            bookies: bookies.filter_map(mode).collect(),
        }
    }

    /// The broker's counters since its start, and what is in use now.
    #[must_use]
    pub fn stats(&self) -> BrokerStats {
        let context = &self.inner.context;
        let metrics = &context.metrics;
        let gauge = |value: i64| u64::try_from(value).unwrap_or(0);
        BrokerStats {
            messages_in: metrics.messages_in.get(),
            entries_in: metrics.entries_in.get(),
            bytes_in: metrics.bytes_in.get(),
            entries_refused: metrics.entries_refused.get(),
            messages_out: metrics.messages_out.get(),
            entries_out: metrics.entries_out.get(),
            bytes_out: metrics.bytes_out.get(),
            acks: metrics.acks.get(),
            cache_hits: metrics.cache_hits.get(),
            cache_misses: metrics.cache_misses.get(),
            topics_created: metrics.topics_created.get(),
            topics_loaded: metrics.topics_loaded.get(),
            topics_failed: metrics.topics_failed.get(),
            ledgers_opened: metrics.ledgers_opened.get(),
            ledgers_trimmed: metrics.ledgers_trimmed.get(),
            topics: gauge(metrics.topics.get()),
            producers: gauge(metrics.producers.get()),
            consumers: gauge(metrics.consumers.get()),
        }
    }
}

fn ledger_info(ledger: LedgerId, record: &LedgerRecord) -> LedgerInfo {
    let (state, last_entry, bytes) = match record.state {
        LedgerState::Open => ("open", None, 0),
        LedgerState::InRecovery => ("in-recovery", None, 0),
        LedgerState::Closed { last_entry, bytes } => ("closed", last_entry, bytes),
    };
    let fragments = record.fragments.iter().map(|fragment| {
        let bookies = fragment.bookies.iter().map(ToString::to_string).collect();
        (fragment.first_entry.0, bookies)
    });
    LedgerInfo {
        ledger,
        state,
        write_quorum: record.write_quorum,
        ack_quorum: record.ack_quorum,
        last_entry: last_entry.map(|entry| entry.0),
        bytes,
        created_ms: record.created_ms,
        state_log: matches!(record.owner, LedgerOwner::StateLog(_)),
        under_replicated: record.under_replicated,
        fragments: fragments.collect(),
    }
}
