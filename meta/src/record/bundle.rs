//! A bundle's state log: the chain of ledgers that hold its cursors, and where replay starts.

use geminga_proto::id::{EntryId, Epoch, LedgerId, Position};
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, in_range};

/// Below `keys::bundle`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BundleRecord {
    /// Rises with each change of owner; an owner that meets a higher one gives up.
    pub epoch: Epoch,
    /// The state log's ledgers, oldest first, ids rising. Empty before the first use.
    pub state_ledgers: Vec<LedgerId>,
    /// Start of the newest complete snapshot, from which replay starts. `None`: at the first
    /// entry of the chain.
    pub snapshot: Option<Position>,
}

impl BundleRecord {
    /// Longest chain of state ledgers; a snapshot lets go of what is before it.
    pub const MAX_STATE_LEDGERS: usize = 1_024;
}

impl Record for BundleRecord {
    const KIND: &'static str = "bundle";
    const VERSION: u32 = 1;
    type Message = pb::BundleRecord;

    fn check(&self) -> Result<(), String> {
        in_range("epoch", self.epoch.0)?;
        if self.state_ledgers.len() > Self::MAX_STATE_LEDGERS {
            return Err(format!("more than {} state ledgers", Self::MAX_STATE_LEDGERS));
        }
        if !self.state_ledgers.is_sorted_by(|left, right| left < right) {
            return Err("the state ledgers' ids do not rise".to_owned());
        }
        for ledger in &self.state_ledgers {
            in_range("state_ledgers", ledger.0)?;
        }
        match self.snapshot {
            Some(snapshot) if !self.state_ledgers.contains(&snapshot.ledger) => {
                Err(format!("the snapshot {snapshot} is in none of the state ledgers"))
            }
            Some(snapshot) => in_range("snapshot", snapshot.entry.0),
            None => Ok(()),
        }
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::BundleRecord {
        let snapshot = |position: Position| pb::SnapshotPosition {
            ledger_id: position.ledger.0,
            entry_id: position.entry.0,
        };
        pb::BundleRecord {
            stamp: Some(stamp),
            state_ledgers: self.state_ledgers.iter().map(|ledger| ledger.0).collect(),
            snapshot: self.snapshot.map(snapshot),
            epoch: self.epoch.0,
        }
    }

    fn from_message(message: pb::BundleRecord) -> Result<Self, String> {
        let position = |snapshot: pb::SnapshotPosition| {
            Position::new(LedgerId(snapshot.ledger_id), EntryId(snapshot.entry_id))
        };
        Ok(Self {
            epoch: Epoch(message.epoch),
            state_ledgers: message.state_ledgers.into_iter().map(LedgerId).collect(),
            snapshot: message.snapshot.map(position),
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "epoch": self.epoch.0,
            "state_ledgers": self.state_ledgers.iter().map(|ledger| ledger.0).collect::<Vec<_>>(),
            "snapshot": self.snapshot.map(|position| position.to_string()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_outside_the_chain_and_a_chain_out_of_order_are_refused() {
        let chain = |ids: &[u64]| ids.iter().copied().map(LedgerId).collect::<Vec<_>>();
        let at = |ledger| Some(Position::new(LedgerId(ledger), EntryId(0)));
        let check = |state_ledgers, snapshot| {
            BundleRecord { epoch: Epoch(1), state_ledgers, snapshot }.validate()
        };
        assert_eq!(check(chain(&[]), None), Ok(()));
        assert_eq!(check(chain(&[3, 5]), at(5)), Ok(()));
        assert!(check(chain(&[3, 5]), at(4)).is_err());
        assert!(check(chain(&[]), at(4)).is_err());
        assert!(check(chain(&[5, 3]), None).is_err());
        assert!(check(chain(&[3, 3]), None).is_err());
    }
}
