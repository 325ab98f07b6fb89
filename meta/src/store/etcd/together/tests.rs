//! Who goes together with whom, and that it makes no difference.

use std::collections::BTreeMap;
use std::sync::Mutex as StdMutex;
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::Notify;

use super::*;
use crate::store::{LeaseId, Revision};

fn key() -> impl Strategy<Value = String> {
    "[a-d]"
}

fn txn() -> impl Strategy<Value = Txn> {
    let compare = (key(), 0_u8..3).prop_map(|(key, kind)| match kind {
        0 => Compare::Absent(key),
        1 => Compare::Present(key),
        _ => Compare::Unchanged(key, Revision(1)),
    });
    let op = (key(), any::<bool>()).prop_map(|(key, puts)| match puts {
        true => Op::Put { key, value: "v".into(), lease: None },
        false => Op::Delete(key),
    });
    let (compares, ops) = (prop::collection::vec(compare, 0..3), prop::collection::vec(op, 0..3));
    (compares, ops).prop_map(|(compares, mut ops)| {
        let mut seen = BTreeSet::new();
        ops.retain(|op| seen.insert(written(op).to_owned()));
        Txn { compares, ops }
    })
}

/// Keys with the revisions at which they were written.
type Table = BTreeMap<String, u64>;

fn holds(txn: &Txn, table: &Table) -> bool {
    txn.compares.iter().all(|compare| match compare {
        Compare::Absent(key) => !table.contains_key(key),
        Compare::Present(key) => table.contains_key(key),
        Compare::Unchanged(key, revision) => table.get(key) == Some(&revision.0),
    })
}

fn write(txn: &Txn, table: &mut Table) {
    for op in &txn.ops {
        match op {
            Op::Put { key, .. } => table.insert(key.clone(), 9),
            Op::Delete(key) => table.remove(key),
        };
    }
}

fn waiting<I: Joins>(items: Vec<I>) -> (State<I, ()>, Vec<oneshot::Receiver<()>>) {
    let mut state = State { waiting: VecDeque::new(), under_way: 0, next_number: 0 };
    let mut hearing = Vec::new();
    for (number, item) in (0..).zip(items) {
        let (answer, heard) = oneshot::channel();
        state.waiting.push_back(Waiting { number, item, answer });
        hearing.push(heard);
    }
    (state, hearing)
}

proptest! {
    /// etcd compares for all that go together before it writes for any of them.
    #[test]
    fn what_goes_together_comes_to_the_same_as_one_after_the_other_in_any_order(
        txns in prop::collection::vec(txn(), 1..8),
        table in prop::collection::btree_map(key(), 1_u64..3, 0..4),
        backwards in any::<bool>(),
    ) {
        let (mut state, _hearing) = waiting(txns.clone());
        let mut sent = 0;
        while !state.waiting.is_empty() {
            let mut taken: Vec<Txn> = state.take().into_iter().map(|one| one.item).collect();
            prop_assert!(!taken.is_empty());
            sent += taken.len();
            let mut at_once = table.clone();
            let hold: Vec<bool> = taken.iter().map(|txn| holds(txn, &table)).collect();
            for (txn, _) in taken.iter().zip(&hold).filter(|(_, holds)| **holds) {
                write(txn, &mut at_once);
            }
            let mut hold: Vec<(bool, usize)> = hold.into_iter().zip(0..).collect();
            if backwards {
                taken.reverse();
                hold.reverse();
            }
            let mut in_turn = table.clone();
            for (txn, (held, number)) in taken.iter().zip(hold) {
                prop_assert_eq!(holds(txn, &in_turn), held, "the outcome of {}", number);
                if held {
                    write(txn, &mut in_turn);
                }
            }
            prop_assert_eq!(at_once, in_turn);
        }
        prop_assert_eq!(sent, txns.len());
    }
}

fn put(key: &str) -> Txn {
    Txn::default().put(key, "v")
}

/// How many go in each request.
fn sizes(txns: Vec<Txn>) -> Vec<usize> {
    let (mut state, _hearing) = waiting(txns);
    let mut sizes = Vec::new();
    while !state.waiting.is_empty() {
        sizes.push(state.take().len());
    }
    sizes
}

#[test]
fn what_hangs_on_a_lease_or_puts_nothing_or_is_large_goes_alone() {
    let leased = Txn::default().put_leased("l", "v", LeaseId(1));
    assert_eq!(sizes(vec![put("a"), leased, put("b"), put("c")]), [3, 1]);
    let deletion = Txn::default().delete("d");
    assert_eq!(sizes(vec![deletion.clone(), put("a"), deletion]), [1, 1, 1]);
    let large = put("a").put("b", vec![0; MOST_TXN_BYTES]);
    assert_eq!(sizes(vec![put("c"), large, put("d")]), [2, 1]);
    let many = (0..=MOST_OPS).fold(Txn::default(), |txn, number| txn.put(number.to_string(), "v"));
    assert_eq!(sizes(vec![put("a"), many, put("b")]), [2, 1]);
}

#[test]
fn a_request_never_has_more_than_etcd_takes() {
    let txns = (0..100).map(|number| put(&format!("k{number}"))).collect();
    assert_eq!(sizes(txns), [32, 32, 32, 4]);
    let bytes = vec![0; MOST_TXN_BYTES - 10];
    let txns = (0..20).map(|number| Txn::default().put(format!("k{number}"), bytes.clone()));
    assert!(sizes(txns.collect()).iter().all(|size| size * MOST_TXN_BYTES <= MOST_BYTES + 4_096));
    // One more goes along (`exchange`).
    const { assert!(MOST_TXNS + 1 + MOST_OPS <= crate::store::MAX_TXN_OPS) };
    const { assert!(MOST_READS <= crate::store::MAX_TXN_OPS) };
    let (mut state, _hearing) = waiting((0..70).map(|number| format!("k{number}")).collect());
    assert_eq!((state.take().len(), state.take().len()), (MOST_READS, 6));
}

#[test]
fn conflicting_ones_go_one_after_the_other_and_nobody_is_left_behind() {
    let same = || vec![put("a"), put("a"), put("b"), put("a"), put("b")];
    assert_eq!(sizes(same()), [2, 2, 1]);
    let skew =
        |compared: &str, written: &str| put(written).when(Compare::Absent(compared.to_owned()));
    assert_eq!(sizes(vec![skew("x", "y"), skew("y", "x")]), [1, 1]);
    // All may compare what nobody writes.
    assert_eq!(sizes(vec![skew("owner", "x"), skew("owner", "y"), put("owner")]), [2, 1]);
}

#[test]
fn who_has_given_up_is_not_sent() {
    let (mut state, mut hearing) = waiting(vec![put("a"), put("b"), put("c")]);
    drop(hearing.remove(1));
    let taken: Vec<_> = state.take().into_iter().map(|one| one.number).collect();
    assert_eq!((taken, state.waiting.len()), (vec![0, 2], 0));
}

/// What a lane sends, which waits until it is let go on.
#[derive(Debug, Default)]
struct Gate {
    sent: StdMutex<Vec<Vec<String>>>,
    open: Notify,
}

impl Gate {
    async fn send(self: Arc<Self>, keys: Vec<String>) -> Vec<String> {
        self.sent.lock().expect("no panic").push(keys.clone());
        self.open.notified().await;
        keys
    }

    fn sent(&self) -> Vec<usize> {
        self.sent.lock().expect("no panic").iter().map(Vec::len).collect()
    }
}

fn in_a_minute() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_go_together_and_each_hears_its_own_answer() {
    let (lane, gate) = (Arc::new(Lane::<String, String>::new()), Arc::new(Gate::default()));
    let ask = |number: usize| {
        let (lane, gate) = (Arc::clone(&lane), Arc::clone(&gate));
        tokio::spawn(async move {
            let send = move |keys| Arc::clone(&gate).send(keys);
            lane.ask(format!("k{number}"), in_a_minute(), send).await
        })
    };
    let mut asking = Vec::new();
    for number in 0..MOST_UNDER_WAY {
        asking.push(ask(number));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    asking.extend((MOST_UNDER_WAY..10).map(ask));
    tokio::time::sleep(Duration::from_millis(1)).await;
    // Who finds a place goes at once and alone.
    assert_eq!(gate.sent(), [1; MOST_UNDER_WAY]);
    for _ in 0..=MOST_UNDER_WAY {
        gate.open.notify_one();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(gate.sent(), [&[1; MOST_UNDER_WAY][..], &[10 - MOST_UNDER_WAY]].concat());
    for (number, answer) in asking.into_iter().enumerate() {
        assert_eq!(answer.await.expect("no panic"), Ok(format!("k{number}")));
    }
    assert_eq!(lane.state.lock().under_way, 0);
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_hears_whether_it_was_sent() {
    let (lane, gate) = (Arc::new(Lane::<String, String>::new()), Arc::new(Gate::default()));
    let ask = |key: &str, limit_ms| {
        let (lane, gate, key) = (Arc::clone(&lane), Arc::clone(&gate), key.to_owned());
        let deadline = Instant::now() + Duration::from_millis(limit_ms);
        tokio::spawn(async move {
            lane.ask(key, deadline, move |keys| Arc::clone(&gate).send(keys)).await
        })
    };
    let mut sent = Vec::new();
    for _ in 0..MOST_UNDER_WAY {
        sent.push(ask("sent", 10));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let unsent = ask("unsent", 10);
    for sent in sent {
        assert_eq!(sent.await.expect("no panic"), Err(Unanswered::Lost));
    }
    assert_eq!(unsent.await.expect("no panic"), Err(Unanswered::Unsent));
    assert!(lane.state.lock().waiting.is_empty());
    // Those that are answered late free their places.
    gate.open.notify_waiters();
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!((gate.sent().len(), lane.state.lock().under_way), (MOST_UNDER_WAY, 0));
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_sending_is_heard_and_those_that_wait_are_sent() {
    let lane = Arc::new(Lane::<String, String>::new());
    let ask = |key: &str| {
        let (lane, key) = (Arc::clone(&lane), key.to_owned());
        let send = async |keys: Vec<String>| {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!keys.contains(&"bad".to_owned()), "planted");
            keys
        };
        tokio::spawn(async move { lane.ask(key, in_a_minute(), send).await })
    };
    let mut panicked = Vec::new();
    for _ in 0..MOST_UNDER_WAY {
        panicked.push(ask("bad"));
        // Each goes at once and alone.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waiting = ask("good");
    for panicked in panicked {
        assert_eq!(panicked.await.expect("no panic of its own"), Err(Unanswered::Lost));
    }
    assert_eq!(waiting.await.expect("no panic"), Ok("good".to_owned()));
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(lane.state.lock().under_way, 0);
}
