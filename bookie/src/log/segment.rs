//! The block that opens each segment file, and what is where in one.
//!
//! ```text
//! [header block][group][group]…[free, or stale groups of an earlier use][footer of a sealed one]
//! ```

use geminga_proto::id::SegmentId;

use super::codec::{get_u16, get_u32, get_u64, put_u16, put_u32, put_u64};
use crate::device::{AlignedBuffer, BLOCK_BYTES};

/// Where the first group begins.
pub(crate) const DATA_START: u64 = BLOCK_BYTES as u64;

const MAGIC: u32 = 0x4745_5347;
pub(crate) const VERSION: u16 = 1;
const HEADER_BYTES: usize = 40;

/// Name of the file in slot `slot`. Files outlive segments: a recycled file gets a new segment.
pub(crate) fn file_name(slot: u32) -> String {
    format!("segment-{slot:08}.seg")
}

/// What is wrong with a segment's first block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("its header is damaged or belongs to another segment")]
    Damaged,
    #[error("it has format version {0}, newer than this release reads")]
    Newer(u16),
    #[error("it belongs to another log")]
    Foreign,
}

/// The block that opens a segment's file. `instance` is the log's, from its cookie.
pub(crate) fn encode_header(
    segment: SegmentId,
    instance: u64,
    capacity_bytes: u64,
) -> AlignedBuffer {
    let mut block = AlignedBuffer::new(BLOCK_BYTES);
    let out = block.as_mut_slice();
    put_u32(out, 4, MAGIC);
    put_u16(out, 8, VERSION);
    put_u64(out, 16, segment.0);
    put_u64(out, 24, instance);
    put_u64(out, 32, capacity_bytes);
    let crc = crc32c::crc32c(&out[4..HEADER_BYTES]);
    put_u32(out, 0, crc);
    block
}

/// Checks that `bytes` open `segment` of the log `instance`.
pub(crate) fn check_header(
    bytes: &[u8],
    segment: SegmentId,
    instance: u64,
) -> Result<(), HeaderError> {
    let bytes = bytes.get(..HEADER_BYTES).ok_or(HeaderError::Damaged)?;
    let crc = crc32c::crc32c(&bytes[4..HEADER_BYTES]);
    if get_u32(bytes, 4) != MAGIC || crc != get_u32(bytes, 0) || get_u64(bytes, 16) != segment.0 {
        return Err(HeaderError::Damaged);
    }
    let version = get_u16(bytes, 8);
    if version > VERSION {
        return Err(HeaderError::Newer(version));
    }
    if get_u64(bytes, 24) == instance { Ok(()) } else { Err(HeaderError::Foreign) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes() {
        let block = encode_header(SegmentId(7), 0x0a0b, 1 << 20);
        let hex: String =
            block.as_slice()[..HEADER_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("golden/segment.hex").trim());
    }

    #[test]
    fn another_segment_another_log_and_a_newer_version_are_told_apart() {
        let mut block = encode_header(SegmentId(7), 1, 1 << 20);
        assert_eq!(check_header(block.as_slice(), SegmentId(7), 1), Ok(()));
        assert_eq!(check_header(block.as_slice(), SegmentId(7), 2), Err(HeaderError::Foreign));
        assert_eq!(check_header(block.as_slice(), SegmentId(8), 1), Err(HeaderError::Damaged));
        let out = block.as_mut_slice();
        put_u16(out, 8, 2);
        let crc = crc32c::crc32c(&out[4..HEADER_BYTES]);
        put_u32(out, 0, crc);
        assert_eq!(check_header(block.as_slice(), SegmentId(7), 1), Err(HeaderError::Newer(2)));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let checked = check_header(&bytes, SegmentId(7), 1);
            prop_assert_eq!(checked, Err(HeaderError::Damaged));
        }
    }
}
