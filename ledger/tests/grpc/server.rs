//! A bookie's server whose storage is a model bookie, and which behaves as it is told.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use geminga_ledger::harness::bookie::{Answer, Ask, ModelBookie};
use geminga_proto::id::{EntryId, Lac, LedgerId, LedgerToken};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{AddKind, AppendRequest, BookieError, FenceRequest, ReadRequest};
use geminga_proto::v1;
use geminga_proto::v1::bookie_server::{Bookie, BookieServer};
use geminga_proto::{BOOKIE_HEADER, CLUSTER_HEADER};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// What a test bookie says and does.
#[derive(Debug)]
pub struct Behaviour {
    pub cluster: String,
    pub name: String,
    pub protocol: u32,
    /// Answers no append.
    pub silent: bool,
    /// The status of every append; `None`: what the model says.
    pub forced: Option<i32>,
}

#[derive(Debug)]
pub struct State {
    disk: Mutex<ModelBookie>,
    pub behaviour: Mutex<Behaviour>,
    /// Sizes of the messages of appends.
    pub batches: Mutex<Vec<usize>>,
}

#[derive(Debug, Clone)]
struct TestBookie(Arc<State>);

pub fn code(error: BookieError) -> i32 {
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
            lag_ms: 0,
            lag_bytes: 0,
        }))
    }

    async fn scrub(
        &self,
        request: Request<v1::ScrubRequest>,
    ) -> Result<Response<v1::ScrubAnswer>, Status> {
        let running = request.into_inner().start;
        let (total_bytes, done_bytes, damaged_entries) = (10, 4, 1);
        Ok(Response::new(v1::ScrubAnswer { total_bytes, done_bytes, running, damaged_entries }))
    }
}

/// A bookie's process: a runtime of its own, so that killing it closes its connections.
pub struct Server {
    pub state: Arc<State>,
    pub address: SocketAddr,
    process: Option<tokio::runtime::Runtime>,
}

impl Server {
    pub fn start(name: &str) -> Self {
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

    pub fn restart(&mut self) {
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

    pub fn kill(&mut self) {
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
