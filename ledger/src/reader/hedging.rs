//! [`Hedging`]: whether a read that waits may be asked of another bookie, too.
//!
//! A bookie that hangs must hold no reader up, but slow disks must not get every read twice or
//! three times, which would make them slower still. So a read is hedged freely only against a
//! bookie that is suspect or has answered nobody for a while; else only one read in
//! [`READS_PER_HEDGE`] is.

use std::collections::HashMap;
use std::time::Duration;

use geminga_proto::id::BookieId;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Of so many reads one may be hedged against a bookie that answers others.
const READS_PER_HEDGE: u32 = 20;
/// Hedges that may be saved up.
const MAX_SAVED: u32 = 5 * READS_PER_HEDGE;
/// A bookie that has answered no read for so many times the patience is as good as hung.
const SILENT_TURNS: u32 = 4;

/// What a bookie owes.
#[derive(Debug, Default)]
struct Owing {
    reads: u32,
    /// Since when it has owed something and answered nothing. Stays when reads are given up, until
    /// an answer.
    since: Option<Instant>,
}

#[derive(Debug)]
struct State {
    /// Goes up by one with each read, and down by [`READS_PER_HEDGE`] with each hedge.
    saved: u32,
    /// One for each bookie that was ever read from: bounded by the cluster's size.
    bookies: HashMap<BookieId, Owing>,
}

/// See the module. Shared by all reads of a process.
#[derive(Debug)]
pub(crate) struct Hedging {
    /// How long a read waits for a bookie before another one is considered.
    patience: Duration,
    state: Mutex<State>,
}

impl Hedging {
    pub(crate) fn new(patience: Duration) -> Self {
        let state = State { saved: MAX_SAVED, bookies: HashMap::new() };
        Self { patience, state: Mutex::new(state) }
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// A read begins.
    pub(super) fn begin(&self) {
        let mut state = self.state.lock();
        state.saved = (state.saved + 1).min(MAX_SAVED);
    }

    /// A bookie is asked.
    pub(super) fn ask<'a>(&'a self, bookie: &'a BookieId, now: Instant) -> Asked<'a> {
        let mut state = self.state.lock();
        let owing = state.bookies.entry(bookie.clone()).or_default();
        owing.reads += 1;
        owing.since.get_or_insert(now);
        Asked { hedging: self, bookie }
    }

    /// Whether a read that has waited for this bookie may be asked of the next one.
    pub(super) fn may(&self, bookie: &BookieId, suspect: bool, now: Instant) -> bool {
        let mut state = self.state.lock();
        let silence = self.patience.saturating_mul(SILENT_TURNS);
        let since = state.bookies.get(bookie).and_then(|owing| owing.since);
        if suspect || since.is_some_and(|since| now.duration_since(since) >= silence) {
            return true;
        }
        match state.saved.checked_sub(READS_PER_HEDGE) {
            Some(left) => {
                state.saved = left;
                true
            }
            None => false,
        }
    }
}

/// A read that a bookie owes an answer to, until it is dropped.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    hedging: &'a Hedging,
    bookie: &'a BookieId,
}

impl Asked<'_> {
    /// The bookie has answered, however.
    pub(super) fn answered(self, now: Instant) {
        if let Some(owing) = self.hedging.state.lock().bookies.get_mut(self.bookie) {
            // This one counts until it is dropped.
            owing.since = (owing.reads > 1).then_some(now);
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(owing) = self.hedging.state.lock().bookies.get_mut(self.bookie) {
            owing.reads = owing.reads.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(100);

    fn bookie() -> BookieId {
        BookieId::new("b").expect("valid")
    }

    #[test]
    fn one_read_in_twenty_is_hedged_against_a_bookie_that_answers_others() {
        let (hedging, bookie) = (Hedging::new(PATIENCE), bookie());
        let start = Instant::now();
        let mut hedged = 0;
        for turn in 0..1_000 {
            let now = start + PATIENCE * turn;
            let _waits = hedging.ask(&bookie, now);
            hedging.begin();
            hedging.ask(&bookie, now).answered(now);
            hedged += u32::from(hedging.may(&bookie, false, now + PATIENCE));
        }
        assert_eq!(hedged, 1_000 / READS_PER_HEDGE + MAX_SAVED / READS_PER_HEDGE - 1);
    }

    #[test]
    fn every_read_is_hedged_against_a_bookie_that_is_suspect_or_silent() {
        let (hedging, bookie) = (Hedging::new(PATIENCE), bookie());
        let start = Instant::now();
        while hedging.may(&bookie, false, start) {}
        assert!(hedging.may(&bookie, true, start));
        let first = hedging.ask(&bookie, start);
        let silent = start + PATIENCE * SILENT_TURNS;
        assert!(!hedging.may(&bookie, false, silent.checked_sub(PATIENCE).expect("later")));
        for turn in 0..100 {
            assert!(hedging.may(&bookie, false, silent + PATIENCE * turn));
        }
        drop(first);
        let second = hedging.ask(&bookie, silent);
        assert!(hedging.may(&bookie, false, silent), "giving up is no answer");
        second.answered(silent);
        assert!(!hedging.may(&bookie, false, silent + PATIENCE * 100), "it owes nothing");
    }
}
