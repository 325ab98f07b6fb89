//! [`StateLog`]: the durable cursors of one bundle, in a chain of ledgers.
//!
//! Changes of all cursors of the bundle are gathered while one append is in flight, and go out
//! together as the next entry; a receipt is called once its entry is confirmed. Snapshots of the
//! cursors go into the same log, a few with each entry, so replay stays short and old ledgers go.
//!
//! `engine.rs` decides, `keeper.rs` does what takes time (rolling, recovering, trimming), `open.rs`
//! takes a log over, `record.rs` is the format.
//!
//! Refuses: to guess. A log that can't be read whole is [`StateLogError::Unavailable`] or
//! [`StateLogError::Corrupt`], never an empty one.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock, Weak};

use geminga_ledger::error::AppendRefused;
use geminga_ledger::observer::{LedgerObserver, StallReason, WriterFailure};
use geminga_ledger::store::LedgerStore;
use geminga_ledger::writer::LedgerWriter;
use geminga_meta::bundle::BundleId;
use geminga_meta::store::MetadataStore;
use geminga_proto::env::Env;
use geminga_proto::id::{EntryId, LedgerId, TopicIncarnation};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::core::api::Ack;
use crate::core::cursor::{CursorChange, Frontier};

mod cursors;
mod engine;
mod keeper;
mod open;
mod record;
mod types;

pub use types::{
    CursorId, Done, StateLogConfig, StateLogError, StateLogNumbers, StoredSubscription,
};

use engine::{Effect, Engine};

/// What a change takes of the room, whatever it says.
const CHANGE_BYTES: usize = 256;
/// What each acknowledged position takes.
const POSITION_BYTES: usize = 64;
/// What each byte of a batch's bitmap may take: four ranges.
const BITMAP_BYTE_BYTES: usize = 64;

/// Room for a change. Take it before a topic's lock, hand it over with the change; dropping it
/// gives it back.
#[derive(Debug)]
pub struct Room {
    _permit: OwnedSemaphorePermit,
}

/// What a change holds until it is durable.
struct Pending {
    done: Done,
    _room: Room,
}

struct State {
    engine: Engine<Pending>,
    writer: LedgerWriter,
    /// The next ledger, until the engine goes over to it.
    next: Option<LedgerWriter>,
    /// Ledgers that take no more and are to be closed.
    retired: Vec<LedgerWriter>,
    stalled: Option<StallReason>,
    /// Ledgers in the chain. Written by the keeper.
    chain_len: usize,
}

struct Shared {
    bundle: BundleId,
    config: StateLogConfig,
    ledgers: LedgerStore,
    meta: Arc<dyn MetadataStore>,
    env: Env,
    /// Taken under topics' locks; nothing is awaited and no callback is called under it.
    state: Mutex<State>,
    room: Arc<Semaphore>,
    /// The keeper may have something to do.
    work: Notify,
    ended: watch::Sender<Option<StateLogError>>,
    runtime: tokio::runtime::Handle,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("StateLog").field("bundle", &self.bundle).finish_non_exhaustive()
    }
}

/// Who is running the engine: decides from where callers are called back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    /// A caller, perhaps under a topic's lock: it is called back from another task.
    Caller,
    /// A ledger's observer or the keeper.
    Log,
}

impl Shared {
    /// Runs the engine and does what it asks for.
    fn drive<R>(
        &self,
        driver: Driver,
        act: impl FnOnce(&mut Engine<Pending>, &mut Vec<Effect<Pending>>) -> R,
    ) -> R {
        let mut completed = Vec::new();
        let mut ended = None;
        let mut wake = false;
        let result = {
            let mut state = self.state.lock();
            let mut effects = Vec::new();
            let result = act(&mut state.engine, &mut effects);
            let mut effects = VecDeque::from(effects);
            while let Some(effect) = effects.pop_front() {
                match effect {
                    Effect::Append(bytes) => {
                        let appended = state.writer.append(bytes.into()).map_err(as_failure);
                        let mut more = Vec::new();
                        state.engine.appended(appended, &mut more);
                        effects.extend(more);
                    }
                    Effect::Switch => {
                        state.switch();
                        wake = true;
                    }
                    Effect::Complete(pending, outcome) => completed.push((pending, outcome)),
                    Effect::Ended(error) => ended = Some(error),
                    Effect::Wake => wake = true,
                }
            }
            result
        };
        let nobody = completed.is_empty();
        let call_back = move || {
            for (pending, outcome) in completed {
                pending.into_iter().for_each(|pending| (pending.done)(outcome.clone()));
            }
        };
        // Within a caller's call only failures complete, and what has nothing to wait for.
        match driver {
            _ if nobody => {}
            Driver::Log => call_back(),
            Driver::Caller => drop(self.runtime.spawn(async move { call_back() })),
        }
        if let Some(error) = ended {
            self.room.close();
            self.ended.send_replace(Some(error));
        }
        if wake {
            self.work.notify_one();
        }
        result
    }

    fn end(&self, error: StateLogError) {
        self.drive(Driver::Log, |engine, fx| engine.end(error, fx));
    }
}

impl State {
    fn switch(&mut self) {
        if let Some(next) = self.next.take() {
            self.retired.push(std::mem::replace(&mut self.writer, next));
            self.stalled = None;
        }
    }
}

fn as_failure(refused: AppendRefused) -> WriterFailure {
    match refused {
        AppendRefused::Failed(failure) => failure,
        AppendRefused::Closing => WriterFailure::Closed,
        // One entry at a time is far below any cap: the ledger isn't usable.
        AppendRefused::TooManyPending { .. } => WriterFailure::QuorumLost,
    }
}

/// Hears of one ledger of the log.
#[derive(Debug, Default)]
struct Observer {
    log: OnceLock<Weak<Shared>>,
    /// Known before the ledger is created.
    ledger: OnceLock<LedgerId>,
}

impl Observer {
    fn log(&self) -> Option<(Arc<Shared>, LedgerId)> {
        Some((self.log.get()?.upgrade()?, *self.ledger.get()?))
    }
}

impl LedgerObserver for Observer {
    fn confirmed(&self, lac: EntryId) {
        if let Some((log, ledger)) = self.log() {
            log.drive(Driver::Log, |engine, fx| engine.confirmed(ledger, lac, fx));
        }
    }

    fn failed(&self, failure: WriterFailure) {
        if let Some((log, ledger)) = self.log() {
            if failure != WriterFailure::Closed {
                tracing::warn!(bundle = %log.bundle, %ledger, %failure, "state log ledger failed");
            }
            log.drive(Driver::Log, |engine, fx| engine.failed(ledger, &failure, fx));
        }
    }

    fn stalled(&self, reason: StallReason) {
        if let Some((log, ledger)) = self.log() {
            tracing::warn!(bundle = %log.bundle, %ledger, %reason, "state log stalled");
            log.state.lock().stalled = Some(reason);
        }
    }

    fn resumed(&self) {
        if let Some((log, ledger)) = self.log() {
            tracing::info!(bundle = %log.bundle, %ledger, "state log resumed");
            log.state.lock().stalled = None;
        }
    }
}

/// Ends the keeper with the last handle.
#[derive(Debug)]
struct KeeperGuard(tokio::task::AbortHandle);

impl Drop for KeeperGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A bundle's state log. Cheap to clone. When the last clone goes without [`StateLog::close`], the
/// open ledger is left to be recovered.
#[derive(Debug, Clone)]
pub struct StateLog {
    shared: Arc<Shared>,
    _keeper: Arc<KeeperGuard>,
}

impl StateLog {
    /// Takes the bundle's log over: fences and recovers its ledgers, replays it, opens the next
    /// ledger and records it. A bundle without a record gets a new, empty log. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// [`StateLogError`]; the bundle must then not be served.
    pub async fn open(
        bundle: BundleId,
        ledgers: LedgerStore,
        meta: Arc<dyn MetadataStore>,
        env: Env,
        config: StateLogConfig,
    ) -> Result<Self, StateLogError> {
        open::open(bundle, ledgers, meta, env, config).await
    }

    /// Subscriptions of a topic, by name.
    #[must_use]
    pub fn subscriptions(&self, topic: TopicIncarnation) -> Vec<StoredSubscription> {
        self.shared.state.lock().engine.subscriptions(topic)
    }

    /// Waits until there is room for a change, in the order of the calls. `positions`: how many
    /// whole entries an acknowledgement names (0 for anything else).
    ///
    /// # Errors
    /// [`StateLogError`] if the log failed or was closed.
    pub async fn room(&self, positions: usize) -> Result<Room, StateLogError> {
        self.acquire(CHANGE_BYTES.saturating_add(positions.saturating_mul(POSITION_BYTES))).await
    }

    /// Waits until there is room for an acknowledgement, in the order of the calls.
    ///
    /// # Errors
    /// [`StateLogError`] if the log failed or was closed.
    pub async fn room_for(&self, ack: &Ack) -> Result<Room, StateLogError> {
        let bitmaps =
            ack.positions.iter().map(|named| named.acked_indexes.len() * BITMAP_BYTE_BYTES);
        let positions = ack.positions.len() * POSITION_BYTES;
        self.acquire(CHANGE_BYTES + positions + bitmaps.sum::<usize>()).await
    }

    /// Room if there is some now.
    #[must_use]
    pub fn try_room(&self, positions: usize) -> Option<Room> {
        let bytes = CHANGE_BYTES.saturating_add(positions.saturating_mul(POSITION_BYTES));
        let room = Arc::clone(&self.shared.room);
        room.try_acquire_many_owned(self.permits(bytes)).ok().map(|_permit| Room { _permit })
    }

    /// More than there ever is counts as all of it.
    fn permits(&self, bytes: usize) -> u32 {
        let cap = u32::try_from(self.shared.config.max_pending_bytes).unwrap_or(u32::MAX);
        u32::try_from(bytes).unwrap_or(u32::MAX).min(cap)
    }

    async fn acquire(&self, bytes: usize) -> Result<Room, StateLogError> {
        let room = Arc::clone(&self.shared.room);
        match room.acquire_many_owned(self.permits(bytes)).await {
            Ok(_permit) => Ok(Room { _permit }),
            Err(_) => Err(self.ended().await),
        }
    }

    /// Adds a subscription. `done` is called once that is durable; until then changes may be
    /// handed over already.
    ///
    /// # Errors
    /// [`StateLogError::Exists`], or that the log failed or was closed; `done` is then not called.
    pub fn create_subscription(
        &self,
        room: Room,
        topic: TopicIncarnation,
        name: &str,
        at: Frontier,
        done: Done,
    ) -> Result<CursorId, StateLogError> {
        let pending = Pending { done, _room: room };
        self.shared.drive(Driver::Caller, |engine, fx| engine.create(topic, name, at, pending, fx))
    }

    /// Removes a subscription. Removing one that isn't there succeeds.
    pub fn delete_subscription(&self, room: Room, cursor: CursorId, done: Done) {
        let pending = Pending { done, _room: room };
        self.shared.drive(Driver::Caller, |engine, fx| engine.delete(cursor, pending, fx));
    }

    /// Removes all subscriptions of a topic.
    pub fn delete_topic(&self, room: Room, topic: TopicIncarnation, done: Done) {
        let pending = Pending { done, _room: room };
        self.shared.drive(Driver::Caller, |engine, fx| engine.delete_topic(topic, pending, fx));
    }

    /// Hands over a change of a cursor, never blocking; `done` is called when it and everything
    /// handed over before is durable. `None`: only that. Failures go to `done`. A change of a
    /// subscription that was deleted meanwhile succeeds and changes nothing.
    pub fn change(&self, room: Room, cursor: CursorId, change: Option<CursorChange>, done: Done) {
        let pending = Pending { done, _room: room };
        self.shared.drive(Driver::Caller, |engine, fx| engine.change(cursor, change, pending, fx));
    }

    /// Waits until the log has failed or is closed, and answers why.
    pub async fn ended(&self) -> StateLogError {
        let mut ended = self.shared.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(error) => error.clone().unwrap_or(StateLogError::Closed),
            Err(_) => StateLogError::Closed,
        }
    }

    /// Waits until everything handed over is durable, then closes the log's ledger. Nothing can
    /// be handed over afterwards.
    ///
    /// # Errors
    /// Why it ended otherwise; the next owner recovers the ledger.
    pub async fn close(&self) -> Result<(), StateLogError> {
        self.shared.drive(Driver::Log, Engine::close);
        match self.ended().await {
            StateLogError::Closed => Ok(()),
            error => Err(error),
        }
    }

    /// The ledger that it writes.
    #[must_use]
    pub fn writer(&self) -> LedgerWriter {
        self.shared.state.lock().writer.clone()
    }

    /// Its numbers.
    #[must_use]
    pub fn numbers(&self) -> StateLogNumbers {
        let max_pending_bytes = self.shared.config.max_pending_bytes;
        let free = self.shared.room.available_permits() as u64;
        let state = self.shared.state.lock();
        StateLogNumbers {
            pending_bytes: max_pending_bytes.saturating_sub(free),
            max_pending_bytes,
            cursors: state.engine.cursor_count() as u64,
            ledgers: state.chain_len as u64,
            replay_bytes: state.engine.replay_bytes(),
            stalled: state.stalled,
        }
    }
}

#[cfg(test)]
mod tests;
