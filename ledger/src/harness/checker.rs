//! The history checker: hears what owners did and were told, what bookies made durable and what
//! was written to the metadata, and says which promise was broken first.
//!
//! Checked:
//! - entries of a ledger are confirmed in order, each once;
//! - a confirmed entry is on an ack quorum of the ensemble that the metadata names for it, and
//!   so is every entry of a ledger at the moment it is closed;
//! - an entry that lacks copies when its ledger is closed is marked for repair;
//! - a closed ledger contains every entry that was confirmed, and never changes its end;
//! - a ledger's state only moves forward, and its owner and the metadata agree on its end;
//! - a recovery waits for no bookie that it can do without, and a lack of space fails no ledger
//!   (`checker/progress`);
//! - nothing that is begun after a ledger's fence is confirmed (`checker/fence`);
//! - in the end every confirmed entry can be read, with its content, in an order that respects
//!   who was confirmed before whom was begun, unless its ledger was deleted;
//! - no entry that its owner was told is not stored is there.

use std::collections::{BTreeMap, BTreeSet};

use geminga_proto::id::{BookieId, EntryId, Lac, LedgerId};

use crate::harness::checker::fence::Fences;
use crate::harness::checker::progress::Progress;
use crate::metadata::{LedgerMetadata, LedgerState};
use crate::observer::{StallReason, WriterFailure};

mod fence;
mod progress;

/// One entry that an owner appended.
#[derive(Debug, Clone)]
struct Append {
    content: u64,
    begun: u64,
    confirmed: Option<u64>,
    /// Its owner was told that it is not stored.
    refused: bool,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Checker {
    appends: BTreeMap<(LedgerId, EntryId), Append>,
    copies: BTreeSet<(BookieId, LedgerId, EntryId)>,
    records: BTreeMap<LedgerId, LedgerMetadata>,
    confirmed: BTreeMap<LedgerId, Lac>,
    fences: Fences,
    progress: Progress,
    deleted: BTreeSet<LedgerId>,
    /// How many entries were confirmed.
    pub confirmed_entries: u64,
    /// The first promise that was broken.
    pub violation: Option<String>,
}

impl Checker {
    /// A promise was broken.
    pub fn broken(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    /// An owner begins to append.
    pub fn begun(&mut self, ledger: LedgerId, entry: EntryId, content: u64, at: u64) {
        let append = Append { content, begun: at, confirmed: None, refused: false };
        if self.appends.insert((ledger, entry), append).is_some() {
            self.broken(|| format!("entry {ledger}:{entry} was given out twice"));
        }
    }

    /// A bookie has made an entry durable.
    pub fn stored(&mut self, bookie: &BookieId, ledger: LedgerId, entry: EntryId) {
        self.copies.insert((bookie.clone(), ledger, entry));
    }

    /// A bookie has deleted a copy that is no longer its to keep.
    pub fn dropped(&mut self, bookie: &BookieId, ledger: LedgerId, entry: EntryId) {
        self.copies.remove(&(bookie.clone(), ledger, entry));
    }

    fn copies(&self, metadata: &LedgerMetadata, entry: EntryId) -> u32 {
        let (fragment, _) = metadata.fragment_of(entry);
        let has =
            |bookie: &&BookieId| self.copies.contains(&((*bookie).clone(), metadata.id, entry));
        u32::try_from(fragment.bookies.iter().filter(has).count()).unwrap_or(u32::MAX)
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

    /// A recovery holds the ledger's fence to be complete.
    pub fn fenced(&mut self, ledger: LedgerId, at: u64) {
        self.fences.complete(ledger, at);
    }

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
        if before.token != after.token || before.write_quorum != after.write_quorum {
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
