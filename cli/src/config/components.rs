//! Settings as the components' own config structs. The composition root takes them from here and
//! nowhere else.

use geminga_bookie::config::BookieConfig;
use geminga_broker::core::config::BrokerConfig;
use geminga_ledger::config::LedgerStoreConfig;
use geminga_proto::id::BrokerId;

use super::ConfigError;
use super::settings::Settings;
use super::units::{Auto, ByteSize};

/// What an entry has beside the message or batch: the broker's header and the metadata.
const ENTRY_OVERHEAD_BYTES: u64 = 1 << 20;
/// What a standalone's log leaves of the disk to the metadata store beside it. That store refuses
/// writes below half of it, and without its writes no ledger is closed and no space comes back.
const METADATA_SHARE_BYTES: u64 = 32 << 20;

/// The components' settings, each accepted by its component.
#[derive(Debug, Clone)]
pub struct Components {
    /// The broker's, without its addresses.
    pub broker: BrokerConfig,
    /// The ledger's.
    pub ledger: LedgerStoreConfig,
    /// The bookie's.
    pub bookie: BookieConfig,
}

impl Components {
    /// The settings of a standalone's components.
    ///
    /// # Errors
    /// [`ConfigError::Component`] with the words of the component that refuses.
    pub fn standalone(settings: &Settings, broker_id: BrokerId) -> Result<Self, ConfigError> {
        let refused = |component| move |why: String| ConfigError::Component { component, why };
        let broker = broker(settings, broker_id)?;
        broker.validate().map_err(|error| refused("broker")(error.to_string()))?;
        let ledger = ledger(settings);
        ledger.validate().map_err(|error| refused("ledger")(error.to_string()))?;
        let bookie = bookie(settings)?;
        bookie.validate().map_err(|error| refused("bookie")(error.to_string()))?;
        Ok(Self { broker, ledger, bookie })
    }
}

fn broker(settings: &Settings, broker_id: BrokerId) -> Result<BrokerConfig, ConfigError> {
    let from = &settings.broker;
    Ok(BrokerConfig {
        auto_topic_creation: from.auto_topic_creation,
        max_message_bytes: narrow("broker", "max_message_bytes", from.max_message_bytes)?,
        max_messages_per_batch: from.max_messages_per_batch,
        producer_credit_bytes: from.producer_credit_bytes.0,
        memory_budget_bytes: from.memory_budget_bytes.0,
        tail_cache_bytes: from.tail_cache_bytes.0,
        bundles_per_namespace: from.bundles_per_namespace,
        ledger_max_bytes: from.ledger_max_bytes.0,
        ledger_max_age: from.ledger_max_age.0,
        ledger_idle_close: from.ledger_idle_close.0,
        topic_idle_unload: from.topic_idle_unload.0,
        housekeeping_interval: from.housekeeping_interval.0,
        retention: from.retention.0,
        retention_bytes: from.retention_bytes.0,
        unsubscribed_retention: from.unsubscribed_retention.0,
        unsubscribed_retention_bytes: from.unsubscribed_retention_bytes.0,
        lease_ttl: from.lease_ttl.0,
        read_ahead_bytes: from.read_ahead_bytes.0,
        max_producers_per_topic: from.max_producers_per_topic as usize,
        max_subscriptions_per_topic: from.max_subscriptions_per_topic as usize,
        max_consumers_per_subscription: from.max_consumers_per_subscription as usize,
        ..BrokerConfig::new(broker_id)
    })
}

fn ledger(settings: &Settings) -> LedgerStoreConfig {
    let from = &settings.ledger;
    LedgerStoreConfig {
        // One bookie, so one copy: the same ledger as in a cluster, with (Qw, Qa) = (1, 1).
        write_quorum: 1,
        ack_quorum: 1,
        append_timeout_ms: from.append_timeout_ms,
        request_timeout_ms: from.request_timeout_ms,
        retry_interval_ms: from.retry_interval_ms,
        ..LedgerStoreConfig::default()
    }
}

fn bookie(settings: &Settings) -> Result<BookieConfig, ConfigError> {
    let from = &settings.bookie;
    let auto = |size: Auto<ByteSize>| size.0.map(|bytes| bytes.0);
    let entry = ByteSize(settings.broker.max_message_bytes.0.saturating_add(ENTRY_OVERHEAD_BYTES));
    Ok(BookieConfig {
        segment_bytes: auto(from.segment_bytes),
        first_segment_bytes: from.first_segment_bytes.0,
        max_bytes: auto(from.max_bytes),
        keep_free_bytes: METADATA_SHARE_BYTES,
        max_entry_bytes: narrow("broker", "max_message_bytes", entry)?,
        max_group_bytes: narrow("bookie", "max_group_bytes", from.max_group_bytes)?,
        max_pending_bytes: from.max_pending_bytes.0,
        ordinary_reserve_percent: from.ordinary_reserve_percent,
        reclaim_reserve_percent: from.reclaim_reserve_percent,
        max_spare_segments: from.max_spare_segments,
        index_cache_bytes: from.index_cache_bytes.0,
        idle_close: from.idle_close.0,
        census_interval: from.census_interval.0,
        mass_deletion_percent: from.mass_deletion_percent,
        accept_damage: from.accept_damage,
        accept_older_metadata: from.accept_older_metadata,
        ..BookieConfig::default()
    })
}

fn narrow(component: &'static str, name: &str, size: ByteSize) -> Result<u32, ConfigError> {
    u32::try_from(size.0).map_err(|_| ConfigError::Component {
        component,
        why: format!("{name} = {size}: must be below 4GiB"),
    })
}

#[cfg(test)]
mod tests {
    use geminga_meta::store::EmbeddedConfig;

    use super::*;

    fn id() -> BrokerId {
        BrokerId::new("b").expect("valid")
    }

    #[test]
    fn the_defaults_are_accepted_and_are_the_components_own() {
        let made = Components::standalone(&Settings::default(), id()).expect("accepted");
        assert_eq!(made.broker, BrokerConfig::new(id()));
        let mut bookie = BookieConfig::default();
        assert!(made.bookie.max_entry_bytes > made.broker.max_message_bytes);
        bookie.max_entry_bytes = made.bookie.max_entry_bytes;
        bookie.keep_free_bytes = METADATA_SHARE_BYTES;
        let metadata = EmbeddedConfig::new("metadata");
        assert!(METADATA_SHARE_BYTES >= 2 * metadata.min_free_bytes);
        assert_eq!(made.bookie, bookie);
        assert_eq!((made.ledger.write_quorum, made.ledger.ack_quorum), (1, 1));
    }

    #[test]
    fn a_component_that_refuses_is_named_with_its_setting() {
        let mut settings = Settings::default();
        settings.broker.max_message_bytes = ByteSize(5 << 30);
        let error = Components::standalone(&settings, id()).expect_err("refused").to_string();
        assert!(error.contains("broker") && error.contains("max_message_bytes"), "{error}");
        settings = Settings::default();
        settings.bookie.ordinary_reserve_percent = 99;
        let error = Components::standalone(&settings, id()).expect_err("refused").to_string();
        assert!(error.contains("bookie") && error.contains("ordinary_reserve_percent"), "{error}");
    }
}
