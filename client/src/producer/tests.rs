//! What is gathered, expires and is told, on a clock that the test moves. No broker: the sessions
//! are those of an outage.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use geminga_proto::env::{Env, ManualClock, SystemRandom};

use super::*;
use crate::session::Endpoint;

const SEND_TIMEOUT: Duration = Duration::from_secs(30);

fn producer(
    change: impl FnOnce(ProducerBuilder) -> ProducerBuilder,
) -> (Producer, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let env = Env { clock: Arc::clone(&clock) as _, random: Arc::new(SystemRandom) };
    let client = Client::builder().env(env).build().expect("valid settings");
    let builder = change(client.producer("t").send_timeout(Some(SEND_TIMEOUT)));
    builder.config.validate().expect("valid settings");
    let topic = client.topic("t").expect("a name");
    let shared = Shared::new(Arc::clone(&client.inner), topic, builder.config);
    (Producer { handle: Arc::new(Handle { shared }) }, clock)
}

fn timed_out<T>() -> Result<T, SendError> {
    Err(SendError::Timeout { after: SEND_TIMEOUT, last: None })
}

#[tokio::test]
async fn what_gathered_behind_an_entry_that_expired_in_an_outage_is_sealed_and_expires_too() {
    for compression in [Compression::None, Compression::Lz4] {
        let (producer, clock) = producer(|it| it.compression(compression));
        let first = producer.enqueue("m1").await.expect("taken");
        clock.advance(Duration::from_secs(10));
        let second = producer.enqueue("m2").await.expect("taken");
        assert!(!producer.shared().state.lock().batch.is_empty(), "it waits behind the first");
        clock.advance(Duration::from_secs(20));
        let next = producer.shared().on_timer();
        assert_eq!(first.await.map(drop), timed_out());
        assert!(producer.shared().state.lock().batch.is_empty(), "it has a slot of its own");
        // Its time runs from when it was given, not from when the first was given up.
        assert_eq!(next, Some(Duration::from_secs(10)));
        clock.advance(Duration::from_secs(10));
        producer.shared().on_timer();
        assert_eq!(second.await.map(drop), timed_out());
        assert_eq!(producer.in_flight(), 0);
    }
}

#[tokio::test]
async fn without_a_send_timeout_nothing_ever_expires() {
    let (producer, clock) = producer(|it| it.send_timeout(None));
    let _first = producer.enqueue("m1").await.expect("taken");
    clock.advance(Duration::from_secs(365 * 24 * 3600));
    assert_eq!(producer.shared().on_timer(), None);
    assert_eq!(producer.in_flight(), 1);
}

#[tokio::test]
async fn what_gathered_behind_an_entry_that_cannot_be_encoded_is_sealed() {
    let (producer, _) = producer(|it| it);
    let shared = producer.shared();
    let job = {
        let mut state = shared.state.lock();
        state.batch.push("too large for this broker".into(), 100);
        shared.seal(&mut state)
    };
    let second = producer.enqueue("m2").await.expect("taken");
    assert!(!shared.state.lock().batch.is_empty(), "it waits behind the first");
    shared.max_message_bytes.store(1, Ordering::Relaxed);
    shared.encode(job);
    assert!(shared.state.lock().batch.is_empty(), "it is nobody's successor any more");
    assert!(matches!(second.await, Err(SendError::TooLarge { .. })));
}

#[tokio::test]
async fn a_batch_may_not_gather_longer_than_its_messages_may_take() {
    let client = Client::builder().build().expect("valid settings");
    let builder = client.producer("t").send_timeout(Some(Duration::from_secs(1)));
    let refused =
        builder.max_batch_delay(Duration::from_secs(1)).open().await.expect_err("never sent");
    assert!(
        matches!(refused, ClientError::Config { setting: "max_batch_delay", .. }),
        "{refused:?}"
    );
}

/// Lets an entry with a callback and a one-way message expire together; answers what the callback
/// saw while it ran.
async fn seen_while_others_are_told<T: Send + 'static>(
    prepare: impl FnOnce(&Arc<Shared>),
    look: impl FnOnce(&Arc<Shared>) -> T + Send + 'static,
) -> (Producer, T) {
    let (producer, clock) = producer(|it| it.batching(false));
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let shared = Arc::clone(producer.shared());
    let callback = move |_| tell.send(look(&shared)).expect("room for one");
    producer.send_with_callback("m1", callback).await.expect("taken");
    producer.send_one_way("m2").await.expect("taken");
    prepare(producer.shared());
    clock.advance(SEND_TIMEOUT);
    producer.shared().on_timer();
    (producer, told.recv().expect("called"))
}

#[tokio::test]
async fn a_flush_while_outcomes_are_being_told_does_not_miss_a_one_way_failure() {
    use std::future::Future;
    use std::task::{Context, Waker};

    let look = |shared: &Arc<Shared>| {
        let flush = std::pin::pin!(shared.flush());
        flush.poll(&mut Context::from_waker(Waker::noop())).is_ready()
    };
    let (producer, ready) = seen_while_others_are_told(|_| {}, look).await;
    assert!(!ready, "m2 has no outcome yet");
    assert_eq!(producer.flush().await, timed_out());
    assert_eq!(producer.flush().await, Ok(()));
}

#[tokio::test]
async fn a_close_waits_for_outcomes_that_are_being_told() {
    let look = |shared: &Arc<Shared>| shared.over();
    let (producer, over) = seen_while_others_are_told(|shared| shared.start_close(), look).await;
    assert_eq!(over, None, "m2 has no outcome yet");
    assert_eq!(producer.shared().over(), Some(ClientError::Closed));
    producer.shared().finish(&ClientError::Closed);
    assert_eq!(producer.close().await, timed_out());
}

#[tokio::test]
async fn a_callback_that_panics_keeps_no_other_from_its_outcome_and_holds_up_nothing() {
    let (producer, clock) = producer(|it| it.batching(false));
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    producer.send_with_callback("m1", |_| panic!("a defect")).await.expect("taken");
    let second = move |outcome: Result<_, _>| tell.send(outcome.map(drop)).expect("room for one");
    producer.send_with_callback("m2", second).await.expect("taken");
    clock.advance(SEND_TIMEOUT);
    producer.shared().on_timer();
    assert_eq!(told.recv().expect("called"), timed_out());
    assert_eq!(producer.in_flight(), 0);
    let room = producer.shared().config.max_in_flight_messages as usize;
    assert_eq!(producer.shared().room_messages.available_permits(), room);
    assert_eq!(producer.flush().await, Ok(()));
    producer.shared().start_close();
    assert_eq!(producer.shared().over(), Some(ClientError::Closed));
}
