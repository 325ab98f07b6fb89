//! Real etcd processes on loopback: one member or several, that can be killed, stopped, frozen,
//! and started again on the data they had.
//!
//! *Invariant:* members listen on loopback only, on ports that were free, and keep their data in
//! the scenario's directory; dropping [`Etcd`] kills them.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// How long a start may take before the scenario fails; never a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

/// How etcd is run.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// Members of the cluster.
    pub members: usize,
    /// Between two heartbeats of the leader.
    pub heartbeat_ms: u64,
    /// After how long without one a leader is elected. A lease lasts at least one and a half
    /// times that, in whole seconds.
    pub election_ms: u64,
    /// How much history is kept, for example `10m` or `1000`; `None`: all.
    pub auto_compaction: Option<String>,
    /// Size at which the store is full; `None`: etcd's default.
    pub quota_bytes: Option<u64>,
    /// Certificates for clients' connections; `None`: plain text.
    pub tls: Option<EtcdTlsFiles>,
    /// etcd's cluster id follows from this, the members' names and their addresses.
    pub token: String,
}

impl Default for EtcdOptions {
    /// One member with leases from 1 s on.
    fn default() -> Self {
        Self {
            members: 1,
            heartbeat_ms: 20,
            election_ms: 200,
            auto_compaction: None,
            quota_bytes: None,
            tls: None,
            token: "geminga".to_owned(),
        }
    }
}

/// PEM files.
#[derive(Debug, Clone)]
pub struct EtcdTlsFiles {
    /// The members' certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs clients' certificates; `None`: clients need none.
    pub client_ca: Option<PathBuf>,
}

#[derive(Debug)]
struct Member {
    client_port: u16,
    peer_port: u16,
    metrics_port: u16,
    child: Option<Child>,
}

/// A cluster of etcd.
#[derive(Debug)]
pub struct Etcd {
    home: PathBuf,
    options: EtcdOptions,
    members: Vec<Member>,
}

impl Etcd {
    /// Starts one member with its data below `home`, and waits until it serves.
    ///
    /// # Panics
    /// When it doesn't come up.
    #[must_use]
    pub fn start(home: &Path) -> Self {
        Self::start_with(home, &EtcdOptions::default())
    }

    /// The same with options.
    ///
    /// # Panics
    /// When it doesn't come up.
    #[must_use]
    pub fn start_with(home: &Path, options: &EtcdOptions) -> Self {
        // Somebody else may take a port between its choice and its use.
        for _ in 0..5 {
            let ports = free_ports(3 * options.members);
            let member = |ports: &[u16]| Member {
                client_port: ports[0],
                peer_port: ports[1],
                metrics_port: ports[2],
                child: None,
            };
            let members = ports.chunks(3).map(member).collect();
            let mut etcd = Self { home: home.to_owned(), options: options.clone(), members };
            for index in 0..options.members {
                etcd.spawn(index);
            }
            if (0..options.members).all(|index| etcd.wait_healthy(index)) {
                return etcd;
            }
            assert!(etcd.address_was_taken(), "etcd did not come up:\n{}", etcd.logs());
            drop(etcd);
            std::fs::remove_dir_all(home).expect("a failed start can be cleared away");
            std::fs::create_dir_all(home).expect("the directory can be made again");
        }
        panic!("no free ports were found for etcd");
    }

    /// How many members there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// A member's URL for clients.
    #[must_use]
    pub fn url(&self, index: usize) -> String {
        let scheme = if self.options.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.members[index].client_port)
    }

    /// All members' URLs for clients.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        (0..self.count()).map(|index| self.url(index)).collect()
    }

    /// A member's data directory.
    #[must_use]
    pub fn data_dir(&self, index: usize) -> PathBuf {
        self.home.join(format!("etcd-{index}"))
    }

    /// The members' logs.
    #[must_use]
    pub fn logs(&self) -> String {
        let log = |index| std::fs::read_to_string(self.log_path(index)).unwrap_or_default();
        (0..self.count()).map(log).collect::<Vec<_>>().join("\n")
    }

    /// Which member leads.
    ///
    /// # Panics
    /// When none is elected in time.
    #[must_use]
    pub fn leader(&self) -> usize {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let leads = |index: &usize| {
                let metrics = self.http(*index, "/metrics").unwrap_or_default();
                metrics.lines().any(|line| line == "etcd_server_is_leader 1")
            };
            if let Some(index) = (0..self.count()).find(leads) {
                return index;
            }
            assert!(Instant::now() < deadline, "no leader was elected:\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Panics
    /// When it wasn't running.
    pub fn kill(&mut self, index: usize) {
        let mut child = self.members[index].child.take().expect("the member runs");
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be waited for");
    }

    /// SIGTERM, and waits until it is gone.
    ///
    /// # Panics
    /// When it wasn't running.
    pub fn stop(&mut self, index: usize) {
        self.signal(index, Signal::TERM);
        let mut child = self.members[index].child.take().expect("the member runs");
        child.wait().expect("a child can be waited for");
    }

    /// Starts a member again, on its ports and its data.
    ///
    /// # Panics
    /// When it runs already or doesn't come up.
    pub fn restart(&mut self, index: usize) {
        assert!(self.members[index].child.is_none(), "kill or stop it first");
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.spawn(index);
            if self.wait_healthy(index) {
                return;
            }
            // A connection of somebody else's may have had the port for a moment.
            let again = self.address_was_taken() && Instant::now() < deadline;
            assert!(again, "etcd did not come up again:\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Removes a stopped member's data, as if there had never been any.
    ///
    /// # Panics
    /// When it runs, or the data can't be removed.
    pub fn wipe(&mut self, index: usize) {
        assert!(self.members[index].child.is_none(), "kill or stop it first");
        std::fs::remove_dir_all(self.data_dir(index)).expect("the data can be removed");
    }

    /// Copies a stopped member's data, or puts a copy in its place.
    ///
    /// # Panics
    /// When it can't be copied.
    pub fn copy_data(from: &Path, to: &Path) {
        drop(std::fs::remove_dir_all(to));
        std::fs::create_dir_all(to).expect("a directory can be made");
        for entry in std::fs::read_dir(from).expect("the data can be listed") {
            let path = entry.expect("the data can be listed").path();
            let target = to.join(path.file_name().expect("an entry has a name"));
            if path.is_dir() {
                Self::copy_data(&path, &target);
            } else {
                std::fs::copy(&path, &target).expect("a file can be copied");
            }
        }
    }

    /// From the next start on, this is the token.
    pub fn set_token(&mut self, token: &str) {
        token.clone_into(&mut self.options.token);
    }

    /// SIGSTOP: it is there, and silent.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn freeze(&self, index: usize) {
        self.signal(index, Signal::STOP);
        // Its threads stop one by one: until then it may still answer.
        let child = self.members[index].child.as_ref().expect("the member runs");
        let tasks = format!("/proc/{}/task", child.id());
        let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat")));
            let stat = stat.unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
        };
        let deadline = Instant::now() + PATIENCE;
        while !std::fs::read_dir(&tasks).expect("it runs").all(is_stopped) {
            assert!(Instant::now() < deadline, "it doesn't stop");
            std::thread::yield_now();
        }
    }

    /// SIGCONT.
    ///
    /// # Panics
    /// When it doesn't run.
    pub fn thaw(&self, index: usize) {
        self.signal(index, Signal::CONT);
    }

    fn signal(&self, index: usize, signal: Signal) {
        let child = self.members[index].child.as_ref().expect("the member runs");
        let raw = i32::try_from(child.id()).expect("process ids fit");
        let pid = Pid::from_raw(raw).expect("a child's id is not 0");
        rustix::process::kill_process(pid, signal).expect("a child can be signalled");
    }

    fn log_path(&self, index: usize) -> PathBuf {
        self.home.join(format!("etcd-{index}.log"))
    }

    fn spawn(&mut self, index: usize) {
        let log = File::options().create(true).append(true).open(self.log_path(index));
        let log = log.expect("the log can be written");
        let errors = log.try_clone().expect("a file handle can be cloned");
        let mut command = self.command(index);
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().unwrap_or_else(|error| {
            panic!("etcd can't be run ({error}); install it (Debian: apt-get install etcd-server)")
        });
        self.members[index].child = Some(child);
    }

    fn command(&self, index: usize) -> Command {
        let (options, member) = (&self.options, &self.members[index]);
        let peer = |member: &Member| format!("http://127.0.0.1:{}", member.peer_port);
        let named = |(index, member): (usize, &Member)| format!("m{index}={}", peer(member));
        let cluster: Vec<String> = self.members.iter().enumerate().map(named).collect();
        let client = self.url(index);
        let mut command = Command::new("etcd");
        // What is set in the environment would come on top.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ETCD_")) {
            command.env_remove(name);
        }
        command.arg("--data-dir").arg(self.data_dir(index));
        for (flag, value) in [
            ("--name", format!("m{index}")),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer(member)),
            ("--initial-advertise-peer-urls", peer(member)),
            ("--initial-cluster", cluster.join(",")),
            ("--initial-cluster-token", options.token.clone()),
            ("--initial-cluster-state", "new".to_owned()),
            ("--listen-metrics-urls", format!("http://127.0.0.1:{}", member.metrics_port)),
            ("--heartbeat-interval", options.heartbeat_ms.to_string()),
            ("--election-timeout", options.election_ms.to_string()),
            ("--logger", "zap".to_owned()),
        ] {
            command.arg(flag).arg(value);
        }
        if let Some(retention) = &options.auto_compaction {
            let by_revision = retention.parse::<u64>().is_ok();
            let mode = if by_revision { "revision" } else { "periodic" };
            command.args(["--auto-compaction-mode", mode, "--auto-compaction-retention"]);
            command.arg(retention);
        }
        if let Some(bytes) = options.quota_bytes {
            command.arg("--quota-backend-bytes").arg(bytes.to_string());
        }
        if let Some(tls) = &options.tls {
            command.arg("--cert-file").arg(&tls.cert).arg("--key-file").arg(&tls.key);
            if let Some(ca) = &tls.client_ca {
                command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(ca);
            }
        }
        command
    }

    /// Waits until a member has a leader and answers. False if its process ended.
    fn wait_healthy(&mut self, index: usize) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.http(index, "/health").is_some_and(|body| body.contains(r#""health":"true""#)) {
                return true;
            }
            let child = self.members[index].child.as_mut().expect("the member was started");
            if child.try_wait().expect("a child can be waited for").is_some() {
                self.members[index].child = None;
                return false;
            }
            assert!(Instant::now() < deadline, "etcd did not come up:\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn address_was_taken(&self) -> bool {
        self.logs().contains("address already in use")
    }

    /// The body that a member answers, if it does.
    fn http(&self, index: usize, path: &str) -> Option<String> {
        let address = format!("127.0.0.1:{}", self.members[index].metrics_port);
        let mut socket = TcpStream::connect(&address).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        socket.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).ok()?;
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(mut child) = member.child.take() {
                // SIGKILL ends a frozen process, too.
                drop(child.kill());
                drop(child.wait());
            }
        }
        if std::thread::panicking() {
            let logs = self.logs();
            let tail: Vec<&str> = logs.lines().rev().take(20).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("-- etcd's log ends so:\n{}", tail.join("\n"));
        }
    }
}

/// Ports on loopback that nobody listens on at the moment.
fn free_ports(count: usize) -> Vec<u16> {
    let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let listeners: Vec<TcpListener> = (0..count).map(bind).collect();
    let port = |it: &TcpListener| it.local_addr().expect("a listener has an address").port();
    listeners.iter().map(port).collect()
}
