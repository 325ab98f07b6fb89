//! [`Broker`]: the façade that front-ends use. It finds or loads a topic and hands the request to
//! it; everything it answers is plain data or a handle.
//!
//! Cheap to clone. Nothing here holds a lock across an await. A broker that is dropped without
//! [`Broker::shutdown`] closes its clients; its ledgers are left to recovery, as after a crash.

mod cluster;
mod damaged;
mod deletion;
mod handover;
mod inspect;
mod keeper;
mod probe;
mod repair;
mod spoilt;
mod sweep;
mod takeover;
mod tenancy;
mod topics;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use geminga_ledger::store::LedgerStore;
use geminga_meta::bundle::{BundleId, HashRange};
use geminga_meta::store::{MetadataStore, StoreError};
use geminga_proto::env::Env;
use geminga_proto::topic_name::TopicName;

use crate::core::admin::AdminError;
use crate::core::api::{
    ConsumerSink, Lookup, OpenProducer, OpenProducerError, ProducerOpened, ProducerSink, Subscribe,
    SubscribeError, TopicError,
};
use crate::core::budget::ByteBudget;
use crate::core::bundle::Bundle;
use crate::core::config::{BrokerConfig, ConfigError};
use crate::core::context::{Context, unavailable};
use crate::core::namespace::{Namespace, Namespaces};
use crate::core::ownership::{Ownership, OwnershipError};
use crate::core::topic::{Create, Home, Topic};
use crate::core::topic_map::{Claim, TopicMap};
use crate::core::watched;

pub use crate::core::broker::handover::Unloaded;
pub use crate::core::consumer::Consumer;
pub use crate::core::producer::Producer;

/// Times that a request is handed to a topic which closes at that moment.
const ATTEMPTS: u32 = 4;

/// Why a broker doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting can't work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The session can't begin.
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// The first tenant and namespace can't be made.
    #[error("public/default can't be created: {0}")]
    Bootstrap(#[from] AdminError),
}

impl StartError {
    /// Why the metadata didn't answer, if that is all: another attempt may find them.
    #[must_use]
    pub fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Ownership(error) => error.store_error(),
            Self::Config(_) | Self::Bootstrap(_) => None,
        }
    }
}

#[derive(Debug)]
struct Inner {
    context: Arc<Context>,
    ownership: Arc<Ownership>,
    namespaces: Arc<Namespaces>,
    topics: Arc<TopicMap>,
    stopping: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.topics.all().iter().for_each(|topic| topic.fail(&TopicError::ShuttingDown));
    }
}

/// A running broker. Clones are the same broker.
#[derive(Debug, Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

impl Broker {
    /// Starts a broker: begins its session, makes tenant `public` and namespace `public/default` if
    /// it is alone and they don't exist, and looks after its topics from then on. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] if a setting can't work or the metadata can't be used.
    pub async fn start(
        config: BrokerConfig,
        env: Env,
        meta: Arc<dyn MetadataStore>,
        ledgers: LedgerStore,
    ) -> Result<Self, StartError> {
        config.validate()?;
        let context = Context::new(config, env, meta, ledgers);
        let topics = TopicMap::new(Arc::clone(&context.metrics));
        let map = Arc::downgrade(&topics);
        let namespaces = Namespaces::start(&context, move |bundle| {
            let error = TopicError::NamespaceNotFound(bundle.id.namespace.to_string());
            match map.upgrade() {
                Some(topics) => topics.end_bundle(bundle, &error),
                None => drop(bundle.end()),
            }
        });
        let ended = (Arc::downgrade(&namespaces), Arc::downgrade(&topics));
        let lease_lost = move || {
            let (Some(namespaces), Some(topics)) = (ended.0.upgrade(), ended.1.upgrade()) else {
                return;
            };
            keeper::give_up(&topics, &namespaces, &TopicError::NotOwner);
        };
        let ownership = Ownership::start(&context).await?;
        ownership.session.keep(lease_lost);
        let stopping = AtomicBool::new(false);
        let inner = Arc::new(Inner { context, ownership, namespaces, topics, stopping });
        let broker = Self { inner };
        if broker.config().alone {
            broker.bootstrap().await?;
        }
        let runtime = &broker.inner.context.runtime;
        let weak = Arc::downgrade(&broker.inner);
        let housekeeping = move || keeper::run(Weak::clone(&weak));
        runtime.spawn(watched::again("housekeeping", housekeeping));
        let weak = Arc::downgrade(&broker.inner);
        runtime.spawn(watched::again("retention sweep", move || sweep::run(Weak::clone(&weak))));
        let weak = Arc::downgrade(&broker.inner);
        runtime.spawn(watched::again("damaged copies", move || spoilt::run(Weak::clone(&weak))));
        let weak = Arc::downgrade(&broker.inner);
        let following = move || takeover::run(Weak::clone(&weak));
        runtime.spawn(watched::again("following owners", following));
        let weak = Arc::downgrade(&broker.inner);
        runtime.spawn(watched::again("asking for fences", move || probe::run(Weak::clone(&weak))));
        Ok(broker)
    }

    /// The broker-wide byte budget: take bytes out of it before reading an entry off a socket.
    #[must_use]
    pub fn budget(&self) -> &ByteBudget {
        &self.inner.context.budget
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> &BrokerConfig {
        &self.inner.context.config
    }

    /// The clocks that the broker goes by.
    #[must_use]
    pub fn env(&self) -> &Env {
        &self.inner.context.env
    }

    /// The metadata store, for showing its records.
    #[must_use]
    pub fn metadata(&self) -> &Arc<dyn MetadataStore> {
        &self.inner.context.meta
    }

    /// Which broker serves a topic, as this one sees it; while the metadata is away, as it saw it
    /// last. Creates nothing.
    ///
    /// # Errors
    /// [`TopicError`] if the namespace doesn't exist, or nobody can be asked.
    pub async fn lookup(&self, topic: &TopicName) -> Result<Lookup, TopicError> {
        if self.inner.topics.get(topic).is_some() {
            return Ok(Lookup::Here);
        }
        let namespace = self.inner.namespaces.get(topic.namespace()).await?;
        let bundle = namespace.bundle_of(topic);
        if namespace.slot(&bundle).owned().is_some() {
            return Ok(Lookup::Here);
        }
        match self.inner.ownership.lookup(&bundle).map_err(unavailable)? {
            // It would have to be taken first: another broker may know more.
            Lookup::Here if self.inner.context.health.is_away() => Err(unavailable(
                "the metadata store doesn't answer, and nobody is known to serve it",
            )),
            Lookup::Here => self.refuse_stopping().map(|()| Lookup::Here),
            elsewhere => Ok(elsewhere),
        }
    }

    /// The range of hashes of the topics that are looked up as this one: its bundle's. `None` if
    /// its namespace hasn't been used yet.
    #[must_use]
    pub fn range_of(&self, topic: &TopicName) -> Option<HashRange> {
        let namespace = self.inner.namespaces.known(topic.namespace())?;
        Some(namespace.bundle_of(topic).range)
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
        for _ in 1..ATTEMPTS {
            let topic = self.topic(&open.topic, Create::IfAutomatic).await?;
            match topic.open_producer(open.clone(), Arc::clone(&sink)) {
                Err(OpenProducerError::Topic(_)) if !topic.is_serving() => {}
                answer => return answer,
            }
        }
        let topic = self.topic(&open.topic, Create::IfAutomatic).await?;
        topic.open_producer(open, sink)
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
        for _ in 1..ATTEMPTS {
            let topic = self.topic(&subscribe.topic, Create::IfAutomatic).await?;
            match topic.subscribe(&subscribe, &sink).await {
                Err(SubscribeError::Topic(_)) if !topic.is_serving() => {}
                answer => return answer,
            }
        }
        let topic = self.topic(&subscribe.topic, Create::IfAutomatic).await?;
        topic.subscribe(&subscribe, &sink).await
    }

    fn refuse_stopping(&self) -> Result<(), TopicError> {
        if self.inner.stopping.load(Ordering::Acquire) {
            return Err(TopicError::ShuttingDown);
        }
        Ok(())
    }

    /// The topic, loaded; created if `create` says so.
    async fn topic(&self, name: &TopicName, create: Create) -> Result<Arc<Topic>, TopicError> {
        self.refuse_stopping()?;
        if create != Create::New
            && let Some(topic) = self.inner.topics.get(name)
        {
            return Ok(topic);
        }
        // Loading goes on without its caller: half of it can't be taken back.
        let (broker, name) = (self.clone(), name.clone());
        let loading = self.inner.context.runtime.spawn(async move {
            let claim = broker.inner.topics.claim(&name).await;
            let loaded = broker.load(&claim, &name, create).await;
            broker.inner.topics.release(claim);
            loaded
        });
        loading.await.map_err(unavailable)?
    }

    async fn load(
        &self,
        claim: &Claim,
        name: &TopicName,
        create: Create,
    ) -> Result<Arc<Topic>, TopicError> {
        if let Some(topic) = claim.topic().filter(|topic| topic.is_serving()) {
            return if create == Create::New { Err(already_there()) } else { Ok(topic) };
        }
        let home = self.home(name).await?;
        let (topic, created) = Topic::load(name, &home, create).await?;
        self.inner.topics.insert(claim, Arc::clone(&topic));
        // Whoever ended the bundle meanwhile didn't find the topic.
        if home.bundle.has_ended() {
            topic.fail(&TopicError::NotOwner);
            return Err(TopicError::NotOwner);
        }
        if self.inner.stopping.load(Ordering::Acquire) {
            topic.fail(&TopicError::ShuttingDown);
            return Err(TopicError::ShuttingDown);
        }
        if create == Create::New && !created {
            return Err(already_there());
        }
        Ok(topic)
    }

    /// Where a topic belongs; acquires its bundle if need be.
    async fn home(&self, name: &TopicName) -> Result<Home, TopicError> {
        let inner = &self.inner;
        let namespace = inner.namespaces.get(name.namespace()).await?;
        let id = namespace.bundle_of(name);
        let bundle = self.own(&namespace, &id).await?;
        let map = Arc::downgrade(&inner.topics);
        Ok(Home { context: Arc::clone(&inner.context), namespace, bundle, map })
    }
}

impl Broker {
    /// The bundle, owned by this broker; acquires it if need be and if it is to be here.
    async fn own(&self, namespace: &Namespace, id: &BundleId) -> Result<Arc<Bundle>, TopicError> {
        let inner = &self.inner;
        let watch = |bundle: &Arc<Bundle>| {
            let (map, bundle) = (Arc::downgrade(&inner.topics), Arc::clone(bundle));
            inner.context.runtime.spawn(keeper::watch_bundle(map, bundle));
        };
        let slot = namespace.slot(id);
        slot.acquire(id, &inner.context, &inner.ownership, &watch).await
    }
}

/// Only [`Create::New`] is refused for it; the caller words it.
fn already_there() -> TopicError {
    unavailable("it exists already")
}

#[cfg(test)]
mod tests;
