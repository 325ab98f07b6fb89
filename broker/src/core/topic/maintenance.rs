//! What a topic does that takes waiting: opening, rolling, closing, recovering and trimming
//! ledgers, and retiring the topic. One task does one job after the other, so only one changes
//! the managed ledger at a time; it lives as long as there is a job.
//!
//! A job that meets an unreachable quorum or metadata store is tried again; meanwhile an open
//! ledger goes on. A job that finds the managed ledger's record changed (by another owner, or by
//! an own transaction whose answer was lost) gives the topic up: loading it again sorts it out.
//!
//! Length: all jobs of the one task, with what the simulation plants in some of them.

use std::sync::Arc;
use std::time::Duration;

use geminga_ledger::error::{CloseError, CreateError, DeleteError, RecoverError};
use geminga_ledger::reader::ClosedLedger as ClosedEnd;
use geminga_ledger::writer::LedgerWriter;
use geminga_meta::record::{LedgerOwner, RecordError};
use geminga_meta::store::{Compare, StoreError, Txn, TxnOutcome};
use geminga_meta::update_loop::{RetryPolicy, Witness, commit};
use geminga_proto::env::Monotonic;
use geminga_proto::id::{Lac, LedgerId, MessageIndex};

use crate::core::api::TopicError;
use crate::core::context::unavailable;
use crate::core::cursor::Frontier;
#[cfg(any(test, feature = "simulation"))]
use crate::core::defect::Defect;
use crate::core::managed_ledger::ManagedLedger;
use crate::core::managed_ledger::list::{ClosedLedger, Retention};
use crate::core::managed_ledger::queue::PublishQueue;
use crate::core::topic::log::{Generation, Log, Wider};
use crate::core::topic::observer::LedgerTap;
use crate::core::topic::{State, Status, Topic};

/// No observer has this generation: events of a ledger that has it are ignored.
const NOBODY: Generation = 0;
/// Ledgers deleted in one transaction.
const TRIM_AT_ONCE: usize = 32;
const FIRST_RETRY: Duration = Duration::from_millis(50);
const MAX_RETRY: Duration = Duration::from_secs(2);
/// Failures to open a ledger, within about a second and a half, after which who waits for it hears
/// why.
const REFUSE_AFTER: u32 = 4;
/// Attempts at closing a ledger of a topic that is to leave; then recovery has to do it.
const MAX_ATTEMPTS_DRAINING: u32 = 4;

/// How a topic left the memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retired {
    /// Its ledgers are closed.
    Cleanly,
    /// A ledger is left to recovery.
    Abandoned,
}

/// Why a job wasn't done.
#[derive(Debug)]
pub(super) enum JobError {
    /// Try again.
    Later(String),
    /// Try again when the metadata store answers.
    Metadata(StoreError),
    /// The topic can't go on.
    Fatal(TopicError),
}

impl From<StoreError> for JobError {
    fn from(error: StoreError) -> Self {
        match error {
            // If an unknown one was done after all, the next attempt conflicts with it, and the
            // topic is loaded again.
            // A store that refuses access may be set right: until then open ledgers go on.
            StoreError::Unavailable(_) | StoreError::Unknown(_) | StoreError::Denied(_) => {
                Self::Metadata(error)
            }
            StoreError::Full(_) => Self::Later(error.to_string()),
            StoreError::Corrupt(why) => Self::Fatal(TopicError::Corrupt(why)),
            StoreError::TooLarge(_)
            | StoreError::Invalid(_)
            | StoreError::LeaseLost
            | StoreError::Replaced(_) => Self::Fatal(unavailable(error)),
        }
    }
}

impl From<RecordError> for JobError {
    fn from(error: RecordError) -> Self {
        Self::Fatal(TopicError::Corrupt(error.to_string()))
    }
}

/// What is to be done next.
#[derive(Debug)]
enum Job {
    /// Find the end of the failed ledger.
    Recover(LedgerId),
    /// Create a ledger: the first, or the next.
    Open(Generation),
    /// Close the ledger before the current one.
    Close(LedgerWriter),
    /// Delete so many of the oldest ledgers.
    Trim(usize),
    /// Nothing is left: close the topic.
    Retire,
}

/// Does jobs until there is none.
pub async fn run(topic: Arc<Topic>) {
    let mut failures = 0;
    loop {
        let now = topic.context.env.clock.monotonic();
        let job = {
            let mut state = topic.state.lock();
            let job = topic.next_job(&mut state, now, failures);
            if job.is_none() {
                state.maintaining = false;
            }
            job
        };
        let Some(job) = job else { return };
        if matches!(job, Job::Retire) {
            topic.retire(failures);
            return;
        }
        let holds_up = matches!(job, Job::Recover(_) | Job::Open(_));
        match topic.perform(job).await {
            Ok(()) => failures = 0,
            Err(JobError::Later(why)) => {
                failures += 1;
                if failures.is_power_of_two() && !topic.context.health.is_away() {
                    tracing::warn!(topic = %topic.name, why, attempt = failures, "will try again");
                }
                topic.refuse_waiting(failures, &why);
                topic.tell_waiting(holds_up, failures, &why);
                pause(failures).await;
            }
            Err(JobError::Metadata(error)) => {
                failures += 1;
                topic.context.health.suspect(&error);
                // An outage is logged once for all topics; what it isn't, has a cause of its own.
                if failures.is_power_of_two() && failures > 2 && !topic.context.health.is_away() {
                    let (name, attempt) = (&topic.name, failures);
                    tracing::warn!(topic = %name, %error, attempt, "will try again");
                }
                topic.refuse_waiting(failures, &error.to_string());
                topic.tell_waiting(holds_up, failures, &error.to_string());
                pause(failures).await;
            }
            Err(JobError::Fatal(error)) => {
                topic.fail(&error);
                topic.state.lock().maintaining = false;
                return;
            }
        }
    }
}

/// Waits before a job is tried again.
async fn pause(failures: u32) {
    let pause = (FIRST_RETRY * 2_u32.saturating_pow(failures.min(8))).min(MAX_RETRY);
    tokio::time::sleep(pause).await;
}

impl Topic {
    /// True if the maintenance task has something to do that can't wait for housekeeping. Cheap.
    pub(super) fn has_work(&self, state: &State, now: Monotonic) -> bool {
        let log = &state.log;
        match state.status {
            Status::Closed(_) => false,
            Status::Draining(..) => true,
            Status::Serving => {
                log.failed.is_some()
                    || log.closing.is_some()
                    || (log.current.is_none() && log.next.is_none() && !log.queue.is_empty())
                    || self.wants_roll(log, now)
                    || log.wider == Wider::Due
                    || self.wants_close(log, now)
                    || self.wants_seal(state)
            }
        }
    }

    fn next_job(&self, state: &mut State, now: Monotonic, failures: u32) -> Option<Job> {
        let draining = match state.status {
            Status::Closed(_) => return None,
            Status::Draining(..) => true,
            Status::Serving => false,
        };
        if draining && failures >= MAX_ATTEMPTS_DRAINING {
            return Some(Job::Retire);
        }
        if self.wants_seal(state) {
            tracing::info!(topic = %self.name, "sealing a consumed ledger to free its space");
            state.log.failed = Some(geminga_ledger::observer::WriterFailure::QuorumLost);
        }
        let log = &mut state.log;
        // The list takes ledgers in their order, so one that was to be closed before goes first.
        if log.failed.is_some()
            && let Some(closing) = &log.closing
        {
            return Some(Job::Close(closing.writer.clone()));
        }
        if log.failed.is_some()
            && let Some(current) = &mut log.current
        {
            // From here on only recovery says what was confirmed.
            current.generation = NOBODY;
            return Some(Job::Recover(current.id));
        }
        if log.current.is_none() && log.next.is_none() && !log.queue.is_empty() {
            return Some(Job::Open(log.next_generation()));
        }
        if draining && log.queue.is_empty() && log.closing.is_none() {
            self.close_clients(state);
            let log = &mut state.log;
            log.pump(now);
            log.stop_current();
        } else if !draining && self.wants_close(log, now) {
            log.stop_current();
        }
        let log = &mut state.log;
        if let Some(closing) = &log.closing {
            return Some(Job::Close(closing.writer.clone()));
        }
        if draining {
            return log.queue.is_empty().then_some(Job::Retire);
        }
        let due = log.wider == Wider::Due;
        if due {
            log.wider = Wider::No;
        }
        if (due && self.could_be_wider(log, now)) || self.wants_roll(log, now) {
            return Some(Job::Open(log.next_generation()));
        }
        let trim = self.trimmable(state);
        (trim > 0).then(|| Job::Trim(trim.min(TRIM_AT_ONCE)))
    }

    /// Full disks put it off: another ledger frees nothing, and entries that wait for space can't
    /// leave the current one.
    fn wants_roll(&self, log: &Log, now: Monotonic) -> bool {
        let config = &self.context.config;
        let Some(current) = &log.current else { return false };
        let full = current.bytes >= config.ledger_max_bytes;
        let age = now.saturating_sub(current.opened);
        let old = current.entries > 0 && age > config.ledger_max_age;
        log.may_roll() && (full || old)
    }

    /// An idle ledger is closed without a successor: the next publish creates one. So retention
    /// isn't blocked, and an idle topic costs no more than its list. Not while the metadata is
    /// away: the open ledger is what can be published to meanwhile.
    fn wants_close(&self, log: &Log, now: Monotonic) -> bool {
        let Some(current) = &log.current else { return false };
        let idle = now.saturating_sub(current.last_append) > self.context.config.ledger_idle_close;
        let free = log.queue.is_empty() && log.next.is_none() && log.closing.is_none();
        idle && free && !self.context.health.is_away()
    }

    /// With full disks, an open ledger that everybody has consumed is the space that is needed:
    /// it is closed by recovery, which may still write, and then trimmed. The next one may be there
    /// already; it then takes what waited.
    fn wants_seal(&self, state: &State) -> bool {
        let log = &state.log;
        let Some(current) = &log.current else { return false };
        log.storage_full
            && log.failed.is_none()
            && log.closing.is_none()
            && log.last_confirmed.is_some_and(|last| last.ledger == current.id)
            && state.subscriptions.consumed() >= log.queue.confirmed_index()
            && !state.subscriptions.slots.is_empty()
            && self.retention(state).age_ms == 0
    }

    /// Without a ledger, and without a way to open one, producers hear why instead of waiting for
    /// they don't know what. None of what waits is stored; they come back and send it again.
    fn refuse_waiting(&self, failures: u32, why: &str) {
        let mut state = self.state.lock();
        let log = &state.log;
        let serving = matches!(state.status, Status::Serving);
        let waits = log.current.is_none() && log.next.is_none() && !log.queue.is_empty();
        if failures < REFUSE_AFTER || !serving || !waits {
            return;
        }
        let end = (log.queue.confirmed_index(), log.queue.last_timestamp_ms());
        state.log.queue = PublishQueue::resume(end.0, end.1);
        let closed = state.producers.close(&unavailable(why));
        self.context.metrics.producers.dec_by(i64::try_from(closed).unwrap_or(i64::MAX));
    }

    fn retention(&self, state: &State) -> Retention {
        let subscribed = state.subscriptions.had_any || state.log.ledgers.had_subscription;
        self.namespace.retention(&self.context, subscribed)
    }

    /// How many of the oldest ledgers may go.
    pub(super) fn trimmable(&self, state: &State) -> usize {
        if state.log.ledgers.list.is_empty() {
            return 0;
        }
        let (consumed, retention) = (state.subscriptions.consumed(), self.retention(state));
        #[cfg(any(test, feature = "simulation"))]
        let consumed = match self.context.config.planted {
            Some(Defect::TrimPastCursors) => MessageIndex::MAX,
            _ => consumed,
        };
        let (now_ms, open) = (self.context.env.clock.wall_ms(), state.log.open_bytes());
        state.log.ledgers.list.trimmable(consumed, retention, now_ms, open)
    }

    async fn perform(&self, job: Job) -> Result<(), JobError> {
        match job {
            Job::Recover(ledger) => self.recover_current(ledger).await,
            Job::Open(generation) => self.open_ledger(generation).await,
            Job::Close(writer) => self.close_ledger(writer).await,
            Job::Trim(count) => self.trim(count).await,
            Job::Retire => Ok(()),
        }
    }

    /// The managed ledger to plan a change on.
    pub(super) async fn plan(&self) -> Result<ManagedLedger, JobError> {
        let mut ledgers = {
            let state = self.state.lock();
            let mut ledgers = state.log.ledgers.clone();
            ledgers.had_subscription |= state.subscriptions.had_any;
            ledgers
        };
        self.see_revision(&mut ledgers).await?;
        Ok(ledgers)
    }

    pub(super) async fn see_revision(&self, ledgers: &mut ManagedLedger) -> Result<(), JobError> {
        if ledgers.needs_revision() {
            let pair = self.context.meta.get(&ledgers.key()).await?;
            if !ledgers.seen(pair)? {
                return Err(JobError::Fatal(TopicError::Fenced));
            }
        }
        Ok(())
    }

    async fn open_ledger(&self, generation: Generation) -> Result<(), JobError> {
        let mut ledgers = self.plan().await?;
        let writer = self.create_ledger(&mut ledgers, generation, Txn::default()).await?;
        let now = self.context.env.clock.monotonic();
        let mut state = self.state.lock();
        if matches!(state.status, Status::Closed(_)) {
            return Ok(());
        }
        state.log.ledgers = ledgers;
        state.log.add_ledger(writer, generation, now);
        Ok(())
    }

    /// Creates a ledger at the end of `ledgers`, and writes that list, in one transaction with
    /// `extra`.
    pub(super) async fn create_ledger(
        &self,
        ledgers: &mut ManagedLedger,
        generation: Generation,
        extra: Txn,
    ) -> Result<LedgerWriter, JobError> {
        let owner = LedgerOwner::ManagedLedger(ledgers.id);
        let last = ledgers.open.last().copied();
        let after = last.or_else(|| ledgers.list.last().map(|ledger| ledger.ledger));
        let observer = Arc::new(LedgerTap { topic: self.me.clone(), generation });
        let mut invalid = None;
        let link = |ledger| {
            ledgers.open.push(ledger);
            match ledgers.commit(&self.name, &self.context.env) {
                Ok(mut txn) => {
                    #[cfg(any(test, feature = "simulation"))]
                    if self.context.config.planted == Some(Defect::ListConflictIgnored) {
                        txn.compares.clear();
                        txn.merge(extra);
                        return txn;
                    }
                    txn.merge(extra);
                    txn.when(self.bundle.is_owned())
                }
                Err(error) => {
                    invalid = Some(error);
                    never()
                }
            }
        };
        let created = self.context.ledgers.create(owner, after, link, observer).await;
        if let Some(error) = invalid {
            return Err(error.into());
        }
        let writer = created.map_err(|error| match error {
            CreateError::Conflict => JobError::Fatal(TopicError::Fenced),
            CreateError::Metadata(error) => error.into(),
            CreateError::Placement(_) | CreateError::Ids(_) => JobError::Later(error.to_string()),
        })?;
        ledgers.applied(None);
        self.context.metrics.ledgers_opened.inc();
        Ok(writer)
    }

    async fn close_ledger(&self, writer: LedgerWriter) -> Result<(), JobError> {
        let end = match writer.close().await {
            Ok(end) => end,
            Err(CloseError::Unavailable) => {
                return Err(JobError::Later(CloseError::Unavailable.to_string()));
            }
            Err(CloseError::Failed(_)) => self.recover(writer.id()).await?,
        };
        let (first_index, end_index, entries) = {
            let state = self.state.lock();
            let Some(closing) = &state.log.closing else { return Ok(()) };
            (closing.first_index, closing.end_index, closing.entries)
        };
        if end.last_entry.next_entry().0 != entries {
            let why = format!("ledger {} has not the {entries} entries written", end.id);
            return Err(JobError::Fatal(TopicError::Corrupt(why)));
        }
        let ledgers = self.link_closed(end, first_index, end_index).await?;
        let mut state = self.state.lock();
        if let Some(ledgers) = ledgers {
            state.log.ledgers = ledgers;
        }
        state.log.closing = None;
        let now = self.context.env.clock.monotonic();
        state.log.pump(now);
        Ok(())
    }

    /// Writes the closed ledger into the list; an empty one is deleted instead. `None`: the topic
    /// was closed meanwhile.
    async fn link_closed(
        &self,
        end: ClosedEnd,
        first_index: MessageIndex,
        end_index: MessageIndex,
    ) -> Result<Option<ManagedLedger>, JobError> {
        let mut ledgers = self.plan().await?;
        let timestamp_ms = {
            let state = self.state.lock();
            if matches!(state.status, Status::Closed(_)) {
                return Ok(None);
            }
            state.log.queue.last_timestamp_ms()
        };
        let entries = end.last_entry.next_entry().0;
        let closed = ClosedLedger {
            ledger: end.id,
            entries,
            bytes: end.bytes,
            first_index: first_index.0,
            messages: end_index.0 - first_index.0,
            closed_ms: self.context.env.clock.wall_ms(),
        };
        let corrupt = |error: crate::core::managed_ledger::list::ListError| {
            JobError::Fatal(TopicError::Corrupt(error.to_string()))
        };
        ledgers.close(closed, timestamp_ms).map_err(corrupt)?;
        ledgers.chunk(self.context.config.ledgers_per_chunk);
        let gone: &[LedgerId] = if entries == 0 { &[end.id] } else { &[] };
        self.write(&mut ledgers, gone).await?;
        Ok(Some(ledgers))
    }

    /// Writes the planned list, and deletes the ledgers that left it, in one transaction.
    pub(super) async fn write(
        &self,
        ledgers: &mut ManagedLedger,
        gone: &[LedgerId],
    ) -> Result<(), JobError> {
        let context = &self.context;
        let txn = ledgers.commit(&self.name, &context.env)?.when(self.bundle.is_owned());
        if gone.is_empty() {
            let witness = Witness::new(ledgers.key(), ledgers.nonce());
            let policy = RetryPolicy::default();
            match commit(&*context.meta, &context.env, policy, txn, &witness).await? {
                TxnOutcome::Applied(revision) => ledgers.applied(Some(revision)),
                TxnOutcome::Conflict(_) => return Err(JobError::Fatal(TopicError::Fenced)),
            }
            return Ok(());
        }
        context.ledgers.delete(gone, txn).await.map_err(|error| match error {
            DeleteError::Conflict => JobError::Fatal(TopicError::Fenced),
            DeleteError::Metadata(error) => error.into(),
        })?;
        ledgers.applied(None);
        Ok(())
    }

    pub(super) async fn recover(&self, ledger: LedgerId) -> Result<ClosedEnd, JobError> {
        self.context.ledgers.recover(ledger).await.map_err(recover_error)
    }

    /// As [`Self::recover`], for a ledger that is read next: its reader costs nothing now.
    pub(super) async fn recover_to_read(&self, ledger: LedgerId) -> Result<ClosedEnd, JobError> {
        let recovered = self.context.ledgers.recover_to_read(ledger).await;
        let reader = recovered.map_err(recover_error)?;
        let end = *reader.closed();
        self.context.readers.insert(ledger, reader);
        Ok(end)
    }

    /// Closes the failed ledger by recovery, acknowledges up to its end, and lets the rest go
    /// into the next ledger, in order.
    async fn recover_current(&self, ledger: LedgerId) -> Result<(), JobError> {
        let end = self.recover(ledger).await?;
        let (first_index, end_index) = {
            let state = self.state.lock();
            let corrupt = |error: crate::core::managed_ledger::queue::ForeignEnd| {
                JobError::Fatal(TopicError::Corrupt(error.to_string()))
            };
            state.log.queue.check_end(end.last_entry).map_err(corrupt)?;
            let Some(current) = &state.log.current else { return Ok(()) };
            (current.first_index, state.log.queue.index_after(end.last_entry))
        };
        // Only an owner that could still write the list may tell producers what was stored.
        let Some(ledgers) = self.link_closed(end, first_index, end_index).await? else {
            return Ok(());
        };
        let now = self.context.env.clock.monotonic();
        let mut state = self.state.lock();
        if matches!(state.status, Status::Closed(_)) {
            return Ok(());
        }
        // The list before the receipts: whoever hears of an entry may read it.
        state.log.ledgers = ledgers;
        state.log.current = None;
        if let Lac(Some(last)) = end.last_entry {
            self.confirm_up_to(&mut state, ledger, last);
        }
        #[cfg(any(test, feature = "simulation"))]
        if self.context.config.planted == Some(Defect::RestNotAppended) {
            drop(state.log.queue.confirm(geminga_proto::id::EntryId(u64::MAX)));
        }
        state.log.queue.rewind();
        state.log.failed = None;
        state.log.storage_full = false;
        state.log.pump(now);
        Ok(())
    }

    async fn trim(&self, count: usize) -> Result<(), JobError> {
        let mut ledgers = self.plan().await?;
        let gone = ledgers.trim(count);
        self.write(&mut ledgers, &gone).await?;
        for ledger in &gone {
            self.context.readers.invalidate(ledger);
            self.context.cache.forget(*ledger);
        }
        let first = ledgers.list.first().map(|ledger| ledger.ledger);
        tracing::debug!(topic = %self.name, ledgers = gone.len(), ?first, "trimmed");
        self.context.metrics.ledgers_trimmed.inc_by(gone.len() as u64);
        let mut state = self.state.lock();
        state.log.ledgers = ledgers;
        self.skip_trimmed(&mut state);
        Ok(())
    }

    /// A subscription that was created or moved while ledgers were being deleted may stand in one
    /// of them: what is gone is no backlog of it.
    fn skip_trimmed(&self, state: &mut State) {
        let State { log, subscriptions, traffic, .. } = state;
        let (position, index) = log.start();
        let to = Frontier { index, position };
        for slot in subscriptions.slots.values_mut() {
            if slot.subscription.cursor().frontier.index < index {
                let mut commands = Vec::new();
                slot.subscription.skip_to(to, &mut commands);
                self.execute(log, slot, traffic, &mut commands, None);
            }
        }
        self.forget_read(log, subscriptions);
    }

    /// The topic has nothing open any more (or that can't be helped).
    fn retire(&self, failures: u32) {
        let mut state = self.state.lock();
        state.maintaining = false;
        let Status::Draining(error, done) = &mut state.status else { return };
        let (error, done) = (error.clone(), done.take());
        self.close_state(&mut state, &error);
        drop(state);
        if let Some(done) = done {
            let how = if failures == 0 { Retired::Cleanly } else { Retired::Abandoned };
            // Nobody listens if the caller was dropped meanwhile.
            let _ = done.send(how);
        }
    }
}

fn recover_error(error: RecoverError) -> JobError {
    match error {
        RecoverError::NotFound(_) => JobError::Fatal(TopicError::Fenced),
        RecoverError::Damaged { .. } => JobError::Fatal(TopicError::Corrupt(error.to_string())),
        RecoverError::Fence { .. }
        | RecoverError::Undecided { .. }
        | RecoverError::WriteBack { .. }
        | RecoverError::Unsettled { .. } => JobError::Later(error.to_string()),
        RecoverError::Metadata { error, .. } => error.into(),
    }
}

/// A transaction that never applies.
fn never() -> Txn {
    let key = String::from("never");
    Txn::default().when(Compare::Absent(key.clone())).when(Compare::Present(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_refuses_access_is_waited_for() {
        let denied = StoreError::Denied("no permission".to_owned());
        assert!(matches!(JobError::from(denied), JobError::Metadata(_)));
    }
}
