//! The composition root: builds servers out of the crates. Only here does anything know both a
//! bookie and a broker.

pub mod bookie;
mod bookie_node;
pub mod broker;
mod broker_node;
mod listeners;
mod local_bookie;
pub mod metadata;
mod metrics;
mod parts;
mod probes;
pub mod ready_file;
pub mod repair;
pub mod server;
pub mod standalone;
mod storage;
