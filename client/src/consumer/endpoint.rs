//! A consumer's session: how it is opened, what the broker says in it, and what its end means.

use std::sync::Arc;
use std::time::Duration;

use geminga_proto::id::{EntryId, LedgerId, Position};
use geminga_proto::topic_name::TopicName;
use geminga_proto::v1;
use tokio::sync::{Notify, oneshot};
use v1::consume_event::Event;
use v1::consume_frame::Frame;

use super::requests::ack_frame;
use super::shared::{Closing, Inbox, Session, Shared, consumer_error};
use super::{InitialPosition, SubscriptionPosition};
use crate::client::ClientInner;
use crate::error::{BrokerError, ClientError, ConsumerError};
use crate::link::Sink;
use crate::lookup::Located;
use crate::session::{self, Endpoint};

impl Endpoint for Shared {
    const BUSY: v1::ErrorCode = v1::ErrorCode::ConsumerBusy;

    fn client(&self) -> &Arc<ClientInner> {
        &self.client
    }

    fn topic(&self) -> &TopicName {
        &self.topic
    }

    fn label(&self) -> String {
        format!("consumer of {:?} on {}", self.config.subscription, self.topic)
    }

    fn wake(&self) -> &Notify {
        &self.wake
    }

    fn on_timer(&self) -> Option<Duration> {
        self.go_on_closing();
        let now = self.now();
        let mut acks = self.acks.lock();
        if acks.deadline.is_some_and(|at| at <= now) {
            acks.deadline = None;
            self.send_acks(&mut acks);
        }
        self.send_nacks(&mut acks);
        let nacks = acks.nacks.next_due();
        // What is due and can't be sent now is sent when a receipt or a session comes.
        let nacks = nacks.filter(|at| *at > now);
        let next = [acks.deadline, nacks].into_iter().flatten().min();
        let next = next.map(|at| at.saturating_sub(now));
        drop(acks);
        [next, self.close_wait()].into_iter().flatten().min()
    }

    fn over(&self) -> Option<ClientError> {
        let inbox = self.inbox.lock();
        let closed = inbox.closing == Closing::Done;
        inbox.end.clone().or_else(|| closed.then_some(ClientError::Closed))
    }

    fn has_left_its_place(&self) -> bool {
        self.inbox.lock().left
    }

    fn is_closing(&self) -> bool {
        self.inbox.lock().closing != Closing::No
    }

    fn needs_session(&self) -> bool {
        matches!(self.inbox.lock().session, Session::None)
    }

    fn take_progress(&self) -> bool {
        std::mem::take(&mut self.inbox.lock().progress)
    }

    async fn open_session(self: Arc<Self>, at: Located) -> Result<(), ClientError> {
        let link = at.connection.consume().await?;
        let id = self.client.next_id();
        let (reply, answer) = oneshot::channel();
        let consumer_name = {
            let mut inbox = self.inbox.lock();
            let (link, at) = (Arc::clone(&link), at.clone());
            inbox.session = Session::Opening { id, link, at, reply };
            inbox.name.clone()
        };
        link.register(id, Arc::clone(&self) as _)?;
        link.push(Frame::Subscribe(self.subscribe_frame(id, consumer_name)));
        session::opened(answer, &at, self.client.operation_timeout).await
    }

    fn open_at(&self) -> Option<(u64, Located)> {
        self.inbox.lock().session.open_at()
    }

    fn give_up(&self, session_id: u64, error: ClientError) {
        self.on_session_over(session_id, |_| error);
    }

    fn leave(&self) {
        let (session, positions) = {
            let mut inbox = self.inbox.lock();
            Self::session_ended(&mut inbox)
        };
        session.leave(close_frame);
        for reply in positions {
            let _ = reply.send(Err(ConsumerError::Disconnected));
        }
    }

    fn take_ended(&self) -> Option<ClientError> {
        self.inbox.lock().ended.take()
    }

    fn no_session(&self, _: &ClientError) {
        // Nothing of a consumer has a time limit of its own that could tell it.
    }

    fn finish(&self, error: &ClientError) {
        self.leave();
        let (waiters, positions, end) = {
            let mut acks = self.acks.lock();
            let mut inbox = self.inbox.lock();
            let end = inbox.end.get_or_insert_with(|| error.clone()).clone();
            inbox.closing = Closing::Done;
            inbox.clear();
            acks.nacks.clear();
            (acks.tracker.drain(), std::mem::take(&mut inbox.positions), end)
        };
        let end = consumer_error(end);
        for waiter in waiters {
            // Whoever stopped waiting needs no answer.
            let _ = waiter.send(Err(end.clone()));
        }
        for reply in positions.into_values() {
            let _ = reply.send(Err(end.clone()));
        }
        self.inbox.lock().done = true;
        self.changed.notify_waiters();
        self.ack_room.notify_waiters();
        self.arrived.notify_waiters();
        self.arrived.notify_one();
    }
}

impl Sink<Event> for Shared {
    fn event(&self, id: u64, event: Event) {
        match event {
            Event::Subscribed(subscribed) => self.on_subscribed(id, subscribed),
            Event::Delivery(delivery) => self.on_delivery(id, delivery),
            Event::AckReceipt(receipt) => self.on_ack_receipt(id, receipt),
            Event::ActiveChange(change) => {
                let mut inbox = self.inbox.lock();
                if inbox.session.id() == Some(id) {
                    inbox.active = change.active;
                }
            }
            Event::Closed(closed) => self.on_closed(id, closed),
            Event::Position(position) => self.on_position(id, position),
        }
    }

    fn lost(&self, id: u64, error: &ClientError) {
        self.on_session_over(id, |_| error.clone());
    }

    fn is_waiting(&self, id: u64) -> bool {
        let acks = self.acks.lock();
        let inbox = self.inbox.lock();
        let asked = acks.tracker.is_receipt_due()
            || !inbox.positions.is_empty()
            || inbox.closing == Closing::Sent;
        inbox.session.id() == Some(id) && (inbox.session.is_opening() || asked)
    }
}

fn close_frame(consumer_id: u64) -> Frame {
    Frame::Close(v1::CloseConsumer { consumer_id })
}

fn position(at: Option<v1::EntryPosition>) -> Option<Position> {
    at.map(|at| Position::new(LedgerId(at.ledger_id), EntryId(at.entry_id)))
}

impl Shared {
    fn subscribe_frame(&self, consumer_id: u64, consumer_name: String) -> v1::Subscribe {
        let config = &self.config;
        let initial_position = match config.initial_position {
            InitialPosition::Latest => v1::InitialPosition::Latest,
            InitialPosition::Earliest => v1::InitialPosition::Earliest,
        };
        let properties = config.properties.iter().cloned();
        let properties = properties.map(|(key, value)| v1::Property { key, value }).collect();
        v1::Subscribe {
            consumer_id,
            topic: self.topic.to_string(),
            subscription: config.subscription.clone(),
            r#type: config.subscription_type.to_wire().into(),
            consumer_name,
            priority: config.priority,
            initial_position: initial_position.into(),
            create: config.create,
            properties,
        }
    }

    fn on_subscribed(&self, id: u64, subscribed: v1::Subscribed) {
        if let Some(error) = subscribed.error {
            let error = BrokerError::from_wire(error);
            self.on_session_over(id, |_| ClientError::Broker(error));
            return;
        }
        let mut acks = self.acks.lock();
        let reply = {
            let mut inbox = self.inbox.lock();
            if inbox.session.id() != Some(id) {
                return;
            }
            match std::mem::replace(&mut inbox.session, Session::None) {
                Session::Opening { id, link, at, reply } => {
                    if !subscribed.consumer_name.is_empty() {
                        inbox.name = subscribed.consumer_name;
                    }
                    inbox.session = Session::Open { id, link, at };
                    inbox.left = false;
                    // Acknowledgements go before the credit, so that what they cover isn't
                    // delivered again.
                    let groups = acks.tracker.groups_to_resend();
                    inbox.owed_receipt = !groups.is_empty();
                    for group in groups {
                        inbox.session.push(|consumer_id| ack_frame(consumer_id, group));
                    }
                    reply
                }
                // A second answer changes nothing.
                other => {
                    inbox.session = other;
                    return;
                }
            }
        };
        self.send_acks(&mut acks);
        drop(acks);
        self.inbox.lock().grant_all(&self.config);
        self.changed.notify_waiters();
        // The session's task may have stopped waiting; it will see the session.
        let _ = reply.send(Ok(()));
    }

    fn on_delivery(&self, id: u64, delivery: v1::Delivery) {
        let within_credit = {
            let mut inbox = self.inbox.lock();
            if inbox.session.id() != Some(id) {
                return;
            }
            inbox.deliver(delivery.entries)
        };
        self.arrived.notify_one();
        if !within_credit {
            tracing::warn!(
                topic = %self.topic, subscription = %self.config.subscription,
                "the broker delivered more than it had credit for; subscribing again"
            );
            self.on_session_over(id, |url| ClientError::Disconnected {
                url: url.to_owned(),
                why: "the broker delivered beyond its credit".to_owned(),
            });
        }
    }

    fn on_ack_receipt(&self, id: u64, receipt: v1::AckReceipt) {
        let error = receipt.error.map(BrokerError::from_wire);
        if let Some(error) = error.as_ref().filter(|error| error.ends_session()) {
            // Of unknown outcome: sent again in the next session.
            self.on_session_over(id, |_| ClientError::Broker(error.clone()));
            return;
        }
        let waiters = {
            let mut acks = self.acks.lock();
            {
                let mut inbox = self.inbox.lock();
                if inbox.session.id() != Some(id) {
                    return;
                }
                inbox.progress = true;
                inbox.owed_receipt = false;
            }
            let Some((group, waiters)) = acks.tracker.answered(receipt.request_id) else {
                return;
            };
            if let Some(error) = &error
                && waiters.is_empty()
            {
                tracing::warn!(
                    topic = %self.topic, subscription = %self.config.subscription, %error,
                    entries = group.positions.len(), "acknowledgements were refused"
                );
                let failure = ConsumerError::Refused(error.clone());
                self.inbox.lock().failure.get_or_insert(failure);
            }
            if acks.tracker.is_urgent() || !acks.tracker.has_room() || acks.deadline.is_none() {
                self.send_acks(&mut acks);
            }
            waiters
        };
        let result = error.map_or(Ok(()), |error| Err(ConsumerError::Refused(error)));
        for waiter in waiters {
            // Whoever stopped waiting needs no answer.
            let _ = waiter.send(result.clone());
        }
        self.ack_room.notify_waiters();
        // Closing, or an entry to hand back, may have waited for this.
        self.wake.notify_one();
    }

    fn on_position(&self, id: u64, answer: v1::Position) {
        let reply = {
            let mut inbox = self.inbox.lock();
            if inbox.session.id() != Some(id) {
                return;
            }
            inbox.positions.remove(&answer.request_id)
        };
        let result = match answer.error {
            Some(error) => Err(ConsumerError::Refused(BrokerError::from_wire(error))),
            None => Ok(SubscriptionPosition {
                last_confirmed: position(answer.last_confirmed),
                mark_delete: position(answer.mark_delete),
                backlog_messages: answer.backlog_messages,
            }),
        };
        if let Some(reply) = reply {
            // Whoever stopped waiting needs no answer.
            let _ = reply.send(result);
        }
    }

    fn on_closed(&self, id: u64, closed: v1::ConsumerClosed) {
        let error = closed.error.map(BrokerError::from_wire);
        {
            let mut inbox = self.inbox.lock();
            if inbox.session.id() == Some(id) && inbox.closing == Closing::Sent {
                if let Some(error) = error {
                    inbox.failure.get_or_insert(ConsumerError::Refused(error));
                }
                inbox.closing = Closing::Done;
                drop(inbox);
                self.wake.notify_one();
                return;
            }
        }
        self.on_session_over(id, |url| match error {
            Some(error) => ClientError::Broker(error),
            None => ClientError::Disconnected {
                url: url.to_owned(),
                why: "the broker closed the consumer".to_owned(),
            },
        });
    }

    /// The session is over; the session's task makes the next one.
    pub(super) fn on_session_over(&self, id: u64, error: impl FnOnce(&str) -> ClientError) {
        let (session, positions) = {
            let mut acks = self.acks.lock();
            let mut inbox = self.inbox.lock();
            if inbox.session.id() != Some(id) {
                return;
            }
            acks.nacks.clear();
            Self::session_ended(&mut inbox)
        };
        if let Some((error, at)) = session.end(close_frame, error) {
            tracing::debug!(topic = %self.topic, %error, "a consumer's session is over");
            let mut inbox = self.inbox.lock();
            if !inbox.left {
                self.client.directory.failed(&at.owner, &error);
            }
            if !error.is_retryable() && error != ClientError::Closed {
                inbox.end.get_or_insert_with(|| error.clone());
            }
            inbox.ended = Some(error);
        }
        for reply in positions {
            let _ = reply.send(Err(ConsumerError::Disconnected));
        }
        self.wake.notify_one();
    }

    fn session_ended(inbox: &mut Inbox) -> (Session, Vec<super::shared::PositionReply>) {
        let session = std::mem::replace(&mut inbox.session, Session::None);
        inbox.clear();
        if inbox.closing == Closing::Sent {
            // An unsubscription without an answer is asked for again; a close is done.
            inbox.closing = if inbox.unsubscribing {
                Closing::Asked { unsubscribe: true }
            } else {
                Closing::Done
            };
        }
        let positions = std::mem::take(&mut inbox.positions);
        (session, positions.into_values().collect())
    }
}
