//! Bookies over gRPC: one connection a bookie, on it one stream of appends and one of reads, both
//! coalescing what is ready.
//!
//! Every request is answered exactly once. What a broken connection leaves unanswered is
//! [`BookieError::Unreachable`], an unknown outcome; what is over the caps is
//! [`BookieError::Overloaded`] and never sent. Nothing is sent before a handshake has shown that
//! the peer is the bookie that was meant, of this cluster, and speaks a protocol version that
//! this build does.

mod connection;
mod in_flight;
mod session;
mod wire;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use geminga_proto::id::{BookieId, ClusterId, LedgerId};
use geminga_proto::storage::{
    AppendRequest, BookieError, BookieInfo, FenceRequest, FenceResult, FencedResult, ReadRequest,
    ReadResult, ScrubProgress,
};
use parking_lot::Mutex;

use crate::transport::grpc::connection::{Connection, Job};
use crate::transport::{AppendSink, BookieTransport};

/// Where bookies are.
pub trait BookieDirectory: Send + Sync + Debug + 'static {
    /// `http://host:port` of a bookie; `None` if it isn't known. Never blocks.
    fn address(&self, bookie: &BookieId) -> Option<String>;
}

/// Settings of a [`GrpcTransport`].
#[derive(Debug, Clone)]
pub struct GrpcTransportConfig {
    /// Told to bookies, and expected of them.
    pub cluster_id: ClusterId,
    /// This node's name, told to bookies.
    pub node_id: String,
    /// Bytes of appends to one bookie that may be unanswered.
    pub max_pending_bytes_per_bookie: u64,
    /// Appends to one bookie that may be unanswered.
    pub max_pending_appends_per_bookie: usize,
    /// Reads, fences and other questions to one bookie that may be unanswered.
    pub max_pending_requests_per_bookie: usize,
    /// A message of appends is sent once it has so many bytes, if not before.
    pub max_batch_bytes: usize,
    /// Largest message that is taken from a bookie: an entry of the largest size and what is around
    /// it.
    pub max_message_bytes: usize,
    /// How long connecting and shaking hands may take.
    pub connect_timeout_ms: u64,
    /// What is asked waits so long for a connection that is being made; from then on everything is
    /// answered *unreachable* at once until it is made.
    pub connect_patience_ms: u64,
    /// After how long a fence or another question counts as unanswered.
    pub request_timeout_ms: u64,
    /// How long to wait after a failed connection before the next one.
    pub reconnect_delay_ms: u64,
    /// A connection that is silent for so long is asked for a sign of life, and given up after
    /// the same time again.
    pub keep_alive_ms: u64,
}

impl GrpcTransportConfig {
    /// The defaults.
    #[must_use]
    pub fn new(cluster_id: ClusterId, node_id: String) -> Self {
        Self {
            cluster_id,
            node_id,
            max_pending_bytes_per_bookie: 128 * 1024 * 1024,
            max_pending_appends_per_bookie: 256 * 1024,
            max_pending_requests_per_bookie: 4 * 1024,
            max_batch_bytes: 1024 * 1024,
            max_message_bytes: (64 + 2) * 1024 * 1024,
            connect_timeout_ms: 3_000,
            connect_patience_ms: 250,
            request_timeout_ms: 5_000,
            reconnect_delay_ms: 200,
            keep_alive_ms: 5_000,
        }
    }

    fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }
}

/// Reaches bookies over gRPC. Dropping it closes the connections.
#[derive(Debug)]
pub struct GrpcTransport {
    config: Arc<GrpcTransportConfig>,
    directory: Arc<dyn BookieDirectory>,
    runtime: tokio::runtime::Handle,
    /// One for each bookie that was ever spoken to: bounded by the cluster's size.
    connections: Mutex<HashMap<BookieId, Arc<Connection>>>,
}

impl GrpcTransport {
    /// A transport that looks bookies up in `directory`. Connections run on `runtime`.
    #[must_use]
    pub fn new(
        config: GrpcTransportConfig,
        directory: Arc<dyn BookieDirectory>,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        let connections = Mutex::new(HashMap::new());
        Self { config: Arc::new(config), directory, runtime, connections }
    }

    fn connection(&self, bookie: &BookieId) -> Arc<Connection> {
        let mut connections = self.connections.lock();
        if let Some(connection) = connections.get(bookie) {
            return Arc::clone(connection);
        }
        let (config, directory) = (Arc::clone(&self.config), Arc::clone(&self.directory));
        let connection = Connection::start(bookie.clone(), config, directory, &self.runtime);
        connections.insert(bookie.clone(), Arc::clone(&connection));
        connection
    }
}

impl Drop for GrpcTransport {
    fn drop(&mut self) {
        for connection in self.connections.lock().values() {
            connection.close();
        }
    }
}

#[async_trait]
impl BookieTransport for GrpcTransport {
    fn append(&self, bookie: &BookieId, request: AppendRequest, sink: &Arc<dyn AppendSink>) {
        self.connection(bookie).append(request, Arc::clone(sink));
    }

    async fn read(&self, bookie: &BookieId, request: ReadRequest) -> ReadResult {
        self.connection(bookie).request(|answer| Job::Read(request, answer)).await?
    }

    async fn fence(&self, bookie: &BookieId, request: FenceRequest) -> FenceResult {
        self.connection(bookie).request(|answer| Job::Fence(request, answer)).await?
    }

    async fn fenced(&self, bookie: &BookieId, ledgers: Vec<FenceRequest>) -> FencedResult {
        self.connection(bookie).request(|answer| Job::Fenced(ledgers, answer)).await?
    }

    async fn delete_hint(
        &self,
        bookie: &BookieId,
        ledgers: Vec<LedgerId>,
    ) -> Result<(), BookieError> {
        self.connection(bookie).request(|answer| Job::DeleteHint(ledgers, answer)).await?
    }

    async fn info(&self, bookie: &BookieId) -> Result<BookieInfo, BookieError> {
        self.connection(bookie).request(Job::Info).await?
    }

    async fn scrub(&self, bookie: &BookieId, start: bool) -> Result<ScrubProgress, BookieError> {
        self.connection(bookie).request(|answer| Job::Scrub(start, answer)).await?
    }
}

#[cfg(test)]
mod tests;
