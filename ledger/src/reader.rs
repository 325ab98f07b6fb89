//! Reads confirmed entries, from whichever bookie of their ensemble has them.
//!
//! It refuses to read above the last confirmed entry, and never takes one bookie's *no such
//! entry* for the truth: a confirmed entry may lack a copy.

pub(crate) mod hedging;

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use geminga_proto::id::{BookieId, EntryId, Lac, LedgerId};
use geminga_proto::storage::{BookieError, ReadRequest, ReadResult, StoredEntry};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::error::ReadError;
use crate::metadata::LedgerMetadata;
use crate::records;
use crate::store::StoreShared;

/// Where a closed ledger ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedLedger {
    /// The ledger.
    pub id: LedgerId,
    /// Its last entry; `None`: it is empty.
    pub last_entry: Lac,
    /// Bytes of its entries; see [`crate::metadata::LedgerMetadata::bytes`].
    pub bytes: u64,
}

impl ClosedLedger {
    pub(crate) fn of(metadata: &LedgerMetadata) -> Self {
        Self { id: metadata.id, last_entry: metadata.last_entry, bytes: metadata.bytes }
    }
}

/// Reads a closed ledger. Cheap to clone.
///
/// Repair may move what it reads: when no bookie that it knows of can send an entry, it looks where
/// the ledger's record has it now.
#[derive(Debug, Clone)]
pub struct LedgerReader {
    store: Arc<StoreShared>,
    /// As last read. Written by whoever found it out of date.
    metadata: Arc<Mutex<Arc<LedgerMetadata>>>,
    closed: ClosedLedger,
}

impl LedgerReader {
    pub(crate) fn new(store: Arc<StoreShared>, metadata: LedgerMetadata) -> Self {
        let closed = ClosedLedger::of(&metadata);
        Self { store, metadata: Arc::new(Mutex::new(Arc::new(metadata))), closed }
    }

    /// Where the ledger ends.
    #[must_use]
    pub fn closed(&self) -> &ClosedLedger {
        &self.closed
    }

    /// Reads consecutive entries from `first` on: at least one, at most `max_entries` and
    /// (beyond the first) `max_bytes`; fewer where an ensemble ends. Tries the next bookie when
    /// one fails.
    ///
    /// # Errors
    /// [`ReadError`] if `first` is above the last entry or no bookie can send it.
    pub async fn read(
        &self,
        first: EntryId,
        max_entries: u32,
        max_bytes: u64,
    ) -> Result<Vec<StoredEntry>, ReadError> {
        let limits = ReadLimits { max_entries, max_bytes };
        let (known, last) = (Arc::clone(&self.metadata.lock()), self.closed.last_entry);
        let (result, moved) = read_moved(&self.store, &known, last, first, limits).await;
        if let Some(moved) = moved {
            *self.metadata.lock() = Arc::new(moved);
        }
        result
    }
}

/// As [`read`], and once more if that fails and the record says by now that the entries are
/// elsewhere; answers that record, too.
pub(crate) async fn read_moved(
    store: &StoreShared,
    metadata: &LedgerMetadata,
    last: Lac,
    first: EntryId,
    limits: ReadLimits,
) -> (Result<Vec<StoredEntry>, ReadError>, Option<LedgerMetadata>) {
    let result = read(store, metadata, last, first, limits).await;
    if !matches!(result, Err(ReadError::Bookies { .. })) {
        return (result, None);
    }
    let found = records::load(store.meta.as_ref(), metadata.id, store.request_timeout).await;
    match found.map(|found| found.metadata) {
        Ok(found) if found.fragment_of(first).0 != metadata.fragment_of(first).0 => {
            (read(store, &found, last, first, limits).await, Some(found))
        }
        _ => (result, None),
    }
}

/// How much to read at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadLimits {
    pub max_entries: u32,
    pub max_bytes: u64,
}

/// Reads entries up to `last` from the ensemble of `first`.
pub(crate) async fn read(
    store: &StoreShared,
    metadata: &LedgerMetadata,
    last: Lac,
    first: EntryId,
    limits: ReadLimits,
) -> Result<Vec<StoredEntry>, ReadError> {
    let ledger = metadata.id;
    let Some(end) = last.0.filter(|end| first <= *end) else {
        return Err(ReadError::BeyondEnd { ledger, first, last });
    };
    let (fragment, next) = metadata.fragment_of(first);
    let end = next.and_then(EntryId::previous).map_or(end, |fragment_end| end.min(fragment_end));
    let left = u32::try_from(end.0 - first.0 + 1).unwrap_or(u32::MAX);
    let request = ReadRequest {
        ledger,
        first,
        max_entries: limits.max_entries.clamp(1, left),
        max_bytes: limits.max_bytes,
        fence: None,
    };
    let order = order(store, ledger, &fragment.bookies);
    match read_any(store, &order, request).await {
        Ok(entries) => Ok(entries),
        Err(error) => Err(ReadError::Bookies { ledger, entry: first, error }),
    }
}

/// In which order bookies are asked: always the same one first, whose cache and read-ahead then
/// know the ledger; which one differs from ledger to ledger. Those that had better not be asked
/// come last.
fn order<'a>(store: &StoreShared, ledger: LedgerId, bookies: &'a [BookieId]) -> Vec<&'a BookieId> {
    let count = bookies.len();
    let start = usize::try_from(ledger.0 % count.max(1) as u64).unwrap_or(0);
    let mut order: Vec<&BookieId> = bookies.iter().cycle().skip(start).take(count).collect();
    order.sort_by_key(|bookie| store.placement.is_suspect(bookie));
    order
}

/// Asks one bookie after the other: the next one when one fails, and also when it is slow and
/// [`hedging`] allows it, so that a bookie that hangs holds nobody up. The first that answers well
/// is taken.
///
/// The error is the most telling one.
async fn read_any(store: &StoreShared, order: &[&BookieId], request: ReadRequest) -> ReadResult {
    let (ledger, first) = (request.ledger, request.first);
    let mut left = order.iter();
    let mut asked = FuturesUnordered::new();
    let mut worst = BookieError::NoSuchEntry;
    let mut last = None;
    store.hedging.begin();
    loop {
        if let Some(bookie) = left.next() {
            asked.push(async move { (*bookie, read_counted(store, bookie, request).await) });
            last = Some(*bookie);
        }
        // The next bookie's turn may come when this is over.
        let patience = tokio::time::sleep(store.hedging.patience());
        tokio::pin!(patience);
        loop {
            tokio::select! {
                biased;
                answer = asked.next() => match answer {
                    Some((_, Ok(entries))) => return Ok(entries),
                    Some((bookie, Err(error))) => {
                        tracing::debug!(%ledger, entry = %first, %bookie, %error, "a read failed");
                        if rank(error) > rank(worst) {
                            worst = error;
                        }
                        if left.len() > 0 {
                            break;
                        }
                    }
                    None => return Err(worst),
                },
                () = &mut patience, if left.len() > 0 => {
                    let now = Instant::now();
                    let may = |bookie| {
                        store.hedging.may(bookie, store.placement.is_suspect(bookie), now)
                    };
                    if last.is_none_or(may) {
                        break;
                    }
                    patience.as_mut().reset(now + store.hedging.patience());
                }
            }
        }
    }
}

/// As [`read_one`], and tells the hedging what became of it.
async fn read_counted(store: &StoreShared, bookie: &BookieId, request: ReadRequest) -> ReadResult {
    let asked = store.hedging.ask(bookie, Instant::now());
    let result = read_one(store, bookie, request).await;
    if result != Err(BookieError::Unreachable) {
        asked.answered(Instant::now());
    }
    result
}

/// Asks one bookie, in time, and checks that it sent what was asked for.
pub(crate) async fn read_one(
    store: &StoreShared,
    bookie: &BookieId,
    request: ReadRequest,
) -> ReadResult {
    let asked = store.transport.read(bookie, request);
    let answer = tokio::time::timeout(store.request_timeout, asked).await;
    let mut entries = answer.unwrap_or(Err(BookieError::Unreachable))?;
    entries.truncate(request.max_entries as usize);
    let gapless =
        (request.first.0..).zip(&entries).all(|(number, stored)| stored.entry.0 == number);
    if entries.is_empty() || !gapless { Err(BookieError::Invalid) } else { Ok(entries) }
}

/// Which of several bookies' errors says most to the caller: one that may answer later comes
/// before damage, and damage before absence.
fn rank(error: BookieError) -> u8 {
    match error {
        BookieError::Unreachable | BookieError::Overloaded | BookieError::Io => 3,
        BookieError::CorruptEntry => 2,
        BookieError::Fenced
        | BookieError::WrongToken
        | BookieError::DiskFull
        | BookieError::ReadOnly
        | BookieError::UnknownEntry
        | BookieError::TooLarge
        | BookieError::Invalid => 1,
        BookieError::NoSuchEntry => 0,
    }
}

#[cfg(test)]
pub(crate) mod tests;
