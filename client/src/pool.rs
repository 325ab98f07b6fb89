//! [`Pool`]: at most one live connection for each broker.
//!
//! Invariants: one attempt serves all who wait for a broker, also when it fails; an address whose
//! last attempt failed a moment ago isn't tried again yet; every connection is to the cluster that
//! the first one was to; a closed pool has none and makes none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use geminga_proto::env::{Env, Monotonic};
use parking_lot::Mutex;

use crate::connection::{ConnectSettings, Connection};
use crate::error::ClientError;
use crate::flight::Flights;
use crate::lookup::owners::Candidate;

/// Brokers that one client connects to.
const MAX_BROKERS: usize = 1024;
/// A failed attempt answers for so long: many producers, each with waits of its own, make no more
/// attempts than this allows.
const HOLD: Duration = Duration::from_millis(25);
/// For so long others are asked first.
const LATELY: Duration = Duration::from_secs(2);
/// Brokers that are asked beside the service URLs.
const MAX_OTHERS: usize = 8;

/// What is known of an address.
#[derive(Debug, Default)]
struct Place {
    connection: Option<Arc<Connection>>,
    /// The last attempt, if it failed.
    failed: Option<(Monotonic, ClientError)>,
}

impl Place {
    fn live(&self) -> Option<&Arc<Connection>> {
        self.connection.as_ref().filter(|connection| !connection.is_dead())
    }
}

#[derive(Debug, Default)]
struct State {
    by_url: HashMap<Arc<str>, Place>,
    /// Set by the settings or by the first connection.
    cluster_id: Option<String>,
    /// Set once, when the client is closed.
    closed: bool,
}

#[derive(Debug)]
struct Shared {
    settings: ConnectSettings,
    env: Env,
    state: Mutex<State>,
}

/// The connections of a client.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    flights: Flights<Arc<str>, Arc<Connection>>,
}

impl Pool {
    pub(crate) fn new(settings: ConnectSettings, env: Env) -> Self {
        let cluster_id = settings.expected_cluster_id.clone();
        let state = Mutex::new(State { cluster_id, ..State::default() });
        let shared = Arc::new(Shared { settings, env, state });
        Self { shared, flights: Flights::default() }
    }

    /// The live connection to `url`; makes one if there is none.
    pub(crate) async fn get(&self, url: &Arc<str>) -> Result<Arc<Connection>, ClientError> {
        if let Some(at_hand) = self.shared.at_hand(url) {
            return at_hand;
        }
        let shared = Arc::clone(&self.shared);
        self.flights.join(url, || shared.connect(Arc::clone(url))).await
    }

    /// `urls`, and other brokers that were met, as candidates to be asked something.
    pub(crate) fn candidates(&self, urls: Vec<Arc<str>>) -> Vec<Candidate> {
        let now = self.shared.env.clock.monotonic();
        let state = self.shared.state.lock();
        let others = state
            .by_url
            .iter()
            .filter(|(url, place)| place.live().is_some() && !urls.contains(url));
        let others: Vec<Arc<str>> =
            others.map(|(url, _)| Arc::clone(url)).take(MAX_OTHERS).collect();
        let candidate = |url: Arc<str>| {
            let place = state.by_url.get(&url);
            let failed = place.and_then(|place| place.failed.as_ref());
            let failed_lately = failed.is_some_and(|(at, _)| now.saturating_sub(*at) < LATELY);
            let health = place.and_then(Place::live).map(|connection| connection.health());
            Candidate { url, health, failed_lately }
        };
        urls.into_iter().chain(others).map(candidate).collect()
    }

    /// Ends every connection.
    pub(crate) fn close(&self) {
        let places = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            std::mem::take(&mut state.by_url)
        };
        for connection in places.into_values().filter_map(|place| place.connection) {
            connection.finish();
        }
    }
}

impl Shared {
    /// What needs no attempt: a live connection, or why there can't be one now.
    fn at_hand(&self, url: &Arc<str>) -> Option<Result<Arc<Connection>, ClientError>> {
        let mut state = self.state.lock();
        if state.closed {
            return Some(Err(ClientError::Closed));
        }
        let Some(place) = state.by_url.get(url) else {
            if state.by_url.len() >= MAX_BROKERS {
                // Brokers come and go; addresses nobody is at any more are no brokers.
                state.by_url.retain(|_, place| place.live().is_some());
            }
            let full = state.by_url.len() >= MAX_BROKERS;
            let error = ClientError::TooMany { what: "brokers", limit: MAX_BROKERS };
            return full.then_some(Err(error));
        };
        if let Some(connection) = place.live() {
            return Some(Ok(Arc::clone(connection)));
        }
        let (at, error) = place.failed.as_ref()?;
        let held = self.env.clock.monotonic().saturating_sub(*at) < HOLD;
        held.then(|| Err(error.clone()))
    }

    async fn connect(self: Arc<Self>, url: Arc<str>) -> Result<Arc<Connection>, ClientError> {
        // An attempt may have ended between the caller's look and this one.
        if let Some(at_hand) = self.at_hand(&url) {
            return at_hand;
        }
        let expected = self.state.lock().cluster_id.clone();
        let opened = Connection::open(&url, &self.settings, expected).await;
        let mut state = self.state.lock();
        if state.closed {
            return Err(ClientError::Closed);
        }
        let result = opened.and_then(|connection| {
            // Another first connection may have been made meanwhile.
            let expected =
                state.cluster_id.get_or_insert_with(|| connection.info().cluster_id.clone());
            connection.check_cluster(expected)?;
            Ok(connection)
        });
        let place = state.by_url.entry(url).or_default();
        match &result {
            Ok(connection) => {
                *place = Place { connection: Some(Arc::clone(connection)), failed: None };
            }
            Err(error) => {
                let failed = Some((self.env.clock.monotonic(), error.clone()));
                *place = Place { connection: None, failed };
            }
        }
        result
    }
}
