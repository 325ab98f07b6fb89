//! The whole log over the ledger crate's model bookies and the metadata store in memory.

use std::sync::Arc;
use std::time::Duration;

use geminga_meta::bundle::{BundleId, HashRange};
use geminga_meta::keys;
use geminga_meta::read::read;
use geminga_meta::record::{BundleRecord, NamespacePolicies, NamespaceRecord, Nonce, Record};
use geminga_meta::store::{Compare, MetadataStore, Txn};
use geminga_proto::env::{Env, ManualClock, SeededRandom};
use geminga_proto::id::{BookieId, EntryId, LedgerId, MessageIndex, Position, TopicIncarnation};
use geminga_proto::topic_name::NamespaceName;
use parking_lot::Mutex;

use geminga_ledger::harness::bookie::Fullness;
use geminga_ledger::harness::transport::ModelTransport;
use geminga_ledger::placement::FixedPlacement;
use geminga_ledger::store::{LedgerStore, LedgerStoreConfig};
use geminga_meta::store::memory::{Fault, MemoryStore, Request};

use crate::core::ack_set::IndexRange;
use crate::core::cursor::{CursorChange, CursorDelta, Frontier};
use crate::core::state_log::{CursorId, StateLog, StateLogConfig, StateLogError};

const TOPIC: TopicIncarnation = TopicIncarnation(4);

struct World {
    env: Env,
    meta: Arc<MemoryStore>,
    bookies: ModelTransport,
    name: BookieId,
    bundle: BundleId,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        let name = BookieId::new("bookie").expect("valid");
        let namespace = NamespaceName::new("public", "default").expect("valid");
        Self {
            meta: Arc::new(MemoryStore::new(Arc::clone(&clock) as _)),
            env: Env { clock, random: Arc::new(SeededRandom::new(3)) },
            bookies: ModelTransport::new(std::slice::from_ref(&name)),
            name,
            bundle: BundleId { namespace, range: HashRange::ALL },
        }
    }

    async fn open(&self, config: StateLogConfig) -> Result<StateLog, StateLogError> {
        let ledgers = LedgerStoreConfig {
            write_quorum: 1,
            ack_quorum: 1,
            append_timeout_ms: 200,
            request_timeout_ms: 200,
            retry_interval_ms: 10,
            ..LedgerStoreConfig::default()
        };
        let placement = FixedPlacement::new(self.env.clone(), vec![self.name.clone()]);
        let meta: Arc<dyn MetadataStore> = Arc::clone(&self.meta) as _;
        let transport = Arc::new(self.bookies.clone());
        let env = self.env.clone();
        let ledgers =
            LedgerStore::new(ledgers, env, Arc::clone(&meta), transport, Arc::new(placement));
        let (bundle, env) = (self.bundle.clone(), self.env.clone());
        self.add_namespace().await;
        StateLog::open(bundle, ledgers.expect("valid"), meta, env, config).await
    }

    async fn add_namespace(&self) {
        let record = NamespaceRecord {
            created_ms: 1,
            bundle_bounds: NamespaceRecord::even_bounds(1),
            policies: NamespacePolicies::default(),
        };
        let value = record.encode(Nonce::new(&*self.env.random)).expect("valid");
        let key = keys::namespace(&self.bundle.namespace);
        let txn = Txn::default().when(Compare::Absent(key.clone())).put(key, value);
        // It may be there already.
        let _ = self.meta.txn(txn).await;
    }

    async fn record(&self) -> BundleRecord {
        let key = keys::bundle(&self.bundle);
        let stored = read::<BundleRecord>(&*self.meta, &key).await.expect("readable");
        stored.expect("it is there").record
    }
}

fn at(index: u64) -> Frontier {
    Frontier { index: MessageIndex(index), position: Position::new(LedgerId(1), EntryId(index)) }
}

fn acked(index: u64) -> Option<CursorChange> {
    let acked = vec![IndexRange::new(index, index + 1)];
    Some(CursorChange::Ack(CursorDelta { acked, ..CursorDelta::default() }))
}

type Answer = Result<(), StateLogError>;

/// Waits for a completion, and fails the test rather than hang.
async fn answer(receiver: tokio::sync::oneshot::Receiver<Answer>) -> Answer {
    let patience = Duration::from_secs(20);
    let answer = tokio::time::timeout(patience, receiver).await;
    answer.expect("an answer comes").expect("it isn't dropped")
}

async fn create(log: &StateLog, name: &str) -> CursorId {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let room = log.room(0).await.expect("room");
    let done = Box::new(move |result| drop(sender.send(result)));
    let id = log.create_subscription(room, TOPIC, name, at(0), done).expect("it is new");
    answer(receiver).await.expect("durable");
    id
}

async fn change(log: &StateLog, id: CursorId, change: Option<CursorChange>) -> Answer {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let room = log.room(1).await?;
    log.change(room, id, change, Box::new(move |result| drop(sender.send(result))));
    answer(receiver).await
}

fn backlog(log: &StateLog, end: u64) -> Vec<(String, u64)> {
    let found = log.subscriptions(TOPIC);
    let backlog = |one: &crate::core::state_log::StoredSubscription| {
        (one.name.to_string(), one.cursor.backlog_messages(MessageIndex(end)))
    };
    found.iter().map(backlog).collect()
}

fn named(name: &str, backlog: u64) -> (String, u64) {
    (name.to_owned(), backlog)
}

#[tokio::test]
async fn what_was_receipted_is_there_after_a_clean_close_and_after_a_crash() {
    let world = World::new();
    let log = world.open(StateLogConfig::default()).await.expect("opens");
    let a = create(&log, "a").await;
    create(&log, "b").await;
    for index in [0, 1, 5, 9] {
        change(&log, a, acked(index)).await.expect("durable");
    }
    assert_eq!(log.close().await, Ok(()));
    assert_eq!(change(&log, a, acked(7)).await, Err(StateLogError::Closed));

    let log = world.open(StateLogConfig::default()).await.expect("opens");
    assert_eq!(backlog(&log, 10), [named("a", 6), named("b", 10)]);
    change(&log, a, acked(7)).await.expect("durable");
    change(&log, a, Some(CursorChange::Reset(at(3)))).await.expect("durable");
    change(&log, a, acked(4)).await.expect("durable");
    // Nobody closes it: a crash.
    drop(log);
    let log = world.open(StateLogConfig::default()).await.expect("opens");
    assert_eq!(backlog(&log, 10), [named("a", 6), named("b", 10)]);
    let c = create(&log, "c").await;
    assert!(c.0 > a.0 + 1, "ids are never used twice");
}

#[tokio::test]
async fn an_owner_that_was_taken_over_from_hears_so_and_changes_nothing_any_more() {
    let world = World::new();
    let first = world.open(StateLogConfig::default()).await.expect("opens");
    let id = create(&first, "a").await;
    let second = world.open(StateLogConfig::default()).await.expect("takes over");
    assert_eq!(change(&first, id, acked(3)).await, Err(StateLogError::Fenced));
    assert_eq!(first.ended().await, StateLogError::Fenced);
    assert_eq!(first.room(1).await.err(), Some(StateLogError::Fenced));
    assert_eq!(first.close().await, Err(StateLogError::Fenced));
    change(&second, id, acked(4)).await.expect("durable");
    drop(second);
    let third = world.open(StateLogConfig::default()).await.expect("opens");
    assert_eq!(backlog(&third, 10), [named("a", 9)]);
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_fails_under_its_owner_is_recovered_and_followed_by_another() {
    let world = World::new();
    let log = world.open(StateLogConfig::default()).await.expect("opens");
    let id = create(&log, "a").await;
    world.bookies.set_up(&world.name, false);
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { change(&log, id, acked(2)).await }
    });
    // Longer than the ledger waits for its quorum.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!waiting.is_finished());
    world.bookies.set_up(&world.name, true);
    assert_eq!(waiting.await.expect("no panic"), Ok(()));
    change(&log, id, acked(3)).await.expect("durable");
    assert_eq!(world.record().await.state_ledgers.len(), 2);
    drop(log);
    let log = world.open(StateLogConfig::default()).await.expect("opens");
    assert_eq!(backlog(&log, 10), [named("a", 8)]);
}

#[tokio::test]
async fn an_unreadable_log_is_unavailable_and_never_empty() {
    let world = World::new();
    let log = world.open(StateLogConfig::default()).await.expect("opens");
    create(&log, "a").await;
    log.close().await.expect("closes");
    world.bookies.set_up(&world.name, false);
    let refused = world.open(StateLogConfig::default()).await;
    assert!(matches!(refused, Err(StateLogError::Unavailable(_))), "{refused:?}");
    world.bookies.set_up(&world.name, true);
    world.meta.faults().set_down(true);
    let refused = world.open(StateLogConfig::default()).await;
    assert!(matches!(refused, Err(StateLogError::Unavailable(_))), "{refused:?}");
    world.meta.faults().set_down(false);
    assert_eq!(backlog(&world.open(StateLogConfig::default()).await.expect("opens"), 3).len(), 1);
}

#[tokio::test]
async fn a_lost_ledger_record_is_no_reason_to_begin_anew() {
    let world = World::new();
    let log = world.open(StateLogConfig::default()).await.expect("opens");
    create(&log, "a").await;
    log.close().await.expect("closes");
    let [ledger] = world.record().await.state_ledgers[..] else { panic!("one ledger") };
    world.meta.txn(Txn::default().delete(keys::ledger(ledger))).await.expect("deleted");
    let refused = world.open(StateLogConfig::default()).await;
    assert!(matches!(refused, Err(StateLogError::Unavailable(_))), "{refused:?}");
}

#[tokio::test]
async fn the_log_rolls_and_trims_and_stays_readable() {
    let world = World::new();
    let config = StateLogConfig {
        ledger_max_bytes: 2_000,
        snapshot_after_bytes: 4_000,
        ..StateLogConfig::default()
    };
    let log = world.open(config.clone()).await.expect("opens");
    let id = create(&log, "a").await;
    for index in 0..1_000 {
        change(&log, id, acked(index * 2)).await.expect("durable");
    }
    let record = world.record().await;
    assert!(record.snapshot.is_some());
    let made = record.state_ledgers.last().map_or(0, |last| last.0);
    assert!(record.state_ledgers.len() < 8 && made > 8, "{record:?}");
    assert!(log.numbers().replay_bytes < 20_000, "{:?}", log.numbers());
    assert_eq!(log.numbers().ledgers, record.state_ledgers.len() as u64);
    drop(log);
    let log = world.open(config).await.expect("opens");
    assert_eq!(backlog(&log, 2_000), [named("a", 1_000)]);
    assert!(!world.bookies.hints(&world.name).is_empty(), "deletion was hinted");
}

#[tokio::test]
async fn opening_again_and_again_does_not_make_the_chain_long() {
    let world = World::new();
    for _ in 0..20 {
        let log = world.open(StateLogConfig::default()).await.expect("opens");
        tokio::time::sleep(Duration::from_millis(5)).await;
        log.close().await.expect("closes");
    }
    let ledgers = world.record().await.state_ledgers.len();
    assert!(ledgers <= 8, "{ledgers}");
}

#[tokio::test]
async fn changes_that_find_no_room_wait_and_the_memory_stays_bounded() {
    let world = World::new();
    let config = StateLogConfig { max_pending_bytes: 4_096, ..StateLogConfig::default() };
    let log = world.open(config).await.expect("opens");
    let id = create(&log, "a").await;
    world.bookies.with_disk(&world.name, |disk| disk.full = Fullness::SecondMark);
    let completed = Arc::new(Mutex::new(0));
    let mut submitted = 0;
    while let Some(room) = log.try_room(1) {
        let completed = Arc::clone(&completed);
        log.change(
            room,
            id,
            acked(submitted),
            Box::new(move |result| {
                result.expect("durable in the end");
                *completed.lock() += 1;
            }),
        );
        submitted += 1;
        assert!(submitted < 100);
    }
    let waiting = log.room(1);
    tokio::pin!(waiting);
    let soon = Duration::from_millis(300);
    assert!(tokio::time::timeout(soon, &mut waiting).await.is_err(), "no room");
    assert_eq!(*completed.lock(), 0);
    assert!(log.numbers().stalled.is_some());
    world.bookies.with_disk(&world.name, |disk| disk.full = Fullness::Free);
    waiting.await.expect("room");
    change(&log, id, None).await.expect("after all before");
    assert_eq!(*completed.lock(), submitted);
    assert!(log.numbers().stalled.is_none());
}

#[tokio::test]
async fn without_metadata_the_log_goes_on_and_rolls_later() {
    let world = World::new();
    let config = StateLogConfig { ledger_max_bytes: 1_000, ..StateLogConfig::default() };
    let log = world.open(config).await.expect("opens");
    let id = create(&log, "a").await;
    world.meta.faults().set_down(true);
    for index in 0..100 {
        change(&log, id, acked(index * 2)).await.expect("durable");
    }
    world.meta.faults().set_down(false);
    let rolled = async {
        while world.record().await.state_ledgers.len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), rolled).await.expect("it rolls");
    change(&log, id, acked(1)).await.expect("durable");
}

#[tokio::test]
async fn deleted_subscriptions_stay_deleted() {
    let world = World::new();
    let log = world.open(StateLogConfig::default()).await.expect("opens");
    let a = create(&log, "a").await;
    create(&log, "b").await;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let room = log.room(0).await.expect("room");
    log.delete_subscription(room, a, Box::new(move |result| drop(sender.send(result))));
    let room = log.room(0).await.expect("room");
    let taken = log.create_subscription(room, TOPIC, "b", at(0), Box::new(|_| {}));
    assert_eq!(taken.err(), Some(StateLogError::Exists("b".into())));
    answer(receiver).await.expect("durable");
    // A change that comes late changes nothing and does no harm.
    change(&log, a, acked(1)).await.expect("nothing to do");
    drop(log);
    let log = world.open(StateLogConfig::default()).await.expect("opens");
    assert_eq!(backlog(&log, 1), [named("b", 1)]);
}

#[tokio::test]
async fn lost_requests_and_lost_answers_of_the_metadata_store_do_no_harm() {
    let world = World::new();
    let config = StateLogConfig {
        ledger_max_bytes: 500,
        snapshot_after_bytes: 1_000,
        ..StateLogConfig::default()
    };
    let log = world.open(config.clone()).await.expect("opens");
    let id = create(&log, "a").await;
    let mut asked = 0;
    let faults =
        [Fault::None, Fault::AnswerLost, Fault::None, Fault::RequestLost, Fault::Unavailable];
    world.meta.faults().set_script(move |request| match request {
        Request::Txn(_) => {
            asked += 1;
            faults[asked % faults.len()]
        }
        _ => Fault::None,
    });
    for index in 0..400 {
        change(&log, id, acked(index * 2)).await.expect("durable");
        if index % 20 == 0 {
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
    let record = world.record().await;
    assert!(record.snapshot.is_some() && record.state_ledgers.len() < 20, "{record:?}");
    world.meta.faults().clear();
    drop(log);
    let log = world.open(config).await.expect("opens");
    assert_eq!(backlog(&log, 800), [named("a", 400)]);
}

#[tokio::test]
async fn after_a_crash_at_any_moment_everything_receipted_is_there_and_nothing_else_was_invented() {
    let world = World::new();
    let config = StateLogConfig {
        ledger_max_bytes: 800,
        snapshot_after_bytes: 1_500,
        ..StateLogConfig::default()
    };
    let log = world.open(config.clone()).await.expect("opens");
    let id = create(&log, "a").await;
    drop(log);
    let mut next = 0;
    let mut receipted: std::collections::BTreeSet<u64> = std::collections::BTreeSet::new();
    for round in 0..12_u64 {
        let log = world.open(config.clone()).await.expect("opens");
        let state = log.subscriptions(TOPIC).remove(0).cursor;
        for index in &receipted {
            let there = *index < state.next_unacked.0 || state.acked.contains(*index);
            assert!(there, "round {round}: {index} was receipted");
        }
        assert!(state.acked.next_member(next).is_none(), "nobody acknowledged that");
        let heard = Arc::new(Mutex::new(Vec::new()));
        for _ in 0..40 {
            // Every third message is left out, so that there are holes for ever.
            next += 1 + u64::from(next % 3 == 1);
            let (heard, index) = (Arc::clone(&heard), next);
            let room = log.room(1).await.expect("room");
            log.change(
                room,
                id,
                acked(index),
                Box::new(move |result| {
                    if result.is_ok() {
                        heard.lock().push(index);
                    }
                }),
            );
            next += 1;
            for _ in 0..round % 4 {
                tokio::task::yield_now().await;
            }
        }
        tokio::time::sleep(Duration::from_micros(round * 197 % 1500)).await;
        // What the bookie has not synced is lost too.
        world.bookies.set_up(&world.name, false);
        drop(log);
        receipted.extend(heard.lock().drain(..));
        world.bookies.set_up(&world.name, true);
    }
    assert!(receipted.len() > 50, "{}", receipted.len());
}

#[tokio::test]
async fn of_brokers_that_open_the_log_at_once_the_last_one_to_be_recorded_owns_it() {
    let world = World::new();
    let log = world.open(StateLogConfig::default()).await.expect("opens");
    let id = create(&log, "a").await;
    drop(log);
    let open = || world.open(StateLogConfig::default());
    let (one, two, three) = tokio::join!(open(), open(), open());
    let mut alive = 0;
    for log in [one, two, three].into_iter().flatten() {
        match change(&log, id, acked(alive)).await {
            Ok(()) => alive += 1,
            Err(error) => assert_eq!(error, StateLogError::Fenced),
        }
    }
    assert_eq!(alive, 1);
}
