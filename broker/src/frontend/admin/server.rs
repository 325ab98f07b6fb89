//! The admin port: accepts connections, bounds them, speaks HTTP/1.1 on them.
//!
//! It refuses HTTP/2, which is what a gRPC client speaks that was given the wrong port: it gets
//! a proper farewell that says so, instead of garbage. Bytes that aren't HTTP end their own
//! connection and nothing else.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tower::Service;

use crate::frontend::admin::config::AdminConfig;

/// Wait after a failed accept, which mostly means that the process is out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a refused client may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// How every HTTP/2 connection begins; no HTTP/1.1 method does.
const HTTP2_PREFACE: &[u8] = b"PRI";
/// Said to clients that speak gRPC.
const HTTP2_REASON: &str = "this is Geminga's admin port and speaks HTTP/1.1; messages are \
                            produced and consumed at the gRPC port";
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
                      content-length: 52\r\nconnection: close\r\n\r\n\
                      {\"reason\":\"too many connections to the admin port\"}\n";

/// Serves until `shutdown` is done; returns when all connections are closed, or after the grace.
pub async fn run<S, F>(
    listener: TcpListener,
    config: &AdminConfig,
    service: S,
    shutdown: impl Future<Output = ()>,
) where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future = F>,
    S: Clone + Send + 'static,
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let free = Arc::new(Semaphore::new(config.max_connections));
    let (stop, stopped) = watch::channel(false);
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "an admin connection failed");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => match Arc::clone(&free).try_acquire_owned() {
                Ok(permit) => {
                    let connection =
                        Connection { config: config.clone(), stopped: stopped.clone(), permit };
                    connections.spawn(connection.run(stream, service.clone()));
                }
                // It is new, so its send buffer has room; one that can't be written to is lost
                // either way.
                Err(_full) => drop(stream.try_write(BUSY)),
            },
            Err(error) => {
                tracing::warn!(%error, "the admin port can't accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    let closed = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(config.shutdown_grace, closed).await.is_err() {
        tracing::info!("closing admin connections that did not end in time");
        connections.shutdown().await;
    }
}

struct Connection {
    config: AdminConfig,
    stopped: watch::Receiver<bool>,
    /// Its place among the connections that may be open.
    permit: OwnedSemaphorePermit,
}

impl Connection {
    /// Waits until the port is to close. Its owner gone means the same.
    async fn stop(&mut self) {
        drop(self.stopped.wait_for(|stopped| *stopped).await);
    }

    async fn run<S, F>(mut self, stream: TcpStream, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future = F>,
        S: Clone + Send + 'static,
        F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
    {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY can't be set on an admin connection");
        }
        let mut start = [0; HTTP2_PREFACE.len()];
        let patience = self.config.head_timeout;
        let peeked = tokio::select! {
            peeked = tokio::time::timeout(patience, stream.peek(&mut start)) => peeked,
            () = self.stop() => return,
        };
        match peeked {
            Ok(Ok(bytes)) if start.get(..bytes) == Some(HTTP2_PREFACE) => {
                refuse_http2(stream).await;
            }
            Ok(Ok(bytes)) if bytes > 0 => self.speak(stream, service).await,
            // Closed, failed, or silent for too long.
            Ok(_) | Err(_) => {}
        }
        drop(self.permit);
    }

    async fn speak<S, F>(&mut self, stream: TcpStream, service: S)
    where
        S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future = F>,
        S: Clone + Send + 'static,
        F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
    {
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.config.head_timeout)
            .max_buf_size(self.config.max_head_bytes);
        let service = TowerToHyperService::new(service);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => Some(ended),
            () = self.stop() => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "an admin connection ended early");
        }
    }
}

/// Sends an empty SETTINGS frame and a GOAWAY with `HTTP_1_1_REQUIRED` (RFC 9113, sections 6.5,
/// 6.8 and 7), and reads for a moment, so that the farewell isn't lost to a reset.
async fn refuse_http2(mut stream: TcpStream) {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const HTTP_1_1_REQUIRED: u32 = 0xd;
    let length = u32::try_from(8 + HTTP2_REASON.len()).unwrap_or(8).to_be_bytes();
    let mut frames = SETTINGS.to_vec();
    frames.extend_from_slice(&length[1..]);
    frames.extend_from_slice(&[7, 0, 0, 0, 0, 0]);
    frames.extend_from_slice(&0_u32.to_be_bytes());
    frames.extend_from_slice(&HTTP_1_1_REQUIRED.to_be_bytes());
    frames.extend_from_slice(HTTP2_REASON.as_bytes());
    let farewell = async {
        stream.write_all(&frames).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    match tokio::time::timeout(FAREWELL, farewell).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a refused HTTP/2 client went away"),
    }
}

#[cfg(test)]
mod tests;
