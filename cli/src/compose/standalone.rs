//! [`Standalone`]: a whole cluster in one process: embedded metadata, one bookie, one broker and
//! the front-ends, wired as separate processes would be.
//!
//! Order of the end: the broker closes ledgers and state logs and gives up ownership, and its
//! clients hear of it; then the ports close; then the bookie's log is sealed; the metadata goes
//! last.

use std::sync::Arc;

use anyhow::Context;
use geminga_bookie::bookie::Bookie;
use geminga_bookie::gc::Collector;
use geminga_ledger::placement::FixedPlacement;
use geminga_ledger::store::LedgerStore;
use geminga_meta::store::MetadataStore;
use geminga_proto::env::Env;
use geminga_proto::id::{BookieId, BrokerId};
use prometheus_client::registry::Registry;

use super::bookie_node;
use super::broker_node::{BrokerNode, BrokerPorts};
use super::listeners::{Service, bind};
use super::local_bookie::LocalBookie;
use super::metrics;
use super::parts::Parts;
use super::ready_file::Addresses;
use super::server::Server;
use super::storage::Storage;
use crate::config::{Deployment, Settings, components};

/// The name of the one broker and the one bookie.
const NODE: &str = "standalone";

/// A running standalone.
#[derive(Debug)]
pub struct Standalone {
    addresses: Addresses,
    data_dir: std::path::PathBuf,
    broker: BrokerNode,
    bookie: Bookie,
    metadata: Arc<dyn MetadataStore>,
    parts: Parts,
}

impl Standalone {
    /// Opens the data directory and the ports, and starts everything.
    ///
    /// # Errors
    /// What is in the way; nothing runs then.
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let env = Env::system();
        let deployment = Deployment::Standalone;
        let broker_config = components::broker(settings, deployment, BrokerId::new(NODE)?)?;
        let ledger_config = components::ledger(settings, deployment)?;
        let bookie_config = components::bookie(settings, deployment)?;
        let ports = BrokerPorts {
            grpc: bind(settings, Service::Messaging).await?,
            admin: bind(settings, Service::Admin).await?,
        };
        let bookie_port = bind(settings, Service::Storage).await?;
        let addresses = Addresses {
            grpc: Some(ports.grpc.advertised.clone()),
            admin: Some(ports.admin.advertised.clone()),
            bookie: Some(bookie_port.advertised.clone()),
            metrics: None,
        };
        let bookie_id = BookieId::new(NODE)?;
        let storage = Storage::open(settings, &bookie_id, bookie_config, &env).await?;
        let Storage { metadata, cluster, bookie } = storage;
        let transport = Arc::new(LocalBookie::new(bookie.clone()));
        let placement = Arc::new(FixedPlacement::new(env.clone(), vec![bookie_id]));
        let meta = Arc::clone(&metadata);
        let ledgers = LedgerStore::new(ledger_config, env.clone(), meta, transport, placement)?;
        let meta = Arc::clone(&metadata);
        let broker = BrokerNode::start(broker_config, &ports, env, meta, ledgers).await;
        let broker = broker.context("the broker can't start")?;
        let mut parts = Parts::new();
        let mut registry = Registry::default();
        metrics::register(&mut registry, bookie.clone());
        broker.serve(&mut parts, ports, (NODE, cluster.cluster_id), registry);
        bookie_node::ask_for_disk(broker.readiness(), bookie.clone());
        bookie_node::serve(&mut parts, bookie_port, bookie.clone());
        let collector = Collector::new(bookie.clone(), Arc::clone(&metadata));
        parts.spawn("collector", collector.run(parts.stopped()));
        let data_dir = settings.data_dir.clone();
        Ok(Self { addresses, data_dir, broker, bookie, metadata, parts })
    }
}

impl Server for Standalone {
    fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    fn set_ready(&self) {
        self.broker.set_ready();
        tracing::info!(
            grpc = self.addresses.grpc,
            admin = self.addresses.admin,
            bookie = self.addresses.bookie,
            sync_mode = self.bookie.info().sync_mode.as_str(),
            data_dir = %self.data_dir.display(),
            "geminga standalone serves"
        );
    }

    async fn broken(&mut self) -> anyhow::Error {
        self.parts.broken().await
    }

    /// # Errors
    /// The log didn't close cleanly; the next start replays it.
    async fn close(mut self) -> anyhow::Result<()> {
        self.broker.shutdown().await;
        self.parts.end().await;
        let closed = self.bookie.close().await.context("the bookie's log did not close cleanly");
        // Dropping the last handle waits for the metadata's last write.
        let Self { broker, metadata, .. } = self;
        drop(broker);
        let dropped = tokio::task::spawn_blocking(move || drop(metadata)).await;
        closed?;
        dropped.context("the metadata did not close cleanly")
    }
}
