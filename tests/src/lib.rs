//! The harness of the black-box scenarios: real `geminga` processes on loopback, in directories
//! of their own, with their logs read at the end.
//!
//! Scenarios are in `tests/tests/`, named after what they prove. They see what a user sees: the
//! command line, the SDK, the admin API and the exit code.
//!
//! *Invariant:* a server's log holds no WARN, ERROR or panic that the scenario doesn't expect.

pub mod bookie_files;
pub mod chaos;
pub mod cli;
pub mod cluster;
pub mod corpus;
pub mod disk;
pub mod etcd;
pub mod http;
pub mod load;
pub mod relay;
pub mod standalone;

use std::path::PathBuf;

/// The binary under test: `GEMINGA_BIN`, else what was built last of those beside the running test,
/// so that an old release doesn't stand in for a new debug build.
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
    newest(["release", "debug"].map(|profile| target.join(profile).join("geminga"))).unwrap_or_else(
        || {
            panic!(
                "no geminga binary below {}; run `cargo build --release` first, or scripts/test",
                target.display()
            )
        },
    )
}

/// The file that was changed last, of those that are there.
fn newest(candidates: [PathBuf; 2]) -> Option<PathBuf> {
    let built = |path: PathBuf| {
        let when = std::fs::metadata(&path).and_then(|metadata| metadata.modified()).ok()?;
        Some((when, path))
    };
    candidates.into_iter().filter_map(built).max().map(|(_, path)| path)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_binary_that_was_built_last_is_tested() {
        let dir = standalone::home();
        let [release, debug] = ["release", "debug"].map(|name| dir.path().join(name));
        let both = || newest([release.clone(), debug.clone()]);
        let built_at = |path: &PathBuf, seconds| {
            let file = std::fs::File::create(path).expect("a temporary file can be made");
            let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            file.set_modified(when).expect("its time can be set");
        };
        assert_eq!(both(), None);
        built_at(&debug, 2);
        assert_eq!(both().as_ref(), Some(&debug));
        built_at(&release, 1);
        assert_eq!(both().as_ref(), Some(&debug), "the release is older");
        built_at(&release, 3);
        assert_eq!(both().as_ref(), Some(&release));
    }
}
