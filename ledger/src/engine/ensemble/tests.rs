//! Changes of the ensemble against brute force: every ensemble that the record may hold is kept in
//! mind, and each confirmation, and each confirmation that doesn't come, is held against all.

use std::collections::BTreeSet;

use bytes::Bytes;
use geminga_meta::record::LedgerOwner;
use geminga_proto::id::{Lac, LedgerId, LedgerToken, ManagedLedgerId};
use geminga_proto::payload::Payload;
use proptest::prelude::*;

use super::*;
use crate::engine::EngineLimits;
use crate::metadata::{Fragment, LedgerMetadata};

const LIMITS: EngineLimits = EngineLimits {
    max_pending_bytes: 100_000,
    max_lag_bytes: 100_000,
    timeout_ticks: 200,
    retry_ticks: 2,
};
const BOOKIES: usize = 7;

fn bookie(index: usize) -> BookieId {
    BookieId::new(&format!("b{index}")).expect("valid")
}

/// What the engine waits for from elsewhere; one thing at a time.
#[derive(Debug, Default)]
enum Asked {
    #[default]
    Nothing,
    Bookies(usize, Vec<BookieId>),
    Commit(u64, LedgerMetadata),
    Read,
}

/// An engine, the store and the bookies around it.
struct World {
    engine: AppendEngine,
    out: Vec<Command>,
    store: Versioned,
    /// Writes whose answer was *unknown* and that may still be done.
    late: Vec<(u64, LedgerMetadata)>,
    asked: Asked,
    sent: Vec<(BookieId, EntryId)>,
    durable: BTreeSet<(BookieId, EntryId)>,
    /// By members, since they are members.
    heard: BTreeSet<(BookieId, EntryId)>,
    /// The ensemble that was written last, while the engine can't know what came of it; and
    /// whether one of its writes had an unknown outcome.
    unsettled: Option<(Vec<BookieId>, bool)>,
    confirmed: Lac,
    commits: usize,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Append,
    /// One of the adds under way is answered; with an error if the second is 0.
    Answer(usize, u8),
    /// Placement has so many bookies, beginning with this one.
    Offer(usize, usize),
    Commit(CommitOutcome),
    Read(bool),
    /// A write of unknown outcome is done, or not, late.
    Late,
    Tick,
}

#[derive(Debug, Clone, Copy)]
enum CommitOutcome {
    Applied,
    Unavailable,
    UnknownApplied,
    UnknownLate,
    UnknownNever,
}

fn step() -> impl Strategy<Value = Step> {
    use CommitOutcome::{Applied, Unavailable, UnknownApplied, UnknownLate, UnknownNever};
    let outcomes = vec![Applied, Unavailable, UnknownApplied, UnknownLate, UnknownNever];
    prop_oneof![
        3 => Just(Step::Append),
        8 => (0usize..40, 0u8..6).prop_map(|(which, how)| Step::Answer(which, how)),
        2 => (0..BOOKIES, 0usize..3).prop_map(|(first, count)| Step::Offer(first, count)),
        2 => proptest::sample::select(outcomes).prop_map(Step::Commit),
        2 => any::<bool>().prop_map(Step::Read),
        1 => Just(Step::Late),
        2 => Just(Step::Tick),
    ]
}

impl World {
    fn new(ack_quorum: u32) -> Self {
        let bookies: Vec<BookieId> = (0..3).map(bookie).collect();
        let metadata = LedgerMetadata {
            id: LedgerId(1),
            token: LedgerToken(7),
            owner: LedgerOwner::ManagedLedger(ManagedLedgerId(1)),
            state: LedgerState::Open,
            write_quorum: 3,
            ack_quorum,
            fragments: vec![Fragment { first_entry: EntryId(0), bookies }],
            last_entry: Lac::NONE,
            bytes: 0,
            created_ms: 0,
            under_replicated: false,
        };
        let store = Versioned { metadata, version: 1 };
        Self {
            engine: AppendEngine::owner(store.clone(), LIMITS),
            out: Vec::new(),
            store,
            late: Vec::new(),
            asked: Asked::Nothing,
            sent: Vec::new(),
            durable: BTreeSet::new(),
            heard: BTreeSet::new(),
            unsettled: None,
            confirmed: Lac::NONE,
            commits: 0,
        }
    }

    fn append(&mut self) {
        if self.engine.ended().is_some() {
            return;
        }
        let payload = Payload::from(Bytes::from_static(b"x"));
        self.engine.append(payload, &mut self.out).expect("taken");
        self.obey();
    }

    fn answer(&mut self, which: usize, error: Option<BookieError>) {
        if self.sent.is_empty() {
            return;
        }
        let (bookie, entry) = self.sent.remove(which % self.sent.len());
        if error.is_none() {
            self.durable.insert((bookie.clone(), entry));
            if self.members().contains(&bookie) {
                self.heard.insert((bookie.clone(), entry));
            }
        }
        let result = error.map_or(Ok(()), Err);
        self.engine.append_answered(&bookie, entry, result, &mut self.out);
        self.obey();
    }

    fn members(&self) -> &[BookieId] {
        &self.engine.metadata().last_fragment().bookies
    }

    fn offer(&mut self, first: usize, count: usize) {
        let Asked::Bookies(most, exclude) = &self.asked else { return };
        let all = (0..BOOKIES).map(|index| bookie((first + index) % BOOKIES));
        let picked = all.filter(|id| !exclude.contains(id)).take(count.min(*most)).collect();
        self.asked = Asked::Nothing;
        self.engine.replacement(picked, &mut self.out);
        self.obey();
    }

    fn apply(&mut self, version: u64, metadata: &LedgerMetadata) -> bool {
        let applied = self.store.version == version;
        if applied {
            metadata.validate().expect("a valid record");
            self.store = Versioned { metadata: metadata.clone(), version: version + 1 };
        }
        applied
    }

    fn commit(&mut self, outcome: CommitOutcome) {
        let Asked::Commit(version, metadata) = std::mem::take(&mut self.asked) else { return };
        let answer = match outcome {
            CommitOutcome::Applied if self.apply(version, &metadata) => {
                self.unsettled = None;
                CommitAnswer::Committed(version + 1)
            }
            CommitOutcome::Applied => CommitAnswer::Conflict,
            CommitOutcome::Unavailable => {
                if matches!(self.unsettled, Some((_, false))) {
                    self.unsettled = None;
                }
                CommitAnswer::Unavailable
            }
            CommitOutcome::UnknownApplied => {
                self.apply(version, &metadata);
                CommitAnswer::Unknown
            }
            CommitOutcome::UnknownLate => {
                self.late.push((version, metadata));
                CommitAnswer::Unknown
            }
            CommitOutcome::UnknownNever => CommitAnswer::Unknown,
        };
        if let Some((_, unknown)) = &mut self.unsettled {
            *unknown |= answer == CommitAnswer::Unknown;
        }
        self.engine.commit_answered(answer, &mut self.out);
        self.obey();
    }

    fn read(&mut self, answers: bool) {
        if !matches!(self.asked, Asked::Read) {
            return;
        }
        self.asked = Asked::Nothing;
        let found = MetadataAnswer::Found(self.store.clone());
        let answer = if answers { found } else { MetadataAnswer::Unavailable };
        self.engine.metadata_read(answer, &mut self.out);
        self.obey();
        if answers && !matches!(self.asked, Asked::Commit(..)) {
            self.unsettled = None;
        }
    }

    fn late(&mut self) {
        if let Some((version, metadata)) = self.late.pop() {
            self.apply(version, &metadata);
        }
        self.check_confirmed(Lac::NONE);
    }

    fn tick(&mut self) {
        self.engine.tick(&mut self.out);
        self.obey();
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Append => self.append(),
            Step::Answer(which, 0) => self.answer(which, Some(BookieError::Unreachable)),
            Step::Answer(which, _) => self.answer(which, None),
            Step::Offer(first, count) => self.offer(first, count),
            Step::Commit(outcome) => self.commit(outcome),
            Step::Read(answers) => self.read(answers),
            Step::Late => self.late(),
            Step::Tick => self.tick(),
        }
        let heard = std::mem::take(&mut self.heard);
        let members = self.members().to_vec();
        self.heard = heard.into_iter().filter(|(bookie, _)| members.contains(bookie)).collect();
        self.check_nothing_waits();
    }

    fn obey(&mut self) {
        for command in std::mem::take(&mut self.out) {
            match command {
                Command::Send { bookie, request } => {
                    let committed = &self.store.metadata.last_fragment().bookies;
                    assert!(committed.contains(&bookie), "{bookie} is in no committed ensemble");
                    self.sent.push((bookie, request.entry));
                }
                Command::Confirmed(entry) => {
                    let before = std::mem::replace(&mut self.confirmed, Lac(Some(entry)));
                    self.check_confirmed(before);
                }
                Command::PickReplacement { count, exclude } => {
                    self.asked = Asked::Bookies(count, exclude);
                }
                Command::Commit { version, metadata } => {
                    self.commits += 1;
                    let ensemble = metadata.last_fragment().bookies.clone();
                    let unknown = matches!(&self.unsettled, Some((_, true)));
                    self.unsettled = Some((ensemble, unknown));
                    self.asked = Asked::Commit(version, metadata);
                }
                Command::ReadMetadata => self.asked = Asked::Read,
                Command::Failed { failure, .. } => {
                    assert_eq!(failure, WriterFailure::QuorumLost, "nobody else is there");
                }
                Command::Stalled(_) | Command::Resumed => {}
                Command::Closed(_) | Command::CloseDelayed => panic!("nobody closes"),
            }
        }
    }

    /// Every record that the store may hold now or later.
    fn records(&self) -> impl Iterator<Item = &LedgerMetadata> {
        let asked = match &self.asked {
            Asked::Commit(version, metadata) => Some((version, metadata)),
            _ => None,
        };
        let late = self.late.iter().map(|(version, metadata)| (version, metadata));
        let writes = late.chain(asked).filter(|(version, _)| **version == self.store.version);
        std::iter::once(&self.store.metadata).chain(writes.map(|(_, metadata)| metadata))
    }

    /// All that is confirmed, above `after`, is on an ack quorum of each ensemble it may have.
    fn check_confirmed(&self, after: Lac) {
        let Lac(Some(last)) = self.confirmed else { return };
        for number in after.next_entry().0..=last.0 {
            let entry = EntryId(number);
            for record in self.records() {
                let members = &record.fragment_of(entry).0.bookies;
                let has = |id: &&BookieId| self.durable.contains(&((*id).clone(), entry));
                let copies = members.iter().filter(has).count();
                assert!(copies >= record.ack_quorum as usize, "{entry}: {copies} of {members:?}");
            }
        }
    }

    /// What members of all these ensembles have is confirmed, whatever the store does.
    fn check_nothing_waits(&self) {
        let entry = self.engine.lac().next_entry();
        if self.engine.ended().is_some() || entry >= self.engine.next_entry() {
            return;
        }
        let in_both = |id: &BookieId| match &self.unsettled {
            Some((ensemble, _)) => ensemble.contains(id),
            None => true,
        };
        let has = |id: &&BookieId| in_both(id) && self.heard.contains(&((*id).clone(), entry));
        let count = self.members().iter().filter(has).count();
        let needed = self.engine.metadata().ack_quorum as usize;
        assert!(count < needed, "{entry} waits, and {count} members of both have it");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn what_members_of_both_ensembles_have_is_confirmed_at_once_and_nothing_else_is(
        ack_quorum in 1u32..4,
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(ack_quorum);
        for step in steps {
            world.take(step);
        }
    }
}

/// A change from 0, 1, 2 to 0, 1, 3 that is being written.
fn changing() -> World {
    let mut world = World::new(2);
    world.append();
    world.sent.clear();
    let refused = Err(BookieError::Unreachable);
    world.engine.append_answered(&bookie(2), EntryId(0), refused, &mut world.out);
    world.obey();
    world.offer(3, 1);
    assert!(matches!(world.asked, Asked::Commit(..)));
    world
}

#[test]
fn a_store_that_hangs_holds_up_no_entry_that_the_surviving_bookies_have() {
    let mut world = changing();
    let ok = |world: &mut World, entry| {
        for index in [0, 1] {
            world.durable.insert((bookie(index), EntryId(entry)));
            world.engine.append_answered(&bookie(index), EntryId(entry), Ok(()), &mut world.out);
        }
        world.obey();
    };
    ok(&mut world, 0);
    assert_eq!(world.confirmed, Lac(Some(EntryId(0))), "while it is being written");
    world.commit(CommitOutcome::UnknownApplied);
    world.append();
    ok(&mut world, 1);
    assert_eq!(world.confirmed, Lac(Some(EntryId(1))), "while the record is being read");
    world.append();
    world.sent.clear();
    world.read(true);
    assert_eq!(world.sent, [(bookie(3), EntryId(2))], "applied it was: from LAC+1 on");
    assert!(world.engine.under_replicated, "the new one lacks what was confirmed meanwhile");
}

#[test]
fn a_member_that_failed_is_tried_again_while_the_store_hangs() {
    let mut world = changing();
    let refused = Err(BookieError::Unreachable);
    world.engine.append_answered(&bookie(1), EntryId(0), refused, &mut world.out);
    world.obey();
    assert_eq!(world.sent, []);
    for _ in 0..LIMITS.retry_ticks {
        world.tick();
    }
    assert_eq!(world.sent, [(bookie(1), EntryId(0))], "2 is being replaced, 1 isn't");
}

#[test]
fn a_write_whose_outcome_stays_unknown_is_repeated_after_pauses_that_grow() {
    let mut world = changing();
    let mut pauses = Vec::new();
    for _ in 0..7 {
        world.commit(CommitOutcome::UnknownNever);
        let mut pause = 0;
        while !matches!(world.asked, Asked::Read) {
            world.tick();
            pause += 1;
        }
        pauses.push(pause);
        world.read(true);
    }
    assert_eq!(pauses, [0, 2, 4, 8, 16, 16, 16], "in ticks");
    assert_eq!(world.commits, 8);
    world.commit(CommitOutcome::Applied);
    assert_eq!(world.sent, [(bookie(3), EntryId(0))]);
}
