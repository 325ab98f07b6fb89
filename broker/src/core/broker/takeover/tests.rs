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

#[test]
fn a_bundle_that_lost_its_owner_is_taken_by_the_chosen_broker_until_somebody_serves_it() {
    let mut orphans = Orphans::default();
    orphans.see(owned(&[(1, OTHER), (2, OTHER), (3, OTHER)]));
    let not_three = |id: &BundleId| *id != bundle(3);
    assert!(orphans.wanted(OWN, |_| false, not_three).is_empty());
    orphans.see(owned(&[(1, OTHER)]));
    assert_eq!(orphans.wanted(OWN, |_| false, not_three), [bundle(2)]);
    // Owned, but not served yet: its state log couldn't be opened.
    orphans.see(owned(&[(1, OTHER), (2, OWN)]));
    assert_eq!(orphans.wanted(OWN, |_| false, not_three), [bundle(2)]);
    assert!(orphans.wanted(OWN, |_| true, not_three).is_empty());
    // The one that wasn't this broker's becomes it, when the chosen one goes.
    assert_eq!(orphans.wanted(OWN, |_| false, |_| true), [bundle(3)]);
}

#[test]
fn a_bundle_that_somebody_else_takes_is_no_orphan_any_more() {
    let mut orphans = Orphans::default();
    orphans.see(owned(&[(1, OTHER)]));
    orphans.see(owned(&[]));
    orphans.see(owned(&[(1, SessionId(9))]));
    assert!(orphans.wanted(OWN, |_| false, |_| true).is_empty());
    assert!(orphans.orphans.is_empty());
}
