//! Frames as the core's plain data, and back. What makes no sense is refused here with a typed
//! error; limits keep a frame from making the core do unbounded work.

use geminga_proto::entry::split_stored;
use geminga_proto::id::{ConsumerId, EntryId, LedgerId, Position, ProducerId};
use geminga_proto::topic_name::TopicName;
use geminga_proto::v1;
use geminga_proto::v1::ErrorCode;

use crate::core::api::{
    Ack, AckPosition, Delivery, InitialPosition, OpenProducer, Receipt, Subscribe,
    SubscriptionPosition, SubscriptionType,
};
use crate::frontend::grpc::error::refusal;

/// Positions of one acknowledgement or redelivery.
pub(super) const MAX_POSITIONS: usize = 10_000;
/// Bytes of batch indexes in one acknowledgement.
const MAX_INDEX_BYTES: usize = 1024 * 1024;
/// Bytes of a producer's or consumer's name.
const MAX_NAME_BYTES: usize = 512;
/// Properties of a producer or consumer, and their bytes together.
const MAX_PROPERTIES: usize = 100;
const MAX_PROPERTY_BYTES: usize = 16 * 1024;

fn invalid(message: impl Into<String>) -> v1::Error {
    refusal(ErrorCode::InvalidRequest, message)
}

pub(super) fn topic(text: &str) -> Result<TopicName, v1::Error> {
    text.parse().map_err(|error: geminga_proto::topic_name::NameError| {
        refusal(ErrorCode::InvalidTopicName, error.to_string())
    })
}

fn name(what: &str, text: &str) -> Result<String, v1::Error> {
    if text.len() > MAX_NAME_BYTES {
        return Err(invalid(format!("a {what} has at most {MAX_NAME_BYTES} bytes")));
    }
    if text.chars().any(char::is_control) {
        return Err(invalid(format!("a {what} has no control characters")));
    }
    Ok(text.to_owned())
}

fn properties(properties: Vec<v1::Property>) -> Result<Vec<(String, String)>, v1::Error> {
    let bytes: usize = properties.iter().map(|it| it.key.len() + it.value.len()).sum();
    if properties.len() > MAX_PROPERTIES || bytes > MAX_PROPERTY_BYTES {
        return Err(invalid(format!(
            "at most {MAX_PROPERTIES} properties with {MAX_PROPERTY_BYTES} bytes are taken"
        )));
    }
    Ok(properties.into_iter().map(|it| (it.key, it.value)).collect())
}

pub(super) fn open_producer(open: v1::OpenProducer) -> Result<OpenProducer, v1::Error> {
    Ok(OpenProducer {
        producer_id: ProducerId(open.producer_id),
        topic: topic(&open.topic)?,
        name: name("producer name", &open.producer_name)?,
        properties: properties(open.properties)?,
    })
}

pub(super) fn subscribe(subscribe: v1::Subscribe) -> Result<Subscribe, v1::Error> {
    let subscription_type = match v1::SubscriptionType::try_from(subscribe.r#type) {
        Ok(v1::SubscriptionType::Exclusive) => SubscriptionType::Exclusive,
        Ok(v1::SubscriptionType::Failover) => SubscriptionType::Failover,
        Ok(v1::SubscriptionType::Shared) => SubscriptionType::Shared,
        Ok(v1::SubscriptionType::KeyShared) => {
            let message = "Key_Shared subscriptions are not supported; use Shared or Failover";
            return Err(refusal(ErrorCode::Unsupported, message));
        }
        Err(_) => {
            let message = format!("subscription type {} is not supported", subscribe.r#type);
            return Err(refusal(ErrorCode::Unsupported, message));
        }
    };
    let initial_position = match v1::InitialPosition::try_from(subscribe.initial_position) {
        Ok(v1::InitialPosition::Latest) => InitialPosition::Latest,
        Ok(v1::InitialPosition::Earliest) => InitialPosition::Earliest,
        Err(_) => {
            let message = format!("initial position {} is unknown", subscribe.initial_position);
            return Err(refusal(ErrorCode::Unsupported, message));
        }
    };
    Ok(Subscribe {
        consumer_id: ConsumerId(subscribe.consumer_id),
        topic: topic(&subscribe.topic)?,
        subscription: subscribe.subscription,
        subscription_type,
        consumer_name: name("consumer name", &subscribe.consumer_name)?,
        priority: subscribe.priority,
        initial_position,
        create: subscribe.create,
        properties: properties(subscribe.properties)?,
    })
}

fn position(ledger_id: u64, entry_id: u64) -> Position {
    Position::new(LedgerId(ledger_id), EntryId(entry_id))
}

pub(super) fn ack(ack: v1::Acknowledge) -> Result<Ack, v1::Error> {
    let index_bytes: usize = ack.positions.iter().map(|it| it.acked_indexes.len()).sum();
    if ack.positions.len() > MAX_POSITIONS || index_bytes > MAX_INDEX_BYTES {
        return Err(invalid(format!(
            "an acknowledgement has at most {MAX_POSITIONS} positions with {MAX_INDEX_BYTES} bytes \
             of batch indexes; send several"
        )));
    }
    if ack.cumulative && ack.positions.len() != 1 {
        return Err(invalid("a cumulative acknowledgement has exactly one position"));
    }
    let positions = ack.positions.into_iter().map(|it| AckPosition {
        position: position(it.ledger_id, it.entry_id),
        acked_indexes: it.acked_indexes,
    });
    let positions = positions.collect();
    Ok(Ack { request_id: ack.request_id, cumulative: ack.cumulative, positions })
}

pub(super) fn redeliver(redeliver: &v1::Redeliver) -> Result<Vec<Position>, v1::Error> {
    if redeliver.positions.len() > MAX_POSITIONS {
        let message = format!("a redelivery names at most {MAX_POSITIONS} entries; send several");
        return Err(invalid(message));
    }
    Ok(redeliver.positions.iter().map(|it| position(it.ledger_id, it.entry_id)).collect())
}

pub(super) fn receipt(receipt: &Receipt) -> v1::Receipt {
    v1::Receipt {
        sequence_id: receipt.sequence_id,
        ledger_id: receipt.position.ledger.0,
        entry_id: receipt.position.entry.0,
        index: receipt.first_index.0,
    }
}

/// An entry for a consumer. What it holds of the memory budget is given back here: from now on
/// its bytes are the transport's, which takes one message at a time.
pub(super) fn delivered(delivery: Delivery) -> v1::DeliveredEntry {
    let (broker_header, entry) = if delivery.payload.head.is_empty() {
        // Stored in one piece.
        match split_stored(&delivery.payload.body) {
            Ok((_, entry)) => {
                let header_bytes = delivery.payload.body.len() - entry.len();
                (delivery.payload.body.slice(..header_bytes), entry)
            }
            // The client finds the same and reports it.
            Err(_) => (delivery.payload.head, delivery.payload.body),
        }
    } else {
        (delivery.payload.head, delivery.payload.body)
    };
    v1::DeliveredEntry {
        ledger_id: delivery.position.ledger.0,
        entry_id: delivery.position.entry.0,
        redelivery_count: delivery.redelivery_count,
        acked_indexes: delivery.acked_indexes,
        broker_header,
        entry,
        credit_messages: delivery.messages,
    }
}

fn entry_position(at: Position) -> v1::EntryPosition {
    v1::EntryPosition { ledger_id: at.ledger.0, entry_id: at.entry.0 }
}

pub(super) fn subscription_position(
    consumer_id: u64,
    request_id: u64,
    at: SubscriptionPosition,
) -> v1::Position {
    v1::Position {
        consumer_id,
        request_id,
        error: None,
        last_confirmed: at.last_confirmed.map(entry_position),
        mark_delete: at.mark_delete.map(entry_position),
        backlog_messages: at.backlog_messages,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use geminga_proto::entry::{BrokerHeader, encode_broker_header, stored_entry};

    fn asked(subscription_type: i32) -> v1::Subscribe {
        v1::Subscribe {
            consumer_id: 1,
            topic: "t".to_owned(),
            subscription: "s".to_owned(),
            r#type: subscription_type,
            ..v1::Subscribe::default()
        }
    }

    #[test]
    fn an_unsupported_subscription_type_is_named() {
        let refused =
            subscribe(asked(v1::SubscriptionType::KeyShared.into())).expect_err("refused");
        assert_eq!(refused.code(), ErrorCode::Unsupported);
        assert!(refused.message.contains("Key_Shared"), "{}", refused.message);
        let unknown = subscribe(asked(99)).expect_err("refused");
        assert_eq!(unknown.code(), ErrorCode::Unsupported);
        assert_eq!(
            subscribe(asked(2)).map(|it| it.subscription_type),
            Ok(SubscriptionType::Shared)
        );
    }

    #[test]
    fn a_malformed_topic_name_is_told_as_such() {
        for bad in ["", "a/b", "non-persistent://a/b/c", "a b"] {
            let open = v1::OpenProducer { topic: bad.to_owned(), ..v1::OpenProducer::default() };
            let refused = open_producer(open).expect_err("refused");
            assert_eq!(refused.code(), ErrorCode::InvalidTopicName, "{bad:?}");
        }
    }

    #[test]
    fn names_and_properties_are_bounded() {
        let open = || v1::OpenProducer { topic: "t".to_owned(), ..v1::OpenProducer::default() };
        let long = v1::OpenProducer { producer_name: "x".repeat(513), ..open() };
        let control = v1::OpenProducer { producer_name: "a\nb".to_owned(), ..open() };
        let property = v1::Property { key: "k".to_owned(), value: "v".to_owned() };
        let many = v1::OpenProducer { properties: vec![property; 101], ..open() };
        for bad in [long, control, many] {
            let refused = open_producer(bad).expect_err("refused");
            assert_eq!(refused.code(), ErrorCode::InvalidRequest);
        }
        assert!(open_producer(open()).is_ok());
    }

    #[test]
    fn an_acknowledgement_is_bounded_and_a_cumulative_one_has_one_position() {
        let at = v1::AckPosition::default();
        let with = |cumulative, positions| {
            ack(v1::Acknowledge { cumulative, positions, ..v1::Acknowledge::default() })
        };
        assert!(with(true, vec![at.clone()]).is_ok());
        assert!(with(true, vec![]).is_err());
        assert!(with(true, vec![at.clone(); 2]).is_err());
        assert!(with(false, vec![at.clone(); MAX_POSITIONS]).is_ok());
        assert!(with(false, vec![at; MAX_POSITIONS + 1]).is_err());
        let bits = Bytes::from(vec![1; MAX_INDEX_BYTES + 1]);
        let large = v1::AckPosition { acked_indexes: bits, ..v1::AckPosition::default() };
        assert!(with(false, vec![large]).is_err());
    }

    #[test]
    fn an_entry_is_sent_in_two_parts_however_it_is_stored() {
        let header = BrokerHeader { timestamp_ms: 1, last_index: 2 };
        let entry = Bytes::from_static(b"entry");
        let apart = stored_entry(header, entry.clone());
        let whole = apart.clone().into_bytes().into();
        for payload in [apart, whole] {
            let delivery = Delivery {
                position: position(3, 4),
                redelivery_count: 5,
                acked_indexes: Bytes::new(),
                messages: 6,
                payload,
                permit: crate::core::budget::EntryPermit::default(),
            };
            let sent = delivered(delivery);
            assert_eq!(sent.broker_header, encode_broker_header(header));
            assert_eq!((sent.entry, sent.credit_messages), (entry.clone(), 6));
        }
    }
}
