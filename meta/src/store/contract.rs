//! What [`super`] promises, as one suite that every backend passes: [`crate::contract_suite`]
//! makes a test of each scenario.
//!
//! A scenario gets a [`Harness`] with an empty store of its own. Revisions are compared with each
//! other only, since a shared store counts those of others too.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Compare, KeyValue, MAX_RANGE, MAX_TXN_BYTES, MAX_TXN_OPS, MetadataStore, Revision, StoreError,
    Txn, TxnOutcome, Watch, WatchError, WatchEvent,
};

/// A store under test.
#[async_trait]
pub trait Harness: Send + Sync {
    /// The store; the same one each time.
    fn store(&self) -> Arc<dyn MetadataStore>;
    /// Lets time pass for leases.
    async fn pass(&self, time: Duration);
    /// Forgets the history that watches could start in.
    async fn compact(&self);
}

/// Makes a `#[tokio::test]` of each scenario; the argument is an expression that makes a fresh
/// [`Harness`].
#[macro_export]
macro_rules! contract_suite {
    ($harness:expr) => {
        $crate::contract_suite!(@each $harness;
            a_read_after_an_answered_write_sees_it,
            a_transaction_applies_as_a_whole_or_not_at_all,
            each_transaction_that_changes_something_takes_one_revision,
            keys_sort_bytewise_and_pages_give_each_once,
            a_page_never_has_more_than_the_limit,
            a_watch_sees_every_change_of_its_prefix_in_order,
            a_watch_goes_on_from_the_revision_it_was_given,
            a_watch_from_a_compacted_revision_says_so,
            concurrent_increments_are_all_counted_and_all_watched,
            a_lease_that_is_not_kept_alive_ends_with_its_keys_in_one_revision,
            a_revoked_lease_takes_its_keys_and_nothing_hangs_on_it_again,
            limits_are_refused_before_anything_is_done,
            transactions_at_the_limits_pass,
        );
    };
    (@each $harness:expr; $($scenario:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $scenario() {
                $crate::store::contract::$scenario(&$harness).await;
            }
        )*
    };
}

fn applied(outcome: Result<TxnOutcome, StoreError>) -> Revision {
    match outcome {
        Ok(TxnOutcome::Applied(revision)) => revision,
        other => panic!("expected it to be applied: {other:?}"),
    }
}

fn assert_conflict(outcome: &Result<TxnOutcome, StoreError>) {
    assert!(matches!(outcome, Ok(TxnOutcome::Conflict(_))), "expected a conflict: {outcome:?}");
}

async fn put(store: &dyn MetadataStore, key: &str, value: &'static str) -> Revision {
    applied(store.txn(Txn::default().put(key, value)).await)
}

async fn get(store: &dyn MetadataStore, key: &str) -> Option<KeyValue> {
    store.get(key).await.expect("the store answers")
}

async fn value(store: &dyn MetadataStore, key: &str) -> Option<Bytes> {
    get(store, key).await.map(|pair| pair.value)
}

async fn watch(store: &dyn MetadataStore, prefix: &str, after: Revision) -> Box<dyn Watch> {
    store.watch(prefix, after).await.expect("the store answers")
}

/// A bound on waiting, so that a lost event fails a test instead of hanging it.
async fn next(watch: &mut Box<dyn Watch>) -> Result<Vec<WatchEvent>, WatchError> {
    let patience = Duration::from_secs(30);
    tokio::time::timeout(patience, watch.next()).await.expect("an event arrives")
}

async fn events(watch: &mut Box<dyn Watch>, count: usize) -> Vec<WatchEvent> {
    let mut seen = Vec::new();
    while seen.len() < count {
        seen.extend(next(watch).await.expect("the watch goes on"));
    }
    assert_eq!(seen.len(), count, "more events than changes: {seen:?}");
    seen
}

fn event(revision: Revision, key: &str, value: Option<&'static str>) -> WatchEvent {
    let value = value.map(|text| Bytes::from_static(text.as_bytes()));
    WatchEvent { revision, key: key.to_owned(), value }
}

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn a_read_after_an_answered_write_sees_it(harness: &dyn Harness) {
    let store = harness.store();
    assert_eq!(get(&*store, "a/x").await, None);
    let revision = put(&*store, "a/x", "one").await;
    let value = Bytes::from_static(b"one");
    let pair = KeyValue { key: "a/x".to_owned(), value, modified: revision, lease: None };
    assert_eq!(get(&*store, "a/x").await, Some(pair.clone()));
    let page = store.range("a/", None, 10).await.expect("read");
    assert_eq!(page.pairs, vec![pair]);
    assert!(page.revision >= revision && !page.more);
    let binary: Vec<u8> = (0..=255).collect();
    let write = Txn::default().put("a/binary", binary.clone()).put("a/empty", Bytes::new());
    applied(store.txn(write).await);
    assert_eq!(self::value(&*store, "a/binary").await, Some(binary.into()));
    assert_eq!(self::value(&*store, "a/empty").await, Some(Bytes::new()));
    applied(store.txn(Txn::default().delete("a/x")).await);
    assert_eq!(get(&*store, "a/x").await, None);
}

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn a_transaction_applies_as_a_whole_or_not_at_all(harness: &dyn Harness) {
    let store = harness.store();
    let first = put(&*store, "a", "1").await;
    let absent = |key: &str| Compare::Absent(key.to_owned());
    let present = |key: &str| Compare::Present(key.to_owned());
    let unchanged = |key: &str, revision| Compare::Unchanged(key.to_owned(), revision);
    let write = || Txn::default().put("b", "2").delete("a");
    for (holds, fails) in [
        (present("a"), absent("a")),
        (absent("b"), present("b")),
        (unchanged("a", first), unchanged("a", Revision(first.0 + 1))),
        (present("a"), unchanged("b", Revision(0))),
    ] {
        assert_conflict(&store.txn(write().when(holds.clone()).when(fails.clone())).await);
        assert_conflict(&store.txn(write().when(fails).when(holds)).await);
        assert_eq!(value(&*store, "a").await.as_deref(), Some(&b"1"[..]));
        assert_eq!(value(&*store, "b").await, None);
    }
    let all = write().when(present("a")).when(absent("b")).when(unchanged("a", first));
    let second = applied(store.txn(all).await);
    assert_eq!(get(&*store, "a").await, None);
    assert_eq!(get(&*store, "b").await.map(|pair| pair.modified), Some(second));
    // A key that was deleted and written again is not unchanged.
    put(&*store, "a", "1").await;
    assert_conflict(&store.txn(write().when(unchanged("a", first))).await);
}

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn each_transaction_that_changes_something_takes_one_revision(harness: &dyn Harness) {
    let store = harness.store();
    let one = put(&*store, "a", "1").await;
    let two = applied(store.txn(Txn::default().put("a", "2").put("b", "2")).await);
    assert_eq!(two, Revision(one.0 + 1));
    assert_eq!(get(&*store, "b").await.map(|pair| pair.modified), Some(two));
    let nothing = store.txn(Txn::default().when(Compare::Present("a".to_owned()))).await;
    assert_eq!(applied(nothing), two);
    assert_eq!(applied(store.txn(Txn::default().delete("absent")).await), two);
    let conflict = store.txn(Txn::default().when(Compare::Absent("a".to_owned()))).await;
    assert_eq!(conflict, Ok(TxnOutcome::Conflict(two)));
    assert_eq!(put(&*store, "a", "2").await, Revision(two.0 + 1));
    assert_eq!(store.range("", None, 1).await.map(|page| page.revision), Ok(Revision(two.0 + 1)));
}

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn keys_sort_bytewise_and_pages_give_each_once(harness: &dyn Harness) {
    let store = harness.store();
    let inside = ["p/", "p/-", "p/0", "p/00", "p/A", "p/a", "p/a/b", "p/ä", "p/日本"];
    for key in ["o/z", "p", "p.", "p0", "q/"].into_iter().chain(inside.into_iter().rev()) {
        put(&*store, key, "v").await;
    }
    for limit in 1..=inside.len() + 1 {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.range("p/", after.as_deref(), limit).await.expect("read");
            assert!(page.pairs.len() <= limit);
            seen.extend(page.pairs.into_iter().map(|pair| pair.key));
            if !page.more {
                break;
            }
            after = seen.last().cloned();
        }
        assert_eq!(seen, inside, "pages of {limit}");
    }
    // The place to go on after need not exist, nor lie in the prefix.
    let after = |after: &'static str| {
        let store = Arc::clone(&store);
        async move {
            let page = store.range("p/", Some(after), 100).await.expect("read");
            page.pairs.first().map(|pair| pair.key.clone())
        }
    };
    assert_eq!(after("p/5").await.as_deref(), Some("p/A"));
    assert_eq!(after("a").await.as_deref(), Some("p/"));
    assert_eq!(after("z").await, None);
    let all = store.range("", None, 100).await.expect("read");
    assert_eq!(all.pairs.len(), inside.len() + 5);
}

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn a_page_never_has_more_than_the_limit(harness: &dyn Harness) {
    let store = harness.store();
    for block in 0..=MAX_RANGE / MAX_TXN_OPS {
        let put = |txn: Txn, key| txn.put(format!("k/{block:03}/{key:03}"), "v");
        applied(store.txn((0..MAX_TXN_OPS).fold(Txn::default(), put)).await);
    }
    let page = store.range("k/", None, usize::MAX).await.expect("read");
    assert_eq!((page.pairs.len(), page.more), (MAX_RANGE, true));
    let last = page.pairs.last().map(|pair| pair.key.clone()).expect("there are pairs");
    let rest = store.range("k/", Some(&last), usize::MAX).await.expect("read");
    let total = (MAX_RANGE / MAX_TXN_OPS + 1) * MAX_TXN_OPS;
    assert_eq!((rest.pairs.len(), rest.more), (total - MAX_RANGE, false));
}

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn a_watch_sees_every_change_of_its_prefix_in_order(harness: &dyn Harness) {
    let store = harness.store();
    let start = put(&*store, "w/a", "0").await;
    let mut watch = watch(&*store, "w/", start).await;
    let one = put(&*store, "w/a", "1").await;
    put(&*store, "other", "x").await;
    let both = Txn::default().put("w/b", "2").put("other", "y").delete("w/a");
    let two = applied(store.txn(both).await);
    let three = put(&*store, "w/b", "2").await;
    applied(store.txn(Txn::default().delete("w/absent")).await);
    let four = applied(store.txn(Txn::default().delete("w/b")).await);
    let mut seen = events(&mut watch, 5).await;
    // Within one revision the order is not promised.
    seen.sort_by(|left, right| (left.revision, &left.key).cmp(&(right.revision, &right.key)));
    let expected = vec![
        event(one, "w/a", Some("1")),
        event(two, "w/a", None),
        event(two, "w/b", Some("2")),
        event(three, "w/b", Some("2")),
        event(four, "w/b", None),
    ];
    assert_eq!(seen, expected);
}

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn a_watch_goes_on_from_the_revision_it_was_given(harness: &dyn Harness) {
    let store = harness.store();
    put(&*store, "w/a", "0").await;
    let one = put(&*store, "w/a", "1").await;
    let two = put(&*store, "w/a", "2").await;
    let mut from_one = watch(&*store, "w/", one).await;
    assert_eq!(events(&mut from_one, 1).await, vec![event(two, "w/a", Some("2"))]);
    let mut from_two = watch(&*store, "w/", two).await;
    let three = put(&*store, "w/a", "3").await;
    let expected = vec![event(three, "w/a", Some("3"))];
    assert_eq!(events(&mut from_two, 1).await, expected);
    assert_eq!(events(&mut from_one, 1).await, expected);
}

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn a_watch_from_a_compacted_revision_says_so(harness: &dyn Harness) {
    let store = harness.store();
    let old = put(&*store, "w/a", "0").await;
    put(&*store, "w/a", "1").await;
    harness.compact().await;
    let mut watch = watch(&*store, "w/", old).await;
    assert_eq!(next(&mut watch).await, Err(WatchError::Compacted));
    let now = store.range("w/", None, 10).await.expect("read").revision;
    let mut watch = self::watch(&*store, "w/", now).await;
    let revision = put(&*store, "w/a", "2").await;
    assert_eq!(events(&mut watch, 1).await, vec![event(revision, "w/a", Some("2"))]);
}

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn concurrent_increments_are_all_counted_and_all_watched(harness: &dyn Harness) {
    const TASKS: u64 = 8;
    const INCREMENTS: u64 = 25;
    let store = harness.store();
    let start = applied(store.txn(Txn::default().put("n", 0_u64.to_le_bytes().to_vec())).await);
    let number = |bytes: &Bytes| -> u64 {
        u64::from_le_bytes(bytes.as_ref().try_into().expect("eight bytes were written"))
    };
    let mut watch = watch(&*store, "n", start).await;
    let tasks = (0..TASKS).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for _ in 0..INCREMENTS {
                loop {
                    let pair = get(&*store, "n").await.expect("it was written");
                    let next = (number(&pair.value) + 1).to_le_bytes().to_vec();
                    let txn = Txn::default()
                        .when(Compare::Unchanged("n".to_owned(), pair.modified))
                        .put("n", next);
                    match store.txn(txn).await.expect("the store answers") {
                        TxnOutcome::Applied(_) => break,
                        TxnOutcome::Conflict(_) => {}
                    }
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no task panics");
    }
    let total = usize::try_from(TASKS * INCREMENTS).expect("a small number");
    let counted: Vec<u64> = events(&mut watch, total)
        .await
        .iter()
        .map(|event| number(event.value.as_ref().expect("it is never deleted")))
        .collect();
    assert_eq!(counted, (1..=TASKS * INCREMENTS).collect::<Vec<_>>());
}

/// Long enough for a lease to bear a slow machine, whose backends may count in seconds.
const TTL: Duration = Duration::from_secs(3);

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn a_lease_that_is_not_kept_alive_ends_with_its_keys_in_one_revision(
    harness: &dyn Harness,
) {
    let store = harness.store();
    let dying = store.grant_lease(TTL).await.expect("granted");
    let kept = store.grant_lease(TTL).await.expect("granted");
    let txn = Txn::default()
        .put_leased("l/a", "1", dying)
        .put_leased("l/b", "1", dying)
        .put_leased("l/kept", "1", kept)
        .put_leased("l/moved", "1", dying)
        .put_leased("l/freed", "1", dying);
    applied(store.txn(txn).await);
    assert_eq!(get(&*store, "l/a").await.and_then(|pair| pair.lease), Some(dying));
    let txn = Txn::default().put_leased("l/moved", "2", kept).put("l/freed", "2");
    let start = applied(store.txn(txn).await);
    let mut watch = watch(&*store, "l/", start).await;
    for _ in 0..3 {
        harness.pass(TTL / 2).await;
        // Meanwhile `dying` runs out.
        assert_eq!(store.keep_alive(kept).await, Ok(()));
    }
    let mut seen = events(&mut watch, 2).await;
    seen.sort_by(|left, right| left.key.cmp(&right.key));
    let end = seen[0].revision;
    assert_eq!(seen, vec![event(end, "l/a", None), event(end, "l/b", None)]);
    let page = store.range("l/", None, 10).await.expect("read");
    let left: Vec<&str> = page.pairs.iter().map(|pair| pair.key.as_str()).collect();
    assert_eq!(left, ["l/freed", "l/kept", "l/moved"]);
    assert_eq!(store.keep_alive(dying).await, Err(StoreError::LeaseLost));
    let late = store.txn(Txn::default().put("l/x", "1").put_leased("l/a", "1", dying)).await;
    assert_eq!(late, Err(StoreError::LeaseLost));
    assert_eq!(get(&*store, "l/x").await, None, "nothing of it was applied");
}

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn a_revoked_lease_takes_its_keys_and_nothing_hangs_on_it_again(harness: &dyn Harness) {
    let store = harness.store();
    let lease = store.grant_lease(TTL * 100).await.expect("granted");
    applied(store.txn(Txn::default().put_leased("l/a", "1", lease).put("l/b", "1")).await);
    assert_eq!(store.revoke_lease(lease).await, Ok(()));
    assert_eq!(get(&*store, "l/a").await, None);
    assert!(get(&*store, "l/b").await.is_some());
    assert_eq!(store.revoke_lease(lease).await, Err(StoreError::LeaseLost));
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseLost));
    let late = store.txn(Txn::default().put_leased("l/a", "1", lease)).await;
    assert_eq!(late, Err(StoreError::LeaseLost));
    // A condition that doesn't hold is the first thing a transaction fails on.
    let conflict = Txn::default().put_leased("l/a", "1", lease);
    let conflict = conflict.when(Compare::Present("l/a".to_owned()));
    assert_conflict(&store.txn(conflict).await);
}

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn limits_are_refused_before_anything_is_done(harness: &dyn Harness) {
    let store = harness.store();
    let many = MAX_TXN_OPS + 1;
    let put_many = (0..many).fold(Txn::default(), |txn, key| txn.put(format!("k/{key}"), "v"));
    let compare = |txn: Txn, key| txn.when(Compare::Absent(format!("k/{key}")));
    let compare_many = (0..many).fold(Txn::default().put("k/x", "v"), compare);
    let large = Txn::default().put("k/a", vec![0; MAX_TXN_BYTES / 2]);
    let large = large.put("k/b", vec![0; MAX_TXN_BYTES / 2 + 1]);
    let long = Txn::default().put("k".repeat(super::MAX_KEY_BYTES + 1), "v");
    for txn in [put_many, compare_many, large, long] {
        let refused = store.txn(txn).await;
        assert!(matches!(refused, Err(StoreError::TooLarge(_))), "{refused:?}");
    }
    for txn in [
        Txn::default().put("k/a", "1").put("k/a", "2"),
        Txn::default().put("k/a", "1").delete("k/a"),
        Txn::default().put("", "1"),
        Txn::default().put("/k", "1"),
        Txn::default().put("k\0", "1"),
        Txn::default().delete("k\n"),
        Txn::default().when(Compare::Absent(String::new())).put("k/a", "1"),
    ] {
        let refused = store.txn(txn.clone()).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{txn:?}: {refused:?}");
    }
    assert!(matches!(store.get("").await, Err(StoreError::Invalid(_))));
    assert!(matches!(store.grant_lease(Duration::ZERO).await, Err(StoreError::Invalid(_))));
    assert_eq!(store.range("", None, 10).await.map(|page| page.pairs), Ok(vec![]));
}

#[allow(missing_docs, reason = "a scenario's name says what it shows")]
pub async fn transactions_at_the_limits_pass(harness: &dyn Harness) {
    let store = harness.store();
    let full = |txn: Txn, key| {
        let name = format!("k/{key:03}");
        txn.when(Compare::Absent(name.clone())).put(name, "v")
    };
    applied(store.txn((0..MAX_TXN_OPS).fold(Txn::default(), full)).await);
    let bytes = MAX_TXN_BYTES - "large".len();
    applied(store.txn(Txn::default().put("large", vec![7; bytes])).await);
    assert_eq!(value(&*store, "large").await.map(|value| value.len()), Some(bytes));
    let long = "k".repeat(super::MAX_KEY_BYTES);
    put(&*store, &long, "v").await;
    assert!(get(&*store, &long).await.is_some());
}
