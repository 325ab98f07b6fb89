//! The transport when what it calls panics, and its limits. No bookie is reached.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use geminga_proto::id::{EntryId, Lac, LedgerToken};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{AddKind, AppendResult};
use geminga_proto::v1;
use prost::Message;

use super::*;

/// An upper limit.
const SOON: Duration = Duration::from_secs(10);

/// Knows no bookie.
#[derive(Debug, Default)]
struct Nowhere {
    /// The next question panics.
    panics: AtomicBool,
}

impl BookieDirectory for Nowhere {
    fn address(&self, _: &BookieId) -> Option<String> {
        assert!(!self.panics.swap(false, Ordering::SeqCst), "a defect");
        None
    }
}

#[derive(Debug, Default)]
struct Sink {
    panics: bool,
    unreachable: AtomicU32,
    other: AtomicU32,
}

impl AppendSink for Sink {
    fn append_done(&self, _: &BookieId, _: EntryId, result: AppendResult) {
        assert!(!self.panics, "a defect");
        let unreachable = result == Err(BookieError::Unreachable);
        let count = if unreachable { &self.unreachable } else { &self.other };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

fn name() -> BookieId {
    BookieId::new("b").expect("valid")
}

fn config() -> GrpcTransportConfig {
    let cluster = ClusterId::new("c").expect("valid");
    GrpcTransportConfig {
        reconnect_delay_ms: 20,
        ..GrpcTransportConfig::new(cluster, "n".to_owned())
    }
}

fn transport(config: GrpcTransportConfig, directory: Nowhere) -> GrpcTransport {
    GrpcTransport::new(config, Arc::new(directory), tokio::runtime::Handle::current())
}

fn append(transport: &GrpcTransport, sink: &Arc<Sink>) {
    let sink: Arc<dyn AppendSink> = sink.clone();
    let request = AppendRequest {
        ledger: LedgerId(1),
        entry: EntryId(0),
        token: LedgerToken(1),
        lac: Lac::NONE,
        kind: AddKind::Ordinary,
        payload: Payload::from(bytes::Bytes::from_static(b"payload")),
    };
    transport.append(&name(), request, &sink);
}

async fn read(transport: &GrpcTransport) -> ReadResult {
    let (ledger, first) = (LedgerId(1), EntryId(0));
    let request = ReadRequest { ledger, first, max_entries: 1, max_bytes: 1, fence: None };
    let bookie = name();
    let read = tokio::time::timeout(SOON, transport.read(&bookie, request));
    read.await.expect("every question is answered")
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, waiting).await.is_ok(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_task_panics_answers_everything_and_is_served_again() {
    let transport = transport(config(), Nowhere { panics: AtomicBool::new(true) });
    let sink = Arc::new(Sink::default());
    append(&transport, &sink);
    assert_eq!(read(&transport).await, Err(BookieError::Unreachable));
    until("the append is answered", || sink.unreachable.load(Ordering::SeqCst) == 1).await;
    assert_eq!(read(&transport).await, Err(BookieError::Unreachable));
    append(&transport, &sink);
    until("the next, too", || sink.unreachable.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_panics_takes_no_answer_from_others_and_no_room() {
    let most = 4;
    let config = GrpcTransportConfig { max_pending_appends_per_bookie: most, ..config() };
    let transport = transport(config, Nowhere::default());
    let bad = Arc::new(Sink { panics: true, ..Sink::default() });
    let good = Arc::new(Sink::default());
    for round in 1..=3 {
        append(&transport, &bad);
        append(&transport, &good);
        append(&transport, &bad);
        append(&transport, &good);
        until("others are answered", || good.unreachable.load(Ordering::SeqCst) == 2 * round).await;
        // All of the round's answers have been given once a question of afterwards has its own.
        assert_eq!(read(&transport).await, Err(BookieError::Unreachable));
    }
    assert_eq!(good.other.load(Ordering::SeqCst), 0, "there was room");
}

#[test]
fn the_largest_entry_fits_into_a_message_with_its_header() {
    let payload = vec![0; 64 << 20].into();
    let entry = v1::StoredEntry { entry_id: u64::MAX, lac: i64::MAX, payload };
    let answer = v1::ReadAnswer { request_id: u64::MAX, status: 1, entries: vec![entry] };
    let message = v1::ReadAnswers { answers: vec![answer], fences: vec![] };
    assert!(message.encoded_len() <= config().max_message_bytes);
}

/// Knows where something listens.
#[derive(Debug)]
struct At(String);

impl BookieDirectory for At {
    fn address(&self, _: &BookieId) -> Option<String> {
        Some(self.0.clone())
    }
}

#[tokio::test]
async fn a_bookie_that_hangs_while_it_is_connected_to_holds_nobody_up_and_is_connected_to_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let taken = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&taken);
    let hung = tokio::spawn(async move {
        let mut sockets = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            sockets.push(socket);
        }
    });
    // Nothing below would be answered in time if it waited for this.
    let forever_ms = 3_600_000;
    let config =
        GrpcTransportConfig { connect_timeout_ms: forever_ms, connect_patience_ms: 20, ..config() };
    let directory = Arc::new(At(format!("http://{address}")));
    let runtime = tokio::runtime::Handle::current();
    let transport = GrpcTransport::new(config, directory, runtime);
    let sink = Arc::new(Sink::default());
    for asked in 1..=5 {
        assert_eq!(read(&transport).await, Err(BookieError::Unreachable));
        append(&transport, &sink);
        let answered = || sink.unreachable.load(Ordering::SeqCst) == asked;
        until("an append is answered", answered).await;
    }
    assert_eq!(taken.load(Ordering::SeqCst), 1, "connecting goes on meanwhile");
    hung.abort();
}
