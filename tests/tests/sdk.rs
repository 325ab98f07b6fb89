//! The SDK against a real broker process: what applications that use the crate rely on.

use std::collections::BTreeSet;
use std::time::Duration;

use geminga_client::{
    Client, ClientError, Compression, Consumer, ConsumerError, ErrorCode, InitialPosition, Message,
    ReceivedMessage, SubscriptionType,
};
use geminga_tests::standalone::{Standalone, home};

/// Long enough for any machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens within the test's patience")
}

fn client(server: &Standalone) -> Client {
    Client::builder().service_url(server.service_url()).build().expect("valid settings")
}

async fn subscribe(client: &Client, topic: &str, subscription_type: SubscriptionType) -> Consumer {
    let consumer = client
        .consumer(topic, "s")
        .subscription_type(subscription_type)
        .initial_position(InitialPosition::Earliest)
        .nack_redelivery_delay(Duration::from_millis(50));
    soon(consumer.subscribe()).await.expect("subscribes")
}

async fn publish(client: &Client, topic: &str, numbers: std::ops::Range<u64>) {
    let producer = client.producer(topic).max_batch_messages(100).open();
    let producer = soon(producer).await.expect("opens");
    for number in numbers {
        soon(producer.send_one_way(number.to_string())).await.expect("taken");
    }
    soon(producer.close()).await.expect("stored");
}

fn number(message: &ReceivedMessage) -> u64 {
    std::str::from_utf8(&message.payload).expect("text").parse().expect("a number")
}

async fn receive(consumer: &Consumer, count: usize) -> Vec<ReceivedMessage> {
    let mut messages = Vec::new();
    while messages.len() < count {
        let wanted = count - messages.len();
        soon(consumer.receive_many(&mut messages, wanted)).await.expect("received");
    }
    messages
}

#[tokio::test]
async fn everything_that_describes_a_message_comes_back_with_it() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let client = client(&server);
    let info = soon(client.connect()).await.expect("connects");
    assert!(!info.cluster_id.is_empty() && info.max_message_bytes > 0);
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let topic = format!("described-{}", compression.as_str());
        let producer = client.producer(&topic).compression(compression).name("writer").open();
        let producer = soon(producer).await.expect("opens");
        let message = Message::new(vec![7; 100_000])
            .key("k")
            .ordering_key("o")
            .property("colour", "red")
            .event_time_ms(1_234_567);
        let receipt = soon(producer.send(message.clone())).await.expect("stored");
        let consumer = subscribe(&client, &topic, SubscriptionType::Exclusive).await;
        let received = soon(consumer.receive()).await.expect("received");
        assert_eq!((received.id, received.index), (receipt.id, receipt.index));
        assert_eq!(received.payload, message.payload);
        assert_eq!((received.key, received.ordering_key), (message.key, message.ordering_key));
        assert_eq!(received.properties, message.properties);
        assert_eq!(received.event_time_ms, message.event_time_ms);
        assert_eq!((&*received.producer_name, received.redelivery_count), ("writer", 0));
        soon(consumer.ack_with_receipt(&received.id)).await.expect("acknowledged");
        soon(consumer.close()).await.expect("closes");
        soon(producer.close()).await.expect("closes");
    }
    client.close();
    server.stop();
}

#[tokio::test]
async fn messages_of_a_batch_are_acknowledged_one_by_one_and_the_rest_comes_again() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let client = client(&server);
    publish(&client, "t", 0..100).await;
    let consumer = subscribe(&client, "t", SubscriptionType::Shared).await;
    for message in receive(&consumer, 100).await {
        if number(&message).is_multiple_of(3) {
            soon(consumer.ack_with_receipt(&message.id)).await.expect("acknowledged");
        }
    }
    soon(consumer.close()).await.expect("closes");
    server.stop();
    server.restart();
    let client = self::client(&server);
    let consumer = subscribe(&client, "t", SubscriptionType::Shared).await;
    let expected: BTreeSet<u64> =
        (0..100).filter(|number: &u64| !number.is_multiple_of(3)).collect();
    let rest = receive(&consumer, expected.len()).await;
    assert_eq!(rest.iter().map(number).collect::<BTreeSet<_>>(), expected);
    let target = soon(consumer.last_position()).await.expect("told").expect("not empty");
    for message in &rest {
        soon(consumer.ack(&message.id)).await.expect("taken");
    }
    soon(consumer.flush_acks()).await.expect("acknowledged");
    let position = soon(consumer.position()).await.expect("told");
    assert!(position.has_reached(target), "{position:?} {target}");
    assert_eq!(position.backlog_messages, 0);
    client.close();
    server.stop();
}

#[tokio::test]
async fn producer_and_consumer_go_on_after_the_broker_was_killed() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let client = client(&server);
    let producer = client.producer("t").max_batch_messages(10).send_timeout(None).open();
    let producer = soon(producer).await.expect("opens");
    let consumer = subscribe(&client, "t", SubscriptionType::Exclusive).await;
    let mut acked = BTreeSet::new();
    let mut futures = Vec::new();
    for round in 0..3 {
        for number in round * 200..(round + 1) * 200_u64 {
            let message = number.to_string();
            futures.push(soon(producer.enqueue(message)).await.expect("taken"));
        }
        while acked.len() < (round as usize + 1) * 150 {
            let message = soon(consumer.receive()).await.expect("received");
            soon(consumer.ack_with_receipt(&message.id)).await.expect("acknowledged");
            acked.insert(number(&message));
        }
        server.kill();
        server.restart();
    }
    let mut last = None;
    for future in futures {
        let receipt = soon(future).await.expect("stored in the end");
        assert!(last < Some(receipt.index), "{last:?} {:?}", receipt.index);
        last = Some(receipt.index);
    }
    while acked.len() < 600 {
        let message = soon(consumer.receive()).await.expect("received");
        soon(consumer.ack_with_receipt(&message.id)).await.expect("acknowledged");
        acked.insert(number(&message));
    }
    soon(producer.close()).await.expect("closes");
    soon(consumer.close()).await.expect("closes");
    server.stop();
}

#[tokio::test]
async fn a_message_handed_back_comes_again_with_its_count() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let client = client(&server);
    publish(&client, "t", 0..1).await;
    let consumer = subscribe(&client, "t", SubscriptionType::Shared).await;
    for count in 0..4 {
        let message = soon(consumer.receive()).await.expect("received");
        assert_eq!((number(&message), message.redelivery_count), (0, count));
        if count < 3 {
            consumer.nack(&message.id);
        } else {
            soon(consumer.ack_with_receipt(&message.id)).await.expect("acknowledged");
        }
    }
    client.close();
    server.stop();
}

#[tokio::test]
async fn subscription_types_keep_their_word() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let client = client(&server);
    publish(&client, "t", 0..10).await;
    let exclusive = subscribe(&client, "t", SubscriptionType::Exclusive).await;
    let second = client.consumer("t", "s").subscribe();
    let error = soon(second).await.expect_err("there is one already");
    assert_eq!(error.code(), Some(ErrorCode::ConsumerBusy), "{error}");
    let other = client.consumer("t", "s").subscription_type(SubscriptionType::Shared).subscribe();
    let error = soon(other).await.expect_err("it is exclusive");
    assert_eq!(error.code(), Some(ErrorCode::SubscriptionType), "{error}");
    let key_shared = client.consumer("t", "k").subscription_type(SubscriptionType::KeyShared);
    let error = soon(key_shared.subscribe()).await.expect_err("not built");
    assert_eq!(error.code(), Some(ErrorCode::Unsupported), "{error}");
    let absent = client.consumer("t", "absent").create(false).subscribe();
    let error = soon(absent).await.expect_err("not created");
    assert_eq!(error.code(), Some(ErrorCode::SubscriptionNotFound), "{error}");

    let messages = receive(&exclusive, 10).await;
    soon(exclusive.ack_cumulative_with_receipt(&messages[6].id)).await.expect("acknowledged");
    soon(exclusive.close()).await.expect("closes");
    let next = subscribe(&client, "t", SubscriptionType::Shared).await;
    let rest: Vec<u64> = receive(&next, 3).await.iter().map(number).collect();
    assert_eq!(rest, [7, 8, 9]);
    let refused = soon(next.ack_cumulative(&messages[9].id)).await;
    assert_eq!(refused, Err(ConsumerError::CumulativeOnShared));
    soon(next.unsubscribe()).await.expect("deleted");

    // The second of a failover subscription takes over where the first has left.
    let first = subscribe(&client, "t", SubscriptionType::Failover).await;
    let second = subscribe(&client, "t", SubscriptionType::Failover).await;
    for message in receive(&first, 10).await {
        if number(&message) < 4 {
            soon(first.ack_with_receipt(&message.id)).await.expect("acknowledged");
        }
    }
    assert!(first.is_active() && !second.is_active());
    soon(first.close()).await.expect("closes");
    let rest: Vec<u64> = receive(&second, 6).await.iter().map(number).collect();
    assert_eq!(rest, [4, 5, 6, 7, 8, 9]);
    client.close();
    server.stop();
}

#[tokio::test]
async fn one_stalled_consumer_of_a_hundred_holds_back_nobody() {
    const CONSUMERS: usize = 100;
    const MESSAGES: u64 = 300;
    let home = home();
    let mut server = Standalone::start(home.path());
    let client = client(&server);
    let producer = client.producer("t").max_batch_messages(5).open();
    let producer = soon(producer).await.expect("opens");
    // One connection; every consumer has a subscription of its own and a small queue.
    let mut consumers = Vec::new();
    for number in 0..CONSUMERS {
        let consumer = client
            .consumer("t", &format!("s-{number}"))
            .initial_position(InitialPosition::Earliest)
            .receiver_queue_messages(20)
            .subscribe();
        consumers.push(soon(consumer).await.expect("subscribes"));
    }
    let stalled = consumers.pop().expect("there are some");
    for number in 0..MESSAGES {
        soon(producer.send_one_way(number.to_string())).await.expect("taken");
    }
    soon(producer.flush()).await.expect("stored");
    for consumer in &consumers {
        let numbers: Vec<u64> =
            receive(consumer, MESSAGES as usize).await.iter().map(number).collect();
        assert_eq!(numbers, (0..MESSAGES).collect::<Vec<_>>());
    }
    // What the stalled one holds is what it granted, and one entry that may overdraw it.
    let queued = stalled.queued().messages;
    assert!((1..=25).contains(&queued), "{queued}");
    let late: Vec<u64> = receive(&stalled, MESSAGES as usize).await.iter().map(number).collect();
    assert_eq!(late, (0..MESSAGES).collect::<Vec<_>>());
    client.close();
    server.stop();
}

#[tokio::test]
async fn one_stalled_consumer_of_a_hundred_keeps_of_a_shared_subscription_what_it_was_given() {
    const CONSUMERS: usize = 100;
    const MESSAGES: u64 = 5_000;
    const QUEUE: u32 = 20;
    let home = home();
    let mut server = Standalone::start(home.path());
    let client = client(&server);
    let mut consumers = Vec::new();
    for _ in 0..CONSUMERS {
        let consumer = client
            .consumer("t", "s")
            .subscription_type(SubscriptionType::Shared)
            .initial_position(InitialPosition::Earliest)
            .receiver_queue_messages(QUEUE);
        consumers.push(soon(consumer.subscribe()).await.expect("subscribes"));
    }
    let stalled = consumers.pop().expect("there are some");
    let (done, mut received) = tokio::sync::mpsc::channel(1_000);
    let tasks: Vec<_> = consumers
        .into_iter()
        .map(|consumer| {
            let done = done.clone();
            tokio::spawn(async move {
                while let Ok(message) = consumer.receive().await {
                    consumer.ack(&message.id).await.expect("taken");
                    done.send(number(&message)).await.expect("the test still counts");
                }
            })
        })
        .collect();
    let producer = client.producer("t").max_batch_messages(1).open();
    let producer = soon(producer).await.expect("opens");
    for number in 0..MESSAGES {
        soon(producer.send_one_way(number.to_string())).await.expect("taken");
    }
    soon(producer.close()).await.expect("stored");
    // All but what the stalled one was given, which is no more than it has room for.
    let mut seen = BTreeSet::new();
    while (seen.len() as u64) < MESSAGES - u64::from(QUEUE) {
        let number = soon(received.recv()).await.expect("the others go on");
        assert!(seen.insert(number), "{number} came twice");
    }
    // When it leaves, the others get that too.
    soon(stalled.close()).await.expect("closes");
    while (seen.len() as u64) < MESSAGES {
        seen.insert(soon(received.recv()).await.expect("the others go on"));
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    client.close();
    server.stop();
}

#[tokio::test]
async fn the_wrong_port_is_recognised() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let ports = server.ports();
    for wrong in [&ports.admin, &ports.bookie] {
        let client = Client::builder().service_url(format!("http://{wrong}"));
        let client = client.operation_timeout(Duration::from_secs(5)).build().expect("valid");
        let opened = soon(client.producer("t").open()).await;
        assert!(matches!(opened, Err(ClientError::NotABroker { .. })), "{wrong}: {opened:?}");
    }
    server.stop();
}
