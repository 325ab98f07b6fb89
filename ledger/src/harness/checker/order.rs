//! Entries of a ledger are given out and confirmed in order, each once, and none beyond the end of
//! a closed ledger.

use geminga_proto::id::{EntryId, Lac, LedgerId};

use crate::harness::checker::{Append, Checker};
use crate::metadata::LedgerState;

impl Checker {
    /// An owner begins to append.
    pub fn begun(&mut self, ledger: LedgerId, entry: EntryId, content: u64, at: u64) {
        let append = Append { content, begun: at, confirmed: None, refused: false };
        if self.appends.insert((ledger, entry), append).is_some() {
            self.broken(|| format!("entry {ledger}:{entry} was given out twice"));
        }
    }

    /// An owner was told that everything up to `lac` is confirmed.
    pub fn confirmed(&mut self, ledger: LedgerId, lac: EntryId, at: u64) {
        let before = self.confirmed.insert(ledger, Lac(Some(lac))).unwrap_or_default();
        if before.covers(lac) {
            self.broken(|| format!("{ledger}:{lac} was confirmed twice"));
        }
        let Some(record) = self.records.get(&ledger).cloned() else {
            self.broken(|| format!("{ledger}:{lac} was confirmed in an unknown ledger"));
            return;
        };
        for number in before.next_entry().0..=lac.0 {
            let entry = EntryId(number);
            let begun = self.appends.get(&(ledger, entry)).map(|append| append.begun);
            if begun.is_some_and(|begun| !self.fences.allow(ledger, begun)) {
                self.broken(|| format!("{ledger}:{entry} was begun after a fence and confirmed"));
            }
            let copies = self.copies(&record, entry);
            if copies < record.ack_quorum {
                self.broken(|| format!("{ledger}:{entry} was confirmed with {copies} copies"));
            }
            if record.state == LedgerState::Closed && !record.last_entry.covers(entry) {
                self.broken(|| format!("{ledger}:{entry} was confirmed after the ledger's end"));
            }
            match self.appends.get_mut(&(ledger, entry)) {
                Some(append) => append.confirmed = Some(at),
                None => self.broken(|| format!("{ledger}:{entry} was confirmed, not appended")),
            }
            self.confirmed_entries += 1;
        }
    }
}
