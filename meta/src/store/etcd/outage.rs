//! [`Outage`]: says once that etcd is out of reach, and once that it is back. Many tasks find out
//! at the same time, each time they try; the log must not say it for all of them.
//!
//! A state machine: time comes in as a value. What ends within the grace period, such as the
//! election of a leader, is nobody's news.

use std::time::Duration;

use geminga_proto::env::Monotonic;

/// What is to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing has answered for so long.
    Down(Duration),
    /// It answers again, after so long.
    Back(Duration),
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Up,
    /// Failing since then.
    Failing(Monotonic),
    /// And that has been said.
    Down(Monotonic),
}

/// Whether etcd is in reach.
#[derive(Debug, Default)]
pub(super) struct Outage {
    state: State,
}

impl Outage {
    /// How long requests must have failed before it is news.
    pub(super) const GRACE: Duration = Duration::from_secs(1);

    /// A request failed at every endpoint.
    pub(super) fn failed(&mut self, now: Monotonic) -> Option<News> {
        match self.state {
            State::Up => {
                self.state = State::Failing(now);
                None
            }
            State::Failing(since) if now.saturating_sub(since) >= Self::GRACE => {
                self.state = State::Down(since);
                Some(News::Down(now.saturating_sub(since)))
            }
            State::Failing(_) | State::Down(_) => None,
        }
    }

    /// A request was answered.
    pub(super) fn answered(&mut self, now: Monotonic) -> Option<News> {
        match std::mem::take(&mut self.state) {
            State::Up | State::Failing(_) => None,
            State::Down(since) => Some(News::Back(now.saturating_sub(since))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Monotonic {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_outage_is_news_once_and_its_end_once() {
        let mut outage = Outage::default();
        assert_eq!(outage.answered(at(0)), None);
        assert_eq!(outage.failed(at(100)), None);
        assert_eq!(outage.failed(at(1_099)), None);
        assert_eq!(outage.failed(at(1_100)), Some(News::Down(at(1_000))));
        assert_eq!(outage.failed(at(30_000)), None);
        assert_eq!(outage.answered(at(30_100)), Some(News::Back(at(30_000))));
        assert_eq!(outage.answered(at(30_200)), None);
    }

    #[test]
    fn what_ends_within_the_grace_period_is_not_news() {
        let mut outage = Outage::default();
        for start in [0, 10_000, 20_000] {
            assert_eq!(outage.failed(at(start)), None);
            assert_eq!(outage.failed(at(start + 900)), None);
            assert_eq!(outage.answered(at(start + 950)), None);
        }
    }
}
