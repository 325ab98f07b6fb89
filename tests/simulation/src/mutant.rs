//! Defects that can be planted in the real code, to show that the checker catches them, and where
//! each is looked for.

use geminga_bookie::defect::Defect as OfBookie;
use geminga_broker::core::defect::Defect as OfBroker;

use crate::theme::Theme;

/// A planted defect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// In every bookie.
    Bookie(OfBookie),
    /// In every broker.
    Broker(OfBroker),
    /// A bookie starts on whatever disk there is.
    CookieUnchecked,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Self; 19] = [
        Self::Bookie(OfBookie::AckBeforeSync),
        Self::Bookie(OfBookie::FailedSyncIsDone),
        Self::Bookie(OfBookie::FenceNotWritten),
        Self::Bookie(OfBookie::FencedAfterSync),
        Self::Bookie(OfBookie::CorruptIsNoSuchEntry),
        Self::Bookie(OfBookie::UnknownIsNoSuchEntry),
        Self::Bookie(OfBookie::OldRevisionAccepted),
        Self::Bookie(OfBookie::IndexLacksLast),
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
    ];

    /// The theme under which the defect shows most often.
    #[must_use]
    pub fn theme(self) -> Theme {
        match self {
            Self::Bookie(defect) => match defect {
                OfBookie::AckBeforeSync => Theme::Power,
                OfBookie::FailedSyncIsDone
                | OfBookie::CorruptIsNoSuchEntry
                | OfBookie::UnknownIsNoSuchEntry => Theme::Disks,
                OfBookie::FenceNotWritten | OfBookie::FencedAfterSync => Theme::Zombies,
                OfBookie::OldRevisionAccepted => Theme::Metadata,
                OfBookie::IndexLacksLast => Theme::Rolling,
            },
            Self::CookieUnchecked => Theme::Disks,
            Self::Broker(defect) => match defect {
                OfBroker::ReceiptBeforeDurable
                | OfBroker::StateLogBeforeConfirmed
                | OfBroker::HolesNotLogged
                | OfBroker::CursorAhead
                | OfBroker::BeyondLac
                | OfBroker::IndexCountsEntries
                | OfBroker::TrimPastCursors => Theme::Crashes,
                OfBroker::ListConflictIgnored => Theme::Zombies,
                OfBroker::RestNotAppended | OfBroker::UnreadableIsEmpty => Theme::Power,
            },
        }
    }

    pub(crate) fn of_bookie(self) -> Option<OfBookie> {
        if let Self::Bookie(defect) = self { Some(defect) } else { None }
    }

    pub(crate) fn of_broker(self) -> Option<OfBroker> {
        if let Self::Broker(defect) = self { Some(defect) } else { None }
    }
}
