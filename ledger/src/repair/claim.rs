//! A task in the metadata, and a worker's claim to it: how it is made, and how its outcome is
//! written.
//!
//! Invariants: the claim names its targets durably before anybody sends them anything; whatever a
//! worker writes at the end demands, in the same transaction, that the record is as it was when it
//! still had that worker's claim; what others have added to the task meanwhile stays in it.

use std::sync::Arc;

use geminga_meta::keys;
use geminga_meta::lease_keeper::LeaseKeeper;
use geminga_meta::read::{ReadError, read};
use geminga_meta::record::{
    HolderRecord, Nonce, Record, RecordError, RepairClaim, RepairReason, RepairRecord, Stored,
};
use geminga_meta::store::{Compare, MetadataStore, Revision, StoreError, Txn, TxnOutcome};
use geminga_meta::update_loop::{RetryPolicy, Witness, commit};
use geminga_proto::env::Env;
use geminga_proto::id::{BookieId, LedgerId};

use crate::engine::Versioned;
use crate::records::{self, LoadError};
use crate::repair::plan::Plan;

/// Times that a commit meets what others have changed before it is given up for now.
const COMMITS: u32 = 8;

/// Why a task couldn't be carried on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// The metadata store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record can't be used.
    #[error("{0}")]
    Record(String),
    /// Another worker has the task by now.
    #[error("another worker has taken the task over")]
    TakenOver,
    /// The ledger is gone, and with it the task.
    #[error("the ledger is deleted")]
    Deleted,
    /// The ledger's record has changed so that what was copied doesn't fit it.
    #[error("the ledger has changed meanwhile")]
    Changed,
}

impl From<ReadError> for TaskError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(error) => Self::Store(error),
            ReadError::Record { .. } => Self::Record(error.to_string()),
        }
    }
}

impl From<RecordError> for TaskError {
    fn from(error: RecordError) -> Self {
        Self::Record(error.to_string())
    }
}

/// Where tasks are, and who is at them here.
#[derive(Debug, Clone)]
pub(super) struct Tasks {
    pub meta: Arc<dyn MetadataStore>,
    pub env: Env,
    pub me: HolderRecord,
}

/// A task that is a worker's.
#[derive(Debug)]
pub(super) struct Claim {
    pub ledger: LedgerId,
    pub id: u64,
    /// With the claim in it, as last read or written.
    task: Stored<RepairRecord>,
    /// What the plan was made for.
    planned: Vec<RepairReason>,
}

impl Tasks {
    pub(super) async fn load(
        &self,
        ledger: LedgerId,
    ) -> Result<Option<Stored<RepairRecord>>, TaskError> {
        Ok(read(self.meta.as_ref(), &keys::repair(ledger)).await?)
    }

    /// Holds as long as nobody is at a ledger; `None`: somebody is. A lock of this worker's own,
    /// which is at no ledger twice, is what is left of an attempt that couldn't write its end.
    async fn unlocked(&self, ledger: LedgerId) -> Result<Option<Compare>, TaskError> {
        let lock = keys::repair_lock(ledger);
        Ok(match read::<HolderRecord>(self.meta.as_ref(), &lock).await? {
            None => Some(Compare::Absent(lock)),
            Some(found) if found.record == self.me => Some(found.unchanged()),
            Some(_) => None,
        })
    }

    /// Claims a task at which nobody is, as it was read; `None` if somebody was faster.
    pub(super) async fn claim(
        &self,
        ledger: LedgerId,
        task: &Stored<RepairRecord>,
        targets: Vec<BookieId>,
        lease: &LeaseKeeper,
    ) -> Result<Option<Claim>, TaskError> {
        let Some(unlocked) = self.unlocked(ledger).await? else { return Ok(None) };
        let id = self.env.random.nonzero_u64();
        let (worker, claimed_ms) = (self.me.holder.clone(), self.env.clock.wall_ms());
        let mut record = task.record.clone();
        record.claim = Some(RepairClaim { id, worker, targets, claimed_ms });
        let nonce = Nonce::new(&*self.env.random);
        let (key, lock) = (keys::repair(ledger), keys::repair_lock(ledger));
        let held = self.me.encode(Nonce::new(&*self.env.random))?;
        let txn = Txn::default()
            .when(task.unchanged())
            .when(unlocked)
            .put(key.clone(), record.encode(nonce)?)
            .put_leased(lock, held, lease.lease());
        let planned = task.record.reasons.clone();
        match self.commit(txn, &Witness::new(key.clone(), nonce)).await? {
            TxnOutcome::Conflict(_) => Ok(None),
            TxnOutcome::Applied(revision) => {
                let task = Stored { key, record, nonce, revision };
                Ok(Some(Claim { ledger, id, task, planned }))
            }
        }
    }

    async fn commit(&self, txn: Txn, witness: &Witness) -> Result<TxnOutcome, StoreError> {
        commit(self.meta.as_ref(), &self.env, RetryPolicy::default(), txn, witness).await
    }

    /// Takes a task out of the queue, unless it has changed or somebody is at it; whether it may be
    /// gone.
    pub(super) async fn remove(&self, task: &Stored<RepairRecord>) -> Result<bool, TaskError> {
        let ledger = self.ledger_of(task)?;
        let Some(unlocked) = self.unlocked(ledger).await? else { return Ok(false) };
        let txn = Txn::default()
            .when(task.unchanged())
            .when(unlocked)
            .delete(task.key.clone())
            .delete(keys::repair_lock(ledger));
        match self.meta.txn(txn).await {
            Ok(TxnOutcome::Conflict(_)) => Ok(false),
            // Whether it was done shows the next time that somebody looks.
            Ok(TxnOutcome::Applied(_)) | Err(StoreError::Unknown(_)) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Notes why nothing could be done about a task that nobody has claimed; unless that is known.
    pub(super) async fn note(
        &self,
        task: &Stored<RepairRecord>,
        why: &str,
    ) -> Result<(), TaskError> {
        let mut record = task.record.clone();
        record.failed(why);
        record.claim = None;
        if record.last_error == task.record.last_error && task.record.claim.is_none() {
            return Ok(());
        }
        let nonce = Nonce::new(&*self.env.random);
        let ledger = self.ledger_of(task)?;
        let Some(unlocked) = self.unlocked(ledger).await? else { return Ok(()) };
        let txn = Txn::default()
            .when(task.unchanged())
            .when(unlocked)
            .put(task.key.clone(), record.encode(nonce)?)
            .delete(keys::repair_lock(ledger));
        // Whoever has changed it meanwhile knows better.
        self.commit(txn, &Witness::new(task.key.clone(), nonce)).await?;
        Ok(())
    }

    fn ledger_of(&self, task: &Stored<RepairRecord>) -> Result<LedgerId, TaskError> {
        match keys::Key::parse(&task.key) {
            Some(keys::Key::Repair(ledger)) => Ok(ledger),
            _ => Err(TaskError::Record(format!("{:?} is no task", task.key))),
        }
    }

    /// Gives a claimed task back to the queue, with what was in the way.
    pub(super) async fn give_back(&self, mut claim: Claim, why: &str) -> Result<(), TaskError> {
        for _ in 0..COMMITS {
            let mut record = claim.task.record.clone();
            record.failed(why);
            record.claim = None;
            let nonce = Nonce::new(&*self.env.random);
            let key = claim.task.key.clone();
            let txn = Txn::default()
                .when(claim.task.unchanged())
                .put(key.clone(), record.encode(nonce)?)
                .delete(keys::repair_lock(claim.ledger));
            match self.commit(txn, &Witness::new(key, nonce)).await? {
                TxnOutcome::Applied(_) => return Ok(()),
                TxnOutcome::Conflict(_) => claim = self.again(claim).await?,
            }
        }
        Err(TaskError::Changed)
    }

    /// The claimed task as it is now, if the claim is still in it.
    async fn again(&self, claim: Claim) -> Result<Claim, TaskError> {
        let task = self.load(claim.ledger).await?.ok_or(TaskError::TakenOver)?;
        let mine = task.record.claim.as_ref().is_some_and(|found| found.id == claim.id);
        if mine { Ok(Claim { task, ..claim }) } else { Err(TaskError::TakenOver) }
    }

    /// Writes what was repaired into the ledger's record, and what is left into the task, in one
    /// transaction; answers whether anything is left.
    pub(super) async fn finish(
        &self,
        mut claim: Claim,
        mut ledger: Versioned,
        plan: &Plan,
        timeout: std::time::Duration,
    ) -> Result<bool, TaskError> {
        for _ in 0..COMMITS {
            let changed = plan.applied_to(&ledger.metadata).ok_or(TaskError::Changed)?;
            let done = |reason: &&RepairReason| {
                claim.planned.contains(reason) && !plan.left.contains(reason)
            };
            let mut after = claim.task.record.clone();
            after.reasons.retain(|reason| !done(&reason));
            after.claim = None;
            if !plan.obstacles.is_empty() {
                after.failed(&told(plan));
            }
            let left = !after.reasons.is_empty();
            let outcome = self.write(&claim, &ledger, &changed, left.then_some(&after)).await?;
            match outcome {
                TxnOutcome::Applied(_) => return Ok(left),
                TxnOutcome::Conflict(_) => {
                    claim = self.again(claim).await?;
                    ledger = match records::load(self.meta.as_ref(), claim.ledger, timeout).await {
                        Ok(found) => found,
                        Err(LoadError::Absent) => return Err(TaskError::Deleted),
                        Err(LoadError::Store(error)) => return Err(error.into()),
                        Err(LoadError::Damaged(why)) => return Err(TaskError::Record(why)),
                    };
                }
            }
        }
        Err(TaskError::Changed)
    }

    async fn write(
        &self,
        claim: &Claim,
        ledger: &Versioned,
        changed: &crate::metadata::LedgerMetadata,
        task: Option<&RepairRecord>,
    ) -> Result<TxnOutcome, TaskError> {
        let (key, task_key) = (keys::ledger(claim.ledger), claim.task.key.clone());
        let nonce = Nonce::new(&*self.env.random);
        let unchanged = Compare::Unchanged(key.clone(), Revision(ledger.version));
        let mut txn = Txn::default().when(unchanged).when(claim.task.unchanged());
        txn = match task {
            Some(task) => txn.put(task_key.clone(), task.encode(nonce)?),
            None => txn.delete(task_key.clone()),
        };
        txn = txn.delete(keys::repair_lock(claim.ledger));
        // A record that stays as it is isn't written: an owner would take that for a change.
        let same = *changed == ledger.metadata;
        if !same {
            txn = txn.put(key.clone(), records::to_record(changed).encode(nonce)?);
        }
        let witness = match (same, task) {
            (false, _) => Witness::new(key, nonce),
            (true, Some(_)) => Witness::new(task_key, nonce),
            (true, None) => return self.delete(claim, txn).await,
        };
        Ok(self.commit(txn, &witness).await?)
    }

    /// A transaction that puts nothing has no witness; that the task is gone is its trace: nobody
    /// but who has the claim removes it.
    async fn delete(&self, claim: &Claim, txn: Txn) -> Result<TxnOutcome, TaskError> {
        let policy = RetryPolicy::default();
        let mut last = StoreError::Unavailable("no attempt was allowed".to_owned());
        for attempt in 1..=policy.attempts {
            tokio::time::sleep(policy.delay(&*self.env.random, attempt)).await;
            match self.meta.txn(txn.clone()).await {
                Ok(outcome @ TxnOutcome::Applied(_)) => return Ok(outcome),
                Ok(outcome @ TxnOutcome::Conflict(revision)) => {
                    let gone = self.load(claim.ledger).await?.is_none();
                    return Ok(if gone { TxnOutcome::Applied(revision) } else { outcome });
                }
                Err(error @ (StoreError::Unavailable(_) | StoreError::Unknown(_))) => last = error,
                Err(error) => return Err(error.into()),
            }
        }
        Err(last.into())
    }
}

/// What is in the way, in words.
pub(super) fn told(plan: &Plan) -> String {
    let obstacles: Vec<String> = plan.obstacles.iter().map(ToString::to_string).collect();
    obstacles.join("; ")
}
