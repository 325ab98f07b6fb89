//! Deletion trusts the metadata only, and stops when they look wrong.

use bytes::Bytes;
use geminga_meta::record::{Nonce, Record};
use geminga_meta::store::{MemoryStore, Txn};
use geminga_proto::env::{Env, ManualClock, SeededRandom};
use geminga_proto::id::{BookieId, LedgerToken};
use geminga_proto::storage::FenceRequest;

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
