//! The cluster's identity: written once, by the first start.

use geminga_proto::id::ClusterId;
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, parse};

/// Under `keys::CLUSTER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRecord {
    /// Random; every connection and every disk names it.
    pub cluster_id: ClusterId,
    /// Version of the metadata as a whole; a start that doesn't know it refuses.
    pub format_version: u32,
    /// When the first start was.
    pub created_ms: u64,
}

impl Record for ClusterRecord {
    const KIND: &'static str = "cluster";
    const VERSION: u32 = 1;
    type Message = pb::ClusterRecord;

    fn check(&self) -> Result<(), String> {
        if self.format_version == 0 {
            return Err("format_version is 0".to_owned());
        }
        Ok(())
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::ClusterRecord {
        pb::ClusterRecord {
            stamp: Some(stamp),
            cluster_id: self.cluster_id.to_string(),
            format_version: self.format_version,
            created_ms: self.created_ms,
        }
    }

    fn from_message(message: pb::ClusterRecord) -> Result<Self, String> {
        Ok(Self {
            cluster_id: parse("cluster_id", &message.cluster_id)?,
            format_version: message.format_version,
            created_ms: message.created_ms,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "cluster_id": self.cluster_id.as_str(),
            "format_version": self.format_version,
            "created_ms": self.created_ms,
        })
    }
}
