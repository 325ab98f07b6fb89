//! Appends to an open ledger.

use geminga_proto::id::{EntryId, Lac, LedgerId};
use geminga_proto::payload::Payload;
use geminga_proto::storage::StoredEntry;

use crate::error::{AppendRefused, CloseError, ReadError};
use crate::reader::ClosedLedger;

/// The owner's handle of an open ledger. Cheap to clone. Dropping it leaves the ledger open, to
/// be closed by recovery.
#[derive(Debug, Clone)]
pub struct LedgerWriter {}

impl LedgerWriter {
    /// The ledger.
    #[must_use]
    pub fn id(&self) -> LedgerId {
        todo!()
    }

    /// Qw, as recorded: may be lower than configured when bookies were missing.
    #[must_use]
    pub fn write_quorum(&self) -> u32 {
        todo!()
    }

    /// Qa.
    #[must_use]
    pub fn ack_quorum(&self) -> u32 {
        todo!()
    }

    /// Gives `payload` the next entry id and sends it. Never blocks and never calls the observer
    /// from within; the caller's lock may be held. Ids are given in the order of the calls.
    ///
    /// # Errors
    /// [`AppendRefused`]: the entry has no id and is not stored.
    pub fn append(&self, payload: Payload) -> Result<EntryId, AppendRefused> {
        let _ = payload;
        todo!()
    }

    /// The last-add-confirmed.
    #[must_use]
    pub fn lac(&self) -> Lac {
        todo!()
    }

    /// Bytes appended and not confirmed.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        todo!()
    }

    /// Refuses further appends, waits until what is pending is confirmed, and closes the ledger.
    /// While the ledger stalls for lack of disk space this waits too. Calling it again after
    /// [`CloseError::Unavailable`] tries again; on a closed ledger it answers the same again.
    ///
    /// # Errors
    /// [`CloseError`] if the ledger failed, or the metadata store didn't answer in time.
    pub async fn close(&self) -> Result<ClosedLedger, CloseError> {
        todo!()
    }

    /// Reads confirmed entries of the own, open ledger; otherwise as
    /// [`crate::reader::LedgerReader::read`].
    ///
    /// # Errors
    /// [`ReadError`] if `first` is not confirmed or no bookie can send it.
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
