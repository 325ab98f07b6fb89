//! A confirmed entry is on an ack quorum of the ensemble that the metadata names for it, and so is
//! every entry of a ledger at the moment it is closed; one that lacks copies then is marked for
//! repair.

use geminga_proto::id::{BookieId, EntryId, LedgerId};

use crate::harness::checker::Checker;
use crate::metadata::LedgerMetadata;

impl Checker {
    /// A bookie has made an entry durable.
    pub fn stored(&mut self, bookie: &BookieId, ledger: LedgerId, entry: EntryId) {
        self.copies.insert((bookie.clone(), ledger, entry));
    }

    /// How many members of the entry's ensemble have it.
    pub(super) fn copies(&self, metadata: &LedgerMetadata, entry: EntryId) -> u32 {
        let (fragment, _) = metadata.fragment_of(entry);
        let has =
            |bookie: &&BookieId| self.copies.contains(&((*bookie).clone(), metadata.id, entry));
        u32::try_from(fragment.bookies.iter().filter(has).count()).unwrap_or(u32::MAX)
    }
}
