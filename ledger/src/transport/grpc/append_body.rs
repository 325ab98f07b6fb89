//! The request side of an append stream: batches of adds as a gRPC body, without copying what is
//! large.
//!
//! An entry goes to as many bookies as its write quorum. Through a message type it would be copied
//! twice for each: into one contiguous payload, and into the encoder's buffer. Here the fields are
//! written by hand, and an entry's bytes go to the connection as they are, shared by all bookies;
//! only small ones are copied, since a frame of their own would cost more.
//!
//! Invariant: what is sent is exactly the encoding of `v1::AppendBatch` (compared by a test).

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use geminga_proto::payload::Payload;
use geminga_proto::storage::AppendRequest;
use http_body::{Body, Frame};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use prost::encoding::{int64, uint32, uint64};
use tokio::sync::mpsc;

use crate::transport::grpc::wire;

/// Parts of an entry below this size are copied.
const COPIED_BELOW: usize = 8 * 1024;
/// gRPC's frame around a message: not compressed, and the message's length.
const FRAME_BYTES: usize = 5;
/// Field numbers of `bookie.proto`.
const BATCH_REQUESTS: u32 = 1;
const PAYLOAD: u32 = 7;

/// Adds with the numbers that their answers name.
pub(super) type Batch = Vec<(u64, AppendRequest)>;

/// The body; ends when the sender of batches is gone.
#[derive(Debug)]
pub(super) struct AppendBody {
    batches: mpsc::Receiver<Batch>,
    /// Of the batch that is being sent.
    chunks: VecDeque<Bytes>,
}

impl AppendBody {
    pub(super) fn new(batches: mpsc::Receiver<Batch>) -> Self {
        Self { batches, chunks: VecDeque::new() }
    }
}

impl Body for AppendBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        loop {
            if let Some(chunk) = body.chunks.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            match ready!(body.batches.poll_recv(context)) {
                Some(batch) => encode(&batch, &mut body.chunks),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// The fields of an add but for its payload, as they are on the wire.
struct Fields {
    request_id: u64,
    ledger_id: u64,
    entry_id: u64,
    token: u64,
    lac: i64,
    flags: u32,
}

impl Fields {
    fn of(request_id: u64, request: &AppendRequest) -> Self {
        Self {
            request_id,
            ledger_id: request.ledger.0,
            entry_id: request.entry.0,
            token: request.token.0,
            lac: request.lac.to_wire(),
            flags: wire::flags(request.kind),
        }
    }

    /// Fields that are 0 are left out.
    fn len(&self) -> usize {
        let unsigned = [self.request_id, self.ledger_id, self.entry_id, self.token];
        let unsigned: usize = unsigned
            .into_iter()
            .zip(1..)
            .filter(|(value, _)| *value != 0)
            .map(|(value, tag)| uint64::encoded_len(tag, &value))
            .sum();
        let lac = if self.lac == 0 { 0 } else { int64::encoded_len(5, &self.lac) };
        let flags = if self.flags == 0 { 0 } else { uint32::encoded_len(6, &self.flags) };
        unsigned + lac + flags
    }

    fn encode(&self, out: &mut BytesMut) {
        let unsigned = [self.request_id, self.ledger_id, self.entry_id, self.token];
        for (value, tag) in unsigned.iter().zip(1..) {
            if *value != 0 {
                uint64::encode(tag, value, out);
            }
        }
        if self.lac != 0 {
            int64::encode(5, &self.lac, out);
        }
        if self.flags != 0 {
            uint32::encode(6, &self.flags, out);
        }
    }
}

fn payload_len(payload: &Payload) -> usize {
    match payload.len() {
        0 => 0,
        len => key_len(PAYLOAD) + encoded_len_varint(len as u64) + len,
    }
}

/// Puts a batch as one gRPC message into `out`.
fn encode(batch: &Batch, out: &mut VecDeque<Bytes>) {
    let mut message = 0;
    let mut copied = FRAME_BYTES;
    let mut sizes = Vec::with_capacity(batch.len());
    for (request_id, request) in batch {
        let fields = Fields::of(*request_id, request);
        let size = fields.len() + payload_len(&request.payload);
        let head = key_len(BATCH_REQUESTS) + encoded_len_varint(size as u64);
        message += head + size;
        let shared: usize =
            [&request.payload.head, &request.payload.body].map(shared_len).into_iter().sum();
        copied += head + size - shared;
        sizes.push((fields, size));
    }
    let mut buffer = BytesMut::with_capacity(copied);
    buffer.put_u8(0);
    // A batch is bounded far below this; were it not, the peer would refuse what it can't decode.
    buffer.put_u32(u32::try_from(message).unwrap_or(u32::MAX));
    for ((_, request), (fields, size)) in batch.iter().zip(sizes) {
        encode_key(BATCH_REQUESTS, WireType::LengthDelimited, &mut buffer);
        encode_varint(size as u64, &mut buffer);
        fields.encode(&mut buffer);
        let payload = &request.payload;
        if !payload.is_empty() {
            encode_key(PAYLOAD, WireType::LengthDelimited, &mut buffer);
            encode_varint(payload.len() as u64, &mut buffer);
            for part in [&payload.head, &payload.body] {
                if shared_len(part) > 0 {
                    out.push_back(buffer.split().freeze());
                    out.push_back(part.clone());
                } else {
                    buffer.extend_from_slice(part);
                }
            }
        }
    }
    if !buffer.is_empty() {
        out.push_back(buffer.freeze());
    }
}

/// How much of a part is sent without copying it.
fn shared_len(part: &Bytes) -> usize {
    if part.len() < COPIED_BELOW { 0 } else { part.len() }
}

#[cfg(test)]
mod tests {
    use geminga_proto::id::{EntryId, Lac, LedgerId, LedgerToken};
    use geminga_proto::storage::AddKind;
    use geminga_proto::v1;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn request() -> impl Strategy<Value = (u64, AppendRequest)> {
        let kinds = [AddKind::Ordinary, AddKind::Recovery, AddKind::StateLog];
        let part = prop_oneof![Just(0usize), 1..40usize, COPIED_BELOW - 2..COPIED_BELOW + 3];
        let ids = (any::<u64>(), 0..4u64, any::<u64>(), any::<u64>());
        let rest = (proptest::option::of(0..u64::MAX >> 1), 0..3usize, part.clone(), part);
        (ids, rest).prop_map(move |(ids, (lac, kind, head, body))| {
            let (request_id, ledger, entry, token) = ids;
            let payload = Payload::new(vec![1; head].into(), vec![2; body].into());
            let request = AppendRequest {
                ledger: LedgerId(ledger),
                entry: EntryId(entry),
                token: LedgerToken(token),
                lac: Lac(lac.map(EntryId)),
                kind: kinds[kind],
                payload,
            };
            (request_id, request)
        })
    }

    proptest! {
        #[test]
        fn what_is_sent_is_the_message_and_large_parts_are_not_copied(
            batch in proptest::collection::vec(request(), 0..6),
        ) {
            let requests = batch.iter().cloned();
            let requests = requests.map(|(id, request)| wire::append(id, request)).collect();
            let expected = v1::AppendBatch { requests }.encode_to_vec();
            let mut chunks = VecDeque::new();
            encode(&batch, &mut chunks);
            let sent: Vec<u8> = chunks.iter().flatten().copied().collect();
            prop_assert_eq!(sent[0], 0);
            prop_assert_eq!(&sent[1..5], &(expected.len() as u32).to_be_bytes()[..]);
            prop_assert_eq!(&sent[5..], &expected[..]);
            let parts = batch.iter().flat_map(|(_, request)| {
                [&request.payload.head, &request.payload.body]
            });
            for part in parts.filter(|part| part.len() >= COPIED_BELOW) {
                prop_assert!(chunks.iter().any(|chunk| chunk.as_ptr() == part.as_ptr()));
            }
        }
    }
}
