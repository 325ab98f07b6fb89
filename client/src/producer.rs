//! [`Producer`]: publishes to one topic. This file is the application's side; `producer/shared.rs`
//! gathers, sends and resolves,
//! `producer/endpoint.rs` keeps the session.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::batch::BatchLimits;
use crate::client::Client;
use crate::completion::SendFuture;
use crate::compression::Compression;
use crate::error::{ClientError, SendError};
use crate::message::{Message, SendReceipt};
use crate::session;

mod endpoint;
mod shared;

use shared::{Reply, Shared};

/// A producer's settings.
#[derive(Debug, Clone)]
pub(crate) struct ProducerConfig {
    pub name: String,
    pub properties: Vec<(String, String)>,
    pub batching: bool,
    pub limits: BatchLimits,
    pub max_batch_delay: Option<Duration>,
    pub compression: Compression,
    pub max_in_flight_messages: u32,
    pub max_in_flight_bytes: u32,
    pub send_timeout: Option<Duration>,
}

/// Builds a [`Producer`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ProducerBuilder {
    client: Client,
    topic: String,
    config: ProducerConfig,
}

impl ProducerBuilder {
    pub(crate) fn new(client: Client, topic: &str) -> Self {
        let config = ProducerConfig {
            name: String::new(),
            properties: Vec::new(),
            batching: true,
            limits: BatchLimits { max_messages: 1000, max_bytes: 128 * 1024 },
            max_batch_delay: None,
            compression: Compression::None,
            max_in_flight_messages: 50_000,
            max_in_flight_bytes: 64 * 1024 * 1024,
            send_timeout: Some(Duration::from_secs(30)),
        };
        Self { client, topic: topic.to_owned(), config }
    }

    /// The producer's name, unique on the topic. Default: the broker makes one.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Adds a property that the topic's statistics show.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.properties.push((name.into(), value.into()));
        self
    }

    /// Whether several messages may share an entry. Default: yes.
    pub fn batching(mut self, batching: bool) -> Self {
        self.config.batching = batching;
        self
    }

    /// Most messages in a batch. Default: 1,000.
    pub fn max_batch_messages(mut self, messages: u32) -> Self {
        self.config.limits.max_messages = messages;
        self
    }

    /// Most bytes in a batch, before compression. A larger message goes alone. Default: 128 KiB.
    pub fn max_batch_bytes(mut self, bytes: usize) -> Self {
        self.config.limits.max_bytes = bytes;
        self
    }

    /// How long a message may wait for others. Without it a message is sent at once when nothing
    /// is in flight, and else with what comes until the next receipts: batches form by
    /// themselves under load, and a lone message doesn't wait.
    pub fn max_batch_delay(mut self, delay: Duration) -> Self {
        self.config.max_batch_delay = Some(delay);
        self
    }

    /// How entries are compressed. Default: not at all.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.config.compression = compression;
        self
    }

    /// Messages without a receipt after which sending waits. Default: 50,000.
    pub fn max_in_flight_messages(mut self, messages: u32) -> Self {
        self.config.max_in_flight_messages = messages;
        self
    }

    /// Bytes without a receipt after which sending waits. Default: 64 MiB.
    pub fn max_in_flight_bytes(mut self, bytes: u32) -> Self {
        self.config.max_in_flight_bytes = bytes;
        self
    }

    /// How long a message may be without a receipt, from when it was given. Default: 30 s, which
    /// is longer than any take-over of a topic by another broker. With `None` it is sent again for
    /// as long as it takes: only a full queue, or [`Producer::close`] that doesn't return, then
    /// tell of an outage.
    pub fn send_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.config.send_timeout = timeout;
        self
    }

    /// Opens the producer. What can succeed later is tried again until the client's operation
    /// timeout.
    ///
    /// # Errors
    /// Why it can't be opened.
    pub async fn open(self) -> Result<Producer, ClientError> {
        self.config.validate()?;
        let topic = self.client.topic(&self.topic)?;
        let shared = Shared::new(Arc::clone(&self.client.inner), topic, self.config);
        // From here on a dropped future closes the producer, as a dropped producer does.
        let producer = Producer { handle: Arc::new(Handle { shared: Arc::clone(&shared) }) };
        session::start(shared).await?;
        Ok(producer)
    }
}

impl ProducerConfig {
    fn validate(&self) -> Result<(), ClientError> {
        let refuse = |setting, why: &str| Err(ClientError::Config { setting, why: why.to_owned() });
        if !(1..=100_000).contains(&self.limits.max_messages) {
            return refuse("max_batch_messages", "must be between 1 and 100,000");
        }
        if !(1..=64 << 20).contains(&self.limits.max_bytes) {
            return refuse("max_batch_bytes", "must be between 1 and 64 MiB");
        }
        if self.max_in_flight_messages == 0 || self.max_in_flight_messages > 1 << 28 {
            return refuse("max_in_flight_messages", "must be between 1 and 2^28");
        }
        if self.max_in_flight_bytes == 0 || self.max_in_flight_bytes > 1 << 31 {
            return refuse("max_in_flight_bytes", "must be between 1 and 2 GiB");
        }
        if self.send_timeout.is_some_and(|timeout| timeout.is_zero()) {
            return refuse("send_timeout", "must be more than 0; None waits for ever");
        }
        // The time of a message runs while it is gathered, too.
        if self.max_batch_delay.zip(self.send_timeout).is_some_and(|(delay, limit)| delay >= limit)
        {
            return refuse("max_batch_delay", "must be less than send_timeout");
        }
        if self.name.len() > 512 || self.name.chars().any(char::is_control) {
            return refuse("name", "must have at most 512 bytes and no control characters");
        }
        Ok(())
    }
}

/// Publishes to a topic. Cheap to clone; clones are the same producer, and messages keep the
/// order in which they were given to it. When the last clone is dropped, what was given to it is
/// still sent, in the background; [`Producer::close`] waits for it and says how it went.
///
/// It finds its topic's broker again, whatever becomes of that one, and sends everything without a
/// receipt again, in order: a message whose receipt was lost on the way can be stored twice. An
/// outage shows as latency, and as [`SendError::Timeout`] once a message's own time is over.
#[derive(Debug, Clone)]
pub struct Producer {
    handle: Arc<Handle>,
}

/// Closes the producer when the last clone goes.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.start_close();
    }
}

impl Producer {
    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// The topic's full name.
    #[must_use]
    pub fn topic(&self) -> String {
        self.shared().topic.to_string()
    }

    /// The producer's name, which the broker made if none was given.
    #[must_use]
    pub fn name(&self) -> String {
        self.shared().name().to_string()
    }

    /// Sends a message and waits for its receipt: a quorum has it on disk.
    ///
    /// # Errors
    /// Why there is none, and whether the message may be stored all the same.
    pub async fn send(&self, message: impl Into<Message>) -> Result<SendReceipt, SendError> {
        self.enqueue(message).await?.await
    }

    /// Hands a message over and returns as soon as there is room in flight. The future resolves
    /// with its receipt; dropping it cancels nothing.
    ///
    /// # Errors
    /// The message was not taken.
    pub async fn enqueue(&self, message: impl Into<Message>) -> Result<SendFuture, SendError> {
        let message = message.into();
        let shared = self.shared();
        let cost = shared.room(&message).await?;
        let (completion, at) = shared.add(message, cost, Reply::Future)?;
        Ok(SendFuture::new(completion, at))
    }

    /// Like [`Producer::enqueue`], without waiting.
    ///
    /// # Errors
    /// [`SendError::QueueFull`] if there is no room in flight; others as for `enqueue`.
    pub fn try_enqueue(&self, message: impl Into<Message>) -> Result<SendFuture, SendError> {
        let message = message.into();
        let shared = self.shared();
        let cost = shared.try_room(&message)?;
        let (completion, at) = shared.add(message, cost, Reply::Future)?;
        Ok(SendFuture::new(completion, at))
    }

    /// Hands a message over and calls back with its outcome. The callback runs on the task that
    /// reads the connection: it must be short and not block.
    ///
    /// # Errors
    /// The message was not taken; the callback is not called.
    pub async fn send_with_callback(
        &self,
        message: impl Into<Message>,
        callback: impl FnOnce(Result<SendReceipt, SendError>) + Send + 'static,
    ) -> Result<(), SendError> {
        let message = message.into();
        let shared = self.shared();
        let cost = shared.room(&message).await?;
        shared.add(message, cost, Reply::Callback(Box::new(callback))).map(drop)
    }

    /// Hands a message over whose outcome nobody waits for. A failure is told by the next
    /// [`Producer::flush`] or [`Producer::close`].
    ///
    /// # Errors
    /// The message was not taken.
    pub async fn send_one_way(&self, message: impl Into<Message>) -> Result<(), SendError> {
        let message = message.into();
        let shared = self.shared();
        let cost = shared.room(&message).await?;
        shared.add(message, cost, Reply::None).map(drop)
    }

    /// Sends what is gathered and waits until every message given before has its outcome.
    ///
    /// # Errors
    /// The first failure of a one-way message since the last flush.
    pub async fn flush(&self) -> Result<(), SendError> {
        self.shared().flush().await
    }

    /// Messages that have no outcome yet.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.shared().in_flight_messages()
    }

    /// True while there is a session with a broker.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared().is_connected()
    }

    /// Takes no more messages, waits until those given before have their outcome, and closes the
    /// producer, for all its clones.
    ///
    /// # Errors
    /// The first failure of a one-way message since the last flush, or why the producer failed.
    pub fn close(self) -> impl Future<Output = Result<(), SendError>> + Send {
        let shared = Arc::clone(self.shared());
        shared.start_close();
        async move { shared.closed().await }
    }
}

#[cfg(test)]
mod tests;
