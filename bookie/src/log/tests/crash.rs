//! What a power cut leaves.

use std::collections::BTreeMap;

use bytes::Bytes;
use geminga_proto::id::{BookieId, ClusterId};
use geminga_proto::storage::BookieError;

use super::rig::{KIB, Rig, append, config, payload};
use crate::config::BookieConfig;
use crate::cookie::{self, Identity};
use crate::device::memory::{MemoryDevice, Operation, Tear};
use crate::device::{BLOCK_BYTES, DeviceError};
use crate::log::keeper::{Chored, KEEPER_INTERVAL};
use crate::log::{Turn, segment};

/// Three entries acknowledged in groups of their own, and a group of `entries` whose write was
/// cut off by the power.
fn cut_off(entries: u64, bytes: usize) -> (MemoryDevice, BTreeMap<(u64, u64), Bytes>) {
    let mut rig = Rig::new();
    let mut durable = BTreeMap::new();
    for entry in 0..3 {
        assert_eq!(rig.put(append(1, entry, 300)), Ok(()));
        durable.insert((1, entry), payload(1, entry, 300));
    }
    for entry in 0..entries {
        rig.offer(append(2, entry, bytes)).expect("room");
    }
    rig.device.cut_power_at_write(1);
    assert_eq!(rig.turn(), Turn::Progress);
    assert!(rig.device.is_dead());
    assert!(rig.answers()[3..].iter().all(|answer| answer.2 == Err(BookieError::Io)));
    (rig.device, durable)
}

/// Everything acknowledged is there; of the group that was cut off, at most a prefix.
/// `goes_on`: appends to the log, too.
fn check(
    device: MemoryDevice,
    durable: &BTreeMap<(u64, u64), Bytes>,
    entries: u64,
    goes_on: bool,
    what: &str,
) {
    let mut rig = Rig::open(device, &config()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!(rig.report.damage, [], "{what}");
    rig.check(durable);
    let found: Vec<bool> = (0..entries)
        .map(|entry| match rig.get(2, entry) {
            Ok(_) => true,
            Err(BookieError::NoSuchEntry) => false,
            Err(other) => panic!("{what}: {other}"),
        })
        .collect();
    let prefix = found.iter().take_while(|found| **found).count();
    assert!(found[prefix..].iter().all(|found| !found), "{what}: {found:?}");
    if !goes_on {
        return;
    }
    assert_eq!(rig.put(append(3, 0, 10)), Ok(()), "{what}");
    assert_eq!(rig.get(3, 0), Ok(payload(3, 0, 10)), "{what}");
}

#[test]
fn every_byte_prefix_of_the_write_in_flight_leaves_what_was_acknowledged() {
    let (device, durable) = cut_off(3, 900);
    let bytes = device.last_unsynced_bytes().expect("the last write was cut off");
    assert_eq!(bytes, BLOCK_BYTES);
    for prefix in 0..=bytes {
        let crashed = device.crash(Tear::Prefix(prefix));
        check(crashed, &durable, 3, prefix % 61 == 0, &format!("prefix of {prefix}"));
    }
}

#[test]
fn every_prefix_around_each_record_and_block_of_a_longer_group_leaves_what_was_acknowledged() {
    let (device, durable) = cut_off(9, 3_000);
    let bytes = device.last_unsynced_bytes().expect("the last write was cut off");
    assert_eq!(bytes, 7 * BLOCK_BYTES);
    let edges = (0..=bytes).filter(|at| at % 512 < 2 || at % 3048 < 100 && at % 7 == 0);
    for prefix in edges {
        let crashed = device.crash(Tear::Prefix(prefix));
        check(crashed, &durable, 9, true, &format!("prefix of {prefix}"));
    }
}

#[test]
fn every_subset_of_the_blocks_in_flight_leaves_what_was_acknowledged() {
    let (device, durable) = cut_off(9, 3_000);
    for blocks in 0..1 << 7 {
        let tear = Tear::Blocks(blocks);
        check(device.crash(tear), &durable, 9, true, &format!("blocks {blocks:07b}"));
    }
}

#[test]
fn a_power_cut_at_any_write_loses_nothing_acknowledged() {
    // Enough to roll through several segments, with seals, manifests and new files between.
    let mut cuts = 0;
    for cut in 1.. {
        let mut rig = Rig::new();
        rig.device.cut_power_at_write(cut);
        let mut durable = BTreeMap::new();
        for entry in 0..70 {
            if rig.log.state.lock().poisoned.is_some() {
                break;
            }
            if rig.put(append(entry % 3, entry, 5_000)) == Ok(()) {
                durable.insert((entry % 3, entry), payload(entry % 3, entry, 5_000));
            }
        }
        if !rig.device.is_dead() {
            break;
        }
        cuts += 1;
        for tear in [Tear::Lost, Tear::Prefix(100), Tear::Blocks(0b10), Tear::Whole] {
            let reopened = Rig::open(rig.device.crash(tear), &config());
            let reopened = reopened.unwrap_or_else(|error| panic!("cut {cut}, {tear:?}: {error}"));
            assert_eq!(reopened.report.damage, [], "cut {cut}, {tear:?}");
            reopened.check(&durable);
        }
    }
    assert!(cuts > 100, "the workload has many writes to cut: {cuts}");
}

#[test]
fn nothing_unsynced_is_readable_or_acknowledged() {
    let mut rig = Rig::new();
    rig.offer(append(1, 0, 100)).expect("room");
    assert_eq!(rig.get(1, 0), Err(BookieError::NoSuchEntry));
    assert_eq!(rig.answers(), []);
    rig.turn();
    assert_eq!(rig.get(1, 0), Ok(payload(1, 0, 100)));
    assert_eq!(rig.answers(), [(1, 0, Ok(()))]);
}

#[test]
fn after_a_clean_close_nothing_is_replayed() {
    let mut rig = Rig::new();
    rig.fill(1, 0..5, 1_000);
    rig.log.seal_all().expect("closes");
    let rig = Rig::on(rig.device.crash(Tear::Lost));
    assert!(rig.report.clean);
    assert_eq!((rig.report.replayed_groups, rig.report.ledgers), (0, 1));
    assert_eq!(rig.read(1, 0, 100).map(|entries| entries.len()), Ok(5));
}

#[test]
fn restarts_do_not_eat_up_the_disk() {
    let mut device = MemoryDevice::new(1024 * KIB);
    for round in 0..40 {
        let mut rig = Rig::on(device);
        rig.fill(1, round..round + 1, 500);
        rig.keep();
        device = rig.device.crash(Tear::Lost);
    }
    let rig = Rig::on(device);
    assert_eq!(rig.read(1, 0, 100).map(|entries| entries.len()), Ok(40));
}

#[test]
fn a_first_start_waits_for_the_disk_a_few_times_only() {
    let rig = Rig::new();
    // Zeros for the first segment, its header, and the manifest's copies; each is synced, and
    // before them the segment's length and, once for all, the names.
    assert_eq!(rig.device.operations(), (4, 5));
    assert_eq!(rig.device.directory_syncs(), 1);
}

#[test]
fn a_segment_that_was_not_written_to_its_end_keeps_its_length() {
    let large =
        BookieConfig { segment_bytes: Some(512 * KIB), first_segment_bytes: 512 * KIB, ..config() };
    let mut rig = Rig::open(MemoryDevice::new(16 << 20), &large).expect("opens");
    let mut entries = 0;
    while rig.turn() != Turn::Blocked {
        rig.offer(append(1, entries, 5_000)).expect("room");
        entries += 1;
    }
    // Needed at once, so that most of it isn't written first.
    assert_eq!(rig.log.run_chore(), Chored::Done);
    rig.turn();
    let crashed = rig.device.crash(Tear::Lost);
    for slot in &rig.log.state.lock().manifest.slots {
        let content = crashed.contents(&segment::file_name(slot.number)).expect("its name is kept");
        assert_eq!(content.len() as u64, slot.capacity_bytes);
    }
    let rig = Rig::open(crashed, &large).expect("opens");
    assert_eq!(rig.read(1, 0, 1_000).map(|found| found.len() as u64), Ok(entries));
}

/// Starts a bookie's disk and log as a first start does, up to the end or to the power cut.
fn first_start(device: &MemoryDevice) -> Result<Rig, String> {
    let cluster = ClusterId::new("c").expect("valid");
    let identity = Identity::detached(BookieId::new("b").expect("valid"), cluster, 77);
    let found = cookie::load(device).map_err(|error| error.to_string())?;
    let identity = match found {
        Some(found) => found,
        None => {
            cookie::save(device, &identity).map_err(|error| error.to_string())?;
            identity
        }
    };
    let rig = Rig::open_as(device.clone(), &config(), identity.begun);
    let rig = rig.map_err(|error| error.to_string())?;
    cookie::mark_begun(device, &identity).map_err(|error| error.to_string())?;
    Ok(rig)
}

#[test]
fn a_first_start_that_is_cut_short_between_any_two_steps_is_begun_anew() {
    let mut cuts = [0, 0];
    for at_write in [false, true] {
        for cut in 1.. {
            let device = MemoryDevice::new(4096 * KIB);
            if at_write {
                device.cut_power_at_write(cut);
            } else {
                device.cut_power_after_step(cut);
            }
            let started = first_start(&device);
            if !device.is_dead() {
                started.expect("it was not cut short");
                break;
            }
            cuts[usize::from(at_write)] += 1;
            for tear in [Tear::Lost, Tear::Prefix(100), Tear::Whole] {
                let what = format!("at a write: {at_write}, cut {cut}, {tear:?}");
                let again = first_start(&device.crash(tear));
                let mut rig = again.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(rig.report.damage, [], "{what}");
                rig.fill(1, 0..3, 100);
                let rig = first_start(&rig.device.crash(Tear::Lost));
                let rig = rig.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(rig.read(1, 0, 10).map(|entries| entries.len()), Ok(3), "{what}");
                assert!(cookie::load(&rig.device).expect("whole").expect("there").begun);
            }
        }
    }
    // Both cookies with a write, a sync, a rename and a sync of the names each; and the log's.
    assert_eq!(cuts, [12, 6]);
}

#[test]
fn an_io_error_poisons_the_log_and_is_never_tried_again() {
    for operation in [Operation::Write, Operation::Sync] {
        let mut rig = Rig::new();
        rig.fill(1, 0..2, 100);
        rig.device.fail(operation, 0);
        assert_eq!(rig.put(append(1, 2, 100)), Err(BookieError::Io));
        rig.device.mend();
        let before = rig.device.operations();
        assert_eq!(rig.offer(append(1, 3, 100)), Err(BookieError::ReadOnly));
        assert_eq!(rig.offer_fence(1).map(|_| ()), Err(BookieError::ReadOnly));
        rig.settle();
        assert_eq!(rig.device.operations(), before, "nothing is written any more");
        assert!(rig.log.state.lock().poisoned.is_some());
        // What was durable can be read; whether the failed entry is there can't be told.
        assert_eq!(rig.get(1, 1), Ok(payload(1, 1, 100)));
        assert_eq!(rig.get(1, 2), Err(BookieError::UnknownEntry));
        assert!(rig.log.seal_all().is_err());
    }
}

#[test]
fn a_want_of_file_descriptors_holds_up_new_segments_and_loses_nothing() {
    let mut rig = Rig::new();
    rig.fill(1, 0..2, 5_000);
    rig.device.fail(Operation::Open, 0);
    // The active segment is written to all the same, until it is full.
    let mut entry = 2;
    loop {
        rig.offer(append(1, entry, 5_000)).expect("room");
        entry += 1;
        if rig.turn() == Turn::Blocked && matches!(rig.log.run_chore(), Chored::Starved(_)) {
            break;
        }
    }
    assert!(entry > 8 && rig.log.state.lock().poisoned.is_none(), "{entry}");
    rig.device.mend();
    rig.settle();
    assert!(rig.answers().iter().all(|answer| answer.2 == Ok(())));
    let rig = Rig::on(rig.device.crash(Tear::Lost));
    for entry in 0..entry {
        assert_eq!(rig.get(1, entry), Ok(payload(1, entry, 5_000)));
    }
}

#[test]
fn a_keeper_without_file_descriptors_pauses_and_writes_nothing() {
    let mut rig = Rig::new();
    rig.device.fail(Operation::Open, 0);
    let mut entry = 0;
    loop {
        rig.offer(append(1, entry, 5_000)).expect("room");
        entry += 1;
        if rig.turn() == Turn::Blocked {
            break;
        }
    }
    let called = |rig: &mut Rig| {
        rig.log.state.lock().turns.keeper_called = false;
        assert_eq!(rig.turn(), Turn::Blocked);
        rig.log.state.lock().turns.keeper_called
    };
    assert!(called(&mut rig));
    let before = (rig.device.operations(), rig.device.contents("manifest-a"));
    for _ in 0..3 {
        assert!(matches!(rig.log.run_chore(), Chored::Starved(_)));
        assert!(!called(&mut rig), "nobody calls it while it pauses");
        rig.pass(KEEPER_INTERVAL);
        assert!(called(&mut rig));
    }
    assert_eq!((rig.device.operations(), rig.device.contents("manifest-a")), before);
}

#[test]
fn a_close_without_file_descriptors_seals_what_is_open_or_says_that_it_could_not() {
    let mut rig = Rig::new();
    rig.fill(1, 0..2, 5_000);
    rig.keep();
    rig.device.fail(Operation::Open, 0);
    rig.log.state.lock().closing = true;
    rig.log.seal_all().expect("what is open needs no file descriptor");
    let reopened = Rig::on(rig.device.crash(Tear::Lost));
    assert!(reopened.report.clean);
    assert_eq!(reopened.read(1, 0, 10).map(|entries| entries.len()), Ok(2));

    let mut rig = Rig::new();
    rig.device.fail(Operation::Open, 0);
    rig.offer(append(1, 0, 5_000)).expect("room");
    while rig.turn() == Turn::Progress {
        rig.offer(append(1, 1, 5_000)).expect("room");
    }
    let starved = rig.log.seal_all();
    assert!(matches!(starved, Err(DeviceError::TooManyFiles { .. })), "{starved:?}");
}

#[test]
fn what_waits_behind_a_failed_write_is_refused_and_not_left_hanging() {
    let mut rig = Rig::new();
    for entry in 0..10 {
        rig.offer(append(1, entry, 8_000)).expect("room");
    }
    rig.device.fail(Operation::Sync, 0);
    rig.turn();
    let answers = rig.answers();
    assert_eq!(answers.len(), 10);
    assert_eq!(answers[0].2, Err(BookieError::Io));
    assert_eq!(answers[9].2, Err(BookieError::ReadOnly));
}

#[test]
fn consecutive_entries_are_read_across_segments_up_to_the_limits_or_a_gap() {
    let mut rig = Rig::new();
    rig.fill(1, 0..60, 5_000);
    rig.fill(1, 61..63, 5_000);
    assert!(rig.sealed_files().len() >= 2);
    let entries = rig.read(1, 3, 100).expect("there");
    assert_eq!(entries.len(), 57, "up to the gap");
    for entry in &entries {
        assert_eq!(entry.payload, payload(1, entry.entry.0, 5_000));
    }
    assert_eq!(rig.read(1, 3, 4).map(|entries| entries.len()), Ok(4));
    assert_eq!(rig.read(1, 60, 4), Err(BookieError::NoSuchEntry));
    assert_eq!(rig.read(1, 0, 0), Err(BookieError::Invalid));
}

#[test]
fn what_waits_for_a_segment_is_refused_when_the_keepers_disk_work_fails() {
    for operation in [Operation::Create, Operation::Write, Operation::Sync, Operation::SyncDir] {
        for queued_late in [false, true] {
            let mut rig = Rig::new();
            // Up to the end of the active segment, without a next one.
            let mut entry = 0;
            loop {
                rig.offer(append(1, entry, 5_000)).expect("room");
                entry += 1;
                if rig.turn() == Turn::Blocked {
                    break;
                }
            }
            let mut fence = rig.offer_fence(1).expect("queued");
            rig.answers();
            rig.device.fail(operation, 0);
            assert_eq!(rig.log.run_chore(), Chored::Done);
            assert!(rig.log.state.lock().poisoned.is_some(), "{operation:?}");
            if queued_late {
                // As a state carried over is, which nobody refuses at admission.
                let again = append(2, 0, 10);
                rig.enqueue_unchecked(again);
                assert_eq!(rig.turn(), Turn::Progress, "{operation:?}");
            }
            let answers = rig.answers();
            assert!(!answers.is_empty() && !rig.log.state.lock().has_work(), "{operation:?}");
            assert!(answers.iter().all(|answer| answer.2 == Err(BookieError::ReadOnly)));
            assert_eq!(fence.try_recv(), Ok(Err(BookieError::ReadOnly)), "{operation:?}");
        }
    }
}
