//! `geminga perf topics`: the first use of new topics. Each is one producer's opening, one message
//! with its receipt, and the closing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use geminga_client::{Client, Message, SendError};
use geminga_proto::env::Env;
use serde_json::json;

use super::payload::Payloads;
use super::recorder::{Recorder, Window};
use super::report::Report;
use super::{TIMEOUT, durability};
use crate::args::perf::TopicsArgs;
use crate::command::connect;
use crate::config::Settings;
use crate::exit::Outcome;

/// Long enough for every count that the arguments allow.
const NO_END: Duration = Duration::from_secs(86_400);

/// Measures first uses.
pub(super) async fn run(args: &TopicsArgs, settings: &Settings) -> Outcome {
    let client = connect(settings, TIMEOUT).await?;
    let durability = durability(settings).await?;
    let size = usize::try_from(args.size.min(64 << 20)).unwrap_or(usize::MAX);
    let payloads = Payloads::new(size, &*Env::system().random);
    let window = Window::new(Duration::ZERO, NO_END);
    let recorder = Arc::new(Recorder::new(window));
    let next = Arc::new(AtomicU32::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..args.in_flight {
        let (client, recorder, next) = (client.clone(), Arc::clone(&recorder), Arc::clone(&next));
        let (args, mut payloads) = (args.clone(), payloads.clone());
        tasks.spawn(async move {
            loop {
                let topic = next.fetch_add(1, Ordering::Relaxed);
                if topic >= args.count {
                    return;
                }
                let due = Instant::now();
                let name = format!("{}-{topic}", args.prefix);
                match use_once(&client, &name, Message::new(payloads.shared())).await {
                    Ok(()) => recorder.answered(number as usize, due, args.size),
                    Err(error) => recorder.failed(number as usize, &error),
                }
            }
        });
    }
    tasks.join_all().await;
    let end = Instant::now();
    client.close();
    let report = Report {
        test: "topics",
        latency_of: "a topic's first use: open, publish, receipt, close",
        recorded: recorder.recorded_until(end),
        elapsed: end.saturating_duration_since(window.start),
        load: json!({ "topics": args.count, "in_flight": args.in_flight, "size": args.size }),
        durability,
    };
    Ok(report.show(args.output)?)
}

async fn use_once(client: &Client, topic: &str, message: Message) -> Result<(), SendError> {
    let producer = client.producer(topic).open().await.map_err(SendError::Failed)?;
    producer.send(message).await?;
    producer.close().await
}
