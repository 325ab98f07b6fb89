//! The runtime over model bookies and the memory metadata store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_ledger::config::LedgerStoreConfig;
use geminga_ledger::error::{
    AppendRefused, CloseError, CreateError, DeleteError, OpenError, ReadError, RecoverError,
};
use geminga_ledger::harness::bookie::Fullness;
use geminga_ledger::harness::transport::ModelTransport;
use geminga_ledger::metadata::LedgerState;
use geminga_ledger::observer::{LedgerObserver, StallReason, WriterFailure};
use geminga_ledger::placement::{FixedPlacement, Placement, PlacementError};
use geminga_ledger::store::LedgerStore;
use geminga_ledger::transport::faulty::{FaultRates, FaultyTransport};
use geminga_ledger::writer::LedgerWriter;
use geminga_meta::keys;
use geminga_meta::record::LedgerOwner;
use geminga_meta::store::memory::{Fault, MemoryStore};
use geminga_meta::store::{Compare, MetadataStore, Txn};
use geminga_proto::env::{Env, SeededRandom, SystemClock};
use geminga_proto::id::{BookieId, EntryId, Lac, LedgerId, ManagedLedgerId};
use geminga_proto::payload::Payload;
use parking_lot::Mutex;

const OWNER: LedgerOwner = LedgerOwner::ManagedLedger(ManagedLedgerId(1));

#[derive(Debug, Clone, PartialEq, Eq)]
enum Heard {
    Confirmed(u64),
    Failed(WriterFailure),
    Stalled(StallReason),
    Resumed,
}

#[derive(Debug, Default)]
struct Ears {
    heard: Mutex<Vec<Heard>>,
}

impl LedgerObserver for Ears {
    fn confirmed(&self, lac: EntryId) {
        self.heard.lock().push(Heard::Confirmed(lac.0));
    }
    fn failed(&self, failure: WriterFailure) {
        self.heard.lock().push(Heard::Failed(failure));
    }
    fn stalled(&self, reason: StallReason) {
        self.heard.lock().push(Heard::Stalled(reason));
    }
    fn resumed(&self) {
        self.heard.lock().push(Heard::Resumed);
    }
}

impl Ears {
    fn has(&self, what: &Heard) -> bool {
        self.heard.lock().contains(what)
    }

    async fn wait_for(&self, what: &Heard) {
        self.wait_for_any(std::slice::from_ref(what)).await;
    }

    async fn wait_for_any(&self, what: &[Heard]) {
        for _ in 0..2_000 {
            if what.iter().any(|what| self.has(what)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never heard {what:?}, only {:?}", self.heard.lock());
    }
}

struct World {
    store: LedgerStore,
    meta: Arc<MemoryStore>,
    bookies: ModelTransport,
    names: Vec<BookieId>,
}

fn world(bookies: usize, write_quorum: u32, ack_quorum: u32) -> World {
    world_with(bookies, write_quorum, ack_quorum, |placement| placement)
}

fn world_with<P: Placement>(
    bookies: usize,
    write_quorum: u32,
    ack_quorum: u32,
    placement: impl FnOnce(FixedPlacement) -> P,
) -> World {
    let names: Vec<BookieId> =
        (0..bookies).map(|index| BookieId::new(&format!("b{index}")).expect("valid")).collect();
    let clock = Arc::new(SystemClock::default());
    let env = Env { clock: clock.clone(), random: Arc::new(SeededRandom::new(1)) };
    let meta = Arc::new(MemoryStore::new(clock));
    let transport = ModelTransport::new(&names);
    let placement = Arc::new(placement(FixedPlacement::new(env.clone(), names.clone())));
    let config = LedgerStoreConfig {
        write_quorum,
        ack_quorum,
        append_timeout_ms: 400,
        request_timeout_ms: 300,
        retry_interval_ms: 20,
        ..LedgerStoreConfig::default()
    };
    let shared: Arc<dyn MetadataStore> = meta.clone();
    let store = LedgerStore::new(config, env, shared, Arc::new(transport.clone()), placement)
        .expect("valid settings inside a runtime");
    World { store, meta, bookies: transport, names }
}

impl World {
    async fn create(&self) -> (LedgerWriter, Arc<Ears>) {
        let ears = Arc::new(Ears::default());
        let link = |_: LedgerId| Txn::default();
        let writer = self.store.create(OWNER, None, link, ears.clone()).await.expect("created");
        (writer, ears)
    }
}

fn payload(number: u64) -> Payload {
    Payload::new(Bytes::from_static(b"head "), Bytes::from(number.to_string()))
}

fn append_all(writer: &LedgerWriter, numbers: std::ops::Range<u64>) {
    for number in numbers {
        assert_eq!(writer.append(payload(number)), Ok(EntryId(number)));
    }
}

#[tokio::test]
async fn entries_are_confirmed_in_order_closed_and_read_back() {
    for (bookies, write_quorum, ack_quorum) in [(1, 1, 1), (3, 3, 2), (4, 2, 2)] {
        let world = world(bookies, write_quorum, ack_quorum);
        let (writer, ears) = world.create().await;
        assert_eq!((writer.write_quorum(), writer.ack_quorum()), (write_quorum, ack_quorum));
        append_all(&writer, 0..100);
        ears.wait_for(&Heard::Confirmed(99)).await;
        assert_eq!(writer.pending_bytes(), 0);
        let own = writer.read(EntryId(90), 20, u64::MAX).await.expect("confirmed");
        assert_eq!(own.len(), 10);
        let closed = writer.close().await.expect("closed");
        assert_eq!(closed.last_entry, Lac(Some(EntryId(99))));
        assert_eq!(writer.close().await, Ok(closed));
        assert_eq!(writer.append(payload(100)), Err(AppendRefused::Failed(WriterFailure::Closed)));
        let reader = world.store.open(writer.id()).await.expect("opened");
        let mut next = 0;
        while next < 100 {
            let entries = reader.read(EntryId(next), 7, u64::MAX).await.expect("readable");
            for stored in entries {
                assert_eq!(Payload::from(stored.payload), payload(next));
                next += 1;
            }
        }
        let bytes: u64 = (0..100).map(|number| payload(number).len() as u64).sum();
        assert_eq!(reader.closed().bytes, bytes);
        let rising = ears.heard.lock().clone();
        assert!(rising.windows(2).all(|pair| match pair {
            [Heard::Confirmed(first), Heard::Confirmed(second)] => first < second,
            _ => false,
        }));
    }
}

#[tokio::test]
async fn an_open_ledger_is_recovered_by_a_new_owner_and_its_old_owner_hears_that_it_is_fenced() {
    let world = world(4, 3, 2);
    let (writer, ears) = world.create().await;
    append_all(&writer, 0..10);
    ears.wait_for(&Heard::Confirmed(9)).await;
    assert_eq!(world.store.open(writer.id()).await.err(), Some(OpenError::NotClosed(writer.id())));
    let closed = world.store.recover(writer.id()).await.expect("recovered");
    assert_eq!(closed.last_entry, Lac(Some(EntryId(9))));
    assert_eq!(closed.bytes, 60, "every entry has the size of the sample");
    assert_eq!(world.store.recover(writer.id()).await, Ok(closed), "closed already");
    // A zombie finds out with its next append, and nothing of it is confirmed.
    assert_eq!(writer.append(payload(10)), Ok(EntryId(10)));
    ears.wait_for(&Heard::Failed(WriterFailure::Fenced)).await;
    assert!(!ears.has(&Heard::Confirmed(10)));
    assert_eq!(writer.close().await, Err(CloseError::Failed(WriterFailure::Fenced)));
}

#[tokio::test]
async fn an_empty_ledger_is_recovered_as_empty() {
    let world = world(3, 3, 2);
    let (writer, _ears) = world.create().await;
    let closed = world.store.recover(writer.id()).await.expect("recovered");
    assert_eq!((closed.last_entry, closed.bytes), (Lac::NONE, 0));
    let reader = world.store.open(writer.id()).await.expect("opened");
    let beyond = reader.read(EntryId(0), 1, 1).await;
    assert!(matches!(beyond, Err(ReadError::BeyondEnd { .. })), "{beyond:?}");
}

#[tokio::test]
async fn a_failed_bookie_is_replaced_and_nothing_is_lost() {
    let world = world(4, 3, 2);
    let (writer, ears) = world.create().await;
    append_all(&writer, 0..5);
    ears.wait_for(&Heard::Confirmed(4)).await;
    let before = world.store.describe(writer.id()).await.expect("described");
    world.bookies.set_up(&before.fragments[0].bookies[0], false);
    append_all(&writer, 5..10);
    ears.wait_for(&Heard::Confirmed(9)).await;
    let closed = writer.close().await.expect("closed");
    let after = world.store.describe(writer.id()).await.expect("described");
    assert_eq!((after.state, after.fragments.len()), (LedgerState::Closed, 2));
    assert!(!after.fragments[1].bookies.contains(&before.fragments[0].bookies[0]));
    let reader = world.store.open(writer.id()).await.expect("opened");
    let first = reader.read(EntryId(0), 100, u64::MAX).await.expect("readable");
    assert_eq!(first.len(), after.fragments[1].first_entry.0 as usize, "up to the fragment's end");
    assert_eq!(closed.last_entry, Lac(Some(EntryId(9))));
}

#[tokio::test]
async fn a_full_disk_pauses_the_ledger_and_it_resumes_in_order_when_there_is_space() {
    let world = world(1, 1, 1);
    let (writer, ears) = world.create().await;
    append_all(&writer, 0..3);
    ears.wait_for(&Heard::Confirmed(2)).await;
    world.bookies.with_disk(&world.names[0], |disk| disk.full = Fullness::FirstMark);
    append_all(&writer, 3..50);
    ears.wait_for(&Heard::Stalled(StallReason::DiskFull)).await;
    // Longer than the append timeout: waiting for space has no limit.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(writer.lac(), Lac(Some(EntryId(2))));
    world.bookies.with_disk(&world.names[0], |disk| disk.full = Fullness::Free);
    ears.wait_for(&Heard::Confirmed(49)).await;
    assert!(ears.has(&Heard::Resumed));
    assert_eq!(writer.close().await.map(|closed| closed.last_entry), Ok(Lac(Some(EntryId(49)))));
}

#[tokio::test]
async fn a_bookie_that_restarts_under_a_single_copy_ledger_is_sent_again_what_it_lost() {
    let world = world(1, 1, 1);
    let (writer, ears) = world.create().await;
    world.bookies.set_hung(&world.names[0], true);
    append_all(&writer, 0..20);
    world.bookies.set_up(&world.names[0], false);
    world.bookies.set_hung(&world.names[0], false);
    ears.wait_for(&Heard::Stalled(StallReason::Unavailable)).await;
    world.bookies.set_up(&world.names[0], true);
    ears.wait_for(&Heard::Confirmed(19)).await;
    let entries = writer.read(EntryId(0), 100, u64::MAX).await.expect("readable");
    assert_eq!(entries.len(), 20);
}

#[tokio::test]
async fn a_ledger_whose_bookies_stay_away_fails_and_can_be_recovered_later() {
    let world = world(1, 1, 1);
    let (writer, ears) = world.create().await;
    append_all(&writer, 0..3);
    ears.wait_for(&Heard::Confirmed(2)).await;
    world.bookies.set_up(&world.names[0], false);
    append_all(&writer, 3..5);
    ears.wait_for(&Heard::Failed(WriterFailure::QuorumLost)).await;
    let unreachable = world.store.recover(writer.id()).await;
    assert!(matches!(unreachable, Err(RecoverError::Fence { .. })), "{unreachable:?}");
    world.bookies.set_up(&world.names[0], true);
    let closed = world.store.recover(writer.id()).await.expect("recovered");
    assert_eq!(closed.last_entry, Lac(Some(EntryId(2))));
}

#[tokio::test]
async fn a_hung_bookie_blocks_neither_the_owner_nor_a_recovery() {
    let world = world(3, 3, 2);
    let (writer, ears) = world.create().await;
    world.bookies.set_hung(&world.names[1], true);
    append_all(&writer, 0..10);
    ears.wait_for(&Heard::Confirmed(9)).await;
    let closed = world.store.recover(writer.id()).await.expect("recovered");
    assert_eq!(closed.last_entry, Lac(Some(EntryId(9))));
}

#[tokio::test]
async fn a_ledger_is_created_together_with_its_link_or_not_at_all() {
    let world = world(3, 3, 2);
    let link = |id: LedgerId| {
        Txn::default().when(Compare::Absent("list".into())).put("list", id.0.to_string())
    };
    let ears = Arc::new(Ears::default());
    let first = world.store.create(OWNER, None, link, ears.clone()).await.expect("created");
    let second = world.store.create(OWNER, Some(first.id()), link, ears.clone()).await;
    assert_eq!(second.err(), Some(CreateError::Conflict));
    let list = world.meta.get("list").await.expect("up").expect("linked");
    assert_eq!(list.value, Bytes::from(first.id().0.to_string()));
    let next = LedgerId(first.id().0 + 1);
    assert_eq!(world.store.describe(next).await, Err(OpenError::NotFound(next)));
}

#[tokio::test]
async fn a_creation_whose_answer_was_lost_is_recognized_by_its_token() {
    let world = world(3, 3, 2);
    let (first, _ears) = world.create().await;
    world.meta.faults().next_txns([Fault::AnswerLost]);
    let (second, ears) = world.create().await;
    assert!(second.id() > first.id());
    append_all(&second, 0..2);
    ears.wait_for(&Heard::Confirmed(1)).await;
    world.meta.faults().next_txns([Fault::RequestLost]);
    let link = |_: LedgerId| Txn::default();
    let lost = world.store.create(OWNER, None, link, ears.clone()).await;
    assert!(matches!(lost, Err(CreateError::Metadata(_))), "{lost:?}");
}

#[tokio::test]
async fn the_owner_goes_on_without_the_metadata_store_and_closes_when_it_is_back() {
    let world = world(4, 3, 2);
    let (writer, ears) = world.create().await;
    append_all(&writer, 0..2);
    ears.wait_for(&Heard::Confirmed(1)).await;
    let ensemble = world.store.describe(writer.id()).await.expect("up").fragments[0].clone();
    world.meta.faults().set_down(true);
    world.bookies.set_up(&ensemble.bookies[2], false);
    append_all(&writer, 2..10);
    ears.wait_for(&Heard::Confirmed(9)).await;
    assert_eq!(writer.close().await, Err(CloseError::Unavailable));
    world.meta.faults().set_down(false);
    let closed = writer.close().await.expect("closed");
    assert_eq!(closed.last_entry, Lac(Some(EntryId(9))));
    let record = world.store.describe(writer.id()).await.expect("up");
    assert!(record.under_replicated, "the missing copies are recorded for repair");
}

#[tokio::test]
async fn ledgers_are_deleted_with_their_link_and_bookies_are_told() {
    let world = world(3, 3, 2);
    let (writer, _ears) = world.create().await;
    writer.close().await.expect("closed");
    let id = writer.id();
    let refused = Txn::default().when(Compare::Present("list".into()));
    assert_eq!(world.store.delete(&[id], refused).await, Err(DeleteError::Conflict));
    assert!(world.store.describe(id).await.is_ok());
    assert_eq!(world.store.delete(&[id], Txn::default()).await, Ok(()));
    assert_eq!(world.store.describe(id).await, Err(OpenError::NotFound(id)));
    assert_eq!(world.store.recover(id).await, Err(RecoverError::NotFound(id)));
    for _ in 0..200 {
        if world.names.iter().all(|name| world.bookies.hints(name) == [id]) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the bookies were not told");
}

#[tokio::test]
async fn with_fewer_bookies_than_the_write_quorum_a_ledger_opens_marked_for_repair() {
    let world = world(2, 3, 2);
    let (writer, ears) = world.create().await;
    assert_eq!((writer.write_quorum(), writer.ack_quorum()), (2, 2));
    append_all(&writer, 0..2);
    ears.wait_for(&Heard::Confirmed(1)).await;
    let record = world.store.describe(writer.id()).await.expect("up");
    assert!(record.under_replicated);
    assert_eq!(record.write_quorum, 2);
}

#[tokio::test]
async fn a_damaged_record_is_named_and_never_guessed_around() {
    let world = world(3, 3, 2);
    let (writer, _ears) = world.create().await;
    let garbage = Txn::default().put(keys::ledger(writer.id()), &b"\xff\xff"[..]);
    world.meta.txn(garbage).await.expect("up");
    let id = writer.id();
    assert!(matches!(world.store.open(id).await, Err(OpenError::Damaged { .. })));
    assert!(matches!(world.store.recover(id).await, Err(RecoverError::Damaged { .. })));
}

/// The observer takes the lock that is held around `append`, as a topic does.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_observer_may_take_the_lock_that_is_held_around_append() {
    #[derive(Debug, Default)]
    struct Topic {
        state: Mutex<u64>,
    }
    impl LedgerObserver for Topic {
        fn confirmed(&self, lac: EntryId) {
            *self.state.lock() = lac.0;
        }
        fn failed(&self, failure: WriterFailure) {
            panic!("failed: {failure}");
        }
        fn stalled(&self, reason: StallReason) {
            panic!("stalled: {reason}");
        }
        fn resumed(&self) {}
    }
    let world = world(3, 3, 2);
    let topic = Arc::new(Topic::default());
    let link = |_: LedgerId| Txn::default();
    let writer = world.store.create(OWNER, None, link, topic.clone()).await.expect("created");
    for number in 0..2_000 {
        let state = topic.state.lock();
        assert_eq!(writer.append(payload(number)), Ok(EntryId(number)));
        drop(state);
        if number % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let closed = tokio::time::timeout(Duration::from_secs(20), writer.close()).await;
    assert_eq!(
        closed.expect("no deadlock").map(|closed| closed.last_entry),
        Ok(Lac(Some(EntryId(1_999))))
    );
}

/// Panics at everything that it hears, but for its end.
#[derive(Debug, Default)]
struct Panicky(Ears);

impl LedgerObserver for Panicky {
    fn confirmed(&self, lac: EntryId) {
        panic!("a defect at {lac}");
    }
    fn failed(&self, failure: WriterFailure) {
        let defect = failure != WriterFailure::Panicked;
        self.0.failed(failure);
        assert!(!defect, "a defect");
    }
    fn stalled(&self, reason: StallReason) {
        panic!("a defect: {reason}");
    }
    fn resumed(&self) {
        panic!("a defect");
    }
}

#[tokio::test]
async fn an_observer_that_panics_hears_the_end_of_its_ledger_and_no_other_ledger_does() {
    let world = world(3, 3, 2);
    let panicky = Arc::new(Panicky::default());
    let link = |_: LedgerId| Txn::default();
    let writer = world.store.create(OWNER, None, link, panicky.clone()).await.expect("created");
    let (other, ears) = world.create().await;
    append_all(&writer, 0..1);
    panicky.0.wait_for(&Heard::Failed(WriterFailure::Panicked)).await;
    let ended = AppendRefused::Failed(WriterFailure::Panicked);
    assert_eq!(writer.append(payload(1)), Err(ended));
    assert_eq!(writer.close().await, Err(CloseError::Failed(WriterFailure::Panicked)));
    append_all(&other, 0..20);
    ears.wait_for(&Heard::Confirmed(19)).await;
    let closed = world.store.recover(writer.id()).await.expect("recovered");
    assert_eq!(closed.last_entry, Lac(Some(EntryId(0))));
    assert_eq!(*panicky.0.heard.lock(), [Heard::Failed(WriterFailure::Panicked)]);
}

#[tokio::test]
async fn an_observer_that_panics_at_the_end_of_its_ledger_hears_of_it_once_more() {
    let world = world(3, 3, 2);
    let panicky = Arc::new(Panicky::default());
    let link = |_: LedgerId| Txn::default();
    let writer = world.store.create(OWNER, None, link, panicky.clone()).await.expect("created");
    world.store.recover(writer.id()).await.expect("recovered");
    append_all(&writer, 0..1);
    panicky.0.wait_for(&Heard::Failed(WriterFailure::Panicked)).await;
    let heard = [WriterFailure::Fenced, WriterFailure::Panicked].map(Heard::Failed);
    assert_eq!(*panicky.0.heard.lock(), heard);
}

/// Panics when it is asked for a replacement, once.
#[derive(Debug)]
struct PanickyPlacement(FixedPlacement, std::sync::atomic::AtomicBool);

impl Placement for PanickyPlacement {
    fn pick(
        &self,
        count: usize,
        at_least: usize,
        exclude: &[BookieId],
    ) -> Result<Vec<BookieId>, PlacementError> {
        let spent = exclude.is_empty() || self.1.swap(true, std::sync::atomic::Ordering::AcqRel);
        assert!(spent, "a defect");
        self.0.pick(count, at_least, exclude)
    }
}

#[tokio::test]
async fn a_ledger_whose_tick_panics_is_given_up_and_the_others_are_ticked_on() {
    let world = world_with(2, 2, 2, |placement| PanickyPlacement(placement, false.into()));
    let (first, first_ears) = world.create().await;
    let (second, second_ears) = world.create().await;
    for name in &world.names {
        world.bookies.set_hung(name, true);
    }
    append_all(&first, 0..1);
    append_all(&second, 0..1);
    let panicked = Heard::Failed(WriterFailure::Panicked);
    // Only time tells that nobody answers.
    for ears in [&first_ears, &second_ears] {
        ears.wait_for_any(&[panicked.clone(), Heard::Failed(WriterFailure::QuorumLost)]).await;
    }
    assert!(first_ears.has(&panicked) != second_ears.has(&panicked), "the defect shows once");
}

/// Owner after owner over a transport that delays, loses and refuses: whatever was confirmed is in
/// the ledgers, once and in order, and so is nothing that wasn't appended.
#[tokio::test]
async fn over_a_faulty_transport_everything_confirmed_is_there_after_recovery() {
    for seed in 0..4 {
        let names: Vec<BookieId> =
            (0..5).map(|index| BookieId::new(&format!("b{index}")).expect("valid")).collect();
        let clock = Arc::new(SystemClock::default());
        let env = Env { clock: clock.clone(), random: Arc::new(SeededRandom::new(seed)) };
        let rates = FaultRates { lost_requests: 5, lost_answers: 5, refusals: 5, max_delay_ms: 2 };
        let inner = Arc::new(ModelTransport::new(&names));
        let runtime = tokio::runtime::Handle::current();
        let faulty = Arc::new(FaultyTransport::new(inner, seed, rates, runtime));
        let config = LedgerStoreConfig {
            append_timeout_ms: 2_000,
            request_timeout_ms: 1_000,
            retry_interval_ms: 20,
            ..LedgerStoreConfig::default()
        };
        let placement = Arc::new(FixedPlacement::new(env.clone(), names));
        let meta = Arc::new(MemoryStore::new(clock));
        let store = LedgerStore::new(config, env, meta, faulty.clone(), placement).expect("valid");
        let mut last = None;
        for _ in 0..3 {
            let ears = Arc::new(Ears::default());
            let link = |_: LedgerId| Txn::default();
            let writer = store.create(OWNER, last, link, ears.clone()).await.expect("created");
            assert!(last.is_none_or(|before| writer.id() > before));
            last = Some(writer.id());
            for number in 0..200 {
                // A ledger may fail under so many faults: then its owner stops.
                if writer.append(payload(number)) != Ok(EntryId(number)) {
                    break;
                }
                if number % 20 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
            let confirmed = writer.lac();
            let mut tries = 0;
            let closed = loop {
                match store.recover(writer.id()).await {
                    Ok(closed) => break closed,
                    Err(error) => assert!(tries < 100, "{error}"),
                }
                tries += 1;
            };
            assert!(closed.last_entry >= confirmed, "seed {seed}: {closed:?}, {confirmed}");
            assert!(writer.lac() <= closed.last_entry, "nothing is confirmed beyond the end");
            faulty.set_rates(FaultRates::default());
            let reader = store.open(writer.id()).await.expect("closed");
            let mut next = EntryId(0);
            while closed.last_entry.covers(next) {
                for stored in reader.read(next, 50, u64::MAX).await.expect("readable") {
                    assert_eq!(
                        (stored.entry, stored.payload),
                        (next, payload(next.0).into_bytes())
                    );
                    next = next.next();
                }
            }
            faulty.set_rates(rates);
        }
    }
}
