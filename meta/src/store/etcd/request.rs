//! Translation between the trait's types and etcd's. Pure.
//!
//! Invariant: only keys below the prefix are ever named, and nothing else is accepted in answers.

use bytes::Bytes;
use etcd_client::{Compare as EtcdCompare, CompareOp, PutOptions, ResponseHeader, TxnOp};

use super::error::Failure;
use super::identity::Sender;
use crate::store::{Compare, KeyValue, LeaseId, Op, Revision, StoreError, Txn, WatchEvent};

/// The prefix before every key.
#[derive(Debug, Clone)]
pub(super) struct Root(pub(super) String);

impl Root {
    /// A key as etcd has it.
    pub(super) fn key(&self, key: &str) -> Vec<u8> {
        [self.0.as_bytes(), key.as_bytes()].concat()
    }

    /// First key and end of the keys that start with `prefix` and sort after `after`.
    pub(super) fn range(&self, prefix: &str, after: Option<&str>) -> (Vec<u8>, Vec<u8>) {
        let start = match after {
            // The key right behind.
            Some(after) if after >= prefix => [self.key(after), vec![0]].concat(),
            _ => self.key(prefix),
        };
        (start, prefix_end(self.key(prefix)))
    }

    /// A transaction as etcd has it.
    pub(super) fn txn(&self, txn: &Txn) -> Result<etcd_client::Txn, StoreError> {
        let compares = txn.compares.iter().map(|compare| self.compare(compare));
        let compares = compares.collect::<Result<Vec<_>, _>>()?;
        let ops = txn.ops.iter().map(|op| self.op(op)).collect::<Result<Vec<_>, _>>()?;
        Ok(etcd_client::Txn::new().when(compares).and_then(ops))
    }

    fn compare(&self, compare: &Compare) -> Result<EtcdCompare, StoreError> {
        Ok(match compare {
            Compare::Absent(key) => EtcdCompare::version(self.key(key), CompareOp::Equal, 0),
            Compare::Present(key) => EtcdCompare::version(self.key(key), CompareOp::Greater, 0),
            // A key that isn't there has revision 0, so this can't be said by revision alone.
            Compare::Unchanged(key, Revision(0)) => {
                EtcdCompare::version(self.key(key), CompareOp::Less, 0)
            }
            Compare::Unchanged(key, revision) => {
                let revision = signed("a revision", revision.0)?;
                EtcdCompare::mod_revision(self.key(key), CompareOp::Equal, revision)
            }
        })
    }

    fn op(&self, op: &Op) -> Result<TxnOp, StoreError> {
        Ok(match op {
            Op::Put { key, value, lease } => {
                let options = match lease {
                    Some(lease) => Some(PutOptions::new().with_lease(lease_number(*lease)?)),
                    None => None,
                };
                TxnOp::put(self.key(key), value.as_ref(), options)
            }
            Op::Delete(key) => TxnOp::delete(self.key(key), None),
        })
    }

    /// A pair as the trait has it.
    pub(super) fn pair(&self, pair: &etcd_client::KeyValue) -> Result<KeyValue, Failure> {
        Ok(KeyValue {
            key: self.strip(pair.key())?,
            value: Bytes::copy_from_slice(pair.value()),
            modified: revision(pair.mod_revision()),
            lease: u64::try_from(pair.lease()).ok().filter(|id| *id != 0).map(LeaseId),
        })
    }

    /// A change as the trait has it.
    pub(super) fn event(&self, pair: &etcd_client::KeyValue) -> Result<WatchEvent, Failure> {
        // A pair that was deleted has version 0, one that was written never has.
        let value = (pair.version() != 0).then(|| Bytes::copy_from_slice(pair.value()));
        let revision = revision(pair.mod_revision());
        Ok(WatchEvent { revision, key: self.strip(pair.key())?, value })
    }

    fn strip(&self, key: &[u8]) -> Result<String, Failure> {
        let inside = key.strip_prefix(self.0.as_bytes()).and_then(|key| str::from_utf8(key).ok());
        inside.map(str::to_owned).ok_or_else(|| {
            let key = String::from_utf8_lossy(key);
            Failure::Final(StoreError::Corrupt(format!("etcd has a key {key:?}, which isn't ours")))
        })
    }
}

/// The first key after all that start with `prefix`.
fn prefix_end(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if let Some(next) = last.checked_add(1) {
            prefix.push(next);
            return prefix;
        }
    }
    // Nothing sorts after it; for etcd, that is this.
    vec![0]
}

/// A lease's number as etcd has it.
pub(super) fn lease_number(lease: LeaseId) -> Result<i64, StoreError> {
    signed("a lease", lease.0)
}

fn signed(what: &str, number: u64) -> Result<i64, StoreError> {
    let invalid = |_| StoreError::Invalid(format!("{number} is not {what}"));
    i64::try_from(number).map_err(invalid)
}

/// A revision as the trait has it.
pub(super) fn revision(number: i64) -> Revision {
    Revision(u64::try_from(number).unwrap_or(0))
}

/// Who answered, and at which revision.
pub(super) fn sender(header: Option<&ResponseHeader>) -> Result<Sender, Failure> {
    let header = header.ok_or_else(|| Failure::Lost("an answer has no header".to_owned()))?;
    Ok(Sender { cluster: header.cluster_id(), revision: revision(header.revision()) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_range_holds_exactly_the_keys_of_its_prefix_after_a_place(
            prefix in "[a-c/é]{0,3}",
            after in proptest::option::of("[a-c/é]{0,4}"),
            key in "[a-c/é]{0,5}",
        ) {
            let root = Root("/geminga/x/".to_owned());
            let (start, end) = root.range(&prefix, after.as_deref());
            let inside = (start..end).contains(&root.key(&key));
            let behind = after.is_none_or(|after| after < prefix || key > after);
            prop_assert_eq!(inside, key.starts_with(&prefix) && behind);
        }
    }

    #[test]
    fn the_end_of_a_prefix_carries_over() {
        assert_eq!(prefix_end(b"a/".to_vec()), b"a0");
        assert_eq!(prefix_end(vec![b'a', 0xff, 0xff]), b"b");
        assert_eq!(prefix_end(vec![0xff]), vec![0]);
    }

    #[test]
    fn numbers_that_etcd_does_not_have_are_refused() {
        let root = Root("/".to_owned());
        let never = Compare::Unchanged("a".to_owned(), Revision(u64::MAX));
        let refused = root.txn(&Txn::default().when(never));
        assert!(matches!(refused, Err(StoreError::Invalid(_))));
        let lease = Txn::default().put_leased("a", "v", LeaseId(u64::MAX));
        assert!(matches!(root.txn(&lease), Err(StoreError::Invalid(_))));
    }

    #[test]
    fn foreign_keys_are_not_taken_for_ours() {
        let root = Root("/geminga/x/".to_owned());
        assert_eq!(root.strip(b"/geminga/x/a/b"), Ok("a/b".to_owned()));
        for key in [&b"/geminga/y/a"[..], b"", b"/geminga/x/\xff"] {
            assert!(matches!(root.strip(key), Err(Failure::Final(StoreError::Corrupt(_)))));
        }
    }
}
