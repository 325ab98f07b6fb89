//! [`WatchedPlacement`]: chooses among the bookies that are registered, by a watched view. Those
//! that are being drained get nothing.
//!
//! While the metadata store doesn't answer, it goes on with what it knew last. A bookie that failed
//! a ledger is *suspect* for a while, which grows if it keeps failing, or until it is started anew,
//! if what is wrong with it concerns all ledgers ([`concerns_all`]); a dead one is in the view
//! until its lease ends. An address stays known when its bookie is gone from the view: readers and
//! recoveries try there.
//!
//! Invariant: `pick` and `address` wait for nothing but a short lock.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use geminga_meta::keys::{self, Key};
use geminga_meta::record::{BookieRecord, DrainRecord};
use geminga_meta::store::{MetadataStore, StoreError};
use geminga_meta::update_loop::RetryPolicy;
use geminga_meta::watch_cache::{CacheError, WatchCache};
use geminga_proto::env::{Env, Monotonic};
use geminga_proto::id::{BookieId, LedgerId};
use geminga_proto::storage::BookieError;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::placement::choice::{Candidate, Want, choose};
use crate::placement::{BookieView, ClusterView, NarrowBookies, Placement, PlacementError};
use crate::transport::grpc::BookieDirectory;

/// Addresses of bookies that are gone which are remembered.
const MAX_FORMER: usize = 10_000;
/// Wait before the view is taken in again after a panic.
const SEE_AGAIN: Duration = Duration::from_millis(500);

/// Settings of a [`WatchedPlacement`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchedPlacementConfig {
    /// How long a bookie that failed is avoided.
    pub quarantine: Duration,
    /// Largest entry that this node writes: a bookie that doesn't take it would fail the ledger
    /// again and again, so it isn't chosen. 0: any bookie will do.
    pub largest_entry_bytes: u64,
    /// After how long without its registration a bookie counts as gone.
    pub gone_after: Duration,
}

impl Default for WatchedPlacementConfig {
    fn default() -> Self {
        Self {
            quarantine: Duration::from_secs(5),
            largest_entry_bytes: 0,
            gone_after: Duration::from_secs(600),
        }
    }
}

/// A bookie that failed a ledger.
#[derive(Debug, Clone, Copy)]
struct Quarantine {
    /// The start of its process that failed; another one is another chance.
    session: u64,
    until: Monotonic,
    /// How long it lasts: twice as long each time that the bookie fails soon after the last one.
    lasts: Duration,
}

/// The longest quarantine, in times of the first one.
const MOST_TIMES: u32 = 12;

impl Quarantine {
    /// A bookie has failed, in quarantine or not; what is known of it is from the same start.
    fn again(known: Option<&Self>, first: Duration, session: u64, now: Monotonic) -> Self {
        let lasts = match known.filter(|known| known.session == session) {
            None => first,
            // Others have failed with it, or what was sent before.
            Some(known) if now < known.until => known.lasts,
            Some(known) if now < known.until.saturating_add(known.lasts) => {
                known.lasts.saturating_mul(2).min(first.saturating_mul(MOST_TIMES))
            }
            Some(_) => first,
        };
        Self { session, until: now.saturating_add(lasts), lasts }
    }
}

/// What is known of the bookies.
#[derive(Debug, Default)]
struct Known {
    /// Registered ones, as last confirmed; sorted.
    bookies: Vec<BookieRecord>,
    quarantined: HashMap<BookieId, Quarantine>,
    /// Also of bookies that aren't registered any more.
    addresses: HashMap<BookieId, String>,
    /// What is wrong with records that can't be used, as was said once.
    damaged: Vec<String>,
    /// As the settings say.
    largest_entry_bytes: u64,
    /// Bookies that don't take so much, as was said once.
    narrow: Vec<BookieId>,
    /// The highest ledger that each bookie has said it knows; also of those that are gone.
    highest_ledgers: HashMap<BookieId, LedgerId>,
    /// Since when bookies that were registered aren't any more.
    away: HashMap<BookieId, Monotonic>,
    /// Since when bookies that never were could have been.
    started: Monotonic,
    /// Bookies that are being drained.
    draining: HashSet<BookieId>,
    /// The watch confirms what is known.
    is_current: bool,
}

impl Known {
    /// Takes a new view in.
    fn see(&mut self, bookies: Vec<BookieRecord>, now: Monotonic) {
        if self.addresses.len() > MAX_FORMER {
            self.addresses.clear();
            self.away.clear();
        }
        for bookie in &self.bookies {
            self.away.entry(bookie.bookie_id.clone()).or_insert(now);
        }
        self.away.retain(|id, _| !bookies.iter().any(|bookie| bookie.bookie_id == *id));
        for bookie in &bookies {
            let address = format!("http://{}", bookie.address);
            self.addresses.insert(bookie.bookie_id.clone(), address);
        }
        for bookie in &bookies {
            let known = self.highest_ledgers.entry(bookie.bookie_id.clone()).or_default();
            *known = bookie.highest_ledger.max(*known);
        }
        self.forget_lowest(bookies.len());
        self.bookies = bookies;
        self.tell_narrow();
        let bookies = &self.bookies;
        self.quarantined.retain(|id, quarantine| {
            let found = bookies.iter().find(|bookie| bookie.bookie_id == *id);
            found.is_none_or(|bookie| bookie.session == quarantine.session)
        });
    }

    /// Keeps what many bookies have said of their highest ledgers bounded: low ones say the least.
    fn forget_lowest(&mut self, registered: usize) {
        let kept = MAX_FORMER.saturating_add(registered);
        let Some(excess) = self.highest_ledgers.len().checked_sub(kept) else { return };
        let mut all: Vec<_> = self.highest_ledgers.drain().collect();
        all.sort_unstable_by_key(|(_, highest)| *highest);
        self.highest_ledgers.extend(all.into_iter().skip(excess));
    }

    fn is_suspect(&self, bookie: &BookieId, now: Monotonic) -> bool {
        self.quarantined.get(bookie).is_some_and(|quarantine| now < quarantine.until)
    }

    /// Says once which bookies aren't chosen because they don't take every entry.
    fn tell_narrow(&mut self) {
        let needs = self.largest_entry_bytes;
        let narrow: Vec<&BookieRecord> =
            self.bookies.iter().filter(|bookie| self.is_narrow(bookie)).collect();
        for bookie in narrow.iter().filter(|bookie| !self.narrow.contains(&bookie.bookie_id)) {
            tracing::warn!(
                bookie = %bookie.bookie_id,
                takes_bytes = bookie.max_entry_bytes,
                needs_bytes = needs,
                "a bookie isn't used: its max_message_bytes is below this broker's"
            );
        }
        self.narrow = narrow.into_iter().map(|bookie| bookie.bookie_id.clone()).collect();
    }

    /// It may refuse an entry for its size.
    fn is_narrow(&self, bookie: &BookieRecord) -> bool {
        (1..self.largest_entry_bytes).contains(&bookie.max_entry_bytes)
    }

    /// It takes writes and may be given new ones.
    fn takes(&self, bookie: &BookieRecord) -> bool {
        bookie.writable && bookie.free_bytes > 0 && !self.draining.contains(&bookie.bookie_id)
    }

    /// The registered bookies that take writes and are not excluded.
    fn writable<'a>(&'a self, exclude: &'a [BookieId]) -> impl Iterator<Item = &'a BookieRecord> {
        let takes = |bookie: &&BookieRecord| self.takes(bookie);
        self.bookies.iter().filter(takes).filter(|bookie| !exclude.contains(&bookie.bookie_id))
    }

    /// Those of them that take every entry.
    fn eligible<'a>(&'a self, exclude: &'a [BookieId]) -> impl Iterator<Item = &'a BookieRecord> {
        self.writable(exclude).filter(|bookie| !self.is_narrow(bookie))
    }

    /// The others.
    fn narrow(&self, exclude: &[BookieId]) -> Option<NarrowBookies> {
        let narrow = self.writable(exclude).filter(|bookie| self.is_narrow(bookie));
        let takes: Vec<u64> = narrow.map(|bookie| bookie.max_entry_bytes).collect();
        let (count, needs_bytes) = (takes.len(), self.largest_entry_bytes);
        let takes_bytes = takes.into_iter().max()?;
        Some(NarrowBookies { count, takes_bytes, needs_bytes })
    }

    /// How long the bookie has not been registered.
    fn away_for(&self, bookie: &BookieId, now: Monotonic) -> Duration {
        if self.zone_of(bookie).is_some() {
            return Duration::ZERO;
        }
        let since = self.away.get(bookie).copied().unwrap_or(self.started);
        now.saturating_sub(since)
    }

    fn zone_of(&self, bookie: &BookieId) -> Option<&str> {
        let found = self.bookies.iter().find(|known| known.bookie_id == *bookie);
        found.map(|bookie| bookie.zone.as_str())
    }

    fn pick(
        &self,
        kept: &[BookieId],
        exclude: &[BookieId],
        want: Want,
        now: Monotonic,
        below: impl FnMut(u64) -> u64,
    ) -> Vec<BookieId> {
        let eligible: Vec<&BookieRecord> = self.eligible(exclude).collect();
        let candidate = |bookie: &&'_ BookieRecord| Candidate {
            zone: self.zone_of(&bookie.bookie_id).unwrap_or_default(),
            free_bytes: bookie.free_bytes,
            suspect: self.is_suspect(&bookie.bookie_id, now),
        };
        let candidates: Vec<Candidate<'_>> = eligible.iter().map(candidate).collect();
        let kept: Vec<&str> = kept.iter().filter_map(|bookie| self.zone_of(bookie)).collect();
        let chosen = choose(&candidates, &kept, want, below);
        chosen.into_iter().map(|at| eligible[at].bookie_id.clone()).collect()
    }
}

/// Chooses among the bookies that are registered, and knows where they are. Share it in an `Arc`.
#[derive(Debug)]
pub struct WatchedPlacement {
    env: Env,
    config: WatchedPlacementConfig,
    known: Arc<Mutex<Known>>,
    follower: AbortHandle,
}

impl Drop for WatchedPlacement {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl WatchedPlacement {
    /// Reads which bookies are registered, and follows it from then on. Must be called inside a
    /// tokio runtime.
    ///
    /// # Errors
    /// [`StoreError`] if the first read fails.
    pub async fn start(
        store: Arc<dyn MetadataStore>,
        env: Env,
        config: WatchedPlacementConfig,
    ) -> Result<Self, StoreError> {
        let policy = RetryPolicy::default();
        let meta = Arc::clone(&store);
        let cache =
            WatchCache::<BookieRecord>::start(meta, env.clone(), policy, keys::BOOKIES).await?;
        let drains =
            WatchCache::<DrainRecord>::start(store, env.clone(), policy, keys::DRAINS).await?;
        let largest_entry_bytes = config.largest_entry_bytes;
        let started = env.clock.monotonic();
        let known = Known { largest_entry_bytes, started, ..Known::default() };
        let known = Arc::new(Mutex::new(known));
        let changes = [cache.changes(), drains.changes()];
        see_drains(&drains, &known);
        see(&cache, &known, started);
        let (shown, clock) = (Arc::clone(&known), Arc::clone(&env.clock));
        // The caches, and so the watches, live as long as this task.
        let follower = tokio::spawn(follow(changes, move || {
            see_drains(&drains, &shown);
            see(&cache, &shown, clock.monotonic());
            shown.lock().is_current = cache.is_fresh() && drains.is_fresh();
        }));
        known.lock().is_current = true;
        Ok(Self { env, config, known, follower: follower.abort_handle() })
    }

    /// The registered bookies as last confirmed, those too that take no writes.
    #[must_use]
    pub fn registered(&self) -> Vec<BookieRecord> {
        self.known.lock().bookies.clone()
    }
}

/// Takes the view in whenever it has changed. Should that panic, it is tried again after a pause: a
/// view that nobody follows would be taken for the truth for ever.
async fn follow(changes: [watch::Receiver<u64>; 2], mut see: impl FnMut()) {
    let [mut bookies, mut drains] = changes;
    loop {
        let changed = tokio::select! {
            changed = bookies.changed() => changed,
            changed = drains.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
        // What is known is replaced as a whole.
        while catch_unwind(AssertUnwindSafe(&mut see)).is_err() {
            tracing::error!("following which bookies are registered panicked; it is tried again");
            tokio::time::sleep(SEE_AGAIN).await;
        }
    }
}

/// Whether a bookie that answers so fails other ledgers, too. The rest says something about the
/// request, the ledger or an entry, and nothing about the bookie.
fn concerns_all(error: BookieError) -> bool {
    match error {
        BookieError::Unreachable
        | BookieError::Overloaded
        | BookieError::Io
        | BookieError::DiskFull
        | BookieError::ReadOnly => true,
        BookieError::Fenced
        | BookieError::WrongToken
        | BookieError::TooLarge
        | BookieError::Invalid
        | BookieError::NoSuchEntry
        | BookieError::UnknownEntry
        | BookieError::CorruptEntry => false,
    }
}

/// Takes the view in, unless it is out of date: then what was known last stays.
fn see(cache: &WatchCache<BookieRecord>, known: &Mutex<Known>, now: Monotonic) {
    let Ok(listed) = cache.list() else { return };
    let (mut bookies, mut damaged) = (Vec::with_capacity(listed.len()), Vec::new());
    for stored in listed {
        match stored {
            Ok(stored) => bookies.push(stored.record.clone()),
            Err(error) => damaged.push(error.to_string()),
        }
    }
    let mut known = known.lock();
    for error in damaged.iter().filter(|error| !known.damaged.contains(error)) {
        tracing::warn!(error, "a bookie's record can't be used");
    }
    known.damaged = damaged;
    known.see(bookies, now);
}

/// Takes in which bookies are being drained. A mark counts also if what it says can't be read.
fn see_drains(cache: &WatchCache<DrainRecord>, known: &Mutex<Known>) {
    let bookie = |key: &str| match Key::parse(key) {
        Some(Key::Drain(bookie)) => Some(bookie),
        _ => None,
    };
    let listed = cache.list_anyway().into_iter().filter_map(|stored| match stored {
        Ok(stored) => bookie(&stored.key),
        Err(CacheError::Record { key, .. }) => bookie(&key),
        Err(CacheError::Stale) => None,
    });
    let draining = listed.collect();
    known.lock().draining = draining;
}

impl Placement for WatchedPlacement {
    fn pick(
        &self,
        want: usize,
        at_least: usize,
        exclude: &[BookieId],
    ) -> Result<Vec<BookieId>, PlacementError> {
        let now = self.env.clock.monotonic();
        let known = self.known.lock();
        // One that failed lately is better than none: the ledger gets it back when it works again.
        let count = Want { most: want, with_suspects: want };
        let picked = known.pick(&[], exclude, count, now, |bound| self.env.random.below(bound));
        if picked.len() < at_least {
            let narrow = known.narrow(exclude);
            return Err(PlacementError { at_least, available: picked.len(), narrow });
        }
        Ok(picked)
    }

    fn replace(
        &self,
        want: usize,
        needed: usize,
        keep: &[BookieId],
        exclude: &[BookieId],
    ) -> Vec<BookieId> {
        let now = self.env.clock.monotonic();
        // Each replacement costs the ledger a fragment, so it should be one that works.
        let count = Want { most: want, with_suspects: needed };
        let known = self.known.lock();
        known.pick(keep, exclude, count, now, |bound| self.env.random.below(bound))
    }

    fn has(&self, count: usize) -> bool {
        let now = self.env.clock.monotonic();
        let known = self.known.lock();
        let sound = known.eligible(&[]).filter(|bookie| !known.is_suspect(&bookie.bookie_id, now));
        sound.count() >= count
    }

    fn highest_ledger(&self, at_most: LedgerId) -> LedgerId {
        let known = self.known.lock();
        let told = known.highest_ledgers.values().filter(|told| **told <= at_most);
        told.max().copied().unwrap_or_default()
    }

    fn failed(&self, bookie: &BookieId, error: BookieError) {
        if !concerns_all(error) {
            return;
        }
        let (now, first) = (self.env.clock.monotonic(), self.config.quarantine);
        let mut known = self.known.lock();
        let found = known.bookies.iter().find(|known| known.bookie_id == *bookie);
        // One that isn't registered is not chosen anyway.
        if let Some(session) = found.map(|bookie| bookie.session) {
            let before = known.quarantined.get(bookie);
            let quarantine = Quarantine::again(before, first, session, now);
            known.quarantined.insert(bookie.clone(), quarantine);
        }
    }

    fn is_suspect(&self, bookie: &BookieId) -> bool {
        let now = self.env.clock.monotonic();
        let known = self.known.lock();
        known.is_suspect(bookie, now) || known.zone_of(bookie).is_none()
    }

    fn is_draining(&self, bookie: &BookieId) -> bool {
        self.known.lock().draining.contains(bookie)
    }

    fn is_gone(&self, bookie: &BookieId) -> bool {
        let now = self.env.clock.monotonic();
        let known = self.known.lock();
        // Without the metadata nobody's registration could be seen.
        known.is_current && known.away_for(bookie, now) >= self.config.gone_after
    }

    fn view(&self) -> ClusterView {
        let now = self.env.clock.monotonic();
        let known = self.known.lock();
        let up = |bookie: &BookieRecord| BookieView {
            bookie: bookie.bookie_id.clone(),
            zone: bookie.zone.clone(),
            free_bytes: bookie.free_bytes,
            takes: known.takes(bookie) && !known.is_narrow(bookie),
            suspect: known.is_suspect(&bookie.bookie_id, now),
        };
        let bookies = known.bookies.iter().map(up).collect();
        let mut draining: Vec<BookieId> = known.draining.iter().cloned().collect();
        draining.sort_unstable();
        ClusterView { bookies, draining, is_current: known.is_current }
    }
}

impl BookieDirectory for WatchedPlacement {
    fn address(&self, bookie: &BookieId) -> Option<String> {
        self.known.lock().addresses.get(bookie).cloned()
    }
}

#[cfg(test)]
mod tests;
