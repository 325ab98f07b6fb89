//! Why an operation on a ledger failed: one enum for each operation.

use geminga_meta::store::StoreError;
use geminga_proto::id::{EntryId, LedgerId};
use geminga_proto::storage::BookieError;

use crate::metadata::MetadataError;
use crate::observer::WriterFailure;
use crate::placement::PlacementError;

/// Why a ledger could not be created.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// Fewer bookies than an ack quorum take writes.
    #[error("no ledger can be created: {0}")]
    Placement(#[from] PlacementError),
    /// A condition of the link didn't hold; nothing was written.
    #[error("the ledger can't be linked: its owner's record was changed by somebody else")]
    Conflict,
    /// The metadata store failed. After [`StoreError::Unknown`] the ledger may yet appear, linked.
    #[error("no ledger can be created: {0}")]
    Metadata(#[from] StoreError),
    /// The record of the id counter is damaged, or all ids are used.
    #[error("no ledger id can be had: {0}")]
    Ids(String),
}

/// Why an append was refused. The entry has no id and is not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendRefused {
    /// The ledger has failed; its observer was or will be told.
    #[error("the ledger takes no appends: {0}")]
    Failed(WriterFailure),
    /// The owner is closing the ledger.
    #[error("the ledger is being closed")]
    Closing,
    /// Unconfirmed bytes are at their cap.
    #[error("{pending_bytes} bytes of the ledger are pending, the cap is {limit_bytes}")]
    TooManyPending {
        /// Bytes pending.
        pending_bytes: u64,
        /// The cap.
        limit_bytes: u64,
    },
}

/// Why a ledger could not be closed by its owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseError {
    /// The ledger failed before it was closed: close it by recovery.
    #[error("the ledger failed before it was closed: {0}")]
    Failed(WriterFailure),
    /// The metadata store didn't take the closing record in time; closing may be tried again.
    #[error("the metadata store is unavailable; the ledger is not known to be closed")]
    Unavailable,
}

/// Why a ledger could not be recovered now. Trying again later may help, but for
/// [`RecoverError::NotFound`] and [`RecoverError::Damaged`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// There is no such ledger.
    #[error("ledger {0} does not exist")]
    NotFound(LedgerId),
    /// Too few bookies could be fenced.
    #[error("ledger {ledger} can't be fenced: {error}")]
    Fence {
        /// The ledger.
        ledger: LedgerId,
        /// The last refusal.
        error: BookieError,
    },
    /// It can't be told whether an entry was written.
    #[error("it can't be told whether ledger {ledger} holds entry {entry}: {error}")]
    Undecided {
        /// The ledger.
        ledger: LedgerId,
        /// The entry.
        entry: EntryId,
        /// The last answer.
        error: BookieError,
    },
    /// A recovered entry could not be written back.
    #[error("entries of ledger {ledger} can't be written back: {failure}")]
    WriteBack {
        /// The ledger.
        ledger: LedgerId,
        /// Why.
        failure: WriterFailure,
    },
    /// The metadata store failed.
    #[error("ledger {ledger} can't be recovered: {error}")]
    Metadata {
        /// The ledger.
        ledger: LedgerId,
        /// Why.
        error: StoreError,
    },
    /// The ledger's record was changed by others, or its writes were left without an answer, time
    /// and again.
    #[error(
        "ledger {ledger} can't be recovered now: {writes} writes of its record in a row were not \
         settled"
    )]
    Unsettled {
        /// The ledger.
        ledger: LedgerId,
        /// How many.
        writes: u32,
    },
    /// The ledger's record can't be read.
    #[error("the record of ledger {ledger} is damaged: {why}")]
    Damaged {
        /// The ledger.
        ledger: LedgerId,
        /// What is wrong with it.
        why: String,
    },
}

/// Why a ledger could not be opened or described.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// There is no such ledger.
    #[error("ledger {0} does not exist")]
    NotFound(LedgerId),
    /// Only closed ledgers are read by others than their owner.
    #[error("ledger {0} is not closed; recover it first")]
    NotClosed(LedgerId),
    /// The metadata store failed.
    #[error("ledger {ledger} can't be opened: {error}")]
    Metadata {
        /// The ledger.
        ledger: LedgerId,
        /// Why.
        error: StoreError,
    },
    /// The ledger's record can't be read.
    #[error("the record of ledger {ledger} is damaged: {why}")]
    Damaged {
        /// The ledger.
        ledger: LedgerId,
        /// What is wrong with it.
        why: String,
    },
}

/// Why ledgers could not be deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeleteError {
    /// A condition of the unlinking didn't hold; nothing was deleted.
    #[error("the ledgers can't be unlinked: their owner's record was changed by somebody else")]
    Conflict,
    /// The metadata store failed. After [`StoreError::Unknown`] the deletion may yet happen.
    #[error("the ledgers can't be deleted: {0}")]
    Metadata(#[from] StoreError),
}

/// Why entries could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nothing is there: above the last confirmed entry.
    #[error("entry {first} of ledger {ledger} is above its last entry ({last})")]
    BeyondEnd {
        /// The ledger.
        ledger: LedgerId,
        /// The entry asked for.
        first: EntryId,
        /// The last confirmed entry; -1: none.
        last: geminga_proto::id::Lac,
    },
    /// No bookie of the entry's ensemble could send it.
    #[error("entry {entry} of ledger {ledger} can't be read from any of its bookies: {error}")]
    Bookies {
        /// The ledger.
        ledger: LedgerId,
        /// The entry.
        entry: EntryId,
        /// The most telling answer: one of a bookie that may answer later comes before damage,
        /// and damage before absence.
        error: BookieError,
    },
}

impl From<(LedgerId, MetadataError)> for OpenError {
    fn from((ledger, error): (LedgerId, MetadataError)) -> Self {
        Self::Damaged { ledger, why: error.to_string() }
    }
}

impl From<(LedgerId, MetadataError)> for RecoverError {
    fn from((ledger, error): (LedgerId, MetadataError)) -> Self {
        Self::Damaged { ledger, why: error.to_string() }
    }
}
