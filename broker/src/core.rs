//! The broker's core: topics, managed ledgers, cursors, subscriptions and dispatch.
//!
//! *Architecture invariant:* nothing here names a front-end, tonic, axum or a wire format.
//! [`api`] is all that a front-end may use.

pub mod api;
pub mod budget;
