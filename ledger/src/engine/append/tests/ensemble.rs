//! Replacing bookies: what is written, what counts meanwhile, and who else may have written.

use super::*;

#[test]
fn a_new_bookie_is_sent_nothing_and_confirms_nothing_before_the_fragment_is_committed() {
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
    bench.append(1);
    let sent = bench.sent();
    assert_eq!(sent, [("a".to_owned(), 2), ("b".to_owned(), 2)], "the new one gets nothing yet");
    bench.ok("d", 1);
    assert_eq!(bench.engine.lac(), Lac(Some(EntryId(0))), "and nothing is confirmed by it");
    bench.committed(CommitAnswer::Committed(2));
    assert_eq!(bench.sent(), [("d".to_owned(), 1), ("d".to_owned(), 2)], "from LAC+1 on");
    bench.ok("d", 1);
    assert_eq!(bench.take(), [confirmed(1)]);
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
    bench.take();
    bench.ok("a", 0);
    bench.ok("b", 0);
    assert_eq!(bench.take(), [confirmed(0)], "both are in the old and in the new ensemble");
    bench.committed(CommitAnswer::Unavailable);
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
