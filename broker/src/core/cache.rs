//! [`TailCache`]: the newest entries of the topics that are being consumed, so that a consumer at
//! the tail costs no read from a bookie. One for the whole broker, bounded in bytes.
//!
//! Only what was just published gets in, so a catch-up read can't push the tail out. The oldest
//! entry of the broker goes first; an entry that every subscription has read goes at once. The
//! entries hold their bytes of the broker-wide budget, and give way when somebody waits for it.
//!
//! Invariants: a ledger's cached entries are consecutive; the bytes counted never exceed the
//! capacity. Its lock is the innermost but for the budget's, and is never held while payloads are
//! dropped.

use std::collections::{BTreeMap, VecDeque};

use geminga_proto::id::{EntryId, LedgerId, MessageIndex, Position};
use geminga_proto::payload::Payload;
use parking_lot::Mutex;

use crate::core::budget::{ByteBudget, BytePermit, Reclaim};

/// What an entry costs beside its bytes: the slots in the maps, and its share of allocations.
const OVERHEAD_BYTES: u64 = 160;
/// Stale places in the eviction order that are tolerated before it is swept.
const STALE_SLACK: usize = 1024;

/// A cached entry.
#[derive(Debug, Clone)]
pub struct CachedEntry {
    /// Broker header and producer's entry.
    pub payload: Payload,
    /// Index of its first message.
    pub first_index: MessageIndex,
    /// Its messages.
    pub messages: u32,
}

#[derive(Debug)]
struct Slot {
    entry: CachedEntry,
    /// Gives the entry's bytes back to the budget when the slot goes.
    permit: BytePermit,
}

impl Slot {
    fn cost(&self) -> u64 {
        self.entry.payload.len() as u64 + OVERHEAD_BYTES
    }
}

/// Consecutive entries of one ledger.
#[derive(Debug, Default)]
struct Run {
    first: u64,
    slots: VecDeque<Slot>,
}

#[derive(Debug, Default)]
struct Inner {
    runs: BTreeMap<LedgerId, Run>,
    /// The order in which entries came. A place whose entry is gone already is stale.
    order: VecDeque<Position>,
    entries: usize,
    bytes: u64,
}

impl Inner {
    fn pop_front(&mut self, ledger: LedgerId) -> Option<Slot> {
        let run = self.runs.get_mut(&ledger)?;
        let slot = run.slots.pop_front()?;
        run.first += 1;
        if run.slots.is_empty() {
            self.runs.remove(&ledger);
        }
        self.entries -= 1;
        self.bytes -= slot.cost();
        Some(slot)
    }

    fn is_live(&self, position: Position) -> bool {
        self.runs.get(&position.ledger).is_some_and(|run| run.first <= position.entry.0)
    }

    /// Takes the oldest entries out until at most `bytes` are left.
    fn shrink_to(&mut self, bytes: u64, out: &mut Vec<Slot>) {
        while self.bytes > bytes {
            let Some(oldest) = self.order.pop_front() else { return };
            if self.is_live(oldest) {
                out.extend(self.pop_front(oldest.ledger));
            }
        }
    }

    fn remove_run(&mut self, ledger: LedgerId, out: &mut Vec<Slot>) {
        while let Some(slot) = self.pop_front(ledger) {
            out.push(slot);
        }
    }

    fn sweep_order(&mut self) {
        if self.order.len() > 2 * self.entries + STALE_SLACK {
            let mut order = std::mem::take(&mut self.order);
            order.retain(|position| self.is_live(*position));
            self.order = order;
        }
    }
}

/// The cache.
#[derive(Debug)]
pub struct TailCache {
    inner: Mutex<Inner>,
    capacity_bytes: u64,
    budget: ByteBudget,
}

impl TailCache {
    /// An empty cache.
    #[must_use]
    pub fn new(capacity_bytes: u64, budget: ByteBudget) -> Self {
        Self { inner: Mutex::new(Inner::default()), capacity_bytes, budget }
    }

    /// Takes in the entries that follow what it has of `ledger`, oldest first. A gap forgets what
    /// came before it.
    pub fn insert(
        &self,
        ledger: LedgerId,
        entries: impl IntoIterator<Item = (EntryId, CachedEntry, BytePermit)>,
    ) {
        let mut gone = Vec::new();
        let mut inner = self.inner.lock();
        for (entry, cached, permit) in entries {
            let slot = Slot { entry: cached, permit };
            if slot.cost() > self.capacity_bytes {
                inner.remove_run(ledger, &mut gone);
                gone.push(slot);
                continue;
            }
            let expected = inner.runs.get(&ledger).map(|run| run.first + run.slots.len() as u64);
            if expected.is_some_and(|expected| expected != entry.0) {
                inner.remove_run(ledger, &mut gone);
            }
            inner.entries += 1;
            inner.bytes += slot.cost();
            inner.order.push_back(Position::new(ledger, entry));
            let run = inner.runs.entry(ledger).or_default();
            if run.slots.is_empty() {
                run.first = entry.0;
            }
            run.slots.push_back(slot);
        }
        let capacity = self.capacity_bytes;
        inner.shrink_to(if self.budget.has_waiters() { 0 } else { capacity }, &mut gone);
        inner.sweep_order();
        drop(inner);
        drop(gone);
    }

    /// The consecutive entries from `first` on that are cached, within the limits, but at least
    /// one if that is.
    #[must_use]
    pub fn read(
        &self,
        ledger: LedgerId,
        first: EntryId,
        max_entries: usize,
        max_bytes: u64,
    ) -> Vec<(EntryId, CachedEntry)> {
        let inner = self.inner.lock();
        let Some(run) = inner.runs.get(&ledger) else { return Vec::new() };
        let Some(skip) = first.0.checked_sub(run.first) else { return Vec::new() };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let mut out = Vec::new();
        let mut bytes = 0_u64;
        for slot in run.slots.iter().skip(skip).take(max_entries) {
            bytes = bytes.saturating_add(slot.entry.payload.len() as u64);
            if bytes > max_bytes && !out.is_empty() {
                break;
            }
            let entry = EntryId(first.0 + out.len() as u64);
            out.push((entry, slot.entry.clone()));
        }
        out
    }

    /// True if the entry is cached.
    #[must_use]
    pub fn contains(&self, ledger: LedgerId, entry: EntryId) -> bool {
        let inner = self.inner.lock();
        inner.runs.get(&ledger).is_some_and(|run| {
            let skip = entry.0.checked_sub(run.first);
            skip.is_some_and(|skip| skip < run.slots.len() as u64)
        })
    }

    /// Forgets the entries of `ledger` before `end`: everybody has read them.
    pub fn forget_before(&self, ledger: LedgerId, end: EntryId) {
        let mut gone = Vec::new();
        let mut inner = self.inner.lock();
        while inner.runs.get(&ledger).is_some_and(|run| run.first < end.0) {
            gone.extend(inner.pop_front(ledger));
        }
        inner.sweep_order();
        drop(inner);
        drop(gone);
    }

    /// Forgets a ledger.
    pub fn forget(&self, ledger: LedgerId) {
        self.forget_before(ledger, EntryId(u64::MAX));
    }

    /// Bytes held and bytes it may hold.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        (self.inner.lock().bytes, self.capacity_bytes)
    }
}

impl Reclaim for TailCache {
    /// Each waiter frees as much as it asks for, so together they never wait for what only the
    /// cache holds.
    fn reclaim(&self, bytes: u64) {
        let mut gone = Vec::new();
        let mut freed = 0;
        let mut inner = self.inner.lock();
        while freed < bytes {
            let Some(oldest) = inner.order.pop_front() else { break };
            if inner.is_live(oldest)
                && let Some(slot) = inner.pop_front(oldest.ledger)
            {
                freed += slot.permit.bytes();
                gone.push(slot);
            }
        }
        drop(inner);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use futures_util::FutureExt;
    use std::sync::Arc;

    const LEDGER: LedgerId = LedgerId(7);

    fn entry(bytes: usize) -> CachedEntry {
        let payload = Payload::from(Bytes::from(vec![1; bytes]));
        CachedEntry { payload, first_index: MessageIndex(0), messages: 1 }
    }

    fn fill(cache: &TailCache, ledger: LedgerId, ids: std::ops::Range<u64>, bytes: usize) {
        for id in ids {
            let permit = cache.budget.try_acquire(bytes as u64).expect("free");
            cache.insert(ledger, [(EntryId(id), entry(bytes), permit)]);
        }
    }

    fn ids(cache: &TailCache, ledger: LedgerId, first: u64) -> Vec<u64> {
        let read = cache.read(ledger, EntryId(first), usize::MAX, u64::MAX);
        read.iter().map(|(id, _)| id.0).collect()
    }

    fn cache(entries: u64, bytes: u64) -> TailCache {
        let budget = ByteBudget::new(1 << 20, 1 << 20);
        TailCache::new(entries * (bytes + OVERHEAD_BYTES), budget)
    }

    #[test]
    fn the_oldest_entries_of_all_ledgers_go_first() {
        let cache = cache(4, 100);
        fill(&cache, LEDGER, 0..2, 100);
        fill(&cache, LedgerId(8), 0..3, 100);
        assert_eq!(ids(&cache, LEDGER, 0), Vec::<u64>::new());
        assert_eq!(ids(&cache, LEDGER, 1), [1]);
        assert_eq!(ids(&cache, LedgerId(8), 0), [0, 1, 2]);
        assert_eq!(cache.usage().0, cache.usage().1);
        assert_eq!(cache.budget.ingest().used_bytes, 400);
    }

    #[test]
    fn a_read_respects_both_limits_but_gives_at_least_one_entry() {
        let cache = cache(10, 100);
        fill(&cache, LEDGER, 3..9, 100);
        let count = |entries, bytes| cache.read(LEDGER, EntryId(4), entries, bytes).len();
        assert_eq!(count(2, u64::MAX), 2);
        assert_eq!(count(9, 250), 2);
        assert_eq!(count(9, 1), 1);
        assert_eq!(count(9, u64::MAX), 5);
        assert!(ids(&cache, LEDGER, 2).is_empty());
        assert!(ids(&cache, LEDGER, 9).is_empty());
    }

    #[test]
    fn a_gap_forgets_what_came_before_it() {
        let cache = cache(10, 100);
        fill(&cache, LEDGER, 0..3, 100);
        fill(&cache, LEDGER, 5..7, 100);
        assert!(ids(&cache, LEDGER, 2).is_empty());
        assert_eq!(ids(&cache, LEDGER, 5), [5, 6]);
        assert_eq!(cache.budget.ingest().used_bytes, 200);
    }

    #[test]
    fn forgetting_gives_bytes_back_and_the_order_of_eviction_stays_small() {
        let cache = cache(10, 10);
        for id in 0..10_000 {
            fill(&cache, LEDGER, id..id + 1, 10);
            cache.forget_before(LEDGER, EntryId(id));
        }
        assert_eq!(ids(&cache, LEDGER, 9_999), [9_999]);
        assert!(cache.inner.lock().order.len() <= 2 + STALE_SLACK);
        cache.forget(LEDGER);
        assert_eq!((cache.usage().0, cache.budget.ingest().used_bytes), (0, 0));
    }

    #[test]
    fn somebody_who_waits_for_the_budget_gets_the_caches_bytes() {
        let budget = ByteBudget::new(1_000, 1);
        let cache = Arc::new(TailCache::new(1 << 20, budget.clone()));
        let weak = Arc::downgrade(&cache);
        budget.set_reclaim(weak);
        fill(&cache, LEDGER, 0..10, 100);
        let permit = budget.acquire(200).now_or_never().expect("the cache gave way");
        assert_eq!(ids(&cache, LEDGER, 2), [2, 3, 4, 5, 6, 7, 8, 9]);
        let mut waiting = Box::pin(budget.acquire(1_000));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(cache.usage().0, 0);
        // While somebody waits, what comes in goes at once.
        let mut permit = permit;
        cache.insert(LEDGER, [(EntryId(10), entry(100), permit.split(100))]);
        assert_eq!(cache.usage().0, 0);
        drop(permit);
        assert!(waiting.now_or_never().is_some());
    }
}
