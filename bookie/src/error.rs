//! Why a bookie can't be opened or closed. Each message says what to do.

use geminga_proto::id::SegmentId;

use crate::config::ConfigError;
use crate::device::DeviceError;

/// Part of a log that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: SegmentId,
    /// Its file.
    pub file: String,
    /// What is wrong with it.
    pub what: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} (segment {}): {}", self.file, self.segment, self.what)
    }
}

/// Why a bookie did not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// A setting can't be used.
    #[error("the bookie's settings can't be used: {0}")]
    Config(#[from] ConfigError),
    /// The disk failed or refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// There is no room for one segment.
    #[error("the disk of {directory} is full: free some space and start again")]
    Full {
        /// The log's directory.
        directory: String,
    },
    /// Both copies of the manifest are missing or damaged.
    #[error(
        "{directory} has held a log, but {manifest} are missing or damaged: restore one of them, \
         or give this node a new directory and a new name; its ledgers have a copy less then",
        manifest = crate::log::manifest_names()
    )]
    ManifestLost {
        /// The log's directory.
        directory: String,
    },
    /// Written by a newer release.
    #[error(
        "the {what} in {directory} has format version {version}, this release reads up to {known}: \
         use the release that wrote it, or a newer one"
    )]
    NewerFormat {
        /// Which file.
        what: &'static str,
        /// The log's directory.
        directory: String,
        /// Its version.
        version: u16,
        /// The newest version that this release reads.
        known: u16,
    },
    /// The log isn't the one the cookie belongs to.
    #[error("the log in {directory} belongs to another node's cookie: put the right disk in place")]
    ForeignLog {
        /// The log's directory.
        directory: String,
    },
    /// Segments are lost or damaged.
    #[error(
        "{directory} has lost data: {list}. Restore the files from where they were moved, or \
         accept the damage in the settings, bookie.accept_damage: what is lost is then given up \
         and answers \"unknown\", the rest is served. A ledger that was being written can't be \
         recovered then while no other bookie has a copy of it",
        list = list(damage)
    )]
    Damaged {
        /// The log's directory.
        directory: String,
        /// What is lost.
        damage: Vec<Damage>,
    },
    /// A log thread could not be started.
    #[error("a log thread can't be started: {0}")]
    Thread(String),
}

fn list(damage: &[Damage]) -> String {
    damage.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Why a log was not closed cleanly. The next start replays what is there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseError {
    /// The disk failed.
    #[error("the log was not closed cleanly: {0}")]
    Device(#[from] DeviceError),
    /// A log thread ended by a panic.
    #[error("the log was not closed cleanly: a log thread has panicked")]
    Panicked,
}
