//! The threads that turn a [`Log`]: three equal log threads and one keeper.
//!
//! Of the log threads one builds the next group, one writes, one answers; whoever is free takes
//! the next turn. So an append into an idle log wakes one thread that builds, writes and answers,
//! and under load neither building nor answering delays a write.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::keeper::{Chored, KEEPER_INTERVAL};
use super::{Hand, Log, Turn};
use crate::error::{CloseError, OpenError};

const LOG_THREADS: usize = 3;
/// How long a log thread waits for the keeper before it looks again.
const BLOCKED_INTERVAL: Duration = Duration::from_millis(5);

/// The running threads.
#[derive(Debug)]
pub(crate) struct Crew {
    log: Arc<Log>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl Crew {
    pub(crate) fn start(log: Arc<Log>) -> Result<Self, OpenError> {
        let crew = Self { log, workers: Mutex::default(), keeper: Mutex::default() };
        for number in 0..LOG_THREADS {
            let log = crew.log.clone();
            let worker = spawn(format!("log-{number}"), move || log.serve())?;
            crew.workers.lock().push(worker);
        }
        let log = crew.log.clone();
        *crew.keeper.lock() = Some(spawn("log-keeper".to_owned(), move || log.keep())?);
        Ok(crew)
    }

    /// Lets everything that was accepted be written and answered, then ends the threads.
    pub(crate) fn stop(&self) -> Result<(), CloseError> {
        {
            let mut state = self.log.state.lock();
            state.closing = true;
            state.turns.stopping = true;
        }
        self.log.work.notify_all();
        self.log.encoder.notify_all();
        let mut panicked = false;
        let this = std::thread::current().id();
        for worker in std::mem::take(&mut *self.workers.lock()) {
            // The last handle may be dropped by a waiter that a log thread is calling.
            if worker.thread().id() != this {
                panicked |= worker.join().is_err();
            }
        }
        {
            let mut state = self.log.state.lock();
            state.turns.keeper_stopping = true;
            state.turns.keeper_called = true;
            self.log.keeper.notify_one();
        }
        if let Some(keeper) = self.keeper.lock().take() {
            panicked |= keeper.join().is_err();
        }
        if panicked { Err(CloseError::Panicked) } else { Ok(()) }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // Without a close the log is left as a crash would leave it, and replayed next time.
        if let Err(error) = self.stop() {
            tracing::error!(%error, "the log's threads did not end well");
        }
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    let builder = std::thread::Builder::new().name(name);
    builder.spawn(run).map_err(|error| OpenError::Thread(error.to_string()))
}

/// Poisons the log if its thread panics, and answers whoever waits.
struct PanicGuard<'a> {
    log: &'a Log,
    hand: Hand,
}

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let answers = {
                let mut state = self.log.state.lock();
                // Nobody may wait for a turn that never ends.
                (state.turns.encoding, state.turns.writing) = (false, false);
                state.abandon(self.hand.group.take(), "a log thread has panicked")
            };
            self.log.work.notify_all();
            self.log.encoder.notify_all();
            self.log.settled.notify_all();
            crate::done::deliver(answers);
        }
    }
}

impl Log {
    /// One log thread's life.
    fn serve(&self) {
        let mut guard = PanicGuard { log: self, hand: Hand::default() };
        let mut state = self.state.lock();
        loop {
            if !state.turns.encoding && state.has_work() {
                let turn = self.write_group(state, &mut guard.hand, false);
                state = self.state.lock();
                if turn == Turn::Blocked {
                    self.work.wait_for(&mut state, BLOCKED_INTERVAL);
                }
                continue;
            }
            if state.turns.stopping && !state.has_work() {
                // Others may have gone to sleep while somebody had the last records in hand.
                self.work.notify_all();
                return;
            }
            let quiet = |state: &super::LogState| {
                state.unproven && !state.has_work() && !state.turns.encoding && !state.turns.writing
            };
            if !quiet(&state) || state.poisoned.is_some() {
                self.work.wait(&mut state);
                continue;
            }
            let waited = self.work.wait_for(&mut state, self.idle_close);
            if waited.timed_out() && quiet(&state) && state.poisoned.is_none() {
                self.write_group(state, &mut guard.hand, true);
                state = self.state.lock();
            }
        }
    }

    /// The keeper's life.
    fn keep(&self) {
        let _guard = PanicGuard { log: self, hand: Hand::default() };
        loop {
            self.state.lock().turns.keeper_called = false;
            let rest = loop {
                match self.run_chore() {
                    Chored::Done => {}
                    Chored::Later(time) => {
                        let left = time.saturating_sub(self.env.clock.monotonic());
                        break left.min(KEEPER_INTERVAL);
                    }
                    Chored::Nothing | Chored::Starved(_) => break KEEPER_INTERVAL,
                }
            };
            let mut state = self.state.lock();
            if state.turns.keeper_stopping {
                state.turns.keeper_ended = true;
                self.settled.notify_all();
                return;
            }
            let timed_out =
                !state.turns.keeper_called && self.keeper.wait_for(&mut state, rest).timed_out();
            drop(state);
            if timed_out {
                self.refresh_space();
            }
        }
    }
}
