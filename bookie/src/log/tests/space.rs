//! Full disks, recycling, and the limits of what waits.

use std::time::Duration;

use geminga_proto::storage::{AddKind, AppendRequest, BookieError};

use super::rig::{KIB, Rig, append, config, payload};
use crate::config::BookieConfig;
use crate::device::memory::{MemoryDevice, Tear};

/// Appends until the disk is full for this kind; returns the next entry.
fn fill_up(rig: &mut Rig, ledger: u64, first: u64, kind: AddKind) -> u64 {
    for entry in first..first + 2_000 {
        let request = AppendRequest { kind, ..append(ledger, entry, 5_000) };
        match rig.put(request) {
            Ok(()) => {}
            Err(BookieError::DiskFull) => return entry,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("the disk never gets full");
}

fn fills_drains_and_resumes(device: MemoryDevice, config: &BookieConfig) {
    let mut rig = Rig::open(device, config).expect("opens");
    let first = fill_up(&mut rig, 1, 0, AddKind::Ordinary);
    assert!(first > 20, "{first}");
    // State logs, recoveries and fences go on up to the second mark.
    let second = fill_up(&mut rig, 2, 0, AddKind::StateLog);
    assert!(second > 3, "{second}");
    let recovery = AppendRequest { kind: AddKind::Recovery, ..append(1, first, 5_000) };
    assert_eq!(rig.put(recovery), Err(BookieError::DiskFull));
    assert!(!rig.log.state.lock().is_writable());
    // What is stored stays readable, also over a restart.
    let mut rig = Rig::open(rig.device.crash(Tear::Lost), config).expect("a full log opens");
    assert_eq!(rig.read(1, 0, 5).map(|entries| entries.len()), Ok(5));
    assert_eq!(rig.put(append(1, first, 5_000)), Err(BookieError::DiskFull));
    // A consumer has drained: its ledger goes, and adds resume.
    assert_eq!(rig.delete(&[1]), 1);
    rig.settle();
    assert!(rig.log.state.lock().is_writable());
    let resumed = fill_up(&mut rig, 3, 0, AddKind::Ordinary);
    assert!(resumed > first / 2, "{resumed}");
    let rig = Rig::open(rig.device.crash(Tear::Lost), config).expect("opens");
    assert_eq!(rig.get(1, 0), Err(BookieError::NoSuchEntry));
    for (ledger, entries) in [(2, second), (3, resumed)] {
        for entry in 0..entries {
            assert_eq!(rig.get(ledger, entry), Ok(payload(ledger, entry, 5_000)));
        }
    }
}

#[test]
fn what_owners_append_is_told_from_what_repair_does() {
    let mut rig = Rig::new();
    let last = |rig: &Rig| rig.log.with_state(|state| state.owned_append);
    let recovered = AppendRequest { kind: AddKind::Recovery, ..append(1, 0, 100) };
    assert_eq!(rig.put(recovered), Ok(()));
    assert_eq!(last(&rig), None);
    rig.pass(Duration::from_secs(1));
    assert_eq!(rig.put(append(1, 1, 100)), Ok(()));
    assert_eq!(last(&rig), Some(rig.log.now()));
}

#[test]
fn the_lag_is_what_waits_for_the_disk_and_how_long_the_oldest_of_it_has_waited() {
    let mut rig = Rig::new();
    rig.fill(1, 0..3, 1_000);
    let lag = |rig: &Rig| {
        let now = rig.log.now();
        let lag = rig.log.with_state(|state| state.lag(now));
        (lag.oldest_ms, lag.bytes)
    };
    let pass = |rig: &Rig, millis| rig.pass(Duration::from_millis(millis));
    pass(&rig, 5_000);
    assert_eq!(lag(&rig), (0, 0), "an idle log is behind nobody");
    rig.offer(append(1, 3, 952)).expect("room");
    pass(&rig, 20);
    rig.offer(append(1, 4, 952)).expect("room");
    pass(&rig, 5);
    assert_eq!(lag(&rig), (25, 2_000));
    // While a group is built and written, and another record comes.
    let mut state = rig.log.state.lock();
    let opened = state.open_group(crate::log::group::GroupBuffer::default(), false);
    let mut group = opened.expect("there is something to write");
    state.fill(&mut group, 1);
    drop(state);
    assert_eq!(lag(&rig), (25, 2_000));
    group.encode_staged();
    rig.log.state.lock().submit(&mut group).expect("it isn't poisoned");
    pass(&rig, 10);
    assert_eq!(lag(&rig), (35, 2_000));
    rig.log.state.lock().complete(&mut group, Ok(()));
    assert_eq!(lag(&rig), (15, 1_000), "the second one is left");
    rig.settle();
    assert_eq!(lag(&rig), (0, 0));
}

#[test]
fn a_full_disk_refuses_adds_by_mark_until_ledgers_are_deleted() {
    fills_drains_and_resumes(MemoryDevice::new(2048 * KIB), &config());
}

#[test]
fn a_configured_maximum_counts_like_a_full_disk() {
    let limited = BookieConfig { max_bytes: Some(1024 * KIB), ..config() };
    let device = MemoryDevice::new(64 * 1024 * KIB);
    fills_drains_and_resumes(device.clone(), &limited);
    let used =
        64 * 1024 * KIB - crate::device::Device::space(&device).expect("answers").available_bytes;
    assert!(used < 1200 * KIB, "{used}");
}

#[test]
fn what_is_left_to_others_on_the_disk_is_never_taken() {
    let keep_free_bytes = 512 * KIB;
    let sharing = BookieConfig { keep_free_bytes, ..config() };
    let device = MemoryDevice::new(2048 * KIB + keep_free_bytes);
    fills_drains_and_resumes(device.clone(), &sharing);
    let left = crate::device::Device::space(&device).expect("answers").available_bytes;
    assert!((keep_free_bytes..keep_free_bytes + 256 * KIB).contains(&left), "{left}");
    let opened = Rig::open(MemoryDevice::new(keep_free_bytes + 20 * KIB), &sharing);
    let error = opened.err().expect("refused").to_string();
    assert!(error.contains("free some space"), "{error}");
}

#[test]
fn somebody_else_may_fill_the_disk_and_make_room_again() {
    let mut rig = Rig::new();
    rig.fill(1, 0..5, 5_000);
    rig.device.set_capacity(0);
    rig.log.refresh_space();
    let full = fill_up(&mut rig, 1, 5, AddKind::Ordinary);
    rig.device.set_capacity(4096 * KIB);
    rig.log.refresh_space();
    assert_eq!(rig.put(append(1, full, 5_000)), Ok(()));
    assert_eq!(rig.read(1, 0, 1_000).map(|entries| entries.len() as u64), Ok(full + 1));
}

#[test]
fn a_disk_too_full_for_one_segment_refuses_to_open_and_says_so() {
    let opened = Rig::open(MemoryDevice::new(20 * KIB), &config());
    let error = opened.err().expect("refused").to_string();
    assert!(error.contains("full") && error.contains("free some space"), "{error}");
}

#[test]
fn a_recycled_segment_never_shows_what_was_in_it_before() {
    let mut rig = Rig::new();
    // The same sizes again and again, so that stale records lie at the very places of new ones.
    for round in 0..12 {
        let ledger = round + 1;
        rig.fill(ledger, 0..25, 5_000);
        let before = rig.log.state.lock().manifest.next_slot;
        if round > 0 {
            rig.delete(&[round]);
            rig.settle();
        }
        let crashed = Rig::on(rig.device.crash(Tear::Lost));
        for entry in 0..25 {
            assert_eq!(crashed.get(ledger, entry), Ok(payload(ledger, entry, 5_000)));
            if round > 1 {
                let old = crashed.get(round - 1, entry);
                assert_eq!(old, Err(BookieError::NoSuchEntry), "round {round}");
            }
        }
        assert!(before < 20, "files are used again: {before}");
    }
    assert!(rig.log.state.lock().counters.recycled_segments > 5);
}

#[test]
fn what_waits_for_the_disk_is_bounded() {
    let small = BookieConfig { max_pending_bytes: 20_000, ..config() };
    let mut rig = Rig::open(MemoryDevice::new(4096 * KIB), &small).expect("opens");
    let taken = (0..100).take_while(|entry| rig.offer(append(1, *entry, 5_000)).is_ok()).count();
    assert_eq!(taken, 3);
    assert_eq!(rig.offer(append(1, 3, 5_000)), Err(BookieError::Overloaded));
    rig.settle();
    assert_eq!(rig.offer(append(1, 3, 5_000)), Ok(()));
    assert_eq!(rig.answers().len(), 3);
}

#[test]
fn groups_take_what_has_arrived_up_to_their_limit() {
    let mut rig = Rig::new();
    for entry in 0..8 {
        rig.offer(append(1, entry, 5_000)).expect("room");
    }
    rig.turn();
    assert_eq!(rig.answers().len(), 6, "32 KiB hold six");
    rig.turn();
    assert_eq!(rig.answers().len(), 2);
    assert_eq!(rig.log.state.lock().counters.groups, 2);
}

#[test]
fn ten_thousand_ledgers_with_one_entry_each_can_be_sealed_and_found_again() {
    let larger = BookieConfig { segment_bytes: Some(2048 * KIB), ..config() };
    let device = MemoryDevice::new(64 * 1024 * KIB);
    let mut rig = Rig::open(device, &larger).expect("opens");
    for ledger in 0..10_000 {
        rig.offer(append(ledger, 0, 20)).expect("room");
    }
    rig.settle();
    rig.log.seal_all().expect("closes");
    let rig = Rig::open(rig.device, &larger).expect("opens");
    assert_eq!((rig.report.ledgers, rig.report.replayed_groups), (10_000, 0));
    for ledger in (0..10_000).step_by(501) {
        assert_eq!(rig.get(ledger, 0), Ok(payload(ledger, 0, 20)));
    }
}

#[test]
fn no_file_stays_longer_than_is_counted_wherever_a_crash_comes() {
    let mut rig = Rig::new();
    rig.fill(1, 0..3, 1_000);
    let before = rig.device.crash(Tear::Lost);
    let mut shrunk = 0;
    for step in 1.. {
        // An end in order gives back what the last segment doesn't need.
        let mut rig = Rig::on(before.fork());
        rig.fill(1, 3..6, 1_000);
        rig.device.cut_power_after_step(step);
        let closed = rig.log.seal_all();
        if !rig.device.is_dead() {
            closed.expect("closes");
            break;
        }
        let rig = Rig::on(rig.device.crash(Tear::Whole));
        for slot in &rig.log.state.lock().manifest.slots {
            let name = crate::log::segment::file_name(slot.number);
            let bytes = rig.device.contents(&name).expect("there").len() as u64;
            assert_eq!(bytes, slot.capacity_bytes, "{name} after step {step}");
            shrunk += u64::from(bytes < 64 * KIB);
        }
        assert_eq!(rig.get(1, 5), Ok(payload(1, 5, 1_000)));
    }
    assert!(shrunk > 0, "something was given back");
}
