//! [`PublishQueue`]: entries on their way into a managed ledger, in publish order, and the stamps
//! that they get: message index and broker timestamp.
//!
//! The queue's front has been appended to the open ledger under consecutive entry ids; what
//! follows waits for a ledger. Entries leave at the front only, once they are confirmed, so what
//! is reported is in publish order whatever happens to ledgers meanwhile.
//!
//! Invariants: indexes follow one another without gaps from the first message of the topic;
//! timestamps never fall; at most one ledger has unconfirmed entries.

use std::collections::VecDeque;

use geminga_proto::entry::{BrokerHeader, stored_entry};
use geminga_proto::id::{EntryId, Lac, MessageIndex};
use geminga_proto::payload::Payload;

use bytes::Bytes;

use crate::core::budget::BytePermit;

/// An entry to be published.
#[derive(Debug)]
pub struct NewEntry {
    /// Who hears of it: a producer's number in its topic.
    pub producer: u64,
    /// As the producer sent it.
    pub sequence_id: u64,
    /// Its messages; at least 1.
    pub messages: u32,
    /// As the producer sent it.
    pub entry: Bytes,
    /// Its bytes of the budget.
    pub permit: BytePermit,
}

/// An entry that is not confirmed yet.
#[derive(Debug)]
pub struct PendingEntry {
    /// Who hears of it.
    pub producer: u64,
    /// As the producer sent it.
    pub sequence_id: u64,
    /// Index of its first message.
    pub first_index: MessageIndex,
    /// Its messages.
    pub messages: u32,
    /// Bytes as the producer sent it.
    pub entry_bytes: u32,
    /// Broker header and the producer's entry.
    pub payload: Payload,
    /// Its bytes of the budget.
    pub permit: BytePermit,
}

/// The queue.
#[derive(Debug, Default)]
pub struct PublishQueue {
    pending: VecDeque<PendingEntry>,
    /// So many at the front are in the open ledger.
    appended: usize,
    /// Entry id of the first pending entry that is appended; else of the next one.
    next_confirmed: EntryId,
    next_index: u64,
    last_timestamp_ms: u64,
    pending_bytes: u64,
}

/// Recovery found something else than what this queue wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ledger ends at entry {found}, but its owner knows only entries {first} to {end}")]
pub struct ForeignEnd {
    /// Where the ledger ends.
    pub found: Lac,
    /// First entry that was not confirmed.
    pub first: EntryId,
    /// First entry that was not written.
    pub end: EntryId,
}

impl PublishQueue {
    /// A queue that goes on where the topic's stored entries end.
    #[must_use]
    pub fn resume(next_index: MessageIndex, last_timestamp_ms: u64) -> Self {
        Self { next_index: next_index.0, last_timestamp_ms, ..Self::default() }
    }

    /// Stamps an entry and takes it in, behind all others.
    pub fn push(&mut self, new: NewEntry, now_ms: u64) {
        let timestamp_ms = now_ms.max(self.last_timestamp_ms);
        self.last_timestamp_ms = timestamp_ms;
        let first_index = self.next_index;
        self.next_index += u64::from(new.messages);
        let header = BrokerHeader { timestamp_ms, last_index: self.next_index - 1 };
        let entry_bytes = u32::try_from(new.entry.len()).unwrap_or(u32::MAX);
        self.pending_bytes += u64::from(entry_bytes);
        self.pending.push_back(PendingEntry {
            producer: new.producer,
            sequence_id: new.sequence_id,
            first_index: MessageIndex(first_index),
            messages: new.messages,
            entry_bytes,
            payload: stored_entry(header, new.entry),
            permit: new.permit,
        });
    }

    /// The next entry to append to the open ledger; [`Self::mark_appended`] must follow if it is
    /// taken.
    #[must_use]
    pub fn next_to_append(&self) -> Option<&Payload> {
        self.pending.get(self.appended).map(|entry| &entry.payload)
    }

    /// The entry from [`Self::next_to_append`] is in the open ledger, as `entry`.
    ///
    /// # Panics
    /// If the ledger skipped an id: what is confirmed could no longer be told.
    pub fn mark_appended(&mut self, entry: EntryId) {
        let expected = self.next_confirmed.0 + self.appended as u64;
        assert_eq!(entry.0, expected, "a ledger gives out consecutive entry ids");
        self.appended += 1;
    }

    /// The open ledger is a new, empty one.
    ///
    /// # Panics
    /// If entries of the ledger before it are unconfirmed.
    pub fn begin_ledger(&mut self) {
        assert_eq!(self.appended, 0, "only one ledger has unconfirmed entries");
        self.next_confirmed = EntryId(0);
    }

    /// Takes the entries out that are confirmed, with their ids, in order.
    pub fn confirm(&mut self, lac: EntryId) -> impl Iterator<Item = (EntryId, PendingEntry)> + '_ {
        let end = lac.0.saturating_add(1).saturating_sub(self.next_confirmed.0);
        let count = usize::try_from(end).unwrap_or(usize::MAX).min(self.appended);
        let first = self.next_confirmed.0;
        self.appended -= count;
        self.next_confirmed.0 += count as u64;
        let bytes: u64 =
            self.pending.range(..count).map(|entry| u64::from(entry.entry_bytes)).sum();
        self.pending_bytes -= bytes;
        self.pending.drain(..count).zip(first..).map(|(entry, id)| (EntryId(id), entry))
    }

    /// The open ledger failed, and its recovery found its end at `last`: what is beyond goes into
    /// the next ledger. The confirmed ones are to be taken with [`Self::confirm`] first.
    ///
    /// # Errors
    /// [`ForeignEnd`] if the ledger holds what this queue didn't write, or lacks what was
    /// confirmed.
    pub fn check_end(&self, last: Lac) -> Result<(), ForeignEnd> {
        let end = EntryId(self.next_confirmed.0 + self.appended as u64);
        let next = last.next_entry();
        if next < self.next_confirmed || next > end {
            return Err(ForeignEnd { found: last, first: self.next_confirmed, end });
        }
        Ok(())
    }

    /// Index of the message after those in the open ledger up to `last`.
    #[must_use]
    pub fn index_after(&self, last: Lac) -> MessageIndex {
        let confirmed = last.next_entry().0.saturating_sub(self.next_confirmed.0);
        let entry = usize::try_from(confirmed).ok().and_then(|count| self.pending.get(count));
        entry.map_or(MessageIndex(self.next_index), |entry| entry.first_index)
    }

    /// What was appended and not confirmed is to be appended again, to the next ledger.
    pub fn rewind(&mut self) {
        self.appended = 0;
    }

    /// Gives up all entries, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = PendingEntry> + '_ {
        self.appended = 0;
        self.pending_bytes = 0;
        self.pending.drain(..)
    }

    /// Entries in the open ledger that are not confirmed.
    #[must_use]
    pub fn appended(&self) -> usize {
        self.appended
    }

    /// True if no entry is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Bytes under way, as the producers sent them.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// Index after the last confirmed message.
    #[must_use]
    pub fn confirmed_index(&self) -> MessageIndex {
        self.pending.front().map_or(MessageIndex(self.next_index), |entry| entry.first_index)
    }

    /// The latest timestamp given.
    #[must_use]
    pub fn last_timestamp_ms(&self) -> u64 {
        self.last_timestamp_ms
    }

    /// Gives memory back that a burst needed.
    pub fn shrink(&mut self) {
        if self.pending.is_empty() {
            self.pending = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::budget::ByteBudget;
    use geminga_proto::entry::split_stored;

    fn push(queue: &mut PublishQueue, sequence_id: u64, messages: u32, now_ms: u64) {
        let permit = ByteBudget::new(1 << 20, 1).try_acquire(10).expect("free");
        let entry = Bytes::from_static(b"0123456789");
        queue.push(NewEntry { producer: 1, sequence_id, messages, entry, permit }, now_ms);
    }

    fn append(queue: &mut PublishQueue, ids: std::ops::Range<u64>) {
        for id in ids {
            assert!(queue.next_to_append().is_some());
            queue.mark_appended(EntryId(id));
        }
    }

    fn confirmed(queue: &mut PublishQueue, lac: u64) -> Vec<(u64, u64, u64)> {
        let entries = queue.confirm(EntryId(lac));
        entries.map(|(id, entry)| (id.0, entry.sequence_id, entry.first_index.0)).collect()
    }

    #[test]
    fn entries_leave_in_publish_order_with_exact_indexes() {
        let mut queue = PublishQueue::resume(MessageIndex(100), 5);
        for (sequence_id, messages) in [(1, 3), (2, 1), (3, 10)] {
            push(&mut queue, sequence_id, messages, 9);
        }
        append(&mut queue, 0..2);
        assert_eq!(confirmed(&mut queue, 0), [(0, 1, 100)]);
        assert_eq!(queue.confirmed_index(), MessageIndex(103));
        // A confirmation beyond what was appended covers only that.
        assert_eq!(confirmed(&mut queue, 7), [(1, 2, 103)]);
        append(&mut queue, 2..3);
        assert_eq!(confirmed(&mut queue, 2), [(2, 3, 104)]);
        assert_eq!(queue.confirmed_index(), MessageIndex(114));
        assert_eq!(queue.pending_bytes(), 0);
    }

    #[test]
    fn the_timestamp_never_falls_even_if_the_clock_does() {
        let mut queue = PublishQueue::resume(MessageIndex(0), 50);
        for now_ms in [40, 60, 55] {
            push(&mut queue, 0, 1, now_ms);
        }
        append(&mut queue, 0..3);
        let stamps: Vec<u64> = queue
            .confirm(EntryId(2))
            .map(|(_, entry)| {
                split_stored(&entry.payload.into_bytes()).expect("valid").0.timestamp_ms
            })
            .collect();
        assert_eq!(stamps, [50, 60, 60]);
    }

    #[test]
    fn after_a_failed_ledger_the_rest_is_appended_again_in_order() {
        let mut queue = PublishQueue::default();
        for sequence_id in 1..=4 {
            push(&mut queue, sequence_id, 2, 1);
        }
        append(&mut queue, 0..3);
        assert_eq!(queue.check_end(Lac(Some(EntryId(1)))), Ok(()));
        assert_eq!(confirmed(&mut queue, 1), [(0, 1, 0), (1, 2, 2)]);
        queue.rewind();
        queue.begin_ledger();
        append(&mut queue, 0..2);
        assert_eq!(confirmed(&mut queue, 1), [(0, 3, 4), (1, 4, 6)]);
    }

    #[test]
    fn an_end_that_this_owner_cannot_have_written_is_refused() {
        let mut queue = PublishQueue::default();
        for sequence_id in 1..=3 {
            push(&mut queue, sequence_id, 1, 1);
        }
        append(&mut queue, 0..3);
        assert_eq!(confirmed(&mut queue, 1).len(), 2);
        assert!(queue.check_end(Lac(Some(EntryId(0)))).is_err());
        assert!(queue.check_end(Lac::NONE).is_err());
        assert!(queue.check_end(Lac(Some(EntryId(3)))).is_err());
        assert_eq!(queue.check_end(Lac(Some(EntryId(1)))), Ok(()));
        assert_eq!(queue.check_end(Lac(Some(EntryId(2)))), Ok(()));
    }
}
