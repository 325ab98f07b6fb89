//! [`Directory`]: finds the broker that serves a topic and connects to it.
//!
//! Brokers are asked in turn (`lookup/owners.rs` decides in which order): the next one joins in
//! when one has failed, or has said nothing for [`STAGGER`], and the first answer counts. So
//! neither a dead nor a frozen broker holds up a lookup while another one lives.
//!
//! An answer is for all topics of a bundle. When a topic is found to have moved, everybody who
//! waits before another attempt is woken, or doesn't begin to wait: with a dead broker's lease all
//! of its topics move, and a thousand of them need not find out each by itself.
//!
//! Invariants: one lookup is under way for each bundle, or each topic whose bundle isn't known; an
//! answer is used again until a session that was opened on its word ends badly; nothing here tries
//! again: whoever wants a session does, with its own time limits, so two brokers that point at each
//! other hold nobody in a loop. News end one wait each.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use geminga_proto::env::{Env, Monotonic};
use geminga_proto::topic_name::TopicName;
use geminga_proto::v1::ErrorCode;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::connection::Connection;
use crate::error::{BrokerError, ClientError, UrlFailure};
use crate::flight::Flights;
use crate::pool::Pool;
use crate::service_urls::ServiceUrls;

pub(crate) mod owners;

use owners::{Owner, Owners, Scope, Trouble, order};

/// A broker that has not answered for so long gets company.
const STAGGER: Duration = Duration::from_millis(250);
/// How long the connection to an owner is waited for before the topic is looked up again: it may
/// have another owner by then. The attempt itself goes on.
const OWNER_PATIENCE: Duration = Duration::from_secs(1);
/// News wake all who wait, so they are told at most so often.
const NEWS_INTERVAL: Duration = Duration::from_millis(250);
/// Topics or bundles whose owners are remembered.
const MAX_WORDS: usize = 16_384;

/// A connection to a topic's owner, and by whose word.
#[derive(Debug, Clone)]
pub(crate) struct Located {
    pub connection: Arc<Connection>,
    pub owner: Owner,
}

#[derive(Debug)]
struct Shared {
    pool: Pool,
    urls: ServiceUrls,
    owners: Mutex<Owners>,
    env: Env,
    /// When it was last told that a topic has moved.
    news: watch::Sender<Option<Monotonic>>,
}

/// Who serves what.
#[derive(Debug)]
pub(crate) struct Directory {
    shared: Arc<Shared>,
    lookups: Flights<Scope, Owner>,
    second_opinions: Flights<Scope, Owner>,
}

/// Asks one after the other; the first answer counts.
async fn first_answer<T, F>(
    urls: Vec<Arc<str>>,
    ask: impl Fn(Arc<str>) -> F,
) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, ClientError>>,
{
    let mut waiting = urls.into_iter();
    let mut asked = FuturesUnordered::new();
    let mut tried = Vec::new();
    loop {
        if let Some(url) = waiting.next() {
            let answer = ask(Arc::clone(&url));
            asked.push(async move { (url, answer.await) });
        }
        let more = waiting.len() > 0;
        tokio::select! {
            answered = asked.next() => match answered {
                Some((_, Ok(answer))) => return Ok(answer),
                Some((_, Err(error))) if !error.may_do_elsewhere() => return Err(error),
                Some((url, Err(error))) => tried.push(UrlFailure { url: url.to_string(), error }),
                None => return Err(ClientError::none_answered(tried)),
            },
            () = tokio::time::sleep(STAGGER), if more => {}
        }
    }
}

impl Directory {
    pub(crate) fn new(pool: Pool, urls: ServiceUrls, env: Env) -> Self {
        let owners = Mutex::new(Owners::new(MAX_WORDS));
        let news = watch::Sender::new(None);
        let shared = Arc::new(Shared { pool, urls, owners, env, news });
        Self { shared, lookups: Flights::default(), second_opinions: Flights::default() }
    }

    /// A connection to any broker.
    pub(crate) async fn any(&self) -> Result<Arc<Connection>, ClientError> {
        let shared = &self.shared;
        let urls = order(shared.pool.candidates(shared.urls.in_turn()), None);
        let connection =
            first_answer(urls, |url| async move { shared.pool.get(&url).await }).await?;
        shared.urls.answered(connection.url());
        Ok(connection)
    }

    /// A connection to the broker that serves `topic`.
    pub(crate) async fn locate(&self, topic: &TopicName) -> Result<Located, ClientError> {
        let known = self.shared.owners.lock().known(topic);
        let owner = match known {
            Some(owner) => owner,
            None => self.find(topic).await?,
        };
        let connected = tokio::time::timeout(OWNER_PATIENCE, self.shared.pool.get(&owner.url));
        let result = connected.await.unwrap_or_else(|_| {
            let why = format!("the topic's owner hasn't answered for {OWNER_PATIENCE:?}");
            Err(ClientError::Disconnected { url: owner.url.to_string(), why })
        });
        match result {
            Ok(connection) => Ok(Located { connection, owner }),
            Err(error) => {
                self.failed(&owner, &error);
                Err(error)
            }
        }
    }

    /// Asks who serves `topic`, or waits for the answer to who serves its bundle.
    async fn find(&self, topic: &TopicName) -> Result<Owner, ClientError> {
        let scope = self.shared.owners.lock().scope(topic);
        let alone = Scope::Topic(topic.clone());
        match self.look_up(&scope, topic).await {
            // Not about this topic after all: the bundles are others by now.
            Ok(owner) if !owner.scope.covers(topic) => self.look_up(&alone, topic).await,
            // What no attempt mends may be wrong with the one topic that was asked for.
            Err(error) if scope != alone && !error.can_pass() => self.look_up(&alone, topic).await,
            found => found,
        }
    }

    /// One lookup for all who need one of the same scope.
    async fn look_up(&self, scope: &Scope, topic: &TopicName) -> Result<Owner, ClientError> {
        let (shared, name) = (Arc::clone(&self.shared), topic.clone());
        self.lookups.join(scope, || async move { shared.look_up(&name).await }).await
    }

    /// What was tried with `owner`, by its word, ended so.
    pub(crate) fn failed(&self, owner: &Owner, error: &ClientError) {
        let trouble = match error {
            ClientError::Broker(error) if error.ends_session() => Trouble::Refused,
            ClientError::Broker(_) | ClientError::Closed => return,
            _ => Trouble::Unreachable,
        };
        self.shared.owners.lock().blame(owner, trouble);
    }

    /// Who serves `topic` by the word of others than `silent`, which says nothing. `None`: it still
    /// is that one, or nobody else can say.
    pub(crate) async fn second_opinion(&self, topic: &TopicName, silent: &Owner) -> Option<Owner> {
        let shared = Arc::clone(&self.shared);
        let (name, except) = (topic.clone(), Arc::clone(&silent.url));
        let asked = self.second_opinions.join(&silent.scope, || async move {
            let candidates = shared.pool.candidates(shared.urls.in_turn());
            let mut urls = order(candidates, None);
            urls.retain(|url| *url != except);
            shared.ask_all(&name, urls).await
        });
        let owner = match asked.await {
            Ok(owner) => owner,
            Err(error) => {
                tracing::debug!(%topic, %error, "no second opinion on who serves it");
                return None;
            }
        };
        let moved = owner.scope.covers(topic) && !owner.is_same_place(silent);
        moved.then(|| self.shared.learn(owner, Some(silent)))
    }

    /// Waits before another attempt; less if there is news of who serves what, and not at all if
    /// there was some since the last attempt began.
    pub(crate) async fn pause(&self, wait: Duration, since: Monotonic) {
        let mut news = self.shared.news.subscribe();
        if news.borrow_and_update().is_some_and(|told| told >= since) {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // The sender lives as long as this.
            _ = news.changed() => {}
        }
    }

    pub(crate) fn close(&self) {
        self.shared.pool.close();
    }

    /// The service URLs, as one text.
    pub(crate) fn urls(&self) -> String {
        self.shared.urls.list()
    }
}

impl Shared {
    async fn look_up(&self, topic: &TopicName) -> Result<Owner, ClientError> {
        let blamed = self.owners.lock().blamed(topic);
        let urls = order(self.pool.candidates(self.urls.in_turn()), blamed.as_ref());
        let owner = self.ask_all(topic, urls).await?;
        Ok(self.learn(owner, blamed.as_ref().map(|(owner, _)| owner)))
    }

    fn learn(&self, owner: Owner, before: Option<&Owner>) -> Owner {
        let moved = before.is_some_and(|before| !before.is_same_place(&owner));
        let owner = self.owners.lock().learn(owner);
        if moved {
            let now = self.env.clock.monotonic();
            self.news.send_if_modified(|told| {
                let due = told.is_none_or(|at| now.saturating_sub(at) >= NEWS_INTERVAL);
                if due {
                    *told = Some(now);
                }
                due
            });
        }
        owner
    }

    async fn ask_all(&self, topic: &TopicName, urls: Vec<Arc<str>>) -> Result<Owner, ClientError> {
        let owner = first_answer(urls, |url| self.ask(topic, url)).await?;
        self.urls.answered(&owner.told_by);
        Ok(owner)
    }

    /// One broker's word.
    async fn ask(&self, topic: &TopicName, url: Arc<str>) -> Result<Owner, ClientError> {
        let asked = self.pool.get(&url).await?;
        let answer = asked.lookup(&topic.to_string()).await?;
        if answer.partitions > 0 {
            let message = format!("{topic} is partitioned; partitioned topics are not supported");
            return Err(BrokerError { code: ErrorCode::Unsupported, message }.into());
        }
        let scope = Scope::of(topic, answer.bundle);
        let itself = asked.info().broker_id.as_str();
        let named = answer.service_url.strip_suffix('/').unwrap_or(&answer.service_url);
        let (told_by, version) = (Arc::clone(&url), 0);
        if named.is_empty() || named == &*url {
            // An address that the broker names itself is the cluster's, whoever wrote it too.
            let advertised = !named.is_empty();
            let broker_id = itself.into();
            return Ok(Owner { scope, url, broker_id, advertised, told_by, version });
        }
        let (url, broker_id) = (named.into(), answer.broker_id.as_str().into());
        Ok(Owner { scope, url, broker_id, advertised: true, told_by, version })
    }
}

#[cfg(test)]
mod tests;
