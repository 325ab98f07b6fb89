//! [`Crowd`]: the topics of a run and the clients that use them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use geminga_broker::core::api::SubscriptionType;
use geminga_proto::topic_name::TopicName;

use crate::client::{Attached, Consumer, PATIENCE, Producer, find};
use crate::dice::Dice;
use crate::history::{Subscribed, Topic};
use crate::network::HostId;
use crate::wire::{Event, Frame};
use crate::world::{NAMESPACES, World, namespace};

/// The subscription that keeps everything, and that nobody uses before the end.
const AUDIT: &str = "audit";

struct Subscription {
    name: String,
    kind: SubscriptionType,
    consumers: usize,
}

struct Plan {
    name: TopicName,
    audited: bool,
    subscriptions: Vec<Subscription>,
}

/// See the module.
pub(crate) struct Crowd {
    topics: Vec<Plan>,
    /// Of each topic.
    pub producers: usize,
    brokers: Arc<Vec<HostId>>,
    seed: u64,
    entered: Arc<AtomicUsize>,
    settled: Arc<AtomicUsize>,
    audited: Arc<AtomicUsize>,
}

impl Crowd {
    /// Decides who there is.
    pub fn gather(world: &World, dice: &Dice) -> Self {
        let kinds =
            [SubscriptionType::Exclusive, SubscriptionType::Failover, SubscriptionType::Shared];
        let plan = |number: usize| {
            let count = 1 + dice.index(3);
            let subscription = |of: usize| {
                let kind = kinds[dice.index(kinds.len())];
                let consumers = match kind {
                    SubscriptionType::Exclusive => 1,
                    _ => 1 + dice.index(2),
                };
                Subscription { name: format!("s{of}"), kind, consumers }
            };
            let name = format!("{}/t{number}", namespace(number % NAMESPACES));
            Plan {
                name: format!("persistent://{name}").parse().expect("a valid name"),
                // Without it, what everybody has had is trimmed.
                audited: number == 0 || dice.permille(500),
                subscriptions: (0..count).map(subscription).collect(),
            }
        };
        let topics: Vec<Plan> = (0..2 + dice.index(3)).map(plan).collect();
        let mut history = world.shared.history.lock();
        for (number, topic) in topics.iter().enumerate() {
            let subscriptions =
                topic.subscriptions.iter().map(|of| (of.name.clone(), Subscribed::default()));
            history.topics.push(Topic {
                name: topic.name.to_string(),
                bundle: number % NAMESPACES,
                audited: topic.audited,
                subscriptions: subscriptions.collect(),
                ..Topic::default()
            });
        }
        drop(history);
        Self {
            topics,
            producers: 1 + dice.index(2),
            brokers: Arc::new(world.hosts.brokers.clone()),
            seed: dice.any(),
            entered: Arc::default(),
            settled: Arc::default(),
            audited: Arc::default(),
        }
    }

    fn consumer(
        &self,
        world: &World,
        topic: usize,
        subscription: (&str, SubscriptionType),
        number: u64,
    ) -> Consumer {
        let (name, subscription_type) = subscription;
        Consumer {
            shared: Arc::clone(&world.shared),
            client: world.client,
            brokers: Arc::clone(&self.brokers),
            dice: Dice::new(self.seed, name, topic as u64 * 100 + number),
            to: Attached {
                topic,
                name: self.topics[topic].name.clone(),
                subscription: name.to_owned(),
                subscription_type,
            },
        }
    }

    /// All subscriptions of a topic, that of the audit too.
    fn subscriptions(&self, topic: usize) -> Vec<(&str, SubscriptionType)> {
        let plan = &self.topics[topic];
        let own = plan.subscriptions.iter().map(|of| (of.name.as_str(), of.kind));
        own.chain(plan.audited.then_some((AUDIT, SubscriptionType::Exclusive))).collect()
    }

    /// Makes the subscriptions.
    pub fn enter(&self, world: &World) {
        for topic in 0..self.topics.len() {
            for subscription in self.subscriptions(topic) {
                let consumer = self.consumer(world, topic, subscription, 99);
                let entered = Arc::clone(&self.entered);
                world.spawn_client(async move {
                    consumer.create().await;
                    entered.fetch_add(1, Ordering::Relaxed);
                });
            }
        }
    }

    /// Whether all subscriptions are there.
    pub fn has_entered(&self) -> bool {
        let all: usize = (0..self.topics.len()).map(|topic| self.subscriptions(topic).len()).sum();
        self.entered.load(Ordering::Relaxed) == all
    }

    /// Publishes and consumes from now on.
    pub fn work(&self, world: &World, dice: &Dice) {
        for (topic, plan) in self.topics.iter().enumerate() {
            for number in 0..self.producers {
                let producer = Producer {
                    shared: Arc::clone(&world.shared),
                    client: world.client,
                    brokers: Arc::clone(&self.brokers),
                    dice: Dice::new(self.seed, "producer", (topic * 10 + number) as u64),
                    topic,
                    name: plan.name.clone(),
                    number,
                    pace: dice.time(Duration::from_millis(20)..Duration::from_millis(200)),
                };
                world.spawn_client(producer.run());
            }
            for subscription in &plan.subscriptions {
                for number in 0..subscription.consumers {
                    let to = (subscription.name.as_str(), subscription.kind);
                    let consumer = self.consumer(world, topic, to, number as u64);
                    world.spawn_client(consumer.run());
                }
            }
        }
    }

    /// Asks until no subscription has anything left but that of the audit.
    pub fn settle(&self, world: &World) {
        for (topic, plan) in self.topics.iter().enumerate() {
            let settled = Arc::clone(&self.settled);
            let dice = Dice::new(self.seed, "settle", topic as u64);
            let (shared, brokers) = (Arc::clone(&world.shared), Arc::clone(&self.brokers));
            let (client, name) = (world.client, plan.name.clone());
            world.spawn_client(async move {
                loop {
                    if let Some(mut link) = find(&shared, client, &brokers, &dice, &name).await {
                        link.send(Frame::Backlog(name.clone()));
                        if let Event::Backlog(Some(left)) = link.next(PATIENCE).await
                            && left.iter().all(|(name, left)| name == AUDIT || *left == 0)
                        {
                            settled.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                    }
                    tokio::time::sleep(PATIENCE / 20).await;
                }
            });
        }
    }

    /// Whether nothing is left.
    pub fn has_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed) == self.topics.len()
    }

    fn audits(&self) -> impl Iterator<Item = usize> {
        (0..self.topics.len()).filter(|topic| self.topics[*topic].audited)
    }

    /// Reads everything that is kept.
    pub fn audit(&self, world: &World) {
        for topic in self.audits() {
            let to = (AUDIT, SubscriptionType::Exclusive);
            let consumer = self.consumer(world, topic, to, 98);
            let audited = Arc::clone(&self.audited);
            world.spawn_client(async move {
                consumer.read_all().await;
                audited.fetch_add(1, Ordering::Relaxed);
            });
        }
    }

    /// Whether it was read.
    pub fn has_audited(&self) -> bool {
        self.audited.load(Ordering::Relaxed) == self.audits().count()
    }
}
