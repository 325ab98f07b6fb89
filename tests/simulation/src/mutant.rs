//! Defects that can be planted in the real code, to show that the checker catches them, and where
//! each is looked for.

use geminga_bookie::defect::Defect as OfBookie;
use geminga_broker::core::defect::Defect as OfBroker;
use geminga_ledger::repair::defect::Defect as OfRepair;

use crate::theme::Theme;

/// A planted defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// In every bookie.
    Bookie(OfBookie),
    /// In every broker.
    Broker(OfBroker),
    /// In every worker that repairs.
    Repair(OfRepair),
    /// A bookie starts on whatever disk there is.
    CookieUnchecked,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 25] = [
        Self::Bookie(OfBookie::AckBeforeSync),
        Self::Bookie(OfBookie::FailedSyncIsDone),
        Self::Bookie(OfBookie::FenceNotWritten),
        Self::Bookie(OfBookie::FencedAfterSync),
        Self::Bookie(OfBookie::CorruptIsNoSuchEntry),
        Self::Bookie(OfBookie::UnknownIsNoSuchEntry),
        Self::Bookie(OfBookie::OldRevisionAccepted),
        Self::Bookie(OfBookie::IndexLacksLast),
        Self::Bookie(OfBookie::OldSeeds),
        Self::Bookie(OfBookie::ReclaimBeforeSync),
        Self::CookieUnchecked,
        Self::Broker(OfBroker::ReceiptBeforeDurable),
        Self::Broker(OfBroker::HolesNotLogged),
        Self::Broker(OfBroker::CursorAhead),
        Self::Broker(OfBroker::BeyondLac),
        Self::Broker(OfBroker::TrimPastCursors),
        Self::Broker(OfBroker::ListConflictIgnored),
        Self::Broker(OfBroker::RestNotAppended),
        Self::Broker(OfBroker::IndexCountsEntries),
        Self::Broker(OfBroker::UnreadableIsEmpty),
        Self::Broker(OfBroker::StateLogBeforeConfirmed),
        Self::Broker(OfBroker::TrimPastSnapshot),
        Self::Broker(OfBroker::LeaseCheckedAfter),
        Self::Repair(OfRepair::NothingCopied),
        Self::Repair(OfRepair::CopyNotAwaited),
    ];

    /// The theme under which the defect shows most often.
    #[must_use]
    pub fn theme(self) -> Theme {
        match self {
            Self::Bookie(defect) => match defect {
                OfBookie::AckBeforeSync | OfBookie::OldSeeds | OfBookie::ReclaimBeforeSync => {
                    Theme::Power
                }
                OfBookie::FailedSyncIsDone
                | OfBookie::CorruptIsNoSuchEntry
                | OfBookie::UnknownIsNoSuchEntry => Theme::Disks,
                OfBookie::FenceNotWritten | OfBookie::FencedAfterSync => Theme::Zombies,
                OfBookie::OldRevisionAccepted => Theme::Metadata,
                OfBookie::IndexLacksLast => Theme::Rolling,
            },
            Self::CookieUnchecked => Theme::Disks,
            Self::Repair(_) => Theme::Losses,
            Self::Broker(defect) => match defect {
                OfBroker::ReceiptBeforeDurable
                | OfBroker::TrimPastSnapshot
                | OfBroker::StateLogBeforeConfirmed
                | OfBroker::HolesNotLogged
                | OfBroker::CursorAhead
                | OfBroker::BeyondLac
                | OfBroker::IndexCountsEntries
                | OfBroker::TrimPastCursors => Theme::Crashes,
                OfBroker::ListConflictIgnored => Theme::Zombies,
                OfBroker::LeaseCheckedAfter => Theme::Clocks,
                OfBroker::UnreadableIsEmpty => Theme::Power,
                OfBroker::RestNotAppended => Theme::Partitions,
            },
        }
    }

    /// A seed at which it was caught under its theme. Saves the time of those that don't show it; a
    /// change of the simulation may make it worse, never wrong.
    #[must_use]
    pub fn hint(self) -> u64 {
        match self {
            Self::Bookie(OfBookie::CorruptIsNoSuchEntry) => 149,
            Self::Broker(OfBroker::ListConflictIgnored) => 49,
            Self::Bookie(OfBookie::FailedSyncIsDone) => 48,
            Self::Bookie(OfBookie::FenceNotWritten) => 10,
            Self::Bookie(OfBookie::FencedAfterSync) => 20,
            Self::Bookie(OfBookie::UnknownIsNoSuchEntry) => 12,
            Self::Bookie(OfBookie::OldRevisionAccepted) => 4,
            Self::CookieUnchecked => 2,
            Self::Broker(OfBroker::ReceiptBeforeDurable) => 25,
            Self::Broker(OfBroker::UnreadableIsEmpty) => 10,
            Self::Broker(OfBroker::StateLogBeforeConfirmed) => 52,
            Self::Broker(OfBroker::TrimPastSnapshot) => 49,
            Self::Broker(OfBroker::LeaseCheckedAfter) => 74,
            Self::Repair(OfRepair::NothingCopied) => 1,
            Self::Repair(OfRepair::CopyNotAwaited) => 110,
            Self::Broker(OfBroker::RestNotAppended) => 17,
            Self::Bookie(_) | Self::Broker(_) => 0,
        }
    }

    pub(crate) fn of_repair(self) -> Option<OfRepair> {
        if let Self::Repair(defect) = self { Some(defect) } else { None }
    }

    pub(crate) fn of_bookie(self) -> Option<OfBookie> {
        if let Self::Bookie(defect) = self { Some(defect) } else { None }
    }

    pub(crate) fn of_broker(self) -> Option<OfBroker> {
        if let Self::Broker(defect) = self { Some(defect) } else { None }
    }
}
