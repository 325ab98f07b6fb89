//! [`Reporter`]: says in the metadata which entries this bookie can't read any more, so that they
//! are written to it again from other copies.
//!
//! Invariant: what is damaged is said again as long as it is: a repair that ended without it, for
//! whatever reason, is not the last word.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use geminga_meta::repair::report_damage;
use geminga_meta::store::MetadataStore;
use geminga_meta::update_loop::UpdateError;
use geminga_proto::env::{Env, Monotonic};
use geminga_proto::id::{EntryId, LedgerId};

use crate::bookie::Bookie;

/// How often it looks for news, which costs nothing.
const PAUSE: Duration = Duration::from_secs(2);
/// When what was said is said again.
const SAID_AGAIN: Duration = Duration::from_secs(10 * 60);
/// Most runs of entries that are said at a time: as many requests to the metadata store.
const MAX_RUNS: usize = 100;

/// See the module.
#[derive(Debug)]
pub struct Reporter {
    bookie: Bookie,
    store: Arc<dyn MetadataStore>,
    env: Env,
    /// By ledger and first entry of a run: its last one, and when that was said.
    said: BTreeMap<(LedgerId, EntryId), (EntryId, Monotonic)>,
    /// The damage that was said as a whole, and until when nothing of it is to be said again.
    rests: Option<(u64, Monotonic)>,
}

impl Reporter {
    /// A reporter of `bookie`, whose cluster keeps its metadata in `store`.
    #[must_use]
    pub fn new(bookie: Bookie, store: Arc<dyn MetadataStore>, env: Env) -> Self {
        Self { bookie, store, env, said: BTreeMap::new(), rests: None }
    }

    /// Reports until `shutdown` completes.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => return,
                () = tokio::time::sleep(PAUSE) => {}
            }
            tokio::select! {
                biased;
                () = &mut shutdown => return,
                () = self.report() => {}
            }
        }
    }

    /// Says what is new. What can't be said now is tried at the next look.
    pub async fn report(&mut self) {
        let (now, version) = (self.env.clock.monotonic(), self.bookie.damage_version());
        if self.rests.is_some_and(|(said, until)| said == version && now < until) {
            return;
        }
        self.rests = None;
        let damaged = self.bookie.damaged(usize::MAX).into_iter();
        let damaged: BTreeMap<(LedgerId, EntryId), EntryId> =
            damaged.map(|run| ((run.ledger, *run.entries.start()), *run.entries.end())).collect();
        // Mended since, or part of another run by now.
        self.said.retain(|run, (last, at)| {
            now.saturating_sub(*at) < SAID_AGAIN && damaged.get(run) == Some(last)
        });
        let is_new = |(run, _): &(&(LedgerId, EntryId), &EntryId)| !self.said.contains_key(run);
        let new: Vec<_> = damaged.iter().filter(is_new).take(MAX_RUNS).collect();
        let bookie = self.bookie.identity().bookie.clone();
        for ((ledger, first), last) in new {
            let (store, env) = (self.store.as_ref(), &self.env);
            match report_damage(store, env, *ledger, &bookie, *first..=*last).await {
                Ok(()) => drop(self.said.insert((*ledger, *first), (*last, now))),
                Err(error) => {
                    tracing::debug!(%error, "damage can't be reported now");
                    // Another record may be usable; a store that is away has none.
                    if matches!(error, UpdateError::Store(_)) {
                        return;
                    }
                }
            }
        }
        if self.said.len() == damaged.len() {
            let first = self.said.values().map(|(_, at)| *at).min();
            self.rests = Some((version, first.unwrap_or(now).saturating_add(SAID_AGAIN)));
        }
    }
}

#[cfg(test)]
mod tests;
