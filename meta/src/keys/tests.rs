//! Golden forms of every key, and what is not a key.

use geminga_proto::topic_name::MAX_TOPIC_BYTES;
use proptest::prelude::*;

use super::*;
use crate::bundle::HashRange;
use crate::store::MAX_KEY_BYTES;

fn namespace() -> NamespaceName {
    NamespaceName::new("acme", "payments").expect("valid")
}

fn bundle_id() -> BundleId {
    BundleId { namespace: namespace(), range: HashRange { first: 0x4000_0000, last: 0x7fff_ffff } }
}

/// Every kind with its golden text. The match makes a new kind without a golden text an error.
fn golden() -> Vec<(Key, &'static str)> {
    let tenant = TenantName::new("acme").expect("valid");
    let topic = TopicName::new(namespace(), "orders-partition-3").expect("valid");
    let bookie = BookieId::new("bookie-1").expect("valid");
    let broker = BrokerId::new("broker-1").expect("valid");
    let number = ManagedLedgerId(0x1f);
    let keys = vec![
        (Key::Cluster, "cluster"),
        (Key::Tenant(tenant), "tenants/acme"),
        (Key::Namespace(namespace()), "namespaces/acme/payments"),
        (Key::Topic(topic), "topics/acme/payments/orders-partition-3"),
        (Key::ManagedLedger(number), "managed-ledgers/000000000000001f"),
        (
            Key::ManagedLedgerChunk(number, 2),
            "managed-ledgers/000000000000001f/chunks/0000000000000002",
        ),
        (Key::Ledger(LedgerId::MAX), "ledgers/7fffffffffffffff"),
        (Key::Bundle(bundle_id()), "bundles/acme/payments/40000000-7fffffff"),
        (Key::Ownership(bundle_id()), "ownership/acme/payments/40000000-7fffffff"),
        (Key::Deletion(namespace()), "deletions/acme/payments"),
        (Key::Broker(broker), "brokers/broker-1"),
        (Key::Bookie(bookie.clone()), "bookies/bookie-1"),
        (Key::Cookie(bookie.clone()), "cookies/bookie-1"),
        (Key::Counter(Counter::Ledgers), "counters/ledgers"),
        (Key::Counter(Counter::ManagedLedgers), "counters/managed-ledgers"),
        (Key::Counter(Counter::TopicIncarnations), "counters/topic-incarnations"),
        (Key::Repair(LedgerId(0x1f)), "repairs/000000000000001f"),
        (Key::RepairLock(LedgerId(0x1f)), "repair-locks/000000000000001f"),
        (Key::Drain(bookie), "drains/bookie-1"),
        (Key::Election(Office::Auditor), "election/auditor"),
    ];
    for (key, _) in &keys {
        match key {
            Key::Cluster
            | Key::Tenant(_)
            | Key::Namespace(_)
            | Key::Topic(_)
            | Key::ManagedLedger(_)
            | Key::ManagedLedgerChunk(..)
            | Key::Ledger(_)
            | Key::Bundle(_)
            | Key::Ownership(_)
            | Key::Deletion(_)
            | Key::Broker(_)
            | Key::Bookie(_)
            | Key::Cookie(_)
            | Key::Counter(_)
            | Key::Repair(_)
            | Key::RepairLock(_)
            | Key::Drain(_)
            | Key::Election(_) => {}
        }
    }
    let kinds: std::collections::HashSet<_> =
        keys.iter().map(|(key, _)| std::mem::discriminant(key)).collect();
    assert_eq!(kinds.len(), 18, "a kind has no golden text");
    keys
}

#[test]
fn every_key_is_written_as_documented_and_read_back() {
    for (key, text) in golden() {
        assert_eq!(key.to_string(), text);
        assert_eq!(Key::parse(text), Some(key), "{text}");
    }
}

#[test]
fn the_prefixes_hold_what_they_are_for() {
    let tenant = TenantName::new("acme").expect("valid");
    assert_eq!(root(&ClusterId::new("c1").expect("valid")), "/geminga/c1/");
    assert_eq!(namespaces_of(&tenant), "namespaces/acme/");
    assert_eq!(topics_of(&namespace()), "topics/acme/payments/");
    assert_eq!(bundles_of(&namespace()), "bundles/acme/payments/");
    assert_eq!(ownership_of(&namespace()), "ownership/acme/payments/");
    let id = ManagedLedgerId(0x1f);
    assert_eq!(managed_ledger_chunks_of(id), "managed-ledgers/000000000000001f/chunks/");
    assert!(managed_ledger_chunk(id, 7).starts_with(&managed_ledger_chunks_of(id)));
    for (key, text) in golden() {
        let prefix = match key {
            Key::Cluster => CLUSTER,
            Key::Tenant(_) => TENANTS,
            Key::Namespace(_) => NAMESPACES,
            Key::Topic(_) => TOPICS,
            Key::ManagedLedger(_) | Key::ManagedLedgerChunk(..) => MANAGED_LEDGERS,
            Key::Ledger(_) => LEDGERS,
            Key::Bundle(_) => BUNDLES,
            Key::Ownership(_) => OWNERSHIP,
            Key::Deletion(_) => DELETIONS,
            Key::Broker(_) => BROKERS,
            Key::Bookie(_) => BOOKIES,
            Key::Cookie(_) => COOKIES,
            Key::Counter(_) => COUNTERS,
            Key::Repair(_) => REPAIRS,
            Key::RepairLock(_) => REPAIR_LOCKS,
            Key::Drain(_) => DRAINS,
            Key::Election(_) => ELECTION,
        };
        assert!(text.starts_with(prefix), "{text}");
    }
}

#[test]
fn what_is_not_written_by_this_build_is_not_read() {
    for text in [
        "",
        "/",
        "cluster/",
        "clusters",
        "tenants",
        "tenants/",
        "tenants/a/b",
        "tenants/ä",
        "namespaces/acme",
        "namespaces/acme/",
        "namespaces/a/b/c",
        "topics/acme/payments",
        "topics/acme/payments/",
        "topics/a/b/c/d",
        "ledgers/1f",
        "ledgers/000000000000001F",
        "ledgers/000000000000001f0",
        "ledgers/8000000000000000",
        "ledgers/+00000000000001f",
        "managed-ledgers/000000000000001f/",
        "managed-ledgers/000000000000001f/chunks/",
        "managed-ledgers/000000000000001f/chunks/2",
        "managed-ledgers/1f/chunks/0000000000000002",
        "bundles/acme/payments",
        "bundles/acme/payments/0-1",
        "ownership/acme/00000000-ffffffff",
        "brokers/",
        "brokers/a/b",
        "counters/other",
        "counters/",
        "election/",
        "election/king",
        "repairs/1f",
        "repair-locks/",
        "drains/a/b",
        "schemas/acme/payments/orders",
        "elsewhere/x",
        "tenants/..",
    ] {
        assert_eq!(Key::parse(text), None, "{text:?}");
    }
}

#[test]
fn the_longest_names_still_fit_into_a_key() {
    let part = "x".repeat(geminga_proto::topic_name::MAX_PART_BYTES);
    let namespace = NamespaceName::new(&part, &part).expect("valid");
    let name = TopicName::new(namespace, &"é".repeat(MAX_TOPIC_BYTES / 2)).expect("valid");
    assert!(topic(&name).len() <= MAX_KEY_BYTES, "{}", topic(&name).len());
    assert_eq!(Key::parse(&topic(&name)), Some(Key::Topic(name)));
}

proptest! {
    #[test]
    fn keys_sort_as_their_numbers_do(left in 0..=LedgerId::MAX.0, right in 0..=LedgerId::MAX.0) {
        let (one, two) = (LedgerId(left), LedgerId(right));
        prop_assert_eq!(ledger(one).cmp(&ledger(two)), one.cmp(&two));
        let (one, two) = (ManagedLedgerId(left), ManagedLedgerId(right));
        let keys = managed_ledger(one).cmp(&managed_ledger(two));
        prop_assert_eq!(keys, one.cmp(&two));
        let chunks = managed_ledger_chunk(one, left).cmp(&managed_ledger_chunk(one, right));
        prop_assert_eq!(chunks, left.cmp(&right));
    }

    #[test]
    fn no_topic_name_leaves_its_namespace(local in "\\PC{1,40}") {
        if let Ok(name) = TopicName::new(namespace(), &local) {
            let key = topic(&name);
            prop_assert!(key.starts_with(&topics_of(&namespace())));
            prop_assert_eq!(key.matches('/').count(), 3);
            prop_assert_eq!(Key::parse(&key), Some(Key::Topic(name)));
        }
    }

    #[test]
    fn reading_a_key_never_panics_and_what_is_read_is_written_the_same(text in "\\PC{0,60}") {
        if let Some(key) = Key::parse(&text) {
            prop_assert_eq!(key.to_string(), text);
        }
    }

    #[test]
    fn what_looks_like_a_key_is_read_only_in_the_form_it_is_written(
        prefix in prop::sample::select(vec![
            TENANTS, NAMESPACES, TOPICS, MANAGED_LEDGERS, LEDGERS, BUNDLES, OWNERSHIP, BROKERS,
            BOOKIES, COOKIES, COUNTERS, REPAIRS, REPAIR_LOCKS, DRAINS, ELECTION,
        ]),
        rest in "[a-f0-9/.A-F-]{0,40}",
    ) {
        let text = format!("{prefix}{rest}");
        if let Some(key) = Key::parse(&text) {
            prop_assert_eq!(key.to_string(), text);
        }
    }
}
