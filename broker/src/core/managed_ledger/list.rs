//! [`LedgerList`]: the closed ledgers of a managed ledger, oldest first, as the metadata has them.
//!
//! The newest ledgers stand inline in the managed ledger's record; when they grow too many, the
//! older ones move to chunk records, which are written once and only shrink from the front by
//! trimming.
//!
//! Invariants: ledger ids rise; message indexes follow one another without gaps; every ledger
//! here has at least one entry.

use std::collections::VecDeque;

use geminga_meta::record::{self, ChunkLink, LedgerLink};
use geminga_proto::id::{EntryId, LedgerId, MessageIndex, Position};

/// Why a stored list can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// Ids don't rise.
    #[error("ledger {0} does not come after the ledger before it")]
    Order(LedgerId),
    /// Message indexes don't follow one another.
    #[error("ledger {ledger} starts at message {found} instead of {expected}")]
    Index {
        /// The ledger.
        ledger: LedgerId,
        /// Its first message's index.
        found: u64,
        /// What follows the ledger before it.
        expected: u64,
    },
}

/// A closed ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedLedger {
    /// The ledger.
    pub ledger: LedgerId,
    /// Its entries; at least 1.
    pub entries: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Index of its first message.
    pub first_index: u64,
    /// Its messages.
    pub messages: u64,
    /// When it was closed.
    pub closed_ms: u64,
}

impl ClosedLedger {
    /// Reads the stored form.
    #[must_use]
    pub fn from_record(ledger: LedgerId, closed: &record::ClosedLedger) -> Self {
        Self {
            ledger,
            entries: closed.entries,
            bytes: closed.bytes,
            first_index: closed.first_index.0,
            messages: closed.messages,
            closed_ms: closed.closed_ms,
        }
    }

    /// The stored form.
    #[must_use]
    pub fn to_link(self) -> LedgerLink {
        let closed = record::ClosedLedger {
            entries: self.entries,
            bytes: self.bytes,
            first_index: MessageIndex(self.first_index),
            messages: self.messages,
            closed_ms: self.closed_ms,
        };
        LedgerLink { ledger: self.ledger, closed: Some(closed) }
    }

    /// Index of the message after its last.
    #[must_use]
    pub fn end_index(&self) -> u64 {
        self.first_index + self.messages
    }

    /// Its last entry's place.
    #[must_use]
    pub fn last(&self) -> Position {
        Position::new(self.ledger, EntryId(self.entries.saturating_sub(1)))
    }
}

/// A chunk record: its number and how many ledgers it still lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Number of the chunk, part of its key: the id of the ledger that was its first one, so
    /// numbers rise along the list and are never used twice.
    pub number: u64,
    /// Ledgers in it.
    pub ledgers: usize,
}

/// What is kept after consumption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Keep what was closed less than so long ago.
    pub age_ms: u64,
    /// Keep so many bytes.
    pub bytes: u64,
}

/// The list.
#[derive(Debug, Clone, Default)]
pub struct LedgerList {
    closed: VecDeque<ClosedLedger>,
    /// Chunks that hold the oldest ledgers. Boxed because few topics have any.
    #[expect(clippy::box_collection, reason = "one word in every topic instead of four")]
    chunks: Option<Box<VecDeque<Chunk>>>,
}

impl LedgerList {
    /// Appends a closed ledger.
    ///
    /// # Errors
    /// [`ListError`] if it doesn't follow the last one.
    pub fn push(&mut self, ledger: ClosedLedger) -> Result<(), ListError> {
        if let Some(last) = self.closed.back() {
            if ledger.ledger <= last.ledger {
                return Err(ListError::Order(ledger.ledger));
            }
            let expected = last.end_index();
            if ledger.first_index != expected {
                let found = ledger.first_index;
                return Err(ListError::Index { ledger: ledger.ledger, found, expected });
            }
        }
        self.closed.push_back(ledger);
        Ok(())
    }

    /// States that the oldest ledgers not yet in a chunk are in this one.
    pub fn add_chunk(&mut self, chunk: Chunk) {
        self.chunks.get_or_insert_default().push_back(chunk);
    }

    /// The chunks, oldest first.
    pub fn chunks(&self) -> impl DoubleEndedIterator<Item = Chunk> + '_ {
        self.chunks.iter().flat_map(|chunks| chunks.iter().copied())
    }

    /// The chunks in their stored form.
    #[must_use]
    pub fn chunk_links(&self) -> Vec<ChunkLink> {
        let mut start = 0;
        let link = |chunk: Chunk| {
            let (first, last) = (start, start + chunk.ledgers - 1);
            start += chunk.ledgers;
            let (first, last) = (self.closed.get(first)?.ledger, self.closed.get(last)?.ledger);
            Some(ChunkLink { number: chunk.number, first_ledger: first, last_ledger: last })
        };
        self.chunks().filter_map(link).collect()
    }

    /// Moves the oldest `count` ledgers that are not in a chunk to a new one.
    pub fn chunk_oldest(&mut self, count: usize) -> Option<Chunk> {
        let first = self.closed.get(self.chunked()).filter(|_| count > 0)?;
        let count = count.min(self.closed.len() - self.chunked());
        let chunk = Chunk { number: first.ledger.0, ledgers: count };
        self.add_chunk(chunk);
        Some(chunk)
    }

    /// The ledgers of the `index`th chunk.
    pub fn in_chunk(&self, index: usize) -> impl Iterator<Item = &ClosedLedger> {
        let skip: usize = self.chunks().take(index).map(|chunk| chunk.ledgers).sum();
        let count = self.chunks().nth(index).map_or(0, |chunk| chunk.ledgers);
        self.closed.iter().skip(skip).take(count)
    }

    fn chunked(&self) -> usize {
        self.chunks().map(|chunk| chunk.ledgers).sum()
    }

    /// All ledgers, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &ClosedLedger> + ExactSizeIterator {
        self.closed.iter()
    }

    /// The ledgers that are not in a chunk.
    pub fn inline(&self) -> impl ExactSizeIterator<Item = &ClosedLedger> {
        self.closed.range(self.chunked()..)
    }

    /// Number of ledgers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.closed.len()
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.closed.is_empty()
    }

    /// The newest.
    #[must_use]
    pub fn last(&self) -> Option<&ClosedLedger> {
        self.closed.back()
    }

    /// The oldest.
    #[must_use]
    pub fn first(&self) -> Option<&ClosedLedger> {
        self.closed.front()
    }

    /// Bytes of all ledgers.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.closed.iter().map(|ledger| ledger.bytes).sum()
    }

    /// Entries of all ledgers.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.closed.iter().map(|ledger| ledger.entries).sum()
    }

    /// The first entry at or after `from`, with its ledger.
    #[must_use]
    pub fn seek(&self, from: Position) -> Option<(Position, &ClosedLedger)> {
        let at = self.closed.partition_point(|closed| closed.last() < from);
        let ledger = self.closed.get(at)?;
        let first = Position::new(ledger.ledger, EntryId(0));
        Some((first.max(from), ledger))
    }

    /// Messages of whole ledgers after `position`, and bytes likewise.
    #[must_use]
    pub fn bytes_after(&self, position: Option<Position>) -> u64 {
        let Some(position) = position else { return self.bytes() };
        let at = self.closed.partition_point(|closed| closed.last() <= position);
        let rest = self.closed.range(at..);
        rest.map(|ledger| {
            let consumed = if ledger.ledger == position.ledger { position.entry.0 + 1 } else { 0 };
            // Entries of a ledger count as equally large: nobody keeps their sizes.
            let left = u128::from(ledger.entries.saturating_sub(consumed));
            let share = u128::from(ledger.bytes) * left / u128::from(ledger.entries.max(1));
            u64::try_from(share).unwrap_or(u64::MAX)
        })
        .sum()
    }

    /// How many of the oldest ledgers may go: those that hold only messages below `consumed` and
    /// are too old *or* beyond the bytes that are kept, counted with `open_bytes` from the newest.
    #[must_use]
    pub fn trimmable(
        &self,
        consumed: MessageIndex,
        retention: Retention,
        now_ms: u64,
        open_bytes: u64,
    ) -> usize {
        let mut kept = self.bytes().saturating_add(open_bytes);
        let mut count = 0;
        for ledger in &self.closed {
            let consumed = ledger.end_index() <= consumed.0;
            let old = now_ms.saturating_sub(ledger.closed_ms) >= retention.age_ms;
            let over = kept > retention.bytes;
            if !consumed || !(old || over) {
                break;
            }
            kept -= ledger.bytes;
            count += 1;
        }
        count
    }

    /// Takes the oldest ledgers out. Answers what became of the chunks.
    pub fn pop_front(&mut self, count: usize) -> TrimmedChunks {
        self.closed.drain(..count.min(self.closed.len()));
        let mut trimmed = TrimmedChunks::default();
        let mut left = count;
        while left > 0 {
            let Some(chunk) = self.chunks.as_mut().and_then(|chunks| chunks.front_mut()) else {
                break;
            };
            if chunk.ledgers > left {
                chunk.ledgers -= left;
                trimmed.shrunk = Some(*chunk);
                break;
            }
            left -= chunk.ledgers;
            trimmed.gone.push(chunk.number);
            self.chunks.as_mut().map(|chunks| chunks.pop_front());
        }
        if self.chunks.as_ref().is_some_and(|chunks| chunks.is_empty()) {
            self.chunks = None;
        }
        trimmed
    }
}

/// What trimming did to chunk records.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct TrimmedChunks {
    /// These are to be deleted.
    pub gone: Vec<u64>,
    /// This one is to be rewritten with so many of the list's first ledgers.
    pub shrunk: Option<Chunk>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ledgers: &[(u64, u64, u64)]) -> LedgerList {
        let mut list = LedgerList::default();
        let mut first_index = 0;
        for &(id, entries, closed_ms) in ledgers {
            let ledger = LedgerId(id);
            let closed = ClosedLedger {
                ledger,
                entries,
                bytes: entries * 10,
                first_index,
                messages: entries,
                closed_ms,
            };
            list.push(closed).expect("in order");
            first_index += entries;
        }
        list
    }

    fn at(ledger: u64, entry: u64) -> Position {
        Position::new(LedgerId(ledger), EntryId(entry))
    }

    #[test]
    fn a_list_out_of_order_or_with_a_gap_in_its_indexes_is_refused() {
        let mut list = list(&[(3, 5, 0)]);
        let next = ClosedLedger { ledger: LedgerId(4), first_index: 5, ..list.closed[0] };
        let early = ClosedLedger { ledger: LedgerId(3), ..next };
        assert_eq!(list.push(early), Err(ListError::Order(LedgerId(3))));
        let gap = ClosedLedger { first_index: 6, ..next };
        let error = ListError::Index { ledger: LedgerId(4), found: 6, expected: 5 };
        assert_eq!(list.push(gap), Err(error));
        assert_eq!(list.push(next), Ok(()));
    }

    #[test]
    fn seeking_goes_over_the_end_of_a_ledger_and_over_trimmed_ones() {
        let list = list(&[(3, 5, 0), (7, 2, 0)]);
        let place = |from| list.seek(from).map(|(position, _)| position);
        assert_eq!(place(at(0, 0)), Some(at(3, 0)));
        assert_eq!(place(at(3, 4)), Some(at(3, 4)));
        assert_eq!(place(at(3, 5)), Some(at(7, 0)));
        assert_eq!(place(at(5, 9)), Some(at(7, 0)));
        assert_eq!(place(at(7, 2)), None);
    }

    #[test]
    fn trimming_stops_at_the_lowest_cursor_and_at_what_retention_keeps() {
        let list = list(&[(1, 5, 100), (2, 5, 200), (3, 5, 300)]);
        let none = Retention { age_ms: 0, bytes: 0 };
        let trim = |consumed, retention| list.trimmable(consumed, retention, 1_000, 0);
        assert_eq!(trim(MessageIndex(0), none), 0);
        assert_eq!(trim(MessageIndex(4), none), 0);
        assert_eq!(trim(MessageIndex(5), none), 1);
        assert_eq!(trim(MessageIndex(15), none), 3);
        // It goes when it is too old or beyond the bytes.
        let keep = |age_ms, bytes| Retention { age_ms, bytes };
        assert_eq!(trim(MessageIndex(15), keep(750, u64::MAX)), 2);
        assert_eq!(trim(MessageIndex(15), keep(u64::MAX, 100)), 1);
        assert_eq!(trim(MessageIndex(15), keep(u64::MAX, u64::MAX)), 0);
        assert_eq!(list.trimmable(MessageIndex(15), keep(u64::MAX, 100), 1_000, 60), 3);
    }

    #[test]
    fn trimming_deletes_whole_chunks_and_shrinks_one() {
        let mut list = list(&[(1, 1, 0), (2, 1, 0), (3, 1, 0), (4, 1, 0), (5, 1, 0)]);
        list.add_chunk(Chunk { number: 0, ledgers: 2 });
        list.add_chunk(Chunk { number: 1, ledgers: 2 });
        assert_eq!(list.inline().count(), 1);
        let shrunk = Some(Chunk { number: 1, ledgers: 1 });
        assert_eq!(list.pop_front(3), TrimmedChunks { gone: vec![0], shrunk });
        assert_eq!(list.first().map(|ledger| ledger.ledger), Some(LedgerId(4)));
        assert_eq!(list.pop_front(2), TrimmedChunks { gone: vec![1], shrunk: None });
        assert!(list.is_empty() && list.chunks().next().is_none());
    }

    #[test]
    fn bytes_after_a_position_count_a_ledgers_share() {
        let list = list(&[(1, 5, 0), (2, 5, 0)]);
        assert_eq!(list.bytes_after(None), 100);
        assert_eq!(list.bytes_after(Some(at(1, 1))), 80);
        assert_eq!(list.bytes_after(Some(at(1, 4))), 50);
        assert_eq!(list.bytes_after(Some(at(2, 4))), 0);
    }
}
