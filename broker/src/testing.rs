//! A small cluster in memory for the broker's tests: metadata store, model bookies, brokers, and
//! clients that remember what they heard.

mod door;
mod placement;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_ledger::harness::bookie::Fullness;
use geminga_ledger::harness::transport::ModelTransport;
use geminga_ledger::store::{LedgerStore, LedgerStoreConfig};
use geminga_meta::keys;
use geminga_meta::read::read;
use geminga_meta::record::BrokerRecord;
use geminga_meta::store::MetadataStore;
use geminga_meta::store::memory::MemoryStore;
use geminga_proto::entry::{encode_entry, split_stored};
use geminga_proto::env::{Clock, Env, ManualClock, SeededRandom};
use geminga_proto::id::{BookieId, BrokerId, ConsumerId, Position, ProducerId};
use geminga_proto::pulsar::proto::MessageMetadata;
use geminga_proto::topic_name::TopicName;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::core::api::{
    Ack, AckError, AckPosition, ConsumerSink, Delivery, InitialPosition, OpenProducer,
    ProducerSink, PublishError, Receipt, Subscribe, SubscriptionType, TopicError,
};
use crate::core::broker::{Broker, Consumer, Producer};
use crate::core::config::BrokerConfig;

pub use door::Door;
pub use placement::Registered;

/// How long a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Metadata, bookies and a clock; brokers come and go.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Moves only when told.
    pub clock: Arc<ManualClock>,
    /// The metadata.
    pub meta: Arc<MemoryStore>,
    /// The bookies.
    pub bookies: ModelTransport,
    names: Vec<BookieId>,
    registered: Registered,
    env: Env,
    quorum: (u32, u32),
}

impl Cluster {
    /// One bookie, as standalone has it.
    pub fn new() -> Self {
        Self::with_bookies(1, 1, 1)
    }

    /// Several bookies.
    pub fn with_bookies(count: usize, write_quorum: u32, ack_quorum: u32) -> Self {
        let clock = Arc::new(ManualClock::default());
        clock.set_wall_ms(1_700_000_000_000);
        let random = Arc::new(SeededRandom::new(7));
        let env = Env { clock: Arc::clone(&clock) as _, random };
        let name = |index| BookieId::new(&format!("bookie-{index}")).expect("valid");
        let names: Vec<BookieId> = (0..count).map(name).collect();
        Self {
            meta: Arc::new(MemoryStore::new(Arc::clone(&clock) as _)),
            bookies: ModelTransport::new(&names),
            registered: Registered::new(&names),
            clock,
            names,
            env,
            quorum: (write_quorum, ack_quorum),
        }
    }

    /// Settings for tests: nothing happens by age unless the clock is moved, and the lease outlasts
    /// such moves.
    pub fn config() -> BrokerConfig {
        BrokerConfig {
            housekeeping_interval: Duration::from_millis(5),
            lease_ttl: Duration::from_secs(30 * 24 * 3_600),
            alone: true,
            ..BrokerConfig::new(BrokerId::new("broker").expect("valid"))
        }
    }

    /// The ledgers, as one broker sees them.
    pub fn ledgers(&self) -> LedgerStore {
        self.ledgers_with(Arc::clone(&self.meta) as _)
    }

    fn ledgers_with(&self, meta: Arc<dyn MetadataStore>) -> LedgerStore {
        let (write_quorum, ack_quorum) = self.quorum;
        let config = LedgerStoreConfig {
            write_quorum,
            ack_quorum,
            append_timeout_ms: 400,
            request_timeout_ms: 400,
            retry_interval_ms: 10,
            ..LedgerStoreConfig::default()
        };
        let placement = Arc::new(self.registered.clone());
        let transport = Arc::new(self.bookies.clone());
        LedgerStore::new(config, self.env.clone(), meta, transport, placement).expect("valid")
    }

    /// Starts a broker.
    pub async fn broker(&self, config: BrokerConfig) -> Broker {
        self.broker_with_clock(config, Arc::clone(&self.clock) as _).await
    }

    /// Starts a broker with a clock of its own.
    pub async fn broker_with_clock(&self, config: BrokerConfig, clock: Arc<dyn Clock>) -> Broker {
        let meta: Arc<dyn MetadataStore> = Arc::clone(&self.meta) as _;
        let env = Env { clock, ..self.env.clone() };
        Broker::start(config, env, meta, self.ledgers()).await.expect("starts")
    }

    /// Settings of one of several brokers, with a lease of a second.
    pub fn config_of(name: &str) -> BrokerConfig {
        BrokerConfig {
            broker_id: BrokerId::new(name).expect("valid"),
            service_url: format!("http://{name}:6660"),
            admin_url: format!("http://{name}:8080"),
            lease_ttl: Duration::from_secs(1),
            ..Self::config()
        }
    }

    /// Starts a broker whose way to the metadata can be shut.
    pub async fn broker_behind_door(&self, config: BrokerConfig) -> (Broker, Arc<Door>) {
        let door = Door::to(&self.meta);
        let meta = Arc::clone(&door) as Arc<dyn MetadataStore>;
        let ledgers = self.ledgers_with(Arc::clone(&meta));
        let started = Broker::start(config, self.env.clone(), meta, ledgers).await;
        (started.expect("starts"), door)
    }

    /// Time and randomness.
    pub fn env(&self) -> Env {
        self.env.clone()
    }

    /// Lets only the first so many bookies be registered: new ledgers go to those.
    pub fn set_registered(&self, count: usize) {
        self.registered.set(&self.names[..count]);
    }

    /// Ends a broker's session, as if its lease had ended.
    pub async fn end_session(&self, broker: &str) {
        let key = keys::broker(&BrokerId::new(broker).expect("valid"));
        let record = read::<BrokerRecord>(&*self.meta, &key).await.expect("readable");
        let lease = record.expect("it is up").record.lease;
        self.meta.revoke_lease(lease).await.expect("alive");
    }

    /// Fills or empties all disks.
    pub fn set_full(&self, full: Fullness) {
        self.names.iter().for_each(|name| self.bookies.with_disk(name, |disk| disk.full = full));
    }

    /// Damages an entry on all bookies, or mends it.
    pub fn damage(&self, position: Position, damaged: bool) {
        let place = (position.ledger, position.entry);
        for name in &self.names {
            self.bookies.with_disk(name, |disk| {
                if damaged { disk.damaged.insert(place) } else { disk.damaged.remove(&place) }
            });
        }
    }

    /// Lets all bookies answer nothing, or answer again.
    pub fn set_hung(&self, hung: bool) {
        self.names.iter().for_each(|name| self.bookies.set_hung(name, hung));
    }

    /// How often bookies were asked whether a state log is fenced.
    pub fn probes(&self) -> usize {
        self.names.iter().map(|name| self.bookies.probes(name)).sum()
    }

    /// Starts or stops a bookie.
    pub fn set_up(&self, index: usize, up: bool) {
        self.bookies.set_up(&self.names[index], up);
    }
}

/// A topic in `public/default`.
pub fn topic(name: &str) -> TopicName {
    name.parse().expect("valid")
}

/// An entry of one message.
pub fn entry(payload: &str) -> Bytes {
    batch(payload, 1)
}

/// An entry that says it holds so many messages; a message takes at least a byte.
pub fn batch(payload: &str, messages: i32) -> Bytes {
    let metadata = MessageMetadata {
        producer_name: "test".to_owned(),
        num_messages_in_batch: (messages != 1).then_some(messages),
        ..MessageMetadata::default()
    };
    encode_entry(&metadata, payload.as_bytes())
}

/// What a client has heard.
#[derive(Debug, Default)]
pub struct Heard {
    /// In the order of their coming.
    pub receipts: Vec<Receipt>,
    /// Entries refused, with their sequence ids.
    pub refused: Vec<(u64, PublishError)>,
    /// What entries had to wait for.
    pub delayed: Vec<TopicError>,
    /// Why the producer or consumer was closed.
    pub closed: Vec<TopicError>,
    /// In the order of their coming.
    pub deliveries: Vec<Delivery>,
    /// Ack receipts.
    pub acked: Vec<(u64, Result<(), AckError>)>,
    /// Whether it is active, as last told.
    pub active: Option<bool>,
}

/// A client.
#[derive(Debug, Default)]
pub struct Ear {
    heard: Mutex<Heard>,
    changed: Notify,
}

impl Ear {
    /// Looks at what was heard.
    pub fn look<T>(&self, look: impl FnOnce(&mut Heard) -> T) -> T {
        look(&mut self.heard.lock())
    }

    fn hear(&self, hear: impl FnOnce(&mut Heard)) {
        hear(&mut self.heard.lock());
        self.changed.notify_waiters();
    }

    /// Waits until what was heard is as it must become.
    pub async fn until(&self, what: &str, is: impl Fn(&Heard) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if is(&self.heard.lock()) {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("never came: {what}; heard {:#?}", self.heard.lock());
        }
    }

    /// The payloads delivered so far.
    pub fn payloads(&self) -> Vec<String> {
        self.look(|heard| heard.deliveries.iter().map(payload).collect())
    }
}

/// The text in a delivery.
pub fn payload(delivery: &Delivery) -> String {
    let (_, entry) = split_stored(&delivery.payload.clone().into_bytes()).expect("stored");
    let entry = geminga_proto::entry::decode_entry(&entry).expect("valid");
    String::from_utf8(entry.payload.to_vec()).expect("text")
}

impl ProducerSink for Ear {
    fn receipts(&self, _: ProducerId, receipts: &[Receipt]) {
        self.hear(|heard| heard.receipts.extend(receipts));
    }
    fn refused(&self, _: ProducerId, sequence_id: u64, error: &PublishError) {
        self.hear(|heard| heard.refused.push((sequence_id, error.clone())));
    }
    fn delayed(&self, _: ProducerId, why: &TopicError) {
        self.hear(|heard| heard.delayed.push(why.clone()));
    }
    fn closed(&self, _: ProducerId, error: &TopicError) {
        self.hear(|heard| heard.closed.push(error.clone()));
    }
}

impl ConsumerSink for Ear {
    fn deliver(&self, _: ConsumerId, deliveries: Vec<Delivery>) {
        self.hear(|heard| heard.deliveries.extend(deliveries));
    }
    fn ack_receipt(&self, _: ConsumerId, request_id: u64, result: Result<(), AckError>) {
        self.hear(|heard| heard.acked.push((request_id, result)));
    }
    fn active_changed(&self, _: ConsumerId, active: bool) {
        self.hear(|heard| heard.active = Some(active));
    }
    fn closed(&self, _: ConsumerId, error: &TopicError) {
        self.hear(|heard| heard.closed.push(error.clone()));
    }
}

/// Opens a producer.
pub fn open(name: &str) -> OpenProducer {
    OpenProducer {
        producer_id: ProducerId(1),
        topic: topic(name),
        name: String::new(),
        properties: Vec::new(),
    }
}

/// A connected producer, and what it heard.
pub async fn producer(broker: &Broker, name: &str) -> (Producer, Arc<Ear>) {
    let ear = Arc::new(Ear::default());
    let (producer, _) =
        broker.open_producer(open(name), Arc::clone(&ear) as _).await.expect("opens");
    (producer, ear)
}

/// Publishes texts, one message each, with rising sequence ids from `first` on.
pub async fn publish(broker: &Broker, producer: &Producer, first: u64, texts: &[String]) {
    for (sequence_id, text) in (first..).zip(texts) {
        let entry = entry(text);
        let permit = broker.budget().acquire(entry.len() as u64).await;
        producer.publish(sequence_id, entry, permit);
    }
}

/// `prefix-0`, `prefix-1`…
pub fn texts(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// A subscription, shared, from the earliest message on.
pub fn shared(name: &str, subscription: &str) -> Subscribe {
    Subscribe {
        consumer_id: ConsumerId(1),
        topic: topic(name),
        subscription: subscription.to_owned(),
        subscription_type: SubscriptionType::Shared,
        consumer_name: String::new(),
        priority: 0,
        initial_position: InitialPosition::Earliest,
        create: true,
        properties: Vec::new(),
    }
}

/// An attached consumer without credit, and what it heard.
pub async fn consumer(broker: &Broker, name: &str, subscription: &str) -> (Consumer, Arc<Ear>) {
    let ear = Arc::new(Ear::default());
    let subscribe = shared(name, subscription);
    let consumer = broker.subscribe(subscribe, Arc::clone(&ear) as _).await.expect("attaches");
    (consumer, ear)
}

/// Acknowledges whole entries.
pub async fn ack(consumer: &Consumer, request_id: u64, positions: &[Position]) {
    let whole =
        |position: &Position| AckPosition { position: *position, acked_indexes: Bytes::new() };
    let positions = positions.iter().map(whole).collect();
    consumer.ack(Ack { request_id, cumulative: false, positions }).await;
}

/// Waits until `done` says so.
pub async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..2_000 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never came: {what}");
}
