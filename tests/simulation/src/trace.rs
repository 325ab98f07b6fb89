//! [`Trace`]: what happened, as a digest to compare two runs of a seed, and in words on demand.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::SimTime;

/// What becomes of the words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Words {
    /// Only the digest is kept.
    #[default]
    Digest,
    /// They are kept, to be compared.
    Kept,
}

#[derive(Debug)]
struct Inner {
    digest: u64,
    lines: Vec<String>,
    count: u64,
}

/// The trace of a run. Clones share it.
#[derive(Debug, Clone)]
pub struct Trace {
    time: Arc<SimTime>,
    words: Words,
    inner: Arc<Mutex<Inner>>,
}

impl Trace {
    pub(crate) fn new(time: Arc<SimTime>, words: Words) -> Self {
        let inner = Inner { digest: 0xcbf2_9ce4_8422_2325, lines: Vec::new(), count: 0 };
        Self { time, words, inner: Arc::new(Mutex::new(inner)) }
    }

    /// Notes what happened now.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9.3} {what}", self.time.now_us() as f64 / 1_000.0);
        let mut inner = self.inner.lock();
        for byte in line.bytes() {
            // FNV-1a.
            inner.digest = (inner.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        inner.count += 1;
        if self.words == Words::Kept {
            inner.lines.push(line);
        }
    }

    /// A digest of everything noted.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.inner.lock().digest
    }

    /// How much was noted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.inner.lock().count
    }

    /// What was noted, if words are kept.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.inner.lock().lines.clone()
    }
}
