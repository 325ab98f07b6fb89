//! Taking bookies away, and what repair is doing. A broker only marks what is wanted and tells what
//! it reads: the work is done by repair's own processes.

use std::collections::BTreeMap;

use geminga_ledger::check::LedgerCheck;
use geminga_ledger::error::OpenError;
use geminga_meta::keys::{self, Key};
use geminga_meta::read::{read, read_all};
use geminga_meta::record::{
    BookieRecord, DrainKind, DrainRecord, LedgerRecord, LedgerState, Record, RepairReason,
    RepairRecord, Stored,
};
use geminga_meta::store::{KeyValue, MAX_RANGE, StoreError, Txn, TxnOutcome};
use geminga_meta::update_loop::{Change, Current, RetryPolicy, update};
use geminga_proto::id::{BookieId, EntryId, LedgerId};
use geminga_proto::storage::ScrubProgress;

use super::Broker;
use super::tenancy::update_error;
use crate::core::admin::AdminError;
use crate::core::repair_info::{DrainInfo, OnBookie, RepairTask};

/// Ledgers whose trouble is told with a drained bookie.
const TROUBLE_TOLD: usize = 5;

impl Broker {
    /// Has what a bookie stores copied elsewhere, so that it can be taken away. It gets nothing new
    /// from now on.
    ///
    /// # Errors
    /// [`AdminError::BookieNotFound`]; [`AdminError::BookieDown`] if it isn't up;
    /// [`AdminError::BookieNeeded`] if too few others would be left; or why the metadata can't be
    /// read or written. Nothing is changed then.
    pub async fn decommission(&self, bookie: &BookieId) -> Result<(), AdminError> {
        self.start_drain(bookie, DrainKind::Decommission).await
    }

    /// How far a bookie is with verifying all that it has; with `start`, it begins.
    ///
    /// # Errors
    /// [`AdminError::BookieNotFound`]; [`AdminError::BookieDown`] if it isn't up or doesn't answer;
    /// or why the metadata can't be read.
    pub async fn scrub_bookie(
        &self,
        bookie: &BookieId,
        start: bool,
    ) -> Result<ScrubProgress, AdminError> {
        let asked = self.inner.context.ledgers.scrub(bookie, start).await;
        let Err(error) = asked else { return Ok(asked.unwrap_or_default()) };
        tracing::debug!(%bookie, %error, "a bookie can't be asked to verify what it has");
        let known = self.config().alone
            || self.is_up(bookie).await?
            || self.metadata().get(&keys::cookie(bookie)).await?.is_some();
        Err(if known {
            AdminError::BookieDown(bookie.to_string())
        } else {
            AdminError::BookieNotFound(bookie.to_string())
        })
    }

    /// Has what a lost bookie stored copied from others, without waiting for it any longer.
    ///
    /// # Errors
    /// As for [`Self::decommission`], but [`AdminError::BookieUp`] if it is up.
    pub async fn recover_bookie(&self, bookie: &BookieId) -> Result<(), AdminError> {
        self.start_drain(bookie, DrainKind::Lost).await
    }

    async fn start_drain(&self, bookie: &BookieId, kind: DrainKind) -> Result<(), AdminError> {
        if self.config().alone {
            let why = "a standalone has one bookie, which can't be taken away";
            return Err(AdminError::Invalid(why.to_owned()));
        }
        let up = self.is_up(bookie).await?;
        if !up && self.metadata().get(&keys::cookie(bookie)).await?.is_none() {
            return Err(AdminError::BookieNotFound(bookie.to_string()));
        }
        match (kind, up) {
            (DrainKind::Decommission, false) => {
                return Err(AdminError::BookieDown(bookie.to_string()));
            }
            (DrainKind::Lost, true) => return Err(AdminError::BookieUp(bookie.to_string())),
            (DrainKind::Decommission, true) | (DrainKind::Lost, false) => {}
        }
        let needed = self.needed_without(bookie).await?;
        self.check_others(bookie, needed).await?;
        let key = keys::drain(bookie);
        let started_ms = self.inner.context.env.clock.wall_ms();
        let mark = DrainRecord { bookie_id: bookie.clone(), kind, started_ms };
        let (store, env) = (self.metadata().as_ref(), &self.inner.context.env);
        let change = |current: Current<'_, DrainRecord>| {
            let same = current.stored.is_some_and(|stored| stored.record.kind == kind);
            Ok::<_, AdminError>(if same { Change::Keep } else { Change::Put(mark.clone()) })
        };
        let marked = update(store, env, RetryPolicy::default(), &key, change).await;
        marked.map_err(update_error)?;
        // Another one may have been marked at the same moment: then neither is.
        if let Err(error) = self.check_others(bookie, needed).await {
            self.cancel_drain(bookie).await?;
            return Err(error);
        }
        Ok(())
    }

    async fn is_up(&self, bookie: &BookieId) -> Result<bool, AdminError> {
        Ok(self.metadata().get(&keys::bookie(bookie)).await?.is_some())
    }

    /// How many bookies must be left without this one.
    async fn needed_without(&self, bookie: &BookieId) -> Result<u32, AdminError> {
        let mut needed = self.inner.context.ledgers.config().write_quorum;
        self.each(keys::LEDGERS, |pair| {
            if let Ok((record, _)) = LedgerRecord::decode(&pair.value)
                && names(&record, bookie)
            {
                needed = needed.max(record.write_quorum);
            }
        })
        .await?;
        Ok(needed)
    }

    /// Refuses if too few bookies that take writes are left without this one.
    async fn check_others(&self, bookie: &BookieId, needed: u32) -> Result<(), AdminError> {
        let mut draining = Vec::new();
        self.each(keys::DRAINS, |pair| {
            if let Some(Key::Drain(drained)) = Key::parse(&pair.key) {
                draining.push(drained);
            }
        })
        .await?;
        let mut left = 0;
        self.each(keys::BOOKIES, |pair| {
            let Ok(stored) = Stored::<BookieRecord>::from_pair(pair) else { return };
            let record = stored.record;
            let stays = record.bookie_id != *bookie && !draining.contains(&record.bookie_id);
            left += u32::from(stays && record.writable && record.free_bytes > 0);
        })
        .await?;
        if left < needed {
            return Err(AdminError::BookieNeeded { bookie: bookie.to_string(), left, needed });
        }
        Ok(())
    }

    /// Leaves a bookie where it is after all. What was copied stays copied.
    ///
    /// # Errors
    /// [`AdminError::NotDraining`], or why the metadata can't be written.
    pub async fn cancel_drain(&self, bookie: &BookieId) -> Result<(), AdminError> {
        let mark = self.drain_mark(bookie).await?;
        let txn = Txn::default().when(mark.unchanged()).delete(mark.key.clone());
        match self.metadata().txn(txn).await? {
            TxnOutcome::Applied(_) => Ok(()),
            TxnOutcome::Conflict(_) => Err(AdminError::Metadata(StoreError::Unavailable(
                "the bookie's mark was changed by somebody else; try again".to_owned(),
            ))),
        }
    }

    async fn drain_mark(&self, bookie: &BookieId) -> Result<Stored<DrainRecord>, AdminError> {
        let mark = read::<DrainRecord>(self.metadata().as_ref(), &keys::drain(bookie)).await?;
        mark.ok_or_else(|| AdminError::NotDraining(bookie.to_string()))
    }

    /// How far a bookie is that is to be taken away, or is lost.
    ///
    /// # Errors
    /// [`AdminError::NotDraining`] if it isn't, or is done with; or why the metadata can't be read.
    pub async fn drain_info(&self, bookie: &BookieId) -> Result<DrainInfo, AdminError> {
        let mark = self.drain_mark(bookie).await?.record;
        let mut info = DrainInfo {
            bookie_id: bookie.to_string(),
            kind: mark.kind.as_str(),
            started_ms: mark.started_ms,
            up: self.is_up(bookie).await?,
            ledgers: 0,
            open_ledgers: 0,
            bytes: 0,
            trouble: Vec::new(),
        };
        self.each(keys::LEDGERS, |pair| {
            let Ok((record, _)) = LedgerRecord::decode(&pair.value) else { return };
            if names(&record, bookie) {
                info.ledgers += 1;
                match record.state {
                    LedgerState::Closed { bytes, .. } => {
                        info.bytes = info.bytes.saturating_add(bytes);
                    }
                    LedgerState::Open | LedgerState::InRecovery => info.open_ledgers += 1,
                }
            }
        })
        .await?;
        let reason = RepairReason::Draining(bookie.clone());
        self.each(keys::REPAIRS, |pair| {
            let Some((ledger, task)) = task_of(&pair) else { return };
            let told = task.reasons.contains(&reason) && !task.last_error.is_empty();
            if told && info.trouble.len() < TROUBLE_TOLD {
                info.trouble.push((ledger, task.last_error));
            }
        })
        .await?;
        Ok(info)
    }

    /// Bookies that are being drained, and why.
    pub(super) async fn drained(&self) -> Result<BTreeMap<String, DrainKind>, AdminError> {
        let marks = read_all::<DrainRecord>(self.metadata().as_ref(), keys::DRAINS).await?;
        let kind =
            |mark: Stored<DrainRecord>| (mark.record.bookie_id.to_string(), mark.record.kind);
        Ok(marks.into_iter().map(kind).collect())
    }

    /// What is on each bookie, by its name.
    ///
    /// # Errors
    /// Why the metadata can't be read.
    pub async fn on_bookies(&self) -> Result<BTreeMap<String, OnBookie>, AdminError> {
        let mut tasks = Vec::new();
        self.each(keys::REPAIRS, |pair| {
            if let Some(Key::Repair(ledger)) = Key::parse(&pair.key) {
                tasks.push(ledger);
            }
        })
        .await?;
        let mut found = BTreeMap::<String, OnBookie>::new();
        self.each(keys::LEDGERS, |pair| {
            let Some(Key::Ledger(ledger)) = Key::parse(&pair.key) else { return };
            let Ok((record, _)) = LedgerRecord::decode(&pair.value) else { return };
            let closed = matches!(record.state, LedgerState::Closed { .. });
            // Both lists are in the order of ids.
            let queued = tasks.binary_search(&ledger).is_ok();
            let mut bookies: Vec<&BookieId> =
                record.fragments.iter().flat_map(|fragment| &fragment.bookies).collect();
            bookies.sort_unstable();
            bookies.dedup();
            for bookie in bookies {
                let on = found.entry(bookie.to_string()).or_default();
                on.ledgers += 1;
                on.under_replicated += u64::from(closed && record.under_replicated);
                on.to_repair += u64::from(queued);
            }
        })
        .await?;
        Ok(found)
    }

    /// Ledgers that wait for repair after `after`, at most `limit`, in order of their ids.
    ///
    /// # Errors
    /// Why the metadata can't be read.
    pub async fn repairs(
        &self,
        after: Option<LedgerId>,
        limit: usize,
    ) -> Result<Vec<RepairTask>, AdminError> {
        let after = after.map(keys::repair);
        let limit = limit.min(MAX_RANGE);
        let page = self.metadata().range(keys::REPAIRS, after.as_deref(), limit).await?;
        let task = |pair: &KeyValue| {
            let Some(Key::Repair(ledger)) = Key::parse(&pair.key) else {
                return Err(AdminError::Record(format!("{:?} is no task", pair.key)));
            };
            let record = |error| AdminError::Record(format!("{}: {error}", pair.key));
            let (record, _) = RepairRecord::decode(&pair.value).map_err(record)?;
            Ok(repair_task(ledger, record))
        };
        page.pairs.iter().map(task).collect()
    }

    /// What is to be repaired of a ledger, if anything is.
    ///
    /// # Errors
    /// Why the metadata can't be read.
    pub async fn repair_of(&self, ledger: LedgerId) -> Result<Option<RepairTask>, AdminError> {
        let key = keys::repair(ledger);
        let task = read::<RepairRecord>(self.metadata().as_ref(), &key).await?;
        Ok(task.map(|task| repair_task(ledger, task.record)))
    }

    /// Reads and compares every copy of up to `most` entries of a ledger, from `first` on.
    ///
    /// # Errors
    /// [`AdminError::LedgerNotFound`], or why the metadata can't be read.
    pub async fn check_ledger(
        &self,
        ledger: LedgerId,
        first: EntryId,
        most: u64,
    ) -> Result<LedgerCheck, AdminError> {
        let checked = self.inner.context.ledgers.check(ledger, first, most).await;
        checked.map_err(|error| match error {
            OpenError::NotFound(ledger) => AdminError::LedgerNotFound(ledger),
            OpenError::Metadata { error, .. } => AdminError::Metadata(error),
            OpenError::Damaged { .. } | OpenError::NotClosed(_) => {
                AdminError::Record(error.to_string())
            }
        })
    }
}

fn names(record: &LedgerRecord, bookie: &BookieId) -> bool {
    record.fragments.iter().any(|fragment| fragment.bookies.contains(bookie))
}

fn task_of(pair: &KeyValue) -> Option<(LedgerId, RepairRecord)> {
    let Some(Key::Repair(ledger)) = Key::parse(&pair.key) else { return None };
    Some((ledger, RepairRecord::decode(&pair.value).ok()?.0))
}

fn repair_task(ledger: LedgerId, record: RepairRecord) -> RepairTask {
    let (worker, targets) = record.claim.map_or((None, Vec::new()), |claim| {
        let targets = claim.targets.iter().map(ToString::to_string).collect();
        (Some(claim.worker), targets)
    });
    RepairTask {
        ledger,
        reasons: record.reasons.iter().map(ToString::to_string).collect(),
        queued_ms: record.queued_ms,
        attempts: record.attempts,
        last_error: record.last_error,
        worker,
        targets,
    }
}
