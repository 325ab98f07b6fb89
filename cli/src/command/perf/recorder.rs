//! [`Recorder`]: latencies and counts of a run, in shards so that many callbacks don't wait for
//! one lock; and [`Window`], the time that counts.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

/// Callbacks of one connection come from one task, so few shards are enough.
const SHARDS: usize = 8;
/// Longest latency that is told apart from longer ones.
const MAX_LATENCY_NS: u64 = 600_000_000_000;

/// The time that is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    /// When the load begins.
    pub start: Instant,
    /// When the measuring begins.
    pub measured: Instant,
    /// When both end.
    pub end: Instant,
}

impl Window {
    /// Begins now.
    pub fn new(warmup: Duration, duration: Duration) -> Self {
        let start = Instant::now();
        let measured = start + warmup;
        Self { start, measured, end: measured + duration }
    }

    /// True for what is measured.
    pub fn holds(&self, at: Instant) -> bool {
        at >= self.measured && at < self.end
    }
}

#[derive(Debug)]
struct Shard {
    latency_ns: Histogram<u64>,
    answered: u64,
    bytes: u64,
    errors: u64,
    first_error: Option<String>,
    /// When the last answer within the window came.
    last: Option<Instant>,
    longest_gap: Duration,
}

impl Shard {
    /// An answer within the window.
    fn count(&mut self, now: Instant, bytes: u64) {
        self.answered += 1;
        self.bytes += bytes;
        if let Some(last) = self.last.replace(now) {
            self.longest_gap = self.longest_gap.max(now.saturating_duration_since(last));
        }
    }
}

/// Records what becomes of messages.
#[derive(Debug)]
pub(super) struct Recorder {
    window: Window,
    shards: Vec<Mutex<Shard>>,
}

/// What a run came to.
#[derive(Debug)]
pub(super) struct Recorded {
    /// From when the messages were due.
    pub latency_ns: Histogram<u64>,
    /// Messages answered within the window.
    pub answered: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages that failed, in the window or not.
    pub errors: u64,
    /// Why the first of them did.
    pub first_error: Option<String>,
    /// The longest time within the window that a shard, which has one producer in eight, was
    /// without an answer; counted from its first one.
    pub longest_gap: Duration,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_NS, 3).expect("the bounds are in order")
}

impl Recorder {
    /// Records what falls into `window`.
    pub fn new(window: Window) -> Self {
        let shard = || Shard {
            latency_ns: histogram(),
            answered: 0,
            bytes: 0,
            errors: 0,
            first_error: None,
            last: None,
            longest_gap: Duration::ZERO,
        };
        Self { window, shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect() }
    }

    fn shard(&self, shard: usize) -> &Mutex<Shard> {
        &self.shards[shard % SHARDS]
    }

    /// A message of `bytes` that was due at `due` is answered now.
    pub fn answered(&self, shard: usize, due: Instant, bytes: u64) {
        let now = Instant::now();
        let mut shard = self.shard(shard).lock();
        if self.window.holds(now) {
            shard.count(now, bytes);
        }
        if self.window.holds(due) {
            let latency = u64::try_from(now.saturating_duration_since(due).as_nanos());
            shard.latency_ns.saturating_record(latency.unwrap_or(u64::MAX).max(1));
        }
    }

    /// As [`Recorder::answered`], for a latency that was measured elsewhere.
    pub fn received(&self, shard: usize, latency: Duration, bytes: u64) {
        let now = Instant::now();
        if !self.window.holds(now) {
            return;
        }
        let mut shard = self.shard(shard).lock();
        shard.count(now, bytes);
        let latency = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        shard.latency_ns.saturating_record(latency.max(1));
    }

    /// A message failed.
    pub fn failed(&self, shard: usize, why: &dyn std::fmt::Display) {
        let mut shard = self.shard(shard).lock();
        shard.errors += 1;
        shard.first_error.get_or_insert_with(|| why.to_string());
    }

    /// All shards together.
    pub fn recorded(&self) -> Recorded {
        self.recorded_until(self.window.end)
    }

    /// All shards together, of a run that was over at `end`, before the window's.
    pub fn recorded_until(&self, end: Instant) -> Recorded {
        let mut all = Recorded {
            latency_ns: histogram(),
            answered: 0,
            bytes: 0,
            errors: 0,
            first_error: None,
            longest_gap: Duration::ZERO,
        };
        for shard in &self.shards {
            let shard = shard.lock();
            all.latency_ns.add(&shard.latency_ns).expect("the bounds are the same");
            all.answered += shard.answered;
            all.bytes += shard.bytes;
            all.errors += shard.errors;
            all.first_error = all.first_error.or_else(|| shard.first_error.clone());
            let at_the_end = shard.last.map(|last| end.saturating_duration_since(last));
            let gap = shard.longest_gap.max(at_the_end.unwrap_or_default());
            all.longest_gap = all.longest_gap.max(gap);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_falls_into_the_window_counts() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let window = Window { start: now, measured: now, end: now + 60 * second };
        let recorder = Recorder::new(window);
        recorder.answered(0, now, 10);
        recorder.answered(9, now - second, 10);
        recorder.failed(3, &"first");
        recorder.failed(3, &"second");
        let recorded = recorder.recorded();
        assert_eq!((recorded.answered, recorded.bytes, recorded.errors), (2, 20, 2));
        assert_eq!(recorded.latency_ns.len(), 1, "the second was due before the window");
        assert_eq!(recorded.first_error.as_deref(), Some("first"));
        let over = Recorder::new(Window { end: now, ..window });
        over.answered(0, now, 10);
        assert_eq!(over.recorded().answered, 0);
    }

    #[test]
    fn the_longest_gap_is_between_answers_or_after_the_last_of_them() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let window = Window { start: now, measured: now, end: now + 60 * second };
        let recorder = Recorder::new(window);
        assert_eq!(recorder.recorded().longest_gap, Duration::ZERO, "nothing was answered");
        let mut shard = recorder.shard(0).lock();
        for at in [5, 7, 40, 41] {
            shard.count(now + at * second, 1);
        }
        drop(shard);
        assert_eq!(recorder.recorded().longest_gap, 33 * second);
        recorder.shard(1).lock().count(now + second, 1);
        assert_eq!(recorder.recorded().longest_gap, 59 * second);
        let over = recorder.recorded_until(now + 42 * second);
        assert_eq!(over.longest_gap, 41 * second, "nothing was due any more");
    }
}
