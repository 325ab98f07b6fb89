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

fn word(url: &str, told_by: &str) -> Owner {
    Owner {
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
    let first = owners.learn(&topic(1), word("b", "a"));
    assert_eq!(owners.known(&topic(1)), Some(first.clone()));
    owners.blame(&topic(1), first.version, Trouble::Unreachable);
    assert_eq!(owners.known(&topic(1)), None);
    assert_eq!(owners.blamed(&topic(1)), Some((first.clone(), Trouble::Unreachable)));
    let second = owners.learn(&topic(1), word("c", "a"));
    // Another of the topic's producers finds only now that the first word was wrong.
    owners.blame(&topic(1), first.version, Trouble::Refused);
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

#[derive(Debug, Clone)]
enum Event {
    Learn { topic: u64, owner: u8 },
    Blame { topic: u64, back: u64, refused: bool },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..TOPICS, 0_u8..4).prop_map(|(topic, owner)| Event::Learn { topic, owner }),
        (0..TOPICS, 0_u64..20, any::<bool>()).prop_map(|(topic, back, refused)| Event::Blame {
            topic,
            back,
            refused
        }),
    ]
}

proptest! {
    /// Against a list of everything that was ever said.
    #[test]
    fn the_cache_is_the_last_words_of_the_latest_topics(
        events in proptest::collection::vec(event(), 0..120),
    ) {
        const LIMIT: usize = 5;
        let mut owners = Owners::new(LIMIT);
        let mut said: Vec<(u64, Owner, Option<Trouble>)> = Vec::new();
        for event in events {
            match event {
                Event::Learn { topic: number, owner } => {
                    let owner = owners.learn(&topic(number), word(&owner.to_string(), "a"));
                    prop_assert!(said.iter().all(|(_, old, _)| old.version < owner.version));
                    said.push((number, owner, None));
                }
                Event::Blame { topic: number, back, refused } => {
                    let version = (said.len() as u64 + 1).saturating_sub(back);
                    let trouble = if refused { Trouble::Refused } else { Trouble::Unreachable };
                    owners.blame(&topic(number), version, trouble);
                    for (of, owner, found) in &mut said {
                        if *of == number && owner.version == version {
                            *found = Some(trouble);
                        }
                    }
                }
            }
            let mut kept: Vec<(u64, Owner, Option<Trouble>)> = Vec::new();
            for (number, owner, trouble) in said.iter().rev() {
                if kept.len() < LIMIT && kept.iter().all(|(seen, ..)| seen != number) {
                    kept.push((*number, owner.clone(), *trouble));
                }
            }
            for number in 0..TOPICS {
                let last = kept.iter().find(|(seen, ..)| *seen == number);
                let known = last.filter(|it| it.2.is_none()).map(|it| it.1.clone());
                let blamed = last.and_then(|it| Some((it.1.clone(), it.2?)));
                prop_assert_eq!(owners.known(&topic(number)), known);
                prop_assert_eq!(owners.blamed(&topic(number)), blamed);
            }
        }
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
