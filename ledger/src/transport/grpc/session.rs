//! The task of a connection: connects when there is something to send, shakes hands, opens the two
//! streams, and moves requests out and answers in until either side breaks.
//!
//! Whatever breaks, all that is unanswered is answered *unreachable*. A connection that has worked
//! is made again at once, when there is something to send; after one that has not there is a pause.
//! In it, and once connecting has taken longer than is usual, everything is answered *unreachable*
//! at once: whoever asks has other bookies and must not wait for this one.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use geminga_proto::append_wire::AppendBatch;
use geminga_proto::id::BookieId;
use geminga_proto::storage::BookieError;
use geminga_proto::stream::{self, IntoChunks, Messages, path};
use geminga_proto::v1::bookie_client::BookieClient;
use geminga_proto::{BOOKIE_HEADER, CLUSTER_HEADER, PROTOCOL, v1};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::transport::grpc::GrpcTransportConfig;
use crate::transport::grpc::connection::{Connection, Job};
use crate::transport::grpc::in_flight::{InFlight, Question, Unanswered};
use crate::transport::grpc::wire;

/// HTTP/2 windows: large enough that one round trip's worth of bytes fits at several GB/s.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const FRAME_BYTES: u32 = 1024 * 1024;
/// Messages handed to a stream before its peer has taken them.
const STREAM_DEPTH: usize = 4;

/// Why a connection could not be made or ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("its address is not known")]
    NoAddress,
    #[error("its address {0:?} is malformed")]
    Address(String),
    #[error("connecting took too long")]
    Timeout,
    #[error("{}", chain(.0))]
    Connect(#[from] tonic::transport::Error),
    #[error("it answers {}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error("it says that it is {found:?} instead of {expected:?}")]
    OtherNode { found: String, expected: String },
    #[error("the name {0:?} can't be sent")]
    Name(String),
    #[error("it speaks protocol {0}, this node {PROTOCOL:?}: upgrade the older one")]
    Protocol(u32),
    #[error("it closed the connection")]
    Closed,
    #[error("it answered a request that was not sent")]
    Confused,
    #[error("it left an append unanswered")]
    Forgetful,
}

/// The transport's error says only in its sources what happened.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Every request says whom it is meant for.
type Client = BookieClient<InterceptedService<Channel, Addressee>>;

/// The cluster and bookie that requests are meant for: the address may lead to another one by now.
#[derive(Debug, Clone)]
pub(super) struct Addressee {
    pub cluster: MetadataValue<Ascii>,
    pub bookie: MetadataValue<Ascii>,
}

impl Interceptor for Addressee {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let headers = request.metadata_mut();
        headers.insert(CLUSTER_HEADER, self.cluster.clone());
        headers.insert(BOOKIE_HEADER, self.bookie.clone());
        Ok(request)
    }
}

impl Addressee {
    /// Opens a stream: what is received on `batches` goes out.
    async fn open<R, A>(
        &self,
        mut channel: Channel,
        path: &'static str,
        batches: mpsc::Receiver<R>,
        config: &GrpcTransportConfig,
    ) -> Result<Messages<A>, Status>
    where
        R: IntoChunks + Send + 'static,
        A: Message + Default,
    {
        let mut headers = MetadataMap::new();
        headers.insert(CLUSTER_HEADER, self.cluster.clone());
        headers.insert(BOOKIE_HEADER, self.bookie.clone());
        let (headers, requests) = (headers.into_headers(), ReceiverStream::new(batches));
        stream::open(&mut channel, path, headers, requests, config.max_message_bytes).await
    }
}

/// The two streams of a live connection.
struct Streams {
    client: Client,
    appends: mpsc::Sender<AppendBatch>,
    append_answers: Messages<v1::AppendAnswers>,
    reads: mpsc::Sender<v1::ReadBatch>,
    read_answers: Messages<v1::ReadAnswers>,
}

/// Runs a connection until it is closed. Should something panic, all is answered as when it breaks,
/// and it is made anew: nobody else would serve it.
pub(super) async fn run(connection: Arc<Connection>) {
    let mut in_flight = InFlight::default();
    while AssertUnwindSafe(run_on(&connection, &mut in_flight)).catch_unwind().await.is_err() {
        tracing::error!(bookie = %connection.bookie, "a connection panicked; it is made anew");
        connection.fail_all(&mut in_flight);
        connection.answer_refused();
        refuse_for(&connection, pause(&connection)).await;
    }
}

fn pause(connection: &Connection) -> Duration {
    Duration::from_millis(connection.config.reconnect_delay_ms)
}

/// As [`run`], up to a panic. `in_flight` is empty whenever there is no connection.
async fn run_on(connection: &Connection, in_flight: &mut InFlight) {
    let pause = pause(connection);
    // Somebody was told that it can't be reached.
    let mut down = false;
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
        *in_flight = InFlight::default();
        let mut worked = None;
        let broken = match connect_refusing(connection).await {
            Ok(streams) => {
                if std::mem::take(&mut down) {
                    tracing::info!(bookie = %connection.bookie, "a bookie is reached again");
                }
                worked = Some(Instant::now());
                serve(connection, streams, in_flight).await
            }
            Err(broken) => broken,
        };
        if connection.is_closed() {
            tracing::debug!(bookie = %connection.bookie, "disconnected");
        } else if std::mem::replace(&mut down, true) {
            tracing::debug!(bookie = %connection.bookie, %broken, "a bookie can't be reached");
        } else {
            tracing::warn!(bookie = %connection.bookie, %broken, "a bookie can't be reached");
        }
        connection.fail_all(in_flight);
        connection.answer_refused();
        if worked.is_none_or(|since| since.elapsed() < pause) {
            refuse_for(connection, pause).await;
        }
    }
}

/// Answers whatever is asked that it can't be reached.
async fn refuse_for(connection: &Connection, pause: Duration) {
    let over = tokio::time::sleep(pause);
    tokio::pin!(over);
    loop {
        tokio::select! {
            () = &mut over => return,
            () = connection.wake.notified() => {
                connection.fail_all(&mut InFlight::default());
                connection.answer_refused();
                if connection.is_closed() {
                    return;
                }
            }
        }
    }
}

/// Connects. What waits, and what comes, is refused once that has taken long; connecting goes on.
async fn connect_refusing(connection: &Connection) -> Result<Streams, Broken> {
    let connecting = connect(connection);
    tokio::pin!(connecting);
    let patience = Duration::from_millis(connection.config.connect_patience_ms);
    if let Ok(connected) = tokio::time::timeout(patience, &mut connecting).await {
        return connected;
    }
    tracing::debug!(bookie = %connection.bookie, "connecting to a bookie takes long");
    loop {
        connection.fail_all(&mut InFlight::default());
        connection.answer_refused();
        if connection.is_closed() {
            return Err(Broken::Closed);
        }
        tokio::select! {
            connected = &mut connecting => return connected,
            () = connection.wake.notified() => {}
        }
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
        let mut client = BookieClient::with_interceptor(channel.clone(), addressee.clone())
            .max_decoding_message_size(config.max_message_bytes);
        shake_hands(connection, &mut client).await?;
        let (appends, batches) = mpsc::channel(STREAM_DEPTH);
        let append_answers = addressee.open(channel.clone(), path::APPEND, batches, config).await?;
        let (reads, batches) = mpsc::channel(STREAM_DEPTH);
        let read_answers = addressee.open(channel, path::READ, batches, config).await?;
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
    let mut questions = v1::ReadBatch::default();
    let most_sent = connection.config.max_pending_appends_per_bookie.saturating_mul(4);
    loop {
        connection.answer_refused();
        let waiting = connection.take_jobs();
        for job in waiting.jobs {
            match job {
                Job::Read(request, reply) => {
                    let number = in_flight.ask(Question::Read(reply));
                    questions.requests.push(wire::read(number, request));
                }
                Job::Fence(request, reply) => {
                    let number = in_flight.ask(Question::Fence(reply));
                    questions.fences.push(wire::fence(number, request));
                }
                other => ask(connection, &streams.client, other),
            }
        }
        if waiting.closed && !waiting.appends && in_flight.appends.is_empty() {
            return Broken::Closed;
        }
        if in_flight.appends.span() > most_sent {
            return Broken::Forgetful;
        }
        tokio::select! {
            permit = streams.appends.reserve(), if waiting.appends => match permit {
                Ok(permit) => permit.send(batch(connection, in_flight)),
                Err(_) => return Broken::Closed,
            },
            permit = streams.reads.reserve(), if asks(&questions) => match permit {
                Ok(permit) => permit.send(std::mem::take(&mut questions)),
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
                Ok(Some(answers)) => answered(answers, in_flight),
                Ok(None) => return Broken::Closed,
                Err(status) => return status.into(),
            },
            () = connection.wake.notified() => {}
        }
    }
}

fn batch(connection: &Connection, in_flight: &mut InFlight) -> AppendBatch {
    let numbered = |(request, sink): (geminga_proto::storage::AppendRequest, _)| {
        let bytes = request.payload.len() as u64;
        let unanswered = Unanswered { sink, entry: request.entry, bytes };
        (in_flight.appends.push(unanswered), request)
    };
    AppendBatch(connection.take_appends().into_iter().map(numbered).collect())
}

fn asks(questions: &v1::ReadBatch) -> bool {
    !questions.requests.is_empty() || !questions.fences.is_empty()
}

/// Answers to questions; one that nobody asked is nobody's.
fn answered(answers: v1::ReadAnswers, in_flight: &mut InFlight) {
    for answer in answers.fences {
        if let Some(Question::Fence(reply)) = in_flight.take_question(answer.request_id) {
            reply.send(wire::fence_answer(&answer));
        }
    }
    for answer in answers.answers {
        if let Some(Question::Read(reply)) = in_flight.take_question(answer.request_id) {
            reply.send(wire::read_answer(answer));
        }
    }
}

fn appended(
    connection: &Connection,
    answers: v1::AppendAnswers,
    in_flight: &mut InFlight,
) -> Result<(), Broken> {
    let mut known = Vec::with_capacity(answers.answers.len());
    let mut confused = false;
    for answer in answers.answers {
        match in_flight.appends.take(answer.request_id) {
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
                Job::Scrub(start, answer) => {
                    let result = client.scrub(v1::ScrubRequest { start }).await;
                    answer.send(told(&bookie, result).map(|found| wire::scrub(&found)));
                }
                Job::Read(..) | Job::Fence(..) => unreachable!("these have a stream"),
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
