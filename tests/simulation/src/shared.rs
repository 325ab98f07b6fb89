//! [`Shared`]: what everything in a run has in common.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use geminga_meta::store::memory::MemoryStore;
use geminga_proto::env::{Env, SeededRandom};
use geminga_proto::id::ClusterId;

use crate::broker_host::Counters;
use crate::clock::{HostClock, SimTime};
use crate::dice::{Dice, stream_seed};
use crate::history::History;
use crate::metadata::{MetaAccess, Stale};
use crate::mutant::Mutant;
use crate::network::{HostId, Network, Place};
use crate::trace::Trace;
use crate::transport::{Directory, Doors};

/// What everything in a run has in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub seed: u64,
    /// The planted defect.
    pub mutant: Option<Mutant>,
    /// Hosts for which the metadata went back in time.
    pub stale: Arc<Stale>,
    pub time: Arc<SimTime>,
    pub trace: Trace,
    pub network: Arc<Network>,
    pub store: Arc<MemoryStore>,
    pub cluster: ClusterId,
    pub directory: Arc<Directory>,
    pub doors: Arc<Doors>,
    /// Where brokers are served.
    pub counters: Counters,
    pub history: History,
    /// The faults are over: clients bring everything to its end.
    pub draining: AtomicBool,
}

impl Shared {
    /// The clocks and the randomness of a host in one of its lives.
    pub fn env(&self, place: Place, clock: &Arc<HostClock>) -> Env {
        let number = place.host.0 as u64 * 1_000 + place.life;
        let random = Arc::new(SeededRandom::new(stream_seed(self.seed, "host", number)));
        Env { clock: Arc::clone(clock) as _, random }
    }

    /// A host's way to the metadata.
    pub fn access(&self, place: Place) -> Arc<MetaAccess> {
        let (network, store) = (Arc::clone(&self.network), Arc::clone(&self.store));
        let stale = Arc::clone(&self.stale);
        Arc::new(MetaAccess::new(network, place, store, stale, self.trace.clone()))
    }

    /// Randomness beside that of the product.
    pub fn dice(&self, stream: &str, place: Place) -> Dice {
        Dice::new(self.seed, stream, place.host.0 as u64 * 1_000 + place.life)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// A host that wakes nobody but itself.
    pub fn place(&self, host: HostId) -> Option<Place> {
        self.network.place(host)
    }
}
