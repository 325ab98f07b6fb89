//! [`Registration`]: keeps this bookie's record in the metadata, under a lease.
//!
//! The record says where the bookie is and what it can take, so that brokers find it and choose it.
//! It gives liveness only: a bookie that isn't registered serves those who know it. So whatever
//! becomes of the metadata store, the bookie goes on, and registers again when it can.
//!
//! A record of the same name under another's live lease is another process with this bookie's name.
//! One that advertises our very address, which this process has bound, must be of an earlier run
//! that has ended: its lease is revoked at a start. Any other is waited for until its lease must
//! have ended; if it hasn't, the start is refused. Once started, nobody's lease is revoked: two
//! processes that do that would go on for ever.
//!
//! The record is written only as long as the metadata have the cookie of this very disk. A bookie
//! that was drained while its lease was lost, and forgotten, must not be found again: its name may
//! be another disk's by now, and brokers would write to what no auditor looks after. So it ends.
//!
//! Writes of the record are few: one when what it takes changes, and one when the free space has
//! moved by a twentieth of the disk, at most every ten seconds ([`differs`]).
//!
//! Beside that, a task of its own ([`Noter`]) notes the metadata's revision on the disk, at
//! intervals and at the end: the next start refuses metadata that are older than that. However
//! long it takes, the record is kept up meanwhile.

use std::sync::Arc;
use std::time::Duration;

use geminga_meta::keys;
use geminga_meta::record::{BookieRecord, CookieRecord, Nonce, Record, RecordError, Stored};
use geminga_meta::store::{Compare, LeaseId, MetadataStore, StoreError, Txn, TxnOutcome};
use geminga_meta::update_loop::{RetryPolicy, Witness, commit};
use geminga_proto::env::{Env, Monotonic};
use geminga_proto::id::BookieId;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bookie::Bookie;
use crate::gc::{self, CollectError};

mod keeper;
mod noter;

use keeper::Keeper;
use noter::Noter;

/// Free space is told again once it has moved by this share of the disk.
const TOLD_SHARE: u64 = 20;
/// Least time between two writes for the free space alone.
const TOLD_PAUSE: Duration = Duration::from_secs(10);
/// How often the metadata's revision is made durable, beside each census and an orderly end. Each
/// time costs two small files on the disk.
const NOTED_PAUSE: Duration = Duration::from_secs(60);
/// What the metadata store may take longer than the lease to end it: it checks at intervals, and
/// counts leases of a second in whole ones.
const LEASE_SLACK: Duration = Duration::from_secs(2);

/// Settings of a [`Registration`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationConfig {
    /// Where brokers reach the bookie, as host:port. This process has bound it.
    pub address: String,
    /// Its failure domain; may be empty.
    pub zone: String,
    /// How long it stays registered without a sign of life.
    pub lease_ttl: Duration,
    /// The release that it runs.
    pub release: String,
}

/// Why a bookie is not registered, and must not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// Another process has the name.
    #[error("bookie {bookie} is running already at {address}; choose another bookie_id")]
    AlreadyRunning {
        /// The name.
        bookie: BookieId,
        /// Where the other one is.
        address: String,
    },
    /// The metadata know its disk no more.
    #[error(
        "bookie {bookie} was taken away for good: its cluster's metadata have no cookie of its disk \
         any more. If it was decommissioned or recovered, what it had was copied elsewhere: give it \
         an empty data directory to use the machine again. If nobody did that, keep its disk: \
         somebody has deleted records of the cluster"
    )]
    TakenAway {
        /// The name.
        bookie: BookieId,
    },
    /// It is another cluster's metadata, or older than what this bookie has acted on.
    #[error(transparent)]
    Metadata(CollectError),
    /// The record can't be written.
    #[error("this bookie's record can't be written: {0}")]
    Record(#[from] RecordError),
    /// The metadata store refuses for a reason that waiting doesn't mend.
    #[error("this bookie can't be registered: {0}")]
    Store(StoreError),
}

/// A bookie that is registered, as far as the metadata store answers. Dropping it without
/// [`Registration::close`] leaves the record to the end of its lease.
#[derive(Debug)]
pub struct Registration {
    stop: watch::Sender<bool>,
    /// Ends by itself only with the reason why the process must not serve any more.
    task: JoinHandle<Option<RegistrationError>>,
}

/// A bookie whose metadata were checked, and that may be served. Its name isn't taken yet.
#[derive(Debug)]
pub struct Checked(Keeper);

impl Checked {
    /// Checks that the metadata is this bookie's and not older than it has seen. Waits for a
    /// metadata store that doesn't answer, and says so; drop the future to give up.
    ///
    /// # Errors
    /// [`RegistrationError`]: this process must not serve.
    pub async fn new(
        config: RegistrationConfig,
        bookie: Bookie,
        store: Arc<dyn MetadataStore>,
        env: Env,
    ) -> Result<Self, RegistrationError> {
        let keeper = Keeper::new(config, bookie, store, env);
        keeper.check_metadata().await?;
        Ok(Self(keeper))
    }

    /// Takes the name, and keeps the record up from then on. Waits as [`Checked::new`] does. A
    /// future that is dropped may leave a record to the end of its lease.
    ///
    /// # Errors
    /// As there.
    pub async fn register(self) -> Result<Registration, RegistrationError> {
        let Self(mut keeper) = self;
        keeper.take_name().await?;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(keeper.run(stopped));
        Ok(Registration { stop, task })
    }
}

impl Registration {
    /// Checks that the metadata is this bookie's and not older than it has seen, takes the name,
    /// and keeps the record up from then on. Waits for a metadata store that doesn't answer, and
    /// says so; drop the future to give up.
    ///
    /// # Errors
    /// [`RegistrationError`]: this process must not serve.
    pub async fn start(
        config: RegistrationConfig,
        bookie: Bookie,
        store: Arc<dyn MetadataStore>,
        env: Env,
    ) -> Result<Self, RegistrationError> {
        Checked::new(config, bookie, store, env).await?.register().await
    }

    /// Takes the record away, so that nobody counts on this bookie any more. Takes as long as the
    /// metadata store and the disk need, but no longer than the lease (or half a second, should
    /// that be longer): what isn't done by then is left to the end of the lease.
    pub async fn close(self) {
        self.stop.send_replace(true);
        // It has told its reason already.
        if !self.task.is_finished()
            && let Err(error) = self.task.await
        {
            tracing::error!(%error, "keeping this bookie's record has failed");
        }
    }

    /// Why this process must not serve any more, once that is so. To be called again only if its
    /// future was dropped before.
    pub async fn ended(&mut self) -> RegistrationError {
        match (&mut self.task).await {
            Ok(Some(error)) => error,
            Ok(None) | Err(_) => {
                // The first is told to stop; a panic is caught where it happens.
                std::future::pending().await
            }
        }
    }
}

/// Whether what the bookie says now is worth a write of its record. `since`: the last write.
fn differs(told: &BookieRecord, now: &BookieRecord, since: Duration) -> bool {
    let state = |record: &BookieRecord| (record.writable, record.poisoned, record.total_bytes);
    let moved = told.free_bytes.abs_diff(now.free_bytes);
    let much = moved > 0 && moved >= now.total_bytes / TOLD_SHARE;
    state(told) != state(now) || (much && since >= TOLD_PAUSE)
}

/// What is to be done about a record of our name that somebody wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rival {
    /// It is our own.
    Ourselves,
    /// An earlier process at our address, which has ended: its lease may be revoked.
    Former,
    /// Another process, or one that has just ended.
    Other,
}

fn rival(ours: &BookieRecord, found: &BookieRecord) -> Rival {
    if found.session == ours.session {
        Rival::Ourselves
    } else if found.address == ours.address {
        Rival::Former
    } else {
        Rival::Other
    }
}

#[cfg(test)]
mod tests;
