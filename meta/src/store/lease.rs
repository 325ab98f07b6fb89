//! [`LeaseTable`]: which leases are alive, until when, and which keys hang on them. A state
//! machine: the monotonic time comes in as a value.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use geminga_proto::env::Monotonic;

use super::{LeaseId, StoreError};

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Monotonic,
    keys: BTreeSet<String>,
}

/// The leases of one store.
#[derive(Debug)]
pub(super) struct LeaseTable {
    next: u64,
    leases: BTreeMap<LeaseId, Lease>,
    bound: HashMap<String, LeaseId>,
}

impl LeaseTable {
    /// Most leases at a time.
    const MAX_LEASES: usize = 100_000;

    /// No leases; the first one gets the number `first`.
    pub(super) fn new(first: u64) -> Self {
        Self { next: first, leases: BTreeMap::new(), bound: HashMap::new() }
    }

    /// Starts a lease.
    pub(super) fn grant(&mut self, ttl: Duration, now: Monotonic) -> Result<LeaseId, StoreError> {
        if ttl.is_zero() {
            return Err(StoreError::Invalid("a lease needs a time to live above 0".to_owned()));
        }
        if self.leases.len() >= Self::MAX_LEASES {
            let limit = Self::MAX_LEASES;
            return Err(StoreError::TooLarge(format!("more than {limit} leases")));
        }
        let id = LeaseId(self.next);
        self.next = self.next.wrapping_add(1);
        let deadline = now.saturating_add(ttl);
        self.leases.insert(id, Lease { ttl, deadline, keys: BTreeSet::new() });
        Ok(id)
    }

    /// Moves the deadline. A lease that is over its deadline is lost, swept or not.
    pub(super) fn keep_alive(&mut self, id: LeaseId, now: Monotonic) -> Result<(), StoreError> {
        match self.leases.get_mut(&id) {
            Some(lease) if now < lease.deadline => {
                lease.deadline = now.saturating_add(lease.ttl);
                Ok(())
            }
            _ => Err(StoreError::LeaseLost),
        }
    }

    /// True until the lease was ended.
    pub(super) fn is_alive(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    /// Leases over their deadline.
    pub(super) fn expired(&self, now: Monotonic) -> Vec<LeaseId> {
        let over = |(id, lease): (&LeaseId, &Lease)| (lease.deadline <= now).then_some(*id);
        self.leases.iter().filter_map(over).collect()
    }

    /// The next deadline.
    pub(super) fn next_deadline(&self) -> Option<Monotonic> {
        self.leases.values().map(|lease| lease.deadline).min()
    }

    /// Says which lease a key hangs on from now on.
    pub(super) fn bind(&mut self, key: &str, lease: Option<LeaseId>) {
        if let Some(former) = self.bound.remove(key)
            && let Some(former) = self.leases.get_mut(&former)
        {
            former.keys.remove(key);
        }
        if let Some(id) = lease
            && let Some(lease) = self.leases.get_mut(&id)
        {
            lease.keys.insert(key.to_owned());
            self.bound.insert(key.to_owned(), id);
        }
    }

    /// Ends a lease and names its keys.
    pub(super) fn end(&mut self, id: LeaseId) -> BTreeSet<String> {
        let keys = self.leases.remove(&id).map(|lease| lease.keys).unwrap_or_default();
        for key in &keys {
            self.bound.remove(key);
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    #[test]
    fn a_keep_alive_after_the_deadline_is_too_late_even_before_the_sweep() {
        let mut leases = LeaseTable::new(1);
        let id = leases.grant(TTL, Duration::ZERO).expect("granted");
        assert_eq!(leases.keep_alive(id, Duration::from_secs(9)), Ok(()));
        assert_eq!(leases.next_deadline(), Some(Duration::from_secs(19)));
        assert_eq!(leases.expired(Duration::from_secs(18)), vec![]);
        assert_eq!(leases.keep_alive(id, Duration::from_secs(19)), Err(StoreError::LeaseLost));
        assert_eq!(leases.expired(Duration::from_secs(19)), vec![id]);
    }

    #[test]
    fn a_key_hangs_on_the_lease_of_its_last_write_only() {
        let mut leases = LeaseTable::new(1);
        let one = leases.grant(TTL, Duration::ZERO).expect("granted");
        let two = leases.grant(TTL, Duration::ZERO).expect("granted");
        leases.bind("a", Some(one));
        leases.bind("b", Some(one));
        leases.bind("c", Some(one));
        leases.bind("b", Some(two));
        leases.bind("c", None);
        assert_eq!(leases.end(one), BTreeSet::from(["a".to_owned()]));
        assert_eq!(leases.end(one), BTreeSet::new());
        assert_eq!(leases.end(two), BTreeSet::from(["b".to_owned()]));
    }

    #[test]
    fn a_lease_without_a_time_to_live_is_refused() {
        let refused = LeaseTable::new(1).grant(Duration::ZERO, Duration::ZERO);
        assert!(matches!(refused, Err(StoreError::Invalid(_))));
    }
}
