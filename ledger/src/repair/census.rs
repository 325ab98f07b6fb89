//! [`RepairAuditor`]: stands for the auditor's office, and as long as it has it, shows the
//! [`Auditor`] all ledgers and carries out what it decides.
//!
//! *Invariant:* what it writes doesn't depend on being the only one: tasks are merged, and what is
//! taken out of the queue, or forgotten, must be as it was seen.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use geminga_meta::election::{Elected, ElectionError, stand};
use geminga_meta::keys::{self, Key, Office};
use geminga_meta::lease_keeper::LeaseKeeper;
use geminga_meta::read::{ReadError, read};
use geminga_meta::record::{
    DrainRecord, HolderRecord, LedgerRecord, Record, RepairRecord, SessionId, Stored,
};
use geminga_meta::repair::{QueueError, queue};
use geminga_meta::store::{
    Compare, KeyValue, MAX_RANGE, MetadataStore, StoreError, Txn, TxnOutcome,
};
use geminga_proto::id::{BookieId, LedgerId};

use crate::records;
use crate::repair::auditor::{Auditor, Verdict};
use crate::repair::{RepairConfig, RepairConfigError};
use crate::store::LedgerStore;

/// Tasks in the queue above which no more are added: a later look finds the rest.
const MAX_QUEUED: usize = 10_000;
/// Longest pause between two looks while a bookie is being drained: somebody waits for that.
const WHILE_DRAINING: Duration = Duration::from_secs(5);
/// How often it is looked whether a bookie is to be drained.
const GLANCE: Duration = Duration::from_millis(500);

/// Why a look at the ledgers was broken off.
#[derive(Debug, thiserror::Error)]
enum CensusError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Election(#[from] ElectionError),
    #[error("it is not known at the moment which bookies are up")]
    Unseen,
    #[error("the office is lost")]
    OfficeLost,
}

/// See the module.
#[derive(Debug)]
pub struct RepairAuditor {
    config: RepairConfig,
    ledgers: LedgerStore,
    me: HolderRecord,
}

impl RepairAuditor {
    /// A candidate for the office.
    ///
    /// # Errors
    /// [`RepairConfigError`] if a setting can't be used.
    pub fn new(config: RepairConfig, ledgers: LedgerStore) -> Result<Self, RepairConfigError> {
        config.validate()?;
        let session = SessionId::new(&*ledgers.shared.env.random);
        let me = HolderRecord { holder: config.name.clone(), session };
        Ok(Self { config, ledgers, me })
    }

    /// Stands for the office, and audits while it has it, until `stopped`.
    pub async fn run(self, stopped: impl Future<Output = ()>) {
        tokio::pin!(stopped);
        loop {
            let error = tokio::select! {
                biased;
                () = &mut stopped => return,
                Err(error) = self.serve() => error,
            };
            tracing::debug!(%error, "the auditor begins anew");
            tokio::select! {
                biased;
                () = &mut stopped => return,
                () = tokio::time::sleep(GLANCE) => {}
            }
        }
    }

    fn meta(&self) -> &Arc<dyn MetadataStore> {
        &self.ledgers.shared.meta
    }

    /// Waits for the office and audits as long as the lease lasts.
    async fn serve(&self) -> Result<Infallible, CensusError> {
        let env = self.ledgers.shared.env.clone();
        let meta = Arc::clone(self.meta());
        let lease = LeaseKeeper::grant(meta, env.clone(), self.config.lease_ttl).await?;
        let pause = (self.config.lease_ttl / 4).max(Duration::from_millis(10));
        while stand(self.meta(), &env, Office::Auditor, &self.me, &lease).await? != Elected::Me {
            tokio::time::sleep(pause).await;
        }
        tracing::info!(name = self.config.name, "this process audits the ledgers");
        let mut auditor = Auditor::new(self.config.grace);
        tokio::select! {
            biased;
            () = lease.lost() => Err(CensusError::OfficeLost),
            never = self.audit(&mut auditor) => match never {},
        }
    }

    async fn audit(&self, auditor: &mut Auditor) -> Infallible {
        loop {
            // What isn't seen isn't decided. Since when bookies are away is still known.
            if let Err(error) = self.look(auditor).await {
                tracing::debug!(%error, "a look at the ledgers was broken off");
            }
            self.pause().await;
        }
    }

    /// Waits for the next look: less long while a bookie is drained, and not at all once another
    /// one is to be.
    async fn pause(&self) {
        let env = &self.ledgers.shared.env;
        let start = env.clock.monotonic();
        let seen = self.ledgers.shared.placement.view().draining;
        let most = self.config.scan_interval;
        let most = if seen.is_empty() { most } else { most.min(WHILE_DRAINING) };
        while env.clock.monotonic().saturating_sub(start) < most {
            tokio::time::sleep(GLANCE.min(most)).await;
            if self.ledgers.shared.placement.view().draining != seen {
                return;
            }
        }
    }

    /// Looks at all ledgers.
    async fn look(&self, auditor: &mut Auditor) -> Result<(), CensusError> {
        let shared = &self.ledgers.shared;
        let view = shared.placement.view();
        if !view.is_current {
            return Err(CensusError::Unseen);
        }
        auditor.begin(shared.env.clock.monotonic(), view);
        let mut tasks = Listing::new(keys::REPAIRS);
        let mut ledgers = Listing::new(keys::LEDGERS);
        let (mut whole, mut queued) = (true, 0);
        while let Some(pair) = ledgers.next(self.meta()).await? {
            let Some(Key::Ledger(id)) = Key::parse(&pair.key) else { continue };
            let task = self.task_of(auditor, &mut tasks, id, &mut queued).await?;
            let metadata = match LedgerRecord::decode(&pair.value) {
                Ok((record, _)) => records::from_record(id, record),
                Err(error) => {
                    // Whoever needs the ledger says so. It may name any bookie.
                    tracing::debug!(ledger = %id, %error, "a ledger's record can't be read");
                    whole = false;
                    continue;
                }
            };
            match auditor.ledger(&metadata, task.as_ref().map(|task| &task.record)) {
                Verdict::Keep => {}
                Verdict::Queue(reasons) => {
                    if task.is_none() && queued >= MAX_QUEUED {
                        continue;
                    }
                    queued += usize::from(task.is_none());
                    match queue(self.meta().as_ref(), &shared.env, id, &reasons).await {
                        Ok(_) => {}
                        Err(QueueError::Store(error)) => return Err(error.into()),
                        // One that can't be used hides no other.
                        Err(error) => tracing::debug!(ledger = %id, %error, "it can't be queued"),
                    }
                }
                Verdict::Dequeue => {
                    let Some(task) = task else { continue };
                    let txn = Txn::default().when(task.unchanged()).delete(task.key.clone());
                    // A conflict is somebody's who knows better.
                    self.meta().txn(txn).await?;
                }
            }
        }
        // What is left is of ledgers that are gone.
        while let Some(pair) = tasks.next(self.meta()).await? {
            if let Ok((task, _)) = RepairRecord::decode(&pair.value) {
                auditor.orphan(&task);
            }
        }
        for bookie in auditor.end(whole) {
            match self.forget(&bookie).await {
                Err(CensusError::Read(error)) => {
                    tracing::debug!(%bookie, %error, "a drained bookie can't be forgotten");
                }
                forgotten => forgotten?,
            }
        }
        Ok(())
    }

    /// The task of a ledger, with those of smaller ids passed over.
    async fn task_of(
        &self,
        auditor: &mut Auditor,
        tasks: &mut Listing,
        ledger: LedgerId,
        queued: &mut usize,
    ) -> Result<Option<Stored<RepairRecord>>, CensusError> {
        while let Some(pair) = tasks.peek(self.meta()).await? {
            let of = match Key::parse(&pair.key) {
                Some(Key::Repair(of)) if of > ledger => return Ok(None),
                Some(Key::Repair(of)) => Some(of),
                _ => None,
            };
            let Some(pair) = tasks.next(self.meta()).await? else { return Ok(None) };
            let Ok(task) = Stored::<RepairRecord>::from_pair(pair) else { continue };
            *queued += 1;
            if of == Some(ledger) {
                return Ok(Some(task));
            }
            auditor.orphan(&task.record);
        }
        Ok(None)
    }

    /// Frees a drained bookie's name, unless it is still up: it would be given entries again, and
    /// could not start a second time.
    async fn forget(&self, bookie: &BookieId) -> Result<(), CensusError> {
        let key = keys::drain(bookie);
        let Some(mark) = read::<DrainRecord>(self.meta().as_ref(), &key).await? else {
            return Ok(());
        };
        let txn = Txn::default()
            .when(mark.unchanged())
            .when(Compare::Absent(keys::bookie(bookie)))
            .delete(key)
            .delete(keys::cookie(bookie));
        if let TxnOutcome::Applied(_) = self.meta().txn(txn).await? {
            tracing::info!(%bookie, "no ledger is on this bookie any more; its name is free");
        }
        Ok(())
    }
}

/// Pairs below a prefix, in key order, read page by page.
#[derive(Debug)]
struct Listing {
    prefix: &'static str,
    page: VecDeque<KeyValue>,
    after: Option<String>,
    more: bool,
}

impl Listing {
    fn new(prefix: &'static str) -> Self {
        Self { prefix, page: VecDeque::new(), after: None, more: true }
    }

    async fn fill(&mut self, meta: &Arc<dyn MetadataStore>) -> Result<(), StoreError> {
        while self.page.is_empty() && self.more {
            let page = meta.range(self.prefix, self.after.as_deref(), MAX_RANGE).await?;
            self.after = page.pairs.last().map(|pair| pair.key.clone()).or(self.after.take());
            (self.page, self.more) = (page.pairs.into(), page.more);
        }
        Ok(())
    }

    async fn peek(
        &mut self,
        meta: &Arc<dyn MetadataStore>,
    ) -> Result<Option<&KeyValue>, StoreError> {
        self.fill(meta).await?;
        Ok(self.page.front())
    }

    async fn next(
        &mut self,
        meta: &Arc<dyn MetadataStore>,
    ) -> Result<Option<KeyValue>, StoreError> {
        self.fill(meta).await?;
        Ok(self.page.pop_front())
    }
}
