//! Some seeds of the cluster's simulation; `scripts/simulate` runs more.

use geminga_simulation::theme::Theme;
use geminga_simulation::{Run, run};

/// Enough to see every theme once without optimization.
const SEEDS: u64 = 11;

#[test]
fn no_seed_breaks_a_promise() {
    let (mut receipts, mut deliveries) = (0, 0);
    for seed in 0..SEEDS {
        let outcome = run(Run::seed(seed));
        assert_eq!(
            outcome.violation, None,
            "seed {seed}; scripts/simulate --cluster --trace {seed} shows it"
        );
        receipts += outcome.receipts;
        deliveries += outcome.deliveries;
    }
    // A simulation in which nothing happens proves nothing.
    assert!(receipts > SEEDS * 100, "{receipts} receipts");
    assert!(deliveries > receipts, "{deliveries} deliveries");
}

#[test]
fn the_seeds_have_every_theme() {
    let themes: std::collections::BTreeSet<Theme> = (0..SEEDS).map(Theme::of).collect();
    assert_eq!(themes.len(), Theme::ALL.len());
}

/// Tokio's own lots are in our hands only as `scripts/simulate` builds it.
#[cfg(tokio_unstable)]
#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    for seed in 0..20 {
        let first = run(Run::seed(seed));
        assert_eq!(first, run(Run::seed(seed)), "seed {seed}");
        assert_ne!(first.trace, run(Run::seed(seed + 11)).trace, "seeds {seed} and {}", seed + 11);
    }
}

/// A seed that a change has hidden one at costs time: `scripts/simulate --mutant NAME` tells
/// another one for `mutant::hint`.
#[cfg(tokio_unstable)]
#[test]
fn every_planted_defect_is_caught_and_nothing_without_it() {
    let mut missed = Vec::new();
    for mutant in geminga_simulation::mutant::Mutant::ALL {
        match geminga_simulation::catch(mutant, 0..300) {
            Some(caught) => {
                assert_eq!(caught.without, None, "{mutant:?}: {caught:?}");
                if caught.seed != mutant.hint() {
                    eprintln!("{mutant:?} is caught at {} by now", caught.seed);
                }
            }
            None => missed.push(mutant),
        }
    }
    assert_eq!(missed, [], "not caught at 300 seeds");
}
