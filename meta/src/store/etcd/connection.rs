//! [`Connection`]: one verified connection to one member of etcd, and how it is made.
//!
//! Invariants:
//! - Nothing goes over a connection before a linearizable read has shown that the etcd at its
//!   other end is the known one, so nothing is ever written into another.
//! - A connection never becomes another one by itself: when it breaks, it stays broken and is
//!   made anew, and verified anew ([`Once`]).

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use etcd_client::{
    Channel, Client, ConnectOptions, GetOptions, KvClient, LeaseClient, WatchClient,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity as TlsIdentity, Uri};
use tower::Service;

use super::config::{EtcdConfig, EtcdConfigError};
use super::error::{Failure, failure, root_cause};
use super::identity::Identity;
use super::request::{Root, sender};
use crate::keys;

/// Largest answer that is taken: a page of ordinary records is far smaller, and one record of the
/// largest size always fits.
const MAX_ANSWER_BYTES: usize = 16 * 1024 * 1024;
/// HTTP/2 windows: a watch that is read slowly must not starve the requests beside it.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// Clients that share one connection.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) kv: KvClient,
    pub(super) watch: WatchClient,
    pub(super) lease: LeaseClient,
}

/// How connections to one endpoint are made.
#[derive(Debug)]
pub(super) struct Connector {
    endpoint: Endpoint,
    options: ConnectOptions,
    connect_timeout: Duration,
    cluster_key: Vec<u8>,
}

impl Connector {
    /// A connector to one of the configured endpoints.
    pub(super) fn new(config: &EtcdConfig, url: &str) -> Result<Self, EtcdConfigError> {
        let refused = |name, error: tonic::transport::Error| EtcdConfigError {
            name,
            why: format!("{url}: {}", root_cause(&error)),
        };
        let endpoint = Endpoint::from_shared(url.to_owned());
        let mut endpoint = endpoint
            .map_err(|error| refused("endpoints", error))?
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        if let Some(tls) = &config.tls {
            let authority = Certificate::from_pem(&tls.ca_pem);
            let mut settings = ClientTlsConfig::new().ca_certificate(authority);
            if let Some(identity) = &tls.identity {
                let identity = TlsIdentity::from_pem(&identity.cert_pem, &identity.key_pem);
                settings = settings.identity(identity);
            }
            let endpoint_with_tls = endpoint.tls_config(settings);
            endpoint = endpoint_with_tls.map_err(|error| refused("ca_file", error))?;
        }
        // A member without a leader refuses at once, and ends its watches.
        let mut options = ConnectOptions::new().with_require_leader(true);
        if let Some(credentials) = &config.credentials {
            let (user, password) = (&credentials.user, &credentials.password);
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        let cluster_key = Root(config.prefix.clone()).key(keys::CLUSTER);
        Ok(Self { endpoint, options, connect_timeout: config.connect_timeout, cluster_key })
    }

    /// Connects, authenticates, and verifies.
    pub(super) async fn connect(&self, identity: &Identity) -> Result<Connection, Failure> {
        let channel = self.endpoint.connect_with_connector(Once::default());
        let late = |_| {
            let limit_ms = self.connect_timeout.as_millis();
            Failure::Unsent(format!("no connection within {limit_ms} ms"))
        };
        let channel = tokio::time::timeout(self.connect_timeout, channel).await.map_err(late)?;
        let channel = channel.map_err(|error| Failure::Unsent(root_cause(&error)))?;
        let options = Some(self.options.clone());
        let client = Client::from_channel(Channel::Tonic(channel), options).await;
        let client = client.map_err(failure)?;
        let connection = Connection {
            kv: client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES),
            watch: client.watch_client().max_decoding_message_size(MAX_ANSWER_BYTES),
            lease: client.lease_client(),
        };
        self.verify(&connection, identity).await?;
        Ok(connection)
    }

    async fn verify(&self, connection: &Connection, identity: &Identity) -> Result<(), Failure> {
        let floor = identity.highest();
        let only_key = GetOptions::new().with_keys_only();
        let found = connection.kv.clone().get(self.cluster_key.clone(), Some(only_key)).await;
        let found = found.map_err(failure)?;
        let sender = sender(found.header())?;
        identity.any(sender).map_err(Failure::Final)?;
        identity.record_found(found.kvs().first()).map_err(Failure::Final)?;
        // Last: what another etcd is at must not count as seen.
        identity.linearizable(sender, floor).map_err(Failure::Final)
    }
}

/// Opens a TCP connection, once: a channel of tonic connects again by itself, and what it is
/// connected to then is unverified.
#[derive(Debug, Clone, Default)]
struct Once {
    used: Arc<AtomicBool>,
}

/// Answered instead of a second connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection was lost")]
struct ConnectionLost;

type Opening = Pin<Box<dyn Future<Output = Result<TokioIo<TcpStream>, BoxError>> + Send>>;
type BoxError = Box<dyn Error + Send + Sync>;

impl Service<Uri> for Once {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Opening;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Opening {
        let used = self.used.swap(true, Ordering::Relaxed);
        Box::pin(async move {
            if used {
                return Err(ConnectionLost.into());
            }
            let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
            let host = uri.host().unwrap_or_default();
            // An IPv6 address is in brackets in a URL only.
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(default))).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}
