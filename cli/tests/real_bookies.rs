//! Ledgers on real bookies over real connections, which are killed, frozen and started again.
//!
//! A bookie's process is a thread with a runtime of its own: killing it drops the runtime with all
//! connections, and what its disk had not synced; freezing it blocks the one thread.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use geminga_bookie::bookie::Bookie;
use geminga_bookie::config::BookieConfig;
use geminga_bookie::cookie;
use geminga_bookie::device::memory::{MemoryDevice, Tear};
use geminga_bookie::registration::{Registration, RegistrationConfig};
use geminga_bookie::service::{ServiceConfig, serve};
use geminga_ledger::config::LedgerStoreConfig;
use geminga_ledger::error::CreateError;
use geminga_ledger::observer::{LedgerObserver, StallReason, WriterFailure};
use geminga_ledger::placement::{WatchedPlacement, WatchedPlacementConfig};
use geminga_ledger::store::LedgerStore;
use geminga_ledger::transport::BookieTransport;
use geminga_ledger::transport::grpc::{BookieDirectory, GrpcTransport, GrpcTransportConfig};
use geminga_ledger::writer::LedgerWriter;
use geminga_meta::cluster;
use geminga_meta::record::LedgerOwner;
use geminga_meta::store::{MemoryStore, Txn};
use geminga_proto::env::{Env, SystemClock};
use geminga_proto::id::{
    BookieId, ClusterId, EntryId, Lac, LedgerId, LedgerToken, ManagedLedgerId,
};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{BookieError, FenceRequest};
use parking_lot::Mutex;

const OWNER: LedgerOwner = LedgerOwner::ManagedLedger(ManagedLedgerId(1));
const LEASE: Duration = Duration::from_millis(500);

/// What a bookie's thread is told.
#[derive(Debug)]
enum Order {
    Kill,
    Stop,
    /// Until the sender is dropped.
    Freeze(mpsc::Receiver<()>),
}

struct Process {
    orders: tokio::sync::mpsc::Sender<Order>,
    thread: std::thread::JoinHandle<()>,
}

struct Node {
    name: BookieId,
    zone: &'static str,
    address: SocketAddr,
    device: MemoryDevice,
    meta: Arc<MemoryStore>,
    cluster: ClusterId,
    process: Option<Process>,
}

impl Node {
    /// Starts it, again at its old address and with its old disk.
    fn start(&mut self) {
        let (orders, receiver) = tokio::sync::mpsc::channel(4);
        let (ready, started) = mpsc::sync_channel(1);
        let (name, zone, address) = (self.name.clone(), self.zone, self.address);
        let (device, meta, cluster) =
            (self.device.clone(), Arc::clone(&self.meta), self.cluster.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            let run = run(name, zone, address, device, meta, cluster, ready, receiver);
            runtime.block_on(run);
            runtime.shutdown_background();
        });
        self.address = started.recv().expect("it starts");
        self.process = Some(Process { orders, thread });
    }

    fn end(&mut self, order: Order) {
        if let Some(process) = self.process.take() {
            drop(process.orders.try_send(order));
            process.thread.join().expect("it ends");
        }
    }

    /// What wasn't synced is lost.
    fn kill(&mut self) {
        self.end(Order::Kill);
        self.device = self.device.crash(Tear::Lost);
    }

    /// It goes on when the answer is dropped.
    fn freeze(&self) -> mpsc::SyncSender<()> {
        let (thaw, frozen) = mpsc::sync_channel(1);
        let process = self.process.as_ref().expect("it runs");
        process.orders.try_send(Order::Freeze(frozen)).expect("it runs");
        thaw
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end(Order::Kill);
    }
}

#[allow(clippy::too_many_arguments, reason = "all of it is moved to another thread")]
async fn run(
    name: BookieId,
    zone: &'static str,
    address: SocketAddr,
    device: MemoryDevice,
    meta: Arc<MemoryStore>,
    cluster: ClusterId,
    ready: mpsc::SyncSender<SocketAddr>,
    mut orders: tokio::sync::mpsc::Receiver<Order>,
) {
    let env = Env::system();
    let listener = tokio::net::TcpListener::bind(address).await.expect("the address is free");
    let address = listener.local_addr().expect("bound");
    let identity = cookie::claim(meta.as_ref(), &device, &cluster, &name, &env).await;
    let config = BookieConfig {
        segment_bytes: Some(4 << 20),
        first_segment_bytes: 1 << 20,
        max_entry_bytes: 256 * 1024,
        ..BookieConfig::default()
    };
    let opened = Bookie::open(config, identity.expect("it is ours"), Arc::new(device), env.clone());
    let (bookie, _) = opened.expect("opens");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let served = serve(listener, bookie.clone(), ServiceConfig::default(), async {
        drop(stopped.await);
    });
    let served = tokio::spawn(served);
    let config = RegistrationConfig {
        address: address.to_string(),
        zone: zone.to_owned(),
        lease_ttl: LEASE,
        release: "test".to_owned(),
    };
    let registration = Registration::start(config, bookie.clone(), meta, env).await;
    let registration = registration.expect("registered");
    ready.send(address).expect("somebody waits");
    loop {
        match orders.recv().await {
            Some(Order::Freeze(thawed)) => drop(thawed.recv()),
            Some(Order::Stop) => {
                registration.close().await;
                stop.send(()).expect("it serves");
                served.await.expect("no panic").expect("no error");
                bookie.close().await.expect("closed");
                return;
            }
            Some(Order::Kill) | None => return,
        }
    }
}

#[derive(Debug, Default)]
struct Ears {
    /// When something was last confirmed, and the longest time between two times.
    gaps: Mutex<Option<(Instant, Duration)>>,
    failed: Mutex<Option<WriterFailure>>,
}

impl LedgerObserver for Ears {
    fn confirmed(&self, _: EntryId) {
        let now = Instant::now();
        let mut gaps = self.gaps.lock();
        let longest = gaps.map_or(Duration::ZERO, |(last, longest)| longest.max(now - last));
        *gaps = Some((now, longest));
    }
    fn failed(&self, failure: WriterFailure) {
        *self.failed.lock() = Some(failure);
    }
    fn stalled(&self, _: StallReason) {}
    fn resumed(&self) {}
}

struct World {
    nodes: Vec<Node>,
    placement: Arc<WatchedPlacement>,
    store: LedgerStore,
    /// For how long this process stood still in all, in milliseconds.
    stood_still: Arc<AtomicU64>,
}

/// Adds up the time for which this process isn't run: bookies and broker are in it, so none of them
/// can help what passes meanwhile.
fn watch_standstills() -> Arc<AtomicU64> {
    const TICK: Duration = Duration::from_millis(5);
    let total = Arc::<AtomicU64>::default();
    let added = Arc::downgrade(&total);
    // A thread of its own: a runtime that something blocks is no excuse.
    std::thread::spawn(move || {
        while let Some(added) = added.upgrade() {
            let begun = Instant::now();
            std::thread::sleep(TICK);
            let late = begun.elapsed().saturating_sub(TICK * 2).as_millis();
            added.fetch_add(u64::try_from(late).expect("short"), Ordering::Relaxed);
        }
    });
    total
}

async fn world(zones: &[&'static str]) -> World {
    let env = Env::system();
    let meta = Arc::new(MemoryStore::new(Arc::new(SystemClock::default())));
    let cluster = cluster::open(meta.as_ref(), &env).await.expect("made").cluster_id;
    let mut nodes = Vec::new();
    for (index, zone) in zones.iter().enumerate() {
        let mut node = Node {
            name: BookieId::new(&format!("b{index}")).expect("valid"),
            zone,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            device: MemoryDevice::new(256 << 20),
            meta: Arc::clone(&meta),
            cluster: cluster.clone(),
            process: None,
        };
        node = tokio::task::spawn_blocking(move || {
            node.start();
            node
        })
        .await
        .expect("started");
        nodes.push(node);
    }
    let watched =
        WatchedPlacement::start(meta.clone(), env.clone(), WatchedPlacementConfig::default());
    let placement = Arc::new(watched.await.expect("read"));
    let config = GrpcTransportConfig {
        connect_timeout_ms: 1_000,
        ..GrpcTransportConfig::new(cluster, "broker-1".to_owned())
    };
    let runtime = tokio::runtime::Handle::current();
    let transport = GrpcTransport::new(config, placement.clone(), runtime);
    let config = LedgerStoreConfig { retry_interval_ms: 100, ..LedgerStoreConfig::default() };
    let store = LedgerStore::new(config, env, meta, Arc::new(transport), placement.clone());
    let stood_still = watch_standstills();
    World { nodes, placement, store: store.expect("valid"), stood_still }
}

fn body(number: u64) -> Payload {
    Payload::new(Bytes::from(number.to_le_bytes().to_vec()), Bytes::from(vec![3; 1_000]))
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..4_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

impl World {
    /// `limit`, and what this process has stood still so far.
    fn at_most(&self, limit: Duration) -> Duration {
        limit + Duration::from_millis(self.stood_still.load(Ordering::Relaxed))
    }

    /// Publishing went on nearly without a pause.
    fn assert_no_gap(&self, ears: &Ears) {
        let gap = ears.gaps.lock().expect("some were confirmed").1;
        assert!(gap < self.at_most(Duration::from_millis(500)), "{gap:?}");
    }

    async fn create(&self) -> (LedgerWriter, Arc<Ears>) {
        let ears = Arc::new(Ears::default());
        let link = |_: LedgerId| Txn::default();
        let writer = self.store.create(OWNER, None, link, ears.clone()).await.expect("created");
        (writer, ears)
    }

    fn node(&mut self, name: &BookieId) -> &mut Node {
        self.nodes.iter_mut().find(|node| node.name == *name).expect("it is one of them")
    }

    /// Every entry up to `last` is in the closed ledger, once and in order.
    async fn check(&self, ledger: LedgerId, last: u64) {
        let reader = self.store.open(ledger).await.expect("closed");
        assert_eq!(reader.closed().last_entry, Lac(Some(EntryId(last))));
        let mut next = 0;
        while next <= last {
            for stored in reader.read(EntryId(next), 500, 1 << 20).await.expect("readable") {
                assert_eq!(Payload::from(stored.payload), body(next));
                next += 1;
            }
        }
    }
}

/// Appends from `next` on, about a thousand times a second, for so long; the next number.
async fn publish(writer: &LedgerWriter, mut next: u64, time: Duration) -> u64 {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert_eq!(writer.append(body(next)), Ok(EntryId(next)));
        next += 1;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    next
}

async fn confirmed(writer: &LedgerWriter, next: u64) {
    until("all of it is confirmed", || writer.lac() == Lac(EntryId(next).previous())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_three_bookies_a_killed_one_leaves_no_gap_and_is_used_again_when_it_is_back() {
    let mut world = world(&["", "", ""]).await;
    let (writer, ears) = world.create().await;
    let next = publish(&writer, 0, Duration::from_millis(300)).await;
    world.nodes[1].kill();
    let next = publish(&writer, next, Duration::from_millis(700)).await;
    confirmed(&writer, next).await;
    world.assert_no_gap(&ears);
    world.nodes[1].start();
    let next = publish(&writer, next, Duration::from_millis(700)).await;
    confirmed(&writer, next).await;
    // Two are enough again, whichever they are.
    world.nodes[0].kill();
    let next = publish(&writer, next, Duration::from_millis(300)).await;
    confirmed(&writer, next).await;
    assert_eq!(*ears.failed.lock(), None);
    writer.close().await.expect("closed");
    let record = world.store.describe(writer.id()).await.expect("there");
    assert_eq!(record.fragments.len(), 1);
    assert!(record.under_replicated, "a range is missing on two bookies");
    world.check(writer.id(), next - 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_fourth_bookie_a_killed_one_is_replaced_from_its_own_zone() {
    let mut world = world(&["a", "b", "c", "a", "b", "c"]).await;
    let (writer, ears) = world.create().await;
    let next = publish(&writer, 0, Duration::from_millis(200)).await;
    let first = world.store.describe(writer.id()).await.expect("there").fragments[0].clone();
    let mut zones: Vec<_> = first.bookies.iter().map(|name| world.node(name).zone).collect();
    zones.sort_unstable();
    assert_eq!(zones, ["a", "b", "c"]);
    let lost = world.node(&first.bookies[1]);
    let zone = lost.zone;
    lost.kill();
    let next = publish(&writer, next, Duration::from_millis(500)).await;
    confirmed(&writer, next).await;
    world.assert_no_gap(&ears);
    writer.close().await.expect("closed");
    let record = world.store.describe(writer.id()).await.expect("there");
    let replaced = record.last_fragment().bookies[1].clone();
    assert!(replaced != first.bookies[1] && record.fragments.len() == 2, "{record:?}");
    assert_eq!(world.node(&replaced).zone, zone);
    world.check(writer.id(), next - 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookies_that_are_all_killed_and_started_again_have_everything_that_was_confirmed() {
    let mut world = world(&["", "", ""]).await;
    let (writer, ears) = world.create().await;
    let next = publish(&writer, 0, Duration::from_millis(300)).await;
    for node in &mut world.nodes {
        node.kill();
    }
    assert_eq!(writer.append(body(next)), Ok(EntryId(next)));
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!writer.lac().covers(EntryId(next)));
    for node in &mut world.nodes {
        node.start();
    }
    confirmed(&writer, next + 1).await;
    assert_eq!(*ears.failed.lock(), None, "it goes on by itself");
    let next = publish(&writer, next + 1, Duration::from_millis(100)).await;
    confirmed(&writer, next).await;
    world.store.recover(writer.id()).await.expect("recovered");
    world.check(writer.id(), next - 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_bookie_holds_up_nobody_and_is_avoided_until_it_goes_on() {
    let mut world = world(&["", "", ""]).await;
    let (writer, ears) = world.create().await;
    let next = publish(&writer, 0, Duration::from_millis(200)).await;
    let frozen = world.nodes[2].name.clone();
    let thaw = world.nodes[2].freeze();
    let next = publish(&writer, next, Duration::from_millis(500)).await;
    confirmed(&writer, next).await;
    world.assert_no_gap(&ears);
    // Its lease ends, and with two of three a ledger is made with two.
    let placement = Arc::clone(&world.placement);
    until("its record goes", || placement.registered().len() == 2).await;
    let (second, _) = world.create().await;
    let record = world.store.describe(second.id()).await.expect("there");
    assert_eq!((record.write_quorum, record.under_replicated), (2, true));
    assert!(!record.fragments[0].bookies.contains(&frozen));
    let begun = Instant::now();
    world.store.recover(second.id()).await.expect("recovered");
    world.store.recover(writer.id()).await.expect("recovered");
    let took = begun.elapsed();
    assert!(took < world.at_most(Duration::from_secs(3)), "{took:?}");
    world.check(writer.id(), next - 1).await;
    drop(thaw);
    until("it registers again", || placement.registered().len() == 3).await;
    let (third, _) = world.create().await;
    assert_eq!(third.write_quorum(), 3);
    let next = publish(&third, 0, Duration::from_millis(100)).await;
    confirmed(&third, next).await;
    drop(world.nodes.drain(..2).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_bookies_are_told_with_numbers_and_a_stopped_one_is_gone_at_once() {
    let mut world = world(&["", "", ""]).await;
    world.nodes[0].end(Order::Stop);
    world.nodes[1].end(Order::Stop);
    let placement = Arc::clone(&world.placement);
    until("both are gone", || placement.registered().len() == 1).await;
    let link = |_: LedgerId| Txn::default();
    let ears = Arc::new(Ears::default());
    let refused = world.store.create(OWNER, None, link, ears).await.expect_err("too few");
    assert!(matches!(refused, CreateError::Placement(_)), "{refused}");
    let text = refused.to_string();
    assert!(text.contains("2 bookies") && text.contains("1 are up"), "{text}");
    world.nodes[0].start();
    until("one is back", || placement.registered().len() == 2).await;
    let (writer, _) = world.create().await;
    let next = publish(&writer, 0, Duration::from_millis(50)).await;
    confirmed(&writer, next).await;
}

/// Where bookies are not.
#[derive(Debug)]
struct Misled(SocketAddr);

impl BookieDirectory for Misled {
    fn address(&self, _: &BookieId) -> Option<String> {
        Some(format!("http://{}", self.0))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bookie_of_another_name_or_cluster_is_asked_nothing() {
    let world = world(&["", ""]).await;
    let (there, cluster) = (world.nodes[0].address, world.nodes[0].cluster.clone());
    let foreign = ClusterId::new("another").expect("valid");
    for (cluster, name) in [(cluster, &world.nodes[1].name), (foreign, &world.nodes[0].name)] {
        let config = GrpcTransportConfig::new(cluster, "broker-1".to_owned());
        let runtime = tokio::runtime::Handle::current();
        let transport = GrpcTransport::new(config, Arc::new(Misled(there)), runtime);
        let ledger = LedgerId(1);
        let asked = FenceRequest { ledger, token: LedgerToken(1) };
        assert_eq!(transport.fence(name, asked).await, Err(BookieError::Unreachable));
        assert_eq!(transport.info(name).await, Err(BookieError::Unreachable));
        let asked = transport.fenced(name, vec![asked]).await;
        assert_eq!(asked, Err(BookieError::Unreachable));
    }
    let config = GrpcTransportConfig::new(world.nodes[0].cluster.clone(), "broker-1".to_owned());
    let runtime = tokio::runtime::Handle::current();
    let transport = GrpcTransport::new(config, Arc::new(Misled(there)), runtime);
    let info = transport.info(&world.nodes[0].name).await.expect("it is the one");
    assert_eq!(info.ledgers, 0, "nothing was fenced");
}
