//! [`Keeper`]: does, one thing after the other, what of a state log takes time: closing ledgers,
//! recovering a failed one, creating the next, trimming the chain. It is the only one that writes
//! the bundle's record once the log is open.
//!
//! What fails for lack of a quorum or of the metadata is tried again, with growing pauses, for as
//! long as the log is open: meanwhile the log goes on with the ledger it has, or callers wait.
//! A ledger that was created while bookies were missing is followed by a full one when they are
//! back, after a snapshot that shortens a long chain; nothing waits for that, and what fails of it
//! is looked at again at the next tick. That another owner has written the bundle's record is
//! final: the log ends as fenced.

use std::sync::Arc;
use std::time::Duration;

use geminga_ledger::error::{CloseError, CreateError, DeleteError, RecoverError};
use geminga_ledger::observer::WriterFailure;
use geminga_ledger::writer::LedgerWriter;
use geminga_meta::record::{BundleRecord, Stored};
use geminga_proto::id::{LedgerId, Position};

use super::engine::{Engine, Task};
use super::open::{create, load, recover_error, replace, unavailable};
use super::{Driver, Observer, Shared, StateLogError};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often it is seen to that the ledger has all the bookies that it should have.
const LOOK_AT_WIDTH: Duration = Duration::from_secs(10);
/// A chain of so many ledgers doesn't grow for that reason until a snapshot has shortened it:
/// bookies that come and go must not fill it.
const LONGEST_WIDENED: usize = 3;
/// Ledgers deleted in one transaction, whose operations are limited.
const DELETED_AT_ONCE: usize = 60;

/// Why a task isn't done.
enum Failure {
    /// Try again after a pause.
    Later(String),
    /// The log can't go on.
    End(StateLogError),
}

impl From<StateLogError> for Failure {
    fn from(error: StateLogError) -> Self {
        match error {
            StateLogError::Unavailable(why) => Self::Later(why),
            error => Self::End(error),
        }
    }
}

pub(super) struct Keeper {
    log: Arc<Shared>,
    /// The bundle's record as this owner wrote it last.
    stored: Stored<BundleRecord>,
}

impl Keeper {
    pub fn new(log: Arc<Shared>, stored: Stored<BundleRecord>) -> Self {
        Self { log, stored }
    }

    /// Runs until the log has ended.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        let mut failures = 0_u32;
        let first_look = tokio::time::Instant::now() + LOOK_AT_WIDTH;
        let mut looks = tokio::time::interval_at(first_look, LOOK_AT_WIDTH);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.close_retired().await;
            let (task, ended) = {
                let state = self.log.state.lock();
                (state.engine.task(), state.engine.ended().is_some())
            };
            if ended {
                return;
            }
            let task = match task {
                Some(task) => task,
                None => tokio::select! {
                    // A look is rare, and must not wait for the work to end.
                    biased;
                    _ = looks.tick() => {
                        self.look_at_width().await;
                        continue;
                    }
                    () = self.log.work.notified() => continue,
                },
            };
            match self.perform(&task).await {
                Ok(()) => (pause, failures) = (FIRST_PAUSE, 0),
                Err(Failure::End(error)) => self.log.end(error),
                Err(Failure::Later(why)) => {
                    failures += 1;
                    // An outage takes many attempts, and their first tell as much as all.
                    if failures.is_power_of_two() && failures > 1 {
                        let bundle = &self.log.bundle;
                        tracing::warn!(%bundle, ?task, why, failures, "state log task failed");
                    }
                    if self.log.state.lock().engine.is_closing() {
                        // Whoever waits for the end must not wait for ever.
                        self.log.end(StateLogError::Unavailable(why));
                        return;
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Follows a ledger that has fewer bookies than the next one would have.
    async fn look_at_width(&mut self) {
        let (writer, may_roll, chain_len) = {
            let state = self.log.state.lock();
            let may_roll = state.next.is_none() && !state.engine.is_closing();
            (state.writer.clone(), may_roll, state.chain_len)
        };
        if !may_roll || !self.log.ledgers.could_be_wider(&writer) {
            return;
        }
        if chain_len >= LONGEST_WIDENED {
            // Once the snapshot is complete the older ledgers go.
            self.log.drive(Driver::Log, Engine::want_round);
            return;
        }
        let log = Arc::clone(&self.log);
        // Nothing is made while the metadata are away, and what must be done goes first.
        let refreshed = tokio::select! {
            biased;
            refreshed = self.refresh() => refreshed,
            () = log.work.notified() => {
                log.work.notify_one();
                return;
            }
        };
        let rolled = match refreshed {
            Ok(()) => self.roll().await,
            Err(failure) => Err(failure),
        };
        match rolled {
            Ok(()) => {}
            Err(Failure::End(error)) => log.end(error),
            Err(Failure::Later(why)) => {
                tracing::debug!(bundle = %log.bundle, why, "no wider ledger follows yet");
            }
        }
    }

    async fn perform(&mut self, task: &Task) -> Result<(), Failure> {
        match task {
            Task::Recover(ledger) => self.recover(*ledger).await,
            Task::Roll => self.roll().await,
            Task::Trim(start) => self.trim(*start).await,
            Task::Close => self.close().await,
        }
    }

    /// Ledgers that take no more. One that can't be closed is recovered by the next owner.
    async fn close_retired(&self) {
        let retired: Vec<LedgerWriter> = std::mem::take(&mut self.log.state.lock().retired);
        for writer in retired {
            let ledger = writer.id();
            match writer.close().await {
                Ok(_) => {}
                Err(CloseError::Failed(WriterFailure::Fenced | WriterFailure::Deleted)) => {
                    self.log.end(StateLogError::Fenced);
                }
                // It was recovered already, which closed it.
                Err(CloseError::Failed(_)) => {}
                Err(error @ CloseError::Unavailable) => {
                    tracing::warn!(bundle = %self.log.bundle, %ledger, %error, "left to recovery");
                }
            }
        }
    }

    async fn recover(&self, ledger: LedgerId) -> Result<(), Failure> {
        match self.log.ledgers.recover(ledger).await {
            Ok(closed) => {
                let last = closed.last_entry;
                self.log.drive(Driver::Log, |engine, fx| engine.recovered(ledger, last, fx));
                Ok(())
            }
            // Only an owner deletes a ledger of the chain, and this one didn't.
            Err(RecoverError::NotFound(_)) => Err(Failure::End(StateLogError::Fenced)),
            Err(error) => Err(recover_error(&error).into()),
        }
    }

    async fn roll(&mut self) -> Result<(), Failure> {
        if self.stored.record.state_ledgers.len() >= BundleRecord::MAX_STATE_LEDGERS {
            return Err(Failure::Later("its chain has too many ledgers".to_owned()));
        }
        let log = Arc::clone(&self.log);
        let observer = Arc::new(Observer::default());
        let _ = observer.log.set(Arc::downgrade(&log));
        let epoch = self.stored.record.epoch;
        let stored = Some(&self.stored);
        let created = create(&log.ledgers, &log.env, &log.bundle, stored, epoch, observer).await;
        // After a lost answer, too: the record says what is in the chain now.
        self.refresh().await?;
        let writer = match created {
            Ok(writer) => writer,
            Err(CreateError::Conflict) => {
                return Err(Failure::Later("the bundle's record was changed".to_owned()));
            }
            Err(error) => return Err(unavailable(&error).into()),
        };
        let ledger = writer.id();
        log.state.lock().next = Some(writer);
        log.drive(Driver::Log, |engine, fx| engine.opened(ledger, fx));
        Ok(())
    }

    async fn trim(&mut self, start: Position) -> Result<(), Failure> {
        loop {
            let mut record = self.stored.record.clone();
            let old = record.state_ledgers.iter().filter(|ledger| **ledger < start.ledger);
            let old: Vec<LedgerId> = old.take(DELETED_AT_ONCE).copied().collect();
            if old.is_empty() && record.snapshot == Some(start) {
                break;
            }
            record.state_ledgers.retain(|ledger| !old.contains(ledger));
            record.snapshot = Some(start);
            let unlink = replace(&self.log.env, &self.log.bundle, Some(&self.stored), &record);
            let deleted = self.log.ledgers.delete(&old, unlink).await;
            self.refresh().await?;
            match deleted {
                Ok(()) => {}
                Err(error @ DeleteError::Conflict) => {
                    return Err(Failure::Later(error.to_string()));
                }
                Err(DeleteError::Metadata(error)) => return Err(unavailable(&error).into()),
            }
        }
        self.log.drive(Driver::Log, Engine::trimmed);
        Ok(())
    }

    /// Reads the record again, and makes sure that it is still this owner's.
    async fn refresh(&mut self) -> Result<(), Failure> {
        match load(&*self.log.meta, &self.log.bundle).await? {
            Some(stored) if stored.record.epoch == self.stored.record.epoch => {
                self.log.state.lock().chain_len = stored.record.state_ledgers.len();
                self.stored = stored;
                Ok(())
            }
            _ => Err(Failure::End(StateLogError::Fenced)),
        }
    }

    /// Everything is durable and nothing more is taken.
    async fn close(&self) -> Result<(), Failure> {
        let (writer, next) = {
            let mut state = self.log.state.lock();
            (state.writer.clone(), state.next.take())
        };
        for writer in std::iter::once(writer).chain(next) {
            match writer.close().await {
                Ok(_) => {}
                Err(CloseError::Failed(WriterFailure::Fenced | WriterFailure::Deleted)) => {
                    return Err(Failure::End(StateLogError::Fenced));
                }
                Err(error) => return Err(Failure::Later(error.to_string())),
            }
        }
        Err(Failure::End(StateLogError::Closed))
    }
}
