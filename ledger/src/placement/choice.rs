//! [`choose`]: which of the bookies that are up a ledger goes to. No I/O; chance comes in as a
//! function.
//!
//! What is chosen is spread over as many zones as there are, as evenly as can be, together with the
//! bookies that the ledger keeps. Among equals, a bookie is the likelier the more space it has
//! left, so that disks of different sizes fill up alike. A bookie that failed lately is chosen only
//! where nothing else is left.

/// A bookie that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate<'a> {
    pub zone: &'a str,
    /// What ordinary adds can still take.
    pub free_bytes: u64,
    /// It failed lately.
    pub suspect: bool,
}

/// How much to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Want {
    /// So many, if there are enough.
    pub most: usize,
    /// Up to so many, also of those that failed lately.
    pub with_suspects: usize,
}

/// Positions of different candidates, best first. `kept`: the zones of bookies that the ledger
/// keeps. `below` draws a number below a bound that is not 0.
pub(crate) fn choose(
    candidates: &[Candidate<'_>],
    kept: &[&str],
    want: Want,
    mut below: impl FnMut(u64) -> u64,
) -> Vec<usize> {
    let mut taken: Vec<&str> = kept.to_vec();
    let mut chosen = Vec::new();
    for (suspect, most) in [(false, want.most), (true, want.with_suspects.min(want.most))] {
        let of_kind = |at: &usize| candidates[*at].suspect == suspect;
        let mut left: Vec<usize> = (0..candidates.len()).filter(of_kind).collect();
        while chosen.len() < most && !left.is_empty() {
            let crowd = |at: &usize| crowd(&taken, candidates[*at].zone);
            let least = left.iter().map(crowd).min().unwrap_or(0);
            let best: Vec<usize> = left.iter().copied().filter(|at| crowd(at) == least).collect();
            let at = weighted(candidates, &best, &mut below);
            left.retain(|other| *other != at);
            taken.push(candidates[at].zone);
            chosen.push(at);
        }
    }
    chosen
}

pub(crate) fn crowd(taken: &[&str], zone: &str) -> usize {
    taken.iter().filter(|other| **other == zone).count()
}

/// One of `among`, which isn't empty, by free space.
fn weighted(
    candidates: &[Candidate<'_>],
    among: &[usize],
    below: &mut impl FnMut(u64) -> u64,
) -> usize {
    // In MiB, so that no sum overflows; a bookie without space can be chosen too, if rarely.
    let weight = |at: &usize| (candidates[*at].free_bytes >> 20) + 1;
    let total = among.iter().map(weight).sum();
    let mut drawn = below(total);
    for at in among {
        let weight = weight(at);
        if drawn < weight {
            return *at;
        }
        drawn -= weight;
    }
    among[among.len() - 1]
}

#[cfg(test)]
mod tests {
    use geminga_proto::env::{Random, SeededRandom};
    use proptest::prelude::*;

    use super::*;

    const ZONES: [&str; 4] = ["a", "b", "c", "d"];

    /// How unevenly bookies are spread over zones: lower is better, and least with as many zones as
    /// there are and as even as can be.
    fn unevenness(zones: impl Iterator<Item = &'static str>) -> usize {
        let zones: Vec<&str> = zones.collect();
        ZONES.iter().map(|zone| crowd(&zones, zone).pow(2)).sum()
    }

    fn candidate(zone: usize, free_bytes: u64, suspect: bool) -> Candidate<'static> {
        Candidate { zone: ZONES[zone % ZONES.len()], free_bytes, suspect }
    }

    proptest! {
        #[test]
        fn the_spread_over_zones_is_the_best_that_there_is(
            bookies in proptest::collection::vec((0usize..4, any::<u64>()), 0..8),
            kept in proptest::collection::vec(0usize..4, 0..4),
            most in 0usize..5,
            seed: u64,
        ) {
            let random = SeededRandom::new(seed);
            let candidates: Vec<_> =
                bookies.iter().map(|(zone, free)| candidate(*zone, *free, false)).collect();
            let kept: Vec<&'static str> = kept.into_iter().map(|zone| ZONES[zone]).collect();
            let want = Want { most, with_suspects: most };
            let chosen = choose(&candidates, &kept, want, |bound| random.below(bound));
            let mut different = chosen.clone();
            different.sort_unstable();
            different.dedup();
            prop_assert_eq!(different.len(), chosen.len());
            prop_assert_eq!(chosen.len(), most.min(candidates.len()));
            let spread = |set: &mut dyn Iterator<Item = usize>| {
                let chosen = set.map(|at| candidates[at].zone);
                unevenness(kept.iter().copied().chain(chosen))
            };
            let found = spread(&mut chosen.iter().copied());
            for set in 0u32..1 << candidates.len() {
                if set.count_ones() as usize == chosen.len() {
                    let mut members = (0..candidates.len()).filter(|at| set >> at & 1 == 1);
                    prop_assert!(found <= spread(&mut members), "{:?} beats {:?}", set, chosen);
                }
            }
        }

        #[test]
        fn what_failed_lately_is_chosen_last_and_no_more_of_it_than_allowed(
            bookies in proptest::collection::vec((0usize..4, any::<bool>()), 0..8),
            most in 0usize..6,
            with_suspects in 0usize..6,
            seed: u64,
        ) {
            let random = SeededRandom::new(seed);
            let candidates: Vec<_> =
                bookies.iter().map(|(zone, suspect)| candidate(*zone, 1, *suspect)).collect();
            let want = Want { most, with_suspects };
            let chosen = choose(&candidates, &[], want, |bound| random.below(bound));
            let healthy = candidates.iter().filter(|candidate| !candidate.suspect).count();
            let sound = chosen.iter().filter(|at| !candidates[**at].suspect).count();
            prop_assert_eq!(sound, most.min(healthy));
            let suspects = with_suspects.min(most).saturating_sub(sound);
            let there = candidates.len() - healthy;
            prop_assert_eq!(chosen.len() - sound, suspects.min(there));
            prop_assert!(chosen.iter().take(sound).all(|at| !candidates[*at].suspect));
        }
    }

    #[test]
    fn a_bookie_with_more_space_is_chosen_more_often() {
        let random = SeededRandom::new(5);
        let candidates = [candidate(0, 10 << 30, false), candidate(0, 30 << 30, false)];
        let want = Want { most: 1, with_suspects: 1 };
        let draws = (0..4_000).map(|_| choose(&candidates, &[], want, |bound| random.below(bound)));
        let large = draws.filter(|chosen| chosen[..] == [1]).count();
        assert!((2_800..3_200).contains(&large), "{large} of 4,000");
    }
}
