//! A topic moves from one broker to another: handed over, or because its owner died. The
//! application notices nothing but latency.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use geminga_client::{
    Client, ClientError, ErrorCode, InitialPosition, SendError, SubscriptionType, UrlFailure,
};
use geminga_proto::v1::HashRange;
use tokio::net::TcpListener;

use crate::broker::{Broker, Fault};
use crate::consumer::{receive_all, store, text};
use crate::pair::Pair;
use crate::producer::{first_stored, numbers};
use crate::proxy::Proxy;
use crate::{broker_and_client, client, soon, until};

/// An address where nobody listens.
async fn nobody() -> String {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    format!("http://{}", free.local_addr().expect("bound"))
}

#[tokio::test]
async fn a_client_is_sent_to_the_owner_whomever_it_asks() {
    let pair = Pair::start().await;
    for url in [&pair.at_a.url, &pair.at_b.url] {
        let producer = soon(client(url).producer("t").open()).await.expect("opens");
        soon(producer.send("1")).await.expect("stored");
    }
    assert_eq!((pair.a.opened_here(), pair.b.opened_here()), (0, 2));
}

#[tokio::test]
async fn one_address_that_works_is_enough_and_is_remembered() {
    let (broker, _) = broker_and_client().await;
    let works = broker.serve().await;
    let silent = Proxy::to(&works).await;
    silent.freeze();
    let urls = [silent.url.clone(), nobody().await, works];
    let client = Client::builder().service_urls(urls).build().expect("valid settings");
    soon(client.connect()).await.expect("one of them works");
    let asked = silent.accepted();
    for number in 0..20 {
        let producer = soon(client.producer(&format!("t{number}")).open()).await.expect("opens");
        soon(producer.send("1")).await.expect("stored");
    }
    assert_eq!(silent.accepted(), asked, "the one that answered is asked first");
}

#[tokio::test]
async fn when_no_address_works_each_is_told_with_its_reason() {
    let (a, b) = (nobody().await, nobody().await);
    let client = Client::builder().service_url(format!("{a},{b}"));
    let client = client.operation_timeout(Duration::from_millis(200)).build().expect("valid");
    let error = soon(client.connect()).await.expect_err("nobody is there");
    let ClientError::NoneAnswered { tried } = &error else { panic!("{error:?}") };
    let urls: BTreeSet<&str> = tried.iter().map(|UrlFailure { url, .. }| url.as_str()).collect();
    assert_eq!(urls, BTreeSet::from([a.as_str(), b.as_str()]));
    assert!(error.is_retryable());
    let opened = soon(client.producer("t").open()).await.expect_err("nobody is there");
    let told = opened.to_string();
    assert!(matches!(opened, ClientError::TimedOut { .. }), "{told}");
    for url in [a, b] {
        assert!(told.contains(&format!("{url}: Connection refused")), "{told}");
    }
}

#[tokio::test]
async fn a_grpc_server_that_is_no_broker_is_recognised_and_another_address_used() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let bookie = format!("http://{}", listener.local_addr().expect("bound"));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let no_service = tonic::service::Routes::default();
    tokio::spawn(
        tonic::transport::Server::builder().add_routes(no_service).serve_with_incoming(incoming),
    );
    let error = soon(client(&bookie).producer("t").open()).await.expect_err("not a broker");
    assert!(matches!(&error, ClientError::NotABroker { url, .. } if *url == bookie), "{error:?}");
    let (broker, _) = broker_and_client().await;
    let works = broker.serve().await;
    for _ in 0..4 {
        let client = client(&format!("{bookie},{works}"));
        drop(soon(client.producer("t").open()).await.expect("opens"));
    }
}

#[tokio::test]
async fn an_address_that_leads_to_another_cluster_is_refused_after_the_first_connection() {
    let (first, second) = (Broker::default(), Broker::default());
    second.node.lock().cluster_id = "another".to_owned();
    let (at_first, at_second) =
        (Proxy::to(&first.serve().await).await, Proxy::to(&second.serve().await).await);
    at_second.kill();
    let client = client(&format!("{},{}", at_first.url, at_second.url));
    let producer = soon(client.producer("t").open()).await.expect("opens");
    soon(producer.send("1")).await.expect("stored");
    at_first.kill();
    at_second.revive().await;
    // It goes on looking for its own cluster, which may come back.
    until(|| second.node.lock().handshakes >= 3).await;
    let expected = second.node.lock().expected_clusters.clone();
    assert_eq!(BTreeSet::from_iter(expected), BTreeSet::from(["scripted".to_owned()]));
    let error = soon(client.connect()).await.expect_err("there is none of this cluster");
    assert!(error.to_string().contains("belongs to cluster \"another\""), "{error}");
    at_first.revive().await;
    soon(producer.send("2")).await.expect("stored at home");
    assert_eq!(first.texts(), ["1", "2"]);
    assert_eq!(second.texts(), [""; 0]);
}

#[tokio::test]
async fn an_address_that_leads_to_another_cluster_for_good_ends_with_that() {
    let broker = Broker::default();
    let url = broker.serve().await;
    let client = client(&url);
    soon(client.connect()).await.expect("connects");
    let proxy = Proxy::to(&url).await;
    broker.node.lock().cluster_id = "restored".to_owned();
    broker.node.lock().owner = Some(("b2".to_owned(), proxy.url.clone()));
    let error = soon(client.producer("t").open()).await.expect_err("another cluster");
    assert_eq!(error.code(), Some(ErrorCode::WrongCluster), "{error}");
    assert!(error.to_string().contains(&proxy.url), "{error}");
}

#[tokio::test]
async fn a_hand_over_moves_producers_and_consumers_at_once() {
    let pair = Pair::start().await;
    let client = pair.client();
    let producer = soon(client.producer("t").open()).await.expect("opens");
    let consumer = client.consumer("t", "s").initial_position(InitialPosition::Earliest);
    let consumer = soon(consumer.subscribe()).await.expect("subscribes");
    soon(producer.send("0")).await.expect("stored");
    let first = soon(consumer.receive()).await.expect("received");
    soon(consumer.ack_with_receipt(&first.id)).await.expect("acknowledged");
    let lookups = pair.a.node.lock().lookups;
    let started = Instant::now();
    pair.b_hands_over();
    for number in 1..50_u64 {
        soon(producer.send(number.to_string())).await.expect("stored");
        let message = soon(consumer.receive()).await.expect("received");
        assert_eq!(text(&message), number);
        soon(consumer.ack_with_receipt(&message.id)).await.expect("acknowledged");
    }
    // An upper limit that only a wait for a timer of seconds would exceed.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(pair.a.opened_here(), 2);
    // At most each asks for itself, and once more if it was told before `a` knew.
    assert!(pair.a.node.lock().lookups - lookups <= 4);
    assert_eq!(numbers(&pair.a.texts()), (0..50).collect::<Vec<_>>(), "nothing was sent twice");
    pair.assert_no_violations();
}

#[tokio::test]
async fn a_killed_owner_loses_nothing_and_keeps_the_order_however_late_the_others_notice() {
    let pair = Pair::start().await;
    let producer = soon(pair.client().producer("t").max_batch_messages(7).open()).await;
    let producer = producer.expect("opens");
    let mut receipts = Vec::new();
    for number in 0..400_u64 {
        receipts.push(soon(producer.enqueue(number.to_string())).await.expect("taken"));
        match number {
            100 => pair.b.plan([Fault::StoreAndEnd]),
            200 => pair.at_b.kill(),
            // Spreads the messages over several batches.
            _ if number % 10 == 0 => tokio::time::sleep(Duration::from_millis(1)).await,
            _ => {}
        }
    }
    // Its lease has yet to end: `a` goes on naming the dead one.
    let lookups = pair.a.node.lock().lookups;
    until(|| pair.a.node.lock().lookups >= lookups + 5).await;
    assert_eq!(pair.a.opened_here(), 0);
    pair.a_takes_over();
    let mut last = None;
    for receipt in receipts {
        let receipt = soon(receipt).await.expect("stored");
        assert!(last < Some((receipt.id, receipt.sequence_id)), "{last:?} {receipt:?}");
        last = Some((receipt.id, receipt.sequence_id));
    }
    assert_eq!(first_stored(&pair.a), (0..400).collect::<Vec<_>>());
    pair.assert_no_violations();
}

#[tokio::test]
async fn brokers_that_name_each_other_are_asked_in_turn_until_they_agree() {
    let pair = Pair::start().await;
    let producer = soon(pair.client().producer("t").open()).await.expect("opens");
    soon(producer.send("1")).await.expect("stored");
    // Each takes the other for the owner, and refuses.
    pair.b.sees_owner(&pair.a, &pair.at_a.url);
    pair.b.close_all(ErrorCode::NotOwner);
    let message = soon(producer.enqueue("2")).await.expect("taken");
    until(|| pair.a.opened_here() >= 4 && pair.b.opened_here() >= 4).await;
    // Which took turns: neither was asked much more often than the other.
    let (a, b) = (pair.a.opened_here(), pair.b.opened_here());
    assert!(a.abs_diff(b) <= 3, "{a} and {b} attempts");
    pair.b.takes_over();
    soon(message).await.expect("stored once one takes it");
    assert_eq!(pair.b.texts(), ["1", "2"]);
}

#[tokio::test]
async fn a_storm_of_refusals_is_over_in_one_round_over_one_connection() {
    const PRODUCERS: usize = 200;
    let pair = Pair::start().await;
    let client = pair.client();
    let mut producers = Vec::new();
    for number in 0..PRODUCERS {
        let producer = client.producer(&format!("t{number}")).open();
        producers.push(soon(producer).await.expect("opens"));
    }
    let lookups = pair.a.node.lock().lookups;
    let connections = pair.at_a.accepted();
    pair.b_hands_over();
    until(|| pair.a.opened_here() == PRODUCERS).await;
    for producer in &producers {
        soon(producer.send("1")).await.expect("stored");
    }
    assert_eq!(pair.a.opened_here(), PRODUCERS);
    // Each asks once, and once more if `b` closed it before it was asked.
    let asked = (pair.a.node.lock().lookups - lookups) as usize;
    assert!(asked <= 2 * PRODUCERS, "{asked} lookups");
    let accepted = pair.at_a.accepted();
    assert!(accepted <= connections.max(1), "{connections} connections, then {accepted}");
}

#[tokio::test]
async fn the_topics_of_a_bundle_are_looked_up_once_and_move_together_when_their_owner_dies() {
    const TOPICS: usize = 100;
    let pair = Pair::start().await;
    for node in [&pair.a, &pair.b] {
        node.node.lock().bundle = Some(HashRange { first: 0, last: u32::MAX });
    }
    let lookups = || pair.a.node.lock().lookups + pair.b.node.lock().lookups;
    let client = pair.client();
    let mut producers = Vec::new();
    for number in 0..TOPICS {
        let topic = format!("t{number}");
        producers.push(soon(client.producer(&topic).open()).await.expect("opens"));
    }
    assert_eq!((lookups(), pair.b.opened_here()), (1, TOPICS));
    pair.at_b.kill();
    // Until somebody has the bundle, all are sent to the dead one.
    until(|| lookups() >= 5).await;
    let (before, taken) = (lookups(), Instant::now());
    pair.a_takes_over();
    until(|| pair.a.opened_here() >= TOPICS).await;
    // One alone waits for up to half a second between two attempts of such a crowd.
    assert!(taken.elapsed() < Duration::from_secs(2), "{:?}", taken.elapsed());
    assert!(lookups() - before <= 10, "{} lookups", lookups() - before);
    assert_eq!(pair.a.opened_here(), TOPICS);
    for producer in &producers {
        soon(producer.send("1")).await.expect("stored");
    }
    pair.assert_no_violations();
}

#[tokio::test]
async fn many_who_wait_for_one_dead_address_share_an_attempt_and_go_on_when_it_fails() {
    const PRODUCERS: u32 = 300;
    let (broker, _) = broker_and_client().await;
    let works = broker.serve().await;
    // The owner takes connections and says nothing: one attempt is longer than the test's patience.
    let dead = Proxy::to(&works).await;
    dead.freeze();
    broker.node.lock().owner = Some(("dead".to_owned(), dead.url.clone()));
    let client = Client::builder().service_url(&works).connect_timeout(Duration::from_secs(600));
    let client = client.build().expect("valid settings");
    let opening: Vec<_> = (0..PRODUCERS)
        .map(|number| {
            let producer = client.producer(&format!("t{number}"));
            tokio::spawn(async move { producer.open().await.map(drop) })
        })
        .collect();
    // Each was told whose it is, and many were by now told so again.
    until(|| broker.node.lock().lookups >= 2 * PRODUCERS).await;
    assert_eq!(dead.accepted(), 1);
    dead.kill();
    broker.takes_over();
    for opened in opening {
        soon(opened).await.expect("no panic").expect("opens");
    }
    assert_eq!(dead.accepted(), 1);
}

#[tokio::test]
async fn acknowledgements_without_a_receipt_reach_the_next_owner_before_it_delivers() {
    for kind in [SubscriptionType::Exclusive, SubscriptionType::Shared] {
        let pair = Pair::start().await;
        store(&pair.at_b.url, 0..20, 5).await;
        let consumer = pair.client().consumer("t", "s").subscription_type(kind);
        let consumer = soon(consumer.subscribe()).await.expect("subscribes");
        let messages = receive_all(&consumer, 20).await;
        pair.b.state.lock().withhold_ack_receipts = true;
        // The owner loses this group, and dies.
        pair.b.plan([Fault::LoseAckAndEnd]);
        for message in &messages[..7] {
            soon(consumer.ack(&message.id)).await.expect("taken");
        }
        until(|| pair.b.state.lock().faults.is_empty()).await;
        pair.at_b.kill();
        pair.b.state.lock().withhold_ack_receipts = false;
        pair.a_takes_over();
        soon(consumer.flush_acks()).await.expect("acknowledged after all");
        assert_eq!(pair.a.state.lock().unacked_messages(), 13);
        let rest = receive_all(&consumer, 13).await;
        assert_eq!(rest.iter().map(text).collect::<Vec<_>>(), (7..20).collect::<Vec<_>>());
        for message in &rest {
            soon(consumer.ack_with_receipt(&message.id)).await.expect("acknowledged");
        }
        assert_eq!(consumer.try_receive(), Ok(None), "nothing acknowledged came again");
        assert_eq!(consumer.queued().messages, 0);
    }
}

#[tokio::test]
async fn a_consumer_that_was_moved_has_its_whole_credit_again_and_no_more() {
    let pair = Pair::start().await;
    store(&pair.at_b.url, 0..100, 1).await;
    let consumer = pair.client().consumer("t", "s").receiver_queue_messages(10);
    let consumer = soon(consumer.subscribe()).await.expect("subscribes");
    let received = receive_all(&consumer, 25).await;
    for message in &received {
        soon(consumer.ack_with_receipt(&message.id)).await.expect("acknowledged");
    }
    pair.b_hands_over();
    until(|| pair.a.opened_here() == 1 && consumer.queued().messages == 10).await;
    let rest: Vec<u64> = receive_all(&consumer, 75).await.iter().map(text).collect();
    assert_eq!(rest, (25..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_message_that_is_too_late_says_what_went_wrong_last() {
    let (broker, client) = broker_and_client().await;
    let timeout = Duration::from_millis(200);
    let producer = client.producer("t").send_timeout(Some(timeout)).open();
    let producer = soon(producer).await.expect("opens");
    broker.plan([Fault::Refuse(ErrorCode::Unavailable); 10_000]);
    let error = soon(producer.send("1")).await.expect_err("no receipt");
    let SendError::Timeout { after, last: Some(last) } = &error else { panic!("{error:?}") };
    assert_eq!((*after, last.contains("scripted Unavailable")), (timeout, true), "{last}");
    assert!(error.to_string().contains("the last error was: scripted Unavailable"), "{error}");
    broker.state.lock().faults.clear();
    broker.state.lock().withhold_receipts = true;
    soon(producer.flush()).await.expect("nothing is left");
    until(|| producer.is_connected()).await;
}

#[tokio::test]
async fn a_message_outlasts_the_outage_of_all_brokers() {
    let pair = Pair::start().await;
    let client = pair.client();
    let producer = soon(client.producer("t").send_timeout(None).open()).await.expect("opens");
    pair.at_a.kill();
    pair.at_b.kill();
    let message = soon(producer.enqueue("1")).await.expect("taken");
    until(|| !producer.is_connected()).await;
    soon(async {
        while client.connect().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert_eq!(producer.in_flight(), 1);
    pair.at_a.revive().await;
    pair.a_takes_over();
    soon(message).await.expect("stored after all");
    assert_eq!(pair.a.texts(), ["1"]);
}
