//! [`Connection`]: one gRPC channel to one broker, with its Produce and Consume streams.
//!
//! Invariants: a connection is used only after its handshake agreed on protocol and cluster; one
//! whose transport failed is never used again; streams are opened when first needed; whoever waits
//! for an answer of a broker that shows no sign of life (`liveness.rs`) is told so.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use geminga_proto::stream::{self, Messages};
use geminga_proto::v1;
use geminga_proto::v1::messaging_client::MessagingClient;
use tokio::sync::oneshot;
use tonic::codegen::http::HeaderMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::error::{BrokerError, ClientError};
use crate::link::{Consume, Link, OutboundStream, Produce, Protocol};
use crate::liveness::{Health, Vitals};

mod watchman;

use watchman::Watchman;

/// HTTP/2 flow-control windows: with the default of 64 KiB a stream reaches half the speed.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const FRAME_BYTES: u32 = 1024 * 1024;
/// A connection without a sign of life for this long is pinged by the transport, also if nobody
/// waits for anything: an idle consumer must not stay for ever at a broker that is cut off.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A connection whose ping has no answer for this long is given up. Longer than it takes to ask the
/// others (`liveness.rs`): it ends every session, also if the broker still owns their topics.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit of one lookup: they are answered from memory, and others can be asked.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Above the largest entry, a message may have others before it and its own fields.
const DECODE_SLACK_BYTES: usize = 2 * 1024 * 1024;
/// Carries a `v1::ErrorCode` in the metadata of a gRPC status.
pub(crate) const ERROR_CODE_KEY: &str = "geminga-error-code";

/// What a broker says of itself when a client connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerInfo {
    /// The cluster: random, made by its first start.
    pub cluster_id: String,
    /// The broker.
    pub broker_id: String,
    /// Largest message that it takes.
    pub max_message_bytes: u32,
    /// The protocol version agreed on.
    pub protocol: u32,
}

/// What every connection is made with.
#[derive(Debug, Clone)]
pub(crate) struct ConnectSettings {
    pub connect_timeout: Duration,
    pub operation_timeout: Duration,
    pub expected_cluster_id: Option<String>,
    pub client_name: String,
}

type Slot<P> = tokio::sync::Mutex<Option<Arc<Link<P>>>>;

/// The streams of a connection, once they are needed.
#[derive(Debug, Default)]
struct Streams {
    produce: Slot<Produce>,
    consume: Slot<Consume>,
}

impl Streams {
    /// True if somebody waits for an answer on one of them.
    fn has_waiting(&self) -> bool {
        // A slot that is locked is being opened, which is a call and counted as such.
        let produce = self.produce.try_lock().ok().and_then(|slot| slot.clone());
        let consume = self.consume.try_lock().ok().and_then(|slot| slot.clone());
        produce.is_some_and(|link| link.has_waiting())
            || consume.is_some_and(|link| link.has_waiting())
    }
}

/// A channel to a broker.
#[derive(Debug)]
pub(crate) struct Connection {
    url: Arc<str>,
    info: BrokerInfo,
    /// For streams.
    channel: Channel,
    /// For calls.
    grpc: MessagingClient<Channel>,
    operation_timeout: Duration,
    /// Its signs of life; `Dead` is set by whoever sees the transport fail, and read by the pool.
    vitals: Arc<Vitals>,
    streams: Arc<Streams>,
}

/// Walks to the innermost cause, which alone says something.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(next) = innermost.source() {
        innermost = next;
    }
    innermost.to_string()
}

/// The largest message that a broker may send.
fn largest_message(info: &BrokerInfo) -> usize {
    info.max_message_bytes as usize + DECODE_SLACK_BYTES
}

/// HTTP/2 said no: what listens there speaks something else.
fn speaks_another_protocol(why: &str) -> bool {
    // HTTP/2's own descriptions of FRAME_SIZE_ERROR, PROTOCOL_ERROR and HTTP_1_1_REQUIRED.
    ["frame with invalid size", "unspecific protocol error", "endpoint requires HTTP/1.1"]
        .iter()
        .any(|sign| why.contains(sign))
}

/// True if the connection itself failed, rather than the broker having answered.
fn is_transport(status: &Status) -> bool {
    status.source().is_some()
}

/// What an answer says of the connection: any is a sign of life, if it comes from the broker.
fn note<T>(vitals: &Vitals, answer: &Result<T, Status>) {
    match answer {
        Err(status) if is_transport(status) => vitals.die(),
        _ => vitals.heard(),
    }
}

pub(crate) fn status_error(url: &str, status: &Status) -> ClientError {
    let code = status.metadata().get(ERROR_CODE_KEY);
    let code = code.and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    if let Some(code) = code {
        let message = status.message().to_owned();
        return ClientError::Broker(BrokerError::from_wire(v1::Error { code, message }));
    }
    let why = status.source().map_or_else(|| status.message().to_owned(), cause);
    if status.code() == Code::Unimplemented {
        let why = if why.is_empty() { "it does not serve messages".to_owned() } else { why };
        return ClientError::NotABroker { url: url.to_owned(), why };
    }
    if speaks_another_protocol(&why) {
        return ClientError::NotABroker { url: url.to_owned(), why };
    }
    ClientError::Disconnected { url: url.to_owned(), why }
}

/// As [`status_error`]. A port of another kind may hang up before it is heard why.
fn handshake_error(url: &str, status: &Status) -> ClientError {
    match status_error(url, status) {
        ClientError::Disconnected { url, why } => {
            let why = format!(
                "{why}, before it answered; is this a broker's gRPC port (by default 6660)?"
            );
            ClientError::Disconnected { url, why }
        }
        other => other,
    }
}

impl Connection {
    /// Connects and shakes hands.
    pub(crate) async fn open(
        url: &str,
        settings: &ConnectSettings,
        expected_cluster: Option<String>,
    ) -> Result<Arc<Self>, ClientError> {
        let failed = |why: String| ClientError::Connect { url: url.to_owned(), why };
        // The client's own addresses were checked: this is one that a broker gave.
        let invalid =
            |error: &tonic::transport::Error| failed(format!("no address: {}", cause(error)));
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|error| invalid(&error))?
            .connect_timeout(settings.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.map_err(|error| {
            let why = cause(&error);
            if speaks_another_protocol(&why) {
                return ClientError::NotABroker { url: url.to_owned(), why };
            }
            failed(why)
        })?;
        let expected = expected_cluster.unwrap_or_default();
        let request = handshake_request(settings, &expected);
        let info = Self::handshake(url, channel.clone(), settings, request.clone()).await?;
        let connection = Self {
            url: url.into(),
            grpc: MessagingClient::new(channel.clone())
                .max_decoding_message_size(largest_message(&info)),
            info,
            channel,
            operation_timeout: settings.operation_timeout,
            vitals: Arc::default(),
            streams: Arc::default(),
        };
        if !expected.is_empty() {
            connection.check_cluster(&expected)?;
        }
        let watchman = Watchman {
            vitals: Arc::clone(&connection.vitals),
            streams: Arc::clone(&connection.streams),
            grpc: connection.grpc.clone(),
            request,
        };
        tokio::spawn(watchman.run());
        Ok(Arc::new(connection))
    }

    async fn handshake(
        url: &str,
        channel: Channel,
        settings: &ConnectSettings,
        request: v1::HandshakeRequest,
    ) -> Result<BrokerInfo, ClientError> {
        let (min, max) = (request.min_protocol, request.max_protocol);
        let mut grpc = MessagingClient::new(channel);
        // Something that isn't a broker may take the connection and then stay silent.
        let answer = tokio::time::timeout(settings.connect_timeout, grpc.handshake(request));
        let answer = answer.await.map_err(|_| ClientError::Disconnected {
            url: url.to_owned(),
            why: format!(
                "no handshake within {:?}; is this a broker's gRPC port?",
                settings.connect_timeout
            ),
        })?;
        let answer = answer.map_err(|status| handshake_error(url, &status))?.into_inner();
        if !geminga_proto::PROTOCOL.contains(&answer.protocol) {
            return Err(ClientError::Protocol { chosen: answer.protocol, min, max });
        }
        Ok(BrokerInfo {
            cluster_id: answer.cluster_id,
            broker_id: answer.broker_id,
            max_message_bytes: answer.max_message_bytes,
            protocol: answer.protocol,
        })
    }

    /// Refuses a broker of another cluster.
    pub(crate) fn check_cluster(&self, expected: &str) -> Result<(), ClientError> {
        let found = &self.info.cluster_id;
        if found == expected {
            return Ok(());
        }
        self.finish();
        let message = format!(
            "{} belongs to cluster {found:?}, expected was {expected:?}; check the service URLs",
            self.url
        );
        Err(BrokerError { code: v1::ErrorCode::WrongCluster, message }.into())
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn info(&self) -> &BrokerInfo {
        &self.info
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.health() == Health::Dead
    }

    pub(crate) fn health(&self) -> Health {
        self.vitals.health()
    }

    /// True while the broker shows no sign of life though somebody waits for one.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.health() == Health::Doubtful
    }

    /// Waits until the broker shows no sign of life though somebody waits for one.
    pub(crate) async fn doubtful(&self) {
        self.vitals.doubtful().await;
    }

    /// Waits until it has shown one again, or the connection is dead.
    pub(crate) async fn clear(&self) {
        self.vitals.clear().await;
    }

    /// Why nothing is expected of the broker, or of this connection to it.
    pub(crate) fn silent(&self) -> ClientError {
        let why = match self.health() {
            Health::Dead => "the connection is over",
            Health::Fine | Health::Doubtful => "the broker shows no sign of life",
        };
        ClientError::Disconnected { url: self.url.to_string(), why: why.to_owned() }
    }

    /// Opens a stream. While the broker shows no sign of life nothing is sent to it.
    async fn open_stream<P: Protocol>(
        &self,
        path: &'static str,
        requests: OutboundStream<P>,
    ) -> Result<Messages<P::Response>, ClientError> {
        let limit = self.operation_timeout;
        let largest = largest_message(&self.info);
        let mut channel = self.channel.clone();
        let call = stream::open(&mut channel, path, HeaderMap::new(), requests, largest);
        let call = async {
            self.vitals.clear().await;
            let _counted = self.vitals.call();
            let answer = call.await;
            note(&self.vitals, &answer);
            answer.map_err(|status| status_error(&self.url, &status))
        };
        tokio::select! {
            biased;
            result = call => result,
            () = self.vitals.dead() => Err(self.silent()),
            () = tokio::time::sleep(limit) => Err(self.unanswered(limit)),
        }
    }

    /// Asks this broker who serves a topic.
    ///
    /// The call goes on when nobody waits for it any more. Calls that are given up are reset, and a
    /// broker that finds many resets when it comes to them takes that for an attack (HTTP/2's rapid
    /// reset) and ends the connection, with all sessions on it.
    pub(crate) async fn lookup(&self, topic: &str) -> Result<v1::LookupResponse, ClientError> {
        let (mut grpc, vitals) = (self.grpc.clone(), Arc::clone(&self.vitals));
        let request = v1::LookupRequest { topic: topic.to_owned() };
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move {
            let _counted = vitals.call();
            tokio::select! {
                answer = grpc.lookup(request) => {
                    note(&vitals, &answer);
                    // Whoever asked may have asked elsewhere, too.
                    let _ = tell.send(answer);
                }
                () = vitals.dead() => {}
            }
        });
        let limit = self.operation_timeout.min(LOOKUP_TIMEOUT);
        let answer = match tokio::time::timeout(limit, told).await {
            Ok(Ok(answer)) => answer.map_err(|status| status_error(&self.url, &status))?,
            Ok(Err(_)) => return Err(self.silent()),
            Err(_) => return Err(self.unanswered(limit)),
        };
        let answer = answer.into_inner();
        match answer.error {
            Some(error) => Err(BrokerError::from_wire(error).into()),
            None => Ok(answer),
        }
    }

    fn unanswered(&self, limit: Duration) -> ClientError {
        let why = format!("no answer within {limit:?}");
        ClientError::Disconnected { url: self.url.to_string(), why }
    }

    /// The Produce stream; opens it if there is none.
    pub(crate) async fn produce(&self) -> Result<Arc<Link<Produce>>, ClientError> {
        self.link(&self.streams.produce).await
    }

    /// The Consume stream; opens it if there is none.
    pub(crate) async fn consume(&self) -> Result<Arc<Link<Consume>>, ClientError> {
        self.link(&self.streams.consume).await
    }

    async fn link<P: Protocol>(&self, slot: &Slot<P>) -> Result<Arc<Link<P>>, ClientError> {
        let mut slot = slot.lock().await;
        if let Some(link) = slot.as_ref().filter(|link| !link.is_closed()) {
            return Ok(Arc::clone(link));
        }
        let link = Link::<P>::new(Arc::clone(&self.vitals));
        let stream = self.open_stream(P::PATH, OutboundStream(Arc::clone(&link))).await?;
        self.read(Arc::clone(&link), stream);
        *slot = Some(Arc::clone(&link));
        Ok(link)
    }

    /// Starts the task that drains the stream until its end.
    fn read<P: Protocol>(&self, link: Arc<Link<P>>, mut stream: Messages<P::Response>) {
        let vitals = Arc::clone(&self.vitals);
        let url = Arc::clone(&self.url);
        tokio::spawn(async move {
            let over = loop {
                match stream.message().await {
                    Ok(Some(response)) => {
                        vitals.heard();
                        link.dispatch(response);
                    }
                    Ok(None) => {
                        let why = "the broker ended the stream".to_owned();
                        break ClientError::Disconnected { url: url.to_string(), why };
                    }
                    Err(status) => {
                        if is_transport(&status) {
                            vitals.die();
                        }
                        break end_of_stream(&url, &status);
                    }
                }
            };
            tracing::debug!(broker = %url, error = %over, "a stream is over");
            link.fail(&over);
        });
    }

    /// Ends both streams after what is queued.
    pub(crate) fn finish(&self) {
        self.vitals.die();
        // A slot that is locked is being opened; its owner drops it with the connection.
        if let Ok(slot) = self.streams.produce.try_lock()
            && let Some(link) = slot.as_ref()
        {
            link.finish();
        }
        if let Ok(slot) = self.streams.consume.try_lock()
            && let Some(link) = slot.as_ref()
        {
            link.finish();
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What a stream's end means to those on it: one of them may be at fault, and the others must not
/// fail for it, so only what can pass is told as the broker told it.
fn end_of_stream(url: &str, status: &Status) -> ClientError {
    match status_error(url, status) {
        ClientError::Broker(error) if error.is_retryable() => ClientError::Broker(error),
        ClientError::Disconnected { url, why } => ClientError::Disconnected { url, why },
        other => ClientError::Disconnected { url: url.to_owned(), why: other.to_string() },
    }
}

fn handshake_request(settings: &ConnectSettings, expected_cluster: &str) -> v1::HandshakeRequest {
    v1::HandshakeRequest {
        min_protocol: *geminga_proto::PROTOCOL.start(),
        max_protocol: *geminga_proto::PROTOCOL.end(),
        client: settings.client_name.clone(),
        expected_cluster_id: expected_cluster.to_owned(),
    }
}
