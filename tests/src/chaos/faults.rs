//! How each kind of fault is done, and undone.
//!
//! *Invariant:* what destroys copies begins and ends with all copies in place: entries may be
//! confirmed with two of them, so that losing two disks at once is nothing that is promised.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use geminga_proto::env::{Random, SeededRandom};
use serde_json::Value;

use super::plan::{BOOKIES, BROKERS, Kind, ON_SMALL_DISK, Step};
use super::stage::Stage;
use super::{TOPICS, attempt};
use crate::bookie_files::{groups, sealed_segments};
use crate::http;
use crate::relay::Relay;

/// How many bytes change in one go.
const FLIPS: usize = 3;
/// How often it is tried to damage something.
const MOST_FLIPS: u64 = 6;
/// What a bookie says of each entry that it finds damaged.
const FOUND: &str = "a stored entry is damaged";

/// Does one fault, and undoes it.
///
/// # Errors
/// When something doesn't happen that must.
pub fn inject(stage: &mut Stage, step: &Step) -> Result<(), String> {
    let hold = || std::thread::sleep(step.hold);
    let target = step.target;
    if BROKERS.contains(&target) {
        attempt(|| give_bundles_to(stage, target))??;
    }
    match step.kind {
        Kind::Kill => attempt(|| {
            stage.cluster.kill(target);
            hold();
            stage.cluster.start(target);
        }),
        Kind::Freeze | Kind::FreezePastLease => attempt(|| {
            stage.cluster.freeze(target);
            hold();
            stage.cluster.thaw(target);
        }),
        Kind::AllBookies => attempt(|| {
            stage.cluster.kill_all(&BOOKIES);
            hold();
            BOOKIES.iter().for_each(|name| stage.cluster.start(name));
        }),
        Kind::EtcdRestart | Kind::EtcdOutage => attempt(|| {
            stage.cluster.kill(target);
            hold();
            stage.cluster.start(target);
        }),
        Kind::CutOffFromEtcd => attempt(|| {
            stage.to_etcd(target).cut();
            hold();
            stage.to_etcd(target).heal();
        }),
        Kind::Isolate => attempt(|| {
            stage.relays_of(target).for_each(Relay::cut);
            hold();
            stage.relays_of(target).for_each(Relay::heal);
        }),
        Kind::DiskFull => fill(stage, step.hold),
        Kind::Damage => damage(stage, target, step.pick),
        Kind::Wipe => wipe(stage, target),
        Kind::RollingRestart => restart_all(stage),
    }
}

fn fill(stage: &Stage, hold: Duration) -> Result<(), String> {
    let disk = stage.disk.as_ref().ok_or("there is no small disk")?;
    attempt(|| disk.fill())?;
    let felt = stage.until("the bookie is known to be full", |stage| {
        let listed = stage.admin(&["bookies", "list"]).stdout;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        listed.lines().any(|line| line.starts_with(ON_SMALL_DISK) && line.contains(" full "))
    });
    std::thread::sleep(hold);
    attempt(|| disk.free())?;
    felt
}

/// Gives the bundles out anew, by their names, until a broker owns a topic that is published to:
/// what happens to one that owns nothing is nothing.
fn give_bundles_to(stage: &Stage, broker: &str) -> Result<(), String> {
    let unloaded = stage.admin(&["bundles", "unload", "public/default", "--all"]);
    if unloaded.code != Some(0) {
        return Err(format!("bundles can't be given out anew: {}", unloaded.stderr));
    }
    let address = stage.cluster.address(broker, "grpc");
    let (_, port) = address.rsplit_once(':').ok_or("an address has a port")?;
    let asked = stage.cluster.address(broker, "admin");
    stage.until("the broker that is struck owns a topic", |_| {
        TOPICS.iter().any(|topic| {
            let path = format!("/lookup/v2/topic/persistent/public/default/{topic}");
            let (_, body) = http::request("GET", &asked, &path, "");
            let answer: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
            answer["gemingaUrl"].as_str().is_some_and(|url| url.ends_with(&format!(":{port}")))
        })
    })
}

fn restart_all(stage: &mut Stage) -> Result<(), String> {
    for name in BOOKIES.iter().chain(&BROKERS).chain(&["etcd-1"]) {
        attempt(|| {
            stage.cluster.stop(name);
            stage.cluster.start(name);
        })?;
        // Never more than one at a time, as the manual has it.
        stage.settle()?;
    }
    Ok(())
}

/// Changes bytes of sealed segments, has the bookie look, and waits until it finds nothing any
/// more.
fn damage(stage: &mut Stage, bookie: &str, pick: u64) -> Result<(), String> {
    stage.settle()?;
    let data = stage.cluster.dir().join(bookie).join("data");
    let scrub = ["bookies", "scrub", bookie];
    // By the log, since what is found is mended within moments, so that the command may end well.
    let found = |stage: &Stage| stage.cluster.log(bookie).matches(FOUND).count();
    let before = found(stage);
    for attempted in 0..MOST_FLIPS {
        if attempt(|| flip(&data, pick.wrapping_add(attempted)))? == 0 {
            // One that is new has to get something first.
            attempt(|| stage.keep())?;
        } else {
            let what = format!("{bookie} finds nothing damaged any more");
            stage.until(&what, |stage| stage.admin(&scrub).code == Some(0))?;
        }
        stage.settle()?;
        // Else it was in what doesn't count any more, of ledgers that are deleted or elsewhere.
        if found(stage) > before {
            return Ok(());
        }
    }
    Err(format!("{bookie} has found nothing of what was damaged"))
}

/// How many bytes have changed: one in a payload of each group that is picked. Only sealed segments
/// are touched: what is still written to is verified when it is sealed by a start, or read.
fn flip(data: &Path, pick: u64) -> usize {
    let random = SeededRandom::new(pick);
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).ok()?;
        let groups = groups(&bytes);
        (!groups.is_empty()).then_some((path, bytes, groups))
    };
    let mut used: Vec<_> = sealed_segments(data).into_iter().filter_map(read).collect();
    let mut flipped = 0;
    for _ in 0..FLIPS.min(used.len()) {
        let (path, bytes, groups) =
            used.swap_remove((random.next_u64() % used.len() as u64) as usize);
        let group = groups.iter().max_by_key(|group| group.first_payload.1);
        let Some((at, len)) = group.map(|group| group.first_payload) else { continue };
        let at = at + len / 2;
        let file = File::options().write(true).open(path).expect("a segment can be opened");
        file.write_all_at(&[bytes[at] ^ 0x10], at as u64).expect("a byte can be written");
        file.sync_all().expect("it can be synced");
        flipped += 1;
    }
    flipped
}

/// Empties a bookie's directory. Under its name it is refused then; once its name is given up, it
/// is a new one.
fn wipe(stage: &mut Stage, bookie: &str) -> Result<(), String> {
    stage.settle()?;
    attempt(|| {
        stage.cluster.kill(bookie);
        empty(&stage.cluster.dir().join(bookie).join("data"));
        let words = ["start this one under a new name"];
        stage.cluster.refused_start(bookie, &[], &words);
        // What the refused start has left there.
        empty(&stage.cluster.dir().join(bookie).join("data"));
    })?;
    // It is refused for as long as it counts as up, and waits until all is copied.
    let recover = ["bookies", "recover", bookie];
    let mut said = String::new();
    let recovered = stage.until("the lost bookie is recovered", |stage| {
        let ran = stage.admin(&recover);
        said = ran.stderr;
        ran.code == Some(0)
    });
    recovered.map_err(|why| format!("{why}: {said}"))?;
    stage.until("the name of the lost bookie is free", |stage| {
        let listed = stage.admin(&["bookies", "list"]);
        listed.code == Some(0) && !String::from_utf8_lossy(&listed.stdout).contains(bookie)
    })?;
    attempt(|| stage.cluster.start(bookie))?;
    stage.settle()
}

fn empty(dir: &Path) {
    // A directory that is a link is another disk's, and stays.
    for entry in std::fs::read_dir(dir).expect("a data directory can be listed") {
        let path = entry.expect("it can be listed").path();
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.expect("what is in there can be removed");
    }
}
