//! [`Subscriptions`]: the subscriptions of a loaded topic with the consumers attached to them.
//! Lives under the topic's lock; what a subscription decides, `topic::dispatch` executes.

use std::collections::BTreeMap;
use std::sync::Arc;

use geminga_proto::id::{ConsumerId, MessageIndex, Position};
use tokio::sync::oneshot;

use crate::core::api::{ConsumerSink, TopicError};
use crate::core::dispatch::ConsumerKey;
use crate::core::read_ahead::ReadAhead;
use crate::core::state_log::CursorId;
use crate::core::stats::{ConsumerStats, CursorStats, SubscriptionStats};
use crate::core::subscription::{Subscription, SubscriptionNumbers};
use crate::core::topic::log::Log;

/// A consumer's way out.
#[derive(Debug)]
pub struct AttachedConsumer {
    /// Its number in the subscription.
    pub key: ConsumerKey,
    /// Its client's number for it.
    pub id: ConsumerId,
    /// Where it hears.
    pub sink: Arc<dyn ConsumerSink>,
    /// When it connected.
    pub connected_since_ms: u64,
    /// As its client gave them.
    pub properties: Vec<(String, String)>,
}

/// Who waits for a subscription's creation to be durable.
pub type Waiters = Vec<oneshot::Sender<Result<(), TopicError>>>;

/// A subscription with its consumers.
#[derive(Debug)]
pub struct SubscriptionSlot {
    /// The cursor's id in the state log.
    pub cursor: CursorId,
    /// What is handed to whom.
    pub subscription: Subscription,
    /// By key, rising.
    pub consumers: Vec<AttachedConsumer>,
    /// Set until its creation is durable.
    pub creating: Option<Box<Waiters>>,
    /// Set while it is being deleted: nobody may attach.
    pub deleting: bool,
    /// Entries read ahead of what was asked for.
    pub ahead: Option<Box<ReadAhead>>,
}

impl SubscriptionSlot {
    /// A subscription without consumers.
    #[must_use]
    pub fn new(cursor: CursorId, subscription: Subscription) -> Self {
        let consumers = Vec::new();
        Self { cursor, subscription, consumers, creating: None, deleting: false, ahead: None }
    }

    /// A consumer by its number.
    #[must_use]
    pub fn consumer(&self, key: ConsumerKey) -> Option<&AttachedConsumer> {
        let index = self.consumers.binary_search_by_key(&key, |consumer| consumer.key).ok()?;
        self.consumers.get(index)
    }

    /// Takes a consumer out.
    pub fn take_consumer(&mut self, key: ConsumerKey) -> Option<AttachedConsumer> {
        let index = self.consumers.binary_search_by_key(&key, |consumer| consumer.key).ok()?;
        Some(self.consumers.remove(index))
    }

    /// Closes all consumers; the subscription is to be dropped, or has detached them itself.
    pub fn close_consumers(&mut self, error: &TopicError) -> usize {
        let closed = std::mem::take(&mut self.consumers);
        closed.iter().for_each(|consumer| consumer.sink.closed(consumer.id, error));
        closed.len()
    }

    /// Its statistics.
    #[must_use]
    pub fn stats(&self, log: &Log) -> SubscriptionStats {
        let numbers = self.subscription.numbers();
        let mark_delete = log.entry_before(numbers.durable.position);
        SubscriptionStats {
            subscription_type: numbers.subscription_type,
            msg_backlog: numbers.backlog_messages,
            backlog_bytes: log.bytes_after(mark_delete),
            unacked_messages: numbers.unacked_messages,
            msg_out_counter: numbers.delivered_messages,
            bytes_out_counter: numbers.delivered_bytes,
            msg_redelivered_counter: numbers.redelivered_messages,
            mark_delete,
            read_position: Some(numbers.read_from),
            individually_acked_messages: numbers.acked_beyond,
            active_consumer: self.active_name(&numbers),
            blocked_on: numbers.not_moving.to_string(),
            consumers: self.consumer_stats(&numbers),
        }
    }

    fn active_name(&self, numbers: &SubscriptionNumbers) -> Option<String> {
        let active = numbers.active?;
        let found = numbers.consumers.iter().find(|consumer| consumer.consumer == active)?;
        Some(found.name.clone())
    }

    fn consumer_stats(&self, numbers: &SubscriptionNumbers) -> Vec<ConsumerStats> {
        let stats = |consumer: &crate::core::subscription::ConsumerNumbers| {
            let attached = self.consumer(consumer.consumer);
            ConsumerStats {
                consumer_id: attached.map(|attached| attached.id).unwrap_or_default(),
                name: consumer.name.clone(),
                priority: consumer.priority,
                available_permits: consumer.credit_messages,
                available_bytes: consumer.credit_bytes,
                unacked_messages: consumer.unacked_messages,
                msg_out_counter: consumer.delivered_messages,
                bytes_out_counter: consumer.delivered_bytes,
                connected_since_ms: attached.map_or(0, |attached| attached.connected_since_ms),
                properties: attached.map(|a| a.properties.clone()).unwrap_or_default(),
            }
        };
        numbers.consumers.iter().map(stats).collect()
    }

    /// Its cursor's statistics.
    #[must_use]
    pub fn cursor_stats(&self, log: &Log) -> CursorStats {
        let numbers = self.subscription.numbers();
        CursorStats {
            mark_delete: log.entry_before(numbers.durable.position),
            read_position: Some(numbers.read_from),
            individually_acked_messages: numbers.acked_beyond,
        }
    }
}

/// The subscriptions of a topic.
#[derive(Debug, Default)]
pub struct Subscriptions {
    /// By name.
    pub slots: BTreeMap<Arc<str>, Box<SubscriptionSlot>>,
    /// Whether there ever was one.
    pub had_any: bool,
}

impl Subscriptions {
    /// A subscription.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut SubscriptionSlot> {
        self.slots.get_mut(name).map(|slot| &mut **slot)
    }

    /// Consumers attached.
    #[must_use]
    pub fn consumers(&self) -> usize {
        self.slots.values().map(|slot| slot.consumers.len()).sum()
    }

    /// True if somebody is attached.
    #[must_use]
    pub fn has_consumers(&self) -> bool {
        self.slots.values().any(|slot| !slot.consumers.is_empty())
    }

    /// The lowest entry that some consumer has still to read; `None`: there is no consumer.
    #[must_use]
    pub fn lowest_read(&self) -> Option<Position> {
        let attached = self.slots.values().filter(|slot| !slot.consumers.is_empty());
        attached.map(|slot| slot.subscription.read_from()).min()
    }

    /// True if all can leave the memory without losing anything.
    #[must_use]
    pub fn are_idle(&self) -> bool {
        let idle = |slot: &SubscriptionSlot| {
            slot.consumers.is_empty()
                && slot.creating.is_none()
                && !slot.deleting
                && slot.subscription.is_idle()
        };
        self.slots.values().all(|slot| idle(slot))
    }

    /// Everything before is durably acknowledged by all; the end of all indexes if there is none.
    #[must_use]
    pub fn consumed(&self) -> MessageIndex {
        let durable = self.slots.values().map(|slot| slot.subscription.durable_index());
        durable.min().unwrap_or(MessageIndex::MAX)
    }

    /// Closes all consumers and wakes all who wait.
    pub fn close(&mut self, error: &TopicError) -> usize {
        let mut closed = 0;
        for slot in self.slots.values_mut() {
            closed += slot.close_consumers(error);
            for waiter in slot.creating.take().into_iter().flat_map(|waiters| *waiters) {
                // Nobody listens if the caller was dropped meanwhile.
                let _ = waiter.send(Err(error.clone()));
            }
        }
        self.slots.clear();
        closed
    }
}
