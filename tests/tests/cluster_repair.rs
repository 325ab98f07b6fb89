//! Bookies are lost for good, or taken away under load: what they had is elsewhere soon after, and
//! their names are free. What a disk has changed is mended from other copies.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use geminga_tests::bookie_files::{change, groups, segments, set_manifest_version};
use geminga_tests::cli::{self, Ran};
use geminga_tests::cluster::{Cluster, Plan};
use geminga_tests::http;
use geminga_tests::load::{Load, Pace};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const TOPICS: [&str; 3] = ["left", "right", "top"];
/// Messages that stay.
const KEPT: usize = 20_000;
/// How long something may take to come about; never a measurement.
const PATIENCE: Duration = Duration::from_secs(120);

fn pace() -> Pace {
    Pace { burst: 16, pause: Duration::from_millis(4), ..Pace::default() }
}

/// Runs what blocks beside the load.
fn block<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// Bookies that are waited for so long, and ledgers that are closed soon.
fn plan(bookies: u32, grace: &'static str) -> Plan {
    let set = vec![
        ("repair.grace_period", grace),
        ("repair.scan_interval", "500ms"),
        ("repair.lease_ttl", "2s"),
        ("broker.ledger_idle_close", "1s"),
        ("broker.ledger_max_bytes", "1MiB"),
        ("broker.housekeeping_interval", "1s"),
    ];
    Plan { bookies, zones: 2, set, ..Plan::with_long_leases() }
}

fn admin(cluster: &Cluster, args: &[&str]) -> Ran {
    block(|| cli::against(cluster, &[&["admin"], args].concat()))
}

fn json(cluster: &Cluster, args: &[&str]) -> Value {
    admin(cluster, &[args, &["--output", "json"]].concat()).ok().json()
}

/// Messages that nobody takes away, in a ledger that is closed soon.
fn keep(cluster: &Cluster) {
    let lines: Vec<String> = (0..KEPT).map(|number| format!("kept {number}\n")).collect();
    let produce = ["produce", "kept"];
    drop(block(|| cli::against_with_input(cluster, &produce, lines.concat().as_bytes())).ok());
}

/// They are all there, in order.
fn assert_kept(cluster: &Cluster) {
    let count = KEPT.to_string();
    let consume = ["consume", "kept", "-s", "late", "--from", "earliest", "--count", &count];
    let consumed = block(|| cli::against(cluster, &consume)).ok();
    let text = String::from_utf8_lossy(&consumed.stdout).into_owned();
    assert_eq!(text.lines().count(), KEPT);
    for (number, line) in text.lines().enumerate() {
        assert_eq!(line, format!("kept {number}"));
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !block(&mut holds) {
        assert!(Instant::now() < deadline, "{what}");
        block(|| std::thread::sleep(Duration::from_millis(50)));
    }
}

/// Ledgers whose records name a bookie.
fn named_by(cluster: &Cluster, bookie: &str) -> usize {
    let ledgers = block(|| cluster.records("ledgers/"));
    let names = |ledger: &&Value| {
        let fragments = ledger["record"]["fragments"].as_array().into_iter().flatten();
        let mut bookies = fragments.filter_map(|fragment| fragment["bookies"].as_array()).flatten();
        bookies.any(|other| *other == bookie)
    };
    ledgers.iter().filter(names).count()
}

/// The ledgers' records, once all that can be repaired is. One that is open may lack copies, and is
/// looked at soon after it is closed.
fn restored(cluster: &Cluster) -> Vec<Value> {
    let lacks = |ledger: &Value| {
        let record = &ledger["record"];
        record["state"] == "closed" && record["under_replicated"] == true
    };
    let mut ledgers = Vec::new();
    until("nothing waits for repair", || {
        ledgers = cluster.records("ledgers/");
        !ledgers.iter().any(lacks) && cluster.records("repairs/").is_empty()
    });
    ledgers
}

/// Soon every copy of every closed ledger is good, and there are three of each.
fn assert_whole(cluster: &Cluster) {
    let mut checked = 0;
    for ledger in restored(cluster) {
        if ledger["record"]["state"] != "closed" {
            continue;
        }
        let key = ledger["key"].as_str().expect("a key");
        let hex = key.strip_prefix("ledgers/").expect("a ledger's key");
        let id = u64::from_str_radix(hex, 16).expect("a number").to_string();
        let ran = admin(cluster, &["ledgers", "check", &id, "--output", "json"]);
        // Trimmed meanwhile.
        if ran.code == Some(1) && ran.stderr.contains("does not exist") {
            continue;
        }
        let found = ran.ok().json();
        assert_eq!(ledger["record"]["write_quorum"], 3, "{ledger}");
        checked += found["entries"].as_u64().unwrap_or(0);
    }
    assert!(checked > 0, "there was nothing to compare");
}

/// What a bookie's metrics say that it has repaired.
fn repaired_by(cluster: &Cluster, bookie: &str, counter: &str) -> u64 {
    let metrics = http::get(&cluster.address(bookie, "metrics"), "/metrics");
    let name = format!("geminga_repair_{counter}_total ");
    let value = metrics.lines().find_map(|line| line.strip_prefix(&*name));
    value.and_then(|value| value.trim().parse().ok()).expect("it is a number")
}

fn names(bookies: &Value) -> Vec<&str> {
    let bookies = bookies["bookies"].as_array().into_iter().flatten();
    bookies.filter_map(|bookie| bookie["bookie_id"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_bookie_had_that_is_lost_for_good_is_copied_and_its_name_is_free_again() {
    let mut cluster = block(|| Cluster::up(&plan(4, "5s")));
    let client = cluster.client();
    keep(&cluster);
    let load = Load::start(&client, &TOPICS, pace()).await;
    let lost = "bookie-2";
    for _ in 0..5 {
        load.gets_on().await;
    }
    assert!(named_by(&cluster, lost) > 0, "it has something to lose");
    block(|| {
        cluster.kill(lost);
        let data = cluster.dir().join(lost).join("data");
        std::fs::remove_dir_all(data).expect("its disk is lost");
    });
    load.gets_on().await;
    // Nobody has to ask: after the grace period nothing is there any more. Its owners have left it
    // in open ledgers before.
    until("what it had is elsewhere", || named_by(&cluster, lost) == 0);
    load.gets_on().await;
    let summary = load.stop_and_judge(&client).await;
    eprintln!("a bookie lost under load: {summary:?}");
    assert_whole(&cluster);
    assert_kept(&cluster);
    for counter in ["ledgers", "bytes"] {
        let there = ["bookie-1", "bookie-3", "bookie-4"];
        let counted = there.map(|name| repaired_by(&cluster, name, counter));
        assert!(counted.iter().sum::<u64>() > 0, "repair counts its {counter}: {counted:?}");
    }
    let mut last = Value::Null;
    until("only the lost bookie is missed", || {
        let ran = admin(&cluster, &["cluster", "status", "--output", "json"]);
        assert_eq!(ran.code, Some(4), "{}", ran.stderr);
        let problems = ran.json()["problems"].take();
        if problems != last {
            eprintln!("the status says {problems}");
        }
        last = problems;
        let told = last.as_array().map(Vec::as_slice).unwrap_or_default();
        matches!(told, [one] if one["subject"] == lost)
    });
    let forgotten = admin(&cluster, &["bookies", "recover", lost]).ok();
    assert!(!forgotten.stdout.is_empty());
    until("its name is free", || !names(&json(&cluster, &["bookies", "list"])).contains(&lost));
    until("all is well", || admin(&cluster, &["cluster", "status"]).code == Some(0));
    // The same name with an empty disk is a new bookie.
    block(|| cluster.start(lost));
    until("it is used", || {
        let bookies = json(&cluster, &["bookies", "list"]);
        names(&bookies).contains(&lost)
    });
    drop(admin(&cluster, &["cluster", "status"]).ok());
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_that_is_lost_for_good_under_load_costs_nothing_and_its_copies_are_elsewhere_soon() {
    let mut cluster = block(|| Cluster::up(&Plan { zones: 3, ..plan(6, "5s") }));
    let client = cluster.client();
    keep(&cluster);
    let load = Load::start(&client, &TOPICS, pace()).await;
    for _ in 0..5 {
        load.gets_on().await;
    }
    let listed = json(&cluster, &["bookies", "list"]);
    let rows: Vec<&Value> = listed["bookies"].as_array().into_iter().flatten().collect();
    let zone_of = |name: &str| {
        let row = rows.iter().find(|row| row["bookie_id"] == name);
        row.and_then(|row| row["zone"].as_str()).expect("it is listed with its zone")
    };
    let (lost, left): (Vec<&str>, Vec<&str>) =
        names(&listed).into_iter().partition(|name| zone_of(name) == zone_of("bookie-2"));
    assert_eq!((lost.len(), left.len()), (2, 4), "{listed}");
    // Which of a zone's bookies a ledger goes to is drawn by lot; new ones come all the time.
    until("both have something to lose", || {
        lost.iter().all(|bookie| named_by(&cluster, bookie) > 0)
    });
    block(|| {
        lost.iter().for_each(|bookie| cluster.kill(bookie));
        for bookie in &lost {
            let data = cluster.dir().join(bookie).join("data");
            std::fs::remove_dir_all(data).expect("its disk is lost");
        }
    });
    load.gets_on().await;
    until("what they had is elsewhere", || {
        lost.iter().all(|bookie| named_by(&cluster, bookie) == 0)
    });
    load.gets_on().await;
    let summary = load.stop_and_judge(&client).await;
    eprintln!("a zone lost under load: {summary:?}");
    assert_whole(&cluster);
    assert_kept(&cluster);
    for bookie in &lost {
        drop(admin(&cluster, &["bookies", "recover", bookie]).ok());
    }
    until("all is well", || admin(&cluster, &["cluster", "status"]).code == Some(0));
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookie_with_the_files_of_an_older_release_serves_them_in_the_cluster() {
    let mut cluster = block(|| Cluster::up(&plan(3, "1m")));
    keep(&cluster);
    let id = closed_ledger_of(&cluster, "kept");
    block(|| cluster.stop("bookie-1"));
    for copy in ["manifest-a", "manifest-b"] {
        let path = cluster.dir().join("bookie-1/data/bookie").join(copy);
        change(&path, |bytes| set_manifest_version(bytes, 1));
    }
    block(|| cluster.start("bookie-1"));
    drop(admin(&cluster, &["ledgers", "check", &id]).ok());
    drop(admin(&cluster, &["bookies", "scrub", "bookie-1"]).ok());
    assert_kept(&cluster);
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookie_is_taken_away_under_load_and_nothing_is_lost() {
    // Its owners have time to go on elsewhere by themselves.
    let mut cluster = block(|| Cluster::up(&plan(4, "2m")));
    let client = cluster.client();
    keep(&cluster);
    let load = Load::start(&client, &TOPICS, pace()).await;
    let leaving = "bookie-3";
    for _ in 0..5 {
        load.gets_on().await;
    }
    assert!(named_by(&cluster, leaving) > 0, "it has something to give");
    let started = admin(&cluster, &["bookies", "decommission", leaving, "--no-wait"]).ok();
    let shown = String::from_utf8_lossy(&started.stdout).into_owned();
    assert!(shown.contains("ledgers left"), "{shown}");
    let listed = json(&cluster, &["bookies", "list"]);
    let of_it = |bookie: &&Value| bookie["bookie_id"] == leaving;
    let row = listed["bookies"].as_array().into_iter().flatten().find(of_it);
    assert_eq!(row.expect("it is listed")["draining"], "decommission");
    // Asked again, it waits; publishing goes on meanwhile.
    let done = admin(&cluster, &["bookies", "decommission", leaving]).ok();
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(told.contains("stop it now"), "{told}");
    assert_eq!(named_by(&cluster, leaving), 0);
    load.gets_on().await;
    block(|| cluster.stop(leaving));
    until("its name is free", || !names(&json(&cluster, &["bookies", "list"])).contains(&leaving));
    load.gets_on().await;
    let summary = load.stop_and_judge(&client).await;
    eprintln!("a bookie taken away under load: {summary:?}");
    until("all is well", || admin(&cluster, &["cluster", "status"]).code == Some(0));
    assert_whole(&cluster);
    assert_kept(&cluster);
    // Its disk belongs to nobody any more.
    block(|| cluster.refused_start(leaving, &[], &["the metadata doesn't know it"]));
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_bookie_that_was_given_up_meanwhile_ends_when_it_wakes_up() {
    let mut cluster = block(|| Cluster::up(&plan(4, "5s")));
    let frozen = "bookie-4";
    block(|| cluster.freeze(frozen));
    until("it is missed", || {
        let listed = json(&cluster, &["bookies", "list"]);
        let missing = |one: &Value| one["bookie_id"] == frozen && one["state"] == "missing";
        listed["bookies"].as_array().into_iter().flatten().any(missing)
    });
    drop(admin(&cluster, &["bookies", "recover", frozen, "--no-wait"]).ok());
    until("its name is free", || !names(&json(&cluster, &["bookies", "list"])).contains(&frozen));
    // Its deletions may hear of it first.
    cluster.allow_in_log("deletion of ledgers has stopped");
    block(|| cluster.thaw(frozen));
    until("it ends", || block(|| cluster.exit_code(frozen)) == Some(1));
    let log = block(|| cluster.log(frozen));
    assert!(log.contains("bookie bookie-4 was taken away for good"), "{log}");
    assert!(!names(&json(&cluster, &["bookies", "list"])).contains(&frozen));
    drop(admin(&cluster, &["cluster", "status"]).ok());
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookie_that_is_needed_or_unknown_is_not_taken_away() {
    let mut cluster = block(|| Cluster::up(&plan(3, "5s")));
    let refused = |cluster: &Cluster, args: &[&str], words: &[&str]| {
        admin(cluster, &[&["bookies"], args].concat()).failed_with(1, words);
        assert_eq!(block(|| cluster.records("drains/")), [] as [Value; 0], "nothing is marked");
    };
    refused(&cluster, &["decommission", "nobody"], &["nobody does not exist"]);
    refused(&cluster, &["decommission", "a/b"], &["a/b"]);
    refused(&cluster, &["recover", "nobody"], &["nobody does not exist"]);
    let needed = ["bookie-1 is needed", "2 bookies", "3 are needed", "start another one"];
    refused(&cluster, &["decommission", "bookie-1"], &needed);
    refused(&cluster, &["recover", "bookie-1"], &["bookie-1 is up"]);
    refused(&cluster, &["decommission", "bookie-1", "--cancel"], &["not being taken away"]);
    block(|| cluster.kill("bookie-1"));
    until("it is missed", || {
        let listed = json(&cluster, &["bookies", "list"]);
        let missing = |bookie: &Value| bookie["state"] == "missing";
        listed["bookies"].as_array().into_iter().flatten().any(missing)
    });
    refused(&cluster, &["decommission", "bookie-1"], &["bookie-1 is not up"]);
    refused(&cluster, &["recover", "bookie-1"], &["bookie-1 is needed"]);
    // With another one there it may go, or stay after all.
    block(|| cluster.start("bookie-4"));
    let marked = admin(&cluster, &["bookies", "recover", "bookie-1", "--no-wait"]).ok();
    assert!(String::from_utf8_lossy(&marked.stdout).contains("lost"));
    admin(&cluster, &["ledgers", "check", "123456789"]).failed_with(1, &["does not exist"]);
    until("its name is free", || {
        !names(&json(&cluster, &["bookies", "list"])).contains(&"bookie-1")
    });
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_bookies_do_not_take_part_a_process_of_its_own_repairs() {
    let mut set = plan(4, "1s").set;
    set.push(("repair.enabled", "false"));
    let mut cluster = block(|| Cluster::up(&Plan { set, ..plan(4, "1s") }));
    keep(&cluster);
    let id = closed_ledger_of(&cluster, "kept");
    let on_it = |cluster: &Cluster| {
        let ledger = json(cluster, &["ledgers", "show", &id]);
        let bookies = ledger["fragments"][0]["bookies"].as_array().cloned().unwrap_or_default();
        bookies.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let lost = on_it(&cluster).remove(0);
    block(|| cluster.kill(&lost));
    let endpoints = cluster.metadata_endpoints();
    let args = [
        "repair",
        "--metadata-endpoints",
        &endpoints,
        "--set",
        "repair.grace_period=1s",
        "--set",
        "repair.scan_interval=500ms",
    ];
    let mut command = cli::command(&args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut repair = Ended(command.spawn().expect("the binary starts"));
    until("another bookie has it", || !on_it(&cluster).contains(&lost));
    drop(admin(&cluster, &["ledgers", "check", &id]).ok());
    let said = block(|| repair.end());
    assert!(said.contains("repaired") && !said.contains("panicked"), "{said}");
    assert_kept(&cluster);
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_a_disk_has_changed_is_mended_from_the_others() {
    let mut cluster = block(|| Cluster::up(&plan(3, "1m")));
    keep(&cluster);
    let id = closed_ledger_of(&cluster, "kept");
    drop(admin(&cluster, &["ledgers", "check", &id]).ok());
    block(|| cluster.stop("bookie-1"));
    let file = segments(&cluster.dir().join("bookie-1/data")).remove(0);
    change(&file, |bytes| {
        let all = groups(bytes);
        let group = all.iter().max_by_key(|group| group.first_payload.1).expect("messages");
        let (at, len) = group.first_payload;
        bytes[at + len / 2] ^= 0x10;
    });
    cluster.expect_in_log("bookie-1", "stored bytes don't verify");
    cluster.expect_in_log("bookie-1", "a stored entry is damaged");
    block(|| cluster.start("bookie-1"));
    let found = admin(&cluster, &["ledgers", "check", &id, "--output", "json"]);
    assert_eq!(found.code, Some(4), "{}", found.stderr);
    let bad = |one: &Value| one["bookie"] == "bookie-1" && one["damaged"] == 1;
    let found = found.json();
    assert!(found["bookies"].as_array().into_iter().flatten().any(bad), "{found}");
    // The bookie says so itself, and a worker sends it what it lacks.
    until("it is mended", || admin(&cluster, &["ledgers", "check", &id]).code == Some(0));
    until("nothing waits for repair", || cluster.records("repairs/").is_empty());
    assert_kept(&cluster);
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_file_that_is_lost_at_a_start_comes_back_from_the_others() {
    let mut cluster = block(|| Cluster::up(&plan(3, "1m")));
    keep(&cluster);
    let id = closed_ledger_of(&cluster, "kept");
    block(|| cluster.stop("bookie-1"));
    for file in segments(&cluster.dir().join("bookie-1/data")) {
        std::fs::remove_file(file).expect("removed");
    }
    let accept = [("bookie.accept_damage", "true")];
    block(|| cluster.refused_start("bookie-1", &[], &["segment-", "bookie.accept_damage"]));
    cluster.expect_in_log("bookie-1", "served in spite of damage");
    cluster.expect_in_log("bookie-1", "entries of lost segments are missing here");
    cluster.allow_in_log("a segment can't be read");
    cluster.allow_in_log("lost segments may have held ledgers");
    cluster.allow_in_log("a spare segment file is gone");
    block(|| cluster.start_with("bookie-1", &accept));
    until("all copies are back", || admin(&cluster, &["ledgers", "check", &id]).code == Some(0));
    until("nothing waits for repair", || cluster.records("repairs/").is_empty());
    assert_kept(&cluster);
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_a_disk_has_changed_is_written_anew_with_what_the_others_have() {
    let mut cluster = block(|| Cluster::up(&plan(3, "1m")));
    keep(&cluster);
    let id = closed_ledger_of(&cluster, "kept");
    block(|| cluster.stop("bookie-1"));
    let file = segments(&cluster.dir().join("bookie-1/data")).remove(0);
    // An end in order cuts the file behind the last page of its index.
    change(&file, |bytes| {
        let at = bytes.len() - 4_096 + 20;
        bytes[at] ^= 0x10;
    });
    cluster.expect_in_log("bookie-1", "the index of a segment is damaged");
    cluster.allow_in_log("stored bytes don't verify");
    block(|| cluster.start("bookie-1"));
    drop(admin(&cluster, &["bookies", "scrub", "bookie-1"]));
    until("it is mended", || admin(&cluster, &["ledgers", "check", &id]).code == Some(0));
    until("nothing waits for repair", || cluster.records("repairs/").is_empty());
    until("the file is given up", || !file.exists());
    drop(admin(&cluster, &["bookies", "scrub", "bookie-1"]).ok());
    drop(admin(&cluster, &["ledgers", "check", &id]).ok());
    assert_kept(&cluster);
    block(|| cluster.down());
}

/// The one closed ledger of a topic.
fn closed_ledger_of(cluster: &Cluster, topic: &str) -> String {
    let mut found = String::new();
    until("it is closed", || {
        let ledgers = json(cluster, &["ledgers", "list", "--topic", topic]);
        let closed = ledgers.as_array().into_iter().flatten();
        let mut closed = closed.filter(|ledger| ledger["state"] == "closed");
        found = closed.next().map(|ledger| ledger["ledger_id"].to_string()).unwrap_or_default();
        !found.is_empty()
    });
    found
}

/// A process that is ended by SIGTERM, or killed if the scenario fails.
struct Ended(Child);

impl Ended {
    /// What it has said.
    fn end(&mut self) -> String {
        let raw = i32::try_from(self.0.id()).expect("process ids fit");
        let pid = Pid::from_raw(raw).expect("a child's id is not 0");
        kill_process(pid, Signal::TERM).expect("a child can be signalled");
        let mut said = String::new();
        let errors = self.0.stderr.as_mut().expect("it is piped");
        errors.read_to_string(&mut said).expect("a pipe can be read");
        let status = self.0.wait().expect("a child can be waited for");
        assert!(status.success(), "{status}: {said}");
        said
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }
}
