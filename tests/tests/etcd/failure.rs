//! etcd dies, freezes, changes its leader, is out of reach, or is full.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};

use geminga_meta::keys;
use geminga_meta::record::{CounterRecord, Nonce, Record, TenantRecord};
use geminga_meta::store::etcd::ConnectError;
use geminga_meta::store::{Compare, LeaseId, MAX_TXN_BYTES, Revision, TxnOutcome, WatchError};
use geminga_meta::update_loop::{Change, Current, RetryPolicy, UpdateError, update};
use geminga_meta::watch_cache::{CacheError, WatchCache};
use geminga_proto::topic_name::TenantName;

use super::*;

fn three_members() -> EtcdOptions {
    EtcdOptions { members: 3, ..EtcdOptions::default() }
}

async fn put_tenant(store: &dyn MetadataStore, name: &str) -> Result<(), StoreError> {
    let key = keys::tenant(&TenantName::new(name).expect("valid"));
    let value = TenantRecord { created_ms: 1 }.encode(Nonce::new(&*Env::system().random));
    store.txn(Txn::default().put(key, value.expect("valid"))).await.map(drop)
}

/// Waits until a view holds so many tenants, and knows that it is up to date.
async fn wait_for_tenants(cache: &WatchCache<TenantRecord>, count: usize) {
    let mut changes = cache.changes();
    let there = async {
        while cache.list().map_or(0, |listed| listed.len()) != count {
            changes.changed().await.expect("the cache lives");
        }
    };
    tokio::time::timeout(PATIENCE, there).await.expect("the view follows");
}

async fn wait_for_staleness(cache: &WatchCache<TenantRecord>) {
    let mut changes = cache.changes();
    let stale = async {
        while cache.list().is_ok() {
            changes.changed().await.expect("the cache lives");
        }
    };
    tokio::time::timeout(PATIENCE, stale).await.expect("the view is marked as stale");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_etcd_ends_watches_and_a_watched_view_recovers_when_it_is_back() {
    let mut real = Real::start().await;
    let store = real.store();
    put_tenant(&*store, "one").await.expect("written");
    let cache = WatchCache::<TenantRecord>::start(
        Arc::clone(&store),
        Env::system(),
        RetryPolicy::default(),
        keys::TENANTS,
    );
    let cache = cache.await.expect("read");
    put_tenant(&*store, "two").await.expect("written");
    wait_for_tenants(&cache, 2).await;
    let mut watch = store.watch("", real.store.last_revision()).await.expect("started");

    real.etcd.kill(0);
    let ended = tokio::time::timeout(PATIENCE, watch.next()).await.expect("it ends");
    let Err(WatchError::Lost(why)) = ended else { panic!("it goes on: {ended:?}") };
    assert!(why.contains(&real.etcd.url(0)), "it names the endpoint: {why}");
    wait_for_staleness(&cache).await;
    let one = keys::tenant(&TenantName::new("one").expect("valid"));
    assert_eq!(cache.get(&one), Err(CacheError::Stale));
    assert!(matches!(cache.get_anyway(&one), Ok(Some(_))), "it is known all the same");
    let error = put_tenant(&*store, "three").await.expect_err("etcd is gone");
    assert!(matches!(error, StoreError::Unavailable(_) | StoreError::Unknown(_)), "{error}");
    assert!(error.to_string().contains(&real.etcd.url(0)), "it names the endpoint: {error}");

    real.etcd.restart(0);
    wait_for_tenants(&cache, 2).await;
    eventually(async || put_tenant(&*store, "three").await).await;
    wait_for_tenants(&cache, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_etcd_is_noticed_by_watches_and_requests_within_their_deadline() {
    let home = home();
    let etcd = Etcd::start(home.path());
    let mut config = config(&etcd);
    config.request_timeout = Duration::from_millis(900);
    let store = connect(config).await;
    put(&*store, "a", "1").await.expect("written");
    let mut watch = store.watch("", store.last_revision()).await.expect("started");
    // Silence without an outage is no reason to end it.
    let quiet = tokio::time::timeout(Duration::from_millis(1_500), watch.next()).await;
    assert!(quiet.is_err(), "nothing has happened: {quiet:?}");

    etcd.freeze(0);
    let (start, limit) = (Instant::now(), Duration::from_secs(10));
    let ended = tokio::time::timeout(limit, watch.next()).await.expect("it is noticed");
    assert!(matches!(ended, Err(WatchError::Lost(_))), "{ended:?}");
    let error = put(&*store, "a", "2").await.expect_err("etcd is frozen");
    assert!(error.to_string().contains(&etcd.url(0)), "{error}");
    assert!(matches!(store.get("a").await, Err(StoreError::Unavailable(_))));
    assert!(start.elapsed() < limit, "each request has its deadline");

    etcd.thaw(0);
    eventually(async || put(&*store, "b", "1").await).await;
    assert!(store.get("b").await.expect("read").is_some());
}

/// Adds one to a counter, and answers how often it was surely added, and how often perhaps.
async fn increment(store: &dyn MetadataStore, key: &str) -> (u64, u64) {
    let mut maybe_twice = false;
    let change = |current: Current<'_, CounterRecord>| {
        maybe_twice |= current.maybe_applied;
        let next = current.stored.map_or(0, |stored| stored.record.next) + 1;
        Ok::<_, Infallible>(Change::Put(CounterRecord { next }))
    };
    let policy = RetryPolicy { attempts: 60, ..RetryPolicy::default() };
    match update(store, &Env::system(), policy, key, change).await {
        Ok(_) => (1, u64::from(maybe_twice)),
        Err(UpdateError::Store(StoreError::Unknown(_))) => (0, 1 + u64::from(maybe_twice)),
        Err(error) => panic!("an update failed: {error}"),
    }
}

async fn counted(store: &dyn MetadataStore, key: &str) -> u64 {
    let pair = store.get(key).await.expect("read").expect("it was written");
    CounterRecord::decode(&pair.value).expect("a counter").0.next
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_update_is_lost_or_made_twice_and_no_lease_ends_while_leaders_are_killed() {
    const TASKS: usize = 4;
    let home = home();
    let mut etcd = Etcd::start_with(home.path(), &three_members());
    let store = connect(config(&etcd)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let tasks = (0..TASKS).map(|task| {
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        tokio::spawn(async move {
            let own = format!("own/{task}");
            let (mut sure, mut shared) = (0, (0, 0));
            while !stop.load(Ordering::Relaxed) {
                // Nobody else writes it, so it can always be told.
                assert_eq!(increment(&*store, &own).await, (1, 0));
                sure += 1;
                let (once, perhaps) = increment(&*store, "shared").await;
                shared = (shared.0 + once, shared.1 + perhaps);
            }
            (own, sure, shared)
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let lease = store.grant_lease(Duration::from_secs(5)).await.expect("granted");
    let leased = store.txn(Txn::default().put_leased("leased", "v", lease)).await;
    leased.expect("written");
    let keeper = {
        let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                assert_ne!(store.keep_alive(lease).await, Err(StoreError::LeaseLost));
                // The pace of its keep-alives.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        })
    };
    for _ in 0..3 {
        let before = counted_when_there(&*store, "shared").await;
        let leader = etcd.leader();
        etcd.kill(leader);
        let follows = async { while counted_when_there(&*store, "shared").await < before + 20 {} };
        tokio::time::timeout(PATIENCE, follows).await.expect("updates go on with another leader");
        etcd.restart(leader);
    }
    stop.store(true, Ordering::Relaxed);
    keeper.await.expect("the lease is never lost");
    assert_ne!(store.keep_alive(lease).await, Err(StoreError::LeaseLost));
    assert!(eventually(async || store.get("leased").await).await.is_some());
    let (mut least, mut most) = (0, 0);
    for task in tasks {
        let (own, sure, (once, perhaps)) = task.await.expect("no update fails");
        assert_eq!(counted(&*store, &own).await, sure, "{own}");
        (least, most) = (least + once, most + once + perhaps);
    }
    let shared = counted(&*store, "shared").await;
    assert!((least..=most).contains(&shared), "{shared} is not in {least}..={most}");
}

async fn counted_when_there(store: &dyn MetadataStore, key: &str) -> u64 {
    let pair = eventually(async || store.get(key).await).await;
    pair.map_or(0, |pair| CounterRecord::decode(&pair.value).expect("a counter").0.next)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_nothing_is_answered_and_watches_end() {
    let home = home();
    let mut etcd = Etcd::start_with(home.path(), &three_members());
    let mut config = config(&etcd);
    config.request_timeout = Duration::from_secs(1);
    let store = connect(config).await;
    put(&*store, "a", "1").await.expect("written");
    let mut watch = store.watch("", store.last_revision()).await.expect("started");
    // The first endpoint stays, and the watch with it.
    etcd.kill(1);
    etcd.kill(2);
    let ended = tokio::time::timeout(PATIENCE, watch.next()).await.expect("it ends");
    assert!(matches!(ended, Err(WatchError::Lost(_))), "{ended:?}");
    let refused = store.get("a").await.expect_err("a minority knows nothing");
    let StoreError::Unavailable(why) = refused else { panic!("something else: {refused}") };
    assert!(etcd.endpoints().iter().all(|url| why.contains(url)), "{why}");
    let refused = put(&*store, "a", "2").await.expect_err("a minority decides nothing");
    assert!(matches!(refused, StoreError::Unavailable(_) | StoreError::Unknown(_)), "{refused}");
    etcd.restart(1);
    eventually(async || put(&*store, "b", "1").await).await;
    assert!(store.get("b").await.expect("read").is_some());
}

/// Keeps a lease alive over seconds in which the member that is asked first is silent.
async fn outlive_a_frozen_member(
    keep_alive: impl AsyncFn(&EtcdStore, LeaseId) -> Result<(), StoreError>,
) {
    let home = home();
    let etcd = Etcd::start_with(home.path(), &three_members());
    let mut config = config(&etcd);
    // The first endpoint is asked first.
    let frozen = etcd.leader();
    config.endpoints.rotate_left(frozen);
    let store = connect(config).await;
    let lease = store.grant_lease(Duration::from_secs(3)).await.expect("granted");
    store.txn(Txn::default().put_leased("leased", "v", lease)).await.expect("written");
    etcd.freeze(frozen);
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        assert_ne!(keep_alive(&*store, lease).await, Err(StoreError::LeaseLost));
        // The pace of its keep-alives.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(store.get("leased").await.expect("the others answer").is_some());
    etcd.thaw(frozen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_outlives_the_freezing_of_the_member_that_its_process_talks_to() {
    outlive_a_frozen_member(async |store, lease| store.keep_alive(lease).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_with_less_patience_than_the_store_gets_to_another_member_as_well() {
    outlive_a_frozen_member(async |store, lease| {
        let patience = Duration::from_millis(400);
        tokio::time::timeout(patience, store.keep_alive(lease)).await.unwrap_or(Ok(()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_of_one_second_ends_soon_after_its_last_keep_alive() {
    let real = Real::start().await;
    let store = real.store();
    let lease = store.grant_lease(Duration::from_secs(1)).await.expect("granted");
    store.txn(Txn::default().put_leased("leased", "v", lease)).await.expect("written");
    let mut watch = store.watch("", real.store.last_revision()).await.expect("started");
    for _ in 0..6 {
        // The pace of its keep-alives, for longer than the lease lasts.
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(store.keep_alive(lease).await, Ok(()));
    }
    assert!(store.get("leased").await.expect("read").is_some(), "it was kept");
    let last = Instant::now();
    let gone = tokio::time::timeout(PATIENCE, watch.next()).await.expect("it ends");
    assert_eq!(gone.expect("the watch goes on")[0].value, None);
    let after = last.elapsed();
    assert!(after >= Duration::from_millis(900), "too early, after {after:?}");
    assert!(after < Duration::from_secs(5), "too late, after {after:?}");
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseLost));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_far_shorter_than_etcds_shortest_is_refused_with_what_to_change() {
    let home = home();
    let slow = EtcdOptions { heartbeat_ms: 100, election_ms: 3_000, ..EtcdOptions::default() };
    let etcd = Etcd::start_with(home.path(), &slow);
    let store = connect(config(&etcd)).await;
    let refused = store.grant_lease(Duration::from_secs(1)).await;
    let Err(StoreError::Invalid(why)) = refused else { panic!("not refused: {refused:?}") };
    for word in ["lease_ttl", "--election-timeout", "--heartbeat-interval", "1 s", "5 s"] {
        assert!(why.contains(word), "{word} is not named: {why}");
    }
    let left = raw(&etcd).await.leases().await.expect("etcd answers");
    assert_eq!(left.leases().len(), 0, "the lease that was too long was given back");
    store.grant_lease(Duration::from_secs(3)).await.expect("5 s for 3 s is put up with");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_etcd_says_so_and_what_to_do_and_still_deletes_and_keeps_leases() {
    let home = home();
    let small = EtcdOptions { quota_bytes: Some(4 * 1024 * 1024), ..EtcdOptions::default() };
    let etcd = Etcd::start_with(home.path(), &small);
    let store = connect(config(&etcd)).await;
    let lease = store.grant_lease(Duration::from_secs(60)).await.expect("granted");
    // What can't hold writes nothing, and is refused as any write is: so a broker asks.
    let never = [Compare::Absent("k".to_owned()), Compare::Present("k".to_owned())];
    let never = Txn { compares: never.into(), ..Txn::default() }.put("k", "v");
    let before = store.last_revision();
    let asked = store.txn(never.clone()).await;
    assert!(matches!(asked, Ok(TxnOutcome::Conflict(_))), "{asked:?}");
    assert_eq!((store.get("k").await, store.last_revision()), (Ok(None), before));
    let large = vec![7; MAX_TXN_BYTES / 2];
    let mut written = 0;
    let full = loop {
        let key = format!("large/{written}");
        match store.txn(Txn::default().put(key, large.clone())).await {
            // etcd may have applied the very write with which it became full, and refused it.
            Ok(_) | Err(StoreError::Unknown(_)) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "etcd has no quota");
    };
    let StoreError::Full(why) = full else { panic!("it says something else: {full}") };
    for word in ["NOSPACE", "--quota-backend-bytes", "etcdctl alarm disarm"] {
        assert!(why.contains(word), "{word} is not named: {why}");
    }
    assert!(matches!(put(&*store, "small", "v").await, Err(StoreError::Full(_))));
    let asked = store.txn(never).await;
    assert!(matches!(asked, Err(StoreError::Full(_))), "{asked:?}");
    // Nor do those pass that go to etcd together.
    let many = (0..20).map(|number| {
        let store = store.clone();
        tokio::spawn(async move { put(&*store, &format!("many/{number}"), "v").await })
    });
    for put in many.collect::<Vec<_>>() {
        let refused = put.await.expect("no panic");
        assert!(matches!(refused, Err(StoreError::Full(_))), "{refused:?}");
    }
    let granted = store.grant_lease(Duration::from_secs(60)).await;
    assert!(matches!(granted, Err(StoreError::Full(_))), "{granted:?}");
    assert_eq!(store.keep_alive(lease).await, Ok(()));
    assert_eq!(store.get("large/0").await.map(|pair| pair.is_some()), Ok(true));
    for key in 0..written {
        store.txn(Txn::default().delete(format!("large/{key}"))).await.expect("deleted");
    }
    let mut operator = raw(&etcd).await;
    let now = i64::try_from(store.last_revision().0).expect("revisions are small");
    let physical = etcd_client::CompactionOptions::new().with_physical();
    operator.compact(now, Some(physical)).await.expect("compacted");
    operator.defragment().await.expect("defragmented");
    let alarms =
        operator.alarm(etcd_client::AlarmAction::Get, etcd_client::AlarmType::Nospace, None);
    for alarm in alarms.await.expect("etcd answers").alarms() {
        let mut options = etcd_client::AlarmOptions::new();
        options.with_member(alarm.member_id());
        let kind = etcd_client::AlarmType::Nospace;
        operator
            .alarm(etcd_client::AlarmAction::Deactivate, kind, Some(options))
            .await
            .expect("the alarm is cleared");
    }
    eventually(async || put(&*store, "small", "v").await).await;
}

/// etcd looks at its quota when it takes a request, and again when it has applied it; so what is
/// under way when the quota is used up may be applied and refused all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_a_full_etcd_refused_for_certain_is_not_there() {
    const WRITES: usize = 64;
    let home = home();
    let small = EtcdOptions { quota_bytes: Some(4 * 1024 * 1024), ..EtcdOptions::default() };
    let etcd = Etcd::start_with(home.path(), &small);
    let mut config = config(&etcd);
    config.request_timeout = PATIENCE;
    let store = connect(config).await;
    let large = vec![7; MAX_TXN_BYTES / 4];
    let writes = (0..WRITES).map(|write| {
        let (store, large) = (Arc::clone(&store), large.clone());
        tokio::spawn(async move {
            let key = format!("large/{write}");
            (store.txn(Txn::default().put(key.clone(), large)).await, key)
        })
    });
    for write in writes.collect::<Vec<_>>() {
        let (answer, key) = write.await.expect("no panic");
        let there = store.get(&key).await.expect("read").is_some();
        match answer {
            Ok(_) => assert!(there, "{key} was answered, but isn't there"),
            Err(StoreError::Full(why)) => {
                assert!(!there, "{key} is there, though it was refused: {why}");
            }
            Err(StoreError::Unknown(why)) => {
                assert!(why.contains("etcdctl alarm disarm"), "{why}");
            }
            Err(error) => panic!("{key}: {error}"),
        }
    }
    // From now on nothing is written, so what is refused is refused for certain.
    let settled = put(&*store, "small", "v").await;
    assert!(matches!(settled, Err(StoreError::Full(_))), "{settled:?}");
    assert_eq!(store.get("small").await, Ok(None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_out_of_reach_are_named_and_one_that_answers_is_enough() {
    let real = Real::start().await;
    let nobody = |listener: std::net::TcpListener| {
        format!("http://{}", listener.local_addr().expect("a listener has an address"))
    };
    let bind = || std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let dead = [nobody(bind()), nobody(bind())];
    let mut config = config(&real.etcd);
    config.endpoints = dead.to_vec();
    let start = Instant::now();
    let refused = EtcdStore::connect(config.clone(), Env::system()).await.expect_err("refused");
    let ConnectError::Store(StoreError::Unavailable(why)) = &refused else {
        panic!("it says something else: {refused}")
    };
    assert!(dead.iter().all(|url| why.contains(url)), "{why}");
    assert!(why.contains("refused"), "it says what is wrong: {why}");
    let patience = Duration::from_millis(400);
    let impatient = EtcdStore::connect_within(config.clone(), Env::system(), patience).await;
    assert!(matches!(impatient, Err(ConnectError::Store(StoreError::Unavailable(_)))));
    let waited = start.elapsed();
    assert!(waited >= patience && waited < PATIENCE, "{waited:?}");

    // A server that takes connections and says nothing.
    let silent = bind();
    let silent_url = format!("http://{}", silent.local_addr().expect("it has an address"));
    config.endpoints = vec![dead[0].clone(), silent_url.clone(), real.etcd.url(0)];
    let store = connect(config.clone()).await;
    put(&*store, "a", "1").await.expect("the third endpoint is etcd");
    config.endpoints = vec![silent_url.clone()];
    config.request_timeout = Duration::from_millis(300);
    let refused = EtcdStore::connect(config, Env::system()).await.expect_err("it never answers");
    assert!(refused.to_string().contains(&silent_url), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_waits_for_an_etcd_that_comes_up_late() {
    let mut real = Real::start().await;
    real.etcd.stop(0);
    let config = config(&real.etcd);
    let late = tokio::spawn(EtcdStore::connect_within(config, Env::system(), PATIENCE));
    // Time to end in, if it didn't wait.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!late.is_finished(), "it waits");
    real.etcd.restart(0);
    let store = late.await.expect("no panic").expect("connected");
    put(&store, "a", "1").await.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_the_largest_records_come_whole_and_each_pair_once() {
    const PAIRS: usize = 24;
    let real = Real::start().await;
    let store = real.store();
    let value = vec![7; MAX_TXN_BYTES - 64];
    for key in 0..PAIRS {
        let key = format!("large/{key:03}");
        let put = Txn::default().when(Compare::Absent(key.clone())).put(key, value.clone());
        // Megabytes on a slow disk: one that was done after all is in the way of its like.
        eventually(async || store.txn(put.clone()).await).await;
    }
    let (mut seen, mut pages) = (Vec::new(), 0);
    loop {
        let after = seen.last().cloned();
        let page = store.range("large/", after.as_deref(), 1_000).await.expect("read");
        pages += 1;
        assert!(page.pairs.iter().all(|pair| pair.value == value));
        seen.extend(page.pairs.into_iter().map(|pair: geminga_meta::store::KeyValue| pair.key));
        if !page.more {
            break;
        }
    }
    assert!(pages > 1, "{PAIRS} of them don't fit into one answer");
    assert_eq!(seen, (0..PAIRS).map(|key| format!("large/{key:03}")).collect::<Vec<_>>());
    // A watch that starts before all of them gets them, too, or says that it can't.
    let mut watch = store.watch("large/", Revision(1)).await.expect("started");
    let mut events = 0;
    while events < PAIRS {
        match tokio::time::timeout(PATIENCE, watch.next()).await.expect("it goes on") {
            Ok(more) => events += more.len(),
            Err(WatchError::Lost(why)) => {
                assert!(why.contains("too large"), "{why}");
                return;
            }
            Err(error) => panic!("nothing was compacted: {error}"),
        }
    }
}
