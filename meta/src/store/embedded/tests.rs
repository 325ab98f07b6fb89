//! The embedded backend passes the contract, keeps what it answered through restarts and kills,
//! and says what is wrong with its files.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use geminga_proto::env::{Clock, ManualClock, SeededRandom};
use tempfile::TempDir;

use super::*;
use crate::store::Compare;
use crate::store::contract::Harness;

struct Embedded {
    // Dropped before its directory.
    store: Arc<EmbeddedStore>,
    clock: Arc<ManualClock>,
    _dir: TempDir,
}

fn env(clock: &Arc<ManualClock>) -> Env {
    let clock = Arc::clone(clock) as Arc<dyn Clock>;
    Env { clock, random: Arc::new(SeededRandom::new(7)) }
}

fn config(dir: &TempDir) -> EmbeddedConfig {
    EmbeddedConfig { lease_check: Duration::from_millis(2), ..EmbeddedConfig::new(dir.path()) }
}

fn open(dir: &TempDir) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(&config(dir), &env(&Arc::default()))
}

impl Embedded {
    fn new() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let clock = Arc::<ManualClock>::default();
        let history = HistoryLimits { revisions: 400, bytes: 4 << 20 };
        let config = EmbeddedConfig { history, ..config(&dir) };
        let store = Arc::new(EmbeddedStore::open(&config, &env(&clock)).expect("opened"));
        Self { store, clock, _dir: dir }
    }
}

#[async_trait]
impl Harness for Embedded {
    fn store(&self) -> Arc<dyn MetadataStore> {
        Arc::clone(&self.store) as Arc<dyn MetadataStore>
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    async fn compact(&self) {
        for _ in 0..=400 {
            self.store.txn(Txn::default().put("scratch", "x")).await.expect("written");
        }
    }
}

crate::contract_suite!(Embedded::new());

#[tokio::test]
async fn a_restart_keeps_everything_and_the_revision_goes_on() {
    let dir = TempDir::new().expect("a temporary directory");
    let store = open(&dir).expect("made");
    store.txn(Txn::default().put("a", "1").put("b", "2")).await.expect("written");
    store.txn(Txn::default().delete("b")).await.expect("written");
    let before = store.range("", None, 10).await.expect("read");
    drop(store);
    let store = open(&dir).expect("opened");
    assert_eq!(store.range("", None, 10).await, Ok(before.clone()));
    let after = store.txn(Txn::default().put("a", "3")).await;
    assert_eq!(after, Ok(TxnOutcome::Applied(Revision(before.revision.0 + 1))));
}

#[tokio::test]
async fn a_watch_from_before_a_restart_is_compacted_and_one_from_its_revision_goes_on() {
    let dir = TempDir::new().expect("a temporary directory");
    let store = open(&dir).expect("made");
    for _ in 0..3 {
        store.txn(Txn::default().put("a", "1")).await.expect("written");
    }
    let mut open_watch = store.watch("", Revision(3)).await.expect("started");
    drop(store);
    assert!(matches!(open_watch.next().await, Err(crate::store::WatchError::Lost(_))));
    let store = open(&dir).expect("opened");
    let mut old = store.watch("", Revision(2)).await.expect("started");
    assert_eq!(old.next().await, Err(crate::store::WatchError::Compacted));
    let mut new = store.watch("", Revision(3)).await.expect("started");
    store.txn(Txn::default().put("a", "2")).await.expect("written");
    let seen = new.next().await.expect("it goes on");
    assert_eq!(seen.iter().map(|event| event.revision).collect::<Vec<_>>(), [Revision(4)]);
}

#[tokio::test]
async fn keys_that_hung_on_a_lease_do_not_survive_a_restart() {
    let dir = TempDir::new().expect("a temporary directory");
    let store = open(&dir).expect("made");
    let lease = store.grant_lease(Duration::from_secs(60)).await.expect("granted");
    let txn = Txn::default().put_leased("l/a", "1", lease).put_leased("l/b", "1", lease);
    store.txn(txn.put("kept", "1")).await.expect("written");
    store.txn(Txn::default().put("l/b", "2")).await.expect("written");
    drop(store);
    let store = open(&dir).expect("opened");
    let page = store.range("", None, 10).await.expect("read");
    let keys: Vec<&str> = page.pairs.iter().map(|pair| pair.key.as_str()).collect();
    assert_eq!((keys, page.revision), (vec!["kept", "l/b"], Revision(3)));
    assert_eq!(store.keep_alive(lease).await, Err(StoreError::LeaseLost));
    drop(store);
    let again = open(&dir).expect("opened").range("", None, 1).await.expect("read");
    assert_eq!(again.revision, Revision(3), "there was nothing more to delete");
}

#[tokio::test]
async fn a_second_process_is_kept_out_and_told_by_whom() {
    let dir = TempDir::new().expect("a temporary directory");
    let store = open(&dir).expect("made");
    // A second handle stands for a second process: locks belong to handles.
    let refused = open(&dir).expect_err("it is locked");
    assert!(matches!(refused, OpenError::Locked { .. }), "{refused:?}");
    assert!(refused.to_string().contains(&format!("pid {}", std::process::id())), "{refused}");
    drop(store);
    assert!(open(&dir).is_ok());
}

#[tokio::test]
async fn a_newer_format_is_refused_and_left_alone() {
    let dir = TempDir::new().expect("a temporary directory");
    drop(open(&dir).expect("made"));
    let path = dir.path().join("metadata.redb");
    {
        let database = redb::Database::open(&path).expect("opened");
        let write = database.begin_write().expect("begun");
        write.open_table(STORE).expect("opened").insert("format", 2).expect("written");
        write.commit().expect("committed");
    }
    let refused = open(&dir).expect_err("it is newer");
    assert!(matches!(refused, OpenError::NewerFormat { found: 2, .. }), "{refused:?}");
    assert!(refused.to_string().contains("start the release that wrote it"), "{refused}");
}

#[tokio::test]
async fn files_that_are_not_a_store_are_refused_as_damaged() {
    let whole = TempDir::new().expect("a temporary directory");
    drop(open(&whole).expect("made"));
    let good = std::fs::read(whole.path().join("metadata.redb")).expect("read");
    let mut no_magic = good.clone();
    no_magic[..4096].fill(0xff);
    let text = b"this is no database at all, though somebody put it here".to_vec();
    let half = good[..good.len() / 2].to_vec();
    for (what, bytes) in [("text", text), ("no magic", no_magic), ("cut in half", half)] {
        let dir = TempDir::new().expect("a temporary directory");
        let path = dir.path().join("metadata.redb");
        std::fs::write(&path, &bytes).expect("written");
        let refused = open(&dir).expect_err(what);
        assert!(matches!(refused, OpenError::Corrupt { .. }), "{what}: {refused:?}");
        assert!(refused.to_string().contains("restore"), "{refused}");
    }
    // A redb file of somebody else.
    let dir = TempDir::new().expect("a temporary directory");
    drop(redb::Database::create(dir.path().join("metadata.redb")).expect("made"));
    assert!(matches!(open(&dir), Err(OpenError::Corrupt { .. })));
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_the_file_is_an_error_or_harmless_but_never_a_wrong_value() {
    let whole = TempDir::new().expect("a temporary directory");
    let store = open(&whole).expect("made");
    for key in 0..40 {
        let value = vec![key; 100];
        store.txn(Txn::default().put(format!("k/{key:02}"), value)).await.expect("written");
    }
    let expected = store.range("", None, 100).await.expect("read");
    drop(store);
    let good = std::fs::read(whole.path().join("metadata.redb")).expect("read");
    let dir = TempDir::new().expect("a temporary directory");
    let random = SeededRandom::new(11);
    let (mut damaged, mut harmless) = (0, 0);
    for _ in 0..150 {
        let mut bytes = good.clone();
        // Most of the file is empty; the pages in use are what is of interest.
        let at = loop {
            let at =
                usize::try_from(geminga_proto::env::Random::below(&random, bytes.len() as u64));
            let at = at.expect("within the file");
            if bytes[at] != 0 {
                break at;
            }
        };
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(dir.path().join("metadata.redb"), &bytes).expect("written");
        let read = match open(&dir) {
            Ok(store) => store.range("", None, 100).await,
            Err(_) => Err(StoreError::Corrupt("it did not open".to_owned())),
        };
        match read {
            // Pairs of the newest revision or of one before it: redb goes back to the commit
            // before when the newest one's own page is torn.
            Ok(page) => {
                harmless += 1;
                let known = |pair: &KeyValue| expected.pairs.contains(pair);
                assert!(page.pairs.iter().all(known), "byte {at} changed a value unseen");
            }
            Err(_) => damaged += 1,
        }
    }
    assert!(damaged > 0 && harmless > 0, "{damaged} damaged, {harmless} harmless");
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let dir = TempDir::new().expect("a temporary directory");
    let file = dir.path().join("file");
    std::fs::write(&file, "x").expect("written");
    let config = EmbeddedConfig::new(file.join("data"));
    let refused = EmbeddedStore::open(&config, &env(&Arc::default())).expect_err("refused");
    assert!(refused.to_string().contains(&*file.to_string_lossy()), "{refused}");
}

#[tokio::test]
async fn a_start_that_was_killed_while_it_made_the_file_is_made_up_for() {
    let dir = TempDir::new().expect("a temporary directory");
    std::fs::write(dir.path().join("metadata.redb.new"), "half").expect("written");
    let store = open(&dir).expect("made");
    assert!(store.txn(Txn::default().put("a", "1")).await.is_ok());
    assert!(!dir.path().join("metadata.redb.new").exists());
}

#[tokio::test]
async fn a_full_disk_refuses_writes_but_not_deletions_and_recovers() {
    let dir = TempDir::new().expect("a temporary directory");
    let free = Arc::new(AtomicU64::new(u64::MAX));
    let probe = Arc::clone(&free);
    let probe: FreeBytes = Arc::new(move || Ok(probe.load(Ordering::Relaxed)));
    let (config, env) = (config(&dir), env(&Arc::default()));
    let store = EmbeddedStore::open_with(&config, &env, probe, ZeroedFile::new).expect("made");
    store.txn(Txn::default().put("a", "1").put("b", "1")).await.expect("written");
    free.store(1_000, Ordering::Relaxed);
    let full = store.txn(Txn::default().put("a", "2")).await;
    assert!(matches!(&full, Err(StoreError::Full(why)) if why.contains("free some")), "{full:?}");
    let mixed = store.txn(Txn::default().put("a", "2").delete("b")).await;
    assert!(matches!(mixed, Err(StoreError::Full(_))));
    assert!(matches!(store.txn(Txn::default().delete("b")).await, Ok(TxnOutcome::Applied(_))));
    let page = store.range("", None, 10).await.expect("read");
    assert_eq!(page.pairs.iter().map(|pair| &pair.value[..]).collect::<Vec<_>>(), [b"1"]);
    free.store(u64::MAX, Ordering::Relaxed);
    assert!(store.txn(Txn::default().put("a", "2")).await.is_ok());
}

#[tokio::test]
async fn a_nearly_full_disk_takes_what_frees_space_and_what_only_changes_keys() {
    let dir = TempDir::new().expect("a temporary directory");
    let free = Arc::new(AtomicU64::new(u64::MAX));
    let probe = Arc::clone(&free);
    let probe: FreeBytes = Arc::new(move || Ok(probe.load(Ordering::Relaxed)));
    let (config, env) = (config(&dir), env(&Arc::default()));
    let store = EmbeddedStore::open_with(&config, &env, probe, ZeroedFile::new).expect("made");
    let txn = Txn::default().put("head", "1").put("ledger/1", "1").put("ledger/2", "1");
    store.txn(txn).await.expect("written");
    let trim = |ledger: &str| store.txn(Txn::default().put("head", "2").delete(ledger));
    free.store(config.min_free_bytes - 1, Ordering::Relaxed);
    assert!(matches!(trim("ledger/1").await, Ok(TxnOutcome::Applied(_))), "a trim");
    let closed = store.txn(Txn::default().put("ledger/2", "closed")).await;
    assert!(matches!(closed, Ok(TxnOutcome::Applied(_))), "an existing key: {closed:?}");
    let grown = store.txn(Txn::default().put("head", "3").put("ledger/3", "1")).await;
    assert!(matches!(grown, Err(StoreError::Full(_))), "a new key: {grown:?}");
    // A deletion of nothing frees nothing.
    let grown = store.txn(Txn::default().put("ledger/3", "1").delete("ledger/1")).await;
    assert!(matches!(grown, Err(StoreError::Full(_))), "{grown:?}");
    free.store(config.last_free_bytes - 1, Ordering::Relaxed);
    assert!(matches!(trim("ledger/2").await, Err(StoreError::Full(_))));
    assert!(store.txn(Txn::default().delete("ledger/2")).await.is_ok());
}

#[tokio::test]
async fn on_a_nearly_full_disk_a_broker_starts_again_owns_and_frees_space() {
    let dir = TempDir::new().expect("a temporary directory");
    let free = Arc::new(AtomicU64::new(u64::MAX));
    let (config, env) = (config(&dir), env(&Arc::default()));
    let open = || {
        let probe = Arc::clone(&free);
        let probe: FreeBytes = Arc::new(move || Ok(probe.load(Ordering::Relaxed)));
        EmbeddedStore::open_with(&config, &env, probe, ZeroedFile::new).expect("opened")
    };
    let announce = |lease| {
        let absent = Compare::Absent("brokers/b".to_owned());
        Txn::default().when(absent).put_leased("brokers/b", "1", lease)
    };
    let store = open();
    let lease = store.grant_lease(Duration::from_secs(9)).await.expect("granted");
    store.txn(announce(lease)).await.expect("announced");
    store.txn(Txn::default().put("head", "1").put("ledger/1", "1")).await.expect("written");
    drop(store);
    free.store(config.min_free_bytes - 1, Ordering::Relaxed);
    let store = open();
    assert_eq!(store.get("brokers/b").await, Ok(None), "it went with its lease");
    let lease = store.grant_lease(Duration::from_secs(9)).await.expect("granted");
    let announced = store.txn(announce(lease)).await;
    assert!(matches!(announced, Ok(TxnOutcome::Applied(_))), "{announced:?}");
    let owned = Txn::default().when(Compare::Present("brokers/b".to_owned())).put_leased(
        "ownership/1",
        "b",
        lease,
    );
    let owned = store.txn(owned).await;
    assert!(matches!(owned, Ok(TxnOutcome::Applied(_))), "{owned:?}");
    // What would stay is refused, beside such a key too.
    let mixed = Txn::default().put_leased("ownership/2", "b", lease).put("ledger/2", "1");
    assert!(matches!(store.txn(mixed).await, Err(StoreError::Full(_))));
    let trimmed = store.txn(Txn::default().put("head", "2").delete("ledger/1")).await;
    assert!(matches!(trimmed, Ok(TxnOutcome::Applied(_))), "{trimmed:?}");
    free.store(config.last_free_bytes - 1, Ordering::Relaxed);
    let last = store.txn(Txn::default().put_leased("ownership/3", "b", lease)).await;
    assert!(matches!(last, Err(StoreError::Full(_))), "{last:?}");
}

#[tokio::test]
async fn a_damaged_pair_refuses_its_own_readers_and_writers_only() {
    let dir = TempDir::new().expect("a temporary directory");
    let store = open(&dir).expect("made");
    store.txn(Txn::default().put("bad", "1").put("good", "1")).await.expect("written");
    drop(store);
    {
        let database = redb::Database::open(dir.path().join("metadata.redb")).expect("opened");
        let write = database.begin_write().expect("begun");
        let row = [1_u8; 30].as_slice();
        write.open_table(PAIRS).expect("opened").insert("bad", row).expect("written");
        write.commit().expect("committed");
    }
    let store = open(&dir).expect("opened");
    assert!(matches!(store.get("bad").await, Err(StoreError::Corrupt(_))));
    let touch = |key: &str| {
        let compare = crate::store::Compare::Present(key.to_owned());
        store.txn(Txn::default().when(compare).put("x", "1"))
    };
    assert!(matches!(touch("bad").await, Err(StoreError::Corrupt(_))));
    assert!(matches!(touch("good").await, Ok(TxnOutcome::Applied(_))));
    assert!(store.get("good").await.is_ok());
}

#[tokio::test]
async fn a_damaged_pair_goes_with_its_lease_and_the_store_goes_on() {
    let dir = TempDir::new().expect("a temporary directory");
    let store = open(&dir).expect("made");
    let lease = store.grant_lease(Duration::from_secs(60)).await.expect("granted");
    let txn = Txn::default().put_leased("l/bad", "1", lease).put_leased("l/good", "1", lease);
    store.txn(txn).await.expect("written");
    {
        let write = store.shared.database.begin_write().expect("begun");
        let row = [1_u8; 30].as_slice();
        write.open_table(PAIRS).expect("opened").insert("l/bad", row).expect("written");
        write.commit().expect("committed");
    }
    assert!(matches!(store.get("l/bad").await, Err(StoreError::Corrupt(_))));
    let mut watch = store.watch("l/", Revision(1)).await.expect("started");
    assert_eq!(store.revoke_lease(lease).await, Ok(()));
    let seen = watch.next().await.expect("the deletions");
    let keys: Vec<&str> = seen.iter().map(|event| event.key.as_str()).collect();
    assert_eq!(keys, ["l/bad", "l/good"]);
    assert_eq!(store.range("", None, 10).await.map(|page| page.pairs), Ok(Vec::new()));
    assert!(store.txn(Txn::default().put("l/bad", "2")).await.is_ok());
}

/// What the faulty device fails at, and how.
#[derive(Debug, Default)]
struct Plan {
    syncs: AtomicU64,
    fail_syncs: std::sync::atomic::AtomicBool,
    fail_growth: std::sync::atomic::AtomicBool,
    panic_in_writes: std::sync::atomic::AtomicBool,
}

#[derive(Debug)]
struct FaultyFile {
    inner: ZeroedFile,
    plan: Arc<Plan>,
}

impl StorageBackend for FaultyFile {
    fn len(&self) -> std::io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        if self.plan.fail_growth.load(Ordering::Relaxed) {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        if self.plan.fail_syncs.load(Ordering::Relaxed) {
            return Err(std::io::Error::from_raw_os_error(5));
        }
        self.plan.syncs.fetch_add(1, Ordering::Relaxed);
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        assert!(!self.plan.panic_in_writes.load(Ordering::Relaxed), "a planned panic");
        self.inner.write(offset, data)
    }
}

fn open_faulty(dir: &TempDir, plan: &Arc<Plan>) -> EmbeddedStore {
    let device = |file| FaultyFile { inner: ZeroedFile::new(file), plan: Arc::clone(plan) };
    let roomy: FreeBytes = Arc::new(|| Ok(u64::MAX));
    let (config, env) = (config(dir), env(&Arc::default()));
    EmbeddedStore::open_with(&config, &env, roomy, device).expect("opened")
}

async fn assert_poisoned(store: &EmbeddedStore, watch: &mut Box<dyn Watch>) {
    let later = store.txn(Txn::default().put("b", "1")).await;
    let says = |error: &StoreError| {
        let StoreError::Unavailable(why) = error else { return false };
        why.contains("restart")
    };
    assert!(later.as_ref().is_err_and(says), "{later:?}");
    assert!(store.get("a").await.as_ref().is_err_and(says));
    assert!(store.grant_lease(Duration::from_secs(1)).await.is_err());
    assert!(matches!(watch.next().await, Err(crate::store::WatchError::Lost(_))));
}

#[tokio::test]
async fn a_first_start_takes_few_syncs_and_its_file_is_found_again_after_a_kill() {
    let dir = TempDir::new().expect("a temporary directory");
    let plan = Arc::<Plan>::default();
    let store = open_faulty(&dir, &plan);
    let syncs = plan.syncs.load(Ordering::Relaxed);
    assert!(syncs <= 4, "{syncs} syncs");
    // What is on the disk now is what a kill would leave: the store was never closed.
    let killed = TempDir::new().expect("a temporary directory");
    let file = "metadata.redb";
    std::fs::copy(dir.path().join(file), killed.path().join(file)).expect("copied");
    drop(store);
    let store = open(&killed).expect("opened");
    assert!(matches!(store.txn(Txn::default().put("a", "1")).await, Ok(TxnOutcome::Applied(_))));
}

#[tokio::test]
async fn a_failed_sync_leaves_the_outcome_unknown_and_poisons_the_store_until_a_restart() {
    let dir = TempDir::new().expect("a temporary directory");
    let plan = Arc::<Plan>::default();
    let store = open_faulty(&dir, &plan);
    let mut watch = store.watch("", Revision(0)).await.expect("started");
    store.txn(Txn::default().put("a", "1")).await.expect("written");
    assert_eq!(watch.next().await.map(|events| events.len()), Ok(1));
    plan.fail_syncs.store(true, Ordering::Relaxed);
    let torn = store.txn(Txn::default().put("a", "2")).await;
    assert!(matches!(torn, Err(StoreError::Unknown(_))), "{torn:?}");
    plan.fail_syncs.store(false, Ordering::Relaxed);
    assert_poisoned(&store, &mut watch).await;
    drop(store);
    let store = open(&dir).expect("opened");
    let value = store.get("a").await.expect("read").expect("it was answered").value;
    assert!(value == "1" || value == "2", "{value:?}");
}

#[tokio::test]
async fn a_disk_that_fills_up_in_a_commit_loses_nothing_and_never_claims_success() {
    let dir = TempDir::new().expect("a temporary directory");
    let plan = Arc::<Plan>::default();
    let store = open_faulty(&dir, &plan);
    let mut watch = store.watch("", Revision(0)).await.expect("started");
    store.txn(Txn::default().put("a", "1")).await.expect("written");
    plan.fail_growth.store(true, Ordering::Relaxed);
    let mut answered = 0;
    let refused = loop {
        match store.txn(Txn::default().put(format!("large/{answered}"), vec![7; 500_000])).await {
            Ok(_) => answered += 1,
            Err(error) => break error,
        }
    };
    let honest = matches!(refused, StoreError::Full(_) | StoreError::Unknown(_));
    assert!(honest && answered < 10, "{refused:?} after {answered}");
    // It may have seen some of the changes, or none, before it was lost.
    while watch.next().await.is_ok() {}
    assert_poisoned(&store, &mut watch).await;
    drop(store);
    plan.fail_growth.store(false, Ordering::Relaxed);
    let store = open_faulty(&dir, &plan);
    let found = store.range("large/", None, 100).await.expect("read").pairs.len();
    assert!(found >= answered, "{found} of {answered}");
    assert!(store.txn(Txn::default().put("more", vec![7; 1_500_000])).await.is_ok());
}

#[tokio::test]
async fn a_panic_in_the_writer_is_answered_and_poisons_the_store() {
    let dir = TempDir::new().expect("a temporary directory");
    let plan = Arc::<Plan>::default();
    let store = open_faulty(&dir, &plan);
    let mut watch = store.watch("", Revision(0)).await.expect("started");
    plan.panic_in_writes.store(true, Ordering::Relaxed);
    let torn = store.txn(Txn::default().put("a", "1")).await;
    assert!(matches!(torn, Err(StoreError::Unknown(_))), "{torn:?}");
    plan.panic_in_writes.store(false, Ordering::Relaxed);
    assert_poisoned(&store, &mut watch).await;
}

const CHILD_DIR: &str = "GEMINGA_TEST_META_CHILD_DIR";
/// The first number that the child writes: higher in each round, so that a number of an earlier
/// round can't stand in for a lost one.
const CHILD_FIRST: &str = "GEMINGA_TEST_META_CHILD_FIRST";

/// Not a test of its own: what the child of the next test runs. It writes the next number and
/// says it on stdout, once it is answered, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_writes_until_it_is_killed() {
    use std::io::Write;
    let Some(dir) = std::env::var_os(CHILD_DIR) else { return };
    let first = std::env::var(CHILD_FIRST).expect("set by the parent");
    let first: u64 = first.parse().expect("a number");
    let config = EmbeddedConfig::new(dir);
    let store = Arc::new(EmbeddedStore::open(&config, &Env::system()).expect("opened"));
    let tasks = (0..4).map(|task| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for number in first.. {
                let key = format!("n/{task}");
                let other = format!("m/{task}");
                let text = number.to_string();
                let txn = Txn::default().put(key, text.clone()).put(other, text);
                store.txn(txn).await.expect("written");
                let mut out = std::io::stdout().lock();
                // Libtest captures only what is printed by its macros.
                if writeln!(out, "answered {task} {number}").and_then(|()| out.flush()).is_err() {
                    return;
                }
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("no task panics");
    }
}

#[tokio::test]
async fn a_killed_process_loses_nothing_that_it_answered() {
    use std::io::BufRead;
    let dir = TempDir::new().expect("a temporary directory");
    for round in 1..=5_u64 {
        let this = std::env::current_exe().expect("the test's own binary");
        let mut child = Command::new(this)
            .args(["--exact", "--nocapture"])
            .arg("store::embedded::tests::child_that_writes_until_it_is_killed")
            .env(CHILD_DIR, dir.path())
            .env(CHILD_FIRST, (round * 1_000_000).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut lines = std::io::BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut answered = [None; 4];
        let mut note = |line: &str| -> bool {
            let mut words = line.split(' ');
            let (Some("answered"), Some(task), Some(number)) =
                (words.next(), words.next(), words.next())
            else {
                return false;
            };
            // The last line may be cut by the kill: a number cut short is only a smaller one.
            let task: usize = task.parse().expect("a task");
            let number: u64 = number.parse().expect("a number");
            answered[task] = answered[task].max(Some(number));
            true
        };
        let mut wanted = 20 * round;
        while wanted > 0 {
            let line = lines.next().expect("the child goes on").expect("read");
            wanted -= u64::from(note(&line));
        }
        child.kill().expect("killed");
        child.wait().expect("gone");
        for line in lines.map_while(Result::ok) {
            if line.split(' ').count() == 3 && !line.ends_with(' ') {
                note(&line);
            }
        }
        let store = open(&dir).expect("opened after the kill");
        for (task, answered) in answered.iter().enumerate() {
            let read = |name| {
                let (store, key) = (&store, format!("{name}/{task}"));
                async move {
                    let pair = store.get(&key).await.expect("read")?;
                    let text = String::from_utf8(pair.value.to_vec()).expect("text");
                    Some(text.parse::<u64>().expect("a number"))
                }
            };
            let (one, two) = (read("n").await, read("m").await);
            assert_eq!(one, two, "a transaction was torn");
            assert!(one >= *answered, "task {task}: {answered:?} was answered, {one:?} is there");
        }
    }
}
