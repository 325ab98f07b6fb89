//! [`Pool`]: the endpoints, which of them is used, and what a request does when one fails.
//!
//! A request goes to the endpoint that answered last. What surely wasn't done there goes to the
//! next one; so does what was lost, if doing it twice is the same as once. All within one
//! deadline, and each error names the endpoints and what they said.
//!
//! Invariants: a write whose outcome is unknown is never sent again from here. An endpoint that
//! stays silent is left, and its connection given up: a connection through which nothing comes
//! would otherwise look alive for minutes.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use geminga_proto::env::{Env, Monotonic};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::config::{EtcdConfig, EtcdConfigError};
use super::connection::{Connection, Connector};
use super::error::Failure;
use super::identity::Identity;
use super::outage::{News, Outage};
use crate::store::StoreError;

/// Whether a request may be sent again after its answer was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Doing it twice is the same as once.
    Idempotent,
    /// It isn't.
    Write,
}

/// Where a request is carried out.
pub(super) struct Place {
    /// The connection.
    pub(super) connection: Connection,
    /// The endpoint's URL.
    pub(super) url: Arc<str>,
}

struct Slot {
    url: Arc<str>,
    connector: Connector,
    /// Written by whoever holds `connecting`; cleared by anyone.
    connection: Mutex<Option<Made>>,
    /// One connection is made at a time.
    connecting: Arc<tokio::sync::Mutex<()>>,
    /// Since when nothing was answered, although something was asked.
    silent_since: Mutex<Option<Monotonic>>,
}

/// A connection and its number, by which one that failed is told from its successor.
#[derive(Clone)]
struct Made {
    connection: Connection,
    number: usize,
}

/// All endpoints.
pub(super) struct Pool {
    slots: Vec<Arc<Slot>>,
    /// The endpoint that is asked first.
    current: AtomicUsize,
    made: AtomicUsize,
    request_timeout: Duration,
    identity: Arc<Identity>,
    outage: Mutex<Outage>,
    env: Env,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let urls: Vec<&str> = self.slots.iter().map(|slot| &*slot.url).collect();
        formatter.debug_struct("Pool").field("endpoints", &urls).finish_non_exhaustive()
    }
}

/// One request at one endpoint. Given up by its caller, it counts as unanswered.
struct Attempt<'a> {
    pool: &'a Pool,
    index: usize,
    number: Option<usize>,
    answered: bool,
}

impl<'a> Attempt<'a> {
    fn begin(pool: &'a Pool, index: usize) -> Self {
        if let Some(slot) = pool.slots.get(index) {
            slot.silent_since.lock().get_or_insert(pool.env.clock.monotonic());
        }
        Self { pool, index, number: None, answered: false }
    }

    /// The endpoint said something, if only that it isn't there.
    fn answered(mut self) {
        self.answered = true;
        if let Some(slot) = self.pool.slots.get(self.index) {
            *slot.silent_since.lock() = None;
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.pool.unanswered(self.index, self.number);
        }
    }
}

impl Pool {
    /// A pool without connections.
    pub(super) fn new(
        config: &EtcdConfig,
        identity: Arc<Identity>,
        env: Env,
    ) -> Result<Self, EtcdConfigError> {
        let slot = |url: &String| {
            Ok(Arc::new(Slot {
                url: url.as_str().into(),
                connector: Connector::new(config, url)?,
                connection: Mutex::new(None),
                connecting: Arc::default(),
                silent_since: Mutex::new(None),
            }))
        };
        Ok(Self {
            slots: config.endpoints.iter().map(slot).collect::<Result<_, EtcdConfigError>>()?,
            current: AtomicUsize::new(0),
            made: AtomicUsize::new(0),
            request_timeout: config.request_timeout,
            identity,
            outage: Mutex::new(Outage::default()),
            env,
        })
    }

    /// Carries out a request.
    ///
    /// # Errors
    /// What etcd said, or that no endpoint did it: [`StoreError::Unavailable`] if it surely wasn't
    /// done or is only a read, else [`StoreError::Unknown`].
    pub(super) async fn call<T, F, R>(&self, kind: Kind, request: F) -> Result<T, StoreError>
    where
        F: Fn(Place) -> R + Send + Sync,
        R: Future<Output = Result<T, Failure>> + Send,
        T: Send,
    {
        self.call_within(self.request_timeout, kind, request).await
    }

    /// The same with a deadline of its own, if that is earlier.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(super) async fn call_within<T, F, R>(
        &self,
        limit: Duration,
        kind: Kind,
        request: F,
    ) -> Result<T, StoreError>
    where
        F: Fn(Place) -> R + Send + Sync,
        R: Future<Output = Result<T, Failure>> + Send,
        T: Send,
    {
        self.identity.check()?;
        let deadline = Instant::now() + limit.min(self.request_timeout);
        let answer = self.try_all(deadline, kind, request).await;
        let now = self.env.clock.monotonic();
        let news = match &answer {
            Err(error @ (StoreError::Unavailable(_) | StoreError::Unknown(_))) => {
                self.outage.lock().failed(now).map(|news| (news, error.to_string()))
            }
            _ => self.outage.lock().answered(now).map(|news| (news, String::new())),
        };
        match news {
            Some((News::Down(since), error)) => {
                let failing_ms = since.as_millis();
                tracing::warn!(failing_ms, %error, "etcd is out of reach; trying again");
            }
            Some((News::Back(after), _)) => {
                tracing::info!(after_ms = after.as_millis(), "etcd answers again");
            }
            None => {}
        }
        answer
    }

    async fn try_all<T, F, R>(
        &self,
        deadline: Instant,
        kind: Kind,
        request: F,
    ) -> Result<T, StoreError>
    where
        F: Fn(Place) -> R + Send + Sync,
        R: Future<Output = Result<T, Failure>> + Send,
        T: Send,
    {
        let (count, first) = (self.slots.len(), self.current.load(Ordering::Relaxed));
        let mut said = Vec::new();
        for tried in 0..count {
            let index = (first + tried) % count;
            let Some(slot) = self.slots.get(index) else { break };
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(count - tried).unwrap_or(u32::MAX);
            match self.try_one(kind, &request, index, slot, share, deadline).await {
                Ok(answer) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(Failure::Final(StoreError::Denied(why))) => {
                    return Err(StoreError::Denied(format!("{}: {why}", slot.url)));
                }
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::AnswerTooLarge) => {
                    let why = format!("{}: the answer is too large", slot.url);
                    return Err(StoreError::TooLarge(why));
                }
                Err(Failure::Refused(why) | Failure::Unsent(why) | Failure::Session(why)) => {
                    said.push(format!("{}: {why}", slot.url));
                }
                Err(Failure::Lost(why) | Failure::Broken(why)) => {
                    said.push(format!("{}: {why}", slot.url));
                    if kind == Kind::Write {
                        return Err(StoreError::Unknown(said.join("; ")));
                    }
                }
            }
        }
        Err(StoreError::Unavailable(said.join("; ")))
    }

    /// Tries one endpoint: a second time over a new connection, if the one that was there proves
    /// broken or its session forgotten.
    async fn try_one<T, F, R>(
        &self,
        kind: Kind,
        request: &F,
        index: usize,
        slot: &Arc<Slot>,
        share: Duration,
        deadline: Instant,
    ) -> Result<T, Failure>
    where
        F: Fn(Place) -> R + Send + Sync,
        R: Future<Output = Result<T, Failure>> + Send,
        T: Send,
    {
        let until = Instant::now() + share;
        loop {
            let mut attempt = Attempt::begin(self, index);
            let late = |_| Failure::Lost(format!("no answer within {} ms", share.as_millis()));
            let left = until.saturating_duration_since(Instant::now());
            let (made, fresh) = match timeout(left, self.connection(slot)).await {
                Ok(Ok(connected)) => connected,
                Ok(Err(failure)) => {
                    attempt.answered();
                    self.current.move_on_from(index, self.slots.len());
                    return Err(unsent(failure));
                }
                Err(elapsed) => return Err(unsent(late(elapsed))),
            };
            attempt.number = Some(made.number);
            let place = Place { connection: made.connection, url: Arc::clone(&slot.url) };
            // A write has nowhere else to go once it is sent, so it may take what is left.
            let until = if kind == Kind::Write { deadline } else { until };
            let left = until.saturating_duration_since(Instant::now());
            let failed = match timeout(left, request(place)).await {
                Ok(Ok(answer)) => {
                    attempt.answered();
                    return Ok(answer);
                }
                Ok(Err(failed)) => failed,
                Err(elapsed) => return Err(late(elapsed)),
            };
            attempt.answered();
            let again = match &failed {
                Failure::Final(_) | Failure::AnswerTooLarge => return Err(failed),
                // The connection is as good as any.
                Failure::Refused(_) | Failure::Lost(_) => false,
                Failure::Unsent(_) | Failure::Session(_) => {
                    slot.give_up(made.number);
                    !fresh
                }
                Failure::Broken(_) => {
                    slot.give_up(made.number);
                    !fresh && kind == Kind::Idempotent
                }
            };
            if !again {
                self.current.move_on_from(index, self.slots.len());
                return Err(failed);
            }
        }
    }

    /// The endpoint's connection, and whether it was made for this call.
    async fn connection(&self, slot: &Arc<Slot>) -> Result<(Made, bool), Failure> {
        let present = || slot.connection.lock().clone();
        if let Some(made) = present() {
            return Ok((made, false));
        }
        let connecting = Arc::clone(&slot.connecting).lock_owned().await;
        // Made while this waited.
        if let Some(made) = present() {
            return Ok((made, true));
        }
        let (slot, identity) = (Arc::clone(slot), Arc::clone(&self.identity));
        let (number, limit) = (self.made.fetch_add(1, Ordering::Relaxed), self.request_timeout);
        // In a task of its own: it isn't begun all over again whenever a caller gives up, whose
        // patience may be shorter than checking a password takes.
        let making = tokio::spawn(async move {
            let connect = timeout(limit, slot.connector.connect(&identity));
            let late = |_| Failure::Unsent(format!("not connected in {} ms", limit.as_millis()));
            let connection = connect.await.map_err(late).flatten()?;
            let made = Made { connection, number };
            *slot.connection.lock() = Some(made.clone());
            tracing::debug!(endpoint = %slot.url, "connected to etcd");
            drop(connecting);
            Ok(made)
        });
        let ended = |error| Failure::Unsent(format!("connecting ended: {error}"));
        Ok((making.await.map_err(ended).flatten()?, true))
    }

    /// Nothing came. The next request asks another endpoint; and if nothing has come for long, by
    /// a new connection.
    fn unanswered(&self, index: usize, number: Option<usize>) {
        self.current.move_on_from(index, self.slots.len());
        let Some(slot) = self.slots.get(index) else { return };
        let since = *slot.silent_since.lock();
        let silence = since.map(|since| self.env.clock.monotonic().saturating_sub(since));
        let patience = self.request_timeout / 2 / u32::try_from(self.slots.len()).unwrap_or(1);
        if let Some(number) = number
            && silence.is_some_and(|silence| silence >= patience)
        {
            *slot.silent_since.lock() = None;
            slot.give_up(number);
        }
    }
}

impl Slot {
    /// Forgets a connection, unless it was replaced already.
    fn give_up(&self, number: usize) {
        let mut connection = self.connection.lock();
        if connection.as_ref().is_some_and(|made| made.number == number) {
            *connection = None;
        }
    }
}

/// What failed before the request was sent: the request itself was surely not done.
fn unsent(failure: Failure) -> Failure {
    match failure {
        failure @ Failure::Final(_) => failure,
        failure => Failure::Unsent(failure.text()),
    }
}

/// Moves on from an endpoint, unless somebody else has done so.
trait MoveOn {
    fn move_on_from(&self, index: usize, count: usize);
}

impl MoveOn for AtomicUsize {
    fn move_on_from(&self, index: usize, count: usize) {
        let next = (index + 1) % count.max(1);
        // If it is another one by now, some other request has moved on.
        let moved = |current| (current == index).then_some(next);
        self.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved).ok();
    }
}
