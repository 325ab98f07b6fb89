//! `geminga produce`: publishes a file's lines, or a file as one message.
//!
//! A thread of its own reads ahead by a bounded number of chunks; this task hands the lines to the
//! SDK, which batches and waits while too much is in flight. The first failure ends the reading;
//! what was handed over before still gets its outcome.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use geminga_client::{Message, MessageId, Producer, SendError, SendReceipt};
use parking_lot::Mutex;
use serde_json::json;

use crate::args::OutputFormat;
use crate::args::produce::ProduceArgs;
use crate::config::Settings;
use crate::config::units::{show_bytes, show_count, show_messages};
use crate::exit::{Failed, Outcome};
use crate::output;

mod input;
mod progress;

use input::{Chunk, Input};
use progress::Progress;

/// What became of the messages so far.
#[derive(Debug, Default)]
struct Tally {
    acknowledged: u64,
    failed: u64,
    first: Option<MessageId>,
    last: Option<MessageId>,
    error: Option<(u64, SendError)>,
}

/// Publishes what the arguments say.
///
/// # Errors
/// Not every message was acknowledged.
pub async fn run(args: &ProduceArgs, settings: &Settings) -> Outcome {
    let input = Input::open(&args.file)?;
    let client = super::connect(settings, args.timeout).await?;
    let batch_bytes = usize::try_from(args.batch_bytes).unwrap_or(usize::MAX);
    let producer = client
        .producer(&args.topic)
        .compression(args.compression)
        .max_batch_bytes(batch_bytes)
        .send_timeout(Some(args.timeout))
        .open()
        .await
        .with_context(|| format!("can't publish to topic {:?}", args.topic))?;
    let topic = producer.topic();
    let progress = Progress::start(input.bytes());
    let mut run = Run { args, producer, progress, tally: Arc::default(), sent: 0, bytes: 0 };
    let started = Instant::now();
    let stopped = run.send_all(input).await;
    let Run { producer, progress, tally, sent, bytes, .. } = run;
    let closed = producer.close().await;
    progress.end();
    client.close();
    let unterminated = stopped.as_ref().is_ok_and(|end| end.unterminated);
    let tally = std::mem::take(&mut *tally.lock());
    let summary = Summary { topic, sent, bytes, elapsed: started.elapsed(), unterminated, tally };
    summary.show(args.output)?;
    stopped?;
    if let Some((number, error)) = summary.tally.error {
        return Err(Failed::from(anyhow::Error::new(error).context(format!("message {number}"))));
    }
    closed.context("the producer didn't close cleanly")?;
    Ok(())
}

struct Run<'a> {
    args: &'a ProduceArgs,
    producer: Producer,
    progress: Progress,
    tally: Arc<Mutex<Tally>>,
    sent: u64,
    bytes: u64,
}

/// How the input ended.
#[derive(Debug, Clone, Copy, Default)]
struct End {
    /// The last line had no newline.
    unterminated: bool,
}

impl Run<'_> {
    /// Hands everything over; ends early at the first failure.
    async fn send_all(&mut self, input: Input) -> Result<End, Failed> {
        let mut chunks = input.read(self.args.whole_file);
        let mut pace = Pace::new(self.args.rate);
        let mut end = End::default();
        let interrupted = tokio::signal::ctrl_c();
        tokio::pin!(interrupted);
        loop {
            let chunk = tokio::select! {
                chunk = chunks.recv() => chunk,
                _ = &mut interrupted => return Err(Failed::interrupted("interrupted")),
            };
            let Some(chunk) = chunk else { return Ok(end) };
            let Chunk { lines, unterminated } = chunk.context("can't read the input")?;
            end.unterminated |= unterminated;
            for line in lines {
                if self.tally.lock().error.is_some() {
                    return Ok(end);
                }
                pace.wait().await;
                if let Err(error) = self.send(line).await? {
                    self.tally.lock().error.get_or_insert((self.sent, error));
                    return Ok(end);
                }
            }
            self.progress.at(self.bytes, self.sent);
        }
    }

    /// Hands one line over.
    async fn send(&mut self, line: Bytes) -> Result<Result<(), SendError>, Failed> {
        self.sent += 1;
        self.bytes += line.len() as u64;
        let number = self.sent;
        let message = message(line, self.args.key_separator.as_deref())
            .with_context(|| format!("message {number}"))?;
        let tally = Arc::clone(&self.tally);
        let done = move |result: Result<SendReceipt, SendError>| {
            let mut tally = tally.lock();
            match result {
                Ok(receipt) => {
                    tally.acknowledged += 1;
                    tally.first.get_or_insert(receipt.id);
                    tally.last = Some(receipt.id);
                }
                Err(error) => {
                    tally.failed += 1;
                    tally.error.get_or_insert((number, error));
                }
            }
        };
        Ok(self.producer.send_with_callback(message, done).await)
    }
}

/// A line as a message; what stands before the separator is its key.
fn message(line: Bytes, separator: Option<&str>) -> anyhow::Result<Message> {
    let Some(separator) = separator.map(str::as_bytes).filter(|text| !text.is_empty()) else {
        return Ok(Message::new(line));
    };
    match line.windows(separator.len()).position(|window| window == separator) {
        None => Ok(Message::new(line)),
        Some(at) => {
            let key = std::str::from_utf8(&line[..at]).context("its key is not UTF-8 text")?;
            Ok(Message::new(line.slice(at + separator.len()..)).key(key))
        }
    }
}

/// Keeps to a rate: message n is not sent before n / rate seconds after the start.
struct Pace {
    start: Instant,
    rate: u64,
    sent: u64,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self { start: Instant::now(), rate, sent: 0 }
    }

    async fn wait(&mut self) {
        if self.rate == 0 {
            return;
        }
        let due = Duration::from_secs_f64(self.sent as f64 / self.rate as f64);
        self.sent += 1;
        let ahead = due.saturating_sub(self.start.elapsed());
        // The runtime's timer counts whole milliseconds; shorter waits would only add up.
        if ahead >= Duration::from_millis(1) {
            tokio::time::sleep(ahead).await;
        }
    }
}

struct Summary {
    topic: String,
    sent: u64,
    bytes: u64,
    elapsed: Duration,
    unterminated: bool,
    tally: Tally,
}

impl Summary {
    fn show(&self, output: OutputFormat) -> anyhow::Result<()> {
        let Tally { acknowledged, failed, first, last, .. } = &self.tally;
        let seconds = self.elapsed.as_secs_f64();
        let rate = if seconds > 0.0 { *acknowledged as f64 / seconds } else { 0.0 };
        eprintln!(
            "{}: {} of {} acknowledged ({}) in {seconds:.2} s, {}/s",
            self.topic,
            show_count(*acknowledged),
            show_messages(self.sent),
            show_bytes(self.bytes),
            show_count(rate as u64),
        );
        if self.unterminated {
            eprintln!("the last line had no newline; it was sent all the same");
        }
        if output == OutputFormat::Json {
            output::json(&json!({
                "topic": self.topic,
                "messages": acknowledged,
                "sent": self.sent,
                "failed": failed,
                "bytes": self.bytes,
                "seconds": seconds,
                "messages_per_s": rate,
                "bytes_per_s": if seconds > 0.0 { self.bytes as f64 / seconds } else { 0.0 },
                "first_id": first.map(|id| id.to_string()),
                "last_id": last.map(|id| id.to_string()),
                "last_line_without_newline": self.unterminated,
            }))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_what_stands_before_the_first_separator() {
        let keyed = |line: &'static str, separator| {
            let message = message(Bytes::from(line), separator).expect("text");
            (message.key, message.payload)
        };
        let payload = |text: &'static str| Bytes::from(text);
        assert_eq!(keyed("k:v:w", Some(":")), (Some("k".to_owned()), payload("v:w")));
        assert_eq!(keyed("k::v", Some("::")), (Some("k".to_owned()), payload("v")));
        assert_eq!(keyed(":v", Some(":")), (Some(String::new()), payload("v")));
        assert_eq!(keyed("no key", Some(":")), (None, payload("no key")));
        assert_eq!(keyed("a:b", None), (None, payload("a:b")));
        assert!(message(Bytes::from_static(b"\xff:v"), Some(":")).is_err());
    }
}
