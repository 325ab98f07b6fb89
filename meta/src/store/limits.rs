//! What a transaction and a key may be, checked by every backend before it does anything, so that
//! what passes in standalone passes in a cluster.

use std::collections::BTreeSet;

use super::{Compare, MAX_TXN_BYTES, MAX_TXN_OPS, Op, StoreError, Txn};

/// Longest key in bytes.
pub const MAX_KEY_BYTES: usize = 1_024;

/// Refuses what [`super::MetadataStore::txn`] promises to refuse.
pub(super) fn check_txn(txn: &Txn) -> Result<(), StoreError> {
    for (what, count) in [("compares", txn.compares.len()), ("operations", txn.ops.len())] {
        if count > MAX_TXN_OPS {
            return Err(StoreError::TooLarge(format!(
                "{count} {what} in one transaction, at most {MAX_TXN_OPS} are allowed"
            )));
        }
    }
    let mut bytes = 0;
    for compare in &txn.compares {
        let (Compare::Absent(key) | Compare::Present(key) | Compare::Unchanged(key, _)) = compare;
        check_key(key)?;
        bytes += key.len();
    }
    let mut written = BTreeSet::new();
    for op in &txn.ops {
        let (key, value_bytes) = match op {
            Op::Put { key, value, .. } => (key, value.len()),
            Op::Delete(key) => (key, 0),
        };
        check_key(key)?;
        bytes += key.len() + value_bytes;
        if !written.insert(key.as_str()) {
            let why = format!("key {key:?} is written twice in one transaction");
            return Err(StoreError::Invalid(why));
        }
    }
    if bytes > MAX_TXN_BYTES {
        return Err(StoreError::TooLarge(format!(
            "{bytes} bytes in one transaction, at most {MAX_TXN_BYTES} are allowed"
        )));
    }
    Ok(())
}

/// Refuses an empty key, one that starts with `/`, has a control character, or is too long.
pub(super) fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(StoreError::Invalid("a key is empty".to_owned()));
    }
    check_prefix(key)
}

/// As [`check_key`], but the empty prefix, which means every key, is allowed.
pub(super) fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    let cut = || prefix.chars().take(80).collect::<String>();
    if prefix.len() > MAX_KEY_BYTES {
        let (bytes, key) = (prefix.len(), cut());
        return Err(StoreError::TooLarge(format!(
            "key {key:?}… has {bytes} bytes, at most {MAX_KEY_BYTES} are allowed"
        )));
    }
    if prefix.starts_with('/') || prefix.chars().any(char::is_control) {
        let key = cut();
        return Err(StoreError::Invalid(format!(
            "key {key:?} starts with '/' or has a control character"
        )));
    }
    Ok(())
}
