//! Damage is said once, again after a while, and no longer than it lasts.

use bytes::Bytes;
use geminga_meta::keys;
use geminga_meta::read::read;
use geminga_meta::record::{RepairReason, RepairRecord};
use geminga_meta::store::memory::Fault;
use geminga_meta::store::{MemoryStore, Txn};
use geminga_proto::env::{ManualClock, SeededRandom};
use geminga_proto::id::{BookieId, ClusterId, SegmentId};

use super::*;
use crate::config::BookieConfig;
use crate::cookie::Identity;
use crate::device::memory::MemoryDevice;

struct Scene {
    bookie: Bookie,
    store: Arc<MemoryStore>,
    clock: Arc<ManualClock>,
    reporter: Reporter,
}

async fn scene() -> Scene {
    let clock = Arc::<ManualClock>::default();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let env = Env { clock: clock.clone(), random: Arc::new(SeededRandom::new(1)) };
    let cluster = ClusterId::new("c").expect("a name");
    let identity = Identity::detached(BookieId::new("b").expect("a name"), cluster, 42);
    let device = Arc::new(MemoryDevice::new(64 << 20));
    let config = BookieConfig { segment_bytes: Some(8 << 20), ..BookieConfig::default() };
    let (bookie, _) = Bookie::open(config, identity, device, env.clone()).expect("opens");
    for ledger in [1, 2] {
        let txn = Txn::default().put(keys::ledger(LedgerId(ledger)), Bytes::from_static(b"x"));
        store.txn(txn).await.expect("written");
    }
    let reporter = Reporter::new(bookie.clone(), store.clone(), env);
    Scene { bookie, store, clock, reporter }
}

impl Scene {
    fn spoil(&self, ledger: u64, entries: std::ops::RangeInclusive<u64>) {
        for entry in entries {
            let (ledger, entry) = (LedgerId(ledger), EntryId(entry));
            self.bookie.log().damage(|damaged| {
                damaged.note(ledger, entry..=entry, SegmentId(1));
            });
        }
    }

    fn mend(&self, ledger: u64, entry: u64) {
        self.bookie.log().damage(|damaged| {
            damaged.mended(LedgerId(ledger), EntryId(entry));
        });
    }

    /// What is queued of a ledger, as first and last entries.
    async fn queued(&self, ledger: u64) -> Vec<(u64, u64)> {
        let key = keys::repair(LedgerId(ledger));
        let task = read::<RepairRecord>(self.store.as_ref(), &key);
        let Some(task) = task.await.expect("read") else { return Vec::new() };
        let reasons = task.record.reasons.into_iter().map(|reason| match reason {
            RepairReason::Damaged { bookie, first, last } => {
                assert_eq!(bookie.as_str(), "b");
                (first.0, last.0)
            }
            other => panic!("{other}"),
        });
        reasons.collect()
    }

    async fn done(&self, ledger: u64) {
        let txn = Txn::default().delete(keys::repair(LedgerId(ledger)));
        self.store.txn(txn).await.expect("deleted");
    }
}

#[tokio::test]
async fn damage_is_said_once_and_again_while_it_lasts() {
    let mut scene = scene().await;
    scene.reporter.report().await;
    scene.spoil(1, 3..=5);
    scene.spoil(2, 9..=9);
    scene.reporter.report().await;
    assert_eq!((scene.queued(1).await, scene.queued(2).await), (vec![(3, 5)], vec![(9, 9)]));
    // A repair has dealt with it, and yet it is there.
    scene.done(1).await;
    scene.reporter.report().await;
    assert_eq!(scene.queued(1).await, []);
    scene.clock.advance(SAID_AGAIN);
    scene.reporter.report().await;
    assert_eq!(scene.queued(1).await, [(3, 5)]);
    // Mended, and another one is found: that is news at once.
    scene.done(1).await;
    (3..=5).for_each(|entry| scene.mend(1, entry));
    scene.reporter.report().await;
    assert_eq!(scene.queued(1).await, []);
    scene.spoil(1, 3..=3);
    scene.reporter.report().await;
    assert_eq!(scene.queued(1).await, [(3, 3)]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_said_is_said_later_and_a_ledger_that_is_gone_is_not_queued() {
    let mut scene = scene().await;
    scene.spoil(1, 1..=1);
    scene.spoil(7, 1..=1);
    scene.store.faults().next_txns([Fault::Unavailable; 20]);
    scene.reporter.report().await;
    assert_eq!(scene.queued(1).await, []);
    scene.store.faults().next_txns([]);
    scene.reporter.report().await;
    assert_eq!((scene.queued(1).await, scene.queued(7).await), (vec![(1, 1)], vec![]));
}
