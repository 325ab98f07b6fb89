//! Which bookies a ledger goes to.

pub(crate) mod choice;
mod watched;

use std::fmt::Debug;

use geminga_proto::env::Env;
use geminga_proto::id::{BookieId, LedgerId};
use geminga_proto::storage::BookieError;

pub use watched::{WatchedPlacement, WatchedPlacementConfig};

/// Chooses bookies for new ledgers and replacements for failed ones.
pub trait Placement: Send + Sync + Debug + 'static {
    /// Up to `want` different bookies that take writes and are not in `exclude`, best first.
    /// Never blocks.
    ///
    /// # Errors
    /// [`PlacementError`] if fewer than `at_least` can be had.
    fn pick(
        &self,
        want: usize,
        at_least: usize,
        exclude: &[BookieId],
    ) -> Result<Vec<BookieId>, PlacementError>;

    /// Up to `want` different bookies for a ledger that keeps `keep`; none of `exclude`, to which
    /// all its present bookies belong. `needed` of them the ledger can't go on without. Never
    /// blocks.
    fn replace(
        &self,
        want: usize,
        needed: usize,
        keep: &[BookieId],
        exclude: &[BookieId],
    ) -> Vec<BookieId> {
        let _ = (needed, keep);
        self.pick(want, 0, exclude).unwrap_or_default()
    }

    /// A bookie has failed a ledger. Called under the ledger's lock; must not block.
    fn failed(&self, bookie: &BookieId, error: BookieError) {
        let _ = (bookie, error);
    }

    /// Whether a ledger with so many bookies, none of which failed lately, could be had now. Never
    /// blocks.
    fn has(&self, count: usize) -> bool {
        self.pick(count, count, &[]).is_ok()
    }

    /// The highest of the ids up to `at_most` that a bookie has told as the highest of all ledgers
    /// that it ever stored anything of. Ids up to it are used, whatever the metadata say; and what
    /// a damaged bookie tells must not hide what the others do. Never blocks.
    fn highest_ledger(&self, at_most: LedgerId) -> LedgerId {
        let _ = at_most;
        LedgerId(0)
    }

    /// Whether the bookie had better not be asked first. Never blocks.
    fn is_suspect(&self, bookie: &BookieId) -> bool {
        let _ = bookie;
        false
    }

    /// Whether the bookie is to be taken away, so that a ledger on it had better go on elsewhere.
    /// Never blocks.
    fn is_draining(&self, bookie: &BookieId) -> bool {
        let _ = bookie;
        false
    }

    /// Whether the bookie has been away for so long that a ledger on it had better go on elsewhere,
    /// even if nothing is written to it. Never blocks.
    fn is_gone(&self, bookie: &BookieId) -> bool {
        let _ = bookie;
        false
    }

    /// Who is there, as far as is known. Never blocks.
    fn view(&self) -> ClusterView {
        ClusterView::default()
    }
}

/// A bookie that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BookieView {
    /// The bookie.
    pub bookie: BookieId,
    /// Its failure domain; may be empty.
    pub zone: String,
    /// What ordinary adds can still take.
    pub free_bytes: u64,
    /// It takes new entries, and may be given some.
    pub takes: bool,
    /// It failed lately.
    pub suspect: bool,
}

/// The bookies of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// Those that are up.
    pub bookies: Vec<BookieView>,
    /// Those that get nothing new and whose copies are to lie elsewhere, up or not.
    pub draining: Vec<BookieId>,
    /// False if this is what was known before the metadata went away.
    pub is_current: bool,
}

impl ClusterView {
    /// The bookie, if it is up.
    #[must_use]
    pub fn get(&self, bookie: &BookieId) -> Option<&BookieView> {
        self.bookies.iter().find(|view| view.bookie == *bookie)
    }

    /// Whether the bookie is up.
    #[must_use]
    pub fn is_up(&self, bookie: &BookieId) -> bool {
        self.get(bookie).is_some()
    }

    /// Whether the bookie's copies are to lie elsewhere.
    #[must_use]
    pub fn is_draining(&self, bookie: &BookieId) -> bool {
        self.draining.contains(bookie)
    }
}

/// Too few bookies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at_least} bookies that take writes are needed, and {available} are up{}", also(.narrow))]
pub struct PlacementError {
    /// How many were needed.
    pub at_least: usize,
    /// How many there are.
    pub available: usize,
    /// Those that are up besides, and don't take entries as large as this node writes.
    pub narrow: Option<NarrowBookies>,
}

/// Bookies that can't be used because their entries are limited more than this node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NarrowBookies {
    /// How many there are.
    pub count: usize,
    /// The largest entry that any of them takes.
    pub takes_bytes: u64,
    /// The largest entry that this node may write.
    pub needs_bytes: u64,
}

fn also(narrow: &Option<NarrowBookies>) -> String {
    let Some(NarrowBookies { count, takes_bytes, needs_bytes }) = narrow else {
        return String::new();
    };
    format!(
        "; {count} more take entries up to {takes_bytes} bytes only, and this broker writes up to \
         {needs_bytes}: start them with the broker's max_message_bytes, or lower the broker's"
    )
}

/// A fixed set of bookies, spread at random.
#[derive(Debug)]
pub struct FixedPlacement {
    env: Env,
    bookies: Vec<BookieId>,
}

impl FixedPlacement {
    /// Chooses among `bookies`.
    #[must_use]
    pub fn new(env: Env, bookies: Vec<BookieId>) -> Self {
        Self { env, bookies }
    }
}

impl Placement for FixedPlacement {
    fn pick(
        &self,
        want: usize,
        at_least: usize,
        exclude: &[BookieId],
    ) -> Result<Vec<BookieId>, PlacementError> {
        let mut left: Vec<&BookieId> =
            self.bookies.iter().filter(|id| !exclude.contains(id)).collect();
        if left.len() < at_least {
            return Err(PlacementError { at_least, available: left.len(), narrow: None });
        }
        let mut chosen = Vec::with_capacity(want.min(left.len()));
        while chosen.len() < want && !left.is_empty() {
            let index = self.env.random.below(left.len() as u64);
            chosen.push(left.swap_remove(usize::try_from(index).unwrap_or(0)).clone());
        }
        Ok(chosen)
    }

    fn view(&self) -> ClusterView {
        let up = |bookie: &BookieId| BookieView {
            bookie: bookie.clone(),
            zone: String::new(),
            free_bytes: 0,
            takes: true,
            suspect: false,
        };
        let bookies = self.bookies.iter().map(up).collect();
        ClusterView { bookies, draining: Vec::new(), is_current: true }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use geminga_proto::env::{ManualClock, SeededRandom};

    use super::*;

    fn placement(names: &[&str]) -> FixedPlacement {
        let env =
            Env { clock: Arc::new(ManualClock::default()), random: Arc::new(SeededRandom::new(3)) };
        FixedPlacement::new(env, names.iter().map(|name| bookie(name)).collect())
    }

    fn bookie(name: &str) -> BookieId {
        BookieId::new(name).expect("valid")
    }

    #[test]
    fn different_bookies_are_picked_and_none_that_is_excluded() {
        let placement = placement(&["a", "b", "c", "d"]);
        let mut first = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let picked = placement.pick(2, 1, &[bookie("b")]).expect("three are left");
            assert_eq!(picked.len(), 2);
            assert!(picked[0] != picked[1] && !picked.contains(&bookie("b")), "{picked:?}");
            first.insert(picked[0].clone());
        }
        assert_eq!(first.len(), 3, "the load is spread");
    }

    #[test]
    fn fewer_than_wanted_are_enough_if_they_are_at_least_what_is_needed() {
        let placement = placement(&["a", "b"]);
        assert_eq!(placement.pick(3, 2, &[]).map(|picked| picked.len()), Ok(2));
        let few = Err(PlacementError { at_least: 2, available: 1, narrow: None });
        assert_eq!(placement.pick(3, 2, &[bookie("a")]), few);
    }
}
