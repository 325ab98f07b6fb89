//! [`Dice`]: the run's randomness, in streams that don't disturb each other.

use std::ops::Range;
use std::time::Duration;

use geminga_proto::env::{Random, SeededRandom};

use crate::clock::micros;

/// A stream of random numbers.
#[derive(Debug)]
pub struct Dice {
    random: SeededRandom,
}

impl Dice {
    /// The stream of this name and number of a seed.
    #[must_use]
    pub fn new(seed: u64, stream: &str, number: u64) -> Self {
        Self { random: SeededRandom::new(stream_seed(seed, stream, number)) }
    }

    /// A number below `bound`, which must not be 0.
    pub fn below(&self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    /// A number in the range.
    pub fn within(&self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// A time in the range.
    pub fn time(&self, range: Range<Duration>) -> Duration {
        Duration::from_micros(self.within(micros(range.start)..micros(range.end)))
    }

    /// True in so many of a thousand cases.
    pub fn permille(&self, share: u64) -> bool {
        self.below(1_000) < share
    }

    /// An index below `len`, which must not be 0.
    pub fn index(&self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    /// Any number.
    pub fn any(&self) -> u64 {
        self.random.next_u64()
    }
}

/// The seed of a stream.
#[must_use]
pub fn stream_seed(seed: u64, stream: &str, number: u64) -> u64 {
    let mut mixed = seed ^ 0x9e37_79b9_7f4a_7c15;
    for word in stream.bytes().map(u64::from).chain([number]) {
        mixed = (mixed ^ word).wrapping_mul(0x0100_0000_01b3);
        mixed ^= mixed >> 29;
    }
    // SplitMix64 walks on from here; streams must not start close to each other.
    mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9)
}
