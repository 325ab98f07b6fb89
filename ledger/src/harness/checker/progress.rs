//! Nothing waits for what it doesn't need: a recovery whose fence is complete goes on, whoever is
//! silent; an entry that an ack quorum has, in every ensemble that the record may hold, is
//! confirmed, whatever the metadata store does; a ledger that only lacks disk space waits for it
//! and doesn't fail. And nothing is repeated without a pause: a write of the record whose outcome
//! stays unknown.

use std::collections::{BTreeMap, BTreeSet};

use geminga_proto::id::{BookieId, EntryId};

use crate::engine::append::AppendEngine;

use crate::harness::checker::Checker;
use crate::metadata::LedgerMetadata;
use crate::observer::{StallReason, WriterFailure};

/// What engines were told and have told.
#[derive(Debug, Default)]
pub(super) struct Progress {
    fenced_by: BTreeMap<usize, BTreeSet<BookieId>>,
    stalled: BTreeMap<usize, StallReason>,
    /// What owners heard to be stored, by bookies that are members.
    heard: BTreeMap<usize, BTreeSet<(EntryId, BookieId)>>,
    /// The record that an owner wrote last, and when it did: once, and before that.
    writes: BTreeMap<usize, (LedgerMetadata, u64, Option<u64>)>,
}

impl Progress {
    /// A recovery heard that a bookie has fenced. True if no ack quorum can be formed any more
    /// without a fenced bookie, so that it needs to hear of no other.
    pub(super) fn fenced(
        &mut self,
        recovery: usize,
        bookie: &BookieId,
        record: &LedgerMetadata,
    ) -> bool {
        let fenced = self.fenced_by.entry(recovery).or_default();
        fenced.insert(bookie.clone());
        let members = &record.last_fragment().bookies;
        let unfenced = members.iter().filter(|member| !fenced.contains(*member)).count();
        unfenced < record.ack_quorum as usize
    }

    /// An owner was told why its ledger doesn't move, or that it does.
    pub(super) fn stalled(&mut self, owner: usize, reason: Option<StallReason>) {
        match reason {
            Some(reason) => self.stalled.insert(owner, reason),
            None => self.stalled.remove(&owner),
        };
    }

    /// What an owner could confirm, by what it has heard, and has not.
    fn unconfirmed(&mut self, owner: usize, engine: &AppendEngine) -> Option<EntryId> {
        let heard = self.heard.get_mut(&owner)?;
        let (entry, record) = (engine.lac().next_entry(), engine.metadata());
        let members = &record.last_fragment().bookies;
        heard.retain(|(heard, bookie)| *heard >= entry && members.contains(bookie));
        let witnesses = engine.witnesses();
        let has =
            heard.iter().filter(|(heard, bookie)| *heard == entry && witnesses.contains(bookie));
        let waits = has.count() >= record.ack_quorum as usize;
        (waits && entry < engine.next_entry() && engine.ended().is_none()).then_some(entry)
    }

    /// An owner writes its ledger's record. True if it does so for the third time within `pause`.
    fn wrote(&mut self, owner: usize, record: &LedgerMetadata, now: u64, pause: u64) -> bool {
        let same = |last: &LedgerMetadata| {
            let end = |record: &LedgerMetadata| (record.state, record.last_entry);
            last.last_fragment() == record.last_fragment() && end(last) == end(record)
        };
        let (before, before_that) = match self.writes.get(&owner) {
            Some((last, at, before)) if same(last) => (Some(*at), *before),
            _ => (None, None),
        };
        self.writes.insert(owner, (record.clone(), now, before));
        before_that.is_some_and(|at| now - at < pause)
    }

    /// Whether an owner's ledger may fail so.
    pub(super) fn may_fail(&self, owner: usize, failure: &WriterFailure) -> bool {
        *failure != WriterFailure::QuorumLost
            || self.stalled.get(&owner) != Some(&StallReason::DiskFull)
    }
}

impl Checker {
    /// A recovery heard that a bookie has fenced; whether it goes on or has ended.
    pub fn fence_heard(
        &mut self,
        recovery: usize,
        bookie: &BookieId,
        record: &LedgerMetadata,
        goes_on: bool,
    ) {
        if self.progress.fenced(recovery, bookie, record) && !goes_on {
            let ledger = record.id;
            self.broken(|| format!("the recovery of {ledger} waits though its fence is complete"));
        }
    }

    /// A member of an owner's ensemble has said that it has an entry.
    pub fn heard(&mut self, writer: usize, entry: EntryId, bookie: &BookieId) {
        self.progress.heard.entry(writer).or_default().insert((entry, bookie.clone()));
    }

    /// Something has happened to an owner's ledger.
    pub fn moved(&mut self, writer: usize, engine: &AppendEngine) {
        if let Some(entry) = self.progress.unconfirmed(writer, engine) {
            let ledger = engine.metadata().id;
            self.broken(|| format!("{ledger}:{entry} has its copies and is not confirmed"));
        }
    }

    /// An owner writes its ledger's record; `pause` is what lies at least between two attempts in
    /// vain and the third.
    pub fn writes(&mut self, writer: usize, record: &LedgerMetadata, now: u64, pause: u64) {
        if self.progress.wrote(writer, record, now, pause) {
            let ledger = record.id;
            self.broken(|| format!("the record of {ledger} is written again without a pause"));
        }
    }

    /// An owner was told why its ledger doesn't move, or that it does.
    pub fn stalled(&mut self, writer: usize, reason: Option<StallReason>) {
        self.progress.stalled(writer, reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_may_fail_for_any_reason_but_for_lack_of_space() {
        let mut progress = Progress::default();
        assert!(progress.may_fail(1, &WriterFailure::QuorumLost));
        progress.stalled(1, Some(StallReason::DiskFull));
        assert!(!progress.may_fail(1, &WriterFailure::QuorumLost));
        assert!(progress.may_fail(1, &WriterFailure::Fenced));
        progress.stalled(1, Some(StallReason::Unavailable));
        assert!(progress.may_fail(1, &WriterFailure::QuorumLost));
        progress.stalled(1, None);
        assert!(progress.may_fail(1, &WriterFailure::QuorumLost));
    }
}
