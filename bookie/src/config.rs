//! The bookie's settings. Built by the composition root, checked once, never re-read.
//!
//! Owns every limit of the storage node and what follows from them ([`Limits`]). Refuses
//! settings with which the log could not make progress, by name.

use std::time::Duration;

use crate::device::BLOCK_BYTES;

/// Largest segment: offsets in an index are stored in units of 8 bytes in 32 bits.
pub const MAX_SEGMENT_BYTES: u64 = 16 * GIB;
/// The segment size on a disk with room.
const PREFERRED_SEGMENT_BYTES: u64 = 256 * MIB;
/// A limited disk is divided into at least so many segments, so that reclaim has grain.
const MIN_SEGMENTS: u64 = 32;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// Settings of a [`crate::bookie::Bookie`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieConfig {
    /// Size of a full-grown segment file. Unset: 256 MiB, or less if `max_bytes` is small.
    pub segment_bytes: Option<u64>,
    /// Size of the first segment file of a new log; later ones double up to `segment_bytes`, so
    /// that a small installation stays small.
    pub first_segment_bytes: u64,
    /// Most bytes of disk that the log may take. Unset: what the disk has.
    pub max_bytes: Option<u64>,
    /// Bytes of the disk that the log leaves to whatever else is on it, so that filling it up with
    /// messages stops nobody who is needed to free them again.
    pub keep_free_bytes: u64,
    /// Largest entry that is stored.
    pub max_entry_bytes: u32,
    /// A group takes no further record beyond this; one record alone may be larger.
    pub max_group_bytes: u32,
    /// Bytes waiting for the disk above which appends are refused as overloaded.
    pub max_pending_bytes: u64,
    /// Share of the disk that ordinary adds leave to state logs, recoveries and fences, and these
    /// to reclaim: the first mark.
    pub ordinary_reserve_percent: u32,
    /// Share of the disk that belongs to reclaim alone: the second mark.
    pub reclaim_reserve_percent: u32,
    /// Recycled segment files that are kept for re-use; more are removed.
    pub max_spare_segments: u32,
    /// A segment is rewritten when less than this share of its file still counts. Lower: less is
    /// written; higher: less is wasted.
    pub reclaim_live_percent: u32,
    /// Memory in which a rewrite sorts what it has read, in bytes.
    pub reclaim_buffer_bytes: u64,
    /// Most bytes in a second that background work (reclaim, scrub) reads and writes.
    pub background_bytes_per_s: u64,
    /// Every sealed byte that counts is read and verified at least so often.
    pub scrub_interval: Duration,
    /// Bytes of index pages of sealed segments that are cached.
    pub index_cache_bytes: u64,
    /// Bytes of entries that were read from segments that are still written to, and are kept.
    pub read_cache_bytes: u64,
    /// Bytes of entries that are read before those who read a ledger in order ask for them.
    pub read_ahead_bytes: u64,
    /// Segment files that are kept open for reading.
    pub max_open_files: u32,
    /// Most entries that one read answers.
    pub max_read_entries: u32,
    /// Most bytes that one read answers, but always one entry.
    pub max_read_bytes: u64,
    /// Reads that may run at once; more wait.
    pub max_concurrent_reads: u32,
    /// After how long without an append the last group is closed by an empty one.
    pub idle_close: Duration,
    /// How often all ledgers are compared with the metadata.
    pub census_interval: Duration,
    /// From how many ledgers on a census looks at how many vanish at once.
    pub mass_deletion_floor: u32,
    /// Share of the ledgers that may vanish between two looks without a hint; above it, deletion
    /// stops.
    pub mass_deletion_percent: u32,
    /// Start although segments or parts of them are lost; what they may have held answers
    /// *unknown*, and is given up. A ledger whose end may have been there can be recovered only
    /// with another bookie's copy. Otherwise the start is refused and says what is lost.
    pub accept_damage: bool,
    /// Start although the metadata are older than what this bookie has seen, as after a restore
    /// from a backup: ledgers made since are unknown to them and will be deleted. Otherwise the
    /// start is refused.
    pub accept_older_metadata: bool,
    /// What the simulation has planted.
    #[cfg(any(test, feature = "simulation"))]
    pub planted: Option<crate::defect::Defect>,
}

impl Default for BookieConfig {
    fn default() -> Self {
        Self {
            segment_bytes: None,
            first_segment_bytes: 16 * MIB,
            max_bytes: None,
            keep_free_bytes: 0,
            max_entry_bytes: 6 * 1024 * 1024,
            max_group_bytes: 2 * 1024 * 1024,
            max_pending_bytes: 64 * MIB,
            ordinary_reserve_percent: 10,
            reclaim_reserve_percent: 5,
            max_spare_segments: 4,
            reclaim_live_percent: 60,
            reclaim_buffer_bytes: 32 * MIB,
            background_bytes_per_s: 128 * MIB,
            scrub_interval: Duration::from_secs(7 * 24 * 60 * 60),
            index_cache_bytes: 32 * MIB,
            read_cache_bytes: 16 * MIB,
            read_ahead_bytes: 64 * MIB,
            max_open_files: 128,
            max_read_entries: 1_000,
            max_read_bytes: 8 * MIB,
            max_concurrent_reads: 32,
            idle_close: Duration::from_millis(100),
            census_interval: Duration::from_secs(60),
            mass_deletion_floor: 100,
            mass_deletion_percent: 50,
            accept_damage: false,
            accept_older_metadata: false,
            #[cfg(any(test, feature = "simulation"))]
            planted: None,
        }
    }
}

/// Why settings can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A setting must not be 0.
    #[error("{0} must not be 0")]
    Zero(&'static str),
    /// A size must be a multiple of the disk's block.
    #[error("{name} is {value} but must be a multiple of {BLOCK_BYTES}")]
    Unaligned {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: u64,
    },
    /// A setting is below what the others need.
    #[error("{name} is {value} but must be at least {least}: {why}")]
    TooSmall {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: u64,
        /// The lowest value that works.
        least: u64,
        /// Why.
        why: &'static str,
    },
    /// A setting is above what the format or the others allow.
    #[error("{name} is {value} but must be at most {most}: {why}")]
    TooLarge {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: u64,
        /// The highest value that works.
        most: u64,
        /// Why.
        why: &'static str,
    },
}

/// What follows from the settings: the sizes the log works with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size of a full-grown segment file.
    pub segment_bytes: u64,
    /// Size of the first one.
    pub first_segment_bytes: u64,
    /// Smallest file that is worth making: holds the largest entry with its index.
    pub least_segment_bytes: u64,
    /// Most bytes of disk, if limited.
    pub max_bytes: Option<u64>,
    /// What is left to others on the disk.
    pub keep_free_bytes: u64,
    /// Largest entry.
    pub max_entry_bytes: u32,
    /// Largest group, unless one record is larger.
    pub max_group_bytes: u32,
    /// Cap of waiting bytes.
    pub max_pending_bytes: u64,
    /// First mark, percent.
    pub ordinary_reserve_percent: u32,
    /// Second mark, percent.
    pub reclaim_reserve_percent: u32,
    /// Spare files kept.
    pub max_spare_segments: u32,
    /// Live share below which a segment is rewritten, percent.
    pub reclaim_live_percent: u32,
    /// Memory in which a rewrite sorts.
    pub reclaim_buffer_bytes: u64,
    /// How often everything is verified.
    pub scrub_interval: Duration,
    /// What the simulation has planted.
    #[cfg(any(test, feature = "simulation"))]
    pub planted: Option<crate::defect::Defect>,
}

impl Limits {
    /// How much of so many free bytes can become segments: a rest below the least one can't.
    pub(crate) fn usable(&self, bytes: u64) -> u64 {
        let rest = bytes % self.segment_bytes;
        if rest < self.least_segment_bytes { bytes - rest } else { bytes }
    }
}

impl BookieConfig {
    /// Checks every setting and derives the sizes.
    ///
    /// # Errors
    /// The first setting that can't be used.
    pub fn validate(&self) -> Result<Limits, ConfigError> {
        self.refuse_zeros()?;
        let least_segment_bytes = self.least_segment_bytes();
        let segment_bytes = self.segment_bytes.unwrap_or_else(|| {
            let share = self.max_bytes.map_or(PREFERRED_SEGMENT_BYTES, |max| max / MIN_SEGMENTS);
            let share =
                share.clamp(least_segment_bytes, PREFERRED_SEGMENT_BYTES.max(least_segment_bytes));
            share.next_multiple_of(BLOCK_BYTES as u64)
        });
        let first_segment_bytes =
            self.first_segment_bytes.min(segment_bytes).max(least_segment_bytes);
        for (value, name) in
            [(segment_bytes, "segment_bytes"), (first_segment_bytes, "first_segment_bytes")]
        {
            if !value.is_multiple_of(BLOCK_BYTES as u64) {
                return Err(ConfigError::Unaligned { name, value });
            }
        }
        at_least(
            "segment_bytes",
            segment_bytes,
            least_segment_bytes,
            "it must hold max_entry_bytes",
        )?;
        at_most(
            "segment_bytes",
            segment_bytes,
            MAX_SEGMENT_BYTES,
            "offsets are stored in 32 bits",
        )?;
        if let Some(max_bytes) = self.max_bytes {
            let least = segment_bytes.saturating_mul(4);
            at_least("max_bytes", max_bytes, least, "it must hold 4 segments")?;
        }
        self.check_percentages()?;
        Ok(Limits {
            segment_bytes,
            first_segment_bytes,
            least_segment_bytes,
            max_bytes: self.max_bytes,
            keep_free_bytes: self.keep_free_bytes,
            max_entry_bytes: self.max_entry_bytes,
            max_group_bytes: self.max_group_bytes,
            max_pending_bytes: self.max_pending_bytes,
            ordinary_reserve_percent: self.ordinary_reserve_percent,
            reclaim_reserve_percent: self.reclaim_reserve_percent,
            max_spare_segments: self.max_spare_segments,
            reclaim_live_percent: self.reclaim_live_percent,
            reclaim_buffer_bytes: self.reclaim_buffer_bytes,
            scrub_interval: self.scrub_interval,
            #[cfg(any(test, feature = "simulation"))]
            planted: self.planted,
        })
    }

    /// Header, one group with the largest entry, and a footer for a few entries.
    fn least_segment_bytes(&self) -> u64 {
        let group = u64::from(self.max_entry_bytes) + 2 * BLOCK_BYTES as u64;
        (group + 8 * BLOCK_BYTES as u64).next_multiple_of(BLOCK_BYTES as u64)
    }

    fn refuse_zeros(&self) -> Result<(), ConfigError> {
        let zero = Duration::ZERO;
        for (is_zero, name) in [
            (self.first_segment_bytes == 0, "first_segment_bytes"),
            (self.max_entry_bytes == 0, "max_entry_bytes"),
            (self.max_group_bytes == 0, "max_group_bytes"),
            (self.max_pending_bytes == 0, "max_pending_bytes"),
            (self.max_open_files == 0, "max_open_files"),
            (self.reclaim_buffer_bytes == 0, "reclaim_buffer_bytes"),
            (self.background_bytes_per_s == 0, "background_bytes_per_s"),
            (self.max_read_entries == 0, "max_read_entries"),
            (self.max_read_bytes == 0, "max_read_bytes"),
            (self.max_concurrent_reads == 0, "max_concurrent_reads"),
            (self.idle_close == zero, "idle_close"),
            (self.census_interval == zero, "census_interval"),
            (self.scrub_interval == zero, "scrub_interval"),
        ] {
            if is_zero {
                return Err(ConfigError::Zero(name));
            }
        }
        let most = 1 << 30;
        at_most(
            "max_entry_bytes",
            self.max_entry_bytes.into(),
            most,
            "records have 32-bit lengths",
        )?;
        at_most("max_group_bytes", self.max_group_bytes.into(), most, "groups have 32-bit lengths")
    }

    fn check_percentages(&self) -> Result<(), ConfigError> {
        let (first, second) = (self.ordinary_reserve_percent, self.reclaim_reserve_percent);
        let why = "the rest is what ordinary adds can use";
        at_most("ordinary_reserve_percent", first.into(), 90, why)?;
        let why = "reclaim's share is part of what ordinary adds leave";
        at_most("reclaim_reserve_percent", second.into(), first.into(), why)?;
        let why = "a rewrite must free more than it takes";
        at_most("reclaim_live_percent", self.reclaim_live_percent.into(), 90, why)?;
        let why = "it is a percentage";
        at_most("mass_deletion_percent", self.mass_deletion_percent.into(), 100, why)
    }
}

fn at_least(
    name: &'static str,
    value: u64,
    least: u64,
    why: &'static str,
) -> Result<(), ConfigError> {
    if value < least { Err(ConfigError::TooSmall { name, value, least, why }) } else { Ok(()) }
}

fn at_most(
    name: &'static str,
    value: u64,
    most: u64,
    why: &'static str,
) -> Result<(), ConfigError> {
    if value > most { Err(ConfigError::TooLarge { name, value, most, why }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_gets_small_segments_and_a_large_one_does_not_get_larger_ones() {
        let sized = |max_bytes| BookieConfig { max_bytes, ..BookieConfig::default() }.validate();
        let bytes = |max_bytes| sized(max_bytes).expect("valid").segment_bytes;
        assert_eq!(bytes(None), 256 * MIB);
        assert_eq!(bytes(Some(100 * GIB)), 256 * MIB);
        assert_eq!(bytes(Some(GIB)), 32 * MIB);
        assert!(matches!(sized(Some(MIB)), Err(ConfigError::TooSmall { name: "max_bytes", .. })));
    }

    #[test]
    fn a_rest_of_the_disk_that_is_too_small_for_a_segment_is_no_space() {
        let limits = BookieConfig { max_bytes: Some(40 * MIB), ..BookieConfig::default() };
        let limits = limits.validate().expect("valid");
        let (segment, least) = (limits.segment_bytes, limits.least_segment_bytes);
        assert_eq!(limits.usable(least - 1), 0);
        assert_eq!(limits.usable(segment), segment);
        assert_eq!(limits.usable(3 * segment + least - 1), 3 * segment);
        assert_eq!(limits.usable(0), 0);
    }

    #[test]
    fn settings_that_could_not_work_are_refused_by_name() {
        let default = BookieConfig::default;
        let refused = |config: BookieConfig| config.validate().expect_err("refused").to_string();
        let zero = BookieConfig { max_group_bytes: 0, ..default() };
        assert_eq!(refused(zero), "max_group_bytes must not be 0");
        let odd = BookieConfig { segment_bytes: Some(100 * MIB + 1), ..default() };
        assert!(refused(odd).contains("multiple of 4096"));
        let tiny = BookieConfig { segment_bytes: Some(4096), ..default() };
        assert!(refused(tiny).contains("must hold max_entry_bytes"));
        let marks = BookieConfig { reclaim_reserve_percent: 20, ..default() };
        assert!(refused(marks).contains("reclaim_reserve_percent is 20"));
    }
}
