//! That a bookie gets nothing new, and that what it has is to be copied elsewhere. It stays until
//! no ledger's record names the bookie; then it goes together with the bookie's cookie.

use geminga_proto::id::BookieId;
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, parse};

/// Why a bookie is drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DrainKind {
    /// It is up, and to be taken away.
    Decommission,
    /// It is gone for good.
    Lost,
}

impl DrainKind {
    /// The name used in output.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Decommission => "decommission",
            Self::Lost => "lost",
        }
    }
}

/// Below `keys::drain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainRecord {
    /// The bookie.
    pub bookie_id: BookieId,
    /// Why.
    pub kind: DrainKind,
    /// Since when.
    pub started_ms: u64,
}

impl Record for DrainRecord {
    const KIND: &'static str = "drain";
    const VERSION: u32 = 1;
    type Message = pb::DrainRecord;

    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::DrainRecord {
        let kind = match self.kind {
            DrainKind::Decommission => pb::DrainKind::Decommission,
            DrainKind::Lost => pb::DrainKind::Lost,
        };
        pb::DrainRecord {
            stamp: Some(stamp),
            bookie_id: self.bookie_id.to_string(),
            kind: kind.into(),
            started_ms: self.started_ms,
        }
    }

    fn from_message(message: pb::DrainRecord) -> Result<Self, String> {
        let kind = match message.kind() {
            pb::DrainKind::Decommission => DrainKind::Decommission,
            pb::DrainKind::Lost => DrainKind::Lost,
            pb::DrainKind::Unspecified => return Err(format!("kind {} is unknown", message.kind)),
        };
        let bookie_id = parse("bookie_id", &message.bookie_id)?;
        Ok(Self { bookie_id, kind, started_ms: message.started_ms })
    }

    fn to_json(&self) -> Value {
        json!({
            "bookie_id": self.bookie_id.as_str(),
            "kind": self.kind.as_str(),
            "started_ms": self.started_ms,
        })
    }
}
