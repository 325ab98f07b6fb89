//! [`Bundle`]: a range of a namespace's topics that this broker owns, with the state log that
//! holds their cursors; and [`BundleSlot`], which acquires it once for all who ask.
//!
//! Invariant: the state log is fenced, recovered and replayed before any topic of the bundle
//! loads. A state log that can't be opened makes the bundle unavailable, never empty; it is tried
//! again ever less often, whoever wants it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use geminga_meta::bundle::BundleId;
use geminga_meta::keys;
use geminga_meta::store::Compare;
use geminga_meta::update_loop::RetryPolicy;
use geminga_proto::env::Random;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use crate::core::api::TopicError;
use crate::core::context::{Context, unavailable};
use crate::core::ownership::{Grip, Holder, Ownership, OwnershipError, Taken};
use crate::core::state_log::{StateLog, StateLogError};

/// A bundle that this broker owns.
#[derive(Debug)]
pub struct Bundle {
    /// Which.
    pub id: BundleId,
    /// The cursors of its topics.
    pub log: StateLog,
    /// By what it is this broker's.
    pub grip: Grip,
    /// Set once: no topic of it may be served any more.
    ended: AtomicBool,
    ownership: Weak<Ownership>,
    runtime: Handle,
}

impl Bundle {
    /// True once it is owned no more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// It is owned no more. Answers false if that was known already.
    pub fn end(&self) -> bool {
        !self.ended.swap(true, Ordering::AcqRel)
    }

    /// Closes the state log, in a task of its own.
    pub fn close_log(&self) {
        let (id, log) = (self.id.clone(), self.log.clone());
        self.runtime.spawn(async move {
            if let Err(error) = log.close().await {
                tracing::debug!(bundle = %id, %error, "the state log could not be closed");
            }
        });
    }

    /// Holds only as long as the record by which it is this broker's is there, unchanged. Every
    /// change of a topic's list of ledgers has it as a condition: an owner that was replaced could
    /// else take over a list that the next one wrote, and trim what subscriptions made there need.
    #[must_use]
    pub fn is_owned(&self) -> Compare {
        Compare::Unchanged(keys::ownership(&self.id), self.grip.revision)
    }

    /// Asks the metadata whether it is this broker's no more. False also if that can't be told.
    pub async fn is_lost(&self) -> bool {
        let Some(ownership) = self.ownership.upgrade() else { return true };
        match ownership.holds(&self.id, self.grip).await {
            Ok(true) => false,
            Ok(false) => {
                // Perhaps all that hangs on the lease is gone.
                ownership.session.check_now();
                true
            }
            Err(error) => {
                tracing::warn!(bundle = %self.id, %error, "the owner can't be looked up");
                false
            }
        }
    }
}

/// How often a state log is tried that could not be opened. What is wrong with one is often wrong
/// with many.
const AGAIN: RetryPolicy = RetryPolicy {
    attempts: u32::MAX,
    first_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(5),
};

/// Why a bundle can't be served although it is this broker's.
#[derive(Debug)]
struct Trouble {
    why: String,
    error: TopicError,
    failures: u32,
    /// Until then, whoever wants the bundle hears the same.
    again_at: Instant,
}

/// Where a bundle is or comes to be.
#[derive(Debug, Default)]
pub struct BundleSlot {
    owned: Mutex<Option<Arc<Bundle>>>,
    /// Written by who has the turn.
    trouble: Mutex<Option<Trouble>>,
    /// Held by the one task that acquires the bundle or hands it over.
    turn: tokio::sync::Mutex<()>,
}

/// What an acquired bundle is handed to, to be watched.
pub type OnAcquired<'a> = &'a (dyn Fn(&Arc<Bundle>) + Send + Sync);

impl BundleSlot {
    /// The bundle, if this broker owns it.
    #[must_use]
    pub fn owned(&self) -> Option<Arc<Bundle>> {
        self.owned.lock().clone().filter(|bundle| !bundle.has_ended())
    }

    /// Why the bundle can't be served, if that was found when it was wanted last.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().as_ref().map(|trouble| trouble.why.clone())
    }

    /// How long the bundle's state log isn't tried again.
    #[must_use]
    pub fn again_in(&self) -> Duration {
        let trouble = self.trouble.lock();
        let again_at = trouble.as_ref().map(|trouble| trouble.again_at);
        again_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }

    /// What whoever wants the bundle hears instead of another attempt at its state log: recovering
    /// one costs its bookies much, and thousands of clients may want it.
    fn is_held_back(&self) -> Option<TopicError> {
        let trouble = self.trouble.lock();
        let held_back = trouble.as_ref().filter(|trouble| Instant::now() < trouble.again_at);
        held_back.map(|trouble| trouble.error.clone())
    }

    /// What came of opening the state log.
    fn opened<T>(
        &self,
        opened: Result<T, StateLogError>,
        random: &dyn Random,
    ) -> Result<T, TopicError> {
        let mut trouble = self.trouble.lock();
        let failures = trouble.take().map_or(0, |trouble| trouble.failures) + 1;
        opened.map_err(|error| {
            let again_at = Instant::now() + AGAIN.delay(random, failures.saturating_add(1));
            let (why, error) = (error.to_string(), state_log_error(error));
            *trouble = Some(Trouble { why, error: error.clone(), failures, again_at });
            error
        })
    }

    /// The right to acquire the bundle or to hand it over: who wants it meanwhile waits.
    pub async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turn.lock().await
    }

    /// True if nothing is in it and nobody acquires the bundle or hands it over.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.turn.try_lock().is_ok() && self.owned.lock().is_none()
    }

    /// Forgets the bundle and answers it.
    pub fn take(&self) -> Option<Arc<Bundle>> {
        self.owned.lock().take()
    }

    /// The bundle; takes ownership and opens its state log if need be.
    ///
    /// # Errors
    /// [`TopicError::NotOwner`] if another broker owns it, else why it is unavailable.
    pub async fn acquire(
        &self,
        id: &BundleId,
        context: &Arc<Context>,
        ownership: &Arc<Ownership>,
        acquired: OnAcquired<'_>,
    ) -> Result<Arc<Bundle>, TopicError> {
        if let Some(bundle) = self.owned() {
            return Ok(bundle);
        }
        let _turn = self.turn().await;
        if let Some(bundle) = self.owned() {
            return Ok(bundle);
        }
        if ownership.holder(id) == Ok(Holder::Here)
            && let Some(error) = self.is_held_back()
        {
            return Err(error);
        }
        let taken = ownership.acquire(id).await.map_err(|error| match error {
            OwnershipError::Draining => TopicError::ShuttingDown,
            error => unavailable(error),
        })?;
        let Taken::Here(grip) = taken else {
            *self.trouble.lock() = None;
            return Err(TopicError::NotOwner);
        };
        let log = StateLog::open(
            id.clone(),
            context.ledgers.clone(),
            Arc::clone(&context.meta),
            context.env.clone(),
            context.config.state_log.clone(),
        )
        .await;
        let log = self.opened(log, &*context.env.random)?;
        let ended = AtomicBool::new(false);
        let weak = Arc::downgrade(ownership);
        let runtime = context.runtime.clone();
        let bundle =
            Arc::new(Bundle { id: id.clone(), log, grip, ended, ownership: weak, runtime });
        if ownership.session.id() != grip.session {
            // Whoever ended what the session had didn't find this bundle.
            bundle.end();
            bundle.close_log();
            return Err(TopicError::NotOwner);
        }
        *self.owned.lock() = Some(Arc::clone(&bundle));
        tracing::info!(bundle = %id, "bundle acquired");
        acquired(&bundle);
        Ok(bundle)
    }
}

/// What a state log's failure means for a topic.
pub fn state_log_error(error: StateLogError) -> TopicError {
    match error {
        StateLogError::Fenced => TopicError::Fenced,
        StateLogError::Corrupt(why) => TopicError::Corrupt(why),
        StateLogError::Unavailable(_) | StateLogError::Closed | StateLogError::Exists(_) => {
            unavailable(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_proto::env::SeededRandom;

    fn fail(slot: &BundleSlot, random: &dyn Random) -> Duration {
        let failed = slot.opened::<()>(Err(StateLogError::Unavailable("no".to_owned())), random);
        assert_eq!(failed, Err(unavailable(slot.trouble().expect("in trouble"))));
        slot.again_in()
    }

    #[tokio::test(start_paused = true)]
    async fn a_state_log_that_fails_is_tried_ever_less_often_until_it_opens() {
        let (slot, random) = (BundleSlot::default(), SeededRandom::new(1));
        assert!(slot.is_held_back().is_none());
        let mut whole = AGAIN.first_delay;
        for _ in 0..40 {
            let pause = fail(&slot, &random);
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
            assert_eq!(slot.is_held_back(), Some(unavailable(slot.trouble().expect("why"))));
            tokio::time::advance(pause).await;
            assert_eq!((slot.is_held_back(), slot.again_in()), (None, Duration::ZERO));
            whole = (whole * 2).min(AGAIN.max_delay);
        }
        assert_eq!(slot.opened(Ok(7), &random), Ok(7));
        assert_eq!(slot.trouble(), None);
        assert!(fail(&slot, &random) <= AGAIN.first_delay);
    }

    #[test]
    fn pauses_differ() {
        let random = SeededRandom::new(2);
        let pauses: std::collections::BTreeSet<_> =
            (0..100).map(|_| AGAIN.delay(&random, 20)).collect();
        assert!(pauses.len() > 50);
    }
}
