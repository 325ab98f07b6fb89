//! The seeded simulation that the engines run in, and the checker of what happened.
//!
//! Owners take a log over from each other, append, roll, crash and go on as zombies; repairers move
//! copies, stand still and are followed by others; model
//! bookies crash, hang, fill up, and one of them may lose or damage entries; the model network
//! delays, reorders, loses, repeats and partitions; the model metadata store fails, and loses
//! answers before and after it has done what was asked. Then everything is mended, a last owner
//! takes the log over, and the history is checked.
//!
//! Invariant: a seed decides everything. There is no clock, no thread and no unordered map.

pub mod bookie;
pub mod checker;
mod faults;
pub mod metadata;
pub mod mutant;
mod network;
mod owner;
mod repair;
mod sim;
pub mod theme;
mod trace;
pub mod transport;

use geminga_proto::id::{EntryId, LedgerId};
use geminga_proto::storage::ReadRequest;

use crate::harness::faults::Fault;
use crate::harness::mutant::Mutant;
use crate::harness::owner::Phase;
use crate::harness::sim::{Event, Machine, Simulation};
use crate::harness::theme::Theme;
use crate::metadata::LedgerState;

/// What came of one seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The promise that was broken.
    pub violation: Option<String>,
    /// Digest of everything that happened.
    pub trace: u64,
    /// Events handled.
    pub events: u64,
    /// Entries that were confirmed.
    pub confirmed: u64,
    /// Recoveries that ended with a closed ledger.
    pub recoveries: u64,
}

/// One run: everything follows from this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Decides everything else.
    pub seed: u64,
    /// The planted defect.
    pub mutant: Option<Mutant>,
    /// What goes wrong mostly; `None`: the seed decides.
    pub theme: Option<Theme>,
    /// Prints every event on standard output.
    pub print: bool,
}

impl Run {
    /// Without a defect.
    #[must_use]
    pub fn seed(seed: u64) -> Self {
        Self { seed, mutant: None, theme: None, print: false }
    }

    /// With a defect, under the theme in which it shows.
    #[must_use]
    pub fn planted(seed: u64, mutant: Mutant) -> Self {
        Self { seed, mutant: Some(mutant), theme: Some(mutant.theme()), print: false }
    }
}

/// Runs it.
#[must_use]
pub fn run(run: Run) -> Outcome {
    let mut sim = Simulation::new(run.seed, run.mutant, run.theme);
    sim.trace.print = run.print;
    let horizon = 1_000 + sim.below(3_000);
    sim.plan_faults(horizon);
    sim.schedule(0, Event::TakeOver);
    for _ in 0..sim.below(4) {
        let at = sim.below(horizon);
        sim.schedule(at, Event::TakeOver);
    }
    sim.run_until(horizon);
    sim.fault(Fault::Heal);
    // Late writes, timeouts and retries come to their end.
    sim.run_until(horizon + 4_000);
    sim.check_drained();
    sim.take_over(true);
    sim.run_until(horizon + 12_000);
    sim.check_end();
    Outcome {
        violation: sim.checker.violation.clone(),
        trace: sim.trace.digest(),
        events: sim.events,
        confirmed: sim.checker.confirmed_entries,
        recoveries: sim.recoveries,
    }
}

/// How a planted defect was caught.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caught {
    /// The first seed at which a promise is broken.
    pub seed: u64,
    /// Which one.
    pub what: String,
    /// What the same run without the defect breaks: then the defect was not what was caught.
    pub without: Option<String>,
}

/// The first seed at which a planted defect is caught: the one at which it was before, or one of
/// these. Beside it the same seed is run under the same theme without the defect.
#[must_use]
pub fn catch(mutant: Mutant, seeds: std::ops::Range<u64>) -> Option<Caught> {
    let hint = mutant.hint();
    std::iter::once(hint).chain(seeds.filter(|seed| *seed != hint)).find_map(|seed| {
        let planted = Run::planted(seed, mutant);
        let what = run(planted).violation?;
        let without = run(Run { mutant: None, ..planted }).violation;
        Some(Caught { seed, what, without })
    })
}

impl Simulation {
    /// With everything mended, an owner that is still there has nothing pending.
    fn check_drained(&mut self) {
        for index in 0..self.actors.len() {
            let actor = &self.actors[index];
            let ledger = actor.ledger;
            if let Machine::Writer(engine) = &actor.machine
                && !actor.over
                && engine.lac().next_entry() != engine.next_entry()
            {
                let (lac, next) = (engine.lac(), engine.next_entry());
                self.checker.broken(|| format!("{ledger} is stuck at {lac}, next is {next}"));
            }
        }
    }

    /// The last owner has closed what was open; everything can be read.
    fn check_end(&mut self) {
        if self.owners.last().is_some_and(|owner| owner.phase != Phase::Gone) {
            self.checker.broken(|| "the last take-over never ends".to_owned());
        }
        let mut log = Vec::new();
        for ledger in self.metadata.list().to_vec() {
            let Some(found) = self.metadata.ledger(ledger).cloned() else { continue };
            if found.metadata.state != LedgerState::Closed {
                self.checker.broken(|| format!("{ledger} was left open"));
            }
            let Some(last) = found.metadata.last_entry.0 else { continue };
            for number in 0..=last.0 {
                let entry = EntryId(number);
                let bookies = &found.metadata.fragment_of(entry).0.bookies;
                match self.read(ledger, entry, bookies) {
                    Some(content) => log.push((ledger, entry, content)),
                    None => self.checker.broken(|| format!("{ledger}:{entry} can't be read")),
                }
            }
        }
        self.checker.finish(&log);
    }

    fn read(
        &self,
        ledger: LedgerId,
        first: EntryId,
        bookies: &[geminga_proto::id::BookieId],
    ) -> Option<u64> {
        let request =
            ReadRequest { ledger, first, max_entries: 1, max_bytes: u64::MAX, fence: None };
        let holders = self.names.iter().zip(&self.nodes).filter(|(name, _)| bookies.contains(name));
        let mut copies = holders.filter_map(|(_, node)| node.disk.read(&request).ok()?.pop());
        let payload = copies.next()?.payload;
        Some(u64::from_be_bytes(payload.get(..8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests;
