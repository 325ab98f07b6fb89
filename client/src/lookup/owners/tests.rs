//! Whose word counts and who is asked next, against lists of everything that was said.

use std::sync::LazyLock;

use super::*;
use proptest::prelude::*;

const TOPICS: u64 = 12;

fn topic(number: u64) -> TopicName {
    static NAMES: LazyLock<Vec<TopicName>> = LazyLock::new(|| {
        let name = |number| format!("persistent://t/n/topic-{number}").parse().expect("a name");
        (0..TOPICS).map(name).collect()
    });
    NAMES[number as usize].clone()
}

fn scope(number: u64) -> Scope {
    Scope::Topic(topic(number))
}

/// The bundle of all hashes between two, in sixteenths.
fn bundle(first: u32, last: u32) -> Scope {
    let namespace = topic(0).namespace().clone();
    Scope::Bundle { namespace, first: first << 28, last: (last << 28) | (u32::MAX >> 4) }
}

fn word(url: &str, told_by: &str) -> Owner {
    Owner {
        scope: scope(1),
        url: url.into(),
        broker_id: format!("id of {url}").into(),
        advertised: true,
        told_by: told_by.into(),
        version: 0,
    }
}

fn candidates(urls: &[&str]) -> Vec<Candidate> {
    let candidate =
        |url: &&str| Candidate { url: (*url).into(), health: None, failed_lately: false };
    urls.iter().map(candidate).collect()
}

fn asked(candidates: Vec<Candidate>, blamed: &(Owner, Trouble)) -> Vec<String> {
    order(candidates, Some(blamed)).iter().map(ToString::to_string).collect()
}

#[test]
fn a_word_counts_until_it_is_found_wrong_and_the_newer_one_is_not_lost() {
    let mut owners = Owners::new(10);
    let first = owners.learn(word("b", "a"));
    assert_eq!(owners.known(&topic(1)), Some(first.clone()));
    owners.blame(&first, Trouble::Unreachable);
    assert_eq!(owners.known(&topic(1)), None);
    assert_eq!(owners.blamed(&topic(1)), Some((first.clone(), Trouble::Unreachable)));
    let second = owners.learn(word("c", "a"));
    // Another of the topic's producers finds only now that the first word was wrong.
    owners.blame(&first, Trouble::Refused);
    assert_eq!(owners.known(&topic(1)), Some(second));
    assert_eq!(owners.blamed(&topic(1)), None);
}

#[test]
fn the_dead_owner_is_asked_last_and_who_named_it_before_that() {
    let blamed = (word("b", "a"), Trouble::Unreachable);
    assert_eq!(asked(candidates(&["a", "b", "c"]), &blamed), ["c", "a", "b"]);
    assert_eq!(asked(candidates(&["b", "a"]), &blamed), ["a", "b"]);
    assert_eq!(asked(candidates(&["b"]), &blamed), ["b"], "if there is nobody else");
}

#[test]
fn an_owner_that_refused_is_asked_before_the_one_that_named_it() {
    let blamed = (word("b", "a"), Trouble::Refused);
    assert_eq!(asked(candidates(&["a", "b"]), &blamed), ["b", "a"]);
    assert_eq!(asked(candidates(&["a", "b", "c"]), &blamed), ["c", "b", "a"]);
    // It had named itself, and left in order: the others know better.
    let blamed = (word("a", "a"), Trouble::Refused);
    assert_eq!(asked(candidates(&["a", "b"]), &blamed), ["b", "a"]);
}

#[test]
fn who_is_doubtful_or_failed_lately_is_asked_late() {
    let mut three = candidates(&["a", "b", "c"]);
    three[0].health = Some(Health::Doubtful);
    three[1].failed_lately = true;
    assert_eq!(order(three, None).first().map(AsRef::as_ref), Some("c"));
}

#[test]
fn one_broker_is_one_place_however_its_address_is_written() {
    let advertised = word("http://127.0.0.1:1", "a");
    let typed = Owner { url: "http://localhost:1".into(), advertised: false, ..advertised.clone() };
    assert!(typed.is_same_place(&advertised) && advertised.is_same_place(&typed));
    let moved = Owner { url: "http://10.0.0.2:1".into(), ..advertised.clone() };
    assert!(!moved.is_same_place(&advertised), "it was started again elsewhere");
    let nameless = Owner { broker_id: "".into(), ..typed.clone() };
    assert!(!nameless.is_same_place(&moved));
}

#[test]
fn a_word_is_about_its_bundle_and_a_range_without_the_topic_says_nothing() {
    let hash = topic(3).hash();
    let of = |first, last| Scope::of(&topic(3), Some(HashRange { first, last }));
    assert_eq!(of(hash + 1, u32::MAX), scope(3));
    assert_eq!(of(hash, hash - 1), scope(3));
    let only = of(hash, hash);
    assert!(only.covers(&topic(3)) && (0..3).all(|other| !only.covers(&topic(other))));
    assert!(!of(0, u32::MAX).covers(&"persistent://t/other/x".parse().expect("a name")));
    let mut owners = Owners::new(10);
    let all = owners.learn(Owner { scope: of(0, u32::MAX), ..word("b", "a") });
    assert_eq!(owners.known(&topic(5)), Some(all.clone()));
    assert_eq!(owners.scope(&topic(5)), all.scope);
    owners.blame(&all, Trouble::Unreachable);
    assert_eq!(owners.blamed(&topic(6)), Some((all, Trouble::Unreachable)));
}

#[derive(Debug, Clone)]
enum Event {
    Learn { scope: Scope, owner: u8 },
    Blame { back: usize, refused: bool },
}

fn any_scope() -> impl Strategy<Value = Scope> {
    let bundles = (0_u32..16, 0_u32..16).prop_map(|(a, b)| bundle(a.min(b), a.max(b)));
    prop_oneof![(0..TOPICS).prop_map(scope), bundles]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (any_scope(), 0_u8..4).prop_map(|(scope, owner)| Event::Learn { scope, owner }),
        (0_usize..20, any::<bool>()).prop_map(|(back, refused)| Event::Blame { back, refused }),
    ]
}

fn overlap(one: &Scope, other: &Scope) -> bool {
    match (one, other) {
        (Scope::Bundle { first, last, .. }, Scope::Bundle { first: from, last: to, .. }) => {
            first <= to && from <= last
        }
        _ => one == other,
    }
}

proptest! {
    /// Against a list of the words that count, the oldest first.
    #[test]
    fn the_cache_is_the_last_words_on_the_latest_topics_and_bundles(
        events in proptest::collection::vec(event(), 0..120),
    ) {
        const LIMIT: usize = 5;
        let mut owners = Owners::new(LIMIT);
        let mut kept: Vec<(Owner, Option<Trouble>)> = Vec::new();
        let mut said: Vec<Owner> = Vec::new();
        for event in events {
            match event {
                Event::Learn { scope, owner } => {
                    let word = Owner { scope, ..word(&owner.to_string(), "a") };
                    let owner = owners.learn(word);
                    prop_assert!(said.iter().all(|old| old.version < owner.version));
                    kept.retain(|(old, _)| !overlap(&old.scope, &owner.scope));
                    kept.push((owner.clone(), None));
                    said.push(owner);
                    if kept.len() > LIMIT {
                        kept.remove(0);
                    }
                }
                Event::Blame { back, refused } => {
                    let Some(word) = said.iter().rev().nth(back) else { continue };
                    let trouble = if refused { Trouble::Refused } else { Trouble::Unreachable };
                    owners.blame(word, trouble);
                    for (_, found) in kept.iter_mut().filter(|(kept, _)| kept == word) {
                        *found = Some(trouble);
                    }
                }
            }
            for number in 0..TOPICS {
                let last = kept.iter().rfind(|(kept, _)| kept.scope.covers(&topic(number)));
                let known = last.filter(|it| it.1.is_none()).map(|it| it.0.clone());
                let blamed = last.and_then(|it| Some((it.0.clone(), it.1?)));
                prop_assert_eq!(owners.known(&topic(number)), known);
                prop_assert_eq!(owners.blamed(&topic(number)), blamed);
            }
        }
        prop_assert_eq!(owners.by_version.len(), kept.len());
        prop_assert_eq!(owners.by_topic.len() + owners.by_bundle.len(), kept.len());
    }

    /// Everybody is asked, once; after trouble, never the one to blame while there is another.
    #[test]
    fn everybody_is_asked_in_turn(
        count in 1_usize..8,
        states in proptest::collection::vec((0_u8..3, any::<bool>()), 8),
        owner in 0_usize..8,
        told_by in 0_usize..8,
        refused in any::<bool>(),
    ) {
        let name = |at: usize| at.to_string();
        let given: Vec<Candidate> = (0..count).map(|at| Candidate {
            url: name(at).into(),
            health: [None, Some(Health::Fine), Some(Health::Doubtful)][states[at].0 as usize],
            failed_lately: states[at].1,
        }).collect();
        let trouble = if refused { Trouble::Refused } else { Trouble::Unreachable };
        let blamed = (word(&name(owner), &name(told_by)), trouble);
        let asked = order(given.clone(), Some(&blamed));
        let mut sorted = asked.clone();
        sorted.sort();
        prop_assert_eq!(sorted, given.iter().map(|it| Arc::clone(&it.url)).collect::<Vec<_>>());
        if !refused && count > 1 {
            let owner = name(owner);
            prop_assert_ne!(&*asked[0], owner.as_str());
        }
        let healthy = |at: &Candidate| !at.failed_lately && at.health != Some(Health::Doubtful);
        let uninvolved = |at: &Candidate| *at.url != name(owner) && *at.url != name(told_by);
        if given.iter().any(|at| healthy(at) && uninvolved(at)) {
            let first = given.iter().find(|at| at.url == asked[0]).expect("it was given");
            prop_assert!(healthy(first) && uninvolved(first));
        }
    }
}
