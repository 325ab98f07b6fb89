//! Every key that Geminga persists in the metadata store, and nothing else knows one.
//!
//! | key | record | leased |
//! | --- | --- | --- |
//! | `cluster` | `ClusterRecord` | |
//! | `tenants/{tenant}` | `TenantRecord` | |
//! | `namespaces/{tenant}/{namespace}` | `NamespaceRecord` | |
//! | `topics/{tenant}/{namespace}/{topic}` | `TopicRecord` | |
//! | `managed-ledgers/{id}` | `ManagedLedgerRecord` | |
//! | `managed-ledgers/{id}/chunks/{number}` | `ManagedLedgerChunk` | |
//! | `ledgers/{id}` | `LedgerRecord` | |
//! | `bundles/{tenant}/{namespace}/{range}` | `BundleRecord` | |
//! | `ownership/{tenant}/{namespace}/{range}` | `OwnershipRecord` | yes |
//! | `deletions/{tenant}/{namespace}` | `OwnershipRecord` | yes |
//! | `brokers/{broker}` | `BrokerRecord` | yes |
//! | `bookies/{bookie}` | `BookieRecord` | yes |
//! | `cookies/{bookie}` | `CookieRecord` | |
//! | `counters/{counter}` | `CounterRecord` | |
//! | `repairs/{ledger}` | `RepairRecord` | |
//! | `repair-locks/{ledger}` | `HolderRecord` | yes |
//! | `drains/{bookie}` | `DrainRecord` | |
//! | `election/{office}` | `HolderRecord` | yes |
//!
//! `schemas/` is reserved. A backend that shares its store with others puts
//! [`root`] before each key.
//!
//! Invariants: numbers are 16 lowercase hexadecimal digits and hash ranges two times 8, so that
//! keys sort as their numbers do. Names come as checked types whose alphabet excludes `/`, so no
//! name can leave its place. A key is read back only in the form in which it is written.

use geminga_proto::id::{BookieId, BrokerId, ClusterId, LedgerId, ManagedLedgerId};
use geminga_proto::topic_name::{NamespaceName, TenantName, TopicName};

use crate::bundle::BundleId;

/// The cluster's record.
pub const CLUSTER: &str = "cluster";
/// Written along with transactions that go to etcd together, so that it counts them against its
/// quota; of no meaning.
pub const TOGETHER: &str = "together";
/// All tenants.
pub const TENANTS: &str = "tenants/";
/// All namespaces.
pub const NAMESPACES: &str = "namespaces/";
/// All topics.
pub const TOPICS: &str = "topics/";
/// All managed ledgers, each directly followed by its chunks.
pub const MANAGED_LEDGERS: &str = "managed-ledgers/";
/// All ledgers.
pub const LEDGERS: &str = "ledgers/";
/// All bundles.
pub const BUNDLES: &str = "bundles/";
/// Who owns which bundle.
pub const OWNERSHIP: &str = "ownership/";
/// Namespaces that are being deleted.
pub const DELETIONS: &str = "deletions/";
/// The brokers that are up.
pub const BROKERS: &str = "brokers/";
/// The bookies that are up.
pub const BOOKIES: &str = "bookies/";
/// The bookies that ever were.
pub const COOKIES: &str = "cookies/";
/// The counters.
pub const COUNTERS: &str = "counters/";
/// Ledgers that repair looks after.
pub const REPAIRS: &str = "repairs/";
/// Who is repairing which ledger.
pub const REPAIR_LOCKS: &str = "repair-locks/";
/// Bookies that get nothing new, and whose copies are to lie elsewhere.
pub const DRAINS: &str = "drains/";
/// Who holds which office.
pub const ELECTION: &str = "election/";

const CHUNKS: &str = "/chunks/";

/// What a backend that shares its store puts before every key of a cluster.
#[must_use]
pub fn root(cluster: &ClusterId) -> String {
    format!("/geminga/{cluster}/")
}

/// A tenant.
#[must_use]
pub fn tenant(tenant: &TenantName) -> String {
    format!("{TENANTS}{tenant}")
}

/// A namespace.
#[must_use]
pub fn namespace(namespace: &NamespaceName) -> String {
    format!("{NAMESPACES}{namespace}")
}

/// Prefix of a tenant's namespaces.
#[must_use]
pub fn namespaces_of(tenant: &TenantName) -> String {
    format!("{NAMESPACES}{tenant}/")
}

/// A topic; each partition is one.
#[must_use]
pub fn topic(topic: &TopicName) -> String {
    format!("{TOPICS}{}", topic.path())
}

/// Prefix of a namespace's topics.
#[must_use]
pub fn topics_of(namespace: &NamespaceName) -> String {
    format!("{TOPICS}{namespace}/")
}

/// A managed ledger's head.
#[must_use]
pub fn managed_ledger(id: ManagedLedgerId) -> String {
    format!("{MANAGED_LEDGERS}{:016x}", id.0)
}

/// One chunk of a managed ledger's older ledgers.
#[must_use]
pub fn managed_ledger_chunk(id: ManagedLedgerId, chunk: u64) -> String {
    format!("{MANAGED_LEDGERS}{:016x}{CHUNKS}{chunk:016x}", id.0)
}

/// Prefix of a managed ledger's chunks.
#[must_use]
pub fn managed_ledger_chunks_of(id: ManagedLedgerId) -> String {
    format!("{MANAGED_LEDGERS}{:016x}{CHUNKS}", id.0)
}

/// A ledger.
#[must_use]
pub fn ledger(id: LedgerId) -> String {
    format!("{LEDGERS}{:016x}", id.0)
}

/// A bundle's state log.
#[must_use]
pub fn bundle(bundle: &BundleId) -> String {
    format!("{BUNDLES}{bundle}")
}

/// Prefix of a namespace's bundles.
#[must_use]
pub fn bundles_of(namespace: &NamespaceName) -> String {
    format!("{BUNDLES}{namespace}/")
}

/// Who owns a bundle.
#[must_use]
pub fn ownership(bundle: &BundleId) -> String {
    format!("{OWNERSHIP}{bundle}")
}

/// Prefix of the owners of a namespace's bundles.
#[must_use]
pub fn ownership_of(namespace: &NamespaceName) -> String {
    format!("{OWNERSHIP}{namespace}/")
}

/// Who is deleting a namespace. While it is there, nothing is created in the namespace.
#[must_use]
pub fn deletion(namespace: &NamespaceName) -> String {
    format!("{DELETIONS}{namespace}")
}

/// A broker that is up.
#[must_use]
pub fn broker(id: &BrokerId) -> String {
    format!("{BROKERS}{id}")
}

/// A bookie that is up.
#[must_use]
pub fn bookie(id: &BookieId) -> String {
    format!("{BOOKIES}{id}")
}

/// A bookie's identity.
#[must_use]
pub fn cookie(id: &BookieId) -> String {
    format!("{COOKIES}{id}")
}

/// Numbers that are handed out once in a cluster's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Counter {
    /// `LedgerId`.
    Ledgers,
    /// `ManagedLedgerId`.
    ManagedLedgers,
    /// `TopicIncarnation`.
    TopicIncarnations,
}

impl Counter {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ledgers, Self::ManagedLedgers, Self::TopicIncarnations];

    /// The name in its key.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ledgers => "ledgers",
            Self::ManagedLedgers => "managed-ledgers",
            Self::TopicIncarnations => "topic-incarnations",
        }
    }
}

/// What only one process of a cluster does at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Office {
    /// Finds what is to be repaired.
    Auditor,
}

impl Office {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Auditor];

    /// The name in its key.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auditor => "auditor",
        }
    }
}

/// Who holds an office.
#[must_use]
pub fn election(office: Office) -> String {
    format!("{ELECTION}{}", office.as_str())
}

/// What is to be repaired of a ledger.
#[must_use]
pub fn repair(id: LedgerId) -> String {
    format!("{REPAIRS}{:016x}", id.0)
}

/// Who is repairing a ledger.
#[must_use]
pub fn repair_lock(id: LedgerId) -> String {
    format!("{REPAIR_LOCKS}{:016x}", id.0)
}

/// That a bookie gets nothing new, and that its copies are to lie elsewhere.
#[must_use]
pub fn drain(id: &BookieId) -> String {
    format!("{DRAINS}{id}")
}

/// A counter.
#[must_use]
pub fn counter(counter: Counter) -> String {
    format!("{COUNTERS}{}", counter.as_str())
}

/// A key that was read back.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    /// [`CLUSTER`].
    Cluster,
    /// [`tenant`].
    Tenant(TenantName),
    /// [`namespace`].
    Namespace(NamespaceName),
    /// [`topic`].
    Topic(TopicName),
    /// [`managed_ledger`].
    ManagedLedger(ManagedLedgerId),
    /// [`managed_ledger_chunk`].
    ManagedLedgerChunk(ManagedLedgerId, u64),
    /// [`ledger`].
    Ledger(LedgerId),
    /// [`bundle`].
    Bundle(BundleId),
    /// [`ownership`].
    Ownership(BundleId),
    /// [`deletion`].
    Deletion(NamespaceName),
    /// [`broker`].
    Broker(BrokerId),
    /// [`bookie`].
    Bookie(BookieId),
    /// [`cookie`].
    Cookie(BookieId),
    /// [`counter`].
    Counter(Counter),
    /// [`repair`].
    Repair(LedgerId),
    /// [`repair_lock`].
    RepairLock(LedgerId),
    /// [`drain`].
    Drain(BookieId),
    /// [`election`].
    Election(Office),
}

impl Key {
    /// Reads a key; `None` if it is not one that this build writes.
    #[must_use]
    pub fn parse(key: &str) -> Option<Self> {
        if key == CLUSTER {
            return Some(Self::Cluster);
        }
        let (kind, rest) = key.split_at_checked(key.find('/')? + 1)?;
        Some(match kind {
            TENANTS => Self::Tenant(rest.parse().ok()?),
            NAMESPACES => Self::Namespace(rest.parse().ok()?),
            TOPICS => Self::Topic(parse_topic(rest)?),
            MANAGED_LEDGERS => parse_managed_ledger(rest)?,
            LEDGERS => Self::Ledger(LedgerId(parse_number(rest)?)),
            BUNDLES => Self::Bundle(rest.parse().ok()?),
            OWNERSHIP => Self::Ownership(rest.parse().ok()?),
            DELETIONS => Self::Deletion(rest.parse().ok()?),
            BROKERS => Self::Broker(rest.parse().ok()?),
            BOOKIES => Self::Bookie(rest.parse().ok()?),
            COOKIES => Self::Cookie(rest.parse().ok()?),
            COUNTERS => {
                Self::Counter(Counter::ALL.into_iter().find(|known| known.as_str() == rest)?)
            }
            REPAIRS => Self::Repair(LedgerId(parse_number(rest)?)),
            REPAIR_LOCKS => Self::RepairLock(LedgerId(parse_number(rest)?)),
            DRAINS => Self::Drain(rest.parse().ok()?),
            ELECTION => {
                Self::Election(Office::ALL.into_iter().find(|known| known.as_str() == rest)?)
            }
            _ => return None,
        })
    }
}

/// The key's text, as the functions of this module write it.
impl std::fmt::Display for Key {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&match self {
            Self::Cluster => CLUSTER.to_owned(),
            Self::Tenant(name) => tenant(name),
            Self::Namespace(name) => namespace(name),
            Self::Topic(name) => topic(name),
            Self::ManagedLedger(id) => managed_ledger(*id),
            Self::ManagedLedgerChunk(id, chunk) => managed_ledger_chunk(*id, *chunk),
            Self::Ledger(id) => ledger(*id),
            Self::Bundle(id) => bundle(id),
            Self::Ownership(id) => ownership(id),
            Self::Deletion(name) => deletion(name),
            Self::Broker(id) => broker(id),
            Self::Bookie(id) => bookie(id),
            Self::Cookie(id) => cookie(id),
            Self::Counter(which) => counter(*which),
            Self::Repair(id) => repair(*id),
            Self::RepairLock(id) => repair_lock(*id),
            Self::Drain(id) => drain(id),
            Self::Election(office) => election(*office),
        })
    }
}

/// 16 lowercase hexadecimal digits within the range of ids.
fn parse_number(text: &str) -> Option<u64> {
    let canonical = text.len() == 16
        && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let value = if canonical { u64::from_str_radix(text, 16).ok()? } else { return None };
    (value <= LedgerId::MAX.0).then_some(value)
}

fn parse_managed_ledger(rest: &str) -> Option<Key> {
    match rest.split_once(CHUNKS) {
        None => Some(Key::ManagedLedger(ManagedLedgerId(parse_number(rest)?))),
        Some((id, chunk)) => {
            let id = ManagedLedgerId(parse_number(id)?);
            Some(Key::ManagedLedgerChunk(id, parse_number(chunk)?))
        }
    }
}

fn parse_topic(rest: &str) -> Option<TopicName> {
    let (namespace, local) = rest.rsplit_once('/')?;
    TopicName::new(namespace.parse().ok()?, local).ok()
}

#[cfg(test)]
mod tests;
