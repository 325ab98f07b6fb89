//! Which copies here are nobody's: those of fragments whose ensemble this bookie has left.
//!
//! Repair moves copies, and may move them back. So a copy goes only if a look at the metadata found
//! that it isn't wanted, and that none is on its way:
//! - the ledger is closed, since recovery writes to bookies before the record names them;
//! - no fragment with that entry names this bookie;
//! - no claim of a repair of the ledger names it. Claims are read *before* the ledgers' records: a
//!   repair that ended in between is then in the record;
//! - it was in a segment that was complete before the look began. What a repair that claims later
//!   sends is in later ones.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use geminga_meta::keys::{self, Key};
use geminga_meta::record::{LedgerRecord, LedgerState, RepairRecord, Stored};
use geminga_meta::store::{KeyValue, MAX_RANGE};
use geminga_proto::id::{BookieId, EntryId, LedgerId, LedgerToken};

use super::{CollectError, Collector};

/// What of a closed ledger this bookie is to keep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub ledger: LedgerId,
    pub token: LedgerToken,
    /// Rising and apart; everything else is surplus.
    pub entries: Vec<RangeInclusive<EntryId>>,
}

impl Collector {
    /// Ledgers of which copies may be on their way to this bookie.
    pub(super) async fn claimed(
        &self,
        revision: &mut u64,
    ) -> Result<BTreeSet<LedgerId>, CollectError> {
        let mine = &self.bookie.identity().bookie;
        let mut claimed = BTreeSet::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.page(keys::REPAIRS, after.as_deref(), MAX_RANGE, revision).await?;
            after = page.pairs.last().map(|pair| pair.key.clone());
            for pair in page.pairs {
                let Some(Key::Repair(id)) = Key::parse(&pair.key) else { continue };
                // Of one that can't be read, nobody knows whom it names.
                let names = Stored::<RepairRecord>::from_pair(pair).is_ok_and(|task| {
                    task.record.claim.is_none_or(|claim| !claim.targets.contains(mine))
                });
                if !names {
                    claimed.insert(id);
                }
            }
            if !page.more || after.is_none() {
                return Ok(claimed);
            }
        }
    }
}

/// What `bookie` is to keep of the ledger in this pair; `None`: all of it, as far as it can be
/// told.
pub(super) fn kept(pair: &KeyValue, ledger: LedgerId, bookie: &BookieId) -> Option<Kept> {
    let record = Stored::<LedgerRecord>::from_pair(pair.clone()).ok()?.record;
    let LedgerState::Closed { last_entry, .. } = record.state else { return None };
    let mut entries: Vec<RangeInclusive<EntryId>> = Vec::new();
    let ends = record.fragments.iter().skip(1).map(|next| next.first_entry.previous());
    for (fragment, end) in record.fragments.iter().zip(ends.chain([last_entry])) {
        // A closed ledger may be empty, and so may its last fragment.
        let Some(end) = end.min(last_entry).filter(|end| *end >= fragment.first_entry) else {
            continue;
        };
        if !fragment.bookies.contains(bookie) {
            continue;
        }
        match entries.last_mut() {
            Some(last) if last.end().next() == fragment.first_entry => *last = *last.start()..=end,
            _ => entries.push(fragment.first_entry..=end),
        }
    }
    Some(Kept { ledger, token: record.token, entries })
}
