//! Who owns a bundle. Bound to the owner's lease; gives liveness, never safety: that is the
//! ledgers' fencing and the compare-and-swap on the managed ledger.

use geminga_proto::id::BrokerId;
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, SessionId, parse};

/// Below `keys::ownership`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnershipRecord {
    /// The owner.
    pub broker_id: BrokerId,
    /// Where clients connect to it.
    pub service_url: String,
    /// Where administration connects to it.
    pub admin_url: String,
    /// The owner's session: a broker that was started again is another owner.
    pub session: SessionId,
}

impl Record for OwnershipRecord {
    const KIND: &'static str = "ownership";
    const VERSION: u32 = 1;
    type Message = pb::OwnershipRecord;

    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::OwnershipRecord {
        pb::OwnershipRecord {
            stamp: Some(stamp),
            broker_id: self.broker_id.to_string(),
            service_url: self.service_url.clone(),
            admin_url: self.admin_url.clone(),
            session: self.session.0,
        }
    }

    fn from_message(message: pb::OwnershipRecord) -> Result<Self, String> {
        Ok(Self {
            broker_id: parse("broker_id", &message.broker_id)?,
            service_url: message.service_url,
            admin_url: message.admin_url,
            session: SessionId(message.session),
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "broker_id": self.broker_id.as_str(),
            "service_url": self.service_url,
            "admin_url": self.admin_url,
            "session": self.session.to_string(),
        })
    }
}
