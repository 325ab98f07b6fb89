//! `geminga perf reclaim`: what a storage node writes and reads to give deleted space back, in this
//! process on a real disk.
//!
//! Three figures in one run. *Drained*: ledgers are written and deleted a generation behind, as by
//! consumers that keep up. *Half*: every second of the ledgers that lie beside each other is
//! deleted. *Read*: what is left is read from one end to the other, in turn with the same segment
//! files read raw.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use geminga_bookie::bookie::{Bookie, BookieMetrics};
use geminga_bookie::config::BookieConfig;
use geminga_bookie::cookie::Identity;
use geminga_bookie::device::real::RealDevice;
use geminga_bookie::device::{AlignedBuffer, Device};
use geminga_bookie::done::{AppendAnswer, AppendDone};
use geminga_bookie::gc::Collector;
use geminga_meta::keys;
use geminga_meta::record::{ClusterRecord, CookieRecord, Nonce, Record};
use geminga_meta::store::{MemoryStore, MetadataStore, Txn};
use geminga_proto::env::Env;
use geminga_proto::id::{BookieId, ClusterId, EntryId, Lac, LedgerId, LedgerToken};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{AddKind, AppendRequest, BookieError, ReadRequest};
use parking_lot::{Condvar, Mutex};
use serde_json::json;
use tokio::runtime::Runtime;

use super::disk::Scratch;
use super::payload::Payloads;
use crate::args::OutputFormat;
use crate::args::perf::ReclaimArgs;
use crate::config::units::show_bytes;
use crate::exit::{Failed, Outcome};
use crate::output;

/// Generations of the drained workload.
const GENERATIONS: u64 = 8;
/// Raw reads and reads of ledgers, in turn.
const ROUNDS: usize = 3;
/// Bytes of one raw read.
const RAW_READ_BYTES: usize = 4 << 20;
/// How long nothing may have been rewritten for reclaim to count as done.
const STILL: Duration = Duration::from_secs(3);
/// Fills every segment that was begun before.
const FILLING_BYTES: u64 = 600 << 20;
/// Bytes on their way to the disk.
const IN_FLIGHT_BYTES: u64 = 16 << 20;

/// Measures reclaim.
pub(super) fn run(runtime: &Runtime, args: &ReclaimArgs) -> Outcome {
    if args.size > 6 << 20 || args.size == 0 {
        return Err(Failed::usage("--size must be from 1B to 6MiB"));
    }
    Ok(runtime.block_on(measure(args))?)
}

async fn measure(args: &ReclaimArgs) -> anyhow::Result<()> {
    let env = Env::system();
    let scratch = Scratch::new(&args.dir, &env)?;
    let mut node = Node::open(&scratch, &env, args).await?;
    let before = node.bookie.metrics();
    node.drain(args).await?;
    let drained = amplification(&before, &node.bookie.metrics());
    let before = node.bookie.metrics();
    let (left, filling) = node.halve(args).await?;
    let after = node.bookie.metrics();
    let half = amplification(&plus(&before, &filling), &after);
    let (mut raw, mut ledgers) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw.push(node.read_raw(args.total / 2)?);
        ledgers.push(node.read_ledgers(&left).await?);
    }
    let (raw, ledgers) = (median(raw), median(ledgers));
    let sync_mode = node.bookie.info().sync_mode;
    node.bookie.close().await.context("the log didn't close cleanly")?;
    let report = json!({
        "test": "reclaim",
        "write_amplification": { "drained": drained, "half_of_the_ledgers_deleted": half },
        "rewritten_bytes": after.rewritten_bytes - before.rewritten_bytes,
        "raw_read_bytes_per_s": raw,
        "ledger_read_bytes_per_s": ledgers,
        "ledger_read_share": ledgers / raw,
        "load": { "size": args.size, "ledgers": args.ledgers, "total": args.total },
        "durability": { "write_quorum": 1, "ack_quorum": 1, "sync_mode": sync_mode.as_str() },
    });
    match args.output {
        OutputFormat::Json => output::json(&report)?,
        OutputFormat::Text => output::line(format!(
            "write amplification, drained    {drained:.3}\n\
             write amplification, half left  {half:.3}\n\
             raw sequential read             {}/s\n\
             read of what is left            {}/s, {:.0} %\n\
             durability                      {}",
            show_bytes(raw as u64),
            show_bytes(ledgers as u64),
            ledgers / raw * 100.0,
            report["durability"],
        ))?,
    }
    Ok(())
}

/// As if what was appended meanwhile had been before.
fn plus(before: &BookieMetrics, other: &BookieMetrics) -> BookieMetrics {
    BookieMetrics {
        appended_bytes: before.appended_bytes + other.appended_bytes,
        written_bytes: before.written_bytes + other.written_bytes,
        ..*before
    }
}

/// Bytes written to the disk for each byte appended.
fn amplification(before: &BookieMetrics, after: &BookieMetrics) -> f64 {
    let written = after.written_bytes - before.written_bytes;
    let rewritten = after.rewritten_bytes - before.rewritten_bytes;
    (written + rewritten) as f64 / (after.appended_bytes - before.appended_bytes).max(1) as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// A storage node with the metadata that its deletions need.
struct Node {
    bookie: Bookie,
    device: Arc<RealDevice>,
    store: Arc<MemoryStore>,
    collector: Collector,
    window: Arc<Window>,
    payloads: Payloads,
    next_ledger: u64,
}

impl Node {
    async fn open(scratch: &Scratch, env: &Env, args: &ReclaimArgs) -> anyhow::Result<Self> {
        let device = Arc::new(RealDevice::open(&scratch.0)?);
        let config = BookieConfig {
            // What is measured is how much, not how gently.
            background_bytes_per_s: u64::MAX,
            mass_deletion_percent: 100,
            ..BookieConfig::default()
        };
        let instance = env.random.nonzero_u64();
        let cluster_id = ClusterId::new("perf")?;
        let bookie_id = BookieId::new("perf")?;
        let identity = Identity::detached(bookie_id.clone(), cluster_id.clone(), instance);
        let (bookie, _) = Bookie::open(config, identity, device.clone(), env.clone())?;
        let store = Arc::new(MemoryStore::new(env.clock.clone()));
        let nonce = || Nonce::new(&*env.random);
        let cookie = CookieRecord { bookie_id, cluster_id: cluster_id.clone(), instance };
        let cluster = ClusterRecord { cluster_id, format_version: 1, created_ms: 1 };
        let txn = Txn::default()
            .put(keys::CLUSTER, cluster.encode(nonce())?)
            .put(keys::cookie(&cookie.bookie_id), cookie.encode(nonce())?);
        store.txn(txn).await?;
        let collector = Collector::new(bookie.clone(), store.clone());
        let payloads = Payloads::new(usize::try_from(args.size)?, &*env.random);
        let window = Arc::new(Window::new(IN_FLIGHT_BYTES / args.size));
        Ok(Self { bookie, device, store, collector, window, payloads, next_ledger: 1 })
    }

    /// Writes ledgers side by side, so many bytes in all.
    async fn write(&mut self, args: &ReclaimArgs, bytes: u64) -> anyhow::Result<Vec<LedgerId>> {
        let first = self.next_ledger;
        self.next_ledger += u64::from(args.ledgers);
        let ledgers: Vec<LedgerId> = (first..self.next_ledger).map(LedgerId).collect();
        for ledger in &ledgers {
            self.store.txn(Txn::default().put(keys::ledger(*ledger), "it exists")).await?;
        }
        let entries = bytes / args.size / u64::from(args.ledgers);
        let done: Arc<dyn AppendDone> = self.window.clone();
        for entry in (0..entries).map(EntryId) {
            for ledger in &ledgers {
                self.window.take();
                let request = AppendRequest {
                    ledger: *ledger,
                    entry,
                    token: LedgerToken(1),
                    lac: Lac(entry.previous()),
                    kind: AddKind::Ordinary,
                    payload: Payload::from(self.payloads.shared()),
                };
                self.bookie.append(request, &done, 0)?;
            }
        }
        self.window.wait_for_all()?;
        Ok(ledgers)
    }

    async fn delete(&mut self, ledgers: &[LedgerId]) -> anyhow::Result<()> {
        for ledger in ledgers {
            self.store.txn(Txn::default().delete(keys::ledger(*ledger))).await?;
        }
        self.bookie.delete_hint(ledgers);
        let deleted = self.collector.look().await?;
        ensure!(deleted == ledgers.len() as u64, "{deleted} of {} are deleted", ledgers.len());
        Ok(())
    }

    async fn drain(&mut self, args: &ReclaimArgs) -> anyhow::Result<()> {
        let mut before = self.write(args, args.total / GENERATIONS).await?;
        for _ in 1..GENERATIONS {
            let next = self.write(args, args.total / GENERATIONS).await?;
            self.delete(&before).await?;
            before = next;
        }
        self.delete(&before).await?;
        self.settle().await;
        Ok(())
    }

    /// Answers which ledgers are left, and what was written so that all of them is sealed.
    async fn halve(
        &mut self,
        args: &ReclaimArgs,
    ) -> anyhow::Result<(Vec<LedgerId>, BookieMetrics)> {
        let ledgers = self.write(args, args.total).await?;
        let before = self.bookie.metrics();
        let filling = self.write(args, FILLING_BYTES).await?;
        let after = self.bookie.metrics();
        let (mut gone, left): (Vec<_>, Vec<_>) = ledgers.iter().partition(|id| id.0 % 2 == 0);
        gone.extend(filling);
        self.delete(&gone).await?;
        self.settle().await;
        let filling = BookieMetrics {
            appended_bytes: after.appended_bytes - before.appended_bytes,
            written_bytes: after.written_bytes - before.written_bytes,
            ..BookieMetrics::default()
        };
        Ok((left, filling))
    }

    /// Waits until reclaim has nothing more to do.
    async fn settle(&self) {
        let rewritten = |bookie: &Bookie| bookie.metrics().rewritten_segments;
        let (mut last, mut since) = (rewritten(&self.bookie), Instant::now());
        while since.elapsed() < STILL {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = rewritten(&self.bookie);
            if now != last || self.bookie.metrics().rewriting > 0 {
                (last, since) = (now, Instant::now());
            }
        }
    }

    /// Reads segment files as the disk gives them, so many bytes; bytes in a second.
    fn read_raw(&self, most_bytes: u64) -> anyhow::Result<f64> {
        let mut buffer = AlignedBuffer::new(RAW_READ_BYTES);
        let (began, mut bytes) = (Instant::now(), 0);
        let names = self.device.list()?;
        for name in names.iter().filter(|name| name.starts_with("segment-")) {
            let file = self.device.open(name)?;
            let (mut at, end) = (0, file.len()?);
            while at + RAW_READ_BYTES as u64 <= end && bytes < most_bytes {
                file.read_at(at, buffer.as_mut_slice())?;
                at += RAW_READ_BYTES as u64;
                bytes += RAW_READ_BYTES as u64;
            }
        }
        ensure!(bytes > 0, "--total is too small to measure a read");
        Ok(bytes as f64 / began.elapsed().as_secs_f64())
    }

    /// Reads ledgers one after the other, as a broker does that catches up; bytes in a second.
    async fn read_ledgers(&self, ledgers: &[LedgerId]) -> anyhow::Result<f64> {
        let (began, mut bytes) = (Instant::now(), 0);
        for ledger in ledgers {
            let mut first = EntryId(0);
            loop {
                let (max_entries, max_bytes) = (u32::MAX, u64::MAX);
                let request =
                    ReadRequest { ledger: *ledger, first, max_entries, max_bytes, fence: None };
                match self.bookie.read(request).await {
                    Ok(entries) => {
                        bytes += entries.iter().map(|entry| entry.payload.len()).sum::<usize>();
                        first = entries.last().map_or(first, |last| last.entry.next());
                    }
                    Err(BookieError::NoSuchEntry) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(bytes as f64 / began.elapsed().as_secs_f64())
    }
}

/// Entries on their way.
#[derive(Debug)]
struct Window {
    most: u64,
    state: Mutex<(u64, Option<BookieError>)>,
    room: Condvar,
}

impl Window {
    fn new(most: u64) -> Self {
        Self { most: most.max(1), state: Mutex::default(), room: Condvar::new() }
    }

    fn take(&self) {
        let mut state = self.state.lock();
        while state.0 >= self.most {
            self.room.wait(&mut state);
        }
        state.0 += 1;
    }

    fn wait_for_all(&self) -> anyhow::Result<()> {
        let mut state = self.state.lock();
        while state.0 > 0 {
            self.room.wait(&mut state);
        }
        state.1.map_or(Ok(()), |error| Err(error).context("an entry was not stored"))
    }
}

impl AppendDone for Window {
    fn appended(&self, answers: &[AppendAnswer]) {
        let mut state = self.state.lock();
        state.0 = state.0.saturating_sub(answers.len() as u64);
        let failed = answers.iter().find_map(|answer| answer.result.err());
        state.1 = state.1.or(failed);
        self.room.notify_all();
    }
}
