//! [`Consumer`]: a front-end's handle of a consumer that is attached to a subscription.

use std::sync::Arc;

use geminga_proto::id::{ConsumerId, Position};

use crate::core::admin::AdminError;
use crate::core::api::{Ack, ConsumerSink, SubscribeError, SubscriptionPosition};
use crate::core::context::unavailable;
use crate::core::topic::{ConsumerRef, Topic};

/// An attached consumer. Dropping it detaches it; what it holds unacknowledged is redelivered to
/// others.
#[derive(Debug)]
pub struct Consumer {
    topic: Arc<Topic>,
    consumer: ConsumerRef,
    name: String,
    id: ConsumerId,
    sink: Arc<dyn ConsumerSink>,
}

impl Consumer {
    pub(super) fn new(
        topic: Arc<Topic>,
        consumer: ConsumerRef,
        name: String,
        id: ConsumerId,
        sink: Arc<dyn ConsumerSink>,
    ) -> Self {
        Self { topic, consumer, name, id, sink }
    }

    /// Its name: the one it asked for, or the one the broker made.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds credit.
    pub fn flow(&self, messages: u32, bytes: u64) {
        self.topic.flow(&self.consumer, messages, bytes);
    }

    /// Acknowledges. With a request id, the sink hears a receipt once it is durable. Waits only
    /// while the bundle's state log has no room, or for the storage if something is acknowledged
    /// that was not handed out since the topic was loaded.
    pub async fn ack(&self, ack: Ack) {
        if let Err(error) = self.topic.ack(&self.consumer, &ack).await
            && ack.request_id != 0
        {
            self.sink.ack_receipt(self.id, ack.request_id, Err(error));
        }
    }

    /// Asks for entries it holds to be delivered again; none named: all it holds.
    pub fn redeliver(&self, positions: &[Position]) {
        self.topic.redeliver(&self.consumer, positions);
    }

    /// Deletes the subscription, durably, and detaches.
    ///
    /// # Errors
    /// [`SubscribeError::Busy`] while other consumers are attached.
    pub async fn unsubscribe(&self) -> Result<(), SubscribeError> {
        let (name, by) = (&self.consumer.subscription, Some(self.consumer.key));
        match self.topic.delete_subscription(name, by, false).await {
            Ok(()) => Ok(()),
            Err(AdminError::Topic(error)) => Err(error.into()),
            Err(AdminError::SubscriptionInUse(name)) => Err(SubscribeError::Busy(name)),
            Err(AdminError::SubscriptionNotFound(name)) => Err(SubscribeError::NotFound(name)),
            Err(error) => Err(unavailable(error).into()),
        }
    }

    /// Where the subscription stands.
    #[must_use]
    pub fn position(&self) -> SubscriptionPosition {
        self.topic.position(&self.consumer)
    }

    /// Detaches, after the acknowledgements under way have their receipts.
    pub async fn close(self) {
        if let Err(error) = self.topic.settle(&self.consumer).await {
            // Each receipt that is missing was reported by itself.
            tracing::debug!(%error, consumer = self.name, "closed with unsettled acknowledgements");
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.topic.detach(&self.consumer);
    }
}
