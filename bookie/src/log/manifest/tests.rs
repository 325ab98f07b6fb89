//! The manifest survives the loss of either copy and a torn change.

use proptest::prelude::*;

use super::*;
use crate::device::memory::{MemoryDevice, Tear};

/// Three slots and two ranges of deleted ledgers.
const SAMPLE_BYTES: usize = HEADER_BYTES + 3 * SLOT_BYTES + 2 * RANGE_BYTES;

fn unsealed(segment: u64) -> SlotState {
    SlotState::Unsealed { segment: SegmentId(segment), lost_up_to: None }
}

fn sample() -> Manifest {
    let sealed = Sealed {
        segment: SegmentId(3),
        data_end: 8192,
        ledgers: 2,
        entries: 5,
        highest_ledger: LedgerId(77),
        damaged: true,
        sorted: true,
        verified_ms: 0x0102_0304,
    };
    let mut deleted = Deleted::default();
    [1, 2, 9].into_iter().for_each(|id| deleted.insert(LedgerId(id)));
    let slot = |number, state| Slot { number, written: true, capacity_bytes: 1 << 20, state };
    Manifest {
        instance: 0x0a0b,
        sequence: 5,
        next_segment: SegmentId(5),
        next_slot: 4,
        metadata_revision: 99,
        last_group: Link { segment: SegmentId(3), offset: 4096, sequence: 12, crc: 13 },
        slots: vec![
            slot(1, SlotState::Sealed(sealed)),
            slot(2, unsealed(4)),
            slot(3, SlotState::Free),
        ],
        deleted: Arc::new(deleted),
    }
}

fn stored() -> (MemoryDevice, Manifest) {
    let device = MemoryDevice::new(1 << 20);
    let mut manifest = sample();
    let (copies, created) = Copies::open(&device).expect("opens");
    assert!(created && !Copies::open(&device).expect("opens").1);
    manifest.reserve(&copies, 1).expect("reserves");
    device.sync_dir().expect("syncs");
    manifest.store(&copies).expect("stores");
    (device, manifest)
}

#[test]
fn golden_bytes() {
    let bytes = sample().encode();
    let hex: String =
        bytes.as_slice()[..SAMPLE_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, include_str!("../golden/manifest.hex").trim());
}

#[test]
fn a_manifest_of_version_1_is_read() {
    let hex = include_str!("../golden/manifest-1.hex").trim();
    let digits = (0..hex.len()).step_by(2).map(|at| &hex[at..at + 2]);
    let bytes: Vec<u8> = digits.map(|two| u8::from_str_radix(two, 16).expect("digits")).collect();
    let mut expected = sample();
    if let SlotState::Sealed(sealed) = &mut expected.slots[0].state {
        (sealed.sorted, sealed.verified_ms) = (false, 0);
    }
    assert_eq!(Manifest::decode(&bytes), Ok(expected));
    // Its version alone is damaged.
    let mut torn = bytes;
    torn[8] = 9;
    assert_eq!(Manifest::decode(&torn), Err(ManifestError::Damaged));
}

#[test]
fn either_copy_alone_is_enough_and_the_newer_whole_one_wins() {
    let (device, manifest) = stored();
    for name in FILES {
        let device = device.fork();
        device.flip(name, 100, 1);
        assert_eq!(Manifest::load(&device, 0x0a0b), Ok(Some(manifest.clone())));
        device.remove(name).expect("removes");
        assert_eq!(Manifest::load(&device, 0x0a0b), Ok(Some(manifest.clone())));
        // Both are whole again, durably.
        let device = device.crash(Tear::Lost);
        for other in FILES {
            let device = device.fork();
            device.remove(other).expect("is there");
            assert_eq!(Manifest::load(&device, 0x0a0b), Ok(Some(manifest.clone())));
        }
    }
    for name in FILES {
        device.flip(name, 100, 1);
    }
    assert_eq!(Manifest::load(&device, 0x0a0b), Err(ManifestError::Damaged));
}

#[test]
fn a_change_torn_in_either_copy_leaves_the_old_or_the_new_manifest() {
    let (device, old) = stored();
    for copy in [1, 2] {
        for prefix in (0..=SAMPLE_BYTES).chain([1_000, BLOCK_BYTES]) {
            let device = device.fork();
            let mut new = old.clone();
            new.metadata_revision = 100;
            device.cut_power_at_write(copy);
            let (copies, _) = Copies::open(&device).expect("opens");
            new.store(&copies).expect_err("the power goes");
            let crashed = device.crash(Tear::Prefix(prefix));
            let loaded = Manifest::load(&crashed, 0x0a0b).expect("one is whole").expect("exists");
            assert!(loaded == old || loaded == new, "copy {copy}, prefix {prefix}");
            assert!(copy == 1 || loaded == new, "the first copy was already durable");
        }
    }
}

#[test]
fn another_log_and_a_newer_version_are_refused() {
    let (device, _) = stored();
    assert_eq!(Manifest::load(&device, 1), Err(ManifestError::Foreign));
    device.edit(FILES[1], |bytes| {
        put_u16(bytes, 8, 9);
        let crc = crc32c::crc32c(&bytes[4..SAMPLE_BYTES]);
        put_u32(bytes, 0, crc);
    });
    assert_eq!(Manifest::load(&device, 0x0a0b), Err(ManifestError::Newer(9)));
}

#[test]
fn a_newer_version_with_another_layout_is_refused_and_left_alone() {
    let (device, manifest) = stored();
    for name in FILES {
        let device = device.fork();
        // A longer header, whose checksum covers nobody knows what.
        device.edit(name, |bytes| {
            put_u16(bytes, 8, 3);
            bytes[90..120].fill(7);
        });
        let before = FILES.map(|name| device.contents(name));
        assert_eq!(Manifest::load(&device, 0x0a0b), Err(ManifestError::Newer(3)), "{name}");
        assert_eq!(FILES.map(|name| device.contents(name)), before);
    }
    // Such a version of which the rest says otherwise is damage.
    device.flip(FILES[0], 8, 4);
    assert_eq!(Manifest::load(&device, 0x0a0b), Ok(Some(manifest)));
}

#[test]
fn more_deleted_ledgers_than_there_is_room_for_are_forgotten_oldest_first() {
    let ids: Vec<LedgerId> = (0..2 * LEAST_RANGES as u64 + 2).map(|id| LedgerId(2 * id)).collect();
    let store = |device: &MemoryDevice| {
        let mut manifest = Manifest::new(0x0a0b);
        let (copies, _) = Copies::open(device).expect("opens");
        manifest.reserve(&copies, 1).expect("reserves");
        manifest.note_deleted(&copies, &ids).expect("notes");
        manifest.store(&copies).expect("stores");
        assert_eq!(Manifest::load(device, 0x0a0b), Ok(Some(manifest.clone())));
        manifest.deleted
    };
    let roomy = store(&MemoryDevice::new(1 << 20));
    assert!(ids.iter().all(|id| roomy.contains(*id)));
    // Slots that aren't in use leave room, too.
    let full = store(&MemoryDevice::new(100 * 1024));
    assert!(ids.iter().all(|id| full.contains(*id)));
}

#[test]
fn on_a_full_disk_no_more_deleted_ledgers_are_noted_than_were_reserved_for() {
    for (slots, most) in [(300, 1_610), (512, 762)] {
        let device = MemoryDevice::new(100 * 1024);
        let mut manifest = Manifest::new(0x0a0b);
        manifest.next_slot = slots + 1;
        let state = SlotState::Free;
        let slot = |number| Slot { number, written: false, capacity_bytes: 4096, state };
        manifest.slots = (1..=slots).map(slot).collect();
        let (copies, _) = Copies::open(&device).expect("opens");
        manifest.reserve(&copies, manifest.slots.len()).expect("reserves");
        manifest.store(&copies).expect("stores");
        let mut ids: Vec<LedgerId> = (0..512).map(|id| LedgerId(2 * id)).collect();
        manifest.note_deleted(&copies, &ids).expect("notes");
        assert_eq!(manifest.deleted.ranges().len(), 512);
        ids = (512..5_512).map(|id| LedgerId(2 * id)).collect();
        manifest.note_deleted(&copies, &ids).expect("notes");
        manifest.store(&copies).expect("fits into what was reserved");
        assert_eq!(manifest.deleted.ranges().len(), most);
        assert!(manifest.deleted.contains(LedgerId(2 * 5_511)), "the youngest ones");
        assert_eq!(Manifest::load(&device, 0x0a0b), Ok(Some(manifest)));
    }
}

#[test]
fn a_manifest_that_uses_a_segment_twice_is_damaged() {
    let mut manifest = sample();
    manifest.slots[1].state = unsealed(3);
    assert!(!manifest.is_valid());
    manifest.slots[1].state = unsealed(5);
    assert!(!manifest.is_valid(), "an id that was not handed out");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..600), magic in any::<bool>(),
    ) {
        if magic && bytes.len() > 16 {
            put_u32(&mut bytes, 4, MAGIC);
            put_u32(&mut bytes, 12, 2);
        }
        prop_assert!(Manifest::decode(&bytes).is_err());
    }

    #[test]
    fn hostile_fields_under_a_right_checksum_are_valid_or_refused(
        changes in proptest::collection::vec((8..SAMPLE_BYTES, any::<u8>()), 0..5),
    ) {
        let mut bytes = sample().encode().as_slice().to_vec();
        changes.iter().for_each(|(at, byte)| bytes[*at] = *byte);
        let rows = |at: usize| get_u32(&bytes, at) as usize;
        let len = HEADER_BYTES + rows(12).saturating_mul(SLOT_BYTES) + rows(44) * RANGE_BYTES;
        if let Some(covered) = bytes.get(4..len) {
            let crc = crc32c::crc32c(covered);
            put_u32(&mut bytes, 0, crc);
        }
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert!(manifest.is_valid());
            prop_assert_eq!(Manifest::decode(manifest.encode().as_slice()), Ok(manifest));
        }
    }

    #[test]
    fn a_flipped_bit_is_found(at in 0..SAMPLE_BYTES, bit in 0u32..8) {
        let mut bytes = sample().encode().as_slice().to_vec();
        bytes[at] ^= 1 << bit;
        prop_assert!(Manifest::decode(&bytes).is_err());
    }
}
