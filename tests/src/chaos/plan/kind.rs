//! [`Kind`]: what can be done to a cluster, and what of it goes together.

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
    /// SIGKILL to one member of etcd, which is started again.
    EtcdMember,
    /// SIGKILL to all of etcd, which is started again at once.
    EtcdRestart,
    /// All of etcd is away for as long as the fault is held.
    EtcdOutage,
    /// A broker or bookie reaches everybody but etcd, for longer than its lease.
    CutOffFromEtcd,
    /// Nobody reaches a broker or bookie, nor does it reach etcd, for longer than its lease.
    Isolate,
    /// The same in one direction: a broker or bookie hears nothing, or isn't heard.
    OneWay,
    /// Members are parted into two groups; clients reach both.
    Split,
    /// Somebody else's file takes all that is left of a bookie's disk.
    DiskFull,
    /// Writes to a bookie's disk fail, halfway.
    FailingWrite,
    /// Syncs of a bookie's disk fail.
    FailingSync,
    /// Blocks of a bookie's disk can't be read.
    FailingRead,
    /// Bytes of sealed segments change on a bookie's disk.
    Damage,
    /// A bookie's directory is emptied: it is refused under its name, and is a new one later.
    Wipe,
    /// Everything is stopped gracefully and started again, one member after the other.
    RollingRestart,
}

impl Kind {
    /// All there are.
    pub const ALL: [Self; 18] = [
        Self::Kill,
        Self::Freeze,
        Self::FreezePastLease,
        Self::AllBookies,
        Self::EtcdMember,
        Self::EtcdRestart,
        Self::EtcdOutage,
        Self::CutOffFromEtcd,
        Self::Isolate,
        Self::OneWay,
        Self::Split,
        Self::DiskFull,
        Self::FailingWrite,
        Self::FailingSync,
        Self::FailingRead,
        Self::Damage,
        Self::Wipe,
        Self::RollingRestart,
    ];

    /// Those that need bookies of a build for tests.
    pub const OF_FAULTY_DEVICE: [Self; 3] =
        [Self::FailingWrite, Self::FailingSync, Self::FailingRead];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Freeze => "freeze",
            Self::FreezePastLease => "freeze_past_lease",
            Self::AllBookies => "all_bookies",
            Self::EtcdMember => "etcd_member",
            Self::EtcdRestart => "etcd_restart",
            Self::EtcdOutage => "etcd_outage",
            Self::CutOffFromEtcd => "cut_off_from_etcd",
            Self::Isolate => "isolate",
            Self::OneWay => "one_way",
            Self::Split => "split",
            Self::DiskFull => "disk_full",
            Self::FailingWrite => "failing_write",
            Self::FailingSync => "failing_sync",
            Self::FailingRead => "failing_read",
            Self::Damage => "damage",
            Self::Wipe => "wipe",
            Self::RollingRestart => "rolling_restart",
        }
    }

    /// How long its state is held, at least and at most, in milliseconds. Leases last 5 s.
    pub(super) fn hold_ms(self, outage_ms: u64) -> (u64, u64) {
        match self {
            Self::Kill | Self::EtcdMember => (0, 7_000),
            Self::Freeze => (200, 3_000),
            Self::FreezePastLease
            | Self::CutOffFromEtcd
            | Self::Isolate
            | Self::OneWay
            | Self::Split => (7_000, 13_000),
            Self::AllBookies | Self::EtcdRestart => (0, 1_000),
            Self::EtcdOutage => (outage_ms, outage_ms),
            Self::DiskFull | Self::FailingWrite | Self::FailingSync | Self::FailingRead => {
                (3_000, 6_000)
            }
            Self::Damage | Self::Wipe | Self::RollingRestart => (0, 0),
        }
    }

    /// Whether it has a state that is held, during which another fault may come.
    pub(super) fn bears_another(self) -> bool {
        match self {
            Self::Kill
            | Self::Freeze
            | Self::FreezePastLease
            | Self::EtcdMember
            | Self::EtcdOutage
            | Self::CutOffFromEtcd
            | Self::Isolate
            | Self::OneWay
            | Self::Split
            | Self::DiskFull
            | Self::FailingWrite
            | Self::FailingSync
            | Self::FailingRead => true,
            // These are over at once.
            Self::AllBookies | Self::EtcdRestart => false,
            // These begin and end with all copies in place, or go round everybody.
            Self::Damage | Self::Wipe | Self::RollingRestart => false,
        }
    }

    /// Whether it may come while another one is held. It then must not have to be felt first, which
    /// may be impossible, and destroys nothing.
    pub(super) fn may_come_during_another(self) -> bool {
        match self {
            Self::Kill
            | Self::Freeze
            | Self::FreezePastLease
            | Self::AllBookies
            | Self::EtcdMember
            | Self::EtcdRestart
            | Self::CutOffFromEtcd
            | Self::Isolate
            | Self::OneWay
            | Self::Split => true,
            Self::EtcdOutage
            | Self::DiskFull
            | Self::FailingWrite
            | Self::FailingSync
            | Self::FailingRead
            | Self::Damage
            | Self::Wipe
            | Self::RollingRestart => false,
        }
    }

    /// Whether packets are lost.
    #[must_use]
    pub fn is_of_network(self) -> bool {
        matches!(self, Self::CutOffFromEtcd | Self::Isolate | Self::OneWay | Self::Split)
    }

    pub(super) fn is_of_etcd(self) -> bool {
        matches!(self, Self::EtcdMember | Self::EtcdRestart | Self::EtcdOutage)
    }

    /// Whether it ends with a start, which waits until etcd answers.
    pub(super) fn ends_with_a_start(self) -> bool {
        self.is_of_etcd()
            || matches!(
                self,
                Self::Kill | Self::AllBookies | Self::FailingWrite | Self::FailingSync
            )
    }

    /// Whether nobody can start while it is held.
    pub(super) fn forbids_starts(self) -> bool {
        matches!(self, Self::EtcdRestart | Self::EtcdOutage | Self::Split)
    }
}
