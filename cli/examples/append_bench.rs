//! How fast one process appends to ledgers on bookies of the same process, over gRPC on loopback.
//!
//! `cargo run --release -p geminga-cli --example append_bench -- [--mib 256] [--entry-kib 64]
//! [--bookies 3] [--ledgers 1] [--in-flight-mib 16] [--dir DIR]`
//!
//! Without `--dir` the bookies' disks are memory, so that the network path is what is measured;
//! with it, each has a directory there, and every group is synced. `--in-flight-mib 0`: one entry
//! at a time, of which latencies are told.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_bookie::bookie::Bookie;
use geminga_bookie::config::BookieConfig;
use geminga_bookie::cookie::Identity;
use geminga_bookie::device::Device;
use geminga_bookie::device::memory::MemoryDevice;
use geminga_bookie::device::real::RealDevice;
use geminga_bookie::service::{ServiceConfig, serve};
use geminga_ledger::config::LedgerStoreConfig;
use geminga_ledger::observer::{LedgerObserver, StallReason, WriterFailure};
use geminga_ledger::placement::FixedPlacement;
use geminga_ledger::store::LedgerStore;
use geminga_ledger::transport::grpc::{BookieDirectory, GrpcTransport, GrpcTransportConfig};
use geminga_ledger::writer::LedgerWriter;
use geminga_meta::record::LedgerOwner;
use geminga_meta::store::{MemoryStore, Txn};
use geminga_proto::env::{Env, SystemClock};
use geminga_proto::id::{BookieId, ClusterId, EntryId, Lac, LedgerId, ManagedLedgerId};
use geminga_proto::payload::Payload;
use tokio::net::TcpListener;
use tokio::sync::Notify;

struct Arguments {
    mib: u64,
    entry_kib: u64,
    bookies: usize,
    ledgers: usize,
    in_flight_mib: u64,
    dir: Option<PathBuf>,
}

fn arguments() -> Result<Arguments, String> {
    let mut found =
        Arguments { mib: 256, entry_kib: 64, bookies: 3, ledgers: 1, in_flight_mib: 16, dir: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let text = words.next().ok_or(format!("{word} needs a value"))?;
        let number = || text.parse::<u64>().map_err(|error| format!("{word}: {error}"));
        let count = || number().map(|number| usize::try_from(number).unwrap_or(usize::MAX));
        match word.as_str() {
            "--mib" => found.mib = number()?,
            "--entry-kib" => found.entry_kib = number()?,
            "--bookies" => found.bookies = count()?,
            "--ledgers" => found.ledgers = count()?,
            "--in-flight-mib" => found.in_flight_mib = number()?,
            "--dir" => found.dir = Some(text.into()),
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(found)
}

#[derive(Debug)]
struct Addresses(Vec<(BookieId, String)>);

impl BookieDirectory for Addresses {
    fn address(&self, bookie: &BookieId) -> Option<String> {
        let known = self.0.iter().find(|(known, _)| known == bookie)?;
        Some(known.1.clone())
    }
}

#[derive(Debug, Default)]
struct Progress(Notify);

impl LedgerObserver for Progress {
    fn confirmed(&self, _: EntryId) {
        self.0.notify_one();
    }
    fn failed(&self, failure: WriterFailure) {
        println!("a ledger has failed: {failure}");
        self.0.notify_one();
    }
    fn stalled(&self, reason: StallReason) {
        println!("a ledger has stalled: {reason}");
    }
    fn resumed(&self) {}
}

async fn start_bookie(
    name: &BookieId,
    arguments: &Arguments,
) -> Result<String, Box<dyn std::error::Error>> {
    let device: Arc<dyn Device> = match &arguments.dir {
        None => Arc::new(MemoryDevice::new((arguments.mib + 1_024) << 21)),
        Some(dir) => {
            let dir = dir.join(name.as_str());
            std::fs::create_dir_all(&dir)?;
            Arc::new(RealDevice::open(&dir)?)
        }
    };
    let identity = Identity::detached(name.clone(), ClusterId::new("bench")?, 1);
    let (bookie, report) = Bookie::open(BookieConfig::default(), identity, device, Env::system())?;
    println!("{name}: sync mode {}", report.sync_mode.as_str());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(serve(listener, bookie, ServiceConfig::default(), std::future::pending()));
    Ok(format!("http://{address}"))
}

async fn store(arguments: &Arguments) -> Result<LedgerStore, Box<dyn std::error::Error>> {
    let mut addresses = Vec::new();
    for index in 0..arguments.bookies {
        let name = BookieId::new(&format!("b{index}"))?;
        let address = start_bookie(&name, arguments).await?;
        addresses.push((name, address));
    }
    let names = addresses.iter().map(|(name, _)| name.clone()).collect();
    let config = GrpcTransportConfig::new(ClusterId::new("bench")?, "bench".to_owned());
    let runtime = tokio::runtime::Handle::current();
    let transport = GrpcTransport::new(config, Arc::new(Addresses(addresses)), runtime);
    let quorum = u32::try_from(arguments.bookies)?;
    let env = Env::system();
    Ok(LedgerStore::new(
        LedgerStoreConfig {
            write_quorum: quorum,
            ack_quorum: quorum / 2 + 1,
            ..LedgerStoreConfig::default()
        },
        env.clone(),
        Arc::new(MemoryStore::new(Arc::new(SystemClock::default()))),
        Arc::new(transport),
        Arc::new(FixedPlacement::new(env, names)),
    )?)
}

/// Appends `count` entries; the latency of each if only one is in flight.
async fn load(
    writer: LedgerWriter,
    progress: Arc<Progress>,
    count: u64,
    bytes: usize,
    in_flight_bytes: u64,
) -> Vec<Duration> {
    let body = Bytes::from(vec![7; bytes]);
    let mut latencies = Vec::new();
    for number in 0..count {
        while in_flight_bytes > 0 && writer.pending_bytes() >= in_flight_bytes {
            progress.0.notified().await;
        }
        let begun = Instant::now();
        // As a broker does: a small header of its own before the producer's batch.
        let payload = Payload::new(Bytes::from(vec![1; 32]), body.clone());
        if let Err(error) = writer.append(payload) {
            println!("refused: {error}");
            break;
        }
        if in_flight_bytes == 0 {
            while writer.lac() != Lac(Some(EntryId(number))) {
                progress.0.notified().await;
            }
            latencies.push(begun.elapsed());
        }
    }
    while writer.lac() != Lac(EntryId(count).previous()) {
        progress.0.notified().await;
    }
    latencies
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments()?;
    let store = store(&arguments).await?;
    let bytes = usize::try_from(arguments.entry_kib << 10)?;
    let each = (arguments.mib << 20) / (bytes.max(1) * arguments.ledgers.max(1)) as u64;
    let mut loads = Vec::new();
    let begun = Instant::now();
    for _ in 0..arguments.ledgers {
        let progress = Arc::new(Progress::default());
        let owner = LedgerOwner::ManagedLedger(ManagedLedgerId(1));
        let link = |_: LedgerId| Txn::default();
        let writer = store.create(owner, None, link, progress.clone()).await?;
        let in_flight = (arguments.in_flight_mib << 20) / arguments.ledgers.max(1) as u64;
        loads.push(tokio::spawn(load(writer, progress, each, bytes, in_flight)));
    }
    let mut latencies = Vec::new();
    for load in loads {
        latencies.extend(load.await?);
    }
    let (took, entries) = (begun.elapsed().as_secs_f64(), each * arguments.ledgers as u64);
    let moved = entries as f64 * bytes as f64 / 1e9;
    println!("{entries} entries of {bytes} bytes in {took:.3} s");
    println!("{:.0} entries/s, {:.3} GB/s", entries as f64 / took, moved / took);
    latencies.sort_unstable();
    if let (Some(half), Some(slow)) =
        (latencies.get(latencies.len() / 2), latencies.get(latencies.len() * 99 / 100))
    {
        println!("one in flight: p50 {half:?}, p99 {slow:?}");
    }
    Ok(())
}
