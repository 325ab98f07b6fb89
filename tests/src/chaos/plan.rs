//! Which faults come in which order: a pure function of a seed, without clock or processes.
//!
//! Invariants:
//! - Faults are dealt like cards: every kind comes once before any comes again, so that no long run
//!   leaves one out.
//! - A second fault that comes while the first one is held takes away no more than the protocol
//!   promises to survive: none of the two destroys what is stored, and nobody is hit by both.

mod kind;

use std::time::Duration;

use geminga_proto::env::{Random, SeededRandom};

pub use kind::Kind;

/// Storage nodes of the cluster that is broken.
pub const BOOKIES: [&str; 4] = ["bookie-1", "bookie-2", "bookie-3", "bookie-4"];
/// Its brokers.
pub const BROKERS: [&str; 2] = ["broker-1", "broker-2"];
/// Its etcd.
pub const ETCD: [&str; 3] = ["etcd-1", "etcd-2", "etcd-3"];
/// The bookie whose disk is small enough to be filled.
pub const ON_SMALL_DISK: &str = BOOKIES[3];
/// The others. Ledgers go where there is room, so only these are sure to have something.
const ON_LARGE_DISKS: [&str; 3] = [BOOKIES[0], BOOKIES[1], BOOKIES[2]];

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is done.
    pub kind: Kind,
    /// To whom; of no meaning where the kind says it.
    pub target: &'static str,
    /// How long it lasts.
    pub hold: Duration,
    /// For what else has to be picked: places on a disk, a direction, the sides of a split.
    pub pick: u64,
}

impl Fault {
    /// The two groups of a split; each has somebody.
    #[must_use]
    pub fn sides(&self) -> [Vec<&'static str>; 2] {
        let everybody = BOOKIES.iter().chain(&BROKERS).chain(&ETCD);
        let bits = (0..).map(|bit| self.pick >> bit & 1 == 1);
        let (mut one, mut other): (Vec<_>, Vec<_>) =
            everybody.zip(bits).partition(|(_, is_on_first)| *is_on_first);
        if one.is_empty() {
            one.extend(other.pop());
        } else if other.is_empty() {
            other.extend(one.pop());
        }
        [one, other].map(|side| side.into_iter().map(|(name, _)| *name).collect())
    }

    /// A choice of two ways to do it.
    #[must_use]
    pub fn has_first_way(&self) -> bool {
        self.pick >> 32 & 1 == 1
    }

    /// True if both may be there at once.
    fn goes_with(&self, other: &Self) -> bool {
        let (one, two) = (self.kind, other.kind);
        let has = |names: &[&str], fault: &Self| names.contains(&fault.target);
        let hits_bookie = |fault: &Self| has(&BOOKIES, fault) || fault.kind == Kind::AllBookies;
        let all_and_one =
            [one, two].contains(&Kind::AllBookies) && hits_bookie(self) && hits_bookie(other);
        one.bears_another()
            && two.may_come_during_another()
            && self.target != other.target
            && !(one.is_of_network() && two.is_of_network())
            && !(one.is_of_etcd() && two.is_of_etcd())
            && !(has(&BROKERS, self) && has(&BROKERS, other))
            && !all_and_one
    }
}

/// A fault that comes while another one is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct During {
    /// How long after the other one.
    pub after: Duration,
    /// What is done.
    pub fault: Fault,
}

/// What is done in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub fault: Fault,
    /// What is done meanwhile.
    pub during: Option<During>,
    /// How long nothing is done afterwards.
    pub calm: Duration,
}

impl Step {
    /// Whether what came during the fault ends before it does: by the clock, unless one of them
    /// ends with a start, which the other one forbids.
    #[must_use]
    pub fn second_ends_first(&self) -> bool {
        let Some(During { after, fault: second }) = &self.during else { return false };
        let (one, two) = (self.fault.kind, second.kind);
        if one.ends_with_a_start() && two.forbids_starts() {
            true
        } else if two.ends_with_a_start() && one.forbids_starts() {
            false
        } else {
            *after + second.hold <= self.fault.hold
        }
    }

    /// All faults of it.
    pub fn faults(&self) -> impl Iterator<Item = &Fault> {
        std::iter::once(&self.fault).chain(self.during.iter().map(|during| &during.fault))
    }
}

/// The faults of a seed, without an end.
#[derive(Debug)]
pub struct Draws {
    random: SeededRandom,
    kinds: Vec<Kind>,
    outage_ms: u64,
    deck: Vec<Kind>,
}

impl Draws {
    /// Of these kinds, with outages of etcd of this length.
    ///
    /// # Panics
    /// Without a kind.
    #[must_use]
    pub fn new(seed: u64, kinds: &[Kind], outage: Duration) -> Self {
        assert!(!kinds.is_empty(), "nothing would be drawn");
        let outage_ms = outage.as_millis() as u64;
        Self { random: SeededRandom::new(seed), kinds: kinds.to_vec(), outage_ms, deck: Vec::new() }
    }

    /// A number below `end`.
    fn below(&self, end: u64) -> u64 {
        self.random.next_u64() % end
    }

    fn one_of<T: Copy>(&self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    fn shuffled(&self) -> Vec<Kind> {
        let mut deck = self.kinds.clone();
        for last in (1..deck.len()).rev() {
            deck.swap(last, self.below(last as u64 + 1) as usize);
        }
        deck
    }

    fn fault(&self, kind: Kind) -> Fault {
        let target = match kind {
            Kind::DiskFull => ON_SMALL_DISK,
            Kind::EtcdMember => self.one_of(&ETCD),
            Kind::EtcdRestart | Kind::EtcdOutage => "etcd",
            Kind::AllBookies => "all bookies",
            Kind::RollingRestart => "everybody",
            Kind::Split => "two groups",
            Kind::FailingWrite | Kind::FailingSync | Kind::FailingRead | Kind::Damage => {
                self.one_of(&ON_LARGE_DISKS)
            }
            Kind::Wipe => self.one_of(&BOOKIES),
            Kind::Kill
            | Kind::Freeze
            | Kind::FreezePastLease
            | Kind::CutOffFromEtcd
            | Kind::Isolate
            | Kind::OneWay => self.one_of(&[&BOOKIES[..], &BROKERS[..]].concat()),
        };
        let (least, most) = kind.hold_ms(self.outage_ms);
        let hold = Duration::from_millis(least + self.below(most - least + 1));
        Fault { kind, target, hold, pick: self.random.next_u64() }
    }

    /// What is drawn comes meanwhile if it goes with the fault.
    fn during(&self, fault: &Fault) -> Option<During> {
        let second = self.fault(self.one_of(&self.kinds));
        let hold_ms = fault.hold.as_millis() as u64;
        let after = Duration::from_millis(self.below(hold_ms.clamp(1, 4_000)));
        let comes = fault.goes_with(&second);
        comes.then_some(During { after, fault: second })
    }
}

impl Iterator for Draws {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.deck.is_empty() {
            self.deck = self.shuffled();
        }
        let kind = self.deck.pop()?;
        let fault = self.fault(kind);
        let during = self.during(&fault);
        let calm = Duration::from_millis(500 + self.below(2_500));
        Some(Step { fault, during, calm })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const OUTAGE: Duration = Duration::from_secs(60);

    fn drawn(seed: u64, count: usize) -> Vec<Step> {
        Draws::new(seed, &Kind::ALL, OUTAGE).take(count).collect()
    }

    #[test]
    fn the_same_seed_draws_the_same_faults_and_another_one_others() {
        assert_eq!(drawn(7, 100), drawn(7, 100));
        assert_ne!(drawn(7, 100), drawn(8, 100));
        // What comes first doesn't depend on how much follows.
        assert_eq!(drawn(7, 10), drawn(7, 100)[..10]);
    }

    #[test]
    fn every_kind_comes_once_before_any_comes_again() {
        for seed in 0..50 {
            for deck in drawn(seed, 5 * Kind::ALL.len()).chunks(Kind::ALL.len()) {
                let kinds: BTreeSet<Kind> = deck.iter().map(|step| step.fault.kind).collect();
                assert_eq!(kinds.len(), Kind::ALL.len(), "seed {seed}");
            }
        }
    }

    #[test]
    fn every_member_is_met_and_times_are_within_their_bounds() {
        let steps = drawn(1, 2_000);
        for name in BOOKIES.iter().chain(&BROKERS) {
            let killed = |step: &Step| step.fault.kind == Kind::Kill && step.fault.target == *name;
            assert!(steps.iter().any(killed), "{name}");
        }
        for step in steps {
            for fault in step.faults() {
                let (least, most) = fault.kind.hold_ms(60_000);
                let hold = fault.hold.as_millis() as u64;
                assert!((least..=most).contains(&hold), "{step:?}");
            }
            assert!(step.calm < Duration::from_secs(3), "{step:?}");
        }
    }

    #[test]
    fn many_faults_overlap_and_none_of_them_takes_away_too_much() {
        let steps = drawn(2, 4_000);
        let overlapping: Vec<&Step> = steps.iter().filter(|step| step.during.is_some()).collect();
        assert!(overlapping.len() > 800, "{}", overlapping.len());
        let mut pairs = BTreeSet::new();
        for step in &overlapping {
            let [one, two] = [&step.fault, &step.during.as_ref().expect("filtered").fault];
            pairs.insert((one.kind, two.kind));
            let destroys = |kind| matches!(kind, Kind::Damage | Kind::Wipe | Kind::RollingRestart);
            assert!(!destroys(one.kind) && !destroys(two.kind), "{step:?}");
            assert_ne!(one.target, two.target, "{step:?}");
            let is_in = |names: &[&str]| names.contains(&one.target) && names.contains(&two.target);
            assert!(!is_in(&BROKERS), "{step:?}");
            assert!(two.kind != Kind::AllBookies || !BOOKIES.contains(&one.target), "{step:?}");
            // A start never has to wait for what ends later.
            let (early, late) = if step.second_ends_first() { (two, one) } else { (one, two) };
            assert!(!(early.kind.ends_with_a_start() && late.kind.forbids_starts()), "{step:?}");
        }
        assert!(pairs.contains(&(Kind::EtcdOutage, Kind::Kill)), "{pairs:?}");
        assert!(pairs.contains(&(Kind::FailingSync, Kind::Kill)), "{pairs:?}");
        assert!(pairs.len() > 60, "{}", pairs.len());
    }

    #[test]
    fn a_split_has_everybody_on_one_side_and_nobody_on_none() {
        for pick in (0..600).chain([u64::MAX]) {
            let hold = Duration::ZERO;
            let fault = Fault { kind: Kind::Split, target: "two groups", hold, pick };
            let sides = fault.sides();
            assert!(sides.iter().all(|side| !side.is_empty()), "{sides:?}");
            let names: BTreeSet<&str> = sides.concat().into_iter().collect();
            assert_eq!(names.len(), 9, "{sides:?}");
            assert_eq!(sides.concat().len(), 9, "{sides:?}");
        }
    }

    #[test]
    fn names_are_told_apart() {
        let names: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
