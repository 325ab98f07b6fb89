//! `geminga perf roundtrip`: the time from when a message is due until a consumer has it. Each run
//! has a subscription of its own, which it deletes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use geminga_client::{Consumer, InitialPosition};
use geminga_proto::env::Env;
use serde_json::json;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::load::{Load, describe, subscribe};
use super::payload::{STAMP_BYTES, Stamp};
use super::recorder::{Recorder, Window};
use super::report::Report;
use super::{TIMEOUT, durability};
use crate::args::perf::RoundtripArgs;
use crate::command::connect;
use crate::config::Settings;
use crate::exit::{Failed, Outcome};

/// Messages taken from the queue at a time.
const TOGETHER: usize = 1_000;
/// How long consumers may go on without a message after the last one is sent.
const DRAIN: Duration = Duration::from_secs(1);

/// Measures publishing and receiving.
pub(super) fn run(runtime: &Runtime, args: &RoundtripArgs, settings: &Settings) -> Outcome {
    let RoundtripArgs { load: args, stalled } = args;
    if *stalled >= args.consumers {
        let least = "--stalled must leave a consumer that receives: raise --consumers";
        return Err(Failed::usage(least.to_owned()));
    }
    if args.size < STAMP_BYTES as u64 {
        let least = format!("--size must be at least {STAMP_BYTES}: each message carries its time");
        return Err(Failed::usage(least));
    }
    let env = Env::system();
    let run = env.random.next_u64();
    let (client, durability, consumers, load) = runtime.block_on(async {
        let client = connect(settings, TIMEOUT).await?;
        let durability = durability(settings).await?;
        let subscription = format!("{}-{run:016x}", args.subscription);
        let consumers = subscribe(&client, args, &subscription, InitialPosition::Latest).await?;
        let load = Load::open(&client, args, &env, Some(run)).await?;
        anyhow::Ok((client, durability, consumers, load))
    })?;
    let window = Window::new(args.warmup, args.duration);
    let recorder = Arc::new(Recorder::new(window));
    let receiving: Vec<JoinHandle<()>> = consumers
        .iter()
        .cloned()
        .enumerate()
        // The consumers of a topic follow each other; its first ones stall.
        .filter(|(number, _)| number % args.consumers as usize >= *stalled as usize)
        .map(|(number, consumer)| {
            let recorder = Arc::clone(&recorder);
            runtime.spawn(receive(number, consumer, run, window, recorder))
        })
        .collect();
    load.drive(runtime, window, &recorder);
    runtime.block_on(async {
        for task in receiving {
            task.await?;
        }
        delete_subscriptions(consumers).await
    })?;
    client.close();
    let mut described = describe(args);
    described["stalled"] = json!(stalled);
    let report = Report {
        test: "roundtrip",
        latency_of: "intended send time to receive",
        recorded: recorder.recorded(),
        elapsed: args.duration,
        load: described,
        durability,
    };
    Ok(report.show(args.output)?)
}

/// Receives and acknowledges until the load is over and nothing comes any more.
async fn receive(
    number: usize,
    consumer: Consumer,
    run: u64,
    window: Window,
    recorder: Arc<Recorder>,
) {
    let mut batch = Vec::with_capacity(TOGETHER);
    loop {
        let deadline = Instant::now().max(window.end) + DRAIN;
        let receiving = consumer.receive_many(&mut batch, TOGETHER);
        match tokio::time::timeout_at(deadline.into(), receiving).await {
            Err(_elapsed) => return,
            Ok(Err(error)) => {
                recorder.failed(number, &error);
                return;
            }
            Ok(Ok(_count)) => {}
        }
        for message in batch.drain(..) {
            if let Err(error) = consumer.ack(&message.id).await {
                recorder.failed(number, &error);
                return;
            }
            let stamp = Stamp::read(&message.payload).filter(|stamp| stamp.run == run);
            if let Some(due) = stamp.and_then(|stamp| stamp.instant(window.start)) {
                recorder.answered(number, due, message.payload.len() as u64);
            }
        }
    }
}

/// Each subscription goes with its last consumer.
async fn delete_subscriptions(consumers: Vec<Consumer>) -> anyhow::Result<()> {
    let mut left: Vec<Consumer> = Vec::new();
    for consumer in consumers {
        if left.iter().any(|kept| kept.topic() == consumer.topic()) {
            consumer.close().await?;
        } else {
            left.push(consumer);
        }
    }
    for consumer in left {
        consumer.unsubscribe().await?;
    }
    Ok(())
}
