//! The admin front-end: REST with Pulsar's paths, bodies and status codes below `/admin/v2`,
//! Geminga's own below `/admin/v2/geminga`, and `/lookup/v2`, `/metrics`, `/readyz`, `/livez`.
//!
//! It decodes a request, calls the core and encodes the answer; it keeps no state of its own.
//! It refuses what isn't built with an error that names it, never with an empty success. Errors
//! are `{"reason": "…"}`. `Authorization` is not looked at: there is no authentication yet, and
//! Pulsar's clients send the header anyway. docs/ADMIN_API.md lists every path.

mod brokers;
mod bundles;
mod cluster;
mod config;
mod error;
mod extract;
mod geminga;
mod guard;
mod lookup;
mod message_id;
mod metrics;
mod namespaces;
mod not_built;
mod queues;
mod redirect;
mod repair;
mod routes;
mod server;
mod stats;
mod subscriptions;
mod tenants;
mod topics;

use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use geminga_proto::id::ClusterId;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

pub use crate::frontend::admin::config::AdminConfig;
pub use crate::frontend::admin::error::ApiError;
pub use crate::frontend::admin::routes::router;

use crate::core::broker::Broker;
use crate::core::stats::QueueStats;
use crate::frontend::admin::queues::OtherQueues;

/// Who this is, as the composition root knows it.
#[derive(Debug, Clone)]
pub struct ClusterIdentity {
    /// The cluster's name in Pulsar's sense: what tenants and namespaces are allowed in.
    pub name: String,
    /// The cluster's random id.
    pub id: ClusterId,
    /// Geminga's release.
    pub release: String,
    /// Versions of the gRPC protocol that this release speaks.
    pub protocol: RangeInclusive<u32>,
}

/// Whether everything serves. Clones are the same flag.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Ready>);

#[derive(Default)]
struct Ready {
    said: AtomicBool,
    /// Why it never will again.
    refused: OnceLock<String>,
    /// Asked each time: why it isn't.
    asked: OnceLock<Asked>,
}

type Asked = Box<dyn Fn() -> Option<String> + Send + Sync>;

impl std::fmt::Debug for Ready {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = out.debug_struct("Ready");
        shown.field("said", &self.said).field("refused", &self.refused).finish_non_exhaustive()
    }
}

impl Readiness {
    /// Says so; set by the composition root alone.
    pub fn set(&self, ready: bool) {
        self.0.said.store(ready, Ordering::Release);
    }

    /// It isn't, and won't be any more; the first reason stays.
    pub fn refuse(&self, why: &str) {
        self.0.refused.get_or_init(|| why.to_owned());
    }

    /// Has this asked each time, for as long as everything else is well. The first one stays.
    pub fn ask(&self, why_not: impl Fn() -> Option<String> + Send + Sync + 'static) {
        self.0.asked.get_or_init(|| Box::new(why_not));
    }

    /// Whether it is.
    #[must_use]
    pub fn get(&self) -> bool {
        self.why_not().is_none()
    }

    /// Why it isn't ready, if it is not.
    #[must_use]
    pub fn why_not(&self) -> Option<String> {
        if let Some(why) = self.0.refused.get() {
            return Some(why.clone());
        }
        if !self.0.said.load(Ordering::Acquire) {
            return Some("not ready".to_owned());
        }
        self.0.asked.get().and_then(|asked| asked())
    }
}

/// What the handlers work with. Clones share everything.
#[derive(Debug, Clone)]
pub struct AdminState {
    broker: Broker,
    identity: Arc<ClusterIdentity>,
    readiness: Readiness,
    registry: Arc<Registry>,
    other_queues: OtherQueues,
}

impl AdminState {
    /// State over a running broker. `registry` holds what the composition root wants to be
    /// scraped beside what this front-end adds.
    #[must_use]
    pub fn new(
        broker: Broker,
        identity: ClusterIdentity,
        readiness: Readiness,
        mut registry: Registry,
    ) -> Self {
        let other_queues = OtherQueues::default();
        metrics::register(&mut registry, broker.clone(), other_queues.clone());
        let (identity, registry) = (Arc::new(identity), Arc::new(registry));
        Self { broker, identity, readiness, registry, other_queues }
    }

    /// Shows these queues beside the core's: those of front-ends that this one doesn't know.
    #[must_use]
    pub fn with_queues(self, source: impl Fn() -> Vec<QueueStats> + Send + Sync + 'static) -> Self {
        self.other_queues.set(source);
        self
    }
}

/// Serves the admin port until `shutdown` is done. Returns when every connection is closed, or
/// after the grace that `config` gives them.
pub async fn serve(
    listener: TcpListener,
    config: AdminConfig,
    state: AdminState,
    shutdown: impl Future<Output = ()>,
) {
    let router = router(state, &config);
    server::run(listener, &config, router, shutdown).await;
}

#[cfg(test)]
mod tests;
