//! What a bookie that hangs, or is away, does to the ledgers that don't need it: nothing, whatever
//! the metadata store does. What an owner hears that asks whether it was replaced; and what new
//! ledgers are called once bookies know more of them than the metadata store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_ledger::config::LedgerStoreConfig;
use geminga_ledger::harness::transport::ModelTransport;
use geminga_ledger::observer::{LedgerObserver, StallReason, WriterFailure};
use geminga_ledger::placement::{FixedPlacement, Placement, PlacementError};
use geminga_ledger::probe::Probed;
use geminga_ledger::store::LedgerStore;
use geminga_ledger::transport::faulty::{FaultRates, FaultyTransport};
use geminga_ledger::writer::LedgerWriter;
use geminga_meta::record::LedgerOwner;
use geminga_meta::store::Txn;
use geminga_meta::store::memory::MemoryStore;
use geminga_proto::env::{Env, SeededRandom, SystemClock};
use geminga_proto::id::{BookieId, EntryId, Lac, LedgerId, ManagedLedgerId};
use geminga_proto::payload::Payload;
use parking_lot::Mutex;

const OWNER: LedgerOwner = LedgerOwner::ManagedLedger(ManagedLedgerId(1));
/// Nothing that has to wait for a hung bookie ends before this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct Ears {
    confirmed: Mutex<Lac>,
    failed: Mutex<Option<WriterFailure>>,
}

impl LedgerObserver for Ears {
    fn confirmed(&self, lac: EntryId) {
        *self.confirmed.lock() = Lac(Some(lac));
    }
    fn failed(&self, failure: WriterFailure) {
        *self.failed.lock() = Some(failure);
    }
    fn stalled(&self, _: StallReason) {}
    fn resumed(&self) {}
}

/// Any of the bookies, which say that they know ledgers up to this one.
#[derive(Debug)]
struct Knowing(FixedPlacement, Mutex<LedgerId>);

impl Placement for Knowing {
    fn pick(
        &self,
        want: usize,
        at_least: usize,
        exclude: &[BookieId],
    ) -> Result<Vec<BookieId>, PlacementError> {
        self.0.pick(want, at_least, exclude)
    }

    fn highest_ledger(&self, at_most: LedgerId) -> LedgerId {
        let told = *self.1.lock();
        if told <= at_most { told } else { LedgerId(0) }
    }
}

struct World {
    store: LedgerStore,
    meta: Arc<MemoryStore>,
    placement: Arc<Knowing>,
    bookies: ModelTransport,
    names: Vec<BookieId>,
}

fn world(bookies: usize) -> World {
    let names: Vec<BookieId> =
        (0..bookies).map(|index| BookieId::new(&format!("b{index}")).expect("valid")).collect();
    world_over(ModelTransport::new(&names), names, 1)
}

/// A metadata store that knows nothing, over these bookies.
fn world_over(transport: ModelTransport, names: Vec<BookieId>, seed: u64) -> World {
    let clock = Arc::new(SystemClock::default());
    let env = Env { clock: clock.clone(), random: Arc::new(SeededRandom::new(seed)) };
    let config = LedgerStoreConfig {
        append_timeout_ms: 20_000,
        request_timeout_ms: 20_000,
        retry_interval_ms: 20,
        read_hedge_ms: 20,
        ..LedgerStoreConfig::default()
    };
    // What answers does so a little late, and never in the same order.
    let rates = FaultRates { max_delay_ms: 2, ..FaultRates::default() };
    let runtime = tokio::runtime::Handle::current();
    let faulty = FaultyTransport::new(Arc::new(transport.clone()), 3, rates, runtime);
    let meta = Arc::new(MemoryStore::new(clock));
    let any = FixedPlacement::new(env.clone(), names.clone());
    let placement = Arc::new(Knowing(any, Mutex::default()));
    let (shared, chooses) = (Arc::clone(&meta), Arc::clone(&placement));
    let store = LedgerStore::new(config, env, shared, Arc::new(faulty), chooses);
    World { store: store.expect("valid"), meta, placement, bookies: transport, names }
}

impl World {
    async fn written(&self, entries: u64) -> (LedgerWriter, Arc<Ears>) {
        let ears = Arc::new(Ears::default());
        let link = |_: LedgerId| Txn::default();
        let writer = self.store.create(OWNER, None, link, ears.clone()).await.expect("created");
        for number in 0..entries {
            let payload = Payload::from(Bytes::from(number.to_string()));
            assert_eq!(writer.append(payload), Ok(EntryId(number)));
        }
        until("it is confirmed", || writer.lac() == Lac(EntryId(entries).previous())).await;
        (writer, ears)
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn a_hung_bookie_holds_up_no_append_recovery_or_read() {
    for hung in 0..3 {
        let world = world(3);
        let (writer, ears) = world.written(100).await;
        world.bookies.set_hung(&world.names[hung], true);
        let begun = Instant::now();
        for number in 100..200u64 {
            assert_eq!(writer.append(Bytes::from(number.to_string()).into()), Ok(EntryId(number)));
        }
        until("it goes on", || *ears.confirmed.lock() == Lac(Some(EntryId(199)))).await;
        let closed = world.store.recover(writer.id()).await.expect("recovered");
        assert_eq!(closed.last_entry, Lac(Some(EntryId(199))));
        let reader = world.store.open(writer.id()).await.expect("opened");
        let mut next = 0;
        while next < 200 {
            for stored in reader.read(EntryId(next), 100, 1 << 20).await.expect("readable") {
                assert_eq!(stored.payload, Bytes::from(next.to_string()));
                next += 1;
            }
        }
        assert!(begun.elapsed() < REQUEST_TIMEOUT / 4, "{:?} with {hung} hung", begun.elapsed());
    }
}

#[tokio::test]
async fn a_metadata_store_that_hangs_while_a_bookie_is_replaced_holds_up_no_append() {
    let world = world(4);
    let (writer, ears) = world.written(10).await;
    let members = world.store.describe(writer.id()).await.expect("there");
    let gone = members.last_fragment().bookies[0].clone();
    world.meta.faults().set_delay(Duration::from_secs(3_600));
    world.bookies.set_up(&gone, false);
    let begun = Instant::now();
    for number in 10..100u64 {
        assert_eq!(writer.append(Bytes::from(number.to_string()).into()), Ok(EntryId(number)));
        // One at a time: none may wait for the record, whatever the writer does about it.
        until("it goes on", || *ears.confirmed.lock() == Lac(Some(EntryId(number)))).await;
    }
    assert!(begun.elapsed() < REQUEST_TIMEOUT / 4, "{:?}", begun.elapsed());
    assert_eq!(*ears.failed.lock(), None);
}

#[tokio::test]
async fn metadata_that_were_restored_give_no_id_out_that_a_bookie_knows() {
    let before = world(3);
    let mut last = LedgerId(0);
    for _ in 0..3 {
        let (writer, _) = before.written(5).await;
        assert!(writer.id() > last);
        last = writer.id();
    }
    let World { bookies, names, .. } = before;
    let after = world_over(bookies, names, 2);
    *after.placement.1.lock() = last;
    let (first, _) = after.written(5).await;
    assert_eq!(first.id(), last.next(), "the first attempt succeeds");
    // A bookie that was away comes back and knows more; the ids left of the block are skipped.
    *after.placement.1.lock() = LedgerId(5_000);
    let (second, _) = after.written(5).await;
    let (third, _) = after.written(5).await;
    assert_eq!((second.id(), third.id()), (LedgerId(5_001), LedgerId(5_002)));
}

#[tokio::test]
async fn an_owner_that_asks_hears_which_of_its_ledgers_others_have_fenced() {
    let world = world(3);
    let mut writers = Vec::new();
    for _ in 0..4 {
        writers.push(world.written(5).await);
    }
    let handles: Vec<LedgerWriter> = writers.iter().map(|(writer, _)| writer.clone()).collect();
    assert_eq!(world.store.probe(&handles).await, [Probed::Open; 4]);
    world.store.recover(handles[1].id()).await.expect("recovered");
    handles[3].close().await.expect("closed");
    // It answers last, if ever.
    world.bookies.set_hung(&world.names[2], true);
    let begun = Instant::now();
    let found = world.store.probe(&handles).await;
    assert_eq!(found, [Probed::Open, Probed::Fenced, Probed::Open, Probed::Ended]);
    assert!(begun.elapsed() < REQUEST_TIMEOUT / 4, "nobody waits for the one that hangs");
    let (fenced, ears) = &writers[1];
    until("it is told", || ears.failed.lock().is_some()).await;
    assert_eq!(*ears.failed.lock(), Some(WriterFailure::Fenced));
    assert!(fenced.append(Payload::default()).is_err());
    assert_eq!(*writers[0].1.failed.lock(), None);
    assert_eq!(world.store.probe(&handles[1..2]).await, [Probed::Ended]);
}

#[tokio::test]
async fn without_an_ack_quorum_of_answers_nothing_is_said_of_a_ledger() {
    let world = world(3);
    let (writer, ears) = world.written(5).await;
    world.bookies.set_up(&world.names[0], false);
    assert_eq!(world.store.probe(std::slice::from_ref(&writer)).await, [Probed::Open]);
    world.bookies.set_up(&world.names[1], false);
    assert_eq!(world.store.probe(std::slice::from_ref(&writer)).await, [Probed::Unheard]);
    assert_eq!(*ears.failed.lock(), None);
    assert!(world.store.probe(&[]).await.is_empty());
}
