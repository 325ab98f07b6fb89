//! What scenarios look at in a cluster: records, owners, writes to etcd, memory; and what its logs
//! may say when members are lost.
//!
//! What a scenario proves is judged by its load and not by these lines.

use serde_json::Value;

use super::Cluster;
use crate::{cli, http, standalone};

/// What others say when a member with this name has ended. Nobody misses a broker: another one has
/// its bundles.
pub(super) fn gone(name: &str) -> &'static [&'static str] {
    match name.split('-').next() {
        Some("bookie") => BOOKIE_LOST,
        Some("etcd") => ETCD_LOST,
        _ => &[],
    }
}

/// What a member with this name and others say when others have taken it for lost.
pub(super) fn lost(name: &str) -> &'static [&'static str] {
    if name.starts_with("broker") { LEASE_LOST } else { gone(name) }
}

/// A bookie is away.
pub(super) const BOOKIE_LOST: &[&str] = &[
    "a bookie can't be reached",
    "a ledger has stalled",
    "state log stalled",
    "read failed",
    "a ledger has failed",
    "a ledger is left to recovery",
    "state log ledger failed",
];

/// A broker lives whose lease is over.
pub(super) const LEASE_LOST: &[&str] = &[
    "the bundle is not this broker's any more",
    "topic given up",
    "a ledger has failed",
    "a ledger is left to recovery",
    "state log ledger failed",
    "state log task failed",
    "the state log has ended",
    "the state log is left to recovery",
    "left to recovery",
    "the broker's lease is lost",
    "ownership ends with the lease",
    "the session ends with its lease",
    "other brokers don't know of the shutdown",
];

/// etcd, or the member of it that was asked, is away.
pub(super) const ETCD_LOST: &[&str] = &[
    "other brokers don't know of the shutdown",
    "etcd is out of reach",
    "etcd can't be reached yet",
    "the metadata store doesn't answer",
    "metadata can't be read",
    "the watch of namespaces was lost",
    "namespaces can't be watched",
    "the owner can't be looked up",
    "whose it is is unknown",
    "a ledger's record may have been written",
    "a ledger's record can't be read",
    "a ledger's record can't be written",
];

impl Cluster {
    /// The names of all members, etcd first, running or not.
    #[must_use]
    pub fn everybody(&self) -> Vec<String> {
        self.names("")
    }

    /// The records below a prefix, as `geminga admin meta dump` shows them.
    ///
    /// # Panics
    /// When they can't be read.
    #[must_use]
    pub fn records(&self, prefix: &str) -> Vec<Value> {
        let url = self.admin_url();
        let args = ["admin", "--admin-url", &url, "meta", "dump", "--prefix", prefix];
        let dumped = cli::run(&args).ok();
        let lines = String::from_utf8_lossy(&dumped.stdout).into_owned();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("a JSON object a line"))
            .collect()
    }

    /// Transactions that etcd has applied which wrote something, in its present run.
    ///
    /// # Panics
    /// When it doesn't say.
    #[must_use]
    pub fn etcd_writes(&self) -> u64 {
        let metrics = http::get(&self.address("etcd-1", "client"), "/metrics");
        let name = "etcd_debugging_mvcc_current_revision ";
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)).expect("a revision");
        line.trim().parse::<f64>().expect("a number") as u64
    }

    /// The most resident memory that a member's process has had, in bytes.
    ///
    /// # Panics
    /// When it doesn't run.
    #[must_use]
    pub fn peak_resident_bytes(&self, name: &str) -> u64 {
        standalone::peak_resident_bytes(self.pid(name))
    }

    /// The name of the broker that owns a topic of `public/default`, as the broker `asked` has it;
    /// `None` if it doesn't answer or knows none.
    #[must_use]
    pub fn owner_by(&self, asked: &str, topic: &str) -> Option<String> {
        let path = format!("/lookup/v2/topic/persistent/public/default/{topic}");
        let (_, body) = http::request("GET", &self.address(asked, "admin"), &path, "");
        let answer: Value = serde_json::from_str(&body).ok()?;
        let url = answer["gemingaUrl"].as_str()?;
        let is_owner = |name: &String| url == format!("http://{}", self.address(name, "grpc"));
        self.brokers().into_iter().find(is_owner)
    }
}
