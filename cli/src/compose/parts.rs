//! [`Parts`]: what runs beside each other in a server process (ports, background work), how it is
//! told to stop, and how one that ends by itself is noticed.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long parts may take to end before they are cut off.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// The running parts of a server.
#[derive(Debug)]
pub(super) struct Parts {
    stop: watch::Sender<bool>,
    tasks: JoinSet<&'static str>,
}

impl Parts {
    /// None yet.
    pub fn new() -> Self {
        Self { stop: watch::channel(false).0, tasks: JoinSet::new() }
    }

    /// Runs a part that is to run until [`Parts::stopped`] is done.
    pub fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(async move {
            work.await;
            name
        });
    }

    /// Is done once everything is to stop.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stopped = self.stop.subscribe();
        async move {
            // A sender that is gone means the same.
            drop(stopped.wait_for(|stopped| *stopped).await);
        }
    }

    /// Is done when a part has ended that shouldn't have.
    pub async fn broken(&mut self) -> anyhow::Error {
        match self.tasks.join_next().await {
            Some(Ok(name)) => anyhow::anyhow!("the {name} has ended unexpectedly"),
            Some(Err(error)) => anyhow::anyhow!("a part of the server broke down: {error}"),
            None => anyhow::anyhow!("nothing runs any more"),
        }
    }

    /// Stops everything and waits for it.
    pub async fn end(&mut self) {
        self.stop.send_replace(true);
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_GRACE, ended).await.is_err() {
            tracing::info!("ending connections that did not close in time");
            self.tasks.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn parts_end_when_told_and_are_cut_off_when_they_do_not() {
        let mut parts = Parts::new();
        parts.spawn("obedient part", parts.stopped());
        parts.spawn("stubborn part", std::future::pending());
        parts.end().await;
        assert_eq!(parts.broken().await.to_string(), "nothing runs any more");
    }

    #[tokio::test]
    async fn a_part_that_ends_by_itself_is_named() {
        let mut parts = Parts::new();
        parts.spawn("lasting part", parts.stopped());
        parts.spawn("short part", async {});
        assert!(parts.broken().await.to_string().contains("short part"));
    }
}
