//! The gRPC transport against a real server over loopback, whose storage is a model bookie.

mod server;
mod whole_ledger;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_ledger::transport::grpc::{BookieDirectory, GrpcTransport, GrpcTransportConfig};
use geminga_ledger::transport::{AppendSink, BookieTransport};
use geminga_proto::id::{BookieId, ClusterId, EntryId, Lac, LedgerId, LedgerToken};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{
    AddKind, AppendRequest, AppendResult, BookieError, FenceRequest, ReadRequest, SyncMode,
};
use parking_lot::Mutex;

use server::{Behaviour, Server, code};

#[derive(Debug, Default)]
struct Addresses(Mutex<BTreeMap<BookieId, String>>);

impl BookieDirectory for Addresses {
    fn address(&self, bookie: &BookieId) -> Option<String> {
        self.0.lock().get(bookie).cloned()
    }
}

fn config() -> GrpcTransportConfig {
    let cluster = ClusterId::new("c1").expect("valid");
    let mut config = GrpcTransportConfig::new(cluster, "broker-1".to_owned());
    config.reconnect_delay_ms = 20;
    config.connect_timeout_ms = 1_000;
    config
}

fn transport(servers: &[(&BookieId, SocketAddr)], config: GrpcTransportConfig) -> GrpcTransport {
    let addresses = Addresses::default();
    for (name, address) in servers {
        addresses.0.lock().insert((*name).clone(), format!("http://{address}"));
    }
    GrpcTransport::new(config, Arc::new(addresses), tokio::runtime::Handle::current())
}

fn bookie(name: &str) -> BookieId {
    BookieId::new(name).expect("valid")
}

fn add(entry: u64, payload: &'static [u8]) -> AppendRequest {
    AppendRequest {
        ledger: LedgerId(1),
        entry: EntryId(entry),
        token: LedgerToken(7),
        lac: Lac(EntryId(entry).previous()),
        kind: AddKind::Ordinary,
        payload: Payload::new(Bytes::from_static(b"head"), Bytes::from_static(payload)),
    }
}

#[derive(Debug, Default)]
struct Sink {
    answers: Mutex<Vec<(u64, AppendResult)>>,
    rows: Mutex<(u32, u32)>,
}

impl AppendSink for Sink {
    fn append_done(&self, _: &BookieId, entry: EntryId, result: AppendResult) {
        self.answers.lock().push((entry.0, result));
    }
    fn batch_begin(&self) {
        self.rows.lock().0 += 1;
    }
    fn batch_end(&self) {
        self.rows.lock().1 += 1;
    }
}

impl Sink {
    async fn wait(&self, count: usize) -> Vec<(u64, AppendResult)> {
        for _ in 0..2_000 {
            let answers = self.answers.lock().clone();
            if answers.len() >= count {
                return answers;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{count} answers expected, got {:?}", self.answers.lock());
    }
}

fn send(transport: &GrpcTransport, to: &BookieId, sink: &Arc<Sink>, request: AppendRequest) {
    let sink: Arc<dyn AppendSink> = sink.clone();
    transport.append(to, request, &sink);
}

#[tokio::test]
async fn appends_are_coalesced_answered_once_and_can_be_read_back() {
    let name = bookie("b1");
    let server = Server::start("b1");
    let transport = transport(&[(&name, server.address)], config());
    let sink = Arc::new(Sink::default());
    for entry in 0..500 {
        send(&transport, &name, &sink, add(entry, b"body"));
    }
    let mut answers = sink.wait(500).await;
    answers.sort_unstable_by_key(|(entry, _)| *entry);
    assert_eq!(answers, (0..500).map(|entry| (entry, Ok(()))).collect::<Vec<_>>());
    assert!(server.state.batches.lock().len() < 100, "{:?}", server.state.batches.lock());
    let (begun, ended) = *sink.rows.lock();
    assert!(begun == ended && begun < 100, "{begun} rows begun, {ended} ended");

    let request = ReadRequest {
        ledger: LedgerId(1),
        first: EntryId(498),
        max_entries: 10,
        max_bytes: 1 << 20,
        fence: None,
    };
    let found = transport.read(&name, request).await.expect("stored");
    assert_eq!(found.len(), 2);
    assert_eq!(found[1].payload, Bytes::from_static(b"headbody"));
    assert_eq!(found[1].lac, Lac(Some(EntryId(498))));
    let missing = ReadRequest { first: EntryId(500), ..request };
    assert_eq!(transport.read(&name, missing).await, Err(BookieError::NoSuchEntry));
    let fence = FenceRequest { ledger: LedgerId(1), token: LedgerToken(7) };
    assert_eq!(transport.fence(&name, fence).await, Ok(Lac(Some(EntryId(498)))));
    let wrong = FenceRequest { ledger: LedgerId(1), token: LedgerToken(8) };
    assert_eq!(transport.fence(&name, wrong).await, Err(BookieError::WrongToken));
    send(&transport, &name, &sink, add(500, b"late"));
    assert_eq!(sink.wait(501).await[500], (500, Err(BookieError::Fenced)));
    assert_eq!(transport.delete_hint(&name, vec![LedgerId(1)]).await, Ok(()));
    let scrubs = transport.scrub(&name, true).await.expect("answers");
    assert_eq!((scrubs.running, scrubs.done_bytes, scrubs.damaged_entries), (true, 4, 1));
    let asked = transport.scrub(&name, false).await.expect("answers");
    assert!(!asked.running && asked.total_bytes == 10);
    let info = transport.info(&name).await.expect("answers");
    assert_eq!((info.sync_mode, info.free_bytes), (SyncMode::DirectDsync, 4));
}

#[tokio::test]
async fn every_refusal_of_a_bookie_arrives_as_what_it_is_and_an_unknown_one_as_unknown() {
    let name = bookie("b1");
    let server = Server::start("b1");
    let transport = transport(&[(&name, server.address)], config());
    let refusals = [
        BookieError::Fenced,
        BookieError::WrongToken,
        BookieError::DiskFull,
        BookieError::ReadOnly,
        BookieError::NoSuchEntry,
        BookieError::UnknownEntry,
        BookieError::CorruptEntry,
        BookieError::TooLarge,
        BookieError::Overloaded,
        BookieError::Io,
        BookieError::Invalid,
        BookieError::Unreachable,
    ];
    for error in refusals {
        server.state.behaviour.lock().forced = Some(code(error));
        let sink = Arc::new(Sink::default());
        send(&transport, &name, &sink, add(0, b""));
        assert_eq!(sink.wait(1).await, [(0, Err(error))]);
    }
    server.state.behaviour.lock().forced = Some(99);
    let sink = Arc::new(Sink::default());
    send(&transport, &name, &sink, add(0, b""));
    assert_eq!(sink.wait(1).await, [(0, Err(BookieError::Unreachable))]);
}

#[tokio::test]
async fn nothing_is_sent_to_another_cluster_another_bookie_or_another_protocol() {
    let name = bookie("b1");
    let server = Server::start("b1");
    type Change = fn(&mut Behaviour);
    let strangers: [Change; 3] = [
        |behaviour| behaviour.cluster = "c2".to_owned(),
        |behaviour| behaviour.name = "b2".to_owned(),
        |behaviour| behaviour.protocol = 2,
    ];
    for stranger in strangers {
        {
            let mut behaviour = server.state.behaviour.lock();
            behaviour.cluster = "c1".to_owned();
            behaviour.name = "b1".to_owned();
            behaviour.protocol = 1;
            stranger(&mut behaviour);
        }
        let transport = transport(&[(&name, server.address)], config());
        let sink = Arc::new(Sink::default());
        send(&transport, &name, &sink, add(0, b""));
        assert_eq!(sink.wait(1).await, [(0, Err(BookieError::Unreachable))]);
        let fence = FenceRequest { ledger: LedgerId(1), token: LedgerToken(7) };
        assert_eq!(transport.fence(&name, fence).await, Err(BookieError::Unreachable));
    }
    assert!(server.state.batches.lock().is_empty());
    let nowhere = transport(&[], config());
    let sink = Arc::new(Sink::default());
    send(&nowhere, &name, &sink, add(0, b""));
    assert_eq!(sink.wait(1).await, [(0, Err(BookieError::Unreachable))]);
}

#[tokio::test]
async fn appends_over_the_cap_are_refused_without_being_sent_and_never_from_within_the_call() {
    let name = bookie("b1");
    let server = Server::start("b1");
    server.state.behaviour.lock().silent = true;
    let mut config = config();
    config.max_pending_bytes_per_bookie = 100;
    let transport = transport(&[(&name, server.address)], config);
    let sink = Arc::new(Sink::default());
    for entry in 0..20 {
        // The sink's lock is held, as a ledger's is: a call from within would deadlock.
        let held = sink.answers.lock();
        send(&transport, &name, &sink, add(entry, b"twenty bytes in all!"));
        drop(held);
    }
    let answers = sink.wait(16).await;
    assert_eq!(answers.len(), 16);
    assert!(answers.iter().all(|(_, result)| *result == Err(BookieError::Overloaded)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_broken_connection_leaves_unanswered_is_unreachable_and_the_next_one_works() {
    let name = bookie("b1");
    let mut server = Server::start("b1");
    server.state.behaviour.lock().silent = true;
    let mut config = config();
    config.keep_alive_ms = 200;
    let transport = transport(&[(&name, server.address)], config);
    let sink = Arc::new(Sink::default());
    for entry in 0..10 {
        send(&transport, &name, &sink, add(entry, b"x"));
    }
    while server.state.batches.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.kill();
    let answers = sink.wait(10).await;
    assert!(answers.iter().all(|(_, result)| *result == Err(BookieError::Unreachable)));
    server.state.behaviour.lock().silent = false;
    server.restart();
    for _ in 0..200 {
        let sink = Arc::new(Sink::default());
        send(&transport, &name, &sink, add(0, b"x"));
        if sink.wait(1).await == [(0, Ok(()))] {
            return;
        }
    }
    panic!("the bookie is back and was not reached");
}
