//! What is to be repaired, as whoever finds it says so: the scrubber of a bookie, the auditor.
//!
//! *Invariant:* a claim that is in the record stays there, whatever is added: the bookies that it
//! names depend on it.

use std::convert::Infallible;
use std::ops::RangeInclusive;

use geminga_proto::env::Env;
use geminga_proto::id::{BookieId, EntryId, LedgerId};

use crate::keys;
use crate::record::{RepairReason, RepairRecord, Stored};
use crate::store::{MetadataStore, StoreError};
use crate::update_loop::{Change, RetryPolicy, UpdateError, update};

/// Why something could not be queued. With [`StoreError::Unknown`] in it, it may have been.
pub type QueueError = UpdateError<Infallible>;

/// Queues a ledger for these reasons, or adds them to what is queued. Answers the task; `None` if
/// there is no such ledger (any more), so nothing to repair.
///
/// # Errors
/// [`QueueError`] if the store failed, or a record that is there can't be used.
pub async fn queue(
    store: &dyn MetadataStore,
    env: &Env,
    ledger: LedgerId,
    reasons: &[RepairReason],
) -> Result<Option<Stored<RepairRecord>>, QueueError> {
    // One that is deleted right after is taken out of the queue by whoever finds it there.
    if reasons.is_empty() || store.get(&keys::ledger(ledger)).await.map_err(away)?.is_none() {
        return Ok(None);
    }
    let now_ms = env.clock.wall_ms();
    let change = |current: crate::update_loop::Current<'_, RepairRecord>| {
        Ok(match current.stored {
            None => Change::Put(RepairRecord::new(reasons, now_ms)),
            Some(stored) => {
                let mut record = stored.record.clone();
                if record.add(reasons) { Change::Put(record) } else { Change::Keep }
            }
        })
    };
    update(store, env, RetryPolicy::default(), &keys::repair(ledger), change).await
}

fn away(error: StoreError) -> QueueError {
    UpdateError::Store(error)
}

/// Says that a bookie can't read these entries of a ledger any more, so that they are written to it
/// again from other copies. Says nothing new if that is known.
///
/// # Errors
/// As for [`queue`]; it may be said again.
pub async fn report_damage(
    store: &dyn MetadataStore,
    env: &Env,
    ledger: LedgerId,
    bookie: &BookieId,
    entries: RangeInclusive<EntryId>,
) -> Result<(), QueueError> {
    if entries.start() > entries.end() {
        return Ok(());
    }
    let (first, last) = (*entries.start(), *entries.end());
    let damaged = RepairReason::Damaged { bookie: bookie.clone(), first, last };
    queue(store, env, ledger, &[damaged]).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use geminga_proto::env::{ManualClock, SeededRandom};

    use super::*;
    use crate::read::read;
    use crate::record::{Nonce, Record, RepairClaim};
    use crate::store::memory::Fault;
    use crate::store::{MemoryStore, Txn};

    const LEDGER: LedgerId = LedgerId(7);

    fn bookie(name: &str) -> BookieId {
        BookieId::new(name).expect("valid")
    }

    fn world() -> (MemoryStore, Env) {
        let clock = Arc::new(ManualClock::default());
        let store = MemoryStore::new(Arc::clone(&clock) as _);
        (store, Env { clock, random: Arc::new(SeededRandom::new(1)) })
    }

    async fn task(store: &MemoryStore) -> Option<RepairRecord> {
        read(store, &keys::repair(LEDGER)).await.expect("read").map(|stored| stored.record)
    }

    #[tokio::test]
    async fn damage_is_merged_and_a_claim_stays() {
        let (store, env) = world();
        store.txn(Txn::default().put(keys::ledger(LEDGER), "x")).await.expect("written");
        let report = async |first, last| {
            let entries = EntryId(first)..=EntryId(last);
            report_damage(&store, &env, LEDGER, &bookie("a"), entries).await.expect("said");
        };
        report(1, 3).await;
        let mut record = task(&store).await.expect("queued");
        let targets = vec![bookie("d")];
        let claim = RepairClaim { id: 9, worker: "w".to_owned(), targets, claimed_ms: 0 };
        record.claim = Some(claim.clone());
        let value = record.encode(Nonce::new(&*env.random)).expect("valid");
        store.txn(Txn::default().put(keys::repair(LEDGER), value)).await.expect("written");
        // A lost answer makes no difference.
        store.faults().next_txns([Fault::AnswerLost]);
        report(4, 9).await;
        let merged = task(&store).await.expect("queued");
        let (first, last) = (EntryId(1), EntryId(9));
        let damaged = RepairReason::Damaged { bookie: bookie("a"), first, last };
        assert_eq!((merged.reasons, merged.claim), (vec![damaged], Some(claim)));
        let before = store.get(&keys::repair(LEDGER)).await;
        report(2, 5).await;
        assert_eq!(store.get(&keys::repair(LEDGER)).await, before, "what is known is not written");
    }

    #[tokio::test]
    async fn a_ledger_that_is_gone_is_not_queued() {
        let (store, env) = world();
        let queued = queue(&store, &env, LEDGER, &[RepairReason::Placement]).await;
        assert_eq!(queued, Ok(None));
        assert_eq!(task(&store).await, None);
    }
}
