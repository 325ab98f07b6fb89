//! [`Cursor`]: what of a topic one subscription has acknowledged. A state machine without I/O.
//!
//! It works on *message indexes*: a topic counts its messages without gaps across entries and
//! ledgers, so "everything below `next_unacked`, and the members of a set" says it all: whole
//! entries, parts of batches, ledger boundaries. The backlog is exact without knowing any entry.
//! Positions come along: the [`Frontier`] is where reading has to start.
//!
//! Every operation appends to a [`CursorDelta`] exactly what it changed; acknowledging again
//! changes nothing and adds nothing. A delta may be applied twice.
//!
//! Refuses: to look into entries, to find an entry's span by itself. The caller passes an
//! [`EntrySpan`], which dispatch knows of everything it has handed out.
//!
//! Invariants: `frontier.index <= next_unacked`; `next_unacked` and everything below it is not in
//! the set; every message before `frontier.position` is acknowledged.

use std::collections::BTreeMap;

use bytes::Bytes;
use geminga_proto::id::{MessageIndex, Position};

use crate::core::ack_set::{AckSet, AckSetPiece, IndexRange, prefix_bits};

/// Where an entry is and which messages it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntrySpan {
    /// The entry.
    pub position: Position,
    /// Index of its first message.
    pub first_index: MessageIndex,
    /// Its messages; at least 1.
    pub messages: u32,
}

impl EntrySpan {
    /// The indexes of its messages.
    #[must_use]
    pub const fn indexes(&self) -> IndexRange {
        IndexRange::new(self.first_index.0, self.first_index.0 + self.messages as u64)
    }

    /// Index of the message after its last.
    #[must_use]
    pub const fn end_index(&self) -> MessageIndex {
        self.indexes().end
    }
}

/// The first entry that may hold an unacknowledged message, and the index of the first message at
/// or after it. Everything before is acknowledged. The position need not exist (yet): it can be
/// one past the last entry of a ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontier {
    /// Index of the first message at or after `position`.
    pub index: MessageIndex,
    /// Reading starts here.
    pub position: Position,
}

impl Frontier {
    /// Right behind an entry.
    #[must_use]
    pub const fn after(span: &EntrySpan) -> Self {
        let position = Position::new(span.position.ledger, span.position.entry.next());
        Self { index: span.end_index(), position }
    }

    /// At an entry.
    #[must_use]
    pub const fn at(span: &EntrySpan) -> Self {
        Self { index: span.first_index, position: span.position }
    }
}

/// What an operation changed, to be made durable. Applying it again changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CursorDelta {
    /// The frontier, if it moved.
    pub frontier: Option<Frontier>,
    /// Everything below is acknowledged (cumulatively).
    pub upto: Option<MessageIndex>,
    /// Messages acknowledged individually that were not before.
    pub acked: Vec<IndexRange>,
}

impl CursorDelta {
    /// True if nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frontier.is_none() && self.upto.is_none() && self.acked.is_empty()
    }

    fn add(&mut self, range: IndexRange) {
        match self.acked.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.acked.push(range),
        }
    }
}

/// A change of a cursor, as the state log records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CursorChange {
    /// More is acknowledged.
    Ack(CursorDelta),
    /// The cursor was moved: everything before is acknowledged, everything after is not.
    Reset(Frontier),
}

/// The part of a cursor that is durable: what the state log keeps, and what a topic starts from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CursorState {
    /// Where reading starts.
    pub frontier: Frontier,
    /// The first message that is not acknowledged.
    pub next_unacked: MessageIndex,
    /// Acknowledged messages above `next_unacked`.
    pub acked: AckSet,
}

impl CursorState {
    /// Everything before `frontier` is acknowledged, nothing after.
    #[must_use]
    pub fn new(frontier: Frontier) -> Self {
        Self { frontier, next_unacked: frontier.index, acked: AckSet::default() }
    }

    /// Applies a change.
    pub fn apply(&mut self, change: &CursorChange) {
        match change {
            CursorChange::Reset(frontier) => *self = Self::new(*frontier),
            CursorChange::Ack(delta) => {
                for range in &delta.acked {
                    self.insert(*range);
                }
                if let Some(upto) = delta.upto {
                    self.advance(upto);
                }
                if let Some(frontier) = delta.frontier
                    && frontier > self.frontier
                    && frontier.index <= self.next_unacked
                {
                    self.frontier = frontier;
                }
            }
        }
    }

    /// Adds a piece of the set, as a snapshot has it.
    pub fn merge(&mut self, piece: AckSetPiece) {
        self.acked.merge(piece);
        self.next_unacked = MessageIndex(self.acked.next_gap(self.next_unacked.0));
        self.acked.remove_below(self.next_unacked.0);
    }

    /// Adds what isn't acknowledged yet of a range; answers how many messages that is.
    fn insert(&mut self, range: IndexRange) -> u64 {
        let range = IndexRange { start: range.start.max(self.next_unacked), end: range.end };
        if range.is_empty() {
            return 0;
        }
        if range.start != self.next_unacked {
            return self.acked.insert(range);
        }
        // The usual case: acknowledged in order, the set isn't touched.
        let known = self.acked.count_in(range);
        self.advance(range.end);
        range.len() - known
    }

    /// Acknowledges everything below `upto`, and goes on over what follows.
    fn advance(&mut self, upto: MessageIndex) {
        if upto <= self.next_unacked {
            return;
        }
        self.next_unacked = upto;
        if !self.acked.is_empty() {
            self.next_unacked = MessageIndex(self.acked.next_gap(upto.0));
            self.acked.remove_below(self.next_unacked.0);
        }
    }

    /// Where a topic that ends at `end` has to put the cursor if this acknowledges messages that
    /// it doesn't have: else the next ones would get their indexes and be skipped. Messages that
    /// were acknowledged one by one may come again.
    #[must_use]
    pub fn set_back_to(&self, end: Frontier) -> Option<Frontier> {
        if self.next_unacked > end.index {
            return Some(end);
        }
        self.acked.next_member(end.index.0).map(|_| self.frontier)
    }

    /// Messages below `next_index` that are not acknowledged.
    #[must_use]
    pub fn backlog_messages(&self, next_index: MessageIndex) -> u64 {
        next_index.0.saturating_sub(self.next_unacked.0).saturating_sub(self.acked.len())
    }
}

/// The cursor of a loaded subscription.
#[derive(Debug, Clone)]
pub struct Cursor {
    state: CursorState,
    /// Entry boundaries above `next_unacked` where acknowledged messages end, and the positions
    /// that follow: one for each run of acknowledged entries, one for each entry acknowledged in
    /// part. Lets the frontier jump when the hole before a run closes. Not durable: filled as
    /// entries are acknowledged or met by dispatch.
    boundaries: BTreeMap<u64, Position>,
    /// The frontier has moved since the last delta.
    frontier_moved: bool,
}

impl Cursor {
    /// A cursor that goes on where `state` stands.
    #[must_use]
    pub fn new(state: CursorState) -> Self {
        Self { state, boundaries: BTreeMap::new(), frontier_moved: false }
    }

    /// What is acknowledged.
    #[must_use]
    pub fn state(&self) -> &CursorState {
        &self.state
    }

    /// Where reading has to start.
    #[must_use]
    pub fn frontier(&self) -> Frontier {
        self.state.frontier
    }

    /// The first message that is not acknowledged.
    #[must_use]
    pub fn next_unacked(&self) -> MessageIndex {
        self.state.next_unacked
    }

    /// Messages below `next_index` that are not acknowledged.
    #[must_use]
    pub fn backlog_messages(&self, next_index: MessageIndex) -> u64 {
        self.state.backlog_messages(next_index)
    }

    /// Messages acknowledged above the first that is not.
    #[must_use]
    pub fn acked_beyond(&self) -> u64 {
        self.state.acked.len()
    }

    /// Messages of an entry that are not acknowledged.
    #[must_use]
    pub fn unacked_in(&self, span: &EntrySpan) -> u32 {
        let next = self.state.next_unacked;
        if span.end_index() <= next {
            return 0;
        }
        let start = span.first_index.max(next);
        let range = IndexRange { start, end: span.end_index() };
        u32::try_from(range.len() - self.state.acked.count_in(range)).unwrap_or(u32::MAX)
    }

    /// The acknowledged messages of an entry as a bitmap (bit i of byte i/8, lowest first);
    /// empty if there are none.
    #[must_use]
    pub fn acked_indexes(&self, span: &EntrySpan) -> Bytes {
        let below = self.state.next_unacked.0.saturating_sub(span.first_index.0);
        let below = u32::try_from(below).unwrap_or(u32::MAX).min(span.messages);
        if self.state.acked.is_empty() {
            return prefix_bits(below);
        }
        let mut bits = self.state.acked.bits(span.indexes());
        let prefix = prefix_bits(below);
        if bits.len() < prefix.len() {
            bits.resize(prefix.len(), 0);
        }
        bits.iter_mut().zip(&prefix).for_each(|(bits, prefix)| *bits |= prefix);
        bits.into()
    }

    /// Acknowledges messages of an entry, which all lie in `span`. Answers how many were not
    /// acknowledged before.
    pub fn ack(&mut self, span: &EntrySpan, range: IndexRange, delta: &mut CursorDelta) -> u64 {
        debug_assert!(span.first_index <= range.start && range.end <= span.end_index());
        let before = self.state.next_unacked;
        let range = IndexRange { start: range.start.max(before), end: range.end };
        if range.is_empty() {
            return 0;
        }
        let added = if self.state.acked.is_empty() {
            delta.add(range);
            self.state.insert(range)
        } else {
            let mut missing = Vec::new();
            self.state.acked.missing(range, &mut missing);
            missing.iter().for_each(|part| delta.add(*part));
            self.state.insert(range)
        };
        if added > 0 {
            self.learn(span);
            self.advance_frontier();
            self.take_frontier(delta);
        }
        added
    }

    /// Acknowledges everything before `upto`, which lies in `span` (its end index acknowledges
    /// all of it). Answers how many messages were not acknowledged before.
    pub fn ack_cumulative(
        &mut self,
        span: &EntrySpan,
        upto: MessageIndex,
        delta: &mut CursorDelta,
    ) -> u64 {
        debug_assert!(span.first_index <= upto && upto <= span.end_index());
        let before = self.state.next_unacked;
        if upto <= before {
            return 0;
        }
        let range = IndexRange { start: before, end: upto };
        let added = range.len() - self.state.acked.count_in(range);
        self.state.advance(upto);
        delta.upto = Some(upto);
        self.learn(span);
        self.advance_frontier();
        self.take_frontier(delta);
        added
    }

    /// Tells of an entry that dispatch met and of which `unacked` messages are not acknowledged,
    /// so that the frontier is exact again after a restart and across ledger boundaries.
    pub fn note(&mut self, span: &EntrySpan, unacked: u32) {
        if unacked == span.messages {
            if span.first_index <= self.state.next_unacked {
                self.move_frontier(Frontier::at(span));
            }
            return;
        }
        self.learn(span);
        self.advance_frontier();
    }

    /// Moves the cursor: everything before `frontier` is acknowledged, nothing after.
    pub fn reset(&mut self, frontier: Frontier) -> CursorChange {
        *self = Self::new(CursorState::new(frontier));
        CursorChange::Reset(frontier)
    }

    /// Acknowledges everything before `frontier`, keeps what is acknowledged after it. For data
    /// that is gone.
    pub fn skip_to(&mut self, frontier: Frontier, delta: &mut CursorDelta) -> u64 {
        let before = self.state.next_unacked;
        let range = IndexRange { start: before, end: frontier.index };
        let added = range.len() - self.state.acked.count_in(range);
        if frontier.index > before {
            self.state.advance(frontier.index);
            delta.upto = Some(frontier.index);
        }
        self.boundaries.insert(frontier.index.0, frontier.position);
        self.advance_frontier();
        self.take_frontier(delta);
        added
    }

    /// Remembers where an entry's messages begin and end, as far as the frontier may need it.
    fn learn(&mut self, span: &EntrySpan) {
        let next = self.state.next_unacked;
        if span.end_index() <= next {
            return self.move_frontier(Frontier::after(span));
        }
        let unacked = self.unacked_in(span);
        if unacked == 0 {
            // The run goes on through this entry: the boundary before it is inside the run.
            self.boundaries.remove(&span.first_index.0);
            if !self.state.acked.contains(span.end_index().0) {
                let after = Frontier::after(span);
                self.boundaries.insert(after.index.0, after.position);
            }
        } else if span.first_index <= next {
            self.move_frontier(Frontier::at(span));
        } else if unacked < span.messages {
            self.boundaries.insert(span.first_index.0, span.position);
        }
    }

    fn advance_frontier(&mut self) {
        let next = self.state.next_unacked;
        while let Some(first) = self.boundaries.first_entry().filter(|at| *at.key() <= next.0) {
            let (index, position) = first.remove_entry();
            self.move_frontier(Frontier { index: MessageIndex(index), position });
        }
    }

    fn move_frontier(&mut self, frontier: Frontier) {
        if frontier > self.state.frontier {
            self.state.frontier = frontier;
            self.frontier_moved = true;
        }
    }

    fn take_frontier(&mut self, delta: &mut CursorDelta) {
        if std::mem::take(&mut self.frontier_moved) {
            delta.frontier = Some(self.state.frontier);
        }
    }
}

#[cfg(test)]
mod tests;
