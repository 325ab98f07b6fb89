//! [`Producers`]: the producers connected to a topic, with their credit. Lives under the topic's
//! lock.
//!
//! Invariant: a producer's receipts go out in the order in which it published.

use std::sync::Arc;

use geminga_proto::id::{MessageIndex, Position, ProducerId};
use tokio::sync::oneshot;

use crate::core::api::{OpenProducer, ProducerSink, Receipt, TopicError};
use crate::core::managed_ledger::queue::PendingEntry;
use crate::core::stats::PublisherStats;

/// A connected producer.
#[derive(Debug)]
pub struct ConnectedProducer {
    number: u64,
    id: ProducerId,
    name: Arc<str>,
    sink: Arc<dyn ProducerSink>,
    outstanding_bytes: u64,
    in_flight: u64,
    /// Receipts gathered and not sent yet.
    receipts: Vec<Receipt>,
    messages: u64,
    bytes: u64,
    connected_since_ms: u64,
    properties: Vec<(String, String)>,
    /// Told when nothing is in flight any more.
    idle: Option<oneshot::Sender<()>>,
}

/// Why an entry doesn't fit a producer's credit, or isn't a producer's at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overdrawn {
    /// The credit is used up.
    Credit,
    /// There is no such producer (any more).
    Gone,
}

/// The producers of a topic.
#[derive(Debug, Default)]
pub struct Producers {
    /// By number, rising.
    connected: Vec<ConnectedProducer>,
    next_number: u64,
    /// Index of the one that got the last receipt: the next one is usually its too.
    last: usize,
    /// Indexes of those that have receipts to be sent.
    touched: Vec<usize>,
}

impl Producers {
    /// True if a producer of that name is connected.
    #[must_use]
    pub fn is_taken(&self, name: &str) -> bool {
        self.connected.iter().any(|producer| &*producer.name == name)
    }

    /// How many are connected.
    #[must_use]
    pub fn len(&self) -> usize {
        self.connected.len()
    }

    /// True if none is connected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.connected.is_empty()
    }

    /// Connects a producer; answers its number.
    pub fn add(
        &mut self,
        open: OpenProducer,
        name: Arc<str>,
        sink: Arc<dyn ProducerSink>,
        now_ms: u64,
    ) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.connected.push(ConnectedProducer {
            number,
            id: open.producer_id,
            name,
            sink,
            outstanding_bytes: 0,
            in_flight: 0,
            receipts: Vec::new(),
            messages: 0,
            bytes: 0,
            connected_since_ms: now_ms,
            properties: open.properties,
            idle: None,
        });
        number
    }

    fn index(&self, number: u64) -> Option<usize> {
        self.connected.binary_search_by_key(&number, |producer| producer.number).ok()
    }

    /// Disconnects a producer. Its entries go on without it.
    pub fn remove(&mut self, number: u64) -> bool {
        let found = self.index(number);
        if let Some(index) = found {
            self.connected.remove(index);
            self.connected.shrink_to(self.connected.len() * 2);
        }
        found.is_some()
    }

    /// Takes an entry's bytes out of a producer's credit.
    ///
    /// # Errors
    /// [`Overdrawn`] if they are more than what is left.
    pub fn charge(&mut self, number: u64, bytes: u64, credit: u64) -> Result<(), Overdrawn> {
        let index = self.index(number).ok_or(Overdrawn::Gone)?;
        let producer = self.connected.get_mut(index).ok_or(Overdrawn::Gone)?;
        if producer.outstanding_bytes + bytes > credit {
            return Err(Overdrawn::Credit);
        }
        producer.outstanding_bytes += bytes;
        producer.in_flight += 1;
        Ok(())
    }

    /// An entry is confirmed at `position`. [`Self::flush`] sends the receipt, before anybody
    /// connects or disconnects.
    pub fn confirmed(&mut self, entry: &PendingEntry, position: Position) {
        let known = self.connected.get(self.last).map(|producer| producer.number);
        if known != Some(entry.producer) {
            let Some(index) = self.index(entry.producer) else { return };
            self.last = index;
        }
        let Some(producer) = self.connected.get_mut(self.last) else { return };
        let first_index: MessageIndex = entry.first_index;
        let sequence_id = entry.sequence_id;
        if producer.receipts.is_empty() {
            self.touched.push(self.last);
        }
        producer.receipts.push(Receipt { sequence_id, position, first_index });
        producer.outstanding_bytes -= u64::from(entry.entry_bytes);
        producer.in_flight -= 1;
        producer.messages += u64::from(entry.messages);
        producer.bytes += u64::from(entry.entry_bytes);
    }

    /// Sends the receipts gathered.
    pub fn flush(&mut self) {
        for index in self.touched.drain(..) {
            let Some(producer) = self.connected.get_mut(index) else { continue };
            producer.sink.receipts(producer.id, &producer.receipts);
            producer.receipts.clear();
            if producer.in_flight == 0
                && let Some(idle) = producer.idle.take()
            {
                // Nobody listens if the producer was dropped meanwhile.
                let _ = idle.send(());
            }
        }
    }

    /// Gives memory back that a burst needed.
    pub fn shrink(&mut self) {
        self.connected.iter_mut().for_each(|producer| producer.receipts.shrink_to_fit());
    }

    /// Tells when all of a producer's entries have their outcome; `None`: they have it already.
    pub fn when_idle(&mut self, number: u64) -> Option<oneshot::Receiver<()>> {
        let index = self.index(number)?;
        let producer = self.connected.get_mut(index)?;
        if producer.in_flight == 0 {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        producer.idle = Some(sender);
        Some(receiver)
    }

    /// Disconnects all.
    pub fn close(&mut self, error: &TopicError) -> usize {
        let closed = std::mem::take(&mut self.connected);
        closed.iter().for_each(|producer| producer.sink.closed(producer.id, error));
        closed.len()
    }

    /// Tells those that wait for receipts what they wait for.
    pub fn delayed(&self, why: &TopicError) {
        let waiting = self.connected.iter().filter(|producer| producer.in_flight > 0);
        waiting.for_each(|producer| producer.sink.delayed(producer.id, why));
    }

    /// Their statistics.
    #[must_use]
    pub fn stats(&self, credit_bytes: u64) -> Vec<PublisherStats> {
        let stats = |producer: &ConnectedProducer| PublisherStats {
            producer_id: producer.id,
            name: producer.name.to_string(),
            msg_in_counter: producer.messages,
            bytes_in_counter: producer.bytes,
            pending_bytes: producer.outstanding_bytes,
            credit_bytes,
            connected_since_ms: producer.connected_since_ms,
            properties: producer.properties.clone(),
        };
        self.connected.iter().map(stats).collect()
    }
}
