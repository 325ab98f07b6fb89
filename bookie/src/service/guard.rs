//! Who may open a stream, and how many there are.
//!
//! A request names in its headers which cluster and bookie it is meant for, and is refused by any
//! other, also on a connection whose handshake was with somebody else, as behind an address that
//! has changed hands.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};
use geminga_proto::{BOOKIE_HEADER, CLUSTER_HEADER};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::clipped;
use crate::cookie::Identity;

/// Refuses a request that is meant for another cluster or bookie, or doesn't say for which.
pub(super) fn check_meant(metadata: &MetadataMap, identity: &Identity) -> Result<(), Status> {
    for (header, ours) in
        [(CLUSTER_HEADER, identity.cluster.as_str()), (BOOKIE_HEADER, identity.bookie.as_str())]
    {
        let Some(meant) = metadata.get(header) else {
            return Err(Status::failed_precondition(format!(
                "this request doesn't say whom it is meant for: set the header {header}"
            )));
        };
        if meant.as_bytes() != ours.as_bytes() {
            let meant = clipped(&String::from_utf8_lossy(meant.as_bytes()));
            return Err(Status::failed_precondition(format!(
                "this request is meant for {header} {meant:?}, and this is {ours:?}"
            )));
        }
    }
    Ok(())
}

/// Whether the port is ending.
#[derive(Debug, Clone)]
pub(super) struct Stopping(watch::Receiver<bool>);

impl Stopping {
    /// `true` in the channel: it is ending. A sender that is gone never says so.
    pub(super) fn new(stopping: watch::Receiver<bool>) -> Self {
        Self(stopping)
    }

    /// Never.
    pub(super) fn never() -> Self {
        Self(watch::channel(false).1)
    }

    /// Is done once the port is ending.
    pub(super) async fn wait(mut self) {
        if self.0.wait_for(|stopping| *stopping).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What a peer is told whose stream is ended because the port is.
pub(super) fn stopped() -> Status {
    Status::unavailable("this bookie is stopping")
}

/// Hands out places for streams.
#[derive(Debug, Clone)]
pub(super) struct StreamLimit {
    places: Arc<Semaphore>,
}

impl StreamLimit {
    pub(super) fn new(most: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(most)) }
    }

    /// A place, or a status that says that there is none.
    pub(super) fn take(&self) -> Result<OwnedSemaphorePermit, Status> {
        let place = self.places.clone().try_acquire_owned();
        place.map_err(|_| Status::resource_exhausted("too many streams are open on this bookie"))
    }
}

/// A stream in its place, which is free again when it is dropped.
#[derive(Debug)]
pub(super) struct Guarded<S> {
    stream: S,
    _place: OwnedSemaphorePermit,
}

impl<S> Guarded<S> {
    pub(super) fn new(stream: S, place: OwnedSemaphorePermit) -> Self {
        Self { stream, _place: place }
    }
}

impl<S: Stream + Unpin> Stream for Guarded<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        self.stream.poll_next_unpin(context)
    }
}
