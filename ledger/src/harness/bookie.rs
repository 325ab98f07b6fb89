//! A model of a bookie: what `proto::storage` promises, in memory.
//!
//! Adds, fences and reads that fence pass one queue; what is in it is lost in a crash and
//! answered by a sync. The fenced flag refuses adds from the moment the fence is in the queue,
//! and for ever once the ledger is deleted.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use geminga_proto::id::{EntryId, Lac, LedgerId, LedgerToken};
use geminga_proto::storage::{
    AddKind, AppendRequest, AppendResult, BookieError, FenceRequest, FenceResult, ReadRequest,
    ReadResult, StoredEntry,
};

use crate::harness::mutant::Mutant;

/// What a bookie is asked.
#[derive(Debug, Clone)]
pub enum Ask {
    /// To store an entry.
    Append(AppendRequest),
    /// To fence a ledger.
    Fence(FenceRequest),
    /// To read; the asker's number for it.
    Read(u64, ReadRequest),
}

/// What it answers.
#[derive(Debug, Clone)]
pub enum Answer {
    /// What came of an add.
    Append(EntryId, AppendResult),
    /// What came of a fence.
    Fence(FenceResult),
    /// What came of a read.
    Read(u64, ReadResult),
}

impl Ask {
    /// The answer that refuses it.
    #[must_use]
    pub fn refusal(&self, error: BookieError) -> Answer {
        match self {
            Self::Append(request) => Answer::Append(request.entry, Err(error)),
            Self::Fence(_) => Answer::Fence(Err(error)),
            Self::Read(round, _) => Answer::Read(*round, Err(error)),
        }
    }
}

/// Which adds a full disk refuses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fullness {
    /// None.
    #[default]
    Free,
    /// Ordinary ones.
    FirstMark,
    /// All.
    SecondMark,
}

#[derive(Debug, Clone, Default)]
struct Copy {
    payload: Bytes,
    lac: Lac,
    /// Rises with each copy that the bookie stores.
    number: u64,
}

#[derive(Debug, Clone, Default)]
struct Ledger {
    token: Option<LedgerToken>,
    fenced: bool,
    lac: Lac,
    entries: BTreeMap<EntryId, Copy>,
}

/// What a sync did: answers with their askers, and the entries that became durable.
pub type Synced = (Vec<(usize, Answer)>, Vec<(LedgerId, EntryId)>);

/// One bookie's disk and queue.
#[derive(Debug, Default)]
pub struct ModelBookie {
    durable: BTreeMap<LedgerId, Ledger>,
    /// Asked and not yet synced, with the asker.
    queue: Vec<(usize, Ask)>,
    /// Ledgers whose fence is in the queue.
    fencing: BTreeSet<LedgerId>,
    /// Ledgers that it has deleted. Their ids are never used again.
    deleted: BTreeSet<LedgerId>,
    /// Which adds it refuses.
    pub full: Fullness,
    /// Entries that fail their checksum.
    pub damaged: BTreeSet<(LedgerId, EntryId)>,
    /// A segment is missing: what isn't found may have been in it.
    pub segment_missing: bool,
    /// Adds that may wait for a sync; more are refused. `None`: any number.
    pub max_queue: Option<usize>,
    /// The planted defect, if it is one of a bookie.
    pub planted: Option<Mutant>,
    /// Copies stored so far.
    stored: u64,
}

impl ModelBookie {
    fn has(&self, mutant: Mutant) -> bool {
        self.planted == Some(mutant)
    }

    /// Takes a request; answers it at once if no sync is needed for that.
    pub fn ask(&mut self, from: usize, ask: Ask) -> Option<Answer> {
        match &ask {
            Ask::Append(request) => {
                if let Err(error) = self.admit(request) {
                    return Some(ask.refusal(error));
                }
                if self.has(Mutant::AckBeforeSync) {
                    let answer = Answer::Append(request.entry, Ok(()));
                    self.queue.push((from, ask));
                    return Some(answer);
                }
            }
            Ask::Fence(request) => {
                if let Err(error) = self.fence(request.ledger, request.token) {
                    return Some(ask.refusal(error));
                }
            }
            Ask::Read(round, request) => match request.fence {
                None => return Some(Answer::Read(*round, self.read(request))),
                Some(token) => {
                    if let Err(error) = self.fence(request.ledger, token) {
                        return Some(ask.refusal(error));
                    }
                }
            },
        }
        self.queue.push((from, ask));
        None
    }

    /// Whether a ledger takes no ordinary adds under a token any more.
    #[must_use]
    pub fn is_fenced(&self, asked: &FenceRequest) -> bool {
        let known = self.durable.get(&asked.ledger);
        self.deleted.contains(&asked.ledger)
            || self.fencing.contains(&asked.ledger)
            || known.is_some_and(|known| {
                known.fenced || known.token.is_some_and(|token| token != asked.token)
            })
    }

    fn token(&self, ledger: LedgerId) -> Option<LedgerToken> {
        self.durable.get(&ledger).and_then(|known| known.token)
    }

    fn admit(&self, request: &AppendRequest) -> AppendResult {
        if self.deleted.contains(&request.ledger) {
            return Err(BookieError::Fenced);
        }
        let wrong = self.token(request.ledger).is_some_and(|token| token != request.token);
        if wrong && !self.has(Mutant::TokenIgnored) {
            return Err(BookieError::WrongToken);
        }
        let recovery = request.kind == AddKind::Recovery;
        let fenced = self.fencing.contains(&request.ledger)
            || self.durable.get(&request.ledger).is_some_and(|known| known.fenced);
        if fenced && !recovery && !self.has(Mutant::FencedBookieTakesAdds) {
            return Err(BookieError::Fenced);
        }
        let refused = match self.full {
            Fullness::Free => false,
            Fullness::FirstMark => request.kind == AddKind::Ordinary,
            Fullness::SecondMark => true,
        };
        if refused {
            return Err(BookieError::DiskFull);
        }
        let full = self.max_queue.is_some_and(|limit| self.queue.len() >= limit);
        if full { Err(BookieError::Overloaded) } else { Ok(()) }
    }

    fn fence(&mut self, ledger: LedgerId, token: LedgerToken) -> AppendResult {
        if self.token(ledger).is_some_and(|known| known != token) {
            return Err(BookieError::WrongToken);
        }
        let unseen = !self.durable.contains_key(&ledger)
            && !self.queue.iter().any(|(_, ask)| asks_to_add(ask, ledger));
        if !(unseen && self.has(Mutant::UnseenLedgerNotFenced)) {
            self.fencing.insert(ledger);
        }
        Ok(())
    }

    /// Whether a sync would do anything.
    #[must_use]
    pub fn idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Makes the queue durable; answers what waited for that.
    pub fn sync(&mut self) -> Synced {
        let mut answers = Vec::new();
        let mut stored = Vec::new();
        for (from, ask) in std::mem::take(&mut self.queue) {
            match ask {
                Ask::Append(request) if self.deleted.contains(&request.ledger) => {
                    // Deleted while it was on its way to the disk.
                    answers.push((from, Answer::Append(request.entry, Err(BookieError::Fenced))));
                }
                Ask::Append(request) => {
                    let (ledger, entry) = (request.ledger, request.entry);
                    self.store(request);
                    stored.push((ledger, entry));
                    if !self.has(Mutant::AckBeforeSync) {
                        answers.push((from, Answer::Append(entry, Ok(()))));
                    }
                }
                Ask::Fence(request) => {
                    let lac = self.make_fence_durable(request.ledger, request.token);
                    answers.push((from, Answer::Fence(Ok(lac))));
                }
                Ask::Read(round, request) => {
                    if let Some(token) = request.fence {
                        self.make_fence_durable(request.ledger, token);
                    }
                    answers.push((from, Answer::Read(round, self.read(&request))));
                }
            }
        }
        (answers, stored)
    }

    fn make_fence_durable(&mut self, ledger: LedgerId, token: LedgerToken) -> Lac {
        if self.deleted.contains(&ledger) {
            return Lac::NONE;
        }
        // The defect keeps the flag in memory only.
        let fenced = self.fencing.contains(&ledger) && !self.has(Mutant::FenceNotDurable);
        let known = self.durable.entry(ledger).or_default();
        known.token.get_or_insert(token);
        known.fenced |= fenced;
        known.lac
    }

    /// Stores an entry durably, as a sync or a repair does.
    pub fn store(&mut self, request: AppendRequest) {
        let known = self.durable.entry(request.ledger).or_default();
        known.token.get_or_insert(request.token);
        known.lac = known.lac.max(request.lac);
        self.damaged.remove(&(request.ledger, request.entry));
        self.stored += 1;
        let (payload, number) = (request.payload.into_bytes(), self.stored);
        let copy = Copy { payload, lac: request.lac, number };
        known.entries.insert(request.entry, copy);
    }

    /// Loses what wasn't synced; answers who waits in vain.
    pub fn crash(&mut self) -> Vec<(usize, Ask)> {
        self.fencing.clear();
        std::mem::take(&mut self.queue)
    }

    /// Somebody who has the ledger's id, but not its token, wants to write to it.
    pub fn stranger(&mut self, ledger: LedgerId, entry: EntryId) -> AppendResult {
        let own = self.token(ledger).unwrap_or_default();
        let request = AppendRequest {
            ledger,
            entry,
            token: LedgerToken(!own.0),
            lac: Lac::NONE,
            kind: AddKind::Recovery,
            payload: Bytes::from_static(b"of another time").into(),
        };
        self.admit(&request)?;
        self.store(request);
        Ok(())
    }

    /// Deletes a ledger that is gone from the metadata.
    pub fn delete(&mut self, ledger: LedgerId) {
        self.durable.remove(&ledger);
        self.damaged.retain(|(damaged, _)| *damaged != ledger);
        if self.has(Mutant::DeletionForgetsFence) {
            self.fencing.remove(&ledger);
        } else {
            self.deleted.insert(ledger);
        }
    }

    /// Loses everything.
    pub fn wipe(&mut self) {
        self.deleted.clear();
        self.durable.clear();
        self.damaged.clear();
    }

    /// Deletes one copy, as a bookie does that has left a fragment's ensemble.
    pub fn drop_copy(&mut self, ledger: LedgerId, entry: EntryId) {
        if let Some(known) = self.durable.get_mut(&ledger) {
            known.entries.remove(&entry);
        }
    }

    /// The copies of a ledger, each with its number.
    #[must_use]
    pub fn copies(&self, ledger: LedgerId) -> Vec<(EntryId, u64)> {
        let known = self.durable.get(&ledger);
        let entries = known.into_iter().flat_map(|known| &known.entries);
        entries.map(|(entry, copy)| (*entry, copy.number)).collect()
    }

    /// Deletes one copy, unless the entry was stored anew since; whether it did.
    pub fn drop_copy_of(&mut self, ledger: LedgerId, entry: EntryId, number: u64) -> bool {
        let known = self.durable.get_mut(&ledger);
        let same = known.is_some_and(|known| {
            known.entries.get(&entry).is_some_and(|copy| copy.number == number)
        });
        if same {
            self.drop_copy(ledger, entry);
        }
        same
    }

    /// Whether it has deleted the ledger.
    #[must_use]
    pub fn has_deleted(&self, ledger: LedgerId) -> bool {
        self.deleted.contains(&ledger)
    }

    /// The ledgers that it knows.
    pub fn ledgers(&self) -> impl Iterator<Item = LedgerId> {
        self.durable.keys().copied()
    }

    /// The entries of a ledger that it has.
    #[must_use]
    pub fn entries(&self, ledger: LedgerId) -> Vec<EntryId> {
        self.durable
            .get(&ledger)
            .map_or(Vec::new(), |known| known.entries.keys().copied().collect())
    }

    /// Reads what is durable.
    pub fn read(&self, request: &ReadRequest) -> ReadResult {
        let mut found = Vec::new();
        let mut entry = request.first;
        while found.len() < request.max_entries as usize {
            match self.read_one(request.ledger, entry) {
                Ok(stored) => found.push(stored),
                Err(error) if found.is_empty() => return Err(error),
                Err(_) => break,
            }
            entry = entry.next();
        }
        Ok(found)
    }

    fn read_one(&self, ledger: LedgerId, entry: EntryId) -> Result<StoredEntry, BookieError> {
        if self.damaged.contains(&(ledger, entry)) {
            let lies = self.has(Mutant::CorruptIsNoSuchEntry);
            return Err(if lies { BookieError::NoSuchEntry } else { BookieError::CorruptEntry });
        }
        match self.durable.get(&ledger).and_then(|known| known.entries.get(&entry)) {
            Some(copy) => Ok(StoredEntry { entry, lac: copy.lac, payload: copy.payload.clone() }),
            None if self.segment_missing && !self.has(Mutant::UnknownIsNoSuchEntry) => {
                Err(BookieError::UnknownEntry)
            }
            None => Err(BookieError::NoSuchEntry),
        }
    }
}

fn asks_to_add(ask: &Ask, ledger: LedgerId) -> bool {
    matches!(ask, Ask::Append(request) if request.ledger == ledger)
}

#[cfg(test)]
mod tests {
    use geminga_proto::payload::Payload;

    use super::*;

    fn add(entry: u64, kind: AddKind) -> Ask {
        Ask::Append(AppendRequest {
            ledger: LedgerId(1),
            entry: EntryId(entry),
            token: LedgerToken(7),
            lac: Lac::NONE,
            kind,
            payload: Payload::from(Bytes::from_static(b"x")),
        })
    }

    #[test]
    fn an_enqueued_fence_refuses_adds_but_those_ahead_of_it_are_stored() {
        let mut bookie = ModelBookie::default();
        assert!(bookie.ask(0, add(0, AddKind::Ordinary)).is_none());
        let fence = FenceRequest { ledger: LedgerId(1), token: LedgerToken(7) };
        assert!(bookie.ask(1, Ask::Fence(fence)).is_none());
        let late = bookie.ask(0, add(1, AddKind::Ordinary));
        assert!(matches!(late, Some(Answer::Append(_, Err(BookieError::Fenced)))));
        assert!(bookie.ask(1, add(1, AddKind::Recovery)).is_none());
        let (answers, stored) = bookie.sync();
        assert_eq!(answers.len(), 3);
        assert_eq!(stored.len(), 2);
    }

    #[test]
    fn a_deleted_ledger_takes_no_adds_not_even_those_on_their_way_to_the_disk() {
        let mut bookie = ModelBookie::default();
        bookie.ask(0, add(0, AddKind::Ordinary));
        bookie.sync();
        assert!(bookie.ask(0, add(1, AddKind::Ordinary)).is_none());
        bookie.delete(LedgerId(1));
        let (answers, stored) = bookie.sync();
        assert!(matches!(answers[..], [(0, Answer::Append(_, Err(BookieError::Fenced)))]));
        assert_eq!(stored, []);
        for kind in [AddKind::Ordinary, AddKind::Recovery] {
            let late = bookie.ask(0, add(2, kind));
            assert!(matches!(late, Some(Answer::Append(_, Err(BookieError::Fenced)))));
        }
        assert_eq!(bookie.entries(LedgerId(1)), []);
    }

    #[test]
    fn a_crash_loses_only_what_was_not_answered() {
        let mut bookie = ModelBookie::default();
        bookie.ask(0, add(0, AddKind::Ordinary));
        bookie.sync();
        bookie.ask(0, add(1, AddKind::Ordinary));
        assert_eq!(bookie.crash().len(), 1);
        assert_eq!(bookie.entries(LedgerId(1)), [EntryId(0)]);
    }
}
