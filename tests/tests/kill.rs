//! The server is killed at random moments while a producer and a consumer go on.
//!
//! Checked, over all kills: every message with a receipt is there, in the order in which it was
//! sent; none whose acknowledgement had a receipt is handed out again.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use geminga_client::{Client, InitialPosition, Message, MessageId};
use geminga_proto::env::{Random, SeededRandom};
use geminga_tests::standalone::{Standalone, home};
use parking_lot::Mutex;

const TOPIC: &str = "killed";
/// Long enough for any machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Enough to be in the middle of batches, groups and ledgers; small enough to read back quickly.
const PAUSE_US: u64 = 300;

#[derive(Debug, Default)]
struct History {
    /// Numbers whose publish has a receipt.
    stored: Mutex<HashSet<u64>>,
    /// Messages whose acknowledgement has a receipt.
    acknowledged: Mutex<HashSet<MessageId>>,
    /// What broke a promise.
    violations: Mutex<Vec<String>>,
    /// A publish that failed.
    failed: Mutex<Option<String>>,
    /// Between a message's sending and its receipt.
    longest_wait: Mutex<Duration>,
    sent: AtomicU64,
    received: AtomicU64,
    stop: AtomicBool,
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens within the test's patience")
}

fn client(server: &Standalone) -> Client {
    Client::builder().service_url(server.service_url()).build().expect("a good URL")
}

/// Publishes rising numbers until told to stop, then waits for all their receipts.
async fn publish(client: Client, history: Arc<History>) {
    let producer = soon(client.producer(TOPIC).open()).await.expect("the server is up");
    let mut tasks = Vec::new();
    while !history.stop.load(Ordering::Relaxed) {
        let failed = history.failed.lock().clone();
        assert_eq!(failed, None, "the SDK sends until there is a receipt");
        let number = history.sent.fetch_add(1, Ordering::Relaxed);
        let message = Message::new(number.to_string());
        let future = soon(producer.enqueue(message)).await.expect("the SDK waits for the server");
        let (history, sent) = (Arc::clone(&history), Instant::now());
        tasks.push(tokio::spawn(async move {
            if let Err(error) = future.await {
                // One tells as much as all of them.
                history.failed.lock().get_or_insert_with(|| format!("{number}: {error}"));
                return;
            }
            history.stored.lock().insert(number);
            let mut longest = history.longest_wait.lock();
            *longest = sent.elapsed().max(*longest);
        }));
        if number.is_multiple_of(16) {
            tokio::time::sleep(Duration::from_micros(PAUSE_US)).await;
        }
    }
    soon(producer.flush()).await.expect("everything gets its receipt");
    for task in tasks {
        soon(task).await.expect("no task panics");
    }
    assert_eq!(*history.failed.lock(), None, "the SDK sends until there is a receipt");
}

/// Acknowledges two of three messages with receipts, so that the cursor has holes.
async fn consume(client: Client, history: Arc<History>) {
    let consumer = client
        .consumer(TOPIC, "holes")
        .initial_position(InitialPosition::Earliest)
        .receiver_queue_messages(500)
        .subscribe();
    let consumer = Arc::new(soon(consumer).await.expect("the server is up"));
    while !history.stop.load(Ordering::Relaxed) {
        let received = tokio::time::timeout(Duration::from_millis(50), consumer.receive()).await;
        let Ok(message) = received else { continue };
        let message = message.expect("the SDK reconnects");
        history.received.fetch_add(1, Ordering::Relaxed);
        let id = message.id;
        if history.acknowledged.lock().contains(&id) {
            history.violations.lock().push(format!("{id} was acknowledged and came again"));
        }
        let number: u64 = String::from_utf8_lossy(&message.payload).parse().expect("a number");
        if !number.is_multiple_of(3) {
            let (consumer, history) = (Arc::clone(&consumer), Arc::clone(&history));
            tokio::spawn(async move {
                // Without a receipt the outcome is unknown, and nothing is promised.
                if consumer.ack_with_receipt(&id).await.is_ok() {
                    history.acknowledged.lock().insert(id);
                }
            });
        }
    }
}

/// Waits until some more messages have a receipt, and some more have come.
async fn both_get_on(history: &History) {
    let progress = || (history.stored.lock().len(), history.received.load(Ordering::Relaxed));
    let (stored, received) = progress();
    while progress().0 < stored + 100 || progress().1 < received + 100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads the whole topic and demands every number with a receipt, in order.
async fn check(client: Client, history: &History) {
    let consumer =
        client.consumer(TOPIC, "checker").initial_position(InitialPosition::Earliest).subscribe();
    let consumer = soon(consumer).await.expect("the server is up");
    let last = soon(consumer.last_position()).await.expect("it is up").expect("there are messages");
    // A resend whose receipt was lost may store a message twice; its first place counts.
    let mut first_places: BTreeMap<u64, usize> = BTreeMap::new();
    let mut place = 0;
    loop {
        let message = soon(consumer.receive()).await.expect("it is up");
        let number = String::from_utf8_lossy(&message.payload).parse().expect("a number");
        first_places.entry(number).or_insert(place);
        place += 1;
        soon(consumer.ack(&message.id)).await.expect("it is up");
        let id = message.id;
        let ends_entry = id.batch_index.is_none_or(|index| index + 1 == id.batch_size);
        if id.position == last && ends_entry {
            break;
        }
    }
    let stored = history.stored.lock();
    let lost: Vec<u64> =
        stored.iter().filter(|number| !first_places.contains_key(number)).copied().collect();
    assert!(lost.is_empty(), "{} stored messages are lost: {lost:?}", lost.len());
    let places: Vec<usize> = first_places.into_values().collect();
    assert!(places.is_sorted(), "messages are out of order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_with_a_receipt_is_lost_or_comes_again_when_the_server_is_killed() {
    let (rounds, seed) = (geminga_tests::rounds(100), geminga_tests::seed());
    eprintln!("GEMINGA_ROUNDS={rounds} GEMINGA_SEED={seed}");
    let random = SeededRandom::new(seed);
    let home = home();
    let mut server = Standalone::start(home.path());
    let history = Arc::new(History::default());
    let mut publisher = tokio::spawn(publish(client(&server), Arc::clone(&history)));
    let mut consumer = tokio::spawn(consume(client(&server), Arc::clone(&history)));
    let killing = async {
        for _ in 0..rounds {
            tokio::time::sleep(Duration::from_millis(random.below(120))).await;
            tokio::task::block_in_place(|| {
                server.kill();
                server.restart();
            });
        }
        // The last server is up: both sides must get on by themselves.
        soon(both_get_on(&history)).await;
    };
    // A side that is over before it was told to has failed.
    tokio::select! {
        () = killing => {}
        ended = &mut publisher => panic!("the producer must go on: {ended:?}"),
        ended = &mut consumer => panic!("the consumer must go on: {ended:?}"),
    }
    history.stop.store(true, Ordering::Relaxed);
    soon(publisher).await.expect("the producer goes on");
    soon(consumer).await.expect("the consumer goes on");
    check(client(&server), &history).await;
    let violations = history.violations.lock();
    assert!(violations.is_empty(), "{violations:?}");
    let (stored, acked) = (history.stored.lock().len(), history.acknowledged.lock().len());
    let longest = *history.longest_wait.lock();
    eprintln!(
        "{rounds} kills: {stored} stored, {acked} acknowledged with receipt; \
         the longest wait for a receipt was {longest:?}"
    );
    assert!(stored > 100 && acked > 10, "the scenario did next to nothing");
    tokio::task::block_in_place(|| server.stop());
}
