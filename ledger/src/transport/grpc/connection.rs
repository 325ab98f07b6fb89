//! One connection to one bookie: a queue, and the task that empties it.
//!
//! The task connects when there is something to send, shakes hands, opens the two streams, and
//! then moves requests out and answers in until either side breaks. Whatever breaks, all that is
//! unanswered is answered *unreachable*, and the next request connects again, after a pause.
//!
//! Invariant: sinks are called by the task only, under no lock, so `append` may be called with
//! the ledger's lock held.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use geminga_proto::id::{BookieId, EntryId, LedgerId};
use geminga_proto::storage::{
    AppendRequest, AppendResult, BookieError, BookieInfo, FenceRequest, FenceResult, FencedResult,
    ReadRequest, ReadResult,
};
use geminga_proto::v1::bookie_client::BookieClient;
use geminga_proto::{BOOKIE_HEADER, CLUSTER_HEADER, PROTOCOL, v1};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use crate::transport::AppendSink;
use crate::transport::grpc::{BookieDirectory, GrpcTransportConfig, wire};

/// HTTP/2 windows: large enough that one round trip's worth of bytes fits at several GB/s.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const FRAME_BYTES: u32 = 1024 * 1024;
/// Appends in one message at most.
const BATCH_APPENDS: usize = 4 * 1024;
/// Messages handed to a stream before its peer has taken them.
const STREAM_DEPTH: usize = 4;

/// A question, and where its answer goes.
pub(super) enum Job {
    Read(ReadRequest, Reply<ReadResult>),
    Fence(FenceRequest, Reply<FenceResult>),
    Fenced(Vec<FenceRequest>, Reply<FencedResult>),
    DeleteHint(Vec<LedgerId>, Reply<Result<(), BookieError>>),
    Info(Reply<Result<BookieInfo, BookieError>>),
}

/// Where an answer goes. As long as it exists, the question counts as pending, even if whoever
/// asked has gone. Dropping it answers *unreachable*.
pub(super) struct Reply<T> {
    sender: oneshot::Sender<T>,
    slot: Slot,
}

impl<T> Reply<T> {
    fn send(self, answer: T) {
        // Nobody may be waiting any more.
        drop(self.sender.send(answer));
        drop(self.slot);
    }
}

/// One of the questions that may be pending. Dropped under no lock of the connection.
struct Slot(Arc<Connection>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.queue.lock().pending_requests -= 1;
    }
}

/// An append whose answer is awaited.
#[derive(Debug)]
struct Unanswered {
    sink: Arc<dyn AppendSink>,
    entry: EntryId,
    bytes: u64,
}

#[derive(Default)]
struct Queue {
    appends: VecDeque<(AppendRequest, Arc<dyn AppendSink>)>,
    /// Appends over the cap: answered by the task, since `append` may not call the sink.
    refused: Vec<(EntryId, Arc<dyn AppendSink>)>,
    jobs: VecDeque<Job>,
    /// Of appends, queued and sent.
    pending_bytes: u64,
    pending_appends: usize,
    /// Of the other requests, queued and sent.
    pending_requests: usize,
    closed: bool,
}

/// One bookie's queue; the task that empties it has the other reference.
pub(super) struct Connection {
    bookie: BookieId,
    config: Arc<GrpcTransportConfig>,
    directory: Arc<dyn BookieDirectory>,
    queue: Mutex<Queue>,
    wake: Notify,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Connection").field("bookie", &self.bookie).finish_non_exhaustive()
    }
}

/// Why a connection could not be made or ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("its address is not known")]
    NoAddress,
    #[error("its address {0:?} is malformed")]
    Address(String),
    #[error("connecting took too long")]
    Timeout,
    #[error(transparent)]
    Connect(#[from] tonic::transport::Error),
    #[error("it answers {}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error("it says that it is {found:?} instead of {expected:?}")]
    OtherNode { found: String, expected: String },
    #[error("the name {0:?} can't be sent")]
    Name(String),
    #[error("it speaks protocol {0}, this node {PROTOCOL:?}")]
    Protocol(u32),
    #[error("it closed the connection")]
    Closed,
    #[error("it answered a request that was not sent")]
    Confused,
}

/// Every request says whom it is meant for.
type Client = BookieClient<InterceptedService<Channel, Addressee>>;

/// The cluster and bookie that requests are meant for: the address may lead to another one by now.
#[derive(Debug, Clone)]
struct Addressee {
    cluster: MetadataValue<Ascii>,
    bookie: MetadataValue<Ascii>,
}

impl Interceptor for Addressee {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let headers = request.metadata_mut();
        headers.insert(CLUSTER_HEADER, self.cluster.clone());
        headers.insert(BOOKIE_HEADER, self.bookie.clone());
        Ok(request)
    }
}

/// The two streams of a live connection.
struct Streams {
    client: Client,
    appends: mpsc::Sender<v1::AppendBatch>,
    append_answers: Streaming<v1::AppendAnswers>,
    reads: mpsc::Sender<v1::ReadBatch>,
    read_answers: Streaming<v1::ReadAnswers>,
}

/// What was sent over a connection and not answered.
#[derive(Default)]
struct InFlight {
    next_id: u64,
    appends: HashMap<u64, Unanswered>,
    reads: HashMap<u64, Reply<ReadResult>>,
}

impl Connection {
    pub(super) fn start(
        bookie: BookieId,
        config: Arc<GrpcTransportConfig>,
        directory: Arc<dyn BookieDirectory>,
        runtime: &tokio::runtime::Handle,
    ) -> Arc<Self> {
        let (queue, wake) = (Mutex::default(), Notify::new());
        let connection = Arc::new(Self { bookie, config, directory, queue, wake });
        runtime.spawn(run(Arc::clone(&connection)));
        connection
    }

    /// Ends the task once it has answered everything.
    pub(super) fn close(&self) {
        self.queue.lock().closed = true;
        self.wake.notify_one();
    }

    pub(super) fn append(&self, request: AppendRequest, sink: Arc<dyn AppendSink>) {
        let bytes = request.payload.len() as u64;
        let mut queue = self.queue.lock();
        let full = queue.pending_appends >= self.config.max_pending_appends_per_bookie
            || queue.pending_bytes.saturating_add(bytes) > self.config.max_pending_bytes_per_bookie
                && queue.pending_bytes > 0;
        if full {
            queue.refused.push((request.entry, sink));
        } else {
            queue.pending_appends += 1;
            queue.pending_bytes += bytes;
            queue.appends.push_back((request, sink));
        }
        drop(queue);
        self.wake.notify_one();
    }

    /// Asks something; the outer error is the transport's.
    pub(super) async fn request<T>(
        self: Arc<Self>,
        job: impl FnOnce(Reply<T>) -> Job,
    ) -> Result<T, BookieError> {
        let (sender, answer) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if queue.pending_requests >= self.config.max_pending_requests_per_bookie {
                return Err(BookieError::Overloaded);
            }
            queue.pending_requests += 1;
            let slot = Slot(Arc::clone(&self));
            queue.jobs.push_back(job(Reply { sender, slot }));
        }
        self.wake.notify_one();
        // A reply that is dropped: the connection broke.
        answer.await.map_err(|_| BookieError::Unreachable)
    }

    /// Whether there is nothing to send or answer, and whether it is closed.
    fn idle(&self) -> (bool, bool) {
        let queue = self.queue.lock();
        let empty = queue.appends.is_empty() && queue.jobs.is_empty() && queue.refused.is_empty();
        (empty, queue.closed)
    }

    fn take_refused(&self) -> Vec<(EntryId, Arc<dyn AppendSink>)> {
        std::mem::take(&mut self.queue.lock().refused)
    }

    /// The next message of appends, up to the limits of one.
    fn take_appends(&self) -> Vec<(AppendRequest, Arc<dyn AppendSink>)> {
        let mut queue = self.queue.lock();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some((request, _)) = queue.appends.front() {
            bytes += request.payload.len();
            let over = bytes > self.config.max_batch_bytes || batch.len() == BATCH_APPENDS;
            if over && !batch.is_empty() {
                break;
            }
            batch.extend(queue.appends.pop_front());
        }
        batch
    }

    fn settled(&self, appends: usize, bytes: u64) {
        let mut queue = self.queue.lock();
        queue.pending_appends -= appends;
        queue.pending_bytes -= bytes;
    }

    /// Answers all appends that are queued or in flight; drops all questions, which answers them.
    fn fail_all(&self, in_flight: &mut InFlight) {
        in_flight.reads.clear();
        let (queued, jobs) = {
            let mut queue = self.queue.lock();
            (std::mem::take(&mut queue.appends), std::mem::take(&mut queue.jobs))
        };
        drop(jobs);
        let queued = queued.into_iter().map(|(request, sink)| Unanswered {
            sink,
            entry: request.entry,
            bytes: request.payload.len() as u64,
        });
        let mut sent: Vec<(u64, Unanswered)> = in_flight.appends.drain().collect();
        sent.sort_unstable_by_key(|(id, _)| *id);
        let failed = sent.into_iter().map(|(_, unanswered)| unanswered).chain(queued);
        self.answer(failed.map(|unanswered| (unanswered, Err(BookieError::Unreachable))));
    }

    /// Tells sinks, in rows.
    fn answer(&self, answers: impl Iterator<Item = (Unanswered, AppendResult)>) {
        let mut row: Option<Arc<dyn AppendSink>> = None;
        let (mut count, mut bytes) = (0, 0);
        for (unanswered, result) in answers {
            count += 1;
            bytes += unanswered.bytes;
            if row.as_ref().is_none_or(|open| !Arc::ptr_eq(open, &unanswered.sink)) {
                if let Some(over) = row.take() {
                    over.batch_end();
                }
                unanswered.sink.batch_begin();
                row = Some(Arc::clone(&unanswered.sink));
            }
            unanswered.sink.append_done(&self.bookie, unanswered.entry, result);
        }
        if let Some(over) = row {
            over.batch_end();
        }
        self.settled(count, bytes);
    }

    fn answer_refused(&self) {
        for (entry, sink) in self.take_refused() {
            sink.append_done(&self.bookie, entry, Err(BookieError::Overloaded));
        }
    }
}

/// The task of a connection.
async fn run(connection: Arc<Connection>) {
    let pause = Duration::from_millis(connection.config.reconnect_delay_ms);
    loop {
        let (idle, closed) = connection.idle();
        if idle && closed {
            return;
        }
        if idle {
            connection.wake.notified().await;
            continue;
        }
        connection.answer_refused();
        let mut in_flight = InFlight::default();
        let broken = match connect(&connection).await {
            Ok(streams) => serve(&connection, streams, &mut in_flight).await,
            Err(broken) => broken,
        };
        if connection.queue.lock().closed {
            tracing::debug!(bookie = %connection.bookie, "disconnected");
        } else {
            tracing::warn!(bookie = %connection.bookie, %broken, "a bookie can't be reached");
        }
        connection.fail_all(&mut in_flight);
        connection.answer_refused();
        tokio::time::sleep(pause).await;
    }
}

async fn connect(connection: &Connection) -> Result<Streams, Broken> {
    let address = connection.directory.address(&connection.bookie).ok_or(Broken::NoAddress)?;
    let config = &connection.config;
    let keep_alive = Duration::from_millis(config.keep_alive_ms);
    let endpoint = Endpoint::from_shared(address.clone())
        .map_err(|_| Broken::Address(address))?
        .connect_timeout(config.connect_timeout())
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(keep_alive)
        .keep_alive_timeout(keep_alive)
        .keep_alive_while_idle(true);
    let name = |name: &str| name.parse().map_err(|_| Broken::Name(name.to_owned()));
    let addressee = Addressee {
        cluster: name(config.cluster_id.as_str())?,
        bookie: name(connection.bookie.as_str())?,
    };
    let opening = async {
        let channel = endpoint.connect().await?;
        let mut client = BookieClient::with_interceptor(channel, addressee)
            .max_decoding_message_size(config.max_message_bytes);
        shake_hands(connection, &mut client).await?;
        let (appends, batches) = mpsc::channel(STREAM_DEPTH);
        let append_answers = client.append(ReceiverStream::new(batches)).await?.into_inner();
        let (reads, batches) = mpsc::channel(STREAM_DEPTH);
        let read_answers = client.read(ReceiverStream::new(batches)).await?.into_inner();
        Ok(Streams { client, appends, append_answers, reads, read_answers })
    };
    tokio::time::timeout(config.connect_timeout(), opening).await.map_err(|_| Broken::Timeout)?
}

async fn shake_hands(connection: &Connection, client: &mut Client) -> Result<(), Broken> {
    let config = &connection.config;
    let request = v1::BookieHandshakeRequest {
        min_protocol: *PROTOCOL.start(),
        max_protocol: *PROTOCOL.end(),
        cluster_id: config.cluster_id.to_string(),
        node_id: config.node_id.clone(),
        expected_bookie_id: connection.bookie.to_string(),
    };
    let answer = client.handshake(request).await?.into_inner();
    if !PROTOCOL.contains(&answer.protocol) {
        return Err(Broken::Protocol(answer.protocol));
    }
    for (found, expected) in [
        (answer.cluster_id, config.cluster_id.as_str()),
        (answer.bookie_id, connection.bookie.as_str()),
    ] {
        if found != expected {
            return Err(Broken::OtherNode { found, expected: expected.to_owned() });
        }
    }
    Ok(())
}

/// Moves requests out and answers in, until the connection breaks or is closed.
async fn serve(connection: &Connection, mut streams: Streams, in_flight: &mut InFlight) -> Broken {
    let mut reads: Vec<(ReadRequest, Reply<ReadResult>)> = Vec::new();
    loop {
        connection.answer_refused();
        let (has_appends, closed) = {
            let mut queue = connection.queue.lock();
            for job in queue.jobs.drain(..) {
                match job {
                    Job::Read(request, answer) => reads.push((request, answer)),
                    other => ask(connection, &streams.client, other),
                }
            }
            (!queue.appends.is_empty(), queue.closed)
        };
        if closed && !has_appends && in_flight.appends.is_empty() {
            return Broken::Closed;
        }
        tokio::select! {
            permit = streams.appends.reserve(), if has_appends => match permit {
                Ok(permit) => permit.send(batch(connection, in_flight)),
                Err(_) => return Broken::Closed,
            },
            permit = streams.reads.reserve(), if !reads.is_empty() => match permit {
                Ok(permit) => permit.send(read_batch(&mut reads, in_flight)),
                Err(_) => return Broken::Closed,
            },
            answers = streams.append_answers.message() => match answers {
                Ok(Some(answers)) => {
                    if let Err(broken) = appended(connection, answers, in_flight) {
                        return broken;
                    }
                }
                Ok(None) => return Broken::Closed,
                Err(status) => return status.into(),
            },
            answers = streams.read_answers.message() => match answers {
                Ok(Some(answers)) => {
                    for answer in answers.answers {
                        if let Some(reply) = in_flight.reads.remove(&answer.request_id) {
                            reply.send(wire::read_answer(answer));
                        }
                    }
                }
                Ok(None) => return Broken::Closed,
                Err(status) => return status.into(),
            },
            () = connection.wake.notified() => {}
        }
    }
}

fn batch(connection: &Connection, in_flight: &mut InFlight) -> v1::AppendBatch {
    let taken = connection.take_appends();
    let mut requests = Vec::with_capacity(taken.len());
    for (request, sink) in taken {
        let bytes = request.payload.len() as u64;
        let unanswered = Unanswered { sink, entry: request.entry, bytes };
        in_flight.next_id += 1;
        in_flight.appends.insert(in_flight.next_id, unanswered);
        requests.push(wire::append(in_flight.next_id, request));
    }
    v1::AppendBatch { requests }
}

fn read_batch(
    reads: &mut Vec<(ReadRequest, Reply<ReadResult>)>,
    in_flight: &mut InFlight,
) -> v1::ReadBatch {
    let mut requests = Vec::with_capacity(reads.len());
    for (request, answer) in reads.drain(..) {
        in_flight.next_id += 1;
        in_flight.reads.insert(in_flight.next_id, answer);
        requests.push(wire::read(in_flight.next_id, request));
    }
    v1::ReadBatch { requests }
}

fn appended(
    connection: &Connection,
    answers: v1::AppendAnswers,
    in_flight: &mut InFlight,
) -> Result<(), Broken> {
    let mut known = Vec::with_capacity(answers.answers.len());
    let mut confused = false;
    for answer in answers.answers {
        match in_flight.appends.remove(&answer.request_id) {
            Some(unanswered) => known.push((unanswered, wire::status(answer.status))),
            None => confused = true,
        }
    }
    connection.answer(known.into_iter());
    if confused { Err(Broken::Confused) } else { Ok(()) }
}

/// Asks something that has no stream, beside the streams.
fn ask(connection: &Connection, client: &Client, job: Job) {
    let mut client = client.clone();
    let timeout = Duration::from_millis(connection.config.request_timeout_ms);
    let bookie = connection.bookie.clone();
    tokio::spawn(async move {
        let asked = async {
            match job {
                Job::Fence(request, answer) => {
                    let result = client.fence(wire::fence(request)).await;
                    let result = told(&bookie, result).and_then(|found| wire::fence_answer(&found));
                    answer.send(result);
                }
                Job::Fenced(ledgers, answer) => {
                    let result = client.ledgers_fenced(wire::fenced(&ledgers)).await;
                    let result = told(&bookie, result);
                    answer
                        .send(result.and_then(|found| wire::fenced_answer(&found, ledgers.len())));
                }
                Job::DeleteHint(ledgers, answer) => {
                    let ledger_ids = ledgers.into_iter().map(|ledger| ledger.0).collect();
                    let result = client.delete_hint(v1::DeleteHintRequest { ledger_ids }).await;
                    answer.send(told(&bookie, result).map(|_| ()));
                }
                Job::Info(answer) => {
                    let result = client.info(v1::InfoRequest {}).await;
                    let result = told(&bookie, result).and_then(|found| wire::info(&found));
                    answer.send(result);
                }
                Job::Read(..) => unreachable!("reads have a stream"),
            }
        };
        // Dropping the question's reply answers it.
        if tokio::time::timeout(timeout, asked).await.is_err() {
            tracing::debug!(%bookie, "a bookie did not answer in time");
        }
    });
}

fn told<T>(
    bookie: &BookieId,
    result: Result<tonic::Response<T>, tonic::Status>,
) -> Result<T, BookieError> {
    result.map(tonic::Response::into_inner).map_err(|status| {
        tracing::debug!(%bookie, %status, "a bookie did not answer");
        BookieError::Unreachable
    })
}
