//! What is queued, when, and what is taken out again.

use geminga_meta::record::{LedgerOwner, RepairClaim};
use geminga_proto::id::{EntryId, Lac, LedgerId, LedgerToken, ManagedLedgerId};

use super::*;
use crate::metadata::Fragment;
use crate::placement::BookieView;

const GRACE: Duration = Duration::from_secs(600);

fn name(index: usize) -> BookieId {
    BookieId::new(&format!("b{index}")).expect("valid")
}

fn ledger(state: LedgerState, ensembles: &[&[usize]]) -> LedgerMetadata {
    let fragment = |(index, bookies): (usize, &&[usize])| Fragment {
        first_entry: EntryId(10 * index as u64),
        bookies: bookies.iter().copied().map(name).collect(),
    };
    let closed = state == LedgerState::Closed;
    LedgerMetadata {
        id: LedgerId(1),
        token: LedgerToken(5),
        owner: LedgerOwner::ManagedLedger(ManagedLedgerId(1)),
        state,
        write_quorum: u32::try_from(ensembles[0].len()).expect("small"),
        ack_quorum: 1,
        fragments: ensembles.iter().enumerate().map(fragment).collect(),
        last_entry: Lac(closed.then(|| EntryId(10 * ensembles.len() as u64 - 1))),
        bytes: 0,
        created_ms: 0,
        under_replicated: false,
    }
}

fn view(up: &[usize], draining: &[usize]) -> ClusterView {
    let bookie = |index: &usize| BookieView {
        bookie: name(*index),
        zone: String::new(),
        free_bytes: 1,
        takes: true,
        suspect: false,
    };
    ClusterView {
        bookies: up.iter().map(bookie).collect(),
        draining: draining.iter().copied().map(name).collect(),
        is_current: true,
    }
}

fn at(seconds: u64) -> Monotonic {
    Duration::from_secs(seconds)
}

/// One look at one ledger.
fn look(
    auditor: &mut Auditor,
    seconds: u64,
    view: &ClusterView,
    ledger: &LedgerMetadata,
    task: Option<&RepairRecord>,
) -> (Verdict, Vec<BookieId>) {
    auditor.begin(at(seconds), view.clone());
    let verdict = auditor.ledger(ledger, task);
    (verdict, auditor.end(true))
}

fn missing(index: usize) -> Verdict {
    Verdict::Queue(vec![RepairReason::Missing(name(index))])
}

#[test]
fn a_bookie_is_gone_after_the_grace_period_and_not_if_it_came_back_in_between() {
    let metadata = ledger(LedgerState::Closed, &[&[0, 1, 2]]);
    let mut auditor = Auditor::new(GRACE);
    let mut verdict =
        |seconds, up: &[usize]| look(&mut auditor, seconds, &view(up, &[]), &metadata, None).0;
    assert_eq!(verdict(0, &[0, 1, 2, 3]), Verdict::Keep);
    assert_eq!(verdict(100, &[1, 2, 3]), Verdict::Keep);
    assert_eq!(verdict(699, &[1, 2, 3]), Verdict::Keep);
    assert_eq!(verdict(699, &[0, 1, 2, 3]), Verdict::Keep, "it is back");
    assert_eq!(verdict(700, &[1, 2, 3]), Verdict::Keep);
    assert_eq!(verdict(1_299, &[1, 2, 3]), Verdict::Keep);
    assert_eq!(verdict(1_300, &[1, 2, 3]), missing(0));
}

#[test]
fn copies_in_one_zone_are_queued_but_not_while_a_member_is_away() {
    let metadata = ledger(LedgerState::Closed, &[&[0, 1, 2]]);
    let zoned = |up: &[usize], zones: &[&str]| {
        let mut view = view(up, &[]);
        let bookies = view.bookies.iter_mut().zip(up);
        bookies.for_each(|(bookie, index)| bookie.zone = zones[*index].to_owned());
        view
    };
    let mut auditor = Auditor::new(GRACE);
    let whole = ["a", "a", "b", "b"];
    let (verdict, _) = look(&mut auditor, 0, &zoned(&[0, 1, 2, 3], &whole), &metadata, None);
    assert_eq!(verdict, Verdict::Keep);
    // The one of the other zone is restarted.
    let (verdict, _) = look(&mut auditor, 10, &zoned(&[0, 1, 3], &whole), &metadata, None);
    assert_eq!(verdict, Verdict::Keep);
    let alike = ["a", "a", "a", "b"];
    let (verdict, _) = look(&mut auditor, 20, &zoned(&[0, 1, 2, 3], &alike), &metadata, None);
    assert_eq!(verdict, Verdict::Queue(vec![RepairReason::Placement]));
    let (verdict, _) = look(&mut auditor, 30, &zoned(&[0, 1, 2], &alike), &metadata, None);
    assert_eq!(verdict, Verdict::Keep, "there is no other zone");
}

#[test]
fn an_auditor_that_has_just_begun_waits_for_the_whole_grace_period() {
    let metadata = ledger(LedgerState::Closed, &[&[0, 1, 2]]);
    let (mut first, mut second) = (Auditor::new(GRACE), Auditor::new(GRACE));
    let cluster = view(&[1, 2, 3], &[]);
    let looked =
        |auditor: &mut Auditor, seconds| look(auditor, seconds, &cluster, &metadata, None).0;
    assert_eq!(looked(&mut first, 0), Verdict::Keep);
    assert_eq!(looked(&mut first, 600), missing(0));
    assert_eq!(looked(&mut second, 601), Verdict::Keep);
    assert_eq!(looked(&mut second, 1_200), Verdict::Keep);
    assert_eq!(looked(&mut second, 1_201), missing(0));
}

#[test]
fn of_an_open_ledger_only_fragments_that_are_not_last_are_looked_after() {
    let mut auditor = Auditor::new(Duration::ZERO);
    let cluster = view(&[1, 2, 3], &[]);
    let one = ledger(LedgerState::Open, &[&[0, 1, 2]]);
    assert_eq!(look(&mut auditor, 0, &cluster, &one, None).0, Verdict::Keep);
    let mut two = ledger(LedgerState::Open, &[&[0, 1, 2], &[1, 2, 3]]);
    two.under_replicated = true;
    assert_eq!(look(&mut auditor, 0, &cluster, &two, None).0, missing(0));
    // But for bookies that are to be taken away, somebody has to look wherever they are.
    let cluster = view(&[0, 1, 2, 3], &[0]);
    let draining = Verdict::Queue(vec![RepairReason::Draining(name(0))]);
    assert_eq!(look(&mut auditor, 0, &cluster, &one, None).0, draining);
}

#[test]
fn a_ledger_that_may_lack_copies_is_looked_at_when_all_its_bookies_are_there_or_given_up() {
    let mut metadata = ledger(LedgerState::Closed, &[&[0, 1, 2]]);
    metadata.under_replicated = true;
    let mut auditor = Auditor::new(GRACE);
    let (all, some) = (view(&[0, 1, 2], &[]), view(&[1, 2], &[]));
    let queued = Verdict::Queue(vec![RepairReason::AckQuorumOnly]);
    assert_eq!(look(&mut auditor, 0, &some, &metadata, None).0, Verdict::Keep);
    assert_eq!(look(&mut auditor, 1, &all, &metadata, None).0, queued);
    assert_eq!(look(&mut auditor, 2, &some, &metadata, None).0, Verdict::Keep);
    let both = vec![RepairReason::Missing(name(0)), RepairReason::AckQuorumOnly];
    assert_eq!(look(&mut auditor, 602, &some, &metadata, None).0, Verdict::Queue(both));
}

#[test]
fn what_does_not_hold_any_more_leaves_the_queue_unless_somebody_is_at_it_or_found_damage() {
    let metadata = ledger(LedgerState::Closed, &[&[0, 1, 2]]);
    let mut auditor = Auditor::new(Duration::ZERO);
    let all = view(&[0, 1, 2, 3], &[]);
    let mut task = RepairRecord::new(&[RepairReason::Missing(name(0))], 0);
    assert_eq!(look(&mut auditor, 0, &all, &metadata, Some(&task)).0, Verdict::Dequeue);
    let without = view(&[1, 2, 3], &[]);
    assert_eq!(look(&mut auditor, 0, &without, &metadata, Some(&task)).0, Verdict::Keep);
    let (worker, targets) = ("w".to_owned(), vec![name(3)]);
    task.claim = Some(RepairClaim { id: 1, worker, targets, claimed_ms: 0 });
    assert_eq!(look(&mut auditor, 0, &all, &metadata, Some(&task)).0, Verdict::Keep);
    let (first, last) = (EntryId(1), EntryId(2));
    let damaged = RepairReason::Damaged { bookie: name(1), first, last };
    let task = RepairRecord::new(&[damaged], 0);
    assert_eq!(look(&mut auditor, 0, &all, &metadata, Some(&task)).0, Verdict::Keep);
}

#[test]
fn a_drained_bookie_is_done_when_two_whole_looks_have_found_it_neither_in_a_ledger_nor_a_claim() {
    let (with, without) =
        (ledger(LedgerState::Closed, &[&[0, 1, 2]]), ledger(LedgerState::Closed, &[&[3, 1, 2]]));
    let mut auditor = Auditor::new(GRACE);
    let cluster = view(&[1, 2, 3], &[0]);
    let mut task = RepairRecord::new(&[RepairReason::AckQuorumOnly], 0);
    let (worker, targets) = ("w".to_owned(), vec![name(0)]);
    task.claim = Some(RepairClaim { id: 1, worker, targets, claimed_ms: 0 });
    let none: Vec<BookieId> = Vec::new();
    assert_eq!(look(&mut auditor, 0, &cluster, &without, None).1, none);
    assert_eq!(look(&mut auditor, 1, &cluster, &with, None).1, none, "it was named again");
    assert_eq!(look(&mut auditor, 2, &cluster, &without, None).1, none);
    assert_eq!(look(&mut auditor, 3, &cluster, &without, Some(&task)).1, none, "by a claim");
    assert_eq!(look(&mut auditor, 4, &cluster, &without, None).1, none);
    auditor.begin(at(5), cluster.clone());
    assert_eq!(auditor.end(false), none, "it didn't look everywhere");
    assert_eq!(look(&mut auditor, 6, &cluster, &without, None).1, none);
    assert_eq!(look(&mut auditor, 7, &cluster, &without, None).1, [name(0)]);
    let up = view(&[0, 1, 2, 3], &[0]);
    assert_eq!(look(&mut auditor, 8, &up, &without, None).1, none, "it needs its name");
    assert_eq!(look(&mut auditor, 8, &cluster, &without, None).1, none);
    // Who changes its mind begins anew.
    let kept = view(&[0, 1, 2, 3], &[]);
    assert_eq!(look(&mut auditor, 8, &kept, &without, None).1, none);
    assert_eq!(look(&mut auditor, 9, &cluster, &without, None).1, none);
}
