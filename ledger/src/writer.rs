//! Appends to an open ledger: runs an [`AppendEngine`].
//!
//! Locks: `state` is taken by the owner's calls, by transports' tasks and by the store's. Under it
//! the transport and placement are called, which therefore must not call back from within; the
//! observer never is. So the order is *the caller's locks → state → the transport's locks*, and
//! the observer may take the caller's.
//!
//! Invariant: what the observer must hear is put into an outbox under the lock and handed over
//! outside of it by one thread at a time, so it hears in order. A panic while it hears ends the
//! ledger, not the thread, which serves other ledgers too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use geminga_proto::id::{BookieId, EntryId, Lac, LedgerId};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{AppendResult, StoredEntry};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::engine::append::AppendEngine;
use crate::engine::{Command, MetadataAnswer, Versioned};
use crate::error::{AppendRefused, CloseError, ReadError};
use crate::metadata::LedgerMetadata;
use crate::observer::{LedgerObserver, StallReason, WriterFailure};
use crate::probe::Witnesses;
use crate::reader::{self, ClosedLedger};
use crate::records::{self, LoadError};
use crate::store::StoreShared;
use crate::transport::AppendSink;

/// What the observer hasn't been told yet. Later news of one kind replaces earlier.
#[derive(Debug, Default)]
struct Outbox {
    confirmed: Option<EntryId>,
    stall: Option<Option<StallReason>>,
    failed: Option<WriterFailure>,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.confirmed.is_none() && self.stall.is_none() && self.failed.is_none()
    }

    fn hand_over(self, observer: &dyn LedgerObserver) {
        if let Some(lac) = self.confirmed {
            observer.confirmed(lac);
        }
        match self.stall {
            Some(Some(reason)) => observer.stalled(reason),
            Some(None) => observer.resumed(),
            None => {}
        }
        if let Some(failure) = self.failed {
            observer.failed(failure);
        }
    }
}

#[derive(Debug)]
struct WriterState {
    engine: AppendEngine,
    /// Reused, so that an append allocates nothing.
    commands: Vec<Command>,
    outbox: Outbox,
    /// Somebody is handing the outbox over.
    delivering: bool,
    /// Rows of answers that are coming in; the outbox waits for the end of one.
    batches: u32,
    /// The ticker knows this ledger.
    ticked: bool,
    closers: Vec<oneshot::Sender<Result<ClosedLedger, CloseError>>>,
    closed: Option<ClosedLedger>,
    /// Something of it panicked; the observer hears so last.
    panicked: bool,
}

/// An open ledger, shared by its handles and by whoever owes it an answer.
#[derive(Debug)]
pub(crate) struct WriterShared {
    id: LedgerId,
    write_quorum: u32,
    ack_quorum: u32,
    me: Weak<WriterShared>,
    store: Arc<StoreShared>,
    observer: Arc<dyn LedgerObserver>,
    state: Mutex<WriterState>,
}

/// The owner's handle of an open ledger. Cheap to clone. Dropping it leaves the ledger open, to
/// be closed by recovery.
#[derive(Debug, Clone)]
pub struct LedgerWriter {
    shared: Arc<WriterShared>,
}

impl LedgerWriter {
    pub(crate) fn new(
        store: Arc<StoreShared>,
        created: Versioned,
        observer: Arc<dyn LedgerObserver>,
    ) -> Self {
        let LedgerMetadata { id, write_quorum, ack_quorum, .. } = created.metadata;
        let state = WriterState {
            engine: AppendEngine::owner(created, store.limits),
            commands: Vec::new(),
            outbox: Outbox::default(),
            delivering: false,
            batches: 0,
            ticked: false,
            closers: Vec::new(),
            closed: None,
            panicked: false,
        };
        let shared = Arc::new_cyclic(|me| WriterShared {
            id,
            write_quorum,
            ack_quorum,
            me: me.clone(),
            store,
            observer,
            state: Mutex::new(state),
        });
        Self { shared }
    }

    /// The ledger.
    #[must_use]
    pub fn id(&self) -> LedgerId {
        self.shared.id
    }

    /// Qw, as recorded: may be lower than configured when bookies were missing.
    #[must_use]
    pub fn write_quorum(&self) -> u32 {
        self.shared.write_quorum
    }

    /// Qa.
    #[must_use]
    pub fn ack_quorum(&self) -> u32 {
        self.shared.ack_quorum
    }

    /// The bookies that new entries go to, as the record has them.
    pub(crate) fn members(&self) -> Vec<BookieId> {
        self.shared.state.lock().engine.metadata().last_fragment().bookies.clone()
    }

    /// Gives `payload` the next entry id and sends it. Never blocks and never calls the observer
    /// from within; the caller's lock may be held. Ids are given in the order of the calls.
    ///
    /// # Errors
    /// [`AppendRefused`]: the entry has no id and is not stored.
    pub fn append(&self, payload: Payload) -> Result<EntryId, AppendRefused> {
        let mut state = self.shared.state.lock();
        let WriterState { engine, commands, .. } = &mut *state;
        let entry = engine.append(payload, commands)?;
        self.shared.perform(&mut state);
        Ok(entry)
    }

    /// The last-add-confirmed.
    #[must_use]
    pub fn lac(&self) -> Lac {
        self.shared.state.lock().engine.lac()
    }

    /// Bytes appended and not confirmed.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        self.shared.state.lock().engine.pending_bytes()
    }

    /// Refuses further appends, waits until what is pending is confirmed, and closes the ledger.
    /// While the ledger stalls for lack of disk space this waits too. Calling it again after
    /// [`CloseError::Unavailable`] tries again; on a closed ledger it answers the same again.
    ///
    /// # Errors
    /// [`CloseError`] if the ledger failed, or the metadata store didn't answer in time.
    pub async fn close(&self) -> Result<ClosedLedger, CloseError> {
        let waiting = {
            let mut state = self.shared.state.lock();
            if let Some(closed) = state.closed {
                return Ok(closed);
            }
            if let Some(failure) = state.engine.ended() {
                return Err(CloseError::Failed(failure.clone()));
            }
            let (sender, waiting) = oneshot::channel();
            state.closers.push(sender);
            let WriterState { engine, commands, .. } = &mut *state;
            engine.close(commands);
            self.shared.perform(&mut state);
            waiting
        };
        self.shared.deliver();
        // Every closer is answered; the sender goes only with the runtime.
        waiting.await.unwrap_or(Err(CloseError::Unavailable))
    }

    /// Reads confirmed entries of the own, open ledger; otherwise as
    /// [`crate::reader::LedgerReader::read`].
    ///
    /// # Errors
    /// [`ReadError`] if `first` is not confirmed or no bookie can send it.
    pub async fn read(
        &self,
        first: EntryId,
        max_entries: u32,
        max_bytes: u64,
    ) -> Result<Vec<StoredEntry>, ReadError> {
        let (metadata, last) = {
            let state = self.shared.state.lock();
            (state.engine.metadata().clone(), state.engine.lac())
        };
        let limits = reader::ReadLimits { max_entries, max_bytes };
        // The engine hears of what a repair has moved when it next writes the record.
        reader::read_moved(&self.shared.store, &metadata, last, first, limits).await.0
    }
}

impl LedgerWriter {
    /// Who can tell whether the ledger is fenced; `None` if it has ended.
    pub(crate) fn witnesses(&self) -> Option<Witnesses> {
        let state = self.shared.state.lock();
        let engine = &state.engine;
        engine.ended().is_none().then(|| Witnesses {
            token: engine.metadata().token,
            bookies: engine.witnesses(),
            ack_quorum: engine.metadata().ack_quorum,
        })
    }

    /// A bookie has said that another owner has fenced the ledger.
    pub(crate) fn fenced(&self) {
        self.shared.event(|engine, out| engine.abandon(WriterFailure::Fenced, out));
    }
}

impl WriterShared {
    /// Feeds the engine and does what it says.
    fn event(&self, event: impl FnOnce(&mut AppendEngine, &mut Vec<Command>)) {
        let mut state = self.state.lock();
        let WriterState { engine, commands, .. } = &mut *state;
        event(engine, commands);
        self.perform(&mut state);
        drop(state);
        self.deliver();
    }

    /// Performs the commands that are waiting, and those that follow from them.
    fn perform(&self, state: &mut WriterState) {
        if !state.commands.is_empty() {
            let Some(me) = self.me.upgrade() else { return };
            let sink: Arc<dyn AppendSink> = me;
            let mut commands = std::mem::take(&mut state.commands);
            loop {
                for command in commands.drain(..) {
                    self.perform_one(state, command, &sink);
                }
                if state.commands.is_empty() {
                    break;
                }
                std::mem::swap(&mut commands, &mut state.commands);
            }
            // Its capacity is kept for the next time.
            state.commands = commands;
        }
        if !state.ticked && state.engine.wants_ticks() {
            state.ticked = true;
            self.store.ticker.add(self.me.clone());
        }
    }

    fn perform_one(&self, state: &mut WriterState, command: Command, sink: &Arc<dyn AppendSink>) {
        match command {
            Command::Send { bookie, request } => {
                self.store.transport.append(&bookie, request, sink);
            }
            Command::Confirmed(lac) => state.outbox.confirmed = Some(lac),
            Command::Stalled(reason) => {
                tracing::warn!(ledger = %self.id, %reason, "a ledger has stalled");
                state.outbox.stall = Some(Some(reason));
            }
            Command::Resumed => {
                tracing::info!(ledger = %self.id, "a ledger goes on");
                state.outbox.stall = Some(None);
            }
            Command::PickReplacement { count, exclude } => {
                let outage = state.engine.outage();
                let picked = self.store.replacements(self.id, &outage, count, &exclude);
                state.engine.replacement(picked, &mut state.commands);
            }
            Command::Commit { version, metadata } => self.commit(version, metadata),
            Command::ReadMetadata => self.read_metadata(),
            Command::Failed { failure, unknown } => {
                tracing::warn!(ledger = %self.id, %failure, ?unknown, "a ledger has failed");
                state.outbox.failed = Some(failure.clone());
                answer(&mut state.closers, &Err(CloseError::Failed(failure)));
            }
            Command::Closed(metadata) => {
                let closed = ClosedLedger::of(&metadata);
                state.closed = Some(closed);
                answer(&mut state.closers, &Ok(closed));
            }
            Command::CloseDelayed => answer(&mut state.closers, &Err(CloseError::Unavailable)),
        }
    }

    fn commit(&self, version: u64, metadata: LedgerMetadata) {
        let Some(me) = self.me.upgrade() else { return };
        self.store.runtime.spawn(async move {
            let store = &me.store;
            let (meta, timeout) = (store.meta.as_ref(), store.request_timeout);
            let answer = records::commit(meta, &store.env, version, &metadata, timeout).await;
            me.event(|engine, out| engine.commit_answered(answer, out));
        });
    }

    fn read_metadata(&self) {
        let Some(me) = self.me.upgrade() else { return };
        self.store.runtime.spawn(async move {
            let loaded =
                records::load(me.store.meta.as_ref(), me.id, me.store.request_timeout).await;
            let answer = match loaded {
                Ok(found) => MetadataAnswer::Found(found),
                Err(LoadError::Absent) => MetadataAnswer::Absent,
                // A store that is out of reach says so itself.
                Err(LoadError::Store(error)) => {
                    tracing::debug!(ledger = %me.id, %error, "a ledger's record isn't read");
                    MetadataAnswer::Unavailable
                }
                Err(LoadError::Damaged(why)) => {
                    tracing::warn!(ledger = %me.id, why, "a ledger's record can't be read");
                    MetadataAnswer::Unavailable
                }
            };
            me.event(|engine, out| engine.metadata_read(answer, out));
        });
    }

    /// Time has passed; false if no more ticks are wanted.
    pub(crate) fn tick(&self) -> bool {
        self.event(AppendEngine::tick);
        let mut state = self.state.lock();
        state.ticked = state.engine.wants_ticks();
        state.ticked
    }

    /// Hands the outbox over, unless somebody else is doing it, who will see what was added.
    fn deliver(&self) {
        loop {
            let news = {
                let mut state = self.state.lock();
                if state.delivering || state.outbox.is_empty() {
                    return;
                }
                state.delivering = true;
                std::mem::take(&mut state.outbox)
            };
            // What a panic leaves half done is the observer's, who hears that it has to begin anew.
            let told = catch_unwind(AssertUnwindSafe(|| news.hand_over(self.observer.as_ref())));
            let mut state = self.state.lock();
            state.delivering = false;
            if told.is_err() {
                self.panicked(&mut state, "observer");
            }
        }
    }

    /// Ends the ledger because something of it panicked.
    pub(crate) fn give_up(&self) {
        self.panicked(&mut self.state.lock(), "writer");
        self.deliver();
    }

    fn panicked(&self, state: &mut WriterState, what: &'static str) {
        tracing::error!(ledger = %self.id, what, "a ledger is given up: something panicked");
        if std::mem::replace(&mut state.panicked, true) {
            return;
        }
        // What was left to be done may not fit together.
        state.commands.clear();
        let WriterState { engine, commands, .. } = &mut *state;
        engine.abandon(WriterFailure::Panicked, commands);
        self.perform(state);
        state.outbox = Outbox { failed: Some(WriterFailure::Panicked), ..Outbox::default() };
    }
}

/// Answers all who wait for the ledger to be closed. Whoever has gone needs no answer.
fn answer(
    closers: &mut Vec<oneshot::Sender<Result<ClosedLedger, CloseError>>>,
    result: &Result<ClosedLedger, CloseError>,
) {
    for closer in closers.drain(..) {
        drop(closer.send(result.clone()));
    }
}

impl AppendSink for WriterShared {
    fn append_done(&self, bookie: &BookieId, entry: EntryId, result: AppendResult) {
        let mut state = self.state.lock();
        let taken = catch_unwind(AssertUnwindSafe(|| {
            let WriterState { engine, commands, .. } = &mut *state;
            engine.append_answered(bookie, entry, result, commands);
            self.perform(&mut state);
        }));
        if taken.is_err() {
            self.panicked(&mut state, "writer");
        }
        let row = state.batches > 0;
        drop(state);
        if !row {
            self.deliver();
        }
    }

    fn batch_begin(&self) {
        self.state.lock().batches += 1;
    }

    fn batch_end(&self) {
        let mut state = self.state.lock();
        state.batches = state.batches.saturating_sub(1);
        drop(state);
        self.deliver();
    }
}

#[cfg(test)]
mod tests;
