//! No number is handed out twice, whatever fails.

use std::collections::BTreeSet;

use geminga_proto::env::{ManualClock, Random, SeededRandom};
use proptest::prelude::*;

use super::*;
use crate::read::read;
use crate::store::memory::{Fault, MemoryStore};

fn env(seed: u64) -> Env {
    Env { clock: Arc::new(ManualClock::default()), random: Arc::new(SeededRandom::new(seed)) }
}

fn memory() -> Arc<MemoryStore> {
    Arc::new(MemoryStore::new(env(0).clock))
}

fn allocator<I: CountedId>(store: &Arc<MemoryStore>, seed: u64, block: u64) -> IdAllocator<I> {
    let store = Arc::clone(store) as Arc<dyn MetadataStore>;
    IdAllocator::with_block(store, env(seed), RetryPolicy::default(), block)
}

#[tokio::test(start_paused = true)]
async fn ids_start_at_one_and_rise_and_each_kind_counts_for_itself() {
    let store = memory();
    let ledgers = allocator::<LedgerId>(&store, 1, 2);
    let incarnations = allocator::<TopicIncarnation>(&store, 2, 2);
    for expected in 1..=5 {
        assert_eq!(ledgers.next().await, Ok(LedgerId(expected)));
        assert_eq!(incarnations.next().await, Ok(TopicIncarnation(expected)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_number_costs_no_transaction_while_the_block_lasts() {
    let store = memory();
    let ledgers = allocator::<LedgerId>(&store, 1, 100);
    for _ in 0..100 {
        ledgers.next().await.expect("an id");
    }
    assert_eq!(store.revision().0, 1);
    ledgers.next().await.expect("an id");
    assert_eq!(store.revision().0, 2);
}

#[tokio::test(start_paused = true)]
async fn a_lists_next_ledger_is_above_its_last_one_whoever_added_that() {
    let store = memory();
    let one = allocator::<LedgerId>(&store, 1, 10);
    let two = allocator::<LedgerId>(&store, 2, 10);
    assert_eq!(one.next().await, Ok(LedgerId(1)));
    let later = two.next().await.expect("an id");
    assert_eq!(later, LedgerId(11));
    // The rest of the first block is below it.
    assert_eq!(one.next_above(later).await, Ok(LedgerId(21)));
    assert_eq!(one.next_above(LedgerId(25)).await, Ok(LedgerId(26)));
    assert_eq!(one.next().await, Ok(LedgerId(27)));
    // A floor that the counter has never seen, as after a restored backup.
    assert_eq!(one.next_above(LedgerId(1_000)).await, Ok(LedgerId(1_001)));
    assert!(two.next_above(LedgerId(1_001)).await.expect("an id") > LedgerId(1_010));
}

#[tokio::test(start_paused = true)]
async fn what_others_tell_moves_the_counter_so_far_and_no_further() {
    let store = memory();
    let ids = allocator::<LedgerId>(&store, 1, 10);
    let numbers = |numbers: &[u64]| {
        let numbers = numbers.to_vec();
        move |up_to: LedgerId| {
            let fits = numbers.iter().filter(|number| **number <= up_to.0);
            LedgerId(fits.max().copied().unwrap_or(0))
        }
    };
    let wrong = LedgerId::MAX.0 - 1;
    let none = LedgerId(0);
    // The wrong number hides no other, costs no block each time, and moves nothing.
    for expected in 51..=58 {
        let told = numbers(&[50, wrong]);
        assert_eq!(ids.next_above_told(none, told).await, Ok(LedgerId(expected)));
    }
    let counter = async || {
        let key = keys::counter(Counter::Ledgers);
        read::<CounterRecord>(&*store, &key).await.expect("readable").expect("there").record.next
    };
    assert_eq!(counter().await, 61);
    let most = trusted_up_to(61);
    assert_eq!(most, 61 + TRUSTED_JUMP);
    // The block that is left was taken where the counter said 1.
    let above = ids.next_above_told(LedgerId(70), numbers(&[most])).await;
    assert_eq!(above, Ok(LedgerId(most + 1)));
    let beyond = trusted_up_to(counter().await) + 1;
    let other = allocator::<LedgerId>(&store, 2, 10);
    let next = counter().await;
    assert_eq!(other.next_above_told(none, numbers(&[beyond])).await, Ok(LedgerId(next)));
    assert_eq!(trusted_up_to(u64::MAX - 1), u64::MAX);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_numbers_is_an_error_and_not_a_wrap() {
    let store = memory();
    let ledgers = allocator::<LedgerId>(&store, 1, 1_000);
    let last = LedgerId(LedgerId::MAX.0 - 1);
    assert_eq!(ledgers.next_above(LedgerId(last.0 - 1)).await, Ok(last));
    assert_eq!(ledgers.next().await, Err(AllocateError::Exhausted("ledgers")));
    assert_eq!(ledgers.next_above(LedgerId::MAX).await, Err(AllocateError::Exhausted("ledgers")));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down_is_named_as_the_cause() {
    let store = memory();
    store.faults().set_down(true);
    let refused = allocator::<LedgerId>(&store, 1, 10).next().await.expect_err("down");
    assert!(matches!(refused.store_error(), Some(StoreError::Unavailable(_))), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_id_is_handed_out_twice_through_crashes_and_lost_answers(seed: u64, block in 1_u64..20) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("built");
        runtime.block_on(async {
            let store = memory();
            let faulty = SeededRandom::new(seed);
            store.faults().set_script(move |_| match faulty.below(6) {
                0 => Fault::Unavailable,
                1 => Fault::RequestLost,
                2 => Fault::AnswerLost,
                _ => Fault::None,
            });
            // Processes, each with several tasks on one allocator; a process ends in the middle
            // of its block and another follows.
            let processes = (0..3_u64).map(|process| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let mut mine = Vec::new();
                    for life in 0..4 {
                        let ids = allocator::<LedgerId>(&store, seed ^ (process * 8 + life), block);
                        let ids = Arc::new(ids);
                        let tasks = (0..3).map(|_| {
                            let ids = Arc::clone(&ids);
                            tokio::spawn(async move { take_some(&ids).await })
                        });
                        for task in tasks.collect::<Vec<_>>() {
                            mine.extend(task.await.expect("no task panics"));
                        }
                    }
                    mine
                })
            });
            let mut all = Vec::new();
            for process in processes.collect::<Vec<_>>() {
                all.extend(process.await.expect("no task panics"));
            }
            store.faults().clear();
            let distinct: BTreeSet<LedgerId> = all.iter().copied().collect();
            assert_eq!(distinct.len(), all.len(), "an id was handed out twice");
            assert!(!distinct.contains(&LedgerId(0)));
            let key = keys::counter(Counter::Ledgers);
            let counter = read::<CounterRecord>(&*store, &key).await.expect("read");
            let next = counter.map_or(0, |stored| stored.record.next);
            assert!(all.iter().all(|id| id.0 < next), "an id is above the counter");
        });
    }
}

async fn take_some(ids: &IdAllocator<LedgerId>) -> Vec<LedgerId> {
    let mut taken = Vec::new();
    for _ in 0..7 {
        let floor = taken.last().copied().unwrap_or_default();
        if let Ok(id) = ids.next_above(floor).await {
            assert!(id > floor);
            taken.push(id);
        }
        tokio::task::yield_now().await;
    }
    taken
}
