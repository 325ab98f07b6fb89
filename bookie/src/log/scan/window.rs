//! [`Window`]: a file seen through a buffer that reads ahead, and around blocks that can't be read.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::device::{AlignedBuffer, BLOCK_BYTES, DeviceError, DeviceFile};

/// Blocks are read ahead in pieces of this size.
const READ_AHEAD_BYTES: usize = 1 << 20;
/// A file with more blocks that can't be read is left alone: each costs a disk seconds.
const MAX_UNREADABLE: usize = 1024;

/// A file seen through a buffer. Blocks that can't be read are zeros in it.
pub(super) struct Window<'a> {
    file: &'a dyn DeviceFile,
    start: u64,
    buffer: AlignedBuffer,
    end: u64,
    /// Offsets of blocks that can't be read.
    unreadable: BTreeSet<u64>,
}

impl<'a> Window<'a> {
    /// The first `end` bytes of `file`, whole blocks.
    pub(super) fn new(file: &'a dyn DeviceFile, end: u64) -> Self {
        let buffer = AlignedBuffer::default();
        Self { file, start: 0, buffer, end, unreadable: BTreeSet::new() }
    }

    /// `len` bytes at `offset`, both whole blocks; `None` beyond the end.
    pub(super) fn get(&mut self, offset: u64, len: usize) -> Result<Option<&[u8]>, DeviceError> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.end) {
            return Ok(None);
        }
        let inside =
            offset >= self.start && offset + len as u64 <= self.start + self.buffer.len() as u64;
        if !inside {
            let left = usize::try_from(self.end - offset).unwrap_or(usize::MAX);
            let mut buffer = AlignedBuffer::new(len.max(READ_AHEAD_BYTES).min(left));
            let range = offset..offset + buffer.len() as u64;
            let whole = if self.has_unreadable(range) {
                None
            } else {
                self.file.read_at(offset, buffer.as_mut_slice()).ok()
            };
            if whole.is_none() {
                self.read_blocks(offset, &mut buffer)?;
            }
            (self.start, self.buffer) = (offset, buffer);
        }
        let at = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        Ok(self.buffer.as_slice().get(at..at + len))
    }

    /// True if a block of this range, which was looked at, can't be read.
    pub(super) fn has_unreadable(&self, range: Range<u64>) -> bool {
        self.unreadable.range(range).next().is_some()
    }

    fn read_blocks(&mut self, offset: u64, buffer: &mut AlignedBuffer) -> Result<(), DeviceError> {
        let mut one = AlignedBuffer::new(BLOCK_BYTES);
        let starts = (offset..).step_by(BLOCK_BYTES);
        for (at, out) in starts.zip(buffer.as_mut_slice().chunks_exact_mut(BLOCK_BYTES)) {
            out.fill(0);
            if self.unreadable.contains(&at) {
                continue;
            }
            match self.file.read_at(at, one.as_mut_slice()) {
                Ok(()) => out.copy_from_slice(one.as_slice()),
                Err(error) if self.unreadable.len() >= MAX_UNREADABLE => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, offset = at, "a block of a segment can't be read");
                    self.unreadable.insert(at);
                }
            }
        }
        Ok(())
    }
}
