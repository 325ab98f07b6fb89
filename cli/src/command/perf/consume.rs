//! `geminga perf consume`: how fast stored messages are received and acknowledged. It ends early
//! when nothing is left, and measures until the last message then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use geminga_client::{Consumer, InitialPosition, ReceivedMessage};
use geminga_proto::env::{Clock, SystemClock};
use parking_lot::Mutex;

use super::load::{describe, subscribe};
use super::recorder::{Recorder, Window};
use super::report::Report;
use super::{TIMEOUT, durability};
use crate::args::perf::LoadArgs;
use crate::command::connect;
use crate::config::Settings;
use crate::exit::Outcome;

const TOGETHER: usize = 1_000;
/// Nothing for so long means that nothing is left.
const QUIET: Duration = Duration::from_secs(2);

/// What the consumers share.
struct Shared {
    window: Window,
    recorder: Recorder,
    clock: SystemClock,
    /// When the last message of the window came.
    last: Mutex<Instant>,
}

/// Measures consuming.
pub(super) async fn run(args: &LoadArgs, settings: &Settings) -> Outcome {
    let client = connect(settings, TIMEOUT).await?;
    let durability = durability(settings).await?;
    let consumers = subscribe(&client, args, &args.subscription, InitialPosition::Earliest).await?;
    let window = Window::new(args.warmup, args.duration);
    let shared = Arc::new(Shared {
        window,
        recorder: Recorder::new(window),
        clock: SystemClock::default(),
        last: Mutex::new(window.measured),
    });
    let mut tasks = tokio::task::JoinSet::new();
    for (number, consumer) in consumers.into_iter().enumerate() {
        tasks.spawn(receive(number, consumer, Arc::clone(&shared)));
    }
    tasks.join_all().await;
    client.close();
    let last = *shared.last.lock();
    let recorded = shared.recorder.recorded();
    if recorded.answered == 0 && recorded.first_error.is_none() {
        return Err(anyhow::anyhow!(
            "no message came after the warm-up of {:?}: publish more first, for example with \
             `geminga perf produce`, or shorten --warmup",
            args.warmup
        )
        .into());
    }
    let report = Report {
        test: "consume",
        latency_of: "publish time to receive, by two clocks in whole ms",
        recorded,
        elapsed: last.min(window.end).saturating_duration_since(window.measured),
        load: describe(args),
        durability,
    };
    Ok(report.show(args.output)?)
}

async fn receive(number: usize, consumer: Consumer, shared: Arc<Shared>) {
    let mut batch = Vec::with_capacity(TOGETHER);
    while Instant::now() < shared.window.end {
        let receiving = consumer.receive_many(&mut batch, TOGETHER);
        match tokio::time::timeout(QUIET, receiving).await {
            Err(_elapsed) => break,
            Ok(Err(error)) => {
                shared.recorder.failed(number, &error);
                return;
            }
            Ok(Ok(_count)) => {}
        }
        for message in batch.drain(..) {
            shared.note(number, &message);
            if let Err(error) = consumer.ack(&message.id).await {
                shared.recorder.failed(number, &error);
                return;
            }
        }
        *shared.last.lock() = Instant::now();
    }
    if let Err(error) = consumer.close().await {
        shared.recorder.failed(number, &error);
    }
}

impl Shared {
    fn note(&self, number: usize, message: &ReceivedMessage) {
        let latency_ms = self.clock.wall_ms().saturating_sub(message.publish_time_ms);
        let latency = Duration::from_millis(latency_ms);
        self.recorder.received(number, latency, message.payload.len() as u64);
    }
}
