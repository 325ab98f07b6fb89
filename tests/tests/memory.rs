//! Memory stays bounded whatever clients do: over a scenario, the peak of the server's resident
//! memory grows by no more than its budget and what a process needs besides to do the work.

use std::sync::Arc;
use std::time::Duration;

use geminga_client::{Client, Consumer, InitialPosition, Message};
use geminga_tests::standalone::{Standalone, home};

/// A small budget, so that a scenario passes it several times over in seconds.
const BUDGET_BYTES: u64 = 64 << 20;
const BUDGET: &str = "broker.memory_budget_bytes=64MiB";
const CACHE: &str = "broker.tail_cache_bytes=16MiB";
/// What is read ahead for whoever catches up has a memory of its own.
const READ_AHEAD_BYTES: u64 = 16 << 20;
const READ_AHEAD: &str = "bookie.read_ahead_bytes=16MiB";
/// What the work may need on top of the budget: what the bookie has not written yet, buffers of
/// sockets, and what the allocator keeps for about a second after it was freed.
const SLACK_BYTES: u64 = 128 << 20;
/// Long enough for any machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens within the test's patience")
}

/// A server with a small budget, and the peak of its memory before any work.
struct Measured {
    server: Standalone,
    baseline_bytes: u64,
}

impl Measured {
    fn start(home: &std::path::Path) -> Self {
        let server =
            Standalone::start_with(home, &["--set", BUDGET, "--set", CACHE, "--set", READ_AHEAD]);
        let baseline_bytes = server.peak_resident_bytes();
        Self { server, baseline_bytes }
    }

    fn client(&self) -> Client {
        Client::builder().service_url(self.server.service_url()).build().expect("a good URL")
    }

    /// Looks at the peak, so that nothing is missed that was freed again.
    fn check(&self) {
        let grown = self.server.peak_resident_bytes() - self.baseline_bytes;
        let (grown_mib, base_mib) = (grown >> 20, self.baseline_bytes >> 20);
        let limit = BUDGET_BYTES + READ_AHEAD_BYTES + SLACK_BYTES;
        eprintln!("grew by {grown_mib} MiB from {base_mib} MiB; limit {} MiB", limit >> 20);
        assert!(grown < limit, "it grew by {grown_mib} MiB, limit {} MiB", limit >> 20);
    }

    fn stop(mut self) {
        tokio::task::block_in_place(|| self.server.stop());
    }
}

/// Messages of 16 KiB in so many MiB.
fn messages(mib: usize) -> usize {
    mib * 64
}

/// Publishes `mib` MiB in messages of 16 KiB and waits for the receipts.
async fn publish(client: &Client, topic: &str, mib: usize) {
    let producer = client.producer(topic).open().await.expect("the server is up");
    let payload = vec![b'x'; 16 << 10];
    for _ in 0..messages(mib) {
        soon(producer.send_one_way(payload.clone())).await.expect("it is taken");
    }
    soon(producer.close()).await.expect("everything has its receipt");
}

async fn subscribe(client: &Client, topic: &str, subscription: &str, queue: u32) -> Consumer {
    let consumer = client
        .consumer(topic, subscription)
        .initial_position(InitialPosition::Earliest)
        .receiver_queue_messages(queue)
        .subscribe();
    soon(consumer).await.expect("the server is up")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_faster_than_the_disk_does_not_fill_the_memory() {
    let home = home();
    let server = Measured::start(home.path());
    let client = server.client();
    let tasks = (0..4).map(|n| {
        let client = client.clone();
        tokio::spawn(async move { publish(&client, &format!("fast-{n}"), 128).await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("publishing goes on");
    }
    server.check();
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_never_acknowledges_and_one_that_never_reads_do_not_fill_the_memory() {
    let home = home();
    let server = Measured::start(home.path());
    let (publisher, reader) = (server.client(), server.client());
    let never_acks = subscribe(&reader, "t", "never-acks", 1_000).await;
    let never_reads = subscribe(&reader, "t", "never-reads", 1_000).await;
    let receiving = tokio::spawn(async move {
        for _ in 0..messages(256) {
            soon(never_acks.receive()).await.expect("it is up");
        }
        never_acks
    });
    publish(&publisher, "t", 256).await;
    // All that it was given is still to be acknowledged when the memory is looked at.
    let never_acks = receiving.await.expect("everything comes");
    server.check();
    drop((never_acks, never_reads));
    server.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_do_not_fill_the_memory() {
    let home = home();
    let server = Measured::start(home.path());
    let mut open = Vec::new();
    for n in 0..1_000 {
        let client = server.client();
        let producer = client.producer(&format!("c-{}", n % 10)).open();
        let producer = soon(producer).await.expect("it is up");
        soon(producer.send("x")).await.expect("it is stored");
        open.push((client, producer));
    }
    server.check();
    drop(open);
    server.stop();
}

/// Counts, for a fixed amount of work, that everybody else's work is done while one is stalled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stalled_consumer_of_a_hundred_does_not_hold_up_the_others() {
    const CONSUMERS: usize = 100;
    const MESSAGES: usize = 50;
    let home = home();
    let server = Measured::start(home.path());
    let (publisher, reader) = (server.client(), server.client());
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
    server.check();
    drop(stalled);
    server.stop();
}
