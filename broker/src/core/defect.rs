//! Defects that the simulation can plant, to show that its checker catches them. None of this is
//! compiled into the product.

/// A planted defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Defect {
    /// An ack receipt is sent before its change is durable.
    ReceiptBeforeDurable,
    /// Single acknowledgements aren't logged, only what is acknowledged without a hole.
    HolesNotLogged,
    /// The logged cursor is a message ahead of what was acknowledged.
    CursorAhead,
    /// The entry after the last confirmed one is confirmed and dispatched, too.
    BeyondLac,
    /// Ledgers are trimmed without a look at the cursors.
    TrimPastCursors,
    /// The next ledger is written into the topic's list whoever has written that meanwhile.
    ListConflictIgnored,
    /// What recovery of a failed ledger didn't find isn't appended again.
    RestNotAppended,
    /// The next index counts the entries of a recovered ledger, not their messages.
    IndexCountsEntries,
    /// A state log that can't be read is taken for an empty one.
    UnreadableIsEmpty,
    /// A state log's changes are complete as soon as they are sent.
    StateLogBeforeConfirmed,
    /// A state log is trimmed up to the end of its last snapshot, not up to its beginning: past the
    /// one cursor that a broker keeps for itself.
    TrimPastSnapshot,
    /// A bundle is taken without a lease, and only then is it seen whether there is one.
    LeaseCheckedAfter,
}
