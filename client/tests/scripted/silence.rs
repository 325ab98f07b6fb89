//! A broker that says nothing any more, as one that was stopped or cut off does: no connection
//! ends, no answer comes.

use std::time::Duration;

use geminga_client::InitialPosition;

use crate::consumer::{receive_all, store, text};
use crate::pair::Pair;
use crate::producer::numbers;
use crate::proxy::Proxy;
use crate::{client, soon, until};

#[tokio::test]
async fn a_silent_owner_is_left_when_another_broker_has_the_topic() {
    let pair = Pair::start().await;
    let producer = soon(pair.client().producer("t").open()).await.expect("opens");
    soon(producer.send("0")).await.expect("stored");
    pair.at_b.freeze();
    let mut receipts = Vec::new();
    for number in 1..60_u64 {
        receipts.push(soon(producer.enqueue(number.to_string())).await.expect("taken"));
    }
    pair.a_takes_over();
    for receipt in receipts {
        soon(receipt).await.expect("stored by the next owner");
    }
    assert_eq!(pair.a.opened_here(), 1);
    // The old one goes on with what was sent to it, and finds itself replaced.
    pair.at_b.thaw();
    soon(producer.send("60")).await.expect("stored");
    assert_eq!(numbers(&pair.a.texts()), (0..=60).collect::<Vec<_>>(), "in order, nothing twice");
    pair.assert_no_violations();
}

#[tokio::test]
async fn a_silent_owner_that_still_has_the_topic_is_waited_for() {
    let pair = Pair::start().await;
    let producer = soon(pair.client().producer("t").open()).await.expect("opens");
    soon(producer.send("0")).await.expect("stored");
    pair.at_b.freeze();
    let receipt = soon(producer.enqueue("1")).await.expect("taken");
    let lookups = pair.a.node.lock().lookups;
    // It asks again and again, and hears the same.
    until(|| pair.a.node.lock().lookups >= lookups + 3).await;
    pair.at_b.thaw();
    soon(receipt).await.expect("stored");
    assert_eq!(pair.b.texts(), ["0", "1"], "nothing was sent twice");
    assert_eq!((pair.a.opened_here(), pair.b.opened_here()), (0, 1));
}

/// Opens something whose owner falls silent, with a connection from before or without one.
async fn open_at_a_silent_broker(connected: bool) {
    let pair = Pair::start().await;
    let client = pair.client();
    if connected {
        drop(soon(client.producer("t").open()).await.expect("opens"));
    }
    pair.at_b.freeze();
    let opening = tokio::spawn(async move { client.producer("t2").open().await });
    let lookups = pair.a.node.lock().lookups;
    until(|| pair.a.node.lock().lookups >= lookups + 2).await;
    pair.a_takes_over();
    let producer = soon(opening).await.expect("no panic").expect("opens at the next owner");
    soon(producer.send("1")).await.expect("stored");
    assert_eq!(pair.a.opened_here(), 1);
}

#[tokio::test]
async fn a_silent_broker_does_not_hold_up_who_opens_something() {
    tokio::join!(open_at_a_silent_broker(true), open_at_a_silent_broker(false));
}

#[tokio::test]
async fn a_receipt_for_an_acknowledgement_comes_from_the_next_owner() {
    let pair = Pair::start().await;
    store(&pair.at_b.url, 0..10, 1).await;
    let consumer = soon(pair.client().consumer("t", "s").subscribe()).await.expect("subscribes");
    let messages = receive_all(&consumer, 10).await;
    soon(consumer.ack_with_receipt(&messages[0].id)).await.expect("acknowledged");
    pair.at_b.freeze();
    pair.a_takes_over();
    soon(consumer.ack_with_receipt(&messages[1].id)).await.expect("acknowledged by the next");
    assert_eq!(pair.a.state.lock().unacked_messages(), 8);
    let again: Vec<u64> = receive_all(&consumer, 8).await.iter().map(text).collect();
    assert_eq!(again, (2..10).collect::<Vec<_>>());
    pair.at_b.thaw();
    for message in &messages[2..] {
        soon(consumer.ack_with_receipt(&message.id)).await.expect("acknowledged");
    }
    assert_eq!(pair.a.state.lock().unacked_messages(), 0);
    assert_eq!(pair.a.opened_here(), 1);
}

#[tokio::test]
async fn a_consumer_that_waits_for_nothing_leaves_with_those_that_do() {
    let pair = Pair::start().await;
    let client = pair.client();
    let consumer = client.consumer("t", "s").initial_position(InitialPosition::Earliest);
    let consumer = soon(consumer.subscribe()).await.expect("subscribes");
    let producer = soon(client.producer("t").open()).await.expect("opens");
    pair.at_b.freeze();
    pair.a_takes_over();
    soon(producer.send("0")).await.expect("stored by the next owner");
    let message = soon(consumer.receive()).await.expect("received from it");
    assert_eq!(text(&message), 0);
    assert_eq!(pair.a.opened_here(), 2);
}

#[tokio::test]
async fn a_broker_that_lives_and_is_slow_is_pinged_and_nobody_else_is_asked() {
    let pair = Pair::start().await;
    let producer = soon(pair.client().producer("t").open()).await.expect("opens");
    pair.b.state.lock().withhold_receipts = true;
    let receipt = soon(producer.enqueue("0")).await.expect("taken");
    let lookups = pair.a.node.lock().lookups;
    let handshakes = pair.b.node.lock().handshakes;
    until(|| pair.b.node.lock().handshakes >= handshakes + 2).await;
    assert_eq!(pair.a.node.lock().lookups, lookups);
    assert_eq!(pair.b.opened_here(), 1);
    drop(receipt);
}

#[tokio::test]
async fn an_idle_connection_is_not_pinged() {
    let pair = Pair::start().await;
    let elsewhere = Proxy::to(&pair.at_b.url).await;
    let idle = soon(client(&elsewhere.url).producer("t").open()).await.expect("opens");
    soon(idle.send("0")).await.expect("stored");
    // Another connection, for whose answer somebody waits, shows that there was time for a ping.
    let producer = soon(pair.client().producer("t").open()).await.expect("opens");
    let handshakes = pair.b.node.lock().handshakes;
    pair.b.state.lock().withhold_receipts = true;
    let receipt = soon(producer.enqueue("1")).await.expect("taken");
    until(|| pair.b.node.lock().handshakes == handshakes + 2).await;
    // Time for the wrong ping, were it due with the others.
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(pair.b.node.lock().handshakes, handshakes + 2, "none of the idle one's");
    drop((receipt, idle));
}

#[tokio::test]
async fn many_lookups_that_others_answered_do_not_cost_the_connection() {
    let pair = Pair::start().await;
    // `b`, too, is known from here on.
    let client = client(&pair.at_a.url);
    let producer = soon(client.producer("t").open()).await.expect("opens");
    pair.at_a.freeze();
    let mut opening = Vec::new();
    for number in 0..100 {
        let producer = client.producer(&format!("t{number}"));
        opening.push(tokio::spawn(async move { producer.open().await.map(drop) }));
    }
    for opened in opening {
        soon(opened).await.expect("no panic").expect("opens by the word of the other");
    }
    pair.at_a.thaw();
    until(|| pair.a.node.lock().lookups >= 100).await;
    pair.b_hands_over();
    soon(producer.send("1")).await.expect("stored");
    assert_eq!((pair.at_a.accepted(), pair.a.opened_here()), (1, 1));
}
