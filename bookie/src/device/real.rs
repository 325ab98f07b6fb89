//! [`RealDevice`]: a directory of the operating system's file system.
//!
//! Owns the directory lock and the choice of the sync mode: `O_DIRECT | O_DSYNC` where the file
//! system takes it, buffered writes with `fdatasync` where it refuses (tmpfs does).

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use geminga_meta::store::embedded::{make_dir, sync_above};
use geminga_proto::storage::SyncMode;
use rustix::fs::{FallocateFlags, OFlags};

use super::{AlignedBuffer, BLOCK_BYTES, Device, DeviceError, DeviceFile, Space};

const LOCK_FILE: &str = "lock";
const PROBE_FILE: &str = "probe";

/// `O_DSYNC`. The library's constant of that name is `O_SYNC` on Linux, with which each write waits
/// for its timestamp, too: one more commit of the file system's journal.
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
const DSYNC: u32 = 0x1000;
/// The library's, wherever nobody has looked: `O_SYNC` is slower but never less durable.
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
)))]
const DSYNC: u32 = OFlags::DSYNC.bits();

/// A locked directory.
#[derive(Debug)]
pub struct RealDevice {
    path: PathBuf,
    sync_mode: SyncMode,
    directory: File,
    /// Held as long as this lives; the kernel lets go of it with the process.
    _lock: File,
}

impl RealDevice {
    /// Takes the directory at `path`, which is made if it doesn't exist, for this process.
    ///
    /// # Errors
    /// [`DeviceError::Locked`] if another process has it, [`DeviceError::ReadOnly`] if it can't
    /// be written to, or what else the operating system said.
    pub fn open(path: &Path) -> Result<Self, DeviceError> {
        let name = path.display().to_string();
        if path.exists() && !path.is_dir() {
            return Err(DeviceError::NotADirectory { name });
        }
        make_dir(path).map_err(|error| translate("creation", &name, &error))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(|error| translate("opening", &name, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DeviceError::Locked { name }),
            Err(TryLockError::Error(error)) => return Err(translate("locking", &name, &error)),
        }
        settle(path).map_err(|error| translate("sync", &name, &error))?;
        let directory = File::open(path).map_err(|error| translate("opening", &name, &error))?;
        let sync_mode = probe(path)?;
        Ok(Self { path: path.to_owned(), sync_mode, directory, _lock: lock })
    }

    /// As [`RealDevice::open`], but with buffered writes and `fdatasync` in any case.
    ///
    /// # Errors
    /// As [`RealDevice::open`].
    pub fn open_buffered(path: &Path) -> Result<Self, DeviceError> {
        Ok(Self { sync_mode: SyncMode::Fdatasync, ..Self::open(path)? })
    }

    fn options(&self) -> OpenOptions {
        options(self.sync_mode)
    }

    fn wrap(&self, file: File, path: &Path) -> Arc<dyn DeviceFile> {
        let name = path.display().to_string();
        Arc::new(RealFile { file, name, sync_mode: self.sync_mode })
    }
}

/// Makes the names of a directory and those above it durable as long as nothing is stored there:
/// it may be of a start that was killed before it had done so. The log's own files would be of no
/// use in a directory that is gone after a power cut. True if there was something to do.
fn settle(path: &Path) -> io::Result<bool> {
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        if name != LOCK_FILE && name != PROBE_FILE {
            return Ok(false);
        }
    }
    sync_above(path).map(|()| true)
}

fn options(sync_mode: SyncMode) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if sync_mode == SyncMode::DirectDsync {
        // The bits are the same non-negative constants that open(2) takes.
        options.custom_flags(i32::try_from(OFlags::DIRECT.bits() | DSYNC).unwrap_or(0));
    }
    options
}

/// Finds out by one write whether the file system takes direct I/O.
fn probe(directory: &Path) -> Result<SyncMode, DeviceError> {
    let path = directory.join(PROBE_FILE);
    let name = path.display().to_string();
    let buffer = AlignedBuffer::new(BLOCK_BYTES);
    let mut direct = OpenOptions::new();
    direct.write(true).create(true).truncate(true);
    // Whatever takes O_DIRECT takes O_DSYNC; waiting for the disk would tell nothing more.
    direct.custom_flags(i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0));
    let direct = direct.open(&path);
    let outcome = direct.and_then(|file| file.write_all_at(buffer.as_slice(), 0));
    // The probe's file is of no use to anybody; a leftover is truncated by the next probe.
    let removed = std::fs::remove_file(&path);
    match outcome {
        Ok(()) => {
            removed.map_err(|error| translate("removal", &name, &error))?;
            Ok(SyncMode::DirectDsync)
        }
        Err(error)
            if matches!(
                rustix::io::Errno::from_io_error(&error),
                Some(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP)
            ) =>
        {
            Ok(SyncMode::Fdatasync)
        }
        Err(error) => Err(translate("writing", &directory.display().to_string(), &error)),
    }
}

fn translate(operation: &'static str, name: &str, error: &io::Error) -> DeviceError {
    let name = name.to_owned();
    if let Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) =
        rustix::io::Errno::from_io_error(error)
    {
        return DeviceError::TooManyFiles { name };
    }
    match error.kind() {
        io::ErrorKind::NotFound => DeviceError::NotFound { name },
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DeviceError::Full { name },
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            DeviceError::ReadOnly { name }
        }
        io::ErrorKind::NotADirectory => DeviceError::NotADirectory { name },
        _ => DeviceError::Io { operation, name, why: error.to_string() },
    }
}

impl Device for RealDevice {
    fn open(&self, name: &str) -> Result<Arc<dyn DeviceFile>, DeviceError> {
        let path = self.path.join(name);
        let file = self.options().open(&path);
        let file =
            file.map_err(|error| translate("opening", &path.display().to_string(), &error))?;
        Ok(self.wrap(file, &path))
    }

    fn create(&self, name: &str) -> Result<Arc<dyn DeviceFile>, DeviceError> {
        let path = self.path.join(name);
        let file = self.options().create(true).truncate(true).open(&path);
        let file =
            file.map_err(|error| translate("creation", &path.display().to_string(), &error))?;
        Ok(self.wrap(file, &path))
    }

    fn remove(&self, name: &str) -> Result<(), DeviceError> {
        let path = self.path.join(name);
        std::fs::remove_file(&path)
            .map_err(|error| translate("removal", &path.display().to_string(), &error))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DeviceError> {
        let path = self.path.join(from);
        std::fs::rename(&path, self.path.join(to))
            .map_err(|error| translate("renaming", &path.display().to_string(), &error))
    }

    fn list(&self) -> Result<Vec<String>, DeviceError> {
        let whole = self.describe();
        let failed = |error: io::Error| translate("listing", &whole, &error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            // A name that isn't text is none of ours.
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn sync_dir(&self) -> Result<(), DeviceError> {
        self.directory.sync_all().map_err(|error| translate("sync", &self.describe(), &error))
    }

    fn space(&self) -> Result<Space, DeviceError> {
        let stat = rustix::fs::fstatvfs(&self.directory)
            .map_err(|errno| translate("statvfs", &self.describe(), &errno.into()))?;
        Ok(Space {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn sync_mode(&self) -> SyncMode {
        self.sync_mode
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    name: String,
    sync_mode: SyncMode,
}

impl RealFile {
    fn failed(&self, operation: &'static str) -> impl Fn(io::Error) -> DeviceError + '_ {
        move |error| translate(operation, &self.name, &error)
    }
}

impl DeviceFile for RealFile {
    fn len(&self) -> Result<u64, DeviceError> {
        Ok(self.file.metadata().map_err(self.failed("stat"))?.len())
    }

    fn preallocate(&self, bytes: u64) -> Result<(), DeviceError> {
        let length = self.len()?;
        if bytes <= length {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(()),
            // Such a file system reserves nothing; a write there may still find it full.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                self.file.set_len(bytes).map_err(self.failed("extension"))
            }
            Err(errno) => Err(self.failed("allocation")(errno.into())),
        }
    }

    fn sync_length(&self) -> Result<(), DeviceError> {
        self.file.sync_all().map_err(self.failed("sync"))
    }

    fn truncate(&self, bytes: u64) -> Result<(), DeviceError> {
        self.file.set_len(bytes).map_err(self.failed("truncation"))
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.file.write_all_at(data, offset).map_err(self.failed("writing"))
    }

    fn sync(&self) -> Result<(), DeviceError> {
        match self.sync_mode {
            SyncMode::DirectDsync => Ok(()),
            SyncMode::Fdatasync => self.file.sync_data().map_err(self.failed("sync")),
        }
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        let end = offset.saturating_add(data.len() as u64);
        match self.file.read_exact_at(data, offset) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(DeviceError::Short { name: self.name.clone(), end })
            }
            Err(error) => Err(self.failed("reading")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aligned(fill: u8) -> AlignedBuffer {
        let mut buffer = AlignedBuffer::new(BLOCK_BYTES);
        buffer.as_mut_slice().fill(fill);
        buffer
    }

    #[test]
    fn both_sync_modes_write_read_and_preallocate() {
        for buffered in [false, true] {
            let home = tempfile::tempdir().expect("a temporary directory");
            let path = home.path().join("log");
            let device =
                if buffered { RealDevice::open_buffered(&path) } else { RealDevice::open(&path) };
            let device = device.expect("opens");
            let file = device.create("a").expect("creates");
            file.preallocate(3 * BLOCK_BYTES as u64).expect("preallocates");
            file.write_at(BLOCK_BYTES as u64, aligned(5).as_slice()).expect("writes");
            file.sync().expect("syncs");
            let mut read = aligned(0);
            file.read_at(BLOCK_BYTES as u64, read.as_mut_slice()).expect("reads");
            assert_eq!(read.as_slice(), aligned(5).as_slice());
            let beyond = file.read_at(3 * BLOCK_BYTES as u64, read.as_mut_slice());
            assert!(matches!(beyond, Err(DeviceError::Short { .. })));
            assert_eq!(file.len(), Ok(3 * BLOCK_BYTES as u64));
            device.sync_dir().expect("syncs");
            assert!(device.list().expect("lists").contains(&"a".to_owned()));
        }
    }

    #[test]
    fn a_directory_has_one_user_at_a_time() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let first = RealDevice::open(home.path()).expect("opens");
        let second = RealDevice::open(home.path());
        assert!(matches!(second, Err(DeviceError::Locked { .. })), "{second:?}");
        drop(first);
        RealDevice::open(home.path()).expect("the lock went with its holder");
    }

    #[test]
    fn a_write_waits_for_data_and_not_for_timestamps() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = home.path().join("a");
        let file = options(SyncMode::DirectDsync).create(true).truncate(true).open(path);
        // tmpfs refuses direct I/O.
        let Ok(file) = file else { return };
        let flags = rustix::fs::fcntl_getfl(&file).expect("answers").bits();
        assert_eq!(flags & OFlags::SYNC.bits(), DSYNC, "{flags:#o}");
        assert!(flags & OFlags::DIRECT.bits() != 0, "{flags:#o}");
    }

    #[test]
    fn directories_are_made_as_deep_as_needed() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = home.path().join("a/b/c");
        drop(RealDevice::open(&path).expect("opens"));
        drop(RealDevice::open(&path).expect("opens what is there"));
        assert!(path.join(LOCK_FILE).exists());
    }

    #[test]
    fn a_directory_is_made_durable_until_something_is_stored_in_it() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = home.path().join("a");
        std::fs::create_dir(&path).expect("made by a start that was killed then");
        assert!(settle(&path).expect("syncs"));
        let device = RealDevice::open(&path).expect("opens");
        assert!(settle(&path).expect("syncs"), "nothing is there but the lock");
        device.create("cookie").expect("creates");
        assert!(!settle(&path).expect("looks"));
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_named() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = home.path().join("file");
        std::fs::write(&path, b"x").expect("writes");
        let opened = RealDevice::open(&path);
        assert!(matches!(opened, Err(DeviceError::NotADirectory { .. })), "{opened:?}");
    }
}
