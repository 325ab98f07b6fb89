//! The auditor and workers as they run: what is lost is found and mended without anybody asking.

use geminga_meta::record::{
    BookieRecord, CookieRecord, DrainKind, DrainRecord, Nonce, OwnershipRecord, Record,
};
use geminga_meta::store::{MetadataStore, Txn};
use geminga_proto::id::{BrokerId, ClusterId};

use super::scene::{LEDGER, Scene, config, name};
use super::*;
use crate::repair::RepairAuditor;

/// Two processes, each with a worker and a candidate for the auditor's office.
struct Running {
    stop: tokio::sync::watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

fn start(scene: &Scene) -> Running {
    let stop = tokio::sync::watch::Sender::new(false);
    let mut tasks = Vec::new();
    for name in ["left", "right"] {
        let stopped = || {
            let mut told = stop.subscribe();
            async move { drop(told.wait_for(|stop| *stop).await) }
        };
        let ledgers = scene.ledgers.clone();
        let auditor = RepairAuditor::new(config(name), ledgers).expect("valid");
        tasks.push(tokio::spawn(auditor.run(stopped())));
        tasks.push(tokio::spawn(scene.worker(name).run(stopped())));
    }
    Running { stop, tasks }
}

impl Running {
    async fn end(self) {
        self.stop.send_replace(true);
        for task in self.tasks {
            task.await.expect("ends");
        }
    }
}

async fn until(what: &str, seconds: u64, mut holds: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
    while !holds().await {
        assert!(tokio::time::Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_bookie_had_is_elsewhere_some_time_after_the_grace_period_and_not_before() {
    let scene = Scene::new(4).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2]]).await;
    let running = start(&scene);
    tokio::time::sleep(Duration::from_secs(5)).await;
    scene.lose(0);
    tokio::time::sleep(Duration::from_secs(29)).await;
    assert_eq!(scene.task().await, None, "it is only away");
    until("it is repaired", 60, async || {
        let metadata = scene.metadata().await.expect("it is there");
        !metadata.fragments[0].bookies.contains(&name(0))
    })
    .await;
    scene.assert_whole(3).await;
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_attempts_panic_tries_again() {
    let scene = Scene::new(4).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2]]).await;
    scene.lose(0);
    scene.queue(&[super::scene::missing(0)]).await;
    let most = config("one").concurrent_ledgers;
    scene.counting.panics.store(most, Ordering::Relaxed);
    let worker = scene.worker("one");
    let metrics = Arc::clone(&worker.shared.metrics);
    let running = tokio::spawn(worker.run(std::future::pending()));
    until("it is repaired", 60, async || scene.task().await.is_none()).await;
    assert_eq!(metrics.failures.load(Ordering::Relaxed), most as u64);
    scene.assert_whole(3).await;
    running.abort();
}

async fn drain(scene: &Scene, index: usize, kind: DrainKind) {
    let random = &*scene.env.random;
    let (bookie_id, cluster_id) = (name(index), ClusterId::new("c").expect("valid"));
    let cookie = CookieRecord { bookie_id: bookie_id.clone(), cluster_id, instance: 7 };
    let mark = DrainRecord { bookie_id: bookie_id.clone(), kind, started_ms: 0 };
    let txn = Txn::default()
        .put(keys::cookie(&bookie_id), cookie.encode(Nonce::new(random)).expect("valid"))
        .put(keys::drain(&bookie_id), mark.encode(Nonce::new(random)).expect("valid"));
    scene.store.txn(txn).await.expect("written");
    scene.placement.view.lock().draining.push(bookie_id);
}

#[tokio::test(start_paused = true)]
async fn a_drained_bookies_name_is_free_once_nothing_is_on_it_and_it_has_ended() {
    let scene = Scene::new(4).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2], &[1, 2, 0]]).await;
    let registered = BookieRecord {
        bookie_id: name(0),
        address: "h:1".to_owned(),
        zone: String::new(),
        writable: true,
        total_bytes: 1,
        free_bytes: 1,
        poisoned: false,
        session: 1,
        lease_ttl_ms: 1,
        release: String::new(),
        max_entry_bytes: 0,
        highest_ledger: LedgerId(0),
    };
    let value = registered.encode(Nonce::new(&*scene.env.random)).expect("valid");
    scene.store.txn(Txn::default().put(keys::bookie(&name(0)), value)).await.expect("written");
    let running = start(&scene);
    drain(&scene, 0, DrainKind::Decommission).await;
    until("it is empty", 30, async || {
        let metadata = scene.metadata().await.expect("it is there");
        !metadata.fragments.iter().any(|fragment| fragment.bookies.contains(&name(0)))
    })
    .await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let cookie = async || scene.store.get(&keys::cookie(&name(0))).await.expect("read");
    assert!(cookie().await.is_some(), "while it runs it needs its cookie");
    scene.store.txn(Txn::default().delete(keys::bookie(&name(0)))).await.expect("written");
    scene.lose(0);
    until("its name is free", 60, async || cookie().await.is_none()).await;
    assert_eq!(scene.store.get(&keys::drain(&name(0))).await, Ok(None));
    scene.assert_whole(3).await;
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_open_ledger_on_a_lost_bookie_is_closed_if_nobody_owns_it_and_then_repaired() {
    let scene = Scene::new(4).await;
    scene.ledger(LedgerState::Open, &[&[0, 1, 2]]).await;
    let running = start(&scene);
    scene.lose(0);
    drain(&scene, 0, DrainKind::Lost).await;
    until("it is repaired", 60, async || {
        let metadata = scene.metadata().await.expect("it is there");
        let named = metadata.fragments.iter().any(|it| it.bookies.contains(&name(0)));
        metadata.state == LedgerState::Closed && !named && scene.task().await.is_none()
    })
    .await;
    let metadata = scene.metadata().await.expect("it is there");
    assert_eq!(metadata.last_entry.0, Some(EntryId(9)), "nothing is lost");
    scene.assert_whole(3).await;
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_open_ledger_is_left_to_its_owner_for_as_long_as_the_grace_period() {
    use geminga_meta::record::{LedgerOwner, SessionId};
    let scene = Scene::new(4).await;
    scene.ledger(LedgerState::Open, &[&[0, 1, 2]]).await;
    let mut metadata = scene.metadata().await.expect("it is there");
    let bundle: geminga_meta::bundle::BundleId = "t/n/00000000-ffffffff".parse().expect("valid");
    metadata.owner = LedgerOwner::StateLog(bundle.clone());
    scene.rewrite(&metadata).await;
    let owner = OwnershipRecord {
        broker_id: BrokerId::new("k").expect("valid"),
        service_url: String::new(),
        admin_url: String::new(),
        session: SessionId(1),
    };
    let value = owner.encode(Nonce::new(&*scene.env.random)).expect("valid");
    scene.store.txn(Txn::default().put(keys::ownership(&bundle), value)).await.expect("written");
    let running = start(&scene);
    drain(&scene, 0, DrainKind::Decommission).await;
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(scene.metadata().await, Some(metadata), "it is its owner's");
    let task = scene.task().await.expect("it waits");
    assert!(task.last_error.contains("open"), "{}", task.last_error);
    until("it is repaired", 120, async || scene.task().await.is_none()).await;
    scene.assert_whole(3).await;
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_read_hides_nothing_else() {
    let scene = Scene::new(4).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2]]).await;
    let other = LedgerId(LEDGER.0 - 1);
    let garbage = Txn::default()
        .put(keys::ledger(other), "?")
        .put(keys::repair(other), "?")
        .put(keys::drain(&name(9)), "?");
    scene.store.txn(garbage).await.expect("written");
    let running = start(&scene);
    scene.lose(0);
    drain(&scene, 0, DrainKind::Lost).await;
    until("it is repaired", 60, async || {
        let metadata = scene.metadata().await.expect("it is there");
        !metadata.fragments[0].bookies.contains(&name(0))
    })
    .await;
    // Nobody can tell whether the other ledger is on it.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(scene.store.get(&keys::cookie(&name(0))).await.expect("read").is_some());
    scene.store.txn(Txn::default().delete(keys::ledger(other))).await.expect("written");
    until("its name is free", 60, async || {
        scene.store.get(&keys::cookie(&name(0))).await.expect("read").is_none()
    })
    .await;
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn reports_of_damage_are_dealt_with_at_once() {
    let scene = Scene::new(3).await;
    scene.ledger(LedgerState::Closed, &[&[0, 1, 2]]).await;
    let running = start(&scene);
    tokio::time::sleep(Duration::from_secs(5)).await;
    scene.damage(2, EntryId(5));
    let (meta, env) = (scene.store.as_ref(), &scene.env);
    let range = EntryId(5)..=EntryId(5);
    report_damage(meta, env, LEDGER, &name(2), range).await.expect("told");
    until("it is mended", 5, async || scene.task().await.is_none()).await;
    scene.assert_whole(3).await;
    running.end().await;
}
