//! Which bookies a ledger goes to.

use std::fmt::Debug;

use geminga_proto::env::Env;
use geminga_proto::id::BookieId;

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
}

/// Too few bookies.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at_least} bookies that take writes are needed, only {available} can be had")]
pub struct PlacementError {
    /// How many were needed.
    pub at_least: usize,
    /// How many there are.
    pub available: usize,
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
            return Err(PlacementError { at_least, available: left.len() });
        }
        let mut chosen = Vec::with_capacity(want.min(left.len()));
        while chosen.len() < want && !left.is_empty() {
            let index = self.env.random.below(left.len() as u64);
            chosen.push(left.swap_remove(usize::try_from(index).unwrap_or(0)).clone());
        }
        Ok(chosen)
    }
}
