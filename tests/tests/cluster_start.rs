//! How a cluster's processes start when etcd isn't as it should be: away, closed to them, or of
//! another cluster than their disk.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use etcd_client::{Client, Permission};
use geminga_tests::cli::{command, run_to_its_end};
use geminga_tests::etcd::Etcd;
use geminga_tests::standalone::home;
use rustix::process::{Pid, Signal, kill_process};

/// Long enough for any machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const FREE_PORTS: [&str; 4] = ["--grpc-port", "0", "--admin-port", "0"];

/// A process that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Running {
    /// Starts a server whose log goes to `log`.
    fn start(args: &[&str], log: &Path) -> Self {
        let log = File::create(log).expect("the log can be written");
        let mut command = command(args);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        Self(child.expect("the binary starts"))
    }

    /// SIGTERM, and its exit code.
    fn terminate(&mut self) -> Option<i32> {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, Signal::TERM).expect("a child can be signalled");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().expect("a child can be waited for") {
                return status.code();
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// Waits until the file is there and says this, and gives it.
fn await_words(file: &Path, words: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = std::fs::read_to_string(file).unwrap_or_default();
        if said.contains(words) {
            return said;
        }
        assert!(Instant::now() < deadline, "it does not say {words:?}:\n{said}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_start_waits_for_etcd_names_it_and_ends_at_a_signal() {
    let home = home();
    let etcd_home = home.path().join("etcd");
    std::fs::create_dir(&etcd_home).expect("a directory can be made");
    let mut etcd = Etcd::start(&etcd_home);
    let url = etcd.url(0);
    drop(
        run_to_its_end(command(&["cluster", "init", "--metadata-endpoints", &url]), PATIENCE).ok(),
    );
    etcd.kill(0);

    let (log, ready) = (home.path().join("log"), home.path().join("ready"));
    let broker = ["broker", "--metadata-endpoints", &url, "--ready-file", text(&ready)];
    let broker = [&broker[..], &FREE_PORTS].concat();
    let mut waiting = Running::start(&broker, &log);
    let said = await_words(&log, "can't be reached yet");
    assert!(said.contains(&url), "the endpoint is not named:\n{said}");
    assert!(!ready.exists());
    assert_eq!(waiting.terminate(), Some(0), "a signal ends it in order while it waits");

    let mut waiting = Running::start(&broker, &log);
    await_words(&log, "can't be reached yet");
    etcd.restart(0);
    let said = await_words(&log, "geminga broker serves");
    assert!(said.contains("etcd is reached"), "{said}");
    await_words(&ready, "grpc");
    assert_eq!(waiting.terminate(), Some(0));
    await_words(&log, "closed");
}

#[test]
fn a_wrong_password_ends_a_start_at_once_and_is_not_shown() {
    let home = home();
    let etcd_home = home.path().join("etcd");
    std::fs::create_dir(&etcd_home).expect("a directory can be made");
    let etcd = Etcd::start(&etcd_home);
    let url = etcd.url(0);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    runtime.block_on(async {
        let mut client = Client::connect([&url], None).await.expect("it answers");
        client.user_add("root", "root-secret", None).await.expect("added");
        // Some versions of etcd have the role already.
        drop(client.role_add("root").await);
        client.user_grant_role("root", "root").await.expect("granted");
        client.user_add("geminga", "our-secret", None).await.expect("added");
        client.role_add("geminga").await.expect("added");
        let ours = Permission::read_write("/geminga/prod/").with_prefix();
        client.role_grant_permission("geminga", ours).await.expect("granted");
        client.user_grant_role("geminga", "geminga").await.expect("granted");
        client.auth_enable().await.expect("enabled");
    });
    let file = home.path().join("password");
    let flags = [
        "--metadata-endpoints",
        &url,
        "--cluster-name",
        "prod",
        "--metadata-user",
        "geminga",
        "--metadata-password-file",
        text(&file),
    ];
    let ran = |args: &[&str]| run_to_its_end(command(&[args, &flags[..]].concat()), PATIENCE);
    let init = ["cluster", "init", "--output", "json"];
    ran(&init).failed_with(2, &["password"]);
    std::fs::write(&file, "not-our-secret\n").expect("writes");
    for args in [&init[..], &["broker"], &["bookie", "--data-dir", text(home.path())]] {
        let refused = ran(args);
        assert!(!refused.stderr.contains("secret"), "{}", refused.stderr);
        refused.failed_with(1, &["refuses access", "geminga"]);
    }
    std::fs::write(&file, "our-secret\n").expect("writes");
    let made = ran(&init).ok().json();
    assert_eq!((&made["cluster"], &made["created"]), (&"prod".into(), &true.into()), "{made}");
    ran(&init).failed_with(1, &["initialised already"]);
}

#[test]
fn a_bookie_of_another_cluster_does_not_start() {
    let home = home();
    let etcd_home = home.path().join("etcd");
    std::fs::create_dir(&etcd_home).expect("a directory can be made");
    let etcd = Etcd::start(&etcd_home);
    let url = etcd.url(0);
    let (log, data) = (home.path().join("log"), home.path().join("data"));
    for cluster in ["one", "other"] {
        let init = ["cluster", "init", "--metadata-endpoints", &url, "--cluster-name", cluster];
        drop(run_to_its_end(command(&init), PATIENCE).ok());
    }
    let bookie =
        ["bookie", "--bookie-id", "b", "--metadata-endpoints", &url, "--data-dir", text(&data)];
    let bookie = [&bookie[..], &["--bookie-port", "0", "--metrics-port", "0"]].concat();
    let of = |cluster| [&bookie[..], &["--cluster-name", cluster]].concat();
    let mut first = Running::start(&of("one"), &log);
    await_words(&log, "geminga bookie serves");
    // Its disk is in use.
    run_to_its_end(command(&of("one")), PATIENCE).failed_with(1, &["use", text(&data)]);
    assert_eq!(first.terminate(), Some(0));
    run_to_its_end(command(&of("other")), PATIENCE)
        .failed_with(1, &[text(&data), "belongs to bookie b of cluster"]);
}
