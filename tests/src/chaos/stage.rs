//! The cluster that is broken: four bookies, one of them on a small disk if the machine permits
//! that, two brokers and three members of etcd. All have network namespaces of their own; where the
//! machine doesn't permit that, every broker and bookie reaches etcd through relays of its own, and
//! is reached through others: it advertises an address of loopback where only these listen.

mod network;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use self::network::Relays;
use super::Settings;
use super::plan::{BOOKIES, BROKERS, ETCD, ON_SMALL_DISK};
use crate::cli::{self, Ran};
use crate::cluster::{Cluster, Plan};
use crate::disk::SmallDisk;
use crate::relay::Relay;
pub use network::Network;

/// How long something may take to come about that must; never a measurement.
const PATIENCE: Duration = Duration::from_secs(180);
/// Messages that fill some segments on each bookie, which are then sealed.
const KEPT_AT_ONCE: usize = 24_000;
/// The topic that they are in.
const KEPT_IN: &str = "kept";

/// Another address of loopback than the one that servers listen on: Linux has them all.
const ADVERTISED: &str = "127.0.0.2";

/// Settings under which everything that takes hours happens in minutes: small segments and
/// ledgers, and short waits before repair.
const SETTINGS: [(&str, &str); 9] = [
    ("repair.grace_period", "10s"),
    ("repair.scan_interval", "1s"),
    ("repair.lease_ttl", "5s"),
    ("broker.ledger_idle_close", "2s"),
    ("broker.ledger_max_bytes", "1MiB"),
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
    /// What is between the members.
    pub network: Network,
    /// Messages that stay, beside the load's.
    kept: usize,
    /// How often they were read.
    read: usize,
}

impl Stage {
    /// Starts it. The small disk has room for what a run of this length leaves on it.
    ///
    /// # Panics
    /// When it doesn't come up.
    pub async fn set(settings: &Settings) -> Self {
        let plan = Plan {
            bookies: BOOKIES.len() as u32 - 1,
            etcd_members: ETCD.len() as u32,
            set: SETTINGS.to_vec(),
            namespaces: settings.namespaces,
            bookie_binary: settings.faulty_binary.clone(),
            ..Plan::with_long_leases()
        };
        let mut cluster = super::block(|| Cluster::up(&plan));
        // What is broken on purpose has much to say. Only panics would be a surprise.
        cluster.allow_in_log(" WARN ");
        cluster.allow_in_log(" ERROR ");
        let bytes = (256 << 20) + (64 << 20) * settings.length.as_secs() / 60;
        let disk = super::block(|| SmallDisk::mount(bytes));
        if let Some(disk) = &disk {
            let home = cluster.dir().join(ON_SMALL_DISK);
            std::fs::create_dir_all(&home).expect("the cluster has a directory");
            disk.hold_data_of(&home);
        }
        let network = if settings.namespaces {
            super::block(|| cluster.start(ON_SMALL_DISK));
            Network::Namespaces
        } else {
            let mut relays = BTreeMap::new();
            for name in BOOKIES.into_iter().chain(BROKERS) {
                relays.insert(name, start_behind_relays(&mut cluster, name).await);
            }
            Network::Relays(relays)
        };
        let mut stage = Self { cluster, disk, network, kept: 0, read: 0 };
        super::block(|| {
            // What every subscription has acknowledged is deleted; this one acknowledges nothing.
            drop(stage.admin(&["topics", "create", KEPT_IN]).ok());
            drop(stage.admin(&["subscriptions", "create", KEPT_IN, "-s", "keeper"]).ok());
            stage.keep();
        });
        stage
    }

    /// Where a bookie's data are.
    #[must_use]
    pub fn data_of(&self, bookie: &str) -> PathBuf {
        self.cluster.dir().join(bookie).join("data")
    }

    /// Where a bookie of a build for tests reads what its disk fails at.
    #[must_use]
    pub fn faults_of(&self, bookie: &str) -> PathBuf {
        self.data_of(bookie).join("faults")
    }

    /// Runs an admin command.
    #[must_use]
    pub fn admin(&self, args: &[&str]) -> Ran {
        cli::against(&self.cluster, &[&["admin"], args].concat())
    }

    /// Whether a bookie is known to be in this state, like `writable`.
    #[must_use]
    pub fn is_listed(&self, bookie: &str, state: &str) -> bool {
        let listed = self.admin(&["bookies", "list"]).stdout;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let mut rows = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.any(|row| row.first() == Some(&bookie) && row.contains(&state))
    }

    /// Gives all bundles out anew, so that every ledger that was open is closed.
    ///
    /// # Errors
    /// When that fails.
    pub fn give_out_bundles(&self) -> Result<(), String> {
        let unloaded = self.admin(&["bundles", "unload", "public/default", "--all"]);
        if unloaded.code == Some(0) {
            return Ok(());
        }
        Err(format!("bundles can't be given out anew: {}", unloaded.stderr))
    }

    /// Publishes messages that stay, enough to fill some segments.
    ///
    /// # Panics
    /// When that fails.
    pub fn keep(&mut self) {
        let line = |number: usize| format!("{KEPT_IN} {number:06}{:900}\n", "");
        let lines: Vec<String> = (self.kept..self.kept + KEPT_AT_ONCE).map(line).collect();
        let produce = ["produce", KEPT_IN];
        drop(cli::against_with_input(&self.cluster, &produce, lines.concat().as_bytes()).ok());
        self.kept += KEPT_AT_ONCE;
    }

    /// Reads back what [`Stage::keep`] has published: how many messages are missing, or come after
    /// later ones.
    ///
    /// # Panics
    /// When they can't be read.
    #[must_use]
    pub fn missing_of_kept(&mut self) -> u64 {
        // Of its own each time: the next one reads all of it, too.
        self.read += 1;
        let late = format!("late-{}", self.read);
        let args = ["consume", KEPT_IN, "-s", &late, "--from", "earliest", "--until-caught-up"];
        let command = cli::client(&self.cluster, &args);
        let ran = crate::cli::run_to_its_end(command, PATIENCE).ok();
        let text = String::from_utf8_lossy(&ran.stdout);
        // One that had to be sent again may be there twice; its first place counts.
        let (mut next, mut missing) = (0, 0);
        for line in text.lines() {
            let number = line.strip_prefix(KEPT_IN).map(|rest| rest.trim().parse::<usize>());
            let Some(Ok(number)) = number else { panic!("a message that nobody sent: {line}") };
            if number >= next {
                missing += number - next;
                next = number + 1;
            }
        }
        (missing + self.kept - next) as u64
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

    /// What is not as it should be: problems of the cluster, else ledgers that wait for repair.
    fn problems(&self) -> Option<String> {
        let text = |ran: Ran| {
            let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), ran.stderr);
            (ran.code != Some(0) || !said.is_empty()).then_some(said)
        };
        let status = self.admin(&["cluster", "status"]);
        if status.code == Some(0) {
            text(self.admin(&["meta", "dump", "--prefix", "repairs/"]))
        } else {
            text(status)
        }
    }

    /// Waits until everything is up, and every copy is where it should be.
    ///
    /// # Errors
    /// When that doesn't come about, with what the status says then.
    pub fn settle(&self) -> Result<(), String> {
        let mut last = None;
        let settled = self.until("the cluster is healthy", |stage| {
            last = stage.problems();
            last.is_none()
        });
        settled.map_err(|why| format!("{why}: {}", last.unwrap_or_default()))
    }

    /// Has every copy of every closed ledger read and compared: how many ledgers there are, and
    /// which of them aren't whole.
    ///
    /// # Panics
    /// When they can't be listed.
    #[must_use]
    pub fn check_copies(&self) -> (u64, Vec<String>) {
        let (mut checked, mut broken) = (0, Vec::new());
        for ledger in self.cluster.records("ledgers/") {
            let hex = ledger["key"].as_str().and_then(|key| key.rsplit_once('/'));
            let id = hex.and_then(|(_, hex)| u64::from_str_radix(hex, 16).ok()).expect("a number");
            if ledger["record"]["state"] != "closed" {
                continue;
            }
            let ran = self.admin(&["ledgers", "check", &id.to_string()]);
            // Deleted meanwhile.
            if ran.code == Some(1) && ran.stderr.contains("does not exist") {
                continue;
            }
            checked += 1;
            if ran.code != Some(0) {
                let shown = String::from_utf8_lossy(&ran.stdout);
                broken.push(format!("ledger {id} isn't whole: {shown} {}", ran.stderr));
            }
        }
        (checked, broken)
    }

    /// Ends whatever a fault that went wrong has left behind.
    pub fn mend(&mut self) {
        if let Err(why) = super::attempt(|| self.network.heal(&self.cluster)) {
            eprintln!("chaos: the network isn't whole again: {why}");
        }
        for name in BOOKIES {
            if std::fs::remove_file(self.faults_of(name)).is_ok() && self.cluster.is_running(name) {
                // It may have become read-only for good.
                self.cluster.kill(name);
            }
        }
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

/// Starts a member anew, so that it reaches etcd and is reached through relays.
async fn start_behind_relays(cluster: &mut Cluster, name: &'static str) -> Relays {
    let mut relays = Relays::default();
    for member in ETCD {
        let etcd = super::block(|| cluster.address(member, "client"));
        relays.to_etcd.push(Relay::start(etcd).await);
    }
    let endpoints = relays.to_etcd.iter().map(|relay| format!("http://{}", relay.address()));
    let endpoints = endpoints.collect::<Vec<_>>().join(",");
    let set = [("metadata.endpoints", endpoints.as_str()), ("advertised_address", ADVERTISED)];
    super::block(|| {
        if name != ON_SMALL_DISK {
            cluster.stop(name);
        }
        cluster.start_with(name, &set);
    });
    let kinds: &[&str] = if BROKERS.contains(&name) { &["grpc", "admin"] } else { &["bookie"] };
    for kind in kinds {
        let real = super::block(|| cluster.address(name, kind));
        let (_, port) = real.rsplit_once(':').expect("an address has a port");
        let listen = format!("{ADVERTISED}:{port}");
        relays.to_it.push(Relay::start_at(&listen, real.clone()).await);
    }
    relays
}
