//! Takes connections, so many at once, and looks at their first bytes before HTTP/2 does: what
//! speaks something else is told whose port this is, and what says nothing holds no place for long.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// What every HTTP/2 connection begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Connections that were looked at and wait for the transport to take them.
const WAITING: usize = 64;
/// How long a failed accept, such as one for lack of file descriptors, holds back the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a connection may take to say its first bytes.
const FIRST_BYTES: Duration = Duration::from_secs(10);
/// When incomplete first bytes are looked at again.
const AGAIN: Duration = Duration::from_millis(10);

/// A connection in its place, which is free again when it is dropped.
#[derive(Debug)]
pub(super) struct Accepted {
    socket: TcpStream,
    _place: OwnedSemaphorePermit,
}

impl Connected for Accepted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.socket.connect_info()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(context)
    }
}

/// The connections that speak HTTP/2, `limit` at a time. Accepting ends when the stream is dropped.
pub(super) fn incoming(
    listener: TcpListener,
    limit: usize,
) -> impl Stream<Item = io::Result<Accepted>> {
    let places = Arc::new(Semaphore::new(limit));
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            match accepted {
                Ok((socket, peer)) => match places.clone().try_acquire_owned() {
                    Ok(place) => {
                        tokio::spawn(look_at(Accepted { socket, _place: place }, sender.clone()));
                    }
                    Err(_) => {
                        tracing::warn!(%peer, limit, "too many connections; one was closed");
                    }
                },
                Err(error) => {
                    tracing::debug!(%error, "a connection can't be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(receiver)
}

async fn look_at(mut accepted: Accepted, sender: mpsc::Sender<io::Result<Accepted>>) {
    let socket = &mut accepted.socket;
    match tokio::time::timeout(FIRST_BYTES, speaks_http2(socket)).await {
        Ok(Ok(true)) => {
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%error, "a connection has gone");
                return;
            }
            // An error means that the server has stopped.
            let _ = sender.send(Ok(accepted)).await;
        }
        Ok(Ok(false)) => {
            let text = "This is the gRPC port of a Geminga bookie, for brokers only.\n";
            let answer = format!(
                "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{text}",
                text.len()
            );
            // Whoever it is may have gone already.
            let _ = tokio::time::timeout(FIRST_BYTES, socket.write_all(answer.as_bytes())).await;
            let _ = socket.shutdown().await;
        }
        Ok(Err(error)) => tracing::debug!(%error, "a connection has gone"),
        Err(_) => tracing::debug!("a connection that said nothing was closed"),
    }
}

/// Looks at the first bytes without taking them.
async fn speaks_http2(socket: &TcpStream) -> io::Result<bool> {
    let mut begin = [0; PREFACE.len()];
    loop {
        let len = socket.peek(&mut begin).await?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if begin[..len] != PREFACE[..len] {
            return Ok(false);
        }
        if len == PREFACE.len() {
            return Ok(true);
        }
        // What is there would be reported again at once.
        tokio::time::sleep(AGAIN).await;
    }
}
