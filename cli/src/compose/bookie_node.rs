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
