//! [`BrokerServer`]: a broker of a cluster, as a process. It opens no disk: metadata is in etcd,
//! and entries are on bookies, which it finds there.
//!
//! Order of the end: the broker hands its bundles over, and only then its producers and consumers
//! hear of it, through ports that are still served; then the ports close; then the connections to
//! bookies and etcd go.
//!
//! *Architecture invariant:* a broker whose etcd was replaced or set back gives everything up and
//! stays: what it would go on to confirm might be in ledgers that the etcd of tomorrow has never
//! heard of, and a supervisor would only start it again, as one that knows of nothing.

use std::sync::Arc;

use anyhow::Context;
use geminga_broker::core::broker::StartError;
use geminga_ledger::placement::WatchedPlacement;
use geminga_ledger::store::LedgerStore;
use geminga_ledger::transport::grpc::{GrpcTransport, GrpcTransportConfig};
use geminga_meta::store::EtcdStore;
use geminga_proto::env::Env;
use geminga_proto::id::BrokerId;
use prometheus_client::registry::Registry;

use super::broker_node::{BrokerNode, BrokerPorts};
use super::listeners::{Service, bind, node_name};
use super::metadata::{ClusterMetadata, Failure};
use super::parts::Parts;
use super::ready_file::Addresses;
use super::server::Server;
use crate::config::{Deployment, Settings, components};

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error.store_error() {
            Some(store) => store.clone().into(),
            None => Self::Final(error.into()),
        }
    }
}

/// A running broker.
#[derive(Debug)]
pub struct BrokerServer {
    id: BrokerId,
    addresses: Addresses,
    broker: BrokerNode,
    etcd: Arc<EtcdStore>,
    parts: Parts,
}

impl BrokerServer {
    /// Opens the ports, waits for etcd, and starts.
    ///
    /// # Errors
    /// What is in the way; nothing runs then.
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let env = Env::system();
        let ports = BrokerPorts {
            grpc: bind(settings, Service::Messaging).await?,
            admin: bind(settings, Service::Admin).await?,
        };
        let addresses = Addresses {
            grpc: Some(ports.grpc.advertised.clone()),
            admin: Some(ports.admin.advertised.clone()),
            ..Addresses::default()
        };
        let id = BrokerId::new(&node_name(&settings.broker_id, &ports.grpc, "broker_id")?)?;
        let config = components::broker(settings, Deployment::Cluster, id.clone())?;
        let ledger_config = components::ledger(settings, Deployment::Cluster)?;
        let etcd = components::metadata(settings)?;
        let wait = settings.metadata.wait.0.map(|wait| wait.0);
        let opened = ClusterMetadata::open(etcd, wait, &env).await?;
        let ClusterMetadata { store, etcd, cluster, mut patience } = opened;
        let view = components::placement(settings);
        let started = patience.until_done(async || {
            WatchedPlacement::start(Arc::clone(&store), env.clone(), view).await
        });
        let bookies = Arc::new(started.await.context("the list of bookies can't be read")?);
        let transport = GrpcTransportConfig {
            request_timeout_ms: ledger_config.request_timeout_ms,
            ..GrpcTransportConfig::new(cluster.cluster_id.clone(), id.to_string())
        };
        let runtime = tokio::runtime::Handle::current();
        let transport = Arc::new(GrpcTransport::new(transport, Arc::clone(&bookies) as _, runtime));
        let meta = Arc::clone(&store);
        let ledgers = LedgerStore::new(ledger_config, env.clone(), meta, transport, bookies)?;
        // Its session and its views are read and written while etcd may go away again.
        let started = patience.until_done(async || {
            let (env, store) = (env.clone(), Arc::clone(&store));
            BrokerNode::start(config.clone(), &ports, env, store, ledgers.clone()).await
        });
        let broker = started.await.context("the broker can't start")?;
        let mut parts = Parts::new();
        let who = (settings.cluster_name.as_str(), cluster.cluster_id);
        broker.serve(&mut parts, ports, who, Registry::default());
        Ok(Self { id, addresses, broker, etcd, parts })
    }
}

impl Server for BrokerServer {
    fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    fn set_ready(&self) {
        self.broker.set_ready();
        tracing::info!(
            broker = %self.id,
            grpc = self.addresses.grpc,
            admin = self.addresses.admin,
            "geminga broker serves"
        );
    }

    async fn broken(&mut self) -> anyhow::Error {
        tokio::select! {
            broken = self.parts.broken() => broken,
            replaced = self.etcd.replaced() => {
                self.broker.abandon(&format!(
                    "{replaced}: this broker serves nothing any more, since what it would confirm \
                     could be lost; find out which etcd is the right one (docs/OPERATIONS.md, \
                     Backup and restore), and only then start it again"
                ));
                self.parts.broken().await
            }
        }
    }

    async fn close(mut self) -> anyhow::Result<()> {
        self.broker.shutdown().await;
        self.parts.end().await;
        Ok(())
    }
}
