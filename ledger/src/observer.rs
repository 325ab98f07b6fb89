//! What a ledger's owner hears of its open ledger.
//!
//! The methods are called one at a time and in order, from a transport's or the store's task,
//! never from within [`crate::writer::LedgerWriter::append`] and never while the writer holds a
//! lock of its own: an observer may call `append`, `lac` or `pending_bytes`, and may take a lock
//! that is held around `append`.

use std::fmt::Debug;

use geminga_proto::id::EntryId;

/// Hears what becomes of an open ledger. No method may block.
pub trait LedgerObserver: Send + Sync + Debug + 'static {
    /// Every entry up to `lac` is durable on its ack quorum. Rises; one call covers a group.
    fn confirmed(&self, lac: EntryId);

    /// The ledger takes no more appends. Called once, last: nothing is confirmed after it. The
    /// outcome of entries that were not confirmed is unknown. Should a method panic, this is called
    /// with [`WriterFailure::Panicked`], if need be a second time.
    fn failed(&self, failure: WriterFailure);

    /// No ack quorum can be had at present; pending entries wait and are sent again. While the
    /// reason is [`StallReason::DiskFull`] the ledger waits without a limit; otherwise it fails
    /// with [`WriterFailure::QuorumLost`] after `append_timeout_ms`. A changed reason calls again.
    fn stalled(&self, reason: StallReason);

    /// An ack quorum can be had again.
    fn resumed(&self);
}

/// Why an open ledger doesn't move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum StallReason {
    /// Bookies refuse adds of this kind until space is freed.
    #[error("the bookies' disks are full")]
    DiskFull,
    /// Bookies can't be reached or can't write, and there are no others.
    #[error("too few bookies can take writes")]
    Unavailable,
}

/// Why an open ledger ended under its owner. Unconfirmed entries have an unknown outcome: close
/// the ledger by recovery, which says where it ends.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriterFailure {
    /// Another owner is recovering, or has closed, the ledger.
    #[error("another owner has fenced the ledger")]
    Fenced,
    /// For longer than the timeout, fewer than an ack quorum of bookies took writes.
    #[error("too few bookies take writes")]
    QuorumLost,
    /// The ledger's record is gone.
    #[error("the ledger was deleted")]
    Deleted,
    /// The ledger's record was changed in a way that only its owner may.
    #[error("the ledger's record was changed by somebody else")]
    Diverged,
    /// Its writer, or its observer, panicked: what either made of the last news may be half done.
    #[error("what writes the ledger or hears of it panicked")]
    Panicked,
    /// Closed by its owner; not a failure of the ledger.
    #[error("the ledger was closed by its owner")]
    Closed,
}
