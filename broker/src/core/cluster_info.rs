//! What the cluster looks like from here: plain data for administration.

use geminga_meta::bundle::BundleId;
use geminga_proto::storage::Lag;

/// A broker that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerInfo {
    /// Its name.
    pub broker_id: String,
    /// Where clients connect.
    pub service_url: String,
    /// Where administration connects.
    pub admin_url: String,
    /// The release that it runs.
    pub release: String,
    /// When it started.
    pub started_ms: u64,
    /// Its session.
    pub session: String,
    /// True while it hands its bundles over.
    pub draining: bool,
    /// Its share of bundles, relative to other brokers'.
    pub weight: u32,
    /// Bundles that it owns.
    pub bundles: u64,
}

/// A bookie that is up, or that was and may come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieInfo {
    /// Its name.
    pub bookie_id: String,
    /// What it says of itself; `None`: it has a cookie but isn't up, or its record can't be read.
    pub up: Option<BookieUp>,
    /// Why its record can't be read.
    pub unreadable: Option<String>,
    /// `decommission` if it is to be taken away, `lost` if what it had is recovered: it gets
    /// nothing new.
    pub draining: Option<&'static str>,
}

impl BookieInfo {
    /// What it says, or what becomes of that.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (&self.up, &self.unreadable) {
            (Some(up), _) => up.state,
            (None, Some(_)) => "unreadable",
            (None, None) => "missing",
        }
    }
}

/// What a bookie says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieUp {
    /// Where it listens, as host:port.
    pub address: String,
    /// Its failure domain; may be empty.
    pub zone: String,
    /// `writable`, `full` or `read-only`.
    pub state: &'static str,
    /// Size of its storage.
    pub total_bytes: u64,
    /// What ordinary adds can still take.
    pub free_bytes: u64,
}

/// A bookie with what it answers for itself, now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieNow {
    /// Who it is.
    pub info: BookieInfo,
    /// How far its log is behind; `None`: it isn't up, or doesn't answer.
    pub lag: Option<Lag>,
}

/// A bundle with its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleInfo {
    /// Which.
    pub bundle: BundleId,
    /// Its owner; `None`: nobody has asked for it yet, or it is being taken over.
    pub owner: Option<OwnerInfo>,
}

/// A bundle's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerInfo {
    /// Its name.
    pub broker_id: String,
    /// Where clients connect.
    pub service_url: String,
    /// Where administration connects.
    pub admin_url: String,
}

/// What kind of thing is degraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Concern {
    /// The metadata store.
    Metadata,
    /// A broker.
    Broker,
    /// A bookie.
    Bookie,
    /// The number of bookies.
    Quorum,
    /// A bundle.
    Bundle,
    /// Ledgers.
    Ledger,
}

impl Concern {
    /// Its name in output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Broker => "broker",
            Self::Bookie => "bookie",
            Self::Quorum => "quorum",
            Self::Bundle => "bundle",
            Self::Ledger => "ledger",
        }
    }
}

/// Something that is degraded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What kind of thing.
    pub concern: Concern,
    /// Which one.
    pub subject: String,
    /// What is wrong with it, and what that means.
    pub why: String,
    /// Since when, if that is known.
    pub since_ms: Option<u64>,
}

/// How the cluster does, as the asked broker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// What is degraded; nothing if all is well.
    pub problems: Vec<Problem>,
    /// Brokers that are up.
    pub brokers: u64,
    /// Bookies that are up; `None` while the metadata is away.
    pub bookies: Option<u64>,
    /// Copies of an entry in a new ledger.
    pub write_quorum: u32,
    /// Copies on disk after which an entry is acknowledged.
    pub ack_quorum: u32,
}
