//! Repair: every fragment is brought back to as many copies as it should have, without anybody
//! having to ask.
//!
//! The [`auditor`], elected by lease, finds what lacks copies and queues it in the metadata; any
//! number of [`worker`]s copy, verify, and change the ledger's record. What is to be copied from
//! where to where is a [`plan`]; neither it nor the auditor's decisions do any I/O.
//!
//! *Architecture invariant:* only closed ledgers and fragments that are not last are touched. The
//! last fragment of a ledger that isn't closed is its owner's, or a recovery's.
//!
//! *Architecture invariant:* a worker names, durably and in the ledger's task, each bookie that it
//! sends copies to and that the ledger's record doesn't name for these entries, before it sends the
//! first; it sends it *every* entry, whatever it has already; and it changes the record in one
//! transaction that demands that its claim is still there. So a worker that stood still past its
//! lease, whose claim was replaced, changes nothing; and a bookie that neither the record nor a
//! claim names may drop what it stored before it looked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub mod auditor;
mod census;
mod claim;
mod copy;
#[cfg(any(test, feature = "harness"))]
pub mod defect;
mod job;
pub mod plan;
mod throttle;
pub mod worker;

pub use census::RepairAuditor;

/// Settings of repair in one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepairConfig {
    /// The process's name in claims and in the auditor's office.
    pub name: String,
    /// How long a bookie may be away before what it has is copied elsewhere.
    pub grace: Duration,
    /// Bytes that this process's workers copy in a second, all together.
    pub bytes_per_second: u64,
    /// Ledgers that are repaired at a time.
    pub concurrent_ledgers: usize,
    /// Pause between two looks of the auditor at all ledgers.
    pub scan_interval: Duration,
    /// How long a worker, or an auditor, that has gone silent keeps what it is at.
    pub lease_ttl: Duration,
}

impl Default for RepairConfig {
    fn default() -> Self {
        Self {
            name: "repair".to_owned(),
            grace: Duration::from_secs(600),
            bytes_per_second: 64 << 20,
            concurrent_ledgers: 4,
            scan_interval: Duration::from_secs(60),
            lease_ttl: Duration::from_secs(10),
        }
    }
}

/// What the worker of one process has done since it started; whoever shows it keeps a handle.
#[derive(Debug, Default)]
pub struct RepairMetrics {
    ledgers: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
}

impl RepairMetrics {
    /// Ledgers of which nothing lacks a copy any more.
    #[must_use]
    pub fn ledgers(&self) -> u64 {
        self.ledgers.load(Ordering::Relaxed)
    }

    /// Bytes of entries that were stored on another bookie and read back from there.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Attempts at a ledger that failed, and were or will be made again.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// Why settings can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepairConfigError {
    /// A setting must not be 0.
    #[error("{0} must not be 0")]
    Zero(&'static str),
    /// Copying would take longer than anybody waits for.
    #[error("bytes_per_second is {0}; at least {MIN_BYTES_PER_SECOND} are needed")]
    TooSlow(u64),
}

/// Least rate: an entry of the largest size goes in a reasonable time.
const MIN_BYTES_PER_SECOND: u64 = 64 << 10;

impl RepairConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// The first setting that can't be used.
    pub fn validate(&self) -> Result<(), RepairConfigError> {
        for (zero, name) in [
            (self.concurrent_ledgers == 0, "concurrent_ledgers"),
            (self.scan_interval.is_zero(), "scan_interval"),
            (self.lease_ttl.is_zero(), "lease_ttl"),
        ] {
            if zero {
                return Err(RepairConfigError::Zero(name));
            }
        }
        if self.bytes_per_second < MIN_BYTES_PER_SECOND {
            return Err(RepairConfigError::TooSlow(self.bytes_per_second));
        }
        Ok(())
    }
}
