//! [`Device`]: one directory on a disk, as the log sees it.
//!
//! Owns the promises that the log builds on, and the aligned buffer that direct I/O needs.
//! Refuses to interpret a byte of what it stores.
//!
//! Promises:
//! - A write is durable once the [`DeviceFile::sync`] after it has returned; until then a crash
//!   may keep any part of it. Writes to other places are never harmed.
//! - A created, renamed or removed name is durable once [`Device::sync_dir`] has returned.
//! - Offsets, lengths and buffers of reads and writes are multiples of [`BLOCK_BYTES`].

use std::fmt::Debug;
use std::sync::Arc;

use geminga_proto::storage::SyncMode;

mod buffer;
#[cfg(any(test, feature = "faulty-device"))]
pub mod faulty;
pub mod memory;
pub mod real;

pub use buffer::AlignedBuffer;

/// The unit of every read and write.
pub const BLOCK_BYTES: usize = 4096;

/// Rounds up to whole blocks.
#[must_use]
pub const fn whole_blocks(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// How much a disk holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system, in bytes.
    pub total_bytes: u64,
    /// What can still be taken, in bytes.
    pub available_bytes: u64,
}

/// Why a device did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no such file or directory.
    #[error("{name} does not exist")]
    NotFound {
        /// What was looked for.
        name: String,
    },
    /// No space is left.
    #[error("no space is left on the disk for {name}: free some space")]
    Full {
        /// What needed it.
        name: String,
    },
    /// The directory can't be written to.
    #[error("{name} is read-only: mount it writable or give this user the right to write there")]
    ReadOnly {
        /// The directory or file.
        name: String,
    },
    /// Another process uses the directory.
    #[error("{name} is in use by another process: stop that one or choose another directory")]
    Locked {
        /// The directory.
        name: String,
    },
    /// The path exists and isn't a directory.
    #[error("{name} is not a directory")]
    NotADirectory {
        /// The path.
        name: String,
    },
    /// The file ends before what was to be read.
    #[error("{name} ends before byte {end}")]
    Short {
        /// The file.
        name: String,
        /// End of the range that was asked for.
        end: u64,
    },
    /// Too many files are open, in this process or on this machine.
    #[error("too many files are open to open {name}: raise the limit (ulimit -n)")]
    TooManyFiles {
        /// What could not be opened.
        name: String,
    },
    /// The operating system failed.
    #[error("{operation} of {name} failed: {why}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        name: String,
        /// The system's words.
        why: String,
    },
}

/// One open file. Dropping it closes it.
pub trait DeviceFile: Send + Sync + Debug + 'static {
    /// Length in bytes.
    fn len(&self) -> Result<u64, DeviceError>;

    /// True if the file holds no byte.
    fn is_empty(&self) -> Result<bool, DeviceError> {
        Ok(self.len()? == 0)
    }

    /// Makes the file at least `bytes` long with its space reserved, so that writes below that
    /// never fail for want of space. Durable after [`DeviceFile::sync_length`].
    fn preallocate(&self, bytes: u64) -> Result<(), DeviceError>;

    /// Makes length and reserved space durable, which [`DeviceFile::sync`] does only as far as
    /// what was written needs it.
    fn sync_length(&self) -> Result<(), DeviceError>;

    /// Cuts the file to `bytes` and gives the space back.
    fn truncate(&self, bytes: u64) -> Result<(), DeviceError>;

    /// Writes all of `data` at `offset`.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;

    /// Makes everything written before durable. After an error nothing is known about any of it.
    fn sync(&self) -> Result<(), DeviceError>;

    /// Fills `data` from `offset`.
    fn read_at(&self, offset: u64, data: &mut [u8]) -> Result<(), DeviceError>;
}

/// One directory on a disk, locked by this process.
pub trait Device: Send + Sync + Debug + 'static {
    /// Opens a file that exists.
    fn open(&self, name: &str) -> Result<Arc<dyn DeviceFile>, DeviceError>;

    /// Makes an empty file, in place of one that may exist.
    fn create(&self, name: &str) -> Result<Arc<dyn DeviceFile>, DeviceError>;

    /// Removes a file.
    fn remove(&self, name: &str) -> Result<(), DeviceError>;

    /// Renames a file over one that may exist.
    fn rename(&self, from: &str, to: &str) -> Result<(), DeviceError>;

    /// Names of all files, sorted.
    fn list(&self) -> Result<Vec<String>, DeviceError>;

    /// Makes names durable.
    fn sync_dir(&self) -> Result<(), DeviceError>;

    /// What the disk holds.
    fn space(&self) -> Result<Space, DeviceError>;

    /// How [`DeviceFile::sync`] works here.
    fn sync_mode(&self) -> SyncMode;

    /// Where this is, for messages to people.
    fn describe(&self) -> String;
}
