//! Producers against a broker that cuts, refuses and delays.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use geminga_client::{ClientError, Compression, ErrorCode, Message, SendError};

use crate::broker::{Broker, Fault, MAX_MESSAGE_BYTES};
use crate::proxy::Proxy;
use crate::{assert_ever_less_often, broker_and_client, client, soon, until};

pub fn numbers(texts: &[String]) -> Vec<u64> {
    texts.iter().map(|text| text.parse().expect("a number")).collect()
}

/// The first time each number was stored, in the log's order.
pub fn first_stored(broker: &Broker) -> Vec<u64> {
    let mut seen = std::collections::BTreeSet::new();
    numbers(&broker.texts()).into_iter().filter(|number| seen.insert(*number)).collect()
}

#[tokio::test]
async fn receipts_name_each_messages_place() {
    let (broker, client) = broker_and_client().await;
    let producer = soon(client.producer("t").open()).await.expect("opens");
    for number in 0..3_u64 {
        let receipt = soon(producer.send(number.to_string())).await.expect("stored");
        assert_eq!((receipt.id.position.entry.0, receipt.id.batch_index), (number, None));
        assert_eq!((receipt.index.0, receipt.sequence_id), (number, number));
    }
    soon(producer.close()).await.expect("closes");
    until(|| broker.state.lock().closed_producers == 1).await;
    broker.assert_no_violations();
}

#[tokio::test]
async fn messages_that_come_while_others_are_in_flight_share_an_entry() {
    let (broker, client) = broker_and_client().await;
    let producer = soon(client.producer("t").max_batch_messages(100).open()).await.expect("opens");
    let mut futures = Vec::new();
    for number in 0..1000_u64 {
        futures.push(soon(producer.enqueue(number.to_string())).await.expect("taken"));
    }
    for (number, future) in futures.into_iter().enumerate() {
        let receipt = soon(future).await.expect("stored");
        assert_eq!(receipt.index.0, number as u64);
    }
    assert_eq!(numbers(&broker.texts()), (0..1000).collect::<Vec<_>>());
    let entries = broker.state.lock().log.len();
    assert!((10..500).contains(&entries), "{entries} entries for 1000 messages");
}

#[tokio::test]
async fn a_batch_leaves_when_its_delay_is_over_and_not_before() {
    let (broker, client) = broker_and_client().await;
    let delay = Duration::from_millis(60);
    let producer = client.producer("t").max_batch_delay(delay).open();
    let producer = soon(producer).await.expect("opens");
    let started = std::time::Instant::now();
    let first = producer.enqueue("1").await.expect("taken");
    let second = producer.enqueue("2").await.expect("taken");
    let (first, second) = (soon(first).await.expect("stored"), soon(second).await.expect("stored"));
    assert!(started.elapsed() >= delay);
    assert_eq!((first.id.batch_index, second.id.batch_index), (Some(0), Some(1)));
    assert_eq!(broker.state.lock().log.len(), 1);
}

#[tokio::test]
async fn without_batching_every_message_is_an_entry() {
    let (broker, client) = broker_and_client().await;
    let producer = soon(client.producer("t").batching(false).open()).await.expect("opens");
    for number in 0..50_u64 {
        soon(producer.send_one_way(number.to_string())).await.expect("taken");
    }
    soon(producer.flush()).await.expect("all stored");
    assert_eq!(broker.state.lock().log.len(), 50);
    assert_eq!(numbers(&broker.texts()), (0..50).collect::<Vec<_>>());
}

/// Publishes `count` numbers while `disturb` does its worst; everything must be stored, in order
/// but for what was sent again.
async fn publish_through(
    broker: &Broker,
    url: &str,
    count: u64,
    compression: Compression,
    disturb: impl AsyncFn(u64),
) {
    let client = client(url);
    let producer = client.producer("t").max_batch_messages(7).compression(compression).open();
    let producer = soon(producer).await.expect("opens");
    let mut futures = Vec::new();
    for number in 0..count {
        futures.push(soon(producer.enqueue(number.to_string())).await.expect("taken"));
        disturb(number).await;
    }
    for future in futures {
        soon(future).await.expect("stored");
    }
    assert_eq!(first_stored(broker), (0..count).collect::<Vec<_>>());
    broker.assert_no_violations();
}

#[tokio::test]
async fn a_connection_that_is_cut_again_and_again_loses_nothing_and_keeps_the_order() {
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let broker = Broker::default();
        let proxy = Proxy::to(&broker.serve().await).await;
        let url = proxy.url.clone();
        publish_through_numbers(&broker, &url, &proxy, compression).await;
        let cuts = if compression == Compression::None { 6 } else { 2 };
        let opened = broker.state.lock().opened_producers;
        assert!(opened >= cuts, "{opened} sessions, cut {cuts} times");
    }
}

async fn publish_through_numbers(
    broker: &Broker,
    url: &str,
    proxy: &Proxy,
    compression: Compression,
) {
    if compression == Compression::None {
        publish_through(broker, url, 600, compression, async |number| {
            cut_now_and_then(broker, proxy, number).await;
        })
        .await;
        return;
    }
    // Compressed batches can't be read back as text here: their receipts are the proof.
    let client = client(url);
    let producer = client.producer("t").max_batch_messages(7).compression(compression).open();
    let producer = soon(producer).await.expect("opens");
    let mut futures = Vec::new();
    for number in 0..200_u64 {
        futures.push(soon(producer.enqueue(number.to_string())).await.expect("taken"));
        cut_now_and_then(broker, proxy, number).await;
    }
    let mut last = None;
    for future in futures {
        let receipt = soon(future).await.expect("stored");
        assert!(last < Some(receipt.id), "{last:?} {receipt:?}");
        last = Some(receipt.id);
    }
}

/// Cuts the connection at every hundredth message, after the one before was made good.
async fn cut_now_and_then(broker: &Broker, proxy: &Proxy, number: u64) {
    if number % 100 == 50 {
        until(|| u64::from(broker.state.lock().opened_producers) > number / 100).await;
        proxy.cut();
    }
}

#[tokio::test]
async fn a_stream_that_ends_with_or_without_storing_an_entry_loses_nothing() {
    let broker = Broker::default();
    let url = broker.serve().await;
    let disturbed = broker.clone();
    publish_through(&broker, &url, 400, Compression::None, async |number| {
        match number {
            40 | 200 => disturbed.plan([Fault::StoreAndEnd]),
            120 | 300 => disturbed.plan([Fault::DropAndEnd]),
            _ => {}
        }
        spread(number).await;
    })
    .await;
}

/// Spreads messages over several batches, so that what happens comes between some of them.
async fn spread(number: u64) {
    if number.is_multiple_of(10) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_owner_that_goes_away_is_looked_up_again() {
    let broker = Broker::default();
    let url = broker.serve().await;
    let disturbed = broker.clone();
    publish_through(&broker, &url, 300, Compression::None, async |number| {
        match number {
            50 => disturbed.plan([Fault::CloseProducer(ErrorCode::NotOwner)]),
            100 => disturbed.plan([
                Fault::CloseProducer(ErrorCode::Fenced),
                Fault::Lookup(ErrorCode::Unavailable),
                Fault::Open(ErrorCode::ProducerBusy),
            ]),
            _ => {}
        }
        spread(number).await;
    })
    .await;
    assert!(broker.state.lock().lookups >= 4);
}

#[tokio::test]
async fn an_entry_refused_by_a_broker_that_lost_the_topic_is_sent_to_the_next() {
    let (broker, client) = broker_and_client().await;
    let producer = soon(client.producer("t").open()).await.expect("opens");
    broker.plan([Fault::Refuse(ErrorCode::NotOwner)]);
    soon(producer.send("1")).await.expect("stored by the next");
    assert_eq!(broker.texts(), ["1"]);
    assert_eq!(broker.state.lock().opened_producers, 2);
}

#[tokio::test]
async fn an_entry_that_ends_every_session_is_sent_again_ever_less_often() {
    let (broker, client) = broker_and_client().await;
    let producer = soon(client.producer("t").open()).await.expect("opens");
    broker.plan([Fault::Refuse(ErrorCode::NotOwner); 1000]);
    let message = producer.enqueue("1").await.expect("taken");
    until(|| broker.opened_here() >= 10).await;
    assert_ever_less_often(&broker.node.lock().opened_at);
    broker.state.lock().faults.clear();
    soon(message).await.expect("stored after all");
}

#[tokio::test]
async fn a_second_receipt_is_ignored() {
    let (broker, client) = broker_and_client().await;
    let producer = soon(client.producer("t").open()).await.expect("opens");
    broker.plan([Fault::DuplicateReceipt, Fault::DuplicateReceipt]);
    for number in 0..10_u64 {
        let receipt = soon(producer.send(number.to_string())).await.expect("stored");
        assert_eq!(receipt.index.0, number);
    }
    assert_eq!(broker.state.lock().opened_producers, 1);
}

#[tokio::test]
async fn receipts_out_of_order_are_not_believed() {
    let (broker, client) = broker_and_client().await;
    let producer = soon(client.producer("t").batching(false).open()).await.expect("opens");
    broker.plan([Fault::SwapReceipts]);
    let first = producer.enqueue("1").await.expect("taken");
    let second = producer.enqueue("2").await.expect("taken");
    let (first, second) = (soon(first).await.expect("stored"), soon(second).await.expect("stored"));
    // Both were stored twice: the receipts that count are those of the second session.
    assert_eq!(broker.texts(), ["1", "2", "1", "2"]);
    assert_eq!((first.index.0, second.index.0), (2, 3));
    assert_eq!(broker.state.lock().opened_producers, 2);
}

#[tokio::test]
async fn a_refused_message_fails_alone() {
    let (broker, client) = broker_and_client().await;
    let producer = soon(client.producer("t").open()).await.expect("opens");
    for code in [ErrorCode::StorageFull, ErrorCode::ChecksumMismatch, ErrorCode::InvalidBatch] {
        broker.plan([Fault::Refuse(code)]);
        let error = soon(producer.send("no")).await.expect_err("refused");
        assert!(matches!(&error, SendError::Refused(it) if it.code == code), "{error:?}");
        assert_eq!(error.is_retryable(), code == ErrorCode::StorageFull);
        soon(producer.send("yes")).await.expect("stored");
    }
    assert_eq!(broker.texts(), ["yes"; 3]);
    assert_eq!(broker.state.lock().opened_producers, 1);
}

#[tokio::test]
async fn a_producer_closed_for_good_fails_what_it_holds_and_says_why() {
    let (broker, client) = broker_and_client().await;
    let producer = soon(client.producer("t").open()).await.expect("opens");
    broker.plan([Fault::CloseProducer(ErrorCode::TopicNotFound)]);
    for _ in 0..2 {
        let error = soon(producer.send("no")).await.expect_err("the topic is gone");
        let SendError::Failed(ClientError::Broker(why)) = error else { panic!("{error:?}") };
        assert_eq!(why.code, ErrorCode::TopicNotFound);
    }
    assert!(matches!(soon(producer.close()).await, Err(SendError::Failed(_))));
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_before_it_is_sent() {
    let (broker, client) = broker_and_client().await;
    for compression in [Compression::None, Compression::Zstd] {
        let producer =
            soon(client.producer("t").compression(compression).open()).await.expect("opens");
        let send = async |size: u64| {
            let payload = vec![0; usize::try_from(size).expect("small")];
            soon(producer.send(Message::new(payload))).await
        };
        let error = send(u64::from(MAX_MESSAGE_BYTES)).await.expect_err("too large");
        let SendError::TooLarge { bytes, limit } = error else { panic!("{error:?}") };
        assert_eq!(bytes, u64::from(MAX_MESSAGE_BYTES));
        send(limit).await.expect("stored");
        let refused = send(limit + 1).await.map(drop);
        assert_eq!(refused, Err(SendError::TooLarge { bytes: limit + 1, limit }));
    }
    assert_eq!(broker.state.lock().log.len(), 2);
}

#[tokio::test]
async fn a_message_without_a_receipt_in_time_fails_and_its_room_comes_back() {
    let (broker, client) = broker_and_client().await;
    broker.state.lock().withhold_receipts = true;
    let timeout = Duration::from_millis(50);
    let producer =
        client.producer("t").send_timeout(Some(timeout)).max_in_flight_messages(1).open();
    let producer = soon(producer).await.expect("opens");
    for _ in 0..3 {
        let error = soon(producer.send("1")).await.expect_err("no receipt");
        assert_eq!(error, SendError::Timeout { after: timeout, last: None });
    }
    assert_eq!(producer.in_flight(), 0);
    // What the broker has said of it is what is known of the cause.
    broker.state.lock().delays = true;
    let error = soon(producer.send("1")).await.expect_err("no receipt");
    let SendError::Timeout { last: Some(why), .. } = error else { panic!("no cause: {error}") };
    assert!(why.contains("UNAVAILABLE"), "{why}");
}

#[tokio::test]
async fn what_is_in_flight_is_bounded_by_messages_and_by_bytes() {
    let (broker, client) = broker_and_client().await;
    broker.state.lock().withhold_receipts = true;
    let by_messages =
        soon(client.producer("t").max_in_flight_messages(2).open()).await.expect("opens");
    let by_bytes =
        soon(client.producer("t").max_in_flight_bytes(1000).open()).await.expect("opens");
    for (producer, payload, taken) in [(by_messages, 1, 2), (by_bytes, 300, 2)] {
        let message = || Message::new(vec![b'x'; payload]);
        for _ in 0..taken {
            drop(producer.try_enqueue(message()).expect("room"));
        }
        assert!(matches!(producer.try_enqueue(message()), Err(SendError::QueueFull)));
        let waits = tokio::time::timeout(Duration::from_millis(30), producer.enqueue(message()));
        assert!(waits.await.is_err(), "there is no room");
        assert_eq!(producer.in_flight(), taken);
    }
}

#[tokio::test]
async fn one_producers_bytes_stay_within_the_brokers_credit() {
    let (broker, client) = broker_and_client().await;
    broker.state.lock().withhold_receipts = true;
    let producer = soon(client.producer("t").open()).await.expect("opens");
    // 8 MiB, twice the credit.
    for _ in 0..16 {
        drop(producer.enqueue(vec![0; 512 * 1024]).await.expect("room in flight"));
    }
    until(|| broker.state.lock().log.len() >= 7).await;
    // Time for the eighth, which must not come.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(broker.state.lock().log.len(), 7, "an eighth would exceed the credit");
    broker.assert_no_violations();
}

#[tokio::test]
async fn callbacks_and_one_way_failures_are_told_once() {
    let (broker, client) = broker_and_client().await;
    let producer = soon(client.producer("t").batching(false).open()).await.expect("opens");
    let stored = Arc::new(AtomicU64::new(0));
    for _ in 0..5 {
        let stored = Arc::clone(&stored);
        let callback = move |result: Result<_, _>| {
            stored.fetch_add(u64::from(result.is_ok()), Ordering::Relaxed);
        };
        soon(producer.send_with_callback("1", callback)).await.expect("taken");
    }
    soon(producer.flush()).await.expect("nothing failed");
    assert_eq!(stored.load(Ordering::Relaxed), 5);
    broker.plan([Fault::Refuse(ErrorCode::StorageFull)]);
    soon(producer.send_one_way("2")).await.expect("taken");
    let error = soon(producer.flush()).await.expect_err("the one-way message failed");
    assert!(matches!(error, SendError::Refused(_)), "{error:?}");
    soon(producer.flush()).await.expect("told once");
}

#[tokio::test]
async fn closing_waits_for_what_was_given_and_dropping_still_sends_it() {
    let (broker, client) = broker_and_client().await;
    let delay = Duration::from_secs(20);
    let producer = soon(client.producer("t").max_batch_delay(delay).open()).await.expect("opens");
    let future = producer.enqueue("closed").await.expect("taken");
    let clone = producer.clone();
    soon(producer.close()).await.expect("closes");
    soon(future).await.expect("stored before the close");
    assert!(matches!(clone.enqueue("late").await, Err(SendError::Closed)));
    let producer = soon(client.producer("t").max_batch_delay(delay).open()).await.expect("opens");
    producer.send_one_way("dropped").await.expect("taken");
    drop(producer);
    until(|| broker.texts() == ["closed", "dropped"]).await;
    until(|| broker.state.lock().closed_producers == 2).await;
}
