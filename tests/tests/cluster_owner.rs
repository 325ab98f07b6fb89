//! Brokers that own topics are killed, frozen and stopped under load; another one takes over.

use std::time::{Duration, Instant};

use geminga_tests::cluster::{Cluster, Plan};
use geminga_tests::load::{Load, PATIENCE, Pace};

const TOPICS: [&str; 4] = ["left", "right", "top", "bottom"];
/// What a broker says when it finds its lease over.
const LEASE_LOST: &str = "the broker's lease is lost";

fn pace() -> Pace {
    Pace { burst: 16, pause: Duration::from_millis(2), ..Pace::default() }
}

/// Runs what blocks beside the load.
fn block<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_owner_is_killed_another_broker_goes_on_and_nothing_is_lost() {
    let rounds = geminga_tests::rounds(5);
    let mut cluster = block(|| Cluster::up(&Plan::default()));
    let client = cluster.client();
    let load = Load::start(&client, &TOPICS, pace()).await;
    let mut gaps = Vec::new();
    for round in 0..rounds {
        let topic = TOPICS[round as usize % TOPICS.len()];
        let owner = block(|| cluster.owner_of(topic));
        load.watch_gaps();
        block(|| cluster.kill(&owner));
        load.gets_on().await;
        gaps.push(load.longest_gap());
        assert_ne!(block(|| cluster.owner_of(topic)), owner);
        block(|| cluster.start(&owner));
    }
    load.gets_on().await;
    let summary = load.stop_and_judge(&client).await;
    eprintln!("owner killed {rounds} times: {summary:?}; gaps {gaps:?}");
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_wakes_up_past_its_lease_confirms_nothing_any_more() {
    let rounds = geminga_tests::rounds(3);
    let mut cluster = block(|| Cluster::up(&Plan::default()));
    let client = cluster.client();
    let load = Load::start(&client, &TOPICS, pace()).await;
    for round in 0..rounds {
        let topic = TOPICS[round as usize % TOPICS.len()];
        let owner = block(|| cluster.owner_of(topic));
        let noticed = cluster.log(&owner).matches(LEASE_LOST).count();
        block(|| cluster.freeze(&owner));
        // Another broker has it once the lease is over.
        assert_ne!(block(|| cluster.owner_of(topic)), owner);
        load.gets_on().await;
        // What its sockets hold from before, it takes for new now, until it notices.
        block(|| cluster.thaw(&owner));
        let deadline = Instant::now() + PATIENCE;
        while cluster.log(&owner).matches(LEASE_LOST).count() == noticed {
            assert!(Instant::now() < deadline, "it doesn't notice that its lease is over");
            load.gets_on().await;
        }
        load.gets_on().await;
    }
    let summary = load.stop_and_judge(&client).await;
    eprintln!("owner frozen {rounds} times: {summary:?}");
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_is_restarted_in_turn_and_the_application_hears_of_no_error() {
    let mut cluster = block(|| Cluster::up(&Plan { etcd_members: 3, ..Plan::with_long_leases() }));
    let client = cluster.client();
    let load = Load::start(&client, &TOPICS, pace()).await;
    let mut gaps = Vec::new();
    for name in cluster.everybody() {
        load.watch_gaps();
        block(|| cluster.stop(&name));
        load.gets_on().await;
        gaps.push((name.clone(), load.longest_gap()));
        block(|| cluster.start(&name));
        load.gets_on().await;
    }
    let summary = load.stop_and_judge(&client).await;
    eprintln!("restarted in turn: {summary:?}; gaps {gaps:?}");
    block(|| cluster.down());
}
