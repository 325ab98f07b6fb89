//! [`Consumer`]: receives and acknowledges messages of one subscription. This file is the
//! application's side; `consumer/shared.rs` holds the queue and the session, `consumer/acks.rs`
//! and `consumer/nacks.rs` decide what is acknowledged and handed back when.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use geminga_proto::id::Position;
use geminga_proto::topic_name::check_subscription;
use geminga_proto::v1;

use crate::client::Client;
use crate::error::{ClientError, ConsumerError, ReceiveError};
use crate::message::{MessageId, ReceivedMessage};
use crate::session;

mod acks;
mod endpoint;
mod nacks;
mod requests;
mod shared;

use shared::Shared;

/// How a subscription hands out messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum SubscriptionType {
    /// One consumer; another is refused.
    #[default]
    Exclusive,
    /// One consumer is active, the others wait to take over.
    Failover,
    /// Messages are dealt out among the consumers.
    Shared,
    /// Like Shared, with one consumer for a key at a time. Brokers of this version answer that it
    /// is not supported.
    KeyShared,
}

impl SubscriptionType {
    fn to_wire(self) -> v1::SubscriptionType {
        match self {
            Self::Exclusive => v1::SubscriptionType::Exclusive,
            Self::Failover => v1::SubscriptionType::Failover,
            Self::Shared => v1::SubscriptionType::Shared,
            Self::KeyShared => v1::SubscriptionType::KeyShared,
        }
    }

    /// True if messages go to one consumer at a time, in the topic's order.
    pub(crate) fn is_ordered(self) -> bool {
        matches!(self, Self::Exclusive | Self::Failover)
    }
}

/// Where a subscription begins that doesn't exist yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum InitialPosition {
    /// After the last message.
    #[default]
    Latest,
    /// At the first message that is kept.
    Earliest,
}

/// A consumer's settings.
#[derive(Debug, Clone)]
pub(crate) struct ConsumerConfig {
    pub subscription: String,
    pub subscription_type: SubscriptionType,
    pub initial_position: InitialPosition,
    pub create: bool,
    pub name: String,
    pub priority: i32,
    pub properties: Vec<(String, String)>,
    pub receiver_queue_messages: u32,
    pub receiver_queue_bytes: u64,
    pub max_entry_bytes: u64,
    pub ack_group_delay: Duration,
    pub nack_redelivery_delay: Duration,
}

/// Builds a [`Consumer`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ConsumerBuilder {
    client: Client,
    topic: String,
    config: ConsumerConfig,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, topic: &str, subscription: &str) -> Self {
        let config = ConsumerConfig {
            subscription: subscription.to_owned(),
            subscription_type: SubscriptionType::default(),
            initial_position: InitialPosition::default(),
            create: true,
            name: String::new(),
            priority: 0,
            properties: Vec::new(),
            receiver_queue_messages: 10_000,
            receiver_queue_bytes: 8 * 1024 * 1024,
            max_entry_bytes: 64 * 1024 * 1024,
            ack_group_delay: Duration::from_millis(50),
            nack_redelivery_delay: Duration::from_secs(60),
        };
        Self { client, topic: topic.to_owned(), config }
    }

    /// How the subscription hands out messages. Default: exclusive.
    pub fn subscription_type(mut self, subscription_type: SubscriptionType) -> Self {
        self.config.subscription_type = subscription_type;
        self
    }

    /// Where the subscription begins if it doesn't exist yet. Default: latest.
    pub fn initial_position(mut self, position: InitialPosition) -> Self {
        self.config.initial_position = position;
        self
    }

    /// Whether a subscription that doesn't exist is created. Default: yes.
    pub fn create(mut self, create: bool) -> Self {
        self.config.create = create;
        self
    }

    /// The consumer's name. Default: the broker makes one.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.config.name = name.into();
        self
    }

    /// Lower is served first. Default: 0.
    pub fn priority(mut self, priority: i32) -> Self {
        self.config.priority = priority;
        self
    }

    /// Adds a property that the topic's statistics show.
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.properties.push((name.into(), value.into()));
        self
    }

    /// Messages that may wait here to be received. Default: 10,000.
    pub fn receiver_queue_messages(mut self, messages: u32) -> Self {
        self.config.receiver_queue_messages = messages;
        self
    }

    /// Bytes that may wait here to be received. Default: 8 MiB.
    pub fn receiver_queue_bytes(mut self, bytes: u64) -> Self {
        self.config.receiver_queue_bytes = bytes;
        self
    }

    /// Largest entry, uncompressed, that is opened. Default: 64 MiB.
    pub fn max_entry_bytes(mut self, bytes: u64) -> Self {
        self.config.max_entry_bytes = bytes;
        self
    }

    /// How long acknowledgements wait to travel together. Default: 50 ms.
    pub fn ack_group_delay(mut self, delay: Duration) -> Self {
        self.config.ack_group_delay = delay;
        self
    }

    /// How long a message that was handed back waits to be delivered again. Default: 60 s.
    pub fn nack_redelivery_delay(mut self, delay: Duration) -> Self {
        self.config.nack_redelivery_delay = delay;
        self
    }

    /// Attaches the consumer. What can succeed later is tried again until the client's operation
    /// timeout.
    ///
    /// # Errors
    /// Why it can't be attached.
    pub async fn subscribe(self) -> Result<Consumer, ClientError> {
        self.config.validate()?;
        let topic = self.client.topic(&self.topic)?;
        let shared = Shared::new(Arc::clone(&self.client.inner), topic, self.config);
        // From here on a dropped future closes the consumer, as a dropped consumer does.
        let consumer = Consumer { handle: Arc::new(Handle { shared: Arc::clone(&shared) }) };
        session::start(shared).await?;
        Ok(consumer)
    }
}

impl ConsumerConfig {
    fn validate(&self) -> Result<(), ClientError> {
        check_subscription(&self.subscription)?;
        let refuse = |setting, why: &str| Err(ClientError::Config { setting, why: why.to_owned() });
        if !(1..=10_000_000).contains(&self.receiver_queue_messages) {
            return refuse("receiver_queue_messages", "must be between 1 and 10,000,000");
        }
        if !(1..=4 << 30).contains(&self.receiver_queue_bytes) {
            return refuse("receiver_queue_bytes", "must be between 1 and 4 GiB");
        }
        if !(1024..=1 << 30).contains(&self.max_entry_bytes) {
            return refuse("max_entry_bytes", "must be between 1 KiB and 1 GiB");
        }
        if self.name.len() > 512 || self.name.chars().any(char::is_control) {
            return refuse("name", "must have at most 512 bytes and no control characters");
        }
        Ok(())
    }
}

/// Where a subscription stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscriptionPosition {
    /// The topic's last confirmed entry; `None` while the topic is empty.
    pub last_confirmed: Option<Position>,
    /// Everything up to here is durably acknowledged; `None`: nothing yet.
    pub mark_delete: Option<Position>,
    /// Messages that are not acknowledged.
    pub backlog_messages: u64,
}

impl SubscriptionPosition {
    /// True if everything up to `target` is durably acknowledged, or nothing is left at all.
    #[must_use]
    pub fn has_reached(&self, target: Position) -> bool {
        self.backlog_messages == 0 || self.mark_delete.is_some_and(|at| at >= target)
    }
}

/// Receives the messages of a subscription. Cheap to clone; clones share one queue.
///
/// It finds its topic's broker again, whatever becomes of that one. What was received before and
/// isn't acknowledged is then delivered again; what was acknowledged isn't, since acknowledgements
/// without the broker's receipt are sent again first.
///
/// ```no_run
/// # async fn example(client: geminga_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use geminga_client::{InitialPosition, SubscriptionType};
///
/// let consumer = client
///     .consumer("orders", "billing")
///     .subscription_type(SubscriptionType::Shared)
///     .initial_position(InitialPosition::Earliest)
///     .subscribe()
///     .await?;
/// loop {
///     let message = consumer.receive().await?;
///     println!("{}: {} bytes", message.id, message.payload.len());
///     consumer.ack(&message.id).await?;
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Consumer {
    handle: Arc<Handle>,
}

/// Closes the consumer when the last clone goes.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.start_close(false);
    }
}

impl Consumer {
    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    /// The topic's full name.
    #[must_use]
    pub fn topic(&self) -> String {
        self.shared().topic.to_string()
    }

    /// The subscription's name.
    #[must_use]
    pub fn subscription(&self) -> &str {
        &self.shared().config.subscription
    }

    /// The consumer's name, which the broker made if none was given.
    #[must_use]
    pub fn name(&self) -> String {
        self.shared().name()
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// [`ReceiveError::CorruptEntry`]: go on receiving. Others: the consumer is over.
    pub async fn receive(&self) -> Result<ReceivedMessage, ReceiveError> {
        self.shared().receive().await
    }

    /// The next message, if one is here.
    ///
    /// # Errors
    /// As for [`Consumer::receive`].
    pub fn try_receive(&self) -> Result<Option<ReceivedMessage>, ReceiveError> {
        self.shared().try_receive()
    }

    /// Waits for at least one message, then appends to `messages` what is here, up to `max` in
    /// all. Answers how many were appended.
    ///
    /// # Errors
    /// As for [`Consumer::receive`]; nothing was appended then.
    pub async fn receive_many(
        &self,
        messages: &mut Vec<ReceivedMessage>,
        max: usize,
    ) -> Result<usize, ReceiveError> {
        self.shared().receive_many(messages, max).await
    }

    /// The messages as a stream. It ends when the consumer is closed, and after an error that
    /// [`ReceiveError::is_retryable`] denies.
    pub fn stream(
        &self,
    ) -> impl Stream<Item = Result<ReceivedMessage, ReceiveError>> + Send + use<> {
        let shared = Arc::clone(self.shared());
        futures_util::stream::unfold(Some(shared), |shared| async move {
            let shared = shared?;
            match shared.receive().await {
                Ok(message) => Some((Ok(message), Some(shared))),
                Err(ReceiveError::Closed) => None,
                Err(error) if error.is_retryable() => Some((Err(error), Some(shared))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    /// Calls `listener` with each message and each error, one after the other, on a task of its
    /// own, until the consumer is closed. The next message waits for the listener's future.
    ///
    /// ```no_run
    /// # fn example(consumer: geminga_client::Consumer) {
    /// let listener = consumer.listen(|consumer, message| async move {
    ///     match message {
    ///         Ok(message) => match consumer.ack(&message.id).await {
    ///             Ok(()) => {}
    ///             Err(error) => eprintln!("not acknowledged: {error}"),
    ///         },
    ///         Err(error) => eprintln!("not received: {error}"),
    ///     }
    /// });
    /// # drop(listener);
    /// # }
    /// ```
    pub fn listen<F, R>(&self, mut listener: F) -> Listener
    where
        F: FnMut(Consumer, Result<ReceivedMessage, ReceiveError>) -> R + Send + 'static,
        R: Future<Output = ()> + Send,
    {
        let consumer = self.clone();
        let task = tokio::spawn(async move {
            loop {
                let result = consumer.receive().await;
                let over = result.as_ref().is_err_and(|error| !error.is_retryable());
                if result != Err(ReceiveError::Closed) {
                    listener(consumer.clone(), result).await;
                }
                if over {
                    break;
                }
            }
        });
        Listener { task }
    }

    /// Acknowledges one message: it will not be delivered to this subscription again. Returns at
    /// once; acknowledgements travel in groups and are sent again if the connection is lost.
    /// Waits only while very many are under way, which includes having no connection.
    ///
    /// # Errors
    /// The consumer is over.
    pub async fn ack(&self, id: &MessageId) -> Result<(), ConsumerError> {
        self.shared().ack(*id, false).await
    }

    /// Acknowledges one message and waits until that is durable: no broker will deliver it again.
    ///
    /// # Errors
    /// It is not, or not certainly, acknowledged.
    pub async fn ack_with_receipt(&self, id: &MessageId) -> Result<(), ConsumerError> {
        self.shared().ack_with_receipt(*id, false).await
    }

    /// Acknowledges everything up to and including a message.
    ///
    /// # Errors
    /// [`ConsumerError::CumulativeOnShared`], or the consumer is over.
    pub async fn ack_cumulative(&self, id: &MessageId) -> Result<(), ConsumerError> {
        self.shared().ack(*id, true).await
    }

    /// Acknowledges everything up to and including a message and waits until that is durable.
    ///
    /// # Errors
    /// It is not, or not certainly, acknowledged.
    pub async fn ack_cumulative_with_receipt(&self, id: &MessageId) -> Result<(), ConsumerError> {
        self.shared().ack_with_receipt(*id, true).await
    }

    /// Sends the acknowledgements that were given before, and waits until they are durable.
    ///
    /// # Errors
    /// One of them failed, now or since the last flush.
    pub async fn flush_acks(&self) -> Result<(), ConsumerError> {
        self.shared().flush_acks().await
    }

    /// Hands a message back: its entry is delivered again after the nack delay, except for what
    /// of it is acknowledged by then.
    pub fn nack(&self, id: &MessageId) {
        self.shared().nack(id.position);
    }

    /// Asks for everything that was delivered to this consumer and isn't acknowledged to be
    /// delivered again, and drops what waits here. On an exclusive or failover subscription the
    /// consumer subscribes again for it. A failover consumer may find another one active then; an
    /// exclusive one may find that another has taken the subscription, and if that keeps it for the
    /// operation timeout, this one is over with `ConsumerBusy`.
    ///
    /// # Errors
    /// The consumer is over.
    pub fn redeliver_unacknowledged(&self) -> Result<(), ConsumerError> {
        self.shared().redeliver_all()
    }

    /// Where the subscription stands.
    ///
    /// # Errors
    /// Why the broker doesn't say.
    pub async fn position(&self) -> Result<SubscriptionPosition, ConsumerError> {
        self.shared().position().await
    }

    /// The topic's last confirmed entry; `None` while the topic is empty.
    ///
    /// # Errors
    /// Why the broker doesn't say.
    pub async fn last_position(&self) -> Result<Option<Position>, ConsumerError> {
        Ok(self.position().await?.last_confirmed)
    }

    /// Whether this consumer is the one that a failover subscription serves. Always true for
    /// other types.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.shared().is_active()
    }

    /// True while there is a session with a broker.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.shared().is_connected()
    }

    /// Which session with a broker there is: another one after each time that it was lost, or asked
    /// for anew. What is received now was delivered in it.
    #[must_use]
    pub fn session_id(&self) -> Option<u64> {
        self.shared().session_id()
    }

    /// What waits here to be received: entries that are not opened yet, and their bytes.
    #[must_use]
    pub fn queued(&self) -> Queued {
        self.shared().queued()
    }

    /// Deletes the subscription and closes the consumer, for all its clones.
    ///
    /// # Errors
    /// The subscription was not deleted; the consumer is closed all the same.
    pub fn unsubscribe(self) -> impl Future<Output = Result<(), ConsumerError>> + Send {
        let shared = Arc::clone(self.shared());
        shared.start_close(true);
        async move { shared.closed().await }
    }

    /// Closes the consumer, for all its clones, after its acknowledgements are durable. What was
    /// received and isn't acknowledged goes to the subscription's next consumer.
    ///
    /// # Errors
    /// Acknowledgements failed since the last flush, or why the consumer failed.
    pub fn close(self) -> impl Future<Output = Result<(), ConsumerError>> + Send {
        let shared = Arc::clone(self.shared());
        shared.start_close(false);
        async move { shared.closed().await }
    }
}

/// What waits in a consumer's receiver queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queued {
    /// Messages.
    pub messages: u32,
    /// Bytes.
    pub bytes: u64,
}

/// A running listener. Dropping it leaves the listener running.
#[derive(Debug)]
pub struct Listener {
    task: tokio::task::JoinHandle<()>,
}

impl Listener {
    /// Stops calling; a call that is under way is cut off at its next await. The consumer stays.
    pub fn stop(self) {
        self.task.abort();
    }

    /// Waits until the consumer is closed and the last call has returned.
    pub async fn wait(self) {
        // An aborted or panicked listener has nothing more to say.
        let _ = self.task.await;
    }
}
