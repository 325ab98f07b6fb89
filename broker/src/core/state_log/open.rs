//! Taking a state log over: fence, replay, record the next ledger.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use geminga_ledger::error::{CreateError, RecoverError};
use geminga_ledger::reader::LedgerReader;
use geminga_ledger::store::LedgerStore;
use geminga_ledger::writer::LedgerWriter;
use geminga_meta::bundle::BundleId;
use geminga_meta::keys;
use geminga_meta::read::{ReadError, read};
use geminga_meta::record::{BundleRecord, LedgerOwner, Nonce, Record, Stored};
use geminga_meta::store::{Compare, MetadataStore, Txn};
use geminga_proto::env::Env;
use geminga_proto::id::{EntryId, Epoch, LedgerId};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};

#[cfg(any(test, feature = "simulation"))]
use crate::core::defect::Defect;
use crate::core::watched;

use super::cursors::{Cursors, Replay};
use super::engine::Engine;
use super::keeper::Keeper;
use super::record::decode_entry;
use super::{
    CursorId, Driver, KeeperGuard, Observer, Shared, State, StateLog, StateLogConfig, StateLogError,
};

/// How often somebody else may be faster before the bundle is called unavailable.
const MAX_ATTEMPTS: u32 = 5;
/// Ledgers of a chain that are fenced at a time.
const FENCED_AT_ONCE: usize = 16;
/// Of one read during replay.
const READ_ENTRIES: u32 = 256;
const READ_BYTES: u64 = 4 * 1024 * 1024;

pub(super) fn unavailable(why: &(impl ToString + ?Sized)) -> StateLogError {
    StateLogError::Unavailable(why.to_string())
}

pub(super) fn recover_error(error: &RecoverError) -> StateLogError {
    match error {
        RecoverError::Damaged { .. } => StateLogError::Corrupt(error.to_string()),
        RecoverError::NotFound(_)
        | RecoverError::Fence { .. }
        | RecoverError::Undecided { .. }
        | RecoverError::Unsettled { .. }
        | RecoverError::WriteBack { .. }
        | RecoverError::Metadata { .. } => unavailable(error),
    }
}

/// The bundle's record; `None`: it never had a state log.
pub(super) async fn load(
    meta: &dyn MetadataStore,
    bundle: &BundleId,
) -> Result<Option<Stored<BundleRecord>>, StateLogError> {
    match read(meta, &keys::bundle(bundle)).await {
        Ok(stored) => Ok(stored),
        Err(ReadError::Store(error)) => Err(unavailable(&error)),
        Err(error @ ReadError::Record { .. }) => Err(StateLogError::Corrupt(error.to_string())),
    }
}

/// The transaction that replaces the bundle's record, if nobody else has.
pub(super) fn replace(
    env: &Env,
    bundle: &BundleId,
    stored: Option<&Stored<BundleRecord>>,
    record: &BundleRecord,
) -> Txn {
    let key = keys::bundle(bundle);
    let compare = stored.map_or(Compare::Absent(key.clone()), Stored::unchanged);
    match record.encode(Nonce::new(&*env.random)) {
        Ok(value) => Txn::default().when(compare).put(key, value),
        // Ids or counts that can't be true: such a transaction must not apply.
        Err(_) => Txn::default().when(Compare::Absent(key.clone())).when(Compare::Present(key)),
    }
}

/// Creates the next ledger of the chain and puts it into the bundle's record.
pub(super) async fn create(
    ledgers: &LedgerStore,
    env: &Env,
    bundle: &BundleId,
    stored: Option<&Stored<BundleRecord>>,
    epoch: Epoch,
    observer: Arc<Observer>,
) -> Result<LedgerWriter, CreateError> {
    let known = stored.map(|stored| stored.record.clone()).unwrap_or_default();
    let after = known.state_ledgers.last().copied();
    let heard_by = Arc::clone(&observer);
    let link = move |id: LedgerId| {
        let _ = heard_by.ledger.set(id);
        let mut record = BundleRecord { epoch, ..known };
        record.state_ledgers.push(id);
        // A namespace that is being deleted takes its bundles with it.
        replace(env, bundle, stored, &record)
            .when(Compare::Present(keys::namespace(&bundle.namespace)))
            .when(Compare::Absent(keys::deletion(&bundle.namespace)))
    };
    ledgers.create(LedgerOwner::StateLog(bundle.clone()), after, link, observer).await
}

struct Replayed {
    cursors: Cursors,
    next_id: CursorId,
    bytes: u64,
}

/// Fences what the record lists and reads it.
async fn replay(ledgers: &LedgerStore, record: &BundleRecord) -> Result<Replayed, StateLogError> {
    let from = record.snapshot;
    let mut replay = Replay::new(from.is_some());
    let mut bytes = 0;
    let chain = record.state_ledgers.iter().filter(|id| from.is_none_or(|at| **id >= at.ledger));
    // All are fenced before the first is read: nobody else can add to any of them.
    let fence = |id: &LedgerId| {
        let (ledgers, id) = (ledgers.clone(), *id);
        async move { ledgers.recover_to_read(id).await }
    };
    let fencing: Vec<_> = chain.map(fence).collect();
    let fenced = stream::iter(fencing).buffered(FENCED_AT_ONCE).collect::<Vec<_>>().await;
    let readers = fenced.into_iter().collect::<Result<Vec<LedgerReader>, _>>();
    for reader in readers.map_err(|error| recover_error(&error))? {
        let ledger = *reader.closed();
        let Some(last) = ledger.last_entry.0 else { continue };
        let first = from.filter(|at| at.ledger == ledger.id).map_or(EntryId(0), |at| at.entry);
        let mut next = first;
        while next <= last {
            let read = reader.read(next, READ_ENTRIES, READ_BYTES).await;
            let entries = read.map_err(|error| unavailable(&error))?;
            if entries.first().is_none_or(|entry| entry.entry != next) {
                return Err(unavailable(&format!(
                    "entry {next} of ledger {} is missing",
                    ledger.id
                )));
            }
            for entry in entries {
                let at = |why: &dyn std::fmt::Display| {
                    let (ledger, entry) = (ledger.id, entry.entry);
                    StateLogError::Corrupt(format!("entry {entry} of ledger {ledger}: {why}"))
                };
                let payload = entry.payload.clone();
                bytes += payload.len() as u64;
                let records = decode_entry(&payload).map_err(|error| at(&error))?;
                replay.entry(records).map_err(|why| at(&why))?;
                next = entry.entry.next();
            }
        }
    }
    let corrupt = |why: &str| StateLogError::Corrupt(why.to_owned());
    let (cursors, next_id) = replay.finish().map_err(corrupt)?;
    Ok(Replayed { cursors, next_id, bytes })
}

pub(super) async fn open(
    bundle: BundleId,
    ledgers: LedgerStore,
    meta: Arc<dyn MetadataStore>,
    env: Env,
    config: StateLogConfig,
) -> Result<StateLog, StateLogError> {
    for _ in 0..MAX_ATTEMPTS {
        let stored = load(&*meta, &bundle).await?;
        let record = stored.as_ref().map(|stored| stored.record.clone()).unwrap_or_default();
        if record.state_ledgers.len() >= BundleRecord::MAX_STATE_LEDGERS {
            return Err(unavailable("its chain has too many ledgers"));
        }
        let replayed = match replay(&ledgers, &record).await {
            Ok(replayed) => replayed,
            #[cfg(any(test, feature = "simulation"))]
            Err(_) if config.planted == Some(Defect::UnreadableIsEmpty) => {
                Replayed { cursors: Cursors::default(), next_id: CursorId(1_000_000), bytes: 0 }
            }
            // Another owner may have trimmed the chain meanwhile: only what is still recorded
            // has to be there.
            Err(error) => match load(&*meta, &bundle).await? {
                now if now.as_ref().map(|now| now.revision)
                    == stored.as_ref().map(|stored| stored.revision) =>
                {
                    return Err(error);
                }
                _ => continue,
            },
        };
        let epoch = Epoch(record.epoch.0 + 1);
        let observer = Arc::new(Observer::default());
        let heard_by = Arc::clone(&observer);
        let created = create(&ledgers, &env, &bundle, stored.as_ref(), epoch, heard_by).await;
        let writer = match created {
            Ok(writer) => writer,
            Err(CreateError::Conflict) => continue,
            Err(error) => return Err(unavailable(&error)),
        };
        let stored = match load(&*meta, &bundle).await? {
            Some(stored) if stored.record.epoch == epoch => stored,
            _ => continue,
        };
        let parts = Parts { bundle, ledgers, meta, env, config };
        return Ok(start(parts, replayed, writer, stored, &observer));
    }
    Err(unavailable("other brokers take it over all the time, or its namespace is being deleted"))
}

/// What a log is made of.
struct Parts {
    bundle: BundleId,
    ledgers: LedgerStore,
    meta: Arc<dyn MetadataStore>,
    env: Env,
    config: StateLogConfig,
}

fn start(
    parts: Parts,
    replayed: Replayed,
    writer: LedgerWriter,
    stored: Stored<BundleRecord>,
    observer: &Observer,
) -> StateLog {
    let Parts { bundle, ledgers, meta, env, config } = parts;
    let Replayed { cursors, next_id, bytes } = replayed;
    let chain_len = stored.record.state_ledgers.len();
    let chain_is_long = chain_len > config.max_chain_ledgers;
    let permits = usize::try_from(config.max_pending_bytes).unwrap_or(usize::MAX);
    let state = State {
        engine: Engine::new(config.clone(), cursors, next_id, writer.id(), bytes),
        writer,
        next: None,
        retired: Vec::new(),
        stalled: None,
        chain_len,
    };
    let shared = Arc::new(Shared {
        bundle,
        config,
        ledgers,
        meta,
        env,
        state: Mutex::new(state),
        room: Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS))),
        work: Notify::new(),
        ended: watch::Sender::new(None),
        runtime: tokio::runtime::Handle::current(),
    });
    // Should the ledger have failed before it was heard, the first append finds out.
    let _ = observer.log.set(Arc::downgrade(&shared));
    let keeper = Keeper::new(Arc::clone(&shared), stored).run();
    let ending = Arc::downgrade(&shared);
    let panicked = move || {
        if let Some(shared) = ending.upgrade() {
            shared.end(unavailable("its keeper failed inside the broker"));
        }
    };
    let keeper = watched::spawn(&shared.runtime, "keeper of a state log", keeper, panicked);
    if chain_is_long {
        shared.drive(Driver::Log, Engine::want_round);
    }
    StateLog { shared, _keeper: Arc::new(KeeperGuard(keeper.abort_handle())) }
}
