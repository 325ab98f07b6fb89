//! A consumer: takes what it is handed, acknowledges it sooner or later, alone or with all before
//! it, in whole or message by message, and begins anew after every break.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_broker::core::api::{Ack, AckPosition, InitialPosition, Subscribe, SubscriptionType};
use geminga_proto::entry::split_stored;
use geminga_proto::id::Position;
use geminga_proto::topic_name::TopicName;
use tokio::time::Instant;

use crate::broker_host::CONSUMER;
use crate::checker::Handed;
use crate::client::{PATIENCE, content, find};
use crate::clock::micros;
use crate::dice::Dice;
use crate::network::{HostId, Place};
use crate::shared::Shared;
use crate::wire::{Delivered, Event, Frame, Link};

/// Messages that it takes at a time.
const CREDIT: u32 = 40;
/// Bytes that it takes at a time.
const CREDIT_BYTES: u64 = 64 << 10;
/// Acknowledgements in one request.
const TOGETHER: usize = 6;

/// What a consumer attaches to.
#[derive(Debug, Clone)]
pub(crate) struct Attached {
    pub topic: usize,
    pub name: TopicName,
    pub subscription: String,
    pub subscription_type: SubscriptionType,
}

/// A consumer.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub shared: Arc<Shared>,
    pub client: Place,
    pub brokers: Arc<Vec<HostId>>,
    pub dice: Dice,
    pub to: Attached,
}

/// A batch that was handed out and isn't acknowledged.
#[derive(Debug, Clone)]
struct Held {
    first_index: u64,
    messages: u32,
    /// Those that the consumer holds, as bits of the batch.
    open: u64,
}

#[derive(Debug)]
struct Session {
    attached_us: u64,
    held: BTreeMap<Position, Held>,
    /// What is to be acknowledged when, in µs.
    due: BTreeMap<(u64, u64), Position>,
    /// Messages whose receipt is awaited, by request.
    asked: BTreeMap<u64, Vec<u64>>,
    next: u64,
    heard: Instant,
    last_index: Option<u64>,
}

impl Consumer {
    /// Makes sure that the subscription is there.
    pub async fn create(&self) {
        loop {
            if let Some(mut link) = self.find().await
                && self.attach(&mut link).await
            {
                link.send(Frame::Close);
                drop(link.next(PATIENCE).await);
                return;
            }
            tokio::time::sleep(self.dice.time(PATIENCE / 100..PATIENCE / 20)).await;
        }
    }

    /// Consumes for ever.
    pub async fn run(self) {
        loop {
            if let Some(mut link) = self.find().await {
                let attached_us = self.shared.time.now_us();
                if self.attach(&mut link).await {
                    self.consume(&mut link, attached_us).await;
                }
            }
            tokio::time::sleep(self.dice.time(PATIENCE / 200..PATIENCE / 20)).await;
        }
    }

    /// Takes everything there is, without acknowledging it, until nothing more comes for long.
    pub async fn read_all(&self) {
        let mut complete = false;
        while !complete {
            self.shared.history.lock().topics[self.to.topic].audit.clear();
            if let Some(mut link) = self.find().await
                && self.attach(&mut link).await
            {
                complete = self.read_over(&mut link).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn find(&self) -> Option<Link> {
        find(&self.shared, self.client, &self.brokers, &self.dice, &self.to.name).await
    }

    async fn attach(&self, link: &mut Link) -> bool {
        link.send(Frame::Subscribe(Subscribe {
            consumer_id: CONSUMER,
            topic: self.to.name.clone(),
            subscription: self.to.subscription.clone(),
            subscription_type: self.to.subscription_type,
            consumer_name: String::new(),
            priority: 0,
            initial_position: InitialPosition::Earliest,
            create: true,
            properties: Vec::new(),
        }));
        matches!(link.next(PATIENCE).await, Event::Subscribed(Ok(())))
    }

    async fn consume(&self, link: &mut Link, attached_us: u64) {
        let mut session = Session {
            attached_us,
            held: BTreeMap::new(),
            due: BTreeMap::new(),
            asked: BTreeMap::new(),
            next: 1,
            heard: Instant::now(),
            last_index: None,
        };
        link.send(Frame::Flow { messages: CREDIT, bytes: CREDIT_BYTES });
        loop {
            self.acknowledge(link, &mut session);
            let now = self.shared.time.now_us();
            let wait = session.due.keys().next().map_or(100_000, |(at, _)| at.saturating_sub(now));
            let wait = Duration::from_micros(wait.clamp(1_000, 100_000));
            match link.next(wait).await {
                Event::Delivered(delivered) => {
                    for entry in delivered {
                        self.take(link, &mut session, &entry);
                    }
                }
                Event::AckReceipt { request_id, result, sent_us } => {
                    session.heard = Instant::now();
                    let indexes = session.asked.remove(&request_id).unwrap_or_default();
                    let (to, ok) = (&self.to, result.is_ok());
                    self.shared.trace.note(format_args!(
                        "acked {}/{} {indexes:?} {ok}",
                        to.topic, to.subscription
                    ));
                    if result.is_err() {
                        return;
                    }
                    let mut history = self.shared.history.lock();
                    history.acked(to.topic, &to.subscription, indexes, link.broker, sent_us);
                }
                Event::Broken if link.is_broken() => return,
                Event::Broken => {
                    if session.asked.is_empty() {
                        session.heard = Instant::now();
                    } else if session.heard.elapsed() >= PATIENCE {
                        return;
                    }
                }
                _ => return,
            }
        }
    }

    /// Takes a batch in, and decides when to acknowledge it.
    fn take(&self, link: &Link, session: &mut Session, entry: &Delivered) {
        let Some(handed) = self.handed(link, session.attached_us, entry) else { return };
        self.shared.history.lock().delivered(&handed);
        self.shared.trace.note(format_args!(
            "handed {}/{} {:?} {:?} {}",
            self.to.topic,
            self.to.subscription,
            handed.batch,
            handed.position,
            entry.redelivery_count
        ));
        let ordered = self.to.subscription_type == SubscriptionType::Exclusive;
        let before = session.last_index.replace(handed.first_index);
        if ordered && before.is_some_and(|before| before >= handed.first_index) {
            let what = format!("{handed:?} is handed out after index {before:?}");
            self.shared.history.broken(what);
        }
        link.send(Frame::Flow { messages: entry.messages, bytes: entry.payload.len() as u64 });
        let open =
            handed.indexes.iter().fold(0, |bits, index| bits | 1 << (index - handed.first_index));
        let messages = total(&entry.payload).unwrap_or(1);
        session
            .held
            .insert(handed.position, Held { first_index: handed.first_index, messages, open });
        let delay = if self.dice.permille(60) {
            self.dice.within(1_000_000..6_000_000)
        } else {
            self.dice.within(1_000..250_000)
        };
        self.note_due(session, handed.position, delay);
        if messages > 1 && self.dice.permille(500) {
            self.note_due(session, handed.position, delay * 2);
        }
    }

    fn note_due(&self, session: &mut Session, position: Position, delay: u64) {
        let number = session.next;
        session.next += 1;
        session.due.insert((self.shared.time.now_us() + delay, number), position);
    }

    /// What an entry says it is.
    fn handed(&self, link: &Link, attached_us: u64, entry: &Delivered) -> Option<Handed> {
        let broken = |what: &str| {
            let what = format!("{}: {:?} {what}", self.to.name, entry.position);
            self.shared.history.broken(what);
        };
        let Ok((header, body)) = split_stored(&entry.payload) else {
            broken("has no broker's header");
            return None;
        };
        let Some((topic, batch, messages)) = content(&body) else {
            broken("holds nothing that was sent");
            return None;
        };
        if topic != self.to.topic {
            broken("is another topic's");
        }
        let first_index = (header.last_index + 1).saturating_sub(u64::from(messages));
        let open = |bit: &u32| {
            let byte = entry.acked_indexes.get(*bit as usize / 8).copied().unwrap_or(0);
            byte >> (bit % 8) & 1 == 0
        };
        let indexes = (0..messages).filter(open).map(|bit| first_index + u64::from(bit)).collect();
        Some(Handed {
            topic: self.to.topic,
            subscription: self.to.subscription.clone(),
            by: link.broker,
            attached_us,
            sent_us: entry.sent_us,
            position: entry.position,
            batch,
            first_index,
            indexes,
        })
    }

    /// Acknowledges what is due; everything, once the faults are over.
    fn acknowledge(&self, link: &Link, session: &mut Session) {
        let now = self.shared.time.now_us();
        let until = if self.shared.is_draining() { u64::MAX } else { now };
        let mut positions = Vec::new();
        while let Some(first) = session.due.first_entry() {
            if first.key().0 > until || positions.len() >= TOGETHER {
                break;
            }
            positions.push(first.remove());
        }
        positions.sort_unstable();
        positions.dedup();
        positions.retain(|position| session.held.contains_key(position));
        let Some(last) = positions.last().copied() else { return };
        let cumulative =
            self.to.subscription_type != SubscriptionType::Shared && self.dice.permille(150);
        let ack = if cumulative {
            self.all_before(session, last)
        } else {
            self.alone(session, &positions)
        };
        link.send(Frame::Ack(ack));
    }

    fn all_before(&self, session: &mut Session, position: Position) -> Ack {
        let covered: Vec<Position> = session.held.range(..=position).map(|(at, _)| *at).collect();
        let mut indexes = Vec::new();
        for at in covered {
            if let Some(held) = session.held.remove(&at) {
                indexes.extend(held.indexes(held.open));
            }
        }
        let positions = vec![AckPosition { position, acked_indexes: Bytes::new() }];
        Ack { request_id: self.ask(session, indexes), cumulative: true, positions }
    }

    fn alone(&self, session: &mut Session, positions: &[Position]) -> Ack {
        let (mut acked, mut indexes) = (Vec::new(), Vec::new());
        for position in positions {
            let again = session.due.values().any(|due| due == position);
            let Some(held) = session.held.get_mut(position) else { continue };
            // A part now, if another turn comes.
            let part = if again && !self.shared.is_draining() {
                held.open & self.dice.any()
            } else {
                held.open
            };
            if part == 0 {
                continue;
            }
            indexes.extend(held.indexes(part));
            let whole = part.count_ones() == held.messages;
            held.open &= !part;
            let acked_indexes = if whole { Bytes::new() } else { bitmap(part) };
            acked.push(AckPosition { position: *position, acked_indexes });
            if held.open == 0 {
                session.held.remove(position);
            }
        }
        Ack { request_id: self.ask(session, indexes), cumulative: false, positions: acked }
    }

    fn ask(&self, session: &mut Session, indexes: Vec<u64>) -> u64 {
        let mut history = self.shared.history.lock();
        let topic = &mut history.topics[self.to.topic];
        let known = topic.subscriptions.entry(self.to.subscription.clone()).or_default();
        known.asked.extend(&indexes);
        let request_id = session.next;
        session.next += 1;
        session.asked.insert(request_id, indexes);
        request_id
    }

    /// Whether everything with a receipt was read.
    fn has_read_all(&self) -> bool {
        let history = self.shared.history.lock();
        let topic = &history.topics[self.to.topic];
        let read: BTreeSet<Position> = topic.audit.iter().map(|(at, ..)| *at).collect();
        topic.stored.values().all(|stored| read.contains(&stored.position))
    }

    async fn read_over(&self, link: &mut Link) -> bool {
        const QUIET: Duration = Duration::from_millis(700);
        /// A read that fails is tried again, and again.
        const SILENT: Duration = Duration::from_secs(20);
        let attached_us = self.shared.time.now_us();
        link.send(Frame::Flow { messages: CREDIT, bytes: CREDIT_BYTES });
        let mut last = self.shared.time.now_us();
        loop {
            match link.next(QUIET).await {
                Event::Delivered(delivered) => {
                    for entry in delivered {
                        let Some(handed) = self.handed(link, attached_us, &entry) else { continue };
                        let messages = total(&entry.payload).unwrap_or(1);
                        let mut history = self.shared.history.lock();
                        history.check_place(
                            handed.topic,
                            handed.position,
                            handed.batch,
                            handed.first_index,
                        );
                        let read = (handed.position, handed.batch, handed.first_index, messages);
                        history.topics[self.to.topic].audit.push(read);
                        drop(history);
                        link.send(Frame::Flow {
                            messages: entry.messages,
                            bytes: entry.payload.len() as u64,
                        });
                    }
                    last = self.shared.time.now_us();
                }
                Event::Broken if link.is_broken() => return false,
                Event::Broken => {
                    let silent = self.shared.time.now_us() - last;
                    let complete = self.has_read_all();
                    if complete || silent >= micros(SILENT) {
                        let topic = self.to.topic;
                        self.shared.trace.note(format_args!("audit of {topic}: {complete}"));
                        return true;
                    }
                }
                _ => return false,
            }
        }
    }
}

impl Held {
    fn indexes(&self, bits: u64) -> impl Iterator<Item = u64> + use<> {
        let (first, messages) = (self.first_index, u64::from(self.messages));
        (0..messages).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| first + bit)
    }
}

/// Messages of a stored batch.
fn total(payload: &Bytes) -> Option<u32> {
    let (_, entry) = split_stored(payload).ok()?;
    content(&entry).map(|(_, _, messages)| messages)
}

/// The bits as bytes, lowest first.
fn bitmap(bits: u64) -> Bytes {
    Bytes::from(vec![u8::try_from(bits & 0xff).unwrap_or(0)])
}
