//! [`GrpcQueues`]: the streams that are open, for those who ask how much waits in them, and the
//! watchdog that closes one that holds memory others wait for.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use geminga_proto::env::Monotonic;
use geminga_proto::incoming::Places;
use geminga_proto::v1::ErrorCode;
use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::Code;

use crate::core::broker::Broker;
use crate::core::stats::QueueStats;
use crate::frontend::grpc::outbound::{Item, Outbound};
use crate::frontend::grpc::{error, stopped};

/// Streams that are listed one by one; the others are summed up.
const LISTED: usize = 100;

trait Queue: Send + Sync {
    fn bytes(&self) -> u64;
    fn limit_bytes(&self) -> u64;
    fn stalled_for(&self, now: Monotonic) -> Option<Monotonic>;
    fn cut(&self, status: tonic::Status);
}

impl<I: Item> Queue for Outbound<I> {
    fn bytes(&self) -> u64 {
        Outbound::bytes(self)
    }

    fn limit_bytes(&self) -> u64 {
        Outbound::limit_bytes(self)
    }

    fn stalled_for(&self, now: Monotonic) -> Option<Monotonic> {
        Outbound::stalled_for(self, now)
    }

    fn cut(&self, status: tonic::Status) {
        Outbound::cut(self, status);
    }
}

struct Listed {
    name: String,
    queue: Weak<dyn Queue>,
}

#[derive(Default)]
struct Inner {
    streams: Mutex<HashMap<u64, Listed>>,
    next: AtomicU64,
    connections: Places,
}

/// How much is open now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GrpcCounts {
    /// Connections.
    pub connections: usize,
    /// Produce and Consume streams.
    pub streams: usize,
}

/// The front-end's queues. Clones share them.
#[derive(Clone, Default)]
pub struct GrpcQueues(Arc<Inner>);

impl fmt::Debug for GrpcQueues {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts().fmt(out)
    }
}

/// Takes a stream off the list when it is dropped.
#[derive(Debug)]
pub(super) struct Registration {
    queues: GrpcQueues,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.queues.0.streams.lock().remove(&self.id);
    }
}

impl GrpcQueues {
    /// Lists a stream.
    pub(super) fn register<I: Item>(&self, name: String, queue: &Arc<Outbound<I>>) -> Registration {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let queue: Arc<dyn Queue> = Arc::clone(queue) as _;
        let queue = Arc::downgrade(&queue);
        self.0.streams.lock().insert(id, Listed { name, queue });
        Registration { queues: self.clone(), id }
    }

    /// Where connections are counted.
    pub(super) fn connections(&self) -> Places {
        self.0.connections.clone()
    }

    /// How much is open now.
    #[must_use]
    pub fn counts(&self) -> GrpcCounts {
        let connections = self.0.connections.taken();
        GrpcCounts { connections, streams: self.0.streams.lock().len() }
    }

    /// What waits to be sent: the fullest streams one by one, and the rest as one.
    ///
    /// `capacity_bytes` is where requests stop being read. What consumers granted comes on top:
    /// that is in the broker's egress budget.
    #[must_use]
    pub fn stats(&self) -> Vec<QueueStats> {
        let mut queues: Vec<QueueStats> = {
            let streams = self.0.streams.lock();
            let live = streams.values().filter_map(|listed| {
                let queue = listed.queue.upgrade()?;
                Some(QueueStats {
                    name: listed.name.clone(),
                    bytes: queue.bytes(),
                    capacity_bytes: queue.limit_bytes(),
                    waiting: 0,
                })
            });
            live.collect()
        };
        queues.sort_by(|one, other| (other.bytes, &one.name).cmp(&(one.bytes, &other.name)));
        let rest = queues.split_off(queues.len().min(LISTED));
        if !rest.is_empty() {
            queues.push(QueueStats {
                name: format!("grpc: {} more streams", rest.len()),
                bytes: rest.iter().map(|queue| queue.bytes).sum(),
                capacity_bytes: rest.iter().map(|queue| queue.capacity_bytes).sum(),
                waiting: 0,
            });
        }
        queues
    }

    /// Cuts the streams that have taken nothing for `stall_timeout`.
    fn cut_stalled(&self, now: Monotonic, stall_timeout: Duration) -> usize {
        let stalled: Vec<(String, Arc<dyn Queue>)> = {
            let streams = self.0.streams.lock();
            let queues = streams.values().filter_map(|listed| {
                let queue = listed.queue.upgrade()?;
                let stalled = queue.stalled_for(now).is_some_and(|time| time >= stall_timeout);
                stalled.then(|| (listed.name.clone(), queue))
            });
            queues.collect()
        };
        for (name, queue) in &stalled {
            tracing::info!(stream = %name, bytes = queue.bytes(), "a stalled stream is cut off");
            let message = "the connection took nothing for too long while memory is short";
            let (grpc, code) = (Code::ResourceExhausted, ErrorCode::FlowControl);
            queue.cut(error::status(grpc, code, message));
        }
        stalled.len()
    }
}

/// Closes stalled streams while deliveries elsewhere wait for memory, until told to stop.
pub(super) async fn watch_stalls(
    queues: GrpcQueues,
    broker: Broker,
    stall_timeout: Duration,
    mut stopping: watch::Receiver<bool>,
) {
    let mut tick = tokio::time::interval(stall_timeout.min(Duration::from_secs(1)));
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = stopped(&mut stopping) => return,
        }
        if broker.budget().egress().waiting > 0 {
            queues.cut_stalled(broker.env().clock.monotonic(), stall_timeout);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::grpc::produce::Answer;
    use geminga_proto::env::{Clock, ManualClock};
    use geminga_proto::v1;

    fn answer() -> Answer {
        let closed = v1::ProducerClosed { producer_id: 1, error: None };
        Answer::Other(v1::produce_result::Result::Closed(closed))
    }

    #[test]
    fn a_stream_is_listed_while_it_lives_and_its_bytes_are_shown() {
        let queues = GrpcQueues::default();
        let clock = Arc::new(ManualClock::default());
        let queue = Outbound::<Answer>::new(1000, Arc::clone(&clock) as _);
        let registration = queues.register("grpc: a".to_owned(), &queue);
        queue.push(answer());
        let stats = queues.stats();
        assert_eq!((stats.len(), stats[0].name.as_str()), (1, "grpc: a"));
        assert!(stats[0].bytes > 0 && stats[0].capacity_bytes == 1000);
        drop(registration);
        assert_eq!(queues.stats(), []);
    }

    #[test]
    fn only_a_stream_that_is_stalled_long_enough_is_cut() {
        let queues = GrpcQueues::default();
        let clock = Arc::new(ManualClock::default());
        let streams: Vec<_> =
            (0..2).map(|_| Outbound::<Answer>::new(1000, Arc::clone(&clock) as _)).collect();
        let names = ["stalled", "idle"];
        let _registrations: Vec<_> = streams
            .iter()
            .zip(names)
            .map(|(stream, name)| queues.register(name.to_owned(), stream))
            .collect();
        streams[0].push(answer());
        clock.advance(Duration::from_secs(9));
        assert_eq!(queues.cut_stalled(clock.monotonic(), Duration::from_secs(10)), 0);
        clock.advance(Duration::from_secs(1));
        assert_eq!(queues.cut_stalled(clock.monotonic(), Duration::from_secs(10)), 1);
        assert!(streams[0].is_over() && !streams[1].is_over());
    }
}
