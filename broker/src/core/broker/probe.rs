//! While the metadata store is away, nobody tells an owner that another broker has taken its
//! bundles over: it asks the bookies, every second, whether somebody has fenced its state logs,
//! which is where a take-over begins. So a zombie finds out without traffic.
//!
//! Refuses: to end anything by itself. A state log whose ledger was found fenced ends, and with it
//! its bundle.

use std::sync::Weak;
use std::time::Duration;

use super::Inner;

/// Between two questions.
const INTERVAL: Duration = Duration::from_secs(1);

/// Asks until the broker is gone.
pub async fn run(broker: Weak<Inner>) {
    let Some(mut outage) = broker.upgrade().map(|inner| inner.context.health.changes()) else {
        return;
    };
    loop {
        // The sender goes with the broker.
        if outage.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let Some(inner) = broker.upgrade() else { return };
        let namespaces = inner.namespaces.all();
        let bundles = namespaces.iter().flat_map(|namespace| namespace.owned_bundles());
        let writers: Vec<_> = bundles.map(|bundle| bundle.log.writer()).collect();
        let probed = inner.context.ledgers.probe(&writers).await;
        tracing::debug!(?probed, "asked bookies whether state logs were fenced");
        drop(inner);
        tokio::time::sleep(INTERVAL).await;
    }
}
