//! A ledger: its quorums, where each run of its entries lies, and how it ended.

use geminga_proto::id::{BookieId, EntryId, Lac, LedgerToken, ManagedLedgerId};
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, in_range, parse};
use crate::bundle::BundleId;

/// How far a ledger is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerState {
    /// Its owner appends.
    Open,
    /// A new owner has begun to fence and recover it.
    InRecovery,
    /// It never changes again, save for where its copies lie.
    Closed {
        /// `None`: it is empty.
        last_entry: Option<EntryId>,
        /// Bytes of all its entries.
        bytes: u64,
    },
}

/// The record that lists a ledger. It is linked and created, and unlinked and deleted, in one
/// transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerOwner {
    /// It holds a topic's data.
    ManagedLedger(ManagedLedgerId),
    /// It holds a bundle's state log.
    StateLog(BundleId),
}

/// A run of entries that lies on one ensemble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment {
    /// Its first entry; it ends where the next fragment starts.
    pub first_entry: EntryId,
    /// The ensemble, as many as the write quorum, each once.
    pub bookies: Vec<BookieId>,
}

/// Below `keys::ledger`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerRecord {
    /// Goes with every add, fence and read that fences.
    pub token: LedgerToken,
    /// How far it is.
    pub state: LedgerState,
    /// Copies written of each entry.
    pub write_quorum: u32,
    /// Copies synced before an entry is confirmed.
    pub ack_quorum: u32,
    /// In order; the first starts at entry 0.
    pub fragments: Vec<Fragment>,
    /// When it was created.
    pub created_ms: u64,
    /// Fewer copies than were wanted: repair looks after it.
    pub under_replicated: bool,
    /// Who lists it.
    pub owner: LedgerOwner,
}

impl LedgerRecord {
    /// Most fragments: an ensemble that changes more often is given up and rolled.
    pub const MAX_FRAGMENTS: usize = 1_024;
    /// Most bookies in an ensemble.
    pub const MAX_WRITE_QUORUM: u32 = 16;

    fn check_fragments(&self) -> Result<(), String> {
        if self.fragments.first().map(|fragment| fragment.first_entry) != Some(EntryId(0)) {
            return Err("the first fragment does not start at entry 0".to_owned());
        }
        if self.fragments.len() > Self::MAX_FRAGMENTS {
            return Err(format!("more than {} fragments", Self::MAX_FRAGMENTS));
        }
        if !self.fragments.is_sorted_by(|left, right| left.first_entry < right.first_entry) {
            return Err("the fragments' first entries do not rise".to_owned());
        }
        for fragment in &self.fragments {
            in_range("first_entry_id", fragment.first_entry.0)?;
            if fragment.bookies.len() != self.write_quorum as usize {
                let start = fragment.first_entry;
                return Err(format!("the ensemble from entry {start} is not a write quorum"));
            }
            let mut sorted: Vec<&BookieId> = fragment.bookies.iter().collect();
            sorted.sort();
            if let Some(twice) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(format!("bookie {} is twice in an ensemble", twice[0]));
            }
        }
        Ok(())
    }
}

impl Record for LedgerRecord {
    const KIND: &'static str = "ledger";
    const VERSION: u32 = 1;
    type Message = pb::LedgerRecord;

    fn check(&self) -> Result<(), String> {
        if self.token.0 == 0 {
            return Err("the token is 0".to_owned());
        }
        if self.write_quorum > Self::MAX_WRITE_QUORUM {
            return Err(format!("write_quorum is above {}", Self::MAX_WRITE_QUORUM));
        }
        if self.ack_quorum == 0 || self.ack_quorum > self.write_quorum {
            return Err("ack_quorum is not between 1 and write_quorum".to_owned());
        }
        if let LedgerState::Closed { last_entry, bytes } = self.state {
            in_range("last_entry_id", last_entry.map_or(0, |entry| entry.0))?;
            in_range("bytes", bytes)?;
        }
        if let LedgerOwner::ManagedLedger(id) = self.owner {
            in_range("managed_ledger", id.0)?;
        }
        self.check_fragments()
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::LedgerRecord {
        let (state, last_entry_id, bytes) = match self.state {
            LedgerState::Open => (pb::LedgerState::Open, 0, 0),
            LedgerState::InRecovery => (pb::LedgerState::InRecovery, 0, 0),
            LedgerState::Closed { last_entry, bytes } => {
                (pb::LedgerState::Closed, Lac(last_entry).to_wire(), bytes)
            }
        };
        let fragment = |fragment: &Fragment| pb::FragmentRecord {
            first_entry_id: fragment.first_entry.0,
            bookies: fragment.bookies.iter().map(ToString::to_string).collect(),
        };
        let owner = match &self.owner {
            LedgerOwner::ManagedLedger(id) => pb::ledger_record::Owner::ManagedLedger(id.0),
            LedgerOwner::StateLog(bundle) => pb::ledger_record::Owner::Bundle(bundle.to_string()),
        };
        pb::LedgerRecord {
            stamp: Some(stamp),
            token: self.token.0,
            state: state.into(),
            write_quorum: self.write_quorum,
            ack_quorum: self.ack_quorum,
            fragments: self.fragments.iter().map(fragment).collect(),
            last_entry_id,
            bytes,
            created_ms: self.created_ms,
            under_replicated: self.under_replicated,
            owner: Some(owner),
        }
    }

    fn from_message(message: pb::LedgerRecord) -> Result<Self, String> {
        let state = match message.state() {
            pb::LedgerState::Open => LedgerState::Open,
            pb::LedgerState::InRecovery => LedgerState::InRecovery,
            pb::LedgerState::Closed => {
                let last_entry = Lac::from_wire(message.last_entry_id).0;
                LedgerState::Closed { last_entry, bytes: message.bytes }
            }
            pb::LedgerState::Unspecified => {
                return Err(format!("state {} is unknown", message.state));
            }
        };
        let owner = match &message.owner {
            Some(pb::ledger_record::Owner::ManagedLedger(id)) => {
                LedgerOwner::ManagedLedger(ManagedLedgerId(*id))
            }
            Some(pb::ledger_record::Owner::Bundle(bundle)) => {
                LedgerOwner::StateLog(parse("bundle", bundle)?)
            }
            None => return Err("the owner is missing".to_owned()),
        };
        let mut fragments = Vec::with_capacity(message.fragments.len());
        for fragment in &message.fragments {
            let bookies: Result<Vec<BookieId>, String> =
                fragment.bookies.iter().map(|bookie| parse("bookies", bookie)).collect();
            let first_entry = EntryId(fragment.first_entry_id);
            fragments.push(Fragment { first_entry, bookies: bookies? });
        }
        Ok(Self {
            token: LedgerToken(message.token),
            state,
            write_quorum: message.write_quorum,
            ack_quorum: message.ack_quorum,
            fragments,
            created_ms: message.created_ms,
            under_replicated: message.under_replicated,
            owner,
        })
    }

    /// Leaves the token out: who has it can append to and fence the ledger.
    fn to_json(&self) -> Value {
        let fragment = |fragment: &Fragment| {
            let bookies: Vec<&str> = fragment.bookies.iter().map(BookieId::as_str).collect();
            json!({ "first_entry_id": fragment.first_entry.0, "bookies": bookies })
        };
        let state = match self.state {
            LedgerState::Open => json!("open"),
            LedgerState::InRecovery => json!("in-recovery"),
            LedgerState::Closed { .. } => json!("closed"),
        };
        let mut json = json!({
            "state": state,
            "write_quorum": self.write_quorum,
            "ack_quorum": self.ack_quorum,
            "fragments": self.fragments.iter().map(fragment).collect::<Vec<_>>(),
            "created_ms": self.created_ms,
            "under_replicated": self.under_replicated,
            "owner": match &self.owner {
                LedgerOwner::ManagedLedger(id) => json!({ "managed_ledger": id.0 }),
                LedgerOwner::StateLog(bundle) => json!({ "bundle": bundle.to_string() }),
            },
        });
        if let (LedgerState::Closed { last_entry, bytes }, Some(fields)) =
            (self.state, json.as_object_mut())
        {
            fields.insert("last_entry_id".to_owned(), json!(last_entry.map(|entry| entry.0)));
            fields.insert("bytes".to_owned(), json!(bytes));
        }
        json
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bookies(names: &[&str]) -> Vec<BookieId> {
        names.iter().map(|name| BookieId::new(name).expect("valid")).collect()
    }

    fn record() -> LedgerRecord {
        LedgerRecord {
            token: LedgerToken(9),
            state: LedgerState::Open,
            write_quorum: 2,
            ack_quorum: 1,
            fragments: vec![Fragment { first_entry: EntryId(0), bookies: bookies(&["a", "b"]) }],
            created_ms: 1,
            under_replicated: false,
            owner: LedgerOwner::ManagedLedger(ManagedLedgerId(1)),
        }
    }

    #[test]
    fn records_that_no_protocol_step_can_write_are_refused() {
        assert_eq!(record().validate(), Ok(()));
        let refused = |change: fn(&mut LedgerRecord)| {
            let mut changed = record();
            change(&mut changed);
            assert!(changed.validate().is_err(), "{changed:?}");
        };
        refused(|record| record.token = LedgerToken(0));
        refused(|record| record.ack_quorum = 0);
        refused(|record| record.ack_quorum = 3);
        refused(|record| record.write_quorum = 1);
        refused(|record| record.write_quorum = 3);
        refused(|record| record.fragments.clear());
        refused(|record| record.fragments[0].first_entry = EntryId(1));
        refused(|record| record.fragments[0].bookies = bookies(&["a", "a"]));
        refused(|record| record.fragments.push(record.fragments[0].clone()));
        refused(|record| record.owner = LedgerOwner::ManagedLedger(ManagedLedgerId(u64::MAX)));
    }

    #[test]
    fn an_empty_closed_ledger_is_told_from_one_with_a_single_entry() {
        for last_entry in [None, Some(EntryId(0)), Some(EntryId::MAX)] {
            let state = LedgerState::Closed { last_entry, bytes: 7 };
            let message = LedgerRecord { state, ..record() }.to_message(pb::Stamp::default());
            let read = LedgerRecord::from_message(message).expect("valid");
            assert_eq!(read.state, state);
        }
    }

    #[test]
    fn the_token_is_not_shown() {
        let token = LedgerToken(0x1234_5678_9abc_def0);
        let json = LedgerRecord { token, ..record() }.to_json().to_string();
        assert!(!json.contains("token") && !json.contains(&token.0.to_string()), "{json}");
    }
}
