//! The cluster's record: the first start writes it, later starts check it.
//!
//! Invariants: the id is never changed; a start whose release doesn't know the format version
//! writes nothing.

use std::convert::Infallible;

use geminga_proto::env::Env;
use geminga_proto::id::ClusterId;

use crate::keys;
use crate::read::ReadError;
use crate::record::{ClusterRecord, RecordError};
use crate::store::{MetadataStore, StoreError};
use crate::update_loop::{Change, Current, RetryPolicy, UpdateError, update};

/// Version of the metadata as a whole that this build writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Why a start is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// The store didn't answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cluster's record can't be read.
    #[error("the cluster's record can't be used: {0}")]
    Record(RecordError),
    /// A newer release wrote the metadata.
    #[error(
        "the metadata has format version {found}, this release reads up to {known}; \
         start the release that wrote it, or a newer one"
    )]
    NewerFormat {
        /// Found.
        found: u32,
        /// Known.
        known: u32,
    },
    /// Too many others write at the same time.
    #[error("the cluster's record is being written by others; start again")]
    Contended,
}

/// Reads the cluster's record; the first start makes it.
///
/// # Errors
/// [`ClusterError`] says why this process must not use the metadata.
pub async fn open(store: &dyn MetadataStore, env: &Env) -> Result<ClusterRecord, ClusterError> {
    let change = |current: Current<'_, ClusterRecord>| {
        Ok::<_, Infallible>(match current.stored {
            Some(_) => Change::Keep,
            None => Change::Put(ClusterRecord {
                cluster_id: random_id(env),
                format_version: FORMAT_VERSION,
                created_ms: env.clock.wall_ms(),
            }),
        })
    };
    let stored = update(store, env, RetryPolicy::default(), keys::CLUSTER, change).await;
    let record = match stored {
        Ok(Some(stored)) => stored.record,
        // `change` puts a record when there is none.
        Ok(None) => return Err(ClusterError::Contended),
        Err(UpdateError::Refused(never)) => match never {},
        Err(UpdateError::Store(error) | UpdateError::Read(ReadError::Store(error))) => {
            return Err(error.into());
        }
        Err(
            UpdateError::Record { error, .. } | UpdateError::Read(ReadError::Record { error, .. }),
        ) => return Err(ClusterError::Record(error)),
        Err(UpdateError::Contended { .. }) => return Err(ClusterError::Contended),
    };
    if record.format_version > FORMAT_VERSION {
        let (found, known) = (record.format_version, FORMAT_VERSION);
        return Err(ClusterError::NewerFormat { found, known });
    }
    Ok(record)
}

fn random_id(env: &Env) -> ClusterId {
    let text = format!("{:016x}{:016x}", env.random.next_u64(), env.random.next_u64());
    ClusterId::new(&text).expect("32 hexadecimal digits are a name")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use geminga_proto::env::{ManualClock, SeededRandom};

    use super::*;
    use crate::record::{Nonce, Record};
    use crate::store::memory::Fault;
    use crate::store::{MemoryStore, Txn};

    fn env(seed: u64) -> Env {
        let clock = Arc::new(ManualClock::default());
        clock.set_wall_ms(1_700_000_000_000);
        Env { clock, random: Arc::new(SeededRandom::new(seed)) }
    }

    #[tokio::test]
    async fn the_first_start_names_the_cluster_and_later_ones_find_the_name() {
        let store = MemoryStore::new(env(0).clock);
        let first = open(&store, &env(1)).await.expect("made");
        assert_eq!((first.format_version, first.created_ms), (FORMAT_VERSION, 1_700_000_000_000));
        assert_eq!(open(&store, &env(2)).await, Ok(first));
    }

    #[tokio::test(start_paused = true)]
    async fn two_first_starts_and_a_lost_answer_agree_on_one_name() {
        let store = MemoryStore::new(env(0).clock);
        store.faults().next_txns([Fault::AnswerLost]);
        let (env_one, env_two) = (env(1), env(2));
        let (one, two) = tokio::join!(open(&store, &env_one), open(&store, &env_two));
        assert_eq!(one.expect("made"), two.expect("found"));
    }

    #[tokio::test]
    async fn metadata_of_a_newer_format_are_refused_and_left_alone() {
        let (store, env) = (MemoryStore::new(env(0).clock), env(1));
        let cluster_id = random_id(&env);
        let record = ClusterRecord { cluster_id, format_version: 2, created_ms: 1 };
        let value = record.encode(Nonce::new(&*env.random)).expect("valid");
        store.txn(Txn::default().put(keys::CLUSTER, value)).await.expect("written");
        let refused = open(&store, &env).await;
        assert_eq!(refused, Err(ClusterError::NewerFormat { found: 2, known: 1 }));
        assert_eq!(store.revision().0, 1);
    }
}
