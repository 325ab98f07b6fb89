//! The owner's rules of the protocol, one test each: set a state, feed an event, compare the
//! commands.
//!
//! Length: one short test for each rule is easier to find here than in several files.

use bytes::Bytes;
use geminga_meta::record::LedgerOwner;
use geminga_proto::id::ManagedLedgerId;

use super::*;
use crate::engine::{CommitAnswer, MetadataAnswer};
use crate::metadata::{Fragment, LedgerState};

const LIMITS: EngineLimits =
    EngineLimits { max_pending_bytes: 1_000, max_lag_bytes: 300, timeout_ticks: 3, retry_ticks: 2 };

fn bookie(name: &str) -> BookieId {
    BookieId::new(name).expect("valid")
}

fn bookies(names: &str) -> Vec<BookieId> {
    names.split(' ').map(bookie).collect()
}

fn metadata(names: &str, ack_quorum: u32) -> LedgerMetadata {
    let bookies = bookies(names);
    LedgerMetadata {
        id: LedgerId(1),
        token: LedgerToken(7),
        owner: LedgerOwner::ManagedLedger(ManagedLedgerId(1)),
        state: LedgerState::Open,
        write_quorum: bookies.len() as u32,
        ack_quorum,
        fragments: vec![Fragment { first_entry: EntryId(0), bookies }],
        last_entry: Lac::NONE,
        bytes: 0,
        created_ms: 0,
        under_replicated: false,
    }
}

/// An engine and the commands that it gave and nobody has looked at.
struct Bench {
    engine: AppendEngine,
    out: Vec<Command>,
}

impl Bench {
    fn new(names: &str, ack_quorum: u32) -> Self {
        let created = Versioned { metadata: metadata(names, ack_quorum), version: 1 };
        Self { engine: AppendEngine::owner(created, LIMITS), out: Vec::new() }
    }

    fn append(&mut self, bytes: usize) -> EntryId {
        let payload = Payload::from(Bytes::from(vec![1; bytes]));
        self.engine.append(payload, &mut self.out).expect("taken")
    }

    fn append_many(&mut self, count: usize) {
        for _ in 0..count {
            self.append(1);
        }
    }

    fn ok(&mut self, name: &str, entry: u64) {
        self.engine.append_answered(&bookie(name), EntryId(entry), Ok(()), &mut self.out);
    }

    fn refuse(&mut self, name: &str, entry: u64, error: BookieError) {
        self.engine.append_answered(&bookie(name), EntryId(entry), Err(error), &mut self.out);
    }

    fn replace(&mut self, names: &str) {
        let picked = if names.is_empty() { Vec::new() } else { bookies(names) };
        self.engine.replacement(picked, &mut self.out);
    }

    fn committed(&mut self, answer: CommitAnswer) {
        self.engine.commit_answered(answer, &mut self.out);
    }

    fn found(&mut self, metadata: LedgerMetadata, version: u64) {
        let found = MetadataAnswer::Found(Versioned { metadata, version });
        self.engine.metadata_read(found, &mut self.out);
    }

    fn ticks(&mut self, count: u32) {
        for _ in 0..count {
            self.engine.tick(&mut self.out);
        }
    }

    /// What was commanded since the last look.
    fn take(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.out)
    }

    /// Since the last look: who was sent which entries.
    fn sent(&mut self) -> Vec<(String, u64)> {
        let sent = |command: Command| match command {
            Command::Send { bookie, request } => Some((bookie.to_string(), request.entry.0)),
            _ => None,
        };
        self.take().into_iter().filter_map(sent).collect()
    }

    /// Since the last look: the record that was to be written.
    fn written(&mut self) -> LedgerMetadata {
        let written = |command| match command {
            Command::Commit { metadata, .. } => Some(metadata),
            _ => None,
        };
        self.take().into_iter().find_map(written).expect("a record is to be written")
    }
}

fn confirmed(entry: u64) -> Command {
    Command::Confirmed(EntryId(entry))
}

fn pick(count: usize, exclude: &str) -> Command {
    Command::PickReplacement { count, exclude: bookies(exclude) }
}

fn failed(failure: WriterFailure, unknown: Option<(u64, u64)>) -> Command {
    let unknown = unknown.map(|(first, last)| (EntryId(first), EntryId(last)));
    Command::Failed { failure, unknown }
}

#[test]
fn each_entry_goes_to_the_whole_ensemble_with_the_lac_of_that_moment() {
    let mut bench = Bench::new("a b c", 2);
    assert_eq!(bench.append(4), EntryId(0));
    bench.ok("a", 0);
    bench.ok("b", 0);
    assert_eq!(bench.append(4), EntryId(1));
    let lacs: Vec<_> = bench
        .take()
        .into_iter()
        .filter_map(|command| match command {
            Command::Send { bookie, request } => {
                assert_eq!(request.kind, AddKind::Ordinary);
                assert_eq!(request.token, LedgerToken(7));
                Some((bookie.to_string(), request.entry.0, request.lac.to_wire()))
            }
            _ => None,
        })
        .collect();
    let text = |name: &str| name.to_owned();
    let first = [(text("a"), 0, -1), (text("b"), 0, -1), (text("c"), 0, -1)];
    let second = [(text("a"), 1, 0), (text("b"), 1, 0), (text("c"), 1, 0)];
    assert_eq!(lacs, [first, second].concat());
}

#[test]
fn an_entry_is_confirmed_at_its_ack_quorum_and_not_before() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(4);
    bench.take();
    bench.ok("a", 0);
    bench.ok("a", 0);
    assert_eq!(bench.take(), [], "one bookie counts once, however often it answers");
    bench.ok("c", 0);
    assert_eq!(bench.take(), [confirmed(0)]);
    bench.ok("b", 0);
    assert_eq!(bench.take(), [], "and an entry is confirmed once");
}

#[test]
fn an_entry_is_confirmed_only_after_every_entry_before_it() {
    let mut bench = Bench::new("a b c", 2);
    bench.append_many(3);
    bench.take();
    for entry in [2, 1] {
        bench.ok("a", entry);
        bench.ok("b", entry);
    }
    assert_eq!((bench.take(), bench.engine.lac()), (vec![], Lac::NONE));
    bench.ok("a", 0);
    bench.ok("b", 0);
    assert_eq!(bench.take(), [confirmed(2)], "all at once");
}

#[test]
fn no_entry_of_a_new_fragment_is_confirmed_before_the_fragment_is_committed() {
    let mut bench = Bench::new("a b c", 2);
    bench.append_many(2);
    bench.ok("a", 0);
    bench.ok("b", 0);
    bench.take();
    bench.refuse("c", 1, BookieError::Io);
    assert_eq!(bench.take(), [pick(1, "a b c")]);
    bench.replace("d");
    let written = bench.written();
    assert_eq!(written.fragments[1].first_entry, EntryId(1), "it starts at LAC+1");
    assert_eq!(written.fragments[1].bookies, bookies("a b d"));
    bench.ok("a", 1);
    bench.ok("b", 1);
    bench.append(1);
    let sent = bench.sent();
    assert_eq!(sent, [("a".to_owned(), 2), ("b".to_owned(), 2)], "the new one gets nothing yet");
    assert_eq!(bench.engine.lac(), Lac(Some(EntryId(0))), "and nothing is confirmed");
    bench.committed(CommitAnswer::Committed(2));
    let commands = bench.take();
    assert_eq!(commands.last(), Some(&confirmed(1)));
    let resent = commands.iter().filter_map(|command| match command {
        Command::Send { bookie, request } => Some((bookie.as_str(), request.entry.0)),
        _ => None,
    });
    assert_eq!(resent.collect::<Vec<_>>(), [("d", 1), ("d", 2)], "from LAC+1 on");
}

#[test]
fn answers_of_a_replaced_bookie_dont_count_for_the_new_fragment() {
    let mut bench = Bench::new("a b c", 2);
    bench.append_many(2);
    bench.ok("c", 0);
    bench.refuse("c", 1, BookieError::Io);
    bench.replace("d");
    bench.committed(CommitAnswer::Committed(2));
    bench.take();
    bench.ok("a", 0);
    assert_eq!(bench.take(), [], "c had it, but c is no member of the fragment");
    bench.ok("c", 1);
    bench.ok("d", 0);
    assert_eq!(bench.take(), [confirmed(0)]);
}

#[test]
fn a_fragment_without_a_confirmed_entry_is_changed_in_place() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(1);
    bench.refuse("a", 0, BookieError::ReadOnly);
    bench.replace("d");
    let written = bench.written();
    assert_eq!(written.fragments.len(), 1);
    assert_eq!(written.fragments[0].bookies, bookies("d b c"));
}

#[test]
fn two_failed_bookies_are_replaced_by_as_many_as_placement_has() {
    let mut bench = Bench::new("a b c", 1);
    bench.append(1);
    bench.refuse("a", 0, BookieError::Io);
    bench.refuse("b", 0, BookieError::Io);
    bench.take();
    bench.replace("d");
    assert_eq!(bench.written().fragments[0].bookies, bookies("d b c"));
    bench.committed(CommitAnswer::Committed(2));
    assert!(bench.take().contains(&pick(1, "d b c")), "the other one is looked for at once");
}

#[test]
fn a_conflict_with_a_new_owner_gives_the_ledger_up_with_an_unknown_outcome() {
    for state in [LedgerState::InRecovery, LedgerState::Closed] {
        let mut bench = Bench::new("a b c", 2);
        bench.append_many(3);
        bench.ok("a", 0);
        bench.ok("b", 0);
        bench.refuse("c", 1, BookieError::Unreachable);
        bench.replace("d");
        bench.take();
        bench.committed(CommitAnswer::Conflict);
        assert_eq!(bench.take(), [Command::ReadMetadata]);
        let found = LedgerMetadata { state, ..metadata("a b c", 2) };
        bench.found(found, 5);
        assert_eq!(bench.take(), [failed(WriterFailure::Fenced, Some((1, 2)))]);
        bench.ok("a", 1);
        bench.ok("b", 1);
        bench.ticks(10);
        assert_eq!(bench.take(), [], "nothing is confirmed after that");
        let refused = bench.engine.append(Payload::default(), &mut Vec::new());
        assert_eq!(refused, Err(AppendRefused::Failed(WriterFailure::Fenced)));
    }
}

#[test]
fn a_conflict_with_a_repair_is_merged() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(1);
    bench.ok("a", 0);
    bench.ok("b", 0);
    bench.append(1);
    bench.refuse("c", 1, BookieError::Io);
    bench.replace("d");
    bench.committed(CommitAnswer::Committed(2));
    bench.append(1);
    bench.refuse("d", 1, BookieError::Io);
    bench.replace("e");
    bench.take();
    bench.committed(CommitAnswer::Conflict);
    let mut repaired = bench.engine.metadata().clone();
    repaired.fragments[0].bookies = bookies("a b z");
    bench.take();
    bench.found(repaired, 9);
    let [Command::Commit { version: 9, metadata }] = &bench.take()[..] else {
        panic!("the change is made again, upon what was found");
    };
    assert_eq!(metadata.fragments[0].bookies, bookies("a b z"), "the repair's");
    assert_eq!(metadata.fragments[1].bookies, bookies("a b e"), "the owner's");
}

#[test]
fn a_record_changed_by_somebody_else_is_never_overwritten() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(1);
    bench.refuse("c", 0, BookieError::Io);
    bench.replace("d");
    bench.committed(CommitAnswer::Conflict);
    bench.take();
    bench.found(metadata("x y z", 2), 9);
    assert_eq!(bench.take(), [failed(WriterFailure::Diverged, Some((0, 0)))]);
}

#[test]
fn a_fenced_answer_leaves_the_outcome_of_pending_entries_unknown() {
    let mut bench = Bench::new("a b c", 2);
    bench.append_many(4);
    bench.ok("a", 0);
    bench.ok("b", 0);
    bench.ok("a", 1);
    bench.take();
    bench.refuse("c", 1, BookieError::Fenced);
    assert_eq!(bench.take(), [failed(WriterFailure::Fenced, Some((1, 3)))]);
    bench.ok("b", 1);
    assert_eq!(bench.take(), [], "not even what now has its quorum is confirmed");
}

#[test]
fn a_fence_met_by_a_bookie_that_was_replaced_is_a_fence_all_the_same() {
    let mut bench = Bench::new("a b c", 2);
    bench.append_many(2);
    bench.refuse("c", 0, BookieError::Io);
    bench.replace("d");
    bench.committed(CommitAnswer::Committed(2));
    bench.take();
    bench.refuse("c", 1, BookieError::Fenced);
    assert_eq!(bench.take(), [failed(WriterFailure::Fenced, Some((0, 1)))]);
}

#[test]
fn without_a_replacement_the_ledger_goes_on_while_an_ack_quorum_answers() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(1);
    bench.refuse("c", 0, BookieError::Unreachable);
    bench.replace("");
    bench.take();
    bench.append(1);
    assert_eq!(bench.sent(), [("a".to_owned(), 1), ("b".to_owned(), 1)]);
    for entry in [0, 1] {
        bench.ok("a", entry);
        bench.ok("b", entry);
    }
    assert_eq!(bench.take(), [confirmed(0), confirmed(1)]);
    bench.ticks(2);
    // Nothing is pending, so the next append will show whether it works again.
    bench.append(1);
    assert!(bench.sent().contains(&("c".to_owned(), 2)));
    bench.refuse("c", 2, BookieError::Unreachable);
    assert_eq!(bench.take(), [pick(1, "a b c")], "and a replacement is looked for again");
    bench.replace("d");
    assert!(bench.written().under_replicated, "the missing copies are recorded");
}

#[test]
fn without_the_metadata_store_the_ledger_goes_on_and_the_change_is_made_later() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(1);
    bench.refuse("c", 0, BookieError::Unreachable);
    bench.replace("d");
    bench.ok("a", 0);
    bench.ok("b", 0);
    bench.take();
    bench.committed(CommitAnswer::Unavailable);
    assert_eq!(bench.take(), [confirmed(0)]);
    bench.ticks(2);
    assert_eq!(bench.take(), [Command::ReadMetadata], "is the store back?");
    bench.engine.metadata_read(MetadataAnswer::Unavailable, &mut bench.out);
    bench.append(1);
    bench.ok("a", 1);
    bench.ok("b", 1);
    assert!(bench.take().contains(&confirmed(1)), "asking doesn't hold anything up");
    bench.ticks(2);
    bench.refuse("c", 1, BookieError::Unreachable);
    bench.take();
    bench.found(metadata("a b c", 2), 1);
    assert_eq!(bench.take(), [pick(1, "a b c")]);
    bench.replace("d");
    let written = bench.written();
    assert_eq!(written.fragments[1].first_entry, EntryId(2), "from what is LAC+1 by now");
}

#[test]
fn while_a_change_may_or_may_not_be_applied_only_members_of_both_ensembles_confirm() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(1);
    bench.ok("c", 0);
    bench.append(1);
    bench.refuse("c", 1, BookieError::Io);
    bench.replace("d");
    bench.committed(CommitAnswer::Unknown);
    bench.engine.metadata_read(MetadataAnswer::Unavailable, &mut bench.out);
    bench.take();
    bench.ok("a", 0);
    assert_eq!(bench.take(), [], "a and c: c isn't in the new ensemble, which may be committed");
    bench.ok("b", 0);
    assert_eq!(bench.take(), [confirmed(0)]);
    bench.ticks(2);
    bench.take();
    let mut applied = metadata("a b c", 2);
    applied.fragments[0].bookies = bookies("a b d");
    bench.found(applied, 2);
    assert_eq!(bench.sent(), [("d".to_owned(), 1)], "applied it was: from LAC+1 on to d");
    bench.ok("a", 1);
    bench.ok("d", 1);
    assert_eq!(bench.take(), [confirmed(1)]);
}

#[test]
fn a_bookie_that_lags_above_the_cap_counts_as_failed() {
    let mut bench = Bench::new("a b c", 2);
    for entry in 0..3 {
        bench.append(100);
        bench.ok("a", entry);
        bench.ok("b", entry);
        let owed = (100 + ENTRY_OVERHEAD_BYTES) * (entry + 1);
        assert_eq!(bench.engine.lag_bytes(), if entry < 1 { owed } else { 0 });
        let asked = bench.take().contains(&pick(1, "a b c"));
        assert_eq!(asked, entry == 1, "at entry {entry}");
    }
    bench.replace("d");
    assert!(bench.written().under_replicated);
}

#[test]
fn a_bookie_that_is_silent_for_the_timeout_counts_as_failed() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(1);
    bench.ok("a", 0);
    bench.ok("b", 0);
    bench.ticks(3);
    bench.append(1);
    bench.ok("a", 1);
    bench.take();
    bench.ticks(1);
    assert_eq!(bench.take(), [pick(1, "a b c")], "c, which answered neither");
}

#[test]
fn a_full_disk_stalls_the_ledger_without_a_limit_and_it_resumes_in_order() {
    let mut bench = Bench::new("a", 1);
    bench.append_many(3);
    bench.take();
    for entry in 0..3 {
        bench.refuse("a", entry, BookieError::DiskFull);
    }
    assert_eq!(bench.take(), [pick(1, "a")]);
    bench.replace("");
    assert_eq!(bench.take(), [Command::Stalled(StallReason::DiskFull)]);
    for _ in 0..20 {
        bench.ticks(2);
        assert_eq!(bench.sent(), [("a".to_owned(), 0)], "one entry shows whether there is space");
        bench.refuse("a", 0, BookieError::DiskFull);
        bench.replace("");
        bench.take();
    }
    bench.append(1);
    assert_eq!(bench.take(), [], "it waits with the others");
    bench.ticks(2);
    bench.take();
    bench.ok("a", 0);
    let expected: Vec<_> = (1..4).map(|entry| ("a".to_owned(), entry)).collect();
    let commands = bench.out.clone();
    assert_eq!(bench.sent(), expected, "then the rest follows, in order");
    assert!(commands.contains(&Command::Resumed) && commands.contains(&confirmed(0)));
    for entry in 1..4 {
        bench.ok("a", entry);
    }
    assert_eq!(bench.take(), [confirmed(1), confirmed(2), confirmed(3)]);
}

#[test]
fn without_an_ack_quorum_the_ledger_stalls_and_fails_in_time() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(1);
    bench.refuse("a", 0, BookieError::Unreachable);
    bench.refuse("b", 0, BookieError::DiskFull);
    bench.replace("");
    assert!(bench.take().contains(&Command::Stalled(StallReason::DiskFull)), "b may come back");
    bench.refuse("c", 0, BookieError::Unreachable);
    bench.ticks(2);
    for name in ["a", "b", "c"] {
        bench.refuse(name, 0, BookieError::Unreachable);
    }
    bench.take();
    bench.replace("");
    assert_eq!(bench.take(), [Command::Stalled(StallReason::Unavailable)]);
    bench.ticks(4);
    assert!(bench.take().contains(&failed(WriterFailure::QuorumLost, Some((0, 0)))));
}

#[test]
fn an_overloaded_bookie_that_the_ledger_needs_is_sent_less_and_never_given_up() {
    let mut bench = Bench::new("a", 1);
    bench.append_many(6);
    bench.take();
    for entry in 2..6 {
        bench.refuse("a", entry, BookieError::Overloaded);
    }
    bench.append(1);
    assert_eq!(bench.take(), [], "no replacement, no stall, and nothing more is sent for now");
    bench.ok("a", 0);
    assert_eq!(bench.sent(), [("a".to_owned(), 2), ("a".to_owned(), 3)]);
    bench.refuse("a", 3, BookieError::Overloaded);
    bench.ok("a", 1);
    assert_eq!(bench.sent(), [("a".to_owned(), 3), ("a".to_owned(), 4)]);
    bench.ok("a", 2);
    bench.ok("a", 3);
    assert_eq!(bench.sent(), [("a".to_owned(), 5), ("a".to_owned(), 6)]);
    for entry in 4..7 {
        bench.ok("a", entry);
    }
    assert_eq!(bench.engine.lac(), Lac(Some(EntryId(6))));
    bench.take();
    bench.append(1);
    assert_eq!(bench.sent(), [("a".to_owned(), 7)], "all is as before");
}

#[test]
fn an_overloaded_bookie_that_the_ledger_can_do_without_counts_as_failed() {
    let mut bench = Bench::new("a b c", 2);
    bench.append_many(2);
    bench.take();
    bench.refuse("c", 1, BookieError::Overloaded);
    assert_eq!(bench.take(), [pick(1, "a b c")]);
}

#[test]
fn a_confirmed_entry_that_an_overloaded_bookie_refuses_is_marked_as_lacking_a_copy() {
    let mut bench = Bench::new("a b", 1);
    bench.append_many(2);
    bench.ok("a", 0);
    bench.refuse("b", 0, BookieError::Overloaded);
    assert_eq!(bench.engine.lag_bytes(), 0);
    bench.ok("a", 1);
    bench.ok("b", 1);
    bench.engine.close(&mut bench.out);
    bench.engine.replacement(Vec::new(), &mut bench.out);
    assert!(bench.written().under_replicated);
}

#[test]
fn an_overloaded_bookie_that_owes_nothing_is_tried_again_later() {
    let mut bench = Bench::new("a", 1);
    bench.append(1);
    bench.take();
    bench.refuse("a", 0, BookieError::Overloaded);
    assert_eq!(bench.take(), [pick(1, "a")]);
    bench.replace("");
    bench.take();
    bench.ticks(2);
    assert_eq!(bench.sent(), [("a".to_owned(), 0)]);
}

#[test]
fn a_bookie_that_refuses_for_good_is_not_tried_again() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(1);
    bench.refuse("c", 0, BookieError::WrongToken);
    bench.replace("");
    bench.take();
    bench.ticks(2);
    assert_eq!(bench.take(), [pick(1, "a b c")]);
}

#[test]
fn answers_that_come_twice_or_too_late_do_no_harm() {
    let mut bench = Bench::new("a b c", 2);
    bench.append_many(2);
    bench.take();
    bench.ok("a", 0);
    bench.refuse("a", 0, BookieError::Unreachable);
    bench.ok("stranger", 0);
    bench.ok("a", 99);
    bench.refuse("a", 99, BookieError::Io);
    bench.committed(CommitAnswer::Committed(9));
    bench.replace("d");
    bench.found(metadata("x y z", 2), 9);
    assert_eq!(bench.take(), []);
    bench.ok("b", 0);
    assert_eq!(bench.take(), [confirmed(0)]);
}

#[test]
fn appends_above_the_cap_of_pending_bytes_are_refused_but_a_single_one_is_taken() {
    let mut bench = Bench::new("a", 1);
    assert_eq!(bench.append(5_000), EntryId(0));
    let refused = bench.engine.append(Payload::from(Bytes::from_static(b"x")), &mut bench.out);
    let limit_bytes = LIMITS.max_pending_bytes;
    assert_eq!(refused, Err(AppendRefused::TooManyPending { pending_bytes: 5_000, limit_bytes }));
    bench.ok("a", 0);
    assert_eq!((bench.append(1), bench.engine.pending_bytes()), (EntryId(1), 1));
}

#[test]
fn closing_waits_for_what_is_pending_and_then_writes_the_end() {
    let mut bench = Bench::new("a b", 2);
    bench.append_many(2);
    bench.take();
    bench.engine.close(&mut bench.out);
    let refused = bench.engine.append(Payload::default(), &mut bench.out);
    assert_eq!(refused, Err(AppendRefused::Closing));
    for entry in [0, 1] {
        bench.ok("a", entry);
        bench.ok("b", entry);
    }
    let closed = bench.written();
    assert_eq!((closed.state, closed.last_entry), (LedgerState::Closed, Lac(Some(EntryId(1)))));
    assert_eq!((closed.bytes, closed.under_replicated), (2, false));
    bench.committed(CommitAnswer::Committed(2));
    assert_eq!(bench.take(), [Command::Closed(closed)]);
}

#[test]
fn a_ledger_that_is_closed_before_a_copy_is_answered_is_marked_for_repair() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(1);
    bench.ok("a", 0);
    bench.ok("b", 0);
    bench.take();
    bench.engine.close(&mut bench.out);
    assert_eq!(bench.take(), [], "the third copy gets a little time");
    bench.ticks(2);
    assert!(bench.written().under_replicated);
}

#[test]
fn a_ledger_whose_last_copy_arrives_while_it_closes_is_not_marked() {
    let mut bench = Bench::new("a b c", 2);
    bench.append(1);
    bench.ok("a", 0);
    bench.ok("b", 0);
    bench.engine.close(&mut bench.out);
    bench.take();
    bench.ok("c", 0);
    assert!(!bench.written().under_replicated);
}

#[test]
fn an_empty_ledger_closes_without_a_last_entry() {
    let mut bench = Bench::new("a b", 1);
    bench.engine.close(&mut bench.out);
    let closed = bench.written();
    assert_eq!((closed.last_entry, closed.fragments.len()), (Lac::NONE, 1));
    assert_eq!(closed.validate(), Ok(()));
}

#[test]
fn closing_against_a_recovery_is_given_up() {
    let mut bench = Bench::new("a", 1);
    bench.engine.close(&mut bench.out);
    bench.committed(CommitAnswer::Conflict);
    bench.take();
    bench.found(LedgerMetadata { state: LedgerState::InRecovery, ..metadata("a", 1) }, 4);
    assert_eq!(bench.take(), [failed(WriterFailure::Fenced, None)]);
}

#[test]
fn a_closing_write_whose_answer_was_lost_is_recognized() {
    let mut bench = Bench::new("a", 1);
    bench.append(1);
    bench.ok("a", 0);
    bench.engine.close(&mut bench.out);
    let closed = bench.written();
    bench.committed(CommitAnswer::Unknown);
    assert_eq!(bench.take(), [Command::ReadMetadata]);
    bench.found(closed.clone(), 2);
    assert_eq!(bench.take(), [Command::Closed(closed)]);
}

#[test]
fn closing_without_the_metadata_store_is_said_to_be_delayed_and_goes_on() {
    let mut bench = Bench::new("a", 1);
    bench.engine.close(&mut bench.out);
    bench.committed(CommitAnswer::Unavailable);
    bench.take();
    bench.ticks(4);
    assert!(bench.take().contains(&Command::CloseDelayed));
    bench.found(metadata("a", 1), 1);
    assert_eq!(bench.written().state, LedgerState::Closed);
}

#[test]
fn an_idle_ledger_wants_no_ticks() {
    let mut bench = Bench::new("a b", 1);
    assert!(!bench.engine.wants_ticks());
    bench.append(1);
    assert!(bench.engine.wants_ticks());
    bench.ok("a", 0);
    assert!(bench.engine.wants_ticks(), "b owes an answer");
    bench.ok("b", 0);
    assert!(!bench.engine.wants_ticks());
}
