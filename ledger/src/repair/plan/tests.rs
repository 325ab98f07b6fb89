//! Plans against what must hold of every one of them, and against every other choice.

use std::collections::BTreeSet;

use geminga_meta::record::LedgerOwner;
use geminga_proto::env::{Random, SeededRandom};
use geminga_proto::id::{Lac, LedgerId, LedgerToken, ManagedLedgerId};
use proptest::prelude::*;

use super::*;

const BOOKIES: usize = 7;
const ZONES: [&str; 3] = ["a", "b", "c"];

fn name(index: usize) -> BookieId {
    BookieId::new(&format!("b{index}")).expect("valid")
}

fn names(indexes: &[usize]) -> Vec<BookieId> {
    indexes.iter().copied().map(name).collect()
}

/// A ledger whose fragments of ten entries each lie on these bookies.
fn ledger(state: LedgerState, ensembles: &[&[usize]]) -> LedgerMetadata {
    let fragment = |(index, bookies): (usize, &&[usize])| Fragment {
        first_entry: EntryId(10 * index as u64),
        bookies: names(bookies),
    };
    let closed = state == LedgerState::Closed;
    let write_quorum = u32::try_from(ensembles[0].len()).expect("small");
    LedgerMetadata {
        id: LedgerId(1),
        token: LedgerToken(5),
        owner: LedgerOwner::ManagedLedger(ManagedLedgerId(1)),
        state,
        write_quorum,
        ack_quorum: 1 + write_quorum / 3,
        fragments: ensembles.iter().enumerate().map(fragment).collect(),
        last_entry: Lac(closed.then(|| EntryId(10 * ensembles.len() as u64 - 1))),
        bytes: 0,
        created_ms: 0,
        under_replicated: false,
    }
}

fn up(index: usize, zone: &str) -> BookieView {
    let (bookie, zone) = (name(index), zone.to_owned());
    BookieView { bookie, zone, free_bytes: 1 << 30, takes: true, suspect: false }
}

/// These bookies are up, without zones.
fn view(indexes: &[usize]) -> ClusterView {
    let bookies = indexes.iter().map(|index| up(*index, "")).collect();
    ClusterView { bookies, draining: Vec::new(), is_current: true }
}

fn planned(metadata: &LedgerMetadata, reasons: &[RepairReason], view: &ClusterView) -> Plan {
    let random = SeededRandom::new(7);
    plan(metadata, reasons, view, 3, &mut |bound| random.below(bound))
}

fn missing(index: usize) -> RepairReason {
    RepairReason::Missing(name(index))
}

#[test]
fn a_lost_bookies_place_is_taken_in_every_fragment_by_one_that_gets_every_entry() {
    let metadata = ledger(LedgerState::Closed, &[&[0, 1, 2], &[0, 1, 3], &[1, 2, 3]]);
    let plan = planned(&metadata, &[missing(0)], &view(&[1, 2, 3, 4]));
    let run = |first, last, from: &[usize]| CopyRun {
        first: EntryId(first),
        last: EntryId(last),
        to: name(4),
        from: names(from),
        how: How::All,
    };
    // The same for all: the fewer bookies, the smaller the claim. In the first, b3 would do too.
    let after = plan.applied_to(&metadata).expect("it fits");
    assert!(after.fragments.iter().all(|it| !it.bookies.contains(&name(0))), "{after:?}");
    assert_eq!(plan.copies[1], run(10, 19, &[1, 3]));
    assert_eq!(after.fragments[2], metadata.fragments[2]);
    assert_eq!((&plan.left[..], &plan.obstacles[..]), (&[][..], &[][..]));
}

#[test]
fn who_is_away_for_a_moment_stays_and_nothing_is_copied_for_it() {
    let metadata = ledger(LedgerState::Closed, &[&[0, 1, 2]]);
    let view = view(&[1, 2, 3, 4]);
    assert!(!planned(&metadata, &[missing(5)], &view).has_work());
    // It came back before anybody was at it.
    let back = self::view(&[0, 1, 2, 3]);
    let plan = planned(&metadata, &[missing(0)], &back);
    assert_eq!((plan.has_work(), &plan.left[..]), (false, &[][..]));
}

#[test]
fn the_last_fragment_of_a_ledger_that_is_not_closed_is_not_touched() {
    for state in [LedgerState::Open, LedgerState::InRecovery] {
        let mut metadata = ledger(state, &[&[0, 1, 2], &[0, 1, 2]]);
        metadata.under_replicated = true;
        let reasons = [missing(0), RepairReason::AckQuorumOnly];
        let plan = planned(&metadata, &reasons, &view(&[1, 2, 3]));
        let after = plan.applied_to(&metadata).expect("it fits");
        assert_eq!(after.last_fragment(), metadata.last_fragment());
        assert_eq!(after.fragments[0].bookies, names(&[3, 1, 2]));
        assert!(after.under_replicated, "who writes it knows");
        assert!(plan.copies.iter().all(|run| run.last < EntryId(10)), "{:?}", plan.copies);
        let one = ledger(state, &[&[0, 1, 2]]);
        let mut cluster = view(&[0, 1, 2, 3]);
        cluster.draining = names(&[0]);
        let draining = [RepairReason::Draining(name(0))];
        let plan = planned(&one, &draining, &cluster);
        assert_eq!((plan.has_work(), &plan.left[..]), (false, &draining[..]));
        assert_eq!(plan.obstacles, [Obstacle::StillOpen]);
    }
}

#[test]
fn a_narrow_ledger_is_widened_once_it_is_closed_in_all_its_fragments_or_none() {
    let mut metadata = ledger(LedgerState::Closed, &[&[0, 1], &[1, 2]]);
    metadata.under_replicated = true;
    let reasons = [RepairReason::AckQuorumOnly];
    let plan = planned(&metadata, &reasons, &view(&[0, 1, 2, 3]));
    let after = plan.applied_to(&metadata).expect("it fits");
    assert_eq!((after.write_quorum, after.under_replicated), (3, false));
    assert!(after.fragments.iter().all(|fragment| fragment.bookies.len() == 3));
    assert_eq!(plan.left, []);
    // Whoever was in it is looked at as well.
    let looked_at = plan.copies.iter().filter(|run| run.how == How::Missing).count();
    assert_eq!(looked_at, 4);
    // For the second fragment there is nobody.
    let plan = planned(&metadata, &reasons, &view(&[1, 2]));
    let after = plan.applied_to(&metadata).expect("it fits");
    assert_eq!((after.write_quorum, after.under_replicated), (2, true));
    assert_eq!((plan.left, plan.moves.len()), (reasons.to_vec(), 0));
    assert!(plan.obstacles.contains(&Obstacle::TooFewBookies { lacking: 1 }));
    // It is still its owner's.
    metadata = ledger(LedgerState::Open, &[&[0, 1], &[1, 2]]);
    metadata.under_replicated = true;
    assert!(!planned(&metadata, &reasons, &view(&[0, 1, 2, 3])).has_work());
}

#[test]
fn damaged_entries_are_sent_again_where_they_are_and_only_those() {
    let metadata = ledger(LedgerState::Closed, &[&[0, 1, 2], &[0, 1, 3]]);
    let (first, last) = (EntryId(7), EntryId(1_000));
    let reasons = [RepairReason::Damaged { bookie: name(0), first, last }];
    let plan = planned(&metadata, &reasons, &view(&[0, 1, 2, 3]));
    let runs: Vec<_> =
        plan.copies.iter().map(|run| (run.first.0, run.last.0, run.to.clone())).collect();
    assert_eq!(runs, [(7, 9, name(0)), (10, 19, name(0))]);
    assert!(plan.copies.iter().all(|run| !run.from.contains(&name(0))));
    assert_eq!((&plan.left[..], &plan.targets[..], &plan.moves[..]), (&[][..], &[][..], &[][..]));
    let plan = planned(&metadata, &reasons, &view(&[1, 2, 3]));
    assert_eq!((plan.has_work(), &plan.left[..]), (false, &reasons[..]));
    assert_eq!(plan.obstacles, [Obstacle::Away(name(0))]);
}

#[test]
fn without_a_copy_nothing_moves_and_the_reason_stays() {
    let metadata = ledger(LedgerState::Closed, &[&[0, 1, 2], &[2, 3, 4]]);
    let reasons = [missing(0), missing(1), missing(2)];
    let plan = planned(&metadata, &reasons, &view(&[3, 4, 5, 6]));
    let after = plan.applied_to(&metadata).expect("it fits");
    assert_eq!(after.fragments[0], metadata.fragments[0]);
    assert!(!after.fragments[1].bookies.contains(&name(2)));
    assert_eq!((plan.obstacles, plan.left), (vec![Obstacle::NoCopy(EntryId(0))], reasons.to_vec()));
    // Nothing has to be copied of an empty ledger.
    let mut empty = ledger(LedgerState::Closed, &[&[0, 1, 2]]);
    empty.last_entry = Lac::NONE;
    let plan = planned(&empty, &reasons, &view(&[3, 4, 5, 6]));
    assert_eq!((plan.copies.len(), plan.moves.len(), plan.left.len()), (0, 1, 0));
}

#[test]
fn copies_in_one_zone_are_spread_when_another_zone_has_room() {
    let metadata = ledger(LedgerState::Closed, &[&[0, 1, 2]]);
    let mut cluster = view(&[]);
    cluster.bookies = vec![up(0, "a"), up(1, "a"), up(2, "a"), up(3, "a"), up(4, "b")];
    let plan = planned(&metadata, &[RepairReason::Placement], &cluster);
    let after = plan.applied_to(&metadata).expect("it fits");
    assert!(after.fragments[0].bookies.contains(&name(4)), "{after:?}");
    // Who leaves is up, and may be asked.
    assert_eq!(plan.copies[0].from.len(), 3);
    assert!(!planned(&after, &[RepairReason::Placement], &cluster).has_work());
    // Zones are being introduced.
    let without = |at: usize| {
        let mut cluster = cluster.clone();
        cluster.bookies[at..].iter_mut().for_each(|bookie| bookie.zone.clear());
        cluster
    };
    for at in [0, 3, 4] {
        assert_eq!(in_one_zone(&metadata.fragments[0], &without(at)), None, "{at}");
    }
    // Nobody knows the zone of one that is away.
    cluster.bookies.remove(2);
    assert_eq!(in_one_zone(&metadata.fragments[0], &cluster), None);
}

#[test]
fn a_plan_does_not_fit_a_record_that_has_changed_where_it_matters() {
    let metadata = ledger(LedgerState::Open, &[&[0, 1, 2], &[0, 1, 2]]);
    let plan = planned(&metadata, &[missing(0)], &view(&[1, 2, 3]));
    // Its owner went on.
    let mut owners = metadata.clone();
    owners.fragments.push(Fragment { first_entry: EntryId(25), bookies: names(&[1, 2, 4]) });
    let merged = plan.applied_to(&owners).expect("another fragment is nothing to it");
    assert_eq!(merged.fragments[2], owners.fragments[2]);
    // Another repair was there.
    let mut other = metadata;
    other.fragments[0].bookies = names(&[5, 1, 2]);
    assert_eq!(plan.applied_to(&other), None);
}

#[derive(Debug, Clone)]
struct Scene {
    metadata: LedgerMetadata,
    view: ClusterView,
    reasons: Vec<RepairReason>,
    want: u32,
    seed: u64,
}

fn scenes() -> impl Strategy<Value = Scene> {
    let bookie = (any::<bool>(), 0..3_usize, 0..8_u8, any::<bool>(), any::<bool>());
    let ensembles = (1..4_usize).prop_flat_map(|quorum| {
        let one = proptest::sample::subsequence((0..BOOKIES).collect::<Vec<_>>(), quorum);
        proptest::collection::vec(one, 1..4)
    });
    let state = prop_oneof![
        Just(LedgerState::Open),
        Just(LedgerState::InRecovery),
        Just(LedgerState::Closed),
        Just(LedgerState::Closed),
    ];
    let damaged = proptest::option::of((0..BOOKIES, 0..40_u64, 0..20_u64));
    let bookies = proptest::collection::vec(bookie, BOOKIES);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (bookies, ensembles, state, damaged, flags, 1..5_u32, any::<u64>()).prop_map(
        |(bookies, ensembles, state, damaged, flags, want, seed)| {
            let ensembles: Vec<&[usize]> = ensembles.iter().map(Vec::as_slice).collect();
            let mut metadata = ledger(state, &ensembles);
            metadata.under_replicated = flags.0;
            if flags.1 && state == LedgerState::Closed && metadata.fragments.len() == 1 {
                metadata.last_entry = Lac::NONE;
            }
            let mut view = ClusterView { is_current: true, ..ClusterView::default() };
            let mut reasons = Vec::new();
            for (index, (is_up, zone, dice, gone, takes)) in bookies.into_iter().enumerate() {
                if is_up || dice > 3 {
                    let takes = takes || dice > 1;
                    let suspect = dice == 7;
                    view.bookies.push(BookieView { takes, suspect, ..up(index, ZONES[zone]) });
                } else if gone {
                    reasons.push(missing(index));
                }
                if dice == 5 {
                    view.draining.push(name(index));
                    reasons.push(RepairReason::Draining(name(index)));
                }
            }
            // Placement gives nothing to who is drained.
            for bookie in &mut view.bookies {
                bookie.takes &= !view.draining.contains(&bookie.bookie);
            }
            if let Some((index, first, more)) = damaged {
                let (first, last) = (EntryId(first), EntryId(first + more));
                reasons.push(RepairReason::Damaged { bookie: name(index), first, last });
            }
            if flags.2 {
                reasons.push(RepairReason::Placement);
            }
            reasons.sort_unstable();
            Scene { metadata, view, reasons, want, seed }
        },
    )
}

fn made(scene: &Scene) -> Plan {
    let random = SeededRandom::new(scene.seed);
    let mut below = |bound| random.below(bound);
    plan(&scene.metadata, &scene.reasons, &scene.view, scene.want, &mut below)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn every_plan_keeps_what_must_hold(scene in scenes()) {
        let (plan, before) = (made(&scene), &scene.metadata);
        let Some(after) = plan.applied_to(before) else {
            return Err(TestCaseError::fail("it doesn't fit what it was made for"));
        };
        prop_assert_eq!(after.validate(), Ok(()));
        prop_assert_eq!((after.state, after.last_entry), (before.state, before.last_entry));
        prop_assert_eq!(after.fragments.len(), before.fragments.len());
        let closed = before.state == LedgerState::Closed;
        prop_assert!(closed || after.last_fragment() == before.last_fragment());
        prop_assert!(after.write_quorum >= before.write_quorum);
        prop_assert!(closed || after.write_quorum == before.write_quorum);
        let mut fresh = BTreeSet::new();
        for (index, (old, new)) in before.fragments.iter().zip(&after.fragments).enumerate() {
            for bookie in new.bookies.iter().filter(|bookie| !old.bookies.contains(bookie)) {
                fresh.insert(bookie.clone());
                let known = scene.view.get(bookie);
                prop_assert!(known.is_some_and(|known| known.takes && !known.suspect));
                let Some((first, last)) = entries_of(before, index) else { continue };
                // Every entry, from somebody who may have it.
                let whole = |run: &CopyRun| {
                    (run.first, run.last, &run.to, run.how) == (first, last, bookie, How::All)
                        && !run.from.is_empty()
                };
                prop_assert!(plan.copies.iter().any(whole), "{:?} in {:?}", bookie, plan);
            }
        }
        prop_assert_eq!(fresh.into_iter().collect::<Vec<_>>(), plan.targets.clone());
        for run in &plan.copies {
            let within = (0..touchable(before)).find(|index| {
                entries_of(before, *index)
                    .is_some_and(|(first, last)| first <= run.first && run.last <= last)
            });
            let Some(index) = within else {
                return Err(TestCaseError::fail(format!("{run:?} is nowhere")));
            };
            prop_assert!(after.fragments[index].bookies.contains(&run.to));
            prop_assert!(scene.view.is_up(&run.to) && !run.from.contains(&run.to));
            for source in &run.from {
                prop_assert!(before.fragments[index].bookies.contains(source));
                prop_assert!(scene.view.is_up(source));
            }
        }
    }

    #[test]
    fn what_nothing_is_in_the_way_of_is_done_whole_and_once(scene in scenes()) {
        let plan = made(&scene);
        let Some(after) = plan.applied_to(&scene.metadata) else { return Ok(()) };
        // Whatever is left has a reason.
        prop_assert!(plan.left.is_empty() || !plan.obstacles.is_empty(), "{:?}", plan.left);
        if !plan.obstacles.is_empty() {
            return Ok(());
        }
        for fragment in after.fragments.iter().take(touchable(&after)) {
            for bookie in &fragment.bookies {
                let gone = scene.reasons.contains(&RepairReason::Missing(bookie.clone()));
                prop_assert!(!scene.view.is_draining(bookie));
                prop_assert!(scene.view.is_up(bookie) || !gone);
            }
        }
        if after.state == LedgerState::Closed && scene.metadata.under_replicated {
            prop_assert!(!after.under_replicated && after.write_quorum >= scene.want);
        }
        let again = made(&Scene { metadata: after, ..scene.clone() });
        prop_assert!(again.moves.is_empty(), "{:?} after {:?}", again.moves, plan.moves);
    }

    /// Of all bookies that could come, those come that spread a fragment best.
    #[test]
    fn no_other_choice_is_spread_better(scene in scenes()) {
        let plan = made(&scene);
        let zones_of = |bookies: &[BookieId]| -> usize {
            let up: Vec<&str> = bookies
                .iter()
                .filter_map(|bookie| scene.view.get(bookie).map(|view| view.zone.as_str()))
                .collect();
            ZONES.iter().map(|zone| crowd(&up, zone).pow(2)).sum()
        };
        for moved in &plan.moves {
            let is_fresh = |bookie: &&BookieId| !moved.before.contains(bookie);
            let fresh = moved.after.iter().filter(is_fresh).count();
            let staying: Vec<BookieId> =
                moved.after.iter().filter(|bookie| !is_fresh(bookie)).cloned().collect();
            let could: Vec<BookieId> = scene
                .view
                .bookies
                .iter()
                .filter(|it| it.takes && !it.suspect && !moved.before.contains(&it.bookie))
                .map(|it| it.bookie.clone())
                .collect();
            // Who was to leave and stays for lack of others still counts among the copies.
            let leaving = |bookie: &BookieId| {
                scene.view.is_draining(bookie)
                    || scene.reasons.contains(&RepairReason::Missing(bookie.clone()))
            };
            if staying.iter().any(leaving) {
                continue;
            }
            let found = zones_of(&moved.after);
            for set in 0_u32..1 << could.len() {
                if set.count_ones() as usize != fresh {
                    continue;
                }
                let chosen = could.iter().enumerate().filter(|(at, _)| set >> at & 1 == 1);
                let mut other = staying.clone();
                other.extend(chosen.map(|(_, bookie)| bookie.clone()));
                prop_assert!(found <= zones_of(&other), "{:?} beats {:?}", other, moved);
            }
        }
    }
}
