//! [`Pieces`]: bytes as they arrived.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Pieces below this size are copied together: one of few bytes may keep a whole buffer of the
/// connection in memory, and a peer may send as many of them as it likes.
const COPIED_BELOW: usize = 4 * 1024;
/// How much is copied into one piece.
const JOINED_BYTES: usize = 64 * 1024;

/// Bytes in the pieces in which they arrived. What lies within one large piece is taken out of it
/// without copying.
///
/// Invariant: memory is in proportion to the bytes, however small the pieces are.
#[derive(Debug, Default)]
pub struct Pieces {
    /// None of them is empty.
    pieces: VecDeque<Bytes>,
    /// Behind `pieces`: small ones, as long as no large one follows.
    small: BytesMut,
    len: usize,
}

impl Pieces {
    /// Adds what arrived next.
    pub fn push(&mut self, piece: Bytes) {
        self.len += piece.len();
        // A message of its own stays as it is: nothing else would be joined to it.
        if piece.len() < COPIED_BELOW && !(self.pieces.is_empty() && self.small.is_empty()) {
            self.small.extend_from_slice(&piece);
            if self.small.len() >= JOINED_BYTES {
                self.pieces.push_back(self.small.split().freeze());
            }
        } else if !piece.is_empty() {
            self.flush();
            self.pieces.push_back(piece);
        }
    }

    /// Nothing is in `small` afterwards.
    fn flush(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push_back(self.small.split().freeze());
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
        self.pieces.front().map_or(&self.small[..], |piece| &piece[..])
    }

    /// # Panics
    /// There are less than `count` bytes, as `Buf` wants it.
    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "{count} bytes of {}", self.len);
        self.len -= count;
        while count > 0 {
            if self.pieces.is_empty() {
                self.flush();
            }
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
        if self.pieces.is_empty() {
            self.flush();
        }
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
    fn what_lies_within_one_large_piece_is_not_copied() {
        let mut pieces = Pieces::default();
        let (first, second) = (Bytes::from(vec![1; 5_000]), Bytes::from(vec![2; 5_000]));
        pieces.push(first.clone());
        pieces.push(Bytes::new());
        pieces.push(second.clone());
        assert_eq!(pieces.copy_to_bytes(4_994).as_ptr(), first.as_ptr());
        assert_eq!(&pieces.copy_to_bytes(8)[..], [1, 1, 1, 1, 1, 1, 2, 2]);
        assert_eq!(pieces.copy_to_bytes(4_998).as_ptr(), second[2..].as_ptr());
        assert!(!pieces.has_remaining());
        assert_eq!(pieces.copy_to_bytes(0), Bytes::new());
    }

    #[test]
    fn a_message_in_very_small_pieces_takes_little_more_than_its_bytes() {
        let mut pieces = Pieces::default();
        let buffer = Bytes::from(vec![3; 1 << 20]);
        for at in 0..1 << 20 {
            pieces.push(buffer.slice(at..=at));
        }
        assert!(pieces.pieces.len() <= (1 << 20) / JOINED_BYTES + 1);
        assert_eq!(pieces.copy_to_bytes(1 << 20), buffer);
    }

    proptest! {
        #[test]
        fn pieces_read_as_the_bytes_that_they_are(
            parts in proptest::collection::vec(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..9),
                    (any::<u8>(), 4_090..4_100usize).prop_map(|(byte, len)| vec![byte; len]),
                ],
                0..9,
            ),
            steps in proptest::collection::vec(
                (any::<bool>(), prop_oneof![0..12usize, 4_000..9_000usize]),
                0..20,
            ),
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
