//! What is damaged, against a plain set of entries.

use geminga_proto::env::{Random, SeededRandom};

use super::*;

const SEGMENT: SegmentId = SegmentId(10);

fn run(first: u64, last: u64) -> RangeInclusive<EntryId> {
    EntryId(first)..=EntryId(last)
}

fn named(damaged: &Damaged) -> Vec<(u64, u64, u64)> {
    damaged.check();
    let ranges = damaged.ranges(usize::MAX).into_iter();
    ranges.map(|range| (range.ledger.0, range.entries.start().0, range.entries.end().0)).collect()
}

#[test]
fn entries_form_runs_and_are_counted_once() {
    let mut damaged = Damaged::default();
    for (ledger, entry) in [(2, 6), (1, 4), (1, 3), (2, 8), (1, 5)] {
        assert_eq!(damaged.note(LedgerId(ledger), run(entry, entry), SegmentId(ledger + 10)), 1);
    }
    assert_eq!(named(&damaged), [(1, 3, 5), (2, 6, 6), (2, 8, 8)]);
    assert_eq!((damaged.len(), damaged.ranges(1).len()), (5, 1));
    assert_eq!(damaged.note(LedgerId(1), run(4, 7), SegmentId(11)), 2, "two of them are known");
    assert_eq!(named(&damaged)[0], (1, 3, 7));
    assert!(damaged.has(SegmentId(11)) && !damaged.has(SegmentId(13)));
}

#[test]
fn the_last_entry_of_a_segment_to_be_mended_is_told() {
    let mut damaged = Damaged::default();
    damaged.note(LedgerId(1), run(3, 5), SEGMENT);
    damaged.note(LedgerId(2), run(6, 6), SEGMENT);
    assert_eq!(damaged.mended(LedgerId(1), EntryId(9)), None, "it wasn't noted");
    for entry in [4, 3, 5] {
        assert_eq!(damaged.mended(LedgerId(1), EntryId(entry)), None);
    }
    assert_eq!(damaged.mended(LedgerId(2), EntryId(6)), Some(SEGMENT));
    assert_eq!((named(&damaged), damaged.len()), (vec![], 0));
}

#[test]
fn only_what_is_to_be_kept_stays_damaged_of_what_was_complete() {
    let mut damaged = Damaged::default();
    damaged.note(LedgerId(1), run(0, 9), SEGMENT);
    damaged.note(LedgerId(1), run(20, 29), SegmentId(50));
    damaged.keep_only(LedgerId(1), SegmentId(50), &[run(2, 3), run(8, 100)]);
    assert_eq!(named(&damaged), [(1, 2, 3), (1, 8, 9), (1, 20, 29)]);
    damaged.keep_only(LedgerId(1), SegmentId(51), &[]);
    assert_eq!(named(&damaged), []);
}

#[test]
fn beyond_the_most_runs_neighbours_are_joined_and_nothing_is_left_out() {
    let mut damaged = Damaged { max_runs: 4, ..Damaged::default() };
    for entry in (0..40).step_by(2) {
        damaged.note(LedgerId(1), run(entry, entry), SEGMENT);
        damaged.note(LedgerId(2), run(entry, entry), SegmentId(11));
    }
    // Another segment's entries are joined with nobody's.
    damaged.note(LedgerId(1), run(60, 60), SegmentId(11));
    let named = named(&damaged);
    assert!(named.len() <= 7, "{named:?}");
    for ledger in [1, 2] {
        for entry in (0..40).step_by(2) {
            let holds = |(of, first, last): &(u64, u64, u64)| {
                *of == ledger && (*first..=*last).contains(&entry)
            };
            assert!(named.iter().any(holds), "{ledger}/{entry} is left out of {named:?}");
        }
    }
}

#[test]
fn whatever_is_noted_and_mended_in_whatever_order_is_what_a_set_says() {
    for seed in 0..300 {
        let random = SeededRandom::new(seed);
        let mut damaged = Damaged::default();
        let mut model: BTreeMap<(u64, u64), u64> = BTreeMap::new();
        for _ in 0..60 {
            let (ledger, segment) = (random.below(2), random.below(3));
            let first = random.below(30);
            let last = first + random.below(8);
            let id = LedgerId(ledger);
            match random.below(8) {
                0..=3 => {
                    let before = model.len();
                    model.extend((first..=last).map(|entry| ((ledger, entry), segment)));
                    let news = damaged.note(id, run(first, last), SegmentId(segment));
                    assert_eq!(news as usize, model.len() - before, "seed {seed}");
                }
                4 | 5 => {
                    let was = model.remove(&(ledger, first));
                    let over = was.filter(|of| !model.values().any(|segment| segment == of));
                    let told = damaged.mended(id, EntryId(first));
                    assert_eq!(told, over.map(SegmentId), "seed {seed}");
                }
                6 => {
                    damaged.forget_in(id, SegmentId(segment));
                    model.retain(|(of, _), at| *of != ledger || *at != segment);
                }
                _ => {
                    damaged.keep_only(id, SegmentId(segment), &[run(first, last)]);
                    model.retain(|(of, entry), at| {
                        *of != ledger || *at >= segment || (first..=last).contains(entry)
                    });
                }
            }
            damaged.check();
            let all = damaged.ranges(usize::MAX).into_iter().flat_map(|range| {
                let entries = range.entries.start().0..=range.entries.end().0;
                entries.map(move |entry| (range.ledger.0, entry))
            });
            assert!(all.eq(model.keys().copied()), "seed {seed}");
            for segment in 0..3 {
                let has = model.values().any(|of| *of == segment);
                assert_eq!(damaged.has(SegmentId(segment)), has, "seed {seed}");
            }
        }
    }
}
