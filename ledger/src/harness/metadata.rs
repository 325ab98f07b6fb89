//! A model of the metadata store: ledgers' records and one list of ledgers, each with a version.

use std::collections::BTreeMap;

use geminga_proto::id::LedgerId;

use crate::engine::Versioned;
use crate::metadata::LedgerMetadata;

/// What the store is asked.
#[derive(Debug, Clone)]
pub enum MetaOp {
    /// Reads a ledger's record.
    ReadLedger(LedgerId),
    /// Writes a ledger's record if it is still at the version.
    CommitLedger(u64, LedgerMetadata),
    /// Reads the list.
    ReadList,
    /// Creates a ledger's record and appends it to the list if that is still at the version.
    CreateAndLink(u64, LedgerMetadata),
    /// Takes a ledger off the list and deletes its record if the list is still at the version.
    Unlink(u64, LedgerId),
    /// Creates a ledger's record only; a planted defect's way.
    Create(LedgerMetadata),
    /// Appends to the list if it is still at the version; a planted defect's way.
    Link(u64, LedgerId),
}

/// What it answers.
#[derive(Debug, Clone)]
pub enum MetaReply {
    /// A ledger's record, if there is one.
    Ledger(Option<Versioned>),
    /// The list and its version.
    List(u64, Vec<LedgerId>),
    /// Written; the new version.
    Applied(u64),
    /// Not at the version named.
    Conflict,
    /// A write that is certainly not done.
    Unavailable,
    /// A read that was not done.
    NotRead,
    /// Done or not.
    Unknown,
}

/// The store.
#[derive(Debug, Default)]
pub struct ModelMetadata {
    ledgers: BTreeMap<LedgerId, Versioned>,
    list: Vec<LedgerId>,
    list_version: u64,
    revision: u64,
}

impl ModelMetadata {
    /// Does what is asked, at once. The second part is the record that was written, if any.
    pub fn apply(&mut self, op: MetaOp) -> (MetaReply, Option<LedgerMetadata>) {
        match op {
            MetaOp::ReadLedger(id) => (MetaReply::Ledger(self.ledgers.get(&id).cloned()), None),
            MetaOp::ReadList => (MetaReply::List(self.list_version, self.list.clone()), None),
            MetaOp::CommitLedger(version, metadata) => {
                let current = self.ledgers.get(&metadata.id).map(|found| found.version);
                if current != Some(version) {
                    return (MetaReply::Conflict, None);
                }
                (self.put(&metadata), Some(metadata))
            }
            MetaOp::CreateAndLink(version, metadata) => {
                if self.list_version != version {
                    return (MetaReply::Conflict, None);
                }
                self.list.push(metadata.id);
                self.list_version = self.revision + 1;
                (self.put(&metadata), Some(metadata))
            }
            MetaOp::Unlink(version, id) => {
                if self.list_version != version {
                    return (MetaReply::Conflict, None);
                }
                self.list.retain(|listed| *listed != id);
                self.ledgers.remove(&id);
                self.revision += 1;
                self.list_version = self.revision;
                (MetaReply::Applied(self.revision), None)
            }
            MetaOp::Create(metadata) => (self.put(&metadata), Some(metadata)),
            MetaOp::Link(version, id) => {
                if self.list_version != version {
                    return (MetaReply::Conflict, None);
                }
                self.list.push(id);
                self.revision += 1;
                self.list_version = self.revision;
                (MetaReply::Applied(self.revision), None)
            }
        }
    }

    fn put(&mut self, metadata: &LedgerMetadata) -> MetaReply {
        self.revision += 1;
        let written = Versioned { metadata: metadata.clone(), version: self.revision };
        self.ledgers.insert(metadata.id, written);
        MetaReply::Applied(self.revision)
    }

    /// A ledger's record.
    #[must_use]
    pub fn ledger(&self, id: LedgerId) -> Option<&Versioned> {
        self.ledgers.get(&id)
    }

    /// All records.
    pub fn ledgers(&self) -> impl Iterator<Item = &LedgerMetadata> {
        self.ledgers.values().map(|found| &found.metadata)
    }

    /// The list's version.
    #[must_use]
    pub fn list_version(&self) -> u64 {
        self.list_version
    }

    /// The list.
    #[must_use]
    pub fn list(&self) -> &[LedgerId] {
        &self.list
    }
}
