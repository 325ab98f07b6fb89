//! Nobody finds damage where none was done: only a disk that was damaged, or whose operations
//! failed, has entries that are to be mended.

use geminga_meta::record::{Record, RepairReason, RepairRecord};
use geminga_meta::store::WatchEvent;
use geminga_proto::id::BookieId;

/// What is wrong with a task of repair, in words. `may_be_damaged` knows the disks.
pub(crate) fn check(
    event: &WatchEvent,
    may_be_damaged: impl Fn(&BookieId) -> bool,
) -> Option<String> {
    let value = event.value.as_ref()?;
    let task = match RepairRecord::decode(value) {
        Ok((task, _)) => task,
        Err(error) => return Some(format!("{} is bad: {error}", event.key)),
    };
    task.reasons.iter().find_map(|reason| match reason {
        RepairReason::Damaged { bookie, .. } if !may_be_damaged(bookie) => {
            Some(format!("{}: {reason}, and nobody has damaged its disk", event.key))
        }
        _ => None,
    })
}
