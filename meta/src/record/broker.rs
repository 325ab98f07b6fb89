//! A broker that is up. Bound to the broker's lease.

use geminga_proto::id::BrokerId;
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, parse};

/// Below `keys::broker`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerRecord {
    /// The broker.
    pub broker_id: BrokerId,
    /// Where clients connect.
    pub service_url: String,
    /// Where administration connects.
    pub admin_url: String,
    /// The release that it runs.
    pub release: String,
    /// When it started.
    pub started_ms: u64,
}

impl Record for BrokerRecord {
    const KIND: &'static str = "broker";
    const VERSION: u32 = 1;
    type Message = pb::BrokerRecord;

    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::BrokerRecord {
        pb::BrokerRecord {
            stamp: Some(stamp),
            broker_id: self.broker_id.to_string(),
            service_url: self.service_url.clone(),
            admin_url: self.admin_url.clone(),
            release: self.release.clone(),
            started_ms: self.started_ms,
        }
    }

    fn from_message(message: pb::BrokerRecord) -> Result<Self, String> {
        Ok(Self {
            broker_id: parse("broker_id", &message.broker_id)?,
            service_url: message.service_url,
            admin_url: message.admin_url,
            release: message.release,
            started_ms: message.started_ms,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "broker_id": self.broker_id.as_str(),
            "service_url": self.service_url,
            "admin_url": self.admin_url,
            "release": self.release,
            "started_ms": self.started_ms,
        })
    }
}
