//! The broker's core: topics, managed ledgers, cursors, subscriptions and dispatch.
//!
//! *Architecture invariant:* nothing here names a front-end, tonic, axum or a wire format.
//! [`api`] is all that a front-end may use.

pub mod ack_set;
pub mod admin;
pub mod api;
pub mod broker;
pub mod budget;
mod bundle;
mod cache;
pub mod cluster_info;
pub mod config;
mod consumer;
mod context;
pub mod cursor;
#[cfg(any(test, feature = "simulation"))]
pub mod defect;
pub mod dispatch;
mod managed_ledger;
mod metadata_health;
mod metrics;
mod namespace;
mod ownership;
mod producer;
mod read_ahead;
mod rendezvous;
pub mod repair_info;
mod session;
pub mod state_log;
pub mod stats;
pub mod subscription;
mod topic;
mod topic_map;
mod watched;
mod widening;
