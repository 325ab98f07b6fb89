//! A topic: its incarnation and the managed ledgers behind it.

use geminga_proto::id::{ManagedLedgerId, TopicIncarnation};
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, in_range};
use crate::bundle::HashRange;

/// One key range of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which keys.
    pub keys: HashRange,
    /// Where their messages are.
    pub managed_ledger: ManagedLedgerId,
}

/// Below `keys::topic`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRecord {
    /// When it was created.
    pub created_ms: u64,
    /// Never reused, so that a deleted topic's cursors can't be taken for those of a new one.
    pub incarnation: TopicIncarnation,
    /// In key order; covers every key. One for a plain topic.
    pub shards: Vec<Shard>,
}

impl TopicRecord {
    /// A topic with one managed ledger.
    #[must_use]
    pub fn plain(
        created_ms: u64,
        incarnation: TopicIncarnation,
        managed_ledger: ManagedLedgerId,
    ) -> Self {
        let shards = vec![Shard { keys: HashRange::ALL, managed_ledger }];
        Self { created_ms, incarnation, shards }
    }
}

impl Record for TopicRecord {
    const KIND: &'static str = "topic";
    const VERSION: u32 = 1;
    type Message = pb::TopicRecord;

    fn check(&self) -> Result<(), String> {
        in_range("incarnation", self.incarnation.0)?;
        let mut next = Some(0);
        for shard in &self.shards {
            in_range("managed_ledger", shard.managed_ledger.0)?;
            if next != Some(shard.keys.first) || shard.keys.last < shard.keys.first {
                return Err(format!("the shards have a gap or an overlap at {}", shard.keys));
            }
            next = shard.keys.last.checked_add(1);
        }
        match next {
            None => Ok(()),
            Some(hash) => Err(format!("no shard holds the keys from {hash:08x} on")),
        }
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::TopicRecord {
        let shard = |shard: &Shard| pb::ShardRecord {
            first_hash: shard.keys.first,
            last_hash: shard.keys.last,
            managed_ledger: shard.managed_ledger.0,
        };
        pb::TopicRecord {
            stamp: Some(stamp),
            created_ms: self.created_ms,
            incarnation: self.incarnation.0,
            shards: self.shards.iter().map(shard).collect(),
        }
    }

    fn from_message(message: pb::TopicRecord) -> Result<Self, String> {
        let shard = |shard: &pb::ShardRecord| Shard {
            keys: HashRange { first: shard.first_hash, last: shard.last_hash },
            managed_ledger: ManagedLedgerId(shard.managed_ledger),
        };
        Ok(Self {
            created_ms: message.created_ms,
            incarnation: TopicIncarnation(message.incarnation),
            shards: message.shards.iter().map(shard).collect(),
        })
    }

    fn to_json(&self) -> Value {
        let shard = |shard: &Shard| {
            json!({
                "keys": shard.keys.to_string(),
                "managed_ledger": shard.managed_ledger.0,
            })
        };
        json!({
            "created_ms": self.created_ms,
            "incarnation": self.incarnation.0,
            "shards": self.shards.iter().map(shard).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(first: u32, last: u32) -> Shard {
        Shard { keys: HashRange { first, last }, managed_ledger: ManagedLedgerId(1) }
    }

    #[test]
    fn shards_that_leave_a_key_homeless_or_give_it_two_homes_are_refused() {
        let check = |shards: Vec<Shard>| {
            let plain = TopicRecord::plain(1, TopicIncarnation(1), ManagedLedgerId(1));
            TopicRecord { shards, ..plain }.validate()
        };
        assert_eq!(check(vec![shard(0, u32::MAX)]), Ok(()));
        assert_eq!(check(vec![shard(0, 9), shard(10, u32::MAX)]), Ok(()));
        for bad in [
            vec![],
            vec![shard(0, 9)],
            vec![shard(1, u32::MAX)],
            vec![shard(0, 9), shard(11, u32::MAX)],
            vec![shard(0, 9), shard(9, u32::MAX)],
            vec![shard(0, u32::MAX), shard(0, u32::MAX)],
        ] {
            assert!(check(bad.clone()).is_err(), "{bad:?}");
        }
    }
}
