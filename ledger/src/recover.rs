//! Runs a [`RecoveryEngine`]: fences, searches, writes back and closes a ledger.
//!
//! May be dropped at any point: a later recovery begins again where the record stands.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use geminga_meta::store::StoreError;
use geminga_proto::id::{BookieId, EntryId, Lac, LedgerId};
use geminga_proto::storage::{AppendResult, BookieError, FenceResult, ReadResult};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::engine::recovery::RecoveryEngine;
use crate::engine::{CommitAnswer, MetadataAnswer, RecoveryCommand, RecoveryFailure, Versioned};
use crate::error::RecoverError;
use crate::metadata::{LedgerMetadata, LedgerState};
use crate::reader::{self, ReadLimits};
use crate::records::{self, LoadError};
use crate::store::StoreShared;
use crate::transport::AppendSink;

/// Entries of the part that recovery doesn't read, from which its size is extrapolated. Each may
/// be a read of a disk, and whoever takes a thousand topics over has a thousand ledgers to recover.
const SAMPLE_ENTRIES: u32 = 8;
const SAMPLE_BYTES: u64 = 64 * 1024;

/// An answer to one of the engine's commands.
enum Answer {
    Metadata(Result<Versioned, LoadError>),
    Commit(CommitAnswer),
    Fenced(BookieId, FenceResult),
    Read(BookieId, u64, ReadResult),
}

type Request = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Answers to the adds that write back; bounded by the adds that are sent.
#[derive(Debug, Default)]
struct Answers {
    queue: Mutex<Vec<(BookieId, EntryId, AppendResult)>>,
    arrived: Notify,
}

impl AppendSink for Answers {
    fn append_done(&self, bookie: &BookieId, entry: EntryId, result: AppendResult) {
        self.queue.lock().push((bookie.clone(), entry, result));
        self.arrived.notify_one();
    }
}

struct Recovery {
    id: LedgerId,
    store: Arc<StoreShared>,
    engine: RecoveryEngine,
    requests: FuturesUnordered<Request>,
    answers: Arc<Answers>,
    /// As last read: where the sample is.
    metadata: Option<LedgerMetadata>,
    sampled: bool,
    /// The last metadata error, which the engine doesn't keep.
    error: Option<LoadError>,
}

/// Recovers a ledger.
pub(crate) async fn recover(
    store: Arc<StoreShared>,
    id: LedgerId,
) -> Result<LedgerMetadata, RecoverError> {
    let mut commands = Vec::new();
    let engine = RecoveryEngine::start(store.limits, &mut commands);
    let mut recovery = Recovery {
        id,
        engine,
        requests: FuturesUnordered::new(),
        answers: Arc::default(),
        metadata: None,
        sampled: false,
        error: None,
        store,
    };
    let result = recovery.run(commands).await;
    match &result {
        Ok(closed) => tracing::debug!(ledger = %id, last = %closed.last_entry, "recovered"),
        Err(error) => tracing::debug!(ledger = %id, %error, "not recovered"),
    }
    result
}

impl Recovery {
    async fn run(
        &mut self,
        mut commands: Vec<RecoveryCommand>,
    ) -> Result<LedgerMetadata, RecoverError> {
        let mut ticks = tokio::time::interval(self.store.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while !commands.is_empty() {
                for command in std::mem::take(&mut commands) {
                    if let RecoveryCommand::Done(result) = command {
                        return self.result(result);
                    }
                    self.perform(command, &mut commands).await;
                }
            }
            let answers = Arc::clone(&self.answers);
            tokio::select! {
                biased;
                Some(answer) = self.requests.next() => self.answered(answer, &mut commands)?,
                () = answers.arrived.notified() => {
                    let arrived = std::mem::take(&mut *answers.queue.lock());
                    for (bookie, entry, result) in arrived {
                        self.engine.append_answered(&bookie, entry, result, &mut commands);
                    }
                }
                _ = ticks.tick() => self.engine.tick(&mut commands),
            }
        }
    }

    async fn perform(&mut self, command: RecoveryCommand, out: &mut Vec<RecoveryCommand>) {
        let store = Arc::clone(&self.store);
        let (id, timeout) = (self.id, store.request_timeout);
        match command {
            RecoveryCommand::ReadMetadata => self.requests.push(Box::pin(async move {
                Answer::Metadata(records::load(store.meta.as_ref(), id, timeout).await)
            })),
            RecoveryCommand::Commit { version, mut metadata } => {
                if metadata.state == LedgerState::Closed {
                    metadata.bytes += self.sample().await;
                }
                self.requests.push(Box::pin(async move {
                    let (meta, env) = (store.meta.as_ref(), &store.env);
                    Answer::Commit(records::commit(meta, env, version, &metadata, timeout).await)
                }));
            }
            RecoveryCommand::Fence { bookie, request } => {
                self.requests.push(Box::pin(async move {
                    let asked = store.transport.fence(&bookie, request);
                    let answer = tokio::time::timeout(timeout, asked).await;
                    Answer::Fenced(bookie, answer.unwrap_or(Err(BookieError::Unreachable)))
                }));
            }
            RecoveryCommand::Read { bookie, round, request } => {
                self.requests.push(Box::pin(async move {
                    let answer = reader::read_one(&store, &bookie, request).await;
                    Answer::Read(bookie, round, answer)
                }));
            }
            RecoveryCommand::Send { bookie, request } => {
                let sink: Arc<dyn AppendSink> = Arc::clone(&self.answers) as _;
                store.transport.append(&bookie, request, &sink);
            }
            RecoveryCommand::PickReplacement { count, exclude } => {
                let outage = self.engine.outage();
                let picked = outage.map(|lack| store.replacements(id, &lack, count, &exclude));
                self.engine.replacement(picked.unwrap_or_default(), out);
            }
            RecoveryCommand::Done(_) => unreachable!("the caller ends the recovery"),
        }
    }

    fn answered(
        &mut self,
        answer: Answer,
        out: &mut Vec<RecoveryCommand>,
    ) -> Result<(), RecoverError> {
        match answer {
            Answer::Metadata(Ok(found)) => {
                self.metadata = Some(found.metadata.clone());
                self.engine.metadata_read(MetadataAnswer::Found(found), out);
            }
            Answer::Metadata(Err(LoadError::Absent)) => {
                self.engine.metadata_read(MetadataAnswer::Absent, out);
            }
            Answer::Metadata(Err(LoadError::Damaged(why))) => {
                return Err(RecoverError::Damaged { ledger: self.id, why });
            }
            Answer::Metadata(Err(error @ LoadError::Store(_))) => {
                self.error = Some(error);
                self.engine.metadata_read(MetadataAnswer::Unavailable, out);
            }
            Answer::Commit(answer) => self.engine.commit_answered(answer, out),
            Answer::Fenced(bookie, result) => self.engine.fenced(&bookie, result, out),
            Answer::Read(bookie, round, result) => self.engine.read(&bookie, round, result, out),
        }
        Ok(())
    }

    /// Bytes of the entries that were confirmed before the search began, extrapolated from the
    /// first of them; 0 after the first call, since the engine then counts them.
    async fn sample(&mut self) -> u64 {
        let entries = self.engine.first_searched().map_or(0, |first| first.0);
        let Some(metadata) = self.metadata.as_ref().filter(|_| entries > 0 && !self.sampled) else {
            return 0;
        };
        self.sampled = true;
        let limits = ReadLimits { max_entries: SAMPLE_ENTRIES, max_bytes: SAMPLE_BYTES };
        let last = Lac(EntryId(entries).previous());
        let sample = reader::read(&self.store, metadata, last, EntryId(0), limits).await;
        let bytes = match sample {
            Ok(read) => {
                let bytes: u64 = read.iter().map(|stored| stored.payload.len() as u64).sum();
                bytes.saturating_mul(entries) / read.len().max(1) as u64
            }
            Err(error) => {
                // Only a figure in statistics and retention by size: no reason to stay down.
                tracing::warn!(ledger = %self.id, %error, "the size of a ledger is not known");
                0
            }
        };
        self.engine.set_prior_bytes(bytes);
        bytes
    }

    fn result(
        &mut self,
        result: Result<LedgerMetadata, RecoveryFailure>,
    ) -> Result<LedgerMetadata, RecoverError> {
        let ledger = self.id;
        match result {
            Ok(metadata) => Ok(metadata),
            Err(RecoveryFailure::NotFound) => Err(RecoverError::NotFound(ledger)),
            Err(RecoveryFailure::Fence(error)) => Err(RecoverError::Fence { ledger, error }),
            Err(RecoveryFailure::Undecided(entry, error)) => {
                Err(RecoverError::Undecided { ledger, entry, error })
            }
            Err(RecoveryFailure::WriteBack(failure)) => {
                Err(RecoverError::WriteBack { ledger, failure })
            }
            Err(RecoveryFailure::Unsettled { writes }) => {
                Err(RecoverError::Unsettled { ledger, writes })
            }
            Err(RecoveryFailure::Metadata) => {
                let error = match self.error.take() {
                    Some(LoadError::Store(error)) => error,
                    _ => StoreError::Unavailable("the ledger's record was not written".to_owned()),
                };
                Err(RecoverError::Metadata { ledger, error })
            }
        }
    }
}
