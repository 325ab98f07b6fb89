//! [`Link`]: one Produce or Consume stream, shared by many producers or consumers. It packs the
//! frames that are ready into messages and hands what comes back to whom it names.
//!
//! Invariants: frames leave in the order in which they were pushed; the reading task never waits
//! for an application, so a stalled consumer holds back nobody; once the stream is over, every
//! sink hears `lost` exactly once and nothing is taken any more.
//!
//! The outbound queue needs no limit of its own: producers push within the broker's byte credit
//! and their own limit in flight, consumers within their limit of acknowledgements under way.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::Stream;
use geminga_proto::stream::{IntoChunks, path};
use geminga_proto::v1;
use parking_lot::Mutex;
use prost::Message;

use crate::error::ClientError;
use crate::liveness::Vitals;

/// A message takes further frames until it has this many bytes.
const MESSAGE_BYTES: usize = 1024 * 1024;
/// A message takes at most so many frames.
const MESSAGE_FRAMES: usize = 4096;

/// What differs between the two kinds of stream.
pub(crate) trait Protocol: Send + Sync + 'static {
    type Frame: Send + 'static;
    type Request: IntoChunks + Send + 'static;
    type Response: Message + Default + 'static;
    type Event: Send + 'static;
    /// The stream's method.
    const PATH: &'static str;

    /// Bytes that a frame takes in a message, roughly.
    fn weight(frame: &Self::Frame) -> usize;
    fn pack(frames: Vec<Self::Frame>) -> Self::Request;
    /// Takes a response apart; an event that is empty or newer than this client is left out.
    fn unpack(response: Self::Response, each: &mut dyn FnMut(u64, Self::Event));
}

/// A producer or consumer on a link.
pub(crate) trait Sink<E>: Send + Sync {
    /// Something for the producer or consumer `id`. Must not block.
    fn event(&self, id: u64, event: E);
    /// The stream is over.
    fn lost(&self, id: u64, error: &ClientError);
    /// True if an answer is due to the producer or consumer `id`.
    fn is_waiting(&self, id: u64) -> bool;
}

struct Outbound<F> {
    frames: VecDeque<F>,
    waker: Option<Waker>,
    closed: bool,
}

struct Sinks<E> {
    by_id: HashMap<u64, Arc<dyn Sink<E>>>,
    /// Why the stream is over.
    closed: Option<ClientError>,
}

/// One stream of a connection.
pub(crate) struct Link<P: Protocol> {
    outbound: Mutex<Outbound<P::Frame>>,
    sinks: Mutex<Sinks<P::Event>>,
    /// Of the connection: what is pushed may be waited for.
    vitals: Arc<Vitals>,
}

impl<P: Protocol> fmt::Debug for Link<P> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sinks = self.sinks.lock();
        write!(out, "Link({} sinks, closed: {:?})", sinks.by_id.len(), sinks.closed)
    }
}

impl<P: Protocol> Link<P> {
    pub(crate) fn new(vitals: Arc<Vitals>) -> Arc<Self> {
        let outbound = Outbound { frames: VecDeque::new(), waker: None, closed: false };
        let sinks = Sinks { by_id: HashMap::new(), closed: None };
        Arc::new(Self { outbound: Mutex::new(outbound), sinks: Mutex::new(sinks), vitals })
    }

    /// Adds a sink.
    ///
    /// # Errors
    /// Why the stream is over, if it is.
    pub(crate) fn register(
        &self,
        id: u64,
        sink: Arc<dyn Sink<P::Event>>,
    ) -> Result<(), ClientError> {
        let mut sinks = self.sinks.lock();
        if let Some(error) = &sinks.closed {
            return Err(error.clone());
        }
        sinks.by_id.insert(id, sink);
        Ok(())
    }

    pub(crate) fn unregister(&self, id: u64) {
        self.sinks.lock().by_id.remove(&id);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.sinks.lock().closed.is_some()
    }

    /// True if an answer is due to somebody on it.
    pub(crate) fn has_waiting(&self) -> bool {
        // A sink takes its own lock, under which it may use this link.
        let sinks: Vec<_> = {
            let sinks = self.sinks.lock();
            sinks.by_id.iter().map(|(id, sink)| (*id, Arc::clone(sink))).collect()
        };
        sinks.iter().any(|(id, sink)| sink.is_waiting(*id))
    }

    /// Queues a frame. After the stream's end it is dropped: whoever sent it hears `lost`.
    pub(crate) fn push(&self, frame: P::Frame) {
        let waker = {
            let mut outbound = self.outbound.lock();
            if outbound.closed {
                return;
            }
            outbound.frames.push_back(frame);
            outbound.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        self.vitals.asked();
    }

    /// Ends the client's half of the stream, after what is queued.
    pub(crate) fn finish(&self) {
        let waker = {
            let mut outbound = self.outbound.lock();
            outbound.closed = true;
            outbound.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Hands a response to those it names.
    pub(crate) fn dispatch(&self, response: P::Response) {
        P::unpack(response, &mut |id, event| {
            let sink = self.sinks.lock().by_id.get(&id).cloned();
            // Nobody: it was closed here meanwhile.
            if let Some(sink) = sink {
                sink.event(id, event);
            }
        });
    }

    /// The stream is over.
    pub(crate) fn fail(&self, error: &ClientError) {
        self.finish();
        self.outbound.lock().frames.clear();
        let sinks = {
            let mut sinks = self.sinks.lock();
            if sinks.closed.is_some() {
                return;
            }
            sinks.closed = Some(error.clone());
            std::mem::take(&mut sinks.by_id)
        };
        for (id, sink) in sinks {
            sink.lost(id, error);
        }
    }
}

/// The outbound half, as the transport polls it.
pub(crate) struct OutboundStream<P: Protocol>(pub(crate) Arc<Link<P>>);

impl<P: Protocol> Stream for OutboundStream<P> {
    type Item = P::Request;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<P::Request>> {
        let mut outbound = self.0.outbound.lock();
        if outbound.frames.is_empty() {
            if outbound.closed {
                return Poll::Ready(None);
            }
            outbound.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let mut frames = Vec::with_capacity(outbound.frames.len().min(64));
        let mut bytes = 0;
        while let Some(frame) = outbound.frames.front() {
            let weight = P::weight(frame);
            let full = frames.len() >= MESSAGE_FRAMES || bytes + weight > MESSAGE_BYTES;
            if full && !frames.is_empty() {
                break;
            }
            bytes += weight;
            frames.extend(outbound.frames.pop_front());
        }
        Poll::Ready(Some(P::pack(frames)))
    }
}

/// Bytes of a frame's own fields, ids and tags.
const FRAME_BYTES: usize = 64;

/// The Produce stream.
#[derive(Debug)]
pub(crate) struct Produce;

impl Protocol for Produce {
    type Frame = v1::produce_frame::Frame;
    type Request = v1::ProduceRequest;
    type Response = v1::ProduceResponse;
    type Event = v1::produce_result::Result;
    const PATH: &'static str = path::PRODUCE;

    fn weight(frame: &Self::Frame) -> usize {
        match frame {
            v1::produce_frame::Frame::Send(send) => FRAME_BYTES + send.entry.len(),
            v1::produce_frame::Frame::Open(_) | v1::produce_frame::Frame::Close(_) => 1024,
        }
    }

    fn pack(frames: Vec<Self::Frame>) -> Self::Request {
        let frames = frames.into_iter().map(|frame| v1::ProduceFrame { frame: Some(frame) });
        v1::ProduceRequest { frames: frames.collect() }
    }

    fn unpack(response: Self::Response, each: &mut dyn FnMut(u64, Self::Event)) {
        use v1::produce_result::Result::{Closed, Delayed, Opened, Receipts, SendFailed};
        for event in response.results.into_iter().filter_map(|result| result.result) {
            let id = match &event {
                Opened(opened) => opened.producer_id,
                Receipts(receipts) => receipts.producer_id,
                SendFailed(failed) => failed.producer_id,
                Closed(closed) => closed.producer_id,
                Delayed(delayed) => delayed.producer_id,
            };
            each(id, event);
        }
    }
}

/// The Consume stream.
#[derive(Debug)]
pub(crate) struct Consume;

impl Protocol for Consume {
    type Frame = v1::consume_frame::Frame;
    type Request = v1::ConsumeRequest;
    type Response = v1::ConsumeResponse;
    type Event = v1::consume_event::Event;
    const PATH: &'static str = path::CONSUME;

    fn weight(frame: &Self::Frame) -> usize {
        use v1::consume_frame::Frame;
        match frame {
            Frame::Ack(ack) => {
                let bits: usize = ack.positions.iter().map(|at| at.acked_indexes.len()).sum();
                FRAME_BYTES + ack.positions.len() * 32 + bits
            }
            Frame::Redeliver(redeliver) => FRAME_BYTES + redeliver.positions.len() * 24,
            Frame::Subscribe(_) => 2048,
            Frame::Flow(_) | Frame::Close(_) | Frame::Unsubscribe(_) | Frame::GetPosition(_) => {
                FRAME_BYTES
            }
        }
    }

    fn pack(frames: Vec<Self::Frame>) -> Self::Request {
        let frames = frames.into_iter().map(|frame| v1::ConsumeFrame { frame: Some(frame) });
        v1::ConsumeRequest { frames: frames.collect() }
    }

    fn unpack(response: Self::Response, each: &mut dyn FnMut(u64, Self::Event)) {
        use v1::consume_event::Event;
        for event in response.events.into_iter().filter_map(|event| event.event) {
            let id = match &event {
                Event::Subscribed(it) => it.consumer_id,
                Event::Delivery(it) => it.consumer_id,
                Event::AckReceipt(it) => it.consumer_id,
                Event::ActiveChange(it) => it.consumer_id,
                Event::Closed(it) => it.consumer_id,
                Event::Position(it) => it.consumer_id,
            };
            each(id, event);
        }
    }
}
