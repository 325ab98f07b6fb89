//! Background tasks whose panics are noticed: nobody waits for such a task, so a panic would only
//! leave its work undone, for ever and unseen.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// Wait before a task that panicked starts again.
const RESTART: Duration = Duration::from_secs(1);

/// Runs a task; should it panic, `panicked` gives up what it worked for.
pub fn spawn(
    runtime: &Handle,
    what: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
    panicked: impl FnOnce() + Send + 'static,
) -> JoinHandle<()> {
    runtime.spawn(async move {
        // What it may have left half done goes with what is given up.
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            tracing::error!(what, "a background task panicked; what it worked for is given up");
            panicked();
        }
    })
}

/// Runs a task that goes on for as long as the broker does; should it panic, it starts again. What
/// it keeps between its turns must not be left half changed.
pub async fn again<F: Future<Output = ()>>(what: &'static str, mut task: impl FnMut() -> F) {
    while AssertUnwindSafe(task()).catch_unwind().await.is_err() {
        tracing::error!(what, "a background task panicked; it starts again");
        tokio::time::sleep(RESTART).await;
    }
}
