use super::*;

/// Enough for a few seconds without optimization; the example `simulate` runs more.
const SEEDS: u64 = 250;

#[test]
fn no_seed_breaks_a_promise() {
    let mut confirmed = 0;
    let mut recoveries = 0;
    for seed in 0..SEEDS {
        let outcome = run(seed, None, false);
        assert_eq!(outcome.violation, None, "seed {seed}");
        confirmed += outcome.confirmed;
        recoveries += outcome.recoveries;
    }
    // The runs did something: a simulation in which nothing happens proves nothing.
    assert!(confirmed > SEEDS * 10, "{confirmed} entries confirmed");
    assert!(recoveries > SEEDS, "{recoveries} recoveries");
}
