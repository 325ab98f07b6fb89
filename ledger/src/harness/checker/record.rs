//! A ledger's state only moves forward; a closed ledger contains every entry that was confirmed and
//! never changes its end; whoever is told where a ledger ends is told what the metadata say.

use geminga_proto::id::EntryId;

use crate::harness::checker::Checker;
use crate::metadata::{LedgerMetadata, LedgerState};

impl Checker {
    /// A ledger's record was written.
    pub fn written(&mut self, written: &LedgerMetadata) {
        let ledger = written.id;
        if let Err(error) = written.validate() {
            self.broken(|| format!("an invalid record of {ledger} was written: {error}"));
            return;
        }
        let before = self.records.insert(ledger, written.clone());
        if let Some(before) = &before {
            self.check_transition(before, written);
        }
        let was_closed = before.is_some_and(|before| before.state == LedgerState::Closed);
        if written.state == LedgerState::Closed && !was_closed {
            self.check_closed(written);
        }
    }

    fn check_transition(&mut self, before: &LedgerMetadata, after: &LedgerMetadata) {
        let ledger = after.id;
        let forward = match before.state {
            LedgerState::Open => true,
            LedgerState::InRecovery => after.state != LedgerState::Open,
            LedgerState::Closed => after.state == LedgerState::Closed,
        };
        if !forward {
            self.broken(|| format!("{ledger} went from {:?} to {:?}", before.state, after.state));
        }
        if before.state == LedgerState::Closed && before.last_entry != after.last_entry {
            let (was, is) = (before.last_entry, after.last_entry);
            self.broken(|| format!("closed {ledger} changed its end from {was} to {is}"));
        }
        // A closed ledger may be widened, never narrowed.
        let widened = before.state == LedgerState::Closed;
        let quorum = before.write_quorum == after.write_quorum
            || (widened && before.write_quorum < after.write_quorum);
        if before.token != after.token || !quorum {
            self.broken(|| format!("{ledger} became another ledger"));
        }
    }

    fn check_closed(&mut self, record: &LedgerMetadata) {
        let ledger = record.id;
        let confirmed = self.confirmed.get(&ledger).copied().unwrap_or_default();
        if confirmed > record.last_entry {
            let end = record.last_entry;
            self.broken(|| format!("{ledger} was closed at {end}, confirmed was {confirmed}"));
        }
        let Some(last) = record.last_entry.0 else { return };
        for number in 0..=last.0 {
            let copies = self.copies(record, EntryId(number));
            if copies < record.ack_quorum {
                self.broken(|| format!("{ledger} was closed, {number} has {copies} copies"));
            }
            if copies < record.write_quorum && !record.under_replicated {
                self.broken(|| format!("{ledger}:{number} lacks copies and repair isn't told"));
            }
        }
    }

    /// Somebody was told where a ledger ends.
    pub fn told_closed(&mut self, told: &LedgerMetadata) {
        let known = self.records.get(&told.id);
        let same = known.is_some_and(|known| {
            known.state == LedgerState::Closed && known.last_entry == told.last_entry
        });
        if !same {
            let (ledger, last) = (told.id, told.last_entry);
            self.broken(|| format!("{ledger} was said to end at {last}, the metadata differ"));
        }
    }
}
