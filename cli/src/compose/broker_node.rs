//! [`BrokerNode`]: a broker with its front-ends, the same in a standalone and in a process of its
//! own.

use std::sync::Arc;

use geminga_broker::core::broker::{Broker, StartError};
use geminga_broker::core::config::BrokerConfig;
use geminga_broker::frontend::admin::{self, AdminConfig, AdminState, ClusterIdentity, Readiness};
use geminga_broker::frontend::grpc::{self, GrpcConfig, GrpcQueues, GrpcState};
use geminga_ledger::store::LedgerStore;
use geminga_meta::store::MetadataStore;
use geminga_proto::PROTOCOL;
use geminga_proto::env::Env;
use geminga_proto::id::ClusterId;
use prometheus_client::registry::Registry;

use super::listeners::Port;
use super::parts::Parts;

/// The ports of a broker.
#[derive(Debug)]
pub(super) struct BrokerPorts {
    /// The messaging API.
    pub grpc: Port,
    /// The admin API and metrics.
    pub admin: Port,
}

/// A running broker.
#[derive(Debug)]
pub(super) struct BrokerNode {
    broker: Broker,
    readiness: Readiness,
}

impl BrokerNode {
    /// Starts a broker that tells others these ports. They are served later.
    ///
    /// # Errors
    /// Why it can't start.
    pub async fn start(
        config: BrokerConfig,
        ports: &BrokerPorts,
        env: Env,
        metadata: Arc<dyn MetadataStore>,
        ledgers: LedgerStore,
    ) -> Result<Self, StartError> {
        let (service_url, admin_url) = (ports.grpc.url(), ports.admin.url());
        let place = ports.grpc.place().unwrap_or_default();
        let config = BrokerConfig { service_url, admin_url, place, ..config };
        let broker = Broker::start(config, env, metadata, ledgers).await?;
        Ok(Self { broker, readiness: Readiness::default() })
    }

    /// Whether everything serves.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Serves the ports. `registry` holds what is scraped beside the broker's own figures.
    pub fn serve(
        &self,
        parts: &mut Parts,
        ports: BrokerPorts,
        (name, id): (&str, ClusterId),
        registry: Registry,
    ) {
        let identity = ClusterIdentity {
            name: name.to_owned(),
            id: id.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
        };
        let queues = GrpcQueues::default();
        let shown = queues.clone();
        let state =
            AdminState::new(self.broker.clone(), identity, self.readiness.clone(), registry)
                .with_queues(move || shown.stats());
        let admin = ports.admin.listener;
        let admin = admin::serve(admin, AdminConfig::default(), state, parts.stopped());
        parts.spawn("admin API", admin);
        let state = GrpcState { broker: self.broker.clone(), cluster_id: id, queues };
        let grpc = ports.grpc.listener;
        let grpc = grpc::serve(grpc, GrpcConfig::default(), state, parts.stopped());
        parts.spawn("messaging API", async {
            if let Err(error) = grpc.await {
                tracing::error!(%error, "the messaging port failed");
            }
        });
    }

    /// Says on `/readyz` that everything serves.
    pub fn set_ready(&self) {
        self.readiness.set(true);
    }

    /// Is not ready any more, for the reason given, and gives everything up without asking the
    /// metadata.
    pub fn abandon(&self, why: &str) {
        tracing::error!("{why}");
        self.readiness.refuse(why);
        self.broker.abandon();
    }

    /// Is not ready any more; closes ledgers and state logs, gives up ownership, and tells clients.
    pub async fn shutdown(&self) {
        self.readiness.set(false);
        self.broker.shutdown().await;
    }
}
