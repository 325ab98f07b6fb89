//! What goes wrong in a simulation, and what mends it. Also when repairs begin, which change
//! records under their owners' feet.
//!
//! At most one bookie of a run loses or damages what it had, and only where the ack quorum is
//! above 1: more than that the protocol doesn't promise to survive.

use geminga_proto::id::{BookieId, EntryId, LedgerId};

use crate::harness::bookie::Fullness;
use crate::harness::metadata::{MetaOp, MetaReply};
use crate::harness::mutant::Mutant;
use crate::harness::owner::{Owner, Phase};
use crate::harness::sim::{Event, Simulation};
use crate::harness::theme::Theme;
use crate::metadata::LedgerState;

/// One thing that goes wrong or is mended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    Crash(usize),
    Restart(usize),
    /// A crash and a restart at once.
    Blip(usize),
    Hang(usize, u64),
    /// The latest owners and this bookie don't reach each other.
    Partition(usize),
    EndPartitions,
    MetadataDown,
    MetadataUp,
    Full(usize, Fullness),
    AllFull,
    AllFree,
    /// The lossy bookie loses its disk.
    Wipe,
    /// The lossy bookie's disk damages some entries.
    Damage,
    /// The lossy bookie loses a segment, and knows it.
    LoseSegment,
    /// The process of an owner ends.
    KillOwner,
    /// Somebody begins to repair a ledger.
    Repair,
    /// It goes on.
    RepairStep(usize),
    /// A bookie looks which copies of a ledger it is not to keep.
    Look {
        bookie: usize,
        ledger: LedgerId,
    },
    /// The same, of some ledger.
    LookAnywhere(usize),
    /// It drops what it had found.
    Drop(usize),
    /// The owner deletes what is closed.
    Trim,
    /// A bookie deletes a ledger that is gone.
    Collect {
        bookie: usize,
        ledger: LedgerId,
    },
    /// Somebody of another time writes to a ledger that a bookie knows.
    Stranger(usize),
    /// No more faults.
    Heal,
}

impl Simulation {
    /// Plans what goes wrong until `horizon`.
    pub(super) fn plan_faults(&mut self, horizon: u64) {
        let mut count = self.below(16);
        match self.theme {
            Theme::Repair => count += 12,
            Theme::Deletion => count += 8,
            Theme::Strangers => count += 20,
            _ => {}
        }
        let chance = if self.theme == Theme::Damage { 1 } else { 3 };
        if self.ack_quorum >= 2 && self.below(chance) == 0 {
            self.lossy = Some(self.below(self.nodes.len() as u64) as usize);
        }
        for _ in 0..count {
            let at = self.below(horizon);
            let bookie = self.below(self.nodes.len() as u64) as usize;
            let lasts = 20 + self.below(800);
            let (fault, end) = match self.theme {
                Theme::Damage if self.below(2) == 0 => {
                    // Just before somebody looks.
                    let soon = at + self.below(60);
                    self.schedule(soon, Event::TakeOver);
                    (self.loss_of_data(), None)
                }
                Theme::Repair if self.below(2) == 0 => (Fault::Repair, None),
                Theme::Repair if self.below(2) == 0 => (Fault::LookAnywhere(bookie), None),
                Theme::Deletion if self.below(2) == 0 => {
                    // Soon after somebody has taken over.
                    self.schedule(at, Event::TakeOver);
                    let soon = at + 100 + self.below(300);
                    self.schedule(soon, Event::Fault(Fault::Trim));
                    continue;
                }
                Theme::Strangers if self.below(3) > 0 => (Fault::Stranger(bookie), None),
                Theme::Restarts if self.below(2) == 0 => (Fault::Blip(bookie), None),
                Theme::Deaths if self.below(2) == 0 => {
                    // In the middle of a recovery that has to change its ensemble.
                    self.schedule(at, Event::TakeOver);
                    let (crash, death) = (at + self.below(120), at + 40 + self.below(150));
                    self.schedule(death, Event::Fault(Fault::KillOwner));
                    self.schedule(crash + lasts, Event::Fault(Fault::Restart(bookie)));
                    self.schedule(crash, Event::Fault(Fault::Crash(bookie)));
                    continue;
                }
                Theme::Space if self.below(2) == 0 => (Fault::AllFull, Some(Fault::AllFree)),
                _ => self.any_fault(bookie, at + lasts),
            };
            self.schedule(at, Event::Fault(fault));
            if let Some(end) = end {
                self.schedule(at + lasts, Event::Fault(end));
            }
        }
        if self.theme == Theme::Zombies {
            for _ in 0..6 {
                let at = self.below(horizon);
                self.schedule(at, Event::TakeOver);
            }
        }
    }

    /// A ledger was closed by a recovery.
    pub(super) fn after_recovery(&mut self, ensemble: &[BookieId]) {
        if self.theme != Theme::Restarts || !self.faulty {
            return;
        }
        for bookie in 0..self.nodes.len() {
            if ensemble.contains(&self.names[bookie]) && self.below(2) == 0 {
                let delay = self.below(50);
                self.schedule(delay, Event::Fault(Fault::Blip(bookie)));
            }
        }
    }

    fn loss_of_data(&self) -> Fault {
        match self.below(3) {
            0 => Fault::Wipe,
            1 => Fault::Damage,
            _ => Fault::LoseSegment,
        }
    }

    fn any_fault(&self, bookie: usize, until: u64) -> (Fault, Option<Fault>) {
        match self.below(16) {
            0..=2 => (Fault::Crash(bookie), Some(Fault::Restart(bookie))),
            3 => (Fault::Hang(bookie, until), None),
            4 | 5 => (Fault::Partition(bookie), Some(Fault::EndPartitions)),
            6 => (Fault::MetadataDown, Some(Fault::MetadataUp)),
            7 => {
                let first = self.below(2) == 0;
                let full = if first { Fullness::FirstMark } else { Fullness::SecondMark };
                (Fault::Full(bookie, full), Some(Fault::Full(bookie, Fullness::Free)))
            }
            8 => (Fault::AllFull, Some(Fault::AllFree)),
            9 => (self.loss_of_data(), None),
            10 | 11 => (Fault::Blip(bookie), None),
            12 | 13 => (Fault::KillOwner, None),
            _ => (Fault::Repair, None),
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Crash(bookie) => self.crash(bookie),
            Fault::Restart(bookie) => self.nodes[bookie].up = !self.nodes[bookie].gone,
            Fault::Blip(bookie) => {
                if self.nodes[bookie].up {
                    self.crash(bookie);
                    self.nodes[bookie].up = true;
                }
            }
            Fault::Hang(bookie, until) => self.nodes[bookie].hung_until = until,
            Fault::Partition(bookie) => {
                let latest = self.owners.len();
                let from = latest.saturating_sub(1 + self.below(2) as usize);
                self.blocked.extend((from..latest).map(|owner| (owner, bookie)));
            }
            Fault::EndPartitions => self.blocked.clear(),
            Fault::MetadataDown => {
                self.metadata_down = true;
                self.metadata_hangs = self.theme == Theme::Metadata && self.below(2) == 0;
            }
            Fault::MetadataUp => self.metadata_down = false,
            Fault::Full(bookie, full) => self.nodes[bookie].disk.full = full,
            Fault::AllFull => {
                self.nodes.iter_mut().for_each(|node| node.disk.full = Fullness::FirstMark);
            }
            Fault::AllFree => {
                self.nodes.iter_mut().for_each(|node| node.disk.full = Fullness::Free);
            }
            Fault::Wipe => self.wipe(),
            Fault::Damage => self.damage(),
            Fault::LoseSegment => self.lose_segment(),
            Fault::KillOwner => self.kill_owner(),
            Fault::Repair => self.begin_repair(),
            Fault::RepairStep(id) => self.repair_step(id),
            Fault::Look { bookie, ledger } => self.look(bookie, ledger),
            Fault::LookAnywhere(bookie) => self.look_anywhere(bookie),
            Fault::Drop(number) => self.drop_doomed(number),
            Fault::Trim => self.trim(),
            Fault::Collect { bookie, ledger } => self.collect(bookie, ledger),
            Fault::Stranger(bookie) => self.stranger(bookie),
            Fault::Heal => self.heal(),
        }
    }

    /// A store that was set back gives ids out twice; only the token tells their ledgers apart.
    fn stranger(&mut self, bookie: usize) {
        let disk = &self.nodes[bookie].disk;
        let ledgers: Vec<LedgerId> = disk.ledgers().collect();
        if !self.nodes[bookie].up || ledgers.is_empty() {
            return;
        }
        let ledger = ledgers[self.below(ledgers.len() as u64) as usize];
        let beyond = disk.entries(ledger).last().map_or(0, |last| last.0 + 2);
        let entry = EntryId(self.below(beyond + 1));
        if self.nodes[bookie].disk.stranger(ledger, entry).is_ok() {
            // What this does to the log shows by itself.
            self.trace.note([u64::MAX, ledger.0, entry.0, bookie as u64]);
        }
    }

    /// Everybody has consumed the closed ledgers at the head of the list: its owner, if it is at
    /// work, deletes them. Bookies hear of it at their own times.
    fn trim(&mut self) {
        let mut version = self.metadata.list_version();
        let at_work = |owner: &Owner| {
            owner.phase == Phase::Serving
                && owner.list_version == version
                && owner.creating.is_none()
        };
        let Some(owner) = self.owners.iter().rposition(at_work) else { return };
        for ledger in self.metadata.list().to_vec() {
            let Some(found) = self.metadata.ledger(ledger) else { return };
            if found.metadata.state != LedgerState::Closed {
                return;
            }
            let MetaReply::Applied(next) = self.apply(MetaOp::Unlink(version, ledger)) else {
                return;
            };
            version = next;
            self.owners[owner].list_version = version;
            self.checker.deleted(ledger);
            for bookie in 0..self.nodes.len() {
                let delay = 1 + self.below(60);
                self.schedule(delay, Event::Fault(Fault::Collect { bookie, ledger }));
            }
        }
    }

    fn collect(&mut self, bookie: usize, ledger: LedgerId) {
        let node = &mut self.nodes[bookie];
        if node.up {
            node.disk.delete(ledger);
        } else if !node.gone {
            self.schedule(100, Event::Fault(Fault::Collect { bookie, ledger }));
        }
    }

    fn heal(&mut self) {
        self.faulty = false;
        self.loss = 0;
        self.blocked.clear();
        self.metadata_down = false;
        for node in &mut self.nodes {
            node.up = !node.gone;
            node.hung_until = 0;
            node.disk.full = Fullness::Free;
        }
    }

    /// Its cookie no longer matches, so it never comes back; the planted defect lets it.
    fn wipe(&mut self) {
        let Some(bookie) = self.lossy else { return };
        if !self.nodes[bookie].up {
            return;
        }
        self.crash(bookie);
        self.nodes[bookie].disk.wipe();
        if self.has(Mutant::WipedBookieReturns) {
            self.nodes[bookie].up = true;
        } else {
            self.nodes[bookie].gone = true;
        }
    }

    fn damage(&mut self) {
        let Some(bookie) = self.lossy else { return };
        let disk = &self.nodes[bookie].disk;
        let mut hit = Vec::new();
        for ledger in disk.ledgers().collect::<Vec<_>>() {
            for entry in disk.entries(ledger) {
                if self.below(3) == 0 {
                    hit.push((ledger, entry));
                }
            }
        }
        self.nodes[bookie].disk.damaged.extend(hit);
    }

    fn lose_segment(&mut self) {
        let Some(bookie) = self.lossy else { return };
        self.nodes[bookie].disk.segment_missing = true;
        for ledger in self.nodes[bookie].disk.ledgers().collect::<Vec<_>>() {
            for entry in self.nodes[bookie].disk.entries(ledger) {
                if self.below(2) == 0 {
                    self.nodes[bookie].disk.drop_copy(ledger, entry);
                }
            }
        }
    }

    fn kill_owner(&mut self) {
        let Some(owner) = self.owners.len().checked_sub(1) else { return };
        self.owners[owner].phase = Phase::Gone;
        for actor in self.actors.iter_mut().filter(|actor| actor.owner == owner) {
            actor.over = true;
        }
        let delay = 10 + self.below(200);
        self.schedule(delay, Event::TakeOver);
    }
}
