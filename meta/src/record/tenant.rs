//! A tenant exists.

use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::Record;

/// Below `keys::tenant`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRecord {
    /// When it was created.
    pub created_ms: u64,
}

impl Record for TenantRecord {
    const KIND: &'static str = "tenant";
    const VERSION: u32 = 1;
    type Message = pb::TenantRecord;

    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::TenantRecord {
        pb::TenantRecord { stamp: Some(stamp), created_ms: self.created_ms }
    }

    fn from_message(message: pb::TenantRecord) -> Result<Self, String> {
        Ok(Self { created_ms: message.created_ms })
    }

    fn to_json(&self) -> Value {
        json!({ "created_ms": self.created_ms })
    }
}
