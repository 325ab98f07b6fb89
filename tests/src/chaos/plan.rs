//! Which faults come in which order: a pure function of a seed, without clock or processes.
//!
//! *Invariant:* faults are dealt like cards: every kind comes once before any comes again, so that
//! no long run leaves one out.

use std::time::Duration;

use geminga_proto::env::{Random, SeededRandom};

/// Storage nodes of the cluster that is broken.
pub const BOOKIES: [&str; 4] = ["bookie-1", "bookie-2", "bookie-3", "bookie-4"];
/// Its brokers.
pub const BROKERS: [&str; 2] = ["broker-1", "broker-2"];
/// The bookie whose disk is small enough to be filled.
pub const ON_SMALL_DISK: &str = BOOKIES[3];

/// What can be done to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL to a broker or bookie, which is started again.
    Kill,
    /// SIGSTOP and SIGCONT, before anybody misses it.
    Freeze,
    /// The same for longer than its lease.
    FreezePastLease,
    /// SIGKILL to all bookies at once.
    AllBookies,
    /// SIGKILL to etcd, which is started again at once.
    EtcdRestart,
    /// etcd is away for as long as [`Step::hold`] says.
    EtcdOutage,
    /// A broker or bookie reaches everybody but etcd, for longer than its lease.
    CutOffFromEtcd,
    /// Nobody reaches a broker or bookie, nor does it reach etcd, for longer than its lease.
    Isolate,
    /// Somebody else's file takes all that is left of a bookie's disk.
    DiskFull,
    /// Bytes of sealed segments change on a bookie's disk.
    Damage,
    /// A bookie's directory is emptied: it is refused under its name, and is a new one later.
    Wipe,
    /// Everything is stopped gracefully and started again, one member after the other.
    RollingRestart,
}

impl Kind {
    /// All there are.
    pub const ALL: [Self; 12] = [
        Self::Kill,
        Self::Freeze,
        Self::FreezePastLease,
        Self::AllBookies,
        Self::EtcdRestart,
        Self::EtcdOutage,
        Self::CutOffFromEtcd,
        Self::Isolate,
        Self::DiskFull,
        Self::Damage,
        Self::Wipe,
        Self::RollingRestart,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::FreezePastLease => "freeze_past_lease",
            Self::AllBookies => "all_bookies",
            Self::EtcdRestart => "etcd_restart",
            Self::EtcdOutage => "etcd_outage",
            Self::CutOffFromEtcd => "cut_off_from_etcd",
            Self::Isolate => "isolate",
            Self::DiskFull => "disk_full",
            Self::Damage => "damage",
            Self::Wipe => "wipe",
            Self::RollingRestart => "rolling_restart",
        }
    }

    /// How long its state is held, at least and at most, in milliseconds. Leases last 5 s.
    fn hold_ms(self, outage_ms: u64) -> (u64, u64) {
        match self {
            Self::Kill => (0, 7_000),
            Self::Freeze => (200, 3_000),
            Self::FreezePastLease | Self::CutOffFromEtcd | Self::Isolate => (7_000, 13_000),
            Self::AllBookies | Self::EtcdRestart => (0, 1_000),
            Self::EtcdOutage => (outage_ms, outage_ms),
            Self::DiskFull => (3_000, 6_000),
            Self::Damage | Self::Wipe | Self::RollingRestart => (0, 0),
        }
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub kind: Kind,
    /// To whom; of no meaning where the kind says it.
    pub target: &'static str,
    /// How long it lasts.
    pub hold: Duration,
    /// How long nothing is done afterwards.
    pub calm: Duration,
    /// For what else has to be picked: places on a disk.
    pub pick: u64,
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

    fn one_of(&self, names: &[&'static str]) -> &'static str {
        names[self.below(names.len() as u64) as usize]
    }

    fn shuffled(&self) -> Vec<Kind> {
        let mut deck = self.kinds.clone();
        for last in (1..deck.len()).rev() {
            deck.swap(last, self.below(last as u64 + 1) as usize);
        }
        deck
    }
}

impl Iterator for Draws {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.deck.is_empty() {
            self.deck = self.shuffled();
        }
        let kind = self.deck.pop()?;
        let target = match kind {
            Kind::DiskFull => ON_SMALL_DISK,
            Kind::EtcdRestart | Kind::EtcdOutage => "etcd-1",
            Kind::AllBookies => "all bookies",
            Kind::RollingRestart => "everybody",
            Kind::Damage | Kind::Wipe => self.one_of(&BOOKIES),
            _ => self.one_of(&[&BOOKIES[..], &BROKERS[..]].concat()),
        };
        let (least, most) = kind.hold_ms(self.outage_ms);
        let hold = Duration::from_millis(least + self.below(most - least + 1));
        let calm = Duration::from_millis(500 + self.below(2_500));
        Some(Step { kind, target, hold, calm, pick: self.random.next_u64() })
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
                let kinds: BTreeSet<Kind> = deck.iter().map(|step| step.kind).collect();
                assert_eq!(kinds.len(), Kind::ALL.len(), "seed {seed}");
            }
        }
    }

    #[test]
    fn every_member_is_met_and_times_are_within_their_bounds() {
        let steps = drawn(1, 2_000);
        for name in BOOKIES.iter().chain(&BROKERS) {
            let killed = |step: &Step| step.kind == Kind::Kill && step.target == *name;
            assert!(steps.iter().any(killed), "{name}");
        }
        for step in steps {
            let (least, most) = step.kind.hold_ms(60_000);
            let hold = step.hold.as_millis() as u64;
            assert!((least..=most).contains(&hold), "{step:?}");
            assert!(step.calm < Duration::from_secs(3), "{step:?}");
        }
    }

    #[test]
    fn names_are_told_apart() {
        let names: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }
}
