//! [`Load`]: opens producers and drives them at the rate asked for.
//!
//! With a rate, threads of their own pace the messages, since the runtime's timer counts whole
//! milliseconds; without one, each producer is a task that sends whenever there is room. A message
//! without a rate is due when the task turns to it: with one in flight, once the one before it
//! has been answered; with more, before the task waits for room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use geminga_client::{Client, Consumer, InitialPosition, Message, Producer, SubscriptionType};
use geminga_proto::env::Env;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::TIMEOUT;
use super::payload::{Payloads, Stamp};
use super::recorder::{Recorder, Window};
use crate::args::perf::{LoadArgs, OnOff};

/// Messages after which a task without a rate lets others run.
const YIELD_EVERY: u32 = 64;

/// The topics of a run.
pub(super) fn topics(args: &LoadArgs) -> Vec<String> {
    match args.topics {
        1 => vec![args.topic.clone()],
        count => (0..count).map(|n| format!("{}-{n}", args.topic)).collect(),
    }
}

/// The consumers of a run, all of a topic following each other.
pub(super) async fn subscribe(
    client: &Client,
    args: &LoadArgs,
    subscription: &str,
    from: InitialPosition,
) -> anyhow::Result<Vec<Consumer>> {
    let several = args.consumers > 1;
    let kind = if several { SubscriptionType::Shared } else { SubscriptionType::Exclusive };
    let mut consumers = Vec::new();
    for topic in topics(args) {
        for _ in 0..args.consumers {
            let consumer = client
                .consumer(&topic, subscription)
                .subscription_type(kind)
                .initial_position(from)
                .subscribe()
                .await
                .with_context(|| format!("can't consume from topic {topic:?}"))?;
            consumers.push(consumer);
        }
    }
    Ok(consumers)
}

/// The load as it is reported.
pub(super) fn describe(args: &LoadArgs) -> Value {
    json!({
        "topic": args.topic,
        "topics": args.topics,
        "producers": args.producers,
        "consumers": args.consumers,
        "size": args.size,
        "rate": args.rate,
        "in_flight": args.in_flight,
        "batching": args.batching == OnOff::On,
        "batch_bytes": args.batch_bytes,
        "compression": args.compression.as_str(),
        "duration_s": args.duration.as_secs_f64(),
        "warmup_s": args.warmup.as_secs_f64(),
    })
}

/// Open producers and what they are to send.
#[derive(Debug, Clone)]
pub(super) struct Load {
    producers: Vec<Producer>,
    rate: u64,
    in_flight: u32,
    payloads: Payloads,
    /// Stamps messages with this run's number.
    stamp: Option<u64>,
    size: u64,
}

impl Load {
    /// Opens the producers, several at a time.
    pub async fn open(
        client: &Client,
        args: &LoadArgs,
        env: &Env,
        stamp: Option<u64>,
    ) -> anyhow::Result<Self> {
        let size = usize::try_from(args.size).context("--size is too large")?;
        anyhow::ensure!(size <= 64 << 20, "--size is above 64MiB, which no broker takes");
        let mut opening = tokio::task::JoinSet::new();
        let mut producers = Vec::new();
        for topic in topics(args) {
            for _ in 0..args.producers {
                if opening.len() >= 64
                    && let Some(opened) = opening.join_next().await
                {
                    producers.push(opened??);
                }
                opening.spawn(open_one(client.clone(), topic.clone(), args.clone()));
            }
        }
        while let Some(opened) = opening.join_next().await {
            producers.push(opened??);
        }
        let payloads = Payloads::new(size, &*env.random);
        let (rate, in_flight) = (args.rate, args.in_flight);
        Ok(Self { producers, rate, in_flight, payloads, stamp, size: args.size })
    }

    /// Drives the load until the window's end, then waits for what is under way.
    pub fn drive(self, runtime: &Runtime, window: Window, recorder: &Arc<Recorder>) {
        if self.rate == 0 {
            runtime.block_on(self.drive_freely(window, recorder));
        } else {
            self.drive_paced(runtime, window, recorder);
        }
    }

    async fn drive_freely(self, window: Window, recorder: &Arc<Recorder>) {
        let mut tasks = tokio::task::JoinSet::new();
        let one_by_one = self.in_flight == 1;
        for (number, producer) in self.producers.iter().cloned().enumerate() {
            let mut sender = self.sender(number, vec![producer], window, recorder);
            tasks.spawn(async move {
                let mut sent = 0_u32;
                while Instant::now() < window.end {
                    if one_by_one {
                        sender.send_and_wait(Instant::now()).await;
                        continue;
                    }
                    sender.send(Instant::now()).await;
                    sent = sent.wrapping_add(1);
                    if sent.is_multiple_of(YIELD_EVERY) {
                        tokio::task::yield_now().await;
                    }
                }
                sender.close().await;
            });
        }
        tasks.join_all().await;
    }

    fn drive_paced(self, runtime: &Runtime, window: Window, recorder: &Arc<Recorder>) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.producers.len().min(cores).max(1);
        std::thread::scope(|scope| {
            for number in 0..threads {
                let share: Vec<Producer> =
                    self.producers.iter().skip(number).step_by(threads).cloned().collect();
                let part = share.len() as f64 / self.producers.len() as f64;
                let interval = Duration::from_secs_f64(1.0 / (self.rate as f64 * part));
                let mut sender = self.sender(number, share, window, recorder);
                let handle = runtime.handle().clone();
                scope.spawn(move || {
                    handle.block_on(async move {
                        sender.keep_pace(interval, window).await;
                        sender.close().await;
                    });
                });
            }
        });
    }

    fn sender(
        &self,
        number: usize,
        producers: Vec<Producer>,
        window: Window,
        recorder: &Arc<Recorder>,
    ) -> Sender {
        Sender {
            number,
            producers,
            next: 0,
            payloads: self.payloads.clone(),
            stamp: self.stamp,
            size: self.size,
            start: window.start,
            recorder: Arc::clone(recorder),
        }
    }
}

async fn open_one(client: Client, topic: String, args: LoadArgs) -> anyhow::Result<Producer> {
    client
        .producer(&topic)
        .batching(args.batching == OnOff::On)
        .max_batch_bytes(usize::try_from(args.batch_bytes).unwrap_or(usize::MAX))
        .compression(args.compression)
        .max_in_flight_messages(args.in_flight)
        .send_timeout(Some(TIMEOUT))
        .open()
        .await
        .with_context(|| format!("can't publish to topic {topic:?}"))
}

/// Sends to some producers in turn.
struct Sender {
    number: usize,
    producers: Vec<Producer>,
    next: usize,
    payloads: Payloads,
    stamp: Option<u64>,
    size: u64,
    start: Instant,
    recorder: Arc<Recorder>,
}

impl Sender {
    fn payload(&mut self, due: Instant) -> Bytes {
        match self.stamp {
            None => self.payloads.shared(),
            Some(run) => {
                let due = due.saturating_duration_since(self.start);
                self.payloads.stamped(Stamp { run, due })
            }
        }
    }

    /// Sends a message each interval until the window's end. Runs on a thread that is no worker
    /// of the runtime, so it may sleep, precisely.
    async fn keep_pace(&mut self, interval: Duration, window: Window) {
        for sent in 0_u64.. {
            let due = window.start + interval.mul_f64(sent as f64);
            if due >= window.end {
                return;
            }
            let ahead = due.saturating_duration_since(Instant::now());
            if !ahead.is_zero() {
                std::thread::sleep(ahead);
            }
            self.send(due).await;
        }
    }

    /// Sends the message that is due at `due`; waits while its producer has no room.
    async fn send(&mut self, due: Instant) {
        let message = Message::new(self.payload(due));
        let Some(producer) = self.producers.get(self.next) else { return };
        self.next = (self.next + 1) % self.producers.len();
        let (recorder, shard, size) = (Arc::clone(&self.recorder), self.number, self.size);
        let stamped = self.stamp.is_some();
        let done = move |result: Result<_, geminga_client::SendError>| match result {
            // Of a round trip, the consumer records the end.
            Ok(_) if stamped => {}
            Ok(_) => recorder.answered(shard, due, size),
            Err(error) => recorder.failed(shard, &error),
        };
        if let Err(error) = producer.send_with_callback(message, done).await {
            self.failed(&error).await;
        }
    }

    /// Sends the message that is due at `due` and waits for its answer.
    async fn send_and_wait(&mut self, due: Instant) {
        let message = Message::new(self.payload(due));
        let Some(producer) = self.producers.get(self.next) else { return };
        self.next = (self.next + 1) % self.producers.len();
        match producer.send(message).await {
            Ok(_) if self.stamp.is_some() => {}
            Ok(_) => self.recorder.answered(self.number, due, self.size),
            Err(error) => self.failed(&error).await,
        }
    }

    async fn failed(&self, error: &geminga_client::SendError) {
        self.recorder.failed(self.number, error);
        // A producer that is over fails at once for ever.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    async fn close(self) {
        for producer in self.producers {
            if let Err(error) = producer.close().await {
                self.recorder.failed(self.number, &error);
            }
        }
    }
}
