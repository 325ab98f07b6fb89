//! How anything in the store is changed: [`commit`] carries a transaction through lost answers,
//! [`update`] reads, changes and compare-and-swaps one record.
//!
//! A transaction whose answer is lost may have been applied, or may still be. [`commit`] sends it
//! again, *the same one*: since it compares the revision of what it writes, at most one of the
//! copies can apply. When a copy meets a conflict, the nonce under the witness key tells whether
//! an earlier copy was the cause.
//!
//! What can't be told is answered as [`StoreError::Unknown`], never guessed: it happens only when
//! a third party wrote the witness between the lost answer and the next copy.

use std::fmt::Debug;
use std::time::Duration;

use geminga_proto::env::{Env, Random};
use geminga_proto::v1::record::AnyRecord;
use prost::Message;

use crate::read::{ReadError, read};
use crate::record::{Nonce, Record, RecordError, Stored};
use crate::store::{Compare, MetadataStore, Op, Revision, StoreError, Txn, TxnOutcome};

/// How often and how patiently something is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all; at least 1.
    pub attempts: u32,
    /// Wait before the second attempt; doubles with each one, and a random part of up to half is
    /// taken off.
    pub first_delay: Duration,
    /// Longest wait.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    /// About ten seconds in all.
    fn default() -> Self {
        Self {
            attempts: 12,
            first_delay: Duration::from_millis(10),
            max_delay: Duration::from_secs(2),
        }
    }
}

impl RetryPolicy {
    /// The wait before attempt number `attempt`, the first being 1; before the first, none.
    #[must_use]
    pub fn delay(&self, random: &dyn Random, attempt: u32) -> Duration {
        let Some(doublings) = attempt.checked_sub(2) else { return Duration::ZERO };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let delay = self.first_delay.saturating_mul(factor).min(self.max_delay);
        let half_us = u64::try_from(delay.as_micros() / 2).unwrap_or(u64::MAX);
        delay.saturating_sub(Duration::from_micros(random.below(half_us.max(1))))
    }

    /// Waits before attempt number `attempt`.
    pub(crate) async fn pause(&self, env: &Env, attempt: u32) {
        let delay = self.delay(&*env.random, attempt);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }
}

/// By which key a writer recognises its own transaction: one that the transaction writes with a
/// record of this nonce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The key.
    pub key: String,
    /// The nonce of the record that the transaction puts there.
    pub nonce: Nonce,
}

impl Witness {
    /// The witness of a transaction that puts a record of `nonce` under `key`.
    #[must_use]
    pub fn new(key: impl Into<String>, nonce: Nonce) -> Self {
        Self { key: key.into(), nonce }
    }
}

/// Applies a transaction that writes `witness`, through unavailability and lost answers.
///
/// The transaction must put a record with the witness's nonce under the witness's key, and
/// compare that key (absent, or unchanged since it was read).
///
/// # Errors
/// The store's error once the attempts are used up, or [`StoreError::Unknown`] when the outcome
/// of a lost answer can't be told; or at once for an error that trying again doesn't mend.
///
/// # Panics
/// If the transaction doesn't compare and put the witness: a programmer's error.
pub async fn commit(
    store: &dyn MetadataStore,
    env: &Env,
    policy: RetryPolicy,
    txn: Txn,
    witness: &Witness,
) -> Result<TxnOutcome, StoreError> {
    let compared = expected_revision(&txn, witness);
    let mut unknown = None;
    let mut last = StoreError::Unavailable("no attempt was allowed".to_owned());
    for attempt in 1..=policy.attempts.max(1) {
        policy.pause(env, attempt).await;
        match store.txn(txn.clone()).await {
            Ok(TxnOutcome::Conflict(revision)) if unknown.is_some() => {
                match settle(store, witness, compared, revision).await {
                    Ok(Some(outcome)) => return Ok(outcome),
                    Ok(None) => break,
                    Err(error) => last = error,
                }
            }
            Ok(outcome) => return Ok(outcome),
            Err(error @ StoreError::Unknown(_)) => {
                last = error.clone();
                unknown = Some(error);
            }
            Err(error @ StoreError::Unavailable(_)) => last = error,
            // Trying again doesn't mend it. It is not done now; but an earlier copy may have been.
            Err(error) => {
                last = error;
                break;
            }
        }
    }
    let Some(unknown) = unknown else { return Err(last) };
    // The answers were lost, but the record may show that one of the copies was applied.
    // (If it doesn't, one may still be on its way.)
    match settle(store, witness, compared, Revision(0)).await {
        Ok(Some(applied @ TxnOutcome::Applied(_))) => Ok(applied),
        _ => Err(still_unknown(unknown, &last)),
    }
}

/// What became of something stays unknown, but what came last tells people what to do about it.
fn still_unknown(unknown: StoreError, last: &StoreError) -> StoreError {
    match (unknown, last) {
        (_, last @ StoreError::Unknown(_)) => last.clone(),
        (StoreError::Unknown(why), last) => StoreError::Unknown(format!("{why}; and then: {last}")),
        (other, _) => other,
    }
}

/// Which revision of the witness the transaction compares; `None`: that it is absent.
fn expected_revision(txn: &Txn, witness: &Witness) -> Option<Revision> {
    let put = |op: &Op| matches!(op, Op::Put { key, .. } if *key == witness.key);
    assert!(txn.ops.iter().any(put), "the transaction does not write its witness");
    let compared = |compare: &Compare| match compare {
        Compare::Absent(key) if *key == witness.key => Some(None),
        Compare::Unchanged(key, revision) if *key == witness.key => Some(Some(*revision)),
        _ => None,
    };
    let found = txn.compares.iter().find_map(compared);
    found.expect("commit is only called with a transaction that compares its witness")
}

/// A conflict after a lost answer: was the lost one applied? `None`: it can't be told.
async fn settle(
    store: &dyn MetadataStore,
    witness: &Witness,
    compared: Option<Revision>,
    conflict: Revision,
) -> Result<Option<TxnOutcome>, StoreError> {
    let found = store.get(&witness.key).await?;
    if let Some(pair) = &found
        && let Ok(AnyRecord { stamp: Some(stamp) }) = AnyRecord::decode(pair.value.clone())
        && stamp.nonce == witness.nonce.get()
    {
        return Ok(Some(TxnOutcome::Applied(pair.modified)));
    }
    // Had a copy been applied, the key could not be at the revision that was compared. (An absent
    // key doesn't show that: it may have been written and deleted since.)
    let untouched = compared.is_some() && found.map(|pair| pair.modified) == compared;
    Ok(untouched.then_some(TxnOutcome::Conflict(conflict)))
}

/// What [`update`] shows to a change.
#[derive(Debug, Clone, Copy)]
pub struct Current<'a, R> {
    /// The record, if there is one.
    pub stored: Option<&'a Stored<R>>,
    /// True if an earlier attempt of this very update may be contained in it already: its answer
    /// was lost, and somebody else wrote the record since. A change that must not be made twice
    /// looks for its own traces then.
    pub maybe_applied: bool,
}

/// What is to become of the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change<R> {
    /// This.
    Put(R),
    /// It stays as it is, there or not.
    Keep,
}

/// Why an update was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError<E: std::error::Error + 'static> {
    /// The change refused.
    #[error(transparent)]
    Refused(E),
    /// The record can't be read.
    #[error(transparent)]
    Read(ReadError),
    /// The new record is invalid.
    #[error("{key}: {error}")]
    Record {
        /// The key.
        key: String,
        /// What is wrong.
        error: RecordError,
    },
    /// The store failed; with [`StoreError::Unknown`], the update may have been made.
    #[error(transparent)]
    Store(StoreError),
    /// Others changed the record faster than this could.
    #[error("{key}: others changed it {attempts} times in a row; try again later")]
    Contended {
        /// The key.
        key: String,
        /// Attempts made.
        attempts: u32,
    },
}

/// Reads the record under `key`, lets `change` decide, and writes by compare-and-swap; reads and
/// decides anew when somebody else was faster. Answers what is stored in the end.
///
/// # Errors
/// [`UpdateError`]; only with [`StoreError::Unknown`] in it the update may have been made.
pub async fn update<R, E, F>(
    store: &dyn MetadataStore,
    env: &Env,
    policy: RetryPolicy,
    key: &str,
    mut change: F,
) -> Result<Option<Stored<R>>, UpdateError<E>>
where
    R: Record,
    E: std::error::Error + 'static,
    F: FnMut(Current<'_, R>) -> Result<Change<R>, E> + Send,
{
    let mut maybe_applied = false;
    for attempt in 1..=policy.attempts.max(1) {
        policy.pause(env, attempt).await;
        let stored = read_patiently::<R>(store, env, policy, key).await;
        // A failed read says nothing about an earlier attempt whose answer was lost.
        let stored = stored.map_err(|error| match error {
            ReadError::Store(error) if maybe_applied => {
                UpdateError::Store(still_unknown(lost(), &error))
            }
            _ if maybe_applied => UpdateError::Store(lost()),
            error => UpdateError::Read(error),
        })?;
        let current = Current { stored: stored.as_ref(), maybe_applied };
        let record = match change(current).map_err(UpdateError::Refused)? {
            Change::Put(record) => record,
            Change::Keep => return Ok(stored),
        };
        let nonce = Nonce::new(&*env.random);
        let invalid = |error| UpdateError::Record { key: key.to_owned(), error };
        let value = record.encode(nonce).map_err(invalid)?;
        let unchanged = |stored: &Stored<R>| stored.unchanged();
        let compare = stored.as_ref().map_or(Compare::Absent(key.to_owned()), unchanged);
        let txn = Txn::default().when(compare).put(key, value);
        match commit(store, env, policy, txn, &Witness::new(key, nonce)).await {
            Ok(TxnOutcome::Applied(revision)) => {
                return Ok(Some(Stored { key: key.to_owned(), record, nonce, revision }));
            }
            Ok(TxnOutcome::Conflict(_)) => {}
            // Once more: what is read then may contain this attempt.
            Err(StoreError::Unknown(_)) if !maybe_applied => maybe_applied = true,
            Err(error) if maybe_applied => {
                tracing::warn!(key, %error, "a record could not be settled after a lost answer");
                return Err(UpdateError::Store(still_unknown(lost(), &error)));
            }
            Err(error) => return Err(UpdateError::Store(error)),
        }
    }
    if maybe_applied {
        return Err(UpdateError::Store(lost()));
    }
    Err(UpdateError::Contended { key: key.to_owned(), attempts: policy.attempts })
}

fn lost() -> StoreError {
    StoreError::Unknown("the answer to an update was lost".to_owned())
}

async fn read_patiently<R: Record>(
    store: &dyn MetadataStore,
    env: &Env,
    policy: RetryPolicy,
    key: &str,
) -> Result<Option<Stored<R>>, ReadError> {
    let mut attempt = 1;
    loop {
        policy.pause(env, attempt).await;
        match read(store, key).await {
            Err(ReadError::Store(StoreError::Unavailable(_) | StoreError::Unknown(_)))
                if attempt < policy.attempts =>
            {
                attempt += 1;
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests;
