//! Settings as the components' own config structs, each accepted by its component. The composition
//! root takes them from here and nowhere else.

use std::path::Path;
use std::time::Duration;

use geminga_bookie::config::BookieConfig;
use geminga_broker::core::config::BrokerConfig;
use geminga_ledger::config::LedgerStoreConfig;
use geminga_ledger::placement::WatchedPlacementConfig;
use geminga_ledger::repair::RepairConfig;
use geminga_meta::store::EtcdConfig;
use geminga_meta::store::etcd::{EtcdCredentials, EtcdIdentity, EtcdTls};
use geminga_proto::id::{BrokerId, ClusterId};

use super::settings::Settings;
use super::units::{Auto, ByteSize};
use super::{ConfigError, urls};

/// What an entry has beside the message or batch: the broker's header and the metadata.
const ENTRY_OVERHEAD_BYTES: u64 = 1 << 20;
/// What a standalone's log leaves of the disk to the metadata store beside it. That store refuses
/// writes below half of it, and without its writes no ledger is closed and no space comes back.
const METADATA_SHARE_BYTES: u64 = 32 << 20;

/// Whether the components are all there is, or one of several processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deployment {
    /// Everything in one process: embedded metadata, one bookie.
    Standalone,
    /// Brokers and bookies are processes of their own, with etcd between them.
    Cluster,
}

/// A component's words as an error of the settings.
fn refused(component: &'static str, why: &impl ToString) -> ConfigError {
    ConfigError::Component { component, why: why.to_string() }
}

/// The broker's settings, without its addresses.
///
/// # Errors
/// [`ConfigError::Component`] with the words of the component that refuses.
pub fn broker(
    settings: &Settings,
    deployment: Deployment,
    id: BrokerId,
) -> Result<BrokerConfig, ConfigError> {
    let lease_ttl = settings.broker.lease_ttl.0.map_or_else(
        || match deployment {
            // Nobody takes over from a standalone, so nothing is gained by losing a lease early.
            Deployment::Standalone => Duration::from_secs(30),
            Deployment::Cluster => Duration::from_secs(5),
        },
        |ttl| ttl.0,
    );
    let alone = deployment == Deployment::Standalone;
    let config = BrokerConfig { lease_ttl, alone, ..plain_broker(settings, id)? };
    config.validate().map_err(|error| refused("broker", &error))?;
    Ok(config)
}

/// The settings of the ledgers that a broker writes.
///
/// # Errors
/// As for [`broker`].
pub fn ledger(
    settings: &Settings,
    deployment: Deployment,
) -> Result<LedgerStoreConfig, ConfigError> {
    let from = &settings.ledger;
    let all = match deployment {
        Deployment::Standalone => 1,
        Deployment::Cluster => 3,
    };
    let write_quorum = from.write_quorum.0.unwrap_or(all);
    let majority = write_quorum.saturating_div(2).saturating_add(1).min(write_quorum);
    let ack_quorum = from.ack_quorum.0.unwrap_or(majority);
    if deployment == Deployment::Standalone && write_quorum > 1 {
        let why = format!(
            "write_quorum = {write_quorum}: a standalone has one bookie; leave it out, or run a \
             cluster"
        );
        return Err(refused("ledger", &why));
    }
    let config = LedgerStoreConfig {
        write_quorum,
        ack_quorum,
        append_timeout_ms: from.append_timeout_ms,
        request_timeout_ms: from.request_timeout_ms,
        retry_interval_ms: from.retry_interval_ms,
        ..LedgerStoreConfig::default()
    };
    config.validate().map_err(|error| refused("ledger", &error))?;
    Ok(config)
}

/// A bookie's settings.
///
/// # Errors
/// As for [`broker`].
pub fn bookie(settings: &Settings, deployment: Deployment) -> Result<BookieConfig, ConfigError> {
    let keep_free_bytes = match deployment {
        Deployment::Standalone => METADATA_SHARE_BYTES,
        // A cluster's metadata is on other disks.
        Deployment::Cluster => 0,
    };
    let config = BookieConfig { keep_free_bytes, ..plain_bookie(settings)? };
    config.validate().map_err(|error| refused("bookie", &error))?;
    Ok(config)
}

/// How a process repairs, under this name.
///
/// # Errors
/// As for [`broker`].
pub fn repair(settings: &Settings, name: &str) -> Result<RepairConfig, ConfigError> {
    let from = &settings.repair;
    let config = RepairConfig {
        name: name.to_owned(),
        grace: from.grace_period.0,
        bytes_per_second: from.bytes_per_second.0,
        concurrent_ledgers: from.concurrent_ledgers as usize,
        scan_interval: from.scan_interval.0,
        lease_ttl: from.lease_ttl.0,
    };
    config.validate().map_err(|error| refused("repair", &error))?;
    Ok(config)
}

/// How a cluster's etcd is reached.
///
/// # Errors
/// [`ConfigError`]: a file that is named can't be read, or the settings can't work.
pub fn metadata(settings: &Settings) -> Result<EtcdConfig, ConfigError> {
    let from = &settings.metadata;
    let endpoints = urls::parse_list(&from.endpoints, &["http", "https"])
        .map_err(|why| refused("metadata", &format!("endpoints: {why}")))?;
    let password = match file(&from.password_file)? {
        // A line's end belongs to the editor that wrote it.
        Some(bytes) => String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned(),
        None => from.password.reveal().to_owned(),
    };
    let credentials =
        (!from.user.is_empty()).then(|| EtcdCredentials { user: from.user.clone(), password });
    let identity = match (file(&from.cert_file)?, file(&from.key_file)?) {
        (Some(cert_pem), Some(key_pem)) => Some(EtcdIdentity { cert_pem, key_pem }),
        _ => None,
    };
    let tls = file(&from.ca_file)?.map(|ca_pem| EtcdTls { ca_pem, identity });
    let cluster = ClusterId::new(&settings.cluster_name)
        .map_err(|error| refused("metadata", &format!("cluster_name: {error}")))?;
    let config = EtcdConfig {
        endpoints,
        credentials,
        tls,
        request_timeout: from.request_timeout.0,
        connect_timeout: from.connect_timeout.0,
        ..EtcdConfig::new(&cluster)
    };
    config.validate().map_err(|error| refused("metadata", &error))?;
    Ok(config)
}

/// What is in a file that a setting names; nothing if it names none.
fn file(path: &Path) -> Result<Option<Vec<u8>>, ConfigError> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let unreadable = |error: std::io::Error| ConfigError::Unreadable {
        path: path.to_owned(),
        why: error.to_string(),
    };
    std::fs::read(path).map(Some).map_err(unreadable)
}

fn plain_broker(settings: &Settings, broker_id: BrokerId) -> Result<BrokerConfig, ConfigError> {
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
        weight: from.weight,
        read_ahead_bytes: from.read_ahead_bytes.0,
        max_producers_per_topic: from.max_producers_per_topic as usize,
        max_subscriptions_per_topic: from.max_subscriptions_per_topic as usize,
        max_consumers_per_subscription: from.max_consumers_per_subscription as usize,
        ..BrokerConfig::new(broker_id)
    })
}

/// How a process of a cluster chooses bookies: none whose `max_message_bytes` is below its own. One
/// that repair would give up is left by open ledgers, too.
pub fn placement(settings: &Settings) -> WatchedPlacementConfig {
    let (largest_entry_bytes, gone_after) =
        (largest_entry(settings).0, settings.repair.grace_period.0);
    WatchedPlacementConfig { largest_entry_bytes, gone_after, ..WatchedPlacementConfig::default() }
}

/// What bookies take, and brokers want them to take.
fn largest_entry(settings: &Settings) -> ByteSize {
    ByteSize(settings.broker.max_message_bytes.0.saturating_add(ENTRY_OVERHEAD_BYTES))
}

fn plain_bookie(settings: &Settings) -> Result<BookieConfig, ConfigError> {
    let from = &settings.bookie;
    let auto = |size: Auto<ByteSize>| size.0.map(|bytes| bytes.0);
    Ok(BookieConfig {
        segment_bytes: auto(from.segment_bytes),
        first_segment_bytes: from.first_segment_bytes.0,
        max_bytes: auto(from.max_bytes),
        max_entry_bytes: narrow("broker", "max_message_bytes", largest_entry(settings))?,
        max_group_bytes: narrow("bookie", "max_group_bytes", from.max_group_bytes)?,
        max_pending_bytes: from.max_pending_bytes.0,
        ordinary_reserve_percent: from.ordinary_reserve_percent,
        reclaim_reserve_percent: from.reclaim_reserve_percent,
        max_spare_segments: from.max_spare_segments,
        reclaim_live_percent: from.reclaim_live_percent,
        reclaim_buffer_bytes: from.reclaim_buffer_bytes.0,
        background_bytes_per_s: from.background_bytes_per_s.0,
        scrub_interval: from.scrub_interval.0,
        index_cache_bytes: from.index_cache_bytes.0,
        read_cache_bytes: from.read_cache_bytes.0,
        read_ahead_bytes: from.read_ahead_bytes.0,
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

    use super::Deployment::{Cluster, Standalone};
    use super::*;
    use crate::config::units::Span;

    fn id() -> BrokerId {
        BrokerId::new("b").expect("valid")
    }

    #[test]
    fn the_defaults_are_accepted_and_are_the_components_own() {
        let settings = Settings::default();
        let own = BrokerConfig::new(id());
        let made = broker(&settings, Standalone, id()).expect("accepted");
        assert_eq!(made, BrokerConfig { alone: true, ..own.clone() });
        let ttl = Duration::from_secs(5);
        let clustered = broker(&settings, Cluster, id()).expect("accepted");
        assert_eq!(clustered, BrokerConfig { lease_ttl: ttl, ..own });
        let max_entry_bytes = bookie(&settings, Cluster).expect("accepted").max_entry_bytes;
        assert!(max_entry_bytes > made.max_message_bytes);
        let wanted = placement(&settings).largest_entry_bytes;
        assert_eq!(wanted, u64::from(max_entry_bytes), "alike settings fit together");
        let own = BookieConfig { max_entry_bytes, ..BookieConfig::default() };
        assert_eq!(bookie(&settings, Cluster), Ok(own.clone()));
        let metadata = EmbeddedConfig::new("metadata");
        assert!(METADATA_SHARE_BYTES >= 2 * metadata.min_free_bytes);
        let shared = BookieConfig { keep_free_bytes: METADATA_SHARE_BYTES, ..own };
        assert_eq!(bookie(&settings, Standalone), Ok(shared));
    }

    #[test]
    fn quorums_are_one_in_a_standalone_and_a_majority_of_three_in_a_cluster() {
        let quorums = |write: Option<u32>, ack: Option<u32>, deployment| {
            let mut settings = Settings::default();
            (settings.ledger.write_quorum, settings.ledger.ack_quorum) = (Auto(write), Auto(ack));
            let made = ledger(&settings, deployment);
            made.map(|made| (made.write_quorum, made.ack_quorum)).map_err(|error| error.to_string())
        };
        assert_eq!(quorums(None, None, Standalone), Ok((1, 1)));
        assert_eq!(quorums(None, None, Cluster), Ok((3, 2)));
        assert_eq!(quorums(Some(1), None, Cluster), Ok((1, 1)));
        assert_eq!(quorums(Some(2), None, Cluster), Ok((2, 2)));
        assert_eq!(quorums(Some(5), Some(4), Cluster), Ok((5, 4)));
        for (write, ack, deployment) in [
            (Some(3), None, Standalone),
            (None, Some(2), Standalone),
            (None, Some(4), Cluster),
            (Some(0), None, Cluster),
            (Some(u32::MAX), None, Cluster),
        ] {
            let error = quorums(write, ack, deployment).expect_err("refused");
            assert!(error.contains("ledger") && error.contains("_quorum"), "{error}");
        }
    }

    #[test]
    fn etcd_gets_what_the_files_hold_and_a_missing_one_is_named() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let mut settings = Settings { cluster_name: "prod".to_owned(), ..Settings::default() };
        let plain = metadata(&settings).expect("accepted");
        assert_eq!(plain.credentials, None);
        assert!(plain.prefix.contains("prod"), "{}", plain.prefix);
        let own = EtcdConfig::new(&ClusterId::new("prod").expect("valid"));
        assert_eq!(plain, own, "the defaults are etcd's own");
        settings.metadata.endpoints = "http://a:1,b:2".to_owned();
        settings.metadata.user = "geminga".to_owned();
        settings.metadata.password_file = home.path().join("password");
        let error = metadata(&settings).expect_err("it isn't there").to_string();
        assert!(error.contains("password"), "{error}");
        std::fs::write(&settings.metadata.password_file, "hunter2\n").expect("writes");
        let made = metadata(&settings).expect("accepted");
        assert_eq!(made.endpoints, ["http://a:1", "http://b:2"]);
        assert_eq!(made.credentials.map(|of| of.password).as_deref(), Some("hunter2"));
    }

    #[test]
    fn repairs_settings_are_its_own_and_what_can_not_work_is_refused() {
        let mut settings = Settings::default();
        let own = RepairConfig { name: "n".to_owned(), ..RepairConfig::default() };
        assert_eq!(repair(&settings, "n"), Ok(own));
        settings.repair.bytes_per_second = ByteSize(1);
        let error = repair(&settings, "n").expect_err("refused").to_string();
        assert!(error.contains("repair") && error.contains("bytes_per_second"), "{error}");
        settings = Settings::default();
        settings.repair.concurrent_ledgers = 0;
        let error = repair(&settings, "n").expect_err("refused").to_string();
        assert!(error.contains("concurrent_ledgers"), "{error}");
    }

    #[test]
    fn a_component_that_refuses_is_named_with_its_setting() {
        let mut settings = Settings::default();
        settings.broker.max_message_bytes = ByteSize(5 << 30);
        let error = broker(&settings, Cluster, id()).expect_err("refused").to_string();
        assert!(error.contains("broker") && error.contains("max_message_bytes"), "{error}");
        settings = Settings::default();
        settings.bookie.ordinary_reserve_percent = 99;
        let error = bookie(&settings, Cluster).expect_err("refused").to_string();
        assert!(error.contains("bookie") && error.contains("ordinary_reserve_percent"), "{error}");
        settings = Settings::default();
        settings.broker.lease_ttl = Auto(Some(Span(Duration::from_millis(1))));
        let error = broker(&settings, Cluster, id()).expect_err("refused").to_string();
        assert!(error.contains("broker") && error.contains("lease_ttl"), "{error}");
    }
}
