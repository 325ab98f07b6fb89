//! What a run is mostly about, so that what is rare by itself happens often enough together.

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Theme {
    /// Nothing goes wrong but that things take their time.
    Calm,
    /// Everything alike.
    Anything,
    /// Hosts can't hear each other, also one way only; lines break.
    Partitions,
    /// Bookies lose their power, also in the middle of a write.
    Power,
    /// Brokers crash, and come back or don't.
    Crashes,
    /// Owners stand still, or can't reach the metadata, while others take over.
    Zombies,
    /// The metadata store is away, loses answers, watches and leases.
    Metadata,
    /// Disks fail, fill up, get slow, and one of them is damaged.
    Disks,
    /// A disk is lost, and its copies are made anew while hosts crash.
    Losses,
    /// Wall clocks jump.
    Clocks,
    /// One host after the other leaves and comes back.
    Rolling,
}

impl Theme {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Calm,
        Self::Anything,
        Self::Partitions,
        Self::Power,
        Self::Crashes,
        Self::Zombies,
        Self::Metadata,
        Self::Disks,
        Self::Losses,
        Self::Clocks,
        Self::Rolling,
    ];

    /// The theme of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let count = Self::ALL.len() as u64;
        Self::ALL[usize::try_from(seed % count).unwrap_or(0)]
    }
}
