//! [`Copies`]: the manifest's two files, held open, so that a change of it never lacks a file
//! descriptor.

use std::sync::Arc;

use super::FILES;
use crate::device::{Device, DeviceError, DeviceFile};

/// Both files.
#[derive(Debug, Clone)]
pub(crate) struct Copies([Arc<dyn DeviceFile>; 2]);

impl Copies {
    /// Opens both, or makes them. True if one had to be made: its name is durable only with the
    /// directory's next sync.
    pub(crate) fn open(device: &dyn Device) -> Result<(Self, bool), DeviceError> {
        let mut created = false;
        let mut open = |name| match device.open(name) {
            Err(DeviceError::NotFound { .. }) => {
                created = true;
                device.create(name)
            }
            opened => opened,
        };
        let copies = Self([open(FILES[0])?, open(FILES[1])?]);
        Ok((copies, created))
    }

    /// Reserves so many bytes for each.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), DeviceError> {
        for file in &self.0 {
            if file.len()? < bytes {
                file.preallocate(bytes)?;
            }
        }
        Ok(())
    }

    /// Bytes that each is sure to have room for.
    pub(super) fn room(&self) -> Result<u64, DeviceError> {
        Ok(self.0[0].len()?.min(self.0[1].len()?))
    }

    /// Writes one after the other, each durably.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), DeviceError> {
        for file in &self.0 {
            file.write_at(0, bytes)?;
            file.sync()?;
        }
        Ok(())
    }
}
