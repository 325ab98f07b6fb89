//! A producer: numbered batches, some under way at a time, sent again in order after every break.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_broker::core::api::OpenProducer;
use geminga_proto::topic_name::TopicName;
use tokio::time::Instant;

use crate::broker_host::PRODUCER;
use crate::client::{PATIENCE, entry, find};
use crate::dice::Dice;
use crate::history::Batch;
use crate::network::{HostId, Place};
use crate::shared::Shared;
use crate::wire::{Event, Frame, Link};

/// Batches without a receipt at a time.
const WINDOW: usize = 8;
/// Batches that are sent when the faults are over, to see that publishing goes on.
const LAST: u64 = 3;

/// A producer of one topic.
#[derive(Debug)]
pub(crate) struct Producer {
    pub shared: Arc<Shared>,
    pub client: Place,
    pub brokers: Arc<Vec<HostId>>,
    pub dice: Dice,
    pub topic: usize,
    pub name: TopicName,
    pub number: usize,
    /// Longest pause between two batches.
    pub pace: Duration,
}

#[derive(Debug, Default)]
struct Work {
    next: u64,
    /// Without a receipt, by number.
    open: BTreeMap<u64, Bytes>,
    /// How many of the last ones were sent.
    last: u64,
}

impl Producer {
    /// Publishes until the faults are over and everything has its receipt.
    pub async fn run(self) {
        let mut work = Work::default();
        loop {
            let found =
                find(&self.shared, self.client, &self.brokers, &self.dice, &self.name).await;
            if let Some(mut link) = found
                && self.open(&mut link).await
                && self.publish(&mut link, &mut work).await
            {
                let mut history = self.shared.history.lock();
                history.topics[self.topic].producers_done.insert(self.number);
                return;
            }
            let pause = Duration::from_millis(20)..Duration::from_millis(200);
            tokio::time::sleep(self.dice.time(pause)).await;
        }
    }

    async fn open(&self, link: &mut Link) -> bool {
        link.send(Frame::OpenProducer(OpenProducer {
            producer_id: PRODUCER,
            topic: self.name.clone(),
            name: String::new(),
            properties: Vec::new(),
        }));
        matches!(link.next(PATIENCE).await, Event::ProducerOpened(Ok(_)))
    }

    /// Publishes over one line. True when everything is done.
    async fn publish(&self, link: &mut Link, work: &mut Work) -> bool {
        for (number, entry) in &work.open {
            link.send(Frame::Publish { sequence_id: *number, entry: entry.clone() });
        }
        let (mut heard, mut due) = (Instant::now(), Instant::now());
        loop {
            let draining = self.shared.is_draining();
            if draining && work.last >= LAST && work.open.is_empty() {
                return true;
            }
            let more = work.open.len() < WINDOW && !(draining && work.last >= LAST);
            if more && Instant::now() >= due {
                work.last += u64::from(draining);
                self.publish_next(link, work);
                due = Instant::now() + self.dice.time(Duration::from_millis(1)..self.pace);
            }
            let wait = due.saturating_duration_since(Instant::now()).max(Duration::from_millis(5));
            match link.next(wait).await {
                Event::Receipts(receipts) => {
                    heard = Instant::now();
                    for receipt in receipts {
                        let number = receipt.sequence_id;
                        let batch = Batch { producer: self.number, number };
                        if work.open.remove(&number).is_none() {
                            let name = &self.name;
                            let what = format!("{name}: a receipt for {batch:?}, not under way");
                            self.shared.history.broken(what);
                        }
                        self.shared.trace.note(format_args!("receipt {batch:?} {receipt:?}"));
                        self.shared.history.receipt(self.topic, batch, &receipt);
                    }
                }
                // Nothing was said meanwhile, or the line broke: the next loop tells which.
                Event::Broken if link.is_broken() => return false,
                Event::Broken => {
                    let silent = heard.elapsed() >= PATIENCE;
                    if silent && !work.open.is_empty() {
                        return false;
                    }
                    if work.open.is_empty() {
                        heard = Instant::now();
                    }
                }
                // All is sent again, in order, over another line.
                Event::Refused { sequence_id, error } => {
                    let (topic, number) = (self.topic, self.number);
                    self.shared
                        .trace
                        .note(format_args!("refused {topic}/{number}: {sequence_id}, {error}"));
                    return false;
                }
                Event::ClosedByBroker(error) => {
                    let (topic, number) = (self.topic, self.number);
                    self.shared.trace.note(format_args!("closed {topic}/{number}: {error}"));
                    return false;
                }
                _ => return false,
            }
        }
    }

    fn publish_next(&self, link: &Link, work: &mut Work) {
        let messages = if self.dice.permille(250) {
            2 + u32::try_from(self.dice.below(4)).unwrap_or(0)
        } else {
            1
        };
        let filling = self.dice.within(8..900);
        let batch = Batch { producer: self.number, number: work.next };
        work.next += 1;
        let entry = entry(self.topic, batch, messages, usize::try_from(filling).unwrap_or(8));
        self.shared.history.lock().topics[self.topic].sent.insert(batch, messages);
        work.open.insert(batch.number, entry.clone());
        link.send(Frame::Publish { sequence_id: batch.number, entry });
    }
}
