//! The cluster that is broken: four bookies, one of them on a small disk if the machine permits
//! that, two brokers and etcd, which all others reach through a relay each.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::plan::{BOOKIES, BROKERS, ON_SMALL_DISK};
use crate::cli::{self, Ran};
use crate::cluster::{Cluster, Plan};
use crate::disk::SmallDisk;
use crate::relay::Relay;

/// How long something may take to come about that must; never a measurement.
const PATIENCE: Duration = Duration::from_secs(180);
/// Messages that are there before anything breaks, in segments that are soon sealed.
const KEPT: usize = 24_000;
/// The topic that they are in.
const KEPT_IN: &str = "kept";

/// Settings under which everything that takes hours happens in minutes: small segments and
/// ledgers, and short waits before repair.
const SETTINGS: [(&str, &str); 9] = [
    ("repair.grace_period", "10s"),
    ("repair.scan_interval", "1s"),
    ("repair.lease_ttl", "5s"),
    ("broker.ledger_idle_close", "2s"),
    ("broker.ledger_max_bytes", "4MiB"),
    ("broker.housekeeping_interval", "1s"),
    ("bookie.first_segment_bytes", "8MiB"),
    ("bookie.segment_bytes", "8MiB"),
    ("broker.memory_budget_bytes", "128MiB"),
];

/// A cluster with all that is needed to break it.
#[derive(Debug)]
pub struct Stage {
    /// The processes.
    pub cluster: Cluster,
    /// The disk of [`ON_SMALL_DISK`]; `None` where mounting isn't permitted. It outlives the
    /// cluster, since fields are dropped in order.
    pub disk: Option<SmallDisk>,
    /// Between each broker or bookie and etcd.
    relays: Vec<(&'static str, Relay)>,
}

impl Stage {
    /// Starts it. The small disk has room for what a run of this length leaves on it.
    ///
    /// # Panics
    /// When it doesn't come up.
    pub async fn set(length: Duration) -> Self {
        let bookies = BOOKIES.len() as u32 - 1;
        let plan = Plan { bookies, set: SETTINGS.to_vec(), ..Plan::with_long_leases() };
        let mut cluster = super::block(|| Cluster::up(&plan));
        // What is broken on purpose has much to say. Only panics would be a surprise.
        cluster.allow_in_log(" WARN ");
        cluster.allow_in_log(" ERROR ");
        let bytes = (256 << 20) + (64 << 20) * length.as_secs() / 60;
        let disk = super::block(|| SmallDisk::mount(bytes));
        if let Some(disk) = &disk {
            let home = cluster.dir().join(ON_SMALL_DISK);
            std::fs::create_dir_all(&home).expect("the cluster has a directory");
            disk.hold_data_of(&home);
        }
        let mut stage = Self { cluster, disk, relays: Vec::new() };
        let etcd = super::block(|| stage.cluster.address("etcd-1", "client"));
        for name in BOOKIES.into_iter().chain(BROKERS) {
            let relay = Relay::start(etcd.clone()).await;
            let endpoint = format!("http://{}", relay.address());
            super::block(|| {
                if name != ON_SMALL_DISK {
                    stage.cluster.stop(name);
                }
                stage.cluster.start_with(name, &[("metadata.endpoints", &endpoint)]);
            });
            stage.relays.push((name, relay));
        }
        super::block(|| stage.keep());
        stage
    }

    /// The relay between a member and etcd.
    ///
    /// # Panics
    /// When it has none.
    #[must_use]
    pub fn relay(&self, name: &str) -> &Relay {
        let found = self.relays.iter().find(|(of, _)| *of == name);
        &found.unwrap_or_else(|| panic!("{name} has no relay")).1
    }

    /// Runs an admin command.
    #[must_use]
    pub fn admin(&self, args: &[&str]) -> Ran {
        cli::against(&self.cluster, &[&["admin"], args].concat())
    }

    fn keep(&self) {
        let line = |number: usize| format!("{}{:900}\n", kept(number), "");
        let lines: Vec<String> = (0..KEPT).map(line).collect();
        let produce = ["produce", KEPT_IN];
        drop(cli::against_with_input(&self.cluster, &produce, lines.concat().as_bytes()).ok());
    }

    /// Reads back what was there before anything broke: how many messages are missing, or not in
    /// their place.
    ///
    /// # Panics
    /// When they can't be read.
    #[must_use]
    pub fn missing_of_kept(&self) -> u64 {
        let args = ["consume", KEPT_IN, "-s", "late", "--from", "earliest", "--until-caught-up"];
        let command = cli::client(&self.cluster, &args);
        let ran = crate::cli::run_to_its_end(command, PATIENCE).ok();
        let text = String::from_utf8_lossy(&ran.stdout);
        let mut lines = text.lines();
        let is_missing =
            |number: &usize| lines.next().is_none_or(|line| line.trim_end() != kept(*number));
        (0..KEPT).filter(is_missing).count() as u64
    }

    /// Waits until this holds.
    ///
    /// # Errors
    /// When it doesn't come about, with what was waited for.
    pub fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            if Instant::now() > deadline {
                return Err(format!(
                    "in {} s it didn't come about that {what}",
                    PATIENCE.as_secs()
                ));
            }
            std::thread::sleep(Duration::from_millis(250));
        }
        Ok(())
    }

    /// Whether everything is up, and nothing lacks copies.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let waiting = |ran: &Ran| ran.code != Some(0) || !ran.stdout.is_empty();
        self.admin(&["cluster", "status"]).code == Some(0)
            && !waiting(&self.admin(&["meta", "dump", "--prefix", "repairs/"]))
    }

    /// Waits until every copy that should be there is.
    ///
    /// # Errors
    /// When that doesn't come about, with what the status says then.
    pub fn settle(&self) -> Result<(), String> {
        self.until("the cluster is healthy", Self::is_healthy).map_err(|why| {
            let said = self.admin(&["cluster", "status", "--output", "json"]);
            format!("{why}: {} {}", String::from_utf8_lossy(&said.stdout), said.stderr)
        })
    }

    /// Ends whatever a fault that went wrong has left behind.
    pub fn mend(&mut self) {
        self.relays.iter().for_each(|(_, relay)| relay.heal());
        if let Some(disk) = self.disk.as_ref().filter(|disk| disk.is_filled()) {
            disk.free();
        }
        let status = super::attempt(|| self.cluster.status()).unwrap_or(Value::Null);
        for member in status["members"].as_array().into_iter().flatten() {
            let name = member["name"].as_str().unwrap_or_default();
            let mended = match member["state"].as_str() {
                Some("running") => Ok(()),
                Some("frozen") => super::attempt(|| self.cluster.thaw(name)),
                _ => super::attempt(|| self.cluster.start(name)),
            };
            if let Err(why) = mended {
                eprintln!("chaos: {name} doesn't come back: {why}");
            }
        }
    }
}

fn kept(number: usize) -> String {
    format!("kept {number:06}")
}
