//! [`Producer`]: a front-end's handle of a producer that is connected to a topic.

use std::sync::Arc;

use bytes::Bytes;
use geminga_proto::id::ProducerId;

use crate::core::api::ProducerSink;
use crate::core::budget::BytePermit;
use crate::core::topic::Topic;

/// An open producer. Dropping it detaches it; receipts of entries under way are then lost, the
/// entries are not.
#[derive(Debug)]
pub struct Producer {
    topic: Arc<Topic>,
    number: u64,
    id: ProducerId,
    sink: Arc<dyn ProducerSink>,
}

impl Producer {
    pub(super) fn new(
        topic: Arc<Topic>,
        number: u64,
        id: ProducerId,
        sink: Arc<dyn ProducerSink>,
    ) -> Self {
        Self { topic, number, id, sink }
    }

    /// Publishes an entry. What comes of it, the sink hears: receipts strictly in the order of
    /// these calls. The entry's bytes are in `permit`.
    pub fn publish(&self, sequence_id: u64, entry: Bytes, permit: BytePermit) {
        if let Err(error) = self.topic.publish(self.number, sequence_id, entry, permit) {
            self.topic.metrics().entries_refused.inc();
            self.sink.refused(self.id, sequence_id, &error);
        }
    }

    /// Waits until every entry has its outcome, then detaches.
    pub async fn close(self) {
        if let Some(idle) = self.topic.when_producer_idle(self.number) {
            // An error means that the topic has closed; the sink was told.
            let _ = idle.await;
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.topic.close_producer(self.number);
    }
}
