//! [`MemoryDevice`]: a disk in memory that fails the way disks fail.
//!
//! Owns an exact model of what is durable: file contents since their last sync, names since the
//! last directory sync. A crash keeps only that, plus as much of the unsynced writes as the
//! chosen [`Tear`] says. Faults are switched on by tests and simulations; nothing is random here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use geminga_proto::storage::SyncMode;
use parking_lot::Mutex;

use super::{BLOCK_BYTES, Device, DeviceError, DeviceFile, Space};

/// What of the last unsynced write a crash leaves; earlier unsynced writes are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tear {
    /// Nothing.
    Lost,
    /// Its first bytes.
    Prefix(usize),
    /// Its blocks whose bit is set, the first block being bit 0.
    Blocks(u64),
    /// All of it.
    Whole,
}

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// [`DeviceFile::write_at`].
    Write,
    /// [`DeviceFile::sync`].
    Sync,
    /// [`DeviceFile::read_at`].
    Read,
    /// [`Device::open`] and [`Device::create`], for want of file descriptors.
    Open,
    /// [`Device::create`].
    Create,
    /// [`Device::sync_dir`].
    SyncDir,
}

#[derive(Debug, Clone, Default)]
struct Image {
    current: Vec<u8>,
    /// As long as what was synced: a reservation is durable with `sync_length` only.
    durable: Vec<u8>,
    /// Ranges of `current` that no sync has made durable, oldest first.
    unsynced: Vec<(usize, usize)>,
    /// Blocks that can't be read until they are written again.
    unreadable: BTreeSet<usize>,
}

#[derive(Debug, Clone, Default)]
struct Disk {
    files: BTreeMap<u64, Image>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    next_file: u64,
    capacity_bytes: u64,
    /// How many more of these operations work before all fail.
    failing_after: BTreeMap<Operation, u64>,
    /// Writes that still work before the power goes; the last one stays unsynced.
    writes_left: Option<u64>,
    /// Syncs of files and of the directory, and renames, that still work before the power goes.
    steps_left: Option<u64>,
    dead: bool,
    /// The file of the last unsynced write.
    last_written: Option<u64>,
    writes: u64,
    syncs: u64,
    directory_syncs: u64,
}

/// A disk in memory. Clones share it.
#[derive(Debug, Clone)]
pub struct MemoryDevice {
    disk: Arc<Mutex<Disk>>,
}

impl MemoryDevice {
    /// An empty disk of this size.
    #[must_use]
    pub fn new(capacity_bytes: u64) -> Self {
        let disk = Disk { capacity_bytes, ..Disk::default() };
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// The disk as it is after a power cut now: a new device, without faults. This one goes on
    /// unchanged, so one moment can be crashed in many ways.
    #[must_use]
    pub fn crash(&self, tear: Tear) -> Self {
        let mut disk = self.disk.lock().clone();
        let last = disk.last_written;
        for (id, image) in &mut disk.files {
            if Some(*id) == last
                && let Some((offset, len)) = image.unsynced.last().copied()
            {
                let kept = image.current[offset..offset + len].to_vec();
                image.keep(offset, &kept, tear);
            }
            image.current.clone_from(&image.durable);
            image.unsynced.clear();
        }
        disk.names.clone_from(&disk.durable_names);
        let linked: Vec<u64> = disk.names.values().copied().collect();
        disk.files.retain(|id, _| linked.contains(id));
        disk.failing_after.clear();
        (disk.writes_left, disk.steps_left) = (None, None);
        (disk.dead, disk.last_written) = (false, None);
        Self { disk: Arc::new(Mutex::new(disk)) }
    }

    /// The disk as it is now, unsynced writes and all, as a second device.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self { disk: Arc::new(Mutex::new(self.disk.lock().clone())) }
    }

    /// Lets `after` more of these operations work, then fails each one until [`Self::mend`].
    pub fn fail(&self, operation: Operation, after: u64) {
        self.disk.lock().failing_after.insert(operation, after);
    }

    /// Ends all failures set by [`Self::fail`].
    pub fn mend(&self) {
        self.disk.lock().failing_after.clear();
    }

    /// Cuts the power at the `writes`-th write from now on (1 is the next): that write is left
    /// unsynced, and every operation after it fails.
    pub fn cut_power_at_write(&self, writes: u64) {
        self.disk.lock().writes_left = Some(writes);
    }

    /// Cuts the power right after so many syncs, of files or the directory, and renames.
    pub fn cut_power_after_step(&self, steps: u64) {
        self.disk.lock().steps_left = Some(steps);
    }

    /// True once the power is cut.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.disk.lock().dead
    }

    /// Changes the size of the disk.
    pub fn set_capacity(&self, bytes: u64) {
        self.disk.lock().capacity_bytes = bytes;
    }

    /// Flips bits of one stored byte.
    ///
    /// # Panics
    /// When there is no such file or byte.
    pub fn flip(&self, name: &str, offset: usize, mask: u8) {
        self.edit(name, |bytes| bytes[offset] ^= mask);
    }

    /// Changes a stored file behind the log's back, durably.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn edit(&self, name: &str, change: impl Fn(&mut Vec<u8>)) {
        let mut disk = self.disk.lock();
        let id = disk.names[name];
        let image = disk.files.get_mut(&id).expect("every name has a file");
        change(&mut image.current);
        change(&mut image.durable);
    }

    /// Makes the disk fail to read a block of a file, until it is written again.
    ///
    /// # Panics
    /// When there is no such file.
    pub fn spoil(&self, name: &str, block: usize) {
        let mut disk = self.disk.lock();
        let id = disk.names[name];
        disk.files.get_mut(&id).expect("every name has a file").unreadable.insert(block);
    }

    /// Bytes of a file as they are now.
    #[must_use]
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let disk = self.disk.lock();
        Some(disk.files.get(disk.names.get(name)?)?.current.clone())
    }

    /// Exchanges two files' names, durably.
    ///
    /// # Panics
    /// When one of them doesn't exist.
    pub fn swap(&self, one: &str, other: &str) {
        let mut disk = self.disk.lock();
        let (first, second) = (disk.names[one], disk.names[other]);
        for (name, id) in [(one, second), (other, first)] {
            disk.names.insert(name.to_owned(), id);
            disk.durable_names.insert(name.to_owned(), id);
        }
    }

    /// Length of the last write if it is not synced.
    #[must_use]
    pub fn last_unsynced_bytes(&self) -> Option<usize> {
        let disk = self.disk.lock();
        disk.files.get(&disk.last_written?)?.unsynced.last().map(|(_, len)| *len)
    }

    /// Writes and syncs of files so far.
    #[must_use]
    pub fn operations(&self) -> (u64, u64) {
        let disk = self.disk.lock();
        (disk.writes, disk.syncs)
    }

    /// Syncs of the directory so far.
    #[must_use]
    pub fn directory_syncs(&self) -> u64 {
        self.disk.lock().directory_syncs
    }

    fn file(&self, name: &str, id: u64) -> Arc<dyn DeviceFile> {
        Arc::new(MemoryFile { disk: self.disk.clone(), name: name.to_owned(), id })
    }
}

impl Image {
    fn keep(&mut self, offset: usize, written: &[u8], tear: Tear) {
        let end = offset + written.len();
        if self.durable.len() < end && tear != Tear::Lost {
            self.durable.resize(end, 0);
        }
        match tear {
            Tear::Lost => {}
            Tear::Whole => self.durable[offset..end].copy_from_slice(written),
            Tear::Prefix(bytes) => {
                let bytes = bytes.min(written.len());
                self.durable[offset..offset + bytes].copy_from_slice(&written[..bytes]);
            }
            Tear::Blocks(mask) => {
                for (index, block) in written.chunks(BLOCK_BYTES).enumerate() {
                    if mask >> index & 1 == 1 {
                        let at = offset + index * BLOCK_BYTES;
                        self.durable[at..at + block.len()].copy_from_slice(block);
                    }
                }
            }
        }
    }

    fn make_durable(&mut self) {
        for (offset, len) in self.unsynced.drain(..) {
            let end = (offset + len).min(self.current.len());
            if self.durable.len() < end {
                self.durable.resize(end, 0);
            }
            if offset < end {
                self.durable[offset..end].copy_from_slice(&self.current[offset..end]);
            }
        }
    }
}

fn failed(name: &str, why: &str) -> DeviceError {
    let (name, why) = (name.to_owned(), why.to_owned());
    DeviceError::Io { operation: "the operation", name, why }
}

impl Disk {
    fn check_power(&self, name: &str) -> Result<(), DeviceError> {
        if self.dead { Err(failed(name, "the power is cut")) } else { Ok(()) }
    }

    fn check(&mut self, operation: Operation, name: &str) -> Result<(), DeviceError> {
        self.check_power(name)?;
        match self.failing_after.get_mut(&operation) {
            Some(0) if operation == Operation::Open => {
                Err(DeviceError::TooManyFiles { name: name.to_owned() })
            }
            Some(0) => Err(failed(name, "input/output error")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn synced(&mut self) {
        self.syncs += 1;
        self.step();
    }

    /// One step of the kind at which the power may go.
    fn step(&mut self) {
        if let Some(left) = &mut self.steps_left {
            *left = left.saturating_sub(1);
            self.dead |= *left == 0;
        }
    }

    fn used_bytes(&self) -> u64 {
        self.files.values().map(|image| image.current.len() as u64).sum()
    }

    fn id_of(&self, name: &str) -> Result<u64, DeviceError> {
        self.names.get(name).copied().ok_or_else(|| DeviceError::NotFound { name: name.to_owned() })
    }

    /// Frees files that neither memory nor disk names any more.
    fn drop_unlinked(&mut self) {
        let (names, durable) = (&self.names, &self.durable_names);
        self.files
            .retain(|id, _| names.values().chain(durable.values()).any(|linked| linked == id));
    }
}

impl Device for MemoryDevice {
    fn open(&self, name: &str) -> Result<Arc<dyn DeviceFile>, DeviceError> {
        let mut disk = self.disk.lock();
        disk.check(Operation::Open, name)?;
        let id = disk.id_of(name)?;
        drop(disk);
        Ok(self.file(name, id))
    }

    fn create(&self, name: &str) -> Result<Arc<dyn DeviceFile>, DeviceError> {
        let mut disk = self.disk.lock();
        disk.check(Operation::Open, name)?;
        disk.check(Operation::Create, name)?;
        let id = disk.next_file;
        disk.next_file += 1;
        disk.files.insert(id, Image::default());
        disk.names.insert(name.to_owned(), id);
        disk.drop_unlinked();
        drop(disk);
        Ok(self.file(name, id))
    }

    fn remove(&self, name: &str) -> Result<(), DeviceError> {
        let mut disk = self.disk.lock();
        disk.check_power(name)?;
        disk.id_of(name)?;
        disk.names.remove(name);
        disk.drop_unlinked();
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), DeviceError> {
        let mut disk = self.disk.lock();
        disk.check_power(from)?;
        let id = disk.id_of(from)?;
        disk.names.remove(from);
        disk.names.insert(to.to_owned(), id);
        disk.drop_unlinked();
        disk.step();
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, DeviceError> {
        Ok(self.disk.lock().names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> Result<(), DeviceError> {
        let mut disk = self.disk.lock();
        disk.check(Operation::SyncDir, "the directory")?;
        disk.durable_names = disk.names.clone();
        disk.drop_unlinked();
        disk.directory_syncs += 1;
        disk.step();
        Ok(())
    }

    fn space(&self) -> Result<Space, DeviceError> {
        let disk = self.disk.lock();
        Ok(Space {
            total_bytes: disk.capacity_bytes,
            available_bytes: disk.capacity_bytes.saturating_sub(disk.used_bytes()),
        })
    }

    fn sync_mode(&self) -> SyncMode {
        SyncMode::DirectDsync
    }

    fn describe(&self) -> String {
        "memory".to_owned()
    }
}

#[derive(Debug)]
struct MemoryFile {
    disk: Arc<Mutex<Disk>>,
    name: String,
    id: u64,
}

impl MemoryFile {
    fn with<T>(
        &self,
        operation: Option<Operation>,
        act: impl FnOnce(&mut Disk, &mut Image) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let mut disk = self.disk.lock();
        if let Some(operation) = operation {
            disk.check(operation, &self.name)?;
        }
        let missing = || DeviceError::NotFound { name: self.name.clone() };
        let mut image = disk.files.remove(&self.id).ok_or_else(missing)?;
        let result = act(&mut disk, &mut image);
        disk.files.insert(self.id, image);
        result
    }

    fn fits(&self, disk: &Disk, image: &Image, bytes: u64) -> Result<(), DeviceError> {
        // The image is out of the map while this runs, so what is used excludes it.
        let fits = disk.used_bytes() + bytes <= disk.capacity_bytes;
        if fits || bytes <= image.current.len() as u64 {
            Ok(())
        } else {
            Err(DeviceError::Full { name: self.name.clone() })
        }
    }
}

impl DeviceFile for MemoryFile {
    fn len(&self) -> Result<u64, DeviceError> {
        self.with(None, |_, image| Ok(image.current.len() as u64))
    }

    fn preallocate(&self, bytes: u64) -> Result<(), DeviceError> {
        self.with(None, |disk, image| {
            self.fits(disk, image, bytes)?;
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            image.current.resize(image.current.len().max(bytes), 0);
            Ok(())
        })
    }

    fn sync_length(&self) -> Result<(), DeviceError> {
        self.with(Some(Operation::Sync), |disk, image| {
            disk.synced();
            image.make_durable();
            image.durable.resize(image.current.len(), 0);
            Ok(())
        })
    }

    fn truncate(&self, bytes: u64) -> Result<(), DeviceError> {
        self.with(None, |_, image| {
            let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
            image.current.truncate(bytes);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64), "writes start at a block");
        assert!(data.len().is_multiple_of(BLOCK_BYTES), "writes are whole blocks");
        assert!(data.as_ptr().addr().is_multiple_of(BLOCK_BYTES), "buffers are aligned");
        self.with(Some(Operation::Write), |disk, image| {
            self.fits(disk, image, offset + data.len() as u64)?;
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let end = start + data.len();
            if image.current.len() < end {
                image.current.resize(end, 0);
            }
            image.current[start..end].copy_from_slice(data);
            image.unsynced.push((start, data.len()));
            image.unreadable.retain(|block| !(start..end).contains(&(block * BLOCK_BYTES)));
            disk.last_written = Some(self.id);
            disk.writes += 1;
            if let Some(left) = &mut disk.writes_left {
                *left = left.saturating_sub(1);
                disk.dead = *left == 0;
            }
            Ok(())
        })
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.with(Some(Operation::Sync), |disk, image| {
            disk.synced();
            image.make_durable();
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        assert!(offset.is_multiple_of(BLOCK_BYTES as u64), "reads start at a block");
        assert!(data.len().is_multiple_of(BLOCK_BYTES), "reads are whole blocks");
        self.with(Some(Operation::Read), |_, image| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            let end = start.saturating_add(data.len());
            let short = || DeviceError::Short { name: self.name.clone(), end: end as u64 };
            if image.unreadable.iter().any(|block| (start..end).contains(&(block * BLOCK_BYTES))) {
                return Err(failed(&self.name, "input/output error"));
            }
            data.copy_from_slice(image.current.get(start..end).ok_or_else(short)?);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests;
