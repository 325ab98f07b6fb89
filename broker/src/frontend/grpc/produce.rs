//! A Produce stream: one task reads its frames and hands entries to the core; the core's answers
//! go straight into the outbound queue.
//!
//! Invariants: entries of a producer are handed on in the order they came; an entry is handed on
//! only with its bytes out of the broker's budget; a producer's handle is dropped by this task
//! and never by a sink, which the core calls under a topic's lock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use geminga_proto::id::ProducerId;
use geminga_proto::stream::Messages;
use geminga_proto::v1;
use geminga_proto::v1::ErrorCode;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tonic::Status;
use v1::produce_frame::Frame;
use v1::produce_result::Result as ProduceResult;

use crate::core::api::{
    OpenProducerError, ProducerOpened, ProducerSink, PublishError, Receipt, TopicError,
};
use crate::core::broker::{Broker, Producer};
use crate::frontend::grpc::config::GrpcConfig;
use crate::frontend::grpc::outbound::{Item, Outbound};
use crate::frontend::grpc::stopped;
use crate::frontend::grpc::{convert, error};

/// An entry below this size is copied out of the message it came in, of which it would otherwise
/// keep all alive, for as long as it is cached.
const COPY_BYTES: usize = 16 * 1024;
/// Producers of a stream that are being opened at a time; beyond them, nothing more of the stream
/// is read. After a take-over a client opens all its producers at once, and those that are open
/// must not wait for the others; how many topics are loaded at a time is the core's to bound.
const OPENING: usize = 4_096;
/// Ids that were in use and that a stream remembers, at least.
const RETIRED: usize = 4096;

/// Something to tell a producer.
#[derive(Debug)]
pub(super) enum Answer {
    Receipts { producer_id: u64, receipts: Vec<v1::Receipt> },
    Other(ProduceResult),
}

impl Item for Answer {
    type Response = v1::ProduceResponse;

    fn weight(&self) -> usize {
        match self {
            Self::Receipts { receipts, .. } => 16 + receipts.len() * size_of::<v1::Receipt>(),
            Self::Other(_) => 512,
        }
    }

    fn is_answer(&self) -> bool {
        true
    }

    fn merge(&mut self, next: Self) -> Option<Self> {
        match (self, next) {
            (
                Self::Receipts { producer_id, receipts },
                Self::Receipts { producer_id: next_id, receipts: mut more },
            ) if *producer_id == next_id => {
                receipts.append(&mut more);
                None
            }
            (_, next) => Some(next),
        }
    }

    fn pack(items: Vec<Self>) -> v1::ProduceResponse {
        let results = items.into_iter().map(|item| {
            let result = match item {
                Self::Receipts { producer_id, receipts } => {
                    ProduceResult::Receipts(v1::Receipts { producer_id, receipts })
                }
                Self::Other(result) => result,
            };
            v1::ProduceResult { result: Some(result) }
        });
        v1::ProduceResponse { results: results.collect() }
    }
}

/// What the core calls.
#[derive(Debug)]
struct Sink {
    outbound: Arc<Outbound<Answer>>,
    /// Producers that the core has closed. Written by sinks, taken by the stream's task.
    closed: Mutex<Vec<u64>>,
    wake: Notify,
}

impl Sink {
    fn tell_closed(&self, producer_id: u64, error: Option<v1::Error>) {
        let closed = v1::ProducerClosed { producer_id, error };
        self.outbound.push(Answer::Other(ProduceResult::Closed(closed)));
    }
}

impl ProducerSink for Sink {
    fn receipts(&self, producer: ProducerId, receipts: &[Receipt]) {
        let receipts = receipts.iter().map(convert::receipt).collect();
        self.outbound.push(Answer::Receipts { producer_id: producer.0, receipts });
    }

    fn refused(&self, producer: ProducerId, sequence_id: u64, error: &PublishError) {
        let error = Some(error::publish(error));
        let failed = v1::SendFailed { producer_id: producer.0, sequence_id, error };
        self.outbound.push(Answer::Other(ProduceResult::SendFailed(failed)));
    }

    fn delayed(&self, producer: ProducerId, why: &TopicError) {
        // It is told again and again; a client that takes nothing need not have it in store.
        if self.outbound.bytes() >= self.outbound.limit_bytes() {
            return;
        }
        let delayed =
            v1::ProducerDelayed { producer_id: producer.0, error: Some(error::topic(why)) };
        self.outbound.push(Answer::Other(ProduceResult::Delayed(delayed)));
    }

    fn closed(&self, producer: ProducerId, error: &TopicError) {
        self.tell_closed(producer.0, Some(error::topic(error)));
        self.closed.lock().push(producer.0);
        self.wake.notify_one();
    }
}

enum Slot {
    Opening { closing: bool },
    Open(Producer),
}

/// Ids that were in use, whose clients may not know yet that they aren't; the oldest are forgotten.
#[derive(Debug)]
pub(super) struct Retired {
    ids: HashSet<u64>,
    order: VecDeque<u64>,
    limit: usize,
}

impl Retired {
    /// For a stream that has at most so many in use: all of them may end at once, and so may those
    /// that take their place.
    pub(super) fn new(in_use: usize) -> Self {
        let limit = in_use.saturating_mul(2).max(RETIRED);
        Self { ids: HashSet::new(), order: VecDeque::new(), limit }
    }

    pub(super) fn add(&mut self, id: u64) {
        if self.ids.insert(id) {
            self.order.push_back(id);
        }
        if self.order.len() > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }

    /// A frame for such an id was on its way when it was closed.
    pub(super) fn contains(&self, id: u64) -> bool {
        self.ids.contains(&id)
    }
}

type OpenResult = (u64, Result<(Producer, ProducerOpened), OpenProducerError>);

/// The task's state.
pub(super) struct ProduceStream {
    broker: Broker,
    config: Arc<GrpcConfig>,
    sink: Arc<Sink>,
    producers: HashMap<u64, Slot>,
    retired: Retired,
    opening: JoinSet<OpenResult>,
    closing: JoinSet<()>,
}

impl ProduceStream {
    pub(super) fn new(
        broker: Broker,
        config: Arc<GrpcConfig>,
        outbound: Arc<Outbound<Answer>>,
    ) -> Self {
        let sink = Sink { outbound, closed: Mutex::default(), wake: Notify::new() };
        Self {
            broker,
            sink: Arc::new(sink),
            producers: HashMap::new(),
            retired: Retired::new(config.max_producers_per_stream),
            opening: JoinSet::new(),
            closing: JoinSet::new(),
            config,
        }
    }

    /// Serves the stream until its end.
    pub(super) async fn run(
        mut self,
        mut requests: Messages<v1::ProduceRequest>,
        mut stopping: watch::Receiver<bool>,
    ) {
        let outbound = Arc::clone(&self.sink.outbound);
        let sink = Arc::clone(&self.sink);
        loop {
            self.drop_closed();
            let request = async {
                outbound.room().await;
                requests.next().await
            };
            tokio::select! {
                () = outbound.ended() => break,
                () = stopped(&mut stopping) => {
                    self.shut_down().await;
                    outbound.end(None);
                    break;
                }
                Some(opened) = self.opening.join_next() => self.on_opened(opened),
                Some(_) = self.closing.join_next() => {}
                () = sink.wake.notified() => {}
                request = request => match request {
                    Some(Ok(request)) => {
                        if let Err(status) = self.on_request(request).await {
                            outbound.end(Some(status));
                            break;
                        }
                    }
                    Some(Err(status)) => {
                        tracing::debug!(%status, "a Produce stream broke");
                        outbound.end(Some(status));
                        break;
                    }
                    None => {
                        // The client has ended its half: it gets its answers, and no more.
                        self.close_all(None).await;
                        outbound.end(None);
                        break;
                    }
                },
            }
        }
        // Attempts that are under way finish by themselves; their producers are then dropped.
        self.opening.detach_all();
        self.closing.detach_all();
    }

    async fn on_request(&mut self, request: v1::ProduceRequest) -> Result<(), Status> {
        for frame in request.frames {
            if self.sink.outbound.is_over() {
                return Ok(());
            }
            match frame.frame {
                Some(Frame::Open(open)) => self.on_open(open).await?,
                Some(Frame::Send(send)) => self.on_send(send).await?,
                Some(Frame::Close(close)) => self.on_close(close.producer_id)?,
                None => {
                    return Err(error::bad_frame("a frame without content, or of a newer kind"));
                }
            }
        }
        Ok(())
    }

    async fn on_open(&mut self, open: v1::OpenProducer) -> Result<(), Status> {
        let producer_id = open.producer_id;
        self.drop_closed();
        if self.producers.contains_key(&producer_id) || self.retired.contains(producer_id) {
            return Err(error::bad_frame(format!("producer id {producer_id} is or was in use")));
        }
        let limit = self.config.max_producers_per_stream;
        let request = if self.producers.len() >= limit {
            let message = format!("a stream has at most {limit} producers; use another connection");
            Err(error::refusal(ErrorCode::InvalidRequest, message))
        } else {
            convert::open_producer(open)
        };
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                self.retired.add(producer_id);
                self.tell_opened(producer_id, Err(error));
                return Ok(());
            }
        };
        while self.opening.len() >= OPENING
            && let Some(opened) = self.opening.join_next().await
        {
            self.on_opened(opened);
        }
        self.producers.insert(producer_id, Slot::Opening { closing: false });
        let (broker, sink) = (self.broker.clone(), Arc::clone(&self.sink));
        self.opening.spawn(async move {
            let opened = broker.open_producer(request, sink).await;
            (producer_id, opened)
        });
        Ok(())
    }

    fn tell_opened(&self, producer_id: u64, opened: Result<ProducerOpened, v1::Error>) {
        let opened = match opened {
            Ok(ProducerOpened { name, credit_bytes }) => {
                v1::ProducerOpened { producer_id, error: None, producer_name: name, credit_bytes }
            }
            Err(error) => v1::ProducerOpened {
                producer_id,
                error: Some(error),
                ..v1::ProducerOpened::default()
            },
        };
        self.sink.outbound.push(Answer::Other(ProduceResult::Opened(opened)));
    }

    fn on_opened(&mut self, opened: Result<OpenResult, tokio::task::JoinError>) {
        let (producer_id, opened) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::error!(%error, "opening a producer panicked");
                let message = "opening a producer failed inside the broker";
                let status = error::status(tonic::Code::Internal, ErrorCode::Internal, message);
                self.sink.outbound.end(Some(status));
                return;
            }
        };
        let closing = matches!(
            self.producers.remove(&producer_id),
            None | Some(Slot::Opening { closing: true })
        );
        match opened {
            Ok((producer, opened)) => {
                self.tell_opened(producer_id, Ok(opened));
                if closing {
                    self.close(producer_id, producer);
                } else {
                    self.producers.insert(producer_id, Slot::Open(producer));
                }
            }
            Err(error) => {
                self.retired.add(producer_id);
                self.tell_opened(producer_id, Err(error::open_producer(&error)));
            }
        }
    }

    async fn on_send(&mut self, send: v1::SendEntry) -> Result<(), Status> {
        let v1::SendEntry { producer_id, sequence_id, entry } = send;
        match self.producers.get(&producer_id) {
            Some(Slot::Open(producer)) => {
                let permit = tokio::select! {
                    permit = self.broker.budget().acquire(entry.len() as u64) => permit,
                    () = self.sink.outbound.ended() => return Ok(()),
                };
                let entry =
                    if entry.len() < COPY_BYTES { Bytes::copy_from_slice(&entry) } else { entry };
                producer.publish(sequence_id, entry, permit);
                Ok(())
            }
            Some(Slot::Opening { .. }) => {
                let message = format!("an entry for producer {producer_id} before it is open");
                Err(error::bad_frame(message))
            }
            // It was on its way when the broker closed the producer.
            None if self.retired.contains(producer_id) => Ok(()),
            None => Err(error::bad_frame(format!("an entry for unknown producer {producer_id}"))),
        }
    }

    fn on_close(&mut self, producer_id: u64) -> Result<(), Status> {
        match self.producers.remove(&producer_id) {
            Some(Slot::Open(producer)) => {
                self.close(producer_id, producer);
                Ok(())
            }
            Some(Slot::Opening { .. }) => {
                self.producers.insert(producer_id, Slot::Opening { closing: true });
                Ok(())
            }
            None if self.retired.contains(producer_id) => Ok(()),
            None => Err(error::bad_frame(format!("the close of unknown producer {producer_id}"))),
        }
    }

    /// Closes a producer once its entries have their answers.
    fn close(&mut self, producer_id: u64, producer: Producer) {
        self.retired.add(producer_id);
        let sink = Arc::clone(&self.sink);
        self.closing.spawn(async move {
            producer.close().await;
            sink.tell_closed(producer_id, None);
        });
    }

    /// Drops the handles of producers that the core has closed.
    fn drop_closed(&mut self) {
        let closed = std::mem::take(&mut *self.sink.closed.lock());
        for producer_id in closed {
            self.producers.remove(&producer_id);
            self.retired.add(producer_id);
        }
    }

    /// Waits for the answers of all entries, within the grace, and closes every producer.
    async fn close_all(&mut self, why: Option<&TopicError>) {
        let mut closing = JoinSet::new();
        for (producer_id, slot) in std::mem::take(&mut self.producers) {
            let (sink, error) = (Arc::clone(&self.sink), why.map(error::topic));
            match slot {
                Slot::Open(producer) => {
                    closing.spawn(async move {
                        producer.close().await;
                        sink.tell_closed(producer_id, error);
                    });
                }
                Slot::Opening { .. } => self.sink.tell_closed(producer_id, error),
            }
        }
        let all = async {
            while closing.join_next().await.is_some() {}
            while self.closing.join_next().await.is_some() {}
        };
        tokio::select! {
            () = all => {}
            () = tokio::time::sleep(self.config.shutdown_grace) => {
                tracing::debug!("a Produce stream ended before all its entries had answers");
            }
            () = self.sink.outbound.ended() => {}
        }
    }

    async fn shut_down(&mut self) {
        self.close_all(Some(&TopicError::ShuttingDown)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receipts_of_one_producer_become_one_event() {
        let receipts = |producer_id, sequence_ids: &[u64]| {
            let receipt = |id: &u64| v1::Receipt { sequence_id: *id, ..v1::Receipt::default() };
            let receipts = sequence_ids.iter().map(receipt).collect();
            Answer::Receipts { producer_id, receipts }
        };
        let mut first = receipts(1, &[1]);
        assert!(first.merge(receipts(1, &[2, 3])).is_none());
        assert!(first.merge(receipts(2, &[4])).is_some());
        let Answer::Receipts { receipts, .. } = &first else { panic!("{first:?}") };
        assert_eq!(receipts.iter().map(|it| it.sequence_id).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn retired_ids_are_remembered_up_to_a_limit() {
        let mut retired = Retired::new(1);
        for id in 0..=RETIRED as u64 {
            retired.add(id);
            retired.add(id);
        }
        assert!(!retired.contains(0) && retired.contains(1) && retired.contains(RETIRED as u64));
    }

    #[test]
    fn frames_of_all_producers_that_a_stream_may_have_are_known_when_they_end_at_once() {
        let most = GrpcConfig::default().max_producers_per_stream;
        let mut retired = Retired::new(most);
        (0..most as u64).for_each(|id| retired.add(id));
        assert!((0..most as u64).all(|id| retired.contains(id)));
    }
}
