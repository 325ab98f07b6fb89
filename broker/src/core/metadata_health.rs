//! [`MetadataHealth`]: whether the metadata store answers, as this broker has found it last.
//!
//! The session's keep-alives tell, and whoever else meets it. It is logged once when the store
//! stops answering and once when it answers again: whatever fails in between has that one cause.
//! (That it is out of reach is the store's own warning.)

use std::fmt::Display;

use geminga_proto::env::Env;
use tokio::sync::watch;

/// A time without answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// Since when, by the wall clock.
    pub since_ms: u64,
    /// What was heard first.
    pub why: String,
}

/// Whether the metadata store answers.
#[derive(Debug)]
pub struct MetadataHealth {
    outage: watch::Sender<Option<Outage>>,
}

impl Default for MetadataHealth {
    fn default() -> Self {
        Self { outage: watch::Sender::new(None) }
    }
}

impl MetadataHealth {
    /// The outage, while there is one.
    #[must_use]
    pub fn outage(&self) -> Option<Outage> {
        self.outage.borrow().clone()
    }

    /// True while the store doesn't answer.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.outage.borrow().is_some()
    }

    /// Hears when an outage begins or ends.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<Outage>> {
        self.outage.subscribe()
    }

    /// It didn't answer.
    pub fn failed(&self, env: &Env, why: &dyn Display) {
        self.outage.send_if_modified(|outage| {
            if outage.is_some() {
                return false;
            }
            tracing::info!(
                error = %why,
                "the metadata store doesn't answer; open ledgers go on, and nothing is taken over, \
                 rolled, trimmed or deleted until it does"
            );
            *outage = Some(Outage { since_ms: env.clock.wall_ms(), why: why.to_string() });
            true
        });
    }

    /// It answered a keep-alive.
    pub fn answered(&self, env: &Env) {
        self.outage.send_if_modified(|outage| {
            let Some(outage) = outage.take() else { return false };
            let away_ms = env.clock.wall_ms().saturating_sub(outage.since_ms);
            tracing::info!(away_ms, "the metadata store answers again");
            true
        });
    }
}
