//! What consumers and administration do to a topic's subscriptions.
//!
//! Room in the state log is taken before the topic's lock, so that nothing waits under it.

use std::sync::Arc;

use geminga_proto::id::Position;
use geminga_proto::topic_name::check_subscription;
use tokio::sync::oneshot;

use crate::core::admin::{AdminError, ResetTo};
use crate::core::api::{
    Ack, AckError, ConsumerSink, InitialPosition, Subscribe, SubscribeError, SubscriptionPosition,
    TopicError,
};
use crate::core::bundle::state_log_error;
use crate::core::consumer::Consumer;
use crate::core::context::unavailable;
use crate::core::cursor::{CursorState, EntrySpan, Frontier};
use crate::core::dispatch::ConsumerKey;
use crate::core::state_log::{CursorId, Done, Room, StateLogError};
use crate::core::subscription::{ConsumerSpec, Subscription};
use crate::core::topic::log::Log;
use crate::core::topic::subscriptions::{AttachedConsumer, SubscriptionSlot};
use crate::core::topic::{State, Topic};

/// Who asks, in the words of [`Topic`]'s methods.
#[derive(Debug, Clone)]
pub struct ConsumerRef {
    /// The subscription.
    pub subscription: Arc<str>,
    /// Its cursor: a subscription of the same name that was created later is another one.
    pub cursor: CursorId,
    /// The consumer.
    pub key: ConsumerKey,
}

/// A channel for the outcome of a change, and the callback that fills it.
fn outcome() -> (Done, oneshot::Receiver<Result<(), StateLogError>>) {
    let (sender, receiver) = oneshot::channel();
    // Nobody listens if the caller was dropped meanwhile.
    let done: Done = Box::new(move |result| drop(sender.send(result)));
    (done, receiver)
}

async fn wait(receiver: oneshot::Receiver<Result<(), StateLogError>>) -> Result<(), TopicError> {
    let lost = || unavailable("the bundle's state log was dropped");
    receiver.await.map_err(|_| lost())?.map_err(state_log_error)
}

impl Log {
    fn frontier(&self, to: ResetTo, span: Option<EntrySpan>) -> Frontier {
        let (start, first_index) = self.start();
        let (position, index) = match (span, to) {
            // Unless it was trimmed since it was looked up.
            (Some(span), _) if span.first_index >= first_index => (span.position, span.first_index),
            (None, ResetTo::Latest) => self.tail(),
            _ => (start, first_index),
        };
        Frontier { index, position }
    }
}

impl State {
    fn slot(&mut self, consumer: &ConsumerRef) -> Option<&mut SubscriptionSlot> {
        let slot = self.subscriptions.get_mut(&consumer.subscription);
        slot.filter(|slot| slot.cursor == consumer.cursor)
    }
}

impl Topic {
    async fn room(&self) -> Result<Room, TopicError> {
        self.bundle.log.room(0).await.map_err(state_log_error)
    }

    /// Attaches a consumer, and creates the subscription if need be.
    ///
    /// # Errors
    /// [`SubscribeError`] says why not.
    pub async fn subscribe(
        &self,
        subscribe: &Subscribe,
        sink: &Arc<dyn ConsumerSink>,
    ) -> Result<Consumer, SubscribeError> {
        check_subscription(&subscribe.subscription)?;
        for _ in 0..8 {
            let waiting = {
                let mut state = self.state.lock();
                Self::refusal(&state)?;
                match state.subscriptions.get_mut(&subscribe.subscription) {
                    Some(slot) if slot.deleting => {
                        return Err(unavailable("the subscription is being deleted").into());
                    }
                    Some(slot) => match &mut slot.creating {
                        None => return self.attach(&mut state, subscribe, sink),
                        Some(waiters) => {
                            let (sender, receiver) = oneshot::channel();
                            waiters.push(sender);
                            Some(receiver)
                        }
                    },
                    None => None,
                }
            };
            match waiting {
                Some(receiver) => {
                    let lost = || unavailable("the topic was closed");
                    receiver.await.map_err(|_| lost())??;
                }
                None if !subscribe.create => {
                    return Err(SubscribeError::NotFound(subscribe.subscription.clone()));
                }
                None => {
                    let from = match subscribe.initial_position {
                        InitialPosition::Latest => ResetTo::Latest,
                        InitialPosition::Earliest => ResetTo::Earliest,
                    };
                    match self.create_subscription(&subscribe.subscription, from).await {
                        Ok(()) | Err(AdminError::SubscriptionExists(_)) => {}
                        Err(AdminError::Topic(error)) => return Err(error.into()),
                        Err(error) => return Err(unavailable(error).into()),
                    }
                }
            }
        }
        Err(unavailable("the subscription is created and deleted over and over").into())
    }

    fn attach(
        &self,
        state: &mut State,
        subscribe: &Subscribe,
        sink: &Arc<dyn ConsumerSink>,
    ) -> Result<Consumer, SubscribeError> {
        let Some(topic) = self.me.upgrade() else { return Err(TopicError::ShuttingDown.into()) };
        let (config, env) = (&self.context.config, &self.context.env);
        let State { log, subscriptions, traffic, last_used, .. } = state;
        *last_used = env.clock.monotonic();
        let missing = || SubscribeError::NotFound(subscribe.subscription.clone());
        let slot = subscriptions.get_mut(&subscribe.subscription).ok_or_else(missing)?;
        if slot.consumers.len() >= config.max_consumers_per_subscription {
            let limit = config.max_consumers_per_subscription;
            let why = format!("the subscription has {limit} consumers, which is the limit");
            return Err(unavailable(why).into());
        }
        let name = if subscribe.consumer_name.is_empty() {
            format!("{:010x}", env.random.next_u64() >> 24)
        } else {
            subscribe.consumer_name.clone()
        };
        let spec = ConsumerSpec {
            name: name.clone(),
            priority: subscribe.priority,
            subscription_type: subscribe.subscription_type,
        };
        let mut commands = Vec::new();
        let key = slot.subscription.add_consumer(spec, &mut commands)?;
        slot.consumers.push(AttachedConsumer {
            key,
            id: subscribe.consumer_id,
            sink: Arc::clone(sink),
            connected_since_ms: env.clock.wall_ms(),
            properties: subscribe.properties.clone(),
        });
        self.execute(log, slot, traffic, &mut commands, None);
        self.context.metrics.consumers.inc();
        let subscription = Arc::clone(slot.subscription.name());
        let consumer = ConsumerRef { subscription, cursor: slot.cursor, key };
        Ok(Consumer::new(topic, consumer, name, subscribe.consumer_id, Arc::clone(sink)))
    }

    /// Creates a subscription, durably.
    ///
    /// # Errors
    /// [`AdminError::SubscriptionExists`], or why the topic can't be used.
    pub async fn create_subscription(&self, name: &str, from: ResetTo) -> Result<(), AdminError> {
        check_subscription(name)?;
        let span = self.span_of(from).await?;
        let room = self.room().await?;
        let (done, created) = {
            let mut state = self.state.lock();
            Self::refusal(&state)?;
            let config = &self.context.config;
            if state.subscriptions.slots.contains_key(name) {
                return Err(AdminError::SubscriptionExists(name.to_owned()));
            }
            if state.subscriptions.slots.len() >= config.max_subscriptions_per_topic {
                return Err(AdminError::TooManySubscriptions(config.max_subscriptions_per_topic));
            }
            let at = state.log.frontier(from, span);
            let (done, created) = outcome();
            let log = &self.bundle.log;
            let cursor = log
                .create_subscription(room, self.incarnation, name, at, done)
                .map_err(state_log_error)?;
            let (end, limits) = (state.log.end(), self.dispatch_limits());
            let subscription = Subscription::new(name, CursorState::new(at), end, limits);
            let mut slot = SubscriptionSlot::new(cursor, subscription);
            slot.creating = Some(Box::default());
            state.subscriptions.had_any = true;
            state.last_used = self.context.env.clock.monotonic();
            state.subscriptions.slots.insert(name.into(), Box::new(slot));
            (cursor, created)
        };
        // The creation goes on without its caller.
        let Some(topic) = self.me.upgrade() else { return Err(TopicError::ShuttingDown.into()) };
        let name: Arc<str> = name.into();
        let finish = async move {
            let result = wait(created).await;
            topic.subscription_created(&name, done, &result);
            result
        };
        let joined = self.context.runtime.spawn(finish).await;
        Ok(joined.map_err(unavailable)??)
    }

    fn subscription_created(&self, name: &str, cursor: CursorId, result: &Result<(), TopicError>) {
        let mut state = self.state.lock();
        let slots = &mut state.subscriptions.slots;
        let Some(slot) = slots.get_mut(name).filter(|slot| slot.cursor == cursor) else { return };
        for waiter in slot.creating.take().into_iter().flat_map(|waiters| *waiters) {
            // Nobody listens if the caller was dropped meanwhile.
            let _ = waiter.send(result.clone());
        }
        if result.is_err() {
            slots.remove(name);
        }
    }

    /// Detaches a consumer.
    pub fn detach(&self, consumer: &ConsumerRef) {
        let mut guard = self.state.lock();
        let State { log, subscriptions, traffic, last_used, .. } = &mut *guard;
        let slot = subscriptions.get_mut(&consumer.subscription);
        let Some(slot) = slot.filter(|slot| slot.cursor == consumer.cursor) else { return };
        if slot.take_consumer(consumer.key).is_none() {
            return;
        }
        *last_used = self.context.env.clock.monotonic();
        let mut commands = Vec::new();
        slot.subscription.remove_consumer(consumer.key, &mut commands);
        if slot.consumers.is_empty() {
            slot.ahead = None;
            slot.consumers.shrink_to_fit();
        }
        self.execute(log, slot, traffic, &mut commands, None);
        self.forget_read(log, subscriptions);
        self.context.metrics.consumers.dec();
    }

    /// Adds credit.
    pub fn flow(&self, consumer: &ConsumerRef, messages: u32, bytes: u64) {
        let mut guard = self.state.lock();
        let State { log, subscriptions, traffic, .. } = &mut *guard;
        let slot = subscriptions.get_mut(&consumer.subscription);
        let Some(slot) = slot.filter(|slot| slot.cursor == consumer.cursor) else { return };
        let mut commands = Vec::new();
        slot.subscription.flow(consumer.key, messages, bytes, &mut commands);
        self.execute(log, slot, traffic, &mut commands, None);
        self.forget_read(log, subscriptions);
    }

    /// Hands entries out again.
    pub fn redeliver(&self, consumer: &ConsumerRef, positions: &[Position]) {
        let mut guard = self.state.lock();
        let State { log, subscriptions, traffic, .. } = &mut *guard;
        let slot = subscriptions.get_mut(&consumer.subscription);
        let Some(slot) = slot.filter(|slot| slot.cursor == consumer.cursor) else { return };
        let mut commands = Vec::new();
        slot.subscription.redeliver(consumer.key, positions, &mut commands);
        self.execute(log, slot, traffic, &mut commands, None);
    }

    /// Acknowledges.
    ///
    /// # Errors
    /// [`AckError`]: nothing was acknowledged. Success is told by the receipt.
    pub async fn ack(&self, consumer: &ConsumerRef, ack: &Ack) -> Result<(), AckError> {
        let room = self.bundle.log.room_for(ack).await.map_err(state_log_error)?;
        if let Some((room, unknown)) = self.ack_known(consumer, ack, room)? {
            let spans = self.spans(&unknown).await?;
            self.ack_with(consumer, ack, &spans, room)?;
        }
        Ok(())
    }

    /// Acknowledges if all positions are known; else gives the room back with those that aren't.
    fn ack_known(
        &self,
        consumer: &ConsumerRef,
        ack: &Ack,
        room: Room,
    ) -> Result<Option<(Room, Vec<Position>)>, AckError> {
        let mut state = self.state.lock();
        Self::ack_refusal(&state)?;
        let slot = state.slot(consumer).ok_or(TopicError::Deleted)?;
        let unknown = slot.subscription.unknown_positions(ack);
        if !unknown.is_empty() {
            return Ok(Some((room, unknown)));
        }
        self.ack_under_lock(&mut state, consumer, ack, &[], room).map(|()| None)
    }

    fn ack_with(
        &self,
        consumer: &ConsumerRef,
        ack: &Ack,
        spans: &[EntrySpan],
        room: Room,
    ) -> Result<(), AckError> {
        let mut state = self.state.lock();
        Self::ack_refusal(&state)?;
        self.ack_under_lock(&mut state, consumer, ack, spans, room)
    }

    fn ack_under_lock(
        &self,
        state: &mut State,
        consumer: &ConsumerRef,
        ack: &Ack,
        spans: &[EntrySpan],
        room: Room,
    ) -> Result<(), AckError> {
        let State { log, subscriptions, traffic, last_used, .. } = state;
        let slot = subscriptions.get_mut(&consumer.subscription);
        let slot = slot.filter(|slot| slot.cursor == consumer.cursor).ok_or(TopicError::Deleted)?;
        let mut commands = Vec::new();
        slot.subscription.ack(consumer.key, ack, spans, &mut commands)?;
        *last_used = self.context.env.clock.monotonic();
        self.context.metrics.acks.inc();
        self.execute(log, slot, traffic, &mut commands, Some(room));
        Ok(())
    }

    /// Waits until all acknowledgements given so far have their receipts.
    ///
    /// # Errors
    /// Why some have not.
    pub async fn settle(&self, consumer: &ConsumerRef) -> Result<(), TopicError> {
        let room = self.room().await?;
        let (done, settled) = outcome();
        self.bundle.log.change(room, consumer.cursor, None, done);
        wait(settled).await
    }

    /// Deletes a subscription, durably. Its consumers are closed.
    ///
    /// # Errors
    /// [`AdminError::SubscriptionInUse`] if there are consumers other than `consumer` and it isn't
    /// forced.
    pub async fn delete_subscription(
        &self,
        name: &str,
        by: Option<ConsumerKey>,
        force: bool,
    ) -> Result<(), AdminError> {
        let room = self.room().await?;
        let (cursor, deleted) = {
            let mut state = self.state.lock();
            Self::refusal(&state)?;
            let missing = || AdminError::SubscriptionNotFound(name.to_owned());
            let slot = state.subscriptions.get_mut(name).ok_or_else(missing)?;
            if slot.creating.is_some() || slot.deleting {
                return Err(unavailable("the subscription is being created or deleted").into());
            }
            if !force && slot.consumers.iter().any(|consumer| Some(consumer.key) != by) {
                return Err(AdminError::SubscriptionInUse(name.to_owned()));
            }
            slot.deleting = true;
            let (done, deleted) = outcome();
            self.bundle.log.delete_subscription(room, slot.cursor, done);
            (slot.cursor, deleted)
        };
        let Some(topic) = self.me.upgrade() else { return Err(TopicError::ShuttingDown.into()) };
        let name: Arc<str> = name.into();
        let finish = async move {
            let result = wait(deleted).await;
            topic.subscription_deleted(&name, cursor, by, result.is_ok());
            result
        };
        let joined = self.context.runtime.spawn(finish).await;
        Ok(joined.map_err(unavailable)??)
    }

    fn subscription_deleted(
        &self,
        name: &str,
        cursor: CursorId,
        by: Option<ConsumerKey>,
        durable: bool,
    ) {
        let mut state = self.state.lock();
        let now = self.context.env.clock.monotonic();
        let slots = &mut state.subscriptions.slots;
        let Some(slot) = slots.get_mut(name).filter(|slot| slot.cursor == cursor) else { return };
        slot.deleting = false;
        if !durable {
            return;
        }
        // The one that asked knows.
        if let Some(by) = by
            && slot.take_consumer(by).is_some()
        {
            self.context.metrics.consumers.dec();
        }
        let closed = slot.close_consumers(&unavailable("the subscription was deleted"));
        slots.remove(name);
        self.context.metrics.consumers.dec_by(i64::try_from(closed).unwrap_or(i64::MAX));
        self.maintain(&mut state, now);
    }

    /// The entry that is meant, if one is.
    async fn span_of(&self, to: ResetTo) -> Result<Option<EntrySpan>, AdminError> {
        let ResetTo::Position(position) = to else { return Ok(None) };
        let found = self.spans(&[position]).await?;
        let invalid = AdminError::InvalidPosition(position);
        Ok(Some(found.into_iter().next().ok_or(invalid)?))
    }

    /// Moves a subscription's cursor, durably. Its consumers are closed and may come back.
    ///
    /// # Errors
    /// [`AdminError::InvalidPosition`] if the topic has no such entry.
    pub async fn reset_subscription(&self, name: &str, to: ResetTo) -> Result<(), AdminError> {
        let span = self.span_of(to).await?;
        let room = self.room().await?;
        let cursor = {
            let mut guard = self.state.lock();
            Self::refusal(&guard)?;
            let State { log, subscriptions, traffic, .. } = &mut *guard;
            let missing = || AdminError::SubscriptionNotFound(name.to_owned());
            let slot = subscriptions.get_mut(name).ok_or_else(missing)?;
            if slot.creating.is_some() || slot.deleting {
                return Err(unavailable("the subscription is being created or deleted").into());
            }
            let frontier = log.frontier(to, span);
            let mut commands = Vec::new();
            slot.subscription.reset(frontier, &mut commands);
            slot.ahead = None;
            let closed = slot.close_consumers(&unavailable("the subscription's cursor was moved"));
            let closed = i64::try_from(closed).unwrap_or(i64::MAX);
            self.context.metrics.consumers.dec_by(closed);
            self.execute(log, slot, traffic, &mut commands, Some(room));
            slot.cursor
        };
        let (done, settled) = outcome();
        let room = self.room().await?;
        self.bundle.log.change(room, cursor, None, done);
        Ok(wait(settled).await?)
    }

    /// Where a subscription stands.
    #[must_use]
    pub fn position(&self, consumer: &ConsumerRef) -> SubscriptionPosition {
        let mut guard = self.state.lock();
        let State { log, subscriptions, .. } = &mut *guard;
        let slot = subscriptions.get_mut(&consumer.subscription);
        let Some(slot) = slot.filter(|slot| slot.cursor == consumer.cursor) else {
            return SubscriptionPosition::default();
        };
        SubscriptionPosition {
            last_confirmed: log.last_confirmed,
            mark_delete: log.entry_before(slot.subscription.durable().position),
            backlog_messages: slot.subscription.backlog_messages(),
        }
    }
}
