//! [`MetadataHealth`]: whether the metadata store answers, as this broker has found it last.
//!
//! The session's keep-alives tell, and whoever else meets it. It is logged once when the store
//! stops answering and once when it answers again: whatever fails in between has that one cause.

use std::fmt::Display;

use geminga_proto::env::Env;
use parking_lot::Mutex;

/// A time without answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// Since when, by the wall clock.
    pub since_ms: u64,
    /// What was heard first.
    pub why: String,
}

/// Whether the metadata store answers.
#[derive(Debug, Default)]
pub struct MetadataHealth {
    outage: Mutex<Option<Outage>>,
}

impl MetadataHealth {
    /// The outage, while there is one.
    #[must_use]
    pub fn outage(&self) -> Option<Outage> {
        self.outage.lock().clone()
    }

    /// True while the store doesn't answer.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.outage.lock().is_some()
    }

    /// It didn't answer.
    pub fn failed(&self, env: &Env, why: &dyn Display) {
        let mut outage = self.outage.lock();
        if outage.is_none() {
            tracing::warn!(
                error = %why,
                "the metadata store doesn't answer; open ledgers go on, and nothing is taken over, \
                 rolled, trimmed or deleted until it does"
            );
            *outage = Some(Outage { since_ms: env.clock.wall_ms(), why: why.to_string() });
        }
    }

    /// It answered a keep-alive.
    pub fn answered(&self, env: &Env) {
        if let Some(outage) = self.outage.lock().take() {
            let away_ms = env.clock.wall_ms().saturating_sub(outage.since_ms);
            tracing::info!(away_ms, "the metadata store answers again");
        }
    }
}
