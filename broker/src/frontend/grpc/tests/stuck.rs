//! A consumer whose acknowledgements wait for storage, and its neighbours on the same stream.

use super::*;

/// Consumer 1 holds an entry, and its next acknowledgements wait for storage.
async fn stuck() -> (Served, ConsumeEnd, v1::AckPosition) {
    // Room for one change at a time.
    let state_log = StateLogConfig { max_pending_bytes: 320, ..StateLogConfig::default() };
    let broker = BrokerConfig { state_log, ..Cluster::config() };
    let served = served_by(broker, GrpcConfig::default()).await;
    let mut producer = served.produce().await;
    producer.open(1, "t").await;
    producer.send(1, 0, entry("x")).await;
    assert!(matches!(producer.next().await, ProduceResult::Receipts(_)));
    let mut consumer = served.consume().await;
    let shared: i32 = v1::SubscriptionType::Shared.into();
    for consumer_id in [1, 2] {
        let subscribed = consumer.subscribe(consumer_id, "t", shared).await;
        assert_eq!(subscribed.error, None);
    }
    consumer.flow(1, 10, 1 << 20).await;
    let Event::Delivery(delivery) = consumer.next().await else { panic!("no delivery") };
    let (ledger_id, entry_id) = (delivery.entries[0].ledger_id, delivery.entries[0].entry_id);
    served.cluster.set_hung(true);
    let position = v1::AckPosition { ledger_id, entry_id, ..v1::AckPosition::default() };
    (served, consumer, position)
}

async fn acknowledge(consumer: &ConsumeEnd, request_id: u64, position: &v1::AckPosition) {
    let positions = vec![position.clone()];
    let ack = v1::Acknowledge { consumer_id: 1, request_id, cumulative: false, positions };
    consumer.push(Some(ConsumeFrame::Ack(ack))).await;
}

async fn ask_position(consumer: &ConsumeEnd, consumer_id: u64, request_id: u64) {
    let get = v1::GetPosition { consumer_id, request_id };
    consumer.push(Some(ConsumeFrame::GetPosition(get))).await;
}

#[tokio::test]
async fn a_consumer_whose_acknowledgements_wait_for_storage_holds_back_no_other() {
    let (served, mut consumer, position) = stuck().await;
    for request_id in 1..=300 {
        acknowledge(&consumer, request_id, &position).await;
    }
    ask_position(&consumer, 2, 7).await;
    let Event::Position(answer) = consumer.next().await else { panic!("no position") };
    assert_eq!((answer.consumer_id, answer.request_id), (2, 7));
    served.cluster.set_hung(false);
    let mut receipts = Vec::new();
    while receipts.len() < 300 {
        match consumer.next().await {
            Event::AckReceipt(receipt) => receipts.push((receipt.request_id, receipt.error)),
            other => panic!("{other:?}"),
        }
    }
    assert!(receipts.into_iter().eq((1..=300).map(|request_id| (request_id, None))));
}

#[tokio::test]
async fn a_consumer_with_too_much_waiting_is_closed_and_its_neighbour_is_served() {
    let (_served, mut consumer, position) = stuck().await;
    for request_id in 1..=2 {
        acknowledge(&consumer, request_id, &position).await;
    }
    for request_id in 0..5_000 {
        ask_position(&consumer, 1, request_id).await;
    }
    ask_position(&consumer, 2, 7).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match consumer.next().await {
            Event::Closed(closed) => {
                assert_eq!(error_code(closed.error.as_ref()), Some(ErrorCode::FlowControl));
                seen.push(closed.consumer_id);
            }
            Event::Position(answer) => seen.push(answer.consumer_id),
            other => panic!("{other:?}"),
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [1, 2]);
}
