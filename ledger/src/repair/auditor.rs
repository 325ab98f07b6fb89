//! [`Auditor`]: what is to be repaired, out of what is seen in the metadata. No I/O; time comes in.
//!
//! It looks at all ledgers again and again. A bookie counts as gone once it was missing in every
//! look for as long as the grace period: an auditor that has just begun knows nothing of before, so
//! it waits for the whole of it. What was queued for reasons that don't hold any more, and that
//! nobody is at, is taken out of the queue.
//!
//! Invariants: what others have found (damage) is never taken out of the queue here; a bookie that
//! is drained counts as done only when two looks in a row, each at all ledgers, have found its name
//! nowhere and the bookie not up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use geminga_meta::record::{RepairReason, RepairRecord};
use geminga_proto::env::Monotonic;
use geminga_proto::id::BookieId;

use crate::metadata::{LedgerMetadata, LedgerState};
use crate::placement::ClusterView;
use crate::repair::plan::{in_one_zone, touchable};

/// Looks without a trace of a drained bookie before it counts as done.
const CLEAN_LOOKS: u32 = 2;

/// What is to be done about a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// These reasons are to be in the queue.
    Queue(Vec<RepairReason>),
    /// It needs nothing any more.
    Dequeue,
}

/// The state machine.
#[derive(Debug)]
pub struct Auditor {
    grace: Duration,
    now: Monotonic,
    view: ClusterView,
    /// Bookies that ledgers name and that aren't up: since when.
    absent: BTreeMap<BookieId, Monotonic>,
    /// Names that this look has met.
    met: BTreeSet<BookieId>,
    /// Drained bookies: how many looks in a row have found nothing of them.
    clean: BTreeMap<BookieId, u32>,
}

impl Auditor {
    /// One that has seen nothing yet.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        Self {
            grace,
            now: Monotonic::default(),
            view: ClusterView::default(),
            absent: BTreeMap::new(),
            met: BTreeSet::new(),
            clean: BTreeMap::new(),
        }
    }

    /// A look at all ledgers begins; these bookies are there.
    pub fn begin(&mut self, now: Monotonic, view: ClusterView) {
        self.now = now;
        self.absent.retain(|bookie, _| !view.is_up(bookie));
        self.clean.retain(|bookie, _| view.is_draining(bookie));
        self.view = view;
        self.met.clear();
    }

    /// Whether what a bookie has is to be copied elsewhere because it is gone.
    fn is_gone(&mut self, bookie: &BookieId) -> bool {
        if self.view.is_up(bookie) {
            return false;
        }
        let since = *self.absent.entry(bookie.clone()).or_insert(self.now);
        self.now.saturating_sub(since) >= self.grace
    }

    /// A ledger, and what is queued of it.
    pub fn ledger(&mut self, metadata: &LedgerMetadata, task: Option<&RepairRecord>) -> Verdict {
        for fragment in &metadata.fragments {
            self.met.extend(fragment.bookies.iter().cloned());
        }
        if let Some(claim) = task.and_then(|task| task.claim.as_ref()) {
            self.met.extend(claim.targets.iter().cloned());
        }
        let reasons = self.reasons(metadata);
        match task {
            None if reasons.is_empty() => Verdict::Keep,
            None => Verdict::Queue(reasons),
            Some(task) => {
                let new = reasons.iter().any(|reason| !task.reasons.contains(reason));
                let found = |reason| matches!(reason, &RepairReason::Damaged { .. });
                let stale = reasons.is_empty() && !task.reasons.iter().any(found);
                if new {
                    Verdict::Queue(reasons)
                } else if stale && task.claim.is_none() {
                    Verdict::Dequeue
                } else {
                    Verdict::Keep
                }
            }
        }
    }

    fn reasons(&mut self, metadata: &LedgerMetadata) -> Vec<RepairReason> {
        let mut reasons = BTreeSet::new();
        let closed = metadata.state == LedgerState::Closed;
        // A bookie that may be back in a moment: what it lacks can't be looked at now.
        let mut away = false;
        for (index, fragment) in metadata.fragments.iter().enumerate() {
            let may_touch = index < touchable(metadata);
            for bookie in &fragment.bookies {
                if self.view.is_draining(bookie) {
                    // Also where the owner may still write: it is to go on elsewhere.
                    reasons.insert(RepairReason::Draining(bookie.clone()));
                } else if self.is_gone(bookie) {
                    if may_touch {
                        reasons.insert(RepairReason::Missing(bookie.clone()));
                    }
                } else {
                    away |= !self.view.is_up(bookie);
                }
            }
            if may_touch && in_one_zone(fragment, &self.view).is_some() {
                reasons.insert(RepairReason::Placement);
            }
        }
        if closed && metadata.under_replicated && !away {
            reasons.insert(RepairReason::AckQuorumOnly);
        }
        reasons.into_iter().collect()
    }

    /// A task whose ledger isn't there: its claim is still a claim, until it is taken out of the
    /// queue.
    pub fn orphan(&mut self, task: &RepairRecord) {
        if let Some(claim) = &task.claim {
            self.met.extend(claim.targets.iter().cloned());
        }
    }

    /// The look is over. `whole`: it was at all ledgers. Answers which of the drained bookies no
    /// ledger names any more.
    pub fn end(&mut self, whole: bool) -> Vec<BookieId> {
        let met = &self.met;
        if whole {
            self.absent.retain(|bookie, _| met.contains(bookie));
        }
        let mut done = Vec::new();
        for bookie in &self.view.draining {
            let looks = self.clean.entry(bookie.clone()).or_default();
            // One that has lost its registration for a moment registers again.
            let clean = whole && !met.contains(bookie) && !self.view.is_up(bookie);
            *looks = if clean { looks.saturating_add(1) } else { 0 };
            if *looks >= CLEAN_LOOKS {
                done.push(bookie.clone());
            }
        }
        done
    }
}

#[cfg(test)]
mod tests;
