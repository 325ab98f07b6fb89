//! [`Reluctance`]: how long a broker refuses a bundle that, by its view, another one is to take.
//!
//! Views differ for moments only, so a client that is sent away finds the other broker. But should
//! two brokers send clients to each other for longer, whoever is asked gives in: a bundle that
//! moved needlessly is better than one that nobody serves. A state machine: time comes in.

use std::collections::BTreeMap;
use std::time::Duration;

use geminga_proto::env::Monotonic;

/// How long a broker that is asked again and again goes on refusing.
const PATIENCE: Duration = Duration::from_secs(1);
/// Who hasn't been asked for so long has not been asked at all. Clients ask at least once a second.
const FORGET: Duration = Duration::from_secs(4);
/// Bundles remembered before those that may be forgotten are.
const REMEMBERED: usize = 1_024;

#[derive(Debug, Clone, Copy)]
struct Asked {
    first: Monotonic,
    last: Monotonic,
}

/// Since when which bundles are asked for in vain.
#[derive(Debug)]
pub struct Reluctance<B> {
    asked: BTreeMap<B, Asked>,
}

impl<B> Default for Reluctance<B> {
    fn default() -> Self {
        Self { asked: BTreeMap::new() }
    }
}

impl<B: Ord + Clone> Reluctance<B> {
    /// Somebody asks for a bundle. Answers whether that has gone on for too long.
    pub fn asked(&mut self, bundle: &B, now: Monotonic) -> bool {
        let is_over = |asked: &Asked| now.saturating_sub(asked.last) > FORGET;
        if self.asked.len() >= REMEMBERED {
            self.asked.retain(|_, asked| !is_over(asked));
        }
        if !self.asked.contains_key(bundle) && self.asked.len() >= REMEMBERED {
            // So many at once: the view is hardly to be trusted.
            return true;
        }
        let new = Asked { first: now, last: now };
        let asked = self.asked.entry(bundle.clone()).or_insert(new);
        if is_over(asked) {
            *asked = new;
        }
        asked.last = now;
        now.saturating_sub(asked.first) >= PATIENCE
    }

    /// The bundle has an owner.
    pub fn settled(&mut self, bundle: &B) {
        self.asked.remove(bundle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Monotonic {
        Duration::from_millis(ms)
    }

    #[test]
    fn who_is_asked_again_and_again_gives_in() {
        let mut reluctance = Reluctance::default();
        assert!(!reluctance.asked(&1, ms(5_000)));
        assert!(!reluctance.asked(&1, ms(5_999)));
        assert!(!reluctance.asked(&2, ms(5_999)));
        assert!(reluctance.asked(&1, ms(6_000)));
        reluctance.settled(&1);
        assert!(!reluctance.asked(&1, ms(6_001)));
    }

    #[test]
    fn what_was_asked_long_ago_does_not_count() {
        let mut reluctance = Reluctance::default();
        assert!(!reluctance.asked(&1, ms(0)));
        assert!(!reluctance.asked(&1, ms(10_000)));
        assert!(!reluctance.asked(&1, ms(10_500)));
        assert!(reluctance.asked(&1, ms(11_200)));
    }

    #[test]
    fn it_remembers_a_bounded_number_of_bundles() {
        let mut reluctance = Reluctance::default();
        for bundle in 0..REMEMBERED {
            assert!(!reluctance.asked(&bundle, ms(0)));
        }
        assert!(reluctance.asked(&REMEMBERED, ms(1)));
        assert!(!reluctance.asked(&REMEMBERED, ms(9_000)));
        assert_eq!(reluctance.asked.len(), 1);
    }
}
