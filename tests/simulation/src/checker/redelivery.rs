//! What was acknowledged with a receipt isn't dispatched again, by a broker that took the topic
//! after that receipt, nor by the one that sent it, to a consumer that came after it.
//!
//! A former owner that doesn't know yet that it is one may still dispatch what its successor has
//! heard to be acknowledged: it began before that receipt.

use geminga_proto::id::Position;

use crate::history::{Acked, Batch, Inner};
use crate::network::Place;

/// A batch that a consumer was handed.
#[derive(Debug, Clone)]
pub(crate) struct Handed {
    pub topic: usize,
    pub subscription: String,
    pub by: Place,
    /// When the consumer asked to be attached.
    pub attached_us: u64,
    pub sent_us: u64,
    pub position: Position,
    pub batch: Batch,
    pub first_index: u64,
    /// Which of its messages are in fact handed out.
    pub indexes: Vec<u64>,
}

impl Inner {
    /// A consumer was handed a batch.
    pub(crate) fn delivered(&mut self, handed: &Handed) {
        self.deliveries += handed.indexes.len() as u64;
        self.check_place(handed.topic, handed.position, handed.batch, handed.first_index);
        let bundle = self.topics[handed.topic].bundle;
        let since = self.owned_since(bundle, handed.by, handed.sent_us);
        let topic = &mut self.topics[handed.topic];
        let name = topic.name.clone();
        let known = topic.subscriptions.entry(handed.subscription.clone()).or_default();
        known.delivered.extend(&handed.indexes);
        let again = handed.indexes.iter().find_map(|index| {
            let acked = known.acked.get(index)?;
            let later_owner = since.is_some_and(|since| since > acked.sent_us);
            let same_owner = acked.by == handed.by
                && since == Some(acked.owned_since_us)
                && handed.attached_us > acked.sent_us;
            (later_owner || same_owner).then_some((*index, *acked))
        });
        if let Some((index, acked)) = again {
            let subscription = &handed.subscription;
            let what = format!(
                "{name}/{subscription}: message {index} was acknowledged ({acked:?}) and is \
                 dispatched again, by {}, owner since {since:?}, at {}",
                handed.by, handed.sent_us
            );
            self.broken(|| what);
        }
    }

    /// A client has an ack receipt.
    pub(crate) fn acked(
        &mut self,
        topic: usize,
        subscription: &str,
        indexes: impl IntoIterator<Item = u64>,
        by: Place,
        sent_us: u64,
    ) {
        let bundle = self.topics[topic].bundle;
        let owned_since_us = self.owned_since(bundle, by, sent_us).unwrap_or(0);
        let topic = &mut self.topics[topic];
        let known = topic.subscriptions.entry(subscription.to_owned()).or_default();
        for index in indexes {
            known.acked.entry(index).or_insert(Acked { sent_us, by, owned_since_us });
        }
    }
}
