//! [`Messages`]: the messages of one direction of a stream, decoded from what the connection
//! delivers.
//!
//! Invariants: a message above the limit is refused when its length is known, before its bytes are
//! waited for; nothing follows an error or the end; nothing that arrives panics.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use bytes::buf::Take;
use http_body::Body as _;
use prost::{DecodeError, Message};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::codegen::tokio_stream::Stream;
use tonic::{Code, Status};

use super::HEADER_BYTES;
use super::pieces::Pieces;

/// What is no message.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// It isn't encoded as it should be.
    #[error(transparent)]
    Encoding(#[from] DecodeError),
    /// A part of it says that it is longer than the whole.
    #[error("a part is longer than what was sent")]
    Short,
    /// It has more parts than anybody sends.
    #[error("more parts than a message may have")]
    TooMany,
}

type Decode<M> = fn(Take<&mut Pieces>) -> Result<M, Malformed>;

/// Whose messages they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// A client's, which ends by ending.
    Requests,
    /// A server's, which ends with a status.
    Responses,
}

/// The messages of a body, in order. Ends after the first error.
pub struct Messages<M> {
    body: Body,
    side: Side,
    decode: Decode<M>,
    max_bytes: usize,
    pieces: Pieces,
    /// Length of the message of which the header was read.
    begun: Option<usize>,
    over: bool,
}

impl<M> fmt::Debug for Messages<M> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Messages({:?}, {} bytes wait)", self.side, self.pieces.remaining())
    }
}

impl<M: Message + Default> Messages<M> {
    /// What a client sends, in messages of at most `max_bytes`.
    #[must_use]
    pub fn requests(body: Body, max_bytes: usize) -> Self {
        Self::requests_by(body, max_bytes, |bytes| Ok(M::decode(bytes)?))
    }

    /// What a server answers, in messages of at most `max_bytes`.
    #[must_use]
    pub fn responses(body: Body, max_bytes: usize) -> Self {
        Self::new(body, Side::Responses, max_bytes, |bytes| Ok(M::decode(bytes)?))
    }
}

impl<M> Messages<M> {
    /// As [`requests`](Messages::requests), but `decode` makes the messages; it takes all of them.
    #[must_use]
    pub fn requests_by(body: Body, max_bytes: usize, decode: Decode<M>) -> Self {
        Self::new(body, Side::Requests, max_bytes, decode)
    }

    fn new(body: Body, side: Side, max_bytes: usize, decode: Decode<M>) -> Self {
        let pieces = Pieces::default();
        Self { body, side, decode, max_bytes, pieces, begun: None, over: false }
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// The connection broke, the peer ended the stream with an error, or it sent what is no
    /// message.
    pub async fn message(&mut self) -> Result<Option<M>, Status> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await.transpose()
    }

    /// A message of which all has arrived.
    fn take(&mut self) -> Result<Option<M>, Status> {
        let len = match self.begun {
            Some(len) => len,
            None if self.pieces.remaining() < HEADER_BYTES => return Ok(None),
            None => {
                if self.pieces.get_u8() != 0 {
                    return Err(Status::internal("a compressed message, which was not agreed on"));
                }
                let len = self.pieces.get_u32() as usize;
                if len > self.max_bytes {
                    let max = self.max_bytes;
                    let text = format!("a message of {len} bytes; the largest allowed is {max}");
                    return Err(Status::out_of_range(text));
                }
                *self.begun.insert(len)
            }
        };
        if self.pieces.remaining() < len {
            return Ok(None);
        }
        self.begun = None;
        let rest = self.pieces.remaining() - len;
        let message = (self.decode)((&mut self.pieces).take(len))
            .map_err(|error| Status::internal(format!("a malformed message: {error}")))?;
        if self.pieces.remaining() != rest {
            return Err(Status::internal("a message that was not read to its end"));
        }
        Ok(Some(message))
    }

    /// The body is at its end.
    fn end(&self, trailers: Option<&http::HeaderMap>) -> Result<(), Status> {
        let status = trailers.and_then(Status::from_header_map);
        match (self.side, status) {
            (_, Some(status)) if status.code() != Code::Ok => Err(status),
            (Side::Responses, None) => {
                Err(Status::unavailable("the stream ended without its status"))
            }
            _ if self.pieces.has_remaining() || self.begun.is_some() => {
                Err(Status::internal("the stream ended within a message"))
            }
            _ => Ok(()),
        }
    }

    fn finish(&mut self, how: Result<(), Status>) -> Poll<Option<Result<M, Status>>> {
        self.over = true;
        self.pieces.clear();
        Poll::Ready(how.err().map(Err))
    }
}

impl<M> Stream for Messages<M> {
    type Item = Result<M, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<M, Status>>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        loop {
            match this.take() {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(None) => {}
                Err(status) => return this.finish(Err(status)),
            }
            match ready!(Pin::new(&mut this.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.pieces.push(data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().ok();
                        let how = this.end(trailers.as_ref());
                        return this.finish(how);
                    }
                },
                // A client that has gone isn't wrong.
                Some(Err(status))
                    if this.side == Side::Requests && status.code() == Code::Cancelled =>
                {
                    return this.finish(Ok(()));
                }
                Some(Err(status)) => return this.finish(Err(status)),
                None => {
                    let how = this.end(None);
                    return this.finish(how);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
