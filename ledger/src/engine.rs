//! The replication protocol as state machines: an event goes in, commands come out. No I/O, no
//! clock and no randomness in here, so the same code runs in the runtime and in the simulation.
//!
//! [`append::AppendEngine`] is the owner's side of an open ledger; [`recovery::RecoveryEngine`]
//! closes a ledger whose owner may be gone, and writes back through an append engine of its own.
//! Time comes in as ticks of a length that the runtime chooses.

pub mod append;
pub mod ensemble;
pub(crate) mod outage;
pub mod quorum;
pub mod recovery;

use geminga_proto::id::{BookieId, EntryId, Lac};
use geminga_proto::storage::{AppendRequest, FenceRequest, ReadRequest};

use crate::metadata::LedgerMetadata;
use crate::observer::{StallReason, WriterFailure};

/// True where the harness has planted this defect in the engine; always false in a build
/// without the harness, where the switch doesn't exist.
macro_rules! planted {
    ($engine:expr, $mutant:ident) => {{
        #[cfg(any(test, feature = "harness"))]
        let planted = $engine.planted == Some($crate::harness::mutant::Mutant::$mutant);
        #[cfg(not(any(test, feature = "harness")))]
        let planted = false;
        planted
    }};
}
pub(crate) use planted;

/// Metadata as it was read, and the version that a compare-and-swap must name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned {
    /// The record.
    pub metadata: LedgerMetadata,
    /// Its version in the store.
    pub version: u64,
}

/// What came of a compare-and-swap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitAnswer {
    /// Applied; the record's new version.
    Committed(u64),
    /// The record was not at the version named; nothing was written.
    Conflict,
    /// Certainly not applied.
    Unavailable,
    /// Applied, not applied, or about to be.
    Unknown,
}

/// What came of reading a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataAnswer {
    /// It is this.
    Found(Versioned),
    /// There is none.
    Absent,
    /// The store did not answer.
    Unavailable,
}

/// What an append engine wants done. Each request is answered by exactly one call back into the
/// engine; an answer that comes twice or too late does no harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Send an add. Sends to one bookie keep this order.
    Send {
        /// To whom.
        bookie: BookieId,
        /// What.
        request: AppendRequest,
    },
    /// Everything up to here is confirmed.
    Confirmed(EntryId),
    /// Ask placement for bookies; answered by `replacement`.
    PickReplacement {
        /// How many, at most.
        count: usize,
        /// None of these.
        exclude: Vec<BookieId>,
    },
    /// Write the record if it is still at `version`; answered by `commit_answered`.
    Commit {
        /// The version it must have.
        version: u64,
        /// What to write.
        metadata: LedgerMetadata,
    },
    /// Read the record; answered by `metadata_read`.
    ReadMetadata,
    /// No ack quorum can be had.
    Stalled(StallReason),
    /// An ack quorum can be had again.
    Resumed,
    /// The ledger takes no more appends.
    Failed {
        /// Why.
        failure: WriterFailure,
        /// Entries whose outcome is unknown: from the first up to the second, both included.
        unknown: Option<(EntryId, EntryId)>,
    },
    /// The owner has closed the ledger with this record.
    Closed(LedgerMetadata),
    /// Closing takes longer than the timeout; it goes on.
    CloseDelayed,
}

/// What a recovery engine wants done; as [`Command`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryCommand {
    /// Read the record; answered by `metadata_read`.
    ReadMetadata,
    /// Write the record if it is still at `version`; answered by `commit_answered`.
    Commit {
        /// The version it must have.
        version: u64,
        /// What to write.
        metadata: LedgerMetadata,
    },
    /// Fence and learn the last-add-confirmed; answered by `fenced`.
    Fence {
        /// By whom.
        bookie: BookieId,
        /// What.
        request: FenceRequest,
    },
    /// Read; answered by `read` with the same round.
    Read {
        /// From whom.
        bookie: BookieId,
        /// Tells this read's answer from an earlier one's.
        round: u64,
        /// What.
        request: ReadRequest,
    },
    /// Send an add; answered by `append_answered`.
    Send {
        /// To whom.
        bookie: BookieId,
        /// What.
        request: AppendRequest,
    },
    /// Ask placement for bookies; answered by `replacement`.
    PickReplacement {
        /// How many, at most.
        count: usize,
        /// None of these.
        exclude: Vec<BookieId>,
    },
    /// It is over: the closed record, or why it can't be closed now.
    Done(Result<LedgerMetadata, RecoveryFailure>),
}

/// Why a recovery gave up. Nothing is guessed: it may be tried again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecoveryFailure {
    /// There is no such ledger.
    NotFound,
    /// Too few bookies could be fenced; the last refusal.
    Fence(geminga_proto::storage::BookieError),
    /// It can't be told whether the entry was written; the last answer.
    Undecided(EntryId, geminga_proto::storage::BookieError),
    /// Recovered entries could not be written back.
    WriteBack(WriterFailure),
    /// The metadata store did not answer.
    Metadata,
    /// So many writes of the record in a row met a conflict or had an unknown outcome.
    Unsettled {
        /// How many.
        writes: u32,
    },
}

/// Limits of the engines, in ticks and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineLimits {
    /// Unconfirmed bytes above which appends are refused.
    pub max_pending_bytes: u64,
    /// Confirmed bytes that one bookie may still owe.
    pub max_lag_bytes: u64,
    /// Ticks without an answer after which a bookie counts as failed; and ticks without an ack
    /// quorum after which the ledger fails.
    pub timeout_ticks: u32,
    /// Ticks between attempts to mend the ensemble.
    pub retry_ticks: u32,
}

/// The entry that follows `lac`, and all up to but excluding `next`, if there are any.
fn unknown_range(lac: Lac, next: EntryId) -> Option<(EntryId, EntryId)> {
    let first = lac.next_entry();
    let last = next.previous()?;
    (first <= last).then_some((first, last))
}
