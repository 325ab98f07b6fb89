//! The etcd that answers isn't the one that was known: nothing is written to it, ever.

use geminga_meta::cluster;
use geminga_meta::store::{Revision, WatchError};

use super::*;

/// Demands that a store refuses everything as replaced, and that etcd has not been written to.
async fn assert_replaced(store: &EtcdStore, etcd: &Etcd, word: &str) {
    let mut client = raw(etcd).await;
    let before = client.get("x", None).await.expect("etcd answers");
    let before = before.header().expect("a header").revision();
    let refused = |answer: Result<(), StoreError>| {
        let Err(StoreError::Replaced(why)) = answer else { panic!("not refused: {answer:?}") };
        assert!(why.contains(word), "{why}");
    };
    // The very first request may be a write.
    refused(first_answer(store).await);
    refused(put(store, "a", "2").await);
    refused(store.txn(Txn::default().delete("a")).await.map(drop));
    refused(store.get("a").await.map(drop));
    refused(store.range("", None, 1).await.map(drop));
    refused(store.watch("", Revision(1)).await.map(drop));
    refused(store.grant_lease(Duration::from_secs(5)).await.map(drop));
    let after = client.get("x", None).await.expect("etcd answers");
    assert_eq!(after.header().expect("a header").revision(), before, "it was written to");
    let leases = client.leases().await.expect("etcd answers");
    assert_eq!(leases.leases().len(), 0, "a lease was granted");
}

/// What comes of a write once the broken connection is noticed.
async fn first_answer(store: &EtcdStore) -> Result<(), StoreError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match put(store, "a", "2").await {
            Err(StoreError::Unavailable(_) | StoreError::Unknown(_))
                if Instant::now() < deadline => {}
            answer => return answer,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_restored_from_an_older_backup_is_never_used_again() {
    let mut real = Real::start().await;
    put(&*real.store, "a", "1").await.expect("written");
    real.etcd.stop(0);
    let backup = real.etcd.data_dir(0).with_extension("backup");
    Etcd::copy_data(&real.etcd.data_dir(0), &backup);
    real.etcd.restart(0);
    for _ in 0..10 {
        eventually(async || put(&*real.store, "a", "2").await).await;
    }
    let last = real.store.last_revision();
    let mut watch = real.store.watch("", last).await.expect("started");
    real.etcd.stop(0);
    Etcd::copy_data(&backup, &real.etcd.data_dir(0));
    real.etcd.restart(0);
    assert_replaced(&real.store, &real.etcd, "older backup").await;
    let ended = tokio::time::timeout(PATIENCE, watch.next()).await.expect("it ends");
    assert!(matches!(ended, Err(WatchError::Lost(_))), "{ended:?}");

    // A process that knows nothing of it takes it as it is; bookies know how far it was.
    let store = connect(config(&real.etcd)).await;
    assert_eq!(store.get("a").await.expect("read").expect("there").value.as_ref(), b"1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_only_keeps_a_lease_knows_how_far_etcd_is() {
    let real = Real::start().await;
    let idle = connect(config(&real.etcd)).await;
    let lease = idle.grant_lease(Duration::from_secs(5)).await.expect("granted");
    for _ in 0..10 {
        put(&*real.store, "a", "1").await.expect("written");
    }
    assert!(idle.last_revision() < real.store.last_revision());
    idle.keep_alive(lease).await.expect("kept");
    assert_eq!(idle.last_revision(), real.store.last_revision());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_etcd_at_the_same_address_is_never_used() {
    let mut real = Real::start().await;
    put(&*real.store, "a", "1").await.expect("written");
    real.etcd.kill(0);
    real.etcd.wipe(0);
    real.etcd.set_token("another");
    real.etcd.restart(0);
    assert_replaced(&real.store, &real.etcd, "cluster id").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_etcd_with_the_same_cluster_id_and_a_higher_revision_is_never_used() {
    let mut real = Real::start().await;
    let env = Env::system();
    let made = cluster::init(&*real.store, &env, 4).await.expect("initialised");
    let store = connect(config(&real.etcd)).await;
    for store in [&store, &real.store] {
        assert_eq!(cluster::read(&**store).await, Ok(made.clone()));
    }
    real.etcd.kill(0);
    real.etcd.wipe(0);
    real.etcd.restart(0);
    let mut client = raw(&real.etcd).await;
    for _ in 0..20 {
        client.put("elsewhere", "v", None).await.expect("written");
    }
    assert_replaced(&store, &real.etcd, "no cluster").await;
    // Nor if it has a cluster of that name by now.
    let other = connect(config(&real.etcd)).await;
    cluster::init(&*other, &env, 4).await.expect("initialised");
    assert_replaced(&real.store, &real.etcd, "another record").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_the_right_etcd_answers_after_another_one_has_is_unknown() {
    let (one, two) = (Real::start().await, Real::start().await);
    let mut config = config(&one.etcd);
    config.endpoints.push(two.etcd.url(0));
    config.request_timeout = Duration::from_secs(6);
    let store = connect(config).await;
    put(&*store, "a", "1").await.expect("written");
    // The one that answered first is the right one.
    let is_one = one.store.get("a").await.expect("read").is_some();
    let (right, _other) = if is_one { (one, two) } else { (two, one) };
    right.etcd.freeze(0);
    let write = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { put(&*store, "a", "2").await })
    };
    // Half of its time goes by at the frozen one; then it asks the other one.
    let read = store.get("a").await;
    assert!(matches!(read, Err(StoreError::Replaced(_))), "{read:?}");
    right.etcd.thaw(0);
    let written = write.await.expect("no panic");
    let there = eventually(async || right.store.get("a").await).await.expect("it is there");
    assert_eq!(there.value.as_ref(), b"2", "it was done: {written:?}");
    let Err(StoreError::Unknown(why)) = written else { panic!("it is guessed: {written:?}") };
    assert!(why.contains("replaced"), "{why}");
    let next = put(&*store, "a", "3").await;
    assert!(matches!(next, Err(StoreError::Replaced(_))), "nothing is sent any more: {next:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_in_one_etcd_do_not_see_each_other() {
    let real = Real::start().await;
    let mut config = config(&real.etcd);
    config.prefix = config.prefix.replace("test", "test2");
    let other = connect(config).await;
    let env = Env::system();
    let one = cluster::init(&*real.store, &env, 4).await.expect("initialised");
    assert_eq!(cluster::read(&*other).await, Err(cluster::ClusterError::NotInitialised));
    let start = other.last_revision();
    let mut watch = other.watch("", start).await.expect("started");
    put(&*real.store, "a", "1").await.expect("written");
    let two = cluster::init(&*other, &env, 4).await.expect("its part is empty");
    assert_ne!(one.cluster_id, two.cluster_id);
    let events = tokio::time::timeout(PATIENCE, watch.next()).await.expect("they come");
    let mut keys: Vec<String> =
        events.expect("the watch goes on").into_iter().map(|event| event.key).collect();
    keys.sort();
    assert_eq!(keys, ["cluster", "namespaces/public/default", "tenants/public"]);
    assert_eq!(other.get("a").await, Ok(None));
}
