//! The manifest: which segment is in which file and in what state, durably, in two copies.
//!
//! Both copies are written at each change, one after the other, each synced. So at any moment at
//! least one is whole, and the whole one with the higher sequence is the truth: nothing that
//! depends on a change is done before both copies have it. Decoders never panic; a decoded
//! manifest is validated, as is one before it is written.

use std::collections::BTreeSet;
use std::sync::Arc;

use geminga_proto::id::{LedgerId, SegmentId};

use super::codec::{get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};
use super::deleted::{Deleted, MAX_RANGES};
use super::footer;
use super::group::Link;
use crate::device::{AlignedBuffer, BLOCK_BYTES, Device, DeviceError, whole_blocks};

mod copies;

pub(crate) use copies::Copies;

/// The two copies' names.
pub(crate) const FILES: [&str; 2] = ["manifest-a", "manifest-b"];

const MAGIC: u32 = 0x474d_5347;
pub(crate) const VERSION: u16 = 2;
/// Knew no sorted segments, and not when one was verified.
const FIRST_VERSION: u16 = 1;
const HEADER_BYTES: usize = 96;
const SLOT_BYTES: usize = 64;
const RANGE_BYTES: usize = 16;
/// Files that a log may have: 1 Mi of them are 256 TiB at the usual size.
const MAX_SLOTS: u32 = 1 << 20;
/// Ranges of deleted ledgers that there is always room for.
const LEAST_RANGES: usize = 512;
const FLAG_WRITTEN: u8 = 1;
const FLAG_DAMAGED: u8 = 2;
const FLAG_SORTED: u8 = 4;

/// What a segment file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotState {
    /// Nothing that counts.
    Free,
    /// A segment that takes groups, or took them when the process ended. `lost_up_to`: it could
    /// not be read at a start, and no younger ledger can be in it.
    Unsealed { segment: SegmentId, lost_up_to: Option<LedgerId> },
    /// A segment that is complete, with its index.
    Sealed(Sealed),
}

/// A complete segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub segment: SegmentId,
    /// End of the last group; the footer begins here.
    pub data_end: u64,
    /// Ledgers in the footer's directory.
    pub ledgers: u32,
    /// Entries in the footer's pages.
    pub entries: u32,
    /// No ledger with a higher id had been stored when it was sealed.
    pub highest_ledger: LedgerId,
    /// Part of it was found damaged when it was sealed after a crash, so that its index may lack
    /// entries.
    pub damaged: bool,
    /// Written by reclaim, ledger by ledger: it is no part of the chain of groups.
    pub sorted: bool,
    /// When every byte of it that counts was found intact, or written, last: wall clock.
    pub verified_ms: u64,
}

impl Sealed {
    pub(crate) fn footer_bytes(&self) -> u64 {
        footer::footer_bytes(self.ledgers.into(), self.entries.into())
    }
}

/// One segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Number in the file's name. Never used twice.
    pub number: u32,
    /// All of its blocks have been written once, which makes writing over them fast.
    pub written: bool,
    pub capacity_bytes: u64,
    pub state: SlotState,
}

/// The whole manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Of the log, from its cookie.
    pub instance: u64,
    /// Rises with each change.
    pub sequence: u64,
    /// Ids below have been used.
    pub next_segment: SegmentId,
    pub next_slot: u32,
    /// Highest revision of the metadata store at which ledgers were compared.
    pub metadata_revision: u64,
    /// The last group of the segment that was sealed last.
    pub last_group: Link,
    pub slots: Vec<Slot>,
    /// Ledgers that are gone for good.
    pub deleted: Arc<Deleted>,
}

/// Why there is no usable manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("neither copy is whole")]
    Damaged,
    #[error("the first one was never written completely")]
    Unfinished,
    #[error("it has format version {0}, newer than this release reads")]
    Newer(u16),
    #[error("it belongs to another log")]
    Foreign,
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl Manifest {
    /// The manifest of an empty log.
    pub(crate) fn new(instance: u64) -> Self {
        Self {
            instance,
            sequence: 0,
            next_segment: SegmentId(1),
            next_slot: 1,
            metadata_revision: 0,
            last_group: Link::default(),
            slots: Vec::new(),
            deleted: Arc::default(),
        }
    }

    /// What must always hold.
    fn is_valid(&self) -> bool {
        let mut segments = BTreeSet::new();
        let mut numbers = BTreeSet::new();
        self.slots.len() <= MAX_SLOTS as usize
            && self.deleted.ranges().len() <= MAX_RANGES
            && self.slots.iter().all(|slot| {
                let fresh_number = numbers.insert(slot.number) && slot.number < self.next_slot;
                let fresh_segment = slot
                    .segment()
                    .is_none_or(|segment| segment < self.next_segment && segments.insert(segment));
                fresh_number && fresh_segment && slot.is_valid()
            })
    }

    /// The slot that holds `segment`.
    pub(crate) fn slot_of(&self, segment: SegmentId) -> Option<&Slot> {
        self.slots.iter().find(|slot| slot.segment() == Some(segment))
    }

    /// The slot that holds `segment`, to change.
    pub(crate) fn slot_of_mut(&mut self, segment: SegmentId) -> Option<&mut Slot> {
        self.slots.iter_mut().find(|slot| slot.segment() == Some(segment))
    }

    fn encode(&self) -> AlignedBuffer {
        assert!(self.is_valid(), "a manifest is valid before it is written");
        let ranges_at = HEADER_BYTES + self.slots.len() * SLOT_BYTES;
        let ranges = self.deleted.ranges();
        let len = ranges_at + ranges.len() * RANGE_BYTES;
        let mut buffer = AlignedBuffer::new(len);
        let out = buffer.as_mut_slice();
        put_u32(out, 4, MAGIC);
        put_u16(out, 8, VERSION);
        put_u32(out, 12, u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        put_u64(out, 16, self.instance);
        put_u64(out, 24, self.sequence);
        put_u64(out, 32, self.next_segment.0);
        put_u32(out, 40, self.next_slot);
        put_u32(out, 44, u32::try_from(ranges.len()).unwrap_or(u32::MAX));
        put_u64(out, 48, self.metadata_revision);
        put_u64(out, 56, self.last_group.segment.0);
        put_u64(out, 64, self.last_group.offset);
        put_u64(out, 72, self.last_group.sequence);
        put_u32(out, 80, self.last_group.crc);
        for (slot, out) in self.slots.iter().zip(out[HEADER_BYTES..].chunks_exact_mut(SLOT_BYTES)) {
            slot.encode(out);
        }
        for ((first, last), out) in ranges.zip(out[ranges_at..].chunks_exact_mut(RANGE_BYTES)) {
            put_u64(out, 0, first);
            put_u64(out, 8, last);
        }
        let crc = crc32c::crc32c(&out[4..len]);
        put_u32(out, 0, crc);
        buffer
    }

    fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let header = bytes.get(..HEADER_BYTES).ok_or(ManifestError::Damaged)?;
        if get_u32(header, 4) != MAGIC {
            return Err(ManifestError::Damaged);
        }
        let crc = get_u32(header, 0);
        let version = get_u16(header, 8);
        if version != VERSION && version != FIRST_VERSION {
            // Nobody knows what a newer one's checksum covers. But if the rest is of a known
            // version, then only the field that tells it is damaged.
            let mut known = bytes.to_vec();
            let mut is_whole_as = |version| {
                put_u16(&mut known, 8, version);
                checked(&known).is_some_and(|known| crc32c::crc32c(&known[4..]) == crc)
            };
            let damaged =
                version == 0 || [VERSION, FIRST_VERSION].into_iter().any(&mut is_whole_as);
            let newer = ManifestError::Newer(version);
            return Err(if damaged { ManifestError::Damaged } else { newer });
        }
        let whole = checked(bytes).ok_or(ManifestError::Damaged)?;
        if crc32c::crc32c(&whole[4..]) != crc {
            return Err(ManifestError::Damaged);
        }
        let ranges_at = HEADER_BYTES + get_u32(header, 12) as usize * SLOT_BYTES;
        let slots = whole[HEADER_BYTES..ranges_at].chunks_exact(SLOT_BYTES).map(Slot::decode);
        let ranges = whole[ranges_at..].chunks_exact(RANGE_BYTES);
        let deleted = Deleted::from_ranges(ranges.map(|row| (get_u64(row, 0), get_u64(row, 8))));
        let manifest = Self {
            instance: get_u64(header, 16),
            sequence: get_u64(header, 24),
            next_segment: SegmentId(get_u64(header, 32)),
            next_slot: get_u32(header, 40),
            metadata_revision: get_u64(header, 48),
            last_group: Link {
                segment: SegmentId(get_u64(header, 56)),
                offset: get_u64(header, 64),
                sequence: get_u64(header, 72),
                crc: get_u32(header, 80),
            },
            slots: slots.collect::<Option<_>>().ok_or(ManifestError::Damaged)?,
            deleted: Arc::new(deleted.ok_or(ManifestError::Damaged)?),
        };
        if manifest.is_valid() { Ok(manifest) } else { Err(ManifestError::Damaged) }
    }

    /// Reads the newer whole copy, and makes the other one like it if it isn't. `None` if there
    /// never was a manifest.
    pub(crate) fn load(device: &dyn Device, instance: u64) -> Result<Option<Self>, ManifestError> {
        let copies = FILES.map(|name| read_copy(device, name));
        if copies.iter().all(|copy| matches!(copy, Ok(None))) {
            return Ok(None);
        }
        let mut best: Option<&Self> = None;
        let never_written = copies.iter().any(|copy| matches!(copy, Ok(None)));
        let mut error =
            if never_written { ManifestError::Unfinished } else { ManifestError::Damaged };
        for copy in &copies {
            match copy {
                Ok(Some(copy)) if best.is_none_or(|best| copy.sequence > best.sequence) => {
                    best = Some(copy);
                }
                Ok(_) => {}
                // A newer version anywhere must not be taken for damage and overwritten.
                Err(newer @ ManifestError::Newer(_)) => return Err(newer.clone()),
                Err(ManifestError::Device(failed)) => error = failed.clone().into(),
                Err(_) => {}
            }
        }
        let manifest = best.ok_or(error)?.clone();
        if manifest.instance != instance {
            return Err(ManifestError::Foreign);
        }
        for (name, copy) in FILES.iter().zip(&copies) {
            match copy {
                Ok(Some(copy)) if *copy == manifest => continue,
                // What a kill between the writes of the two leaves.
                Ok(Some(_)) => tracing::info!(name, "this copy of the manifest is an older one"),
                _ => tracing::warn!(name, "this copy of the manifest is missing or damaged"),
            }
            manifest.mend(device, name)?;
        }
        Ok(Some(manifest))
    }

    /// Writes a copy anew: from now on there are two again.
    fn mend(&self, device: &dyn Device, name: &str) -> Result<(), DeviceError> {
        let (copies, created) = Copies::open(device)?;
        self.reserve(&copies, self.slots.len())?;
        if created {
            device.sync_dir()?;
        }
        let file = device.open(name)?;
        file.write_at(0, self.encode().as_slice())?;
        file.sync()
    }

    /// Reserves room for `slots` slots and the ranges of deleted ledgers in both copies, so that a
    /// change never meets a full disk.
    pub(crate) fn reserve(&self, copies: &Copies, slots: usize) -> Result<(), DeviceError> {
        // Doubling keeps the number of times that this has anything to do small.
        let slots = slots.next_power_of_two().max(512);
        let ranges = self.deleted.ranges().len().next_power_of_two().max(LEAST_RANGES);
        let rows = slots * SLOT_BYTES + ranges * RANGE_BYTES;
        copies.reserve(whole_blocks(HEADER_BYTES + rows) as u64)
    }

    /// Notes that ledgers are gone. On a full disk as many as there is room for, the youngest ones.
    pub(crate) fn note_deleted(
        &mut self,
        copies: &Copies,
        ledgers: &[LedgerId],
    ) -> Result<(), DeviceError> {
        let deleted = Arc::make_mut(&mut self.deleted);
        ledgers.iter().for_each(|ledger| deleted.insert(*ledger));
        deleted.keep_highest(MAX_RANGES);
        match self.reserve(copies, self.slots.len()) {
            Err(DeviceError::Full { .. }) => {
                let taken = HEADER_BYTES + self.slots.len() * SLOT_BYTES;
                let ranges = copies.room()?.saturating_sub(taken as u64) / RANGE_BYTES as u64;
                let ranges = usize::try_from(ranges).unwrap_or(MAX_RANGES);
                Arc::make_mut(&mut self.deleted).keep_highest(ranges);
                Ok(())
            }
            reserved => reserved,
        }
    }

    /// Makes this the manifest, durably, under the next sequence.
    pub(crate) fn store(&mut self, copies: &Copies) -> Result<(), DeviceError> {
        self.sequence += 1;
        copies.write(self.encode().as_slice())
    }
}

/// A manifest of this version, from its checksum to its last range; `None` if it can't be one.
fn checked(bytes: &[u8]) -> Option<&[u8]> {
    let header = bytes.get(..HEADER_BYTES)?;
    let (slots, ranges) = (get_u32(header, 12), get_u32(header, 44) as usize);
    if slots > MAX_SLOTS || ranges > MAX_RANGES {
        return None;
    }
    bytes.get(..HEADER_BYTES + slots as usize * SLOT_BYTES + ranges * RANGE_BYTES)
}

/// `Ok(None)`: the copy doesn't exist, or was created and never written.
fn read_copy(device: &dyn Device, name: &str) -> Result<Option<Manifest>, ManifestError> {
    let file = match device.open(name) {
        Err(DeviceError::NotFound { .. }) => return Ok(None),
        opened => opened?,
    };
    let most = HEADER_BYTES + MAX_SLOTS as usize * SLOT_BYTES + MAX_RANGES * RANGE_BYTES;
    let len = file.len()?.min(whole_blocks(most) as u64) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    let mut buffer = AlignedBuffer::new(usize::try_from(len).unwrap_or(0));
    file.read_at(0, buffer.as_mut_slice())?;
    if buffer.as_slice().iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    Manifest::decode(buffer.as_slice()).map(Some)
}

impl Slot {
    /// The segment in it, if any.
    pub(crate) fn segment(&self) -> Option<SegmentId> {
        match self.state {
            SlotState::Free => None,
            SlotState::Unsealed { segment, .. } => Some(segment),
            SlotState::Sealed(sealed) => Some(sealed.segment),
        }
    }

    fn is_valid(&self) -> bool {
        let block = BLOCK_BYTES as u64;
        let fits = match self.state {
            SlotState::Sealed(sealed) => {
                sealed.data_end.is_multiple_of(block)
                    && sealed
                        .data_end
                        .checked_add(sealed.footer_bytes())
                        .is_some_and(|end| end <= self.capacity_bytes)
            }
            SlotState::Free | SlotState::Unsealed { .. } => true,
        };
        fits && self.capacity_bytes.is_multiple_of(block)
            && self.capacity_bytes <= crate::config::MAX_SEGMENT_BYTES
    }

    fn encode(&self, out: &mut [u8]) {
        put_u32(out, 0, self.number);
        let mut flags = if self.written { FLAG_WRITTEN } else { 0 };
        put_u64(out, 8, self.capacity_bytes);
        out[4] = match self.state {
            SlotState::Free => 1,
            SlotState::Unsealed { segment, lost_up_to } => {
                put_u64(out, 16, segment.0);
                put_u64(out, 40, lost_up_to.map_or(0, |highest| highest.0));
                flags |= if lost_up_to.is_some() { FLAG_DAMAGED } else { 0 };
                2
            }
            SlotState::Sealed(sealed) => {
                put_u64(out, 16, sealed.segment.0);
                put_u64(out, 24, sealed.data_end);
                put_u32(out, 32, sealed.ledgers);
                put_u32(out, 36, sealed.entries);
                put_u64(out, 40, sealed.highest_ledger.0);
                put_u64(out, 48, sealed.verified_ms);
                flags |= if sealed.damaged { FLAG_DAMAGED } else { 0 };
                flags |= if sealed.sorted { FLAG_SORTED } else { 0 };
                3
            }
        };
        out[5] = flags;
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let segment = SegmentId(get_u64(bytes, 16));
        let highest_ledger = LedgerId(get_u64(bytes, 40));
        let damaged = bytes[5] & FLAG_DAMAGED != 0;
        let state = match bytes[4] {
            1 => SlotState::Free,
            2 => SlotState::Unsealed { segment, lost_up_to: damaged.then_some(highest_ledger) },
            3 => SlotState::Sealed(Sealed {
                segment,
                data_end: get_u64(bytes, 24),
                ledgers: get_u32(bytes, 32),
                entries: get_u32(bytes, 36),
                highest_ledger,
                damaged,
                sorted: bytes[5] & FLAG_SORTED != 0,
                verified_ms: get_u64(bytes, 48),
            }),
            _ => return None,
        };
        Some(Self {
            number: get_u32(bytes, 0),
            written: bytes[5] & FLAG_WRITTEN != 0,
            capacity_bytes: get_u64(bytes, 8),
            state,
        })
    }
}

#[cfg(test)]
mod tests;
