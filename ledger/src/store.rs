//! Creates, recovers, opens and deletes ledgers.
//!
//! *Invariant:* a ledger is created and linked to its owner, and unlinked and deleted, in one
//! transaction, so that there is never a ledger that nobody lists.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use geminga_meta::id_block::{AllocateError, IdAllocator};
use geminga_meta::keys;
use geminga_meta::record::{LedgerOwner, Nonce, Record};
use geminga_meta::store::{Compare, MetadataStore, StoreError, Txn, TxnOutcome};
use geminga_meta::update_loop::RetryPolicy;
use geminga_proto::env::Env;
use geminga_proto::id::{BookieId, EntryId, Lac, LedgerId, LedgerToken};
use geminga_proto::storage::{BookieError, BookieInfo, ScrubProgress};
use parking_lot::Mutex;

pub use crate::config::{ConfigError, LedgerStoreConfig};
use crate::engine::outage::Outage;
use crate::engine::{EngineLimits, Versioned};
use crate::error::{CreateError, DeleteError, OpenError, RecoverError};
use crate::metadata::{Fragment, LedgerMetadata, LedgerState};
use crate::observer::LedgerObserver;
use crate::placement::Placement;
use crate::probe::{self, Probed};
use crate::reader::hedging::Hedging;
use crate::reader::{ClosedLedger, LedgerReader};
use crate::records::{self, LoadError};
use crate::recover;
use crate::ticker::Ticker;
use crate::transport::BookieTransport;
use crate::writer::LedgerWriter;

/// Comparisons of copies at a time: each holds some of every member's entries.
const MAX_CHECKS: usize = 2;

/// What all handles share.
#[derive(Debug)]
pub(crate) struct StoreShared {
    pub config: LedgerStoreConfig,
    pub limits: EngineLimits,
    pub request_timeout: Duration,
    pub hedging: Hedging,
    pub tick: Duration,
    pub env: Env,
    pub meta: Arc<dyn MetadataStore>,
    pub transport: Arc<dyn BookieTransport>,
    pub placement: Arc<dyn Placement>,
    pub runtime: tokio::runtime::Handle,
    pub ticker: Ticker,
    ids: IdAllocator<LedgerId>,
    /// Ledgers that a copy was said to be damaged of. Written by [`LedgerStore::set_spoilt`].
    spoilt: Mutex<BTreeSet<LedgerId>>,
    /// Comparisons of copies that may run.
    pub checks: tokio::sync::Semaphore,
}

impl StoreShared {
    /// Tells placement which members have failed, and asks it for others in their place.
    pub(crate) fn replacements(
        &self,
        ledger: LedgerId,
        outage: &Outage,
        count: usize,
        exclude: &[BookieId],
    ) -> Vec<BookieId> {
        for (bookie, error) in &outage.failed {
            tracing::debug!(%ledger, %bookie, %error, "a bookie fails a ledger");
            self.placement.failed(bookie, *error);
        }
        self.placement.replace(count, outage.needed, &outage.keep, exclude)
    }
}

/// All ledgers of a cluster, as seen by one process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LedgerStore {
    pub(crate) shared: Arc<StoreShared>,
}

impl LedgerStore {
    /// A store over `meta` and the bookies that `transport` reaches. Must be called inside a
    /// tokio runtime, on which the store's tasks run.
    ///
    /// # Errors
    /// [`ConfigError`] if a setting can't be used.
    pub fn new(
        config: LedgerStoreConfig,
        env: Env,
        meta: Arc<dyn MetadataStore>,
        transport: Arc<dyn BookieTransport>,
        placement: Arc<dyn Placement>,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| ConfigError::NoRuntime)?;
        let tick_ms = config.retry_interval_ms.min(config.append_timeout_ms.div_ceil(4)).max(1);
        let tick = Duration::from_millis(tick_ms);
        let ticks = |ms: u64| u32::try_from(ms.div_ceil(tick_ms)).unwrap_or(u32::MAX);
        let limits = EngineLimits {
            max_pending_bytes: config.max_pending_bytes_per_ledger,
            max_lag_bytes: config.max_lag_bytes_per_bookie,
            timeout_ticks: ticks(config.append_timeout_ms),
            retry_ticks: ticks(config.retry_interval_ms),
        };
        let shared = StoreShared {
            limits,
            request_timeout: Duration::from_millis(config.request_timeout_ms),
            hedging: Hedging::new(Duration::from_millis(config.read_hedge_ms)),
            tick,
            ids: IdAllocator::with_block(
                Arc::clone(&meta),
                env.clone(),
                RetryPolicy::default(),
                u64::from(config.id_block),
            ),
            ticker: Ticker::start(&runtime, tick),
            config,
            env,
            meta,
            transport,
            placement,
            runtime,
            spoilt: Mutex::default(),
            checks: tokio::sync::Semaphore::new(MAX_CHECKS),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> &LedgerStoreConfig {
        &self.shared.config
    }

    /// The bookies that take writes, with what each says of itself.
    pub async fn bookies(&self) -> Vec<(BookieId, Result<BookieInfo, BookieError>)> {
        let picked = self.shared.placement.pick(usize::MAX, 0, &[]);
        let Ok(bookies) = picked else { return Vec::new() };
        self.infos(bookies, self.shared.request_timeout).await
    }

    /// What each of these bookies says of itself; [`BookieError::Unreachable`] of one that doesn't
    /// answer within `patience`.
    pub async fn infos(
        &self,
        bookies: Vec<BookieId>,
        patience: Duration,
    ) -> Vec<(BookieId, Result<BookieInfo, BookieError>)> {
        let transport = &self.shared.transport;
        let asked = bookies.into_iter().map(|bookie| async move {
            let info = tokio::time::timeout(patience, transport.info(&bookie)).await;
            (bookie, info.unwrap_or(Err(BookieError::Unreachable)))
        });
        // Side by side: one that hangs holds up none of the others.
        futures_util::future::join_all(asked).await
    }

    /// How far a bookie is with verifying all that it has; with `start`, it begins.
    ///
    /// # Errors
    /// [`BookieError::Unreachable`] if it doesn't answer in time.
    pub async fn scrub(
        &self,
        bookie: &BookieId,
        start: bool,
    ) -> Result<ScrubProgress, BookieError> {
        let asked = self.shared.transport.scrub(bookie, start);
        let answer = tokio::time::timeout(self.shared.request_timeout, asked).await;
        answer.unwrap_or(Err(BookieError::Unreachable))
    }

    /// Takes an id above all that bookies know, picks an ensemble, and creates the ledger's record
    /// in one transaction with the conditions and writes that `link` makes for that id.
    ///
    /// The ledgers of one list must rise: `after` is the last of them, and the new id is above it.
    ///
    /// With fewer bookies than the write quorum, but at least the ack quorum, the ledger has a
    /// write quorum of that number and is marked for repair.
    ///
    /// # Errors
    /// [`CreateError`]; nothing is created, except as [`CreateError::Metadata`] says.
    pub async fn create(
        &self,
        owner: LedgerOwner,
        after: Option<LedgerId>,
        link: impl FnOnce(LedgerId) -> Txn + Send,
        observer: Arc<dyn LedgerObserver>,
    ) -> Result<LedgerWriter, CreateError> {
        let shared = &self.shared;
        let (write_quorum, ack_quorum) = (shared.config.write_quorum, shared.config.ack_quorum);
        let bookies = shared.placement.pick(write_quorum as usize, ack_quorum as usize, &[])?;
        // Metadata that were restored may have forgotten ids that bookies know as used, and whose
        // ledgers they would take the new one for.
        let used = |at_most| shared.placement.highest_ledger(at_most);
        let id = shared.ids.next_above_told(after.unwrap_or_default(), used).await;
        let id = id.map_err(|error: AllocateError| match error.store_error() {
            Some(store) => CreateError::Metadata(store.clone()),
            None => CreateError::Ids(error.to_string()),
        })?;
        let metadata = LedgerMetadata {
            id,
            token: LedgerToken(shared.env.random.nonzero_u64()),
            owner,
            state: LedgerState::Open,
            write_quorum: u32::try_from(bookies.len()).unwrap_or(u32::MAX),
            ack_quorum,
            under_replicated: bookies.len() < write_quorum as usize,
            fragments: vec![Fragment { first_entry: EntryId(0), bookies }],
            last_entry: Lac::NONE,
            bytes: 0,
            created_ms: shared.env.clock.wall_ms(),
        };
        let version = self.insert(&metadata, link(id)).await?;
        let created = Versioned { metadata, version };
        Ok(LedgerWriter::new(Arc::clone(shared), created, observer))
    }

    /// Writes a new ledger's record together with its link; answers its version.
    async fn insert(&self, metadata: &LedgerMetadata, link: Txn) -> Result<u64, CreateError> {
        let shared = &self.shared;
        let id = metadata.id;
        let invalid = |why: String| CreateError::Metadata(StoreError::Invalid(why));
        metadata.validate().map_err(|error| invalid(error.to_string()))?;
        let value = records::to_record(metadata)
            .encode(Nonce::new(shared.env.random.as_ref()))
            .map_err(|error| invalid(error.to_string()))?;
        let key = keys::ledger(id);
        let mut txn = link;
        txn.merge(Txn::default().when(Compare::Absent(key.clone())).put(key, value));
        let timeout = shared.request_timeout;
        match records::in_time(timeout, shared.meta.txn(txn)).await {
            Ok(TxnOutcome::Applied(revision)) => Ok(revision.0),
            Ok(TxnOutcome::Conflict(_)) => {
                match records::load(shared.meta.as_ref(), id, timeout).await {
                    Ok(_) | Err(LoadError::Damaged(_)) => {
                        Err(CreateError::Ids(format!("ledger {id} exists already")))
                    }
                    Err(_) => Err(CreateError::Conflict),
                }
            }
            Err(unknown @ StoreError::Unknown(_)) => {
                // The token tells this write from any other.
                match records::load(shared.meta.as_ref(), id, timeout).await {
                    Ok(found) if found.metadata.token == metadata.token => Ok(found.version),
                    _ => Err(unknown.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// From now on these ledgers count as ones that a copy is damaged of, and no others.
    pub fn set_spoilt(&self, ledgers: BTreeSet<LedgerId>) {
        *self.shared.spoilt.lock() = ledgers;
    }

    /// Whether an open ledger has fewer bookies than it would have if it were created now, or one
    /// that is to be taken away or is gone: the ledger after it will have as many as there should
    /// be, and others. Or whether a copy of it is damaged, which is mended once it is closed.
    #[must_use]
    pub fn could_be_wider(&self, writer: &LedgerWriter) -> bool {
        let shared = &self.shared;
        let leaves =
            |bookie| shared.placement.is_draining(bookie) || shared.placement.is_gone(bookie);
        let spoilt = || shared.spoilt.lock().contains(&writer.id());
        (self.is_narrow(writer) || writer.members().iter().any(leaves) || spoilt())
            && shared.placement.has(shared.config.write_quorum as usize)
    }

    /// Whether an open ledger has fewer bookies than it should have. Costs a comparison.
    #[must_use]
    fn is_narrow(&self, writer: &LedgerWriter) -> bool {
        writer.write_quorum() < self.shared.config.write_quorum
    }

    /// Asks the bookies of these open ledgers whether somebody has fenced them, and needs no
    /// metadata for that. The writer of a ledger that was found fenced fails as such. Takes no
    /// longer than `request_timeout_ms`. Answers in the order of `writers`.
    pub async fn probe(&self, writers: &[LedgerWriter]) -> Vec<Probed> {
        probe::probe(&self.shared, writers).await
    }

    /// Fences the ledger, finds its end and closes it there. A closed ledger is answered at once.
    ///
    /// # Errors
    /// [`RecoverError`] if its end can't be told now; nothing is guessed.
    pub async fn recover(&self, id: LedgerId) -> Result<ClosedLedger, RecoverError> {
        let metadata = recover::recover(Arc::clone(&self.shared), id).await?;
        Ok(ClosedLedger::of(&metadata))
    }

    /// As [`Self::recover`], and opens the ledger for reading without asking for its record again.
    ///
    /// # Errors
    /// As [`Self::recover`].
    pub async fn recover_to_read(&self, id: LedgerId) -> Result<LedgerReader, RecoverError> {
        let metadata = recover::recover(Arc::clone(&self.shared), id).await?;
        Ok(LedgerReader::new(Arc::clone(&self.shared), metadata))
    }

    /// Opens a closed ledger for reading.
    ///
    /// # Errors
    /// [`OpenError`] if there is none, or it isn't closed.
    pub async fn open(&self, id: LedgerId) -> Result<LedgerReader, OpenError> {
        let metadata = self.describe(id).await?;
        match metadata.state {
            LedgerState::Closed => Ok(LedgerReader::new(Arc::clone(&self.shared), metadata)),
            LedgerState::Open | LedgerState::InRecovery => Err(OpenError::NotClosed(id)),
        }
    }

    /// Deletes the records of `ids` in one transaction with `unlink`, then hints it to bookies,
    /// which look for themselves before they delete anything. All of it counts towards the
    /// store's limit of operations in a transaction.
    ///
    /// # Errors
    /// [`DeleteError`]; nothing is deleted, except as [`DeleteError::Metadata`] says.
    pub async fn delete(&self, ids: &[LedgerId], unlink: Txn) -> Result<(), DeleteError> {
        let shared = &self.shared;
        let hints = self.hints(ids).await;
        let mut txn = unlink;
        for id in ids {
            txn = txn.delete(keys::ledger(*id));
        }
        match records::in_time(shared.request_timeout, shared.meta.txn(txn)).await {
            Ok(TxnOutcome::Applied(_)) => {}
            Ok(TxnOutcome::Conflict(_)) => return Err(DeleteError::Conflict),
            Err(unknown @ StoreError::Unknown(_)) => {
                if !self.all_absent(ids).await {
                    return Err(unknown.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
        let transport = Arc::clone(&shared.transport);
        shared.runtime.spawn(async move {
            for (bookie, ledgers) in hints {
                if let Err(error) = transport.delete_hint(&bookie, ledgers).await {
                    // It finds out by itself, later.
                    tracing::debug!(%bookie, %error, "a deletion hint was not taken");
                }
            }
        });
        Ok(())
    }

    /// Which bookies hold which of these ledgers, as far as their records can be read.
    async fn hints(&self, ids: &[LedgerId]) -> Vec<(BookieId, Vec<LedgerId>)> {
        let mut hints: Vec<(BookieId, Vec<LedgerId>)> = Vec::new();
        for id in ids {
            let Ok(metadata) = self.describe(*id).await else { continue };
            for bookie in metadata.fragments.into_iter().flat_map(|fragment| fragment.bookies) {
                match hints.iter_mut().find(|(known, _)| *known == bookie) {
                    Some((_, ledgers)) if ledgers.last() == Some(id) => {}
                    Some((_, ledgers)) => ledgers.push(*id),
                    None => hints.push((bookie, vec![*id])),
                }
            }
        }
        hints
    }

    async fn all_absent(&self, ids: &[LedgerId]) -> bool {
        for id in ids {
            if !matches!(self.describe(*id).await, Err(OpenError::NotFound(_))) {
                return false;
            }
        }
        true
    }

    /// A ledger's metadata, for administration.
    ///
    /// # Errors
    /// [`OpenError`] if there is none.
    pub async fn describe(&self, id: LedgerId) -> Result<LedgerMetadata, OpenError> {
        let shared = &self.shared;
        match records::load(shared.meta.as_ref(), id, shared.request_timeout).await {
            Ok(found) => Ok(found.metadata),
            Err(LoadError::Absent) => Err(OpenError::NotFound(id)),
            Err(LoadError::Store(error)) => Err(OpenError::Metadata { ledger: id, error }),
            Err(LoadError::Damaged(why)) => Err(OpenError::Damaged { ledger: id, why }),
        }
    }
}
