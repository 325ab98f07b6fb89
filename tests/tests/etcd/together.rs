//! Requests that go together, on a real etcd: none of them notices.

use std::sync::Arc;
use std::time::Duration;

use geminga_meta::store::contract::Harness;
use geminga_meta::store::{Compare, MetadataStore, Revision, StoreError, Txn, TxnOutcome};

use super::{Real, put};

fn absent(key: &str) -> Compare {
    Compare::Absent(key.to_owned())
}

/// Asks for all at once; answers in order.
async fn at_once(
    store: &Arc<dyn MetadataStore>,
    txns: impl Iterator<Item = Txn>,
) -> Vec<Result<TxnOutcome, StoreError>> {
    let ask = |txn| {
        let store = Arc::clone(store);
        tokio::spawn(async move { store.txn(txn).await })
    };
    let asking: Vec<_> = txns.map(ask).collect();
    let mut outcomes = Vec::new();
    for asking in asking {
        outcomes.push(asking.await.expect("no panic"));
    }
    outcomes
}

async fn revision(store: &dyn MetadataStore) -> Revision {
    store.range("", None, 1).await.expect("it answers").revision
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_come_at_once_share_requests_and_each_has_its_own_outcome() {
    const COUNT: usize = 300;
    let real = Real::start().await;
    let store = real.store();
    put(&*store, "owner", "me").await.expect("written");
    let was_there = |number: usize| number.is_multiple_of(5);
    for number in (0..COUNT).filter(|number| was_there(*number)) {
        put(&*store, &format!("k{number}"), "before").await.expect("written");
    }
    let before = revision(&*store).await;
    let create = |number: usize| {
        let key = format!("k{number}");
        let owned = Compare::Present("owner".to_owned());
        Txn::default().when(absent(&key)).when(owned).put(key, format!("v{number}"))
    };
    let outcomes = at_once(&store, (0..COUNT).map(create)).await;
    let read = |number: usize| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.get(&format!("k{number}")).await })
    };
    let reading: Vec<_> = (0..COUNT).map(read).collect();
    for (number, (outcome, reading)) in outcomes.iter().zip(reading).enumerate() {
        let pair = reading.await.expect("no panic").expect("readable").expect("there");
        assert_eq!(pair.key, format!("k{number}"));
        match outcome {
            Ok(TxnOutcome::Conflict(_)) if was_there(number) => assert_eq!(pair.value, "before"),
            Ok(TxnOutcome::Applied(revision)) if !was_there(number) => {
                assert_eq!((pair.value, pair.modified), (format!("v{number}").into(), *revision));
            }
            other => panic!("{number}: {other:?}"),
        }
    }
    let (applied, taken) = (COUNT * 4 / 5, revision(&*store).await.0 - before.0);
    assert!(taken < applied as u64 / 2, "{applied} transactions took {taken} revisions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_exclude_each_other_one_alone_is_applied_however_many_come_at_once() {
    let real = Real::start().await;
    let store = real.store();
    let each = |number: usize| {
        let (x, y) = (format!("x{}", number / 2), format!("y{}", number / 2));
        let (compared, written) = if number.is_multiple_of(2) { (x, y) } else { (y, x) };
        Txn::default().when(absent(&compared)).put(written, "1")
    };
    let outcomes = at_once(&store, (0..200).map(each)).await;
    for (number, both) in outcomes.chunks(2).enumerate() {
        let applied = |outcome: &&Result<TxnOutcome, StoreError>| {
            matches!(outcome, Ok(TxnOutcome::Applied(_)))
        };
        assert_eq!(both.iter().filter(applied).count(), 1, "{number}: {both:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_hangs_on_an_ended_lease_fails_alone() {
    let real = Real::start().await;
    let store = real.store();
    let lease = store.grant_lease(Duration::from_secs(60)).await.expect("granted");
    store.revoke_lease(lease).await.expect("revoked");
    let each = |number: usize| {
        let key = format!("k{number}");
        match number {
            50 => Txn::default().put_leased(key, "v", lease),
            _ => Txn::default().put(key, "v"),
        }
    };
    for (number, outcome) in at_once(&store, (0..100).map(each)).await.into_iter().enumerate() {
        match outcome {
            Err(StoreError::LeaseLost) if number == 50 => {}
            Ok(TxnOutcome::Applied(_)) if number != 50 => {}
            other => panic!("{number}: {other:?}"),
        }
    }
}
