//! [`Change`]: what an owner has under way to change the record of its ledger, and [`Attempt`], the
//! one write of it that may be unsettled.

use geminga_proto::id::{BookieId, EntryId, Lac};

use crate::engine::quorum::SlotSet;
use crate::metadata::LedgerMetadata;

/// What a write of the record is to achieve.
#[derive(Debug, Clone)]
pub(in crate::engine) enum Goal {
    /// From `first` on, entries go to `bookies`, which differ from the members at `slots`.
    Ensemble { first: EntryId, bookies: Vec<BookieId>, slots: SlotSet },
    /// The ledger ends.
    Close { last_entry: Lac, bytes: u64 },
}

/// A write of the record that isn't settled. It never changes, so that however often it is
/// repeated only one outcome is possible.
#[derive(Debug, Clone)]
pub(in crate::engine) struct Attempt {
    pub goal: Goal,
    /// It may have been applied.
    pub unknown: bool,
    /// Times that it was sent and neither applied nor refused for certain.
    pub unsettled: u32,
}

impl Attempt {
    pub(in crate::engine) fn new(goal: Goal) -> Self {
        Self { goal, unknown: false, unsettled: 0 }
    }

    /// Positions whose answers can't confirm until the outcome is known.
    pub(in crate::engine) fn slots(&self) -> SlotSet {
        match self.goal {
            Goal::Ensemble { slots, .. } => slots,
            Goal::Close { .. } => SlotSet::EMPTY,
        }
    }

    pub(in crate::engine) fn applied_to(&self, metadata: &LedgerMetadata) -> LedgerMetadata {
        let mut changed = metadata.clone();
        match &self.goal {
            Goal::Ensemble { first, bookies, .. } => {
                changed.change_ensemble(*first, bookies.clone());
            }
            Goal::Close { last_entry, bytes } => changed.close_at(*last_entry, *bytes),
        }
        changed
    }
}

/// What is under way to change the record.
#[derive(Debug)]
pub(in crate::engine) enum Change {
    Idle,
    /// Placement is asked.
    Picking,
    /// The write is sent.
    Committing {
        attempt: Attempt,
        written: LedgerMetadata,
    },
    /// The record is being read, because of a conflict, an unknown outcome, or to see whether
    /// the store is back.
    Reading {
        attempt: Option<Attempt>,
    },
    /// Nothing could be done; to be tried again. `read_first`: the store didn't answer.
    Waiting {
        ticks_left: u32,
        attempt: Option<Attempt>,
        read_first: bool,
    },
}

impl Change {
    pub(in crate::engine) fn attempt(&self) -> Option<&Attempt> {
        match self {
            Self::Committing { attempt, .. } => Some(attempt),
            Self::Reading { attempt } | Self::Waiting { attempt, .. } => attempt.as_ref(),
            Self::Idle | Self::Picking => None,
        }
    }

    /// A write that changes the ensemble is unsettled.
    pub(in crate::engine) fn is_ensemble(&self) -> bool {
        matches!(self.attempt(), Some(Attempt { goal: Goal::Ensemble { .. }, .. }))
    }

    /// No write of the record is unsettled.
    pub(in crate::engine) fn may_be_dropped(&self) -> bool {
        self.attempt().is_none()
    }
}
