//! Reads over bookies that are slow or hang, and what they cost the others.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use geminga_meta::keys;
use geminga_meta::record::{LedgerOwner, Nonce, Record};
use geminga_meta::store::{MemoryStore, MetadataStore, Txn};
use geminga_proto::env::Env;
use geminga_proto::id::{LedgerToken, ManagedLedgerId};
use geminga_proto::storage::{AppendRequest, BookieInfo, FenceRequest, FenceResult, FencedResult};
use parking_lot::Mutex;

use super::*;
use crate::metadata::{Fragment, LedgerState};
use crate::placement::FixedPlacement;
use crate::records;
use crate::store::{LedgerStore, LedgerStoreConfig};
use crate::transport::{AppendSink, BookieTransport};

/// Bookies that hold one entry of every ledger; all other requests fail.
#[derive(Debug)]
pub(crate) struct Disks {
    takes: Duration,
    /// Never answers.
    hangs: Option<BookieId>,
    asked: Mutex<HashMap<BookieId, u32>>,
}

impl Disks {
    pub(crate) fn new(takes: Duration) -> Self {
        Self { takes, hangs: None, asked: Mutex::default() }
    }

    fn asked(&self) -> u32 {
        self.asked.lock().values().sum()
    }
}

#[async_trait]
impl BookieTransport for Disks {
    fn append(&self, bookie: &BookieId, request: AppendRequest, sink: &Arc<dyn AppendSink>) {
        let (bookie, sink) = (bookie.clone(), Arc::clone(sink));
        tokio::spawn(async move {
            sink.append_done(&bookie, request.entry, Err(BookieError::Io));
        });
    }

    async fn read(&self, bookie: &BookieId, request: ReadRequest) -> ReadResult {
        *self.asked.lock().entry(bookie.clone()).or_default() += 1;
        if self.hangs.as_ref() == Some(bookie) {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(self.takes).await;
        let payload = Bytes::from_static(b"payload");
        Ok(vec![StoredEntry { entry: request.first, lac: Lac::NONE, payload }])
    }

    async fn fence(&self, _: &BookieId, _: FenceRequest) -> FenceResult {
        Err(BookieError::Unreachable)
    }

    async fn fenced(&self, _: &BookieId, _: Vec<FenceRequest>) -> FencedResult {
        Err(BookieError::Unreachable)
    }

    async fn delete_hint(&self, _: &BookieId, _: Vec<LedgerId>) -> Result<(), BookieError> {
        Err(BookieError::Unreachable)
    }

    async fn info(&self, _: &BookieId) -> Result<BookieInfo, BookieError> {
        Err(BookieError::Unreachable)
    }
}

pub(crate) fn name(index: usize) -> BookieId {
    BookieId::new(&format!("b{index}")).expect("valid")
}

/// A closed ledger of one entry on three bookies, the first of which is asked first.
async fn ledger(disks: &Arc<Disks>, hedge: Duration) -> LedgerReader {
    let env = Env::system();
    let meta = Arc::new(MemoryStore::new(env.clock.clone()));
    let metadata = LedgerMetadata {
        id: LedgerId(3),
        token: LedgerToken(1),
        owner: LedgerOwner::ManagedLedger(ManagedLedgerId(1)),
        state: LedgerState::Closed,
        write_quorum: 3,
        ack_quorum: 2,
        under_replicated: false,
        fragments: vec![Fragment { first_entry: EntryId(0), bookies: (0..3).map(name).collect() }],
        last_entry: Lac(Some(EntryId(0))),
        bytes: 7,
        created_ms: 1,
    };
    let record = records::to_record(&metadata).encode(Nonce::new(env.random.as_ref()));
    let put = Txn::default().put(keys::ledger(metadata.id), record.expect("valid"));
    meta.txn(put).await.expect("written");
    let placement = Arc::new(FixedPlacement::new(env.clone(), (0..3).map(name).collect()));
    let config = LedgerStoreConfig {
        read_hedge_ms: u64::try_from(hedge.as_millis()).expect("short"),
        request_timeout_ms: 120_000,
        ..LedgerStoreConfig::default()
    };
    let store = LedgerStore::new(config, env, meta, disks.clone(), placement);
    store.expect("good settings").open(LedgerId(3)).await.expect("closed")
}

async fn read(reader: LedgerReader) {
    let entries = reader.read(EntryId(0), 1, 100).await.expect("its bookies have it");
    assert_eq!(entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_disks_get_few_reads_twice() {
    let takes = Duration::from_millis(120);
    let disks = Arc::new(Disks::new(takes));
    let reader = ledger(&disks, Duration::from_millis(50)).await;
    let mut reads = Vec::new();
    for _ in 0..200 {
        reads.push(tokio::spawn(read(reader.clone())));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for read in reads {
        read.await.expect("no panic");
    }
    let asked = disks.asked();
    assert!((201..260).contains(&asked), "{asked} for 200 reads: {disks:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bookie_that_hangs_holds_up_no_read() {
    let takes = Duration::from_millis(1);
    let disks = Arc::new(Disks { hangs: Some(name(0)), ..Disks::new(takes) });
    let reader = ledger(&disks, Duration::from_millis(20)).await;
    let reads: Vec<_> = (0..100).map(|_| tokio::spawn(read(reader.clone()))).collect();
    let all = async {
        for read in reads {
            read.await.expect("no panic");
        }
        for _ in 0..50 {
            read(reader.clone()).await;
        }
    };
    let limit = Duration::from_secs(100);
    assert!(tokio::time::timeout(limit, all).await.is_ok(), "far below a request's time");
    assert!(disks.asked.lock()[&name(0)] >= 100, "it is asked first");
}
