//! [`Job`]: one attempt to repair one ledger, from the task to the changed record.
//!
//! May be dropped at any point: the claim stays until the same worker takes it up again, or its
//! lease has ended; either way another attempt begins from the start.

use std::sync::Arc;

use geminga_meta::keys;
use geminga_meta::lease_keeper::LeaseKeeper;
use geminga_meta::read::{ReadError, read};
use geminga_meta::record::{
    LedgerOwner, ManagedLedgerRecord, NamespaceRecord, RepairReason, RepairRecord, Stored,
};
use geminga_meta::store::MetadataStore;
use geminga_proto::id::LedgerId;

use crate::engine::Versioned;
use crate::error::RecoverError;
use crate::metadata::LedgerState;
use crate::records::{self, LoadError};
use crate::repair::RepairMetrics;
use crate::repair::claim::{Claim, TaskError, Tasks, told};
use crate::repair::copy::{Copier, CopyError};
#[cfg(any(test, feature = "harness"))]
use crate::repair::defect::Defect;
use crate::repair::plan::{Obstacle, Plan, plan};
use crate::repair::throttle::Throttle;
use crate::store::LedgerStore;

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Repaired {
    /// The task is done, and so many bytes were copied for it.
    Done(u64),
    /// Something was done, or not; the rest has to wait.
    Waiting(String),
    /// There is nothing to do any more: the task is gone, or its ledger.
    Gone,
    /// Another worker is at it, or was faster.
    Elsewhere,
}

/// Why an attempt failed. The task is still there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepairError {
    /// Of its records.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// Entries could not be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// An open ledger that nobody owns could not be closed.
    #[error(transparent)]
    Recover(#[from] RecoverError),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Job<'a> {
    pub ledgers: &'a LedgerStore,
    pub tasks: &'a Tasks,
    pub throttle: &'a Throttle,
    pub metrics: &'a RepairMetrics,
    pub lease: &'a LeaseKeeper,
    pub ledger: LedgerId,
    /// An open ledger on a bookie that is being drained is closed even if somebody owns it: its
    /// owner has had time enough to go on elsewhere.
    pub overdue: bool,
    /// What the simulation has planted.
    #[cfg(any(test, feature = "harness"))]
    pub planted: Option<Defect>,
}

impl Job<'_> {
    pub(super) async fn run(&self) -> Result<Repaired, RepairError> {
        let Some(task) = self.tasks.load(self.ledger).await? else { return Ok(Repaired::Gone) };
        let Some(mut found) = self.load().await? else { return self.remove(&task).await };
        let mut plan = self.plan(&found, &task.record);
        if self.is_left_open(&found, &plan).await? {
            tracing::info!(ledger = %self.ledger, "closing a ledger that a drained bookie is in");
            self.ledgers.recover(self.ledger).await?;
            let Some(closed) = self.load().await? else { return Ok(Repaired::Gone) };
            found = closed;
            plan = self.plan(&found, &task.record);
        }
        if !plan.has_work() || (task.record.attempts > 0 && plan.only_looks()) {
            return self.without_work(&task, &plan).await;
        }
        let targets = plan.targets.clone();
        let claimed = self.tasks.claim(self.ledger, &task, targets, self.lease).await?;
        let Some(claim) = claimed else { return Ok(Repaired::Elsewhere) };
        self.with_claim(claim, found, &plan).await
    }

    fn plan(&self, found: &Versioned, task: &RepairRecord) -> Plan {
        let shared = &self.ledgers.shared;
        let view = shared.placement.view();
        let mut below = |bound| shared.env.random.below(bound);
        plan(&found.metadata, &task.reasons, &view, shared.config.write_quorum, &mut below)
    }

    async fn load(&self) -> Result<Option<Versioned>, TaskError> {
        let shared = &self.ledgers.shared;
        match records::load(shared.meta.as_ref(), self.ledger, shared.request_timeout).await {
            Ok(found) => Ok(Some(found)),
            Err(LoadError::Absent) => Ok(None),
            Err(LoadError::Store(error)) => Err(error.into()),
            Err(LoadError::Damaged(why)) => Err(TaskError::Record(why)),
        }
    }

    async fn remove(&self, task: &Stored<RepairRecord>) -> Result<Repaired, RepairError> {
        let removed = self.tasks.remove(task).await?;
        Ok(if removed { Repaired::Gone } else { Repaired::Elsewhere })
    }

    async fn without_work(
        &self,
        task: &Stored<RepairRecord>,
        plan: &Plan,
    ) -> Result<Repaired, RepairError> {
        if plan.left.is_empty() {
            return self.remove(task).await;
        }
        let why = told(plan);
        self.tasks.note(task, &why).await?;
        Ok(Repaired::Waiting(why))
    }

    async fn with_claim(
        &self,
        claim: Claim,
        found: Versioned,
        plan: &Plan,
    ) -> Result<Repaired, RepairError> {
        let copied = match self.copy(&found, plan).await {
            Ok(bytes) => bytes,
            Err(error) => {
                // Without a lease the claim may be another's by now; it ends by itself.
                if self.lease.is_held() {
                    self.tasks.give_back(claim, &error.to_string()).await?;
                }
                return Err(error.into());
            }
        };
        let timeout = self.ledgers.shared.request_timeout;
        match self.tasks.finish(claim, found, plan, timeout).await {
            Ok(false) => Ok(Repaired::Done(copied)),
            Ok(true) => Ok(Repaired::Waiting(told(plan))),
            Err(TaskError::Deleted) => match self.tasks.load(self.ledger).await? {
                Some(task) => self.remove(&task).await,
                None => Ok(Repaired::Gone),
            },
            Err(TaskError::TakenOver) => Ok(Repaired::Elsewhere),
            Err(error) => Err(error.into()),
        }
    }

    async fn copy(&self, found: &Versioned, plan: &Plan) -> Result<u64, CopyError> {
        let copier = Copier {
            store: &self.ledgers.shared,
            metadata: &found.metadata,
            throttle: self.throttle,
            metrics: self.metrics,
            lease: self.lease,
            #[cfg(any(test, feature = "harness"))]
            planted: self.planted,
        };
        #[cfg(any(test, feature = "harness"))]
        if self.planted == Some(Defect::NothingCopied) {
            return Ok(0);
        }
        for bookie in &plan.targets {
            copier.fence(bookie).await?;
        }
        let mut copied = 0;
        for run in &plan.copies {
            copied += copier.copy(run).await?;
        }
        Ok(copied)
    }

    /// Whether a ledger that isn't closed keeps a drained bookie busy, and nobody is going to close
    /// it: no broker owns it, or its owner had time enough.
    async fn is_left_open(&self, found: &Versioned, plan: &Plan) -> Result<bool, TaskError> {
        let metadata = &found.metadata;
        let draining = |reason: &RepairReason| match reason {
            RepairReason::Draining(bookie) => metadata.last_fragment().bookies.contains(bookie),
            _ => false,
        };
        if metadata.state == LedgerState::Closed
            || !plan.obstacles.contains(&Obstacle::StillOpen)
            || !plan.left.iter().any(draining)
        {
            return Ok(false);
        }
        let meta = &self.ledgers.shared.meta;
        Ok(self.overdue || !has_owner(meta, &metadata.owner).await?)
    }
}

/// Whether a broker owns the bundle that a ledger belongs to.
async fn has_owner(meta: &Arc<dyn MetadataStore>, owner: &LedgerOwner) -> Result<bool, ReadError> {
    let bundle = match owner {
        LedgerOwner::StateLog(bundle) => bundle.clone(),
        LedgerOwner::ManagedLedger(id) => {
            let key = keys::managed_ledger(*id);
            let Some(list) = read::<ManagedLedgerRecord>(meta.as_ref(), &key).await? else {
                return Ok(false);
            };
            let topic = list.record.topic;
            let namespace = topic.namespace().clone();
            let key = keys::namespace(&namespace);
            let Some(found) = read::<NamespaceRecord>(meta.as_ref(), &key).await? else {
                return Ok(false);
            };
            let range = found.record.bundle_of(topic.hash());
            geminga_meta::bundle::BundleId { namespace, range }
        }
    };
    Ok(meta.get(&keys::ownership(&bundle)).await.map_err(ReadError::Store)?.is_some())
}
