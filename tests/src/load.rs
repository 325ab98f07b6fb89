//! [`Load`]: continuous publishing and consuming with sequence numbers, which goes on while a
//! scenario breaks things, and is judged at the end.
//!
//! Judged, for each topic: every message with a receipt is there, in the order in which it was
//! sent; none whose acknowledgement had a receipt came again; what was first seen by an ordered
//! consumer came in order; no error reached the application.

mod history;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use geminga_client::{Client, Consumer, InitialPosition, Message, ReceivedMessage};
use history::History;
use tokio::task::JoinHandle;

/// Long enough for any machine; a test that needs it has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits for what must happen.
///
/// # Panics
/// When it doesn't within [`PATIENCE`].
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens within the test's patience")
}

/// How much is published.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Messages in a row before each pause.
    pub burst: u64,
    /// The pause.
    pub pause: Duration,
    /// Bytes of each message, at least what its number takes.
    pub message_bytes: usize,
}

impl Default for Pace {
    /// Enough to be in the middle of batches, groups and ledgers; little enough to read it all
    /// back quickly.
    fn default() -> Self {
        Self { burst: 16, pause: Duration::from_micros(300), message_bytes: 8 }
    }
}

/// What was seen in all topics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Messages with a receipt.
    pub stored: usize,
    /// Messages whose acknowledgement has a receipt.
    pub acknowledged: usize,
    /// Messages that came more than once to the consumer that acknowledges two of three.
    pub redelivered: u64,
    /// The longest time between a message's sending and its receipt.
    pub longest_wait: Duration,
    /// Messages with a receipt that weren't there at the end.
    pub lost: u64,
    /// Messages that came again although their acknowledgement has a receipt.
    pub came_again: u64,
    /// Messages that came before one that was sent earlier.
    pub out_of_order: u64,
}

/// Messages that the holes of a cursor are made of.
const MAX_HOLES: usize = 20_000;

/// Load on several topics.
#[derive(Debug)]
pub struct Load {
    lanes: Vec<Lane>,
}

#[derive(Debug)]
struct Lane {
    history: Arc<History>,
    tasks: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts publishing to and consuming from `topics`, and waits until all of it gets on.
    ///
    /// # Panics
    /// When it doesn't.
    pub async fn start(client: &Client, topics: &[&str], pace: Pace) -> Self {
        let mut lanes = Vec::new();
        for topic in topics {
            // Keeps everything until it is judged.
            let checker = soon(checker(client, topic)).await;
            soon(checker.close()).await.expect("it closes");
            let history = History::new((*topic).to_owned());
            let tasks = vec![
                tokio::spawn(publish(client.clone(), Arc::clone(&history), pace)),
                tokio::spawn(acknowledge(client.clone(), Arc::clone(&history))),
                tokio::spawn(follow(client.clone(), Arc::clone(&history))),
            ];
            lanes.push(Lane { history, tasks });
        }
        let load = Self { lanes };
        load.gets_on().await;
        load
    }

    /// Waits until every topic has more messages stored and received.
    ///
    /// # Panics
    /// When one doesn't, or an error reached the application.
    pub async fn gets_on(&self) {
        if let Err(why) = self.try_to_get_on().await {
            panic!("{why}");
        }
    }

    /// The same for who has something to do yet when it doesn't.
    ///
    /// # Errors
    /// Says what is wrong.
    pub async fn try_to_get_on(&self) -> Result<(), String> {
        for lane in &self.lanes {
            let (stored, received) = lane.history.progress();
            let more = async {
                loop {
                    if let [first, ..] = self.violations().as_slice() {
                        return Err(first.clone());
                    }
                    if lane.tasks.iter().any(JoinHandle::is_finished) {
                        let topic = &lane.history.topic;
                        return Err(format!("{topic}: publishing or consuming has ended"));
                    }
                    let now = lane.history.progress();
                    if now.0 > stored + 100 && now.1 > received + 100 {
                        return Ok(());
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            let stands_still =
                |_| Err(format!("{} stands still: {:?}", lane.history.topic, self.summary()));
            tokio::time::timeout(PATIENCE, more).await.unwrap_or_else(stands_still)?;
        }
        Ok(())
    }

    /// What is known to be wrong so far.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.lanes.iter().flat_map(|lane| lane.history.violations.lock().clone()).collect()
    }

    /// Fails as soon as something is known to be wrong.
    ///
    /// # Panics
    /// Then.
    pub fn nothing_is_violated(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "{violations:#?}");
    }

    /// From now on [`Load::longest_gap`] counts anew.
    pub fn watch_gaps(&self) {
        for lane in &self.lanes {
            let mut receipts = lane.history.receipts.lock();
            (receipts.last, receipts.longest_gap) = (Instant::now(), Duration::ZERO);
        }
    }

    /// The longest time without a receipt on any one topic since [`Load::watch_gaps`].
    #[must_use]
    pub fn longest_gap(&self) -> Duration {
        let gap = |lane: &Lane| {
            let receipts = lane.history.receipts.lock();
            receipts.longest_gap.max(receipts.last.elapsed())
        };
        self.lanes.iter().map(gap).max().unwrap_or_default()
    }

    /// What was seen so far.
    #[must_use]
    pub fn summary(&self) -> Summary {
        let mut sum = Summary::default();
        for Lane { history, .. } in &self.lanes {
            sum.stored += history.stored.lock().len();
            sum.acknowledged += history.acknowledged.lock().len();
            sum.redelivered += history.redelivered.load(Ordering::Relaxed);
            sum.lost += history.lost.load(Ordering::Relaxed);
            sum.came_again += history.came_again.load(Ordering::Relaxed);
            sum.out_of_order += history.out_of_order.load(Ordering::Relaxed);
            sum.longest_wait = sum.longest_wait.max(history.receipts.lock().longest_wait);
        }
        sum
    }

    /// Stops, reads everything back with `client` and judges it.
    ///
    /// # Panics
    /// When a promise is broken.
    pub async fn stop_and_judge(mut self, client: &Client) -> Summary {
        self.stop_and_read_back(client).await;
        self.nothing_is_violated();
        let summary = self.summary();
        assert!(summary.stored > 100 && summary.acknowledged > 10, "next to nothing: {summary:?}");
        summary
    }

    /// Stops and reads everything back, for who counts what [`Load::summary`] and
    /// [`Load::violations`] say then.
    ///
    /// # Panics
    /// When it can't be read.
    pub async fn stop_and_read_back(&mut self, client: &Client) {
        for Lane { history, .. } in &self.lanes {
            history.stop.store(true, Ordering::Relaxed);
        }
        for Lane { history, tasks } in &mut self.lanes {
            for task in tasks.drain(..) {
                soon(task).await.expect("publishing and consuming go on to the end");
            }
            judge(client, history).await;
        }
    }
}

/// Publishes rising numbers until told to stop, then waits for all their receipts.
async fn publish(client: Client, history: Arc<History>, pace: Pace) {
    // Its own time-out is all that an application may hear of, so it has none.
    let producer = client.producer(&history.topic).send_timeout(None).open();
    let producer = soon(producer).await.expect("there is a broker");
    while !history.has_stopped() {
        let number = history.sent.fetch_add(1, Ordering::Relaxed);
        let mut payload = number.to_string().into_bytes();
        // Blanks after the number.
        payload.resize(pace.message_bytes.max(payload.len()), b' ');
        let (heard_by, sent) = (Arc::clone(&history), Instant::now());
        let enqueued =
            producer.send_with_callback(Message::new(payload), move |result| match result {
                Ok(_) => heard_by.stored(number, sent),
                Err(error) => heard_by.violated(&format!("publishing {number} failed: {error}")),
            });
        if let Err(error) = soon(enqueued).await {
            history.violated(&format!("publishing {number} was refused: {error}"));
            return;
        }
        if number.is_multiple_of(pace.burst) {
            tokio::time::sleep(pace.pause).await;
        }
    }
    if let Err(error) = soon(producer.flush()).await {
        history.violated(&format!("flushing failed: {error}"));
    }
}

async fn subscribe(client: &Client, topic: &str, subscription: &str) -> Consumer {
    let consumer = client
        .consumer(topic, subscription)
        .initial_position(InitialPosition::Earliest)
        .receiver_queue_messages(500);
    soon(consumer.subscribe()).await.expect("there is a broker")
}

async fn checker(client: &Client, topic: &str) -> Consumer {
    subscribe(client, topic, "checker").await
}

fn number(message: &ReceivedMessage) -> u64 {
    String::from_utf8_lossy(&message.payload).trim().parse().expect("a number")
}

/// The next message, or `None` when it is time to look whether to stop.
async fn receive(consumer: &Consumer, history: &History) -> Option<ReceivedMessage> {
    match tokio::time::timeout(Duration::from_millis(50), consumer.receive()).await {
        Err(_) => None,
        Ok(Ok(message)) => Some(message),
        Ok(Err(error)) => {
            history.violated(&format!("receiving failed: {error}"));
            None
        }
    }
}

/// Acknowledges two of three messages with receipts, so that the cursor has holes; the third ones
/// much later, since a subscription hands out only so many that nobody acknowledges.
async fn acknowledge(client: Client, history: Arc<History>) {
    let consumer = Arc::new(subscribe(&client, &history.topic, "holes").await);
    let (mut seen, mut held) = (HashSet::new(), VecDeque::new());
    while !history.has_stopped() {
        let Some(message) = receive(&consumer, &history).await else { continue };
        history.received.fetch_add(1, Ordering::Relaxed);
        let id = message.id;
        if !seen.insert(id) {
            history.redelivered.fetch_add(1, Ordering::Relaxed);
        }
        // A copy that this session's broker had sent before the receipt may come; one of a session
        // that began after it may not.
        let session = consumer.session_id();
        let receipt_in = history.acknowledged.lock().get(&id).copied();
        if receipt_in.is_some_and(|heard_in| heard_in.is_none() || heard_in != session) {
            history.came_again.fetch_add(1, Ordering::Relaxed);
            history.violated(&format!("{id} was acknowledged with a receipt and came again"));
        }
        if number(&message).is_multiple_of(3) {
            held.push_back(id);
            // It may have been handed out again already, and wait to be received: so whether it
            // comes again proves nothing.
            if held.len() > MAX_HOLES
                && let Some(oldest) = held.pop_front()
                && let Err(error) = soon(consumer.ack(&oldest)).await
            {
                history.violated(&format!("acknowledging {oldest} failed: {error}"));
            }
            continue;
        }
        let (consumer, history) = (Arc::clone(&consumer), Arc::clone(&history));
        tokio::spawn(async move {
            // Without a receipt the outcome is unknown, and nothing is promised.
            if consumer.ack_with_receipt(&id).await.is_ok() {
                history.acknowledged.lock().insert(id, consumer.session_id());
            }
        });
    }
}

/// Follows in order and acknowledges everything up to a message now and then. A number that is new
/// to it must be the next one.
async fn follow(client: Client, history: Arc<History>) {
    let consumer = subscribe(&client, &history.topic, "follower").await;
    let (mut next, mut acknowledged) = (0, None);
    while !history.has_stopped() {
        let Some(message) = receive(&consumer, &history).await else { continue };
        let number = number(&message);
        let place = (message.id.position, message.id.batch_index);
        if acknowledged.is_some_and(|last| place <= last) {
            history.came_again.fetch_add(1, Ordering::Relaxed);
            history.violated(&format!("{} came again; all up to it was acknowledged", message.id));
        }
        if number > next {
            history.out_of_order.fetch_add(1, Ordering::Relaxed);
            history.violated(&format!("{number} came before {next}"));
        }
        next = next.max(number + 1);
        if number.is_multiple_of(100)
            && consumer.ack_cumulative_with_receipt(&message.id).await.is_ok()
        {
            acknowledged = Some(place);
        }
    }
}

/// Reads the whole topic and demands every number with a receipt, in order.
async fn judge(client: &Client, history: &History) {
    let consumer = soon(checker(client, &history.topic)).await;
    let last = soon(consumer.last_position()).await.expect("it is up").expect("there are messages");
    // A resend whose receipt was lost may store a message twice; its first place counts.
    let mut first_places: BTreeMap<u64, usize> = BTreeMap::new();
    let mut place = 0;
    loop {
        let message = soon(consumer.receive()).await.expect("it is up");
        first_places.entry(number(&message)).or_insert(place);
        place += 1;
        let id = message.id;
        soon(consumer.ack(&id)).await.expect("it is up");
        let ends_entry = id.batch_index.is_none_or(|index| index + 1 == id.batch_size);
        if id.position == last && ends_entry {
            break;
        }
    }
    soon(consumer.close()).await.expect("it closes");
    let stored = history.stored.lock();
    let lost = stored.iter().filter(|number| !first_places.contains_key(number)).count();
    if lost > 0 {
        history.lost.fetch_add(lost as u64, Ordering::Relaxed);
        history.violated(&format!("{lost} messages with a receipt are lost"));
    }
    let sent = history.sent.load(Ordering::Relaxed);
    if stored.len() as u64 != sent {
        history.violated(&format!("{sent} were sent, only {} have a receipt", stored.len()));
    }
    let places: Vec<usize> = first_places.into_values().collect();
    let swapped = places.windows(2).filter(|pair| pair[0] > pair[1]).count();
    if swapped > 0 {
        history.out_of_order.fetch_add(swapped as u64, Ordering::Relaxed);
        history.violated("messages are out of order");
    }
}
