//! [`Log`]: a topic's storage as its owner runs it: the managed ledger's list, the open ledger,
//! and the queue of entries on their way into it. Lives under the topic's lock.
//!
//! Three ledgers can be in hand: `current` takes appends; `next` was created by rolling and waits
//! until everything in `current` is confirmed; `closing` takes none any more and is to be closed
//! and put into the list. So at most one ledger ever has unconfirmed entries, and what is
//! confirmed is confirmed in publish order.
//!
//! It does no I/O but `LedgerWriter::append`, which never blocks.

use geminga_ledger::error::AppendRefused;
use geminga_ledger::observer::WriterFailure;
use geminga_ledger::writer::LedgerWriter;
use geminga_proto::env::Monotonic;
use geminga_proto::id::{EntryId, LedgerId, MessageIndex, Position};

use crate::core::managed_ledger::ManagedLedger;
use crate::core::managed_ledger::list::ClosedLedger;
use crate::core::managed_ledger::queue::PublishQueue;
use crate::core::subscription::TopicEnd;

/// Tells a ledger's observer from those of ledgers before it. Never reused in a topic's life.
pub type Generation = u64;

/// A ledger that this owner created.
#[derive(Debug)]
pub struct OpenLedger {
    /// Appends to it and reads it.
    pub writer: LedgerWriter,
    /// The ledger.
    pub id: LedgerId,
    /// Of its observer.
    pub generation: Generation,
    /// Index of its first message.
    pub first_index: MessageIndex,
    /// Index of the message after its last; set when it stops being the current one.
    pub end_index: MessageIndex,
    /// Entries appended.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When it was opened.
    pub opened: Monotonic,
    /// When it last took an entry.
    pub last_append: Monotonic,
}

/// Where entries can be read.
#[derive(Debug, Clone)]
pub enum Source {
    /// A closed ledger.
    Closed,
    /// The own ledger.
    Own(LedgerWriter),
}

/// A run of confirmed entries.
#[derive(Debug, Clone)]
pub struct Place {
    /// The first one.
    pub first: Position,
    /// How many there are in its ledger from there on; at least 1.
    pub entries: u64,
    /// Where they can be read.
    pub source: Source,
}

/// How it stands with a wider ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wider {
    /// None is wanted, or can be had.
    #[default]
    No,
    /// The topic has a turn, which hasn't come.
    Waits,
    /// Its turn has come.
    Due,
}

/// The storage of a topic.
#[derive(Debug)]
pub struct Log {
    /// The list.
    pub ledgers: ManagedLedger,
    /// Entries under way.
    pub queue: PublishQueue,
    /// The ledger that takes appends.
    pub current: Option<Box<OpenLedger>>,
    /// The one that follows it.
    pub next: Option<Box<OpenLedger>>,
    /// The one before it.
    pub closing: Option<Box<OpenLedger>>,
    /// Why `current` takes no more.
    pub failed: Option<WriterFailure>,
    /// Whether `current`, which has too few bookies, is to be followed by one that has them all.
    pub wider: Wider,
    /// True while the bookies are full and appends wait.
    pub storage_full: bool,
    /// The last confirmed entry that is kept, or was before it was trimmed.
    pub last_confirmed: Option<Position>,
    generations: Generation,
    /// Entries of the newest ledger that may be in the tail cache: from the first up to, and not
    /// with, the second.
    in_cache: Option<(LedgerId, EntryId, EntryId)>,
}

impl Log {
    /// Whether another ledger may follow the current one now.
    #[must_use]
    pub fn may_roll(&self) -> bool {
        self.next.is_none() && self.closing.is_none() && !self.storage_full
    }

    /// The storage of a loaded topic, without an open ledger.
    #[must_use]
    pub fn new(ledgers: ManagedLedger) -> Self {
        Self {
            queue: PublishQueue::resume(ledgers.next_index, ledgers.last_timestamp_ms),
            last_confirmed: ledgers.list.last().map(ClosedLedger::last),
            ledgers,
            current: None,
            next: None,
            closing: None,
            failed: None,
            wider: Wider::No,
            storage_full: false,
            generations: 0,
            in_cache: None,
        }
    }

    /// Where the topic ends.
    #[must_use]
    pub fn end(&self) -> TopicEnd {
        TopicEnd { last_confirmed: self.last_confirmed, next_index: self.queue.confirmed_index() }
    }

    /// A number for a new ledger's observer.
    pub fn next_generation(&mut self) -> Generation {
        self.generations += 1;
        self.generations
    }

    /// Takes a new ledger in, behind the current one if there is one.
    pub fn add_ledger(&mut self, writer: LedgerWriter, generation: Generation, now: Monotonic) {
        let ledger = Box::new(OpenLedger {
            id: writer.id(),
            writer,
            generation,
            first_index: MessageIndex(0),
            end_index: MessageIndex(0),
            entries: 0,
            bytes: 0,
            opened: now,
            last_append: now,
        });
        self.next = Some(ledger);
        self.pump(now);
    }

    /// True if the observer of this generation speaks of the ledger that takes appends.
    #[must_use]
    pub fn is_current(&self, generation: Generation) -> bool {
        self.current.as_ref().is_some_and(|current| current.generation == generation)
    }

    /// Moves on whatever can: changes to the next ledger, appends what waits.
    pub fn pump(&mut self, now: Monotonic) {
        if self.failed.is_some() {
            return;
        }
        // While the ledger before it is still to be closed, the current one goes on.
        let may_retire = self.current.is_none() || self.closing.is_none();
        if self.next.is_some() && may_retire && !self.retire(now) {
            return;
        }
        let Some(current) = &mut self.current else { return };
        while let Some(payload) = self.queue.next_to_append() {
            let bytes = payload.len() as u64;
            match current.writer.append(payload.clone()) {
                Ok(entry) => {
                    self.queue.mark_appended(entry);
                    current.entries += 1;
                    current.bytes += bytes;
                    current.last_append = now;
                }
                // Tried again when something is confirmed.
                Err(AppendRefused::TooManyPending { .. }) => return,
                Err(AppendRefused::Closing) => return,
                Err(AppendRefused::Failed(failure)) => {
                    self.failed = Some(failure);
                    return;
                }
            }
        }
    }

    /// Lets `next` take the place of `current`, once everything in that is confirmed. Answers
    /// whether appends may go on.
    fn retire(&mut self, now: Monotonic) -> bool {
        if self.current.is_some() {
            if self.queue.appended() > 0 {
                return false;
            }
            self.stop_current();
        }
        if let Some(mut next) = self.next.take() {
            self.queue.begin_ledger();
            next.first_index = self.queue.confirmed_index();
            next.last_append = now;
            self.current = Some(next);
        }
        true
    }

    /// The current ledger, of which everything is confirmed, is to be closed. Nobody hears it any
    /// more: should the disks be full still, the next one says so.
    pub fn stop_current(&mut self) {
        if let Some(mut current) = self.current.take() {
            self.storage_full = false;
            current.end_index = self.queue.confirmed_index();
            self.closing = Some(current);
        }
    }

    /// Entries went into the tail cache.
    pub fn cached(&mut self, ledger: LedgerId, first: EntryId, last: EntryId) {
        let end = last.next();
        self.in_cache = match self.in_cache {
            Some((same, start, _)) if same == ledger => Some((ledger, start, end)),
            // What is left of the ledger before it goes as the cache fills.
            _ => Some((ledger, first, end)),
        };
    }

    /// True if entries may be in the tail cache.
    #[must_use]
    pub fn has_cached(&self) -> bool {
        self.in_cache.is_some()
    }

    /// Nobody will read what is before `lowest` (`None`: nobody reads). Answers what the cache
    /// may forget: what is before an entry of a ledger.
    pub fn forget_cached(&mut self, lowest: Option<Position>) -> Option<(LedgerId, EntryId)> {
        let (ledger, start, end) = self.in_cache?;
        let all = Position::new(ledger, end);
        let lowest = lowest.unwrap_or(all);
        if lowest >= all {
            self.in_cache = None;
            return Some((ledger, end));
        }
        if lowest <= Position::new(ledger, start) {
            return None;
        }
        self.in_cache = Some((ledger, lowest.entry, end));
        Some((ledger, lowest.entry))
    }

    /// Bytes in ledgers that are not in the list.
    #[must_use]
    pub fn open_bytes(&self) -> u64 {
        self.closing.iter().chain(&self.current).map(|ledger| ledger.bytes).sum()
    }

    /// Bytes kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ledgers.list.bytes() + self.open_bytes()
    }

    /// Confirmed entries in ledgers that are not in the list, oldest first.
    fn own(&self) -> impl Iterator<Item = (&OpenLedger, u64)> {
        let confirmed = |ledger: &OpenLedger| match self.last_confirmed {
            Some(last) if last.ledger == ledger.id => last.entry.0 + 1,
            Some(last) if last.ledger > ledger.id => ledger.entries,
            _ => 0,
        };
        let own = self.closing.iter().chain(&self.current);
        own.map(move |ledger| (&**ledger, confirmed(ledger)))
    }

    /// The first confirmed entry at or after `from`, with those that follow it in its ledger.
    #[must_use]
    pub fn locate(&self, from: Position) -> Option<Place> {
        if let Some((first, ledger)) = self.ledgers.list.seek(from) {
            let entries = ledger.entries - first.entry.0;
            return Some(Place { first, entries, source: Source::Closed });
        }
        self.own().find_map(|(ledger, confirmed)| {
            let first = from.max(Position::new(ledger.id, EntryId(0)));
            let available = first.ledger == ledger.id && first.entry.0 < confirmed;
            available.then(|| Place {
                first,
                entries: confirmed - first.entry.0,
                source: Source::Own(ledger.writer.clone()),
            })
        })
    }

    /// The confirmed entry right before `position`.
    #[must_use]
    pub fn entry_before(&self, position: Position) -> Option<Position> {
        if let Some(entry) = position.entry.previous() {
            return Some(Position::new(position.ledger, entry));
        }
        let own: Vec<_> = self.own().collect();
        let own = own.into_iter().rev().filter(|(_, confirmed)| *confirmed > 0);
        let own = own.map(|(ledger, confirmed)| {
            Position::new(ledger.id, EntryId(confirmed.saturating_sub(1)))
        });
        let closed = self.ledgers.list.iter().rev().map(ClosedLedger::last);
        own.chain(closed).find(|last| *last < position)
    }

    /// Where the first entry that is kept is, or will be.
    #[must_use]
    pub fn start(&self) -> (Position, MessageIndex) {
        if let Some(first) = self.ledgers.list.first() {
            let position = Position::new(first.ledger, EntryId(0));
            return (position, MessageIndex(first.first_index));
        }
        match self.closing.as_ref().or(self.current.as_ref()) {
            Some(ledger) => (Position::new(ledger.id, EntryId(0)), ledger.first_index),
            None => (Position::default(), self.queue.confirmed_index()),
        }
    }

    /// Right behind the last confirmed entry.
    #[must_use]
    pub fn tail(&self) -> (Position, MessageIndex) {
        let behind = |last: Position| Position::new(last.ledger, last.entry.next());
        (self.last_confirmed.map(behind).unwrap_or_default(), self.queue.confirmed_index())
    }

    /// Bytes of what comes after `position`, whole entries of about the same size.
    #[must_use]
    pub fn bytes_after(&self, position: Option<Position>) -> u64 {
        let own = self.own().map(|(ledger, confirmed)| {
            let consumed = match position {
                Some(position) if position.ledger > ledger.id => confirmed,
                Some(position) if position.ledger == ledger.id => position.entry.0 + 1,
                _ => 0,
            };
            let left = u128::from(confirmed.saturating_sub(consumed));
            let share = u128::from(ledger.bytes) * left / u128::from(ledger.entries.max(1));
            u64::try_from(share).unwrap_or(u64::MAX)
        });
        own.sum::<u64>() + self.ledgers.list.bytes_after(position)
    }

    /// How the storage does, in a word.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (&self.failed, &self.next, &self.current) {
            (Some(_), ..) => "recovering",
            (None, Some(_), _) => "rolling",
            (None, None, Some(_)) => "open",
            (None, None, None) => "closed",
        }
    }
}
