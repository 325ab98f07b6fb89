//! [`Lane`]: requests of one kind that have to wait while others of it are under way go together
//! in one. There is no timer: a request that finds the lane free goes at once and alone.
//!
//! Each request costs etcd and its client far more than what it does: a broker that takes over a
//! thousand topics sends six for each of them, and is done several times sooner like this.
//!
//! Invariants: what goes together makes no difference to what it does. Transactions go together
//! only if none of them writes what another one writes or compares ([`Footprint`]), for etcd
//! compares for all of them before it writes for any; so their outcomes are those that they would
//! have had one after the other, in whatever order. Who gives up before its request has gone hears
//! that it surely wasn't done. Nobody waits longer than its own deadline.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::store::{Compare, Op, StoreError, Txn};

/// Requests under way at a time. With one, all would wait for the slowest, and those that can't go
/// together, since they are about one key, for each other's turn at etcd's disk; with many, few
/// would go together.
const MOST_UNDER_WAY: usize = 8;
/// Reads that go together.
const MOST_READS: usize = 64;
/// Transactions that go together. etcd counts them, and allows each as many operations as are then
/// left of its limit of 128.
const MOST_TXNS: usize = 32;
/// Conditions or operations of a transaction that goes with others.
const MOST_OPS: usize = 32;
/// Bytes of a transaction that goes with others, and of all of them.
const MOST_TXN_BYTES: usize = 64 * 1024;
const MOST_BYTES: usize = 512 * 1024;
/// How many that wait are looked at for one request.
const LOOKED_AT: usize = 256;
/// Requests that may wait.
const MOST_WAITING: usize = 65_536;

/// A request that may go with others of its kind.
pub(super) trait Joins: Send + 'static {
    /// What those that go together do.
    type Batch: Default;
    /// Adds itself to those that go together, if that makes no difference to any of them.
    fn join(&self, batch: &mut Self::Batch) -> bool;
}

/// Reads can't disturb each other.
impl Joins for String {
    type Batch = usize;

    fn join(&self, count: &mut usize) -> bool {
        *count += 1;
        *count <= MOST_READS
    }
}

/// What transactions that go together touch.
#[derive(Debug, Default)]
pub(super) struct Footprint {
    compared: BTreeSet<String>,
    written: BTreeSet<String>,
    bytes: usize,
    count: usize,
    /// No other may join.
    full: bool,
}

impl Joins for Txn {
    type Batch = Footprint;

    fn join(&self, batch: &mut Footprint) -> bool {
        let bytes = bytes(self);
        if batch.count == 0 {
            batch.full = goes_alone(self, bytes);
        } else if batch.full
            || goes_alone(self, bytes)
            || batch.count == MOST_TXNS
            || batch.bytes + bytes > MOST_BYTES
            || self.ops.iter().any(|op| {
                batch.written.contains(written(op)) || batch.compared.contains(written(op))
            })
            || self.compares.iter().any(|compare| batch.written.contains(compared(compare)))
        {
            return false;
        }
        batch.count += 1;
        batch.bytes += bytes;
        batch.compared.extend(self.compares.iter().map(|compare| compared(compare).to_owned()));
        batch.written.extend(self.ops.iter().map(|op| written(op).to_owned()));
        true
    }
}

fn compared(compare: &Compare) -> &str {
    let (Compare::Absent(key) | Compare::Present(key) | Compare::Unchanged(key, _)) = compare;
    key
}

fn written(op: &Op) -> &str {
    let (Op::Put { key, .. } | Op::Delete(key)) = op;
    key
}

fn bytes(txn: &Txn) -> usize {
    let compares = txn.compares.iter().map(|compare| compared(compare).len());
    let value = |op: &Op| match op {
        Op::Put { value, .. } => value.len(),
        Op::Delete(_) => 0,
    };
    let ops = txn.ops.iter().map(|op| written(op).len() + value(op));
    compares.chain(ops).sum()
}

/// One that hangs on a lease fails with it, and would take others along; one that puts nothing is
/// let through by a full etcd, which refuses all that puts something.
fn goes_alone(txn: &Txn, bytes: usize) -> bool {
    let puts = |leased: bool| {
        txn.ops.iter().any(|op| matches!(op, Op::Put { lease, .. } if lease.is_some() == leased))
    };
    puts(true)
        || !puts(false)
        || bytes > MOST_TXN_BYTES
        || txn.ops.len().max(txn.compares.len()) > MOST_OPS
}

#[derive(Debug)]
struct Waiting<I, A> {
    number: u64,
    item: I,
    answer: oneshot::Sender<A>,
}

#[derive(Debug)]
struct State<I, A> {
    /// In the order of their numbers.
    waiting: VecDeque<Waiting<I, A>>,
    under_way: usize,
    next_number: u64,
}

impl<I: Joins, A> State<I, A> {
    /// Takes out those that go next: the first that waits, and who can join it.
    fn take(&mut self) -> Vec<Waiting<I, A>> {
        let (mut taken, mut batch, mut left) = (Vec::new(), I::Batch::default(), VecDeque::new());
        for _ in 0..self.waiting.len().min(LOOKED_AT) {
            let Some(next) = self.waiting.pop_front() else { break };
            if next.answer.is_closed() {
                // Nobody waits for it any more.
            } else if next.item.join(&mut batch) {
                taken.push(next);
            } else {
                left.push_back(next);
            }
        }
        for one in left.into_iter().rev() {
            self.waiting.push_front(one);
        }
        taken
    }
}

/// Why a request in a lane wasn't answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// It was never sent.
    Unsent,
    /// It was.
    Lost,
}

/// Requests of one kind, with what they are answered.
#[derive(Debug)]
pub(super) struct Lane<I, A> {
    state: Arc<Mutex<State<I, A>>>,
}

/// The place of one that sends. It is given back whatever becomes of that.
struct Sending<I, A> {
    state: Arc<Mutex<State<I, A>>>,
    given_back: bool,
}

impl<I: Joins, A> Sending<I, A> {
    /// Those that go next. If nothing waits, gives the place back, and so that whoever comes then
    /// finds it free.
    fn next(&mut self) -> Option<Vec<Waiting<I, A>>> {
        let mut state = self.state.lock();
        while !state.waiting.is_empty() {
            let taken = state.take();
            if !taken.is_empty() {
                return Some(taken);
            }
        }
        state.under_way -= 1;
        self.given_back = true;
        None
    }
}

impl<I, A> Drop for Sending<I, A> {
    fn drop(&mut self) {
        if !self.given_back {
            self.state.lock().under_way -= 1;
        }
    }
}

impl<I: Joins, A: Send + 'static> Lane<I, A> {
    pub(super) fn new() -> Self {
        let state = State { waiting: VecDeque::new(), under_way: 0, next_number: 0 };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Sends `item` by `send`, with others if it has to wait. `send` answers each of what it is
    /// given, in order.
    pub(super) async fn ask<F>(
        &self,
        item: I,
        deadline: Instant,
        send: impl Fn(Vec<I>) -> F + Send + Sync + 'static,
    ) -> Result<A, Unanswered>
    where
        F: Future<Output = Vec<A>> + Send + 'static,
    {
        let (answer, mut answered) = oneshot::channel();
        let (number, begins) = {
            let mut state = self.state.lock();
            if state.waiting.len() >= MOST_WAITING {
                return Err(Unanswered::Unsent);
            }
            let number = state.next_number;
            state.next_number += 1;
            state.waiting.push_back(Waiting { number, item, answer });
            let begins = state.under_way < MOST_UNDER_WAY;
            state.under_way += usize::from(begins);
            (number, begins)
        };
        if begins {
            let sending = Sending { state: Arc::clone(&self.state), given_back: false };
            // In a task of its own: who gives up takes none of the others along.
            tokio::spawn(send_all(sending, send));
        }
        if let Ok(answered) = timeout_at(deadline, &mut answered).await {
            // Else sending broke down.
            return answered.map_err(|_| Unanswered::Lost);
        }
        let mut state = self.state.lock();
        let found = state.waiting.binary_search_by_key(&number, |waiting| waiting.number);
        let is_unsent = found.is_ok_and(|at| state.waiting.remove(at).is_some());
        drop(state);
        // Or it was answered at this very moment.
        let last = answered.try_recv().map_err(|_| Unanswered::Lost);
        if is_unsent { Err(Unanswered::Unsent) } else { last }
    }
}

/// Sends until nothing waits.
async fn send_all<I: Joins, A, F>(mut sending: Sending<I, A>, send: impl Fn(Vec<I>) -> F)
where
    A: Send + 'static,
    F: Future<Output = Vec<A>> + Send + 'static,
{
    while let Some(taken) = sending.next() {
        let (items, answers): (Vec<_>, Vec<_>) =
            taken.into_iter().map(|waiting| (waiting.item, waiting.answer)).unzip();
        // A panic in there is heard by those whom it is about, and by nobody else.
        let Ok(results) = tokio::spawn(send(items)).await else { continue };
        for (answer, result) in answers.into_iter().zip(results) {
            // Whoever asked may have given up.
            let _ = answer.send(result);
        }
    }
}

/// Whether an error of several that went together may be about one of them, so that each is sent
/// again by itself: nothing was done then. The others are about all.
pub(super) fn is_about_one(error: &StoreError) -> bool {
    match error {
        StoreError::TooLarge(_)
        | StoreError::Invalid(_)
        | StoreError::LeaseLost
        | StoreError::Denied(_) => true,
        StoreError::Unavailable(_)
        | StoreError::Unknown(_)
        | StoreError::Full(_)
        | StoreError::Corrupt(_)
        | StoreError::Replaced(_) => false,
    }
}

#[cfg(test)]
mod tests;
