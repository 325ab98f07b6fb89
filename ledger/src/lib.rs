//! The replicated ledger: an ordered, write-once sequence of entries on a quorum of bookies.
//!
//! The protocol is a state machine without I/O (`engine`); the runtime (`store`, `writer`,
//! `reader`) executes its commands through a [`transport::BookieTransport`] and the metadata
//! store. The ensemble is always the write quorum, so a ledger is (Qw, Qa).
//!
//! *Architecture invariant:* nobody but its owner reads an open ledger; everybody else recovers
//! it first. Nothing here knows what an entry holds.

pub mod check;
pub mod config;
pub mod engine;
pub mod error;
#[cfg(any(test, feature = "harness"))]
pub mod harness;
pub mod metadata;
pub mod observer;
pub mod placement;
pub mod probe;
pub mod reader;
mod records;
mod recover;
pub mod repair;
pub mod store;
mod ticker;
pub mod transport;
pub mod writer;
