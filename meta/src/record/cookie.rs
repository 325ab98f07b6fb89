//! A bookie's identity: ties a disk to a name and a cluster, for ever.

use geminga_proto::id::{BookieId, ClusterId};
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, parse};

/// Below `keys::cookie`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieRecord {
    /// The bookie.
    pub bookie_id: BookieId,
    /// Its cluster.
    pub cluster_id: ClusterId,
    /// Random, made with the disk's cookie: a wiped disk under the same name has another. Not 0.
    pub instance: u64,
}

impl Record for CookieRecord {
    const KIND: &'static str = "cookie";
    const VERSION: u32 = 1;
    type Message = pb::CookieRecord;

    fn check(&self) -> Result<(), String> {
        if self.instance == 0 { Err("instance is 0".to_owned()) } else { Ok(()) }
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::CookieRecord {
        pb::CookieRecord {
            stamp: Some(stamp),
            bookie_id: self.bookie_id.to_string(),
            cluster_id: self.cluster_id.to_string(),
            instance: self.instance,
        }
    }

    fn from_message(message: pb::CookieRecord) -> Result<Self, String> {
        Ok(Self {
            bookie_id: parse("bookie_id", &message.bookie_id)?,
            cluster_id: parse("cluster_id", &message.cluster_id)?,
            instance: message.instance,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "bookie_id": self.bookie_id.as_str(),
            "cluster_id": self.cluster_id.as_str(),
            "instance": format!("{:016x}", self.instance),
        })
    }
}
