//! [`Engine`]: the state log's decisions, without I/O: what goes into the next entry, when a
//! change is durable, when the log rolls, snapshots, trims and gives up.
//!
//! One entry is in flight at a time; what is handed over meanwhile forms the next one, so a group
//! needs no timer. A change is applied to `cursors` when its entry is built: `cursors` is at any
//! time exactly what the entries built so far make of it, and a snapshot record that is put into
//! an entry fits its place in the log.
//!
//! A snapshot round begins with a marker, goes on with some cursors in each entry, and ends with a
//! marker. Once that is confirmed, replay may start at the first marker, and the ledgers before
//! it may go.
//!
//! When the ledger fails, the entry in flight has an unknown outcome. The keeper recovers the
//! ledger, and [`Engine::recovered`] tells whether the entry is in it; if not, it is the first of
//! the next ledger. So no entry is in the log twice.
//!
//! Invariants: an entry is appended to a ledger only when every entry of the ledgers before it is
//! confirmed; nothing is appended after the log has ended.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use geminga_ledger::observer::WriterFailure;
use geminga_proto::id::{EntryId, Lac, LedgerId, Position, TopicIncarnation};

use super::cursors::{Cursors, SnapshotAt};
use super::record::{EntryBuilder, MAX_RANGES, Record};
use super::{CursorId, StateLogConfig, StateLogError, StoredSubscription};
use crate::core::cursor::{CursorChange, CursorDelta, Frontier};
#[cfg(any(test, feature = "simulation"))]
use crate::core::defect::Defect;

/// Bytes of snapshot records that one entry takes along, so that receipts don't wait for long.
const SNAPSHOT_BYTES_PER_ENTRY: usize = 64 * 1024;

/// What the runtime has to do. `T` is what the caller gets back when its change is durable.
#[derive(Debug, PartialEq)]
pub(super) enum Effect<T> {
    /// Append to the current ledger; answer with [`Engine::appended`].
    Append(Bytes),
    /// From now on the next ledger is the current one; the one before takes no more.
    Switch,
    /// Tell callers, in order.
    Complete(Vec<T>, Result<(), StateLogError>),
    /// The log has ended.
    Ended(StateLogError),
    /// Something of [`Engine::task`] may have changed.
    Wake,
}

/// What the keeper has to do, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    /// Recover this ledger, then [`Engine::recovered`].
    Recover(LedgerId),
    /// Create the next ledger, then [`Engine::opened`].
    Roll,
    /// Let replay start here and delete the ledgers before, then [`Engine::trimmed`].
    Trim(Position),
    /// Close the current ledger, then [`Engine::closed`].
    Close,
}

#[derive(Debug)]
struct Queued<T> {
    /// `None`: the caller only waits for what is before.
    record: Option<Record>,
    token: Option<T>,
}

/// The entry in flight.
#[derive(Debug)]
struct Group<T> {
    bytes: Bytes,
    /// `None` until it is appended.
    entry: Option<EntryId>,
    tokens: Vec<T>,
    begins_round: bool,
    ends_round: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ledger {
    Open(LedgerId),
    Failed(LedgerId),
    /// The last one is closed; the next one is still to come.
    Missing,
}

#[derive(Debug)]
struct Round {
    number: u64,
    at: SnapshotAt,
    /// Of the entry where it begins, once that is appended.
    start: Option<Position>,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Engine<T> {
    config: StateLogConfig,
    cursors: Cursors,
    /// Subscriptions as the callers see them: with what waits in `queue`.
    names: BTreeMap<(TopicIncarnation, Arc<str>), CursorId>,
    next_id: CursorId,
    queue: VecDeque<Queued<T>>,
    group: Option<Group<T>>,
    ledger: Ledger,
    next_ledger: Option<LedgerId>,
    ledger_bytes: u64,
    round: Option<Round>,
    round_wanted: bool,
    last_round: u64,
    last_round_bytes: u64,
    /// Since the last round began.
    bytes_since_begin: u64,
    /// Since the last complete round began: what a replay would read.
    replay_bytes: u64,
    trim: Option<Position>,
    closing: bool,
    ended: Option<StateLogError>,
}

impl<T> Engine<T> {
    /// An engine that goes on with `cursors` in the open, empty `ledger`. `replayed_bytes`: how
    /// much the replay read.
    pub fn new(
        config: StateLogConfig,
        cursors: Cursors,
        next_id: CursorId,
        ledger: LedgerId,
        replayed_bytes: u64,
    ) -> Self {
        let name = |(id, cursor): (CursorId, &super::cursors::StoredCursor)| {
            ((cursor.topic, Arc::clone(&cursor.name)), id)
        };
        Self {
            names: cursors.iter().map(name).collect(),
            config,
            cursors,
            next_id,
            queue: VecDeque::new(),
            group: None,
            ledger: Ledger::Open(ledger),
            next_ledger: None,
            ledger_bytes: 0,
            round: None,
            round_wanted: false,
            last_round: 0,
            last_round_bytes: 0,
            bytes_since_begin: replayed_bytes,
            replay_bytes: replayed_bytes,
            trim: None,
            closing: false,
            ended: None,
        }
    }

    pub fn create(
        &mut self,
        topic: TopicIncarnation,
        name: &str,
        at: Frontier,
        token: T,
        fx: &mut Vec<Effect<T>>,
    ) -> Result<CursorId, StateLogError> {
        if let Some(error) = self.refusal() {
            return Err(error);
        }
        let name: Arc<str> = name.into();
        let key = (topic, Arc::clone(&name));
        if self.names.contains_key(&key) {
            return Err(StateLogError::Exists(name.to_string()));
        }
        let id = self.next_id;
        self.next_id = CursorId(id.0 + 1);
        self.names.insert(key, id);
        self.submit(Some(Record::Create { id, topic, name, at }), Some(token), fx);
        Ok(id)
    }

    pub fn delete(&mut self, id: CursorId, token: T, fx: &mut Vec<Effect<T>>) {
        match self.cursors.get(id) {
            Some(cursor) => {
                let key = (cursor.topic, Arc::clone(&cursor.name));
                // The name may be another subscription's by now: this one may have been deleted
                // before, in a record that waits.
                if self.names.get(&key) == Some(&id) {
                    self.names.remove(&key);
                }
            }
            // It waits to be created, or isn't there.
            None => self.names.retain(|_, known| *known != id),
        }
        self.submit(Some(Record::Delete { id }), Some(token), fx);
    }

    pub fn delete_topic(&mut self, topic: TopicIncarnation, token: T, fx: &mut Vec<Effect<T>>) {
        self.names.retain(|(known, _), _| *known != topic);
        self.submit(Some(Record::DeleteTopic { topic }), Some(token), fx);
    }

    pub fn change(
        &mut self,
        id: CursorId,
        change: Option<CursorChange>,
        token: T,
        fx: &mut Vec<Effect<T>>,
    ) {
        let record = match change {
            Some(CursorChange::Ack(delta)) if delta.acked.len() > MAX_RANGES => {
                // In parts, each of which may be applied alone; the rest goes with the last.
                let CursorDelta { frontier, upto, mut acked } = delta;
                while acked.len() > MAX_RANGES {
                    let rest = acked.split_off(MAX_RANGES);
                    let part = CursorDelta { acked, ..CursorDelta::default() };
                    let change = CursorChange::Ack(part);
                    self.queue(Some(Record::Change { id, change }), None, fx);
                    acked = rest;
                }
                let change = CursorChange::Ack(CursorDelta { frontier, upto, acked });
                Some(Record::Change { id, change })
            }
            change => change.map(|change| Record::Change { id, change }),
        };
        self.submit(record, Some(token), fx);
    }

    fn refusal(&self) -> Option<StateLogError> {
        self.ended.clone().or_else(|| self.closing.then_some(StateLogError::Closed))
    }

    fn queue(&mut self, record: Option<Record>, token: Option<T>, fx: &mut Vec<Effect<T>>) {
        match self.refusal() {
            Some(error) => fx.push(Effect::Complete(token.into_iter().collect(), Err(error))),
            None => self.queue.push_back(Queued { record, token }),
        }
    }

    fn submit(&mut self, record: Option<Record>, token: Option<T>, fx: &mut Vec<Effect<T>>) {
        self.queue(record, token, fx);
        self.pump(fx);
    }

    /// Builds and appends the next entry, if nothing is in flight.
    fn pump(&mut self, fx: &mut Vec<Effect<T>>) {
        if self.ended.is_some() || self.group.is_some() {
            return;
        }
        self.switch(fx);
        if !matches!(self.ledger, Ledger::Open(_)) {
            return;
        }
        let (group, idle) = self.build();
        if !idle.is_empty() {
            fx.push(Effect::Complete(idle, Ok(())));
        }
        if let Some(group) = group {
            fx.push(Effect::Append(group.bytes.clone()));
            self.group = Some(group);
        } else if self.closing && self.queue.is_empty() {
            fx.push(Effect::Wake);
        }
    }

    /// Goes over to the next ledger. Nothing is in flight, or it belongs to no ledger.
    fn switch(&mut self, fx: &mut Vec<Effect<T>>) {
        if matches!(self.ledger, Ledger::Failed(_)) {
            return;
        }
        if let Some(next) = self.next_ledger.take() {
            self.ledger = Ledger::Open(next);
            self.ledger_bytes = 0;
            fx.push(Effect::Switch);
        }
    }

    /// The next entry, and the callers whose changes needed none.
    fn build(&mut self) -> (Option<Group<T>>, Vec<T>) {
        let mut entry = EntryBuilder::new();
        let mut tokens = Vec::new();
        while entry.len() < self.config.max_entry_bytes
            && let Some(Queued { record, token }) = self.queue.pop_front()
        {
            // A change of a subscription that was deleted meanwhile changes nothing.
            if let Some(record) = record.filter(|record| self.cursors.apply(record)) {
                entry.push(&record);
            }
            tokens.extend(token);
        }
        let (begins_round, ends_round) = self.add_snapshot(&mut entry);
        if entry.is_empty() {
            return (None, tokens);
        }
        let bytes = entry.finish();
        let len = bytes.len() as u64;
        self.bytes_since_begin += len;
        self.replay_bytes += len;
        let group = Group { bytes, entry: None, tokens, begins_round, ends_round };
        (Some(group), Vec::new())
    }

    fn add_snapshot(&mut self, entry: &mut EntryBuilder) -> (bool, bool) {
        if self.closing {
            // A round that isn't complete counts for nothing; whoever opens the log begins anew.
            return (false, false);
        }
        let due = self.config.snapshot_after_bytes.max(self.last_round_bytes);
        let begins = self.round.is_none()
            && self.trim.is_none()
            && (self.round_wanted || self.bytes_since_begin >= due);
        if begins {
            self.round_wanted = false;
            self.bytes_since_begin = 0;
            self.last_round += 1;
            let number = self.last_round;
            entry.push(&Record::SnapshotBegin { round: number, next_id: self.next_id });
            let at = SnapshotAt::default();
            self.round = Some(Round { number, at, start: None, bytes: 0 });
        }
        let Some(round) = &mut self.round else { return (false, false) };
        let before = entry.len();
        while entry.len() - before < SNAPSHOT_BYTES_PER_ENTRY {
            let Some(record) = self.cursors.snapshot_next(&mut round.at) else {
                entry.push(&Record::SnapshotEnd { round: round.number });
                return (begins, true);
            };
            let at = entry.len();
            entry.push(&record);
            round.bytes += (entry.len() - at) as u64;
        }
        (begins, false)
    }

    /// The answer to [`Effect::Append`]: where the entry is, or that the ledger refused it.
    pub fn appended(&mut self, result: Result<EntryId, WriterFailure>, fx: &mut Vec<Effect<T>>) {
        let Ledger::Open(ledger) = self.ledger else { return };
        let Some(group) = &mut self.group else { return };
        match result {
            Ok(entry) => {
                group.entry = Some(entry);
                #[cfg(any(test, feature = "simulation"))]
                if self.config.planted == Some(Defect::StateLogBeforeConfirmed) {
                    let tokens = std::mem::take(&mut group.tokens);
                    fx.push(Effect::Complete(tokens, Ok(())));
                }
                self.ledger_bytes += group.bytes.len() as u64;
                if let Some(round) = self.round.as_mut().filter(|_| group.begins_round) {
                    round.start = Some(Position::new(ledger, entry));
                }
                if self.roll_is_due() {
                    fx.push(Effect::Wake);
                }
            }
            Err(failure) => self.failed(ledger, &failure, fx),
        }
    }

    fn roll_is_due(&self) -> bool {
        self.ledger_bytes >= self.config.ledger_max_bytes && self.next_ledger.is_none()
    }

    /// Everything in `ledger` up to `lac` is durable.
    pub fn confirmed(&mut self, ledger: LedgerId, lac: EntryId, fx: &mut Vec<Effect<T>>) {
        let current = self.ledger == Ledger::Open(ledger);
        let confirmed = |group: &mut Group<T>| group.entry.is_some_and(|entry| entry <= lac);
        if current && let Some(group) = self.group.take_if(confirmed) {
            self.complete(group, fx);
            self.pump(fx);
        }
    }

    fn complete(&mut self, group: Group<T>, fx: &mut Vec<Effect<T>>) {
        if !group.tokens.is_empty() {
            fx.push(Effect::Complete(group.tokens, Ok(())));
        }
        if group.ends_round
            && let Some(Round { start: Some(start), bytes, .. }) = self.round.take()
        {
            self.last_round_bytes = bytes;
            self.replay_bytes = self.bytes_since_begin;
            #[cfg(any(test, feature = "simulation"))]
            let start = match (self.config.planted, self.ledger, group.entry) {
                (Some(Defect::TrimPastSnapshot), Ledger::Open(ledger), Some(last)) => {
                    Position::new(ledger, EntryId(last.0 + 1))
                }
                _ => start,
            };
            self.trim = Some(start);
            fx.push(Effect::Wake);
        }
    }

    /// A ledger has ended under its owner.
    pub fn failed(&mut self, ledger: LedgerId, failure: &WriterFailure, fx: &mut Vec<Effect<T>>) {
        if self.ended.is_some() {
            return;
        }
        let current = self.ledger == Ledger::Open(ledger);
        let next = self.next_ledger == Some(ledger);
        if !current && !next && *failure != WriterFailure::Panicked {
            return;
        }
        match failure {
            // Whichever ledger it was: what was made of the news may be half done.
            WriterFailure::Panicked => {
                let why = "what writes or hears of a ledger failed inside the broker";
                self.end(StateLogError::Unavailable(why.to_owned()), fx);
            }
            WriterFailure::Fenced | WriterFailure::Deleted => self.end(StateLogError::Fenced, fx),
            // By the keeper, when everything is confirmed.
            WriterFailure::Closed if self.closing => {}
            WriterFailure::QuorumLost | WriterFailure::Diverged | WriterFailure::Closed => {
                if next {
                    self.next_ledger = None;
                } else {
                    self.ledger = Ledger::Failed(ledger);
                }
                fx.push(Effect::Wake);
            }
        }
    }

    /// The failed ledger is closed at `last`.
    pub fn recovered(&mut self, ledger: LedgerId, last: Lac, fx: &mut Vec<Effect<T>>) {
        if self.ledger != Ledger::Failed(ledger) || self.ended.is_some() {
            return;
        }
        self.ledger = Ledger::Missing;
        let stored = |group: &mut Group<T>| group.entry.is_some_and(|entry| last.covers(entry));
        if let Some(group) = self.group.take_if(stored) {
            self.complete(group, fx);
        }
        self.resume(fx);
    }

    /// The next ledger is open and recorded.
    pub fn opened(&mut self, ledger: LedgerId, fx: &mut Vec<Effect<T>>) {
        if self.ended.is_none() {
            self.next_ledger = Some(ledger);
            self.resume(fx);
        }
    }

    /// Goes on in the next ledger, if that is possible now.
    fn resume(&mut self, fx: &mut Vec<Effect<T>>) {
        if self.ledger == Ledger::Missing && self.next_ledger.is_some() {
            self.switch(fx);
            // What is not in the ledger before is the first entry of this one.
            if let Some(group) = &mut self.group {
                group.entry = None;
                fx.push(Effect::Append(group.bytes.clone()));
            }
        }
        self.pump(fx);
        fx.push(Effect::Wake);
    }

    /// Replay starts at the last complete snapshot now.
    pub fn trimmed(&mut self, fx: &mut Vec<Effect<T>>) {
        self.trim = None;
        self.pump(fx);
    }

    /// Wants a snapshot round, however little was written: the chain has become long.
    pub fn want_round(&mut self, fx: &mut Vec<Effect<T>>) {
        self.round_wanted = self.round.is_none() && self.trim.is_none();
        self.pump(fx);
    }

    /// Takes nothing more; the keeper gets [`Task::Close`] when everything is durable.
    pub fn close(&mut self, fx: &mut Vec<Effect<T>>) {
        self.closing = true;
        self.pump(fx);
        fx.push(Effect::Wake);
    }

    /// The log is closed, or must not go on.
    pub fn end(&mut self, error: StateLogError, fx: &mut Vec<Effect<T>>) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(error.clone());
        let group = self.group.take().into_iter().flat_map(|group| group.tokens);
        let queued = self.queue.drain(..).filter_map(|queued| queued.token);
        let tokens: Vec<T> = group.chain(queued).collect();
        if !tokens.is_empty() {
            fx.push(Effect::Complete(tokens, Err(error.clone())));
        }
        fx.push(Effect::Ended(error));
    }

    /// What the keeper has to do next.
    pub fn task(&self) -> Option<Task> {
        if self.ended.is_some() {
            return None;
        }
        match self.ledger {
            Ledger::Failed(ledger) => return Some(Task::Recover(ledger)),
            Ledger::Missing => return Some(Task::Roll),
            Ledger::Open(_) => {}
        }
        if self.closing {
            let drained = self.group.is_none() && self.queue.is_empty();
            return drained.then_some(Task::Close);
        }
        let trim = self.trim.map(Task::Trim);
        trim.or_else(|| self.roll_is_due().then_some(Task::Roll))
    }

    /// A topic's subscriptions, with changes that are not in an entry yet.
    pub fn subscriptions(&self, topic: TopicIncarnation) -> Vec<StoredSubscription> {
        let first = (topic, Arc::<str>::from(""));
        let of_topic = self.names.range(first..).take_while(|((of, _), _)| *of == topic);
        let found = of_topic.filter_map(|((_, name), id)| {
            let mut state = self.cursors.get(*id).map(|cursor| cursor.state.clone());
            for record in self.queue.iter().filter_map(|queued| queued.record.as_ref()) {
                match record {
                    Record::Create { id: created, at, .. } if created == id => {
                        state = Some(crate::core::cursor::CursorState::new(*at));
                    }
                    Record::Change { id: changed, change } if changed == id => {
                        state.as_mut()?.apply(change);
                    }
                    _ => {}
                }
            }
            Some(StoredSubscription { id: *id, name: Arc::clone(name), cursor: state? })
        });
        found.collect()
    }

    /// The cursors as far as entries were built.
    #[cfg(test)]
    pub fn cursors(&self) -> &Cursors {
        &self.cursors
    }

    pub fn cursor_count(&self) -> usize {
        self.cursors.len()
    }

    pub fn replay_bytes(&self) -> u64 {
        self.replay_bytes
    }

    pub fn is_closing(&self) -> bool {
        self.closing
    }

    pub fn ended(&self) -> Option<&StateLogError> {
        self.ended.as_ref()
    }
}
