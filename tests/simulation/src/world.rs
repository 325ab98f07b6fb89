//! [`World`]: all hosts, stepped one after the other, a millisecond at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures_util::FutureExt;
use geminga_bookie::bookie::Bookie;
use geminga_bookie::cookie;
use geminga_bookie::device::memory::{MemoryDevice, Tear};
use geminga_meta::cluster;
use geminga_meta::keys;
use geminga_meta::record::{NamespacePolicies, NamespaceRecord, Nonce, OwnershipRecord, Record};
use geminga_meta::store::memory::MemoryStore;
use geminga_meta::store::{MAX_RANGE, MetadataStore, Revision, Txn, Watch, WatchEvent};
use geminga_proto::id::BookieId;
use geminga_proto::topic_name::NamespaceName;
use tokio::sync::Notify;

use crate::bookie_host;
use crate::broker_host::{self, Counters};
use crate::checker::closed::Ledgers;
use crate::checker::copies::{self, Disk};
use crate::checker::{damage, restored};
use crate::client::CLIENTS;
use crate::clock::{HostClock, SimTime};
use crate::faults::{Fault, Hosts};
use crate::history::{History, Owned};
use crate::machine::{Machine, TICK};
use crate::metadata::{META, Snapshot};
use crate::mutant::Mutant;
use crate::network::{HostId, Network, Place};
use crate::panics;
use crate::shared::Shared;
use crate::trace::{Trace, Words};

mod disks;

const BOOKIES: usize = 4;
const BROKERS: usize = 3;
/// Each with one bundle.
pub(crate) const NAMESPACES: usize = 2;
/// Size of a bookie's disk.
const DISK_BYTES: u64 = 24 << 20;
/// How often a copy of the metadata is kept.
const SNAPSHOT_US: u64 = 500_000;
/// Copies that are kept.
const SNAPSHOTS: usize = 30;
/// What a write takes at most when nothing is wrong.
const DISK_US: u64 = 2_000;

struct BookieSlot {
    host: HostId,
    id: BookieId,
    device: MemoryDevice,
    clock: Arc<HostClock>,
    disk_us: Arc<AtomicU64>,
    troubled: Arc<AtomicBool>,
    /// The right disk, while another one is in its place.
    aside: Option<MemoryDevice>,
    /// Its power goes at one of its next writes.
    armed: bool,
    /// Its disk is lost, and nobody has taken its place.
    gone: bool,
    /// Its disk has failed at least once.
    failed: bool,
    /// What is on its disk was damaged, or taken away, at least once.
    spoilt: bool,
    running: Option<Running>,
}

struct BrokerSlot {
    host: HostId,
    clock: Arc<HostClock>,
    running: Option<Running>,
}

/// A host that is up.
struct Running {
    machine: Machine,
    leave: Arc<Notify>,
    ended: Arc<Notify>,
    leaving: bool,
}

/// A prefix of the metadata's keys, and how far it was seen.
struct Watched {
    prefix: String,
    after: Revision,
    watch: Option<Box<dyn Watch>>,
}

/// Everything there is.
pub(crate) struct World {
    pub shared: Arc<Shared>,
    pub hosts: Hosts,
    bookies: Vec<BookieSlot>,
    brokers: Vec<BrokerSlot>,
    clients: Machine,
    /// Where the clients are.
    pub client: Place,
    pub ledgers: Ledgers,
    watches: Vec<Watched>,
    /// The metadata as they were, the latest last.
    snapshots: VecDeque<Arc<Snapshot>>,
}

/// The namespaces of a run.
pub(crate) fn namespace(number: usize) -> NamespaceName {
    NamespaceName::new("public", &format!("n{number}")).expect("a valid name")
}

impl World {
    /// An initialised cluster whose hosts all start now.
    pub fn new(seed: u64, mutant: Option<Mutant>, words: Words) -> Self {
        let time = Arc::new(SimTime::default());
        let trace = Trace::new(Arc::clone(&time), words);
        let count = 2 + BOOKIES + BROKERS;
        let network = Network::new(count, seed, Arc::clone(&time), trace.clone());
        let bookies: Vec<HostId> = (2..2 + BOOKIES).map(HostId).collect();
        let brokers: Vec<HostId> = (2 + BOOKIES..count).map(HostId).collect();
        let clock = Arc::new(HostClock::new(Arc::clone(&time)));
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let names = |host: &HostId| {
            [(bookie_host::name(*host), *host), (bookie_host::second_name(*host), *host)]
        };
        let directory = bookies.iter().flat_map(names).collect();
        let meta = network.start(META);
        let client = network.start(CLIENTS);
        let mut shared = Shared {
            seed,
            mutant,
            stale: Arc::default(),
            trace,
            network: Arc::new(network),
            store,
            cluster: geminga_proto::id::ClusterId::new("c").expect("a valid name"),
            directory: Arc::new(directory),
            doors: Arc::default(),
            counters: Counters::default(),
            history: History::default(),
            draining: false.into(),
            time: Arc::clone(&time),
        };
        let env = shared.env(meta, &clock);
        shared.cluster = found_cluster(&shared.store, &env);
        let host_clock = || Arc::new(HostClock::new(Arc::clone(&time)));
        let bookie_slot = |host: &HostId| BookieSlot {
            host: *host,
            id: bookie_host::name(*host),
            device: MemoryDevice::new(DISK_BYTES),
            clock: host_clock(),
            disk_us: Arc::new(AtomicU64::new(DISK_US)),
            troubled: Arc::default(),
            aside: None,
            armed: false,
            gone: false,
            failed: false,
            spoilt: false,
            running: None,
        };
        let broker_slot =
            |host: &HostId| BrokerSlot { host: *host, clock: host_clock(), running: None };
        let watches = std::iter::once(keys::LEDGERS.to_owned())
            .chain((0..NAMESPACES).map(|number| keys::ownership_of(&namespace(number))))
            .chain([keys::REPAIRS.to_owned()])
            .map(|prefix| Watched { prefix, after: Revision(0), watch: None })
            .collect();
        let first = Arc::new(Snapshot::take(&shared.store));
        shared.history.lock().owners = vec![Vec::new(); NAMESPACES];
        let mut world = Self {
            hosts: Hosts { meta: META, clients: CLIENTS, bookies, brokers },
            bookies: Vec::new(),
            brokers: Vec::new(),
            clients: Machine::start(0, seed),
            client,
            ledgers: Ledgers::default(),
            watches,
            snapshots: VecDeque::from([first]),
            shared: Arc::new(shared),
        };
        world.bookies = world.hosts.bookies.iter().map(bookie_slot).collect();
        world.brokers = world.hosts.brokers.iter().map(broker_slot).collect();
        for host in world.all() {
            world.start(host);
        }
        world
    }

    fn all(&self) -> Vec<HostId> {
        self.hosts.bookies.iter().chain(&self.hosts.brokers).copied().collect()
    }

    /// Runs a client's task.
    pub fn spawn_client(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.clients.spawn(task);
    }

    /// One millisecond goes by everywhere.
    pub fn tick(&mut self) {
        self.shared.time.advance(TICK);
        let now_us = self.shared.time.now_us();
        self.shared.store.expire_leases();
        for deliver in self.shared.network.turn(META) {
            deliver();
        }
        self.watch();
        if now_us.is_multiple_of(SNAPSHOT_US) {
            self.snapshots.push_back(Arc::new(Snapshot::take(&self.shared.store)));
            if self.snapshots.len() > SNAPSHOTS {
                self.snapshots.pop_front();
            }
        }
        let network = Arc::clone(&self.shared.network);
        self.clients.step(now_us, network.take_inbox(CLIENTS));
        let bookies = self.bookies.iter_mut().map(|slot| (slot.host, &mut slot.running));
        let brokers = self.brokers.iter_mut().map(|slot| (slot.host, &mut slot.running));
        let mut left = Vec::new();
        for (host, running) in bookies.chain(brokers) {
            let Some(running) = running else { continue };
            if running.machine.is_frozen() {
                continue;
            }
            running.machine.step(now_us, network.take_inbox(host));
            if running.leaving && running.ended.notified().now_or_never().is_some() {
                left.push(host);
            }
        }
        for host in left {
            self.crash(host, Tear::Whole, false);
        }
        if let Some(what) = panics::heard() {
            self.shared.history.panicked(&what);
        }
    }

    /// Starts a host that is down.
    pub fn start(&mut self, host: HostId) {
        let now_us = self.shared.time.now_us();
        let seed = self.shared.seed ^ host.0 as u64;
        let shared = Arc::clone(&self.shared);
        let (leave, ended) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let machine = Machine::start(now_us, seed);
        if let Some(slot) = self.bookies.iter_mut().find(|slot| slot.host == host) {
            if slot.running.is_some() || slot.gone {
                return;
            }
            let start = bookie_host::Start {
                place: self.shared.network.start(host),
                id: slot.id.clone(),
                device: slot.device.clone(),
                clock: Arc::clone(&slot.clock),
                accept_damage: host == self.hosts.bookies[0],
                disk_us: Arc::clone(&slot.disk_us),
                troubled: Arc::clone(&slot.troubled),
                leave: Arc::clone(&leave),
                ended: Arc::clone(&ended),
            };
            machine.spawn(bookie_host::run(shared, start));
            slot.running = Some(Running { machine, leave, ended, leaving: false });
        } else if let Some(slot) = self.brokers.iter_mut().find(|slot| slot.host == host) {
            if slot.running.is_some() {
                return;
            }
            let place = self.shared.network.start(host);
            let clock = Arc::clone(&slot.clock);
            let told = (Arc::clone(&leave), Arc::clone(&ended));
            machine.spawn(broker_host::run(shared, place, clock, told.0, told.1));
            slot.running = Some(Running { machine, leave, ended, leaving: false });
        }
        self.shared.trace.note(format_args!("h{} starts", host.0));
    }

    fn running(&mut self, host: HostId) -> Option<&mut Running> {
        let bookies = self.bookies.iter_mut().map(|slot| (slot.host, &mut slot.running));
        let brokers = self.brokers.iter_mut().map(|slot| (slot.host, &mut slot.running));
        let mut all = bookies.chain(brokers);
        all.find(|(known, _)| *known == host).and_then(|(_, running)| running.as_mut())
    }

    fn crash(&mut self, host: HostId, tear: Tear, silently: bool) {
        if self.running(host).is_none() {
            return;
        }
        self.shared.trace.note(format_args!("h{} ends, {tear:?}", host.0));
        self.shared.network.end(host, silently);
        self.shared.stale.set(host, None);
        let door = self.shared.doors.lock().remove(&host);
        let counter = self.shared.counters.remove(host);
        if let Some(slot) = self.bookies.iter_mut().find(|slot| slot.host == host) {
            drop(slot.running.take());
            slot.device = slot.device.crash(tear);
            slot.armed = false;
        }
        if let Some(slot) = self.brokers.iter_mut().find(|slot| slot.host == host) {
            drop(slot.running.take());
        }
        drop((door, counter));
    }

    /// Something goes wrong, or ends to.
    pub fn fault(&mut self, fault: Fault) {
        self.shared.trace.note(format_args!("fault {fault:?}"));
        let network = Arc::clone(&self.shared.network);
        match fault {
            Fault::Crash { host, tear, silently } => self.crash(host, tear, silently),
            Fault::Start(host) => self.start(host),
            Fault::Leave(host) => {
                if let Some(running) = self.running(host) {
                    running.leaving = true;
                    running.leave.notify_one();
                }
            }
            Fault::Block(from, to) => network.block(from, to, true),
            Fault::Unblock(from, to) => network.block(from, to, false),
            Fault::Slow(from, to, slow) => network.slow(from, to, slow),
            Fault::BreakLine(which) => network.break_one(None, which),
            Fault::BreakClient(which) => network.break_one(Some(CLIENTS), which),
            Fault::Clock(host, offset_ms) => self.set_clock(host, offset_ms),
            Fault::Freeze(host) => {
                if let Some(running) = self.running(host) {
                    running.machine.freeze(true);
                }
            }
            Fault::Thaw(host) => {
                if let Some(running) = self.running(host) {
                    running.machine.freeze(false);
                }
            }
            Fault::MetaDown(down) => self.shared.store.faults().set_down(down),
            Fault::LoseLease(host) => self.lose_lease(host),
            Fault::Wipe(host) => self.wipe(host),
            Fault::Unwipe(host) => self.unwipe(host),
            Fault::LoseDisk => self.lose_disk(),
            Fault::Replace => self.replace(),
            Fault::OldMeta(host, old) => {
                let old = old.then(|| self.old_metadata(host)).flatten();
                self.shared.stale.set(host, old);
            }
            Fault::LoseWatches => self.shared.store.lose_watches(),
            Fault::CutPower { host, writes } => {
                let slot = self.bookies.iter_mut().find(|slot| slot.host == host);
                if let Some(slot) = slot.filter(|slot| slot.running.is_some()) {
                    slot.device.cut_power_at_write(writes);
                    slot.armed = true;
                }
            }
            Fault::DiskFails(..)
            | Fault::DiskMends(_)
            | Fault::DiskFull(..)
            | Fault::DiskSlow(..)
            | Fault::LoseSegments
            | Fault::SpoilSegments
            | Fault::Flip(_) => self.disk_fault(fault),
        }
    }

    /// The newest copy of the metadata that a bookie must know to be old.
    fn old_metadata(&self, host: HostId) -> Option<Arc<Snapshot>> {
        let door = self.shared.doors.lock().get(&host).cloned()?;
        let seen = door.bookie().seen_revision();
        self.snapshots.iter().rev().find(|old| old.revision() < seen).cloned()
    }

    fn set_clock(&self, host: HostId, offset_ms: i64) {
        let bookies = self.bookies.iter().map(|slot| (slot.host, &slot.clock));
        let brokers = self.brokers.iter().map(|slot| (slot.host, &slot.clock));
        for (known, clock) in bookies.chain(brokers) {
            if known == host {
                clock.set_offset_ms(offset_ms);
            }
        }
    }

    fn lose_lease(&self, host: HostId) {
        let key = match self.bookies.iter().find(|slot| slot.host == host) {
            Some(slot) => keys::bookie(&slot.id),
            None => match geminga_proto::id::BrokerId::new(&broker_host::name(host)) {
                Ok(id) => keys::broker(&id),
                Err(_) => return,
            },
        };
        let store = Arc::clone(&self.shared.store);
        let revoke = async move {
            if let Ok(Some(found)) = store.get(&key).await
                && let Some(lease) = found.lease
            {
                // It may have ended just now.
                drop(store.revoke_lease(lease).await);
            }
        };
        revoke.now_or_never();
    }

    /// All faults end, and whoever is down starts.
    pub fn heal(&mut self) {
        self.shared.trace.note(format_args!("heal"));
        self.shared.network.heal();
        self.shared.store.faults().clear();
        for host in self.hosts.bookies.clone() {
            self.unwipe(host);
            self.shared.stale.set(host, None);
        }
        for slot in &self.bookies {
            slot.device.mend();
            slot.troubled.store(false, Ordering::Relaxed);
            slot.device.set_capacity(DISK_BYTES);
            slot.disk_us.store(DISK_US, Ordering::Relaxed);
        }
        for host in self.all() {
            if let Some(running) = self.running(host) {
                running.machine.freeze(false);
            }
        }
        // What failed to write is read-only until it is opened again; and no power goes any more.
        for host in self.hosts.bookies.clone() {
            let armed = self.bookies.iter().any(|slot| slot.host == host && slot.armed);
            let door = self.shared.doors.lock().get(&host).cloned();
            if armed || door.is_none_or(|door| door.bookie().poisoned().is_some()) {
                self.crash(host, Tear::Lost, false);
            }
        }
        for host in self.all() {
            self.start(host);
        }
    }

    /// Whether all hosts are up and none is on its way out.
    pub fn is_whole(&self) -> bool {
        let bookies = self.bookies.iter().filter(|slot| !slot.gone).map(|slot| &slot.running);
        let brokers = self.brokers.iter().map(|slot| &slot.running);
        let mut all = bookies.chain(brokers);
        all.all(|running| running.as_ref().is_some_and(|running| !running.leaving))
    }

    /// Follows the metadata.
    fn watch(&mut self) {
        for number in 0..self.watches.len() {
            while let Some(events) = self.next_events(number) {
                for event in events {
                    let mut history = self.shared.history.lock();
                    self.ledgers.see(&event, &mut history);
                    drop(history);
                    match number.checked_sub(1) {
                        None => {}
                        Some(bundle) if bundle < NAMESPACES => self.see_owner(bundle, &event),
                        Some(_) => self.see_task(&event),
                    }
                }
            }
        }
    }

    fn next_events(&mut self, number: usize) -> Option<Vec<WatchEvent>> {
        let store = Arc::clone(&self.shared.store);
        let Watched { prefix, after, watch } = &mut self.watches[number];
        if watch.is_none() {
            *watch = store.watch(prefix, *after).now_or_never()?.ok();
        }
        match watch.as_mut()?.next().now_or_never()? {
            Ok(events) => {
                *after = events.last().map_or(*after, |event| event.revision);
                Some(events)
            }
            Err(_) => {
                *watch = None;
                None
            }
        }
    }

    fn see_task(&self, event: &WatchEvent) {
        let known = |id: &BookieId| self.bookies.iter().find(|slot| slot.id == *id);
        let may_be_damaged =
            |id: &BookieId| known(id).is_none_or(|slot| slot.spoilt || slot.failed);
        if let Some(what) = damage::check(event, may_be_damaged) {
            self.shared.history.broken(what);
        }
    }

    fn see_owner(&self, bundle: usize, event: &WatchEvent) {
        let by = event.value.as_ref().and_then(|value| {
            let (record, _) = OwnershipRecord::decode(value).ok()?;
            let named = |host: &&HostId| broker_host::name(**host) == record.broker_id.as_str();
            self.shared.place(*self.hosts.brokers.iter().find(named)?)
        });
        let at_us = self.shared.time.now_us();
        self.shared.trace.note(format_args!("bundle {bundle} is {by:?}'s"));
        self.shared.history.lock().owners[bundle].push(Owned { at_us, by });
    }

    /// What repair has still to do, in words; `None` when every fragment has all its copies.
    pub fn unrestored(&self) -> Option<String> {
        let up: BTreeSet<BookieId> =
            self.bookies.iter().filter(|slot| !slot.gone).map(|slot| slot.id.clone()).collect();
        let tasks = self.shared.store.range(keys::REPAIRS, None, MAX_RANGE).now_or_never();
        let tasks = tasks.expect("a store in memory answers at once").expect("nothing fails now");
        restored::outstanding(&self.ledgers, &up, &tasks.pairs)
    }

    /// Takes the power from every disk, and counts what is left.
    pub fn check_copies(&mut self) {
        let first = bookie_host::name(self.hosts.bookies[0]);
        let mut disks = BTreeMap::from([(first, Disk::Lost)]);
        for host in self.hosts.bookies.clone() {
            self.crash(host, Tear::Lost, false);
        }
        let clock = Arc::new(HostClock::new(Arc::clone(&self.shared.time)));
        for slot in self.bookies.iter().filter(|slot| !slot.gone) {
            let env = self.shared.env(Place { host: slot.host, life: 999 }, &clock);
            let (store, cluster) = (self.shared.store.as_ref(), &self.shared.cluster);
            let claimed = cookie::claim(store, &slot.device, cluster, &slot.id, &env);
            let opened = match claimed.now_or_never() {
                Some(Ok(identity)) => {
                    let device = Arc::new(slot.device.clone());
                    let config = bookie_host::config(slot.spoilt, None);
                    Bookie::open_by_hand(config, identity, device, env).map(|opened| opened.0).ok()
                }
                _ => None,
            };
            if opened.is_none() && !slot.spoilt {
                self.shared.history.broken(format!("the disk of {} can't be opened", slot.id));
            }
            let opened = opened.filter(|_| !slot.spoilt);
            disks.insert(slot.id.clone(), opened.map_or(Disk::Spoilt, Disk::Opened));
        }
        let mut history = self.shared.history.lock();
        copies::check(&mut history, &self.ledgers, &disks);
        self.ledgers.check_ends(&mut history);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What hosts and network hold of each other would keep all of it.
        for host in self.all() {
            self.crash(host, Tear::Lost, false);
        }
        self.shared.network.clear();
    }
}

/// Initialises the cluster, and adds the namespaces.
fn found_cluster(
    store: &Arc<MemoryStore>,
    env: &geminga_proto::env::Env,
) -> geminga_proto::id::ClusterId {
    let found = async {
        let cluster = cluster::init(store.as_ref(), env, 1).await.expect("an empty store");
        let mut txn = Txn::default();
        for number in 0..NAMESPACES {
            let record = NamespaceRecord {
                created_ms: env.clock.wall_ms(),
                bundle_bounds: NamespaceRecord::even_bounds(1),
                policies: NamespacePolicies::default(),
            };
            let value = record.encode(Nonce::new(&*env.random)).expect("a valid record");
            txn = txn.put(keys::namespace(&namespace(number)), value);
        }
        store.txn(txn).await.expect("nothing fails yet");
        cluster.cluster_id
    };
    found.now_or_never().expect("a store in memory answers at once")
}
