//! A broker's host: the real core over the simulated network, and the [`Counter`] at which clients
//! are served as a front-end would.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use geminga_broker::core::broker::{Broker, Consumer, Producer};
use geminga_broker::core::config::BrokerConfig;
use geminga_broker::core::defect::Defect;
use geminga_broker::core::dispatch::DispatchLimits;
use geminga_broker::core::state_log::StateLogConfig;
use geminga_broker::core::stats::SubscriptionStats;
use geminga_ledger::placement::{WatchedPlacement, WatchedPlacementConfig};
use geminga_ledger::store::{LedgerStore, LedgerStoreConfig};
use geminga_meta::store::MetadataStore;
use geminga_proto::id::{BrokerId, ConsumerId, ProducerId};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use crate::clock::HostClock;
use crate::mutant::Mutant;
use crate::network::{HostId, LineId, Place};
use crate::shared::Shared;
use crate::transport::SimTransport;
use crate::wire::{Event, Frame, Outbound};

/// Requests of one line that wait.
const MAX_WAITING: usize = 10_000;
/// Before a start is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// The counters of the brokers that are up.
#[derive(Debug, Default)]
pub(crate) struct Counters(Mutex<BTreeMap<HostId, Arc<Counter>>>);

impl Counters {
    pub fn of(&self, host: HostId) -> Option<Arc<Counter>> {
        self.0.lock().get(&host).cloned()
    }

    pub fn remove(&self, host: HostId) -> Option<Arc<Counter>> {
        self.0.lock().remove(&host)
    }
}

/// Where a broker serves clients.
#[derive(Debug)]
pub(crate) struct Counter {
    shared: Arc<Shared>,
    broker: Broker,
    /// Each with the task that serves it.
    lines: Mutex<BTreeMap<LineId, (mpsc::Sender<Frame>, AbortHandle)>>,
}

impl Counter {
    /// A client's line is there. Called inside the broker's runtime.
    pub fn accept(self: &Arc<Self>, line: LineId, client: mpsc::Sender<Event>) {
        let (sender, frames) = mpsc::channel(MAX_WAITING);
        let out = Arc::new(Outbound { shared: Arc::clone(&self.shared), line, client });
        let served = tokio::spawn(serve(self.broker.clone(), out, frames)).abort_handle();
        self.lines.lock().insert(line, (sender, served));
        let this = Arc::clone(self);
        let gone = move || {
            let known = this.lines.lock().remove(&line);
            if let Some((_, served)) = known {
                served.abort();
            }
        };
        self.shared.network.on_break(line, Box::new(gone));
    }

    /// A request has come.
    pub fn take(&self, line: LineId, frame: Frame) {
        let lines = self.lines.lock();
        if let Some((known, _)) = lines.get(&line) {
            // Clients ask for less than there is room.
            drop(known.try_send(frame));
        }
    }
}

/// Serves one line until it is gone.
async fn serve(broker: Broker, out: Arc<Outbound>, mut frames: mpsc::Receiver<Frame>) {
    let mut producer: Option<Producer> = None;
    let mut consumer: Option<Consumer> = None;
    while let Some(frame) = frames.recv().await {
        match frame {
            Frame::Lookup(topic) => out.push(Event::Looked(broker.lookup(&topic).await)),
            Frame::OpenProducer(open) => {
                let opened = match broker.open_producer(open, Arc::clone(&out) as _).await {
                    Ok((handle, opened)) => {
                        producer = Some(handle);
                        Ok(opened)
                    }
                    Err(error) => Err(error),
                };
                out.push(Event::ProducerOpened(opened));
            }
            Frame::Publish { sequence_id, entry } => {
                let permit = broker.budget().acquire(entry.len() as u64).await;
                if let Some(producer) = &producer {
                    producer.publish(sequence_id, entry, permit);
                }
            }
            Frame::Subscribe(subscribe) => {
                let subscribed = match broker.subscribe(subscribe, Arc::clone(&out) as _).await {
                    Ok(handle) => {
                        consumer = Some(handle);
                        Ok(())
                    }
                    Err(error) => Err(error),
                };
                out.push(Event::Subscribed(subscribed));
            }
            Frame::Flow { messages, bytes } => {
                if let Some(consumer) = &consumer {
                    consumer.flow(messages, bytes);
                }
            }
            Frame::Ack(ack) => {
                if let Some(consumer) = &consumer {
                    consumer.ack(ack).await;
                }
            }
            Frame::Backlog(topic) => {
                let left = |(name, stats): (String, SubscriptionStats)| (name, stats.msg_backlog);
                let stats = broker.topic_stats(&topic).await.ok();
                let backlog =
                    stats.map(|stats| stats.subscriptions.into_iter().map(left).collect());
                out.push(Event::Backlog(backlog));
            }
            Frame::Close => {
                if let Some(producer) = producer.take() {
                    producer.close().await;
                }
                if let Some(consumer) = consumer.take() {
                    consumer.close().await;
                }
                out.push(Event::Closed);
            }
        }
    }
}

/// The producer's and the consumer's number in a line.
pub(crate) const PRODUCER: ProducerId = ProducerId(1);
/// See [`PRODUCER`].
pub(crate) const CONSUMER: ConsumerId = ConsumerId(1);

/// The name of a broker.
pub(crate) fn name(host: HostId) -> String {
    format!("broker-{}", host.0)
}

/// Settings with which everything that happens rarely happens often.
fn config(host: HostId, planted: Option<Defect>) -> BrokerConfig {
    let id = BrokerId::new(&name(host)).expect("a valid name");
    BrokerConfig {
        service_url: format!("sim://{}", host.0),
        admin_url: format!("sim://{}/admin", host.0),
        place: format!("place-{}", host.0),
        max_message_bytes: 8 << 10,
        producer_credit_bytes: 256 << 10,
        memory_budget_bytes: 8 << 20,
        tail_cache_bytes: 64 << 10,
        bundles_per_namespace: 1,
        ledger_max_bytes: 12 << 10,
        ledger_max_age: Duration::from_secs(4),
        ledger_idle_close: Duration::from_secs(2),
        topic_idle_unload: Duration::from_secs(2),
        housekeeping_interval: Duration::from_millis(250),
        retention_sweep_interval: Duration::from_secs(5),
        lease_ttl: Duration::from_secs(2),
        read_ahead_bytes: 16 << 10,
        ledgers_per_chunk: 4,
        dispatch: DispatchLimits {
            max_unacked_per_consumer: 100,
            max_unacked_per_subscription: 5_000,
            max_read_entries: 20,
            max_read_bytes: 16 << 10,
        },
        state_log: StateLogConfig {
            max_entry_bytes: 2 << 10,
            ledger_max_bytes: 8 << 10,
            snapshot_after_bytes: 16 << 10,
            planted,
            ..StateLogConfig::default()
        },
        planted,
        ..BrokerConfig::new(id)
    }
}

/// How ledgers are kept, by brokers and by those who repair.
pub(crate) fn ledger_config() -> LedgerStoreConfig {
    LedgerStoreConfig {
        write_quorum: 3,
        ack_quorum: 2,
        append_timeout_ms: 1_000,
        request_timeout_ms: 800,
        retry_interval_ms: 100,
        read_hedge_ms: 50,
        id_block: 10,
        ..LedgerStoreConfig::default()
    }
}

/// Runs a broker until it is told to leave. `ended` hears when it has left.
pub(crate) async fn run(
    shared: Arc<Shared>,
    place: Place,
    clock: Arc<HostClock>,
    leave: Arc<Notify>,
    ended: Arc<Notify>,
) {
    let planted = shared.mutant.and_then(Mutant::of_broker);
    let env = shared.env(place, &clock);
    let meta: Arc<dyn MetadataStore> = shared.access(place);
    let view = WatchedPlacementConfig {
        quarantine: Duration::from_millis(500),
        ..WatchedPlacementConfig::default()
    };
    let placement = loop {
        match WatchedPlacement::start(Arc::clone(&meta), env.clone(), view).await {
            Ok(placement) => break Arc::new(placement),
            Err(_) => tokio::time::sleep(AGAIN).await,
        }
    };
    let (directory, doors) = (Arc::clone(&shared.directory), Arc::clone(&shared.doors));
    let transport = SimTransport::new(Arc::clone(&shared.network), place, directory, doors);
    let ledgers =
        LedgerStore::new(ledger_config(), env.clone(), Arc::clone(&meta), transport, placement);
    let ledgers = ledgers.expect("valid settings, inside a runtime");
    let broker = loop {
        let (env, meta) = (env.clone(), Arc::clone(&meta));
        match Broker::start(config(place.host, planted), env, meta, ledgers.clone()).await {
            Ok(broker) => break broker,
            Err(error) if error.store_error().is_some() => tokio::time::sleep(AGAIN).await,
            Err(error) => {
                shared.trace.note(format_args!("{place} can't start: {error}"));
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    shared.trace.note(format_args!("{place} serves"));
    let counter =
        Counter { shared: Arc::clone(&shared), broker: broker.clone(), lines: Mutex::default() };
    shared.counters.0.lock().insert(place.host, Arc::new(counter));
    leave.notified().await;
    broker.shutdown().await;
    shared.trace.note(format_args!("{place} has left"));
    ended.notify_one();
}
