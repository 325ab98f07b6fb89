//! Bit flips, lost, exchanged and truncated files: never *no such entry* for what was stored.

use bytes::Bytes;
use geminga_proto::id::{LedgerToken, SegmentId};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{AddKind, AppendRequest, BookieError};

use super::rig::{Rig, YOUNGEST_LEDGER, append, config, payload};
use crate::config::BookieConfig;
use crate::device::memory::{MemoryDevice, Tear};
use crate::device::{BLOCK_BYTES, Device};
use crate::error::OpenError;
use crate::log::codec::Home;
use crate::log::group::{GroupBuffer, Link};
use crate::log::record::{Record, RecordKind};
use crate::log::{Origin, manifest, segment};

fn accepting() -> BookieConfig {
    BookieConfig { accept_damage: true, ..config() }
}

/// The answer for a stored entry on a damaged log: right, or a definite "can't tell".
fn is_there_or_damaged(rig: &Rig, ledger: u64, entry: u64, bytes: usize, what: &str) -> bool {
    match rig.get(ledger, entry) {
        Ok(found) => {
            assert_eq!(found, payload(ledger, entry, bytes), "{what}");
            true
        }
        Err(BookieError::CorruptEntry | BookieError::UnknownEntry) => false,
        Err(other) => panic!("{what}: entry {entry} answers {other}"),
    }
}

#[test]
fn a_flipped_bit_in_an_earlier_group_is_damage_and_never_no_such_entry() {
    let mut rig = Rig::new();
    // Each group is two blocks with one record.
    rig.fill(1, 0..4, 5_000);
    let file = rig.active_file();
    let image = rig.device.crash(Tear::Lost);
    let (mut refused, mut corrupt) = (0, 0);
    for group in 0..3 {
        let start = BLOCK_BYTES * (1 + 2 * group);
        for at in (start..start + 2 * BLOCK_BYTES).step_by(37) {
            let what = format!("byte {at}");
            let device = image.fork();
            device.flip(&file, at, 0x10);
            let in_padding = at - start >= 88 + 48 + 5_000;
            match Rig::open(device.fork(), &config()) {
                Err(OpenError::Damaged { damage, .. }) => {
                    refused += 1;
                    assert!(!in_padding && damage[0].file == file, "{what}");
                }
                Err(other) => panic!("{what}: {other}"),
                Ok(_) => assert!(in_padding, "{what} was not noticed"),
            }
            let rig = Rig::open(device, &accepting()).expect("opens");
            for entry in 0..4 {
                let there = is_there_or_damaged(&rig, 1, entry, 5_000, &what);
                assert!(there || entry == group as u64, "{what}: entry {entry} is whole");
            }
            corrupt += usize::from(rig.get(1, group as u64) == Err(BookieError::CorruptEntry));
        }
    }
    assert!(refused > 300, "{refused}");
    assert!(corrupt > 300, "a known damaged entry answers corrupt: {corrupt}");
}

#[test]
fn damage_is_remembered_by_later_starts() {
    let mut rig = Rig::new();
    rig.fill(1, 0..3, 5_000);
    let file = rig.active_file();
    let device = rig.device.crash(Tear::Lost);
    // The header of the first record: nobody can tell what it was.
    device.flip(&file, BLOCK_BYTES + 88 + 8, 1);
    let rig = Rig::open(device, &accepting()).expect("opens");
    assert_eq!(rig.get(1, 0), Err(BookieError::CorruptEntry), "below what was confirmed");
    assert_eq!(rig.get(1, 7), Err(BookieError::UnknownEntry), "above it");
    assert_eq!(rig.get(9, 0), Ok(payload(9, 0, 1)).and(Err(BookieError::NoSuchEntry)), "younger");
    let device = rig.device.crash(Tear::Lost);
    assert!(matches!(Rig::open(device.fork(), &config()), Err(OpenError::Damaged { .. })));
    let rig = Rig::open(device, &accepting()).expect("opens");
    assert_eq!(rig.get(1, 7), Err(BookieError::UnknownEntry));
}

#[test]
fn an_empty_group_of_an_idle_log_proves_the_last_one() {
    let mut rig = Rig::new();
    rig.fill(1, 0..2, 100);
    let file = rig.active_file();
    let last = 2 * BLOCK_BYTES + 100;
    let open = rig.device.crash(Tear::Lost);
    open.flip(&file, last, 1);
    let cut = Rig::open(open, &config()).expect("a bad last group may be a torn one");
    assert_eq!(cut.get(1, 1), Err(BookieError::NoSuchEntry));
    rig.close_group();
    let closed = rig.device.crash(Tear::Lost);
    closed.flip(&file, last, 1);
    assert!(matches!(Rig::open(closed.fork(), &config()), Err(OpenError::Damaged { .. })));
    let kept = Rig::open(closed, &accepting()).expect("opens");
    assert!(!is_there_or_damaged(&kept, 1, 1, 100, "the last entry"));
}

#[test]
fn the_next_segment_proves_the_last_group_of_the_one_before() {
    // Rolls into the second segment, whose first group names the last one of the first; nothing
    // is sealed meanwhile.
    let mut rig = Rig::new();
    rig.keep();
    let first = rig.active_file();
    let mut entry = 0;
    while rig.active_file() == first {
        rig.offer(append(1, entry, 5_000)).expect("room");
        rig.turn();
        entry += 1;
    }
    let tail = usize::try_from(rig.log.state.lock().sealing[0].tail).expect("small");
    let device = rig.device.crash(Tear::Lost);
    device.flip(&first, tail - 2 * BLOCK_BYTES + 10, 1);
    assert!(matches!(Rig::open(device.fork(), &config()), Err(OpenError::Damaged { .. })));
    let rig = Rig::open(device, &accepting()).expect("opens");
    for entry in 0..entry {
        is_there_or_damaged(&rig, 1, entry, 5_000, "rolled");
    }
}

/// A log with ledger 1 in sealed segments, and ledger 2 in the last sealed one alone.
fn with_sealed_segments() -> (MemoryDevice, Vec<String>) {
    let mut rig = Rig::new();
    rig.fill(1, 0..60, 5_000);
    rig.fill(2, 0..1, 100);
    rig.log.seal_all().expect("closes");
    let rig = Rig::on(rig.device);
    let files = rig.sealed_files();
    assert!(files.len() >= 3, "{files:?}");
    (rig.device, files)
}

/// Where the footer of a sealed segment begins.
fn footer_at(device: &MemoryDevice, file: &str) -> usize {
    let content = device.contents(file).expect("there");
    let magic = 0x4749_5347_u32.to_le_bytes();
    let at = content.chunks(BLOCK_BYTES).position(|block| block[4..8] == magic);
    at.expect("a sealed segment has a footer") * BLOCK_BYTES
}

#[test]
fn a_lost_exchanged_or_truncated_segment_or_footer_answers_unknown() {
    let (device, files) = with_sealed_segments();
    let victim = files[1].clone();
    let footer = footer_at(&device, &victim);
    let cut = |bytes: usize| {
        let victim = victim.clone();
        move |device: &MemoryDevice| device.edit(&victim, |content| content.truncate(bytes))
    };
    type Harm<'a> = Box<dyn Fn(&MemoryDevice) + 'a>;
    let harms: Vec<(&str, Harm<'_>)> = vec![
        ("lost", Box::new(|device| device.remove(&victim).expect("there"))),
        ("exchanged", Box::new(|device| device.swap(&victim, &files[2]))),
        ("truncated", Box::new(cut(footer + BLOCK_BYTES))),
        ("emptied", Box::new(cut(0))),
        ("header", Box::new(|device| device.flip(&victim, 20, 1))),
        ("footer", Box::new(|device| device.flip(&victim, footer + 20, 1))),
        (
            "directory",
            Box::new(|device| {
                device.flip(&victim, footer + BLOCK_BYTES + 3, 1);
            }),
        ),
    ];
    for (what, harm) in harms {
        let device = device.fork();
        harm(&device);
        let refused = Rig::open(device.fork(), &config());
        assert!(matches!(refused, Err(OpenError::Damaged { .. })), "{what}");
        let mut rig = Rig::open(device, &accepting()).expect("opens");
        let lost =
            (0..60).filter(|entry| !is_there_or_damaged(&rig, 1, *entry, 5_000, what)).count();
        assert!(lost > 3 && lost < 60, "{what}: {lost} lost");
        assert_eq!(rig.get(1, 1_000), Err(BookieError::UnknownEntry), "{what}");
        // A fence may have been lost with it: only recoveries go on, and younger ledgers.
        assert_eq!(rig.put(append(1, 60, 10)), Err(BookieError::ReadOnly), "{what}");
        let recovery = crate::log::tests::damage::recovery(1, 60);
        assert_eq!(rig.put(recovery), Ok(()), "{what}");
        assert_eq!(rig.put(append(50, 0, 10)), Ok(()), "{what}");
        assert_eq!(rig.get(50, 1), Err(BookieError::NoSuchEntry), "{what}");
    }
}

fn recovery(ledger: u64, entry: u64) -> AppendRequest {
    AppendRequest { kind: AddKind::Recovery, ..append(ledger, entry, 10) }
}

#[test]
fn a_damaged_page_of_an_index_answers_unknown_and_a_damaged_payload_corrupt() {
    let (device, files) = with_sealed_segments();
    // Behind the footer's header and its directory comes the first page.
    device.flip(&files[1], footer_at(&device, &files[1]) + 2 * BLOCK_BYTES + 50, 1);
    device.flip(&files[0], BLOCK_BYTES + 88 + 48 + 700, 1);
    let rig = Rig::on(device);
    assert_eq!(rig.get(1, 0), Err(BookieError::CorruptEntry));
    let unknown = (0..60).filter(|entry| rig.get(1, *entry) == Err(BookieError::UnknownEntry));
    assert!(unknown.count() > 3);
    // A run stops before the damage, and says what it is when it starts there.
    assert!(rig.read(1, 1, 100).is_ok());
}

#[test]
fn a_lost_unsealed_segment_makes_everything_up_to_the_youngest_ledger_uncertain() {
    let mut rig = Rig::new();
    rig.fill(1, 0..2, 100);
    let file = rig.active_file();
    let device = rig.device.crash(Tear::Lost);
    device.remove(&file).expect("there");
    let mut rig = Rig::open(device, &accepting()).expect("opens");
    assert_eq!(rig.get(1, 0), Err(BookieError::UnknownEntry));
    for _ in 0..3 {
        assert_eq!(rig.get(YOUNGEST_LEDGER, 0), Err(BookieError::UnknownEntry));
        assert_eq!(rig.put(append(YOUNGEST_LEDGER, 0, 10)), Err(BookieError::ReadOnly));
        // Ledgers that were made since are served like any others.
        assert_eq!(rig.put(append(YOUNGEST_LEDGER + 1, 0, 10)), Ok(()));
        assert_eq!(rig.get(YOUNGEST_LEDGER + 1, 1), Err(BookieError::NoSuchEntry));
        let device = rig.device.crash(Tear::Lost);
        assert!(matches!(Rig::open(device.fork(), &config()), Err(OpenError::Damaged { .. })));
        rig = Rig::open(device, &accepting()).expect("opens");
    }
    rig.log.note_lowest_ledger(geminga_proto::id::LedgerId(YOUNGEST_LEDGER + 1));
    rig.settle();
    let rig = Rig::on(rig.device.crash(Tear::Lost));
    assert_eq!(rig.get(1, 0), Err(BookieError::NoSuchEntry), "over once all are younger");
}

#[test]
fn damage_is_forgotten_once_every_ledger_of_the_cluster_is_younger() {
    let (device, files) = with_sealed_segments();
    device.remove(&files[1]).expect("there");
    let mut rig = Rig::open(device, &accepting()).expect("opens");
    assert_eq!(rig.put(append(50, 0, 10)), Ok(()));
    rig.delete(&[1, 2]);
    rig.log.note_lowest_ledger(geminga_proto::id::LedgerId(1));
    rig.settle();
    assert_eq!(rig.get(1, 0), Err(BookieError::UnknownEntry), "ledger 1 may have been in it");
    rig.log.note_lowest_ledger(geminga_proto::id::LedgerId(50));
    rig.settle();
    assert_eq!(rig.get(1, 0), Err(BookieError::NoSuchEntry));
    let rig = Rig::on(rig.device.crash(Tear::Lost));
    assert_eq!(rig.get(50, 0), Ok(payload(50, 0, 10)));
}

#[test]
fn the_highest_ledger_is_told_though_a_lost_segment_may_have_held_any() {
    let any = geminga_proto::id::LedgerId::MAX;
    let known = geminga_proto::id::LedgerId(2);
    let (device, _) = with_sealed_segments();
    let rig = Rig::on(device);
    let told = |rig: &Rig| {
        rig.log
            .with_state(|state| (state.highest_ledger, state.known_ledger(), state.lost_ledgers()))
    };
    assert_eq!(told(&rig), (known, known, false));
    // As a segment is listed whose end could not be read.
    let mut manifest = rig.log.state.lock().manifest.clone();
    let sealed = manifest.slots.iter_mut().find_map(|slot| match &mut slot.state {
        manifest::SlotState::Sealed(sealed) => Some(sealed),
        _ => None,
    });
    let sealed = sealed.expect("one is sealed");
    (sealed.highest_ledger, sealed.damaged) = (any, true);
    manifest.store(&rig.log.copies).expect("stored");
    let mut device = rig.device;
    for _ in 0..2 {
        let rig = Rig::open(device, &accepting()).expect("opens");
        assert_eq!(told(&rig), (any, known, true));
        device = rig.device;
    }
}

#[test]
fn without_a_manifest_a_used_directory_is_refused() {
    let (device, _) = with_sealed_segments();
    let open = |device: MemoryDevice| {
        let config = config();
        let limits = config.validate().expect("valid");
        let env = geminga_proto::env::Env::system();
        let device = std::sync::Arc::new(device);
        let origin = Origin { instance: 77, initialized: true, youngest_ledger: None };
        crate::log::Log::open(&config, limits, origin, device, env).map(|_| ())
    };
    for name in manifest::FILES {
        device.remove(name).expect("there");
    }
    assert!(matches!(open(device), Err(OpenError::ManifestLost { .. })));
}

#[test]
fn a_spare_file_that_is_gone_holds_up_nobody() {
    let mut rig = Rig::new();
    rig.fill(1, 0..60, 5_000);
    rig.fill(2, 0..5, 5_000);
    rig.delete(&[1]);
    rig.settle();
    let manifest = rig.log.state.lock().manifest.clone();
    let spare = manifest.slots.iter().filter(|slot| slot.state == manifest::SlotState::Free);
    let spare: Vec<String> = spare.map(|slot| segment::file_name(slot.number)).collect();
    assert!(!spare.is_empty(), "{manifest:?}");
    let device = rig.device.crash(Tear::Lost);
    for name in &spare {
        device.remove(name).expect("it is there");
    }
    let mut rig = Rig::on(device);
    rig.fill(2, 5..60, 5_000);
    let rig = Rig::on(rig.device.crash(Tear::Lost));
    for entry in 0..60 {
        assert_eq!(rig.get(2, entry), Ok(payload(2, entry, 5_000)));
    }
}

#[test]
fn a_ledger_of_which_only_a_later_segment_tells_is_not_taken_for_one_that_was_never_here() {
    let mut rig = Rig::new();
    rig.keep();
    let first = rig.active_file();
    let mut ledger = 0;
    while rig.active_file() == first {
        ledger += 1;
        rig.offer(append(ledger, 0, 5_000)).expect("room");
        rig.turn();
    }
    // The only record of the last ledger in the first segment, beyond recognition.
    let tail = usize::try_from(rig.log.state.lock().sealing[0].tail).expect("small");
    let device = rig.device.crash(Tear::Lost);
    device.flip(&first, tail - 2 * BLOCK_BYTES + 88 + 8, 1);
    let mut rig = Rig::open(device, &accepting()).expect("opens");
    assert_eq!(rig.get(ledger - 1, 0), Err(BookieError::UnknownEntry));
    assert_eq!(rig.put(append(ledger - 1, 1, 10)), Err(BookieError::ReadOnly));
    assert_eq!(rig.get(ledger, 0), Ok(payload(ledger, 0, 5_000)));
}

#[test]
fn a_ledger_of_which_only_a_torn_last_group_tells_is_not_taken_for_one_that_was_never_here() {
    let mut rig = Rig::new();
    rig.fill(1, 0..2, 5_000);
    rig.fill(50, 0..1, 5_000);
    rig.fill(1, 2..3, 5_000);
    let file = rig.active_file();
    let device = rig.device.crash(Tear::Lost);
    // Groups of two blocks: that of ledger 50 is gone, and the last one's second block.
    for block in [5, 6, 8] {
        let bytes = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
        device.edit(&file, |content| content[bytes.clone()].fill(0));
    }
    assert!(matches!(Rig::open(device.fork(), &config()), Err(OpenError::Damaged { .. })));
    let mut rig = Rig::open(device, &accepting()).expect("opens");
    for _ in 0..2 {
        assert_eq!(rig.get(1, 1), Ok(payload(1, 1, 5_000)));
        assert_eq!(rig.get(50, 0), Err(BookieError::UnknownEntry));
        assert_eq!(rig.put(append(50, 1, 10)), Err(BookieError::ReadOnly));
        assert_eq!(rig.get(51, 0), Err(BookieError::NoSuchEntry), "a younger one");
        rig = Rig::open(rig.device.crash(Tear::Lost), &accepting()).expect("opens");
    }
}

#[test]
fn damage_larger_than_any_group_is_not_taken_for_the_torn_end() {
    let large = BookieConfig {
        segment_bytes: Some(1 << 20),
        first_segment_bytes: 1 << 20,
        accept_damage: true,
        ..config()
    };
    let mut rig = Rig::open(MemoryDevice::new(16 << 20), &large).expect("opens");
    rig.fill(1, 0..60, 5_000);
    let file = rig.active_file();
    let device = rig.device.crash(Tear::Lost);
    // Each entry is a group of two blocks; 50 of them are gone.
    let lost = BLOCK_BYTES * (1 + 2 * 5)..BLOCK_BYTES * (1 + 2 * 55);
    device.edit(&file, |bytes| bytes[lost.clone()].fill(0));
    let refusing = BookieConfig { accept_damage: false, ..large.clone() };
    let refused = Rig::open(device.fork(), &refusing);
    assert!(matches!(refused, Err(OpenError::Damaged { .. })));
    let rig = Rig::open(device, &large).expect("opens");
    for entry in 0..60 {
        let there = is_there_or_damaged(&rig, 1, entry, 5_000, "zeros");
        assert_eq!(there, !(5..55).contains(&entry), "{entry}");
    }
}

#[test]
fn one_lost_damaged_or_older_copy_of_the_manifest_stops_nothing() {
    let mut rig = Rig::new();
    rig.fill(1, 0..5, 5_000);
    let old = rig.device.clone().crash(Tear::Lost);
    rig.fill(1, 5..40, 5_000);
    let device = rig.device.crash(Tear::Lost);
    for (index, name) in manifest::FILES.iter().enumerate() {
        type Harm<'a> = Box<dyn Fn(&MemoryDevice) + 'a>;
        let older = old.contents(name).expect("there");
        let harms: [Harm<'_>; 4] = [
            Box::new(|device| device.remove(name).expect("there")),
            Box::new(|device| device.edit(name, Vec::clear)),
            Box::new(|device| device.flip(name, 100, 1)),
            Box::new(|device| device.edit(name, |bytes| bytes.clone_from(&older))),
        ];
        for harm in harms {
            let device = device.fork();
            harm(&device);
            let mut rig = Rig::on(device);
            rig.fill(1, 40..60, 5_000);
            let device = rig.device.crash(Tear::Lost);
            // The other one alone is enough now.
            device.remove(manifest::FILES[1 - index]).expect("there");
            let rig = Rig::on(device);
            assert_eq!(rig.read(1, 0, 100).map(|entries| entries.len()), Ok(60));
        }
    }
}

/// A group with one record, as somebody makes it who knows all but the log's instance.
fn forged(offset: u64, instance: u64) -> Vec<u8> {
    let home = Home { instance, segment: SegmentId(1) };
    let request = append(9, 0, 10);
    let record = Record {
        kind: RecordKind::Entry,
        ledger: request.ledger,
        entry: request.entry,
        token: request.token,
        lac: request.lac,
        payload_bytes: 10,
    };
    let mut buffer = GroupBuffer::default();
    buffer.clear();
    buffer.push(home, offset, &record, &request.payload);
    let previous = Link { segment: SegmentId(1), offset: 0, sequence: 1_000, crc: 0 };
    buffer.seal(home, offset, previous, request.ledger);
    buffer.as_slice().to_vec()
}

#[test]
fn a_payload_made_to_look_like_a_group_is_not_taken_for_one() {
    for (instance, poses) in [(0, false), (77, true)] {
        let mut rig = Rig::new();
        rig.fill(1, 0..1, 100);
        let file = rig.active_file();
        // Behind the headers, so that the forged group begins at a block.
        let begin = BLOCK_BYTES - 88 - 48;
        let offset = 3 * BLOCK_BYTES as u64;
        let payload = [vec![0; begin], forged(offset, instance)].concat();
        let payload = Payload::from(Bytes::from(payload));
        let request = AppendRequest { payload, ..append(1, 1, 0) };
        assert_eq!(rig.put(request), Ok(()));
        let device = rig.device.crash(Tear::Lost);
        device.flip(&file, 2 * BLOCK_BYTES + 20, 1);
        let rig = Rig::open(device, &accepting()).expect("opens");
        assert_eq!(rig.get(9, 0).is_ok(), poses, "only who knows the instance could do it");
    }
}

#[test]
fn a_record_with_another_token_than_its_ledgers_is_damage() {
    let mut rig = Rig::new();
    rig.fill(1, 0..2, 100);
    let device = rig.device.crash(Tear::Lost);
    let file = rig.active_file();
    // A whole third group, right behind the second one, as the log would never write it.
    let (last, offset) = {
        let state = rig.log.state.lock();
        (state.chain, state.active.tail)
    };
    let home = Home { instance: 77, segment: last.segment };
    let request = append(1, 2, 100);
    let record = Record {
        kind: RecordKind::Entry,
        ledger: request.ledger,
        entry: request.entry,
        token: LedgerToken(5),
        lac: request.lac,
        payload_bytes: 100,
    };
    let mut buffer = GroupBuffer::default();
    buffer.clear();
    buffer.push(home, offset, &record, &request.payload);
    buffer.seal(home, offset, last, request.ledger);
    let at = usize::try_from(offset).expect("small");
    device.edit(&file, |bytes| bytes[at..at + BLOCK_BYTES].copy_from_slice(buffer.as_slice()));
    assert!(matches!(Rig::open(device.fork(), &config()), Err(OpenError::Damaged { .. })));
    let rig = Rig::open(device, &accepting()).expect("opens");
    assert_eq!(rig.get(1, 1), Ok(payload(1, 1, 100)));
    assert_eq!(rig.get(1, 2), Err(BookieError::UnknownEntry));
}

#[test]
fn an_intact_older_copy_of_a_damaged_entry_is_read() {
    let mut rig = Rig::new();
    rig.fill(1, 0..3, 300);
    rig.log.seal_all().expect("closes");
    let mut rig = Rig::on(rig.device);
    // Written back by a recovery, say.
    rig.fill(1, 1..2, 300);
    let newer = rig.active_file();
    rig.device.flip(&newer, BLOCK_BYTES + 88 + 48 + 100, 1);
    for _ in 0..2 {
        let entries = rig.read(1, 0, 10).expect("there");
        assert_eq!(entries.len(), 3);
        assert_eq!(rig.get(1, 1), Ok(payload(1, 1, 300)));
        rig.log.seal_all().expect("closes");
        rig = Rig::on(rig.device);
    }
}
