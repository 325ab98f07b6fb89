//! [`Payloads`]: bytes that don't compress, without making them anew for each message; and the
//! stamp that tells when a message was due.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use geminga_proto::env::Random;

/// Where the slices of unstamped payloads begin varies by so much.
const VARIETY_BYTES: usize = 64 * 1024;
/// The run's number and the time since the run's start in nanoseconds.
pub(super) const STAMP_BYTES: usize = 16;

/// Payloads of one size.
#[derive(Debug, Clone)]
pub(super) struct Payloads {
    pool: Bytes,
    size: usize,
    at: usize,
}

impl Payloads {
    /// Payloads of `size` random bytes.
    pub fn new(size: usize, random: &dyn Random) -> Self {
        let mut pool = BytesMut::with_capacity(size + VARIETY_BYTES);
        while pool.len() < size + VARIETY_BYTES {
            pool.put_u64(random.next_u64());
        }
        Self { pool: pool.freeze(), size, at: 0 }
    }

    /// The next payload; it shares its bytes with others.
    pub fn shared(&mut self) -> Bytes {
        // An odd step visits every place.
        self.at = (self.at + 4_099) % VARIETY_BYTES;
        self.pool.slice(self.at..self.at + self.size)
    }

    /// The next payload, stamped.
    pub fn stamped(&mut self, stamp: Stamp) -> Bytes {
        let shared = self.shared();
        let mut bytes = BytesMut::with_capacity(self.size);
        bytes.put_u64(stamp.run);
        bytes.put_u64(u64::try_from(stamp.due.as_nanos()).unwrap_or(u64::MAX));
        bytes.extend_from_slice(shared.get(STAMP_BYTES..).unwrap_or_default());
        bytes.freeze()
    }
}

/// When a message was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    /// The run's random number: messages of other runs don't count.
    pub run: u64,
    /// Since the run's start.
    pub due: Duration,
}

impl Stamp {
    /// Reads a payload's stamp.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (run, rest) = payload.split_first_chunk::<8>()?;
        let (due, _) = rest.split_first_chunk::<8>()?;
        let due = Duration::from_nanos(u64::from_be_bytes(*due));
        Some(Self { run: u64::from_be_bytes(*run), due })
    }

    /// The moment, for a run that began at `start`.
    pub fn instant(&self, start: Instant) -> Option<Instant> {
        start.checked_add(self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_proto::env::SeededRandom;

    #[test]
    fn payloads_have_their_size_and_keep_their_stamp() {
        let mut payloads = Payloads::new(100, &SeededRandom::new(1));
        let (one, other) = (payloads.shared(), payloads.shared());
        assert_eq!((one.len(), other.len()), (100, 100));
        assert_ne!(one, other);
        let stamp = Stamp { run: 7, due: Duration::from_nanos(123_456_789) };
        let stamped = payloads.stamped(stamp);
        assert_eq!((stamped.len(), Stamp::read(&stamped)), (100, Some(stamp)));
        assert_eq!(Stamp::read(b"too short"), None);
    }
}
