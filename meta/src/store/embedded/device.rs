//! [`ZeroedFile`]: the file under redb, whose blocks are all written before they are used.
//!
//! A file that is only made longer has holes, and a sync of data in a hole has to commit the file
//! system's journal, which takes some twenty times as long as a sync of data alone. So growth
//! writes zeros: redb doubles its file, which makes that cheap, and a full disk shows itself
//! there, before a commit has begun to write. Locks are not this file's business: the directory
//! has one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use redb::StorageBackend;

static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// A file without holes.
#[derive(Debug)]
pub(super) struct ZeroedFile {
    file: File,
}

impl ZeroedFile {
    pub(super) fn new(file: File) -> Self {
        Self { file }
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
        if len <= before {
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
        file.set_len(10).expect("shrunk");
        assert_eq!(file.len().expect("known"), 10);
        assert!(file.read(0, &mut [0; 11]).is_err(), "a read beyond the end");
    }
}
