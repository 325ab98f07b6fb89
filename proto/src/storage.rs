//! What a bookie is asked and what it answers, as plain data. The ledger's transports carry
//! these; the bookie executes them; both crates know only this module of each other.

use bytes::Bytes;

use crate::id::{EntryId, Lac, LedgerId, LedgerToken};
use crate::payload::Payload;

/// Who an add is for: decides whether a fence and a full disk refuse it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum AddKind {
    /// A topic's data: refused when fenced and above the first disk mark.
    #[default]
    Ordinary,
    /// A bundle's state log: refused when fenced, and only above the second disk mark, so that
    /// acknowledgements can still free space.
    StateLog,
    /// Written back by a recovery: accepted when fenced, refused above the second disk mark.
    Recovery,
}

/// One entry to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendRequest {
    /// The ledger.
    pub ledger: LedgerId,
    /// The entry. A bookie stores entries in any order, and the same one twice.
    pub entry: EntryId,
    /// Must be the ledger's.
    pub token: LedgerToken,
    /// The writer's last-add-confirmed when it sent this.
    pub lac: Lac,
    /// Who the add is for.
    pub kind: AddKind,
    /// The entry's bytes.
    pub payload: Payload,
}

/// Why a bookie did not do what it was asked. Each one is definite; only `Unreachable` (made by
/// a transport, never by a bookie) leaves the outcome unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum BookieError {
    /// Another owner has fenced the ledger.
    #[error("the ledger is fenced")]
    Fenced,
    /// The ledger is known under another token.
    #[error("the ledger is known under another token")]
    WrongToken,
    /// The disk mark for this kind of add is passed.
    #[error("the bookie's disk is full")]
    DiskFull,
    /// The bookie takes no writes: an fsync failed, or it was set so.
    #[error("the bookie is read-only")]
    ReadOnly,
    /// The entry was certainly never stored here.
    #[error("no such entry")]
    NoSuchEntry,
    /// A segment that could hold the entry is missing or unreadable.
    #[error("it is unknown whether the entry was stored")]
    UnknownEntry,
    /// The entry was stored and is damaged.
    #[error("the stored entry is corrupt")]
    CorruptEntry,
    /// The entry is larger than this bookie stores.
    #[error("the entry is too large")]
    TooLarge,
    /// The bytes pending are at their cap.
    #[error("the bookie is overloaded")]
    Overloaded,
    /// Reading or writing failed.
    #[error("the bookie's disk failed")]
    Io,
    /// The request makes no sense.
    #[error("the request is invalid")]
    Invalid,
    /// No answer: it may or may not have been done.
    #[error("the bookie did not answer")]
    Unreachable,
}

/// What came of an add.
pub type AppendResult = Result<(), BookieError>;

/// Asks for consecutive entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadRequest {
    /// The ledger.
    pub ledger: LedgerId,
    /// The first entry wanted.
    pub first: EntryId,
    /// At most so many entries; at least 1.
    pub max_entries: u32,
    /// At most so many bytes, but always the first entry.
    pub max_bytes: u64,
    /// Some: fence the ledger first, durably, as recovery reads do.
    pub fence: Option<LedgerToken>,
}

/// One stored entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// Its place.
    pub entry: EntryId,
    /// The last-add-confirmed that its add carried.
    pub lac: Lac,
    /// Its bytes, verified by checksum.
    pub payload: Bytes,
}

/// Consecutive entries from the one asked for, at least one, up to the first that is missing or
/// over the limits; or why the first can't be sent.
pub type ReadResult = Result<Vec<StoredEntry>, BookieError>;

/// Fences a ledger, which the bookie need not have seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FenceRequest {
    /// The ledger.
    pub ledger: LedgerId,
    /// Must be the ledger's.
    pub token: LedgerToken,
}

/// The highest last-add-confirmed that any add of the ledger carried, sent once the fence is
/// durable.
pub type FenceResult = Result<Lac, BookieError>;

/// Whether each of some ledgers is fenced, or was deleted, or is known under another token: an
/// ordinary add with that token is refused for good. In the order in which they were asked for.
pub type FencedResult = Result<Vec<bool>, BookieError>;

/// How far the scrub of a bookie is that somebody has asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ScrubProgress {
    /// Bytes that it had to verify when it was asked for.
    pub total_bytes: u64,
    /// Bytes that it has verified.
    pub done_bytes: u64,
    /// False once it is done, or if there never was one.
    pub running: bool,
    /// Entries that are known to be damaged there now.
    pub damaged_entries: u64,
}

/// What a bookie says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieInfo {
    /// How a write is made durable.
    pub sync_mode: SyncMode,
    /// Size of the storage, in bytes.
    pub total_bytes: u64,
    /// Bytes that ordinary adds can still take.
    pub free_bytes: u64,
    /// False once poisoned, or above the first disk mark.
    pub writable: bool,
    /// Ledgers with at least one entry or fence.
    pub ledgers: u64,
    /// Segment files in use.
    pub segments: u64,
    /// How far its log is behind.
    pub lag: Lag,
}

/// What a bookie has taken and not made durable yet: how far its log is behind those who append.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    /// How long the oldest such record has waited; 0 if there is none.
    pub oldest_ms: u64,
    /// Bytes of all such records, headers included.
    pub bytes: u64,
}

/// How a bookie makes a write durable before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SyncMode {
    /// `O_DIRECT | O_DSYNC`.
    DirectDsync,
    /// A buffered write followed by `fdatasync`.
    Fdatasync,
}

impl SyncMode {
    /// The name used in output and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DirectDsync => "direct-dsync",
            Self::Fdatasync => "fdatasync",
        }
    }
}
