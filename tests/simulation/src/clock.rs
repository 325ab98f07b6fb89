//! Simulated time: one monotonic clock of the whole run, and a wall clock for each host that may be
//! wrong by any amount.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use geminga_proto::env::{Clock, Monotonic};

/// What wall clocks that are right show at the start.
const START_MS: u64 = 1_750_000_000_000;

/// The time of the run. Only the world moves it.
#[derive(Debug, Default)]
pub struct SimTime {
    now_us: AtomicU64,
}

impl SimTime {
    /// Since the start.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.now_us.load(Ordering::Relaxed)
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.now_us.fetch_add(micros(by), Ordering::Relaxed);
    }
}

/// A host's clocks.
#[derive(Debug)]
pub struct HostClock {
    time: Arc<SimTime>,
    offset_ms: AtomicI64,
}

impl HostClock {
    /// A clock that is right.
    #[must_use]
    pub fn new(time: Arc<SimTime>) -> Self {
        Self { time, offset_ms: AtomicI64::new(0) }
    }

    /// Sets by how much the wall clock is wrong.
    pub fn set_offset_ms(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }
}

impl Clock for HostClock {
    fn wall_ms(&self) -> u64 {
        let right = START_MS + self.time.now_us() / 1_000;
        right.saturating_add_signed(self.offset_ms.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Monotonic {
        Duration::from_micros(self.time.now_us())
    }
}

pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
