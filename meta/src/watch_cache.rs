//! [`WatchCache`]: a view of all records below a prefix, kept up to date by a watch.
//!
//! A lost watch or a compacted revision ends in a re-read of the prefix, with the view marked as
//! stale until it is done. So whoever asks [`WatchCache::get`] gets what the watch has confirmed,
//! or hears that nothing is confirmed, and never an old view for a new one. (A confirmed view is
//! behind the store by as long as the watch takes; a decision that must not be is made by a
//! transaction.)
//!
//! The same if the task that follows the watch panics: it begins anew. However it ends, the view
//! it leaves behind is stale.
//!
//! Invariants: the view is replaced as a whole by a re-read; an event that a page of the re-read
//! already contains is skipped, so that a key never goes back in time; a record that can't be
//! decoded is an error at its own key only.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use geminga_proto::env::Env;
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::record::{Record, RecordError, Stored};
use crate::store::{
    KeyValue, MAX_RANGE, MetadataStore, Revision, StoreError, WatchError, WatchEvent,
};
use crate::update_loop::RetryPolicy;

/// Why the view has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// The watch was lost and the prefix isn't read again yet.
    #[error("the watched metadata are out of date at the moment; try again")]
    Stale,
    /// What is stored under the key can't be used.
    #[error("{key}: {error}")]
    Record {
        /// The key.
        key: String,
        /// What is wrong.
        error: RecordError,
    },
}

type Entry<R> = Result<Arc<Stored<R>>, RecordError>;

/// A record of the view, or why it can't be decoded.
pub type Listed<R> = Result<Arc<Stored<R>>, CacheError>;

/// Up to which key a page of the re-read went, and its revision.
#[derive(Debug)]
struct PageEnd {
    last_key: String,
    revision: Revision,
}

#[derive(Debug)]
struct View<R> {
    entries: BTreeMap<String, Entry<R>>,
    fresh: bool,
    /// Pages of the re-read that the view is built on, in key order.
    pages: Vec<PageEnd>,
    /// Revision of the last of them, which goes on to the end of the prefix.
    last_page: Revision,
}

#[derive(Debug)]
struct Shared<R> {
    /// Written by the cache's task only.
    view: RwLock<View<R>>,
    /// Counts the changes of the view.
    version: watch::Sender<u64>,
}

/// The view. Dropping it ends the watch.
#[derive(Debug)]
pub struct WatchCache<R> {
    shared: Arc<Shared<R>>,
    task: AbortHandle,
}

impl<R> Drop for WatchCache<R> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<R: Record> WatchCache<R> {
    /// Reads the prefix and watches it from then on.
    ///
    /// # Errors
    /// [`StoreError`] if the first read fails; later failures are tried again for ever, at
    /// `policy`'s pace.
    pub async fn start(
        store: Arc<dyn MetadataStore>,
        env: Env,
        policy: RetryPolicy,
        prefix: &str,
    ) -> Result<Self, StoreError> {
        let (view, revision) = read_view(&*store, prefix).await?;
        let shared = Arc::new(Shared { view: RwLock::new(view), version: watch::Sender::new(0) });
        let prefix = prefix.to_owned();
        let follower = Follower { store, env, policy, prefix, shared: Arc::clone(&shared) };
        let task = tokio::spawn(follower.run(revision)).abort_handle();
        Ok(Self { shared, task })
    }

    /// The record under `key`, as far as the watch has confirmed it.
    ///
    /// # Errors
    /// [`CacheError::Stale`] while the view is out of date, or [`CacheError::Record`].
    pub fn get(&self, key: &str) -> Result<Option<Arc<Stored<R>>>, CacheError> {
        if self.shared.view.read().fresh { self.get_anyway(key) } else { Err(CacheError::Stale) }
    }

    /// The record under `key`, even if the view is out of date: for those who go on with what
    /// they knew while the store is out of reach.
    ///
    /// # Errors
    /// [`CacheError::Record`] if it can't be decoded.
    pub fn get_anyway(&self, key: &str) -> Result<Option<Arc<Stored<R>>>, CacheError> {
        match self.shared.view.read().entries.get(key) {
            None => Ok(None),
            Some(Ok(stored)) => Ok(Some(Arc::clone(stored))),
            Some(Err(error)) => {
                Err(CacheError::Record { key: key.to_owned(), error: error.clone() })
            }
        }
    }

    /// All records, in key order; those that can't be decoded come as errors.
    ///
    /// # Errors
    /// [`CacheError::Stale`] while the view is out of date.
    pub fn list(&self) -> Result<Vec<Listed<R>>, CacheError> {
        let view = self.shared.view.read();
        if view.fresh { Ok(view.list()) } else { Err(CacheError::Stale) }
    }

    /// As [`Self::list`], even if the view is out of date.
    #[must_use]
    pub fn list_anyway(&self) -> Vec<Listed<R>> {
        self.shared.view.read().list()
    }

    /// False while the view is out of date.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.shared.view.read().fresh
    }

    /// Hears each change of the view, of its freshness too, as a growing number.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.version.subscribe()
    }
}

/// The task that keeps the view up to date.
struct Follower<R> {
    store: Arc<dyn MetadataStore>,
    env: Env,
    policy: RetryPolicy,
    prefix: String,
    shared: Arc<Shared<R>>,
}

impl<R> Follower<R> {
    /// Nothing confirms the view any more.
    fn lose(&self) {
        self.shared.view.write().fresh = false;
        self.announce();
    }

    fn announce(&self) {
        self.shared.version.send_modify(|version| *version = version.wrapping_add(1));
    }
}

/// However the task ends, even by the end of its runtime.
impl<R> Drop for Follower<R> {
    fn drop(&mut self) {
        self.lose();
    }
}

impl<R: Record> Follower<R> {
    async fn run(self, revision: Revision) {
        let mut known = Some(revision);
        for attempt in 2_u32.. {
            // A view that was left half changed is marked as stale, and replaced as a whole.
            let followed = AssertUnwindSafe(self.keep_up(known.take(), attempt)).catch_unwind();
            let Err(panic) = followed.await;
            self.lose();
            let why = panic.downcast_ref::<String>().map(String::as_str);
            let why = why.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
            tracing::error!(
                prefix = self.prefix,
                why,
                "following metadata broke down, which is a defect; beginning anew"
            );
        }
    }

    /// Keeps the view up to date from a revision that it was read at, or reads it first.
    async fn keep_up(&self, known: Option<Revision>, mut attempt: u32) -> Infallible {
        let mut revision = match known {
            Some(revision) => revision,
            None => self.read_again(attempt).await,
        };
        attempt = 1;
        loop {
            let start = Instant::now();
            let lost = self.follow(revision).await;
            tracing::debug!(prefix = self.prefix, %lost, "a metadata watch ended; reading again");
            self.lose();
            // A store that answers reads, but ends each watch at once, is asked ever less often.
            let lasted = start.elapsed() >= self.policy.max_delay;
            attempt = if lasted { 1 } else { u32::saturating_add(attempt, 1) };
            revision = self.read_again(attempt).await;
        }
    }

    /// Applies events until the watch ends.
    async fn follow(&self, revision: Revision) -> WatchError {
        let mut watch = match self.store.watch(&self.prefix, revision).await {
            Ok(watch) => watch,
            Err(error) => return WatchError::Lost(error.to_string()),
        };
        loop {
            match watch.next().await {
                Ok(events) => {
                    self.shared.view.write().apply(events);
                    self.announce();
                }
                Err(error) => return error,
            }
        }
    }

    /// Reads the prefix until it can be read; what a pause waits for grows up to the policy's
    /// limit.
    async fn read_again(&self, mut attempt: u32) -> Revision {
        let (prefix, mut said) = (&self.prefix, false);
        loop {
            self.policy.pause(&self.env, attempt).await;
            let error = match read_view(&*self.store, prefix).await {
                Ok((view, revision)) => {
                    if said {
                        tracing::info!(prefix, "metadata can be read again");
                    }
                    *self.shared.view.write() = view;
                    self.announce();
                    return revision;
                }
                Err(error) => error,
            };
            attempt = attempt.saturating_add(1);
            // A store that is out of reach says so itself, once for all who use it.
            let out_of_reach = matches!(error, StoreError::Unavailable(_) | StoreError::Unknown(_));
            if out_of_reach || said {
                tracing::debug!(prefix, %error, "metadata can't be read; trying again");
            } else {
                tracing::warn!(prefix, %error, "metadata can't be read; trying again");
                said = true;
            }
        }
    }
}

impl<R: Record> View<R> {
    fn list(&self) -> Vec<Listed<R>> {
        let entry = |(key, entry): (&String, &Entry<R>)| {
            let record =
                |error: &RecordError| CacheError::Record { key: key.clone(), error: error.clone() };
            entry.as_ref().map(Arc::clone).map_err(record)
        };
        self.entries.iter().map(entry).collect()
    }

    fn apply(&mut self, events: Vec<WatchEvent>) {
        for event in events {
            // An event that the page which held its key has in it already.
            if event.revision <= self.read_at(&event.key) {
                continue;
            }
            match event.value {
                None => {
                    self.entries.remove(&event.key);
                }
                Some(value) => {
                    let (key, modified) = (event.key.clone(), event.revision);
                    let pair = KeyValue { key, value, modified, lease: None };
                    self.entries.insert(event.key, Stored::from_pair(pair).map(Arc::new));
                }
            }
        }
    }

    /// Revision at which a key was read.
    fn read_at(&self, key: &str) -> Revision {
        let page = self.pages.partition_point(|page| page.last_key.as_str() < key);
        self.pages.get(page).map_or(self.last_page, |page| page.revision)
    }
}

/// Reads a prefix. Its pages are of different revisions; the watch must start at the first one's,
/// which is answered beside the view.
async fn read_view<R: Record>(
    store: &dyn MetadataStore,
    prefix: &str,
) -> Result<(View<R>, Revision), StoreError> {
    let (mut entries, mut pages, mut first) = (BTreeMap::new(), Vec::new(), None);
    loop {
        let after = pages.last().map(|page: &PageEnd| page.last_key.clone());
        let page = store.range(prefix, after.as_deref(), MAX_RANGE).await?;
        first.get_or_insert(page.revision);
        let last_key = page.pairs.last().map(|pair| pair.key.clone());
        for pair in page.pairs {
            entries.insert(pair.key.clone(), Stored::from_pair(pair).map(Arc::new));
        }
        match last_key {
            Some(last_key) if page.more => {
                pages.push(PageEnd { last_key, revision: page.revision });
            }
            _ => {
                let last_page = page.revision;
                let view = View { entries, fresh: true, pages, last_page };
                return Ok((view, first.unwrap_or(last_page)));
            }
        }
    }
}

#[cfg(test)]
mod tests;
