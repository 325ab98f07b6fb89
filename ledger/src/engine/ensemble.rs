//! How an open ledger's bookies fail, are tried again, and are replaced; and the one
//! compare-and-swap on the ledger's record that its owner may have under way.
//!
//! - A bookie that refuses an add, is silent for the timeout or lags too far counts as failed and
//!   is sent nothing. What it has acknowledged stays true and counts while it is in the ensemble.
//! - A bookie that refuses because too much is pending, and that the ledger can't do without, is
//!   sent less instead, as it answers what it has.
//! - Placement picks a replacement; a fragment from LAC+1 with it is committed; then, and never
//!   before, the replacement is sent the entries from LAC+1 on.
//! - While that write is under way only members of the old *and* the new ensemble confirm, so that
//!   either outcome is right, and a metadata store that doesn't answer holds up no entry that they
//!   have. The same write is repeated until its outcome is known: once at once, then at intervals
//!   that grow, since a store that answers *unknown* has enough to do.
//! - Without a replacement, or without the metadata store, the ensemble stays; the ledger goes on
//!   while an ack quorum answers. At intervals the failed bookie is tried again with one entry
//!   (a bookie may miss confirmed entries: its *no such entry* is true), and a replacement is
//!   looked for again.
//! - With no ack quorum left the ledger stalls. Waiting for disk space has no limit, because
//!   space comes back when consumers acknowledge; anything else fails the ledger in time.
//! - A conflict is resolved by reading: not open any more means another owner, and the ledger is
//!   given up; otherwise a repair changed an older fragment, and its change is kept.

use geminga_meta::record::LedgerRecord;
use geminga_proto::id::{BookieId, EntryId};
use geminga_proto::storage::BookieError;

use crate::engine::append::{AppendEngine, ENTRY_OVERHEAD_BYTES, Mode};
use crate::engine::quorum::SlotSet;
use crate::engine::{Command, CommitAnswer, MetadataAnswer, Versioned, planted};
use crate::metadata::LedgerState;
use crate::observer::{StallReason, WriterFailure};

mod change;

pub(super) use change::{Attempt, Change, Goal};

/// The pause before an unsettled write is repeated grows up to eight times the usual one.
const MOST_DOUBLINGS: u32 = 3;

/// One position of the ensemble.
#[derive(Debug)]
pub(super) struct Member {
    pub bookie: BookieId,
    pub state: MemberState,
    /// The last refusal, kept while it is tried again.
    pub last_error: Option<BookieError>,
    /// Adds sent and not answered.
    pub owed_entries: u64,
    /// Of these, the bytes that are confirmed without it.
    pub lag_bytes: u64,
    /// Answered since the last tick.
    pub heard: bool,
    pub silent_ticks: u32,
    /// While throttled: no entry before this one has to be sent.
    pub missing_from: EntryId,
}

/// Whether a member is sent new entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemberState {
    Live,
    /// It has more than it takes, and the ledger can't do without it: it is sent entries as it
    /// answers others.
    Throttled,
    /// It failed, and was sent one entry to see whether it works again.
    Probing,
    Failed,
}

impl Member {
    pub(super) fn new(bookie: BookieId) -> Self {
        Self {
            bookie,
            state: MemberState::Live,
            last_error: None,
            owed_entries: 0,
            lag_bytes: 0,
            heard: false,
            silent_ticks: 0,
            missing_from: EntryId(0),
        }
    }
}

/// Whether the same bookie may take the same add later.
fn may_recover(error: BookieError) -> bool {
    match error {
        BookieError::DiskFull
        | BookieError::ReadOnly
        | BookieError::Overloaded
        | BookieError::Io
        | BookieError::Unreachable => true,
        BookieError::Fenced
        | BookieError::WrongToken
        | BookieError::NoSuchEntry
        | BookieError::UnknownEntry
        | BookieError::CorruptEntry
        | BookieError::TooLarge
        | BookieError::Invalid => false,
    }
}

impl AppendEngine {
    fn live(&self) -> u32 {
        let takes =
            |member: &&Member| matches!(member.state, MemberState::Live | MemberState::Throttled);
        let live = self.members.iter().filter(takes);
        u32::try_from(live.count()).unwrap_or(u32::MAX)
    }

    /// The member refused an entry because too much is pending. If the ledger needs it, and it
    /// still owes answers to others, it is only sent less. True if so.
    pub(super) fn throttle(&mut self, slot: usize, entry: EntryId) -> bool {
        let needed = self.live() <= self.ack_quorum;
        let confirmed = self.lac.covers(entry);
        let Some(pending) = self.pending_mut(entry) else { return false };
        pending.owed.remove(slot);
        let bytes = pending.bytes + ENTRY_OVERHEAD_BYTES;
        let member = &mut self.members[slot];
        member.owed_entries -= 1;
        if confirmed {
            // Never sent again: its bytes are gone.
            member.lag_bytes -= bytes;
            self.under_replicated |= !planted!(self, MissingCopiesNotMarked);
        }
        let member = &mut self.members[slot];
        match member.state {
            MemberState::Live if needed && member.owed_entries > 0 => {
                member.state = MemberState::Throttled;
                member.missing_from = entry;
                true
            }
            MemberState::Throttled => {
                member.missing_from = member.missing_from.min(entry);
                member.owed_entries > 0
            }
            MemberState::Live | MemberState::Probing | MemberState::Failed => false,
        }
    }

    /// A throttled member has answered an entry: it is sent two others, until it lacks none.
    pub(super) fn unthrottle(&mut self, slot: usize, out: &mut Vec<Command>) {
        if self.send_missing(slot, 2, out) < 2 {
            self.members[slot].state = MemberState::Live;
        }
    }

    /// From now on the member is sent nothing.
    pub(super) fn member_failed(
        &mut self,
        slot: usize,
        error: BookieError,
        out: &mut Vec<Command>,
    ) {
        let member = &mut self.members[slot];
        if member.state == MemberState::Failed {
            return;
        }
        member.state = MemberState::Failed;
        member.last_error = Some(error);
        member.owed_entries = 0;
        member.lag_bytes = 0;
        member.silent_ticks = 0;
        let (mut entry, mut lacks) = (self.base, false);
        for pending in &mut self.queue {
            lacks |= pending.owed.remove(slot) && self.lac.covers(entry);
            entry = entry.next();
        }
        self.under_replicated |= lacks && !planted!(self, MissingCopiesNotMarked);
        self.forget_settled();
        if matches!(self.change, Change::Idle) {
            self.mend(out);
        }
    }

    /// Looks for replacements if members have failed.
    fn mend(&mut self, out: &mut Vec<Command>) {
        let failed = self.members.iter().filter(|member| member.state == MemberState::Failed);
        let count = failed.count();
        if count == 0 {
            self.change = Change::Idle;
            return;
        }
        let exclude = self.members.iter().map(|member| member.bookie.clone()).collect();
        out.push(Command::PickReplacement { count, exclude });
        self.change = Change::Picking;
    }

    /// Placement has answered; with nothing if there is nobody.
    pub fn replacement(&mut self, picked: Vec<BookieId>, out: &mut Vec<Command>) {
        if self.ended.is_some() || !matches!(self.change, Change::Picking) {
            return;
        }
        let mut bookies: Vec<BookieId> =
            self.members.iter().map(|member| member.bookie.clone()).collect();
        let mut fresh = picked.into_iter();
        let mut slots = SlotSet::EMPTY;
        for slot in 0..self.members.len() {
            if self.members[slot].state == MemberState::Failed
                && let Some(bookie) = fresh.find(|bookie| !bookies.contains(bookie))
            {
                bookies[slot] = bookie;
                slots.insert(slot);
            }
        }
        // A record holds only so many fragments: then the ensemble stays until the ledger is
        // rolled.
        if slots.is_empty() || self.metadata.fragments.len() >= LedgerRecord::MAX_FRAGMENTS {
            self.wait(None, false, out);
            return;
        }
        let mut first = self.lac.next_entry();
        if planted!(self, FragmentAboveLac) {
            first = self.next_entry();
        }
        let attempt = Attempt::new(Goal::Ensemble { first, bookies, slots });
        match self.mode {
            Mode::Owner(_) => {
                if planted!(self, AckBeforeChangeCommitted) {
                    self.install(&attempt, out);
                }
                self.attempt(attempt, out);
            }
            // Local until the closing write: readers of the record must keep to the ensemble
            // that the owner wrote to.
            Mode::Recovery(_) => {
                let metadata = attempt.applied_to(&self.metadata);
                let version = self.version;
                self.committed(&attempt, Versioned { metadata, version }, out);
            }
        }
    }

    /// Sends the write of the record.
    pub(super) fn attempt(&mut self, attempt: Attempt, out: &mut Vec<Command>) {
        let mut written = attempt.applied_to(&self.metadata);
        written.under_replicated |= self.under_replicated;
        out.push(Command::Commit { version: self.version, metadata: written.clone() });
        self.change = Change::Committing { attempt, written };
    }

    /// The write of the record was answered.
    pub fn commit_answered(&mut self, answer: CommitAnswer, out: &mut Vec<Command>) {
        if self.ended.is_some() || !matches!(self.change, Change::Committing { .. }) {
            return;
        }
        let Change::Committing { mut attempt, written } =
            std::mem::replace(&mut self.change, Change::Idle)
        else {
            return;
        };
        match answer {
            CommitAnswer::Committed(version) => {
                self.committed(&attempt, Versioned { metadata: written, version }, out);
            }
            CommitAnswer::Conflict if planted!(self, ConflictIgnored) => {
                let version = self.version;
                self.committed(&attempt, Versioned { metadata: written, version }, out);
            }
            CommitAnswer::Unknown if planted!(self, UnknownCommitIsFailure) => {
                self.wait(None, false, out);
            }
            CommitAnswer::Conflict | CommitAnswer::Unknown => {
                attempt.unknown |= answer == CommitAnswer::Unknown;
                attempt.unsettled = attempt.unsettled.saturating_add(1);
                if attempt.unsettled > 1 && !planted!(self, UnsettledWriteSpins) {
                    self.wait_long(attempt, out);
                } else {
                    out.push(Command::ReadMetadata);
                    self.change = Change::Reading { attempt: Some(attempt) };
                }
            }
            CommitAnswer::Unavailable => {
                // An ensemble change that certainly didn't happen is forgotten, and the failed
                // member's answers count again.
                let keep = attempt.unknown || matches!(attempt.goal, Goal::Close { .. });
                self.wait(keep.then_some(attempt), true, out);
            }
        }
    }

    /// The record was read.
    pub fn metadata_read(&mut self, answer: MetadataAnswer, out: &mut Vec<Command>) {
        if self.ended.is_some() || !matches!(self.change, Change::Reading { .. }) {
            return;
        }
        let Change::Reading { attempt } = std::mem::replace(&mut self.change, Change::Idle) else {
            return;
        };
        match answer {
            MetadataAnswer::Unavailable => self.wait(attempt, true, out),
            MetadataAnswer::Absent => self.fail(WriterFailure::Deleted, out),
            MetadataAnswer::Found(current) => match attempt {
                Some(attempt) => self.settle(attempt, current, out),
                None => self.store_is_back(current, out),
            },
        }
    }

    /// Decides, by what the record now says, whether an unsettled write was applied.
    fn settle(&mut self, attempt: Attempt, current: Versioned, out: &mut Vec<Command>) {
        let found = &current.metadata;
        if let Goal::Close { last_entry, .. } = attempt.goal
            && found.state == LedgerState::Closed
            && found.last_entry == last_entry
        {
            // By this write, or by a recovery that found the same end.
            self.committed(&attempt, current, out);
            return;
        }
        if found.state != LedgerState::Open {
            self.fail(WriterFailure::Fenced, out);
            return;
        }
        let wanted = attempt.applied_to(&self.metadata);
        let is_ensemble = matches!(attempt.goal, Goal::Ensemble { .. });
        if is_ensemble && found.last_fragment() == wanted.last_fragment() {
            self.committed(&attempt, current, out);
        } else if found.last_fragment() == self.metadata.last_fragment() {
            self.adopt(current);
            self.attempt(attempt, out);
        } else {
            self.fail(WriterFailure::Diverged, out);
        }
    }

    fn store_is_back(&mut self, current: Versioned, out: &mut Vec<Command>) {
        if current.metadata.state != LedgerState::Open {
            self.fail(WriterFailure::Fenced, out);
        } else if current.metadata.last_fragment() != self.metadata.last_fragment() {
            self.fail(WriterFailure::Diverged, out);
        } else {
            self.adopt(current);
            self.mend(out);
            self.maybe_close(out);
        }
    }

    /// Takes over what a repair has changed in older fragments.
    fn adopt(&mut self, current: Versioned) {
        self.version = current.version;
        if !planted!(self, RepairOverwritten) {
            self.metadata = current.metadata;
        }
    }

    fn committed(&mut self, attempt: &Attempt, current: Versioned, out: &mut Vec<Command>) {
        self.version = current.version;
        self.change = Change::Idle;
        if matches!(attempt.goal, Goal::Close { .. }) {
            self.closed(current.metadata, out);
            return;
        }
        self.metadata = current.metadata;
        self.install(attempt, out);
        self.update_stall(out);
        self.advance(out);
        if self.ended.is_none() && matches!(self.change, Change::Idle) {
            self.mend(out);
            self.maybe_close(out);
        }
    }

    /// The new members take their places and are sent everything from LAC+1 on.
    fn install(&mut self, attempt: &Attempt, out: &mut Vec<Command>) {
        let Goal::Ensemble { bookies, slots, .. } = &attempt.goal else { return };
        for slot in slots.iter() {
            self.members[slot] = Member::new(bookies[slot].clone());
            for pending in &mut self.queue {
                pending.acks.remove(slot);
                pending.owed.remove(slot);
                if planted!(self, NoResend) {
                    pending.acks.insert(slot);
                }
            }
            self.send_missing(slot, u64::MAX, out);
        }
    }

    /// Sends a member up to `limit` of the unconfirmed entries that it neither has nor owes; how
    /// many there were.
    fn send_missing(&mut self, slot: usize, limit: u64, out: &mut Vec<Command>) -> u64 {
        let mut first = self.lac.next_entry();
        if self.members[slot].state == MemberState::Throttled {
            first = first.max(self.members[slot].missing_from);
        }
        let skip = usize::try_from(first.0 - self.base.0).unwrap_or(usize::MAX);
        let mut sent = 0;
        for index in skip..self.queue.len() {
            if sent == limit {
                break;
            }
            let entry = EntryId(self.base.0 + index as u64);
            self.members[slot].missing_from = entry.next();
            let pending = &mut self.queue[index];
            if pending.acks.contains(slot) || !pending.owed.insert(slot) {
                continue;
            }
            sent += 1;
            let payload = pending.payload.clone();
            out.push(self.send(slot, entry, payload));
        }
        self.members[slot].owed_entries += sent;
        sent
    }

    /// Tries failed members again, with one entry each, unless a write under way replaces them.
    fn probe(&mut self, out: &mut Vec<Command>) {
        let replaced = self.change.attempt().map_or(SlotSet::EMPTY, Attempt::slots);
        for slot in self.all.without(replaced).iter() {
            if planted!(self, FailedMemberNotRetried) {
                continue;
            }
            let member = &mut self.members[slot];
            if member.state != MemberState::Failed || !member.last_error.is_none_or(may_recover) {
                continue;
            }
            member.state = MemberState::Probing;
            self.send_missing(slot, 1, out);
            if self.members[slot].owed_entries == 0 {
                // It lacks nothing that is pending: the next append will tell.
                self.members[slot].state = MemberState::Live;
            }
        }
    }

    /// A member that was tried again works: it is sent the rest.
    pub(super) fn rejoin(&mut self, slot: usize, out: &mut Vec<Command>) {
        self.members[slot].state = MemberState::Live;
        self.send_missing(slot, u64::MAX, out);
        self.update_stall(out);
    }

    /// Nothing can be done for the ensemble now. Failed members may work again.
    fn wait(&mut self, attempt: Option<Attempt>, read_first: bool, out: &mut Vec<Command>) {
        let ticks_left = self.limits.retry_ticks;
        self.change = Change::Waiting { ticks_left, attempt, read_first };
        self.update_stall(out);
        self.advance(out);
    }

    /// A write that was repeated in vain is repeated once more, later each time.
    fn wait_long(&mut self, attempt: Attempt, out: &mut Vec<Command>) {
        let doublings = attempt.unsettled.saturating_sub(2).min(MOST_DOUBLINGS);
        self.wait(Some(attempt), true, out);
        if let Change::Waiting { ticks_left, .. } = &mut self.change {
            *ticks_left = ticks_left.saturating_mul(1 << doublings);
        }
    }

    pub(super) fn tick_members(&mut self, out: &mut Vec<Command>) {
        for slot in 0..self.members.len() {
            let member = &mut self.members[slot];
            if member.owed_entries == 0 || std::mem::take(&mut member.heard) {
                member.silent_ticks = 0;
                continue;
            }
            member.silent_ticks += 1;
            if member.silent_ticks > self.limits.timeout_ticks {
                self.member_failed(slot, BookieError::Unreachable, out);
            }
        }
        self.advance(out);
    }

    pub(super) fn tick_change(&mut self, out: &mut Vec<Command>) {
        if self.change.attempt().is_some() || matches!(self.change, Change::Reading { .. }) {
            self.tick_probing(out);
        } else {
            self.probe_ticks = 0;
        }
        let Change::Waiting { ticks_left, attempt, read_first } = &mut self.change else { return };
        if *ticks_left > 1 {
            *ticks_left -= 1;
            return;
        }
        let attempt = attempt.take();
        if attempt.is_some() || *read_first {
            out.push(Command::ReadMetadata);
            self.change = Change::Reading { attempt };
            self.probe(out);
        } else {
            // Trying the old bookie again and finding a new one run side by side: a member that
            // is being tried is not replaced, one that fails again is.
            self.change = Change::Idle;
            self.probe(out);
            self.mend(out);
        }
    }

    /// A metadata store that doesn't answer keeps no failed member from being tried again.
    fn tick_probing(&mut self, out: &mut Vec<Command>) {
        self.probe_ticks += 1;
        if self.probe_ticks >= self.limits.retry_ticks {
            self.probe_ticks = 0;
            self.probe(out);
        }
    }

    pub(super) fn tick_stall(&mut self, out: &mut Vec<Command>) {
        // A recovery doesn't wait for space: it is repeated as a whole.
        let for_space =
            matches!(self.mode, Mode::Owner(_)) && self.stalled == Some(StallReason::DiskFull);
        let for_space = for_space && !planted!(self, FullDiskFailsLedger);
        if self.live() >= self.ack_quorum || for_space {
            self.stalled_ticks = 0;
            return;
        }
        self.stalled_ticks += 1;
        if self.stalled_ticks > self.limits.timeout_ticks {
            self.fail(WriterFailure::QuorumLost, out);
        }
    }

    /// Tells the owner of a stall once replacing has failed, and of its end.
    pub(super) fn update_stall(&mut self, out: &mut Vec<Command>) {
        if self.live() >= self.ack_quorum {
            if self.stalled.take().is_some() {
                out.push(Command::Resumed);
            }
            return;
        }
        let full = |member: &&Member| {
            member.state != MemberState::Live && member.last_error == Some(BookieError::DiskFull)
        };
        let full = u32::try_from(self.members.iter().filter(full).count()).unwrap_or(u32::MAX);
        let reason = if self.live() + full >= self.ack_quorum {
            StallReason::DiskFull
        } else {
            StallReason::Unavailable
        };
        if matches!(self.change, Change::Waiting { .. }) && self.stalled != Some(reason) {
            self.stalled = Some(reason);
            out.push(Command::Stalled(reason));
        }
    }
}

#[cfg(test)]
mod tests;
