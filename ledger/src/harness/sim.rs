//! The simulation: one queue of events in model time, one seeded source of every choice.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use geminga_proto::env::{Random, SeededRandom};
use geminga_proto::id::{BookieId, LedgerId};

use crate::engine::append::AppendEngine;
use crate::engine::recovery::RecoveryEngine;
use crate::engine::{Command, EngineLimits, RecoveryCommand};
use crate::harness::bookie::{Answer, Ask, ModelBookie};
use crate::harness::checker::Checker;
use crate::harness::faults::Fault;
use crate::harness::metadata::{MetaOp, MetaReply, ModelMetadata};
use crate::harness::mutant::Mutant;
use crate::harness::owner::Owner;
use crate::harness::repair::{Claim, Doomed, Repairer};
use crate::harness::theme::Theme;
use crate::harness::trace::{Trace, weight};

/// Model time between ticks of an engine.
const TICK: u64 = 50;

/// Who asked the metadata store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    Actor(usize),
    Owner(usize),
}

/// Something that will happen.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Arrive {
        bookie: usize,
        request: usize,
        ask: Ask,
    },
    Sync {
        bookie: usize,
        life: u32,
    },
    Reply {
        actor: usize,
        bookie: usize,
        answer: Answer,
    },
    MetaArrive {
        caller: Caller,
        op: MetaOp,
        answer_lost: bool,
    },
    /// The operation of a request whose outcome is unknown is done late.
    MetaLate {
        op: MetaOp,
    },
    MetaReply {
        caller: Caller,
        reply: MetaReply,
    },
    Picked {
        actor: usize,
        bookies: Vec<BookieId>,
    },
    Tick {
        actor: usize,
    },
    Step(usize),
    TakeOver,
    Fault(Fault),
}

/// A running engine.
#[derive(Debug)]
pub(super) enum Machine {
    Writer(Box<AppendEngine>),
    Recovery(Box<RecoveryEngine>),
}

/// An engine and whose it is.
#[derive(Debug)]
pub(super) struct Actor {
    pub owner: usize,
    pub ledger: LedgerId,
    pub machine: Machine,
    pub over: bool,
}

/// A bookie and its place in the network.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub disk: ModelBookie,
    pub up: bool,
    /// Never comes up again.
    pub gone: bool,
    /// Rises with each crash.
    pub life: u32,
    pub hung_until: u64,
    pub sync_planned: bool,
}

/// A request on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct InFlight {
    pub actor: usize,
    pub answer_lost: bool,
}

/// Everything.
#[derive(Debug)]
pub(super) struct Simulation {
    pub mutant: Option<Mutant>,
    pub limits: EngineLimits,
    pub write_quorum: usize,
    pub ack_quorum: usize,
    random: SeededRandom,
    pub now: u64,
    /// Events handled so far; the checker's clock.
    pub events: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    planned: BTreeMap<u64, Event>,
    planned_count: u64,
    pub names: Vec<BookieId>,
    pub nodes: Vec<Node>,
    pub metadata: ModelMetadata,
    pub metadata_down: bool,
    /// It doesn't say that it is down: it answers late.
    pub metadata_hangs: bool,
    pub owners: Vec<Owner>,
    pub actors: Vec<Actor>,
    pub next_ledger: u64,
    pub checker: Checker,
    pub recoveries: u64,
    /// Faults happen; false at the end, when everything is mended.
    pub faulty: bool,
    /// One request in so many is lost, or its answer; 0: none.
    pub loss: u64,
    /// Owners and bookies that don't reach each other.
    pub blocked: BTreeSet<(usize, usize)>,
    /// Links between owners and bookies that are slow all the time, and by how much at most.
    pub slow_links: BTreeMap<(usize, usize), u64>,
    pub theme: Theme,
    /// The one bookie that may lose or damage what it had.
    pub lossy: Option<usize>,
    pub connections: BTreeMap<(usize, usize), u64>,
    pub in_flight: Vec<InFlight>,
    /// Attempts to repair ledgers; the number of one is its claim's.
    pub repairers: Vec<Repairer>,
    pub claims: BTreeMap<LedgerId, Claim>,
    pub doomed: Vec<Doomed>,
    pub trace: Trace,
}

impl Simulation {
    pub(super) fn new(seed: u64, mutant: Option<Mutant>, theme: Option<Theme>) -> Self {
        let random = SeededRandom::new(seed);
        const SHAPES: [(usize, usize); 9] =
            [(3, 2), (3, 2), (3, 2), (1, 1), (2, 1), (2, 2), (3, 3), (4, 2), (5, 3)];
        let (write_quorum, ack_quorum) = SHAPES[random.below(SHAPES.len() as u64) as usize];
        let count = write_quorum + 1 + random.below(3) as usize;
        let name = |index| BookieId::new(&format!("b{index}")).expect("a valid name");
        let node = || {
            let mut disk = ModelBookie::default();
            disk.planted = mutant;
            disk.max_queue = (random.below(6) == 0).then(|| 1 + random.below(6) as usize);
            Node { disk, up: true, ..Node::default() }
        };
        let limits = EngineLimits {
            max_pending_bytes: 2_000,
            max_lag_bytes: 300 + random.below(3_000),
            timeout_ticks: 8,
            retry_ticks: 2,
        };
        Self {
            mutant,
            limits,
            write_quorum,
            ack_quorum,
            now: 0,
            events: 0,
            queue: BinaryHeap::new(),
            planned: BTreeMap::new(),
            planned_count: 0,
            names: (0..count).map(name).collect(),
            nodes: (0..count).map(|_| node()).collect(),
            metadata: ModelMetadata::default(),
            metadata_down: false,
            metadata_hangs: false,
            owners: Vec::new(),
            actors: Vec::new(),
            next_ledger: 0,
            checker: Checker::default(),
            recoveries: 0,
            faulty: true,
            loss: [0, 0, 100, 25, 8][random.below(5) as usize],
            blocked: BTreeSet::new(),
            slow_links: BTreeMap::new(),
            theme: theme.unwrap_or(Theme::ALL[random.below(Theme::ALL.len() as u64) as usize]),
            lossy: None,
            connections: BTreeMap::new(),
            in_flight: Vec::new(),
            repairers: Vec::new(),
            claims: BTreeMap::new(),
            doomed: Vec::new(),
            trace: Trace::new(seed),
            random,
        }
    }

    pub(super) fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(super) fn random_u64(&self) -> u64 {
        self.random.next_u64()
    }

    pub(super) fn below(&self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    pub(super) fn schedule(&mut self, delay: u64, event: Event) {
        self.planned_count += 1;
        self.queue.push(Reverse((self.now + delay, self.planned_count)));
        self.planned.insert(self.planned_count, event);
    }

    /// Lets things happen until `until`, or until a promise is broken.
    pub(super) fn run_until(&mut self, until: u64) {
        while let Some(Reverse((at, number))) = self.queue.peek().copied() {
            if at > until || self.checker.violation.is_some() {
                break;
            }
            self.queue.pop();
            let Some(event) = self.planned.remove(&number) else { continue };
            self.now = at;
            self.events += 1;
            #[allow(clippy::print_stdout, reason = "a trace for people, on demand")]
            if self.trace.print {
                println!("{at:>6} {event:?}");
            }
            self.trace.note([at, number, weight(&event), self.checker.confirmed_entries]);
            self.handle(event);
        }
        self.now = self.now.max(until);
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { bookie, request, ask } => self.arrive(bookie, request, ask),
            Event::Sync { bookie, life } => self.sync(bookie, life),
            Event::Reply { actor, bookie, answer } => self.reply(actor, bookie, answer),
            Event::MetaArrive { caller, op, answer_lost } => {
                let reply = self.apply(op);
                let reply = if answer_lost { MetaReply::Unknown } else { reply };
                let delay = 1 + self.below(15);
                self.schedule(delay, Event::MetaReply { caller, reply });
            }
            Event::MetaLate { op } => {
                self.apply(op);
            }
            Event::MetaReply { caller: Caller::Owner(owner), reply } => {
                self.owner_reply(owner, reply);
            }
            Event::MetaReply { caller: Caller::Actor(actor), reply } => {
                self.actor_reply(actor, reply);
            }
            Event::Picked { actor, bookies } => match &self.actors[actor].machine {
                Machine::Writer(_) => {
                    self.writer_event(actor, |engine, out| engine.replacement(bookies, out));
                }
                Machine::Recovery(_) => {
                    self.recovery_event(actor, |engine, out| engine.replacement(bookies, out));
                }
            },
            Event::Tick { actor } => self.tick(actor),
            Event::Step(owner) => self.step(owner),
            Event::TakeOver => self.take_over(false),
            Event::Fault(fault) => self.fault(fault),
        }
    }

    pub(super) fn add_actor(&mut self, owner: usize, ledger: LedgerId, machine: Machine) -> usize {
        self.actors.push(Actor { owner, ledger, machine, over: false });
        let actor = self.actors.len() - 1;
        self.schedule(TICK, Event::Tick { actor });
        actor
    }

    fn tick(&mut self, actor: usize) {
        if self.actors[actor].over {
            return;
        }
        self.schedule(TICK, Event::Tick { actor });
        match &self.actors[actor].machine {
            Machine::Writer(_) => self.writer_event(actor, AppendEngine::tick),
            Machine::Recovery(_) => self.recovery_event(actor, RecoveryEngine::tick),
        }
    }

    // Engines and their commands.

    pub(super) fn writer_event(
        &mut self,
        actor: usize,
        event: impl FnOnce(&mut AppendEngine, &mut Vec<Command>),
    ) {
        let mut commands = Vec::new();
        if let Machine::Writer(engine) = &mut self.actors[actor].machine {
            event(engine, &mut commands);
            let (lag, limit) = (engine.lag_bytes(), self.limits.max_lag_bytes);
            if lag > limit {
                self.checker.broken(|| format!("a bookie owes {lag} bytes, the limit is {limit}"));
            }
            self.checker.moved(actor, engine);
        }
        self.perform_writer(actor, commands);
    }

    pub(super) fn perform_writer(&mut self, actor: usize, commands: Vec<Command>) {
        for command in commands {
            match command {
                Command::Send { bookie, request } => self.ask(actor, &bookie, Ask::Append(request)),
                Command::Confirmed(lac) => {
                    let (ledger, at) = (self.actors[actor].ledger, self.events);
                    self.checker.confirmed(ledger, lac, at);
                }
                Command::PickReplacement { count, exclude } => {
                    self.pick_later(actor, count, &exclude);
                }
                Command::Commit { version, metadata } => {
                    self.checker.writes(actor, &metadata, self.now, TICK);
                    let op = MetaOp::CommitLedger(version, metadata);
                    self.ask_metadata(Caller::Actor(actor), op);
                }
                Command::ReadMetadata => {
                    let op = MetaOp::ReadLedger(self.actors[actor].ledger);
                    self.ask_metadata(Caller::Actor(actor), op);
                }
                Command::Failed { failure, unknown } => {
                    self.writer_failed(actor, &failure, unknown);
                }
                Command::Closed(metadata) => self.writer_closed(actor, &metadata),
                Command::Stalled(reason) => self.checker.stalled(actor, Some(reason)),
                Command::Resumed => self.checker.stalled(actor, None),
                Command::CloseDelayed => {}
            }
        }
    }

    pub(super) fn recovery_event(
        &mut self,
        actor: usize,
        event: impl FnOnce(&mut RecoveryEngine, &mut Vec<RecoveryCommand>),
    ) {
        let mut commands = Vec::new();
        if let Machine::Recovery(engine) = &mut self.actors[actor].machine {
            event(engine, &mut commands);
            if engine.first_searched().is_some() {
                self.checker.fenced(self.actors[actor].ledger, self.events);
            }
        }
        self.perform_recovery(actor, commands);
    }

    pub(super) fn perform_recovery(&mut self, actor: usize, commands: Vec<RecoveryCommand>) {
        for command in commands {
            match command {
                RecoveryCommand::ReadMetadata => {
                    let op = MetaOp::ReadLedger(self.actors[actor].ledger);
                    self.ask_metadata(Caller::Actor(actor), op);
                }
                RecoveryCommand::Commit { version, metadata } => {
                    let op = MetaOp::CommitLedger(version, metadata);
                    self.ask_metadata(Caller::Actor(actor), op);
                }
                RecoveryCommand::Fence { bookie, request } => {
                    self.ask(actor, &bookie, Ask::Fence(request));
                }
                RecoveryCommand::Read { bookie, round, mut request } => {
                    // Small, so that a search takes several rounds.
                    request.max_entries = 1 + self.below(3) as u32;
                    self.ask(actor, &bookie, Ask::Read(round, request));
                }
                RecoveryCommand::Send { bookie, request } => {
                    self.ask(actor, &bookie, Ask::Append(request));
                }
                RecoveryCommand::PickReplacement { count, exclude } => {
                    self.pick_later(actor, count, &exclude);
                }
                RecoveryCommand::Done(result) => self.recovered(actor, result),
            }
        }
    }

    fn pick_later(&mut self, actor: usize, count: usize, exclude: &[BookieId]) {
        let bookies = self.pick(count, 1, exclude).unwrap_or_default();
        let delay = 1 + self.below(5);
        self.schedule(delay, Event::Picked { actor, bookies });
    }

    /// Placement: mostly bookies that are up.
    pub(super) fn pick(
        &self,
        want: usize,
        at_least: usize,
        exclude: &[BookieId],
    ) -> Option<Vec<BookieId>> {
        let knows = !self.faulty || self.below(8) > 0;
        let mut left: Vec<&BookieId> = self
            .names
            .iter()
            .zip(&self.nodes)
            .filter(|(name, node)| (node.up || !knows) && !exclude.contains(name))
            .map(|(name, _)| name)
            .collect();
        if left.len() < at_least {
            return None;
        }
        let mut picked = Vec::new();
        while picked.len() < want && !left.is_empty() {
            let index = self.below(left.len() as u64) as usize;
            picked.push(left.swap_remove(index).clone());
        }
        Some(picked)
    }
}
