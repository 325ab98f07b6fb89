//! [`StateLog`]: the durable cursors of one bundle, in a chain of ledgers.
//!
//! Changes of all cursors of the bundle are gathered while one append is in flight, and go out
//! together as the next entry; a receipt is called once its entry is confirmed. Snapshots of the
//! cursors go into the same log, a few with each entry, so replay stays short and old ledgers go.
//!
//! Refuses: to guess. A log that can't be read whole is [`StateLogError::Unavailable`] or
//! [`StateLogError::Corrupt`], never an empty one.

use std::sync::Arc;

use geminga_ledger::store::LedgerStore;
use geminga_meta::bundle::BundleId;
use geminga_meta::store::MetadataStore;
use geminga_proto::env::Env;
use geminga_proto::id::TopicIncarnation;

use crate::core::cursor::{CursorChange, CursorState, Frontier};

/// A subscription in a bundle's state log. Never reused within the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CursorId(pub u64);

/// Settings of a state log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateLogConfig {
    /// Bytes of changes that wait for an append or its confirmation; above it, callers wait.
    pub max_pending_bytes: u64,
    /// Bytes of one entry of the log.
    pub max_entry_bytes: usize,
    /// A ledger is followed by the next one at this size.
    pub ledger_max_bytes: u64,
    /// A snapshot round begins when so many bytes (or, if that is more, the size of the last
    /// round) were written since the last began. Replay at opening is about twice that.
    pub snapshot_after_bytes: u64,
}

impl Default for StateLogConfig {
    fn default() -> Self {
        Self {
            max_pending_bytes: 8 * 1024 * 1024,
            max_entry_bytes: 1024 * 1024,
            ledger_max_bytes: 64 * 1024 * 1024,
            snapshot_after_bytes: 16 * 1024 * 1024,
        }
    }
}

/// Why a state log, or a change handed to it, failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateLogError {
    /// Another broker took the bundle over; the outcome of pending changes is unknown.
    #[error("another broker took the bundle over")]
    Fenced,
    /// It can't be read or written now; at opening, try again later.
    #[error("the bundle's state log is unavailable: {0}")]
    Unavailable(String),
    /// What is stored is damaged.
    #[error("the bundle's state log is damaged: {0}")]
    Corrupt(String),
    /// It was closed by its owner.
    #[error("the bundle's state log is closed")]
    Closed,
    /// No such subscription in the log.
    #[error("the state log has no cursor {0:?}")]
    NoSuchCursor(CursorId),
    /// The topic has a subscription of that name.
    #[error("the state log has a subscription {0:?} of this topic already")]
    Exists(String),
}

/// Called once a change is durable, or failed. Called without a lock of the log held; may call
/// the log and may take a topic's lock.
pub type Done = Box<dyn FnOnce(Result<(), StateLogError>) + Send>;

/// Room for changes. Take it before a topic's lock, hand it over with the change.
#[derive(Debug)]
pub struct Room {}

/// A subscription as the log knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredSubscription {
    /// Its id in the log.
    pub id: CursorId,
    /// Its name.
    pub name: Arc<str>,
    /// What it has acknowledged, including changes that are not durable yet.
    pub cursor: CursorState,
}

/// Numbers of a state log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateLogNumbers {
    /// Bytes that wait for an append or its confirmation.
    pub pending_bytes: u64,
    /// Their cap.
    pub max_pending_bytes: u64,
    /// Subscriptions in it.
    pub cursors: u64,
    /// Ledgers in its chain.
    pub ledgers: u64,
    /// Bytes that would be replayed now.
    pub replay_bytes: u64,
}

/// A bundle's state log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct StateLog {}

impl StateLog {
    /// Takes the bundle's log over: fences and recovers its last ledgers, replays it, opens the
    /// next ledger and records it. A bundle without a record gets a new, empty log.
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
        let _ = (bundle, ledgers, meta, env, config);
        todo!()
    }

    /// Subscriptions of a topic, by name.
    #[must_use]
    pub fn subscriptions(&self, topic: TopicIncarnation) -> Vec<StoredSubscription> {
        let _ = topic;
        todo!()
    }

    /// Waits until there is room for changes, in the order of the calls. `positions`: how many
    /// positions an acknowledgement names (0 for anything else).
    ///
    /// # Errors
    /// [`StateLogError`] if the log failed or was closed.
    pub async fn room(&self, positions: usize) -> Result<Room, StateLogError> {
        let _ = positions;
        todo!()
    }

    /// Room if there is some now.
    #[must_use]
    pub fn try_room(&self, positions: usize) -> Option<Room> {
        let _ = positions;
        todo!()
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
        let _ = (room, topic, name, at, done);
        todo!()
    }

    /// Removes a subscription. Removing one that isn't there succeeds.
    pub fn delete_subscription(&self, room: Room, cursor: CursorId, done: Done) {
        let _ = (room, cursor, done);
        todo!()
    }

    /// Removes all subscriptions of a topic.
    pub fn delete_topic(&self, room: Room, topic: TopicIncarnation, done: Done) {
        let _ = (room, topic, done);
        todo!()
    }

    /// Hands over a change of a cursor, never blocking; `done` is called when it and everything
    /// handed over before is durable. `None`: only that. Failures go to `done`.
    pub fn change(&self, room: Room, cursor: CursorId, change: Option<CursorChange>, done: Done) {
        let _ = (room, cursor, change, done);
        todo!()
    }

    /// Waits until the log has failed or is closed, and answers why.
    pub async fn ended(&self) -> StateLogError {
        todo!()
    }

    /// Waits until everything handed over is durable, then closes the log's ledger. Nothing can
    /// be handed over afterwards.
    ///
    /// # Errors
    /// Why the ledger could not be closed; the next owner recovers it.
    pub async fn close(&self) -> Result<(), StateLogError> {
        todo!()
    }

    /// Its numbers.
    #[must_use]
    pub fn numbers(&self) -> StateLogNumbers {
        todo!()
    }
}
