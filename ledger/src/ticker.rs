//! One clock for all open ledgers of a store: ledgers that wait for something are ticked, idle
//! ones cost nothing. One whose tick panics is given up, and the others go on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::writer::WriterShared;

#[derive(Debug, Default)]
struct Active {
    /// Each ledger once; it knows under its own lock whether it is here.
    writers: Mutex<Vec<Weak<WriterShared>>>,
    wake: Notify,
}

/// Ticks ledgers that want it. Dropping it stops the task.
#[derive(Debug)]
pub(crate) struct Ticker {
    active: Arc<Active>,
    task: JoinHandle<()>,
}

impl Ticker {
    pub(crate) fn start(runtime: &tokio::runtime::Handle, every: Duration) -> Self {
        let active = Arc::new(Active::default());
        let task = runtime.spawn(run(Arc::clone(&active), every));
        Self { active, task }
    }

    /// From now on, until it wants no more ticks. Called under the ledger's lock.
    pub(crate) fn add(&self, writer: Weak<WriterShared>) {
        let mut writers = self.active.writers.lock();
        writers.push(writer);
        if writers.len() == 1 {
            self.active.wake.notify_one();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(active: Arc<Active>, every: Duration) {
    loop {
        while active.writers.lock().is_empty() {
            active.wake.notified().await;
        }
        tokio::time::sleep(every).await;
        // Taken out while ticking: a ledger's lock is never taken under this one.
        let writers = std::mem::take(&mut *active.writers.lock());
        let mut kept = Vec::with_capacity(writers.len());
        for weak in writers {
            let Some(writer) = weak.upgrade() else { continue };
            match catch_unwind(AssertUnwindSafe(|| writer.tick())) {
                Ok(true) => kept.push(weak),
                Ok(false) => {}
                // The others' time goes on.
                Err(_) => writer.give_up(),
            }
        }
        active.writers.lock().append(&mut kept);
    }
}
