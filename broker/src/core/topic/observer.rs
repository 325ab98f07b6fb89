//! [`LedgerTap`]: what a topic hears of one of its ledgers. It knows the ledger by a generation,
//! since it exists before the ledger has an id.

use std::sync::Weak;

use geminga_ledger::observer::{LedgerObserver, StallReason, WriterFailure};
use geminga_proto::id::EntryId;

use crate::core::topic::Topic;
use crate::core::topic::log::Generation;

/// One ledger's line to its topic.
#[derive(Debug)]
pub struct LedgerTap {
    /// The topic; gone when it was dropped.
    pub topic: Weak<Topic>,
    /// Which of its ledgers.
    pub generation: Generation,
}

impl LedgerObserver for LedgerTap {
    fn confirmed(&self, lac: EntryId) {
        if let Some(topic) = self.topic.upgrade() {
            #[cfg(any(test, feature = "simulation"))]
            let lac = match topic.context.config.planted {
                Some(crate::core::defect::Defect::BeyondLac) => lac.next(),
                _ => lac,
            };
            topic.confirmed(self.generation, lac);
        }
    }

    fn failed(&self, failure: WriterFailure) {
        if let Some(topic) = self.topic.upgrade() {
            topic.ledger_failed(self.generation, failure);
        }
    }

    fn stalled(&self, reason: StallReason) {
        if let Some(topic) = self.topic.upgrade() {
            topic.storage_full(self.generation, reason == StallReason::DiskFull);
            topic.delayed(self.generation, reason);
        }
    }

    fn resumed(&self) {
        if let Some(topic) = self.topic.upgrade() {
            topic.storage_full(self.generation, false);
        }
    }
}
