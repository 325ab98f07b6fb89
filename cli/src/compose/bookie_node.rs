//! The storage node's port, the same in a standalone and in a process of its own.

use geminga_bookie::bookie::Bookie;
use geminga_bookie::service::{self, ServiceConfig};
use geminga_broker::frontend::admin::Readiness;

use super::listeners::Port;
use super::parts::Parts;

/// Has readiness end once the disk has failed: what reads may go on, nothing is written any more,
/// and somebody has to look.
pub(super) fn ask_for_disk(readiness: &Readiness, bookie: Bookie) {
    readiness.ask(move || {
        bookie.poisoned().map(|why| {
            format!(
                "the bookie's disk has failed, and it takes no writes until it is started: {why}"
            )
        })
    });
}

/// Serves a bookie's port.
pub(super) fn serve(parts: &mut Parts, port: Port, bookie: Bookie) {
    let stopped = parts.stopped();
    parts.spawn("storage node", async move {
        let config = ServiceConfig::default();
        if let Err(error) = service::serve(port.listener, bookie, config, stopped).await {
            tracing::error!(%error, "the storage node's port failed");
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use geminga_bookie::config::BookieConfig;
    use geminga_bookie::cookie::Identity;
    use geminga_bookie::device::memory::{MemoryDevice, Operation};
    use geminga_proto::env::Env;
    use geminga_proto::id::{BookieId, ClusterId, LedgerId, LedgerToken};
    use geminga_proto::storage::{BookieError, FenceRequest};

    use super::*;

    #[tokio::test]
    async fn a_bookie_whose_disk_has_failed_is_not_ready_any_more() {
        for failing in [Operation::Write, Operation::Sync] {
            let device = MemoryDevice::new(64 << 20);
            let config = BookieConfig {
                segment_bytes: Some(1 << 20),
                first_segment_bytes: 256 << 10,
                max_entry_bytes: 128 << 10,
                ..BookieConfig::default()
            };
            let (name, cluster) = (BookieId::new("b1"), ClusterId::new("c"));
            let name = name.expect("a name");
            let identity = Identity::detached(name, cluster.expect("a name"), 42);
            let (disk, env) = (Arc::new(device.clone()), Env::system());
            let (bookie, _) = Bookie::open(config, identity, disk, env).expect("opens");
            let readiness = Readiness::default();
            readiness.set(true);
            ask_for_disk(&readiness, bookie.clone());
            assert_eq!(readiness.why_not(), None);
            device.fail(failing, 0);
            let fence = FenceRequest { ledger: LedgerId(1), token: LedgerToken(7) };
            assert_eq!(bookie.fence(fence).await, Err(BookieError::Io));
            let why = readiness.why_not().expect("it isn't ready");
            assert!(why.contains("the bookie's disk has failed"), "{why}");
            assert!(bookie.close().await.is_err(), "an end in order tells of it");
        }
    }
}
