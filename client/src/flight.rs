//! [`Flights`]: attempts that many may wait for. Whoever needs something that is being fetched
//! already waits for that attempt and hears its outcome, a failure too: a thousand who need one
//! dead address cost one attempt, and not one after the other.
//!
//! Invariants: there is at most one attempt for each key; it runs to its end in a task of its own,
//! whoever stops waiting; its outcome is told to all who waited, and whoever comes later starts
//! another. Attempts have time limits of their own.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::error::ClientError;

type Outcome<T> = Result<T, ClientError>;
type UnderWay<K, T> = Arc<Mutex<HashMap<K, watch::Receiver<Option<Outcome<T>>>>>>;

/// Attempts under way, by what they are to bring.
#[derive(Debug)]
pub(crate) struct Flights<K, T> {
    under_way: UnderWay<K, T>,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Self { under_way: UnderWay::default() }
    }
}

/// Takes an attempt off the list, even if it panics.
struct Landing<K: Eq + Hash, T> {
    under_way: UnderWay<K, T>,
    key: K,
}

impl<K: Eq + Hash, T> Drop for Landing<K, T> {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

impl<K, T> Flights<K, T>
where
    K: Eq + Hash + Clone + Display + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Waits for the attempt at `key` that is under way; starts `attempt` if there is none.
    pub(crate) async fn join<F>(&self, key: &K, attempt: impl FnOnce() -> F) -> Outcome<T>
    where
        F: Future<Output = Outcome<T>> + Send + 'static,
    {
        let mut answer = {
            let mut under_way = self.under_way.lock();
            match under_way.get(key) {
                Some(answer) => answer.clone(),
                None => {
                    let (tell, answer) = watch::channel(None);
                    under_way.insert(key.clone(), answer.clone());
                    let under_way = Arc::clone(&self.under_way);
                    let landing = Landing { under_way, key: key.clone() };
                    let attempt = attempt();
                    tokio::spawn(async move {
                        let outcome = attempt.await;
                        // First off the list: who comes after the outcome needs a fresh one.
                        drop(landing);
                        tell.send_replace(Some(outcome));
                    });
                    answer
                }
            }
        };
        let outcome = match answer.wait_for(Option::is_some).await {
            Ok(outcome) => (*outcome).clone(),
            // The attempt's task is gone without a word: it panicked, or the runtime ends.
            Err(_) => None,
        };
        outcome.unwrap_or_else(|| {
            let why = "the attempt was given up".to_owned();
            Err(ClientError::Disconnected { url: key.to_string(), why })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    fn refused() -> ClientError {
        ClientError::Connect { url: "u".to_owned(), why: "refused".to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_who_wait_for_one_failing_attempt_all_hear_of_it() {
        let flights = Arc::new(Flights::<String, u32>::default());
        let attempts = Arc::new(AtomicU32::new(0));
        let started = tokio::time::Instant::now();
        let waiting: Vec<_> = (0..1000)
            .map(|_| {
                let (flights, attempts) = (Arc::clone(&flights), Arc::clone(&attempts));
                tokio::spawn(async move {
                    let attempt = || async move {
                        attempts.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_secs(5)).await;
                        Err(refused())
                    };
                    flights.join(&"u".to_owned(), attempt).await
                })
            })
            .collect();
        for task in waiting {
            assert_eq!(task.await.expect("no panic"), Err(refused()));
        }
        assert_eq!(attempts.load(Ordering::Relaxed), 1);
        assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
        let again = flights.join(&"u".to_owned(), || async { Ok(7) }).await;
        assert_eq!(again, Ok(7), "who comes later gets a fresh attempt");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_goes_on_for_the_others_when_who_started_it_stops_waiting() {
        let flights = Arc::new(Flights::<String, u32>::default());
        let attempt = || async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(1)
        };
        let impatient = Duration::from_secs(1);
        let key = "u".to_owned();
        let first = tokio::time::timeout(impatient, flights.join(&key, attempt)).await;
        assert!(first.is_err());
        let second = flights.join(&key, || async { panic!("there is one under way") }).await;
        assert_eq!(second, Ok(1));
    }

    #[tokio::test]
    async fn an_attempt_that_panics_is_an_error_and_blocks_nobody() {
        let flights = Flights::<String, u32>::default();
        let key = "u".to_owned();
        let panicked = flights.join(&key, || async { panic!("planted") }).await;
        assert!(matches!(panicked, Err(ClientError::Disconnected { .. })), "{panicked:?}");
        assert_eq!(flights.join(&key, || async { Ok(2) }).await, Ok(2));
    }
}
