//! One stream of reads: so many at once, and their answers coalesced.
//!
//! Bounded in bytes, too: a read starts only with a claim on what it may answer, and gives it back
//! when the answer has been taken. So a client that asks and doesn't take holds little memory.

use std::sync::Arc;

use futures_util::{Stream, StreamExt, stream};
use geminga_proto::id::{EntryId, LedgerId, LedgerToken};
use geminga_proto::storage::{ReadRequest, ReadResult};
use geminga_proto::v1 as pb;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::status_of;
use crate::bookie::Bookie;

/// Reads of one stream that run at once.
const MAX_READS_IN_FLIGHT: usize = 16;
/// Answers go into one message up to this size.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Bytes of answers of one stream that may be under way or not taken yet.
const MAX_UNTAKEN_BYTES: u32 = 32 << 20;

/// An answer and what it claims of its stream's bytes.
struct Claimed {
    answer: pb::ReadAnswer,
    claim: Option<OwnedSemaphorePermit>,
}

/// A message with the claims of its answers.
#[derive(Default)]
struct Message {
    answers: Vec<pb::ReadAnswer>,
    claims: Vec<OwnedSemaphorePermit>,
}

/// Answers `requests` in any order until they end.
pub(super) fn answer<S>(
    bookie: Bookie,
    requests: S,
) -> impl Stream<Item = Result<pb::ReadAnswers, Status>> + Send
where
    S: Stream<Item = Result<pb::ReadBatch, Status>> + Send,
{
    let budget = Arc::new(Semaphore::new(MAX_UNTAKEN_BYTES as usize));
    let requests = requests.flat_map(|batch| match batch {
        Ok(batch) => stream::iter(batch.requests.into_iter().map(Ok).collect::<Vec<_>>()),
        Err(status) => stream::iter(vec![Err(status)]),
    });
    requests
        .map(move |request| answer_one(bookie.clone(), budget.clone(), request))
        .buffer_unordered(MAX_READS_IN_FLIGHT)
        .ready_chunks(MAX_READS_IN_FLIGHT)
        .flat_map(|ready| stream::iter(coalesce(ready)))
        // Here it is taken; the connection's own window bounds what comes after.
        .map(|message| message.map(|message| pb::ReadAnswers { answers: message.answers }))
}

async fn answer_one(
    bookie: Bookie,
    budget: Arc<Semaphore>,
    request: Result<pb::ReadRequest, Status>,
) -> Result<Claimed, Status> {
    let request = request?;
    let limits = bookie.config();
    // One entry is answered whatever was asked for.
    let most = request.max_bytes.min(limits.max_read_bytes).max(limits.max_entry_bytes.into());
    let most = u32::try_from(most).unwrap_or(u32::MAX).min(MAX_UNTAKEN_BYTES);
    // The semaphore is never closed; were it, reading unbounded would be the lesser evil.
    let mut claim = budget.acquire_many_owned(most).await.ok();
    let read = bookie.read(ReadRequest {
        ledger: LedgerId(request.ledger_id),
        first: EntryId(request.first_entry_id),
        max_entries: request.max_entries,
        max_bytes: request.max_bytes,
        fence: request.fence.then_some(LedgerToken(request.token)),
    });
    let answer = read_answer(request.request_id, read.await);
    let unused = (most as usize).saturating_sub(size(&answer));
    drop(claim.as_mut().and_then(|claim| claim.split(unused)));
    Ok(Claimed { answer, claim })
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
        let Claimed { answer, claim } = match claimed {
            Ok(claimed) => claimed,
            Err(status) => {
                messages.push(Err(status));
                continue;
            }
        };
        let size = size(&answer);
        match messages.last_mut() {
            Some(Ok(last)) if bytes + size <= MAX_ANSWER_BYTES => {
                bytes += size;
                last.answers.push(answer);
                last.claims.extend(claim);
            }
            _ => {
                bytes = size;
                let claims = claim.into_iter().collect();
                messages.push(Ok(Message { answers: vec![answer], claims }));
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
            Ok(Claimed { answer, claim: None })
        };
        let ready = vec![answer(1, 10), answer(2, 10), answer(3, 900_000), answer(4, 900_000)];
        let sizes = coalesce(ready).into_iter();
        let sizes: Vec<_> = sizes.map(|message| message.map(|m| m.answers.len()).ok()).collect();
        assert_eq!(sizes, [Some(3), Some(1)]);
    }
}
