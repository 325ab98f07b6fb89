//! How engines reach the model bookies and the model metadata store: with delays, out of order
//! across connections but in order on each, and with requests and answers that get lost or
//! repeated.

use geminga_proto::id::BookieId;
use geminga_proto::storage::BookieError;

use crate::engine::{CommitAnswer, MetadataAnswer};
use crate::harness::bookie::{Answer, Ask};
use crate::harness::faults::Fault;
use crate::harness::metadata::{MetaOp, MetaReply};
use crate::harness::sim::{Actor, Caller, Event, InFlight, Machine, Simulation};
use crate::harness::theme::Theme;

impl Simulation {
    pub(super) fn ask(&mut self, actor: usize, bookie: &BookieId, ask: Ask) {
        let Some(node) = self.names.iter().position(|name| name == bookie) else { return };
        let owner = self.actors[actor].owner;
        if !self.nodes[node].up || self.blocked.contains(&(owner, node)) {
            return self.unreachable(actor, node, &ask);
        }
        let rate = match ask {
            Ask::Fence(_) | Ask::Read(..) if self.theme == Theme::Zombies => 3,
            _ => self.loss,
        };
        let lost = self.faulty && rate > 0 && self.below(rate) == 0;
        if lost && self.below(2) == 0 {
            return self.unreachable(actor, node, &ask);
        }
        self.in_flight.push(InFlight { actor, answer_lost: lost });
        let request = self.in_flight.len() - 1;
        // What goes over one connection arrives in order.
        let slow = self.faulty && self.below(12) == 0;
        let link = self.link(owner, node);
        let delay = 1 + self.below(if slow { 120 } else { 8 }) + self.below(link + 1);
        let arrives = self.connections.entry((actor, node)).or_default();
        *arrives = (*arrives).max(self.now + delay).max(self.nodes[node].hung_until);
        let delay = *arrives - self.now;
        self.schedule(delay, Event::Arrive { bookie: node, request, ask });
    }

    fn link(&mut self, owner: usize, node: usize) -> u64 {
        if !self.faulty {
            return 0;
        }
        let chance = if self.theme == Theme::Zombies { 2 } else { 6 };
        let drawn = if self.below(chance) == 0 { 30 + self.below(300) } else { 0 };
        *self.slow_links.entry((owner, node)).or_insert(drawn)
    }

    fn unreachable(&mut self, actor: usize, bookie: usize, ask: &Ask) {
        let answer = ask.refusal(BookieError::Unreachable);
        let delay = 1 + self.below(60);
        self.schedule(delay, Event::Reply { actor, bookie, answer });
    }

    pub(super) fn arrive(&mut self, bookie: usize, request: usize, ask: Ask) {
        if !self.nodes[bookie].up {
            let actor = self.in_flight[request].actor;
            return self.unreachable(actor, bookie, &ask);
        }
        let answer = self.nodes[bookie].disk.ask(request, ask);
        if let Some(answer) = answer {
            self.answer(bookie, request, answer);
        }
        if !self.nodes[bookie].disk.idle() && !self.nodes[bookie].sync_planned {
            self.nodes[bookie].sync_planned = true;
            let life = self.nodes[bookie].life;
            let delay = 1 + self.below(10);
            self.schedule(delay, Event::Sync { bookie, life });
        }
    }

    pub(super) fn sync(&mut self, bookie: usize, life: u32) {
        if self.nodes[bookie].life != life {
            return;
        }
        self.nodes[bookie].sync_planned = false;
        let (answers, stored) = self.nodes[bookie].disk.sync();
        for (ledger, entry) in stored {
            self.checker.stored(&self.names[bookie], ledger, entry);
        }
        for (request, answer) in answers {
            self.answer(bookie, request, answer);
        }
    }

    fn answer(&mut self, bookie: usize, request: usize, answer: Answer) {
        let InFlight { actor, answer_lost } = self.in_flight[request];
        let owner = self.actors[actor].owner;
        let answer = if answer_lost || self.blocked.contains(&(owner, bookie)) {
            match answer {
                Answer::Append(entry, _) => Answer::Append(entry, Err(BookieError::Unreachable)),
                Answer::Fence(_) => Answer::Fence(Err(BookieError::Unreachable)),
                Answer::Read(round, _) => Answer::Read(round, Err(BookieError::Unreachable)),
            }
        } else {
            answer
        };
        let delay = 1 + self.below(8);
        if self.faulty && self.below(50) == 0 {
            let twice = Event::Reply { actor, bookie, answer: answer.clone() };
            let later = delay + self.below(100);
            self.schedule(later, twice);
        }
        self.schedule(delay, Event::Reply { actor, bookie, answer });
    }

    pub(super) fn reply(&mut self, actor: usize, bookie: usize, answer: Answer) {
        if self.actors[actor].over {
            return;
        }
        let name = self.names[bookie].clone();
        if let Machine::Writer(engine) = &self.actors[actor].machine {
            if let Answer::Append(entry, result) = answer {
                if result.is_ok() && engine.metadata().last_fragment().bookies.contains(&name) {
                    self.checker.heard(actor, entry, &name);
                }
                self.writer_event(actor, |engine, out| {
                    engine.append_answered(&name, entry, result, out);
                });
            }
            return;
        }
        let fenced = matches!(answer, Answer::Fence(Ok(_)));
        self.recovery_event(actor, |engine, out| match answer {
            Answer::Append(entry, result) => engine.append_answered(&name, entry, result, out),
            Answer::Fence(result) => engine.fenced(&name, result, out),
            Answer::Read(round, result) => engine.read(&name, round, result, out),
        });
        let Actor { ledger, over, ref machine, .. } = self.actors[actor];
        if fenced
            && let Machine::Recovery(engine) = machine
            && let Some(found) = self.metadata.ledger(ledger)
        {
            let goes_on = over || engine.first_searched().is_some();
            self.checker.fence_heard(actor, &name, &found.metadata, goes_on);
        }
    }

    /// A bookie stops; what it hadn't synced is lost.
    pub(super) fn crash(&mut self, bookie: usize) {
        let node = &mut self.nodes[bookie];
        node.up = false;
        node.life += 1;
        node.sync_planned = false;
        let waiting = node.disk.crash();
        for (request, ask) in waiting {
            let actor = self.in_flight[request].actor;
            self.unreachable(actor, bookie, &ask);
        }
    }

    // The metadata store.

    pub(super) fn ask_metadata(&mut self, caller: Caller, op: MetaOp) {
        let delay = 1 + self.below(15);
        let reading = matches!(op, MetaOp::ReadLedger(_) | MetaOp::ReadList);
        if self.metadata_down {
            let reply = match self.below(4) {
                _ if reading => MetaReply::NotRead,
                0 => MetaReply::Unknown,
                _ => MetaReply::Unavailable,
            };
            let silence = if self.metadata_hangs { 100 + self.below(400) } else { 30 };
            return self.schedule(delay + silence, Event::MetaReply { caller, reply });
        }
        let rate = if self.theme == Theme::Metadata { 3 } else { self.loss };
        let lost = self.faulty && !reading && rate > 0 && self.below(rate) == 0;
        if lost && self.theme == Theme::Metadata && self.below(2) == 0 {
            let lasts = 50 + self.below(400);
            self.schedule(delay + 1, Event::Fault(Fault::MetadataDown));
            self.schedule(delay + 1 + lasts, Event::Fault(Fault::MetadataUp));
        }
        if !lost {
            return self.schedule(delay, Event::MetaArrive { caller, op, answer_lost: false });
        }
        match self.below(3) {
            0 => self.schedule(delay, Event::MetaArrive { caller, op, answer_lost: true }),
            1 => self.schedule(delay, Event::MetaReply { caller, reply: MetaReply::Unknown }),
            _ => {
                // The answer *unknown* comes first, the write is done afterwards.
                self.schedule(delay, Event::MetaReply { caller, reply: MetaReply::Unknown });
                let late = delay + self.below(300);
                self.schedule(late, Event::MetaLate { op });
            }
        }
    }

    pub(super) fn apply(&mut self, op: MetaOp) -> MetaReply {
        let (reply, written) = self.metadata.apply(op);
        if let Some(written) = written {
            self.checker.written(&written);
        }
        reply
    }

    pub(super) fn actor_reply(&mut self, actor: usize, reply: MetaReply) {
        if self.actors[actor].over {
            return;
        }
        let commit = match &reply {
            MetaReply::Applied(version) => Some(CommitAnswer::Committed(*version)),
            MetaReply::Conflict => Some(CommitAnswer::Conflict),
            MetaReply::Unknown => Some(CommitAnswer::Unknown),
            MetaReply::Unavailable => Some(CommitAnswer::Unavailable),
            MetaReply::Ledger(_) | MetaReply::List(..) | MetaReply::NotRead => None,
        };
        let read = match reply {
            MetaReply::Ledger(Some(found)) => MetadataAnswer::Found(found),
            MetaReply::Ledger(None) => MetadataAnswer::Absent,
            _ => MetadataAnswer::Unavailable,
        };
        match &self.actors[actor].machine {
            Machine::Writer(_) => self.writer_event(actor, |engine, out| match commit {
                Some(answer) => engine.commit_answered(answer, out),
                None => engine.metadata_read(read, out),
            }),
            Machine::Recovery(_) => self.recovery_event(actor, |engine, out| match commit {
                Some(answer) => engine.commit_answered(answer, out),
                None => engine.metadata_read(read, out),
            }),
        }
    }
}
