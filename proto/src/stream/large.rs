//! How the messages of the streams become [`Chunks`]: those that may hold entries share them.
//!
//! An entry's field is written after the others of its message, whatever its number: protobuf
//! leaves the order of fields to the writer. A message without a large entry is written as ever.

use bytes::Bytes;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use super::chunks::{Chunks, IntoChunks, is_large, shared_len};
use crate::v1;
use crate::v1::consume_event::Event;
use crate::v1::produce_frame::Frame;

/// A message of known length, to be nested in another.
trait Part {
    fn len(&self) -> usize;
    /// How much of it is shared.
    fn shared(&self) -> usize;
    fn write(&self, out: &mut Chunks);
}

/// What a nested message of `len` bytes takes, with its key and length.
fn nested(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

fn begin_nested(tag: u32, len: usize, out: &mut Chunks) {
    encode_key(tag, WireType::LengthDelimited, out.buffer());
    encode_varint(len as u64, out.buffer());
}

/// A message whose field `tag` is apart from it.
struct Leaf<M> {
    rest: M,
    tag: u32,
    large: Bytes,
    len: usize,
}

impl<M: Message> Leaf<M> {
    fn new(rest: M, tag: u32, large: Bytes) -> Self {
        let field = if large.is_empty() { 0 } else { nested(tag, large.len()) };
        let len = rest.encoded_len() + field;
        Self { rest, tag, large, len }
    }
}

impl<M: Message> Part for Leaf<M> {
    fn len(&self) -> usize {
        self.len
    }

    fn shared(&self) -> usize {
        shared_len(&self.large)
    }

    fn write(&self, out: &mut Chunks) {
        self.rest.encode_raw(out.buffer());
        if !self.large.is_empty() {
            begin_nested(self.tag, self.large.len(), out);
            out.share(&self.large);
        }
    }
}

/// A message whose fields `tag` are apart from it.
struct Node<M, P> {
    rest: M,
    tag: u32,
    parts: Vec<P>,
    len: usize,
}

impl<M: Message, P: Part> Node<M, P> {
    fn new(rest: M, tag: u32, parts: Vec<P>) -> Self {
        let fields: usize = parts.iter().map(|part| nested(tag, part.len())).sum();
        let len = rest.encoded_len() + fields;
        Self { rest, tag, parts, len }
    }
}

impl<M: Message, P: Part> Part for Node<M, P> {
    fn len(&self) -> usize {
        self.len
    }

    fn shared(&self) -> usize {
        self.parts.iter().map(Part::shared).sum()
    }

    fn write(&self, out: &mut Chunks) {
        self.rest.encode_raw(out.buffer());
        for part in &self.parts {
            begin_nested(self.tag, part.len(), out);
            part.write(out);
        }
    }
}

fn chunks(message: &impl Part) -> Chunks {
    let mut out = Chunks::begin(message.len(), message.shared());
    message.write(&mut out);
    out
}

impl IntoChunks for v1::ProduceRequest {
    fn into_chunks(self) -> Chunks {
        let is_large_frame = |frame: &v1::ProduceFrame| match &frame.frame {
            Some(Frame::Send(send)) => is_large(&send.entry),
            _ => false,
        };
        if !self.frames.iter().any(is_large_frame) {
            return Chunks::of(&self);
        }
        let part = |mut frame: v1::ProduceFrame| {
            let sent = match frame.frame.take() {
                Some(Frame::Send(mut send)) => {
                    let entry = std::mem::take(&mut send.entry);
                    vec![Leaf::new(send, 3, entry)]
                }
                other => {
                    frame.frame = other;
                    Vec::new()
                }
            };
            Node::new(frame, 2, sent)
        };
        let frames = self.frames.into_iter().map(part).collect();
        chunks(&Node::new(v1::ProduceRequest::default(), 1, frames))
    }
}

impl IntoChunks for v1::ConsumeResponse {
    fn into_chunks(self) -> Chunks {
        let is_large_event = |event: &v1::ConsumeEvent| {
            let Some(Event::Delivery(delivery)) = &event.event else { return false };
            delivery.entries.iter().any(|entry| is_large(&entry.entry))
        };
        if !self.events.iter().any(is_large_event) {
            return Chunks::of(&self);
        }
        let delivered = |mut entry: v1::DeliveredEntry| {
            let large = std::mem::take(&mut entry.entry);
            Leaf::new(entry, 6, large)
        };
        let part = |mut event: v1::ConsumeEvent| {
            let deliveries = match event.event.take() {
                Some(Event::Delivery(mut delivery)) => {
                    let entries = std::mem::take(&mut delivery.entries);
                    let entries = entries.into_iter().map(delivered).collect();
                    vec![Node::new(delivery, 2, entries)]
                }
                other => {
                    event.event = other;
                    Vec::new()
                }
            };
            Node::new(event, 2, deliveries)
        };
        let events = self.events.into_iter().map(part).collect();
        chunks(&Node::new(v1::ConsumeResponse::default(), 1, events))
    }
}

impl IntoChunks for v1::ReadAnswers {
    fn into_chunks(mut self) -> Chunks {
        let has_large =
            |answer: &v1::ReadAnswer| answer.entries.iter().any(|entry| is_large(&entry.payload));
        if !self.answers.iter().any(has_large) {
            return Chunks::of(&self);
        }
        let stored = |mut entry: v1::StoredEntry| {
            let payload = std::mem::take(&mut entry.payload);
            Leaf::new(entry, 3, payload)
        };
        let part = |mut answer: v1::ReadAnswer| {
            let entries = std::mem::take(&mut answer.entries).into_iter().map(stored).collect();
            Node::new(answer, 3, entries)
        };
        let answers = std::mem::take(&mut self.answers).into_iter().map(part).collect();
        chunks(&Node::new(self, 1, answers))
    }
}

macro_rules! small {
    ($($message:ty),*) => {
        $(impl IntoChunks for $message {
            fn into_chunks(self) -> Chunks {
                Chunks::of(&self)
            }
        })*
    };
}

small!(v1::ProduceResponse, v1::ConsumeRequest, v1::ReadBatch, v1::AppendAnswers);

#[cfg(test)]
mod tests {
    use bytes::Buf;
    use proptest::prelude::*;

    use super::*;
    use crate::stream::Pieces;

    fn bytes() -> impl Strategy<Value = Bytes> {
        prop_oneof![Just(0usize), 1..30usize, 8_190..8_195usize, Just(70_000)]
            .prop_map(|len| vec![5; len].into())
    }

    /// It reads as it was, and its large parts were not copied.
    fn travels<M>(message: &M, large: &[Bytes])
    where
        M: Message + Default + IntoChunks + Clone + PartialEq + std::fmt::Debug,
    {
        let sent = message.clone().into_chunks().finish();
        for part in large.iter().filter(|part| is_large(part)) {
            assert!(sent.iter().any(|chunk| chunk.as_ptr() == part.as_ptr()));
        }
        let mut pieces = Pieces::default();
        sent.into_iter().for_each(|chunk| pieces.push(chunk));
        assert_eq!(pieces.get_u8(), 0);
        assert_eq!(pieces.get_u32() as usize, pieces.remaining());
        assert_eq!(&M::decode(&mut pieces).expect("a message"), message);
    }

    proptest! {
        #[test]
        fn messages_with_entries_read_as_they_were(
            entries in proptest::collection::vec(bytes(), 0..5),
            number in any::<u64>(),
        ) {
            let send = |entry: &Bytes| {
                let entry = entry.clone();
                let send = v1::SendEntry { producer_id: number, sequence_id: 1, entry };
                v1::ProduceFrame { frame: Some(Frame::Send(send)) }
            };
            let mut frames: Vec<_> = entries.iter().map(send).collect();
            let close = v1::CloseProducer { producer_id: number };
            frames.insert(0, v1::ProduceFrame { frame: Some(Frame::Close(close)) });
            frames.push(v1::ProduceFrame { frame: None });
            travels(&v1::ProduceRequest { frames }, &entries);

            let deliver = |entry: &Bytes| v1::DeliveredEntry {
                ledger_id: number,
                broker_header: Bytes::from_static(b"header"),
                credit_messages: 3,
                entry: entry.clone(),
                ..v1::DeliveredEntry::default()
            };
            let all = v1::Delivery {
                consumer_id: number,
                entries: entries.iter().map(deliver).collect(),
            };
            let change = v1::ActiveChange { consumer_id: 1, active: true };
            let events = [Event::Delivery(all), Event::ActiveChange(change)];
            let mut events: Vec<_> =
                events.into_iter().map(|event| v1::ConsumeEvent { event: Some(event) }).collect();
            events.push(v1::ConsumeEvent { event: None });
            travels(&v1::ConsumeResponse { events }, &entries);

            let stored = |payload: &Bytes| {
                v1::StoredEntry { entry_id: number, lac: -1, payload: payload.clone() }
            };
            let answer = v1::ReadAnswer {
                request_id: 7,
                status: 1,
                entries: entries.iter().map(stored).collect(),
            };
            let fence = v1::FenceAnswer { status: 1, lac: 3, request_id: number };
            let answers = vec![answer.clone(), v1::ReadAnswer::default(), answer];
            travels(&v1::ReadAnswers { answers, fences: vec![fence] }, &entries);
        }
    }
}
