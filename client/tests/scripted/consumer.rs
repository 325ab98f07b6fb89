//! Consumers against a broker that cuts, refuses and delays.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use geminga_client::{
    Client, ClientError, Compression, Consumer, ConsumerError, DecodeError, ErrorCode, MessageId,
    ReceiveError, ReceivedMessage, SubscriptionType,
};
use geminga_proto::entry::encode_entry;
use geminga_proto::pulsar::proto::MessageMetadata;
use parking_lot::Mutex;

use crate::broker::{Broker, Fault};
use crate::proxy::Proxy;
use crate::{assert_ever_less_often, broker_and_client, client, soon, until};

pub fn text(message: &ReceivedMessage) -> u64 {
    let text = std::str::from_utf8(&message.payload).expect("text");
    text.parse().expect("a number")
}

/// Stores numbers in batches of `batch`.
pub async fn store(url: &str, numbers: std::ops::Range<u64>, batch: u32) {
    let producer = client(url)
        .producer("t")
        .max_batch_messages(batch)
        .max_batch_delay(Duration::from_millis(5))
        .compression(Compression::Lz4)
        .open();
    let producer = soon(producer).await.expect("opens");
    for number in numbers {
        soon(producer.send_one_way(number.to_string())).await.expect("taken");
    }
    soon(producer.close()).await.expect("stored");
}

pub async fn receive_all(consumer: &Consumer, count: usize) -> Vec<ReceivedMessage> {
    let mut messages = Vec::new();
    while messages.len() < count {
        let wanted = count - messages.len();
        soon(consumer.receive_many(&mut messages, wanted)).await.expect("received");
    }
    messages
}

#[tokio::test]
async fn messages_come_in_order_and_receipts_mean_that_they_are_acknowledged() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..100, 8).await;
    let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    for number in 0..100 {
        let message = soon(consumer.receive()).await.expect("received");
        assert_eq!((text(&message), message.index.0), (number, number));
        soon(consumer.ack_with_receipt(&message.id)).await.expect("acknowledged");
        assert_eq!(broker.state.lock().unacked_messages(), 99 - number);
    }
    assert_eq!(consumer.try_receive(), Ok(None));
}

#[tokio::test]
async fn grouped_acknowledgements_arrive_and_closing_waits_for_them() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..500, 10).await;
    let consumer = client.consumer("t", "s").ack_group_delay(Duration::from_secs(600));
    let consumer = soon(consumer.subscribe()).await.expect("subscribes");
    for message in receive_all(&consumer, 500).await {
        soon(consumer.ack(&message.id)).await.expect("taken");
    }
    soon(consumer.close()).await.expect("acknowledged");
    assert_eq!(broker.state.lock().unacked_messages(), 0);
    assert_eq!(broker.state.lock().closed_consumers, 1);
}

#[tokio::test]
async fn a_consumer_that_is_cut_again_and_again_sees_everything_and_nothing_acknowledged_twice() {
    let broker = Broker::default();
    let url = broker.serve().await;
    store(&url, 0..300, 6).await;
    let proxy = Proxy::to(&url).await;
    let consumer = client(&proxy.url).consumer("t", "s").receiver_queue_messages(50);
    let consumer = soon(consumer.subscribe()).await.expect("subscribes");
    let mut acked = BTreeMap::new();
    while acked.len() < 300 {
        let message = soon(consumer.receive()).await.expect("received");
        let number = text(&message);
        let before = acked.insert(number, message.id);
        assert_eq!(before, None, "{number} was acknowledged with a receipt before");
        soon(consumer.ack_with_receipt(&message.id)).await.expect("acknowledged");
        if number % 60 == 30 {
            proxy.cut();
        }
    }
    assert!(broker.state.lock().subscribed > 1);
    assert_eq!(broker.state.lock().unacked_messages(), 0);
}

#[tokio::test]
async fn acknowledgements_without_a_receipt_are_sent_again_before_anything_is_delivered() {
    for fault in [Fault::AckAndEnd, Fault::LoseAckAndEnd, Fault::RefuseAck(ErrorCode::Fenced)] {
        let (broker, client) = broker_and_client().await;
        let url = broker.serve().await;
        store(&url, 0..20, 5).await;
        let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
        broker.plan([fault]);
        // Within the second batch: its other messages must come again, and only they.
        for message in receive_all(&consumer, 7).await {
            soon(consumer.ack(&message.id)).await.expect("taken");
        }
        soon(consumer.flush_acks()).await.expect("acknowledged after all");
        assert_eq!(broker.state.lock().subscribed, 2, "{fault:?}");
        let rest = receive_all(&consumer, 13).await;
        assert_eq!(rest.iter().map(text).collect::<Vec<_>>(), (7..20).collect::<Vec<_>>());
        assert_eq!(consumer.try_receive(), Ok(None));
    }
}

#[tokio::test]
async fn an_acknowledgement_that_ends_every_session_is_sent_again_ever_less_often() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..20, 1).await;
    let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    let first = soon(consumer.receive()).await.expect("received");
    broker.plan([Fault::RefuseAck(ErrorCode::Fenced); 1000]);
    soon(consumer.ack(&first.id)).await.expect("taken");
    let before = broker.opened_here();
    until(|| broker.opened_here() >= before + 10).await;
    // Those before belong to the producer that stored the messages.
    let opened_at = broker.node.lock().opened_at.clone();
    assert_ever_less_often(&opened_at[opened_at.len() - 10..]);
    broker.state.lock().faults.clear();
    soon(consumer.flush_acks()).await.expect("acknowledged after all");
}

#[tokio::test]
async fn a_refused_acknowledgement_is_told_to_who_waits_and_else_to_who_flushes() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..2, 1).await;
    let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    let messages = receive_all(&consumer, 2).await;
    broker.plan([Fault::RefuseAck(ErrorCode::InvalidRequest)]);
    let refused = soon(consumer.ack_with_receipt(&messages[0].id)).await;
    assert!(matches!(refused, Err(ConsumerError::Refused(_))), "{refused:?}");
    broker.plan([Fault::RefuseAck(ErrorCode::InvalidRequest)]);
    soon(consumer.ack(&messages[1].id)).await.expect("taken");
    assert!(matches!(soon(consumer.flush_acks()).await, Err(ConsumerError::Refused(_))));
    soon(consumer.close()).await.expect("told once");
}

#[tokio::test]
async fn a_damaged_entry_is_an_error_and_comes_again() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..6, 2).await;
    broker.plan([Fault::Corrupt]);
    let consumer = client.consumer("t", "s").nack_redelivery_delay(Duration::from_millis(30));
    let consumer = soon(consumer.subscribe()).await.expect("subscribes");
    let error = soon(consumer.receive()).await.expect_err("it is damaged");
    assert!(error.is_retryable());
    let ReceiveError::CorruptEntry { position, why } = error else { panic!("{error:?}") };
    assert!(matches!(why, DecodeError::Entry(_)), "{why:?}");
    assert_eq!(position.entry.0, 0);
    let numbers: Vec<u64> = receive_all(&consumer, 6).await.iter().map(text).collect();
    assert_eq!(numbers, [2, 3, 4, 5, 0, 1]);
}

#[tokio::test]
async fn a_batch_that_lies_about_its_count_is_an_error_and_can_be_given_up() {
    let (broker, client) = broker_and_client().await;
    let metadata = MessageMetadata {
        producer_name: "liar".to_owned(),
        num_messages_in_batch: Some(3),
        ..MessageMetadata::default()
    };
    let one = Bytes::from_static(&[0, 0, 0, 2, 0x18, 1, b'x']);
    broker.store(encode_entry(&metadata, &one));
    broker.store(encode_entry(&MessageMetadata::default(), b"7"));
    let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    let error = soon(consumer.receive()).await.expect_err("it holds one message");
    let ReceiveError::CorruptEntry { position, why } = error else { panic!("{error:?}") };
    assert_eq!(why, DecodeError::Count { stated: 3, found: 1 });
    soon(consumer.ack_with_receipt(&MessageId::entry(position))).await.expect("given up");
    let next = soon(consumer.receive()).await.expect("the next one is fine");
    assert_eq!(text(&next), 7);
    soon(consumer.ack_with_receipt(&next.id)).await.expect("acknowledged");
    assert_eq!(broker.state.lock().unacked_messages(), 0);
}

#[tokio::test]
async fn a_message_that_is_handed_back_comes_again_and_says_so() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..3, 3).await;
    let consumer = client.consumer("t", "s").nack_redelivery_delay(Duration::from_millis(20));
    let consumer = soon(consumer.subscribe()).await.expect("subscribes");
    let messages = receive_all(&consumer, 3).await;
    soon(consumer.ack(&messages[1].id)).await.expect("taken");
    consumer.nack(&messages[0].id);
    consumer.nack(&messages[2].id);
    let again = receive_all(&consumer, 2).await;
    assert_eq!(again.iter().map(text).collect::<Vec<_>>(), [0, 2], "1 was acknowledged first");
    assert!(again.iter().all(|message| message.redelivery_count == 1));
    assert_eq!(broker.state.lock().redelivery_requests, [[0]]);
}

#[tokio::test]
async fn everything_unacknowledged_can_be_asked_for_again() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..40, 4).await;
    let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    let first = soon(consumer.receive()).await.expect("received");
    soon(consumer.ack(&first.id)).await.expect("taken");
    until(|| consumer.queued().messages == 36).await;
    consumer.redeliver_unacknowledged().expect("asked");
    let again: Vec<u64> = receive_all(&consumer, 39).await.iter().map(text).collect();
    assert_eq!(again, (1..40).collect::<Vec<_>>());
}

#[tokio::test]
async fn deliveries_on_their_way_are_not_handed_out_before_what_was_asked_for_again() {
    for kind in [SubscriptionType::Exclusive, SubscriptionType::Failover] {
        let (broker, client) = broker_and_client().await;
        let url = broker.serve().await;
        store(&url, 0..20, 1).await;
        let consumer = client.consumer("t", "s").subscription_type(kind);
        let consumer = consumer.receiver_queue_messages(4).subscribe();
        let consumer = soon(consumer).await.expect("subscribes");
        until(|| consumer.queued().messages == 4).await;
        broker.state.lock().slow_deliveries = true;
        // Their credit is granted again: 4, 5, … are on their way.
        receive_all(&consumer, 4).await;
        until(|| broker.state.lock().credit.values().any(|(messages, _)| *messages > 0)).await;
        consumer.redeliver_unacknowledged().expect("asked");
        let first = soon(consumer.receive()).await.expect("received");
        soon(consumer.ack_cumulative_with_receipt(&first.id)).await.expect("acknowledged");
        assert_eq!(broker.state.lock().unacked_messages(), 19, "only what was handed out last");
        let rest: Vec<u64> = receive_all(&consumer, 19).await.iter().map(text).collect();
        assert_eq!(rest, (1..20).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn an_exclusive_consumer_whose_place_is_taken_while_it_asks_again_ends_with_that() {
    let broker = Broker::default();
    let url = broker.serve().await;
    store(&url, 0..10, 1).await;
    let client = Client::builder().service_url(&url).operation_timeout(Duration::from_millis(300));
    let client = client.build().expect("valid settings");
    let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    // Its own old session at first: that goes on.
    broker.plan([Fault::Subscribe(ErrorCode::ConsumerBusy)]);
    consumer.redeliver_unacknowledged().expect("asked");
    receive_all(&consumer, 10).await;
    broker.plan([(); 1_000].map(|()| Fault::Subscribe(ErrorCode::ConsumerBusy)));
    consumer.redeliver_unacknowledged().expect("asked");
    let ended = soon(consumer.receive()).await.expect_err("somebody else has it");
    let ReceiveError::Failed(error) = ended else { panic!("{ended:?}") };
    assert_eq!(error.code(), Some(ErrorCode::ConsumerBusy));
}

#[tokio::test]
async fn a_shared_consumer_asks_for_everything_again_and_keeps_its_session() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..10, 1).await;
    let consumer = client.consumer("t", "s").subscription_type(SubscriptionType::Shared);
    let consumer = soon(consumer.subscribe()).await.expect("subscribes");
    until(|| consumer.queued().messages == 10).await;
    consumer.redeliver_unacknowledged().expect("asked");
    let again: Vec<u64> = receive_all(&consumer, 10).await.iter().map(text).collect();
    assert_eq!(again, (0..10).collect::<Vec<_>>());
    assert_eq!(broker.state.lock().subscribed, 1);
}

#[tokio::test]
async fn cumulative_acknowledgement_needs_an_order() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..20, 5).await;
    let shared = client.consumer("t", "s").subscription_type(SubscriptionType::Shared);
    let shared = soon(shared.subscribe()).await.expect("subscribes");
    let messages = receive_all(&shared, 20).await;
    let refused = soon(shared.ack_cumulative(&messages[3].id)).await;
    assert_eq!(refused, Err(ConsumerError::CumulativeOnShared));
    let ordered = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    soon(ordered.ack_cumulative_with_receipt(&messages[12].id)).await.expect("acknowledged");
    assert_eq!(broker.state.lock().unacked_messages(), 7);
}

#[tokio::test]
async fn what_waits_is_bounded_and_a_stalled_consumer_holds_back_nobody() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..2000, 10).await;
    let limited = || client.consumer("t", "s").receiver_queue_messages(100);
    let stalled = soon(limited().subscribe()).await.expect("subscribes");
    let mut consumers = Vec::new();
    for _ in 0..9 {
        consumers.push(soon(limited().subscribe()).await.expect("subscribes"));
    }
    // All ten share a connection; each is delivered the whole topic.
    for consumer in &consumers {
        let numbers: Vec<u64> = receive_all(consumer, 2000).await.iter().map(text).collect();
        assert_eq!(numbers, (0..2000).collect::<Vec<_>>());
    }
    assert_eq!(stalled.queued().messages, 100);
    let rest = receive_all(&stalled, 2000).await;
    assert_eq!(rest.len(), 2000);
    assert!(broker.state.lock().credit.values().all(|(messages, _)| *messages <= 100));
}

#[tokio::test]
async fn an_entry_above_the_whole_credit_still_comes() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..200, 100).await;
    let consumer = client.consumer("t", "s").receiver_queue_messages(1).receiver_queue_bytes(1);
    let consumer = soon(consumer.subscribe()).await.expect("subscribes");
    assert_eq!(receive_all(&consumer, 200).await.len(), 200);
}

#[tokio::test]
async fn delivery_beyond_the_credit_ends_the_session_and_loses_nothing() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..30, 1).await;
    broker.plan([Fault::BeyondCredit]);
    let consumer = client.consumer("t", "s").receiver_queue_messages(10);
    let consumer = soon(consumer.subscribe()).await.expect("subscribes");
    until(|| broker.state.lock().subscribed == 2).await;
    let numbers: Vec<u64> = receive_all(&consumer, 30).await.iter().map(text).collect();
    assert_eq!(numbers, (0..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_position_tells_when_a_subscription_has_caught_up() {
    let (broker, client) = broker_and_client().await;
    let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    assert_eq!(soon(consumer.last_position()).await, Ok(None));
    let url = broker.serve().await;
    store(&url, 0..20, 5).await;
    let target = soon(consumer.last_position()).await.expect("told").expect("not empty");
    for message in receive_all(&consumer, 20).await {
        let reached = soon(consumer.position()).await.expect("told").has_reached(target);
        assert!(!reached, "{} is not acknowledged", message.id);
        soon(consumer.ack_with_receipt(&message.id)).await.expect("acknowledged");
    }
    let position = soon(consumer.position()).await.expect("told");
    assert!(position.has_reached(target) && position.backlog_messages == 0);
}

#[tokio::test]
async fn what_the_broker_refuses_is_told() {
    let (broker, client) = broker_and_client().await;
    let key_shared = client.consumer("t", "s").subscription_type(SubscriptionType::KeyShared);
    let error = soon(key_shared.subscribe()).await.expect_err("not supported");
    assert_eq!(error.code(), Some(ErrorCode::Unsupported));
    for code in
        [ErrorCode::ConsumerBusy, ErrorCode::SubscriptionNotFound, ErrorCode::SubscriptionType]
    {
        broker.plan([Fault::Subscribe(code)]);
        let error = soon(client.consumer("t", "s").subscribe()).await.expect_err("refused");
        assert_eq!(error.code(), Some(code));
    }
    let bad_name = soon(client.consumer("t", "a/b").subscribe()).await;
    assert!(matches!(bad_name, Err(ClientError::Name(_))), "{bad_name:?}");
}

#[tokio::test]
async fn a_stream_ends_when_its_consumer_is_closed() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..10, 3).await;
    let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    let mut stream = Box::pin(consumer.stream());
    for number in 0..10 {
        let message = soon(stream.next()).await.expect("not over").expect("received");
        assert_eq!(text(&message), number);
    }
    soon(consumer.close()).await.expect("closes");
    assert!(soon(stream.next()).await.is_none());
}

#[tokio::test]
async fn a_listener_is_called_for_each_message_in_order() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..50, 7).await;
    let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let listener = consumer.listen(move |consumer, message| {
        let hears = Arc::clone(&hears);
        async move {
            let message = message.expect("received");
            hears.lock().push(text(&message));
            consumer.ack(&message.id).await.expect("taken");
        }
    });
    until(|| heard.lock().len() == 50).await;
    assert_eq!(*heard.lock(), (0..50).collect::<Vec<_>>());
    soon(consumer.close()).await.expect("closes");
    soon(listener.wait()).await;
    assert_eq!(broker.state.lock().unacked_messages(), 0);
}

#[tokio::test]
async fn several_receivers_share_the_messages_without_losing_a_wake_up() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let consumer = consumer.clone();
            tokio::spawn(async move {
                let mut count = 0;
                while let Ok(message) = consumer.receive().await {
                    consumer.ack(&message.id).await.expect("taken");
                    count += 1;
                }
                count
            })
        })
        .collect();
    store(&url, 0..400, 5).await;
    until(|| broker.state.lock().unacked_messages() == 0).await;
    soon(consumer.close()).await.expect("closes");
    let mut total = 0;
    for task in tasks {
        total += soon(task).await.expect("no panic");
    }
    assert_eq!(total, 400);
}

#[tokio::test]
async fn unsubscribing_deletes_the_subscription_and_closes_the_consumer() {
    let (broker, client) = broker_and_client().await;
    let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    assert!(broker.state.lock().subscription_exists);
    let clone = consumer.clone();
    soon(consumer.unsubscribe()).await.expect("deleted");
    assert!(!broker.state.lock().subscription_exists);
    assert_eq!(soon(clone.receive()).await, Err(ReceiveError::Closed));
}

#[tokio::test]
async fn a_dropped_consumer_leaves_and_what_it_held_goes_to_the_next() {
    let (broker, client) = broker_and_client().await;
    let url = broker.serve().await;
    store(&url, 0..10, 5).await;
    let consumer = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    let first = soon(consumer.receive()).await.expect("received");
    soon(consumer.ack(&first.id)).await.expect("taken");
    drop(consumer);
    until(|| broker.state.lock().closed_consumers == 1).await;
    let next = soon(client.consumer("t", "s").subscribe()).await.expect("subscribes");
    let numbers: Vec<u64> = receive_all(&next, 9).await.iter().map(text).collect();
    assert_eq!(numbers, (1..10).collect::<Vec<_>>());
}
