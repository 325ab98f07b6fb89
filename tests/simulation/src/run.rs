//! One run: everything from the seed to the verdict.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::crowd::Crowd;
use crate::dice::Dice;
use crate::faults::plan;
use crate::mutant::Mutant;
use crate::panics;
use crate::theme::Theme;
use crate::trace::Words;
use crate::world::World;

/// How long everything may take to come to its end when the faults are over.
const DRAIN_US: u64 = 90_000_000;
/// How long the subscriptions may take to be made before anything goes wrong.
const SETUP_US: u64 = 20_000_000;

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Decides everything else.
    pub seed: u64,
    /// What goes wrong mostly; `None`: the seed decides.
    pub theme: Option<Theme>,
    /// The planted defect.
    pub mutant: Option<Mutant>,
    /// Keeps the trace in words.
    pub words: bool,
}

impl Run {
    /// Without a defect.
    #[must_use]
    pub fn seed(seed: u64) -> Self {
        Self { seed, theme: None, mutant: None, words: false }
    }
}

impl Run {
    /// With a defect, under the theme in which it shows.
    #[must_use]
    pub fn planted(seed: u64, mutant: Mutant) -> Self {
        Self { theme: Some(mutant.theme()), mutant: Some(mutant), ..Self::seed(seed) }
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
    let others = seeds.filter(|seed| *seed != hint);
    std::iter::once(hint).chain(others).find_map(|seed| catch_at(mutant, seed))
}

/// Whether a planted defect is caught at this seed. A panic is a broken promise, too, but no proof
/// that the checker sees what the defect does.
fn catch_at(mutant: Mutant, seed: u64) -> Option<Caught> {
    let planted = Run::planted(seed, mutant);
    let outcome = run(planted);
    let what = outcome.violation.filter(|_| !outcome.panicked)?;
    let without = run(Run { mutant: None, ..planted }).violation;
    Some(Caught { seed, what, without })
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The first promise that was broken.
    pub violation: Option<String>,
    /// That was a panic, and no checker's finding.
    pub panicked: bool,
    /// What went wrong mostly.
    pub theme: Theme,
    /// Digest of everything that happened.
    pub trace: u64,
    /// How much happened.
    pub noted: u64,
    /// Batches whose receipt was heard.
    pub receipts: u64,
    /// Messages handed to consumers.
    pub deliveries: u64,
    /// Simulated time.
    pub took: Duration,
    /// The trace in words, if they were kept.
    pub lines: Vec<String>,
}

/// Runs it.
#[must_use]
pub fn run(run: Run) -> Outcome {
    let theme = run.theme.unwrap_or_else(|| Theme::of(run.seed));
    let words = if run.words { Words::Kept } else { Words::Digest };
    let dice = Dice::new(run.seed, "run", 0);
    panics::listen();
    let mut world = World::new(run.seed, run.mutant, words);
    let crowd = Crowd::gather(&world, &dice);
    crowd.enter(&world);
    if world.until(SETUP_US, |_| crowd.has_entered()) {
        crowd.work(&world, &dice);
        suffer(&mut world, theme, &dice);
        world.heal();
        world.shared.draining.store(true, Ordering::Relaxed);
        drain(&mut world, &crowd);
    } else {
        world.shared.history.broken("the subscriptions can't be made".to_owned());
    }
    panics::deafen();
    let history = world.shared.history.lock();
    Outcome {
        violation: history.violation.clone(),
        panicked: history.panicked,
        theme,
        trace: world.shared.trace.digest(),
        noted: world.shared.trace.count(),
        receipts: history.receipts,
        deliveries: history.deliveries,
        took: Duration::from_micros(world.shared.time.now_us()),
        lines: world.shared.trace.lines(),
    }
}

/// Lets things go wrong.
fn suffer(world: &mut World, theme: Theme, dice: &Dice) {
    let begun = world.shared.time.now_us();
    let horizon = dice.within(4_000_000..12_000_000);
    let mut plan = plan(theme, &world.hosts, dice, horizon).into_iter().peekable();
    while world.shared.time.now_us() < begun + horizon && world.shared.history.violation().is_none()
    {
        let at = world.shared.time.now_us() - begun;
        while let Some((_, fault)) = plan.next_if(|(due, _)| *due <= at) {
            world.fault(fault);
        }
        world.tick();
    }
}

/// Brings everything to its end, and checks it.
fn drain(world: &mut World, crowd: &Crowd) {
    let done = |world: &mut World| {
        let history = world.shared.history.lock();
        history.violation.is_some() || history.outstanding(crowd.producers).is_none()
    };
    // Who was about to leave when the faults ended is gone only now.
    let whole = world.until(DRAIN_US, World::is_whole_or_restart);
    let drained = world.until(DRAIN_US, done);
    if !whole || !drained {
        let mut history = world.shared.history.lock();
        let what = history.outstanding(crowd.producers);
        history.broken(|| format!("it doesn't go on when the faults are over: {what:?}"));
        return;
    }
    crowd.settle(world);
    if !world.until(DRAIN_US, |_| crowd.has_settled()) {
        world.shared.history.broken("a subscription never comes to its end".to_owned());
        return;
    }
    if !world.until(DRAIN_US, |world| world.unrestored().is_none()) {
        let what = world.unrestored();
        world.shared.history.broken(format!("replication isn't restored: {what:?}"));
        return;
    }
    crowd.audit(world);
    let audited = world.until(DRAIN_US, |_| crowd.has_audited());
    if !audited {
        world.shared.history.broken("not everything can be read in the end".to_owned());
    }
    let mut history = world.shared.history.lock();
    history.check_order();
    history.check_readable();
    history.check_cursors();
    drop(history);
    world.check_copies();
}

impl World {
    /// Lets time go by until it is so, for so long at most.
    fn until(&mut self, most_us: u64, is: impl Fn(&mut Self) -> bool) -> bool {
        let end = self.shared.time.now_us() + most_us;
        while self.shared.time.now_us() < end {
            for _ in 0..20 {
                self.tick();
            }
            if is(self) {
                return true;
            }
        }
        false
    }

    fn is_whole_or_restart(&mut self) -> bool {
        if self.is_whole() {
            return true;
        }
        for host in self.hosts.bookies.clone().into_iter().chain(self.hosts.brokers.clone()) {
            self.start(host);
        }
        false
    }
}
