//! [`Worker`]: the task of one consumer. It attaches the consumer, does its frames one after the
//! other, and detaches it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use geminga_proto::id::ConsumerId;
use geminga_proto::v1;
use geminga_proto::v1::ErrorCode;
use tokio::sync::Notify;
use v1::consume_event::Event;

use crate::core::api::{AckError, ConsumerSink, Delivery, Subscribe, TopicError};
use crate::core::broker::{Broker, Consumer};
use crate::frontend::grpc::consume::Told;
use crate::frontend::grpc::consume::mailbox::Mailbox;
use crate::frontend::grpc::outbound::Outbound;
use crate::frontend::grpc::{convert, error};

/// What a consumer is asked to do.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Flow { messages: u32, bytes: u64 },
    Ack(v1::Acknowledge),
    Redeliver(v1::Redeliver),
    Position { request_id: u64 },
    Unsubscribe,
    Close,
    ShutDown,
}

/// What the core calls.
#[derive(Debug)]
struct Sink {
    outbound: Arc<Outbound<Told>>,
    /// Bytes of entries delivered since the start. Written by the core, read by the task.
    delivered_bytes: AtomicU64,
    /// Set once, when the core has closed the consumer.
    closed: AtomicBool,
    wake: Notify,
}

impl Sink {
    fn tell(&self, event: Event) {
        self.outbound.push(Told::Other(event));
    }

    async fn closed(&self) {
        loop {
            let wake = self.wake.notified();
            if self.closed.load(Ordering::Acquire) {
                return;
            }
            wake.await;
        }
    }
}

impl ConsumerSink for Sink {
    fn deliver(&self, consumer: ConsumerId, deliveries: Vec<Delivery>) {
        let bytes: u64 = deliveries.iter().map(|it| it.payload.len() as u64).sum();
        self.delivered_bytes.fetch_add(bytes, Ordering::AcqRel);
        self.outbound.push(Told::Delivery { consumer_id: consumer.0, entries: deliveries });
    }

    fn ack_receipt(&self, consumer: ConsumerId, request_id: u64, result: Result<(), AckError>) {
        let error = result.err().map(|error| error::ack(&error));
        let receipt = v1::AckReceipt { consumer_id: consumer.0, request_id, error };
        self.tell(Event::AckReceipt(receipt));
    }

    fn active_changed(&self, consumer: ConsumerId, active: bool) {
        self.tell(Event::ActiveChange(v1::ActiveChange { consumer_id: consumer.0, active }));
    }

    fn closed(&self, consumer: ConsumerId, error: &TopicError) {
        let error = Some(error::topic(error));
        self.tell(Event::Closed(v1::ConsumerClosed { consumer_id: consumer.0, error }));
        self.closed.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}

/// What a client hears that sends without waiting for answers.
fn too_much() -> v1::Error {
    let message = "more requests of the consumer wait than a client may have under way";
    error::refusal(ErrorCode::FlowControl, message)
}

/// The task's state.
pub(super) struct Worker {
    consumer_id: u64,
    sink: Arc<Sink>,
    granted_bytes: u64,
    credit_limit_bytes: u64,
}

impl Worker {
    pub(super) fn new(
        consumer_id: u64,
        outbound: Arc<Outbound<Told>>,
        credit_limit_bytes: u64,
    ) -> Self {
        let sink = Sink {
            outbound,
            delivered_bytes: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            wake: Notify::new(),
        };
        Self { consumer_id, sink: Arc::new(sink), granted_bytes: 0, credit_limit_bytes }
    }

    /// Attaches the consumer and serves it until it is closed, or nobody can ask any more.
    pub(super) async fn run(mut self, broker: Broker, subscribe: Subscribe, mailbox: Arc<Mailbox>) {
        let consumer_id = self.consumer_id;
        let sink = Arc::clone(&self.sink);
        let subscribing = broker.subscribe(subscribe, Arc::clone(&sink) as _);
        let subscribed = tokio::select! {
            subscribed = subscribing => subscribed.map_err(|error| error::subscribe(&error)),
            () = mailbox.overfull() => Err(too_much()),
        };
        let consumer = match subscribed {
            Ok(consumer) => consumer,
            Err(error) => {
                let error = Some(error);
                let refused = v1::Subscribed { consumer_id, error, ..v1::Subscribed::default() };
                sink.tell(Event::Subscribed(refused));
                return;
            }
        };
        let consumer_name = consumer.name().to_owned();
        sink.tell(Event::Subscribed(v1::Subscribed { consumer_id, error: None, consumer_name }));
        let closing = loop {
            let request = tokio::select! {
                () = sink.closed() => return,
                () = mailbox.overfull() => return self.tell_closed(Some(too_much())),
                request = mailbox.next() => request,
            };
            match request {
                None => return,
                Some(closing @ (Request::Unsubscribe | Request::Close | Request::ShutDown)) => {
                    break closing;
                }
                Some(request) => {
                    let served = tokio::select! {
                        served = self.serve(&consumer, request) => served,
                        () = mailbox.overfull() => Err(too_much()),
                    };
                    if let Err(error) = served {
                        self.tell_closed(Some(error));
                        return;
                    }
                }
            }
        };
        let error = match closing {
            Request::Unsubscribe => {
                consumer.unsubscribe().await.err().map(|error| error::subscribe(&error))
            }
            Request::ShutDown => {
                consumer.close().await;
                Some(error::topic(&TopicError::ShuttingDown))
            }
            _ => {
                consumer.close().await;
                None
            }
        };
        self.tell_closed(error);
    }

    fn tell_closed(&self, error: Option<v1::Error>) {
        let consumer_id = self.consumer_id;
        self.sink.tell(Event::Closed(v1::ConsumerClosed { consumer_id, error }));
    }

    /// Does what was asked. An error closes the consumer.
    async fn serve(&mut self, consumer: &Consumer, request: Request) -> Result<(), v1::Error> {
        match request {
            Request::Flow { messages, bytes } => {
                self.granted_bytes = self.granted_bytes.saturating_add(bytes);
                let delivered = self.sink.delivered_bytes.load(Ordering::Acquire);
                let outstanding = self.granted_bytes.saturating_sub(delivered);
                if outstanding > self.credit_limit_bytes {
                    let limit = self.credit_limit_bytes;
                    let message = format!("a consumer may grant at most {limit} bytes");
                    return Err(error::refusal(ErrorCode::FlowControl, message));
                }
                consumer.flow(messages, bytes);
                Ok(())
            }
            Request::Ack(ack) => {
                let request_id = ack.request_id;
                match convert::ack(ack) {
                    Ok(ack) => consumer.ack(ack).await,
                    Err(error) if request_id != 0 => {
                        let (consumer_id, error) = (self.consumer_id, Some(error));
                        let receipt = v1::AckReceipt { consumer_id, request_id, error };
                        self.sink.tell(Event::AckReceipt(receipt));
                    }
                    Err(error) => return Err(error),
                }
                Ok(())
            }
            Request::Redeliver(redeliver) => {
                consumer.redeliver(&convert::redeliver(&redeliver)?);
                Ok(())
            }
            Request::Position { request_id } => {
                let at = consumer.position();
                let position = convert::subscription_position(self.consumer_id, request_id, at);
                self.sink.tell(Event::Position(position));
                Ok(())
            }
            // The caller has taken these out.
            Request::Unsubscribe | Request::Close | Request::ShutDown => Ok(()),
        }
    }
}
