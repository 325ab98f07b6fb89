//! What is confirmed to a producer is on disks by then: a receipt isn't sent while so many bookies
//! certainly lack the entry that the others are no ack quorum. But for an entry that everybody has
//! had meanwhile, and that was deleted: a receipt may be late.

use std::sync::Arc;

use futures_util::FutureExt;
use geminga_broker::core::api::Receipt;
use geminga_meta::keys;
use geminga_meta::store::MetadataStore;
use geminga_proto::id::{BookieId, LedgerId};
use geminga_proto::storage::{BookieError, ReadRequest};

use crate::bookie_host;
use crate::network::HostId;
use crate::shared::Shared;
use crate::transport::Door;

/// Of all bookies, those that may lack a confirmed entry: whoever isn't in its ensemble, and whom
/// the ack quorum did without.
const MAY_LACK: usize = 2;

/// Receipts are about to be sent.
pub(crate) fn check(shared: &Shared, receipts: &[Receipt]) {
    // Disks are looked at beside the network; who is down may have it.
    // So may one whose disk was lost since: nothing is asked of who has taken its place.
    let first = |(host, door): &(&HostId, &Arc<Door>)| {
        door.bookie().identity().bookie == bookie_host::name(**host)
    };
    let doors: Vec<Arc<Door>> =
        shared.doors.lock().iter().filter(first).map(|(_, door)| Arc::clone(door)).collect();
    for receipt in receipts {
        let request = ReadRequest {
            ledger: receipt.position.ledger,
            first: receipt.position.entry,
            max_entries: 1,
            max_bytes: u64::MAX,
            fence: None,
        };
        let lacks = |door: &&Arc<Door>| {
            let read = door.bookie().read(request).now_or_never();
            matches!(read, Some(Err(BookieError::NoSuchEntry)))
        };
        let lacking: Vec<&BookieId> =
            doors.iter().filter(lacks).map(|door| &door.bookie().identity().bookie).collect();
        if lacking.len() > MAY_LACK && exists(shared, receipt.position.ledger) {
            let what = format!("{receipt:?} is sent, and {lacking:?} lack the entry");
            shared.history.broken(what);
        }
    }
}

/// Whether a ledger is in the metadata. While nobody can tell, it is as if it weren't.
fn exists(shared: &Shared, ledger: LedgerId) -> bool {
    let found = shared.store.get(&keys::ledger(ledger)).now_or_never();
    matches!(found, Some(Ok(Some(_))))
}
