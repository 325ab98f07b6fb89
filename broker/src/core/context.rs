//! [`Context`]: what every part of the core shares. No state of topics is in here.

use std::fmt::Display;
use std::sync::Arc;

use geminga_ledger::reader::LedgerReader;
use geminga_ledger::store::LedgerStore;
use geminga_meta::id_block::IdAllocator;
use geminga_meta::read::ReadError;
use geminga_meta::store::MetadataStore;
use geminga_proto::env::Env;
use geminga_proto::id::{LedgerId, ManagedLedgerId, TopicIncarnation};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use crate::core::api::TopicError;
use crate::core::budget::ByteBudget;
use crate::core::cache::TailCache;
use crate::core::config::BrokerConfig;
use crate::core::metadata_health::MetadataHealth;
use crate::core::metrics::Metrics;
use crate::core::read_ahead::AheadList;
use crate::core::widening::Widening;

/// Closed ledgers that are kept open for reading. A handle is small; opening one costs a read
/// from the metadata.
const OPEN_READERS: u64 = 4_096;

/// Topics loaded at a time.
const LOADS_AT_ONCE: usize = 128;

/// What every part of the core shares.
#[derive(Debug)]
pub struct Context {
    /// The settings.
    pub config: BrokerConfig,
    /// Time and randomness.
    pub env: Env,
    /// The metadata.
    pub meta: Arc<dyn MetadataStore>,
    /// The ledgers.
    pub ledgers: LedgerStore,
    /// Bytes of entries in memory.
    pub budget: ByteBudget,
    /// What was read before it was asked for.
    pub read_ahead: Arc<AheadList>,
    /// The newest entries.
    pub cache: Arc<TailCache>,
    /// Closed ledgers that were read lately.
    pub readers: moka::sync::Cache<LedgerId, LedgerReader>,
    /// Counters of the whole broker.
    pub metrics: Arc<Metrics>,
    /// Numbers for new managed ledgers.
    pub managed_ledger_ids: IdAllocator<ManagedLedgerId>,
    /// Numbers for new topics.
    pub incarnations: IdAllocator<TopicIncarnation>,
    /// Whether the metadata store answers.
    pub health: MetadataHealth,
    /// When ledgers with too few bookies are followed by wider ones.
    pub widening: Widening,
    /// Topics that may be loaded at a time. A broker that takes over thousands of topics would
    /// else send so many requests at once that none is answered in time.
    pub loads: Semaphore,
    /// When the broker started.
    pub started_ms: u64,
    /// Where tasks run: observers are called from threads that know no runtime.
    pub runtime: Handle,
}

impl Context {
    /// Builds what is shared. Must be called inside a tokio runtime.
    #[must_use]
    pub fn new(
        config: BrokerConfig,
        env: Env,
        meta: Arc<dyn MetadataStore>,
        ledgers: LedgerStore,
    ) -> Arc<Self> {
        let budget = ByteBudget::new(config.ingest_bytes(), config.egress_bytes());
        let cache = Arc::new(TailCache::new(config.tail_cache_bytes, budget.clone()));
        let weak = Arc::downgrade(&cache);
        budget.set_reclaim(weak);
        let read_ahead = Arc::<AheadList>::default();
        let weak = Arc::downgrade(&read_ahead);
        budget.set_reclaim_egress(weak);
        Arc::new(Self {
            managed_ledger_ids: IdAllocator::new(Arc::clone(&meta), env.clone()),
            incarnations: IdAllocator::new(Arc::clone(&meta), env.clone()),
            readers: moka::sync::Cache::new(OPEN_READERS),
            metrics: Arc::new(Metrics::default()),
            health: MetadataHealth::default(),
            widening: Widening::default(),
            loads: Semaphore::new(LOADS_AT_ONCE),
            started_ms: env.clock.wall_ms(),
            runtime: Handle::current(),
            config,
            env,
            meta,
            ledgers,
            budget,
            cache,
            read_ahead,
        })
    }
}

/// What a record that can't be read means for a topic: the store may answer later, damage stays.
pub fn read_error(error: ReadError) -> TopicError {
    match error {
        ReadError::Store(error) => unavailable(error),
        ReadError::Record { .. } => TopicError::Corrupt(error.to_string()),
    }
}

/// A topic can't be used for a reason that may pass.
pub fn unavailable(why: impl Display) -> TopicError {
    TopicError::Unavailable(why.to_string())
}
