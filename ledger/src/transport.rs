//! How a ledger reaches bookies. Implementations: in-process (standalone), gRPC (cluster) and
//! fault-injecting (tests).

#[cfg(any(test, feature = "harness"))]
pub mod faulty;
pub mod grpc;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use geminga_proto::id::{BookieId, EntryId, LedgerId};
use geminga_proto::storage::{
    AppendRequest, AppendResult, BookieError, BookieInfo, FenceRequest, FenceResult, FencedResult,
    ReadRequest, ReadResult, ScrubProgress,
};

/// Ledgers that may be asked about at once with [`BookieTransport::fenced`].
pub const MAX_FENCED_ASKED: usize = 10_000;

/// Hears what came of appends. One per open ledger; called from the transport's own task or
/// thread, once per append, in any order, and never under a lock that
/// [`BookieTransport::append`] takes.
pub trait AppendSink: Send + Sync + Debug + 'static {
    /// `bookie` has answered the append of `entry`. Must not block.
    fn append_done(&self, bookie: &BookieId, entry: EntryId, result: AppendResult);

    /// Several answers are coming in a row until `batch_end`: lets the ledger act once for all.
    fn batch_begin(&self) {}
    /// The row of answers is over.
    fn batch_end(&self) {}
}

/// Reaches bookies by id. Every request is answered exactly once; a bookie that can't be reached
/// answers [`BookieError::Unreachable`].
#[async_trait]
pub trait BookieTransport: Send + Sync + Debug + 'static {
    /// Sends an add. Appends of one ledger to one bookie are sent in the order of these calls.
    /// Never blocks and never calls `sink` from within; over a cap of pending bytes the answer
    /// is [`BookieError::Overloaded`].
    fn append(&self, bookie: &BookieId, request: AppendRequest, sink: &Arc<dyn AppendSink>);

    /// Reads consecutive entries.
    async fn read(&self, bookie: &BookieId, request: ReadRequest) -> ReadResult;

    /// Fences a ledger.
    async fn fence(&self, bookie: &BookieId, request: FenceRequest) -> FenceResult;

    /// Asks which of these ledgers are fenced, or refuse their token otherwise; at most
    /// [`MAX_FENCED_ASKED`] at a time. Fences nothing.
    async fn fenced(&self, bookie: &BookieId, ledgers: Vec<FenceRequest>) -> FencedResult;

    /// Suggests that these ledgers may be gone from the metadata.
    async fn delete_hint(
        &self,
        bookie: &BookieId,
        ledgers: Vec<LedgerId>,
    ) -> Result<(), BookieError>;

    /// Asks a bookie about itself.
    async fn info(&self, bookie: &BookieId) -> Result<BookieInfo, BookieError>;

    /// Asks how far a bookie is with verifying all that it has; with `start`, has it begin. Where
    /// no disk is reached, there is nothing to verify: [`BookieError::Invalid`].
    async fn scrub(&self, bookie: &BookieId, start: bool) -> Result<ScrubProgress, BookieError> {
        let _ = (bookie, start);
        Err(BookieError::Invalid)
    }
}
