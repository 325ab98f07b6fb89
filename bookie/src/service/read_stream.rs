//! One stream of reads and fences: so many at once, and their answers coalesced.
//!
//! Bounded in bytes, too: a read starts only with a claim on what it may answer, on its stream's
//! bytes and on those of all streams, and gives it back when the answer has been taken. So clients
//! that ask and don't take hold little memory. A read that gets no share of the bytes of all in
//! time is refused as overloaded: whoever asks has other bookies, and must not wait for who doesn't
//! take.
//!
//! A fence waits for no read: it has places of its own, and reads that wait for theirs are set
//! aside, so that what comes after them is seen.
//!
//! Invariant: a read that waits for one kind of bytes holds none of the other kind. Otherwise the
//! reads of a stream would wait for each other, or one stream's reads would hold what all need.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt, stream};
use geminga_proto::id::{EntryId, LedgerId, LedgerToken};
use geminga_proto::storage::{BookieError, ReadRequest, ReadResult};
use geminga_proto::v1 as pb;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::guard::Stopping;
use super::status_of;
use crate::bookie::Bookie;
use crate::log::NotRead;

/// Reads, and also fences, of one stream that are under way at once. Fences wait for the disk, and
/// the more of them wait together, the fewer times they do; reads are bounded by their bytes.
const MAX_IN_FLIGHT: usize = 256;
/// Requests of one stream that may be set aside until others are answered; with as many, no further
/// message is taken. More than a broker ever has unanswered.
const MAX_SET_ASIDE: usize = 8_192;
/// Answers go into one message up to this size.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Bytes of answers of one stream that may be under way or not taken yet.
const MAX_UNTAKEN_BYTES: u32 = 32 << 20;
/// Least claim of a read: so few bytes are not worth looking an entry up twice.
const LEAST_CLAIM_BYTES: u64 = 64 << 10;

/// Bytes of answers, of all streams, that may be under way or not taken yet.
#[derive(Debug, Clone)]
pub(super) struct ReadBudget {
    bytes: Arc<Semaphore>,
    most: u32,
    wait: Duration,
}

impl ReadBudget {
    pub(super) fn new(bytes: usize, wait: Duration) -> Self {
        let bytes = bytes.min(u32::MAX as usize);
        let most = u32::try_from(bytes).unwrap_or(u32::MAX);
        Self { bytes: Arc::new(Semaphore::new(bytes)), most, wait }
    }

    /// `None`: there is nothing left, for too long.
    pub(super) async fn claim(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        let claim = self.bytes.clone().acquire_many_owned(bytes.min(self.most));
        tokio::time::timeout(self.wait, claim).await.ok()?.ok()
    }

    /// `None`: there is not enough left now.
    fn try_claim(&self, bytes: u32) -> Option<OwnedSemaphorePermit> {
        self.bytes.clone().try_acquire_many_owned(bytes.min(self.most)).ok()
    }
}

/// What an answer may take, of its stream's bytes and of those of all streams.
#[derive(Debug)]
struct Claim {
    stream: OwnedSemaphorePermit,
    all: OwnedSemaphorePermit,
}

impl Claim {
    /// Gives back all but `bytes`.
    fn shrink(&mut self, bytes: usize) {
        for permit in [&mut self.stream, &mut self.all] {
            drop(permit.split(permit.num_permits().saturating_sub(bytes)));
        }
    }
}

enum Answer {
    Read(pb::ReadAnswer),
    Fence(pb::FenceAnswer),
}

impl Answer {
    fn bytes(&self) -> usize {
        match self {
            Self::Read(answer) => size(answer),
            Self::Fence(_) => 32,
        }
    }
}

/// An answer and what it claims.
struct Claimed {
    answer: Answer,
    claim: Option<Claim>,
}

/// A message with the claims of its answers.
#[derive(Default)]
struct Message {
    answers: pb::ReadAnswers,
    claims: Vec<Claim>,
}

impl Message {
    fn push(&mut self, Claimed { answer, claim }: Claimed) {
        match answer {
            Answer::Read(answer) => self.answers.answers.push(answer),
            Answer::Fence(answer) => self.answers.fences.push(answer),
        }
        self.claims.extend(claim);
    }
}

/// Where the reads of one stream get their claims.
#[derive(Debug, Clone)]
struct Budgets {
    stream: Arc<Semaphore>,
    all: ReadBudget,
}

impl Budgets {
    /// `None`: there is nothing left of the bytes of all, for too long.
    async fn claim(&self, bytes: u64) -> Option<Claim> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(MAX_UNTAKEN_BYTES);
        loop {
            // The semaphore is never closed.
            let stream = self.stream.clone().acquire_many_owned(bytes).await.ok()?;
            if let Some(all) = self.all.try_claim(bytes) {
                return Some(Claim { stream, all });
            }
            drop(stream);
            let all = self.all.claim(bytes).await?;
            if let Ok(stream) = self.stream.clone().try_acquire_many_owned(bytes) {
                return Some(Claim { stream, all });
            }
        }
    }
}

/// Answers `requests` in any order until they end or the port is ending.
pub(super) fn answer<S>(
    bookie: Bookie,
    all: ReadBudget,
    requests: S,
    stopping: Stopping,
) -> impl Stream<Item = Result<pb::ReadAnswers, Status>> + Send
where
    S: Stream<Item = Result<pb::ReadBatch, Status>> + Send,
{
    let stream = Arc::new(Semaphore::new(MAX_UNTAKEN_BYTES as usize));
    let asked = Asked {
        bookie,
        budgets: Budgets { stream, all },
        requests: Box::pin(requests.take_until(stopping.wait())),
        ended: false,
        reads: Lane::default(),
        fences: Lane::default(),
    };
    let next = |mut asked: Asked<_>| async move {
        let answer = asked.next().await?;
        Some((answer, asked))
    };
    stream::unfold(asked, next)
        .ready_chunks(MAX_IN_FLIGHT)
        .flat_map(|ready| stream::iter(coalesce(ready)))
        // Here it is taken; the connection's own window bounds what comes after.
        .map(|message| message.map(|message| message.answers))
}

/// Requests of one kind: those under way, and those that are set aside until there is a place.
struct Lane<R> {
    aside: VecDeque<R>,
    under_way: FuturesUnordered<BoxFuture<'static, Claimed>>,
}

impl<R> Default for Lane<R> {
    fn default() -> Self {
        Self { aside: VecDeque::new(), under_way: FuturesUnordered::new() }
    }
}

impl<R> Lane<R> {
    fn start(&mut self, mut begin: impl FnMut(R) -> BoxFuture<'static, Claimed>) {
        while self.under_way.len() < MAX_IN_FLIGHT
            && let Some(request) = self.aside.pop_front()
        {
            self.under_way.push(begin(request));
        }
    }

    fn is_full(&self) -> bool {
        self.aside.len() >= MAX_SET_ASIDE
    }
}

/// What was asked on a stream and is not answered.
struct Asked<S> {
    bookie: Bookie,
    budgets: Budgets,
    requests: S,
    ended: bool,
    reads: Lane<pb::ReadRequest>,
    fences: Lane<pb::FenceRequest>,
}

impl<S> Asked<S>
where
    S: Stream<Item = Result<pb::ReadBatch, Status>> + Send + Unpin,
{
    /// The next answer; `None` once all is answered and nothing more will be asked.
    async fn next(&mut self) -> Option<Result<Claimed, Status>> {
        loop {
            self.start();
            let takes = !self.ended && !self.reads.is_full() && !self.fences.is_full();
            tokio::select! {
                Some(answer) = self.fences.under_way.next() => return Some(Ok(answer)),
                Some(answer) = self.reads.under_way.next() => return Some(Ok(answer)),
                batch = self.requests.next(), if takes => match batch {
                    Some(Ok(batch)) => {
                        self.fences.aside.extend(batch.fences);
                        self.reads.aside.extend(batch.requests);
                    }
                    Some(Err(status)) => return Some(Err(status)),
                    None => self.ended = true,
                },
                else => return None,
            }
        }
    }

    fn start(&mut self) {
        let Self { bookie, budgets, reads, fences, .. } = self;
        fences.start(|request| {
            let bookie = bookie.clone();
            Box::pin(async move {
                let answer = Answer::Fence(super::fence(&bookie, request).await);
                Claimed { answer, claim: None }
            })
        });
        reads.start(|request| Box::pin(read(bookie.clone(), budgets.clone(), request)));
    }
}

async fn read(bookie: Bookie, budgets: Budgets, asked: pb::ReadRequest) -> Claimed {
    let request = ReadRequest {
        ledger: LedgerId(asked.ledger_id),
        first: EntryId(asked.first_entry_id),
        max_entries: asked.max_entries,
        max_bytes: asked.max_bytes,
        fence: asked.fence.then_some(LedgerToken(asked.token)),
    };
    let mut room = asked.max_bytes.min(bookie.config().max_read_bytes).max(LEAST_CLAIM_BYTES);
    loop {
        let Some(mut claim) = budgets.claim(room).await else {
            let answer = read_answer(asked.request_id, Err(BookieError::Overloaded));
            return Claimed { answer: Answer::Read(answer), claim: None };
        };
        let result = match bookie.read_within(request, room).await {
            Ok(entries) => Ok(entries),
            Err(NotRead::Failed(error)) => Err(error),
            // One entry is answered whatever was asked for. The claim is given up and not added to:
            // reads that hold some and wait for more would wait for each other.
            Err(NotRead::Larger(bytes)) => {
                room = bytes.max(room.saturating_add(1));
                continue;
            }
        };
        let answer = read_answer(asked.request_id, result);
        claim.shrink(size(&answer));
        return Claimed { answer: Answer::Read(answer), claim: Some(claim) };
    }
}

fn size(answer: &pb::ReadAnswer) -> usize {
    answer.entries.iter().map(|entry| entry.payload.len() + 32).sum()
}

fn read_answer(request_id: u64, read: ReadResult) -> pb::ReadAnswer {
    let (status, entries) = match read {
        Ok(entries) => (pb::BookieStatus::Ok, entries),
        Err(error) => (status_of(error), Vec::new()),
    };
    let entries = entries.into_iter().map(|entry| pb::StoredEntry {
        entry_id: entry.entry.0,
        lac: entry.lac.to_wire(),
        payload: entry.payload,
    });
    pb::ReadAnswer { request_id, status: status.into(), entries: entries.collect() }
}

/// Puts answers that are ready together into as few messages as their size allows.
fn coalesce(ready: Vec<Result<Claimed, Status>>) -> Vec<Result<Message, Status>> {
    let mut messages: Vec<Result<Message, Status>> = Vec::new();
    let mut bytes = 0;
    for claimed in ready {
        let claimed = match claimed {
            Ok(claimed) => claimed,
            Err(status) => {
                messages.push(Err(status));
                continue;
            }
        };
        let size = claimed.answer.bytes();
        match messages.last_mut() {
            Some(Ok(last)) if bytes + size <= MAX_ANSWER_BYTES => {
                bytes += size;
                last.push(claimed);
            }
            _ => {
                bytes = size;
                let mut message = Message::default();
                message.push(claimed);
                messages.push(Ok(message));
            }
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn small_answers_share_a_message_and_large_ones_do_not() {
        let answer = |request_id, bytes: usize| {
            let payload = Bytes::from(vec![0; bytes]);
            let entries = vec![pb::StoredEntry { entry_id: 0, lac: -1, payload }];
            let answer = pb::ReadAnswer { request_id, status: 1, entries };
            Ok(Claimed { answer: Answer::Read(answer), claim: None })
        };
        let ready = vec![answer(1, 10), answer(2, 10), answer(3, 900_000), answer(4, 900_000)];
        let sizes = coalesce(ready).into_iter();
        let sizes: Vec<_> =
            sizes.map(|message| message.map(|m| m.answers.answers.len()).ok()).collect();
        assert_eq!(sizes, [Some(3), Some(1)]);
    }
}
