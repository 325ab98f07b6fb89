//! The harness of the black-box scenarios: real `geminga` processes on loopback, in directories
//! of their own, with their logs read at the end.
//!
//! Scenarios are in `tests/tests/`, named after what they prove. They see what a user sees: the
//! command line, the SDK, the admin API and the exit code.
//!
//! *Invariant:* a server's log holds no WARN, ERROR or panic that the scenario doesn't expect.

pub mod bookie_files;
pub mod cli;
pub mod corpus;
pub mod disk;
pub mod http;
pub mod standalone;

use std::path::PathBuf;

/// The binary under test: `GEMINGA_BIN`, else the one beside the running test.
///
/// # Panics
/// When there is none; the text says how to build it.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("GEMINGA_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test runs from a file");
    let target = test.ancestors().nth(3).expect("tests run from target/<profile>/deps");
    let candidates = ["release", "debug"].map(|profile| target.join(profile).join("geminga"));
    candidates.into_iter().find(|path| path.exists()).unwrap_or_else(|| {
        panic!(
            "no geminga binary below {}; run `cargo build --release` first, or scripts/test",
            target.display()
        )
    })
}

/// A number that differs from run to run, or the one in `GEMINGA_SEED`. Scenarios print it.
#[must_use]
pub fn seed() -> u64 {
    use geminga_proto::env::Random;
    std::env::var("GEMINGA_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| geminga_proto::env::SystemRandom.next_u64())
}

/// How often a repeated scenario repeats: `default`, or the number in `GEMINGA_ROUNDS`.
#[must_use]
pub fn rounds(default: u32) -> u32 {
    std::env::var("GEMINGA_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
