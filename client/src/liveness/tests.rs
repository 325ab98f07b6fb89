//! When silence means something, and what the tasks of a connection tell each other.

use super::*;
use proptest::prelude::*;

/// Looks every [`TICK`]; answers when it was pinged and when it became doubtful.
fn run(
    watch: &mut Watch,
    ticks: u32,
    heard: impl Fn(u32) -> u64,
    waits: impl Fn(u32) -> bool,
) -> (Vec<u32>, Vec<u32>) {
    let (mut pings, mut doubts) = (Vec::new(), Vec::new());
    for tick in 0..ticks {
        match watch.look(heard(tick), || waits(tick)) {
            Step::Ping => pings.push(tick),
            Step::Look => {}
            Step::Park => assert!(!waits(tick)),
        }
        if watch.is_doubtful() {
            doubts.push(tick);
        }
    }
    (pings, doubts)
}

#[test]
fn a_broker_that_is_silent_while_somebody_waits_is_pinged_and_then_doubtful() {
    let mut watch = Watch::default();
    let (pings, doubts) = run(&mut watch, 40, |_| 0, |_| true);
    assert_eq!(pings, [5], "once, after 625 ms");
    assert_eq!(doubts.first(), Some(&7), "before a second is over");
    assert_eq!(doubts.len(), 33, "for as long as nothing is heard");
}

#[test]
fn one_sign_of_life_clears_a_doubt() {
    let mut watch = Watch::default();
    run(&mut watch, 20, |_| 0, |_| true);
    assert!(watch.is_doubtful());
    watch.look(1, || true);
    assert!(!watch.is_doubtful());
}

#[test]
fn nobody_who_waits_means_no_ping_and_no_timer() {
    let mut watch = Watch::default();
    let (pings, _) = run(&mut watch, 40, |_| 0, |tick| tick % QUIET > 0);
    assert!(pings.is_empty(), "what passes while nobody waits doesn't count: {pings:?}");
    assert_eq!(watch.look(0, || false), Step::Park);
}

#[test]
fn a_doubt_outlasts_those_who_waited() {
    let mut watch = Watch::default();
    let (_, doubts) = run(&mut watch, 40, |_| 0, |tick| tick < 10);
    assert_eq!(doubts.last(), Some(&39), "only a sign of life ends it");
}

proptest! {
    /// Against the definition: a broker that says something at least every half second is never
    /// doubtful; one that is silent for two seconds while somebody waits always is.
    #[test]
    fn doubt_follows_silence(
        signs in proptest::collection::btree_set(0_u32..200, 0..60),
        waits in proptest::collection::vec(any::<bool>(), 200),
    ) {
        let heard = |tick: u32| signs.range(..=tick).count() as u64;
        let mut watch = Watch::default();
        for tick in 0..200_u32 {
            let step = watch.look(heard(tick), || waits[tick as usize]);
            let last = signs.range(..=tick).next_back().copied();
            let silent = tick - last.unwrap_or(0);
            let waited = waits[..=tick as usize].iter().rev().take_while(|waits| **waits).count();
            if watch.is_doubtful() {
                prop_assert!(silent + 1 >= QUIET + PING_PATIENCE, "{silent} ticks");
            }
            if silent >= 16 && waited >= 16 {
                prop_assert!(watch.is_doubtful(), "tick {tick}, silent {silent}");
            }
            if step == Step::Park {
                prop_assert!(!waits[tick as usize] && !watch.is_doubtful());
            }
        }
    }
}

#[tokio::test]
async fn what_is_asked_while_the_watch_parks_wakes_it() {
    let vitals = Vitals::default();
    vitals.asked();
    vitals.armed().await;
    vitals.disarm();
    let call = vitals.call();
    assert!(vitals.has_calls());
    vitals.armed().await;
    drop(call);
    assert!(!vitals.has_calls());
}

#[tokio::test]
async fn the_dead_stay_dead() {
    let vitals = Vitals::default();
    vitals.set_doubtful(true);
    vitals.doubtful().await;
    vitals.set_doubtful(false);
    vitals.clear().await;
    assert_eq!(vitals.health(), Health::Fine);
    vitals.die();
    vitals.set_doubtful(false);
    assert_eq!(vitals.health(), Health::Dead);
    vitals.dead().await;
}
