//! What repair does and has to do: plain data for administration.

use geminga_proto::id::LedgerId;

/// How far a bookie is that is to be taken away, or is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainInfo {
    /// Its name.
    pub bookie_id: String,
    /// `decommission` or `lost`.
    pub kind: &'static str,
    /// Since when.
    pub started_ms: u64,
    /// It is up.
    pub up: bool,
    /// Ledgers that still have copies there.
    pub ledgers: u64,
    /// Those of them that aren't closed yet.
    pub open_ledgers: u64,
    /// Bytes of the closed ones' entries.
    pub bytes: u64,
    /// What is in the way, of some ledgers.
    pub trouble: Vec<(LedgerId, String)>,
}

/// A ledger that is to be repaired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairTask {
    /// The ledger.
    pub ledger: LedgerId,
    /// Why, in words.
    pub reasons: Vec<String>,
    /// Since when.
    pub queued_ms: u64,
    /// Attempts that ended without everything repaired.
    pub attempts: u32,
    /// What was in the way of the last one; empty if there was none.
    pub last_error: String,
    /// The process that is at it.
    pub worker: Option<String>,
    /// Bookies that it sends copies to.
    pub targets: Vec<String>,
}

/// What is stored on a bookie, and what lacks copies there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OnBookie {
    /// Ledgers that have copies there.
    pub ledgers: u64,
    /// Those of them that may have entries with fewer copies than they should.
    pub under_replicated: u64,
    /// Those of them that wait for repair.
    pub to_repair: u64,
}
