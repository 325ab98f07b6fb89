//! Weighted rendezvous hashing: which of several brokers an unowned bundle goes to.
//!
//! Each broker gets a number for the bundle, -log2(h)/weight, with h the hash of both as a
//! fraction of 1; the lowest wins. So the chance to win is proportional to the weight, and when a
//! broker comes or goes only the bundles that it wins or had move (Schindelhauer and Schomaker,
//! "Weighted Distributed Hash Tables").
//!
//! Invariant: all brokers with the same view agree, whatever machines they run on: the arithmetic
//! is done in integers, and the hash is fixed here.

use geminga_meta::bundle::BundleId;
use geminga_proto::id::BrokerId;

/// Fractional bits of a logarithm.
const FRACTION_BITS: u32 = 32;

/// Who wins the bundle; `None` if there is no candidate. Weights are at least 1.
#[must_use]
pub fn pick<'a>(
    bundle: &BundleId,
    candidates: impl IntoIterator<Item = (&'a BrokerId, u32)>,
) -> Option<&'a BrokerId> {
    let bundle = bundle.to_string();
    let draws = candidates.into_iter().map(|(broker, weight)| {
        let cost = minus_log2(hash(&bundle, broker.as_str()));
        (cost, u128::from(weight.max(1)), broker)
    });
    // a.cost / a.weight < b.cost / b.weight, without a division. Ids break ties.
    let cheaper = |one: &(u128, u128, &BrokerId), two: &(u128, u128, &BrokerId)| {
        (one.0 * two.1).cmp(&(two.0 * one.1)).then_with(|| one.2.cmp(two.2))
    };
    draws.min_by(cheaper).map(|(.., broker)| broker)
}

/// FNV-1a over both names, separated by a byte that neither has, then the finalizer of SplitMix64,
/// since FNV alone leaves similar names with similar high bits.
fn hash(bundle: &str, broker: &str) -> u64 {
    let bytes = bundle.bytes().chain([0]).chain(broker.bytes());
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// -log2(hash / 2^64), in units of 2^-32. Each squaring of the mantissa yields one bit.
fn minus_log2(hash: u64) -> u128 {
    let hash = hash.max(1);
    let whole = hash.ilog2();
    // The mantissa is in [1, 2), with 63 fractional bits.
    let mut mantissa = u128::from(hash) << (63 - whole);
    let mut log2 = u128::from(whole);
    for _ in 0..FRACTION_BITS {
        mantissa = (mantissa * mantissa) >> 63;
        let bit = mantissa >> 64;
        mantissa >>= bit;
        log2 = (log2 << 1) | bit;
    }
    (64 << FRACTION_BITS) - log2
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use geminga_meta::bundle::HashRange;
    use proptest::prelude::*;

    use super::*;

    fn bundle(number: u32) -> BundleId {
        let range = HashRange { first: number, last: number };
        BundleId { namespace: "public/default".parse().expect("valid"), range }
    }

    fn broker(number: usize) -> BrokerId {
        BrokerId::new(&format!("broker-{number}")).expect("valid")
    }

    fn weighted(weights: &[u32]) -> Vec<(BrokerId, u32)> {
        (0..).zip(weights).map(|(number, weight)| (broker(number), *weight)).collect()
    }

    fn winner(bundle: &BundleId, brokers: &[(BrokerId, u32)]) -> Option<BrokerId> {
        pick(bundle, brokers.iter().map(|(broker, weight)| (broker, *weight))).cloned()
    }

    #[test]
    fn the_logarithm_is_that_of_floating_point_numbers() {
        for hash in [1, 2, 3, 1 << 20, u64::MAX / 3, u64::MAX / 2 + 1, u64::MAX] {
            let exact = 64.0 - (hash as f64).log2();
            let found = minus_log2(hash) as f64 / (1_u64 << FRACTION_BITS) as f64;
            assert!((exact - found).abs() < 1e-8, "{hash}: {exact} {found}");
        }
    }

    /// Another release must not think otherwise.
    #[test]
    fn some_choices_never_change() {
        let brokers: Vec<_> = (0..5).map(|number| (broker(number), 100)).collect();
        let chosen: Vec<_> =
            (0..8).map(|number| winner(&bundle(number << 28), &brokers).expect("one")).collect();
        let names: Vec<&str> = chosen.iter().map(BrokerId::as_str).collect();
        assert_eq!(names, GOLDEN);
        assert_eq!(hash("public/default/00000000-ffffffff", "b"), GOLDEN_HASH);
        assert_eq!(winner(&bundle(0), &[]), None);
    }

    /// Computed by another program.
    const GOLDEN: [&str; 8] = [
        "broker-1", "broker-1", "broker-4", "broker-3", "broker-0", "broker-4", "broker-0",
        "broker-1",
    ];
    const GOLDEN_HASH: u64 = 0xe330_b53d_456c_73ad;

    #[test]
    fn bundles_spread_by_weight() {
        let brokers = [(broker(0), 100), (broker(1), 100), (broker(2), 300)];
        let mut won = BTreeMap::<BrokerId, u32>::new();
        for number in 0..10_000 {
            *won.entry(winner(&bundle(number), &brokers).expect("one")).or_default() += 1;
        }
        for (broker, weight) in brokers {
            let (share, expected) = (won[&broker], 10_000 * weight / 500);
            assert!(share.abs_diff(expected) < expected / 8, "{broker}: {share} of {expected}");
        }
    }

    proptest! {
        #[test]
        fn only_what_a_broker_had_moves_when_it_goes(
            weights in prop::collection::vec(1..1_000_u32, 1..12),
            gone: prop::sample::Index,
            number: u32,
        ) {
            let all = weighted(&weights);
            let gone = all[gone.index(all.len())].0.clone();
            let rest: Vec<_> = all.iter().filter(|(id, _)| *id != gone).cloned().collect();
            let (before, after) = (winner(&bundle(number), &all), winner(&bundle(number), &rest));
            if before.as_ref() == Some(&gone) {
                prop_assert_eq!(after.is_some(), !rest.is_empty());
            } else {
                prop_assert_eq!(before, after);
            }
        }

        #[test]
        fn all_agree_in_whatever_order_they_list_the_brokers(
            weights in prop::collection::vec(1..1_000_u32, 1..12),
            seed: u64,
            number: u32,
        ) {
            let all = weighted(&weights);
            let mut shuffled = all.clone();
            shuffled.sort_by_key(|(id, _)| hash(id.as_str(), &seed.to_string()));
            prop_assert_eq!(winner(&bundle(number), &all), winner(&bundle(number), &shuffled));
        }

        #[test]
        fn a_heavier_broker_loses_nothing(
            weights in prop::collection::vec(1..1_000_u32, 1..12),
            which: prop::sample::Index,
            number: u32,
        ) {
            let all = weighted(&weights);
            let which = which.index(all.len());
            let mut heavier = all.clone();
            heavier[which].1 *= 2;
            let bundle = bundle(number);
            let (before, after) = (winner(&bundle, &all), winner(&bundle, &heavier));
            prop_assert!(before == after || after.as_ref() == Some(&all[which].0));
        }
    }
}
