//! At most one writer gets an acknowledgement after a fence: from the moment at which a recovery
//! holds a ledger's fence to be complete, nothing that the ledger's writer begins is confirmed,
//! whatever becomes of the ledger: recovered, closed, deleted.

use std::collections::BTreeMap;

use geminga_proto::id::LedgerId;

use crate::harness::checker::Checker;

/// When each ledger was first fenced.
#[derive(Debug, Default)]
pub(super) struct Fences(BTreeMap<LedgerId, u64>);

impl Fences {
    /// A recovery goes on from its fence.
    pub(super) fn complete(&mut self, ledger: LedgerId, at: u64) {
        self.0.entry(ledger).or_insert(at);
    }

    /// Whether an entry of the ledger that was begun at `begun` may be confirmed.
    pub(super) fn allow(&self, ledger: LedgerId, begun: u64) -> bool {
        self.0.get(&ledger).is_none_or(|fenced| begun <= *fenced)
    }
}

impl Checker {
    /// A recovery holds the ledger's fence to be complete.
    pub fn fenced(&mut self, ledger: LedgerId, at: u64) {
        self.fences.complete(ledger, at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_begun_before_the_first_fence_may_be_confirmed_and_nothing_later() {
        let mut fences = Fences::default();
        assert!(fences.allow(LedgerId(1), 9));
        fences.complete(LedgerId(1), 5);
        fences.complete(LedgerId(1), 8);
        assert!(fences.allow(LedgerId(1), 5) && !fences.allow(LedgerId(1), 6));
        assert!(fences.allow(LedgerId(2), 6));
    }
}
