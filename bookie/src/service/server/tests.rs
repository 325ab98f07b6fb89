//! The port as a whole, over loopback.

use geminga_proto::v1::bookie_client::BookieClient;
use geminga_proto::v1::messaging_client::MessagingClient;
use geminga_proto::v1::{HandshakeRequest, InfoRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use super::super::pb;
use super::super::tests::{Client, add, addressed, bookie};
use super::*;

struct Port {
    address: String,
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

async fn port(config: ServiceConfig) -> Port {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound").to_string();
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(serve(listener, bookie(), config, async {
        drop(stopped.await);
    }));
    Port { address, stop, served }
}

async fn channel(port: &Port) -> Result<Channel, tonic::transport::Error> {
    Endpoint::from_shared(format!("http://{}", port.address))?.connect().await
}

async fn client(port: &Port) -> Client {
    let channel = channel(port).await.expect("connects");
    BookieClient::with_interceptor(channel, addressed)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_serves_and_ends_when_it_is_told_to() {
    let port = port(ServiceConfig::default()).await;
    let mut client = client(&port).await;
    let info = client.info(InfoRequest {}).await.expect("an answer").into_inner();
    assert_eq!(info.bookie_id, "b");
    port.stop.send(()).expect("it runs");
    drop(client);
    port.served.await.expect("no panic").expect("no error");
    assert!(TcpStream::connect(&port.address).await.is_err(), "the port is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn open_streams_do_not_hold_up_the_end_and_what_was_taken_is_answered() {
    let config = ServiceConfig { stop_grace: Duration::from_secs(60), ..ServiceConfig::default() };
    let port = port(config).await;
    let mut client = client(&port).await;
    let (appends, batches) = mpsc::channel(1);
    let mut answers = client.append(ReceiverStream::new(batches)).await.expect("a stream");
    let (_reads, asked) = mpsc::channel::<pb::ReadBatch>(1);
    let mut found = client.read(ReceiverStream::new(asked)).await.expect("a stream");
    let requests = (0..100).map(|entry| add(entry, 5, entry)).collect();
    appends.send(pb::AppendBatch { requests }).await.expect("it runs");
    let mut answered = answers.get_mut().message().await.expect("in time").expect("some").answers;
    port.stop.send(()).expect("it runs");
    while let Ok(Some(more)) = answers.get_mut().message().await {
        answered.extend(more.answers);
    }
    assert_eq!(answered.len(), 100);
    assert!(!matches!(found.get_mut().message().await, Ok(Some(_))));
    drop((client, answers, found));
    port.served.await.expect("no panic").expect("no error");
}

#[tokio::test]
async fn calls_that_are_given_up_before_they_are_looked_at_end_no_stream_of_the_connection() {
    let port = port(ServiceConfig::default()).await;
    let mut client = client(&port).await;
    let (appends, batches) = mpsc::channel(1);
    let mut answers = client.append(ReceiverStream::new(batches)).await.expect("a stream");
    // On one thread: all of it is on its way before the server runs again.
    let calls = (0..200).map(|_| {
        let mut client = client.clone();
        tokio::spawn(async move { client.info(InfoRequest {}).await.is_ok() })
    });
    let calls: Vec<_> = calls.collect();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let given_up = calls.iter().filter(|call| !call.is_finished()).count();
    calls.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(given_up > 100, "{given_up} calls were under way");
    appends.send(pb::AppendBatch { requests: vec![add(0, 5, 0)] }).await.expect("it runs");
    let answer = answers.get_mut().message().await.expect("the stream is there").expect("some");
    assert_eq!(answer.answers.len(), 1);
    assert!(client.info(InfoRequest {}).await.is_ok(), "and so is the connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_brokers_hears_that_it_speaks_to_none() {
    let port = port(ServiceConfig::default()).await;
    let mut client = MessagingClient::new(channel(&port).await.expect("connects"));
    let refused = client.handshake(HandshakeRequest::default()).await.expect_err("no broker");
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_speaks_http1_is_told_whose_port_it_is() {
    let port = port(ServiceConfig::default()).await;
    let mut socket = TcpStream::connect(&port.address).await.expect("connects");
    let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
    socket.write_all(request).await.expect("written");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("answered");
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer:?}");
    assert!(answer.contains("a Geminga bookie"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_closed_until_others_end() {
    let port = port(ServiceConfig { max_connections: 2, ..ServiceConfig::default() }).await;
    let (first, mut second) = (client(&port).await, client(&port).await);
    let third = async || match channel(&port).await {
        Ok(channel) => {
            let mut third = BookieClient::with_interceptor(channel, addressed);
            third.info(InfoRequest {}).await.is_ok()
        }
        Err(_) => false,
    };
    assert!(!third().await);
    assert!(second.info(InfoRequest {}).await.is_ok(), "those that are there go on");
    drop(first);
    for _ in 0..500 {
        if third().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the place of a connection that ended is never free again");
}
