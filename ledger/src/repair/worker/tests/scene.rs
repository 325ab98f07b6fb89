//! One ledger on model bookies, and attempts to repair it.

use async_trait::async_trait;
use bytes::Bytes;
use geminga_meta::read::read;
use geminga_meta::record::{LedgerOwner, Nonce, Record, RepairReason, Stored};
use geminga_meta::store::{MemoryStore, MetadataStore, Txn};
use geminga_proto::env::{Clock, Env, SeededRandom};
use geminga_proto::id::{BookieId, EntryId, Lac, LedgerToken, ManagedLedgerId};
use geminga_proto::storage::{
    AddKind, AppendRequest, BookieError, BookieInfo, FenceRequest, FenceResult, FencedResult,
    ReadRequest, ReadResult,
};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use super::super::*;
use crate::harness::transport::ModelTransport;
use crate::metadata::{Fragment, LedgerMetadata, LedgerState};
use crate::placement::{BookieView, ClusterView, Placement, PlacementError};
use crate::records;
use crate::store::LedgerStoreConfig;
use crate::transport::{AppendSink, BookieTransport};

pub(super) const LEDGER: LedgerId = LedgerId(7);
const TOKEN: LedgerToken = LedgerToken(5);
/// Entries of each fragment.
const ENTRIES: u64 = 10;

pub(super) fn name(index: usize) -> BookieId {
    BookieId::new(&format!("b{index}")).expect("valid")
}

pub(super) fn missing(index: usize) -> RepairReason {
    RepairReason::Missing(name(index))
}

/// Tokio's time, which a test moves.
#[derive(Debug)]
struct TokioClock(tokio::time::Instant);

impl Clock for TokioClock {
    fn wall_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Monotonic {
        self.0.elapsed()
    }
}

/// Knows what a test tells it.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub view: Mutex<ClusterView>,
    suspects: Mutex<Vec<BookieId>>,
}

impl Placement for Told {
    fn pick(
        &self,
        want: usize,
        at_least: usize,
        exclude: &[BookieId],
    ) -> Result<Vec<BookieId>, PlacementError> {
        let view = self.view();
        let takes = view.bookies.into_iter().filter(|it| it.takes && !exclude.contains(&it.bookie));
        let picked: Vec<BookieId> = takes.map(|it| it.bookie).take(want).collect();
        let available = picked.len();
        if available < at_least {
            return Err(PlacementError { at_least, available, narrow: None });
        }
        Ok(picked)
    }

    fn failed(&self, bookie: &BookieId, error: BookieError) {
        if matches!(error, BookieError::Unreachable) {
            self.suspects.lock().push(bookie.clone());
        }
    }

    fn is_draining(&self, bookie: &BookieId) -> bool {
        self.view.lock().is_draining(bookie)
    }

    fn view(&self) -> ClusterView {
        let mut view = self.view.lock().clone();
        let suspects = self.suspects.lock();
        for bookie in &mut view.bookies {
            bookie.suspect = suspects.contains(&bookie.bookie);
            bookie.takes &= !view.draining.contains(&bookie.bookie);
        }
        view
    }
}

/// Counts adds.
#[derive(Debug)]
pub(super) struct Counting {
    inner: ModelTransport,
    appends: AtomicUsize,
    /// How many of the next adds panic.
    pub panics: AtomicUsize,
}

impl Counting {
    pub(super) fn appends(&self) -> usize {
        self.appends.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl BookieTransport for Counting {
    fn append(&self, bookie: &BookieId, request: AppendRequest, sink: &Arc<dyn AppendSink>) {
        assert_eq!(request.kind, AddKind::Recovery);
        assert!(request.lac.0.is_none_or(|lac| lac < request.entry), "{request:?}");
        self.appends.fetch_add(1, Ordering::Relaxed);
        let left = |panics: usize| panics.checked_sub(1);
        let panics = self.panics.fetch_update(Ordering::Relaxed, Ordering::Relaxed, left);
        assert!(panics.is_err(), "a defect");
        self.inner.append(bookie, request, sink);
    }

    async fn read(&self, bookie: &BookieId, request: ReadRequest) -> ReadResult {
        // Short answers, so that a run takes several rounds.
        let max_entries = request.max_entries.min(4);
        self.inner.read(bookie, ReadRequest { max_entries, ..request }).await
    }

    async fn fence(&self, bookie: &BookieId, request: FenceRequest) -> FenceResult {
        self.inner.fence(bookie, request).await
    }

    async fn fenced(&self, bookie: &BookieId, ledgers: Vec<FenceRequest>) -> FencedResult {
        self.inner.fenced(bookie, ledgers).await
    }

    async fn delete_hint(
        &self,
        bookie: &BookieId,
        ledgers: Vec<LedgerId>,
    ) -> Result<(), BookieError> {
        self.inner.delete_hint(bookie, ledgers).await
    }

    async fn info(&self, bookie: &BookieId) -> Result<BookieInfo, BookieError> {
        self.inner.info(bookie).await
    }
}

pub(super) struct Scene {
    pub store: Arc<MemoryStore>,
    pub env: Env,
    pub transport: ModelTransport,
    pub counting: Arc<Counting>,
    pub placement: Arc<Told>,
    pub ledgers: LedgerStore,
}

pub(super) fn config(name: &str) -> RepairConfig {
    RepairConfig {
        name: name.to_owned(),
        grace: Duration::from_secs(30),
        bytes_per_second: 1 << 40,
        scan_interval: Duration::from_secs(1),
        ..RepairConfig::default()
    }
}

impl Scene {
    /// So many bookies, all up.
    pub(super) async fn new(bookies: usize) -> Self {
        let clock = Arc::new(TokioClock(tokio::time::Instant::now()));
        let env = Env { clock: Arc::clone(&clock) as _, random: Arc::new(SeededRandom::new(3)) };
        let store = Arc::new(MemoryStore::new(clock));
        let names: Vec<BookieId> = (0..bookies).map(name).collect();
        let transport = ModelTransport::new(&names);
        let (inner, appends, panics) =
            (transport.clone(), AtomicUsize::new(0), AtomicUsize::new(0));
        let counting = Arc::new(Counting { inner, appends, panics });
        let placement = Arc::new(Told::default());
        placement.view.lock().is_current = true;
        let (meta, shown) = (Arc::clone(&store) as _, Arc::clone(&placement) as _);
        let bookies_of = Arc::clone(&counting) as _;
        let config = LedgerStoreConfig::default();
        let ledgers = LedgerStore::new(config, env.clone(), meta, bookies_of, shown);
        let ledgers = ledgers.expect("valid");
        let scene = Self { store, env, transport, counting, placement, ledgers };
        (0..bookies).for_each(|index| scene.find(index));
        scene
    }

    /// It is registered again.
    pub(super) fn find(&self, index: usize) {
        let bookie = BookieView {
            bookie: name(index),
            zone: String::new(),
            free_bytes: 1 << 30,
            takes: true,
            suspect: false,
        };
        self.placement.view.lock().bookies.push(bookie);
        self.transport.set_up(&name(index), true);
    }

    /// It isn't there any more.
    pub(super) fn lose(&self, index: usize) {
        self.placement.view.lock().bookies.retain(|it| it.bookie != name(index));
        self.transport.set_up(&name(index), false);
    }

    pub(super) fn payload(entry: EntryId) -> Bytes {
        Bytes::from(format!("entry {entry}"))
    }

    pub(super) fn store_copy(&self, index: usize, entry: EntryId) {
        let request = AppendRequest {
            ledger: LEDGER,
            entry,
            token: TOKEN,
            lac: Lac(entry.previous()),
            kind: AddKind::Ordinary,
            payload: Self::payload(entry).into(),
        };
        self.transport.with_disk(&name(index), |disk| disk.store(request));
    }

    pub(super) fn damage(&self, index: usize, entry: EntryId) {
        self.transport.with_disk(&name(index), |disk| {
            disk.damaged.insert((LEDGER, entry));
        });
    }

    /// A disk reads an entry again.
    pub(super) fn heal(&self, index: usize, entry: EntryId) {
        self.transport.with_disk(&name(index), |disk| {
            disk.damaged.remove(&(LEDGER, entry));
        });
    }

    /// A ledger of ten entries a fragment, each of which is on all bookies of its ensemble.
    pub(super) async fn ledger(&self, state: LedgerState, ensembles: &[&[usize]]) {
        let mut fragments = Vec::new();
        for (number, ensemble) in ensembles.iter().enumerate() {
            let first = ENTRIES * number as u64;
            for entry in first..first + ENTRIES {
                ensemble.iter().for_each(|index| self.store_copy(*index, EntryId(entry)));
            }
            let bookies = ensemble.iter().copied().map(name).collect();
            fragments.push(Fragment { first_entry: EntryId(first), bookies });
        }
        let last = EntryId(ENTRIES * ensembles.len() as u64 - 1);
        let closed = state == LedgerState::Closed;
        let write_quorum = u32::try_from(ensembles[0].len()).expect("small");
        self.put(&LedgerMetadata {
            id: LEDGER,
            token: TOKEN,
            owner: LedgerOwner::ManagedLedger(ManagedLedgerId(1)),
            state,
            write_quorum,
            ack_quorum: write_quorum.min(2),
            fragments,
            last_entry: Lac(closed.then_some(last)),
            bytes: 0,
            created_ms: 0,
            under_replicated: false,
        })
        .await;
    }

    /// Somebody else writes the record.
    pub(super) async fn rewrite(&self, metadata: &LedgerMetadata) {
        self.put(metadata).await;
    }

    async fn put(&self, metadata: &LedgerMetadata) {
        let value = records::to_record(metadata).encode(Nonce::new(&*self.env.random));
        let txn = Txn::default().put(keys::ledger(LEDGER), value.expect("valid"));
        self.store.txn(txn).await.expect("written");
    }

    /// Its record says that entries may lack copies.
    pub(super) async fn mark(&self) {
        let metadata = self.metadata().await.expect("it is there");
        self.put(&LedgerMetadata { under_replicated: true, ..metadata }).await;
    }

    pub(super) async fn delete(&self) {
        self.store.txn(Txn::default().delete(keys::ledger(LEDGER))).await.expect("written");
    }

    pub(super) async fn queue(&self, reasons: &[RepairReason]) {
        let queued = geminga_meta::repair::queue(self.store.as_ref(), &self.env, LEDGER, reasons);
        assert!(queued.await.expect("queued").is_some());
    }

    pub(super) async fn task(&self) -> Option<RepairRecord> {
        let task = read(self.store.as_ref(), &keys::repair(LEDGER)).await.expect("read");
        task.map(|task: Stored<RepairRecord>| task.record)
    }

    pub(super) async fn metadata(&self) -> Option<LedgerMetadata> {
        let found = records::load(self.store.as_ref(), LEDGER, Duration::from_secs(5)).await;
        found.ok().map(|found| found.metadata)
    }

    pub(super) async fn version(&self) -> u64 {
        let found = records::load(self.store.as_ref(), LEDGER, Duration::from_secs(5)).await;
        found.expect("it is there").version
    }

    pub(super) fn worker(&self, name: &str) -> RepairWorker {
        RepairWorker::new(config(name), self.ledgers.clone(), Arc::default()).expect("valid")
    }

    pub(super) async fn lease(&self) -> LeaseKeeper {
        let meta = Arc::clone(&self.store) as Arc<dyn MetadataStore>;
        let ttl = Duration::from_secs(10);
        LeaseKeeper::grant(meta, self.env.clone(), ttl).await.expect("granted")
    }

    /// One attempt of a worker of its own.
    pub(super) async fn attempt(&self) -> Result<Repaired, RepairError> {
        let (worker, lease) = (self.worker("one"), self.lease().await);
        let result = worker.shared.repair(LEDGER, &lease, false).await;
        lease.release().await.expect("released");
        result
    }

    /// An attempt that stands still after so many polls while `meanwhile` happens, and then goes
    /// on. Answers what that answered.
    pub(super) async fn interrupt<T>(
        &self,
        polls: usize,
        meanwhile: impl AsyncFnOnce(&Self) -> T,
    ) -> T {
        let (worker, lease) = (self.worker("first"), self.lease().await);
        let mut attempt = Box::pin(worker.shared.repair(LEDGER, &lease, false));
        let ended = polled(attempt.as_mut(), polls).await;
        let answer = meanwhile(self).await;
        if !ended {
            drop(attempt.as_mut().await);
        }
        drop(attempt);
        // However it ended.
        lease.release().await.expect("released");
        answer
    }

    /// Attempts, each after a while, until nothing is queued any more.
    pub(super) async fn until_done(&self) {
        for _ in 0..10 {
            if self.task().await.is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(20)).await;
            drop(self.attempt().await);
        }
        panic!("it is never done: {:?}", self.task().await);
    }

    /// Every bookie that the record names has every entry.
    pub(super) fn assert_copies(&self, metadata: &LedgerMetadata) {
        let Some(last) = metadata.last_entry.0 else { return };
        for entry in (0..=last.0).map(EntryId) {
            for bookie in &metadata.fragment_of(entry).0.bookies {
                let request = ReadRequest {
                    ledger: LEDGER,
                    first: entry,
                    max_entries: 1,
                    max_bytes: 1,
                    fence: None,
                };
                let found = self.transport.with_disk(bookie, |disk| disk.read(&request));
                let found = found.map(|found| found[0].payload.clone());
                assert_eq!(found, Ok(Self::payload(entry)), "{entry} on {bookie}");
            }
        }
    }

    /// All copies are there, on bookies that are up; nothing is queued, and nobody is at it.
    pub(super) async fn assert_whole(&self, write_quorum: u32) {
        let metadata = self.metadata().await.expect("it is there");
        assert_eq!((metadata.write_quorum, metadata.under_replicated), (write_quorum, false));
        let view = self.placement.view();
        let up = |bookie: &BookieId| view.is_up(bookie) && !view.is_draining(bookie);
        let mut members = metadata.fragments.iter().flat_map(|fragment| &fragment.bookies);
        assert!(members.all(up), "{metadata:?}");
        self.assert_copies(&metadata);
        assert_eq!(self.task().await, None);
        assert_eq!(self.store.get(&keys::repair_lock(LEDGER)).await, Ok(None));
    }
}

/// Polls a future so often, unless it ends before: true then.
pub(super) async fn polled<F: Future>(mut future: std::pin::Pin<&mut F>, polls: usize) -> bool {
    let mut left = polls;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(_) => Poll::Ready(true),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}
