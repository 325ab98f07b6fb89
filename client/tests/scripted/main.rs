//! The SDK against a scripted broker that breaks in every way a broker or a network can: order is
//! kept, nothing acknowledged is lost, nothing refused is taken for stored.

mod broker;
mod connect;
mod consumer;
mod pair;
mod producer;
mod proxy;
mod silence;
mod takeover;

use std::time::{Duration, Instant};

use broker::Broker;
use geminga_client::Client;

/// Long enough for any machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn client(url: &str) -> Client {
    Client::builder().service_url(url).build().expect("valid settings")
}

async fn broker_and_client() -> (Broker, Client) {
    let broker = Broker::default();
    let url = broker.serve().await;
    (broker, client(&url))
}

/// Fails the test instead of hanging it.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it happens within the test's patience")
}

/// Waits until `holds`.
async fn until(mut holds: impl FnMut() -> bool) {
    soon(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// The times between sessions must grow as the client's waits do: from the third on by half each,
/// of which at least half is kept. Lower limits hold on a slow machine, too.
fn assert_ever_less_often(opened_at: &[Instant]) {
    let mut wait = Duration::from_millis(5);
    for pair in opened_at.windows(2).skip(1) {
        let gap = pair[1].saturating_duration_since(pair[0]);
        assert!(gap >= wait / 2, "{gap:?} after a wait of {wait:?} was due");
        wait = wait * 3 / 2;
    }
}
