//! [`Payloads`]: bytes that don't compress, without making them anew for each message; and the
//! stamp that tells when a message was due.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use geminga_proto::env::Random;

/// Where the payloads' slices of the random bytes begin varies by so much.
const VARIETY_BYTES: usize = 64 * 1024;
/// The run's number and the time since the run's start in nanoseconds.
pub(super) const STAMP_BYTES: usize = 16;

/// So many stamped payloads differ, at least.
const LEAST_LENT: usize = 4;

/// Payloads of one size.
///
/// Stamped ones are written where earlier ones were, once the client has let go of those: what
/// generates the load shouldn't take the memory's bandwidth from what is measured.
#[derive(Debug, Clone)]
pub(super) struct Payloads {
    pool: Bytes,
    size: usize,
    at: usize,
    /// Stamped payloads, the oldest first.
    lent: VecDeque<Bytes>,
}

impl Payloads {
    /// Payloads of `size` random bytes.
    pub fn new(size: usize, random: &dyn Random) -> Self {
        let mut pool = BytesMut::with_capacity(size + VARIETY_BYTES);
        while pool.len() < size + VARIETY_BYTES {
            pool.put_u64(random.next_u64());
        }
        Self { pool: pool.freeze(), size, at: 0, lent: VecDeque::new() }
    }

    /// The next payload; it shares its bytes with others.
    pub fn shared(&mut self) -> Bytes {
        // An odd step visits every place.
        self.at = (self.at + 4_099) % VARIETY_BYTES;
        self.pool.slice(self.at..self.at + self.size)
    }

    /// The next payload, stamped. Its size must have room for the stamp.
    pub fn stamped(&mut self, stamp: Stamp) -> Bytes {
        let mut bytes = self.own();
        let due = u64::try_from(stamp.due.as_nanos()).unwrap_or(u64::MAX);
        if let Some(mut place) = bytes.get_mut(..STAMP_BYTES) {
            place.put_u64(stamp.run);
            place.put_u64(due);
        }
        let bytes = bytes.freeze();
        self.lent.push_back(bytes.clone());
        bytes
    }

    /// A payload that nobody shares.
    fn own(&mut self) -> BytesMut {
        let returned = if self.lent.len() >= LEAST_LENT.max(VARIETY_BYTES / self.size.max(1)) {
            self.lent.pop_front().and_then(|oldest| oldest.try_into_mut().ok())
        } else {
            None
        };
        returned.unwrap_or_else(|| BytesMut::from(&self.shared()[..]))
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

    #[test]
    fn a_stamped_payload_is_written_over_only_when_it_was_given_back() {
        let mut payloads = Payloads::new(VARIETY_BYTES, &SeededRandom::new(1));
        let mut stamp =
            |nanos| payloads.stamped(Stamp { run: 1, due: Duration::from_nanos(nanos) });
        let kept = stamp(0);
        let returned = stamp(1);
        let place = returned.as_ptr();
        drop(returned);
        let rest: Vec<Bytes> = (2..6).map(stamp).collect();
        let due = |payload: &Bytes| Stamp::read(payload).map(|stamp| stamp.due.as_nanos());
        assert_eq!(due(&kept), Some(0));
        assert_eq!(rest.iter().map(due).collect::<Vec<_>>(), [2, 3, 4, 5].map(Some));
        assert_ne!(rest[2].as_ptr(), kept.as_ptr());
        assert_eq!(rest[3].as_ptr(), place, "the second was given back, the first is kept");
    }
}
