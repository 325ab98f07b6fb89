//! A repair brings a bookie into a fragment only with every entry of it, leaves the last fragment
//! of a ledger that isn't closed alone, copies nothing beyond a ledger's end, and says that copies
//! lack no more only when none does; and no bookie drops a copy that it is to keep.

use geminga_proto::id::{BookieId, EntryId, LedgerId};

use crate::harness::checker::Checker;
use crate::metadata::{LedgerMetadata, LedgerState};
use crate::repair::plan::{entries_of, touchable};

impl Checker {
    /// A repair is about to write a ledger's record.
    pub fn repaired(&mut self, before: &LedgerMetadata, after: &LedgerMetadata) {
        let ledger = before.id;
        let pairs = before.fragments.iter().zip(&after.fragments).enumerate();
        for (index, (old, new)) in pairs {
            if index >= touchable(before) && old != new {
                let first = old.first_entry;
                self.broken(|| format!("a repair moved {ledger} from {first} on while it is open"));
            }
            let Some((first, last)) = entries_of(before, index) else { continue };
            for bookie in new.bookies.iter().filter(|bookie| !old.bookies.contains(bookie)) {
                for entry in (first.0..=last.0).map(EntryId) {
                    if !self.copies.contains(&(bookie.clone(), ledger, entry)) {
                        self.broken(|| format!("{bookie} came into {ledger} without {entry}"));
                    }
                }
            }
        }
        if before.under_replicated
            && !after.under_replicated
            && let Some(last) = after.last_entry.0
        {
            for entry in (0..=last.0).map(EntryId) {
                let copies = self.copies(after, entry);
                if copies < after.write_quorum {
                    self.broken(|| format!("{ledger}:{entry} was said to lack no copy: {copies}"));
                }
            }
        }
    }

    /// A repair has copied an entry.
    pub fn copied(&mut self, ledger: LedgerId, entry: EntryId) {
        let beyond = self.records.get(&ledger).is_some_and(|record| {
            record.state == LedgerState::Closed && !record.last_entry.covers(entry)
        });
        if beyond {
            self.broken(|| format!("{entry} was copied, beyond the end of {ledger}"));
        }
    }

    /// A bookie has deleted a copy that is no longer its to keep.
    pub fn dropped(&mut self, bookie: &BookieId, ledger: LedgerId, entry: EntryId) {
        self.copies.remove(&(bookie.clone(), ledger, entry));
        // What lies beyond a closed ledger's end is nobody's.
        let keeps = self.records.get(&ledger).is_some_and(|record| {
            let there = record.state != LedgerState::Closed || record.last_entry.covers(entry);
            there && record.fragment_of(entry).0.bookies.contains(bookie)
        });
        if keeps && !self.deleted.contains(&ledger) {
            self.broken(|| format!("{bookie} dropped {ledger}:{entry}, which is its to keep"));
        }
    }
}
