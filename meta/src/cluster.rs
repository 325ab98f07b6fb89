//! The cluster's record. In standalone the first start writes it ([`open`]); in a cluster an
//! operator does, once ([`init`]), and every process only reads it ([`read`]), so that a wrong
//! address or a wiped store never makes a second, empty cluster.
//!
//! Invariants: the id is never changed; a start whose release doesn't know the format version
//! writes nothing.

use std::convert::Infallible;

use geminga_proto::env::Env;
use geminga_proto::id::ClusterId;

use geminga_proto::topic_name::{NamespaceName, TenantName};

use crate::keys;
use crate::read::{ReadError, read as read_record};
use crate::record::{
    ClusterRecord, NamespacePolicies, NamespaceRecord, Nonce, Record, RecordError, TenantRecord,
};
use crate::store::{Compare, MetadataStore, StoreError, Txn, TxnOutcome};
use crate::update_loop::{Change, Current, RetryPolicy, UpdateError, Witness, commit, update};

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
    /// Nobody has initialised the cluster.
    #[error(
        "the metadata store has no cluster of this name; run `geminga cluster init` once, \
         or check cluster_name and the endpoints"
    )]
    NotInitialised,
    /// Too many others write at the same time.
    #[error("the cluster's record is being written by others; start again")]
    Contended,
}

/// The tenant that every cluster has.
pub const DEFAULT_TENANT: &str = "public";
/// The namespace in [`DEFAULT_TENANT`] that every cluster has.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Why a cluster is not initialised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitError {
    /// The store failed. After [`StoreError::Unknown`] it may be initialised all the same.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is initialised already.
    #[error("the cluster is initialised already, its id is {0}; nothing was changed")]
    AlreadyInitialised(ClusterId),
    /// Something else lies where the cluster's metadata would.
    #[error(
        "the metadata store is not empty: it holds {0:?}, but no cluster; nothing was changed. \
         Choose another cluster_name, or remove what is left of the former cluster"
    )]
    NotEmpty(String),
    /// The cluster's record is there, but can't be read.
    #[error("the cluster's record can't be used: {0}")]
    Record(RecordError),
    /// `bundles_per_namespace` makes no sense.
    #[error("bundles_per_namespace: {0} is not between 1 and 4096")]
    Bundles(u32),
}

/// Initialises a cluster in an empty store: its record, tenant `public`, namespace
/// `public/default` with so many bundles, all in one transaction.
///
/// # Errors
/// [`InitError`]; nothing is changed unless it says so.
pub async fn init(
    store: &dyn MetadataStore,
    env: &Env,
    bundles_per_namespace: u32,
) -> Result<ClusterRecord, InitError> {
    let most = u32::try_from(NamespaceRecord::MAX_BUNDLES).unwrap_or(u32::MAX);
    if !(1..=most).contains(&bundles_per_namespace) {
        return Err(InitError::Bundles(bundles_per_namespace));
    }
    refuse_if_used(store).await?;
    let created_ms = env.clock.wall_ms();
    let cluster =
        ClusterRecord { cluster_id: random_id(env), format_version: FORMAT_VERSION, created_ms };
    let tenant = TenantRecord { created_ms };
    let namespace = NamespaceRecord {
        created_ms,
        bundle_bounds: NamespaceRecord::even_bounds(bundles_per_namespace),
        policies: NamespacePolicies::default(),
    };
    let nonce = Nonce::new(&*env.random);
    let name = TenantName::new(DEFAULT_TENANT).expect("it is a valid name");
    let default = NamespaceName::new(DEFAULT_TENANT, DEFAULT_NAMESPACE).expect("it is valid");
    let mut txn = Txn::default();
    for (key, value) in [
        (keys::CLUSTER.to_owned(), cluster.encode(nonce)),
        (keys::tenant(&name), tenant.encode(nonce)),
        (keys::namespace(&default), namespace.encode(nonce)),
    ] {
        let value = value.map_err(InitError::Record)?;
        txn = txn.when(Compare::Absent(key.clone())).put(key, value);
    }
    let witness = Witness::new(keys::CLUSTER, nonce);
    match commit(store, env, RetryPolicy::default(), txn, &witness).await? {
        TxnOutcome::Applied(_) => Ok(cluster),
        // Somebody else was faster.
        TxnOutcome::Conflict(_) => {
            refuse_if_used(store).await?;
            Err(StoreError::Unavailable("the store was changed meanwhile".to_owned()).into())
        }
    }
}

/// Refuses unless nothing at all is in the store.
async fn refuse_if_used(store: &dyn MetadataStore) -> Result<(), InitError> {
    match read_record::<ClusterRecord>(store, keys::CLUSTER).await {
        Ok(Some(found)) => {
            return Err(InitError::AlreadyInitialised(found.record.cluster_id));
        }
        Ok(None) => {}
        Err(ReadError::Store(error)) => return Err(error.into()),
        Err(ReadError::Record { error, .. }) => return Err(InitError::Record(error)),
    }
    let first = store.range("", None, 1).await?.pairs.into_iter().next();
    first.map_or(Ok(()), |pair| Err(InitError::NotEmpty(pair.key)))
}

/// Reads the cluster's record, and never makes one.
///
/// # Errors
/// [`ClusterError`] says why this process must not use the metadata.
pub async fn read(store: &dyn MetadataStore) -> Result<ClusterRecord, ClusterError> {
    match read_record::<ClusterRecord>(store, keys::CLUSTER).await {
        Ok(Some(found)) => known(found.record),
        Ok(None) => Err(ClusterError::NotInitialised),
        Err(ReadError::Store(error)) => Err(error.into()),
        Err(ReadError::Record { error, .. }) => Err(ClusterError::Record(error)),
    }
}

fn known(record: ClusterRecord) -> Result<ClusterRecord, ClusterError> {
    if record.format_version > FORMAT_VERSION {
        let (found, known) = (record.format_version, FORMAT_VERSION);
        return Err(ClusterError::NewerFormat { found, known });
    }
    Ok(record)
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
    known(record)
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

    #[tokio::test(start_paused = true)]
    async fn a_cluster_is_initialised_once_and_reading_never_makes_one() {
        let store = MemoryStore::new(env(0).clock);
        assert_eq!(read(&store).await, Err(ClusterError::NotInitialised));
        assert_eq!(store.revision().0, 0, "nothing was written");
        assert_eq!(init(&store, &env(1), 0).await, Err(InitError::Bundles(0)));
        store.faults().next_txns([Fault::AnswerLost]);
        let made = init(&store, &env(1), 4).await.expect("made");
        assert_eq!(store.revision().0, 1, "all in one transaction");
        assert_eq!(read(&store).await, Ok(made.clone()));
        assert_eq!(open(&store, &env(2)).await, Ok(made.clone()));
        let page = store.range("", None, 10).await.expect("read");
        let keys: Vec<&str> = page.pairs.iter().map(|pair| pair.key.as_str()).collect();
        assert_eq!(keys, ["cluster", "namespaces/public/default", "tenants/public"]);
        let again = init(&store, &env(2), 4).await;
        assert_eq!(again, Err(InitError::AlreadyInitialised(made.cluster_id)));
        assert_eq!(store.revision().0, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_who_initialise_one_does_and_the_other_hears_whose_it_is() {
        let store = MemoryStore::new(env(0).clock);
        let (env_one, env_two) = (env(1), env(2));
        let both = tokio::join!(init(&store, &env_one, 4), init(&store, &env_two, 4));
        let (Ok(made), refused) = both else { panic!("the first is served first: {both:?}") };
        assert_eq!(refused, Err(InitError::AlreadyInitialised(made.cluster_id)));
    }

    #[tokio::test]
    async fn a_store_with_leftovers_is_not_initialised() {
        let store = MemoryStore::new(env(0).clock);
        store.txn(Txn::default().put("zebra", "v")).await.expect("written");
        let refused = init(&store, &env(1), 4).await;
        assert_eq!(refused, Err(InitError::NotEmpty("zebra".to_owned())));
        assert_eq!(store.revision().0, 1);
    }

    #[tokio::test]
    async fn metadata_of_a_newer_format_are_refused_and_left_alone() {
        let (store, env) = (MemoryStore::new(env(0).clock), env(1));
        let cluster_id = random_id(&env);
        let record = ClusterRecord { cluster_id, format_version: 2, created_ms: 1 };
        let value = record.encode(Nonce::new(&*env.random)).expect("valid");
        store.txn(Txn::default().put(keys::CLUSTER, value)).await.expect("written");
        let newer = Err(ClusterError::NewerFormat { found: 2, known: 1 });
        assert_eq!(open(&store, &env).await, newer);
        assert_eq!(read(&store).await, newer);
        assert_eq!(store.revision().0, 1);
    }
}
