//! What happens to the bookies' disks.
//!
//! Invariant: of what was durable, only the first bookie's disk ever loses anything.

use std::sync::atomic::Ordering;

use geminga_bookie::device::memory::{MemoryDevice, Tear};
use geminga_bookie::device::{BLOCK_BYTES, Device};

use super::{DISK_BYTES, DISK_US, World};
use crate::bookie_host;
use crate::faults::Fault;
use crate::network::HostId;

/// The byte of a block that is spoilt: behind the header of a group, within its first records.
const SPOILT_AT: usize = 200;

impl World {
    /// A disk gets worse, or well again.
    pub(super) fn disk_fault(&mut self, fault: Fault) {
        if let Fault::DiskFails(host, ..) = fault {
            let mut slots = self.bookies.iter_mut();
            slots.find(|slot| slot.host == host).into_iter().for_each(|slot| slot.failed = true);
        }
        if matches!(fault, Fault::Flip(_) | Fault::LoseSegments | Fault::SpoilSegments) {
            self.bookies[0].spoilt = true;
        }
        let slot = |host: HostId| self.bookies.iter().find(|slot| slot.host == host);
        let device = |host: HostId| slot(host).map(|slot| &slot.device);
        match fault {
            Fault::DiskFails(host, operation, after) => {
                slot(host).inspect(|slot| slot.troubled.store(true, Ordering::Relaxed));
                device(host).inspect(|device| device.fail(operation, after));
            }
            Fault::DiskMends(host) => {
                slot(host).inspect(|slot| slot.troubled.store(false, Ordering::Relaxed));
                device(host).inspect(|device| device.mend());
            }
            Fault::DiskFull(host, full) => {
                let capacity = |device: &&MemoryDevice| match (full, device.space()) {
                    (true, Ok(space)) => space.total_bytes - space.available_bytes,
                    _ => DISK_BYTES,
                };
                device(host).inspect(|device| device.set_capacity(capacity(device)));
            }
            Fault::DiskSlow(host, most) => {
                let most = if most == 0 { DISK_US } else { most };
                slot(host).inspect(|slot| slot.disk_us.store(most, Ordering::Relaxed));
            }
            Fault::Flip(which) => self.flip(which),
            Fault::LoseSegments => self.lose_segments(),
            Fault::SpoilSegments => self.spoil_segments(),
            _ => {}
        }
    }

    /// Damages the one disk that may be damaged.
    fn flip(&self, which: u64) {
        let device = &self.bookies[0].device;
        let names = device.list().unwrap_or_default();
        let segments: Vec<&String> =
            names.iter().filter(|name| name.starts_with("segment")).collect();
        if segments.is_empty() {
            return;
        }
        let name = segments[usize::try_from(which % segments.len() as u64).unwrap_or(0)];
        let len = device.contents(name).map_or(0, |bytes| bytes.len() as u64);
        if len > 0 {
            let at = usize::try_from((which >> 8) % len.min(16 << 10)).unwrap_or(0);
            device.flip(name, at, 1 << (which % 8));
        }
    }

    /// Damages a byte of every block of the one disk that may be damaged, but for the first.
    fn spoil_segments(&self) {
        let device = &self.bookies[0].device;
        let names = device.list().unwrap_or_default();
        for name in names.iter().filter(|name| name.starts_with("segment")) {
            let len = device.contents(name).map_or(0, |bytes| bytes.len());
            for block in (BLOCK_BYTES..len).step_by(BLOCK_BYTES) {
                device.flip(name, block + SPOILT_AT, 1);
            }
        }
    }

    /// Takes the segments from the one disk that may be damaged, if nobody uses it.
    fn lose_segments(&self) {
        let slot = &self.bookies[0];
        if slot.running.is_some() {
            return;
        }
        let names = slot.device.list().unwrap_or_default();
        for name in names.iter().filter(|name| name.starts_with("segment")) {
            slot.device.remove(name).expect("a disk that is well");
        }
        slot.device.sync_dir().expect("a disk that is well");
    }

    /// The one disk that may be damaged is gone for good, and so is the bookie of that name. That
    /// happens once in a run.
    pub(super) fn lose_disk(&mut self) {
        let host = self.hosts.bookies[0];
        if self.bookies[0].id != bookie_host::name(host) {
            return;
        }
        self.crash(host, Tear::Lost, false);
        let slot = &mut self.bookies[0];
        slot.device = MemoryDevice::new(DISK_BYTES);
        slot.aside = None;
        slot.id = bookie_host::second_name(host);
        slot.gone = true;
        slot.spoilt = false;
    }

    /// A new bookie takes the place of the one whose disk was lost.
    pub(super) fn replace(&mut self) {
        self.bookies[0].gone = false;
        self.start(self.hosts.bookies[0]);
    }

    /// A bookie comes back with an empty disk.
    pub(super) fn wipe(&mut self, host: HostId) {
        if self.bookies.iter().any(|slot| slot.host == host && slot.gone) {
            return;
        }
        self.crash(host, Tear::Lost, false);
        if let Some(slot) = self.bookies.iter_mut().find(|slot| slot.host == host)
            && slot.aside.is_none()
        {
            let empty = MemoryDevice::new(DISK_BYTES);
            slot.aside = Some(std::mem::replace(&mut slot.device, empty));
        }
        self.start(host);
    }

    /// The right disk is put back, unless the bookie is happy with the other one.
    pub(super) fn unwipe(&mut self, host: HostId) {
        let serves = self.shared.doors.lock().contains_key(&host);
        let Some(slot) = self.bookies.iter_mut().find(|slot| slot.host == host) else { return };
        let Some(right) = slot.aside.take() else { return };
        if serves {
            return;
        }
        self.crash(host, Tear::Lost, false);
        if let Some(slot) = self.bookies.iter_mut().find(|slot| slot.host == host) {
            slot.device = right;
        }
        self.start(host);
    }
}
