//! [`BookieServer`]: a storage node of a cluster, as a process: its disk, its port, its record in
//! etcd, and the deletion of what is gone from there.
//!
//! Order of the start: the port is open first, so that one in use is told at once; it is served
//! once the metadata are known to be this disk's and not older than it has seen; then the record
//! is written.
//!
//! Order of the end: the record goes, so that nobody chooses this bookie any more; then the port
//! closes after the answers that are due; then the log is sealed.
//!
//! *Architecture invariant:* a bookie whose etcd was replaced or set back goes on serving, deletes
//! nothing, and is not ready until somebody has looked and starts it again. Nothing that it serves
//! depends on etcd, and brokers that have the right one need its copies. It makes durable at once
//! what it has found: a later start couldn't tell, since an etcd that was set back is soon at a
//! higher revision than any it has lost.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use geminga_bookie::bookie::Bookie;
use geminga_bookie::gc::{self, Collector};
use geminga_bookie::registration::{Checked, Registration, RegistrationConfig};
use geminga_bookie::reporter::Reporter;
use geminga_broker::frontend::admin::Readiness;
use geminga_meta::store::{EtcdStore, MetadataStore};
use geminga_proto::env::Env;
use geminga_proto::id::BookieId;
use prometheus_client::registry::Registry;

use super::bookie_node;
use super::listeners::{Port, Service, bind, node_name};
use super::metadata::ClusterMetadata;
use super::metrics;
use super::parts::Parts;
use super::probes::{self, Probes};
use super::ready_file::Addresses;
use super::repair::Repair;
use super::server::Server;
use super::storage::open_bookie;
use crate::config::{Deployment, Settings, components};

/// A running storage node.
#[derive(Debug)]
pub struct BookieServer {
    addresses: Addresses,
    zone: String,
    data_dir: PathBuf,
    bookie: Bookie,
    readiness: Readiness,
    /// Until it joins its cluster.
    aside: Option<Aside>,
    /// From then on.
    registration: Option<Registration>,
    parts: Parts,
}

/// What a bookie joins its cluster with.
#[derive(Debug)]
struct Aside {
    port: Port,
    config: RegistrationConfig,
    store: Arc<dyn MetadataStore>,
    env: Env,
    /// What it does for the others.
    repair: Option<Repair>,
}

impl BookieServer {
    /// Opens the port, waits for etcd and opens the disk.
    ///
    /// # Errors
    /// What is in the way; nothing runs then.
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let env = Env::system();
        let port = bind(settings, Service::Storage).await?;
        let metrics_port = bind(settings, Service::Metrics).await?;
        let address = port.advertised.clone();
        let id = BookieId::new(&node_name(&settings.bookie_id, &port, "bookie_id")?)?;
        let config = components::bookie(settings, Deployment::Cluster)?;
        let etcd = components::metadata(settings)?;
        let wait = settings.metadata.wait.0.map(|wait| wait.0);
        let opened = ClusterMetadata::open(etcd, wait, &env).await?;
        let ClusterMetadata { store, etcd, cluster, .. } = opened;
        let opened = open_bookie(settings, &store, &cluster, &id, config, &env);
        let data_dir = settings.data_dir.clone();
        let bookie = opened
            .await
            .with_context(|| format!("can't use the data directory {}", data_dir.display()))?;
        let mut parts = Parts::new();
        let mut registry = Registry::default();
        metrics::register(&mut registry, bookie.clone());
        let repair = settings.repair.enabled.then(|| {
            let (store, env) = (Arc::clone(&store), env.clone());
            let repair = Repair::new(settings, id.as_str(), cluster.cluster_id, store, env)?;
            anyhow::Ok(repair.beside(bookie.clone()))
        });
        let repair = repair.transpose()?;
        if let Some(repair) = &repair {
            metrics::register_repair(&mut registry, repair.metrics());
        }
        let readiness = Readiness::default();
        bookie_node::ask_for_disk(&readiness, bookie.clone());
        let probes = Probes::new(registry, readiness.clone());
        let metrics = Some(metrics_port.advertised);
        let watched = watch_metadata(etcd, bookie.clone(), readiness.clone(), parts.stopped());
        parts.spawn("watch of the metadata", watched);
        let served = probes::serve(metrics_port.listener, probes, parts.stopped());
        parts.spawn("metrics port", served);
        let config = RegistrationConfig {
            address: address.clone(),
            zone: settings.bookie.zone.clone(),
            lease_ttl: settings.bookie.lease_ttl.0,
            release: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let zone = config.zone.clone();
        let aside = Some(Aside { port, config, store, env, repair });
        let addresses = Addresses { bookie: Some(address), metrics, ..Addresses::default() };
        Ok(Self { addresses, zone, data_dir, bookie, readiness, aside, registration: None, parts })
    }
}

/// Says it aloud when the metadata can never be used again, and makes that durable.
async fn watch_metadata(
    etcd: Arc<EtcdStore>,
    bookie: Bookie,
    readiness: Readiness,
    stopped: impl Future<Output = ()>,
) {
    let replaced = etcd.replaced();
    tokio::pin!(stopped);
    tokio::select! {
        () = &mut stopped => return,
        error = replaced => {
            let why = format!(
                "{error}; this bookie serves what it has, deletes nothing and isn't registered; \
                 find out which etcd is the right one (docs/OPERATIONS.md, Backup and restore), \
                 and then start it again, with bookie.accept_older_metadata"
            );
            tracing::error!("{why}");
            readiness.refuse(&why);
        }
    }
    if let Err(error) = gc::note_replaced(&bookie).await {
        tracing::error!(%error, "a later start won't know that the metadata were replaced");
    }
    stopped.await;
}

impl Server for BookieServer {
    fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Serves the port and registers.
    async fn join(&mut self) -> anyhow::Result<()> {
        let Some(aside) = self.aside.take() else { return Ok(()) };
        let Aside { port, config, store, env, repair } = aside;
        let (bookie, meta) = (self.bookie.clone(), Arc::clone(&store));
        let checked = Checked::new(config, bookie, meta, env.clone()).await?;
        // Whoever finds the record reaches the port.
        bookie_node::serve(&mut self.parts, port, self.bookie.clone());
        self.registration = Some(checked.register().await?);
        let collector = Collector::new(self.bookie.clone(), Arc::clone(&store));
        self.parts.spawn("collector", collector.run(self.parts.stopped()));
        // A standalone has nobody who could mend anything.
        let reporter = Reporter::new(self.bookie.clone(), store, env);
        self.parts.spawn("reporter of damage", reporter.run(self.parts.stopped()));
        if let Some(repair) = repair {
            self.parts.spawn("repair", repair.run(self.parts.stopped()));
        }
        Ok(())
    }

    fn set_ready(&self) {
        self.readiness.set(true);
        tracing::info!(
            bookie = %self.bookie.identity().bookie,
            address = self.addresses.bookie,
            metrics = self.addresses.metrics,
            zone = self.zone,
            sync_mode = self.bookie.info().sync_mode.as_str(),
            data_dir = %self.data_dir.display(),
            "geminga bookie serves"
        );
    }

    async fn broken(&mut self) -> anyhow::Error {
        let Some(registration) = &mut self.registration else { return self.parts.broken().await };
        tokio::select! {
            biased;
            error = registration.ended() => error.into(),
            error = self.parts.broken() => error,
        }
    }

    /// # Errors
    /// The log didn't close cleanly; the next start replays it.
    async fn close(mut self) -> anyhow::Result<()> {
        self.readiness.set(false);
        if let Some(registration) = self.registration {
            registration.close().await;
        }
        self.parts.end().await;
        self.bookie.close().await.context("the bookie's log did not close cleanly")
    }
}
