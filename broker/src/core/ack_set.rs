//! [`AckSet`]: which messages beyond a cursor's first unacknowledged one are acknowledged.
//!
//! It owns a compressed bitmap over *message indexes* (`roaring`). A topic counts its messages
//! without gaps across entries and ledgers, so one set covers whole entries, parts of batches
//! and ledger boundaries alike, and a count of members is a count of messages.
//!
//! Invariant: `count` is the number of members.

use bytes::Bytes;
use geminga_proto::id::MessageIndex;
use roaring::{RoaringBitmap, RoaringTreemap};

/// Message indexes from `start` up to but not including `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IndexRange {
    /// The first.
    pub start: MessageIndex,
    /// One past the last.
    pub end: MessageIndex,
}

impl IndexRange {
    /// The indexes `start..end`.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Self {
        Self { start: MessageIndex(start), end: MessageIndex(end) }
    }

    /// How many they are.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }

    /// True if there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Members of one piece of a set when it is written to the state log: indexes that share all but
/// their lowest 22 bits, so at most 512 KiB serialized.
const PIECE_BITS: u32 = 22;

/// A set of message indexes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AckSet {
    set: RoaringTreemap,
    count: u64,
}

const fn split(index: u64) -> (u32, u32) {
    ((index >> 32) as u32, index as u32)
}

const fn join(high: u32, low: u32) -> u64 {
    ((high as u64) << 32) | low as u64
}

impl AckSet {
    /// Number of members.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.count
    }

    /// True if it has no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a range; answers how many were not members before.
    pub fn insert(&mut self, range: IndexRange) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let added = self.set.insert_range(range.start.0..range.end.0);
        self.count += added;
        added
    }

    /// Members within a range.
    #[must_use]
    pub fn count_in(&self, range: IndexRange) -> u64 {
        if range.is_empty() || self.is_empty() {
            return 0;
        }
        self.set.range_cardinality(range.start.0..range.end.0)
    }

    /// True if `index` is a member.
    #[must_use]
    pub fn contains(&self, index: u64) -> bool {
        !self.is_empty() && self.set.contains(index)
    }

    /// The lowest member at or above `index`.
    #[must_use]
    pub fn next_member(&self, index: u64) -> Option<u64> {
        let (high, low) = split(index);
        for (key, bitmap) in self.set.bitmaps().skip_while(|(key, _)| *key < high) {
            let from = if key == high { low } else { 0 };
            if let Some(found) = bitmap.range(from..).next() {
                return Some(join(key, found));
            }
        }
        None
    }

    /// The lowest index at or above `index` that is not a member.
    #[must_use]
    pub fn next_gap(&self, index: u64) -> u64 {
        let mut at = index;
        for (key, bitmap) in self.set.bitmaps() {
            let (high, low) = split(at);
            if key < high {
                continue;
            }
            match bitmap.range(low..).next_range() {
                Some(run) if key == high && *run.start() == low => {
                    at = join(key, *run.end()) + 1;
                    if *run.end() != u32::MAX {
                        return at;
                    }
                }
                _ => return at,
            }
        }
        at
    }

    /// Appends to `out` the parts of `range` that are not members.
    pub fn missing(&self, range: IndexRange, out: &mut Vec<IndexRange>) {
        let mut at = range.start.0;
        while at < range.end.0 {
            let member = self.next_member(at).unwrap_or(u64::MAX).min(range.end.0);
            if member > at {
                out.push(IndexRange::new(at, member));
            }
            if member == range.end.0 {
                return;
            }
            at = self.next_gap(member);
        }
    }

    /// Removes every member below `index`.
    pub fn remove_below(&mut self, index: u64) {
        if self.is_empty() || index == 0 {
            return;
        }
        self.count -= self.set.remove_range(..index);
        if self.is_empty() {
            // Lets go of the emptied containers: most cursors are idle most of the time.
            self.set = RoaringTreemap::new();
        }
    }

    /// The members of `range` as bits from the lowest of the first byte on, without trailing
    /// zero bytes.
    #[must_use]
    pub fn bits(&self, range: IndexRange) -> Vec<u8> {
        let mut bytes = vec![0_u8; usize::try_from(range.len().div_ceil(8)).unwrap_or(0)];
        let mut at = range.start.0;
        while let Some(member) = self.next_member(at).filter(|member| *member < range.end.0) {
            let end = self.next_gap(member).min(range.end.0);
            for index in member..end {
                set_bit(&mut bytes, index - range.start.0);
            }
            at = end;
        }
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        bytes
    }

    /// The first non-empty piece after `after`: pieces are small enough for a record each.
    #[must_use]
    pub fn next_piece(&self, after: Option<PieceKey>) -> Option<(PieceKey, AckSetPiece)> {
        let from = after.map_or(0, |key| (key.0 + 1) << PIECE_BITS);
        let first = self.next_member(from)?;
        let key = PieceKey(first >> PIECE_BITS);
        let (high, low) = split(key.0 << PIECE_BITS);
        let (_, bitmap) = self.set.bitmaps().find(|(found, _)| *found == high)?;
        let mut part = RoaringBitmap::new();
        let mut members = bitmap.range(low..=low | ((1 << PIECE_BITS) - 1));
        while let Some(run) = members.next_range() {
            part.insert_range(run);
        }
        part.optimize();
        Some((key, AckSetPiece { high, part }))
    }

    /// The set in pieces; none if it is empty.
    pub fn pieces(&self) -> impl Iterator<Item = AckSetPiece> + '_ {
        let next = |(key, _): &(PieceKey, AckSetPiece)| self.next_piece(Some(*key));
        std::iter::successors(self.next_piece(None), next).map(|(_, piece)| piece)
    }

    /// Adds the members of a piece.
    pub fn merge(&mut self, piece: AckSetPiece) {
        let piece = RoaringTreemap::from_bitmaps([(piece.high, piece.part)]);
        self.set |= piece;
        self.count = self.set.len();
    }
}

/// Which part of the indexes a piece covers: their bits above the lowest 22.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceKey(u64);

/// A part of an [`AckSet`].
#[derive(Debug, Clone, PartialEq)]
pub struct AckSetPiece {
    high: u32,
    part: RoaringBitmap,
}

/// The bytes are not a piece of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bitmap can't be decoded")]
pub struct PieceError;

impl AckSetPiece {
    /// Its bytes: the high 32 bits of its indexes (little-endian), then the low ones in Roaring's
    /// portable format.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + self.part.serialized_size());
        out.extend_from_slice(&self.high.to_le_bytes());
        self.part.serialize_into(&mut out).expect("a Vec takes every write");
        out
    }

    /// Reads what [`AckSetPiece::encode`] wrote.
    ///
    /// # Errors
    /// [`PieceError`] if it isn't that.
    pub fn decode(bytes: &[u8]) -> Result<Self, PieceError> {
        let (high, mut rest) = bytes.split_first_chunk::<4>().ok_or(PieceError)?;
        let high = u32::from_le_bytes(*high);
        // Ids and offsets stay in the signed range.
        if high >> 31 != 0 {
            return Err(PieceError);
        }
        let part = RoaringBitmap::deserialize_from(&mut rest).map_err(|_| PieceError)?;
        if !rest.is_empty() {
            return Err(PieceError);
        }
        Ok(Self { high, part })
    }
}

/// Sets bit `bit` of `bytes`, lowest of the first byte first.
fn set_bit(bytes: &mut [u8], bit: u64) {
    let byte = usize::try_from(bit / 8).ok().and_then(|at| bytes.get_mut(at));
    if let Some(byte) = byte {
        *byte |= 1 << (bit % 8);
    }
}

/// Bits `0..count` set.
#[must_use]
pub fn prefix_bits(count: u32) -> Bytes {
    let mut bytes = vec![0xff_u8; (count / 8) as usize];
    if !count.is_multiple_of(8) {
        bytes.push((1 << (count % 8)) - 1);
    }
    bytes.into()
}

/// Reads a client's bitmap over an entry of `messages` messages whose first has `first_index`:
/// appends the runs of set bits to `out`. `None` if a bit is set that has no message.
#[must_use]
pub fn runs_of_bits(
    bits: &[u8],
    first_index: MessageIndex,
    messages: u32,
    out: &mut Vec<IndexRange>,
) -> Option<()> {
    let mut run: Option<IndexRange> = None;
    for (at, byte) in bits.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        for bit in (0..8_u64).filter(|bit| byte >> bit & 1 == 1) {
            let offset = at as u64 * 8 + bit;
            if offset >= u64::from(messages) {
                return None;
            }
            let index = first_index.0 + offset;
            match &mut run {
                Some(open) if open.end.0 == index => open.end = MessageIndex(index + 1),
                _ => out.extend(run.replace(IndexRange::new(index, index + 1))),
            }
        }
    }
    out.extend(run);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn a_set_agrees_with_a_plain_set_of_numbers(
            base in prop_oneof![Just(0_u64), Just((1 << 32) - 50), Just((1 << 22) - 50)],
            ops in prop::collection::vec((0_u64..100, 0_u64..20, any::<bool>()), 0..40),
        ) {
            let mut set = AckSet::default();
            let mut model = BTreeSet::new();
            for (start, len, insert) in ops {
                let range = IndexRange::new(base + start, base + start + len);
                if insert {
                    let before = model.len();
                    model.extend(range.start.0..range.end.0);
                    prop_assert_eq!(set.insert(range), (model.len() - before) as u64);
                } else {
                    set.remove_below(range.start.0);
                    model.retain(|index| *index >= range.start.0);
                }
                prop_assert_eq!(set.len(), model.len() as u64);
                let mut missing = Vec::new();
                set.missing(range, &mut missing);
                let expected: Vec<u64> =
                    (range.start.0..range.end.0).filter(|index| !model.contains(index)).collect();
                let found: Vec<u64> =
                    missing.iter().flat_map(|part| part.start.0..part.end.0).collect();
                prop_assert_eq!(&found, &expected);
                prop_assert_eq!(set.count_in(range), range.len() - expected.len() as u64);
                let gap = (range.start.0..).find(|index| !model.contains(index));
                prop_assert_eq!(Some(set.next_gap(range.start.0)), gap);
                let mut runs = Vec::new();
                let bits = set.bits(range);
                runs_of_bits(&bits, range.start, len as u32, &mut runs).expect("within");
                let from_bits: Vec<u64> =
                    runs.iter().flat_map(|run| run.start.0..run.end.0).collect();
                let members: Vec<u64> = model.range(range.start.0..range.end.0).copied().collect();
                prop_assert_eq!(from_bits, members);
            }
            let mut copy = AckSet::default();
            for piece in set.pieces() {
                let bytes = piece.encode();
                copy.merge(AckSetPiece::decode(&bytes).expect("just encoded"));
                prop_assert!(AckSetPiece::decode(&bytes[..bytes.len() - 1]).is_err());
            }
            prop_assert_eq!(copy, set);
        }

        #[test]
        fn bytes_that_are_no_piece_are_refused_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Ok(piece) = AckSetPiece::decode(&bytes) {
                prop_assert_eq!(AckSetPiece::decode(&piece.encode()), Ok(piece));
            }
        }
    }

    #[test]
    fn a_bit_beyond_the_batch_is_refused() {
        let mut runs = Vec::new();
        assert_eq!(runs_of_bits(&[0b1010], MessageIndex(10), 3, &mut runs), None);
        runs.clear();
        assert_eq!(runs_of_bits(&[0b0110, 0], MessageIndex(10), 3, &mut runs), Some(()));
        assert_eq!(runs, [IndexRange::new(11, 13)]);
        assert_eq!(&prefix_bits(11)[..], [0xff, 0b111]);
    }

    #[test]
    fn a_million_holes_take_a_fraction_of_a_megabyte() {
        let mut set = AckSet::default();
        for index in 0..1_000_000 {
            set.insert(IndexRange::new(index * 2, index * 2 + 1));
        }
        let bytes: usize = set.pieces().map(|piece| piece.encode().len()).sum();
        assert!(bytes < 400_000, "{bytes}");
    }
}
