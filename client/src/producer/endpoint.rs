//! A producer's session: how it is opened, what the broker says in it, and what its end means.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geminga_proto::id::{EntryId, LedgerId, MessageIndex, Position};
use geminga_proto::topic_name::TopicName;
use geminga_proto::v1;
use tokio::sync::{Notify, oneshot};

use super::shared::{Session, Shared, close_frame, send_error};
use crate::client::ClientInner;
use crate::completion::EntryReceipt;
use crate::error::{BrokerError, ClientError, SendError};
use crate::link::Sink;
use crate::lookup::Located;
use crate::resend::Answered;
use crate::session::{self, Endpoint};

impl Endpoint for Shared {
    const BUSY: v1::ErrorCode = v1::ErrorCode::ProducerBusy;

    fn client(&self) -> &Arc<ClientInner> {
        &self.client
    }

    fn topic(&self) -> &TopicName {
        &self.topic
    }

    fn label(&self) -> String {
        format!("producer {:?} on {}", self.name(), self.topic)
    }

    fn wake(&self) -> &Notify {
        &self.wake
    }

    fn on_timer(&self) -> Option<Duration> {
        let now = self.client.env.clock.monotonic();
        let (job, leaving, next) = {
            let mut state = self.state.lock();
            let due = state.seal_due || state.batch_deadline.is_some_and(|at| at <= now);
            let mut job = if due { self.seal(&mut state) } else { None };
            let expired = state.queue.expire(now).into_iter();
            // Without a timeout nothing has a deadline.
            let after = self.config.send_timeout.unwrap_or_default();
            let last = state.last_error.as_ref().map(ToString::to_string);
            let failed = expired
                .map(|pending| (pending, Err(SendError::Timeout { after, last: last.clone() })));
            let leaving = state.leave(failed.collect());
            if self.is_stranded(&state) {
                job = self.seal(&mut state);
            }
            let deadline = state.queue.next_deadline();
            state.timer_armed = deadline.is_some();
            let next = match (deadline, state.batch_deadline) {
                (Some(one), Some(other)) => Some(one.min(other)),
                (one, other) => one.or(other),
            };
            (job, leaving, next)
        };
        self.encode(job);
        self.resolve(leaving);
        next.map(|at| at.saturating_sub(now))
    }

    fn over(&self) -> Option<ClientError> {
        let state = self.state.lock();
        let drained = state.closing && state.is_settled();
        state.end.clone().or_else(|| drained.then_some(ClientError::Closed))
    }

    fn is_closing(&self) -> bool {
        self.state.lock().closing
    }

    fn needs_session(&self) -> bool {
        matches!(self.state.lock().session, Session::None)
    }

    fn take_progress(&self) -> bool {
        std::mem::take(&mut self.state.lock().progress)
    }

    async fn open_session(self: Arc<Self>, at: Located) -> Result<(), ClientError> {
        let link = at.connection.produce().await?;
        let id = self.client.next_id();
        let (reply, answer) = oneshot::channel();
        {
            let (link, at) = (Arc::clone(&link), at.clone());
            self.state.lock().session = Session::Opening { id, link, at, reply };
        }
        link.register(id, Arc::clone(&self) as _)?;
        let properties = self.config.properties.iter().cloned();
        let properties = properties.map(|(key, value)| v1::Property { key, value }).collect();
        let open = v1::OpenProducer {
            producer_id: id,
            topic: self.topic.to_string(),
            // After the first session, the name that the broker made.
            producer_name: self.name().to_string(),
            properties,
        };
        link.push(v1::produce_frame::Frame::Open(open));
        session::opened(answer, &at, self.client.operation_timeout).await
    }

    fn open_at(&self) -> Option<(u64, Located)> {
        self.state.lock().session.open_at()
    }

    fn give_up(&self, session_id: u64, error: ClientError) {
        self.on_session_over(session_id, |_| error);
    }

    fn leave(&self) {
        self.end_session();
    }

    fn take_ended(&self) -> Option<ClientError> {
        self.state.lock().ended.take()
    }

    fn no_session(&self, error: &ClientError) {
        self.state.lock().last_error = Some(error.clone());
    }

    fn finish(&self, error: &ClientError) {
        self.end_session();
        let (job, leaving) = {
            let mut state = self.state.lock();
            state.closing = true;
            state.end.get_or_insert_with(|| error.clone());
            // What is gathered gets a slot only to be failed with the others.
            let job = self.seal(&mut state);
            let pending = state.queue.drain().into_iter();
            let error = send_error(error.clone());
            let failed = pending.map(|pending| (pending, Err(error.clone())));
            (job, state.leave(failed.collect()))
        };
        drop(job);
        self.resolve(leaving);
        self.room_messages.close();
        self.room_bytes.close();
        self.state.lock().done = true;
        self.told.notify_waiters();
    }
}

impl Sink<v1::produce_result::Result> for Shared {
    fn event(&self, id: u64, event: v1::produce_result::Result) {
        use v1::produce_result::Result::{Closed, Delayed, Opened, Receipts, SendFailed};
        match event {
            Opened(opened) => self.on_opened(id, opened),
            Receipts(receipts) => self.on_receipts(id, &receipts.receipts),
            SendFailed(failed) => self.on_send_failed(id, failed),
            Delayed(delayed) => self.on_delayed(id, delayed),
            Closed(closed) => {
                let error = closed.error.map(BrokerError::from_wire);
                self.on_session_over(id, |url| match error {
                    Some(error) => ClientError::Broker(error),
                    None => ClientError::Disconnected {
                        url: url.to_owned(),
                        why: "the broker closed the producer".to_owned(),
                    },
                });
            }
        }
    }

    fn lost(&self, id: u64, error: &ClientError) {
        self.on_session_over(id, |_| error.clone());
    }

    fn is_waiting(&self, id: u64) -> bool {
        let state = self.state.lock();
        let current = state.session.id() == Some(id);
        current && (state.session.is_opening() || state.queue.is_answer_due())
    }
}

impl Shared {
    fn on_opened(&self, id: u64, opened: v1::ProducerOpened) {
        if let Some(error) = opened.error {
            let error = BrokerError::from_wire(error);
            self.on_session_over(id, |_| ClientError::Broker(error));
            return;
        }
        let mut state = self.state.lock();
        if state.session.id() != Some(id) {
            return;
        }
        match std::mem::replace(&mut state.session, Session::None) {
            Session::Opening { id, link, at, reply } => {
                let limit = at.connection.info().max_message_bytes as usize;
                self.max_message_bytes.store(limit, Ordering::Relaxed);
                if !opened.producer_name.is_empty() {
                    state.name = opened.producer_name.into();
                }
                state.session = Session::Open { id, link, at };
                state.queue.session_opened(opened.credit_bytes);
                Self::pump(&mut state);
                drop(state);
                // The driver may have stopped waiting; it will see the session.
                let _ = reply.send(Ok(()));
            }
            // A second answer changes nothing.
            other => state.session = other,
        }
    }

    fn on_receipts(&self, id: u64, receipts: &[v1::Receipt]) {
        let mut done = Vec::with_capacity(receipts.len());
        let mut out_of_order = None;
        let (job, leaving) = {
            let mut state = self.state.lock();
            if state.session.id() != Some(id) {
                return;
            }
            for receipt in receipts {
                match state.queue.answered(receipt.sequence_id) {
                    Answered::Entry(pending) => {
                        let position =
                            Position::new(LedgerId(receipt.ledger_id), EntryId(receipt.entry_id));
                        let stored = EntryReceipt {
                            position,
                            first_index: MessageIndex(receipt.index),
                            first_sequence: pending.first_sequence,
                            messages: pending.messages,
                        };
                        done.push((pending, Ok(stored)));
                        state.last_error = None;
                    }
                    Answered::Ignored => {}
                    Answered::OutOfOrder { expected } => {
                        out_of_order = Some((receipt.sequence_id, expected));
                        break;
                    }
                }
            }
            state.progress |= out_of_order.is_none();
            let leaving = state.leave(done);
            Self::pump(&mut state);
            (self.seal_if_idle(&mut state), leaving)
        };
        self.resolve(leaving);
        self.encode(job);
        if let Some((found, expected)) = out_of_order {
            self.distrust(id, found, expected);
        }
    }

    fn on_send_failed(&self, id: u64, failed: v1::SendFailed) {
        let error = BrokerError::from_wire(failed.error.unwrap_or_default());
        if error.ends_session() {
            // Nothing was stored, but the entries behind it may be refused likewise: sending all
            // of them again in a new session keeps their order.
            tracing::debug!(topic = %self.topic, %error, "the topic is not served here any more");
            self.on_session_over(id, |_| ClientError::Broker(error));
            return;
        }
        let mut done = Vec::new();
        let mut out_of_order = None;
        let (job, leaving) = {
            let mut state = self.state.lock();
            if state.session.id() != Some(id) {
                return;
            }
            match state.queue.refused(failed.sequence_id) {
                Answered::Entry(pending) => done.push((pending, Err(SendError::Refused(error)))),
                Answered::Ignored => {}
                Answered::OutOfOrder { expected } => out_of_order = Some(expected),
            }
            state.progress |= out_of_order.is_none();
            let leaving = state.leave(done);
            Self::pump(&mut state);
            (self.seal_if_idle(&mut state), leaving)
        };
        self.resolve(leaving);
        self.encode(job);
        if let Some(expected) = out_of_order {
            self.distrust(id, failed.sequence_id, expected);
        }
    }

    /// Remembers why there is no receipt, for those whose time runs out.
    fn on_delayed(&self, id: u64, delayed: v1::ProducerDelayed) {
        let error = BrokerError::from_wire(delayed.error.unwrap_or_default());
        let mut state = self.state.lock();
        if state.session.id() == Some(id) {
            tracing::debug!(topic = %self.topic, %error, "what was sent has to wait");
            state.last_error = Some(ClientError::Broker(error));
        }
    }

    /// An answer out of order: nothing that this session says can be relied on.
    fn distrust(&self, id: u64, found: u64, expected: Option<u64>) {
        tracing::warn!(
            topic = %self.topic, found, expected,
            "the broker answered out of order; reconnecting and sending again"
        );
        self.on_session_over(id, |url| ClientError::Disconnected {
            url: url.to_owned(),
            why: "the broker answered out of order".to_owned(),
        });
    }

    /// The session is over; the driver makes the next one.
    fn on_session_over(&self, id: u64, error: impl FnOnce(&str) -> ClientError) {
        let session = {
            let mut state = self.state.lock();
            if state.session.id() != Some(id) {
                return;
            }
            state.queue.session_ended();
            std::mem::replace(&mut state.session, Session::None)
        };
        if let Some((error, at)) = session.end(close_frame, error) {
            tracing::debug!(topic = %self.topic, %error, "a producer's session is over");
            self.client.directory.failed(&at.owner, &error);
            self.session_error(error);
        }
        self.wake.notify_one();
    }

    /// Remembers why a session ended, and for good if no reconnect can mend it.
    fn session_error(&self, error: ClientError) {
        let mut state = self.state.lock();
        if !error.is_retryable() && error != ClientError::Closed && state.end.is_none() {
            state.end = Some(error.clone());
        }
        state.last_error = Some(error.clone());
        state.ended = Some(error);
    }
}
