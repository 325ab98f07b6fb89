//! [`AlignedBuffer`]: memory that direct I/O accepts, without unsafe code.
//!
//! A vector one block longer than needed always contains a block-aligned run of the wanted
//! length, and a vector's heap memory does not move until it grows.

use bytes::Bytes;

use super::BLOCK_BYTES;

/// A zeroed, block-aligned buffer whose length is a multiple of the block.
#[derive(Debug, Default)]
pub struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    /// A buffer of at least `bytes`, rounded up to whole blocks.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let len = super::whole_blocks(bytes);
        let memory = vec![0; if len == 0 { 0 } else { len + BLOCK_BYTES }];
        let start = Self::aligned_start(&memory);
        Self { memory, start, len }
    }

    /// `align_offset` may in theory decline to answer; then the address itself is asked.
    fn aligned_start(memory: &[u8]) -> usize {
        if memory.is_empty() {
            return 0;
        }
        let misaligned = memory.as_ptr().addr() % BLOCK_BYTES;
        if misaligned == 0 { 0 } else { BLOCK_BYTES - misaligned }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there is not one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes the buffer at least `bytes` long and keeps what it holds.
    pub fn grow(&mut self, bytes: usize) {
        if bytes <= self.len {
            return;
        }
        let mut larger = Self::new(bytes.max(self.len.saturating_mul(2)));
        larger.as_mut_slice()[..self.len].copy_from_slice(self.as_slice());
        *self = larger;
    }

    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// The bytes, to write to.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// The bytes as a shared buffer, without copying.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        let (start, len) = (self.start, self.len);
        Bytes::from(self.memory).slice(start..start + len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_is_aligned_and_keeps_its_bytes_when_it_grows_or_is_shared() {
        for bytes in [0, 1, 4096, 4097, 100_000] {
            let mut buffer = AlignedBuffer::new(bytes);
            assert!(buffer.len() >= bytes && buffer.len().is_multiple_of(BLOCK_BYTES));
            buffer.as_mut_slice().fill(7);
            let before = buffer.len();
            buffer.grow(before + 1);
            assert!(buffer.as_slice()[..before].iter().all(|byte| *byte == 7));
            assert_eq!(buffer.as_slice().as_ptr().addr() % BLOCK_BYTES, 0);
            let shared = buffer.into_bytes();
            assert_eq!(shared.as_ptr().addr() % BLOCK_BYTES, 0);
            assert!(shared[..before].iter().all(|byte| *byte == 7));
        }
    }
}
