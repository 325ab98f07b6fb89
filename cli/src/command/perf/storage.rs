//! `geminga perf bookie`: appends to a storage node's log in this process. What is measured is the
//! log of a real bookie on a real disk; network, ledger and broker are left out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use geminga_bookie::bookie::Bookie;
use geminga_bookie::config::BookieConfig;
use geminga_bookie::cookie::Identity;
use geminga_bookie::device::Device;
use geminga_bookie::device::real::RealDevice;
use geminga_bookie::done::{AppendAnswer, AppendDone};
use geminga_proto::env::Env;
use geminga_proto::id::{BookieId, ClusterId, EntryId, Lac, LedgerId, LedgerToken};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{AddKind, AppendRequest, BookieError};
use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::disk::Scratch;
use super::payload::Payloads;
use super::recorder::{Recorder, Window};
use super::report::Report;
use crate::args::perf::StorageArgs;
use crate::exit::{Failed, Outcome};

/// Measures a log.
pub(super) fn run(runtime: &Runtime, args: &StorageArgs) -> Outcome {
    let size = usize::try_from(args.size).unwrap_or(usize::MAX);
    if size > 64 << 20 {
        return Err(Failed::usage("--size must be at most 64MiB"));
    }
    let env = Env::system();
    let scratch = Scratch::new(&args.dir, &env)?;
    let device = Arc::new(RealDevice::open(&scratch.0)?);
    let sync_mode = device.sync_mode();
    let bookie = open(args, device, &env)?;
    let window = Window::new(args.warmup, args.duration);
    let run = Arc::new(Run {
        recorder: Recorder::new(window),
        start: window.start,
        size: args.size,
        in_flight: Mutex::new(0),
        room: Condvar::new(),
        limit: args.in_flight,
    });
    drive(args, &bookie, &run, window, Payloads::new(size, &*env.random));
    let metrics = bookie.metrics();
    runtime.block_on(bookie.close()).context("the log didn't close cleanly")?;
    drop(bookie);
    let mut load = describe(args);
    load["writes"] = json!(metrics.groups);
    load["bytes_a_write"] = json!(metrics.written_bytes.checked_div(metrics.groups));
    let report = Report {
        test: "bookie",
        latency_of: "intended append time to durable",
        recorded: run.recorder.recorded(),
        elapsed: args.duration,
        load,
        durability: json!({ "write_quorum": 1, "ack_quorum": 1, "sync_mode": sync_mode.as_str() }),
    };
    Ok(report.show(args.output)?)
}

fn describe(args: &StorageArgs) -> Value {
    json!({
        "size": args.size,
        "rate": args.rate,
        "ledgers": args.ledgers,
        "in_flight": args.in_flight,
        "duration_s": args.duration.as_secs_f64(),
        "warmup_s": args.warmup.as_secs_f64(),
    })
}

fn open(args: &StorageArgs, device: Arc<dyn Device>, env: &Env) -> anyhow::Result<Bookie> {
    let least = u32::try_from(args.size)?.saturating_add(1 << 20);
    let default = BookieConfig::default();
    let in_flight = args.size.saturating_mul(u64::from(args.in_flight)).saturating_mul(2);
    let config = BookieConfig {
        max_entry_bytes: default.max_entry_bytes.max(least),
        max_pending_bytes: default.max_pending_bytes.max(in_flight),
        ..default
    };
    let identity = Identity::detached(
        BookieId::new("perf")?,
        ClusterId::new("perf")?,
        env.random.nonzero_u64(),
    );
    let (bookie, _report) = Bookie::open(config, identity, device, env.clone())?;
    Ok(bookie)
}

/// What the driver and the log's answers share.
#[derive(Debug)]
struct Run {
    recorder: Recorder,
    start: Instant,
    size: u64,
    in_flight: Mutex<u32>,
    room: Condvar,
    limit: u32,
}

/// An append's tag is when it was due, in nanoseconds since the start.
impl AppendDone for Run {
    fn appended(&self, answers: &[AppendAnswer]) {
        for answer in answers {
            let due = self.start + Duration::from_nanos(answer.tag);
            match answer.result {
                Ok(()) => self.recorder.answered(0, due, self.size),
                Err(error) => self.recorder.failed(0, &error),
            }
        }
        let answered = u32::try_from(answers.len()).unwrap_or(u32::MAX);
        let mut in_flight = self.in_flight.lock();
        *in_flight = in_flight.saturating_sub(answered);
        self.room.notify_one();
    }
}

impl Run {
    fn take_room(&self) {
        let mut in_flight = self.in_flight.lock();
        while *in_flight >= self.limit {
            self.room.wait(&mut in_flight);
        }
        *in_flight += 1;
    }

    fn give_back(&self) {
        *self.in_flight.lock() -= 1;
    }

    fn wait_for_all(&self) {
        let mut in_flight = self.in_flight.lock();
        while *in_flight > 0 {
            self.room.wait(&mut in_flight);
        }
    }
}

/// Appends to the ledgers in turn, at the rate asked for, from this thread.
fn drive(
    args: &StorageArgs,
    bookie: &Bookie,
    run: &Arc<Run>,
    window: Window,
    mut payloads: Payloads,
) {
    let done: Arc<dyn AppendDone> = run.clone();
    let mut next: Vec<EntryId> = vec![EntryId(0); args.ledgers as usize];
    for number in 0_u64.. {
        let mut due = Instant::now();
        if args.rate > 0 {
            due = window.start + Duration::from_secs_f64(number as f64 / args.rate as f64);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        if due >= window.end {
            break;
        }
        run.take_room();
        let at = usize::try_from(number % u64::from(args.ledgers)).unwrap_or(0);
        let entry = next[at];
        let request = AppendRequest {
            ledger: LedgerId(at as u64 + 1),
            entry,
            token: LedgerToken(1),
            lac: Lac(entry.previous()),
            kind: AddKind::Ordinary,
            payload: Payload::from(payloads.shared()),
        };
        let since_start = due.saturating_duration_since(window.start).as_nanos();
        let tag = u64::try_from(since_start).unwrap_or(u64::MAX);
        match bookie.append(request, &done, tag) {
            Ok(()) => next[at] = entry.next(),
            Err(error) => {
                run.give_back();
                run.recorder.failed(0, &error);
                if error != BookieError::Overloaded {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    run.wait_for_all();
}
