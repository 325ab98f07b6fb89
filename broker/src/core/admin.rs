//! Administration as plain data: what can be asked of a [`Broker`](super::broker::Broker) beside
//! publishing and consuming, and how it fails. The REST front-end maps these to Pulsar's paths,
//! bodies and status codes.

use geminga_meta::store::StoreError;
use geminga_proto::id::{LedgerId, Position};
use geminga_proto::topic_name::NameError;

use crate::core::api::TopicError;

/// Where a subscription is moved to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetTo {
    /// Before the first message that is kept.
    Earliest,
    /// After the last message.
    Latest,
    /// So that this entry is the next one to be delivered.
    Position(Position),
}

/// A namespace's policies. `None`: the broker's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NamespacePolicies {
    /// How long consumed data is kept; `u64::MAX` for ever. It goes when it is older than this
    /// *or* over the bytes. If only one of the two is set, the other doesn't limit.
    pub retention_ms: Option<u64>,
    /// How many bytes of consumed data are kept per topic; `u64::MAX` without limit.
    pub retention_bytes: Option<u64>,
    /// Whether topics are created by their first use.
    pub auto_topic_creation: Option<bool>,
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// When it was created.
    pub created_ms: u64,
    /// Lower bounds of its bundles' hash ranges.
    pub bundle_bounds: Vec<u32>,
    /// Its policies.
    pub policies: NamespacePolicies,
}

impl AdminError {
    /// What a topic's error means where a namespace is asked for.
    #[must_use]
    pub fn from_topic(error: TopicError) -> Self {
        match error {
            TopicError::NamespaceNotFound(name) => Self::NamespaceNotFound(name),
            error => error.into(),
        }
    }
}

/// Why an administrative request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdminError {
    /// The topic can't be used.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// A name is malformed.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is no such topic.
    #[error("topic {0} does not exist")]
    TopicNotFound(String),
    /// There is one already.
    #[error("topic {0} exists already")]
    TopicExists(String),
    /// It has producers, consumers or subscriptions.
    #[error("topic {topic} is in use: {users}; use force to delete it anyway")]
    TopicInUse {
        /// The topic.
        topic: String,
        /// Who uses it.
        users: String,
    },
    /// There is no such subscription.
    #[error("subscription {0:?} does not exist")]
    SubscriptionNotFound(String),
    /// There is one already.
    #[error("subscription {0:?} exists already")]
    SubscriptionExists(String),
    /// It has consumers.
    #[error("subscription {0:?} has consumers")]
    SubscriptionInUse(String),
    /// More than the topic may have.
    #[error("the topic has {0} subscriptions already, which is the limit")]
    TooManySubscriptions(usize),
    /// The position is not one of the topic's.
    #[error("position {0} is not in the topic")]
    InvalidPosition(Position),
    /// There is no such tenant.
    #[error("tenant {0} does not exist")]
    TenantNotFound(String),
    /// There is one already.
    #[error("tenant {0} exists already")]
    TenantExists(String),
    /// It has namespaces.
    #[error("tenant {0} still has namespaces")]
    TenantNotEmpty(String),
    /// There is no such namespace.
    #[error("namespace {0} does not exist")]
    NamespaceNotFound(String),
    /// There is one already.
    #[error("namespace {0} exists already")]
    NamespaceExists(String),
    /// It has topics.
    #[error("namespace {0} still has topics")]
    NamespaceNotEmpty(String),
    /// There is no such ledger.
    #[error("ledger {0} does not exist")]
    LedgerNotFound(LedgerId),
    /// There is no such bookie, and was none.
    #[error("bookie {0} does not exist; `bookies list` shows all")]
    BookieNotFound(String),
    /// It isn't there, so nothing can be copied from it.
    #[error(
        "bookie {0} is not up: start it, or if it is lost for good, recover what it had from the \
         other copies"
    )]
    BookieDown(String),
    /// It is there, so nothing of it is lost.
    #[error("bookie {0} is up: stop it if its disk is lost, or decommission it")]
    BookieUp(String),
    /// Without it there would be too few for as many copies as there should be.
    #[error(
        "bookie {bookie} is needed: without it {left} bookies that take writes are left, and \
         {needed} are needed; start another one first"
    )]
    BookieNeeded {
        /// The bookie.
        bookie: String,
        /// How many would be left.
        left: u32,
        /// How many there must be.
        needed: u32,
    },
    /// It stays where it is.
    #[error("bookie {0} is not being taken away")]
    NotDraining(String),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The metadata store didn't do it; with [`StoreError::Unknown`] it may have been done.
    #[error(transparent)]
    Metadata(#[from] StoreError),
    /// A record can't be read.
    #[error("metadata record {0}")]
    Record(String),
}
