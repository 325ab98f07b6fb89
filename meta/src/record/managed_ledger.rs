//! A managed ledger: the ordered list of the ledgers behind one shard of a topic.
//!
//! The head holds the newest ledgers; older ones are moved, unchanged, into chunks, so that the
//! list has no length limit though a record has. Every transaction that changes a chunk also
//! changes the head, so a compare on the head's revision guards the whole list.

use geminga_proto::id::{Epoch, LedgerId, MessageIndex};
use geminga_proto::topic_name::TopicName;
use geminga_proto::v1::record as pb;
use serde_json::{Value, json};

use super::{Record, in_range, parse};

/// What is known of a ledger once it is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedLedger {
    /// Its entries; 0 if it is empty.
    pub entries: u64,
    /// Bytes of its entries.
    pub bytes: u64,
    /// Index of its first message, or what it would have been.
    pub first_index: MessageIndex,
    /// Messages in its entries.
    pub messages: u64,
    /// When it was closed.
    pub closed_ms: u64,
}

/// A ledger of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerLink {
    /// The ledger.
    pub ledger: LedgerId,
    /// `None` until it is closed.
    pub closed: Option<ClosedLedger>,
}

/// Where a run of older ledgers is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkLink {
    /// Number of the chunk, in its key; rises along the list, never reused.
    pub number: u64,
    /// Its first ledger.
    pub first_ledger: LedgerId,
    /// Its last ledger.
    pub last_ledger: LedgerId,
}

/// The head; below `keys::managed_ledger`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedLedgerRecord {
    /// The topic that it belongs to: the way back from a ledger to its topic.
    pub topic: TopicName,
    /// Rises with each load of the topic; a writer that meets a higher one gives up.
    pub epoch: Epoch,
    /// Chunks with the older ledgers, oldest first.
    pub chunks: Vec<ChunkLink>,
    /// The newest ledgers, oldest first, ids rising. At most the last two may be open: rolling
    /// creates the next one before it closes the one before.
    pub ledgers: Vec<LedgerLink>,
    /// Index that follows the last message of the last closed ledger. Survives trimming.
    pub next_index: MessageIndex,
    /// Broker timestamp of the last message of the last closed ledger; never goes back.
    pub last_timestamp_ms: u64,
    /// No message is ever added again.
    pub terminated: bool,
    /// False until the topic's first subscription: default retention applies meanwhile.
    pub had_subscription: bool,
}

impl ManagedLedgerRecord {
    /// Most ledgers in the head or in one chunk.
    pub const MAX_LINKS: usize = 8_192;
    /// Most chunks.
    pub const MAX_CHUNKS: usize = 8_192;

    /// A list without ledgers.
    #[must_use]
    pub fn new(topic: TopicName) -> Self {
        Self {
            topic,
            epoch: Epoch(0),
            chunks: Vec::new(),
            ledgers: Vec::new(),
            next_index: MessageIndex(0),
            last_timestamp_ms: 0,
            terminated: false,
            had_subscription: false,
        }
    }

    fn check_chunks(&self) -> Result<(), String> {
        if self.chunks.len() > Self::MAX_CHUNKS {
            return Err(format!("more than {} chunks", Self::MAX_CHUNKS));
        }
        let ordered = |left: &ChunkLink, right: &ChunkLink| {
            left.number < right.number && left.last_ledger < right.first_ledger
        };
        if self.chunks.iter().any(|chunk| chunk.last_ledger < chunk.first_ledger)
            || !self.chunks.is_sorted_by(ordered)
        {
            return Err("the chunks are out of order".to_owned());
        }
        if let (Some(chunk), Some(link)) = (self.chunks.last(), self.ledgers.first())
            && link.ledger <= chunk.last_ledger
        {
            return Err(format!("ledger {} is before the last chunk's end", link.ledger));
        }
        Ok(())
    }
}

fn check_links(links: &[LedgerLink]) -> Result<(), String> {
    if links.len() > ManagedLedgerRecord::MAX_LINKS {
        return Err(format!("more than {} ledgers", ManagedLedgerRecord::MAX_LINKS));
    }
    if !links.is_sorted_by(|left, right| left.ledger < right.ledger) {
        return Err("the ledgers' ids do not rise".to_owned());
    }
    let mut next_index = 0;
    for link in links {
        in_range("ledger_id", link.ledger.0)?;
        if let Some(closed) = link.closed {
            in_range("bytes", closed.bytes)?;
            in_range("entries", closed.entries)?;
            if closed.first_index.0 < next_index {
                return Err(format!("the message index goes back in ledger {}", link.ledger));
            }
            // An entry holds at least one message.
            if closed.messages < closed.entries {
                return Err(format!("ledger {} has fewer messages than entries", link.ledger));
            }
            next_index =
                closed.first_index.0.checked_add(closed.messages).ok_or_else(|| {
                    format!("the message index overflows in ledger {}", link.ledger)
                })?;
            in_range("first_index", next_index)?;
        }
    }
    Ok(())
}

fn links_to_message(links: &[LedgerLink]) -> Vec<pb::LedgerLink> {
    let closed = |closed: ClosedLedger| pb::ClosedLedger {
        entries: closed.entries,
        bytes: closed.bytes,
        first_index: closed.first_index.0,
        messages: closed.messages,
        closed_ms: closed.closed_ms,
    };
    let link = |link: &LedgerLink| pb::LedgerLink {
        ledger_id: link.ledger.0,
        closed: link.closed.map(closed),
    };
    links.iter().map(link).collect()
}

fn links_from_message(links: &[pb::LedgerLink]) -> Vec<LedgerLink> {
    let closed = |closed: &pb::ClosedLedger| ClosedLedger {
        entries: closed.entries,
        bytes: closed.bytes,
        first_index: MessageIndex(closed.first_index),
        messages: closed.messages,
        closed_ms: closed.closed_ms,
    };
    let link = |link: &pb::LedgerLink| LedgerLink {
        ledger: LedgerId(link.ledger_id),
        closed: link.closed.as_ref().map(closed),
    };
    links.iter().map(link).collect()
}

fn links_to_json(links: &[LedgerLink]) -> Value {
    let closed = |closed: ClosedLedger| {
        json!({
            "entries": closed.entries,
            "bytes": closed.bytes,
            "first_index": closed.first_index.0,
            "messages": closed.messages,
            "closed_ms": closed.closed_ms,
        })
    };
    let link = |link: &LedgerLink| {
        let closed = link.closed.map(closed);
        json!({ "ledger_id": link.ledger.0, "closed": closed })
    };
    links.iter().map(link).collect()
}

impl Record for ManagedLedgerRecord {
    const KIND: &'static str = "managed-ledger";
    const VERSION: u32 = 1;
    type Message = pb::ManagedLedgerRecord;

    fn check(&self) -> Result<(), String> {
        in_range("epoch", self.epoch.0)?;
        in_range("next_index", self.next_index.0)?;
        check_links(&self.ledgers)?;
        let older = self.ledgers.len().saturating_sub(2);
        if self.ledgers.iter().take(older).any(|link| link.closed.is_none()) {
            return Err("a ledger before the last two is open".to_owned());
        }
        let closed = self.ledgers.iter().filter_map(|link| link.closed);
        if let Some(end) = closed.map(|closed| closed.first_index.0 + closed.messages).max()
            && self.next_index.0 < end
        {
            return Err("next_index is below the last closed ledger's end".to_owned());
        }
        self.check_chunks()
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::ManagedLedgerRecord {
        let chunk = |chunk: &ChunkLink| pb::ChunkLink {
            number: chunk.number,
            first_ledger: chunk.first_ledger.0,
            last_ledger: chunk.last_ledger.0,
        };
        pb::ManagedLedgerRecord {
            stamp: Some(stamp),
            epoch: self.epoch.0,
            ledgers: links_to_message(&self.ledgers),
            next_index: self.next_index.0,
            last_timestamp_ms: self.last_timestamp_ms,
            terminated: self.terminated,
            chunks: self.chunks.iter().map(chunk).collect(),
            had_subscription: self.had_subscription,
            topic: self.topic.path(),
        }
    }

    fn from_message(message: pb::ManagedLedgerRecord) -> Result<Self, String> {
        let chunk = |chunk: &pb::ChunkLink| ChunkLink {
            number: chunk.number,
            first_ledger: LedgerId(chunk.first_ledger),
            last_ledger: LedgerId(chunk.last_ledger),
        };
        Ok(Self {
            topic: parse("topic", &message.topic)?,
            epoch: Epoch(message.epoch),
            chunks: message.chunks.iter().map(chunk).collect(),
            ledgers: links_from_message(&message.ledgers),
            next_index: MessageIndex(message.next_index),
            last_timestamp_ms: message.last_timestamp_ms,
            terminated: message.terminated,
            had_subscription: message.had_subscription,
        })
    }

    fn to_json(&self) -> Value {
        let chunk = |chunk: &ChunkLink| {
            json!({
                "number": chunk.number,
                "first_ledger": chunk.first_ledger.0,
                "last_ledger": chunk.last_ledger.0,
            })
        };
        json!({
            "topic": self.topic.to_string(),
            "epoch": self.epoch.0,
            "chunks": self.chunks.iter().map(chunk).collect::<Vec<_>>(),
            "ledgers": links_to_json(&self.ledgers),
            "next_index": self.next_index.0,
            "last_timestamp_ms": self.last_timestamp_ms,
            "terminated": self.terminated,
            "had_subscription": self.had_subscription,
        })
    }
}

/// A run of older ledgers, all closed; below `keys::managed_ledger_chunk`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManagedLedgerChunk {
    /// Oldest first, ids rising; not empty.
    pub ledgers: Vec<LedgerLink>,
}

impl Record for ManagedLedgerChunk {
    const KIND: &'static str = "managed-ledger-chunk";
    const VERSION: u32 = 1;
    type Message = pb::ManagedLedgerChunk;

    fn check(&self) -> Result<(), String> {
        if self.ledgers.is_empty() {
            return Err("it lists no ledger".to_owned());
        }
        if self.ledgers.iter().any(|link| link.closed.is_none()) {
            return Err("it lists an open ledger".to_owned());
        }
        check_links(&self.ledgers)
    }

    fn to_message(&self, stamp: pb::Stamp) -> pb::ManagedLedgerChunk {
        pb::ManagedLedgerChunk { stamp: Some(stamp), ledgers: links_to_message(&self.ledgers) }
    }

    fn from_message(message: pb::ManagedLedgerChunk) -> Result<Self, String> {
        Ok(Self { ledgers: links_from_message(&message.ledgers) })
    }

    fn to_json(&self) -> Value {
        json!({ "ledgers": links_to_json(&self.ledgers) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ledger: u64, first_index: u64, messages: u64) -> LedgerLink {
        let closed = ClosedLedger {
            entries: messages.min(1),
            bytes: 10,
            first_index: MessageIndex(first_index),
            messages,
            closed_ms: 5,
        };
        LedgerLink { ledger: LedgerId(ledger), closed: Some(closed) }
    }

    fn open(ledger: u64) -> LedgerLink {
        LedgerLink { ledger: LedgerId(ledger), closed: None }
    }

    fn head(ledgers: Vec<LedgerLink>, next_index: u64) -> ManagedLedgerRecord {
        let topic = "public/default/orders".parse().expect("valid");
        let next_index = MessageIndex(next_index);
        ManagedLedgerRecord { ledgers, next_index, ..ManagedLedgerRecord::new(topic) }
    }

    fn chunk(number: u64, first: u64, last: u64) -> ChunkLink {
        ChunkLink { number, first_ledger: LedgerId(first), last_ledger: LedgerId(last) }
    }

    #[test]
    fn while_rolling_two_ledgers_are_open_but_never_three() {
        assert_eq!(head(vec![], 7).validate(), Ok(()));
        assert_eq!(head(vec![link(1, 0, 5), open(2), open(3)], 5).validate(), Ok(()));
        assert!(head(vec![open(1), open(2), open(3)], 0).validate().is_err());
    }

    #[test]
    fn lists_whose_order_or_indexes_contradict_each_other_are_refused() {
        assert!(head(vec![link(2, 0, 5), link(1, 5, 5)], 10).validate().is_err());
        assert!(head(vec![link(1, 0, 5), link(1, 5, 5)], 10).validate().is_err());
        assert!(head(vec![link(1, 0, 5), link(2, 4, 5)], 10).validate().is_err());
        assert!(head(vec![link(1, 0, 5)], 4).validate().is_err());
        assert!(head(vec![link(1, u64::MAX, 5)], 4).validate().is_err());
        // A trimmed list starts above 0, and its end is remembered.
        assert_eq!(head(vec![link(9, 100, 5)], 105).validate(), Ok(()));
    }

    #[test]
    fn chunks_lie_before_the_head_and_in_order() {
        let with = |chunks| ManagedLedgerRecord { chunks, ..head(vec![open(9)], 0) }.validate();
        assert_eq!(with(vec![chunk(0, 1, 3), chunk(1, 4, 8)]), Ok(()));
        assert!(with(vec![chunk(0, 1, 3), chunk(0, 4, 8)]).is_err());
        assert!(with(vec![chunk(0, 1, 4), chunk(1, 4, 8)]).is_err());
        assert!(with(vec![chunk(0, 3, 1)]).is_err());
        assert!(with(vec![chunk(0, 1, 9)]).is_err());
    }

    #[test]
    fn a_chunk_lists_closed_ledgers_only() {
        let check = |ledgers| ManagedLedgerChunk { ledgers }.validate();
        assert_eq!(check(vec![link(1, 0, 5), link(2, 5, 0)]), Ok(()));
        assert!(check(vec![]).is_err());
        assert!(check(vec![link(1, 0, 5), open(2)]).is_err());
    }
}
