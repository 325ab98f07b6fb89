//! What a bookie's disk fails at: its binary is one of a build for tests, whose device fails as a
//! file in the data directory says.

use super::super::attempt;
use super::super::plan::{Fault, Kind};
use super::super::stage::Stage;
use super::disk::{self, FOUND, MOST_TRIES};
use crate::http;

/// One block in so many can't be read: some of each segment file, and most of it can.
const ONE_IN: u64 = 512;
/// What a bookie says that takes no writes any more.
const READ_ONLY: &str = "the log is read-only from now on";

fn say(stage: &Stage, bookie: &str, text: &str) -> Result<(), String> {
    let path = stage.faults_of(bookie);
    // In one piece: it is looked at all the time.
    let new = path.with_extension("new");
    std::fs::write(&new, text)
        .and_then(|()| std::fs::rename(&new, &path))
        .map_err(|error| format!("{} can't be written: {error}", path.display()))
}

fn say_nothing(stage: &Stage, bookie: &str) -> Result<(), String> {
    let path = stage.faults_of(bookie);
    std::fs::remove_file(&path)
        .map_err(|error| format!("{} can't be removed: {error}", path.display()))
}

/// Lets writes or syncs fail, and waits until the bookie is known to be read-only, for good.
pub(super) fn poison(stage: &Stage, fault: &Fault) -> Result<(), String> {
    let bookie = fault.target;
    let said = |stage: &Stage| stage.cluster.log(bookie).matches(READ_ONLY).count();
    let before = said(stage);
    say(stage, bookie, if fault.kind == Kind::FailingSync { "sync\n" } else { "write\n" })?;
    stage.until("the bookie whose disk fails is read-only", |stage| {
        said(stage) > before && stage.is_listed(bookie, "read-only")
    })?;
    attempt(|| is_poisoned(stage, bookie))
}

/// Demands that the bookie itself says so.
fn is_poisoned(stage: &Stage, bookie: &str) {
    let address = stage.cluster.address(bookie, "metrics");
    let metrics = http::get(&address, "/metrics");
    assert!(metrics.contains("geminga_bookie_poisoned 1\n"), "{bookie} isn't: {metrics}");
    let (status, why) = http::request("GET", &address, "/readyz", "");
    assert!(status == 503 && why.contains("disk has failed"), "{bookie}: {status} {why}");
}

/// Gives it a disk that works. It hasn't tried its own again, and takes writes only when it is
/// started anew; a graceful end is no clean one.
pub(super) fn replace(stage: &mut Stage, fault: &Fault) -> Result<(), String> {
    let bookie = fault.target;
    say_nothing(stage, bookie)?;
    attempt(|| {
        is_poisoned(stage, bookie);
        if fault.has_first_way() {
            stage.cluster.stop_with_failure(bookie);
        } else {
            stage.cluster.kill(bookie);
        }
        stage.cluster.start(bookie);
    })
}

/// What must come about once everything has ended: the bookie is one like the others.
pub(super) fn is_writable_again(stage: &Stage, fault: &Fault) -> Result<(), String> {
    let listed = |stage: &Stage| stage.is_listed(fault.target, "writable");
    stage.until("the bookie with a new disk takes writes", listed)
}

/// Makes blocks of segments unreadable, has the bookie look until it has found some, and demands
/// that all messages can be read meanwhile.
pub(super) fn hide_blocks(stage: &mut Stage, fault: &Fault) -> Result<(), String> {
    let bookie = fault.target;
    stage.settle()?;
    let found = |stage: &Stage| stage.cluster.log(bookie).matches(FOUND).count();
    let before = found(stage);
    for attempted in 0..MOST_TRIES {
        let seed = fault.pick.wrapping_add(attempted);
        say(stage, bookie, &format!("read .seg {ONE_IN} {seed}\n"))?;
        // It ends with a failure while something is damaged.
        drop(stage.admin(&["bookies", "scrub", bookie]));
        if found(stage) == before {
            attempt(|| stage.keep())?;
            continue;
        }
        let missing = attempt(|| stage.missing_of_kept())?;
        if missing == 0 {
            return Ok(());
        }
        return Err(format!("{missing} messages are missing while {bookie} can't read blocks"));
    }
    Err(format!("{bookie} has found nothing of what it can't read"))
}

/// Makes them readable.
pub(super) fn show_blocks(stage: &Stage, fault: &Fault) -> Result<(), String> {
    say_nothing(stage, fault.target)
}

/// What must come about once everything has ended: all copies are whole again.
pub(super) fn is_whole_again(stage: &Stage, fault: &Fault) -> Result<(), String> {
    disk::is_whole_again(stage, fault.target)?;
    stage.settle()
}
