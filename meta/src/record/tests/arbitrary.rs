//! Arbitrary valid records of every kind.

use geminga_proto::id::{
    BookieId, BrokerId, ClusterId, EntryId, Epoch, LedgerId, LedgerToken, ManagedLedgerId,
    MessageIndex, Position, TopicIncarnation,
};
use geminga_proto::topic_name::{NamespaceName, TopicName};
use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;

use crate::bundle::{BundleId, HashRange};
use crate::record::{
    BookieRecord, BrokerRecord, BundleRecord, ChunkLink, ClosedLedger, ClusterRecord, CookieRecord,
    CounterRecord, DrainKind, DrainRecord, Fragment, HolderRecord, LedgerLink, LedgerOwner,
    LedgerRecord, LedgerState, ManagedLedgerChunk, ManagedLedgerRecord, NamespacePolicies,
    NamespaceRecord, OwnershipRecord, Record, RepairClaim, RepairReason, RepairRecord, SessionId,
    Shard, TenantRecord, TopicRecord,
};
use crate::store::LeaseId;

/// Decodes bytes as the kind that a strategy makes; what comes of it doesn't matter.
pub(super) fn decode<S: Strategy<Value: Record>>(_kind: fn() -> S, bytes: &[u8]) {
    if let Ok((record, _)) = S::Value::decode(bytes) {
        assert_eq!(record.validate(), Ok(()), "decoded, but invalid");
    }
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0..300_u64, 0..=i64::MAX as u64]
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,20}"
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,30}"
}

fn bookie_id() -> impl Strategy<Value = BookieId> {
    name().prop_map(|name| BookieId::new(&name).expect("valid"))
}

fn broker_id() -> impl Strategy<Value = BrokerId> {
    name().prop_map(|name| BrokerId::new(&name).expect("valid"))
}

fn cluster_id() -> impl Strategy<Value = ClusterId> {
    name().prop_map(|name| ClusterId::new(&name).expect("valid"))
}

fn namespace_name() -> impl Strategy<Value = NamespaceName> {
    (name(), name()).prop_map(|(tenant, name)| NamespaceName::new(&tenant, &name).expect("valid"))
}

fn topic_name() -> impl Strategy<Value = TopicName> {
    (namespace_name(), "[a-zé日:=+-][a-z0-9é日:=+.]{0,20}")
        .prop_map(|(namespace, local)| TopicName::new(namespace, &local).expect("valid"))
}

fn range() -> impl Strategy<Value = HashRange> {
    (any::<u32>(), any::<u32>())
        .prop_map(|(one, two)| HashRange { first: one.min(two), last: one.max(two) })
}

fn bundle_id() -> impl Strategy<Value = BundleId> {
    (namespace_name(), range()).prop_map(|(namespace, range)| BundleId { namespace, range })
}

pub(super) fn tenant() -> impl Strategy<Value = TenantRecord> {
    any::<u64>().prop_map(|created_ms| TenantRecord { created_ms })
}

pub(super) fn cluster() -> impl Strategy<Value = ClusterRecord> {
    (cluster_id(), 1..=u32::MAX, any::<u64>()).prop_map(
        |(cluster_id, format_version, created_ms)| ClusterRecord {
            cluster_id,
            format_version,
            created_ms,
        },
    )
}

pub(super) fn counter() -> impl Strategy<Value = CounterRecord> {
    number().prop_map(|next| CounterRecord { next })
}

pub(super) fn cookie() -> impl Strategy<Value = CookieRecord> {
    (bookie_id(), cluster_id(), 1..=u64::MAX).prop_map(|(bookie_id, cluster_id, instance)| {
        CookieRecord { bookie_id, cluster_id, instance }
    })
}

pub(super) fn bookie() -> impl Strategy<Value = BookieRecord> {
    let highest = (0..LedgerId::MAX.0).prop_map(LedgerId);
    let told = (any::<u64>(), any::<u64>(), any::<bool>(), text(), any::<u64>(), highest);
    (bookie_id(), text(), text(), any::<bool>(), any::<u64>(), any::<u64>(), told).prop_map(
        |(bookie_id, address, zone, writable, one, two, told)| BookieRecord {
            bookie_id,
            address,
            zone,
            writable,
            total_bytes: one.max(two),
            free_bytes: one.min(two),
            poisoned: !writable && told.2,
            session: told.0,
            lease_ttl_ms: told.1,
            release: told.3,
            max_entry_bytes: told.4,
            highest_ledger: told.5,
        },
    )
}

pub(super) fn broker() -> impl Strategy<Value = BrokerRecord> {
    let urls = (text(), text(), text());
    let lease = (any::<u64>(), any::<u64>(), any::<u64>());
    let weight = 1..=BrokerRecord::MAX_WEIGHT;
    (broker_id(), urls, text(), any::<u64>(), lease, any::<bool>(), weight).prop_map(
        |(broker_id, urls, release, started_ms, lease, draining, weight)| BrokerRecord {
            broker_id,
            service_url: urls.0,
            admin_url: urls.1,
            release,
            started_ms,
            session: SessionId(lease.0),
            lease: LeaseId(lease.1),
            lease_ttl_ms: lease.2,
            draining,
            weight,
            place: urls.2,
        },
    )
}

pub(super) fn ownership() -> impl Strategy<Value = OwnershipRecord> {
    (broker_id(), text(), text(), any::<u64>()).prop_map(
        |(broker_id, service_url, admin_url, session)| OwnershipRecord {
            broker_id,
            service_url,
            admin_url,
            session: SessionId(session),
        },
    )
}

pub(super) fn bundle() -> impl Strategy<Value = BundleRecord> {
    (number(), btree_set(number(), 0..6), any::<prop::sample::Index>(), option::of(number()))
        .prop_map(|(epoch, ledgers, which, entry)| {
            let state_ledgers: Vec<LedgerId> = ledgers.into_iter().map(LedgerId).collect();
            let ledger = (!state_ledgers.is_empty()).then(|| *which.get(&state_ledgers));
            let snapshot = ledger.zip(entry);
            let snapshot = snapshot.map(|(ledger, entry)| Position::new(ledger, EntryId(entry)));
            BundleRecord { epoch: Epoch(epoch), state_ledgers, snapshot }
        })
}

pub(super) fn namespace() -> impl Strategy<Value = NamespaceRecord> {
    let quorums = option::of((1..9_u32, 0..9_u32));
    let policies = (option::of(any::<u64>()), option::of(any::<u64>()), any::<Option<bool>>());
    (any::<u64>(), btree_set(1..=u32::MAX, 0..8), policies, quorums).prop_map(
        |(created_ms, bounds, (retention_ms, retention_bytes, auto_topic_creation), quorums)| {
            NamespaceRecord {
                created_ms,
                bundle_bounds: std::iter::once(0).chain(bounds).collect(),
                policies: NamespacePolicies {
                    retention_ms,
                    retention_bytes,
                    auto_topic_creation,
                    write_quorum: quorums.map(|(ack, more)| ack + more),
                    ack_quorum: quorums.map(|(ack, _)| ack),
                },
            }
        },
    )
}

pub(super) fn topic_record() -> impl Strategy<Value = TopicRecord> {
    (any::<u64>(), number(), btree_set(1..=u32::MAX, 0..4), number()).prop_map(
        |(created_ms, incarnation, cuts, managed_ledger)| {
            let firsts: Vec<u32> = std::iter::once(0).chain(cuts.iter().copied()).collect();
            let lasts = cuts.iter().map(|cut| cut - 1).chain([u32::MAX]);
            let shard = |(first, last)| Shard {
                keys: HashRange { first, last },
                managed_ledger: ManagedLedgerId(managed_ledger),
            };
            let shards = firsts.into_iter().zip(lasts).map(shard).collect();
            TopicRecord { created_ms, incarnation: TopicIncarnation(incarnation), shards }
        },
    )
}

pub(super) fn ledger() -> impl Strategy<Value = LedgerRecord> {
    let state = prop_oneof![
        Just(LedgerState::Open),
        Just(LedgerState::InRecovery),
        (option::of(number()), number())
            .prop_map(|(last, bytes)| LedgerState::Closed { last_entry: last.map(EntryId), bytes }),
    ];
    let owner = prop_oneof![
        number().prop_map(|id| LedgerOwner::ManagedLedger(ManagedLedgerId(id))),
        bundle_id().prop_map(LedgerOwner::StateLog),
    ];
    let ensembles = (1..5_usize).prop_flat_map(|quorum| {
        let ensemble = btree_set(bookie_id(), quorum);
        (Just(quorum), vec(ensemble, 1..4), btree_set(1..=i64::MAX as u64, 3))
    });
    (1..=u64::MAX, state, ensembles, any::<u64>(), any::<bool>(), owner).prop_map(
        |(token, state, (quorum, ensembles, starts), created_ms, under_replicated, owner)| {
            let starts = std::iter::once(0).chain(starts).map(EntryId);
            let fragment = |(first_entry, bookies): (_, std::collections::BTreeSet<_>)| Fragment {
                first_entry,
                bookies: bookies.into_iter().collect(),
            };
            let write_quorum = u32::try_from(quorum).expect("small");
            LedgerRecord {
                token: LedgerToken(token),
                state,
                write_quorum,
                ack_quorum: 1 + u32::try_from(token).unwrap_or(0) % write_quorum,
                fragments: starts.zip(ensembles).map(fragment).collect(),
                created_ms,
                under_replicated,
                owner,
            }
        },
    )
}

/// Closed ledgers whose ids and message indexes rise, and the index that follows.
fn closed_links() -> impl Strategy<Value = (Vec<LedgerLink>, u64)> {
    let step = (1..1_000_u64, 0..1_000_u64, 0..50_u64, 0..1_000_u64, number(), any::<u64>());
    vec(step, 0..6).prop_map(|steps| {
        let (mut ledger, mut index) = (100, 0);
        let mut links = Vec::new();
        for (up, gap, entries, more, bytes, closed_ms) in steps {
            ledger += up;
            index += gap;
            let messages = entries + more;
            let first_index = MessageIndex(index);
            let closed = ClosedLedger { entries, bytes, first_index, messages, closed_ms };
            links.push(LedgerLink { ledger: LedgerId(ledger), closed: Some(closed) });
            index += messages;
        }
        (links, index)
    })
}

pub(super) fn chunk() -> impl Strategy<Value = ManagedLedgerChunk> {
    closed_links()
        .prop_filter("a chunk is not empty", |(links, _)| !links.is_empty())
        .prop_map(|(ledgers, _)| ManagedLedgerChunk { ledgers })
}

pub(super) fn managed_ledger() -> impl Strategy<Value = ManagedLedgerRecord> {
    let chunks = vec((1..9_u64, 1..9_u64), 0..5);
    let flags = (any::<bool>(), any::<bool>());
    (topic_name(), number(), chunks, closed_links(), 0..3_u64, flags, any::<u64>()).prop_map(
        |(topic, epoch, chunks, (mut ledgers, next), open, flags, last_timestamp_ms)| {
            let (mut number, mut ledger) = (0, 0);
            let mut links = Vec::new();
            for (up, count) in chunks {
                number += up;
                let first_ledger = LedgerId(ledger + 1);
                ledger += count;
                links.push(ChunkLink { number, first_ledger, last_ledger: LedgerId(ledger) });
            }
            let last = ledgers.last().map_or(100, |link| link.ledger.0);
            let open =
                (1..=open).map(|up| LedgerLink { ledger: LedgerId(last + up), closed: None });
            ledgers.extend(open);
            ManagedLedgerRecord {
                topic,
                epoch: Epoch(epoch),
                chunks: links,
                ledgers,
                next_index: MessageIndex(next),
                last_timestamp_ms,
                terminated: flags.0,
                had_subscription: flags.1,
            }
        },
    )
}

pub(super) fn holder() -> impl Strategy<Value = HolderRecord> {
    (text(), any::<u64>())
        .prop_map(|(holder, session)| HolderRecord { holder, session: SessionId(session) })
}

pub(super) fn drain() -> impl Strategy<Value = DrainRecord> {
    let kind = prop_oneof![Just(DrainKind::Decommission), Just(DrainKind::Lost)];
    (bookie_id(), kind, any::<u64>()).prop_map(|(bookie_id, kind, started_ms)| DrainRecord {
        bookie_id,
        kind,
        started_ms,
    })
}

pub(super) fn repair() -> impl Strategy<Value = RepairRecord> {
    let reason = prop_oneof![
        bookie_id().prop_map(RepairReason::Missing),
        bookie_id().prop_map(RepairReason::Draining),
        (bookie_id(), number(), number()).prop_map(|(bookie, one, two)| RepairReason::Damaged {
            bookie,
            first: EntryId(one.min(two)),
            last: EntryId(one.max(two)),
        }),
        Just(RepairReason::AckQuorumOnly),
        Just(RepairReason::Placement),
    ];
    let claim = (1..=u64::MAX, text(), btree_set(bookie_id(), 0..4), any::<u64>()).prop_map(
        |(id, worker, targets, claimed_ms)| {
            let targets = targets.into_iter().collect();
            RepairClaim { id, worker, targets, claimed_ms }
        },
    );
    let ages = (any::<u64>(), any::<u32>());
    (vec(reason, 1..6), ages, text(), option::of(claim)).prop_map(
        |(reasons, (queued_ms, attempts), last_error, claim)| {
            let mut record = RepairRecord::new(&reasons, queued_ms);
            (record.attempts, record.last_error, record.claim) = (attempts, last_error, claim);
            record
        },
    )
}
