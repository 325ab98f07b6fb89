//! The bookie's port: [`serve`], its limits, and the windows of its connections.

use std::time::Duration;

use geminga_proto::incoming::{Incoming, IncomingConfig, Places};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::Server;

use super::BookieService;
use crate::bookie::Bookie;

/// Bytes that a peer may send before they are taken. Appends are taken at once and refused above
/// the log's own cap, so little of it is ever used; but what fits is what one round trip moves.
const WINDOW_BYTES: u32 = 16 << 20;
/// Large enough that an entry is few frames.
const FRAME_BYTES: u32 = 1 << 20;
/// Calls of one connection that may be under way, streams included.
const MAX_CALLS: u32 = 4_096;
/// Calls of one connection that may be cancelled before they are looked at; with more, it is ended.
/// A bookie that stood still for a moment finds all that a broker has given up meanwhile. The
/// transport's default of 20 would end its streams of appends with them.
const MAX_CANCELLED: usize = MAX_CALLS as usize;

/// How long a connection may take to say its first bytes.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// What whoever speaks HTTP/1 is told.
const WHOSE_PORT: &str = "This is the gRPC port of a Geminga bookie, for brokers only.";

/// Limits of a bookie's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Connections at once; a broker has one.
    pub max_connections: usize,
    /// Streams at once, of all connections; a broker has two.
    pub max_streams: usize,
    /// Bytes of answers to reads that are under way or not taken yet, of all streams.
    pub max_untaken_bytes: usize,
    /// How long a read waits for a share of these bytes; then it is refused as overloaded.
    pub untaken_wait: Duration,
    /// A connection that is silent for so long is asked for a sign of life, and given up after
    /// the same time again.
    pub keep_alive: Duration,
    /// How long calls under way may take when the port ends.
    pub stop_grace: Duration,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            max_connections: 512,
            max_streams: 1_024,
            max_untaken_bytes: 256 << 20,
            untaken_wait: Duration::from_secs(1),
            keep_alive: Duration::from_secs(5),
            stop_grace: Duration::from_secs(2),
        }
    }
}

/// Serves `bookie` on `listener` until `stopped` is done. Then streams end, after what was taken
/// from them is answered; whoever doesn't take its answers is waited for no longer than
/// `stop_grace`.
///
/// # Errors
/// The transport failed.
pub async fn serve(
    listener: TcpListener,
    bookie: Bookie,
    config: ServiceConfig,
    stopped: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let demands = IncomingConfig {
        limit: config.max_connections,
        preface_timeout: PREFACE_TIMEOUT,
        whose_port: WHOSE_PORT,
    };
    let incoming = Incoming::new(listener, demands, Places::default());
    let (stopping, ending) = watch::channel(false);
    let mut late = ending.clone();
    let service = BookieService::with_limits(bookie, &config).until(ending).into_server();
    let stopped = async {
        stopped.await;
        stopping.send_replace(true);
    };
    let grace = async {
        let told = late.wait_for(|stopping| *stopping).await.is_ok();
        if told {
            tokio::time::sleep(config.stop_grace).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    let served = Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(MAX_CALLS)
        .http2_max_pending_accept_reset_streams(Some(MAX_CANCELLED))
        .http2_keepalive_interval(Some(config.keep_alive))
        .http2_keepalive_timeout(Some(config.keep_alive))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stopped);
    tokio::select! {
        served = served => served,
        () = grace => {
            tracing::info!("ending connections that did not close in time");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
