//! The running node: threads, real and faulty disks.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use geminga_proto::id::{BookieId, ClusterId, EntryId, Lac, LedgerToken};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{AddKind, AppendResult, SyncMode};
use tokio::sync::mpsc;

use super::*;
use crate::device::memory::{MemoryDevice, Operation, Tear};
use crate::device::real::RealDevice;
use crate::device::{DeviceError, DeviceFile, Space};
use crate::done::AppendAnswer;

#[derive(Debug)]
struct Channel(mpsc::Sender<(u64, AppendResult)>);

impl AppendDone for Channel {
    fn appended(&self, answers: &[AppendAnswer]) {
        for answer in answers {
            self.0.try_send((answer.tag, answer.result)).expect("the test's channel has room");
        }
    }
}

fn identity() -> Identity {
    let bookie = BookieId::new("b").expect("a name");
    Identity::detached(bookie, ClusterId::new("c").expect("a name"), 42)
}

fn small() -> BookieConfig {
    BookieConfig {
        segment_bytes: Some(1 << 20),
        first_segment_bytes: 256 * 1024,
        max_entry_bytes: 128 * 1024,
        idle_close: Duration::from_millis(5),
        ..BookieConfig::default()
    }
}

fn open(device: Arc<dyn Device>) -> (Bookie, OpenReport) {
    Bookie::open(small(), identity(), device, Env::system()).expect("opens")
}

fn request(ledger: u64, entry: u64, payload: Bytes) -> AppendRequest {
    AppendRequest {
        ledger: LedgerId(ledger),
        entry: EntryId(entry),
        token: LedgerToken(1),
        lac: Lac(entry.checked_sub(1).map(EntryId)),
        kind: AddKind::Ordinary,
        payload: Payload::new(Bytes::from_static(b"head"), payload),
    }
}

fn range(ledger: u64, first: u64) -> ReadRequest {
    let (ledger, first) = (LedgerId(ledger), EntryId(first));
    ReadRequest { ledger, first, max_entries: 1_000, max_bytes: u64::MAX, fence: None }
}

fn channel() -> (Arc<dyn AppendDone>, mpsc::Receiver<(u64, AppendResult)>) {
    let (sender, receiver) = mpsc::channel(100_000);
    (Arc::new(Channel(sender)), receiver)
}

async fn append_all(bookie: &Bookie, ledger: u64, entries: std::ops::Range<u64>, bytes: usize) {
    let (done, mut answers) = channel();
    let payload = Bytes::from(vec![7; bytes]);
    let mut sent = 0;
    for entry in entries.clone() {
        while bookie.append(request(ledger, entry, payload.clone()), &done, entry)
            == Err(BookieError::Overloaded)
        {
            tokio::task::yield_now().await;
        }
        sent += 1;
    }
    let mut answered: Vec<u64> = Vec::new();
    while answered.len() < sent {
        let (tag, result) = answers.recv().await.expect("an answer");
        assert_eq!(result, Ok(()));
        answered.push(tag);
    }
    answered.sort_unstable();
    assert_eq!(answered, entries.collect::<Vec<_>>(), "each append is answered once");
}

async fn check_all(bookie: &Bookie, ledger: u64, entries: u64, bytes: usize) {
    let mut next = 0;
    while next < entries {
        let read = bookie.read(range(ledger, next)).await.expect("there");
        for entry in read {
            assert_eq!(entry.entry, EntryId(next));
            assert!(entry.payload.starts_with(b"head") && entry.payload.len() == bytes + 4);
            next += 1;
        }
    }
    assert_eq!(bookie.read(range(ledger, entries)).await, Err(BookieError::NoSuchEntry));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_directory_keeps_everything_over_close_and_over_a_crash() {
    for buffered in [false, true] {
        let home = tempfile::tempdir().expect("a temporary directory");
        let device = |buffered| -> Arc<dyn Device> {
            let path = home.path();
            let opened =
                if buffered { RealDevice::open_buffered(path) } else { RealDevice::open(path) };
            Arc::new(opened.expect("opens"))
        };
        let (bookie, report) = open(device(buffered));
        assert!(report.clean && (!buffered || report.sync_mode == SyncMode::Fdatasync));
        append_all(&bookie, 1, 0..300, 10_000).await;
        check_all(&bookie, 1, 300, 10_000).await;
        // Dropped without a close: as after a crash.
        drop(bookie);
        let (bookie, report) = open(device(buffered));
        assert!(!report.clean && report.replayed_entries > 0, "{report:?}");
        check_all(&bookie, 1, 300, 10_000).await;
        append_all(&bookie, 1, 300..310, 10_000).await;
        bookie.close().await.expect("closes");
        drop(bookie);
        let (bookie, report) = open(device(buffered));
        assert!(report.clean && report.replayed_groups == 0, "{report:?}");
        check_all(&bookie, 1, 310, 10_000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_readers_and_fences_at_once_agree() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let (bookie, _) = open(Arc::new(RealDevice::open(home.path()).expect("opens")));
    let mut tasks = Vec::new();
    for ledger in 0..8 {
        let bookie = bookie.clone();
        tasks.push(tokio::spawn(async move {
            append_all(&bookie, ledger, 0..400, 500).await;
            let fence = FenceRequest { ledger: LedgerId(ledger), token: LedgerToken(1) };
            assert_eq!(bookie.fence(fence).await, Ok(Lac(Some(EntryId(398)))));
            let (done, _answers) = channel();
            let late = bookie.append(request(ledger, 400, Bytes::new()), &done, 0);
            assert_eq!(late, Err(BookieError::Fenced));
            check_all(&bookie, ledger, 400, 500).await;
        }));
    }
    for task in tasks {
        task.await.expect("no panic");
    }
    let metrics = bookie.metrics();
    assert_eq!((metrics.appended_entries, metrics.fences), (3_200, 8));
    assert_eq!((metrics.pending_bytes, metrics.refused_appends), (0, 8));
    assert!(metrics.groups < 3_200, "entries share groups: {}", metrics.groups);
    assert_eq!(bookie.info().ledgers, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fencing_read_fences_first() {
    let (bookie, _) = open(Arc::new(MemoryDevice::new(64 << 20)));
    append_all(&bookie, 1, 0..2, 100).await;
    let fencing = ReadRequest { fence: Some(LedgerToken(1)), ..range(1, 1) };
    assert_eq!(bookie.read(fencing).await.map(|entries| entries.len()), Ok(1));
    let (done, _answers) = channel();
    let late = bookie.append(request(1, 2, Bytes::new()), &done, 0);
    assert_eq!(late, Err(BookieError::Fenced));
    let wrong = ReadRequest { fence: Some(LedgerToken(2)), ..range(1, 0) };
    assert_eq!(bookie.read(wrong).await, Err(BookieError::WrongToken));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_log_closes_its_last_group_once() {
    let device = MemoryDevice::new(64 << 20);
    let (bookie, _) = open(Arc::new(device));
    append_all(&bookie, 1, 0..1, 100).await;
    for _ in 0..400 {
        if bookie.metrics().groups == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Time for a third one, which must not come.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(bookie.metrics().groups, 2, "the entry's group and one empty group");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_answers_everybody_and_leaves_the_node_read_only() {
    let device = MemoryDevice::new(64 << 20);
    let (bookie, _) = open(Arc::new(device.clone()));
    append_all(&bookie, 1, 0..3, 100).await;
    device.fail(Operation::Sync, 0);
    let (done, mut answers) = channel();
    let mut sent = 0;
    for entry in 3..50 {
        sent += usize::from(bookie.append(request(1, entry, Bytes::new()), &done, entry).is_ok());
    }
    for _ in 0..sent {
        let (_, result) = answers.recv().await.expect("an answer");
        assert!(matches!(result, Err(BookieError::Io | BookieError::ReadOnly)), "{result:?}");
    }
    assert!(bookie.poisoned().is_some() && !bookie.info().writable);
    assert_eq!(bookie.read(range(1, 0)).await.map(|entries| entries.len()), Ok(3));
    assert!(bookie.close().await.is_err());
    // What was acknowledged survives.
    let (bookie, _) = open(Arc::new(device.crash(Tear::Lost)));
    assert_eq!(bookie.read(range(1, 0)).await.map(|entries| entries.len()), Ok(3));
}

/// A memory disk whose files panic when they are written to, once told so.
#[derive(Debug)]
struct Trap {
    disk: MemoryDevice,
    armed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct TrapFile {
    file: Arc<dyn DeviceFile>,
    armed: Arc<AtomicBool>,
}

impl Trap {
    fn wrap(&self, file: Arc<dyn DeviceFile>) -> Arc<dyn DeviceFile> {
        Arc::new(TrapFile { file, armed: self.armed.clone() })
    }
}

impl Device for Trap {
    fn open(&self, name: &str) -> Result<Arc<dyn DeviceFile>, DeviceError> {
        Ok(self.wrap(self.disk.open(name)?))
    }
    fn create(&self, name: &str) -> Result<Arc<dyn DeviceFile>, DeviceError> {
        Ok(self.wrap(self.disk.create(name)?))
    }
    fn remove(&self, name: &str) -> Result<(), DeviceError> {
        self.disk.remove(name)
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), DeviceError> {
        self.disk.rename(from, to)
    }
    fn list(&self) -> Result<Vec<String>, DeviceError> {
        self.disk.list()
    }
    fn sync_dir(&self) -> Result<(), DeviceError> {
        self.disk.sync_dir()
    }
    fn space(&self) -> Result<Space, DeviceError> {
        self.disk.space()
    }
    fn sync_mode(&self) -> SyncMode {
        // Nothing is written beside the log then.
        SyncMode::Fdatasync
    }
    fn describe(&self) -> String {
        self.disk.describe()
    }
}

impl DeviceFile for TrapFile {
    fn len(&self) -> Result<u64, DeviceError> {
        self.file.len()
    }
    fn preallocate(&self, bytes: u64) -> Result<(), DeviceError> {
        self.file.preallocate(bytes)
    }
    fn sync_length(&self) -> Result<(), DeviceError> {
        self.file.sync_length()
    }
    fn truncate(&self, bytes: u64) -> Result<(), DeviceError> {
        self.file.truncate(bytes)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        assert!(!self.armed.load(Ordering::SeqCst), "on purpose");
        self.file.write_at(offset, data)
    }
    fn sync(&self) -> Result<(), DeviceError> {
        self.file.sync()
    }
    fn read_at(&self, offset: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        self.file.read_at(offset, data)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_log_thread_answers_everybody_once_and_leaves_the_node_read_only() {
    let armed = Arc::new(AtomicBool::new(false));
    let disk = MemoryDevice::new(64 << 20);
    let (bookie, _) = open(Arc::new(Trap { disk, armed: armed.clone() }));
    append_all(&bookie, 1, 0..3, 100).await;
    armed.store(true, Ordering::SeqCst);
    let (done, mut answers) = channel();
    let mut sent = Vec::new();
    for entry in 3..200 {
        if bookie.append(request(1, entry, Bytes::new()), &done, entry).is_ok() {
            sent.push(entry);
        }
    }
    let fence = FenceRequest { ledger: LedgerId(2), token: LedgerToken(1) };
    let fenced = tokio::time::timeout(Duration::from_secs(10), bookie.fence(fence)).await;
    assert!(fenced.expect("an answer").is_err());
    let mut answered = Vec::new();
    for _ in &sent {
        let answer = tokio::time::timeout(Duration::from_secs(10), answers.recv()).await;
        let (tag, result) = answer.expect("an answer in time").expect("an answer");
        assert!(matches!(result, Err(BookieError::Io | BookieError::ReadOnly)), "{result:?}");
        answered.push(tag);
    }
    answered.sort_unstable();
    assert_eq!(answered, sent, "each once");
    assert!(answers.try_recv().is_err() && bookie.poisoned().is_some());
    assert_eq!(bookie.close().await, Err(CloseError::Panicked));
    assert_eq!(bookie.read(range(1, 0)).await.map(|entries| entries.len()), Ok(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_answers_what_was_accepted_and_refuses_the_rest() {
    let (bookie, _) = open(Arc::new(MemoryDevice::new(64 << 20)));
    let (done, mut answers) = channel();
    for entry in 0..500 {
        bookie.append(request(1, entry, Bytes::new()), &done, entry).expect("room");
    }
    bookie.close().await.expect("closes");
    for _ in 0..500 {
        assert_eq!(answers.try_recv().map(|(_, result)| result), Ok(Ok(())));
    }
    let late = bookie.append(request(1, 500, Bytes::new()), &done, 0);
    assert_eq!(late, Err(BookieError::ReadOnly));
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_with_a_deep_queue_writes_it_all_and_ends() {
    // In one segment nothing happens beside the log threads; in many the keeper works, too.
    for segment_bytes in [64 << 20, 1 << 20] {
        let config = BookieConfig {
            segment_bytes: Some(segment_bytes),
            first_segment_bytes: segment_bytes,
            ..small()
        };
        let device = Arc::new(MemoryDevice::new(512 << 20));
        let (bookie, _) = Bookie::open(config, identity(), device, Env::system()).expect("opens");
        let (done, mut answers) = channel();
        let payload = Bytes::from(vec![7; 100_000]);
        for entry in 0..300 {
            bookie.append(request(1, entry, payload.clone()), &done, entry).expect("room");
        }
        let closed = tokio::time::timeout(Duration::from_secs(20), bookie.close()).await;
        closed.expect("the threads end").expect("closes");
        for _ in 0..300 {
            assert_eq!(answers.try_recv().map(|(_, result)| result), Ok(Ok(())));
        }
    }
}

#[test]
fn settings_another_log_and_a_second_node_are_refused() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let device: Arc<dyn Device> = Arc::new(RealDevice::open(home.path()).expect("opens"));
    let zero = BookieConfig { max_group_bytes: 0, ..small() };
    let refused = Bookie::open(zero, identity(), device.clone(), Env::system());
    assert!(matches!(refused, Err(OpenError::Config(_))));
    let (bookie, _) = open(device.clone());
    bookie.close_now().expect("closes");
    drop(bookie);
    let other = Identity { instance: 43, ..identity() };
    let refused = Bookie::open(small(), other, device, Env::system());
    assert!(matches!(refused, Err(OpenError::ForeignLog { .. })));
}
