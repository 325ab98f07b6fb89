//! A whole cluster in one thread: the real broker core, ledger runtime and bookies, over simulated
//! disks, network, clocks and metadata, driven by one seed, and a checker of what was promised.
//!
//! Clients publish, consume and acknowledge while hosts crash, stand still, lose their disks'
//! unsynced writes, can't hear each other, and lose their leases. Then everything is mended, all
//! that was begun is brought to its end, and the history is checked, one promise a file
//! ([`checker`]).
//!
//! Every host has a runtime of its own whose time stands still unless it is stepped ([`machine`]),
//! so that a crash takes exactly its tasks. What hosts say to each other is ordered by the network
//! alone ([`network`]).
//!
//! Invariant: a seed decides everything. There is no thread and no clock of the machine's.

mod bookie_host;
mod broker_host;
mod checker;
mod client;
mod clock;
mod crowd;
mod dice;
mod faults;
mod history;
mod machine;
mod metadata;
pub mod mutant;
mod network;
mod panics;
mod repair_host;
mod run;
mod shared;
pub mod theme;
mod trace;
mod transport;
mod wire;
mod world;

pub use run::{Caught, Outcome, Run, catch, run};
