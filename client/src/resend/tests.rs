//! What has no answer is sent again in order, within the credit.

use super::*;
use proptest::prelude::*;
use std::time::Duration;

fn entry(bytes: usize) -> Bytes {
    Bytes::from(vec![0; bytes])
}

/// A queue with one filled slot for each sequence id, completions being the sequence ids.
fn queue(sequences: impl IntoIterator<Item = u64>) -> ResendQueue<u64> {
    let mut queue = ResendQueue::new();
    for sequence in sequences {
        let slot = queue.reserve(sequence, None, sequence);
        queue.fill(slot, entry(10));
    }
    queue
}

fn sent(queue: &mut ResendQueue<u64>) -> Vec<u64> {
    std::iter::from_fn(|| queue.next_to_send()).map(|(sequence, _)| sequence).collect()
}

#[test]
fn nothing_is_sent_without_a_session() {
    let mut queue = queue(0..3);
    assert_eq!(sent(&mut queue), Vec::<u64>::new());
    queue.session_opened(1000);
    assert_eq!(sent(&mut queue), [0, 1, 2]);
}

#[test]
fn an_entry_that_is_still_encoded_holds_back_the_later_ones() {
    let mut queue = queue(0..1);
    queue.session_opened(1000);
    let slow = queue.reserve(1, None, 1);
    let fast = queue.reserve(2, None, 2);
    queue.fill(fast, entry(10));
    assert_eq!(sent(&mut queue), [0]);
    queue.fill(slow, entry(10));
    assert_eq!(sent(&mut queue), [1, 2]);
}

#[test]
fn credit_bounds_what_is_outstanding_and_comes_back_with_answers() {
    let mut queue = queue(0..5);
    queue.session_opened(25);
    assert_eq!(sent(&mut queue), [0, 1]);
    assert_eq!(queue.answered(0), Answered::Entry(0));
    assert_eq!(sent(&mut queue), [2]);
    assert_eq!(sent(&mut queue), Vec::<u64>::new());
}

#[test]
fn an_entry_above_the_credit_goes_alone() {
    let mut queue = queue(0..1);
    let slot = queue.reserve(1, None, 1);
    queue.fill(slot, entry(100));
    queue.session_opened(50);
    assert_eq!(sent(&mut queue), [0]);
    assert_eq!(queue.answered(0), Answered::Entry(0));
    assert_eq!(sent(&mut queue), [1]);
}

#[test]
fn a_new_session_sends_everything_without_an_answer_again_in_order() {
    let mut queue = queue(0..4);
    queue.session_opened(1000);
    assert_eq!(sent(&mut queue), [0, 1, 2, 3]);
    assert_eq!(queue.answered(0), Answered::Entry(0));
    queue.session_ended();
    assert_eq!(sent(&mut queue), Vec::<u64>::new());
    queue.session_opened(1000);
    assert_eq!(sent(&mut queue), [1, 2, 3]);
}

#[test]
fn a_duplicate_answer_is_ignored_and_one_out_of_turn_is_refused() {
    let mut queue = queue([5, 8, 9]);
    queue.session_opened(1000);
    assert_eq!(sent(&mut queue).len(), 3);
    assert_eq!(queue.answered(5), Answered::Entry(5));
    assert_eq!(queue.answered(5), Answered::Ignored);
    assert_eq!(queue.answered(9), Answered::OutOfOrder { expected: Some(8) });
    assert_eq!(queue.answered(8), Answered::Entry(8));
}

#[test]
fn a_refusal_may_overtake_what_was_sent_before_and_leaves_the_order_of_the_rest() {
    let mut queue = queue(0..5);
    queue.session_opened(40);
    assert_eq!(sent(&mut queue), [0, 1, 2, 3]);
    assert_eq!(queue.refused(2), Answered::Entry(2));
    assert_eq!(queue.refused(2), Answered::Ignored);
    assert_eq!(sent(&mut queue), [4], "its credit is back");
    assert_eq!(queue.answered(0), Answered::Entry(0));
    assert_eq!(queue.answered(1), Answered::Entry(1));
    assert_eq!(queue.refused(3), Answered::Entry(3), "the oldest may be refused too");
    queue.session_ended();
    queue.session_opened(40);
    assert_eq!(sent(&mut queue), [4], "what was refused is not sent again");
    assert_eq!(queue.answered(4), Answered::Entry(4));
    assert!(queue.is_empty());
}

#[test]
fn a_refusal_of_what_was_not_sent_is_refused() {
    let mut queue = queue(0..3);
    queue.session_opened(10);
    assert_eq!(sent(&mut queue), [0]);
    assert_eq!(queue.refused(2), Answered::OutOfOrder { expected: Some(0) });
}

#[test]
fn an_answer_to_what_was_not_sent_is_refused() {
    let mut queue = queue([5]);
    queue.session_opened(1000);
    assert_eq!(queue.answered(5), Answered::OutOfOrder { expected: Some(5) });
}

#[test]
fn an_overdue_entry_keeps_its_credit_until_its_answer_and_is_not_sent_again() {
    let mut queue = ResendQueue::new();
    for sequence in 0..3_u64 {
        let deadline = Some(Duration::from_secs(sequence));
        let slot = queue.reserve(sequence, deadline, sequence);
        queue.fill(slot, entry(10));
    }
    queue.session_opened(20);
    assert_eq!(sent(&mut queue), [0, 1]);
    assert_eq!(queue.next_deadline(), Some(Duration::ZERO));
    assert_eq!(queue.expire(Duration::ZERO), [0]);
    assert_eq!(sent(&mut queue), Vec::<u64>::new(), "the broker still has both");
    assert_eq!(queue.answered(0), Answered::Ignored);
    assert_eq!(sent(&mut queue), [2]);
    assert_eq!(queue.expire(Duration::from_secs(1)), [1]);
    queue.session_ended();
    queue.session_opened(100);
    assert_eq!(sent(&mut queue), [2]);
    assert_eq!(queue.answered(2), Answered::Entry(2));
    assert!(queue.is_empty());
}

#[test]
fn an_entry_that_cannot_be_encoded_blocks_nobody() {
    let mut queue = ResendQueue::new();
    let bad = queue.reserve(0, None, 0);
    let good = queue.reserve(1, None, 1);
    queue.fill(good, entry(10));
    queue.session_opened(1000);
    assert_eq!(sent(&mut queue), Vec::<u64>::new());
    assert_eq!(queue.give_up(bad), Some(0));
    assert_eq!(sent(&mut queue), [1]);
    assert_eq!(queue.answered(1), Answered::Entry(1));
}

#[derive(Debug, Clone)]
enum Step {
    Add(usize),
    Fill(usize),
    GiveUp(usize),
    Open(u64),
    End,
    Send,
    Answer,
    AnswerOld,
    Expire(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..40_usize).prop_map(Step::Add),
        4 => (0..4_usize).prop_map(Step::Fill),
        1 => (0..4_usize).prop_map(Step::GiveUp),
        1 => (1..100_u64).prop_map(Step::Open),
        1 => Just(Step::End),
        4 => Just(Step::Send),
        4 => Just(Step::Answer),
        1 => Just(Step::AnswerOld),
        1 => (0..60_u64).prop_map(Step::Expire),
    ]
}

proptest! {
    /// Against a broker that is a list: whatever happens, each session sees rising sequence ids
    /// without a gap that nobody gave up, credit holds, and every completion is handed out once.
    #[test]
    fn order_credit_and_completions_hold_whatever_happens(
        steps in proptest::collection::vec(step(), 1..200),
    ) {
        let mut queue = ResendQueue::new();
        let (mut next, mut encoding) = (0_u64, Vec::new());
        // What the broker got in this session and has not answered: sequence id and bytes.
        let mut at_broker: std::collections::VecDeque<(u64, u64)> = Default::default();
        let (mut last_sent, mut credit, mut clock) = (None, 0_u64, 0_u64);
        // The last sequence id that the broker answered in this session.
        let mut answered = None;
        let mut resolved = Vec::new();
        for step in steps {
            match step {
                Step::Add(bytes) => {
                    let deadline = (next % 2 == 0).then(|| Duration::from_secs(clock + 20));
                    encoding.push((queue.reserve(next, deadline, next), bytes));
                    next += 1;
                }
                Step::Fill(which) if which < encoding.len() => {
                    let (slot, bytes) = encoding.remove(which);
                    queue.fill(slot, entry(bytes));
                }
                Step::GiveUp(which) if which < encoding.len() => {
                    resolved.extend(queue.give_up(encoding.remove(which).0));
                }
                Step::Open(bytes) => {
                    queue.session_opened(bytes);
                    (credit, last_sent) = (bytes, None);
                    answered = None;
                    at_broker.clear();
                }
                Step::End => {
                    queue.session_ended();
                    (credit, answered) = (0, None);
                    at_broker.clear();
                }
                Step::Send => {
                    if let Some((sequence, entry)) = queue.next_to_send() {
                        prop_assert!(credit > 0);
                        prop_assert!(last_sent.is_none_or(|last| last < sequence));
                        last_sent = Some(sequence);
                        at_broker.push_back((sequence, entry.len() as u64));
                        let outstanding: u64 = at_broker.iter().map(|(_, bytes)| bytes).sum();
                        prop_assert!(outstanding <= credit || at_broker.len() == 1);
                        prop_assert!(!resolved.contains(&sequence), "{sequence} was resolved");
                    }
                }
                Step::Answer => {
                    if let Some((sequence, _)) = at_broker.pop_front() {
                        answered = Some(sequence);
                        match queue.answered(sequence) {
                            Answered::Entry(done) => {
                                prop_assert_eq!(done, sequence);
                                resolved.push(done);
                            }
                            Answered::Ignored => prop_assert!(resolved.contains(&sequence)),
                            Answered::OutOfOrder { .. } => prop_assert!(false, "in order"),
                        }
                    }
                }
                Step::AnswerOld => {
                    if let Some(old) = answered {
                        prop_assert_eq!(queue.answered(old), Answered::Ignored);
                    }
                }
                Step::Expire(by) => {
                    clock += by;
                    resolved.extend(queue.expire(Duration::from_secs(clock)));
                }
                Step::Fill(_) | Step::GiveUp(_) => {}
            }
        }
        resolved.extend(queue.drain());
        resolved.sort_unstable();
        prop_assert_eq!(resolved, (0..next).collect::<Vec<_>>());
        prop_assert!(queue.is_empty());
    }
}
