//! [`Connection`]: one gRPC channel to one broker, with its Produce and Consume streams, and
//! [`Pool`], which has at most one live connection for each broker.
//!
//! Invariants: a connection is used only after its handshake agreed on protocol and cluster; one
//! whose transport failed is never used again; streams are opened when first needed.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use geminga_proto::v1;
use geminga_proto::v1::messaging_client::MessagingClient;
use parking_lot::Mutex;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

use crate::error::{BrokerError, ClientError};
use crate::link::{Consume, Link, OutboundStream, Produce, Protocol};

/// HTTP/2 flow-control windows: with the default of 64 KiB a stream reaches half the speed.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;
const FRAME_BYTES: u32 = 1024 * 1024;
/// A connection without a sign of life for this long is pinged, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Above the largest entry, a message may have others before it and its own fields.
const DECODE_SLACK_BYTES: usize = 2 * 1024 * 1024;
/// Brokers that one client connects to.
const MAX_BROKERS: usize = 1024;
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

/// A channel to a broker.
#[derive(Debug)]
pub(crate) struct Connection {
    url: Arc<str>,
    info: BrokerInfo,
    grpc: MessagingClient<Channel>,
    operation_timeout: Duration,
    /// Set by whoever sees the transport fail; read by the pool.
    dead: Arc<AtomicBool>,
    produce: Slot<Produce>,
    consume: Slot<Consume>,
}

/// Walks to the innermost cause, which alone says something.
fn cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(next) = innermost.source() {
        innermost = next;
    }
    innermost.to_string()
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
    ) -> Result<Arc<Self>, ClientError> {
        let invalid = |why: String| ClientError::Config { setting: "service_url", why };
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|error| invalid(format!("{url:?}: {}", cause(&error))))?
            .connect_timeout(settings.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.map_err(|error| {
            let why = cause(&error);
            if speaks_another_protocol(&why) {
                return ClientError::NotABroker { url: url.to_owned(), why };
            }
            ClientError::Connect { url: url.to_owned(), why }
        })?;
        let info = Self::handshake(url, channel.clone(), settings).await?;
        let limit = info.max_message_bytes as usize + DECODE_SLACK_BYTES;
        let grpc = MessagingClient::new(channel).max_decoding_message_size(limit);
        Ok(Arc::new(Self {
            url: url.into(),
            info,
            grpc,
            operation_timeout: settings.operation_timeout,
            dead: Arc::new(AtomicBool::new(false)),
            produce: Slot::default(),
            consume: Slot::default(),
        }))
    }

    async fn handshake(
        url: &str,
        channel: Channel,
        settings: &ConnectSettings,
    ) -> Result<BrokerInfo, ClientError> {
        let (min, max) = (*geminga_proto::PROTOCOL.start(), *geminga_proto::PROTOCOL.end());
        let expected = settings.expected_cluster_id.clone().unwrap_or_default();
        let request = v1::HandshakeRequest {
            min_protocol: min,
            max_protocol: max,
            client: settings.client_name.clone(),
            expected_cluster_id: expected.clone(),
        };
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
        if !expected.is_empty() && answer.cluster_id != expected {
            let code = v1::ErrorCode::WrongCluster;
            let message = format!(
                "{url} belongs to cluster {:?}, expected was {expected:?}; check the service URL",
                answer.cluster_id
            );
            return Err(BrokerError { code, message }.into());
        }
        Ok(BrokerInfo {
            cluster_id: answer.cluster_id,
            broker_id: answer.broker_id,
            max_message_bytes: answer.max_message_bytes,
            protocol: answer.protocol,
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn info(&self) -> &BrokerInfo {
        &self.info
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    fn failed(&self, status: &Status) -> ClientError {
        if is_transport(status) {
            self.dead.store(true, Ordering::Release);
        }
        status_error(&self.url, status)
    }

    async fn within<T>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, ClientError> {
        match tokio::time::timeout(self.operation_timeout, call).await {
            Ok(result) => result.map_err(|status| self.failed(&status)),
            Err(_) => {
                self.dead.store(true, Ordering::Release);
                let why = format!("no answer within {:?}", self.operation_timeout);
                Err(ClientError::Disconnected { url: self.url.to_string(), why })
            }
        }
    }

    /// Asks this broker who serves a topic.
    pub(crate) async fn lookup(&self, topic: &str) -> Result<v1::LookupResponse, ClientError> {
        let mut grpc = self.grpc.clone();
        let request = v1::LookupRequest { topic: topic.to_owned() };
        let answer = self.within(grpc.lookup(request)).await?.into_inner();
        match answer.error {
            Some(error) => Err(BrokerError::from_wire(error).into()),
            None => Ok(answer),
        }
    }

    /// The Produce stream; opens it if there is none.
    pub(crate) async fn produce(&self) -> Result<Arc<Link<Produce>>, ClientError> {
        let mut slot = self.produce.lock().await;
        if let Some(link) = slot.as_ref().filter(|link| !link.is_closed()) {
            return Ok(Arc::clone(link));
        }
        let link = Link::<Produce>::new();
        let mut grpc = self.grpc.clone();
        let call = grpc.produce(OutboundStream(Arc::clone(&link)));
        let stream = self.within(call).await?.into_inner();
        self.read(Arc::clone(&link), stream);
        *slot = Some(Arc::clone(&link));
        Ok(link)
    }

    /// The Consume stream; opens it if there is none.
    pub(crate) async fn consume(&self) -> Result<Arc<Link<Consume>>, ClientError> {
        let mut slot = self.consume.lock().await;
        if let Some(link) = slot.as_ref().filter(|link| !link.is_closed()) {
            return Ok(Arc::clone(link));
        }
        let link = Link::<Consume>::new();
        let mut grpc = self.grpc.clone();
        let call = grpc.consume(OutboundStream(Arc::clone(&link)));
        let stream = self.within(call).await?.into_inner();
        self.read(Arc::clone(&link), stream);
        *slot = Some(Arc::clone(&link));
        Ok(link)
    }

    /// Starts the task that drains the stream until its end.
    fn read<P: Protocol>(&self, link: Arc<Link<P>>, mut stream: Streaming<P::Response>) {
        let dead = Arc::clone(&self.dead);
        let url = Arc::clone(&self.url);
        tokio::spawn(async move {
            let why = loop {
                match stream.message().await {
                    Ok(Some(response)) => link.dispatch(response),
                    Ok(None) => break "the broker ended the stream".to_owned(),
                    Err(status) => {
                        if is_transport(&status) {
                            dead.store(true, Ordering::Release);
                        }
                        break status_error(&url, &status).to_string();
                    }
                }
            };
            tracing::debug!(broker = %url, %why, "a stream is over");
            link.fail(&why);
        });
    }

    /// Ends both streams after what is queued.
    pub(crate) fn finish(&self) {
        self.dead.store(true, Ordering::Release);
        // A slot that is locked is being opened; its owner drops it with the connection.
        if let Ok(slot) = self.produce.try_lock()
            && let Some(link) = slot.as_ref()
        {
            link.finish();
        }
        if let Ok(slot) = self.consume.try_lock()
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

/// Where a broker's connection is, if there is one.
type Place = tokio::sync::Mutex<Option<Arc<Connection>>>;

/// At most one live connection for each broker's address.
#[derive(Debug)]
pub(crate) struct Pool {
    settings: ConnectSettings,
    /// The inner lock is held while connecting, so that one attempt serves all who wait.
    by_url: Mutex<HashMap<String, Arc<Place>>>,
    /// Set once, when the client is closed.
    closed: AtomicBool,
}

impl Pool {
    pub(crate) fn new(settings: ConnectSettings) -> Self {
        Self { settings, by_url: Mutex::default(), closed: AtomicBool::new(false) }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The live connection to `url`; makes one if there is none.
    pub(crate) async fn get(&self, url: &str) -> Result<Arc<Connection>, ClientError> {
        if self.is_closed() {
            return Err(ClientError::Closed);
        }
        let slot = {
            let mut by_url = self.by_url.lock();
            if by_url.len() >= MAX_BROKERS && !by_url.contains_key(url) {
                return Err(ClientError::TooMany { what: "brokers", limit: MAX_BROKERS });
            }
            Arc::clone(by_url.entry(url.to_owned()).or_default())
        };
        let mut slot = slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_dead()) {
            return Ok(Arc::clone(connection));
        }
        *slot = None;
        let connection = Connection::open(url, &self.settings).await?;
        *slot = Some(Arc::clone(&connection));
        Ok(connection)
    }

    /// Ends every connection.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let slots = std::mem::take(&mut *self.by_url.lock());
        for slot in slots.into_values() {
            if let Ok(mut slot) = slot.try_lock()
                && let Some(connection) = slot.take()
            {
                connection.finish();
            }
        }
    }
}
