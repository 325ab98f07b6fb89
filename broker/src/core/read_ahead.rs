//! [`ReadAhead`]: entries that were read for a subscription before it asked for them, and
//! [`AheadList`], which lets go of all of them when somebody has to wait for egress bytes: reading
//! ahead is a luxury.
//!
//! Locks: the list's before an entry's; both are taken last and held for moments.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Weak};

use geminga_proto::id::Position;
use parking_lot::Mutex;

use crate::core::budget::Reclaim;
use crate::core::dispatch::{ReadRequest, ReadyEntry};

/// In order, one after the other.
type Entries = Mutex<VecDeque<ReadyEntry>>;

/// Those whose subscriptions have gone leave the list when it has this many and half are such.
const MIN_PRUNE: usize = 64;

/// All that was read ahead.
#[derive(Default)]
pub struct AheadList {
    inner: Mutex<Listed>,
}

#[derive(Default)]
struct Listed {
    held: Vec<Weak<Entries>>,
    prune_at: usize,
}

impl fmt::Debug for AheadList {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "AheadList({} listed)", self.inner.lock().held.len())
    }
}

impl AheadList {
    /// Room for what one subscription reads ahead.
    #[must_use]
    pub fn add(&self) -> ReadAhead {
        let entries = Arc::<Entries>::default();
        let mut listed = self.inner.lock();
        if listed.held.len() >= listed.prune_at.max(MIN_PRUNE) {
            listed.held.retain(|held| held.strong_count() > 0);
            listed.prune_at = listed.held.len() * 2;
        }
        listed.held.push(Arc::downgrade(&entries));
        ReadAhead { entries, fetching: false, stale: false }
    }
}

impl Reclaim for AheadList {
    /// Lets go of everything: what is asked for is rarely less, and what was read ahead can be read
    /// again.
    fn reclaim(&self, _bytes: u64) {
        let held: Vec<_> = self.inner.lock().held.iter().filter_map(Weak::upgrade).collect();
        for entries in held {
            let gone = std::mem::take(&mut *entries.lock());
            drop(gone);
        }
    }
}

/// Entries that were read before they were asked for.
#[derive(Debug)]
pub struct ReadAhead {
    entries: Arc<Entries>,
    /// True while the next range is being read.
    pub fetching: bool,
    /// Set by housekeeping, cleared by use: what nobody asks for goes.
    pub stale: bool,
}

impl ReadAhead {
    /// What of it is asked for now, if it has that.
    pub fn take(&mut self, first: Position, request: &ReadRequest) -> Option<Vec<ReadyEntry>> {
        let mut entries = self.entries.lock();
        let skip = entries.iter().position(|entry| entry.span.position == first)?;
        // Reading only goes on, so what is before it won't be asked for. What is taken may be, if
        // there is no credit for it.
        entries.drain(..skip);
        self.stale = false;
        let mut bytes = 0_u64;
        let fits = |entry: &&ReadyEntry| {
            let first = bytes == 0;
            bytes = bytes.saturating_add(entry.payload.len() as u64);
            first || bytes <= request.max_bytes
        };
        let wanted = usize::try_from(request.max_entries).unwrap_or(usize::MAX).max(1);
        Some(entries.iter().take(wanted).take_while(fits).cloned().collect())
    }

    /// The last entry of it.
    #[must_use]
    pub fn last(&self) -> Option<Position> {
        self.entries.lock().back().map(|entry| entry.span.position)
    }

    /// Bytes of it that come after `position`.
    #[must_use]
    pub fn bytes_after(&self, position: Position) -> u64 {
        let entries = self.entries.lock();
        let behind = entries.iter().rev().take_while(|entry| entry.span.position > position);
        behind.map(|entry| entry.payload.len() as u64).sum()
    }

    /// Takes more in, behind what it has.
    pub fn extend(&mut self, more: Vec<ReadyEntry>) {
        self.entries.lock().extend(more);
    }
}
