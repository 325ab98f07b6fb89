//! [`LeaseKeeper`]: a lease that a task keeps alive, for what one process may do at a time.
//!
//! Whether the lease is held is told by the clock, counted from when the last keep-alive that was
//! answered was *sent*: so a process that stood still knows that it may have lost it, before it has
//! asked anybody.
//!
//! *Invariant:* once lost, a keeper's lease never counts as held again; whoever wants to go on
//! takes another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use geminga_proto::env::{Env, Monotonic};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::store::{LeaseId, MetadataStore, StoreError};

#[derive(Debug)]
struct Shared {
    env: Env,
    ttl: Duration,
    lease: LeaseId,
    /// When the last keep-alive that was answered was sent, in microseconds of the monotonic clock.
    /// Written by the keeping task.
    confirmed_us: AtomicU64,
    /// Set once and never taken back.
    lost: AtomicBool,
    told: watch::Sender<bool>,
}

impl Shared {
    fn confirm(&self, sent: Monotonic) {
        let sent_us = u64::try_from(sent.as_micros()).unwrap_or(u64::MAX);
        self.confirmed_us.store(sent_us, Ordering::Release);
    }

    fn lose(&self) {
        self.lost.store(true, Ordering::Release);
        self.told.send_replace(true);
    }

    fn is_held(&self) -> bool {
        let confirmed = Duration::from_micros(self.confirmed_us.load(Ordering::Acquire));
        let silent = self.env.clock.monotonic().saturating_sub(confirmed);
        if silent >= self.ttl {
            self.lose();
        }
        !self.lost.load(Ordering::Acquire)
    }
}

/// See the module. Dropping it lets the lease end by itself.
#[derive(Debug)]
pub struct LeaseKeeper {
    shared: Arc<Shared>,
    store: Arc<dyn MetadataStore>,
    task: AbortHandle,
}

impl Drop for LeaseKeeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LeaseKeeper {
    /// Takes a lease and keeps it alive from then on. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`StoreError`] if none is granted.
    pub async fn grant(
        store: Arc<dyn MetadataStore>,
        env: Env,
        ttl: Duration,
    ) -> Result<Self, StoreError> {
        let asked = env.clock.monotonic();
        let lease = store.grant_lease(ttl).await?;
        let shared = Arc::new(Shared {
            env,
            ttl,
            lease,
            confirmed_us: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            told: watch::Sender::new(false),
        });
        shared.confirm(asked);
        let task = tokio::spawn(keep(Arc::clone(&shared), Arc::clone(&store))).abort_handle();
        Ok(Self { shared, store, task })
    }

    /// The lease, for what is to hang on it.
    #[must_use]
    pub fn lease(&self) -> LeaseId {
        self.shared.lease
    }

    /// False from when the lease may have ended.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.shared.is_held()
    }

    /// Is done when the lease is found to be lost.
    pub async fn lost(&self) {
        let mut told = self.shared.told.subscribe();
        // The sender is of this very keeper.
        drop(told.wait_for(|lost| *lost).await);
    }

    /// Ends the lease now, and with it all that hangs on it.
    ///
    /// # Errors
    /// [`StoreError`] if that can't be told; it ends by itself then.
    pub async fn release(self) -> Result<(), StoreError> {
        self.task.abort();
        self.shared.lose();
        match self.store.revoke_lease(self.shared.lease).await {
            Ok(()) | Err(StoreError::LeaseLost) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

async fn keep(shared: Arc<Shared>, store: Arc<dyn MetadataStore>) {
    let pace = (shared.ttl / 4).max(Duration::from_millis(10));
    while shared.is_held() {
        tokio::time::sleep(pace).await;
        let sent = shared.env.clock.monotonic();
        let asked = store.keep_alive(shared.lease);
        match tokio::time::timeout(shared.ttl, asked).await {
            Ok(Ok(())) => shared.confirm(sent),
            Ok(Err(StoreError::LeaseLost | StoreError::Replaced(_))) => return shared.lose(),
            // It may answer next time; the clock says how long that may take.
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use geminga_proto::env::{ManualClock, SeededRandom};

    use super::*;
    use crate::store::MemoryStore;

    const TTL: Duration = Duration::from_secs(4);

    fn world() -> (Arc<ManualClock>, Arc<MemoryStore>, Env) {
        let clock = Arc::new(ManualClock::default());
        let store = Arc::new(MemoryStore::new(Arc::clone(&clock) as _));
        let env = Env { clock: Arc::clone(&clock) as _, random: Arc::new(SeededRandom::new(1)) };
        (clock, store, env)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_kept_while_the_store_answers_and_lost_when_it_does_not() {
        let (clock, store, env) = world();
        let meta: Arc<dyn MetadataStore> = Arc::clone(&store) as _;
        let keeper = LeaseKeeper::grant(meta, env, TTL).await.expect("granted");
        for _ in 0..20 {
            clock.advance(TTL / 4);
            tokio::time::sleep(TTL / 4).await;
            assert!(keeper.is_held());
        }
        store.faults().set_down(true);
        for _ in 0..4 {
            clock.advance(TTL / 4);
            tokio::time::sleep(TTL / 4).await;
        }
        assert!(!keeper.is_held());
        keeper.lost().await;
        store.faults().set_down(false);
        tokio::time::sleep(TTL).await;
        assert!(!keeper.is_held(), "a lost lease stays lost");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_stood_still_past_its_lease_knows_it_before_asking() {
        let (clock, store, env) = world();
        let keeper = LeaseKeeper::grant(store as _, env, TTL).await.expect("granted");
        clock.advance(TTL);
        assert!(!keeper.is_held());
    }

    #[tokio::test]
    async fn what_hangs_on_a_released_lease_is_gone() {
        let (_clock, store, env) = world();
        let meta: Arc<dyn MetadataStore> = Arc::clone(&store) as _;
        let keeper = LeaseKeeper::grant(meta, env, TTL).await.expect("granted");
        let txn = crate::store::Txn::default().put_leased("tenants/a", "x", keeper.lease());
        store.txn(txn).await.expect("written");
        keeper.release().await.expect("released");
        assert_eq!(store.get("tenants/a").await, Ok(None));
    }
}
