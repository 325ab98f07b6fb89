//! etcd goes away under load, for all or for one broker; writes to it are counted.

use std::time::{Duration, Instant};

use geminga_tests::cluster::{Cluster, Plan};
use geminga_tests::load::{Load, PATIENCE, Pace};
use geminga_tests::relay::{Cut, Relay};

const TOPICS: [&str; 4] = ["left", "right", "top", "bottom"];

type TakeAway = fn(&mut Cluster);

fn pace() -> Pace {
    Pace { burst: 16, pause: Duration::from_millis(2), ..Pace::default() }
}

/// Runs what blocks beside the load.
fn block<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_etcd_is_away_open_ledgers_are_published_to_as_before() {
    let seconds = u64::from(geminga_tests::rounds(8));
    let mut cluster = block(|| Cluster::up(&Plan::default()));
    let client = cluster.client();
    let load = Load::start(&client, &TOPICS, pace()).await;
    let ways: [(&str, TakeAway); 3] = [
        ("stopped", |cluster| cluster.stop("etcd-1")),
        ("killed", |cluster| cluster.kill("etcd-1")),
        ("frozen", |cluster| cluster.freeze("etcd-1")),
    ];
    for (how, take_away) in ways {
        load.watch_gaps();
        block(|| take_away(&mut cluster));
        // How long it is away.
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        load.gets_on().await;
        let gap = load.longest_gap();
        eprintln!("etcd {how} for {seconds} s: gap {gap:?}");
        assert!(gap < Duration::from_secs(seconds), "publishing waited for etcd");
        block(|| if how == "frozen" { cluster.thaw("etcd-1") } else { cluster.start("etcd-1") });
        load.gets_on().await;
        // The brokers are back in touch: a new topic needs the metadata.
        let again = Load::start(&client, &[&format!("after-{how}")], pace()).await;
        again.stop_and_judge(&client).await;
    }
    let summary = load.stop_and_judge(&client).await;
    eprintln!("etcd away: {summary:?}");
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_and_acknowledgements_write_nothing_to_etcd() {
    let cluster = block(|| Cluster::up(&Plan::with_long_leases()));
    let client = cluster.client();
    let load = Load::start(&client, &TOPICS, pace()).await;
    // What begins with the load is over once messages flow and nothing is written.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = block(|| cluster.etcd_writes());
        for _ in 0..5 {
            load.gets_on().await;
        }
        if block(|| cluster.etcd_writes()) == before {
            break;
        }
        assert!(Instant::now() < deadline, "etcd is written to all the time");
    }
    let before = (block(|| cluster.etcd_writes()), load.summary());
    // A span that is measured: what is written by the clock would count as well.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = (block(|| cluster.etcd_writes()), load.summary());
    let writes = after.0 - before.0;
    let messages = after.1.stored - before.1.stored;
    let acknowledged = after.1.acknowledged - before.1.acknowledged;
    eprintln!("{writes} writes to etcd with {messages} messages, {acknowledged} acknowledged");
    assert!(messages > 1_000 && acknowledged > 500, "next to nothing happened");
    assert!(writes < 50, "{writes} writes with {messages} messages");
    load.stop_and_judge(&client).await;
    block(|| cluster.down());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_cut_off_from_etcd_alone_is_replaced_and_confirms_nothing_afterwards() {
    let mut cluster = block(|| Cluster::up(&Plan::default()));
    // Both brokers reach etcd through a relay each.
    let mut relays = Vec::new();
    for name in cluster.brokers() {
        let etcd = block(|| cluster.address("etcd-1", "client"));
        let relay = Relay::start(etcd).await;
        let endpoint = format!("http://{}", relay.address());
        block(|| {
            cluster.stop(&name);
            cluster.start_with(&name, &[("metadata.endpoints", &endpoint)]);
        });
        relays.push((name, relay));
    }
    let client = cluster.client();
    let load = Load::start(&client, &TOPICS, pace()).await;
    for _ in 0..geminga_tests::rounds(2) {
        let owner = block(|| cluster.owner_of(TOPICS[0]));
        let (_, relay) = relays.iter().find(|(name, _)| *name == owner).expect("a broker");
        load.watch_gaps();
        relay.cut(Cut::Both);
        // It goes on until somebody else has fenced it; then clients move.
        let deadline = Instant::now() + PATIENCE;
        let (other, _) = relays.iter().find(|(name, _)| *name != owner).expect("another broker");
        while block(|| cluster.owner_by(other, TOPICS[0])).as_ref() != Some(other) {
            assert!(Instant::now() < deadline, "nobody took over");
            load.gets_on().await;
        }
        load.gets_on().await;
        eprintln!("cut off from etcd: gap {:?}", load.longest_gap());
        relay.heal();
        load.gets_on().await;
    }
    let summary = load.stop_and_judge(&client).await;
    eprintln!("cut off from etcd: {summary:?}");
    block(|| cluster.down());
}
