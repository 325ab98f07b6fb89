//! What is committed has its ack quorum of durable copies, and all of them where the record doesn't
//! say otherwise: every disk loses its power, and what is left on it is counted.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::FutureExt;
use geminga_bookie::bookie::Bookie;
use geminga_meta::record::LedgerState;
use geminga_proto::entry::split_stored;
use geminga_proto::id::{BookieId, EntryId, LedgerId};
use geminga_proto::storage::ReadRequest;

use crate::checker::closed::{Ledgers, ensemble};
use crate::client::content;
use crate::history::{Batch, Inner};

/// A bookie's disk in the end.
#[derive(Debug)]
pub(crate) enum Disk {
    /// What is on it counts.
    Opened(Bookie),
    /// It was damaged: it may have lost what it likes.
    Spoilt,
    /// It is gone, so nothing is on it.
    Lost,
}

/// Counts the copies of everything that has a receipt: all of them in a closed ledger whose record
/// doesn't say that it lacks some, else the ack quorum.
pub(crate) fn check(history: &mut Inner, ledgers: &Ledgers, disks: &BTreeMap<BookieId, Disk>) {
    let records: BTreeMap<LedgerId, _> = ledgers.present().collect();
    let mut missing = None;
    for topic in &history.topics {
        for (batch, stored) in &topic.stored {
            let place = stored.position;
            // What everybody has had is deleted.
            let Some(record) = records.get(&place.ledger) else { continue };
            let holders = ensemble(record, place.entry);
            let has = |bookie: &&BookieId| match disks.get(*bookie) {
                Some(Disk::Opened(disk)) => read(disk, place.ledger, place.entry) == Some(*batch),
                Some(Disk::Spoilt) => true,
                Some(Disk::Lost) | None => false,
            };
            let copies = holders.iter().filter(has).count();
            let closed = matches!(record.state, LedgerState::Closed { .. });
            let all = closed && !record.under_replicated;
            let wanted = if all { record.write_quorum } else { record.ack_quorum };
            if copies < wanted as usize {
                missing = Some(format!(
                    "{}: {batch:?} at {place:?} has {copies} copies on {holders:?}",
                    topic.name
                ));
            }
        }
    }
    if let Some(missing) = missing {
        history.broken(|| missing);
    }
}

fn read(bookie: &Bookie, ledger: LedgerId, entry: EntryId) -> Option<Batch> {
    let request =
        ReadRequest { ledger, first: entry, max_entries: 1, max_bytes: u64::MAX, fence: None };
    // Without threads a read is done at once.
    let stored = bookie.read(request).now_or_never()?.ok()?.pop()?;
    let payload: Bytes = stored.payload;
    let (_, entry) = split_stored(&payload).ok()?;
    content(&entry).map(|(_, batch, _)| batch)
}
