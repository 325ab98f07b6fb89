//! The cursor against a plain set of acknowledged (entry, index) pairs.

use super::*;
use geminga_proto::id::{EntryId, LedgerId};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Entries of a topic over several ledgers, as (ledger, entry, messages).
fn topic(shape: &[(u32, bool)]) -> Vec<EntrySpan> {
    let (mut ledger, mut entry, mut index) = (3, 0, 100);
    let mut spans = Vec::new();
    for (messages, roll) in shape {
        if *roll && entry > 0 {
            ledger += 2;
            entry = 0;
        }
        spans.push(EntrySpan {
            position: Position::new(LedgerId(ledger), EntryId(entry)),
            first_index: MessageIndex(index),
            messages: *messages,
        });
        entry += 1;
        index += u64::from(*messages);
    }
    spans
}

fn start(spans: &[EntrySpan]) -> Cursor {
    Cursor::new(CursorState::new(Frontier::at(&spans[0])))
}

#[derive(Debug, Clone)]
enum Op {
    Ack { entry: usize, from: u32, len: u32 },
    AckWhole(usize),
    Cumulative { entry: usize, upto: u32 },
    Reset(usize),
    SkipTo(usize),
    Note(usize),
    Reload,
}

fn op() -> impl Strategy<Value = Op> {
    let entry = 0_usize..24;
    prop_oneof![
        4 => (entry.clone(), 0_u32..6, 1_u32..6)
            .prop_map(|(entry, from, len)| Op::Ack { entry, from, len }),
        8 => entry.clone().prop_map(Op::AckWhole),
        2 => (entry.clone(), 0_u32..7).prop_map(|(entry, upto)| Op::Cumulative { entry, upto }),
        1 => entry.clone().prop_map(Op::Reset),
        1 => entry.clone().prop_map(Op::SkipTo),
        2 => entry.prop_map(Op::Note),
        1 => Just(Op::Reload),
    ]
}

/// Runs one operation on cursor and model; answers the change it made durable.
fn apply(
    cursor: &mut Cursor,
    model: &mut BTreeSet<u64>,
    spans: &[EntrySpan],
    op: &Op,
) -> CursorChange {
    let mut delta = CursorDelta::default();
    let at = |entry: usize| spans[entry % spans.len()];
    let before = model.len();
    let added = match op {
        Op::Ack { entry, from, len } => {
            let span = at(*entry);
            let from = (*from).min(span.messages - 1);
            let end = (from + len).min(span.messages);
            let first = span.first_index.0;
            let range = IndexRange::new(first + u64::from(from), first + u64::from(end));
            model.extend(range.start.0..range.end.0);
            cursor.ack(&span, range, &mut delta)
        }
        Op::AckWhole(entry) => {
            let span = at(*entry);
            model.extend(span.first_index.0..span.end_index().0);
            cursor.ack(&span, span.indexes(), &mut delta)
        }
        Op::Cumulative { entry, upto } => {
            let span = at(*entry);
            let upto = span.first_index.0 + u64::from((*upto).min(span.messages));
            model.extend(spans[0].first_index.0..upto);
            cursor.ack_cumulative(&span, MessageIndex(upto), &mut delta)
        }
        Op::SkipTo(entry) => {
            model.extend(spans[0].first_index.0..at(*entry).first_index.0);
            cursor.skip_to(Frontier::at(&at(*entry)), &mut delta)
        }
        Op::Note(entry) => {
            let span = at(*entry);
            let unacked = cursor.unacked_in(&span);
            cursor.note(&span, unacked);
            0
        }
        Op::Reload => {
            *cursor = Cursor::new(cursor.state().clone());
            0
        }
        Op::Reset(entry) => {
            let frontier = Frontier::at(&at(*entry));
            model.clear();
            model.extend(spans[0].first_index.0..frontier.index.0);
            return cursor.reset(frontier);
        }
    };
    assert_eq!(added, (model.len() - before) as u64, "newly acknowledged");
    CursorChange::Ack(delta)
}

fn check(cursor: &Cursor, model: &BTreeSet<u64>, spans: &[EntrySpan]) {
    let end = spans[spans.len() - 1].end_index();
    let all = spans[0].first_index.0..end.0;
    let first_unacked = all.clone().find(|index| !model.contains(index)).unwrap_or(end.0);
    assert_eq!(cursor.next_unacked().0, first_unacked);
    let backlog = all.filter(|index| !model.contains(index)).count() as u64;
    assert_eq!(cursor.backlog_messages(end), backlog);
    for span in spans {
        let indexes = span.first_index.0..span.end_index().0;
        let unacked = indexes.clone().filter(|index| !model.contains(index)).count();
        assert_eq!(cursor.unacked_in(span) as usize, unacked);
        let bits = cursor.acked_indexes(span);
        let mut runs = Vec::new();
        crate::core::ack_set::runs_of_bits(&bits, span.first_index, span.messages, &mut runs)
            .expect("within the entry");
        let acked: Vec<u64> = runs.iter().flat_map(|run| run.start.0..run.end.0).collect();
        let expected: Vec<u64> = indexes.filter(|index| model.contains(index)).collect();
        assert_eq!(acked, expected);
    }
    // The frontier never passes an unacknowledged message, and names a true entry boundary.
    let frontier = cursor.frontier();
    assert!(frontier.index.0 <= first_unacked);
    let known = spans
        .iter()
        .any(|span| frontier == Frontier::at(span) || frontier == Frontier::after(span));
    assert!(known, "{frontier:?}");
}

proptest! {
    #[test]
    fn a_cursor_agrees_with_a_plain_set_of_messages(
        shape in prop::collection::vec((1_u32..6, prop::bool::weighted(0.2)), 1..24),
        ops in prop::collection::vec(op(), 0..60),
    ) {
        let spans = topic(&shape);
        let mut cursor = start(&spans);
        let mut model = BTreeSet::new();
        let mut durable = cursor.state().clone();
        for op in &ops {
            let change = apply(&mut cursor, &mut model, &spans, op);
            check(&cursor, &model, &spans);
            durable.apply(&change);
            if !matches!(op, Op::Note(_)) {
                prop_assert_eq!(durable.next_unacked, cursor.next_unacked());
                prop_assert_eq!(&durable.acked, &cursor.state().acked);
                prop_assert!(durable.frontier <= cursor.frontier());
            }
            let once = durable.clone();
            durable.apply(&change);
            prop_assert_eq!(&durable, &once);
        }
        // Once dispatch has met every entry, reading would start exactly at the first entry that
        // isn't acknowledged.
        for span in &spans {
            let unacked = cursor.unacked_in(span);
            cursor.note(span, unacked);
        }
        let exact = spans.iter().find(|span| cursor.unacked_in(span) > 0).map_or_else(
            || Frontier::after(&spans[spans.len() - 1]),
            Frontier::at,
        );
        prop_assert_eq!(cursor.frontier(), exact);
    }

    #[test]
    fn acknowledging_again_changes_nothing_and_yields_no_delta(
        shape in prop::collection::vec((1_u32..6, prop::bool::weighted(0.2)), 1..24),
        ops in prop::collection::vec(op(), 0..40),
    ) {
        let spans = topic(&shape);
        let mut cursor = start(&spans);
        let mut model = BTreeSet::new();
        for op in ops.iter().filter(|op| !matches!(op, Op::Reset(_) | Op::Note(_))) {
            apply(&mut cursor, &mut model, &spans, op);
        }
        let state = cursor.state().clone();
        for op in ops.iter().filter(|op| matches!(op, Op::Ack { .. } | Op::AckWhole(_))) {
            let change = apply(&mut cursor, &mut model, &spans, op);
            prop_assert_eq!(change, CursorChange::Ack(CursorDelta::default()));
        }
        prop_assert_eq!(cursor.state(), &state);
    }
}

#[test]
fn the_frontier_jumps_over_a_run_when_the_hole_before_it_closes() {
    let spans = topic(&[(1, false), (1, false), (1, true), (3, false)]);
    let mut cursor = start(&spans);
    let mut delta = CursorDelta::default();
    for entry in [2, 1] {
        cursor.ack(&spans[entry], spans[entry].indexes(), &mut delta);
    }
    assert_eq!(cursor.frontier(), Frontier::at(&spans[0]));
    assert_eq!(delta.frontier, None);
    assert_eq!(delta.acked, [spans[2].indexes(), spans[1].indexes()]);
    let mut delta = CursorDelta::default();
    cursor.ack(&spans[0], spans[0].indexes(), &mut delta);
    assert_eq!(delta.frontier, Some(Frontier::after(&spans[2])));
    assert_eq!(cursor.acked_beyond(), 0);
}

#[test]
fn a_cumulative_acknowledgement_may_end_inside_a_batch() {
    let spans = topic(&[(2, false), (4, false)]);
    let mut cursor = start(&spans);
    let mut delta = CursorDelta::default();
    let upto = MessageIndex(spans[1].first_index.0 + 3);
    assert_eq!(cursor.ack_cumulative(&spans[1], upto, &mut delta), 5);
    assert_eq!(delta.upto, Some(upto));
    assert_eq!(delta.frontier, Some(Frontier::at(&spans[1])));
    assert_eq!(&cursor.acked_indexes(&spans[1])[..], [0b0111]);
    assert_eq!(cursor.unacked_in(&spans[1]), 1);
}

#[test]
fn an_idle_cursor_takes_little_memory() {
    assert!(size_of::<Cursor>() <= 160, "{}", size_of::<Cursor>());
    let spans = topic(&[(1, false); 50]);
    let mut cursor = start(&spans);
    let mut delta = CursorDelta::default();
    for span in spans.iter().rev() {
        cursor.ack(span, span.indexes(), &mut delta);
    }
    assert_eq!(cursor.boundaries.len(), 0);
    assert_eq!(cursor.state().acked, AckSet::default());
}

#[test]
fn fifty_thousand_holes_are_kept_and_closed_again() {
    const HOLES: u64 = 50_000;
    let span = |entry: u64| EntrySpan {
        position: Position::new(LedgerId(1), EntryId(entry)),
        first_index: MessageIndex(entry),
        messages: 1,
    };
    let mut cursor = Cursor::new(CursorState::new(Frontier::at(&span(0))));
    let mut delta = CursorDelta::default();
    for entry in (1..HOLES * 2).step_by(2) {
        cursor.ack(&span(entry), span(entry).indexes(), &mut delta);
    }
    assert_eq!(cursor.backlog_messages(MessageIndex(HOLES * 2)), HOLES);
    for entry in (0..HOLES * 2).step_by(2) {
        cursor.ack(&span(entry), span(entry).indexes(), &mut delta);
        assert_eq!(cursor.frontier().index.0, entry + 2);
    }
    assert_eq!(cursor.backlog_messages(MessageIndex(HOLES * 2)), 0);
}

#[test]
fn a_cursor_that_knows_more_than_its_topic_is_set_back_to_what_the_topic_has() {
    let at = |index, entry| Frontier {
        index: MessageIndex(index),
        position: Position::new(LedgerId(3), EntryId(entry)),
    };
    let end = at(20, 5);
    let mut cursor = CursorState::new(at(10, 2));
    assert_eq!(cursor.set_back_to(end), None);
    let mut acked = |from, to| {
        let acked = vec![IndexRange::new(from, to)];
        cursor.apply(&CursorChange::Ack(CursorDelta { acked, ..CursorDelta::default() }));
        cursor.set_back_to(end)
    };
    assert_eq!(acked(12, 20), None, "up to the last one");
    assert_eq!(acked(20, 21), Some(at(10, 2)), "one by one: those before come again");
    assert_eq!(acked(10, 12), Some(end), "all that there is, and one more");
}
