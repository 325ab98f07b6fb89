//! [`OtherQueues`]: queues that aren't the core's. Front-ends don't know each other, so the
//! composition root tells this one where to ask.

use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::core::broker::Broker;
use crate::core::stats::QueueStats;

type Source = Box<dyn Fn() -> Vec<QueueStats> + Send + Sync>;

/// Where to ask for more queues. Clones are the same.
#[derive(Clone, Default)]
pub struct OtherQueues(Arc<OnceLock<Source>>);

impl fmt::Debug for OtherQueues {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "OtherQueues({})", self.0.get().is_some())
    }
}

impl OtherQueues {
    /// Names the source, once.
    ///
    /// # Panics
    /// If there is one already: the composition root is wrong.
    pub(super) fn set(&self, source: impl Fn() -> Vec<QueueStats> + Send + Sync + 'static) {
        let set = self.0.set(Box::new(source));
        assert!(set.is_ok(), "the source of other queues is named once");
    }

    /// The core's queues and the others.
    pub(super) fn with_those_of(&self, broker: &Broker) -> Vec<QueueStats> {
        let mut queues = broker.queues();
        queues.extend(self.0.get().into_iter().flat_map(|source| source()));
        queues
    }
}
