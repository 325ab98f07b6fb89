//! Replication is restored when the faults are over: no fragment names a bookie that is gone, no
//! closed ledger has fewer copies than it should have, and nothing waits for repair. (That the
//! copies are there is what `copies` counts.)
//!
//! The last fragment of a ledger that isn't closed is its owner's, or nobody's yet.

use std::collections::BTreeSet;

use geminga_meta::keys::Key;
use geminga_meta::record::LedgerState;
use geminga_meta::store::KeyValue;
use geminga_proto::id::BookieId;

use crate::broker_host::ledger_config;
use crate::checker::closed::Ledgers;

/// What still has to happen, in words; `None` when everything is whole. `up`: the bookies that are
/// there. `tasks`: what is queued for repair.
pub(crate) fn outstanding(
    ledgers: &Ledgers,
    up: &BTreeSet<BookieId>,
    tasks: &[KeyValue],
) -> Option<String> {
    let wanted = ledger_config().write_quorum;
    for (id, record) in ledgers.present() {
        let closed = matches!(record.state, LedgerState::Closed { .. });
        let touchable = record.fragments.len() - usize::from(!closed);
        let mut named = record.fragments.iter().take(touchable).flat_map(|it| &it.bookies);
        if let Some(bookie) = named.find(|bookie| !up.contains(bookie)) {
            return Some(format!("ledger {id} names {bookie}, which is gone: {record:?}"));
        }
        if closed && (record.under_replicated || record.write_quorum < wanted) {
            return Some(format!("ledger {id} lacks copies: {record:?}"));
        }
    }
    // What is damaged where an owner may still write has to wait for him.
    let is_open = |task: &&KeyValue| match Key::parse(&task.key) {
        Some(Key::Repair(id)) => ledgers.present().any(|(other, record)| {
            other == id && !matches!(record.state, LedgerState::Closed { .. })
        }),
        _ => false,
    };
    let mut waiting = tasks.iter().filter(|task| !is_open(task));
    waiting.next().map(|task| format!("{} waits", task.key))
}
