//! Bookies are killed and frozen under load; publishing goes on with those that are left.

use std::time::{Duration, Instant};

use geminga_tests::cli::against;
use geminga_tests::cluster::{Cluster, Plan};
use geminga_tests::load::{Load, Pace};

const TOPICS: [&str; 4] = ["left", "right", "top", "bottom"];

fn pace() -> Pace {
    Pace { burst: 16, pause: Duration::from_millis(2), ..Pace::default() }
}

/// Runs what blocks beside the load.
fn block<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_of_three_bookies_killed_publishing_goes_on_at_the_ack_quorum() {
    let mut cluster = block(|| Cluster::up(&Plan::with_long_leases()));
    let client = cluster.client();
    let load = Load::start(&client, &TOPICS, pace()).await;
    let mut gaps = Vec::new();
    for name in cluster.bookies() {
        load.watch_gaps();
        block(|| cluster.kill(&name));
        load.gets_on().await;
        gaps.push(load.longest_gap());
        block(|| cluster.start(&name));
        load.gets_on().await;
    }
    let summary = load.stop_and_judge(&client).await;
    eprintln!("each bookie killed once: {summary:?}; gaps {gaps:?}");
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_fourth_bookie_the_killed_one_is_replaced_in_open_ledgers() {
    let mut cluster = block(|| Cluster::up(&Plan { bookies: 4, ..Plan::with_long_leases() }));
    let client = cluster.client();
    let load = Load::start(&client, &TOPICS, pace()).await;
    let killed = "bookie-2".to_owned();
    let used = |cluster: &Cluster| {
        let last = |ledger: &serde_json::Value| {
            let record = &ledger["record"];
            let fragments = record["fragments"].as_array().cloned().unwrap_or_default();
            (record["state"] == "open", fragments.last().map(ToString::to_string))
        };
        let ledgers = block(|| cluster.records("ledgers/"));
        let open = ledgers.iter().map(last).filter(|(open, _)| *open);
        open.filter(|(_, last)| last.as_ref().is_some_and(|text| text.contains(&killed))).count()
    };
    assert!(used(&cluster) > 0, "four ledgers on four bookies leave none out");
    load.watch_gaps();
    block(|| cluster.kill(&killed));
    let deadline = Instant::now() + Duration::from_secs(60);
    while used(&cluster) > 0 {
        assert!(Instant::now() < deadline, "it is still in the last fragment of open ledgers");
        load.gets_on().await;
    }
    let gap = load.longest_gap();
    let summary = load.stop_and_judge(&client).await;
    eprintln!("one of four killed: {summary:?}; gap {gap:?}");
    block(|| cluster.start(&killed));
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_bookies_killed_together_and_restarted_have_everything() {
    let mut cluster = block(|| Cluster::up(&Plan::with_long_leases()));
    let client = cluster.client();
    let load = Load::start(&client, &TOPICS, pace()).await;
    for _ in 0..geminga_tests::rounds(3) {
        block(|| {
            let bookies = cluster.bookies();
            cluster.kill_all(&bookies.iter().map(String::as_str).collect::<Vec<_>>());
            bookies.iter().for_each(|name| cluster.start(name));
        });
        load.gets_on().await;
    }
    let summary = load.stop_and_judge(&client).await;
    eprintln!("all bookies killed: {summary:?}");
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_bookie_costs_neither_messages_nor_the_brokers_memory() {
    let seconds = u64::from(geminga_tests::rounds(15));
    let budget = 128 << 20;
    let settings =
        vec![("broker.memory_budget_bytes", "128MiB"), ("broker.tail_cache_bytes", "16MiB")];
    let mut cluster = block(|| Cluster::up(&Plan { set: settings, ..Plan::with_long_leases() }));
    let client = cluster.client();
    let full = Pace { burst: 64, pause: Duration::ZERO, message_bytes: 16 << 10 };
    let load = Load::start(&client, &TOPICS[..2], full).await;
    block(|| cluster.freeze("bookie-3"));
    load.watch_gaps();
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut peak = 0;
    while Instant::now() < end {
        load.gets_on().await;
        for broker in cluster.brokers() {
            peak = peak.max(cluster.peak_resident_bytes(&broker));
        }
    }
    let gap = load.longest_gap();
    block(|| cluster.thaw("bookie-3"));
    load.gets_on().await;
    let summary = load.stop_and_judge(&client).await;
    eprintln!("bookie frozen {seconds} s: {summary:?}; gap {gap:?}, peak {} MiB", peak >> 20);
    assert!(peak < budget + (192 << 20), "the broker took {} MiB", peak >> 20);
    block(|| cluster.down());
}

#[test]
fn a_frozen_bookie_whose_lease_lives_is_listed_without_an_answer() {
    let set = vec![("bookie.lease_ttl", "2m")];
    let mut cluster = Cluster::up(&Plan { set, ..Plan::with_long_leases() });
    let lag = |cluster: &Cluster, name: &str| {
        let listed = ["admin", "bookies", "list", "--output", "json"];
        let listed = against(cluster, &listed).ok().json();
        let all = listed["bookies"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|one| one["bookie_id"] == name);
        let found = found.unwrap_or_else(|| panic!("{name} is not among {listed}"));
        assert_eq!(found["state"], "writable", "its record says so: {found}");
        (found["lag_ms"].as_u64(), found["lag_bytes"].as_u64())
    };
    assert_eq!(lag(&cluster, "bookie-3"), (Some(0), Some(0)), "nobody writes");
    cluster.freeze("bookie-3");
    assert_eq!(lag(&cluster, "bookie-3"), (None, None));
    assert_eq!(lag(&cluster, "bookie-1"), (Some(0), Some(0)));
    let shown = against(&cluster, &["admin", "bookies", "list"]).ok().stdout;
    let shown = String::from_utf8_lossy(&shown).into_owned();
    let row = shown.lines().find(|line| line.starts_with("bookie-3"));
    assert!(row.is_some_and(|row| row.contains("no answer")), "{shown}");
    assert!(shown.contains("LAG") && shown.contains("UNDER-REPLICATED"), "{shown}");
    cluster.thaw("bookie-3");
    let end = Instant::now() + Duration::from_secs(60);
    while lag(&cluster, "bookie-3").0.is_none() {
        assert!(Instant::now() < end, "it answers no more");
    }
    cluster.down();
}
