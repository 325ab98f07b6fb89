//! What one topic has seen under load: receipts, and what broke a promise.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use geminga_client::MessageId;
use parking_lot::Mutex;

/// One topic's history.
#[derive(Debug)]
pub(super) struct History {
    pub(super) topic: String,
    /// Numbers whose publish has a receipt.
    pub(super) stored: Mutex<HashSet<u64>>,
    /// Messages whose acknowledgement has a receipt.
    /// In which session of the consumer the receipt was heard.
    pub(super) acknowledged: Mutex<HashMap<MessageId, Option<u64>>>,
    /// What broke a promise.
    pub(super) violations: Mutex<Vec<String>>,
    /// Receipts in time.
    pub(super) receipts: Mutex<Receipts>,
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) redelivered: AtomicU64,
    /// Messages that came again although their acknowledgement has a receipt.
    pub(super) came_again: AtomicU64,
    /// Messages that came before one that was sent earlier.
    pub(super) out_of_order: AtomicU64,
    /// Messages with a receipt that aren't there.
    pub(super) lost: AtomicU64,
    pub(super) stop: AtomicBool,
}

/// When receipts came.
#[derive(Debug)]
pub(super) struct Receipts {
    pub(super) last: Instant,
    pub(super) longest_gap: Duration,
    pub(super) longest_wait: Duration,
}

impl History {
    pub(super) fn new(topic: String) -> Arc<Self> {
        let now = Instant::now();
        let receipts =
            Receipts { last: now, longest_gap: Duration::ZERO, longest_wait: Duration::ZERO };
        Arc::new(Self {
            topic,
            stored: Mutex::default(),
            acknowledged: Mutex::default(),
            violations: Mutex::default(),
            receipts: Mutex::new(receipts),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            redelivered: AtomicU64::new(0),
            came_again: AtomicU64::new(0),
            out_of_order: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        })
    }

    pub(super) fn violated(&self, what: &str) {
        let mut violations = self.violations.lock();
        // The first tell as much as all of them.
        if violations.len() < 10 {
            violations.push(format!("{}: {what}", self.topic));
        }
    }

    pub(super) fn has_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn stored(&self, number: u64, sent: Instant) {
        let now = Instant::now();
        let mut receipts = self.receipts.lock();
        receipts.longest_wait = receipts.longest_wait.max(now - sent);
        receipts.longest_gap = receipts.longest_gap.max(now - receipts.last);
        receipts.last = now;
        drop(receipts);
        self.stored.lock().insert(number);
    }

    pub(super) fn progress(&self) -> (usize, u64) {
        (self.stored.lock().len(), self.received.load(Ordering::Relaxed))
    }
}
