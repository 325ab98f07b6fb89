//! Whatever is lost, the view ends up as the store is, and says so only then.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use geminga_proto::env::{ManualClock, Random, SeededRandom};

use super::*;
use crate::record::{CounterRecord, Nonce};
use crate::store::front::{Front, Fronted};
use crate::store::memory::{Fault, MemoryStore, Request};
use crate::store::{HistoryLimits, RangePage, Txn, TxnOutcome, Watch};

fn env() -> Env {
    Env { clock: Arc::new(ManualClock::default()), random: Arc::new(SeededRandom::new(3)) }
}

fn memory() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new(env().clock))
}

fn encoded(next: u64) -> Bytes {
    CounterRecord { next }.encode(Nonce::new(&SeededRandom::new(next))).expect("valid")
}

async fn put(store: &dyn MetadataStore, key: &str, next: u64) {
    let done = store.txn(Txn::default().put(key, encoded(next))).await;
    assert!(matches!(done, Ok(TxnOutcome::Applied(_))), "{done:?}");
}

async fn start(store: &Arc<MemoryStore>) -> WatchCache<CounterRecord> {
    let store = Arc::clone(store) as Arc<dyn MetadataStore>;
    WatchCache::start(store, env(), RetryPolicy::default(), "c/").await.expect("read")
}

/// Waits until the cache says so; in paused time a view that never gets there fails the test.
async fn eventually(
    cache: &WatchCache<CounterRecord>,
    what: &str,
    holds: impl Fn(&WatchCache<CounterRecord>) -> bool,
) {
    let mut changes = cache.changes();
    let wait = async {
        while !holds(cache) {
            changes.changed().await.expect("the cache lives");
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(600), wait).await;
    assert!(waited.is_ok(), "never happened: {what}");
}

fn next(cache: &WatchCache<CounterRecord>, key: &str) -> Option<u64> {
    cache.get(key).ok().flatten().map(|stored| stored.record.next)
}

#[tokio::test(start_paused = true)]
async fn the_view_follows_puts_and_deletions() {
    let store = memory();
    put(&*store, "c/a", 1).await;
    put(&*store, "other", 9).await;
    let cache = start(&store).await;
    assert_eq!(next(&cache, "c/a"), Some(1));
    assert_eq!(cache.get("other"), Ok(None));
    put(&*store, "c/b", 2).await;
    eventually(&cache, "the put is seen", |cache| next(cache, "c/b") == Some(2)).await;
    let read = crate::read::read::<CounterRecord>(&*store, "c/b").await.expect("read");
    assert_eq!(cache.get("c/b").expect("fresh").as_deref(), read.as_ref(), "nonce and revision");
    store.txn(Txn::default().delete("c/a")).await.expect("deleted");
    eventually(&cache, "the deletion is seen", |cache| cache.get("c/a") == Ok(None)).await;
    assert_eq!(cache.list().expect("fresh").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_watch_makes_the_view_stale_until_it_is_read_again() {
    let store = memory();
    put(&*store, "c/a", 1).await;
    let cache = start(&store).await;
    store.faults().set_down(true);
    store.lose_watches();
    eventually(&cache, "it goes stale", |cache| cache.get("c/a") == Err(CacheError::Stale)).await;
    assert!(matches!(cache.list(), Err(CacheError::Stale)));
    let known = cache.get_anyway("c/a").expect("decoded").map(|stored| stored.record.next);
    assert_eq!(known, Some(1));
    store.faults().set_down(false);
    put(&*store, "c/a", 2).await;
    store.txn(Txn::default().delete("c/never-seen")).await.expect("done");
    eventually(&cache, "it is read again", |cache| next(cache, "c/a") == Some(2)).await;
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_while_the_watch_was_lost_is_gone_from_the_view() {
    let store = memory();
    put(&*store, "c/a", 1).await;
    put(&*store, "c/b", 1).await;
    let cache = start(&store).await;
    store.faults().set_script(|request| match request {
        Request::Range(_) | Request::Watch(_) => Fault::Unavailable,
        _ => Fault::None,
    });
    store.lose_watches();
    eventually(&cache, "it goes stale", |cache| cache.list().is_err()).await;
    store.txn(Txn::default().delete("c/a")).await.expect("deleted");
    store.compact();
    store.faults().clear();
    eventually(&cache, "it is read again", |cache| cache.list().is_ok()).await;
    assert_eq!((cache.get("c/a"), next(&cache, "c/b")), (Ok(None), Some(1)));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_is_an_error_at_its_own_key_only() {
    let store = memory();
    put(&*store, "c/a", 1).await;
    let cache = start(&store).await;
    store.txn(Txn::default().put("c/bad", "\u{ff}")).await.expect("written");
    let bad = |cache: &WatchCache<CounterRecord>| {
        matches!(cache.get("c/bad"), Err(CacheError::Record { .. }))
    };
    eventually(&cache, "the bad record is seen", bad).await;
    assert_eq!(next(&cache, "c/a"), Some(1));
    assert_eq!(cache.list().expect("fresh").iter().filter(|entry| entry.is_err()).count(), 1);
    put(&*store, "c/bad", 5).await;
    eventually(&cache, "it is mended", |cache| next(cache, "c/bad") == Some(5)).await;
}

/// Gives its events one by one, and others a chance to look in between.
#[derive(Debug)]
struct OneByOne {
    inner: Box<dyn Watch>,
    waiting: VecDeque<WatchEvent>,
}

#[async_trait]
impl Watch for OneByOne {
    async fn next(&mut self) -> Result<Vec<WatchEvent>, WatchError> {
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
        if self.waiting.is_empty() {
            self.waiting.extend(self.inner.next().await?);
        }
        Ok(self.waiting.pop_front().into_iter().collect())
    }
}

/// Changes the store between the pages of a read.
#[derive(Debug)]
struct Meddled {
    inner: Arc<MemoryStore>,
    pages: AtomicU64,
}

#[async_trait]
impl Front for Meddled {
    fn behind(&self) -> &MemoryStore {
        &self.inner
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RangePage, StoreError> {
        let page = self.inner.range(prefix, after, limit.min(2)).await;
        if self.pages.fetch_add(1, Ordering::Relaxed) == 0 {
            // Behind the first page: one key that was read, one that will be.
            put(&*self.inner, "c/a", 10).await;
            put(&*self.inner, "c/d", 20).await;
            self.inner.txn(Txn::default().delete("c/b").delete("c/e")).await?;
            put(&*self.inner, "c/d", 21).await;
        }
        page
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let inner = self.inner.watch(prefix, after).await?;
        Ok(Box::new(OneByOne { inner, waiting: VecDeque::new() }))
    }
}

/// Panics in so many of the next watched changes, and of the next pages.
#[derive(Debug)]
struct Panicking {
    inner: Arc<MemoryStore>,
    watches: Arc<AtomicU64>,
    pages: AtomicU64,
}

#[derive(Debug)]
struct PanickingWatch {
    inner: Box<dyn Watch>,
    panics: Arc<AtomicU64>,
}

/// Whether there was one to take off.
fn count_down(left: &AtomicU64) -> bool {
    let less = |left: u64| left.checked_sub(1);
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
}

#[async_trait]
impl Watch for PanickingWatch {
    async fn next(&mut self) -> Result<Vec<WatchEvent>, WatchError> {
        let events = self.inner.next().await;
        assert!(!count_down(&self.panics), "a defect in a watch");
        events
    }
}

#[async_trait]
impl Front for Panicking {
    fn behind(&self) -> &MemoryStore {
        &self.inner
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RangePage, StoreError> {
        assert!(!count_down(&self.pages), "a defect in a read");
        self.inner.range(prefix, after, limit).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let inner = self.inner.watch(prefix, after).await?;
        Ok(Box::new(PanickingWatch { inner, panics: Arc::clone(&self.watches) }))
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_makes_the_view_stale_and_it_is_read_again() {
    let inner = memory();
    put(&*inner, "c/a", 1).await;
    let watches = Arc::new(AtomicU64::new(0));
    let store = Arc::new(Fronted(Panicking {
        inner: Arc::clone(&inner),
        watches,
        pages: AtomicU64::new(0),
    }));
    let shared = Arc::clone(&store) as Arc<dyn MetadataStore>;
    let cache = WatchCache::start(shared, env(), RetryPolicy::default(), "c/").await;
    let cache = cache.expect("read");
    for next_value in 2..5 {
        store.0.watches.store(1, Ordering::Relaxed);
        store.0.pages.store(3, Ordering::Relaxed);
        put(&*inner, "c/a", next_value).await;
        eventually(&cache, "it goes stale", |cache| !cache.is_fresh()).await;
        assert_eq!(cache.get("c/a"), Err(CacheError::Stale));
        let seen = |cache: &WatchCache<_>| next(cache, "c/a") == Some(next_value);
        eventually(&cache, "it is read again", seen).await;
        assert_eq!(store.0.pages.load(Ordering::Relaxed), 0, "reads panicked, too");
    }
    put(&*inner, "c/b", 9).await;
    eventually(&cache, "it is followed again", |cache| next(cache, "c/b") == Some(9)).await;
}

#[test]
fn a_view_that_outlives_its_runtime_is_stale() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("built");
    let cache = runtime.block_on(async {
        let store = memory();
        put(&*store, "c/a", 1).await;
        start(&store).await
    });
    let changes = cache.changes();
    assert!(cache.is_fresh());
    drop(runtime);
    assert_eq!(cache.get("c/a"), Err(CacheError::Stale));
    assert!(changes.has_changed().is_ok_and(|changed| changed), "and announces it");
}

#[tokio::test(start_paused = true)]
async fn changes_between_the_pages_of_a_read_are_neither_missed_nor_undone() {
    let inner = memory();
    for (key, next) in [("c/a", 1), ("c/b", 2), ("c/c", 3), ("c/d", 4), ("c/e", 5)] {
        put(&*inner, key, next).await;
    }
    let store: Arc<dyn MetadataStore> =
        Arc::new(Fronted(Meddled { inner: Arc::clone(&inner), pages: AtomicU64::new(0) }));
    let cache = WatchCache::<CounterRecord>::start(store, env(), RetryPolicy::default(), "c/");
    let cache = cache.await.expect("read");
    // The key of a later page is never seen at a revision before the one it was read at.
    let mut changes = cache.changes();
    let mut seen = vec![next(&cache, "c/d")];
    while next(&cache, "c/a") != Some(10) || cache.get("c/b") != Ok(None) {
        let changed = tokio::time::timeout(Duration::from_secs(600), changes.changed());
        changed.await.expect("it catches up").expect("the cache lives");
        seen.push(next(&cache, "c/d"));
    }
    assert!(seen.iter().all(|value| *value == Some(21)), "{seen:?}");
    assert_eq!((next(&cache, "c/c"), cache.get("c/e")), (Some(3), Ok(None)));
}

#[tokio::test(start_paused = true)]
async fn under_random_losses_the_view_ends_up_as_the_store_is() {
    for seed in 0..20 {
        let random = Arc::new(SeededRandom::new(seed));
        let history = HistoryLimits { revisions: 8, bytes: 1 << 20 };
        let store = Arc::new(MemoryStore::with_history(env().clock, history));
        let cache = start(&store).await;
        let faulty = Arc::clone(&random);
        store.faults().set_script(move |request| match request {
            Request::Range(_) | Request::Watch(_) if faulty.below(3) == 0 => Fault::Unavailable,
            _ => Fault::None,
        });
        for step in 1..300 {
            let key = format!("c/{}", random.below(6));
            match random.below(12) {
                0 => store.lose_watches(),
                1 => store.compact(),
                2..5 => {
                    store.txn(Txn::default().delete(key)).await.expect("deleted");
                }
                5 => tokio::time::sleep(Duration::from_millis(random.below(500))).await,
                6 => tokio::task::yield_now().await,
                _ => put(&*store, &key, step).await,
            }
        }
        store.faults().clear();
        let expected = crate::read::read_all::<CounterRecord>(&*store, "c/").await.expect("read");
        let same = |cache: &WatchCache<CounterRecord>| {
            let list = cache.list().unwrap_or_default();
            let list: Vec<_> = list.into_iter().filter_map(Result::ok).collect();
            cache.list().is_ok() && list.iter().map(|stored| &**stored).eq(&expected)
        };
        eventually(&cache, &format!("seed {seed}: view and store agree"), same).await;
    }
}

#[tokio::test(start_paused = true)]
async fn neither_a_long_outage_nor_watches_that_never_last_make_it_ask_in_a_tight_loop() {
    let store = memory();
    put(&*store, "c/a", 1).await;
    let cache = start(&store).await;
    for only_watches_fail in [false, true] {
        let reads = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&reads);
        store.faults().set_script(move |request| match request {
            Request::Watch(_) => Fault::Unavailable,
            Request::Range(_) => {
                counter.fetch_add(1, Ordering::Relaxed);
                if only_watches_fail { Fault::None } else { Fault::Unavailable }
            }
            _ => Fault::None,
        });
        store.lose_watches();
        tokio::time::sleep(Duration::from_secs(60)).await;
        let asked = reads.load(Ordering::Relaxed);
        // Every two seconds at most, after the first few.
        assert!((30..80).contains(&asked), "it asked {asked} times in a minute");
        let known = cache.get_anyway("c/a").expect("it can be decoded").map(|it| it.record.next);
        assert_eq!(known, Some(1), "what was known stays known");
        store.faults().clear();
        eventually(&cache, "the view is fresh again", |cache| cache.list().is_ok()).await;
    }
}
