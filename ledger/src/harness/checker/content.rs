//! In the end every confirmed entry can be read, with its content, in an order that respects who
//! was confirmed before whom was begun, unless its ledger was deleted; and no entry that its owner
//! was told is not stored is there.

use std::collections::BTreeSet;

use geminga_proto::id::{EntryId, LedgerId};

use crate::harness::checker::Checker;
use crate::observer::WriterFailure;

impl Checker {
    /// A ledger was deleted, with everything in it. What is known of it still binds its writer.
    pub fn deleted(&mut self, ledger: LedgerId) {
        self.deleted.insert(ledger);
    }

    /// An owner's ledger failed; it was told which entries have an unknown outcome.
    pub fn failed(
        &mut self,
        writer: usize,
        ledger: LedgerId,
        failure: &WriterFailure,
        unknown: Option<(EntryId, EntryId)>,
    ) {
        if !self.progress.may_fail(writer, failure) {
            self.broken(|| format!("{ledger} waited for disk space and failed: {failure}"));
        }
        let range = (ledger, EntryId(0))..=(ledger, EntryId::MAX);
        for ((_, entry), append) in self.appends.range_mut(range) {
            let in_doubt = unknown.is_some_and(|(first, last)| (first..=last).contains(entry));
            append.refused = append.confirmed.is_none() && !in_doubt;
        }
    }

    /// Everything is over: `log` is what can be read, ledger by ledger. `unread`: what can't.
    pub fn finish(&mut self, log: &[(LedgerId, EntryId, u64)]) {
        let mut latest_begun = 0;
        let mut present = BTreeSet::new();
        for (ledger, entry, content) in log {
            let place = (*ledger, *entry);
            present.insert(place);
            let Some(append) = self.appends.get(&place).cloned() else {
                self.broken(|| format!("{ledger}:{entry} is there and was never appended"));
                continue;
            };
            if append.content != *content {
                self.broken(|| format!("{ledger}:{entry} has another content"));
            }
            if append.refused {
                self.broken(|| format!("{ledger}:{entry} is there, its owner was told it is not"));
            }
            if append.confirmed.is_some_and(|confirmed| confirmed < latest_begun) {
                self.broken(|| format!("{ledger}:{entry} lies behind an entry begun after it"));
            }
            latest_begun = latest_begun.max(append.begun);
        }
        let lost = self
            .appends
            .iter()
            .filter(|(place, append)| append.confirmed.is_some() && !present.contains(*place))
            .find(|((ledger, _), _)| !self.deleted.contains(ledger));
        if let Some(((ledger, entry), _)) = lost {
            let text = format!("{ledger}:{entry} was confirmed and is lost");
            self.broken(|| text);
        }
    }
}
