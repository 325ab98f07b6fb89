//! A bookie's host: the real log over a simulated disk, turned by a task instead of threads, with
//! its registration, its collector, what it says of damage and what it repairs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use geminga_bookie::Turner;
use geminga_bookie::bookie::Bookie;
use geminga_bookie::config::BookieConfig;
use geminga_bookie::cookie::{self, CookieError, Identity};
use geminga_bookie::defect::Defect;
use geminga_bookie::device::DeviceError;
use geminga_bookie::device::memory::MemoryDevice;
use geminga_bookie::error::OpenError;
use geminga_bookie::gc::Collector;
use geminga_bookie::registration::{Checked, RegistrationConfig, RegistrationError};
use geminga_bookie::reporter::Reporter;
use geminga_meta::keys;
use geminga_meta::read::read;
use geminga_meta::record::CookieRecord;
use geminga_meta::store::MetadataStore;
use geminga_proto::env::Env;
use geminga_proto::id::BookieId;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::clock::HostClock;
use crate::dice::Dice;
use crate::mutant::Mutant;
use crate::network::{HostId, Place};
use crate::repair_host;
use crate::shared::Shared;
use crate::transport::Door;

/// Before a start is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// Chores that are done between two groups at most.
const CHORES: usize = 4;
/// Groups between two looks at the disk's space.
const LOOK_EVERY: u64 = 256;

/// What a bookie is started with.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub place: Place,
    pub id: BookieId,
    pub device: MemoryDevice,
    pub clock: Arc<HostClock>,
    /// Its disk may be damaged.
    pub accept_damage: bool,
    /// How long a write takes at most, in µs. Set by the world.
    pub disk_us: Arc<AtomicU64>,
    /// Its operations fail. Set by the world.
    pub troubled: Arc<AtomicBool>,
    pub leave: Arc<Notify>,
    pub ended: Arc<Notify>,
}

/// The name of a bookie.
pub(crate) fn name(host: HostId) -> BookieId {
    BookieId::new(&format!("bookie-{}", host.0)).expect("a valid name")
}

/// The name under which it comes back when its disk is lost.
pub(crate) fn second_name(host: HostId) -> BookieId {
    BookieId::new(&format!("bookie-{}-again", host.0)).expect("a valid name")
}

/// Settings with which segments are small and soon full.
pub(crate) fn config(accept_damage: bool, planted: Option<Defect>) -> BookieConfig {
    BookieConfig {
        segment_bytes: Some(128 << 10),
        first_segment_bytes: 64 << 10,
        max_entry_bytes: 12 << 10,
        max_group_bytes: 32 << 10,
        max_pending_bytes: 1 << 20,
        index_cache_bytes: 64 << 10,
        max_spare_segments: 2,
        max_open_files: 4,
        idle_close: Duration::from_millis(40),
        census_interval: Duration::from_secs(3),
        scrub_interval: Duration::from_secs(3),
        mass_deletion_floor: 10_000,
        accept_damage,
        planted,
        ..BookieConfig::default()
    }
}

/// Runs a bookie until it is told to leave.
pub(crate) async fn run(shared: Arc<Shared>, start: Start) {
    let place = start.place;
    let env = shared.env(place, &start.clock);
    let meta: Arc<dyn MetadataStore> = shared.access(place);
    let Some((bookie, turner)) = open(&shared, &start, &meta, &env).await else { return };
    let dice = shared.dice("disk", place);
    let stop = Arc::<AtomicBool>::default();
    let turning = tokio::spawn(turn(turner, dice, start.clone(), Arc::clone(&stop)));
    let config = RegistrationConfig {
        address: format!("{}:1", start.id),
        zone: String::new(),
        lease_ttl: Duration::from_secs(2),
        release: "simulation".to_owned(),
    };
    let refused = |error: RegistrationError| {
        // A disk that fails at the start is none of the metadata's business.
        if bookie.poisoned().is_some() {
            shared.trace.note(format_args!("{place} can't serve: {error}"));
        } else {
            shared.history.broken(format!("{place} must not serve: {error}"));
        }
    };
    let checked = Checked::new(config, bookie.clone(), Arc::clone(&meta), env.clone()).await;
    let checked = match checked {
        Ok(checked) => checked,
        Err(error) => return refused(error),
    };
    let device = start.device.clone();
    let door = Door::new(Arc::clone(&shared.network), bookie.clone(), device);
    shared.doors.lock().insert(place.host, door);
    let registration = match checked.register().await {
        Ok(registration) => registration,
        Err(error) => return refused(error),
    };
    shared.trace.note(format_args!("{place} is registered"));
    let collector = Collector::new(bookie.clone(), Arc::clone(&meta));
    let reporter = Reporter::new(bookie.clone(), Arc::clone(&meta), env.clone());
    let id = start.id.clone();
    let tasks = [
        tokio::spawn(collector.run(std::future::pending())),
        tokio::spawn(reporter.run(std::future::pending())),
        tokio::spawn(repair_host::run(Arc::clone(&shared), place, id, meta, env)),
    ];
    start.leave.notified().await;
    registration.close().await;
    shared.doors.lock().remove(&place.host);
    tasks.iter().for_each(JoinHandle::abort);
    stop.store(true, Ordering::Relaxed);
    // It ends with its turn; a panic of it was noticed.
    drop(turning.await);
    let closed = bookie.close().await;
    shared.trace.note(format_args!("{place} has left: {closed:?}"));
    start.ended.notify_one();
}

async fn open(
    shared: &Shared,
    start: &Start,
    meta: &Arc<dyn MetadataStore>,
    env: &Env,
) -> Option<(Bookie, Turner)> {
    let place = start.place;
    let identity = loop {
        let claimed =
            cookie::claim(meta.as_ref(), &start.device, &shared.cluster, &start.id, env).await;
        match claimed {
            Ok(identity) => break identity,
            Err(CookieError::Metadata(_) | CookieError::Store(_)) => {
                tokio::time::sleep(AGAIN).await;
            }
            Err(CookieError::Device(error)) => {
                shared.trace.note(format_args!("{place}: its disk fails: {error}"));
                tokio::time::sleep(AGAIN).await;
            }
            Err(error @ CookieError::Wiped { .. }) => {
                shared.trace.note(format_args!("{place}: {error}"));
                if shared.mutant != Some(Mutant::CookieUnchecked) {
                    return None;
                }
                let known = keys::cookie(&start.id);
                let known = read::<CookieRecord>(meta.as_ref(), &known).await.ok()??;
                let (id, cluster) = (start.id.clone(), shared.cluster.clone());
                break Identity::detached(id, cluster, known.record.instance);
            }
            Err(error) => {
                shared.history.broken(format!("{place} can't have its disk: {error}"));
                return None;
            }
        }
    };
    let device = Arc::new(start.device.clone());
    let planted = shared.mutant.and_then(Mutant::of_bookie);
    let config = config(start.accept_damage, planted);
    match Bookie::open_by_hand(config, identity, device, env.clone()) {
        Ok((bookie, turner, report)) => {
            let (ledgers, groups) = (report.ledgers, report.replayed_groups);
            shared.trace.note(format_args!("{place} opens: {ledgers} ledgers, {groups} groups"));
            let troubled = start.accept_damage || start.troubled.load(Ordering::Relaxed);
            if !troubled && !report.damage.is_empty() {
                shared.history.broken(format!("{place} finds damage: {:?}", report.damage));
            }
            Some((bookie, turner))
        }
        Err(error) => {
            let full = matches!(
                error,
                OpenError::Full { .. } | OpenError::Device(DeviceError::Full { .. })
            );
            if start.device.is_dead() || start.troubled.load(Ordering::Relaxed) || full {
                shared.trace.note(format_args!("{place} can't open its log: {error}"));
            } else {
                shared.history.broken(format!("{place} can't open its log: {error}"));
            }
            None
        }
    }
}

/// What the log's threads would do, at the pace of the disk, until it is told to stop.
async fn turn(mut turner: Turner, dice: Dice, start: Start, stop: Arc<AtomicBool>) {
    let mut turns = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_micros(300 + dice.below(900))).await;
        if start.device.is_dead() {
            return;
        }
        if turner.begin() {
            // What comes while the disk writes is for the next group.
            let most = start.disk_us.load(Ordering::Relaxed).max(1);
            tokio::time::sleep(Duration::from_micros(dice.below(most))).await;
            turner.finish();
        }
        for _ in 0..CHORES {
            if !turner.keep() {
                break;
            }
        }
        turns += 1;
        if turns.is_multiple_of(LOOK_EVERY) {
            turner.look_at_space();
        }
    }
}
