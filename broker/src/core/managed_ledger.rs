//! [`ManagedLedger`]: the ordered list of ledgers behind a topic, as this owner believes the
//! metadata to hold it.
//!
//! A change is made on a clone: plan it there, commit the clone's transaction, and put the clone
//! in the old one's place once it was applied. Each transaction compares the head record's
//! revision, so an owner that was replaced can change nothing. If it conflicts, the topic is given
//! up and loaded again.
//!
//! It opens, closes and reads no ledger; that is the topic's work (`topic::maintenance`).
//!
//! Invariants: at most two ledgers are not closed, and they are the newest; a ledger without
//! entries leaves the list when it is closed.

pub mod list;
pub mod queue;

use geminga_meta::keys;
use geminga_meta::record::{
    LedgerLink, ManagedLedgerChunk, ManagedLedgerRecord, Nonce, Record, RecordError, Stored,
};
use geminga_meta::store::{Compare, KeyValue, Revision, Txn};
use geminga_proto::env::Env;
use geminga_proto::id::{Epoch, LedgerId, ManagedLedgerId, MessageIndex};
use geminga_proto::topic_name::TopicName;

use crate::core::managed_ledger::list::{Chunk, ClosedLedger, LedgerList, ListError};

/// Why stored records are not a managed ledger.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A record can't be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The list is inconsistent.
    #[error(transparent)]
    List(#[from] ListError),
    /// A chunk that the head names is missing.
    #[error("chunk {0:x} of the managed ledger is missing")]
    MissingChunk(u64),
    /// An open ledger stands before a closed one.
    #[error("ledger {0} is closed but an older one is not")]
    OpenBeforeClosed(LedgerId),
}

/// A change of a chunk record, to go with the head's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChunkChange {
    /// Write the chunk at this place of the list.
    Put(usize, u64),
    /// Delete it.
    Delete(u64),
}

/// The managed ledger.
#[derive(Debug, Clone)]
pub struct ManagedLedger {
    /// Its id.
    pub id: ManagedLedgerId,
    /// The closed ledgers.
    pub list: LedgerList,
    /// Ledgers that are not closed, oldest first.
    pub open: Vec<LedgerId>,
    /// Rises with each load.
    pub epoch: Epoch,
    /// Index after the last closed ledger.
    pub next_index: MessageIndex,
    /// Of the last message in a closed ledger.
    pub last_timestamp_ms: u64,
    /// Whether there ever was a subscription.
    pub had_subscription: bool,
    terminated: bool,
    /// Of the head record as this owner last wrote or read it; `None`: to be read, since the
    /// transaction that wrote it didn't tell.
    revision: Option<Revision>,
    /// Of the head record as this owner last wrote or read it.
    nonce: Nonce,
    changes: Vec<ChunkChange>,
}

impl ManagedLedger {
    /// The managed ledger of a topic that is being created. [`Self::commit`] writes it.
    #[must_use]
    pub fn create(id: ManagedLedgerId, env: &Env) -> Self {
        Self {
            id,
            list: LedgerList::default(),
            open: Vec::new(),
            epoch: Epoch(1),
            next_index: MessageIndex(0),
            last_timestamp_ms: 0,
            had_subscription: false,
            terminated: false,
            revision: None,
            nonce: Nonce::new(&*env.random),
            changes: Vec::new(),
        }
    }

    /// Reads the head and its chunks, which are in the head's order.
    ///
    /// # Errors
    /// [`LoadError`] if they contradict each other.
    pub fn load(
        id: ManagedLedgerId,
        head: &Stored<ManagedLedgerRecord>,
        chunks: &[(u64, ManagedLedgerChunk)],
    ) -> Result<Self, LoadError> {
        let mut list = LedgerList::default();
        for link in &head.record.chunks {
            let found = chunks.iter().find(|(number, _)| *number == link.number);
            let (number, chunk) = found.ok_or(LoadError::MissingChunk(link.number))?;
            for link in &chunk.ledgers {
                if let Some(closed) = &link.closed {
                    list.push(ClosedLedger::from_record(link.ledger, closed))?;
                }
            }
            list.add_chunk(Chunk { number: *number, ledgers: chunk.ledgers.len() });
        }
        let mut open = Vec::new();
        for link in &head.record.ledgers {
            match &link.closed {
                None => open.push(link.ledger),
                Some(_) if !open.is_empty() => {
                    return Err(LoadError::OpenBeforeClosed(link.ledger));
                }
                Some(closed) => list.push(ClosedLedger::from_record(link.ledger, closed))?,
            }
        }
        Ok(Self {
            id,
            list,
            open,
            epoch: head.record.epoch,
            next_index: head.record.next_index,
            last_timestamp_ms: head.record.last_timestamp_ms,
            had_subscription: head.record.had_subscription,
            terminated: head.record.terminated,
            revision: Some(head.revision),
            nonce: head.nonce,
            changes: Vec::new(),
        })
    }

    /// Key of the head record.
    #[must_use]
    pub fn key(&self) -> String {
        keys::managed_ledger(self.id)
    }

    /// True if the head's revision has to be read (and given to [`Self::seen`]) before a change
    /// can be committed.
    #[must_use]
    pub fn needs_revision(&self) -> bool {
        self.revision.is_none()
    }

    /// Takes the head's revision from a pair that was read. Answers false if somebody else has
    /// written it: this owner is one no more.
    ///
    /// # Errors
    /// [`RecordError`] if the record can't be read.
    pub fn seen(&mut self, pair: Option<KeyValue>) -> Result<bool, RecordError> {
        let Some(pair) = pair else { return Ok(false) };
        let revision = pair.modified;
        let (_, nonce) = ManagedLedgerRecord::decode(&pair.value)?;
        if nonce != self.nonce || self.revision.is_some_and(|known| known != revision) {
            return Ok(false);
        }
        self.revision = Some(revision);
        Ok(true)
    }

    /// A closed ledger takes its place in the list; an empty one only leaves the open ones, and
    /// is to be deleted.
    ///
    /// # Errors
    /// [`ListError`] if it doesn't follow the list.
    pub fn close(&mut self, closed: ClosedLedger, last_timestamp_ms: u64) -> Result<(), ListError> {
        self.open.retain(|open| *open != closed.ledger);
        if closed.entries > 0 {
            self.list.push(closed)?;
            self.next_index = MessageIndex(closed.first_index + closed.messages);
            self.last_timestamp_ms = self.last_timestamp_ms.max(last_timestamp_ms);
        }
        Ok(())
    }

    /// Takes the oldest `count` ledgers out; answers which.
    pub fn trim(&mut self, count: usize) -> Vec<LedgerId> {
        let gone = self.list.iter().take(count).map(|ledger| ledger.ledger).collect();
        let trimmed = self.list.pop_front(count);
        self.changes.extend(trimmed.gone.into_iter().map(ChunkChange::Delete));
        if let Some(chunk) = trimmed.shrunk {
            self.changes.push(ChunkChange::Put(0, chunk.number));
        }
        gone
    }

    /// Moves older ledgers to a chunk if the head lists more than twice `per_chunk`.
    pub fn chunk(&mut self, per_chunk: usize) {
        if self.list.inline().len() > 2 * per_chunk
            && let Some(chunk) = self.list.chunk_oldest(per_chunk)
        {
            let index = self.list.chunks().count() - 1;
            self.changes.push(ChunkChange::Put(index, chunk.number));
        }
    }

    /// The transaction that writes this state in place of the one last written or read. After it
    /// was applied, [`Self::applied`] follows.
    ///
    /// # Errors
    /// [`RecordError`] if the state contradicts itself.
    pub fn commit(&mut self, topic: &TopicName, env: &Env) -> Result<Txn, RecordError> {
        let key = self.key();
        let guard = match self.revision {
            Some(revision) => Compare::Unchanged(key.clone(), revision),
            None => Compare::Absent(key.clone()),
        };
        let nonce = Nonce::new(&*env.random);
        let mut txn = Txn::default().when(guard).put(key, self.record(topic).encode(nonce)?);
        for change in &self.changes {
            txn = match *change {
                ChunkChange::Delete(number) => {
                    txn.delete(keys::managed_ledger_chunk(self.id, number))
                }
                ChunkChange::Put(index, number) => {
                    let ledgers = self.list.in_chunk(index).map(|ledger| ledger.to_link());
                    let chunk = ManagedLedgerChunk { ledgers: ledgers.collect() };
                    let key = keys::managed_ledger_chunk(self.id, number);
                    txn.put(key, chunk.encode(nonce)?)
                }
            };
        }
        self.nonce = nonce;
        Ok(txn)
    }

    /// Of the head record that [`Self::commit`] last encoded.
    #[must_use]
    pub fn nonce(&self) -> Nonce {
        self.nonce
    }

    /// The transaction of [`Self::commit`] was applied, at this revision if it is known.
    pub fn applied(&mut self, revision: Option<Revision>) {
        self.revision = revision;
        self.changes.clear();
    }

    /// The transaction that deletes the managed ledger's records; its ledgers go with it.
    #[must_use]
    pub fn delete(&self) -> Txn {
        let key = self.key();
        let guard = match self.revision {
            Some(revision) => Compare::Unchanged(key.clone(), revision),
            None => Compare::Present(key.clone()),
        };
        let mut txn = Txn::default().when(guard).delete(key);
        for chunk in self.list.chunks() {
            txn = txn.delete(keys::managed_ledger_chunk(self.id, chunk.number));
        }
        txn
    }

    fn record(&self, topic: &TopicName) -> ManagedLedgerRecord {
        let closed = self.list.inline().map(|ledger| ledger.to_link());
        let open = self.open.iter().map(|ledger| LedgerLink { ledger: *ledger, closed: None });
        ManagedLedgerRecord {
            topic: topic.clone(),
            epoch: self.epoch,
            chunks: self.list.chunk_links(),
            ledgers: closed.chain(open).collect(),
            next_index: self.next_index,
            last_timestamp_ms: self.last_timestamp_ms,
            terminated: self.terminated,
            had_subscription: self.had_subscription,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_meta::store::Op;
    use geminga_proto::env::Env;

    fn topic() -> TopicName {
        "orders".parse().expect("valid")
    }

    fn env() -> Env {
        Env::system()
    }

    /// Applies a transaction to nothing: what it puts, as pairs at `revision`.
    fn pairs(txn: &Txn, revision: u64) -> Vec<KeyValue> {
        let pair = |op: &Op| match op {
            Op::Put { key, value, .. } => Some(KeyValue {
                key: key.clone(),
                value: value.clone(),
                modified: Revision(revision),
                lease: None,
            }),
            Op::Delete(_) => None,
        };
        txn.ops.iter().filter_map(pair).collect()
    }

    fn closed(ledger: u64, first_index: u64) -> ClosedLedger {
        let ledger = LedgerId(ledger);
        ClosedLedger { ledger, entries: 2, bytes: 20, first_index, messages: 5, closed_ms: 9 }
    }

    #[test]
    fn a_committed_list_with_chunks_is_loaded_as_it_was() {
        let mut ledger = ManagedLedger::create(ManagedLedgerId(7), &env());
        let mut stored: std::collections::BTreeMap<String, KeyValue> = Default::default();
        for number in 0..9 {
            ledger.open.push(LedgerId(number));
            ledger.close(closed(number, number * 5), 100 + number).expect("in order");
            ledger.chunk(2);
            let txn = ledger.commit(&topic(), &env()).expect("valid");
            for pair in pairs(&txn, number) {
                stored.insert(pair.key.clone(), pair);
            }
            ledger.applied(Some(Revision(number)));
        }
        ledger.trim(3);
        let txn = ledger.commit(&topic(), &env()).expect("valid");
        let gone = txn.ops.iter().filter(|op| matches!(op, Op::Delete(_))).count();
        assert_eq!((txn.ops.len(), gone), (3, 1));
        pairs(&txn, 99).into_iter().for_each(|pair| drop(stored.insert(pair.key.clone(), pair)));
        ledger.applied(Some(Revision(99)));

        let head = stored.remove(&ledger.key()).expect("written");
        let head: Stored<ManagedLedgerRecord> = Stored::from_pair(head).expect("valid");
        let chunks: Vec<(u64, ManagedLedgerChunk)> = head
            .record
            .chunks
            .iter()
            .map(|link| {
                let key = keys::managed_ledger_chunk(ledger.id, link.number);
                let (chunk, _) = Record::decode(&stored[&key].value).expect("valid");
                (link.number, chunk)
            })
            .collect();
        let loaded = ManagedLedger::load(ledger.id, &head, &chunks).expect("consistent");
        assert!(loaded.list.iter().eq(ledger.list.iter()));
        assert!(loaded.list.chunks().eq(ledger.list.chunks()));
        assert_eq!((loaded.next_index, loaded.last_timestamp_ms), (MessageIndex(45), 108));
        assert!(loaded.list.chunks().count() >= 2);
    }

    #[test]
    fn an_empty_ledger_leaves_no_trace_in_the_list() {
        let mut ledger = ManagedLedger::create(ManagedLedgerId(7), &env());
        ledger.open = vec![LedgerId(4)];
        let empty = ClosedLedger { entries: 0, messages: 0, ..closed(4, 0) };
        ledger.close(empty, 0).expect("nothing to contradict");
        assert!(ledger.open.is_empty() && ledger.list.is_empty());
    }

    #[test]
    fn an_owner_that_was_replaced_notices_it_by_the_nonce() {
        let mut mine = ManagedLedger::create(ManagedLedgerId(7), &env());
        let txn = mine.commit(&topic(), &env()).expect("valid");
        mine.applied(None);
        let pair = pairs(&txn, 5).pop();
        assert!(mine.needs_revision());
        let mut other = mine.clone();
        assert_eq!(mine.seen(pair.clone()), Ok(true));
        assert!(!mine.needs_revision());

        other.seen(pair).expect("readable");
        other.epoch = other.epoch.next();
        let txn = other.commit(&topic(), &env()).expect("valid");
        assert_eq!(mine.seen(pairs(&txn, 6).pop()), Ok(false));
        assert_eq!(mine.seen(None), Ok(false));
    }
}
