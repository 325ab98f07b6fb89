//! [`RepairWorker`]: repairs what is queued, some ledgers at a time. Any number of processes do so;
//! who is at which ledger is told by a key that hangs on the worker's lease, so that what a dead
//! one was at is taken over.
//!
//! A ledger that can't be repaired now is tried again ever less often.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geminga_meta::keys::{self, Key};
use geminga_meta::lease_keeper::LeaseKeeper;
use geminga_meta::record::{HolderRecord, RepairRecord, SessionId};
use geminga_meta::store::StoreError;
use geminga_meta::update_loop::RetryPolicy;
use geminga_meta::watch_cache::WatchCache;
use geminga_proto::env::Monotonic;
use geminga_proto::id::LedgerId;
use tokio::task::{self, JoinSet};

pub use crate::repair::claim::TaskError;
use crate::repair::claim::Tasks;
pub use crate::repair::copy::CopyError;
#[cfg(any(test, feature = "harness"))]
use crate::repair::defect::Defect;
use crate::repair::job::Job;
pub use crate::repair::job::{RepairError, Repaired};
pub use crate::repair::throttle::Foreground;
use crate::repair::throttle::Throttle;
use crate::repair::{RepairConfig, RepairConfigError, RepairMetrics};
use crate::store::LedgerStore;

/// Wait before a ledger that can't be repaired is tried again; it doubles each time.
const RETRY: Duration = Duration::from_secs(1);
/// Longest such wait.
const LONGEST_RETRY: Duration = Duration::from_secs(60);
/// How often the queue is looked at when nothing changes.
const LOOK: Duration = Duration::from_secs(1);
/// Least pause between two looks, however much changes.
const LEAST_PAUSE: Duration = Duration::from_millis(50);
/// Ledgers whose failures are remembered.
const MAX_REMEMBERED: usize = 100_000;

/// What is known of a ledger that couldn't be repaired at once.
#[derive(Debug, Clone, Copy)]
struct Setback {
    since: Monotonic,
    times: u32,
    not_before: Monotonic,
}

/// What all attempts of a process have in common.
#[derive(Debug)]
struct Shared {
    ledgers: LedgerStore,
    tasks: Tasks,
    throttle: Throttle,
    metrics: Arc<RepairMetrics>,
    /// What the simulation has planted.
    #[cfg(any(test, feature = "harness"))]
    planted: Option<Defect>,
}

/// One process's worker.
#[derive(Debug)]
pub struct RepairWorker {
    config: RepairConfig,
    shared: Arc<Shared>,
    setbacks: HashMap<LedgerId, Setback>,
}

impl RepairWorker {
    /// A worker over a cluster's ledgers, which counts in `metrics` what it does.
    ///
    /// # Errors
    /// [`RepairConfigError`] if a setting can't be used.
    pub fn new(
        config: RepairConfig,
        ledgers: LedgerStore,
        metrics: Arc<RepairMetrics>,
    ) -> Result<Self, RepairConfigError> {
        config.validate()?;
        let env = ledgers.shared.env.clone();
        let session = SessionId::new(&*env.random);
        let me = HolderRecord { holder: config.name.clone(), session };
        let throttle = Throttle::new(env.clone(), config.bytes_per_second);
        let tasks = Tasks { meta: Arc::clone(&ledgers.shared.meta), env, me };
        let shared = Shared {
            ledgers,
            tasks,
            throttle,
            metrics,
            #[cfg(any(test, feature = "harness"))]
            planted: None,
        };
        Ok(Self { config, shared: Arc::new(shared), setbacks: HashMap::new() })
    }

    /// A worker that stands back for what its process is there for.
    #[must_use]
    pub fn standing_back_for(mut self, foreground: Arc<dyn Foreground>) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.throttle.stand_back_for(foreground);
        }
        self
    }

    /// A worker with a defect.
    #[cfg(any(test, feature = "harness"))]
    #[must_use]
    pub fn planted(mut self, planted: Option<Defect>) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            shared.planted = planted;
        }
        self
    }

    /// Works until `stopped`.
    pub async fn run(mut self, stopped: impl Future<Output = ()>) {
        tokio::pin!(stopped);
        let mut said = false;
        loop {
            let error = tokio::select! {
                biased;
                () = &mut stopped => return,
                Err(error) = self.work() => error,
            };
            if std::mem::replace(&mut said, true) {
                tracing::debug!(%error, "repair waits for the metadata store");
            } else {
                tracing::info!(%error, "repair waits for the metadata store");
            }
            tokio::select! {
                biased;
                () = &mut stopped => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Works as long as its lease lasts.
    async fn work(&mut self) -> Result<std::convert::Infallible, StoreError> {
        let (env, meta) = (&self.shared.tasks.env, &self.shared.tasks.meta);
        let policy = RetryPolicy::default();
        let queue =
            WatchCache::<RepairRecord>::start(Arc::clone(meta), env.clone(), policy, keys::REPAIRS);
        let queue = queue.await?;
        let lease = LeaseKeeper::grant(Arc::clone(meta), env.clone(), self.config.lease_ttl);
        let lease = Arc::new(lease.await?);
        let mut changes = queue.changes();
        let (mut jobs, mut busy) = (JoinSet::new(), HashMap::new());
        loop {
            if !lease.is_held() {
                // What is under way notices it, too, and is dropped here.
                return Err(StoreError::LeaseLost);
            }
            self.start_jobs(&queue, &lease, &mut jobs, &mut busy);
            tokio::select! {
                biased;
                Some(ended) = jobs.join_next_with_id() => self.ended(ended, &mut busy),
                () = lease.lost() => {}
                _ = changes.changed() => tokio::time::sleep(LEAST_PAUSE).await,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn start_jobs(
        &mut self,
        queue: &WatchCache<RepairRecord>,
        lease: &Arc<LeaseKeeper>,
        jobs: &mut JoinSet<Result<Repaired, RepairError>>,
        busy: &mut HashMap<task::Id, LedgerId>,
    ) {
        if busy.len() >= self.config.concurrent_ledgers {
            return;
        }
        let Ok(listed) = queue.list() else { return };
        let now = self.shared.tasks.env.clock.monotonic();
        let ids = listed.iter().filter_map(|stored| match Key::parse(&stored.as_ref().ok()?.key) {
            Some(Key::Repair(ledger)) => Some(ledger),
            _ => None,
        });
        let ids: Vec<LedgerId> = ids.collect();
        let queued: HashSet<LedgerId> = ids.iter().copied().collect();
        self.setbacks.retain(|ledger, _| queued.contains(ledger));
        // Workers begin at different places, so that they seldom meet.
        let start = self.shared.tasks.env.random.below(ids.len().max(1) as u64);
        let start = usize::try_from(start).unwrap_or(0);
        for ledger in ids.iter().cycle().skip(start).take(ids.len()) {
            if busy.len() >= self.config.concurrent_ledgers {
                return;
            }
            let setback = self.setbacks.get(ledger);
            if busy.values().any(|at| at == ledger) || setback.is_some_and(|it| now < it.not_before)
            {
                continue;
            }
            let overdue =
                setback.is_some_and(|it| now.saturating_sub(it.since) >= self.config.grace);
            let (shared, lease, ledger) = (Arc::clone(&self.shared), Arc::clone(lease), *ledger);
            let job = jobs.spawn(async move { shared.repair(ledger, &lease, overdue).await });
            busy.insert(job.id(), ledger);
        }
    }

    fn ended(
        &mut self,
        ended: Result<(task::Id, Result<Repaired, RepairError>), task::JoinError>,
        busy: &mut HashMap<task::Id, LedgerId>,
    ) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, Ok(result)),
            Err(error) => (error.id(), Err(error)),
        };
        let Some(ledger) = busy.remove(&id) else { return };
        let result = match result {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(%ledger, %error, "a repair broke down, which is a defect");
                self.shared.metrics.failures.fetch_add(1, Ordering::Relaxed);
                self.set_back(ledger);
                return;
            }
        };
        match result {
            Ok(Repaired::Done(bytes)) => {
                tracing::info!(%ledger, bytes, "repaired");
                self.shared.metrics.ledgers.fetch_add(1, Ordering::Relaxed);
                self.setbacks.remove(&ledger);
            }
            Ok(Repaired::Gone) => drop(self.setbacks.remove(&ledger)),
            Ok(Repaired::Elsewhere) => {
                self.set_back(ledger);
            }
            Ok(Repaired::Waiting(why)) => {
                if self.set_back(ledger) == 1 {
                    tracing::info!(%ledger, why, "a ledger can't be repaired as a whole now");
                }
            }
            Err(RepairError::Copy(CopyError::LeaseLost)) => {}
            Err(error) => {
                self.shared.metrics.failures.fetch_add(1, Ordering::Relaxed);
                if self.set_back(ledger) == 1 {
                    tracing::info!(%ledger, %error, "a ledger isn't repaired yet");
                } else {
                    tracing::debug!(%ledger, %error, "a ledger isn't repaired yet");
                }
            }
        }
    }

    /// It is tried again, later each time; how often that was.
    fn set_back(&mut self, ledger: LedgerId) -> u32 {
        let now = self.shared.tasks.env.clock.monotonic();
        if self.setbacks.len() >= MAX_REMEMBERED {
            self.setbacks.clear();
        }
        let first = Setback { since: now, times: 0, not_before: now };
        let setback = self.setbacks.entry(ledger).or_insert(first);
        setback.times = setback.times.saturating_add(1);
        let factor = 1_u32.checked_shl(setback.times - 1).unwrap_or(u32::MAX);
        let wait = RETRY.saturating_mul(factor).min(LONGEST_RETRY);
        setback.not_before = now.saturating_add(wait);
        setback.times
    }
}

impl Shared {
    async fn repair(
        &self,
        ledger: LedgerId,
        lease: &LeaseKeeper,
        overdue: bool,
    ) -> Result<Repaired, RepairError> {
        let job = Job {
            ledgers: &self.ledgers,
            tasks: &self.tasks,
            throttle: &self.throttle,
            metrics: &self.metrics,
            lease,
            ledger,
            overdue,
            #[cfg(any(test, feature = "harness"))]
            planted: self.planted,
        };
        job.run().await
    }
}

#[cfg(test)]
mod tests;
