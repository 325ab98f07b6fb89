//! [`Collector`]: deletes ledgers that are gone from the metadata, and nothing else.
//!
//! A hint or the interval triggers a look. A look reads, linearizably, the cluster's record, this
//! bookie's own cookie, and the ledgers; what the bookie holds was listed *before*, so a ledger
//! that exists was in the metadata by then. The revision of what was read is made durable here, so
//! that a later look can tell metadata that went back in time; and with it which ledgers are gone,
//! so that they neither come back with a restart nor take an add of a former owner.
//!
//! Deletion stops, loudly, until somebody looks: at a revision lower than any seen, at a foreign
//! cluster id, without the own cookie, and when a large share of the ledgers is gone at once
//! without a hint. A ledger that was hinted doesn't count as vanished: two independent sources
//! say that it is gone.

use std::collections::BTreeSet;
use std::sync::Arc;

use geminga_meta::keys::{self, Key};
use geminga_meta::record::{ClusterRecord, CookieRecord, RecordError, Stored};
use geminga_meta::store::{MAX_RANGE, MetadataStore, RangePage, Revision, StoreError};
use geminga_proto::id::{ClusterId, LedgerId};

use crate::log::state::LogState;

use crate::bookie::{Bookie, Hints};
#[cfg(any(test, feature = "simulation"))]
use crate::defect::Defect;

mod surplus;

pub(crate) use surplus::Kept;

/// Noted in place of a revision when the metadata were replaced; higher than any.
const REPLACED: u64 = u64::MAX;
/// Hinted ledgers above which all ledgers are listed instead of asked for one by one.
const MAX_SINGLE_LOOKS: usize = 256;

/// Why nothing was deleted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollectError {
    /// The metadata store didn't answer; the next look tries again.
    #[error("the metadata can't be read: {0}")]
    Store(#[from] StoreError),
    /// A record can't be read.
    #[error("the metadata can't be used: {0}")]
    Record(#[from] RecordError),
    /// The metadata is older than it was.
    #[error(
        "the metadata is at revision {found}, but was at {seen}: it was restored from an old copy. \
         Nothing is deleted any more until this node is restarted with the right metadata, or, if \
         what was changed since that copy is to be given up, with bookie.accept_older_metadata"
    )]
    WentBack {
        /// Highest revision ever seen.
        seen: u64,
        /// The revision now.
        found: u64,
    },
    /// The metadata were found to be others, or older ones, while this bookie ran. What is noted is
    /// that, and no revision: set back metadata soon get above any that they have lost.
    #[error(
        "the metadata was replaced or set back while this node ran, so ledgers that it holds may \
         be missing there and would be deleted. Nothing is deleted any more. Find out which \
         metadata is the right one; if it is the one that is used now, or if what was changed \
         since it was copied is to be given up, restart this node with bookie.accept_older_metadata"
    )]
    Replaced,
    /// The metadata is another cluster's, or nobody's.
    #[error("the metadata is of cluster {found:?}, not of {expected}: nothing is deleted any more")]
    ForeignCluster {
        /// What it says.
        found: Option<ClusterId>,
        /// Which it should be.
        expected: ClusterId,
    },
    /// The metadata doesn't know this bookie's disk.
    #[error("this bookie's cookie is not in the metadata: nothing is deleted any more")]
    NoCookie,
    /// Too many ledgers are gone at once.
    #[error(
        "{vanished} of {known} ledgers are gone from the metadata without a hint: nothing is \
         deleted any more. If that is right, restart this node with a higher \
         bookie.mass_deletion_percent"
    )]
    MassDeletion {
        /// How many are gone.
        vanished: u64,
        /// How many this bookie holds.
        known: u64,
    },
    /// The revision could not be made durable.
    #[error("the bookie is read-only")]
    ReadOnly,
    /// An earlier look found a reason to stop.
    #[error("deletion has stopped: {0}")]
    Stopped(String),
}

impl CollectError {
    /// True if a look at another time may end differently.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Store(_) => true,
            Self::Record(_)
            | Self::WentBack { .. }
            | Self::Replaced
            | Self::ForeignCluster { .. }
            | Self::NoCookie
            | Self::MassDeletion { .. }
            | Self::ReadOnly
            | Self::Stopped(_) => false,
        }
    }
}

/// What a comparison with all ledgers of the cluster came to.
struct Compared {
    /// Ledgers here that don't exist any more.
    gone: Vec<LedgerId>,
    /// The lowest that exists.
    lowest: Option<LedgerId>,
    /// Closed ledgers here, and what of each is wanted here.
    kept: Vec<Kept>,
    /// Closed ledgers, here or not, of which something may be lost, and what is wanted here.
    wanted: Vec<Kept>,
}

/// Deletes what is gone from the metadata.
#[derive(Debug)]
pub struct Collector {
    bookie: Bookie,
    store: Arc<dyn MetadataStore>,
    stopped: Option<String>,
}

impl Collector {
    /// A collector for `bookie`, whose cluster keeps its metadata in `store`.
    #[must_use]
    pub fn new(bookie: Bookie, store: Arc<dyn MetadataStore>) -> Self {
        Self { bookie, store, stopped: None }
    }

    /// Looks at each hint and at each interval until `shutdown` completes.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        let mut interval = tokio::time::interval(self.bookie.config().census_interval);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The first tick comes at once; a start has better things to do, unless it has lost some.
        if self.bookie.log().with_state(LogState::lost_up_to).is_none() {
            interval.tick().await;
        }
        tokio::pin!(shutdown);
        loop {
            let looked = tokio::select! {
                biased;
                () = &mut shutdown => return,
                _ = interval.tick() => self.census().await,
                () = self.bookie.hinted() => self.look().await,
            };
            match looked {
                Ok(0) => {}
                Ok(deleted) => tracing::debug!(deleted, "ledgers that are gone were deleted"),
                // Said once when it happened.
                Err(CollectError::Stopped(_)) => {}
                Err(error) if error.is_passing() => {
                    tracing::info!(%error, "ledgers could not be compared with the metadata");
                }
                Err(error) => tracing::error!(%error, "deletion of ledgers has stopped"),
            }
        }
    }

    /// Looks at what was hinted. Returns how many ledgers were deleted.
    ///
    /// # Errors
    /// Why nothing was deleted.
    pub async fn look(&mut self) -> Result<u64, CollectError> {
        let hints = self.bookie.take_hints();
        let looked = if hints.overflown || hints.ledgers.len() > MAX_SINGLE_LOOKS {
            self.guarded(&hints.ledgers, true).await
        } else {
            self.guarded(&hints.ledgers, false).await
        };
        self.conclude(looked, hints)
    }

    /// Compares all ledgers with the metadata. Returns how many were deleted.
    ///
    /// # Errors
    /// Why nothing was deleted.
    pub async fn census(&mut self) -> Result<u64, CollectError> {
        let hints = self.bookie.take_hints();
        let looked = self.guarded(&hints.ledgers, true).await;
        self.conclude(looked, hints)
    }

    /// Keeps the hints of a look that may be repeated, and remembers a reason to stop.
    fn conclude(
        &mut self,
        looked: Result<u64, CollectError>,
        hints: Hints,
    ) -> Result<u64, CollectError> {
        match &looked {
            Err(error) if error.is_passing() => {
                let ledgers: Vec<LedgerId> = hints.ledgers.into_iter().collect();
                // The interval will look again; calling for it here would be a busy loop.
                self.bookie.keep_hints(&ledgers);
            }
            Err(CollectError::Stopped(_)) | Ok(_) => {}
            Err(error) => self.stopped = Some(error.to_string()),
        }
        looked
    }

    async fn guarded(
        &self,
        hinted: &BTreeSet<LedgerId>,
        everything: bool,
    ) -> Result<u64, CollectError> {
        if let Some(why) = &self.stopped {
            return Err(CollectError::Stopped(why.clone()));
        }
        // Before the first read: what is listed here and exists is in what is read.
        let known = self.bookie.log().ledgers();
        let mut revision = self.bookie.log().with_state(|state| state.wanted_revision);
        self.check_identity(&mut revision).await?;
        if !everything {
            let gone = self.ask(&known, hinted, &mut revision).await?;
            self.check_share(&gone, hinted, known.len())?;
            return self.delete(gone, revision).await;
        }
        let complete = self.bookie.log().with_state(LogState::complete_before);
        let lost_up_to = self.bookie.log().with_state(LogState::lost_up_to);
        let claimed = self.claimed(&mut revision).await?;
        let compared = self.compare(&known, &claimed, lost_up_to, &mut revision).await?;
        self.check_share(&compared.gone, hinted, known.len())?;
        if let Some(lowest) = compared.lowest {
            self.bookie.log().note_lowest_ledger(lowest);
        }
        let deleted = self.delete(compared.gone, revision).await?;
        self.bookie.log().keep_only(complete, &compared.kept);
        if lost_up_to.is_some() {
            let wanted = compared.wanted;
            // Reads indexes. A panic there has been told, and the next census comes.
            self.bookie.aside(move |bookie| bookie.log().note_missing(&wanted)).await;
        }
        Ok(deleted)
    }

    /// Reads a page at a revision that is not lower than any before.
    async fn page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        revision: &mut u64,
    ) -> Result<RangePage, CollectError> {
        if *revision == REPLACED {
            return Err(CollectError::Replaced);
        }
        let page = self.store.range(prefix, after, limit).await?;
        let Revision(found) = page.revision;
        #[cfg(any(test, feature = "simulation"))]
        if self.bookie.config().planted == Some(Defect::OldRevisionAccepted) {
            *revision = found.max(*revision);
            return Ok(page);
        }
        if found < *revision {
            return Err(CollectError::WentBack { seen: *revision, found });
        }
        *revision = found;
        Ok(page)
    }

    /// Is this our cluster's metadata, and does it know this disk?
    async fn check_identity(&self, revision: &mut u64) -> Result<(), CollectError> {
        let identity = self.bookie.identity();
        let page = self.page(keys::CLUSTER, None, 1, revision).await?;
        let pair = page.pairs.into_iter().find(|pair| pair.key == keys::CLUSTER);
        let found = match pair {
            Some(pair) => Some(Stored::<ClusterRecord>::from_pair(pair)?.record.cluster_id),
            None => None,
        };
        if found.as_ref() != Some(&identity.cluster) {
            let expected = identity.cluster.clone();
            return Err(CollectError::ForeignCluster { found, expected });
        }
        let key = keys::cookie(&identity.bookie);
        let page = self.page(&key, None, 1, revision).await?;
        let pair = page.pairs.into_iter().find(|pair| pair.key == key);
        let cookie = pair.ok_or(CollectError::NoCookie)?;
        let cookie = Stored::<CookieRecord>::from_pair(cookie)?.record;
        let ours = cookie.instance == identity.instance && cookie.cluster_id == identity.cluster;
        if ours { Ok(()) } else { Err(CollectError::NoCookie) }
    }

    /// Compares `known`, sorted, with the cluster's ledgers.
    async fn compare(
        &self,
        known: &[LedgerId],
        claimed: &BTreeSet<LedgerId>,
        lost_up_to: Option<LedgerId>,
        revision: &mut u64,
    ) -> Result<Compared, CollectError> {
        let mine = &self.bookie.identity().bookie;
        let mut present = vec![false; known.len()];
        let (mut lowest, mut kept, mut wanted) = (None, Vec::new(), Vec::new());
        let mut after: Option<String> = None;
        loop {
            let page = self.page(keys::LEDGERS, after.as_deref(), MAX_RANGE, revision).await?;
            for pair in &page.pairs {
                let Some(Key::Ledger(id)) = Key::parse(&pair.key) else { continue };
                lowest.get_or_insert(id);
                if lost_up_to.is_some_and(|highest| id <= highest) {
                    let mine = surplus::kept(pair, id, mine);
                    wanted.extend(mine.filter(|kept| !kept.entries.is_empty()));
                }
                if let Ok(at) = known.binary_search(&id) {
                    present[at] = true;
                    let unclaimed = Some(pair).filter(|_| !claimed.contains(&id));
                    kept.extend(unclaimed.and_then(|pair| surplus::kept(pair, id, mine)));
                }
            }
            after = page.pairs.last().map(|pair| pair.key.clone());
            if !page.more || after.is_none() {
                let gone = known.iter().zip(present).filter(|(_, present)| !present);
                let gone = gone.map(|(id, _)| *id).collect();
                return Ok(Compared { gone, lowest, kept, wanted });
            }
        }
    }

    /// Which of the hinted ledgers that this bookie holds are gone.
    async fn ask(
        &self,
        known: &[LedgerId],
        hinted: &BTreeSet<LedgerId>,
        revision: &mut u64,
    ) -> Result<Vec<LedgerId>, CollectError> {
        let mut gone = Vec::new();
        for id in hinted.iter().filter(|id| known.binary_search(id).is_ok()) {
            let key = keys::ledger(*id);
            let page = self.page(&key, None, 1, revision).await?;
            if !page.pairs.iter().any(|pair| pair.key == key) {
                gone.push(*id);
            }
        }
        Ok(gone)
    }

    /// Refuses to believe that a large share is gone at once.
    fn check_share(
        &self,
        gone: &[LedgerId],
        hinted: &BTreeSet<LedgerId>,
        known: usize,
    ) -> Result<(), CollectError> {
        let config = self.bookie.config();
        let vanished = gone.iter().filter(|id| !hinted.contains(id)).count() as u64;
        let known = known as u64;
        let share = vanished * 100 > known * u64::from(config.mass_deletion_percent);
        if known >= u64::from(config.mass_deletion_floor) && share {
            return Err(CollectError::MassDeletion { vanished, known });
        }
        Ok(())
    }

    /// Makes the revision durable, whether or not anything is gone at it; then deletes.
    async fn delete(&self, gone: Vec<LedgerId>, revision: u64) -> Result<u64, CollectError> {
        let forget = move |bookie: &Bookie| bookie.log().forget(revision, &gone);
        let noted = self.bookie.aside(forget).await;
        noted.and_then(Result::ok).ok_or(CollectError::ReadOnly)
    }
}

/// Whether these are the metadata that this bookie belongs to, and not older than it has seen; to
/// be asked before a start. The revision is made durable.
///
/// # Errors
/// Why this bookie must not work with them.
pub async fn check(bookie: &Bookie, store: &Arc<dyn MetadataStore>) -> Result<(), CollectError> {
    let collector = Collector::new(bookie.clone(), Arc::clone(store));
    let mut revision = bookie.log().with_state(|state| state.wanted_revision);
    match collector.check_identity(&mut revision).await {
        Err(error @ (CollectError::WentBack { .. } | CollectError::Replaced))
            if bookie.config().accept_older_metadata =>
        {
            tracing::warn!(
                %error,
                "older metadata are accepted, as bookie.accept_older_metadata says; unset it now"
            );
            revision = 0;
            collector.check_identity(&mut revision).await?;
        }
        checked => checked?,
    }
    let noted = bookie.aside(move |bookie| bookie.log().set_revision(revision)).await;
    noted.and_then(Result::ok).ok_or(CollectError::ReadOnly)
}

/// The present revision of the metadata, if they are this bookie's and not older than it has seen.
///
/// # Errors
/// Why it can't be told.
pub async fn present_revision(
    bookie: &Bookie,
    store: &Arc<dyn MetadataStore>,
) -> Result<u64, CollectError> {
    let collector = Collector::new(bookie.clone(), Arc::clone(store));
    let mut revision = bookie.log().with_state(|state| state.wanted_revision);
    collector.check_identity(&mut revision).await?;
    Ok(revision)
}

/// Makes a [`present_revision`] durable: so a later start can tell metadata that were set back
/// behind it. Waits for the disk on a thread that goes on when this is dropped.
///
/// # Errors
/// The log takes no writes any more.
pub async fn note(bookie: &Bookie, revision: u64) -> Result<(), CollectError> {
    let noted = bookie.aside(move |bookie| bookie.log().forget(revision, &[])).await;
    noted.and_then(Result::ok).map(drop).ok_or(CollectError::ReadOnly)
}

/// Makes durable that the metadata were replaced or set back while this bookie ran: nothing is
/// deleted any more, and starts are refused until one of them accepts that.
///
/// # Errors
/// [`CollectError::ReadOnly`].
pub async fn note_replaced(bookie: &Bookie) -> Result<(), CollectError> {
    let noted = bookie.aside(|bookie| bookie.log().forget(REPLACED, &[])).await;
    noted.and_then(Result::ok).map(drop).ok_or(CollectError::ReadOnly)
}

#[cfg(test)]
mod tests;
