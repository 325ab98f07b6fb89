//! [`Ownership`]: this broker's lease, and the bundles that it owns through it.
//!
//! The lease gives liveness, never safety: two brokers that both believe they own a bundle are
//! told apart by the state log's and the ledgers' fences and by the compare-and-swap on records.
//! So an unreachable metadata store doesn't end ownership; only a lease that is found lost does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use geminga_meta::bundle::BundleId;
use geminga_meta::keys;
use geminga_meta::read::{ReadError, read};
use geminga_meta::record::{BrokerRecord, Nonce, OwnershipRecord, Record, RecordError, SessionId};
use geminga_meta::store::{Compare, LeaseId, StoreError, Txn, TxnOutcome};
use geminga_meta::update_loop::{RetryPolicy, Witness, commit};
use parking_lot::Mutex;

use crate::core::api::Lookup;
use crate::core::context::Context;
use crate::core::watched;

/// Waits before a keep-alive that was not answered is sent again.
const RETRY: Duration = Duration::from_millis(500);

/// Why ownership couldn't be taken or looked up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OwnershipError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A record can't be written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Owners change faster than they can be read.
    #[error("the bundle's owner keeps changing")]
    Contended,
}

/// The broker's lease and what hangs on it.
#[derive(Debug)]
pub struct Ownership {
    context: Arc<Context>,
    /// Written by the keep-alive task.
    lease: Mutex<LeaseId>,
    /// Set once, when the broker stops: the lease is gone on purpose.
    released: AtomicBool,
}

impl Ownership {
    /// Takes a lease, announces the broker, and keeps both up.
    ///
    /// # Errors
    /// [`OwnershipError`] if the metadata can't be used.
    pub async fn start(
        context: &Arc<Context>,
        lost: impl Fn() + Send + Sync + 'static,
    ) -> Result<Arc<Self>, OwnershipError> {
        let lease = context.meta.grant_lease(context.config.lease_ttl).await?;
        let ownership = Arc::new(Self {
            context: Arc::clone(context),
            lease: Mutex::new(lease),
            released: AtomicBool::new(false),
        });
        ownership.announce(lease).await?;
        let (weak, lost) = (Arc::downgrade(&ownership), Arc::new(lost));
        let keep = move || keep_alive(Weak::clone(&weak), Arc::clone(&lost));
        context.runtime.spawn(watched::again("keeping the lease", keep));
        Ok(ownership)
    }

    /// Writes the broker's record under its lease; a record that an earlier run left is replaced.
    async fn announce(&self, lease: LeaseId) -> Result<(), OwnershipError> {
        let config = &self.context.config;
        let record = BrokerRecord {
            broker_id: config.broker_id.clone(),
            service_url: config.service_url.clone(),
            admin_url: config.admin_url.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: self.context.env.clock.wall_ms(),
            session: SessionId(0),
            lease,
            lease_ttl_ms: 0,
            draining: false,
            weight: BrokerRecord::DEFAULT_WEIGHT,
        };
        let key = keys::broker(&config.broker_id);
        self.put_leased::<BrokerRecord>(&key, lease, &record, |_| true).await.map(drop)
    }

    /// Writes `record` under the lease unless a record is there that may not be replaced; answers
    /// that one.
    async fn put_leased<R: Record>(
        &self,
        key: &str,
        lease: LeaseId,
        record: &R,
        replace: impl Fn(&R) -> bool,
    ) -> Result<Option<R>, OwnershipError> {
        let context = &self.context;
        for _ in 0..16 {
            let found = read::<R>(&*context.meta, key).await?;
            let compare = match &found {
                None => Compare::Absent(key.to_owned()),
                Some(found) if replace(&found.record) => found.unchanged(),
                Some(found) => return Ok(Some(found.record.clone())),
            };
            let nonce = Nonce::new(&*context.env.random);
            let txn = Txn::default().when(compare).put_leased(key, record.encode(nonce)?, lease);
            let (policy, witness) = (RetryPolicy::default(), Witness::new(key, nonce));
            match commit(&*context.meta, &context.env, policy, txn, &witness).await? {
                TxnOutcome::Applied(_) => return Ok(None),
                TxnOutcome::Conflict(_) => {}
            }
        }
        Err(OwnershipError::Contended)
    }

    /// Takes the bundle if nobody owns it; answers who owns it then.
    ///
    /// # Errors
    /// [`OwnershipError`] if the metadata can't be used.
    pub async fn acquire(&self, bundle: &BundleId) -> Result<Lookup, OwnershipError> {
        let config = &self.context.config;
        let lease = *self.lease.lock();
        let record = OwnershipRecord {
            broker_id: config.broker_id.clone(),
            service_url: config.service_url.clone(),
            admin_url: config.admin_url.clone(),
            session: SessionId(0),
        };
        // A record of an earlier run of this broker only waits for that run's lease to end.
        let ours = |found: &OwnershipRecord| found.broker_id == config.broker_id;
        let key = keys::ownership(bundle);
        Ok(match self.put_leased(&key, lease, &record, ours).await? {
            None => Lookup::Here,
            Some(owner) => elsewhere(owner),
        })
    }

    /// Who owns the bundle. Nobody: this broker is the one to ask.
    ///
    /// # Errors
    /// [`OwnershipError`] if the metadata can't be used.
    pub async fn owner(&self, bundle: &BundleId) -> Result<Lookup, OwnershipError> {
        let found = read::<OwnershipRecord>(&*self.context.meta, &keys::ownership(bundle)).await?;
        Ok(match found {
            Some(found) if found.record.broker_id != self.context.config.broker_id => {
                elsewhere(found.record)
            }
            _ => Lookup::Here,
        })
    }

    /// Gives everything up at once. The bundles are nobody's then.
    ///
    /// # Errors
    /// [`StoreError`]: everything goes when the lease ends.
    pub async fn release(&self) -> Result<(), StoreError> {
        self.released.store(true, Ordering::Release);
        let lease = *self.lease.lock();
        match self.context.meta.revoke_lease(lease).await {
            Err(StoreError::LeaseLost) => Ok(()),
            answer => answer,
        }
    }
}

fn elsewhere(owner: OwnershipRecord) -> Lookup {
    let (broker_id, service_url) = (owner.broker_id.to_string(), owner.service_url);
    Lookup::Elsewhere { broker_id, service_url }
}

/// Keeps the lease until the broker is gone. A lost lease ends what was owned, and a new one is
/// taken.
async fn keep_alive(ownership: Weak<Ownership>, lost: Arc<impl Fn() + Send + Sync>) {
    let mut wait = None;
    loop {
        let pause = match (&wait, ownership.upgrade()) {
            (Some(wait), _) => *wait,
            (None, Some(ownership)) => ownership.context.config.lease_ttl / 3,
            (None, None) => return,
        };
        tokio::time::sleep(pause).await;
        let Some(ownership) = ownership.upgrade() else { return };
        if ownership.released.load(Ordering::Acquire) {
            return;
        }
        let lease = *ownership.lease.lock();
        wait = match ownership.context.meta.keep_alive(lease).await {
            Ok(()) => None,
            Err(StoreError::LeaseLost) if ownership.released.load(Ordering::Acquire) => return,
            Err(StoreError::LeaseLost) => {
                tracing::error!("the broker's lease was lost; its bundles are given up");
                lost();
                ownership.renew().await.err().map(|error| {
                    tracing::error!(%error, "no new lease can be had");
                    RETRY
                })
            }
            Err(error) => {
                tracing::warn!(%error, "the broker's lease could not be kept alive");
                Some(RETRY)
            }
        };
    }
}

impl Ownership {
    async fn renew(&self) -> Result<(), OwnershipError> {
        let lease = self.context.meta.grant_lease(self.context.config.lease_ttl).await?;
        self.announce(lease).await?;
        *self.lease.lock() = lease;
        Ok(())
    }
}
