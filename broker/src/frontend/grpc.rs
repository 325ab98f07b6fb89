//! The gRPC front-end: Geminga's own data API, service `Messaging`, over the core's façade.
//!
//! It decodes frames, calls the core and encodes what the core pushes. One Produce and one
//! Consume stream of a connection carry any number of producers and consumers. It decides
//! nothing about topics; what it owns is the sockets' flow control.
//!
//! *Architecture invariant:* an entry's bytes are taken out of the broker-wide budget before it
//! is handed on; while there are none, the socket isn't read. What is sent to a client waits in a
//! queue that is bounded by what the client granted or asked for, and requests are read no
//! further while that queue is over its limit.
//!
//! *Architecture invariant:* nothing that a peer sends panics or is logged above debug; a frame
//! that makes no sense is answered with a typed error, or ends its stream with a status whose
//! metadata carries an error code.

mod config;
mod consume;
mod convert;
mod error;
mod outbound;
mod produce;
mod queues;
mod service;

use std::future::Future;

use geminga_proto::id::ClusterId;
use geminga_proto::incoming::{Incoming, IncomingConfig};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub use crate::frontend::grpc::config::{GrpcConfig, GrpcConfigError};
pub use crate::frontend::grpc::queues::{GrpcCounts, GrpcQueues};

use crate::core::broker::Broker;
use crate::frontend::grpc::service::MessagingService;

/// What whoever speaks HTTP/1 is told.
const WHOSE_PORT: &str = "This is Geminga's gRPC port; administration is REST on another port \
                          (by default 8080).";

/// What the front-end serves, and what it shares with others.
#[derive(Debug, Clone)]
pub struct GrpcState {
    /// The core.
    pub broker: Broker,
    /// Told to clients, and compared with what they expect.
    pub cluster_id: ClusterId,
    /// Shows what waits to be sent; for the admin endpoint.
    pub queues: GrpcQueues,
}

/// Why the port is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A setting can't work.
    #[error(transparent)]
    Config(#[from] GrpcConfigError),
    /// The transport failed.
    #[error("the gRPC port can't be served: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Waits until the server stops.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that it has stopped already.
    drop(stopping.wait_for(|stop| *stop).await);
}

/// Serves the gRPC port until `shutdown` is done; then takes no more connections and requests,
/// gives what is under way the configured grace to get its answers, and returns.
///
/// # Errors
/// [`ServeError`] if it can't serve.
pub async fn serve(
    listener: TcpListener,
    config: GrpcConfig,
    state: GrpcState,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    config.validate()?;
    let (stop, stopping) = watch::channel(false);
    let demands = IncomingConfig {
        limit: config.max_connections,
        preface_timeout: config.preface_timeout,
        whose_port: WHOSE_PORT,
    };
    let incoming = Incoming::new(listener, demands, state.queues.connections());
    let watchdog = tokio::spawn(queues::watch_stalls(
        state.queues.clone(),
        state.broker.clone(),
        config.stall_timeout,
        stopping.clone(),
    ));
    let grace = config.shutdown_grace;
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(config.window_bytes)
        .initial_connection_window_size(config.window_bytes.saturating_mul(2))
        .max_frame_size(config::FRAME_BYTES)
        .max_concurrent_streams(config.max_streams_per_connection)
        // Calls that a client gave up before this process came to look at them must not end the
        // streams of the same connection; the transport's default allows for 20.
        .http2_max_pending_accept_reset_streams(Some(config.max_streams_per_connection as usize))
        .http2_keepalive_interval(Some(config.keep_alive))
        .http2_keepalive_timeout(Some(config.keep_alive));
    let service = MessagingService::new(config, state, stopping).into_server();
    let (over, mut is_over) = watch::channel(false);
    let signal = async {
        shutdown.await;
        // The streams finish by themselves; the transport waits for them.
        stop.send_replace(true);
        over.send_replace(true);
    };
    let serving = server.serve_with_incoming_shutdown(service, incoming, signal);
    let out_of_time = async {
        // An error means that serving has ended by itself.
        if is_over.wait_for(|over| *over).await.is_ok() {
            tokio::time::sleep(grace).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    let result = tokio::select! {
        result = serving => result.map_err(ServeError::from),
        () = out_of_time => {
            tracing::info!(?grace, "gRPC connections were cut off after the grace");
            Ok(())
        }
    };
    watchdog.abort();
    result
}

#[cfg(test)]
mod tests;
