//! Whether the broker at the other end is still there. A broker that is frozen, or whose network is
//! gone, refuses nothing: it just says nothing.
//!
//! [`Watch`] decides, without I/O or clock. While somebody waits for an answer and nothing is heard
//! for [`QUIET`] looks, the broker is pinged; if that, too, is unanswered for [`PING_PATIENCE`]
//! looks, it is *doubtful*, until something is heard. [`Vitals`] carries this between the
//! connection's tasks.
//!
//! Time is counted in looks, [`TICK`] apart, not read from a clock: while this process itself
//! stands still (a laptop that sleeps, a machine with too much to do) it looks at nothing and reads
//! no answers, so what passes then says nothing about the broker.
//!
//! Invariants: anything heard is a sign of life; a connection for whose answers nobody waits isn't
//! pinged and costs no timer (the transport's own keep-alive, which is slower, looks after it);
//! doubtful ends nothing by itself: it makes others be asked whether the topic is theirs by now.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

/// Looks of silence after which the broker is pinged, if somebody waits: 625 ms.
const QUIET: u32 = 5;
/// Looks after which a ping without an answer makes the broker doubtful: 250 ms.
const PING_PATIENCE: u32 = 2;
/// How often a connection is looked at for whose answers somebody waits.
pub(crate) const TICK: Duration = Duration::from_millis(125);

/// What is to be done after a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nobody waits: look again when somebody does.
    Park,
    /// Look again after [`TICK`].
    Look,
    /// Ping, and look again after [`TICK`].
    Ping,
}

/// Decides when a broker's silence means something.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    heard: u64,
    /// Looks since the one from which on nothing was heard while somebody waited.
    quiet: Option<u32>,
    /// Looks since the ping that is unanswered.
    pinged: Option<u32>,
}

impl Watch {
    /// A look at the connection: how many signs of life there were in all, and whether somebody
    /// waits for an answer.
    pub(crate) fn look(&mut self, heard: u64, waits: impl FnOnce() -> bool) -> Step {
        if heard != self.heard {
            *self = Self { heard, quiet: Some(0), pinged: None };
            return Step::Look;
        }
        if let Some(looks) = &mut self.pinged {
            // Its answer is waited for, too: until it comes, nothing else says that all is well.
            *looks = looks.saturating_add(1);
            return Step::Look;
        }
        if !waits() {
            self.quiet = None;
            return Step::Park;
        }
        let looks = self.quiet.map_or(0, |looks| looks + 1);
        self.quiet = Some(looks);
        if looks < QUIET {
            return Step::Look;
        }
        self.pinged = Some(0);
        Step::Ping
    }

    /// True while a ping is unanswered for too long.
    pub(crate) fn is_doubtful(&self) -> bool {
        self.pinged.is_some_and(|looks| looks >= PING_PATIENCE)
    }
}

/// How a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Health {
    /// Nothing speaks against it.
    Fine,
    /// It shows no sign of life though it was asked for one.
    Doubtful,
    /// Its transport failed, or it was closed. It stays so.
    Dead,
}

/// What a connection's tasks tell each other about the broker's signs of life.
#[derive(Debug)]
pub(crate) struct Vitals {
    /// Signs of life. Raised by the reading tasks and by answered calls.
    heard: AtomicU64,
    /// Calls without an answer.
    calls: AtomicUsize,
    /// The connection is being looked at. Set by who asks for something, cleared by the watch.
    armed: AtomicBool,
    arm: Notify,
    health: watch::Sender<Health>,
}

/// A call under way.
#[derive(Debug)]
pub(crate) struct Call<'a>(&'a Vitals);

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            heard: AtomicU64::new(0),
            calls: AtomicUsize::new(0),
            armed: AtomicBool::new(false),
            arm: Notify::new(),
            health: watch::Sender::new(Health::Fine),
        }
    }
}

impl Vitals {
    /// The broker has said something.
    pub(crate) fn heard(&self) {
        self.heard.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn signs(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    /// Something was sent, whose answer may be waited for.
    pub(crate) fn asked(&self) {
        if !self.armed.load(Ordering::Acquire) && !self.armed.swap(true, Ordering::AcqRel) {
            self.arm.notify_one();
        }
    }

    /// Nobody seems to wait. Who asks from now on wakes the watch again.
    pub(crate) fn disarm(&self) {
        self.armed.store(false, Ordering::Release);
    }

    /// Waits until something is asked.
    pub(crate) async fn armed(&self) {
        while !self.armed.load(Ordering::Acquire) {
            self.arm.notified().await;
        }
    }

    /// Counts a call until the answer is dropped.
    pub(crate) fn call(&self) -> Call<'_> {
        self.calls.fetch_add(1, Ordering::AcqRel);
        self.asked();
        Call(self)
    }

    pub(crate) fn has_calls(&self) -> bool {
        self.calls.load(Ordering::Acquire) > 0
    }

    pub(crate) fn health(&self) -> Health {
        *self.health.borrow()
    }

    /// Whether it is doubtful; the dead stay dead.
    pub(crate) fn set_doubtful(&self, doubtful: bool) {
        let new = if doubtful { Health::Doubtful } else { Health::Fine };
        self.health.send_if_modified(|health| {
            let changes = *health != Health::Dead && *health != new;
            if changes {
                *health = new;
            }
            changes
        });
    }

    pub(crate) fn die(&self) {
        self.health.send_if_modified(|health| std::mem::replace(health, Health::Dead) != *health);
    }

    async fn until(&self, holds: impl FnMut(&Health) -> bool) {
        // The sender lives as long as this.
        let _ = self.health.subscribe().wait_for(holds).await;
    }

    /// Waits until it is doubtful or dead.
    pub(crate) async fn doubtful(&self) {
        self.until(|health| *health != Health::Fine).await;
    }

    /// Waits until it isn't doubtful any more.
    pub(crate) async fn clear(&self) {
        self.until(|health| *health != Health::Doubtful).await;
    }

    /// Waits for its end.
    pub(crate) async fn dead(&self) {
        self.until(|health| *health == Health::Dead).await;
    }
}

#[cfg(test)]
mod tests;
