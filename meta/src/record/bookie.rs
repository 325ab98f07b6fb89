//! A bookie that is up: where it is and what it can take. Bound to the bookie's lease.

use geminga_proto::id::{BookieId, LedgerId};
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, parse};

/// What a bookie takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BookieState {
    /// All writes.
    Writable,
    /// No ordinary adds, for lack of space or because it is ending.
    Full,
    /// No writes any more: its disk failed. Reads go on.
    ReadOnly,
}

impl BookieState {
    /// The name used in output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Writable => "writable",
            Self::Full => "full",
            Self::ReadOnly => "read-only",
        }
    }
}

/// Below `keys::bookie`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieRecord {
    /// The bookie.
    pub bookie_id: BookieId,
    /// Where it listens, as host:port.
    pub address: String,
    /// Its failure domain; empty if it has none.
    pub zone: String,
    /// False while it takes no ordinary adds.
    pub writable: bool,
    /// Size of its storage.
    pub total_bytes: u64,
    /// What ordinary adds can still take.
    pub free_bytes: u64,
    /// A write has failed: it takes none until it is started again.
    pub poisoned: bool,
    /// Random, of one start of the process; 0: not told.
    pub session: u64,
    /// How long the record's lease lasts without a keep-alive; 0: not told.
    pub lease_ttl_ms: u64,
    /// The release that it runs.
    pub release: String,
    /// Largest entry that it takes; 0: not told.
    pub max_entry_bytes: u64,
    /// No ledger that it has ever stored anything of had a higher id, as of this write and
    /// as far as it knows: what only lost segments told of is left out. 0: it knows of none.
    /// Restored metadata that have forgotten these ledgers must not give their ids out again.
    pub highest_ledger: LedgerId,
}

impl BookieRecord {
    /// What it takes.
    #[must_use]
    pub fn state(&self) -> BookieState {
        match (self.poisoned, self.writable) {
            (true, _) => BookieState::ReadOnly,
            (false, true) => BookieState::Writable,
            (false, false) => BookieState::Full,
        }
    }
}

impl Record for BookieRecord {
    const KIND: &'static str = "bookie";
    const VERSION: u32 = 1;
    type Message = pb::BookieRecord;

    fn check(&self) -> Result<(), String> {
        if self.free_bytes > self.total_bytes {
            return Err("free_bytes is above total_bytes".to_owned());
        }
        if self.poisoned && self.writable {
            return Err("it is writable and poisoned".to_owned());
        }
        // No id would be left above it.
        if self.highest_ledger >= LedgerId::MAX {
            return Err("highest_ledger_id is out of range".to_owned());
        }
        Ok(())
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::BookieRecord {
        pb::BookieRecord {
            stamp: Some(stamp),
            bookie_id: self.bookie_id.to_string(),
            address: self.address.clone(),
            zone: self.zone.clone(),
            writable: self.writable,
            total_bytes: self.total_bytes,
            free_bytes: self.free_bytes,
            poisoned: self.poisoned,
            session: self.session,
            lease_ttl_ms: self.lease_ttl_ms,
            release: self.release.clone(),
            max_entry_bytes: self.max_entry_bytes,
            highest_ledger_id: self.highest_ledger.0,
        }
    }

    fn from_message(message: pb::BookieRecord) -> Result<Self, String> {
        Ok(Self {
            bookie_id: parse("bookie_id", &message.bookie_id)?,
            address: message.address,
            zone: message.zone,
            writable: message.writable,
            total_bytes: message.total_bytes,
            free_bytes: message.free_bytes,
            poisoned: message.poisoned,
            session: message.session,
            lease_ttl_ms: message.lease_ttl_ms,
            release: message.release,
            max_entry_bytes: message.max_entry_bytes,
            highest_ledger: LedgerId(message.highest_ledger_id),
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "bookie_id": self.bookie_id.as_str(),
            "address": self.address,
            "zone": self.zone,
            "writable": self.writable,
            "total_bytes": self.total_bytes,
            "free_bytes": self.free_bytes,
            "state": self.state().as_str(),
            "lease_ttl_ms": self.lease_ttl_ms,
            "release": self.release,
            "max_entry_bytes": self.max_entry_bytes,
            "highest_ledger_id": self.highest_ledger.0,
        })
    }
}
