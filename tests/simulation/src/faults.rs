//! [`Fault`]: what goes wrong, and when. Everything that begins ends by itself or with the run's
//! healing.

use std::time::Duration;

use geminga_bookie::device::memory::{Operation, Tear};

use crate::clock::micros;
use crate::dice::Dice;
use crate::network::HostId;
use crate::theme::Theme;

/// What goes wrong, or ends to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// A host vanishes with all its tasks; a bookie's disk keeps what the tear leaves.
    Crash { host: HostId, tear: Tear, silently: bool },
    /// A bookie's power goes at its next write but so many, or soon.
    CutPower { host: HostId, writes: u64 },
    /// A host starts again, if it is down.
    Start(HostId),
    /// A host leaves in order; it starts again later.
    Leave(HostId),
    /// Nothing passes from the one to the other.
    Block(HostId, HostId),
    /// It passes again.
    Unblock(HostId, HostId),
    /// What goes from the one to the other takes up to so much longer.
    Slow(HostId, HostId, Duration),
    /// One of the lines breaks.
    BreakLine(u64),
    /// A client's line breaks, so that it looks for its topic's owner again.
    BreakClient(u64),
    /// A host's wall clock is wrong by so many ms.
    Clock(HostId, i64),
    /// A host stands still.
    Freeze(HostId),
    /// It goes on.
    Thaw(HostId),
    /// The metadata store refuses, or stops to.
    MetaDown(bool),
    /// A host's lease ends before its time.
    LoseLease(HostId),
    /// All watches end.
    LoseWatches,
    /// Operations of a bookie's disk fail after so many more.
    DiskFails(HostId, Operation, u64),
    /// They work again.
    DiskMends(HostId),
    /// A bookie's disk has no room left, or has it again.
    DiskFull(HostId, bool),
    /// A write takes up to so many µs.
    DiskSlow(HostId, u64),
    /// The disk of a bookie is exchanged for an empty one, and put back later.
    Wipe(HostId),
    /// See [`Self::Wipe`].
    Unwipe(HostId),
    /// The one disk that may be damaged is lost with all that is on it, and its bookie with it.
    LoseDisk,
    /// A new bookie with an empty disk takes its place.
    Replace,
    /// The segments of the one disk that may be damaged are gone. Its bookie must be down.
    LoseSegments,
    /// Every block of the segments of the disk that may be damaged is damaged, whoever uses it.
    SpoilSegments,
    /// A bookie reads from old metadata, or from the present ones again.
    OldMeta(HostId, bool),
    /// A byte on the one disk that may be damaged changes.
    Flip(u64),
}

/// Who there is.
#[derive(Debug, Clone)]
pub(crate) struct Hosts {
    pub meta: HostId,
    pub clients: HostId,
    pub bookies: Vec<HostId>,
    pub brokers: Vec<HostId>,
}

/// The faults of a run, by time.
pub(crate) fn plan(theme: Theme, hosts: &Hosts, dice: &Dice, horizon_us: u64) -> Vec<(u64, Fault)> {
    let mut planner = Planner { hosts, dice, horizon_us, plan: Vec::new() };
    planner.plan_theme(theme);
    let mut plan = planner.plan;
    plan.sort_by_key(|(at, _)| *at);
    plan
}

struct Planner<'a> {
    hosts: &'a Hosts,
    dice: &'a Dice,
    horizon_us: u64,
    plan: Vec<(u64, Fault)>,
}

/// The kinds of trouble that themes are made of.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Partition,
    OneWay,
    SlowWay,
    BreakLines,
    BookiePower,
    BookieCrash,
    AllBookies,
    BrokerCrash,
    FreezeBroker,
    FreezeBookie,
    Apart,
    Alone,
    MetaAway,
    MetaMute,
    Lease,
    Watches,
    Clock,
    DiskError,
    DiskFull,
    DiskSlow,
    AllSlow,
    SlowTakeOver,
    Unawares,
    Damage,
    DamagedTakeOver,
    LostTakeOver,
    Wipe,
    LostDisk,
    OldMeta,
    Roll,
}

impl Planner<'_> {
    fn plan_theme(&mut self, theme: Theme) {
        use Trouble::*;
        let (troubles, count): (&[Trouble], u64) = match theme {
            Theme::Calm => (&[SlowWay], 1),
            Theme::Anything => (
                &[
                    Partition,
                    OneWay,
                    SlowWay,
                    BreakLines,
                    BookiePower,
                    BookieCrash,
                    AllBookies,
                    BrokerCrash,
                    FreezeBroker,
                    FreezeBookie,
                    Apart,
                    Alone,
                    MetaAway,
                    MetaMute,
                    Lease,
                    Watches,
                    Clock,
                    DiskError,
                    DiskFull,
                    DiskSlow,
                    Damage,
                    Wipe,
                    LostDisk,
                    OldMeta,
                    Roll,
                ],
                8,
            ),
            Theme::Partitions => (&[Partition, OneWay, SlowWay, BreakLines, Alone], 7),
            Theme::Power => (&[BookiePower, BookiePower, BookieCrash, AllBookies, BrokerCrash], 7),
            Theme::Crashes => (&[BrokerCrash, BrokerCrash, BookieCrash, BreakLines], 6),
            Theme::Zombies => (
                &[
                    FreezeBroker,
                    Apart,
                    Apart,
                    OneWay,
                    Lease,
                    BrokerCrash,
                    AllSlow,
                    AllBookies,
                    SlowTakeOver,
                    Unawares,
                ],
                9,
            ),
            Theme::Metadata => (&[MetaAway, MetaMute, Lease, Watches, BrokerCrash, OldMeta], 7),
            Theme::Disks => (
                &[
                    DiskError,
                    DiskFull,
                    DiskSlow,
                    Damage,
                    BookiePower,
                    Wipe,
                    BrokerCrash,
                    DamagedTakeOver,
                    LostTakeOver,
                ],
                8,
            ),
            Theme::Losses => (
                &[LostDisk, BookieCrash, BookiePower, BrokerCrash, Damage, Roll, OneWay, AllSlow],
                8,
            ),
            Theme::Clocks => (&[Clock, Clock, BrokerCrash, Lease, Roll], 7),
            Theme::Rolling => (&[Roll, Roll, BookieCrash, BreakLines], 5),
        };
        let count = count / 2 + self.dice.below(count) + 1;
        for _ in 0..count {
            let trouble = troubles[self.dice.index(troubles.len())];
            let at = self.dice.within(100_000..self.horizon_us);
            self.add(trouble, at);
        }
    }

    fn any_bookie(&self) -> HostId {
        self.hosts.bookies[self.dice.index(self.hosts.bookies.len())]
    }

    fn any_broker(&self) -> HostId {
        self.hosts.brokers[self.dice.index(self.hosts.brokers.len())]
    }

    fn any_host(&self) -> HostId {
        if self.dice.permille(500) { self.any_bookie() } else { self.any_broker() }
    }

    fn lasting(&self) -> u64 {
        let long = self.dice.permille(300);
        self.dice.within(if long { 2_000_000..7_000_000 } else { 50_000..2_000_000 })
    }

    fn between(&mut self, at: u64, until: u64, begin: Fault, end: Fault) {
        self.plan.push((at, begin));
        self.plan.push((until, end));
    }

    fn block(&mut self, at: u64, until: u64, from: HostId, to: HostId) {
        self.between(at, until, Fault::Block(from, to), Fault::Unblock(from, to));
    }

    fn tear(&self) -> Tear {
        match self.dice.below(5) {
            0 => Tear::Lost,
            1 => Tear::Whole,
            2 => Tear::Prefix(usize::try_from(self.dice.below(40_000)).unwrap_or(0)),
            _ => Tear::Blocks(self.dice.any()),
        }
    }

    /// Adds a trouble: those of ways and of the metadata here.
    fn add(&mut self, trouble: Trouble, at: u64) {
        let until = at + self.lasting();
        let (bookie, broker) = (self.any_bookie(), self.any_broker());
        match trouble {
            Trouble::Partition => {
                let (one, other) = (self.any_host(), self.partner());
                self.block(at, until, one, other);
                self.block(at, until, other, one);
            }
            Trouble::OneWay => {
                let (one, other) = (self.any_host(), self.partner());
                let (from, to) = if self.dice.permille(500) { (one, other) } else { (other, one) };
                self.block(at, until, from, to);
            }
            Trouble::SlowWay => {
                let (from, to) = (self.any_host(), self.partner());
                let slow = self.dice.time(Duration::from_millis(5)..Duration::from_millis(400));
                let end = Fault::Slow(from, to, Duration::ZERO);
                self.between(at, until, Fault::Slow(from, to, slow), end);
            }
            Trouble::BreakLines => {
                for _ in 0..=self.dice.below(6) {
                    let at = at + self.dice.below(1_000_000);
                    self.plan.push((at, Fault::BreakLine(self.dice.any())));
                }
            }
            Trouble::Apart => {
                let meta = self.hosts.meta;
                self.block(at, until, broker, meta);
                self.block(at, until, meta, broker);
            }
            Trouble::Alone => {
                // Too few bookies are reached, for so long that the owner gives its ledgers up.
                let until = at + self.dice.within(2_000_000..5_000_000);
                let near = self.dice.permille(500).then(|| self.any_bookie());
                for host in self.hosts.bookies.clone() {
                    if Some(host) != near {
                        self.block(at, until, broker, host);
                    }
                }
            }
            Trouble::MetaAway => {
                self.between(at, until, Fault::MetaDown(true), Fault::MetaDown(false));
            }
            Trouble::MetaMute => {
                let (host, meta) = (self.any_host(), self.hosts.meta);
                self.block(at, until.min(at + 2_500_000), meta, host);
            }
            Trouble::SlowTakeOver => {
                // Somebody is followed who goes on, while disks take their time.
                let until = at + 5_000_000;
                let meta = self.hosts.meta;
                self.block(at, until, broker, meta);
                self.block(at, until, meta, broker);
                let slow = self.dice.within(50_000..400_000);
                for host in self.hosts.bookies.clone() {
                    let end = Fault::DiskSlow(host, 0);
                    self.between(at + 1_500_000, until, Fault::DiskSlow(host, slow), end);
                }
            }
            Trouble::Unawares => {
                // Somebody is followed who has no reason to doubt yet that it is the owner: some of
                // its clients stay, others go to who follows it.
                let until = at + 1_800_000;
                let meta = self.hosts.meta;
                if self.dice.permille(500) {
                    self.block(at, until, broker, meta);
                }
                self.block(at, until, meta, broker);
                self.plan.push((at + 2_000, Fault::LoseLease(broker)));
                for _ in 0..self.dice.within(3..9) {
                    let at = at + self.dice.within(10_000..1_200_000);
                    self.plan.push((at, Fault::BreakClient(self.dice.any())));
                }
                let slow = self.dice.within(5_000..150_000);
                for host in self.hosts.bookies.clone() {
                    self.between(at, until, Fault::DiskSlow(host, slow), Fault::DiskSlow(host, 0));
                }
            }
            Trouble::Watches => self.plan.push((at, Fault::LoseWatches)),
            other => self.add_host(other, at, until, (bookie, broker)),
        }
    }

    fn add_host(&mut self, trouble: Trouble, at: u64, until: u64, who: (HostId, HostId)) {
        let (bookie, broker) = who;
        match trouble {
            Trouble::BookiePower => {
                let cut = Fault::CutPower { host: bookie, writes: self.dice.within(1..4) };
                self.plan.push((at, cut));
                let crash = Fault::Crash { host: bookie, tear: self.tear(), silently: true };
                self.plan.push((at + self.dice.within(20_000..200_000), crash));
                self.plan.push((until + 200_000, Fault::Start(bookie)));
            }
            Trouble::BookieCrash | Trouble::BrokerCrash => {
                let bookies = matches!(trouble, Trouble::BookieCrash);
                let host = if bookies { bookie } else { broker };
                let silently = self.dice.permille(400);
                self.between(
                    at,
                    until,
                    Fault::Crash { host, tear: Tear::Lost, silently },
                    Fault::Start(host),
                );
            }
            Trouble::AllBookies => {
                for host in self.hosts.bookies.clone() {
                    let tear = self.tear();
                    let at = at + self.dice.below(3_000);
                    let until = at + self.dice.within(50_000..1_500_000);
                    let crash = Fault::Crash { host, tear, silently: false };
                    self.between(at, until, crash, Fault::Start(host));
                }
            }
            Trouble::FreezeBroker => {
                self.between(at, until, Fault::Freeze(broker), Fault::Thaw(broker));
            }
            Trouble::FreezeBookie => {
                self.between(at, until, Fault::Freeze(bookie), Fault::Thaw(bookie));
            }
            Trouble::Lease => {
                let host = self.any_host();
                self.plan.push((at, Fault::LoseLease(host)));
            }
            Trouble::OldMeta => {
                let until = at + self.dice.within(3_500_000..7_000_000);
                let end = Fault::OldMeta(bookie, false);
                self.between(at, until, Fault::OldMeta(bookie, true), end);
            }
            Trouble::Clock => {
                let host = self.any_host();
                let hour = 3_600_000;
                let wrong = i64::try_from(self.dice.below(2 * hour)).unwrap_or(0) - 3_600_000;
                self.plan.push((at, Fault::Clock(host, wrong)));
            }
            Trouble::Roll => {
                let host = self.any_host();
                self.between(
                    at,
                    at + self.dice.within(300_000..2_000_000),
                    Fault::Leave(host),
                    Fault::Start(host),
                );
            }
            other => self.add_disk(other, at, until, who),
        }
    }

    fn add_disk(&mut self, trouble: Trouble, at: u64, until: u64, who: (HostId, HostId)) {
        let (bookie, broker) = who;
        match trouble {
            Trouble::DiskError => {
                let all = [Operation::Write, Operation::Sync, Operation::Read, Operation::Open];
                let operation = all[self.dice.index(all.len())];
                let fails = Fault::DiskFails(bookie, operation, self.dice.below(20));
                self.between(at, until, fails, Fault::DiskMends(bookie));
                // A log that couldn't write is read-only until it is opened again.
                let tear = self.tear();
                let crash = Fault::Crash { host: bookie, tear, silently: false };
                self.between(until, until + 200_000, crash, Fault::Start(bookie));
            }
            Trouble::DiskFull => {
                self.between(
                    at,
                    until,
                    Fault::DiskFull(bookie, true),
                    Fault::DiskFull(bookie, false),
                );
            }
            Trouble::DiskSlow => {
                let slow = self.dice.within(20_000..600_000);
                self.between(at, until, Fault::DiskSlow(bookie, slow), Fault::DiskSlow(bookie, 0));
            }
            Trouble::AllSlow => {
                let slow = self.dice.within(20_000..400_000);
                for host in self.hosts.bookies.clone() {
                    self.between(at, until, Fault::DiskSlow(host, slow), Fault::DiskSlow(host, 0));
                }
            }
            Trouble::DamagedTakeOver => {
                // A bookie was away for some entries; then one of the others loses its own.
                let back = at + self.dice.within(200_000..900_000);
                self.between(
                    at,
                    back,
                    Fault::Crash { host: bookie, tear: Tear::Lost, silently: false },
                    Fault::Start(bookie),
                );
                let at = back + self.dice.below(150_000);
                for _ in 0..self.dice.within(20..120) {
                    self.plan.push((at, Fault::Flip(self.dice.any())));
                }
                let crash = Fault::Crash { host: broker, tear: Tear::Lost, silently: false };
                let again = at + self.dice.within(500_000..3_000_000);
                self.between(at + self.dice.below(30_000), again, crash, Fault::Start(broker));
            }
            Trouble::LostTakeOver => self.add_lost_take_over(at),
            Trouble::LostDisk => {
                self.plan.push((at, Fault::LoseDisk));
                if self.dice.permille(700) {
                    self.plan.push((until + 300_000, Fault::Replace));
                }
            }
            Trouble::Wipe => {
                self.between(at, until + 500_000, Fault::Wipe(bookie), Fault::Unwipe(bookie));
            }
            _ => {
                for _ in 0..=self.dice.below(4) {
                    let at = at + self.dice.below(micros(Duration::from_secs(2)));
                    self.plan.push((at, Fault::Flip(self.dice.any())));
                }
            }
        }
    }

    /// Of the last entries one bookie has nothing, another one loses its own, and the third stands
    /// still: whoever takes over has to wait for it.
    fn add_lost_take_over(&mut self, at: u64) {
        let (spoiled, others) = (self.hosts.bookies[0], &self.hosts.bookies[1..]);
        let behind = self.dice.index(others.len());
        let late = (behind + 1 + self.dice.index(others.len() - 1)) % others.len();
        let (behind, late) = (others[behind], others[late]);
        let cut = at + self.dice.within(300_000..800_000);
        for broker in self.hosts.brokers.clone() {
            self.block(at, cut + 10_000, broker, behind);
            let crash = Fault::Crash { host: broker, tear: Tear::Lost, silently: false };
            let again = cut + self.dice.within(200_000..1_000_000);
            self.between(cut, again, crash, Fault::Start(broker));
        }
        let crash = Fault::Crash { host: spoiled, tear: Tear::Lost, silently: false };
        self.between(cut, cut + 50_000, crash, Fault::Start(spoiled));
        let thaw = cut + self.dice.within(3_000_000..6_000_000);
        self.between(cut, thaw, Fault::Freeze(late), Fault::Thaw(late));
        // While it is down, or when it has read all that and forgotten it.
        let spoil = match thaw % 2 {
            0 => (cut + 1_000, Fault::LoseSegments),
            _ => (cut + 150_000, Fault::SpoilSegments),
        };
        self.plan.push(spoil);
    }

    /// Somebody to be cut off from.
    fn partner(&self) -> HostId {
        match self.dice.below(6) {
            0 => self.hosts.meta,
            1 => self.hosts.clients,
            2 | 3 => self.any_bookie(),
            _ => self.any_broker(),
        }
    }
}
