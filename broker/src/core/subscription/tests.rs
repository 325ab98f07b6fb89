//! Scenarios, and random sequences of events against a plain model (`simulation`).

use super::*;
use crate::core::api::Delivery;
use crate::core::dispatch::{EntryRun, ReadRequest, ReadTarget};
use bytes::Bytes;
use geminga_proto::id::{EntryId, LedgerId};
use geminga_proto::payload::Payload;

mod simulation;

/// Entries of one message of `bytes` bytes each, or of more.
struct Topic {
    entries: Vec<ReadyEntry>,
}

impl Topic {
    fn new(messages: &[u32]) -> Self {
        let mut topic = Self { entries: Vec::new() };
        messages.iter().for_each(|messages| topic.publish(1, *messages, 10));
        topic
    }

    fn publish(&mut self, ledger: u64, messages: u32, bytes: usize) {
        let (entry, index) = match self.entries.last() {
            Some(last) if last.span.position.ledger.0 == ledger => {
                (last.span.position.entry.next(), last.span.end_index())
            }
            Some(last) => (EntryId(0), last.span.end_index()),
            None => (EntryId(0), MessageIndex(0)),
        };
        let position = Position::new(LedgerId(ledger), entry);
        let span = EntrySpan { position, first_index: index, messages };
        let payload = Payload::from(Bytes::from(vec![7; bytes]));
        self.entries.push(ReadyEntry { span, payload, permit: Default::default() });
    }

    fn end(&self) -> TopicEnd {
        self.entries.last().map_or_else(TopicEnd::default, |last| TopicEnd {
            last_confirmed: Some(last.span.position),
            next_index: last.span.end_index(),
        })
    }

    fn start() -> Frontier {
        Frontier { index: MessageIndex(0), position: Position::new(LedgerId(1), EntryId(0)) }
    }

    fn subscription(&self, limits: DispatchLimits) -> Subscription {
        Subscription::new("sub", CursorState::new(Self::start()), self.end(), limits)
    }

    fn read(&self, request: &ReadRequest) -> Vec<ReadyEntry> {
        let wanted = |entry: &&ReadyEntry| match &request.target {
            ReadTarget::From(from) => entry.span.position >= *from,
            ReadTarget::Runs(runs) => runs.iter().any(|run| {
                let at = entry.span.position;
                run.ledger == at.ledger
                    && (run.first.0..run.first.0 + u64::from(run.entries)).contains(&at.entry.0)
            }),
        };
        let mut bytes = 0;
        let found = self.entries.iter().filter(wanted).take(request.max_entries as usize);
        found
            .take_while(|entry| {
                let first = bytes == 0;
                bytes += entry.payload.len() as u64;
                first || bytes <= request.max_bytes
            })
            .cloned()
            .collect()
    }
}

fn spec(kind: SubscriptionType, priority: i32) -> ConsumerSpec {
    ConsumerSpec { name: format!("c{priority}"), priority, subscription_type: kind }
}

fn at(entry: u64) -> Position {
    Position::new(LedgerId(1), EntryId(entry))
}

fn ack_of(positions: &[Position]) -> Ack {
    let named =
        |position: &Position| AckPosition { position: *position, acked_indexes: Bytes::new() };
    Ack { request_id: 0, cumulative: false, positions: positions.iter().map(named).collect() }
}

/// Executes commands, answering reads, until there are none; collects what was delivered.
fn run(
    topic: &Topic,
    sub: &mut Subscription,
    mut commands: Vec<Command>,
) -> Vec<(ConsumerKey, Delivery)> {
    let mut delivered = Vec::new();
    while !commands.is_empty() {
        let mut next = Vec::new();
        for command in commands {
            match command {
                Command::Deliver { consumer, deliveries } => {
                    delivered.extend(deliveries.into_iter().map(|delivery| (consumer, delivery)));
                }
                Command::Read(request) => {
                    sub.read_done(request.token, Ok(&topic.read(&request)), &mut next);
                }
                Command::Persist { seq, .. } => sub.persisted(seq),
                Command::AckReceipt(_) | Command::ActiveChanged { .. } => {}
            }
        }
        commands = next;
    }
    delivered
}

fn entries(delivered: &[(ConsumerKey, Delivery)]) -> Vec<u64> {
    delivered.iter().map(|(_, delivery)| delivery.position.entry.0).collect()
}

fn flow(
    topic: &Topic,
    sub: &mut Subscription,
    key: ConsumerKey,
    messages: u32,
) -> Vec<(ConsumerKey, Delivery)> {
    let mut out = Vec::new();
    sub.flow(key, messages, 1_000_000, &mut out);
    run(topic, sub, out)
}

#[test]
fn an_entry_takes_its_messages_and_may_overdraw_the_credit_once() {
    let topic = Topic::new(&[3, 3, 3]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let key = sub.add_consumer(spec(SubscriptionType::Exclusive, 0), &mut out).expect("free");
    assert_eq!(entries(&flow(&topic, &mut sub, key, 4)), [0, 1]);
    assert_eq!(sub.numbers().consumers[0].credit_messages, -2);
    assert_eq!(sub.why_not_moving(), NotMoving::NoMessageCredit);
    assert_eq!(entries(&flow(&topic, &mut sub, key, 2)), [0; 0]);
    assert_eq!(entries(&flow(&topic, &mut sub, key, 1)), [2]);
    assert_eq!(sub.why_not_moving(), NotMoving::CaughtUp);
}

#[test]
fn credit_in_bytes_holds_entries_back_as_well() {
    let topic = Topic::new(&[1, 1, 1]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let key = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    sub.flow(key, 100, 11, &mut out);
    assert_eq!(entries(&run(&topic, &mut sub, out)), [0, 1]);
    assert_eq!(sub.why_not_moving(), NotMoving::NoByteCredit);
    assert_eq!(sub.numbers().consumers[0].credit_bytes, -9);
}

#[test]
fn confirmed_entries_are_handed_out_without_a_read() {
    let mut topic = Topic::new(&[1]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let key = sub.add_consumer(spec(SubscriptionType::Exclusive, 0), &mut out).expect("free");
    flow(&topic, &mut sub, key, 3);
    assert!(sub.wants_tail());
    topic.publish(1, 1, 10);
    topic.publish(1, 1, 10);
    let mut out = Vec::new();
    sub.tail(&topic.entries[1..], topic.end(), &mut out);
    assert!(matches!(&out[..], [Command::Deliver { deliveries, .. }] if deliveries.len() == 2));
    assert!(!sub.wants_tail(), "the credit is used up");
    topic.publish(2, 1, 10);
    out.clear();
    sub.confirmed(topic.end(), &mut out);
    assert_eq!(out, []);
    assert_eq!(flow(&topic, &mut sub, key, 1)[0].1.position.ledger, LedgerId(2));
}

#[test]
fn a_second_exclusive_consumer_and_another_type_are_refused() {
    let topic = Topic::new(&[]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let key = sub.add_consumer(spec(SubscriptionType::Exclusive, 0), &mut out).expect("free");
    let busy = sub.add_consumer(spec(SubscriptionType::Exclusive, 0), &mut out);
    assert_eq!(busy, Err(SubscribeError::Busy("sub".into())));
    let wrong = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out);
    let in_use = SubscriptionType::Exclusive;
    assert_eq!(wrong, Err(SubscribeError::WrongType { name: "sub".into(), in_use }));
    sub.remove_consumer(key, &mut out);
    assert!(sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).is_ok());
}

#[test]
fn a_failover_redelivers_in_order_what_the_consumer_before_left_unacknowledged() {
    let topic = Topic::new(&[1, 1, 2, 1]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let second = sub.add_consumer(spec(SubscriptionType::Failover, 5), &mut out).expect("free");
    assert_eq!(out, [Command::ActiveChanged { consumer: second, active: true }]);
    flow(&topic, &mut sub, second, 10);
    let mut partly = ack_of(&[at(1), at(2)]);
    partly.positions[1].acked_indexes = Bytes::from_static(&[0b10]);
    out.clear();
    sub.ack(second, &partly, &[], &mut out).expect("in flight");
    run(&topic, &mut sub, out);
    // A consumer with a lower priority value takes over at once.
    let mut out = Vec::new();
    let first = sub.add_consumer(spec(SubscriptionType::Failover, 1), &mut out).expect("free");
    let changes = [
        Command::ActiveChanged { consumer: second, active: false },
        Command::ActiveChanged { consumer: first, active: true },
    ];
    assert_eq!(out, changes);
    let delivered = flow(&topic, &mut sub, first, 10);
    assert_eq!(entries(&delivered), [0, 2, 3]);
    assert!(delivered.iter().all(|(key, one)| *key == first && one.redelivery_count == 1));
    assert_eq!((&delivered[1].1.acked_indexes[..], delivered[1].1.messages), (&[0b10][..], 1));
}

#[test]
fn what_a_shared_consumer_gives_back_goes_to_another_with_its_count() {
    let topic = Topic::new(&[1, 1, 1, 1]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let a = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    let b = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    sub.flow(a, 2, 1000, &mut out);
    run(&topic, &mut sub, out);
    let rest = flow(&topic, &mut sub, b, 10);
    assert_eq!(entries(&rest), [2, 3]);
    let mut out = Vec::new();
    // Only what it holds itself can be given back.
    sub.redeliver(a, &[at(1), at(2)], &mut out);
    let again = run(&topic, &mut sub, out);
    assert_eq!(entries(&again), [1]);
    assert_eq!((again[0].0, again[0].1.redelivery_count), (b, 1));
    let mut out = Vec::new();
    sub.remove_consumer(a, &mut out);
    let again = run(&topic, &mut sub, out);
    assert_eq!((entries(&again), again[0].1.redelivery_count), (vec![0], 1));
    let mut out = Vec::new();
    sub.redeliver(b, &[at(1)], &mut out);
    assert_eq!(run(&topic, &mut sub, out)[0].1.redelivery_count, 2);
}

#[test]
fn replayed_entries_are_read_in_runs() {
    let topic = Topic::new(&[1; 6]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let key = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    flow(&topic, &mut sub, key, 10);
    let mut out = Vec::new();
    sub.redeliver(key, &[at(4), at(1), at(0)], &mut out);
    let run = |first, entries| EntryRun { ledger: LedgerId(1), first: EntryId(first), entries };
    assert!(matches!(&out[..], [Command::Read(ReadRequest { target: ReadTarget::Runs(runs), .. })]
        if runs[..] == [run(0, 2), run(4, 1)]));
}

#[test]
fn the_lowest_priority_value_is_served_first_and_round_robin_within_it() {
    let topic = Topic::new(&[1; 8]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let mut add = |priority| {
        sub.add_consumer(spec(SubscriptionType::Shared, priority), &mut out).expect("free")
    };
    let (low, a, b) = (add(3), add(1), add(1));
    // No pump until all have credit: take the read answer only at the end.
    let mut out = Vec::new();
    sub.flow(a, 2, 1000, &mut out);
    sub.flow(b, 3, 1000, &mut out);
    sub.flow(low, 9, 1000, &mut out);
    let delivered = run(&topic, &mut sub, out);
    let of =
        |key| entries(&delivered.iter().filter(|(to, _)| *to == key).cloned().collect::<Vec<_>>());
    assert_eq!(of(a).len(), 2);
    assert_eq!(of(b).len(), 3);
    assert!(of(low).iter().all(|entry| *entry >= 5), "{:?}", of(low));
    assert!(of(a)[0].abs_diff(of(b)[0]) == 1, "round robin");
}

#[test]
fn too_many_unacknowledged_messages_stop_dispatch_and_it_says_so() {
    let limits = DispatchLimits {
        max_unacked_per_consumer: 2,
        max_unacked_per_subscription: 3,
        ..DispatchLimits::default()
    };
    let topic = Topic::new(&[1; 10]);
    let mut sub = topic.subscription(limits);
    let mut out = Vec::new();
    let a = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    let b = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    assert_eq!(flow(&topic, &mut sub, a, 10).len(), 2);
    assert_eq!(sub.why_not_moving(), NotMoving::ConsumerUnacked { held: 2, limit: 2 });
    assert_eq!(flow(&topic, &mut sub, b, 10).len(), 1);
    assert_eq!(sub.why_not_moving(), NotMoving::SubscriptionUnacked { held: 3, limit: 3 });
    let mut out = Vec::new();
    sub.ack(a, &ack_of(&[at(0)]), &[], &mut out).expect("in flight");
    assert_eq!(run(&topic, &mut sub, out).len(), 1);
}

#[test]
fn a_failed_read_is_tried_again_only_when_told_to() {
    let topic = Topic::new(&[1]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let key = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    sub.flow(key, 1, 100, &mut out);
    let [Command::Read(first)] = &out[..] else { panic!("{out:?}") };
    let mut after = Vec::new();
    sub.read_done(first.token, Err("no quorum".into()), &mut after);
    sub.flow(key, 1, 100, &mut after);
    assert_eq!(after, []);
    assert_eq!(sub.why_not_moving(), NotMoving::ReadFailed("no quorum".into()));
    sub.retry_read(&mut after);
    let [Command::Read(second)] = &after[..] else { panic!("{after:?}") };
    // The late answer to the first read is ignored, an empty one isn't asked for in a loop.
    let mut late = Vec::new();
    sub.read_done(first.token, Ok(&topic.entries), &mut late);
    sub.read_done(second.token, Ok(&[]), &mut late);
    assert_eq!(late, []);
    assert!(sub.read_has_failed());
}

#[test]
fn a_reset_detaches_everybody_and_ignores_the_read_under_way() {
    let topic = Topic::new(&[1, 1, 1]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let key = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    flow(&topic, &mut sub, key, 2);
    out.clear();
    sub.flow(key, 1, 100, &mut out);
    let [Command::Read(read)] = &out[..] else { panic!("{out:?}") };
    let mut after = Vec::new();
    let to = Frontier::at(&topic.entries[1].span);
    assert_eq!(sub.reset(to, &mut after), [key]);
    sub.read_done(read.token, Ok(&topic.entries[2..]), &mut after);
    assert!(matches!(&after[..], [Command::Persist { change: Some(CursorChange::Reset(at)), .. }]
        if *at == to));
    assert_eq!(sub.backlog_messages(), 2);
    let key = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    let delivered = flow(&topic, &mut sub, key, 9);
    assert_eq!(entries(&delivered), [1, 2]);
}

#[test]
fn a_receipt_waits_until_what_it_depends_on_is_durable() {
    let topic = Topic::new(&[1, 1]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let key = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    flow(&topic, &mut sub, key, 9);
    let mut out = Vec::new();
    let ack = Ack { request_id: 7, ..ack_of(&[at(0)]) };
    sub.ack(key, &ack, &[], &mut out).expect("in flight");
    // The same again: nothing changes, yet its receipt may not come before the first is durable.
    sub.ack(key, &ack, &[], &mut out).expect("known");
    let receipt = ReceiptFor { consumer: key, request_id: 7 };
    let [
        Command::Persist { change: Some(_), seq: first, receipt: Some(one) },
        Command::Persist { change: None, seq: second, receipt: Some(two) },
    ] = &out[..]
    else {
        panic!("{out:?}")
    };
    assert_eq!((*one, *two), (receipt, receipt));
    assert_eq!(sub.durable(), Topic::start());
    sub.persisted(*first);
    assert_eq!(sub.durable(), Frontier::after(&topic.entries[0].span));
    assert!(!sub.is_idle());
    sub.persisted(*second);
    let mut out = Vec::new();
    sub.ack(key, &ack, &[], &mut out).expect("known");
    assert_eq!(out, [Command::AckReceipt(receipt)]);
}

#[test]
fn acknowledgements_that_make_no_sense_change_nothing() {
    let topic = Topic::new(&[2, 2]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let key = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    flow(&topic, &mut sub, key, 9);
    let mut beyond = ack_of(&[at(0), at(1)]);
    beyond.positions[1].acked_indexes = Bytes::from_static(&[0b100]);
    let missing = ack_of(&[at(0), at(9)]);
    let cumulative = Ack { cumulative: true, ..ack_of(&[at(0)]) };
    assert_eq!(sub.unknown_positions(&missing), [at(9)]);
    let mut out = Vec::new();
    for ack in [&beyond, &missing, &cumulative] {
        assert!(matches!(sub.ack(key, ack, &[], &mut out), Err(AckError::Invalid(_))));
    }
    assert_eq!((out.len(), sub.backlog_messages()), (0, 4));
    // An entry that isn't in flight is acknowledged by the span that was looked up.
    let mut sub = topic.subscription(DispatchLimits::default());
    let key = sub.add_consumer(spec(SubscriptionType::Exclusive, 0), &mut out).expect("free");
    let ack = ack_of(&[at(1)]);
    assert_eq!(sub.unknown_positions(&ack), [at(1)]);
    sub.ack(key, &ack, &[topic.entries[1].span], &mut out).expect("looked up");
    assert_eq!(sub.backlog_messages(), 2);
    assert_eq!(entries(&flow(&topic, &mut sub, key, 9)), [0]);
}

#[test]
fn a_cumulative_acknowledgement_frees_everything_before_it() {
    let topic = Topic::new(&[1, 1, 3, 1]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let key = sub.add_consumer(spec(SubscriptionType::Exclusive, 0), &mut out).expect("free");
    flow(&topic, &mut sub, key, 9);
    let mut ack = Ack { cumulative: true, ..ack_of(&[at(2)]) };
    ack.positions[0].acked_indexes = Bytes::from_static(&[0b11]);
    let mut out = Vec::new();
    sub.ack(key, &ack, &[], &mut out).expect("in flight");
    assert_eq!(sub.numbers().unacked_messages, 2);
    assert_eq!(sub.backlog_messages(), 2);
    ack.positions[0].acked_indexes = Bytes::from_static(&[0b10]);
    assert!(sub.ack(key, &ack, &[], &mut out).is_err(), "indexes from 0 on");
}

#[test]
fn data_that_is_gone_is_skipped() {
    let topic = Topic::new(&[1, 1, 1]);
    let mut sub = topic.subscription(DispatchLimits::default());
    let mut out = Vec::new();
    let key = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    sub.flow(key, 1, 100, &mut out);
    run(&topic, &mut sub, std::mem::take(&mut out));
    sub.skip_to(Frontier::at(&topic.entries[2].span), &mut out);
    assert_eq!(sub.numbers().unacked_messages, 0);
    run(&topic, &mut sub, out);
    assert_eq!(sub.durable(), Frontier::at(&topic.entries[2].span));
    assert_eq!(entries(&flow(&topic, &mut sub, key, 9)), [2]);
}

#[test]
fn after_a_restart_the_frontier_catches_up_without_another_acknowledgement() {
    let topic = Topic::new(&[1, 1, 2, 1]);
    // Acknowledged before the restart: all but entry 1, where the others end isn't recorded.
    let mut state = CursorState::new(Topic::start());
    let acked = vec![IndexRange::new(0, 1), IndexRange::new(2, 5)];
    state.apply(&CursorChange::Ack(CursorDelta { acked, ..CursorDelta::default() }));
    let mut sub = Subscription::new("sub", state, topic.end(), DispatchLimits::default());
    assert_eq!(sub.durable_index(), MessageIndex(1));
    let mut out = Vec::new();
    let key = sub.add_consumer(spec(SubscriptionType::Shared, 0), &mut out).expect("free");
    sub.flow(key, 1, 100, &mut out);
    let [Command::Read(read)] = &out[..] else { panic!("{out:?}") };
    let mut after = Vec::new();
    sub.read_done(read.token, Ok(&topic.entries[..2]), &mut after);
    sub.ack(key, &ack_of(&[at(1)]), &[], &mut after).expect("in flight");
    let delivered = run(&topic, &mut sub, after);
    assert_eq!(entries(&delivered), [1]);
    assert_eq!((sub.durable_index(), sub.durable().index), (MessageIndex(5), MessageIndex(2)));
    let delivered = flow(&topic, &mut sub, key, 9);
    assert_eq!(entries(&delivered), [0; 0]);
    assert_eq!(sub.durable(), Frontier::after(&topic.entries[3].span));
}

#[test]
fn an_idle_subscription_takes_little_memory() {
    assert!(size_of::<Subscription>() <= 700, "{}", size_of::<Subscription>());
}
