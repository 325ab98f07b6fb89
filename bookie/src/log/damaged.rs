//! [`Damaged`]: entries that are known to be damaged here, until they are whole again or count no
//! more.
//!
//! Kept in memory alone: what a start doesn't know, the next read or scrub finds again.
//!
//! Invariants:
//! - Nothing that was noted is left out. Memory is bounded all the same: beyond [`MAX_RUNS`], a run
//!   reaches up to its neighbour in the same ledger and segment, and names what lies between too.
//!   So there is at most one more run for each ledger that a segment has.
//! - Runs of a ledger don't overlap.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use geminga_proto::id::{EntryId, LedgerId, SegmentId};

/// Most runs that are kept apart.
const MAX_RUNS: usize = 1 << 16;

/// A run of damaged entries of one ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRange {
    /// The ledger.
    pub ledger: LedgerId,
    /// Its entries.
    pub entries: RangeInclusive<EntryId>,
}

/// A run without its first entry.
#[derive(Debug, Clone, Copy)]
struct Run {
    last: EntryId,
    /// Where the copies lie.
    segment: SegmentId,
}

/// What is damaged.
#[derive(Debug)]
pub(crate) struct Damaged {
    /// By ledger and first entry.
    runs: BTreeMap<(LedgerId, EntryId), Run>,
    /// How many runs each segment has; none has 0.
    of: BTreeMap<SegmentId, usize>,
    /// Entries of all runs.
    entries: u64,
    /// Pages of a segment's index that can't be read, where that is known.
    pages: BTreeMap<SegmentId, BTreeSet<u32>>,
    /// Rises with each change.
    version: u64,
    max_runs: usize,
}

impl Default for Damaged {
    fn default() -> Self {
        Self {
            runs: BTreeMap::new(),
            of: BTreeMap::new(),
            entries: 0,
            pages: BTreeMap::new(),
            version: 0,
            max_runs: MAX_RUNS,
        }
    }
}

fn count(first: EntryId, last: EntryId) -> u64 {
    last.0.saturating_sub(first.0).saturating_add(1)
}

impl Damaged {
    /// Notes damaged entries; how many of them are news.
    pub fn note(
        &mut self,
        ledger: LedgerId,
        entries: RangeInclusive<EntryId>,
        segment: SegmentId,
    ) -> u64 {
        let (mut first, mut last) = (*entries.start(), *entries.end());
        if first > last {
            return 0;
        }
        let before = self.entries;
        self.disown(ledger, first..=last, segment);
        self.cut(ledger, first..=last);
        let full = self.runs.len() >= self.max_runs;
        let joins = |run: &Run, gap: bool| run.segment == segment && (gap || full);
        if let Some(((of, start), run)) = self.runs.range(..(ledger, first)).next_back()
            && *of == ledger
            && joins(run, run.last.next() == first)
        {
            first = *start;
        }
        if let Some(((of, start), run)) = self.runs.range((ledger, last)..).next()
            && *of == ledger
            && joins(run, last.next() == *start)
        {
            last = run.last;
        }
        self.disown(ledger, first..=last, segment);
        self.cut(ledger, first..=last);
        self.insert(ledger, first, Run { last, segment });
        self.entries.saturating_sub(before)
    }

    /// Notes that move to `segment` from others are no longer told of these: that they are gone
    /// from there says nothing of what the lost pages there list.
    fn disown(&mut self, ledger: LedgerId, entries: RangeInclusive<EntryId>, segment: SegmentId) {
        let runs = self.runs.range(..=(ledger, *entries.end())).rev();
        let within = |((of, _), run): &(&(LedgerId, EntryId), &Run)| {
            *of == ledger && run.last >= *entries.start()
        };
        let moved = runs.take_while(within).map(|(_, run)| run.segment);
        let moved: BTreeSet<SegmentId> = moved.filter(|of| *of != segment).collect();
        moved.into_iter().for_each(|of| self.forget_pages(of));
    }

    fn insert(&mut self, ledger: LedgerId, first: EntryId, run: Run) {
        self.version += 1;
        self.entries = self.entries.saturating_add(count(first, run.last));
        *self.of.entry(run.segment).or_default() += 1;
        self.runs.insert((ledger, first), run);
    }

    fn remove(&mut self, ledger: LedgerId, first: EntryId) -> Option<Run> {
        let run = self.runs.remove(&(ledger, first))?;
        self.version += 1;
        self.entries = self.entries.saturating_sub(count(first, run.last));
        if let Some(runs) = self.of.get_mut(&run.segment) {
            *runs -= 1;
            if *runs == 0 {
                self.of.remove(&run.segment);
            }
        }
        Some(run)
    }

    /// Takes entries out.
    fn cut(&mut self, ledger: LedgerId, entries: RangeInclusive<EntryId>) {
        let (first, last) = (*entries.start(), *entries.end());
        // From the last run on that begins before the end.
        while let Some(((of, start), run)) = self.runs.range(..=(ledger, last)).next_back()
            && *of == ledger
            && run.last >= first
        {
            let start = *start;
            let Some(run) = self.remove(ledger, start) else { return };
            if run.last > last {
                self.insert(ledger, last.next(), run);
            }
            if let Some(end) = first.previous()
                && start <= end
            {
                self.insert(ledger, start, Run { last: end, ..run });
                return;
            }
        }
    }

    /// A whole copy is durable. Answers the segment of a run that is over with that, if nothing
    /// else of it is damaged.
    pub fn mended(&mut self, ledger: LedgerId, entry: EntryId) -> Option<SegmentId> {
        let run = self.run_of(ledger, entry)?;
        self.cut(ledger, entry..=entry);
        (!self.has(run.segment)).then_some(run.segment)
    }

    fn run_of(&self, ledger: LedgerId, entry: EntryId) -> Option<Run> {
        let ((of, _), run) = self.runs.range(..=(ledger, entry)).next_back()?;
        (*of == ledger && run.last >= entry).then_some(*run)
    }

    /// True if any of these entries is noted.
    pub fn any_of(&self, ledger: LedgerId, entries: RangeInclusive<EntryId>) -> bool {
        let (first, last) = (*entries.start(), *entries.end());
        let run = self.runs.range(..=(ledger, last)).next_back();
        run.is_some_and(|((of, _), run)| *of == ledger && run.last >= first)
    }

    /// What of these entries is not noted for another segment than `segment`.
    pub fn others(
        &self,
        ledger: LedgerId,
        entries: &RangeInclusive<EntryId>,
        segment: SegmentId,
    ) -> Vec<RangeInclusive<EntryId>> {
        let (mut from, last) = (*entries.start(), *entries.end());
        let mut rest = Vec::new();
        for (first, run) in self.reaching(ledger, entries) {
            if run.segment == segment {
                continue;
            }
            if let Some(before) = first.previous().filter(|before| *before >= from) {
                rest.push(from..=before);
            }
            from = run.last.next();
        }
        if from <= last {
            rest.push(from..=last);
        }
        rest
    }

    /// Of a ledger, these entries are not damaged in this segment.
    pub fn forget_entries(
        &mut self,
        ledger: LedgerId,
        entries: RangeInclusive<EntryId>,
        segment: SegmentId,
    ) {
        if self.has(segment) {
            let kept = self.others(ledger, &entries, segment);
            let noted = kept.iter().flat_map(|run| self.within(ledger, run));
            let noted: Vec<_> = noted.collect();
            noted.into_iter().for_each(|run| self.cut(ledger, run));
        }
    }

    /// What of these entries is noted.
    fn within(
        &self,
        ledger: LedgerId,
        entries: &RangeInclusive<EntryId>,
    ) -> Vec<RangeInclusive<EntryId>> {
        let (from, last) = (*entries.start(), *entries.end());
        let runs = self.reaching(ledger, entries);
        runs.map(|(first, run)| from.max(first)..=last.min(run.last)).collect()
    }

    /// Runs that have some of these entries.
    fn reaching(
        &self,
        ledger: LedgerId,
        entries: &RangeInclusive<EntryId>,
    ) -> impl Iterator<Item = (EntryId, &Run)> {
        let (from, last) = (*entries.start(), *entries.end());
        let before = self.runs.range(..(ledger, from)).next_back();
        let before =
            before.filter(|((of, _), run)| *of == ledger && run.last >= from && from <= last);
        let after = self
            .runs
            .range((ledger, from)..)
            .take_while(move |((of, first), _)| *of == ledger && *first <= last);
        before.into_iter().chain(after).map(|((_, first), run)| (*first, run))
    }

    /// A ledger is gone.
    pub fn forget(&mut self, ledger: LedgerId) {
        if !self.runs.is_empty() {
            self.cut(ledger, EntryId(0)..=EntryId(u64::MAX));
        }
    }

    /// Of a ledger, what is in segments below `complete` counts no more but for `kept`, which is
    /// rising.
    pub fn keep_only(
        &mut self,
        ledger: LedgerId,
        complete: SegmentId,
        kept: &[RangeInclusive<EntryId>],
    ) {
        let of_ledger = (ledger, EntryId(0))..=(ledger, EntryId(u64::MAX));
        let runs: Vec<_> = self.runs.range(of_ledger).map(|((_, at), run)| (*at, *run)).collect();
        for (first, run) in runs.into_iter().filter(|(_, run)| run.segment < complete) {
            self.remove(ledger, first);
            for kept in kept {
                let (from, to) = (first.max(*kept.start()), run.last.min(*kept.end()));
                if from <= to {
                    self.insert(ledger, from, Run { last: to, ..run });
                }
            }
        }
    }

    /// What a segment has of a ledger counts no more.
    pub fn forget_in(&mut self, ledger: LedgerId, segment: SegmentId) {
        if self.has(segment) {
            let of_ledger = (ledger, EntryId(0))..=(ledger, EntryId(u64::MAX));
            let runs = self.runs.range(of_ledger).filter(|(_, run)| run.segment == segment);
            let runs: Vec<EntryId> = runs.map(|((_, first), _)| *first).collect();
            for first in runs {
                self.remove(ledger, first);
            }
        }
    }

    /// A segment is gone, and nothing that counted with it.
    pub fn forget_segment(&mut self, segment: SegmentId) {
        self.pages.remove(&segment);
        if self.has(segment) {
            let runs = self.runs.iter().filter(|(_, run)| run.segment == segment);
            let runs: Vec<(LedgerId, EntryId)> = runs.map(|(at, _)| *at).collect();
            for (ledger, first) in runs {
                self.remove(ledger, first);
            }
        }
    }

    /// True if a copy in this segment is damaged and nowhere else.
    pub fn has(&self, segment: SegmentId) -> bool {
        self.of.contains_key(&segment)
    }

    /// Notes which pages of a segment's index can't be read.
    pub fn note_pages(&mut self, segment: SegmentId, pages: BTreeSet<u32>) {
        self.pages.entry(segment).or_default().extend(pages);
    }

    /// What the lost pages of a segment list may be nowhere else: they have to be noted again.
    pub fn forget_pages(&mut self, segment: SegmentId) {
        self.pages.remove(&segment);
    }

    /// The segment whose copy of an entry was noted.
    pub fn noted_in(&self, ledger: LedgerId, entry: EntryId) -> Option<SegmentId> {
        self.run_of(ledger, entry).map(|run| run.segment)
    }

    /// True if all of these pages were noted, and with them what they may have listed.
    pub fn knows_pages(&self, segment: SegmentId, pages: &BTreeSet<u32>) -> bool {
        pages.is_empty() || self.pages.get(&segment).is_some_and(|known| pages.is_subset(known))
    }

    /// How many entries there are.
    pub fn len(&self) -> u64 {
        self.entries
    }

    /// Rises whenever something is noted or no longer damaged.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// All of it as runs, at most so many.
    pub fn ranges(&self, most: usize) -> Vec<DamagedRange> {
        let mut ranges: Vec<DamagedRange> = Vec::new();
        for ((ledger, first), run) in &self.runs {
            let joins = ranges
                .last_mut()
                .filter(|last| last.ledger == *ledger && last.entries.end().next() == *first);
            if let Some(last) = joins {
                last.entries = *last.entries.start()..=run.last;
            } else if ranges.len() < most {
                ranges.push(DamagedRange { ledger: *ledger, entries: *first..=run.last });
            } else {
                break;
            }
        }
        ranges
    }

    /// What must always hold.
    #[cfg(test)]
    pub fn check(&self) {
        let runs: Vec<_> = self.runs.iter().collect();
        assert!(runs.iter().all(|((_, first), run)| *first <= run.last), "{self:?}");
        for pair in runs.windows(2) {
            let (((one, _), run), ((next, first), _)) = (pair[0], pair[1]);
            assert!(one != next || run.last < *first, "runs overlap: {self:?}");
        }
        let entries: u64 = runs.iter().map(|((_, first), run)| count(*first, run.last)).sum();
        let of = runs.iter().fold(BTreeMap::new(), |mut of, (_, run)| {
            *of.entry(run.segment).or_insert(0_usize) += 1;
            of
        });
        assert_eq!((entries, &of), (self.entries, &self.of));
    }
}

#[cfg(test)]
mod tests;
