//! [`Loss`]: why a segment can't be used at a start, and whether that is for good.

use crate::device::DeviceError;
use crate::log::segment::HeaderError;

/// Why a segment can't be used.
pub(super) enum Loss {
    Lost(String),
    Newer(u16),
    /// It may be whole: the start fails, whatever the settings accept.
    Device(DeviceError),
}

impl Loss {
    pub(super) fn lost(error: &DeviceError) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<HeaderError> for Loss {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::Newer(version) => Self::Newer(version),
            other => Self::Lost(other.to_string()),
        }
    }
}
