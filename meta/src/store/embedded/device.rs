//! [`ZeroedFile`]: the file under redb, whose blocks are written before they are used.
//!
//! A file that is only made longer has holes, and a sync of data in a hole has to commit the file
//! system's journal, which takes some twenty times as long as a sync of data alone. So growth
//! writes zeros: redb doubles its file, which makes that cheap. A large growth, and one that the
//! disk has no room for yet, leaves a hole all the same: slower, but redb needs few of the blocks
//! at once. Locks are not this file's business: the directory has one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use redb::StorageBackend;

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// A larger growth leaves a hole: writing it would stop the store for a second.
const MAX_FILL_BYTES: u64 = 256 << 20;

/// A file whose growth is written out.
#[derive(Debug)]
pub(super) struct ZeroedFile {
    file: File,
}

impl ZeroedFile {
    pub(super) fn new(file: File) -> Self {
        Self { file }
    }

    /// Whether the disk has twice as much left.
    fn has_room(&self, bytes: u64) -> io::Result<bool> {
        let stat = rustix::fs::fstatvfs(&self.file)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize) / 2 >= bytes)
    }

    fn fill(&self, mut from: u64, to: u64) -> io::Result<()> {
        while from < to {
            let left = usize::try_from(to - from).unwrap_or(usize::MAX);
            let zeros = ZEROS.get(..left).unwrap_or(&ZEROS);
            self.file.write_all_at(zeros, from)?;
            from += zeros.len() as u64;
        }
        // What was filled must be on the disk for later syncs to be cheap.
        self.file.sync_all()
    }
}

impl StorageBackend for ZeroedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        let growth = len.saturating_sub(before);
        if !(1..=MAX_FILL_BYTES).contains(&growth) || !self.has_room(growth)? {
            return self.file.set_len(len);
        }
        self.fill(before, len).inspect_err(|_| {
            // Gives back what the attempt took; if that fails too, the growth's error says more.
            let _second_error = self.file.set_len(before);
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_that_grows_has_no_holes_and_keeps_what_it_held() {
        let file = ZeroedFile::new(tempfile::tempfile().expect("a temporary file"));
        file.set_len(100_000).expect("grown");
        file.write(99_990, b"0123456789").expect("written");
        file.set_len(1_000_001).expect("grown");
        assert_eq!(file.len().expect("known"), 1_000_001);
        let mut read = [1; 20];
        file.read(99_990, &mut read).expect("read");
        assert_eq!(&read, b"0123456789\0\0\0\0\0\0\0\0\0\0");
        let blocks = file.file.metadata().expect("known").blocks();
        assert!(blocks * 512 >= 1_000_001, "{blocks} blocks of 512 bytes");
        file.set_len(1_000_001 + MAX_FILL_BYTES + 1).expect("grown, with a hole");
        let after = file.file.metadata().expect("known").blocks();
        assert!(after < blocks + 1_000, "{after} blocks");
        file.set_len(10).expect("shrunk");
        assert_eq!(file.len().expect("known"), 10);
        assert!(file.read(0, &mut [0; 11]).is_err(), "a read beyond the end");
    }
}
