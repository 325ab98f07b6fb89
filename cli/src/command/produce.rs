//! `geminga produce`: publishes a file's lines, or a file as one message.
//!
//! A thread of its own reads ahead by a bounded number of chunks; this task hands the lines to the
//! SDK, which batches and waits while too much is in flight. The first failure or Ctrl-C ends the
//! reading; what was handed over before still gets its outcome, after Ctrl-C for a few seconds.

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

/// How long receipts are waited for after Ctrl-C; another one ends that at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// What became of the messages so far.
#[derive(Debug, Default)]
struct Tally {
    acknowledged: u64,
    /// Their payloads'.
    bytes: u64,
    first: Option<MessageId>,
    last: Option<MessageId>,
    error: Option<(u64, SendError)>,
}

/// Publishes what the arguments say.
///
/// # Errors
/// Not every message was acknowledged.
pub async fn run(args: &ProduceArgs, settings: &Settings) -> Outcome {
    if args.batch_bytes == 0 {
        return Err(Failed::usage("--batch-bytes must be more than 0"));
    }
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
    let mut run = Run { args, producer, progress, tally: Arc::default(), sent: 0, read: 0 };
    let started = Instant::now();
    let stopped = tokio::select! {
        end = run.send_all(input) => end,
        _ = tokio::signal::ctrl_c() => Err(Failed::interrupted("interrupted")),
    };
    let Run { producer, progress, tally, sent, .. } = run;
    let patience = if stopped.is_err() { PATIENCE } else { Duration::MAX };
    let closed = tokio::select! {
        closed = tokio::time::timeout(patience, producer.close()) => Some(closed),
        _ = tokio::signal::ctrl_c() => None,
    };
    progress.end();
    client.close();
    let end = stopped.as_ref().copied().unwrap_or_default();
    let tally = std::mem::take(&mut *tally.lock());
    let summary = Summary { topic, sent, elapsed: started.elapsed(), end, tally };
    summary.show(args.output)?;
    stopped?;
    if let Some((number, error)) = summary.tally.error {
        return Err(Failed::from(anyhow::Error::new(error).context(format!("message {number}"))));
    }
    match closed {
        None => Err(Failed::interrupted("interrupted while messages waited for their receipts")),
        Some(closed) => {
            closed.context("the producer didn't close in time")??;
            Ok(())
        }
    }
}

struct Run<'a> {
    args: &'a ProduceArgs,
    producer: Producer,
    progress: Progress,
    tally: Arc<Mutex<Tally>>,
    /// Messages handed over, and the one that was refused.
    sent: u64,
    /// Bytes of the input that they are.
    read: u64,
}

/// How the input ended.
#[derive(Debug, Clone, Copy, Default)]
struct End {
    /// The last line had no newline.
    unterminated: bool,
    /// A failure ended the reading.
    early: bool,
}

impl Run<'_> {
    /// Hands everything over; ends early at the first failure.
    async fn send_all(&mut self, input: Input) -> Result<End, Failed> {
        let mut chunks = input.read(self.args.whole_file);
        let mut pace = Pace::new(self.args.rate);
        let mut end = End::default();
        while let Some(chunk) = chunks.recv().await {
            let Chunk { lines, unterminated } = chunk.context("can't read the input")?;
            end.unterminated |= unterminated;
            for line in lines {
                if self.tally.lock().error.is_some() {
                    return Ok(End { early: true, ..end });
                }
                pace.wait().await;
                let bytes = line.len() as u64 + u64::from(!self.args.whole_file);
                let handed = self.send(line).await?;
                self.sent += 1;
                self.read += bytes;
                if let Err(error) = handed {
                    self.tally.lock().error.get_or_insert((self.sent, error));
                    return Ok(End { early: true, ..end });
                }
            }
            self.progress.at(self.read, self.sent);
        }
        Ok(end)
    }

    /// Hands one line over.
    async fn send(&self, line: Bytes) -> Result<Result<(), SendError>, Failed> {
        let number = self.sent + 1;
        let message = message(line, self.args.key_separator.as_deref())
            .with_context(|| format!("message {number}"))?;
        let (tally, bytes) = (Arc::clone(&self.tally), message.payload.len() as u64);
        let done = move |result: Result<SendReceipt, SendError>| {
            let mut tally = tally.lock();
            match result {
                Ok(receipt) => {
                    tally.acknowledged += 1;
                    tally.bytes += bytes;
                    tally.first.get_or_insert(receipt.id);
                    tally.last = Some(receipt.id);
                }
                Err(error) => {
                    tally.error.get_or_insert((number, error));
                }
            }
        };
        Ok(self.producer.send_with_callback(message, done).await)
    }
}

/// A line as a message; what stands before the separator is its key.
fn message(line: Bytes, separator: Option<&str>) -> anyhow::Result<Message> {
    let Some(separator) = separator.map(str::as_bytes) else { return Ok(Message::new(line)) };
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
    elapsed: Duration,
    end: End,
    tally: Tally,
}

impl Summary {
    fn show(&self, output: OutputFormat) -> anyhow::Result<()> {
        let Tally { acknowledged, bytes, first, last, .. } = &self.tally;
        let seconds = self.elapsed.as_secs_f64();
        let a_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        eprintln!(
            "{}: {} of {} acknowledged ({}) in {seconds:.2} s, {}/s",
            self.topic,
            show_count(*acknowledged),
            show_messages(self.sent),
            show_bytes(*bytes),
            show_count(a_second(*acknowledged) as u64),
        );
        if self.end.early {
            eprintln!("nothing after message {} of the input was sent", show_count(self.sent));
        } else if self.end.unterminated {
            eprintln!("the last line had no newline; it was sent all the same");
        }
        if output == OutputFormat::Json {
            output::json(&json!({
                "topic": self.topic,
                "messages": acknowledged,
                "sent": self.sent,
                "failed": self.sent.saturating_sub(*acknowledged),
                "bytes": bytes,
                "seconds": seconds,
                "messages_per_s": a_second(*acknowledged),
                "bytes_per_s": a_second(*bytes),
                "first_id": first.map(|id| id.to_string()),
                "last_id": last.map(|id| id.to_string()),
                "last_line_without_newline": self.end.unterminated,
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
