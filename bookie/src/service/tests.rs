//! The service over a real loopback connection.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use geminga_proto::env::Env;
use geminga_proto::id::{BookieId, ClusterId};
use geminga_proto::v1::bookie_client::BookieClient;
use geminga_proto::{BOOKIE_HEADER, CLUSTER_HEADER};
use prost::Message as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Server};

use super::*;
use crate::config::BookieConfig;
use crate::cookie::Identity;
use crate::device::memory::MemoryDevice;

mod reads;

pub(super) fn bookie() -> Bookie {
    let config = BookieConfig {
        segment_bytes: Some(1 << 20),
        // Takes all that one test appends, though each entry had a group of its own.
        first_segment_bytes: 1 << 20,
        max_entry_bytes: 128 * 1024,
        ..BookieConfig::default()
    };
    let name = BookieId::new("b").expect("a name");
    let identity = Identity::detached(name, ClusterId::new("c").expect("a name"), 42);
    let device = Arc::new(MemoryDevice::new(64 << 20));
    Bookie::open(config, identity, device, Env::system()).expect("opens").0
}

pub(super) type Client =
    BookieClient<InterceptedService<Channel, fn(Request<()>) -> Result<Request<()>, Status>>>;

/// Says whom a request is meant for, unless the test says otherwise.
pub(super) fn addressed(mut request: Request<()>) -> Result<Request<()>, Status> {
    let headers = request.metadata_mut();
    for (header, name) in [(CLUSTER_HEADER, "c"), (BOOKIE_HEADER, "b")] {
        if !headers.contains_key(header) {
            headers.insert(header, MetadataValue::from_static(name));
        }
    }
    Ok(request)
}

async fn connect(bookie: Bookie) -> Client {
    connect_to(BookieService::new(bookie)).await
}

async fn connect_to(service: BookieService) -> Client {
    BookieClient::with_interceptor(channel_to(service).await, addressed)
}

async fn channel_to(service: BookieService) -> Channel {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let server = Server::builder().add_service(service.into_server());
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("connects")
}

pub(super) fn add(request_id: u64, ledger_id: u64, entry_id: u64) -> pb::AppendRequest {
    pb::AppendRequest {
        request_id,
        ledger_id,
        entry_id,
        token: 1,
        lac: -1,
        flags: 0,
        payload: Bytes::from_static(b"payload"),
    }
}

async fn append(
    client: &mut Client,
    requests: Vec<pb::AppendRequest>,
) -> Vec<(u64, pb::BookieStatus)> {
    let batch = pb::AppendBatch { requests };
    let mut answers = client.append(stream::iter([batch])).await.expect("a stream").into_inner();
    let mut all = Vec::new();
    while let Some(answer) = answers.message().await.expect("an answer") {
        all.extend(answer.answers.iter().map(|answer| (answer.request_id, answer.status())));
    }
    all.sort_by_key(|answer| answer.0);
    all
}

fn read(request_id: u64, ledger_id: u64, first_entry_id: u64) -> pb::ReadRequest {
    let (max_entries, max_bytes) = (10, 1 << 20);
    pb::ReadRequest {
        request_id,
        ledger_id,
        first_entry_id,
        max_entries,
        max_bytes,
        fence: false,
        token: 0,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_reads_fences_and_info_travel_over_a_connection() {
    let mut client = connect(bookie()).await;
    let requests = (0..100).map(|entry| add(entry, 5, entry)).collect();
    let answers = append(&mut client, requests).await;
    assert_eq!(answers, (0..100).map(|id| (id, pb::BookieStatus::Ok)).collect::<Vec<_>>());

    let batch = pb::ReadBatch {
        requests: vec![read(1, 5, 95), read(2, 5, 100), read(3, 6, 0)],
        fences: vec![],
    };
    let mut reads = client.read(stream::iter([batch])).await.expect("a stream").into_inner();
    let mut found = Vec::new();
    while let Some(answers) = reads.message().await.expect("an answer") {
        found.extend(answers.answers);
    }
    found.sort_by_key(|answer| answer.request_id);
    let statuses: Vec<_> = found.iter().map(pb::ReadAnswer::status).collect();
    let none = pb::BookieStatus::NoSuchEntry;
    assert_eq!(statuses, [pb::BookieStatus::Ok, none, none]);
    assert_eq!(found[0].entries.len(), 5);
    assert_eq!(found[0].entries[4].payload, "payload");

    let fence = pb::FenceRequest { ledger_id: 5, token: 1, request_id: 0 };
    let fenced = client.fence(fence).await.expect("an answer").into_inner();
    assert_eq!((fenced.status(), fenced.lac), (pb::BookieStatus::Ok, -1));
    let late = append(&mut client, vec![add(1, 5, 100)]).await;
    assert_eq!(late, [(1, pb::BookieStatus::FencedLedger)]);
    let scrub = client.scrub(pb::ScrubRequest { start: true }).await.expect("an answer");
    // Nothing is sealed yet.
    assert_eq!((scrub.get_ref().running, scrub.get_ref().total_bytes), (false, 0));
    let info = client.info(pb::InfoRequest {}).await.expect("an answer").into_inner();
    assert_eq!((info.bookie_id.as_str(), info.ledgers, info.writable), ("b", 1, true));
    let asked = pb::LedgersFencedRequest {
        ledger_ids: vec![5, 6, 5, 7, 8, 9, 10, 11, 5],
        tokens: vec![1, 1, 2, 1, 1, 1, 1, 1, 1],
    };
    let answer = client.ledgers_fenced(asked.clone()).await.expect("an answer").into_inner();
    assert_eq!(answer.fenced[..], [0b101, 1], "also under a token that isn't the ledger's");
    let uneven = pb::LedgersFencedRequest { tokens: vec![1], ..asked };
    let refused = client.ledgers_fenced(uneven).await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let hint = pb::DeleteHintRequest { ledger_ids: vec![5] };
    client.delete_hint(hint).await.expect("an answer");
    let long = pb::DeleteHintRequest { ledger_ids: vec![5; MAX_HINTED + 1] };
    let refused = client.delete_hint(long).await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_ledgers_are_fenced_over_a_stream_of_reads() {
    let bookie = bookie();
    let mut client = connect(bookie.clone()).await;
    append(&mut client, (0..10).map(|ledger| add(ledger, ledger, 0)).collect()).await;
    let fence = |id| pb::FenceRequest { ledger_id: id, token: 1, request_id: id };
    let mut fences: Vec<_> = (0..1_000).map(fence).collect();
    fences.push(pb::FenceRequest { ledger_id: 5, token: 2, request_id: 1_000 });
    let batch = pb::ReadBatch { requests: vec![read(7, 5, 0)], fences };
    let mut answers = client.read(stream::iter([batch])).await.expect("a stream").into_inner();
    let (mut fenced, mut reads) = (Vec::new(), 0);
    while let Some(message) = answers.message().await.expect("an answer") {
        fenced.extend(message.fences.iter().map(|answer| (answer.request_id, answer.status())));
        reads += message.answers.len();
    }
    fenced.sort_unstable();
    let mut expected: Vec<_> = (0..1_000).map(|id| (id, pb::BookieStatus::Ok)).collect();
    expected.push((1_000, pb::BookieStatus::WrongToken));
    assert_eq!((fenced, reads), (expected, 1));
    let late = append(&mut client, vec![add(1, 999, 0)]).await;
    assert_eq!(late, [(1, pb::BookieStatus::FencedLedger)]);
    assert!(bookie.metrics().groups < 500, "fences share writes: {:?}", bookie.metrics());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_append_gets_its_own_status_and_spoils_no_other() {
    let mut client = connect(bookie()).await;
    let answers = append(
        &mut client,
        vec![
            add(1, 5, 0),
            pb::AppendRequest { flags: 64, ..add(2, 5, 1) },
            pb::AppendRequest { token: 0, ..add(3, 5, 1) },
            pb::AppendRequest { token: 9, ..add(4, 5, 1) },
            pb::AppendRequest { payload: vec![0; 200 * 1024].into(), ..add(5, 5, 1) },
            add(6, 5, 1),
        ],
    );
    use pb::BookieStatus::{Invalid, Ok, TooLarge, WrongToken};
    let expected = [(1, Ok), (2, Invalid), (3, Invalid), (4, WrongToken), (5, TooLarge), (6, Ok)];
    assert_eq!(answers.await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_appends_than_may_be_in_flight_are_all_answered() {
    let bookie = bookie();
    let batches = (0..40).map(|batch| {
        let requests = (0..50).map(|at| add(batch * 50 + at, 1, batch * 50 + at)).collect();
        let batch = pb::AppendBatch { requests }.encode_to_vec();
        Ok(append_wire::decode(&batch[..]).expect("a batch"))
    });
    let requests = stream::iter(batches.collect::<Vec<_>>());
    let mut answers = AppendStream::start(bookie, requests, 7, Stopping::never());
    let mut answered = Vec::new();
    while let Some(batch) = answers.next().await {
        let batch = batch.expect("no error");
        assert!(batch.answers.len() <= 7);
        answered.extend(batch.answers.iter().map(|answer| answer.request_id));
    }
    answered.sort_unstable();
    assert_eq!(answered, (0..2_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_tells_another_cluster_bookie_or_protocol_what_is_wrong() {
    let mut client = connect(bookie()).await;
    let good = pb::BookieHandshakeRequest {
        min_protocol: 1,
        max_protocol: 9,
        cluster_id: "c".to_owned(),
        node_id: "broker".to_owned(),
        expected_bookie_id: "b".to_owned(),
    };
    let shaken = client.handshake(good.clone()).await.expect("agrees").into_inner();
    assert_eq!((shaken.protocol, shaken.bookie_id.as_str()), (1, "b"));
    for (bad, words) in [
        (pb::BookieHandshakeRequest { min_protocol: 2, ..good.clone() }, "speaks protocols 1 to 1"),
        (
            pb::BookieHandshakeRequest { min_protocol: 0, max_protocol: 0, ..good.clone() },
            "use releases that overlap",
        ),
        (pb::BookieHandshakeRequest { cluster_id: "x".into(), ..good.clone() }, "cluster c"),
        (pb::BookieHandshakeRequest { expected_bookie_id: "x".into(), ..good }, "this is bookie b"),
    ] {
        let status = client.handshake(bad).await.expect_err("refused");
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert!(status.message().contains(words), "{}", status.message());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_meant_for_somebody_else_is_refused() {
    let mut client = connect(bookie()).await;
    for header in [CLUSTER_HEADER, BOOKIE_HEADER] {
        let other = MetadataValue::from_static("other");
        let mut fence = Request::new(pb::FenceRequest { ledger_id: 5, token: 1, request_id: 0 });
        fence.metadata_mut().insert(header, other.clone());
        let refused = client.fence(fence).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
        assert!(refused.message().contains("other"), "{refused}");
        let mut hint = Request::new(pb::DeleteHintRequest { ledger_ids: vec![5] });
        hint.metadata_mut().insert(header, other.clone());
        assert!(client.delete_hint(hint).await.is_err());
        let mut appends = Request::new(stream::iter(Vec::<pb::AppendBatch>::new()));
        appends.metadata_mut().insert(header, other.clone());
        assert!(client.append(appends).await.is_err());
        let mut reads = Request::new(stream::iter(Vec::<pb::ReadBatch>::new()));
        reads.metadata_mut().insert(header, other);
        assert!(client.read(reads).await.is_err());
    }
    assert!(client.fence(pb::FenceRequest { ledger_id: 5, token: 1, request_id: 0 }).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_say_whom_it_is_meant_for_is_refused() {
    let mut client = BookieClient::new(channel_to(BookieService::new(bookie())).await);
    let refused = client.fence(pb::FenceRequest { ledger_id: 5, token: 1, request_id: 0 }).await;
    let refused = refused.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains(CLUSTER_HEADER), "{refused}");
    assert!(client.delete_hint(pb::DeleteHintRequest { ledger_ids: vec![5] }).await.is_err());
    assert!(client.append(stream::iter(Vec::<pb::AppendBatch>::new())).await.is_err());
    assert!(client.read(stream::iter(Vec::<pb::ReadBatch>::new())).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit_are_refused_until_others_end() {
    let service = BookieService { streams: StreamLimit::new(2), ..BookieService::new(bookie()) };
    let mut client = connect_to(service).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let (requests, asked) = tokio::sync::mpsc::channel::<pb::ReadBatch>(1);
        let reads = client.read(ReceiverStream::new(asked)).await;
        open.push((requests, reads.expect("a stream")));
    }
    let refused = client.append(stream::pending::<pb::AppendBatch>()).await;
    assert_eq!(refused.expect_err("refused").code(), tonic::Code::ResourceExhausted);
    open.clear();
    for _ in 0..500 {
        if client.append(stream::iter(Vec::<pb::AppendBatch>::new())).await.is_ok() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the place of an ended stream is never free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_claim_more_than_a_stream_may_hold_are_all_answered() {
    let mut client = connect(bookie()).await;
    let payload = Bytes::from(vec![7; 100_000]);
    let appends =
        (0..20).map(|entry| pb::AppendRequest { payload: payload.clone(), ..add(entry, 5, entry) });
    append(&mut client, appends.collect()).await;
    let requests =
        (0..60).map(|id| pb::ReadRequest { max_bytes: u64::MAX, ..read(id, 5, id % 10) });
    let batch = pb::ReadBatch { requests: requests.collect(), fences: vec![] };
    let mut reads = client.read(stream::iter([batch])).await.expect("a stream").into_inner();
    let mut answered = 0;
    while let Some(answers) = reads.message().await.expect("an answer") {
        assert!(answers.answers.iter().all(|answer| answer.entries.len() == 10));
        answered += answers.answers.len();
    }
    assert_eq!(answered, 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_get_no_share_of_the_bytes_of_all_streams_are_refused_as_overloaded() {
    let bookie = bookie();
    let wait = std::time::Duration::from_millis(20);
    let untaken = ReadBudget::new(256 * 1024, wait);
    let most = untaken.claim(u32::MAX).await.expect("nobody holds anything");
    let ask = || {
        let batch =
            Ok(pb::ReadBatch { requests: vec![read(1, 5, 0), read(2, 6, 0)], fences: vec![] });
        let (bookie, never) = (bookie.clone(), Stopping::never());
        read_stream::answer(bookie, untaken.clone(), stream::iter([batch]), never)
    };
    let statuses = |answers: Vec<Result<pb::ReadAnswers, Status>>| {
        let answers = answers.into_iter().flat_map(|message| message.expect("no error").answers);
        answers.map(|answer| answer.status()).collect::<Vec<_>>()
    };
    let refused = statuses(ask().collect().await);
    assert_eq!(refused, [pb::BookieStatus::Overloaded; 2]);
    drop(most);
    let answered = statuses(ask().collect().await);
    assert_eq!(answered, [pb::BookieStatus::NoSuchEntry; 2]);
}
