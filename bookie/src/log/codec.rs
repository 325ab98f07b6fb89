//! Little-endian fields of the on-disk formats, and the seeds of their checksums.
//!
//! Every checksum is a crc32c that starts from a seed naming what is being checked: the log, the
//! segment and the place in it. So a block that belongs to another segment, or that was written to
//! the wrong place, can't pass; and as the log's instance is random and told to no producer, nor
//! can a payload that was made to look like a group or a record.

use geminga_proto::id::SegmentId;

/// A segment of one log: what the checksums of all that is in it start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Home {
    /// Random, from the log's cookie.
    pub instance: u64,
    pub segment: SegmentId,
}

impl Home {
    /// Start value for checksums of what lies at `offset`.
    pub(crate) fn seed(self, offset: u64) -> u32 {
        let mut place = [0; 24];
        place[..8].copy_from_slice(&self.segment.0.to_le_bytes());
        place[8..16].copy_from_slice(&offset.to_le_bytes());
        place[16..].copy_from_slice(&self.instance.to_le_bytes());
        crc32c::crc32c(&place)
    }
}

pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}

pub(crate) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

/// A last-add-confirmed in its stored form, -1 for none.
pub(crate) fn put_lac(bytes: &mut [u8], at: usize, lac: geminga_proto::id::Lac) {
    bytes[at..at + 8].copy_from_slice(&lac.to_wire().to_le_bytes());
}

pub(crate) fn get_lac(bytes: &[u8], at: usize) -> geminga_proto::id::Lac {
    geminga_proto::id::Lac::from_wire(get_u64(bytes, at).cast_signed())
}
