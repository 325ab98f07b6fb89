//! Elections: who holds an office, by a key that hangs on the holder's lease.
//!
//! *Invariant:* an office gives liveness, not safety. Two processes may believe for a moment that
//! they hold it, so nothing that its holder does may depend on being the only one.

use std::sync::Arc;

use geminga_proto::env::Env;

use crate::keys::{self, Office};
use crate::read::{ReadError, read};
use crate::record::{HolderRecord, Nonce, Record, RecordError};
use crate::store::{Compare, MetadataStore, StoreError, Txn, TxnOutcome};
use crate::update_loop::{RetryPolicy, Witness, commit};

use crate::lease_keeper::LeaseKeeper;

/// Why it can't be told who holds an office.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElectionError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The holder's record can't be used.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The candidate's record can't be written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// What came of a candidacy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elected {
    /// The office is the candidate's for as long as its lease lasts.
    Me,
    /// Somebody else holds it.
    Other(HolderRecord),
}

/// Takes the office if nobody holds it. The key hangs on `lease`.
///
/// # Errors
/// [`ElectionError`]; the office may be the candidate's after [`StoreError::Unknown`], until its
/// lease ends.
pub async fn stand(
    store: &Arc<dyn MetadataStore>,
    env: &Env,
    office: Office,
    candidate: &HolderRecord,
    lease: &LeaseKeeper,
) -> Result<Elected, ElectionError> {
    let key = keys::election(office);
    // Looked at first: most of the time somebody holds it, and a look costs no write.
    if let Some(holder) = read::<HolderRecord>(store.as_ref(), &key).await? {
        let mine = holder.record == *candidate;
        return Ok(if mine { Elected::Me } else { Elected::Other(holder.record) });
    }
    let nonce = Nonce::new(&*env.random);
    let value = candidate.encode(nonce)?;
    let txn = Txn::default().when(Compare::Absent(key.clone()));
    let txn = txn.put_leased(key.clone(), value, lease.lease());
    let witness = Witness::new(key.clone(), nonce);
    match commit(store.as_ref(), env, RetryPolicy::default(), txn, &witness).await? {
        TxnOutcome::Applied(_) => Ok(Elected::Me),
        TxnOutcome::Conflict(_) => match read::<HolderRecord>(store.as_ref(), &key).await? {
            Some(holder) => Ok(Elected::Other(holder.record)),
            // It has just gone again.
            None => Err(StoreError::Unavailable("the office has just become free".into()).into()),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use geminga_proto::env::{ManualClock, SeededRandom};

    use super::*;
    use crate::record::SessionId;
    use crate::store::MemoryStore;
    use crate::store::memory::Fault;

    const TTL: Duration = Duration::from_secs(60);

    fn holder(name: &str, session: u64) -> HolderRecord {
        HolderRecord { holder: name.to_owned(), session: SessionId(session) }
    }

    #[tokio::test]
    async fn one_candidate_holds_the_office_until_its_lease_ends() {
        let clock = Arc::new(ManualClock::default());
        let memory = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let env = Env { clock, random: Arc::new(SeededRandom::new(1)) };
        let store: Arc<dyn MetadataStore> = Arc::clone(&memory) as _;
        let lease = async || LeaseKeeper::grant(Arc::clone(&store), env.clone(), TTL).await;
        let (one, two) = (lease().await.expect("granted"), lease().await.expect("granted"));
        let stand = async |who: &HolderRecord, lease: &LeaseKeeper| {
            stand(&store, &env, Office::Auditor, who, lease).await.expect("told")
        };
        let (left, right) = (holder("left", 1), holder("right", 2));
        // A lost answer makes nobody a holder twice, and nobody none.
        memory.faults().next_txns([Fault::AnswerLost]);
        assert_eq!(stand(&left, &one).await, Elected::Me);
        assert_eq!(stand(&left, &one).await, Elected::Me);
        assert_eq!(stand(&right, &two).await, Elected::Other(left.clone()));
        assert_eq!(stand(&holder("left", 3), &two).await, Elected::Other(left));
        one.release().await.expect("released");
        assert_eq!(stand(&right, &two).await, Elected::Me);
    }
}
