//! [`Broker`]: the façade that front-ends use. It finds or loads a topic and hands the request to
//! it; everything it answers is plain data or a handle.
//!
//! Cheap to clone. Nothing here holds a lock across an await.

use std::sync::Arc;

use bytes::Bytes;
use geminga_ledger::store::LedgerStore;
use geminga_meta::store::MetadataStore;
use geminga_proto::env::Env;
use geminga_proto::id::{LedgerId, Position};
use geminga_proto::topic_name::{NamespaceName, TopicName};

use crate::core::admin::{AdminError, NamespaceInfo, NamespacePolicies, ResetTo};
use crate::core::api::{
    Ack, ConsumerSink, InitialPosition, Lookup, OpenProducer, OpenProducerError, ProducerOpened,
    ProducerSink, Subscribe, SubscribeError, SubscriptionPosition, TopicError,
};
use crate::core::budget::{ByteBudget, BytePermit};
use crate::core::config::{BrokerConfig, ConfigError};
use crate::core::stats::{
    Durability, LedgerInfo, QueueStats, SubscriptionStats, TopicInternalStats, TopicStats,
};

/// Why a broker doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting can't work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The metadata store can't be used.
    #[error(transparent)]
    Metadata(#[from] geminga_meta::store::StoreError),
    /// A record can't be read.
    #[error("metadata record {0}")]
    Record(String),
}

#[derive(Debug)]
struct Inner {
    config: BrokerConfig,
    budget: ByteBudget,
    meta: Arc<dyn MetadataStore>,
    env: Env,
}

/// A running broker. Clones are the same broker.
#[derive(Debug, Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

impl Broker {
    /// Starts a broker: takes a lease, makes tenant `public` and namespace `public/default` if
    /// they don't exist, and looks after its topics from then on. Must be called inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`StartError`] if a setting can't work or the metadata can't be used.
    pub async fn start(
        config: BrokerConfig,
        env: Env,
        meta: Arc<dyn MetadataStore>,
        ledgers: LedgerStore,
    ) -> Result<Self, StartError> {
        todo!()
    }

    /// The broker-wide byte budget: take bytes out of it before reading an entry off a socket.
    #[must_use]
    pub fn budget(&self) -> &ByteBudget {
        &self.inner.budget
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> &BrokerConfig {
        &self.inner.config
    }

    /// The clocks that the broker goes by.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.inner.env
    }

    /// The metadata store, for showing its records.
    #[must_use]
    pub fn metadata(&self) -> &Arc<dyn MetadataStore> {
        &self.inner.meta
    }

    /// Which broker serves a topic. Creates nothing.
    ///
    /// # Errors
    /// [`TopicError`] if the namespace doesn't exist, or nobody can be asked.
    pub async fn lookup(&self, topic: &TopicName) -> Result<Lookup, TopicError> {
        todo!()
    }

    /// Opens a producer; creates the topic if that is allowed and needed.
    ///
    /// # Errors
    /// [`OpenProducerError`] if the topic can't be used or the name is taken.
    pub async fn open_producer(
        &self,
        open: OpenProducer,
        sink: Arc<dyn ProducerSink>,
    ) -> Result<(Producer, ProducerOpened), OpenProducerError> {
        todo!()
    }

    /// Attaches a consumer; creates topic and subscription if that is allowed and needed. Events
    /// can reach the sink before this returns.
    ///
    /// # Errors
    /// [`SubscribeError`] if the topic can't be used or the subscription refuses.
    pub async fn subscribe(
        &self,
        subscribe: Subscribe,
        sink: Arc<dyn ConsumerSink>,
    ) -> Result<Consumer, SubscribeError> {
        todo!()
    }

    /// Closes producers and consumers with [`TopicError::ShuttingDown`], then ledgers and state
    /// logs, and gives up ownership.
    pub async fn shutdown(&self) {
        todo!()
    }
}

/// Administration. Requests that need a topic load it.
impl Broker {
    /// Tenants, sorted.
    pub async fn list_tenants(&self) -> Result<Vec<String>, AdminError> {
        todo!()
    }

    /// Creates a tenant.
    pub async fn create_tenant(&self, tenant: &str) -> Result<(), AdminError> {
        todo!()
    }

    /// Deletes a tenant that has no namespaces.
    pub async fn delete_tenant(&self, tenant: &str) -> Result<(), AdminError> {
        todo!()
    }

    /// A tenant's namespaces, sorted.
    pub async fn list_namespaces(&self, tenant: &str) -> Result<Vec<NamespaceName>, AdminError> {
        todo!()
    }

    /// A namespace.
    pub async fn namespace(&self, name: &NamespaceName) -> Result<NamespaceInfo, AdminError> {
        todo!()
    }

    /// Creates a namespace. `bundles`: the broker's default if `None`.
    pub async fn create_namespace(
        &self,
        name: &NamespaceName,
        policies: NamespacePolicies,
        bundles: Option<u32>,
    ) -> Result<(), AdminError> {
        todo!()
    }

    /// Replaces a namespace's policies.
    pub async fn set_namespace_policies(
        &self,
        name: &NamespaceName,
        policies: NamespacePolicies,
    ) -> Result<(), AdminError> {
        todo!()
    }

    /// Deletes a namespace that has no topics.
    pub async fn delete_namespace(&self, name: &NamespaceName) -> Result<(), AdminError> {
        todo!()
    }

    /// A namespace's topics, sorted.
    pub async fn list_topics(&self, name: &NamespaceName) -> Result<Vec<TopicName>, AdminError> {
        todo!()
    }

    /// Creates a topic, whatever automatic creation is set to.
    pub async fn create_topic(&self, topic: &TopicName) -> Result<(), AdminError> {
        todo!()
    }

    /// Deletes a topic with its data. Unless forced, refuses while it has producers, consumers or
    /// subscriptions; forced, they are closed with [`TopicError::Deleted`].
    pub async fn delete_topic(&self, topic: &TopicName, force: bool) -> Result<(), AdminError> {
        todo!()
    }

    /// Closes a topic's ledger and takes it out of the memory; its producers and consumers are
    /// closed with [`TopicError::Unavailable`] and may come back at once.
    pub async fn unload_topic(&self, topic: &TopicName) -> Result<(), AdminError> {
        todo!()
    }

    /// A topic's statistics.
    pub async fn topic_stats(&self, topic: &TopicName) -> Result<TopicStats, AdminError> {
        todo!()
    }

    /// How a topic is stored.
    pub async fn topic_internal_stats(
        &self,
        topic: &TopicName,
    ) -> Result<TopicInternalStats, AdminError> {
        todo!()
    }

    /// A topic's subscriptions with their statistics, sorted by name.
    pub async fn list_subscriptions(
        &self,
        topic: &TopicName,
    ) -> Result<Vec<(String, SubscriptionStats)>, AdminError> {
        todo!()
    }

    /// Creates a subscription (durably) without a consumer.
    pub async fn create_subscription(
        &self,
        topic: &TopicName,
        subscription: &str,
        from: InitialPosition,
    ) -> Result<(), AdminError> {
        todo!()
    }

    /// Deletes a subscription. Unless forced, refuses while it has consumers.
    pub async fn delete_subscription(
        &self,
        topic: &TopicName,
        subscription: &str,
        force: bool,
    ) -> Result<(), AdminError> {
        todo!()
    }

    /// Moves a subscription's cursor. Its consumers are closed with
    /// [`TopicError::Unavailable`] and may come back at once.
    pub async fn reset_subscription(
        &self,
        topic: &TopicName,
        subscription: &str,
        to: ResetTo,
    ) -> Result<(), AdminError> {
        todo!()
    }

    /// Ledgers after `after`, at most `limit`, in order of their ids.
    pub async fn list_ledgers(
        &self,
        after: Option<LedgerId>,
        limit: usize,
    ) -> Result<Vec<LedgerInfo>, AdminError> {
        todo!()
    }

    /// One ledger.
    pub async fn ledger(&self, ledger: LedgerId) -> Result<LedgerInfo, AdminError> {
        todo!()
    }

    /// What the broker's queues hold, and their caps.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueStats> {
        todo!()
    }

    /// How durable a receipt is.
    pub async fn durability(&self) -> Durability {
        todo!()
    }
}

/// An open producer. Dropping it detaches it; receipts of entries under way are then lost, the
/// entries are not.
#[derive(Debug)]
pub struct Producer {}

impl Producer {
    /// Publishes an entry. What comes of it, the sink hears: receipts strictly in the order of
    /// these calls. The entry's bytes are in `permit`.
    pub fn publish(&self, sequence_id: u64, entry: Bytes, permit: BytePermit) {
        todo!()
    }

    /// Waits until every entry has its outcome, then detaches.
    pub async fn close(self) {
        todo!()
    }
}

/// An attached consumer. Dropping it detaches it; what it holds unacknowledged is redelivered to
/// others.
#[derive(Debug)]
pub struct Consumer {}

impl Consumer {
    /// Its name: the one it asked for, or the one the broker made.
    #[must_use]
    pub fn name(&self) -> &str {
        todo!()
    }

    /// Adds credit.
    pub fn flow(&self, messages: u32, bytes: u64) {
        todo!()
    }

    /// Acknowledges. With a request id, the sink hears a receipt once it is durable. Waits only
    /// while the bundle's state log has no room, or for the storage if something is acknowledged
    /// that was not handed out since the topic was loaded.
    pub async fn ack(&self, ack: Ack) {
        todo!()
    }

    /// Asks for entries it holds to be delivered again; none named: all it holds.
    pub fn redeliver(&self, positions: &[Position]) {
        todo!()
    }

    /// Deletes the subscription, durably, and detaches.
    ///
    /// # Errors
    /// [`SubscribeError::Busy`] while other consumers are attached.
    pub async fn unsubscribe(&self) -> Result<(), SubscribeError> {
        todo!()
    }

    /// Where the subscription stands.
    #[must_use]
    pub fn position(&self) -> SubscriptionPosition {
        todo!()
    }

    /// Detaches, after the acknowledgements under way have their receipts.
    pub async fn close(self) {
        todo!()
    }
}
