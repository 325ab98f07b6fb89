//! [`ByteBudget`]: the broker-wide limit on bytes of entries in memory.
//!
//! Two shares, so that neither side can starve the other: *ingest* covers an entry from the
//! moment a front-end reads it off its socket until it is acknowledged and has left the tail
//! cache; *egress* covers it from the moment it is read for a subscription until it is written
//! to the consumer's socket. When the ingest share is used up, the tail cache gives way first;
//! only then do callers wait, in the order in which they came, and sockets aren't read. What was
//! read ahead for subscriptions gives way in the same manner when the egress share is used up.
//!
//! Invariants: permits given out never exceed a share's capacity; a permit gives its bytes back
//! exactly once, when it is dropped.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use tokio::sync::Semaphore;

/// Frees bytes of a share before somebody has to wait for them.
pub trait Reclaim: Send + Sync + 'static {
    /// Lets go of permits worth `bytes`, if it has so many.
    fn reclaim(&self, bytes: u64);
}

struct Share {
    semaphore: Semaphore,
    capacity_bytes: u32,
    /// Callers that found the share used up. Written by them, read by the cache.
    waiting: AtomicU64,
}

impl fmt::Debug for Share {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} of {} bytes free", self.semaphore.available_permits(), self.capacity_bytes)
    }
}

impl Share {
    fn new(capacity_bytes: u64) -> Arc<Self> {
        let capacity_bytes = u32::try_from(capacity_bytes).unwrap_or(u32::MAX).max(1);
        let semaphore = Semaphore::new(capacity_bytes as usize);
        Arc::new(Self { semaphore, capacity_bytes, waiting: AtomicU64::new(0) })
    }

    /// What is asked for beyond the capacity could never be granted, so it counts as all of it.
    fn clamp(&self, bytes: u64) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.capacity_bytes)
    }

    fn try_acquire(self: &Arc<Self>, bytes: u32) -> Option<BytePermit> {
        let permit = self.semaphore.try_acquire_many(bytes).ok()?;
        permit.forget();
        Some(BytePermit { share: Arc::clone(self), bytes })
    }

    async fn acquire(self: &Arc<Self>, bytes: u32) -> BytePermit {
        let permit = self.semaphore.acquire_many(bytes).await;
        permit.expect("a share's semaphore is never closed").forget();
        BytePermit { share: Arc::clone(self), bytes }
    }

    fn usage(&self) -> BudgetUsage {
        let capacity_bytes = u64::from(self.capacity_bytes);
        BudgetUsage {
            used_bytes: capacity_bytes - self.semaphore.available_permits() as u64,
            capacity_bytes,
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }
}

/// Counts a caller as waiting for as long as its future lives.
struct Waiting<'a>(&'a Share);

impl<'a> Waiting<'a> {
    fn new(share: &'a Share) -> Self {
        share.waiting.fetch_add(1, Ordering::SeqCst);
        Self(share)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// How much of a share is in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BudgetUsage {
    /// Bytes given out.
    pub used_bytes: u64,
    /// Bytes there are.
    pub capacity_bytes: u64,
    /// Callers waiting.
    pub waiting: u64,
}

/// Bytes taken out of the budget; dropping it gives them back.
#[derive(Debug)]
pub struct BytePermit {
    share: Arc<Share>,
    bytes: u32,
}

impl BytePermit {
    /// Bytes it holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.bytes)
    }

    /// Takes up to `bytes` off into a permit of their own.
    #[must_use]
    pub fn split(&mut self, bytes: u64) -> Self {
        let taken = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.bytes);
        self.bytes -= taken;
        Self { share: Arc::clone(&self.share), bytes: taken }
    }
}

impl Drop for BytePermit {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.share.semaphore.add_permits(self.bytes as usize);
        }
    }
}

/// Rides with a delivered entry until it is written to the socket. Several deliveries of one
/// read share it. It never makes two deliveries differ.
#[derive(Debug, Clone, Default)]
pub struct EntryPermit(Option<Arc<BytePermit>>);

impl EntryPermit {
    /// Bytes that it keeps, together with all deliveries that share it.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, |permit| permit.bytes())
    }
}

impl From<BytePermit> for EntryPermit {
    fn from(permit: BytePermit) -> Self {
        Self(Some(Arc::new(permit)))
    }
}

impl PartialEq for EntryPermit {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for EntryPermit {}

/// The budget. Clones share it.
#[derive(Clone)]
pub struct ByteBudget {
    ingest: Arc<Share>,
    egress: Arc<Share>,
    reclaim: Arc<OnceLock<Weak<dyn Reclaim>>>,
    reclaim_egress: Arc<OnceLock<Weak<dyn Reclaim>>>,
}

impl fmt::Debug for ByteBudget {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = out.debug_struct("ByteBudget");
        shown.field("ingest", &self.ingest).field("egress", &self.egress).finish_non_exhaustive()
    }
}

impl ByteBudget {
    /// A budget of two shares.
    #[must_use]
    pub fn new(ingest_bytes: u64, egress_bytes: u64) -> Self {
        Self {
            ingest: Share::new(ingest_bytes),
            egress: Share::new(egress_bytes),
            reclaim: Arc::default(),
            reclaim_egress: Arc::default(),
        }
    }

    /// Names what holds ingest bytes and can give way. Only the first call counts.
    pub fn set_reclaim(&self, reclaim: Weak<dyn Reclaim>) {
        let _ = self.reclaim.set(reclaim);
    }

    /// Names what holds egress bytes and can give way. Only the first call counts.
    pub fn set_reclaim_egress(&self, reclaim: Weak<dyn Reclaim>) {
        let _ = self.reclaim_egress.set(reclaim);
    }

    /// Takes bytes for entries that a front-end is about to read. Waits while there are none;
    /// callers are served in order. Dropping the future gives up the place.
    pub async fn acquire(&self, bytes: u64) -> BytePermit {
        let bytes = self.ingest.clamp(bytes);
        if let Some(permit) = self.ingest.try_acquire(bytes) {
            return permit;
        }
        // Counted before the cache is asked: what the cache takes in afterwards, it sees the
        // count and lets go of at once.
        let _waiting = Waiting::new(&self.ingest);
        if let Some(reclaim) = self.reclaim.get().and_then(Weak::upgrade) {
            reclaim.reclaim(u64::from(bytes));
        }
        self.ingest.acquire(bytes).await
    }

    /// Takes ingest bytes if there are any, without waiting and without asking the cache.
    #[must_use]
    pub fn try_acquire(&self, bytes: u64) -> Option<BytePermit> {
        self.ingest.try_acquire(self.ingest.clamp(bytes))
    }

    /// Takes bytes for entries to be delivered.
    pub async fn acquire_egress(&self, bytes: u64) -> BytePermit {
        let bytes = self.egress.clamp(bytes);
        if let Some(permit) = self.egress.try_acquire(bytes) {
            return permit;
        }
        let _waiting = Waiting::new(&self.egress);
        if let Some(reclaim) = self.reclaim_egress.get().and_then(Weak::upgrade) {
            reclaim.reclaim(u64::from(bytes));
        }
        self.egress.acquire(bytes).await
    }

    /// Takes bytes for entries to be delivered, without waiting.
    #[must_use]
    pub fn try_acquire_egress(&self, bytes: u64) -> Option<BytePermit> {
        self.egress.try_acquire(self.egress.clamp(bytes))
    }

    /// True while somebody waits for egress bytes.
    #[must_use]
    pub fn has_egress_waiters(&self) -> bool {
        self.egress.waiting.load(Ordering::SeqCst) > 0
    }

    /// True while somebody waits for ingest bytes.
    #[must_use]
    pub fn has_waiters(&self) -> bool {
        self.ingest.waiting.load(Ordering::SeqCst) > 0
    }

    /// Use of the ingest share.
    #[must_use]
    pub fn ingest(&self) -> BudgetUsage {
        self.ingest.usage()
    }

    /// Use of the egress share.
    #[must_use]
    pub fn egress(&self) -> BudgetUsage {
        self.egress.usage()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use parking_lot::Mutex;

    #[test]
    fn a_permit_gives_its_bytes_back_once_however_it_was_split() {
        let budget = ByteBudget::new(100, 10);
        let mut whole = budget.try_acquire(80).expect("free");
        let part = whole.split(30);
        assert_eq!((whole.bytes(), part.bytes()), (50, 30));
        drop(whole);
        assert_eq!(budget.ingest().used_bytes, 30);
        drop(part);
        assert_eq!(budget.ingest().used_bytes, 0);
        assert_eq!(budget.egress().used_bytes, 0);
    }

    #[test]
    fn at_the_limit_callers_wait_and_go_on_when_bytes_come_back() {
        let budget = ByteBudget::new(100, 10);
        let held = budget.try_acquire(100).expect("free");
        let mut waiting = Box::pin(budget.acquire(40));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(budget.has_waiters());
        // The other share is not touched by it.
        assert!(budget.try_acquire_egress(10).is_some());
        drop(held);
        let permit = waiting.now_or_never().expect("bytes came back");
        assert_eq!(permit.bytes(), 40);
        assert!(!budget.has_waiters());
    }

    #[test]
    fn more_than_the_whole_share_is_granted_as_the_whole_share() {
        let budget = ByteBudget::new(100, 10);
        let permit = budget.acquire(1_000).now_or_never().expect("all of it is free");
        assert_eq!(permit.bytes(), 100);
        assert!(budget.try_acquire(1).is_none());
    }

    #[test]
    fn the_cache_gives_way_before_anybody_waits() {
        struct Cache(Mutex<Option<BytePermit>>);
        impl Reclaim for Cache {
            fn reclaim(&self, _: u64) {
                self.0.lock().take();
            }
        }
        let budget = ByteBudget::new(100, 10);
        let cache: Arc<dyn Reclaim> = Arc::new(Cache(Mutex::new(budget.try_acquire(100))));
        budget.set_reclaim(Arc::downgrade(&cache));
        assert!(budget.acquire(60).now_or_never().is_some());
    }
}
