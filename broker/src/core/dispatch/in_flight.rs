//! [`InFlight`]: the entries that were handed out and are not acknowledged, in topic order.
//!
//! New entries go to its end, and acknowledgements mostly take from its front, so it is a queue
//! and not a map. An entry keeps its slot when it is given back: it changes to *replay* in place,
//! and back when somebody takes it. An entry acknowledged in the middle leaves an empty slot,
//! which goes when the front reaches it, or when more than half of the slots are empty.
//!
//! Invariants: positions rise; `replay` holds exactly the positions of the slots marked so;
//! the first slot is not empty.

use std::collections::{BTreeSet, VecDeque};

use geminga_proto::id::{MessageIndex, Position};

use crate::core::cursor::{Cursor, EntrySpan};
use crate::core::dispatch::{ConsumerKey, EntryRun};

/// Empty slots are tolerated up to this number, whatever their share.
const MIN_COMPACTION: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// Acknowledged: the slot is empty.
    Nobody,
    /// Waits to be handed out again.
    Replay,
    Consumer(ConsumerKey),
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    position: Position,
    first_index: MessageIndex,
    messages: u32,
    /// Messages not acknowledged.
    unacked: u32,
    /// How often it was given back.
    redeliveries: u32,
    holder: Holder,
}

impl Slot {
    fn span(&self) -> EntrySpan {
        let Self { position, first_index, messages, .. } = *self;
        EntrySpan { position, first_index, messages }
    }
}

/// Messages that nobody holds unacknowledged any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Released {
    /// Who held them; `None` if they waited for replay.
    pub holder: Option<ConsumerKey>,
    pub messages: u64,
}

#[derive(Debug, Default)]
pub(super) struct InFlight {
    slots: VecDeque<Slot>,
    replay: BTreeSet<Position>,
    empty: usize,
}

impl InFlight {
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    pub fn has_replay(&self) -> bool {
        !self.replay.is_empty()
    }

    pub fn replay_len(&self) -> usize {
        self.replay.len()
    }

    /// Adds an entry above all others.
    pub fn push(&mut self, span: &EntrySpan, unacked: u32, holder: ConsumerKey) {
        debug_assert!(self.slots.back().is_none_or(|last| last.position < span.position));
        let EntrySpan { position, first_index, messages } = *span;
        let holder = Holder::Consumer(holder);
        self.slots.push_back(Slot {
            position,
            first_index,
            messages,
            unacked,
            redeliveries: 0,
            holder,
        });
    }

    fn find(&self, position: Position) -> Option<usize> {
        // Acknowledgements come in order more often than not.
        if self.slots.front().is_some_and(|slot| slot.position == position) {
            return Some(0);
        }
        self.slots.binary_search_by_key(&position, |slot| slot.position).ok()
    }

    fn find_mut(&mut self, position: Position) -> Option<&mut Slot> {
        let at = self.find(position)?;
        self.slots.get_mut(at).filter(|slot| slot.holder != Holder::Nobody)
    }

    pub fn span_of(&self, position: Position) -> Option<EntrySpan> {
        let slot = self.slots.get(self.find(position)?)?;
        (slot.holder != Holder::Nobody).then(|| slot.span())
    }

    /// Takes note of how much of an entry is acknowledged now.
    pub fn acknowledged(&mut self, position: Position, cursor: &Cursor) -> Option<Released> {
        let slot = self.find_mut(position)?;
        let unacked = cursor.unacked_in(&slot.span());
        let released = Self::update(slot, unacked);
        if unacked == 0 {
            slot.holder = Holder::Nobody;
            if released.holder.is_none() {
                self.replay.remove(&position);
            }
            self.empty += 1;
            self.tidy();
        }
        Some(released)
    }

    fn update(slot: &mut Slot, unacked: u32) -> Released {
        let messages = u64::from(slot.unacked - unacked);
        slot.unacked = unacked;
        match slot.holder {
            Holder::Consumer(key) => Released { holder: Some(key), messages },
            Holder::Replay | Holder::Nobody => Released { holder: None, messages },
        }
    }

    /// Removes the first entry if it is not above `position` and wholly acknowledged.
    pub fn pop_upto(&mut self, position: Position, cursor: &Cursor) -> Option<Released> {
        let slot = self.slots.front_mut().filter(|slot| slot.position <= position)?;
        if cursor.unacked_in(&slot.span()) > 0 {
            return None;
        }
        let at = slot.position;
        let was_empty = slot.holder == Holder::Nobody;
        let released = Self::update(slot, 0);
        self.slots.pop_front();
        if was_empty {
            self.empty -= 1;
        } else if released.holder.is_none() {
            self.replay.remove(&at);
        }
        self.tidy();
        Some(released)
    }

    fn tidy(&mut self) {
        while self.slots.front().is_some_and(|slot| slot.holder == Holder::Nobody) {
            self.slots.pop_front();
            self.empty -= 1;
        }
        if self.empty > MIN_COMPACTION && self.empty * 2 > self.slots.len() {
            self.slots.retain(|slot| slot.holder != Holder::Nobody);
            self.empty = 0;
        }
        // An idle subscription keeps no buffer; one that grows and shrinks keeps some of it.
        if self.slots.is_empty() && self.slots.capacity() > 4 * MIN_COMPACTION {
            self.slots = VecDeque::new();
        }
    }

    /// Marks an entry for replay if `from` holds it; answers how many messages that frees.
    pub fn give_back(&mut self, position: Position, from: ConsumerKey) -> u64 {
        let Some(slot) = self.find_mut(position) else { return 0 };
        if slot.holder != Holder::Consumer(from) {
            return 0;
        }
        slot.holder = Holder::Replay;
        slot.redeliveries = slot.redeliveries.saturating_add(1);
        let freed = u64::from(slot.unacked);
        self.replay.insert(position);
        freed
    }

    /// Marks everything that `from` holds for replay; answers how many messages that frees.
    pub fn give_back_all(&mut self, from: ConsumerKey) -> u64 {
        let mut freed = 0;
        let held = self.slots.iter_mut().filter(|slot| slot.holder == Holder::Consumer(from));
        for slot in held {
            slot.holder = Holder::Replay;
            slot.redeliveries = slot.redeliveries.saturating_add(1);
            freed += u64::from(slot.unacked);
            self.replay.insert(slot.position);
        }
        freed
    }

    /// How often an entry that waits for replay was given back; `None` if it doesn't wait.
    pub fn replay_count(&self, position: Position) -> Option<u32> {
        let slot = self.slots.get(self.find(position)?)?;
        (slot.holder == Holder::Replay).then_some(slot.redeliveries)
    }

    /// Gives an entry that waits for replay to a consumer.
    pub fn take_replay(&mut self, position: Position, to: ConsumerKey) {
        if self.replay.remove(&position)
            && let Some(slot) = self.find_mut(position)
        {
            slot.holder = Holder::Consumer(to);
        }
    }

    /// The first entry that waits for replay.
    pub fn first_replay(&self) -> Option<Position> {
        self.replay.first().copied()
    }

    /// The first entries that wait for replay, at most `max_entries`.
    pub fn replay_runs(&self, max_entries: u32) -> Vec<EntryRun> {
        let mut runs: Vec<EntryRun> = Vec::new();
        for position in self.replay.iter().take(max_entries as usize) {
            match runs.last_mut() {
                Some(run)
                    if run.ledger == position.ledger
                        && run.first.0 + u64::from(run.entries) == position.entry.0 =>
                {
                    run.entries += 1;
                }
                _ => runs.push(EntryRun {
                    ledger: position.ledger,
                    first: position.entry,
                    entries: 1,
                }),
            }
        }
        runs
    }
}
