//! The files of a bookie as `docs/FORMATS.md` describes them, for scenarios that change bytes and
//! keep the checksums right, or look for the place to damage. The product's own code is not used:
//! what is documented is what is tested.

use std::path::{Path, PathBuf};

/// The unit of everything in these files.
pub const BLOCK_BYTES: usize = 4096;
const GROUP_HEADER_BYTES: usize = 88;
const RECORD_HEADER_BYTES: usize = 48;

/// Segment files below a data directory, in the order of their names.
///
/// # Panics
/// When the directory can't be listed.
#[must_use]
pub fn segments(data: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(data.join("bookie")).expect("the bookie has a directory");
    let mut found: Vec<PathBuf> = listed
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    found.sort();
    found
}

/// The segment files below a data directory that are sealed, as the manifest of a bookie says that
/// has ended: what others hold is of no meaning.
///
/// # Panics
/// When there is no manifest.
#[must_use]
pub fn sealed_segments(data: &Path) -> Vec<PathBuf> {
    let manifest = std::fs::read(data.join("bookie/manifest-a")).expect("it has a manifest");
    let slots = manifest[96..].chunks_exact(64).take(u32_at(&manifest, 12) as usize);
    let sealed = slots.filter(|slot| slot[4] == 3).map(|slot| u32_at(slot, 0));
    sealed.map(|number| data.join(format!("bookie/segment-{number:08}.seg"))).collect()
}

/// Reads a file, changes it, and writes it back.
///
/// # Panics
/// When the file can't be read or written.
pub fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("the file is there");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("it can be written");
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn set_version(bytes: &mut [u8], version: u16) {
    bytes[8..10].copy_from_slice(&version.to_le_bytes());
}

fn set_crc(bytes: &mut [u8], crc: u32) {
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
}

/// The checksum that seeded ones start from.
fn seed(segment: u64, offset: u64, instance: u64) -> u32 {
    crc32c::crc32c(&[segment.to_le_bytes(), offset.to_le_bytes(), instance.to_le_bytes()].concat())
}

/// Gives a cookie another version, with its checksum.
///
/// # Panics
/// When these aren't a cookie's bytes.
pub fn set_cookie_version(bytes: &mut [u8], version: u16) {
    assert_eq!((&bytes[4..8], u32_at(bytes, 0)), (&b"GMCK"[..], crc32c::crc32c(&bytes[4..154])));
    set_version(bytes, version);
    let crc = crc32c::crc32c(&bytes[4..154]);
    set_crc(bytes, crc);
}

/// Gives a manifest another version, with its checksum.
///
/// # Panics
/// When these aren't a manifest's bytes.
pub fn set_manifest_version(bytes: &mut [u8], version: u16) {
    let end = 96 + 64 * u32_at(bytes, 12) as usize + 16 * u32_at(bytes, 44) as usize;
    assert_eq!((&bytes[4..8], u32_at(bytes, 0)), (&b"GSMG"[..], crc32c::crc32c(&bytes[4..end])));
    set_version(bytes, version);
    let crc = crc32c::crc32c(&bytes[4..end]);
    set_crc(bytes, crc);
}

/// Gives a segment another version, with its checksum.
///
/// # Panics
/// When these aren't a segment's bytes.
pub fn set_segment_version(bytes: &mut [u8], version: u16) {
    let crc = |bytes: &[u8]| crc32c::crc32c(&bytes[4..40]);
    assert_eq!((&bytes[4..8], u32_at(bytes, 0)), (&b"GSEG"[..], crc(bytes)));
    set_version(bytes, version);
    set_crc(bytes, crc(bytes));
}

/// A group of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// Where it begins.
    pub offset: usize,
    /// Bytes with padding.
    pub bytes: usize,
    /// Its number in the log.
    pub sequence: u64,
    /// Records in it.
    pub records: u32,
    /// Place and size of the payload of its first record.
    pub first_payload: (usize, usize),
}

/// The groups of a segment, by their headers. What is behind the last one is not looked at. A file
/// that is being prepared for a segment has none.
#[must_use]
pub fn groups(bytes: &[u8]) -> Vec<Group> {
    if bytes.get(4..8) != Some(b"GSEG") {
        return Vec::new();
    }
    let (segment, instance) = (u64_at(bytes, 16), u64_at(bytes, 24));
    let (mut found, mut offset) = (Vec::new(), BLOCK_BYTES);
    while let Some(header) = bytes.get(offset..offset + GROUP_HEADER_BYTES) {
        let crc = crc32c::crc32c_append(seed(segment, offset as u64, instance), &header[4..]);
        if &header[4..8] != b"GMRG" || crc != u32_at(header, 0) {
            break;
        }
        let body = u32_at(header, 68) as usize;
        let size = (GROUP_HEADER_BYTES + body).next_multiple_of(BLOCK_BYTES);
        let record = offset + GROUP_HEADER_BYTES;
        let payload_bytes =
            bytes.get(record + 40..record + 44).map_or(0, |field| u32_at(field, 0) as usize);
        found.push(Group {
            offset,
            bytes: size,
            sequence: u64_at(header, 32),
            records: u32_at(header, 12),
            first_payload: (record + RECORD_HEADER_BYTES, payload_bytes),
        });
        offset += size;
    }
    found
}
