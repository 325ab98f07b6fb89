//! [`Outbound`]: what waits to be sent on a stream. Sinks put events in while the core holds a
//! topic's lock; the transport takes out as much as a message may have whenever it has room.
//!
//! Invariants: putting in never blocks and calls nobody; events leave in the order they came, but
//! for merging with the last one; once the transport has gone nothing is kept.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use geminga_proto::env::{Clock, Monotonic};
use geminga_proto::v1::ErrorCode;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tonic::{Code, Status};

use crate::frontend::grpc::error;

/// A message takes further events until it has this many bytes.
const MESSAGE_BYTES: usize = 1024 * 1024;
/// A message takes at most so many events.
const MESSAGE_EVENTS: usize = 4096;

/// Something to send.
pub(super) trait Item: Send + Sized + 'static {
    type Response: Send + 'static;

    /// Bytes that it takes in a message and keeps in memory, roughly.
    fn weight(&self) -> usize;
    /// True if a request brought it about, so that it must hold further requests back.
    fn is_answer(&self) -> bool;
    /// Takes `next` in, if both can be one event; else gives it back. Only an answer takes an
    /// answer in.
    fn merge(&mut self, next: Self) -> Option<Self>;
    /// Makes a message.
    fn pack(items: Vec<Self>) -> Self::Response;
}

/// An event with the bytes that were counted for it: what is taken off is what was put on, however
/// events merged in between.
struct Queued<I> {
    item: I,
    weight: usize,
}

struct State<I> {
    items: VecDeque<Queued<I>>,
    bytes: usize,
    /// Of them, those of answers.
    answer_bytes: usize,
    waker: Option<Waker>,
    /// What follows the last event; `Some(None)`: the stream ends well.
    end: Option<Option<Status>>,
    /// The transport takes nothing more.
    gone: bool,
    /// When the transport last took something, or there was last nothing to take.
    progress: Monotonic,
}

/// The queue of a stream.
pub(super) struct Outbound<I> {
    state: Mutex<State<I>>,
    limit_bytes: usize,
    clock: Arc<dyn Clock>,
    /// The answers went below their limit, or the transport has gone.
    room: Notify,
    /// The transport has gone, or the stream was told to end.
    ended: Notify,
    over: AtomicBool,
}

impl<I> fmt::Debug for Outbound<I> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(out, "Outbound({} items, {} bytes)", state.items.len(), state.bytes)
    }
}

impl<I: Item> Outbound<I> {
    pub(super) fn new(limit_bytes: usize, clock: Arc<dyn Clock>) -> Arc<Self> {
        let state = State {
            items: VecDeque::new(),
            bytes: 0,
            answer_bytes: 0,
            waker: None,
            end: None,
            gone: false,
            progress: clock.monotonic(),
        };
        Arc::new(Self {
            state: Mutex::new(state),
            limit_bytes,
            clock,
            room: Notify::new(),
            ended: Notify::new(),
            over: AtomicBool::new(false),
        })
    }

    /// Queues an event. It is dropped if the stream is over.
    pub(super) fn push(&self, item: I) {
        let waker = {
            let mut state = self.state.lock();
            if state.gone || state.end.is_some() {
                return;
            }
            if state.items.is_empty() {
                state.progress = self.clock.monotonic();
            }
            let weight = item.weight();
            state.bytes += weight;
            if item.is_answer() {
                state.answer_bytes += weight;
            }
            let rest = match state.items.back_mut() {
                Some(last) => {
                    let rest = last.item.merge(item);
                    if rest.is_none() {
                        last.weight += weight;
                    }
                    rest
                }
                None => Some(item),
            };
            state.items.extend(rest.map(|item| Queued { item, weight }));
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the stream after what is queued; with a status if something is wrong.
    pub(super) fn end(&self, status: Option<Status>) {
        let waker = {
            let mut state = self.state.lock();
            if state.end.is_none() {
                state.end = Some(status);
            }
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        self.finish();
    }

    /// Ends the stream at once: what is queued is dropped.
    pub(super) fn cut(&self, status: Status) {
        let dropped = {
            let mut state = self.state.lock();
            (state.bytes, state.answer_bytes) = (0, 0);
            std::mem::take(&mut state.items)
        };
        drop(dropped);
        self.end(Some(status));
    }

    fn finish(&self) {
        self.over.store(true, Ordering::Release);
        self.ended.notify_waiters();
        self.room.notify_waiters();
    }

    /// Waits until requests may be read again: immediately, unless more answers wait to be sent
    /// than the limit.
    pub(super) async fn room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if self.state.lock().answer_bytes < self.limit_bytes || self.is_over() {
                return;
            }
            room.await;
        }
    }

    /// True once the stream is over.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Waits for the stream's end.
    pub(super) async fn ended(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.is_over() {
                return;
            }
            ended.await;
        }
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> u64 {
        self.state.lock().bytes as u64
    }

    /// The limit of answers above which requests aren't read.
    pub(super) fn limit_bytes(&self) -> u64 {
        self.limit_bytes as u64
    }

    /// How long the transport has taken nothing, although something waits.
    pub(super) fn stalled_for(&self, now: Monotonic) -> Option<Monotonic> {
        let state = self.state.lock();
        (!state.items.is_empty()).then(|| now.saturating_sub(state.progress))
    }

    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Vec<I>, Status>>> {
        let mut state = self.state.lock();
        if state.items.is_empty() {
            return match state.end.as_mut() {
                Some(end) => Poll::Ready(end.take().map(Err)),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        let mut taken = Vec::with_capacity(state.items.len().min(64));
        let (mut bytes, mut answer_bytes) = (0, 0);
        while let Some(Queued { item, weight }) = state.items.front() {
            let weight = *weight;
            let full = taken.len() >= MESSAGE_EVENTS || bytes + weight > MESSAGE_BYTES;
            if full && !taken.is_empty() {
                break;
            }
            bytes += weight;
            if item.is_answer() {
                answer_bytes += weight;
            }
            taken.extend(state.items.pop_front().map(|queued| queued.item));
        }
        state.bytes = state.bytes.saturating_sub(bytes);
        let before = state.answer_bytes;
        state.answer_bytes = before.saturating_sub(answer_bytes);
        state.progress = self.clock.monotonic();
        let has_room = before >= self.limit_bytes && state.answer_bytes < self.limit_bytes;
        drop(state);
        if has_room {
            self.room.notify_waiters();
        }
        Poll::Ready(Some(Ok(taken)))
    }

    fn transport_gone(&self) {
        let dropped = {
            let mut state = self.state.lock();
            state.gone = true;
            (state.bytes, state.answer_bytes) = (0, 0);
            std::mem::take(&mut state.items)
        };
        // Outside the lock: what it holds gives its memory back.
        drop(dropped);
        self.finish();
    }
}

/// Ends a stream with the task that serves it, however that ends: after a panic nobody else would,
/// and the client would wait for ever.
pub(super) struct EndWithTask<I: Item>(pub(super) Arc<Outbound<I>>);

impl<I: Item> Drop for EndWithTask<I> {
    fn drop(&mut self) {
        // Nothing changes if it has ended already.
        let message = "serving the stream failed inside the broker";
        self.0.end(Some(error::status(Code::Internal, ErrorCode::Internal, message)));
    }
}

/// The queue as the transport takes from it.
pub(super) struct OutboundStream<I: Item>(pub(super) Arc<Outbound<I>>);

impl<I: Item> Stream for OutboundStream<I> {
    type Item = Result<I::Response, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_take(cx).map(|taken| taken.map(|items| items.map(I::pack)))
    }
}

impl<I: Item> Drop for OutboundStream<I> {
    fn drop(&mut self) {
        self.0.transport_gone();
    }
}

#[cfg(test)]
mod tests;
