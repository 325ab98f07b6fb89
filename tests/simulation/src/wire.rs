//! What clients and brokers say to each other, and the two ends of a client's line.
//!
//! A line carries one producer or one consumer, as plain data of the core's API: what a front-end
//! would decode and encode.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_broker::core::api::{
    Ack, AckError, ConsumerSink, Delivery, Lookup, OpenProducer, OpenProducerError, ProducerOpened,
    ProducerSink, PublishError, Receipt, Subscribe, SubscribeError, TopicError,
};
use geminga_proto::id::{ConsumerId, Position, ProducerId};
use geminga_proto::topic_name::TopicName;
use tokio::sync::mpsc;

use crate::checker::durable;
use crate::network::{End, HostId, LineId, Place};
use crate::shared::Shared;

/// Events that wait for a client, and requests that wait for a broker.
const MAX_WAITING: usize = 100_000;

/// What a client asks.
#[derive(Debug)]
pub(crate) enum Frame {
    Lookup(TopicName),
    OpenProducer(OpenProducer),
    Publish {
        sequence_id: u64,
        entry: Bytes,
    },
    Subscribe(Subscribe),
    Flow {
        messages: u32,
        bytes: u64,
    },
    Ack(Ack),
    /// What each subscription has left to hand out or to be acknowledged.
    Backlog(TopicName),
    /// The orderly end: everything is settled first.
    Close,
}

/// One entry for a consumer.
#[derive(Debug)]
pub(crate) struct Delivered {
    pub position: Position,
    pub redelivery_count: u32,
    pub acked_indexes: Bytes,
    pub messages: u32,
    pub payload: Bytes,
    /// When the broker sent it.
    pub sent_us: u64,
}

/// What a broker answers.
#[derive(Debug)]
pub(crate) enum Event {
    Looked(Result<Lookup, TopicError>),
    ProducerOpened(Result<ProducerOpened, OpenProducerError>),
    Receipts(Vec<Receipt>),
    Refused {
        sequence_id: u64,
        error: PublishError,
    },
    Subscribed(Result<(), SubscribeError>),
    Delivered(Vec<Delivered>),
    AckReceipt {
        request_id: u64,
        result: Result<(), AckError>,
        sent_us: u64,
    },
    Backlog(Option<Vec<(String, u64)>>),
    ClosedByBroker(TopicError),
    Closed,
    /// The line broke.
    Broken,
}

/// The broker's end of a line: what the core pushes goes to the client.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub shared: Arc<Shared>,
    pub line: LineId,
    pub client: mpsc::Sender<Event>,
}

impl Outbound {
    pub fn push(&self, event: Event) {
        self.push_with(event, ());
    }

    /// `kept` is dropped when the event is there.
    fn push_with(&self, event: Event, kept: impl Send + 'static) {
        let client = self.client.clone();
        let arrive = move || {
            // A client that is gone wants nothing.
            drop(client.try_send(event));
            drop(kept);
        };
        self.shared.network.send(self.line, End::Called, Box::new(arrive));
    }
}

impl ProducerSink for Outbound {
    fn receipts(&self, _: ProducerId, receipts: &[Receipt]) {
        durable::check(&self.shared, receipts);
        self.push(Event::Receipts(receipts.to_vec()));
    }

    fn refused(&self, _: ProducerId, sequence_id: u64, error: &PublishError) {
        self.push(Event::Refused { sequence_id, error: error.clone() });
    }

    fn delayed(&self, _: ProducerId, _: &TopicError) {}

    fn closed(&self, _: ProducerId, error: &TopicError) {
        self.push(Event::ClosedByBroker(error.clone()));
    }
}

impl ConsumerSink for Outbound {
    fn deliver(&self, _: ConsumerId, deliveries: Vec<Delivery>) {
        let sent_us = self.shared.time.now_us();
        let mut permits = Vec::with_capacity(deliveries.len());
        let mut delivered = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            permits.push(delivery.permit);
            delivered.push(Delivered {
                position: delivery.position,
                redelivery_count: delivery.redelivery_count,
                acked_indexes: delivery.acked_indexes,
                messages: delivery.messages,
                payload: delivery.payload.into_bytes(),
                sent_us,
            });
        }
        self.push_with(Event::Delivered(delivered), permits);
    }

    fn ack_receipt(&self, _: ConsumerId, request_id: u64, result: Result<(), AckError>) {
        let sent_us = self.shared.time.now_us();
        self.push(Event::AckReceipt { request_id, result, sent_us });
    }

    fn active_changed(&self, _: ConsumerId, _: bool) {}

    fn closed(&self, _: ConsumerId, error: &TopicError) {
        self.push(Event::ClosedByBroker(error.clone()));
    }
}

/// The client's end of a line. Dropping it closes the line.
#[derive(Debug)]
pub(crate) struct Link {
    shared: Arc<Shared>,
    line: LineId,
    host: HostId,
    /// The broker in the life that answered.
    pub broker: Place,
    events: mpsc::Receiver<Event>,
    broken: bool,
}

impl Link {
    /// Opens a line to a broker. Whether anybody is there shows later.
    pub fn open(shared: &Arc<Shared>, client: Place, host: HostId) -> Self {
        let (sender, events) = mpsc::channel(MAX_WAITING);
        let told = sender.clone();
        let broken = move || drop(told.try_send(Event::Broken));
        let line = shared.network.open(client, host, Box::new(broken));
        let there = Arc::clone(shared);
        let arrive = move || match there.counters.of(host) {
            Some(counter) => counter.accept(line, sender),
            None => there.network.close(line, End::Called),
        };
        shared.network.send(line, End::Caller, Box::new(arrive));
        let life = shared.place(host).map_or(0, |place| place.life);
        Self {
            shared: Arc::clone(shared),
            line,
            host,
            broker: Place { host, life },
            events,
            broken: false,
        }
    }

    /// Sends a request.
    pub fn send(&self, frame: Frame) {
        let (line, host) = (self.line, self.host);
        let there = Arc::clone(&self.shared);
        let arrive = move || match there.counters.of(host) {
            Some(counter) => counter.take(line, frame),
            None => there.network.close(line, End::Called),
        };
        self.shared.network.send(line, End::Caller, Box::new(arrive));
    }

    /// What the broker says next. [`Event::Broken`] too if it says nothing for so long.
    pub async fn next(&mut self, patience: Duration) -> Event {
        match tokio::time::timeout(patience, self.events.recv()).await {
            Ok(Some(Event::Broken) | None) => {
                self.broken = true;
                Event::Broken
            }
            Ok(Some(event)) => event,
            Err(_) => Event::Broken,
        }
    }

    /// Whether [`Event::Broken`] meant that the line broke.
    pub fn is_broken(&self) -> bool {
        self.broken
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.network.close(self.line, End::Caller);
    }
}
