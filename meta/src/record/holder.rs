//! Who holds something that only one process may do at a time. Bound to the holder's lease; gives
//! liveness, never safety.

use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, SessionId};

/// Below `keys::election` and `keys::repair_lock`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderRecord {
    /// The name of the process.
    pub holder: String,
    /// Which of its starts.
    pub session: SessionId,
}

impl Record for HolderRecord {
    const KIND: &'static str = "holder";
    const VERSION: u32 = 1;
    type Message = pb::HolderRecord;

    fn check(&self) -> Result<(), String> {
        Ok(())
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::HolderRecord {
        let (holder, session) = (self.holder.clone(), self.session.0);
        pb::HolderRecord { stamp: Some(stamp), holder, session }
    }

    fn from_message(message: pb::HolderRecord) -> Result<Self, String> {
        Ok(Self { holder: message.holder, session: SessionId(message.session) })
    }

    fn to_json(&self) -> Value {
        json!({ "holder": self.holder, "session": self.session.to_string() })
    }
}
