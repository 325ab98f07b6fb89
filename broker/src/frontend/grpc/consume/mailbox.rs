//! [`Mailbox`]: the frames of one consumer that its task has not come to yet. The stream's task
//! puts them in and never waits, so a consumer that waits for storage holds up no other.
//!
//! Bounded twice: a consumer with more than its share waiting is closed, and while all of a stream
//! together have more than [`STREAM_BYTES`] waiting, nothing is read from it. Credit, and what is
//! to be handed out again, add up to one frame as long as nothing stands in between and the frame
//! stays one that a client may send, so what the protocol lets a client have under way fits with
//! ease.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use geminga_proto::v1;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::frontend::grpc::consume::consumer::Request;
use crate::frontend::grpc::convert::MAX_POSITIONS;

/// Frames of one consumer that may wait.
const FRAMES: usize = 4_096;
/// Bytes of them.
const BYTES: usize = 8 << 20;
/// Bytes that all consumers of a stream may have waiting before its reading stops. Several times
/// as many as one may have, so that one alone never stops it.
const STREAM_BYTES: usize = 32 << 20;

/// What a frame takes besides its positions.
const FRAME_BYTES: usize = 64;

fn weight(request: &Request) -> usize {
    let position = size_of::<v1::AckPosition>();
    let positions = match request {
        Request::Ack(ack) => {
            let indexes = ack.positions.iter().map(|named| named.acked_indexes.len());
            ack.positions.len() * position + indexes.sum::<usize>()
        }
        Request::Redeliver(redeliver) => redeliver.positions.len() * position,
        _ => 0,
    };
    FRAME_BYTES + positions
}

/// Takes `next` into the frame before it if both together mean the same.
fn merge(last: &mut Request, next: Request) -> Option<Request> {
    match (last, next) {
        (Request::Flow { messages, bytes }, Request::Flow { messages: more, bytes: further }) => {
            *messages = messages.saturating_add(more);
            *bytes = bytes.saturating_add(further);
            None
        }
        (Request::Redeliver(last), Request::Redeliver(mut next)) => {
            // Naming none means all.
            if last.positions.is_empty() || next.positions.is_empty() {
                last.positions.clear();
            } else if last.positions.len() + next.positions.len() > MAX_POSITIONS {
                // Together they would be refused.
                return Some(Request::Redeliver(next));
            } else {
                last.positions.append(&mut next.positions);
            }
            None
        }
        (_, next) => Some(next),
    }
}

/// Bytes that wait in all mailboxes of a stream.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    bytes: AtomicUsize,
    less: Notify,
}

impl Waiting {
    fn sub(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        if before >= STREAM_BYTES && before - bytes < STREAM_BYTES {
            self.less.notify_waiters();
        }
    }

    /// Waits until more may be read.
    pub(super) async fn room(&self) {
        loop {
            let less = self.less.notified();
            tokio::pin!(less);
            less.as_mut().enable();
            if self.bytes.load(Ordering::Acquire) < STREAM_BYTES {
                return;
            }
            less.await;
        }
    }
}

#[derive(Debug, Default)]
struct State {
    requests: VecDeque<Request>,
    bytes: usize,
    /// Nothing more is put in.
    closed: bool,
    /// More was put in than may wait.
    overfull: bool,
}

/// The frames that wait for one consumer's task.
#[derive(Debug)]
pub(super) struct Mailbox {
    state: Mutex<State>,
    wake: Notify,
    burst: Notify,
    waiting: Arc<Waiting>,
}

impl Mailbox {
    pub(super) fn new(waiting: Arc<Waiting>) -> Arc<Self> {
        let (state, wake, burst) = (Mutex::default(), Notify::new(), Notify::new());
        Arc::new(Self { state, wake, burst, waiting })
    }

    /// Puts a frame in. If that is more than may wait, all of them go, and [`Self::overfull`] says
    /// so.
    pub(super) fn put(&self, request: Request) {
        let mut state = self.state.lock();
        if state.overfull {
            return;
        }
        let before = state.requests.back().map_or(0, weight);
        let rest = match state.requests.back_mut() {
            Some(last) => merge(last, request),
            None => Some(request),
        };
        let merged = rest.is_none();
        state.requests.extend(rest);
        let after = state.requests.back().map_or(0, weight);
        let kept = if merged { before } else { 0 };
        state.bytes = (state.bytes + after).saturating_sub(kept);
        self.waiting.bytes.fetch_add(after, Ordering::AcqRel);
        let mut freed = kept;
        if state.requests.len() > FRAMES || state.bytes > BYTES {
            freed += state.bytes;
            *state = State { overfull: true, ..State::default() };
            self.burst.notify_one();
        }
        drop(state);
        self.waiting.sub(freed);
        self.wake.notify_one();
    }

    /// Nothing more will be put in.
    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.wake.notify_one();
    }

    /// The next frame; `None` once there is none and won't be any.
    pub(super) async fn next(&self) -> Option<Request> {
        loop {
            let wake = self.wake.notified();
            {
                let mut state = self.state.lock();
                if let Some(request) = state.requests.pop_front() {
                    let bytes = weight(&request);
                    state.bytes = state.bytes.saturating_sub(bytes);
                    drop(state);
                    self.waiting.sub(bytes);
                    return Some(request);
                }
                if state.closed {
                    return None;
                }
            }
            wake.await;
        }
    }

    /// Waits until more was put in than may wait. Only one may wait for it.
    pub(super) async fn overfull(&self) {
        loop {
            let burst = self.burst.notified();
            if self.state.lock().overfull {
                return;
            }
            burst.await;
        }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.waiting.sub(self.state.get_mut().bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::grpc::convert;
    use futures_util::FutureExt;

    fn mailbox() -> (Arc<Mailbox>, Arc<Waiting>) {
        let waiting = Arc::<Waiting>::default();
        (Mailbox::new(Arc::clone(&waiting)), waiting)
    }

    fn ack(positions: usize) -> Request {
        let positions = vec![v1::AckPosition::default(); positions];
        Request::Ack(v1::Acknowledge { positions, ..v1::Acknowledge::default() })
    }

    fn redeliver(positions: usize) -> Request {
        let positions = vec![Default::default(); positions];
        Request::Redeliver(v1::Redeliver { consumer_id: 1, positions })
    }

    #[test]
    fn frames_keep_their_order_and_those_alike_add_up() {
        let (mailbox, waiting) = mailbox();
        let flow = |messages, bytes| Request::Flow { messages, bytes };
        for request in [flow(1, 10), flow(2, 20), ack(1), flow(4, 40), redeliver(2), redeliver(3)] {
            mailbox.put(request);
        }
        mailbox.close();
        let mut seen = Vec::new();
        while let Some(request) = mailbox.next().now_or_never().expect("nothing to wait for") {
            seen.push(match request {
                Request::Flow { messages, bytes } => format!("flow {messages} {bytes}"),
                Request::Ack(_) => "ack".to_owned(),
                Request::Redeliver(redeliver) => format!("again {}", redeliver.positions.len()),
                other => format!("{other:?}"),
            });
        }
        assert_eq!(seen, ["flow 3 30", "ack", "flow 4 40", "again 5"]);
        assert_eq!(waiting.bytes.load(Ordering::Acquire), 0);
        mailbox.put(redeliver(5));
        mailbox.put(redeliver(0));
        let all = mailbox.next().now_or_never();
        assert!(matches!(&all, Some(Some(Request::Redeliver(it))) if it.positions.is_empty()));
    }

    #[test]
    fn what_our_client_may_have_under_way_fits_and_more_is_too_much() {
        let (mailbox, waiting) = mailbox();
        for _ in 0..100 {
            mailbox.put(redeliver(1_000));
        }
        for _ in 0..16 {
            mailbox.put(Request::Flow { messages: 1, bytes: 1 });
            mailbox.put(ack(1_000));
        }
        for request_id in 0..1_000 {
            mailbox.put(Request::Position { request_id });
        }
        assert!(mailbox.overfull().now_or_never().is_none());
        let mut again = 0;
        for _ in 0..1_042 {
            match mailbox.next().now_or_never().flatten().expect("it was put in") {
                Request::Redeliver(frame) => {
                    again += convert::redeliver(&frame).expect("valid").len();
                }
                Request::Ack(frame) => drop(convert::ack(frame).expect("valid")),
                _ => {}
            }
        }
        assert!(mailbox.next().now_or_never().is_none());
        assert_eq!(again, 100_000);
        while !mailbox.state.lock().overfull {
            mailbox.put(ack(1_000));
        }
        assert!(mailbox.overfull().now_or_never().is_some());
        mailbox.put(ack(1_000));
        assert_eq!(waiting.bytes.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_stream_is_read_again_when_enough_was_done() {
        let waiting = Arc::<Waiting>::default();
        let mailboxes: Vec<_> = (0..5).map(|_| Mailbox::new(Arc::clone(&waiting))).collect();
        for mailbox in &mailboxes {
            let each = BYTES / size_of::<v1::AckPosition>() - 10;
            mailbox.put(ack(each));
        }
        let mut room = Box::pin(waiting.room());
        assert!(room.as_mut().now_or_never().is_none());
        assert!(mailboxes[0].next().now_or_never().is_some());
        assert!(mailboxes[1].next().now_or_never().is_some());
        assert!(waiting.room().now_or_never().is_some());
        drop(mailboxes);
        assert_eq!(waiting.bytes.load(Ordering::Acquire), 0);
    }
}
