//! The composition root: builds servers out of the crates. Only here does anything know both a
//! bookie and a broker.

pub mod listeners;
mod local_bookie;
mod metrics;
pub mod ready_file;
pub mod standalone;
mod storage;
