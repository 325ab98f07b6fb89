//! Owners of the log: each takes it over (fences and recovers its last two ledgers, then appends
//! a ledger of its own to the list), appends entries, rolls to a next ledger, and goes on as a
//! zombie until somebody tells it better.

use std::collections::VecDeque;

use bytes::Bytes;
use geminga_meta::record::LedgerOwner;
use geminga_proto::id::{EntryId, Lac, LedgerId, LedgerToken, ManagedLedgerId};
use geminga_proto::payload::Payload;

use crate::engine::append::AppendEngine;
use crate::engine::recovery::RecoveryEngine;
use crate::engine::{RecoveryFailure, Versioned};
use crate::harness::metadata::{MetaOp, MetaReply};
use crate::harness::mutant::Mutant;
use crate::harness::sim::{Actor, Caller, Event, Machine, Simulation};
use crate::harness::theme::Theme;
use crate::metadata::{Fragment, LedgerMetadata, LedgerState};
use crate::observer::WriterFailure;

/// How far an owner is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// It reads the list.
    Listing,
    /// It recovers these, the first one now.
    Recovering(VecDeque<LedgerId>),
    /// Its first ledger is being created.
    Creating,
    /// It appends.
    Serving,
    /// It has given up; its ledgers may still have answers coming.
    Gone,
}

/// A ledger that is being created.
#[derive(Debug, Clone)]
pub(super) struct Creating {
    metadata: LedgerMetadata,
    /// The outcome is unknown, the list is being read.
    unknown: bool,
}

/// One owner.
#[derive(Debug)]
pub(super) struct Owner {
    pub phase: Phase,
    pub list_version: u64,
    pub creating: Option<Creating>,
    /// The ledger that it appends to.
    pub current: Option<usize>,
    /// The ledger before, until it is closed.
    pub closing: Option<usize>,
    /// Appends that it will still make.
    pub budget: u32,
    /// It is the one that comes after all faults.
    pub last: bool,
}

impl Simulation {
    /// A new owner takes the log over.
    pub(super) fn take_over(&mut self, last: bool) {
        if last {
            // The others begin nothing new; what they have open stays open.
            self.owners.iter_mut().for_each(|owner| owner.phase = Phase::Gone);
        }
        let owner = self.owners.len();
        let budget = if last { 0 } else { 10 + self.below(40) as u32 };
        self.owners.push(Owner {
            phase: Phase::Listing,
            list_version: 0,
            creating: None,
            current: None,
            closing: None,
            budget,
            last,
        });
        self.ask_metadata(Caller::Owner(owner), MetaOp::ReadList);
    }

    /// The store has answered an owner.
    pub(super) fn owner_reply(&mut self, owner: usize, reply: MetaReply) {
        let phase = self.owners[owner].phase.clone();
        match (phase, reply) {
            (Phase::Gone, _) => {}
            (Phase::Listing, MetaReply::List(version, list)) => {
                self.owners[owner].list_version = version;
                let count = if self.has(Mutant::RecoversOnlyLastLedger) { 1 } else { 2 };
                let skip = list.len().saturating_sub(count);
                let left: VecDeque<LedgerId> = list.into_iter().skip(skip).collect();
                self.owners[owner].phase = Phase::Recovering(left);
                self.recover_next(owner);
            }
            (Phase::Listing, _) => self.retry(owner),
            (Phase::Creating | Phase::Serving, reply) => self.creation_reply(owner, reply),
            (Phase::Recovering(_), _) => {}
        }
    }

    fn retry(&mut self, owner: usize) {
        let delay = 20 + self.below(60);
        self.schedule(delay, Event::Step(owner));
    }

    fn recover_next(&mut self, owner: usize) {
        let Phase::Recovering(left) = &self.owners[owner].phase else { return };
        match left.front() {
            Some(ledger) => {
                let ledger = *ledger;
                let mut commands = Vec::new();
                let mut engine = RecoveryEngine::start(self.limits, &mut commands);
                engine.planted = self.mutant;
                let actor = self.add_actor(owner, ledger, Machine::Recovery(Box::new(engine)));
                self.perform_recovery(actor, commands);
            }
            None if self.owners[owner].last => self.owners[owner].phase = Phase::Gone,
            None => {
                self.owners[owner].phase = Phase::Creating;
                self.create_ledger(owner);
            }
        }
    }

    /// A recovery is over.
    pub(super) fn recovered(
        &mut self,
        actor: usize,
        result: Result<LedgerMetadata, RecoveryFailure>,
    ) {
        let owner = self.actors[actor].owner;
        self.actors[actor].over = true;
        match result {
            Ok(metadata) => {
                self.recoveries += 1;
                self.checker.told_closed(&metadata);
                self.after_recovery(&metadata.last_fragment().bookies);
                if let Phase::Recovering(left) = &mut self.owners[owner].phase {
                    left.pop_front();
                    self.recover_next(owner);
                }
            }
            Err(RecoveryFailure::NotFound) => {
                // Deleted by an owner that took over meanwhile: the list has changed.
                self.owners[owner].phase = Phase::Listing;
                self.retry(owner);
            }
            Err(_) => self.retry(owner),
        }
    }

    fn create_ledger(&mut self, owner: usize) {
        self.next_ledger += 1;
        let id = LedgerId(self.next_ledger);
        let Some(bookies) = self.pick(self.write_quorum, self.ack_quorum, &[]) else {
            self.retry(owner);
            return;
        };
        let write_quorum = bookies.len() as u32;
        let metadata = LedgerMetadata {
            id,
            token: LedgerToken(self.random_u64() | 1),
            owner: LedgerOwner::ManagedLedger(ManagedLedgerId(1)),
            state: LedgerState::Open,
            write_quorum,
            ack_quorum: self.ack_quorum as u32,
            fragments: vec![Fragment { first_entry: EntryId(0), bookies }],
            last_entry: Lac::NONE,
            bytes: 0,
            created_ms: 0,
            under_replicated: (write_quorum as usize) < self.write_quorum,
        };
        let version = self.owners[owner].list_version;
        let op = if self.has(Mutant::ServesBeforeListCommit) {
            MetaOp::Create(metadata.clone())
        } else {
            MetaOp::CreateAndLink(version, metadata.clone())
        };
        self.owners[owner].creating = Some(Creating { metadata, unknown: false });
        self.ask_metadata(Caller::Owner(owner), op);
    }

    fn creation_reply(&mut self, owner: usize, reply: MetaReply) {
        let Some(mut creating) = self.owners[owner].creating.take() else { return };
        match reply {
            MetaReply::Applied(version) if self.has(Mutant::ServesBeforeListCommit) => {
                let id = creating.metadata.id;
                let list_version = self.owners[owner].list_version;
                self.serve(owner, Versioned { metadata: creating.metadata, version });
                self.ask_metadata(Caller::Owner(owner), MetaOp::Link(list_version, id));
            }
            MetaReply::Applied(version) => {
                self.owners[owner].list_version = version;
                self.serve(owner, Versioned { metadata: creating.metadata, version });
            }
            MetaReply::Unknown => {
                creating.unknown = true;
                self.owners[owner].creating = Some(creating);
                self.ask_metadata(Caller::Owner(owner), MetaOp::ReadList);
            }
            MetaReply::List(version, list) if list.last() == Some(&creating.metadata.id) => {
                self.owners[owner].list_version = version;
                let id = creating.metadata.id;
                self.owners[owner].creating = Some(creating);
                self.ask_metadata(Caller::Owner(owner), MetaOp::ReadLedger(id));
            }
            MetaReply::Ledger(Some(found)) if found.metadata.state == LedgerState::Open => {
                self.serve(owner, found);
            }
            MetaReply::Unavailable | MetaReply::NotRead if creating.unknown => {
                self.owners[owner].creating = Some(creating);
                self.retry(owner);
            }
            MetaReply::Unavailable | MetaReply::NotRead => self.retry(owner),
            MetaReply::List(..) | MetaReply::Ledger(_) | MetaReply::Conflict => self.leave(owner),
        }
    }

    /// The owner's new ledger is in the list.
    fn serve(&mut self, owner: usize, created: Versioned) {
        let ledger = created.metadata.id;
        let mut engine = AppendEngine::owner(created, self.limits);
        engine.planted = self.mutant;
        let actor = self.add_actor(owner, ledger, Machine::Writer(Box::new(engine)));
        let before = self.owners[owner].current.replace(actor);
        self.owners[owner].phase = Phase::Serving;
        if let Some(before) = before {
            self.owners[owner].closing = Some(before);
            self.writer_event(before, AppendEngine::close);
        } else {
            let delay = 1 + self.below(if self.below(4) == 0 { 500 } else { 5 });
            self.schedule(delay, Event::Step(owner));
        }
    }

    /// It learned that the log isn't its own, or may not be.
    pub(super) fn leave(&mut self, owner: usize) {
        self.owners[owner].phase = Phase::Gone;
        if self.below(2) == 0 && self.faulty {
            let delay = 50 + self.below(400);
            self.schedule(delay, Event::TakeOver);
        }
    }

    /// The next thing that an owner does by itself.
    pub(super) fn step(&mut self, owner: usize) {
        match self.owners[owner].phase.clone() {
            Phase::Gone => {}
            Phase::Listing => self.ask_metadata(Caller::Owner(owner), MetaOp::ReadList),
            Phase::Recovering(_) => self.recover_next(owner),
            Phase::Creating => match &self.owners[owner].creating {
                Some(creating) if creating.unknown => {
                    self.ask_metadata(Caller::Owner(owner), MetaOp::ReadList);
                }
                _ => self.create_ledger(owner),
            },
            Phase::Serving => self.serve_step(owner),
        }
    }

    fn serve_step(&mut self, owner: usize) {
        let retrying = self.owners[owner].creating.as_ref().is_some_and(|found| found.unknown);
        if retrying {
            self.ask_metadata(Caller::Owner(owner), MetaOp::ReadList);
        }
        if self.owners[owner].budget == 0 || !self.faulty {
            return;
        }
        let Some(actor) = self.owners[owner].current else { return };
        for _ in 0..=self.below(4) {
            self.append(owner, actor);
        }
        let idle = self.owners[owner].creating.is_none() && self.owners[owner].closing.is_none();
        if idle && self.below(10) == 0 {
            self.create_ledger(owner);
        }
        // Sometimes it has nothing to say for a while.
        let (quiet, longest) = if self.theme == Theme::Deletion { (3, 1_500) } else { (8, 500) };
        let quiet = self.below(quiet) == 0;
        let delay = 1 + self.below(if quiet { longest } else { 40 });
        self.schedule(delay, Event::Step(owner));
    }

    fn append(&mut self, owner: usize, actor: usize) {
        let content = self.random_u64();
        let padding = self.below(40) as usize;
        let mut bytes = content.to_be_bytes().to_vec();
        bytes.resize(8 + padding, 0);
        let payload = Payload::from(Bytes::from(bytes));
        let at = self.events;
        let ledger = self.actors[actor].ledger;
        let mut commands = Vec::new();
        let Machine::Writer(engine) = &mut self.actors[actor].machine else { return };
        let next = engine.next_entry();
        if engine.append(payload, &mut commands) == Ok(next) {
            self.owners[owner].budget = self.owners[owner].budget.saturating_sub(1);
            self.checker.begun(ledger, next, content, at);
        }
        self.perform_writer(actor, commands);
    }

    /// An owner's ledger has failed.
    pub(super) fn writer_failed(
        &mut self,
        actor: usize,
        failure: &WriterFailure,
        unknown: Option<(EntryId, EntryId)>,
    ) {
        let Actor { owner, ledger, .. } = self.actors[actor];
        self.checker.failed(actor, ledger, failure, unknown);
        self.actors[actor].over = true;
        if *failure == WriterFailure::Diverged {
            self.checker.broken(|| format!("the owner of {ledger} and the metadata diverged"));
        }
        if self.owners[owner].phase != Phase::Gone {
            self.leave(owner);
        }
    }

    /// An owner has closed its ledger.
    pub(super) fn writer_closed(&mut self, actor: usize, metadata: &LedgerMetadata) {
        self.checker.told_closed(metadata);
        self.actors[actor].over = true;
        let owner = self.actors[actor].owner;
        if self.owners[owner].closing == Some(actor) {
            self.owners[owner].closing = None;
        }
    }
}
