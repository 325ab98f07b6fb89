//! The storage node's port, the same in a standalone and in a process of its own.

use geminga_bookie::bookie::Bookie;
use geminga_bookie::service::BookieService;
use tonic::transport::server::TcpIncoming;

use super::listeners::Port;
use super::parts::Parts;

/// Serves a bookie's port.
pub(super) fn serve(parts: &mut Parts, port: Port, bookie: Bookie) {
    let stopped = parts.stopped();
    parts.spawn("storage node", async move {
        let incoming = TcpIncoming::from(port.listener).with_nodelay(Some(true));
        let service = BookieService::new(bookie).into_server();
        let served = tonic::transport::Server::builder()
            .serve_with_incoming_shutdown(service, incoming, stopped)
            .await;
        if let Err(error) = served {
            tracing::error!(%error, "the storage node's port failed");
        }
    });
}
