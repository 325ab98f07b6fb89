//! The view over a memory metadata store whose faults are injected.

use geminga_meta::record::{Nonce, Record};
use geminga_meta::store::{MemoryStore, Txn};
use geminga_proto::env::{ManualClock, SeededRandom};

use super::*;

struct Scene {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
    placement: WatchedPlacement,
}

fn name(index: usize) -> BookieId {
    BookieId::new(&format!("b{index}")).expect("valid")
}

fn record(index: usize, zone: &str) -> BookieRecord {
    BookieRecord {
        bookie_id: name(index),
        address: format!("127.0.0.1:{}", 7_000 + index),
        zone: zone.to_owned(),
        writable: true,
        total_bytes: 10 << 30,
        free_bytes: 5 << 30,
        poisoned: false,
        session: 1,
        lease_ttl_ms: 1_000,
        release: "1".to_owned(),
        max_entry_bytes: 1 << 20,
        highest_ledger: LedgerId(0),
    }
}

async fn put(store: &MemoryStore, record: &BookieRecord) {
    let value = record.encode(Nonce::new(&SeededRandom::new(1))).expect("valid");
    let txn = Txn::default().put(keys::bookie(&record.bookie_id), value);
    store.txn(txn).await.expect("written");
}

async fn scene(bookies: &[BookieRecord]) -> Scene {
    scene_with(bookies, WatchedPlacementConfig::default()).await
}

async fn scene_with(bookies: &[BookieRecord], config: WatchedPlacementConfig) -> Scene {
    let clock = Arc::new(ManualClock::default());
    let store = Arc::new(MemoryStore::new(clock.clone()));
    for bookie in bookies {
        put(&store, bookie).await;
    }
    let env = Env { clock: clock.clone(), random: Arc::new(SeededRandom::new(7)) };
    let placement = WatchedPlacement::start(store.clone(), env, config).await.expect("read");
    Scene { clock, store, placement }
}

impl Scene {
    async fn until(&self, what: &str, holds: impl Fn(&WatchedPlacement) -> bool) {
        for _ in 0..2_000 {
            if holds(&self.placement) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{what}: {:?}", self.placement);
    }
}

#[tokio::test]
async fn full_and_read_only_bookies_are_not_picked_and_too_few_is_an_error_with_numbers() {
    let full = BookieRecord { writable: false, ..record(1, "") };
    let poisoned = BookieRecord { writable: false, poisoned: true, ..record(2, "") };
    let empty = BookieRecord { free_bytes: 0, ..record(3, "") };
    let scene = scene(&[record(0, ""), full, poisoned, empty]).await;
    assert_eq!(scene.placement.pick(3, 1, &[]), Ok(vec![name(0)]));
    let few = scene.placement.pick(3, 2, &[]).expect_err("too few");
    assert_eq!(few, PlacementError { at_least: 2, available: 1, narrow: None });
    assert!(few.to_string().contains("2 bookies") && few.to_string().contains("1 are up"));
    put(&scene.store, &record(1, "")).await;
    scene.until("one is writable again", |placement| placement.pick(3, 2, &[]).is_ok()).await;
}

#[tokio::test]
async fn a_bookie_that_may_refuse_an_entry_for_its_size_is_not_picked_and_the_error_says_so() {
    let config = WatchedPlacementConfig { largest_entry_bytes: 2 << 20, ..Default::default() };
    let takes = |index, max_entry_bytes| BookieRecord { max_entry_bytes, ..record(index, "") };
    let bookies = [takes(0, 2 << 20), takes(1, (2 << 20) - 1), takes(2, 5), takes(3, 0)];
    let scene = scene_with(&bookies, config).await;
    for _ in 0..20 {
        let mut picked = scene.placement.pick(4, 2, &[]).expect("two take all");
        picked.sort();
        assert_eq!(picked, [name(0), name(3)], "3 doesn't say, as earlier releases don't");
        let replaced = scene.placement.replace(1, 1, &[], &[name(0), name(3)]);
        assert!(replaced.is_empty(), "{replaced:?}");
    }
    assert!(scene.placement.has(2) && !scene.placement.has(3));
    let few = scene.placement.pick(3, 3, &[]).expect_err("too few");
    let (takes_bytes, needs_bytes) = ((2 << 20) - 1, 2 << 20);
    let narrow = Some(NarrowBookies { count: 2, takes_bytes, needs_bytes });
    assert_eq!(few, PlacementError { at_least: 3, available: 2, narrow });
    let text = few.to_string();
    assert!(text.contains("2 more take entries up to 2097151 bytes"), "{text}");
    assert!(text.contains("max_message_bytes"), "{text}");
    put(&scene.store, &takes(1, 2 << 20)).await;
    scene.until("it takes more", |placement| placement.has(3)).await;
}

#[tokio::test]
async fn the_highest_ledger_that_any_bookie_knew_stays_known() {
    let knows =
        |index, ledger| BookieRecord { highest_ledger: LedgerId(ledger), ..record(index, "") };
    let scene = scene(&[knows(0, 7), knows(1, 12)]).await;
    assert_eq!(scene.placement.highest_ledger(LedgerId::MAX), LedgerId(12));
    let gone = Txn::default().delete(keys::bookie(&name(1)));
    scene.store.txn(gone).await.expect("deleted");
    put(&scene.store, &knows(0, 9)).await;
    let one = |placement: &WatchedPlacement| placement.registered() == [knows(0, 9)];
    scene.until("one is gone", one).await;
    assert_eq!(scene.placement.highest_ledger(LedgerId::MAX), LedgerId(12));
    put(&scene.store, &knows(2, 40)).await;
    let more =
        |placement: &WatchedPlacement| placement.highest_ledger(LedgerId::MAX) == LedgerId(40);
    scene.until("another one comes", more).await;
    // What one of them says hides nothing that the others do.
    assert_eq!(scene.placement.highest_ledger(LedgerId(39)), LedgerId(12));
    assert_eq!(scene.placement.highest_ledger(LedgerId(11)), LedgerId(9));
    assert_eq!(scene.placement.highest_ledger(LedgerId(8)), LedgerId(0));
}

#[tokio::test]
async fn a_wider_ledger_is_promised_only_with_bookies_that_are_well() {
    let scene = scene(&[record(0, ""), record(1, ""), record(2, "")]).await;
    assert!(scene.placement.has(3) && !scene.placement.has(4));
    scene.placement.failed(&name(1), BookieError::Unreachable);
    assert!(!scene.placement.has(3) && scene.placement.has(2));
    scene.clock.advance(Duration::from_secs(6));
    assert!(scene.placement.has(3));
}

#[tokio::test]
async fn a_replacement_goes_to_the_zone_that_lost_its_bookie() {
    let bookies: Vec<_> = (0..6).map(|index| record(index, ["a", "b", "c"][index % 3])).collect();
    let scene = scene(&bookies).await;
    for _ in 0..20 {
        let picked = scene.placement.pick(3, 2, &[]).expect("there are six");
        let mut zones: Vec<_> =
            picked.iter().map(|id| bookies.iter().find(|b| b.bookie_id == *id)).collect();
        zones.sort_by_key(|bookie| bookie.map(|bookie| bookie.zone.clone()));
        zones.dedup_by_key(|bookie| bookie.map(|bookie| bookie.zone.clone()));
        assert_eq!(zones.len(), 3, "{picked:?}");
    }
    // 0, 1 and 2 are the ensemble, and 1 has failed.
    let exclude = [name(0), name(1), name(2)];
    let picked = scene.placement.replace(1, 0, &[name(0), name(2)], &exclude);
    assert_eq!(picked, [name(4)], "the other one of its zone");
}

#[tokio::test]
async fn a_bookie_that_failed_is_avoided_for_a_while_or_until_it_is_started_anew() {
    let scene = scene(&[record(0, ""), record(1, ""), record(2, "")]).await;
    let placement = &scene.placement;
    placement.failed(&name(0), BookieError::Unreachable);
    assert!(placement.is_suspect(&name(0)) && !placement.is_suspect(&name(1)));
    for _ in 0..20 {
        assert!(!placement.pick(2, 2, &[]).expect("two are well").contains(&name(0)));
    }
    assert_eq!(
        placement.pick(3, 2, &[]).map(|all| all[2].clone()),
        Ok(name(0)),
        "as a last choice"
    );
    let kept = [name(1), name(2)];
    assert!(placement.replace(1, 0, &kept, &kept).is_empty(), "the ledger can do without");
    assert_eq!(placement.replace(1, 1, &kept, &kept), [name(0)]);
    put(&scene.store, &BookieRecord { session: 2, ..record(0, "") }).await;
    scene.until("it is started anew", |placement| !placement.is_suspect(&name(0))).await;
    scene.placement.failed(&name(0), BookieError::Io);
    scene.clock.advance(Duration::from_secs(6));
    assert!(!scene.placement.is_suspect(&name(0)));
}

#[tokio::test]
async fn the_address_of_a_bookie_that_is_gone_stays_known() {
    let scene = scene(&[record(0, ""), record(1, "")]).await;
    let gone = Txn::default().delete(keys::bookie(&name(1)));
    scene.store.txn(gone).await.expect("deleted");
    scene.until("one is gone", |placement| placement.registered().len() == 1).await;
    let address = |index| scene.placement.address(&name(index));
    assert_eq!(address(1).as_deref(), Some("http://127.0.0.1:7001"));
    assert_eq!(address(2), None);
    assert!(scene.placement.is_suspect(&name(1)), "it is asked last");
    put(&scene.store, &BookieRecord { address: "127.0.0.1:9".to_owned(), ..record(1, "") }).await;
    let moved = Some("http://127.0.0.1:9".to_owned());
    scene.until("it moves", |placement| placement.address(&name(1)) == moved).await;
}

#[tokio::test]
async fn while_the_metadata_store_is_away_the_last_view_goes_on() {
    let scene = scene(&[record(0, ""), record(1, "")]).await;
    scene.store.lose_watches();
    scene.store.faults().set_down(true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(scene.placement.pick(2, 2, &[]).map(|picked| picked.len()), Ok(2));
    scene.store.faults().set_down(false);
    put(&scene.store, &record(2, "")).await;
    scene.until("it is followed again", |placement| placement.registered().len() == 3).await;
}

#[tokio::test]
async fn a_record_that_cannot_be_used_hides_no_other() {
    let scene = scene(&[record(0, "")]).await;
    let bad = Txn::default().put(keys::bookie(&name(1)), "not a record");
    scene.store.txn(bad).await.expect("written");
    put(&scene.store, &record(2, "")).await;
    scene.until("the last one is seen", |placement| placement.registered().len() == 2).await;
    assert_eq!(scene.placement.pick(3, 2, &[]).map(|picked| picked.len()), Ok(2));
}

#[tokio::test]
async fn an_answer_that_concerns_one_ledger_only_makes_no_bookie_suspect() {
    let scene = scene(&[record(0, "")]).await;
    for error in [
        BookieError::Fenced,
        BookieError::WrongToken,
        BookieError::TooLarge,
        BookieError::Invalid,
        BookieError::NoSuchEntry,
        BookieError::UnknownEntry,
        BookieError::CorruptEntry,
    ] {
        scene.placement.failed(&name(0), error);
        assert!(!scene.placement.is_suspect(&name(0)), "{error}");
    }
    for error in [
        BookieError::Unreachable,
        BookieError::Io,
        BookieError::DiskFull,
        BookieError::ReadOnly,
        BookieError::Overloaded,
    ] {
        scene.placement.failed(&name(0), error);
        assert!(scene.placement.is_suspect(&name(0)), "{error}");
        scene.clock.advance(Duration::from_secs(6));
    }
}

#[tokio::test]
async fn a_bookie_that_is_being_drained_is_not_picked_until_that_is_called_off() {
    let scene = scene(&[record(0, ""), record(1, ""), record(2, "")]).await;
    let key = keys::drain(&name(0));
    // A mark counts whatever it says.
    scene.store.txn(Txn::default().put(key.clone(), "?")).await.expect("written");
    scene.until("it is marked", |placement| placement.is_draining(&name(0))).await;
    for _ in 0..20 {
        let picked = scene.placement.pick(3, 2, &[]).expect("two are left");
        assert!(!picked.contains(&name(0)) && picked.len() == 2, "{picked:?}");
    }
    let view = scene.placement.view();
    assert_eq!((view.draining.as_slice(), view.is_current), (&[name(0)][..], true));
    let takes: Vec<bool> = view.bookies.iter().map(|bookie| bookie.takes).collect();
    assert_eq!((takes, scene.placement.has(3)), (vec![false, true, true], false));
    scene.store.txn(Txn::default().delete(key)).await.expect("written");
    scene.until("it is called off", |placement| placement.has(3)).await;
}

#[tokio::test]
async fn a_bookie_that_is_away_is_gone_after_a_while_and_not_once_it_is_back() {
    let gone_after = Duration::from_secs(100);
    let config = WatchedPlacementConfig { gone_after, ..Default::default() };
    let scene = scene_with(&[record(0, ""), record(1, "")], config).await;
    let gone = |index| scene.placement.is_gone(&name(index));
    scene.clock.advance(gone_after);
    assert_eq!((gone(0), gone(1), gone(9)), (false, false, true), "nobody ever saw the last one");
    let txn = Txn::default().delete(keys::bookie(&name(0)));
    scene.store.txn(txn).await.expect("written");
    scene.until("one is away", |placement| placement.registered().len() == 1).await;
    scene.clock.advance(Duration::from_secs(99));
    assert!(!gone(0));
    scene.clock.advance(Duration::from_secs(1));
    assert!(gone(0) && !gone(1));
    put(&scene.store, &record(0, "")).await;
    scene.until("it is back", |placement| !placement.is_gone(&name(0))).await;
}

#[tokio::test]
async fn a_bookie_that_keeps_failing_is_avoided_ever_longer() {
    let scene = scene(&[record(0, ""), record(1, "")]).await;
    let mut lasted = Vec::new();
    for _ in 0..9 {
        // Many ledgers meet the same failure.
        for _ in 0..3 {
            scene.placement.failed(&name(0), BookieError::Unreachable);
        }
        let mut seconds = 0;
        while scene.placement.is_suspect(&name(0)) {
            scene.clock.advance(Duration::from_secs(1));
            seconds += 1;
        }
        lasted.push(seconds);
    }
    assert_eq!(lasted, [5, 10, 20, 40, 60, 60, 60, 60, 60]);
    // It worked for longer than it was avoided.
    scene.clock.advance(Duration::from_secs(61));
    scene.placement.failed(&name(0), BookieError::Unreachable);
    scene.clock.advance(Duration::from_secs(5));
    assert!(!scene.placement.is_suspect(&name(0)));
}

#[tokio::test]
async fn a_view_whose_taking_in_panics_is_taken_in_again() {
    let (changed, changes) = watch::channel(0);
    let (_quiet, drains) = watch::channel(0);
    let (seen, mut seeing) = watch::channel(0);
    let mut turns = 0;
    let follower = tokio::spawn(follow([changes, drains], move || {
        turns += 1;
        assert!(turns > 1, "a defect");
        seen.send_replace(turns);
    }));
    for (change, turn) in [(1, 2), (2, 3)] {
        changed.send_replace(change);
        let limit = Duration::from_secs(10);
        let seen = tokio::time::timeout(limit, seeing.wait_for(|seen| *seen == turn)).await;
        assert!(matches!(seen, Ok(Ok(_))), "without another change");
    }
    drop(changed);
    follower.await.expect("ends with the view");
}
