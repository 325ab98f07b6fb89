//! Takes connections: counts them, and looks at their first bytes before HTTP/2 does, so that
//! whatever else connects here is told so, or closed, at no cost.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::frontend::grpc::queues::{ConnectionGuard, GrpcQueues};

/// What every HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Connections that were looked at and wait for the transport to take them.
const WAITING: usize = 64;
/// How long a failed accept, such as one for lack of file descriptors, holds back the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// When the first bytes are looked at again if they are incomplete. Each further look comes after
/// twice the time: who sends a preface in pieces is slow or means harm.
const PREFACE_PAUSE: Duration = Duration::from_millis(2);
/// The longest time between two looks.
const LONGEST_PREFACE_PAUSE: Duration = Duration::from_millis(500);

/// A connection that is counted while it lives.
#[derive(Debug)]
pub(super) struct Accepted {
    socket: TcpStream,
    _guard: ConnectionGuard,
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
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

/// The connections, `limit` at a time, that begin to speak HTTP/2 within `timeout`. Accepting ends
/// when the stream is dropped.
pub(super) fn incoming(
    listener: TcpListener,
    limit: usize,
    timeout: Duration,
    queues: GrpcQueues,
) -> impl Stream<Item = io::Result<Accepted>> {
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        loop {
            let socket = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            match socket {
                Ok((socket, peer)) => match queues.connect(limit) {
                    Some(guard) => {
                        tokio::spawn(look_at(socket, guard, timeout, sender.clone()));
                    }
                    None => tracing::debug!(%peer, limit, "too many connections; one was closed"),
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

async fn look_at(
    mut socket: TcpStream,
    guard: ConnectionGuard,
    timeout: Duration,
    sender: mpsc::Sender<io::Result<Accepted>>,
) {
    let begin = tokio::time::timeout(timeout, begins(&socket)).await;
    match begin {
        Ok(Ok(Begin::Http2)) => {
            if let Err(error) = socket.set_nodelay(true) {
                tracing::debug!(%error, "a connection has gone");
                return;
            }
            // An error means that the server has stopped.
            let _ = sender.send(Ok(Accepted { socket, _guard: guard })).await;
        }
        Ok(Ok(Begin::Http1)) => {
            let text = "This is Geminga's gRPC port; administration is REST on another port \
                        (by default 8080).\n";
            let answer = format!(
                "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{text}",
                text.len()
            );
            // Whoever it is may have gone already.
            let _ = tokio::time::timeout(timeout, socket.write_all(answer.as_bytes())).await;
            let _ = socket.shutdown().await;
        }
        Ok(Ok(Begin::Other)) => tracing::debug!("a connection that isn't HTTP/2 was closed"),
        Ok(Err(error)) => tracing::debug!(%error, "a connection has gone"),
        Err(_) => tracing::debug!(?timeout, "a connection that said nothing was closed"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    Http2,
    Http1,
    Other,
}

/// What a connection's first bytes say it is, if they are enough.
fn judge(bytes: &[u8]) -> Option<Begin> {
    let common = bytes.iter().zip(PREFACE).take_while(|(one, other)| one == other).count();
    if common == PREFACE.len() {
        return Some(Begin::Http2);
    }
    if common == bytes.len() {
        return None;
    }
    let methods: [&[u8]; 7] =
        [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"PATCH ", b"OPTIONS "];
    let http1 = methods.iter().any(|method| bytes.starts_with(method));
    let may_become = methods.iter().any(|method| method.starts_with(bytes));
    if may_become && !http1 {
        return None;
    }
    Some(if http1 { Begin::Http1 } else { Begin::Other })
}

fn pauses() -> impl Iterator<Item = Duration> {
    let longer = |pause: &Duration| Some((*pause * 2).min(LONGEST_PREFACE_PAUSE));
    std::iter::successors(Some(PREFACE_PAUSE), longer)
}

async fn begins(socket: &TcpStream) -> io::Result<Begin> {
    let mut first = [0; PREFACE.len()];
    let mut pauses = pauses();
    loop {
        let count = socket.peek(&mut first).await?;
        if count == 0 {
            return Ok(Begin::Other);
        }
        if let Some(begin) = judge(first.get(..count).unwrap_or_default()) {
            return Ok(begin);
        }
        // Peeking answers at once while the same few bytes are there.
        tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PREFACE_PAUSE)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_stops_within_its_preface_costs_few_looks() {
        let timeout = crate::frontend::grpc::config::GrpcConfig::default().preface_timeout;
        let mut looks = 0;
        let mut waited = Duration::ZERO;
        for pause in pauses() {
            waited += pause;
            if waited > timeout {
                break;
            }
            looks += 1;
        }
        assert!(looks < 32, "{looks}");
        assert_eq!(pauses().next(), Some(PREFACE_PAUSE));
    }

    #[test]
    fn first_bytes_are_judged_as_soon_as_they_are_enough() {
        for cut in 0..PREFACE.len() {
            assert_eq!(judge(&PREFACE[..cut]), None, "{cut}");
        }
        assert_eq!(judge(PREFACE), Some(Begin::Http2));
        assert_eq!(judge(b"P"), None);
        assert_eq!(judge(b"PU"), None);
        assert_eq!(judge(b"PUT /x"), Some(Begin::Http1));
        assert_eq!(judge(b"GET / HTTP/1.1"), Some(Begin::Http1));
        assert_eq!(judge(b"PRX"), Some(Begin::Other));
        assert_eq!(judge(b"\0\0\0\x08"), Some(Begin::Other));
    }
}
