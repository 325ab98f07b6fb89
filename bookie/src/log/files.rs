//! [`Files`]: segment files kept open, at most so many.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::segment;
use crate::device::{Device, DeviceError, DeviceFile};

/// An open file and when it was last used.
type Used = (Arc<dyn DeviceFile>, u64);

/// Open segment files by slot; the one that was used longest ago makes room.
#[derive(Debug)]
pub(crate) struct Files {
    device: Arc<dyn Device>,
    most: usize,
    open: Mutex<(HashMap<u32, Used>, u64)>,
}

impl Files {
    pub(crate) fn new(device: Arc<dyn Device>, most: u32) -> Self {
        Self { device, most: most as usize, open: Mutex::default() }
    }

    /// The file of `slot`.
    pub(crate) fn get(&self, slot: u32) -> Result<Arc<dyn DeviceFile>, DeviceError> {
        let mut guard = self.open.lock();
        let (open, clock) = &mut *guard;
        *clock += 1;
        if let Some((file, used)) = open.get_mut(&slot) {
            *used = *clock;
            return Ok(file.clone());
        }
        let now = *clock;
        drop(guard);
        let file = self.device.open(&segment::file_name(slot))?;
        let (open, _) = &mut *self.open.lock();
        if open.len() >= self.most
            && let Some(oldest) =
                open.iter().min_by_key(|(_, (_, used))| *used).map(|(slot, _)| *slot)
        {
            open.remove(&oldest);
        }
        open.insert(slot, (file.clone(), now));
        Ok(file)
    }

    /// Closes the file of a slot that is removed.
    pub(crate) fn forget(&self, slot: u32) {
        self.open.lock().0.remove(&slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::memory::MemoryDevice;

    #[test]
    fn only_so_many_files_stay_open_and_the_rest_is_opened_again() {
        let device = MemoryDevice::new(1 << 20);
        for slot in 0..5 {
            device.create(&segment::file_name(slot)).expect("creates");
        }
        let files = Files::new(Arc::new(device), 2);
        for slot in [0, 1, 2, 3, 4, 0] {
            files.get(slot).expect("opens");
            assert!(files.open.lock().0.len() <= 2);
        }
        assert!(files.get(9).is_err());
    }
}
