//! What nobody acknowledged isn't skipped: in the end every message with a receipt was handed to
//! each subscription, since all were there before the first message.

use crate::history::Inner;

impl Inner {
    /// Every consumer has had everything that its subscription had to give.
    pub(crate) fn check_cursors(&mut self) {
        for number in 0..self.topics.len() {
            let topic = &self.topics[number];
            let mut skipped = None;
            for (batch, stored) in &topic.stored {
                let indexes = stored.first_index..stored.first_index + u64::from(stored.messages);
                for (name, known) in &topic.subscriptions {
                    if let Some(index) =
                        indexes.clone().find(|index| !known.delivered.contains(index))
                    {
                        skipped = Some(format!(
                            "{}/{name}: message {index} of {batch:?} at {:?} was never handed out",
                            topic.name, stored.position
                        ));
                    }
                }
            }
            if let Some(skipped) = skipped {
                self.broken(|| skipped);
            }
        }
    }
}
