//! Bookies that lag, are silent, full or overloaded, or refuse.

use super::*;

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
