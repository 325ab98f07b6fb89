//! The device in memory loses, tears and refuses what a test says, and nothing else.

use super::super::AlignedBuffer;
use super::*;

fn filled(blocks: usize, fill: u8) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::new(blocks * BLOCK_BYTES);
    buffer.as_mut_slice().fill(fill);
    buffer
}

fn two_writes() -> MemoryDevice {
    let device = MemoryDevice::new(1 << 20);
    let file = device.create("a").expect("creates");
    device.sync_dir().expect("syncs");
    file.write_at(0, filled(3, 1).as_slice()).expect("writes");
    file.sync().expect("syncs");
    file.write_at(0, filled(3, 2).as_slice()).expect("writes");
    device
}

#[test]
fn a_crash_keeps_what_was_synced_and_the_chosen_part_of_the_write_in_flight() {
    let device = two_writes();
    let kept = |tear| {
        let bytes = device.crash(tear).contents("a").expect("the name was synced");
        bytes.iter().filter(|byte| **byte == 2).count()
    };
    assert_eq!(kept(Tear::Lost), 0);
    assert_eq!(kept(Tear::Prefix(5_000)), 5_000);
    assert_eq!(kept(Tear::Blocks(0b101)), 2 * BLOCK_BYTES);
    assert_eq!(kept(Tear::Whole), 3 * BLOCK_BYTES);
}

#[test]
fn a_name_that_was_not_synced_is_gone_after_a_crash() {
    let device = MemoryDevice::new(1 << 20);
    device.create("kept").expect("creates");
    device.sync_dir().expect("syncs");
    device.create("lost").expect("creates");
    assert_eq!(device.crash(Tear::Whole).list(), Ok(vec!["kept".to_owned()]));
}

#[test]
fn a_full_disk_and_a_failing_operation_say_so_until_they_are_mended() {
    let device = MemoryDevice::new(2 * BLOCK_BYTES as u64);
    let file = device.create("a").expect("creates");
    assert!(matches!(file.preallocate(3 * BLOCK_BYTES as u64), Err(DeviceError::Full { .. })));
    file.preallocate(2 * BLOCK_BYTES as u64).expect("fits");
    device.fail(Operation::Write, 1);
    file.write_at(0, filled(1, 1).as_slice()).expect("the first works");
    assert!(matches!(file.write_at(0, filled(1, 1).as_slice()), Err(DeviceError::Io { .. })));
    device.mend();
    file.write_at(0, filled(1, 1).as_slice()).expect("mended");
}

#[test]
fn the_power_goes_at_the_chosen_write_and_leaves_it_unsynced() {
    let device = MemoryDevice::new(1 << 20);
    let file = device.create("a").expect("creates");
    device.sync_dir().expect("syncs");
    device.cut_power_at_write(2);
    file.write_at(0, filled(1, 1).as_slice()).expect("writes");
    file.sync().expect("syncs");
    file.write_at(0, filled(1, 2).as_slice()).expect("writes");
    assert!(file.sync().is_err() && device.is_dead());
    assert_eq!(device.crash(Tear::Lost).contents("a"), Some(vec![1; BLOCK_BYTES]));
    assert_eq!(device.crash(Tear::Whole).contents("a"), Some(vec![2; BLOCK_BYTES]));
}

#[test]
fn a_reserved_or_cut_length_is_durable_with_its_sync_only() {
    let block = BLOCK_BYTES as u64;
    let device = MemoryDevice::new(1 << 20);
    let file = device.create("a").expect("creates");
    device.sync_dir().expect("syncs");
    let durable = || device.crash(Tear::Whole).contents("a").map(|bytes| bytes.len() / BLOCK_BYTES);
    file.preallocate(6 * block).expect("reserves");
    assert_eq!(durable(), Some(0));
    file.write_at(block, filled(1, 1).as_slice()).expect("writes");
    file.sync().expect("syncs");
    assert_eq!(durable(), Some(2), "as far as what was written needs it");
    file.sync_length().expect("syncs");
    assert_eq!(durable(), Some(6));
    file.truncate(3 * block).expect("cuts");
    assert_eq!(durable(), Some(6));
    file.sync_length().expect("syncs");
    assert_eq!(durable(), Some(3));
}
