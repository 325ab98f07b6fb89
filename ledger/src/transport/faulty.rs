//! A transport that goes wrong on purpose: it delays, loses requests, loses answers and refuses,
//! as a seed decides. The promises of the trait hold: every request is answered once, and appends
//! of one ledger to one bookie keep their order.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use geminga_proto::env::{Random, SeededRandom};
use geminga_proto::id::{BookieId, EntryId, LedgerId};
use geminga_proto::storage::{
    AppendRequest, AppendResult, BookieError, BookieInfo, FenceRequest, FenceResult, FencedResult,
    ReadRequest, ReadResult, ScrubProgress,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::transport::{AppendSink, BookieTransport};

/// How often something goes wrong, of 1,000 requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct FaultRates {
    /// The request is not done; unreachable.
    pub lost_requests: u64,
    /// The request is done; unreachable.
    pub lost_answers: u64,
    /// The request is not done; overloaded.
    pub refusals: u64,
    /// Each request is held back for up to so long.
    pub max_delay_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    RequestLost,
    AnswerLost,
    Refused,
}

/// An append that is held back.
#[derive(Debug)]
struct Held {
    bookie: BookieId,
    request: AppendRequest,
    sink: Arc<dyn AppendSink>,
    fate: Fate,
    delay: Duration,
}

#[derive(Debug, Default)]
struct Lane {
    held: Mutex<VecDeque<Held>>,
    wake: Notify,
}

/// Swallows what a bookie answers and says *unreachable* instead.
#[derive(Debug)]
struct Deaf {
    sink: Arc<dyn AppendSink>,
}

impl AppendSink for Deaf {
    fn append_done(&self, bookie: &BookieId, entry: EntryId, _: AppendResult) {
        self.sink.append_done(bookie, entry, Err(BookieError::Unreachable));
    }
}

/// Wraps a transport.
#[derive(Debug)]
pub struct FaultyTransport {
    inner: Arc<dyn BookieTransport>,
    random: SeededRandom,
    rates: Mutex<FaultRates>,
    lanes: Mutex<BTreeMap<BookieId, Arc<Lane>>>,
    runtime: tokio::runtime::Handle,
}

impl FaultyTransport {
    /// Goes wrong at these rates, as `seed` decides.
    #[must_use]
    pub fn new(
        inner: Arc<dyn BookieTransport>,
        seed: u64,
        rates: FaultRates,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        let (rates, lanes) = (Mutex::new(rates), Mutex::default());
        Self { inner, random: SeededRandom::new(seed), rates, lanes, runtime }
    }

    /// Changes the rates, for requests from now on.
    pub fn set_rates(&self, rates: FaultRates) {
        *self.rates.lock() = rates;
    }

    fn draw(&self) -> (Fate, Duration) {
        let rates = *self.rates.lock();
        let dice = self.random.below(1_000);
        let lost = rates.lost_requests;
        let fate = if dice < lost {
            Fate::RequestLost
        } else if dice < lost + rates.lost_answers {
            Fate::AnswerLost
        } else if dice < lost + rates.lost_answers + rates.refusals {
            Fate::Refused
        } else {
            Fate::Done
        };
        (fate, Duration::from_millis(self.random.below(rates.max_delay_ms + 1)))
    }

    fn lane(&self, bookie: &BookieId) -> Arc<Lane> {
        let mut lanes = self.lanes.lock();
        if let Some(lane) = lanes.get(bookie) {
            return Arc::clone(lane);
        }
        let lane = Arc::new(Lane::default());
        lanes.insert(bookie.clone(), Arc::clone(&lane));
        self.runtime.spawn(run(Arc::downgrade(&lane), Arc::clone(&self.inner)));
        lane
    }

    async fn wrapped<T>(
        &self,
        request: impl Future<Output = Result<T, BookieError>>,
    ) -> Result<T, BookieError> {
        let (fate, delay) = self.draw();
        tokio::time::sleep(delay).await;
        match fate {
            Fate::Done => request.await,
            Fate::RequestLost => Err(BookieError::Unreachable),
            Fate::AnswerLost => request.await.and(Err(BookieError::Unreachable)),
            Fate::Refused => Err(BookieError::Overloaded),
        }
    }
}

/// Sends what is held back, in order, until the transport is dropped.
async fn run(lane: std::sync::Weak<Lane>, inner: Arc<dyn BookieTransport>) {
    while let Some(strong) = lane.upgrade() {
        let next = strong.held.lock().pop_front();
        let Some(held) = next else {
            let woken = strong.wake.notified();
            // Looks again after a while, to notice that it isn't needed any more.
            drop(tokio::time::timeout(Duration::from_millis(50), woken).await);
            continue;
        };
        drop(strong);
        tokio::time::sleep(held.delay).await;
        let Held { bookie, request, sink, fate, .. } = held;
        match fate {
            Fate::Done => inner.append(&bookie, request, &sink),
            Fate::RequestLost => {
                sink.append_done(&bookie, request.entry, Err(BookieError::Unreachable));
            }
            Fate::AnswerLost => {
                let deaf: Arc<dyn AppendSink> = Arc::new(Deaf { sink });
                inner.append(&bookie, request, &deaf);
            }
            Fate::Refused => {
                sink.append_done(&bookie, request.entry, Err(BookieError::Overloaded));
            }
        }
    }
}

#[async_trait]
impl BookieTransport for FaultyTransport {
    fn append(&self, bookie: &BookieId, request: AppendRequest, sink: &Arc<dyn AppendSink>) {
        let (fate, delay) = self.draw();
        let (bookie, sink) = (bookie.clone(), Arc::clone(sink));
        let lane = self.lane(&bookie);
        lane.held.lock().push_back(Held { bookie, request, sink, fate, delay });
        lane.wake.notify_one();
    }

    async fn read(&self, bookie: &BookieId, request: ReadRequest) -> ReadResult {
        self.wrapped(self.inner.read(bookie, request)).await
    }

    async fn fence(&self, bookie: &BookieId, request: FenceRequest) -> FenceResult {
        self.wrapped(self.inner.fence(bookie, request)).await
    }

    async fn fenced(&self, bookie: &BookieId, ledgers: Vec<FenceRequest>) -> FencedResult {
        self.wrapped(self.inner.fenced(bookie, ledgers)).await
    }

    async fn delete_hint(
        &self,
        bookie: &BookieId,
        ledgers: Vec<LedgerId>,
    ) -> Result<(), BookieError> {
        self.wrapped(self.inner.delete_hint(bookie, ledgers)).await
    }

    async fn info(&self, bookie: &BookieId) -> Result<BookieInfo, BookieError> {
        self.wrapped(self.inner.info(bookie)).await
    }

    async fn scrub(&self, bookie: &BookieId, start: bool) -> Result<ScrubProgress, BookieError> {
        self.wrapped(self.inner.scrub(bookie, start)).await
    }
}
