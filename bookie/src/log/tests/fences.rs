//! Fences, tokens and what of a ledger outlives its segments.

use geminga_proto::id::{EntryId, Lac, LedgerId, LedgerToken};
use geminga_proto::storage::{AddKind, AppendRequest, BookieError, FenceRequest};

use super::rig::{Rig, append, payload};
use crate::device::memory::Tear;

fn recovery(ledger: u64, entry: u64) -> AppendRequest {
    AppendRequest { kind: AddKind::Recovery, ..append(ledger, entry, 10) }
}

#[test]
fn a_fence_refuses_adds_from_the_moment_it_is_queued_and_is_answered_when_durable() {
    let mut rig = Rig::new();
    rig.offer(append(1, 0, 100)).expect("room");
    let mut answer = rig.offer_fence(1).expect("queued");
    assert_eq!(rig.offer(append(1, 1, 100)), Err(BookieError::Fenced));
    let state_log = AppendRequest { kind: AddKind::StateLog, ..append(1, 1, 100) };
    assert_eq!(rig.offer(state_log), Err(BookieError::Fenced));
    assert!(answer.try_recv().is_err(), "not durable yet");
    rig.turn();
    assert_eq!(answer.try_recv(), Ok(Ok(Lac::NONE)));
    assert_eq!(rig.get(1, 0), Ok(payload(1, 0, 100)), "the add ahead of it is visible");
    assert_eq!(rig.put(recovery(1, 1)), Ok(()));
}

#[test]
fn a_fence_answers_the_highest_confirmation_of_any_add_and_repeats_it() {
    let mut rig = Rig::new();
    rig.fill(1, 0..5, 10);
    rig.fill(1, 2..3, 10);
    assert_eq!(rig.fence(1), Ok(Lac(Some(EntryId(3)))));
    let before = rig.device.operations();
    assert_eq!(rig.fence(1), Ok(Lac(Some(EntryId(3)))));
    assert_eq!(rig.device.operations(), before, "a durable fence is not written again");
}

#[test]
fn a_ledger_that_was_never_seen_is_fenced_as_well() {
    let mut rig = Rig::new();
    assert_eq!(rig.fence(7), Ok(Lac::NONE));
    assert_eq!(rig.put(append(7, 0, 10)), Err(BookieError::Fenced));
    let mut rig = Rig::on(rig.device.crash(Tear::Lost));
    assert_eq!(rig.put(append(7, 0, 10)), Err(BookieError::Fenced));
    assert_eq!(rig.get(7, 0), Err(BookieError::NoSuchEntry));
}

#[test]
fn another_token_is_refused_before_and_after_a_restart() {
    let mut rig = Rig::new();
    rig.fill(1, 0..1, 10);
    for _ in 0..2 {
        let wrong = AppendRequest { token: LedgerToken(5), ..append(1, 1, 10) };
        assert_eq!(rig.offer(wrong), Err(BookieError::WrongToken));
        let fence = FenceRequest { ledger: LedgerId(1), token: LedgerToken(5) };
        assert_eq!(rig.log.fence(fence).map(|_| ()), Err(BookieError::WrongToken));
        rig = Rig::on(rig.device.crash(Tear::Lost));
    }
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    let rig = Rig::new();
    let zero = AppendRequest { token: LedgerToken(0), ..append(1, 1, 10) };
    assert_eq!(rig.offer(zero), Err(BookieError::Invalid));
    let huge = AppendRequest { entry: EntryId(u64::MAX), ..append(1, 1, 10) };
    assert_eq!(rig.offer(huge), Err(BookieError::Invalid));
    for lac in [1, 2, u64::MAX] {
        let lac = AppendRequest { lac: Lac(Some(EntryId(lac))), ..append(1, 1, 10) };
        assert_eq!(rig.offer(lac), Err(BookieError::Invalid));
    }
    assert_eq!(rig.offer(append(1, 0, 8 * 1024 + 1)), Err(BookieError::TooLarge));
    assert!(rig.offer(append(1, 0, 8 * 1024)).is_ok());
}

#[test]
fn the_same_entry_twice_is_fine() {
    let mut rig = Rig::new();
    rig.fill(1, 0..3, 100);
    let again = AppendRequest { lac: Lac(Some(EntryId(0))), ..append(1, 1, 100) };
    assert_eq!(rig.put(again.clone()), Ok(()));
    rig.log.seal_all().expect("closes");
    let mut rig = Rig::on(rig.device);
    assert_eq!(rig.put(again), Ok(()));
    let entries = rig.read(1, 0, 10).expect("there");
    assert_eq!(entries.iter().map(|entry| entry.entry.0).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(entries[1].lac, Lac(Some(EntryId(0))), "the newer copy");
}

#[test]
fn a_fence_token_and_confirmation_outlive_the_segments_that_recorded_them() {
    let mut rig = Rig::new();
    // Ledger 1 keeps one entry in the first segment; its later adds and its fence lie in
    // segments full of ledger 2, which goes.
    rig.fill(1, 0..1, 10);
    rig.fill(2, 0..30, 5_000);
    rig.fill(3, 0..1, 10);
    assert_eq!(rig.fence(1), Ok(Lac::NONE));
    assert_eq!(rig.fence(9), Ok(Lac::NONE));
    rig.fill(2, 30..90, 5_000);
    let fenced_in = rig.sealed_files();
    assert_eq!(rig.delete(&[2, 3]), 2);
    rig.settle();
    let recycled = rig.log.state.lock().counters.recycled_segments;
    assert!(recycled >= 2, "{recycled} of {fenced_in:?}");
    // Roll on, so that the recycled files are written over.
    rig.fill(4, 0..60, 5_000);
    for _ in 0..2 {
        assert_eq!(rig.put(append(1, 1, 10)), Err(BookieError::Fenced));
        assert_eq!(rig.put(append(9, 0, 10)), Err(BookieError::Fenced));
        let wrong = AppendRequest { token: LedgerToken(5), ..append(9, 0, 10) };
        assert_eq!(rig.put(wrong), Err(BookieError::WrongToken));
        assert_eq!(rig.get(1, 0), Ok(payload(1, 0, 10)));
        rig = Rig::on(rig.device.crash(Tear::Lost));
    }
}

#[test]
fn a_deleted_ledger_takes_nothing_any_more_from_nobody_also_after_restarts() {
    let mut rig = Rig::new();
    // Ledger 3 keeps the segment, with its rows, alive.
    rig.fill(1, 0..2, 10);
    rig.fill(2, 0..2, 10);
    rig.fill(3, 0..1, 10);
    assert_eq!(rig.fence(1), Ok(Lac(Some(EntryId(0)))));
    rig.log.seal_all().expect("closes");
    let mut rig = Rig::on(rig.device);
    // On its way when the ledger goes: durable, and still nowhere.
    rig.offer(append(1, 2, 10)).expect_err("fenced");
    rig.offer(append(2, 2, 10)).expect("room");
    assert_eq!(rig.delete(&[1, 2, 5]), 2);
    rig.turn();
    assert_eq!(rig.answers(), [(2, 2, Err(BookieError::Fenced))]);
    for clean in [false, true] {
        for ledger in [1, 2] {
            assert_eq!(rig.get(ledger, 0), Err(BookieError::NoSuchEntry));
            assert_eq!(rig.put(append(ledger, 9, 10)), Err(BookieError::Fenced));
            assert_eq!(rig.put(recovery(ledger, 9)), Err(BookieError::Fenced));
            assert_eq!(rig.fence(ledger), Ok(Lac::NONE));
        }
        assert_eq!(rig.log.ledgers(), [LedgerId(3)], "clean {clean}");
        assert_eq!(rig.get(3, 0), Ok(payload(3, 0, 10)));
        if clean {
            rig.log.seal_all().expect("closes");
        }
        rig = Rig::on(rig.device.crash(Tear::Lost));
    }
    assert_eq!(rig.log.ledgers(), [LedgerId(3)]);
    assert_eq!(rig.put(append(5, 0, 10)), Ok(()), "nobody said that this one was here");
}

#[test]
fn a_power_cut_while_ledgers_are_deleted_leaves_all_of_them_or_none() {
    for cut in 1..=2 {
        for tear in [Tear::Lost, Tear::Prefix(100), Tear::Whole] {
            let mut rig = Rig::new();
            for ledger in 1..5 {
                rig.fill(ledger, 0..1, 10);
            }
            rig.keep();
            rig.device.cut_power_at_write(cut);
            rig.delete(&[1, 3]);
            let rig = Rig::on(rig.device.crash(tear));
            let left: Vec<u64> = rig.log.ledgers().iter().map(|id| id.0).collect();
            let all = left == [1, 2, 3, 4];
            assert!(all || left == [2, 4], "cut {cut}, {tear:?}: {left:?}");
            assert!(cut == 1 || !all, "the first copy was durable");
        }
    }
}
