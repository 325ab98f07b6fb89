//! Taking bookies away, what waits for repair, and ledgers compared.

use geminga_meta::keys;
use geminga_meta::record::{
    BookieRecord, CookieRecord, Nonce, Record, RepairClaim, RepairReason, RepairRecord,
};
use geminga_meta::store::{MetadataStore, Txn};
use geminga_proto::env::SeededRandom;
use geminga_proto::id::{BookieId, EntryId, LedgerId};
use serde_json::json;

use super::*;

const OWN: &str = "/admin/v2/geminga";

fn bookie(index: usize) -> BookieId {
    BookieId::new(&format!("bookie-{index}")).expect("valid")
}

async fn put<R: Record>(cluster: &Cluster, key: String, record: &R) {
    let value = record.encode(Nonce::new(&SeededRandom::new(1))).expect("valid");
    cluster.meta.txn(Txn::default().put(key, value)).await.expect("written");
}

async fn register(cluster: &Cluster, index: usize) {
    let record = BookieRecord {
        bookie_id: bookie(index),
        address: format!("h:{index}"),
        zone: String::new(),
        writable: true,
        total_bytes: 2,
        free_bytes: 1,
        poisoned: false,
        session: 1,
        lease_ttl_ms: 1,
        release: String::new(),
        max_entry_bytes: 0,
        highest_ledger: LedgerId(0),
    };
    put(cluster, keys::bookie(&bookie(index)), &record).await;
    let (bookie_id, cluster_id) = (bookie(index), ClusterId::new("c").expect("valid"));
    let cookie = CookieRecord { bookie_id, cluster_id, instance: 1 };
    put(cluster, keys::cookie(&bookie(index)), &cookie).await;
}

/// A broker of a cluster with so many bookies that are registered; two copies of each entry.
async fn among(count: usize) -> (Cluster, Api) {
    let cluster = Cluster::with_bookies(count, 2, 2);
    for index in 0..count {
        register(&cluster, index).await;
    }
    let config = BrokerConfig { alone: false, ..Cluster::config() };
    let api = Api::over(&cluster, config).await;
    (cluster, api)
}

#[tokio::test]
async fn a_bookie_is_marked_shown_and_called_off() {
    let (cluster, api) = among(3).await;
    let path = format!("{OWN}/bookies/bookie-1");
    api.refused(&format!("GET {path}/drain"), "", 404).await;
    api.done(&format!("PUT {path}/decommission"), "").await;
    let state = api.get(&format!("{path}/drain")).await;
    let expected = json!({
        "bookie_id": "bookie-1", "kind": "decommission", "state": "drained", "up": true,
        "started_ms": 1_700_000_000_000_u64, "ledgers": 0, "open_ledgers": 0, "bytes": 0,
        "trouble": [],
    });
    assert_eq!(state, expected);
    // Once more changes nothing.
    let mark = cluster.meta.get(&keys::drain(&bookie(1))).await;
    api.done(&format!("PUT {path}/decommission"), "").await;
    assert_eq!(cluster.meta.get(&keys::drain(&bookie(1))).await, mark);
    let listed = api.get(&format!("{OWN}/bookies")).await;
    assert_eq!(listed["bookies"][1]["draining"], "decommission");
    assert_eq!(listed["bookies"][0]["draining"], Value::Null);
    let status = api.get(&format!("{OWN}/cluster")).await;
    let problems = status["problems"].as_array().expect("a list");
    assert!(problems.iter().any(|problem| problem["subject"] == "bookie-1"), "{problems:?}");
    // With it gone, the others are needed.
    let other = format!("PUT {OWN}/bookies/bookie-0/decommission");
    let reason = api.refused(&other, "", 412).await;
    assert!(reason.contains("bookie-0 is needed") && reason.contains("1 bookies"), "{reason}");
    api.done(&format!("DELETE {path}/drain"), "").await;
    api.refused(&format!("DELETE {path}/drain"), "", 404).await;
    assert_eq!(cluster.meta.get(&keys::drain(&bookie(0))).await, Ok(None));
}

#[tokio::test]
async fn the_list_of_bookies_says_how_far_each_is_behind_and_waits_for_none() {
    let (cluster, api) = among(4).await;
    cluster.meta.txn(Txn::default().delete(keys::bookie(&bookie(2)))).await.expect("written");
    cluster.bookies.set_hung(&bookie(1), true);
    cluster.bookies.set_up(&bookie(3), false);
    let listed = api.get(&format!("{OWN}/bookies")).await;
    let lags: Vec<(&Value, &Value, &Value)> = listed["bookies"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| (&one["state"], &one["lag_ms"], &one["lag_bytes"]))
        .collect();
    let (none, zero) = (Value::Null, json!(0));
    let (writable, missing) = (json!("writable"), json!("missing"));
    assert_eq!(
        lags,
        [
            (&writable, &zero, &zero),
            (&writable, &none, &none),
            (&missing, &none, &none),
            (&writable, &none, &none),
        ]
    );
}

#[tokio::test]
async fn what_can_not_be_taken_away_is_refused_and_nothing_is_marked() {
    let (cluster, api) = among(3).await;
    let gone = Txn::default().delete(keys::bookie(&bookie(2)));
    cluster.meta.txn(gone).await.expect("written");
    for (name, what, status, words) in [
        ("nobody", "decommission", 404, "does not exist"),
        ("nobody", "recover", 404, "does not exist"),
        ("a%2Fb", "decommission", 412, "a/b"),
        ("bookie-2", "decommission", 412, "is not up"),
        ("bookie-0", "recover", 412, "is up"),
        ("bookie-0", "decommission", 412, "is needed"),
        ("nobody", "scrub", 404, "does not exist"),
        ("bookie-2", "scrub", 412, "is not up"),
    ] {
        let line = format!("PUT {OWN}/bookies/{name}/{what}");
        let reason = api.refused(&line, "", status).await;
        assert!(reason.contains(words), "{line}: {reason}");
    }
    let marks = cluster.meta.range(keys::DRAINS, None, 10).await.expect("read");
    assert_eq!(marks.pairs, []);
    // The lost one is not needed: two that take writes are there.
    api.done(&format!("PUT {OWN}/bookies/bookie-2/recover"), "").await;
    let alone = Api::start_with(|config| config.alone = true).await;
    let line = format!("PUT {OWN}/bookies/bookie-0/decommission");
    let reason = alone.refused(&line, "", 412).await;
    assert!(reason.contains("standalone"), "{reason}");
}

#[tokio::test]
async fn what_waits_for_repair_is_listed_in_pages_and_told_in_the_status() {
    let (cluster, api) = among(3).await;
    assert_eq!(api.get(&format!("{OWN}/repairs")).await, json!({ "repairs": [], "next": null }));
    let mut one = RepairRecord::new(&[RepairReason::Missing(bookie(1))], 7);
    one.failed("nobody has it");
    put(&cluster, keys::repair(LedgerId(5)), &one).await;
    let mut two = RepairRecord::new(&[RepairReason::AckQuorumOnly, RepairReason::Placement], 9);
    let (id, worker, targets) = (3, "w".to_owned(), vec![bookie(0)]);
    two.claim = Some(RepairClaim { id, worker, targets, claimed_ms: 1 });
    put(&cluster, keys::repair(LedgerId(6)), &two).await;
    let first = api.get(&format!("{OWN}/repairs?limit=1")).await;
    let expected = json!({
        "ledger_id": 5, "reasons": ["bookie bookie-1 is missing"], "queued_ms": 7, "attempts": 1,
        "last_error": "nobody has it", "worker": null, "targets": [],
    });
    assert_eq!((&first["repairs"][0], &first["next"]), (&expected, &json!(5)));
    let second = api.get(&format!("{OWN}/repairs?after=5")).await;
    assert_eq!(second["repairs"][0]["worker"], "w");
    assert_eq!(second["repairs"][0]["targets"], json!(["bookie-0"]));
    let status = api.get(&format!("{OWN}/cluster")).await;
    let problems = status["problems"].as_array().expect("a list");
    let told = problems.iter().find(|problem| problem["subject"] == "repair").expect("told");
    let why = told["why"].as_str().expect("a text");
    assert!(why.starts_with("2 ledgers wait for repair, 1 are at it"), "{why}");
    assert!(why.contains("ledger 5: nobody has it") && told["since_ms"] == 7, "{told}");
}

#[tokio::test]
async fn every_copy_of_a_closed_ledger_is_compared() {
    let cluster = Cluster::with_bookies(3, 2, 2);
    let api = Api::over(&cluster, Cluster::config()).await;
    let mut producer = api.producer("one").await;
    let ledger = producer.publish("payload").await.position.ledger;
    let path = format!("{OWN}/ledgers/{}", ledger.0);
    // Its owner still writes to it.
    let open = api.get(&format!("{path}/check")).await;
    assert_eq!(
        (&open["state"], &open["entries"], &open["next"]),
        (&json!("open"), &json!(0), &Value::Null,)
    );
    producer.publish("more").await;
    api.done(&format!("PUT {TOPICS}/one/unload"), "").await;
    let info = api.get(&path).await;
    assert_eq!(info["repair"], Value::Null);
    let task = RepairRecord::new(&[RepairReason::Placement], 7);
    put(&cluster, keys::repair(ledger), &task).await;
    let told = api.get(&path).await["repair"].take();
    assert_eq!(told["reasons"], json!(["copies are in one zone only"]));
    assert_eq!((&info["state"], &info["last_entry"]), (&json!("closed"), &json!(1)));
    let holder: BookieId =
        info["fragments"][0]["bookies"][0].as_str().expect("a name").parse().expect("valid");
    cluster.bookies.with_disk(&holder, |disk| disk.drop_copy(ledger, EntryId(1)));
    let found = api.get(&format!("{path}/check")).await;
    assert_eq!((&found["entries"], &found["lost"]), (&json!(2), &json!(0)));
    let of_holder = found["bookies"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|one| one["bookie"] == holder.as_str())
        .expect("it is in it");
    assert_eq!(
        (&of_holder["good"], &of_holder["missing"], &of_holder["first_bad"]),
        (&json!(1), &json!(1), &json!(1),)
    );
    let part = api.get(&format!("{path}/check?limit=1")).await;
    assert_eq!((&part["entries"], &part["next"]), (&json!(1), &json!(1)));
    let rest = api.get(&format!("{path}/check?limit=1&from=1")).await;
    assert_eq!((&rest["entries"], &rest["next"]), (&json!(1), &Value::Null));
    api.refused(&format!("GET {path}/check?limit=0"), "", 400).await;
    api.refused(&format!("GET {path}/check?from=x"), "", 400).await;
    api.refused(&format!("GET {OWN}/ledgers/999999/check"), "", 404).await;
}
