//! [`MetadataHealth`]: whether the metadata store answers, as this broker has found it last.
//!
//! The session's questions decide. Anybody else's request that fails only casts a suspicion, upon
//! which the session asks at once: one slow transaction is no outage. A question is a keep-alive;
//! while there is a suspicion, a read too: etcd answers keep-alives from memory, also if it can't
//! do anything else. What makes an outage is decided by [`Suspicion`], a state machine.
//!
//! It is logged once when the store stops answering and once when it answers again: whatever fails
//! in between has that one cause. (That it is out of reach is the store's own warning.)

use std::fmt::Display;
use std::sync::Arc;

use geminga_proto::env::Env;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

/// A time without answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// Since when, by the wall clock.
    pub since_ms: u64,
    /// What was heard last.
    pub why: String,
}

/// What a question that had no answer says of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Not enough yet: ask again.
    Doubtful,
    /// It doesn't answer.
    Away,
}

/// What has failed since the last answer.
///
/// The store is away once two questions in a row had no answer, which are asked one after the other
/// with a pause between; or one, if the lease may have ended by then, so that others may have taken
/// over. A single request that fails never makes an outage, nor do many that one event has broken.
#[derive(Debug, Default)]
struct Suspicion {
    /// Anything at all.
    arisen: bool,
    questions: u32,
}

impl Suspicion {
    /// A request other than a question failed. Answers whether to ask at once.
    fn request_failed(&mut self) -> bool {
        !std::mem::replace(&mut self.arisen, true)
    }

    /// A question had no answer; `lapsed`: the lease may have ended.
    fn question_failed(&mut self, lapsed: bool) -> Verdict {
        self.arisen = true;
        self.questions = self.questions.saturating_add(1);
        if lapsed || self.questions > 1 { Verdict::Away } else { Verdict::Doubtful }
    }

    /// All that was asked was answered.
    fn answered(&mut self) {
        *self = Self::default();
    }
}

/// Whether the metadata store answers.
#[derive(Debug)]
pub struct MetadataHealth {
    outage: watch::Sender<Option<Outage>>,
    /// Never held with another lock.
    suspicion: Mutex<Suspicion>,
    question: Arc<Notify>,
}

impl Default for MetadataHealth {
    fn default() -> Self {
        let outage = watch::Sender::new(None);
        Self { outage, suspicion: Mutex::default(), question: Arc::default() }
    }
}

impl MetadataHealth {
    /// The outage, while there is one.
    #[must_use]
    pub fn outage(&self) -> Option<Outage> {
        self.outage.borrow().clone()
    }

    /// True while the store doesn't answer.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.outage.borrow().is_some()
    }

    /// Hears when an outage begins or ends.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<Outage>> {
        self.outage.subscribe()
    }

    /// Notified when the session is to send a keep-alive at once.
    #[must_use]
    pub fn question(&self) -> Arc<Notify> {
        Arc::clone(&self.question)
    }

    /// A request other than a keep-alive got no answer.
    pub fn suspect(&self, why: &dyn Display) {
        if self.suspicion.lock().request_failed() {
            tracing::debug!(error = %why, "a metadata request failed; asking for a sign of life");
            self.question.notify_one();
        }
    }

    /// True if anything has failed since the last answer: a keep-alive alone proves nothing.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.suspicion.lock().arisen
    }

    /// A question got no answer; `lapsed`: the lease may have ended.
    pub fn failed(&self, env: &Env, lapsed: bool, why: &dyn Display) {
        if self.suspicion.lock().question_failed(lapsed) == Verdict::Doubtful {
            tracing::debug!(error = %why, "a question had no answer; it is asked again");
            return;
        }
        self.outage.send_if_modified(|outage| {
            if let Some(outage) = outage {
                // What is wrong now may be something else than at first.
                outage.why = why.to_string();
                return false;
            }
            tracing::info!(
                error = %why,
                "the metadata store doesn't answer; open ledgers go on, and nothing is taken over, \
                 rolled, trimmed or deleted until it does"
            );
            *outage = Some(Outage { since_ms: env.clock.wall_ms(), why: why.to_string() });
            true
        });
    }

    /// It answered what was asked.
    pub fn answered(&self, env: &Env) {
        self.suspicion.lock().answered();
        self.outage.send_if_modified(|outage| {
            let Some(outage) = outage.take() else { return false };
            let away_ms = env.clock.wall_ms().saturating_sub(outage.since_ms);
            tracing::info!(away_ms, "the metadata store answers again");
            true
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_that_fail_are_no_outage_while_keep_alives_are_answered() {
        let mut suspicion = Suspicion::default();
        for _ in 0..3 {
            assert!(suspicion.request_failed());
            assert!(!suspicion.request_failed(), "it was asked already");
            suspicion.answered();
        }
        assert_eq!(suspicion.question_failed(false), Verdict::Doubtful);
        assert!(!suspicion.request_failed(), "it is sent again anyway");
        assert_eq!(suspicion.question_failed(false), Verdict::Away);
    }

    #[test]
    fn without_an_answer_for_a_leases_length_nothing_is_waited_for() {
        assert_eq!(Suspicion::default().question_failed(true), Verdict::Away);
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Event {
        Answered,
        RequestFailed,
        KeepAliveFailed,
    }

    proptest! {
        /// Against the rule as it is worded, over the whole history.
        #[test]
        fn it_is_away_after_two_keep_alives_in_a_row_and_asked_once(
            events in prop::collection::vec(
                prop_oneof![
                    Just(Event::Answered),
                    Just(Event::RequestFailed),
                    Just(Event::KeepAliveFailed),
                ],
                0..40,
            )
        ) {
            let mut suspicion = Suspicion::default();
            for (index, event) in events.iter().enumerate() {
                let before = events[..index].iter().rev();
                let before = before.take_while(|event| **event != Event::Answered);
                let (mut any, mut keep_alives) = (false, 0);
                for failed in before {
                    any = true;
                    keep_alives += usize::from(*failed == Event::KeepAliveFailed);
                }
                match event {
                    Event::Answered => suspicion.answered(),
                    Event::RequestFailed => prop_assert_eq!(suspicion.request_failed(), !any),
                    Event::KeepAliveFailed => {
                        let is_away = suspicion.question_failed(false) == Verdict::Away;
                        prop_assert_eq!(is_away, keep_alives >= 1);
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn a_suspicion_asks_and_an_answer_clears_it() {
        let (env, health) = (Env::system(), MetadataHealth::default());
        let question = health.question();
        health.suspect(&"slow");
        question.notified().await;
        assert!(!health.is_away());
        health.answered(&env);
        health.failed(&env, false, &"lost");
        assert!(!health.is_away());
        health.failed(&env, false, &"lost again");
        assert_eq!(health.outage().map(|outage| outage.why), Some("lost again".to_owned()));
        health.failed(&env, true, &"replaced");
        assert_eq!(health.outage().map(|outage| outage.why), Some("replaced".to_owned()));
        health.answered(&env);
        assert!(!health.is_away());
    }
}
