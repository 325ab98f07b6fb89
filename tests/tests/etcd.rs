//! The metadata's contract on a real etcd, and what happens when that etcd dies, freezes, changes
//! its leader, is full, refuses, or is another one than before.

#[path = "etcd/access.rs"]
mod access;
#[path = "etcd/failure.rs"]
mod failure;
#[path = "etcd/replaced.rs"]
mod replaced;
#[path = "etcd/together.rs"]
mod together;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use geminga_meta::store::contract::Harness;
use geminga_meta::store::{EtcdConfig, EtcdStore, MetadataStore, StoreError, Txn};
use geminga_proto::env::Env;
use geminga_proto::id::ClusterId;
use geminga_tests::etcd::{Etcd, EtcdOptions};
use geminga_tests::standalone::home;
use tempfile::TempDir;

/// Longer than anything takes; a limit, never a measurement.
const PATIENCE: Duration = Duration::from_secs(30);

fn config(etcd: &Etcd) -> EtcdConfig {
    let mut config = EtcdConfig::new(&ClusterId::new("test").expect("valid"));
    config.endpoints = etcd.endpoints();
    config
}

async fn connect(config: EtcdConfig) -> Arc<EtcdStore> {
    let store = EtcdStore::connect_within(config, Env::system(), PATIENCE).await;
    Arc::new(store.expect("etcd answers"))
}

/// A client of etcd for what the store has no business with.
async fn raw(etcd: &Etcd) -> etcd_client::Client {
    etcd_client::Client::connect(etcd.endpoints(), None).await.expect("etcd answers")
}

async fn put(store: &dyn MetadataStore, key: &str, value: &str) -> Result<(), StoreError> {
    store.txn(Txn::default().put(key, value.to_owned())).await.map(drop)
}

/// Repeats a request until it succeeds.
async fn eventually<T>(mut request: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match request().await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "it never succeeded: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An etcd of its own for each scenario, since revisions and compaction are etcd's as a whole.
struct Real {
    store: Arc<EtcdStore>,
    etcd: Etcd,
    _home: TempDir,
}

impl Real {
    async fn start() -> Self {
        let home = home();
        let etcd = Etcd::start(home.path());
        let store = connect(config(&etcd)).await;
        Self { store, etcd, _home: home }
    }
}

#[async_trait]
impl Harness for Real {
    fn store(&self) -> Arc<dyn MetadataStore> {
        Arc::clone(&self.store) as Arc<dyn MetadataStore>
    }

    async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn compact(&self) {
        let now = i64::try_from(self.store.last_revision().0).expect("revisions are small");
        raw(&self.etcd).await.compact(now, None).await.expect("etcd compacts");
    }
}

geminga_meta::contract_suite!(Real::start().await);
