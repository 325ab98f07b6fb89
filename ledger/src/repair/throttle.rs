//! [`Throttle`]: how fast is copied, by all jobs of a process together; and how they stand back for
//! what the process is there for.

use std::sync::Arc;
use std::time::Duration;

use geminga_proto::env::{Env, Monotonic};
use parking_lot::Mutex;

/// What a process that repairs is there for, if it is there for anything else.
pub trait Foreground: std::fmt::Debug + Send + Sync {
    /// Somebody waits for it these days.
    fn is_busy(&self) -> bool;
}

/// While the process is busy otherwise, a piece is followed by a pause of so many times what it
/// took.
const STAND_BACK: u32 = 3;
/// No such pause is longer: what took long may have waited for a bookie that doesn't answer.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
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
    foreground: Option<Arc<dyn Foreground>>,
}

impl Throttle {
    pub(super) fn new(env: Env, bytes_per_second: u64) -> Self {
        let paid_until = env.clock.monotonic();
        Self { env, bucket: Mutex::new(Bucket { bytes_per_second, paid_until }), foreground: None }
    }

    /// Stands back for `foreground` from now on.
    pub(super) fn stand_back_for(&mut self, foreground: Arc<dyn Foreground>) {
        self.foreground = Some(foreground);
    }

    /// Waits until so many bytes may be sent; how long that was.
    pub(super) async fn take(&self, bytes: u64) -> Duration {
        let now = self.env.clock.monotonic();
        let wait = self.bucket.lock().take(bytes, now);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        wait
    }

    /// A piece that was begun at `began` is done, and has waited so long for its turn: the next one
    /// may have to wait.
    pub(super) async fn stand_back(&self, began: Monotonic, waited: Duration) {
        if self.foreground.as_ref().is_some_and(|foreground| foreground.is_busy()) {
            let took = self.env.clock.monotonic().saturating_sub(began).saturating_sub(waited);
            let pause = took.saturating_mul(STAND_BACK).min(LONGEST_PAUSE);
            tokio::time::sleep(pause.saturating_sub(waited)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use geminga_proto::env::{Clock, ManualClock};

    use super::*;

    #[derive(Debug)]
    struct Always(bool);

    impl Foreground for Always {
        fn is_busy(&self) -> bool {
            self.0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_is_followed_by_a_pause_while_somebody_waits_for_the_process() {
        let clock = Arc::new(ManualClock::default());
        let env = Env { clock: clock.clone(), ..Env::system() };
        let ms = Duration::from_millis;
        for (busy, waited, pause) in [(true, 0, 30), (true, 4, 14), (true, 9, 0), (false, 0, 0)] {
            let mut throttle = Throttle::new(env.clone(), 1_000);
            throttle.stand_back_for(Arc::new(Always(busy)));
            let (began, before) = (clock.monotonic(), tokio::time::Instant::now());
            clock.advance(ms(10));
            throttle.stand_back(began, ms(waited)).await;
            assert_eq!(before.elapsed(), ms(pause), "{busy}, {waited} ms");
        }
    }

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
