//! [`IdAllocator`]: numbers that are handed out once in a cluster's life, taken from a counter in
//! blocks so that a number costs no transaction.
//!
//! Invariants: a number is never handed out twice, by whatever process, crash or lost answer;
//! what a crash or a lost answer leaves of a block is never used. Number 0 is never handed out. A
//! fresh block lies above every number that was handed out before it was taken. What others tell
//! of used numbers moves the counter by [`TRUSTED_JUMP`] at most: one wrong number must not use all
//! of them up for ever.

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

/// How far above the counter a number that others tell of as used is believed. No cluster hands out
/// so many between a backup of its metadata and its restoration: at 10,000 a second it would take
/// three years.
pub const TRUSTED_JUMP: u64 = 1 << 40;

/// The highest used number that is believed of others where the counter says `next`.
fn trusted_up_to(next: u64) -> u64 {
    next.saturating_add(TRUSTED_JUMP)
}

/// What is left of a block.
#[derive(Debug)]
struct Left {
    numbers: Range<u64>,
    /// Numbers up to this one, told by others as used, were believed when the block was taken.
    trusted: u64,
    /// What was told above that, as was said once.
    doubted: u64,
}

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

/// The highest number that others tell of as used, of those up to the given one.
type Told<'a> = dyn Fn(u64) -> u64 + Sync + 'a;

/// Hands out ids of one kind.
#[derive(Debug)]
pub struct IdAllocator<I> {
    store: Arc<dyn MetadataStore>,
    env: Env,
    policy: RetryPolicy,
    block: u64,
    /// Held only to take a number.
    left: Mutex<Left>,
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
        let left = Mutex::new(Left { numbers: 0..0, trusted: 0, doubted: 0 });
        let refill = tokio::sync::Mutex::new(());
        Self { store, env, policy, block, left, refill, kind: PhantomData }
    }

    /// An id that nobody has or had.
    ///
    /// # Errors
    /// [`AllocateError`] if a block is needed and can't be taken.
    pub async fn next(&self) -> Result<I, AllocateError> {
        self.above(0, &|_| 0).await
    }

    /// An id that nobody has or had, above `floor`. The ledgers of one list must rise, and
    /// another process may have added to it from a later block.
    ///
    /// # Errors
    /// [`AllocateError`] if a block is needed and can't be taken.
    pub async fn next_above(&self, floor: I) -> Result<I, AllocateError> {
        self.above(floor.number(), &|_| 0).await
    }

    /// As [`Self::next_above`], and above what others tell of as used: `told` answers the highest
    /// such id that isn't above the one given. Metadata that were restored may have forgotten
    /// these, but ids more than [`TRUSTED_JUMP`] above the counter are wrong and count for nothing.
    ///
    /// # Errors
    /// [`AllocateError`] if a block is needed and can't be taken.
    pub async fn next_above_told(
        &self,
        floor: I,
        told: impl Fn(I) -> I + Sync,
    ) -> Result<I, AllocateError> {
        let told = |up_to| told(I::from_number(up_to)).number().min(up_to);
        self.above(floor.number(), &told).await
    }

    async fn above(&self, floor: u64, told: &Told<'_>) -> Result<I, AllocateError> {
        loop {
            if let Some(number) = self.take(floor, told) {
                return Ok(I::from_number(number));
            }
            let _one_at_a_time = self.refill.lock().await;
            // Another task may have taken a block meanwhile.
            if let Some(number) = self.take(floor, told) {
                return Ok(I::from_number(number));
            }
            let (numbers, trusted) = self.take_block(floor, told).await?;
            let mut left = self.left.lock();
            let doubted = self.doubt(told(u64::MAX), trusted, left.doubted);
            *left = Left { numbers, trusted, doubted };
        }
    }

    /// Says once of each number that it isn't believed.
    fn doubt(&self, told: u64, trusted: u64, doubted: u64) -> u64 {
        if told <= trusted || told == doubted {
            return doubted;
        }
        let counter = I::COUNTER.as_str();
        tracing::warn!(
            counter,
            told,
            trusted,
            "a number is told as used that is far above the counter; it is taken for damage"
        );
        told
    }

    /// A number of the block above `floor`, and what others tell; what is skipped is gone.
    fn take(&self, floor: u64, told: &Told<'_>) -> Option<u64> {
        let mut left = self.left.lock();
        let floor = floor.max(told(left.trusted));
        if left.numbers.end <= floor.saturating_add(1) {
            return None;
        }
        left.numbers.start = left.numbers.start.max(floor + 1);
        left.numbers.next()
    }

    /// The block, and up to where others were believed.
    async fn take_block(
        &self,
        floor: u64,
        told: &Told<'_>,
    ) -> Result<(Range<u64>, u64), AllocateError> {
        let which = I::COUNTER;
        let limit = LedgerId::MAX.0;
        let mut taken = 0..0;
        let mut trusted = 0;
        // An attempt whose answer was lost is simply left unused, so this change may be made
        // twice.
        let change = |current: Current<'_, CounterRecord>| {
            let next = current.stored.map_or(1, |stored| stored.record.next);
            trusted = trusted_up_to(next);
            let floor = floor.max(told(trusted));
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
        Ok((taken, trusted))
    }
}

#[cfg(test)]
mod tests;
