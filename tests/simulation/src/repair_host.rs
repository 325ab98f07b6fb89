//! What a bookie does for the others: a worker that repairs, and a candidate for the auditor's
//! office, as in a real bookie's process.

use std::sync::Arc;
use std::time::Duration;

use geminga_ledger::placement::{WatchedPlacement, WatchedPlacementConfig};
use geminga_ledger::repair::worker::RepairWorker;
use geminga_ledger::repair::{RepairAuditor, RepairConfig};
use geminga_ledger::store::LedgerStore;
use geminga_meta::store::MetadataStore;
use geminga_proto::env::Env;
use geminga_proto::id::BookieId;

use crate::broker_host::ledger_config;
use crate::mutant::Mutant;
use crate::network::Place;
use crate::shared::Shared;
use crate::transport::SimTransport;

/// Before a start is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// Settings with which a bookie that is away is given up while the run goes on.
fn config(bookie: &BookieId) -> RepairConfig {
    RepairConfig {
        name: bookie.to_string(),
        grace: Duration::from_millis(2_500),
        scan_interval: Duration::from_millis(700),
        lease_ttl: Duration::from_secs(2),
        ..RepairConfig::default()
    }
}

/// Repairs until it is dropped.
pub(crate) async fn run(
    shared: Arc<Shared>,
    place: Place,
    bookie: BookieId,
    meta: Arc<dyn MetadataStore>,
    env: Env,
) {
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
    let ledgers = LedgerStore::new(ledger_config(), env, meta, transport, placement);
    let ledgers = ledgers.expect("valid settings, inside a runtime");
    let auditor = RepairAuditor::new(config(&bookie), ledgers.clone()).expect("valid settings");
    let worker =
        RepairWorker::new(config(&bookie), ledgers, Arc::default()).expect("valid settings");
    let worker = worker.planted(shared.mutant.and_then(Mutant::of_repair));
    let never = std::future::pending;
    tokio::select! {
        biased;
        () = auditor.run(never()) => {}
        () = worker.run(never()) => {}
    }
}
