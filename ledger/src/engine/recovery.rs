//! Finds the end of a ledger whose owner may be gone, and closes it there.
//!
//! 1. The record goes from OPEN to IN_RECOVERY (somebody may have done that before; a ledger that
//!    is CLOSED needs nothing).
//! 2. The last fragment's ensemble is fenced, until no ack quorum can be formed without a fenced
//!    bookie. The highest last-add-confirmed that they know is frozen.
//! 3. From there on, and never before the last fragment, each entry is read with fencing reads
//!    from that fragment's *original* ensemble. One copy is enough to recover it; *no such entry*
//!    from so many that no ack quorum can be formed without them is the end; anything else gives
//!    up for now.
//! 4. What was found is written back, to all but the bookie that showed it, with the recovery flag
//!    and the frozen last-add-confirmed. Ensemble changes stay local.
//! 5. One compare-and-swap closes the ledger. Whoever loses it takes the winner's result.
//!
//! Invariants: every read fences; a damaged, unknown or missing answer never counts as *no such
//! entry*; nothing but steps 1 and 5 writes the record.

use geminga_proto::id::{BookieId, EntryId, Lac};
use geminga_proto::storage::{
    AppendResult, BookieError, FenceRequest, FenceResult, ReadRequest, ReadResult, StoredEntry,
};

use crate::engine::append::AppendEngine;
use crate::engine::quorum::{DistributionSchedule, QuorumCoverage, SlotSet};
use crate::engine::{
    Command, CommitAnswer, EngineLimits, MetadataAnswer, RecoveryCommand, RecoveryFailure,
    Versioned, planted,
};
use crate::metadata::{LedgerMetadata, LedgerState};

/// Entries that one read asks for.
const READ_ENTRIES: u32 = 256;
/// Bytes that one read asks for.
const READ_BYTES: u64 = 1024 * 1024;
/// Bytes that may be waiting to be written back before the next read is sent.
const WRITE_BACK_BYTES: u64 = 8 * 1024 * 1024;
/// Writes of the record, for one purpose, that may end in a conflict or with an unknown outcome.
const UNSETTLED_WRITES: u32 = 8;

/// Who has answered a question that goes to the whole ensemble.
#[derive(Debug)]
struct Poll {
    coverage: QuorumCoverage,
    answered: SlotSet,
    last_error: BookieError,
}

impl Poll {
    fn new(metadata: &LedgerMetadata) -> Self {
        let schedule = DistributionSchedule {
            ensemble: metadata.write_quorum,
            write_quorum: metadata.write_quorum,
        };
        Self {
            coverage: QuorumCoverage::new(schedule, metadata.ack_quorum),
            answered: SlotSet::EMPTY,
            last_error: BookieError::Unreachable,
        }
    }
}

#[derive(Debug)]
enum Stage {
    /// The record is being read.
    Loading,
    /// OPEN → IN_RECOVERY is being written.
    Marking,
    Fencing {
        poll: Poll,
        lac: Lac,
    },
    /// `entry` was asked for.
    Reading {
        entry: EntryId,
        poll: Poll,
    },
    /// What was found is written back; then the next read, from this entry on.
    Writing {
        next: EntryId,
    },
    /// The end is known; the rest is written back.
    Draining,
    /// The closing write is sent.
    Closing,
    /// The closing write met something else; the record is being read.
    Settling,
    Over,
}

/// The state machine of one recovery.
#[derive(Debug)]
pub struct RecoveryEngine {
    limits: EngineLimits,
    stage: Stage,
    /// As read, with the original ensembles. Set from `Marking` on.
    found: Option<Versioned>,
    /// Writes back; holds the local ensemble changes. Set from `Reading` on.
    pub(super) write: Option<AppendEngine>,
    round: u64,
    /// Writes for the present purpose that were not settled.
    unsettled: u32,
    prior_bytes: u64,
    #[cfg(any(test, feature = "harness"))]
    pub(crate) planted: Option<crate::harness::mutant::Mutant>,
}

impl RecoveryEngine {
    /// A recovery, and its first command.
    #[must_use]
    pub fn start(limits: EngineLimits, out: &mut Vec<RecoveryCommand>) -> Self {
        out.push(RecoveryCommand::ReadMetadata);
        Self {
            limits,
            stage: Stage::Loading,
            found: None,
            write: None,
            round: 0,
            unsettled: 0,
            prior_bytes: 0,
            #[cfg(any(test, feature = "harness"))]
            planted: None,
        }
    }

    /// Whether it has said [`RecoveryCommand::Done`].
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    /// The first entry that was searched for, once that is known; what lies before was confirmed.
    #[must_use]
    pub fn first_searched(&self) -> Option<EntryId> {
        let found = self.found.as_ref()?;
        let write = self.write.as_ref()?;
        Some(write.frozen_lac().next_entry().max(found.metadata.last_fragment().first_entry))
    }

    /// Bytes of the entries before the first one searched, as far as they are known.
    pub fn set_prior_bytes(&mut self, bytes: u64) {
        self.prior_bytes = bytes;
    }

    fn done(
        &mut self,
        result: Result<LedgerMetadata, RecoveryFailure>,
        out: &mut Vec<RecoveryCommand>,
    ) {
        self.stage = Stage::Over;
        out.push(RecoveryCommand::Done(result));
    }

    /// The record was read.
    pub fn metadata_read(&mut self, answer: MetadataAnswer, out: &mut Vec<RecoveryCommand>) {
        let settling = matches!(self.stage, Stage::Settling);
        if !settling && !matches!(self.stage, Stage::Loading) {
            return;
        }
        let current = match answer {
            MetadataAnswer::Found(current) => current,
            MetadataAnswer::Absent => return self.done(Err(RecoveryFailure::NotFound), out),
            MetadataAnswer::Unavailable => return self.done(Err(RecoveryFailure::Metadata), out),
        };
        match current.metadata.state {
            LedgerState::Closed if settling && planted!(self, LoserOverwritesWinner) => {
                self.found = Some(current);
                self.close(out);
            }
            LedgerState::Closed => self.done(Ok(current.metadata), out),
            _ if settling => self.settle(current, out),
            LedgerState::Open if planted!(self, RecoveryNotMarked) => self.fence(current, out),
            LedgerState::Open => {
                let version = current.version;
                let mut metadata = current.metadata.clone();
                metadata.state = LedgerState::InRecovery;
                self.found = Some(Versioned { metadata: metadata.clone(), version });
                self.stage = Stage::Marking;
                out.push(RecoveryCommand::Commit { version, metadata });
            }
            LedgerState::InRecovery => self.fence(current, out),
        }
    }

    /// The closing write was refused, yet the ledger isn't closed: a repair has changed an older
    /// fragment, or the write is lost. The last fragment is nobody's but a recovery's.
    fn settle(&mut self, current: Versioned, out: &mut Vec<RecoveryCommand>) {
        let same = |found: &Versioned| {
            found.metadata.last_fragment() == current.metadata.last_fragment()
                && current.metadata.state == LedgerState::InRecovery
        };
        if self.found.as_ref().is_some_and(same) {
            self.found = Some(current);
            self.close(out);
        } else {
            self.done(Err(RecoveryFailure::Metadata), out);
        }
    }

    /// A write of the record was answered.
    pub fn commit_answered(&mut self, answer: CommitAnswer, out: &mut Vec<RecoveryCommand>) {
        match (&self.stage, answer) {
            (Stage::Marking, CommitAnswer::Committed(version)) => {
                if let Some(found) = self.found.take() {
                    self.fence(Versioned { metadata: found.metadata, version }, out);
                }
            }
            (Stage::Marking, CommitAnswer::Conflict | CommitAnswer::Unknown) => {
                self.read_again(Stage::Loading, out);
            }
            (Stage::Closing, CommitAnswer::Committed(_)) => {
                let closed = self.closing_record();
                self.done(Ok(closed), out);
            }
            (Stage::Closing, CommitAnswer::Conflict | CommitAnswer::Unknown) => {
                self.read_again(Stage::Settling, out);
            }
            (Stage::Marking | Stage::Closing, CommitAnswer::Unavailable) => {
                self.done(Err(RecoveryFailure::Metadata), out);
            }
            #[cfg(any(test, feature = "harness"))]
            _ => self.mid_recovery_commit(answer),
            #[cfg(not(any(test, feature = "harness")))]
            _ => {}
        }
    }

    /// What the record says now decides how to go on, but not for ever: whoever wants the ledger
    /// recovered tries again later.
    fn read_again(&mut self, stage: Stage, out: &mut Vec<RecoveryCommand>) {
        self.unsettled += 1;
        if self.unsettled >= UNSETTLED_WRITES {
            let writes = self.unsettled;
            return self.done(Err(RecoveryFailure::Unsettled { writes }), out);
        }
        self.stage = stage;
        out.push(RecoveryCommand::ReadMetadata);
    }

    fn fence(&mut self, found: Versioned, out: &mut Vec<RecoveryCommand>) {
        let metadata = &found.metadata;
        let request = FenceRequest { ledger: metadata.id, token: metadata.token };
        for bookie in &metadata.last_fragment().bookies {
            out.push(RecoveryCommand::Fence { bookie: bookie.clone(), request });
        }
        self.stage = Stage::Fencing { poll: Poll::new(metadata), lac: Lac::NONE };
        self.unsettled = 0;
        self.found = Some(found);
    }

    /// The position of a bookie in the ensemble that the owner wrote to.
    fn original_slot(&self, bookie: &BookieId) -> Option<usize> {
        let found = self.found.as_ref()?;
        self.read_ensemble(found).iter().position(|member| member == bookie)
    }

    fn read_ensemble<'a>(&'a self, found: &'a Versioned) -> &'a [BookieId] {
        match &self.write {
            Some(write) if planted!(self, RecoveryReadsNewEnsemble) => {
                &write.metadata().last_fragment().bookies
            }
            _ => &found.metadata.last_fragment().bookies,
        }
    }

    /// A bookie has answered a fence.
    pub fn fenced(
        &mut self,
        bookie: &BookieId,
        result: FenceResult,
        out: &mut Vec<RecoveryCommand>,
    ) {
        let Some(slot) = self.original_slot(bookie) else { return };
        let all = self.found.as_ref().map_or(0, |found| found.metadata.write_quorum);
        let off_by_one = planted!(self, CoverageOffByOne);
        let waits = planted!(self, RecoveryWaitsForAll);
        let Stage::Fencing { poll, lac } = &mut self.stage else { return };
        if !poll.answered.insert(slot) {
            return;
        }
        match result {
            Ok(known) => {
                poll.coverage.add(slot);
                *lac = known.max(*lac);
            }
            Err(error) => poll.last_error = error,
        }
        let silent = poll.answered != SlotSet::first(all);
        if waits && silent {
            return;
        }
        if Self::covers(&poll.coverage, off_by_one, all) {
            // Frozen: answers that come later change nothing.
            let lac = *lac;
            self.search(lac, out);
        } else if !silent {
            let error = poll.last_error;
            self.done(Err(RecoveryFailure::Fence(error)), out);
        }
    }

    fn covers(coverage: &QuorumCoverage, off_by_one: bool, all: u32) -> bool {
        if !off_by_one {
            return coverage.complete();
        }
        // The planted defect: one more answer would complete it.
        !coverage.covered().is_empty()
            && SlotSet::first(all).iter().any(|slot| {
                let mut more = *coverage;
                more.add(slot);
                more.complete()
            })
    }

    fn search(&mut self, lac: Lac, out: &mut Vec<RecoveryCommand>) {
        let Some(found) = self.found.clone() else { return };
        // An empty ledger starts at entry 0, as the first fragment does.
        let mut first = lac.next_entry().max(found.metadata.last_fragment().first_entry);
        if planted!(self, RecoveryStartsBeforeFragment) {
            first = lac.next_entry();
        }
        if planted!(self, EmptyLedgerEndsAtZero) {
            first = EntryId(lac.0.unwrap_or_default().0 + 1).max(first);
        }
        let write = AppendEngine::recovery(found, lac, first, self.limits);
        #[cfg(any(test, feature = "harness"))]
        let write = write.with_planted(self.planted);
        self.write = Some(write);
        self.read_next(first, out);
    }

    fn read_next(&mut self, entry: EntryId, out: &mut Vec<RecoveryCommand>) {
        let Some(found) = &self.found else { return };
        self.round += 1;
        let fence = (!planted!(self, RecoveryReadDoesNotFence)).then_some(found.metadata.token);
        let request = ReadRequest {
            ledger: found.metadata.id,
            first: entry,
            max_entries: READ_ENTRIES,
            max_bytes: READ_BYTES,
            fence,
        };
        for bookie in self.read_ensemble(found) {
            let (bookie, round) = (bookie.clone(), self.round);
            out.push(RecoveryCommand::Read { bookie, round, request });
        }
        self.stage = Stage::Reading { entry, poll: Poll::new(&found.metadata) };
    }

    /// A bookie has answered a read.
    pub fn read(
        &mut self,
        bookie: &BookieId,
        round: u64,
        result: ReadResult,
        out: &mut Vec<RecoveryCommand>,
    ) {
        if round != self.round {
            return;
        }
        let Some(slot) = self.original_slot(bookie) else { return };
        let all = self.found.as_ref().map_or(0, |found| found.metadata.write_quorum);
        let off_by_one = planted!(self, CoverageOffByOne);
        let guesses = planted!(self, UndecidedIsEnd);
        let Stage::Reading { entry, poll } = &mut self.stage else { return };
        if !poll.answered.insert(slot) {
            return;
        }
        let entry = *entry;
        match result {
            Ok(entries) if consecutive(entry, &entries) => {
                return self.write_back(bookie, entries, out);
            }
            Ok(_) => poll.last_error = BookieError::Invalid,
            Err(BookieError::NoSuchEntry) => poll.coverage.add(slot),
            Err(_) if guesses => poll.coverage.add(slot),
            Err(error) => poll.last_error = error,
        }
        if Self::covers(&poll.coverage, off_by_one, all) {
            self.stage = Stage::Draining;
            self.drained(out);
        } else if poll.answered == SlotSet::first(all) {
            let error = poll.last_error;
            self.done(Err(RecoveryFailure::Undecided(entry, error)), out);
        }
    }

    fn write_back(
        &mut self,
        holder: &BookieId,
        entries: Vec<StoredEntry>,
        out: &mut Vec<RecoveryCommand>,
    ) {
        #[cfg(any(test, feature = "harness"))]
        let skip = planted!(self, RecoveredNotWrittenBack);
        let Some(write) = &mut self.write else { return };
        let mut commands = Vec::new();
        for stored in entries {
            let appended = write.append_recovered(stored.payload.into(), holder, &mut commands);
            if appended.is_err() {
                break;
            }
        }
        // Entries beyond the limit of what may be pending are read again.
        let next = write.next_entry();
        #[cfg(any(test, feature = "harness"))]
        if skip {
            commands.clear();
            write.pretend_confirmed();
        }
        self.stage = Stage::Writing { next };
        self.forward(commands, out);
        self.go_on(out);
    }

    /// Reads on once there is room for what will be found.
    fn go_on(&mut self, out: &mut Vec<RecoveryCommand>) {
        let room =
            self.write.as_ref().is_some_and(|write| write.pending_bytes() < WRITE_BACK_BYTES);
        if let Stage::Writing { next } = self.stage
            && room
        {
            self.read_next(next, out);
        }
    }

    /// Hands on what the writing half wants, and listens to what it says.
    fn forward(&mut self, commands: Vec<Command>, out: &mut Vec<RecoveryCommand>) {
        for command in commands {
            match command {
                Command::Send { bookie, request } => {
                    out.push(RecoveryCommand::Send { bookie, request });
                }
                Command::PickReplacement { count, exclude } => {
                    out.push(RecoveryCommand::PickReplacement { count, exclude });
                }
                Command::Failed { failure, .. } => {
                    self.done(Err(RecoveryFailure::WriteBack(failure)), out);
                    return;
                }
                // In this mode nothing is committed and nobody waits for a stall to end; what is
                // confirmed is asked for below.
                Command::Confirmed(_)
                | Command::Stalled(_)
                | Command::Resumed
                | Command::Commit { .. }
                | Command::ReadMetadata
                | Command::Closed(_)
                | Command::CloseDelayed => {}
            }
        }
        #[cfg(any(test, feature = "harness"))]
        self.commit_mid_recovery(out);
        self.go_on(out);
        self.drained(out);
    }

    /// Closes the ledger once everything found is written back.
    fn drained(&mut self, out: &mut Vec<RecoveryCommand>) {
        let Some(write) = &self.write else { return };
        let all_written = write.lac().next_entry() == write.next_entry();
        if matches!(self.stage, Stage::Draining) && all_written {
            self.close(out);
        }
    }

    fn closing_record(&self) -> LedgerMetadata {
        let (Some(found), Some(write)) = (&self.found, &self.write) else {
            unreachable!("a ledger is closed only after it was read and searched");
        };
        let mut closing = found.metadata.clone();
        let local = write.metadata().fragments.iter();
        let original = closing.last_fragment().first_entry;
        if !planted!(self, LocalChangesLost) {
            // Local changes begin in the last fragment; older ones may be a repair's by now.
            closing.fragments.truncate(closing.fragments.len() - 1);
            let changed = local.filter(|fragment| fragment.first_entry >= original);
            closing.fragments.extend(changed.cloned());
        }
        // What was confirmed before the search may be at its ack quorum only: the owner that knew
        // is gone.
        let unsearched = self.first_searched().is_some_and(|first| first > EntryId(0));
        let may_lack = unsearched && closing.ack_quorum < closing.write_quorum;
        closing.under_replicated |= may_lack || write.lacks_copies();
        let mut last_entry = Lac(write.next_entry().previous());
        if planted!(self, EmptyLedgerEndsAtZero) {
            last_entry = Lac(Some(last_entry.0.unwrap_or_default()));
        }
        closing.close_at(last_entry, self.prior_bytes + write.confirmed_bytes());
        closing
    }

    fn close(&mut self, out: &mut Vec<RecoveryCommand>) {
        let metadata = self.closing_record();
        let version = self.found.as_ref().map_or(0, |found| found.version);
        self.stage = Stage::Closing;
        out.push(RecoveryCommand::Commit { version, metadata });
    }

    /// A bookie has answered an add.
    pub fn append_answered(
        &mut self,
        bookie: &BookieId,
        entry: EntryId,
        result: AppendResult,
        out: &mut Vec<RecoveryCommand>,
    ) {
        self.writing(out, |write, commands| {
            write.append_answered(bookie, entry, result, commands);
        });
    }

    /// Placement has answered; with nothing if there is nobody.
    pub fn replacement(&mut self, picked: Vec<BookieId>, out: &mut Vec<RecoveryCommand>) {
        self.writing(out, |write, commands| write.replacement(picked, commands));
    }

    /// Time has passed.
    pub fn tick(&mut self, out: &mut Vec<RecoveryCommand>) {
        self.writing(out, AppendEngine::tick);
    }

    fn writing(
        &mut self,
        out: &mut Vec<RecoveryCommand>,
        event: impl FnOnce(&mut AppendEngine, &mut Vec<Command>),
    ) {
        if let Some(write) = &mut self.write
            && matches!(self.stage, Stage::Reading { .. } | Stage::Writing { .. } | Stage::Draining)
        {
            let mut commands = Vec::new();
            event(write, &mut commands);
            self.forward(commands, out);
        }
    }

    /// The planted defect: the local ensemble change is written at once.
    #[cfg(any(test, feature = "harness"))]
    fn commit_mid_recovery(&mut self, out: &mut Vec<RecoveryCommand>) {
        if !planted!(self, FragmentCommittedMidRecovery) || self.is_over() {
            return;
        }
        if let (Some(found), Some(write)) = (&self.found, &self.write)
            && found.metadata.fragments != write.metadata().fragments
        {
            let mut metadata = found.metadata.clone();
            metadata.fragments.clone_from(&write.metadata().fragments);
            out.push(RecoveryCommand::Commit { version: found.version, metadata });
        }
    }

    #[cfg(any(test, feature = "harness"))]
    fn mid_recovery_commit(&mut self, answer: CommitAnswer) {
        if planted!(self, FragmentCommittedMidRecovery)
            && let CommitAnswer::Committed(version) = answer
            && let (Some(found), Some(write)) = (&mut self.found, &self.write)
        {
            found.version = version;
            found.metadata.fragments.clone_from(&write.metadata().fragments);
        }
    }
}

/// Whether a bookie's answer is what was asked for: at least one entry, without gaps.
fn consecutive(first: EntryId, entries: &[StoredEntry]) -> bool {
    !entries.is_empty()
        && (first.0..).zip(entries).all(|(number, stored)| stored.entry == EntryId(number))
}

impl AppendEngine {
    fn frozen_lac(&self) -> Lac {
        match self.mode {
            super::append::Mode::Recovery(lac) => lac,
            super::append::Mode::Owner(_) => self.lac,
        }
    }

    fn lacks_copies(&self) -> bool {
        self.under_replicated || !self.queue.is_empty()
    }

    /// For a planted defect: what is pending counts as written.
    #[cfg(any(test, feature = "harness"))]
    fn pretend_confirmed(&mut self) {
        let needed = self.ack_quorum;
        for pending in &mut self.queue {
            pending.acks = SlotSet::first(needed);
            pending.owed = SlotSet::EMPTY;
        }
        self.advance(&mut Vec::new());
    }

    #[cfg(any(test, feature = "harness"))]
    pub(crate) fn with_planted(mut self, planted: Option<crate::harness::mutant::Mutant>) -> Self {
        self.planted = planted;
        self
    }
}

#[cfg(test)]
mod tests;
