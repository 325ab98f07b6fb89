//! Bodies that are there at once, whole and cut in every way.

use std::collections::VecDeque;
use std::convert::Infallible;

use bytes::Bytes;
use http_body::Frame;
use proptest::prelude::*;

use super::*;
use crate::stream::{ChunkedBody, Chunks, IntoChunks, shared_len};
use crate::v1;

/// A body that is there at once.
struct Ready(VecDeque<Frame<Bytes>>);

impl http_body::Body for Ready {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

fn body(parts: impl IntoIterator<Item = Bytes>) -> Body {
    Body::new(Ready(parts.into_iter().map(Frame::data).collect()))
}

fn framed(message: &impl Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let mut framed = vec![0];
    framed.extend((bytes.len() as u32).to_be_bytes());
    framed.extend(bytes);
    framed
}

fn send(entry: Bytes) -> v1::ProduceRequest {
    let send = v1::SendEntry { producer_id: 1, sequence_id: 2, entry };
    let frame = v1::produce_frame::Frame::Send(send);
    v1::ProduceRequest { frames: vec![v1::ProduceFrame { frame: Some(frame) }] }
}

fn all<M>(mut messages: Messages<M>) -> Result<Vec<M>, Status> {
    let mut context = Context::from_waker(std::task::Waker::noop());
    let mut found = Vec::new();
    loop {
        match Pin::new(&mut messages).poll_next(&mut context) {
            Poll::Ready(Some(message)) => found.push(message?),
            Poll::Ready(None) => return Ok(found),
            Poll::Pending => panic!("everything is there"),
        }
    }
}

fn requests(parts: impl IntoIterator<Item = Bytes>) -> Result<Vec<v1::ProduceRequest>, Status> {
    all(Messages::requests(body(parts), 1 << 20))
}

fn responses(bytes: Vec<u8>, trailers: Option<Status>) -> Result<Vec<v1::ProduceRequest>, Status> {
    let mut frames = VecDeque::from([Frame::data(bytes.into())]);
    if let Some(status) = trailers {
        let mut headers = http::HeaderMap::new();
        status.add_header(&mut headers).expect("a header");
        frames.push_back(Frame::trailers(headers));
    }
    all(Messages::responses(Body::new(Ready(frames)), 1 << 20))
}

proptest! {
    #[test]
    fn messages_are_the_same_however_the_connection_cuts_them(
        sizes in proptest::collection::vec(0..300usize, 0..6),
        cuts in proptest::collection::vec(1..200usize, 0..20),
    ) {
        let sent: Vec<_> = sizes.iter().map(|size| send(vec![7; *size].into())).collect();
        let mut rest = Bytes::from(sent.iter().flat_map(framed).collect::<Vec<_>>());
        let mut parts = Vec::new();
        for cut in cuts {
            parts.push(rest.split_to(cut.min(rest.len())));
        }
        parts.push(rest);
        prop_assert_eq!(requests(parts).expect("good messages"), sent);
    }

    #[test]
    fn nothing_that_arrives_panics(
        parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..6),
        flags in any::<bool>(),
    ) {
        let parts = parts.into_iter().map(|mut part| {
            if flags {
                part.splice(0..0, [0, 0, 0, 0, 20]);
            }
            Bytes::from(part)
        });
        drop(requests(parts));
    }
}

#[test]
fn an_entry_in_a_piece_of_its_own_is_not_copied() {
    let entry = Bytes::from(vec![9; 10_000]);
    let bytes = framed(&send(entry.clone()));
    let head = Bytes::copy_from_slice(&bytes[..bytes.len() - entry.len()]);
    let mut found = requests([head, entry.clone()]).expect("a message");
    let frame = found.pop().and_then(|mut request| request.frames.pop()?.frame);
    let Some(v1::produce_frame::Frame::Send(send)) = frame else { panic!("an entry was sent") };
    assert_eq!(send.entry.as_ptr(), entry.as_ptr());
}

#[test]
fn what_is_no_message_ends_the_stream() {
    let good = framed(&send(Bytes::from_static(b"x")));
    let code = |bytes: &[u8]| requests([Bytes::copy_from_slice(bytes)]).map_err(|it| it.code());
    assert_eq!(code(&good).map(|found| found.len()), Ok(1));
    assert_eq!(code(&good[..good.len() - 1]), Err(Code::Internal));
    assert_eq!(code(&good[..3]), Err(Code::Internal));
    assert_eq!(code(&[1, 0, 0, 0, 0]), Err(Code::Internal));
    assert_eq!(code(&[0, 0, 0, 0, 1, 0xff]), Err(Code::Internal));
    // Refused before it is there.
    assert_eq!(code(&[0, 0, 0x10, 0, 1]), Err(Code::OutOfRange));
}

#[test]
fn a_servers_stream_ends_with_its_status() {
    let good = framed(&send(Bytes::from_static(b"x")));
    let ok = Status::new(Code::Ok, "");
    assert_eq!(responses(good.clone(), Some(ok)).expect("it ended well").len(), 1);
    let ended = responses(good.clone(), Some(Status::aborted("because"))).expect_err("its error");
    assert_eq!((ended.code(), ended.message()), (Code::Aborted, "because"));
    let cut = responses(good, None).expect_err("it broke");
    assert_eq!(cut.code(), Code::Unavailable);
}

impl IntoChunks for v1::SendEntry {
    fn into_chunks(self) -> Chunks {
        let mut chunks = Chunks::begin(self.entry.len(), shared_len(&self.entry));
        chunks.share(&self.entry);
        chunks
    }
}

#[test]
fn answers_are_followed_by_a_status_and_an_error_is_one() {
    let entry = |len| v1::SendEntry { entry: vec![1; len].into(), ..v1::SendEntry::default() };
    let decode = |mut bytes: Take<&mut Pieces>| Ok(bytes.copy_to_bytes(bytes.remaining()).len());
    let answers = |items: Vec<Result<v1::SendEntry, Status>>| {
        let body = ChunkedBody::responses(tonic::codegen::tokio_stream::iter(items));
        all(Messages::new(Body::new(body), Side::Responses, 1 << 20, decode))
    };
    assert_eq!(answers(vec![Ok(entry(10)), Ok(entry(20_000))]).expect("both"), [10, 20_000]);
    let failed = answers(vec![Ok(entry(1)), Err(Status::not_found("it"))]).expect_err("its error");
    assert_eq!((failed.code(), failed.message()), (Code::NotFound, "it"));
}
