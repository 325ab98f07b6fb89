//! One stream of reads and fences: so many at once, and their answers coalesced.
//!
//! Bounded in bytes, too: a read starts only with a claim on what it may answer, on its stream's
//! bytes and on those of all streams, and gives it back when the answer has been taken. So clients
//! that ask and don't take hold little memory. A read that gets no share of the bytes of all in
//! time is refused as overloaded: whoever asks has other bookies, and must not wait for who doesn't
//! take.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use geminga_proto::id::{EntryId, LedgerId, LedgerToken};
use geminga_proto::storage::{BookieError, ReadRequest, ReadResult};
use geminga_proto::v1 as pb;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::guard::Stopping;
use super::status_of;
use crate::bookie::Bookie;

/// Reads and fences of one stream that are under way at once. Fences wait for the disk, and the
/// more of them wait together, the fewer times they do; reads are bounded by their bytes.
const MAX_IN_FLIGHT: usize = 256;
/// Answers go into one message up to this size.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Bytes of answers of one stream that may be under way or not taken yet.
const MAX_UNTAKEN_BYTES: u32 = 32 << 20;

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

/// What is asked on a stream.
enum Asked {
    Read(pb::ReadRequest),
    Fence(pb::FenceRequest),
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
    let budget = Arc::new(Semaphore::new(MAX_UNTAKEN_BYTES as usize));
    let requests = requests.flat_map(|batch| match batch {
        Ok(batch) => {
            let fences = batch.fences.into_iter().map(|request| Ok(Asked::Fence(request)));
            let reads = batch.requests.into_iter().map(|request| Ok(Asked::Read(request)));
            stream::iter(fences.chain(reads).collect::<Vec<_>>())
        }
        Err(status) => stream::iter(vec![Err(status)]),
    });
    requests
        .take_until(stopping.wait())
        .map(move |request| answer_one(bookie.clone(), budget.clone(), all.clone(), request))
        .buffer_unordered(MAX_IN_FLIGHT)
        .ready_chunks(MAX_IN_FLIGHT)
        .flat_map(|ready| stream::iter(coalesce(ready)))
        // Here it is taken; the connection's own window bounds what comes after.
        .map(|message| message.map(|message| message.answers))
}

async fn answer_one(
    bookie: Bookie,
    budget: Arc<Semaphore>,
    all: ReadBudget,
    asked: Result<Asked, Status>,
) -> Result<Claimed, Status> {
    let request = match asked? {
        Asked::Read(request) => request,
        Asked::Fence(request) => {
            let answer = Answer::Fence(super::fence(&bookie, request).await);
            return Ok(Claimed { answer, claim: None });
        }
    };
    let limits = bookie.config();
    // One entry is answered whatever was asked for.
    let most = request.max_bytes.min(limits.max_read_bytes).max(limits.max_entry_bytes.into());
    let most = u32::try_from(most).unwrap_or(u32::MAX).min(MAX_UNTAKEN_BYTES);
    let Ok(stream) = budget.acquire_many_owned(most).await else {
        return Err(Status::internal("the bytes of a read stream can't be counted"));
    };
    let Some(all) = all.claim(most).await else {
        let answer = read_answer(request.request_id, Err(BookieError::Overloaded));
        return Ok(Claimed { answer: Answer::Read(answer), claim: None });
    };
    let mut claim = Claim { stream, all };
    let read = bookie.read(ReadRequest {
        ledger: LedgerId(request.ledger_id),
        first: EntryId(request.first_entry_id),
        max_entries: request.max_entries,
        max_bytes: request.max_bytes,
        fence: request.fence.then_some(LedgerToken(request.token)),
    });
    let answer = read_answer(request.request_id, read.await);
    claim.shrink(size(&answer));
    Ok(Claimed { answer: Answer::Read(answer), claim: Some(claim) })
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
