//! What `geminga admin meta dump` shows: every key of the store with its record as JSON.
//!
//! Each entry is `{"key", "revision", "kind", "record"}`; a record that this build can't read
//! comes as `{"key", "revision", "kind", "error", "hex"}`, with kind `unknown` if not even the key
//! is known. Nothing that gives access is shown (see each record's `to_json`).

use serde_json::{Value, json};

use crate::keys::Key;
use crate::record::{
    BookieRecord, BrokerRecord, BundleRecord, ClusterRecord, CookieRecord, CounterRecord,
    DrainRecord, HolderRecord, LedgerRecord, ManagedLedgerChunk, ManagedLedgerRecord,
    NamespaceRecord, OwnershipRecord, Record, RepairRecord, TenantRecord, TopicRecord,
};
use crate::store::{KeyValue, MetadataStore, StoreError};

/// A page of the dump.
#[derive(Debug, Clone, PartialEq)]
pub struct DumpPage {
    /// One JSON object for each key, in key order.
    pub entries: Vec<Value>,
    /// Go on after this key; `None`: this was the last page.
    pub next: Option<String>,
}

/// Dumps the keys that start with `prefix` (empty: all) and sort after `after`, at most `limit`.
///
/// # Errors
/// [`StoreError`] if the store can't be read.
pub async fn page(
    store: &dyn MetadataStore,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<DumpPage, StoreError> {
    let page = store.range(prefix, after, limit).await?;
    let next = page.pairs.last().filter(|_| page.more).map(|pair| pair.key.clone());
    Ok(DumpPage { entries: page.pairs.iter().map(entry).collect(), next })
}

/// One pair as JSON.
#[must_use]
pub fn entry(pair: &KeyValue) -> Value {
    match Key::parse(&pair.key) {
        None => unreadable(pair, "unknown", "the key is of no known kind"),
        Some(Key::Cluster) => show::<ClusterRecord>(pair),
        Some(Key::Tenant(_)) => show::<TenantRecord>(pair),
        Some(Key::Namespace(_)) => show::<NamespaceRecord>(pair),
        Some(Key::Topic(_)) => show::<TopicRecord>(pair),
        Some(Key::ManagedLedger(_)) => show::<ManagedLedgerRecord>(pair),
        Some(Key::ManagedLedgerChunk(..)) => show::<ManagedLedgerChunk>(pair),
        Some(Key::Ledger(_)) => show::<LedgerRecord>(pair),
        Some(Key::Bundle(_)) => show::<BundleRecord>(pair),
        Some(Key::Ownership(_) | Key::Deletion(_)) => show::<OwnershipRecord>(pair),
        Some(Key::Broker(_)) => show::<BrokerRecord>(pair),
        Some(Key::Bookie(_)) => show::<BookieRecord>(pair),
        Some(Key::Cookie(_)) => show::<CookieRecord>(pair),
        Some(Key::Counter(_)) => show::<CounterRecord>(pair),
        Some(Key::Repair(_)) => show::<RepairRecord>(pair),
        Some(Key::Drain(_)) => show::<DrainRecord>(pair),
        Some(Key::RepairLock(_) | Key::Election(_)) => show::<HolderRecord>(pair),
    }
}

fn show<R: Record>(pair: &KeyValue) -> Value {
    match R::decode(&pair.value) {
        Ok((record, _)) => json!({
            "key": pair.key,
            "revision": pair.modified.0,
            "kind": R::KIND,
            "record": record.to_json(),
        }),
        Err(error) => unreadable(pair, R::KIND, &error.to_string()),
    }
}

fn unreadable(pair: &KeyValue, kind: &str, error: &str) -> Value {
    // A ledger's bytes hold its token, which is not shown, readable or not.
    let hidden = kind == LedgerRecord::KIND;
    let hex = (!hidden).then(|| hex(&pair.value));
    json!({
        "key": pair.key,
        "revision": pair.modified.0,
        "kind": kind,
        "error": error,
        "hex": hex,
    })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string can't fail.
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use bytes::Bytes;
    use geminga_proto::env::{ManualClock, SeededRandom};

    use crate::keys;
    use crate::record::Nonce;
    use crate::store::{MemoryStore, Revision, Txn};

    fn pair(key: &str, value: impl Into<Bytes>) -> KeyValue {
        KeyValue { key: key.to_owned(), value: value.into(), modified: Revision(3), lease: None }
    }

    #[test]
    fn what_cannot_be_read_is_shown_as_hex_with_the_reason() {
        let unknown = entry(&pair("elsewhere/x", vec![0xab, 0x01]));
        assert_eq!(unknown["kind"], "unknown");
        assert_eq!((&unknown["hex"], &unknown["revision"]), (&json!("ab01"), &json!(3)));
        let broken = entry(&pair("tenants/acme", vec![0xff]));
        assert_eq!((&broken["kind"], &broken["hex"]), (&json!("tenant"), &json!("ff")));
        assert!(broken["error"].as_str().is_some_and(|error| error.contains("decoded")));
        let ledger = entry(&pair("ledgers/0000000000000001", vec![0xff]));
        assert_eq!((&ledger["kind"], &ledger["hex"]), (&json!("ledger"), &Value::Null));
    }

    #[tokio::test]
    async fn the_pages_of_a_dump_give_every_key_once_and_in_order() {
        let store = MemoryStore::new(Arc::new(ManualClock::default()));
        let random = SeededRandom::new(1);
        for name in ["a", "b", "c", "d", "e"] {
            let key = keys::tenant(&name.parse().expect("valid"));
            let value = TenantRecord { created_ms: 7 }.encode(Nonce::new(&random)).expect("valid");
            store.txn(Txn::default().put(key, value)).await.expect("written");
        }
        let (mut after, mut seen) = (None, Vec::new());
        loop {
            let page = page(&store, "", after.as_deref(), 2).await.expect("read");
            seen.extend(page.entries);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let keys: Vec<&str> = seen.iter().filter_map(|entry| entry["key"].as_str()).collect();
        assert_eq!(keys, ["tenants/a", "tenants/b", "tenants/c", "tenants/d", "tenants/e"]);
        let first = json!({
            "key": "tenants/a", "revision": 1, "kind": "tenant", "record": { "created_ms": 7 },
        });
        assert_eq!(seen[0], first);
    }
}
