//! Nothing waits for what it doesn't need: a recovery whose fence is complete goes on, whoever is
//! silent; a ledger that only lacks disk space waits for it and doesn't fail.

use std::collections::{BTreeMap, BTreeSet};

use geminga_proto::id::BookieId;

use crate::harness::checker::Checker;
use crate::metadata::LedgerMetadata;
use crate::observer::{StallReason, WriterFailure};

/// What engines were told and have told.
#[derive(Debug, Default)]
pub(super) struct Progress {
    fenced_by: BTreeMap<usize, BTreeSet<BookieId>>,
    stalled: BTreeMap<usize, StallReason>,
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
