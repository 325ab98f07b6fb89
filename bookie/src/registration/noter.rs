//! [`Noter`]: makes the metadata's revision durable, at intervals and at the end.
//!
//! A task of its own, for both the metadata store and the disk may hang for longer than a lease.
//! Invariant: at most one note is under way, so at most one thread waits for the disk.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;

use super::*;

/// See the module.
#[derive(Debug)]
pub(super) struct Noter {
    pub bookie: Bookie,
    pub store: Arc<dyn MetadataStore>,
    /// Between the end of a note and the next.
    pub pause: Duration,
    /// How long the metadata store may take to tell its revision.
    pub patience: Duration,
}

impl Noter {
    /// Runs until it is told to stop, notes once more, and ends.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        loop {
            // A sender that is gone means that nobody waits for the end.
            let told = async { stopped.wait_for(|stopped| *stopped).await.is_ok() };
            let end = tokio::select! {
                biased;
                told = told => Some(told),
                () = tokio::time::sleep(self.pause) => None,
            };
            if end == Some(false) {
                return;
            }
            if AssertUnwindSafe(self.note()).catch_unwind().await.is_err() {
                tracing::error!("noting the metadata's revision panicked; it goes on");
            }
            if end.is_some() {
                return;
            }
        }
    }

    /// Metadata that aren't ours or went back are the census' business, which stops deleting.
    async fn note(&self) {
        let present = gc::present_revision(&self.bookie, &self.store);
        let noted = match tokio::time::timeout(self.patience, present).await {
            // The disk has no limit: a thread that waits for it can't be called back, and another
            // one would only wait beside it.
            Ok(Ok(revision)) => gc::note(&self.bookie, revision).await,
            Ok(Err(error)) => Err(error),
            Err(_) => {
                tracing::debug!("the metadata's revision isn't told in time");
                return;
            }
        };
        if let Err(error) = noted {
            tracing::debug!(%error, "the metadata's revision isn't noted");
        }
    }
}
