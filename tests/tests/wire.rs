//! What a client of somebody else's making may send through the data port: entries and frames that
//! the broker must refuse. Each gets its error; the producer, its stream and everybody else go on,
//! and nothing of it is stored.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_proto::entry::encode_entry;
use geminga_proto::env::{Random, SeededRandom};
use geminga_proto::pulsar::proto::MessageMetadata;
use geminga_proto::v1::messaging_client::MessagingClient;
use geminga_proto::v1::produce_frame::Frame;
use geminga_proto::v1::produce_result::Result as Answer;
use geminga_proto::v1::{
    CloseProducer, ErrorCode, OpenProducer, ProduceFrame, ProduceRequest, ProduceResponse,
    SendEntry,
};
use geminga_tests::cli::{against, against_with_input};
use geminga_tests::standalone::{Standalone, home};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Long enough for any machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The broker's default limits.
const MAX_MESSAGE_BYTES: usize = 5 << 20;
const MAX_BATCH_MESSAGES: i32 = 100_000;

/// A Produce stream without a client's care.
struct RawProduce {
    requests: mpsc::Sender<ProduceRequest>,
    answers: Streaming<ProduceResponse>,
    /// Answers that came together with others.
    waiting: std::collections::VecDeque<Answer>,
}

impl RawProduce {
    async fn open(server: &Standalone) -> Self {
        Self::open_at(server.service_url()).await
    }

    async fn open_at(url: String) -> Self {
        let mut client = MessagingClient::connect(url).await.expect("connects");
        let (requests, outgoing) = mpsc::channel(16);
        let answers = client.produce(ReceiverStream::new(outgoing)).await.expect("a stream");
        Self { requests, answers: answers.into_inner(), waiting: std::collections::VecDeque::new() }
    }

    async fn push(&self, frame: Frame) {
        let frames = vec![ProduceFrame { frame: Some(frame) }];
        self.requests.send(ProduceRequest { frames }).await.expect("the stream is open");
    }

    /// The next answer, or how the stream ended.
    async fn next(&mut self) -> Result<Answer, Option<Status>> {
        loop {
            if let Some(answer) = self.waiting.pop_front() {
                return Ok(answer);
            }
            let message = tokio::time::timeout(PATIENCE, self.answers.message());
            let message = message.await.expect("it answers").map_err(Some)?.ok_or(None)?;
            self.waiting.extend(message.results.into_iter().filter_map(|one| one.result));
        }
    }

    async fn open_producer(&mut self, producer_id: u64, topic: &str) {
        let open = OpenProducer { producer_id, topic: topic.to_owned(), ..OpenProducer::default() };
        self.push(Frame::Open(open)).await;
        match self.next().await {
            Ok(Answer::Opened(opened)) => assert_eq!(opened.error, None),
            other => panic!("{other:?}"),
        }
    }

    async fn send(&self, producer_id: u64, sequence_id: u64, entry: Bytes) {
        self.push(Frame::Send(SendEntry { producer_id, sequence_id, entry })).await;
    }

    /// Demands that the entry is refused so, and that the text has these words.
    async fn refused(&mut self, sequence_id: u64, code: ErrorCode, words: &[&str]) {
        let failed = match self.next().await {
            Ok(Answer::SendFailed(failed)) => failed,
            other => panic!("{other:?} instead of {code:?}"),
        };
        let error = failed.error.expect("a refusal has a reason");
        assert_eq!((failed.sequence_id, error.code()), (sequence_id, code), "{error:?}");
        for word in words {
            assert!(error.message.contains(word), "{word:?} is missing in {:?}", error.message);
        }
    }

    async fn stored(&mut self, producer_id: u64, sequence_id: u64) {
        match self.next().await {
            Ok(Answer::Receipts(receipts)) => {
                let ids = receipts.receipts.iter().map(|receipt| receipt.sequence_id);
                let ids = ids.collect::<Vec<_>>();
                assert_eq!((receipts.producer_id, ids), (producer_id, vec![sequence_id]));
            }
            other => panic!("{other:?}"),
        }
    }
}

fn metadata(sequence_id: u64) -> MessageMetadata {
    MessageMetadata {
        producer_name: "hand-made".to_owned(),
        sequence_id,
        publish_time: 1,
        ..MessageMetadata::default()
    }
}

/// One message, as it should be.
fn good(sequence_id: u64) -> Bytes {
    encode_entry(&metadata(sequence_id), format!("good {sequence_id}").as_bytes())
}

fn counted(messages: i32, payload: &[u8]) -> Bytes {
    let counted = MessageMetadata { num_messages_in_batch: Some(messages), ..metadata(1) };
    encode_entry(&counted, payload)
}

/// The entry with one byte changed.
fn flipped(entry: &Bytes, at: usize) -> Bytes {
    let mut bytes = entry.to_vec();
    bytes[at] ^= 1;
    bytes.into()
}

fn consumed(server: &Standalone, topic: &str) -> String {
    let args = ["consume", topic, "-s", "s", "--until-caught-up"];
    String::from_utf8(against(server, &args).ok().stdout).expect("text")
}

/// What must be refused, with the code and words of the refusal.
fn bad_entries() -> Vec<(Bytes, ErrorCode, &'static [&'static str])> {
    use ErrorCode::{ChecksumMismatch, InvalidBatch, InvalidRequest, MessageTooLarge};
    let entry = good(1);
    let last = entry.len() - 1;
    let payload = [7; 1_000];
    let large = encode_entry(&metadata(1), &vec![7; MAX_MESSAGE_BYTES]);
    let not_metadata = {
        // The metadata claim more bytes than there are, and the checksum is right.
        let mut bytes = entry.to_vec();
        bytes[6..10].copy_from_slice(&u32::MAX.to_be_bytes());
        let crc = crc32c::crc32c(&bytes[6..]);
        bytes[2..6].copy_from_slice(&crc.to_be_bytes());
        Bytes::from(bytes)
    };
    vec![
        (flipped(&entry, last), ChecksumMismatch, &["checksum"]),
        (flipped(&entry, 3), ChecksumMismatch, &["checksum"]),
        (flipped(&entry, 11), ChecksumMismatch, &["checksum"]),
        (counted(0, &payload), InvalidBatch, &["batch of 0 messages"]),
        (counted(-1, &payload), InvalidBatch, &["batch of -1 messages"]),
        (counted(i32::MIN, &payload), InvalidBatch, &["-2147483648"]),
        (counted(MAX_BATCH_MESSAGES + 1, &[7; 200_000]), InvalidBatch, &["limit 100000"]),
        (counted(i32::MAX, &payload), InvalidBatch, &["limit 100000"]),
        (counted(1_001, &payload), InvalidBatch, &["1001 messages in 1000 bytes"]),
        (large, MessageTooLarge, &["max_message_size", "5242880"]),
        (entry.slice(..9), InvalidRequest, &["truncated"]),
        (not_metadata, InvalidRequest, &["truncated"]),
        (flipped(&entry, 0), InvalidRequest, &["0x0e01"]),
        (Bytes::new(), InvalidRequest, &["truncated"]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_entry_that_must_be_refused_gets_its_error_and_is_not_stored() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let mut stream = RawProduce::open(&server).await;
    stream.open_producer(1, "t").await;
    stream.open_producer(2, "other").await;
    let mut sequence_id = 0;
    for (entry, code, words) in bad_entries() {
        sequence_id += 1;
        stream.send(1, sequence_id, entry).await;
        stream.refused(sequence_id, code, words).await;
        // The same producer goes on, and its neighbour on the stream.
        stream.send(1, sequence_id, good(sequence_id)).await;
        stream.stored(1, sequence_id).await;
        stream.send(2, sequence_id, good(sequence_id)).await;
        stream.stored(2, sequence_id).await;
    }
    let expected: String = (1..=sequence_id).map(|id| format!("good {id}\n")).collect();
    tokio::task::block_in_place(|| {
        let stats = against(&server, &["admin", "topics", "stats", "t", "--output", "json"]).ok();
        assert_eq!(stats.json()["msgInCounter"].as_u64(), Some(sequence_id));
        assert_eq!(consumed(&server, "t"), expected);
        assert_eq!(consumed(&server, "other"), expected);
    });
    drop(stream);
    tokio::task::block_in_place(|| server.stop());
}

/// Frames after which the broker can't trust the stream any more.
fn bad_frames() -> Vec<(Vec<ProduceFrame>, &'static str)> {
    let one = |frame| vec![ProduceFrame { frame: Some(frame) }];
    let send = SendEntry { producer_id: 9, sequence_id: 1, entry: good(1) };
    let again = OpenProducer { producer_id: 1, topic: "t".to_owned(), ..Default::default() };
    vec![
        (one(Frame::Send(send)), "unknown producer 9"),
        (one(Frame::Close(CloseProducer { producer_id: 9 })), "unknown producer 9"),
        (one(Frame::Open(again)), "producer id 1 is or was in use"),
        (vec![ProduceFrame { frame: None }], "without content"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_frame_out_of_place_ends_its_stream_with_a_reason_and_no_other() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let mut bystander = RawProduce::open(&server).await;
    bystander.open_producer(1, "t").await;
    let mut sequence_id = 0;
    for (frames, words) in bad_frames() {
        let mut stream = RawProduce::open(&server).await;
        stream.open_producer(1, "t").await;
        stream.requests.send(ProduceRequest { frames }).await.expect("the stream is open");
        let ended = loop {
            match stream.next().await {
                Ok(Answer::Closed(_)) => {}
                Ok(other) => panic!("{other:?} for {words:?}"),
                Err(ended) => break ended.expect("a reason"),
            }
        };
        assert_eq!(ended.code(), tonic::Code::InvalidArgument, "{ended:?}");
        assert!(ended.message().contains(words), "{ended:?}");
        let code = ended.metadata().get("geminga-error-code").and_then(|code| code.to_str().ok());
        assert_eq!(code, Some("5"), "INVALID_REQUEST: {ended:?}");
        sequence_id += 1;
        bystander.send(1, sequence_id, good(sequence_id)).await;
        bystander.stored(1, sequence_id).await;
    }
    // A message of gRPC's far above what an entry may have isn't even read.
    let mut stream = RawProduce::open(&server).await;
    stream.open_producer(1, "t").await;
    stream.send(1, 1, vec![7; 64 << 20].into()).await;
    let ended = stream.next().await.expect_err("it is refused");
    assert!(ended.is_some_and(|status| status.code() == tonic::Code::OutOfRange));
    sequence_id += 1;
    bystander.send(1, sequence_id, good(sequence_id)).await;
    bystander.stored(1, sequence_id).await;
    let expected: String = (1..=sequence_id).map(|id| format!("good {id}\n")).collect();
    tokio::task::block_in_place(|| {
        assert_eq!(consumed(&server, "t"), expected);
        // And everybody else's client works as ever.
        drop(against_with_input(&server, &["produce", "t"], b"works\n").ok());
        assert_eq!(consumed(&server, "t"), "works\n");
    });
    drop((stream, bystander));
    tokio::task::block_in_place(|| server.stop());
}

/// Passes one connection on to `address` and keeps what the client sends. Answers where it listens.
fn recorder(address: String) -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let here = listener.local_addr().expect("it is bound").to_string();
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&recorded);
    std::thread::spawn(move || {
        let (client, _) = listener.accept().expect("the client comes");
        let server = TcpStream::connect(address).expect("the server is up");
        let (mut down, mut to_client) = (
            server.try_clone().expect("a socket can be cloned"),
            client.try_clone().expect("a socket can be cloned"),
        );
        // Both directions end with their sockets, whoever closes them.
        std::thread::spawn(move || drop(std::io::copy(&mut down, &mut to_client)));
        let (mut client, mut server, mut piece) = (client, server, vec![0; 65_536]);
        while let Ok(len @ 1..) = client.read(&mut piece) {
            keep.lock().extend_from_slice(&piece[..len]);
            if server.write_all(&piece[..len]).is_err() {
                break;
            }
        }
    });
    (here, recorded)
}

/// Sends bytes and the end of them, and takes what comes until the server has hung up: nothing of
/// them can be stored after that.
fn replay(address: &str, bytes: &[u8]) {
    let mut socket = TcpStream::connect(address).expect("the port is open");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    // It may hang up at any byte.
    let sent = socket.write_all(bytes).and_then(|()| socket.shutdown(Shutdown::Write));
    for result in [sent, socket.read_to_end(&mut Vec::new()).map(drop)] {
        if let Err(error) = result {
            let gone = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe, ErrorKind::NotConnected];
            assert!(gone.contains(&error.kind()), "the server doesn't hang up: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_session_that_is_cut_or_changed_on_its_way_does_no_harm_on_any_port() {
    const ENTRIES: u64 = 20;
    let seed = geminga_tests::seed();
    eprintln!("GEMINGA_SEED={seed}");
    let random = SeededRandom::new(seed);
    let home = home();
    let mut server = Standalone::start(home.path());
    let ports = server.ports().clone();
    let (relay, recorded) = recorder(ports.grpc.clone());
    let mut stream = RawProduce::open_at(format!("http://{relay}")).await;
    stream.open_producer(1, "t").await;
    for id in 1..=ENTRIES {
        stream.send(1, id, good(id)).await;
        stream.stored(1, id).await;
    }
    drop(stream);
    let recorded = recorded.lock().clone();
    assert!(recorded.len() > 1_000, "a session was recorded");
    tokio::task::block_in_place(|| {
        for address in [&ports.grpc, &ports.admin, &ports.bookie] {
            for round in 0..60 {
                let mut bytes = recorded.clone();
                let at = usize::try_from(random.below(bytes.len() as u64)).expect("it fits");
                if round % 2 == 0 {
                    bytes.truncate(at);
                } else {
                    bytes[at] ^= 1 << random.below(8);
                }
                replay(address, &bytes);
            }
        }
        // A session that is cut may have stored what was whole of it, again; nothing else.
        let mut text = consumed(&server, "t");
        let expected: String = (1..=ENTRIES).map(|id| format!("good {id}\n")).collect();
        assert!(text.starts_with(&expected), "{text}");
        for id in 1..=ENTRIES {
            text = text.replace(&format!("good {id}\n"), "");
        }
        assert_eq!(text, "", "what nobody sent is stored");
        drop(against_with_input(&server, &["produce", "t"], b"works\n").ok());
        assert!(consumed(&server, "t").ends_with("works\n"));
        server.stop();
    });
}
