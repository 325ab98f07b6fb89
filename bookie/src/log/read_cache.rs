//! [`ReadCache`]: entries that were read and may be asked for again, or for the first time soon.
//!
//! Two shares that don't touch each other: *tail*, what was read from segments that are still
//! written to, which several readers may want; and *ahead*, what somebody who reads a ledger from
//! one end to the other will want next. So catching up evicts nothing of the tail. Both are bounded
//! in bytes.
//!
//! *Read-ahead:* whoever goes on where the read before ended has the next piece read meanwhile. Whoever
//! asks for a piece that is being read waits for it.

use std::collections::HashMap;
use std::sync::Arc;

use geminga_proto::id::{EntryId, LedgerId};
use geminga_proto::storage::{ReadRequest, StoredEntry};
use parking_lot::{Condvar, Mutex};

/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 128;
/// Ledgers whose readers are followed.
const MAX_FOLLOWED: u64 = 1_024;

type Entries = moka::sync::Cache<(LedgerId, EntryId), StoredEntry>;

/// See the module.
#[derive(Debug)]
pub(super) struct ReadCache {
    tail: Entries,
    ahead: Entries,
    /// Where the reader of a ledger goes on, if it reads in order.
    next: moka::sync::Cache<LedgerId, EntryId>,
    /// Pieces that are being read, by ledger: their first entries.
    under_way: Mutex<HashMap<LedgerId, EntryId>>,
    ended: Condvar,
}

/// Which share of the cache an entry goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    Tail,
    Ahead,
}

/// A piece that is being read. Dropping it lets those who wait for it go on.
#[derive(Debug)]
pub(crate) struct Piece {
    cache: Arc<ReadCache>,
    pub ledger: LedgerId,
    pub first: EntryId,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.cache.under_way.lock().remove(&self.ledger);
        self.cache.ended.notify_all();
    }
}

fn entries(max_bytes: u64) -> Entries {
    let weigh = |_: &(LedgerId, EntryId), entry: &StoredEntry| {
        u32::try_from(entry.payload.len() + ENTRY_OVERHEAD_BYTES).unwrap_or(u32::MAX)
    };
    moka::sync::Cache::builder().max_capacity(max_bytes).weigher(weigh).build()
}

impl ReadCache {
    pub fn new(tail_bytes: u64, ahead_bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            tail: entries(tail_bytes),
            ahead: entries(ahead_bytes),
            next: moka::sync::Cache::new(MAX_FOLLOWED),
            under_way: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    /// Keeps an entry.
    pub fn insert(&self, share: Share, ledger: LedgerId, entry: &StoredEntry) {
        let key = (ledger, entry.entry);
        match share {
            Share::Tail => self.tail.insert(key, entry.clone()),
            Share::Ahead => self.ahead.insert(key, entry.clone()),
        }
    }

    /// Consecutive entries from the first one asked for on; empty if that one isn't here.
    pub fn get(&self, request: &ReadRequest, max_entries: u32, max_bytes: u64) -> Vec<StoredEntry> {
        let mut found = Vec::new();
        let (mut entry, mut bytes) = (request.first, 0);
        while found.len() < max_entries as usize {
            let key = (request.ledger, entry);
            let Some(stored) = self.ahead.get(&key).or_else(|| self.tail.get(&key)) else { break };
            bytes += stored.payload.len() as u64;
            if bytes > max_bytes && !found.is_empty() {
                break;
            }
            found.push(stored);
            entry = entry.next();
        }
        found
    }

    /// Waits for a piece that begins with this entry, if one is being read.
    pub fn wait(&self, ledger: LedgerId, first: EntryId) {
        let mut under_way = self.under_way.lock();
        while under_way.get(&ledger) == Some(&first) {
            self.ended.wait(&mut under_way);
        }
    }

    /// Entries up to `last` were sent to whoever asked for `first`. The piece to read next, if it
    /// goes on in order and nobody reads it yet.
    pub fn sent(
        self: &Arc<Self>,
        ledger: LedgerId,
        first: EntryId,
        last: EntryId,
    ) -> Option<Piece> {
        let goes_on = self.next.get(&ledger) == Some(first);
        let next = last.next();
        self.next.insert(ledger, next);
        // What was sent is done with, unless two readers are at the same place.
        let mut entry = first;
        while goes_on && entry <= last {
            self.ahead.invalidate(&(ledger, entry));
            entry = entry.next();
        }
        if !goes_on || self.ahead.contains_key(&(ledger, next)) {
            return None;
        }
        let mut under_way = self.under_way.lock();
        if under_way.contains_key(&ledger) {
            return None;
        }
        under_way.insert(ledger, next);
        Some(Piece { cache: Arc::clone(self), ledger, first: next })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use geminga_proto::id::Lac;

    use super::*;

    const LEDGER: LedgerId = LedgerId(1);

    fn stored(entry: u64, bytes: usize) -> StoredEntry {
        let payload = Bytes::from(vec![0; bytes]);
        StoredEntry { entry: EntryId(entry), lac: Lac::NONE, payload }
    }

    fn asked(first: u64) -> ReadRequest {
        let first = EntryId(first);
        ReadRequest { ledger: LEDGER, first, max_entries: 100, max_bytes: 1_000, fence: None }
    }

    fn got(cache: &ReadCache, first: u64) -> Vec<u64> {
        cache.get(&asked(first), 100, 1_000).into_iter().map(|stored| stored.entry.0).collect()
    }

    #[test]
    fn only_consecutive_entries_are_answered_and_no_more_than_was_asked_for() {
        let cache = ReadCache::new(1 << 20, 1 << 20);
        [3, 4, 6].iter().for_each(|at| cache.insert(Share::Ahead, LEDGER, &stored(*at, 400)));
        cache.insert(Share::Tail, LEDGER, &stored(5, 400));
        assert_eq!(got(&cache, 3), [3, 4], "a third has no room");
        assert_eq!(got(&cache, 4), [4, 5]);
        assert_eq!(got(&cache, 2), [0; 0]);
        assert_eq!(cache.get(&asked(3), 1, 1_000).len(), 1);
        assert_eq!(cache.get(&asked(3), 9, 10).len(), 1, "one is always sent");
    }

    #[test]
    fn catching_up_evicts_nothing_of_the_tail() {
        let cache = ReadCache::new(1 << 20, 1 << 16);
        cache.insert(Share::Tail, LEDGER, &stored(0, 1_000));
        for entry in 1..10_000 {
            cache.insert(Share::Ahead, LEDGER, &stored(entry, 1_000));
        }
        cache.ahead.run_pending_tasks();
        assert!(cache.ahead.weighted_size() <= 1 << 16);
        assert_eq!(got(&cache, 0)[0], 0);
    }

    #[test]
    fn who_reads_in_order_has_the_next_piece_read_and_only_once() {
        let cache = ReadCache::new(1 << 20, 1 << 20);
        let sent = |first, last| cache.sent(LEDGER, EntryId(first), EntryId(last));
        assert!(sent(0, 9).is_none(), "one read is no order");
        let piece = sent(10, 19).expect("it goes on");
        assert_eq!(piece.first, EntryId(20));
        assert!(sent(20, 20).is_none(), "one piece of a ledger at a time");
        drop(piece);
        assert!(sent(5, 6).is_none(), "somewhere else");
        let piece = sent(7, 8).expect("in order from there");
        cache.insert(Share::Ahead, LEDGER, &stored(9, 10));
        drop(piece);
        assert!(sent(9, 9).is_some());
        cache.insert(Share::Ahead, LEDGER, &stored(11, 10));
        assert!(sent(10, 10).is_none(), "it is there already");
    }

    #[test]
    fn who_asks_for_a_piece_that_is_being_read_waits_for_it() {
        let cache = ReadCache::new(1 << 20, 1 << 20);
        cache.sent(LEDGER, EntryId(0), EntryId(0));
        let piece = cache.sent(LEDGER, EntryId(1), EntryId(1)).expect("in order");
        let waits = Arc::clone(&cache);
        let waiter = std::thread::spawn(move || {
            waits.wait(LEDGER, EntryId(2));
            got(&waits, 2)
        });
        // Whoever wants something else doesn't.
        cache.wait(LEDGER, EntryId(3));
        cache.insert(Share::Ahead, LEDGER, &stored(2, 10));
        drop(piece);
        assert_eq!(waiter.join().expect("ends"), [2]);
    }
}
