//! Reads closed ledgers.

use geminga_proto::id::{EntryId, Lac, LedgerId};
use geminga_proto::storage::StoredEntry;

use crate::error::ReadError;

/// Where a closed ledger ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedLedger {
    /// The ledger.
    pub id: LedgerId,
    /// Its last entry; `None`: it is empty.
    pub last_entry: Lac,
    /// Bytes of its entries; see [`crate::metadata::LedgerMetadata::bytes`].
    pub bytes: u64,
}

/// Reads a closed ledger. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LedgerReader {
    closed: ClosedLedger,
}

impl LedgerReader {
    /// Where the ledger ends.
    #[must_use]
    pub fn closed(&self) -> &ClosedLedger {
        &self.closed
    }

    /// Reads consecutive entries from `first` on: at least one, at most `max_entries` and
    /// (beyond the first) `max_bytes`; fewer where an ensemble ends. Tries the next bookie when
    /// one fails.
    ///
    /// # Errors
    /// [`ReadError`] if `first` is above the last entry or no bookie can send it.
    pub async fn read(
        &self,
        first: EntryId,
        max_entries: u32,
        max_bytes: u64,
    ) -> Result<Vec<StoredEntry>, ReadError> {
        let _ = (first, max_entries, max_bytes);
        todo!()
    }
}
