//! [`Standalone`]: a whole cluster in one process: embedded metadata, one bookie, one broker and
//! the front-ends, wired as separate processes would be.
//!
//! Order of the end: the front-ends close producers and consumers after their answers; then the
//! broker closes ledgers and state logs and gives up ownership; then the bookie's log is sealed;
//! the metadata goes last.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use geminga_bookie::bookie::Bookie;
use geminga_bookie::gc::Collector;
use geminga_bookie::service::BookieService;
use geminga_broker::core::broker::Broker;
use geminga_broker::frontend::admin::{self, AdminConfig, AdminState, ClusterIdentity, Readiness};
use geminga_broker::frontend::grpc::{self, GrpcConfig, GrpcQueues, GrpcState};
use geminga_ledger::placement::FixedPlacement;
use geminga_ledger::store::LedgerStore;
use geminga_meta::store::MetadataStore;
use geminga_proto::PROTOCOL;
use geminga_proto::env::Env;
use geminga_proto::id::{BookieId, BrokerId, ClusterId};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;

use super::listeners::Listeners;
use super::local_bookie::LocalBookie;
use super::metrics;
use super::ready_file::Addresses;
use super::storage::Storage;
use crate::config::{Components, Settings};

/// The name of the one broker and the one bookie.
const NODE: &str = "standalone";
/// How long front-ends and collector may take to end.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// A running standalone.
#[derive(Debug)]
pub struct Standalone {
    /// Where it is reached.
    pub addresses: Addresses,
    broker: Broker,
    bookie: Bookie,
    metadata: Arc<dyn MetadataStore>,
    readiness: Readiness,
    stop: watch::Sender<bool>,
    tasks: JoinSet<&'static str>,
}

impl Standalone {
    /// Opens the data directory and the ports, and starts everything.
    ///
    /// # Errors
    /// What is in the way; nothing runs then.
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let env = Env::system();
        let mut components = Components::standalone(settings, BrokerId::new(NODE)?)?;
        let listeners = Listeners::bind(settings).await?;
        let addresses = Addresses::from(&listeners);
        let bookie_id = BookieId::new(NODE)?;
        let storage = Storage::open(settings, &bookie_id, components.bookie, &env).await?;
        let Storage { metadata, cluster, bookie } = storage;
        let transport = Arc::new(LocalBookie::new(bookie.clone()));
        let placement = Arc::new(FixedPlacement::new(env.clone(), vec![bookie_id]));
        let ledgers = LedgerStore::new(
            components.ledger,
            env.clone(),
            Arc::clone(&metadata),
            transport,
            placement,
        )?;
        components.broker.service_url = listeners.grpc.url();
        components.broker.admin_url = listeners.admin.url();
        let started = Broker::start(components.broker, env, Arc::clone(&metadata), ledgers);
        let broker = started.await.context("the broker can't start")?;
        let (stop, _) = watch::channel(false);
        let mut standalone = Self {
            addresses,
            broker,
            bookie,
            metadata,
            readiness: Readiness::default(),
            stop,
            tasks: JoinSet::new(),
        };
        standalone.serve(listeners, cluster.cluster_id);
        Ok(standalone)
    }

    /// Starts the front-ends and the background work.
    fn serve(&mut self, listeners: Listeners, cluster: ClusterId) {
        let identity = ClusterIdentity {
            name: NODE.to_owned(),
            id: cluster.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
        };
        let mut registry = Registry::default();
        metrics::register(&mut registry, self.bookie.clone());
        let queues = GrpcQueues::default();
        let shown = queues.clone();
        let state =
            AdminState::new(self.broker.clone(), identity, self.readiness.clone(), registry)
                .with_queues(move || shown.stats());
        let admin = listeners.admin.listener;
        let admin = admin::serve(admin, AdminConfig::default(), state, self.stopped());
        self.spawn("admin API", admin);
        let grpc = listeners.grpc.listener;
        let state = GrpcState { broker: self.broker.clone(), cluster_id: cluster, queues };
        let grpc = grpc::serve(grpc, GrpcConfig::default(), state, self.stopped());
        self.spawn("messaging API", async {
            if let Err(error) = grpc.await {
                tracing::error!(%error, "the messaging port failed");
            }
        });
        let storage_node =
            serve_bookie(listeners.bookie.listener, self.bookie.clone(), self.stopped());
        self.spawn("storage node", storage_node);
        let collector = Collector::new(self.bookie.clone(), Arc::clone(&self.metadata));
        self.spawn("collector", collector.run(self.stopped()));
    }

    fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            work.await;
            name
        });
    }

    /// Is done once the standalone is to stop.
    fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stopped = self.stop.subscribe();
        async move {
            // A sender that is gone means the same.
            drop(stopped.wait_for(|stopped| *stopped).await);
        }
    }

    /// How writes are made durable.
    #[must_use]
    pub fn sync_mode(&self) -> &'static str {
        self.bookie.info().sync_mode.as_str()
    }

    /// Says on `/readyz` that everything serves.
    pub fn set_ready(&self) {
        self.readiness.set(true);
    }

    /// Is done when a part has ended that shouldn't have.
    pub async fn broken(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(name)) => anyhow::anyhow!("the {name} has ended unexpectedly"),
            Some(Err(error)) => anyhow::anyhow!("a part of the server broke down: {error}"),
            None => anyhow::anyhow!("nothing runs any more"),
        }
    }

    /// Ends everything in order.
    ///
    /// # Errors
    /// The log didn't close cleanly; the next start replays it.
    pub async fn close(mut self) -> anyhow::Result<()> {
        self.readiness.set(false);
        self.stop.send_replace(true);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_GRACE, ended).await.is_err() {
            tracing::info!("ending connections that did not close in time");
            self.tasks.shutdown().await;
        }
        self.broker.shutdown().await;
        let closed = self.bookie.close().await.context("the bookie's log did not close cleanly");
        // Dropping the last handle waits for the metadata's last write.
        let Self { broker, metadata, .. } = self;
        drop(broker);
        let dropped = tokio::task::spawn_blocking(move || drop(metadata)).await;
        closed?;
        dropped.context("the metadata did not close cleanly")
    }
}

/// The storage node's own port, for other processes.
async fn serve_bookie(
    listener: TcpListener,
    bookie: Bookie,
    stopped: impl Future<Output = ()> + Send + 'static,
) {
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let served = tonic::transport::Server::builder()
        .serve_with_incoming_shutdown(BookieService::new(bookie).into_server(), incoming, stopped)
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the storage node's port failed");
    }
}
