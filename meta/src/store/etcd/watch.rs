//! [`EtcdWatch`]: one watch of etcd, on a stream of its own.
//!
//! etcd is asked for whole revisions (not for fragments of them), and ends a watch itself when it
//! can't deliver the next revision. What is read slowly waits in etcd, within HTTP/2's windows.
//!
//! Invariant: silence is never taken for peace. When nothing has come for a while, etcd is asked
//! for a sign of life; without one the watch is lost.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{WatchOptions, WatchResponse, WatchStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::error::{Failure, failure};
use super::identity::Identity;
use super::pool::Place;
use super::request::{Root, sender};
use crate::store::{Revision, StoreError, Watch, WatchError, WatchEvent};

/// What a watch is to be.
#[derive(Debug, Clone)]
pub(super) struct WatchRequest {
    pub(super) root: Root,
    pub(super) prefix: String,
    pub(super) after: Revision,
    /// How long etcd may be silent before the watch is lost.
    pub(super) patience: Duration,
}

/// A running watch.
pub(super) struct EtcdWatch {
    root: Root,
    /// What isn't newer is not delivered.
    after: Revision,
    url: Arc<str>,
    stream: WatchStream,
    identity: Arc<Identity>,
    replaced: watch::Receiver<Option<String>>,
    patience: Duration,
    heard: Instant,
    /// When etcd was asked for a sign of life that hasn't come yet.
    asked: Option<Instant>,
    ended: Option<WatchError>,
}

impl std::fmt::Debug for EtcdWatch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("EtcdWatch").field("endpoint", &self.url).finish_non_exhaustive()
    }
}

/// What happens to a watch next.
enum Next {
    Message(Result<Option<WatchResponse>, etcd_client::Error>),
    Silence,
    Replaced,
}

impl EtcdWatch {
    /// Starts a watch and waits until etcd has confirmed it.
    pub(super) async fn start(
        request: WatchRequest,
        mut place: Place,
        identity: Arc<Identity>,
    ) -> Result<Self, Failure> {
        let WatchRequest { root, prefix, after, patience } = request;
        let (key, end) = root.range(&prefix, None);
        // One earlier than wanted: in older releases, a watch that starts at the very revision of a
        // compaction misses deletions of that revision. Starting before it, it ends as compacted.
        let start = i64::try_from(after.0.max(1)).map_err(|_| {
            Failure::Final(StoreError::Invalid(format!("{} is not a revision", after.0)))
        })?;
        let options = WatchOptions::new().with_range(end).with_start_revision(start);
        let stream = place.connection.watch.watch(key, Some(options)).await.map_err(failure)?;
        let replaced = identity.replaced();
        let mut watch = Self {
            root,
            after,
            url: place.url,
            stream,
            identity,
            replaced,
            patience,
            heard: Instant::now(),
            asked: None,
            ended: None,
        };
        watch.confirmed().await?;
        Ok(watch)
    }

    async fn confirmed(&mut self) -> Result<(), Failure> {
        let closed = || Failure::Lost("the watch was closed at once".to_owned());
        let answer = self.stream.message().await.map_err(failure)?.ok_or_else(closed)?;
        self.identity.any(sender(answer.header())?).map_err(Failure::Final)?;
        if !answer.canceled() {
            return Ok(());
        }
        if answer.compact_revision() > 0 {
            self.ended = Some(WatchError::Compacted);
            return Ok(());
        }
        let reason = answer.cancel_reason();
        // etcd says the same when it has forgotten the session.
        let refused = |word| reason.contains(word);
        if refused("permission denied") || refused("auth") {
            return Err(Failure::Session(reason.to_owned()));
        }
        Err(Failure::Lost(format!("the watch was refused: {reason}")))
    }

    async fn wait(&mut self) -> Next {
        // Two thirds of the time go to waiting for the sign of life.
        let silent_until = match self.asked {
            None => self.heard + self.patience / 3,
            Some(asked) => asked + self.patience * 2 / 3,
        };
        tokio::select! {
            // What has come counts before how long it took this side to look.
            biased;
            message = self.stream.message() => Next::Message(message),
            _ = self.replaced.wait_for(Option::is_some) => Next::Replaced,
            () = sleep_until(silent_until) => Next::Silence,
        }
    }

    /// The changes of a message; none if it was a sign of life.
    fn take(&mut self, message: &WatchResponse) -> Result<Vec<WatchEvent>, WatchError> {
        let lost = |failure: Failure| WatchError::Lost(failure.text());
        let header = sender(message.header()).map_err(lost)?;
        self.identity.any(header).map_err(|error| lost(Failure::Final(error)))?;
        if message.compact_revision() > 0 {
            return Err(WatchError::Compacted);
        }
        if message.canceled() {
            return Err(WatchError::Lost(format!("etcd ended it: {}", message.cancel_reason())));
        }
        let pairs = message.events().iter().filter_map(|event| event.kv());
        let events = pairs.map(|pair| self.root.event(pair)).collect::<Result<Vec<_>, _>>();
        let mut events = events.map_err(lost)?;
        events.retain(|event| event.revision > self.after);
        if let Some(last) = events.last() {
            self.identity.saw(last.revision);
        }
        Ok(events)
    }

    async fn step(&mut self) -> Result<Vec<WatchEvent>, WatchError> {
        let lost = |why: String| Err(WatchError::Lost(why));
        match self.wait().await {
            Next::Message(Ok(Some(message))) => {
                self.heard = Instant::now();
                self.asked = None;
                self.take(&message)
            }
            Next::Message(Ok(None)) => lost("etcd closed it".to_owned()),
            Next::Message(Err(error)) => lost(failure(error).text()),
            Next::Replaced => lost("another etcd answers".to_owned()),
            Next::Silence if self.asked.is_some() => {
                lost(format!("no sign of life in {} ms", self.patience.as_millis()))
            }
            Next::Silence => {
                self.asked = Some(Instant::now());
                match self.stream.request_progress().await {
                    Ok(()) => Ok(Vec::new()),
                    Err(error) => lost(error.to_string()),
                }
            }
        }
    }
}

#[async_trait]
impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Vec<WatchEvent>, WatchError> {
        loop {
            if let Some(ended) = &self.ended {
                return Err(ended.clone());
            }
            match self.step().await {
                Ok(events) if events.is_empty() => {}
                Ok(events) => return Ok(events),
                Err(WatchError::Lost(why)) => {
                    self.ended = Some(WatchError::Lost(format!("{}: {why}", self.url)));
                }
                Err(error @ WatchError::Compacted) => self.ended = Some(error),
            }
        }
    }
}
