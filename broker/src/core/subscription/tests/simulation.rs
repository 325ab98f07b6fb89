//! Random sequences of events against a plain model: who may hold what, what must come again.

use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Clone)]
enum Event {
    Publish {
        messages: u32,
        bytes: usize,
        roll: bool,
        tail: bool,
    },
    Add {
        priority: i32,
    },
    Remove(usize),
    Flow {
        consumer: usize,
        messages: u32,
        bytes: u64,
    },
    /// Acknowledges the n-th entry that somebody holds; whole, or one message.
    Ack {
        held: usize,
        index: Option<u32>,
    },
    Cumulative {
        held: usize,
    },
    Redeliver {
        consumer: usize,
        all: bool,
        held: usize,
    },
    /// Answers the outstanding read: in part, wholly, or with a failure.
    Read {
        entries: usize,
        fail: bool,
    },
    StaleRead,
    Reset {
        entry: usize,
    },
    Persisted,
}

fn event() -> impl Strategy<Value = Event> {
    let nth = 0_usize..50;
    prop_oneof![
        6 => (1_u32..5, 0_usize..30, prop::bool::weighted(0.2), any::<bool>())
            .prop_map(|(messages, bytes, roll, tail)| {
                Event::Publish { messages, bytes, roll, tail }
            }),
        2 => (0_i32..3).prop_map(|priority| Event::Add { priority }),
        1 => nth.clone().prop_map(Event::Remove),
        5 => (nth.clone(), 0_u32..8, 0_u64..60)
            .prop_map(|(consumer, messages, bytes)| Event::Flow { consumer, messages, bytes }),
        6 => (nth.clone(), prop::option::of(0_u32..5))
            .prop_map(|(held, index)| Event::Ack { held, index }),
        1 => nth.clone().prop_map(|held| Event::Cumulative { held }),
        2 => (nth.clone(), any::<bool>(), nth.clone())
            .prop_map(|(consumer, all, held)| Event::Redeliver { consumer, all, held }),
        7 => (1_usize..10, prop::bool::weighted(0.1))
            .prop_map(|(entries, fail)| Event::Read { entries, fail }),
        1 => Just(Event::StaleRead),
        1 => nth.prop_map(|entry| Event::Reset { entry }),
        2 => Just(Event::Persisted),
    ]
}

/// A consumer as the model sees it.
#[derive(Debug, Default, Clone)]
struct Peer {
    credit_messages: i64,
    credit_bytes: i64,
    priority: i32,
}

struct World {
    kind: SubscriptionType,
    topic: Topic,
    sub: Subscription,
    ledger: u64,
    peers: BTreeMap<ConsumerKey, Peer>,
    acked: BTreeSet<u64>,
    /// Who holds which entry.
    held: BTreeMap<Position, ConsumerKey>,
    /// How often an entry was given back since it was first handed out.
    given_back: BTreeMap<Position, u32>,
    read: Option<ReadRequest>,
    stale: Vec<ReadRequest>,
    unpersisted: Vec<ChangeSeq>,
    /// The highest entry handed out for the first time.
    newest: Option<Position>,
    /// The last entry handed out, while nothing is given back in between.
    last_in_order: Option<Position>,
    /// What the state log would have.
    durable: CursorState,
}

const LIMITS: DispatchLimits = DispatchLimits {
    max_unacked_per_consumer: 12,
    max_unacked_per_subscription: 20,
    max_read_entries: 6,
    max_read_bytes: 100,
};

impl World {
    fn new(kind: SubscriptionType) -> Self {
        let topic = Topic::new(&[]);
        Self {
            kind,
            sub: topic.subscription(LIMITS),
            topic,
            ledger: 1,
            peers: BTreeMap::new(),
            acked: BTreeSet::new(),
            held: BTreeMap::new(),
            given_back: BTreeMap::new(),
            read: None,
            stale: Vec::new(),
            unpersisted: Vec::new(),
            newest: None,
            last_in_order: None,
            durable: CursorState::new(Topic::start()),
        }
    }

    fn peer(&self, n: usize) -> Option<ConsumerKey> {
        self.peers.keys().nth(n % self.peers.len().max(1)).copied()
    }

    fn nth_held(&self, n: usize) -> Option<Position> {
        self.held.keys().nth(n % self.held.len().max(1)).copied()
    }

    fn span(&self, position: Position) -> EntrySpan {
        let found = self.topic.entries.iter().find(|entry| entry.span.position == position);
        found.expect("it was handed out").span
    }

    fn unacked(&self, position: Position) -> u32 {
        let span = self.span(position);
        let indexes = span.first_index.0..span.end_index().0;
        indexes.filter(|index| !self.acked.contains(index)).count() as u32
    }

    fn active(&self) -> Option<ConsumerKey> {
        let first = self.peers.iter().min_by_key(|(key, peer)| (peer.priority, **key));
        first.map(|(key, _)| *key).filter(|_| self.kind != SubscriptionType::Shared)
    }

    fn give_back(&mut self, from: ConsumerKey, only: Option<Position>) {
        let mine = |(at, key): &(&Position, &ConsumerKey)| {
            **key == from && only.is_none_or(|only| only == **at)
        };
        let positions: Vec<Position> = self.held.iter().filter(mine).map(|(at, _)| *at).collect();
        for position in positions {
            self.held.remove(&position);
            *self.given_back.entry(position).or_default() += 1;
            self.last_in_order = None;
        }
    }

    fn apply(&mut self, event: &Event) {
        let mut out = Vec::new();
        match event {
            Event::Publish { messages, bytes, roll, tail } => {
                self.ledger += u64::from(*roll);
                self.topic.publish(self.ledger, *messages, *bytes);
                let end = self.topic.end();
                if *tail && self.sub.wants_tail() {
                    let last = self.topic.entries.len() - 1;
                    self.sub.tail(&self.topic.entries[last..], end, &mut out);
                } else {
                    self.sub.confirmed(end, &mut out);
                }
            }
            Event::Add { priority } => self.add(*priority, &mut out),
            Event::Remove(n) => {
                if let Some(key) = self.peer(*n) {
                    self.give_back(key, None);
                    self.peers.remove(&key);
                    self.sub.remove_consumer(key, &mut out);
                }
            }
            Event::Flow { consumer, messages, bytes } => {
                if let Some(key) = self.peer(*consumer) {
                    let peer = self.peers.get_mut(&key).expect("listed");
                    peer.credit_messages += i64::from(*messages);
                    peer.credit_bytes += *bytes as i64;
                    self.sub.flow(key, *messages, *bytes, &mut out);
                }
            }
            Event::Ack { held, index } => self.ack(*held, *index, &mut out),
            Event::Cumulative { held } => self.cumulative(*held, &mut out),
            Event::Redeliver { consumer, all, held } => {
                if let Some(key) = self.peer(*consumer) {
                    let named = self.nth_held(*held).filter(|_| !all);
                    self.give_back(key, named);
                    self.sub.redeliver(key, named.as_slice(), &mut out);
                }
            }
            Event::Read { entries, fail } => self.answer(*entries, *fail, &mut out),
            Event::StaleRead => {
                if let Some(request) = self.stale.pop() {
                    let entries = self.topic.read(&request);
                    self.sub.read_done(request.token, Ok(&entries), &mut out);
                    assert_eq!(out, [], "an answer to an old read changes nothing");
                }
            }
            Event::Reset { entry } => self.reset(*entry, &mut out),
            Event::Persisted => {
                self.unpersisted.drain(..).for_each(|seq| self.sub.persisted(seq));
            }
        }
        self.execute(out);
        self.check();
    }

    fn add(&mut self, priority: i32, out: &mut Vec<Command>) {
        let was = self.active();
        match self.sub.add_consumer(spec(self.kind, priority), out) {
            Ok(key) => {
                self.peers.insert(key, Peer { priority, ..Peer::default() });
                if let Some(was) = was.filter(|was| self.active() != Some(*was)) {
                    self.give_back(was, None);
                }
            }
            Err(error) => {
                assert_eq!(error, SubscribeError::Busy("sub".into()));
                assert!(self.kind == SubscriptionType::Exclusive && self.peers.len() == 1);
            }
        }
    }

    fn ack(&mut self, held: usize, index: Option<u32>, out: &mut Vec<Command>) {
        let entries = &self.topic.entries;
        // While nobody holds anything, any entry: handed out before or not.
        let any = (!entries.is_empty()).then(|| entries[held % entries.len()].span.position);
        let Some(at) = self.nth_held(held).or(any) else { return };
        let Some(key) = self.peer(held) else { return };
        let span = self.span(at);
        let mut ack = ack_of(&[at]);
        match index {
            None => self.acked.extend(span.first_index.0..span.end_index().0),
            Some(index) => {
                let index = index % span.messages;
                ack.positions[0].acked_indexes = Bytes::from(vec![1 << index]);
                self.acked.insert(span.first_index.0 + u64::from(index));
            }
        }
        let unknown = self.sub.unknown_positions(&ack);
        let looked_up: Vec<EntrySpan> = unknown.iter().map(|at| self.span(*at)).collect();
        self.sub.ack(key, &ack, &looked_up, out).expect("a valid acknowledgement");
    }

    fn cumulative(&mut self, held: usize, out: &mut Vec<Command>) {
        let Some(at) = self.nth_held(held) else { return };
        let Some(key) = self.peer(held) else { return };
        let ack = Ack { cumulative: true, ..ack_of(&[at]) };
        if self.kind == SubscriptionType::Shared {
            assert!(self.sub.ack(key, &ack, &[], out).is_err());
            return;
        }
        self.acked.extend(0..self.span(at).end_index().0);
        self.sub.ack(key, &ack, &[], out).expect("it is held");
    }

    fn answer(&mut self, entries: usize, fail: bool, out: &mut Vec<Command>) {
        let Some(request) = self.read.take() else { return };
        if fail {
            self.sub.read_done(request.token, Err("injected".into()), out);
            assert_eq!(out[..], []);
            assert!(self.sub.read_has_failed());
            self.sub.retry_read(out);
            return;
        }
        let found = self.topic.read(&request);
        assert!(!found.is_empty(), "{request:?} asks for what is there");
        let part = &found[..entries.min(found.len())];
        self.sub.read_done(request.token, Ok(part), out);
        assert!(!self.sub.read_has_failed());
    }

    fn reset(&mut self, entry: usize, out: &mut Vec<Command>) {
        if self.topic.entries.is_empty() {
            return;
        }
        let to = Frontier::at(&self.topic.entries[entry % self.topic.entries.len()].span);
        let detached = self.sub.reset(to, out);
        assert_eq!(detached.len(), self.peers.len());
        self.peers.clear();
        self.held.clear();
        self.given_back.clear();
        self.newest = None;
        self.last_in_order = None;
        self.acked = (0..to.index.0).collect();
        self.stale.extend(self.read.take());
    }

    fn execute(&mut self, commands: Vec<Command>) {
        let mut delivered = Vec::new();
        for command in commands {
            match command {
                Command::Deliver { consumer, deliveries } => {
                    assert!(deliveries.is_sorted_by_key(|delivery| delivery.position));
                    delivered.extend(deliveries.into_iter().map(|delivery| (consumer, delivery)));
                }
                Command::Read(request) => {
                    assert!(self.read.is_none(), "one read at a time");
                    assert!(request.max_entries > 0 && request.max_bytes > 0);
                    self.read = Some(request);
                }
                Command::Persist { change, seq, .. } => {
                    self.unpersisted.push(seq);
                    if let Some(change) = &change {
                        self.durable.apply(change);
                    }
                }
                Command::AckReceipt(_) => assert_eq!(self.unpersisted, []),
                Command::ActiveChanged { consumer, active } => {
                    assert_eq!(self.kind, SubscriptionType::Failover);
                    assert_eq!(active, self.active() == Some(consumer));
                }
            }
        }
        // Several consumers' entries come in one command for each of them.
        delivered.sort_by_key(|(_, delivery)| delivery.position);
        delivered.iter().for_each(|(consumer, delivery)| self.delivered(*consumer, delivery));
        // Whatever is acknowledged is in what the state log has, too.
        assert_eq!(self.durable.next_unacked, self.sub.cursor().next_unacked);
        assert_eq!(self.durable.acked, self.sub.cursor().acked);
    }

    fn delivered(&mut self, to: ConsumerKey, delivery: &Delivery) {
        let at = delivery.position;
        let span = self.span(at);
        let unacked = self.unacked(at);
        assert!(unacked > 0, "{at} is acknowledged");
        assert_eq!(delivery.messages, unacked);
        let set = |bit: &u64| {
            let byte = delivery.acked_indexes.get((bit / 8) as usize).copied().unwrap_or(0);
            byte >> (bit % 8) & 1 == 1
        };
        let bits: Vec<u64> = (0..u64::from(span.messages)).filter(set).collect();
        let acked = |bit: &u64| self.acked.contains(&(span.first_index.0 + bit));
        let expected: Vec<u64> = (0..u64::from(span.messages)).filter(acked).collect();
        assert_eq!(bits, expected);
        assert_eq!(self.held.insert(at, to), None, "{at} is held already");
        let given_back = self.given_back.get(&at).copied().unwrap_or(0);
        assert_eq!(delivery.redelivery_count, given_back);
        assert!(self.active().is_none_or(|active| active == to), "only the active one");
        let peer = self.peers.get_mut(&to).expect("it is attached");
        assert!(peer.credit_messages > 0 && peer.credit_bytes > 0, "{peer:?}");
        peer.credit_messages -= i64::from(unacked);
        peer.credit_bytes -= delivery.payload.len() as i64;
        if given_back == 0 {
            assert!(self.newest < Some(at), "new entries come in order");
            self.newest = Some(at);
        }
        if self.kind != SubscriptionType::Shared {
            assert!(
                self.last_in_order < Some(at),
                "{at} after {:?}: in order until something is given back",
                self.last_in_order
            );
            self.last_in_order = Some(at);
        }
    }

    fn check(&mut self) {
        let held: Vec<Position> = self.held.keys().copied().collect();
        for at in held {
            if self.unacked(at) == 0 {
                self.held.remove(&at);
            }
        }
        let numbers = self.sub.numbers();
        let held_by = |key: Option<ConsumerKey>| -> u64 {
            let held = self.held.iter().filter(|(_, by)| key.is_none_or(|key| key == **by));
            held.map(|(at, _)| u64::from(self.unacked(*at))).sum()
        };
        assert_eq!(numbers.consumers.len(), self.peers.len());
        for consumer in &numbers.consumers {
            let peer = &self.peers[&consumer.consumer];
            assert_eq!(consumer.credit_messages, peer.credit_messages);
            assert_eq!(consumer.credit_bytes, peer.credit_bytes);
            let held = held_by(Some(consumer.consumer));
            assert_eq!(consumer.unacked_messages, held);
            if self.kind == SubscriptionType::Shared {
                assert!(held < LIMITS.max_unacked_per_consumer + 4, "one entry over the limit");
            }
        }
        assert_eq!(numbers.unacked_messages, held_by(None));
        assert!(numbers.unacked_messages < LIMITS.max_unacked_per_subscription + 4);
        let total = self.topic.end().next_index.0;
        let backlog = (0..total).filter(|index| !self.acked.contains(index)).count() as u64;
        assert_eq!(numbers.backlog_messages, backlog);
        if self.read.is_none() {
            assert_ne!(numbers.not_moving, NotMoving::Reading);
        }
    }

    /// With credit, reads that succeed and acknowledgements, everything is consumed.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            if self.sub.backlog_messages() == 0 {
                return;
            }
            if self.peers.is_empty() {
                self.apply(&Event::Add { priority: 0 });
            }
            for consumer in 0..self.peers.len() {
                self.apply(&Event::Flow { consumer, messages: 50, bytes: 500 });
            }
            self.apply(&Event::Read { entries: 5, fail: false });
            if !self.held.is_empty() {
                self.apply(&Event::Ack { held: 0, index: None });
            }
        }
        panic!("stuck: {:?} {:?}", self.sub.why_not_moving(), self.sub.numbers());
    }
}

proptest! {
    #[test]
    fn dispatch_agrees_with_a_plain_model(
        kind in prop_oneof![
            Just(SubscriptionType::Exclusive),
            Just(SubscriptionType::Failover),
            Just(SubscriptionType::Shared),
        ],
        events in prop::collection::vec(event(), 0..120),
    ) {
        let mut world = World::new(kind);
        events.iter().for_each(|event| world.apply(event));
        world.drain();
        world.apply(&Event::Persisted);
        let numbers = world.sub.numbers();
        prop_assert_eq!(numbers.unacked_messages, 0);
        prop_assert_eq!(numbers.replay_entries, 0);
        prop_assert_eq!(world.sub.cursor().next_unacked, world.topic.end().next_index);
    }
}
