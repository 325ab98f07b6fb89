//! One append stream: requests go into the log as they come, answers go out in batches.
//!
//! Bounded by a semaphore: a request is taken from the socket only with a permit, which comes
//! back when its answer has left. So at most that many answers ever wait here, and the log, which
//! must not block, can always add one.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use futures_util::{Stream, StreamExt};
use geminga_proto::append_wire::ReceivedAppends;
use geminga_proto::storage::BookieError;
use geminga_proto::v1 as pb;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tonic::Status;

use super::guard::{Stopping, stopped};
use super::status_of;
use crate::bookie::Bookie;
use crate::done::{AppendAnswer, AppendDone};

/// Answers of one stream on their way out. Ends when the client has ended and all is answered.
#[derive(Debug)]
pub(super) struct AppendStream {
    answers: Arc<Answers>,
}

#[derive(Debug)]
struct Answers {
    ready: Mutex<Ready>,
    permits: Semaphore,
    waker: AtomicWaker,
}

#[derive(Debug, Default)]
struct Ready {
    answers: Vec<pb::AppendAnswer>,
    /// Accepted and not in `answers` yet.
    waiting: usize,
    /// No request comes any more; with the reason, if there is one to tell.
    ended: Option<Option<Status>>,
}

impl AppendStream {
    /// Serves `requests` until they end, this stream is dropped, or the port is ending; then what
    /// was taken is still answered.
    pub(super) fn start<S>(
        bookie: Bookie,
        requests: S,
        max_in_flight: usize,
        stopping: Stopping,
    ) -> Self
    where
        S: Stream<Item = Result<ReceivedAppends, Status>> + Send + Unpin + 'static,
    {
        let answers = Arc::new(Answers {
            ready: Mutex::default(),
            permits: Semaphore::new(max_in_flight),
            waker: AtomicWaker::new(),
        });
        tokio::spawn(take_requests(bookie, requests, answers.clone(), stopping));
        Self { answers }
    }
}

async fn take_requests<S>(
    bookie: Bookie,
    mut requests: S,
    answers: Arc<Answers>,
    stopping: Stopping,
) where
    S: Stream<Item = Result<ReceivedAppends, Status>> + Send + Unpin,
{
    let done: Arc<dyn AppendDone> = answers.clone();
    let stopping = stopping.wait();
    tokio::pin!(stopping);
    let end = loop {
        let batch = tokio::select! {
            biased;
            () = &mut stopping => break Some(stopped()),
            batch = requests.next() => batch,
        };
        let batch = match batch {
            None => break None,
            Some(Err(status)) => break Some(status),
            Some(Ok(batch)) => batch,
        };
        for (request_id, request) in batch {
            // Closed when the client has gone: what it still sent is nobody's.
            let Ok(permit) = answers.permits.acquire().await else { return };
            permit.forget();
            answers.ready.lock().waiting += 1;
            let taken = request.and_then(|request| bookie.append(request, &done, request_id));
            if let Err(error) = taken {
                answers.push([(request_id, Err(error))].into_iter());
            }
        }
    };
    answers.ready.lock().ended = Some(end);
    answers.waker.wake();
}

impl Answers {
    fn push(&self, more: impl Iterator<Item = (u64, Result<(), BookieError>)>) {
        let mut ready = self.ready.lock();
        for (request_id, result) in more {
            let status = result.map_or_else(status_of, |()| pb::BookieStatus::Ok);
            ready.answers.push(pb::AppendAnswer { request_id, status: status.into() });
            ready.waiting = ready.waiting.saturating_sub(1);
        }
        drop(ready);
        self.waker.wake();
    }
}

impl AppendDone for Answers {
    fn appended(&self, answers: &[AppendAnswer]) {
        self.push(answers.iter().map(|answer| (answer.tag, answer.result)));
    }
}

impl Stream for AppendStream {
    type Item = Result<pb::AppendAnswers, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let shared = &self.answers;
        // Registered before looking, so that an answer in between is not missed.
        shared.waker.register(context.waker());
        let mut ready = shared.ready.lock();
        if !ready.answers.is_empty() {
            let answers = std::mem::take(&mut ready.answers);
            drop(ready);
            shared.permits.add_permits(answers.len());
            return Poll::Ready(Some(Ok(pb::AppendAnswers { answers })));
        }
        if ready.waiting > 0 {
            return Poll::Pending;
        }
        match &mut ready.ended {
            Some(end) => Poll::Ready(end.take().map(Err)),
            None => Poll::Pending,
        }
    }
}

impl Drop for AppendStream {
    fn drop(&mut self) {
        self.answers.permits.close();
    }
}
