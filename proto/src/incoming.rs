//! [`Incoming`]: the connections of a gRPC port. It counts them, and looks at their first bytes
//! before HTTP/2 does, so that whatever else connects is told so, or closed, at no cost.
//!
//! Brokers and bookies may not know each other, and their ports begin alike, so this is here,
//! behind the feature `server`, without which a client doesn't carry it.
//!
//! *Architecture invariant:* the listener is given; nothing is opened here, and no task is
//! started: whoever polls the stream accepts and looks. Dropping it closes the listener and
//! everything that is being looked at.
//!
//! *Architecture invariant:* connections are bounded from the moment they are accepted, those that
//! are still looked at included, and what says nothing holds its place no longer than the
//! time-out. What a peer does is logged at debug level; that the port is full, once a minute.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// What every HTTP/2 client sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a failed accept, such as one for lack of file descriptors, holds back the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// When the first bytes are looked at again if they are incomplete. Each further look comes after
/// twice the time: who sends a preface in pieces is slow or means harm.
const PREFACE_PAUSE: Duration = Duration::from_millis(2);
/// The longest time between two looks.
const LONGEST_PREFACE_PAUSE: Duration = Duration::from_millis(500);
/// How long a peer that speaks HTTP/1 may take to send its request and to take the answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// How much of its request is taken.
const MAX_REQUEST_BYTES: u64 = 64 << 10;
/// How often it is logged that connections are closed for lack of places.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// What a port demands of those that connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncomingConfig {
    /// Connections at once; those above are closed.
    pub limit: usize,
    /// How long a connection may take to begin to speak HTTP/2.
    pub preface_timeout: Duration,
    /// A sentence for whoever speaks HTTP/1: whose port this is.
    pub whose_port: &'static str,
}

/// How many connections there are. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct Places(Arc<AtomicUsize>);

/// A connection's place, which is free again when this is dropped.
#[derive(Debug)]
struct Place(Places);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Places {
    /// How many connections there are now.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    /// A place, unless `limit` are taken.
    fn take(&self, limit: usize) -> Option<Place> {
        let counted = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < limit).then_some(count + 1)
        });
        counted.ok().map(|_| Place(self.clone()))
    }
}

/// A connection that begins to speak HTTP/2, in its place.
#[derive(Debug)]
pub struct Accepted {
    socket: TcpStream,
    _place: Place,
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

type Look = Pin<Box<dyn Future<Output = Option<Accepted>> + Send>>;

/// The connections of a listener that begin to speak HTTP/2. It never ends by itself and yields no
/// error: an accept that fails is tried again after a pause.
pub struct Incoming {
    listener: TcpListener,
    config: IncomingConfig,
    places: Places,
    /// As many as have a place, at the most.
    looking: FuturesUnordered<Look>,
    resting: Option<Pin<Box<Sleep>>>,
    refused: Refused,
}

impl Incoming {
    /// The connections that `listener` takes, counted in `places`.
    #[must_use]
    pub fn new(listener: TcpListener, config: IncomingConfig, places: Places) -> Self {
        let (looking, refused) = (FuturesUnordered::new(), Refused::default());
        Self { listener, config, places, looking, resting: None, refused }
    }

    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if let Some(rest) = &mut self.resting {
            ready!(rest.as_mut().poll(context));
            self.resting = None;
        }
        match ready!(self.listener.poll_accept(context)) {
            Ok((socket, peer)) => match self.places.take(self.config.limit) {
                Some(place) => self.looking.push(Box::pin(look_at(socket, place, self.config))),
                None => self.refused.one_more(peer, self.config.limit),
            },
            Err(error) => {
                tracing::debug!(%error, "a connection can't be accepted");
                self.resting = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
            }
        }
        Poll::Ready(())
    }
}

impl Stream for Incoming {
    type Item = io::Result<Accepted>;

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Accepted>>> {
        let this = self.get_mut();
        loop {
            match Pin::new(&mut this.looking).poll_next(context) {
                Poll::Ready(Some(Some(accepted))) => return Poll::Ready(Some(Ok(accepted))),
                Poll::Ready(Some(None)) => {}
                // What is accepted is looked at in the next round.
                Poll::Ready(None) | Poll::Pending => ready!(this.poll_accept(context)),
            }
        }
    }
}

/// Connections that were closed for lack of a place.
#[derive(Default)]
struct Refused {
    untold: u64,
    told: Option<Instant>,
}

impl Refused {
    fn one_more(&mut self, peer: SocketAddr, limit: usize) {
        tracing::debug!(%peer, limit, "too many connections; one was closed");
        self.untold += 1;
        if self.told.is_none_or(|told| told.elapsed() >= TELL_AGAIN) {
            tracing::warn!(
                limit,
                closed = self.untold,
                "too many connections; new ones are closed"
            );
            *self = Self { untold: 0, told: Some(Instant::now()) };
        }
    }
}

/// The connection, if it begins to speak HTTP/2 in time.
async fn look_at(mut socket: TcpStream, place: Place, config: IncomingConfig) -> Option<Accepted> {
    match tokio::time::timeout(config.preface_timeout, begins(&socket)).await {
        Ok(Ok(Begin::Http2)) => match socket.set_nodelay(true) {
            Ok(()) => return Some(Accepted { socket, _place: place }),
            Err(error) => tracing::debug!(%error, "a connection has gone"),
        },
        Ok(Ok(Begin::Http1)) => {
            let answered = answer_http1(&mut socket, config.whose_port);
            let answered = tokio::time::timeout(ANSWER_TIMEOUT, answered).await;
            tracing::debug!(?answered, "a connection that speaks HTTP/1 was told whose port it is");
        }
        Ok(Ok(Begin::Other)) => tracing::debug!("a connection that isn't HTTP/2 was closed"),
        Ok(Err(error)) => tracing::debug!(%error, "a connection has gone"),
        Err(_) => {
            let timeout = config.preface_timeout;
            tracing::debug!(?timeout, "a connection that said nothing was closed");
        }
    }
    None
}

async fn answer_http1(socket: &mut TcpStream, text: &str) -> io::Result<()> {
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{text}\n",
        text.len() + 1
    );
    socket.write_all(answer.as_bytes()).await?;
    socket.shutdown().await?;
    // Closing with unread bytes is a reset, which the peer may see before the answer.
    tokio::io::copy(&mut socket.take(MAX_REQUEST_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
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

/// Looks at the first bytes without taking them.
async fn begins(socket: &TcpStream) -> io::Result<Begin> {
    let mut first = [0; PREFACE.len()];
    let mut pauses = pauses();
    loop {
        let count = socket.peek(&mut first).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(begin) = judge(first.get(..count).unwrap_or_default()) {
            return Ok(begin);
        }
        // Peeking answers at once while the same few bytes are there.
        tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PREFACE_PAUSE)).await;
    }
}

#[cfg(test)]
mod tests;
