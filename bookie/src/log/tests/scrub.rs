//! What the disk has spoilt is found before a reader meets it, and mended by a copy from elsewhere.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use geminga_proto::env::{Random, SeededRandom};
use geminga_proto::id::{EntryId, SegmentId};
use geminga_proto::storage::{AddKind, AppendRequest, BookieError};

use super::rig::{Rig, append, config, payload};
use crate::config::BookieConfig;
use crate::device::memory::{Operation, Tear};
use crate::log::reader::Located;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn filled() -> (Rig, BTreeMap<(u64, u64), Bytes>) {
    let mut rig = Rig::new();
    // No time of verification is 0.
    rig.jump(1_000);
    let mut stored = BTreeMap::new();
    for entry in 0..30 {
        for ledger in 1..=3 {
            assert_eq!(rig.put(append(ledger, entry, 3_000)), Ok(()));
            stored.insert((ledger, entry), payload(ledger, entry, 3_000));
        }
    }
    (rig, stored)
}

impl Rig {
    /// Lets the keeper work for so many seconds.
    fn work(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.keep();
            self.pass(Duration::from_secs(1));
        }
    }

    fn scrub(&mut self) {
        assert!(self.log.ask_for_scrub().running);
        for _ in 0..1_000 {
            if !self.log.with_state(|state| state.scrub_progress().running) {
                return;
            }
            self.work(1);
        }
        panic!("the scrub goes on for ever");
    }

    fn damaged(&self) -> Vec<(u64, u64)> {
        let ranges = self.log.with_state(|state| state.damaged.ranges(1_000));
        let each = ranges.into_iter().flat_map(|range| {
            let entries = range.entries.start().0..=range.entries.end().0;
            entries.map(move |entry| (range.ledger.0, entry))
        });
        each.collect()
    }

    /// Copies that another bookie still has are written back.
    fn mend(&mut self, damaged: &[(u64, u64)]) {
        for (ledger, entry) in damaged {
            let whole = append(*ledger, *entry, 3_000);
            let recovery = AppendRequest { kind: AddKind::Recovery, ..whole };
            assert_eq!(self.put(recovery), Ok(()));
        }
    }
}

#[test]
fn every_byte_that_counts_is_read_within_the_interval_and_not_before() {
    let (mut rig, stored) = filled();
    let scrubbed = |rig: &Rig| rig.log.with_state(|state| state.counters.scrubbed_bytes);
    rig.work(10);
    rig.pass(6 * DAY);
    rig.work(10);
    assert_eq!(scrubbed(&rig), 0, "what was written in this week needs no look");
    let unverified = |rig: &Rig| {
        let now_ms = rig.log.wall_ms();
        Duration::from_millis(rig.log.with_state(|state| state.unverified_ms(now_ms)))
    };
    assert!((6 * DAY..7 * DAY).contains(&unverified(&rig)), "{:?}", unverified(&rig));
    rig.pass(DAY);
    rig.work(60);
    assert!(unverified(&rig) < DAY, "{:?}", unverified(&rig));
    let sealed: u64 = rig.log.with_state(|state| state.sealed.values().map(|s| s.live_bytes).sum());
    let once = scrubbed(&rig);
    assert!(once >= sealed && sealed > 100_000, "{once} of {sealed}");
    rig.work(60);
    assert_eq!(scrubbed(&rig), once, "once a week is enough");
    assert_eq!(rig.damaged(), []);
    // A restart doesn't begin again.
    let mut rig = Rig::on(rig.device.crash(Tear::Lost));
    rig.pass(7 * DAY + Duration::from_secs(60));
    rig.work(1);
    rig.check(&stored);
}

#[test]
fn a_rewrite_does_not_hold_up_a_scrub() {
    let (mut rig, mut stored) = filled();
    // Some segments hold nothing else: they stay as they are.
    rig.fill(4, 0..150, 3_000);
    stored.extend((0..150).map(|entry| ((4, entry), payload(4, entry, 3_000))));
    rig.settle();
    assert!(rig.log.ask_for_scrub().running);
    stored.retain(|(ledger, _), _| *ledger >= 3);
    assert_eq!(rig.delete(&[1, 2]), 2);
    let scrubbed = |rig: &Rig| rig.log.with_state(|state| state.counters.scrubbed_bytes);
    let (mut side_by_side, mut steps) = (0, 0);
    while rig.log.with_state(|state| state.rewrite.is_some() || state.rewrite_plan().is_some()) {
        let before = scrubbed(&rig);
        rig.log.run_background();
        rig.pass(Duration::from_secs(1));
        let under_way = rig.log.with_state(|state| state.rewrite.is_some());
        side_by_side += u32::from(under_way && scrubbed(&rig) > before);
        steps += 1;
        assert!(steps < 1_000, "reclaim goes on for ever");
    }
    assert!(side_by_side > 0, "none of {steps} steps was the scrub's");
    rig.scrub();
    assert_eq!(rig.damaged(), []);
    rig.check(&stored);
}

#[test]
fn all_flips_in_entries_are_found_and_mended_and_nothing_else_is_reported() {
    let (rig, stored) = filled();
    let disk = rig.device.crash(Tear::Lost);
    let mut found = 0;
    for seed in 0..500 {
        let random = SeededRandom::new(seed);
        let mut rig = Rig::on(disk.fork());
        let mut spoilt: Vec<(u64, u64)> = Vec::new();
        for _ in 0..=random.below(50) {
            let pick = usize::try_from(random.below(stored.len() as u64)).expect("small");
            let place = *stored.keys().nth(pick).expect("below its length");
            // Twice may be as if never.
            if !spoilt.contains(&place) {
                rig.spoil(place, &random);
                spoilt.push(place);
            }
        }
        spoilt.sort_unstable();
        rig.scrub();
        assert_eq!(rig.damaged(), spoilt, "seed {seed}");
        found += spoilt.len();
        for (ledger, entry) in &spoilt {
            assert_eq!(rig.get(*ledger, *entry), Err(BookieError::CorruptEntry));
        }
        rig.mend(&spoilt);
        assert_eq!(rig.damaged(), []);
        rig.check(&stored);
        // Also after a start, and for whoever rewrites the segment.
        let mut rig = Rig::on(rig.device.crash(Tear::Lost));
        rig.scrub();
        assert_eq!(rig.damaged(), []);
        rig.check(&stored);
    }
    assert!(found >= 10_000, "{found}");
}

impl Rig {
    /// Where an entry is that is in a sealed segment.
    fn locate(&self, ledger: u64, entry: u64) -> Located {
        use geminga_proto::id::{EntryId, LedgerId};
        self.log.with_state(|state| {
            state
                .sealed
                .iter()
                .find_map(|(segment, sealed)| {
                    let index = self.log.index(*segment, sealed).expect("whole");
                    let mut rows = index.by_ledger();
                    let (_, places) = rows.find(|(row, _)| row.ledger == LedgerId(ledger))?;
                    let found = places.iter().find(|(found, _)| *found == EntryId(entry))?;
                    let (entry, segment, slot) = (EntryId(entry), *segment, sealed.slot);
                    Some(Located { entry, segment, slot, place: found.1 })
                })
                .expect("everything is sealed by a start")
        })
    }

    /// Flips a bit of a stored entry, header or payload.
    fn spoil(&self, (ledger, entry): (u64, u64), random: &SeededRandom) {
        let Located { slot, place, .. } = self.locate(ledger, entry);
        // Checksums cover the header to its end, and the payload; not the padding.
        let at = place.offset() + random.below(48 + u64::from(place.payload_bytes));
        let mask = 1 << random.below(8);
        let name = crate::log::segment::file_name(slot);
        self.device.flip(&name, usize::try_from(at).expect("small"), mask);
    }
}

#[test]
fn a_damaged_index_makes_all_that_it_listed_damaged_until_it_is_written_back() {
    let (rig, stored) = filled();
    let mut rig = Rig::on(rig.device.crash(Tear::Lost));
    let (segment, sealed) = rig
        .log
        .with_state(|state| state.sealed.iter().next().map(|(id, it)| (*id, *it)).expect("one"));
    let pages = sealed.data_end + 2 * 4_096;
    let name = crate::log::segment::file_name(sealed.slot);
    rig.device.flip(&name, usize::try_from(pages).expect("small") + 100, 4);
    rig.scrub();
    let damaged = rig.damaged();
    assert_eq!(damaged.len() as u64, sealed.live_entries, "{damaged:?}");
    rig.mend(&damaged);
    assert_eq!(rig.damaged(), []);
    rig.check(&stored);
    // It isn't kept for its ledgers' lives, and nobody reads it again.
    rig.work(30);
    assert!(rig.log.with_state(|state| !state.sealed.contains_key(&segment)));
    assert!(rig.device.contents(&name).is_none(), "a file with such blocks isn't used again");
    rig.check(&stored);
    let mut rig = Rig::on(rig.device.crash(Tear::Lost));
    rig.scrub();
    assert_eq!(rig.damaged(), []);
    rig.check(&stored);
}

/// A log with a sealed segment of two index pages, and the name of its file.
fn with_pages() -> (Rig, BTreeMap<(u64, u64), Bytes>, SegmentId, String) {
    let mut rig = Rig::new();
    let mut stored = BTreeMap::new();
    for entry in 0..150 {
        for ledger in 1..=3 {
            rig.offer(append(ledger, entry, 20)).expect("room");
            stored.insert((ledger, entry), payload(ledger, entry, 20));
        }
    }
    rig.settle();
    let rig = Rig::on(rig.device.crash(Tear::Lost));
    let (segment, sealed) = rig
        .log
        .with_state(|state| state.sealed.iter().next().map(|(id, it)| (*id, *it)).expect("one"));
    assert_eq!(sealed.live_entries, 450, "all of it is in one segment");
    let name = crate::log::segment::file_name(sealed.slot);
    (rig, stored, segment, name)
}

impl Rig {
    fn data_end(&self, segment: SegmentId) -> usize {
        let end = self.log.with_state(|state| state.sealed[&segment].data_end);
        usize::try_from(end).expect("small")
    }
}

#[test]
fn a_damaged_page_costs_the_entries_that_it_lists_and_the_segment_goes_once_they_are_mended() {
    let (mut rig, stored, segment, name) = with_pages();
    // The second page: what the first one doesn't list of ledger 2, and ledger 3.
    let page = rig.data_end(segment) + 3 * 4_096;
    rig.device.flip(&name, page + 100, 4);
    rig.scrub();
    let damaged = rig.damaged();
    let listed = (0..450).skip(255).map(|at| (at / 150 + 1, at % 150));
    assert_eq!(damaged, listed.collect::<Vec<_>>());
    rig.work(30);
    assert!(rig.log.with_state(|state| state.sealed.contains_key(&segment)), "it may be needed");
    for (ledger, entry) in &damaged[1..] {
        let recovery = AppendRequest { kind: AddKind::Recovery, ..append(*ledger, *entry, 20) };
        assert_eq!(rig.put(recovery), Ok(()));
    }
    rig.work(30);
    assert!(rig.log.with_state(|state| state.sealed.contains_key(&segment)), "one is left");
    let (ledger, entry) = damaged[0];
    let recovery = AppendRequest { kind: AddKind::Recovery, ..append(ledger, entry, 20) };
    assert_eq!(rig.put(recovery), Ok(()));
    rig.work(30);
    assert!(rig.log.with_state(|state| !state.sealed.contains_key(&segment)));
    rig.check(&stored);
    let rig = Rig::on(rig.device.crash(Tear::Lost));
    rig.check(&stored);
}

#[test]
fn a_page_that_can_be_read_in_between_is_not_taken_for_one_whose_entries_are_elsewhere() {
    let (mut rig, stored, segment, name) = with_pages();
    let (number, page) = (1, rig.data_end(segment) + 3 * 4_096);
    let flip = |rig: &Rig| {
        rig.device.flip(&name, page + 100, 4);
        rig.log.pages.forget(segment, number);
    };
    flip(&rig);
    rig.scrub();
    assert_eq!(rig.damaged().len(), 450 - 255);
    // The disk is well for a while, and somebody reads all of it.
    flip(&rig);
    rig.check(&stored);
    assert_eq!(rig.damaged(), []);
    flip(&rig);
    rig.work(30);
    assert!(rig.log.with_state(|state| state.sealed.contains_key(&segment)), "it is all there is");
    for (ledger, entry) in stored.keys() {
        let found = rig.get(*ledger, *entry);
        assert!(!matches!(found, Err(BookieError::NoSuchEntry)), "{ledger}:{entry}");
    }
    let damaged = rig.damaged();
    assert_eq!(damaged.len(), 450 - 255, "it is told anew");
    for (ledger, entry) in damaged {
        let recovery = AppendRequest { kind: AddKind::Recovery, ..append(ledger, entry, 20) };
        assert_eq!(rig.put(recovery), Ok(()));
    }
    rig.work(30);
    assert!(rig.log.with_state(|state| !state.sealed.contains_key(&segment)));
    rig.check(&stored);
}

#[test]
fn a_damaged_header_or_directory_costs_nothing_and_is_written_anew_elsewhere() {
    for at in [20, usize::MAX, usize::MAX - 1] {
        let (mut rig, stored, segment, name) = with_pages();
        let at = match at {
            usize::MAX => rig.data_end(segment) + 20,
            20 => 20,
            _ => rig.data_end(segment) + 4_096 + 30,
        };
        rig.device.flip(&name, at, 1);
        rig.scrub();
        assert_eq!(rig.damaged(), [], "every entry can be found, byte {at}");
        rig.work(30);
        assert!(rig.log.with_state(|state| !state.sealed.contains_key(&segment)));
        let rig = Rig::on(rig.device.crash(Tear::Lost));
        assert_eq!(rig.report.damage, []);
        rig.check(&stored);
    }
}

#[test]
fn a_file_that_is_gone_is_noted_whole_and_its_place_is_given_up_once_it_is_mended() {
    let (rig, stored) = filled();
    let mut rig = Rig::on(rig.device.crash(Tear::Lost));
    let name = rig.sealed_files().remove(0);
    let live = rig.log.with_state(|state| state.sealed.values().next().expect("one").live_entries);
    crate::device::Device::remove(&rig.device, &name).expect("there");
    rig.scrub();
    let damaged = rig.damaged();
    assert_eq!(damaged.len() as u64, live);
    rig.mend(&damaged);
    rig.work(30);
    assert!(!rig.sealed_files().contains(&name));
    rig.fill(9, 0..200, 5_000);
    rig.check(&stored);
    let rig = Rig::on(rig.device.crash(Tear::Lost));
    rig.check(&stored);
}

#[test]
fn a_reader_that_meets_a_damaged_page_has_the_segment_verified_soon() {
    let (mut rig, _, segment, name) = with_pages();
    let page = rig.data_end(segment) + 3 * 4_096;
    rig.device.flip(&name, page + 100, 4);
    rig.work(5);
    assert_eq!(rig.damaged(), [], "its turn is next week");
    assert_eq!(rig.get(3, 7), Err(BookieError::UnknownEntry));
    rig.work(5);
    assert_eq!(rig.damaged().len(), 450 - 255);
}

#[test]
fn what_is_found_whole_on_the_disk_after_all_is_not_damaged() {
    let (rig, stored) = filled();
    let rig = Rig::on(rig.device.crash(Tear::Lost));
    let id = geminga_proto::id::LedgerId(2);
    let segment = rig.locate(2, 7).segment;
    rig.log.damage(|damaged| {
        damaged.note(id, EntryId(6)..=EntryId(8), segment);
    });
    rig.read(2, 7, 1).expect("it is whole");
    assert_eq!(rig.damaged(), [(2, 6), (2, 8)]);
    rig.check(&stored);
    assert_eq!(rig.damaged(), []);
}

#[test]
fn blocks_that_cannot_be_read_cost_only_what_lies_in_them() {
    let (rig, stored) = filled();
    let mut rig = Rig::on(rig.device.crash(Tear::Lost));
    let file = rig.sealed_files().remove(0);
    rig.device.spoil(&file, 5);
    rig.scrub();
    let damaged = rig.damaged();
    assert!((1..=3).contains(&damaged.len()), "{damaged:?}");
    rig.mend(&damaged);
    rig.check(&stored);
}

#[test]
fn a_file_that_cannot_be_opened_for_want_of_descriptors_is_no_damage() {
    let (rig, stored) = filled();
    let limits = BookieConfig { max_open_files: 1, ..config() };
    let mut rig = Rig::open(rig.device.crash(Tear::Lost), &limits).expect("opens");
    rig.log.ask_for_scrub();
    rig.device.fail(Operation::Open, 0);
    rig.work(20);
    assert_eq!(rig.damaged(), []);
    rig.device.mend();
    rig.scrub();
    assert_eq!(rig.damaged(), []);
    rig.check(&stored);
}

#[test]
fn a_clock_that_jumps_neither_stops_the_scrub_nor_makes_it_run_for_ever() {
    let (mut rig, _) = filled();
    rig.work(10);
    let scrubbed = |rig: &Rig| rig.log.with_state(|state| state.counters.scrubbed_bytes);
    rig.jump(-3_600_000);
    rig.work(20);
    assert_eq!(scrubbed(&rig), 0);
    rig.jump(8 * 24 * 3_600_000);
    rig.work(60);
    let once = scrubbed(&rig);
    assert!(once > 0);
    rig.jump(-8 * 24 * 3_600_000);
    rig.work(120);
    assert!(scrubbed(&rig) <= 2 * once, "{} after {once}", scrubbed(&rig));
}

#[test]
fn a_read_that_was_overtaken_by_the_mending_reports_no_damage() {
    let (rig, stored) = filled();
    let mut rig = Rig::on(rig.device.crash(Tear::Lost));
    rig.spoil((2, 7), &SeededRandom::new(1));
    let (ledger, entry) = (geminga_proto::id::LedgerId(2), geminga_proto::id::EntryId(7));
    let located = rig.locate(2, 7);
    assert!(rig.log.note_damage(ledger, &located), "as long as it is the only copy");
    // Somebody has looked it up, the copy comes, and only then is it read.
    rig.mend(&[(2, 7)]);
    assert_eq!(located.entry, entry);
    assert!(!rig.log.note_damage(ledger, &located));
    assert_eq!(rig.damaged(), []);
    // The same once the copy is in a sealed segment.
    rig.fill(9, 0..40, 5_000);
    rig.work(5);
    assert!(!rig.log.note_damage(ledger, &located));
    rig.check(&stored);
}

#[test]
fn what_is_in_memory_does_not_hide_that_the_disk_has_spoilt_it() {
    let mut rig = Rig::new();
    rig.fill(1, 0..3, 3_000);
    // From the segment that is still written to, so it is kept.
    assert_eq!(rig.get(1, 1), Ok(payload(1, 1, 3_000)));
    rig.fill(2, 0..60, 5_000);
    rig.spoil((1, 1), &SeededRandom::new(1));
    assert_eq!(rig.get(1, 1), Ok(payload(1, 1, 3_000)), "it is in memory");
    rig.scrub();
    assert_eq!(rig.damaged(), [(1, 1)]);
}
