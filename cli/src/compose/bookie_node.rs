//! The storage node's port, the same in a standalone and in a process of its own.

use geminga_bookie::bookie::Bookie;
use geminga_bookie::service::{self, ServiceConfig};

use super::listeners::Port;
use super::parts::Parts;

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
