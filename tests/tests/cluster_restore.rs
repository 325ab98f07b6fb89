//! etcd is set back to an older backup under a running cluster: brokers serve nothing any more,
//! bookies go on, both say that somebody has to look, nothing is deleted; and docs/OPERATIONS.md's
//! restore leads out of it.

use std::time::{Duration, Instant};

use geminga_tests::cli::{against, against_with_input};
use geminga_tests::cluster::{Cluster, Plan};
use geminga_tests::etcd::Etcd;
use geminga_tests::http;

/// Long enough for any machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const REPLACED: &str = "the metadata store was replaced or set back";

fn lines(prefix: &str, count: u32) -> Vec<u8> {
    (0..count).flat_map(|number| format!("{prefix}-{number}\n").into_bytes()).collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What everybody may say while etcd changes under them.
const UPHEAVAL: &[&str] = &[
    REPLACED,
    "this broker serves nothing any more",
    "the broker's lease is lost",
    "the storage's fill",
    "older metadata are accepted",
    "will try again",
    "a bookie can't be reached",
    "it has acknowledged messages that the topic doesn't have",
];

#[test]
fn an_etcd_set_back_stops_brokers_and_leaves_bookies_serving_and_a_restore_is_by_the_book() {
    let mut cluster = Cluster::up(&Plan::default());
    UPHEAVAL.iter().for_each(|words| cluster.allow_in_log(words));
    drop(against_with_input(&cluster, &["produce", "kept"], &lines("kept", 100)).ok());
    let half = against(&cluster, &["consume", "kept", "-s", "ahead", "--count", "50"]).ok();
    assert_eq!(half.stdout, lines("kept", 50));

    let data = cluster.dir().join("etcd-1/data");
    let backup = cluster.dir().join("backup");
    cluster.stop("etcd-1");
    Etcd::copy_data(&data, &backup);
    cluster.start("etcd-1");
    drop(against_with_input(&cluster, &["produce", "later"], &lines("later", 10)).ok());
    // What goes to a ledger that the backup doesn't know is acknowledged, and will be lost.
    drop(against(&cluster, &["admin", "topics", "unload", "kept"]).ok());
    drop(against_with_input(&cluster, &["produce", "kept"], &lines("lost", 100)).ok());
    drop(against(&cluster, &["consume", "kept", "-s", "ahead", "--count", "150"]).ok());
    // Time for everybody's keep-alive, which tells how far etcd is.
    std::thread::sleep(Duration::from_secs(1));
    cluster.stop("etcd-1");
    Etcd::copy_data(&backup, &data);
    cluster.start("etcd-1");

    let (brokers, bookies) = (cluster.brokers(), cluster.bookies());
    for broker in &brokers {
        let admin = cluster.address(broker, "admin");
        eventually("the broker isn't ready", || {
            let (status, why) = http::request("GET", &admin, "/readyz", "");
            status == 503 && why.contains(REPLACED) && why.contains("docs/OPERATIONS.md")
        });
        assert!(http::get(&admin, "/livez").contains("ok"), "{broker} stays");
        cluster.expect_in_log(broker, "this broker serves nothing any more");
    }
    let early = ["produce", "kept", "--timeout", "2s"];
    against_with_input(&cluster, &early, b"not to be confirmed")
        .failed_with(1, &["gave up after 2s"]);
    for bookie in &bookies {
        let metrics = cluster.address(bookie, "metrics");
        eventually("the bookie isn't ready", || {
            let (status, why) = http::request("GET", &metrics, "/readyz", "");
            status == 503 && why.contains(REPLACED) && why.contains("docs/OPERATIONS.md")
        });
        assert!(http::get(&metrics, "/livez").contains("ok"), "{bookie} goes on");
        cluster.expect_in_log(bookie, REPLACED);
    }

    // By the book. The bookies have noted what they met: by now the revision would tell nothing.
    for bookie in &bookies {
        cluster.stop(bookie);
        cluster.refused_start(bookie, &[], &["set back while", "bookie.accept_older_metadata"]);
    }
    brokers.iter().for_each(|broker| cluster.stop(broker));
    for bookie in &bookies {
        cluster.start_with(bookie, &[("bookie.accept_older_metadata", "true")]);
    }
    brokers.iter().for_each(|broker| cluster.start(broker));
    let kept = against(&cluster, &["consume", "kept", "-s", "s", "--count", "100"]).ok();
    assert_eq!(kept.stdout, lines("kept", 100));
    for bookie in &bookies {
        cluster.stop(bookie);
        cluster.start_with(bookie, &[("bookie.accept_older_metadata", "false")]);
    }
    drop(against_with_input(&cluster, &["produce", "kept"], &lines("new", 10)).ok());
    for subscription in ["s", "ahead"] {
        let new = against(&cluster, &["consume", "kept", "-s", subscription, "--count", "10"]);
        assert_eq!(new.ok().stdout, lines("new", 10), "{subscription}");
    }
    cluster.down();
}
