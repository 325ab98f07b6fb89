//! Mixed segments are rewritten: space comes back, and nothing that counts is lost on the way.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use geminga_proto::storage::{AddKind, AppendRequest, BookieError};

use super::rig::{KIB, Rig, append, config, payload};
use crate::config::BookieConfig;
use crate::device::memory::{MemoryDevice, Tear};
use crate::log::state::SealedSegment;

/// Ledgers that take turns, so that every segment has entries of each.
const LEDGERS: u64 = 8;

/// Appends entries of all ledgers in turn; what must be there.
fn interleave(rig: &mut Rig, rounds: u64, bytes: usize) -> BTreeMap<(u64, u64), Bytes> {
    let mut stored = BTreeMap::new();
    for entry in 0..rounds {
        for ledger in 1..=LEDGERS {
            assert_eq!(rig.put(append(ledger, entry, bytes)), Ok(()));
            stored.insert((ledger, entry), payload(ledger, entry, bytes));
        }
    }
    stored
}

impl Rig {
    /// Does chores and work that can wait until there is nothing more to do.
    fn reclaim(&mut self) {
        for _ in 0..10_000 {
            self.keep();
            self.pass(Duration::from_secs(1));
            self.settle();
            let idle = |state: &crate::log::state::LogState| {
                state.rewrite.is_none() && state.rewrite_plan().is_none()
            };
            if self.log.with_state(idle) {
                return;
            }
        }
        panic!("reclaim goes on for ever");
    }

    fn rewritten(&self) -> u64 {
        self.log.with_state(|state| state.counters.rewritten_segments)
    }

    /// Whether a segment isn't rewritten for what was met in it.
    fn blocked(&self) -> bool {
        self.log.with_state(|state| state.sealed.values().any(|sealed| sealed.blocked))
    }

    fn allocated(&self) -> u64 {
        self.log.with_state(|state| state.allocated_bytes - state.spare_bytes)
    }
}

/// Every second ledger is deleted.
fn delete_half(rig: &mut Rig, stored: &mut BTreeMap<(u64, u64), Bytes>) {
    let gone: Vec<u64> = (1..=LEDGERS).filter(|ledger| ledger % 2 == 0).collect();
    assert_eq!(rig.delete(&gone), gone.len() as u64);
    stored.retain(|(ledger, _), _| ledger % 2 == 1);
}

fn demand_gone(rig: &Rig) {
    for ledger in (1..=LEDGERS).filter(|ledger| ledger % 2 == 0) {
        assert_eq!(rig.get(ledger, 0), Err(BookieError::NoSuchEntry));
    }
}

#[test]
fn half_of_the_ledgers_deleted_gives_half_of_the_space_back() {
    let mut rig = Rig::new();
    let mut stored = interleave(&mut rig, 40, 3_000);
    rig.settle();
    let before = rig.allocated();
    delete_half(&mut rig, &mut stored);
    assert!(rig.allocated() > before * 9 / 10, "every segment has something that lives");
    rig.reclaim();
    assert!(rig.rewritten() > 3, "{}", rig.rewritten());
    assert!(rig.allocated() < before * 7 / 10, "{} of {before}", rig.allocated());
    rig.check(&stored);
    demand_gone(&rig);
    let counters = rig.log.with_state(|state| state.counters);
    let live: u64 = stored.values().map(|payload| payload.len() as u64 + 48).sum();
    // Of files as small as these a fifth is headers, padding and index.
    assert!(counters.rewritten_bytes < live * 3 / 2, "{} of {live}", counters.rewritten_bytes);
    // Both a crash and an orderly end leave the same.
    let rig = Rig::on(rig.device.crash(Tear::Lost));
    rig.check(&stored);
    demand_gone(&rig);
    rig.log.seal_all().expect("closes");
    let rig = Rig::on(rig.device.crash(Tear::Lost));
    assert!(rig.report.clean);
    rig.check(&stored);
}

#[test]
fn a_sorted_segment_is_freed_without_being_read_once_its_ledgers_are_gone() {
    let mut rig = Rig::new();
    let mut stored = interleave(&mut rig, 40, 3_000);
    delete_half(&mut rig, &mut stored);
    rig.reclaim();
    let copied = |rig: &Rig| rig.log.with_state(|state| state.counters.rewritten_bytes);
    let (before, kept) = (copied(&rig), rig.allocated());
    rig.delete(&[1, 3, 5, 7]);
    rig.reclaim();
    assert_eq!(copied(&rig), before);
    assert!(rig.allocated() < kept / 3, "{} of {kept}", rig.allocated());
    assert_eq!(rig.get(1, 0), Err(BookieError::NoSuchEntry));
}

#[test]
fn a_copy_of_which_half_is_deleted_is_rewritten_like_any_other_segment() {
    let mut rig = Rig::new();
    let mut stored = interleave(&mut rig, 40, 3_000);
    delete_half(&mut rig, &mut stored);
    rig.reclaim();
    let before = rig.allocated();
    rig.delete(&[1, 3]);
    stored.retain(|(ledger, _), _| *ledger > 3);
    rig.reclaim();
    assert!(rig.allocated() < before * 4 / 5, "{} of {before}", rig.allocated());
    let rig = Rig::on(rig.device.crash(Tear::Lost));
    rig.check(&stored);
}

#[test]
fn fences_tokens_and_confirmations_of_a_source_live_on_in_the_copy() {
    let mut rig = Rig::new();
    let mut stored = interleave(&mut rig, 40, 3_000);
    for ledger in [1, 2, 3] {
        rig.fence(ledger).expect("fences");
    }
    // Of this one a source has nothing but the fence.
    rig.fence(90).expect("fences");
    rig.fill(91, 0..30, 5_000);
    delete_half(&mut rig, &mut stored);
    rig.delete(&[91]);
    rig.reclaim();
    let rig_after = Rig::on(rig.device.crash(Tear::Lost));
    for rig in [&mut rig, &mut { rig_after }] {
        for ledger in [1, 3, 90] {
            assert_eq!(rig.put(append(ledger, 50, 10)), Err(BookieError::Fenced), "{ledger}");
        }
        let recovery = AppendRequest { kind: AddKind::Recovery, ..append(1, 50, 10) };
        assert_eq!(rig.put(recovery), Ok(()));
        let lac = rig.fence(5).expect("fences");
        assert_eq!(lac, geminga_proto::id::Lac(Some(geminga_proto::id::EntryId(38))));
        rig.check(&stored);
    }
}

#[test]
fn a_crash_at_any_write_of_a_rewrite_leaves_everything_readable() {
    let mut rig = Rig::new();
    let mut stored = interleave(&mut rig, 24, 3_000);
    rig.settle();
    delete_half(&mut rig, &mut stored);
    rig.settle();
    let disk = rig.device.crash(Tear::Lost);
    for write in 1.. {
        for tear in [Tear::Lost, Tear::Whole, Tear::Blocks(write * 0x9e37_79b9)] {
            let rig = Rig::on(disk.fork());
            rig.device.cut_power_at_write(write);
            for _ in 0..400 {
                rig.keep();
                rig.pass(Duration::from_secs(1));
            }
            if !rig.device.is_dead() {
                assert!(rig.rewritten() > 0);
                assert!(write > 10, "{write} writes");
                return;
            }
            let mut rig = Rig::on(rig.device.crash(tear));
            assert_eq!(rig.report.damage, [], "after write {write}, {tear:?}");
            rig.check(&stored);
            demand_gone(&rig);
            rig.reclaim();
            rig.check(&stored);
        }
    }
}

#[test]
fn a_full_disk_of_mixed_segments_makes_room_by_itself() {
    let limited = BookieConfig { max_bytes: Some(2048 * KIB), ..config() };
    let mut rig = Rig::open(MemoryDevice::new(64 * 1024 * KIB), &limited).expect("opens");
    let mut stored = BTreeMap::new();
    let mut entry = 0;
    let full = 'fill: loop {
        for ledger in 1..=LEDGERS {
            match rig.put(append(ledger, entry, 3_000)) {
                Ok(()) => drop(stored.insert((ledger, entry), payload(ledger, entry, 3_000))),
                Err(error) => break 'fill error,
            }
        }
        entry += 1;
    };
    assert_eq!(full, BookieError::DiskFull);
    // State logs fill it up to the second mark.
    for entry in 0..10_000 {
        let request = AppendRequest { kind: AddKind::StateLog, ..append(50, entry, 3_000) };
        match rig.put(request) {
            Ok(()) => drop(stored.insert((50, entry), payload(50, entry, 3_000))),
            Err(BookieError::DiskFull) => break,
            Err(other) => panic!("{other}"),
        }
    }
    // Over a restart, too, which takes a segment of its own.
    let mut rig = Rig::open(rig.device.crash(Tear::Lost), &limited).expect("opens");
    assert_eq!(rig.put(append(60, 0, 10)), Err(BookieError::DiskFull));
    delete_half(&mut rig, &mut stored);
    stored.retain(|(ledger, _), _| ledger % 2 == 1 || *ledger == 50);
    rig.reclaim();
    rig.check(&stored);
    for entry in 0..60 {
        assert_eq!(rig.put(append(61, entry, 3_000)), Ok(()), "entry {entry}");
    }
}

#[test]
fn a_damaged_record_that_is_nowhere_else_keeps_its_segment() {
    let mut rig = Rig::new();
    let mut stored = interleave(&mut rig, 24, 3_000);
    rig.settle();
    let file = rig.sealed_files().remove(0);
    // In the payload of an entry of ledger 1, the first one of the segment.
    rig.device.flip(&file, 4_096 + 88 + 48 + 500, 1);
    assert_eq!(rig.get(1, 0), Err(BookieError::CorruptEntry));
    delete_half(&mut rig, &mut stored);
    stored.remove(&(1, 0));
    rig.reclaim();
    assert!(rig.rewritten() > 0, "the others go on");
    assert_eq!(rig.get(1, 0), Err(BookieError::CorruptEntry), "never *no such entry*");
    rig.check(&stored);
    // Another bookie's copy is written back; then nothing keeps the segment.
    let recovery = AppendRequest { kind: AddKind::Recovery, ..append(1, 0, 3_000) };
    assert_eq!(rig.put(recovery), Ok(()));
    stored.insert((1, 0), payload(1, 0, 3_000));
    rig.check(&stored);
    assert!(!rig.blocked(), "at once, not at the next scrub");
    let mut rig = Rig::on(rig.device.crash(Tear::Lost));
    rig.reclaim();
    assert!(!rig.sealed_files().contains(&file), "{:?}", rig.sealed_files());
    rig.check(&stored);
}

#[test]
fn a_damaged_record_that_counts_no_more_blocks_no_segment() {
    let mut rig = Rig::new();
    let mut stored = interleave(&mut rig, 24, 3_000);
    rig.settle();
    let file = rig.sealed_files().remove(0);
    rig.device.flip(&file, 4_096 + 88 + 48 + 500, 1);
    delete_half(&mut rig, &mut stored);
    rig.reclaim();
    assert!(rig.blocked(), "a ledger that lives has it");
    rig.delete(&[1]);
    stored.retain(|(ledger, _), _| *ledger != 1);
    assert!(!rig.blocked());
    rig.reclaim();
    rig.check(&stored);
}

#[test]
fn what_a_rewrite_has_copied_whole_is_not_damaged_any_more() {
    use geminga_proto::id::{EntryId, LedgerId};
    let mut rig = Rig::new();
    let mut stored = interleave(&mut rig, 40, 3_000);
    delete_half(&mut rig, &mut stored);
    while rig.log.with_state(|state| state.rewrite.is_none()) {
        rig.log.run_chore();
        rig.pass(Duration::from_secs(1));
    }
    // Somebody couldn't read them for a moment: one in a source, one whose copy is elsewhere.
    let sources = rig.log.with_state(|state| state.rewrite.clone().expect("one").sources);
    rig.log.damage(|damaged| {
        damaged.note(LedgerId(1), EntryId(0)..=EntryId(2), sources[0]);
        damaged.note(LedgerId(3), EntryId(1)..=EntryId(1), geminga_proto::id::SegmentId(900));
    });
    rig.reclaim();
    assert_eq!(rig.log.with_state(|state| state.damaged.ranges(9)), []);
    rig.check(&stored);
}

#[test]
fn a_full_disk_is_not_rewritten_for_ever_for_what_a_copy_does_not_gain() {
    let limited = BookieConfig { max_bytes: Some(4096 * KIB), ..config() };
    let mut rig = Rig::open(MemoryDevice::new(64 * 1024 * KIB), &limited).expect("opens");
    let mut stored = BTreeMap::new();
    // Of each nine entries, which fill four blocks, three go: a copy is hardly any smaller.
    'fill: for entry in 0.. {
        for ledger in (1..=6).chain([50, 51, 52]) {
            match rig.offer(append(ledger, entry, 1_760)) {
                Ok(()) => drop(stored.insert((ledger, entry), payload(ledger, entry, 1_760))),
                Err(BookieError::DiskFull) => break 'fill,
                Err(other) => panic!("{other}"),
            }
        }
        rig.settle();
    }
    rig.settle();
    for (ledger, entry, result) in rig.answers() {
        if result.is_err() {
            stored.remove(&(ledger, entry));
        }
    }
    rig.delete(&[50, 51, 52]);
    // And as much as a copy gives back is taken by somebody else.
    rig.log.state.lock().limits.ordinary_reserve_percent = 100;
    stored.retain(|(ledger, _), _| *ledger < 50);
    assert!(rig.log.with_state(crate::log::state::LogState::is_pressed), "a disk that is full");
    let live = rig.log.with_state(|state| {
        let share = |sealed: &SealedSegment| sealed.live_bytes * 100 / state.limits.segment_bytes;
        let shares = state.sealed.values().map(share);
        shares.filter(|share| *share > 40).collect::<Vec<_>>()
    });
    assert!(live.len() > 5 && live.iter().all(|live| *live < 90), "they are candidates: {live:?}");
    // Which panics if there is no end.
    rig.reclaim();
    rig.check(&stored);
    let (copied, stays) = rig.log.with_state(|state| {
        let stays: u64 = state.sealed.values().map(|sealed| sealed.live_bytes).sum();
        (state.counters.rewritten_bytes, stays)
    });
    assert!(copied <= 2 * stays, "{copied} bytes were copied of {stays}");
}

#[test]
fn a_copy_that_is_made_in_many_small_batches_fits_into_its_file() {
    // Each batch ends with a group that takes a whole block for a few bytes.
    let small = BookieConfig { reclaim_buffer_bytes: 2_048, ..config() };
    let mut rig = Rig::open(MemoryDevice::new(4096 * KIB), &small).expect("opens");
    let mut stored = BTreeMap::new();
    for entry in 0..200 {
        for ledger in 1..=LEDGERS {
            rig.offer(append(ledger, entry, 300)).expect("room");
            stored.insert((ledger, entry), payload(ledger, entry, 300));
        }
        rig.settle();
    }
    rig.settle();
    let gone: Vec<u64> = (2..=LEDGERS).collect();
    rig.delete(&gone);
    stored.retain(|(ledger, _), _| *ledger == 1);
    rig.reclaim();
    assert!(rig.rewritten() > 0);
    assert!(!rig.blocked(), "a copy didn't fit into its file");
    rig.check(&stored);
}

#[test]
fn a_disk_that_was_filled_by_others_is_met_before_any_index_is_read() {
    let mut rig = Rig::new();
    let mut stored = interleave(&mut rig, 40, 3_000);
    rig.settle();
    rig.log
        .state
        .lock()
        .doom(0, &(2..=LEDGERS).map(geminga_proto::id::LedgerId).collect::<Vec<_>>());
    stored.retain(|(ledger, _), _| *ledger == 1);
    while rig.log.with_state(|state| state.rewrite_plan().is_none()) {
        rig.log.run_chore();
    }
    // No index can be read, so whoever tries would block a segment.
    for file in rig.sealed_files() {
        let blocks = rig.device.contents(&file).expect("there").len() / 4_096;
        rig.device.spoil(&file, blocks - 1);
    }
    rig.device.set_capacity(0);
    for _ in 0..5 {
        rig.log.run_chore();
        rig.pass(Duration::from_secs(2));
    }
    let touched = |state: &crate::log::state::LogState| {
        state.sealed.values().any(|sealed| sealed.blocked) || !state.suspects.is_empty()
    };
    assert!(!rig.log.with_state(touched), "an index was read");
}

#[test]
fn a_ledger_that_is_deleted_while_it_is_copied_stays_deleted() {
    for steps in 0..40 {
        let mut rig = Rig::new();
        let mut stored = interleave(&mut rig, 24, 3_000);
        delete_half(&mut rig, &mut stored);
        for _ in 0..steps {
            rig.log.run_chore();
            rig.pass(Duration::from_secs(1));
        }
        rig.log.state.lock().doom(0, &[geminga_proto::id::LedgerId(3)]);
        stored.retain(|(ledger, _), _| *ledger != 3);
        rig.reclaim();
        let rig = Rig::on(rig.device.crash(Tear::Lost));
        assert_eq!(rig.get(3, 0), Err(BookieError::NoSuchEntry), "after {steps} steps");
        rig.check(&stored);
    }
}
