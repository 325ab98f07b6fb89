//! [`ChangeLog`]: the most recent changes of a store, and the watches that read them.
//!
//! There is one bounded list for all watches, and a watch is a place in it. So a slow watcher
//! costs nothing: when the list's oldest changes are dropped before it has seen them, its watch
//! ends with [`WatchError::Lost`], and never skips.
//!
//! Invariants: revisions in the list rise; every change after `compacted` is in it; a watch that
//! has ended gives the same error for ever.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Revision, Watch, WatchError, WatchEvent};

/// Most events that one [`Watch::next`] answers, unless a single revision has more.
const MAX_EVENTS_PER_ANSWER: usize = 1_000;

/// What an event takes in memory beside the bytes of its key and value.
const EVENT_OVERHEAD_BYTES: usize = 128;

/// How much history is kept for watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Revisions.
    pub revisions: usize,
    /// Bytes in memory: keys, values, and some for each event.
    pub bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { revisions: 8_192, bytes: 1 << 20 }
    }
}

#[derive(Debug)]
struct Change {
    revision: Revision,
    events: Vec<WatchEvent>,
    bytes: usize,
}

#[derive(Debug)]
struct State {
    changes: VecDeque<Change>,
    bytes: usize,
    /// Changes up to this revision may be gone.
    compacted: Revision,
    /// Watches of an earlier generation are lost.
    generation: u64,
    /// Set once the store is closed.
    closed: Option<String>,
}

#[derive(Debug)]
struct Shared {
    limits: HistoryLimits,
    state: Mutex<State>,
    /// Counts whatever a waiting watch has to look at.
    wake: watch::Sender<u64>,
}

/// The changes of one store. Clones are the same log.
#[derive(Debug, Clone)]
pub(super) struct ChangeLog {
    shared: Arc<Shared>,
}

impl ChangeLog {
    /// An empty log of a store that is at `revision`.
    pub(super) fn new(revision: Revision, limits: HistoryLimits) -> Self {
        let state = State {
            changes: VecDeque::new(),
            bytes: 0,
            compacted: revision,
            generation: 0,
            closed: None,
        };
        let wake = watch::Sender::new(0);
        Self { shared: Arc::new(Shared { limits, state: Mutex::new(state), wake }) }
    }

    /// Adds the changes of one revision. They must be readable already, so that a watcher never
    /// hears of a change which a read doesn't see.
    pub(super) fn append(&self, revision: Revision, events: Vec<WatchEvent>) {
        let size = |event: &WatchEvent| {
            let value_bytes = event.value.as_ref().map_or(0, bytes::Bytes::len);
            EVENT_OVERHEAD_BYTES + event.key.len() + value_bytes
        };
        let bytes = events.iter().map(size).sum();
        {
            let mut state = self.shared.state.lock();
            debug_assert!(state.changes.back().is_none_or(|last| last.revision < revision));
            state.changes.push_back(Change { revision, events, bytes });
            state.bytes += bytes;
            let limits = self.shared.limits;
            while state.changes.len() > limits.revisions || state.bytes > limits.bytes {
                let Some(oldest) = state.changes.pop_front() else { break };
                state.bytes -= oldest.bytes;
                state.compacted = oldest.revision;
            }
        }
        self.wake_watches();
    }

    /// Forgets all changes: watches that have not seen them end.
    pub(super) fn compact(&self) {
        {
            let mut state = self.shared.state.lock();
            if let Some(last) = state.changes.back().map(|change| change.revision) {
                state.compacted = last;
            }
            state.changes.clear();
            state.bytes = 0;
        }
        self.wake_watches();
    }

    /// Ends every watch there is.
    pub(super) fn lose_watches(&self) {
        self.shared.state.lock().generation += 1;
        self.wake_watches();
    }

    /// Ends every watch, and those to come.
    pub(super) fn close(&self, why: &str) {
        self.shared.state.lock().closed.get_or_insert_with(|| why.to_owned());
        self.wake_watches();
    }

    /// Starts a watch of the changes after `after`.
    pub(super) fn watch(&self, prefix: &str, after: Revision) -> Box<dyn Watch> {
        let wake = self.shared.wake.subscribe();
        Box::new(LogWatch {
            generation: self.shared.state.lock().generation,
            shared: Arc::clone(&self.shared),
            wake,
            prefix: prefix.to_owned(),
            seen: after,
            started: false,
            ended: None,
        })
    }

    fn wake_watches(&self) {
        self.shared.wake.send_modify(|count| *count = count.wrapping_add(1));
    }
}

#[derive(Debug)]
struct LogWatch {
    shared: Arc<Shared>,
    wake: watch::Receiver<u64>,
    prefix: String,
    generation: u64,
    /// Every change up to here was looked at.
    seen: Revision,
    /// Whether it was ever at a place that is in the log.
    started: bool,
    ended: Option<WatchError>,
}

impl LogWatch {
    /// The next matching changes, if there are any yet.
    fn poll(&mut self) -> Result<Vec<WatchEvent>, WatchError> {
        let state = self.shared.state.lock();
        if let Some(why) = &state.closed {
            return Err(WatchError::Lost(why.clone()));
        }
        if state.generation != self.generation {
            return Err(WatchError::Lost("the connection of the watch was lost".to_owned()));
        }
        if self.seen < state.compacted {
            let behind = "the watcher fell too far behind".to_owned();
            return Err(if self.started {
                WatchError::Lost(behind)
            } else {
                WatchError::Compacted
            });
        }
        self.started = true;
        let first = state.changes.partition_point(|change| change.revision <= self.seen);
        let mut events = Vec::new();
        for change in state.changes.range(first..) {
            let matching = |event: &&WatchEvent| event.key.starts_with(&self.prefix);
            events.extend(change.events.iter().filter(matching).cloned());
            self.seen = change.revision;
            if events.len() >= MAX_EVENTS_PER_ANSWER {
                break;
            }
        }
        Ok(events)
    }
}

#[async_trait]
impl Watch for LogWatch {
    async fn next(&mut self) -> Result<Vec<WatchEvent>, WatchError> {
        loop {
            if let Some(error) = &self.ended {
                return Err(error.clone());
            }
            // Marked before the log is looked at, so that a change in between wakes again.
            self.wake.mark_unchanged();
            match self.poll() {
                Ok(events) if events.is_empty() => {}
                Ok(events) => return Ok(events),
                Err(error) => {
                    self.ended = Some(error);
                    continue;
                }
            }
            if self.wake.changed().await.is_err() {
                self.ended = Some(WatchError::Lost("the store was closed".to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn put(revision: u64, key: &str) -> Vec<WatchEvent> {
        let revision = Revision(revision);
        vec![WatchEvent { revision, key: key.to_owned(), value: Some(Bytes::from_static(b"v")) }]
    }

    fn log(revisions: usize) -> ChangeLog {
        ChangeLog::new(Revision(0), HistoryLimits { revisions, bytes: 1 << 20 })
    }

    #[tokio::test]
    async fn a_watcher_that_falls_behind_is_told_and_never_skips() {
        let log = log(2);
        let mut watch = log.watch("k", Revision(0));
        log.append(Revision(1), put(1, "k"));
        assert_eq!(watch.next().await, Ok(put(1, "k")));
        for revision in 2..=4 {
            log.append(Revision(revision), put(revision, "k"));
        }
        assert!(matches!(watch.next().await, Err(WatchError::Lost(_))));
        assert!(matches!(watch.next().await, Err(WatchError::Lost(_))), "it stays ended");
    }

    #[tokio::test]
    async fn a_start_before_the_kept_history_is_compacted_and_the_edge_is_not() {
        let log = log(2);
        for revision in 1..=4 {
            log.append(Revision(revision), put(revision, "k"));
        }
        assert_eq!(log.watch("k", Revision(1)).next().await, Err(WatchError::Compacted));
        let edge = log.watch("k", Revision(2)).next().await.expect("kept");
        assert_eq!(edge, [put(3, "k"), put(4, "k")].concat());
    }

    #[tokio::test]
    async fn the_bytes_of_the_history_are_bounded_too() {
        let log = ChangeLog::new(
            Revision(0),
            HistoryLimits { revisions: 100, bytes: 2 * EVENT_OVERHEAD_BYTES + 5 },
        );
        for revision in 1..=3 {
            log.append(Revision(revision), put(revision, "k"));
        }
        assert_eq!(log.watch("k", Revision(0)).next().await, Err(WatchError::Compacted));
        assert_eq!(log.watch("k", Revision(1)).next().await.map(|events| events.len()), Ok(2));
    }

    #[tokio::test]
    async fn changes_of_other_prefixes_do_not_wear_a_watch_out_while_it_waits() {
        let log = log(2);
        let mut watch = log.watch("k", Revision(0));
        let waiting = tokio::spawn(async move { watch.next().await });
        for revision in 1..=50 {
            log.append(Revision(revision), put(revision, "other"));
            // Lets the waiting watch look at the log.
            tokio::task::yield_now().await;
        }
        log.append(Revision(51), put(51, "k"));
        assert_eq!(waiting.await.expect("no panic"), Ok(put(51, "k")));
    }

    #[tokio::test]
    async fn closing_the_store_ends_waiting_watches() {
        let log = log(2);
        let mut watch = log.watch("", Revision(0));
        let waiting = tokio::spawn(async move { watch.next().await });
        tokio::task::yield_now().await;
        log.close("closed");
        assert_eq!(waiting.await.expect("no panic"), Err(WatchError::Lost("closed".to_owned())));
    }
}
