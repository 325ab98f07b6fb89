//! [`ReadCache`]: entries that were read and may be asked for again, or for the first time soon.
//!
//! Two shares that don't touch each other: *tail*, what was read from segments that are still
//! written to, which several readers may want; and *ahead*, what somebody who reads a ledger from
//! one end to the other will want next. So catching up evicts nothing of the tail. Both are bounded
//! in bytes.
//!
//! *Read-ahead:* whoever goes on where the read before ended has the next piece read meanwhile.
//! Whoever asks for a piece that is being read waits for it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_proto::id::{EntryId, LedgerId};
use geminga_proto::storage::{ReadRequest, StoredEntry};
use parking_lot::{Condvar, Mutex};

/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD_BYTES: usize = 128;
/// Smaller entries are copied: else each would keep all that was read along with it.
const COPIED_BYTES: usize = 32 << 10;
/// How long somebody waits for a piece that is being read.
const PATIENCE: Duration = Duration::from_millis(200);
/// Ledgers whose readers are followed.
const MAX_FOLLOWED: u64 = 1_024;

/// See the module.
#[derive(Debug)]
pub(super) struct ReadCache {
    tail: moka::sync::Cache<(LedgerId, EntryId), StoredEntry>,
    ahead: Mutex<Ahead>,
    /// Where the reader of a ledger goes on, if it reads in order.
    next: moka::sync::Cache<LedgerId, EntryId>,
    /// Pieces that are being read, by ledger: their first entries.
    under_way: Mutex<HashMap<LedgerId, EntryId>>,
    ended: Condvar,
}

/// What was read ahead: a piece for a ledger.
#[derive(Debug, Default)]
struct Ahead {
    /// Consecutive entries.
    pieces: HashMap<LedgerId, VecDeque<StoredEntry>>,
    /// Those that came first go first.
    order: VecDeque<LedgerId>,
    bytes: u64,
    max_bytes: u64,
}

impl Ahead {
    fn remove(&mut self, ledger: LedgerId) {
        if let Some(piece) = self.pieces.remove(&ledger) {
            self.bytes -= piece.iter().map(entry_bytes).sum::<u64>();
            self.order.retain(|known| *known != ledger);
        }
    }

    fn insert(&mut self, ledger: LedgerId, entries: Vec<StoredEntry>) {
        self.remove(ledger);
        let bytes = entries.iter().map(entry_bytes).sum::<u64>();
        while self.bytes + bytes > self.max_bytes {
            let Some(first) = self.order.front().copied() else { return };
            self.remove(first);
        }
        self.bytes += bytes;
        self.order.push_back(ledger);
        self.pieces.insert(ledger, entries.into());
    }

    /// The entry in a piece, and those behind it.
    fn from(&self, ledger: LedgerId, first: EntryId) -> impl Iterator<Item = &StoredEntry> {
        let piece = self.pieces.get(&ledger);
        let skipped = piece.and_then(|piece| first.0.checked_sub(piece.front()?.entry.0));
        let skipped = skipped.and_then(|skipped| usize::try_from(skipped).ok());
        piece.into_iter().flat_map(move |piece| piece.iter().skip(skipped.unwrap_or(usize::MAX)))
    }

    /// Whoever reads the ledger has what is up to `last`.
    fn forget_up_to(&mut self, ledger: LedgerId, last: EntryId) {
        let Some(piece) = self.pieces.get_mut(&ledger) else { return };
        while let Some(entry) = piece.pop_front_if(|entry| entry.entry <= last) {
            self.bytes -= entry_bytes(&entry);
        }
        if piece.is_empty() {
            self.remove(ledger);
        }
    }
}

/// An entry that doesn't keep much more memory than its own.
fn alone(mut entry: StoredEntry) -> StoredEntry {
    if entry.payload.len() < COPIED_BYTES {
        entry.payload = Bytes::copy_from_slice(&entry.payload);
    }
    entry
}

fn entry_bytes(entry: &StoredEntry) -> u64 {
    (entry.payload.len() + ENTRY_OVERHEAD_BYTES) as u64
}

/// A piece that is being read. Dropping it lets those who wait for it go on.
#[derive(Debug)]
pub(crate) struct Piece {
    cache: Arc<ReadCache>,
    pub ledger: LedgerId,
    pub first: EntryId,
}

impl Piece {
    /// Keeps what was read.
    pub fn keep(&self, entries: Vec<StoredEntry>) {
        if !entries.is_empty() {
            let entries = entries.into_iter().map(alone).collect();
            self.cache.ahead.lock().insert(self.ledger, entries);
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.cache.under_way.lock().remove(&self.ledger);
        self.cache.ended.notify_all();
    }
}

impl ReadCache {
    pub fn new(tail_bytes: u64, ahead_bytes: u64) -> Arc<Self> {
        let weigh = |_: &(LedgerId, EntryId), entry: &StoredEntry| {
            u32::try_from(entry_bytes(entry)).unwrap_or(u32::MAX)
        };
        let tail = moka::sync::Cache::builder().max_capacity(tail_bytes).weigher(weigh);
        Arc::new(Self {
            tail: tail.build(),
            ahead: Mutex::new(Ahead { max_bytes: ahead_bytes, ..Ahead::default() }),
            next: moka::sync::Cache::new(MAX_FOLLOWED),
            under_way: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    /// Keeps an entry of a segment that is written to.
    pub fn keep_tail(&self, ledger: LedgerId, entry: &StoredEntry) {
        self.tail.insert((ledger, entry.entry), alone(entry.clone()));
    }

    /// Consecutive entries from the first one asked for on; empty if that one isn't here.
    pub fn get(&self, request: &ReadRequest, max_entries: u32, max_bytes: u64) -> Vec<StoredEntry> {
        let (mut found, mut bytes) = (Vec::new(), 0);
        let mut takes = |stored: &StoredEntry, found: &mut Vec<StoredEntry>| {
            bytes += stored.payload.len() as u64;
            let fits =
                found.len() < max_entries as usize && (bytes <= max_bytes || found.is_empty());
            if fits {
                found.push(stored.clone());
            }
            fits
        };
        let ahead = self.ahead.lock();
        let mut entries = ahead.from(request.ledger, request.first);
        while entries.next().is_some_and(|stored| takes(stored, &mut found)) {}
        drop(entries);
        drop(ahead);
        loop {
            let next = found.last().map_or(request.first, |last| last.entry.next());
            let stored = self.tail.get(&(request.ledger, next));
            if !stored.is_some_and(|stored| takes(&stored, &mut found)) {
                return found;
            }
        }
    }

    /// Waits for a piece that begins with this entry, if one is being read; but not for long, since
    /// it may itself wait for a thread.
    pub fn wait(&self, ledger: LedgerId, first: EntryId) {
        let mut under_way = self.under_way.lock();
        while under_way.get(&ledger) == Some(&first) {
            if self.ended.wait_for(&mut under_way, PATIENCE).timed_out() {
                return;
            }
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
        let mut ahead = self.ahead.lock();
        ahead.forget_up_to(ledger, last);
        if !goes_on || ahead.pieces.contains_key(&ledger) {
            return None;
        }
        drop(ahead);
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

    fn ahead(cache: &Arc<ReadCache>, entries: std::ops::Range<u64>, bytes: usize) {
        let entries = entries.map(|entry| stored(entry, bytes)).collect();
        cache.ahead.lock().insert(LEDGER, entries);
    }

    #[test]
    fn only_consecutive_entries_are_answered_and_no_more_than_was_asked_for() {
        let cache = ReadCache::new(1 << 20, 1 << 20);
        ahead(&cache, 3..5, 400);
        [5, 7].iter().for_each(|at| cache.keep_tail(LEDGER, &stored(*at, 400)));
        assert_eq!(got(&cache, 3), [3, 4], "a third has no room");
        assert_eq!(got(&cache, 4), [4, 5]);
        assert_eq!((got(&cache, 2), got(&cache, 6)), (vec![], vec![]));
        assert_eq!(cache.get(&asked(3), 1, 1_000).len(), 1);
        assert_eq!(cache.get(&asked(3), 9, 10).len(), 1, "one is always sent");
    }

    #[test]
    fn catching_up_evicts_nothing_of_the_tail_and_is_bounded() {
        let cache = ReadCache::new(1 << 20, 1 << 16);
        cache.keep_tail(LEDGER, &stored(0, 1_000));
        for ledger in 2..1_000 {
            let entries = (0..10).map(|entry| stored(entry, 1_000)).collect();
            cache.ahead.lock().insert(LedgerId(ledger), entries);
            let ahead = cache.ahead.lock();
            assert!(ahead.bytes <= 1 << 16 && ahead.order.len() == ahead.pieces.len());
        }
        assert!(cache.ahead.lock().pieces.len() > 3);
        assert_eq!(got(&cache, 0), [0]);
        // What never fits is not kept.
        ahead(&cache, 1..100, 1_000);
        assert_eq!((got(&cache, 1), cache.ahead.lock().bytes), (vec![], 0));
    }

    #[test]
    fn what_was_sent_makes_room() {
        let cache = ReadCache::new(1 << 20, 1 << 20);
        ahead(&cache, 3..6, 100);
        cache.sent(LEDGER, EntryId(3), EntryId(4));
        assert_eq!(cache.ahead.lock().bytes, 100 + ENTRY_OVERHEAD_BYTES as u64);
        assert_eq!((got(&cache, 4), got(&cache, 5)), (vec![], vec![5]));
        cache.sent(LEDGER, EntryId(5), EntryId(5));
        assert!(cache.ahead.lock().order.is_empty() && cache.ahead.lock().bytes == 0);
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
        piece.keep(vec![stored(9, 10), stored(10, 10)]);
        drop(piece);
        assert!(sent(9, 9).is_none(), "there is more of it");
        assert!(sent(10, 10).is_some());
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
        piece.keep(vec![stored(2, 10)]);
        drop(piece);
        assert_eq!(waiter.join().expect("ends"), [2]);
    }

    #[test]
    fn nobody_waits_without_end_for_a_piece_that_nobody_brings() {
        let cache = ReadCache::new(1 << 20, 1 << 20);
        cache.sent(LEDGER, EntryId(0), EntryId(0));
        // It is under way, and stays so: whoever should read it waits for a thread himself.
        let piece = cache.sent(LEDGER, EntryId(1), EntryId(1)).expect("in order");
        let (waits, (sender, ended)) = (Arc::clone(&cache), std::sync::mpsc::sync_channel(1));
        let waiter = std::thread::spawn(move || {
            waits.wait(LEDGER, EntryId(2));
            sender.send(()).expect("somebody listens");
        });
        let long = std::time::Duration::from_secs(60);
        ended.recv_timeout(long).expect("the reader goes on by himself");
        assert!(cache.sent(LEDGER, EntryId(2), EntryId(2)).is_none(), "it is still under way");
        drop(piece);
        waiter.join().expect("ends");
    }
}
