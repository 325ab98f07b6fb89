//! Lost answers, lost requests and rivals, in every order.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use geminga_proto::env::{ManualClock, Random, SeededRandom};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::record::{CounterRecord, TenantRecord};
use crate::store::front::{Front, Fronted};
use crate::store::memory::{Fault, MemoryStore};

const KEY: &str = "counters/ledgers";

fn env(seed: u64) -> Env {
    let random = Arc::new(SeededRandom::new(seed));
    Env { clock: Arc::new(ManualClock::default()), random }
}

fn store() -> MemoryStore {
    MemoryStore::new(env(0).clock)
}

async fn stored(store: &MemoryStore) -> Option<u64> {
    let read = read::<CounterRecord>(store, KEY).await.expect("read");
    read.map(|stored| stored.record.next)
}

async fn increment(
    store: &MemoryStore,
    env: &Env,
) -> Result<Option<Stored<CounterRecord>>, UpdateError<Infallible>> {
    let change = |current: Current<'_, CounterRecord>| {
        let next = current.stored.map_or(1, |stored| stored.record.next + 1);
        Ok(Change::Put(CounterRecord { next }))
    };
    update(store, env, RetryPolicy::default(), KEY, change).await
}

/// A transaction that puts the counter, expecting what is there.
async fn put(store: &MemoryStore, next: u64, nonce: Nonce) -> Txn {
    let compare = match read::<CounterRecord>(store, KEY).await.expect("read") {
        Some(stored) => stored.unchanged(),
        None => Compare::Absent(KEY.to_owned()),
    };
    let value = CounterRecord { next }.encode(nonce).expect("valid");
    Txn::default().when(compare).put(KEY, value)
}

#[tokio::test(start_paused = true)]
async fn an_update_is_made_once_though_requests_and_answers_are_lost() {
    use Fault::{AnswerLost, None, RequestLost, Unavailable};
    for faults in [
        vec![],
        vec![AnswerLost],
        vec![RequestLost],
        vec![Unavailable],
        vec![AnswerLost, AnswerLost],
        vec![RequestLost, AnswerLost],
        vec![Unavailable, RequestLost, AnswerLost, RequestLost, Unavailable, AnswerLost],
        vec![AnswerLost, Unavailable, None],
    ] {
        let (store, env) = (store(), env(1));
        for expected in 1..=3 {
            store.faults().next_txns(faults.clone());
            let updated = increment(&store, &env).await.expect("made").expect("stored");
            assert_eq!(updated.record.next, expected, "{faults:?}");
            let read = read::<CounterRecord>(&store, KEY).await.expect("read");
            assert_eq!(read, Some(updated), "what it answers is what is stored: {faults:?}");
            store.faults().clear();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_none_of_whose_answers_arrives_is_found_in_the_record() {
    let (store, env) = (store(), env(1));
    store.faults().next_txns(vec![Fault::AnswerLost; 100]);
    let updated = increment(&store, &env).await.expect("made").expect("stored");
    assert_eq!((updated.record.next, stored(&store).await), (1, Some(1)));
    assert_eq!(store.revision(), Revision(1));
}

#[tokio::test(start_paused = true)]
async fn rivals_make_it_read_and_decide_anew() {
    let store = Arc::new(store());
    let tasks = (0..6).map(|seed| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let env = env(seed);
            for _ in 0..5 {
                // Patience for five rivals.
                loop {
                    match increment(&store, &env).await {
                        Ok(_) => break,
                        Err(UpdateError::Contended { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no task panics");
    }
    assert_eq!(stored(&store).await, Some(30));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_stays_down_or_silent_is_a_typed_error_in_the_end() {
    let (store, env) = (store(), env(1));
    store.faults().set_down(true);
    let down = increment(&store, &env).await;
    let unavailable = |error: &UpdateError<Infallible>| {
        matches!(error, UpdateError::Read(ReadError::Store(StoreError::Unavailable(_))))
    };
    assert!(down.as_ref().is_err_and(unavailable), "{down:?}");
    store.faults().set_down(false);
    store.faults().next_txns(vec![Fault::RequestLost; 1_000]);
    let silent = increment(&store, &env).await;
    assert!(matches!(silent, Err(UpdateError::Store(StoreError::Unknown(_)))), "{silent:?}");
    store.faults().clear();
    assert_eq!(stored(&store).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_writes_nothing_and_keeping_writes_nothing() {
    #[derive(Debug, PartialEq, thiserror::Error)]
    #[error("no")]
    struct No;
    let (store, env) = (store(), env(1));
    let policy = RetryPolicy::default();
    let no = |_: Current<'_, CounterRecord>| Err(No);
    assert_eq!(update(&store, &env, policy, KEY, no).await, Err(UpdateError::Refused(No)));
    let keep = |_: Current<'_, CounterRecord>| Ok::<_, No>(Change::Keep);
    assert_eq!(update(&store, &env, policy, KEY, keep).await, Ok(None));
    let invalid =
        |_: Current<'_, CounterRecord>| Ok::<_, No>(Change::Put(CounterRecord { next: u64::MAX }));
    let refused = update(&store, &env, policy, KEY, invalid).await;
    assert!(matches!(refused, Err(UpdateError::Record { .. })), "{refused:?}");
    assert_eq!(store.revision(), Revision(0));
}

#[tokio::test(start_paused = true)]
async fn a_record_of_a_newer_version_is_never_overwritten() {
    let (store, env) = (store(), env(1));
    let stamp = geminga_proto::v1::record::Stamp { version: 2, nonce: 5 };
    let newer = TenantRecord { created_ms: 1 }.to_message(stamp).encode_to_vec();
    store.txn(Txn::default().put(KEY, newer)).await.expect("written");
    let refused = increment(&store, &env).await;
    let newer = |error: &UpdateError<Infallible>| {
        let UpdateError::Read(ReadError::Record { error, .. }) = error else { return false };
        matches!(error, RecordError::NewerVersion { found: 2, known: 1, .. })
    };
    assert!(refused.as_ref().is_err_and(newer), "{refused:?}");
    assert_eq!(store.revision(), Revision(1));
}

#[tokio::test(start_paused = true)]
async fn a_commit_whose_answer_was_lost_is_recognised_by_its_nonce() {
    let (store, env) = (store(), env(1));
    let nonce = Nonce::new(&*env.random);
    let txn = put(&store, 7, nonce).await.put("beside", "x");
    store.faults().next_txns([Fault::AnswerLost, Fault::Unavailable]);
    let witness = Witness::new(KEY, nonce);
    let outcome = commit(&store, &env, RetryPolicy::default(), txn, &witness).await;
    assert_eq!(outcome, Ok(TxnOutcome::Applied(Revision(1))));
    assert_eq!(store.revision(), Revision(1), "it was applied once");
}

#[tokio::test(start_paused = true)]
async fn a_conflict_after_a_lost_request_is_a_conflict() {
    let (store, env) = (store(), env(1));
    let policy = RetryPolicy::default();
    commit_plain(&store, &env, 1).await;
    let nonce = Nonce::new(&*env.random);
    let txn = put(&store, 7, nonce).await.when(Compare::Absent("beside".to_owned()));
    store.txn(Txn::default().put("beside", "x")).await.expect("written");
    store.faults().next_txns([Fault::RequestLost]);
    let outcome = commit(&store, &env, policy, txn, &Witness::new(KEY, nonce)).await;
    assert_eq!(outcome, Ok(TxnOutcome::Conflict(Revision(2))));
}

async fn commit_plain(store: &MemoryStore, env: &Env, next: u64) {
    let nonce = Nonce::new(&*env.random);
    let txn = put(store, next, nonce).await;
    let witness = Witness::new(KEY, nonce);
    let outcome = commit(store, env, RetryPolicy::default(), txn, &witness).await;
    assert!(matches!(outcome, Ok(TxnOutcome::Applied(_))), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_rival_has_covered_up_is_unknown_and_not_guessed() {
    for lost in [Fault::AnswerLost, Fault::RequestLost] {
        let store = Arc::new(store());
        let env = env(1);
        commit_plain(&store, &env, 1).await;
        let nonce = Nonce::new(&*env.random);
        let txn = put(&store, 7, nonce).await;
        store.faults().next_txns([lost]);
        let policy = RetryPolicy::default();
        let rival = {
            let (store, env) = (Arc::clone(&store), env.clone());
            async move {
                // Between the first copy and the second, which waits for some milliseconds.
                tokio::time::sleep(Duration::from_millis(1)).await;
                commit_plain(&store, &env, 9).await;
            }
        };
        let witness = Witness::new(KEY, nonce);
        let (outcome, ()) = tokio::join!(commit(&*store, &env, policy, txn, &witness), rival);
        assert!(matches!(outcome, Err(StoreError::Unknown(_))), "{lost:?}: {outcome:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_is_told_when_it_may_be_looking_at_its_own_traces() {
    let store = Arc::new(store());
    let env = env(1);
    commit_plain(&store, &env, 1).await;
    store.faults().next_txns([Fault::AnswerLost]);
    let mut flags = Vec::new();
    let change = |current: Current<'_, CounterRecord>| {
        flags.push(current.maybe_applied);
        let next = current.stored.map_or(1, |stored| stored.record.next + 1);
        Ok::<_, Infallible>(Change::Put(CounterRecord { next }))
    };
    let rival = async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        commit_plain(&store, &env, 100).await;
    };
    let update = update(&*store, &env, RetryPolicy::default(), KEY, change);
    let (updated, ()) = tokio::join!(update, rival);
    let updated = updated.expect("made").expect("stored");
    assert_eq!((updated.record.next, flags), (101, vec![false, true]));
}

#[tokio::test(start_paused = true)]
async fn waits_double_up_to_the_limit_and_are_spread() {
    let policy = RetryPolicy {
        attempts: 9,
        first_delay: Duration::from_millis(100),
        max_delay: Duration::from_millis(350),
    };
    let env = env(4);
    for (attempt, longest_ms) in [(1, 0), (2, 100), (3, 200), (4, 350), (5, 350), (60, 350)] {
        let start = tokio::time::Instant::now();
        policy.pause(&env, attempt).await;
        let waited = start.elapsed();
        let longest = Duration::from_millis(longest_ms);
        // Tokio's timer counts in milliseconds.
        let rounding = Duration::from_millis(1);
        assert!(waited <= longest + rounding && waited >= longest / 2, "{attempt}: {waited:?}");
    }
}

/// Answers each transaction with the next of these errors, the first after doing it.
#[derive(Debug)]
struct Failing {
    inner: MemoryStore,
    first_is_done: bool,
    errors: Mutex<VecDeque<StoreError>>,
    asked: AtomicU32,
}

#[async_trait]
impl Front for Failing {
    fn behind(&self) -> &MemoryStore {
        &self.inner
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let first = self.asked.fetch_add(1, Ordering::Relaxed) == 0;
        let Some(error) = self.errors.lock().pop_front() else {
            return self.inner.txn(txn).await;
        };
        if first && self.first_is_done {
            self.inner.txn(txn).await?;
        }
        Err(error)
    }
}

fn failing(first_is_done: bool) -> Fronted<Failing> {
    let lost = StoreError::Unknown("the first answer was lost".to_owned());
    let full = StoreError::Full("disarm it".to_owned());
    let mut errors = VecDeque::from(vec![full; 100]);
    errors.push_front(lost);
    let asked = AtomicU32::new(0);
    Fronted(Failing { inner: store(), first_is_done, errors: Mutex::new(errors), asked })
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_full_by_the_second_copy_does_not_hide_that_the_first_was_applied() {
    for first_is_done in [true, false] {
        let (store, env) = (failing(first_is_done), env(1));
        let nonce = Nonce::new(&*env.random);
        let txn = put(&store.0.inner, 7, nonce).await;
        let witness = Witness::new(KEY, nonce);
        let outcome = commit(&store, &env, RetryPolicy::default(), txn, &witness).await;
        assert_eq!(store.0.asked.load(Ordering::Relaxed), 2, "a full store isn't asked in vain");
        if first_is_done {
            assert_eq!(outcome, Ok(TxnOutcome::Applied(Revision(1))));
            continue;
        }
        let Err(StoreError::Unknown(why)) = outcome else { panic!("it is guessed: {outcome:?}") };
        assert!(why.contains("was lost") && why.contains("disarm it"), "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_update_that_is_unknown_because_the_store_is_full_says_what_to_do() {
    for first_is_done in [true, false] {
        let (store, env) = (failing(first_is_done), env(1));
        let change = |current: Current<'_, CounterRecord>| {
            let next = current.stored.map_or(1, |stored| stored.record.next + 1);
            Ok::<_, Infallible>(Change::Put(CounterRecord { next }))
        };
        let updated = update(&store, &env, RetryPolicy::default(), KEY, change).await;
        if first_is_done {
            let updated = updated.expect("made").expect("stored");
            assert_eq!(updated.record.next, 1);
            continue;
        }
        let Err(UpdateError::Store(StoreError::Unknown(why))) = updated else {
            panic!("it is guessed: {updated:?}")
        };
        assert!(why.contains("disarm it"), "{why}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn increments_that_were_answered_are_counted_exactly_under_random_faults(seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("built");
        runtime.block_on(async {
            let store = Arc::new(store());
            let faulty = SeededRandom::new(seed);
            store.faults().set_script(move |_| match faulty.below(8) {
                0 => Fault::Unavailable,
                1 => Fault::RequestLost,
                2 => Fault::AnswerLost,
                _ => Fault::None,
            });
            let tasks = (0..3).map(|task| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { count_up(&store, &env(seed ^ task)).await })
            });
            let (mut least, mut most) = (0, 0);
            for task in tasks.collect::<Vec<_>>() {
                let (certain, doubtful) = task.await.expect("no task panics");
                least += certain;
                most += certain + doubtful;
            }
            store.faults().clear();
            let total = stored(&store).await.unwrap_or(0);
            assert!((least..=most).contains(&total), "{least} ≤ {total} ≤ {most}");
        });
    }
}

/// Increments that were made for certain, and those that may have been made (once more).
async fn count_up(store: &MemoryStore, env: &Env) -> (u64, u64) {
    let (mut certain, mut doubtful) = (0, 0);
    for _ in 0..10 {
        let mut repeats = 0;
        let change = |current: Current<'_, CounterRecord>| {
            repeats += u64::from(current.maybe_applied);
            let next = current.stored.map_or(1, |stored| stored.record.next + 1);
            Ok::<_, Infallible>(Change::Put(CounterRecord { next }))
        };
        match update(store, env, RetryPolicy::default(), KEY, change).await {
            Ok(_) => certain += 1,
            Err(UpdateError::Store(StoreError::Unknown(_))) => doubtful += 1,
            Err(_) => {}
        }
        doubtful += repeats;
    }
    (certain, doubtful)
}
