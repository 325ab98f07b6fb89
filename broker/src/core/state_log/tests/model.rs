//! The engine under random events, with a crash at the end: what a replay finds is exactly what
//! the entries that reached the ledgers say, and every completed change is among them.

use std::collections::BTreeMap;

use bytes::Bytes;
use geminga_ledger::observer::WriterFailure;
use geminga_proto::id::{EntryId, Lac, LedgerId, MessageIndex, Position, TopicIncarnation};
use proptest::prelude::*;

use crate::core::ack_set::IndexRange;
use crate::core::cursor::{CursorChange, CursorDelta, Frontier};
use crate::core::state_log::cursors::{Cursors, Replay};
use crate::core::state_log::engine::{Effect, Engine, Task};
use crate::core::state_log::record::decode_entry;
use crate::core::state_log::{CursorId, StateLogConfig, StateLogError};

#[derive(Debug, Clone)]
enum Event {
    Create {
        topic: u64,
        name: u8,
    },
    Delete(usize),
    DeleteTopic(u64),
    Ack {
        cursor: usize,
        start: u64,
        len: u64,
        upto: bool,
    },
    Reset {
        cursor: usize,
        to: u64,
    },
    Barrier,
    /// The entry in flight is durable.
    Confirm,
    /// The ledger fails; the entry in flight is in it or not.
    Fail {
        stored: bool,
    },
    /// The keeper does what is to be done.
    Keep,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0_u64..3, 0_u8..4).prop_map(|(topic, name)| Event::Create { topic, name }),
        1 => (0_usize..20).prop_map(Event::Delete),
        1 => (0_u64..3).prop_map(Event::DeleteTopic),
        8 => (0_usize..20, 0_u64..20_000_000, 1_u64..50, prop::bool::weighted(0.1))
            .prop_map(|(cursor, start, len, upto)| Event::Ack { cursor, start, len, upto }),
        1 => (0_usize..20, 0_u64..2000).prop_map(|(cursor, to)| Event::Reset { cursor, to }),
        1 => Just(Event::Barrier),
        8 => Just(Event::Confirm),
        1 => any::<bool>().prop_map(|stored| Event::Fail { stored }),
        5 => Just(Event::Keep),
    ]
}

fn frontier(index: u64) -> Frontier {
    let position = Position::new(LedgerId(index / 10), EntryId(index % 10));
    Frontier { index: MessageIndex(index), position }
}

struct World {
    engine: Engine<u32>,
    /// Each entry that was sent, and what all entries up to it make of the cursors.
    ledgers: BTreeMap<LedgerId, Vec<(Bytes, Cursors)>>,
    current: LedgerId,
    next: Option<LedgerId>,
    last_ledger: u64,
    /// In flight: sent and neither confirmed nor found missing.
    in_flight: bool,
    /// The entry in flight was lost with its ledger and is still to be sent again.
    lost: bool,
    snapshot: Option<Position>,
    chain: Vec<LedgerId>,
    ids: Vec<CursorId>,
    tokens: u32,
    completed: Vec<u32>,
    /// What the entries say that are certainly stored.
    stored: Cursors,
    rounds: u32,
}

fn config() -> StateLogConfig {
    StateLogConfig {
        max_entry_bytes: 64,
        ledger_max_bytes: 300,
        snapshot_after_bytes: 400,
        ..StateLogConfig::default()
    }
}

impl World {
    fn new() -> Self {
        let first = LedgerId(1);
        Self {
            engine: Engine::new(config(), Cursors::default(), CursorId(1), first, 0),
            ledgers: BTreeMap::from([(first, Vec::new())]),
            current: first,
            next: None,
            last_ledger: 1,
            in_flight: false,
            lost: false,
            snapshot: None,
            chain: vec![first],
            ids: Vec::new(),
            tokens: 0,
            completed: Vec::new(),
            stored: Cursors::default(),
            rounds: 0,
        }
    }

    fn token(&mut self) -> u32 {
        self.tokens += 1;
        self.tokens
    }

    fn cursor(&self, n: usize) -> Option<CursorId> {
        self.ids.get(n % self.ids.len().max(1)).copied()
    }

    fn apply(&mut self, event: &Event) {
        let token = self.token();
        let mut fx = Vec::new();
        match event {
            Event::Create { topic, name } => {
                let (topic, name) = (TopicIncarnation(*topic), format!("sub{name}"));
                match self.engine.create(topic, &name, frontier(5), token, &mut fx) {
                    Ok(id) => {
                        assert!(!self.ids.contains(&id), "ids are never used twice");
                        self.ids.push(id);
                    }
                    Err(error) => {
                        assert_eq!(error, StateLogError::Exists(name.clone()));
                        let known = self.engine.subscriptions(topic);
                        assert!(known.iter().any(|one| *one.name == *name));
                    }
                }
            }
            Event::Delete(n) => {
                if let Some(id) = self.cursor(*n) {
                    self.engine.delete(id, token, &mut fx);
                }
            }
            Event::DeleteTopic(topic) => {
                self.engine.delete_topic(TopicIncarnation(*topic), token, &mut fx);
                assert_eq!(self.engine.subscriptions(TopicIncarnation(*topic)), []);
            }
            Event::Ack { cursor, start, len, upto } => {
                if let Some(id) = self.cursor(*cursor) {
                    let upto = upto.then_some(MessageIndex(*start / 1000));
                    let acked = vec![IndexRange::new(*start, start + len)];
                    let change = CursorChange::Ack(CursorDelta { frontier: None, upto, acked });
                    self.engine.change(id, Some(change), token, &mut fx);
                }
            }
            Event::Reset { cursor, to } => {
                if let Some(id) = self.cursor(*cursor) {
                    let change = CursorChange::Reset(frontier(*to));
                    self.engine.change(id, Some(change), token, &mut fx);
                }
            }
            Event::Barrier => {
                if let Some(id) = self.cursor(0) {
                    self.engine.change(id, None, token, &mut fx);
                }
            }
            Event::Confirm => self.confirm(&mut fx),
            Event::Fail { stored } => self.fail(*stored, &mut fx),
            Event::Keep => self.keep(&mut fx),
        }
        self.execute(fx);
    }

    fn last_entry(&self) -> Lac {
        let entries = &self.ledgers[&self.current];
        Lac(entries.len().checked_sub(1).map(|last| EntryId(last as u64)))
    }

    fn confirm(&mut self, fx: &mut Vec<Effect<u32>>) {
        let entries = &self.ledgers[&self.current];
        if let Some((_, cursors)) = entries.last().filter(|_| self.in_flight) {
            self.stored = cursors.clone();
            self.in_flight = false;
            let last = EntryId(entries.len() as u64 - 1);
            self.engine.confirmed(self.current, last, fx);
        }
    }

    fn fail(&mut self, stored: bool, fx: &mut Vec<Effect<u32>>) {
        if self.engine.task().is_some_and(|task| matches!(task, Task::Recover(_))) {
            return;
        }
        let entries = self.ledgers.get_mut(&self.current).expect("it exists");
        if self.in_flight && !stored {
            entries.pop();
            self.lost = true;
        }
        if let Some((_, cursors)) = entries.last() {
            self.stored = cursors.clone();
        }
        self.in_flight = false;
        self.engine.failed(self.current, &WriterFailure::QuorumLost, fx);
    }

    fn keep(&mut self, fx: &mut Vec<Effect<u32>>) {
        match self.engine.task() {
            None => {}
            Some(Task::Recover(ledger)) => {
                assert_eq!(ledger, self.current);
                self.engine.recovered(ledger, self.last_entry(), fx);
            }
            Some(Task::Roll) => {
                self.last_ledger += 1;
                let next = LedgerId(self.last_ledger);
                self.ledgers.insert(next, Vec::new());
                self.chain.push(next);
                self.next = Some(next);
                self.engine.opened(next, fx);
            }
            Some(Task::Trim(start)) => {
                assert!(self.snapshot < Some(start));
                self.rounds += 1;
                self.snapshot = Some(start);
                self.chain.retain(|ledger| *ledger >= start.ledger);
                self.engine.trimmed(fx);
            }
            Some(Task::Close) => panic!("nobody closes"),
        }
    }

    fn execute(&mut self, fx: Vec<Effect<u32>>) {
        let mut fx = std::collections::VecDeque::from(fx);
        while let Some(effect) = fx.pop_front() {
            match effect {
                Effect::Append(bytes) => {
                    assert!(!self.in_flight, "one at a time");
                    self.in_flight = true;
                    self.lost = false;
                    let cursors = self.engine.cursors().clone();
                    let entries = self.ledgers.get_mut(&self.current).expect("it exists");
                    entries.push((bytes, cursors));
                    let entry = EntryId(entries.len() as u64 - 1);
                    let mut more = Vec::new();
                    self.engine.appended(Ok(entry), &mut more);
                    fx.extend(more);
                }
                Effect::Switch => self.current = self.next.take().expect("it was opened"),
                Effect::Complete(tokens, outcome) => {
                    assert_eq!(outcome, Ok(()));
                    self.completed.extend(tokens);
                }
                Effect::Ended(error) => panic!("{error}"),
                Effect::Wake => {}
            }
        }
    }

    /// What a new owner finds if everything that was sent is stored, or only what must be.
    fn replay(&self, with_last: bool) -> (Cursors, CursorId) {
        let mut replay = Replay::new(self.snapshot.is_some());
        let from = self.snapshot.unwrap_or_default();
        for ledger in self.chain.iter().filter(|ledger| **ledger >= from.ledger) {
            let entries = &self.ledgers[ledger];
            let skip = if *ledger == from.ledger { from.entry.0 as usize } else { 0 };
            let lost = usize::from(!with_last && self.in_flight && *ledger == self.current);
            for (bytes, _) in &entries[skip..entries.len() - lost] {
                let records = decode_entry(bytes).expect("just written");
                replay.entry(records).expect("it fits");
            }
        }
        replay.finish().expect("the snapshot is complete")
    }

    fn check(&self) {
        let (found, next_id) = self.replay(false);
        assert_eq!(found, self.stored, "exactly what is certainly stored");
        let (found, _) = self.replay(true);
        if !self.lost {
            assert_eq!(&found, self.engine.cursors(), "and with the entry in flight");
        }
        assert!(self.stored.iter().all(|(id, _)| id < next_id), "ids are never used twice");
        assert!(self.completed.is_sorted(), "in the order in which they came");
    }
}

proptest! {
    #[test]
    fn a_replay_finds_exactly_what_the_stored_entries_say(
        events in prop::collection::vec(event(), 0..150),
    ) {
        let mut world = World::new();
        for (number, event) in events.iter().enumerate() {
            world.apply(event);
            // Each check is a crash and two replays: not after every event.
            if number % 6 == 5 {
                world.check();
            }
        }
        world.check();
        // Once the ledgers work, every change is completed, and no ledger keeps the log waiting.
        for _ in 0..2000 {
            world.apply(&Event::Keep);
            world.apply(&Event::Confirm);
            if !world.in_flight && world.engine.task().is_none() {
                break;
            }
        }
        world.check();
        let mut seen = world.completed.clone();
        seen.dedup();
        prop_assert_eq!(seen.len(), world.completed.len(), "completed once");
        prop_assert!(!world.in_flight);
        let found: Vec<_> =
            (0..3).flat_map(|topic| world.engine.subscriptions(TopicIncarnation(topic))).collect();
        prop_assert_eq!(found.len(), world.engine.cursor_count());
    }
}

#[test]
fn replay_stays_short_and_the_chain_too() {
    let mut world = World::new();
    world.apply(&Event::Create { topic: 0, name: 0 });
    for index in 0..3000 {
        world.apply(&Event::Ack { cursor: 0, start: index * 2 + 10, len: 1, upto: false });
        world.apply(&Event::Confirm);
        world.apply(&Event::Keep);
    }
    assert!(world.rounds > 10, "{}", world.rounds);
    assert!(world.chain.len() <= 12, "{:?}", world.chain);
    world.check();
}

#[test]
fn deleting_twice_spares_the_subscription_that_took_the_name() {
    let mut world = World::new();
    world.apply(&Event::Create { topic: 0, name: 0 });
    world.apply(&Event::Confirm);
    // Something is in flight, so that the deletions wait.
    world.apply(&Event::Create { topic: 1, name: 0 });
    world.apply(&Event::Delete(0));
    world.apply(&Event::Create { topic: 0, name: 0 });
    world.apply(&Event::Delete(0));
    let known = world.engine.subscriptions(TopicIncarnation(0));
    assert_eq!(known.iter().map(|one| one.id).collect::<Vec<_>>(), [CursorId(3)]);
}

#[test]
fn a_fence_leaves_everything_pending_unknown_and_ends_the_log() {
    let mut world = World::new();
    world.apply(&Event::Create { topic: 0, name: 0 });
    world.apply(&Event::Ack { cursor: 0, start: 10, len: 1, upto: false });
    let mut fx = Vec::new();
    world.engine.failed(world.current, &WriterFailure::Fenced, &mut fx);
    let fenced = StateLogError::Fenced;
    let expected =
        [Effect::Complete(vec![1, 2], Err(fenced.clone())), Effect::Ended(fenced.clone())];
    assert_eq!(fx, expected);
    fx.clear();
    world.engine.change(CursorId(1), None, 3, &mut fx);
    assert_eq!(fx, [Effect::Complete(vec![3], Err(fenced.clone()))]);
    assert_eq!(world.engine.create(TopicIncarnation(1), "x", frontier(0), 4, &mut fx), Err(fenced));
    assert_eq!(world.engine.task(), None);
}

#[test]
fn a_change_larger_than_a_record_goes_in_parts_and_completes_once() {
    let mut world = World::new();
    world.apply(&Event::Create { topic: 0, name: 0 });
    world.apply(&Event::Confirm);
    let acked: Vec<IndexRange> =
        (10..50_000).map(|index| IndexRange::new(index * 2, index * 2 + 1)).collect();
    let count = acked.len() as u64;
    let delta = CursorDelta { frontier: None, upto: None, acked };
    let mut fx = Vec::new();
    world.engine.change(CursorId(1), Some(CursorChange::Ack(delta)), 77, &mut fx);
    world.execute(fx);
    for _ in 0..100 {
        world.apply(&Event::Confirm);
        world.apply(&Event::Keep);
    }
    assert_eq!(world.completed, [1, 77]);
    let (found, _) = world.replay(false);
    assert_eq!(found.get(CursorId(1)).map(|cursor| cursor.state.acked.len()), Some(count));
}
