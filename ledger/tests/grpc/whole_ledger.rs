//! A ledger, owner and recovery, over the gRPC transport.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_ledger::config::LedgerStoreConfig;
use geminga_ledger::observer::{LedgerObserver, StallReason, WriterFailure};
use geminga_ledger::placement::FixedPlacement;
use geminga_ledger::store::LedgerStore;
use geminga_meta::record::LedgerOwner;
use geminga_meta::store::Txn;
use geminga_meta::store::memory::MemoryStore;
use geminga_proto::env::{Env, SystemClock};
use geminga_proto::id::{BookieId, EntryId, Lac, LedgerId, ManagedLedgerId};
use geminga_proto::payload::Payload;
use parking_lot::Mutex;

use crate::server::Server;
use crate::{bookie, config, transport};

#[derive(Debug, Default)]
struct Progress {
    lac: Mutex<Option<u64>>,
    failed: Mutex<Option<WriterFailure>>,
}

impl LedgerObserver for Progress {
    fn confirmed(&self, lac: EntryId) {
        *self.lac.lock() = Some(lac.0);
    }
    fn failed(&self, failure: WriterFailure) {
        *self.failed.lock() = Some(failure);
    }
    fn stalled(&self, _: StallReason) {}
    fn resumed(&self) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ledger_over_grpc_survives_the_loss_of_a_bookie_and_is_recovered() {
    let names: Vec<BookieId> = (0..4).map(|index| bookie(&format!("b{index}"))).collect();
    let mut servers = Vec::new();
    for name in &names {
        servers.push(Server::start(name.as_str()));
    }
    let addresses: Vec<_> =
        names.iter().zip(&servers).map(|(name, server)| (name, server.address)).collect();
    let env = Env::system();
    let store = LedgerStore::new(
        LedgerStoreConfig { retry_interval_ms: 50, ..LedgerStoreConfig::default() },
        env.clone(),
        Arc::new(MemoryStore::new(Arc::new(SystemClock::default()))),
        Arc::new(transport(&addresses, config())),
        Arc::new(FixedPlacement::new(env, names.clone())),
    )
    .expect("valid");
    let progress = Arc::new(Progress::default());
    let owner = LedgerOwner::ManagedLedger(ManagedLedgerId(1));
    let link = |_: LedgerId| Txn::default();
    let writer = store.create(owner, None, link, progress.clone()).await.expect("created");
    let ensemble = store.describe(writer.id()).await.expect("up").fragments[0].clone();
    for entry in 0..2_000u64 {
        if entry == 1_000 {
            let index = names.iter().position(|name| *name == ensemble.bookies[0]);
            servers[index.expect("a member")].kill();
        }
        let payload = Payload::from(Bytes::from(entry.to_string()));
        assert_eq!(writer.append(payload), Ok(EntryId(entry)));
        if entry % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    for _ in 0..2_000 {
        if *progress.lac.lock() == Some(1_999) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(*progress.lac.lock(), Some(1_999));
    assert_eq!(*progress.failed.lock(), None);
    let closed = store.recover(writer.id()).await.expect("recovered");
    assert_eq!(closed.last_entry, Lac(Some(EntryId(1_999))));
    let reader = store.open(writer.id()).await.expect("opened");
    let mut next = 0;
    while next < 2_000 {
        for stored in reader.read(EntryId(next), 300, 1 << 20).await.expect("readable") {
            assert_eq!(stored.payload, Bytes::from(next.to_string()));
            next += 1;
        }
    }
}
