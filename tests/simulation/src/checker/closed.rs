//! A closed ledger never changes but for where its copies lie, its state never goes back, and no
//! entry beyond its end is ever confirmed.

use std::collections::BTreeMap;

use geminga_meta::keys::Key;
use geminga_meta::record::{LedgerRecord, LedgerState, Record};
use geminga_meta::store::WatchEvent;
use geminga_proto::id::{EntryId, LedgerId};

use crate::history::Inner;

/// The ledgers as the metadata have shown them.
#[derive(Debug, Default)]
pub(crate) struct Ledgers {
    /// Also those that are deleted, as they were last.
    known: BTreeMap<LedgerId, LedgerRecord>,
    deleted: std::collections::BTreeSet<LedgerId>,
}

impl Ledgers {
    /// Those that exist.
    pub fn present(&self) -> impl Iterator<Item = (LedgerId, &LedgerRecord)> {
        let exists = |(id, _): &(&LedgerId, &LedgerRecord)| !self.deleted.contains(*id);
        self.known.iter().filter(exists).map(|(id, record)| (*id, record))
    }

    /// A key has changed.
    pub fn see(&mut self, event: &WatchEvent, history: &mut Inner) {
        let Some(Key::Ledger(id)) = Key::parse(&event.key) else { return };
        let Some(value) = &event.value else {
            self.deleted.insert(id);
            return;
        };
        let record = match LedgerRecord::decode(value) {
            Ok((record, _)) => record,
            Err(error) => {
                return history.broken(|| format!("the record of ledger {id} is bad: {error}"));
            }
        };
        if self.deleted.contains(&id) {
            history.broken(|| format!("ledger {id} comes back after it was deleted: {record:?}"));
        }
        if let Some(before) = self.known.get(&id)
            && let Some(what) = wrong_step(before, &record)
        {
            history.broken(|| format!("ledger {id} {what}: {before:?}, then {record:?}"));
        }
        self.known.insert(id, record);
    }

    /// Nothing that has a receipt lies beyond the end of its ledger.
    pub fn check_ends(&self, history: &mut Inner) {
        let mut beyond = None;
        for topic in &history.topics {
            for (batch, stored) in &topic.stored {
                let place = stored.position;
                let Some(record) = self.known.get(&place.ledger) else {
                    beyond = Some(format!("{}: {batch:?} is in no ledger: {stored:?}", topic.name));
                    continue;
                };
                if let LedgerState::Closed { last_entry, .. } = record.state
                    && last_entry.is_none_or(|last| last < place.entry)
                {
                    beyond = Some(format!(
                        "{}: {batch:?} was confirmed at {place:?}, its ledger ends at \
                         {last_entry:?}",
                        topic.name
                    ));
                }
            }
        }
        if let Some(beyond) = beyond {
            history.broken(|| beyond);
        }
    }
}

fn wrong_step(before: &LedgerRecord, now: &LedgerRecord) -> Option<&'static str> {
    if before.token != now.token {
        return Some("has another token");
    }
    match (before.state, now.state) {
        (
            LedgerState::Closed { last_entry: one, .. },
            LedgerState::Closed { last_entry: two, .. },
        ) => (one != two).then_some("has another end"),
        (LedgerState::Closed { .. }, _) => Some("is open again"),
        (LedgerState::InRecovery, LedgerState::Open) => Some("is no longer in recovery"),
        _ => None,
    }
}

/// The ensemble of an entry.
pub(crate) fn ensemble(record: &LedgerRecord, entry: EntryId) -> &[geminga_proto::id::BookieId] {
    let before = record.fragments.iter().rev();
    let mut found = before.filter(|fragment| fragment.first_entry <= entry);
    found.next().map_or(&[], |fragment| &fragment.bookies)
}
