//! The broker: it owns topics, stores their entries through the ledger crate, keeps cursors and
//! dispatches to subscriptions. `core` decides; front-ends only decode, call it and encode.
//!
//! *Architecture invariant:* the broker keeps no state on a disk of its own, and never names the
//! bookie crate.

pub mod core;
pub mod frontend;
#[cfg(test)]
mod testing;
