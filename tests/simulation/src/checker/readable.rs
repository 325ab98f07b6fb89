//! What has a receipt can be read in the end, at its place, with its content.

use crate::history::{Batch, Inner};

impl Inner {
    /// The last reader has read the topics that keep everything.
    pub(crate) fn check_readable(&mut self) {
        for number in 0..self.topics.len() {
            let topic = &self.topics[number];
            if !topic.audited {
                continue;
            }
            let read: std::collections::BTreeMap<_, (Batch, u64)> = topic
                .audit
                .iter()
                .map(|(position, batch, first_index, _)| (*position, (*batch, *first_index)))
                .collect();
            let lost = topic.stored.iter().find(|(batch, stored)| {
                read.get(&stored.position) != Some(&(**batch, stored.first_index))
            });
            if let Some((batch, stored)) = lost {
                let found = read.get(&stored.position);
                let what = format!(
                    "{}: {batch:?} has a receipt for {stored:?}, where {found:?} is read",
                    topic.name
                );
                self.broken(|| what);
            }
            let topic = &self.topics[number];
            let foreign = topic
                .audit
                .iter()
                .find(|(_, batch, _, messages)| topic.sent.get(batch) != Some(messages));
            if let Some(foreign) = foreign {
                let what = format!("{}: nobody sent {foreign:?}", topic.name);
                self.broken(|| what);
            }
        }
    }
}
