//! One connection to one bookie, as the transport sees it: a queue within its caps. The task that
//! empties it is in `session`.
//!
//! Invariant: sinks are called by that task only, under no lock, so `append` may be called with
//! the ledger's lock held.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use geminga_proto::id::{BookieId, EntryId, LedgerId};
use geminga_proto::storage::{
    AppendRequest, AppendResult, BookieError, BookieInfo, FenceRequest, FenceResult, FencedResult,
    ReadRequest, ReadResult, ScrubProgress,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::transport::AppendSink;
use crate::transport::grpc::in_flight::{InFlight, Unanswered};
use crate::transport::grpc::{BookieDirectory, GrpcTransportConfig, session};

/// Appends in one message at most.
const BATCH_APPENDS: usize = 4 * 1024;
/// A question, and where its answer goes.
pub(super) enum Job {
    Read(ReadRequest, Reply<ReadResult>),
    Fence(FenceRequest, Reply<FenceResult>),
    Fenced(Vec<FenceRequest>, Reply<FencedResult>),
    DeleteHint(Vec<LedgerId>, Reply<Result<(), BookieError>>),
    Info(Reply<Result<BookieInfo, BookieError>>),
    Scrub(bool, Reply<Result<ScrubProgress, BookieError>>),
}

/// Where an answer goes. As long as it exists, the question counts as pending, even if whoever
/// asked has gone. Dropping it answers *unreachable*.
pub(super) struct Reply<T> {
    sender: oneshot::Sender<T>,
    slot: Slot,
}

impl<T> Reply<T> {
    pub(super) fn send(self, answer: T) {
        // Nobody may be waiting any more.
        drop(self.sender.send(answer));
        drop(self.slot);
    }
}

/// One of the questions that may be pending. Dropped under no lock of the connection.
struct Slot(Arc<Connection>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.queue.lock().pending_requests -= 1;
    }
}

#[derive(Default)]
struct Queue {
    appends: VecDeque<(AppendRequest, Arc<dyn AppendSink>)>,
    /// Appends over the cap: answered by the task, since `append` may not call the sink.
    refused: Vec<(EntryId, Arc<dyn AppendSink>)>,
    jobs: VecDeque<Job>,
    /// Of appends, queued and sent.
    pending_bytes: u64,
    pending_appends: usize,
    /// Of the other requests, queued and sent.
    pending_requests: usize,
    closed: bool,
}

/// One bookie's queue; the task that empties it has the other reference.
pub(super) struct Connection {
    pub bookie: BookieId,
    pub config: Arc<GrpcTransportConfig>,
    pub directory: Arc<dyn BookieDirectory>,
    queue: Mutex<Queue>,
    /// Something was put into the queue.
    pub wake: Notify,
}

/// What the queue holds for the task.
pub(super) struct Waiting {
    pub appends: bool,
    /// Taken out of the queue.
    pub jobs: VecDeque<Job>,
    pub closed: bool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Connection").field("bookie", &self.bookie).finish_non_exhaustive()
    }
}

impl Connection {
    pub(super) fn start(
        bookie: BookieId,
        config: Arc<GrpcTransportConfig>,
        directory: Arc<dyn BookieDirectory>,
        runtime: &tokio::runtime::Handle,
    ) -> Arc<Self> {
        let (queue, wake) = (Mutex::default(), Notify::new());
        let connection = Arc::new(Self { bookie, config, directory, queue, wake });
        runtime.spawn(session::run(Arc::clone(&connection)));
        connection
    }

    /// Ends the task once it has answered everything.
    pub(super) fn close(&self) {
        self.queue.lock().closed = true;
        self.wake.notify_one();
    }

    pub(super) fn append(&self, request: AppendRequest, sink: Arc<dyn AppendSink>) {
        let bytes = request.payload.len() as u64;
        let mut queue = self.queue.lock();
        let full = queue.pending_appends >= self.config.max_pending_appends_per_bookie
            || queue.pending_bytes.saturating_add(bytes) > self.config.max_pending_bytes_per_bookie
                && queue.pending_bytes > 0;
        if full {
            queue.refused.push((request.entry, sink));
        } else {
            queue.pending_appends += 1;
            queue.pending_bytes += bytes;
            queue.appends.push_back((request, sink));
        }
        drop(queue);
        self.wake.notify_one();
    }

    /// Asks something; the outer error is the transport's.
    pub(super) async fn request<T>(
        self: Arc<Self>,
        job: impl FnOnce(Reply<T>) -> Job,
    ) -> Result<T, BookieError> {
        let (sender, answer) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            if queue.pending_requests >= self.config.max_pending_requests_per_bookie {
                return Err(BookieError::Overloaded);
            }
            queue.pending_requests += 1;
            let slot = Slot(Arc::clone(&self));
            queue.jobs.push_back(job(Reply { sender, slot }));
        }
        self.wake.notify_one();
        // A reply that is dropped: the connection broke.
        answer.await.map_err(|_| BookieError::Unreachable)
    }

    /// Whether there is nothing to send or answer, and whether it is closed.
    pub(super) fn idle(&self) -> (bool, bool) {
        let queue = self.queue.lock();
        let empty = queue.appends.is_empty() && queue.jobs.is_empty() && queue.refused.is_empty();
        (empty, queue.closed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.queue.lock().closed
    }

    /// Takes the questions, and tells what else there is.
    pub(super) fn take_jobs(&self) -> Waiting {
        let mut queue = self.queue.lock();
        Waiting {
            appends: !queue.appends.is_empty(),
            jobs: std::mem::take(&mut queue.jobs),
            closed: queue.closed,
        }
    }

    fn take_refused(&self) -> Vec<(EntryId, Arc<dyn AppendSink>)> {
        std::mem::take(&mut self.queue.lock().refused)
    }

    /// The next message of appends, up to the limits of one.
    pub(super) fn take_appends(&self) -> Vec<(AppendRequest, Arc<dyn AppendSink>)> {
        let mut queue = self.queue.lock();
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some((request, _)) = queue.appends.front() {
            bytes += request.payload.len();
            let over = bytes > self.config.max_batch_bytes || batch.len() == BATCH_APPENDS;
            if over && !batch.is_empty() {
                break;
            }
            batch.extend(queue.appends.pop_front());
        }
        batch
    }

    fn settled(&self, appends: usize, bytes: u64) {
        let mut queue = self.queue.lock();
        queue.pending_appends -= appends;
        queue.pending_bytes -= bytes;
    }

    /// Answers all appends that are queued or in flight; drops all questions, which answers them.
    pub(super) fn fail_all(&self, in_flight: &mut InFlight) {
        in_flight.drop_questions();
        let (queued, jobs) = {
            let mut queue = self.queue.lock();
            (std::mem::take(&mut queue.appends), std::mem::take(&mut queue.jobs))
        };
        drop(jobs);
        let queued = queued.into_iter().map(|(request, sink)| Unanswered {
            sink,
            entry: request.entry,
            bytes: request.payload.len() as u64,
        });
        let failed = in_flight.appends.drain().chain(queued);
        self.answer(failed.map(|unanswered| (unanswered, Err(BookieError::Unreachable))));
    }

    /// Tells sinks, in rows. One that panics takes no answer from the others.
    pub(super) fn answer(&self, answers: impl Iterator<Item = (Unanswered, AppendResult)>) {
        let mut row: Option<Arc<dyn AppendSink>> = None;
        let (mut count, mut bytes) = (0, 0);
        for (unanswered, result) in answers {
            count += 1;
            bytes += unanswered.bytes;
            if row.as_ref().is_none_or(|open| !Arc::ptr_eq(open, &unanswered.sink)) {
                if let Some(over) = row.take() {
                    self.tell(|| over.batch_end());
                }
                self.tell(|| unanswered.sink.batch_begin());
                row = Some(Arc::clone(&unanswered.sink));
            }
            self.tell(|| unanswered.sink.append_done(&self.bookie, unanswered.entry, result));
        }
        if let Some(over) = row {
            self.tell(|| over.batch_end());
        }
        self.settled(count, bytes);
    }

    fn tell(&self, tell: impl FnOnce()) {
        // What it leaves half done is the sink's, which gives its ledger up.
        if catch_unwind(AssertUnwindSafe(tell)).is_err() {
            tracing::error!(bookie = %self.bookie, "a ledger panicked at a bookie's answer");
        }
    }

    pub(super) fn answer_refused(&self) {
        for (entry, sink) in self.take_refused() {
            self.tell(|| sink.append_done(&self.bookie, entry, Err(BookieError::Overloaded)));
        }
    }
}
