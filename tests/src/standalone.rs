//! One `geminga standalone` process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::cli;

/// How long a start or stop may take before the scenario fails; never a measurement.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a server listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports {
    /// The data API's `host:port`.
    pub grpc: String,
    /// Administration's `host:port`.
    pub admin: String,
    /// The bookie's `host:port`.
    pub bookie: String,
}

/// A running server. Dropping it kills the process.
#[derive(Debug)]
pub struct Standalone {
    child: Option<Child>,
    home: PathBuf,
    ports: Ports,
    extra: Vec<String>,
    expected: Vec<&'static str>,
    allowed: Vec<&'static str>,
}

/// A directory for one server's data and logs.
///
/// # Panics
/// When none can be made.
#[must_use]
pub fn home() -> TempDir {
    tempfile::Builder::new().prefix("geminga-scenario-").tempdir().expect("a temporary directory")
}

/// Starts a server that must refuse to, on free ports, and demands exit code 1 and these words of
/// it. Answers all that it said.
///
/// # Panics
/// When it starts, says something else, panics, or doesn't end.
pub fn refused_start(data: &Path, flags: &[&str], words: &[&str]) -> String {
    let mut command = cli::command(&["standalone", "--data-dir"]);
    command.arg(data).args(flags);
    for flag in ["--grpc-port", "--admin-port", "--bookie-port"] {
        if !flags.contains(&flag) {
            command.args([flag, "0"]);
        }
    }
    let ran = cli::run_to_its_end(command, PATIENCE);
    let text = ran.stderr.clone();
    ran.failed_with(1, words);
    text
}

/// The most resident memory that a process has had, in bytes.
///
/// # Panics
/// When the process is gone.
#[must_use]
pub fn peak_resident_bytes(process: u32) -> u64 {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(path).expect("the server runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kib * 1024
}

impl Standalone {
    /// Starts a server on free ports, with its data below `home`, and waits until it serves.
    ///
    /// # Panics
    /// When it doesn't come up; its log is shown.
    #[must_use]
    pub fn start(home: &Path) -> Self {
        Self::start_with(home, &[])
    }

    /// The same with more flags.
    ///
    /// # Panics
    /// When it doesn't come up; its log is shown.
    #[must_use]
    pub fn start_with(home: &Path, flags: &[&str]) -> Self {
        let mut server = Self {
            child: None,
            home: home.to_owned(),
            ports: Ports::default(),
            extra: flags.iter().map(ToString::to_string).collect(),
            expected: Vec::new(),
            allowed: Vec::new(),
        };
        server.launch();
        server
    }

    /// Words of a WARN or ERROR line that must be in the log when it is checked, once or often.
    pub fn expect_in_log(&mut self, words: &'static str) {
        self.expected.push(words);
    }

    /// Words of a WARN or ERROR line that may be in the log: whether it comes is a matter of time.
    pub fn allow_in_log(&mut self, words: &'static str) {
        self.allowed.push(words);
    }

    /// Starts the process again, on the ports it had.
    ///
    /// # Panics
    /// When it runs already or doesn't come up.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "stop or kill it first");
        self.launch();
    }

    fn launch(&mut self) {
        let port =
            |address: &str| address.rsplit_once(':').map_or("0", |(_, port)| port).to_owned();
        let data = self.data_dir();
        let ready = self.home.join("ready.json");
        // A leftover of the run before would be taken for this one's.
        drop(std::fs::remove_file(&ready));
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the log can be written");
        let mut command = cli::command(&["standalone", "--data-dir"]);
        command.arg(&data).arg("--ready-file").arg(&ready);
        for (flag, address) in [
            ("--grpc-port", &self.ports.grpc),
            ("--admin-port", &self.ports.admin),
            ("--bookie-port", &self.ports.bookie),
        ] {
            command.arg(flag).arg(port(address));
        }
        command.args(&self.extra);
        command.env("RUST_BACKTRACE", "1");
        let errors = log.try_clone().expect("a file handle can be cloned");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .expect("the binary starts");
        self.ports = wait_ready(&mut child, &ready, &self.log_path());
        self.child = Some(child);
    }

    /// The server's data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.home.join("server.log")
    }

    /// What the server has logged in all its runs.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Where it listens.
    #[must_use]
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// For `--service-url`.
    #[must_use]
    pub fn service_url(&self) -> String {
        format!("http://{}", self.ports.grpc)
    }

    /// For `--admin-url`.
    #[must_use]
    pub fn admin_url(&self) -> String {
        format!("http://{}", self.ports.admin)
    }

    /// The process's number.
    ///
    /// # Panics
    /// When it doesn't run.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    fn pid(&self) -> Pid {
        let raw = i32::try_from(self.process_id()).expect("process ids fit");
        Pid::from_raw(raw).expect("a child's id is not 0")
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Panics
    /// When it wasn't running.
    pub fn kill(&mut self) {
        // The manifest's copies are written one after the other; one that is cut short is mended.
        self.allow_in_log("this copy of the manifest is missing or damaged");
        let mut child = self.child.take().expect("the server runs");
        child.kill().expect("a child can be killed");
        child.wait().expect("a child can be waited for");
    }

    /// SIGTERM, and demands a clean end with exit code 0.
    ///
    /// # Panics
    /// When it doesn't end well, or its log has surprises.
    pub fn stop(&mut self) {
        rustix::process::kill_process(self.pid(), Signal::TERM).expect("a child can be signalled");
        let status = self.wait();
        assert!(status.success(), "it ended with {status}:\n{}", self.log());
        self.check_log();
    }

    fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the server runs");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                return status;
            }
            if Instant::now() > deadline {
                drop(child.kill());
                panic!("the server did not stop:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The most resident memory that the process has had, in bytes.
    ///
    /// # Panics
    /// When the process is gone.
    #[must_use]
    pub fn peak_resident_bytes(&self) -> u64 {
        peak_resident_bytes(self.process_id())
    }

    /// Fails on any WARN, ERROR or panic in the log that wasn't announced, and on an expected line
    /// that didn't come.
    ///
    /// # Panics
    /// With the surprising lines, or the missing words.
    pub fn check_log(&self) {
        let log = self.log();
        let is_serious =
            |line: &&str| [" WARN ", " ERROR ", "panicked at"].iter().any(|it| line.contains(it));
        let serious: Vec<&str> = log.lines().filter(is_serious).collect();
        let announced = |line: &&str| {
            self.expected.iter().chain(&self.allowed).any(|words| line.contains(words))
        };
        let surprising: Vec<&str> =
            serious.iter().copied().filter(|line| !announced(line)).collect();
        assert!(surprising.is_empty(), "unexpected in the log:\n{}", surprising.join("\n"));
        for words in &self.expected {
            let is_there = serious.iter().any(|line| line.contains(words));
            assert!(is_there, "no WARN or ERROR says {words:?}:\n{}", serious.join("\n"));
        }
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.kill());
            drop(child.wait());
        }
        // A server that was killed has a log like any other.
        if !std::thread::panicking() {
            self.check_log();
        }
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("-- the server's log ends so:\n{}", tail.join("\n"));
        }
    }
}

/// Waits for the ready file, which is renamed into place when the server serves.
fn wait_ready(child: &mut Child, ready: &Path, log: &Path) -> Ports {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Ok(text) = std::fs::read(ready) {
            let value: serde_json::Value =
                serde_json::from_slice(&text).expect("the ready file is whole");
            let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            return Ports { grpc: text("grpc"), admin: text("admin"), bookie: text("bookie") };
        }
        let ended = child.try_wait().expect("a child can be waited for");
        if ended.is_some() || Instant::now() > deadline {
            drop(child.kill());
            let log = std::fs::read_to_string(log).unwrap_or_default();
            panic!("the server did not come up ({ended:?}):\n{log}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
