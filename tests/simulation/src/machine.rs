//! [`Machine`]: a host's runtime. All tasks of a host live in it and nowhere else, so that a crash
//! takes exactly these; its time stands still between two steps.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::clock::micros;
use crate::dice::stream_seed;
use crate::network::Deliver;

/// How far the run goes at a time.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// A running host.
#[derive(Debug)]
pub(crate) struct Machine {
    runtime: Runtime,
    /// The run's time at the end of the last step.
    at_us: u64,
    frozen: bool,
}

impl Machine {
    /// A host that starts now.
    pub(crate) fn start(now_us: u64, seed: u64) -> Self {
        let mut builder = Builder::new_current_thread();
        builder.enable_time().start_paused(true);
        seed_choices(&mut builder, stream_seed(seed, "choices", now_us));
        let runtime = builder.build().expect("a runtime without a driver for sockets");
        Self { runtime, at_us: now_us, frozen: false }
    }

    /// Runs a task until it ends or the host does.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// Stops the host's time, or lets it go on.
    pub(crate) fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen;
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Lets everything run that can, up to the run's time.
    pub(crate) fn step(&mut self, now_us: u64, arrived: Vec<Deliver>) {
        let behind = Duration::from_micros(now_us.saturating_sub(self.at_us));
        self.at_us = now_us;
        self.runtime.block_on(async {
            // A host that stood still wakes to find that it is late for everything.
            if behind > TICK {
                tokio::time::advance(behind.saturating_sub(TICK)).await;
            }
            for deliver in arrived {
                deliver();
            }
            tokio::time::sleep(TICK).await;
        });
        debug_assert!(micros(TICK) > 0);
    }
}

/// Which of several futures that are ready tokio takes first, and in which order it wakes who waits
/// for one value, it draws by lot; only an unstable setting puts the lots in our hands.
#[cfg(tokio_unstable)]
fn seed_choices(builder: &mut Builder, seed: u64) {
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
}

#[cfg(not(tokio_unstable))]
fn seed_choices(_: &mut Builder, _: u64) {}
