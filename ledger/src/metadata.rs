//! A ledger's metadata as plain data: who may write it, and where its entries are.

use geminga_meta::record::LedgerOwner;
use geminga_proto::id::{BookieId, EntryId, Lac, LedgerId, LedgerToken};
use geminga_proto::storage::AddKind;

/// Where a ledger is in its life. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LedgerState {
    /// Its creator may append.
    Open,
    /// Somebody is finding out where it ends; its creator may not append.
    InRecovery,
    /// It ends for ever at `last_entry`.
    Closed,
}

/// A run of entries written to one ensemble; ends where the next one begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// The first entry.
    pub first_entry: EntryId,
    /// The ensemble; as many as the write quorum.
    pub bookies: Vec<BookieId>,
}

/// A ledger's metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerMetadata {
    /// The ledger.
    pub id: LedgerId,
    /// Goes with every add.
    pub token: LedgerToken,
    /// The record that lists it, which also says what it is for.
    pub owner: LedgerOwner,
    /// Where it is in its life.
    pub state: LedgerState,
    /// Qw: bookies that get each entry.
    pub write_quorum: u32,
    /// Qa: answers that confirm an entry.
    pub ack_quorum: u32,
    /// At least one; the first starts at 0, each starts above the one before.
    pub fragments: Vec<Fragment>,
    /// Of a closed ledger.
    pub last_entry: Lac,
    /// Bytes of the entries of a closed ledger: exact if its owner closed it; after a recovery,
    /// what was confirmed before it is extrapolated from a sample.
    pub bytes: u64,
    /// When it was created, by the creator's wall clock.
    pub created_ms: u64,
    /// Some entries may have fewer copies than the write quorum.
    pub under_replicated: bool,
}

/// Why metadata can't be true.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Quorums don't fit.
    #[error("the ledger's quorums ({write_quorum}, {ack_quorum}) don't fit")]
    Quorum {
        /// Qw.
        write_quorum: u32,
        /// Qa.
        ack_quorum: u32,
    },
    /// There is no fragment, or the first doesn't start at 0.
    #[error("the ledger's first fragment doesn't start at entry 0")]
    FirstFragment,
    /// Fragments don't rise.
    #[error("the ledger's fragment at entry {0} doesn't follow the one before it")]
    FragmentOrder(EntryId),
    /// An ensemble has not Qw different members.
    #[error("the ledger's fragment at entry {0} doesn't have as many bookies as its write quorum")]
    Ensemble(EntryId),
    /// An open ledger has no last entry.
    #[error("the ledger has a last entry but isn't closed")]
    LastEntry,
    /// The token is 0.
    #[error("the ledger's token is 0")]
    Token,
}

impl LedgerMetadata {
    /// Checks what must hold of every stored record.
    ///
    /// # Errors
    /// The first thing that doesn't hold.
    pub fn validate(&self) -> Result<(), MetadataError> {
        let (write_quorum, ack_quorum) = (self.write_quorum, self.ack_quorum);
        if ack_quorum < 1
            || ack_quorum > write_quorum
            || write_quorum > crate::config::MAX_WRITE_QUORUM
        {
            return Err(MetadataError::Quorum { write_quorum, ack_quorum });
        }
        if self.token.0 == 0 {
            return Err(MetadataError::Token);
        }
        if self.fragments.first().is_none_or(|first| first.first_entry != EntryId(0)) {
            return Err(MetadataError::FirstFragment);
        }
        for pair in self.fragments.windows(2) {
            if pair[0].first_entry >= pair[1].first_entry {
                return Err(MetadataError::FragmentOrder(pair[1].first_entry));
            }
        }
        for fragment in &self.fragments {
            let unique = |(index, id): (usize, &BookieId)| !fragment.bookies[..index].contains(id);
            if fragment.bookies.len() != write_quorum as usize
                || !fragment.bookies.iter().enumerate().all(unique)
            {
                return Err(MetadataError::Ensemble(fragment.first_entry));
            }
        }
        if self.state != LedgerState::Closed && self.last_entry != Lac::NONE {
            return Err(MetadataError::LastEntry);
        }
        Ok(())
    }

    /// How its owner's adds are marked: a state log's are taken when the disk is fuller.
    #[must_use]
    pub fn add_kind(&self) -> AddKind {
        match self.owner {
            LedgerOwner::ManagedLedger(_) => AddKind::Ordinary,
            LedgerOwner::StateLog(_) => AddKind::StateLog,
        }
    }

    /// The fragment that new entries go to.
    ///
    /// # Panics
    /// If there is no fragment, which [`Self::validate`] refuses.
    #[must_use]
    pub fn last_fragment(&self) -> &Fragment {
        self.fragments.last().expect("validated metadata has a fragment")
    }

    /// The fragment that holds `entry`, and the first entry of the next one.
    ///
    /// # Panics
    /// If there is no fragment, which [`Self::validate`] refuses.
    #[must_use]
    pub fn fragment_of(&self, entry: EntryId) -> (&Fragment, Option<EntryId>) {
        let after = self.fragments.partition_point(|fragment| fragment.first_entry <= entry);
        let next = self.fragments.get(after).map(|fragment| fragment.first_entry);
        (&self.fragments[after.max(1) - 1], next)
    }

    /// Writes from `first` on go to `bookies`: changes the last fragment if no entry of it was
    /// confirmed, else begins a new one.
    pub fn change_ensemble(&mut self, first: EntryId, bookies: Vec<BookieId>) {
        match self.fragments.last_mut() {
            Some(last) if last.first_entry >= first => last.bookies = bookies,
            _ => self.fragments.push(Fragment { first_entry: first, bookies }),
        }
    }

    /// Ends the ledger. Fragments that hold no entry go, but for the first: an empty ledger keeps
    /// where it would have been.
    pub fn close_at(&mut self, last_entry: Lac, bytes: u64) {
        self.state = LedgerState::Closed;
        self.last_entry = last_entry;
        self.bytes = bytes;
        let keep =
            self.fragments.partition_point(|fragment| last_entry.covers(fragment.first_entry));
        self.fragments.truncate(keep.max(1));
    }
}
