//! [`Settings`]: every setting with its default and what it is for.
//!
//! A setting is described once: its doc comment is also what `--print-config` shows.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::Table;

use super::secret::Secret;
use super::units::{Auto, ByteSize, Span};

/// A struct of settings with its defaults, and what describes each of them.
macro_rules! settings {
    ($(#[$meta:meta])* $name:ident {
        $($(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr,)+
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $name {
            const DOCS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($field), concat!($($doc),+)),)+];
        }
    };
}

settings! {
    /// All settings. Those of the sections belong to the component of that name.
    Settings {
        /// Where clients reach brokers; several URLs are separated by commas.
        service_url: String = "http://localhost:6660".to_owned(),
        /// Where tools reach the admin API; several URLs are separated by commas.
        admin_url: String = "http://localhost:8080".to_owned(),
        /// Tenant of topics that are named without one.
        tenant: String = "public".to_owned(),
        /// Namespace of topics that are named without one.
        namespace: String = "default".to_owned(),
        /// What is logged; "auto" is info for servers and warn for tools.
        log: String = "auto".to_owned(),
        /// Name of the cluster that brokers and bookies belong to; part of its metadata's keys, so
        /// that several clusters can share an etcd. A standalone's is always "standalone".
        cluster_name: String = "geminga".to_owned(),
        /// A broker's name in its cluster; "auto" is this machine's name and the messaging port.
        broker_id: String = "auto".to_owned(),
        /// A bookie's name in its cluster, which its disk keeps; "auto" is this machine's name and
        /// the storage node's port.
        bookie_id: String = "auto".to_owned(),
        /// Where a standalone stores everything, and a bookie its messages. A broker stores
        /// nothing.
        data_dir: PathBuf = PathBuf::from("./geminga-data"),
        /// Address that servers listen on.
        bind: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST),
        /// Host name that clients are told to connect to; "auto" is the address listened on, or
        /// this machine's name if that is a wildcard.
        advertised_address: String = "auto".to_owned(),
        /// Port of the messaging API; 0 is any free one.
        grpc_port: u16 = 6660,
        /// Port of the admin API and metrics; 0 is any free one.
        admin_port: u16 = 8080,
        /// Port of the storage node; 0 is any free one.
        bookie_port: u16 = 3181,
        /// Port of a bookie's metrics and probes; 0 is any free one. A broker and a standalone have
        /// them at admin_port.
        metrics_port: u16 = 3182,
        /// Threads for everything but disk writes; 0 is one for each core.
        worker_threads: u16 = 0,
        /// Where a cluster's metadata is.
        metadata: MetadataSettings = MetadataSettings::default(),
        /// The broker's settings.
        broker: BrokerSettings = BrokerSettings::default(),
        /// The ledger's settings.
        ledger: LedgerSettings = LedgerSettings::default(),
        /// The bookie's settings.
        bookie: BookieSettings = BookieSettings::default(),
        /// How lost copies are replaced.
        repair: RepairSettings = RepairSettings::default(),
    }
}

settings! {
    /// Section `[metadata]`: how brokers and bookies reach etcd. A standalone has its own store.
    MetadataSettings {
        /// URLs of etcd's members, separated by commas; https:// needs ca_file.
        endpoints: String = "http://localhost:2379".to_owned(),
        /// etcd's user; empty if it has none.
        user: String = String::new(),
        /// The user's password.
        password: Secret = Secret::default(),
        /// A file that holds the user's password, instead of password.
        password_file: PathBuf = PathBuf::new(),
        /// PEM file of the authorities that etcd's certificate may come from.
        ca_file: PathBuf = PathBuf::new(),
        /// PEM file of the certificate that is shown to etcd, with key_file.
        cert_file: PathBuf = PathBuf::new(),
        /// PEM file of the certificate's key.
        key_file: PathBuf = PathBuf::new(),
        /// How long connecting to one of etcd's members may take.
        connect_timeout: Span = seconds(1),
        /// How long etcd may take to answer, with its other members asked in turn.
        request_timeout: Span = seconds(3),
        /// How long a start waits for etcd to be reached; "auto" is for ever, and for tools 10s.
        wait: Auto<Span> = Auto(None),
    }
}

settings! {
    /// Section `[broker]`.
    BrokerSettings {
        /// Whether publishing and subscribing create a topic that doesn't exist.
        auto_topic_creation: bool = true,
        /// Largest message or batch.
        max_message_bytes: ByteSize = ByteSize(5 << 20),
        /// Most messages in one batch.
        max_messages_per_batch: u32 = 100_000,
        /// Bytes that one producer may have without a receipt.
        producer_credit_bytes: ByteSize = ByteSize(16 << 20),
        /// Bytes of messages in memory, all over the broker.
        memory_budget_bytes: ByteSize = ByteSize(512 << 20),
        /// Bytes of recent messages that are kept for consumers; part of memory_budget_bytes.
        tail_cache_bytes: ByteSize = ByteSize(64 << 20),
        /// Bundles of a namespace that is created.
        bundles_per_namespace: u32 = 4,
        /// A ledger is followed by the next one at this size.
        ledger_max_bytes: ByteSize = ByteSize(1 << 30),
        /// A ledger is followed by the next one at this age.
        ledger_max_age: Span = hours(4),
        /// A ledger without publishes for so long is closed.
        ledger_idle_close: Span = seconds(60),
        /// A topic without producers and consumers for so long leaves the memory.
        topic_idle_unload: Span = seconds(60),
        /// How often ledgers, topics and retention are looked after.
        housekeeping_interval: Span = seconds(5),
        /// How long consumed data is kept, unless the namespace says otherwise.
        retention: Span = seconds(0),
        /// How much consumed data of a topic is kept, unless the namespace says otherwise.
        retention_bytes: ByteSize = ByteSize(0),
        /// How long data of a topic that never had a subscription is kept.
        unsubscribed_retention: Span = hours(24),
        /// How much data of a topic that never had a subscription is kept.
        unsubscribed_retention_bytes: ByteSize = ByteSize(1 << 30),
        /// How long ownership outlives a broker that has gone silent; "auto" is 5s in a cluster and
        /// 30s in a standalone. etcd takes no less than one and a half times its election time-out.
        lease_ttl: Auto<Span> = Auto(None),
        /// This broker's share of the bundles, against that of the others.
        weight: u32 = 100,
        /// Bytes that one read of older messages asks for.
        read_ahead_bytes: ByteSize = ByteSize(1 << 20),
        /// Most producers on a topic.
        max_producers_per_topic: u32 = 10_000,
        /// Most subscriptions of a topic.
        max_subscriptions_per_topic: u32 = 10_000,
        /// Most consumers of a subscription.
        max_consumers_per_subscription: u32 = 10_000,
    }
}

settings! {
    /// Section `[ledger]`.
    LedgerSettings {
        /// Bookies that each message is sent to; "auto" is 3 in a cluster. A standalone has one.
        write_quorum: Auto<u32> = Auto(None),
        /// Bookies that have a message durably before its producer has the receipt; "auto" is the
        /// majority of write_quorum.
        ack_quorum: Auto<u32> = Auto(None),
        /// A bookie that owes an answer for so long counts as failed.
        append_timeout_ms: u64 = 10_000,
        /// How long a read, a fence or a metadata request may take.
        request_timeout_ms: u64 = 5_000,
        /// How long to wait before a failed bookie is tried again.
        retry_interval_ms: u64 = 500,
    }
}

settings! {
    /// Section `[bookie]`.
    BookieSettings {
        /// What fails together with this bookie, like a rack; copies are spread over zones. Empty
        /// for none.
        zone: String = String::new(),
        /// How long a bookie that has gone silent counts as there.
        lease_ttl: Span = seconds(5),
        /// How writes are made durable: "auto" is direct I/O where the file system takes it, else
        /// "fdatasync".
        sync_mode: SyncModeSetting = SyncModeSetting::Auto,
        /// Most bytes of disk that messages may take; "auto" is what the disk has.
        max_bytes: Auto<ByteSize> = Auto(None),
        /// Size of a segment file; "auto" is 256MiB, or less if max_bytes is small.
        segment_bytes: Auto<ByteSize> = Auto(None),
        /// Size of the first segment file; later ones double up to segment_bytes.
        first_segment_bytes: ByteSize = ByteSize(16 << 20),
        /// Most bytes in one synchronous write.
        max_group_bytes: ByteSize = ByteSize(2 << 20),
        /// Bytes waiting for the disk above which appends are refused.
        max_pending_bytes: ByteSize = ByteSize(64 << 20),
        /// Share of the disk that messages leave to acknowledgements and recovery.
        ordinary_reserve_percent: u32 = 10,
        /// Share of the disk that belongs to reclaim alone.
        reclaim_reserve_percent: u32 = 5,
        /// Emptied segment files that are kept for re-use.
        max_spare_segments: u32 = 4,
        /// A segment file is rewritten without what was deleted when less than this share of it
        /// still counts. Lower: less is written; higher: less disk is wasted.
        reclaim_live_percent: u32 = 60,
        /// Memory in which a rewrite sorts what it has read.
        reclaim_buffer_bytes: ByteSize = ByteSize(32 << 20),
        /// Most bytes in a second that background work on the disk reads and writes.
        background_bytes_per_s: ByteSize = ByteSize(128 << 20),
        /// Everything that is stored is read again and verified at least so often.
        scrub_interval: Span = seconds(7 * 24 * 60 * 60),
        /// Memory for index pages.
        index_cache_bytes: ByteSize = ByteSize(32 << 20),
        /// Memory for entries that were read from segments that are still written to.
        read_cache_bytes: ByteSize = ByteSize(16 << 20),
        /// Memory for entries that are read before whoever catches up asks for them.
        read_ahead_bytes: ByteSize = ByteSize(64 << 20),
        /// After how long without a write the last one is sealed off.
        idle_close: Span = Span(Duration::from_millis(100)),
        /// How often the ledgers on disk are compared with the metadata.
        census_interval: Span = seconds(60),
        /// Deletion of ledgers stops when more than this share of them is gone at once from the
        /// metadata without their owners having said so; 100 is never.
        mass_deletion_percent: u32 = 50,
        /// Start although parts of the data are lost; what they may have held can't be read.
        accept_damage: bool = false,
        /// Start although the metadata are older than what this node has seen, as after a restore
        /// from a backup; ledgers made since that backup are deleted.
        accept_older_metadata: bool = false,
    }
}

settings! {
    /// Section `[repair]`: how a cluster's bookies, and `geminga repair`, replace copies that are
    /// lost.
    RepairSettings {
        /// Whether bookies take part; `geminga repair` always does.
        enabled: bool = true,
        /// How long a bookie may be away before what it has is copied elsewhere.
        grace_period: Span = seconds(600),
        /// Bytes that one process copies in a second.
        bytes_per_second: ByteSize = ByteSize(64 << 20),
        /// Ledgers that one process repairs at a time.
        concurrent_ledgers: u32 = 4,
        /// How often all ledgers are looked at.
        scan_interval: Span = seconds(60),
        /// How long a process that has gone silent keeps what it is at.
        lease_ttl: Span = seconds(10),
    }
}

/// How a bookie's writes are made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SyncModeSetting {
    /// Direct I/O where the file system takes it.
    Auto,
    /// Buffered writes followed by `fdatasync`.
    Fdatasync,
}

const fn seconds(seconds: u64) -> Span {
    Span(Duration::from_secs(seconds))
}

const fn hours(hours: u64) -> Span {
    seconds(hours * 3_600)
}

/// What a setting is for.
pub(super) fn describe(key: &str) -> String {
    let (docs, name) = match key.split_once('.') {
        Some(("metadata", name)) => (MetadataSettings::DOCS, name),
        Some(("broker", name)) => (BrokerSettings::DOCS, name),
        Some(("ledger", name)) => (LedgerSettings::DOCS, name),
        Some(("bookie", name)) => (BookieSettings::DOCS, name),
        Some(("repair", name)) => (RepairSettings::DOCS, name),
        _ => (Settings::DOCS, key),
    };
    let doc = docs.iter().find(|(known, _)| *known == name).map_or("", |(_, doc)| *doc);
    doc.trim().trim_end_matches('.').to_owned()
}

impl Settings {
    /// Reads a table that holds every setting.
    pub(super) fn deserialize_table(table: Table) -> Result<Self, String> {
        table.try_into().map_err(|error: toml::de::Error| error.message().to_owned())
    }
}
