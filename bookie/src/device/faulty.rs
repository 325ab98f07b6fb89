//! [`FaultyDevice`]: a device that fails as a disk does, when a file says so. Part of builds for
//! tests alone (feature `faulty-device`), so that a real process meets what nobody can make a real
//! disk do.
//!
//! The control file has one fault a line; without the file, nothing fails:
//!
//! ```text
//! write                  every write stores its first half and then fails (EIO)
//! sync                   every sync of a file or of the directory fails
//! read SUFFIX N SEED     in files with names that end so, one block in N can't be read (EIO),
//!                        until it is written again; the seed says which
//! ```
//!
//! Invariants:
//! - What the file says holds from the next operation on: it is looked at before each.
//! - Which blocks can't be read depends on the file's name, the place and the seed, and on nothing
//!   else.
//! - A file that can't be understood makes every operation fail: no test runs without its faults.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use geminga_proto::storage::SyncMode;
use parking_lot::Mutex;

use super::{BLOCK_BYTES, Device, DeviceError, DeviceFile, Space};

/// Blocks of a file that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct BadBlocks {
    suffix: String,
    one_in: u64,
    seed: u64,
}

impl BadBlocks {
    fn has(&self, name: &str, block: u64) -> bool {
        if !name.ends_with(&self.suffix) {
            return false;
        }
        let bytes = name.bytes().chain(block.to_le_bytes()).chain(self.seed.to_le_bytes());
        // FNV-1a, and a last step that lets every bit count.
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) % self.one_in == 0
    }
}

/// What fails.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Faults {
    write: bool,
    sync: bool,
    read: Option<BadBlocks>,
}

impl Faults {
    fn parse(text: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for line in text.lines() {
            match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                [] => {}
                ["write"] => faults.write = true,
                ["sync"] => faults.sync = true,
                ["read", suffix, one_in, seed] => {
                    let number = |text: &str| text.parse().map_err(|_| format!("in {line:?}"));
                    let (one_in, seed) = (number(one_in)?, number(seed)?);
                    if one_in == 0 {
                        return Err(format!("in {line:?}"));
                    }
                    let suffix = (*suffix).to_owned();
                    faults.read = Some(BadBlocks { suffix, one_in, seed });
                }
                _ => return Err(format!("in {line:?}")),
            }
        }
        Ok(faults)
    }
}

#[derive(Debug, Default)]
struct Seen {
    /// The control file's text, and what it says.
    text: String,
    faults: Faults,
    /// Blocks that were written again since the text is what it is.
    cured: BTreeSet<(String, u64)>,
}

#[derive(Debug)]
struct Control {
    path: PathBuf,
    seen: Mutex<Seen>,
}

impl Control {
    /// Does this with what is in force now.
    fn with<T>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&mut Seen) -> T,
    ) -> Result<T, DeviceError> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failure(operation, &self.path.display(), error)),
        };
        let mut seen = self.seen.lock();
        if text != seen.text {
            let faults = Faults::parse(&text)
                .map_err(|why| failure(operation, &self.path.display(), why))?;
            tracing::warn!(?faults, "a build for tests: what its disk fails at has changed");
            *seen = Seen { text, faults, cured: BTreeSet::new() };
        }
        Ok(work(&mut seen))
    }
}

fn failure(
    operation: &'static str,
    name: &impl ToString,
    why: impl std::fmt::Display,
) -> DeviceError {
    DeviceError::Io { operation, name: name.to_string(), why: why.to_string() }
}

fn eio(operation: &'static str, name: &str) -> DeviceError {
    failure(operation, &name, std::io::Error::from(rustix::io::Errno::IO))
}

fn blocks(offset: u64, bytes: usize) -> std::ops::Range<u64> {
    let block = BLOCK_BYTES as u64;
    offset / block..offset.saturating_add(bytes as u64).div_ceil(block)
}

/// See the module.
#[derive(Debug)]
pub struct FaultyDevice {
    real: Arc<dyn Device>,
    control: Arc<Control>,
}

impl FaultyDevice {
    /// Fails as the file at `control` says, and does else what `real` does.
    #[must_use]
    pub fn new(real: Arc<dyn Device>, control: PathBuf) -> Self {
        let control = Control { path: control, seen: Mutex::default() };
        Self { real, control: Arc::new(control) }
    }

    fn wrap(&self, name: &str, file: Arc<dyn DeviceFile>) -> Arc<dyn DeviceFile> {
        let control = Arc::clone(&self.control);
        Arc::new(FaultyFile { real: file, name: name.to_owned(), control })
    }
}

impl Device for FaultyDevice {
    fn open(&self, name: &str) -> Result<Arc<dyn DeviceFile>, DeviceError> {
        Ok(self.wrap(name, self.real.open(name)?))
    }

    fn create(&self, name: &str) -> Result<Arc<dyn DeviceFile>, DeviceError> {
        Ok(self.wrap(name, self.real.create(name)?))
    }

    fn remove(&self, name: &str) -> Result<(), DeviceError> {
        self.real.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DeviceError> {
        self.real.rename(from, to)
    }

    fn list(&self) -> Result<Vec<String>, DeviceError> {
        self.real.list()
    }

    fn sync_dir(&self) -> Result<(), DeviceError> {
        if self.control.with("sync", |seen| seen.faults.sync)? {
            return Err(eio("sync", &self.describe()));
        }
        self.real.sync_dir()
    }

    fn space(&self) -> Result<Space, DeviceError> {
        self.real.space()
    }

    fn sync_mode(&self) -> SyncMode {
        self.real.sync_mode()
    }

    fn describe(&self) -> String {
        self.real.describe()
    }
}

#[derive(Debug)]
struct FaultyFile {
    real: Arc<dyn DeviceFile>,
    name: String,
    control: Arc<Control>,
}

impl FaultyFile {
    fn check_sync(&self) -> Result<(), DeviceError> {
        let fails = self.control.with("sync", |seen| seen.faults.sync)?;
        if fails { Err(eio("sync", &self.name)) } else { Ok(()) }
    }
}

impl DeviceFile for FaultyFile {
    fn len(&self) -> Result<u64, DeviceError> {
        self.real.len()
    }

    fn preallocate(&self, bytes: u64) -> Result<(), DeviceError> {
        self.real.preallocate(bytes)
    }

    fn sync_length(&self) -> Result<(), DeviceError> {
        self.check_sync()?;
        self.real.sync_length()
    }

    fn truncate(&self, bytes: u64) -> Result<(), DeviceError> {
        self.real.truncate(bytes)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        if self.control.with("writing", |seen| seen.faults.write)? {
            let whole = data.len() / BLOCK_BYTES;
            let half = data.get(..whole / 2 * BLOCK_BYTES).unwrap_or_default();
            self.real.write_at(offset, half)?;
            return Err(eio("writing", &self.name));
        }
        self.real.write_at(offset, data)?;
        self.control.with("writing", |seen| {
            let Some(bad) = &seen.faults.read else { return };
            let written = blocks(offset, data.len()).filter(|block| bad.has(&self.name, *block));
            seen.cured.extend(written.map(|block| (self.name.clone(), block)));
        })
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.check_sync()?;
        self.real.sync()
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        let fails = self.control.with("reading", |seen| {
            seen.faults.read.as_ref().is_some_and(|bad| {
                let is_bad = |block: &u64| {
                    bad.has(&self.name, *block)
                        && !seen.cured.contains(&(self.name.clone(), *block))
                };
                blocks(offset, data.len()).any(|block| is_bad(&block))
            })
        })?;
        if fails { Err(eio("reading", &self.name)) } else { self.real.read_at(offset, data) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::MemoryDevice;
    use super::super::{AlignedBuffer, whole_blocks};
    use super::*;

    const BLOCKS: usize = 64;

    struct Bench {
        device: FaultyDevice,
        control: PathBuf,
        _home: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let home = tempfile::tempdir().expect("a temporary directory");
            let control = home.path().join("faults");
            let real = Arc::new(MemoryDevice::new(1 << 30));
            Self { device: FaultyDevice::new(real, control.clone()), control, _home: home }
        }

        fn say(&self, text: &str) {
            std::fs::write(&self.control, text).expect("writes");
        }
    }

    fn filled(fill: u8) -> AlignedBuffer {
        let mut buffer = AlignedBuffer::new(whole_blocks(BLOCKS * BLOCK_BYTES));
        buffer.as_mut_slice().fill(fill);
        buffer
    }

    fn read_block(file: &dyn DeviceFile, block: usize) -> Result<u8, DeviceError> {
        let mut buffer = AlignedBuffer::new(BLOCK_BYTES);
        file.read_at((block * BLOCK_BYTES) as u64, buffer.as_mut_slice())?;
        Ok(buffer.as_slice()[0])
    }

    #[test]
    fn without_a_control_file_nothing_fails_and_faults_end_with_it() {
        let bench = Bench::new();
        let file = bench.device.create("a.seg").expect("made");
        file.write_at(0, filled(1).as_slice()).expect("written");
        file.sync().expect("synced");
        bench.say("write\nsync\n");
        file.write_at(0, filled(2).as_slice()).expect_err("EIO");
        file.sync().expect_err("EIO");
        file.sync_length().expect_err("EIO");
        bench.device.sync_dir().expect_err("EIO");
        // The failed write has stored its first half.
        assert_eq!(read_block(file.as_ref(), BLOCKS / 2 - 1), Ok(2));
        assert_eq!(read_block(file.as_ref(), BLOCKS / 2), Ok(1));
        std::fs::remove_file(&bench.control).expect("removed");
        file.write_at(0, filled(3).as_slice()).expect("written");
        file.sync().expect("synced");
        bench.device.sync_dir().expect("synced");
    }

    #[test]
    fn the_same_blocks_can_not_be_read_until_they_are_written_again() {
        let bench = Bench::new();
        let file = bench.device.create("a.seg").expect("made");
        let other = bench.device.create("manifest").expect("made");
        for file in [&file, &other] {
            file.write_at(0, filled(1).as_slice()).expect("written");
        }
        let bad = || {
            let is_bad = |block: &usize| read_block(file.as_ref(), *block).is_err();
            (0..BLOCKS).filter(is_bad).collect::<Vec<_>>()
        };
        bench.say("read .seg 8 77\n");
        let first = bad();
        assert!(!first.is_empty() && first.len() < BLOCKS / 2, "{first:?}");
        assert_eq!(bad(), first);
        let mut whole = filled(0);
        file.read_at(0, whole.as_mut_slice()).expect_err("some of it is bad");
        other.read_at(0, whole.as_mut_slice()).expect("its name has another end");
        bench.say("read .seg 8 78\n");
        assert_ne!(bad(), first);
        bench.say("read .seg 8 77\n");
        assert_eq!(bad(), first);
        file.write_at(0, filled(2).as_slice()).expect("written");
        assert_eq!(bad(), Vec::<usize>::new());
    }

    #[test]
    fn what_can_not_be_understood_lets_everything_fail() {
        let bench = Bench::new();
        let file = bench.device.create("a.seg").expect("made");
        for text in ["explode", "read .seg 0 1", "read .seg many 1", "read .seg", "write now"] {
            bench.say(text);
            let error = file.sync().expect_err("refused").to_string();
            assert!(error.contains(text), "{error}");
            file.write_at(0, filled(1).as_slice()).expect_err("refused");
        }
        bench.say("\n\n");
        file.sync().expect("nothing is to fail");
    }
}
