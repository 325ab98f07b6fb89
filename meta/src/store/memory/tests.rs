//! The memory backend passes the contract, and its faults are what they are called.

use geminga_proto::env::ManualClock;

use super::*;
use crate::store::contract::Harness;
use crate::store::{StoreError, WatchError};

struct Memory {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
}

impl Memory {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as Arc<dyn Clock>));
        Self { clock, store }
    }
}

#[async_trait]
impl Harness for Memory {
    fn store(&self) -> Arc<dyn MetadataStore> {
        Arc::clone(&self.store) as Arc<dyn MetadataStore>
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        self.store.expire_leases();
    }

    async fn compact(&self) {
        self.store.compact();
    }
}

crate::contract_suite!(Memory::new());

#[tokio::test]
async fn a_lost_request_is_not_done_and_a_lost_answer_hides_what_is() {
    let store = Memory::new().store;
    store.faults().next_txns([Fault::RequestLost, Fault::Unavailable, Fault::AnswerLost]);
    let put = || store.txn(Txn::default().put("k", "v"));
    assert!(matches!(put().await, Err(StoreError::Unknown(_))));
    assert_eq!(store.get("k").await, Ok(None));
    assert!(matches!(put().await, Err(StoreError::Unavailable(_))));
    assert_eq!(store.get("k").await, Ok(None));
    assert!(matches!(put().await, Err(StoreError::Unknown(_))));
    assert_eq!(store.get("k").await.map(|pair| pair.is_some()), Ok(true));
    assert!(matches!(put().await, Ok(TxnOutcome::Applied(_))));
}

#[tokio::test]
async fn while_it_is_down_nothing_answers_and_nothing_is_done() {
    let store = Memory::new().store;
    store.faults().set_down(true);
    assert!(matches!(store.get("k").await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.range("k", None, 1).await, Err(StoreError::Unavailable(_))));
    let down = store.txn(Txn::default().put("k", "v")).await;
    assert!(matches!(down, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.watch("k", Revision(0)).await, Err(StoreError::Unavailable(_))));
    assert!(store.grant_lease(Duration::from_secs(1)).await.is_err());
    store.faults().clear();
    assert_eq!(store.get("k").await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn a_delay_takes_its_time() {
    let store = Memory::new().store;
    store.faults().set_delay(Duration::from_secs(5));
    let start = tokio::time::Instant::now();
    store.get("k").await.expect("answered");
    assert_eq!(start.elapsed(), Duration::from_secs(5));
}

#[tokio::test]
async fn a_script_decides_request_by_request() {
    let store = Memory::new().store;
    store.faults().set_script(|request| match request {
        Request::Get("bad") => Fault::Unavailable,
        _ => Fault::None,
    });
    assert!(store.get("bad").await.is_err());
    assert_eq!(store.get("good").await, Ok(None));
}

#[tokio::test]
async fn lost_watches_end_and_new_ones_work() {
    let store = Memory::new().store;
    let mut old = store.watch("", Revision(0)).await.expect("started");
    store.lose_watches();
    assert!(matches!(old.next().await, Err(WatchError::Lost(_))));
    let mut new = store.watch("", Revision(0)).await.expect("started");
    store.txn(Txn::default().put("k", "v")).await.expect("done");
    assert_eq!(new.next().await.map(|events| events.len()), Ok(1));
}
