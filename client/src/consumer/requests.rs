//! What a consumer asks of the broker besides messages: acknowledgements, redelivery, its
//! position, and to be closed.

use std::time::Duration;

use geminga_proto::id::Position;
use geminga_proto::v1;
use tokio::sync::oneshot;
use v1::consume_frame::Frame;

use super::SubscriptionPosition;
use super::acks::Group;
use super::shared::{Acks, Closing, Inbox, Session, Shared, consumer_error};
use crate::error::{ClientError, ConsumerError};
use crate::message::MessageId;

/// Positions of one Redeliver frame.
const REDELIVER_ENTRIES: usize = 1000;

/// Brings the subscription's position.
type PositionAnswer = oneshot::Receiver<Result<SubscriptionPosition, ConsumerError>>;

/// The frame of a group of acknowledgements.
pub(super) fn ack_frame(consumer_id: u64, group: Group) -> Frame {
    let Group { request_id, cumulative, positions } = group;
    Frame::Ack(v1::Acknowledge { consumer_id, request_id, cumulative, positions })
}

impl Shared {
    fn check_open(inbox: &Inbox) -> Result<(), ConsumerError> {
        match (&inbox.end, inbox.closing) {
            (Some(end), _) => Err(consumer_error(end.clone())),
            (None, Closing::No) => Ok(()),
            (None, _) => Err(ConsumerError::Closed),
        }
    }

    // ---- acknowledging

    /// Waits until acknowledgements have room, then takes one.
    async fn take_ack(
        &self,
        id: MessageId,
        cumulative: bool,
        mut waiter: Option<super::shared::AckReply>,
    ) -> Result<(), ConsumerError> {
        if cumulative && !self.config.subscription_type.is_ordered() {
            return Err(ConsumerError::CumulativeOnShared);
        }
        loop {
            let room = self.ack_room.notified();
            tokio::pin!(room);
            {
                let mut acks = self.acks.lock();
                Self::check_open(&self.inbox.lock())?;
                if cumulative || acks.tracker.has_room() {
                    if cumulative {
                        acks.tracker.ack_cumulative(id, waiter.take());
                    } else {
                        acks.tracker.ack(id, waiter.take());
                    }
                    self.after_ack(&mut acks);
                    return Ok(());
                }
                room.as_mut().enable();
            }
            room.await;
        }
    }

    /// Sends what must not wait, and sets the timer for the rest.
    fn after_ack(&self, acks: &mut Acks) {
        if acks.tracker.is_urgent() || !acks.tracker.has_room() {
            self.send_acks(acks);
        } else if acks.deadline.is_none() {
            acks.deadline = Some(self.now() + self.config.ack_group_delay);
            self.wake.notify_one();
        }
    }

    /// Sends what waits, as far as receipts are not owed for too much already.
    pub(super) fn send_acks(&self, acks: &mut Acks) {
        let inbox = self.inbox.lock();
        if !inbox.session.is_open() {
            // A new session sends it.
            return;
        }
        let groups = acks.tracker.take_groups();
        if groups.is_empty() {
            return;
        }
        for group in groups {
            inbox.session.push(|consumer_id| ack_frame(consumer_id, group));
        }
        if !acks.tracker.is_waiting() {
            acks.deadline = None;
        }
        self.ack_room.notify_waiters();
    }

    pub(super) async fn ack(&self, id: MessageId, cumulative: bool) -> Result<(), ConsumerError> {
        self.take_ack(id, cumulative, None).await
    }

    pub(super) async fn ack_with_receipt(
        &self,
        id: MessageId,
        cumulative: bool,
    ) -> Result<(), ConsumerError> {
        let (waiter, receipt) = oneshot::channel();
        self.take_ack(id, cumulative, Some(waiter)).await?;
        receipt.await.unwrap_or(Err(ConsumerError::Closed))
    }

    pub(super) async fn flush_acks(&self) -> Result<(), ConsumerError> {
        loop {
            let room = self.ack_room.notified();
            tokio::pin!(room);
            {
                let mut acks = self.acks.lock();
                self.send_acks(&mut acks);
                let mut inbox = self.inbox.lock();
                if acks.tracker.is_settled() {
                    return inbox.failure.take().map_or(Ok(()), Err);
                }
                if let Some(end) = &inbox.end {
                    return Err(consumer_error(end.clone()));
                }
                room.as_mut().enable();
            }
            room.await;
        }
    }

    // ---- handing back

    pub(super) fn nack(&self, position: Position) {
        let at = self.now() + self.config.nack_redelivery_delay;
        let mut acks = self.acks.lock();
        let before = acks.nacks.next_due();
        acks.nacks.add(position, at);
        if acks.nacks.next_due() != before {
            self.wake.notify_one();
        }
    }

    /// Asks for entries to be delivered again, once what of them is acknowledged has been sent.
    pub(super) fn send_nacks(&self, acks: &mut Acks) {
        let now = self.now();
        if acks.nacks.next_due().is_none_or(|at| at > now) {
            return;
        }
        self.send_acks(acks);
        let inbox = self.inbox.lock();
        let open = inbox.session.is_open();
        if !open || acks.tracker.is_waiting() {
            return;
        }
        for positions in acks.nacks.take_due(now).chunks(REDELIVER_ENTRIES) {
            let positions = positions
                .iter()
                .map(|at| v1::EntryPosition { ledger_id: at.ledger.0, entry_id: at.entry.0 });
            let positions = positions.collect();
            inbox
                .session
                .push(|consumer_id| Frame::Redeliver(v1::Redeliver { consumer_id, positions }));
        }
    }

    /// On an ordered subscription the session is left for a new one, since a delivery on its way
    /// doesn't tell whether it is from before: handed out ahead of what comes again, it would let
    /// a cumulative acknowledgement cover messages that nobody processed. Somebody else may take an
    /// exclusive subscription meanwhile; that it is busy is final then, once it was so for the
    /// operation timeout.
    pub(super) fn redeliver_all(&self) -> Result<(), ConsumerError> {
        let session_id = {
            let mut open = self.open.lock();
            let mut acks = self.acks.lock();
            self.send_acks(&mut acks);
            acks.nacks.clear();
            let mut inbox = self.inbox.lock();
            Self::check_open(&inbox)?;
            if !self.config.subscription_type.is_ordered() {
                // Without a session there is nothing to ask for: the next one delivers it all
                // again.
                inbox.session.push(|consumer_id| {
                    Frame::Redeliver(v1::Redeliver { consumer_id, positions: Vec::new() })
                });
                self.drop_received(&mut open, &mut inbox);
                return Ok(());
            }
            let id = match &inbox.session {
                Session::Open { id, .. } => *id,
                Session::None | Session::Opening { .. } => return Ok(()),
            };
            inbox.left = true;
            id
        };
        self.on_session_over(session_id, |url| ClientError::Disconnected {
            url: url.to_owned(),
            why: "what is unacknowledged was asked for again".to_owned(),
        });
        Ok(())
    }

    // ---- position

    pub(super) async fn position(&self) -> Result<SubscriptionPosition, ConsumerError> {
        let after = self.client.operation_timeout;
        match tokio::time::timeout(after, self.ask_position()).await {
            Ok(result) => result,
            Err(_) => Err(ConsumerError::Timeout { after }),
        }
    }

    async fn ask_position(&self) -> Result<SubscriptionPosition, ConsumerError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.try_ask_position()? {
                None => changed.await,
                Some(answer) => match answer.await {
                    // Asked again in the next session.
                    Ok(Err(ConsumerError::Disconnected)) => {}
                    Ok(result) => return result,
                    Err(_) => return Err(ConsumerError::Closed),
                },
            }
        }
    }

    /// The answer to come, if it could be asked for.
    fn try_ask_position(&self) -> Result<Option<PositionAnswer>, ConsumerError> {
        let mut inbox = self.inbox.lock();
        Self::check_open(&inbox)?;
        let request_id = inbox.next_request;
        let asked = inbox
            .session
            .push(|consumer_id| Frame::GetPosition(v1::GetPosition { consumer_id, request_id }));
        if !asked {
            return Ok(None);
        }
        inbox.next_request += 1;
        let (reply, answer) = oneshot::channel();
        inbox.positions.retain(|_, waiting| !waiting.is_closed());
        inbox.positions.insert(request_id, reply);
        Ok(Some(answer))
    }

    // ---- closing

    pub(super) fn start_close(&self, unsubscribe: bool) {
        let mut inbox = self.inbox.lock();
        if inbox.closing != Closing::No {
            return;
        }
        inbox.closing = Closing::Asked { unsubscribe };
        inbox.unsubscribing = unsubscribe;
        inbox.close_deadline = Some(self.now() + self.client.operation_timeout);
        drop(inbox);
        self.wake.notify_one();
        // Receivers learn it from the end, which follows; acknowledgers that wait, now.
        self.ack_room.notify_waiters();
    }

    /// Goes on with closing. Called by the session's task.
    pub(super) fn go_on_closing(&self) {
        let mut acks = self.acks.lock();
        let (unsubscribe, overdue) = {
            let inbox = self.inbox.lock();
            let overdue = inbox.close_deadline.is_some_and(|at| at <= self.now());
            match inbox.closing {
                Closing::Asked { unsubscribe } => (unsubscribe, overdue),
                Closing::Sent if overdue => (false, true),
                Closing::No | Closing::Sent | Closing::Done => return,
            }
        };
        self.send_acks(&mut acks);
        let settled = acks.tracker.is_settled();
        let mut inbox = self.inbox.lock();
        if overdue {
            let after = self.client.operation_timeout;
            inbox.failure.get_or_insert(ConsumerError::Timeout { after });
            inbox.closing = Closing::Done;
            return;
        }
        if !settled {
            return;
        }
        let asked = inbox.session.push(|consumer_id| match unsubscribe {
            true => Frame::Unsubscribe(v1::Unsubscribe { consumer_id }),
            false => Frame::Close(v1::CloseConsumer { consumer_id }),
        });
        if asked {
            inbox.closing = Closing::Sent;
        } else if !unsubscribe {
            // The broker has closed it with the session.
            inbox.closing = Closing::Done;
        }
    }

    pub(super) async fn closed(&self) -> Result<(), ConsumerError> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let mut inbox = self.inbox.lock();
                if inbox.done {
                    let failed = inbox.end.clone().filter(|end| *end != ClientError::Closed);
                    let error = inbox.failure.take().or(failed.map(consumer_error));
                    return error.map_or(Ok(()), Err);
                }
            }
            changed.await;
        }
    }

    /// When closing is given up, seen from now.
    pub(super) fn close_wait(&self) -> Option<Duration> {
        let now = self.now();
        self.inbox.lock().close_deadline.map(|at| at.saturating_sub(now))
    }
}
