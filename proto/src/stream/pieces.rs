//! [`Pieces`]: bytes as they arrived.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes in the pieces in which they arrived. Whatever lies within one piece is taken out of it
/// without copying.
#[derive(Debug, Default)]
pub struct Pieces {
    /// None of them is empty.
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Pieces {
    /// Adds what arrived next.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Takes everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| &piece[..])
    }

    /// # Panics
    /// There are less than `count` bytes, as `Buf` wants it.
    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "{count} bytes of {}", self.len);
        self.len -= count;
        while count > 0 {
            let Some(front) = self.pieces.front_mut() else { return };
            if front.len() > count {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.pieces.pop_front();
        }
    }

    /// # Panics
    /// There are less than `len` bytes, as `Buf` wants it.
    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        assert!(len <= self.len, "{len} bytes of {}", self.len);
        match self.pieces.front_mut() {
            None => Bytes::new(),
            Some(front) if front.len() > len => {
                self.len -= len;
                front.split_to(len)
            }
            Some(front) if front.len() == len => {
                self.len -= len;
                self.pieces.pop_front().unwrap_or_default()
            }
            Some(_) => {
                let mut joined = BytesMut::with_capacity(len);
                joined.put(self.take(len));
                joined.freeze()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_lies_within_one_piece_is_not_copied() {
        let mut pieces = Pieces::default();
        let (first, second) = (Bytes::from(vec![1; 10]), Bytes::from(vec![2; 10]));
        pieces.push(first.clone());
        pieces.push(Bytes::new());
        pieces.push(second.clone());
        assert_eq!(pieces.copy_to_bytes(4).as_ptr(), first.as_ptr());
        assert_eq!(&pieces.copy_to_bytes(8)[..], [1, 1, 1, 1, 1, 1, 2, 2]);
        assert_eq!(pieces.copy_to_bytes(8).as_ptr(), second[2..].as_ptr());
        assert!(!pieces.has_remaining());
        assert_eq!(pieces.copy_to_bytes(0), Bytes::new());
    }

    proptest! {
        #[test]
        fn pieces_read_as_the_bytes_that_they_are(
            parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..9),
            steps in proptest::collection::vec((any::<bool>(), 0..12usize), 0..20),
        ) {
            let mut whole = Bytes::from(parts.concat());
            let mut pieces = Pieces::default();
            for part in parts {
                pieces.push(part.into());
            }
            for (copies, count) in steps {
                let count = count.min(whole.len());
                if copies {
                    prop_assert_eq!(pieces.copy_to_bytes(count), whole.split_to(count));
                } else {
                    pieces.advance(count);
                    whole.advance(count);
                }
                prop_assert_eq!(pieces.remaining(), whole.len());
                prop_assert_eq!(pieces.chunk().is_empty(), whole.is_empty());
                prop_assert!(whole.starts_with(pieces.chunk()));
            }
        }
    }
}
