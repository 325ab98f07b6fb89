//! [`LocalBookie`]: a bookie of this process as the ledger sees bookies. The same trait that a
//! network's transport implements, so standalone runs the cluster's ledger unchanged.
//!
//! *Invariant:* a sink is never called from within `append`, nor under the lock that `append`
//! takes.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use geminga_bookie::bookie::Bookie;
use geminga_bookie::done::{AppendAnswer, AppendDone};
use geminga_ledger::transport::{AppendSink, BookieTransport};
use geminga_proto::id::{BookieId, EntryId, LedgerId};
use geminga_proto::storage::{
    AppendRequest, BookieError, BookieInfo, FenceRequest, FenceResult, FencedResult, ReadRequest,
    ReadResult, ScrubProgress,
};
use parking_lot::Mutex;

/// Waiters that are remembered before those that are gone are swept out.
const SWEEP_FROM: usize = 64;

/// Reaches the one bookie of this process.
#[derive(Debug)]
pub(super) struct LocalBookie {
    id: BookieId,
    bookie: Bookie,
    runtime: tokio::runtime::Handle,
    waiters: Mutex<Waiters>,
}

impl LocalBookie {
    /// A transport to `bookie`. Must be called inside a tokio runtime.
    pub fn new(bookie: Bookie) -> Self {
        let id = bookie.identity().bookie.clone();
        let runtime = tokio::runtime::Handle::current();
        Self { id, bookie, runtime, waiters: Mutex::default() }
    }

    /// Answers an append that the bookie never saw, or refused at once.
    fn refuse(
        &self,
        bookie: &BookieId,
        entry: EntryId,
        error: BookieError,
        sink: &Arc<dyn AppendSink>,
    ) {
        let (bookie, sink) = (bookie.clone(), Arc::clone(sink));
        self.runtime.spawn(async move { sink.append_done(&bookie, entry, Err(error)) });
    }
}

#[tonic::async_trait]
impl BookieTransport for LocalBookie {
    fn append(&self, bookie: &BookieId, request: AppendRequest, sink: &Arc<dyn AppendSink>) {
        let entry = request.entry;
        if *bookie != self.id {
            return self.refuse(bookie, entry, BookieError::Unreachable, sink);
        }
        let waiter: Arc<dyn AppendDone> = self.waiters.lock().of(&self.id, sink);
        if let Err(error) = self.bookie.append(request, &waiter, 0) {
            self.refuse(bookie, entry, error, sink);
        }
    }

    async fn read(&self, bookie: &BookieId, request: ReadRequest) -> ReadResult {
        if *bookie != self.id {
            return Err(BookieError::Unreachable);
        }
        self.bookie.read(request).await
    }

    async fn fence(&self, bookie: &BookieId, request: FenceRequest) -> FenceResult {
        if *bookie != self.id {
            return Err(BookieError::Unreachable);
        }
        self.bookie.fence(request).await
    }

    async fn fenced(&self, bookie: &BookieId, ledgers: Vec<FenceRequest>) -> FencedResult {
        if *bookie != self.id {
            return Err(BookieError::Unreachable);
        }
        Ok(self.bookie.fenced(&ledgers))
    }

    async fn delete_hint(
        &self,
        bookie: &BookieId,
        ledgers: Vec<LedgerId>,
    ) -> Result<(), BookieError> {
        if *bookie != self.id {
            return Err(BookieError::Unreachable);
        }
        self.bookie.delete_hint(&ledgers);
        Ok(())
    }

    async fn info(&self, bookie: &BookieId) -> Result<BookieInfo, BookieError> {
        if *bookie != self.id {
            return Err(BookieError::Unreachable);
        }
        Ok(self.bookie.info())
    }

    async fn scrub(&self, bookie: &BookieId, start: bool) -> Result<ScrubProgress, BookieError> {
        if *bookie != self.id {
            return Err(BookieError::Unreachable);
        }
        Ok(if start { self.bookie.scrub() } else { self.bookie.scrub_progress() })
    }
}

/// One waiter for each sink that has appends under way, so that the answers of a group reach a
/// ledger in one row.
#[derive(Debug, Default)]
struct Waiters {
    /// By the sink's address, which is its own as long as its waiter lives, since the waiter
    /// keeps the sink.
    by_sink: HashMap<usize, Weak<Waiter>>,
    sweep_at: usize,
}

impl Waiters {
    fn of(&mut self, bookie: &BookieId, sink: &Arc<dyn AppendSink>) -> Arc<Waiter> {
        let address = Arc::as_ptr(sink).cast::<()>().addr();
        if let Some(waiter) = self.by_sink.get(&address).and_then(Weak::upgrade) {
            return waiter;
        }
        let waiter = Arc::new(Waiter { bookie: bookie.clone(), sink: Arc::clone(sink) });
        if self.by_sink.len() >= self.sweep_at.max(SWEEP_FROM) {
            self.by_sink.retain(|_, waiter| waiter.strong_count() > 0);
            self.sweep_at = self.by_sink.len() * 2;
        }
        self.by_sink.insert(address, Arc::downgrade(&waiter));
        waiter
    }
}

#[derive(Debug)]
struct Waiter {
    bookie: BookieId,
    sink: Arc<dyn AppendSink>,
}

impl AppendDone for Waiter {
    fn appended(&self, answers: &[AppendAnswer]) {
        self.sink.batch_begin();
        for answer in answers {
            self.sink.append_done(&self.bookie, answer.entry, answer.result);
        }
        self.sink.batch_end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_bookie::config::BookieConfig;
    use geminga_bookie::cookie::Identity;
    use geminga_bookie::device::memory::MemoryDevice;
    use geminga_proto::env::Env;
    use geminga_proto::id::{ClusterId, Lac, LedgerToken};
    use geminga_proto::payload::Payload;
    use geminga_proto::storage::{AddKind, AppendResult};
    use tokio::sync::mpsc;

    #[derive(Debug)]
    struct Sink(mpsc::Sender<(BookieId, EntryId, AppendResult)>);

    impl AppendSink for Sink {
        fn append_done(&self, bookie: &BookieId, entry: EntryId, result: AppendResult) {
            self.0.try_send((bookie.clone(), entry, result)).expect("room for all");
        }
    }

    fn request(entry: u64, bytes: usize) -> AppendRequest {
        AppendRequest {
            ledger: LedgerId(1),
            entry: EntryId(entry),
            token: LedgerToken(7),
            lac: Lac::NONE,
            kind: AddKind::Ordinary,
            payload: Payload::from(bytes::Bytes::from(vec![1; bytes])),
        }
    }

    fn transport() -> LocalBookie {
        let name = |text| BookieId::new(text).expect("valid");
        let cluster = ClusterId::new("c").expect("valid");
        let identity = Identity::detached(name("here"), cluster, 5);
        let device = Arc::new(MemoryDevice::new(1 << 30));
        let opened = Bookie::open(BookieConfig::default(), identity, device, Env::system());
        LocalBookie::new(opened.expect("opens").0)
    }

    #[tokio::test]
    async fn every_append_is_answered_once_also_when_it_is_refused() {
        let transport = transport();
        let (sender, mut answers) = mpsc::channel(100);
        let sink: Arc<dyn AppendSink> = Arc::new(Sink(sender));
        let here = transport.id.clone();
        let elsewhere = BookieId::new("elsewhere").expect("valid");
        for entry in 0..10 {
            transport.append(&here, request(entry, 100), &sink);
        }
        transport.append(&here, request(10, 100 << 20), &sink);
        transport.append(&elsewhere, request(11, 1), &sink);
        let mut seen = Vec::new();
        for _ in 0..12 {
            seen.push(answers.recv().await.expect("an answer"));
        }
        seen.sort_by_key(|(_, entry, _)| *entry);
        for (entry, (bookie, found, result)) in seen.iter().take(10).enumerate() {
            assert_eq!((bookie, found.0, *result), (&here, entry as u64, Ok(())));
        }
        assert_eq!(seen[10].2, Err(BookieError::TooLarge));
        assert_eq!((&seen[11].0, seen[11].2), (&elsewhere, Err(BookieError::Unreachable)));
        assert!(answers.try_recv().is_err(), "nothing is answered twice");
        let read = ReadRequest {
            ledger: LedgerId(1),
            first: EntryId(0),
            max_entries: 100,
            max_bytes: 1 << 20,
            fence: None,
        };
        assert_eq!(transport.read(&here, read).await.expect("stored").len(), 10);
        assert_eq!(transport.read(&elsewhere, read).await, Err(BookieError::Unreachable));
        transport.bookie.close().await.expect("closes");
    }

    #[test]
    fn waiters_of_sinks_that_have_nothing_under_way_are_swept_out() {
        let bookie = BookieId::new("b").expect("valid");
        let mut waiters = Waiters::default();
        for _ in 0..10_000 {
            let (sender, _receiver) = mpsc::channel(1);
            let sink: Arc<dyn AppendSink> = Arc::new(Sink(sender));
            let waiter = waiters.of(&bookie, &sink);
            let again = waiters.of(&bookie, &sink);
            assert!(Arc::ptr_eq(&waiter, &again));
        }
        assert!(waiters.by_sink.len() <= SWEEP_FROM, "{}", waiters.by_sink.len());
    }
}
