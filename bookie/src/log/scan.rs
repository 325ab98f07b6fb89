//! Reads an unsealed segment after a crash: what is whole, where the log ends, what is damaged.
//!
//! A group that isn't whole is the torn end of the log, unless something proves that it had been
//! durable: an intact group header further on in the segment, or the first group of the next
//! segment, which names its predecessor. Then it is damage: whatever records in it can still be
//! recognized are kept (their payloads are checked when they are read), and the segment counts as
//! damaged, so that nothing it may have held answers *no such entry*. Never panics on any bytes.
//!
//! A block that can't be read is damage, and never the end: a group that begins in one or has one
//! may have been durable. In the tail behind the end such a block is of no meaning.

use geminga_proto::id::LedgerId;

use super::codec::{Home, get_u64};
use super::group::{self, GroupHeader, Link, fold_digest};
use super::record::{self, StoredRecord};
use super::segment::DATA_START;
use crate::device::{AlignedBuffer, BLOCK_BYTES, DeviceError, DeviceFile, whole_blocks};

mod window;

use window::Window;

/// What was found in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scan {
    /// End of the last group that counts.
    pub data_end: u64,
    /// The last whole group; the default if there is none.
    pub last: Link,
    pub groups: u64,
    /// Records with their offsets, in log order.
    pub records: Vec<(StoredRecord, u64)>,
    /// Ranges that are damaged.
    pub damaged: Vec<std::ops::Range<u64>>,
    /// From all headers that were read, those of torn groups too: no younger ledger can be in what
    /// is damaged before them.
    pub highest_ledger: LedgerId,
    /// The damage reaches to the end, so that no header tells which ledgers may be in it.
    pub open_ended: bool,
}

/// Reads the segment `home` from `file`. `proof` is its last group as the next segment names it.
/// Behind a bad group an intact one is looked for up to the segment's end: damage may be
/// of any extent, and after a crash there are few such segments.
pub(crate) fn scan(
    file: &dyn DeviceFile,
    home: Home,
    capacity_bytes: u64,
    proof: Option<Link>,
) -> Result<Scan, DeviceError> {
    scan_as::<false>(file, home, capacity_bytes, proof)
}

/// [`scan`]; with `OLD_SEEDS`, which only the simulation plants, also groups of another segment
/// that the file held before, whose order nobody asks about then.
pub(super) fn scan_as<const OLD_SEEDS: bool>(
    file: &dyn DeviceFile,
    home: Home,
    capacity_bytes: u64,
    proof: Option<Link>,
) -> Result<Scan, DeviceError> {
    let end = capacity_bytes.min(file.len()?) / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
    let mut window = Window::new(file, end);
    let proof = proof.filter(|proof| proof.segment == home.segment);
    let mut found = Scan {
        data_end: DATA_START,
        last: Link::default(),
        groups: 0,
        records: Vec::new(),
        damaged: Vec::new(),
        highest_ledger: LedgerId(0),
        open_ended: false,
    };
    loop {
        let offset = found.data_end;
        let own = home_at::<OLD_SEEDS>(&mut window, home, offset)?;
        let header = header_at(&mut window, own, offset)?;
        let highest = header.map_or(LedgerId(0), |header| header.highest_ledger);
        found.highest_ledger = found.highest_ledger.max(highest);
        if let Some(header) = header
            && (OLD_SEEDS || found.last.sequence == 0 || header.link.sequence > found.last.sequence)
            && is_whole(&mut window, own, &header, &mut found.records)?
        {
            // Right behind a whole group must come the one that names it. Only what follows a
            // damaged range names another.
            let skipped = found.damaged.last().is_some_and(|range| range.end == offset);
            if found.groups > 0 && !skipped && header.previous != found.last {
                found.damaged.push(offset..offset);
            }
            found.groups += 1;
            found.last = header.link;
            found.data_end = offset + header.total_bytes();
            continue;
        }
        let proven = proof.is_some_and(|proof| proof.offset >= offset);
        let bytes = header.map_or(BLOCK_BYTES as u64, |header| header.total_bytes());
        let unreadable = window.has_unreadable(offset..offset.saturating_add(bytes).min(end));
        let later = later_group(&mut window, home, offset, end, found.last.sequence)?;
        let damage_end = match (later, proven || unreadable) {
            (Some(later), _) => later,
            (None, true) => end,
            (None, false) => return Ok(found),
        };
        let before = found.records.len();
        salvage(&mut window, home, offset..damage_end, &mut found.records)?;
        found.damaged.push(offset..damage_end);
        found.data_end = match later {
            Some(later) => later,
            // Behind the last group there is nothing to keep but what could be salvaged.
            None => salvaged_end(&found.records[before..], offset),
        };
        if later.is_none() {
            found.open_ended = !proven;
            return Ok(found);
        }
    }
}

/// The group that an unsealed segment's first group follows, if that one is intact.
pub(crate) fn predecessor_of_first(
    file: &dyn DeviceFile,
    home: Home,
) -> Result<Option<Link>, DeviceError> {
    let mut block = AlignedBuffer::new(BLOCK_BYTES);
    file.read_at(DATA_START, block.as_mut_slice())?;
    let header = GroupHeader::decode(block.as_slice(), home, DATA_START);
    Ok(header.map(|header| header.previous))
}

fn salvaged_end(records: &[(StoredRecord, u64)], offset: u64) -> u64 {
    let end = records.last().map_or(offset, |(stored, at)| at + stored.stored_bytes() as u64);
    end.next_multiple_of(BLOCK_BYTES as u64)
}

/// What the checksums of a group at `offset` start from.
fn home_at<const OLD_SEEDS: bool>(
    window: &mut Window<'_>,
    home: Home,
    offset: u64,
) -> Result<Home, DeviceError> {
    if !OLD_SEEDS {
        return Ok(home);
    }
    let block = window.get(offset, BLOCK_BYTES)?;
    let named = block.map(|block| geminga_proto::id::SegmentId(get_u64(block, 16)));
    Ok(Home { segment: named.unwrap_or(home.segment), ..home })
}

/// The header at `offset`, if there is an intact one.
fn header_at(
    window: &mut Window<'_>,
    home: Home,
    offset: u64,
) -> Result<Option<GroupHeader>, DeviceError> {
    let block = window.get(offset, BLOCK_BYTES)?;
    Ok(block.and_then(|block| GroupHeader::decode(block, home, offset)))
}

/// Reads the group of `header` and appends its records, if every byte of it is as written.
fn is_whole(
    window: &mut Window<'_>,
    home: Home,
    header: &GroupHeader,
    records: &mut Vec<(StoredRecord, u64)>,
) -> Result<bool, DeviceError> {
    let offset = header.link.offset;
    let total = usize::try_from(header.total_bytes()).unwrap_or(usize::MAX);
    let Some(bytes) = window.get(offset, total)? else { return Ok(false) };
    let end = group::HEADER_BYTES + header.body_bytes as usize;
    let before = records.len();
    let (mut at, mut digest) = (group::HEADER_BYTES, 0);
    while at < end {
        let Some(stored) = record::decode(&bytes[at..end], home, offset + at as u64) else {
            break;
        };
        let payload_end = at + record::HEADER_BYTES + stored.record.payload_bytes as usize;
        let payload = bytes[..end].get(at + record::HEADER_BYTES..payload_end);
        if !payload.is_some_and(|payload| stored.verifies(payload)) {
            break;
        }
        digest = fold_digest(digest, stored.payload_crc);
        records.push((stored, offset + at as u64));
        at += stored.stored_bytes();
    }
    let count = records.len() - before;
    let whole = at == end && digest == header.digest && count == header.records as usize;
    if !whole {
        records.truncate(before);
    }
    Ok(whole)
}

/// Offset of the first intact header behind `offset` that was written after the group that
/// follows `sequence`: it proves that that one had been durable.
fn later_group(
    window: &mut Window<'_>,
    home: Home,
    offset: u64,
    end: u64,
    sequence: u64,
) -> Result<Option<u64>, DeviceError> {
    let mut at = offset + BLOCK_BYTES as u64;
    while at < end {
        if let Some(header) = header_at(window, home, at)?
            && header.link.sequence > sequence
        {
            return Ok(Some(at));
        }
        at += BLOCK_BYTES as u64;
    }
    Ok(None)
}

/// Recognizes records in a damaged range by their own checksums.
fn salvage(
    window: &mut Window<'_>,
    home: Home,
    range: std::ops::Range<u64>,
    records: &mut Vec<(StoredRecord, u64)>,
) -> Result<(), DeviceError> {
    let mut at = range.start;
    while at + record::HEADER_BYTES as u64 <= range.end {
        let block = at / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let inside = usize::try_from(at - block).unwrap_or(0);
        // A header may reach into the next block.
        let wanted = whole_blocks(inside + record::HEADER_BYTES);
        let Some(bytes) = window.get(block, wanted)? else { return Ok(()) };
        match record::decode(&bytes[inside..], home, at) {
            Some(stored) if at + stored.stored_bytes() as u64 <= range.end => {
                records.push((stored, at));
                at += stored.stored_bytes() as u64;
            }
            _ => at += record::ALIGN_BYTES as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use geminga_proto::id::SegmentId;
    use proptest::prelude::*;

    use super::*;
    use crate::device::Device;
    use crate::device::memory::MemoryDevice;

    const HOME: Home = Home { instance: 42, segment: SegmentId(1) };

    proptest! {
        #[test]
        fn random_segments_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 3 * BLOCK_BYTES..=3 * BLOCK_BYTES),
        ) {
            let device = MemoryDevice::new(1 << 20);
            let file = device.create("a").expect("creates");
            let mut buffer = AlignedBuffer::new(bytes.len());
            buffer.as_mut_slice().copy_from_slice(&bytes);
            file.write_at(0, buffer.as_slice()).expect("writes");
            let found = scan(file.as_ref(), HOME, 1 << 16, None).expect("reads");
            prop_assert_eq!((found.groups, found.data_end), (0, DATA_START));
        }

        #[test]
        fn hostile_groups_under_right_checksums_never_panic(
            groups in proptest::collection::vec(
                (0u64..6, any::<u32>(), any::<u64>(), prop_oneof![0u32..9_000, any::<u32>()]), 1..6
            ),
            filling in any::<u64>(),
        ) {
            let device = MemoryDevice::new(1 << 20);
            let file = device.create("a").expect("creates");
            let mut buffer = AlignedBuffer::new(7 * BLOCK_BYTES);
            let bytes = buffer.as_mut_slice();
            for (at, out) in bytes.chunks_exact_mut(8).enumerate() {
                let filled = filling.rotate_left(u32::try_from(at % 64).expect("small"));
                out.copy_from_slice(&filled.to_le_bytes());
            }
            for (block, records, sequence, body) in groups {
                let offset = (block + 1) * BLOCK_BYTES as u64;
                let at = usize::try_from(offset).expect("small");
                let header = &mut bytes[at..at + group::HEADER_BYTES + record::HEADER_BYTES];
                group::tests::hostile(header, HOME, offset, records, sequence, body);
            }
            file.write_at(0, buffer.as_slice()).expect("writes");
            let found = scan(file.as_ref(), HOME, 1 << 16, None).expect("reads");
            prop_assert!(found.data_end >= DATA_START && found.data_end <= 8 * BLOCK_BYTES as u64);
            for range in found.damaged {
                prop_assert!(range.start <= range.end && range.end <= 7 * BLOCK_BYTES as u64);
            }
        }
    }
}
