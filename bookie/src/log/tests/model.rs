//! Random operations, crashes and restarts against a plain model.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use geminga_proto::env::{Random, SeededRandom};
use geminga_proto::id::LedgerId;
use geminga_proto::storage::{AddKind, AppendRequest, BookieError};

use super::rig::{KIB, Rig, append, config, payload};
use crate::config::BookieConfig;
use crate::device::memory::{MemoryDevice, Tear};

/// What must be true of the log.
#[derive(Default)]
struct Model {
    /// Acknowledged.
    stored: BTreeMap<(u64, u64), Bytes>,
    /// Sent; may or may not be there.
    unsure: BTreeSet<(u64, u64)>,
    fenced: BTreeSet<u64>,
    /// A fence was sent and not answered.
    maybe_fenced: BTreeSet<u64>,
    deleted: BTreeSet<u64>,
    next_entry: BTreeMap<u64, u64>,
}

struct Run {
    rig: Rig,
    model: Model,
    random: SeededRandom,
    /// Ledgers in use are from here on.
    oldest: u64,
    trace: Vec<String>,
    config: BookieConfig,
    /// Most segments that were rewritten between two starts.
    rewritten: u64,
}

const LEDGERS: u64 = 6;

impl Run {
    fn new(seed: u64) -> Self {
        let config = BookieConfig { max_bytes: Some(1024 * KIB), ..config() };
        let rig = Rig::open(MemoryDevice::new(8192 * KIB), &config).expect("opens");
        let random = SeededRandom::new(seed);
        let (model, trace) = (Model::default(), Vec::new());
        Self { rig, model, random, oldest: 1, trace, config, rewritten: 0 }
    }

    fn step(&mut self) {
        let ledger = self.oldest + self.random.below(LEDGERS);
        match self.random.below(100) {
            0..=59 => self.append_some(ledger),
            60..=69 => self.check_ledger(ledger),
            70..=76 => self.fence(ledger),
            77..=84 => self.delete_oldest(),
            85..=88 => self.keep(),
            // An idle log proves its last group once.
            89..=91 if self.rig.log.with_state(|state| state.unproven) => self.rig.close_group(),
            92..=95 => self.crash(),
            96..=97 => self.cut_power(),
            _ => self.restart(),
        }
    }

    /// Chores, and steps of what can wait.
    fn keep(&mut self) {
        for _ in 0..=self.random.below(12) {
            self.rig.pass(std::time::Duration::from_secs(1));
            self.rig.keep();
        }
        self.rewritten =
            self.rewritten.max(self.rig.log.with_state(|state| state.counters.rewritten_segments));
    }

    fn append_some(&mut self, ledger: u64) {
        let kind = match self.random.below(4) {
            0 => AddKind::Recovery,
            1 => AddKind::StateLog,
            _ => AddKind::Ordinary,
        };
        let mut sent = Vec::new();
        for _ in 0..=self.random.below(6) {
            let next = self.model.next_entry.entry(ledger).or_default();
            // Now and then an entry again.
            let entry = if *next > 0 && self.random.below(8) == 0 { *next - 1 } else { *next };
            let bytes = usize::try_from(entry * 977 % 6_000).expect("small");
            let offered = self.rig.offer(AppendRequest { kind, ..append(ledger, entry, bytes) });
            self.trace.push(format!("append {ledger}:{entry} {kind:?} {offered:?}"));
            match offered {
                Ok(()) => {
                    *next = (*next).max(entry + 1);
                    sent.push((entry, bytes));
                }
                Err(BookieError::Fenced) => {
                    let known = self.model.fenced.contains(&ledger);
                    assert!(known || self.model.maybe_fenced.contains(&ledger));
                }
                Err(BookieError::DiskFull) => return self.finish(ledger, &sent),
                Err(other) => panic!("{other}"),
            }
            if offered.is_ok() && kind != AddKind::Recovery {
                assert!(!self.model.fenced.contains(&ledger), "a fenced ledger took an add");
            }
        }
        self.finish(ledger, &sent);
    }

    fn finish(&mut self, ledger: u64, sent: &[(u64, usize)]) {
        self.rig.settle();
        for (answered, entry, result) in self.rig.answers() {
            assert_eq!(answered, ledger);
            let bytes = sent.iter().find(|(sent, _)| *sent == entry).expect("was sent").1;
            assert!(matches!(result, Ok(()) | Err(BookieError::DiskFull)), "{result:?}");
            if result.is_ok() {
                self.model.stored.insert((ledger, entry), payload(ledger, entry, bytes));
            }
        }
    }

    fn fence(&mut self, ledger: u64) {
        let fenced = self.rig.fence(ledger);
        self.trace.push(format!("fence {ledger} {fenced:?}"));
        match fenced {
            Ok(_) => {
                self.model.fenced.insert(ledger);
            }
            Err(BookieError::DiskFull) => {
                self.model.maybe_fenced.insert(ledger);
            }
            Err(other) => panic!("{other}"),
        }
    }

    fn delete_oldest(&mut self) {
        let ledger = self.oldest;
        self.oldest += 1;
        self.trace.push(format!("delete {ledger}"));
        self.rig.delete(&[ledger]);
        self.model.stored.retain(|(stored, _), _| *stored != ledger);
        self.model.unsure.retain(|(unsure, _)| *unsure != ledger);
        // One without any record here needs no note.
        if self.rig.log.state.lock().is_deleted(LedgerId(ledger)) {
            self.model.deleted.insert(ledger);
        }
        self.rig.settle();
    }

    fn tear(&self) -> Tear {
        match self.random.below(4) {
            0 => Tear::Lost,
            1 => Tear::Whole,
            2 => Tear::Prefix(usize::try_from(self.random.below(20_000)).expect("small")),
            _ => Tear::Blocks(self.random.next_u64()),
        }
    }

    fn crash(&mut self) {
        self.trace.push("crash".to_owned());
        let device = self.rig.device.crash(self.tear());
        self.reopen(device);
    }

    /// Some writes from now on the power goes, with appends and a fence on the way.
    fn cut_power(&mut self) {
        self.rig.device.cut_power_at_write(1 + self.random.below(8));
        self.trace.push("power cut ahead".to_owned());
        for _ in 0..40 {
            let ledger = self.oldest + self.random.below(LEDGERS);
            let entry = self.model.next_entry.get(&ledger).copied().unwrap_or(0);
            let bytes = usize::try_from(entry * 977 % 6_000).expect("small");
            let request = AppendRequest { kind: AddKind::Recovery, ..append(ledger, entry, bytes) };
            if self.rig.offer(request).is_ok() {
                self.model.unsure.insert((ledger, entry));
                self.model.next_entry.insert(ledger, entry + 1);
            }
            let mut waiting = None;
            if self.random.below(5) == 0 {
                waiting = self.rig.offer_fence(ledger).ok();
                self.model.maybe_fenced.insert(ledger);
            }
            if self.rig.log.state.lock().poisoned.is_none() {
                self.rig.settle_or_die();
            }
            for (ledger, entry, result) in self.rig.answers() {
                if result.is_ok() {
                    let bytes = usize::try_from(entry * 977 % 6_000).expect("small");
                    self.model.unsure.remove(&(ledger, entry));
                    self.model.stored.insert((ledger, entry), payload(ledger, entry, bytes));
                }
            }
            if waiting.is_some_and(|mut waiting| matches!(waiting.try_recv(), Ok(Ok(_)))) {
                self.model.fenced.insert(ledger);
            }
        }
        let device = self.rig.device.crash(self.tear());
        self.reopen(device);
    }

    fn restart(&mut self) {
        self.trace.push("restart".to_owned());
        self.rig.log.seal_all().expect("closes");
        let device = self.rig.device.crash(Tear::Lost);
        self.reopen(device);
        assert!(self.rig.report.clean);
    }

    fn reopen(&mut self, device: MemoryDevice) {
        self.rig = Rig::open(device, &self.config).expect("opens again");
        assert_eq!(self.rig.report.damage, []);
        for deleted in self.model.deleted.clone() {
            assert!(self.rig.log.state.lock().is_deleted(LedgerId(deleted)), "{deleted} is back");
            assert_eq!(self.rig.get(deleted, 0), Err(BookieError::NoSuchEntry));
        }
        self.rig.settle();
        for ledger in self.oldest..self.oldest + LEDGERS {
            self.check_ledger(ledger);
        }
    }

    fn check_ledger(&mut self, ledger: u64) {
        let next = self.model.next_entry.get(&ledger).copied().unwrap_or(0);
        for entry in 0..next + 2 {
            let place = (ledger, entry);
            let found = self.rig.get(ledger, entry);
            match self.model.stored.get(&place) {
                Some(stored) => assert_eq!(found.as_ref(), Ok(stored), "{place:?}"),
                None if self.model.unsure.contains(&place) => {
                    let definite = matches!(found, Ok(_) | Err(BookieError::NoSuchEntry));
                    assert!(definite, "{place:?}: {found:?}");
                }
                None => assert_eq!(found, Err(BookieError::NoSuchEntry), "{place:?}"),
            }
        }
    }
}

impl Rig {
    /// As settle, but the power may go meanwhile.
    fn settle_or_die(&mut self) {
        for _ in 0..100 {
            let turn = self.turn();
            self.keep();
            if turn == crate::log::Turn::Idle || self.log.state.lock().poisoned.is_some() {
                return;
            }
        }
        panic!("the log neither settles nor dies");
    }
}

#[test]
fn the_log_agrees_with_a_plain_model_through_crashes_and_restarts() {
    let mut rewritten = 0;
    for seed in 0..60 {
        let result = std::panic::catch_unwind(|| {
            let mut run = Run::new(seed);
            for _ in 0..150 {
                run.step();
            }
            run.rewritten
        });
        assert!(result.is_ok(), "seed {seed} failed");
        rewritten += u64::from(result.is_ok_and(|rewritten| rewritten > 0));
    }
    assert!(rewritten > 20, "segments were rewritten in {rewritten} runs only");
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let image = |seed| {
        let mut run = Run::new(seed);
        for _ in 0..60 {
            run.step();
        }
        let names = crate::device::Device::list(&run.rig.device).expect("lists");
        let files: Vec<_> = names.iter().map(|name| run.rig.device.contents(name)).collect();
        (run.trace, names, files)
    };
    assert!(image(3) == image(3));
    assert!(image(3).0 != image(4).0);
}
