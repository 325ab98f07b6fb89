//! The owner's side of an open ledger: gives entries their ids, sends them, and confirms them in
//! order. Recovery writes back through the same machine, in a mode where the last-add-confirmed
//! that goes with adds is frozen and ensemble changes stay local.
//!
//! Invariants:
//! - The last-add-confirmed (LAC) rises by one entry at a time, and only when that entry has its
//!   ack quorum among members of every ensemble that the metadata may hold.
//! - Nothing is sent to a bookie that is not in committed metadata (`ensemble`).
//! - After [`Command::Failed`] or [`Command::Closed`] no command is given.
//! - An append costs one queue slot and one command for each bookie; nothing else is allocated.
//!
//! How bookies fail, are tried again and are replaced is in [`super::ensemble`], the other half
//! of this machine.

use std::collections::VecDeque;

use geminga_proto::id::{BookieId, EntryId, Lac, LedgerId, LedgerToken};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{AddKind, AppendRequest, AppendResult, BookieError};

use crate::engine::ensemble::{Attempt, Change, Goal, Member, MemberState};
use crate::engine::quorum::SlotSet;
use crate::engine::{Command, EngineLimits, Versioned, planted, unknown_range};
use crate::error::AppendRefused;
use crate::metadata::LedgerMetadata;
use crate::observer::{StallReason, WriterFailure};

/// Charged for an entry besides its bytes, so that empty entries are bounded too.
pub(super) const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// An entry that somebody still owes an answer for, or that isn't confirmed.
#[derive(Debug)]
pub(super) struct Pending {
    /// Empty once confirmed: it is never sent again.
    pub payload: Payload,
    pub bytes: u64,
    /// Members that have it on disk.
    pub acks: SlotSet,
    /// Members that it was sent to and that haven't answered.
    pub owed: SlotSet,
}

/// Whose adds these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The ledger's owner.
    Owner(AddKind),
    /// A recovery that writes back; the last-add-confirmed that it found.
    Recovery(Lac),
}

#[derive(Debug)]
pub(super) struct Closing {
    /// Ticks left in which late answers may still arrive.
    pub straggler_ticks: u32,
    /// Ticks since closing was asked for, as long as nobody was told of the delay.
    pub waited_ticks: Option<u32>,
}

/// The state machine of one open ledger.
#[derive(Debug)]
pub struct AppendEngine {
    pub(super) ledger: LedgerId,
    pub(super) token: LedgerToken,
    pub(super) mode: Mode,
    pub(super) limits: EngineLimits,
    pub(super) ack_quorum: u32,
    pub(super) all: SlotSet,
    /// As committed; its last fragment's bookies are those of `members`.
    pub(super) metadata: LedgerMetadata,
    pub(super) version: u64,
    pub(super) members: Vec<Member>,
    pub(super) change: Change,
    /// Ticks since failed members were tried again while the record is being written or read.
    pub(super) probe_ticks: u32,
    pub(super) stalled: Option<StallReason>,
    pub(super) stalled_ticks: u32,
    /// A confirmed entry lacks a copy.
    pub(super) under_replicated: bool,
    pub(super) closing: Option<Closing>,
    pub(super) ended: Option<WriterFailure>,
    /// Entries from `base` on, without gaps; the next append goes to their end.
    pub(super) queue: VecDeque<Pending>,
    pub(super) base: EntryId,
    pub(super) lac: Lac,
    pending_bytes: u64,
    confirmed_bytes: u64,
    #[cfg(any(test, feature = "harness"))]
    pub(crate) planted: Option<crate::harness::mutant::Mutant>,
}

impl AppendEngine {
    /// The owner of a ledger that it has just created.
    #[must_use]
    pub fn owner(created: Versioned, limits: EngineLimits) -> Self {
        let kind = created.metadata.add_kind();
        Self::new(created, Mode::Owner(kind), Lac::NONE, limits)
    }

    /// A recovery that writes back from `first` on, with `lac` frozen.
    pub(super) fn recovery(
        found: Versioned,
        lac: Lac,
        first: EntryId,
        limits: EngineLimits,
    ) -> Self {
        Self::new(found, Mode::Recovery(lac), Lac(first.previous()), limits)
    }

    fn new(found: Versioned, mode: Mode, lac: Lac, limits: EngineLimits) -> Self {
        let Versioned { metadata, version } = found;
        let bookies = &metadata.last_fragment().bookies;
        Self {
            ledger: metadata.id,
            token: metadata.token,
            mode,
            limits,
            ack_quorum: metadata.ack_quorum,
            all: SlotSet::first(metadata.write_quorum),
            members: bookies.iter().cloned().map(Member::new).collect(),
            under_replicated: metadata.under_replicated,
            metadata,
            version,
            change: Change::Idle,
            probe_ticks: 0,
            stalled: None,
            stalled_ticks: 0,
            closing: None,
            ended: None,
            queue: VecDeque::new(),
            base: lac.next_entry(),
            lac,
            pending_bytes: 0,
            confirmed_bytes: 0,
            #[cfg(any(test, feature = "harness"))]
            planted: None,
        }
    }

    /// The last-add-confirmed.
    #[must_use]
    pub fn lac(&self) -> Lac {
        self.lac
    }

    /// Bytes appended and not confirmed.
    #[must_use]
    pub fn pending_bytes(&self) -> u64 {
        self.pending_bytes
    }

    /// Bytes confirmed since this engine began.
    #[must_use]
    pub fn confirmed_bytes(&self) -> u64 {
        self.confirmed_bytes
    }

    /// Confirmed bytes that the slowest bookie owes; at most the limit.
    #[must_use]
    pub fn lag_bytes(&self) -> u64 {
        self.members.iter().map(|member| member.lag_bytes).max().unwrap_or(0)
    }

    /// The record as it is committed.
    #[must_use]
    pub fn metadata(&self) -> &LedgerMetadata {
        &self.metadata
    }

    /// Why it takes no more appends, if it doesn't.
    #[must_use]
    pub fn ended(&self) -> Option<&WriterFailure> {
        self.ended.as_ref()
    }

    /// The id that the next append gets.
    #[must_use]
    pub fn next_entry(&self) -> EntryId {
        EntryId(self.base.0 + self.queue.len() as u64)
    }

    /// Gives `payload` the next entry id and sends it.
    ///
    /// # Errors
    /// [`AppendRefused`]: nothing has happened.
    pub fn append(
        &mut self,
        payload: Payload,
        out: &mut Vec<Command>,
    ) -> Result<EntryId, AppendRefused> {
        self.add(payload, SlotSet::EMPTY, out)
    }

    /// Gives what `holder` has on its disk, and has just shown, the next entry id, and sends it to
    /// the others. So what is recovered takes no space twice, however often that is tried.
    ///
    /// # Errors
    /// [`AppendRefused`]: nothing has happened.
    pub(super) fn append_recovered(
        &mut self,
        payload: Payload,
        holder: &BookieId,
        out: &mut Vec<Command>,
    ) -> Result<EntryId, AppendRefused> {
        let mut held = SlotSet::EMPTY;
        // None if a local change has replaced it: then its copy doesn't count.
        if let Some(slot) = self.members.iter().position(|member| member.bookie == *holder) {
            held.insert(slot);
        }
        let entry = self.add(payload, held, out)?;
        self.advance(out);
        Ok(entry)
    }

    fn add(
        &mut self,
        payload: Payload,
        held: SlotSet,
        out: &mut Vec<Command>,
    ) -> Result<EntryId, AppendRefused> {
        if let Some(failure) = &self.ended {
            return Err(AppendRefused::Failed(failure.clone()));
        }
        if self.closing.is_some() {
            return Err(AppendRefused::Closing);
        }
        let bytes = payload.len() as u64;
        let limit_bytes = self.limits.max_pending_bytes;
        let charged = self.pending_bytes.saturating_add(bytes);
        if charged > limit_bytes && self.pending_bytes > 0 {
            let pending_bytes = self.pending_bytes;
            return Err(AppendRefused::TooManyPending { pending_bytes, limit_bytes });
        }
        let entry = self.next_entry();
        let mut owed = SlotSet::EMPTY;
        for slot in 0..self.members.len() {
            if self.members[slot].state == MemberState::Live && !held.contains(slot) {
                owed.insert(slot);
                self.members[slot].owed_entries += 1;
                out.push(self.send(slot, entry, payload.clone()));
            }
        }
        self.queue.push_back(Pending { payload, bytes, acks: held, owed });
        self.pending_bytes += bytes;
        Ok(entry)
    }

    pub(super) fn send(&self, slot: usize, entry: EntryId, payload: Payload) -> Command {
        let (kind, lac) = match self.mode {
            Mode::Owner(kind) => (kind, self.lac),
            Mode::Recovery(_) if planted!(self, LiveLacInRecovery) => (AddKind::Recovery, self.lac),
            Mode::Recovery(frozen) => (AddKind::Recovery, frozen),
        };
        let request =
            AppendRequest { ledger: self.ledger, entry, token: self.token, lac, kind, payload };
        Command::Send { bookie: self.members[slot].bookie.clone(), request }
    }

    /// A bookie has answered an add, or a transport answers for it.
    pub fn append_answered(
        &mut self,
        bookie: &BookieId,
        entry: EntryId,
        result: AppendResult,
        out: &mut Vec<Command>,
    ) {
        if self.ended.is_some() {
            return;
        }
        if result == Err(BookieError::Fenced) {
            // Also from a bookie that is no member any more: only another owner fences. Entries
            // that are pending may be recovered by it, or not.
            self.fail(WriterFailure::Fenced, out);
            return;
        }
        let Some(slot) = self.members.iter().position(|member| member.bookie == *bookie) else {
            // Replaced meanwhile. Its copies don't count for the new fragment.
            return;
        };
        match result {
            Ok(()) => self.acked(slot, entry, out),
            Err(error) => self.refused(slot, entry, error, out),
        }
    }

    fn acked(&mut self, slot: usize, entry: EntryId, out: &mut Vec<Command>) {
        self.members[slot].heard = true;
        let confirmed = self.lac.covers(entry);
        if let Some(pending) = self.pending_mut(entry) {
            pending.acks.insert(slot);
            let bytes = pending.bytes + ENTRY_OVERHEAD_BYTES;
            if pending.owed.remove(slot) {
                self.members[slot].owed_entries -= 1;
                if confirmed {
                    self.members[slot].lag_bytes -= bytes;
                }
            }
        }
        match self.members[slot].state {
            MemberState::Probing => self.rejoin(slot, out),
            MemberState::Throttled => self.unthrottle(slot, out),
            MemberState::Live | MemberState::Failed => {}
        }
        if confirmed {
            // The last copy of an entry that was confirmed without it.
            self.forget_settled();
            self.maybe_close(out);
        } else {
            self.advance(out);
        }
    }

    fn refused(&mut self, slot: usize, entry: EntryId, error: BookieError, out: &mut Vec<Command>) {
        // An entry that isn't owed has been answered, or belongs to an attempt given up before.
        let owed = self.pending_mut(entry).is_some_and(|pending| pending.owed.contains(slot));
        if owed {
            self.members[slot].heard = true;
            if error == BookieError::Overloaded && self.throttle(slot, entry) {
                self.forget_settled();
                return;
            }
            self.member_failed(slot, error, out);
            self.advance(out);
        }
    }

    pub(super) fn pending_mut(&mut self, entry: EntryId) -> Option<&mut Pending> {
        let index = entry.0.checked_sub(self.base.0)?;
        self.queue.get_mut(usize::try_from(index).ok()?)
    }

    /// Members whose answers confirm: not those that a change under way may have replaced. So
    /// whether or not it is applied, what is confirmed has its copies.
    fn countable(&self) -> SlotSet {
        let all =
            [planted!(self, ReplacedMemberStillCounts), planted!(self, AckBeforeChangeCommitted)]
                .contains(&true);
        match self.change.attempt() {
            Some(attempt) if !all => self.all.without(attempt.slots()),
            _ => self.all,
        }
    }

    /// Confirms what has its ack quorum, in order.
    pub(super) fn advance(&mut self, out: &mut Vec<Command>) {
        if planted!(self, ConfirmingWaitsForChange) && self.change.is_ensemble() {
            return;
        }
        let countable = self.countable();
        let needed = self.ack_quorum - u32::from(planted!(self, AckBelowQuorum));
        let before = self.lac;
        #[cfg(any(test, feature = "harness"))]
        if planted!(self, OutOfOrderAck) {
            self.advance_out_of_order(countable, needed);
        }
        loop {
            let entry = self.lac.next_entry();
            let all = self.all;
            let Some(pending) = self.pending_mut(entry) else { break };
            let counted = pending.acks.without(all.without(countable));
            if counted.len() < needed {
                break;
            }
            // It is never sent again, so its bytes can go.
            pending.payload = Payload::default();
            let (bytes, owed) = (pending.bytes, pending.owed);
            let missing = all.without(counted);
            self.confirm(entry, bytes, missing, owed);
        }
        if self.lac == before {
            return;
        }
        if let Lac(Some(entry)) = self.lac {
            out.push(Command::Confirmed(entry));
        }
        self.forget_settled();
        self.fail_laggards(out);
        self.maybe_close(out);
    }

    fn confirm(&mut self, entry: EntryId, bytes: u64, missing: SlotSet, owed: SlotSet) {
        self.lac = Lac(Some(entry));
        self.pending_bytes -= bytes;
        self.confirmed_bytes += bytes;
        for slot in owed.iter() {
            self.members[slot].lag_bytes += bytes + ENTRY_OVERHEAD_BYTES;
        }
        let lacks = !missing.without(owed).is_empty();
        self.under_replicated |= lacks && !planted!(self, MissingCopiesNotMarked);
    }

    /// The planted defect: everything below an entry with its quorum counts as confirmed.
    #[cfg(any(test, feature = "harness"))]
    fn advance_out_of_order(&mut self, countable: SlotSet, needed: u32) {
        let all = self.all;
        let full = |pending: &Pending| pending.acks.without(all.without(countable)).len() >= needed;
        if let Some(last) = self.queue.iter().rposition(full) {
            for pending in self.queue.iter_mut().take(last) {
                pending.acks = all;
            }
        }
    }

    /// Drops confirmed entries from the front once nobody owes an answer for them.
    pub(super) fn forget_settled(&mut self) {
        while self.lac.covers(self.base)
            && self.queue.front().is_some_and(|pending| pending.owed.is_empty())
        {
            self.queue.pop_front();
            self.base = self.base.next();
        }
    }

    /// A bookie that owes too many confirmed bytes counts as failed, so that one slow bookie
    /// can't make the owner hold ever more.
    fn fail_laggards(&mut self, out: &mut Vec<Command>) {
        for slot in 0..self.members.len() {
            let tolerant = planted!(self, LagWithoutLimit);
            if self.members[slot].lag_bytes > self.limits.max_lag_bytes && !tolerant {
                self.member_failed(slot, BookieError::Overloaded, out);
            }
        }
    }

    /// Ends the ledger under its owner.
    pub(super) fn fail(&mut self, failure: WriterFailure, out: &mut Vec<Command>) {
        let mut unknown = unknown_range(self.lac, self.next_entry());
        if planted!(self, FencedIsCleanFailure) && failure == WriterFailure::Fenced {
            unknown = None;
        }
        out.push(Command::Failed { failure: failure.clone(), unknown });
        self.end(failure);
    }

    /// Members of every ensemble that the record may hold: a fence that is complete without an ack
    /// quorum of them can't be.
    pub(crate) fn witnesses(&self) -> Vec<BookieId> {
        self.countable().iter().map(|slot| self.members[slot].bookie.clone()).collect()
    }

    /// Ends the ledger under its owner, for a reason that did not come with an answer to an add.
    pub fn abandon(&mut self, failure: WriterFailure, out: &mut Vec<Command>) {
        if self.ended.is_none() {
            self.fail(failure, out);
        }
    }

    fn end(&mut self, why: WriterFailure) {
        self.base = self.next_entry();
        self.queue = VecDeque::new();
        self.pending_bytes = 0;
        self.change = Change::Idle;
        self.ended = Some(why);
    }

    /// The owner wants the ledger closed: no more appends; what is pending is waited for.
    pub fn close(&mut self, out: &mut Vec<Command>) {
        if self.ended.is_some() {
            return;
        }
        match &mut self.closing {
            Some(closing) => closing.waited_ticks = Some(0),
            None => self.closing = Some(Closing { straggler_ticks: 2, waited_ticks: Some(0) }),
        }
        self.maybe_close(out);
    }

    /// Begins the closing write once everything is confirmed and no change is under way.
    pub(super) fn maybe_close(&mut self, out: &mut Vec<Command>) {
        let Some(closing) = &self.closing else { return };
        let all_confirmed = self.lac.next_entry() == self.next_entry();
        let stragglers = !self.queue.is_empty() && closing.straggler_ticks > 0;
        if !all_confirmed || stragglers || !self.change.may_be_dropped() {
            return;
        }
        let goal = Goal::Close { last_entry: self.lac, bytes: self.confirmed_bytes };
        // Whoever still owes an answer may not have the entry.
        self.under_replicated |= !self.queue.is_empty();
        self.attempt(Attempt::new(goal), out);
    }

    /// The closing record is committed.
    pub(super) fn closed(&mut self, metadata: LedgerMetadata, out: &mut Vec<Command>) {
        self.metadata = metadata.clone();
        out.push(Command::Closed(metadata));
        self.end(WriterFailure::Closed);
    }

    /// Whether [`Self::tick`] has anything to do.
    #[must_use]
    pub fn wants_ticks(&self) -> bool {
        self.ended.is_none()
            && (!self.queue.is_empty()
                || self.closing.is_some()
                || !matches!(self.change, Change::Idle)
                || self.members.iter().any(|member| member.state != MemberState::Live))
    }

    /// Time has passed.
    pub fn tick(&mut self, out: &mut Vec<Command>) {
        if self.ended.is_some() {
            return;
        }
        self.tick_members(out);
        self.tick_change(out);
        self.tick_stall(out);
        if self.ended.is_none() {
            self.tick_closing(out);
        }
    }

    fn tick_closing(&mut self, out: &mut Vec<Command>) {
        let all_confirmed = self.lac.next_entry() == self.next_entry();
        let Some(closing) = &mut self.closing else { return };
        closing.straggler_ticks = closing.straggler_ticks.saturating_sub(u32::from(all_confirmed));
        if let Some(waited) = &mut closing.waited_ticks
            && all_confirmed
        {
            *waited += 1;
            if *waited > self.limits.timeout_ticks {
                closing.waited_ticks = None;
                out.push(Command::CloseDelayed);
            }
        }
        self.maybe_close(out);
    }
}

#[cfg(test)]
mod tests;
