//! [`InFlight`]: what was sent over a connection and not answered.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use geminga_proto::id::EntryId;
use geminga_proto::storage::{FenceResult, ReadResult};

use crate::transport::AppendSink;
use crate::transport::grpc::connection::Reply;

/// An append whose answer is awaited.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub sink: Arc<dyn AppendSink>,
    pub entry: EntryId,
    pub bytes: u64,
}

/// Appends by their number. Numbers rise and answers come nearly in order, so it is a queue with
/// gaps.
#[derive(Debug, Default)]
pub(super) struct SentAppends {
    /// The number of the first in the queue.
    first: u64,
    sent: VecDeque<Option<Unanswered>>,
}

impl SentAppends {
    /// Answers the append's number.
    pub(super) fn push(&mut self, unanswered: Unanswered) -> u64 {
        self.sent.push_back(Some(unanswered));
        self.first + self.sent.len() as u64 - 1
    }

    /// `None`: no such append waits for an answer.
    pub(super) fn take(&mut self, number: u64) -> Option<Unanswered> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let taken = self.sent.get_mut(index)?.take();
        while matches!(self.sent.front(), Some(None)) {
            self.sent.pop_front();
            self.first += 1;
        }
        taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// How many were sent since the oldest that isn't answered, answered ones included.
    pub(super) fn span(&self) -> usize {
        self.sent.len()
    }

    /// All that wait, in the order in which they were sent.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Unanswered> {
        self.first += self.sent.len() as u64;
        std::mem::take(&mut self.sent).into_iter().flatten()
    }
}

/// A question on the stream of reads.
pub(super) enum Question {
    Read(Reply<ReadResult>),
    Fence(Reply<FenceResult>),
}

/// What a connection owes answers for.
#[derive(Default)]
pub(super) struct InFlight {
    pub appends: SentAppends,
    next_question: u64,
    questions: HashMap<u64, Question>,
}

impl InFlight {
    /// Answers the question's number.
    pub(super) fn ask(&mut self, question: Question) -> u64 {
        self.next_question += 1;
        self.questions.insert(self.next_question, question);
        self.next_question
    }

    /// `None`: nobody asked that.
    pub(super) fn take_question(&mut self, number: u64) -> Option<Question> {
        self.questions.remove(&number)
    }

    /// Dropping their replies answers them.
    pub(super) fn drop_questions(&mut self) {
        self.questions.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use geminga_proto::id::BookieId;
    use geminga_proto::storage::AppendResult;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug)]
    struct Nobody;

    impl AppendSink for Nobody {
        fn append_done(&self, _: &BookieId, _: EntryId, _: AppendResult) {}
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_map(
            steps in proptest::collection::vec(proptest::option::of(0u64..40), 0..80),
        ) {
            let mut sent = SentAppends::default();
            let mut plain = BTreeMap::new();
            for (entry, step) in (0u64..).zip(steps) {
                match step {
                    None => {
                        let sink: Arc<dyn AppendSink> = Arc::new(Nobody);
                        let unanswered = Unanswered { sink, entry: EntryId(entry), bytes: 0 };
                        prop_assert_eq!(plain.insert(sent.push(unanswered), entry), None);
                    }
                    Some(number) => {
                        let taken = sent.take(number).map(|unanswered| unanswered.entry.0);
                        prop_assert_eq!(taken, plain.remove(&number));
                    }
                }
                prop_assert_eq!(sent.is_empty(), plain.is_empty());
            }
            let left: Vec<u64> = sent.drain().map(|unanswered| unanswered.entry.0).collect();
            prop_assert_eq!(left, plain.into_values().collect::<Vec<_>>());
            prop_assert!(sent.is_empty());
        }
    }
}
