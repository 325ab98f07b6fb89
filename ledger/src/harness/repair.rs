//! Repair in the simulation: repairers that follow the production plan step by step while owners,
//! recoveries and other repairers go on, and bookies that drop what nobody names.
//!
//! A repairer may stand still in between, and another may take its task over as if its lease had
//! ended. A bookie looks at the record and the claim of a ledger at one moment, and drops at a
//! later one what it had stored before and neither of them named.

use geminga_meta::record::RepairReason;
use geminga_proto::id::{BookieId, EntryId, LedgerId};
use geminga_proto::storage::{AddKind, AppendRequest, ReadRequest, StoredEntry};

use crate::harness::faults::Fault;
use crate::harness::metadata::MetaOp;
use crate::harness::mutant::Mutant;
use crate::harness::sim::{Event, Simulation};
use crate::metadata::{LedgerMetadata, LedgerState};
use crate::placement::{BookieView, ClusterView};
use crate::repair::plan::{CopyRun, How, Plan, plan, touchable};

/// Who is at a ledger, and where copies of it are on their way to.
#[derive(Debug)]
pub(super) struct Claim {
    id: usize,
    targets: Vec<BookieId>,
}

/// One attempt to repair a ledger.
#[derive(Debug)]
pub(super) struct Repairer {
    ledger: LedgerId,
    /// As it was read.
    metadata: LedgerMetadata,
    plan: Plan,
    /// The run that is copied, and which of its entries is next.
    run: usize,
    next: Option<EntryId>,
    over: bool,
}

/// Copies that a bookie is about to drop: each as it was when the bookie looked.
#[derive(Debug)]
pub(super) struct Doomed {
    bookie: usize,
    ledger: LedgerId,
    copies: Vec<(EntryId, u64)>,
}

impl Simulation {
    /// Somebody begins to move a fragment away from a bookie, and takes over what another was at.
    pub(super) fn begin_repair(&mut self) {
        let Some(metadata) = self.any_ledger() else { return };
        let ledger = metadata.id;
        let Some(leaving) = self.leaving(&metadata) else { return };
        let mut view = self.view();
        let mut reasons = vec![RepairReason::AckQuorumOnly];
        if self.below(2) == 0 {
            view.bookies.retain(|bookie| bookie.bookie != leaving);
            reasons.push(RepairReason::Missing(leaving));
        } else {
            for bookie in &mut view.bookies {
                bookie.takes &= bookie.bookie != leaving;
            }
            view.draining.push(leaving.clone());
            reasons.push(RepairReason::Draining(leaving));
        }
        let want = self.write_quorum as u32;
        let mut shown = metadata.clone();
        if self.has(Mutant::RepairTouchesOpenFragment) && shown.state == LedgerState::Open {
            // The defect takes what it knows to be there for all that there will be.
            shown.state = LedgerState::Closed;
            shown.last_entry = self.highest(&shown);
        }
        let mut plan = plan(&shown, &reasons, &view, want, &mut |bound| self.below(bound));
        if !plan.has_work() {
            return;
        }
        if self.has(Mutant::RepairCopiesBeyondEnd) {
            for run in &mut plan.copies {
                run.last = EntryId(run.last.0 + 3);
            }
        }
        let id = self.repairers.len();
        let named = !self.has(Mutant::RepairWithoutClaim);
        let targets = if named { plan.targets.clone() } else { Vec::new() };
        self.claims.insert(ledger, Claim { id, targets });
        self.repairers.push(Repairer { ledger, metadata, plan, run: 0, next: None, over: false });
        self.repair_later(id);
    }

    fn any_ledger(&self) -> Option<LedgerMetadata> {
        let ledgers: Vec<&LedgerMetadata> = self.metadata.ledgers().collect();
        if ledgers.is_empty() {
            return None;
        }
        Some(ledgers[self.below(ledgers.len() as u64) as usize].clone())
    }

    /// A bookie that is to leave some fragment that may be touched.
    fn leaving(&self, metadata: &LedgerMetadata) -> Option<BookieId> {
        let mut movable = touchable(metadata);
        if self.has(Mutant::RepairTouchesOpenFragment) {
            movable = metadata.fragments.len();
        }
        if movable == 0 {
            return None;
        }
        let fragment = &metadata.fragments[self.below(movable as u64) as usize];
        Some(fragment.bookies[self.below(fragment.bookies.len() as u64) as usize].clone())
    }

    fn view(&self) -> ClusterView {
        let up = self.names.iter().zip(&self.nodes).filter(|(_, node)| node.up);
        let bookies = up.map(|(name, _)| BookieView {
            bookie: name.clone(),
            zone: String::new(),
            free_bytes: 1,
            takes: true,
            suspect: false,
        });
        let bookies = bookies.collect();
        ClusterView { bookies, draining: Vec::new(), is_current: true }
    }

    fn highest(&self, metadata: &LedgerMetadata) -> geminga_proto::id::Lac {
        let last =
            |node: &crate::harness::sim::Node| node.disk.entries(metadata.id).last().copied();
        geminga_proto::id::Lac(self.nodes.iter().filter_map(last).max())
    }

    fn repair_later(&mut self, id: usize) {
        // Sometimes it stands still for long, and doesn't know.
        let stands = self.faulty && self.below(25) == 0;
        let delay = 1 + self.below(if stands { 600 } else { 6 });
        self.schedule(delay, Event::Fault(Fault::RepairStep(id)));
    }

    /// The next thing that a repairer does: copies an entry, or writes the record.
    pub(super) fn repair_step(&mut self, id: usize) {
        if self.repairers[id].over {
            return;
        }
        if self.metadata_down {
            return self.repair_later(id);
        }
        let repairer = &self.repairers[id];
        let Some(run) = repairer.plan.copies.get(repairer.run).cloned() else {
            self.repairers[id].over = true;
            return self.finish_repair(id);
        };
        let entry = repairer.next.unwrap_or(run.first);
        if !self.copy_entry(id, &run, entry) {
            // Nothing is guessed: the task stays for another attempt.
            self.repairers[id].over = true;
            if self.is_mine(id) {
                self.claims.remove(&self.repairers[id].ledger);
            }
            return;
        }
        let repairer = &mut self.repairers[id];
        if entry >= run.last {
            (repairer.run, repairer.next) = (repairer.run + 1, None);
        } else {
            repairer.next = Some(entry.next());
        }
        self.repair_later(id);
    }

    fn is_mine(&self, id: usize) -> bool {
        self.claims.get(&self.repairers[id].ledger).is_some_and(|claim| claim.id == id)
    }

    fn node_of(&self, bookie: &BookieId) -> Option<usize> {
        self.names.iter().position(|name| name == bookie).filter(|node| self.nodes[*node].up)
    }

    fn read_copy(
        &self,
        bookie: &BookieId,
        ledger: LedgerId,
        first: EntryId,
    ) -> Option<StoredEntry> {
        let node = self.node_of(bookie)?;
        let max_bytes = u64::MAX;
        let request = ReadRequest { ledger, first, max_entries: 1, max_bytes, fence: None };
        self.nodes[node].disk.read(&request).ok()?.pop()
    }

    /// False if it can't be copied.
    fn copy_entry(&mut self, id: usize, run: &CopyRun, entry: EntryId) -> bool {
        let ledger = self.repairers[id].ledger;
        let Some(target) = self.node_of(&run.to) else { return false };
        let trusts = run.how == How::Missing || self.has(Mutant::RepairTrustsCopies);
        if trusts && self.read_copy(&run.to, ledger, entry).is_some() {
            return true;
        }
        let copy = run.from.iter().find_map(|source| self.read_copy(source, ledger, entry));
        let Some(copy) = copy else {
            let whole_here =
                run.how == How::Damaged && self.read_copy(&run.to, ledger, entry).is_some();
            // The defect goes on where there is nothing.
            return whole_here || self.has(Mutant::RepairCopiesBeyondEnd);
        };
        let token = self.repairers[id].metadata.token;
        if self.nodes[target].disk.has_deleted(ledger) {
            return false;
        }
        self.nodes[target].disk.store(AppendRequest {
            ledger,
            entry,
            token,
            lac: copy.lac,
            kind: AddKind::Recovery,
            payload: copy.payload.into(),
        });
        self.checker.stored(&run.to, ledger, entry);
        self.checker.copied(ledger, entry);
        true
    }

    /// One transaction: the record as the plan wants it, if the claim is still there.
    fn finish_repair(&mut self, id: usize) {
        let ledger = self.repairers[id].ledger;
        if !self.is_mine(id) && !self.has(Mutant::RepairIgnoresClaim) {
            return;
        }
        let Some(found) = self.metadata.ledger(ledger).cloned() else {
            self.claims.remove(&ledger);
            return;
        };
        let plan = &self.repairers[id].plan;
        let changed = match plan.applied_to(&found.metadata) {
            None if self.has(Mutant::RepairTouchesOpenFragment) => {
                forced(plan, found.metadata.clone())
            }
            changed => changed,
        };
        self.claims.remove(&ledger);
        let Some(changed) = changed else { return };
        self.checker.repaired(&found.metadata, &changed);
        self.apply(MetaOp::CommitLedger(found.version, changed));
        for bookie in 0..self.nodes.len() {
            let delay = 1 + self.below(200);
            self.schedule(delay, Event::Fault(Fault::Look { bookie, ledger }));
        }
    }

    /// A bookie looks which of its copies nobody names.
    pub(super) fn look(&mut self, bookie: usize, ledger: LedgerId) {
        let name = &self.names[bookie];
        let Some(found) = self.metadata.ledger(ledger) else { return };
        if self.claims.get(&ledger).is_some_and(|claim| claim.targets.contains(name)) {
            return;
        }
        // Where the owner may still write, it may name this bookie again, and a recovery takes what
        // is there for what was sent since.
        let metadata = &found.metadata;
        let open = metadata.state != LedgerState::Closed;
        let writable = open.then(|| metadata.last_fragment().first_entry);
        let left = |(entry, _): &(EntryId, u64)| {
            let settled = writable.is_none_or(|first| *entry < first);
            (settled || self.has(Mutant::DropsWhereOwnerWrites))
                && !metadata.fragment_of(*entry).0.bookies.contains(name)
        };
        let copies: Vec<(EntryId, u64)> =
            self.nodes[bookie].disk.copies(ledger).into_iter().filter(left).collect();
        if copies.is_empty() {
            return;
        }
        self.doomed.push(Doomed { bookie, ledger, copies });
        let delay = self.below(150);
        self.schedule(delay, Event::Fault(Fault::Drop(self.doomed.len() - 1)));
    }

    /// It drops them, but for what was written since.
    pub(super) fn drop_doomed(&mut self, number: usize) {
        let Doomed { bookie, ledger, ref copies } = self.doomed[number];
        for (entry, stored) in copies.clone() {
            if self.nodes[bookie].disk.drop_copy_of(ledger, entry, stored) {
                self.checker.dropped(&self.names[bookie], ledger, entry);
            }
        }
    }

    /// Some bookie looks after some ledger.
    pub(super) fn look_anywhere(&mut self, bookie: usize) {
        if let Some(metadata) = self.any_ledger() {
            self.look(bookie, metadata.id);
        }
    }
}

/// What the defect writes, whatever the ledger's state.
fn forced(plan: &Plan, mut metadata: LedgerMetadata) -> Option<LedgerMetadata> {
    for moved in &plan.moves {
        let fits = |fragment: &&mut crate::metadata::Fragment| {
            fragment.first_entry == moved.first_entry && fragment.bookies == moved.before
        };
        metadata.fragments.iter_mut().find(fits)?.bookies.clone_from(&moved.after);
    }
    metadata.validate().ok().map(|()| metadata)
}
