//! Messages as the application sees them: the one it sends, the receipt it gets, the one it
//! receives, and the id that ties them together. Plain data.

use std::cmp::Ordering;
use std::fmt;

use bytes::Bytes;
use geminga_proto::id::{MessageIndex, Position};

/// A message to send.
///
/// ```
/// use geminga_client::Message;
/// let message = Message::new("temperature=21").key("sensor-7").property("unit", "celsius");
/// assert_eq!(message.key.as_deref(), Some("sensor-7"));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The bytes.
    pub payload: Bytes,
    /// Messages with one key belong together.
    pub key: Option<String>,
    /// Goes before the key where order is decided.
    pub ordering_key: Option<Bytes>,
    /// Names and values, for the application.
    pub properties: Vec<(String, String)>,
    /// When the event happened, in ms since the Unix epoch.
    pub event_time_ms: Option<u64>,
}

impl Message {
    /// A message with nothing but its bytes.
    #[must_use]
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), ..Self::default() }
    }

    /// Sets the key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the ordering key.
    #[must_use]
    pub fn ordering_key(mut self, key: impl Into<Bytes>) -> Self {
        self.ordering_key = Some(key.into());
        self
    }

    /// Adds a property.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }

    /// Sets the event time, in ms since the Unix epoch.
    #[must_use]
    pub fn event_time_ms(mut self, event_time_ms: u64) -> Self {
        self.event_time_ms = Some(event_time_ms);
        self
    }

    /// Bytes that it takes in an entry at most, with everything that describes it.
    pub(crate) fn cost_bytes(&self) -> usize {
        // Tags, lengths, sequence id and event time of one message's metadata.
        const FIXED: usize = 48;
        // A property's two tags and three lengths.
        const PROPERTY: usize = 18;
        let properties: usize =
            self.properties.iter().map(|(name, value)| PROPERTY + name.len() + value.len()).sum();
        let keys = self.key.as_ref().map_or(0, |key| key.len() + 6)
            + self.ordering_key.as_ref().map_or(0, |key| key.len() + 6);
        self.payload.len() + FIXED + keys + properties
    }
}

impl From<&'static str> for Message {
    fn from(payload: &'static str) -> Self {
        Self::new(payload)
    }
}

impl From<String> for Message {
    fn from(payload: String) -> Self {
        Self::new(payload)
    }
}

impl From<Vec<u8>> for Message {
    fn from(payload: Vec<u8>) -> Self {
        Self::new(payload)
    }
}

impl From<Bytes> for Message {
    fn from(payload: Bytes) -> Self {
        Self::new(payload)
    }
}

/// Where a message is: its entry, and its place in it if the entry is a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId {
    /// The entry.
    pub position: Position,
    /// Place in the batch, from 0; `None` if the entry is a single message.
    pub batch_index: Option<u32>,
    /// Messages in the entry.
    pub batch_size: u32,
}

impl MessageId {
    /// The whole entry, as if it were a single message.
    #[must_use]
    pub const fn entry(position: Position) -> Self {
        Self { position, batch_index: None, batch_size: 1 }
    }
}

impl MessageId {
    /// What orders ids. Up to a whole entry is up to its last message and further than up to any
    /// one of them that is named.
    fn rank(&self) -> (Position, u64, u32) {
        let index = self.batch_index.map_or(u64::MAX, u64::from);
        (self.position, index, self.batch_size)
    }
}

/// Ordered as the topic is; a whole entry comes after each of its messages.
impl Ord for MessageId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for MessageId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.batch_index {
            Some(index) => write!(out, "{}:{index}", self.position),
            None => write!(out, "{}", self.position),
        }
    }
}

/// A quorum has the message on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendReceipt {
    /// Where it is.
    pub id: MessageId,
    /// How many messages precede it in its topic.
    pub index: MessageIndex,
    /// The number that the producer gave it.
    pub sequence_id: u64,
}

/// A message that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceivedMessage {
    /// What to acknowledge.
    pub id: MessageId,
    /// The bytes.
    pub payload: Bytes,
    /// The key, if it has one. A key that was not text when it was sent (Pulsar's clients can
    /// send such) is given in base64.
    pub key: Option<String>,
    /// The ordering key, if it has one.
    pub ordering_key: Option<Bytes>,
    /// Names and values that the sender gave it.
    pub properties: Vec<(String, String)>,
    /// When the event happened, in ms since the Unix epoch, if the sender said so.
    pub event_time_ms: Option<u64>,
    /// When the producer sent the entry, in ms since the Unix epoch, by the producer's clock.
    pub publish_time_ms: u64,
    /// When the broker took the entry, in ms since the Unix epoch, by the broker's clock.
    pub broker_time_ms: u64,
    /// How many messages precede it in its topic.
    pub index: MessageIndex,
    /// The producer that sent it. Shared by the messages of an entry.
    pub producer_name: std::sync::Arc<str>,
    /// The number that its producer gave it.
    pub sequence_id: u64,
    /// How often the entry was handed to a consumer before. Not 0: it may have been processed.
    pub redelivery_count: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use geminga_proto::id::{EntryId, LedgerId};

    #[test]
    fn a_whole_entry_comes_after_its_messages_and_before_the_next_entry() {
        let at = |entry| Position::new(LedgerId(1), EntryId(entry));
        let part = |entry, index| MessageId {
            position: at(entry),
            batch_index: Some(index),
            batch_size: u32::MAX,
        };
        let order =
            [part(1, 0), part(1, 2), part(1, u32::MAX), MessageId::entry(at(1)), part(2, 0)];
        assert!(order.is_sorted_by(|one, next| one < next), "{order:?}");
        assert_eq!(MessageId::entry(at(1)).cmp(&MessageId::entry(at(1))), Ordering::Equal);
    }
}
