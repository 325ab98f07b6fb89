//! The registration over a memory metadata store whose faults are injected.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use geminga_meta::record::{ClusterRecord, CookieRecord};
use geminga_meta::store::memory::{Fault, Request};
use geminga_meta::store::{MemoryStore, Revision};
use geminga_proto::env::{Clock, ManualClock, SystemClock};
use geminga_proto::id::{ClusterId, LedgerId, LedgerToken};
use geminga_proto::storage::FenceRequest;
use tokio::sync::Notify;

use super::*;
use crate::config::BookieConfig;
use crate::cookie::Identity;
use crate::device::memory::MemoryDevice;

const TTL: Duration = Duration::from_millis(200);

fn identity() -> Identity {
    let (bookie, cluster) = (BookieId::new("b1"), ClusterId::new("c"));
    Identity::detached(bookie.expect("a name"), cluster.expect("a name"), 42)
}

fn bookie_config() -> BookieConfig {
    BookieConfig {
        segment_bytes: Some(1 << 20),
        first_segment_bytes: 256 * 1024,
        max_entry_bytes: 128 * 1024,
        ..BookieConfig::default()
    }
}

fn open(config: BookieConfig) -> Bookie {
    let device = Arc::new(MemoryDevice::new(64 << 20));
    Bookie::open(config, identity(), device, Env::system()).expect("opens").0
}

fn config(port: u16) -> RegistrationConfig {
    RegistrationConfig {
        address: format!("127.0.0.1:{port}"),
        zone: "z".to_owned(),
        lease_ttl: TTL,
        release: "1".to_owned(),
    }
}

async fn put<R: Record>(store: &MemoryStore, key: &str, record: &R) {
    let value = record.encode(Nonce::new(Env::system().random.as_ref())).expect("valid");
    store.txn(Txn::default().put(key, value)).await.expect("written");
}

/// The time of the test's runtime. While that is paused, leases last however long the process of
/// the test stands still.
#[derive(Debug)]
struct RuntimeClock(tokio::time::Instant);

impl Clock for RuntimeClock {
    fn wall_ms(&self) -> u64 {
        u64::try_from(self.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Monotonic {
        self.0.elapsed()
    }
}

/// An environment with [`RuntimeClock`].
fn runtime_env() -> Env {
    Env { clock: Arc::new(RuntimeClock(tokio::time::Instant::now())), ..Env::system() }
}

/// The metadata of a cluster that knows the bookie's disk.
async fn metadata() -> Arc<MemoryStore> {
    metadata_by(Arc::new(SystemClock::default())).await
}

async fn metadata_by(clock: Arc<dyn Clock>) -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::new(clock));
    put_identity(&store).await;
    store
}

/// The cluster's record and the cookie of the bookie's disk, at once.
async fn put_identity(store: &MemoryStore) {
    let Identity { bookie, cluster, instance, .. } = identity();
    let nonce = || Nonce::new(Env::system().random.as_ref());
    let record = ClusterRecord { cluster_id: cluster.clone(), format_version: 1, created_ms: 1 };
    let cookie = CookieRecord { bookie_id: bookie.clone(), cluster_id: cluster, instance };
    let txn = Txn::default()
        .put(keys::CLUSTER, record.encode(nonce()).expect("valid"))
        .put(keys::cookie(&bookie), cookie.encode(nonce()).expect("valid"));
    store.txn(txn).await.expect("written");
}

async fn found(store: &MemoryStore) -> Option<BookieRecord> {
    let pair = store.get(&keys::bookie(&identity().bookie)).await.ok()??;
    Some(Stored::from_pair(pair).expect("valid").record)
}

async fn until(store: &MemoryStore, what: &str, holds: impl Fn(Option<&BookieRecord>) -> bool) {
    for _ in 0..1_000 {
        if holds(found(store).await.as_ref()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: {:?}", found(store).await);
}

/// How many requests there have been from now on, without reads if these succeed; each becomes
/// `fault`.
fn count_requests(store: &MemoryStore, fault: Fault) -> Arc<AtomicUsize> {
    let requests = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&requests);
    store.faults().set_script(move |request| {
        if fault != Fault::None || matches!(request, Request::Lease | Request::Txn(_)) {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        fault
    });
    requests
}

/// Waits for two more requests: the first of them has been answered then.
async fn two_more(requests: &AtomicUsize) {
    let before = requests.load(Ordering::SeqCst);
    for _ in 0..1_000 {
        if requests.load(Ordering::SeqCst) >= before + 2 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing is asked any more");
}

async fn start(store: &Arc<MemoryStore>, port: u16) -> Result<Registration, RegistrationError> {
    Registration::start(config(port), open(bookie_config()), store.clone(), Env::system()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bookie_is_registered_past_its_lease_and_gone_once_it_is_closed() {
    let clock = Arc::new(ManualClock::default());
    let store = metadata_by(clock.clone()).await;
    let registration = start(&store, 7_001).await.expect("registered");
    let record = found(&store).await.expect("written");
    assert_eq!((record.address.as_str(), record.zone.as_str()), ("127.0.0.1:7001", "z"));
    assert!(record.writable && record.free_bytes > 0 && record.session != 0, "{record:?}");
    assert_eq!(record.lease_ttl_ms, 200);
    assert_eq!((record.max_entry_bytes, record.highest_ledger), (128 * 1024, LedgerId(0)));
    let revision = store.revision();
    let requests = count_requests(&store, Fault::None);
    for _ in 0..4 {
        two_more(&requests).await;
        clock.advance(TTL * 3 / 4);
    }
    assert_eq!(found(&store).await, Some(record), "kept alive");
    assert_eq!(store.revision(), revision, "and not written again");
    registration.close().await;
    assert_eq!(found(&store).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_was_lost_is_taken_again_also_after_an_outage() {
    let clock = Arc::new(ManualClock::default());
    let store = metadata_by(clock.clone()).await;
    let registration = start(&store, 7_001).await.expect("registered");
    let revision = store.revision();
    let refused = count_requests(&store, Fault::Unavailable);
    two_more(&refused).await;
    clock.advance(TTL * 2);
    store.expire_leases();
    assert_eq!(store.revision(), Revision(revision.0 + 1), "the record went with its lease");
    store.faults().clear();
    until(&store, "it registers again", |record| record.is_some()).await;
    registration.close().await;
    assert_eq!(found(&store).await, None);
}

/// As the auditor forgets a bookie once nothing is left on it.
async fn forget(store: &MemoryStore) {
    let txn = Txn::default().delete(keys::cookie(&identity().bookie));
    store.txn(txn).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bookie_that_was_forgotten_while_its_lease_was_lost_ends_and_is_not_found_again() {
    let clock = Arc::new(ManualClock::default());
    let store = metadata_by(clock.clone()).await;
    let mut registration = start(&store, 7_001).await.expect("registered");
    let revision = store.revision();
    let refused = count_requests(&store, Fault::Unavailable);
    two_more(&refused).await;
    clock.advance(TTL * 2);
    store.expire_leases();
    assert_eq!(store.revision(), Revision(revision.0 + 1), "the record went with its lease");
    let still = tokio::time::timeout(Duration::from_millis(50), registration.ended()).await;
    assert!(still.is_err(), "an outage is no end");
    // What it asks for waits until it is forgotten.
    let holds_up = |request: Request<'_>| match request {
        Request::Lease => Fault::Unavailable,
        _ => Fault::None,
    };
    store.faults().set_script(holds_up);
    forget(&store).await;
    store.faults().clear();
    let why = registration.ended().await;
    assert_eq!(why, RegistrationError::TakenAway { bookie: identity().bookie });
    assert_eq!(found(&store).await, None);
    registration.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bookie_whose_metadata_are_gone_as_a_whole_was_not_forgotten() {
    let clock = Arc::new(ManualClock::default());
    let store = metadata_by(clock.clone()).await;
    let mut registration = start(&store, 7_001).await.expect("registered");
    let cookie = keys::cookie(&identity().bookie);
    let gone = Txn::default().delete(keys::CLUSTER).delete(&cookie);
    store.txn(gone).await.expect("deleted");
    clock.advance(TTL * 2);
    store.expire_leases();
    let requests = count_requests(&store, Fault::None);
    two_more(&requests).await;
    let still = tokio::time::timeout(Duration::from_millis(50), registration.ended()).await;
    assert!(still.is_err(), "it ends for {still:?}");
    assert_eq!(found(&store).await, None);
    put_identity(&store).await;
    until(&store, "it registers again", |record| record.is_some()).await;
    registration.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_cookie_of_its_disk_no_bookie_is_registered() {
    let store = metadata().await;
    // It is forgotten after the start has looked at the metadata.
    let checked = async || {
        let (bookie, shared) = (open(bookie_config()), store.clone());
        Checked::new(config(7_001), bookie, shared, Env::system()).await.expect("they are its own")
    };
    let (first, second) = (checked().await, checked().await);
    forget(&store).await;
    let taken_away = RegistrationError::TakenAway { bookie: identity().bookie };
    assert_eq!(first.register().await.expect_err("forgotten"), taken_away);
    // The name is another disk's by now.
    let Identity { bookie, cluster, .. } = identity();
    let cookie = CookieRecord { bookie_id: bookie.clone(), cluster_id: cluster, instance: 43 };
    put(&store, &keys::cookie(&bookie), &cookie).await;
    assert_eq!(second.register().await.expect_err("another disk's"), taken_away);
    assert_eq!(found(&store).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bookie_that_was_forgotten_waits_for_nobody_who_has_its_name() {
    let store = metadata().await;
    let first = start(&store, 7_001).await.expect("registered");
    let (bookie, shared) = (open(bookie_config()), store.clone());
    let second = Checked::new(config(7_002), bookie, shared, Env::system()).await;
    let second = second.expect("the metadata are its own");
    forget(&store).await;
    let why = second.register().await.expect_err("forgotten");
    assert_eq!(why, RegistrationError::TakenAway { bookie: identity().bookie });
    first.close().await;
}

#[tokio::test(start_paused = true)]
async fn whenever_the_cookie_goes_no_record_is_written_after_it() {
    let (mut registered, mut refused) = (0, 0);
    for moment in 0..20 {
        let env = runtime_env();
        let store = metadata_by(env.clock.clone()).await;
        store.faults().set_delay(Duration::from_millis(10));
        let (bookie, shared) = (open(bookie_config()), store.clone());
        let starting = Registration::start(config(7_001), bookie, shared, env);
        let forgetting = async {
            tokio::time::sleep(Duration::from_millis(moment * 5 + 2)).await;
            forget(&store).await;
            store.revision()
        };
        let (started, forgotten) = tokio::join!(starting, forgetting);
        let record = store.get(&keys::bookie(&identity().bookie)).await.expect("read");
        let after = record.is_some_and(|pair| pair.modified > forgotten);
        assert!(!after, "forgotten at moment {moment}");
        match started {
            Ok(_) => registered += 1,
            Err(RegistrationError::TakenAway { .. }) => refused += 1,
            Err(RegistrationError::Metadata(CollectError::NoCookie)) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert!(registered > 3 && refused > 3, "{registered} registered, {refused} refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_the_metadata_store() {
    let store = metadata().await;
    let refused = count_requests(&store, Fault::Unavailable);
    let (shared, bookie) = (store.clone(), open(bookie_config()));
    let starting = tokio::spawn(async move {
        Registration::start(config(7_001), bookie, shared, Env::system()).await
    });
    two_more(&refused).await;
    assert!(!starting.is_finished());
    store.faults().clear();
    starting.await.expect("no panic").expect("registered").close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_record_of_an_earlier_run_at_our_address_is_replaced_at_once() {
    let store = metadata().await;
    let long = RegistrationConfig { lease_ttl: Duration::from_secs(3_600), ..config(7_001) };
    let former = Registration::start(long, open(bookie_config()), store.clone(), Env::system());
    let former = former.await.expect("registered");
    let session = found(&store).await.expect("written").session;
    former.task.abort();
    let again = start(&store, 7_001).await.expect("its former self is gone");
    assert_ne!(found(&store).await.expect("written").session, session);
    again.close().await;
}

#[tokio::test(start_paused = true)]
async fn another_live_process_of_the_name_refuses_the_start_and_an_ended_one_is_waited_for() {
    let env = runtime_env();
    let store = metadata_by(env.clock.clone()).await;
    let start = async |port| {
        let (bookie, shared) = (open(bookie_config()), store.clone());
        Registration::start(config(port), bookie, shared, env.clone()).await
    };
    let first = start(7_001).await.expect("registered");
    let refused = start(7_002).await.expect_err("the name is taken");
    let words = "bookie b1 is running already at 127.0.0.1:7001; choose another bookie_id";
    assert_eq!(refused.to_string(), words);
    assert_eq!(found(&store).await.map(|record| record.address), Some("127.0.0.1:7001".to_owned()));
    // Killed: only its lease is left.
    first.task.abort();
    let second = start(7_002).await.expect("the other one has ended");
    second.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_went_back_refuse_the_start_until_that_is_accepted() {
    let store = metadata().await;
    let device = MemoryDevice::new(64 << 20);
    let opened = |config| {
        let device = Arc::new(device.clone());
        Bookie::open(config, identity(), device, Env::system()).expect("opens").0
    };
    let bookie = opened(bookie_config());
    put(&store, "tenants/t", &geminga_meta::record::TenantRecord { created_ms: 1 }).await;
    let registration =
        Registration::start(config(7_001), bookie.clone(), store, Env::system()).await;
    registration.expect("registered").close().await;
    let fence = FenceRequest { ledger: LedgerId(1), token: LedgerToken(1) };
    bookie.fence(fence).await.expect("fenced");
    bookie.close().await.expect("closed");
    let old = metadata().await;
    let bookie = opened(bookie_config());
    let refused =
        Registration::start(config(7_001), bookie.clone(), old.clone(), Env::system()).await;
    let refused = refused.expect_err("older metadata");
    assert!(refused.to_string().contains("bookie.accept_older_metadata"), "{refused}");
    assert_eq!(found(&old).await, None);
    bookie.close().await.expect("closed");
    let accepts = BookieConfig { accept_older_metadata: true, ..bookie_config() };
    let bookie = opened(accepts);
    let accepted =
        Registration::start(config(7_001), bookie.clone(), old.clone(), Env::system()).await;
    accepted.expect("accepted").close().await;
    bookie.close().await.expect("closed");
    // It is accepted once and for all.
    let again = Registration::start(config(7_001), opened(bookie_config()), old, Env::system());
    again.await.expect("registered").close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_highest_ledger_that_was_ever_stored_is_told_also_after_its_deletion() {
    let store = metadata().await;
    let device = MemoryDevice::new(64 << 20);
    let opened = || {
        let device = Arc::new(device.clone());
        Bookie::open(bookie_config(), identity(), device, Env::system()).expect("opens").0
    };
    let told = async |bookie: &Bookie| {
        let registration =
            Registration::start(config(7_001), bookie.clone(), store.clone(), Env::system());
        let registration = registration.await.expect("registered");
        let told = found(&store).await.expect("written").highest_ledger;
        registration.close().await;
        told
    };
    let bookie = opened();
    for ledger in [LedgerId(40), LedgerId(7)] {
        bookie.fence(FenceRequest { ledger, token: LedgerToken(1) }).await.expect("fenced");
    }
    assert_eq!(told(&bookie).await, LedgerId(40));
    // Neither is in the metadata.
    bookie.delete_hint(&[LedgerId(40), LedgerId(7)]);
    let collected = gc::Collector::new(bookie.clone(), store.clone()).look().await;
    assert_eq!(collected, Ok(2));
    bookie.close().await.expect("closed");
    let bookie = opened();
    assert_eq!(told(&bookie).await, LedgerId(40));
    bookie.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_in_order_notes_the_revision_that_the_metadata_have_by_then() {
    let store = metadata().await;
    let bookie = open(bookie_config());
    let registration =
        Registration::start(config(7_001), bookie.clone(), store.clone(), Env::system()).await;
    let registration = registration.expect("registered");
    put(&store, "tenants/t", &geminga_meta::record::TenantRecord { created_ms: 1 }).await;
    let last = store.revision().0;
    let noted = || bookie.log().with_state(|state| state.manifest.metadata_revision);
    assert!(noted() < last);
    registration.close().await;
    assert!(noted() >= last, "{} of {last}", noted());
    bookie.close().await.expect("closed");
}

#[tokio::test(start_paused = true)]
async fn a_sign_of_life_may_take_as_long_as_a_store_with_several_endpoints_needs() {
    let store = metadata_by(runtime_env().clock).await;
    let ttl = Duration::from_secs(2);
    let config = RegistrationConfig { lease_ttl: ttl, ..config(7_001) };
    let registration =
        Registration::start(config, open(bookie_config()), store.clone(), Env::system()).await;
    let registration = registration.expect("registered");
    let session = found(&store).await.expect("written").session;
    // More than half a lease, less than the store's own limit.
    store.faults().set_delay(ttl * 6 / 10);
    tokio::time::sleep(ttl * 2).await;
    store.faults().set_delay(Duration::ZERO);
    let record = found(&store).await.expect("the lease was kept alive");
    assert_eq!(record.session, session);
    registration.close().await;
}

/// A registration that notes the revision all the time.
async fn always_noting(ttl: Duration) -> (Arc<MemoryStore>, Registration) {
    let store = metadata_by(runtime_env().clock).await;
    let config = RegistrationConfig { lease_ttl: ttl, ..config(7_001) };
    let checked = Checked::new(config, open(bookie_config()), store.clone(), Env::system()).await;
    let mut checked = checked.expect("its own metadata");
    checked.0.noted_pause = Duration::from_millis(1);
    let registration = checked.register().await.expect("registered");
    (store, registration)
}

#[tokio::test(start_paused = true)]
async fn a_note_that_hangs_costs_no_lease_and_stays_the_only_one() {
    let ttl = Duration::from_secs(1);
    let (store, registration) = always_noting(ttl).await;
    let session = found(&store).await.expect("written").session;
    let reads = Arc::new(AtomicUsize::new(0));
    let asked = reads.clone();
    store.faults().set_script(move |request| match request {
        Request::Range(_) => {
            asked.fetch_add(1, Ordering::SeqCst);
            Fault::Silence
        }
        _ => Fault::None,
    });
    tokio::time::sleep(ttl * 3).await;
    store.faults().clear();
    let record = found(&store).await.expect("the lease was kept alive");
    assert_eq!(record.session, session);
    // Each of them is given up after half a lease, and only then comes the next.
    let reads = reads.load(Ordering::SeqCst);
    assert!((1..=10).contains(&reads), "{reads}");
    registration.close().await;
    assert_eq!(found(&store).await, None);
}

#[tokio::test(start_paused = true)]
async fn an_end_without_answers_takes_no_longer_than_the_lease() {
    let ttl = Duration::from_secs(2);
    let (store, registration) = always_noting(ttl).await;
    let asked = Arc::new(Notify::new());
    let unanswered = asked.clone();
    store.faults().set_script(move |request| {
        if matches!(request, Request::Lease) {
            unanswered.notify_one();
        }
        Fault::Silence
    });
    // A sign of life is under way, and a note.
    asked.notified().await;
    let begun = tokio::time::Instant::now();
    registration.close().await;
    let took = begun.elapsed();
    assert!(took <= ttl, "{took:?}");
}

#[test]
fn only_what_matters_is_worth_a_write() {
    let told = BookieRecord {
        bookie_id: identity().bookie,
        address: "a:1".to_owned(),
        zone: String::new(),
        writable: true,
        total_bytes: 1_000,
        free_bytes: 500,
        poisoned: false,
        session: 1,
        lease_ttl_ms: 1,
        release: String::new(),
        max_entry_bytes: 0,
        highest_ledger: LedgerId(0),
    };
    let (soon, late) = (Duration::ZERO, TOLD_PAUSE);
    let free = |free_bytes| BookieRecord { free_bytes, ..told.clone() };
    assert!(!differs(&told, &told, late));
    assert!(!differs(&told, &free(451), late), "less than a twentieth");
    assert!(differs(&told, &free(450), late) && differs(&told, &free(550), late));
    assert!(!differs(&told, &free(0), soon), "too soon for free space alone");
    let full = BookieRecord { writable: false, ..free(0) };
    assert!(differs(&told, &full, soon), "what it takes is told at once");
    assert!(differs(&full, &BookieRecord { poisoned: true, ..full.clone() }, soon));
}

/// Panics once when it is told to.
#[derive(Debug, Default)]
struct PanickyClock {
    clock: SystemClock,
    armed: AtomicBool,
}

impl Clock for PanickyClock {
    fn wall_ms(&self) -> u64 {
        self.clock.wall_ms()
    }

    fn monotonic(&self) -> Monotonic {
        assert!(!self.armed.swap(false, Ordering::SeqCst), "a defect");
        self.clock.monotonic()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_whose_keeping_panicked_is_kept_on() {
    let leases = Arc::new(ManualClock::default());
    let store = metadata_by(leases.clone()).await;
    let clock = Arc::new(PanickyClock::default());
    let env = Env { clock: clock.clone(), ..Env::system() };
    let bookie = open(bookie_config());
    let registration = Registration::start(config(7_001), bookie, store.clone(), env).await;
    let registration = registration.expect("registered");
    clock.armed.store(true, Ordering::SeqCst);
    until(&store, "it panics", |_| !clock.armed.load(Ordering::SeqCst)).await;
    leases.advance(TTL * 2);
    store.expire_leases();
    until(&store, "it registers again", |record| record.is_some()).await;
    registration.close().await;
    assert_eq!(found(&store).await, None);
}
