//! Executes what subscriptions decide: deliveries go to sinks, reads to the tail cache or to a
//! task, changes of cursors to the bundle's state log.

use std::collections::VecDeque;
use std::sync::Arc;

use geminga_proto::id::{ConsumerId, EntryId, Position};

use crate::core::api::{AckError, ConsumerSink};
use crate::core::budget::EntryPermit;
use crate::core::bundle::state_log_error;
use crate::core::cache::CachedEntry;
use crate::core::cursor::{CursorChange, EntrySpan};
use crate::core::dispatch::{DispatchLimits, EntryRun, ReadRequest, ReadTarget, ReadyEntry};
use crate::core::state_log::{Done, Room};
use crate::core::subscription::{ChangeSeq, Command, ReceiptFor};
use crate::core::topic::log::Log;
use crate::core::topic::subscriptions::SubscriptionSlot;
use crate::core::topic::{Topic, Traffic};

/// Who hears of an acknowledgement.
type Receipt = (Arc<dyn ConsumerSink>, ConsumerId, u64);

impl Topic {
    /// Limits of a subscription. One read takes no more than a share of what all can have in
    /// memory, so that many subscriptions can read at a time.
    pub(super) fn dispatch_limits(&self) -> DispatchLimits {
        let config = &self.context.config;
        let share = (config.egress_bytes() / 16).max(64 << 10);
        let max_read_bytes = config.dispatch.max_read_bytes.min(share);
        DispatchLimits { max_read_bytes, ..config.dispatch }
    }

    /// Executes commands until none is left. `room` goes with the one change that an operation
    /// makes.
    pub(super) fn execute(
        &self,
        log: &Log,
        slot: &mut SubscriptionSlot,
        traffic: &mut Traffic,
        commands: &mut Vec<Command>,
        mut room: Option<Room>,
    ) {
        let mut queue: VecDeque<Command> = commands.drain(..).collect();
        while let Some(command) = queue.pop_front() {
            match command {
                Command::Deliver { consumer, deliveries } => {
                    let Some(consumer) = slot.consumer(consumer) else { continue };
                    let metrics = &self.context.metrics;
                    let messages: u64 = deliveries.iter().map(|d| u64::from(d.messages)).sum();
                    let bytes: u64 = deliveries.iter().map(|d| d.payload.len() as u64).sum();
                    traffic.messages_out += messages;
                    traffic.bytes_out += bytes;
                    metrics.messages_out.inc_by(messages);
                    metrics.bytes_out.inc_by(bytes);
                    metrics.entries_out.inc_by(deliveries.len() as u64);
                    consumer.sink.deliver(consumer.id, deliveries);
                }
                Command::Read(request) => match self.read_at_hand(log, slot, &request) {
                    Some(ready) => {
                        let token = request.token;
                        slot.subscription.read_done(token, Ok(&ready), commands);
                        if slot.subscription.read_has_failed() {
                            self.retry_later(slot.subscription.name(), slot.cursor);
                        }
                        queue.extend(commands.drain(..));
                    }
                    None => self.spawn_read(slot, request),
                },
                Command::Persist { change, seq, receipt } => {
                    let receipt = receipt.and_then(|receipt| Self::receipt(slot, receipt));
                    self.persist(slot, change, seq, receipt, room.take());
                }
                Command::AckReceipt(receipt) => {
                    if let Some((sink, id, request_id)) = Self::receipt(slot, receipt) {
                        sink.ack_receipt(id, request_id, Ok(()));
                    }
                }
                Command::ActiveChanged { consumer, active } => {
                    if let Some(consumer) = slot.consumer(consumer) {
                        consumer.sink.active_changed(consumer.id, active);
                    }
                }
            }
        }
    }

    fn receipt(slot: &SubscriptionSlot, receipt: ReceiptFor) -> Option<Receipt> {
        let consumer = slot.consumer(receipt.consumer)?;
        Some((Arc::clone(&consumer.sink), consumer.id, receipt.request_id))
    }

    /// What is asked for, if it is in memory and there is room to hand it out.
    fn read_at_hand(
        &self,
        log: &Log,
        slot: &mut SubscriptionSlot,
        request: &ReadRequest,
    ) -> Option<Vec<ReadyEntry>> {
        let (from, limit) = match &request.target {
            ReadTarget::From(from) => (*from, u32::MAX),
            ReadTarget::Runs(runs) => {
                let EntryRun { ledger, first, entries } = *runs.first()?;
                (Position::new(ledger, first), entries)
            }
        };
        let place = log.locate(from)?;
        if let Some(ahead) = self.take_ahead(log, slot, place.first, request) {
            return Some(ahead);
        }
        let limit = u64::from(limit.min(request.max_entries)).min(place.entries);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let (ledger, first) = (place.first.ledger, place.first.entry);
        let found = self.context.cache.read(ledger, first, limit, request.max_bytes);
        if found.is_empty() {
            return None;
        }
        let bytes = found.iter().map(|(_, cached)| cached.payload.len() as u64).sum();
        let mut room = self.context.budget.try_acquire_egress(bytes)?;
        self.context.metrics.cache_hits.inc_by(found.len() as u64);
        let ready = |(entry, cached): (EntryId, CachedEntry)| ReadyEntry {
            span: EntrySpan {
                position: Position::new(ledger, entry),
                first_index: cached.first_index,
                messages: cached.messages,
            },
            permit: EntryPermit::from(room.split(cached.payload.len() as u64)),
            payload: cached.payload,
        };
        Some(found.into_iter().map(ready).collect())
    }

    /// Hands a change of a cursor to the state log. Its receipt is sent, and the subscription
    /// told, once it is durable.
    fn persist(
        &self,
        slot: &SubscriptionSlot,
        change: Option<CursorChange>,
        seq: ChangeSeq,
        receipt: Option<Receipt>,
        room: Option<Room>,
    ) {
        #[cfg(any(test, feature = "simulation"))]
        let (change, receipt) = self.spoil(change, receipt);
        let (topic, name) = (self.me.clone(), Arc::clone(slot.subscription.name()));
        let cursor = slot.cursor;
        let done: Done = Box::new(move |result| {
            let durable = result.is_ok();
            if let Some((sink, id, request_id)) = receipt {
                let error = |error| AckError::Topic(state_log_error(error));
                sink.ack_receipt(id, request_id, result.map_err(error));
            }
            let Some(topic) = topic.upgrade().filter(|_| durable) else { return };
            let mut state = topic.state.lock();
            if let Some(slot) = state.subscriptions.get_mut(&name)
                && slot.cursor == cursor
            {
                slot.subscription.persisted(seq);
            }
        });
        let log = self.bundle.log.clone();
        match room.or_else(|| log.try_room(0)) {
            Some(room) => log.change(room, cursor, change, done),
            None => {
                self.context.runtime.spawn(async move {
                    match log.room(0).await {
                        Ok(room) => log.change(room, cursor, change, done),
                        Err(error) => done(Err(error)),
                    }
                });
            }
        }
    }

    /// What a planted defect makes of a change and its receipt.
    #[cfg(any(test, feature = "simulation"))]
    fn spoil(
        &self,
        change: Option<CursorChange>,
        receipt: Option<Receipt>,
    ) -> (Option<CursorChange>, Option<Receipt>) {
        use crate::core::defect::Defect;
        match (self.context.config.planted, change) {
            (Some(Defect::ReceiptBeforeDurable), change) => {
                if let Some((sink, id, request_id)) = receipt {
                    sink.ack_receipt(id, request_id, Ok(()));
                }
                (change, None)
            }
            (Some(Defect::HolesNotLogged), Some(CursorChange::Ack(mut delta))) => {
                delta.acked.clear();
                (Some(CursorChange::Ack(delta)), receipt)
            }
            (Some(Defect::CursorAhead), Some(CursorChange::Ack(mut delta))) => {
                if let Some(last) = delta.acked.last_mut() {
                    last.end = geminga_proto::id::MessageIndex(last.end.0 + 1);
                }
                (Some(CursorChange::Ack(delta)), receipt)
            }
            (_, change) => (change, receipt),
        }
    }
}
