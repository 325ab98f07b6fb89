//! The scripted broker's Consume stream.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use geminga_proto::entry::{BrokerHeader, encode_broker_header};
use geminga_proto::v1;
use geminga_proto::v1::ErrorCode;
use tokio::sync::mpsc;
use tonic::Status;
use v1::consume_event::Event;
use v1::consume_frame::Frame as ConsumeFrame;

use super::{Broker, Fault, error};

/// What a consumer's stream knows of it.
pub struct ConsumerState {
    next: u64,
    replay: VecDeque<u64>,
}

pub type Events = mpsc::Sender<Result<v1::ConsumeResponse, Status>>;

async fn tell(events: &Events, event: Event) {
    let event = v1::ConsumeEvent { event: Some(event) };
    // A client that is gone needs no answer.
    let _ = events.send(Ok(v1::ConsumeResponse { events: vec![event] })).await;
}

impl Broker {
    fn deliver(&self, consumer_id: u64, consumer: &mut ConsumerState) -> Vec<v1::DeliveredEntry> {
        let mut state = self.state.lock();
        let mut deliveries = Vec::new();
        loop {
            let (messages, bytes) = state.credit.get(&consumer_id).copied().unwrap_or_default();
            let waiting = (consumer.next as usize) < state.log.len();
            let had_credit = state.credit.contains_key(&consumer_id);
            if (messages <= 0 || bytes <= 0)
                && !(waiting && had_credit && state.does(Fault::BeyondCredit))
            {
                return deliveries;
            }
            let entry = match consumer.replay.pop_front() {
                Some(entry) => entry,
                None if waiting => {
                    consumer.next += 1;
                    consumer.next - 1
                }
                None => return deliveries,
            };
            if state.is_entry_acked(entry) {
                continue;
            }
            let stored = state.log[entry as usize].clone();
            let mut acked_indexes = vec![0_u8; stored.messages.div_ceil(8) as usize];
            let mut unacked = 0;
            for index in 0..stored.messages {
                if state.is_acked(entry, index) {
                    acked_indexes[index as usize / 8] |= 1 << (index % 8);
                } else {
                    unacked += 1;
                }
            }
            let mut bytes = stored.entry.clone();
            if state.does(Fault::Corrupt) {
                let mut damaged = bytes.to_vec();
                let last = damaged.len() - 1;
                damaged[last] ^= 1;
                bytes = damaged.into();
            }
            let last_index = stored.first_index + u64::from(stored.messages) - 1;
            let header = encode_broker_header(BrokerHeader { timestamp_ms: 1, last_index });
            let taken = (header.len() + bytes.len()) as i64;
            let credit = state.credit.entry(consumer_id).or_default();
            *credit = (credit.0 - i64::from(unacked), credit.1 - taken);
            let redelivery_count = state.redeliveries.get(&entry).copied().unwrap_or_default();
            state.redeliveries.insert(entry, redelivery_count + 1);
            deliveries.push(v1::DeliveredEntry {
                ledger_id: 1,
                entry_id: entry,
                redelivery_count,
                acked_indexes: acked_indexes.into(),
                broker_header: header,
                entry: bytes,
                credit_messages: unacked,
            });
        }
    }

    fn take_ack(&self, ack: &v1::Acknowledge) {
        let mut state = self.state.lock();
        for position in &ack.positions {
            let messages = state.log[position.entry_id as usize].messages;
            if ack.cumulative {
                for entry in 0..position.entry_id {
                    let all = 0..state.log[entry as usize].messages;
                    state.acked.entry(entry).or_default().extend(all);
                }
            }
            let bits = &position.acked_indexes;
            let set = |index: &u32| {
                bits.is_empty()
                    || bits.get(*index as usize / 8).is_some_and(|b| b >> (index % 8) & 1 == 1)
            };
            let indexes = (0..messages).filter(set);
            state.acked.entry(position.entry_id).or_default().extend(indexes);
        }
    }

    /// False: the stream is to end.
    pub async fn on_consume(
        &self,
        consumers: &mut BTreeMap<u64, ConsumerState>,
        frame: ConsumeFrame,
        events: &Events,
    ) -> bool {
        if matches!(frame, ConsumeFrame::Redeliver(_) | ConsumeFrame::Close(_)) {
            // What was on its way arrives before the answer to this.
            let slow = std::mem::take(&mut self.state.lock().slow_deliveries);
            if slow {
                self.deliver_all(consumers, events).await;
            }
        }
        match frame {
            ConsumeFrame::Subscribe(subscribe) => {
                self.on_subscribe(consumers, subscribe, events).await;
            }
            ConsumeFrame::Flow(flow) => {
                let mut state = self.state.lock();
                let credit = state.credit.entry(flow.consumer_id).or_default();
                credit.0 += i64::from(flow.messages);
                credit.1 += flow.bytes as i64;
            }
            ConsumeFrame::Ack(ack) => return self.on_ack(ack, events).await,
            ConsumeFrame::Redeliver(redeliver) => {
                let entries: Vec<u64> = redeliver.positions.iter().map(|at| at.entry_id).collect();
                self.state.lock().redelivery_requests.push(entries.clone());
                if let Some(consumer) = consumers.get_mut(&redeliver.consumer_id) {
                    if entries.is_empty() {
                        consumer.next = 0;
                    }
                    consumer.replay.extend(entries);
                }
            }
            ConsumeFrame::Close(close) => {
                let consumer_id = close.consumer_id;
                if consumers.remove(&consumer_id).is_some() {
                    self.state.lock().closed_consumers += 1;
                    let closed = v1::ConsumerClosed { consumer_id, error: None };
                    tell(events, Event::Closed(closed)).await;
                }
            }
            ConsumeFrame::Unsubscribe(unsubscribe) => {
                let consumer_id = unsubscribe.consumer_id;
                consumers.remove(&consumer_id);
                self.state.lock().subscription_exists = false;
                tell(events, Event::Closed(v1::ConsumerClosed { consumer_id, error: None })).await;
            }
            ConsumeFrame::GetPosition(get) => {
                let position = self.position(get.consumer_id, get.request_id);
                tell(events, Event::Position(position)).await;
            }
        }
        self.deliver_all(consumers, events).await;
        true
    }

    async fn on_subscribe(
        &self,
        consumers: &mut BTreeMap<u64, ConsumerState>,
        subscribe: v1::Subscribe,
        events: &Events,
    ) {
        let consumer_id = subscribe.consumer_id;
        let refused = {
            let mut state = self.state.lock();
            state.subscribed += 1;
            let key_shared = subscribe.r#type() == v1::SubscriptionType::KeyShared;
            let refused = state.fault(|fault| match fault {
                Fault::Subscribe(code) => Some(code),
                _ => None,
            });
            let refused = refused.or(self.refusal(ErrorCode::NotOwner));
            state.subscription_exists |= refused.is_none();
            self.node.lock().opened_at.push(Instant::now());
            refused.or(key_shared.then_some(ErrorCode::Unsupported))
        };
        if refused.is_none() {
            consumers.insert(consumer_id, ConsumerState { next: 0, replay: VecDeque::new() });
        }
        let consumer_name = "made-by-broker".to_owned();
        let error = refused.and_then(error);
        let subscribed = v1::Subscribed { consumer_id, error, consumer_name };
        tell(events, Event::Subscribed(subscribed)).await;
    }

    async fn on_ack(&self, ack: v1::Acknowledge, events: &Events) -> bool {
        if self.state.lock().does(Fault::LoseAckAndEnd) {
            return false;
        }
        let refused = self.state.lock().fault(|fault| match fault {
            Fault::RefuseAck(code) => Some(code),
            _ => None,
        });
        let refused = refused.or(self.refusal(ErrorCode::Fenced));
        if refused.is_none() {
            self.take_ack(&ack);
        }
        let (end, silent) = {
            let mut state = self.state.lock();
            (state.does(Fault::AckAndEnd), state.withhold_ack_receipts)
        };
        if end {
            return false;
        }
        if ack.request_id != 0 && !silent {
            let (consumer_id, request_id) = (ack.consumer_id, ack.request_id);
            let receipt =
                v1::AckReceipt { consumer_id, request_id, error: refused.and_then(error) };
            tell(events, Event::AckReceipt(receipt)).await;
        }
        true
    }

    fn position(&self, consumer_id: u64, request_id: u64) -> v1::Position {
        let state = self.state.lock();
        let at = |entry_id| v1::EntryPosition { ledger_id: 1, entry_id };
        let last = state.log.len() as u64;
        let acked = (0..last).take_while(|entry| state.is_entry_acked(*entry)).count() as u64;
        v1::Position {
            consumer_id,
            request_id,
            error: None,
            last_confirmed: last.checked_sub(1).map(at),
            mark_delete: acked.checked_sub(1).map(at),
            backlog_messages: state.unacked_messages(),
        }
    }

    /// Closes every consumer of a stream.
    pub async fn close_consumers(
        &self,
        consumers: &mut BTreeMap<u64, ConsumerState>,
        code: Option<ErrorCode>,
        events: &Events,
    ) {
        for consumer_id in std::mem::take(consumers).into_keys() {
            let closed = v1::ConsumerClosed { consumer_id, error: code.and_then(error) };
            tell(events, Event::Closed(closed)).await;
        }
    }

    pub async fn deliver_all(&self, consumers: &mut BTreeMap<u64, ConsumerState>, events: &Events) {
        let replaced = self.refusal(ErrorCode::NotOwner).is_some();
        if replaced || self.state.lock().slow_deliveries {
            return;
        }
        for (consumer_id, consumer) in consumers {
            let entries = self.deliver(*consumer_id, consumer);
            if !entries.is_empty() {
                let delivery = v1::Delivery { consumer_id: *consumer_id, entries };
                tell(events, Event::Delivery(delivery)).await;
            }
        }
    }
}
