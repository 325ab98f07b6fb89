//! Defects that the simulation can plant, to show that its checker catches them. None of this is
//! compiled into the product.

/// A planted defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Defect {
    /// A group is answered before it is synced.
    AckBeforeSync,
    /// A write or sync that failed is taken for one that was done.
    FailedSyncIsDone,
    /// A fence is answered at once, and isn't written.
    FenceNotWritten,
    /// Adds are refused only from the sync of a fence on, not from its coming.
    FencedAfterSync,
    /// Damaged entries answer *no such entry*.
    CorruptIsNoSuchEntry,
    /// What may have been in a lost segment answers *no such entry*.
    UnknownIsNoSuchEntry,
    /// A ledger is deleted by what older metadata say.
    OldRevisionAccepted,
    /// A sealed segment's index lacks the last entry.
    IndexLacksLast,
    /// What a segment's file held in its former life is taken for the segment's own: a group passes
    /// with the checksum seed of whichever segment it names.
    OldSeeds,
    /// Segments are freed though the copy of what counts in them isn't synced.
    ReclaimBeforeSync,
}
