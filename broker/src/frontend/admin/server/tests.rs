//! The port itself, over real sockets: what it lets through, refuses and outlives.

use super::*;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use tokio::sync::{Notify, oneshot};

use crate::frontend::admin::guard::{Guard, guard};

/// What the handler of `/later` tells.
#[derive(Debug, Clone, Default)]
struct Later {
    started: Arc<Notify>,
    finished: Arc<Notify>,
}

/// A port that serves a few paths until it is told to stop.
struct Port {
    later: Later,
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    done: tokio::task::JoinHandle<()>,
}

impl Port {
    async fn open(config: AdminConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let later_state = Later::default();
        let routes = Router::new()
            .route("/ok", get(async || "ok").post(async |body: String| body))
            .route("/slow", get(async || tokio::time::sleep(Duration::from_secs(3600)).await))
            .route("/later", get(later).with_state(later_state.clone()))
            .route("/panic", get(panics));
        let guarded = Router::new()
            .fallback_service(routes)
            .layer(axum::middleware::from_fn_with_state(Guard::new(config.clone()), guard));
        let done = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            run(listener, &config, guarded, stopped).await;
        });
        Self { later: later_state, address, stop, done }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("accepted")
    }

    /// Sends bytes, closes this side, and reads all that comes.
    async fn exchange(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.connect().await;
        // The other side may close before it has read everything: that is not this side's error.
        let _unread = stream.write_all(bytes).await;
        let _closed = stream.shutdown().await;
        read_all(&mut stream).await
    }

    /// Sends a request that ends its connection, and reads the answer.
    async fn text(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        let _unread = stream.write_all(request.as_bytes()).await;
        String::from_utf8_lossy(&read_all(&mut stream).await).into_owned()
    }

    async fn assert_serves(&self) {
        let answer = self.text("GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("ok"), "{answer}");
    }
}

async fn later(State(later): State<Later>) -> &'static str {
    later.started.notify_one();
    tokio::time::sleep(Duration::from_millis(200)).await;
    later.finished.notify_one();
    "later"
}

async fn panics() -> &'static str {
    panic!("on purpose")
}

async fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut all));
    // A reset ends the connection as well as an orderly close does.
    let _reset = read.await.expect("the connection is closed in time");
    all
}

fn quick() -> AdminConfig {
    AdminConfig {
        head_timeout: Duration::from_millis(300),
        body_timeout: Duration::from_millis(300),
        request_timeout: Duration::from_millis(500),
        shutdown_grace: Duration::from_secs(5),
        ..AdminConfig::default()
    }
}

#[tokio::test]
async fn random_and_truncated_bytes_end_their_own_connection_only() {
    let port = Port::open(quick()).await;
    let random = geminga_proto::env::SeededRandom::new(7);
    for length in [1_usize, 2, 3, 8, 100, 20_000] {
        use geminga_proto::env::Random;
        let bytes: Vec<u8> = (0..length).map(|_| random.next_u64().to_le_bytes()[0]).collect();
        let answer = port.exchange(&bytes).await;
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{length}: {answer:?}");
    }
    for bytes in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\x00\x00\x00\x10\x00\x00\x00\x0c\x08\x02\x12\x06",
        b"GET",
        b"GET /ok HTTP/1.1\r\nhost: x",
        b"PRI",
        b"",
    ] {
        let answer = port.exchange(bytes).await;
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{bytes:?}: {answer:?}");
        port.assert_serves().await;
    }
}

#[tokio::test]
async fn a_grpc_client_is_told_that_this_is_not_its_port() {
    let port = Port::open(quick()).await;
    let answer = port.exchange(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    let (settings, goaway) = answer.split_at(9);
    assert_eq!(settings, [0, 0, 0, 4, 0, 0, 0, 0, 0]);
    let (head, payload) = goaway.split_at(9);
    assert_eq!(head[..3], u32::try_from(payload.len()).expect("short").to_be_bytes()[1..]);
    assert_eq!(head[3..], [7, 0, 0, 0, 0, 0]);
    assert_eq!(payload[..8], [0, 0, 0, 0, 0, 0, 0, 0xd]);
    assert!(String::from_utf8_lossy(&payload[8..]).contains("admin port"));
}

#[tokio::test]
async fn a_connection_that_is_silent_or_dribbles_is_closed() {
    let port = Port::open(quick()).await;
    let mut silent = port.connect().await;
    let mut dribbling = port.connect().await;
    dribbling.write_all(b"GET /ok HTTP/1.1\r\nhos").await.expect("written");
    let mut idle = port.connect().await;
    idle.write_all(b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    assert_eq!(read_all(&mut silent).await, b"");
    assert!(!read_all(&mut dribbling).await.starts_with(b"HTTP/1.1 2"));
    assert!(read_all(&mut idle).await.starts_with(b"HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn a_body_that_does_not_come_is_answered_408() {
    let port = Port::open(quick()).await;
    let mut stream = port.connect().await;
    let head = b"POST /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\nab";
    stream.write_all(head).await.expect("written");
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with(b"HTTP/1.1 408 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn a_body_or_a_head_beyond_its_limit_is_refused() {
    let port = Port::open(quick()).await;
    let body = "x".repeat(quick().max_body_bytes + 1);
    let length = body.len();
    let request = format!(
        "POST /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let answer = port.text(&request).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let header = "x".repeat(quick().max_head_bytes);
    let answer = port.text(&format!("GET /ok HTTP/1.1\r\nhost: {header}\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    port.assert_serves().await;
}

#[tokio::test]
async fn a_handler_that_takes_too_long_or_panics_is_an_answer() {
    let port = Port::open(quick()).await;
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let slow = port.text(&ask("/slow")).await;
    assert!(slow.starts_with("HTTP/1.1 504 ") && slow.contains("the work goes on"), "{slow}");
    let port = Port::open(AdminConfig::default()).await;
    let panicked = port.text(&ask("/panic")).await;
    assert!(panicked.starts_with("HTTP/1.1 500 "), "{panicked}");
    port.assert_serves().await;
}

#[tokio::test]
async fn a_connection_beyond_the_limit_is_answered_503() {
    let port = Port::open(AdminConfig { max_connections: 1, ..AdminConfig::default() }).await;
    let mut first = port.connect().await;
    first.write_all(b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    let mut start = [0; 12];
    first.read_exact(&mut start).await.expect("answered");
    assert_eq!(&start, b"HTTP/1.1 200");
    let mut second = port.connect().await;
    let answer = String::from_utf8(read_all(&mut second).await).expect("ASCII");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a body");
    assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
    let json: serde_json::Value = serde_json::from_str(body).expect("JSON");
    assert!(json["reason"].as_str().is_some_and(|reason| reason.contains("connections")));
}

#[tokio::test]
async fn requests_beyond_the_limit_are_answered_503_until_the_others_are_done() {
    let config = AdminConfig { max_requests: 1, ..quick() };
    let port = Port::open(config).await;
    let mut stays = port.connect().await;
    stays.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    let mut start = [0; 12];
    stays.read_exact(&mut start).await.expect("answered");
    assert_eq!(&start, b"HTTP/1.1 504");
    // Its client has its answer, but the work goes on and counts.
    let answer = port.text("GET /ok HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
}

#[tokio::test]
async fn a_shutdown_lets_the_answer_under_way_be_sent_and_closes_idle_connections() {
    let port = Port::open(AdminConfig::default()).await;
    let mut idle = port.connect().await;
    let mut working = port.connect().await;
    working.write_all(b"GET /later HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    port.later.started.notified().await;
    port.stop.send(()).expect("running");
    let answer = String::from_utf8(read_all(&mut working).await).expect("ASCII");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("later"), "{answer}");
    assert_eq!(read_all(&mut idle).await, b"");
    tokio::time::timeout(Duration::from_secs(4), port.done).await.expect("ends").expect("no panic");
    assert!(TcpStream::connect(port.address).await.is_err());
}

#[tokio::test]
async fn a_request_whose_client_goes_away_is_carried_through() {
    let port = Port::open(AdminConfig::default()).await;
    let mut stream = port.connect().await;
    stream.write_all(b"GET /later HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    port.later.started.notified().await;
    drop(stream);
    let finished = port.later.finished.notified();
    tokio::time::timeout(Duration::from_secs(20), finished).await.expect("carried through");
}
