//! The rules of recovery, one test each.

use bytes::Bytes;
use geminga_meta::record::LedgerOwner;
use geminga_proto::id::{LedgerId, LedgerToken, ManagedLedgerId};
use geminga_proto::storage::AddKind;

use super::*;
use crate::metadata::Fragment;
use crate::observer::WriterFailure;

const LIMITS: EngineLimits = EngineLimits {
    max_pending_bytes: 1 << 20,
    max_lag_bytes: 1 << 20,
    timeout_ticks: 3,
    retry_ticks: 2,
};

fn bookies(names: &str) -> Vec<BookieId> {
    names.split(' ').map(|name| BookieId::new(name).expect("valid")).collect()
}

fn record(state: LedgerState, fragments: &[(u64, &str)]) -> LedgerMetadata {
    let fragment = |(first, names): &(u64, &str)| Fragment {
        first_entry: EntryId(*first),
        bookies: bookies(names),
    };
    let fragments: Vec<Fragment> = fragments.iter().map(fragment).collect();
    LedgerMetadata {
        id: LedgerId(1),
        token: LedgerToken(7),
        owner: LedgerOwner::ManagedLedger(ManagedLedgerId(1)),
        state,
        write_quorum: fragments[0].bookies.len() as u32,
        ack_quorum: fragments[0].bookies.len().div_ceil(2) as u32,
        fragments,
        last_entry: Lac::NONE,
        bytes: 0,
        created_ms: 0,
        under_replicated: false,
    }
}

struct Bench {
    engine: RecoveryEngine,
    out: Vec<RecoveryCommand>,
}

impl Bench {
    /// The record has been read.
    fn loaded(metadata: LedgerMetadata) -> Self {
        let mut out = Vec::new();
        let engine = RecoveryEngine::start(LIMITS, &mut out);
        assert_eq!(out, [RecoveryCommand::ReadMetadata]);
        let mut bench = Self { engine, out: Vec::new() };
        bench.found(metadata, 1);
        bench
    }

    /// An IN_RECOVERY ledger on a, b and c (3, 2), fenced by a and b, who know this LAC.
    fn fenced(lac: i64) -> Self {
        let mut bench = Self::loaded(record(LedgerState::InRecovery, &[(0, "a b c")]));
        bench.fence("a", Ok(Lac::from_wire(lac)));
        bench.fence("b", Ok(Lac::NONE));
        bench
    }

    fn found(&mut self, metadata: LedgerMetadata, version: u64) {
        let found = MetadataAnswer::Found(Versioned { metadata, version });
        self.engine.metadata_read(found, &mut self.out);
    }

    fn fence(&mut self, name: &str, result: FenceResult) {
        self.engine.fenced(&bookies(name)[0], result, &mut self.out);
    }

    fn read(&mut self, name: &str, result: Result<(u64, u64), BookieError>) {
        let entries = result.map(|(first, last)| {
            let stored = |number| StoredEntry {
                entry: EntryId(number),
                lac: Lac::NONE,
                payload: Bytes::from(vec![1; 10]),
            };
            (first..=last).map(stored).collect()
        });
        let round = self.engine.round;
        self.engine.read(&bookies(name)[0], round, entries, &mut self.out);
    }

    fn wrote(&mut self, name: &str, entry: u64, result: AppendResult) {
        self.engine.append_answered(&bookies(name)[0], EntryId(entry), result, &mut self.out);
    }

    fn take(&mut self) -> Vec<RecoveryCommand> {
        std::mem::take(&mut self.out)
    }

    /// The reads that were sent: from whom, which first entry, whether they fence.
    fn reads(&mut self) -> Vec<(String, u64, bool)> {
        let read = |command: &RecoveryCommand| match command {
            RecoveryCommand::Read { bookie, request, .. } => {
                Some((bookie.to_string(), request.first.0, request.fence == Some(LedgerToken(7))))
            }
            _ => None,
        };
        self.out.iter().filter_map(read).collect()
    }

    fn commit(&mut self) -> (u64, LedgerMetadata) {
        let commit = |command| match command {
            RecoveryCommand::Commit { version, metadata } => Some((version, metadata)),
            _ => None,
        };
        self.take().into_iter().find_map(commit).expect("a record is to be written")
    }

    fn result(&mut self) -> Result<LedgerMetadata, RecoveryFailure> {
        let done = |command| match command {
            RecoveryCommand::Done(result) => Some(result),
            _ => None,
        };
        self.take().into_iter().find_map(done).expect("it is over")
    }

    fn end(&mut self) {
        self.read("a", Err(BookieError::NoSuchEntry));
        self.read("b", Err(BookieError::NoSuchEntry));
    }
}

fn three(entry: u64) -> [(String, u64, bool); 3] {
    ["a", "b", "c"].map(|name| (name.to_owned(), entry, true))
}

#[test]
fn an_open_ledger_is_marked_before_anything_is_fenced() {
    let mut bench = Bench::loaded(record(LedgerState::Open, &[(0, "a b c")]));
    let (version, marked) = bench.commit();
    assert_eq!((version, marked.state), (1, LedgerState::InRecovery));
    bench.engine.commit_answered(CommitAnswer::Committed(2), &mut bench.out);
    let fences = bench.take();
    assert_eq!(fences.len(), 3);
    assert!(fences.iter().all(|command| matches!(command, RecoveryCommand::Fence { .. })));
}

#[test]
fn a_ledger_that_somebody_began_to_recover_is_gone_on_with_and_a_closed_one_is_done() {
    let mut bench = Bench::loaded(record(LedgerState::InRecovery, &[(0, "a b c")]));
    assert_eq!(bench.take().len(), 3, "three fences and no write");
    let closed = record(LedgerState::Closed, &[(0, "a b c")]);
    assert_eq!(Bench::loaded(closed.clone()).result(), Ok(closed));
}

#[test]
fn marking_whose_outcome_is_unknown_is_decided_by_reading() {
    let mut bench = Bench::loaded(record(LedgerState::Open, &[(0, "a b c")]));
    bench.take();
    bench.engine.commit_answered(CommitAnswer::Unknown, &mut bench.out);
    assert_eq!(bench.take(), [RecoveryCommand::ReadMetadata]);
    bench.found(record(LedgerState::InRecovery, &[(0, "a b c")]), 2);
    assert_eq!(bench.take().len(), 3);
}

#[test]
fn a_record_that_others_change_time_and_again_ends_the_recovery_for_now() {
    let unsettled = Err(RecoveryFailure::Unsettled { writes: UNSETTLED_WRITES });
    for answer in [CommitAnswer::Conflict, CommitAnswer::Unknown] {
        let open = record(LedgerState::Open, &[(0, "a b c")]);
        let mut bench = Bench::loaded(open.clone());
        for version in 2..u64::from(UNSETTLED_WRITES) + 1 {
            bench.take();
            bench.engine.commit_answered(answer, &mut bench.out);
            assert_eq!(bench.take(), [RecoveryCommand::ReadMetadata]);
            bench.found(open.clone(), version);
        }
        bench.engine.commit_answered(answer, &mut bench.out);
        assert_eq!(bench.result(), unsettled, "marking");

        let marked = record(LedgerState::InRecovery, &[(0, "a b c")]);
        let mut bench = Bench::fenced(4);
        bench.end();
        for version in 2..u64::from(UNSETTLED_WRITES) + 1 {
            assert_eq!(bench.commit().0, version - 1);
            bench.engine.commit_answered(answer, &mut bench.out);
            assert_eq!(bench.take(), [RecoveryCommand::ReadMetadata]);
            bench.found(marked.clone(), version);
        }
        bench.engine.commit_answered(answer, &mut bench.out);
        assert_eq!(bench.result(), unsettled, "closing");
    }
}

#[test]
fn every_recovery_read_fences() {
    let mut bench = Bench::fenced(4);
    assert_eq!(bench.reads(), three(5));
    bench.take();
    bench.read("c", Ok((5, 6)));
    assert_eq!(bench.reads(), three(7), "also the later ones");
}

#[test]
fn reads_wait_until_no_ack_quorum_can_be_formed_without_a_fenced_bookie() {
    let mut bench = Bench::loaded(record(LedgerState::InRecovery, &[(0, "a b c")]));
    bench.take();
    bench.fence("a", Ok(Lac::NONE));
    bench.fence("a", Ok(Lac::NONE));
    assert_eq!(bench.take(), [], "b and c could still confirm entries");
    bench.fence("c", Ok(Lac::NONE));
    assert_eq!(bench.reads().len(), 3);
}

#[test]
fn too_few_fenced_bookies_end_the_recovery_for_now() {
    let mut bench = Bench::loaded(record(LedgerState::InRecovery, &[(0, "a b c")]));
    bench.take();
    bench.fence("a", Ok(Lac::NONE));
    bench.fence("b", Err(BookieError::Io));
    bench.fence("c", Err(BookieError::Unreachable));
    assert_eq!(bench.result(), Err(RecoveryFailure::Fence(BookieError::Unreachable)));
}

#[test]
fn the_lac_is_frozen_and_goes_with_every_entry_written_back() {
    let mut bench = Bench::fenced(4);
    bench.fence("c", Ok(Lac::from_wire(50)));
    bench.take();
    bench.read("c", Ok((5, 8)));
    let lacs = |commands: Vec<RecoveryCommand>| -> Vec<(u64, Lac, AddKind)> {
        let sent = |command| match command {
            RecoveryCommand::Send { request, .. } => {
                Some((request.entry.0, request.lac, request.kind))
            }
            _ => None,
        };
        commands.into_iter().filter_map(sent).collect()
    };
    let frozen = Lac(Some(EntryId(4)));
    let first = bench.take();
    for command in &first {
        let RecoveryCommand::Send { bookie, .. } = command else { continue };
        assert_ne!(bookie.as_str(), "c", "c has what it has shown");
    }
    let first = lacs(first);
    assert_eq!(first.len(), 8);
    assert!(first.iter().all(|(_, lac, kind)| *lac == frozen && *kind == AddKind::Recovery));
    bench.wrote("a", 5, Ok(()));
    bench.wrote("b", 5, Ok(()));
    bench.read("a", Ok((9, 9)));
    let later = lacs(bench.take());
    assert_eq!(later.len(), 2);
    assert!(later.iter().all(|(entry, lac, _)| *entry == 9 && *lac == frozen));
}

#[test]
fn the_search_starts_after_the_lac_but_never_before_the_last_fragment() {
    let fragments = [(0, "x y z"), (20, "a b c")];
    for (lac, first) in [(-1, 20), (4, 20), (19, 20), (30, 31)] {
        let mut bench = Bench::loaded(record(LedgerState::InRecovery, &fragments));
        bench.fence("a", Ok(Lac::from_wire(lac)));
        bench.take();
        bench.fence("b", Ok(Lac::NONE));
        assert_eq!(bench.reads(), three(first), "LAC {lac}");
        assert_eq!(bench.engine.first_searched(), Some(EntryId(first)));
    }
}

#[test]
fn one_copy_is_enough_and_two_bookies_without_it_are_the_end() {
    let mut bench = Bench::fenced(4);
    bench.take();
    bench.read("a", Err(BookieError::NoSuchEntry));
    assert_eq!(bench.take(), []);
    bench.read("b", Ok((5, 5)));
    assert_eq!(bench.reads(), three(6));
    bench.take();
    bench.end();
    assert_eq!(bench.take(), [], "the entry is not yet written back");
    bench.wrote("a", 5, Ok(()));
    bench.wrote("b", 5, Ok(()));
    let (_, closed) = bench.commit();
    assert_eq!((closed.state, closed.last_entry), (LedgerState::Closed, Lac(Some(EntryId(5)))));
    bench.engine.commit_answered(CommitAnswer::Committed(2), &mut bench.out);
    assert_eq!(bench.result(), Ok(closed));
}

#[test]
fn an_empty_ledger_is_closed_as_empty_and_keeps_its_first_fragment() {
    let mut bench = Bench::fenced(-1);
    bench.take();
    bench.end();
    let (_, closed) = bench.commit();
    assert_eq!(closed.last_entry, Lac::NONE);
    assert_eq!(closed.fragments, record(LedgerState::Open, &[(0, "a b c")]).fragments);
    assert_eq!(closed.validate(), Ok(()));
}

#[test]
fn a_last_fragment_without_entries_goes_when_the_ledger_is_closed() {
    let fragments = [(0, "x y z"), (20, "a b c")];
    let mut bench = Bench::loaded(record(LedgerState::InRecovery, &fragments));
    bench.fence("a", Ok(Lac::NONE));
    bench.fence("b", Ok(Lac::NONE));
    bench.take();
    bench.end();
    let (_, closed) = bench.commit();
    assert_eq!(closed.last_entry, Lac(Some(EntryId(19))));
    assert_eq!(closed.fragments.len(), 1);
    assert!(closed.under_replicated, "who wrote 0 to 19 is gone: repair has to look");
}

#[test]
fn corrupt_unknown_and_missing_answers_never_count_as_no_such_entry() {
    for error in [
        BookieError::CorruptEntry,
        BookieError::UnknownEntry,
        BookieError::Io,
        BookieError::Unreachable,
        BookieError::Overloaded,
    ] {
        let mut bench = Bench::fenced(4);
        bench.take();
        bench.read("a", Err(error));
        bench.read("b", Err(BookieError::NoSuchEntry));
        assert_eq!(bench.take(), []);
        bench.read("c", Err(error));
        assert_eq!(bench.result(), Err(RecoveryFailure::Undecided(EntryId(5), error)));
    }
}

#[test]
fn an_answer_that_is_not_what_was_asked_for_is_no_answer() {
    let mut bench = Bench::fenced(4);
    bench.take();
    bench.read("a", Ok((6, 7)));
    bench.read("b", Err(BookieError::NoSuchEntry));
    bench.read("c", Err(BookieError::Unreachable));
    let undecided = RecoveryFailure::Undecided(EntryId(5), BookieError::Unreachable);
    assert_eq!(bench.result(), Err(undecided));
}

#[test]
fn ensemble_changes_stay_local_and_reads_keep_to_the_original_ensemble() {
    let mut bench = Bench::fenced(4);
    bench.take();
    bench.read("a", Ok((5, 6)));
    bench.take();
    bench.wrote("a", 5, Ok(()));
    bench.wrote("b", 5, Ok(()));
    bench.wrote("c", 6, Err(BookieError::Io));
    let asked = bench.take();
    assert!(matches!(asked[..], [RecoveryCommand::PickReplacement { count: 1, .. }]), "{asked:?}");
    bench.engine.replacement(bookies("d"), &mut bench.out);
    let resent = bench.take();
    assert!(
        matches!(&resent[..], [RecoveryCommand::Send { bookie, request }]
            if bookie.as_str() == "d" && request.entry == EntryId(6)),
        "nothing is committed: {resent:?}"
    );
    bench.read("a", Ok((7, 7)));
    assert_eq!(bench.reads(), three(8), "not from d");
    bench.take();
    bench.end();
    for entry in [6, 7] {
        bench.wrote("a", entry, Ok(()));
        bench.wrote("d", entry, Ok(()));
    }
    let (_, closed) = bench.commit();
    assert_eq!(closed.fragments[0].bookies, bookies("a b c"));
    assert_eq!(closed.fragments[1].first_entry, EntryId(6));
    assert_eq!(closed.fragments[1].bookies, bookies("a b d"));
}

#[test]
fn entries_that_cant_be_written_back_end_the_recovery_for_now() {
    let mut bench = Bench::fenced(4);
    bench.read("a", Ok((5, 5)));
    bench.wrote("b", 5, Err(BookieError::DiskFull));
    bench.wrote("c", 5, Err(BookieError::DiskFull));
    bench.engine.replacement(Vec::new(), &mut bench.out);
    // Meanwhile the bookies are tried again; space is not waited for longer than anything else.
    for _ in 0..=LIMITS.timeout_ticks {
        bench.engine.tick(&mut bench.out);
    }
    let failure = RecoveryFailure::WriteBack(WriterFailure::QuorumLost);
    assert_eq!(bench.result(), Err(failure));
}

#[test]
fn what_a_bookie_shows_that_was_replaced_meanwhile_does_not_count() {
    let mut bench = Bench::fenced(4);
    bench.read("a", Ok((5, 5)));
    bench.wrote("b", 5, Err(BookieError::ReadOnly));
    bench.engine.replacement(bookies("d"), &mut bench.out);
    bench.take();
    bench.read("b", Ok((6, 6)));
    let receiver = |command: RecoveryCommand| match command {
        RecoveryCommand::Send { bookie, request } if request.entry == EntryId(6) => {
            Some(bookie.to_string())
        }
        _ => None,
    };
    let mut receivers: Vec<String> = bench.take().into_iter().filter_map(receiver).collect();
    receivers.sort();
    assert_eq!(receivers, ["a", "c", "d"]);
}

#[test]
fn what_the_only_bookie_shows_takes_no_space_on_it_again() {
    let mut only = record(LedgerState::InRecovery, &[(0, "a")]);
    (only.write_quorum, only.ack_quorum) = (1, 1);
    let mut bench = Bench::loaded(only);
    bench.fence("a", Ok(Lac::from_wire(4)));
    bench.read("a", Ok((5, 7)));
    let sent = |command: &RecoveryCommand| matches!(command, RecoveryCommand::Send { .. });
    assert!(!bench.take().iter().any(sent));
    bench.read("a", Err(BookieError::NoSuchEntry));
    let (_, closed) = bench.commit();
    assert_eq!((closed.state, closed.last_entry), (LedgerState::Closed, Lac::from_wire(7)));
}

#[test]
fn the_loser_of_the_closing_write_takes_the_winners_result() {
    let mut bench = Bench::fenced(4);
    bench.take();
    bench.end();
    bench.take();
    bench.engine.commit_answered(CommitAnswer::Conflict, &mut bench.out);
    assert_eq!(bench.take(), [RecoveryCommand::ReadMetadata]);
    let mut winner = record(LedgerState::Closed, &[(0, "a b c")]);
    winner.last_entry = Lac(Some(EntryId(9)));
    bench.found(winner.clone(), 7);
    assert_eq!(bench.result(), Ok(winner));
}

#[test]
fn a_repair_of_an_older_fragment_is_kept_by_the_closing_write() {
    let mut bench = Bench::loaded(record(LedgerState::InRecovery, &[(0, "x y z"), (3, "a b c")]));
    bench.fence("a", Ok(Lac::from_wire(4)));
    bench.fence("b", Ok(Lac::NONE));
    bench.end();
    bench.take();
    bench.engine.commit_answered(CommitAnswer::Conflict, &mut bench.out);
    bench.take();
    bench.found(record(LedgerState::InRecovery, &[(0, "x y w"), (3, "a b c")]), 8);
    let (version, closed) = bench.commit();
    assert_eq!(version, 8);
    assert_eq!(closed.fragments[0].bookies, bookies("x y w"));
    assert_eq!(closed.last_entry, Lac(Some(EntryId(4))));
}

#[test]
fn a_hung_bookie_blocks_nothing_while_coverage_is_reached_without_it() {
    // c never answers anything.
    let mut bench = Bench::fenced(4);
    bench.read("a", Ok((5, 5)));
    bench.end();
    bench.wrote("a", 5, Ok(()));
    bench.wrote("b", 5, Ok(()));
    assert_eq!(bench.commit().1.last_entry, Lac(Some(EntryId(5))));
}

#[test]
fn answers_of_an_earlier_read_dont_count_for_a_later_one() {
    let mut bench = Bench::fenced(4);
    let early = bench.engine.round;
    bench.read("a", Ok((5, 5)));
    bench.take();
    for name in ["b", "c"] {
        let late = Err(BookieError::NoSuchEntry);
        bench.engine.read(&bookies(name)[0], early, late, &mut bench.out);
    }
    assert_eq!(bench.take(), []);
}
