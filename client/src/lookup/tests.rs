//! Who is asked when, on a clock that the test moves; no broker is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use geminga_proto::env::{Clock, ManualClock, SystemRandom};
use tokio::time::Instant;

use super::*;
use crate::connection::ConnectSettings;

fn urls(count: u32) -> Vec<Arc<str>> {
    (0..count).map(|at| Arc::from(at.to_string())).collect()
}

fn refused(url: &str) -> ClientError {
    ClientError::Connect { url: url.to_owned(), why: "refused".to_owned() }
}

fn broker(code: ErrorCode) -> ClientError {
    BrokerError { code, message: "scripted".to_owned() }.into()
}

#[tokio::test(start_paused = true)]
async fn a_silent_broker_gets_company_and_the_first_answer_counts() {
    let asked = AtomicU32::new(0);
    let started = Instant::now();
    let answer = first_answer(urls(4), |url| {
        asked.fetch_add(1, Ordering::Relaxed);
        async move {
            match &*url {
                "0" | "1" => std::future::pending().await,
                "2" => tokio::time::sleep(Duration::from_millis(10)).await,
                _ => {}
            }
            Ok(url)
        }
    });
    assert_eq!(answer.await.as_deref(), Ok("2"));
    assert_eq!(started.elapsed(), STAGGER * 2 + Duration::from_millis(10));
    assert_eq!(asked.into_inner(), 3, "the last one isn't bothered");
}

#[tokio::test(start_paused = true)]
async fn one_that_fails_is_followed_by_the_next_at_once() {
    let started = Instant::now();
    let answer = first_answer(urls(3), |url| async move {
        if &*url == "2" { Ok(url) } else { Err(refused(&url)) }
    });
    assert_eq!(answer.await.as_deref(), Ok("2"));
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_brokers_final_word_is_not_asked_for_again_elsewhere() {
    let asked = AtomicU32::new(0);
    for code in [ErrorCode::TopicNotFound, ErrorCode::NamespaceNotFound] {
        let answer = first_answer(urls(3), |_| {
            asked.fetch_add(1, Ordering::Relaxed);
            async move { Err::<(), _>(broker(code)) }
        });
        assert_eq!(answer.await, Err(broker(code)));
    }
    assert_eq!(asked.into_inner(), 2);
    // These say something of the broker only.
    for code in [ErrorCode::WrongCluster, ErrorCode::ShuttingDown, ErrorCode::Unavailable] {
        let answer = first_answer(urls(2), |url| async move {
            if &*url == "1" { Ok(()) } else { Err(broker(code)) }
        });
        assert_eq!(answer.await, Ok(()), "{code:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_all_fail_each_is_told_and_one_alone_as_it_is() {
    let ask = |url: Arc<str>| async move { Err::<(), _>(refused(&url)) };
    assert_eq!(first_answer(urls(1), ask).await, Err(refused("0")));
    let Err(ClientError::NoneAnswered { tried }) = first_answer(urls(2), ask).await else {
        panic!("both failed")
    };
    let expected = ["0", "1"].map(|url| UrlFailure { url: url.to_owned(), error: refused(url) });
    assert_eq!(tried, expected);
    let nobody = first_answer(Vec::new(), ask).await;
    assert_eq!(nobody, Err(ClientError::NoneAnswered { tried: Vec::new() }));
}

fn directory() -> (Directory, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::default());
    let env = Env { clock: Arc::clone(&clock) as _, random: Arc::new(SystemRandom) };
    let settings = ConnectSettings {
        connect_timeout: Duration::from_secs(1),
        operation_timeout: Duration::from_secs(1),
        expected_cluster_id: None,
        client_name: String::new(),
    };
    let urls = ServiceUrls::new(&["http://a:1".to_owned()], &SystemRandom).expect("an address");
    (Directory::new(Pool::new(settings, env.clone()), urls, env), clock)
}

fn topic() -> TopicName {
    "persistent://t/n/t".parse().expect("a name")
}

fn owner(url: &str) -> Owner {
    Owner {
        scope: Scope::Topic(topic()),
        url: url.into(),
        broker_id: url.into(),
        advertised: true,
        told_by: "a".into(),
        version: 0,
    }
}

/// Whether somebody who waits is woken by `what`.
async fn wakes(directory: &Directory, what: impl FnOnce()) -> bool {
    let limit = Duration::from_secs(60);
    let started = Instant::now();
    let now = directory.shared.env.clock.monotonic();
    let waits = async { directory.pause(limit, now + Duration::from_nanos(1)).await };
    // Polled in this order: it waits before it happens.
    tokio::join!(biased; waits, async { what() });
    started.elapsed() < limit
}

#[tokio::test(start_paused = true)]
async fn news_that_topics_move_wake_who_waits_and_not_too_often() {
    let (directory, clock) = directory();
    let learn = |url: &str, before: Option<&str>| {
        let before = before.map(owner);
        directory.shared.learn(owner(url), before.as_ref());
    };
    assert!(!wakes(&directory, || learn("b", None)).await, "nothing has moved");
    assert!(!wakes(&directory, || learn("b", Some("b"))).await, "it is still there");
    assert!(wakes(&directory, || learn("c", Some("b"))).await);
    assert!(!wakes(&directory, || learn("d", Some("c"))).await, "they were just told");
    clock.advance(NEWS_INTERVAL);
    assert!(wakes(&directory, || learn("e", Some("d"))).await);
}

#[tokio::test(start_paused = true)]
async fn who_tried_before_the_news_tries_again_at_once_and_only_once() {
    let (directory, clock) = directory();
    let waited = async |since| {
        let started = Instant::now();
        directory.pause(Duration::from_secs(1), since).await;
        started.elapsed()
    };
    let began = clock.monotonic();
    clock.advance(Duration::from_millis(1));
    directory.shared.learn(owner("c"), Some(&owner("b")));
    assert_eq!(waited(began).await, Duration::ZERO);
    clock.advance(Duration::from_millis(1));
    assert_eq!(waited(clock.monotonic()).await, Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn only_what_a_session_ended_with_decides_whether_its_owner_is_doubted() {
    let (directory, _) = directory();
    let disconnected = ClientError::Disconnected { url: "b".to_owned(), why: "cut".to_owned() };
    for (error, trouble) in [
        (broker(ErrorCode::NotOwner), Some(Trouble::Refused)),
        (broker(ErrorCode::ShuttingDown), Some(Trouble::Refused)),
        (broker(ErrorCode::Fenced), Some(Trouble::Refused)),
        (broker(ErrorCode::Unavailable), Some(Trouble::Refused)),
        (disconnected, Some(Trouble::Unreachable)),
        (refused("b"), Some(Trouble::Unreachable)),
        (broker(ErrorCode::ProducerBusy), None),
        (broker(ErrorCode::StorageFull), None),
        (ClientError::Closed, None),
    ] {
        let learned = directory.shared.learn(owner("b"), None);
        directory.failed(&learned, &error);
        let blamed = directory.shared.owners.lock().blamed(&topic());
        assert_eq!(blamed.map(|(_, trouble)| trouble), trouble, "{error}");
    }
}
