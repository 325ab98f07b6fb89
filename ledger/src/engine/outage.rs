//! [`Outage`]: what an ensemble lacks, for placement, which finds others in its place.

use geminga_proto::id::BookieId;
use geminga_proto::storage::BookieError;

use crate::engine::append::AppendEngine;
use crate::engine::ensemble::MemberState;
use crate::engine::recovery::RecoveryEngine;

/// What an ensemble lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outage {
    /// Members that are sent nothing, and their last refusals.
    pub failed: Vec<(BookieId, BookieError)>,
    /// The others.
    pub keep: Vec<BookieId>,
    /// How many more the ack quorum needs.
    pub needed: usize,
}

impl AppendEngine {
    /// What the ensemble lacks at present.
    pub(crate) fn outage(&self) -> Outage {
        let (mut failed, mut keep) = (Vec::new(), Vec::new());
        for member in &self.members {
            match (member.state, member.last_error) {
                (MemberState::Failed, Some(error)) => failed.push((member.bookie.clone(), error)),
                _ => keep.push(member.bookie.clone()),
            }
        }
        let needed = (self.ack_quorum as usize).saturating_sub(keep.len());
        Outage { failed, keep, needed }
    }
}

impl RecoveryEngine {
    /// What the ensemble that is written back to lacks; `None` before anything is.
    pub(crate) fn outage(&self) -> Option<Outage> {
        self.write.as_ref().map(AppendEngine::outage)
    }
}
