//! First bytes and their places, over loopback.

use futures_util::{FutureExt, StreamExt};

use super::*;

const LONG: Duration = Duration::from_secs(30);

struct Port {
    address: SocketAddr,
    incoming: Incoming,
    places: Places,
}

async fn port(limit: usize, preface_timeout: Duration) -> Port {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let config = IncomingConfig { limit, preface_timeout, whose_port: "This is a test's port." };
    let places = Places::default();
    Port { address, incoming: Incoming::new(listener, config, places.clone()), places }
}

impl Port {
    async fn connect(&self, bytes: &[u8]) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).await.expect("connects");
        socket.write_all(bytes).await.expect("sent");
        socket
    }

    /// The next connection that speaks HTTP/2.
    async fn next(&mut self) -> Accepted {
        let next = tokio::time::timeout(LONG, self.incoming.next()).await;
        next.expect("in time").expect("it goes on").expect("no error")
    }

    /// What `socket` hears until the port closes it, while the port is at work.
    async fn hears(&mut self, socket: &mut TcpStream) -> String {
        let mut heard = String::new();
        tokio::select! {
            // What was not read may make the close a reset.
            read = socket.read_to_string(&mut heard) => drop(read),
            _ = self.incoming.next() => panic!("it spoke no HTTP/2"),
            () = tokio::time::sleep(LONG) => panic!("it is never closed"),
        }
        heard
    }
}

#[test]
fn a_connection_that_stops_within_its_preface_costs_few_looks() {
    let mut waited = Duration::ZERO;
    let in_time = pauses().take_while(|pause| {
        waited += *pause;
        waited <= Duration::from_secs(10)
    });
    assert!(in_time.count() < 32);
    assert_eq!(pauses().next(), Some(PREFACE_PAUSE));
}

#[test]
fn first_bytes_are_judged_as_soon_as_they_are_enough() {
    for cut in 0..PREFACE.len() {
        assert_eq!(judge(&PREFACE[..cut]), None, "{cut}");
    }
    assert_eq!(judge(PREFACE), Some(Begin::Http2));
    assert_eq!(judge(b"P"), None);
    assert_eq!(judge(b"PU"), None);
    assert_eq!(judge(b"PUT /x"), Some(Begin::Http1));
    assert_eq!(judge(b"GET / HTTP/1.1"), Some(Begin::Http1));
    assert_eq!(judge(b"PRX"), Some(Begin::Other));
    assert_eq!(judge(b"\0\0\0\x08"), Some(Begin::Other));
}

#[test]
fn places_are_counted_up_to_their_limit() {
    let places = Places::default();
    let first = places.take(1).expect("room");
    assert!(places.take(1).is_none());
    assert_eq!(places.taken(), 1);
    drop(first);
    assert!(places.take(1).is_some());
    assert_eq!(places.taken(), 0);
}

#[tokio::test]
async fn a_preface_in_pieces_is_waited_for_and_left_to_be_read() {
    let mut port = port(1, LONG).await;
    let mut socket = port.connect(&PREFACE[..5]).await;
    // A round that finds the first piece, and nothing that could be handed out.
    assert!(port.incoming.next().now_or_never().is_none());
    socket.write_all(&PREFACE[5..]).await.expect("sent");
    let mut accepted = port.next().await;
    let mut read = vec![0; PREFACE.len()];
    accepted.read_exact(&mut read).await.expect("all of it");
    assert_eq!(read, PREFACE);
}

#[tokio::test]
async fn one_that_says_nothing_keeps_no_other_waiting() {
    let mut port = port(2, LONG).await;
    let _silent = port.connect(b"").await;
    let _speaks = port.connect(PREFACE).await;
    let _accepted = port.next().await;
    assert_eq!(port.places.taken(), 2);
}

#[tokio::test]
async fn whoever_speaks_http1_is_told_whose_port_it_is_and_has_no_place_then() {
    let mut port = port(1, LONG).await;
    let mut socket = port.connect(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    let heard = port.hears(&mut socket).await;
    assert!(heard.starts_with("HTTP/1.1 400"), "{heard}");
    assert!(heard.ends_with("\r\n\r\nThis is a test's port.\n"), "{heard}");
    drop(socket);
    let mut other = port.connect(b"\0\0\0\x08").await;
    assert_eq!(port.hears(&mut other).await, "");
    let _speaks = port.connect(PREFACE).await;
    let _accepted = port.next().await;
}

#[tokio::test]
async fn what_says_nothing_in_time_is_closed() {
    let mut port = port(1, Duration::from_millis(20)).await;
    let mut silent = port.connect(&PREFACE[..3]).await;
    assert_eq!(port.hears(&mut silent).await, "");
    assert_eq!(port.places.taken(), 0);
}

#[tokio::test]
async fn those_above_the_limit_are_closed_until_one_has_gone() {
    let mut port = port(1, LONG).await;
    let _first = port.connect(PREFACE).await;
    let accepted = port.next().await;
    let mut second = port.connect(PREFACE).await;
    assert_eq!(port.hears(&mut second).await, "");
    assert_eq!(port.incoming.refused.untold, 0, "the first is logged at once");
    let mut third = port.connect(PREFACE).await;
    assert_eq!(port.hears(&mut third).await, "");
    assert_eq!(port.incoming.refused.untold, 1, "the next only with those of a minute");
    drop(accepted);
    let _fourth = port.connect(PREFACE).await;
    let _accepted = port.next().await;
}

#[tokio::test]
async fn dropped_it_closes_its_listener_and_what_it_looks_at() {
    let mut port = port(1, LONG).await;
    let mut silent = port.connect(b"").await;
    while port.places.taken() == 0 {
        assert!(port.incoming.next().now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    drop(port.incoming);
    assert_eq!(port.places.taken(), 0);
    let mut heard = Vec::new();
    let read = tokio::time::timeout(LONG, silent.read_to_end(&mut heard)).await;
    assert!(read.is_ok() && heard.is_empty(), "{heard:?}");
    assert!(TcpStream::connect(port.address).await.is_err());
}
