//! When the faults are over, everything goes on: what is published gets its receipt, what has one
//! is handed out and acknowledged.

use crate::history::Inner;

impl Inner {
    /// What still has to happen, in words; `None` when everything has come to its end.
    #[must_use]
    pub(crate) fn outstanding(&self, producers_per_topic: usize) -> Option<String> {
        for topic in &self.topics {
            if topic.producers_done.len() < producers_per_topic {
                let done = &topic.producers_done;
                return Some(format!("{}: only producers {done:?} have all receipts", topic.name));
            }
            for (name, known) in &topic.subscriptions {
                let missing = topic.stored.values().find_map(|stored| {
                    let last = stored.first_index + u64::from(stored.messages);
                    (stored.first_index..last).find(|index| !known.asked.contains(index))
                });
                if let Some(index) = missing {
                    let delivered = known.delivered.contains(&index);
                    return Some(format!(
                        "{}/{name}: nobody acknowledges message {index} (handed out: {delivered})",
                        topic.name
                    ));
                }
            }
        }
        None
    }
}
