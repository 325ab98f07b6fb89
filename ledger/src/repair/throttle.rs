//! [`Throttle`]: how fast is copied, by all jobs of a process together.

use std::time::Duration;

use geminga_proto::env::{Env, Monotonic};
use parking_lot::Mutex;

/// Credit for so long may be saved up.
const MOST_SAVED: Duration = Duration::from_secs(1);

/// A bucket that fills at a rate. No I/O and no clock: it is told the time.
#[derive(Debug)]
struct Bucket {
    bytes_per_second: u64,
    /// Until when what was taken is paid for; in the past while there is credit.
    paid_until: Monotonic,
}

impl Bucket {
    /// Takes so many bytes: how long to wait before they may be sent.
    fn take(&mut self, bytes: u64, now: Monotonic) -> Duration {
        let start = self.paid_until.max(now.saturating_sub(MOST_SAVED));
        let cost_us = u128::from(bytes) * 1_000_000 / u128::from(self.bytes_per_second.max(1));
        let cost = Duration::from_micros(u64::try_from(cost_us).unwrap_or(u64::MAX));
        self.paid_until = start.saturating_add(cost);
        self.paid_until.saturating_sub(now)
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Throttle {
    env: Env,
    bucket: Mutex<Bucket>,
}

impl Throttle {
    pub(super) fn new(env: Env, bytes_per_second: u64) -> Self {
        let paid_until = env.clock.monotonic();
        Self { env, bucket: Mutex::new(Bucket { bytes_per_second, paid_until }) }
    }

    /// Waits until so many bytes may be sent.
    pub(super) async fn take(&self, bytes: u64) {
        let now = self.env.clock.monotonic();
        let wait = self.bucket.lock().take(bytes, now);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_any_time_no_more_is_sent_than_the_rate_and_a_second_of_credit() {
        let mut bucket = Bucket { bytes_per_second: 1_000, paid_until: Duration::ZERO };
        let (mut now, mut sent) = (Duration::from_secs(10), 0);
        let start = now;
        for turn in 0..1_000_u64 {
            let bytes = turn * 7 % 400;
            now += bucket.take(bytes, now);
            sent += bytes;
            let allowed = (now - start + MOST_SAVED).as_millis() as u64 + 1;
            assert!(sent <= allowed, "{sent} bytes after {:?}", now - start);
        }
        let needed = Duration::from_millis(sent).saturating_sub(MOST_SAVED);
        assert!(now - start <= needed + Duration::from_millis(10), "nothing waits for nothing");
    }
}
