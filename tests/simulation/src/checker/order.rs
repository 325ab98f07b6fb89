//! One message at a place, and one order for all: a place holds one batch, whoever reads it; a
//! producer's batches lie in the order in which it sent them; a topic's indexes run without a gap.

use geminga_proto::id::Position;

use crate::history::{Batch, Inner, Stored};

impl Inner {
    /// A receipt says where a batch is.
    pub(crate) fn check_receipt(&mut self, topic: usize, batch: Batch, stored: Stored) {
        self.check_place(topic, stored.position, batch, stored.first_index);
        let found = &self.topics[topic];
        if let Some(first) = found.stored.get(&batch) {
            let name = found.name.clone();
            let first = *first;
            self.broken(|| format!("{name}: {batch:?} has two receipts: {first:?} and {stored:?}"));
            return;
        }
        let own = Batch { number: 0, ..batch }..batch;
        let before = found.stored.range(own).next_back().map(|(batch, stored)| (*batch, *stored));
        if let Some((earlier, before)) = before
            && (before.position >= stored.position || before.first_index >= stored.first_index)
        {
            let name = found.name.clone();
            self.broken(|| {
                format!("{name}: {batch:?} at {stored:?} lies before {earlier:?} at {before:?}")
            });
        }
    }

    /// Somebody found a batch at a place.
    pub(crate) fn check_place(
        &mut self,
        topic: usize,
        position: Position,
        batch: Batch,
        first_index: u64,
    ) {
        let found = &mut self.topics[topic];
        let known = *found.at.entry(position).or_insert((batch, first_index));
        if known != (batch, first_index) {
            let name = found.name.clone();
            self.broken(|| {
                format!("{name}: {position:?} holds {known:?} and {:?}", (batch, first_index))
            });
        }
    }

    /// What is read in the end, from the first to the last entry that is kept.
    pub(crate) fn check_order(&mut self) {
        for number in 0..self.topics.len() {
            let topic = &self.topics[number];
            let name = topic.name.clone();
            let mut next = None;
            let mut at = None;
            let mut breaks = None;
            for (position, batch, first_index, messages) in &topic.audit {
                if next.is_some_and(|next| next != *first_index) {
                    breaks = Some(format!(
                        "{name}: {batch:?} at {position:?} has index {first_index}, not {next:?}"
                    ));
                    break;
                }
                if at.is_some_and(|at| at >= *position) {
                    breaks = Some(format!("{name}: {position:?} comes after {at:?}"));
                    break;
                }
                (next, at) = (Some(first_index + u64::from(*messages)), Some(*position));
            }
            if topic.audited && topic.audit.first().is_some_and(|(_, _, first, _)| *first != 0) {
                breaks = Some(format!("{name} doesn't begin at index 0: {:?}", topic.audit[0]));
            }
            if let Some(breaks) = breaks {
                self.broken(|| breaks);
            }
        }
    }
}
