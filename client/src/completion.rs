//! [`Completion`]: how the messages of one entry hear what became of them. One allocation and
//! one resolution for an entry, however many messages wait for it.
//!
//! Invariants: it is resolved once, the first outcome counts; every callback runs exactly once,
//! outside any lock; one that panics is logged and keeps nobody else from hearing.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use geminga_proto::id::{MessageIndex, Position};
use parking_lot::Mutex;

use crate::error::SendError;
use crate::message::{MessageId, SendReceipt};

/// What is called with a message's outcome.
pub(crate) type Callback = Box<dyn FnOnce(Result<SendReceipt, SendError>) + Send>;

/// The entry is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryReceipt {
    pub position: Position,
    pub first_index: MessageIndex,
    pub first_sequence: u64,
    /// Messages in it; more than 1 exactly if it is a batch.
    pub messages: u32,
}

impl EntryReceipt {
    fn message(&self, at: u32) -> SendReceipt {
        let batch_index = (self.messages > 1).then_some(at);
        let id = MessageId { position: self.position, batch_index, batch_size: self.messages };
        let index = MessageIndex(self.first_index.0.saturating_add(u64::from(at)));
        SendReceipt { id, index, sequence_id: self.first_sequence + u64::from(at) }
    }
}

pub(crate) type Outcome = Result<EntryReceipt, SendError>;

#[derive(Default)]
struct Waiting {
    outcome: Option<Outcome>,
    /// One slot for each future that was polled; emptied when it is dropped.
    wakers: Vec<Option<Waker>>,
    callbacks: Vec<(u32, Callback)>,
    /// The sender of one of its messages asked for no answer.
    one_way: bool,
}

/// Shared by the producer's queue and the futures of an entry's messages.
#[derive(Default)]
pub(crate) struct Completion(Mutex<Waiting>);

impl fmt::Debug for Completion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiting = self.0.lock();
        write!(out, "Completion({:?}, {} waiting)", waiting.outcome, waiting.wakers.len())
    }
}

impl Completion {
    /// Adds a callback; called before the entry can be resolved.
    pub(crate) fn call(&self, at: u32, callback: Callback) {
        self.0.lock().callbacks.push((at, callback));
    }

    /// Notes that a message wants no answer.
    pub(crate) fn one_way(&self) {
        self.0.lock().one_way = true;
    }

    /// True if a message wants no answer.
    pub(crate) fn has_one_way(&self) -> bool {
        self.0.lock().one_way
    }

    /// Resolves the entry's messages.
    pub(crate) fn resolve(&self, outcome: &Outcome) {
        let mut waiting = self.0.lock();
        if waiting.outcome.is_some() {
            return;
        }
        waiting.outcome = Some(outcome.clone());
        let wakers = std::mem::take(&mut waiting.wakers);
        let callbacks = std::mem::take(&mut waiting.callbacks);
        drop(waiting);
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
        for (at, callback) in callbacks {
            let result = outcome.clone().map(|receipt| receipt.message(at));
            // The thread is one that others wait for, too.
            if catch_unwind(AssertUnwindSafe(|| callback(result))).is_err() {
                tracing::error!("a callback of a message's sender panicked; others are called on");
            }
        }
    }
}

/// Resolves when the message it was given for is stored, or failed. Dropping it cancels nothing.
#[derive(Debug)]
#[must_use = "the message's outcome is lost; use send_one_way if that is meant"]
pub struct SendFuture {
    completion: Arc<Completion>,
    at: u32,
    slot: Option<usize>,
}

impl SendFuture {
    pub(crate) fn new(completion: Arc<Completion>, at: u32) -> Self {
        Self { completion, at, slot: None }
    }
}

impl Future for SendFuture {
    type Output = Result<SendReceipt, SendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut waiting = this.completion.0.lock();
        if let Some(outcome) = &waiting.outcome {
            return Poll::Ready(outcome.clone().map(|receipt| receipt.message(this.at)));
        }
        match this.slot.and_then(|slot| waiting.wakers.get_mut(slot)) {
            Some(Some(waker)) => waker.clone_from(cx.waker()),
            Some(empty) => *empty = Some(cx.waker().clone()),
            None => {
                this.slot = Some(waiting.wakers.len());
                waiting.wakers.push(Some(cx.waker().clone()));
            }
        }
        Poll::Pending
    }
}

impl Drop for SendFuture {
    fn drop(&mut self) {
        if let Some(slot) = self.slot
            && let Some(waker) = self.completion.0.lock().wakers.get_mut(slot)
        {
            *waker = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_proto::id::{EntryId, LedgerId};

    fn stored(messages: u32) -> EntryReceipt {
        let position = Position::new(LedgerId(1), EntryId(2));
        EntryReceipt { position, first_index: MessageIndex(40), first_sequence: 7, messages }
    }

    #[tokio::test]
    async fn every_message_of_an_entry_hears_its_own_place() {
        let completion = Arc::new(Completion::default());
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let future = SendFuture::new(Arc::clone(&completion), 2);
        completion.call(1, Box::new(move |result| sender.send(result).expect("room for one")));
        assert!(!completion.has_one_way());
        completion.one_way();
        assert!(completion.has_one_way());
        let waiting = tokio::spawn(future);
        tokio::task::yield_now().await;
        completion.resolve(&Ok(stored(3)));
        let third = waiting.await.expect("no panic").expect("stored");
        assert_eq!((third.id.batch_index, third.index.0, third.sequence_id), (Some(2), 42, 9));
        let second = receiver.recv().expect("called").expect("stored");
        assert_eq!((second.id.batch_index, second.index.0), (Some(1), 41));
    }

    #[tokio::test]
    async fn the_first_outcome_counts() {
        let completion = Arc::new(Completion::default());
        completion.resolve(&Err(SendError::Closed));
        completion.resolve(&Ok(stored(1)));
        assert_eq!(SendFuture::new(completion, 0).await, Err(SendError::Closed));
    }

    #[tokio::test]
    async fn a_dropped_future_leaves_its_neighbours_waiting() {
        let completion = Arc::new(Completion::default());
        let mut first = SendFuture::new(Arc::clone(&completion), 0);
        let second = SendFuture::new(Arc::clone(&completion), 0);
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut first).poll(&mut context).is_pending());
        let second = tokio::spawn(second);
        tokio::task::yield_now().await;
        drop(first);
        completion.resolve(&Ok(stored(1)));
        let receipt = second.await.expect("no panic").expect("stored");
        assert_eq!((receipt.id.batch_index, receipt.id.batch_size), (None, 1));
    }
}
