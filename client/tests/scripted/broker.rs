//! A scripted broker: a real gRPC server over one in-memory topic, which does the right thing
//! until it is told to do a wrong one, and which checks what clients must never do.
//!
//! Length: both streams of one protocol, with the faults of each at the place where they strike.

mod consume;
mod node;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::Stream;
use geminga_proto::entry::{decode_entry, inspect_entry};
use geminga_proto::v1;
use geminga_proto::v1::ErrorCode;
use geminga_proto::v1::messaging_server::{Messaging, MessagingServer};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
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
    /// Says so of entries that it withholds receipts of.
    pub delays: bool,
    pub withhold_ack_receipts: bool,
    /// Deliveries stay on their way until a consumer asks for something again, or leaves.
    pub slow_deliveries: bool,
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

/// The broker. Clones share it; siblings share the topic.
#[derive(Debug, Clone)]
pub struct Broker {
    pub state: Arc<Mutex<State>>,
    pub node: Arc<Mutex<node::Node>>,
    /// Everything is to be closed with this code.
    orders: Arc<watch::Sender<Option<ErrorCode>>>,
}

fn error(code: ErrorCode) -> Option<v1::Error> {
    Some(v1::Error { code: code.into(), message: format!("scripted {code:?}") })
}

impl Broker {
    /// Serves on a free port; answers the URL.
    pub async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        // Else small answers wait for the client's acknowledgement of those before.
        let incoming = TcpListenerStream::new(listener).map(|accepted| {
            let socket = accepted?;
            socket.set_nodelay(true)?;
            Ok::<_, std::io::Error>(socket)
        });
        let service = MessagingServer::new(self.clone()).max_decoding_message_size(16 << 20);
        tokio::spawn(
            tonic::transport::Server::builder()
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(8 << 20)
                .add_service(service)
                .serve_with_incoming(incoming),
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
                    self.node.lock().opened_at.push(Instant::now());
                    state.fault(|fault| match fault {
                        Fault::Open(code) => Some(code),
                        _ => None,
                    })
                };
                let refused = refused.or(self.refusal(ErrorCode::NotOwner));
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
            // An owner that was replaced finds its ledger fenced.
            let closed = closed.or(self.refusal(ErrorCode::Fenced));
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
                } else if state.delays {
                    let error = error(ErrorCode::Unavailable);
                    let delayed = v1::ProducerDelayed { producer_id, error };
                    other = Some(ProduceResult::Delayed(delayed));
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

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Messaging for Broker {
    type ProduceStream = Answers<v1::ProduceResponse>;
    type ConsumeStream = Answers<v1::ConsumeResponse>;

    async fn handshake(
        &self,
        request: Request<v1::HandshakeRequest>,
    ) -> Result<Response<v1::HandshakeResponse>, Status> {
        let mut node = self.node.lock();
        node.handshakes += 1;
        node.expected_clusters.push(request.into_inner().expected_cluster_id);
        Ok(Response::new(v1::HandshakeResponse {
            protocol: 1,
            cluster_id: node.cluster_id.clone(),
            broker_id: node.id.clone(),
            max_message_bytes: MAX_MESSAGE_BYTES,
        }))
    }

    async fn lookup(
        &self,
        _: Request<v1::LookupRequest>,
    ) -> Result<Response<v1::LookupResponse>, Status> {
        let refused = {
            let mut state = self.state.lock();
            state.lookups += 1;
            state.fault(|fault| match fault {
                Fault::Lookup(code) => Some(code),
                _ => None,
            })
        };
        let mut node = self.node.lock();
        node.lookups += 1;
        let here = || (node.id.clone(), String::new());
        let (broker_id, service_url) = node.owner.clone().unwrap_or_else(here);
        let error = refused.and_then(error);
        let bundle = node.bundle;
        let answer = v1::LookupResponse { error, broker_id, service_url, partitions: 0, bundle };
        Ok(Response::new(answer))
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
            let mut orders = broker.orders.subscribe();
            loop {
                let request = tokio::select! {
                    request = requests.message() => request,
                    _ = orders.changed() => {
                        let code = *orders.borrow_and_update();
                        let error = code.and_then(error);
                        for producer_id in std::mem::take(&mut producers).into_keys() {
                            let closed = v1::ProducerClosed { producer_id, error: error.clone() };
                            answer(&results, ProduceResult::Closed(closed)).await;
                        }
                        continue;
                    }
                };
                let Ok(Some(request)) = request else { return };
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
            let mut orders = broker.orders.subscribe();
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
                    _ = orders.changed() => {
                        let code = *orders.borrow_and_update();
                        broker.close_consumers(&mut consumers, code, &events).await;
                    }
                    _ = tick.tick() => broker.deliver_all(&mut consumers, &events).await,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}
