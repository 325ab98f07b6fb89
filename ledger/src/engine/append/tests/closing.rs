//! The end of a ledger.

use super::*;

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
