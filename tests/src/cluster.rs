//! A cluster of real processes, run by `scripts/cluster`: etcd, bookies and brokers on loopback or
//! in network namespaces of their own, in a temporary directory, each of which can be killed,
//! frozen, stopped and started by its name (`etcd-1`, `bookie-1`, `broker-1` and so on).
//!
//! *Invariant:* nothing outlives the test, also if it panics or is killed; the log of every broker
//! and bookie is checked at the end.

mod observe;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use geminga_client::Client;
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{Ran, Reached, run_to_its_end};
use crate::{http, standalone};

/// How long a start or stop may take before the scenario fails; never a measurement.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often something is looked at that must come to be.
const LOOK: Duration = Duration::from_millis(5);

/// What a cluster is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Storage nodes.
    pub bookies: u32,
    /// Brokers.
    pub brokers: u32,
    /// Members of etcd: 1 or 3.
    pub etcd_members: u32,
    /// Zones that the bookies are spread over; 0 for none.
    pub zones: u32,
    /// How long the processes' leases last.
    pub leases: Leases,
    /// Settings of all brokers and bookies.
    pub set: Vec<(&'static str, &'static str)>,
    /// Whether each member has a network namespace of its own. This process has to be in the
    /// namespace that `CLUSTER_NETWORK` names.
    pub namespaces: bool,
    /// The bookies' binary, where it isn't everybody's.
    pub bookie_binary: Option<PathBuf>,
}

/// How long the leases of brokers and bookies last: how soon others take a member for lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leases {
    /// A second, so that what is gone is followed soon. A machine whose disk or cores stand still
    /// for a moment is enough for any member to be taken for lost, and logs may say so.
    Short,
    /// Five seconds, as they are by default. Logs may only tell of the loss of what the scenario
    /// has stopped, killed or frozen.
    Long,
}

impl Plan {
    /// With long leases.
    #[must_use]
    pub fn with_long_leases() -> Self {
        Self { leases: Leases::Long, ..Self::default() }
    }
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            bookies: 3,
            brokers: 2,
            etcd_members: 1,
            zones: 0,
            leases: Leases::Short,
            set: Vec::new(),
            namespaces: false,
            bookie_binary: None,
        }
    }
}

/// A running cluster. Dropping it kills what is left of it.
#[derive(Debug)]
pub struct Cluster {
    home: TempDir,
    expected: Vec<(String, &'static str)>,
    allowed: Vec<&'static str>,
    is_down: bool,
}

impl Cluster {
    /// Starts a cluster, and waits until it serves.
    ///
    /// # Panics
    /// When it doesn't come up; the logs are shown.
    #[must_use]
    pub fn up(plan: &Plan) -> Self {
        let mut cluster = Self {
            home: standalone::home(),
            expected: Vec::new(),
            allowed: Vec::new(),
            is_down: false,
        };
        let number = |flag: &str, number: u32| [flag.to_owned(), number.to_string()];
        let mut args = vec!["up".to_owned()];
        args.extend(number("--owner", std::process::id()));
        args.extend(number("--bookies", plan.bookies));
        args.extend(number("--brokers", plan.brokers));
        args.extend(number("--etcd-members", plan.etcd_members));
        args.extend(number("--zones", plan.zones));
        let leases: &[(&str, &str)] = match plan.leases {
            Leases::Short => &[],
            Leases::Long => &[("broker.lease_ttl", "5s"), ("bookie.lease_ttl", "5s")],
        };
        for (key, value) in leases.iter().chain(&plan.set) {
            args.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        if plan.leases == Leases::Short {
            let lost = [observe::BOOKIE_LOST, observe::LEASE_LOST, observe::ETCD_LOST];
            cluster.allowed.extend(lost.concat());
        }
        if plan.namespaces {
            args.push("--namespaces".to_owned());
        }
        let mut command = cluster.script_command(&args);
        if let Some(binary) = &plan.bookie_binary {
            command.env("GEMINGA_BOOKIE_BIN", binary);
        }
        drop(run_to_its_end(command, PATIENCE).ok());
        cluster
    }

    /// Where its logs and data are.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.home.path().join("cluster")
    }

    fn script<S: AsRef<str>>(&self, args: &[S]) -> Ran {
        run_to_its_end(self.script_command(args), PATIENCE)
    }

    fn script_command<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut command = Command::new(root.join("scripts/cluster"));
        command.arg("--dir").arg(self.dir()).args(args.iter().map(AsRef::as_ref));
        command.env("GEMINGA_BIN", crate::binary());
        command
    }

    fn on(&self, command: &str, name: &str) {
        drop(self.script(&[command, name]).ok());
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Panics
    /// When it didn't run.
    pub fn kill(&mut self, name: &str) {
        self.kill_all(&[name]);
    }

    /// SIGKILL to all of these at once.
    ///
    /// # Panics
    /// When one of them didn't run.
    pub fn kill_all(&mut self, names: &[&str]) {
        // The manifest's copies are written one after the other; one that is cut short is mended.
        self.allow_in_log("this copy of the manifest is missing or damaged");
        self.allowed.extend(names.iter().flat_map(|name| observe::gone(name)));
        drop(self.script(&[&["kill"], names].concat()).ok());
    }

    /// SIGTERM, and demands a clean end with exit code 0.
    ///
    /// # Panics
    /// When it didn't run or didn't end well.
    pub fn stop(&mut self, name: &str) {
        self.allowed.extend(observe::gone(name));
        self.on("stop", name);
    }

    /// SIGTERM to a member that can't end well, and demands that it says so by its exit code.
    ///
    /// # Panics
    /// When it didn't run, or ended well.
    pub fn stop_with_failure(&mut self, name: &str) {
        self.allowed.extend(observe::gone(name));
        self.script(&["stop", name]).failed_with(1, &["ended with exit code 1"]);
    }

    /// Starts all of these at once, and waits until they serve.
    ///
    /// # Panics
    /// When one runs already or doesn't come up.
    pub fn start_all(&mut self, names: &[&str]) {
        drop(self.script(&[&["start"], names].concat()).ok());
    }

    /// From now on no packet passes between the ones and the others; `clients` are all that are no
    /// members. For clusters with namespaces.
    ///
    /// # Panics
    /// When there are none.
    pub fn cut(&self, ones: &[&str], others: &[&str]) {
        drop(self.script(&["cut", &ones.join(","), &others.join(",")]).ok());
    }

    /// The same in one direction: from the ones to the others.
    ///
    /// # Panics
    /// As [`Cluster::cut`].
    pub fn cut_one_way(&self, from: &[&str], to: &[&str]) {
        drop(self.script(&["cut", "--one-way", &from.join(","), &to.join(",")]).ok());
    }

    /// Lets all packets pass again.
    ///
    /// # Panics
    /// As [`Cluster::cut`].
    pub fn heal(&self) {
        drop(self.script(&["heal"]).ok());
    }

    /// Starts a member that has ended, or one more, and waits until it serves.
    ///
    /// # Panics
    /// When it runs already or doesn't come up.
    pub fn start(&mut self, name: &str) {
        self.on("start", name);
    }

    /// The same with settings of its own, which it keeps.
    ///
    /// # Panics
    /// When it runs already or doesn't come up.
    pub fn start_with(&mut self, name: &str, set: &[(&str, &str)]) {
        let mut args = vec!["start".to_owned(), name.to_owned()];
        for (key, value) in set {
            args.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        drop(self.script(&args).ok());
    }

    /// Starts a member that must refuse to start, and demands these words of its log.
    ///
    /// # Panics
    /// When it starts, or says something else.
    pub fn refused_start(&mut self, name: &str, set: &[(&str, &str)], words: &[&str]) {
        let mut args = vec!["start".to_owned(), name.to_owned()];
        for (key, value) in set {
            args.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        self.script(&args).failed_with(1, words);
    }

    /// SIGSTOP.
    ///
    /// # Panics
    /// When it didn't run.
    pub fn freeze(&mut self, name: &str) {
        self.allowed.extend(observe::lost(name));
        self.on("freeze", name);
    }

    /// SIGCONT.
    ///
    /// # Panics
    /// When it didn't run.
    pub fn thaw(&mut self, name: &str) {
        self.on("thaw", name);
    }

    /// Stops everything gracefully, and checks every log.
    ///
    /// # Panics
    /// When something doesn't end well, or a log has surprises.
    pub fn down(mut self) {
        drop(self.script(&["down"]).ok());
        self.is_down = true;
        self.check_logs();
    }

    /// What `scripts/cluster status` says, of everything.
    ///
    /// # Panics
    /// When it fails.
    #[must_use]
    pub fn status(&self) -> Value {
        self.script(&["status", "--output", "json"]).ok().json()
    }

    fn members(&self) -> Vec<Value> {
        self.status()["members"].as_array().cloned().unwrap_or_default()
    }

    fn member(&self, name: &str) -> Value {
        let found = self.members().into_iter().find(|member| member["name"] == name);
        found.unwrap_or_else(|| panic!("there is no {name}"))
    }

    fn names(&self, role: &str) -> Vec<String> {
        let members = self.members();
        let names = members.iter().filter_map(|member| member["name"].as_str());
        names.filter(|name| name.starts_with(role)).map(str::to_owned).collect()
    }

    /// The brokers' names, running or not.
    #[must_use]
    pub fn brokers(&self) -> Vec<String> {
        self.names("broker-")
    }

    /// The bookies' names, running or not.
    #[must_use]
    pub fn bookies(&self) -> Vec<String> {
        self.names("bookie-")
    }

    /// Whether it runs; a frozen one doesn't.
    #[must_use]
    pub fn is_running(&self, name: &str) -> bool {
        self.member(name)["state"] == "running"
    }

    /// The code that its last process ended with, if it has ended and wasn't killed.
    #[must_use]
    pub fn exit_code(&self, name: &str) -> Option<i32> {
        self.member(name)["exit_code"].as_i64().and_then(|code| i32::try_from(code).ok())
    }

    /// The number of its process.
    ///
    /// # Panics
    /// When it doesn't run.
    #[must_use]
    pub fn pid(&self, name: &str) -> u32 {
        let pid =
            self.member(name)["pid"].as_u64().unwrap_or_else(|| panic!("{name} is not there"));
        u32::try_from(pid).expect("process ids fit")
    }

    /// Where a member is reached: `grpc` and `admin` of a broker, `bookie` of a bookie, `client` of
    /// an etcd, each as `host:port`.
    ///
    /// # Panics
    /// When it has no such port.
    #[must_use]
    pub fn address(&self, name: &str, port: &str) -> String {
        let member = self.member(name);
        let address = member["addresses"][port].as_str();
        address.unwrap_or_else(|| panic!("{name} has no port {port}")).to_owned()
    }

    /// The URLs of all brokers, separated by commas.
    #[must_use]
    pub fn service_url(&self) -> String {
        self.status()["service_url"].as_str().unwrap_or_default().to_owned()
    }

    /// The URLs of all brokers' admin ports, separated by commas.
    #[must_use]
    pub fn admin_url(&self) -> String {
        self.status()["admin_url"].as_str().unwrap_or_default().to_owned()
    }

    /// etcd's URLs, separated by commas.
    #[must_use]
    pub fn metadata_endpoints(&self) -> String {
        self.status()["metadata_endpoints"].as_str().unwrap_or_default().to_owned()
    }

    /// A client that knows all brokers.
    ///
    /// # Panics
    /// When their addresses are none.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::builder().service_url(self.service_url()).build().expect("good URLs")
    }

    /// The name of the broker that owns a topic of `public/default`, as the lookup of a broker that
    /// runs has it; waits until there is one that runs.
    ///
    /// # Panics
    /// When no broker runs or none ever owns it.
    #[must_use]
    pub fn owner_of(&self, topic: &str) -> String {
        let path = format!("/lookup/v2/topic/persistent/public/default/{topic}");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let brokers: Vec<Value> = self.running("broker-");
            let mut said = String::new();
            for asked in &brokers {
                let admin = asked["addresses"]["admin"].as_str().unwrap_or_default();
                let (status, body) = http::request("GET", admin, &path, "");
                let answer: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
                let url = answer["gemingaUrl"].as_str().unwrap_or_default();
                let is_owner = |broker: &&Value| {
                    let address = broker["addresses"]["grpc"].as_str().unwrap_or_default();
                    url == format!("http://{address}")
                };
                if let Some(owner) = brokers.iter().find(is_owner) {
                    return owner["name"].as_str().unwrap_or_default().to_owned();
                }
                said = format!("{admin} answered {status}: {body}");
            }
            assert!(Instant::now() < deadline, "nobody owns {topic}; {said}");
            std::thread::sleep(LOOK);
        }
    }

    fn running(&self, role: &str) -> Vec<Value> {
        let runs = |member: &Value| {
            member["state"] == "running"
                && member["name"].as_str().is_some_and(|name| name.starts_with(role))
        };
        self.members().into_iter().filter(runs).collect()
    }

    /// What a member has logged in all its runs.
    #[must_use]
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir().join(name).join("log")).unwrap_or_default()
    }

    /// Copies all logs into a directory that stays.
    ///
    /// # Errors
    /// When they can't be written there.
    pub fn keep_logs(&self, to: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(to)?;
        for name in self.everybody() {
            std::fs::write(to.join(format!("{name}.log")), self.log(&name))?;
        }
        Ok(())
    }

    /// Words of a WARN or ERROR line that must be in this member's log when it is checked.
    pub fn expect_in_log(&mut self, name: &str, words: &'static str) {
        self.expected.push((name.to_owned(), words));
    }

    /// Words of WARN or ERROR lines that may be in any log: whether they come is a matter of time.
    pub fn allow_in_log(&mut self, words: &'static str) {
        self.allowed.push(words);
    }

    /// Fails on any WARN, ERROR or panic in a broker's or bookie's log that wasn't announced, and
    /// on an expected line that didn't come.
    ///
    /// # Panics
    /// With the surprising lines, or the missing words.
    pub fn check_logs(&self) {
        let serious = |line: &str| {
            [" WARN ", " ERROR ", "panicked at"].iter().any(|words| line.contains(words))
        };
        let mut surprising = Vec::new();
        for (name, log) in self.logs() {
            let announced = |line: &str| {
                let expected = self.expected.iter().filter(|(of, _)| *of == name);
                let mut known = expected.map(|(_, words)| words).chain(&self.allowed);
                known.any(|words| line.contains(words))
            };
            let lines = log.lines().filter(|line| serious(line));
            let unexpected = lines.filter(|line| !announced(line));
            surprising.extend(unexpected.map(|line| format!("{name}: {line}")));
        }
        assert!(surprising.is_empty(), "unexpected in the logs:\n{}", surprising.join("\n"));
        for (name, words) in &self.expected {
            let log = self.log(name);
            let is_there = log.lines().any(|line| serious(line) && line.contains(words));
            assert!(is_there, "no WARN or ERROR of {name} says {words:?}");
        }
    }

    /// The logs of all brokers and bookies there are. Panics at nothing.
    fn logs(&self) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(self.dir()).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let ours = names.filter(|name| name.starts_with("bookie-") || name.starts_with("broker-"));
        let mut logs: Vec<_> = ours.map(|name| (name.clone(), self.log(&name))).collect();
        logs.sort();
        logs
    }

    /// The end of every log, for a scenario that failed.
    fn show_logs(&self) {
        for (name, log) in self.logs() {
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("-- the log of {name} ends so:\n{}", tail.join("\n"));
        }
    }
}

impl Reached for Cluster {
    fn service_url(&self) -> String {
        Self::service_url(self)
    }

    fn admin_url(&self) -> String {
        Self::admin_url(self)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let has_failed = std::thread::panicking();
        // Not through `script`, whose panics would hide why this one fails.
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        if has_failed && self.dir().join("cluster").exists() {
            self.show_logs();
        }
        let mut command = Command::new(root.join("scripts/cluster"));
        command.arg("--dir").arg(self.dir()).args(["down", "--now"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let ended = command.status();
        if has_failed {
            return;
        }
        assert!(ended.is_ok_and(|status| status.success()), "the cluster can't be ended");
        // Those that were killed have logs like any other.
        if !self.is_down {
            self.check_logs();
        }
    }
}
