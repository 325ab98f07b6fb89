//! No acknowledgement is lost, invented or sent out of order.

use super::*;
use geminga_proto::id::{EntryId, LedgerId};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn at(entry: u64) -> Position {
    Position::new(LedgerId(1), EntryId(entry))
}

fn id(entry: u64, index: u32, size: u32) -> MessageId {
    MessageId { position: at(entry), batch_index: Some(index), batch_size: size }
}

fn bits(group: &Group) -> Vec<(u64, Vec<u8>)> {
    group.positions.iter().map(|it| (it.entry_id, it.acked_indexes.to_vec())).collect()
}

#[test]
fn acknowledgements_travel_together_and_a_complete_batch_is_a_whole_entry() {
    let mut acks = AckTracker::<()>::new();
    acks.ack(MessageId::entry(at(7)), None);
    for index in [0, 2, 1] {
        acks.ack(id(5, index, 3), None);
    }
    acks.ack(id(6, 9, 10), None);
    acks.ack(id(6, 0, 10), None);
    let groups = acks.take_groups();
    assert_eq!(groups.len(), 1);
    assert_eq!(bits(&groups[0]), [(5, vec![]), (6, vec![1, 2]), (7, vec![])]);
    assert!(!acks.is_waiting() && !acks.is_settled());
    assert!(acks.answered(groups[0].request_id).is_some());
    assert!(acks.answered(groups[0].request_id).is_none());
    assert!(acks.is_settled());
}

#[test]
fn a_whole_entry_acknowledged_cumulatively_stays_whole_when_one_of_its_messages_follows() {
    let mut acks = AckTracker::<()>::new();
    acks.ack_cumulative(MessageId::entry(at(5)), None);
    acks.ack_cumulative(id(5, 2, 10), None);
    assert_eq!(bits(&acks.take_groups()[0]), [(5, vec![])]);
}

#[test]
fn groups_without_a_receipt_are_sent_again_in_their_order() {
    let mut acks = AckTracker::<()>::new();
    let mut sent = Vec::new();
    for entry in 0..3 {
        acks.ack(MessageId::entry(at(entry)), None);
        sent.extend(acks.take_groups());
    }
    acks.answered(sent[1].request_id);
    assert_eq!(acks.groups_to_resend(), [sent[0].clone(), sent[2].clone()]);
}

#[test]
fn only_so_many_groups_are_under_way_and_only_so_much_waits() {
    let mut acks = AckTracker::<()>::new();
    let mut sent = 0;
    for entry in 0..GROUPS_UNDER_WAY as u64 + 5 {
        acks.ack(MessageId::entry(at(entry)), None);
        sent += acks.take_groups().len();
    }
    assert_eq!(sent, GROUPS_UNDER_WAY);
    assert!(acks.is_waiting() && acks.has_room());
    for entry in 0..GROUP_ENTRIES as u64 {
        acks.ack(MessageId::entry(at(1000 + entry)), None);
    }
    assert!(!acks.has_room());
    let first = acks.groups_to_resend()[0].request_id;
    acks.answered(first);
    assert_eq!(acks.take_groups().len(), 1);
    assert!(acks.has_room());
}

#[test]
fn the_highest_cumulative_acknowledgement_goes_and_names_its_batch_indexes() {
    let mut acks = AckTracker::<u8>::new();
    acks.ack_cumulative(id(5, 8, 20), Some(1));
    acks.ack_cumulative(id(4, 3, 4), Some(2));
    let groups = acks.take_groups();
    assert_eq!(groups.len(), 1);
    assert!(groups[0].cumulative);
    assert_eq!(bits(&groups[0]), [(5, vec![0xff, 1])]);
    let (_, waiters) = acks.answered(groups[0].request_id).expect("under way");
    assert_eq!(waiters, [1, 2]);
    acks.ack_cumulative(id(6, 19, 20), None);
    assert_eq!(bits(&acks.take_groups()[0]), [(6, vec![])], "the last index is the whole entry");
}

#[test]
fn the_end_answers_everyone_who_waits() {
    let mut acks = AckTracker::<u8>::new();
    acks.ack(id(1, 0, 2), Some(1));
    acks.take_groups();
    acks.ack(id(2, 0, 2), Some(2));
    acks.ack_cumulative(id(3, 0, 2), Some(3));
    let mut waiters = acks.drain();
    waiters.sort_unstable();
    assert_eq!(waiters, [1, 2, 3]);
    assert!(acks.is_settled());
}

proptest! {
    /// What the groups say together is exactly what was acknowledged.
    #[test]
    fn no_acknowledgement_is_lost_or_invented(
        acked in proptest::collection::vec((0..4_u64, 0..20_u32, any::<bool>()), 0..120),
    ) {
        let mut acks = AckTracker::<()>::new();
        let (mut expected, mut said) = (BTreeSet::new(), BTreeSet::new());
        let mut say = |group: Group| {
            for it in group.positions {
                for index in 0..20_u32 {
                    let byte = it.acked_indexes.get(index as usize / 8);
                    let set = byte.is_some_and(|byte| byte >> (index % 8) & 1 == 1);
                    if set || it.acked_indexes.is_empty() {
                        said.insert((it.entry_id, index));
                    }
                }
            }
        };
        for (entry, index, flush) in acked {
            acks.ack(id(entry, index, 20), None);
            expected.insert((entry, index));
            if flush {
                for group in acks.take_groups() {
                    acks.answered(group.request_id);
                    say(group);
                }
            }
        }
        acks.take_groups().into_iter().for_each(&mut say);
        prop_assert_eq!(said, expected);
        prop_assert_eq!(acks.index_bytes, 0);
    }
}
