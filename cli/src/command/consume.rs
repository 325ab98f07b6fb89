//! `geminga consume`: receives messages, writes them to standard output and acknowledges them.
//!
//! *Invariant:* a message is acknowledged after its bytes have gone to standard output, and the
//! command ends well only after every acknowledgement has its receipt.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use geminga_client::{Consumer, Position, ReceiveError, ReceivedMessage};
use geminga_proto::topic_name::TopicName;

use crate::args::consume::ConsumeArgs;
use crate::command::admin::topic_path;
use crate::config::Settings;
use crate::config::units::{show_bytes, show_messages};
use crate::config::urls;
use crate::exit::{Failed, Outcome};
use crate::http::AdminApi;

mod format;

use format::write_message;

/// Messages written and acknowledged together.
const TOGETHER: usize = 1_000;
/// The patience of a command that has an end.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long nothing must come before the broker is asked whether anything is left.
const QUIET: Duration = Duration::from_millis(20);
/// How often it is asked while others still hold messages.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// How often it is asked why nothing comes.
const ASKED: usize = 3;
/// How long that may take in all, since the command's own time is up by then.
const ASK_LIMIT: Duration = Duration::from_secs(1);
/// Limit of single requests, and of the connection.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Receives what the arguments say.
///
/// # Errors
/// Not everything was received, written and durably acknowledged.
pub async fn run(args: &ConsumeArgs, settings: &Settings) -> Outcome {
    let limited = args.count.is_some() || args.until_caught_up;
    let timeout = args.timeout.or_else(|| limited.then_some(DEFAULT_TIMEOUT));
    if timeout.is_some_and(|timeout| timeout.is_zero()) {
        return Err(Failed::usage("--timeout must be more than 0"));
    }
    let operation = timeout.unwrap_or(OPERATION_TIMEOUT).min(OPERATION_TIMEOUT);
    let client = super::connect(settings, operation).await?;
    let consumer = client
        .consumer(&args.topic, &args.subscription)
        .subscription_type(args.subscription_type.into())
        .initial_position(args.from.into())
        .subscribe()
        .await
        .with_context(|| format!("can't consume from topic {:?}", args.topic))?;
    let mut run = Run {
        args,
        settings,
        consumer,
        out: BufWriter::with_capacity(256 * 1024, io::stdout()),
        timeout,
        messages: 0,
        bytes: 0,
        progress: Instant::now(),
    };
    let started = Instant::now();
    let outcome = tokio::select! {
        outcome = run.receive_all() => outcome,
        _ = tokio::signal::ctrl_c() => Err(Failed::interrupted("interrupted")),
    };
    let (messages, bytes) = (run.messages, run.bytes);
    let closed = run.consumer.close().await;
    client.close();
    eprintln!(
        "{} ({}) received and acknowledged in {:.2} s",
        show_messages(messages),
        show_bytes(bytes),
        started.elapsed().as_secs_f64()
    );
    outcome?;
    closed.context("not every acknowledgement is durable; those messages will come again")?;
    Ok(())
}

struct Run<'a> {
    args: &'a ConsumeArgs,
    settings: &'a Settings,
    consumer: Consumer,
    out: BufWriter<io::Stdout>,
    timeout: Option<Duration>,
    messages: u64,
    bytes: u64,
    /// When something last went on: a message, or an acknowledgement of somebody else's.
    progress: Instant,
}

impl Run<'_> {
    async fn receive_all(&mut self) -> Outcome {
        if self.args.until_caught_up {
            return self.catch_up().await;
        }
        let count = self.args.count.unwrap_or(u64::MAX);
        let mut batch = Vec::with_capacity(TOGETHER);
        while self.messages < count {
            let left = usize::try_from(count - self.messages).unwrap_or(usize::MAX);
            let wait = self.timeout.map(|timeout| self.progress + timeout);
            if !self.receive(&mut batch, left.min(TOGETHER), wait).await? {
                return Err(self.no_progress().await);
            }
            self.pass_on(&mut batch).await?;
        }
        Ok(self.consumer.flush_acks().await?)
    }

    /// Until everything that was confirmed at the start is acknowledged, by whomever.
    async fn catch_up(&mut self) -> Outcome {
        // The last entry that counts; later ones may be received too, but aren't waited for.
        let target = self.consumer.last_position().await?;
        let mut batch = Vec::with_capacity(TOGETHER);
        let mut backlog = u64::MAX;
        loop {
            let mut quiet = Some(Instant::now() + QUIET);
            while self.receive(&mut batch, TOGETHER, quiet).await? {
                let past = |message: &ReceivedMessage| Some(message.id.position) >= target;
                let reached = batch.last().is_some_and(past);
                self.pass_on(&mut batch).await?;
                if reached && self.is_caught_up(target, &mut backlog).await? {
                    return Ok(());
                }
                quiet = Some(Instant::now() + QUIET);
            }
            if self.is_caught_up(target, &mut backlog).await? {
                return Ok(());
            }
            if self.timeout.is_some_and(|timeout| self.progress.elapsed() >= timeout) {
                return Err(self.no_progress().await);
            }
            let pause = Some(Instant::now() + ASK_AGAIN);
            if self.receive(&mut batch, TOGETHER, pause).await? {
                self.pass_on(&mut batch).await?;
            }
        }
    }

    async fn is_caught_up(
        &mut self,
        target: Option<Position>,
        backlog: &mut u64,
    ) -> Result<bool, Failed> {
        self.consumer.flush_acks().await?;
        let Some(target) = target else { return Ok(true) };
        let position = self.consumer.position().await?;
        if position.backlog_messages < *backlog {
            *backlog = position.backlog_messages;
            self.progress = Instant::now();
        }
        Ok(position.has_reached(target))
    }

    /// Waits for messages until `deadline`; false if none came.
    async fn receive(
        &mut self,
        batch: &mut Vec<ReceivedMessage>,
        max: usize,
        deadline: Option<Instant>,
    ) -> Result<bool, Failed> {
        let receiving = self.consumer.receive_many(batch, max);
        let received = match deadline {
            None => receiving.await,
            Some(deadline) => match tokio::time::timeout_at(deadline.into(), receiving).await {
                Ok(received) => received,
                Err(_elapsed) => return Ok(false),
            },
        };
        match received {
            Ok(_count) => Ok(true),
            Err(error @ ReceiveError::CorruptEntry { .. }) => Err(Failed::from(
                anyhow::Error::new(error)
                    .context("a stored entry can't be read; it stays unacknowledged"),
            )),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the messages out, and only then acknowledges them.
    async fn pass_on(&mut self, batch: &mut Vec<ReceivedMessage>) -> Outcome {
        for message in batch.iter() {
            write_message(&mut self.out, message, self.args.output, self.args.whole_file)
                .context("can't write to standard output")?;
        }
        self.out.flush().context("can't write to standard output")?;
        for message in batch.drain(..) {
            self.consumer.ack(&message.id).await?;
            self.messages += 1;
            self.bytes += message.payload.len() as u64;
        }
        self.progress = Instant::now();
        Ok(())
    }

    async fn no_progress(&self) -> Failed {
        let timeout = self.timeout.unwrap_or_default();
        let wanted = match self.args.count {
            Some(count) => format!("{} of {} messages", self.messages, count),
            None if self.args.until_caught_up => {
                format!("{} messages, and not all that were stored", self.messages)
            }
            None => format!("{} messages", self.messages),
        };
        let (topic, name) = (&self.args.topic, &self.args.subscription);
        let why = match self.waits_for().await {
            Some(why) => format!("the broker says of subscription {name:?}: {why}"),
            None => format!(
                "`geminga admin topics stats {topic}` shows what the subscription {name:?} waits for"
            ),
        };
        Failed::timeout(format!("no progress for {timeout:?}: received {wanted}. {why}"))
    }

    /// What the next message waits for, if the admin port of the same host soon tells.
    async fn waits_for(&self) -> Option<String> {
        if hosts(&self.settings.admin_url) != hosts(&self.settings.service_url) {
            // Another server may have a topic and a subscription of the same names.
            return None;
        }
        tokio::time::timeout(ASK_LIMIT, self.blocked_on()).await.ok().flatten()
    }

    async fn blocked_on(&self) -> Option<String> {
        let topic: TopicName = self.consumer.topic().parse().ok()?;
        let path = format!("{}/stats", topic_path(&topic));
        let api = AdminApi::new(&self.settings.admin_url).ok()?;
        let mut why = None;
        for _ in 0..ASKED {
            let stats = api.get(&path).await.ok()?;
            let one = &stats["subscriptions"][&self.args.subscription];
            let now = one["geminga"]["blockedOn"].as_str()?.to_owned();
            // A read that failed is tried again at intervals, and this may be the moment.
            let is_reading = now.starts_with("waiting for");
            why = Some(now);
            if !is_reading {
                break;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        why
    }
}

/// The hosts of a list of URLs.
fn hosts(urls: &str) -> BTreeSet<String> {
    let urls = urls::parse_list(urls, &["http"]).unwrap_or_default();
    let parsed = urls.iter().filter_map(|url| url.parse::<hyper::Uri>().ok());
    parsed.filter_map(|url| url.host().map(str::to_owned)).collect()
}
