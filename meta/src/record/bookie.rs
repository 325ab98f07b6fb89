//! A bookie that is up: where it is and what it can take. Bound to the bookie's lease.

use geminga_proto::id::BookieId;
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, parse};

/// Below `keys::bookie`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieRecord {
    /// The bookie.
    pub bookie_id: BookieId,
    /// Where it listens, as host:port.
    pub address: String,
    /// Its failure domain; empty if it has none.
    pub zone: String,
    /// False while it takes no ordinary adds.
    pub writable: bool,
    /// Size of its storage.
    pub total_bytes: u64,
    /// What ordinary adds can still take.
    pub free_bytes: u64,
}

impl Record for BookieRecord {
    const KIND: &'static str = "bookie";
    const VERSION: u32 = 1;
    type Message = pb::BookieRecord;

    fn check(&self) -> Result<(), String> {
        if self.free_bytes > self.total_bytes {
            return Err("free_bytes is above total_bytes".to_owned());
        }
        Ok(())
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::BookieRecord {
        pb::BookieRecord {
            stamp: Some(stamp),
            bookie_id: self.bookie_id.to_string(),
            address: self.address.clone(),
            zone: self.zone.clone(),
            writable: self.writable,
            total_bytes: self.total_bytes,
            free_bytes: self.free_bytes,
        }
    }

    fn from_message(message: pb::BookieRecord) -> Result<Self, String> {
        Ok(Self {
            bookie_id: parse("bookie_id", &message.bookie_id)?,
            address: message.address,
            zone: message.zone,
            writable: message.writable,
            total_bytes: message.total_bytes,
            free_bytes: message.free_bytes,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "bookie_id": self.bookie_id.as_str(),
            "address": self.address,
            "zone": self.zone,
            "writable": self.writable,
            "total_bytes": self.total_bytes,
            "free_bytes": self.free_bytes,
        })
    }
}
