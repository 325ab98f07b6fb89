//! Plain data that goes in and out of a state log.

use std::sync::Arc;

use geminga_ledger::observer::StallReason;

use crate::core::cursor::CursorState;

/// A subscription in a bundle's state log. Never reused within the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CursorId(pub u64);

/// Settings of a state log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateLogConfig {
    /// Bytes of changes that wait for an append or its confirmation; above it, callers wait.
    pub max_pending_bytes: u64,
    /// Changes are gathered into one entry up to this size; the last one can take it beyond, by
    /// at most 600 KiB.
    pub max_entry_bytes: usize,
    /// A ledger is followed by the next one at this size.
    pub ledger_max_bytes: u64,
    /// A snapshot round begins when so many bytes (or, if that is more, the size of the last
    /// round) were written since the last began. Replay at opening is about twice that.
    pub snapshot_after_bytes: u64,
    /// A snapshot round begins at opening if the chain has more ledgers than this.
    pub max_chain_ledgers: usize,
    /// What the simulation has planted.
    #[cfg(any(test, feature = "simulation"))]
    pub planted: Option<crate::core::defect::Defect>,
}

impl Default for StateLogConfig {
    fn default() -> Self {
        Self {
            max_pending_bytes: 8 * 1024 * 1024,
            max_entry_bytes: 256 * 1024,
            ledger_max_bytes: 64 * 1024 * 1024,
            snapshot_after_bytes: 16 * 1024 * 1024,
            max_chain_ledgers: 4,
            #[cfg(any(test, feature = "simulation"))]
            planted: None,
        }
    }
}

/// Why a state log, or a change handed to it, failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateLogError {
    /// Another broker took the bundle over; the outcome of pending changes is unknown.
    #[error("another broker took the bundle over")]
    Fenced,
    /// It can't be read or written now; at opening, try again later.
    #[error("the bundle's state log is unavailable: {0}")]
    Unavailable(String),
    /// What is stored is damaged.
    #[error("the bundle's state log is damaged: {0}")]
    Corrupt(String),
    /// It was closed by its owner.
    #[error("the bundle's state log is closed")]
    Closed,
    /// The topic has a subscription of that name.
    #[error("the state log has a subscription {0:?} of this topic already")]
    Exists(String),
}

/// Called once a change is durable, or failed; never from within the call that handed it over, and
/// without a lock held: it may call the log and may take a topic's lock. Must not block.
pub type Done = Box<dyn FnOnce(Result<(), StateLogError>) + Send>;

/// A subscription as the log knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredSubscription {
    /// Its id in the log.
    pub id: CursorId,
    /// Its name.
    pub name: Arc<str>,
    /// What it has acknowledged, including changes that are not durable yet.
    pub cursor: CursorState,
}

/// Numbers of a state log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateLogNumbers {
    /// Bytes that wait for an append or its confirmation.
    pub pending_bytes: u64,
    /// Their cap.
    pub max_pending_bytes: u64,
    /// Subscriptions in it.
    pub cursors: u64,
    /// Ledgers in its chain.
    pub ledgers: u64,
    /// Bytes that would be replayed now.
    pub replay_bytes: u64,
    /// Why nothing becomes durable at present.
    pub stalled: Option<StallReason>,
}
