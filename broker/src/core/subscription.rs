//! [`Subscription`]: one subscription of a loaded topic: its cursor and its dispatch, composed. A
//! state machine without I/O, clock or randomness. The topic calls it under its lock and executes
//! the [`Command`]s it appends to `out`, in order, before it lets go of the lock.
//!
//! How a topic uses it:
//! - load: [`Subscription::new`] with what the state log has, and where the topic ends;
//! - entries are confirmed: if [`Subscription::wants_tail`], [`Subscription::tail`] with the
//!   entries, else [`Subscription::confirmed`], which is cheap;
//! - [`Command::Read`]: read, then [`Subscription::read_done`]; after a failure wait a little and
//!   call [`Subscription::retry_read`];
//! - an ack comes: [`Subscription::unknown_positions`]; look those up (cache or storage); then
//!   [`Subscription::ack`];
//! - [`Command::Persist`]: hand the change to the state log; when it is durable, send the receipt
//!   and call [`Subscription::persisted`].
//!
//! Invariant: a receipt is never sent before every change made until then is durable.

use std::collections::VecDeque;
use std::sync::Arc;

use geminga_proto::id::{MessageIndex, Position};

use crate::core::ack_set::{IndexRange, runs_of_bits};
use crate::core::api::{Ack, AckError, AckPosition, SubscribeError, SubscriptionType};
use crate::core::cursor::{Cursor, CursorChange, CursorDelta, CursorState, EntrySpan, Frontier};
use crate::core::dispatch::{
    ConsumerKey, DispatchLimits, Dispatcher, NotMoving, ReadToken, ReadyEntry, Refused,
};

mod types;

pub use types::{
    ChangeSeq, Command, ConsumerNumbers, ConsumerSpec, ReceiptFor, SubscriptionNumbers, TopicEnd,
};

/// A subscription of a loaded topic.
#[derive(Debug)]
pub struct Subscription {
    name: Arc<str>,
    cursor: Cursor,
    dispatcher: Dispatcher,
    end: TopicEnd,
    /// The last change handed to the state log.
    last_seq: ChangeSeq,
    /// Every change up to this one is durable.
    durable_seq: ChangeSeq,
    /// Where the cursor stood after that one.
    durable: Mark,
    /// Changes that moved the cursor and are not durable yet. As long as the changes that the
    /// state log holds for its callers, which are bounded in bytes.
    undurable: VecDeque<(ChangeSeq, Mark)>,
}

/// Where a cursor stands: everything before either is acknowledged.
#[derive(Debug, Clone, Copy)]
struct Mark {
    frontier: Frontier,
    next_unacked: MessageIndex,
}

impl Mark {
    fn of(cursor: &Cursor) -> Self {
        Self { frontier: cursor.frontier(), next_unacked: cursor.next_unacked() }
    }
}

/// What an acknowledged position means.
enum Resolved {
    /// Nothing is left to acknowledge.
    Acked,
    Span(EntrySpan),
    Unknown,
}

impl Subscription {
    /// A subscription whose cursor goes on where `cursor` stands. Nothing is handed out yet.
    #[must_use]
    pub fn new(name: &str, cursor: CursorState, end: TopicEnd, limits: DispatchLimits) -> Self {
        let cursor = Cursor::new(cursor);
        let durable = Mark::of(&cursor);
        let read_from = durable.frontier.position;
        Self {
            name: name.into(),
            cursor,
            dispatcher: Dispatcher::new(limits, read_from, end.last_confirmed),
            end,
            last_seq: ChangeSeq::default(),
            durable_seq: ChangeSeq::default(),
            durable,
            undurable: VecDeque::new(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Attaches a consumer; it has no credit yet.
    ///
    /// # Errors
    /// [`SubscribeError::Busy`] or [`SubscribeError::WrongType`].
    pub fn add_consumer(
        &mut self,
        spec: ConsumerSpec,
        out: &mut Vec<Command>,
    ) -> Result<ConsumerKey, SubscribeError> {
        let name = || self.name.to_string();
        self.dispatcher.add_consumer(spec, out).map_err(|refused| match refused {
            Refused::Busy => SubscribeError::Busy(name()),
            Refused::WrongType(in_use) => SubscribeError::WrongType { name: name(), in_use },
        })
    }

    /// Detaches a consumer: what it holds unacknowledged is handed out again, to others or to
    /// whoever comes.
    pub fn remove_consumer(&mut self, consumer: ConsumerKey, out: &mut Vec<Command>) {
        self.dispatcher.remove_consumer(consumer, &self.cursor, out);
    }

    /// The attached consumers.
    pub fn consumers(&self) -> impl Iterator<Item = ConsumerKey> + '_ {
        self.dispatcher.keys()
    }

    /// Adds credit.
    pub fn flow(
        &mut self,
        consumer: ConsumerKey,
        messages: u32,
        bytes: u64,
        out: &mut Vec<Command>,
    ) {
        self.dispatcher.flow(consumer, messages, bytes, &self.cursor, out);
    }

    fn resolve(&self, position: Position, looked_up: &[EntrySpan]) -> Resolved {
        if position < self.cursor.frontier().position {
            return Resolved::Acked;
        }
        if let Some(span) = self.dispatcher.span_of(position) {
            return Resolved::Span(span);
        }
        let found = looked_up.binary_search_by_key(&position, |span| span.position);
        match found.ok().and_then(|at| looked_up.get(at)) {
            Some(span) => Resolved::Span(*span),
            None => Resolved::Unknown,
        }
    }

    /// Positions in `ack` whose spans have to be looked up and passed to [`Subscription::ack`]:
    /// not in flight and not known to be acknowledged. Usually none.
    #[must_use]
    pub fn unknown_positions(&self, ack: &Ack) -> Vec<Position> {
        let positions = ack.positions.iter().map(|named| named.position);
        positions
            .filter(|position| matches!(self.resolve(*position, &[]), Resolved::Unknown))
            .collect()
    }

    /// Acknowledges, all or (on an error) nothing. `looked_up`: the spans of what
    /// [`Subscription::unknown_positions`] named; those that don't exist are left out.
    ///
    /// # Errors
    /// [`AckError::Invalid`] says why nothing was acknowledged.
    pub fn ack(
        &mut self,
        consumer: ConsumerKey,
        ack: &Ack,
        looked_up: &[EntrySpan],
        out: &mut Vec<Command>,
    ) -> Result<(), AckError> {
        let mut looked_up = looked_up.to_vec();
        looked_up.sort_unstable();
        let mut delta = CursorDelta::default();
        if ack.cumulative {
            self.ack_cumulative(ack, &looked_up, &mut delta)?;
        } else {
            self.ack_individual(ack, &looked_up, &mut delta)?;
        }
        let request_id = ack.request_id;
        let receipt = (request_id != 0).then_some(ReceiptFor { consumer, request_id });
        let change = (!delta.is_empty()).then_some(CursorChange::Ack(delta));
        self.persist(change, receipt, out);
        self.dispatcher.pump(&self.cursor, out);
        Ok(())
    }

    fn ack_individual(
        &mut self,
        ack: &Ack,
        looked_up: &[EntrySpan],
        delta: &mut CursorDelta,
    ) -> Result<(), AckError> {
        // Checked as a whole before the first is applied.
        let mut parts: Vec<(EntrySpan, IndexRange)> = Vec::with_capacity(ack.positions.len());
        let mut runs = Vec::new();
        for named in &ack.positions {
            match self.resolve(named.position, looked_up) {
                Resolved::Acked => {}
                Resolved::Unknown => return Err(NO_SUCH_ENTRY),
                Resolved::Span(span) if named.acked_indexes.is_empty() => {
                    parts.push((span, span.indexes()));
                }
                Resolved::Span(span) => {
                    runs.clear();
                    indexes(named, &span, &mut runs)?;
                    parts.extend(runs.iter().map(|run| (span, *run)));
                }
            }
        }
        for (span, range) in &parts {
            if self.cursor.ack(span, *range, delta) > 0 {
                self.dispatcher.acknowledged(span.position, &self.cursor);
            }
        }
        Ok(())
    }

    fn ack_cumulative(
        &mut self,
        ack: &Ack,
        looked_up: &[EntrySpan],
        delta: &mut CursorDelta,
    ) -> Result<(), AckError> {
        let [named] = &ack.positions[..] else {
            return Err(AckError::Invalid("a cumulative one names exactly one position"));
        };
        if self.dispatcher.kind() == Some(SubscriptionType::Shared) {
            return Err(AckError::Invalid("a shared subscription takes no cumulative ones"));
        }
        let span = match self.resolve(named.position, looked_up) {
            Resolved::Acked => return Ok(()),
            Resolved::Unknown => return Err(NO_SUCH_ENTRY),
            Resolved::Span(span) => span,
        };
        let upto = if named.acked_indexes.is_empty() {
            span.end_index()
        } else {
            let mut runs = Vec::new();
            indexes(named, &span, &mut runs)?;
            match runs[..] {
                [run] if run.start == span.first_index => run.end,
                _ => return Err(AckError::Invalid("a cumulative one names indexes from 0 on")),
            }
        };
        if self.cursor.ack_cumulative(&span, upto, delta) > 0 {
            self.dispatcher.acknowledged_upto(span.position, &self.cursor);
        }
        Ok(())
    }

    /// Hands a change to the state log, and a receipt to whatever it has to wait for.
    fn persist(
        &mut self,
        change: Option<CursorChange>,
        receipt: Option<ReceiptFor>,
        out: &mut Vec<Command>,
    ) {
        if change.is_none() && self.durable_seq == self.last_seq {
            out.extend(receipt.map(Command::AckReceipt));
            return;
        }
        if change.is_none() && receipt.is_none() {
            return;
        }
        self.last_seq = ChangeSeq(self.last_seq.0 + 1);
        let mark = Mark::of(&self.cursor);
        if let Some(CursorChange::Reset(_)) = &change {
            // Whoever trims must not go by a mark that the reset takes back, nor by one that is
            // not durable yet: until it is, the lower of both counts.
            self.durable.frontier = self.durable.frontier.min(mark.frontier);
            self.durable.next_unacked = self.durable.next_unacked.min(mark.next_unacked);
            self.undurable.clear();
        }
        let before = self.undurable.back().map_or(self.durable, |(_, before)| *before);
        if mark.frontier != before.frontier || mark.next_unacked != before.next_unacked {
            self.undurable.push_back((self.last_seq, mark));
        }
        out.push(Command::Persist { change, seq: self.last_seq, receipt });
    }

    /// Every change up to `seq` is durable.
    pub fn persisted(&mut self, seq: ChangeSeq) {
        self.durable_seq = self.durable_seq.max(seq);
        while let Some((_, mark)) = self.undurable.pop_front_if(|(at, _)| *at <= seq) {
            self.durable = mark;
        }
        self.settle();
    }

    /// Dispatch may learn where entries end whose acknowledgement is durable already.
    fn settle(&mut self) {
        if self.durable_seq == self.last_seq {
            self.durable = Mark::of(&self.cursor);
        }
    }

    /// Hands entries out again: those of `positions` that this consumer holds unacknowledged, or
    /// all it holds if there are none named.
    pub fn redeliver(
        &mut self,
        consumer: ConsumerKey,
        positions: &[Position],
        out: &mut Vec<Command>,
    ) {
        let positions = (!positions.is_empty()).then_some(positions);
        self.dispatcher.redeliver(consumer, positions, &self.cursor, out);
    }

    /// True if entries that are being confirmed could be handed out at once: pass them to
    /// [`Subscription::tail`]. Cheap.
    #[must_use]
    pub fn wants_tail(&self) -> bool {
        self.dispatcher.wants_tail()
    }

    /// Entries were confirmed: all of them since the last call, in order.
    pub fn tail(&mut self, entries: &[ReadyEntry], end: TopicEnd, out: &mut Vec<Command>) {
        self.end = end;
        self.dispatcher.tail(entries, end.last_confirmed, &mut self.cursor, out);
        self.settle();
    }

    /// Entries were confirmed and their bytes aren't at hand (or aren't wanted).
    pub fn confirmed(&mut self, end: TopicEnd, out: &mut Vec<Command>) {
        self.end = end;
        self.dispatcher.confirmed(end.last_confirmed, &self.cursor, out);
    }

    /// The answer to [`Command::Read`]. After an error nothing is read until
    /// [`Subscription::retry_read`].
    pub fn read_done(
        &mut self,
        token: ReadToken,
        result: Result<&[ReadyEntry], String>,
        out: &mut Vec<Command>,
    ) {
        self.dispatcher.read_done(token, result, &mut self.cursor, out);
        self.settle();
    }

    /// True after a failed read, until [`Subscription::retry_read`].
    #[must_use]
    pub fn read_has_failed(&self) -> bool {
        self.dispatcher.read_failure().is_some()
    }

    /// Goes on after a failed read.
    pub fn retry_read(&mut self, out: &mut Vec<Command>) {
        self.dispatcher.retry_read(&self.cursor, out);
    }

    /// Moves the cursor. Answers the consumers, which are detached: close them, so that they come
    /// back without entries of before.
    pub fn reset(&mut self, to: Frontier, out: &mut Vec<Command>) -> Vec<ConsumerKey> {
        let change = self.cursor.reset(to);
        let detached = self.dispatcher.reset(to.position);
        self.persist(Some(change), None, out);
        detached
    }

    /// Acknowledges everything before `to`, because its data is gone.
    pub fn skip_to(&mut self, to: Frontier, out: &mut Vec<Command>) {
        let mut delta = CursorDelta::default();
        self.cursor.skip_to(to, &mut delta);
        self.dispatcher.acknowledged_upto(to.position, &self.cursor);
        self.dispatcher.skip_to(to.position);
        let change = (!delta.is_empty()).then_some(CursorChange::Ack(delta));
        self.persist(change, None, out);
        self.dispatcher.pump(&self.cursor, out);
    }

    /// Every entry before is durably acknowledged. The mark-delete position is the entry before
    /// `position`: the topic knows it if that is a ledger's first.
    #[must_use]
    pub fn durable(&self) -> Frontier {
        self.durable.frontier
    }

    /// Every message before is durably acknowledged; what trimming goes by. Never below
    /// `durable().index`, and above it in the middle of a batch, or when where the acknowledged
    /// entries end isn't known again yet after a load.
    #[must_use]
    pub fn durable_index(&self) -> MessageIndex {
        self.durable.next_unacked
    }

    /// The lowest entry that may still be read: the next new one, or one to be handed out again.
    /// What consumers hold and may give back is not counted.
    #[must_use]
    pub fn read_from(&self) -> Position {
        self.dispatcher.lowest_read()
    }

    /// What is acknowledged, durable or not yet.
    #[must_use]
    pub fn cursor(&self) -> &CursorState {
        self.cursor.state()
    }

    /// Messages that are not acknowledged.
    #[must_use]
    pub fn backlog_messages(&self) -> u64 {
        self.cursor.backlog_messages(self.end.next_index)
    }

    /// Index after the topic's last confirmed message, as this subscription knows it.
    #[must_use]
    pub fn next_index(&self) -> MessageIndex {
        self.end.next_index
    }

    /// Why nothing is being handed out just now.
    #[must_use]
    pub fn why_not_moving(&self) -> NotMoving {
        self.dispatcher.why_not_moving()
    }

    /// True if it can leave the memory without losing anything: no consumer, no read under way,
    /// nothing to be made durable.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.dispatcher.keys().next().is_none()
            && !self.dispatcher.is_reading()
            && self.durable_seq == self.last_seq
    }

    /// Its numbers.
    #[must_use]
    pub fn numbers(&self) -> SubscriptionNumbers {
        let counters = self.dispatcher.counters();
        SubscriptionNumbers {
            subscription_type: self.dispatcher.kind(),
            backlog_messages: self.backlog_messages(),
            acked_beyond: self.cursor.acked_beyond(),
            unacked_messages: self.dispatcher.unacked_messages(),
            replay_entries: self.dispatcher.replay_entries(),
            delivered_messages: counters.delivered_messages,
            delivered_bytes: counters.delivered_bytes,
            redelivered_messages: counters.redelivered_messages,
            durable: self.durable.frontier,
            read_from: self.dispatcher.read_from(),
            active: self.dispatcher.active(),
            not_moving: self.why_not_moving(),
            consumers: self.dispatcher.consumers().collect(),
        }
    }
}

const NO_SUCH_ENTRY: AckError = AckError::Invalid("it names an entry that doesn't exist");

/// The messages of an entry that a client's bitmap names.
fn indexes(
    named: &AckPosition,
    span: &EntrySpan,
    out: &mut Vec<IndexRange>,
) -> Result<(), AckError> {
    runs_of_bits(&named.acked_indexes, span.first_index, span.messages, out)
        .ok_or(AckError::Invalid("it names a batch index that the entry doesn't have"))
}

#[cfg(test)]
mod tests;
