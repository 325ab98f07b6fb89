//! Chaos: a cluster under load to which faults are done that a seed has drawn, one after the other
//! and some at once, and which is judged at the end. `scripts/chaos` runs it.
//!
//! Judged: every message with a receipt is there, in order; none whose acknowledgement had a
//! receipt came again; every copy that should be there is; no process has panicked.
//!
//! *Invariant:* whatever goes wrong, the cluster is mended and read back all the same, and the
//! report says what went wrong. A fault that the machine doesn't permit is named, never left out in
//! silence.

mod faults;
pub mod plan;
pub mod report;
mod stage;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use geminga_client::Client;

use crate::load::{Load, Pace};
use plan::{Draws, Fault, Kind, Step};
use report::Report;
use stage::Stage;

/// In bundles of both brokers, by the hashes of their names.
const TOPICS: [&str; 3] = ["left", "right", "up"];
/// It is about faults and not throughput: some 400 KB a second in all.
const PACE: Pace = Pace { burst: 8, pause: Duration::from_millis(8), message_bytes: 128 };

/// What to run.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What the faults are drawn from.
    pub seed: u64,
    /// No fault begins later than this after the first one.
    pub length: Duration,
    /// Nor are there more of them.
    pub most_faults: usize,
    /// The kinds that are drawn from.
    pub kinds: Vec<Kind>,
    /// Whether members have network namespaces of their own; see [`crate::cluster::Plan`].
    pub namespaces: bool,
    /// A build for tests, for bookies whose disks fail.
    pub faulty_binary: Option<PathBuf>,
    /// Faults that can't be done here, and why.
    pub impossible: Vec<(&'static str, String)>,
}

impl Settings {
    /// All kinds, for so long, with what needs neither privilege nor a build for tests.
    #[must_use]
    pub fn new(seed: u64, length: Duration) -> Self {
        Self {
            seed,
            length,
            most_faults: usize::MAX,
            kinds: Kind::ALL.to_vec(),
            namespaces: false,
            faulty_binary: None,
            impossible: Vec::new(),
        }
    }

    /// An outage of etcd takes a minute where there is time for that.
    #[must_use]
    pub fn outage(&self) -> Duration {
        (self.length / 4).clamp(Duration::from_secs(3), Duration::from_secs(60))
    }
}

/// Runs what blocks beside the load.
fn block<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}

/// What panics in a scenario is an error here: there is something to do after it.
fn attempt<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        text.unwrap_or("it panicked without a text").to_owned()
    })
}

/// Runs it, on a runtime of several threads.
///
/// # Panics
/// When the cluster doesn't come up at all.
pub async fn run(settings: &Settings) -> Report {
    let mut stage = Stage::set(settings).await;
    let mut report = Report::new(settings.seed);
    report.network = if settings.namespaces { "namespaces" } else { "relays" };
    for (fault, why) in &settings.impossible {
        report.skip(fault, why);
    }
    if stage.disk.is_none() {
        report.skip(Kind::DiskFull.name(), "mounting a small disk isn't permitted here");
    }
    let client = stage.cluster.client();
    let load = Load::start(&client, &TOPICS, PACE).await;
    break_it(settings, &mut stage, &load, &mut report).await;
    eprintln!("chaos: no more faults; everything must come back now");
    block(|| stage.mend());
    let settled = block(|| stage.settle());
    report.replication_restored = settled.is_ok();
    report.note(settled);
    match block(|| attempt(|| stage.check_copies())) {
        Ok((checked, broken)) => {
            report.ledgers_checked = checked;
            report.ledgers_broken = broken.len() as u64;
            broken.into_iter().for_each(|why| report.note(Err(why)));
        }
        Err(why) => report.note(Err(format!("copies can't be compared: {why}"))),
    }
    judge(load, client, &mut stage, &mut report).await;
    block(|| end(stage, &mut report));
    report
}

async fn break_it(settings: &Settings, stage: &mut Stage, load: &Load, report: &mut Report) {
    let began = Instant::now();
    let mut done = 0;
    for step in Draws::new(settings.seed, &settings.kinds, settings.outage()) {
        if began.elapsed() >= settings.length || done >= settings.most_faults {
            return;
        }
        let kind = step.fault.kind;
        if report.is_skipped(kind.name()) {
            eprintln!("chaos: SKIPPED {}", kind.name());
            continue;
        }
        let step = without_skipped(step, report);
        let at = began.elapsed().as_secs();
        let what = in_words(&step);
        eprintln!("chaos: {at} s: {what}");
        load.watch_gaps();
        let mut ended = block(|| faults::inject(stage, &step));
        if ended.is_ok() {
            ended = load.try_to_get_on().await;
        }
        done += 1;
        let ended_well = ended.is_ok();
        if let Err(why) = ended {
            report.note(Err(format!("fault {done}, {what}, at {at} s: {why}")));
        } else {
            tokio::time::sleep(step.calm).await;
        }
        report.done(kind, load.longest_gap());
        if let Some(during) = &step.during {
            report.overlapped(kind, during.fault.kind);
        }
        if !ended_well {
            return;
        }
    }
}

/// What comes meanwhile isn't done either where it can't be.
fn without_skipped(mut step: Step, report: &Report) -> Step {
    let is_skipped = |fault: &Fault| report.is_skipped(fault.kind.name());
    if let Some(during) = step.during.take_if(|during| is_skipped(&during.fault)) {
        eprintln!("chaos: SKIPPED {}", during.fault.kind.name());
    }
    step
}

fn in_words(step: &Step) -> String {
    let words = |Fault { kind, target, hold, .. }: &Fault| {
        format!("{} of {target} for {} ms", kind.name(), hold.as_millis())
    };
    match &step.during {
        None => words(&step.fault),
        Some(during) => {
            let after_ms = during.after.as_millis();
            format!("{}, and {after_ms} ms later {}", words(&step.fault), words(&during.fault))
        }
    }
}

async fn judge(mut load: Load, client: Client, stage: &mut Stage, report: &mut Report) {
    report.count(&load.summary());
    eprintln!("chaos: reading everything back");
    let read = tokio::spawn(async move {
        load.stop_and_read_back(&client).await;
        (load.summary(), load.violations())
    });
    match read.await {
        Ok((summary, violations)) => {
            report.is_read_back = true;
            report.count(&summary);
            violations.into_iter().for_each(|violation| report.note(Err(violation)));
        }
        Err(error) => report.note(Err(format!("it can't be read back: {error}"))),
    }
    match block(|| attempt(|| stage.missing_of_kept())) {
        Ok(missing) => report.lost += missing,
        Err(why) => {
            report.is_read_back = false;
            report.note(Err(format!("what was there before can't be read back: {why}")));
        }
    }
}

/// Ends everything in order; what has failed leaves its logs.
fn end(stage: Stage, report: &mut Report) {
    let Stage { cluster, disk, network, .. } = stage;
    for name in cluster.everybody() {
        let log = cluster.log(&name);
        for line in log.lines().filter(|line| line.contains("panicked at")) {
            report.panics += 1;
            report.note(Err(format!("{name}: {line}")));
        }
    }
    if !report.is_good() {
        let kept = std::env::temp_dir().join(format!("geminga-chaos-{}", report.seed));
        match cluster.keep_logs(&kept) {
            Ok(()) => eprintln!("chaos: the logs are in {}", kept.display()),
            Err(error) => eprintln!("chaos: the logs can't be kept: {error}"),
        }
    }
    report.note(attempt(|| cluster.down()));
    drop((disk, network));
}
