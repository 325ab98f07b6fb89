//! The gRPC transport against a real server over loopback, whose storage is a model bookie.
//!
//! Length: a third of it is that server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use geminga_ledger::config::LedgerStoreConfig;
use geminga_ledger::harness::bookie::{Answer, Ask, ModelBookie};
use geminga_ledger::observer::{LedgerObserver, StallReason, WriterFailure};
use geminga_ledger::placement::FixedPlacement;
use geminga_ledger::store::LedgerStore;
use geminga_ledger::transport::grpc::{BookieDirectory, GrpcTransport, GrpcTransportConfig};
use geminga_ledger::transport::{AppendSink, BookieTransport};
use geminga_meta::record::LedgerOwner;
use geminga_meta::store::Txn;
use geminga_meta::store::memory::MemoryStore;
use geminga_proto::env::{Env, SystemClock};
use geminga_proto::id::{
    BookieId, ClusterId, EntryId, Lac, LedgerId, LedgerToken, ManagedLedgerId,
};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{
    AddKind, AppendRequest, AppendResult, BookieError, FenceRequest, ReadRequest, SyncMode,
};
use geminga_proto::v1;
use geminga_proto::v1::bookie_server::{Bookie, BookieServer};
use geminga_proto::{BOOKIE_HEADER, CLUSTER_HEADER};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// What a test bookie says and does.
#[derive(Debug)]
struct Behaviour {
    cluster: String,
    name: String,
    protocol: u32,
    /// Answers no append.
    silent: bool,
    /// The status of every append; `None`: what the model says.
    forced: Option<i32>,
}

#[derive(Debug)]
struct State {
    disk: Mutex<ModelBookie>,
    behaviour: Mutex<Behaviour>,
    /// Sizes of the messages of appends.
    batches: Mutex<Vec<usize>>,
}

#[derive(Debug, Clone)]
struct TestBookie(Arc<State>);

fn code(error: BookieError) -> i32 {
    use v1::BookieStatus as Status;
    let status = match error {
        BookieError::Fenced => Status::FencedLedger,
        BookieError::WrongToken => Status::WrongToken,
        BookieError::DiskFull => Status::DiskFull,
        BookieError::ReadOnly => Status::ReadOnly,
        BookieError::NoSuchEntry => Status::NoSuchEntry,
        BookieError::UnknownEntry => Status::UnknownEntry,
        BookieError::CorruptEntry => Status::CorruptEntry,
        BookieError::TooLarge => Status::TooLarge,
        BookieError::Overloaded => Status::Overloaded,
        BookieError::Io => Status::IoError,
        BookieError::Invalid => Status::Invalid,
        BookieError::Unreachable => Status::Unspecified,
    };
    status as i32
}

impl State {
    /// Refuses a request that doesn't say it is meant for this bookie.
    fn check_meant<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let behaviour = self.behaviour.lock();
        for (header, name) in
            [(CLUSTER_HEADER, &behaviour.cluster), (BOOKIE_HEADER, &behaviour.name)]
        {
            let meant = request.metadata().get(header).and_then(|name| name.to_str().ok());
            if meant != Some(name.as_str()) {
                return Err(Status::failed_precondition(format!("{header} is {meant:?}")));
            }
        }
        Ok(())
    }

    fn perform(&self, ask: Ask) -> Answer {
        let mut disk = self.disk.lock();
        match disk.ask(0, ask) {
            Some(answer) => answer,
            None => disk.sync().0.pop().expect("one is in the queue").1,
        }
    }

    fn append(&self, request: &v1::AppendRequest) -> i32 {
        if let Some(status) = self.behaviour.lock().forced {
            return status;
        }
        let append = AppendRequest {
            ledger: LedgerId(request.ledger_id),
            entry: EntryId(request.entry_id),
            token: LedgerToken(request.token),
            lac: Lac::from_wire(request.lac),
            kind: match request.flags {
                0 => AddKind::Ordinary,
                1 => AddKind::Recovery,
                _ => AddKind::StateLog,
            },
            payload: Payload::from(request.payload.clone()),
        };
        match self.perform(Ask::Append(append)) {
            Answer::Append(_, Ok(())) => v1::BookieStatus::Ok as i32,
            Answer::Append(_, Err(error)) => code(error),
            other => panic!("an add is answered with {other:?}"),
        }
    }

    fn fence(&self, request: &v1::FenceRequest) -> v1::FenceAnswer {
        let (ledger, token) = (LedgerId(request.ledger_id), LedgerToken(request.token));
        let (status, lac) = match self.perform(Ask::Fence(FenceRequest { ledger, token })) {
            Answer::Fence(Ok(lac)) => (v1::BookieStatus::Ok as i32, lac.to_wire()),
            Answer::Fence(Err(error)) => (code(error), -1),
            other => panic!("a fence is answered with {other:?}"),
        };
        v1::FenceAnswer { status, lac, request_id: request.request_id }
    }

    fn read(&self, request: &v1::ReadRequest) -> v1::ReadAnswer {
        let ask = ReadRequest {
            ledger: LedgerId(request.ledger_id),
            first: EntryId(request.first_entry_id),
            max_entries: request.max_entries,
            max_bytes: request.max_bytes,
            fence: request.fence.then_some(LedgerToken(request.token)),
        };
        let request_id = request.request_id;
        match self.perform(Ask::Read(0, ask)) {
            Answer::Read(_, Ok(found)) => {
                let entry = |stored: geminga_proto::storage::StoredEntry| v1::StoredEntry {
                    entry_id: stored.entry.0,
                    lac: stored.lac.to_wire(),
                    payload: stored.payload,
                };
                let entries = found.into_iter().map(entry).collect();
                v1::ReadAnswer { request_id, status: v1::BookieStatus::Ok as i32, entries }
            }
            Answer::Read(_, Err(error)) => {
                v1::ReadAnswer { request_id, status: code(error), entries: Vec::new() }
            }
            other => panic!("a read is answered with {other:?}"),
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Bookie for TestBookie {
    type AppendStream = Answers<v1::AppendAnswers>;
    type ReadStream = Answers<v1::ReadAnswers>;

    async fn handshake(
        &self,
        request: Request<v1::BookieHandshakeRequest>,
    ) -> Result<Response<v1::BookieHandshakeResponse>, Status> {
        let request = request.into_inner();
        assert_eq!((request.min_protocol, request.max_protocol), (1, 1));
        assert_eq!(request.node_id, "broker-1");
        let behaviour = self.0.behaviour.lock();
        Ok(Response::new(v1::BookieHandshakeResponse {
            protocol: behaviour.protocol,
            cluster_id: behaviour.cluster.clone(),
            bookie_id: behaviour.name.clone(),
        }))
    }

    async fn append(
        &self,
        request: Request<Streaming<v1::AppendBatch>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        self.0.check_meant(&request)?;
        let (state, mut batches) = (Arc::clone(&self.0), request.into_inner());
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok(Some(batch)) = batches.message().await {
                state.batches.lock().push(batch.requests.len());
                if state.behaviour.lock().silent {
                    continue;
                }
                let answer = |request: &v1::AppendRequest| v1::AppendAnswer {
                    request_id: request.request_id,
                    status: state.append(request),
                };
                let answers = batch.requests.iter().map(answer).collect();
                if sender.send(Ok(v1::AppendAnswers { answers })).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn read(
        &self,
        request: Request<Streaming<v1::ReadBatch>>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        self.0.check_meant(&request)?;
        let (state, mut batches) = (Arc::clone(&self.0), request.into_inner());
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok(Some(batch)) = batches.message().await {
                let fences = batch.fences.iter().map(|request| state.fence(request)).collect();
                let answers = batch.requests.iter().map(|request| state.read(request)).collect();
                if sender.send(Ok(v1::ReadAnswers { answers, fences })).await.is_err() {
                    break;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn fence(
        &self,
        request: Request<v1::FenceRequest>,
    ) -> Result<Response<v1::FenceAnswer>, Status> {
        self.0.check_meant(&request)?;
        Ok(Response::new(self.0.fence(&request.into_inner())))
    }

    async fn ledgers_fenced(
        &self,
        request: Request<v1::LedgersFencedRequest>,
    ) -> Result<Response<v1::LedgersFencedAnswer>, Status> {
        self.0.check_meant(&request)?;
        let request = request.into_inner();
        let disk = self.0.disk.lock();
        let mut fenced = vec![0_u8; request.ledger_ids.len().div_ceil(8)];
        for (at, (id, token)) in request.ledger_ids.iter().zip(&request.tokens).enumerate() {
            let asked = FenceRequest { ledger: LedgerId(*id), token: LedgerToken(*token) };
            fenced[at / 8] |= u8::from(disk.is_fenced(&asked)) << (at % 8);
        }
        Ok(Response::new(v1::LedgersFencedAnswer { fenced: fenced.into() }))
    }

    async fn delete_hint(
        &self,
        _: Request<v1::DeleteHintRequest>,
    ) -> Result<Response<v1::DeleteHintAnswer>, Status> {
        Ok(Response::new(v1::DeleteHintAnswer {}))
    }

    async fn info(&self, _: Request<v1::InfoRequest>) -> Result<Response<v1::InfoAnswer>, Status> {
        Ok(Response::new(v1::InfoAnswer {
            bookie_id: self.0.behaviour.lock().name.clone(),
            cluster_id: String::new(),
            sync_mode: "direct-dsync".to_owned(),
            total_bytes: 10,
            free_bytes: 4,
            writable: true,
            ledgers: 3,
            segments: 2,
        }))
    }
}

/// A bookie's process: a runtime of its own, so that killing it closes its connections.
struct Server {
    state: Arc<State>,
    address: SocketAddr,
    process: Option<tokio::runtime::Runtime>,
}

impl Server {
    fn start(name: &str) -> Self {
        let behaviour = Behaviour {
            cluster: "c1".to_owned(),
            name: name.to_owned(),
            protocol: 1,
            silent: false,
            forced: None,
        };
        let state = Arc::new(State {
            disk: Mutex::default(),
            behaviour: Mutex::new(behaviour),
            batches: Mutex::default(),
        });
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { state, address, process: None };
        server.restart();
        server
    }

    fn restart(&mut self) {
        let bound = (0..200).find_map(|_| match std::net::TcpListener::bind(self.address) {
            Ok(listener) => Some(listener),
            Err(_) => {
                std::thread::sleep(Duration::from_millis(10));
                None
            }
        });
        let listener = bound.expect("the address is free");
        listener.set_nonblocking(true).expect("a socket");
        self.address = listener.local_addr().expect("bound");
        let process = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let service = BookieServer::new(TestBookie(Arc::clone(&self.state)));
        process.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.expect("serves");
        });
        self.process = Some(process);
    }

    fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.shutdown_background();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

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
