//! [`IdAllocator`]: numbers that are handed out once in a cluster's life, taken from a counter in
//! blocks so that a number costs no transaction.
//!
//! Invariants: a number is never handed out twice, by whatever process, crash or lost answer;
//! what a crash or a lost answer leaves of a block is never used. Number 0 is never handed out. A
//! fresh block lies above every number that was handed out before it was taken.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use geminga_proto::env::Env;
use geminga_proto::id::{LedgerId, ManagedLedgerId, TopicIncarnation};
use parking_lot::Mutex;

use crate::keys::{self, Counter};
use crate::record::CounterRecord;
use crate::store::{MetadataStore, StoreError};
use crate::update_loop::{Change, Current, RetryPolicy, UpdateError, update};

/// An id that is handed out by counting.
pub trait CountedId: Copy + Send + Sync + 'static {
    /// From which counter.
    const COUNTER: Counter;
    /// The id with this number.
    fn from_number(number: u64) -> Self;
    /// Its number.
    fn number(self) -> u64;
}

macro_rules! counted {
    ($id:ident, $counter:ident) => {
        impl CountedId for $id {
            const COUNTER: Counter = Counter::$counter;
            fn from_number(number: u64) -> Self {
                Self(number)
            }
            fn number(self) -> u64 {
                self.0
            }
        }
    };
}

counted!(LedgerId, Ledgers);
counted!(ManagedLedgerId, ManagedLedgers);
counted!(TopicIncarnation, TopicIncarnations);

/// Why there is no number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// The counter could not be moved.
    #[error("no ids could be taken from the metadata: {0}")]
    Update(#[from] UpdateError<Infallible>),
    /// All numbers are used up.
    #[error("the counter {0} is used up")]
    Exhausted(&'static str),
}

impl AllocateError {
    /// The store's error, if that is the cause.
    #[must_use]
    pub fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Update(UpdateError::Store(error)) => Some(error),
            Self::Update(UpdateError::Read(crate::read::ReadError::Store(error))) => Some(error),
            _ => None,
        }
    }
}

/// Hands out ids of one kind.
#[derive(Debug)]
pub struct IdAllocator<I> {
    store: Arc<dyn MetadataStore>,
    env: Env,
    policy: RetryPolicy,
    block: u64,
    /// What is left of the block. Held only to take a number.
    left: Mutex<Range<u64>>,
    /// Held by the one task that takes the next block.
    refill: tokio::sync::Mutex<()>,
    kind: PhantomData<fn() -> I>,
}

impl<I: CountedId> IdAllocator<I> {
    /// Numbers taken from the counter at a time. Large enough that 10,000 ids a second cost ten
    /// transactions, and the 63-bit range bears losing one at each start.
    pub const BLOCK: u64 = 1_000;

    /// An allocator that has not taken a block yet.
    #[must_use]
    pub fn new(store: Arc<dyn MetadataStore>, env: Env) -> Self {
        Self::with_block(store, env, RetryPolicy::default(), Self::BLOCK)
    }

    /// As [`Self::new`], with another block size (at least 1) and patience.
    ///
    /// # Panics
    /// If `block` is 0.
    #[must_use]
    pub fn with_block(
        store: Arc<dyn MetadataStore>,
        env: Env,
        policy: RetryPolicy,
        block: u64,
    ) -> Self {
        assert!(block > 0, "an empty block has no id");
        let (left, refill) = (Mutex::new(0..0), tokio::sync::Mutex::new(()));
        Self { store, env, policy, block, left, refill, kind: PhantomData }
    }

    /// An id that nobody has or had.
    ///
    /// # Errors
    /// [`AllocateError`] if a block is needed and can't be taken.
    pub async fn next(&self) -> Result<I, AllocateError> {
        self.above(0).await
    }

    /// An id that nobody has or had, above `floor`. The ledgers of one list must rise, and
    /// another process may have added to it from a later block.
    ///
    /// # Errors
    /// [`AllocateError`] if a block is needed and can't be taken.
    pub async fn next_above(&self, floor: I) -> Result<I, AllocateError> {
        self.above(floor.number()).await
    }

    async fn above(&self, floor: u64) -> Result<I, AllocateError> {
        loop {
            if let Some(number) = self.take(floor) {
                return Ok(I::from_number(number));
            }
            let _one_at_a_time = self.refill.lock().await;
            // Another task may have taken a block meanwhile.
            if let Some(number) = self.take(floor) {
                return Ok(I::from_number(number));
            }
            let block = self.take_block(floor).await?;
            *self.left.lock() = block;
        }
    }

    /// A number of the block above `floor`; what is skipped is gone.
    fn take(&self, floor: u64) -> Option<u64> {
        let mut left = self.left.lock();
        if left.end <= floor.saturating_add(1) {
            return None;
        }
        left.start = left.start.max(floor + 1);
        left.next()
    }

    async fn take_block(&self, floor: u64) -> Result<Range<u64>, AllocateError> {
        let which = I::COUNTER;
        let limit = LedgerId::MAX.0;
        let mut taken = 0..0;
        // An attempt whose answer was lost is simply left unused, so this change may be made
        // twice.
        let change = |current: Current<'_, CounterRecord>| {
            let next = current.stored.map_or(1, |stored| stored.record.next);
            // A floor that the counter doesn't know is a caller's fault or restored metadata;
            // either way the next number must lie above it.
            let start = next.max(floor.saturating_add(1));
            let end = start.saturating_add(self.block).min(limit);
            taken = start..end;
            if start >= end {
                return Ok(Change::Keep);
            }
            Ok(Change::Put(CounterRecord { next: end }))
        };
        let key = keys::counter(which);
        update(&*self.store, &self.env, self.policy, &key, change).await?;
        if taken.is_empty() {
            return Err(AllocateError::Exhausted(which.as_str()));
        }
        Ok(taken)
    }
}

#[cfg(test)]
mod tests;
