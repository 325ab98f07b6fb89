//! Time and randomness as injected values.
//!
//! Nothing above the command line asks the operating system for either: a component gets a
//! [`Clock`] and a [`Random`] when it is built, so that a simulation can own both.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

/// A point on the monotonic clock: time since an arbitrary start, never going back.
pub type Monotonic = Duration;

/// Wall and monotonic time.
pub trait Clock: Send + Sync + Debug + 'static {
    /// Milliseconds since the Unix epoch. May jump either way.
    fn wall_ms(&self) -> u64;
    /// Time since an arbitrary start. Never goes back.
    fn monotonic(&self) -> Monotonic;
}

/// A source of random numbers.
pub trait Random: Send + Sync + Debug + 'static {
    /// A uniformly distributed number.
    fn next_u64(&self) -> u64;

    /// A number that is not 0, for tokens and nonces.
    fn nonzero_u64(&self) -> u64 {
        loop {
            let value = self.next_u64();
            if value != 0 {
                return value;
            }
        }
    }

    /// A uniformly distributed number below `bound`.
    ///
    /// # Panics
    /// When `bound` is 0.
    fn below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range has no number");
        // Rejecting the uneven tail keeps the result uniform.
        let zone = u64::MAX - u64::MAX % bound;
        loop {
            let value = self.next_u64();
            if value < zone {
                return value % bound;
            }
        }
    }
}

/// What a component needs of the outside besides disk and network.
#[derive(Debug, Clone)]
pub struct Env {
    /// Wall and monotonic time.
    pub clock: Arc<dyn Clock>,
    /// Random numbers.
    pub random: Arc<dyn Random>,
}

impl Env {
    /// The operating system's clocks and entropy.
    #[must_use]
    pub fn system() -> Self {
        Self { clock: Arc::new(SystemClock::default()), random: Arc::new(SystemRandom) }
    }
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn wall_ms(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Monotonic {
        self.start.elapsed()
    }
}

/// The operating system's entropy.
#[derive(Debug)]
pub struct SystemRandom;

impl Random for SystemRandom {
    fn next_u64(&self) -> u64 {
        getrandom::u64().expect("the operating system has entropy once it has started a process")
    }
}

/// A seeded generator for tests and simulations: the same seed gives the same numbers.
///
/// The algorithm is Steele, Lea and Flood's SplitMix64 ("Fast splittable pseudorandom number
/// generators", 2014).
#[derive(Debug)]
pub struct SeededRandom {
    state: std::sync::atomic::AtomicU64,
}

impl SeededRandom {
    /// A generator that starts at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { state: std::sync::atomic::AtomicU64::new(seed) }
    }
}

impl Random for SeededRandom {
    fn next_u64(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let previous = self.state.fetch_add(GAMMA, std::sync::atomic::Ordering::Relaxed);
        let mut mixed = previous.wrapping_add(GAMMA);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// A clock that moves only when it is told to, for tests and simulations.
#[derive(Debug, Default)]
pub struct ManualClock {
    wall_ms: std::sync::atomic::AtomicU64,
    monotonic_us: std::sync::atomic::AtomicU64,
}

impl ManualClock {
    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        use std::sync::atomic::Ordering::Relaxed;
        self.wall_ms.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Relaxed);
        self.monotonic_us.fetch_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Sets the wall clock, which may go back; the monotonic clock stays.
    pub fn set_wall_ms(&self, wall_ms: u64) {
        self.wall_ms.store(wall_ms, std::sync::atomic::Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn wall_ms(&self) -> u64 {
        self.wall_ms.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn monotonic(&self) -> Monotonic {
        Duration::from_micros(self.monotonic_us.load(std::sync::atomic::Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_seed_gives_others() {
        let draw = |seed| {
            let random = SeededRandom::new(seed);
            (0..8).map(|_| random.next_u64()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn a_manual_wall_clock_may_go_back_but_its_monotonic_clock_does_not() {
        let clock = ManualClock::default();
        clock.advance(Duration::from_secs(5));
        clock.set_wall_ms(1);
        assert_eq!((clock.wall_ms(), clock.monotonic()), (1, Duration::from_secs(5)));
    }
}
