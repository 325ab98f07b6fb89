//! How the log answers: [`AppendDone`] for appends, in batches, and one-shot channels for fences.
//!
//! Owns the grouping of a finished group's answers by who waits for them, so that a waiter is
//! called once per group. Nothing here blocks.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use geminga_proto::id::{EntryId, LedgerId};
use geminga_proto::storage::{AppendResult, BookieError, FenceResult};
use tokio::sync::oneshot;

/// What came of one append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppendAnswer {
    /// The number that was given with the append.
    pub tag: u64,
    /// The append's ledger.
    pub ledger: LedgerId,
    /// The append's entry.
    pub entry: EntryId,
    /// What came of it.
    pub result: AppendResult,
}

/// Hears what came of appends.
pub trait AppendDone: Send + Sync + Debug + 'static {
    /// The answers of one group's appends that share this waiter, in the order in which they
    /// were accepted. Called from a log thread that no disk write waits for; must not block.
    fn appended(&self, answers: &[AppendAnswer]);
}

/// Who waits for a record.
#[derive(Debug)]
pub(crate) enum Done {
    Append {
        waiter: Arc<dyn AppendDone>,
        tag: u64,
    },
    Fence(oneshot::Sender<FenceResult>),
    /// The log itself, for a state that it carries over.
    Nobody,
}

/// An answer on its way.
#[derive(Debug)]
pub(crate) struct Answer {
    pub done: Done,
    pub ledger: LedgerId,
    pub entry: EntryId,
    pub result: Result<geminga_proto::id::Lac, BookieError>,
}

/// Calls everybody who waits for one of `answers`.
pub(crate) fn deliver(answers: Vec<Answer>) {
    let mut appends: Vec<(Arc<dyn AppendDone>, AppendAnswer)> = Vec::with_capacity(answers.len());
    for answer in answers {
        match answer.done {
            Done::Append { waiter, tag } => {
                let (ledger, entry) = (answer.ledger, answer.entry);
                let result = answer.result.map(|_| ());
                appends.push((waiter, AppendAnswer { tag, ledger, entry, result }));
            }
            // Whoever asked may have gone; the fence holds all the same.
            Done::Fence(waiter) => drop(waiter.send(answer.result)),
            Done::Nobody => {}
        }
    }
    let address = |waiter: &Arc<dyn AppendDone>| Arc::as_ptr(waiter).cast::<()>().addr();
    if appends.windows(2).any(|pair| address(&pair[0].0) != address(&pair[1].0)) {
        appends.sort_by_key(|(waiter, _)| address(waiter));
    }
    for run in appends.chunk_by(|one, other| address(&one.0) == address(&other.0)) {
        let batch: Vec<AppendAnswer> = run.iter().map(|(_, answer)| *answer).collect();
        // A waiter that panics is its own affair: the others are answered, and the log goes on.
        let told = catch_unwind(AssertUnwindSafe(|| run[0].0.appended(&batch)));
        if told.is_err() {
            tracing::error!("somebody who was told about appends has panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Calls(Mutex<Vec<Vec<u64>>>);

    impl AppendDone for Calls {
        fn appended(&self, answers: &[AppendAnswer]) {
            self.0.lock().push(answers.iter().map(|answer| answer.tag).collect());
        }
    }

    #[derive(Debug)]
    struct Panics;

    impl AppendDone for Panics {
        fn appended(&self, _: &[AppendAnswer]) {
            panic!("on purpose");
        }
    }

    #[test]
    fn a_waiter_that_panics_keeps_no_answer_from_the_others() {
        let calls = Arc::new(Calls::default());
        let waiters: [Arc<dyn AppendDone>; 3] = [Arc::new(Panics), calls.clone(), Arc::new(Panics)];
        let answers = waiters.into_iter().zip(1..).map(|(waiter, tag)| Answer {
            done: Done::Append { waiter, tag },
            ledger: LedgerId(1),
            entry: EntryId(tag),
            result: Ok(geminga_proto::id::Lac::NONE),
        });
        deliver(answers.collect());
        assert_eq!(*calls.0.lock(), vec![vec![2]]);
    }

    #[test]
    fn each_waiter_is_called_once_with_its_answers_in_order() {
        let waiters = [Arc::new(Calls::default()), Arc::new(Calls::default())];
        let answer = |which: usize, tag| Answer {
            done: Done::Append { waiter: waiters[which].clone(), tag },
            ledger: LedgerId(1),
            entry: EntryId(tag),
            result: Ok(geminga_proto::id::Lac::NONE),
        };
        deliver(vec![answer(0, 1), answer(1, 2), answer(0, 3), answer(1, 4), answer(0, 5)]);
        assert_eq!(*waiters[0].0.lock(), vec![vec![1, 3, 5]]);
        assert_eq!(*waiters[1].0.lock(), vec![vec![2, 4]]);
    }
}
