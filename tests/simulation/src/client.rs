//! Clients: they publish, consume and acknowledge through lines to brokers, begin anew when a line
//! breaks, and write down what they heard.

mod consumer;
mod producer;

pub(crate) use consumer::{Attached, Consumer};
pub(crate) use producer::Producer;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use geminga_broker::core::api::Lookup;
use geminga_proto::entry::{decode_entry, encode_entry};
use geminga_proto::pulsar::proto::MessageMetadata;
use geminga_proto::topic_name::TopicName;

use crate::broker_host;
use crate::dice::Dice;
use crate::history::Batch;
use crate::network::{HostId, Place};
use crate::shared::Shared;
use crate::wire::{Event, Frame, Link};

/// Where all clients are.
pub(crate) const CLIENTS: HostId = HostId(1);
/// How long a client waits for an answer before it tries elsewhere.
pub(crate) const PATIENCE: Duration = Duration::from_secs(4);

/// Finds the owner of a topic: asks any broker, and then the one that was named. `None`: not now.
pub(crate) async fn find(
    shared: &Arc<Shared>,
    client: Place,
    brokers: &[HostId],
    dice: &Dice,
    topic: &TopicName,
) -> Option<Link> {
    let mut host = brokers[dice.index(brokers.len())];
    for _ in 0..3 {
        let mut link = Link::open(shared, client, host);
        link.send(Frame::Lookup(topic.clone()));
        match link.next(PATIENCE / 4).await {
            Event::Looked(Ok(Lookup::Here)) => return Some(link),
            Event::Looked(Ok(Lookup::Elsewhere { broker_id, .. })) => {
                let named = |host: &&HostId| broker_host::name(**host) == broker_id;
                host = *brokers.iter().find(named)?;
            }
            _ => return None,
        }
    }
    None
}

/// A batch as it is sent: who it is, and something to fill it up with.
pub(crate) fn entry(topic: usize, batch: Batch, messages: u32, filling: usize) -> Bytes {
    let metadata = MessageMetadata {
        producer_name: format!("p{}", batch.producer),
        sequence_id: batch.number,
        num_messages_in_batch: (messages != 1).then(|| i32::try_from(messages).unwrap_or(1)),
        ..MessageMetadata::default()
    };
    let mut payload = format!("{topic} {} {} {messages} ", batch.producer, batch.number);
    payload.extend(std::iter::repeat_n('.', filling));
    encode_entry(&metadata, payload.as_bytes())
}

/// The topic, the batch, and how many messages it holds, as its bytes say.
pub(crate) fn content(entry: &Bytes) -> Option<(usize, Batch, u32)> {
    let entry = decode_entry(entry).ok()?;
    let text = std::str::from_utf8(&entry.payload).ok()?;
    let mut words = text.split(' ');
    let topic = words.next()?.parse().ok()?;
    let batch =
        Batch { producer: words.next()?.parse().ok()?, number: words.next()?.parse().ok()? };
    Some((topic, batch, words.next()?.parse().ok()?))
}
