//! A scripted broker: a real gRPC server over one in-memory topic, which does the right thing
//! until it is told to do a wrong one, and which checks what clients must never do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use geminga_proto::entry::{BrokerHeader, decode_entry, encode_broker_header, inspect_entry};
use geminga_proto::v1;
use geminga_proto::v1::ErrorCode;
use geminga_proto::v1::messaging_server::{Messaging, MessagingServer};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use v1::consume_event::Event;
use v1::consume_frame::Frame as ConsumeFrame;
use v1::produce_frame::Frame as ProduceFrame;
use v1::produce_result::Result as ProduceResult;

pub const CREDIT_BYTES: u64 = 4 << 20;
pub const MAX_MESSAGE_BYTES: u32 = 1 << 20;
pub const CLUSTER: &str = "scripted";

/// One wrong thing. Each is done once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answers a lookup so.
    Lookup(ErrorCode),
    /// Answers an OpenProducer so.
    Open(ErrorCode),
    /// Answers a Subscribe so.
    Subscribe(ErrorCode),
    /// Stores the entry, then ends the stream without a receipt.
    StoreAndEnd,
    /// Ends the stream without storing the entry.
    DropAndEnd,
    /// Refuses an entry so.
    Refuse(ErrorCode),
    /// Closes the producer so, without storing the entry.
    CloseProducer(ErrorCode),
    /// Sends a receipt twice.
    DuplicateReceipt,
    /// Answers the next entry before this one.
    SwapReceipts,
    /// Takes an acknowledgement, then ends the stream without a receipt.
    AckAndEnd,
    /// Loses an acknowledgement and ends the stream.
    LoseAckAndEnd,
    /// Refuses an acknowledgement so.
    RefuseAck(ErrorCode),
    /// Flips a bit of an entry that is delivered.
    Corrupt,
    /// Delivers beyond the credit.
    BeyondCredit,
}

#[derive(Debug, Clone)]
pub struct Stored {
    pub entry: Bytes,
    pub messages: u32,
    pub first_index: u64,
}

#[derive(Debug, Default)]
pub struct State {
    pub log: Vec<Stored>,
    pub faults: VecDeque<Fault>,
    /// Batch indexes acknowledged, by entry.
    pub acked: BTreeMap<u64, BTreeSet<u32>>,
    pub redeliveries: BTreeMap<u64, u32>,
    /// Entries come but get no receipt.
    pub withhold_receipts: bool,
    pub withhold_ack_receipts: bool,
    pub subscription_exists: bool,
    pub opened_producers: u32,
    pub closed_producers: u32,
    pub subscribed: u32,
    pub closed_consumers: u32,
    pub lookups: u32,
    /// What clients did that they must not do.
    pub violations: Vec<String>,
    /// Messages granted and not delivered, by consumer.
    pub credit: BTreeMap<u64, (i64, i64)>,
    pub redelivery_requests: Vec<Vec<u64>>,
}

impl State {
    /// Does the first planned fault of a kind.
    fn fault<T>(&mut self, pick: impl Fn(Fault) -> Option<T>) -> Option<T> {
        let at = self.faults.iter().position(|fault| pick(*fault).is_some())?;
        self.faults.remove(at).and_then(pick)
    }

    fn does(&mut self, fault: Fault) -> bool {
        self.fault(|planned| (planned == fault).then_some(())).is_some()
    }

    fn is_acked(&self, entry: u64, index: u32) -> bool {
        self.acked.get(&entry).is_some_and(|indexes| indexes.contains(&index))
    }

    fn is_entry_acked(&self, entry: u64) -> bool {
        let messages = self.log[entry as usize].messages;
        (0..messages).all(|index| self.is_acked(entry, index))
    }

    pub fn unacked_messages(&self) -> u64 {
        let total: u64 = self.log.iter().map(|stored| u64::from(stored.messages)).sum();
        total - self.acked.values().map(|indexes| indexes.len() as u64).sum::<u64>()
    }
}

/// The broker. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Broker {
    pub state: Arc<Mutex<State>>,
}

fn error(code: ErrorCode) -> Option<v1::Error> {
    Some(v1::Error { code: code.into(), message: format!("scripted {code:?}") })
}

impl Broker {
    /// Serves on a free port; answers the URL.
    pub async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let service = MessagingServer::new(self.clone()).max_decoding_message_size(16 << 20);
        tokio::spawn(
            tonic::transport::Server::builder()
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(8 << 20)
                .add_service(service)
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        url
    }

    pub fn plan(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().faults.extend(faults);
    }

    /// Stores what a producer would send.
    pub fn store(&self, entry: Bytes) -> u64 {
        store(&mut self.state.lock(), entry)
    }

    /// The payloads of single-message entries in the log, as text.
    pub fn texts(&self) -> Vec<String> {
        let state = self.state.lock();
        let texts = state.log.iter().flat_map(|stored| {
            let entry = decode_entry(&stored.entry).expect("an entry");
            let mut payload = entry.payload;
            let mut texts = Vec::new();
            if entry.metadata.num_messages_in_batch.is_none() {
                texts.push(payload);
            } else {
                while !payload.is_empty() {
                    let taken = geminga_proto::entry::take_batched_message(&mut payload);
                    texts.push(taken.expect("a message").1);
                }
            }
            texts
        });
        texts.map(|text| String::from_utf8(text.to_vec()).expect("text")).collect()
    }

    pub fn assert_no_violations(&self) {
        assert_eq!(self.state.lock().violations, Vec::<String>::new());
    }
}

fn store(state: &mut State, entry: Bytes) -> u64 {
    let summary = inspect_entry(&entry, 100_000).expect("clients send valid entries");
    let first_index = state.log.last().map_or(0, |it| it.first_index + u64::from(it.messages));
    state.log.push(Stored { entry, messages: summary.messages, first_index });
    state.log.len() as u64 - 1
}

/// What a producer's stream knows of it.
#[derive(Default)]
struct ProducerState {
    last_sequence: Option<u64>,
    outstanding: u64,
    held: Option<v1::Receipt>,
}

type Results = mpsc::Sender<Result<v1::ProduceResponse, Status>>;

async fn answer(results: &Results, result: ProduceResult) {
    let results_of = vec![v1::ProduceResult { result: Some(result) }];
    // A client that is gone needs no answer.
    let _ = results.send(Ok(v1::ProduceResponse { results: results_of })).await;
}

impl Broker {
    /// False: the stream is to end.
    async fn on_produce(
        &self,
        producers: &mut BTreeMap<u64, ProducerState>,
        frame: ProduceFrame,
        results: &Results,
    ) -> bool {
        match frame {
            ProduceFrame::Open(open) => {
                let refused = {
                    let mut state = self.state.lock();
                    state.opened_producers += 1;
                    state.fault(|fault| match fault {
                        Fault::Open(code) => Some(code),
                        _ => None,
                    })
                };
                if refused.is_none() {
                    producers.insert(open.producer_id, ProducerState::default());
                }
                let name = if open.producer_name.is_empty() {
                    "made-by-broker".to_owned()
                } else {
                    open.producer_name
                };
                let opened = v1::ProducerOpened {
                    producer_id: open.producer_id,
                    error: refused.and_then(error),
                    producer_name: name,
                    credit_bytes: CREDIT_BYTES,
                };
                answer(results, ProduceResult::Opened(opened)).await;
                true
            }
            ProduceFrame::Send(send) => self.on_send(producers, send, results).await,
            ProduceFrame::Close(close) => {
                if producers.remove(&close.producer_id).is_some() {
                    self.state.lock().closed_producers += 1;
                }
                true
            }
        }
    }

    async fn on_send(
        &self,
        producers: &mut BTreeMap<u64, ProducerState>,
        send: v1::SendEntry,
        results: &Results,
    ) -> bool {
        let producer_id = send.producer_id;
        let mut receipts = Vec::new();
        let mut other = None;
        {
            let mut state = self.state.lock();
            let Some(producer) = producers.get_mut(&producer_id) else {
                return true;
            };
            if producer.last_sequence.is_some_and(|last| last >= send.sequence_id) {
                state.violations.push(format!("sequence id {} fell back", send.sequence_id));
            }
            producer.last_sequence = Some(send.sequence_id);
            producer.outstanding += send.entry.len() as u64;
            if producer.outstanding > CREDIT_BYTES {
                state.violations.push(format!("{} bytes outstanding", producer.outstanding));
            }
            if state.does(Fault::DropAndEnd) {
                return false;
            }
            let refused = state.fault(|fault| match fault {
                Fault::Refuse(code) => Some(code),
                _ => None,
            });
            let closed = state.fault(|fault| match fault {
                Fault::CloseProducer(code) => Some(code),
                _ => None,
            });
            if let Some(code) = closed {
                producers.remove(&producer_id);
                let closed = v1::ProducerClosed { producer_id, error: error(code) };
                other = Some(ProduceResult::Closed(closed));
            } else if let Some(code) = refused {
                producer.outstanding -= send.entry.len() as u64;
                let sequence_id = send.sequence_id;
                let failed = v1::SendFailed { producer_id, sequence_id, error: error(code) };
                other = Some(ProduceResult::SendFailed(failed));
            } else {
                let bytes = send.entry.len() as u64;
                let entry_id = store(&mut state, send.entry);
                if state.does(Fault::StoreAndEnd) {
                    return false;
                }
                let index = state.log[entry_id as usize].first_index;
                let receipt =
                    v1::Receipt { sequence_id: send.sequence_id, ledger_id: 1, entry_id, index };
                if state.does(Fault::SwapReceipts) {
                    producer.held = Some(receipt);
                } else if !state.withhold_receipts {
                    producer.outstanding -= bytes;
                    receipts.push(receipt);
                    receipts.extend(producer.held.take());
                    if state.does(Fault::DuplicateReceipt) {
                        receipts.push(receipt);
                    }
                }
            }
        }
        if !receipts.is_empty() {
            answer(results, ProduceResult::Receipts(v1::Receipts { producer_id, receipts })).await;
        }
        if let Some(other) = other {
            answer(results, other).await;
        }
        true
    }
}

/// What a consumer's stream knows of it.
struct ConsumerState {
    next: u64,
    replay: VecDeque<u64>,
}

type Events = mpsc::Sender<Result<v1::ConsumeResponse, Status>>;

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
    async fn on_consume(
        &self,
        consumers: &mut BTreeMap<u64, ConsumerState>,
        frame: ConsumeFrame,
        events: &Events,
    ) -> bool {
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
            state.subscription_exists |= refused.is_none();
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

    async fn deliver_all(&self, consumers: &mut BTreeMap<u64, ConsumerState>, events: &Events) {
        for (consumer_id, consumer) in consumers {
            let entries = self.deliver(*consumer_id, consumer);
            if !entries.is_empty() {
                let delivery = v1::Delivery { consumer_id: *consumer_id, entries };
                tell(events, Event::Delivery(delivery)).await;
            }
        }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Messaging for Broker {
    type ProduceStream = Answers<v1::ProduceResponse>;
    type ConsumeStream = Answers<v1::ConsumeResponse>;

    async fn handshake(
        &self,
        _: Request<v1::HandshakeRequest>,
    ) -> Result<Response<v1::HandshakeResponse>, Status> {
        Ok(Response::new(v1::HandshakeResponse {
            protocol: 1,
            cluster_id: CLUSTER.to_owned(),
            broker_id: "b".to_owned(),
            max_message_bytes: MAX_MESSAGE_BYTES,
        }))
    }

    async fn lookup(
        &self,
        _: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        let mut state = self.state.lock();
        state.lookups += 1;
        let refused = state.fault(|fault| match fault {
            Fault::Lookup(code) => Some(code),
            _ => None,
        });
        let error = refused.and_then(error);
        Ok(Response::new(v1::LookupResponse { error, ..v1::LookupResponse::default() }))
    }

    async fn produce(
        &self,
        request: Request<Streaming<v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let (results, answers) = mpsc::channel(64);
        let broker = self.clone();
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            let mut producers = BTreeMap::new();
            while let Ok(Some(request)) = requests.message().await {
                for frame in request.frames.into_iter().filter_map(|frame| frame.frame) {
                    if !broker.on_produce(&mut producers, frame, &results).await {
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn consume(
        &self,
        request: Request<Streaming<v1::ConsumeRequest>>,
    ) -> Result<Response<Self::ConsumeStream>, Status> {
        let (events, answers) = mpsc::channel(64);
        let broker = self.clone();
        let mut requests = request.into_inner();
        tokio::spawn(async move {
            let mut consumers = BTreeMap::new();
            let mut tick = tokio::time::interval(std::time::Duration::from_millis(5));
            loop {
                tokio::select! {
                    request = requests.next() => {
                        let Some(Ok(request)) = request else { return };
                        for frame in request.frames.into_iter().filter_map(|frame| frame.frame) {
                            if !broker.on_consume(&mut consumers, frame, &events).await {
                                return;
                            }
                        }
                    }
                    _ = tick.tick() => broker.deliver_all(&mut consumers, &events).await,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}
