//! [`Session`]: the time that this broker holds one lease, on which its record and its bundles
//! hang; when a lease is lost, the next session begins.
//!
//! The lease gives liveness, never safety. An unreachable store doesn't end a session: only a lease
//! that is *found* lost does. From the moment at which it may have ended, counted on the monotonic
//! clock from when the last answered keep-alive was sent, the session is in doubt, and owners ask
//! their bookies whether somebody has fenced them.
//!
//! Invariant: one live session an id. A record of another session under this broker's id is
//! ended only if it must be over: at this process's start, if it was at the very place where this
//! process is, or nobody else can use the store; later, if it was this process's own. The addresses
//! that others are told decide nothing: two processes may be behind one of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use geminga_meta::keys;
use geminga_meta::read::read;
use geminga_meta::record::{BrokerRecord, Nonce, Record, SessionId, Stored};
use geminga_meta::store::{Compare, LeaseId, StoreError, Txn, TxnOutcome};
use geminga_meta::update_loop::{Witness, commit};
use geminga_proto::env::Monotonic;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::core::context::Context;
use crate::core::ownership::{COMMIT, OwnershipError};
use crate::core::watched;

/// Longest wait before a keep-alive that was not answered is sent again.
const RETRY: Duration = Duration::from_millis(500);
/// How long a store may take to end a lease that is over, beyond the lease's time: etcd looks
/// every half second, and counts anew after an election.
const LEASE_SLACK: Duration = Duration::from_millis(1_500);
/// Between two looks at another session's record.
const POLL: Duration = Duration::from_millis(50);
/// Wait before a session is begun again that another metadata store has ended.
const HOPELESS: Duration = Duration::from_secs(30);
/// How long somebody waits for the next session to begin.
const PATIENCE: Duration = Duration::from_secs(1);
/// Attempts at a record that others write.
const ATTEMPTS: u32 = 16;

/// One session's lease.
#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// The session.
    pub session: SessionId,
    /// Its lease.
    pub id: LeaseId,
    /// When the last keep-alive that was answered was sent.
    confirmed: Monotonic,
}

impl Lease {
    /// True from when the store may have ended it.
    #[must_use]
    fn is_in_doubt(&self, now: Monotonic, ttl: Duration) -> bool {
        now.saturating_sub(self.confirmed) >= ttl
    }
}

/// The broker's session.
#[derive(Debug)]
pub struct Session {
    context: Arc<Context>,
    /// Written by the keep-alive task; `None` between two sessions.
    lease: watch::Sender<Option<Lease>>,
    /// The last session of this process, whose record may be replaced.
    previous: Mutex<SessionId>,
    draining: AtomicBool,
    /// Set once, when the broker stops: the lease is gone on purpose.
    released: AtomicBool,
    /// The lease may be lost, or the store away: ask at once.
    check: Arc<Notify>,
}

impl Session {
    /// Takes a lease and announces the broker. [`Self::keep`] has to follow.
    ///
    /// # Errors
    /// [`OwnershipError::Duplicate`] if a broker of that id is running already, or why the
    /// metadata can't be used.
    pub async fn begin(context: &Arc<Context>) -> Result<Arc<Self>, OwnershipError> {
        let session = Arc::new(Self {
            context: Arc::clone(context),
            lease: watch::Sender::new(None),
            previous: Mutex::new(SessionId(0)),
            draining: AtomicBool::new(false),
            released: AtomicBool::new(false),
            check: context.health.question(),
        });
        session.renew().await?;
        Ok(session)
    }

    /// Keeps the lease until the broker is gone. `lost` ends what was owned through a lost one,
    /// and the next session begins.
    pub fn keep(self: &Arc<Self>, lost: impl Fn() + Send + Sync + 'static) {
        let (weak, lost) = (Arc::downgrade(self), Arc::new(lost));
        let keep = move || keep_alive(Weak::clone(&weak), Arc::clone(&lost));
        self.context.runtime.spawn(watched::again("keeping the lease", keep));
    }

    /// The lease, unless there is none at the moment.
    #[must_use]
    pub fn lease(&self) -> Option<Lease> {
        *self.lease.borrow()
    }

    /// The lease; waits a moment if the next session is only just beginning.
    pub async fn current(&self) -> Option<Lease> {
        let mut lease = self.lease.subscribe();
        let begun = tokio::time::timeout(PATIENCE, lease.wait_for(Option::is_some)).await;
        begun.ok()?.ok()?.as_ref().copied()
    }

    /// The session; `SessionId(0)`, which is nobody's, while there is none.
    #[must_use]
    pub fn id(&self) -> SessionId {
        self.lease().map_or(SessionId(0), |lease| lease.session)
    }

    /// Whether another broker may have got what this one owns: no keep-alive was answered for
    /// longer than the lease lasts, or there is none.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        let now = self.context.env.clock.monotonic();
        self.lease().is_none_or(|lease| lease.is_in_doubt(now, self.context.config.lease_ttl))
    }

    /// Asks the store at once whether the lease is still there.
    pub fn check_now(&self) {
        self.check.notify_one();
    }

    /// True once the broker gives its bundles away.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Tells all brokers that this one takes no more bundles.
    ///
    /// # Errors
    /// [`OwnershipError`]: the others don't know.
    pub async fn drain(&self) -> Result<(), OwnershipError> {
        self.draining.store(true, Ordering::Release);
        let Some(lease) = self.lease() else { return Ok(()) };
        let key = keys::broker(&self.context.config.broker_id);
        for _ in 0..ATTEMPTS {
            let found = read::<BrokerRecord>(&*self.context.meta, &key).await?;
            let Some(found) = found.filter(|found| found.record.session == lease.session) else {
                return Ok(());
            };
            if found.record.draining || self.put(&lease, found.unchanged()).await? {
                return Ok(());
            }
        }
        Err(OwnershipError::Contended)
    }

    /// Gives everything up at once. The bundles are nobody's then.
    ///
    /// # Errors
    /// [`StoreError`]: everything goes when the lease ends.
    pub async fn release(&self) -> Result<(), StoreError> {
        self.released.store(true, Ordering::Release);
        let Some(lease) = self.lease.send_replace(None) else { return Ok(()) };
        self.revoke(lease.id).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        match self.context.meta.revoke_lease(lease).await {
            Err(StoreError::LeaseLost) => Ok(()),
            answer => answer,
        }
    }

    /// Begins the next session, once there is no other live one of this id.
    async fn renew(&self) -> Result<(), OwnershipError> {
        let context = &self.context;
        for _ in 0..ATTEMPTS {
            // Before there is a lease: waiting may take longer than one lasts.
            let compare = self.supersede().await?;
            let confirmed = context.env.clock.monotonic();
            let id = context.meta.grant_lease(context.config.lease_ttl).await?;
            let session = SessionId::new(&*context.env.random);
            let lease = Lease { session, id, confirmed };
            let written = self.put(&lease, compare).await;
            if written == Ok(true) {
                *self.previous.lock() = session;
                self.lease.send_replace(Some(lease));
                return Ok(());
            }
            if let Err(error) = self.revoke(id).await {
                tracing::debug!(%error, "an unused lease ends by itself");
            }
            match written {
                // Somebody was faster, or etcd slower than the lease.
                Ok(_) => {}
                Err(error) if error.store_error() == Some(&StoreError::LeaseLost) => {}
                Err(error) => return Err(error),
            }
        }
        Err(OwnershipError::Contended)
    }

    /// Ends an earlier session of this id, or waits for its end; answers what has to hold for the
    /// next one's record to be written.
    async fn supersede(&self) -> Result<Compare, OwnershipError> {
        let key = keys::broker(&self.context.config.broker_id);
        for _ in 0..ATTEMPTS {
            match read::<BrokerRecord>(&*self.context.meta, &key).await? {
                None => return Ok(Compare::Absent(key)),
                Some(found) if !self.is_over(&found.record) => self.outlast(&key, found).await?,
                // Of a release whose records name no lease.
                Some(found) if found.record.lease == LeaseId(0) => return Ok(found.unchanged()),
                Some(found) => {
                    let former = found.record.session;
                    tracing::info!(%former, "an earlier session of this broker is ended");
                    self.revoke(found.record.lease).await?;
                }
            }
        }
        Err(OwnershipError::Contended)
    }

    /// Whether the session that wrote the record must be over.
    fn is_over(&self, record: &BrokerRecord) -> bool {
        let config = &self.context.config;
        let previous = *self.previous.lock();
        if previous != SessionId(0) {
            // Two processes that both end the other's session would go on for ever.
            return record.session == previous;
        }
        config.alone || (!config.place.is_empty() && record.place == config.place)
    }

    /// Waits until another session's lease has ended; refuses if it is kept alive.
    async fn outlast(&self, key: &str, found: Stored<BrokerRecord>) -> Result<(), OwnershipError> {
        let record = found.record;
        let patience = Duration::from_millis(record.lease_ttl_ms) + LEASE_SLACK;
        tracing::info!(
            url = record.service_url,
            "a broker of this id may be running; waiting until its lease has ended"
        );
        let started = tokio::time::Instant::now();
        while started.elapsed() < patience {
            tokio::time::sleep(POLL).await;
            let now = read::<BrokerRecord>(&*self.context.meta, key).await?;
            if now.is_none_or(|now| now.record.session != record.session) {
                return Ok(());
            }
        }
        let broker_id = record.broker_id.to_string();
        Err(OwnershipError::Duplicate { broker_id, service_url: record.service_url })
    }

    /// Writes the broker's record under the lease; answers false if `compare` didn't hold.
    async fn put(&self, lease: &Lease, compare: Compare) -> Result<bool, OwnershipError> {
        let (context, config) = (&self.context, &self.context.config);
        let ttl_ms = u64::try_from(config.lease_ttl.as_millis()).unwrap_or(u64::MAX);
        let record = BrokerRecord {
            broker_id: config.broker_id.clone(),
            service_url: config.service_url.clone(),
            admin_url: config.admin_url.clone(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
            started_ms: context.started_ms,
            session: lease.session,
            lease: lease.id,
            lease_ttl_ms: ttl_ms,
            draining: self.is_draining(),
            weight: config.weight,
            place: config.place.clone(),
        };
        let key = keys::broker(&config.broker_id);
        let nonce = Nonce::new(&*context.env.random);
        let txn = Txn::default().when(compare).put_leased(&key, record.encode(nonce)?, lease.id);
        let (policy, witness) = (COMMIT, Witness::new(key, nonce));
        let outcome = commit(&*context.meta, &context.env, policy, txn, &witness).await?;
        Ok(matches!(outcome, TxnOutcome::Applied(_)))
    }

    /// Asks the store for what it can't answer without being able to do its work.
    async fn look(&self, limit: Duration) -> Result<(), String> {
        let key = keys::broker(&self.context.config.broker_id);
        match tokio::time::timeout(limit.max(RETRY), self.context.meta.get(&key)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("leases are kept, but nothing else is done: {error}")),
            Err(_) => Err("leases are kept, but a read has no answer".to_owned()),
        }
    }

    /// One turn of keeping the lease; answers how long to wait before the next.
    async fn turn(&self, lost: &(impl Fn() + Send + Sync)) -> Duration {
        let (context, ttl) = (&self.context, self.context.config.lease_ttl);
        let retry = RETRY.min(ttl / 4);
        let Some(lease) = self.lease() else {
            return match self.renew().await {
                Ok(()) => {
                    context.health.answered(&context.env);
                    tracing::info!("a new session has begun");
                    ttl / 4
                }
                Err(error @ OwnershipError::Duplicate { .. }) => {
                    tracing::error!(%error, "this broker serves nothing");
                    ttl
                }
                // That doesn't pass.
                Err(error) if matches!(error.store_error(), Some(StoreError::Replaced(_))) => {
                    context.health.failed(&context.env, true, &error);
                    HOPELESS
                }
                Err(error) => {
                    context.health.failed(&context.env, true, &error);
                    retry
                }
            };
        };
        let sent = context.env.clock.monotonic();
        let kept = tokio::time::timeout(ttl.max(RETRY), context.meta.keep_alive(lease.id)).await;
        match kept {
            Ok(Ok(())) => {
                self.lease.send_if_modified(|current| {
                    if let Some(current) = current {
                        current.confirmed = sent;
                    }
                    false
                });
                if !context.health.is_suspect() {
                    return ttl / 4;
                }
                match self.look(ttl / 4).await {
                    Ok(()) => {
                        context.health.answered(&context.env);
                        ttl / 4
                    }
                    Err(why) => {
                        context.health.failed(&context.env, false, &why);
                        retry
                    }
                }
            }
            Ok(Err(error @ (StoreError::LeaseLost | StoreError::Replaced(_)))) => {
                if self.released.load(Ordering::Acquire) {
                    return Duration::ZERO;
                }
                tracing::error!(%error, "the broker's lease is lost; its bundles are given up");
                self.lease.send_replace(None);
                lost();
                Duration::ZERO
            }
            Ok(Err(error)) => {
                context.health.failed(&context.env, self.is_in_doubt(), &error);
                retry
            }
            Err(_) => {
                context.health.failed(&context.env, true, &"no answer to a keep-alive");
                Duration::ZERO
            }
        }
    }
}

async fn keep_alive(session: Weak<Session>, lost: Arc<impl Fn() + Send + Sync>) {
    let Some((mut pause, check)) = session
        .upgrade()
        .map(|session| (session.context.config.lease_ttl / 4, Arc::clone(&session.check)))
    else {
        return;
    };
    loop {
        // Over early if somebody wants to know.
        drop(tokio::time::timeout(pause, check.notified()).await);
        let Some(session) = session.upgrade() else { return };
        if session.released.load(Ordering::Acquire) {
            return;
        }
        pause = session.turn(&*lost).await;
    }
}
