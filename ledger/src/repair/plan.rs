//! [`plan`]: what has to be copied from where to where, so that a ledger has all its copies again;
//! or what is in the way. No I/O; chance comes in as a function.
//!
//! - A member *leaves* a fragment if it is being drained, or if it is gone and the task says so.
//!   One that is only away for a moment stays, and nothing is copied for it.
//! - In its place comes a bookie that takes writes, in the zone that has fewest of the others.
//! - A ledger that was made with fewer bookies than it should have is widened once it is closed:
//!   its write quorum and all its ensembles in one change. That is safe only then: of a closed
//!   ledger nobody asks any more which entries its bookies lack, so its quorums decide nothing.
//! - Of a ledger that may lack copies every member is looked at, and sent what it can't read.
//!
//! Invariants: the last fragment of a ledger that isn't closed stays as it is; nothing is copied
//! beyond the end of a closed ledger; a bookie that comes into a fragment gets every entry of it;
//! no ensemble gets smaller, and no member leaves one without another in its place.

use std::fmt;

use geminga_meta::record::{RepairReason, RepairRecord};
use geminga_proto::id::{BookieId, EntryId};

use crate::metadata::{Fragment, LedgerMetadata, LedgerState};
use crate::placement::choice::{Candidate, Want, choose, crowd};
use crate::placement::{BookieView, ClusterView};

/// Which entries of a run are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum How {
    /// Every one, whatever the bookie has.
    All,
    /// Every one that another bookie has, since they were said to be damaged here; one that nobody
    /// else has counts if it can be read here all the same. A disk that fails for a while makes
    /// copies look damaged that are whole.
    Damaged,
    /// Those that the bookie can't read.
    Missing,
}

/// A run of entries that a bookie is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyRun {
    /// The first entry.
    pub first: EntryId,
    /// The last one.
    pub last: EntryId,
    /// Who gets it.
    pub to: BookieId,
    /// Who may have it, in the order in which they are asked.
    pub from: Vec<BookieId>,
    /// Which of them are sent.
    pub how: How,
}

/// A fragment's new ensemble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The fragment's first entry.
    pub first_entry: EntryId,
    /// Its ensemble as it was read.
    pub before: Vec<BookieId>,
    /// And as it will be.
    pub after: Vec<BookieId>,
}

/// What is in the way of a whole repair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// No bookie that has entries from here on is up.
    NoCopy(EntryId),
    /// There are not enough bookies that could have copies.
    TooFewBookies {
        /// How many more are needed for one fragment.
        lacking: usize,
    },
    /// A bookie that has copies is away, but not for long enough to be given up.
    Away(BookieId),
    /// The entries lie where the ledger's owner may still write.
    StillOpen,
    /// More bookies would be needed than one task may name; the rest comes next time.
    TooManyTargets,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCopy(entry) => {
                write!(out, "no bookie that has entries from {entry} on is up")
            }
            Self::TooFewBookies { lacking } => {
                write!(out, "{lacking} more bookies that take writes are needed")
            }
            Self::Away(bookie) => {
                write!(out, "bookie {bookie} is away; what it has is looked at when it is back")
            }
            Self::StillOpen => out.write_str("the ledger is still open where copies are to move"),
            Self::TooManyTargets => out.write_str("more bookies take part than one task may name"),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is copied, in this order.
    pub copies: Vec<CopyRun>,
    /// What changes in the record once that is done.
    pub moves: Vec<Moved>,
    /// The write quorum afterwards.
    pub write_quorum: u32,
    /// Afterwards every entry has all its copies, so the record needn't say otherwise any more.
    pub clears_mark: bool,
    /// Bookies that get copies though the record doesn't name them for these: what a claim names.
    /// Sorted, each once.
    pub targets: Vec<BookieId>,
    /// What can't be done now.
    pub obstacles: Vec<Obstacle>,
    /// Reasons that will still hold afterwards.
    pub left: Vec<RepairReason>,
}

impl Plan {
    /// Whether it changes or copies anything.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.copies.is_empty() || !self.moves.is_empty() || self.clears_mark
    }

    /// Whether it does nothing but look at copies once more, and the record's mark stays: not worth
    /// doing again and again.
    #[must_use]
    pub fn only_looks(&self) -> bool {
        let looks = |run: &CopyRun| run.how == How::Missing;
        self.moves.is_empty() && !self.clears_mark && self.copies.iter().all(looks)
    }

    /// The record as it will be, given as it is now; `None` if it has changed so that the plan
    /// doesn't fit any more.
    #[must_use]
    pub fn applied_to(&self, metadata: &LedgerMetadata) -> Option<LedgerMetadata> {
        let mut changed = metadata.clone();
        let touchable = touchable(metadata);
        for moved in &self.moves {
            let fragment = changed.fragments.iter_mut().take(touchable).find(|fragment| {
                fragment.first_entry == moved.first_entry && fragment.bookies == moved.before
            })?;
            fragment.bookies.clone_from(&moved.after);
        }
        let closed = metadata.state == LedgerState::Closed;
        if self.write_quorum != changed.write_quorum {
            if !closed {
                return None;
            }
            changed.write_quorum = self.write_quorum;
        }
        if self.clears_mark {
            if !closed {
                return None;
            }
            changed.under_replicated = false;
        }
        changed.validate().ok().map(|()| changed)
    }
}

/// How many fragments, from the first on, repair may touch.
#[must_use]
pub fn touchable(metadata: &LedgerMetadata) -> usize {
    match metadata.state {
        LedgerState::Closed => metadata.fragments.len(),
        LedgerState::Open | LedgerState::InRecovery => metadata.fragments.len().saturating_sub(1),
    }
}

/// The entries of a fragment that repair may touch; `None`: it has none.
#[must_use]
pub fn entries_of(metadata: &LedgerMetadata, index: usize) -> Option<(EntryId, EntryId)> {
    let first = metadata.fragments.get(index)?.first_entry;
    let last = match metadata.fragments.get(index + 1) {
        Some(next) => next.first_entry.previous()?,
        None => metadata.last_entry.0?,
    };
    (first <= last).then_some((first, last))
}

/// What the ledger needs. `want`: how many copies entries should have.
pub fn plan(
    metadata: &LedgerMetadata,
    reasons: &[RepairReason],
    view: &ClusterView,
    want: u32,
    below: &mut dyn FnMut(u64) -> u64,
) -> Plan {
    let write_quorum = metadata.write_quorum;
    let plan = Plan { write_quorum, ..Plan::default() };
    let mut planner = Planner { metadata, reasons, view, below, plan };
    planner.plan_moves(want);
    planner.plan_mending();
    planner.plan_mark(want);
    planner.plan_left();
    planner.plan
}

struct Planner<'a> {
    metadata: &'a LedgerMetadata,
    reasons: &'a [RepairReason],
    view: &'a ClusterView,
    below: &'a mut dyn FnMut(u64) -> u64,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn is_closed(&self) -> bool {
        self.metadata.state == LedgerState::Closed
    }

    /// Its copies are to lie elsewhere.
    fn leaves(&self, bookie: &BookieId) -> bool {
        let gone = || self.reasons.contains(&RepairReason::Missing(bookie.clone()));
        self.view.is_draining(bookie) || (!self.view.is_up(bookie) && gone())
    }

    fn obstacle(&mut self, obstacle: Obstacle) {
        if !self.plan.obstacles.contains(&obstacle) {
            self.plan.obstacles.push(obstacle);
        }
    }

    /// Who may have copies of a fragment and can be asked; those that stay first.
    fn sources(&self, fragment: &Fragment, but: &BookieId) -> Vec<BookieId> {
        let up = |bookie: &&BookieId| self.view.is_up(bookie) && *bookie != but;
        let mut sources: Vec<BookieId> = fragment.bookies.iter().filter(up).cloned().collect();
        let suspect = |bookie: &BookieId| self.view.get(bookie).is_some_and(|view| view.suspect);
        sources.sort_by_key(|bookie| (suspect(bookie), self.leaves(bookie)));
        sources
    }

    fn candidates(&self, fragment: &Fragment) -> Vec<&'a BookieView> {
        let fits = |view: &&BookieView| {
            view.takes && !view.suspect && !fragment.bookies.contains(&view.bookie)
        };
        self.view.bookies.iter().filter(fits).collect()
    }

    /// Members that leave a fragment, by position.
    fn leaving(&self, fragment: &Fragment) -> Vec<usize> {
        let leaves = |at: &usize| self.leaves(&fragment.bookies[*at]);
        let mut leaving: Vec<usize> = (0..fragment.bookies.len()).filter(leaves).collect();
        let asked = self.reasons.contains(&RepairReason::Placement);
        if asked
            && leaving.is_empty()
            && let Some(at) = in_one_zone(fragment, self.view)
        {
            leaving.push(at);
        }
        leaving
    }

    /// How many bookies more each ensemble can have.
    fn widening(&mut self, want: u32) -> usize {
        let more = want.saturating_sub(self.metadata.write_quorum) as usize;
        if more == 0 || !self.is_closed() || !self.metadata.under_replicated {
            return 0;
        }
        let room = |fragment: &Fragment| {
            self.candidates(fragment).len().saturating_sub(self.leaving(fragment).len())
        };
        let room = self.metadata.fragments.iter().map(room).min().unwrap_or(0);
        if room < more {
            self.obstacle(Obstacle::TooFewBookies { lacking: more - room });
        }
        more.min(room)
    }

    fn plan_moves(&mut self, want: u32) {
        let more = self.widening(want);
        for index in 0..touchable(self.metadata) {
            if self.plan_move(index, more).is_none() && more > 0 {
                // Ensembles are widened all or none.
                self.plan.copies.clear();
                self.plan.moves.clear();
                self.plan.targets.clear();
                return;
            }
        }
        self.plan.write_quorum += u32::try_from(more).unwrap_or(0);
        self.plan.targets.sort_unstable();
    }

    /// Who leaves a fragment and who comes, with `more` bookies besides; `None` if that can't be.
    fn plan_move(&mut self, index: usize, more: usize) -> Option<()> {
        let metadata = self.metadata;
        let fragment = metadata.fragments.get(index)?;
        let leaving = self.leaving(fragment);
        if leaving.is_empty() && more == 0 {
            return Some(());
        }
        let entries = entries_of(metadata, index);
        let has_copy = fragment.bookies.iter().any(|bookie| self.view.is_up(bookie));
        if let (Some((first, _)), false) = (entries, has_copy) {
            self.obstacle(Obstacle::NoCopy(first));
            return None;
        }
        let picked = self.pick(fragment, &leaving, leaving.len() + more)?;
        if picked.is_empty() {
            return None;
        }
        // Widening first: where there are too few, who was to leave stays.
        let (wider, instead) = picked.split_at(more.min(picked.len()));
        let mut after = fragment.bookies.clone();
        for (at, bookie) in leaving.iter().zip(instead) {
            after[*at] = bookie.clone();
        }
        after.extend(wider.iter().cloned());
        if let Some((first, last)) = entries {
            for bookie in &picked {
                let (to, from) = (bookie.clone(), self.sources(fragment, bookie));
                self.plan.copies.push(CopyRun { first, last, to, from, how: How::All });
            }
        }
        let (first_entry, before) = (fragment.first_entry, fragment.bookies.clone());
        self.plan.moves.push(Moved { first_entry, before, after });
        Some(())
    }

    /// Bookies that come into a fragment, `count` if there are so many; those that have come into
    /// another fragment before others like them. `None`: a task can't name so many.
    fn pick(
        &mut self,
        fragment: &Fragment,
        leaving: &[usize],
        count: usize,
    ) -> Option<Vec<BookieId>> {
        let stays = |(at, _): &(usize, &BookieId)| !leaving.contains(at);
        let staying = fragment.bookies.iter().enumerate().filter(stays);
        let view = self.view;
        let zone = |bookie: &BookieId| view.get(bookie).map(|view| view.zone.as_str());
        let mut taken: Vec<&str> = staying.filter_map(|(_, bookie)| zone(bookie)).collect();
        let mut left = self.candidates(fragment);
        let mut picked: Vec<BookieId> = Vec::new();
        let mut targets = std::mem::take(&mut self.plan.targets);
        while picked.len() < count && !left.is_empty() {
            let least = left.iter().map(|view| crowd(&taken, &view.zone)).min().unwrap_or(0);
            let best = |view: &&&BookieView| crowd(&taken, &view.zone) == least;
            let best: Vec<&BookieView> = left.iter().filter(best).copied().collect();
            let known = best.iter().find(|view| targets.contains(&view.bookie)).copied();
            let Some(chosen) = known.or_else(|| draw(&best, self.below)) else { break };
            left.retain(|view| view.bookie != chosen.bookie);
            taken.push(&chosen.zone);
            picked.push(chosen.bookie.clone());
        }
        let fresh = picked.iter().filter(|bookie| !targets.contains(bookie)).count();
        let fits = targets.len() + fresh <= RepairRecord::MAX_TARGETS;
        if fits {
            for bookie in &picked {
                if !targets.contains(bookie) {
                    targets.push(bookie.clone());
                }
            }
        }
        self.plan.targets = targets;
        if !fits {
            self.obstacle(Obstacle::TooManyTargets);
            return None;
        }
        if picked.len() < count {
            self.obstacle(Obstacle::TooFewBookies { lacking: count - picked.len() });
        }
        Some(picked)
    }

    /// Members that stay and may lack entries, or can't read them, are sent these.
    fn plan_mending(&mut self) {
        let metadata = self.metadata;
        let marked = self.is_closed() && metadata.under_replicated;
        for index in 0..touchable(metadata) {
            let (fragment, entries) = (&metadata.fragments[index], entries_of(metadata, index));
            let Some((first, last)) = entries else { continue };
            let after = self.plan.moves.iter().find(|it| it.first_entry == fragment.first_entry);
            let after = after.map_or(&fragment.bookies, |moved| &moved.after);
            let staying = fragment.bookies.iter().filter(|bookie| after.contains(bookie));
            for bookie in staying.cloned().collect::<Vec<_>>() {
                let from = self.sources(fragment, &bookie);
                let mut runs = self.damaged(&bookie, first, last);
                if marked {
                    runs.push((first, last, How::Missing));
                }
                if runs.is_empty() {
                    continue;
                }
                if !self.view.is_up(&bookie) {
                    if !self.leaves(&bookie) {
                        self.obstacle(Obstacle::Away(bookie));
                    }
                } else {
                    if from.is_empty() {
                        // What was said to be damaged is looked at all the same.
                        runs.retain(|(_, _, how)| *how == How::Damaged);
                        // A ledger with one copy has nobody to compare with.
                        if metadata.write_quorum > 1 && marked {
                            self.obstacle(Obstacle::NoCopy(first));
                        }
                    }
                    let run = |(first, last, how)| {
                        let (to, from) = (bookie.clone(), from.clone());
                        CopyRun { first, last, to, from, how }
                    };
                    self.plan.copies.extend(runs.into_iter().map(run));
                }
            }
        }
    }

    /// What is damaged on a bookie between two entries.
    fn damaged(
        &self,
        bookie: &BookieId,
        from: EntryId,
        to: EntryId,
    ) -> Vec<(EntryId, EntryId, How)> {
        let within = |reason: &RepairReason| match reason {
            RepairReason::Damaged { bookie: other, first, last } if other == bookie => {
                let (first, last) = ((*first).max(from), (*last).min(to));
                (first <= last).then_some((first, last, How::Damaged))
            }
            _ => None,
        };
        self.reasons.iter().filter_map(within).collect()
    }

    fn plan_mark(&mut self, want: u32) {
        let whole = self.plan.obstacles.is_empty() && self.plan.write_quorum >= want;
        // Who leaves and has nobody in its place is an obstacle; who is away, too.
        self.plan.clears_mark = self.is_closed() && self.metadata.under_replicated && whole;
    }

    /// Which reasons will still hold.
    fn plan_left(&mut self) {
        let metadata = self.metadata;
        let untouched = metadata.fragments.get(touchable(metadata)..).unwrap_or_default();
        let mut still_open = false;
        let mut left = Vec::new();
        for reason in self.reasons {
            let holds = match reason {
                RepairReason::Missing(bookie) => {
                    !self.view.is_up(bookie) && self.names_after(bookie)
                }
                RepairReason::Draining(bookie) => {
                    let open = untouched.iter().any(|fragment| fragment.bookies.contains(bookie));
                    still_open |= open && self.view.is_draining(bookie);
                    self.view.is_draining(bookie) && (open || self.names_after(bookie))
                }
                RepairReason::Damaged { bookie, first, last } => {
                    let open = untouched.iter().any(|fragment| {
                        fragment.bookies.contains(bookie) && *last >= fragment.first_entry
                    });
                    still_open |= open;
                    open || !self.mends(bookie, *first, *last)
                }
                RepairReason::AckQuorumOnly => {
                    self.is_closed() && metadata.under_replicated && !self.plan.clears_mark
                }
                // The auditor says so again once something can be done about it.
                RepairReason::Placement => false,
            };
            if holds {
                left.push(reason.clone());
            }
        }
        self.plan.left = left;
        if still_open {
            self.obstacle(Obstacle::StillOpen);
        }
    }

    /// Whether a fragment that may be touched will still name the bookie.
    fn names_after(&self, bookie: &BookieId) -> bool {
        let after = |fragment: &Fragment| {
            let same = |moved: &&Moved| moved.first_entry == fragment.first_entry;
            let moved = self.plan.moves.iter().find(same);
            moved.map_or(&fragment.bookies, |moved| &moved.after).contains(bookie)
        };
        self.metadata.fragments[..touchable(self.metadata)].iter().any(after)
    }

    /// Whether what is damaged on a bookie is sent to it again, where it is still to have it.
    fn mends(&self, bookie: &BookieId, first: EntryId, last: EntryId) -> bool {
        (0..touchable(self.metadata)).all(|index| {
            let Some((from, to)) = entries_of(self.metadata, index) else { return true };
            let (from, to) = (first.max(from), last.min(to));
            let fragment = &self.metadata.fragments[index];
            let same = |moved: &&Moved| moved.first_entry == fragment.first_entry;
            let moved = self.plan.moves.iter().find(same);
            let after = moved.map_or(&fragment.bookies, |moved| &moved.after);
            let stays = fragment.bookies.contains(bookie) && after.contains(bookie);
            let sent = |copy: &CopyRun| {
                let holds = copy.first <= from && to <= copy.last;
                copy.to == *bookie && holds && copy.how == How::Damaged
            };
            from > to || !stays || self.plan.copies.iter().any(sent)
        })
    }
}

/// One of these, by free space.
fn draw<'a>(among: &[&'a BookieView], below: &mut dyn FnMut(u64) -> u64) -> Option<&'a BookieView> {
    let candidate = |view: &&'a BookieView| Candidate {
        zone: &view.zone,
        free_bytes: view.free_bytes,
        suspect: false,
    };
    let candidates: Vec<Candidate<'_>> = among.iter().map(candidate).collect();
    let one = Want { most: 1, with_suspects: 0 };
    choose(&candidates, &[], one, below).first().map(|at| among[*at])
}

/// If all members of a fragment are up and in one zone, and a bookie of another zone could be had:
/// the position of the one that had better leave. One that is away may be of another zone, and is
/// back in a moment, or given up and replaced. Having no zone is none: bookies that are
/// given one, one after the other, must not set everything in motion.
#[must_use]
pub fn in_one_zone(fragment: &Fragment, view: &ClusterView) -> Option<usize> {
    let up = |(at, bookie): (usize, &BookieId)| Some((at, view.get(bookie)?));
    let up: Vec<(usize, &BookieView)> =
        fragment.bookies.iter().enumerate().filter_map(up).collect();
    let zone = up.first()?.1.zone.as_str();
    let all = up.len() > 1 && up.len() == fragment.bookies.len();
    let alike = all && !zone.is_empty() && up.iter().all(|(_, view)| view.zone == zone);
    let elsewhere = view.bookies.iter().any(|other| {
        let fits = other.takes && !other.suspect && !fragment.bookies.contains(&other.bookie);
        fits && other.zone != zone && !other.zone.is_empty()
    });
    // The fullest: it gains the most.
    let fullest = up.iter().min_by_key(|(_, view)| view.free_bytes).map(|(at, _)| *at);
    fullest.filter(|_| alike && elsewhere)
}

#[cfg(test)]
mod tests;
