//! Compression of an entry's payload, in the forms that Pulsar's clients read: LZ4 as one raw
//! block, zstd as one frame. A decompressor never allocates beyond the limit it is given,
//! whatever the entry states.

use std::str::FromStr;

use bytes::Bytes;
use geminga_proto::pulsar::proto::{CompressionType, MessageMetadata};

use crate::error::{DecodeError, SendError};

/// zstd's own default: the knee of its speed and ratio.
const ZSTD_LEVEL: i32 = 3;

/// How a producer compresses its entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// LZ4: fast.
    Lz4,
    /// zstd: small.
    Zstd,
}

impl Compression {
    /// The name used in settings.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    pub(crate) const fn to_wire(self) -> Option<CompressionType> {
        match self {
            Self::None => None,
            Self::Lz4 => Some(CompressionType::Lz4),
            Self::Zstd => Some(CompressionType::Zstd),
        }
    }

    /// Compresses; `None` if there is nothing to do.
    pub(crate) fn compress(self, payload: &[u8]) -> Result<Option<Vec<u8>>, SendError> {
        match self {
            Self::None => Ok(None),
            Self::Lz4 => Ok(Some(lz4_flex::block::compress(payload))),
            Self::Zstd => zstd::bulk::compress(payload, ZSTD_LEVEL)
                .map(Some)
                .map_err(|error| SendError::Encoding(format!("zstd: {error}"))),
        }
    }
}

/// Why a text names no compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a compression; use none, lz4 or zstd")]
pub struct UnknownCompression(String);

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(text: &str) -> Result<Self, UnknownCompression> {
        match text.to_ascii_lowercase().as_str() {
            "none" => Ok(Self::None),
            "lz4" => Ok(Self::Lz4),
            "zstd" => Ok(Self::Zstd),
            _ => Err(UnknownCompression(text.chars().take(40).collect())),
        }
    }
}

/// The payload as it was before compression; shares its bytes if there was none.
pub(crate) fn decompress(
    metadata: &MessageMetadata,
    payload: Bytes,
    limit: u64,
) -> Result<Bytes, DecodeError> {
    // The getter reads a number that it doesn't know as the default, which here would hand out
    // compressed bytes as if they were the message.
    let stated = metadata.compression.unwrap_or_default();
    let codec = match CompressionType::try_from(stated) {
        Ok(CompressionType::None) => return Ok(payload),
        Ok(CompressionType::Lz4) => "lz4",
        Ok(CompressionType::Zstd) => "zstd",
        Ok(CompressionType::Zlib) => return Err(DecodeError::Unsupported("zlib compression")),
        Ok(CompressionType::Snappy) => return Err(DecodeError::Unsupported("snappy compression")),
        Err(_) => return Err(DecodeError::Unsupported("an unknown compression")),
    };
    let bytes = u64::from(metadata.uncompressed_size());
    if bytes > limit {
        return Err(DecodeError::TooLarge { bytes, limit });
    }
    let size = usize::try_from(bytes).map_err(|_| DecodeError::TooLarge { bytes, limit })?;
    let result = if codec == "lz4" {
        lz4_flex::block::decompress(&payload, size).map_err(|error| error.to_string())
    } else {
        zstd::bulk::decompress(&payload, size).map_err(|error| error.to_string())
    };
    let plain = result.map_err(|why| DecodeError::Decompress { codec, why })?;
    if plain.len() != size {
        let why = format!("it states {size} bytes and holds {}", plain.len());
        return Err(DecodeError::Decompress { codec, why });
    }
    Ok(plain.into())
}
