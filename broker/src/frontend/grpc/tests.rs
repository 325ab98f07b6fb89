//! The front-end as a peer that is not our SDK meets it: raw frames, wrong frames, raw bytes.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use geminga_proto::id::ClusterId;
use geminga_proto::v1;
use geminga_proto::v1::ErrorCode;
use geminga_proto::v1::messaging_client::MessagingClient;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use v1::consume_event::Event;
use v1::consume_frame::Frame as ConsumeFrame;
use v1::produce_frame::Frame as ProduceFrame;
use v1::produce_result::Result as ProduceResult;

use super::{GrpcConfig, GrpcQueues, GrpcState, ServeError, serve};
use crate::core::broker::Broker;
use crate::core::config::BrokerConfig;
use crate::core::state_log::StateLogConfig;
use crate::testing::{Cluster, entry};

mod stuck;

const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens within the test's patience")
}

struct Served {
    addr: SocketAddr,
    broker: Broker,
    queues: GrpcQueues,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<Result<(), ServeError>>,
    cluster: Cluster,
}

async fn served_with(config: GrpcConfig) -> Served {
    served_by(Cluster::config(), config).await
}

async fn served_by(broker: BrokerConfig, config: GrpcConfig) -> Served {
    let cluster = Cluster::new();
    let broker = cluster.broker(broker).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let addr = listener.local_addr().expect("bound");
    let queues = GrpcQueues::default();
    let cluster_id = ClusterId::new("cluster-1").expect("valid");
    let state = GrpcState { broker: broker.clone(), cluster_id, queues: queues.clone() };
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        // A test that drops the sender stops the server too.
        let _ = stopped.await;
    };
    let serving = tokio::spawn(serve(listener, config, state, shutdown));
    Served { addr, broker, queues, stop, serving, cluster }
}

async fn served() -> Served {
    served_with(GrpcConfig::default()).await
}

impl Served {
    async fn client(&self) -> MessagingClient<Channel> {
        let url = format!("http://{}", self.addr);
        soon(MessagingClient::connect(url)).await.expect("connects")
    }

    async fn produce(&self) -> ProduceEnd {
        let (frames, requests) = mpsc::channel(64);
        let answers = soon(self.client().await.produce(ReceiverStream::new(requests))).await;
        let results = Default::default();
        ProduceEnd { frames, answers: answers.expect("a stream").into_inner(), results }
    }

    async fn consume(&self) -> ConsumeEnd {
        let (frames, requests) = mpsc::channel(64);
        let answers = soon(self.client().await.consume(ReceiverStream::new(requests))).await;
        let events = Default::default();
        ConsumeEnd { frames, answers: answers.expect("a stream").into_inner(), events }
    }

    /// The server still does its work.
    async fn assert_alive(&self) {
        let mut producer = self.produce().await;
        producer.open(1, "alive").await;
        producer.send(1, 0, entry("x")).await;
        let receipts = producer.next().await;
        assert!(matches!(receipts, ProduceResult::Receipts(_)), "{receipts:?}");
    }
}

struct ProduceEnd {
    frames: mpsc::Sender<v1::ProduceRequest>,
    answers: Streaming<v1::ProduceResponse>,
    results: std::collections::VecDeque<ProduceResult>,
}

impl ProduceEnd {
    async fn push(&self, frame: Option<ProduceFrame>) {
        let frames = vec![v1::ProduceFrame { frame }];
        soon(self.frames.send(v1::ProduceRequest { frames })).await.expect("the stream is there");
    }

    async fn ask_open(&self, producer_id: u64, topic: &str) {
        let topic = topic.to_owned();
        let open = v1::OpenProducer { producer_id, topic, ..v1::OpenProducer::default() };
        self.push(Some(ProduceFrame::Open(open))).await;
    }

    async fn open(&mut self, producer_id: u64, topic: &str) -> v1::ProducerOpened {
        self.ask_open(producer_id, topic).await;
        match self.next().await {
            ProduceResult::Opened(opened) => opened,
            other => panic!("{other:?}"),
        }
    }

    async fn send(&self, producer_id: u64, sequence_id: u64, entry: Bytes) {
        let send = v1::SendEntry { producer_id, sequence_id, entry };
        self.push(Some(ProduceFrame::Send(send))).await;
    }

    async fn next(&mut self) -> ProduceResult {
        self.try_next().await.expect("the stream goes on").expect("the stream is not over")
    }

    async fn try_next(&mut self) -> Result<Option<ProduceResult>, Status> {
        while self.results.is_empty() {
            match soon(self.answers.message()).await? {
                Some(answer) => {
                    let results = answer.results.into_iter().filter_map(|result| result.result);
                    self.results.extend(results);
                }
                None => return Ok(None),
            }
        }
        Ok(self.results.pop_front())
    }
}

struct ConsumeEnd {
    frames: mpsc::Sender<v1::ConsumeRequest>,
    answers: Streaming<v1::ConsumeResponse>,
    events: std::collections::VecDeque<Event>,
}

impl ConsumeEnd {
    async fn push(&self, frame: Option<ConsumeFrame>) {
        let frames = vec![v1::ConsumeFrame { frame }];
        soon(self.frames.send(v1::ConsumeRequest { frames })).await.expect("the stream is there");
    }

    async fn subscribe(&mut self, consumer_id: u64, topic: &str, kind: i32) -> v1::Subscribed {
        let subscribe = v1::Subscribe {
            consumer_id,
            topic: topic.to_owned(),
            subscription: "s".to_owned(),
            r#type: kind,
            initial_position: v1::InitialPosition::Earliest.into(),
            create: true,
            ..v1::Subscribe::default()
        };
        self.push(Some(ConsumeFrame::Subscribe(subscribe))).await;
        loop {
            match self.next().await {
                Event::Subscribed(subscribed) => return subscribed,
                Event::ActiveChange(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn flow(&self, consumer_id: u64, messages: u32, bytes: u64) {
        let flow = v1::Flow { consumer_id, messages, bytes };
        self.push(Some(ConsumeFrame::Flow(flow))).await;
    }

    async fn next(&mut self) -> Event {
        self.try_next().await.expect("the stream goes on").expect("the stream is not over")
    }

    async fn try_next(&mut self) -> Result<Option<Event>, Status> {
        while self.events.is_empty() {
            match soon(self.answers.message()).await? {
                Some(answer) => {
                    self.events.extend(answer.events.into_iter().filter_map(|event| event.event));
                }
                None => return Ok(None),
            }
        }
        Ok(self.events.pop_front())
    }
}

/// The code in a status' metadata.
fn code(status: &Status) -> Option<ErrorCode> {
    let code = status.metadata().get("geminga-error-code")?.to_str().ok()?;
    let code: i32 = code.parse().ok()?;
    ErrorCode::try_from(code).ok()
}

fn error_code(error: Option<&v1::Error>) -> Option<ErrorCode> {
    error.map(v1::Error::code)
}

#[tokio::test]
async fn a_handshake_agrees_or_says_why_not() {
    let served = served().await;
    let mut client = served.client().await;
    let ask = |min_protocol, max_protocol, expected: &str| v1::HandshakeRequest {
        min_protocol,
        max_protocol,
        client: "test".to_owned(),
        expected_cluster_id: expected.to_owned(),
    };
    let answer = soon(client.handshake(ask(1, 9, "cluster-1"))).await.expect("agrees").into_inner();
    assert_eq!((answer.protocol, answer.cluster_id.as_str()), (1, "cluster-1"));
    assert_eq!(answer.max_message_bytes, served.broker.config().max_message_bytes);
    for (request, expected) in [
        (ask(2, 9, ""), ErrorCode::ProtocolVersion),
        (ask(0, 0, ""), ErrorCode::ProtocolVersion),
        (ask(1, 1, "other"), ErrorCode::WrongCluster),
    ] {
        let status = soon(client.handshake(request)).await.expect_err("refused");
        assert_eq!(code(&status), Some(expected), "{status:?}");
    }
}

#[tokio::test]
async fn a_lookup_names_this_broker_or_what_is_wrong_with_the_name() {
    let served = served().await;
    let mut client = served.client().await;
    let mut ask = async |topic: &str| {
        let request = v1::LookupRequest { topic: topic.to_owned() };
        soon(client.lookup(request)).await.expect("answers").into_inner()
    };
    let here = ask("persistent://public/default/t").await;
    assert_eq!(
        (here.error, here.broker_id.as_str(), here.service_url.as_str()),
        (None, "broker", "")
    );
    let bad = ask("a/b").await;
    assert_eq!(error_code(bad.error.as_ref()), Some(ErrorCode::InvalidTopicName));
    let nowhere = ask("persistent://no/such/t").await;
    assert_eq!(error_code(nowhere.error.as_ref()), Some(ErrorCode::NamespaceNotFound));
}

#[tokio::test]
async fn an_entry_goes_round_and_its_bytes_leave_the_budget() {
    let served = served().await;
    let mut producer = served.produce().await;
    let opened = producer.open(7, "t").await;
    assert_eq!((opened.producer_id, opened.error), (7, None));
    for sequence_id in 0..10 {
        producer.send(7, sequence_id, entry("hello")).await;
    }
    let mut seen = Vec::new();
    while seen.len() < 10 {
        let ProduceResult::Receipts(receipts) = producer.next().await else {
            panic!("no receipts")
        };
        seen.extend(
            receipts.receipts.into_iter().map(|receipt| (receipt.sequence_id, receipt.index)),
        );
    }
    assert_eq!(seen, (0..10).map(|number| (number, number)).collect::<Vec<_>>());
    let mut consumer = served.consume().await;
    let subscribed = consumer.subscribe(3, "t", v1::SubscriptionType::Exclusive.into()).await;
    assert_eq!(subscribed.error, None);
    consumer.flow(3, 100, 1 << 20).await;
    let mut entries = Vec::new();
    while entries.len() < 10 {
        match consumer.next().await {
            Event::Delivery(delivery) => entries.extend(delivery.entries),
            Event::ActiveChange(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(entries.iter().all(|it| it.entry == entry("hello") && it.credit_messages == 1));
    // Everything was written to the socket: nothing of it counts any more.
    soon(async {
        while served.broker.budget().egress().used_bytes > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn refusals_are_typed_and_the_producer_stays_open() {
    let served = served().await;
    let mut producer = served.produce().await;
    assert_eq!(producer.open(1, "t").await.error, None);
    let mut damaged = entry("x").to_vec();
    if let Some(last) = damaged.last_mut() {
        *last ^= 1;
    }
    let lying = crate::testing::batch("x", 1000);
    let limit = served.broker.config().max_message_bytes as usize;
    let large = entry(&"x".repeat(limit + 1));
    let refused = [
        (Bytes::from(damaged), ErrorCode::ChecksumMismatch),
        (lying, ErrorCode::InvalidBatch),
        (large, ErrorCode::MessageTooLarge),
        (Bytes::from_static(b"no entry at all"), ErrorCode::InvalidRequest),
        (Bytes::new(), ErrorCode::InvalidRequest),
    ];
    for (sequence_id, (entry, expected)) in (0..).zip(refused) {
        producer.send(1, sequence_id, entry).await;
        let ProduceResult::SendFailed(failed) = producer.next().await else { panic!("taken") };
        assert_eq!(failed.sequence_id, sequence_id);
        assert_eq!(error_code(failed.error.as_ref()), Some(expected));
    }
    producer.send(1, 9, entry("fine")).await;
    assert!(matches!(producer.next().await, ProduceResult::Receipts(_)));
    let bad_name = producer.open(2, "a/b").await;
    assert_eq!(error_code(bad_name.error.as_ref()), Some(ErrorCode::InvalidTopicName));
    // A client that closed it before it heard of the refusal did nothing wrong.
    producer.push(Some(ProduceFrame::Close(v1::CloseProducer { producer_id: 2 }))).await;
    producer.send(1, 10, entry("fine")).await;
    assert!(matches!(producer.next().await, ProduceResult::Receipts(_)));
    // Only what the tail cache keeps stays in the budget; nothing of what was refused.
    soon(async {
        loop {
            let queues = served.broker.queues();
            let cached = queues.iter().find(|queue| queue.name == "tail cache");
            let cached = cached.expect("listed").bytes;
            if served.broker.budget().ingest().used_bytes == cached {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn frames_that_make_no_sense_end_their_stream_and_nothing_else() {
    let served = served().await;
    let close = |producer_id| Some(ProduceFrame::Close(v1::CloseProducer { producer_id }));
    let send = Some(ProduceFrame::Send(v1::SendEntry { producer_id: 9, ..Default::default() }));
    for frame in [None, close(9), send] {
        let mut stream = served.produce().await;
        stream.push(frame).await;
        let status = stream.try_next().await.expect_err("the stream is over");
        assert_eq!(
            (status.code(), code(&status)),
            (Code::InvalidArgument, Some(ErrorCode::InvalidRequest))
        );
    }
    let mut twice = served.produce().await;
    twice.open(1, "t").await;
    twice.ask_open(1, "t").await;
    let status = twice.try_next().await.expect_err("the stream is over");
    assert_eq!(code(&status), Some(ErrorCode::InvalidRequest));
    let flow = Some(ConsumeFrame::Flow(v1::Flow { consumer_id: 9, messages: 1, bytes: 1 }));
    for frame in [None, flow] {
        let mut stream = served.consume().await;
        stream.push(frame).await;
        let status = stream.try_next().await.expect_err("the stream is over");
        assert_eq!(code(&status), Some(ErrorCode::InvalidRequest));
    }
    served.assert_alive().await;
}

#[tokio::test]
async fn what_was_on_its_way_to_a_closed_producer_or_consumer_is_ignored() {
    let served = served().await;
    let mut producer = served.produce().await;
    producer.open(1, "t").await;
    producer.push(Some(ProduceFrame::Close(v1::CloseProducer { producer_id: 1 }))).await;
    producer.send(1, 0, entry("late")).await;
    let closed = producer.next().await;
    assert!(matches!(&closed, ProduceResult::Closed(it) if it.error.is_none()), "{closed:?}");
    assert_eq!(producer.open(2, "t").await.error, None);
    let mut consumer = served.consume().await;
    consumer.subscribe(1, "t", 0).await;
    consumer.push(Some(ConsumeFrame::Close(v1::CloseConsumer { consumer_id: 1 }))).await;
    consumer.flow(1, 10, 10).await;
    loop {
        match consumer.next().await {
            Event::Closed(closed) => {
                assert_eq!(closed.error, None);
                break;
            }
            Event::ActiveChange(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(consumer.subscribe(2, "t", 0).await.error, None);
}

#[tokio::test]
async fn what_is_not_built_is_named() {
    let served = served().await;
    let mut consumer = served.consume().await;
    let refused = consumer.subscribe(1, "t", v1::SubscriptionType::KeyShared.into()).await;
    let error = refused.error.expect("refused");
    assert_eq!(error.code(), ErrorCode::Unsupported);
    assert!(error.message.contains("Key_Shared"), "{}", error.message);
    assert_eq!(consumer.subscribe(2, "t", v1::SubscriptionType::Shared.into()).await.error, None);
}

#[tokio::test]
async fn a_consumer_that_grants_too_much_is_closed() {
    let config = GrpcConfig { max_consumer_credit_bytes: 1000, ..GrpcConfig::default() };
    let served = served_with(config).await;
    let mut consumer = served.consume().await;
    consumer.subscribe(1, "t", v1::SubscriptionType::Shared.into()).await;
    consumer.flow(1, 1, 1000).await;
    consumer.flow(1, 1, 1).await;
    let Event::Closed(closed) = consumer.next().await else { panic!("granted") };
    assert_eq!(error_code(closed.error.as_ref()), Some(ErrorCode::FlowControl));
}

#[tokio::test]
async fn a_cumulative_acknowledgement_of_several_positions_is_refused() {
    let served = served().await;
    let mut consumer = served.consume().await;
    consumer.subscribe(1, "t", v1::SubscriptionType::Shared.into()).await;
    let positions = vec![v1::AckPosition::default(); 2];
    let ack = v1::Acknowledge { consumer_id: 1, request_id: 5, cumulative: true, positions };
    consumer.push(Some(ConsumeFrame::Ack(ack))).await;
    let Event::AckReceipt(receipt) = consumer.next().await else { panic!("no receipt") };
    assert_eq!(receipt.request_id, 5);
    assert_eq!(error_code(receipt.error.as_ref()), Some(ErrorCode::InvalidRequest));
}

#[tokio::test]
async fn producers_consumers_and_connections_have_limits() {
    let config = GrpcConfig {
        max_producers_per_stream: 1,
        max_consumers_per_stream: 1,
        max_connections: 2,
        ..GrpcConfig::default()
    };
    let served = served_with(config).await;
    let mut producer = served.produce().await;
    assert_eq!(producer.open(1, "t").await.error, None);
    let refused = producer.open(2, "t").await;
    assert_eq!(error_code(refused.error.as_ref()), Some(ErrorCode::InvalidRequest));
    let mut consumer = served.consume().await;
    let shared = v1::SubscriptionType::Shared.into();
    assert_eq!(consumer.subscribe(1, "t", shared).await.error, None);
    let refused = consumer.subscribe(2, "t", shared).await;
    assert_eq!(error_code(refused.error.as_ref()), Some(ErrorCode::InvalidRequest));
    let mut third = soon(TcpStream::connect(served.addr)).await.expect("the kernel takes it");
    let mut byte = [0];
    let read = soon(third.read(&mut byte)).await;
    assert!(matches!(read, Ok(0) | Err(_)), "a third connection is closed: {read:?}");
    let counts = served.queues.counts();
    assert_eq!((counts.connections, counts.streams), (2, 2));
    assert_eq!(served.queues.stats().len(), 2);
}

#[tokio::test]
async fn raw_bytes_on_the_port_are_answered_or_dropped_and_harm_nobody() {
    let config =
        GrpcConfig { preface_timeout: Duration::from_millis(100), ..GrpcConfig::default() };
    let served = served_with(config).await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    let noise: Vec<u8> = (0..4096).map(|_| random()).collect();
    let mut cases: Vec<Vec<u8>> = vec![Vec::new(), noise.clone(), preface[..10].to_vec()];
    // What looks like HTTP/2 and then isn't, cut off anywhere.
    for cut in [1, 9, 64, 300, 4096] {
        cases.push([&preface[..], &noise[..cut]].concat());
    }
    // A frame that claims 16 MiB.
    cases.push([&preface[..], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat());
    for case in cases {
        let mut socket = soon(TcpStream::connect(served.addr)).await.expect("connects");
        // The server may have hung up on the first bytes.
        let _ = socket.write_all(&case).await;
        let _ = socket.shutdown().await;
        let mut rest = Vec::new();
        let _ = soon(socket.read_to_end(&mut rest)).await;
    }
    let mut http1 = soon(TcpStream::connect(served.addr)).await.expect("connects");
    http1.write_all(b"GET /admin/v2/tenants HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
    let mut answer = String::new();
    soon(http1.read_to_string(&mut answer)).await.expect("answered");
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("gRPC port"), "{answer}");
    served.assert_alive().await;
}

#[tokio::test]
async fn a_message_above_the_limit_ends_its_stream_with_a_status() {
    let served = served().await;
    let mut stream = served.produce().await;
    stream.open(1, "t").await;
    let limit = served.broker.config().max_message_bytes as usize;
    stream.send(1, 0, Bytes::from(vec![0; limit + super::config::DECODE_SLACK_BYTES])).await;
    let status = stream.try_next().await.expect_err("the stream is over");
    assert_eq!(status.code(), Code::OutOfRange, "{status:?}");
    served.assert_alive().await;
}

#[tokio::test]
async fn a_shutdown_answers_what_is_under_way_and_says_goodbye() {
    let served = served().await;
    let mut producer = served.produce().await;
    producer.open(1, "t").await;
    producer.send(1, 0, entry("last")).await;
    let mut consumer = served.consume().await;
    consumer.subscribe(1, "t", v1::SubscriptionType::Shared.into()).await;
    assert!(matches!(producer.next().await, ProduceResult::Receipts(_)));
    served.stop.send(()).expect("the server waits for it");
    let ProduceResult::Closed(closed) = producer.next().await else { panic!("not closed") };
    assert_eq!(error_code(closed.error.as_ref()), Some(ErrorCode::ShuttingDown));
    assert!(matches!(producer.try_next().await, Ok(None)));
    let Event::Closed(closed) = consumer.next().await else { panic!("not closed") };
    assert_eq!(error_code(closed.error.as_ref()), Some(ErrorCode::ShuttingDown));
    assert!(matches!(consumer.try_next().await, Ok(None)));
    drop((producer, consumer));
    soon(served.serving).await.expect("no panic").expect("served well");
    assert_eq!(served.queues.counts().streams, 0);
    assert!(TcpStream::connect(served.addr).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn at_the_budgets_limit_the_socket_is_not_read() {
    let served = served().await;
    let budget = served.broker.budget().clone();
    let all = budget.ingest().capacity_bytes - budget.ingest().used_bytes;
    let hog = budget.acquire(all).await;
    let mut producer = served.produce().await;
    producer.open(1, "t").await;
    for sequence_id in 0..20 {
        producer.send(1, sequence_id, entry("x")).await;
    }
    soon(async {
        while !budget.has_waiters() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let early = tokio::time::timeout(Duration::from_millis(50), producer.answers.next()).await;
    assert!(early.is_err(), "{early:?}");
    drop(hog);
    let ProduceResult::Receipts(receipts) = producer.next().await else { panic!("no receipts") };
    assert_eq!(receipts.receipts.first().map(|receipt| receipt.sequence_id), Some(0));
}
