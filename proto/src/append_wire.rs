//! Batches of adds on the wire, both ways, without copying what is large.
//!
//! An entry goes to as many bookies as its write quorum. Through the message type it would be
//! copied for each of them on both sides. Here that type has the other fields only; an entry's
//! bytes are shared by all that they are sent to, and are taken as they arrive.
//!
//! Invariant: what is sent is exactly the encoding of `v1::AppendBatch`, and whatever that type
//! accepts is read as it would (compared by tests).

use bytes::{Buf, Bytes};
use prost::Message;
use prost::encoding::{
    DecodeContext, WireType, check_wire_type, decode_key, decode_varint, encode_key, encode_varint,
    encoded_len_varint, key_len, skip_field,
};

use crate::id::{EntryId, Lac, LedgerId, LedgerToken};
use crate::payload::Payload;
use crate::storage::{AddKind, AppendRequest, BookieError};
use crate::stream::{Chunks, IntoChunks, Malformed, shared_len};
use crate::v1;

/// Field numbers of `bookie.proto`.
const BATCH_REQUESTS: u32 = 1;
const PAYLOAD: u32 = 7;

/// Adds in one batch; no writer sends nearly as many, and a small one takes more memory than bytes.
const MAX_ADDS: usize = 64 * 1024;

const FLAG_RECOVERY: u32 = 1;
const FLAG_STATE_LOG: u32 = 2;

/// How the kind of an add is told.
fn flags(kind: AddKind) -> u32 {
    match kind {
        AddKind::Ordinary => 0,
        AddKind::Recovery => FLAG_RECOVERY,
        AddKind::StateLog => FLAG_STATE_LOG,
    }
}

fn kind(flags: u32) -> Result<AddKind, BookieError> {
    match flags {
        0 => Ok(AddKind::Ordinary),
        FLAG_RECOVERY => Ok(AddKind::Recovery),
        FLAG_STATE_LOG => Ok(AddKind::StateLog),
        // A state log's entry that a recovery writes back.
        flags if flags == FLAG_RECOVERY | FLAG_STATE_LOG => Ok(AddKind::Recovery),
        _ => Err(BookieError::Invalid),
    }
}

/// Adds with the numbers that their answers name, to send.
#[derive(Debug, Default)]
pub struct AppendBatch(pub Vec<(u64, AppendRequest)>);

/// An add as its message, but for the payload.
fn fields(request_id: u64, request: &AppendRequest) -> v1::AppendRequest {
    v1::AppendRequest {
        request_id,
        ledger_id: request.ledger.0,
        entry_id: request.entry.0,
        token: request.token.0,
        lac: request.lac.to_wire(),
        flags: flags(request.kind),
        payload: Bytes::new(),
    }
}

fn payload_len(payload: &Payload) -> usize {
    match payload.len() {
        0 => 0,
        len => key_len(PAYLOAD) + encoded_len_varint(len as u64) + len,
    }
}

impl IntoChunks for AppendBatch {
    fn into_chunks(self) -> Chunks {
        let (mut len, mut shared) = (0, 0);
        let mut sizes = Vec::with_capacity(self.0.len());
        for (request_id, request) in &self.0 {
            let fields = fields(*request_id, request);
            let size = fields.encoded_len() + payload_len(&request.payload);
            len += key_len(BATCH_REQUESTS) + encoded_len_varint(size as u64) + size;
            shared += shared_len(&request.payload.head) + shared_len(&request.payload.body);
            sizes.push((fields, size));
        }
        let mut out = Chunks::begin(len, shared);
        for ((_, request), (fields, size)) in self.0.iter().zip(sizes) {
            encode_key(BATCH_REQUESTS, WireType::LengthDelimited, out.buffer());
            encode_varint(size as u64, out.buffer());
            // The payload has the highest number and so comes last.
            fields.encode_raw(out.buffer());
            let payload = &request.payload;
            if !payload.is_empty() {
                encode_key(PAYLOAD, WireType::LengthDelimited, out.buffer());
                encode_varint(payload.len() as u64, out.buffer());
                out.share(&payload.head);
                out.share(&payload.body);
            }
        }
        out
    }
}

/// Adds as they were received, with the numbers that their answers name. One that makes no sense
/// is an error of its own.
pub type ReceivedAppends = Vec<(u64, Result<AppendRequest, BookieError>)>;

fn received(
    add: &v1::AppendRequest,
    payload: Payload,
) -> (u64, Result<AppendRequest, BookieError>) {
    let request = kind(add.flags).map(|kind| AppendRequest {
        ledger: LedgerId(add.ledger_id),
        entry: EntryId(add.entry_id),
        token: LedgerToken(add.token),
        lac: Lac::from_wire(add.lac),
        kind,
        payload,
    });
    (add.request_id, request)
}

/// Reads a batch.
///
/// # Errors
/// It is no encoding of a `v1::AppendBatch`.
pub fn decode(mut batch: impl Buf) -> Result<ReceivedAppends, Malformed> {
    let mut requests = Vec::new();
    let context = DecodeContext::default();
    while batch.has_remaining() {
        let (tag, wire_type) = decode_key(&mut batch)?;
        if tag != BATCH_REQUESTS {
            skip_field(wire_type, tag, &mut batch, context.clone())?;
            continue;
        }
        check_wire_type(WireType::LengthDelimited, wire_type)?;
        if requests.len() >= MAX_ADDS {
            return Err(Malformed::TooMany);
        }
        let len = length(&mut batch)?;
        let end = batch.remaining() - len;
        let (mut add, mut entry) = (v1::AppendRequest::default(), Payload::default());
        while batch.remaining() > end {
            let (tag, wire_type) = decode_key(&mut batch)?;
            if tag == PAYLOAD {
                check_wire_type(WireType::LengthDelimited, wire_type)?;
                entry = payload(&mut batch)?;
            } else {
                add.merge_field(tag, wire_type, &mut batch, context.clone())?;
            }
        }
        if batch.remaining() != end {
            return Err(Malformed::Short);
        }
        requests.push(received(&add, entry));
    }
    Ok(requests)
}

/// The length of what follows, all of which is there.
fn length(bytes: &mut impl Buf) -> Result<usize, Malformed> {
    let len = usize::try_from(decode_varint(bytes)?).ok();
    len.filter(|len| *len <= bytes.remaining()).ok_or(Malformed::Short)
}

/// Takes a payload as it arrived: what lies in the piece that is being read, and the rest.
fn payload(bytes: &mut impl Buf) -> Result<Payload, Malformed> {
    let len = length(bytes)?;
    let first = bytes.chunk().len().min(len);
    let first = bytes.copy_to_bytes(first);
    if first.len() == len {
        return Ok(Payload::from(first));
    }
    let rest = bytes.copy_to_bytes(len - first.len());
    Ok(Payload::new(first, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stream::Pieces;

    fn message((request_id, request): (u64, AppendRequest)) -> v1::AppendRequest {
        let add = fields(request_id, &request);
        v1::AppendRequest { payload: request.payload.into_bytes(), ..add }
    }

    fn request() -> impl Strategy<Value = (u64, AppendRequest)> {
        let kinds = [AddKind::Ordinary, AddKind::Recovery, AddKind::StateLog];
        let part = prop_oneof![Just(0usize), 1..40usize, 8_190..8_195usize];
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

    #[test]
    fn flags_that_are_not_known_are_an_error_of_their_request_alone() {
        let add = |request_id, flags| v1::AppendRequest { request_id, flags, ..Default::default() };
        let requests = (0..8).map(|flags| add(u64::from(flags), flags)).collect();
        let received = decode(&v1::AppendBatch { requests }.encode_to_vec()[..]).expect("a batch");
        let kinds = received.into_iter().map(|(_, request)| request.map(|it| it.kind).ok());
        let (ordinary, recovery) = (Some(AddKind::Ordinary), Some(AddKind::Recovery));
        let known = [ordinary, recovery, Some(AddKind::StateLog), recovery];
        assert!(kinds.eq(known.into_iter().chain([None; 4])));
    }

    #[test]
    fn more_adds_than_anybody_sends_are_refused() {
        let batch = |count| vec![v1::AppendRequest::default(); count];
        let decoded = |count| {
            decode(&v1::AppendBatch { requests: batch(count) }.encode_to_vec()[..])
                .map(|received| received.len())
        };
        assert_eq!(decoded(MAX_ADDS).ok(), Some(MAX_ADDS));
        assert!(matches!(decoded(MAX_ADDS + 1), Err(Malformed::TooMany)));
    }

    proptest! {
        #[test]
        fn what_is_sent_is_the_message_and_large_parts_are_not_copied(
            batch in proptest::collection::vec(request(), 0..6),
        ) {
            let requests = batch.iter().cloned().map(message).collect();
            let expected = v1::AppendBatch { requests }.encode_to_vec();
            let chunks = AppendBatch(batch.clone()).into_chunks().finish();
            let sent: Vec<u8> = chunks.iter().flatten().copied().collect();
            prop_assert_eq!(sent[0], 0);
            prop_assert_eq!(&sent[1..5], &(expected.len() as u32).to_be_bytes()[..]);
            prop_assert_eq!(&sent[5..], &expected[..]);
            let parts = batch.iter().flat_map(|(_, request)| {
                [&request.payload.head, &request.payload.body]
            });
            for part in parts.filter(|part| part.len() >= 8_192) {
                prop_assert!(chunks.iter().any(|chunk| chunk.as_ptr() == part.as_ptr()));
            }

            let mut pieces = Pieces::default();
            chunks.iter().for_each(|chunk| pieces.push(chunk.clone()));
            pieces.advance(5);
            let received = decode(&mut pieces).expect("what was sent");
            for ((_, request), (_, sent)) in received.iter().zip(&batch) {
                let body = &sent.payload.body;
                if body.len() >= 8_192 && sent.payload.head.len() < 8_192 {
                    let found = request.as_ref().expect("a good request");
                    prop_assert_eq!(found.payload.body.as_ptr(), body.as_ptr());
                }
            }
            let expected: ReceivedAppends =
                batch.into_iter().map(|(id, request)| (id, Ok(request))).collect();
            prop_assert_eq!(received, expected);
        }

        #[test]
        fn whatever_arrives_is_read_as_the_message_type_reads_it(
            bytes in proptest::collection::vec(prop_oneof![0..0x40u8, any::<u8>()], 0..60),
            cut in 0..60usize,
            wraps in any::<bool>(),
        ) {
            // Mostly what is wrapped gets far.
            let mut bytes = bytes;
            if wraps {
                let len = u8::try_from(bytes.len()).unwrap_or(0);
                bytes.splice(0..0, [0x0a, len]);
            }
            let expected = v1::AppendBatch::decode(&bytes[..]).ok().map(|batch| {
                let read = |mut it: v1::AppendRequest| {
                    let payload = std::mem::take(&mut it.payload);
                    received(&it, Payload::from(payload))
                };
                batch.requests.into_iter().map(read).collect::<Vec<_>>()
            });
            let bytes = Bytes::from(bytes);
            let cut = cut.min(bytes.len());
            let mut pieces = Pieces::default();
            pieces.push(bytes.slice(..cut));
            pieces.push(bytes.slice(cut..));
            prop_assert_eq!(decode(pieces).ok(), expected);
        }
    }
}
