//! What is done to the bytes of a bookie's disk, and to the room on it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use geminga_proto::env::{Random, SeededRandom};

use super::super::attempt;
use super::super::plan::ON_SMALL_DISK;
use super::super::stage::Stage;
use crate::bookie_files::{groups, sealed_segments};

/// How many bytes change in one go.
const FLIPS: usize = 3;
/// How often it is tried to damage something.
pub(super) const MOST_TRIES: u64 = 6;
/// What a bookie says of each entry that it finds damaged.
pub(super) const FOUND: &str = "a stored entry is damaged";

/// Takes all room on the small disk, and waits until that is known.
pub(super) fn fill(stage: &Stage) -> Result<(), String> {
    let disk = stage.disk.as_ref().ok_or("there is no small disk")?;
    attempt(|| disk.fill())?;
    stage.until("the bookie is known to be full", |stage| stage.is_listed(ON_SMALL_DISK, "full"))
}

/// Gives it back.
pub(super) fn free(stage: &Stage) -> Result<(), String> {
    let disk = stage.disk.as_ref().ok_or("there is no small disk")?;
    attempt(|| disk.free())
}

/// Changes bytes of sealed segments, has the bookie look, and waits until it finds nothing any
/// more.
pub(super) fn damage(stage: &mut Stage, bookie: &str, pick: u64) -> Result<(), String> {
    stage.settle()?;
    let data = stage.data_of(bookie);
    let scrub = ["bookies", "scrub", bookie];
    // By the log, since what is found is mended within moments, so that the command may end well.
    let found = |stage: &Stage| stage.cluster.log(bookie).matches(FOUND).count();
    let before = found(stage);
    for attempted in 0..MOST_TRIES {
        if attempt(|| flip(&data, pick.wrapping_add(attempted)))? == 0 {
            // One that is new has to get something first.
            attempt(|| stage.keep())?;
        } else {
            // It fails while something is damaged.
            drop(stage.admin(&scrub));
            is_whole_again(stage, bookie)?;
        }
        stage.settle()?;
        // Else it was in what doesn't count any more, of ledgers that are deleted or elsewhere.
        if found(stage) > before {
            return Ok(());
        }
    }
    Err(format!("{bookie} has found nothing of what was damaged"))
}

/// Waits until the bookie finds nothing damaged any more: also of what is still written to, which
/// only its owner can close.
pub(super) fn is_whole_again(stage: &Stage, bookie: &str) -> Result<(), String> {
    let what = format!("{bookie} finds nothing damaged any more");
    let scrub = ["bookies", "scrub", bookie];
    stage.until(&what, |stage| stage.admin(&scrub).code == Some(0))
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
pub(super) fn wipe(stage: &mut Stage, bookie: &str) -> Result<(), String> {
    stage.settle()?;
    attempt(|| {
        stage.cluster.kill(bookie);
        empty(&stage.data_of(bookie));
        let words = ["start this one under a new name"];
        stage.cluster.refused_start(bookie, &[], &words);
        // What the refused start has left there.
        empty(&stage.data_of(bookie));
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
