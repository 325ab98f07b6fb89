//! Deletion trusts the metadata only, and stops when they look wrong.

use bytes::Bytes;
use geminga_meta::record::{
    Fragment, LedgerOwner, LedgerRecord, LedgerState, Nonce, Record, RepairClaim, RepairReason,
    RepairRecord,
};
use geminga_meta::store::{KeyValue, LeaseId, MemoryStore, Txn, TxnOutcome, Watch};
use geminga_proto::env::{Env, ManualClock, SeededRandom};
use geminga_proto::id::{BookieId, EntryId, Lac, LedgerToken, ManagedLedgerId};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{AddKind, AppendRequest, BookieError, FenceRequest, ReadRequest};

use super::*;
use crate::config::BookieConfig;
use crate::cookie::Identity;
use crate::device::memory::{MemoryDevice, Tear};

struct Scene {
    bookie: Bookie,
    store: Arc<MemoryStore>,
    device: MemoryDevice,
    collector: Collector,
}

fn cluster() -> ClusterId {
    ClusterId::new("c").expect("a name")
}

fn identity() -> Identity {
    Identity::detached(BookieId::new("b").expect("a name"), cluster(), 42)
}

fn config() -> BookieConfig {
    BookieConfig {
        segment_bytes: Some(1 << 20),
        first_segment_bytes: 256 * 1024,
        max_entry_bytes: 128 * 1024,
        mass_deletion_floor: 4,
        ..BookieConfig::default()
    }
}

async fn put(store: &MemoryStore, key: &str, value: impl Into<Bytes>) {
    store.txn(Txn::default().put(key, value)).await.expect("writes");
}

fn nonce() -> Nonce {
    Nonce::new(&SeededRandom::new(1))
}

async fn metadata(cluster: &ClusterId) -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new(Arc::new(ManualClock::default())));
    let record = ClusterRecord { cluster_id: cluster.clone(), format_version: 1, created_ms: 1 };
    put(&store, keys::CLUSTER, record.encode(nonce()).expect("valid")).await;
    let identity = identity();
    let cookie = CookieRecord {
        bookie_id: identity.bookie.clone(),
        cluster_id: cluster.clone(),
        instance: identity.instance,
    };
    put(&store, &keys::cookie(&identity.bookie), cookie.encode(nonce()).expect("valid")).await;
    store
}

/// A bookie that holds `ledgers`, all of them in the metadata.
async fn scene(ledgers: std::ops::Range<u64>) -> Scene {
    let device = MemoryDevice::new(64 << 20);
    let (bookie, _) =
        Bookie::open(config(), identity(), Arc::new(device.clone()), Env::system()).expect("opens");
    let store = metadata(&cluster()).await;
    for ledger in ledgers {
        let fence = FenceRequest { ledger: LedgerId(ledger), token: LedgerToken(1) };
        bookie.fence(fence).await.expect("fences");
        put(&store, &keys::ledger(LedgerId(ledger)), "a ledger").await;
    }
    let collector = Collector::new(bookie.clone(), store.clone());
    Scene { bookie, store, device, collector }
}

impl Scene {
    async fn forget(&self, ledger: u64) {
        let txn = Txn::default().delete(keys::ledger(LedgerId(ledger)));
        self.store.txn(txn).await.expect("deletes");
    }

    fn held(&self) -> Vec<u64> {
        self.bookie.log().ledgers().into_iter().map(|id| id.0).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_deletes_only_what_is_gone_from_the_metadata() {
    let mut scene = scene(1..5).await;
    scene.forget(2).await;
    scene.forget(3).await;
    scene.bookie.delete_hint(&[LedgerId(1), LedgerId(2), LedgerId(99)]);
    assert_eq!(scene.collector.look().await, Ok(1));
    assert_eq!(scene.held(), [1, 3, 4], "3 is gone too, but nobody hinted at it");
    assert_eq!(scene.collector.census().await, Ok(1));
    assert_eq!(scene.held(), [1, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metadata_going_back_stops_deletion_also_over_a_restart() {
    let mut scene = scene(1..4).await;
    assert_eq!(scene.collector.census().await, Ok(0));
    // An old copy: the same cluster, a lower revision, no ledgers.
    let old = metadata(&cluster()).await;
    let mut collector = Collector::new(scene.bookie.clone(), old.clone());
    scene.bookie.delete_hint(&[LedgerId(1)]);
    let stopped = collector.look().await;
    assert!(matches!(stopped, Err(CollectError::WentBack { .. })), "{stopped:?}");
    assert!(matches!(collector.census().await, Err(CollectError::Stopped(_))));
    assert_eq!(scene.held(), [1, 2, 3]);
    let device = Arc::new(scene.device.crash(Tear::Lost));
    let (bookie, _) =
        Bookie::open(config(), identity(), device, Env::system()).expect("opens again");
    let stopped = Collector::new(bookie, old).census().await;
    assert!(matches!(stopped, Err(CollectError::WentBack { .. })), "{stopped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_were_replaced_once_are_refused_at_any_revision_until_that_is_accepted() {
    let mut scene = scene(1..3).await;
    scene.forget(1).await;
    note_replaced(&scene.bookie).await.expect("noted");
    assert_eq!(scene.collector.census().await, Err(CollectError::Replaced));
    assert_eq!(scene.held(), [1, 2]);
    let store = Arc::clone(&scene.store) as Arc<dyn MetadataStore>;
    let reopen = |config| {
        let device = Arc::new(scene.device.clone());
        Bookie::open(config, identity(), device, Env::system()).expect("opens").0
    };
    scene.bookie.close().await.expect("closes");
    let bookie = reopen(config());
    assert_eq!(check(&bookie, &store).await, Err(CollectError::Replaced));
    bookie.close().await.expect("closes");
    let bookie = reopen(BookieConfig { accept_older_metadata: true, ..config() });
    assert_eq!(check(&bookie, &store).await, Ok(()));
    bookie.close().await.expect("closes");
    let bookie = reopen(config());
    assert_eq!(check(&bookie, &store).await, Ok(()), "it was accepted once and for all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_cluster_or_a_missing_cookie_stops_deletion() {
    let scene = scene(1..3).await;
    let foreign = metadata(&ClusterId::new("other").expect("a name")).await;
    let stopped = Collector::new(scene.bookie.clone(), foreign).census().await;
    assert!(matches!(stopped, Err(CollectError::ForeignCluster { .. })), "{stopped:?}");
    let nobody = Arc::new(MemoryStore::new(Arc::new(ManualClock::default())));
    let stopped = Collector::new(scene.bookie.clone(), nobody).census().await;
    assert!(matches!(stopped, Err(CollectError::ForeignCluster { found: None, .. })));
    let bare = metadata(&cluster()).await;
    let key = keys::cookie(&identity().bookie);
    bare.txn(Txn::default().delete(key)).await.expect("deletes");
    let stopped = Collector::new(scene.bookie.clone(), bare).census().await;
    assert_eq!(stopped, Err(CollectError::NoCookie));
    assert_eq!(scene.held(), [1, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_share_gone_at_once_stops_deletion_unless_it_was_hinted() {
    let mut hinted = scene(0..20).await;
    let mut silent = scene(0..20).await;
    for ledger in 0..15 {
        hinted.forget(ledger).await;
        silent.forget(ledger).await;
        hinted.bookie.delete_hint(&[LedgerId(ledger)]);
    }
    assert_eq!(hinted.collector.look().await, Ok(15));
    let stopped = silent.collector.census().await;
    assert_eq!(stopped, Err(CollectError::MassDeletion { vanished: 15, known: 20 }));
    assert_eq!(silent.held().len(), 20);
    let lowest = silent.bookie.log().with_state(|state| state.lowest_ledger);
    assert_eq!(lowest, None, "nothing is concluded from metadata that nobody believes");
    // Smaller shares go.
    let mut usual = scene(0..20).await;
    usual.forget(3).await;
    assert_eq!(usual.collector.census().await, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_before_a_restart_does_not_count_as_vanished_after_it() {
    let scene = scene(0..20).await;
    // The rows of all twenty are in a sealed segment that one of them keeps.
    scene.bookie.close().await.expect("closes");
    let open = |device: MemoryDevice| {
        let device = Arc::new(device);
        Bookie::open(config(), identity(), device, Env::system()).expect("opens").0
    };
    let device = scene.device.crash(Tear::Lost);
    let bookie = open(device.clone());
    assert_eq!(bookie.info().ledgers, 20);
    let mut collector = Collector::new(bookie.clone(), scene.store.clone());
    for ledger in 0..15 {
        scene.forget(ledger).await;
        bookie.delete_hint(&[LedgerId(ledger)]);
    }
    assert_eq!(collector.look().await, Ok(15));
    let bookie = open(device.crash(Tear::Lost));
    assert_eq!(bookie.info().ledgers, 5);
    let mut collector = Collector::new(bookie.clone(), scene.store.clone());
    assert_eq!(collector.census().await, Ok(0), "nothing has vanished");
    scene.forget(15).await;
    assert_eq!(collector.census().await, Ok(1), "deletion goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unavailable_store_deletes_nothing_and_keeps_the_hints() {
    let mut scene = scene(1..4).await;
    scene.forget(2).await;
    scene.bookie.delete_hint(&[LedgerId(2)]);
    scene.store.faults().set_down(true);
    assert!(matches!(scene.collector.look().await, Err(CollectError::Store(_))));
    assert_eq!(scene.held(), [1, 2, 3]);
    scene.store.faults().set_down(false);
    assert_eq!(scene.collector.look().await, Ok(1), "the hint was kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_collector_follows_hints_and_ends_when_told() {
    let scene = scene(1..4).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(scene.collector.run(async move { drop(stopped.await) }));
    let txn = Txn::default().delete(keys::ledger(LedgerId(2)));
    scene.store.txn(txn).await.expect("deletes");
    scene.bookie.delete_hint(&[LedgerId(2)]);
    for _ in 0..1_000 {
        if scene.bookie.log().ledgers().len() == 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert_eq!(scene.bookie.log().ledgers(), [LedgerId(1), LedgerId(3)]);
    drop(stop);
    running.await.expect("ends");
}

/// A closed ledger with a fragment for each of these ensembles, ten entries long.
fn closed(ensembles: &[[&str; 2]]) -> LedgerRecord {
    let name = |name: &&str| BookieId::new(name).expect("a name");
    let fragments = ensembles.iter().enumerate().map(|(at, bookies)| Fragment {
        first_entry: EntryId(at as u64 * 10),
        bookies: bookies.iter().map(name).collect(),
    });
    let last_entry = Some(EntryId(ensembles.len() as u64 * 10 - 1));
    LedgerRecord {
        token: LedgerToken(1),
        state: LedgerState::Closed { last_entry, bytes: 1 },
        write_quorum: 2,
        ack_quorum: 1,
        fragments: fragments.collect(),
        created_ms: 1,
        under_replicated: false,
        owner: LedgerOwner::ManagedLedger(ManagedLedgerId(1)),
    }
}

#[derive(Debug)]
struct Answered(tokio::sync::mpsc::Sender<()>);

impl crate::done::AppendDone for Answered {
    fn appended(&self, answers: &[crate::done::AppendAnswer]) {
        for answer in answers {
            assert_eq!(answer.result, Ok(()));
            self.0.try_send(()).expect("room");
        }
    }
}

impl Scene {
    /// Stores entries 0 to 19 of each ledger, and starts the bookie again: all of it is sealed.
    async fn fill(self, ledgers: &[u64]) -> Self {
        self.append(ledgers, 0..20).await;
        self.bookie.close().await.expect("closes");
        let device = self.device.crash(Tear::Lost);
        let (bookie, _) =
            Bookie::open(config(), identity(), Arc::new(device.clone()), Env::system())
                .expect("opens");
        let collector = Collector::new(bookie.clone(), self.store.clone());
        Self { bookie, device, collector, ..self }
    }

    async fn append(&self, ledgers: &[u64], entries: std::ops::Range<u64>) {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1_000);
        let done: Arc<dyn crate::done::AppendDone> = Arc::new(Answered(sender));
        let mut sent = 0;
        for ledger in ledgers {
            for entry in entries.clone() {
                let request = AppendRequest {
                    ledger: LedgerId(*ledger),
                    entry: EntryId(entry),
                    token: LedgerToken(1),
                    lac: Lac::NONE,
                    kind: AddKind::Recovery,
                    payload: Payload::from(Bytes::from(vec![7; 5_000])),
                };
                self.bookie.append(request, &done, 0).expect("taken");
                sent += 1;
            }
        }
        for _ in 0..sent {
            receiver.recv().await.expect("answered");
        }
    }

    async fn describe(&self, ledger: u64, record: &LedgerRecord) {
        let value = record.encode(nonce()).expect("valid");
        put(&self.store, &keys::ledger(LedgerId(ledger)), value).await;
    }

    async fn claim(&self, ledger: u64, targets: &[&str]) {
        let mut task = RepairRecord::new(&[RepairReason::AckQuorumOnly], 1);
        let targets = targets.iter().map(|name| BookieId::new(name).expect("a name")).collect();
        let worker = "w".to_owned();
        task.claim = Some(RepairClaim { id: 1, worker, targets, claimed_ms: 1 });
        let value = task.encode(nonce()).expect("valid");
        put(&self.store, &keys::repair(LedgerId(ledger)), value).await;
    }

    async fn has(&self, ledger: u64, entry: u64) -> bool {
        let (ledger, first) = (LedgerId(ledger), EntryId(entry));
        let request = ReadRequest { ledger, first, max_entries: 1, max_bytes: 1, fence: None };
        match self.bookie.read(request).await {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error, BookieError::NoSuchEntry);
                false
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_of_fragments_that_were_moved_away_are_dropped_and_fences_stay() {
    let mut scene = scene(1..4).await.fill(&[1, 2, 3]).await;
    scene.describe(1, &closed(&[["c", "d"], ["c", "d"]])).await;
    scene.describe(2, &closed(&[["b", "d"], ["c", "d"]])).await;
    scene.describe(3, &closed(&[["c", "b"], ["b", "d"]])).await;
    assert_eq!(scene.collector.census().await, Ok(0));
    assert!(!scene.has(1, 0).await && !scene.has(1, 19).await);
    assert!(scene.has(2, 0).await && scene.has(3, 0).await && scene.has(3, 19).await);
    // Of the second ledger's second half, what has a segment without any of the first.
    let surplus = scene.bookie.metrics().surplus_entries;
    assert!((20..30).contains(&surplus), "{surplus}");
    assert_eq!(scene.held(), [1, 2, 3]);
    let asked = FenceRequest { ledger: LedgerId(1), token: LedgerToken(1) };
    assert_eq!(scene.bookie.fenced(&[asked]), [true]);
    // Copies that come back are newer than any look that found them unwanted.
    scene.append(&[1], 0..20).await;
    assert_eq!(scene.collector.census().await, Ok(0));
    assert!(scene.has(1, 0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_may_be_on_their_way_or_in_use_are_kept() {
    let away = closed(&[["c", "d"], ["c", "d"]]);
    let mut scene = scene(1..6).await.fill(&[1, 2, 3, 4, 5]).await;
    // A recovery writes to bookies before the record names them.
    scene.describe(1, &LedgerRecord { state: LedgerState::Open, ..away.clone() }).await;
    scene.describe(2, &LedgerRecord { state: LedgerState::InRecovery, ..away.clone() }).await;
    // A worker has begun to copy it here.
    scene.describe(3, &away).await;
    scene.claim(3, &["a", "b"]).await;
    // Nobody knows whom a claim names that can't be read.
    scene.describe(4, &away).await;
    put(&scene.store, &keys::repair(LedgerId(4)), "no task").await;
    // Another ledger, under a number that was given out twice.
    scene.describe(5, &LedgerRecord { token: LedgerToken(9), ..away.clone() }).await;
    assert_eq!(scene.collector.census().await, Ok(0));
    for ledger in 1..6 {
        assert!(scene.has(ledger, 0).await, "{ledger}");
    }
    // A claim that names others keeps nothing.
    scene.claim(3, &["a", "d"]).await;
    assert_eq!(scene.collector.census().await, Ok(0));
    assert!(!scene.has(3, 0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repair_that_ends_during_the_look_keeps_its_copies() {
    let scene = scene(1..2).await.fill(&[1]).await;
    scene.describe(1, &closed(&[["c", "d"], ["c", "d"]])).await;
    scene.claim(1, &["b"]).await;
    // Each read of the look may be the last one before the repair commits.
    for reads in 0..8 {
        let scene_store = scene.store.clone();
        let committed = closed(&[["b", "d"], ["b", "d"]]).encode(nonce()).expect("valid");
        let txn = Txn::default()
            .put(keys::ledger(LedgerId(1)), committed)
            .delete(keys::repair(LedgerId(1)));
        let watched = Arc::new(Interrupted {
            store: scene_store,
            left: std::sync::atomic::AtomicU32::new(reads),
            txn: parking_lot::Mutex::new(Some(txn)),
        });
        let mut collector = Collector::new(scene.bookie.clone(), watched.clone());
        assert_eq!(collector.census().await, Ok(0));
        assert!(scene.has(1, 0).await, "committed before read {reads}");
        if watched.txn.lock().is_some() {
            assert!(reads > 3, "{reads} reads");
            return;
        }
        scene.describe(1, &closed(&[["c", "d"], ["c", "d"]])).await;
        scene.claim(1, &["b"]).await;
    }
    panic!("a look has that many reads");
}

/// A store in which something is committed after so many reads.
#[derive(Debug)]
struct Interrupted {
    store: Arc<MemoryStore>,
    left: std::sync::atomic::AtomicU32,
    txn: parking_lot::Mutex<Option<Txn>>,
}

#[async_trait::async_trait]
impl MetadataStore for Interrupted {
    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RangePage, StoreError> {
        let page = self.store.range(prefix, after, limit).await;
        let left = self.left.load(std::sync::atomic::Ordering::Relaxed);
        self.left.store(left.saturating_sub(1), std::sync::atomic::Ordering::Relaxed);
        if left == 0 {
            let txn = self.txn.lock().take();
            if let Some(txn) = txn {
                self.store.txn(txn).await.expect("commits");
            }
        }
        page
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.store.get(key).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.store.txn(txn).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        self.store.watch(prefix, after).await
    }

    async fn grant_lease(&self, ttl: std::time::Duration) -> Result<LeaseId, StoreError> {
        self.store.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.store.revoke_lease(lease).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lay_in_a_lost_segment_is_said_to_be_damaged_until_it_is_there_again() {
    // Ledger 1 is in both segments, 2 in the lost one alone, 3 in the other.
    let scene = scene(0..0).await;
    scene.append(&[1], 0..12).await;
    let scene = scene.fill(&[2]).await;
    let sealed = scene
        .bookie
        .log()
        .with_state(|state| state.sealed.values().map(|sealed| sealed.slot).collect::<Vec<_>>());
    assert_eq!(sealed.len(), 1);
    let lost = crate::log::segment_file(sealed[0]);
    scene.append(&[1], 12..20).await;
    let scene = scene.fill(&[3]).await;
    scene.bookie.close().await.expect("closes");
    let device = scene.device.crash(Tear::Lost);
    crate::device::Device::remove(&device, &lost).expect("there");
    let accepting = BookieConfig { accept_damage: true, ..config() };
    let opened = Bookie::open(accepting, identity(), Arc::new(device.clone()), Env::system());
    let (bookie, store) = (opened.expect("opens").0, scene.store.clone());
    let collector = Collector::new(bookie.clone(), store.clone());
    let mut scene = Scene { bookie, store, device, collector };
    for ledger in 1..=3 {
        scene.describe(ledger, &closed(&[["a", "b"], ["c", "b"]])).await;
    }
    // Nobody wants these here, or nobody knows yet.
    scene.describe(4, &closed(&[["a", "c"]])).await;
    let open = LedgerRecord { state: LedgerState::Open, ..closed(&[["a", "b"]]) };
    scene.describe(5, &open).await;
    assert_eq!(scene.collector.census().await, Ok(0));
    assert_eq!(scene.damaged(), [(1, 0, 11), (2, 0, 19)]);
    // Written back, as repair does it; and one is deleted before it is.
    scene.append(&[1], 2..11).await;
    assert_eq!(scene.damaged(), [(1, 0, 1), (1, 11, 11), (2, 0, 19)]);
    scene.forget(2).await;
    assert_eq!(scene.collector.census().await, Ok(0));
    assert_eq!(scene.damaged(), [(1, 0, 1), (1, 11, 11)]);
    scene.append(&[1], 0..2).await;
    scene.append(&[1], 11..12).await;
    assert_eq!(scene.collector.census().await, Ok(0));
    assert_eq!(scene.damaged(), []);
    assert!(scene.has(1, 0).await && scene.has(1, 11).await && scene.has(3, 19).await);
}

impl Scene {
    fn damaged(&self) -> Vec<(u64, u64, u64)> {
        let runs = self.bookie.damaged(100).into_iter();
        let numbers = runs.map(|run| (run.ledger.0, run.entries.start().0, run.entries.end().0));
        numbers.collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_and_not_wanted_here_is_damaged_no_more() {
    let mut scene = scene(0..0).await.fill(&[1]).await;
    scene.describe(1, &closed(&[["a", "b"], ["a", "c"]])).await;
    let segment = scene.bookie.log().with_state(|state| *state.sealed.keys().next().expect("one"));
    // As a lost page of an index names what lies between, too.
    scene.bookie.log().damage(|damaged| {
        damaged.note(LedgerId(1), EntryId(7)..=EntryId(14), segment);
    });
    assert_eq!(scene.collector.census().await, Ok(0));
    assert_eq!(scene.damaged(), [(1, 7, 9)]);
}
