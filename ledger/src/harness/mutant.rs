//! Defects that the harness can plant, to show that its checker catches them. None of this is
//! compiled into a build without the harness.

/// A planted defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// The owner confirms entries with one answer less than the ack quorum.
    AckBelowQuorum,
    /// The owner confirms an entry as soon as it has its ack quorum, not waiting for earlier ones.
    OutOfOrderAck,
    /// The owner uses a new ensemble before the metadata has it.
    AckBeforeChangeCommitted,
    /// A new fragment starts above the entries that are pending, not at LAC+1.
    FragmentAboveLac,
    /// Answers of a replaced bookie count for the new fragment.
    ReplacedMemberStillCounts,
    /// A replacement is not sent the pending entries, but taken to have them.
    NoResend,
    /// The owner takes a compare-and-swap conflict for success.
    ConflictIgnored,
    /// The owner takes an unknown outcome of an ensemble change for *not applied*.
    UnknownCommitIsFailure,
    /// The owner confirms nothing while it waits for the metadata store.
    ConfirmingWaitsForChange,
    /// The owner repeats a write whose outcome is unknown without a pause.
    UnsettledWriteSpins,
    /// The owner reports pending entries as not stored when it is fenced.
    FencedIsCleanFailure,
    /// The owner's merge of a repair's change undoes the repair.
    RepairOverwritten,
    /// The owner doesn't record that confirmed entries lack copies.
    MissingCopiesNotMarked,
    /// A bookie may lag without a limit.
    LagWithoutLimit,
    /// A ledger fails when it has waited for disk space for long.
    FullDiskFailsLedger,
    /// A failed bookie is never tried again.
    FailedMemberNotRetried,
    /// Recovery begins without marking the record.
    RecoveryNotMarked,
    /// Recovery waits for every bookie to answer, also for those that it can do without.
    RecoveryWaitsForAll,
    /// Recovery reads don't fence.
    RecoveryReadDoesNotFence,
    /// Coverage is complete one answer too early.
    CoverageOffByOne,
    /// Recovery takes an unknown, corrupt or missing answer for *no such entry*.
    UndecidedIsEnd,
    /// Recovery writes back with the last-add-confirmed of its own writes.
    LiveLacInRecovery,
    /// Recovery commits its ensemble changes before the ledger is closed.
    FragmentCommittedMidRecovery,
    /// Recovery reads from the ensemble that it writes to.
    RecoveryReadsNewEnsemble,
    /// Recovery takes *nothing confirmed* for entry 0.
    EmptyLedgerEndsAtZero,
    /// Recovery starts at LAC+1 even if that lies before the last fragment.
    RecoveryStartsBeforeFragment,
    /// Recovery doesn't write back what it found.
    RecoveredNotWrittenBack,
    /// Recovery repeats a closing compare-and-swap that it lost.
    LoserOverwritesWinner,
    /// Recovery closes without writing its own ensemble changes.
    LocalChangesLost,
    /// Take-over recovers the last ledger only.
    RecoversOnlyLastLedger,
    /// Take-over writes before the list of ledgers is its own.
    ServesBeforeListCommit,
    /// A bookie answers *no such entry* for a damaged one.
    CorruptIsNoSuchEntry,
    /// A bookie with a missing segment answers *no such entry*.
    UnknownIsNoSuchEntry,
    /// A wiped bookie comes back under its old identity.
    WipedBookieReturns,
    /// A bookie answers adds before they are durable.
    AckBeforeSync,
    /// A bookie forgets a fence in a crash.
    FenceNotDurable,
    /// A bookie doesn't fence a ledger that it has never seen.
    UnseenLedgerNotFenced,
    /// A fenced bookie takes ordinary adds.
    FencedBookieTakesAdds,
    /// A bookie forgets the fence of a ledger that it deletes.
    DeletionForgetsFence,
    /// A bookie takes adds whose token is not the ledger's.
    TokenIgnored,
    /// A repair writes the record although its claim is another's by now.
    RepairIgnoresClaim,
    /// A repair sends copies to bookies that its claim doesn't name.
    RepairWithoutClaim,
    /// A repair leaves copies alone that are where it sends others, though nobody has to keep them.
    RepairTrustsCopies,
    /// A repair moves the last fragment of an open ledger.
    RepairTouchesOpenFragment,
    /// A repair copies what lies beyond a closed ledger's end.
    RepairCopiesBeyondEnd,
    /// A bookie drops copies also where the owner may still write.
    DropsWhereOwnerWrites,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 46] = [
        Self::AckBelowQuorum,
        Self::OutOfOrderAck,
        Self::AckBeforeChangeCommitted,
        Self::FragmentAboveLac,
        Self::ReplacedMemberStillCounts,
        Self::NoResend,
        Self::ConflictIgnored,
        Self::UnknownCommitIsFailure,
        Self::ConfirmingWaitsForChange,
        Self::UnsettledWriteSpins,
        Self::FencedIsCleanFailure,
        Self::RepairOverwritten,
        Self::MissingCopiesNotMarked,
        Self::LagWithoutLimit,
        Self::FullDiskFailsLedger,
        Self::FailedMemberNotRetried,
        Self::RecoveryNotMarked,
        Self::RecoveryWaitsForAll,
        Self::RecoveryReadDoesNotFence,
        Self::CoverageOffByOne,
        Self::UndecidedIsEnd,
        Self::LiveLacInRecovery,
        Self::FragmentCommittedMidRecovery,
        Self::RecoveryReadsNewEnsemble,
        Self::EmptyLedgerEndsAtZero,
        Self::RecoveryStartsBeforeFragment,
        Self::RecoveredNotWrittenBack,
        Self::LoserOverwritesWinner,
        Self::LocalChangesLost,
        Self::RecoversOnlyLastLedger,
        Self::ServesBeforeListCommit,
        Self::CorruptIsNoSuchEntry,
        Self::UnknownIsNoSuchEntry,
        Self::WipedBookieReturns,
        Self::AckBeforeSync,
        Self::FenceNotDurable,
        Self::UnseenLedgerNotFenced,
        Self::FencedBookieTakesAdds,
        Self::DeletionForgetsFence,
        Self::TokenIgnored,
        Self::RepairIgnoresClaim,
        Self::RepairWithoutClaim,
        Self::RepairTrustsCopies,
        Self::RepairTouchesOpenFragment,
        Self::RepairCopiesBeyondEnd,
        Self::DropsWhereOwnerWrites,
    ];
}
