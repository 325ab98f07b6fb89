//! What a run of the simulation is about.

use crate::harness::mutant::Mutant;

/// What a run is mostly about, so that what is rare by itself happens often enough together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    /// Everything alike.
    Anything,
    /// Copies are lost or damaged, just before somebody takes over.
    Damage,
    /// Fragments move, and bookies drop what isn't theirs any more.
    Repair,
    /// Bookies restart, also right after a ledger was closed.
    Restarts,
    /// Owners die, also while they recover.
    Deaths,
    /// Disks fill up.
    Space,
    /// Links are slow, fences and reads get lost, and there are many take-overs.
    Zombies,
    /// The metadata store loses answers, and goes down with them.
    Metadata,
    /// What is closed is deleted, and those who wrote it come back after a long silence.
    Deletion,
    /// Writers of another time have the ids of ledgers, not their tokens.
    Strangers,
}

impl Theme {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Anything,
        Self::Damage,
        Self::Repair,
        Self::Restarts,
        Self::Deaths,
        Self::Space,
        Self::Zombies,
        Self::Metadata,
        Self::Deletion,
        Self::Strangers,
    ];
}

impl Mutant {
    /// A seed at which it was caught under its theme. Saves the time of those that don't show it; a
    /// change of the simulation may make it worse, never wrong.
    #[must_use]
    pub fn hint(self) -> u64 {
        match self {
            Self::ConflictIgnored => 34,
            Self::UnsettledWriteSpins => 40,
            Self::FullDiskFailsLedger => 10,
            Self::RepairOverwritten => 35,
            Self::RecoveryNotMarked | Self::RecoveryReadsNewEnsemble => 108,
            Self::RecoveryReadDoesNotFence => 244,
            Self::FailedMemberNotRetried => 557,
            Self::LiveLacInRecovery => 3_675,
            Self::RecoveryStartsBeforeFragment | Self::CorruptIsNoSuchEntry => 61,
            Self::LocalChangesLost | Self::WipedBookieReturns => 39,
            Self::RecoversOnlyLastLedger => 65,
            Self::UnknownIsNoSuchEntry => 84,
            Self::UnseenLedgerNotFenced => 153,
            Self::RepairTrustsCopies => 29,
            Self::DropsWhereOwnerWrites => 30,
            _ => 0,
        }
    }

    /// The theme under which the defect shows most often.
    #[must_use]
    pub fn theme(self) -> Theme {
        match self {
            Self::RepairOverwritten
            | Self::RepairIgnoresClaim
            | Self::RepairWithoutClaim
            | Self::RepairTrustsCopies
            | Self::RepairTouchesOpenFragment
            | Self::RepairCopiesBeyondEnd
            | Self::DropsWhereOwnerWrites => Theme::Repair,
            Self::CorruptIsNoSuchEntry | Self::UnknownIsNoSuchEntry | Self::WipedBookieReturns => {
                Theme::Damage
            }
            Self::FenceNotDurable => Theme::Restarts,
            Self::DeletionForgetsFence => Theme::Deletion,
            Self::TokenIgnored => Theme::Strangers,
            Self::FailedMemberNotRetried | Self::FullDiskFailsLedger => Theme::Space,
            Self::LiveLacInRecovery
            | Self::RecoveryReadsNewEnsemble
            | Self::FragmentCommittedMidRecovery
            | Self::LocalChangesLost => Theme::Deaths,
            Self::RecoveryReadDoesNotFence
            | Self::CoverageOffByOne
            | Self::UndecidedIsEnd
            | Self::UnseenLedgerNotFenced
            | Self::FencedBookieTakesAdds
            | Self::FencedIsCleanFailure
            | Self::LoserOverwritesWinner
            | Self::RecoversOnlyLastLedger
            | Self::ServesBeforeListCommit
            | Self::EmptyLedgerEndsAtZero
            | Self::RecoveryNotMarked => Theme::Zombies,
            Self::ReplacedMemberStillCounts
            | Self::UnknownCommitIsFailure
            | Self::ConfirmingWaitsForChange
            | Self::UnsettledWriteSpins
            | Self::AckBeforeChangeCommitted
            | Self::ConflictIgnored => Theme::Metadata,
            Self::AckBelowQuorum
            | Self::OutOfOrderAck
            | Self::MissingCopiesNotMarked
            | Self::LagWithoutLimit
            | Self::FragmentAboveLac
            | Self::NoResend
            | Self::RecoveryStartsBeforeFragment
            | Self::RecoveredNotWrittenBack
            | Self::RecoveryWaitsForAll
            | Self::AckBeforeSync => Theme::Anything,
        }
    }
}
