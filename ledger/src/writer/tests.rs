//! An open ledger when what it calls panics.

use std::time::Duration;

use bytes::Bytes;
use geminga_meta::record::LedgerOwner;
use geminga_meta::store::{MemoryStore, Txn};
use geminga_proto::env::Env;
use geminga_proto::id::ManagedLedgerId;
use geminga_proto::storage::BookieError;

use super::*;
use crate::observer::StallReason;
use crate::placement::{Placement, PlacementError};
use crate::reader::tests::{Disks, name};
use crate::store::{LedgerStore, LedgerStoreConfig};

#[derive(Debug)]
struct Panicky;

impl Placement for Panicky {
    fn pick(&self, want: usize, _: usize, _: &[BookieId]) -> Result<Vec<BookieId>, PlacementError> {
        Ok((0..want).map(name).collect())
    }

    fn failed(&self, _: &BookieId, _: BookieError) {
        panic!("a defect");
    }
}

#[derive(Debug, Default)]
struct Ears(Mutex<Option<WriterFailure>>);

impl LedgerObserver for Ears {
    fn confirmed(&self, _: EntryId) {}
    fn failed(&self, failure: WriterFailure) {
        *self.0.lock() = Some(failure);
    }
    fn stalled(&self, _: StallReason) {}
    fn resumed(&self) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_that_panics_at_an_answer_fails_at_once() {
    let env = Env::system();
    let meta = Arc::new(MemoryStore::new(env.clock.clone()));
    // No tick comes within the time of this test.
    let config = LedgerStoreConfig {
        append_timeout_ms: 300_000,
        retry_interval_ms: 300_000,
        ..LedgerStoreConfig::default()
    };
    let disks = Arc::new(Disks::new(Duration::ZERO));
    let store = LedgerStore::new(config, env, meta, disks, Arc::new(Panicky));
    let store = store.expect("good settings");
    let (owner, ears) = (LedgerOwner::ManagedLedger(ManagedLedgerId(1)), Arc::new(Ears::default()));
    let writer = store.create(owner, None, |_| Txn::default(), ears.clone()).await;
    let writer = writer.expect("created");
    writer.append(Payload::from(Bytes::from_static(b"payload"))).expect("taken");
    for _ in 0..1_000 {
        if *ears.0.lock() == Some(WriterFailure::Panicked) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("its observer has heard {:?}", ears.0.lock());
}
