//! The server is killed at random moments while producers and consumers go on.

use std::time::Duration;

use geminga_client::Client;
use geminga_proto::env::{Random, SeededRandom};
use geminga_tests::load::{Load, Pace};
use geminga_tests::standalone::{Standalone, home};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_with_a_receipt_is_lost_or_comes_again_when_the_server_is_killed() {
    let (rounds, seed) = (geminga_tests::rounds(100), geminga_tests::seed());
    eprintln!("GEMINGA_ROUNDS={rounds} GEMINGA_SEED={seed}");
    let random = SeededRandom::new(seed);
    let home = home();
    let mut server = Standalone::start(home.path());
    let client = Client::builder().service_url(server.service_url()).build().expect("a good URL");
    let load = Load::start(&client, &["killed"], Pace::default()).await;
    for _ in 0..rounds {
        tokio::time::sleep(Duration::from_millis(random.below(120))).await;
        load.nothing_is_violated();
        tokio::task::block_in_place(|| {
            server.kill();
            server.restart();
        });
    }
    // The last server is up: everybody must get on without help.
    load.gets_on().await;
    let summary = load.stop_and_judge(&client).await;
    eprintln!("{rounds} kills: {summary:?}");
    tokio::task::block_in_place(|| server.stop());
}
