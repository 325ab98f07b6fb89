//! Measures the embedded store: small durable transactions a second with some in flight, and the
//! memory it holds.
//!
//! `cargo run --release -p geminga-meta --example txn_rate -- [in flight] [transactions] [dir]`

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use geminga_meta::store::{Compare, EmbeddedConfig, EmbeddedStore, MetadataStore, Txn};
use geminga_proto::env::Env;

fn rss_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Three records of a topic's size, two of them new, as creating a topic writes them.
async fn create(store: &EmbeddedStore, number: u64) {
    let key = |kind: &str| format!("{kind}/{number:016x}");
    let txn = Txn::default()
        .when(Compare::Absent(key("topics")))
        .put(key("topics"), vec![1; 60])
        .put(key("managed-ledgers"), vec![2; 80])
        .put(key("ledgers"), vec![3; 100]);
    store.txn(txn).await.expect("an empty store takes new keys");
}

#[allow(clippy::print_stdout, reason = "the figures are its output")]
fn main() {
    let mut args = std::env::args().skip(1);
    let in_flight: u64 = args.next().map_or(32, |text| text.parse().expect("a number in flight"));
    let total: u64 = args.next().map_or(20_000, |text| text.parse().expect("a number in all"));
    let parent = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = parent.join(format!("geminga-txn-rate-{}", std::process::id()));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime starts");
    let before = rss_kib();
    let opening = Instant::now();
    let store = EmbeddedStore::open(&EmbeddedConfig::new(&dir), &Env::system()).expect("opened");
    let store = Arc::new(store);
    let (opened, idle) = (opening.elapsed(), rss_kib());
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    runtime.block_on(async {
        let tasks = (0..in_flight).map(|_| {
            let (store, next) = (Arc::clone(&store), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= total {
                        return;
                    }
                    create(&store, number).await;
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("no task panics");
        }
    });
    let elapsed = start.elapsed();
    println!("transactions per second: {:.0}", total as f64 / elapsed.as_secs_f64());
    println!("open: {opened:?}");
    println!("RSS KiB before, open, after: {before:?} {idle:?} {:?}", rss_kib());
    let file = std::fs::metadata(dir.join("metadata.redb")).map(|file| file.len());
    println!("file bytes: {file:?}");
    drop(store);
    let opening = Instant::now();
    let again = EmbeddedStore::open(&EmbeddedConfig::new(&dir), &Env::system()).expect("opened");
    println!("open again: {:?}", opening.elapsed());
    drop(again);
    std::fs::remove_dir_all(&dir).expect("its own directory goes");
}
