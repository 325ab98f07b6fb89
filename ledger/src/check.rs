//! Reads every copy of a ledger's entries and compares them. Changes nothing.
//!
//! *Invariants:* it looks only where nobody writes any more: at closed ledgers, and at fragments
//! that aren't the last. Of each bookie it holds the answer to one read at a time.

use std::hash::{BuildHasher, RandomState};

use futures_util::future::join_all;
use geminga_proto::id::{BookieId, EntryId, Lac, LedgerId};
use geminga_proto::storage::{BookieError, ReadRequest, ReadResult};

use crate::error::OpenError;
use crate::metadata::{LedgerMetadata, LedgerState};
use crate::reader::read_one;
use crate::repair::plan::entries_of;
use crate::store::LedgerStore;

/// Entries that are compared at a time.
const CHUNK_ENTRIES: u32 = 64;
/// Bytes that one read asks for.
const CHUNK_BYTES: u64 = 1024 * 1024;

/// What a bookie has of the entries that were looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiesAt {
    /// The bookie.
    pub bookie: BookieId,
    /// Copies that it reads well.
    pub good: u64,
    /// Entries that it never had, or has no more.
    pub missing: u64,
    /// Copies that fail their checksum.
    pub damaged: u64,
    /// Copies that differ from another bookie's.
    pub differing: u64,
    /// Entries of which it couldn't say anything: it can't be reached, or parts of its data are
    /// gone.
    pub unknown: u64,
    /// The first entry that isn't good.
    pub first_bad: Option<EntryId>,
}

impl CopiesAt {
    fn new(bookie: &BookieId) -> Self {
        Self {
            bookie: bookie.clone(),
            good: 0,
            missing: 0,
            damaged: 0,
            differing: 0,
            unknown: 0,
            first_bad: None,
        }
    }

    fn count(&mut self, entry: EntryId, found: Found) {
        match found {
            Found::Good => self.good += 1,
            Found::Differs => self.differing += 1,
            Found::Bad(BookieError::NoSuchEntry) => self.missing += 1,
            Found::Bad(BookieError::CorruptEntry) => self.damaged += 1,
            Found::Bad(_) => self.unknown += 1,
        }
        if found != Found::Good {
            self.first_bad = Some(self.first_bad.map_or(entry, |first| first.min(entry)));
        }
    }
}

/// What is remembered of a copy: its length, and a hash whose key is drawn for the comparison.
type Digest = (usize, u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    Good,
    Differs,
    Bad(BookieError),
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerCheck {
    /// The ledger.
    pub ledger: LedgerId,
    /// How far it is.
    pub state: LedgerState,
    /// The last entry that can be looked at; `None`: there is none.
    pub last_entry: Lac,
    /// Entries that were looked at.
    pub entries: u64,
    /// Entries without a single good copy.
    pub lost: u64,
    /// One for each bookie that is to have any of them.
    pub bookies: Vec<CopiesAt>,
    /// Where to go on; `None`: that was all.
    pub next: Option<EntryId>,
}

impl LedgerStore {
    /// Reads and compares every copy of up to `most` entries, from `first` on. Waits while others
    /// do so.
    ///
    /// # Errors
    /// [`OpenError`] if there is no such ledger.
    pub async fn check(
        &self,
        id: LedgerId,
        first: EntryId,
        most: u64,
    ) -> Result<LedgerCheck, OpenError> {
        // Nobody closes it.
        let _permit = self.shared.checks.acquire().await.ok();
        let metadata = self.describe(id).await?;
        let last = last_to_look_at(&metadata);
        let mut check = LedgerCheck {
            ledger: id,
            state: metadata.state,
            last_entry: last,
            entries: 0,
            lost: 0,
            bookies: Vec::new(),
            next: Some(first),
        };
        while let (Some(from), Some(last)) = (check.next, last.0) {
            if from > last {
                break;
            }
            if check.entries >= most {
                return Ok(check);
            }
            let (fragment, next) = metadata.fragment_of(from);
            let end = next.and_then(EntryId::previous).map_or(last, |end| end.min(last));
            let size = u64::from(CHUNK_ENTRIES).min(most - check.entries);
            let to = EntryId(end.0.min(from.0.saturating_add(size - 1)));
            self.compare(&mut check, &fragment.bookies, from, to).await;
            check.next = Some(to.next());
        }
        check.next = None;
        Ok(check)
    }

    async fn compare(
        &self,
        check: &mut LedgerCheck,
        bookies: &[BookieId],
        first: EntryId,
        last: EntryId,
    ) {
        let ledger = check.ledger;
        let key = RandomState::new();
        let asked = bookies.iter().map(|bookie| self.copies(ledger, bookie, (first, last), &key));
        let answers: Vec<Vec<Result<Digest, BookieError>>> = join_all(asked).await;
        for (at, entry) in (first.0..=last.0).enumerate() {
            let entry = EntryId(entry);
            check.entries += 1;
            let mut right: Option<&Digest> = None;
            for (bookie, copies) in bookies.iter().zip(&answers) {
                let found = match copies.get(at) {
                    Some(Ok(copy)) if *right.get_or_insert(copy) == copy => Found::Good,
                    Some(Ok(_)) => Found::Differs,
                    Some(Err(error)) => Found::Bad(*error),
                    None => Found::Bad(BookieError::Unreachable),
                };
                let known = check.bookies.iter().position(|known| known.bookie == *bookie);
                let known = known.unwrap_or_else(|| {
                    check.bookies.push(CopiesAt::new(bookie));
                    check.bookies.len() - 1
                });
                if let Some(known) = check.bookies.get_mut(known) {
                    known.count(entry, found);
                }
            }
            check.lost += u64::from(right.is_none());
        }
    }

    /// What a bookie has as each of these entries. Nothing more is asked of one that can't be
    /// reached.
    async fn copies(
        &self,
        ledger: LedgerId,
        bookie: &BookieId,
        (first, last): (EntryId, EntryId),
        key: &RandomState,
    ) -> Vec<Result<Digest, BookieError>> {
        let mut copies = Vec::new();
        let mut next = first;
        while next <= last {
            let left = u32::try_from(last.0 - next.0 + 1).unwrap_or(u32::MAX);
            let max_entries = left.min(CHUNK_ENTRIES);
            let (max_bytes, fence) = (CHUNK_BYTES, None);
            let request = ReadRequest { ledger, first: next, max_entries, max_bytes, fence };
            let answer: ReadResult = read_one(&self.shared, bookie, request).await;
            match answer {
                Ok(entries) => {
                    next = EntryId(next.0 + entries.len() as u64);
                    let digest = |payload: &[u8]| (payload.len(), key.hash_one(payload));
                    copies.extend(entries.iter().map(|stored| Ok(digest(&stored.payload))));
                }
                Err(BookieError::Unreachable) => break,
                Err(error) => {
                    copies.push(Err(error));
                    next = next.next();
                }
            }
        }
        copies
    }
}

/// The last entry that nobody writes near any more.
fn last_to_look_at(metadata: &LedgerMetadata) -> Lac {
    let last = crate::repair::plan::touchable(metadata).checked_sub(1);
    Lac(last.and_then(|index| entries_of(metadata, index)).map(|(_, last)| last))
}
