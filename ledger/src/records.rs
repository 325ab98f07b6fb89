//! Ledger metadata in the metadata store: the typed record, read and compared-and-swapped.
//!
//! Invariant: what the store answers is told apart into applied, not applied and unknown, and a
//! request that takes too long is unknown.

use std::future::Future;
use std::time::Duration;

use geminga_meta::keys;
use geminga_meta::record::{self, LedgerRecord, Nonce, Record, Stored};
use geminga_meta::store::{Compare, MetadataStore, Revision, StoreError, Txn, TxnOutcome};
use geminga_proto::env::Env;
use geminga_proto::id::{Lac, LedgerId};

use crate::engine::{CommitAnswer, Versioned};
use crate::metadata::{Fragment, LedgerMetadata, LedgerState};

/// Why a record could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LoadError {
    Absent,
    Store(StoreError),
    Damaged(String),
}

/// The stored form.
pub(crate) fn to_record(metadata: &LedgerMetadata) -> LedgerRecord {
    let fragment = |fragment: &Fragment| record::Fragment {
        first_entry: fragment.first_entry,
        bookies: fragment.bookies.clone(),
    };
    LedgerRecord {
        token: metadata.token,
        state: match metadata.state {
            LedgerState::Open => record::LedgerState::Open,
            LedgerState::InRecovery => record::LedgerState::InRecovery,
            LedgerState::Closed => record::LedgerState::Closed {
                last_entry: metadata.last_entry.0,
                bytes: metadata.bytes,
            },
        },
        write_quorum: metadata.write_quorum,
        ack_quorum: metadata.ack_quorum,
        fragments: metadata.fragments.iter().map(fragment).collect(),
        created_ms: metadata.created_ms,
        under_replicated: metadata.under_replicated,
        owner: metadata.owner.clone(),
    }
}

/// Plain data from the stored form.
pub(crate) fn from_record(id: LedgerId, stored: LedgerRecord) -> LedgerMetadata {
    let (state, last_entry, bytes) = match stored.state {
        record::LedgerState::Open => (LedgerState::Open, None, 0),
        record::LedgerState::InRecovery => (LedgerState::InRecovery, None, 0),
        record::LedgerState::Closed { last_entry, bytes } => {
            (LedgerState::Closed, last_entry, bytes)
        }
    };
    let fragment = |fragment: record::Fragment| Fragment {
        first_entry: fragment.first_entry,
        bookies: fragment.bookies,
    };
    LedgerMetadata {
        id,
        token: stored.token,
        owner: stored.owner,
        state,
        write_quorum: stored.write_quorum,
        ack_quorum: stored.ack_quorum,
        fragments: stored.fragments.into_iter().map(fragment).collect(),
        last_entry: Lac(last_entry),
        bytes,
        created_ms: stored.created_ms,
        under_replicated: stored.under_replicated,
    }
}

/// Gives a request to the store so long; then its outcome is unknown.
pub(crate) async fn in_time<T>(
    timeout: Duration,
    request: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let late = |_| StoreError::Unknown(format!("no answer within {} ms", timeout.as_millis()));
    tokio::time::timeout(timeout, request).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

/// Reads a ledger's record.
pub(crate) async fn load(
    meta: &dyn MetadataStore,
    id: LedgerId,
    timeout: Duration,
) -> Result<Versioned, LoadError> {
    let key = keys::ledger(id);
    match in_time(timeout, meta.get(&key)).await {
        Ok(None) => Err(LoadError::Absent),
        Ok(Some(pair)) => {
            let damaged = |error: record::RecordError| LoadError::Damaged(error.to_string());
            let stored = Stored::<LedgerRecord>::from_pair(pair).map_err(damaged)?;
            let metadata = from_record(id, stored.record);
            metadata.validate().map_err(|error| LoadError::Damaged(error.to_string()))?;
            Ok(Versioned { metadata, version: stored.revision.0 })
        }
        Err(error) => Err(LoadError::Store(error)),
    }
}

/// Writes a ledger's record if it is still at `version`.
pub(crate) async fn commit(
    meta: &dyn MetadataStore,
    env: &Env,
    version: u64,
    metadata: &LedgerMetadata,
    timeout: Duration,
) -> CommitAnswer {
    let key = keys::ledger(metadata.id);
    let value = match to_record(metadata).encode(Nonce::new(env.random.as_ref())) {
        Ok(value) => value,
        Err(error) => {
            tracing::error!(ledger = %metadata.id, %error, "a ledger's record can't be written");
            return CommitAnswer::Unavailable;
        }
    };
    let txn =
        Txn::default().when(Compare::Unchanged(key.clone(), Revision(version))).put(key, value);
    commit_answer(metadata.id, in_time(timeout, meta.txn(txn)).await)
}

/// What the store's answer to the write of a ledger's record means.
fn commit_answer(id: LedgerId, answer: Result<TxnOutcome, StoreError>) -> CommitAnswer {
    match answer {
        Ok(TxnOutcome::Applied(revision)) => CommitAnswer::Committed(revision.0),
        Ok(TxnOutcome::Conflict(_)) => CommitAnswer::Conflict,
        Err(StoreError::Unknown(why)) => {
            tracing::warn!(ledger = %id, why, "a ledger's record may have been written");
            CommitAnswer::Unknown
        }
        // Each of these promises that it wasn't done: an ensemble that was changed and is taken
        // for unchanged loses entries.
        Err(
            error @ (StoreError::Unavailable(_)
            | StoreError::Full(_)
            | StoreError::Replaced(_)
            | StoreError::TooLarge(_)
            | StoreError::Invalid(_)
            | StoreError::LeaseLost
            | StoreError::Corrupt(_)
            | StoreError::Denied(_)),
        ) => {
            tracing::warn!(ledger = %id, %error, "a ledger's record was not written");
            CommitAnswer::Unavailable
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_store_promises_is_told_apart_from_unknown() {
        let (id, text) = (LedgerId(7), || "why".to_owned());
        let answer = |answer| commit_answer(id, answer);
        let applied = Ok(TxnOutcome::Applied(Revision(3)));
        assert_eq!(answer(applied), CommitAnswer::Committed(3));
        let conflict = Ok(TxnOutcome::Conflict(Revision(3)));
        assert_eq!(answer(conflict), CommitAnswer::Conflict);
        assert_eq!(answer(Err(StoreError::Unknown(text()))), CommitAnswer::Unknown);
        for error in [
            StoreError::Unavailable(text()),
            StoreError::Full(text()),
            StoreError::Replaced(text()),
            StoreError::Denied(text()),
            StoreError::LeaseLost,
        ] {
            assert_eq!(answer(Err(error)), CommitAnswer::Unavailable);
        }
    }
}
