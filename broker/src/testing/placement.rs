//! [`Registered`]: the bookies that are registered, as a test says.

use std::sync::Arc;

use geminga_ledger::placement::{Placement, PlacementError};
use geminga_proto::id::BookieId;
use parking_lot::Mutex;

/// Picks those that are registered, in order. Clones are the same list.
#[derive(Debug, Clone)]
pub struct Registered(Arc<Mutex<Vec<BookieId>>>);

impl Registered {
    /// These.
    pub fn new(names: &[BookieId]) -> Self {
        Self(Arc::new(Mutex::new(names.to_vec())))
    }

    /// These from now on.
    pub fn set(&self, names: &[BookieId]) {
        *self.0.lock() = names.to_vec();
    }
}

impl Placement for Registered {
    fn pick(
        &self,
        want: usize,
        at_least: usize,
        exclude: &[BookieId],
    ) -> Result<Vec<BookieId>, PlacementError> {
        let names = self.0.lock();
        let free = names.iter().filter(|name| !exclude.contains(name));
        let picked: Vec<BookieId> = free.take(want).cloned().collect();
        let available = picked.len();
        if available < at_least {
            return Err(PlacementError { at_least, available, narrow: None });
        }
        Ok(picked)
    }
}
