//! Memory stays bounded whatever clients do. Limits are read from the server, not guessed.

use std::sync::Arc;
use std::time::Duration;

use geminga_client::{Client, Consumer, InitialPosition, Message};
use geminga_tests::standalone::{Standalone, home};

/// A small budget, so that a scenario passes it several times over in seconds.
const BUDGET: &str = "broker.memory_budget_bytes=67108864";
const CACHE: &str = "broker.tail_cache_bytes=16777216";
/// What the process may need on top of the budget: code, buffers of sockets, allocator slack.
const SLACK_BYTES: u64 = 160 << 20;
const BUDGET_BYTES: u64 = 64 << 20;

fn small(home: &std::path::Path) -> Standalone {
    Standalone::start_with(home, &["--set", BUDGET, "--set", CACHE])
}

fn client(server: &Standalone) -> Client {
    Client::builder().service_url(server.service_url()).build().expect("a good URL")
}

fn check(server: &Standalone) {
    let resident = server.resident_bytes();
    let limit = BUDGET_BYTES + SLACK_BYTES;
    assert!(resident < limit, "{} MiB resident, limit {} MiB", resident >> 20, limit >> 20);
}

/// Publishes `mib` MiB in messages of 16 KiB and waits for the receipts.
async fn publish(client: &Client, topic: &str, mib: usize) {
    let producer = client.producer(topic).open().await.expect("the server is up");
    let payload = vec![b'x'; 16 << 10];
    for _ in 0..mib * 64 {
        producer.send_one_way(Message::new(payload.clone())).await.expect("it is taken");
    }
    producer.close().await.expect("everything has its receipt");
}

async fn subscribe(client: &Client, topic: &str, subscription: &str, queue: u32) -> Consumer {
    client
        .consumer(topic, subscription)
        .initial_position(InitialPosition::Earliest)
        .receiver_queue_messages(queue)
        .subscribe()
        .await
        .expect("the server is up")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_faster_than_the_disk_does_not_fill_the_memory() {
    let home = home();
    let mut server = small(home.path());
    let client = client(&server);
    let tasks = (0..4).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { publish(&client, &format!("fast-{n}"), 128).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("publishing goes on");
        check(&server);
    }
    tokio::task::block_in_place(|| server.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_never_acknowledges_and_one_that_never_reads_do_not_fill_the_memory() {
    let home = home();
    let mut server = small(home.path());
    let (publisher, reader) = (client(&server), client(&server));
    let never_acks = subscribe(&reader, "t", "never-acks", 1_000).await;
    let never_reads = subscribe(&reader, "t", "never-reads", 1_000).await;
    let drain = tokio::spawn(async move { while never_acks.receive().await.is_ok() {} });
    publish(&publisher, "t", 256).await;
    check(&server);
    drain.abort();
    drop(never_reads);
    tokio::task::block_in_place(|| server.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_do_not_fill_the_memory() {
    let home = home();
    let mut server = small(home.path());
    let mut open = Vec::new();
    for n in 0..1_000 {
        let client = client(&server);
        let producer = client.producer(&format!("c-{}", n % 10)).open().await.expect("it is up");
        producer.send(Message::new("x")).await.expect("it is stored");
        open.push((client, producer));
    }
    check(&server);
    drop(open);
    tokio::task::block_in_place(|| server.stop());
}

/// Counts, for a fixed amount of work, that everybody else's work is done while one is stalled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stalled_consumer_of_a_hundred_does_not_hold_up_the_others() {
    const CONSUMERS: usize = 100;
    const MESSAGES: usize = 50;
    let home = home();
    let mut server = small(home.path());
    let (publisher, reader) = (client(&server), client(&server));
    let mut consumers = Vec::new();
    for n in 0..CONSUMERS {
        consumers.push(subscribe(&reader, &format!("t-{n}"), "s", 10).await);
    }
    let stalled = consumers.pop().expect("there are consumers");
    let tasks: Vec<_> = consumers
        .into_iter()
        .map(|consumer| {
            let consumer = Arc::new(consumer);
            tokio::spawn(async move {
                for _ in 0..MESSAGES {
                    let message = consumer.receive().await.expect("it is up");
                    consumer.ack(&message.id).await.expect("it is up");
                }
            })
        })
        .collect();
    // The stalled one's topic first, so that what it leaves lying is in everybody's way.
    for n in (0..CONSUMERS).rev() {
        let producer = publisher.producer(&format!("t-{n}")).batching(false).open().await;
        let producer = producer.expect("the server is up");
        for _ in 0..MESSAGES {
            let message = Message::new(vec![b'x'; 16 << 10]);
            producer.send_one_way(message).await.expect("it is taken");
        }
        producer.close().await.expect("everything has its receipt");
    }
    for task in tasks {
        let done = tokio::time::timeout(Duration::from_secs(120), task).await;
        done.expect("the others must not wait for the stalled one").expect("no task panics");
    }
    drop(stalled);
    tokio::task::block_in_place(|| server.stop());
}
