//! Blocks that can't be read, and files that can't be opened for the moment, give up no more than
//! what is in them.

use geminga_proto::storage::BookieError;

use super::rig::{Rig, YOUNGEST_LEDGER, append, config, payload};
use crate::config::BookieConfig;
use crate::device::memory::{MemoryDevice, Operation, Tear};
use crate::device::{BLOCK_BYTES, Device, DeviceError};
use crate::error::OpenError;

fn accepting() -> BookieConfig {
    BookieConfig { accept_damage: true, ..config() }
}

fn is_refused(device: &MemoryDevice) -> bool {
    matches!(Rig::open(device.fork(), &config()), Err(OpenError::Damaged { .. }))
}

/// Four entries in groups of two blocks each, from the second block of an unsealed segment on.
fn four_groups() -> (MemoryDevice, String) {
    let mut rig = Rig::new();
    rig.fill(1, 0..4, 5_000);
    (rig.device.crash(Tear::Lost), rig.active_file())
}

#[test]
fn a_block_that_cannot_be_read_costs_its_group_alone() {
    let (image, file) = four_groups();
    for block in 0..9 {
        let device = image.fork();
        device.spoil(&file, block);
        assert!(is_refused(&device), "block {block}");
        let mut rig = Rig::open(device, &accepting()).expect("opens");
        for entry in 0..4 {
            let whole = block == 0 || usize::try_from(entry).expect("small") != (block - 1) / 2;
            match rig.get(1, entry) {
                Ok(found) => assert!(whole && found == payload(1, entry, 5_000), "block {block}"),
                Err(BookieError::NoSuchEntry) => panic!("block {block}, entry {entry} was stored"),
                Err(_) => assert!(!whole, "block {block}, entry {entry} is whole"),
            }
        }
        assert_eq!(rig.get(1, 4), Err(BookieError::UnknownEntry), "block {block}");
        assert_eq!(rig.put(append(1, 4, 10)), Err(BookieError::ReadOnly), "block {block}");
        assert_eq!(rig.put(append(YOUNGEST_LEDGER + 1, 0, 10)), Ok(()), "block {block}");
    }
}

#[test]
fn a_last_group_that_cannot_be_read_may_have_been_of_any_ledger() {
    let (device, file) = four_groups();
    device.spoil(&file, 9);
    assert!(is_refused(&device));
    let mut rig = Rig::open(device, &accepting()).expect("opens");
    for _ in 0..2 {
        for entry in 0..4 {
            assert_eq!(rig.get(1, entry), Ok(payload(1, entry, 5_000)));
        }
        assert_eq!(rig.get(YOUNGEST_LEDGER, 0), Err(BookieError::UnknownEntry));
        assert_eq!(rig.get(YOUNGEST_LEDGER + 1, 0), Err(BookieError::NoSuchEntry));
        rig = Rig::open(rig.device.crash(Tear::Lost), &accepting()).expect("opens");
    }
}

#[test]
fn a_bad_block_in_the_tail_that_was_never_used_is_of_no_meaning() {
    let (device, file) = four_groups();
    device.spoil(&file, 12);
    let rig = Rig::on(device);
    assert_eq!(rig.report.damage, []);
    assert_eq!(rig.read(1, 0, 10).map(|entries| entries.len()), Ok(4));
    assert_eq!(rig.get(1, 4), Err(BookieError::NoSuchEntry));
}

#[test]
fn a_disk_that_reads_nothing_for_the_moment_gives_up_no_segment() {
    let (device, file) = four_groups();
    let blocks = device.contents(&file).expect("there").len() / BLOCK_BYTES;
    let whole = device.fork();
    (0..blocks).for_each(|block| device.spoil(&file, block));
    assert!(is_refused(&device));
    let mut rig = Rig::open(device, &accepting()).expect("opens");
    assert_eq!(rig.get(1, 0), Err(BookieError::UnknownEntry));
    rig.fill(YOUNGEST_LEDGER + 1, 0..40, 5_000);
    let device = rig.device.crash(Tear::Lost);
    assert!(is_refused(&device), "it is known to be lost");
    // It can be read again.
    let content = whole.contents(&file).expect("there");
    let (handle, mut buffer) =
        (device.open(&file).expect("there"), crate::device::AlignedBuffer::new(content.len()));
    buffer.as_mut_slice().copy_from_slice(&content);
    handle.write_at(0, buffer.as_slice()).expect("writes");
    handle.sync().expect("syncs");
    let rig = Rig::on(device);
    assert_eq!(rig.read(1, 0, 10).map(|entries| entries.len()), Ok(4));
    assert_eq!(rig.get(1, 4), Err(BookieError::NoSuchEntry));
    assert_eq!(rig.read(YOUNGEST_LEDGER + 1, 0, 100).map(|entries| entries.len()), Ok(40));
}

#[test]
fn an_unsealed_segment_that_was_lost_and_is_put_back_is_whole_again() {
    let mut rig = Rig::new();
    rig.fill(1, 0..2, 100);
    rig.fence(2).expect("fences");
    let file = rig.active_file();
    let device = rig.device.crash(Tear::Lost);
    let content = device.contents(&file).expect("there");
    device.remove(&file).expect("there");
    let mut rig = Rig::open(device, &accepting()).expect("opens");
    assert_eq!(rig.get(1, 0), Err(BookieError::UnknownEntry));
    rig.fill(YOUNGEST_LEDGER + 1, 0..3, 5_000);
    let device = rig.device.crash(Tear::Lost);
    device.create(&file).expect("creates");
    device.edit(&file, |bytes| bytes.clone_from(&content));
    device.sync_dir().expect("syncs");
    let mut rig = Rig::on(device);
    for _ in 0..2 {
        assert_eq!(rig.read(1, 0, 10).map(|entries| entries.len()), Ok(2));
        assert_eq!(rig.get(1, 2), Err(BookieError::NoSuchEntry));
        assert_eq!(rig.put(append(2, 0, 10)), Err(BookieError::Fenced));
        assert_eq!(rig.read(YOUNGEST_LEDGER + 1, 0, 10).map(|entries| entries.len()), Ok(3));
        rig = Rig::on(rig.device.crash(Tear::Lost));
    }
}

#[test]
fn a_file_that_cannot_be_opened_for_the_moment_fails_the_start_and_is_not_lost() {
    let mut rig = Rig::new();
    rig.fill(1, 0..60, 5_000);
    let device = rig.device.crash(Tear::Lost);
    let mut refused = 0;
    for after in 0.. {
        let starved = device.fork();
        starved.fail(Operation::Open, after);
        match Rig::open(starved.clone(), &accepting()) {
            Err(OpenError::Device(DeviceError::TooManyFiles { .. })) => refused += 1,
            Err(other) => panic!("after {after}: {other}"),
            Ok(rig) => {
                assert_eq!(rig.report.damage, [], "after {after}");
                break;
            }
        }
        starved.mend();
        let rig = Rig::on(starved.crash(Tear::Lost));
        assert_eq!(rig.read(1, 0, 100).map(|entries| entries.len()), Ok(60), "after {after}");
    }
    assert!(refused > 4, "{refused}");
}
