//! Which bundles are orphans, and for how long.

use super::*;

const OWN: SessionId = SessionId(7);
const OTHER: SessionId = SessionId(8);

fn bundle(number: u32) -> BundleId {
    let range = geminga_meta::bundle::HashRange { first: number, last: number };
    BundleId { namespace: "public/default".parse().expect("valid"), range }
}

fn owned(list: &[(u32, SessionId)]) -> Owned {
    list.iter().map(|(number, session)| (bundle(*number), (*session, Revision(1)))).collect()
}

fn none() -> std::iter::Empty<BundleId> {
    std::iter::empty()
}

#[test]
fn a_bundle_whose_record_cannot_be_read_is_nobodys_to_take_and_not_lost() {
    let grip = Grip { revision: Revision(1), session: OWN };
    let mut orphans = Orphans::default();
    let unreadable = |numbers: &[u32]| numbers.iter().copied().map(bundle).collect::<Vec<_>>();
    orphans.see(owned(&[(1, OTHER), (2, OWN)]), unreadable(&[3]).into_iter());
    orphans.see(owned(&[]), unreadable(&[1, 2, 3]).into_iter());
    assert!(orphans.wanted(OWN, |_| true, |_| true).is_empty());
    assert!(orphans.orphans.is_empty());
    assert!(!orphans.is_lost(&bundle(2), grip, OWN));
    // One that was an orphan has somebody again, who is not known.
    orphans.see(owned(&[]), none());
    assert_eq!(orphans.wanted(OWN, |_| false, |_| true).len(), 3);
    orphans.see(owned(&[]), unreadable(&[1]).into_iter());
    assert_eq!(orphans.wanted(OWN, |_| false, |_| true), [bundle(2), bundle(3)]);
}

#[test]
fn a_bundle_that_lost_its_owner_is_taken_by_the_chosen_broker_until_somebody_serves_it() {
    let mut orphans = Orphans::default();
    orphans.see(owned(&[(1, OTHER), (2, OTHER), (3, OTHER)]), none());
    let not_three = |id: &BundleId| *id != bundle(3);
    assert!(orphans.wanted(OWN, |_| false, not_three).is_empty());
    orphans.see(owned(&[(1, OTHER)]), none());
    assert_eq!(orphans.wanted(OWN, |_| false, not_three), [bundle(2)]);
    // Owned, but not served yet: its state log couldn't be opened.
    orphans.see(owned(&[(1, OTHER), (2, OWN)]), none());
    assert_eq!(orphans.wanted(OWN, |_| false, not_three), [bundle(2)]);
    assert!(orphans.wanted(OWN, |_| true, not_three).is_empty());
    // The one that wasn't this broker's becomes it, when the chosen one goes.
    assert_eq!(orphans.wanted(OWN, |_| false, |_| true), [bundle(3)]);
}

#[test]
fn a_bundle_that_somebody_else_takes_is_no_orphan_any_more() {
    let mut orphans = Orphans::default();
    orphans.see(owned(&[(1, OTHER)]), none());
    orphans.see(owned(&[]), none());
    orphans.see(owned(&[(1, SessionId(9))]), none());
    assert!(orphans.wanted(OWN, |_| false, |_| true).is_empty());
    assert!(orphans.orphans.is_empty());
}

#[test]
fn a_served_bundle_is_lost_when_its_record_has_gone_and_not_while_the_view_is_behind() {
    let grip = |revision| Grip { revision: Revision(revision), session: OWN };
    let mut orphans = Orphans::default();
    orphans.see(owned(&[(1, OTHER)]), none());
    orphans.see(owned(&[]), none());
    // Taken at a revision that the view doesn't have yet: served, and nothing to do.
    assert!(!orphans.is_lost(&bundle(1), grip(2), OWN));
    assert!(orphans.wanted(OWN, |_| true, |_| true).is_empty());
    orphans.see([(bundle(1), (OWN, Revision(2)))].into(), none());
    assert!(!orphans.is_lost(&bundle(1), grip(2), OWN));
    assert!(orphans.wanted(OWN, |_| true, |_| true).is_empty());
    orphans.see(owned(&[]), none());
    assert!(orphans.is_lost(&bundle(1), grip(2), OWN));
    assert_eq!(orphans.wanted(OWN, |_| false, |_| true), [bundle(1)]);
    // Another one has it, or had it before this broker took it.
    orphans.see([(bundle(1), (OTHER, Revision(4)))].into(), none());
    assert!(orphans.is_lost(&bundle(1), grip(2), OWN));
    assert!(!orphans.is_lost(&bundle(1), grip(5), OWN));
    assert!(orphans.is_lost(&bundle(1), grip(5), SessionId(9)));
}

#[tokio::test]
async fn unknown_namespaces_are_read_a_few_at_a_time_and_each_once() {
    let cluster = crate::testing::Cluster::new();
    let broker = cluster.broker(crate::testing::Cluster::config()).await;
    let names = || (0..100).map(|number| format!("acme/n{number}").parse().expect("valid"));
    let mut learning = Learning::default();
    for _ in 0..3 {
        learning.add(names());
        learning.go_on(&broker.inner);
        assert_eq!((learning.tasks.len(), learning.waiting.len()), (LEARNT_AT_ONCE, 84));
    }
    let known: NamespaceName = "public/default".parse().expect("valid");
    learning = Learning::default();
    learning.add([known.clone()].into_iter());
    learning.go_on(&broker.inner);
    let ended = learning.tasks.join_next().await.expect("one");
    assert!(learning.done(ended).await);
    assert!(learning.names.is_empty());
    assert!(broker.inner.namespaces.known(&known).is_some());
    broker.shutdown().await;
}
