//! [`BrokerConfig`]: the broker's settings, resolved by the command line.
//! [`BrokerConfig::validate`] refuses what can't work; nothing here reads a file or the
//! environment.

use std::time::Duration;

use geminga_meta::record::BrokerRecord;
use geminga_proto::entry::DEFAULT_MAX_MESSAGE_BYTES;
use geminga_proto::id::BrokerId;

use crate::core::dispatch::DispatchLimits;
use crate::core::state_log::StateLogConfig;

/// Why settings are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} = {value}: {why}")]
pub struct ConfigError {
    /// The setting.
    pub setting: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong and what to do.
    pub why: &'static str,
}

/// The broker's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerConfig {
    /// Its name in the cluster.
    pub broker_id: BrokerId,
    /// Where clients connect, as told to other brokers.
    pub service_url: String,
    /// Where administration connects, as told to other brokers.
    pub admin_url: String,
    /// Where this process is, as no other can be while it runs: the machine's start, its network
    /// and the port that is open there. Empty: that can't be told.
    pub place: String,
    /// Whether publishing and subscribing create a topic that doesn't exist.
    pub auto_topic_creation: bool,
    /// Largest entry as a producer sends it.
    pub max_message_bytes: u32,
    /// Most messages in one entry.
    pub max_messages_per_batch: u32,
    /// Bytes of entries that one producer may have outstanding.
    pub producer_credit_bytes: u64,
    /// Bytes of entries in memory, all over the broker. Three quarters are for publishing (and
    /// the tail cache), a quarter for delivery.
    pub memory_budget_bytes: u64,
    /// Most bytes in the tail cache; part of the budget.
    pub tail_cache_bytes: u64,
    /// Bundles of a namespace that is created.
    pub bundles_per_namespace: u32,
    /// A ledger is followed by the next one at this size.
    pub ledger_max_bytes: u64,
    /// A ledger is followed by the next one at this age.
    pub ledger_max_age: Duration,
    /// A ledger without publishes for so long is closed.
    pub ledger_idle_close: Duration,
    /// A topic without producers and consumers for so long leaves the memory.
    pub topic_idle_unload: Duration,
    /// How often ledgers, topics and retention are looked after.
    pub housekeeping_interval: Duration,
    /// How often topics that are not in memory are looked at for data that is past its retention.
    pub retention_sweep_interval: Duration,
    /// How long consumed data is kept, unless the namespace says otherwise.
    pub retention: Duration,
    /// How much consumed data of a topic is kept, unless the namespace says otherwise.
    pub retention_bytes: u64,
    /// How long data of a topic that never had a subscription is kept at least.
    pub unsubscribed_retention: Duration,
    /// How much data of a topic that never had a subscription is kept at most.
    pub unsubscribed_retention_bytes: u64,
    /// No other process can use the metadata, as in a standalone: an earlier run of this broker
    /// must be over, and the first start makes tenant `public` and namespace `public/default`.
    pub alone: bool,
    /// Its share of the bundles, relative to other brokers'.
    pub weight: u32,
    /// How long ownership outlives a broker that has gone silent.
    pub lease_ttl: Duration,
    /// Bytes that one catch-up read asks for.
    pub read_ahead_bytes: u64,
    /// Ledgers listed in one metadata record before older ones move to a chunk.
    pub ledgers_per_chunk: usize,
    /// Producers connected to one topic.
    pub max_producers_per_topic: usize,
    /// Subscriptions of one topic.
    pub max_subscriptions_per_topic: usize,
    /// Consumers connected to one subscription.
    pub max_consumers_per_subscription: usize,
    /// Limits of what a subscription hands out and reads at a time.
    pub dispatch: DispatchLimits,
    /// The state logs of bundles.
    pub state_log: StateLogConfig,
    /// What the simulation has planted.
    #[cfg(any(test, feature = "simulation"))]
    pub planted: Option<crate::core::defect::Defect>,
}

impl BrokerConfig {
    /// The settings of a small broker.
    #[must_use]
    pub fn new(broker_id: BrokerId) -> Self {
        Self {
            broker_id,
            service_url: String::new(),
            admin_url: String::new(),
            place: String::new(),
            auto_topic_creation: true,
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            max_messages_per_batch: 100_000,
            producer_credit_bytes: 16 << 20,
            memory_budget_bytes: 512 << 20,
            tail_cache_bytes: 64 << 20,
            bundles_per_namespace: 4,
            ledger_max_bytes: 1 << 30,
            ledger_max_age: Duration::from_hours(4),
            ledger_idle_close: Duration::from_secs(60),
            topic_idle_unload: Duration::from_secs(60),
            housekeeping_interval: Duration::from_secs(5),
            retention_sweep_interval: Duration::from_secs(600),
            retention: Duration::ZERO,
            retention_bytes: 0,
            unsubscribed_retention: Duration::from_hours(24),
            unsubscribed_retention_bytes: 1 << 30,
            alone: false,
            weight: BrokerRecord::DEFAULT_WEIGHT,
            lease_ttl: Duration::from_secs(30),
            read_ahead_bytes: 1 << 20,
            ledgers_per_chunk: 512,
            max_producers_per_topic: 10_000,
            max_subscriptions_per_topic: 10_000,
            max_consumers_per_subscription: 10_000,
            dispatch: DispatchLimits::default(),
            state_log: StateLogConfig::default(),
            #[cfg(any(test, feature = "simulation"))]
            planted: None,
        }
    }

    /// Bytes of the budget that publishing and the tail cache share.
    #[must_use]
    pub fn ingest_bytes(&self) -> u64 {
        self.memory_budget_bytes / 4 * 3
    }

    /// Bytes of the budget that are for delivery.
    #[must_use]
    pub fn egress_bytes(&self) -> u64 {
        self.memory_budget_bytes - self.ingest_bytes()
    }

    /// Checks that the settings can work together.
    ///
    /// # Errors
    /// [`ConfigError`] names the first setting that can't.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |setting, value: String, why| Err(ConfigError { setting, value, why });
        if self.max_message_bytes < 1024 || self.max_message_bytes > (64 << 20) {
            let why = "must be between 1 KiB and 64 MiB";
            return refuse("max_message_bytes", self.max_message_bytes.to_string(), why);
        }
        if self.max_messages_per_batch == 0 {
            return refuse("max_messages_per_batch", "0".to_owned(), "must be at least 1");
        }
        if self.producer_credit_bytes < u64::from(self.max_message_bytes) {
            let why = "must be at least max_message_bytes";
            return refuse("producer_credit_bytes", self.producer_credit_bytes.to_string(), why);
        }
        if self.egress_bytes() < u64::from(self.max_message_bytes) {
            let why = "must be at least four times max_message_bytes";
            return refuse("memory_budget_bytes", self.memory_budget_bytes.to_string(), why);
        }
        if self.memory_budget_bytes > u64::from(u32::MAX) {
            let why = "must be below 4 GiB";
            return refuse("memory_budget_bytes", self.memory_budget_bytes.to_string(), why);
        }
        if self.tail_cache_bytes > self.ingest_bytes() {
            let why = "must be at most three quarters of memory_budget_bytes";
            return refuse("tail_cache_bytes", self.tail_cache_bytes.to_string(), why);
        }
        if !(1..=4096).contains(&self.bundles_per_namespace) {
            let why = "must be between 1 and 4096";
            return refuse("bundles_per_namespace", self.bundles_per_namespace.to_string(), why);
        }
        if !(1..=BrokerRecord::MAX_WEIGHT).contains(&self.weight) {
            return refuse("weight", self.weight.to_string(), "must be between 1 and 1000000");
        }
        if !(2..=4096).contains(&self.ledgers_per_chunk) {
            let why = "must be between 2 and 4096";
            return refuse("ledgers_per_chunk", self.ledgers_per_chunk.to_string(), why);
        }
        self.validate_times()
    }

    fn validate_times(&self) -> Result<(), ConfigError> {
        let at_least = |setting, value: Duration, least: Duration, why| {
            if value < least {
                return Err(ConfigError { setting, value: format!("{value:?}"), why });
            }
            Ok(())
        };
        let (ms, second) = (Duration::from_millis(1), Duration::from_secs(1));
        at_least("lease_ttl", self.lease_ttl, second, "must be at least 1s")?;
        at_least("ledger_max_age", self.ledger_max_age, second, "must be at least 1s")?;
        at_least("ledger_idle_close", self.ledger_idle_close, ms, "must be at least 1ms")?;
        at_least("topic_idle_unload", self.topic_idle_unload, ms, "must be at least 1ms")?;
        let sweep = self.retention_sweep_interval;
        at_least("retention_sweep_interval", sweep, ms, "must be at least 1ms")?;
        at_least("housekeeping_interval", self.housekeeping_interval, ms, "must be at least 1ms")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> BrokerConfig {
        BrokerConfig::new(BrokerId::new("b").expect("valid"))
    }

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(config().validate(), Ok(()));
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        let refused = |change: fn(&mut BrokerConfig)| {
            let mut changed = config();
            change(&mut changed);
            changed.validate().expect_err("must be refused").setting
        };
        assert_eq!(refused(|c| c.max_message_bytes = 0), "max_message_bytes");
        assert_eq!(refused(|c| c.producer_credit_bytes = 1), "producer_credit_bytes");
        assert_eq!(refused(|c| c.memory_budget_bytes = 1 << 20), "memory_budget_bytes");
        assert_eq!(refused(|c| c.tail_cache_bytes = 1 << 31), "tail_cache_bytes");
        assert_eq!(refused(|c| c.bundles_per_namespace = 0), "bundles_per_namespace");
        assert_eq!(refused(|c| c.lease_ttl = Duration::ZERO), "lease_ttl");
        assert_eq!(refused(|c| c.weight = 0), "weight");
        assert_eq!(refused(|c| c.ledgers_per_chunk = 1), "ledgers_per_chunk");
    }
}
