//! [`History`]: what clients sent and heard, who owned what, and the first promise that was broken.
//!
//! Messages are told apart by their producer and number, and by their index in the topic. Each
//! promise is looked after by one file of `checker`.

use std::collections::{BTreeMap, BTreeSet};

use geminga_broker::core::api::Receipt;
use geminga_proto::id::Position;
use parking_lot::{Mutex, MutexGuard};

use crate::network::Place;

/// A producer's message, or batch, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Batch {
    /// Which producer.
    pub producer: usize,
    /// Counts its batches.
    pub number: u64,
}

/// A batch with a receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Where it is.
    pub position: Position,
    /// Index of its first message.
    pub first_index: u64,
    /// How many messages it holds.
    pub messages: u32,
}

/// A durable acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acked {
    /// When the broker sent the receipt.
    pub sent_us: u64,
    /// The broker.
    pub by: Place,
    /// When that broker had taken the bundle.
    pub owned_since_us: u64,
}

/// What happened to a subscription.
#[derive(Debug, Default)]
pub struct Subscribed {
    /// Messages that were handed to a consumer.
    pub delivered: BTreeSet<u64>,
    /// Messages whose acknowledgement was asked for.
    pub asked: BTreeSet<u64>,
    /// Messages with an ack receipt.
    pub acked: BTreeMap<u64, Acked>,
}

/// What happened to a topic.
#[derive(Debug, Default)]
pub struct Topic {
    /// Its name.
    pub name: String,
    /// Its bundle, by a number.
    pub bundle: usize,
    /// Nothing is trimmed: a subscription keeps everything.
    pub audited: bool,
    /// Messages in each batch that was sent.
    pub sent: BTreeMap<Batch, u32>,
    /// Batches with a receipt. The first one counts.
    pub stored: BTreeMap<Batch, Stored>,
    /// What is where, as receipts and deliveries say.
    pub at: BTreeMap<Position, (Batch, u64)>,
    /// By their names.
    pub subscriptions: BTreeMap<String, Subscribed>,
    /// What is read in the end.
    pub audit: Vec<(Position, Batch, u64, u32)>,
    /// Producers that have brought everything to its end.
    pub producers_done: BTreeSet<usize>,
}

/// Who has taken a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    /// When.
    pub at_us: u64,
    /// By whom; `None`: it was given back.
    pub by: Option<Place>,
}

/// Everything.
#[derive(Debug, Default)]
pub struct Inner {
    /// By their numbers.
    pub topics: Vec<Topic>,
    /// Of each bundle, in order.
    pub owners: Vec<Vec<Owned>>,
    /// The first promise that was broken.
    pub violation: Option<String>,
    /// That was a panic, and no checker's finding.
    pub panicked: bool,
    /// Receipts heard.
    pub receipts: u64,
    /// Messages delivered.
    pub deliveries: u64,
}

impl Inner {
    /// A promise was broken.
    pub fn broken(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            self.violation = Some(what());
        }
    }

    /// Since when a broker had owned a bundle at a time, as the metadata said.
    #[must_use]
    pub fn owned_since(&self, bundle: usize, by: Place, at_us: u64) -> Option<u64> {
        let owned = self.owners.get(bundle)?.iter().rev();
        let mut before = owned.filter(|owned| owned.at_us <= at_us);
        before.find(|owned| owned.by == Some(by)).map(|owned| owned.at_us)
    }
}

/// The history of a run.
#[derive(Debug, Default)]
pub struct History(Mutex<Inner>);

impl History {
    /// Looks at it, or adds to it.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// A promise was broken.
    pub fn broken(&self, what: String) {
        self.lock().broken(|| what);
    }

    /// Something has panicked.
    pub fn panicked(&self, what: &str) {
        let mut inner = self.lock();
        inner.panicked |= inner.violation.is_none();
        inner.broken(|| format!("something panics: {what}"));
    }

    /// The first promise that was broken.
    #[must_use]
    pub fn violation(&self) -> Option<String> {
        self.lock().violation.clone()
    }

    /// A client has heard a receipt.
    pub fn receipt(&self, topic: usize, batch: Batch, receipt: &Receipt) {
        let mut inner = self.lock();
        inner.receipts += 1;
        let messages = inner.topics[topic].sent.get(&batch).copied().unwrap_or(1);
        let first_index = receipt.first_index.0;
        let stored = Stored { position: receipt.position, first_index, messages };
        inner.check_receipt(topic, batch, stored);
        inner.topics[topic].stored.entry(batch).or_insert(stored);
    }
}
