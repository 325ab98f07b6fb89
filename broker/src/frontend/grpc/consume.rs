//! A Consume stream: one task reads its frames and hands each to its consumer's own task
//! (`consume/consumer.rs`), so that a consumer whose acknowledgements wait for storage holds back
//! nobody else.
//!
//! Invariants: a consumer's frames are done in the order they came; what the core delivers goes
//! straight into the outbound queue, within the credit that the client granted.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt;
use geminga_proto::stream::Messages;
use geminga_proto::v1;
use geminga_proto::v1::ErrorCode;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::Status;
use v1::consume_event::Event;
use v1::consume_frame::Frame;

use crate::core::api::Delivery;
use crate::core::broker::Broker;
use crate::frontend::grpc::config::GrpcConfig;
use crate::frontend::grpc::outbound::{Item, Outbound};
use crate::frontend::grpc::produce::Retired;
use crate::frontend::grpc::stopped;
use crate::frontend::grpc::{convert, error};

mod consumer;
mod mailbox;

use consumer::{Request, Worker};
use mailbox::{Mailbox, Waiting};

/// Something to tell a consumer.
#[derive(Debug)]
pub(super) enum Told {
    Delivery { consumer_id: u64, entries: Vec<Delivery> },
    Other(Event),
}

impl Item for Told {
    type Response = v1::ConsumeResponse;

    fn weight(&self) -> usize {
        match self {
            Self::Delivery { entries, .. } => {
                let each = |it: &Delivery| 64 + it.payload.len() + it.acked_indexes.len();
                entries.iter().map(each).sum::<usize>() + 16
            }
            Self::Other(_) => 256,
        }
    }

    /// Deliveries are bounded by the client's credit, and must not hold up its acknowledgements.
    fn is_answer(&self) -> bool {
        matches!(self, Self::Other(_))
    }

    fn merge(&mut self, next: Self) -> Option<Self> {
        // A delivery that fills a message is left alone, so that messages keep their limit.
        const MERGE_BYTES: usize = 512 * 1024;
        if next.weight() + self.weight() > MERGE_BYTES {
            return Some(next);
        }
        match (self, next) {
            (
                Self::Delivery { consumer_id, entries },
                Self::Delivery { consumer_id: next_id, entries: mut more },
            ) if *consumer_id == next_id => {
                entries.append(&mut more);
                None
            }
            (_, next) => Some(next),
        }
    }

    fn pack(items: Vec<Self>) -> v1::ConsumeResponse {
        let events = items.into_iter().map(|item| {
            let event = match item {
                Self::Delivery { consumer_id, entries } => {
                    let entries = entries.into_iter().map(convert::delivered).collect();
                    Event::Delivery(v1::Delivery { consumer_id, entries })
                }
                Self::Other(event) => event,
            };
            v1::ConsumeEvent { event: Some(event) }
        });
        v1::ConsumeResponse { events: events.collect() }
    }
}

/// The task's state.
pub(super) struct ConsumeStream {
    broker: Broker,
    config: Arc<GrpcConfig>,
    outbound: Arc<Outbound<Told>>,
    consumers: HashMap<u64, Arc<Mailbox>>,
    waiting: Arc<Waiting>,
    retired: Retired,
    workers: JoinSet<u64>,
}

impl ConsumeStream {
    pub(super) fn new(
        broker: Broker,
        config: Arc<GrpcConfig>,
        outbound: Arc<Outbound<Told>>,
    ) -> Self {
        let retired = Retired::new(config.max_consumers_per_stream);
        let (consumers, workers, waiting) = (HashMap::new(), JoinSet::new(), Arc::default());
        Self { broker, config, outbound, consumers, waiting, retired, workers }
    }

    /// Serves the stream until its end.
    pub(super) async fn run(
        mut self,
        mut requests: Messages<v1::ConsumeRequest>,
        mut stopping: watch::Receiver<bool>,
    ) {
        let (outbound, waiting) = (Arc::clone(&self.outbound), Arc::clone(&self.waiting));
        loop {
            let request = async {
                outbound.room().await;
                waiting.room().await;
                requests.next().await
            };
            tokio::select! {
                () = outbound.ended() => break,
                () = stopped(&mut stopping) => {
                    self.close_all(&Request::ShutDown).await;
                    outbound.end(None);
                    break;
                }
                Some(over) = self.workers.join_next() => self.on_over(over),
                request = request => match request {
                    Some(Ok(request)) => {
                        if let Err(status) = self.on_request(request) {
                            outbound.end(Some(status));
                            break;
                        }
                    }
                    Some(Err(status)) => {
                        tracing::debug!(%status, "a Consume stream broke");
                        outbound.end(Some(status));
                        break;
                    }
                    None => {
                        // The client has ended its half: its acknowledgements get their receipts.
                        self.close_all(&Request::Close).await;
                        outbound.end(None);
                        break;
                    }
                },
            }
        }
        // The consumers' tasks come to their end and detach them.
        self.consumers.values().for_each(|mailbox| mailbox.close());
        self.workers.detach_all();
    }

    fn on_over(&mut self, over: Result<u64, tokio::task::JoinError>) {
        match over {
            Ok(consumer_id) => {
                self.consumers.remove(&consumer_id);
                self.retired.add(consumer_id);
            }
            Err(error) => {
                tracing::error!(%error, "a consumer's task panicked");
                let message = "a consumer failed inside the broker";
                let status = error::status(tonic::Code::Internal, ErrorCode::Internal, message);
                self.outbound.end(Some(status));
            }
        }
    }

    fn on_request(&mut self, request: v1::ConsumeRequest) -> Result<(), Status> {
        for frame in request.frames {
            if self.outbound.is_over() {
                return Ok(());
            }
            let (consumer_id, request) = match frame.frame {
                Some(Frame::Subscribe(subscribe)) => {
                    self.on_subscribe(subscribe)?;
                    continue;
                }
                Some(Frame::Flow(flow)) => {
                    (flow.consumer_id, Request::Flow { messages: flow.messages, bytes: flow.bytes })
                }
                Some(Frame::Ack(ack)) => (ack.consumer_id, Request::Ack(ack)),
                Some(Frame::Redeliver(redeliver)) => {
                    (redeliver.consumer_id, Request::Redeliver(redeliver))
                }
                Some(Frame::Close(close)) => (close.consumer_id, Request::Close),
                Some(Frame::Unsubscribe(it)) => (it.consumer_id, Request::Unsubscribe),
                Some(Frame::GetPosition(get)) => {
                    (get.consumer_id, Request::Position { request_id: get.request_id })
                }
                None => {
                    return Err(error::bad_frame("a frame without content, or of a newer kind"));
                }
            };
            self.hand_on(consumer_id, request)?;
        }
        Ok(())
    }

    fn on_subscribe(&mut self, subscribe: v1::Subscribe) -> Result<(), Status> {
        let consumer_id = subscribe.consumer_id;
        while let Some(over) = self.workers.try_join_next() {
            self.on_over(over);
        }
        if self.consumers.contains_key(&consumer_id) || self.retired.contains(consumer_id) {
            return Err(error::bad_frame(format!("consumer id {consumer_id} is or was in use")));
        }
        let limit = self.config.max_consumers_per_stream;
        let request = if self.consumers.len() >= limit {
            let message = format!("a stream has at most {limit} consumers; use another connection");
            Err(error::refusal(ErrorCode::InvalidRequest, message))
        } else {
            convert::subscribe(subscribe)
        };
        match request {
            Ok(request) => {
                let mailbox = Mailbox::new(Arc::clone(&self.waiting));
                self.consumers.insert(consumer_id, Arc::clone(&mailbox));
                let outbound = Arc::clone(&self.outbound);
                let credit_limit = self.config.max_consumer_credit_bytes;
                let worker = Worker::new(consumer_id, outbound, credit_limit);
                let broker = self.broker.clone();
                self.workers.spawn(async move {
                    worker.run(broker, request, mailbox).await;
                    consumer_id
                });
            }
            Err(error) => {
                self.retired.add(consumer_id);
                let error = Some(error);
                let refused = v1::Subscribed { consumer_id, error, ..v1::Subscribed::default() };
                self.outbound.push(Told::Other(Event::Subscribed(refused)));
            }
        }
        Ok(())
    }

    fn hand_on(&mut self, consumer_id: u64, request: Request) -> Result<(), Status> {
        match self.consumers.get(&consumer_id) {
            Some(mailbox) => {
                mailbox.put(request);
                Ok(())
            }
            // It was on its way when the consumer was closed.
            None if self.retired.contains(consumer_id) => Ok(()),
            None => Err(error::bad_frame(format!("a frame for unknown consumer {consumer_id}"))),
        }
    }

    /// Closes every consumer after its acknowledgements, within the grace.
    async fn close_all(&mut self, how: &Request) {
        let all = async {
            self.consumers.values().for_each(|mailbox| mailbox.put(how.clone()));
            while self.workers.join_next().await.is_some() {}
        };
        tokio::select! {
            () = all => {}
            () = tokio::time::sleep(self.config.shutdown_grace) => {
                tracing::debug!("a Consume stream ended before all acknowledgements had receipts");
            }
            () = self.outbound.ended() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use geminga_proto::id::{EntryId, LedgerId, Position};
    use geminga_proto::payload::Payload;

    fn delivery(consumer_id: u64, entry: u64, bytes: usize) -> Told {
        let entry = Delivery {
            position: Position::new(LedgerId(1), EntryId(entry)),
            redelivery_count: 0,
            acked_indexes: Bytes::new(),
            messages: 1,
            payload: Payload::new(Bytes::from_static(b"head"), Bytes::from(vec![0; bytes])),
            permit: crate::core::budget::EntryPermit::default(),
        };
        Told::Delivery { consumer_id, entries: vec![entry] }
    }

    #[test]
    fn small_deliveries_to_one_consumer_become_one_event() {
        let mut first = delivery(1, 1, 10);
        assert!(first.merge(delivery(1, 2, 10)).is_none());
        assert!(first.merge(delivery(2, 3, 10)).is_some());
        assert!(first.merge(delivery(1, 4, 600_000)).is_some());
        let response = Told::pack(vec![first]);
        let Some(Event::Delivery(delivered)) = &response.events[0].event else {
            panic!("{response:?}")
        };
        let entries: Vec<u64> = delivered.entries.iter().map(|it| it.entry_id).collect();
        assert_eq!((delivered.consumer_id, entries), (1, vec![1, 2]));
    }
}
