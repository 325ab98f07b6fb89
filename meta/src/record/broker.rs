//! A broker that is up. Bound to the lease of the broker's session.

use geminga_proto::id::BrokerId;
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, SessionId, parse};
use crate::store::LeaseId;

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
    /// Which of the sessions under this id.
    pub session: SessionId,
    /// The lease that the record hangs on: who knows that the broker is gone may end it. 0: a
    /// release wrote it that didn't say.
    pub lease: LeaseId,
    /// How long the lease outlives a broker that has gone silent.
    pub lease_ttl_ms: u64,
    /// True while it hands its bundles over and takes no more.
    pub draining: bool,
    /// Its share of the bundles, relative to other brokers'. Not 0.
    pub weight: u32,
    /// Where its process is, as nobody else can be meanwhile: the machine's start, its network and
    /// the port that is open there. Empty: not told.
    pub place: String,
}

impl BrokerRecord {
    /// The weight of a broker that says nothing else.
    pub const DEFAULT_WEIGHT: u32 = 100;
    /// Largest weight.
    pub const MAX_WEIGHT: u32 = 1_000_000;
}

impl Record for BrokerRecord {
    const KIND: &'static str = "broker";
    const VERSION: u32 = 1;
    type Message = pb::BrokerRecord;

    fn check(&self) -> Result<(), String> {
        if !(1..=Self::MAX_WEIGHT).contains(&self.weight) {
            return Err(format!("weight is not between 1 and {}", Self::MAX_WEIGHT));
        }
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
            session: self.session.0,
            lease: self.lease.0,
            lease_ttl_ms: self.lease_ttl_ms,
            draining: self.draining,
            weight: if self.weight == Self::DEFAULT_WEIGHT { 0 } else { self.weight },
            place: self.place.clone(),
        }
    }

    fn from_message(message: pb::BrokerRecord) -> Result<Self, String> {
        Ok(Self {
            broker_id: parse("broker_id", &message.broker_id)?,
            service_url: message.service_url,
            admin_url: message.admin_url,
            release: message.release,
            started_ms: message.started_ms,
            session: SessionId(message.session),
            lease: LeaseId(message.lease),
            lease_ttl_ms: message.lease_ttl_ms,
            draining: message.draining,
            weight: if message.weight == 0 { Self::DEFAULT_WEIGHT } else { message.weight },
            place: message.place,
        })
    }

    fn to_json(&self) -> Value {
        json!({
            "broker_id": self.broker_id.as_str(),
            "service_url": self.service_url,
            "admin_url": self.admin_url,
            "release": self.release,
            "started_ms": self.started_ms,
            "session": self.session.to_string(),
            "lease": format!("{:x}", self.lease.0),
            "lease_ttl_ms": self.lease_ttl_ms,
            "draining": self.draining,
            "weight": self.weight,
            "place": self.place,
        })
    }
}
