//! [`EtcdStore`]: the store of a cluster, in an etcd of 3.4 or newer.
//!
//! What the trait promises is what etcd does; this room adds deadlines, failover between
//! endpoints, and the certainty of talking to the same etcd all along: `pool` which endpoint is
//! asked, `connection` nothing goes over an unverified one, `identity` which etcd is known,
//! `error` what a failure means, `watch`, `outage` what is logged, `request` translation,
//! `exchange` one request and its answer, `together` requests that go in one, `config`.
//!
//! *Architecture invariant:* an etcd that isn't the known one, or lost what it had shown, is never
//! written to, and never used again until the process is started anew.

mod config;
mod connection;
mod error;
mod exchange;
mod identity;
mod outage;
mod pool;
mod request;
mod together;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{GetOptions, LeaseGrantOptions};
use geminga_proto::env::Env;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::error::{Failure, failure};
use self::exchange::Exchange;
use self::identity::Identity;
use self::pool::{Kind, Place, Pool};
use self::request::{Root, lease_number, sender};
use self::together::{Lane, Unanswered};
use self::watch::{EtcdWatch, WatchRequest};
use super::limits::{check_key, check_prefix, check_txn};
use super::{
    KeyValue, LeaseId, MAX_RANGE, MetadataStore, RangePage, Revision, StoreError, Txn, TxnOutcome,
    Watch,
};
use crate::keys;
use crate::update_loop::RetryPolicy;

pub use config::{
    EtcdConfig, EtcdConfigError, EtcdCredentials, EtcdIdentity, EtcdTls, MAX_ENDPOINTS,
    MAX_PREFIX_BYTES,
};

/// How often etcd is tried at first, and then.
const CONNECT_PACE: RetryPolicy = RetryPolicy {
    attempts: u32::MAX,
    first_delay: Duration::from_millis(50),
    max_delay: Duration::from_secs(2),
};

/// Why a store could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// A setting makes no sense.
    #[error(transparent)]
    Config(#[from] EtcdConfigError),
    /// etcd doesn't answer, refuses, or isn't the one that is wanted.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The metadata in etcd.
#[derive(Debug)]
pub struct EtcdStore {
    /// For people.
    endpoints: String,
    exchange: Exchange,
    reads: Lane<String, Result<Option<KeyValue>, StoreError>>,
    txns: Lane<Txn, Result<TxnOutcome, StoreError>>,
    request_timeout: Duration,
    /// Times to live of the leases that were granted here and aren't known to have ended.
    leases: Mutex<BTreeMap<LeaseId, Duration>>,
    env: Env,
}

impl EtcdStore {
    /// Connects to the first endpoint that answers and checks that it is the right etcd. Tries
    /// each endpoint once.
    ///
    /// # Errors
    /// [`ConnectError`]; it names the endpoints and what each of them said.
    pub async fn connect(config: EtcdConfig, env: Env) -> Result<Self, ConnectError> {
        Self::connect_within(config, env, Duration::ZERO).await
    }

    /// The same, but tries again with back-off while etcd is out of reach, until `patience` has
    /// passed. The first failure is logged.
    ///
    /// # Errors
    /// [`ConnectError`]; at once for what trying again doesn't mend.
    pub async fn connect_within(
        config: EtcdConfig,
        env: Env,
        patience: Duration,
    ) -> Result<Self, ConnectError> {
        config.validate()?;
        let identity = Arc::new(Identity::default());
        let pool = Pool::new(&config, Arc::clone(&identity), env.clone())?;
        let (root, request_timeout) = (Root(config.prefix), config.request_timeout);
        let endpoints = config.endpoints.join(", ");
        let exchange = Exchange { root, pool: Arc::new(pool), identity };
        let (reads, txns, leases) = (Lane::new(), Lane::new(), Mutex::default());
        let store = Self { endpoints, exchange, reads, txns, request_timeout, leases, env };
        let start = store.env.clock.monotonic();
        for attempt in 1_u32.. {
            CONNECT_PACE.pause(&store.env, attempt).await;
            let waited = store.env.clock.monotonic().saturating_sub(start);
            match store.get(keys::CLUSTER).await {
                Ok(_) if attempt > 1 => {
                    tracing::info!(after_ms = waited.as_millis(), "etcd is reached");
                    break;
                }
                Ok(_) => break,
                Err(error @ (StoreError::Unavailable(_) | StoreError::Unknown(_)))
                    if waited < patience =>
                {
                    if attempt == 1 {
                        tracing::warn!(%error, "etcd is not reached; trying again");
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(store)
    }

    /// The highest revision that etcd has shown.
    #[must_use]
    pub fn last_revision(&self) -> Revision {
        self.exchange.identity.highest()
    }

    /// Is done once this store is [`StoreError::Replaced`], which is for good, and gives that.
    pub fn replaced(&self) -> impl Future<Output = StoreError> + Send + 'static {
        let mut replaced = self.exchange.identity.replaced();
        async move {
            let why = replaced.wait_for(Option::is_some).await.map(|why| why.clone());
            match why {
                Ok(why) => StoreError::Replaced(why.unwrap_or_default()),
                // The store is gone, and nobody's any more.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// When whoever asks now hears something, whatever others have asked before.
    fn deadline(&self) -> Instant {
        Instant::now() + self.request_timeout
    }

    fn late(&self) -> String {
        format!("{}: no answer within {} ms", self.endpoints, self.request_timeout.as_millis())
    }

    fn forget_if_ended(&self, lease: LeaseId, kept: &Result<(), StoreError>) {
        if *kept == Err(StoreError::LeaseLost) {
            self.leases.lock().remove(&lease);
        }
    }

    async fn read_page(
        &self,
        mut place: Place,
        (start, end): (Vec<u8>, Vec<u8>),
        limit: i64,
    ) -> Result<RangePage, Failure> {
        let floor = self.exchange.identity.highest();
        let options = GetOptions::new().with_range(end).with_limit(limit);
        let answer = place.connection.kv.get(start, Some(options)).await.map_err(failure)?;
        let revision = self.exchange.answered(answer.header(), floor)?;
        let pairs = answer.kvs().iter().map(|pair| self.exchange.root.pair(pair));
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        Ok(RangePage { pairs, revision, more: answer.more() })
    }

    async fn grant(&self, mut place: Place, ttl_s: i64) -> Result<LeaseId, Failure> {
        let floor = self.exchange.identity.highest();
        let options = LeaseGrantOptions::new();
        let answer = place.connection.lease.grant(ttl_s, Some(options)).await.map_err(failure)?;
        self.exchange.write_answered(answer.header(), floor)?;
        let (id, granted_s) = (answer.id(), answer.ttl());
        if granted_s > most_granted_s(ttl_s) {
            // If this fails, the lease ends by itself.
            drop(place.connection.lease.revoke(id).await);
            return Err(Failure::Final(StoreError::Invalid(format!(
                "etcd grants no lease shorter than {granted_s} s, but {ttl_s} s were asked for: \
                 raise lease_ttl, or start etcd with a shorter --election-timeout (a lease lasts \
                 at least one and a half of it) and --heartbeat-interval"
            ))));
        }
        if granted_s > ttl_s {
            tracing::info!(asked_s = ttl_s, granted_s, "etcd grants longer leases than asked for");
        }
        let id = u64::try_from(id).ok().filter(|id| *id > 0);
        id.map(LeaseId).ok_or_else(|| Failure::Lost("a lease has no number".to_owned()))
    }
}

/// etcd counts leases in whole seconds, and has a minimum that follows from its election
/// time-out; up to double is put up with.
fn most_granted_s(asked_s: i64) -> i64 {
    asked_s.saturating_mul(2)
}

/// A time to live in etcd's unit, rounded up.
fn whole_seconds(ttl: Duration) -> Result<i64, StoreError> {
    if ttl.is_zero() {
        return Err(StoreError::Invalid("a lease needs a time to live above 0".to_owned()));
    }
    let seconds = ttl.as_secs().saturating_add(u64::from(ttl.subsec_nanos() > 0));
    i64::try_from(seconds).map_err(|_| StoreError::TooLarge(format!("a lease of {seconds} s")))
}

#[async_trait]
impl MetadataStore for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        check_key(key)?;
        if key == keys::CLUSTER {
            return self.exchange.get(key).await;
        }
        let exchange = self.exchange.clone();
        let send = move |keys| exchange.clone().gets(keys);
        let asked = self.reads.ask(key.to_owned(), self.deadline(), send).await;
        asked.unwrap_or_else(|_| Err(StoreError::Unavailable(self.late())))
    }

    async fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<RangePage, StoreError> {
        check_prefix(prefix)?;
        let range = self.exchange.root.range(prefix, after);
        let mut most = limit.min(MAX_RANGE);
        loop {
            // For etcd, no limit is 0.
            let asked = i64::try_from(most.max(1)).unwrap_or(i64::MAX);
            let read = |place| self.read_page(place, range.clone(), asked);
            match self.exchange.pool.call(Kind::Idempotent, read).await {
                // Fewer of them then; one alone always fits.
                Err(StoreError::TooLarge(_)) if most > 1 => most /= 2,
                Ok(page) if limit == 0 => {
                    let more = !page.pairs.is_empty();
                    return Ok(RangePage { pairs: Vec::new(), more, ..page });
                }
                answer => return answer,
            }
        }
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        check_txn(&txn)?;
        let exchange = self.exchange.clone();
        let send = move |txns| exchange.clone().txns(txns);
        let asked = self.txns.ask(txn, self.deadline(), send).await;
        asked.unwrap_or_else(|why| {
            Err(match why {
                Unanswered::Unsent => StoreError::Unavailable(self.late()),
                Unanswered::Lost => StoreError::Unknown(self.late()),
            })
        })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Box<dyn Watch>, StoreError> {
        check_prefix(prefix)?;
        let request = WatchRequest {
            root: self.exchange.root.clone(),
            prefix: prefix.to_owned(),
            after,
            patience: self.request_timeout,
        };
        let start =
            |place| EtcdWatch::start(request.clone(), place, Arc::clone(&self.exchange.identity));
        let watch = self.exchange.pool.call(Kind::Idempotent, start).await?;
        Ok(Box::new(watch))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let ttl_s = whole_seconds(ttl)?;
        // A lease whose answer was lost ends by itself.
        let lease = self.exchange.pool.call(Kind::Write, |place| self.grant(place, ttl_s)).await?;
        self.leases.lock().insert(lease, ttl);
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let number = lease_number(lease)?;
        let ttl = self.leases.lock().get(&lease).copied();
        // What comes when the lease is over is too late; so all endpoints are asked before.
        let limit = ttl.map_or(self.request_timeout, |ttl| ttl * 3 / 4);
        let keep = async |mut place: Place| {
            // Dropping both ends the stream.
            let kept = place.connection.lease.keep_alive(number).await.map_err(failure)?;
            let (mut keeper, mut answers) = kept;
            // The client keeps the first answer's header to itself. What the second one tells is
            // how a process that writes nothing knows how far etcd was.
            keeper.keep_alive().await.map_err(failure)?;
            if let Some(answer) = answers.message().await.map_err(failure)? {
                let sender = sender(answer.header())?;
                self.exchange.identity.any(sender).map_err(Failure::Final)?;
                self.exchange.identity.saw(sender.revision);
            }
            Ok(())
        };
        let kept = self.exchange.pool.call_within(limit, Kind::Idempotent, keep).await;
        self.forget_if_ended(lease, &kept);
        kept
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), StoreError> {
        let number = lease_number(lease)?;
        let revoke = async |mut place: Place| {
            let floor = self.exchange.identity.highest();
            let answer = place.connection.lease.revoke(number).await.map_err(failure)?;
            self.exchange.write_answered(answer.header(), floor).map(drop)
        };
        let revoked = self.exchange.pool.call(Kind::Write, revoke).await;
        // Whatever came of it, nobody keeps it alive any more.
        self.leases.lock().remove(&lease);
        revoked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_live_is_rounded_up_to_what_etcd_counts_in() {
        let seconds = |ms| whole_seconds(Duration::from_millis(ms));
        assert_eq!((seconds(1), seconds(1_000), seconds(1_001)), (Ok(1), Ok(1), Ok(2)));
        assert!(matches!(seconds(0), Err(StoreError::Invalid(_))));
        assert!(matches!(whole_seconds(Duration::MAX), Err(StoreError::TooLarge(_))));
    }
}
