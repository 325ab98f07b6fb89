//! The file behind an [`super::EmbeddedStore`]: its tables, how a row is laid out, how it is made
//! and opened, and what its errors mean.
//!
//! Invariants: the file appears under its name only when it is complete (made aside, synced,
//! renamed, directory synced); nothing is changed before the format version was found to be one
//! that this build knows; a row is verified by its checksum each time it is read, and a panic
//! inside redb on a damaged page is answered as damage.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use redb::{Builder, Database, ReadableTable, StorageBackend, TableDefinition};

use super::EmbeddedConfig;
use super::directory::{make_dir, sync_above, sync_dir};
use crate::store::{LeaseId, Revision, StoreError};

/// Version of the file's layout.
pub const FORMAT_VERSION: u64 = 1;

/// Key → row, see [`encode_row`].
pub(super) const PAIRS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("pairs");
/// Key → the lease that it hangs on.
pub(super) const LEASED: TableDefinition<'static, &str, u64> = TableDefinition::new("leased");
/// `format` and `revision`.
pub(super) const STORE: TableDefinition<'static, &str, u64> = TableDefinition::new("store");

const FORMAT: &str = "format";
pub(super) const REVISION: &str = "revision";

const FILE_NAME: &str = "metadata.redb";
const NEW_FILE_NAME: &str = "metadata.redb.new";
const LOCK_NAME: &str = "metadata.lock";

/// Bytes before the value in a row: checksum, revision, lease.
const ROW_HEADER_BYTES: usize = 4 + 8 + 8;

/// Why the store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error(
        "the metadata in {dir} are in use by another process{holder}; \
         stop it, or use another data directory"
    )]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// ` (pid …)`, or nothing if it isn't known.
        holder: String,
    },
    /// A newer release wrote it.
    #[error(
        "{path} has format version {found}, this release reads up to {FORMAT_VERSION}; \
         start the release that wrote it, or a newer one"
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u64,
    },
    /// It can't be read.
    #[error("{path} is damaged: {why}; restore the data directory from a backup")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The disk is full.
    #[error("no space is left on the disk of {path}; free some and start again")]
    Full {
        /// The file or directory.
        path: PathBuf,
    },
    /// This user may not write there.
    #[error("{path} can't be written ({source}); check its owner, its mode and its mount")]
    NotWritable {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused.
    #[error("{what} failed at {path}: {source}")]
    Io {
        /// What was done.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path },
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Self::NotWritable { path, source }
                }
                _ => Self::Io { what, path, source },
            }
        }
    }

    fn redb(path: &Path) -> impl Fn(redb::Error) -> Self {
        move |error| match error {
            redb::Error::DatabaseAlreadyOpen => {
                let dir = path.parent().unwrap_or(path).to_owned();
                Self::Locked { dir, holder: String::new() }
            }
            // What redb can't make sense of comes as invalid data or an early end.
            redb::Error::Io(source)
                if !matches!(
                    source.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::io("reading or writing", path)(source)
            }
            other => Self::Corrupt { path: path.to_owned(), why: other.to_string() },
        }
    }
}

/// An opened file.
pub(super) struct OpenedFile {
    /// Keeps other processes out while it is open.
    pub lock: File,
    /// The database.
    pub database: Database,
    /// Where it stands.
    pub revision: Revision,
}

/// Locks the directory, makes the file if there is none, opens it, and deletes the keys that
/// hung on leases of a former process.
///
/// `device` makes of a file what redb reads and writes.
pub(super) fn open<D: StorageBackend>(
    config: &EmbeddedConfig,
    device: impl Fn(File) -> D,
) -> Result<OpenedFile, OpenError> {
    let dir = config.dir.as_path();
    make_dir(dir).map_err(OpenError::io("creating the directory", dir))?;
    let lock = lock(dir)?;
    let path = dir.join(FILE_NAME);
    let exists = path.try_exists().map_err(OpenError::io("looking for the file", &path))?;
    if !exists {
        let database = create(config, dir, &path, &device)?;
        return Ok(OpenedFile { lock, database, revision: Revision(0) });
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open(&path);
    let file = file.map_err(OpenError::io("opening", &path))?;
    if file.metadata().map_err(OpenError::io("opening", &path))?.len() == 0 {
        // redb would take it for a new one.
        let why = "it is empty".to_owned();
        return Err(OpenError::Corrupt { path, why });
    }
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let fail = OpenError::redb(&path);
        let mut builder = Builder::new();
        builder.set_cache_size(config.cache_bytes);
        let database = builder.create_with_backend(device(file));
        let database = database.map_err(|error| fail(error.into()))?;
        let revision = begin(&database, &path)?;
        Ok((database, revision))
    }));
    let (database, revision) = opened.unwrap_or_else(|_| {
        let why = "its pages contradict each other".to_owned();
        Err(OpenError::Corrupt { path: path.clone(), why })
    })?;
    Ok(OpenedFile { lock, database, revision })
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join(LOCK_NAME);
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = file.map_err(OpenError::io("opening the lock", &path))?;
    match file.try_lock() {
        Ok(()) => {
            // For whoever finds it locked; nothing depends on it.
            let pid = std::process::id().to_string();
            let written = file.set_len(0).and_then(|()| file.rewind());
            let written = written.and_then(|()| file.write_all(pid.as_bytes()));
            written.map_err(OpenError::io("writing the lock", &path))?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let known = file.take(20).read_to_string(&mut pid).is_ok()
                && !pid.is_empty()
                && pid.bytes().all(|byte| byte.is_ascii_digit());
            let holder = if known { format!(" (pid {pid})") } else { String::new() };
            Err(OpenError::Locked { dir: dir.to_owned(), holder })
        }
        Err(TryLockError::Error(source)) => Err(OpenError::io("locking", &path)(source)),
    }
}

/// Makes an empty store aside and gives it its name when it is complete and durable. It stays
/// open: closing and opening it would take several syncs more, of which a first start has many.
fn create<D: StorageBackend>(
    config: &EmbeddedConfig,
    dir: &Path,
    path: &Path,
    device: &impl Fn(File) -> D,
) -> Result<Database, OpenError> {
    let aside = dir.join(NEW_FILE_NAME);
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(OpenError::io("removing", &aside)(error));
        }
        // Left by a start that was killed.
        Ok(()) | Err(_) => {}
    }
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(&aside);
    let file = file.map_err(OpenError::io("creating", &aside))?;
    let fail = OpenError::redb(&aside);
    let mut builder = Builder::new();
    builder.set_cache_size(config.cache_bytes);
    let database = builder.create_with_backend(device(file));
    let database = database.map_err(|error| fail(error.into()))?;
    let write = database.begin_write().map_err(|error| fail(error.into()))?;
    {
        write.open_table(PAIRS).map_err(|error| fail(error.into()))?;
        write.open_table(LEASED).map_err(|error| fail(error.into()))?;
        let mut store = write.open_table(STORE).map_err(|error| fail(error.into()))?;
        for (name, value) in [(FORMAT, FORMAT_VERSION), (REVISION, 0)] {
            store.insert(name, value).map_err(|error| fail(error.into()))?;
        }
    }
    // Durable with what it needs to be found again; the name follows.
    write.commit().map_err(|error| fail(error.into()))?;
    std::fs::rename(&aside, path).map_err(OpenError::io("renaming", &aside))?;
    sync_dir(dir).map_err(OpenError::io("syncing the directory", dir))?;
    // The directory may be of a start that was killed before it had synced the one above.
    sync_above(dir).map_err(OpenError::io("syncing what is above the directory", dir))?;
    Ok(database)
}

/// Checks the format, deletes keys of former leases, and tells the revision.
fn begin(database: &Database, path: &Path) -> Result<Revision, OpenError> {
    let fail = OpenError::redb(path);
    let corrupt = |why: String| OpenError::Corrupt { path: path.to_owned(), why };
    let write = database.begin_write().map_err(|error| fail(error.into()))?;
    let (revision, changed) = {
        let mut store = write.open_table(STORE).map_err(|error| fail(error.into()))?;
        let read = |name: &str| -> Result<u64, OpenError> {
            let value = store.get(name).map_err(|error| fail(error.into()))?;
            value.map(|value| value.value()).ok_or_else(|| corrupt(format!("it has no {name}")))
        };
        let found = read(FORMAT)?;
        if found > FORMAT_VERSION {
            return Err(OpenError::NewerFormat { path: path.to_owned(), found });
        }
        if found == 0 {
            return Err(corrupt("its format version is 0".to_owned()));
        }
        let revision = read(REVISION)?;
        let mut pairs = write.open_table(PAIRS).map_err(|error| fail(error.into()))?;
        let mut leased = write.open_table(LEASED).map_err(|error| fail(error.into()))?;
        let mut ended = 0_usize;
        while let Some((key, _)) = leased.pop_first().map_err(|error| fail(error.into()))? {
            pairs.remove(key.value()).map_err(|error| fail(error.into()))?;
            ended += 1;
        }
        let next = revision + u64::from(ended > 0);
        if ended > 0 {
            store.insert(REVISION, next).map_err(|error| fail(error.into()))?;
        }
        (next, ended > 0)
    };
    let done = if changed {
        write.commit().map_err(redb::Error::from)
    } else {
        write.abort().map_err(redb::Error::from)
    };
    done.map_err(fail)?;
    Ok(Revision(revision))
}

/// A row, as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row<'a> {
    /// Revision of the transaction that wrote it.
    pub modified: Revision,
    /// The lease that it hangs on.
    pub lease: Option<LeaseId>,
    /// The value.
    pub value: &'a [u8],
}

/// `crc32c u32 | revision u64 | lease u64 (0: none) | value`, little-endian. The checksum covers
/// the key and everything behind it.
pub(super) fn encode_row(key: &str, row: &Row<'_>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(ROW_HEADER_BYTES + row.value.len());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&row.modified.0.to_le_bytes());
    bytes.extend_from_slice(&row.lease.map_or(0, |lease| lease.0).to_le_bytes());
    bytes.extend_from_slice(row.value);
    let (head, rest) = bytes.split_at_mut(4);
    head.copy_from_slice(&row_checksum(key, rest).to_le_bytes());
    bytes
}

/// Reads a row and verifies it.
pub(super) fn decode_row<'a>(key: &str, bytes: &'a [u8]) -> Result<Row<'a>, StoreError> {
    let damaged = || StoreError::Corrupt(format!("the value of {key} fails its checksum"));
    let (checksum, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
    if u32::from_le_bytes(*checksum) != row_checksum(key, rest) {
        return Err(damaged());
    }
    let (modified, rest) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
    let (lease, value) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
    let lease = u64::from_le_bytes(*lease);
    let lease = (lease != 0).then_some(LeaseId(lease));
    Ok(Row { modified: Revision(u64::from_le_bytes(*modified)), lease, value })
}

fn row_checksum(key: &str, rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key.as_bytes()), rest)
}

/// The store's revision.
pub(super) fn read_revision(
    store: &impl ReadableTable<&'static str, u64>,
) -> Result<Revision, StoreError> {
    match store.get(REVISION).map_err(store_error)? {
        Some(revision) => Ok(Revision(revision.value())),
        None => Err(StoreError::Corrupt("the revision is missing".to_owned())),
    }
}

/// What an error of redb means while the store is open: nothing was done.
pub(super) fn store_error(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Io(source)
            if matches!(
                source.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) =>
        {
            StoreError::Full(source.to_string())
        }
        redb::Error::Corrupted(why) => StoreError::Corrupt(why),
        other => StoreError::Unavailable(other.to_string()),
    }
}

/// Runs a read; a panic in it means that a page is damaged.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(StoreError::Corrupt("the file's pages contradict each other".to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_laid_out_as_documented_and_any_flipped_bit_in_it_is_found() {
        let row = Row { modified: Revision(7), lease: Some(LeaseId(9)), value: b"ab" };
        let bytes = encode_row("k", &row);
        let rest = [7, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, b'a', b'b'];
        assert_eq!(bytes[4..], rest);
        assert_eq!(bytes[..4], crc32c::crc32c(&[&b"k"[..], &rest[..]].concat()).to_le_bytes());
        assert_eq!(decode_row("k", &bytes), Ok(row));
        assert!(decode_row("l", &bytes).is_err(), "a row under a wrong key");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_row("k", &flipped).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(decode_row("k", &bytes[..len]).is_err(), "cut to {len}");
        }
    }
}
