//! Connecting: to whom, and what a client says when it cannot.

use std::time::Duration;

use geminga_client::{Client, ClientError, ErrorCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::broker::{CLUSTER, Fault, MAX_MESSAGE_BYTES};
use crate::{broker_and_client, client, soon};

#[tokio::test]
async fn a_client_says_to_whom_it_is_connected() {
    let (_broker, client) = broker_and_client().await;
    let info = soon(client.connect()).await.expect("connects");
    assert_eq!((info.cluster_id.as_str(), info.broker_id.as_str()), (CLUSTER, "b"));
    assert_eq!((info.max_message_bytes, info.protocol), (MAX_MESSAGE_BYTES, 1));
}

#[tokio::test]
async fn short_topic_names_are_completed_by_the_clients_tenant_and_namespace() {
    let client = Client::builder().tenant("shop").namespace("prod").build().expect("valid");
    let full = |name: &str| client.topic(name).map(|topic| topic.to_string());
    assert_eq!(full("orders").as_deref(), Ok("persistent://shop/prod/orders"));
    assert_eq!(full("a/b/c").as_deref(), Ok("persistent://a/b/c"));
    for bad in ["", "a/b", "non-persistent://a/b/c", "with space", "../x", "a/b/c/d"] {
        assert!(matches!(full(bad), Err(ClientError::Name(_))), "{bad:?}");
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let setting = |result: Result<Client, ClientError>| match result {
        Err(ClientError::Config { setting, .. }) => setting,
        other => panic!("{other:?}"),
    };
    for url in ["", "localhost:6660", "http://", "https://h:1", "http://h:1/path", "pulsar://h"] {
        assert_eq!(setting(Client::builder().service_url(url).build()), "service_url", "{url:?}");
    }
    let zero = Client::builder().operation_timeout(Duration::ZERO).build();
    assert_eq!(setting(zero), "operation_timeout");
}

#[tokio::test]
async fn nobody_listening_is_told_with_the_address() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", free.local_addr().expect("bound"));
    drop(free);
    let error = soon(client(&url).connect()).await.expect_err("nobody is there");
    assert!(matches!(&error, ClientError::Connect { url: at, .. } if *at == url), "{error}");
    assert!(error.is_retryable());
    // Opening a producer tries again, but not for ever.
    let impatient =
        Client::builder().service_url(&url).operation_timeout(Duration::from_millis(200));
    let opened = soon(impatient.build().expect("valid").producer("t").open()).await;
    assert!(matches!(opened, Err(ClientError::TimedOut { .. })), "{opened:?}");
}

#[tokio::test]
async fn a_port_that_speaks_http_1_is_recognised() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut buffer = [0; 1024];
            let _ = socket.read(&mut buffer).await;
            let _ =
                socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    let error = soon(client(&url).producer("t").open()).await.expect_err("not a broker");
    assert!(matches!(error, ClientError::NotABroker { .. }), "{error:?}");
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let (broker, _) = broker_and_client().await;
    let url = broker.serve().await;
    let client = Client::builder().service_url(url).expected_cluster_id("mine").build();
    let opened = soon(client.expect("valid").producer("t").open()).await;
    let error = opened.expect_err("it belongs to another cluster");
    assert_eq!(error.code(), Some(ErrorCode::WrongCluster));
}

#[tokio::test]
async fn what_can_succeed_later_is_tried_again_and_what_cannot_is_told() {
    let (broker, client) = broker_and_client().await;
    broker.plan([
        Fault::Lookup(ErrorCode::Unavailable),
        Fault::Open(ErrorCode::NotOwner),
        Fault::Open(ErrorCode::Unavailable),
    ]);
    let producer = soon(client.producer("t").open()).await.expect("it works in the end");
    assert_eq!(producer.name(), "made-by-broker");
    assert_eq!(broker.state.lock().lookups, 4);
    for code in [ErrorCode::TopicNotFound, ErrorCode::ProducerBusy, ErrorCode::Unsupported] {
        broker.plan([Fault::Open(code)]);
        let error = soon(client.producer("t").open()).await.expect_err("refused");
        assert_eq!(error.code(), Some(code));
    }
}

#[tokio::test]
async fn a_closed_client_opens_nothing_more() {
    let (_broker, client) = broker_and_client().await;
    soon(client.connect()).await.expect("connects");
    client.close();
    assert_eq!(soon(client.connect()).await, Err(ClientError::Closed));
    let opened = soon(client.producer("t").open()).await;
    assert!(matches!(opened, Err(ClientError::Closed)), "{opened:?}");
}
