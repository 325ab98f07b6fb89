//! A counter from which ids are handed out in blocks (`id_block`).

use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, in_range};

/// Below `keys::counter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CounterRecord {
    /// The first number that has not been handed out.
    pub next: u64,
}

impl Record for CounterRecord {
    const KIND: &'static str = "counter";
    const VERSION: u32 = 1;
    type Message = pb::CounterRecord;

    fn check(&self) -> Result<(), String> {
        in_range("next", self.next)
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::CounterRecord {
        pb::CounterRecord { stamp: Some(stamp), next: self.next }
    }

    fn from_message(message: pb::CounterRecord) -> Result<Self, String> {
        Ok(Self { next: message.next })
    }

    fn to_json(&self) -> Value {
        json!({ "next": self.next })
    }
}
