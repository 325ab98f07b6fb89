//! [`Repair`]: a worker and a candidate for the auditor's office, the same in a bookie and in a
//! process of its own; and [`RepairServer`], that process.
//!
//! *Architecture invariant:* a process whose etcd was replaced or set back repairs nothing any
//! more, and stays: what another etcd says of the ledgers may be of another time.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use geminga_bookie::bookie::Bookie;
use geminga_ledger::config::LedgerStoreConfig;
use geminga_ledger::placement::{WatchedPlacement, WatchedPlacementConfig};
use geminga_ledger::repair::worker::{Foreground, RepairWorker};
use geminga_ledger::repair::{RepairAuditor, RepairConfig, RepairMetrics};
use geminga_ledger::store::LedgerStore;
use geminga_ledger::transport::grpc::{GrpcTransport, GrpcTransportConfig};
use geminga_meta::store::{EtcdStore, MetadataStore};
use geminga_proto::env::Env;
use geminga_proto::id::ClusterId;

use super::listeners::machine_name;
use super::metadata::ClusterMetadata;
use super::parts::Parts;
use super::ready_file::Addresses;
use super::server::Server;
use crate::config::{Deployment, Settings, components};

/// Pause before the list of bookies is read again.
const RETRY: Duration = Duration::from_secs(1);

/// What a process repairs with.
#[derive(Debug)]
pub(super) struct Repair {
    repair: RepairConfig,
    ledger: LedgerStoreConfig,
    view: WatchedPlacementConfig,
    cluster: ClusterId,
    store: Arc<dyn MetadataStore>,
    env: Env,
    metrics: Arc<RepairMetrics>,
    /// What stands before it.
    foreground: Option<Arc<dyn Foreground>>,
}

impl Repair {
    /// Under a name that no other process has at the time.
    ///
    /// # Errors
    /// A setting can't work.
    pub fn new(
        settings: &Settings,
        name: &str,
        cluster: ClusterId,
        store: Arc<dyn MetadataStore>,
        env: Env,
    ) -> anyhow::Result<Self> {
        let repair = components::repair(settings, name)?;
        let ledger = components::ledger(settings, Deployment::Cluster)?;
        let view = components::placement(settings);
        let (metrics, foreground) = (Arc::default(), None);
        Ok(Self { repair, ledger, view, cluster, store, env, metrics, foreground })
    }

    /// Stands back for what a bookie's clients wait for.
    pub fn beside(mut self, bookie: Bookie) -> Self {
        self.foreground = Some(Arc::new(Appends(bookie)));
        self
    }

    /// What it counts from its start on.
    pub fn metrics(&self) -> Arc<RepairMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Works until `stopped`. Waits for etcd, however often it goes away.
    pub async fn run(self, stopped: impl Future<Output = ()>) {
        tokio::pin!(stopped);
        let ledgers = loop {
            let error = tokio::select! {
                () = &mut stopped => return,
                opened = self.open() => match opened {
                    Ok(ledgers) => break ledgers,
                    Err(error) => error,
                },
            };
            tracing::debug!(%error, "repair waits for the metadata store");
            tokio::select! {
                () = &mut stopped => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        };
        let auditor = RepairAuditor::new(self.repair.clone(), ledgers.clone());
        let worker = RepairWorker::new(self.repair, ledgers, self.metrics);
        let (Ok(auditor), Ok(worker)) = (auditor, worker) else {
            // They were accepted when this was made.
            tracing::error!("the settings of repair can't work");
            return stopped.await;
        };
        let worker = match self.foreground {
            Some(foreground) => worker.standing_back_for(foreground),
            None => worker,
        };
        let never = std::future::pending;
        tokio::select! {
            () = stopped => {}
            () = auditor.run(never()) => {}
            () = worker.run(never()) => {}
        }
    }

    async fn open(&self) -> anyhow::Result<LedgerStore> {
        let (store, env) = (Arc::clone(&self.store), self.env.clone());
        let bookies = Arc::new(WatchedPlacement::start(store, env.clone(), self.view).await?);
        let transport = GrpcTransportConfig {
            request_timeout_ms: self.ledger.request_timeout_ms,
            ..GrpcTransportConfig::new(self.cluster.clone(), self.repair.name.clone())
        };
        let runtime = tokio::runtime::Handle::current();
        let transport = Arc::new(GrpcTransport::new(transport, Arc::clone(&bookies) as _, runtime));
        let meta = Arc::clone(&self.store);
        Ok(LedgerStore::new(self.ledger.clone(), env, meta, transport, bookies)?)
    }
}

/// Appends to a bookie.
#[derive(Debug)]
struct Appends(Bookie);

impl Foreground for Appends {
    fn is_busy(&self) -> bool {
        self.0.is_written_to()
    }
}

/// A process that does nothing but repair.
#[derive(Debug)]
pub struct RepairServer {
    name: String,
    addresses: Addresses,
    etcd: Arc<EtcdStore>,
    parts: Parts,
}

impl RepairServer {
    /// Waits for etcd, and starts.
    ///
    /// # Errors
    /// What is in the way; nothing runs then.
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let env = Env::system();
        let name = format!("repair-{}-{}", machine_name(), std::process::id());
        // What can't work is told before etcd is waited for.
        components::repair(settings, &name)?;
        components::ledger(settings, Deployment::Cluster)?;
        let etcd = components::metadata(settings)?;
        let wait = settings.metadata.wait.0.map(|wait| wait.0);
        let opened = ClusterMetadata::open(etcd, wait, &env).await?;
        let ClusterMetadata { store, etcd, cluster, .. } = opened;
        let repair = Repair::new(settings, &name, cluster.cluster_id, store, env)?;
        let mut parts = Parts::new();
        parts.spawn("repair", repair.run(parts.stopped()));
        Ok(Self { name, addresses: Addresses::default(), etcd, parts })
    }
}

impl Server for RepairServer {
    fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    fn set_ready(&self) {
        tracing::info!(name = self.name, "geminga repair works");
    }

    async fn broken(&mut self) -> anyhow::Error {
        tokio::select! {
            broken = self.parts.broken() => broken,
            replaced = self.etcd.replaced() => {
                tracing::error!(
                    "{replaced}: this process repairs nothing any more; find out which etcd is the \
                     right one (docs/OPERATIONS.md, Backup and restore), and only then start it \
                     again"
                );
                self.parts.broken().await
            }
        }
    }

    async fn close(mut self) -> anyhow::Result<()> {
        self.parts.end().await;
        Ok(())
    }
}
