//! The storage node: a write-once segment log with fences, behind plain data and gRPC.
//!
//! *Architecture invariant:* this crate knows neither broker nor ledger; what they say to each
//! other is plain data in `geminga_proto::storage`. Decisions of the log are a state machine
//! without I/O; disks come from [`device::Device`], time and randomness from
//! `geminga_proto::env::Env`.

pub mod bookie;
pub mod config;
pub mod cookie;
#[cfg(any(test, feature = "simulation"))]
pub mod defect;
pub mod device;
pub mod done;
pub mod error;
pub mod gc;
mod log;
pub mod registration;
pub mod reporter;
pub mod service;

pub use log::OpenReport;
#[cfg(any(test, feature = "simulation"))]
pub use log::by_hand::Turner;
