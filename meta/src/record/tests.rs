//! Golden bytes and a round trip of every kind; what is not a record; what an idle topic costs.

mod arbitrary;

use geminga_proto::env::SeededRandom;
use geminga_proto::id::{
    BookieId, BrokerId, ClusterId, EntryId, Epoch, LedgerId, LedgerToken, ManagedLedgerId,
    MessageIndex, Position, TopicIncarnation,
};
use geminga_proto::topic_name::{NamespaceName, TopicName};
use proptest::prelude::*;

use super::*;
use crate::bundle::{BundleId, HashRange};
use crate::keys;
use crate::store::LeaseId;

const NONCE: Nonce = Nonce(0x0807_0605_0403_0201);

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of every kind of stamp: field 1, 11 bytes: version 1, the nonce as fixed64.
const STAMP: &str = "0a0b0801110102030405060708";

fn assert_golden<R: Record>(record: &R, golden: &str) {
    let bytes = record.encode(NONCE).expect("valid");
    let golden = format!("{STAMP}{golden}");
    assert_eq!(hex(&bytes), golden, "{}", R::KIND);
    assert_eq!(R::decode(&bytes), Ok((record.clone(), NONCE)));
}

fn ids() -> (ClusterId, BookieId, BrokerId) {
    let cluster = ClusterId::new("c1").expect("valid");
    (cluster, BookieId::new("b1").expect("valid"), BrokerId::new("k1").expect("valid"))
}

fn topic() -> TopicName {
    TopicName::new(NamespaceName::new("t", "n").expect("valid"), "x").expect("valid")
}

#[test]
fn the_bytes_of_small_records_never_change() {
    let (cluster_id, bookie_id, broker_id) = ids();
    let cluster =
        ClusterRecord { cluster_id: cluster_id.clone(), format_version: 1, created_ms: 7 };
    assert_golden(&cluster, "120263311801 2007".replace(' ', "").as_str());
    assert_golden(&TenantRecord { created_ms: 300 }, "10ac02");
    assert_golden(&CounterRecord { next: 1_001 }, "10e907");
    let cookie = CookieRecord { bookie_id: bookie_id.clone(), cluster_id, instance: 0x0102 };
    assert_golden(&cookie, "120262311a026331210201000000000000");
    let bookie = BookieRecord {
        bookie_id,
        address: "h:1".to_owned(),
        zone: "z".to_owned(),
        writable: true,
        total_bytes: 2,
        free_bytes: 1,
        poisoned: false,
        session: 0,
        lease_ttl_ms: 0,
        release: String::new(),
        max_entry_bytes: 0,
        highest_ledger: LedgerId(0),
    };
    assert_golden(&bookie, "120262311a03683a3122017a280130023801");
    let told = BookieRecord {
        writable: false,
        poisoned: true,
        session: 3,
        lease_ttl_ms: 300,
        release: "r".to_owned(),
        ..bookie
    };
    let bytes = "120262311a03683a3122017a300238014001 490300000000000000 50ac02 5a0172";
    assert_golden(&told, &bytes.replace(' ', ""));
    let more = BookieRecord { max_entry_bytes: 300, highest_ledger: LedgerId(5), ..told };
    assert_golden(&more, &format!("{bytes} 60ac02 6805").replace(' ', ""));
    let (service_url, admin_url) = ("s".to_owned(), "a".to_owned());
    let ownership = OwnershipRecord {
        broker_id: broker_id.clone(),
        service_url: service_url.clone(),
        admin_url: admin_url.clone(),
        session: SessionId(0),
    };
    assert_golden(&ownership, "12026b311a0173220161");
    let session = SessionId(0x0102);
    let ownership = OwnershipRecord { session, ..ownership };
    assert_golden(&ownership, "12026b311a0173220161290201000000000000");
    let broker = BrokerRecord {
        broker_id,
        service_url,
        admin_url,
        release: "r".to_owned(),
        started_ms: 9,
        session: SessionId(0),
        lease: LeaseId(0),
        lease_ttl_ms: 0,
        draining: false,
        weight: BrokerRecord::DEFAULT_WEIGHT,
        place: String::new(),
    };
    assert_golden(&broker, "12026b311a01732201612a01723009");
    let lease = LeaseId(3);
    let broker =
        BrokerRecord { session, lease, lease_ttl_ms: 5, draining: true, weight: 7, ..broker };
    let added = "390201000000000000400348055001 5807".replace(' ', "");
    assert_golden(&broker, &format!("12026b311a01732201612a01723009{added}"));
    let broker = BrokerRecord { place: "p".to_owned(), ..broker };
    assert_golden(&broker, &format!("12026b311a01732201612a01723009{added}620170"));
}

#[test]
fn the_bytes_of_records_with_lists_never_change() {
    let namespace = NamespaceRecord {
        created_ms: 5,
        bundle_bounds: vec![0, 0x8000_0000],
        policies: NamespacePolicies {
            retention_ms: Some(0),
            retention_bytes: None,
            auto_topic_creation: Some(false),
            write_quorum: Some(3),
            ack_quorum: Some(2),
        },
    };
    assert_golden(&namespace, "10051a0600808080800822080800180020032802");
    let topic_record = TopicRecord::plain(6, TopicIncarnation(4), ManagedLedgerId(9));
    assert_golden(&topic_record, "1006180422081 0ffffffff0f1809".replace(' ', "").as_str());
    let closed = ClosedLedger {
        entries: 2,
        bytes: 100,
        first_index: MessageIndex(10),
        messages: 3,
        closed_ms: 8,
    };
    let links = vec![LedgerLink { ledger: LedgerId(1), closed: Some(closed) }];
    let chunk = ManagedLedgerChunk { ledgers: links.clone() };
    assert_golden(&chunk, "120e0801120a08021064180a20032808");
    let chunk_link = ChunkLink { number: 2, first_ledger: LedgerId(0), last_ledger: LedgerId(0) };
    let head = ManagedLedgerRecord {
        topic: topic(),
        epoch: Epoch(3),
        chunks: vec![chunk_link],
        ledgers: [links, vec![LedgerLink { ledger: LedgerId(5), closed: None }]].concat(),
        next_index: MessageIndex(13),
        last_timestamp_ms: 1,
        terminated: true,
        had_subscription: true,
    };
    let golden = "10031a0e0801120a08021064180a200328081a020805200d280130013a0208024001";
    assert_golden(&head, &format!("{golden}4a05742f6e2f78"));
    let bundle = BundleRecord {
        epoch: Epoch(2),
        state_ledgers: vec![LedgerId(3), LedgerId(300)],
        snapshot: Some(Position::new(LedgerId(3), EntryId(4))),
    };
    assert_golden(&bundle, "120303ac021a0408031004 2002".replace(' ', "").as_str());
}

#[test]
fn the_bytes_of_what_repair_keeps_never_change() {
    let (_, bookie_id, _) = ids();
    let holder = HolderRecord { holder: "w".to_owned(), session: SessionId(0x0102) };
    assert_golden(&holder, "120177 190201000000000000".replace(' ', "").as_str());
    let kind = DrainKind::Decommission;
    let drain = DrainRecord { bookie_id: bookie_id.clone(), kind, started_ms: 300 };
    assert_golden(&drain, "12026231 1801 20ac02".replace(' ', "").as_str());
    let lost = DrainRecord { kind: DrainKind::Lost, ..drain };
    assert_golden(&lost, "12026231 1802 20ac02".replace(' ', "").as_str());
    let damaged =
        RepairReason::Damaged { bookie: bookie_id.clone(), first: EntryId(3), last: EntryId(300) };
    let reasons = [
        RepairReason::Missing(bookie_id.clone()),
        RepairReason::Draining(bookie_id.clone()),
        damaged,
        RepairReason::AckQuorumOnly,
        RepairReason::Placement,
    ];
    let mut record = RepairRecord::new(&reasons, 5);
    let listed = "1204 0a026231 1204 12026231 120b 1a09 0a026231 1003 18ac02 1202 2001 1202 2801";
    let queued = format!("{listed} 1805").replace(' ', "");
    assert_golden(&record, &queued);
    record.failed("e");
    let (id, worker, targets) = (0x0a0b, "w".to_owned(), vec![bookie_id]);
    record.claim = Some(RepairClaim { id, worker, targets, claimed_ms: 9 });
    let claim = "2001 2a0165 3212 090b0a000000000000 120177 1a026231 2009".replace(' ', "");
    assert_golden(&record, &format!("{queued}{claim}"));
}

#[test]
fn the_bytes_of_a_ledger_never_change_in_any_state() {
    let (_, bookie, _) = ids();
    let namespace = NamespaceName::new("t", "n").expect("valid");
    let record = |state, owner| LedgerRecord {
        token: LedgerToken(0x0a0b),
        state,
        write_quorum: 1,
        ack_quorum: 1,
        fragments: vec![Fragment { first_entry: EntryId(0), bookies: vec![bookie.clone()] }],
        created_ms: 7,
        under_replicated: true,
        owner,
    };
    let head = "110b0a000000000000";
    let quorums = "2001280132041202 6231".replace(' ', "");
    let owner = || LedgerOwner::ManagedLedger(ManagedLedgerId(6));
    let open = record(LedgerState::Open, owner());
    assert_golden(&open, &format!("{head}1801{quorums}480750015806"));
    let recovery = record(LedgerState::InRecovery, owner());
    assert_golden(&recovery, &format!("{head}1802{quorums}480750015806"));
    let empty = record(LedgerState::Closed { last_entry: None, bytes: 0 }, owner());
    assert_golden(&empty, &format!("{head}1803{quorums}3801480750015806"));
    let closed = LedgerState::Closed { last_entry: Some(EntryId(5)), bytes: 9 };
    let bundle = BundleId { namespace, range: HashRange { first: 0, last: 0xff } };
    let state_log = record(closed, LedgerOwner::StateLog(bundle));
    let bundle = hex(b"t/n/00000000-000000ff");
    assert_golden(&state_log, &format!("{head}1803{quorums}380a4009480750016215{bundle}"));
}

#[test]
fn what_is_not_a_record_is_refused_with_the_reason() {
    let malformed = |bytes: &[u8], part: &str| {
        let refused = TenantRecord::decode(bytes).expect_err("refused");
        assert!(matches!(refused, RecordError::Malformed { kind: "tenant", .. }), "{refused:?}");
        assert!(refused.to_string().contains(part), "{refused}");
    };
    malformed(b"", "stamp is missing");
    malformed(&[0xff], "decoded");
    malformed(&[0x10, 0x05], "stamp is missing");
    malformed(&[0x0a, 0x02, 0x08, 0x01], "nonce is 0");
    malformed(&[0x0a, 0x09, 0x11, 1, 0, 0, 0, 0, 0, 0, 0], "version or nonce is 0");
    let nobody = pb::CookieRecord {
        stamp: Some(pb::Stamp { version: 1, nonce: 1 }),
        bookie_id: "a/b".to_owned(),
        cluster_id: "c".to_owned(),
        instance: 1,
    };
    let refused = CookieRecord::decode(&nobody.encode_to_vec()).expect_err("refused");
    assert!(refused.to_string().contains("bookie_id"), "{refused}");
}

#[test]
fn a_newer_version_is_refused_before_its_fields_are_looked_at() {
    // Field 2 is a string here, which version 1 could not decode.
    let newer = [
        0x0a, 0x0b, 0x08, 0x02, 0x11, 1, 0, 0, 0, 0, 0, 0, 0, // stamp: version 2, nonce 1
        0x12, 0x01, b'x',
    ];
    let refused = TenantRecord::decode(&newer);
    assert_eq!(refused, Err(RecordError::NewerVersion { kind: "tenant", found: 2, known: 1 }));
    assert!(refused.is_err_and(|error| error.to_string().contains("newer")));
}

#[test]
fn an_invalid_record_is_neither_written_nor_read() {
    let record = CookieRecord {
        instance: 0,
        ..{
            let (cluster_id, bookie_id, _) = ids();
            CookieRecord { bookie_id, cluster_id, instance: 1 }
        }
    };
    assert!(matches!(record.encode(NONCE), Err(RecordError::Invalid { .. })));
    let stamp = pb::Stamp { version: 1, nonce: 1 };
    let bytes = record.to_message(stamp).encode_to_vec();
    assert!(matches!(CookieRecord::decode(&bytes), Err(RecordError::Invalid { .. })));
}

#[test]
fn an_idle_topic_costs_at_most_512_bytes_of_keys_and_records() {
    let namespace = NamespaceName::new("acme-corporation", "payments-europe").expect("valid");
    let topic = TopicName::new(namespace, "orders-confirmed-partition-1234").expect("valid");
    // Late in the life of a large cluster: long numbers, long bookie names, three copies.
    let (incarnation, managed) = (TopicIncarnation(1 << 34), ManagedLedgerId(1 << 34));
    let (ledger, now) = (LedgerId(1 << 40), 1_900_000_000_000);
    let name = |number| BookieId::new(&format!("geminga-bookie-{number}.zone-b")).expect("valid");
    let topic_record = TopicRecord::plain(now, incarnation, managed);
    let closed = ClosedLedger {
        entries: 1 << 30,
        bytes: 1 << 40,
        first_index: MessageIndex(1 << 40),
        messages: 1 << 35,
        closed_ms: now,
    };
    let head = ManagedLedgerRecord {
        epoch: Epoch(1 << 14),
        ledgers: vec![LedgerLink { ledger, closed: Some(closed) }],
        next_index: MessageIndex(1 << 41),
        last_timestamp_ms: now,
        had_subscription: true,
        ..ManagedLedgerRecord::new(topic.clone())
    };
    let last_entry = Some(EntryId(1 << 30));
    let ledger_record = LedgerRecord {
        token: LedgerToken(u64::MAX),
        state: LedgerState::Closed { last_entry, bytes: 1 << 40 },
        write_quorum: 3,
        ack_quorum: 2,
        fragments: vec![Fragment {
            first_entry: EntryId(0),
            bookies: vec![name(101), name(102), name(103)],
        }],
        created_ms: now,
        under_replicated: false,
        owner: LedgerOwner::ManagedLedger(managed),
    };
    fn cost<R: Record>(key: &str, record: &R) -> usize {
        key.len() + record.encode(NONCE).expect("valid").len()
    }
    let total = cost(&keys::topic(&topic), &topic_record)
        + cost(&keys::managed_ledger(managed), &head)
        + cost(&keys::ledger(ledger), &ledger_record);
    assert!(total <= 512, "{total} bytes");
}

#[test]
fn a_full_list_of_ledgers_fits_into_a_transaction() {
    let closed = ClosedLedger {
        entries: 1 << 60,
        bytes: 1 << 60,
        first_index: MessageIndex(0),
        messages: 1 << 60,
        closed_ms: 1 << 42,
    };
    let link = |number: usize| {
        let ledger = LedgerId(LedgerId::MAX.0 - number as u64);
        // Only the first one has messages, since indexes must not overflow.
        let closed = if number + 1 == ManagedLedgerRecord::MAX_LINKS {
            closed
        } else {
            ClosedLedger { first_index: MessageIndex(1 << 60), messages: 0, entries: 0, ..closed }
        };
        LedgerLink { ledger, closed: Some(closed) }
    };
    let ledgers: Vec<_> = (0..ManagedLedgerRecord::MAX_LINKS).rev().map(link).collect();
    let chunk = ManagedLedgerChunk { ledgers };
    let bytes = chunk.encode(NONCE).expect("valid").len();
    assert!(bytes < crate::store::MAX_TXN_BYTES / 2, "{bytes} bytes");
}

#[test]
fn two_writes_have_different_nonces() {
    let random = SeededRandom::new(1);
    assert_ne!(Nonce::new(&random), Nonce::new(&random));
}

fn round_trip<R: Record>(record: &R, nonce: u64) -> Result<(), TestCaseError> {
    let nonce = Nonce(nonce.max(1));
    let bytes = record.encode(nonce).map_err(|error| TestCaseError::fail(error.to_string()))?;
    prop_assert_eq!(R::decode(&bytes), Ok((record.clone(), nonce)));
    prop_assert!(record.to_json().is_object());
    // A flipped bit is refused or gives another valid record, and never panics.
    let mut flipped = bytes.to_vec();
    let at = usize::try_from(nonce.get() % bytes.len() as u64).unwrap_or(0);
    flipped[at] ^= 1 << (nonce.get() % 8);
    if let Ok((other, _)) = R::decode(&flipped) {
        prop_assert_eq!(other.validate(), Ok(()));
    }
    Ok(())
}

macro_rules! round_trips {
    ($($kind:ident),* $(,)?) => {
        proptest! {
            $(
                #[test]
                fn $kind(record in arbitrary::$kind(), nonce: u64) {
                    round_trip(&record, nonce)?;
                }
            )*

            #[test]
            fn decoding_anything_never_panics(
                bytes in prop::collection::vec(any::<u8>(), 0..200),
                stamped: bool,
            ) {
                let stamp = [0x0a, 0x0b, 0x08, 0x01, 0x11, 1, 2, 3, 4, 5, 6, 7, 8];
                let bytes = if stamped { [&stamp[..], &bytes].concat() } else { bytes };
                $(arbitrary::decode(arbitrary::$kind, &bytes);)*
            }
        }
    };
}

round_trips!(
    bookie,
    broker,
    bundle,
    cluster,
    cookie,
    counter,
    drain,
    holder,
    ledger,
    managed_ledger,
    chunk,
    namespace,
    ownership,
    repair,
    tenant,
    topic_record,
);
