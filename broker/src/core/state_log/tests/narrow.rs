//! A state log whose ledger got too few bookies: what happens when a wider one can't be made.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use geminga_meta::bundle::{BundleId, HashRange};
use geminga_meta::keys;
use geminga_meta::read::read;
use geminga_meta::record::{BundleRecord, NamespacePolicies, NamespaceRecord, Nonce, Record};
use geminga_meta::store::memory::{Fault, Request};
use geminga_meta::store::{MetadataStore, Txn};
use geminga_proto::env::{Env, SeededRandom};
use geminga_proto::topic_name::NamespaceName;

use crate::core::state_log::{StateLog, StateLogConfig};
use crate::testing::Cluster;

/// Longer than it takes to look at the width again.
const A_LOOK: Duration = Duration::from_secs(11);

fn bundle() -> BundleId {
    let namespace = NamespaceName::new("public", "default").expect("valid");
    BundleId { namespace, range: HashRange::ALL }
}

/// A log that was opened with two bookies of three; all are there now.
async fn narrow() -> (Cluster, StateLog) {
    let cluster = Cluster::with_bookies(3, 3, 2);
    cluster.set_registered(2);
    let clock = Arc::clone(&cluster.clock) as _;
    let env = Env { clock, random: Arc::new(SeededRandom::new(3)) };
    let record = NamespaceRecord {
        created_ms: 1,
        bundle_bounds: NamespaceRecord::even_bounds(1),
        policies: NamespacePolicies::default(),
    };
    let value = record.encode(Nonce::new(&*env.random)).expect("valid");
    let key = keys::namespace(&bundle().namespace);
    cluster.meta.txn(Txn::default().put(key, value)).await.expect("written");
    let meta: Arc<dyn MetadataStore> = Arc::clone(&cluster.meta) as _;
    let config = StateLogConfig::default();
    let log = StateLog::open(bundle(), cluster.ledgers(), meta, env, config).await.expect("opens");
    assert_eq!(log.writer().write_quorum(), 2);
    cluster.set_registered(3);
    (cluster, log)
}

async fn chain(cluster: &Cluster) -> usize {
    let stored = read::<BundleRecord>(&*cluster.meta, &keys::bundle(&bundle())).await;
    stored.expect("readable").expect("there").record.state_ledgers.len()
}

/// Counts transactions, which all fail, as reads do if `reads` says so.
fn refuse(cluster: &Cluster, reads: bool) -> Arc<AtomicUsize> {
    let txns = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&txns);
    cluster.meta.faults().set_script(move |request| match request {
        Request::Txn(_) => {
            counted.fetch_add(1, Ordering::SeqCst);
            Fault::Unavailable
        }
        _ if reads => Fault::Unavailable,
        _ => Fault::None,
    });
    txns
}

#[tokio::test(start_paused = true)]
async fn nothing_is_tried_while_the_metadata_are_away_and_then_it_is_soon() {
    let (cluster, log) = narrow().await;
    let txns = refuse(&cluster, true);
    tokio::time::sleep(A_LOOK * 4).await;
    assert_eq!(txns.load(Ordering::SeqCst), 0);
    cluster.meta.faults().clear();
    tokio::time::sleep(A_LOOK).await;
    assert_eq!((log.writer().write_quorum(), chain(&cluster).await), (3, 2));
    assert_eq!(log.close().await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_while_the_log_is_closed_is_no_reason_to_end_it() {
    let (cluster, log) = narrow().await;
    let txns = refuse(&cluster, false);
    cluster.meta.faults().set_delay(Duration::from_millis(50));
    let begun = async {
        while txns.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(A_LOOK, begun).await.expect("a wider one is tried");
    // That transaction is under way, and will fail.
    cluster.meta.faults().clear();
    assert_eq!(log.close().await, Ok(()));
    assert_eq!(chain(&cluster).await, 1);
}
