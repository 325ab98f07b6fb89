//! What is ready leaves together and in order, within the limits of the queue.

use super::*;
use crate::core::api::Delivery;
use crate::core::budget::EntryPermit;
use crate::frontend::grpc::consume::Told;
use crate::frontend::grpc::produce::Answer;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use geminga_proto::env::ManualClock;
use geminga_proto::id::Position;
use geminga_proto::payload::Payload;
use geminga_proto::v1;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Text(String);

impl Item for Text {
    type Response = Vec<String>;

    fn weight(&self) -> usize {
        self.0.len()
    }

    fn is_answer(&self) -> bool {
        !self.0.starts_with('x')
    }

    /// Texts that begin alike become one.
    fn merge(&mut self, next: Self) -> Option<Self> {
        if self.0.chars().next() == next.0.chars().next() {
            self.0.push_str(&next.0);
            return None;
        }
        Some(next)
    }

    fn pack(items: Vec<Self>) -> Vec<String> {
        items.into_iter().map(|text| text.0).collect()
    }
}

fn queue(limit: usize) -> (Arc<Outbound<Text>>, OutboundStream<Text>, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let outbound = Outbound::new(limit, Arc::clone(&clock) as _);
    let stream = OutboundStream(Arc::clone(&outbound));
    (outbound, stream, clock)
}

fn push(outbound: &Outbound<Text>, text: &str) {
    outbound.push(Text(text.to_owned()));
}

fn next(stream: &mut OutboundStream<Text>) -> Option<Option<Vec<String>>> {
    stream.next().now_or_never().map(|item| item.map(|result| result.expect("no status")))
}

#[test]
fn what_is_ready_leaves_in_one_message_and_in_order() {
    let (outbound, mut stream, _) = queue(100);
    assert_eq!(next(&mut stream), None);
    for text in ["a1", "b1", "b2", "a2"] {
        push(&outbound, text);
    }
    let expected = ["a1", "b1b2", "a2"].map(str::to_owned).to_vec();
    assert_eq!(next(&mut stream), Some(Some(expected)));
    assert_eq!(outbound.bytes(), 0);
    outbound.end(None);
    assert_eq!(next(&mut stream), Some(None));
}

#[test]
fn a_message_ends_at_its_limit_but_takes_one_event_however_large() {
    let (outbound, mut stream, _) = queue(100);
    let large = "a".repeat(MESSAGE_BYTES + 1);
    push(&outbound, &large);
    push(&outbound, "b");
    assert_eq!(next(&mut stream), Some(Some(vec![large])));
    assert_eq!(next(&mut stream), Some(Some(vec!["b".to_owned()])));
}

#[tokio::test]
async fn requests_wait_while_the_queue_is_over_its_limit() {
    let (outbound, mut stream, _) = queue(4);
    push(&outbound, "xxxxxxxx is no answer to a request");
    push(&outbound, "abc");
    assert!(outbound.room().now_or_never().is_some());
    push(&outbound, "b");
    let waiting = tokio::spawn({
        let outbound = Arc::clone(&outbound);
        async move { outbound.room().await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    assert!(next(&mut stream).is_some());
    waiting.await.expect("no panic");
}

#[tokio::test]
async fn a_transport_that_goes_ends_the_stream_and_frees_what_waits() {
    let (outbound, stream, _) = queue(1);
    push(&outbound, "abc");
    assert!(outbound.ended().now_or_never().is_none());
    drop(stream);
    outbound.ended().await;
    outbound.room().await;
    push(&outbound, "late");
    assert_eq!(outbound.bytes(), 0);
}

#[test]
fn a_status_follows_what_was_queued_unless_the_stream_is_cut() {
    let (outbound, mut stream, _) = queue(100);
    push(&outbound, "a");
    outbound.end(Some(Status::unavailable("end")));
    assert!(next(&mut stream).is_some());
    let status = stream.next().now_or_never().flatten().expect("a status").expect_err("an error");
    assert_eq!(status.message(), "end");
    assert!(stream.next().now_or_never().expect("over").is_none());
    let (outbound, mut stream, _) = queue(100);
    push(&outbound, "a");
    outbound.cut(Status::unavailable("cut"));
    let status = stream.next().now_or_never().flatten().expect("a status").expect_err("an error");
    assert_eq!(status.message(), "cut");
}

#[test]
fn a_stall_is_counted_from_the_last_progress_and_only_while_something_waits() {
    let (outbound, mut stream, clock) = queue(100);
    clock.advance(Duration::from_secs(60));
    assert_eq!(outbound.stalled_for(clock.monotonic()), None);
    push(&outbound, "a");
    clock.advance(Duration::from_secs(2));
    push(&outbound, "b");
    assert_eq!(outbound.stalled_for(clock.monotonic()), Some(Duration::from_secs(2)));
    assert!(next(&mut stream).is_some());
    assert_eq!(outbound.stalled_for(clock.monotonic()), None);
}

/// What is left counted after many events that merged were all taken.
fn left_over<I: Item>(limit: usize, event: impl Fn() -> I) -> (u64, bool) {
    let outbound = Outbound::new(limit, Arc::new(ManualClock::default()) as _);
    let mut stream = OutboundStream(Arc::clone(&outbound));
    for _ in 0..20 {
        for _ in 0..100 {
            outbound.push(event());
        }
        while stream.next().now_or_never().is_some() {}
    }
    (outbound.bytes(), outbound.room().now_or_never().is_some())
}

#[test]
fn events_that_merge_leave_nothing_counted_and_requests_are_read_again() {
    let receipt = || Answer::Receipts { producer_id: 1, receipts: vec![v1::Receipt::default()] };
    assert_eq!(left_over(1_000, receipt), (0, true));
    let delivery = || {
        let payload = Payload::new(Bytes::from_static(b"head"), Bytes::from_static(b"body"));
        let entry = Delivery {
            position: Position::default(),
            redelivery_count: 0,
            acked_indexes: Bytes::new(),
            messages: 1,
            payload,
            permit: EntryPermit::default(),
        };
        Told::Delivery { consumer_id: 1, entries: vec![entry] }
    };
    assert_eq!(left_over(1_000, delivery), (0, true));
}

#[tokio::test]
async fn a_stream_whose_task_panics_ends_with_a_status() {
    let (outbound, mut stream, _) = queue(100);
    let ends = EndWithTask(Arc::clone(&outbound));
    let task = tokio::spawn(async move {
        let _ends = ends;
        panic!("a defect");
    });
    assert!(task.await.is_err());
    let status = stream.next().now_or_never().flatten().expect("a status").expect_err("an error");
    assert_eq!(status.code(), Code::Internal);
    // One that ended well stays so.
    let (outbound, mut stream, _) = queue(100);
    outbound.end(None);
    drop(EndWithTask(outbound));
    assert!(stream.next().now_or_never().expect("over").is_none());
}
