//! [`LedgerTable`]: what the log knows of each ledger, in memory.
//!
//! Owns the one place where a ledger's token, fence, last-add-confirmed and sealed segments are
//! kept. Compact: a ledger with one sealed entry costs about 150 bytes.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use geminga_proto::id::{EntryId, Lac, LedgerId, LedgerToken, SegmentId};

use super::footer::Row;

/// Mixes ids that a coordinator hands out in sequence. Not random, so that a run can be repeated;
/// nobody who could choose colliding ids is let near a bookie.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

pub(crate) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;
pub(crate) type IdSet<K> = std::collections::HashSet<K, BuildHasherDefault<IdHasher>>;

/// How far the fencing of a ledger is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fence {
    #[default]
    None,
    /// A fence is on its way to the disk: adds are refused, nobody has been told.
    Pending,
    Durable,
}

/// What a sealed segment holds of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentRef {
    pub segment: SegmentId,
    pub first_entry: EntryId,
    pub last_entry: EntryId,
    pub first_index: u32,
    /// 0: only a fence or a state.
    pub count: u32,
    /// What these entries take, in bytes.
    pub stored_bytes: u64,
}

/// One ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub token: LedgerToken,
    pub fence: Fence,
    /// Highest last-add-confirmed that any add carried, in wire form.
    lac: i64,
    /// Sealed segments, oldest first.
    pub refs: Vec<SegmentRef>,
}

impl Ledger {
    pub(crate) fn new(token: LedgerToken) -> Self {
        Self { token, fence: Fence::None, lac: Lac::NONE.to_wire(), refs: Vec::new() }
    }

    pub(crate) fn lac(&self) -> Lac {
        Lac::from_wire(self.lac)
    }

    pub(crate) fn raise_lac(&mut self, lac: Lac) {
        self.lac = self.lac.max(lac.to_wire());
    }

    pub(crate) fn raise_fence(&mut self, fence: Fence) {
        self.fence = self.fence.max(fence);
    }

    /// Adds what a segment holds: the newest one, but for one that was lost and is there again.
    pub(crate) fn insert_ref(&mut self, segment: SegmentId, row: &Row) {
        // Most ledgers live in one segment; doubling would waste three places on each.
        self.refs.reserve_exact(1);
        let at = self.refs.partition_point(|held| held.segment < segment);
        let held = SegmentRef {
            segment,
            first_entry: row.first_entry,
            last_entry: row.last_entry,
            first_index: row.first_index,
            count: row.count,
            stored_bytes: row.stored_bytes,
        };
        self.refs.insert(at, held);
    }
}

/// All ledgers with at least one record in the log or on its way there.
pub(crate) type LedgerTable = IdMap<LedgerId, Ledger>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_with_one_sealed_entry_is_small() {
        // Table row and one reference with its allocation; the map itself is at most 16/7 full.
        let row = size_of::<(LedgerId, Ledger)>() + 1;
        let sealed = size_of::<SegmentRef>() + 16;
        assert!(row * 16 / 10 + sealed <= 200, "{row} + {sealed}");
    }

    #[test]
    fn fences_and_confirmations_only_rise() {
        let mut ledger = Ledger::new(LedgerToken(1));
        ledger.raise_lac(Lac(Some(EntryId(4))));
        ledger.raise_lac(Lac::NONE);
        ledger.raise_fence(Fence::Durable);
        ledger.raise_fence(Fence::Pending);
        assert_eq!((ledger.lac(), ledger.fence), (Lac(Some(EntryId(4))), Fence::Durable));
    }
}
