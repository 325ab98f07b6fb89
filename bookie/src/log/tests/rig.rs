//! A small log on a memory disk, turned by hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_proto::env::{Env, ManualClock, SeededRandom};
use geminga_proto::id::{EntryId, Lac, LedgerId, LedgerToken};
use geminga_proto::payload::Payload;
use geminga_proto::storage::{
    AddKind, AppendRequest, AppendResult, BookieError, FenceRequest, FenceResult, ReadRequest,
    ReadResult,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::config::BookieConfig;
use crate::device::memory::MemoryDevice;
use crate::done::{AppendAnswer, AppendDone};
use crate::error::OpenError;
use crate::log::NotRead;
use crate::log::keeper::Chored;
use crate::log::state::FenceAdmission;
use crate::log::{Hand, Log, OpenReport, Origin, Turn};

pub const KIB: u64 = 1024;
/// What the metadata say when a log is opened.
pub const YOUNGEST_LEDGER: u64 = 99;

/// What came of appends, in the order of the answers.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<(LedgerId, EntryId, AppendResult)>>);

impl AppendDone for Recorder {
    fn appended(&self, answers: &[AppendAnswer]) {
        let answers = answers.iter().map(|answer| (answer.ledger, answer.entry, answer.result));
        self.0.lock().extend(answers);
    }
}

pub struct Rig {
    pub device: MemoryDevice,
    pub log: Log,
    pub report: OpenReport,
    recorder: Arc<Recorder>,
    waiter: Arc<dyn AppendDone>,
    clock: Arc<ManualClock>,
    hand: Hand,
}

pub fn config() -> BookieConfig {
    BookieConfig {
        segment_bytes: Some(128 * KIB),
        first_segment_bytes: 64 * KIB,
        max_entry_bytes: 8 * 1024,
        max_group_bytes: 32 * 1024,
        index_cache_bytes: 64 * KIB,
        max_spare_segments: 2,
        ..BookieConfig::default()
    }
}

pub fn append(ledger: u64, entry: u64, bytes: usize) -> AppendRequest {
    AppendRequest {
        ledger: LedgerId(ledger),
        entry: EntryId(entry),
        token: token(ledger),
        lac: Lac(entry.checked_sub(1).map(EntryId)),
        kind: AddKind::Ordinary,
        payload: Payload::from(payload(ledger, entry, bytes)),
    }
}

pub fn token(ledger: u64) -> LedgerToken {
    LedgerToken(ledger * 10 + 1)
}

/// Bytes that differ from those of every other entry.
pub fn payload(ledger: u64, entry: u64, bytes: usize) -> Bytes {
    let fill = ledger.wrapping_mul(31).wrapping_add(entry.wrapping_mul(7)).to_le_bytes()[0];
    let mut payload = vec![fill; bytes];
    for (out, byte) in
        payload.iter_mut().zip(ledger.to_le_bytes().iter().chain(&entry.to_le_bytes()))
    {
        *out = *byte;
    }
    payload.into()
}

impl Rig {
    pub fn new() -> Self {
        Self::on(MemoryDevice::new(4096 * KIB))
    }

    pub fn on(device: MemoryDevice) -> Self {
        Self::open(device, &config()).expect("opens")
    }

    pub fn open(device: MemoryDevice, config: &BookieConfig) -> Result<Self, OpenError> {
        Self::open_as(device, config, false)
    }

    /// `initialized`: the disk's cookie says that a log was begun.
    pub fn open_as(
        device: MemoryDevice,
        config: &BookieConfig,
        initialized: bool,
    ) -> Result<Self, OpenError> {
        let clock = Arc::<ManualClock>::default();
        let env = Env { clock: clock.clone(), random: Arc::new(SeededRandom::new(1)) };
        let limits = config.validate()?;
        let youngest_ledger = Some(LedgerId(YOUNGEST_LEDGER));
        let origin = Origin { instance: 77, initialized, youngest_ledger };
        let (log, report) = Log::open(config, limits, origin, Arc::new(device.clone()), env)?;
        let recorder = Arc::new(Recorder::default());
        let waiter: Arc<dyn AppendDone> = recorder.clone();
        Ok(Self { device, log, report, recorder, waiter, clock, hand: Hand::default() })
    }

    /// Puts an append into the queue.
    pub fn offer(&self, request: AppendRequest) -> Result<(), BookieError> {
        self.log.append(request, &self.waiter, 0)
    }

    /// Puts an append into the queue as nobody can any more who asks.
    pub fn enqueue_unchecked(&self, request: AppendRequest) {
        let poisoned = self.log.state.lock().poisoned.take();
        self.offer(request).expect("room");
        self.log.state.lock().poisoned = poisoned;
    }

    /// Writes one group with all that fits.
    pub fn turn(&mut self) -> Turn {
        self.log.write_group(self.log.state.lock(), &mut self.hand, false)
    }

    /// Writes an empty group, as an idle log does.
    pub fn close_group(&mut self) {
        let turn = self.log.write_group(self.log.state.lock(), &mut self.hand, true);
        assert_eq!(turn, Turn::Progress);
    }

    /// Lets time pass.
    pub fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    /// Sets the wall clock forward or back.
    pub fn jump(&self, by_ms: i64) {
        use geminga_proto::env::Clock;
        self.clock.set_wall_ms(self.clock.wall_ms().saturating_add_signed(by_ms));
    }

    /// Does all chores.
    pub fn keep(&self) {
        while self.log.run_chore() == Chored::Done {}
    }

    /// Writes all groups and does all chores.
    pub fn settle(&mut self) {
        loop {
            match self.turn() {
                Turn::Progress => {}
                Turn::Idle => {
                    self.keep();
                    if !self.log.state.lock().has_work() {
                        return;
                    }
                }
                Turn::Blocked => {
                    let chored = self.log.run_chore();
                    // Without space the next turn refuses what waits.
                    let refuses = self.log.with_state(|state| state.no_space);
                    assert!(chored == Chored::Done || refuses, "blocked for ever: {chored:?}");
                }
            }
        }
    }

    /// Appends, writes and returns the answer.
    pub fn put(&mut self, request: AppendRequest) -> AppendResult {
        let place = (request.ledger, request.entry);
        self.offer(request)?;
        self.settle();
        let answers = self.recorder.0.lock();
        let answer = answers.iter().rev().find(|answer| (answer.0, answer.1) == place);
        answer.expect("every append is answered").2
    }

    /// Appends entries of one ledger, each in its group.
    pub fn fill(&mut self, ledger: u64, entries: std::ops::Range<u64>, bytes: usize) {
        for entry in entries {
            assert_eq!(self.put(append(ledger, entry, bytes)), Ok(()));
        }
    }

    pub fn answers(&self) -> Vec<(u64, u64, AppendResult)> {
        let taken = std::mem::take(&mut *self.recorder.0.lock());
        taken.into_iter().map(|(ledger, entry, result)| (ledger.0, entry.0, result)).collect()
    }

    pub fn offer_fence(&self, ledger: u64) -> Result<oneshot::Receiver<FenceResult>, BookieError> {
        let request = FenceRequest { ledger: LedgerId(ledger), token: token(ledger) };
        match self.log.fence(request)? {
            FenceAdmission::Queued(receiver) => Ok(receiver),
            FenceAdmission::Done(result) => {
                let (sender, receiver) = oneshot::channel();
                sender.send(result).expect("the receiver is here");
                Ok(receiver)
            }
        }
    }

    pub fn fence(&mut self, ledger: u64) -> FenceResult {
        let mut waiting = self.offer_fence(ledger)?;
        self.settle();
        waiting.try_recv().expect("every fence is answered")
    }

    pub fn read(&self, ledger: u64, first: u64, max_entries: u32) -> ReadResult {
        let (ledger, first) = (LedgerId(ledger), EntryId(first));
        let request = ReadRequest { ledger, first, max_entries, max_bytes: u64::MAX, fence: None };
        self.log.read(&request, u64::MAX).map_err(|not_read| match not_read {
            NotRead::Failed(error) => error,
            NotRead::Larger(bytes) => panic!("{bytes} bytes don't fit into any"),
        })
    }

    /// Reads one entry's payload.
    pub fn get(&self, ledger: u64, entry: u64) -> Result<Bytes, BookieError> {
        let mut entries = self.read(ledger, entry, 1)?;
        assert_eq!(entries.len(), 1);
        Ok(entries.remove(0).payload)
    }

    /// The state of every entry that `expected` names.
    pub fn check(&self, expected: &BTreeMap<(u64, u64), Bytes>) {
        for ((ledger, entry), payload) in expected {
            let found = self.get(*ledger, *entry);
            assert_eq!(found.as_ref(), Ok(payload), "ledger {ledger}, entry {entry}");
        }
    }

    /// Name of the file that is written to.
    pub fn active_file(&self) -> String {
        crate::log::segment::file_name(self.log.state.lock().active.slot)
    }

    /// Names of the files of sealed segments, oldest first.
    pub fn sealed_files(&self) -> Vec<String> {
        let state = self.log.state.lock();
        state.sealed.values().map(|s| crate::log::segment::file_name(s.slot)).collect()
    }

    pub fn delete(&self, ledgers: &[u64]) -> u64 {
        let ledgers: Vec<LedgerId> = ledgers.iter().copied().map(LedgerId).collect();
        let before = self.log.state.lock().counters.deleted_ledgers;
        self.log.state.lock().doom(0, &ledgers);
        self.keep();
        self.log.state.lock().counters.deleted_ledgers - before
    }
}
