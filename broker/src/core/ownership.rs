//! [`Ownership`]: which broker owns which bundle, as the watched views have it, and taking and
//! releasing bundles.
//!
//! The lease gives liveness, never safety: two brokers that both believe they own a bundle are
//! told apart by the state log's and the ledgers' fences and by the compare-and-swap on records.
//! So an unreachable metadata store doesn't end ownership, and lookups are answered from the last
//! view; only a lease that is found lost ends it.
//!
//! An unowned bundle goes to the broker that rendezvous hashing picks among those that are live and
//! not draining. Brokers whose views differ may each send a client to the other; so whoever has
//! been asked for a while takes the bundle, whatever its view says (`reluctance`).

mod reluctance;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use geminga_meta::bundle::BundleId;
use geminga_meta::keys::{self, Key};
use geminga_meta::read::{ReadError, read};
use geminga_meta::record::{
    BrokerRecord, Nonce, OwnershipRecord, Record, RecordError, SessionId, Stored,
};
use geminga_meta::store::{Compare, Revision, StoreError, Txn, TxnOutcome};
use geminga_meta::update_loop::{RetryPolicy, Witness, commit};
use geminga_meta::watch_cache::{CacheError, WatchCache};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::core::api::Lookup;
use crate::core::context::Context;
#[cfg(any(test, feature = "simulation"))]
use crate::core::defect::Defect;
use crate::core::rendezvous;
use crate::core::session::Session;
use reluctance::Reluctance;

/// Attempts at a record that others write.
const ATTEMPTS: u32 = 16;
/// How long the view may take to show that a bundle was released before that is left to it.
const VIEW_PATIENCE: Duration = Duration::from_millis(100);
/// How patiently a record is written while somebody waits: about half a second.
pub const COMMIT: RetryPolicy = RetryPolicy {
    attempts: 6,
    first_delay: Duration::from_millis(10),
    max_delay: Duration::from_millis(200),
};

/// Why ownership couldn't be taken or looked up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OwnershipError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record in the view can't be read.
    #[error(transparent)]
    View(#[from] CacheError),
    /// A record can't be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Another process has this id.
    #[error("broker {broker_id} is running already at {service_url}; choose another broker_id")]
    Duplicate {
        /// The id.
        broker_id: String,
        /// Where the other one is.
        service_url: String,
    },
    /// This broker has no lease at the moment.
    #[error("this broker has no lease at the moment")]
    NoSession,
    /// The bundle's namespace is being deleted, or was.
    #[error("namespace {0} is being deleted")]
    Deleted(String),
    /// This broker gives its bundles away.
    #[error("this broker is stopping")]
    Draining,
    /// Owners change faster than they can be read.
    #[error("the record keeps changing")]
    Contended,
}

impl OwnershipError {
    /// Why the store failed, if that is all.
    #[must_use]
    pub fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) | Self::Read(ReadError::Store(error)) => Some(error),
            _ => None,
        }
    }
}

/// Who has a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// This broker's session.
    Here,
    /// Another session.
    Other(Arc<Stored<OwnershipRecord>>),
    /// Nobody.
    Nobody,
}

/// By what a bundle is this broker's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grip {
    /// Of the ownership record.
    pub revision: Revision,
    /// The session that wrote it.
    pub session: SessionId,
}

/// What came of taking a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It is this broker's.
    Here(Grip),
    /// Ask there.
    Elsewhere(Lookup),
}

/// Bundles with their owners' records.
pub type Owners = BTreeMap<BundleId, Arc<Stored<OwnershipRecord>>>;

/// Which broker owns what.
#[derive(Debug)]
pub struct Ownership {
    context: Arc<Context>,
    /// On whose lease hangs what this broker owns.
    pub session: Arc<Session>,
    brokers: WatchCache<BrokerRecord>,
    owners: WatchCache<OwnershipRecord>,
    reluctance: Mutex<Reluctance<BundleId>>,
}

impl Ownership {
    /// Begins the broker's session, and watches brokers and owners from then on.
    ///
    /// # Errors
    /// [`OwnershipError`] if the metadata can't be used, or the id is another broker's.
    pub async fn start(context: &Arc<Context>) -> Result<Arc<Self>, OwnershipError> {
        let session = Session::begin(context).await?;
        let (store, env) = (&context.meta, &context.env);
        let policy = RetryPolicy::default();
        let brokers = WatchCache::start(Arc::clone(store), env.clone(), policy, keys::BROKERS);
        let owners = WatchCache::start(Arc::clone(store), env.clone(), policy, keys::OWNERSHIP);
        let (brokers, owners) = tokio::try_join!(brokers, owners)?;
        let (context, reluctance) = (Arc::clone(context), Mutex::default());
        Ok(Arc::new(Self { context, session, brokers, owners, reluctance }))
    }

    /// Hears of each change of the views.
    #[must_use]
    pub fn changes(&self) -> (watch::Receiver<u64>, watch::Receiver<u64>) {
        (self.brokers.changes(), self.owners.changes())
    }

    /// The brokers that are up, as far as their records can be read.
    #[must_use]
    pub fn brokers(&self) -> Vec<Arc<Stored<BrokerRecord>>> {
        self.brokers.list_anyway().into_iter().filter_map(Result::ok).collect()
    }

    /// The names of brokers whose records can't be read, and why.
    #[must_use]
    pub fn unreadable_brokers(&self) -> Vec<(String, String)> {
        let listed = self.brokers.list_anyway().into_iter();
        let unreadable = listed.filter_map(|broker| match broker {
            Err(CacheError::Record { key, error }) => Some((key, error)),
            Ok(_) | Err(CacheError::Stale) => None,
        });
        let named = unreadable.map(|(key, error)| match Key::parse(&key) {
            Some(Key::Broker(broker)) => (broker.to_string(), error.to_string()),
            _ => (key, error.to_string()),
        });
        named.collect()
    }

    /// The owned bundles with their owners, as far as their records can be read.
    #[must_use]
    pub fn owners(&self) -> Owners {
        self.owned().0
    }

    /// The owned bundles with their owners; and those whose record can't be read, with the reason.
    /// Somebody has these: only the record's end makes a bundle nobody's.
    #[must_use]
    pub fn owned(&self) -> (Owners, BTreeMap<BundleId, String>) {
        let (mut owners, mut unreadable) = (BTreeMap::new(), BTreeMap::new());
        for listed in self.owners.list_anyway() {
            match listed {
                Ok(stored) => {
                    if let Some(Key::Ownership(bundle)) = Key::parse(&stored.key) {
                        owners.insert(bundle, stored);
                    }
                }
                Err(CacheError::Record { key, error }) => {
                    if let Some(Key::Ownership(bundle)) = Key::parse(&key) {
                        unreadable.insert(bundle, format!("{key}: {error}"));
                    }
                }
                // Said of a view as a whole, and never of a record.
                Err(CacheError::Stale) => {}
            }
        }
        (owners, unreadable)
    }

    /// False while the views are out of date.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.brokers.is_fresh() && self.owners.is_fresh()
    }

    /// Who has the bundle, as the view has it.
    ///
    /// # Errors
    /// [`OwnershipError::View`] if the record can't be read.
    pub fn holder(&self, bundle: &BundleId) -> Result<Holder, OwnershipError> {
        Ok(match self.owners.get_anyway(&keys::ownership(bundle))? {
            None => Holder::Nobody,
            Some(stored) if self.is_own(stored.record.session) => Holder::Here,
            Some(stored) => Holder::Other(stored),
        })
    }

    fn is_own(&self, session: SessionId) -> bool {
        session != SessionId(0) && session == self.session.id()
    }

    /// The broker that an unowned bundle goes to; `None`: this one, or nobody.
    #[must_use]
    pub fn chosen(&self, bundle: &BundleId) -> Option<Arc<Stored<BrokerRecord>>> {
        let brokers = self.brokers();
        let serving = brokers.iter().filter(|broker| !broker.record.draining);
        let weights = serving.map(|broker| (&broker.record.broker_id, broker.record.weight));
        let chosen = rendezvous::pick(bundle, weights)?.clone();
        let chosen = brokers.into_iter().find(|broker| broker.record.broker_id == chosen)?;
        (chosen.record.broker_id != self.context.config.broker_id).then_some(chosen)
    }

    /// Whether an unowned bundle goes to this broker.
    #[must_use]
    pub fn is_chosen(&self, bundle: &BundleId) -> bool {
        !self.session.is_draining() && self.chosen(bundle).is_none()
    }

    /// Where a client goes for a topic of the bundle, as the views have it.
    ///
    /// # Errors
    /// [`OwnershipError::View`] if the record can't be read.
    pub fn lookup(&self, bundle: &BundleId) -> Result<Lookup, OwnershipError> {
        Ok(match self.holder(bundle)? {
            Holder::Here => Lookup::Here,
            Holder::Other(owner) => elsewhere(&owner.record),
            Holder::Nobody => match self.chosen(bundle) {
                Some(chosen) => sent_to(&chosen.record),
                None => Lookup::Here,
            },
        })
    }

    /// Waits until the view doesn't say any more that a bundle which was released is this broker's:
    /// whoever is told to go elsewhere would else be sent back here. Not for long.
    pub async fn released(&self, bundle: &BundleId) {
        let mut changes = self.owners.changes();
        let is_here = || self.holder(bundle) == Ok(Holder::Here);
        let seen = async { while is_here() && changes.changed().await.is_ok() {} };
        if tokio::time::timeout(VIEW_PATIENCE, seen).await.is_err() {
            tracing::debug!(%bundle, "the view shows a released bundle still");
        }
    }

    /// Whether the record by which a bundle became this broker's is in the store still.
    ///
    /// # Errors
    /// [`OwnershipError`] if the metadata can't be used.
    pub async fn holds(&self, bundle: &BundleId, grip: Grip) -> Result<bool, OwnershipError> {
        let found = read::<OwnershipRecord>(&*self.context.meta, &keys::ownership(bundle)).await?;
        Ok(found.is_some_and(|found| found.revision == grip.revision))
    }

    /// Takes the bundle if nobody owns it and this broker is to have it, or has been asked for it
    /// for so long that views must differ.
    ///
    /// # Errors
    /// [`OwnershipError`] if the metadata can't be used.
    pub async fn acquire(&self, bundle: &BundleId) -> Result<Taken, OwnershipError> {
        match self.holder(bundle)? {
            Holder::Other(owner) => return Ok(Taken::Elsewhere(elsewhere(&owner.record))),
            Holder::Here => {}
            Holder::Nobody => {
                if let Some(chosen) = self.chosen(bundle)
                    && !self.is_overdue(bundle)
                {
                    return Ok(Taken::Elsewhere(sent_to(&chosen.record)));
                }
            }
        }
        let taken = self.take(bundle).await?;
        self.reluctance.lock().settled(bundle);
        Ok(taken)
    }

    fn is_overdue(&self, bundle: &BundleId) -> bool {
        let now = self.context.env.clock.monotonic();
        self.reluctance.lock().asked(bundle, now)
    }

    /// This broker's record for what a session of it owns.
    #[must_use]
    pub fn own_record(&self, session: SessionId) -> OwnershipRecord {
        let config = &self.context.config;
        OwnershipRecord {
            broker_id: config.broker_id.clone(),
            service_url: config.service_url.clone(),
            admin_url: config.admin_url.clone(),
            session,
        }
    }

    /// Writes this session's record if there is none.
    async fn take(&self, bundle: &BundleId) -> Result<Taken, OwnershipError> {
        let context = &self.context;
        let key = keys::ownership(bundle);
        for _ in 0..ATTEMPTS {
            // What is handed over at this moment would come back.
            if self.session.is_draining() {
                return Err(OwnershipError::Draining);
            }
            let lease = self.session.current().await.ok_or(OwnershipError::NoSession)?;
            let session = lease.session;
            let record = self.own_record(session);
            let nonce = Nonce::new(&*context.env.random);
            let txn = Txn::default()
                .when(Compare::Absent(key.clone()))
                .when(Compare::Present(keys::namespace(&bundle.namespace)))
                .when(Compare::Absent(keys::deletion(&bundle.namespace)));
            #[cfg(any(test, feature = "simulation"))]
            let txn = self.unleased_first(txn, &key, &record, nonce).await?;
            let txn = txn.put_leased(&key, record.encode(nonce)?, lease.id);
            let (policy, witness) = (COMMIT, Witness::new(&key, nonce));
            let outcome = commit(&*context.meta, &context.env, policy, txn, &witness).await;
            match outcome {
                Ok(TxnOutcome::Applied(revision)) => {
                    return Ok(Taken::Here(Grip { revision, session }));
                }
                Ok(TxnOutcome::Conflict(_)) => {}
                Err(StoreError::LeaseLost) => {
                    self.session.check_now();
                    return Err(OwnershipError::NoSession);
                }
                Err(error) => return Err(error.into()),
            }
            match read::<OwnershipRecord>(&*context.meta, &key).await? {
                Some(found) if found.record.session == session => {
                    return Ok(Taken::Here(Grip { revision: found.revision, session }));
                }
                Some(found) => return Ok(Taken::Elsewhere(elsewhere(&found.record))),
                None if self.is_deleted(bundle).await? => {
                    return Err(OwnershipError::Deleted(bundle.namespace.to_string()));
                }
                None => {}
            }
        }
        Err(OwnershipError::Contended)
    }

    /// If that is planted, writes the record without the lease, and answers what has to hold for it
    /// to be written once more with it.
    #[cfg(any(test, feature = "simulation"))]
    async fn unleased_first(
        &self,
        txn: Txn,
        key: &str,
        record: &OwnershipRecord,
        nonce: Nonce,
    ) -> Result<Txn, OwnershipError> {
        let context = &self.context;
        if context.config.planted != Some(Defect::LeaseCheckedAfter) {
            return Ok(txn);
        }
        let (unleased, witness) =
            (txn.clone().put(key, record.encode(nonce)?), Witness::new(key, nonce));
        let taken = commit(&*context.meta, &context.env, COMMIT, unleased, &witness).await?;
        Ok(match taken {
            TxnOutcome::Applied(revision) => {
                Txn::default().when(Compare::Unchanged(key.to_owned(), revision))
            }
            TxnOutcome::Conflict(_) => txn,
        })
    }

    async fn is_deleted(&self, bundle: &BundleId) -> Result<bool, OwnershipError> {
        let meta = &self.context.meta;
        let namespace = meta.get(&keys::namespace(&bundle.namespace)).await?;
        Ok(namespace.is_none() || meta.get(&keys::deletion(&bundle.namespace)).await?.is_some())
    }

    /// Deletes this broker's record of the bundle, and nobody else's. It is nobody's then. The
    /// caller has the turn at the bundle's slot.
    ///
    /// # Errors
    /// [`OwnershipError`]: it stays until the lease ends.
    pub async fn release(&self, bundle: &BundleId) -> Result<(), OwnershipError> {
        let key = keys::ownership(bundle);
        for _ in 0..ATTEMPTS {
            let found = read::<OwnershipRecord>(&*self.context.meta, &key).await?;
            let Some(found) = found.filter(|found| self.is_own(found.record.session)) else {
                return Ok(());
            };
            let txn = Txn::default().when(found.unchanged()).delete(key.clone());
            match self.context.meta.txn(txn).await {
                Ok(TxnOutcome::Applied(_)) => return Ok(()),
                // Looked at again: it may be done.
                Ok(TxnOutcome::Conflict(_)) | Err(StoreError::Unknown(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(OwnershipError::Contended)
    }
}

fn elsewhere(owner: &OwnershipRecord) -> Lookup {
    Lookup::Elsewhere {
        broker_id: owner.broker_id.to_string(),
        service_url: owner.service_url.clone(),
        admin_url: owner.admin_url.clone(),
    }
}

fn sent_to(broker: &BrokerRecord) -> Lookup {
    Lookup::Elsewhere {
        broker_id: broker.broker_id.to_string(),
        service_url: broker.service_url.clone(),
        admin_url: broker.admin_url.clone(),
    }
}
