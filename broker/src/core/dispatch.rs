//! [`Dispatcher`]: who gets which entry of a subscription, and what has to be read for that. A
//! state machine without I/O, clock or randomness.
//!
//! Credit: each consumer has credits in messages and in bytes. An entry is sent when both are
//! positive; it takes its unacknowledged messages and its bytes and may overdraw both once.
//!
//! What is handed out and not acknowledged is kept in one ordered queue (`in_flight.rs`), whoever
//! holds it. What a consumer gives back (or leaves behind) stays in its place there, marked for
//! replay, and is handed out, in order, before anything new.
//!
//! Reading: the dispatcher asks for entries with [`ReadRequest`], one at a time. Entries that
//! were just confirmed are handed to it directly while it is caught up. What it can't hand out
//! for lack of credit it drops and asks for again later: it buffers no payload.
//!
//! Invariants: an entry is held by at most one consumer; nothing below `read_from` is handed out
//! but from the replay set; an answer with an old token changes nothing; messages in flight
//! exceed a limit by at most one entry.

use geminga_proto::id::{EntryId, Position};

use crate::core::api::{Delivery, SubscriptionType};
use crate::core::cursor::{Cursor, EntrySpan};
use crate::core::subscription::{Command, ConsumerNumbers, ConsumerSpec};

mod consumer;
mod exclusive;
mod in_flight;
mod shared;
mod types;

pub use types::{
    ConsumerKey, DispatchLimits, EntryRun, NotMoving, ReadRequest, ReadTarget, ReadToken,
    ReadyEntry,
};

use consumer::Consumer;
use in_flight::{InFlight, Released};

/// Why a consumer is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The exclusive consumer is there already.
    Busy,
    /// The subscription is in use with this type.
    WrongType(SubscriptionType),
}

/// What the outstanding read is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// New entries, from here on.
    New(Position),
    /// Entries to be handed out again, from this one on.
    Replay(Position),
}

/// Counters since the topic's load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DispatchCounters {
    /// Messages handed out.
    pub delivered_messages: u64,
    /// Bytes handed out.
    pub delivered_bytes: u64,
    /// Messages handed out again.
    pub redelivered_messages: u64,
}

/// Dispatch of one subscription.
#[derive(Debug)]
pub struct Dispatcher {
    limits: DispatchLimits,
    /// `None` until the first consumer; changes only while there is none.
    kind: Option<SubscriptionType>,
    /// By priority value, then age: the first one is the active one where only one is.
    consumers: Vec<Consumer>,
    last_key: u64,
    /// Rises with each entry handed out; who was served longest ago is next.
    turn: u64,
    in_flight: InFlight,
    /// Messages that consumers hold unacknowledged.
    unacked_messages: u64,
    /// The lowest position that has not been considered.
    read_from: Position,
    last_confirmed: Option<Position>,
    reading: Option<(ReadToken, Reading)>,
    last_token: ReadToken,
    read_failure: Option<String>,
    /// Nothing of the last entries read had to be handed out: more of that is likely.
    skipping: bool,
    /// Eighths of a message in an average entry.
    messages_per_entry_x8: u64,
    counters: DispatchCounters,
}

impl Dispatcher {
    /// Dispatch that begins reading at `read_from` of a topic that ends at `last_confirmed`.
    #[must_use]
    pub fn new(
        limits: DispatchLimits,
        read_from: Position,
        last_confirmed: Option<Position>,
    ) -> Self {
        Self {
            limits,
            kind: None,
            consumers: Vec::new(),
            last_key: 0,
            turn: 0,
            in_flight: InFlight::default(),
            unacked_messages: 0,
            read_from,
            last_confirmed,
            reading: None,
            last_token: ReadToken::default(),
            read_failure: None,
            skipping: false,
            messages_per_entry_x8: 8,
            counters: DispatchCounters::default(),
        }
    }

    /// Attaches a consumer.
    ///
    /// # Errors
    /// [`Refused`]; nothing has changed then.
    pub fn add_consumer(
        &mut self,
        spec: ConsumerSpec,
        out: &mut Vec<Command>,
    ) -> Result<ConsumerKey, Refused> {
        if let Some(kind) = self.kind.filter(|_| !self.consumers.is_empty()) {
            if kind != spec.subscription_type {
                return Err(Refused::WrongType(kind));
            }
            if kind == SubscriptionType::Exclusive {
                return Err(Refused::Busy);
            }
        }
        self.kind = Some(spec.subscription_type);
        self.last_key += 1;
        let key = ConsumerKey(self.last_key);
        let was_active = self.active();
        let at = self.consumers.partition_point(|other| other.priority <= spec.priority);
        self.consumers.insert(at, Consumer::new(key, spec));
        self.change_active(was_active, out);
        if self.kind == Some(SubscriptionType::Failover) && self.active() != Some(key) {
            out.push(Command::ActiveChanged { consumer: key, active: false });
        }
        Ok(key)
    }

    /// Detaches a consumer; what it holds is handed out again.
    pub fn remove_consumer(&mut self, key: ConsumerKey, cursor: &Cursor, out: &mut Vec<Command>) {
        let Some(at) = self.find(key) else { return };
        let was_active = self.active();
        self.give_back(key, None);
        self.consumers.remove(at);
        self.change_active(was_active.filter(|active| *active != key), out);
        self.pump(cursor, out);
    }

    /// Detaches everybody, forgets what is in flight, and begins reading at `read_from`. The
    /// answer to a read that is under way will be ignored.
    pub fn reset(&mut self, read_from: Position) -> Vec<ConsumerKey> {
        self.in_flight.clear();
        self.unacked_messages = 0;
        self.read_from = read_from;
        self.reading = None;
        self.read_failure = None;
        self.skipping = false;
        self.consumers.drain(..).map(|consumer| consumer.key).collect()
    }

    /// The one consumer that is served, where only one is.
    #[must_use]
    pub fn active(&self) -> Option<ConsumerKey> {
        match self.kind? {
            SubscriptionType::Exclusive | SubscriptionType::Failover => {
                exclusive::active(&self.consumers)
            }
            SubscriptionType::Shared => None,
        }
    }

    /// Takes everything from a consumer that is no longer active, and tells both.
    fn change_active(&mut self, was: Option<ConsumerKey>, out: &mut Vec<Command>) {
        let now = self.active();
        if now == was || self.kind != Some(SubscriptionType::Failover) {
            return;
        }
        if let Some(was) = was {
            self.give_back(was, None);
            out.push(Command::ActiveChanged { consumer: was, active: false });
        }
        if let Some(now) = now {
            out.push(Command::ActiveChanged { consumer: now, active: true });
        }
    }

    /// Adds credit.
    pub fn flow(
        &mut self,
        key: ConsumerKey,
        messages: u32,
        bytes: u64,
        cursor: &Cursor,
        out: &mut Vec<Command>,
    ) {
        let Some(consumer) = self.consumer_mut(key) else { return };
        consumer.add_credit(messages, bytes);
        self.pump(cursor, out);
    }

    /// Hands out again what a consumer holds: `positions` of it, or all.
    pub fn redeliver(
        &mut self,
        key: ConsumerKey,
        positions: Option<&[Position]>,
        cursor: &Cursor,
        out: &mut Vec<Command>,
    ) {
        self.give_back(key, positions);
        self.pump(cursor, out);
    }

    fn give_back(&mut self, key: ConsumerKey, positions: Option<&[Position]>) {
        let freed = match positions {
            Some(positions) => {
                positions.iter().map(|position| self.in_flight.give_back(*position, key)).sum()
            }
            None => self.in_flight.give_back_all(key),
        };
        self.free(Released { holder: Some(key), messages: freed });
    }

    fn free(&mut self, released: Released) {
        let Some(key) = released.holder else { return };
        self.unacked_messages -= released.messages;
        if let Some(consumer) = self.consumer_mut(key) {
            consumer.unacked_messages -= released.messages;
        }
    }

    /// The span of an entry that is in flight or waits for replay.
    #[must_use]
    pub fn span_of(&self, position: Position) -> Option<EntrySpan> {
        self.in_flight.span_of(position)
    }

    /// More of these entries is acknowledged. [`Dispatcher::pump`] has to follow.
    pub fn acknowledged(&mut self, position: Position, cursor: &Cursor) {
        if let Some(released) = self.in_flight.acknowledged(position, cursor) {
            self.free(released);
        }
    }

    /// Everything up to and including `position` may be acknowledged. [`Dispatcher::pump`] has
    /// to follow.
    pub fn acknowledged_upto(&mut self, position: Position, cursor: &Cursor) {
        while let Some(released) = self.in_flight.pop_upto(position, cursor) {
            self.free(released);
        }
        // The last entry may be acknowledged in part.
        self.acknowledged(position, cursor);
    }

    /// Everything before `position` is gone: it is not read any more.
    pub fn skip_to(&mut self, position: Position) {
        self.read_from = self.read_from.max(position);
    }

    /// Everything confirmed has been considered.
    fn caught_up(&self) -> bool {
        self.last_confirmed.is_none_or(|last| self.read_from > last)
    }

    /// True if entries that are being confirmed could be handed out at once.
    #[must_use]
    pub fn wants_tail(&self) -> bool {
        self.reading.is_none()
            && self.read_failure.is_none()
            && self.caught_up()
            && !self.in_flight.has_replay()
            && self.pick().is_ok()
    }

    /// Entries were confirmed, in order, all since the last call.
    pub fn tail(
        &mut self,
        entries: &[ReadyEntry],
        last_confirmed: Option<Position>,
        cursor: &mut Cursor,
        out: &mut Vec<Command>,
    ) {
        if self.wants_tail() {
            self.offer_new(entries, cursor);
            self.flush(out);
        }
        self.confirmed(last_confirmed, cursor, out);
    }

    /// The topic ends here now.
    pub fn confirmed(
        &mut self,
        last_confirmed: Option<Position>,
        cursor: &Cursor,
        out: &mut Vec<Command>,
    ) {
        self.last_confirmed = last_confirmed.max(self.last_confirmed);
        self.pump(cursor, out);
    }

    /// The answer to a read.
    pub fn read_done(
        &mut self,
        token: ReadToken,
        result: Result<&[ReadyEntry], String>,
        cursor: &mut Cursor,
        out: &mut Vec<Command>,
    ) {
        let Some((_, reading)) = self.reading.take_if(|(newest, _)| *newest == token) else {
            return;
        };
        match result {
            Err(why) => self.read_failure = Some(why),
            Ok(entries) => match reading {
                Reading::New(from) => self.new_read(from, entries, cursor),
                Reading::Replay(first) => self.replay_read(first, entries, cursor),
            },
        }
        self.flush(out);
        self.pump(cursor, out);
    }

    fn new_read(&mut self, from: Position, entries: &[ReadyEntry], cursor: &mut Cursor) {
        // Anything else would skip entries.
        let follows = |first: Position| {
            first == from || (first.ledger > from.ledger && first.entry == EntryId(0))
        };
        if entries.first().is_some_and(|first| !follows(first.span.position)) {
            self.read_failure = Some(format!("something else was read than from {from} on"));
            return;
        }
        if entries.last().is_none_or(|last| last.span.position < self.read_from) {
            // Asking again at once would only spin.
            self.read_failure = Some(format!("nothing was read from {}", self.read_from));
            return;
        }
        // Where order matters, what came back meanwhile goes first; these are read again.
        if self.active().is_none() || !self.in_flight.has_replay() {
            self.offer_new(entries, cursor);
        }
    }

    fn offer_new(&mut self, entries: &[ReadyEntry], cursor: &mut Cursor) {
        let mut handed_out = false;
        for entry in entries {
            if entry.span.position < self.read_from {
                continue;
            }
            let unacked = cursor.unacked_in(&entry.span);
            if unacked > 0 {
                let Ok(to) = self.pick() else { return };
                let Some(holder) = self.hand_out(to, entry, unacked, 0, cursor) else { return };
                handed_out = true;
                self.in_flight.push(&entry.span, unacked, holder);
            }
            cursor.note(&entry.span, unacked);
            let position = entry.span.position;
            self.read_from = Position::new(position.ledger, position.entry.next());
        }
        self.skipping = !handed_out;
    }

    fn replay_read(&mut self, first: Position, entries: &[ReadyEntry], cursor: &Cursor) {
        if entries.first().is_none_or(|entry| entry.span.position != first) {
            self.read_failure = Some(format!("entry {first} was not read"));
            return;
        }
        let in_order = self.active().is_some();
        for entry in entries {
            // Where order matters, what was given back meanwhile and comes before goes first.
            if in_order && self.in_flight.first_replay() < Some(entry.span.position) {
                return;
            }
            let Some(redeliveries) = self.in_flight.replay_count(entry.span.position) else {
                continue;
            };
            let unacked = cursor.unacked_in(&entry.span);
            let Ok(to) = self.pick() else { return };
            let holder = self.hand_out(to, entry, unacked, redeliveries, cursor);
            let Some(holder) = holder else { return };
            self.in_flight.take_replay(entry.span.position, holder);
        }
    }

    /// Gives an entry to a consumer and takes its credit; answers which one it is. `None`: there is
    /// no such consumer, and nothing has changed.
    fn hand_out(
        &mut self,
        to: usize,
        entry: &ReadyEntry,
        unacked: u32,
        redelivery_count: u32,
        cursor: &Cursor,
    ) -> Option<ConsumerKey> {
        let consumer = self.consumers.get_mut(to)?;
        let whole = unacked == entry.span.messages;
        let bytes = entry.payload.len() as u64;
        let delivery = Delivery {
            position: entry.span.position,
            redelivery_count,
            acked_indexes: if whole {
                bytes::Bytes::new()
            } else {
                cursor.acked_indexes(&entry.span)
            },
            messages: unacked,
            payload: entry.payload.clone(),
            permit: entry.permit.clone(),
        };
        self.turn += 1;
        self.unacked_messages += u64::from(unacked);
        self.counters.delivered_messages += u64::from(unacked);
        self.counters.delivered_bytes += bytes;
        if redelivery_count > 0 {
            self.counters.redelivered_messages += u64::from(unacked);
        }
        let average = self.messages_per_entry_x8;
        self.messages_per_entry_x8 = average - average / 8 + u64::from(entry.span.messages);
        consumer.take(delivery, self.turn);
        Some(consumer.key)
    }

    fn flush(&mut self, out: &mut Vec<Command>) {
        for consumer in self.consumers.iter_mut().filter(|consumer| !consumer.outbox.is_empty()) {
            let deliveries = std::mem::take(&mut consumer.outbox);
            out.push(Command::Deliver { consumer: consumer.key, deliveries });
        }
    }

    /// Index of the consumer that gets the next entry, or why none does.
    fn pick(&self) -> Result<usize, NotMoving> {
        let kind = self.kind.ok_or(NotMoving::NoConsumer)?;
        let limit = self.limits.max_unacked_per_subscription;
        if !self.consumers.is_empty() && self.unacked_messages >= limit {
            return Err(NotMoving::SubscriptionUnacked { held: self.unacked_messages, limit });
        }
        match kind {
            SubscriptionType::Exclusive | SubscriptionType::Failover => {
                exclusive::pick(&self.consumers)
            }
            SubscriptionType::Shared => {
                shared::pick(&self.consumers, self.limits.max_unacked_per_consumer)
            }
        }
    }

    /// Asks for entries if there is somebody to take them.
    pub fn pump(&mut self, cursor: &Cursor, out: &mut Vec<Command>) {
        if self.reading.is_some() || self.read_failure.is_some() || self.pick().is_err() {
            return;
        }
        let (max_entries, max_bytes) = self.read_size(cursor);
        let (reading, target) = if self.in_flight.has_replay() {
            let runs = self.in_flight.replay_runs(max_entries);
            let Some(run) = runs.first() else { return };
            (Reading::Replay(Position::new(run.ledger, run.first)), ReadTarget::Runs(runs))
        } else if self.caught_up() {
            return;
        } else {
            (Reading::New(self.read_from), ReadTarget::From(self.read_from))
        };
        self.last_token = ReadToken(self.last_token.0 + 1);
        self.reading = Some((self.last_token, reading));
        out.push(Command::Read(ReadRequest {
            token: self.last_token,
            target,
            max_entries,
            max_bytes,
        }));
    }

    /// As much as the credit takes, going by the size of recent entries.
    fn read_size(&self, cursor: &Cursor) -> (u32, u64) {
        let (messages, bytes) = match self.active() {
            Some(_) => exclusive::credit(&self.consumers),
            None => shared::credit(&self.consumers, self.limits.max_unacked_per_consumer),
        };
        let room = self.limits.max_unacked_per_subscription.saturating_sub(self.unacked_messages);
        let entries = messages.min(room).saturating_mul(8).div_ceil(self.messages_per_entry_x8);
        // What is acknowledged takes no credit, so there the credit says nothing.
        let skipping = self.skipping && cursor.acked_beyond() > 0;
        let limit = self.limits.max_read_entries;
        let entries = u32::try_from(entries).unwrap_or(u32::MAX).clamp(1, limit);
        let max_bytes = self.limits.max_read_bytes;
        if skipping { (limit, max_bytes) } else { (entries, bytes.clamp(1, max_bytes)) }
    }

    /// Why nothing is being handed out.
    #[must_use]
    pub fn why_not_moving(&self) -> NotMoving {
        if self.consumers.is_empty() {
            return NotMoving::NoConsumer;
        }
        if self.caught_up() && !self.in_flight.has_replay() {
            return NotMoving::CaughtUp;
        }
        if let Err(why) = self.pick() {
            return why;
        }
        self.read_failure.clone().map_or(NotMoving::Reading, NotMoving::ReadFailed)
    }

    /// Why the last read failed, until [`Dispatcher::retry_read`].
    #[must_use]
    pub fn read_failure(&self) -> Option<&str> {
        self.read_failure.as_deref()
    }

    /// Goes on after a failed read.
    pub fn retry_read(&mut self, cursor: &Cursor, out: &mut Vec<Command>) {
        self.read_failure = None;
        self.pump(cursor, out);
    }

    /// Its type, once there was a consumer.
    #[must_use]
    pub fn kind(&self) -> Option<SubscriptionType> {
        self.kind
    }

    /// The next entry to read.
    #[must_use]
    pub fn read_from(&self) -> Position {
        self.read_from
    }

    /// The lowest entry that may still be read, to be handed out or again.
    #[must_use]
    pub fn lowest_read(&self) -> Position {
        self.in_flight.first_replay().map_or(self.read_from, |replay| replay.min(self.read_from))
    }

    /// Messages that consumers hold unacknowledged.
    #[must_use]
    pub fn unacked_messages(&self) -> u64 {
        self.unacked_messages
    }

    /// Entries that wait to be handed out again.
    #[must_use]
    pub fn replay_entries(&self) -> u64 {
        self.in_flight.replay_len() as u64
    }

    /// True while a read is under way.
    #[must_use]
    pub fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Counters since the topic's load.
    #[must_use]
    pub fn counters(&self) -> DispatchCounters {
        self.counters
    }

    /// The consumers, in the order in which they are served.
    pub fn consumers(&self) -> impl Iterator<Item = ConsumerNumbers> + '_ {
        self.consumers.iter().map(Consumer::numbers)
    }

    /// Their keys.
    pub fn keys(&self) -> impl Iterator<Item = ConsumerKey> + '_ {
        self.consumers.iter().map(|consumer| consumer.key)
    }

    fn find(&self, key: ConsumerKey) -> Option<usize> {
        self.consumers.iter().position(|consumer| consumer.key == key)
    }

    fn consumer_mut(&mut self, key: ConsumerKey) -> Option<&mut Consumer> {
        self.consumers.iter_mut().find(|consumer| consumer.key == key)
    }
}
