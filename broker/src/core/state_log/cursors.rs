//! [`Cursors`]: every cursor of a bundle as the log's entries make it, whether they are read back
//! or have just been built. One and the same `apply` serves both, so what a replay gives is what
//! the writer had.

use std::collections::BTreeMap;
use std::sync::Arc;

use geminga_proto::id::TopicIncarnation;

use super::CursorId;
use super::record::{Record, SnapshotCursor};
use crate::core::ack_set::PieceKey;
use crate::core::cursor::CursorState;

/// One cursor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StoredCursor {
    pub topic: TopicIncarnation,
    pub name: Arc<str>,
    pub state: CursorState,
}

/// How far a snapshot round has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SnapshotAt {
    /// The cursor whose pieces are being written, or the last one written.
    cursor: Option<CursorId>,
    /// The last piece of it, while there may be more.
    piece: Option<PieceKey>,
    in_pieces: bool,
}

/// All cursors of a bundle.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Cursors {
    cursors: BTreeMap<CursorId, StoredCursor>,
}

impl Cursors {
    pub fn len(&self) -> usize {
        self.cursors.len()
    }

    pub fn get(&self, id: CursorId) -> Option<&StoredCursor> {
        self.cursors.get(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (CursorId, &StoredCursor)> {
        self.cursors.iter().map(|(id, cursor)| (*id, cursor))
    }

    /// Applies a record that is no part of a snapshot. False if it is about a cursor that isn't
    /// there, or creates one that is: then nothing has changed.
    pub fn apply(&mut self, record: &Record) -> bool {
        match record {
            Record::Create { id, topic, name, at } => {
                let state = CursorState::new(*at);
                let cursor = StoredCursor { topic: *topic, name: Arc::clone(name), state };
                if self.cursors.contains_key(id) {
                    return false;
                }
                self.cursors.insert(*id, cursor).is_none()
            }
            Record::Delete { id } => self.cursors.remove(id).is_some(),
            Record::DeleteTopic { topic } => {
                self.cursors.retain(|_, cursor| cursor.topic != *topic);
                true
            }
            Record::Change { id, change } => match self.cursors.get_mut(id) {
                Some(cursor) => {
                    cursor.state.apply(change);
                    true
                }
                None => false,
            },
            Record::SnapshotBegin { .. }
            | Record::SnapshotCursor(_)
            | Record::SnapshotPiece { .. }
            | Record::SnapshotEnd { .. } => true,
        }
    }

    /// Applies a record of the snapshot from which a replay started.
    pub fn apply_snapshot(&mut self, record: Record) {
        match record {
            Record::SnapshotCursor(cursor) => {
                let SnapshotCursor { id, topic, name, frontier, next_unacked } = cursor;
                let state = CursorState { frontier, next_unacked, ..CursorState::default() };
                self.cursors.insert(id, StoredCursor { topic, name, state });
            }
            Record::SnapshotPiece { id, piece } => {
                // A cursor that was deleted in the middle of the round has gone already.
                if let Some(cursor) = self.cursors.get_mut(&id) {
                    cursor.state.merge(piece);
                }
            }
            _ => {}
        }
    }

    /// The next record of a snapshot round; `None`: the round is complete. Between two calls the
    /// cursors may change: those changes are in the log between the two records.
    pub fn snapshot_next(&self, at: &mut SnapshotAt) -> Option<Record> {
        if let Some(id) = at.cursor.filter(|_| at.in_pieces)
            && let Some(cursor) = self.cursors.get(&id)
            && let Some((key, piece)) = cursor.state.acked.next_piece(at.piece)
        {
            at.piece = Some(key);
            return Some(Record::SnapshotPiece { id, piece });
        }
        let after = at.cursor.map_or(0, |id| id.0 + 1);
        let (id, cursor) = self.cursors.range(CursorId(after)..).next()?;
        let in_pieces = !cursor.state.acked.is_empty();
        *at = SnapshotAt { cursor: Some(*id), piece: None, in_pieces };
        Some(Record::SnapshotCursor(SnapshotCursor {
            id: *id,
            topic: cursor.topic,
            name: Arc::clone(&cursor.name),
            frontier: cursor.state.frontier,
            next_unacked: cursor.state.next_unacked,
        }))
    }
}

/// Rebuilds cursors from entries.
#[derive(Debug, Default)]
pub(super) struct Replay {
    pub cursors: Cursors,
    pub next_id: u64,
    /// The round from which the replay starts, until its end is met.
    round: Option<u64>,
    started: bool,
    from_snapshot: bool,
}

impl Replay {
    /// A replay from the start of the chain, or from the entry where a snapshot round begins.
    pub fn new(from_snapshot: bool) -> Self {
        Self { from_snapshot, next_id: 1, ..Self::default() }
    }

    /// Applies one entry's records.
    ///
    /// # Errors
    /// What doesn't fit; the log is damaged then.
    pub fn entry(&mut self, records: Vec<Record>) -> Result<(), &'static str> {
        for record in records {
            self.record(record)?;
        }
        Ok(())
    }

    fn record(&mut self, record: Record) -> Result<(), &'static str> {
        match record {
            Record::SnapshotBegin { round, next_id } => {
                self.next_id = self.next_id.max(next_id.0);
                if self.from_snapshot && !self.started {
                    self.started = true;
                    self.round = Some(round);
                } else if self.round.is_some() {
                    return Err("a snapshot that is recorded as complete isn't");
                }
            }
            // The entry where a round begins holds changes from before it in front.
            _ if self.from_snapshot && !self.started => {}
            Record::SnapshotEnd { round } if self.round == Some(round) => self.round = None,
            Record::SnapshotCursor(_) | Record::SnapshotPiece { .. } if self.round.is_some() => {
                self.cursors.apply_snapshot(record);
            }
            record => {
                if let Record::Create { id, .. } = &record {
                    self.next_id = self.next_id.max(id.0 + 1);
                }
                // In the round, a cursor whose snapshot is still to come isn't known yet.
                if !self.cursors.apply(&record) && self.round.is_none() {
                    return Err("a change of a subscription that isn't there");
                }
            }
        }
        Ok(())
    }

    /// All entries were applied.
    ///
    /// # Errors
    /// That the snapshot isn't complete.
    pub fn finish(self) -> Result<(Cursors, CursorId), &'static str> {
        if self.round.is_some() || self.from_snapshot && !self.started {
            return Err("a snapshot that is recorded as complete isn't");
        }
        Ok((self.cursors, CursorId(self.next_id)))
    }
}
