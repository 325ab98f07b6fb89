//! Many seeds without a defect, and every defect within some seeds.

use std::fmt::Write;

use super::*;
use crate::harness::theme::Theme;

/// Enough for a few seconds without optimization; the example `simulate` runs more.
const SEEDS: u64 = 250;

#[test]
fn no_seed_breaks_a_promise() {
    let (mut confirmed, mut recoveries) = (0, 0);
    for seed in 0..SEEDS {
        let outcome = run(Run::seed(seed));
        assert_eq!(outcome.violation, None, "seed {seed}");
        confirmed += outcome.confirmed;
        recoveries += outcome.recoveries;
    }
    // The runs did something: a simulation in which nothing happens proves nothing.
    assert!(confirmed > SEEDS * 10, "{confirmed} entries confirmed");
    assert!(recoveries > SEEDS, "{recoveries} recoveries");
}

#[test]
fn no_theme_breaks_a_promise() {
    for theme in Theme::ALL {
        for seed in 0..SEEDS / 10 {
            let outcome = run(Run { theme: Some(theme), ..Run::seed(seed) });
            assert_eq!(outcome.violation, None, "{theme:?}, seed {seed}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    for seed in 0..20 {
        let first = run(Run::seed(seed));
        assert_eq!(first, run(Run::seed(seed)), "seed {seed}");
        assert_ne!(first.trace, run(Run::seed(seed + 1)).trace, "seeds {seed} and {}", seed + 1);
    }
}

#[test]
fn the_control_of_a_caught_defect_is_the_same_run_without_it() {
    let caught = catch(Mutant::AckBelowQuorum, 0..1_500).expect("it shows early");
    // A control in which nothing happens would say nothing.
    let control = run(Run { mutant: None, ..Run::planted(caught.seed, Mutant::AckBelowQuorum) });
    assert_eq!((control.violation, caught.without), (None, None));
    assert!(control.confirmed > 0);
}

#[test]
fn every_planted_defect_is_caught() {
    let mut missed = String::new();
    let mut caught = 0;
    for mutant in Mutant::ALL {
        match catch(mutant, 0..5_000) {
            Some(Caught { seed, what, without }) => {
                caught += 1;
                println!("{mutant:?}: caught at seed {seed}: {what}");
                assert_eq!(without, None, "{mutant:?}: seed {seed} breaks a promise without it");
            }
            None => writeln!(missed, "{mutant:?}").expect("writing to a text"),
        }
    }
    println!("{} planted, {caught} caught", Mutant::ALL.len());
    assert_eq!(missed, "", "not caught");
}
