//! Housekeeping: looks after loaded topics, unloads idle ones, and ends bundles that were lost.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Inner;
use crate::core::api::TopicError;
use crate::core::bundle::{Bundle, state_log_error};
use crate::core::context::unavailable;
use crate::core::namespace::Namespaces;
use crate::core::topic::{Retired, Topic};
use crate::core::topic_map::TopicMap;

/// Topics that are closed at a time.
const CLOSING_AT_ONCE: usize = 64;
/// How long a topic may take to close its ledgers before it is left to recovery.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks after topics until the broker is gone.
pub async fn run(broker: Weak<Inner>) {
    loop {
        let Some(interval) =
            broker.upgrade().map(|inner| inner.context.config.housekeeping_interval)
        else {
            return;
        };
        tokio::time::sleep(interval).await;
        let Some(inner) = broker.upgrade() else { return };
        if inner.stopping.load(Ordering::Acquire) {
            return;
        }
        let now = inner.context.env.clock.monotonic();
        let unload_after = inner.context.config.topic_idle_unload;
        let mut idle = inner.topics.all();
        // A panic over one topic gives up that one; the others are looked after.
        idle.retain(|topic| {
            let kept = catch_unwind(AssertUnwindSafe(|| topic.keep_house(now, unload_after)));
            kept.unwrap_or_else(|_| {
                topic.fail_inside("its housekeeping");
                false
            })
        });
        let unload = stream::iter(idle).for_each_concurrent(CLOSING_AT_ONCE, |topic| {
            let inner = &inner;
            async move {
                if AssertUnwindSafe(unload_idle(inner, &topic)).catch_unwind().await.is_err() {
                    topic.fail_inside("its unloading");
                }
            }
        });
        unload.await;
    }
}

async fn unload_idle(inner: &Inner, topic: &Arc<Topic>) {
    // Somebody who has the claim is using the topic.
    let Some(claim) = inner.topics.try_claim(&topic.name) else { return };
    // Checked again, now that nobody can begin to use it.
    if topic.is_unused() {
        close(&inner.topics, topic, unavailable("it was idle and is being unloaded")).await;
    }
    inner.topics.release(claim);
}

/// Closes a topic's ledgers and takes it out of the memory. The caller has its claim.
pub async fn close(topics: &TopicMap, topic: &Arc<Topic>, error: TopicError) {
    if let Some(retired) = topic.drain(error.clone()) {
        await_closed(topic, retired, &error, Instant::now() + CLOSE_TIMEOUT).await;
    }
    topics.remove(topic);
}

/// Waits until a topic that drains has closed its ledgers. What isn't closed by `deadline` is left
/// to recovery.
pub async fn await_closed(
    topic: &Topic,
    retired: oneshot::Receiver<Retired>,
    error: &TopicError,
    deadline: Instant,
) {
    match tokio::time::timeout_at(deadline, retired).await {
        Ok(Ok(Retired::Cleanly)) => {}
        Ok(Ok(Retired::Abandoned) | Err(_)) => {
            tracing::warn!(topic = %topic.name, "a ledger is left to recovery");
        }
        Err(_) => {
            tracing::warn!(topic = %topic.name, "closing takes too long; left to recovery");
            topic.fail(error);
        }
    }
}

/// Waits until a bundle's state log ends; without it no topic of the bundle can be served.
pub async fn watch_bundle(topics: Weak<TopicMap>, bundle: Arc<Bundle>) {
    let why = bundle.log.ended().await;
    if bundle.has_ended() {
        return;
    }
    tracing::error!(bundle = %bundle.id, error = %why, "the state log has ended");
    match topics.upgrade() {
        Some(topics) => topics.end_bundle(&bundle, &state_log_error(why)),
        None => drop(bundle.end()),
    }
}

/// Gives up bundles that another broker may own by now.
pub fn give_up(topics: &TopicMap, namespaces: &Namespaces, error: &TopicError) {
    for bundle in namespaces.all().iter().flat_map(|namespace| namespace.take_bundles()) {
        topics.end_bundle(&bundle, error);
    }
}
