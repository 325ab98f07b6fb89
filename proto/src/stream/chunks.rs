//! [`Chunks`]: a message to send, in pieces that share its large parts; [`ChunkedBody`]: a stream
//! of them.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame};
use prost::Message;
use tonic::codegen::http;
use tonic::codegen::tokio_stream::Stream;
use tonic::{Code, Status};

use super::HEADER_BYTES;

/// Parts below this size are copied, since a frame of their own would cost more.
const COPIED_BELOW: usize = 8 * 1024;

/// A message in pieces, in order.
#[derive(Debug)]
pub struct Chunks {
    done: VecDeque<Bytes>,
    buffer: BytesMut,
}

impl Chunks {
    /// Begins a message of `len` bytes, of which `shared` will not be copied.
    pub(crate) fn begin(len: usize, shared: usize) -> Self {
        let mut buffer = BytesMut::with_capacity(HEADER_BYTES + len.saturating_sub(shared));
        buffer.put_u8(0);
        // Messages are bounded far below this; were one not, its peer would refuse it.
        buffer.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
        Self { done: VecDeque::new(), buffer }
    }

    /// All of a message, copied.
    pub(crate) fn of(message: &impl Message) -> Self {
        let mut chunks = Self::begin(message.encoded_len(), 0);
        message.encode_raw(&mut chunks.buffer);
        chunks
    }

    /// Where fields are written.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Adds a part as it is.
    pub(crate) fn share(&mut self, part: &Bytes) {
        if shared_len(part) == 0 {
            self.buffer.extend_from_slice(part);
            return;
        }
        if !self.buffer.is_empty() {
            self.done.push_back(self.buffer.split().freeze());
        }
        self.done.push_back(part.clone());
    }

    /// The pieces.
    pub(crate) fn finish(mut self) -> VecDeque<Bytes> {
        if !self.buffer.is_empty() {
            self.done.push_back(self.buffer.freeze());
        }
        self.done
    }
}

/// True if a part is worth sharing.
pub(super) fn is_large(part: &Bytes) -> bool {
    part.len() >= COPIED_BELOW
}

/// How much of a part is sent without copying it.
pub(crate) fn shared_len(part: &Bytes) -> usize {
    if is_large(part) { part.len() } else { 0 }
}

/// A message that can be sent in pieces.
pub trait IntoChunks {
    /// Encodes it, exactly as its message type would.
    fn into_chunks(self) -> Chunks;
}

/// A stream of messages as a body.
pub struct ChunkedBody<S> {
    messages: S,
    /// Of the message that is being sent.
    pieces: VecDeque<Bytes>,
    /// A server's body ends with a status.
    trailers: bool,
    over: bool,
}

impl<S> ChunkedBody<S> {
    /// A client's requests. An error among them resets the stream.
    pub fn requests(messages: S) -> Self {
        Self { messages, pieces: VecDeque::new(), trailers: false, over: false }
    }

    /// A server's answers; an error among them is the status with which they end.
    pub fn responses(messages: S) -> Self {
        Self { messages, pieces: VecDeque::new(), trailers: true, over: false }
    }
}

impl<S> fmt::Debug for ChunkedBody<S> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ChunkedBody({} pieces wait)", self.pieces.len())
    }
}

impl<S, M> Body for ChunkedBody<S>
where
    S: Stream<Item = Result<M, Status>> + Unpin,
    M: IntoChunks,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let body = self.get_mut();
        loop {
            if let Some(piece) = body.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if body.over {
                return Poll::Ready(None);
            }
            let status = match ready!(Pin::new(&mut body.messages).poll_next(context)) {
                Some(Ok(message)) => {
                    body.pieces = message.into_chunks().finish();
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::new(Code::Ok, ""),
            };
            body.over = true;
            if body.trailers {
                let mut trailers = http::HeaderMap::new();
                let told = status.add_header(&mut trailers);
                return Poll::Ready(Some(told.map(|()| Frame::trailers(trailers))));
            }
            if status.code() != Code::Ok {
                return Poll::Ready(Some(Err(status)));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over && self.pieces.is_empty()
    }
}
