//! What a transaction does to a table: the one place that decides conflict, lease loss and which
//! changes watchers see, for every backend that keeps its own data.
//!
//! Invariants: the outcome depends on the table and the leases alone; nothing is written unless
//! every condition holds and every lease is alive.

use bytes::Bytes;

use super::lease::LeaseTable;
use super::{Compare, LeaseId, Op, Revision, StoreError, Txn, WatchEvent};

/// Where pairs are kept.
pub(super) trait Table {
    /// Revision of the transaction that last wrote `key`; `None` if it doesn't exist.
    fn modified(&self, key: &str) -> Result<Option<Revision>, StoreError>;
    /// Writes a pair.
    fn put(
        &mut self,
        key: &str,
        value: &Bytes,
        revision: Revision,
        lease: Option<LeaseId>,
    ) -> Result<(), StoreError>;
    /// Deletes a key that exists.
    fn delete(&mut self, key: &str) -> Result<(), StoreError>;
}

/// What came of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Applied {
    /// A condition didn't hold, nothing was written.
    Conflict,
    /// These changes were made; if there are none, the revision stays.
    Written(Vec<WatchEvent>),
    /// Nothing was written, and nothing is wrong with the table as a whole: a lease has ended, or
    /// what is stored under one of the keys is damaged.
    Refused(StoreError),
}

/// Applies a checked transaction; its changes get the revision `next`.
///
/// Everything is read before anything is written, so that a damaged pair refuses the transactions
/// that touch it and no others. An error means that writing failed halfway.
pub(super) fn apply(
    table: &mut dyn Table,
    leases: &mut LeaseTable,
    txn: &Txn,
    next: Revision,
) -> Result<Applied, StoreError> {
    let writes = match decide(table, leases, txn) {
        Ok(Some(writes)) => writes,
        Ok(None) => return Ok(Applied::Conflict),
        Err(error) => return Ok(Applied::Refused(error)),
    };
    let mut events = Vec::with_capacity(writes.len());
    for op in writes {
        let (key, value) = match op {
            Op::Put { key, value, lease } => {
                table.put(key, value, next, *lease)?;
                leases.bind(key, *lease);
                (key, Some(value.clone()))
            }
            Op::Delete(key) => {
                table.delete(key)?;
                leases.bind(key, None);
                (key, None)
            }
        };
        events.push(WatchEvent { revision: next, key: key.clone(), value });
    }
    Ok(Applied::Written(events))
}

/// The writes that change something; `None` if a condition doesn't hold.
fn decide<'a>(
    table: &dyn Table,
    leases: &LeaseTable,
    txn: &'a Txn,
) -> Result<Option<Vec<&'a Op>>, StoreError> {
    for compare in &txn.compares {
        let holds = match compare {
            Compare::Absent(key) => table.modified(key)?.is_none(),
            Compare::Present(key) => table.modified(key)?.is_some(),
            Compare::Unchanged(key, revision) => table.modified(key)? == Some(*revision),
        };
        if !holds {
            return Ok(None);
        }
    }
    let mut writes = Vec::with_capacity(txn.ops.len());
    for op in &txn.ops {
        match op {
            Op::Put { lease: Some(lease), .. } if !leases.is_alive(*lease) => {
                return Err(StoreError::LeaseLost);
            }
            Op::Delete(key) if table.modified(key)?.is_none() => {}
            op => writes.push(op),
        }
    }
    Ok(Some(writes))
}

/// Ends a lease: deletes its keys, whose deletions get the revision `next`. What is stored under
/// them doesn't matter any more, damaged or not.
pub(super) fn end_lease(
    table: &mut dyn Table,
    leases: &mut LeaseTable,
    lease: LeaseId,
    next: Revision,
) -> Result<Vec<WatchEvent>, StoreError> {
    let mut events = Vec::new();
    for key in leases.end(lease) {
        let exists = match table.modified(&key) {
            Ok(modified) => modified.is_some(),
            Err(StoreError::Corrupt(why)) => {
                tracing::warn!(key, %why, "a damaged pair goes with its lease");
                true
            }
            Err(error) => return Err(error),
        };
        if exists {
            table.delete(&key)?;
            events.push(WatchEvent { revision: next, key, value: None });
        }
    }
    Ok(events)
}
